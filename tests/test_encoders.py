"""Encoders against plain PyTorch networks of torchvision's layout, written here."""

import json

import keras
import numpy as np
import pytest
import torch
from keras import ops
from torch import nn

from keras_issl import encoders
from keras_issl.distribution import BatchNormalization, jit_compile_default
from keras_issl.encoders import NORMALIZATIONS, Adapter, ResNet, feature_dim

TINY = {"blocks": (1, 1), "width": 8, "image_size": 32, "stem": "strided"}


class Block(nn.Module):
    """torchvision's BasicBlock or v1.5 Bottleneck, with its names."""

    def __init__(self, inputs, width, stride, bottleneck):
        super().__init__()
        outputs = 4 * width if bottleneck else width
        plan = (
            ((1, 1, width), (3, stride, width), (1, 1, outputs)) if bottleneck else ((3, stride, width), (3, 1, width))
        )
        channels = inputs
        for i, (size, step, out) in enumerate(plan, 1):
            setattr(self, f"conv{i}", nn.Conv2d(channels, out, size, step, size // 2, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(out))
            channels = out
        self.depth, self.outputs = len(plan), outputs
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = y.relu() if i < self.depth else y
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class Expand(nn.Module):
    """The released checkpoints' wider representation."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, 512, 1, bias=False), nn.BatchNorm2d(512)
        self.conv2, self.bn2 = nn.Conv2d(512, 512, 3, padding=1, bias=False), nn.BatchNorm2d(512)
        self.conv3, self.bn3 = nn.Conv2d(512, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.index = [c % inputs for c in range(outputs)] if outputs >= inputs else None

    def forward(self, x):
        y = self.bn3(self.conv3(self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()))
        return (y if self.index is None else y + x[:, self.index]).relu()


class TorchResNet(nn.Module):
    def __init__(self, blocks, bottleneck, stem, width, expand):
        super().__init__()
        size, stride, pool = {"imagenet": (7, 2, 1), "small": (3, 1, 1), "cifar": (3, 1, 0), "strided": (3, 2, 0)}[stem]
        self.conv1, self.bn1 = nn.Conv2d(3, width, size, stride, size // 2, bias=False), nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if pool else nn.Identity()
        channels = width
        self.stages = len(blocks)
        for stage, depth in enumerate(blocks):
            layers = []
            for block in range(depth):
                layers.append(Block(channels, width * 2**stage, 2 if stage and not block else 1, bottleneck))
                channels = layers[-1].outputs
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.resizer = Expand(channels, expand) if expand else nn.Identity()
        for module in self.modules():  # a checkpoint's statistics are nobody's default
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
                nn.init.normal_(module.running_mean, std=0.2)
                nn.init.uniform_(module.running_var, 0.5, 1.5)

    def forward(self, images):
        mean, std = (torch.tensor(NORMALIZATIONS["imagenet"][k]).view(3, 1, 1) for k in ("mean", "std"))
        x = (torch.tensor(images).permute(0, 3, 1, 2) / 255 - mean) / std
        x = self.maxpool(self.bn1(self.conv1(x)).relu())
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.resizer(x).mean((2, 3))


KERAS_NAMES = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


def copy_weights(source, encoder):
    """Every tensor of a torch network to the Keras weight of its name, which must all be there and no others."""
    ours = {variable.path: variable for variable in encoder.variables}
    for key, tensor in source.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        module, _, kind = key.rpartition(".")
        name = "kernel" if tensor.ndim == 4 else KERAS_NAMES[kind]
        value = tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor
        # A copy: JAX may share a NumPy buffer, and torch writes its running statistics in place.
        ours.pop(f"{module.replace('.', '_')}/{name}").assign(value.numpy().copy())
    assert not ours


def pair(variant, stem, expand=None, **kwargs):
    """A torch network in evaluation mode on the CPU and our encoder with its weights."""
    blocks, bottleneck = encoders.VARIANTS.get(variant, (kwargs.get("blocks"), kwargs.get("bottleneck", False)))
    with torch.device("cpu"):
        source = TorchResNet(blocks, bottleneck, stem, kwargs.get("width", 64), expand).eval()
    encoder = ResNet(variant, stem=stem, feature_dim=expand, **kwargs)
    copy_weights(source, encoder)
    return source, encoder


def images(rng, *shape):
    return rng.integers(0, 256, shape).astype("uint8")


def array(x):
    return np.asarray(ops.convert_to_numpy(x))


@pytest.mark.parametrize(
    ("variant", "width", "stem", "size", "expand"),
    [
        (18, 16, "imagenet", (65, 70), None),
        (18, 64, "small", (37, 32), 700),  # 700 is no multiple of 512
        (18, 16, "cifar", (19, 21), 100),  # below 128: nothing to add
        (18, 16, "strided", (33, 32), None),
        (50, 64, "imagenet", (64, 97), 4096),
    ],
)
def test_resnet_equals_torch(variant, width, stem, size, expand, rng):
    source, encoder = pair(variant, stem, expand, width=width)
    x = images(rng, 2, *size, 3)
    with torch.no_grad(), torch.device("cpu"):
        expected = source(x).numpy()
    features = encoder.predict(x, verbose=0)
    assert features.shape == expected.shape == (2, feature_dim(encoder))
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_training_mode_equals_torch_but_for_its_unbiased_variance(rng):
    source, encoder = pair(None, "small", None, blocks=(1, 1), width=8, bottleneck=True)
    counts = {}
    norms = {m: name.replace(".", "_") for name, m in source.train().named_modules() if isinstance(m, nn.BatchNorm2d)}
    variances = {module: module.running_var.clone() for module in norms}
    for module in norms:
        module.register_forward_hook(lambda module, inputs, _: counts.update({module: inputs[0][:, 0].numel()}))
    x = images(rng, 4, 17, 16, 3)
    with torch.no_grad(), torch.device("cpu"):
        expected = source(x).numpy()
    features = array(ops.stop_gradient(encoder(x, training=True)))
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert len(counts) == sum(isinstance(layer, BatchNormalization) for layer in encoder.layers)
    for module, n in counts.items():
        layer, before = encoder.get_layer(norms[module]), variances[module]
        batch = (module.running_var - 0.9 * before) / 0.1  # what torch saw: n / (n - 1) times the biased variance
        biased = (0.9 * before + 0.1 * batch * (n - 1) / n).numpy()
        np.testing.assert_allclose(array(layer.moving_mean), module.running_mean.numpy(), atol=1e-5)
        np.testing.assert_allclose(array(layer.moving_variance), biased, rtol=1e-5)


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    ("variant", "weights"),  # torchvision's published counts less those of its classifier of 1000 classes
    [
        (18, 11_689_512 - 513_000),
        (34, 21_797_672 - 513_000),
        (50, 25_557_032 - 2_049_000),
        (101, 44_549_160 - 2_049_000),
    ],
)
def test_weight_counts_are_torchvisions(variant, weights):
    assert sum(np.prod(w.shape) for w in ResNet(variant).trainable_weights) == weights


@pytest.mark.parametrize(
    ("size", "kernel", "pool"), [(32, 3, False), (49, 3, False), (50, 3, True), (99, 3, True), (100, 7, True)]
)
def test_automatic_stem_follows_the_image_size(size, kernel, pool):
    encoder = ResNet(blocks=(1,), width=4, image_size=size)
    assert encoder.get_layer("conv1").kernel_size == (kernel, kernel)
    assert encoder.get_layer("conv1").strides == ((2, 2) if kernel == 7 else (1, 1))
    assert ("maxpool" in {layer.name for layer in encoder.layers}) == pool


def test_small_encoder_has_16_to_128_channels():
    encoder = ResNet(blocks=(1, 1, 1, 1), width=16, stem="strided")
    assert [encoder.get_layer(f"layer{i}_0_conv2").filters for i in (1, 2, 3, 4)] == [16, 32, 64, 128]


def test_feature_dim_of_the_last_stage_adds_nothing():
    assert ResNet(18, feature_dim=512).count_params() == ResNet(18).count_params()


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    ("stem", "layer", "std"),
    [
        ("imagenet", "conv1", (2 / (64 * 49)) ** 0.5),
        ("small", "conv1", 1.137 / 27**0.5),
        ("small", "layer4_1_conv2", (2 / (512 * 9)) ** 0.5),
        ("small", "resizer_conv1", 1.137 / 512**0.5),
        ("small", "resizer_conv2", 1.137 / (512 * 9) ** 0.5),
        ("imagenet", "resizer_conv1", 512**-0.5),
    ],
)
def test_initialisation(stem, layer, std):
    kernel = array(ResNet(18, stem=stem, feature_dim=600).get_layer(layer).kernel)
    tolerance = 4 / (2 * kernel.size) ** 0.5  # four standard errors of a standard deviation
    assert abs(kernel.std() / std - 1) < tolerance
    assert abs(kernel.mean()) < 6 * std / kernel.size**0.5
    assert np.abs(kernel).max() > 2.5 * std  # not truncated at two


def test_images_are_normalised_by_the_constants_of_the_config(rng):
    """Twins that differ in mean and std agree on images that differ by the same affine map."""
    ours = ResNet(**TINY, mean=0.25, std=0.5)
    twin = ResNet(**TINY, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    twin.set_weights(ours.get_weights())
    x = images(rng, 2, 16, 16, 3)
    same = ((x / 255 - 0.25) / 0.5 * 0.25 + 0.5) * 255
    np.testing.assert_allclose(array(ops.stop_gradient(ours(x))), array(ops.stop_gradient(twin(same))), atol=1e-5)
    assert ResNet(**TINY, **NORMALIZATIONS["cifar10"]).get_config()["std"] == (0.2470, 0.2435, 0.2616)


def test_uint8_and_float_images_give_the_same_features(rng):
    encoder, x = ResNet(**TINY), images(rng, 2, 16, 16, 3)
    expected = encoder.predict(x, verbose=0)
    np.testing.assert_array_equal(encoder.predict(x.astype("float32"), verbose=0), expected)
    np.testing.assert_allclose(array(ops.stop_gradient(encoder(x))), expected, atol=1e-6)


def test_bfloat16_gives_float32_features_near_float32s(rng):
    encoder = ResNet(**TINY)
    half = ResNet(**TINY, dtype="mixed_bfloat16")
    half.set_weights(encoder.get_weights())
    x = images(rng, 4, 32, 32, 3)
    features, expected = half.predict(x, verbose=0), encoder.predict(x, verbose=0)
    assert features.dtype == np.float32
    assert keras.backend.standardize_dtype(half.get_layer("layer1_0_relu").output.dtype) == "bfloat16"
    np.testing.assert_allclose(features, expected, atol=0.03 * np.abs(expected).max())
    assert not np.array_equal(features, np.asarray(torch.tensor(features).bfloat16().float()))  # pooled in float32


def test_bfloat16_begins_after_the_normalisation():
    """Grey levels 124.0 and 124.2 are one number in bfloat16, and two once the mean of 123.7 is off."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    encoder = ResNet(**TINY)
    dark, light = (np.full((1, 16, 16, 3), level, "float32") for level in (124.0, 124.2))
    assert not np.array_equal(encoder.predict(dark, verbose=0), encoder.predict(light, verbose=0))


@pytest.mark.parametrize("dtype", [None, "mixed_bfloat16"])
def test_resnet_survives_saving(dtype, rng, tmp_path):
    encoder = ResNet(**TINY, feature_dim=40, channels=1, mean=0.3, dtype=dtype, name="small")
    x = images(rng, 2, 16, 16, 1)
    encoder(x, training=True)  # moves the statistics
    expected = encoder.predict(x, verbose=0)
    encoder.save(tmp_path / "encoder.keras")
    loaded = keras.saving.load_model(tmp_path / "encoder.keras")
    assert type(loaded) is ResNet
    assert loaded.get_config() == encoder.get_config()
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), expected)
    twin = ResNet.from_config(encoder.get_config())
    encoder.save_weights(tmp_path / "encoder.weights.h5")
    twin.load_weights(tmp_path / "encoder.weights.h5")
    np.testing.assert_array_equal(twin.predict(x, verbose=0), expected)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_every_trainable_weight_learns(bottleneck, rng):
    """One step of plain SGD moves every weight: none is without gradient."""
    encoder = ResNet(**TINY, bottleneck=bottleneck, feature_dim=80)
    model = keras.Sequential([encoder, keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(1.0), "mse", jit_compile=jit_compile_default())
    before = encoder.get_weights()
    model.train_on_batch(images(rng, 8, 32, 32, 3), rng.normal(size=(8, 3)))
    for variable, value in zip(encoder.weights, before, strict=True):
        assert not np.array_equal(array(variable), value), variable.path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Exactly one of `variant` and `blocks`"),
        ({"variant": 18, "blocks": (1,)}, "Exactly one of `variant` and `blocks`"),
        ({"variant": 19}, "`variant` should be one of"),
        ({"blocks": ()}, "`blocks`"),
        ({"blocks": (1, 0)}, "`blocks`"),
        ({"variant": 18, "width": 0}, "`width`"),
        ({"variant": 18, "image_size": 32.5}, "`image_size`"),
        ({"variant": 18, "feature_dim": -1}, "`feature_dim`"),
        ({"variant": 18, "feature_dim": 0}, "`feature_dim`"),
        ({"variant": 18, "channels": True}, "`channels`"),
        ({"variant": 18, "stem": "tiny"}, "`stem` should be one of"),
        ({"variant": 18, "mean": (1, 2)}, "`mean`"),
        ({"variant": 18, "std": 0}, "`std` should be positive"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**arguments)


@pytest.mark.parametrize(
    ("shape", "message"), [((2, 8, 8, 1), "np.repeat"), ((8, 8, 3), "image\\[None\\]"), ((2, 8, 8, 4), "channels=")]
)
def test_bad_images(shape, message):
    encoder = ResNet(**TINY)
    with pytest.raises(ValueError, match=message) as raised:
        encoder(np.zeros(shape, "uint8"))
    assert str(shape) in str(raised.value)


# --------------------------------------------------------------------------------------------------------------
# Other models as encoders
# --------------------------------------------------------------------------------------------------------------


def maps(shape=(None, None, 3)):
    """A model that returns maps (B, h, w, 5)."""
    x = keras.Input(shape)
    return keras.Model(x, keras.layers.Conv2D(5, 3)(x), name="maps")


def outputs_of(model, make):
    """The same model with other outputs made of its maps."""
    return keras.Model(model.input, make(model.output), name="other")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda y: y, lambda y: y.mean((1, 2))),
        (lambda y: ops.reshape(y, (-1, 36, 5)), lambda y: y.mean((1, 2))),
        (lambda y: ops.max(y, (1, 2)), lambda y: y.max((1, 2))),
        (lambda y: {"features": y, "pooled_output": -y}, lambda y: y.mean((1, 2))),
    ],
)
def test_adapter_pools_what_a_model_returns(make, expected, rng):
    model = maps((8, 8, 3))
    x = images(rng, 2, 8, 8, 3)
    encoder = Adapter(outputs_of(model, make), scale=1 / 127.5, offset=-1)
    wanted = expected(model.predict(x / 127.5 - 1, verbose=0))
    features = encoder.predict(x, verbose=0)
    assert features.dtype == np.float32 and feature_dim(encoder) == 5 and encoder.channels == 3
    np.testing.assert_allclose(features, wanted, atol=1e-5)


