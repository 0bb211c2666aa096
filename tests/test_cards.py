"""Model cards: they say what the metadata say, their code runs, and no string in the metadata breaks them."""

import importlib.util
import json
import math
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData

import keras_issl
from keras_issl import encoders
from keras_issl.zoo import cache, cards, layout, registry

pytestmark = pytest.mark.backend_independent
TOOL = Path(keras_issl.__file__).parent.parent / "tools" / "update_cards.py"
NAME = "dissl_resnet50_dNone_e100_m2"
REPO = "keras-issl/some_model"
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


@pytest.mark.parametrize("name", registry.released_names())
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


def wild(text):
    return bare(
        name=f"x{text}",
        probe=text,
        recipe={"objective": text, "dataset": text, text: text, "nested": {text: [text, {text: text}]}},
        results=[
            {"metric": text, "value": text, "source": text, "protocol": text, "url": text},
            {"metric": text, "value": 1.5, "source": text, "dataset": text, "split": text, "url": "https://x.org"},
            {text: text},
            text,
        ],
        provenance={text: text},
        description=text,
        license={"id": text, "evidence": text},
        citation=text,
        note=text,
        source={"url": text, "sha256": text},
        preprocessing={"resize": text, "crop": text},
        versions={text: text},
        hub={"repo": text, "commit": text},
    )


@pytest.mark.parametrize("repo", [None, REPO])
@pytest.mark.parametrize("text", WILD)
def test_no_string_breaks_the_card(text, repo):
    result = cards.card(wild(text), repo=repo, picture=f"{text}.png" if repo else None)
    assert result.encode() and result.endswith("\n")
    front, body = split(result)
    assert set(front) <= {"license", "license_name", "library_name", "pipeline_tag", "tags", "model-index"}
    assert front["library_name"] == "keras_issl" and front.get("license") in (None, "other")
    compile(code(body), "card", "exec")
    prose = re.sub(r"^(`{3,})\w+\n.*?\n\1$", "", body, flags=re.S | re.M)
    assert [line for line in prose.splitlines() if re.match(r"#|[ ]{4}|===|---", line)] == [
        line for line in prose.splitlines() if line.startswith(f"# {'some_model' if repo else 'x'}") or line in TITLES
    ]
    ours = r"<sup>\d+</sup>|\[limits\]\(#use-and-limits\)|`(images|main|verify=True|hf://[\w/@-]+|pip .*?|\[\w+\])`"
    ours += r"|<https://x\.org>|!\[Rows of pictures: [\w ,.]+\]\([\w%.~/-]*\.png\)"
    assert not re.search(r"(?<!\\)(?:\\\\)*[<`\[~$]", re.sub(ours, "", prose))
    width = None
    for line in prose.splitlines():
        if not line.startswith("|"):
            width = None
            continue
        width = width or len(cells(line))
        assert len(cells(line)) == width and width in (2, 3)
    if repo:
        check_model_index(front["model-index"])
        shown = lambda value: " ".join("".join(c if c.isprintable() else " " for c in value).split())  # noqa: E731
        figures = ModelCard(result).data.eval_results
        assert figures[-1].metric_value == 1.5 and figures[-1].dataset_name == (shown(text) or "unknown")
        assert len(figures) == 1 + bool(shown(text)) and figures[0].metric_args["protocol"] == (
            shown(text) or "not recorded"
        )


TITLES = {
    f"## {t}"
    for t in (
        "Load it", "Nearest neighbours", "How it was trained", "Results", "Use and limits", "Licence", "Citation",
    )
}  # fmt: skip


# ---------------------------------------------------------------------- the Hub's card
def check_model_index(index):
    """The rules of the Hub's specification, and the patterns with which it refuses a card."""
    text = lambda value: isinstance(value, str) and value.strip() != ""  # noqa: E731
    (model,) = index
    assert set(model) == {"name", "results"} and text(model["name"]) and isinstance(model["results"], list)
    for result in model["results"]:
        assert set(result) <= {"task", "dataset", "metrics", "source"}
        assert set(result["task"]) == {"type"} and text(result["task"]["type"])
        assert {"type", "name"} <= set(result["dataset"]) <= {"type", "name", "split"}
        assert all(map(text, result["dataset"].values()))
        assert re.fullmatch(r"(?:[A-Za-z0-9_-]+/)?[A-Za-z0-9_.-]+", result["dataset"]["type"])
        assert isinstance(result["metrics"], list) and result["metrics"]
        for metric in result["metrics"]:
            assert {"type", "value", "args"} <= set(metric) <= {"type", "value", "name", "args"}
            assert text(metric["type"]) and (
                text(metric["value"]) or isinstance(metric["value"], int) or math.isfinite(metric["value"])
            )
            assert all(map(text, metric["args"].values()))
        assert all(map(text, result.get("source", {}).values()))
        assert result.get("source", {}).get("url", "https://").startswith(("https://", "http://"))


