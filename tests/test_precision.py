"""Half precision: what stays in float32 under `mixed_bfloat16` for every objective, and float16 with a scaled loss."""

import keras
import members
import numpy as np
import pytest
from keras import ops

from keras_issl import encoders, moving_average
from keras_issl.distribution import BatchNormalization
from keras_issl.pretraining import Pretrainer

IMAGES = np.random.default_rng(0).integers(0, 256, (32, 12, 12, 3)).astype("uint8")
STATEFUL = {"SwAV": {"queue_length": 16, "queue_start_epoch": 0}}
TEACHERS = ("BYOL", "DINO", "MoCoV3")


def dtype_of(x):
    return keras.backend.standardize_dtype(x.dtype)


def array(x):
    return ops.convert_to_numpy(x).astype("float64")


def built(name, seed=1):
    """An objective in the policy of now, with weights of its own that do not depend on it."""
    objective = members.SMALL[name](**STATEFUL.get(name, {}))
    objective.build((objective.num_views, None, 16))
    objective.built = True
    rng = np.random.default_rng(seed)
    for w in objective.trainable_weights:
        if len(w.shape) > 1:
            w.assign(rng.normal(size=w.shape) / np.sqrt(w.shape[0]))
    for head, copy in objective.teacher_pairs:
        moving_average.follow(head, copy, 0.0)
    if objective.uses_run_length:
        objective.set_run_length(4, 4)
    return objective


def features(objective):
    """Student's and teacher's features, exact in bfloat16."""
    x = np.random.default_rng(2).normal(size=(objective.num_views, 24, 16)).astype("float32")
    x = ops.cast(ops.convert_to_tensor(x), "bfloat16")
    return x, None if objective.teacher_momentum is None else x


# ---------------------------------------------------------------------- bfloat16
@pytest.mark.parametrize("name", members.SMALL)
def test_from_bfloat16_features_all_that_comes_out_is_float32(name):
    losses = {}
    for policy in ("float32", "mixed_bfloat16"):
        keras.config.set_dtype_policy(policy)
        objective = built(name)
        outputs = objective(*features(objective), training=True)
        assert {dtype_of(x) for x in outputs.values()} == {"float32"}
        loss, logs = objective.compute_loss(outputs, 0)
        assert {dtype_of(x) for x in (loss, *logs.values())} == {"float32"}
        assert {dtype_of(w) for w in objective.weights if "float" in dtype_of(w)} <= {"float32"}
        losses[policy] = float(array(loss))
    # Heads multiply in bfloat16, of two to three digits, which a temperature may enlarge.
    assert losses["mixed_bfloat16"] == pytest.approx(losses["float32"], rel=0.05, abs=0.05)
    assert losses["mixed_bfloat16"] != losses["float32"], "the heads are in bfloat16"


@pytest.mark.parametrize("name", members.SMALL)
def test_losses_and_softmaxes_compute_in_float32(name):
    """Of outputs that are exact in bfloat16 the loss is the same number whichever dtype they come in."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    objective = built(name)
    outputs = objective(*features(objective), training=True)
    large = {key: value for key, value in outputs.items() if len(value.shape) > 1}  # a flag is what it is
    rounded = outputs | {key: ops.cast(value, "bfloat16") for key, value in large.items()}
    exact = {key: ops.cast(value, "float32") for key, value in rounded.items()}
    found, expected = objective.compute_loss(rounded, 0), objective.compute_loss(exact, 0)
    np.testing.assert_allclose(array(found[0]), array(expected[0]), rtol=1e-6)
    for key, value in expected[1].items():
        np.testing.assert_allclose(array(found[1][key]), array(value), rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("shape", [(64, 4), (4, 6, 6, 4)])
def test_batch_statistics_of_bfloat16_are_those_of_float32(shape):
    """Of numbers near 3, one in bfloat16 in 64, mean and variance are exact, and small steps of theirs add up."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    layer = BatchNormalization(momentum=0.999)
    layer.build(shape)
    x = ops.cast(3.0 + np.random.default_rng(0).normal(size=shape), "bfloat16")
    axes = tuple(range(len(shape) - 1))
    mean, variance = array(x).mean(axes), array(x).var(axes)
    layer.moving_mean.assign(mean + 0.1)
    layer.moving_variance.assign(variance + 0.1)
    for _ in range(50):  # steps of 1e-4, a hundredth of what bfloat16 resolves there
        y = layer(x, training=True)
    assert dtype_of(y) == "bfloat16"
    for found, limit in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        assert dtype_of(found) == "float32"
        np.testing.assert_allclose(array(found), limit + 0.1 * 0.999**50, atol=1e-5)


