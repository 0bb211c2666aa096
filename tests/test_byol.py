"""BYOL and SimSiam against float64 references written from the papers' equations."""

import keras
import numpy as np
import pytest
from gradients import arrays, assert_equal, value_and_grad
from keras import ops
from members import SMALL

import keras_issl
from keras_issl import losses, objectives


def cosine(a, b):
    return (a @ b) / np.sqrt((a @ a) * (b @ b))


def byol(predictions, targets):
    """Grill et al. 2020, equation 2 and the sentence after it: each view once through the online network."""
    total = 0.0
    for b in range(predictions.shape[1]):
        total += 2 - 2 * cosine(predictions[0, b], targets[1, b])
        total += 2 - 2 * cosine(predictions[1, b], targets[0, b])
    return total / predictions.shape[1]


def simsiam(predictions, projections):
    """Chen & He 2021, equations 1 and 2, with the stop-gradient of 4 left to whoever differentiates."""
    batch = predictions.shape[1]
    total = 0.0
    for b in range(batch):
        total += -0.5 * cosine(predictions[0, b], projections[1, b]) - 0.5 * cosine(
            predictions[1, b], projections[0, b]
        )
    return total / batch


LOSSES = {
    "byol": (lambda p, t: losses.byol_loss(predictions=p, targets=t), byol),
    "simsiam": (lambda p, t: losses.simsiam_loss(predictions=p, projections=t), simsiam),
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss_equals_reference(name):
    loss, expected = LOSSES[name]
    p, t = arrays((2, 4, 6), (2, 4, 6))
    assert_equal(lambda p: loss(p, t), lambda p: expected(p, t.astype("float64")), p)


@pytest.mark.parametrize("name", LOSSES)
def test_targets_get_no_gradient(name):
    p, t = arrays((2, 4, 6), (2, 4, 6))
    _, (gradient, stopped) = value_and_grad(LOSSES[name][0], p, t)
    assert np.abs(gradient).max() > 0
    assert not stopped.any()


def test_closed_forms():
    (z,) = arrays((2, 4, 6))
    other = np.flip(z, axis=0)  # what predicts the other view perfectly
    assert float(losses.byol_loss(predictions=other, targets=7 * z)) == pytest.approx(0, abs=2e-6)
    assert float(losses.byol_loss(predictions=-other, targets=z)) == pytest.approx(8, rel=1e-6)
    assert float(losses.simsiam_loss(predictions=3 * other, projections=z)) == pytest.approx(-1, rel=1e-6)
    eye = np.tile(np.eye(4, 6, dtype="float32"), (2, 1, 1))
    orthogonal = np.roll(eye, 1, axis=1)
    assert float(losses.byol_loss(predictions=orthogonal, targets=eye)) == pytest.approx(4)
    assert float(losses.simsiam_loss(predictions=orthogonal, projections=eye)) == pytest.approx(0, abs=1e-7)


def test_losses_are_blind_to_the_order_of_images_and_views_and_to_lengths():
    p, t = arrays((2, 4, 6), (2, 4, 6))
    rows = [2, 0, 3, 1]
    for loss, _ in LOSSES.values():
        plain = float(loss(p, t))
        assert float(loss(p[:, rows], t[:, rows])) == pytest.approx(plain, rel=1e-5)
        assert float(loss(p[::-1].copy(), t[::-1].copy())) == pytest.approx(plain, rel=1e-5)
        assert float(loss(0.2 * p, 9 * t)) == pytest.approx(plain, rel=1e-5)
    # Both are affine functions of one mean cosine.
    assert float(losses.byol_loss(predictions=p, targets=t)) == pytest.approx(
        4 + 4 * float(losses.simsiam_loss(predictions=p, projections=t)), rel=1e-5
    )


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_collapsed_projections_have_finite_gradients(value):
    same = np.full((2, 4, 6), value, "float32")
    for loss, _ in LOSSES.values():
        result, gradients = value_and_grad(loss, same, same)
        assert np.isfinite(result) and all(np.isfinite(g).all() for g in gradients)


def test_losses_compute_in_float32_from_bfloat16():
    p, t = (ops.cast(a, "bfloat16") for a in arrays((2, 4, 6), (2, 4, 6)))
    for loss, expected in LOSSES.values():
        value = loss(p, t)
        assert keras.backend.standardize_dtype(value.dtype) == "float32"
        p64, t64 = (ops.convert_to_numpy(ops.cast(a, "float32")).astype("float64") for a in (p, t))
        assert float(value) == pytest.approx(expected(p64, t64), rel=1e-5)


@pytest.mark.parametrize(("name", "target"), [("BYOL", "targets"), ("SimSiam", "projections")])
def test_logs_show_collapse(name, target):
    objective = SMALL[name]()
    eye, same = np.tile(np.eye(4, 6, dtype="float32"), (2, 1, 1)), np.ones((2, 4, 6), "float32")
    for z, spread in ((eye, 4 / 6 * 3**0.5 / 4 * 6**0.5), (same, 0.0)):
        _, logs = objective.compute_loss({"predictions": z, target: z}, 0)
        assert float(logs["alignment"]) == pytest.approx(1, rel=1e-6)
        assert float(logs["feature_std"]) == pytest.approx(spread, abs=1e-6)


def _outputs(objective, width=6, batch=8):
    objective.build((2, None, width))
    objective.built = True
    features = keras.random.normal((2, batch, width), seed=0)
    return objective(features, features if objective.teacher_momentum else None, training=True)


def test_heads_are_the_papers():
    d, h, e, bn = 6, 16, 8, 2
    size = lambda layer: sum(int(np.prod(w.shape)) for w in layer.trainable_weights)  # noqa: E731
    byol_ = SMALL["BYOL"]()
    _outputs(byol_)
    assert size(byol_.projector) == d * h + bn * h + h * e  # no bias, no normalisation at the end
    assert size(byol_.predictor) == e * h + bn * h + h * e
    assert size(byol_.teacher_projector) == 0
    simsiam_ = objectives.SimSiam(output_dim=e, hidden=(h, h), predictor_hidden=(2,))
    outputs = _outputs(simsiam_)
    assert size(simsiam_.projector) == d * h + bn * h + h * h + bn * h + h * e
    assert size(simsiam_.predictor) == e * 2 + bn * 2 + 2 * e + e
    # Normalised without offset and scale over both views together.
    z = ops.convert_to_numpy(outputs["projections"]).reshape(-1, e)
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(z.std(0), 1, atol=1e-3)


def test_byols_teacher_starts_from_the_student():
    objective = SMALL["BYOL"]()
    _outputs(objective)
    features = keras.random.normal((2, 5, 6), seed=1)
    student = objective.projector(ops.reshape(features, (10, 6)), training=True)
    targets = objective(features, features, training=True)["targets"]
    np.testing.assert_allclose(
        ops.convert_to_numpy(targets).reshape(10, -1), ops.convert_to_numpy(student), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", ["BYOL", "SimSiam"])
def test_round_trip_through_the_config(name):
    objective = SMALL[name](**({"teacher_momentum": (0.9, 0.95)} if name == "BYOL" else {}))
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(objective))
    assert again.get_config() == objective.get_config()
    assert again.teacher_momentum == objective.teacher_momentum


@pytest.mark.parametrize("name", ["BYOL", "MoCoV3"])
def test_the_teacher_is_the_average_of_its_students(name):
    """Teacher ← m·teacher + (1 − m)·student, with m = 1 − (1 − 0.5)(cos(πk/K) + 1)/2 after step k of K = 3."""
    inputs = keras.Input((4, 4, 3))
    x = keras.layers.BatchNormalization()(keras.layers.Dense(6, use_bias=False)(keras.layers.Flatten()(inputs / 255.0)))
    encoder = keras_issl.encoders.Adapter(keras.Model(inputs, keras.layers.ReLU()(x)))
    objective = SMALL[name](teacher_momentum=(0.5, 1.0))
    model = keras_issl.Pretrainer(
        encoder, objective, lambda x: [ops.cast(x, "float32"), 0.9 * ops.cast(x, "float32") + 3.0]
    )
    model.compile(keras.optimizers.SGD(0.5))
    pairs = [(encoder, model.teacher_encoder), (objective.projector, objective.teacher_projector)]
    students = [_values(layer for layer, _ in pairs)]
    images = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3)).astype("uint8")
    record = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: students.append(_values(layer for layer, _ in pairs))
    )
    model.fit(images, batch_size=8, epochs=3, shuffle=False, verbose=0, callbacks=[record])
    expected = students[0]
    for k in (0, 1):  # the third step's weights are averaged when a fourth begins
        m = 1 - 0.5 * (np.cos(np.pi * k / 3) + 1) / 2
        expected = [m * e + (1 - m) * w for e, w in zip(expected, students[k + 1], strict=True)]
    for got, want, start in zip(_values(copy for _, copy in pairs), expected, students[0], strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
        assert np.abs(got - start).max() > 1e-4  # every weight and every batch statistic moved
    before = _values([model])
    model.evaluate(images, batch_size=8, verbose=0)
    for got, want in zip(_values([model]), before, strict=True):
        np.testing.assert_array_equal(got, want)


def _values(layers):
    floats = [w for layer in layers for w in layer.weights if "float" in w.dtype]
    return [np.array(ops.convert_to_numpy(w), "float64") for w in floats]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda z: losses.byol_loss(predictions=np.ones((3, 4, 3)), targets=np.ones((3, 4, 3))), "exactly 2 views"),
        (lambda z: losses.byol_loss(predictions=z[0], targets=z), "`predictions` should have three axes"),
        (lambda z: losses.byol_loss(predictions=z, targets=z[:1]), "`targets` should hold at least 2 views"),
        (lambda z: losses.byol_loss(predictions=z, targets=z[:, :3]), "one shape"),
        (lambda z: losses.simsiam_loss(predictions=z, projections=z[..., :2]), "`projections` should have one shape"),
        (lambda z: objectives.BYOL(output_dim=0), "`output_dim`"),
        (lambda z: objectives.BYOL(teacher_momentum=(0.9, 1.1)), "`teacher_momentum`"),
        (lambda z: objectives.BYOL(teacher_momentum=None), "`teacher_momentum` .* Received: None"),
        (lambda z: objectives.BYOL(heads="he"), "`heads`"),
        (lambda z: objectives.SimSiam(probe="forest"), "`probe`"),
        (lambda z: objectives.SimSiam(hidden=(0,)).build((2, None, 6)), "positive integers"),
        (lambda z: SMALL["BYOL"]()(z), "`teacher_features`"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(np.ones((2, 4, 3), "float32"))
