"""Any Keras model trains: plain transformers and conv nets, keras.applications, keras-hub, a user's own class."""

import keras
import members
import numpy as np
import pytest
from keras import layers, ops
from one_step import two_views

import keras_issl
from keras_issl import Pretrainer, testing
from keras_issl.encoders import Adapter, feature_dim

SIZE = 16
IMAGES = np.random.default_rng(0).integers(0, 256, (16, SIZE, SIZE, 3)).astype("uint8")


@keras.saving.register_keras_serializable(package="tests")
class Positions(layers.Layer):
    """Adds a class token and learned positions, as transformers for images do: their number of tokens is fixed."""

    def build(self, shape):
        self.token = self.add_weight(shape=(1, 1, shape[-1]), initializer="normal", name="token")
        self.positions = self.add_weight(shape=(1, shape[1] + 1, shape[-1]), initializer="normal", name="positions")

    def call(self, x):  # (B, T, D) -> (B, 1 + T, D)
        token = ops.repeat(ops.cast(self.token, x.dtype), ops.shape(x)[0], axis=0)
        return ops.concatenate([token, x], axis=1) + ops.cast(self.positions, x.dtype)


def vit():
    """A transformer of one block on patches of 8 x 8, with dropout; it returns tokens (B, 5, 8)."""
    images = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(8, 8, strides=8)(layers.Rescaling(1 / 255)(images))
    x = Positions()(layers.Reshape((-1, 8))(x))
    y = layers.LayerNormalization()(x)
    x = layers.Add()([x, layers.Dropout(0.1)(layers.MultiHeadAttention(2, 4)(y, y))])
    y = layers.Dense(16, activation="gelu")(layers.LayerNormalization()(x))
    return keras.Model(images, layers.Add()([x, layers.Dense(8)(y)]), name="vit")


def convnext():
    """A ConvNeXt block on a stem of 4 x 4; it takes any size and returns maps (B, H/4, W/4, 8)."""
    images = keras.Input((None, None, 3))
    x = layers.LayerNormalization()(layers.Conv2D(8, 4, strides=4)(layers.Rescaling(1 / 255)(images)))
    y = layers.LayerNormalization()(layers.DepthwiseConv2D(7, padding="same")(x))
    y = layers.Dense(8)(layers.Dense(32, activation="gelu")(y))
    return keras.Model(images, layers.Add()([x, y]), name="convnext")


def mobilenet():
    """The first blocks of one of Keras's own, maps (B, 8, 8, 32)."""
    whole = keras.applications.MobileNet(input_shape=(32, 32, 3), alpha=0.25, include_top=False, weights=None)
    return keras.Model(whole.input, whole.get_layer("conv_pw_3_relu").output)


@keras.saving.register_keras_serializable(package="tests")
class Own(keras.Model):
    """A user's model: subclassed, with batch statistics, features (B, 6) right away."""

    def __init__(self, width=6, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.conv, self.norm = layers.Conv2D(width, 3, strides=2, use_bias=False), layers.BatchNormalization()
        self.pool = layers.GlobalAveragePooling2D()

    def call(self, images, training=None):
        x = self.norm(self.conv(ops.cast(images, "float32") / 255), training=training)
        return self.pool(ops.relu(x))

    def get_config(self):
        return super().get_config() | {"width": self.width}


def own():
    model = Own()
    model(IMAGES[:1])  # built: its weights exist
    return model


@keras.saving.register_keras_serializable(package="tests")
class Shift(layers.Layer):
    """Adds a number that is kept as an integer, as steps and counts are."""

    def build(self, shape):
        self.by = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False, name="by")

    def call(self, x):
        return x + ops.cast(self.by, x.dtype)


def adapted():
    """Images scaled by statistics that `adapt` took from them, and an integer state variable."""
    scale = layers.Normalization()
    scale.adapt(IMAGES)
    images = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(6, 4, strides=4)(Shift(name="shift")(scale(images)))
    model = keras.Model(images, layers.GlobalAveragePooling2D()(x))
    model.get_layer("shift").by.assign(3)
    return model