@pytest.mark.parametrize("name", TEACHERS)
def test_moving_averages_take_steps_below_bfloat16(name):
    """Teachers of encoder and heads: 100 steps of 1e-5 beside weights of 1, of which bfloat16 sees none."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    encoder = encoders.ResNet(blocks=(1,), width=8, image_size=12, stem="strided")
    model = Pretrainer(encoder, members.SMALL[name]())
    assert len(model.teacher_pairs) > 1
    for layer, copy in model.teacher_pairs:
        assert {dtype_of(w) for w in copy.weights} == {"float32"}
        for theirs, ours in zip(layer.weights, copy.weights, strict=True):
            theirs.assign(ops.full(theirs.shape, 1.01))
            ours.assign(ops.ones(ours.shape))
    for _ in range(100):
        for layer, copy in model.teacher_pairs:
            moving_average.follow(layer, copy, 0.999)
    for _, copy in model.teacher_pairs:
        for w in copy.weights:
            np.testing.assert_allclose(array(w), 1 + 0.01 * (1 - 0.999**100), rtol=1e-5)


# ---------------------------------------------------------------------- float16
def half(name, optimizer):
    keras.config.set_dtype_policy("mixed_float16")
    encoder = encoders.ResNet(blocks=(1,), width=8, image_size=12, stem="strided")
    model = Pretrainer(encoder, members.SMALL[name]())
    model.compile(optimizer)
    return model


def scale(model):
    return float(array(model.optimizer.dynamic_scale))


def test_float16_trains_with_a_scaled_loss():
    """Keras wraps the optimizer by itself. DINO's low temperatures cost steps, until the scale is low enough."""
    model = half("DINO", "adam")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert model.encoder.get_layer("conv1").compute_dtype == "float16"
    before = [array(w) for w in model.trainable_weights]
    loss = model.fit(IMAGES, batch_size=16, epochs=7, verbose=0).history["loss"]
    after = [array(w) for w in model.trainable_weights]
    assert np.isfinite(loss).all() and all(np.isfinite(w).all() for w in after)
    assert int(array(model.optimizer.iterations)) > 2, "most steps are left out"
    assert any((a != b).any() for a, b in zip(after, before, strict=True))
    assert {dtype_of(w) for w in model.trainable_weights} == {"float32"}
    assert np.abs(loss).max() < 20 < scale(model), "what is logged is the loss, not its multiple"


def test_a_scale_too_large_for_float16_costs_steps_and_no_weight():
    """Gradients overflow: the steps are left out and the scale is halved, until they do not."""
    model = half("DISSL", keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01), initial_scale=2.0**25))
    before = [array(w) for w in model.trainable_weights]
    model.fit(IMAGES, batch_size=16, epochs=1, verbose=0)
    assert scale(model) == 2.0**23, "two steps left out"
    for w, value in zip(model.trainable_weights, before, strict=True):
        np.testing.assert_array_equal(array(w), value)
    model.fit(IMAGES, batch_size=16, epochs=6, verbose=0)
    assert scale(model) < 2.0**23
    assert all(np.isfinite(array(w)).all() for w in model.trainable_weights)
    assert any((array(w) != value).any() for w, value in zip(model.trainable_weights, before, strict=True))
