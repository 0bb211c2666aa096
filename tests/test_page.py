"""Pages: well-formed, self-contained, everything escaped, the same bytes every time; and their charts."""

import contextlib
import html.parser
import json
import math
import os
import re
import shutil
import subprocess
import sys
import types
import zlib
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from keras_issl import report
from keras_issl.report import charts
from keras_issl.report.page import LEVELS, Page, shown
from keras_issl.report.style import PALETTE
from keras_issl.report.words import as_text, clean, public_name
from keras_issl.results import Result

pytestmark = pytest.mark.backend_independent
HOSTILE = [
    "<script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    "\"'><b>&amp;&lt;",
    "]]><!--",
    "--><svg onload=alert(1)>",
    "שלום\u202eevil\u2066",
    "a\x00b\x1b[31m\x85\ud800\ufffe",
    "{{7*7}} $x^2$ \\frac _ ^ %s %(a)s",
    "x" * 300,
]
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Reader(html.parser.HTMLParser):
    """Checks that tags are balanced, and collects elements, ids and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def all(self, *tags):
        return [attributes for tag, attributes in self.elements if tag in tags]


def read(text):
    """A page's elements, once it is known to be whole, safe, accessible and self-contained."""
    page = Reader(text)
    assert not page.all("script", "link", "iframe", "object", "embed", "base", "form", "foreignobject", "a:href")
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "href", "xlink:href", "srcset", "action", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,")), (tag, attributes)
        assert not re.search(r"url\((?!#)|@import", attributes.get("style") or "")
    assert not re.search(r"url\(|@import", "".join(re.findall(r"<style>(.*?)</style>", text, re.S)))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    used = {a[name][1:] for _, a in page.elements for name in ("href", "xlink:href") if a.get(name, "").startswith("#")}
    used |= set(re.findall(r"url\(#([^)]*)\)", text)) | {a["aria-labelledby"] for a in page.all("section")}
    assert used <= set(ids)
    policy = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policy) == 1 and policy[0].startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")
    assert page.all("html") == [{"lang": "en"}] and len(page.all("h1")) == 1
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    assert all(a["alt"].strip() for a in page.all("img"))
    assert all(a["role"] == "img" and a["aria-label"].strip() for a in page.all("svg"))
    assert all(a["scope"] in ("col", "row") for a in page.all("th"))
    return page


def picture(tmp_path, name="a.png"):
    Image.new("RGB", (7, 5), (200, 30, 30)).save(tmp_path / name)
    return tmp_path / name


def simple(**attributes):
    return types.SimpleNamespace(**attributes)


