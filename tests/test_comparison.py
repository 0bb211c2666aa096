"""Objectives under one budget: what is finished stays, whatever ends the process; differences are paired."""

import json
import os
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from keras import ops
from PIL import Image

from keras_issl import comparison, datasets, probes, recipes, runs, zoo
from keras_issl.comparison import rows as storage
from keras_issl.comparison import shared

pytestmark = pytest.mark.backend_independent  # the runs themselves are tested on every backend in test_runs.py
ARGUMENTS = {"simclr": {"output_dim": 8, "hidden": (16,)}, "dissl": {"num_classes": 16, "teacher_hidden": (16,)}}


def split(name, count):
    return datasets.load("digits", split=name).take(count)


def recipe(objective, **changes):
    encoder = {"blocks": (1,), "width": 8, "image_size": 8, "stem": "cifar"}
    changes = {"epochs": 2, "batch_size": 32, "objective_args": ARGUMENTS[objective]} | changes
    return recipes.digits(objective, encoder_args=encoder, **changes)


def compare(out, objectives=("simclr", "dissl"), seeds=(1,), say=lambda text: None, **changes):
    make = lambda objective: recipe(objective, **changes)  # noqa: E731
    options = {"objectives": objectives, "seeds": seeds, "bootstrap": 200, "say": say}
    return comparison.compare_seeds(make, split("train", 128), split("test", 100), out, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A comparison of two objectives in one call."""
    out = tmp_path_factory.mktemp("finished") / "out"
    return out, compare(out)


def numbers(out):
    """What each run found, in the order of the objectives: all of its row that the clock does not decide."""
    kept = storage.COLUMNS[:5] + storage.COLUMNS[6:10]  # without `seconds`
    return sorted([row[name] for name in kept] for row in storage.read_rows(out / "results.csv"))


def test_a_row_says_what_was_run(finished):
    out, found = finished
    rows = {row["objective"]: row for row in storage.read_rows(out / "results.csv")}
    assert list(rows) == ["raw_pixels", "random_encoder", "simclr", "dissl"]
    row = rows["dissl"]
    assert (row["seed"], row["epochs"], row["images"], row["steps"]) == (1, 2, 128, 8)
    history = (out / "dissl-s1" / "history.csv").read_text().splitlines()
    column = history[0].split(",").index("loss")
    assert [row["first_loss"], row["last_loss"]] == [float(line.split(",")[column]) for line in history[1:]]
    assert json.loads(row["versions"])["keras"] == keras.__version__ and json.loads(row["hardware"])["cores"] >= 1
    assert row["seconds"] > 0 and row["linear_probe"].startswith("C = ") and row["knn_probe"].startswith("k = ")
    assert "128 images without labels" in row["protocol"] and "100 test images" in row["protocol"]
    assert rows["random_encoder"]["seconds"] is None

    assert list(found.rows) == ["raw pixels", "random encoder", "SimCLR", "DISSL"]
    assert found.rows["DISSL"].linear == (row["linear_top1"],) and found.rows["DISSL"].knn == (row["knn_top1"],)
    assert (out / "comparison.md").read_text() == f"{found.table()}\n\n{found.protocol}\n"
    with Image.open(out / "comparison.png") as picture:
        assert picture.width > 800


def test_right_guesses_are_those_of_the_probes_on_the_encoder(finished):
    """From the preset that the run left, with probes of our own."""
    out, _ = finished
    train, test = shared.features(zoo.from_preset(out / "simclr-s1"), split("train", 128), split("test", 100))
    with np.load(out / "right" / "simclr-s1.npz") as right:
        for key, probe in (("linear", probes.LinearProbe()), ("knn", probes.KNNProbe())):
            np.testing.assert_array_equal(right[key], probe.fit(train).predict(test) == test.labels)


def test_every_objective_of_a_seed_starts_alike_and_sees_the_same_views():
    first, second = (recipes.build(recipe(objective, seed=3), 128) for objective in ("simclr", "dissl"))
    for a, b in zip(first.encoder.weights, second.encoder.weights, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(a), ops.convert_to_numpy(b))
    images = split("train", 8).images
    for _ in range(2):
        for a, b in zip(first.views(images), second.views(images), strict=True):
            np.testing.assert_array_equal(ops.convert_to_numpy(a), ops.convert_to_numpy(b))
    other = recipes.build(recipe("simclr", seed=4), 128).encoder.weights[0]
    assert not np.array_equal(ops.convert_to_numpy(other), ops.convert_to_numpy(first.encoder.weights[0]))


CODE = (
    "import sys; sys.path.insert(0, sys.argv[2]); import test_comparison as t;"
    "t.compare(sys.argv[1], objectives=['dissl'])"
)


def test_what_is_killed_goes_on_and_parts_make_the_whole(finished, tmp_path):
    """kill -9 within a run, the same call again, then the other objective: the same rows as in one call."""
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", CODE, str(out), os.path.dirname(__file__)])
    end = time.monotonic() + 120
    while not runs.checkpoints(out / "dissl-s1"):  # it is under way
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    process.kill()
    assert process.wait() < 0
    before, said = (out / "results.csv").read_text(), []
    assert [row["objective"] for row in storage.read_rows(out / "results.csv")] == ["raw_pixels", "random_encoder"]
    (out / ".results.csv.1.tmp").write_text("dissl,1,2")  # what a kill in the middle of a row leaves

    part = compare(out, objectives=["dissl"], say=said.append)
    assert (out / "results.csv").read_text().startswith(before), "finished rows are kept as they are"
    assert len(said) == 2 and all(line.startswith("DISSL, seed 1") for line in said), "nothing is done twice"
    assert 0 < json.loads((out / "dissl-s1" / "seconds.json").read_text())["from_step"] < 8
    assert part.rows["DISSL"].seeds == (1,) and part.rows["DISSL"].difference is None

    found = compare(out, objectives=["simclr"])
    assert numbers(out) == numbers(finished[0])
    assert list(found.rows) == list(finished[1].rows) and found.rows["DISSL"].difference is not None

    before = (out / "results.csv").read_bytes()
    said.clear()
    assert compare(out, say=said.append) == found and not said
    last = storage.read_rows(out / "results.csv")[-1]
    storage.add_row(out / "results.csv", last | {"date": "later"})  # as a second process would that did the same
    assert (out / "results.csv").read_bytes() == before


# ---------------------------------------------------------------------- the statistics, on made-up guesses
def made_up(out, right):
    """A comparison's folder from a dict of (objective, seed) to (N,) booleans."""
    out.mkdir()
    for (name, seed), linear in right.items():
        facts = dict.fromkeys(storage.COLUMNS, "x") | dict.fromkeys(storage.WHOLE, 1) | dict.fromkeys(storage.DECIMAL)
        facts |= {"objective": name, "seed": seed, "linear_top1": float(linear.mean()), "knn_top1": 0.25, "seconds": 60}
        storage.save_right(out, name, seed, {"linear": linear})
        storage.add_row(out / "results.csv", facts)
    return comparison.summarise(out, bootstrap=20_000)


def test_differences_are_those_of_a_direct_bootstrap(rng, tmp_path):
    """Resampling the test images one by one; over the seeds that both have; pixels, which know none, against all."""
    hard = rng.random(300)  # images differ in how hard they are: right guesses are correlated, pairing counts
    shares = {("raw_pixels", 0): 0.3} | {("simclr", seed): 0.5 for seed in (0, 1, 2)}
    shares |= {("dissl", seed): 0.6 for seed in (1, 2, 3)}
    right = {key: hard + rng.normal(0, 0.2, 300) < share for key, share in shares.items()}
    found = made_up(tmp_path / "out", right).rows

    mean = lambda name, seeds: np.mean([right[name, seed] for seed in seeds], axis=0)  # noqa: E731
    for label, gaps in (
        ("DISSL", mean("dissl", (1, 2)) - mean("simclr", (1, 2))),
        ("raw pixels", right["raw_pixels", 0] - mean("simclr", (0, 1, 2))),
    ):
        means = np.array([gaps[rng.integers(0, 300, 300)].mean() for _ in range(20_000)])
        value, low, high = found[label].difference
        assert value == pytest.approx(gaps.mean(), abs=1e-12)
        assert [low, high] == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=0.004)
        assert 0.02 < high - low < 0.12
    assert found["SimCLR"].difference is None


