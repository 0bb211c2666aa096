import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from keras import ops

import keras_issl
from keras_issl import encoders, objectives, zoo
from keras_issl.zoo import format as preset_format
from keras_issl.zoo import layout, strict

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 12, 12, 3)).astype("uint8")


def small_encoder(**kwargs):
    return encoders.ResNet(blocks=(1,), width=8, image_size=12, stem="cifar", **kwargs)


@pytest.fixture
def preset(tmp_path):
    """A preset with its objective, and the encoder that it was made from."""
    encoder, objective = small_encoder(), objectives.DISSL(num_classes=12, teacher_hidden=(16,), bottleneck=8)
    keras_issl.Pretrainer(encoder, objective)
    folder = keras_issl.save_preset(encoder, tmp_path / "mine", objective=objective, results=[{"top-1": 0.5}])
    return folder, encoder, objective


def test_round_trip_is_bit_exact(preset):
    folder, encoder, objective = preset
    again = keras_issl.from_preset(folder)
    np.testing.assert_array_equal(encoder.predict(IMAGES, verbose=0), again.predict(IMAGES, verbose=0))
    heads = zoo.load_objective(folder)
    features = keras.random.normal((2, 4, 8), seed=0)
    for name, value in objective(features, training=False).items():
        np.testing.assert_array_equal(
            ops.convert_to_numpy(value), ops.convert_to_numpy(heads(features, training=False)[name])
        )


def test_metadata_says_what_it_is(preset):
    metadata = json.loads((preset[0] / "metadata.json").read_text())
    assert metadata["probe"] == "linear" and metadata["feature_dim"] == 8 and metadata["verified"] is False
    assert metadata["results"] == [{"top-1": 0.5}]
    assert set(metadata["files"]) == {
        "config.json",
        "model.weights.h5",
        "objective.json",
        "objective.weights.h5",
        "golden.npz",
        "README.md",
    }
    assert metadata["parameters"] == sum(np.prod(w.shape) for w in preset[1].weights)
    assert "from_preset" in (preset[0] / "README.md").read_text()


def test_saved_dtype_is_restored_and_can_be_overridden(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    keras_issl.save_preset(small_encoder(), tmp_path / "half")
    keras.config.set_dtype_policy("float32")
    convolution = keras_issl.from_preset(tmp_path / "half").get_layer("conv1")
    assert convolution.compute_dtype == "bfloat16"
    convolution = keras_issl.from_preset(tmp_path / "half", dtype="float32").get_layer("conv1")
    assert convolution.compute_dtype == "float32"
    assert keras.config.dtype_policy().name == "float32"
    keras_issl.save_preset(small_encoder(dtype="mixed_bfloat16"), tmp_path / "own")
    assert keras_issl.from_preset(tmp_path / "own").get_layer("conv1").compute_dtype == "bfloat16"


def test_load_weights_false_gives_the_architecture_alone(preset):
    folder, encoder, _ = preset
    (folder / "model.weights.h5").unlink()
    fresh = keras_issl.from_preset(folder, load_weights=False)
    assert fresh.get_config() == encoder.get_config()


def test_existing_folders_are_kept(preset, tmp_path):
    folder, encoder, _ = preset
    before = (folder / "model.weights.h5").read_bytes()
    with pytest.raises(ValueError, match="overwrite=True"):
        keras_issl.save_preset(small_encoder(), folder)
    assert (folder / "model.weights.h5").read_bytes() == before
    keras_issl.save_preset(small_encoder(feature_dim=16), folder, overwrite=True)
    assert keras_issl.from_preset(folder).output_shape[-1] == 16
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="holds more than a preset"):
        keras_issl.save_preset(encoder, precious, overwrite=True)
    (folder / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="thesis.tex"):
        keras_issl.save_preset(encoder, folder, overwrite=True)
    assert (precious / "thesis.tex").read_text() == (folder / "thesis.tex").read_text() == "x"


def test_a_failed_save_leaves_nothing_and_loses_nothing(preset):
    folder, _, _ = preset
    before = sorted(os.listdir(folder.parent))

    class Broken(keras.Model):
        def get_config(self):
            raise RuntimeError("no config")

    with pytest.raises(RuntimeError):
        keras_issl.save_preset(Broken(), folder, overwrite=True)
    assert sorted(os.listdir(folder.parent)) == before
    keras_issl.from_preset(folder)


