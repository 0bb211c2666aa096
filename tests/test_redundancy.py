"""Barlow Twins and VICReg against float64 references written from the papers' equations."""

import keras
import numpy as np
import pytest
from gradients import arrays, assert_equal, value_and_grad
from keras import ops
from members import SMALL

from keras_issl import losses, objectives


def barlow_twins(z, lam=0.0051, epsilon=1e-5):
    """Zbontar et al. 2021, equations 1 and 2, with projections centred along the batch and ε beside variances."""
    (_, batch, width), (a, b) = z.shape, (view - view.mean(0) for view in z)
    sd = [np.sqrt((view**2).sum(0) / batch + epsilon) for view in (a, b)]
    total = 0.0
    for i in range(width):
        for j in range(width):
            c = (a[:, i] * b[:, j]).sum() / batch / (sd[0][i] * sd[1][j])
            total += (1 - c) ** 2 if i == j else lam * c**2
    return total


def vicreg(z, lam=25.0, mu=25.0, nu=1.0, gamma=1.0, epsilon=1e-4):
    """Bardes et al. 2022, equations 1 to 6; s divided by the width, as in algorithm 1."""
    _, batch, width = z.shape
    s = sum(((z[0, b] - z[1, b]) ** 2).sum() / width for b in range(batch)) / batch
    v = c = 0.0
    for view in z:
        covariance = np.zeros((width, width))
        for b in range(batch):
            offset = view[b] - view.mean(0)
            covariance += np.outer(offset, offset) / (batch - 1)
        v += sum(max(0, gamma - np.sqrt(covariance[i, i] + epsilon)) for i in range(width)) / width
        c += sum(covariance[i, j] ** 2 for i in range(width) for j in range(width) if i != j) / width
    return lam * s + mu * v + nu * c


def hadamard(columns):
    """8 images whose dimensions have mean 0, variance 1 and no correlation, as both views."""
    h = np.array([[1.0]])
    for _ in range(3):
        h = np.block([[h, h], [h, -h]])
    return np.stack([h[:, 1 : columns + 1]] * 2).astype("float32")


SHAPES = [(2, 7, 3), (2, 4, 6)]  # more images than dimensions, and fewer: the losses multiply the other way round


# ---------------------------------------------------------------------- Barlow Twins
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weight", [0.0051, 1.0])
def test_barlow_twins_equals_reference(shape, weight):
    assert_equal(
        lambda z: losses.barlow_twins_loss(z, off_diagonal_weight=weight)[0],
        lambda z: barlow_twins(z.astype("float64"), weight),
        *arrays(shape),
    )


def test_barlow_twins_closed_forms():
    def parts(z, **kwargs):
        loss, logs = losses.barlow_twins_loss(z, **kwargs)
        return [float(x) for x in (loss, logs["invariance"], logs["redundancy"], logs["correlation"])]

    z = hadamard(5)
    np.testing.assert_allclose(parts(z), [0, 0, 0, 1], atol=2e-5)
    negated = np.stack([z[0], -z[1]])
    np.testing.assert_allclose(parts(negated), [20, 20, 0, -1], atol=2e-3)
    one_dimension = np.repeat(hadamard(1), 5, axis=-1)  # every dimension says the same
    np.testing.assert_allclose(parts(one_dimension, off_diagonal_weight=0.1), [2, 0, 20, 1], atol=2e-3)
    np.testing.assert_allclose(parts(np.ones((2, 8, 5), "float32")), [5, 5, 0, 0], atol=1e-5)  # collapse


def test_barlow_twins_is_blind_to_offsets_scales_and_orders():
    (z,) = arrays((2, 7, 3))
    plain = float(losses.barlow_twins_loss(z)[0])
    moved = z * np.array([0.5, 3.0, 20.0], "float32") + np.array([1.0, -2.0, 5.0], "float32")
    for other in (moved, z[:, ::-1].copy(), z[..., ::-1].copy(), z[::-1].copy()):
        assert float(losses.barlow_twins_loss(other)[0]) == pytest.approx(plain, rel=1e-4)


# ---------------------------------------------------------------------- VICReg
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [0.5, 2.0])  # under and over the hinge
@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (0.0, 1.0, 10.0)])
def test_vicreg_equals_reference(shape, scale, weights):
    names = ("invariance_weight", "variance_weight", "covariance_weight")
    assert_equal(
        lambda z: losses.vicreg_loss(z, **dict(zip(names, weights, strict=True)))[0],
        lambda z: vicreg(z.astype("float64"), *weights),
        *arrays(shape, scale=scale),
    )


def test_vicreg_with_another_target_and_epsilon():
    assert_equal(
        lambda z: losses.vicreg_loss(z, target_std=2.0, epsilon=0.1)[0],
        lambda z: vicreg(z.astype("float64"), gamma=2.0, epsilon=0.1),
        *arrays((2, 4, 6), scale=1.0),
    )


def test_vicreg_closed_forms():
    def parts(z):
        loss, logs = losses.vicreg_loss(z)
        return [float(x) for x in (loss, logs["invariance"], logs["variance"], logs["covariance"])]

    z = hadamard(5)  # its unbiased variances are 8/7
    np.testing.assert_allclose(parts(z), [0, 0, 0, 0], atol=1e-5)
    hinge = 2 * (1 - np.sqrt(8 / 7 / 4 + 1e-4))
    np.testing.assert_allclose(parts(0.5 * z), [25 * hinge, 0, hinge, 0], atol=1e-5)
    np.testing.assert_allclose(parts(np.stack([z[0], -z[1]])), [100, 4, 0, 0], atol=1e-4)
    one_dimension = np.repeat(hadamard(1), 5, axis=-1)
    np.testing.assert_allclose(parts(one_dimension), [2 * 4 * (8 / 7) ** 2, 0, 0, 2 * 4 * (8 / 7) ** 2], rtol=1e-5)
    np.testing.assert_allclose(parts(np.ones((2, 8, 5), "float32")), [49.5, 0, 1.98, 0], rtol=1e-5)  # collapse


