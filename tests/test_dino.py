import math

import keras
import numpy as np
import pytest
from gradients import arrays, assert_equal, value_and_grad
from keras import ops

from keras_issl import Pretrainer, encoders, losses, objectives
from keras_issl.objectives.dino import DINOHead


# ---------------------------------------------------------------------- float64, from the paper's equations
def _softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def _entropy(p):
    return -sum(x * np.log(x) for x in p if x > 0)


def reference(student, teacher, center=0.0, tau_s=0.1, tau_t=0.07):
    """Caron et al. 2021: equation 1 (temperatures), 3 (pairs of views) and the centre of equation 4; loss and logs."""
    s, t = student.astype("float64"), teacher.astype("float64")
    terms, entropies, marginals = [], [], []
    for i in range(len(t)):
        q = [_softmax((row - center) / tau_t) for row in t[i]]
        for b in range(s.shape[1]):
            p = [_softmax(s[j, b] / tau_s) for j in range(len(s))]
            terms += [-(q[b] * np.log(p[j])).sum() for j in range(len(s)) if j != i]
            entropies.append(_entropy(q[b]))
        marginals.append(_entropy(np.mean(q, axis=0)))
    loss, h, marginal = np.mean(terms), np.mean(entropies), np.mean(marginals)
    logs = {"teacher_entropy": h, "marginal_entropy": marginal, "effective_classes": np.exp(marginal), "kl": loss - h}
    return loss, logs


def small(**kwargs):
    return objectives.DINO(
        **{"num_prototypes": 6, "hidden": (5,), "bottleneck": 4, "warmup_epochs": 2, "freeze_epochs": 1} | kwargs
    )


def built(objective, width=6):
    objective.build((2, None, width))
    objective.built = True
    return objective


def numpy(x):
    return ops.convert_to_numpy(x).copy()


# ---------------------------------------------------------------------- the loss
@pytest.mark.parametrize("views", [2, 5])
def test_value_and_gradient_equal_the_reference(views):
    s, t, c = arrays((views, 4, 6), (2, 4, 6), (6,), scale=0.4)
    settings = {"teacher_logits": t, "center": c, "teacher_temperature": 0.05}
    assert_equal(
        lambda s: losses.dino_loss(student_logits=s, **settings)[0], lambda s: reference(s, t, c, tau_t=0.05)[0], s
    )


def test_logs_equal_the_reference():
    s, t, c = arrays((5, 4, 6), (2, 4, 6), (6,), scale=0.4)
    _, logs = losses.dino_loss(student_logits=s, teacher_logits=t, center=c)
    _, wanted = reference(s, t, c)
    assert set(logs) == set(wanted) == set(objectives.DINO.log_names)
    for name, value in wanted.items():
        assert float(logs[name]) == pytest.approx(value, rel=1e-5), name


def test_no_gradient_reaches_the_teacher_or_the_centre():
    s, t, c = arrays((5, 4, 6), (2, 4, 6), (6,), scale=0.4)
    _, grads = value_and_grad(
        lambda s, t, c: losses.dino_loss(student_logits=s, teacher_logits=t, center=c)[0], s, t, c
    )
    assert np.abs(grads[0]).max() > 0.01
    assert not grads[1].any() and not grads[2].any()


def test_identical_views_leave_the_entropy():
    (x,) = arrays((1, 4, 6), scale=0.3)
    same = np.concatenate([x, x])
    loss, logs = losses.dino_loss(
        student_logits=same, teacher_logits=same, student_temperature=0.1, teacher_temperature=0.1
    )
    assert float(loss) == pytest.approx(float(logs["teacher_entropy"]), rel=1e-5)
    assert float(logs["kl"]) == pytest.approx(0, abs=1e-5)


def test_orthogonal_images_have_the_closed_form():
    """Image b at prototype b: cosine 1 there and 0 elsewhere."""
    classes, tau_s, tau_t = 6, 0.5, 0.25
    eye = np.tile(np.eye(classes, dtype="float32"), (2, 1, 1))
    loss, logs = losses.dino_loss(
        student_logits=eye, teacher_logits=eye, student_temperature=tau_s, teacher_temperature=tau_t
    )
    own = math.exp(1 / tau_t) / (math.exp(1 / tau_t) + classes - 1)
    assert float(loss) == pytest.approx(math.log(math.exp(1 / tau_s) + classes - 1) - own / tau_s, rel=1e-5)
    assert float(logs["effective_classes"]) == pytest.approx(classes, rel=1e-5)