def result(name="digits", probe="LinearProbe", family="linear", trained_for="linear", top1=0.9, **changes):
    """A `results.Result` with a value everywhere."""
    score = {"value": top1, "low": top1 - 0.02, "high": top1 + 0.02, "sd": 0.01, "seeds": 3}
    shots = {"1": (0.5, 0.1, 5), "10": (0.8, 0.02, 5), "0.01": (0.6, 0.05, 5), "all": (0.9, 0.0, 1)}
    values = {
        "metrics": {"top1": score, "top5": {"value": 0.99, "low": None, "high": None, "sd": 0.0, "seeds": 1}},
        "probe": {"name": probe, "family": family, "parameters": {}, "selected": {"C": 10.0}, "selection": "CV.",
                  "validation_scores": {"0.1": 0.8, "10.0": 0.9, "1e-06": 0.7}},
        "train": {"name": name, "split": "train", "fingerprint": "abc", "examples": 1297, "classes": 3},
        "test": {"name": name, "split": "test", "fingerprint": "def", "examples": 30, "classes": 3},
        "representation": {"name": "features", "feature_dim": 192, "preset": "dissl", "probe": trained_for},
        "mode": "offline",
        "selected_on": "held-out part of train",
        "seeds": [0, 1, 2],
        "few_shot": {k: dict(zip(("mean", "sd", "draws"), v, strict=True)) for k, v in shots.items()},
        "per_class": [{"label": c, "examples": 10, "accuracy": a} for c, a in (("a", 1.0), ("b", 0.9), ("c", 0.8))],
        "confusions": [
            {"label": "c", "guess": "a", "count": 2.0, "share": 0.2},
            {"label": "b", "guess": "c", "count": 1.0, "share": 0.1},
        ],
        "versions": {"keras": "3.15.1"},
        "hardware": {"cpu": "two cores", "accelerators": []},
        "seconds": 1.25,
        "date": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    return Result(**values | changes)


def points(names=("model", "one-hot"), dims=(8, 16, 64), sizes=(32,), probes=("linear",), solved=0.5):
    return tuple(
        simple(representation=r, n=n, dim=d, train_views=1, probe=p, tasks=20, accuracy=0.8, accuracy_sd=0.05,
               solved=solved, solved_low=0.4, solved_high=0.6, separable=0.5, cover=min(1, d / n), rank=d)
        for r in names for d in dims for n in sizes for p in probes
    )  # fmt: skip


def diagnosis(verdicts=None, **changes):
    values = {
        "measures": (
            simple(name="effective rank", value=12.3, reference=64.0, meaning="RankMe."),
            simple(name="invariance ratio", value=math.nan, reference=0.0, meaning="Less is better."),
            simple(name="effective classes", value=7.9, reference=8.0, meaning="exp H(M)."),
        ),
        "verdicts": verdicts
        or tuple(simple(level=level, title=f"T {level}", evidence="E", advice="A") for level in ("good", "warning")),
        "spectrum": np.array([0.5, 0.3, 0.2]),
        "within": np.linspace(0, 1, 50),
        "between": np.linspace(1, 3, 50),
        "class_balance": np.array([0.6, 0.4]),
        "dims": {"views": 4, "images": 100, "features": 64, "classes": 8},
        "protocol": {"images": "100 of 100", "train_views": [1, 2]},
    }
    return simple(**values | changes)


def risk(encoder=-0.01, approximation=None, **changes):
    total = 0.08 + encoder + (approximation or 0)
    parts = {"approximation": approximation, "usability": 0.05, "probe_generalization": 0.03}
    parts |= {"encoder_generalization": encoder, "total": total}
    return simple(**parts | changes, protocol={"seeds": [0]}, caveats=("Mind the noise.",))


def everything(name="plain"):
    """All arguments of a page of a diagnosis, with a name wherever there can be one."""
    table = simple(points=points((name, "one-hot")), protocol={name: name})
    return {
        "title": name,
        "subtitle": name,
        "provenance": {"preset": name, name: name, "image_shape": (8, 8, 3)},
        "idealness": table,
        "advice": simple(summary=(name,), points=points((name,)), table=lambda: ([name, "solved"], [[name, "50 %"]])),
        "risk": {name: risk(), "other": risk(0.02, 0.01)},
        "classes": simple(classes=(1, 2), confused=((0, 1, 0.3),), merged=((0, 1, 0.2),), purity=0.9),
        "results": {name: result(name, probe=name)},
        "versions": {name: name},
        "hardware": {"cpu": name},
        "date": name,
        "seconds": 1.5,
    }


def write(tmp_path, kind, name="plain", file="page.html"):
    path, pictures = tmp_path / file, [(name, picture(tmp_path), name), picture(tmp_path, "b.png")]
    if kind == "diagnosis":
        verdicts = [simple(level=level, title=name, evidence=name, advice=name) for level in LEVELS]
        measures = (simple(name=name, value=1.0, reference=0.0, meaning=name), *diagnosis().measures)
        found = diagnosis(verdicts, measures=measures)
        return report.diagnosis_page(path, found, galleries=pictures, **everything(name))
    per_class = [{"label": name, "examples": 9, "accuracy": 0.5}, {"label": "b", "examples": 9, "accuracy": 1.0}]
    confusions = [{"label": name, "guess": "b", "count": 4.5, "share": 0.5}]
    named = {
        name: result(
            name, probe=name, per_class=per_class, confusions=confusions, trained_for="mlp", selected_on="test"
        ),
        "b": result(mode="online", date=name, per_class=per_class, confusions=confusions[:0]),
    }
    named["b"].probe.update(selected={name: [name, "b"]}, validation_scores={name: 0.8, "b": 0.7, "c": 0.5})
    return report.evaluation_page(path, named, title=name, subtitle=name, galleries=pictures)


@pytest.mark.parametrize("kind", ["diagnosis", "evaluation"])
def test_pages_are_whole_self_contained_and_reproducible(kind, tmp_path):
    path = write(tmp_path, kind)
    again = write(tmp_path, kind, file="again.html")
    assert path.read_bytes() == again.read_bytes()
    page = read(path.read_text(encoding="utf-8"))
    assert len(page.all("svg")) >= 5 and len(page.all("img")) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "again.html", "b.png", "page.html"]  # no drafts


