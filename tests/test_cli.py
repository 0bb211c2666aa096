"""The commands around presets, as a shell would run them."""

import numpy as np
import pytest
from PIL import Image

import keras_issl
from keras_issl import cli
from keras_issl.zoo import conversion


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder with a cache of its own, a small checkpoint and photographs of several sizes in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_ISSL_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    conversion.save_checkpoint(keras_issl.encoders.ResNet(18, width=4), "small.pth")
    rng = np.random.default_rng(0)
    for number, size in enumerate([(300, 260), (280, 400), (256, 256)]):
        folder = tmp_path / "photos" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3)).astype("uint8")).save(folder / f"{number}.png")
    return tmp_path


def run(capsys, *arguments):
    status = cli.main(list(arguments))
    said = capsys.readouterr()
    return status, said.out, said.err


def test_presets_are_listed_and_shown(here, capsys):
    status, out, _ = run(capsys, "presets")
    assert status == 0 and out.count("resnet50") == 20 and "release file" in out and "audit is their" in out
    assert max(map(len, out.splitlines())) < 140
    status, out, _ = run(capsys, "presets", "dissl_resnet50_d8192_e800_m8")
    assert status == 0 and "# dissl_resnet50_d8192_e800_m8" in out and "## Results" in out
    status, _, err = run(capsys, "presets", "dissl_resnet50_d8192_e800_m9")
    assert status == 2 and "Did you mean dissl_resnet50_d8192_e800_m8" in err
    status, _, err = run(capsys, "presets", "--fetch", "dissl_resnet50_d8192_e800_m8")
    assert status == 2 and "HF_HUB_OFFLINE forbids fetching it" in err


def test_a_checkpoint_becomes_a_preset_features_and_a_checkpoint(here, capsys):
    status, out, _ = run(capsys, "convert", "small.pth", "mine")
    assert status == 0 and "preset written to mine" in out
    status, _, err = run(capsys, "convert", "small.pth", "mine")
    assert status == 2 and "should not exist yet" in err
    assert run(capsys, "convert", "small.pth", "mine", "--overwrite")[0] == 0

    status, out, _ = run(capsys, "features", "mine", "photos", "found/features.npz", "--verify")
    assert status == 0 and "3 images 224x224x3" in out and "3 x 32 features written to found/features.npz" in out
    features = keras_issl.Features.load("found/features.npz")
    assert features.provenance["preprocessing"] == {"resize": 256, "crop": 224}
    images = keras_issl.datasets.load("photos", resize=256, image_size=224).images
    expected = keras_issl.from_preset("mine").predict(images, verbose=0)
    np.testing.assert_allclose(features.array, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    status, _, err = run(capsys, "features", "mine", "photos", "found/features.npz")
    assert status == 2 and "should not exist yet" in err
    status, _, err = run(capsys, "features", "mine", "photos", "features.txt")
    assert status == 2 and "should end in .npz or .parquet" in err

    status, out, _ = run(capsys, "convert", "mine", "back.pth", "--to-torch")
    assert status == 0 and "written to back.pth" in out
    before, after = (conversion.read_checkpoint(path)[0] for path in ("small.pth", "back.pth"))
    assert list(before) == list(after)
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name])
    status, _, err = run(capsys, "convert", "mine", "back.pth", "--to-torch")
    assert status == 2 and "should not exist yet" in err


def test_a_small_image_preset_knows_its_size(here, capsys):
    conversion.save_checkpoint(keras_issl.encoders.ResNet(18, width=4, image_size=32), "tiny.pth")
    status, _, err = run(capsys, "convert", "tiny.pth", "tiny")
    assert status == 2 and "`image_size` should be under 100" in err
    assert run(capsys, "convert", "tiny.pth", "tiny", "--image-size", "32")[0] == 0
    status, out, _ = run(capsys, "features", "tiny", "photos", "tiny.npz")
    assert status == 0 and "3 images 32x32x3" in out
