"""Less memory, the same numbers: losses in chunks of images, and encoders whose activations are computed again."""

import functools
import hashlib
import json

import keras
import members
import numpy as np
import pytest
from gradients import arrays, value_and_grad
from keras import layers, ops

import keras_issl
from keras_issl import distribution, encoders, losses, objectives
from keras_issl.diagnostics.teacher import assignments
from keras_issl.heads import LinearHead

BACKEND = keras.config.backend()
# Of 10 images: one each, not dividing, more than all. XLA compiles each for seconds.
SIZES = (4,) if BACKEND == "jax" else (1, 4, 64)
IMAGES = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype="uint8")


# ---------------------------------------------------------------------- pure losses
def same(plain, chunked, *tensors):
    value, gradients = value_and_grad(plain, *tensors)
    found, others = value_and_grad(chunked, *tensors)
    assert found == pytest.approx(value, rel=1e-6, abs=1e-6)
    for a, b in zip(gradients, others, strict=True):
        assert np.linalg.norm(a) > 0
        np.testing.assert_allclose(b, a, atol=2e-6 * max(np.abs(a).max(), 1e-3), rtol=1e-4)


def last_layers(views=3, batch=10, k=4, classes=6):
    """What the last layers of two teacher views and some student views take, and their weights."""
    return arrays((2, batch, k), (views, batch, k + 1), (k, classes), (classes,), (k + 1, classes), scale=1.0)


def dissl(*tensors, **arguments):
    x, y, kernel, bias, other = map(ops.convert_to_tensor, tensors)
    if "chunk_size" in arguments:
        pairs = {"teacher_output": (kernel, bias), "student_output": (other, None)}
        return losses.chunked_dissl_loss(teacher=x, student=y, **pairs, **arguments)
    logits = {"teacher_logits": ops.matmul(x, kernel) + bias, "student_logits": ops.matmul(y, other)}
    return losses.dissl_loss(**logits, **arguments)


@pytest.mark.parametrize("size", SIZES)
def test_dissl_in_chunks_has_the_loss_and_the_gradients_of_the_whole(size):
    weights = {"teacher_temperature": 0.7, "student_temperature": 1.3, "maximality_weight": 3.0}
    same(
        lambda *x: dissl(*x, **weights)[0],
        lambda *x: dissl(*x, **weights, chunk_size=size)[0],
        *last_layers(),
    )


def test_dissl_in_chunks_reports_the_same_and_counts_the_winners():
    tensors = last_layers()
    _, wanted = dissl(*tensors)
    _, logs, counts = dissl(*tensors, chunk_size=4)
    assert logs.keys() == wanted.keys() == set(objectives.DISSL.log_names)
    for name, value in wanted.items():
        assert float(logs[name]) == pytest.approx(float(value), rel=1e-5, abs=1e-6), name
    winners = (tensors[0] @ tensors[2] + tensors[3]).argmax(-1)
    np.testing.assert_array_equal(ops.convert_to_numpy(counts), np.bincount(winners.ravel(), minlength=6))


@pytest.mark.parametrize("size", SIZES)
def test_contrastive_losses_in_chunks_have_the_loss_and_the_gradients_of_the_whole(size):
    s, t = arrays((2, 10, 6), (2, 10, 6), scale=1.0)
    same(lambda s, t: losses.cissl_loss(student=s, teacher=t),
         lambda s, t: losses.cissl_loss(student=s, teacher=t, chunk_size=size), s, t)  # fmt: skip
    same(lambda z: losses.simclr_loss(z), lambda z: losses.simclr_loss(z, chunk_size=size), s)


def test_sum_chunks_gives_no_gradient_to_integers_and_sees_each_row_once():
    x, order = arrays((7, 2))[0], np.arange(7, dtype="int32")

    def total(x):
        def of_rows(x, i):
            return ops.sum(x * ops.cast(i, "float32")[:, None]), ops.sum(ops.cast(i, "float32"))

        first, second = distribution.sum_chunks(of_rows, [x, order], chunk_size=3)
        return first + 0.0 * second

    value, (gradient,) = value_and_grad(total, x)
    assert value == pytest.approx((x * order[:, None]).sum(), rel=1e-5)
    np.testing.assert_allclose(gradient, np.repeat(order[:, None], 2, 1))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only there the size of a batch may be unknown")