@pytest.mark.parametrize("kind", ["diagnosis", "evaluation"])
def test_hostile_names_stay_text(kind, tmp_path):
    usual = read(write(tmp_path, kind, "plain").read_text(encoding="utf-8"))
    for name in (" ".join(HOSTILE), "\x00\ud800\u202e<script>"):
        check_escaped(usual, write(tmp_path, kind, name).read_text(encoding="utf-8"), name)


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_each_part_of_a_page_escapes(name):
    def drawn(name):
        page = Page(name, name).section(name).subsection(name).paragraph(name).tiles([(name, name, name)])
        page.verdict("good", name, name, name).table([name, "x"], [[name, name]], name, {0: name})
        page.protocol({name: name}).json({name: name}, name)
        with page.details(name):
            picture = charts.validation({name: 0.5, "b": 0.7}, name, xlabel=name, ylabel=name)
            page.figure(picture, name, alt=name).figure(charts.per_class([0.5, 1.0], [name, "b"]), name, alt=name)
        return page.html()

    check_escaped(read(drawn("plain")), drawn(name), name)


def check_escaped(usual, hostile, name):
    page = read(hostile)
    drawn = ("g", "path", "text", "tspan", "use", "defs")  # a longer name has more glyphs and ticks
    outside = lambda page: [tag for tag, _ in page.elements if tag not in drawn]  # noqa: E731
    assert outside(page) == outside(usual)  # not an element more or less
    assert clean(name) in "".join(page.text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", hostile)


def test_nothing_given_has_no_section(tmp_path):
    bare = diagnosis(class_balance=None, spectrum=np.array([]), within=np.array([]), between=np.array([]))
    page = read(report.diagnosis_page(tmp_path / "a.html", bare).read_text(encoding="utf-8"))
    assert [a["id"] for a in page.all("section")] == ["s1", "s2", "s3"]  # verdicts, measures, protocol
    assert not page.all("svg", "img")
    text = "".join(page.text)
    assert "1 warning, 1 good sign." in text and text.index("T warning") < text.index("T good")
    few = result(few_shot=None, per_class=None, confusions=None, seconds=None, date=None)
    few.probe["validation_scores"] = {"1.0": 0.5}  # nothing to choose from
    page = read(report.evaluation_page(tmp_path / "b.html", few).read_text(encoding="utf-8"))
    assert not page.all("svg", "img") and "90.0 (88.0–92.0) ± 1.0\u00a0%" in "".join(page.text)
    with pytest.raises(ValueError, match="`results` should hold at least one evaluation"):
        report.evaluation_page(tmp_path / "c.html", [])


def test_caveats_come_before_the_numbers(tmp_path):
    odd = result(trained_for="mlp", selected_on="test", mode="online")
    odd.test.update(also_in_train=3)
    for found, cards in ((odd, 4), (result(), 0), (result(family=None), 0), (result(trained_for=None), 0)):
        page = report.evaluation_page(tmp_path / "a.html", found).read_text(encoding="utf-8")
        assert page.count('class="verdict warning"') == cards
        assert not cards or page.rindex('class="verdict') < page.index('class="tile"')
        assert ("The features were trained for an MLP probe, and this one is of another family." in page) == (cards > 0)
        assert ("3 test examples have the features of a training example, bit for bit." in page) == (cards > 0)


def test_names_of_results_are_unique(tmp_path):
    page = report.evaluation_page(tmp_path / "a.html", [result(), result(), result("cifar")])
    text = "".join(read(page.read_text(encoding="utf-8")).text)
    assert all(
        name in text for name in ("LinearProbe, digits/test", "LinearProbe, digits/test (2)", "LinearProbe, cifar/test")
    )


def test_without_matplotlib_the_page_says_so_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert charts.class_balance([0.5, 0.5]) is None and charts.risk({"a": risk()}) is None
    for kind in ("diagnosis", "evaluation"):
        text = write(tmp_path, kind).read_text(encoding="utf-8")
        page = read(text)
        assert not page.all("svg") and len(page.all("img")) == 2 and text.count("pip install matplotlib") == 1


def test_values_as_they_are_shown():
    values = [0, 1234567, 0.0, 0.12345, 123.456, 12345.678, 1e-7, 2.5e9, -0.5, math.inf, None, math.nan,
              np.float32(0.5), np.int64(7), True, "<b>"]  # fmt: skip
    expected = ["0", "1,234,567", "0", "0.1235", "123.5", "12,345.7", "1e−07", "2.5e+09", "−0.5", "∞", "–", "–", "0.5",
                "7", "yes", "<b>"]  # fmt: skip
    assert [shown(value) for value in values] == expected


def test_tables_set_numbers_right_and_refuse_ragged_rows():
    rows = [["a", 0.5, "91.2 (90.1–92.0) ± 0.1 %", "x", None], ["b", math.nan, "−3 %", "1", 2]]
    text = Page("t").table(["name", "float", "score", "mixed", "gap"], rows, "c", {1: "a note"}).html()
    page = read(text)
    assert [a.get("class") for a in page.all("th")][:5] == [None, "number", "number", None, "number"]
    assert [a.get("class") for a in page.all("td")] == ["number", "number", None, "number"] * 2
    assert "<small>a note</small>" in text and page.all("caption") == [{}]
    with pytest.raises(ValueError, match="`rows` should have 2 values each"):
        Page("t").table(["a", "b"], [[1, 2, 3]])


def test_headings_details_and_levels_are_checked():
    page = Page("t")
    with pytest.raises(ValueError, match="`subsection` should stand in a section"):
        page.subsection("a")
    with pytest.raises(ValueError, match="`section` should not begin inside `details`"), page.details("d"):
        page.section("a")
    with pytest.raises(ValueError, match="`level` should be one of good, warning, problem. Received: 'bad'"):
        page.verdict("bad", "a", "b")
    with pytest.raises(ValueError, match="`alt` should say what the picture shows"):
        page.figure(charts.class_balance([1.0]), "c", alt=" ")
    page.section("s").subsection("h")
    with page.details("d"):
        page.paragraph("inside").figure(charts.class_balance([1.0]), "c", alt="a").protocol({"a": 1, "b": None})
    text = page.html()
    read(text)
    assert re.search(r"<details>.*inside.*<svg.*</details>", text, re.S) and "<dt>b</dt>" not in text
    assert "details:not(.raw)::details-content" in text  # open on paper
    with page.details("d", on_paper=False):
        page.paragraph("not on paper")
    assert re.search(r'<details class="raw">.*not on paper.*</details>', page.html(), re.S)


def test_json_is_json_and_only_text():
    value = {"a": [1, 2.5, math.nan, None, True], "</script>": np.arange(3), 3: {"x": np.float32(0.5)}, "s": {"b", "a"}}
    text = Page("t").json(value).html()
    page = read(text)
    shown_json = next(part for part in page.text if part.startswith("{"))
    expected = {"a": [1, 2.5, None, None, True], "</script>": [0, 1, 2], "3": {"x": 0.5}, "s": ["a", "b"]}
    assert json.loads(shown_json) == expected and "</script>" not in text


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "a.html"
    path.write_text("old")
    with pytest.raises(ValueError, match="`path` should end in .html"):
        Page("t").write(tmp_path / "a.pdf")

    def fail(*_):
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="no space"):
            Page("t").write(path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.html"] and path.read_text() == "old"
    assert Page("t").write(str(path)) == path
    (tmp_path / "b").touch()
    assert path.stat().st_mode == (tmp_path / "b").stat().st_mode


def test_pictures_are_embedded_and_theirs_alone(tmp_path):
    path = picture(tmp_path)
    page = Page("t").figure(path, "c", alt="red").figure(path.read_bytes(), "c", alt="red", wide=True)
    images = read(page.html()).all("img")
    assert [(a["width"], a["height"], a["alt"]) for a in images] == [("7", "5", "red")] * 2
    svg = charts.class_balance([0.7, 0.3])
    (tmp_path / "a.svg").write_text(svg)
    text = Page("t").figure(svg, "c", alt="x").figure(str(tmp_path / "a.svg"), "c", alt="y").html()
    read(text)  # ids of the same chart twice do not clash
    assert text.count('<div class="figures">') == 1  # beside each other
    with pytest.raises(ValueError, match="`picture` should be SVG text, a PNG's bytes"):
        page.figure(b"GIF89a", "c", alt="x")


@pytest.mark.parametrize(
    "inside",
    [
        "<script>alert(1)</script>",
        "<foreignObject><b>x</b></foreignObject>",
        '<g onclick="alert(1)"/>',
        '<use href="https://example.org/a.svg#b"/>',
        '<image href="http://example.org/a.png"/>',
        '<a href="#x"><text>x</text></a>',
        '<g style="fill: url(https://example.org/a)"/>',
        '<animate attributeName="href"/>',
        "<svg/>",
        "<b>",
    ],
)
def test_svg_that_could_run_or_load_is_refused(inside):
    with pytest.raises(ValueError, match="`picture` should"):
        Page("t").figure(f'<svg xmlns="http://www.w3.org/2000/svg">{inside}</svg>', "c", alt="x")
    with pytest.raises(ValueError, match="without a document type"):
        Page("t").figure('<!DOCTYPE svg [<!ENTITY a "aaaa">]><svg>&a;</svg>', "c", alt="x")


def texts(svg):
    return ["".join(e.itertext()) for e in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


POINT = {"labels": {"a": {1: (0.5, math.nan)}}, "nan": {"a": {1: (math.nan, 0.1), None: (0.9, 0.1)}}}
CHARTS = {
    "label_efficiency": [{}, {"a": {}}, POINT["labels"], POINT["nan"], {"a": {0.01: (0.5, 0.1)}, "b": {5: (0.6, 0.1)}}],
    "intervals": [[], [("a", math.nan, None, None)], [("a", 0.5, None, math.inf)]],
    "validation": [{}, {1.0: math.nan}, {1.0: 0.5}, {0.0: 0.5, 1.0: 0.6}, {"a": 0.5}],
    "per_class": [[], [math.nan], [0.5], np.linspace(0, 1, 200)],
    "confusion": [np.zeros((0, 0)), np.zeros((2, 2)), [[1.0]], [[math.nan, 1], [2, 3]], np.ones((40, 40)), np.eye(40)],
    "confusions": [[], [("a", "b", math.nan)], [("a", "b", 0.1)]],
    "spectrum": [[], [math.nan], [0.0], [1.0], np.full(2000, 1 / 2000)],
    "class_balance": [[], [math.nan], [1.0], [0.0, 0.0], [0.999, 0.001, 1e-9]],
    "idealness": [(), points(solved=math.nan), points(dims=(8,)), points(sizes=(8, 16), probes=("linear", "mlp"))],
    "risk": [{}, {"a": risk(math.nan)}, {"a": risk(0.0)}, {"a": risk(-0.2, 0.1), "b": risk()}],
}


@pytest.mark.parametrize("name", CHARTS)
def test_charts_take_nan_nothing_and_one_point(name):
    for value in CHARTS[name]:
        svg = getattr(charts, name)(value)
        page = Reader(Page("t").figure(svg, "c", alt="x").html())
        assert page.all("svg") and svg == getattr(charts, name)(value)
    assert "no finite numbers to draw" in texts(getattr(charts, name)(CHARTS[name][0])) or name == "confusions"
    assert "http" not in re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg) and "<metadata" not in svg
    both = [charts.distances(*pair) for pair in (([], []), ([math.nan], [1.0]), ([2.0], [2.0]))]
    assert "no finite numbers to draw" in texts(both[0]) and all(
        "views of two images" in texts(svg) for svg in both[1:]
    )


def bars(svg, color):
    """Left and right edges of the filled bars of a colour, in the order they were drawn."""
    found = []
    for path in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}path"):
        if f"fill: {color}" in path.get("style", ""):
            numbers = [float(n) for n in re.findall(r"-?[\d.]+", path.get("d"))]
            found.append((min(numbers[::2]), max(numbers[::2])))
    return found


