"""Several devices train as one: weights after five steps, with teeth; and what is refused there."""

import fcntl
import os
import pickle
import re
import signal
import subprocess
import sys
import time

import keras
import many_devices
import members
import numpy as np
import pytest

from keras_issl import runs

BACKEND = keras.config.backend()
ENGINES = [engine for engine, (backend, *_) in many_devices.ENGINES.items() if backend == BACKEND]
TOLERANCE = 1e-5
# Means over the batch, features of all of it, a moving average, codes with a queue. TensorFlow traces each for every
# replica, and XLA compiles it, for seconds.
QUICK = {"torch": ("DISSL", "CISSL", "BYOL", "SwAV"), "tensorflow": ("DISSL", "BYOL"), "jax": ("DISSL",)}[BACKEND]
CHUNKED = ("DISSL+chunks+remat", "CISSL+chunks")
FAULTS = () if BACKEND == "jax" else tuple(f"DISSL/{fault}" for fault in many_devices.FAULTS)  # JAX has no seam
WHOLE_RUN = ("pretrain",)


def marked(items, quick):
    """Parameters, of which those that are not quick are left out without --slow."""
    return [pytest.param(item, marks=[] if item in quick else [pytest.mark.slow]) for item in items]


def chosen(items, quick, config):
    return [item for item in items if item in quick or config.getoption("slow")]


QUICK_CHUNKS = CHUNKED if BACKEND == "torch" else ()
QUICK_FAULTS = {"torch": FAULTS, "tensorflow": FAULTS[:1], "jax": ()}[BACKEND]
QUICK_RUN = WHOLE_RUN if BACKEND == "torch" else ()  # the others trace and compile it for a minute


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
def one(tmp_path_factory, pytestconfig):
    items = chosen([*members.SMALL, *WHOLE_RUN], QUICK + QUICK_RUN, pytestconfig)
    make = lambda: many_devices.run(ENGINES[0], 1, [*items, "beside"], timeout=3600)  # noqa: E731
    return shared(tmp_path_factory, "one", make)


@pytest.fixture(scope="module")
def many(tmp_path_factory, pytestconfig):
    quick = QUICK + QUICK_CHUNKS + QUICK_FAULTS + QUICK_RUN
    items = chosen([*members.SMALL, *CHUNKED, *FAULTS, *WHOLE_RUN], quick, pytestconfig)

    def make():
        found = {ENGINES[0]: many_devices.run(ENGINES[0], 2, [*items, "beside", "refusals"], timeout=3600)}
        return found | {engine: many_devices.run(engine, 2, ["DISSL", "refusals"]) for engine in ENGINES[1:]}

    return shared(tmp_path_factory, "many", make)


@pytest.mark.parametrize("name", marked(members.SMALL, QUICK))
def test_two_devices_train_as_one(name, one, many):
    for engine in ENGINES if name == "DISSL" else ENGINES[:1]:
        far = many_devices.distance(many[engine][name], one[name])
        assert max(far.values()) < TOLERANCE, f"{engine}: {far}"


@pytest.mark.parametrize("name", marked(CHUNKED, QUICK_CHUNKS))
def test_with_less_memory_two_devices_train_as_one_does_with_all(name, one, many):
    far = many_devices.distance(many[ENGINES[0]][name], one[name.split("+")[0]])
    assert max(far.values()) < TOLERANCE, far


@pytest.mark.skipif(not FAULTS, reason="JAX has no seam to break")
@pytest.mark.parametrize("fault", marked(FAULTS, QUICK_FAULTS))
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