@pytest.mark.parametrize("name", registry.released_names())
def test_the_hub_reads_every_result_back(name):
    metadata = shipped(name)
    text = cards.card(metadata, repo=f"keras-issl/{name}")
    front, body = split(text)
    check_model_index(front["model-index"])
    data = ModelCard(text).data
    assert (data.license, data.library_name, data.datasets) == ("mit", "keras_issl", ["imagenet-1k"])
    assert (data.pipeline_tag, data.model_name) == ("image-feature-extraction", name)
    found = [
        (r.dataset_name, r.metric_name, r.metric_value, r.dataset_split, r.source_name, r.source_url, r.metric_args)
        for r in data.eval_results
    ]
    recorded = [
        (row["dataset"], f"{row['metric']} ({row['unit']})", row["value"], row.get("split"), row["source"], row["url"],
         {"protocol": row["protocol"], "source": row["source"]}) for row in metadata["results"]
    ]  # fmt: skip
    assert len(found) == len(recorded) and sorted(found, key=str) == sorted(recorded, key=str)
    for result in data.eval_results:
        is_accuracy = "top-" in result.metric_name
        assert result.dataset_type == "imagenet-1k"
        slug = result.metric_name.removesuffix(" (%)").replace(" ", "_")
        assert result.metric_type == ("accuracy" if is_accuracy else slug)
        assert result.task_type == ("image-classification" if is_accuracy else "image-feature-extraction")
    local = split(cards.card(metadata))
    assert front == local[0] | {"model-index": front["model-index"]}
    assert section(body, "Results") == section(local[1], "Results")


def test_figures_of_any_form_reach_the_hub():
    values = [1e-05, -3e-07, 1e16, 2.5e-10, 0, 61, 10**400, "61.2 ± 0.3", True, [1, 2], math.nan, None, ""]
    rows = [{"metric": "top-1", "value": value} for value in values]
    rows += [
        {"metric": "Top-5 error", "value": 8.1, "dataset": "my pictures / v2", "source": "our notebook"},
        {"metric": "accuracy", "value": 0.5, "dataset": "ylecun/mnist", "url": "not an address"},
        {"metric": "דיוק", "value": 0.5, "dataset": "תמונות"},
        {"top-1": 0.25},
    ]
    text = cards.card(bare(results=rows), repo=REPO)
    check_model_index(split(text)[0]["model-index"])
    results = ModelCard(text).data.eval_results
    assert [r.metric_value for r in results[:11]] == [*values[:8], "True", "1, 2", "nan"]  # what is empty is no figure
    assert [type(r.metric_value) for r in results[:7]] == [float] * 4 + [int] * 3
    assert {(r.dataset_type, r.dataset_name, r.metric_type) for r in results[:11]} == {
        ("unknown", "unknown", "accuracy")
    }
    error, accuracy, foreign = results[11:]
    assert (error.metric_type, error.task_type) == ("top_5_error", "image-feature-extraction")
    assert (error.dataset_type, error.dataset_name) == ("my-pictures-v2", "my pictures / v2")
    assert (error.source_name, error.source_url) == (None, None)  # the Hub takes no source without its address
    assert error.metric_args == {"protocol": "not recorded", "source": "our notebook"}
    assert (accuracy.dataset_type, accuracy.source_url) == ("ylecun/mnist", None)
    assert (foreign.metric_type, foreign.metric_name, foreign.dataset_type) == ("other", "דיוק", "unknown")


def test_a_model_without_results_has_a_name_on_the_hub():
    text = cards.card(bare(), repo=REPO)
    assert split(text)[0]["model-index"] == [{"name": "some_model", "results": []}]
    assert ModelCard(text).data.model_name == "some_model" and "\n# some_model\n" in text and "mine" not in text
    assert "\n# mine\n" in cards.card(bare())
    assert "model-index" not in cards.card(bare(results=[{"metric": "top-1", "value": 1}]))


@pytest.mark.parametrize(
    ("name", "front"),
    [
        ("MIT", {"license": "mit"}),
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("openrail++", {"license": "openrail++"}),
        ("Our Licence, v2.1", {"license": "other", "license_name": "our-licence-v2.1"}),
        ("רישיון", {"license": "other"}),
    ],
)
def test_licences_are_the_hubs_or_named(name, front):
    found, body = split(cards.card(bare(license={"id": name, "evidence": "we say so"}), repo=REPO))
    assert {key: value for key, value in found.items() if key.startswith("license")} == front
    assert f"Weights: {name}. we say so" in body


