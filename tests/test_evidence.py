"""The tools that turn recipes into evidence: the paper's table and the studies, in small."""

import csv
import json
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import keras_issl
from keras_issl import probes
from keras_issl.report.sweep import Panel, _draw, _edges, sweep

pytestmark = [
    pytest.mark.backend_independent,  # the runs themselves are tested on every backend in test_runs.py
    pytest.mark.filterwarnings("ignore:.*incomplete last batch", "ignore:No augmentation", "ignore:.*never changes"),
]
ROOT = Path(keras_issl.__file__).parent.parent
sys.path.append(str(ROOT / "tools"))
import reproduce_table1  # noqa: E402
import study  # noqa: E402

# The authors' README: baseline, ours, +dim, +epochs, +aug.
CONTRASTIVE, DISTILLATION = (45.2, 45.8, 47.6, 48.7, 51.2), (43.3, 45.1, 48.0, 49.0, 50.7)


def folder(tmp_path, side, test, sizes):
    """Images of two classes, light and dark, in the layout of folders."""
    rng = np.random.default_rng(0)
    for split, count in zip(("train", test), sizes, strict=True):
        for label, light in (("dark", 60), ("light", 160)):
            place = tmp_path / "images" / split / label
            place.mkdir(parents=True)
            for i in range(count // 2):
                Image.fromarray(rng.integers(0, 95, (side, side, 3)).astype("uint8") + light).save(place / f"{i}.png")
    return str(tmp_path / "images")


# ---------------------------------------------------------------------- the paper's table
def test_the_cells_stand_in_the_papers_order_beside_its_figures():
    assert tuple(reproduce_table1.PUBLISHED.values()) == CONTRASTIVE + DISTILLATION
    assert reproduce_table1.CELLS[::5] == ("simclr", "dino")
    steps = reproduce_table1.BEFORE
    assert "simclr" not in steps and steps["dino"] is None and steps["dissl"] == "dino"
    assert steps["cissl+dim"] == "cissl" and steps["dissl+dim+epochs+aug"] == "dissl+dim+epochs"
    for tier, epochs in (("smoke", (2, 2)), ("100", (100, 333)), ("paper", (300, 1000))):
        cells = ("dino", "cissl+dim+epochs")
        assert tuple(reproduce_table1._recipe(cell, tier, 1)[0].epochs for cell in cells) == epochs
    recipe, notes = reproduce_table1._recipe("dino", "100", 7)
    assert recipe.seed == 7 and "warmup_epochs 50 -> 25" in " ".join(
        notes
    )  # a shorter run changes more than its length


def test_cells_are_trained_once_and_stand_beside_each_other(tmp_path, capsys):
    data, out = folder(tmp_path, 64, "valid", (64, 40)), tmp_path / "out"
    call = [data, str(out), "--cells", "simclr", "cissl"]
    reproduce_table1.main([*call, "--minutes", "0"])
    assert "the same command goes on with simclr" in capsys.readouterr().out
    assert not (out / "smoke" / "simclr" / "run").exists()
    reproduce_table1.main(call)
    told, right = {}, {}
    for cell in ("simclr", "cissl"):
        told[cell] = json.loads((out / "smoke" / cell / "result.json").read_text())
        right[cell] = dict(np.load(out / "smoke" / cell / "right.npz"))
        assert told[cell]["top1"] == {name: values.mean() for name, values in right[cell].items()}
        assert set(right[cell]) == {"held_out", "linear", "on_test", "1e-06", "1e-05", "0.0001"}
        assert len(right[cell]["linear"]) == 40
        best = max((right[cell][decay] for decay in ("1e-06", "1e-05", "0.0001")), key=np.mean)
        np.testing.assert_array_equal(right[cell]["on_test"].mean(), best.mean())
        assert told[cell]["images_per_second"] > 0 and "best of 3 on test" in told[cell]["chosen"]["on_test"]
    text = (out / "smoke" / "table.md").read_text()
    header, _, first, second = (
        [cell.strip() for cell in line[1:-1].split("|")] for line in text.splitlines() if line.startswith("|")
    )
    first, second = dict(zip(header, first, strict=True)), dict(zip(header, second, strict=True))
    step = 100 * np.array(probes.paired_difference(right["cissl"]["held_out"], right["simclr"]["held_out"]))
    assert first["step"] == "" and float(second["step"].split(" [")[0]) == pytest.approx(step[0], abs=0.051)
    assert float(second["off"].split(" [")[0]) == pytest.approx(
        100 * told["cissl"]["top1"]["on_test"] - 45.8, abs=0.051
    )
    assert "shows that every cell runs, no more" in text and "on the validation images it is scored on" in text
    # What is done stays done, and another call does not mix with it.
    before = (out / "smoke" / "cissl" / "result.json").stat().st_mtime_ns
    reproduce_table1.main(call)
    assert (out / "smoke" / "cissl" / "result.json").stat().st_mtime_ns == before
    with pytest.raises(SystemExit, match="another recipe, seed or data"):
        reproduce_table1.main([*call, "--seed", "1"])
    # Killed between two probes, it goes on with the next.
    (out / "smoke" / "cissl" / "result.json").unlink()
    kept = {name: right["cissl"][name] for name in ("held_out", "1e-06")}
    np.savez(out / "smoke" / "cissl" / "right.npz", **kept)
    reproduce_table1.main(call)
    with np.load(out / "smoke" / "cissl" / "right.npz") as again:
        for name, values in right["cissl"].items():
            np.testing.assert_array_equal(again[name], values, err_msg=name)


def test_a_slice_waits_for_training_to_take_its_end():
    """A signal that comes while the model is built comes again, and none comes after."""
    before, taken = signal.getsignal(signal.SIGTERM), threading.Event()
    with reproduce_table1._ends_after(0.05):
        time.sleep(0.5)  # over before training begins: nothing is killed
        outer = signal.signal(signal.SIGTERM, lambda number, frame: taken.set())
        assert taken.wait(30)
        signal.signal(signal.SIGTERM, outer)
    assert signal.getsignal(signal.SIGTERM) is before
    with reproduce_table1._ends_after(3600):  # done in time
        pass
    assert signal.getsignal(signal.SIGTERM) is before


# ---------------------------------------------------------------------- studies
def test_a_study_has_a_row_a_point_and_trains_no_recipe_twice(tmp_path, capsys, monkeypatch):
    data, out = folder(tmp_path, 32, "test", (64, 40)), tmp_path / "out"
    points = [
        study.Point("seed", 0, {}),
        study.Point("maximality_weight", 2.3, {"objective_args": {"maximality_weight": 2.3}}),
        study.Point("maximality_weight", 0, {"objective_args": {"maximality_weight": 0}}),
        study.Point("learning_rate", 1e30, {"learning_rate": 1e30}),
    ]
    monkeypatch.setitem(study.STUDIES, "knobs", lambda: points)
    monkeypatch.setattr(study, "CLASSES", 16)
    for knob in ("seed", "maximality_weight"):
        study.main(["knobs", data, str(out), "--epochs", "2", "--only", knob])
    folders = {path.name for path in (out / "knobs").iterdir() if path.is_dir()}
    assert folders == {"seed-0-0", "maximality_weight-0-0"}
    study.main(["knobs", data, str(out), "--epochs", "2"])
    with open(out / "knobs" / "results.csv", newline="") as file:
        rows = {(row["knob"], row["value"]): row for row in csv.DictReader(file)}
    assert len(rows) == 6 and float(rows["raw pixels", "0"]["linear_top1"]) == 1.0  # light and dark
    own, copied = rows["seed", "0"], rows["maximality_weight", "2.3"]
    assert {k: v for k, v in own.items() if k not in study.KEY} == {
        k: v for k, v in copied.items() if k not in study.KEY
    }
    assert float(own["marginal_entropy"]) <= np.log(16) + 1e-3
    diverged = rows["learning_rate", "1e+30"]
    assert (diverged["problems"], diverged["linear_top1"]) == ("NaN", "")
    text = (out / "knobs" / "study.md").read_text()
    assert "random encoder, linear" in text and "scored once on 40 test images" in text
    assert (out / "knobs" / "study.png").stat().st_size > 10_000
    # A second seed: its runs stand beside the first one's. The knob of seeds has its own.
    study.main(["knobs", data, str(out), "--epochs", "2", "--seeds", "0", "1", "--only", "maximality_weight", "seed"])
    with open(out / "knobs" / "results.csv", newline="") as file:
        again = [tuple(row[name] for name in study.KEY) for row in csv.DictReader(file)]
    assert again[6:] == [("maximality_weight", "2.3", "", "1"), ("maximality_weight", "0", "", "1")]
    text = (out / "knobs" / "study.md").read_text()
    assert "says, the seeds that stand there, mean [lowest, highest], float32" in text
    assert "| 0, 1 |" in text and text.count("| maximality_weight | 0 ") == 1
    with pytest.raises(SystemExit, match="another recipe, other images or on another"):
        study.main(["knobs", data, str(out), "--epochs", "3"])
    capsys.readouterr()


def test_several_seeds_are_told_by_their_mean_and_range():
    assert study._cell("linear_top1", ["0.4", "0.38", "0.45"]) == "41.0 [38.0, 45.0]"
    assert study._cell("linear_top1", ["0.4", ""]) == "40.0 (1 of 2)" and study._cell("linear_top1", [""]) == ""
    assert study._cell("marginal_entropy", ["6.5", "6.75"]) == "6.62 [6.50, 6.75]"
    assert study._cell("value", ["2.3", "2.3"]) == "2.3" and study._cell("seed", ["0", "1"]) == "0, 1"
    assert study._cell("problems", ["few_classes", "", "few_classes NaN"]) == "few_classes (2 of 3), NaN (1 of 3)"
    assert study._cell("problems", ["few_classes NaN"]) == "few_classes, NaN"


def test_differences_are_taken_within_a_seed():
    def row(value, seed, top1, curve=""):
        made = dict.fromkeys(study.COLUMNS, "") | {"knob": "feature dimension", "curve": curve, "seed": seed}
        return made | {"value": value, "linear_top1": top1}

    rows = [row("256", "0", "0.40"), row("1024", "0", "0.42"), row("256", "1", "0.30"), row("1024", "1", "0.31")]
    rows += [row("1024", "2", "0.9"), row("32", "0", "")]  # without a fellow, and after NaN
    titles, cells, several = study._table(rows)
    found = [dict(zip(titles, cell, strict=True)) for cell in cells]
    assert several and [cell["difference"] for cell in found] == ["", "+1.5 [+1.0, +2.0] (2 of 3)", ""]
    assert found[1]["seed"] == "0, 1, 2" and found[0]["linear top-1, %"] == "35.0 [30.0, 40.0]"
    titles, cells, several = study._table(rows[:2])
    assert not several and "difference" not in titles and cells[1][2] == "42.0"


@pytest.mark.parametrize("name", study.STUDIES)
def test_every_point_of_a_study_is_a_recipe_that_can_run(name):
    points = study.STUDIES[name]()
    assert len({point.key for point in points}) == len(points)
    for point in points:
        recipe = study._recipe(point, study.EPOCHS)
        keras_issl.recipes.check(recipe, study.IMAGES)
        assert recipe.epochs == study.EPOCHS and recipe.seed == point.seed
    if name == "augmentation":  # the paper changed C with the strength
        classes = {
            (point.curve.startswith("fixed"), point.value): point.changes["objective_args"]["num_classes"]
            for point in points
        }
        assert {classes[True, s] for s in (0.5, 1, 2, 4)} == {1024}
        assert [classes[False, s] for s in (0.5, 1, 2, 4)] == [4096, 1024, 256, 64]


# ---------------------------------------------------------------------- the picture
def test_regions_meet_half_way_between_values():
    np.testing.assert_allclose(_edges([0.0, 1.0, 3.0], log=False), [-0.5, 0.5, 2, 4])
    np.testing.assert_allclose(_edges([1.0, 100.0, 1e4], log=True), [0.1, 10, 1e3, 1e5])
    np.testing.assert_allclose(_edges([2.0], log=False), [1.5, 2.5])


def test_a_line_goes_through_the_means_of_several_points():
    axes = pytest.importorskip("matplotlib.figure").Figure().subplots()
    _draw(Panel("C", {"linear probe": [(64, 0.4), (16, 0.1), (16, 0.3)]}), axes, {}, "")
    line, dots = axes.get_lines()
    np.testing.assert_allclose(line.get_xydata(), [[16, 20], [64, 40]])
    np.testing.assert_allclose(dots.get_xydata(), [[16, 10], [16, 30]])


def test_a_sweep_is_drawn(tmp_path):
    panels = [
        Panel("λ", {"linear probe": [(0, 0.1), (0, 0.12), (1, 0.3), (8, 0.2)]}, shaded=(0,), usual=1, log=True),
        Panel("rate", {"linear probe": [(1e-3, 0.3)]}, shaded=(1.0,), log=True),  # a value without a figure
    ]
    assert sweep([panels[0]], tmp_path / "one.png").stat().st_size > 5_000
    with Image.open(sweep(panels, tmp_path / "two.png", lines={"random encoder": 0.2})) as picture:
        drawn = np.asarray(picture.convert("RGB"))
    # The shaded regions are reddish, and stand in both panels.
    red = (drawn[..., 0] > drawn[..., 1].astype(int) + 15) & (drawn[..., 0] > drawn[..., 2].astype(int) + 15)
    half = drawn.shape[1] // 2
    assert red[:, :half].sum() > 1000 and red[:, half:].sum() > 1000
    assert sweep([], tmp_path / "none.png") is None and not (tmp_path / "none.png").exists()