def test_negative_risks_stand_left_of_zero_and_the_rest_adds_up():
    svg = charts.risk({"a": risk(-0.02)})
    usability, probe, encoder = (bars(svg, color)[0] for color in PALETTE[:3])
    scale = (usability[1] - usability[0]) / 0.05  # points an error of 1
    zero = usability[0]
    assert probe[0] == pytest.approx(usability[1]) and (probe[1] - probe[0]) / scale == pytest.approx(0.03, rel=1e-4)
    assert encoder[1] == pytest.approx(zero) and (encoder[1] - encoder[0]) / scale == pytest.approx(0.02, rel=1e-4)
    assert {"5.0", "3.0", "−2.0"} <= set(texts(svg))


def test_the_test_error_stands_above_its_parts_with_its_standard_error():
    """It hides no number, and a part that is zero takes no place in the legend."""
    errors = {"usability": 0.011, "probe_generalization": 0.012, "encoder_generalization": 0.5, "total": 0.02}
    svg = charts.risk({"a": risk(0.0, standard_errors=errors)})
    assert {"5.0 ± 1.1", "3.0 ± 1.2", "8.0 ± 2.0", "usability", "test error"} <= set(texts(svg))
    assert "encoder generalisation" not in texts(svg) and "approximation" not in texts(svg)
    assert {"5.0", "3.0", "8.0"} <= set(texts(charts.risk({"a": risk(0.0)})))
    root = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    height = {"".join(e.itertext()): float(e.get("y") or e.get("transform").split()[-1].strip(")")) for e in root}
    assert height["8.0 ± 2.0"] < height["5.0 ± 1.1"] - 9  # a line higher


