"""MoCo v3 against a float64 reference written from the paper's equation and algorithm.

That its encoder and projector follow the student's is in `test_byol.py`, with BYOL's.
"""

import keras
import numpy as np
import pytest
from gradients import arrays, assert_equal, value_and_grad
from keras import ops
from members import SMALL

from keras_issl import losses, objectives


def moco(queries, keys, tau=0.2):
    """Chen, Xie & He 2021: equation 1 for each query, both directions, times 2τ as in algorithm 1."""
    batch = queries.shape[1]
    unit = lambda x: x / np.sqrt((x**2).sum())  # noqa: E731
    total = 0.0
    for a, b in ((0, 1), (1, 0)):
        for i in range(batch):
            scores = [np.exp(unit(queries[a, i]) @ unit(keys[b, j]) / tau) for j in range(batch)]
            total += -np.log(scores[i] / sum(scores)) / batch
    return 2 * tau * total


@pytest.mark.parametrize("tau", [0.2, 1.0])
def test_loss_equals_reference(tau):
    q, k = arrays((2, 4, 6), (2, 4, 6))
    assert_equal(
        lambda q: losses.moco_loss(queries=q, keys=k, temperature=tau),
        lambda q: moco(q, k.astype("float64"), tau),
        q,
    )


def test_keys_get_no_gradient():
    q, k = arrays((2, 4, 6), (2, 4, 6))
    _, (gradient, stopped) = value_and_grad(lambda q, k: losses.moco_loss(queries=q, keys=k), q, k)
    assert np.abs(gradient).max() > 0
    assert not stopped.any()


@pytest.mark.parametrize("tau", [0.2, 1.0])
def test_closed_forms(tau):
    batch = 4
    same, eye = np.ones((2, batch, 6), "float32"), np.tile(np.eye(batch, 6, dtype="float32"), (2, 1, 1))
    identical = losses.moco_loss(queries=same, keys=same, temperature=tau)
    assert float(identical) == pytest.approx(4 * tau * np.log(batch), rel=1e-5)
    ideal = losses.moco_loss(queries=5 * eye, keys=eye, temperature=tau)  # one's own key is at 1, the others at 0
    assert float(ideal) == pytest.approx(4 * tau * np.log(1 + (batch - 1) * np.exp(-1 / tau)), rel=1e-4)


def test_loss_is_blind_to_the_order_of_images_and_views_and_to_lengths():
    q, k = arrays((2, 4, 6), (2, 4, 6))
    plain, rows = float(losses.moco_loss(queries=q, keys=k)), [2, 0, 3, 1]
    for q2, k2 in ((q[:, rows], k[:, rows]), (q[::-1].copy(), k[::-1].copy()), (0.2 * q, 9 * k)):
        assert float(losses.moco_loss(queries=q2, keys=k2)) == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_collapsed_projections_have_finite_gradients(value):
    same = np.full((2, 4, 6), value, "float32")
    result, gradients = value_and_grad(lambda q, k: losses.moco_loss(queries=q, keys=k), same, same)
    assert result == pytest.approx(4 * 0.2 * np.log(4), rel=1e-5)
    assert all(np.isfinite(g).all() for g in gradients)


def test_loss_computes_in_float32_from_bfloat16():
    q, k = (ops.cast(a, "bfloat16") for a in arrays((2, 4, 6), (2, 4, 6)))
    value = losses.moco_loss(queries=q, keys=k)
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    q64, k64 = (ops.convert_to_numpy(ops.cast(a, "float32")).astype("float64") for a in (q, k))
    assert float(value) == pytest.approx(moco(q64, k64), rel=1e-5)


def test_logs_show_collapse():
    eye, same = np.tile(np.eye(4, 6, dtype="float32"), (2, 1, 1)), np.ones((2, 4, 6), "float32")
    for z, spread in ((eye, 4 / 6 * 3**0.5 / 4 * 6**0.5), (same, 0.0)):
        _, logs = SMALL["MoCoV3"]().compute_loss({"queries": z, "keys": z}, 0)
        assert float(logs["alignment"]) == pytest.approx(1, rel=1e-6)
        assert float(logs["feature_std"]) == pytest.approx(spread, abs=1e-6)


def test_heads_are_the_papers():
    d, h, e, bn = 6, 16, 8, 2
    objective = objectives.MoCoV3(output_dim=e, hidden=(h, h), predictor_hidden=(h,))
    objective.build((2, None, d))
    size = lambda layer: sum(int(np.prod(w.shape)) for w in layer.trainable_weights)  # noqa: E731
    assert size(objective.projector) == d * h + bn * h + h * h + bn * h + h * e
    assert size(objective.predictor) == e * h + bn * h + h * e
    assert size(objective.teacher_projector) == 0
    features = keras.random.normal((2, 8, d), seed=0)
    for z in objective(features, features, training=True).values():  # normalised without offset and scale
        z = ops.convert_to_numpy(z).reshape(-1, e)
        np.testing.assert_allclose(z.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(z.std(0), 1, atol=2e-3)
    # As released for ResNets: the same predictor ends in its linear layer; the projector is normalised as it is there.
    objective = objectives.MoCoV3(output_dim=e, hidden=(h,), predictor_hidden=(h,), predictor_norm=False)
    objective.build((2, None, d))
    assert size(objective.projector) == d * h + bn * h + h * e and size(objective.predictor) == e * h + bn * h + h * e
    outputs = objective(features, features, training=True)
    queries, keys = (ops.convert_to_numpy(outputs[name]).reshape(-1, e).std(0) for name in ("queries", "keys"))
    np.testing.assert_allclose(keys, 1, atol=2e-3)
    assert np.abs(queries - 1).max() > 0.1


def test_round_trip_through_the_config():
    objective = SMALL["MoCoV3"](teacher_momentum=0.9, temperature=0.5, predictor_norm=False)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(objective))
    assert again.get_config() == objective.get_config()
    assert again.teacher_momentum == 0.9


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda z: losses.moco_loss(queries=z[:, :1], keys=z[:, :1]), "batch of at least 2"),
        (lambda z: losses.moco_loss(queries=np.ones((3, 4, 3)), keys=z), "exactly 2 views"),
        (lambda z: losses.moco_loss(queries=z, keys=z[0]), "`keys` should have three axes"),
        (lambda z: losses.moco_loss(queries=z, keys=z[:, :3]), "one shape"),
        (lambda z: losses.moco_loss(queries=z, keys=z, temperature=0), "`temperature`"),
        (lambda z: objectives.MoCoV3(temperature=float("nan")), "`temperature`"),
        (lambda z: objectives.MoCoV3(output_dim=0), "`output_dim`"),
        (lambda z: objectives.MoCoV3(teacher_momentum=2), "`teacher_momentum`"),
        (lambda z: objectives.MoCoV3(teacher_momentum=None), "`teacher_momentum` .* Received: None"),
        (lambda z: objectives.MoCoV3(heads="he"), "`heads`"),
        (lambda z: SMALL["MoCoV3"]()(z), "`teacher_features`"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(np.ones((2, 4, 3), "float32"))
