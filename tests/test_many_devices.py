"""Several devices train as one: weights after five steps, with teeth; and what is refused there."""

import fcntl
import os
import pickle
import re

import keras
import many_devices
import members
import numpy as np
import pytest

BACKEND = keras.config.backend()
ENGINES = [engine for engine, (backend, *_) in many_devices.ENGINES.items() if backend == BACKEND]
# Means over the batch, features of all of it, a moving average, codes with a queue: `tools/device_equality.py` has
# all objectives. TensorFlow traces each for every replica, and XLA compiles it, for seconds.
OBJECTIVES = {"torch": ("DISSL", "CISSL", "BYOL", "SwAV"), "tensorflow": ("DISSL", "BYOL"), "jax": ("DISSL",)}
OBJECTIVES = OBJECTIVES[BACKEND]
LESS_MEMORY = ["DISSL+chunks+remat", "CISSL+chunks"] if BACKEND == "torch" else []
FAULTS = {"torch": many_devices.FAULTS, "tensorflow": many_devices.FAULTS[:1], "jax": ()}[BACKEND]  # JAX has no seam
FAULTS = [f"DISSL/{fault}" for fault in FAULTS]
RUN = ["pretrain"] if BACKEND == "torch" else []
TOLERANCE = 1e-5


def shared(factory, name, make):
    """What `make` returns; the other workers of this run wait for it and read it."""
    workers = "PYTEST_XDIST_WORKER" in os.environ
    folder = factory.getbasetemp().parent if workers else factory.getbasetemp()
    path = folder / f"many_devices {name}.pickle"
    with open(folder / f"many_devices {name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            path.write_bytes(pickle.dumps(make()))
        return pickle.loads(path.read_bytes())


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return shared(tmp_path_factory, "one", lambda: many_devices.run(ENGINES[0], 1, [*OBJECTIVES, *RUN, "beside"]))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    def make():
        found = {
            ENGINES[0]: many_devices.run(
                ENGINES[0], 2, [*OBJECTIVES, *LESS_MEMORY, *FAULTS, *RUN, "beside", "refusals"]
            )
        }
        return found | {engine: many_devices.run(engine, 2, ["DISSL", "refusals"]) for engine in ENGINES[1:]}

    return shared(tmp_path_factory, "many", make)


@pytest.mark.parametrize("engine", ENGINES)
def test_two_devices_train_as_one(engine, one, many):
    for name in OBJECTIVES if engine == ENGINES[0] else ["DISSL"]:
        far = many_devices.distance(many[engine][name], one[name])
        assert max(far.values()) < TOLERANCE, f"{name}: {far}"


@pytest.mark.skipif(not LESS_MEMORY, reason="for the other engines: tools/device_equality.py")
@pytest.mark.parametrize("name", LESS_MEMORY)
def test_with_less_memory_two_devices_train_as_one_does_with_all(name, one, many):
    far = many_devices.distance(many[ENGINES[0]][name], one[name.split("+")[0]])
    assert max(far.values()) < TOLERANCE, far


@pytest.mark.skipif(not FAULTS, reason="JAX has no seam to break")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_seam_is_seen(fault, one, many):
    assert many_devices.distance(many[ENGINES[0]][fault], one["DISSL"])["weights"] > 10 * TOLERANCE


@pytest.mark.parametrize("engine", ENGINES)
def test_what_cannot_be_right_is_refused(engine, many):
    told = many[engine]["refusals"]
    words = {
        "batch size": ("`batch_size` should be a multiple of 2", "Received: 17. Use 16 or 18"),
        "few images": ("`x` should hold at least an image for each of 2 devices",),
        "accumulation": ("`optimizer` should not accumulate gradients",),
        "same batches": ("`x` should give every process its own part", "DistributedSampler"),
        "uneven batches": ("`x` should give every process as many images a batch", "8, 10"),
        "uneven stream": ("`x` should be a multiple of 2", "Received: 17"),
        "unknown size": ("`x` should give batches of one known size on 2 devices", "drop_remainder=True"),
        "steps_per_execution": ("`steps_per_execution` should be 1",),
        "jit_compile": ("`jit_compile` should be False or 'auto'",),
        **{name: (f"`{name}` should be None",) for name in ("clipnorm", "global_clipnorm", "clipvalue")},
    }
    for name, message in told.items():
        assert message is not None, f"{name} is not refused"
        assert all(word in message for word in words[name]), message


def test_what_is_done_beside_training_takes_any_number_of_images(one, many):
    for name, features in one["beside"].items():
        np.testing.assert_allclose(many[ENGINES[0]]["beside"][name], features, rtol=1e-4, atol=1e-5, err_msg=name)


PAGE = many_devices.HERE.parent / "docs" / "distribution.md"
SNIPPETS = dict(re.findall(r"<!-- (.*?) -->\n```python\n(.*?)```", PAGE.read_text(), flags=re.S))


@pytest.mark.parametrize("title", ["any engine", *ENGINES])
def test_snippets_of_the_page_run(title, tmp_path):
    engine = title if title in many_devices.ENGINES else ENGINES[0]
    begin = f"import sys; sys.path.insert(0, {str(many_devices.HERE)!r}); import many_devices; "
    begin += f"many_devices.begin({engine!r}, 2, meet=False)\n"
    end = "\nassert len(history.history['loss']) == 2"
    (tmp_path / "train.py").write_text(begin + SNIPPETS[title] + end)
    many_devices.launch(engine, 2, ["train.py"], cwd=tmp_path)
    assert (tmp_path / "trained").is_dir() == ("save_preset" in SNIPPETS[title])


@pytest.mark.skipif(not RUN, reason="the others trace and compile it for a minute")
def test_a_run_on_two_devices_is_the_run_on_one(one, many):
    found, expected = many[ENGINES[0]]["pretrain"], one["pretrain"]
    assert found["names"] == expected["names"]
    (first, second), (wanted, later) = found["history"]["loss"], expected["history"]["loss"]
    assert first == pytest.approx(wanted, rel=1e-5)
    assert second == pytest.approx(later, rel=0.02)  # what rounding has become at a real learning rate


@pytest.mark.skipif(BACKEND != "jax", reason="JAX lowers for devices that are not there")
def test_the_training_step_of_every_objective_lowers_for_eight_accelerators():
    """On one: test_pretraining.py."""
    assert many_devices.run(ENGINES[0], 8, ["lower"])["lower"] == dict.fromkeys(members.SMALL, 8)
