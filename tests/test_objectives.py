import keras
import numpy as np
import pytest
import reference
from gradients import arrays, assert_equal, value_and_grad
from keras import ops

from keras_issl import losses, objectives
from keras_issl.heads import LinearHead, MLPHead


# ---------------------------------------------------------------------- pure losses
@pytest.mark.parametrize("views", [2, 5])
@pytest.mark.parametrize("weights", [(2.3, 0.8), (0.0, 0.0), (1.0, 4.0)])
def test_dissl_loss_equals_reference(views, weights):
    lam, beta = weights
    t, s = arrays((2, 4, 6), (views, 4, 6))

    def loss(t, s):
        return losses.dissl_loss(teacher_logits=t, student_logits=s, maximality_weight=lam, invariance_weight=beta)[0]

    assert_equal(loss, lambda t, s: reference.dissl(t, s, lam=lam, beta=beta)[0], t, s)


def test_dissl_loss_with_three_teachers_and_other_temperatures():
    t, s = arrays((3, 4, 5), (4, 4, 5))

    def loss(t, s):
        return losses.dissl_loss(teacher_logits=t, student_logits=s, teacher_temperature=0.9, student_temperature=2.0)[
            0
        ]

    assert_equal(loss, lambda t, s: reference.dissl(t, s, tau_t=0.9, tau_s=2.0)[0], t, s)


@pytest.mark.parametrize("tau", [0.07, 1.0])
def test_cissl_loss_equals_reference(tau):
    s, t = arrays((2, 4, 6), (2, 4, 6))
    assert_equal(
        lambda s, t: losses.cissl_loss(student=s, teacher=t, temperature=tau),
        lambda s, t: reference.cissl(s, t, tau),
        s,
        t,
    )


@pytest.mark.parametrize("tau", [0.07, 1.0])
def test_simclr_loss_equals_reference(tau):
    (z,) = arrays((2, 4, 6))
    assert_equal(lambda z: losses.simclr_loss(z, temperature=tau), lambda z: reference.simclr(z, tau), z)


def test_dissl_logs_equal_reference():
    t, s = arrays((2, 7, 5), (4, 7, 5))
    _, logs = losses.dissl_loss(teacher_logits=t, student_logits=s)
    _, wanted = reference.dissl(t, s)
    assert set(logs) == set(wanted) == set(objectives.DISSL.log_names)
    for name, value in wanted.items():
        assert float(logs[name]) == pytest.approx(value, rel=1e-5, abs=1e-5), name


def test_dissl_large_logits_stay_finite_and_classes_without_probability_have_a_gradient():
    t, s = arrays((2, 4, 16), (2, 4, 16), scale=300.0)
    value, grads = value_and_grad(lambda t, s: losses.dissl_loss(teacher_logits=t, student_logits=s)[0], t, s)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in grads)


def test_dissl_uniform_teacher_has_the_closed_form():
    classes = 32
    zeros = np.zeros((2, 8, classes), "float32")
    loss, logs = losses.dissl_loss(teacher_logits=zeros, student_logits=zeros)
    assert float(loss) == pytest.approx((1 + 0.8 - 2.3) * np.log(classes), rel=1e-6)
    assert float(logs["marginal_entropy"]) == pytest.approx(np.log(classes), rel=1e-6)
    assert float(logs["effective_classes"]) == pytest.approx(classes, rel=1e-5)


def test_dissl_one_class_has_loss_zero():
    logits = np.zeros((2, 8, 32), "float32")
    logits[..., 3] = 200.0
    loss, logs = losses.dissl_loss(teacher_logits=logits, student_logits=logits)
    assert float(loss) == pytest.approx(0, abs=1e-5)
    assert float(logs["effective_classes"]) == pytest.approx(1, abs=1e-5)


def test_dissl_ideal_assignment_reaches_the_bound():
    """One class an image, invariant and certain: H(M) = log B, both divergences 0."""
    batch, classes = 8, 32
    logits = np.tile(200 * np.eye(classes, dtype="float32")[:batch], (2, 1, 1))
    loss, logs = losses.dissl_loss(teacher_logits=logits, student_logits=logits)
    assert float(loss) == pytest.approx(-2.3 * np.log(batch), rel=1e-5)
    assert float(logs["marginal_entropy"]) == pytest.approx(float(logs["marginal_entropy_bound"]), rel=1e-5)
    assert float(logs["kl_invariance"]) == pytest.approx(0, abs=1e-4)