@keras.saving.register_keras_serializable(package="tests")
class Mine(keras.Model):
    """A user's own encoder."""

    def __init__(self, width=4, **kwargs):
        super().__init__(**kwargs)
        self.width, self.dense = width, keras.layers.Dense(width)
        self.build((None, 12, 12, 3))

    def build(self, shape):
        self.dense.build((None, 3))
        self.built = True

    def call(self, images):
        return self.dense(ops.mean(ops.cast(images, "float32"), axis=(1, 2)))

    def compute_output_shape(self, shape):
        return (shape[0], self.width)

    def get_config(self):
        return {"width": self.width, "name": self.name}


def test_a_users_own_encoder_loads_only_when_named(tmp_path):
    encoder = Mine(5)
    keras_issl.save_preset(encoder, tmp_path / "own")
    with pytest.raises(ValueError, match="never brings code"):
        keras_issl.from_preset(tmp_path / "own")
    again = keras_issl.from_preset(tmp_path / "own", custom_objects={"Mine": Mine})
    np.testing.assert_array_equal(encoder.predict(IMAGES, verbose=0), again.predict(IMAGES, verbose=0))


@keras.saving.register_keras_serializable(package="tests")
class BuiltByACall(keras.Model):
    """Its weights exist once it has seen images, not once it is made."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(4)

    def call(self, images):
        return self.dense(ops.mean(ops.cast(images, "float32"), axis=(1, 2)))


def test_an_encoder_that_could_not_be_loaded_is_not_saved(tmp_path):
    encoder = BuiltByACall()
    encoder(IMAGES[:2])
    with pytest.raises(ValueError, match="Adapter"):
        keras_issl.save_preset(encoder, tmp_path / "own")
    assert not list(tmp_path.iterdir())
    adapted = keras_issl.encoders.Adapter(encoder)
    keras_issl.save_preset(adapted, tmp_path / "own")
    again = keras_issl.from_preset(tmp_path / "own", custom_objects={"Adapter": keras_issl.encoders.Adapter})
    np.testing.assert_array_equal(adapted.predict(IMAGES, verbose=0), again.predict(IMAGES, verbose=0))


def edit(folder, name, change):
    path = folder / name
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def link_out(path):
    """Puts a link in the place of a file: to the same bytes, elsewhere."""
    elsewhere = path.parent.parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: flip(f / "model.weights.h5"), "model.weights.h5 is not the file that was saved"),
        (lambda f: (f / "model.weights.h5").unlink(), "lacks its file model.weights.h5"),
        (lambda f: (f / "config.json").unlink(), "with a config.json in it"),
        (lambda f: (f / "metadata.json").unlink(), "records no SHA-256"),
        (lambda f: (f / "config.json").write_text("{"), "is not valid JSON"),
        (lambda f: edit(f, "config.json", lambda c: c.update(surprise=1)), "unknown .'surprise'."),
        (lambda f: edit(f, "config.json", lambda c: c["config"].update(mean=[0, 0, 0])), "config.json is not the file"),
        (lambda f: (f / "metadata.json").write_text("["), "metadata.json is not valid JSON"),
        (lambda f: (f / "metadata.json").write_text("[]"), "metadata.json is not a JSON object. Received: list"),
        (lambda f: (f / "metadata.json").write_text('{"a": 1, "a": 2}'), "are not all different"),
        (lambda f: (f / "metadata.json").write_text('{"a": NaN}'), "NaN is no JSON number"),
        (lambda f: (f / "metadata.json").write_text('{"a": 1e999}'), "1e999 is no finite number"),
        (lambda f: (f / "config.json").write_text("[" * 100_000), "config.json is not valid JSON"),
        (lambda f: (f / "config.json").write_text(" " * (17 << 20)), "at most 16,777,216 bytes"),
        (lambda f: edit(f, "metadata.json", lambda m: m.update(surprise=1)), "unknown .'surprise'."),
        (lambda f: edit(f, "metadata.json", lambda m: m.pop("probe")), "missing .'probe'."),
        (lambda f: edit(f, "metadata.json", lambda m: m.update(results=3)), "for `results` a value of type list"),
        (lambda f: edit(f, "metadata.json", lambda m: m["files"].update({"../x": {}})), "record files of"),
        (lambda f: link_out(f / "config.json"), "is a link to a file outside of the preset"),
        (lambda f: link_out(f / "model.weights.h5"), "is a link to a file outside of the preset"),
        (lambda f: edit(f, "config.json", lambda c: c.update(format=99)), "Update keras_issl"),
        (lambda f: edit(f, "config.json", lambda c: c["config"].update(widht=3)), r"does not have: \['widht'\]"),
        (lambda f: edit(f, "config.json", lambda c: c.update({"class": "os.system"})), "never brings code"),
        (shutil.rmtree, "which is no folder"),
    ],
)
def test_damaged_presets_are_refused_by_name(preset, damage, words):
    damage(preset[0])
    with pytest.raises(ValueError, match=words):
        keras_issl.from_preset(preset[0])


def test_links_of_the_hubs_cache_are_followed_within_it_alone(preset, tmp_path, monkeypatch):
    from huggingface_hub import constants

    blobs = tmp_path / "hub" / "models--me--mine" / "blobs"
    snapshot = blobs.parent / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    shutil.copytree(preset[0], blobs)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    for cache in (".", "/", str(tmp_path), str(tmp_path / "other")):  # odd settings open nothing else
        monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
        with pytest.raises(ValueError, match="is a link to a file outside of the preset"):
            keras_issl.from_preset(snapshot)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert keras_issl.from_preset(snapshot).output_shape == (None, 8)
    link_out(blobs / "config.json")
    with pytest.raises(ValueError, match="is a link to a file outside of the preset"):
        keras_issl.from_preset(snapshot)


def test_an_address_is_no_folder_to_save_into():
    with pytest.raises(ValueError, match="push_to_hub"):
        keras_issl.save_preset(small_encoder(), "hf://me/mine")


def test_preset_without_objective_says_so(tmp_path):
    keras_issl.save_preset(small_encoder(), tmp_path / "bare")
    with pytest.raises(ValueError, match="without its objective"):
        zoo.load_objective(tmp_path / "bare")


def test_hash_is_sha256(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert layout.sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# ---------------------------------------------------------------------- a preset that vouches for itself
def sign(folder):
    """Records the hashes of the files as they are now: what somebody who means harm would do."""

    def record(metadata):
        for name in metadata["files"]:
            file = folder / name
            metadata["files"][name] = {"sha256": layout.sha256(file), "bytes": file.stat().st_size}

    edit(folder, "metadata.json", record)


def arrays(file):
    found = []
    file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    return found


def change_weights(change):
    def damage(folder):
        with h5py.File(folder / "model.weights.h5", "r+") as file:
            change(file, arrays(file)[0])

    return damage


def external_link(file, name):
    del file[name]
    file[name] = h5py.ExternalLink("/etc/passwd", "/")


def external_storage(file, name):
    shape, secret = file[name].shape, Path(file.filename).parent / "secret"
    secret.write_bytes(b"0" * 10_000)
    del file[name]
    file.create_dataset(name, shape, "float32", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])


def virtual(file, name):
    shape = file[name].shape
    del file[name]
    layout = h5py.VirtualLayout(shape, "float32")
    file.create_virtual_dataset(name, layout)


def declared(file, name):
    del file[name]
    file.create_dataset(name, (1 << 20, 1 << 20), "float32", chunks=(1024, 1024))


def packed(file, name):
    value = file[name][()]
    del file[name]
    file.create_dataset(name, data=value, compression="gzip")


def strings(file, name):
    del file[name]
    file.create_dataset(name, data=np.array([b"x"] * 8, dtype=object), dtype=h5py.string_dtype())


def cycle(file, name):
    file["layers"]["again"] = file["layers"]


def config(**arguments):
    return lambda folder: edit(folder, "config.json", lambda c: c["config"].update(arguments))


CODE = {"module": "os", "class_name": "system", "config": {"command": "touch hacked"}}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (change_weights(external_link), "is a link to somewhere else"),
        (change_weights(lambda f, n: f.move(n, "real") or f.update({n: h5py.SoftLink("/real")})), "is a link to"),
        (change_weights(external_storage), "not plainly in the file"),
        (change_weights(virtual), "not plainly in the file"),
        (change_weights(declared), "not plainly in the file"),
        (change_weights(packed), "not plainly in the file"),
        (change_weights(strings), "not numbers"),
        (change_weights(cycle), "occurs twice"),
        (change_weights(lambda f, n: f.create_dataset("more", data=np.zeros(3, "float32"))), "Received: [0-9,]+"),
        (change_weights(lambda f, n: f.move(n, "layers/other/0")), "holds other weights than the model"),
        (lambda f: (f / "model.weights.h5").write_bytes(b"not HDF5"), "is not a sound file of weights"),
        (config(width=10**9), "should hold the [0-9,]{20,} weights"),
        (config(feature_dim=10**12), "should hold the [0-9,]{14,} weights"),
        (config(blocks=[10**9]), "1000 in all at most"),
        (config(width=10**400), "cannot be built|should hold"),
        (config(width="8"), "cannot be built"),
        (config(blocks={}), "cannot be built"),
        (config(name=["a"]), "cannot be built"),
        (config(dtype=CODE), "should name one of the dtype policies"),
        (config(dtype="quantized"), "should name one of the dtype policies"),
        (config(mean=CODE), "describes an object of the class 'system' of 'os'"),
        (config(name={"module": "keras.layers", "class_name": "Lambda"}), "class 'Lambda'"),
    ],
)
def test_signed_damage_is_refused(preset, damage, words):
    folder = preset[0]
    damage(folder)
    sign(folder)
    with pytest.raises(ValueError, match=words):
        keras_issl.from_preset(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"probe": CODE}, "class 'system' of 'os'"),
        ({"probe": {"module": "keras.layers", "class_name": "TFSMLayer", "config": {}}}, "class 'TFSMLayer'"),
        ({"probe": {"module": "keras", "class_name": "Sequential", "config": {"layers": [CODE]}}}, "'system'"),
        ({"probe": {"module": "keras.initializers", "class_name": "tests>Mine", "config": {}}}, "class 'tests>Mine'"),
        ({"probe": {"module": [], "class_name": "Dense", "config": {}}}, "class 'Dense'"),
        ({"num_classes": 10**12}, "should hold the [0-9,]{14,} weights"),
        ({"teacher_hidden": [[1, "x"]]}, "cannot be built"),
    ],
)
def test_signed_damage_to_an_objective_is_refused(preset, change, words):
    folder = preset[0]
    edit(folder, "objective.json", lambda c: c["config"].update(change))
    sign(folder)
    with pytest.raises(ValueError, match=words):
        keras_issl.load_objective(folder)


def test_an_architecture_without_weights_is_bounded(preset):
    config(width=10**6)(preset[0])
    sign(preset[0])
    with pytest.raises(ValueError, match="too many to be one of ours"):
        keras_issl.from_preset(preset[0], load_weights=False)


def test_an_objective_with_a_users_probe_comes_back(tmp_path):
    probe = keras.Sequential([keras.layers.Dense(4, activation="relu"), keras.layers.Dense(12)])
    objective = objectives.DISSL(num_classes=12, teacher_hidden=(16,), bottleneck=8, probe=probe)
    keras_issl.save_preset(small_encoder(), tmp_path / "probed", objective=objective)
    again = keras_issl.load_objective(tmp_path / "probed")
    features = keras.random.normal((2, 4, 8), seed=0)
    found, expected = again(features, training=False), objective(features, training=False)
    for name in expected:
        np.testing.assert_array_equal(ops.convert_to_numpy(found[name]), ops.convert_to_numpy(expected[name]))


# ---------------------------------------------------------------------- golden features
def test_verify_computes_the_recorded_features_again(preset):
    folder, encoder, _ = preset
    with np.load(folder / "golden.npz") as golden:
        assert golden["images"].shape == (2, 12, 12, 3) and golden["images"].std() > 30
        np.testing.assert_allclose(encoder.predict(golden["images"], verbose=0), golden["features"], rtol=1e-5)
    keras_issl.from_preset(folder, verify=True)
    keras_issl.from_preset(folder, verify=True, dtype="mixed_bfloat16")


@pytest.mark.parametrize("change", [{"mean": [0.0, 0.0, 0.0]}, {"stem": "strided"}, {"std": [0.2, 0.2, 0.2]}])
def test_verify_finds_what_hashes_do_not(preset, change):
    folder = preset[0]
    config(**change)(folder)
    sign(folder)
    keras_issl.from_preset(folder)
    with pytest.raises(ValueError, match="does not compute the features that were recorded"):
        keras_issl.from_preset(folder, verify=True)


def test_verify_needs_weights_and_a_sound_record(preset):
    folder = preset[0]
    with pytest.raises(ValueError, match="load_weights=False"):
        keras_issl.from_preset(folder, verify=True, load_weights=False)
    (folder / "golden.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match="golden.npz is not the file that was saved"):
        keras_issl.from_preset(folder, verify=True)
    sign(folder)
    with pytest.raises(ValueError, match="golden.npz is not a sound archive"):
        keras_issl.from_preset(folder, verify=True)
    np.savez(folder / "golden.npz", images=np.zeros((2, 12, 12, 3)), features=np.zeros((2, 9), "float32"))
    sign(folder)
    with pytest.raises(ValueError, match=r"features of shape \(2, 9\). The encoder computes \(2, 8\)"):
        keras_issl.from_preset(folder, verify=True)


def test_an_archive_that_declares_more_than_it_holds(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue() + b"1234")
    with pytest.raises(ValueError, match="declares float32"):
        strict.read_archive(tmp_path / "a.npz", ("x",))


# ---------------------------------------------------------------------- what a preset says of itself
def test_more_metadata_is_kept_and_checked(tmp_path):
    metadata = {"license": {"id": "mit", "evidence": "the owner's word"}, "preprocessing": {"resize": 16, "crop": 12}}
    folder = keras_issl.save_preset(small_encoder(), tmp_path / "told", metadata={**metadata, "probe": "mlp"})
    found = preset_format.read_metadata(folder)
    assert found["license"] == metadata["license"] and found["preprocessing"] == metadata["preprocessing"]
    assert found["probe"] == "mlp" and "mit" in (folder / "README.md").read_text()
    for wrong in ({"licence": {}}, {"note": 3}, {"parameters": 3}):
        with pytest.raises(ValueError, match="`metadata` may hold the entries"):
            keras_issl.save_preset(small_encoder(), tmp_path / "wrong", metadata=wrong)
    with pytest.raises(ValueError, match="without NaN or infinity"):
        keras_issl.save_preset(small_encoder(), tmp_path / "wrong", results=[{"top-1": float("nan")}])
    assert not (tmp_path / "wrong").exists()


def test_presets_of_earlier_versions_load(preset):
    """Without golden features, the number of parameters, and with Keras's own description of the dtype."""
    folder, encoder, _ = preset
    policy = keras.dtype_policies.serialize(keras.dtype_policies.get("float32"))
    edit(folder, "config.json", lambda c: c["config"].update(dtype=policy))
    (folder / "golden.npz").unlink()
    edit(folder, "metadata.json", lambda m: (m["files"].pop("golden.npz"), m.pop("parameters")))
    sign(folder)
    again = keras_issl.from_preset(folder)
    np.testing.assert_array_equal(encoder.predict(IMAGES, verbose=0), again.predict(IMAGES, verbose=0))
    with pytest.raises(ValueError, match="lacks its file golden.npz"):
        keras_issl.from_preset(folder, verify=True)


