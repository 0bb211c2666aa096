import json
import os
import shutil

import keras
import numpy as np
import pytest
from keras import ops

import keras_issl
from keras_issl import encoders, objectives, zoo
from keras_issl.zoo import format as preset_format

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
    }
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


def edit(folder, name, change):
    path = folder / name
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: flip(f / "model.weights.h5"), "model.weights.h5 is not the file that was saved"),
        (lambda f: (f / "model.weights.h5").unlink(), "lacks its file model.weights.h5"),
        (lambda f: (f / "config.json").unlink(), "with a config.json in it"),
        (lambda f: (f / "metadata.json").unlink(), "records no SHA-256"),
        (lambda f: (f / "config.json").write_text("{"), "is not valid JSON"),
        (lambda f: edit(f, "config.json", lambda c: c.update(surprise=1)), "exactly the keys"),
        (lambda f: edit(f, "config.json", lambda c: c["config"].update(mean=[0, 0, 0])), "config.json is not the file"),
        (lambda f: (f / "metadata.json").write_text("["), "metadata.json is not a JSON object"),
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


def test_preset_without_objective_says_so(tmp_path):
    keras_issl.save_preset(small_encoder(), tmp_path / "bare")
    with pytest.raises(ValueError, match="without its objective"):
        zoo.load_objective(tmp_path / "bare")


def test_hash_is_sha256(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert preset_format.sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
