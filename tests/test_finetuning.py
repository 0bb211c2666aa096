"""Fine-tuning against closed forms, and exported artefacts against the models they were made of."""

import json

import keras
import numpy as np
import pytest
from keras import ops

from keras_issl import datasets, distribution
from keras_issl.encoders import Adapter, ResNet
from keras_issl.finetuning import HEAD, Classifier, classifier

BACKEND = keras.config.backend()
TINY = {"blocks": (1, 1), "width": 8, "image_size": 32, "stem": "strided"}
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def array(x):
    return np.asarray(ops.convert_to_numpy(ops.stop_gradient(x))).copy()


def images(rng, *shape):
    return rng.integers(0, 256, shape).astype("uint8")


def weights(model):
    return [array(variable) for variable in model.variables]


def plain_encoder():
    """An encoder without batch normalisation: features are the same in training and in inference."""
    model = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(5, 3, activation="relu")])
    return Adapter(model, scale=1 / 255, name="plain")


class Subclassed(keras.Model):
    """A user's encoder, without a shape until it is called, and with no `training` argument."""

    def __init__(self):
        super().__init__()
        self.pool, self.dense = keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(4)

    def call(self, images):
        return self.dense(self.pool(images))


def compiled(model, optimizer, **kwargs):
    model.compile(optimizer, LOSS, jit_compile=distribution.jit_compile_default(), **kwargs)
    return model


def trained(model, x, y, *, steps=3, rate=0.1):
    compiled(model, keras.optimizers.SGD(rate)).fit(x, y, batch_size=len(x), epochs=steps, verbose=0)
    return model


# Training --------------------------------------------------------------------------------------------------------


@pytest.mark.backend_independent
def test_learns_digits_end_to_end():
    train, test = (datasets.load("digits", split=split) for split in ("train", "test"))
    encoder = ResNet(blocks=(1, 1), width=16, image_size=8, stem="cifar")
    model = compiled(classifier(encoder, 10), keras.optimizers.Adam(1e-2), metrics=["accuracy"])
    history = model.fit(train.images, train.labels, batch_size=128, epochs=4, verbose=0).history["accuracy"]
    accuracy = model.evaluate(test.images, test.labels, verbose=0, return_dict=True)["accuracy"]
    assert history[0] < history[-1] and history[-1] > 0.85
    assert accuracy > 0.75, accuracy  # chance is 0.1


@pytest.mark.parametrize("freeze", [False, True])
def test_starts_from_uniform_predictions(freeze, rng):
    model = compiled(classifier(ResNet(**TINY), 7, freeze=freeze), "sgd")
    x, y = images(rng, 6, 16, 16, 3), rng.integers(0, 7, 6)
    np.testing.assert_array_equal(model.predict(x, verbose=0), np.zeros((6, 7), "float32"))
    assert model.evaluate(x, y, verbose=0) == pytest.approx(np.log(7), rel=1e-6)


@pytest.mark.parametrize("freeze", [False, True])
def test_first_step_is_the_closed_form(freeze, rng):
    """From uniform probabilities 1/K the head moves by rate / B * f^T (Y - 1/K), and the encoder not at all."""
    encoder = ResNet(**TINY) if freeze else plain_encoder()
    x, y, rate = images(rng, 6, 16, 16, 3), rng.integers(0, 4, 6), 0.5
    features, before = encoder.predict(x, verbose=0).astype("float64"), weights(encoder)
    model = trained(classifier(encoder, 4, freeze=freeze), x, y, steps=1, rate=rate)
    error = np.eye(4)[y] - 1 / 4  # (B, K)
    head = model.get_layer(HEAD)
    np.testing.assert_allclose(array(head.kernel), rate / 6 * features.T @ error, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(array(head.bias), rate * error.mean(0), rtol=1e-5, atol=1e-7)
    for value, old in zip(weights(encoder), before, strict=True):
        np.testing.assert_array_equal(value, old)


def test_a_frozen_encoder_stays_to_the_bit(rng):
    encoder = ResNet(**TINY, feature_dim=40)
    x, y = images(rng, 8, 16, 16, 3), rng.integers(0, 3, 8)
    encoder(x, training=True)  # statistics that are nobody's default
    before = weights(encoder)
    model = trained(classifier(encoder, 3, freeze=True, dropout=0.2), x, y)
    assert [w.path for w in model.trainable_weights] == [f"{HEAD}/kernel", f"{HEAD}/bias"]
    for variable, old in zip(encoder.variables, before, strict=True):
        np.testing.assert_array_equal(array(variable), old, err_msg=variable.path)
    assert np.abs(array(model.get_layer(HEAD).kernel)).max() > 0


def test_a_frozen_encoder_drops_nothing(rng):
    """Random layers inside a frozen encoder run as in `predict`."""
    x, y = images(rng, 6, 8, 8, 3), rng.integers(0, 3, 6)
    noisy = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(5, 3), keras.layers.Dropout(0.9)])
    kernels = []
    for _ in range(2):
        model = trained(classifier(Adapter(noisy, scale=1 / 255), 3, freeze=True), x, y)
        kernels.append(array(model.get_layer(HEAD).kernel))
    np.testing.assert_allclose(*kernels, rtol=1e-4, atol=1e-7)


