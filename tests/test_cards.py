"""Model cards: they say what the metadata say, their code runs, and no string in the metadata breaks them."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData

import keras_issl
from keras_issl import encoders
from keras_issl.zoo import cache, cards, registry

pytestmark = pytest.mark.backend_independent
TOOL = Path(keras_issl.__file__).parent.parent / "tools" / "update_cards.py"
NAME = "dissl_resnet50_dNone_e100_m2"
WILD = [
    "a | b",
    "two\nlines\r\n\n# heading\n---\n- item",
    "</td></table><script>alert(1)</script> <!-- ",
    "```\ncode\n```` and `ticks`",
    "@misc{\n````\n<b>out</b>",
    "'\"\\ : {x: [1, #2]} & *a* __b__ ~~c~~ $$d$$",
    "---\nlicense: gpl\n---",
    "[link](javascript:alert(1)) ![image](http://x/y.png)",
    "\x00\x07\x7f\x85\u2028\ufeff\ud800 emoji 🙂 עברית",
    "1. not a list",
    "x" * 5000,
    "",
    "   ",
    "null",
]


def shipped(name=NAME):
    return json.loads((registry.shipped_folder(name) / "metadata.json").read_text())


def bare(**more):
    """Metadata of someone's preset with nothing but what must be there."""
    return {
        "format": 1, "name": "mine", "feature_dim": 8, "probe": None, "recipe": None, "results": [], "provenance": {},
        "versions": {}, "files": {}, "verified": False, **more,
    }  # fmt: skip


def split(text):
    """(front matter as PyYAML reads it, the rest)."""
    _, front, body = re.split(r"^---\n", text, maxsplit=2, flags=re.M)
    return yaml.safe_load(front), body


def code(text):
    (block,) = re.findall(r"^(`{3,})python\n(.*?)\n\1$", text, flags=re.S | re.M)
    return block[1]


