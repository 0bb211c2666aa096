"""From a name to an encoder: a real release file from a real server, converted once, cached."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from file_server import Fault, FileServer

import keras_issl
from keras_issl import encoders, zoo
from keras_issl.zoo import conversion, loading, registry, strict

NAME = "dissl_resnet50_d8192_e800_m8"
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype("uint8")


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A file with the released keys, and its encoder."""
    with encoders.from_zeros():
        encoder = keras_issl.from_preset(NAME, load_weights=False)
    rng = np.random.default_rng(0)
    for weight in encoder.weights:
        fan_in = np.prod(weight.shape[:-1]) if len(weight.shape) == 4 else None
        value = rng.standard_normal(weight.shape) * np.sqrt(2 / fan_in) if fan_in else rng.uniform(0.5, 1, weight.shape)
        weight.assign(value.astype("float32"))
    path = conversion.save_checkpoint(encoder, tmp_path_factory.mktemp("release") / f"{NAME}.torch")
    return path.read_bytes(), encoder.predict(IMAGES, verbose=0)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_ISSL_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    return tmp_path / "home"


@pytest.fixture
def server(home, released, monkeypatch):
    with FileServer({f"/zoo/{NAME}.torch": released[0]}) as server:
        monkeypatch.setenv("KERAS_ISSL_MIRROR", server.url("/zoo/"))
        yield server


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# ---------------------------------------------------------------------- names
@pytest.mark.parametrize("name", registry.released_names())
def test_every_name_resolves_to_its_architecture(name, home):
    width = {"dNone": 2048, "d4096": 4096, "d8192": 8192}[name.split("_")[2]]
    expected = {2048: 23_561_152, 4096: 29_086_656, 8192: 31_200_192}[width]
    found = []

    def make():
        found.append(keras_issl.from_preset(name, load_weights=False))
        return found[0]

    assert strict.count_weights(make) == expected
    assert found[0].output_shape == (None, width)
    assert found[0].get_layer("conv1").kernel.shape == (7, 7, 3, 64)
    assert not home.exists()  # nothing was fetched


def test_unknown_names_get_a_suggestion(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="Did you mean .*dissl_resnet50_d8192_e800_m8"):
        keras_issl.from_preset("dissl_resnet50_d8192_e800")
    with pytest.raises(ValueError, match="keras-issl presets"):
        keras_issl.from_preset("no/such/folder")
    for preset in ("me/microscope", "https://huggingface.co/me/microscope"):
        with pytest.raises(ValueError, match="Did you mean hf://me/microscope\\?"):
            keras_issl.from_preset(preset)
    with pytest.raises(ValueError, match="hf://organisation/name"):
        keras_issl.from_preset("hf://keras-issl")
    with pytest.raises(ValueError, match="should be given once"):
        keras_issl.from_preset(f"{NAME}@v1", revision="main")
    with pytest.raises(ValueError, match="`revision` is for presets on the Hub"):
        keras_issl.from_preset(tmp_path, revision="main")