def test_charts_say_what_they_show():
    counts = texts(charts.label_efficiency({"a": {1: (0.5, 0), 10: (0.7, 0), None: (0.9, 0)}}))
    assert {"1", "10", "all", "labels a class"} <= set(counts)
    split = texts(charts.label_efficiency({"a": {0.01: (0.5, 0), 5: (0.6, 0), None: (0.9, 0)}}))
    assert {"1 %", "5", "labels a class", "part of the labels"} <= set(split)
    assert {"chosen", "0.01", "1000"} <= set(texts(charts.validation({0.01: 0.5, 1000.0: 0.7}, 1000.0)))
    assert {"effective rank 12.3", "D 64"} <= set(texts(charts.spectrum([0.5, 0.3, 0.2], 12.34, 64)))
    assert "the 30 lowest of 200 classes" in texts(charts.per_class(np.linspace(0, 1, 200)))
    many = np.eye(40) * 90
    many[3, 17] = 10
    assert "3 → 17" in texts(charts.confusion(many)) and "90" in texts(charts.confusion([[9, 1], [0, 5]]))
    assert {"dimensions", "Cover's curve", "model"} <= set(texts(charts.idealness(points())))
    assert {"images", "measured"} <= set(texts(charts.idealness(points(("a",), (8,), (8, 16)))))
    assert "$5 <b>" in texts(charts.per_class([0.5, 0.7], ["$5 <b>", "b"]))


