"""Checkpoints: files that are whole or refused, and runs that go on bit for bit after a kill -9."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import keras
import ml_dtypes
import numpy as np
import pytest
import resumed_run
from keras import ops

import keras_issl
from keras_issl import callbacks, datasets, report
from keras_issl.callbacks import checkpoint_files as files
from keras_issl.callbacks.checkpoint import differences
from keras_issl.pretraining import resuming

# 84 images in batches of 8.
pytestmark = pytest.mark.filterwarnings("ignore:.*couples the images of a batch")
BACKEND = keras.config.backend()
# DISSL has random views and batch statistics; DINO a moving average, a centre and schedules; SwAV a queue.
OBJECTIVES = ("DISSL", "DINO", "SwAV") if BACKEND == "torch" else ("DINO",)
SCRIPT = Path(resumed_run.__file__)


def state(model):
    return callbacks.Snapshot(model).arrays


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for number, (a, b) in enumerate(zip(found, expected, strict=True)):
        np.testing.assert_array_equal(a, b, err_msg=f"variable {number}")


def killed(objective, folder, step):
    """A process that trains into a folder and is killed at the end of a step."""
    command = [sys.executable, str(SCRIPT), objective, str(folder), str(step)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Objective -> the state, history and records of a run that nothing happened to."""
    found = {}
    for objective in OBJECTIVES:
        folder = tmp_path_factory.mktemp("whole") / objective
        model, history, *_ = resumed_run.train(objective, folder)
        found[objective] = state(model), history, report.read_records(folder.with_suffix(".csv"))
    return found


def assert_same_records(path, expected):
    """All columns but times."""
    found = report.read_records(path)
    assert found.keys() == expected.keys()
    for name in found.keys() - {"seconds", "images_per_second", "input_share"}:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_killed_run_goes_on_to_the_same_weights_history_and_records(objective, whole, tmp_path):
    """Killed in the second epoch, at a step that no checkpoint has: weights, slots, averages, seeds, queue, logs."""
    folder = tmp_path / "run"
    killed(objective, folder, 17)
    step, path = files.listed(folder)[-1]
    assert step in (12, 15), "one every three steps, and the last may not have been on the disk"
    saved = files.read(path)
    assert (saved.epoch, saved.batch) == divmod(step, 10)
    model, history, _, saving = resumed_run.train(objective, folder)
    assert saving.saved.step == step and saving.finished_epochs == 3
    expected, logs, columns = whole[objective]
    assert_equal(state(model), expected)
    # The epochs that this process finished; the means of the one that was interrupted are over all of its steps.
    assert history == {name: values[1:] for name, values in logs.items()}
    assert_same_records(folder.with_suffix(".csv"), columns)


@pytest.mark.slow("tensorflow", "jax")
def test_a_run_that_is_stopped_again_and_again_is_the_same_run(whole, tmp_path):
    """Stopped at once after every fourth step, which also hits ends of epochs; each time a new model goes on."""

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = int(ops.convert_to_numpy(self.model.steps)) % 4 == 0 or batch == 9

    objective, calls, saving = OBJECTIVES[-1], 0, None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resumed_run, "Kill", lambda _: Stop())
        while saving is None or saving.step < resumed_run.STEPS:
            model, _, _, saving = resumed_run.train(objective, tmp_path / "run", kill_at=1, every_steps=1000)
            calls += 1
            assert calls < 20
    assert calls > 5
    assert_same_records(tmp_path / "run.csv", whole[objective][2])
    # What Keras puts in the weights' place at the end of a call, averages, is not what is trained further.
    assert_equal(state(model), whole[objective][0])


@pytest.mark.backend_independent
def test_a_finished_run_is_not_trained_again(whole, tmp_path):
    folder = tmp_path / "run"
    model, *_ = resumed_run.train("DISSL", folder)
    before = [(path.name, path.read_bytes()) for _, path in files.listed(folder)]
    again, history, _, saving = resumed_run.train("DISSL", folder)
    assert saving.saved.step == resumed_run.STEPS and not history.get("loss")
    assert [(path.name, path.read_bytes()) for _, path in files.listed(folder)] == before
    assert_equal(state(again)[:-1], state(model)[:-1])