@pytest.mark.parametrize("value", ["float31", 3, object()])
def test_unknown_dtypes_are_refused(preset, value):
    with pytest.raises(ValueError, match="`dtype` should be a dtype policy"):
        keras_issl.from_preset(preset[0], dtype=value)


# ---------------------------------------------------------------------- what must not get lost or mixed up
def test_a_card_that_its_owner_wrote_survives_overwriting(preset):
    folder, encoder, _ = preset
    keras_issl.save_preset(encoder, folder, overwrite=True, results=[{"metric": "top-1", "value": 1.5}])
    assert "1.5" in (folder / "README.md").read_text()  # nobody had touched the card
    (folder / "README.md").write_text("My own words")
    for _ in range(2):
        keras_issl.save_preset(encoder, folder, overwrite=True)
        assert (folder / "README.md").read_text() == "My own words"
    keras_issl.save_preset(encoder, folder, overwrite=True, card="New words")
    assert (folder / "README.md").read_text() == "New words"


def test_a_repository_around_a_preset_is_left_alone(preset):
    folder, encoder, _ = preset
    (folder / ".git").mkdir()
    with pytest.raises(ValueError, match="holds more than a preset.*.git"):
        keras_issl.save_preset(encoder, folder, overwrite=True)
    assert (folder / ".git").is_dir()