def test_a_users_matplotlib_style_changes_nothing():
    import matplotlib

    plain = charts.spectrum([0.5, 0.5])
    with matplotlib.rc_context({"text.usetex": True, "svg.fonttype": "path", "axes.facecolor": "black"}):
        assert charts.spectrum([0.5, 0.5]) == plain
        assert matplotlib.rcParams["text.usetex"]


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed to open the page in")
def test_a_real_browser_opens_the_page_without_an_error(tmp_path):
    path = write(tmp_path, "diagnosis", HOSTILE[0])
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += f" --disable-component-update --disable-sync --enable-logging=stderr --user-data-dir={tmp_path / 'user'}"
    command = [BROWSER, *flags.split(), "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120)
    if done.returncode:
        pytest.skip("Chromium does not start here")
    assert "CONSOLE" not in done.stderr  # a policy violation or a missing resource would be told there
    assert done.stdout.count("<svg") == path.read_text(encoding="utf-8").count("<svg") and "<script" not in done.stdout


def test_a_page_of_a_diagnosis_holds_no_path_and_a_whole_protocol(tmp_path):
    given = everything() | {"provenance": {"preset": "/home/me/runs/cells/preset", "probe": "mlp", "encoder": "resnet"}}
    given |= {"versions": {"keras": "3.15.1"}, "hardware": {"cpu": "two cores"}, "date": "2026-01-01"}
    text = report.diagnosis_page(tmp_path / "a.html", diagnosis(), **given).read_text(encoding="utf-8")
    pairs = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text))
    assert "/home" not in text and pairs["preset"] == "cells" and pairs["trained for"] == "mlp"
    assert pairs["versions"] == "keras 3.15.1" and pairs["hardware"] == "cpu: two cores"
    assert (pairs["wall time"], pairs["date"]) == ("1.5 s", "2026-01-01")
    content = json.loads(next(part for part in read(text).text if part.startswith("{")))
    assert content["provenance"]["preset"] == "cells" and content["versions"] == {"keras": "3.15.1"}