@pytest.mark.backend_independent
def test_weights_that_are_lost_do_not_take_the_place_of_good_ones(tmp_path):
    class Lose(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 5:
                weight = self.model.trainable_weights[0]
                weight.assign(np.full(weight.shape, np.nan))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(callbacks.NonFiniteLoss):
        patch.setattr(resumed_run, "Kill", lambda _: Lose())
        resumed_run.train("DISSL", tmp_path / "run", kill_at=1, every_steps=1)
    assert [step for step, _ in files.listed(tmp_path / "run")] == [4, 5]
    assert all(np.isfinite(array).all() for array in files.read(files.listed(tmp_path / "run")[-1][1]).arrays)


@pytest.mark.backend_independent
def test_a_scheduler_is_not_applied_twice_to_the_epoch_that_goes_on(tmp_path):
    def rate(stop_at):
        model = resumed_run.model("DISSL")
        model.compile(keras.optimizers.Adam(1e-2))
        schedule = keras.callbacks.LearningRateScheduler(lambda epoch, now: now * 0.5)
        stop = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: setattr(model, "stop_training", int(model.steps) == stop_at)
        )
        saving = callbacks.Checkpoint(tmp_path / "run", resume=True)
        data = (resumed_run.images(), np.zeros(84, int))
        model.fit(data, batch_size=8, epochs=2, callbacks=[schedule, stop, saving], verbose=0)
        return float(ops.convert_to_numpy(model.optimizer.learning_rate))

    rate(14)
    assert rate(-1) == pytest.approx(0.0025)


@pytest.mark.backend_independent
def test_a_rate_that_a_callback_changed_is_not_another_run_and_a_forced_one_counts(tmp_path):
    """The same `fit` of the same model, again and for longer; then a script with another rate."""

    def fit(model, epochs, **options):
        schedule = keras.callbacks.LearningRateScheduler(lambda epoch, now: now * 0.5 if epoch < 2 else now)
        saving = callbacks.Checkpoint(tmp_path / "run", resume=True, **options)
        data = (resumed_run.images(), np.zeros(84, int))
        model.fit(data, batch_size=8, epochs=epochs, callbacks=[schedule, saving], verbose=0)
        return float(ops.convert_to_numpy(model.optimizer.learning_rate))

    def new(rate):
        model = resumed_run.model("SimCLR")
        model.compile(keras.optimizers.SGD(rate))
        return model

    model = new(0.5)
    assert [fit(model, 1), fit(model, 2), fit(new(0.5), 3)] == [0.25, 0.125, 0.125]
    model.optimizer.learning_rate = 0.25
    with pytest.raises(ValueError, match="optimizer.learning_rate: 0.5 there, 0.25 now"):
        fit(model, 4)
    with pytest.raises(ValueError, match="optimizer.learning_rate: 0.5 there, 0.75 now"):
        fit(new(0.75), 4)
    with pytest.warns(UserWarning, match="Going on although"):
        assert fit(new(0.75), 4, force=True) == 0.75