def test_every_weight_of_an_unfrozen_encoder_moves(rng):
    """The classifier trains the encoder it was given, not a copy."""
    encoder = ResNet(**TINY, feature_dim=40)
    before = weights(encoder)
    trained(classifier(encoder, 3), images(rng, 8, 16, 16, 3), rng.integers(0, 3, 8))
    for variable, old in zip(encoder.variables, before, strict=True):
        assert not np.array_equal(array(variable), old), variable.path


def test_a_thawed_encoder_learns_and_keeps_its_statistics(rng):
    encoder, x, y = ResNet(**TINY), images(rng, 8, 16, 16, 3), rng.integers(0, 3, 8)
    model = trained(classifier(encoder, 3, freeze=True), x, y)
    before = weights(encoder)
    encoder.trainable = True
    trained(model, x, y)
    for variable, old in zip(encoder.variables, before, strict=True):
        assert np.array_equal(array(variable), old) == ("moving" in variable.path), variable.path


def test_two_learning_rates(rng):
    """The recipe of the fine-tuning page: with SGD each part moves in proportion to its own rate."""
    x, y, moves = images(rng, 8, 16, 16, 3), rng.integers(0, 3, 8), {}
    start = None
    for rate in (0.0, 0.1, 0.2):
        encoder = plain_encoder()
        model = classifier(encoder, 3)
        head = model.get_layer(HEAD)
        start = encoder.get_weights() if start is None else start
        encoder.set_weights(start)
        head.kernel.assign(np.ones((5, 3), "float32") * [0, 1, 2])
        rates = {f"{HEAD}/.*": keras.optimizers.SGD(0.1)}
        optimizer = keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(keras.optimizers.SGD(rate), rates))
        compiled(model, optimizer).fit(x, y, batch_size=8, verbose=0)
        moves[rate] = array(encoder.variables[0]) - start[0], array(head.kernel)
    assert not moves[0.0][0].any() and moves[0.1][0].any()
    np.testing.assert_allclose(moves[0.2][0], 2 * moves[0.1][0], rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(moves[0.2][1], moves[0.1][1], rtol=1e-5, atol=1e-7)


# Images, precision, saving -----------------------------------------------------------------------------------------


def test_one_channel_is_repeated(rng):
    model = trained(classifier(ResNet(**TINY), 3), images(rng, 6, 16, 16, 3), rng.integers(0, 3, 6))
    gray = images(rng, 6, 16, 16, 1)
    expected = model.predict(np.repeat(gray, 3, axis=-1), verbose=0)
    np.testing.assert_array_equal(model.predict(gray, verbose=0), expected)
    trained(model, gray, rng.integers(0, 3, 6))
    own = classifier(ResNet(**TINY, channels=1), 3)
    assert own.predict(gray, verbose=0).shape == (6, 3)
    with pytest.raises(ValueError, match="`images` should be a batch of shape") as raised:
        own(images(rng, 2, 16, 16, 3))
    assert "(2, 16, 16, 3)" in str(raised.value)


def test_logits_are_float32_in_bfloat16(rng):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = classifier(ResNet(**TINY), 3, dropout=0.1)
    x, y = images(rng, 8, 16, 16, 3), rng.integers(0, 3, 8)
    assert keras.backend.standardize_dtype(model.encoder.get_layer("layer1_0_relu").output.dtype) == "bfloat16"
    trained(model, x, y)
    logits = model.predict(x, verbose=0)
    assert logits.dtype == np.float32 and model.output.dtype == "float32"
    assert (logits.view("uint32") & 0xFFFF).any()  # not merely bfloat16 stored in float32


def test_dropout_acts_in_training_only(rng):
    x = images(rng, 4, 16, 16, 3)
    model = classifier(ResNet(**TINY), 3, freeze=True, dropout=0.5)
    model.get_layer(HEAD).kernel.assign(rng.normal(size=(16, 3)))
    inference = array(model(x))
    np.testing.assert_array_equal(array(model(x)), inference)
    assert not np.allclose(array(model(x, training=True)), inference)


@pytest.mark.parametrize("make", [lambda: ResNet(**TINY, feature_dim=40), plain_encoder])
@pytest.mark.parametrize("thaw", [False, True])
def test_survives_saving(make, thaw, rng, tmp_path):
    x, y = images(rng, 6, 16, 16, 3), rng.integers(0, 3, 6)
    model = trained(classifier(make(), np.int64(3), freeze=True, dropout=0.1, name="mine"), x, y)
    if thaw:
        model.encoder.trainable = True
        trained(model, x, y)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is Classifier
    assert json.dumps(loaded.get_config()) == json.dumps(model.get_config())
    assert [w.shape for w in loaded.trainable_weights] == [w.shape for w in model.trainable_weights]
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    loaded.fit(x, y, verbose=0)  # with the optimizer as it was saved


def test_takes_a_users_own_model(rng):
    for freeze in (True, False):
        encoder, x = Subclassed(), images(rng, 6, 8, 8, 3) / np.float32(255)
        model = classifier(encoder, 3, freeze=freeze)
        before = weights(encoder)  # made by the constructor, so that `fit` does not make them anew
        assert [value.shape for value in before] == [(3, 4), (4,)]
        trained(model, x, rng.integers(0, 3, 6))
        assert all(np.array_equal(*pair) for pair in zip(weights(encoder), before, strict=True)) == freeze


def test_an_encoder_is_copied_as_the_docstring_says(rng):
    encoder, x = ResNet(**TINY), images(rng, 6, 16, 16, 3)
    features = encoder.predict(x, verbose=0)
    twin = type(encoder).from_config(encoder.get_config())
    twin.set_weights(encoder.get_weights())
    trained(classifier(twin, 3), x, rng.integers(0, 3, 6))
    np.testing.assert_array_equal(encoder.predict(x, verbose=0), features)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "`num_classes` should be a positive integer. Received: 0"),
        ({"num_classes": 2.0}, "`num_classes`"),
        ({"num_classes": True}, "`num_classes`"),
        ({"num_classes": "10"}, "`num_classes`"),
        ({"dropout": 1.0}, "`dropout` should be a number in \\[0, 1\\). Received: 1.0"),
        ({"dropout": -0.1}, "`dropout`"),
        ({"dropout": float("nan")}, "`dropout`"),
        ({"dropout": None}, "`dropout`"),
        ({"freeze": "all"}, "`freeze` should be True or False. Received: 'all'"),
        ({"encoder": keras.layers.Flatten()}, "`encoder` should be a keras.Model.*Adapter"),
        ({"encoder": "dissl"}, "`encoder` should be a keras.Model.*from_preset"),
    ],
)
def test_bad_arguments(arguments, message):
    encoder = ResNet(**TINY)
    with pytest.raises(ValueError, match=message):
        classifier(**{"encoder": encoder, "num_classes": 3, **arguments})
    assert encoder.trainable


