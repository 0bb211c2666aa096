import math

import keras
import numpy as np
import pytest
from gradients import arrays, assert_equal
from keras import ops

from keras_issl import Pretrainer, distribution, encoders, losses, objectives
from keras_issl.objectives.swav import sinkhorn


# ---------------------------------------------------------------------- float64, from the paper's equations
def reference_codes(scores, epsilon=0.05, iterations=3):
    """Caron et al. 2020, equation 5: scale rows (prototypes) to 1/K and columns (images) to 1/B in turn."""
    q = np.exp(scores.astype("float64").T / epsilon)  # (K, B), as the paper writes it
    q /= q.sum()
    K, B = q.shape
    for _ in range(iterations):
        for k in range(K):
            q[k] *= 1 / K / q[k].sum()
        for b in range(B):
            q[:, b] *= 1 / B / q[:, b].sum()
    return q.T * B


def _log_softmax(x):
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


def _entropy(p):
    return -sum(x * np.log(x) for x in p if x > 0)


def reference(scores, codes, tau=0.1):
    """Equations 2 (cross-entropy of a view under a code) and 6 (all pairs of views); loss and logs."""
    s = scores.astype("float64")
    terms, marginals = [], []
    for i in range(len(codes)):
        for j in range(len(s)):
            for b in range(s.shape[1]):
                if j != i:
                    terms.append(-(codes[i][b] * _log_softmax(s[j, b] / tau)).sum())
        marginals.append(_entropy(np.mean([np.exp(_log_softmax(row / tau)) for row in s[i]], axis=0)))
    loss, marginal = np.mean(terms), np.mean(marginals)
    h = np.mean([_entropy(row) for code in codes for row in code])
    logs = {"code_entropy": h, "marginal_entropy": marginal, "effective_classes": np.exp(marginal), "kl": loss - h}
    return loss, logs


def small(**kwargs):
    return objectives.SwAV(**{"num_prototypes": 6, "hidden": (5,), "output_dim": 4, "freeze_steps": 2} | kwargs)


def built(objective, width=6):
    objective.build((2, None, width))
    objective.built = True
    return objective


def numpy(x):
    return ops.convert_to_numpy(x).copy()


def cosines(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.uniform(-1, 1, s).astype("float32") for s in shapes]


# ---------------------------------------------------------------------- Sinkhorn-Knopp
@pytest.mark.parametrize("iterations", [1, 3])
def test_codes_equal_the_reference(iterations):
    (scores,) = cosines((4, 6))
    codes = numpy(sinkhorn(scores, iterations=iterations))
    np.testing.assert_allclose(codes, reference_codes(scores, iterations=iterations), rtol=2e-5, atol=1e-12)


