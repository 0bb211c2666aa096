"""The commands around presets, as a shell would run them."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from hub_server import HubServer
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


@pytest.mark.backend_independent
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


@pytest.mark.backend_independent
def test_a_small_image_preset_knows_its_size(here, capsys):
    conversion.save_checkpoint(keras_issl.encoders.ResNet(18, width=4, image_size=32), "tiny.pth")
    status, _, err = run(capsys, "convert", "tiny.pth", "tiny")
    assert status == 2 and "`image_size` should be under 100" in err
    assert run(capsys, "convert", "tiny.pth", "tiny", "--image-size", "32")[0] == 0
    status, out, _ = run(capsys, "features", "tiny", "photos", "tiny.npz")
    assert status == 0 and "3 images 32x32x3" in out


@pytest.mark.backend_independent
def test_neighbours_are_drawn(here, capsys):
    assert run(capsys, "convert", "small.pth", "mine")[0] == 0
    status, out, _ = run(capsys, "neighbours", "mine", "photos", "pictures/near.png")
    assert status == 0 and "3 of 3 images" in out and "Written to pictures/near.png" in out
    with Image.open("pictures/near.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 100
    own = str(next((here / "photos" / "b").iterdir()))
    status, out, _ = run(capsys, "neighbours", "mine", "photos", "own.png", "--image", own)
    assert status == 0 and "Written to own.png" in out
    status, _, err = run(capsys, "neighbours", "mine", "photos", "own.png", "--image", "none.png")
    assert status == 2 and "none.png" in err
    status, _, err = run(capsys, "neighbours", "mine", "photos", "near.jpg")
    assert status == 2 and "should end in .png" in err


class Strict(keras.layers.Layer):
    """Refuses all images, within `call`."""

    def call(self, images):
        raise ValueError("`images` should be larger. Received: 4x4")


def test_what_keras_puts_around_an_error_is_left_out(capsys, monkeypatch):
    """Any command that a layer's error ends: it says the sentence, not Keras's page on the arguments."""
    with pytest.raises(ValueError) as caught:
        Strict()(np.zeros((2, 4, 4, 3)))
    assert "Arguments received by" in str(caught.value) and "\x1b[" in str(caught.value)

    def ends(args):
        raise caught.value

    monkeypatch.setattr(cli.presets, "_presets", ends)
    status, _, err = run(capsys, "presets")
    assert (status, err) == (2, "keras-issl: `images` should be larger. Received: 4x4\n")
    two = "`x` should be 1.\n\nReceived: 2"
    assert cli._plain(ValueError(two)) == two


@pytest.mark.backend_independent
def test_a_preset_is_pushed_and_used_by_its_address(here, capsys):
    assert run(capsys, "convert", "small.pth", "mine")[0] == 0
    assert run(capsys, "neighbours", "mine", "photos", "near.png")[0] == 0

    def shell(home, *arguments, **options):
        command = [sys.executable, "-W", "ignore", "-m", "keras_issl.cli", *arguments]
        done = subprocess.run(
            command, cwd=here, env=hub.environment(here / home, **options), capture_output=True, text=True
        )
        return done.returncode, done.stdout, done.stderr

    with HubServer(here / "hub") as hub:
        pushing = ("push", "mine", "hf://user/photos", "--tag", "v1", "--private", "--picture", "near.png")
        status, out, err = shell("author", *pushing)
        commit = hub.head("user/photos")
        assert status == 0 and f"{hub.url}/user/photos is at commit {commit}" in out, err
        assert 'keras_issl.from_preset("hf://user/photos@v1") loads it' in out
        assert "user/photos" in hub.private and {"neighbours.png", "README.md"} < set(hub.files("user/photos"))
        assert shell("author", *pushing)[0] == 0 and hub.head("user/photos") == commit

        status, out, err = shell("reader", "features", "hf://user/photos@v1", "photos", "features.npz", "--verify")
        assert status == 0, err
        features = keras_issl.Features.load("features.npz")
        assert features.provenance["preset"] == f"hf://user/photos@{commit}"  # what the tag was then
        hub.down()
        status, _, err = shell("nobody", "features", "hf://user/photos", "photos", "others.npz")
        assert status == 2 and err.splitlines()[-1].startswith("keras-issl: No network: ") and "Traceback" not in err