def test_the_table_is_means_and_deviations_over_seeds(rng, tmp_path):
    right = {("simclr", seed): np.arange(100) < share for seed, share in ((0, 50), (1, 54), (2, 55))}
    right |= {("moco_v3", 0): np.arange(100) < 60}
    lines = made_up(tmp_path / "out", right).table().splitlines()
    assert lines[0].split("|")[3].strip() == "difference to SimCLR"
    cells = [cell.strip() for cell in lines[2].split("|")[1:-1]]
    assert cells == ["SimCLR", f"53.0 ± {np.std([50, 54, 55], ddof=1):.1f}", "", "25.0 ± 0.0", "60"]
    cells = [cell.strip() for cell in lines[3].split("|")[1:-1]]
    assert cells[:2] == ["MoCo v3 (1 of 3 seeds)", "60.0"] and cells[2].startswith("+10.0 [+") and cells[3] == "25.0"


def test_damaged_files_are_named(rng, tmp_path):
    path, keys = tmp_path / "out" / "results.csv", [("simclr", 0), ("dissl", 0)]
    made_up(tmp_path / "out", {key: rng.random(50) < 0.5 for key in keys})
    text = path.read_text()
    last = text.rindex("dissl,0")
    for damaged, words in (
        (text[: last + 20], "line 3 should be a row"),
        (text[:last] + '"dissl', "whole rows"),
        (text + text[last:], "line 4 repeats dissl, seed 0"),
        (text.replace("dissl,0,1", "dissl,0,one"), "line 3 should be a row"),
        (text.replace("dissl,0,1", "dizzl,0,1"), "line 3 should be a row"),
        (text.replace("last_loss", "loss"), "should begin with the columns"),
    ):
        path.write_text(damaged)
        with pytest.raises(ValueError, match=words):
            comparison.summarise(path.parent)
        assert path.read_text() == damaged
    path.write_text(text)
    storage.save_right(path.parent, "dissl", 0, {"linear": np.zeros(50, bool)})
    with pytest.raises(ValueError, match=r"dissl-s0.npz should be of the same run"):
        comparison.summarise(path.parent)
    (path.parent / "right" / "dissl-s0.npz").unlink()
    with pytest.raises(ValueError, match=r"dissl-s0.npz should hold the right guesses"):
        comparison.summarise(path.parent)
    with pytest.raises(ValueError, match="a row at least"):
        comparison.summarise(tmp_path / "empty")