def test_codes_are_distributions_that_share_the_batch_out_evenly():
    (scores,) = cosines((4, 6))
    np.testing.assert_allclose(numpy(sinkhorn(scores)).sum(axis=1), 1, rtol=1e-5)
    codes = numpy(sinkhorn(scores, epsilon=0.5, iterations=30))
    np.testing.assert_allclose(codes.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(codes.sum(axis=0), 4 / 6, rtol=1e-4)


def test_codes_do_not_see_what_prototypes_or_images_have_in_common():
    """Sinkhorn-Knopp is blind to a number added to all scores of a prototype, once both totals are equal."""
    scores, columns = cosines((4, 6), (1, 6))
    codes = numpy(sinkhorn(scores, epsilon=0.5, iterations=30))
    np.testing.assert_allclose(numpy(sinkhorn(scores + columns, epsilon=0.5, iterations=30)), codes, rtol=1e-3)


def test_large_scores_stay_finite():
    """exp(scores/ε) would overflow in float32 and in float64."""
    (scores,) = cosines((4, 6))
    codes = numpy(sinkhorn(100 * scores, epsilon=0.01))
    assert np.isfinite(codes).all()
    np.testing.assert_allclose(codes.sum(axis=1), 1, rtol=1e-5)


def test_one_projection_for_all_images_gives_uniform_codes():
    (row,) = cosines((1, 6))
    codes = numpy(sinkhorn(np.repeat(row, 4, axis=0)))
    np.testing.assert_allclose(codes, 1 / 6, rtol=1e-5)


def test_a_queue_joins_the_sharing_as_further_rows():
    scores, queue = cosines((4, 6), (7, 6))
    both = np.concatenate([scores, queue])
    joined = numpy(sinkhorn(scores, queue_scores=queue))
    np.testing.assert_array_equal(joined, numpy(sinkhorn(both))[:4])
    np.testing.assert_array_equal(numpy(sinkhorn(scores, queue_scores=queue, use_queue=np.float32(1))), joined)
    np.testing.assert_allclose(joined, reference_codes(both)[:4], rtol=2e-5, atol=1e-12)


def test_a_queue_out_of_use_changes_nothing():
    scores, queue = cosines((4, 6), (7, 6))
    unused = numpy(sinkhorn(scores, queue_scores=queue, use_queue=np.float32(0)))
    np.testing.assert_allclose(unused, numpy(sinkhorn(scores)), rtol=1e-6)


# ---------------------------------------------------------------------- the loss
@pytest.mark.parametrize(("views", "queue"), [(2, False), (5, False), (3, True)])
def test_value_and_gradient_equal_the_reference(views, queue):
    scores, queued = cosines((views, 4, 6), (2, 7, 6))
    rows = [np.concatenate([scores[i], queued[i]]) if queue else scores[i] for i in range(2)]
    codes = [reference_codes(r)[:4] for r in rows]  # at this point: no gradient goes through them
    settings = {"queue_scores": queued} if queue else {}
    assert_equal(lambda s: losses.swav_loss(s, **settings)[0], lambda s: reference(s, codes)[0], scores)


def test_other_settings_reach_the_reference():
    (scores,) = cosines((4, 4, 6))
    codes = [reference_codes(s, epsilon=0.2, iterations=5) for s in scores[:3]]
    settings = {"num_teacher_views": 3, "temperature": 0.3, "epsilon": 0.2, "iterations": 5}
    assert_equal(lambda s: losses.swav_loss(s, **settings)[0], lambda s: reference(s, codes, tau=0.3)[0], scores)


def test_logs_equal_the_reference():
    (scores,) = cosines((4, 4, 6))
    _, logs = losses.swav_loss(scores)
    _, wanted = reference(scores, [reference_codes(s) for s in scores[:2]])
    assert set(logs) == set(wanted) == set(objectives.SwAV.log_names)
    for name, value in wanted.items():
        assert float(logs[name]) == pytest.approx(value, rel=1e-5), name


def test_orthogonal_images_have_the_closed_form():
    """Image b at prototype b, so that both totals are equal from the start; the views are identical."""
    n, tau, epsilon = 6, 0.5, 0.25
    eye = np.tile(np.eye(n, dtype="float32"), (2, 1, 1))
    loss, logs = losses.swav_loss(eye, temperature=tau, epsilon=epsilon)
    own = math.exp(1 / epsilon) / (math.exp(1 / epsilon) + n - 1)
    assert float(loss) == pytest.approx(math.log(math.exp(1 / tau) + n - 1) - own / tau, rel=1e-5)
    assert float(logs["effective_classes"]) == pytest.approx(n, rel=1e-5)
    sharp, _ = losses.swav_loss(100 * eye)  # certain codes that the other view predicts
    assert float(sharp) == pytest.approx(0, abs=1e-5)


def test_equal_scores_cost_log_c():
    loss, logs = losses.swav_loss(np.full((2, 4, 6), 0.3, "float32"))
    for value in (loss, logs["code_entropy"], logs["marginal_entropy"]):
        assert float(value) == pytest.approx(math.log(6), rel=1e-5)
    assert float(logs["kl"]) == pytest.approx(0, abs=1e-5)


def test_one_projection_for_all_images_costs_more_and_shows_in_the_codes():
    (row,) = cosines((1, 1, 6))
    loss, logs = losses.swav_loss(np.tile(row, (2, 4, 1)))
    assert float(logs["code_entropy"]) == pytest.approx(math.log(6), rel=1e-5)
    assert float(loss) == pytest.approx(-_log_softmax(row[0, 0] / 0.1).mean(), rel=1e-5)
    assert float(loss) > math.log(6)
    assert float(logs["effective_classes"]) < 5  # predictions that leave prototypes out


def test_two_views_are_the_swapped_prediction():
    """Multi-crop without small crops is equation 1."""
    (scores,) = cosines((2, 4, 6))
    codes = [reference_codes(s) for s in scores]

    def one_way(code, s):
        return -np.mean([(q * _log_softmax(x / 0.1)).sum() for q, x in zip(code, s, strict=True)])

    wanted = (one_way(codes[1], scores[0]) + one_way(codes[0], scores[1])) / 2
    assert float(losses.swav_loss(scores)[0]) == pytest.approx(wanted, rel=1e-5)


def test_half_precision_scores_are_computed_in_float32():
    scores = ops.cast(cosines((2, 4, 6))[0], "bfloat16")
    rounded = numpy(ops.cast(scores, "float32"))
    loss, _ = losses.swav_loss(scores)
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"
    assert float(loss) == pytest.approx(reference(rounded, [reference_codes(s) for s in rounded])[0], rel=1e-5)


# ---------------------------------------------------------------------- the layer and its queue
def parts(objective, features):
    """(unit projections, unit prototypes) of a layer in inference, in float64."""
    z, w = numpy(objective.head(features.reshape(-1, 6))), numpy(objective.prototypes.kernel)
    z, w = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (z.astype("float64"), w.astype("float64")))
    return z.reshape(*features.shape[:2], -1), w