@pytest.mark.backend_independent
def test_keras_callbacks_go_on_with_what_they_have_seen(tmp_path):
    """The loss is made to rise, so that patience runs out after three epochs, two of which were before a stop."""

    class Rise(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["loss"] = float(epoch)

    def fit(epochs, watching, **options):
        model = resumed_run.model("SimCLR")
        saving = callbacks.Checkpoint(tmp_path / "run", resume=True)
        data = (resumed_run.images(), np.zeros(84, int))
        options |= {"batch_size": 8, "epochs": epochs, "verbose": 0}
        return model.fit(data, callbacks=[Rise(), *watching(), saving], **options).epoch

    def watching(best=False):
        return [
            keras.callbacks.EarlyStopping(monitor="loss", patience=3, restore_best_weights=best),
            keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=9),
        ]

    assert fit(2, watching) == [0, 1]
    assert fit(20, watching) == [2, 3], "at epoch 0 the loss was least"
    with pytest.warns(UserWarning, match="not there: EarlyStopping:0, ReduceLROnPlateau:0"):
        assert fit(5, list) == [4]

    class Own(keras.callbacks.EarlyStopping):
        def get_state(self):
            return "mine"

        def set_state(self, state):
            self.given = state

    stop, own = watching(best=True)[0], Own()
    given = callbacks.states.take([stop, own]) | {"EarlyStopping:0": {"wait": 2, "best": 0.25}}
    with pytest.warns(UserWarning, match="the best weights so far are not in the checkpoint"):
        callbacks.states.give([stop, own], given)
    assert (stop.wait, stop.best, own.given) == (2, 0.25, "mine")


@pytest.mark.backend_independent
def test_one_checkpoint_serves_one_fit_after_the_other(tmp_path):
    """The second goes on where the first one ended; one of fewer epochs than are done trains nothing."""
    model, saving = resumed_run.model("DISSL"), callbacks.Checkpoint(tmp_path / "run", resume=True, every_steps=7)
    data = (resumed_run.images(), np.zeros(84, int))
    epochs = [model.fit(data, batch_size=8, epochs=n, callbacks=[saving], verbose=0).epoch for n in (1, 3, 2)]
    assert epochs[:2] == [[0], [1, 2]] and not epochs[2]
    assert int(ops.convert_to_numpy(model.steps)) == 30 and saving.step == 30


@pytest.mark.backend_independent
def test_others_see_one_run_and_their_batches_keep_their_numbers(tmp_path):
    class Witness(keras.callbacks.Callback):
        def __init__(self, stop_at=None):
            super().__init__()
            self.seen, self.stop_at = [], stop_at

        def on_train_begin(self, logs=None):
            self.seen.append("begin")

        def on_train_end(self, logs=None):
            self.seen.append("end")

        def on_epoch_begin(self, epoch, logs=None):
            self.seen.append(f"epoch {epoch}")

        def on_train_batch_end(self, batch, logs=None):
            self.seen.append((batch, self.params["steps"], self.params["epochs"]))
            self.model.stop_training = len(self.seen) == self.stop_at

    def fit(watcher):
        model = resumed_run.model("DISSL")
        saving = callbacks.Checkpoint(tmp_path / "run", resume=True)
        options = {"batch_size": 8, "epochs": 2, "verbose": 0}
        return model.fit((resumed_run.images(), np.zeros(84, int)), callbacks=[saving, watcher], **options)

    fit(Witness(stop_at=6))  # begin, epoch 0, four batches
    witness = Witness()
    history = fit(witness)
    assert witness.seen == [
        "begin", "epoch 0", *((i, 10, 2) for i in range(4, 10)), "epoch 1", *((i, 10, 2) for i in range(10)), "end"
    ]  # fmt: skip
    assert history.epoch == [0, 1]