def test_dissl_is_blind_to_the_order_of_images_and_classes():
    t, s = arrays((2, 6, 5), (3, 6, 5))
    plain = losses.dissl_loss(teacher_logits=t, student_logits=s)[0]
    rows, columns = np.random.default_rng(1).permutation(6), np.random.default_rng(2).permutation(5)
    t2, s2 = t[:, rows][..., columns], s[:, rows][..., columns]
    shuffled = losses.dissl_loss(teacher_logits=t2, student_logits=s2)[0]
    assert float(plain) == pytest.approx(float(shuffled), rel=1e-5)


def test_contrastive_closed_forms():
    """Identical embeddings: every logit is equal. Orthogonal images: only own and positive are at 1/τ."""
    batch, tau = 6, 0.5
    same = np.ones((2, batch, 4), "float32")
    assert float(losses.simclr_loss(same)) == pytest.approx(np.log(2 * batch - 1), rel=1e-4)
    assert float(losses.cissl_loss(student=same, teacher=same)) == pytest.approx(np.log(2 * batch), rel=1e-4)
    eye = np.tile(np.eye(batch, dtype="float32"), (2, 1, 1))
    e = np.exp(1 / tau)
    assert float(losses.cissl_loss(student=eye, teacher=eye, temperature=tau)) == pytest.approx(
        np.log(2 * e + 2 * batch - 2) - 1 / tau, rel=1e-5
    )
    assert float(losses.simclr_loss(eye, temperature=tau)) == pytest.approx(
        np.log(e + 2 * batch - 2) - 1 / tau, rel=1e-5
    )


def test_contrastive_losses_ignore_the_length_of_projections():
    s, t = arrays((2, 5, 4), (2, 5, 4))
    assert float(losses.cissl_loss(student=s, teacher=t)) == pytest.approx(
        float(losses.cissl_loss(student=7 * s, teacher=0.3 * t)), rel=1e-5
    )