def test_the_layers_loss_is_the_loss_of_its_cosines():
    objective = built(small())
    (features,) = arrays((4, 4, 6))
    loss, _ = objective.compute_loss(objective(features, training=False), 0)
    z, w = parts(objective, features)
    wanted, _ = reference(z @ w.T, [reference_codes(s) for s in (z @ w.T)[:2]])
    assert float(numpy(loss)) == pytest.approx(wanted, rel=1e-5)


def test_the_queue_fills_from_the_front_with_unit_projections():
    objective = built(small(queue_length=7))
    assert not numpy(objective.queue).any()
    batches, full = [], []
    for k in range(3):
        (features,) = arrays((3, 4, 6), seed=k)
        outputs = objective(features, training=True)
        batches.insert(0, numpy(outputs["projections"])[:2])
        full.append(float(outputs["queue_full"]))
        newest = np.concatenate(batches, axis=1)[:, :7]
        np.testing.assert_array_equal(numpy(objective.queue)[:, : newest.shape[1]], newest)
        assert int(objective.queued) == min(4 * (k + 1), 7)
    assert full == [0, 0, 1]  # as each step finds it: with 0, 4 and 7 of 7
    np.testing.assert_allclose(np.linalg.norm(numpy(objective.queue), axis=-1), 1, rtol=1e-5)
    # What a step gets is the queue without its own batch.
    np.testing.assert_array_equal(numpy(outputs["queue"]), np.concatenate(batches[1:], axis=1)[:, :7])


