"""extract_features and Features: values, shapes, provenance, files."""

import json

import keras
import numpy as np
import pytest

from keras_issl import datasets, probes
from keras_issl.features import Features, extract_features


@pytest.fixture
def data():
    return datasets.load("digits", split="test", limit=70)


def encoder(shape=(8, 8, 3)):
    """A fixed linear map of the pixels, so that features can be checked by hand."""
    model = keras.Sequential([keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(5)], name="pixels")
    return model


def expected(model, images):
    kernel, bias = (keras.ops.convert_to_numpy(weight) for weight in model.weights)
    return images.reshape(len(images), -1).astype(np.float64) @ kernel + bias


@pytest.mark.parametrize("batch_size", [7, 32, 256])
def test_values_do_not_depend_on_the_batch_size(data, batch_size):
    model = encoder()
    features = extract_features(model, data, batch_size=batch_size)
    assert features.array.dtype == np.float32 and features.array.shape == (70, 5)
    np.testing.assert_allclose(features.array, expected(model, data.images), rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(features.labels, data.labels)


def test_every_kind_of_data_gives_the_same(data):
    model = encoder()
    reference = extract_features(model, data).array
    images, labels = data.images, data.labels
    gray = images[..., :1]
    kinds = {
        "array": images,
        "float": images.astype("float32"),
        "one channel": gray,
        "no channel axis": gray[..., 0],
        "pair": (images, labels),
        "tensor": keras.ops.convert_to_tensor(images),
        "batches": data.batches(32, shuffle=False),
        "images only": data.batches(32, shuffle=False, labels=False),
        "list": [images[:50], images[50:]],
        "generator": ((images[i : i + 9], labels[i : i + 9]) for i in range(0, 70, 9)),
    }
    for kind, value in kinds.items():
        found = extract_features(model, value)
        np.testing.assert_allclose(found.array, reference, rtol=1e-5, atol=1e-4, err_msg=kind)
        if kind in ("pair", "batches", "generator"):
            np.testing.assert_array_equal(found.labels, labels)
        else:
            assert found.labels is None


def test_labels_argument_and_missing_labels(data):
    model = encoder()
    np.testing.assert_array_equal(extract_features(model, data.images, labels=data.labels).labels, data.labels)
    unlabelled = datasets.ImageDataset(data.images)
    assert extract_features(model, unlabelled).labels is None
    some = np.where(np.arange(70) % 2, data.labels, -1)
    np.testing.assert_array_equal(extract_features(model, data, labels=some).labels, some)
    with pytest.raises(ValueError, match="`labels` should be 70 integers"):
        extract_features(model, data, labels=data.labels[:5])


def test_one_channel_encoder(data):
    model = encoder((8, 8, 1))
    gray = data.images[..., :1]
    np.testing.assert_allclose(extract_features(model, gray).array, expected(model, gray), rtol=1e-4, atol=1e-3)


def test_low_precision_encoder_gives_float32(data):
    keras.config.set_dtype_policy("mixed_bfloat16")
    features = extract_features(encoder(), data)
    assert features.array.dtype == np.float32
    assert features.provenance["dtype_policy"] == "mixed_bfloat16"


def test_provenance(data):
    features = extract_features(encoder(), data, provenance={"probe": "linear", "preset": "mine"})
    assert features.provenance == {
        "encoder": "pixels",
        "dataset": "digits/test",
        "fingerprint": data.fingerprint,
        "image_shape": [8, 8, 3],
        "keras": keras.__version__,
        "backend": keras.backend.backend(),
        "dtype_policy": "float32",
        "probe": "linear",
        "preset": "mine",
    }
    json.dumps(features.provenance)


def test_inference_mode(data):
    """Dropout is off, and batch statistics neither used nor moved."""
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.BatchNormalization(), keras.layers.Dropout(0.9)]
    )
    before = [keras.ops.convert_to_numpy(weight) for weight in model.weights]
    features = extract_features(model, data)
    np.testing.assert_allclose(features.array, data.images.reshape(70, -1) / np.sqrt(1 + 1e-3), rtol=1e-4)
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, keras.ops.convert_to_numpy(new))