def test_a_builtin_name_wins_over_a_folder_unless_it_is_written_as_a_path(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keras_issl.save_preset(encoders.ResNet(blocks=(1,), width=8, image_size=12), NAME)
    for path in (f"./{NAME}", tmp_path / NAME, Path(NAME)):
        assert keras_issl.from_preset(path).output_shape == (None, 8)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE forbids"):
        keras_issl.from_preset(NAME)


@pytest.mark.backend_independent
# ---------------------------------------------------------------------- download, conversion, cache
def test_a_release_file_is_fetched_once_converted_once_and_kept(server, home, released, monkeypatch):
    content, features = released
    server.faults = [Fault(cut=len(content) // 2)]  # and resumed
    encoder = keras_issl.from_preset(NAME)
    np.testing.assert_array_equal(encoder.predict(IMAGES, verbose=0), features)
    assert server.sent == len(content)
    folder = home / "presets" / NAME
    assert files(home) == [
        f"locks/{NAME}.lock",
        *(f"presets/{NAME}/{f}" for f in ("README.md", "config.json", "golden.npz", "metadata.json")),
        f"presets/{NAME}/model.weights.h5",
    ]
    metadata = zoo.read_metadata(folder)
    shipped = zoo.read_metadata(registry.shipped_folder(NAME))
    for key in ("recipe", "results", "license", "preprocessing", "source", "probe", "name", "parameters"):
        assert metadata[key] == shipped[key], key
    assert metadata["verified"] is False and metadata["provenance"]["converted_from"] == shipped["source"]["url"]
    assert {p.name: p.source for p in keras_issl.list_presets()}[NAME] == "cached"
    asked = len(server.log)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    again = keras_issl.from_preset(NAME, verify=True)
    np.testing.assert_array_equal(again.predict(IMAGES, verbose=0), features)
    half = keras_issl.from_preset(NAME, dtype="mixed_bfloat16")
    assert half.get_layer("conv1").compute_dtype == "bfloat16"
    assert len(server.log) == asked
    # A cached preset that was damaged is said to be one.
    weights = bytearray((folder / "model.weights.h5").read_bytes())
    weights[len(weights) // 2] ^= 1
    (folder / "model.weights.h5").write_bytes(weights)
    with pytest.raises(ValueError, match="SHA-256 differs.*It is in the cache: delete "):
        keras_issl.from_preset(NAME)


def test_what_is_not_the_checkpoint_is_not_kept(server, home):
    server.files[f"/zoo/{NAME}.torch"] = b"<html>Please log in</html>"
    with pytest.raises(ValueError, match="is not the checkpoint it should be, and was removed"):
        keras_issl.from_preset(NAME)
    small = conversion.save_checkpoint(encoders.ResNet(18, width=4), home / "small.torch")
    server.files[f"/zoo/{NAME}.torch"] = small.read_bytes()
    with pytest.raises(ValueError, match="missing"):
        keras_issl.from_preset(NAME)
    assert [f for f in files(home) if f.startswith(("presets", "downloads"))] == []


def test_no_network_says_so_and_keeps_nothing(home, monkeypatch):
    monkeypatch.setenv("KERAS_ISSL_MIRROR", "http://127.0.0.1:9")
    with pytest.raises(OSError, match="no network"):
        keras_issl.from_preset(NAME)
    keras_issl.from_preset(NAME, load_weights=False)


def test_without_torch_nothing_is_downloaded(server, home):
    if keras.config.backend() == "torch":
        pytest.skip("this backend is PyTorch")
    # Blocked last: SciPy looks at `sys.modules["torch"]` when Keras is imported.
    code = "import sys, keras_issl; sys.modules['torch'] = None; keras_issl.from_preset(sys.argv[1])"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, NAME], capture_output=True, text=True)
    assert "PyTorch is needed only to read or write torch checkpoints" in done.stderr
    assert server.log == []


@pytest.mark.backend_independent
def test_two_processes_at_once_fetch_once(server, home, released):
    code = "import sys; from keras_issl.zoo import loading; print(loading.fetch(sys.argv[1]))"
    command = [sys.executable, "-W", "ignore", "-c", code, NAME]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [p.communicate()[0].strip() for p in processes] == [str(home / "presets" / NAME)] * 2
    assert len(server.log) == 1
    np.testing.assert_array_equal(keras_issl.from_preset(NAME).predict(IMAGES, verbose=0), released[1])


@pytest.mark.backend_independent
def test_threads_of_one_process_wait_for_each_other(server, home):
    found = []
    threads = [threading.Thread(target=lambda: found.append(loading.fetch(NAME))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [home / "presets" / NAME] * 3 and len(server.log) == 1


@pytest.mark.backend_independent
def test_a_kill_during_the_download_is_resumed(server, home, released):
    server.faults = [Fault(stall=len(released[0]) // 2)]
    code = "import sys; from keras_issl.zoo import loading; loading.fetch(sys.argv[1])"
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, NAME], env={**os.environ})
    part = home / "downloads" / f"{NAME}.torch.part"
    while not part.exists() or part.stat().st_size < len(released[0]) // 2 - 1:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    loading.fetch(NAME)
    assert server.sent <= len(released[0]) + (1 << 20)  # at most what was on its way twice