def test_what_a_page_calls_a_preset():
    names = {"/home/me/runs/cells/preset": "cells", r"C:\me\cells": "cells", "./cells/": "cells", "preset": "preset"}
    names |= {"hf://me/cells@v1": "hf://me/cells@v1", "dissl": "dissl", "/": "/"}
    assert {name: public_name(name) for name in names} == names
    assert as_text({"crop_size": (2, 3), "scale": [0.2, 1.0]}) == "crop_size 2 × 3, scale 0.2, 1"


def test_the_page_of_a_diagnosis_says_it_in_plain_words(tmp_path):
    measures = tuple(simple(name=str(v), value=v, reference=0.0, meaning="m") for v in (1.66e-6, -1e-9, 0.0, 0.5))
    given = everything() | {"idealness": simple(points=points(("a", "raw pixels", "one-hot")), protocol={})}
    given["classes"] = simple(classes=(1, 2), confused=(), merged=(), purity=0.714, purity_chance=0.384)
    path = report.diagnosis_page(tmp_path / "a.html", diagnosis(measures=measures), **given)
    text = path.read_text(encoding="utf-8")
    words = "".join(read(text).text).replace("\u00a0", " ")
    for sentence in (
        "1 warning, 1 good sign. Warnings say what to do.",
        "One-hot is the ideal: each image has a coordinate of its own. Raw pixels are what there is to see",
        "are random projections of it",
        "2 of 8 learned classes are in use. In those with two images or more, 71 % of the images share the majority "
        "label (38 % by chance).",
        "said under Dimensions",
    ):
        assert sentence in words
    assert (
        text.count('<td class="number">&lt; 0.0001</td>') == 1
        and "&gt; −0.0001" in text
        and "random encoder" not in text
    )
    assert text.index("accuracy on fresh views") < text.index("<summary>Tasks solved without a single error")
    inside = text[text.index('<details class="raw"><summary>All numbers') :]
    assert re.findall("<caption>(.*?)</caption>", inside)[:3] == ["a", "raw pixels", "one-hot"]  # each once
    assert "Cover at rank" not in text


def test_lines_that_coincide_stand_beside_each_other():
    for dims in ((8, 16, 64), (8, 9, 10)):  # a logarithmic axis and a linear one
        svg = charts.idealness(points(("a", "b", "c"), dims), value="accuracy")
        marks = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}use")
        places = {(e.get("x"), e.get("y")) for e in marks if f"fill: {PALETTE[0]}" in e.get("style", "")}
        others = {(e.get("x"), e.get("y")) for e in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}use")
                  if f"fill: {PALETTE[1]}" in e.get("style", "")}  # fmt: skip
        assert places and others and not places & others


