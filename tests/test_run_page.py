"""The page of a real run, at its end and in its middle; runs compared; both from a shell."""

import json
import re
import shutil

import keras
import numpy as np
import pytest

from keras_issl import cli, datasets, recipes, report, runs

pytestmark = [
    pytest.mark.backend_independent,  # training is tested on every backend in test_runs.py
    pytest.mark.filterwarnings("ignore:Uniform teacher"),
]
SOURCE = {"source": "digits", "split": "train", "limit": 96}
DIGITS = datasets.load(**SOURCE)


def recipe(**changes):
    encoder = {"blocks": (1,), "width": 8, "image_size": 8, "stem": "cifar"}
    args = {"num_classes": 32, "teacher_hidden": (16,), "bottleneck": 8}
    return recipes.digits(encoder_args=encoder, objective_args=args, **{"epochs": 3, "batch_size": 32} | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two runs of digits whose source is known, the second with another learning rate."""
    folder = tmp_path_factory.mktemp("runs")
    for name, rate in (("first", 4e-3), ("second", 8e-3)):
        overrides = {"learning_rate": rate}
        runs.pretrain(recipe(**overrides), DIGITS, folder / name, overrides=overrides, source=SOURCE, verbose=False)
    return folder


def headings(page):
    return re.findall(r"<h[23][^>]*>([^<]*)</h[23]>", page)


def test_the_page_has_all_that_was_promised(finished):
    page = (finished / "first" / "report.html").read_text()
    for title in ("At a glance", "Curves", "Representation over time", "Throughput", "What the model sees",
                  "Nearest neighbours, before training", "Nearest neighbours, now", "Recipe", "Protocol"):  # fmt: skip
        assert title in headings(page), title
    for drawn in ("loss", "H(M)", "log min(B, C)", "KL between views", "exp H(M)", "learning rate", "effective rank",
                  "online top-1", "images a second", "wait for the batch"):  # fmt: skip
        assert drawn in page, drawn
    assert page.count("data:image/png") == 3 and "<script" not in page and 'src="http' not in page


def test_what_is_read_is_what_the_run_recorded(finished):
    run = runs.read(finished / "first")
    told = json.loads((finished / "first" / "run.json").read_text())
    assert (run.objective, run.feature_dim, run.online_probe) == ("DISSL", 8, {"classes": 10})
    assert run.finished_epochs == 3 and run.steps == 9 and run.recipe == told["recipe"]
    assert run.overrides == {"learning_rate": 4e-3} and run.config["num_classes"] == 32
    assert told["ended"]["stopped_by"] is None and run.verdicts
    assert set(run.step_parts) == {"wait for the batch", "training step", "recording", "checkpoints"}


def test_a_page_can_be_made_in_the_middle_and_without_the_images(finished, tmp_path):
    """What another process has written so far: no `ended`, a record cut off, one checkpoint."""
    folder = tmp_path / "running"
    shutil.copytree(finished / "first", folder)
    told = json.loads((folder / "run.json").read_text())
    del told["ended"]
    told["source"] = {**SOURCE, "source": "nowhere"}
    (folder / "run.json").write_text(json.dumps(told))
    records = (folder / "records.csv").read_text().splitlines()
    (folder / "records.csv").write_text("\n".join(records[:6]) + "\n7,2.3")
    (folder / "report.html").unlink()
    said = []
    path, run = runs.make_page(folder, say=said.append)
    assert run.steps == 4 and "no pictures" in said[0] and "data:image/png" not in path.read_text()
    path, run = runs.make_page(folder, tmp_path / "with.html", data=DIGITS, say=said.append)
    assert path.read_text().count("data:image/png") == 3 and not (folder / "with.html").exists()
    shutil.rmtree(folder / "checkpoints")
    (folder / "records.csv").unlink()
    (folder / "history.csv").unlink()
    assert "Nothing has been measured yet" in runs.make_page(folder)[0].read_text()


def test_other_images_than_the_runs_are_refused(finished, tmp_path):
    with pytest.raises(ValueError, match="`data` should be the run's images"):
        runs.make_page(finished / "first", tmp_path / "x.html", data=DIGITS.take(64))
    with pytest.raises(ValueError, match="should be a run folder"):
        runs.make_page(tmp_path)


def test_a_run_that_goes_on_has_not_ended_yet(tmp_path):
    folder = tmp_path / "run"
    runs.pretrain(recipe(epochs=2), DIGITS, folder, page=False, verbose=False)
    told = json.loads((folder / "run.json").read_text())
    told["ended"]["stopped_by"] = "SIGINT"
    (folder / "run.json").write_text(json.dumps(told))
    history = (folder / "history.csv").read_text()
    (folder / "history.csv").write_text(history + "2,0.1")  # cut off by a kill
    assert runs.read(folder).stopped_by == "SIGINT" and len(runs.read(folder).history["loss"]) == 2
    again = runs.folder.describe(folder, {name: told[name] for name in ("recipe", "data")}, None, [])
    assert runs.read(folder).stopped_by == "SIGINT", "what may yet be refused changes nothing"
    runs.folder.begin(folder, again, 2)  # as a resumed run begins
    assert runs.read(folder).stopped_by is None and runs.read(folder).finished_epochs is None
    runs.pretrain(recipe(epochs=2), DIGITS, folder, resume=True, page=False, verbose=False)
    after = json.loads((folder / "run.json").read_text())
    assert [call["stopped_by"] for call in after["calls"]] == ["SIGINT"] and after["ended"]["stopped_by"] is None
    with pytest.raises(ValueError, match="`online_probe` should be as it was when the run began, on"):
        runs.pretrain(recipe(epochs=2), DIGITS, folder, resume=True, online_probe=False, verbose=False)


def test_parts_of_a_step_add_up_to_it(finished, tmp_path):
    _, run = runs.make_page(finished / "first", tmp_path / "x.html", profile=True)
    whole = runs.read(finished / "first").step_parts["training step"]
    parts = [run.step_parts[name] for name in ("make views", "encoder and heads, forward", "backward and update")]
    assert sum(parts) == pytest.approx(whole) and min(parts) >= 0


def test_labels_are_left_alone_where_no_probe_is_wanted(tmp_path):
    runs.pretrain(recipe(epochs=1), DIGITS, tmp_path / "run", online_probe=False, page=False, verbose=False)
    assert runs.read(tmp_path / "run").online_probe is None
    assert "online_top1" not in report.read_records(tmp_path / "run" / "records.csv")
    with pytest.raises(ValueError, match="at least two classes for an online probe"):
        bare = datasets.ImageDataset(DIGITS.images)
        runs.pretrain(recipe(epochs=1), bare, tmp_path / "bare", online_probe=True, verbose=False)


@pytest.mark.usefixtures("guard_with_time")
def test_a_run_that_the_guard_stopped_says_so(tmp_path):
    keras.utils.set_random_seed(0)
    data = datasets.load("digits", split="train").take(256)
    encoder = {"blocks": (1,), "width": 8, "image_size": 8, "stem": "cifar"}
    collapsing = recipes.digits(encoder_args=encoder, epochs=20, batch_size=64, learning_rate=0.4)
    with pytest.warns(UserWarning, match="Training stops here"):
        result = runs.pretrain(collapsing, data, tmp_path / "run", on_collapse="stop", page=False, verbose=False)
    assert result.stopped_by == "collapse" and 0 < result.finished_epochs < 20
    assert result.verdicts[0].kind == "one_class" and (tmp_path / "run" / "preset").is_dir()
    assert "Stopped by the collapse guard" in {v.title for v in runs.read(tmp_path / "run").verdicts}


# ---------------------------------------------------------------------- from a shell
def test_report_and_compare_from_a_shell(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = str(finished / "first"), str(finished / "second")
    assert cli.main(["report", first, "--out", "page.html", "--profile"]) == 0
    assert "written to page.html" in capsys.readouterr().out
    assert "backward and update" in (tmp_path / "page.html").read_text()
    assert cli.main(["compare", first, second, "--out", "two.html"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"learning_rate\s+\| 0.004 +\| 0.008", said) and "written to two.html" in said
    page = (tmp_path / "two.html").read_text()
    assert "learning_rate" in page and page.count("<svg") > 5
    assert cli.main(["compare", first, second, "--out", "two.html"]) == 2
    assert "does not exist yet" in capsys.readouterr().err
    assert cli.main(["compare", first]) == 2 and cli.main(["report", str(tmp_path)]) == 2
    assert "should be a run folder" in capsys.readouterr().err


def test_pretrain_from_a_shell_writes_the_page_and_knows_its_images_again(tmp_path, capsys):
    out = tmp_path / "run"
    options = ["--limit", "64", "--batch-size", "32", "--epochs", "1", "--on-collapse", "stop", "--log", "tensorboard"]
    assert cli.main(["pretrain", "digits", *options, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "report.html (the page of the run)" in said and "online top-1" in said
    assert list((out / "tensorboard").iterdir())
    told = json.loads((out / "run.json").read_text())
    again = datasets.load(**told["source"])
    assert again.fingerprint == told["data"]["fingerprint"] and np.array_equal(again.images.shape, (64, 8, 8, 3))
