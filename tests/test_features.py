"""extract_features and Features: values, shapes, provenance, files."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_issl
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


def test_low_precision_encoder_gives_float32(data, tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    features = extract_features(encoder(), data)
    assert features.array.dtype == np.float32
    assert features.provenance["dtype_policy"] == "mixed_bfloat16"
    keras.config.set_dtype_policy("bfloat16")  # the weights as well
    model = encoder()
    written = extract_features(model, data, out=tmp_path / "features.npz")
    np.testing.assert_array_equal(written.array, extract_features(model, data).array)


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


class Counting(keras.Sequential):
    """An encoder that counts the batches it encodes."""

    encoded = 0

    def predict_on_batch(self, x):
        self.encoded += 1
        return super().predict_on_batch(x)


def counting(**options):
    """The same weights each time; `test_values_do_not_depend_on_the_batch_size` holds the values to account."""
    initializer = keras.initializers.RandomNormal(seed=1)
    layers = [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(5, kernel_initializer=initializer)]
    return Counting(layers, name=options.pop("name", "pixels"), **options)


class Stream:
    """Batches of a dataset, the same each time, until it is told to `stop` after so many."""

    def __init__(self, data, sizes=(9,) * 8, stop=None):
        self.data, self.sizes, self.stop = data, sizes, stop

    def __iter__(self):
        ends = np.cumsum(self.sizes)
        for number, (end, size) in enumerate(zip(ends, self.sizes, strict=True)):
            if number == self.stop:
                raise InterruptedError("the power is gone")
            part = slice(end - size, end)
            yield self.data.images[part], self.data.labels[part]


def names(folder):
    return sorted(path.name for path in folder.rglob("*"))


def killed(path, data, stop, **options):
    """Extracts until the data stops; returns the folder that is left."""
    with pytest.raises(InterruptedError):
        extract_features(counting(), Stream(data, stop=stop), out=path, **options)
    return path.with_name(f".{path.name}.part")


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_files_hold_what_memory_holds(tmp_path, data, suffix):
    images, labels = data.images, data.labels
    kinds = {
        "dataset": data,
        "array": images,
        "one channel": images[..., 0],
        "pair": (images, labels),
        "batches": data.batches(32, shuffle=False),
        "list": [images[:50], images[50:]],
        "some labels": [(images[:50], labels[:50]), images[50:]],
    }
    for kind, value in kinds.items():
        path = tmp_path / f"features.{suffix}"
        expected = extract_features(counting(), value, batch_size=32, provenance={"probe": "linear"})
        found = extract_features(counting(), value, batch_size=32, provenance={"probe": "linear"}, out=path)
        for features in (found, Features.load(path), Features.load(path, mmap=True)):
            np.testing.assert_array_equal(features.array, expected.array, err_msg=kind)
            np.testing.assert_array_equal(features.labels, expected.labels, err_msg=kind)
            assert features.array.dtype == np.float32 and features.provenance == expected.provenance
        assert names(tmp_path) == [path.name]
        path.unlink()
    some = np.where(np.arange(70) % 2, labels, -1)
    np.testing.assert_array_equal(extract_features(counting(), images, labels=some, out=path).labels, some)


def test_archives_are_mapped_and_plain(tmp_path, data):
    path = tmp_path / "features.npz"
    features = extract_features(counting(), data, out=path)
    assert not features.array.flags.writeable and features.array.flags.aligned
    assert features.array.ctypes.data % 64 == 0
    with np.load(path) as members:  # NumPy checks the sum over each member
        assert set(members.files) == {"array", "labels", "provenance"} and members.zip.testzip() is None
        np.testing.assert_array_equal(members["array"], features.array)
    features.save(tmp_path / "saved.npz")
    assert (tmp_path / "saved.npz").read_bytes() == path.read_bytes()
    other = tmp_path / "numpy.npz"  # another writer's layout
    np.savez(other, array=features.array, provenance=np.array("{}"))
    np.testing.assert_array_equal(Features.load(other, mmap=True).array, features.array)


def test_what_cannot_be_mapped(tmp_path):
    path = tmp_path / "features.npz"
    parts = {"array": np.ones((3, 4), np.float32), "provenance": np.array("{}")}
    for write, value in [
        (np.savez_compressed, parts["array"]),
        (np.savez, parts["array"].astype(np.float64)),
        (np.savez, np.asfortranarray(parts["array"])),
    ]:
        write(path, **(parts | {"array": value}))
        assert Features.load(path).array.shape == (3, 4)
        with pytest.raises(ValueError, match="cannot be mapped: use mmap=False"):
            Features.load(path, mmap=True)
    Features(parts["array"]).save(path)
    content = bytearray(path.read_bytes())
    shape = content.index(b"(3, 4)")
    content[shape : shape + 6] = b"(9, 9)"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="`path` should be a file written by"):
        Features.load(path, mmap=True)


def test_maps_are_neither_copied_nor_changed(tmp_path, rng):
    values = rng.normal(size=(1100, 4096)).astype(np.float32)  # more than one block of 8 MiB
    values.tofile(tmp_path / "raw")
    for mode in ("r", "r+", "c"):
        mapped = np.memmap(tmp_path / "raw", np.float32, mode, shape=values.shape)
        if mode == "c":
            mapped[5] = 7  # on this map only: lost if its pages were given back
        features = Features(mapped)
        assert np.shares_memory(features.array, mapped)
        np.testing.assert_array_equal(features.array[[0, -1]], values[[0, -1]])
    assert (features.array[5] == 7).all()
    mapped[1099, 3] = np.nan
    with pytest.raises(ValueError, match="in 1 of 1100 rows, first in row 1099"):
        Features(mapped)


def test_parquet_is_what_others_read(tmp_path, data):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow comes with keras_issl[data]")
    path = tmp_path / "features.parquet"
    labels = np.where(np.arange(70) % 2, data.labels, -1)
    features = extract_features(counting(), data, labels=labels, out=path)
    table = pyarrow.parquet.read_table(path)
    assert table.schema.field("features").type == pyarrow.list_(pyarrow.float32(), 5)
    assert table.schema.field("label").type == pyarrow.int64() and table["label"].null_count == 35
    assert json.loads(table.schema.metadata[b"keras_issl"]) == features.provenance
    np.testing.assert_array_equal(np.stack(table["features"].to_numpy(zero_copy_only=False)), features.array)
    wide = Features(np.arange(1100 * 4096, dtype=np.float32).reshape(1100, 4096))
    wide.save(path)
    assert pyarrow.parquet.ParquetFile(path).num_row_groups == 3
    loaded = Features.load(path, mmap=True)
    np.testing.assert_array_equal(loaded.array, wide.array)
    assert loaded.labels is None and names(tmp_path) == [path.name]

    pyarrow.parquet.write_table(pyarrow.table({"features": [[1.0, 2.0]]}), path)
    with pytest.raises(ValueError, match="fixed-size lists"):
        Features.load(path)
    pyarrow.parquet.write_table(table.replace_schema_metadata(), path)
    with pytest.raises(ValueError, match="`path` should be a file written by"):
        Features.load(path)
    column = pyarrow.array([[1.0, 2.0], None], pyarrow.list_(pyarrow.float32(), 2))
    schema = pyarrow.schema({"features": column.type}, metadata={"keras_issl": "{}"})
    pyarrow.parquet.write_table(pyarrow.table([column], schema=schema), path)
    with pytest.raises(ValueError, match="`path` should be a file written by"):
        Features.load(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="`path` should be a file written by"):
        Features.load(path)


def test_parquet_without_pyarrow(tmp_path, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    model = counting()
    with pytest.raises(ImportError, match=r"keras_issl\[data\]"):
        extract_features(model, data, out=tmp_path / "features.parquet")
    assert model.encoded == 0 and names(tmp_path) == []


def test_bad_out_costs_nothing(tmp_path, data):
    model = counting()
    (tmp_path / "there.npz").write_bytes(b"precious")
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / ".file.npz.part").write_bytes(b"precious")
    (tmp_path / ".other.npz.part").mkdir()
    (tmp_path / ".other.npz.part" / "thesis.txt").write_bytes(b"precious")
    before = names(tmp_path)
    for name, error, message in [
        ("there.npz", ValueError, "`out` should not exist yet"),
        ("folder.npz", ValueError, "`out` should not exist yet"),
        ("features.npy", ValueError, r"`out` should end in .npz or .parquet"),
        ("none/features.npz", FileNotFoundError, "`out` should be in a folder that exists"),
        ("there.npz/features.npz", FileNotFoundError, "`out` should be in a folder that exists"),
        ("file.npz", ValueError, "is a file where a folder"),
        ("other.npz", ValueError, "thesis.txt"),
    ]:
        with pytest.raises(error, match=message):
            extract_features(model, data, out=tmp_path / name)
    with pytest.raises(ValueError, match="`provenance` should hold what JSON can hold"):
        extract_features(model, data, provenance={"no": object()}, out=tmp_path / "x.npz")
    with pytest.raises(ValueError, match="not built yet"):
        extract_features(keras.Sequential([keras.layers.Flatten()]), data, out=tmp_path / "x.npz")
    with pytest.raises(ValueError, match="`labels` should be 70 integers"):
        extract_features(model, data, labels=[1, 2], out=tmp_path / "x.npz")
    assert model.encoded == 0
    with pytest.raises(ValueError, match="at least one"):
        extract_features(model, [], out=tmp_path / "x.npz")
    assert set(names(tmp_path)) - {"lock"} == set(before)


def test_a_disk_that_is_too_small(tmp_path):
    """Room for 20 PB is asked for after one batch, and nothing is left behind."""
    images = np.broadcast_to(np.zeros((1, 8, 8, 3), np.uint8), (10**15, 8, 8, 3))
    model = counting()
    with pytest.raises(OSError, match=r"`out` needs 36,000,000.00 GB more for 1,000,000,000,000,000 x 5 features"):
        extract_features(model, images, out=tmp_path / "features.npz")
    assert model.encoded == 1 and names(tmp_path) == []


def test_bad_features_name_their_row(tmp_path, data):
    """Rows before the bad batch are kept; a batch that changes its width is refused."""
    images = np.zeros((70, 8, 8, 3), np.float32)
    images[40] = 255
    model = counting()
    model.layers[-1].kernel.assign(np.full((192, 5), 3e37))
    for out in (None, tmp_path / "features.npz"):
        with pytest.raises(ValueError, match="NaN or infinity in 1 of 16 rows, first in row 40"):
            extract_features(model, images, batch_size=16, out=out)
    assert json.loads((tmp_path / ".features.npz.part" / "state.json").read_text())["rows"] == 32
    flat = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Flatten()])
    for out in (None, tmp_path / "flat.npz"):
        with pytest.raises(ValueError, match="of one width. Received: 192, then 147"):
            extract_features(flat, [np.zeros((2, 8, 8, 3)), np.zeros((2, 7, 7, 3))], out=out)


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_a_stopped_stream_goes_on(tmp_path, data, suffix):
    """Batches that are recorded are drawn, compared and not encoded again, also behind a torn end."""
    data = data.subset(np.arange(72) % 70)
    whole, path = tmp_path / f"whole.{suffix}", tmp_path / f"features.{suffix}"
    extract_features(counting(), Stream(data), out=whole)
    folder = killed(path, data, 5)
    assert names(tmp_path) == sorted([folder.name, "labels", "lock", "rows", "state.json", whole.name])
    for name in ("rows", "labels"):  # a batch that was being written
        with open(folder / name, "ab") as file:
            file.write(b"torn" * 5 + b"!")
    model = counting()
    found = extract_features(model, Stream(data), out=path)
    assert model.encoded == 3
    assert path.read_bytes() == whole.read_bytes()
    np.testing.assert_array_equal(found.labels, data.labels)
    assert names(tmp_path) == sorted([path.name, whole.name])


def test_a_stream_must_repeat_itself(tmp_path, data):
    data = data.subset(np.arange(72) % 70)
    path = tmp_path / "features.npz"
    folder = killed(path, data, 5)
    before = {name: (folder / name).read_bytes() for name in ("rows", "labels", "state.json")}
    shuffled = data.subset(np.r_[1, 0, 2:72])
    relabelled = datasets.ImageDataset(data.images, (data.labels + 1) % 10)
    model = counting()
    for stream in (
        Stream(shuffled),
        Stream(relabelled),
        Stream(data, sizes=(8,) * 9),
        Stream(data, sizes=(10, 8, *(9,) * 6)),
        Stream(data, sizes=(9, 9)),
        [data.images[:45], data.images[45:]],
    ):
        with pytest.raises(ValueError, match="`data` should repeat the batches behind the 45 rows|dataset: 'Stream'"):
            extract_features(model, stream, out=path)
    assert model.encoded == 0
    assert before == {name: (folder / name).read_bytes() for name in before}
    assert len(extract_features(model, Stream(data), out=path)) == 72


def test_rows_of_another_run_are_refused(tmp_path, data):
    path = tmp_path / "features.npz"
    bad = data.images.astype(np.float32)
    huge = counting()
    huge.layers[-1].kernel.assign(np.full((192, 5), 3e37))
    bad[:40] = 0
    with pytest.raises(ValueError, match="NaN or infinity"):  # after 32 rows
        extract_features(huge, bad, batch_size=16, out=path)
    same = {"encoder": huge, "data": bad, "batch_size": 16}
    other = bad.copy()
    other[69, 0, 0, 0] += 1
    half = counting(name="other")
    half.set_weights(huge.get_weights())
    for change, message in [
        ({"encoder": counting()}, "encoder's digest: '[0-9a-f]{64}' there, '[0-9a-f]{64}' now"),
        ({"encoder": half}, "encoder: 'pixels' there, 'other' now"),
        ({"data": other}, "fingerprint: "),
        ({"data": bad[:, :7]}, r"image_shape: \[8, 8, 3\] there, \[7, 8, 3\] now"),
        ({"batch_size": 32}, "batch_size: 16 there, 32 now"),
        ({"provenance": {"preset": "x"}}, "provenance: {} there, {'preset': 'x'} now"),
        ({"labels": np.zeros(70)}, "labels: .*given"),
    ]:
        with pytest.raises(ValueError, match=f"(?s)32 rows in .* are of another run.*{message}.*delete that folder"):
            extract_features(out=path, **(same | change))
    with pytest.raises(ValueError, match="first in row 40"):  # the same run is let in
        extract_features(out=path, **same)


@pytest.mark.parametrize("other", [{"dtype": "mixed_bfloat16"}, {"mean": (0.1, 0.2, 0.3)}])
def test_rows_of_an_encoder_that_computes_otherwise_are_refused(tmp_path, data, other):
    """The same weights do not make the same encoder."""
    arguments = {"blocks": (1,), "width": 8, "image_size": 8, "stem": "cifar", "name": "same"}
    first, second = (keras_issl.encoders.ResNet(**arguments, **more) for more in ({}, other))
    second.set_weights(first.get_weights())
    images = data.images.astype("float32")
    images[40:] = np.nan
    path = tmp_path / "features.npz"
    with pytest.raises(ValueError, match="NaN or infinity"):
        extract_features(first, [images[:16], images[16:32], images[32:48]], out=path)
    with pytest.raises(ValueError, match="are of another run"):
        extract_features(second, [images[:16], images[16:32], images[32:48]], out=path)
    if "dtype" in other:
        assert extract_features(second, data).provenance["dtype_policy"] == "mixed_bfloat16"


def test_damaged_rows_are_refused(tmp_path, data):
    data = data.subset(np.arange(72) % 70)
    path = tmp_path / "features.npz"
    folder = killed(path, data, 5)
    for name, content in [
        ("state.json", lambda old: old[:-9]),
        ("state.json", lambda old: old.replace(b'"rows": 45', b'"rows": 46')),
        ("state.json", lambda old: old.replace(b'"rows": 45', b'"rows": -4')),
        ("state.json", lambda old: old.replace(b'"rows": 45', b'"rows": 4.5')),
        ("state.json", lambda old: old.replace(b'"format": 1', b'"format": 2')),
        ("rows", lambda old: old[:-1]),
        ("labels", lambda old: old[:-1]),
    ]:
        old = (folder / name).read_bytes()
        assert content(old) != old
        (folder / name).write_bytes(content(old))
        with pytest.raises(ValueError, match="damaged and cannot be continued.*Delete that folder"):
            extract_features(counting(), Stream(data), out=path)
        (folder / name).write_bytes(old)
    (folder / "state.json").unlink()  # killed before anything was recorded
    model = counting()
    extract_features(model, Stream(data), out=path)
    assert model.encoded == 8


def test_one_process_at_a_time(tmp_path, data):
    path = tmp_path / "features.npz"

    class Second(Stream):
        def __iter__(self):
            with pytest.raises(ValueError, match="Another process is at work on"):
                extract_features(counting(), data, out=path)
            yield from super().__iter__()

    assert len(extract_features(counting(), Second(data, sizes=(35, 35)), out=path)) == 70


def test_a_file_that_appeared_meanwhile_is_left_alone(tmp_path, data):
    """And what was encoded is not lost: the same call completes it without encoding anything."""
    path = tmp_path / "features.npz"

    class Rival(Stream):
        def __iter__(self):
            yield from super().__iter__()
            if not path.exists() and not rivals:
                rivals.append(path.write_bytes(b"precious"))

    rivals, stream = [], Rival(data, sizes=(35, 35))
    with pytest.raises(ValueError, match="`out` should not exist yet"):
        extract_features(counting(), stream, out=path)
    assert path.read_bytes() == b"precious"
    path.unlink()
    model = counting()
    found = extract_features(model, stream, out=path)
    assert model.encoded == 0 and names(tmp_path) == [path.name]
    np.testing.assert_array_equal(found.array, extract_features(model, data, batch_size=35).array)


PREAMBLE = """
import os, signal, time
import keras
import numpy as np
from keras_issl.features import Features, extract_features, partial