def test_a_linked_folder_stays_a_link(preset, tmp_path):
    folder, encoder, _ = preset
    (tmp_path / "link").symlink_to(folder)
    keras_issl.save_preset(encoder, tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink() and keras_issl.from_preset(folder).output_shape == (None, 8)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"results": {"top-1": 1}}, "for `results` a value of type list"),
        ({"recipe": "mine"}, "for `recipe` a value"),
        ({"provenance": [1]}, "for `provenance` a value of type dict"),
        ({"recipe": {"loss": print}}, "should hold what JSON can"),
        ({"metadata": {"preprocessing": {"resize": 256}}}, "two sizes in pixels"),
        ({"metadata": {"preprocessing": {"resize": 224, "crop": 256}}}, "two sizes in pixels"),
    ],
)
def test_what_could_not_be_read_is_not_written(tmp_path, entries, words):
    with pytest.raises(ValueError, match=words):
        keras_issl.save_preset(small_encoder(), tmp_path / "wrong", **entries)
    assert not (tmp_path / "wrong").exists()


def test_arrays_and_paths_are_kept_as_what_they_hold(tmp_path):
    provenance = {"mean": np.array([1.5, 2.0]), "count": np.int64(3), "data": tmp_path}
    folder = keras_issl.save_preset(small_encoder(), tmp_path / "kept", provenance=provenance)
    assert preset_format.read_metadata(folder)["provenance"] == {"mean": [1.5, 2.0], "count": 3, "data": str(tmp_path)}