def test_a_batch_of_unknown_size_on_tensorflow():
    import tensorflow as tf

    (z,) = arrays((2, 10, 6), scale=1.0)

    @tf.function(input_signature=[tf.TensorSpec((2, None, 6))])
    def step(z):
        with tf.GradientTape() as tape:
            tape.watch(z)
            loss = losses.simclr_loss(z, chunk_size=4)
        return loss, tape.gradient(loss, z)

    for batch in (10, 8, 3):
        value, (gradient,) = value_and_grad(losses.simclr_loss, z[:, :batch])
        found, other = step(z[:, :batch])
        assert float(found) == pytest.approx(value, rel=1e-6)
        np.testing.assert_allclose(other, gradient, atol=1e-6)


@pytest.mark.skipif(BACKEND != "jax", reason="its compiler tells what it plans")
@pytest.mark.parametrize("kind", ["dissl", "simclr"])
def test_the_compiler_plans_less_memory(kind):
    import jax

    shape = jax.ShapeDtypeStruct((2, 256, 32), "float32")
    kernel = jax.ShapeDtypeStruct((32, 1024), "float32")

    def planned(chunk):
        if kind == "simclr":
            loss, arguments = lambda z: losses.simclr_loss(z, chunk_size=chunk), [shape]
        else:
            more = {} if chunk is None else {"chunk_size": chunk}
            loss = lambda x, y, a, b: dissl(x, y, a, ops.zeros(1024), b, **more)[0]  # noqa: E731
            arguments = [shape, shape, kernel, kernel]
        gradient = jax.jit(jax.grad(loss, argnums=tuple(range(len(arguments)))))
        return gradient.lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    assert planned(16) < 0.5 * planned(None)


# ---------------------------------------------------------------------- training
def pretrainer(objective="DISSL", *, make=None, remat=False, policy="float32", **arguments):
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    encoder = make() if make else encoders.ResNet(blocks=(1, 1), width=4, image_size=8, stem="cifar")
    return keras_issl.Pretrainer(encoder, members.SMALL[objective](**arguments), remat=remat)


def trained(model):
    """All weights after three steps of SGD, and the logs."""
    model.compile(keras.optimizers.SGD(0.01))
    history = model.fit(IMAGES, batch_size=8, shuffle=False, verbose=0).history
    return [np.asarray(ops.convert_to_numpy(w), "float64") for w in model.weights], history


@functools.cache
def plainly(objective="DISSL", make=None, policy="float32"):
    """As `trained`, without the switches."""
    return trained(pretrainer(objective, make=make, policy=policy))