def test_vicreg_is_blind_to_an_offset_of_both_views_and_to_orders():
    (z,) = arrays((2, 7, 3), scale=0.5)
    plain = float(losses.vicreg_loss(z)[0])
    for other in (z + np.array([1.0, -2.0, 5.0], "float32"), z[:, ::-1].copy(), z[..., ::-1].copy(), z[::-1].copy()):
        assert float(losses.vicreg_loss(other)[0]) == pytest.approx(plain, rel=1e-5)


# ---------------------------------------------------------------------- both
BOTH = {"BarlowTwins": (losses.barlow_twins_loss, barlow_twins), "VICReg": (losses.vicreg_loss, vicreg)}


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_collapsed_projections_have_finite_gradients(name, value):
    result, (gradient,) = value_and_grad(lambda z: BOTH[name][0](z)[0], np.full((2, 4, 6), value, "float32"))
    assert np.isfinite(result) and np.isfinite(gradient).all()


@pytest.mark.parametrize("name", BOTH)
def test_losses_compute_in_float32_from_bfloat16(name):
    loss, expected = BOTH[name]
    z = ops.cast(arrays((2, 4, 6), scale=0.5)[0], "bfloat16")
    value, logs = loss(z)
    assert all(keras.backend.standardize_dtype(x.dtype) == "float32" for x in (value, *logs.values()))
    exact = ops.convert_to_numpy(ops.cast(z, "float32")).astype("float64")
    assert float(value) == pytest.approx(expected(exact), rel=1e-4)


@pytest.mark.parametrize("name", BOTH)
def test_losses_take_batches_of_open_size(name):
    """As `tf.data` gives them, or compiled on the backends that know no such thing."""
    loss, expected = BOTH[name]
    compiled = lambda z: loss(z)[0]  # noqa: E731
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        compiled = tf.function(compiled, input_signature=[tf.TensorSpec((2, None, 3))])
    elif keras.backend.backend() == "jax":
        import jax

        compiled = jax.jit(compiled)
    for batch in (2, 9):
        (z,) = arrays((2, batch, 3))
        assert float(compiled(z)) == pytest.approx(expected(z.astype("float64")), rel=1e-4)


@pytest.mark.parametrize("name", BOTH)
def test_logs_show_collapse(name):
    objective = SMALL[name]()
    eye, same = np.tile(np.eye(4, 6, dtype="float32"), (2, 1, 1)), np.ones((2, 4, 6), "float32")
    for z, spread in ((eye, 4 / 6 * 3**0.5 / 4 * 6**0.5), (same, 0.0)):
        _, logs = objective.compute_loss({"projections": z}, 0)
        assert set(logs) == set(objective.log_names)
        assert float(logs["feature_std"]) == pytest.approx(spread, abs=1e-6)


@pytest.mark.parametrize("name", BOTH)
def test_the_head_has_no_bias_that_the_loss_would_not_see(name):
    d, h, e, bn = 6, 16, 8, 2
    objective = getattr(objectives, name)(output_dim=e, hidden=(h, h))
    objective.build((2, None, d))
    size = sum(int(np.prod(w.shape)) for w in objective.trainable_weights)
    assert size == d * h + bn * h + h * h + bn * h + h * e


@pytest.mark.parametrize("name", BOTH)
def test_weights_reach_the_loss_and_survive_the_config(name):
    first = "off_diagonal_weight" if name == "BarlowTwins" else "covariance_weight"
    objective = SMALL[name](**{first: 0.3})
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(objective))
    assert again.get_config() == objective.get_config()
    (z,) = arrays((2, 7, 3))
    weights = {key: value for key, value in objective.get_config().items() if key.endswith("_weight")}
    assert weights[first] == 0.3
    wanted = BOTH[name][0](z, **weights)[0]
    assert float(again.compute_loss({"projections": z}, 0)[0]) == pytest.approx(float(wanted), rel=1e-6)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda z: losses.barlow_twins_loss(z[:, :1]), "batch of at least 2"),
        (lambda z: losses.vicreg_loss(z[:, :1]), "batch of at least 2"),
        (lambda z: losses.barlow_twins_loss(np.ones((3, 4, 3))), "exactly 2 views"),
        (lambda z: losses.vicreg_loss(np.ones((3, 4, 3))), "exactly 2 views"),
        (lambda z: losses.barlow_twins_loss(z[0]), "views first"),
        (lambda z: losses.vicreg_loss(z[:1]), "at least 2 views"),
        (lambda z: losses.barlow_twins_loss(z, off_diagonal_weight=0), "`off_diagonal_weight`"),
        (lambda z: losses.vicreg_loss(z, covariance_weight=-1), "`covariance_weight`"),
        (lambda z: losses.vicreg_loss(z, epsilon=0), "`epsilon`"),
        (lambda z: objectives.BarlowTwins(off_diagonal_weight=float("inf")), "`off_diagonal_weight`"),
        (lambda z: objectives.BarlowTwins(heads="he"), "`heads`"),
        (lambda z: objectives.VICReg(variance_weight=float("nan")), "`variance_weight`"),
        (lambda z: objectives.VICReg(output_dim=0), "`output_dim`"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(np.ones((2, 4, 3), "float32"))