# ---------------------------------------------------------------------- files
def some(step=7, seed=0):
    rng = np.random.default_rng(seed)
    arrays = [rng.normal(size=(50, 3)).astype("float32"), np.array(step, "int64"), np.ones(4, ml_dtypes.bfloat16)]
    return files.Saved(step, step // 10, step % 10, arrays, {"facts": {}, "states": {}, "variables": ["a", "b", "c"]})


@pytest.mark.backend_independent
def test_a_file_gives_back_what_was_written(tmp_path):
    path = files.write(tmp_path, some())
    saved = files.read(path)
    assert (saved.step, saved.epoch, saved.batch) == (7, 0, 7)
    for a, b in zip(saved.arrays, some().arrays, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "nothing temporary is left"


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)


def swap(path):
    """What was written as the checkpoint before, under the name of this one."""
    path.write_bytes(files.listed(path.parent)[0][1].read_bytes())


def rename(path):
    """The checkpoint before under the name of a later step, hash and all."""
    before = files.listed(path.parent)[0][1]
    shutil.copy(before, path.parent / before.name.replace("step_00000007", "step_00000099"))
    path.unlink()


@pytest.mark.backend_independent
@pytest.mark.parametrize("damage", [cut, empty, flip, swap, rename])
def test_of_a_damaged_newest_file_the_one_before_is_taken_and_said_so(damage, tmp_path):
    files.write(tmp_path, some(7))
    damage(files.write(tmp_path, some(12, seed=1)))
    said = []
    assert files.newest(tmp_path, said.append).step == 7
    assert "goes on from step 7" in said[0] and "broken_step_" in " ".join(p.name for p in tmp_path.iterdir())
    files.write(tmp_path, some(9))
    files.keep(tmp_path, 2)
    assert [step for step, _ in files.listed(tmp_path)] == [7, 9], "a broken one counts for nothing"


@pytest.mark.backend_independent
def test_where_none_can_be_read_nothing_is_begun_anew(tmp_path):
    for step in (7, 12):
        cut(files.write(tmp_path, some(step)))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(callbacks.BrokenCheckpoint, match="No checkpoint in .* can be read.*Copy a sound one back"):
        files.newest(tmp_path, print)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.backend_independent
def test_a_file_that_is_sound_is_not_set_aside(tmp_path, monkeypatch):
    """One that another version wrote, and one that may not be read."""
    files.write(tmp_path, some(7))
    with monkeypatch.context() as patch:
        patch.setattr(files, "_FORMAT", 2)
        files.write(tmp_path, some(12))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="of format 1. Received: .*of format 2. Go on with the version"):
        files.newest(tmp_path, print)

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(files, "_digest", refuse)  # a test may run as root, who may read all
    with pytest.raises(PermissionError, match="step_00000012"):
        files.newest(tmp_path, print)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.backend_independent
def test_a_process_killed_while_it_writes_leaves_what_was_there(tmp_path):
    """A kill -9 at a random moment of a stream of writes, ten times."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); import test_checkpoints as t\n"
        "for step in range(int(sys.argv[3]), 10**6):\n"
        "    t.files.write(sys.argv[1], t.some(step)); t.files.keep(sys.argv[1], 2); print(step, flush=True)"
    )
    last, rng = 6, np.random.default_rng(0)
    for _ in range(3):
        command = [sys.executable, "-c", code, str(tmp_path), str(SCRIPT.parent), str(last + 1)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        said = process.stdout.readline()  # it has begun to write
        threading.Event().wait(rng.uniform(0, 0.3))
        process.kill()
        said += process.communicate()[0]
        whole = int(said.rstrip("\n").splitlines()[-1].strip() or last)
        files.clean(tmp_path)
        saved = files.newest(tmp_path, pytest.fail)
        assert saved.step >= whole > last, "what it said was written, or the one after"
        assert {p.name[:5] for p in tmp_path.iterdir()} == {"step_"}
        last = saved.step


@pytest.mark.backend_independent
@pytest.mark.skipif(sys.platform != "linux", reason="a disk of a megabyte is made of Linux's memory")
def test_a_full_disk_leaves_the_checkpoint_before_and_says_what_is_needed(tmp_path):
    """A real one: `fit` stops at the checkpoint that does not fit, and goes on once there is room."""
    code = f"""
import os, sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import resumed_run as r
from keras_issl.callbacks import checkpoint_files as files, NoSpace
disk = r.Path(sys.argv[1])
class Fill(r.Kill):
    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if not self.left:
            room = os.statvfs(disk)
            (disk / "other").write_bytes(b"x" * (room.f_bavail * room.f_frsize - 4096))
r.Kill = Fill
try:
    r.train("DISSL", disk / "run", kill_at=5)
except NoSpace as error:
    print(error)
