import os
import subprocess
import sys
import warnings
from pathlib import Path

import keras
import members
import numpy as np
import one_step
import pytest
from keras import ops

from keras_issl import augmentations, datasets, encoders, objectives, testing
from keras_issl.pretraining import Pretrainer

BACKEND = keras.config.backend()
IMAGES = np.random.default_rng(0).integers(0, 256, (40, 12, 12, 3)).astype("uint8")
LOGS = {"loss", "classes_used", *objectives.DISSL.log_names}


def small_encoder():
    return encoders.ResNet(blocks=(1,), width=8, image_size=12, stem="cifar")


def make(objective=None, augmentation="affine", **kwargs):
    if augmentation == "affine":  # random, and traced in half the time of the colours
        augmentation = augmentations.Affine(12, seed=0)
    objective = objective or objectives.DISSL(num_classes=12, teacher_hidden=(16,), bottleneck=8)
    model = Pretrainer(small_encoder(), objective, augmentation, **kwargs)
    model.compile(keras.optimizers.SGD(0.05))
    return model


def state(model):
    return [ops.convert_to_numpy(v) for v in model.variables]


def fitted(model, *args, **kwargs):
    return model.fit(*args, **{"verbose": 0} | kwargs).history


# ---------------------------------------------------------------------- one step, three backends
@pytest.fixture(scope="module")
def another_backend(tmp_path_factory):
    """A folder with the weights of every objective after three steps on another backend."""
    other = {"tensorflow": "jax", "torch": "tensorflow", "jax": "torch"}[BACKEND]
    folder = tmp_path_factory.mktemp(other)
    command = [sys.executable, Path(one_step.__file__), folder]
    result = subprocess.run(command, env=os.environ | {"KERAS_BACKEND": other}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.slow("jax")  # TensorFlow is compared with JAX, and PyTorch with TensorFlow
@pytest.mark.parametrize("objective", members.SMALL)
def test_weights_after_three_steps_equal_another_backend(objective, another_backend):
    theirs, ours = np.load(another_backend / f"{objective}.npz"), one_step.step(objective)
    assert set(theirs.files) == set(ours)
    for name in theirs.files:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-6, rtol=1e-6, err_msg=name)


def test_a_step_moves_every_weight_and_batch_statistics_once():
    model = one_step.make("DISSL")
    model.compile(keras.optimizers.SGD(0.05))
    norm = next(layer for layer in model.encoder.layers if isinstance(layer, keras.layers.BatchNormalization))
    before = [ops.convert_to_numpy(w) for w in model.trainable_weights]
    fitted(model, IMAGES[:16], batch_size=16, shuffle=False)
    still = [
        w.path
        for w, b in zip(model.trainable_weights, before, strict=True)
        if np.array_equal(ops.convert_to_numpy(w), b)
    ]
    assert not still
    fresh = one_step.make("DISSL")
    views = fresh.views(ops.convert_to_tensor(IMAGES[:16]))
    fresh.features(views, training=True)
    same = next(layer for layer in fresh.encoder.layers if isinstance(layer, keras.layers.BatchNormalization))
    for name in ("moving_mean", "moving_variance"):
        np.testing.assert_allclose(
            ops.convert_to_numpy(getattr(norm, name)), ops.convert_to_numpy(getattr(same, name)), rtol=1e-4, atol=1e-6
        )
    assert int(model.steps) == 1


def test_loss_of_a_step_is_the_loss_of_its_parts():
    model = one_step.make("CISSL")
    images = ops.convert_to_tensor(IMAGES[:16])
    features = model.features(one_step.two_views(images), training=True)
    expected, _ = model.objective.compute_loss(model.objective(features, training=True), 0)
    again = one_step.make("CISSL")
    again.compile(keras.optimizers.SGD(0.05))
    loss = fitted(again, IMAGES[:16], batch_size=16, shuffle=False)["loss"][0]
    assert loss == pytest.approx(float(ops.convert_to_numpy(expected)), rel=1e-5)


def test_views_of_several_sizes_are_encoded_by_size_and_keep_their_order():
    model = make(augmentation=None)
    large, small = IMAGES[:4], IMAGES[:4, :8, :8]
    together = model.features([ops.convert_to_tensor(v) for v in (large, large[::-1].copy(), small)], training=False)
    assert tuple(together.shape) == (3, 4, 8)
    for row, view in zip(together, (large, large[::-1].copy(), small), strict=True):
        np.testing.assert_allclose(
            ops.convert_to_numpy(row), ops.convert_to_numpy(model.encoder(view, training=False)), rtol=1e-4, atol=1e-5
        )