def test_losses_compute_in_float32_from_bfloat16():
    t, s = (ops.cast(a, "bfloat16") for a in arrays((2, 4, 6), (2, 4, 6)))
    loss, logs = losses.dissl_loss(teacher_logits=t, student_logits=s)
    for value in (loss, *logs.values(), losses.cissl_loss(student=s, teacher=t), losses.simclr_loss(t)):
        assert keras.backend.standardize_dtype(value.dtype) == "float32"
    t32, s32 = (ops.convert_to_numpy(ops.cast(a, "float32")) for a in (t, s))
    assert float(loss) == pytest.approx(reference.dissl(t32, s32)[0], rel=1e-5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda z: losses.simclr_loss(z[:, :1]), "batch of at least 2"),
        (lambda z: losses.cissl_loss(student=z[:, :1], teacher=z[:, :1]), "batch of at least 2"),
        (lambda z: losses.simclr_loss(z[:1]), "at least 2 views"),
        (lambda z: losses.simclr_loss(z[0]), "views first"),
        (lambda z: losses.simclr_loss(z, temperature=0.0), "`temperature`"),
        (lambda z: losses.cissl_loss(student=z, teacher=z[..., :2]), "one shape"),
        (lambda z: losses.dissl_loss(teacher_logits=z[:, :1], student_logits=z), "one batch size"),
        (lambda z: losses.cissl_loss(student=z, teacher=z[:, :3]), "one shape"),
        (lambda z: losses.dissl_loss(teacher_logits=z[:1], student_logits=z), "`teacher_logits`"),
        (lambda z: losses.dissl_loss(teacher_logits=z, student_logits=z[..., :2]), "classes C"),
        (lambda z: losses.dissl_loss(teacher_logits=z, student_logits=z, teacher_temperature=-1), "temperature"),
        (lambda z: objectives.DISSL(num_classes=0), "`num_classes`"),
        (lambda z: objectives.DISSL(probe="forest"), "`probe`"),
        (lambda z: objectives.CISSL(temperature=float("nan")), "`temperature`"),
        (lambda z: objectives.SimCLR(heads="he"), "`heads`"),
        (lambda z: MLPHead(10, hidden=(0,)), "positive integers"),
        (lambda z: MLPHead(10, hidden=((4, 5),)).build((None, 8)), "residual block"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(np.ones((2, 4, 3), "float32"))


# ---------------------------------------------------------------------- heads
def count(head, width):
    head.build((None, width))
    return sum(int(np.prod(w.shape)) for w in head.trainable_weights)


@pytest.mark.backend_independent
def test_head_sizes_are_the_papers():
    d, c, bn = 512, 1000, 2
    dissl = objectives.DISSL(num_classes=c)
    dissl.build((2, None, d))
    size = lambda head: sum(int(np.prod(w.shape)) for w in head.trainable_weights)  # noqa: E731
    assert size(dissl.teacher_head) == d * 1024 + bn * 1024 + 1024 * 512 + bn * 512 + 512 * c + c
    assert size(dissl.student_head) == d * 512 + bn * 512 + 512 * c + c
    cissl = objectives.CISSL()
    cissl.build((2, None, d))
    assert size(cissl.teacher_head) == d * 1024 + bn * 1024 + 1024 * 128 + 128 + bn * 128
    assert size(cissl.student_head) == d * 128 + 128 + bn * 128

    dissl = objectives.DISSL(num_classes=c, heads="imagenet")
    dissl.build((2, None, 2048))
    block = 2048 * 2048 + bn * 2048
    assert size(dissl.teacher_head) == 2 * block + 2048 * 512 + bn * 512 + 512 * c + c
    dissl = objectives.DISSL(num_classes=c, heads="imagenet")
    dissl.build((2, None, 8192))
    residual = 512 * 2048 + bn * 2048 + block + 2048 * 512 + bn * 512
    assert size(dissl.teacher_head) == 8192 * 512 + bn * 512 + residual + 512 * c + c
    cissl = objectives.CISSL(heads="imagenet")
    cissl.build((2, None, 2048))
    assert size(cissl.teacher_head) == 2 * block + 2048 * 128 + 128  # the last offset is frozen at zero
    assert size(cissl.student_head) == 2048 * 128 + bn * 128


@pytest.mark.backend_independent
def test_mlp_probe_heads_keep_a_teacher_that_was_asked_for():
    for objective in (objectives.DISSL(num_classes=8, probe="mlp", teacher_hidden=(32,)),
                      objectives.CISSL(probe="mlp", hidden=(32,))):  # fmt: skip
        objective.build((2, None, 16))
        assert objective.teacher_head.hidden == (32,)
        assert objective.student_head.hidden == (2048, 2048)


def test_residual_block_adds_its_input():
    head = MLPHead(3, hidden=((4, 4),))
    head.build((None, 4))
    for block in head.blocks[0]:
        block.linear.kernel.assign(np.zeros((4, 4)))
    x = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
    expected = head.output_layer(x)
    np.testing.assert_allclose(ops.convert_to_numpy(head(x)), ops.convert_to_numpy(expected), atol=1e-6)


def test_linear_head_is_affine_at_inference():
    head = LinearHead(5, rank=3)
    head.build((None, 4))
    x, y = np.random.default_rng(0).normal(size=(2, 6, 4)).astype("float32")
    f = lambda a: ops.convert_to_numpy(head(a, training=False))  # noqa: E731
    np.testing.assert_allclose(f(0.3 * x + 0.7 * y), 0.3 * f(x) + 0.7 * f(y), atol=1e-5)


def test_initial_values_follow_the_recipes():
    small = LinearHead(2000, rank=512)
    small.build((None, 512))
    kernel = ops.convert_to_numpy(small.output_layer.kernel)
    assert kernel.std() == pytest.approx(0.02, rel=0.01)
    assert not ops.convert_to_numpy(small.output_layer.bias).any()
    torch_like = LinearHead(2000, rank=512, initialization="imagenet")
    torch_like.build((None, 512))
    kernel = ops.convert_to_numpy(torch_like.output_layer.kernel)
    assert np.abs(kernel).max() == pytest.approx(512**-0.5, rel=1e-3)
    assert np.abs(ops.convert_to_numpy(torch_like.output_layer.bias)).max() == pytest.approx(512**-0.5, rel=0.01)


# ---------------------------------------------------------------------- several views, metrics
def test_multi_crop_outputs():
    objective = objectives.DISSL(num_classes=24, teacher_hidden=(32,), bottleneck=16)
    objective.build((5, None, 16))
    outputs = objective(keras.random.normal((5, 8, 16), seed=0), training=True)
    assert tuple(outputs["teacher_logits"].shape) == (2, 8, 24)
    assert tuple(outputs["student_logits"].shape) == (5, 8, 24)


def test_distinct_classes_counts_once():
    metric = objectives.dissl.DistinctClasses(10)
    metric.update_state(ops.convert_to_tensor([1, 1, 4], dtype="int32"))
    metric.update_state(ops.convert_to_tensor([4, 9], dtype="int32"))
    assert float(metric.result()) == 3
    metric.reset_state()
    assert float(metric.result()) == 0