left = [step for step, _ in files.listed(disk / "run")]
(disk / "other").unlink()
_, _, _, saving = r.train("DISSL", disk / "run")
print(left, saving.saved.step, saving.step)
"""
    mount = f'mount -t tmpfs -o size=16m none {tmp_path} && exec {sys.executable} -c "$0" {tmp_path}'
    done = subprocess.run(["unshare", "-rm", "sh", "-c", mount, code], capture_output=True, text=True, timeout=300)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no disk can be made here: {done.stderr[:200]}")
    assert done.returncode == 0, done.stderr[-3000:]
    *_, said, counts = done.stdout.strip().splitlines()
    assert "No space left for a checkpoint, which takes 1." in said and "of step 3 is whole" in said
    assert counts == "[3] 3 30"


@pytest.mark.backend_independent
def test_a_disk_that_is_too_small_is_refused_before_the_first_step(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=3 << 20))
    with pytest.raises(callbacks.NoSpace, match=r"takes 3\.. MB, .*3\.1 MB are free. There is no checkpoint yet"):
        resumed_run.train("DISSL", tmp_path / "run")
    assert not files.listed(tmp_path / "run")


# ---------------------------------------------------------------------- what is refused
@pytest.mark.backend_independent
def test_another_run_is_refused_with_a_diff_and_force_records_it(tmp_path):
    folder = tmp_path / "run"
    resumed_run.train("DISSL", folder)
    with pytest.raises(ValueError, match="hold no checkpoints of another run.*resume=True"):
        resumed_run.train("DISSL", folder, resume=False)
    original = resumed_run.model

    def other(objective):
        model = original(objective)
        model.optimizer.learning_rate = keras.optimizers.schedules.CosineDecay(3e-2, 30)
        model.seed = 6
        return model

    said = r"optimizer.learning_rate.config.initial_learning_rate: 0.01 there, 0.03 now; order.seed: 5 there, 6 now"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resumed_run, "model", other)
        with pytest.raises(ValueError, match=said):
            resumed_run.train("DISSL", folder)
        with pytest.warns(UserWarning, match="Going on although"):
            resumed_run.train("DISSL", folder, force=True)
        patch.setattr(resumed_run, "EPOCHS", 4)
        with pytest.warns(UserWarning, match="Going on although"):
            saving = resumed_run.train("DISSL", folder, force=True)[-1]
    changes = files.read(files.listed(folder)[-1][1]).about["forced"][0]
    assert changes["step"] == 30 and "order.seed: 5 there, 6 now" in changes["changes"] and saving.step == 40


@pytest.mark.backend_independent
def test_other_images_versions_and_models_are_refused(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    resumed_run.train("DISSL", folder)
    with monkeypatch.context() as patch:
        patch.setattr(resumed_run, "images", lambda: np.zeros((84, 8, 8, 3), "uint8"))
        with pytest.raises(ValueError, match="images.sample: '"):
            resumed_run.train("DISSL", folder)
    with monkeypatch.context() as patch:
        patch.setattr(keras_issl, "__version__", "99.0")
        with pytest.raises(ValueError, match=r"versions.keras_issl: '.*' there, '99.0' now"):
            resumed_run.train("DISSL", folder)
    with pytest.raises(ValueError, match="objective.name: 'DISSL' there, 'DINO' now"):
        resumed_run.train("DINO", folder)
    original = resumed_run.model

    def told(change):
        def changed(objective):
            model = original(objective)
            change(model)
            return model

        with monkeypatch.context() as patch, pytest.raises(ValueError, match="are of another run") as error:
            patch.setattr(resumed_run, "model", changed)
            resumed_run.train("DISSL", folder)
        return str(error.value)

    def strides(model):  # weights of the same shapes
        layer = next(layer for layer in model.encoder._flatten_layers() if isinstance(layer, keras.layers.Conv2D))
        layer.padding = "same"

    def views(model):
        def twice(images):
            return [images, images]

        model.__dict__["_modules"].pop("augmentation")  # PyTorch takes no function in the place of a layer
        model.__dict__["augmentation"] = twice

    assert "padding: 'valid' there, 'same' now" in told(strides)
    assert "augmentation.name: 'SimCLR' there" in told(views)
    probe = keras.optimizers.Adam(0.5)
    assert "online_probe.optimizer.config.learning_rate" in told(
        lambda model: setattr(model.online_probe, "optimizer", probe)
    )
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="`model` should be built like the one"):
        resumed_run.train("DINO", folder, force=True)


@pytest.mark.backend_independent
def test_what_is_compared_of_an_encoder_is_no_accident():
    """Not the line a lambda stands in, nor the random weights of a PyTorch module; a custom block's settings are."""
    import torch

    class Block(keras.layers.Layer):
        def __init__(self, skip, **kwargs):
            super().__init__(**kwargs)
            self.skip, self.inner = skip, keras.layers.Dense(3)

        def call(self, x):
            return self.inner(x) + self.skip * x

        def get_config(self):
            return super().get_config() | {"skip": self.skip}

    class Silent(keras.layers.Layer):
        def call(self, x):
            return x

        def get_config(self):
            return {"n": self.no_such_thing}

    def layers(skip, double):
        inputs = keras.Input((8, 8, 3))
        x = keras.layers.Lambda(double)(Block(skip)(Silent()(inputs)))
        wrapped = keras.layers.TorchModuleWrapper(torch.nn.Linear(3, 600), output_shape=(None, 8, 8, 600))
        x = wrapped(x) if BACKEND == "torch" else x
        encoder = keras_issl.encoders.Adapter(keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x)))
        return resuming._layers(encoder)

    first = layers(0.5, lambda x: 2 * x)
    assert differences(first, layers(0.5, lambda x: 2 * x)) == []
    (found,) = differences(first, layers(0.0, lambda x: 2 * x))
    assert found.endswith("skip: 0.5 there, 0.0 now") and len(json.dumps(first)) < 4000