@pytest.mark.parametrize(("fills", "step", "used"), [(2, 4, True), (1, 4, False), (2, 3, False)])
def test_the_queue_is_used_when_full_and_from_its_epoch(fills, step, used):
    objective = built(small(queue_length=7, queue_start_epoch=2))
    objective.set_run_length(5, 2)  # so that step 4 begins epoch 2
    for k in range(fills):
        objective(arrays((2, 4, 6), seed=k)[0], training=True)
    (features,) = arrays((3, 4, 6), seed=9)
    loss, _ = objective.compute_loss(objective(features, training=False), step)
    z, w = parts(objective, features)
    rows = [z[i] @ w.T for i in range(2)]
    if used:
        rows = [np.concatenate([r, numpy(objective.queue)[i] @ w.T]) for i, r in enumerate(rows)]
    wanted, _ = reference(z @ w.T, [reference_codes(r)[:4] for r in rows])
    assert float(numpy(loss)) == pytest.approx(wanted, rel=1e-5)


def test_evaluation_moves_nothing():
    objective = built(small(queue_length=7))
    (features,) = arrays((2, 4, 6))
    objective(features, training=True)
    before = [numpy(w) for w in objective.weights]
    objective.compute_loss(objective(features, training=False), 5)
    for weight, value in zip(objective.weights, before, strict=True):
        np.testing.assert_array_equal(numpy(weight), value)


def test_without_a_queue_there_is_no_state_and_no_schedule():
    objective = built(small())
    assert not objective.uses_run_length and not hasattr(objective, "queue")
    assert built(small(queue_length=4)).uses_run_length


@pytest.mark.parametrize("policy", ["bfloat16", "mixed_bfloat16"])
def test_prototypes_and_queue_are_float32_under_any_policy(policy):
    with distribution.dtype_scope(policy):
        objective = built(small(queue_length=4))
        outputs = objective(keras.random.normal((2, 4, 6), seed=0), training=True)
        loss, logs = objective.compute_loss(outputs, ops.convert_to_tensor(2))
    state = [objective.prototypes.kernel, objective.queue, *outputs.values(), loss, *logs.values()]
    assert {keras.backend.standardize_dtype(x.dtype) for x in state} == {"float32"}
    half = keras.backend.standardize_dtype(objective.head.weights[0].dtype)
    assert half == ("bfloat16" if policy == "bfloat16" else "float32"), "the MLP is what the policy says"
    # Cosines of prototypes that differ by less than bfloat16 can tell apart differ.
    kernel = np.ones(objective.prototypes.kernel.shape, "float32")
    kernel[1, 0] += 2.0**-12
    objective.prototypes.kernel.assign(kernel)
    cosines = numpy(objective.prototypes(np.eye(1, 4, dtype="float32")))[0]
    assert cosines[1] > cosines[0] == cosines[2]


# ---------------------------------------------------------------------- a run
class Weights(keras.callbacks.Callback):
    """The weights of layers after each step, and before the first."""

    def __init__(self, *layers):
        super().__init__()
        self.layers, self.seen = layers, []

    def note(self):
        _ = self.model  # on JAX, brings the variables up to date
        self.seen.append([[numpy(w) for w in layer.weights] for layer in self.layers])

    def on_train_begin(self, logs=None):
        self.note()

    def on_train_batch_end(self, batch, logs=None):
        self.note()


def pretrainer(objective):
    inputs = keras.Input((4, 4, 3))
    features = keras.layers.Dense(6)(keras.layers.Flatten()(inputs / 255.0))
    encoder = encoders.Adapter(keras.Model(inputs, features))

    def views(images):
        x = ops.cast(images, "float32")
        return [x, ops.flip(x, axis=2) * 0.9 + 5.0]

    return Pretrainer(encoder, objective, views)


IMAGES = np.random.default_rng(0).integers(0, 256, (16, 4, 4, 3)).astype("uint8")


def test_a_run_freezes_prototypes_and_fills_the_queue():
    objective = small(freeze_steps=3, queue_length=12, queue_start_epoch=1)
    model = pretrainer(objective)
    model.compile(keras.optimizers.SGD(0.5))
    weights = Weights(objective.head, objective.prototypes)
    history = model.fit(IMAGES, batch_size=8, epochs=2, verbose=0, callbacks=[weights]).history
    assert np.isfinite(history["loss"]).all()
    prototypes = [seen[1][0] for seen in weights.seen]
    for frozen in prototypes[1:4]:
        np.testing.assert_array_equal(frozen, prototypes[0])
    assert np.abs(prototypes[4] - prototypes[0]).max() > 1e-4
    assert np.abs(weights.seen[1][0][0] - weights.seen[0][0][0]).max() > 1e-6  # the head below is not frozen
    assert int(objective.queued) == 12
    np.testing.assert_allclose(np.linalg.norm(numpy(objective.queue), axis=-1), 1, rtol=1e-5)