def test_both_collapses_can_be_read_from_the_logs():
    zeros = np.zeros((2, 4, 6), "float32")
    loss, logs = losses.dino_loss(student_logits=zeros, teacher_logits=zeros)
    for value in (loss, logs["teacher_entropy"], logs["marginal_entropy"]):
        assert float(value) == pytest.approx(math.log(6), rel=1e-5)
    assert float(logs["kl"]) == pytest.approx(0, abs=1e-5)
    one = zeros.copy()
    one[..., 3] = 20.0
    loss, logs = losses.dino_loss(student_logits=one, teacher_logits=one)
    for value in (loss, logs["teacher_entropy"], logs["marginal_entropy"], logs["kl"]):
        assert float(value) == pytest.approx(0, abs=1e-5)
    assert float(logs["effective_classes"]) == pytest.approx(1, rel=1e-5)


def test_a_centre_that_is_the_mean_undoes_the_collapse_to_one_prototype():
    one = np.zeros((2, 4, 6), "float32")
    one[..., 3] = 20.0
    _, logs = losses.dino_loss(student_logits=one, teacher_logits=one, center=one[0, 0])
    assert float(logs["effective_classes"]) == pytest.approx(6, rel=1e-5)


def test_two_views_are_the_symmetric_cross_entropy():
    """Multi-crop without small crops is the loss of two views."""
    s, t = arrays((2, 4, 6), (2, 4, 6), scale=0.4)

    def one_way(q, p):
        rows = [(_softmax(a / 0.07) * np.log(_softmax(b / 0.1))).sum() for a, b in zip(q, p, strict=True)]
        return -np.mean(rows)

    loss, _ = losses.dino_loss(student_logits=s, teacher_logits=t)
    assert float(loss) == pytest.approx((one_way(t[0], s[1]) + one_way(t[1], s[0])) / 2, rel=1e-5)


def test_half_precision_logits_are_computed_in_float32():
    s, t = (ops.cast(x, "bfloat16") for x in arrays((2, 4, 6), (2, 4, 6), scale=0.4))
    loss, _ = losses.dino_loss(student_logits=s, teacher_logits=t)
    wanted, _ = reference(numpy(ops.cast(s, "float32")), numpy(ops.cast(t, "float32")))
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"
    assert float(loss) == pytest.approx(wanted, rel=1e-5)


# ---------------------------------------------------------------------- the head
def test_head_is_the_papers():
    head = DINOHead(256)
    head.build((None, 384))
    sizes = [tuple(w.shape) for w in head.weights]
    assert sizes == [(384, 2048), (2048,), (2048, 2048), (2048,), (2048, 256), (256,)]
    kernel = numpy(head.weights[2])
    assert kernel.std() == pytest.approx(0.02, rel=0.01) and not numpy(head.weights[3]).any()


def test_head_computes_linear_gelu_linear():
    head = DINOHead(3, hidden=(5,))
    head.build((None, 4))
    rng = np.random.default_rng(0)
    a, b, c, d = (rng.normal(size=w.shape) for w in head.weights)
    head.set_weights([a, b, c, d])
    x = rng.normal(size=(6, 4))
    hidden = x @ a + b
    gelu = hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2))) / 2
    np.testing.assert_allclose(numpy(head(x.astype("float32"))), gelu @ c + d, rtol=1e-4, atol=1e-5)


def test_batch_norm_stands_between_linear_and_gelu():
    head = DINOHead(3, hidden=(5,), batch_norm=True)
    head.build((None, 4))
    assert [w.path.split("/")[-1] for w in head.trainable_weights] == ["kernel", "gamma", "beta", "kernel", "bias"]
    x = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
    hidden = x @ numpy(head.linears[0].kernel)
    normed = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5)
    gelu = normed * (1 + np.vectorize(math.erf)(normed / math.sqrt(2))) / 2
    wanted = gelu @ numpy(head.linears[1].kernel)
    np.testing.assert_allclose(numpy(head(x, training=True)), wanted, atol=1e-5)


# ---------------------------------------------------------------------- state
def test_centre_is_the_moving_average_of_the_teachers_mean():
    objective, m = built(small(center_momentum=0.8, batch_norm=True)), 0.8
    means, before = [], numpy(objective.center)
    assert not before.any()
    for k in range(4):
        (features,) = arrays((2, 4, 6), seed=k)
        outputs = objective(features, teacher_features=features, training=True)
        # Used first, moved after.
        np.testing.assert_array_equal(numpy(outputs["center"]), before)
        means.append(numpy(outputs["teacher_logits"]).astype("float64").mean(axis=(0, 1)))
        before = numpy(objective.center)
        wanted = sum((1 - m) * m ** (k - i) * mean for i, mean in enumerate(means))
        np.testing.assert_allclose(before, wanted, rtol=1e-5, atol=1e-7)