def assert_trained_alike(found, wanted, tolerance=1e-5):
    (weights, history), (others, expected) = found, wanted
    assert history.keys() == expected.keys()
    for name, values in expected.items():
        assert history[name] == pytest.approx(values, rel=1e-4, abs=1e-5), name
    for a, b in zip(weights, others, strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("objective", ["DISSL", "CISSL"])
def test_weights_after_three_steps_are_those_of_the_whole_batch(objective):
    assert_trained_alike(trained(pretrainer(objective, chunk_size=5)), plainly(objective))


def test_in_lower_precision_logits_are_rounded_as_without_chunks():
    keras.config.set_dtype_policy("mixed_bfloat16")
    objective = members.SMALL["DISSL"](chunk_size=3)
    outputs = objective(4 * keras.random.normal((2, 10, 8), seed=0), training=True)
    for head in (objective.teacher_head, objective.student_head):  # large logits, whose rounding shows
        head.output_layer.kernel.assign(2 * keras.random.normal((8, 12), seed=1))
    found, _ = objective.compute_loss(outputs, 0)
    wanted, _ = losses.dissl_loss(**objective.logits(outputs))
    assert float(ops.stop_gradient(found)) == pytest.approx(float(ops.stop_gradient(wanted)), rel=1e-6)


def test_evaluation_and_class_assignments_are_the_same():
    model, plain = pretrainer(chunk_size=5), pretrainer()
    for objective in (model.objective, plain.objective):
        objective.teacher_head.output_layer.bias.assign(np.arange(12) / 12)
    for each in (model, plain):
        each.compile("sgd")
    scores = [each.evaluate(IMAGES, batch_size=8, verbose=0, return_dict=True) for each in (model, plain)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5, abs=1e-5)
    views = np.random.default_rng(1).normal(size=(2, 5, 8))
    found = assignments(model.objective, views, batch_size=4)
    np.testing.assert_allclose(found, assignments(plain.objective, views, batch_size=4), atol=1e-6)


# ---------------------------------------------------------------------- activations computed again
def branching():
    """A network with random states, shared by no block, and without this library's layers."""
    images = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, strides=2)(layers.Rescaling(1 / 255)(images))
    for seed in (1, 2):
        y = layers.BatchNormalization()(layers.Dropout(0.3, seed=seed)(layers.Conv2D(8, 3, padding="same")(x)))
        x = layers.Add()([x, y])
    return encoders.Adapter(keras.Model(images, layers.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize(("make", "policy"), [(None, "float32"), (branching, "float32"), (branching, "mixed_bfloat16")])
def test_remat_trains_the_same_weights_and_moving_statistics(make, policy):
    """Moving statistics and random states are among the weights: they move once a step."""
    plain, model = plainly(make=make, policy=policy), pretrainer(make=make, policy=policy, remat=True)
    again = trained(model)
    assert len(model._remat.segments) >= 3
    if policy == "float32":
        assert_trained_alike(again, plain)
    for a, b in zip(again[0], plain[0], strict=True):  # XLA rounds to bfloat16 elsewhere once it computes again
        np.testing.assert_allclose(a, b, atol=1e-5 if policy == "float32" else 2e-3)


def test_remat_and_chunks_together():
    assert_trained_alike(trained(pretrainer(chunk_size=3, remat=True)), plainly())


@pytest.mark.skipif(BACKEND == "tensorflow", reason="a tape does not tell what it keeps")
def test_remat_keeps_less_for_the_backward_pass():
    encoder = encoders.ResNet(18, width=8, image_size=32)
    kept = [_kept(forward, encoder) for forward in (encoder, encoders.Remat(encoder))]
    weights = sum(4 * np.prod(w.shape) for w in encoder.weights)
    assert kept[1] - weights < 0.4 * (kept[0] - weights)


def _kept(forward, encoder):
    """Bytes that the forward pass of 64 images keeps, weights among them."""
    images = np.zeros((64, 32, 32, 3), "float32")
    if BACKEND == "torch":
        import torch

        found = {}

        def pack(x):
            found[x.untyped_storage().data_ptr()] = (x.untyped_storage().nbytes(), x)
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            outputs = forward(images, training=True)
        assert outputs.requires_grad
        return sum(size for size, _ in found.values())  # a checkpoint shows its inputs to these hooks, and no more
    if BACKEND == "jax":
        import jax

        def backward(trained, images):
            state = [(v, v.value) for v in encoder.non_trainable_variables]

            def loss(trained):
                mapping = [*zip(encoder.trainable_variables, trained, strict=True), *state]
                with keras.StatelessScope(mapping):
                    return ops.sum(forward(images, training=True) ** 2)

            return jax.vjp(loss, trained)[1]

        leaves = jax.tree.leaves(jax.eval_shape(backward, [v.value for v in encoder.trainable_variables], images))
        return sum(x.size * x.dtype.itemsize for x in leaves)
    raise NotImplementedError(BACKEND)


# ---------------------------------------------------------------------- refusals, configurations
@pytest.mark.parametrize("size", [0, -1, 2.5, True, "all"])
def test_a_chunk_size_is_a_positive_integer(size):
    for make in (objectives.DISSL, objectives.CISSL, objectives.SimCLR):
        with pytest.raises(ValueError, match="`chunk_size` should be None.*Received"):
            make(chunk_size=size)
    with pytest.raises(ValueError, match="`chunk_size`"):
        losses.simclr_loss(np.ones((2, 4, 3), "float32"), chunk_size=size)


@pytest.mark.parametrize(
    ("probe", "reason"),
    [
        (lambda: LinearHead(12, rank=4, output_norm=True), "ends in a batch normalisation"),
        (lambda: keras.Sequential([layers.Dense(12)]), "of its own kind"),
    ],
)
def test_heads_that_need_the_whole_batch_are_refused(probe, reason):
    objective = objectives.DISSL(num_classes=12, bottleneck=4, probe=probe(), chunk_size=4)
    with pytest.raises(ValueError, match=f"`chunk_size` should be None with this `probe`.*{reason}"):
        objective.build((2, None, 8))


def test_a_head_of_ours_is_taken():
    objective = objectives.DISSL(num_classes=12, bottleneck=4, probe=LinearHead(12, rank=4), chunk_size=4)
    loss, _ = objective.compute_loss(objective(np.ones((2, 8, 8), "float32"), training=True), 0)
    assert np.isfinite(float(ops.stop_gradient(loss)))


def test_unequal_shapes_are_refused():
    x, y, kernel, bias, other = last_layers()
    with pytest.raises(ValueError, match=r"one batch size B, V ≥ T.*Received shapes: \(2, 10, 4\), \(3, 9, 5\)"):
        dissl(x, y[:, :9], kernel, bias, other, chunk_size=3)


class Own(keras.Model):
    """A subclassed encoder, which nothing can be cut in."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(4)

    def call(self, images):
        return self.dense(ops.mean(ops.cast(images, "float32"), axis=(1, 2)))


def test_encoders_without_blocks_are_refused():
    own = Own()
    own(IMAGES[:2])
    with pytest.raises(ValueError, match="`remat` should be False for an encoder that is not a functional model"):
        keras_issl.Pretrainer(own, objectives.SimCLR(output_dim=4, hidden=(4,)), remat=True)


def test_losses_of_layers_are_refused():
    images = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activity_regularizer="l2")(images)
    x = layers.Add()([x, layers.ReLU()(x)])
    forward = encoders.Remat(keras.Model(images, layers.GlobalAveragePooling2D()(x)))
    with pytest.raises(ValueError, match="whose layers add losses"):
        forward(IMAGES[:2].astype("float32"), training=True)


def test_a_chain_is_cut_at_each_operation():
    images = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3)(images)
    model = keras.Model(images, layers.GlobalAveragePooling2D()(layers.BatchNormalization()(x)))
    assert encoders.Remat(model).num_blocks == 3
    assert encoders.Remat(encoders.ResNet(18)).num_blocks == 9


def test_configurations_survive_and_presets_do_not_know_of_remat(tmp_path):
    for name in ("DISSL", "CISSL", "SimCLR"):
        objective = members.SMALL[name](chunk_size=7)
        assert type(objective).from_config(objective.get_config()).chunk_size == 7
    model = pretrainer(chunk_size=7, remat=True)
    again = keras_issl.Pretrainer.from_config(json.loads(json.dumps(model.get_config())))
    assert again.objective.chunk_size == 7 and again._remat is not None
    assert "remat" not in pretrainer().get_config()
    keras_issl.save_preset(model.encoder, tmp_path / "new", objective=model.objective)
    assert "remat" not in (tmp_path / "new" / "config.json").read_text()
    assert keras_issl.load_objective(tmp_path / "new").chunk_size == 7
    assert type(keras_issl.from_preset(tmp_path / "new")) is encoders.ResNet


@pytest.mark.backend_independent
def test_presets_from_before_chunks_load(tmp_path):
    model = pretrainer()
    keras_issl.save_preset(model.encoder, tmp_path / "old", objective=model.objective)
    described = json.loads((tmp_path / "old" / "objective.json").read_text())
    del described["config"]["chunk_size"]
    (tmp_path / "old" / "objective.json").write_text(json.dumps(described))
    metadata = json.loads((tmp_path / "old" / "metadata.json").read_text())
    metadata["files"]["objective.json"] = _described(tmp_path / "old" / "objective.json")
    (tmp_path / "old" / "metadata.json").write_text(json.dumps(metadata))
    assert keras_issl.load_objective(tmp_path / "old").chunk_size is None


def _described(path):
    return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
