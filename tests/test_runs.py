"""Runs end to end: folders, locks, interruption and resumption, the command line on real images."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from keras import ops
from PIL import Image

import keras_issl
from keras_issl import callbacks, cli, comparison, datasets, recipes, report, runs

# So small a run may not leave its start, a uniform teacher, and is told so.
pytestmark = pytest.mark.filterwarnings("ignore:Uniform teacher")
DIGITS = datasets.load("digits", split="train").take(96)


def tiny(objective="dissl", **changes):
    """A recipe of seconds."""
    args = {"dissl": {"num_classes": 32, "teacher_hidden": (16,), "bottleneck": 8}}.get(
        objective, {"output_dim": 8, "hidden": (16,)}
    )
    changes = {"epochs": 2, "batch_size": 32, "objective_args": args} | changes
    encoder = {"blocks": (1,), "width": 8, "image_size": 8, "stem": "cifar"}
    return recipes.digits(objective, encoder_args=encoder, **changes)


def test_a_run_leaves_what_it_promises(tmp_path):
    result = runs.pretrain(tiny(), DIGITS, tmp_path / "run", overrides={"epochs": 2}, verbose=False)
    folder = result.folder
    assert {p.name for p in folder.iterdir()} == {
        "run.json", "history.csv", "records.csv", "curves.png", "report.html", "checkpoints", "preset", "lock"
    }  # fmt: skip
    described = json.loads((folder / "run.json").read_text())
    assert described["recipe"]["epochs"] == 2 and described["overrides"] == {"epochs": 2}
    assert described["data"]["fingerprint"] == DIGITS.fingerprint
    assert described["backend"]["name"] == keras.config.backend()
    with open(folder / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert {"loss", "marginal_entropy", "classes_used"} <= set(rows[0])
    assert np.array_equal(result.history["loss"], [float(row["loss"]) for row in rows])
    with Image.open(folder / "curves.png") as picture:
        assert picture.width > 1000
    encoder = keras_issl.from_preset(folder)
    np.testing.assert_array_equal(
        encoder.predict(DIGITS.images, verbose=0), result.model.encoder.predict(DIGITS.images, verbose=0)
    )
    metadata = json.loads((folder / "preset" / "metadata.json").read_text())
    assert metadata["recipe"] == described["recipe"] and metadata["probe"] == "linear"


class InterruptAfter(keras.callbacks.Callback):
    """Sends this process a real signal in the middle of an epoch."""

    def __init__(self, batches, number=signal.SIGINT):
        super().__init__()
        self.left, self.number = batches, number

    def on_train_batch_begin(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_at_the_next_batch_and_handlers_come_back(number):
    model = recipes.build(tiny(), len(DIGITS))
    before = signal.getsignal(number)
    stop = callbacks.StopOnSignal()
    model.fit(DIGITS, batch_size=32, epochs=3, callbacks=[stop, InterruptAfter(5, number)], verbose=0)
    assert stop.received == signal.Signals(number).name
    assert int(model.steps) == 5
    assert signal.getsignal(number) is before
    assert np.isfinite(model.predict(DIGITS.images, verbose=0)).all()


COMMAND = [sys.executable, "-m", "keras_issl.cli", "pretrain", "digits", "--limit", "96", "--batch-size", "32"]


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


@pytest.mark.slow("tensorflow", "jax")  # test_checkpoints.py does it with `fit`
def test_interrupted_run_resumes_to_the_same_weights(tmp_path):
    """A real Ctrl-C in a real process; the resumed run equals the uninterrupted one, bit for bit."""
    recipe = tiny(epochs=20)
    whole = runs.pretrain(recipe, DIGITS, tmp_path / "whole", verbose=False)
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); import test_runs as t;"
        "r = t.runs.pretrain(t.tiny(epochs=20), t.DIGITS, sys.argv[1], verbose=False,"
        "resume=len(sys.argv) > 3); print(r.finished_epochs, r.stopped_by)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "part"), os.path.dirname(__file__)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: runs.checkpoints(tmp_path / "part") or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    finished, stopped_by = said.split()
    assert stopped_by == "SIGINT" and int(finished) < 20  # or within the first epoch
    assert keras_issl.from_preset(tmp_path / "part").output_shape == (None, 8)
    resumed = subprocess.run([*command, "resume"], capture_output=True, text=True, check=True)
    assert resumed.stdout.split() == ["20", "None"]
    part = keras_issl.from_preset(tmp_path / "part")
    for a, b in zip(part.weights, whole.model.encoder.weights, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(a), ops.convert_to_numpy(b))
    history = report.read_history(tmp_path / "part" / "history.csv")
    assert history == whole.history


@pytest.mark.backend_independent
def test_a_killed_process_leaves_no_lock_and_a_living_one_keeps_it(tmp_path):
    folder = tmp_path / "run"
    code = (
        "import sys, time, keras_issl.runs as r\n"
        "with r.locked_folder(sys.argv[1]):\n    print(1, flush=True)\n    time.sleep(99)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE)
    process.stdout.readline()
    (folder / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="Another process"), runs.locked_folder(folder, resume=True):
        pass
    process.kill()
    process.wait()
    process.stdout.close()
    with runs.locked_folder(folder, resume=True):
        pass
    (folder / "run.json").rename(folder / ".run.json.123.tmp")  # it was killed while it wrote that
    with runs.locked_folder(folder), runs.locked_folder(tmp_path / "other"):
        pass


@pytest.mark.backend_independent
def test_occupied_folders_are_refused_and_kept(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for resume, words in ((False, "should be a new folder"), (True, "holds no run")):
        with pytest.raises(ValueError, match=words):
            runs.pretrain(tiny(), DIGITS, tmp_path, resume=resume, verbose=False)
    with pytest.raises(ValueError, match="which is a file"):
        runs.pretrain(tiny(), DIGITS, tmp_path / "notes.txt", verbose=False)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.backend_independent
def test_a_recipe_that_cannot_be_built_leaves_the_folder_free(tmp_path):
    broken = tiny("simclr", objective_args={"output_dim": 0})
    for _ in range(2):
        with pytest.raises(ValueError, match="`output_dim`"):
            runs.pretrain(broken, DIGITS, tmp_path / "run", verbose=False)
    runs.pretrain(tiny(epochs=1), DIGITS, tmp_path / "run", verbose=False)


@pytest.mark.backend_independent
def test_a_run_that_fit_refuses_leaves_the_folder_as_it_was(tmp_path):
    """SimCLR takes no small crops, which shows in its first step; the right recipe then finds the folder free."""
    crops = {"augmentation": "multi_crop", "augmentation_args": {"size": 8, "small_size": 4, "num_small": 2}}
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        with pytest.raises(ValueError, match="2 views for SimCLR"):
            runs.pretrain(tiny("simclr", **crops), DIGITS, tmp_path / name, verbose=False)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    assert {path.name for path in (tmp_path / "empty").iterdir()} <= {"lock"}
    for name in ("new", "empty"):
        runs.pretrain(tiny("simclr", epochs=1), DIGITS, tmp_path / name, verbose=False)


def test_a_run_that_fails_after_a_step_keeps_everything(tmp_path):
    diverges = tiny(learning_rate=1e30, warmup_fraction=0.0, clip_value=1e30, epochs=20)
    said = r"Step 1 \(epoch 1, .*too large to compute with.*last good weights are preset/ .* last_good.weights.h5"
    with pytest.raises(FloatingPointError, match=said):
        runs.pretrain(diverges, DIGITS, tmp_path / "run", verbose=False)
    assert (tmp_path / "run" / "run.json").is_file() and (tmp_path / "run" / "checkpoints").is_dir()
    model = recipes.build(diverges, len(DIGITS))
    model.optimizer.build(model.trainable_variables)
    model.load_weights(tmp_path / "run" / "last_good.weights.h5")
    assert all(np.abs(ops.convert_to_numpy(w)).max() < 1e6 for w in model.weights)
    assert np.isfinite(keras_issl.from_preset(tmp_path / "run").predict(DIGITS.images, verbose=0)).all()
    assert "Stopped: NaN or infinity" in (tmp_path / "run" / "report.html").read_text()
    with pytest.raises(ValueError, match="should be a new folder"):
        runs.pretrain(diverges, DIGITS, tmp_path / "run", verbose=False)


@pytest.mark.backend_independent
def test_resuming_with_another_recipe_or_other_data_is_refused(tmp_path):
    runs.pretrain(tiny(epochs=1), DIGITS, tmp_path / "run", verbose=False)
    before = (tmp_path / "run" / "preset" / "model.weights.h5").read_bytes()
    with pytest.raises(ValueError, match="recipe.epochs: 1 there, 3 now"):
        runs.pretrain(tiny(epochs=3), DIGITS, tmp_path / "run", resume=True, verbose=False)
    with pytest.raises(ValueError, match="data.fingerprint"):
        runs.pretrain(tiny(epochs=1), DIGITS.take(64), tmp_path / "run", resume=True, verbose=False)
    assert (tmp_path / "run" / "preset" / "model.weights.h5").read_bytes() == before


@pytest.mark.backend_independent
def test_what_is_refused_changes_nothing_and_what_is_forced_is_told(tmp_path, monkeypatch):
    """The recipe and the images are the same, and only the optimizer, which `fit` compares, is another one."""
    folder = tmp_path / "run"
    runs.pretrain(tiny(epochs=2), DIGITS, folder, verbose=False)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}
    build = recipes.build

    def other(*args, **kwargs):
        model = build(*args, **kwargs)
        model.compile("sgd")
        return model

    with monkeypatch.context() as patch, pytest.raises(ValueError, match="optimizer.name"):
        patch.setattr(recipes, "build", other)
        runs.pretrain(tiny(epochs=2), DIGITS, folder, resume=True, verbose=False)
    with pytest.raises(ValueError, match="`model` should be built"), pytest.warns(UserWarning, match="Going on"):
        wide = tiny(epochs=2)
        wide = dataclasses.replace(wide, encoder_args=wide.encoder_args | {"width": 16})
        runs.pretrain(wide, DIGITS, folder, resume=True, force=True, verbose=False)
    assert {path: path.read_bytes() for path in before} == before
    with pytest.warns(UserWarning, match="Going on although"):
        again = tiny(epochs=3, objective_args=tiny().objective_args | {"invariance_weight": 0.5})
        runs.pretrain(again, DIGITS, folder, resume=True, force=True, verbose=False)
    told = json.loads((folder / "run.json").read_text())
    assert told["objective"]["config"]["invariance_weight"] == 0.5
    assert told["calls"][0]["finished_epochs"] == 2 and told["ended"]["finished_epochs"] == 3
    assert "recipe.epochs: 2 there, 3 now" in told["forced"][0]["changes"]


@pytest.mark.backend_independent
def test_a_signal_after_training_finds_all_saved(tmp_path, monkeypatch):
    """Ctrl-C while the preset is written: it is written, and the handler comes back afterwards."""
    save, before = keras_issl.zoo.save_preset, signal.getsignal(signal.SIGINT)

    def interrupted(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)  # it arrives
        save(*args, **kwargs)

    monkeypatch.setattr(keras_issl.zoo, "save_preset", interrupted)
    result = runs.pretrain(tiny(epochs=1), DIGITS, tmp_path / "run", verbose=False)
    assert (result.finished_epochs, result.stopped_by) == (1, "SIGINT")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["ended"]["stopped_by"] is None
    assert signal.getsignal(signal.SIGINT) is before
    assert keras_issl.from_preset(tmp_path / "run").output_shape == (None, 8)


def test_a_loss_that_is_not_a_number_stops_the_run():
    model = recipes.build(tiny(learning_rate=1e30, warmup_fraction=0.0, clip_value=1e30), len(DIGITS))
    with pytest.raises(FloatingPointError, match="Lower the learning rate"):
        model.fit(DIGITS, batch_size=32, epochs=20, verbose=0)


@pytest.mark.backend_independent
def test_comparison_resumes_and_prints_one_table(tmp_path):
    train, test = datasets.load("digits", split="train").take(200), datasets.load("digits", split="test").take(100)
    said = []
    arguments = (lambda objective: tiny(objective, epochs=1), train, test, tmp_path / "c")
    options = {"objectives": ("simclr", "dissl"), "shots": (1, None), "draws": 2}
    first = comparison.compare(*arguments, **options, say=said.append)
    assert list(first.rows) == ["raw pixels", "random encoder", "SimCLR", "DISSL"]
    header = first.table().splitlines()[0]
    assert "1 label a class" in header and "all labels" in header
    assert 0.5 < first.rows["raw pixels"][None][0] <= 1
    with pytest.raises(ValueError, match="resume"):
        comparison.compare(*arguments, **options, say=said.append)
    said.clear()
    again = comparison.compare(*arguments, **options, resume=True, say=said.append)
    assert again == first and not said, "nothing is done twice"
    with Image.open(tmp_path / "c" / "comparison.png") as picture:
        assert picture.width > 500
    with pytest.raises(ValueError, match="other draws"):
        comparison.compare(*arguments, **options | {"draws": 3}, resume=True)


# ---------------------------------------------------------------------- the command line
@pytest.fixture
def photographs(tmp_path):
    """A folder of real JPEG files in two classes, and a broken one."""
    digits = datasets.load("digits", split="train")
    for split, start in (("train", 0), ("test", 64)):
        for i in range(start, start + 64):
            folder = tmp_path / "photos" / split / ("even" if digits.labels[i] % 2 == 0 else "odd")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(digits.images[i]).resize((20, 16)).save(folder / f"{i}.jpg")
    return tmp_path / "photos"


@pytest.mark.slow("jax")
def test_pretrain_probe_and_features_on_a_folder_of_images(photographs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # reports are written to reports/
    run = str(tmp_path / "run")
    options = ["--epochs", "1", "--batch-size", "32", "--image-size", "16", "--num-classes", "16", "--out", run]
    assert cli.main(["pretrain", str(photographs), *options]) == 0
    out = capsys.readouterr().out
    assert out.startswith("backend: ") and f"written to {run}" in out
    assert cli.main(["probe", run, str(photographs), "--shots", "2", "--draws", "2"]) == 0
    out = capsys.readouterr().out
    assert "| labels a class | test top-1" in out and "64 images 16x16x3" in out
    page, result = sorted((tmp_path / "reports").iterdir())  # .html, .json
    assert f"Written: reports/{page.name}" in out and result.name in out
    assert keras_issl.results.Result.load(result).few_shot["2"]["draws"] == 2
    assert cli.main(["features", run, str(photographs), str(tmp_path / "f.npz"), "--split", "test"]) == 0
    features = keras_issl.Features.load(tmp_path / "f.npz")
    assert features.array.shape == (64, 128) and set(features.labels) == {0, 1}
    assert cli.main(["features", run, str(photographs), str(tmp_path / "f.npz")]) == 2
    assert "should not exist yet" in capsys.readouterr().err


@pytest.mark.backend_independent
@pytest.mark.slow("tensorflow", "jax")
def test_a_plain_folder_needs_no_splits(photographs, tmp_path, capsys, monkeypatch):
    """Images in class folders, or in no folders at all: the case that most users begin with."""
    monkeypatch.chdir(tmp_path)
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in sorted((photographs / "train" / "odd").iterdir()):
        path.rename(flat / path.name)
    options = ["--epochs", "1", "--batch-size", "16", "--num-classes", "16", "--image-size", "16"]
    assert cli.main(["pretrain", str(flat), *options, "--out", str(tmp_path / "a")]) == 0
    assert cli.main(["pretrain", str(photographs / "test"), *options, "--out", str(tmp_path / "b")]) == 0
    same = ["--split", "test", "--test-split", "test"]
    assert cli.main(["probe", str(tmp_path / "b"), str(photographs), *same]) == 2
    assert "different images" in capsys.readouterr().err
    assert cli.main(["probe", str(tmp_path / "b"), str(photographs / "test")]) == 0
    assert "a stratified fifth, 13 images, is held out as test" in capsys.readouterr().out


@pytest.mark.backend_independent
def test_test_labels_are_numbered_as_in_training():
    images = np.zeros((4, 4, 4, 3), "uint8")
    test = datasets.ImageDataset(images, np.array([0, 1, 1, -1]), class_names=("ant", "cat"))
    assert list(test.with_classes(("ant", "bee", "cat")).labels) == [0, 2, 2, -1]
    with pytest.raises(ValueError, match=r"without \['cat'\]"):
        test.with_classes(("ant", "bee"))


@pytest.mark.backend_independent
def test_broken_images_are_named_and_skipped_on_request(photographs, tmp_path, capsys):
    (photographs / "train" / "odd" / "broken.jpg").write_bytes(b"\xff\xd8 not a picture")
    options = ["--epochs", "1", "--batch-size", "32", "--num-classes", "16", "--image-size", "16"]
    assert cli.main(["pretrain", str(photographs), *options, "--out", str(tmp_path / "a")]) == 2
    assert "broken.jpg" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    with pytest.warns(UserWarning, match="broken"):
        assert cli.main(["pretrain", str(photographs), *options, "--skip-broken", "--out", str(tmp_path / "a")]) == 0
    assert "1 skipped" in capsys.readouterr().out


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pretrain", "/no/such/folder"], "/no/such/folder"),
        (["pretrain", "--objective", "cissl", "--num-classes", "9"], "is for DISSL"),
        (["pretrain", "--resume"], "--out"),
        (["pretrain", "--epochs", "0", "--out", "unused"], "`epochs`"),
        (["probe", "/no/such/preset"], "which is no folder"),
        (["features", "/no/such/preset", "digits", "x.csv"], ".npz"),
    ],
)
def test_mistakes_are_one_line_on_stderr(arguments, words, capsys):
    assert cli.main(arguments) == 2
    err = capsys.readouterr().err
    assert words in err and "Traceback" not in err and err.count("\n") == 1


@pytest.mark.backend_independent
def test_a_run_without_its_checkpoints_is_not_begun_anew_and_mistakes_leave_no_folder(tmp_path):
    runs.pretrain(tiny(epochs=1), DIGITS, tmp_path / "run", page=False, verbose=False)
    history = (tmp_path / "run" / "history.csv").read_text()
    for _, path in runs.checkpoints(tmp_path / "run"):
        path.unlink()
    with pytest.raises(ValueError, match="should have its checkpoints"):
        runs.pretrain(tiny(epochs=1), DIGITS, tmp_path / "run", resume=True, page=False, verbose=False)
    assert (tmp_path / "run" / "history.csv").read_text() == history
    with pytest.raises(ValueError, match="`every_seconds` should be a positive number"):
        runs.pretrain(tiny(epochs=1), DIGITS, tmp_path / "new", checkpoint_every=0, page=False, verbose=False)
    assert not (tmp_path / "new").exists()
