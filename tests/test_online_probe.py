"""The online probe: it learns, and the encoder never knows."""

import os
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from keras_issl import augmentations, datasets, encoders, objectives, pretraining

IMAGES = np.random.default_rng(0).integers(0, 256, (48, 12, 12, 3)).astype("uint8")
LABELS = np.arange(48) % 3
IMAGES = (IMAGES // 4 + 90 * LABELS[:, None, None, None]).astype("uint8")  # dark, medium and bright ones


def make(online_probe=None, objective=None, policy="float32", optimizer=None):
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    encoder = encoders.ResNet(blocks=(1,), width=8, image_size=12, stem="cifar")
    model = pretraining.Pretrainer(
        encoder,
        objective() if objective else objectives.DISSL(num_classes=12, teacher_hidden=(16,), bottleneck=8),
        augmentations.Affine(12, seed=0),
        online_probe=online_probe,
    )
    model.compile(optimizer or keras.optimizers.Adam(1e-3, global_clipnorm=1.0))
    return model


def fitted(model, x=IMAGES, y=LABELS, **options):
    return model.fit(x, y, **{"batch_size": 16, "epochs": 2, "verbose": 0} | options).history


def arrays(variables):
    return [ops.convert_to_numpy(v) for v in variables]


AS_USERS_COMPILE = keras.config.backend() != "jax" or not os.environ.get("XLA_FLAGS")


OTHERS = pytest.param("(not DISSL or not float32)", marks=pytest.mark.slow)


@pytest.mark.skipif(AS_USERS_COMPILE, reason="the comparison runs in this process")
@pytest.mark.parametrize("which", ["DISSL and float32", OTHERS])
def test_everything_but_the_probe_is_bit_identical_as_xla_compiles_by_default(which):
    """The suite's quick compilation rounds a step otherwise when it has another reader of its features."""
    which = f"with_and_without_it and {which}"
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-p", "no:xdist", __file__, "-k", which]
    environment = os.environ | {"XLA_FLAGS": "", "PYTEST_ADDOPTS": ""}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and re.search("[13] passed", result.stdout), result.stdout  # it was not skipped


@pytest.mark.skipif(not AS_USERS_COMPILE, reason="another process compares what XLA compiles by default")
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("objective", [objectives.DISSL, objectives.BYOL])
def test_everything_but_the_probe_is_bit_identical_with_and_without_it(policy, objective):
    small = {"num_classes": 12, "teacher_hidden": (16,), "bottleneck": 8}
    small = small if objective is objectives.DISSL else {"output_dim": 8, "hidden": (16,), "predictor_hidden": (16,)}
    plain, probed = (make(probe, lambda: objective(**small), policy) for probe in (None, 3))
    histories = fitted(plain), fitted(probed)
    assert histories[0]["loss"] == histories[1]["loss"]
    for part in ("encoder", "objective", "augmentation"):
        for a, b in zip(arrays(getattr(plain, part).variables), arrays(getattr(probed, part).variables), strict=True):
            np.testing.assert_array_equal(a, b)
    for a, b in zip(arrays(plain.optimizer.variables), arrays(probed.optimizer.variables), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(arrays([probed.online_probe.kernel])[0]).max() > 0


def test_its_step_is_that_of_a_float64_reference():
    rng = np.random.default_rng(1)
    features, labels = rng.normal(size=(6, 4)) * [1, 2, 3, 0.5] + 1, np.array([0, 2, -1, 1, 1, 7])
    probe = pretraining.OnlineProbe(3, keras.optimizers.SGD(0.5))
    probe.build((None, 4))
    x = (features - features.mean(0)) / np.sqrt(features.var(0) + probe.normalization.epsilon)
    kernel, bias, losses, hits = np.zeros((4, 3)), np.zeros(3), [], []
    for _ in range(3):
        probe.score(ops.convert_to_tensor(features.astype("float32")), ops.convert_to_tensor(labels), training=True)
        d_kernel, d_bias, known = (
            np.zeros_like(kernel),
            np.zeros_like(bias),
            [i for i in range(6) if 0 <= labels[i] < 3],
        )
        for i in known:
            logits = x[i] @ kernel + bias
            p = np.exp(logits) / np.exp(logits).sum()
            losses.append(-np.log(p[labels[i]]))
            hits.append(logits.argmax() == labels[i])
            error = (p - np.eye(3)[labels[i]]) / len(known)
            d_kernel, d_bias = d_kernel + np.outer(x[i], error), d_bias + error
        kernel, bias = kernel - 0.5 * d_kernel, bias - 0.5 * d_bias
    np.testing.assert_allclose(arrays([probe.kernel])[0], kernel, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(arrays([probe.bias])[0], bias, rtol=1e-4, atol=1e-6)
    assert float(probe.trackers["online_loss"].result()) == pytest.approx(np.mean(losses), rel=1e-5)
    assert float(probe.trackers["online_top1"].result()) == pytest.approx(np.mean(hits))


def test_it_learns_from_the_labels_there_are_and_validates_on_whole_images():
    partly = np.where(np.arange(48) % 4 == 0, -1, LABELS)
    history = fitted(make(3), y=partly, epochs=20, validation_data=(IMAGES, LABELS))
    assert history["online_top1"][-1] > 0.9 > history["online_top1"][0]
    assert history["val_online_top1"][-1] > 0.9 and np.isfinite(history["val_online_loss"]).all()


@pytest.mark.filterwarnings("ignore:.*incomplete last batch")
def test_sources_bring_labels():
    for x in (datasets.load((IMAGES, LABELS)), datasets.Batches(IMAGES, LABELS, batch_size=16)):
        model = make(3)
        assert np.isfinite(fitted(model, x, None, epochs=1)["online_top1"][0])
        assert np.isnan(model.evaluate(IMAGES, batch_size=16, verbose=0, return_dict=True)["online_top1"])


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        (lambda m: fitted(m, y=None), "`y` should hold labels for the online probe"),
        (lambda m: fitted(m, datasets.load(IMAGES), None), "`y` should hold labels for the online probe"),
        (lambda m: fitted(m, y=np.full(48, -1)), "at least one label"),
        (lambda m: fitted(m, y=LABELS + 1), "from 0 to 2.*Received: 1 to 3"),
        (lambda m: fitted(m, y=LABELS[:7]), "one an image"),
        (lambda m: fitted(m, y=LABELS / 2), "integer labels"),
        (
            lambda m: fitted(m, datasets.Batches(IMAGES, batch_size=16), None),
            r"\(images, labels\) for the online probe",
        ),
    ],
)
def test_labels_that_do_not_fit_are_refused_before_training(fit, message):
    with pytest.raises(ValueError, match=message):
        fit(make(3))


@pytest.mark.parametrize("wrong", [1, True, "ten", 2.5])
def test_what_is_no_probe_is_refused(wrong):
    with pytest.raises(ValueError, match="num_classes|online_probe"):
        make(wrong)


def test_it_is_saved_with_its_optimizer_and_goes_on_as_if_nothing_had_happened(tmp_path):
    whole, first, second = make(3), make(3), make(3)
    fitted(whole, epochs=2)
    fitted(first, epochs=1)
    first.save_weights(tmp_path / "x.weights.h5")
    second.optimizer.build(second.trainable_variables)
    second.load_weights(tmp_path / "x.weights.h5")
    fitted(second, epochs=2, initial_epoch=1)
    for a, b in zip(arrays(whole.online_probe.variables), arrays(second.online_probe.variables), strict=True):
        np.testing.assert_array_equal(a, b)
    first.save(tmp_path / "x.keras")
    loaded = keras.saving.load_model(tmp_path / "x.keras")
    assert loaded.online_probe.num_classes == 3 and isinstance(loaded.online_probe.optimizer, keras.optimizers.Adam)
    for a, b in zip(arrays(first.online_probe.variables), arrays(loaded.online_probe.variables), strict=True):
        np.testing.assert_array_equal(a, b)
