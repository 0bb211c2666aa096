"""Records of a run, their charts, the page of a run and the page that compares runs."""

import dataclasses
import json
import math
import re
import sys
import types

import numpy as np
import pytest
from PIL import Image
from test_page import HOSTILE, check_escaped, read, texts

from keras_issl import objectives, report
from keras_issl.report import charts, quantities
from keras_issl.report.charts.training import POINTS
from keras_issl.report.run import duration

pytestmark = pytest.mark.backend_independent
NAN = math.nan


def verdict(level="warning", title="T", since=None, **changes):
    values = {"level": level, "title": title, "evidence": "E.", "advice": "A.", "kind": "k", "since": since}
    return types.SimpleNamespace(**values | changes)


def records(rows=20, every=10, classes=32, **changes):
    """What a DISSL run writes, with H(M) at nine tenths of its bound."""
    step = every * np.arange(1.0, rows + 1)
    entropy, sparse = np.full(rows, 0.9 * math.log(classes)), np.where(np.arange(rows) % 5 == 4, 1.0, NAN)
    columns = {
        "step": step,
        "epoch": step / 50,
        "seconds": step / 2,
        "loss": 4 - step / step[-1],
        "distillation": np.linspace(3, 1, rows),
        "invariance": np.linspace(2, 1, rows),
        "marginal_entropy": entropy,
        "marginal_entropy_bound": np.full(rows, math.log(classes)),
        "conditional_entropy": np.linspace(3, 0.2, rows),
        "kl_invariance": np.linspace(0.3, 0.1, rows),
        "kl_distillation": np.linspace(0.4, 0.1, rows),
        "effective_classes": np.exp(entropy),
        "classes_used": np.full(rows, classes - 1.0),
        "learning_rate": np.linspace(1e-3, 0, rows),
        "images_per_second": np.concatenate([[40.0], np.full(rows - 1, 900.0)]),
        "input_share": np.full(rows, 0.08),
        "online_loss": np.linspace(2.3, 1, rows),
        "online_top1": np.linspace(0.1, 0.75, rows),
        "effective_rank": 30 * sparse,
        "within_between": 0.4 * sparse,
    }
    return {name: np.asarray(values, "float64") for name, values in (columns | changes).items()}


def full(name="plain", **changes):
    """A run with everything, and a name wherever there can be one."""
    values = {
        "name": name,
        "records": records(**{name: np.ones(20)}),
        "history": {"epoch": [0, 1, 2, 3], "loss": [3.8, 3.5, 3.3, 3.1], "val_online_top1": [0.2, 0.4, 0.6, 0.7]},
        "recipe": {"objective": "dissl", "objective_args": {"num_classes": 32}, "epochs": 10, "batch_size": 256}
        | {"x": name},
        "overrides": {"epochs": 10, "objective_args": {"num_classes": 32}},
        "notes": (name,),
        "objective": "DISSL",
        "config": {"num_classes": 32, "maximality_weight": 2.3, "invariance_weight": 0.8, "name": "dissl"},
        "data": {"name": name, "fingerprint": "abc", "images": 500, "image_shape": (8, 8, 3)},
        "versions": {"keras": "3.15.1"},
        "hardware": {"cpu": name, "accelerators": []},
        "backend": {"name": "torch", "reason": name},
        "verdicts": (verdict("good", "Fine"), verdict("problem", f"Bad {name}", since=100, evidence=name, advice=name)),
        "finished_epochs": 4,
        "stopped_by": "SIGTERM",
        "seconds": 125.0,
        "started": "2026-01-01",
        "online_probe": {"classes": 10},
        "feature_dim": 64,
        "step_parts": {"load the batch": 0.01, "make views": 0.03, "backward and update": 0.06},
    }  # fmt: skip
    return report.Run(**values | changes)


def text_of(path):
    return path.read_text(encoding="utf-8")


def tiles(text):
    found = re.findall(r'<div class="tile"><b>(.*?)</b><span>(.*?)</span>(?:<small>(.*?)</small>)?', text)
    return {label: (number, note) for number, label, note in found}