def test_the_centre_keeps_small_changes_under_any_policy():
    """A mean of 1/512 beside a centre of 1 is lost in bfloat16, whose next number below 1 is 1 - 1/256."""
    objective = built(small(dtype="bfloat16", center_momentum=0.5))
    assert keras.backend.standardize_dtype(objective.center.dtype) == "float32"
    objective.center.assign(np.ones(objective.center.shape))
    features = keras.random.normal((2, 4, 6), seed=0)
    logits = numpy(objective(features, features, training=True)["teacher_logits"])
    np.testing.assert_allclose(numpy(objective.center), 0.5 + 0.5 * logits.mean((0, 1)), rtol=1e-6)


def test_evaluation_moves_nothing():
    objective = built(small(batch_norm=True))
    (features,) = arrays((2, 4, 6))
    objective(features, teacher_features=features, training=True)
    before = [numpy(w) for w in objective.weights]
    outputs = objective(features, teacher_features=features, training=False)
    objective.compute_loss(outputs, 5)
    for weight, value in zip(objective.weights, before, strict=True):
        np.testing.assert_array_equal(numpy(weight), value)


def test_training_leaves_the_teachers_heads_to_the_moving_average():
    objective = built(small(batch_norm=True))
    (features,) = arrays((2, 4, 6))
    teachers = objective.teacher_head.weights + objective.teacher_prototypes.weights
    before = [numpy(w) for w in teachers]
    for theirs, ours in zip(objective.head.weights + objective.prototypes.weights, before, strict=True):
        np.testing.assert_array_equal(numpy(theirs), ours)  # it starts from the student
    objective(features, teacher_features=features, training=True)
    for weight, value in zip(teachers, before, strict=True):
        np.testing.assert_array_equal(numpy(weight), value)
    assert not {id(w) for w in teachers} & {id(w) for w in objective.trainable_weights}


def test_teacher_temperature_warms_up_linearly_by_step():
    objective = built(small(warmup_epochs=5))
    assert float(objective.scheduled_teacher_temperature(3)) == pytest.approx(0.04)  # no run known yet
    objective.set_run_length(10, 4)
    for step, wanted in ((0, 0.04), (1, 0.04 + 0.03 / 20), (7, 0.04 + 0.03 * 7 / 20), (20, 0.07), (39, 0.07)):
        assert float(objective.scheduled_teacher_temperature(step)) == pytest.approx(wanted, rel=1e-5)
    assert built(small(warmup_epochs=0)).scheduled_teacher_temperature(0) == 0.07


def test_the_layers_loss_is_the_loss_of_its_parts():
    """Cosines, centre and the scheduled temperature, with five views, against the reference."""
    objective = built(small(warmup_epochs=2))
    objective.set_run_length(4, 4)
    center = 0.2 * np.random.default_rng(3).normal(size=6).astype("float32")
    objective.center.assign(center)
    views, teacher = arrays((5, 4, 6), (2, 4, 6))
    loss, _ = objective.compute_loss(objective(views, teacher_features=teacher, training=True), 4)

    def cosines(features, head, prototypes):
        z, w = numpy(head(features.reshape(-1, 6))), numpy(prototypes.kernel)
        z, w = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (z.astype("float64"), w.astype("float64")))
        return (z @ w.T).reshape(len(features), 4, 6)

    s = cosines(views, objective.head, objective.prototypes)
    t = cosines(teacher, objective.teacher_head, objective.teacher_prototypes)
    assert float(numpy(loss)) == pytest.approx(reference(s, t, center, tau_t=0.055)[0], rel=1e-5)


# ---------------------------------------------------------------------- a run
class Weights(keras.callbacks.Callback):
    """The weights of layers after each step, and before the first."""

    def __init__(self, *layers):
        super().__init__()
        self.layers, self.seen = layers, []

    def note(self):
        _ = self.model  # on JAX, brings the variables up to date
        self.seen.append([[numpy(w).astype("float64") for w in layer.weights] for layer in self.layers])

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