def projection(dim, model=keras.Sequential):
    kernel = keras.initializers.RandomNormal(seed=1)
    layers = [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(dim, kernel_initializer=kernel)]
    return model(layers, name="projection")
"""


def script(code, folder):
    command = [sys.executable, "-W", "ignore", "-c", PREAMBLE + code]
    environment = os.environ | {"KERAS_BACKEND": keras.backend.backend()}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="SIGKILL and fork are POSIX")
@pytest.mark.backend_independent
def test_killed_runs_go_on(tmp_path):
    """A process is killed again and again while it encodes and writes, and the file is the same to the byte."""
    code = """
class Logging(keras.Sequential):
    def predict_on_batch(self, x):
        os.write(log, b".")
        time.sleep(0.01)
        return super().predict_on_batch(x)

partial.PartialFeatures.SECONDS = 0.05
images = np.random.default_rng(0).integers(0, 256, (1280, 8, 8, 3)).astype("uint8")
rng, counts = np.random.default_rng(), []
for out, kills in [("whole.npz", 0), ("killed.npz", 3)]:
    while not os.path.exists(out):
        log = os.open("log", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        child = os.fork()  # before Keras has computed anything
        if child == 0:
            extract_features(projection(500, Logging), (images, np.arange(1280)), batch_size=16, out=out)
            os._exit(0)
        if kills:
            while os.fstat(log).st_size < 4:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.15))
            os.kill(child, signal.SIGKILL)
            kills -= 1
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL), status
        counts.append(os.fstat(log).st_size)
