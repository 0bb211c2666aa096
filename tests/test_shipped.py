"""The preset that comes with the library: it loads anywhere, offline, and says what it is and how good."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import yaml
from PIL import Image

import keras_issl
from keras_issl import encoders, recipes
from keras_issl.zoo import card_tables, cards, layout, registry

sys.path.append(str(Path(keras_issl.__file__).parent.parent / "tools"))
import shipped_preset

once = pytest.mark.backend_independent
NAME = "dissl_resnet10_d160_cifar10"
FOLDER = registry.presets_folder() / NAME
COLUMNS = ("keras_issl", "same encoder, untrained", "raw pixels")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("KERAS_ISSL_HOME", str(tmp_path / "home"))
    return tmp_path


def read():
    return json.loads((FOLDER / "metadata.json").read_text())


def test_it_loads_by_its_name_and_gives_the_features_it_was_saved_with(offline):
    encoder = keras_issl.from_preset(NAME, verify=True)
    assert isinstance(encoder, encoders.ResNet) and encoder.output_shape == (None, 160)
    with np.load(FOLDER / "golden.npz") as golden:
        features = encoder.predict(golden["images"], verbose=0)
        np.testing.assert_allclose(features, golden["features"], atol=2e-5 * np.abs(golden["features"]).max())
    assert not (offline / "home").exists()  # nothing was fetched or copied


@once
def test_a_new_process_tries_no_connection_and_no_other_backend(offline):
    code = f"""
import socket, sys
def refuse(*arguments, **options):
    raise AssertionError("a connection was tried")
socket.socket.connect = socket.getaddrinfo = refuse
import keras_issl
encoder = keras_issl.from_preset({NAME!r})
print(encoder.count_params(), "tensorflow" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    is_tensorflow = keras.config.backend() == "tensorflow"
    assert done.stdout.split() == [str(read()["parameters"]), str(is_tensorflow)], done.stderr[-2000:]


@once
def test_the_folder_is_small_and_is_what_it_records():
    files = {path.name: path.read_bytes() for path in FOLDER.iterdir()}
    assert set(files) == {layout.CONFIG, layout.WEIGHTS, layout.GOLDEN, layout.METADATA, layout.CARD, layout.PICTURE}
    assert sum(map(len, files.values())) <= 4e6
    recorded = read()["files"]
    assert set(recorded) == {layout.CONFIG, layout.WEIGHTS, layout.GOLDEN}
    for name, entry in recorded.items():
        assert entry == {"sha256": hashlib.sha256(files[name]).hexdigest(), "bytes": len(files[name])}


@once
def test_it_says_how_it_was_trained():
    metadata, recipe = read(), recipes.get("cifar10/dissl-small")
    model, provenance = recipes.build(recipe, 50_000), metadata["provenance"]
    assert metadata["recipe"] == shipped_preset.described(model.encoder, model.objective, recipe)
    assert provenance["finished_epochs"] == recipe.epochs and provenance["images"] == 50_000
    assert "JPEG" in provenance["dataset"] and provenance["command"].startswith("python tools/shipped_preset.py")
    config = json.loads((FOLDER / "config.json").read_text())["config"]
    built = recipes.build_encoder(recipe).get_config()
    assert {k: v for k, v in config.items() if k != "name"} == json.loads(
        json.dumps({k: v for k, v in built.items() if k != "name"} | {"dtype": "float32"})
    )
    assert metadata["verified"] is True and metadata["probe"] == "linear" and "source" not in metadata


@once
def test_its_figures_stand_beside_those_of_what_needs_no_training():
    rows = {(row["source"], row["metric"]): row for row in read()["results"]}
    metrics = list(dict.fromkeys(metric for _, metric in rows))
    few = [f"top-1 from {images} a class" for images in ("1 image", "10 images", "100 images")]
    assert metrics == ["top-1", "top-1, kNN", *few]
    assert len(rows) == len(COLUMNS) * len(metrics)
    for metric in metrics:
        trained, *others = (rows[column, metric] for column in COLUMNS)
        assert trained["value"] > max(other["value"] for other in others), metric
        for row in (trained, *others):
            assert "JPEG" in row["protocol"] and "10,000 test images" in row["protocol"]
            assert row.get("sd", 0) > 0 or row["interval"][0] < row["value"] < row["interval"][1]
        assert trained["protocol"] == others[0]["protocol"]  # one protocol a metric


@once
def test_its_card_shows_all_that():
    text = (FOLDER / "README.md").read_bytes().decode()
    assert text == cards.builtin_card(FOLDER)  # else: python tools/update_cards.py
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "apache-2.0" and "dissl" in front["tags"]
    assert f'from_preset("{NAME}")' in text and "no call needs a network" in text and "**Verified.**" in text
    assert "| CIFAR-10 | keras_issl | same encoder, untrained | raw pixels |" in " ".join(text.split())
    assert "![Rows of pictures" in text and "JPEG" in text
    with Image.open(FOLDER / layout.PICTURE) as picture:
        assert picture.format == "PNG" and min(picture.size) > 300


@once
def test_a_figure_says_how_sure_it_is():
    row = {"dataset": "x", "metric": "top-1", "unit": "%", "source": "ours", "protocol": "p", "value": 61.2}
    for more, shown in (({}, ""), ({"sd": 1.5}, " ± 1.5"), ({"interval": [60.0, 62.5]}, " [60.0, 62.5]")):
        assert f"61.2{shown} <sup>" in card_tables.results_table([row | more])
    for odd in ({"interval": "60 to 62"}, {"interval": [1]}, {"sd": None}):
        assert "61.2 <sup>" in card_tables.results_table([row | odd])