def section(text, title):
    return text.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def cells(line):
    """The cells of a row of a table, cut at every | that is not escaped."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


@pytest.mark.parametrize("name", registry.names())
def test_shipped_cards_are_current_and_complete(name):
    metadata, text = shipped(name), (registry.shipped_folder(name) / "README.md").read_bytes().decode()
    assert text == cards.card(metadata)  # else: python tools/update_cards.py
    front, _ = split(text)
    assert front == {
        "license": "mit",
        "library_name": "keras_issl",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["keras", "self-supervised-learning", name.split("_")[0]],
        "datasets": ["imagenet-1k"],
    }
    assert f'from_preset("{name}")' in code(text) and str(metadata["feature_dim"]) in code(text)
    for words in (
        "We have not downloaded and checked",
        "without hash and golden features",
        metadata["license"]["evidence"],
    ):
        assert words in text
    assert metadata["source"]["url"] in text and metadata["citation"] in text


def test_readme_and_audit_stand_side_by_side_with_their_protocols():
    results = section(cards.card(shipped()), "Results")
    lines = results.strip().splitlines()
    assert cells(lines[0]) == ["ImageNet-1k", "authors' README", "audit"]
    assert cells(lines[2]) == ["top-1 (%)", "66.9 <sup>1</sup>", "61.86 <sup>2</sup>"]
    assert cells(lines[3]) == ["top-5 (%)", "87.5 <sup>1</sup>", "–"]
    notes = [line for line in lines if re.match(r"\d+\. ", line)]
    assert [note.split(":")[0] for note in notes] == ["1. authors' README", "2. audit", "3. audit"]
    assert "tuned on test" in notes[1] and "clips negative" in notes[2]


@pytest.mark.parametrize("name", [NAME, "dissl_resnet50_d8192_e100_m6"])
def test_the_hub_reads_the_front_matter(name):
    content = (registry.shipped_folder(name) / "README.md").read_text()
    data = ModelCard(content).data
    assert isinstance(data, ModelCardData)
    assert (data.license, data.library_name, data.datasets) == ("mit", "keras_issl", ["imagenet-1k"])
    assert data.pipeline_tag == "image-feature-extraction"
    assert yaml.safe_load(data.to_yaml()) == split(content)[0]


def test_the_code_of_a_shipped_card_runs(tmp_path, monkeypatch, rng):
    monkeypatch.setenv("KERAS_ISSL_HOME", str(tmp_path))
    encoder = encoders.ResNet(blocks=(1,), width=8, image_size=32, stem="strided", feature_dim=2048)
    keras_issl.save_preset(encoder, cache.cached_preset(NAME))  # where a converted release file would lie
    images = rng.integers(0, 256, (2, 32, 32, 3)).astype("uint8")
    names = {"images": images}
    exec(compile(code(cards.card(shipped())), "card", "exec"), names)
    np.testing.assert_array_equal(names["features"], encoder.predict(images, verbose=0))
    assert names["features"].shape == (2, shipped()["feature_dim"])


def test_the_code_of_a_users_card_runs(tmp_path, monkeypatch, rng):
    monkeypatch.chdir(tmp_path)
    encoder = encoders.ResNet(blocks=(1,), width=8, image_size=12)
    folder = keras_issl.save_preset(encoder, Path("path/to") / 'it\'s "mine"')
    names = {"images": rng.integers(0, 256, (2, 12, 12, 3)).astype("uint8")}
    exec(compile(code((folder / "README.md").read_text()), "card", "exec"), names)
    assert names["features"].shape == (2, 8)


def test_a_bare_preset_has_a_card():
    text = cards.card(bare())
    front, body = split(text)
    assert front["library_name"] == "keras_issl" and "license" not in front and "datasets" not in front
    assert "An encoder with 8 features" in body and "No licence is recorded" in body
    assert "## Results" not in body and "## How it was trained" not in body and "## Citation" not in body


def test_verified_weights_are_called_so():
    unverified, verified = cards.card(shipped()), cards.card(shipped() | {"verified": True})
    assert "**Not verified.**" in unverified and "**Verified.**" not in unverified
    assert "**Verified.**" in verified and "Not verified" not in verified and "**Verified:** yes" in verified
    weights = {"model.weights.h5": {"sha256": "0" * 64, "bytes": 1}}
    converted = cards.card(shipped() | {"files": shipped()["files"] | weights})
    assert "of the conversion on the machine" in converted and "first call fetches" not in converted


def test_only_a_released_checkpoint_loads_by_its_name():
    mine = bare(source={"url": "https://example.org/files/other.torch"})
    assert 'from_preset("path/to/mine")' in cards.card(mine)


def test_results_of_any_form():
    rows = [
        {"metric": "top-1", "value": 0.5},
        {"metric": "top-1", "value": 0.7, "protocol": "kNN", "dataset": "A"},
        {"metric": "top-1", "value": 0.6, "protocol": "kNN", "dataset": "B", "split": "test"},
        {"top-1": 0.25, "shots": None, "seeds": [1, 2]},
    ]
    results = section(cards.card(bare(results=rows)), "Results")
    table = [cells(line) for line in results.splitlines() if line.startswith("|")]
    assert table[0] == ["", "this preset"]
    assert table[2:] == [
        ["top-1", "0.5 <sup>1</sup>"],
        ["top-1, A", "0.7 <sup>2</sup>"],
        ["top-1, B", "0.6 <sup>3</sup>"],
    ]
    assert "1. this preset: protocol not recorded." in results and "3. this preset: kNN; on test images." in results
    assert "- top-1: 0.25; seeds: 1, 2" in results


@pytest.mark.parametrize("text", WILD)
def test_no_string_breaks_the_card(text):
    metadata = bare(
        name=f"x{text}",
        probe=text,
        recipe={"objective": text, "dataset": text, text: text, "nested": {text: [text, {text: text}]}},
        results=[{"metric": text, "value": text, "source": text, "protocol": text, "url": text}, {text: text}, text],
        provenance={text: text},
        description=text,
        license={"id": text, "evidence": text},
        citation=text,
        note=text,
        source={"url": text},
        preprocessing={"resize": text, "crop": text},
        versions={text: text},
    )
    result = cards.card(metadata)
    assert result.encode() and result.endswith("\n")
    front, body = split(result)
    assert set(front) <= {"license", "license_name", "library_name", "pipeline_tag", "tags"}
    assert front["library_name"] == "keras_issl" and front.get("license") in (None, "other", "null", "x" * 5000)
    compile(code(body), "card", "exec")
    prose = re.sub(r"^(`{3,})\w+\n.*?\n\1$", "", body, flags=re.S | re.M)
    assert [line for line in prose.splitlines() if re.match(r"#|[ ]{4}|===|---", line)] == [
        line for line in prose.splitlines() if line.startswith("# x") or line in TITLES
    ]
    allowed = re.sub(r"<sup>\d+</sup>|\[limits\]\(#use-and-limits\)|`(images|verify=True)`", "", prose)
    assert not re.search(r"(?<!\\)(?:\\\\)*[<`\[~$]", allowed)
    width = None
    for line in prose.splitlines():
        if not line.startswith("|"):
            width = None
            continue
        width = width or len(cells(line))
        assert len(cells(line)) == width and width in (2, 3)


TITLES = {f"## {t}" for t in ("Load it", "How it was trained", "Results", "Use and limits", "Licence", "Citation")}


def test_tool_writes_and_checks(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("update_cards", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.main(["--check"]) == 0
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metadata.json").write_text(json.dumps(bare(name=name)))
    (tmp_path / "two" / "README.md").write_text(cards.card(bare(name="two")))
    folder = ["--folder", str(tmp_path)]
    assert tool.main(["--check", *folder]) == 1
    named = capsys.readouterr().out
    assert str(tmp_path / "one") in named and str(tmp_path / "two") not in named
    assert not (tmp_path / "one" / "README.md").exists()
    assert tool.main(folder) == 0 and tool.main(["--check", *folder]) == 0
    assert (tmp_path / "one" / "README.md").read_text() == cards.card(bare(name="one"))