print(counts)
"""
    counts = script(code, tmp_path)
    assert counts[0] == 80 and len(counts) >= 3  # whole; killed at least once; finished
    assert counts[-1] <= 80 - len(counts[1:-1]), "recorded batches were encoded again"
    assert sum(counts[1:]) < 80 * 2
    assert (tmp_path / "killed.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert names(tmp_path) == ["killed.npz", "log", "whole.npz"]


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from Linux's /proc")
@pytest.mark.backend_independent
def test_memory_is_bounded(tmp_path):
    """192 MiB of features never take half of that, in either format; kept in memory they take all of it and more."""
    code = """
def peak():
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024  # MiB, since the process began or reset() was called

def reset():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")

def stream(count):
    for seed in range(count):
        yield np.random.default_rng(seed).integers(0, 256, (128, 8, 8, 3)).astype("uint8")

encoder, grown = projection(16384), []
for out in ("npz", "parquet"):  # 8 MiB a batch
    extract_features(encoder, stream(2), out=f"warm.{out}")
for out in ("all.npz", "all.parquet", None):
    reset()
    before = peak()
    features = extract_features(encoder, stream(24), out=out)
    assert features.array.nbytes == 192 << 20
    grown.append(peak() - before)
    if out:
        del features
        os.unlink(out)
print(grown)
"""
    npz, parquet, kept = script(code, tmp_path)
    assert npz < 96 and parquet < 96 and kept > 192