def test_a_run_freezes_prototypes_and_moves_the_teacher_by_closed_form():
    objective = small(teacher_momentum=(0.5, 1.0), batch_norm=True)
    model = pretrainer(objective)
    model.compile(keras.optimizers.SGD(0.5))
    students, teachers = (objective.head, objective.prototypes), (objective.teacher_head, objective.teacher_prototypes)
    weights = Weights(*students, *teachers)
    history = model.fit(IMAGES, batch_size=8, epochs=3, verbose=0, callbacks=[weights]).history
    assert np.isfinite(history["loss"]).all()

    prototypes = [seen[1][0] for seen in weights.seen]  # frozen for an epoch, two steps
    np.testing.assert_array_equal(prototypes[1], prototypes[0])
    np.testing.assert_array_equal(prototypes[2], prototypes[0])
    assert all(np.abs(after - prototypes[0]).max() > 1e-4 for after in prototypes[3:])
    assert np.abs(weights.seen[1][0][0] - weights.seen[0][0][0]).max() > 1e-6  # the head below is not

    steps = 6
    m = [1 - 0.5 * (math.cos(math.pi * k / steps) + 1) / 2 for k in range(steps)]
    for n in range(steps + 1):  # after n steps the teacher holds the average of the students before the last one
        moves = max(n - 1, 0)
        for student, teacher in ((0, 2), (1, 3)):
            for w in range(len(weights.seen[0][student])):
                wanted = weights.seen[0][student][w] * math.prod(m[:moves])
                for k in range(moves):
                    wanted = wanted + (1 - m[k]) * math.prod(m[k + 1 : moves]) * weights.seen[k + 1][student][w]
                np.testing.assert_allclose(weights.seen[n][teacher][w], wanted, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------- configuration and bad input
def test_config_round_trip():
    objective = small(teacher_momentum=0.9, batch_norm=True, freeze_epochs=2, probe="mlp", heads="small_images")
    config = keras.saving.serialize_keras_object(objective)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is objectives.DINO and again.get_config() == objective.get_config()
    assert objectives.DINO().get_config()["teacher_momentum"] == (0.996, 1.0)
    head = DINOHead(4, hidden=[5, 6])
    assert DINOHead.from_config(head.get_config()).hidden == (5, 6)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda z: losses.dino_loss(student_logits=z[0], teacher_logits=z), "views first"),
        (lambda z: losses.dino_loss(student_logits=z[:1], teacher_logits=z[:1]), "at least 2 views"),
        (lambda z: losses.dino_loss(student_logits=z, teacher_logits=z[..., :2]), "prototypes C"),
        (lambda z: losses.dino_loss(student_logits=z, teacher_logits=z[:, :2]), "one batch size"),
        (lambda z: losses.dino_loss(student_logits=z[:2], teacher_logits=z), "V ≥ T"),
        (lambda z: losses.dino_loss(student_logits=z, teacher_logits=z, student_temperature=0), "student_temperature"),
        (lambda z: losses.dino_loss(student_logits=z, teacher_logits=z, teacher_temperature=-1), "teacher_temperature"),
        (lambda z: small(num_prototypes=0), "`num_prototypes`"),
        (lambda z: small(teacher_temperature=float("nan")), "`teacher_temperature`"),
        (lambda z: small(center_momentum=1.1), "`center_momentum`"),
        (lambda z: small(teacher_momentum=None), "`teacher_momentum`"),
        (lambda z: small(teacher_momentum=(0.9, 1.2)), "`teacher_momentum`"),
        (lambda z: small(warmup_epochs=-1), "`warmup_epochs`"),
        (lambda z: small(freeze_epochs=-1), "`freeze_epochs`"),
        (lambda z: small(heads="he"), "`heads`"),
        (lambda z: built(small(hidden=(0,))), "positive integers"),
        (lambda z: built(small())(np.ones((2, 4, 6), "float32")), "`teacher_features`"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(np.ones((3, 4, 6), "float32"))


def test_a_run_too_short_for_the_schedules_is_refused():
    model = pretrainer(small(warmup_epochs=5))
    model.compile("sgd")
    with pytest.raises(ValueError, match=r"`warmup_epochs`.*warmup_epochs=5, epochs=4.*smaller"):
        model.fit(IMAGES, batch_size=8, epochs=4, verbose=0)
    run = {"batch_size": None, "steps_per_epoch": None}
    with pytest.raises(ValueError, match=r"`freeze_epochs`.*freeze_epochs=3, epochs=3.*smaller"):
        small(freeze_epochs=3).check_run(epochs=3, **run)
    small(warmup_epochs=3, freeze_epochs=2).check_run(epochs=3, **run)
    small().check_run(epochs=None, **run)