# ---------------------------------------------------------------------- what fit takes
def as_tf_data():
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(IMAGES).batch(16)


def as_grain():
    import grain

    return grain.MapDataset.source(IMAGES).batch(16)


SOURCES = {  # name -> arguments of fit; arrays need a batch size, the others have theirs
    "array": lambda: {"x": IMAGES, "batch_size": 16},
    "array and labels": lambda: {"x": IMAGES, "y": np.arange(40) % 3, "batch_size": 16},
    "one channel": lambda: {"x": IMAGES[..., :1], "batch_size": 16},
    "no channel axis": lambda: {"x": IMAGES[..., 0], "batch_size": 16},
    "float": lambda: {"x": IMAGES.astype("float32"), "batch_size": 16},
    "ImageDataset": lambda: {"x": datasets.load(IMAGES), "batch_size": 16},
    "PyDataset": lambda: {"x": datasets.Batches(IMAGES, batch_size=16)},
    "PyDataset and labels": lambda: {"x": datasets.Batches(IMAGES, np.arange(40), batch_size=16)},
    "tf.data": lambda: {"x": as_tf_data()},
    "grain": lambda: {"x": as_grain()},
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.filterwarnings("ignore:.*incomplete last batch")
@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # Keras says so of every finite grain dataset
def test_fit_takes(source):
    model = make()
    history = fitted(model, epochs=2, **SOURCES[source]())
    assert set(history) == LOGS
    assert np.isfinite(history["loss"]).all()
    assert int(model.steps) == 4, "two whole batches of 16 in each of two epochs"


def test_incomplete_batches_are_dropped_with_one_warning():
    model = make()
    with pytest.warns(UserWarning, match="8 images of the incomplete last batch"):
        fitted(model, IMAGES, batch_size=16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted(model, IMAGES, batch_size=16)
    assert int(model.steps) == 4


def test_a_grain_dataset_keeps_its_order_and_may_repeat():
    import grain

    numbered = np.broadcast_to(np.arange(64, dtype="uint8")[:, None, None, None], (64, 12, 12, 3))
    seen, model = [], make(augmentation=None)
    source = grain.MapDataset.source(numbered).map(lambda image: seen.append(int(image[0, 0, 0])) or image)
    fitted(model, source.batch(8))
    assert seen[-64:] == list(range(64)), "after a look at the first and the last batch, one epoch in order"
    fitted(model, source.repeat().batch(8), steps_per_epoch=3)
    assert int(model.steps) == 11
    assert model.predict(source.batch(8), verbose=0).shape == (64, 8)


def test_steps_per_epoch_and_callbacks_as_in_keras():
    model, seen = make(), []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(int(model.steps)))
    fitted(model, IMAGES[:32], batch_size=16, steps_per_epoch=3, epochs=2, callbacks=note)
    assert seen[-1] == 6
    fitted(model, IMAGES[:32], batch_size=16, callbacks=keras.callbacks.CallbackList([note], model=model))
    assert seen[-1] == 8
    fitted(model, datasets.Batches(IMAGES[:32], batch_size=16), steps_per_epoch=1)
    assert seen[-1] == 8 and int(model.steps) == 9


def test_an_objective_without_batch_statistics_keeps_the_last_batch():
    objective = objectives.DISSL(num_classes=12, teacher_hidden=(16,), bottleneck=8)
    objective.needs_batch_statistics = False
    model = make(objective)
    fitted(model, IMAGES, batch_size=16)
    assert int(model.steps) == 3


def test_validation_does_not_train():
    model = make()
    held_out = IMAGES[:16]
    history = fitted(model, IMAGES[:32], batch_size=16, epochs=2, validation_data=held_out)
    assert set(history) == LOGS | {f"val_{name}" for name in LOGS}
    assert history["val_marginal_entropy"][0] > 0
    assert int(model.steps) == 4
    split = fitted(make(), IMAGES, batch_size=16, validation_split=0.2)
    assert np.isfinite(split["val_loss"][0]), "eight images are a batch of their own"


def test_evaluate_repeats_itself_and_changes_nothing():
    model = make()
    fitted(model, IMAGES[:32], batch_size=16)
    weights = [ops.convert_to_numpy(w) for w in model.weights]
    first = model.evaluate(IMAGES[:32], batch_size=16, verbose=0, return_dict=True)
    second = model.evaluate(IMAGES[:32], batch_size=16, verbose=0, return_dict=True)
    assert first == pytest.approx(second)
    assert set(first) == LOGS
    for before, w in zip(weights, model.weights, strict=True):
        np.testing.assert_array_equal(before, ops.convert_to_numpy(w))


def test_test_on_batch_scores_in_inference_mode():
    model = make()
    before = [ops.convert_to_numpy(w) for w in model.weights]
    first = model.test_on_batch(IMAGES[:16], return_dict=True)
    assert set(first) == LOGS and np.isfinite(first["loss"])
    for value, w in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(value, ops.convert_to_numpy(w))


def test_predict_gives_the_encoders_features():
    model = make()
    features = model.predict(IMAGES, verbose=0)
    assert features.shape == (40, 8) and features.dtype == np.float32
    np.testing.assert_allclose(features, model.encoder.predict(IMAGES, verbose=0), rtol=1e-5, atol=1e-5)
    for same in ((IMAGES, np.arange(40)), datasets.load(IMAGES)):
        np.testing.assert_array_equal(model.predict(same, verbose=0), features)
    assert model.predict(IMAGES[..., 0], batch_size=7, verbose=0).shape == (40, 8)


def test_the_same_seed_gives_the_same_run():
    histories = []
    for _ in range(2):
        keras.utils.set_random_seed(3)
        histories.append(fitted(make(seed=5), IMAGES[:32], batch_size=16, epochs=2))
    assert set(histories[0]) == set(histories[1])
    for name, values in histories[0].items():
        assert values == pytest.approx(histories[1][name], rel=1e-5), name
    keras.utils.set_random_seed(3)
    other = fitted(make(seed=6), IMAGES[:32], batch_size=16, epochs=2)
    assert other["loss"] != pytest.approx(histories[0]["loss"], rel=1e-6)


def test_mixed_bfloat16_trains_with_float32_losses_and_weights():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = make()
    history = fitted(model, IMAGES[:32], batch_size=16, epochs=2)
    assert np.isfinite(history["loss"]).all()
    assert {keras.backend.standardize_dtype(w.dtype) for w in model.trainable_weights} == {"float32"}
    outputs = model(ops.convert_to_tensor(IMAGES[:8]), training=True)
    assert {keras.backend.standardize_dtype(v.dtype) for v in outputs.values()} == {"float32"}
    assert model.predict(IMAGES[:8], verbose=0).dtype == np.float32


@pytest.mark.skipif(BACKEND != "jax", reason="XLA lowers for other devices than the one at hand through JAX alone")
@pytest.mark.parametrize("objective", members.SMALL)
def test_the_whole_training_step_lowers_for_tpu_and_cuda(objective):
    import jax

    encoder = encoders.ResNet(blocks=(1,), width=8, image_size=12, stem="small", feature_dim=16)
    views = augmentations.SimCLR(12, preset="imagenet", blur_kernel=3)
    options = {"queue_length": 16} if objective == "SwAV" else {}
    model = Pretrainer(encoder, members.SMALL[objective](**options), views)
    model.compile("adam")
    model.optimizer.build(model.trainable_variables)
    variables = (model.trainable_variables, model.non_trainable_variables)
    variables += (model.optimizer.variables, model.metrics_variables)
    state = tuple([v.value for v in group] for group in variables)
    exported = jax.export.export(jax.jit(model.train_step), platforms=["tpu", "cuda"])(state, (IMAGES[:8],))
    assert exported.platforms == ("tpu", "cuda")


# ---------------------------------------------------------------------- saving
@pytest.mark.parametrize("objective", ["DISSL", "DINO", "SwAV"])
def test_weights_round_trip_continues_the_same_run(objective, tmp_path):
    """Weights, optimizer and random states, moving averages, centre and queue: the next epoch is the same one."""
    options = {"queue_length": 16, "queue_start_epoch": 0} if objective == "SwAV" else {}
    model = make(members.SMALL[objective](**options))
    fitted(model, IMAGES[:32], batch_size=16)
    model.save_weights(tmp_path / "model.weights.h5")
    again = make(members.SMALL[objective](**options))
    again.optimizer.build(again.trainable_variables)
    again.load_weights(tmp_path / "model.weights.h5")
    first = fitted(model, IMAGES[:32], batch_size=16, initial_epoch=1, epochs=2)
    second = fitted(again, IMAGES[:32], batch_size=16, initial_epoch=1, epochs=2)
    assert first == second
    for a, b in zip(state(model), state(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_keras_file_round_trip(tmp_path):
    model = make()
    fitted(model, IMAGES[:32], batch_size=16)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(model.predict(IMAGES, verbose=0), again.predict(IMAGES, verbose=0))
    first = fitted(model, IMAGES[:32], batch_size=16, initial_epoch=1, epochs=2)
    assert fitted(again, IMAGES[:32], batch_size=16, initial_epoch=1, epochs=2) == first


def test_the_encoder_lives_on_its_own(tmp_path):
    model = make()
    fitted(model, IMAGES[:32], batch_size=16)
    model.encoder.save(tmp_path / "encoder.keras")
    again = keras.models.load_model(tmp_path / "encoder.keras")
    np.testing.assert_array_equal(model.predict(IMAGES, verbose=0), again.predict(IMAGES, verbose=0))
    testing.check_encoder(again, image_shape=(12, 12, 3))


def test_any_keras_model_is_an_encoder():
    inputs = keras.Input((12, 12, 3))
    maps = keras.layers.Conv2D(6, 3)(keras.layers.Rescaling(1 / 255)(inputs))
    model = Pretrainer(encoders.Adapter(keras.Model(inputs, maps)), objectives.SimCLR(output_dim=4, hidden=(8,)))
    model.compile("adam")
    assert np.isfinite(fitted(model, IMAGES[:32], batch_size=16)["loss"][0])
    assert model.predict(IMAGES, verbose=0).shape == (40, 6)


def test_an_encoder_of_fixed_size_trains_on_crops_of_larger_images():
    inputs = keras.Input((8, 8, 3))
    encoder = encoders.Adapter(
        keras.Model(inputs, keras.layers.Dense(6)(keras.layers.Flatten()(inputs))), scale=1 / 255
    )
    model = Pretrainer(encoder, objectives.SimCLR(output_dim=4, hidden=(8,)), augmentations.SimCLR(8, preset="cifar10"))
    model.compile("adam")
    history = fitted(model, IMAGES[:32], batch_size=16, validation_data=IMAGES[:16])
    assert np.isfinite([history["loss"], history["val_loss"]]).all()


# ---------------------------------------------------------------------- bad input
def with_nan():
    images = IMAGES.astype("float32")
    images[7, 3, 3, 0] = np.nan
    return images


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: fitted(m, with_nan(), batch_size=8), "NaN or infinity in 1 of 40 images, first in image 7"),
        (lambda m: fitted(m, IMAGES[:0]), "at least one image"),
        (lambda m: fitted(m, IMAGES[0, 0]), r"\(N, H, W"),
        (lambda m: fitted(m, np.zeros((8, 12, 12, 5), "uint8")), "channels"),
        (lambda m: fitted(m, IMAGES, batch_size=64), "at most the number of images"),
        (lambda m: fitted(m, IMAGES, batch_size=8, validation_split=1.5), "`validation_split`"),
        (lambda m: fitted(m, IMAGES / np.float32(255), batch_size=8), "by 255"),
        (lambda m: fitted(m, datasets.Batches(with_nan(), batch_size=40, shuffle=False)), "NaN or infinity"),
        (lambda m: fitted(m, datasets.Batches(IMAGES, batch_size=1)), "at least 2 images"),
        (lambda m: m.compile("adam", loss="mse"), "`loss`"),
        (lambda m: m.compile("adam", metrics=["accuracy"]), "`metrics`"),
        (lambda m: fitted(make(objectives.SimCLR()), IMAGES, batch_size=1), "at least 2 images"),
        (lambda m: fitted(make(augmentation=lambda x: [x]), IMAGES[:16], batch_size=8), "at least 2 views"),
        (lambda m: fitted(make(augmentation=lambda x: x), IMAGES[:16], batch_size=8), "at least 2 views"),
    ],
)
def test_bad_input_is_named_and_weights_are_left_alone(call, words):
    model = make()
    before = state(model)
    with pytest.raises(ValueError, match=words):
        call(model)
    for a, b in zip(before, state(model), strict=True):
        np.testing.assert_array_equal(a, b)