def test_bad_data():
    model = encoder()
    with pytest.raises(ValueError, match=r"`images` should have shape \(N, H, W, 3\).*images\[None\]"):
        extract_features(model, np.zeros((8, 8, 3)))
    with pytest.raises(ValueError, match="`images` should have shape"):
        extract_features(model, np.zeros((8, 8)))
    with pytest.raises(ValueError, match="1 or 3 channels"):
        extract_features(model, np.zeros((2, 8, 8, 4)))
    with pytest.raises(ValueError, match="at least one"):
        extract_features(model, np.zeros((0, 8, 8, 3)))
    with pytest.raises(ValueError, match="at least one"):
        extract_features(model, [])
    with pytest.raises(ValueError, match="in 1 of 2 images"):
        extract_features(model, np.stack([np.zeros((8, 8, 3)), np.full((8, 8, 3), np.nan)]))
    with pytest.raises(ValueError, match="`data` should be an ImageDataset"):
        extract_features(model, 3)
    with pytest.raises(ValueError, match="`batch_size`"):
        extract_features(model, np.zeros((2, 8, 8, 3)), batch_size=0)
    with pytest.raises(ValueError, match="`encoder` should be a keras.Model"):
        extract_features(keras.layers.Flatten(), np.zeros((2, 8, 8, 3)))


def test_bad_encoders(data):
    unpooled = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3)])
    with pytest.raises(ValueError, match=r"`encoder` should return features \(B, D\).*Pool"):
        extract_features(unpooled, data)
    broken = encoder()
    broken.layers[-1].bias.assign(np.full(5, np.nan))
    with pytest.raises(ValueError, match="in 70 of 70 rows"):
        extract_features(broken, data)


def test_save_and_load(tmp_path, rng):
    path = tmp_path / "features.npz"
    for labels in (None, np.array([0, -1, 2])):
        features = Features(rng.normal(size=(3, 4)), labels, {"encoder": "é", "n": 3})
        features.save(path)
        loaded = Features.load(path)
        np.testing.assert_array_equal(loaded.array, features.array)
        np.testing.assert_array_equal(loaded.labels, features.labels)
        assert loaded.provenance == features.provenance
    assert [file.name for file in tmp_path.iterdir()] == ["features.npz"]


def test_a_failed_save_leaves_the_old_file(tmp_path, rng):
    path = tmp_path / "features.npz"
    Features(np.zeros((3, 4))).save(path)
    with pytest.raises(TypeError):
        Features(rng.normal(size=(3, 4)), None, {"no": object()}).save(path)
    assert not Features.load(path).array.any()
    assert [file.name for file in tmp_path.iterdir()] == ["features.npz"]


def test_damaged_files(tmp_path):
    path = tmp_path / "features.npz"
    Features(np.zeros((30, 40))).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="`path` should be a file written by"):
        Features.load(path)
    np.savez(path, array=np.array([{}], dtype=object), provenance=np.array("{}"))
    with pytest.raises(ValueError, match="allow_pickle"):
        Features.load(path)
    with pytest.raises(FileNotFoundError):
        Features.load(tmp_path / "none.npz")


def test_features_object(rng):
    features = Features(rng.normal(size=(6, 4)), [0, 1, 2, 0, 1, 2], {"a": 1})
    assert len(features) == 6 and features.labels.dtype == np.int64
    part = features.subset([5, 0])
    np.testing.assert_array_equal(part.array, features.array[[5, 0]])
    assert part.labels.tolist() == [2, 0] and part.provenance == {"a": 1}
    assert len(features.subset(features.labels == 1)) == 2
    with pytest.raises(ValueError, match=r"\(N, D\)"):
        Features(np.zeros(3))
    with pytest.raises(ValueError, match="in 1 of 2 rows"):
        Features([[0.0], [np.inf]])
    with pytest.raises(ValueError, match="`labels`"):
        Features(np.zeros((3, 1)), [1, 2])


def test_random_features_are_probed(data):
    """From pixels to a score in three lines, as a user would."""
    train = datasets.load("digits", split="train")
    flat = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    probe = probes.LinearProbe(strengths=[10.0]).fit(extract_features(flat, train))
    assert probe.score(extract_features(flat, data)) > 0.9