# Name -> (encoder, side of its images, classes that loading its preset must be given). A subclassed model has no
# weights before its first call, so it cannot be loaded unless adapted.
ENCODERS = {
    "vit": (lambda: Adapter(vit()), SIZE, {"Adapter": Adapter, "Positions": Positions}),
    "convnext": (lambda: Adapter(convnext()), SIZE, {"Adapter": Adapter}),
    "own": (own, SIZE, None),
    "own adapted": (lambda: Adapter(Own(), image_shape=(SIZE, SIZE, 3)), SIZE, {"Adapter": Adapter, "Own": Own}),
    "keras.applications": (lambda: Adapter(mobilenet(), scale=1 / 127.5, offset=-1), 32, {"Adapter": Adapter}),
}


def train(encoder, side, objective="BYOL"):
    """One epoch of two steps with an EMA copy of the encoder."""
    model = Pretrainer(encoder, members.SMALL[objective](), two_views)
    model.compile(keras.optimizers.SGD(0.1))
    images = np.random.default_rng(0).integers(0, 256, (16, side, side, 3)).astype("uint8")
    history = model.fit(images, batch_size=8, verbose=0).history
    assert np.isfinite(history["loss"][0])
    return model, images


def features_of(encoder, images):
    return ops.convert_to_numpy(encoder(images, training=False))  # nothing to compile


@pytest.mark.parametrize("name", ENCODERS)
def test_it_trains_predicts_and_comes_back_from_its_preset(name, tmp_path):
    make, side, classes = ENCODERS[name]
    encoder = make()
    before = encoder.get_weights()
    model, images = train(encoder, side)
    moved = [not np.array_equal(a, b) for a, b in zip(before, encoder.get_weights(), strict=True)]
    assert np.mean(moved) > 0.8, "only biases ahead of a normalisation may stay"
    teacher = model.teacher_encoder.get_weights()
    followed = [np.array_equal(a, t) for a, t in zip(before, teacher, strict=True)]
    assert np.mean(followed) < 0.5, "after the second step the moving average has left where it started"
    features = model.predict(images, verbose=0)
    assert features.shape == (16, feature_dim(encoder)) and features.dtype == np.float32
    if classes is None:
        return
    keras_issl.save_preset(encoder, tmp_path / "preset")
    loaded = keras_issl.from_preset(tmp_path / "preset", custom_objects=classes)
    assert type(loaded) is type(encoder)
    np.testing.assert_allclose(features_of(loaded, images), features, rtol=1e-4, atol=1e-5)


def test_the_teacher_starts_as_an_encoder_with_adapted_and_integer_state():
    encoder = adapted()
    model = Pretrainer(encoder, members.SMALL["BYOL"](), two_views)
    expected = features_of(encoder, IMAGES)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(features_of(model.teacher_encoder, IMAGES), expected, rtol=1e-5, atol=1e-5)
    model.compile(keras.optimizers.SGD(0.0))
    model.fit(IMAGES, batch_size=8, verbose=0)
    np.testing.assert_allclose(features_of(model.teacher_encoder, IMAGES), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["vit", "convnext", "own"])
def test_it_keeps_the_contract_of_an_encoder(name):
    make, side, _ = ENCODERS[name]
    testing.check_encoder(make(), image_shape=(side, side, 3))


# ---------------------------------------------------------------------- keras-hub
def hub_models():
    reason = "keras-hub is not installed: it brings the full TensorFlow along, whatever the backend"
    return pytest.importorskip("keras_hub", reason=reason).models