@pytest.mark.backend_independent
def test_streams_that_cannot_seek_are_refused(tmp_path):
    model, labels = resumed_run.model("DISSL"), np.zeros(84, int)

    def batches():
        while True:
            yield np.zeros((8, 8, 8, 3), "uint8"), np.zeros(8, int)

    with pytest.raises(ValueError, match="cannot be asked for it. Received: generator.*BackupAndRestore"):
        model.fit(batches(), steps_per_epoch=2, callbacks=[callbacks.Checkpoint(tmp_path / "run")], verbose=0)
    saving = callbacks.Checkpoint(tmp_path / "run")
    with pytest.raises(ValueError, match="`initial_epoch` should be left out"):
        model.fit((resumed_run.images(), labels), callbacks=[saving], initial_epoch=1, epochs=2, verbose=0)
    with pytest.raises(ValueError, match="one Checkpoint. Received: 2"):
        model.fit((resumed_run.images(), labels), callbacks=[saving, saving], verbose=0)


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"every_steps": 5, "every_seconds": 5}, "should not both be given"),
        ({"every_steps": 0}, "`every_steps` should be an integer of at least 1"),
        ({"keep": 1.5}, "`keep` should be an integer of at least 1"),
        ({"every_seconds": 0}, "`every_seconds` should be a positive number"),
    ],
)
def test_wrong_arguments_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        callbacks.Checkpoint("nowhere", **arguments)


@pytest.mark.backend_independent
def test_two_runs_at_once_do_not_write_into_one_folder(tmp_path):
    class Another(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 5:
                with pytest.raises(ValueError, match="`folder` should be of this run alone"):
                    train("DISSL", tmp_path / "run")

    train = resumed_run.train
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resumed_run, "Kill", lambda _: Another())
        assert train("DISSL", tmp_path / "run", kill_at=1)[-1].step == 30
    assert train("DISSL", tmp_path / "run")[-1].saved.step == 30, "it is free again"