# ---------------------------------------------------------------------- configuration and bad input
def test_config_round_trip():
    objective = small(queue_length=8, queue_start_epoch=3, probe="mlp", heads="small_images", hidden=[5, 6])
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(objective))
    assert type(again) is objectives.SwAV and again.get_config() == objective.get_config()
    assert again.queue_length == 8 and again.uses_run_length


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda z: losses.swav_loss(z[0]), "views first"),
        (lambda z: losses.swav_loss(z[:1]), "at least 2 views"),
        (lambda z: losses.swav_loss(z, num_teacher_views=4), "at least 4 views"),
        (lambda z: losses.swav_loss(z, temperature=0), "`temperature`"),
        (lambda z: losses.swav_loss(z, epsilon=-1), "`epsilon`"),
        (lambda z: losses.swav_loss(z, iterations=0), "iterations"),
        (lambda z: losses.swav_loss(z, queue_scores=np.ones((2, 7, 2), "float32")), "`queue_scores`"),
        (lambda z: sinkhorn(z), "`scores`"),
        (lambda z: small(num_prototypes=0), "`num_prototypes`"),
        (lambda z: small(temperature=float("inf")), "`temperature`"),
        (lambda z: small(sinkhorn_iterations=0.5), "iterations"),
        (lambda z: small(queue_length=-1), "`queue_length`"),
        (lambda z: small(queue_length=2.5), "`queue_length`"),
        (lambda z: small(freeze_steps=-1), "`freeze_steps`"),
        (lambda z: small(heads="he"), "`heads`"),
        (lambda z: built(small(hidden=(0,))), "positive integers"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(np.ones((3, 4, 6), "float32"))


def test_a_run_that_does_not_suit_the_queue_is_refused():
    model = pretrainer(small(queue_length=6, queue_start_epoch=0, freeze_steps=0))
    model.compile("sgd")
    with pytest.raises(ValueError, match=r"`queue_length`.*queue_length=6, batch_size=8.*longer queue"):
        model.fit(IMAGES, batch_size=8, verbose=0)
    late = small(queue_length=8, queue_start_epoch=3)
    with pytest.raises(ValueError, match=r"`queue_start_epoch`.*queue_start_epoch=3, epochs=3.*smaller"):
        late.check_run(batch_size=8, epochs=3, steps_per_epoch=2)
    late.check_run(batch_size=8, epochs=4, steps_per_epoch=2)
    late.check_run(batch_size=None, epochs=None, steps_per_epoch=None)
    small().check_run(batch_size=8, epochs=1, steps_per_epoch=None)


def test_prototypes_or_a_queue_that_never_take_part_are_refused():
    model = pretrainer(small(freeze_steps=4))
    model.compile("sgd")
    with pytest.raises(ValueError, match=r"`freeze_steps` should be below the 4 steps.*Received: 4. Train longer"):
        model.fit(IMAGES, batch_size=8, epochs=2, verbose=0)
    small(freeze_steps=3).check_run(batch_size=8, epochs=2, steps_per_epoch=2)
    run = {"batch_size": 8, "epochs": 2, "steps_per_epoch": 2}
    small(queue_length=24, queue_start_epoch=1).check_run(**run)  # the fourth step finds three batches in it
    with pytest.raises(ValueError, match=r"`queue_length` should be at most the 24 images.*Received: 25. Train longer"):
        small(queue_length=25, queue_start_epoch=1).check_run(**run)
