"""NaN in the middle of a run: stopped at the first bad step, named, and the weights from before are back."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_issl import callbacks, datasets, encoders, objectives, pretraining

IMAGES = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3)).astype("uint8")
STEPS_PER_EPOCH, EPOCHS = 4, 3
KINDS = ("view", "feature", "logit", "gradient", "weight")


class Fault(keras.layers.Layer):
    """Passes its input, and makes it (or its gradient alone) NaN in one call of training; which is state, not code."""

    def __init__(self, gradient=False, **kwargs):
        super().__init__(**kwargs)
        self.gradient = gradient
        options = {"shape": (), "dtype": "int32", "trainable": False, "initializer": "zeros"}
        self.calls = self.add_weight(name="calls", **options)
        self.at = self.add_weight(name="at", **options)  # 0: never

    def call(self, x, training=None):
        if not training:
            return x
        self.calls.assign_add(1)
        hit = ops.convert_to_tensor(self.calls) == ops.convert_to_tensor(self.at)
        if not self.gradient:
            return ops.where(hit, float("nan"), x)
        # The root of 0·x² is 0 and its derivative infinity times 0.
        return x + ops.sqrt(ops.where(hit, 0.0 * x * x, 1.0)) - ops.where(hit, 0.0, 1.0)


class Views(keras.layers.Layer):
    """Two random views, one of them faulty."""

    def __init__(self, fault):
        super().__init__()
        self.fault, self.noise = fault, keras.layers.GaussianNoise(1.0, seed=0)

    def call(self, images, training=None):
        x = ops.cast(images, "float32") / 9.0
        first, second = (9.0 * self.noise(x, training=True) for _ in range(2))
        return [first, self.fault(second, training=training)]


LATE = 1000  # a step that no run reaches, unless its optimizer has counted nearly so far already


@keras.saving.register_keras_serializable(package="tests")
class FaultyRate(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that is infinite in one step."""

    def __call__(self, step):
        return ops.where(ops.cast(step, "int32") == LATE, float("inf"), 1e-3)


@pytest.fixture(scope="module")
def faulty():
    """A compiled model with a fault in every place, none of them set, and its first state."""
    keras.utils.set_random_seed(0)
    faults = {"view": Fault(), "feature": Fault(), "logit": Fault(), "gradient": Fault(gradient=True)}
    backbone = encoders.ResNet(blocks=(1,), width=8, image_size=8, stem="cifar")
    features = faults["gradient"](faults["feature"](backbone.output))
    encoder = keras.Model(backbone.input, features)
    probe = keras.Sequential([keras.layers.Dense(12), faults["logit"]])
    objective = objectives.DISSL(num_classes=12, teacher_hidden=(16,), bottleneck=8, probe=probe)
    model = pretraining.Pretrainer(encoder, objective, Views(faults["view"]), online_probe=2)
    model.compile(keras.optimizers.SGD(FaultyRate(), momentum=0.9))
    model.optimizer.build(model.trainable_variables)
    return model, faults, callbacks.Snapshot(model)


def fit(model, **options):
    options = {"batch_size": 16, "epochs": EPOCHS, "verbose": 0} | options
    return model.fit(IMAGES, np.arange(64) % 2, **options)


def weights(model):
    return [ops.convert_to_numpy(v).copy() for v in model.weights]


class WeightsBefore(keras.callbacks.Callback):
    """Notes the weights before each step."""

    def on_train_begin(self, logs=None):
        self.before = []

    def on_train_batch_begin(self, batch, logs=None):
        callbacks.snapshot.synchronize(self.model)
        self.before.append(weights(self.model))


@pytest.fixture(scope="module")
def healthy(faulty):
    """Weights before every step of a run without a fault."""
    model, _, start = faulty
    start.restore(model)
    note = WeightsBefore()
    fit(model, callbacks=[note])
    return note.before


def draws():
    """Twenty; without --slow each kind once, and a few more where nothing is compiled."""
    for draw in range(20):
        marks = [pytest.mark.slow("tensorflow", "jax")] if draw >= len(KINDS) else []
        yield pytest.param(draw, marks=[*marks, *([pytest.mark.slow] if draw >= 8 else [])])


@pytest.mark.parametrize("draw", list(draws()))
def test_the_first_bad_step_and_tensor_are_named_and_the_weights_before_it_are_back(draw, faulty, healthy):
    rng = np.random.default_rng(draw)
    kind, step = KINDS[draw % len(KINDS)], int(rng.integers(1, STEPS_PER_EPOCH * EPOCHS))
    model, faults, start = faulty
    start.restore(model)
    if kind == "weight":
        model.optimizer.iterations.assign(LATE - step + 1)
    else:
        faults[kind].at.assign(step)
    with pytest.raises(callbacks.NonFiniteLoss) as caught:
        fit(model)
    error = caught.value
    assert (error.kind, error.step) == (kind, step), str(error)
    named = {
        "view": "view 2",
        "feature": "the features of view 1",
        "logit": "student logits",
        "gradient": "gradient of",
    }
    assert named.get(kind, "/") in error.tensor
    assert f"Step {step} " in str(error) and "Received" not in str(error)
    for variable, now, then in zip(model.weights, weights(model), healthy[step - 1], strict=True):
        if not variable.path.endswith("/at"):  # `fit` and `train_on_batch` are compiled apart: equal to rounding
            np.testing.assert_allclose(now, then, rtol=1e-4, atol=1e-5, err_msg=variable.path)


class Spoil(keras.callbacks.Callback):
    """Makes one weight NaN between two steps."""

    def __init__(self, after):
        super().__init__()
        self.left = after

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            callbacks.snapshot.synchronize(self.model)
            weight = self.model.encoder.trainable_weights[0]
            weight.assign(ops.full(weight.shape, float("nan")))


def test_a_weight_that_something_else_spoilt_is_told_from_one_that_a_step_did(faulty):
    model, _, start = faulty
    start.restore(model)
    with pytest.raises(callbacks.NonFiniteLoss, match="did not come from a step") as caught:
        fit(model, callbacks=[Spoil(5)])
    assert caught.value.kind == "weight" and not callbacks.snapshot.not_finite(model)


def test_weights_that_are_bad_from_the_start_are_named(faulty):
    model, _, start = faulty
    start.restore(model)
    weight = model.objective.trainable_weights[0]
    weight.assign(ops.full(weight.shape, float("inf")))
    with pytest.raises(FloatingPointError, match=f"{weight.path}: NaN or infinity before the first step"):
        fit(model)


def test_of_a_stream_the_model_gets_the_last_copy(faulty):
    model, faults, start = faulty
    start.restore(model)
    faults["view"].at.assign(6)

    class Stream(keras.utils.PyDataset):
        def __len__(self):
            return STEPS_PER_EPOCH

        def __getitem__(self, number):
            return IMAGES[number * 16 : (number + 1) * 16], np.arange(16) % 2

    with pytest.raises(FloatingPointError, match="cannot be asked for the same batches again"):
        model.fit(Stream(), epochs=EPOCHS, verbose=0)
    assert not callbacks.snapshot.not_finite(model)


def test_images_with_nan_in_the_middle_of_a_stream_are_named(faulty):
    model, _, start = faulty
    start.restore(model)
    images = IMAGES.astype("float32")
    batches = datasets.Batches(images, np.arange(64) % 2, batch_size=16, shuffle=False)
    images[35, 0, 0, 0] = np.nan
    with pytest.raises(callbacks.NonFiniteLoss) as caught:
        model.fit(batches, epochs=1, verbose=0)
    assert (caught.value.kind, caught.value.step) == ("image", 3)