@pytest.mark.backend_independent
def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="`folder` should be a folder that can be written.*Not a directory"):
        resumed_run.train("DISSL", tmp_path / "file" / "run")


@pytest.mark.backend_independent
def test_what_cannot_be_written_stops_the_run(tmp_path, monkeypatch):
    """An error in the writing thread reaches the one who called `fit`."""

    def fail(folder, saved):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files, "write", fail)
    with pytest.raises(OSError, match="Input/output error"):
        resumed_run.train("DISSL", tmp_path / "run")
    assert not any(thread.name.startswith("checkpoint") for thread in threading.enumerate())


@pytest.mark.backend_independent
def test_differences_are_told_key_by_key():
    then = {"a": 1, "b": {"c": 2, "d": [1, 2]}, "gone": 0}
    assert differences(then, json.loads(json.dumps(then))) == []
    now = {"a": 1, "b": {"c": 3, "d": [1, 2]}, "new": "x"}
    assert differences(then, now) == ["b.c: 2 there, 3 now", "gone: 0 there, None now", "new: None there, 'x' now"]


# ---------------------------------------------------------------------- memory
def test_out_of_memory_names_the_batch_size_and_the_switches():
    """A real failure to allocate: the logits of one step would take terabytes."""
    code = f"""
import sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import numpy as np, keras, keras_issl
inputs = keras.Input((8, 8, 3))
encoder = keras_issl.encoders.Adapter(keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(inputs)))
model = keras_issl.Pretrainer(encoder, keras_issl.objectives.CISSL(output_dim=2, hidden=(2,)))
model.compile("sgd")
try:
    model.fit(np.zeros((400_000, 8, 8, 3), "uint8"), batch_size=400_000, verbose=0)
except keras_issl.pretraining.OutOfMemory as error:
    print(error)
"""
    environment = os.environ | {"XLA_FLAGS": ""} if BACKEND == "jax" else os.environ
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout.strip().splitlines()[-1]
    assert said.startswith("Out of memory in a training step of 400000 images. Try `chunk_size` of CISSL")
    assert "remat=True" in said and "mixed_bfloat16" in said and "(200000 instead of 400000)" in said


# ---------------------------------------------------------------------- images that break while a run goes on
@pytest.mark.backend_independent
def test_an_image_that_breaks_in_the_middle_stops_the_run_or_is_replaced_as_asked(tmp_path):
    from PIL import Image

    for number, image in enumerate(resumed_run.images()):
        Image.fromarray(image).save(tmp_path / f"{number:02d}.png")
    loaded = {
        how: datasets.load(tmp_path, memory_limit=0, on_error=how, verbose=False)
        for how in ("raise", "skip", "replace")
    }
    before = {how: data.images[np.arange(84)] for how, data in loaded.items()}
    (tmp_path / "05.png").write_bytes(b"not an image any more")
    with pytest.raises(datasets.BrokenImage, match=r"05.png.*Repair or remove it"):
        loaded["raise"].images[np.arange(84)]
    for how in ("skip", "replace"):
        data = loaded[how]
        with pytest.warns(UserWarning, match=r"another takes its place: .*05.png"):
            found = data.images[np.arange(84)]
        others = np.arange(84) != 5
        np.testing.assert_array_equal(found[others], before[how][others])
        assert any(np.array_equal(found[5], image) for image in before[how][others])
        np.testing.assert_array_equal(data.images[np.array([5, 3])][0], found[5], err_msg="always the same one")
        assert len(data.replaced) == 1 and data.replaced[0][0].endswith("05.png")
        assert data.take(10).replaced == data.replaced
    with pytest.warns(UserWarning, match="another takes its place"):
        here = datasets.load(tmp_path, on_error="replace", verbose=False)
    np.testing.assert_array_equal(here.images, found, err_msg="in memory it is the same image")
    assert len(here.replaced) == 1 and len(here) == 84