def test_maps_are_no_features():
    maps = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(5, 3)])
    with pytest.raises(ValueError, match="`encoder` should map images to features"):
        classifier(maps, 3)


# Export --------------------------------------------------------------------------------------------------------------

SIZES = ((1, 32, 32, 3), (3, 37, 29, 3), (2, 65, 48, 3))  # odd ones among them


def exportable(kind, rng):
    """A model with statistics and a head that are nobody's default."""
    arguments = {**TINY, "feature_dim": 40, "stem": "strided" if kind == "strided" else "small"}
    encoder = ResNet(**arguments)
    encoder(images(rng, 8, 32, 32, 3), training=True)
    if kind != "classifier":
        return encoder
    model = classifier(encoder, 3, dropout=0.1)
    model.get_layer(HEAD).kernel.assign(rng.normal(size=(40, 3)))
    return model


def assert_same(run, model, rng, sizes=SIZES):
    for size in sizes:
        x = images(rng, *size).astype("float32")
        expected = model.predict(x, verbose=0)
        found = np.asarray(run(x))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.skipif(BACKEND == "torch", reason="Keras writes no SavedModel from torch")
@pytest.mark.parametrize("kind", ["encoder", "classifier"])
def test_saved_model(kind, rng, tmp_path):
    tensorflow = pytest.importorskip("tensorflow")
    model = exportable(kind, rng)
    model.export(tmp_path / "served", verbose=False)
    served = tensorflow.saved_model.load(tmp_path / "served")
    assert_same(lambda x: served.serve(x), model, rng)