def charted(text):
    """Title -> texts of the charts of a page."""
    found = [texts(svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1))
             for svg in re.findall("<svg.*?</svg>", text, re.S)]  # fmt: skip
    titles = {panel.title for panel in quantities.PANELS} | {"one step: 100 ms"}
    return {next((text for text in drawn if text in titles), drawn[-1]): drawn for drawn in found}


def test_records_are_read_with_blanks_as_nan_and_without_a_line_that_was_cut(tmp_path):
    path = tmp_path / "records.csv"
    for text, expected in (
        ("step,loss\n1,0.5\n2,\n3,nan\n4,inf\n", {"step": [1, 2, 3, 4], "loss": [0.5, NAN, NAN, math.inf]}),
        ("step,loss\n1,0.5\n2,0.25", {"step": [1], "loss": [0.5]}),  # perhaps it was going to be 0.2512
        ("step,loss\n1,0.5\n2", {"step": [1], "loss": [0.5]}),
        ("step,loss\r\n1,0.5\r\n\r\n2,1e-3\r\n", {"step": [1, 2], "loss": [0.5, 0.001]}),
        ("\ufeffstep,loss\n", {"step": [], "loss": []}),
        ("step,lo", {}),
        ("", {}),
    ):
        path.write_bytes(text.encode())
        found = report.read_records(path)
        assert list(found) == list(expected)
        for name, values in found.items():
            assert values.dtype == np.float64
            np.testing.assert_array_equal(values, expected[name])