def test_the_code_of_a_hub_card_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # in place of the Hub, a folder: the address itself is another test's
    small = {"blocks": (1,), "width": 8, "image_size": 12}
    fixed = keras.Sequential([keras.Input((10, 14, 3)), keras.layers.GlobalAveragePooling2D()])
    for name, encoder, more in (
        ("rgb", encoders.ResNet(**small), {}),
        ("gray", encoders.ResNet(**small, channels=1), {}),
        ("trained", encoders.ResNet(**small), {"recipe": {"augmentation_args": {"size": 12}}}),
        ("sized", encoders.ResNet(**small), {"preprocessing": {"resize": 16, "crop": 12}}),
        ("fixed", encoders.Adapter(fixed), {}),
    ):
        own = None if isinstance(encoder, encoders.ResNet) else type(encoder).__name__
        folder = keras_issl.save_preset(
            encoder, tmp_path / "org" / name, recipe=more.pop("recipe", None), metadata=more
        )
        text = cards.card(json.loads((folder / "metadata.json").read_text()), own, repo=f"org/{name}")
        snippet, names = code(text), {own: type(encoder)} if own else {}
        assert f'"hf://org/{name}"' in snippet
        exec(compile(snippet.replace("hf://", "./"), "card", "exec"), names)
        assert names["features"].shape == (2, keras_issl.encoders.feature_dim(encoder))
        assert ("resize=16, crop=12" in snippet) == (name == "sized")
        assert ("pictures(encoder, 12)" in snippet) == (name in ("sized", "trained"))
        side = {"sized": 12, "trained": 12, "fixed": 10}.get(name, 64)
        assert names["images"].shape[:2] == (2, side)
        assert ("- **Images:** 12 × 12 pixels, as trained\n" in text) == (name == "trained")
        assert (f"`{own}` is a class of its maker's" in text) == (own is not None)


@pytest.mark.parametrize(
    ("recipe", "preprocessing", "size"),
    [
        ({"augmentation_args": {"size": 32}}, {"resize": 40, "crop": 36}, 36),
        ({"augmentation_args": {"size": 32}}, None, 32),
        ({"augmentation_args": {"size": 32}}, {"resize": "a", "crop": "a"}, 32),
        ({"augmentation_args": {"size": [32, 16]}}, None, None),
        ({"augmentation_args": {"size": True}}, None, None),
        ({"augmentation_args": {"size": -1}}, None, None),
        ({"augmentation_args": "32"}, None, None),
        ({}, None, None),
        (None, None, None),
    ],
)
def test_the_size_that_a_preset_is_meant_for(recipe, preprocessing, size):
    metadata = bare(recipe=recipe) | ({"preprocessing": preprocessing} if preprocessing else {})
    assert cards.image_size(metadata) == size
    given = f"pictures(encoder, {size})" if size else "pictures(encoder)"
    assert given in code(cards.card(metadata, repo=REPO))
    assert ("as trained" in cards.facts(metadata)) == (size is not None and preprocessing is None)


def test_a_run_says_what_it_was_trained_on():
    run = {
        "name": "digits",
        "fingerprint": "0123456789abcdef" * 4,
        "images": 1437,
        "finished_epochs": 2,
        "file": "ab" * 32,
    }
    text = cards.card(bare(recipe={"objective": "dissl", "encoder_args": {"depth": 18}}, provenance=run))
    table = [cells(line) for line in section(text, "How it was trained").splitlines() if line.startswith("|")]
    start = table.index(["data and run", "value"])
    assert table[0] == ["recipe", "value"] and table[start + 2 :] == [
        ["dataset", "digits"],
        ["fingerprint", "0123456789ab…"],
        ["images", "1437"],
        ["finished epochs", "2"],
        ["file", "ab" * 32],
    ]
    assert "trained on digits alone" in section(text, "Use and limits")
    assert "trained on ImageNet-1k alone" in cards.card(bare(recipe={"dataset": "ImageNet-1k"}, provenance=run))
    unnamed = cards.card(bare(provenance=run | {"name": "array"}))
    assert "trained on the images of one array alone" in unnamed
    other = cards.card(bare(provenance={"name": "Ada", "commit": "ab" * 20}))
    assert "| name | Ada |" in other and "ab" * 20 in other and "alone" not in other  # not what a run records


def test_a_hub_card_says_how_to_pin_install_and_what_its_picture_shows():
    text = cards.card(shipped(), repo=REPO, picture=layout.PICTURE)
    usage, picture = section(text, "Load it"), section(text, "Nearest neighbours")
    assert f"`hf://{REPO}@COMMIT`" in usage and "not on PyPI" in usage and 'pip install ".[tensorflow]"' in usage
    assert "authors' file, converts" not in usage and f'from_preset("{NAME}")' not in usage
    assert "drawn at random: from the classes in turn where there are labels" in picture
    assert "](neighbours.png)" in picture and "cosine similarity" in picture
    assert "Nearest neighbours" not in cards.card(shipped(), repo=REPO)
    assert "](a%20b%29.png)" in cards.card(shipped(), picture="a b).png")


def test_a_verified_card_names_hash_and_golden_features_also_on_the_hub():
    source = shipped()["source"] | {"sha256": "ab" * 32, "bytes": 10}
    for repo in (None, REPO):
        text = cards.card(shipped() | {"verified": True, "source": source}, repo=repo)
        assert "**Verified:** yes" in text and "golden features" in text and "Not verified" not in text
        assert f"{source['url']}>, SHA-256 {'ab' * 32}" in section(text, "Licence")


def test_a_published_preset_is_fetched_from_the_hub():
    hub = {"repo": REPO, "commit": "0123456789" * 4}
    text = cards.card(shipped() | {"verified": True, "hub": hub})
    usage = section(text, "Load it")
    assert f"hf://{REPO} at commit {hub['commit']}" in usage.replace("\\", "") and "authors' file" not in usage
    assert f'from_preset("{NAME}")' in code(text)


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