def test_adapter_takes_the_named_output(rng):
    model = maps()
    x = images(rng, 2, 8, 8, 3).astype("float32")
    encoder = Adapter(outputs_of(model, lambda y: {"P2": y, "P3": -y}), output="P3")
    np.testing.assert_allclose(encoder.predict(x, verbose=0), -model.predict(x, verbose=0).mean((1, 2)), atol=1e-3)


def test_adapter_in_bfloat16_gives_float32(rng):
    keras.config.set_dtype_policy("mixed_bfloat16")
    assert Adapter(maps()).predict(images(rng, 2, 8, 8, 3), verbose=0).dtype == np.float32


def test_adapter_survives_saving(rng, tmp_path):
    encoder, x = Adapter(maps(), scale=1 / 255, name="adapted"), images(rng, 2, 8, 9, 3)
    encoder.save(tmp_path / "encoder.keras")
    loaded = keras.saving.load_model(tmp_path / "encoder.keras")
    assert json.dumps(loaded.get_config()) == json.dumps(encoder.get_config())
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), encoder.predict(x, verbose=0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda y: [y, y], "one tensor"),
        (lambda y: {"P2": y}, "`output` should name one of the model's outputs \\['P2'\\]"),
        (lambda y: ops.sum(y, (1, 2, 3)), "Add a pooling layer"),
        (lambda y: ops.expand_dims(y, 1), "Add a pooling layer"),
    ],
)
def test_adapter_refuses_what_it_cannot_pool(make, message):
    with pytest.raises(ValueError, match=message):
        Adapter(outputs_of(maps((8, 8, 3)), make))