@pytest.mark.parametrize("title", [*marked(["any engine"], ["any engine"] if BACKEND == "torch" else []), *ENGINES])
def test_snippets_of_the_page_run(title, tmp_path):
    engine = title if title in many_devices.ENGINES else ENGINES[0]
    begin = f"import sys; sys.path.insert(0, {str(many_devices.HERE)!r}); import many_devices; "
    begin += f"many_devices.begin({engine!r}, 2, meet=False)\n"
    end = "\nassert len(history.history['loss']) == 2"
    (tmp_path / "train.py").write_text(begin + SNIPPETS[title] + end)
    many_devices.launch(engine, 2, ["train.py"], cwd=tmp_path)
    assert (tmp_path / "trained").is_dir() == ("save_preset" in SNIPPETS[title])


@pytest.mark.parametrize("name", marked(WHOLE_RUN, QUICK_RUN))
def test_a_run_on_two_devices_is_the_run_on_one(name, one, many):
    found, expected = many[ENGINES[0]][name], one[name]
    assert found["names"] == expected["names"]
    (first, second), (wanted, later) = found["history"]["loss"], expected["history"]["loss"]
    assert first == pytest.approx(wanted, rel=1e-5)
    assert second == pytest.approx(later, rel=0.02)  # what rounding has become at a real learning rate


@pytest.mark.skipif(BACKEND != "jax", reason="JAX lowers for devices that are not there")
def test_the_training_step_of_every_objective_lowers_for_eight_accelerators():
    """On one: test_pretraining.py."""
    assert many_devices.run(ENGINES[0], 8, ["lower"])["lower"] == dict.fromkeys(members.SMALL, 8)


def two_processes(run, epochs):
    """The command line on two processes of PyTorch, past its first checkpoint."""
    command = [sys.executable, "-m", "keras_issl.cli", "pretrain", "digits", "--limit", "256", "--batch-size", "32"]
    command += ["--epochs", str(epochs), "--devices", "2", "--out", str(run), "--no-page", "--checkpoint-every", "0.2"]
    environment = many_devices.environment(ENGINES[0], 2)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    end = time.monotonic() + 120
    while not runs.checkpoints(run):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    return process, command, environment


@pytest.mark.skipif(BACKEND == "tensorflow", reason="one process feeds all its devices")
@pytest.mark.parametrize(
    "item",
    [
        pytest.param("late_stop", marks=pytest.mark.slow("torch")),
        pytest.param("late_stops", marks=pytest.mark.slow("jax")),
    ],
)
def test_a_stop_that_another_process_wishes_is_saved(item, tmp_path):
    """Also at the end of an epoch; and what the first process refuses is told to the other, which does not wait."""
    done = many_devices.run(ENGINES[-1], 2, [item])[item]
    stops = [(4, 1, 0), (8, 2, 0), (10, 2, 2)]
    assert done["saved"] == (stops if item == "late_stops" else stops[:1])
    assert "optimizer.learning_rate: 0." in done["refused"] and "0.75 now" in done["refused"]
    assert not done.get("differ"), "the weights, slots and states of a run that was not stopped"


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "torch", reason="the others need no processes")
def test_processes_of_a_run_save_and_end_when_the_command_is_killed(tmp_path):
    """SIGKILL, which it cannot hand on: the processes notice that they are alone."""
    run = tmp_path / "run"
    process, command, environment = two_processes(run, epochs=500)
    process.kill()
    process.wait()
    end = time.monotonic() + 60
    while True:
        try:
            with runs.locked_folder(run, resume=True):
                break
        except ValueError:
            assert time.monotonic() < end
            time.sleep(0.2)
    said = process.communicate()[0]
    assert runs.read(run).stopped_by == "SIGTERM", said


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "torch", reason="the others need no processes")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_processes_of_a_run_save_when_they_are_asked_to_end_and_go_on(number, tmp_path):
    """From a shell: the signal reaches the command alone, which hands it on; exit status 0, and `--resume` finishes."""
    run = tmp_path / "run"
    process, command, environment = two_processes(run, epochs=12)
    process.send_signal(number)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 0, said
    assert "stopped by SIGTERM" in said and "--resume goes on, from step" in said
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0 and "trained 12 epochs" in done.stdout, done.stdout + done.stderr