def test_garbage_in_records_is_named(tmp_path):
    path = tmp_path / "records.csv"
    for text, message in (
        (
            "step,loss\n1,0.5\n2,0.5x\n",
            r"records\.csv' should hold numbers. Received: '0\.5x' in line 3, column 'loss'",
        ),
        ("step,loss\n1,0.5\n2,3,4\n5,6\n", "should have 2 fields a line, one a column. Received: 3 in line 3"),
        ("step,loss,step\n1,2,3\n", "should name each column once. Received: 'step' twice"),
        ("step\n\x00\x00\n", "in line 2, column 'step'"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            report.read_records(path)


def test_a_run_of_which_little_is_known():
    run = report.Run("x", records={"step": np.array([5.0, 10.0]), "loss": np.array([2.0, 1.0])})
    assert (run.steps, run.epochs, run.wall_time, run.last("loss"), run.last("kl")) == (10, None, None, 1.0, None)
    assert report.Run("x").series() == ("epoch", {}) and report.Run("x").epochs is None
    assert dataclasses.replace(run, records=records()).epochs == 4
    assert dataclasses.replace(run, records=records()).wall_time == 100
    assert dataclasses.replace(run, history={"loss": [3.0, 2.0]}).epochs == 2


def test_series_leave_out_what_was_not_measured_but_not_a_loss_that_is_not_finite():
    given = records(loss=[1.0] * 18 + [math.inf, NAN], within_between=[NAN] * 20)
    unit, series = full(records=given).series()
    assert unit == "step" and "within_between" not in series and "step" not in series
    np.testing.assert_array_equal(series["effective_rank"], [[50, 100, 150, 200], [30] * 4])
    np.testing.assert_array_equal(series["loss"][1][-2:], [math.inf, NAN])
    np.testing.assert_array_equal(series["val_online_top1"][0], [50, 100, 150, 200])  # 50 steps are an epoch
    assert full().usual("images_per_second") == 900  # whatever the first row was
    unit, series = full(records={}).series()
    np.testing.assert_array_equal(series["loss"], [[1, 2, 3, 4], [3.8, 3.5, 3.3, 3.1]])
    assert unit == "epoch"
    _, series = report.Run("x", {"step": [3.0, 1.0, NAN, 2.0], "loss": [30.0, 10.0, 5.0, 20.0]}).series()
    np.testing.assert_array_equal(series["loss"], [[1, 2, 3], [10, 20, 30]])


def test_durations_are_short():
    given = {0.04: "0.0 s", 9.96: "10.0 s", 75: "75 s", 100: "1.7 min", 5940: "99 min", 7200: "2.0 h", 172801: "2.0 d"}
    assert {seconds: duration(seconds) for seconds in given} == given
    assert duration(NAN) == "nan s"


def test_a_thinned_line_keeps_its_extremes_its_ends_and_its_gaps(rng):
    y = rng.normal(size=10_000)
    y[[1234, 7777]] = -50, 60
    y[4000:5000] = NAN
    x, thin = charts.thinned(np.arange(10_000), y, most=100)
    assert len(x) <= 100 and (np.diff(x) > 0).all() and (x[0], x[-1]) == (0, 9999)
    assert (np.nanmin(thin), np.nanmax(thin)) == (-50, 60) and {1234, 7777} <= set(x)
    assert np.isnan(thin[(x >= 4100) & (x < 4900)]).all() and np.isfinite(thin).sum() > 80
    np.testing.assert_array_equal(thin, y[x.astype(int)])
    for most in (len(y), POINTS * 100):
        np.testing.assert_array_equal(charts.thinned(np.arange(10_000), y, most=most)[1], y)


def line(y, label="a", **changes):
    return charts.Line(label, np.arange(1, len(y) + 1), np.asarray(y, float), **changes)


def test_charts_of_long_runs_stay_small(rng):
    sizes = [len(charts.over_time([line(rng.normal(size=n))])) for n in (2_000, 100_000)]
    assert sizes[1] < 1.1 * sizes[0] < 40_000


def test_a_bound_is_drawn_where_it_does_not_squeeze_the_lines():
    draw = lambda bound, **kwargs: texts(charts.over_time([line([1, 2, 3])], bounds=[("bound", bound)], **kwargs))  # noqa: E731
    assert "bound" in draw(4) and "bound" not in draw(100)
    wide = texts(charts.over_time([line([1, 10, 100])], bounds=[("bound", 1e5)], wide_range=True))
    assert "bound" in wide and {"1", "100", "1e4"} <= {text.replace("10,000", "1e4") for text in wide}


def test_what_is_not_finite_is_marked():
    for y in ([1, NAN, 2, math.inf], [NAN, NAN], [-math.inf], [1e300, 1.0]):
        assert "not finite" in texts(charts.over_time([line(y)], title="loss"))
    assert "not finite" not in texts(charts.over_time([line([1, 2])], title="loss"))
    assert texts(charts.over_time([line([])])) == texts(charts.over_time([])) == ["nothing measured yet"]


def test_an_outlier_does_not_squeeze_the_rest():
    y = np.sin(np.arange(100.0))
    drawn = texts(charts.over_time([line(np.where(np.arange(100) == 50, 1e6, y))]))
    assert "beyond the axis, up to 1e+06" in drawn and {"−1", "0", "1"} <= set(drawn)
    assert not any("beyond" in text for text in texts(charts.over_time([line(y)])))


def test_noise_in_the_last_digit_is_no_curve():
    drawn = texts(charts.over_time([line(math.log(32) + 1e-9 * np.sin(np.arange(50)))]))
    ticks = [float(text) for text in drawn if re.fullmatch(r"3\.\d+", text)]
    assert len(set(ticks)) == len(ticks) >= 2


def test_times_to_point_at_have_a_label_and_near_ones_share_it():
    marks = [charts.Mark(50, "Late", "warning"), charts.Mark(51, "Worse", "problem"), charts.Mark(10, "Early", "good")]
    drawn = texts(charts.over_time([line(np.arange(100.0))], marks=[*marks, charts.Mark(1e6, "Beyond")]))
    assert {"Early", "Worse (+1)"} <= set(drawn) and not {"Late", "Beyond"} & set(drawn)


def test_the_parts_of_a_step_are_shares_of_it():
    drawn = texts(charts.step_time({"make views": 0.03, "backward": 0.06, "recording": 0.01, "lost": NAN, "odd": -1.0}))
    assert {"one step: 100 ms", "make views: 30 ms, 30 %", "backward: 60 ms, 60 %", "recording: 10 ms, 10 %"} <= set(
        drawn
    )
    assert "lost" not in " ".join(drawn) and "odd" not in " ".join(drawn)
    assert "one step: 3 s" in texts(charts.step_time({"a": 1.0, "b": 2.0}))
    assert texts(charts.step_time({})) == texts(charts.step_time({"a": 0.0})) == ["no finite numbers to draw"]


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_labels_are_drawn_as_text(name):
    drawn = charts.over_time([line([1, 2], name)], title=name, ylabel=name, bounds=[(name, 1)],
                             marks=[charts.Mark(1, name)]), charts.step_time({name: 1.0})  # fmt: skip
    for svg in drawn:
        read(report.page.Page("t").figure(svg, "c", alt="a").html())


def test_every_log_of_ours_has_its_picture():
    known = [getattr(objectives, name) for name in objectives.__all__]
    logs = {log for cls in known if isinstance(cls, type) for log in getattr(cls, "log_names", ())}
    assert len(logs) > 12 and quantities.further([*logs, "classes_used", "val_loss"]) == []
    assert quantities.further(["loss", "margin", "val_margin", "val_gap"]) == ["margin", "gap"]


def test_bounds_are_those_of_the_objective():
    found = quantities.bounds(full())
    assert found["loss"][0][1] == pytest.approx((1 + 0.8 - 2.3) * math.log(32))
    assert found["marginal_entropy"] == [("log min(B, C), the bound", pytest.approx(math.log(32)))]  # C is less than B
    assert found["online_top1"][0][1] == 0.1 and found["effective_rank"][0][1] == 64
    swav = report.Run("x", objective="SwAV", config={"num_prototypes": 3000}, recipe={"batch_size": 256})
    assert [value for _, value in quantities.bounds(swav)["effective_classes"]] == [256, 3000]
    few = dataclasses.replace(swav, data={"images": 100})
    assert quantities.bounds(few)["effective_classes"][0][1] == 100
    assert "effective_classes" not in quantities.bounds(report.Run("x", objective="SimCLR"))
    for objective, arguments in (
        ("DISSL", "2.3 H(M) + 0.8 invariance"),
        ("BarlowTwins", "0.0051"),
        ("VICReg", "25 inv"),
    ):
        run = report.Run("x", objective=objective, config=getattr(objectives, objective)().get_config())
        assert arguments in quantities.formula(run)
    assert quantities.formula(report.Run("x", objective="DISSL")) == quantities.formula(report.Run("x")) == ""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a run with everything, as text."""
    folder = tmp_path_factory.mktemp("page")
    return text_of(write(folder))


def write(folder, name="plain"):
    picture = folder / "views.png"
    Image.new("RGB", (7, 5), (200, 30, 30)).save(picture)
    return report.training_page(folder / "page.html", full(name), galleries=[(name, picture, name)], date=name)


def test_the_page_of_a_run_is_whole_and_reproducible(page, tmp_path):
    read(page)
    assert page == text_of(write(tmp_path))
    titles = ["At a glance", "Curves", "Representation over time", "Throughput", "Pictures", "Recipe", "Protocol"]
    assert re.findall(r'<h2 id="s\d-title">(.*?)</h2>', page) == titles
    assert not re.search(r"(?<!online )(?i:accuracy)(?! of)", page.split("<main>")[1].replace("no test accuracy", ""))


def test_hostile_names_stay_text_on_the_page_of_a_run(page, tmp_path):
    name = " ".join(HOSTILE)
    check_escaped(read(page), text_of(write(tmp_path, name)), name)


def test_the_tiles_and_cards_of_a_run(page):
    assert tiles(page) == {
        "epochs done": ("4", "of 10, 200 steps, stopped by SIGTERM"),
        "loss": ("3", "least so far 3"),
        "exp H(M)": ("22.6", "effective classes, of at most 32"),
        "effective rank": ("30", "of 64 dimensions"),
        "online top-1": ("75.0\u00a0%", "online: on augmented training views"),
        "images a second": ("900", "median over the run"),
        "wall time": ("2.1 min", "of training"),
    }
    assert re.findall('class="verdict (.*?)"', page) == ["problem", "good"]  # problems first
    assert "<p>plain Since step 100.</p>" in page


def test_the_charts_of_a_run(page):
    drawn = charted(page)
    panels = [panel.title for panel in quantities.PANELS if set(panel.columns) & set(full().records)]
    assert list(drawn) == [*panels[:6], "plain", *panels[6:10], "one step: 100 ms", *panels[10:]]
    assert {"H(M)", "H(M|Z)", "log min(B, C), the bound"} <= set(drawn["entropies of the assignment M"])
    assert {"exp H(M)", "classes used in the epoch", "the most of a batch, 32"} <= set(drawn["classes"])
    assert {"online top-1", "online top-1, validation", "chance, 1/10"} <= set(drawn["online top-1"])
    assert {"KL between views", "KL of the student"} <= set(drawn["divergences"])
    for title, found in drawn.items():
        assert ("Bad plain" in found) == (title != "one step: 100 ms")
    assert "The loss is distillation − 2.3 H(M) + 0.8 invariance." in page
    assert 'aria-label="effective rank against the step: effective rank from 30 to 30."' in page


def test_overridden_settings_are_marked(page):
    table = page[page.index("Recipe</h2>") :]
    rows = re.findall(r'<tr><th scope="row">(.*?)</th><td>(.*?)</td><td>(.*?)</td>', table)
    assert rows == [("objective", "dissl", ""), ("objective_args.num_classes", "32", "overridden"),
                    ("epochs", "10", "overridden"), ("batch_size", "256", ""), ("x", "plain", "")]  # fmt: skip
    assert "2 of 5 settings were overridden." in table
    pairs = dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", table))
    assert pairs["data: fingerprint"] == "abc" and pairs["data: image shape"] == "8 × 8 × 3"
    assert (pairs["backend"], pairs["wall time"], pairs["records"]) == ("torch, plain", "2.1 min", "20 rows")


def test_a_run_that_has_just_begun(tmp_path):
    text = text_of(report.training_page(tmp_path / "a.html", report.Run("x", recipe={"epochs": 3})))
    assert tiles(text) == {"epochs done": ("0", "of 3")} and "Nothing has been measured yet" in text
    assert not read(text).all("svg")
    text = text_of(report.training_page(tmp_path / "a.html", report.Run("x")))
    assert not tiles(text) and "Recipe" not in text
    names = ("step", "seconds", "loss", "marginal_entropy", "effective_rank", "online_top1")
    first = {name: records()[name][:1] for name in names}
    text = text_of(report.training_page(tmp_path / "a.html", report.Run("x", first)))
    read(text)
    assert "Nothing has been" not in text and tiles(text)["loss"] == ("3.95", "least so far 3.95")
    assert "effective rank" not in tiles(text) and "effective rank" not in charted(text)


def test_numbers_that_are_not_finite_are_told(tmp_path):
    given = {"step": [1.0, 2.0, 3.0], "loss": [2.0, math.inf, NAN], "online_top1": [0.5, 0.5, math.inf]}
    run = report.Run("x", given, verdicts=(verdict(since=NAN),))
    text = text_of(report.training_page(tmp_path / "a.html", run))
    assert (
        "Since step" not in text
        and tiles(text)["loss"] == ("NaN", "last finite one 2")
        and tiles(text)["online top-1"][0] == "∞"
    )
    assert "not finite" in charted(text)["loss"]
    content = json.loads(next(part for part in read(text).text if part.startswith("{")))
    assert content["records"] == {"rows": 3, "last": {"step": 3.0, "loss": None, "online_top1": None}}
    run = report.Run("x", {"step": [1.0], "loss": [NAN]})
    text = text_of(report.training_page(tmp_path / "a.html", run))
    assert tiles(text)["loss"] == ("NaN", "never finite")


def test_without_matplotlib_the_pages_of_runs_say_so_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert charts.over_time([line([1.0])]) is charts.step_time({"a": 1.0}) is None
    for path in (write(tmp_path), report.runs_page(tmp_path / "b.html", [full(), full()])):
        assert not read(text_of(path)).all("svg") and text_of(path).count("pip install matplotlib") == 1


def simclr(**changes):
    given = {"step": [10.0, 20.0], "epoch": [0.5, 1.0], "loss": [5.0, 4.5], "alignment": [0.2, 0.4]}
    values = {"objective": "SimCLR", "config": {"temperature": 0.07}, "recipe": {"objective": "simclr", "epochs": 1}}
    return report.Run("c", **{"records": given, "data": {"name": "b", "fingerprint": "def"}} | values | changes)


def test_runs_side_by_side_in_a_table():
    lighter = full(config=full().config | {"invariance_weight": 0.4})
    header, rows = report.runs_table([full(), lighter, full(config=full().config | {"name": "dissl_1"}), simclr()])
    row = ["plain", "DISSL", "4 / 10", "200", "3", "22.6 / 32", "30", "0.4", "75.0 %", "900", "2.1 min"]
    assert rows[0] == [*row, "problem: Bad plain"] and len(header) == len(row) + 1
    assert [row[0] for row in rows] == ["plain", "plain (2)", "plain (3)", "c"]
    assert [row[4] for row in rows] == ["3", "3‡", "3", "4.5†"]  # other weights; a layer's name; another objective
    assert rows[3] == ["c", "SimCLR", "1 / 1", "20", "4.5†", *["–"] * 7]
    assert report.runs_table([full(recipe={"batch_size": 256}), full(recipe={"batch_size": 64})])[1][1][4] == "3‡"
    assert report.runs_table([report.Run("x", verdicts=(verdict("good"),))])[1][0][-1] == "good"
    assert report.table(header, rows).count("\n") == 5


def test_only_settings_that_differ_are_listed():
    args = [{"size": (8, 8), "scale": 0.1234567}, {"size": [8, 8], "scale": 0.1234568}]
    runs = [
        report.Run(f"r{i}", recipe={"epochs": 3, "augmentation_args": a, "name": f"{i}", "clip": (None, 2.0)[i]})
        for i, a in enumerate(args)
    ]
    header, rows = report.recipe_differences(runs)
    assert header == ["setting", "r0", "r1"]
    assert rows == [["augmentation_args.scale", "0.1234567", "0.1234568"], ["clip", "none", "2"]]
    assert report.recipe_differences([full(), simclr()])[1][1] == ["objective_args.num_classes", "32", "–"]
    assert report.recipe_differences(runs[:1])[1] == []


def test_the_page_of_several_runs(tmp_path):
    names = ("step", "epoch", "loss", "marginal_entropy", "kl_invariance", "online_top1", "within_between", "seconds")
    given = {name: full().records[name] for name in names}
    text = text_of(report.runs_page(tmp_path / "a.html", [full(records=given | {"margin": np.ones(20)}), simclr()]))
    read(text)
    assert re.findall(r'<p class="title">.*?</span> \w+</span>(.*?)</p>', text) == [
        "Not the same images",
        "plain: Bad plain",
    ]
    assert "plain: plain, abc; c: b, def." in text and "† The loss of another objective than that of plain" in text
    assert "0 other settings are the same in all." in text
    assert re.findall(r"<summary>(\d+) more charts</summary>", text) == [
        "3"
    ]  # KL, alignment and a log that is not ours
    drawn = charted(text)
    assert {"plain", "c"} <= set(drawn["loss"])
    assert "c" not in drawn["online top-1"]
    assert "Against the epoch" in text and "epoch" in drawn["loss"]  # 50 and 20 steps an epoch
    assert len(read(text).all("svg")) == 5 + 3


def test_runs_of_the_same_recipe_and_images(tmp_path):
    short = {name: full().records[name] for name in ("step", "epoch", "loss")}
    runs = [full(records=short, history={}, verdicts=(), data={"fingerprint": mark}) for mark in ("abc", "abc", None)]
    text = text_of(report.runs_page(tmp_path / "a.html", runs, title="Seeds"))
    assert 'class="verdict' not in text and "†" not in text and "‡" not in text and "<h1>Seeds</h1>" in text
    assert "The recipes are the same: 5 settings." in text and "Against the epoch" not in text
    assert {"plain", "plain (2)", "plain (3)", "step"} <= set(charted(text)["loss"])
    read(text_of(report.runs_page(tmp_path / "b.html", [report.Run("x"), report.Run("x")])))
    with pytest.raises(ValueError, match="`runs` should hold at least one run. Received: none."):
        report.runs_page(tmp_path / "a.html", [])


def test_hostile_names_stay_text_on_the_page_of_several_runs(tmp_path):
    def drawn(name):
        short = {column: full().records[column] for column in ("step", "loss")}
        runs = [full(name, records={**short, name: np.ones(20)}, history={}), full(name, records=short, history={})]
        return text_of(report.runs_page(tmp_path / "a.html", runs, title=name, date=name))

    check_escaped(read(drawn("plain")), drawn(" ".join(HOSTILE)), " ".join(HOSTILE))