@pytest.mark.parametrize("kind", ["encoder", "classifier", "strided"])
def test_onnx(kind, rng, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip({"tensorflow": "tf2onnx", "jax": "jax2onnx", "torch": "onnx"}[BACKEND])
    if BACKEND == "jax" and kind != "strided":
        pytest.skip("refused on JAX: see test_what_cannot_be_exported")
    model, path = exportable(kind, rng), str(tmp_path / "model.onnx")
    model.export(path, format="onnx", verbose=False)
    session = runtime.InferenceSession(path)
    assert [node.name for node in session.get_inputs()] == ["images"]
    assert_same(lambda x: session.run(None, {"images": x})[0], model, rng)


@pytest.mark.skipif(BACKEND != "torch", reason="an ExportedProgram is PyTorch's own format")
@pytest.mark.parametrize("kind", ["encoder", "classifier"])
def test_exported_program(kind, rng, tmp_path):
    import torch

    model, path = exportable(kind, rng), str(tmp_path / "model.pt2")
    model.export(path, format="torch", verbose=False)
    program = torch.export.load(path).module()
    assert_same(lambda x: program(ops.convert_to_tensor(x)).detach().cpu().numpy(), model, rng)


@pytest.mark.skipif(BACKEND == "torch", reason="Keras writes no SavedModel from torch")
def test_input_signature_fixes_axes(rng, tmp_path):
    tensorflow = pytest.importorskip("tensorflow")
    model = exportable("strided", rng)
    signature = [keras.InputSpec(shape=(None, 24, 24, 3), dtype="float32", name="images")]
    model.export(tmp_path / "served", verbose=False, input_signature=signature)
    served = tensorflow.saved_model.load(tmp_path / "served")
    assert_same(lambda x: served.serve(x), model, rng, [(3, 24, 24, 3)])
    with pytest.raises(TypeError):
        served.serve(np.zeros((1, 32, 32, 3), "float32"))


def test_what_cannot_be_exported(rng, tmp_path):
    """Formats whose artefact could not be read are refused before anything is written."""
    path = tmp_path / "artefact"
    if BACKEND == "torch":
        with pytest.raises(ValueError, match="`format` should be 'onnx' or 'torch'.*KERAS_BACKEND=tensorflow"):
            exportable("encoder", rng).export(path)
    else:
        with pytest.raises(ValueError, match="Torch export requires PyTorch backend"):
            exportable("encoder", rng).export(path, format="torch")
    if BACKEND == "jax":
        with pytest.raises(ValueError, match="max-pooling on JAX"):
            exportable("encoder", rng).export(path, format="onnx")
    with pytest.raises(ValueError, match="computes in float32.*bfloat16"):
        ResNet(**TINY, dtype="mixed_bfloat16").export(path, format="onnx")
    with pytest.raises(ValueError, match="Unrecognized format"):
        exportable("encoder", rng).export(path, format="pickle")
    assert not path.exists()