def test_adapter_refuses_what_is_no_model():
    with pytest.raises(ValueError, match="`model` should be"):
        Adapter(lambda x: x)
    with pytest.raises(ValueError, match="`image_shape`"):
        Adapter(maps(), image_shape=(8, 8))


class Subclassed(keras.Model):
    """A user's model, of no shape until it is called."""

    def __init__(self, flat=False):
        super().__init__()
        self.pool = keras.layers.Flatten() if flat else keras.layers.GlobalAveragePooling2D()
        self.dense = keras.layers.Dense(7)

    def call(self, x):
        return self.dense(self.pool(x))


@pytest.mark.parametrize("flat", [False, True])
def test_feature_dim_of_a_subclassed_model_builds_it(flat):
    model = Subclassed(flat)
    assert feature_dim(model, image_shape=(4, 4, 3)) == 7
    assert model.dense.kernel.shape[0] == (48 if flat else 3)


def test_subclassed_model_is_adapted(rng):
    encoder = Adapter(Subclassed(flat=True), image_shape=(4, 4, 3))
    assert encoder.predict(images(rng, 2, 4, 4, 3), verbose=0).shape == (2, 7) == (2, feature_dim(encoder))


def test_feature_dim_refuses_maps_and_points_to_the_adapter():
    with pytest.raises(ValueError, match="Adapter"):
        feature_dim(maps())