# ---------------------------------------------------------------------- what is refused
def test_another_budget_is_refused_and_nothing_is_touched(finished):
    out, _ = finished
    files = {path: path.read_bytes() for path in (out / "results.csv", out / "budget.json")}
    with pytest.raises(ValueError, match="another budget: epochs: 2 there, 3 now"):
        compare(out, epochs=3)
    with pytest.raises(ValueError, match="another budget: dissl's arguments: .*16.* there, .*32.* now"):
        compare(out, objectives=["dissl"], objective_args={"num_classes": 32})
    with pytest.raises(ValueError, match="another budget: data"):
        comparison.compare_seeds(recipe, split("train", 96), split("test", 100), out, objectives=["simclr"])
    assert {path: path.read_bytes() for path in files} == files


def test_recipes_that_differ_in_more_than_the_objective_are_refused(tmp_path):
    make = lambda objective: recipe(objective, epochs=1 if objective == "simclr" else 2)  # noqa: E731
    with pytest.raises(ValueError, match="other epochs for dissl than for simclr"):
        comparison.compare_seeds(make, split("train", 64), split("test", 32), tmp_path, objectives=("simclr", "dissl"))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objectives": ("simclr", "simlcr")}, "`objectives` should be different names of simclr"),
        ({"objectives": ()}, "`objectives`"),
        ({"seeds": (0, 0)}, "`seeds` should be different integers"),
        ({"seeds": (-1,)}, "`seeds`"),
    ],
)
def test_bad_requests_leave_no_folder(options, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        compare(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no comparison"):
        compare(tmp_path)
    with pytest.raises(ValueError, match="which is a file"):
        compare(tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