def test_a_users_class_of_the_same_name_is_refused(tmp_path):
    class ResNet(encoders.ResNet):
        pass

    with pytest.raises(ValueError, match="`encoder` should not be of a class of your own named like"):
        keras_issl.save_preset(ResNet(blocks=(1,), width=8, image_size=12), tmp_path / "same")


def test_adapted_low_precision_models_verify_and_keep_their_policy(tmp_path):
    inner = keras.Sequential([keras.Input((12, 12, 3)), keras.layers.Conv2D(8, 3, dtype="mixed_bfloat16")])
    folder = keras_issl.save_preset(encoders.Adapter(inner, scale=1 / 255), tmp_path / "adapted")
    assert 'custom_objects={"Adapter": Adapter}' in (folder / "README.md").read_text()
    known = {"Adapter": encoders.Adapter}
    keras_issl.from_preset(folder, verify=True, custom_objects=known)
    with pytest.raises(ValueError, match="`dtype` should be left out for a preset of the class Adapter"):
        keras_issl.from_preset(folder, dtype="float32", custom_objects=known)


def test_a_policy_object_is_as_good_as_its_name(preset):
    encoder = keras_issl.from_preset(preset[0], dtype=keras.dtype_policies.get("mixed_bfloat16"))
    assert encoder.get_layer("conv1").compute_dtype == "bfloat16"


@pytest.mark.parametrize("preset", [None, 3, ""])
def test_what_is_no_name_and_no_path(preset):
    with pytest.raises(ValueError, match="`preset` should be a built-in name, the path of a folder or an address"):
        keras_issl.from_preset(preset)


def test_images_of_hundreds_of_channels(tmp_path):
    encoder = small_encoder(channels=400)
    folder = keras_issl.save_preset(encoder, tmp_path / "spectral")
    assert keras_issl.from_preset(folder, verify=True).channels == 400
    with pytest.raises(ValueError, match="in a list of more than 256"):
        keras_issl.save_preset(small_encoder(channels=5000), tmp_path / "too many")
    assert not (tmp_path / "too many").exists()