def test_the_page_of_an_evaluation_says_what_was_done(tmp_path):
    def text(*results):
        return report.evaluation_page(tmp_path / "a.html", list(results)).read_text(encoding="utf-8")

    def subtitle(*results):
        return re.search('<p class="subtitle">(.*?)</p>', text(*results))[1]

    knn = result(probe="KNNProbe", family=None)
    assert subtitle(result()) == "LinearProbe on 192 features, 1,297 training and 30 test images"
    assert subtitle(result(), knn) == "2 probes on 192 features, 1,297 training and 30 test images"
    assert subtitle(result(), result("cifar")) == "LinearProbe on 192 features, 2 data sets"
    bare = Result({"top1": {"value": 0.5}}, {"name": "SGD"}, {"name": "cells"})
    assert subtitle(bare) == "SGD on features"
    assert subtitle(result(), bare) == "2 probes on 2 representations, 2 data sets"
    page = text(result())
    header = re.findall('<th scope="col"[^>]*>(.*?)</th>', page)
    assert header[3:8] == ["labels", "1 a class", "10 a class", "1\u00a0%", "all"]
    chart = re.search("Choice of the hyperparameter</h2>.*?(<svg.*?</svg>)", page, re.S)[1]
    drawn = texts(chart.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1))
    assert {"C", "chosen", "10", "1e-6"} <= set(drawn)
    assert "Choice of the hyperparameter" not in text(bare)


def test_several_seeds_may_choose_differently():
    assert texts(charts.validation({1.0: 0.5, 10.0: 0.6, 100.0: 0.6}, [1.0, 10.0, 7.0])).count("chosen") == 2
    assert texts(charts.validation({1.0: 0.5, 10.0: 0.6})).count("chosen") == 0


def test_a_gallery_says_its_caption_once(tmp_path):
    images = np.arange(6, dtype="uint8")[:, None, None, None] * np.full((6, 8, 8, 3), 40, "uint8")
    drawn = report.neighbours(images, images.reshape(6, -1) + 1.0, tmp_path / "n.png", queries=2, neighbours=2)
    page = report.diagnosis_page(
        tmp_path / "a.html", diagnosis(), galleries=[drawn, (drawn, "Alike."), picture(tmp_path)]
    )
    text = page.read_text(encoding="utf-8")
    assert re.findall('<figure class="wide">.*?</figure>', text)[0].count("figcaption") == 0
    assert re.findall("<figcaption>(.*?)</figcaption>", text)[-2:] == ["Alike.", "a"]
    alts = [a["alt"] for a in read(text).all("img")]
    assert alts[0].startswith("2 of 6 images") and alts[1].startswith("Alike. 2 of 6 images") and alts[2] == "a"


def test_percent_never_begins_a_line():
    text = Page("t").section("s").paragraph("17% and 5 % of 100%s, %d").html()
    assert "17\u00a0% and 5\u00a0% of 100%s, %d" in text


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed to print the page with")
def test_a_printed_page_keeps_its_size(tmp_path):
    """Chromium shrinks a page that is wider than the paper: 0.75 points a pixel mean that none is."""
    many = points(("a representation", "another one"), (4, 8, 15, 32), (16, 64), ("linear", "mlp"))
    given = everything() | {"idealness": simple(points=many, protocol={"probes": "x y " * 99})}
    path = report.diagnosis_page(tmp_path / "a.html", diagnosis(), **given)
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += f" --disable-component-update --disable-sync --user-data-dir={tmp_path / 'user'}"
    flags += f" --no-pdf-header-footer --print-to-pdf={tmp_path / 'a.pdf'}"
    done = subprocess.run([BROWSER, *flags.split(), path.as_uri()], capture_output=True, timeout=120)
    if done.returncode or not (tmp_path / "a.pdf").exists():
        pytest.skip("Chromium does not start here")
    scales = set()
    for stream in re.findall(rb"stream\r?\n(.*?)endstream", (tmp_path / "a.pdf").read_bytes(), re.S):
        with contextlib.suppress(zlib.error):
            matrix = rb"([\d.]+) 0 0 -?[\d.]+ [\d.-]+ [\d.-]+ cm"
            if found := re.match(matrix + rb"\s.*?" + matrix, zlib.decompress(stream), re.S):
                scales.add(round(float(found[1]) * float(found[2]), 3))
    assert scales == {0.75}