HUB = {  # small backbones: tokens, maps (keras-hub has no ConvNeXt: the plain one above stands for it)
    "ViTBackbone": {"patch_size": 16, "num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16},
    "SwinTransformerBackbone": {"embed_dim": 8, "depths": (1, 1), "num_heads": (2, 2), "window_size": 4},
    "ResNetBackbone": {
        "input_conv_filters": [64],
        "input_conv_kernel_sizes": [7],
        "stackwise_num_filters": [64],
        "stackwise_num_blocks": [1],
        "stackwise_num_strides": [1],
        "block_type": "basic_block",
    },
}


@pytest.mark.parametrize("name", HUB)
def test_a_keras_hub_backbone_trains(name, tmp_path):
    models = hub_models()
    encoder = Adapter(getattr(models, name)(image_shape=(32, 32, 3), **HUB[name]), scale=1 / 255)
    model, images = train(encoder, 32)
    features = model.predict(images, verbose=0)
    assert features.shape == (16, feature_dim(encoder))
    keras_issl.save_preset(encoder, tmp_path / "preset")
    loaded = keras_issl.from_preset(tmp_path / "preset", custom_objects={"Adapter": Adapter})
    np.testing.assert_allclose(features_of(loaded, images), features, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------- encoders that are none
class OwnMaps(keras.Model):
    """A subclassed model that forgot to pool."""

    def __init__(self):
        super().__init__()
        self.conv = layers.Conv2D(6, 3, strides=2)

    def call(self, images):
        return self.conv(images)


def own_maps():
    model = OwnMaps()
    model(IMAGES[:1].astype("float32"))  # built
    return model


def with_outputs(make):
    model = convnext()
    return keras.Model(model.input, make(model.output))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (convnext, r"maps of shape \(None, None, None, 8\).*encoders.Adapter\(encoder\)"),
        (vit, r"tokens of shape \(None, 5, 8\).*encoders.Adapter\(encoder\)"),
        (own_maps, r"maps of shape \(None, 7, 7, 6\).*encoders.Adapter\(encoder\)"),
        (lambda: with_outputs(lambda y: [y, y]), "a list of 2 outputs.*Adapter"),
        (lambda: with_outputs(lambda y: {"features": y, "P2": y}), r"\['P2', 'features'\].*Adapter\(encoder\)"),
        (lambda: with_outputs(lambda y: {"P2": y, "P3": y}), r"Adapter\(encoder, output='P2'\)"),
        (Own, r"should be built.*image_shape=\(height, width, channels\)"),
        (lambda: layers.Dense(3), "should be a keras.Model"),
        (lambda: np.mean, "should be a keras.Model"),
        (lambda: "resnet18", "Received: 'resnet18'"),
    ],
)
def test_what_returns_no_features_is_refused_at_construction(make, words):
    with pytest.raises(ValueError, match=words) as raised:
        Pretrainer(make(), members.SMALL["SimCLR"]())
    assert str(raised.value).startswith("`encoder` should")


def test_an_encoder_of_nan_is_named_before_anything_is_trained():
    network = convnext()
    network.layers[-2].bias.assign(np.full(8, np.nan))
    model = Pretrainer(Adapter(network, name="broken"), members.SMALL["SimCLR"]())
    model.compile("sgd")
    before = model.get_weights()
    with pytest.raises(ValueError, match="`encoder` should return finite features. Received: broken"):
        model.fit(IMAGES, batch_size=8, verbose=0)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def large_and_small(images):
    x = ops.cast(images, "float32")
    return [x, x, x[:, :8, :8]]


def test_small_crops_for_an_encoder_of_one_size_are_refused_in_words():
    model = Pretrainer(Adapter(vit()), members.SMALL["DISSL"](), large_and_small)
    model.compile("sgd")
    with pytest.raises(ValueError, match=r"(?s)\(batch, 16, 16, 3\).*\(.*, 8, 8, 3\).*one size.*no small crops"):
        model.fit(IMAGES, batch_size=8, verbose=0)
    model = Pretrainer(Adapter(convnext()), members.SMALL["DISSL"](), large_and_small)
    outputs = model.outputs(ops.convert_to_tensor(IMAGES[:4]), training=False)
    assert tuple(outputs["student_logits"].shape) == (3, 4, 12)


def test_images_of_another_rank_or_channels_are_refused_in_words():
    encoder = Adapter(convnext())
    for shape, words in (((16, 16, 3), r"image\[None\]"), ((2, 16, 16, 1), "np.repeat"), ((2, 16), "Stack images")):
        with pytest.raises(ValueError, match=words):
            encoder(np.zeros(shape, "float32"))
