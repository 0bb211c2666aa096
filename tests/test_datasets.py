"""Loading real files, batches that resume, and incomplete batches, on the backend at hand."""

import io
import json
import sys
import warnings

import keras
import numpy as np
import pytest
from PIL import Image

from keras_issl.datasets import Batches, ImageDataset, as_images, decode_image, drop_incomplete, load


def picture(height=12, width=12, seed=0):
    """A smooth uint8 RGB picture, which survives JPEG."""
    corners = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8))
    return np.asarray(corners.resize((width, height), Image.Resampling.BICUBIC))


def encoded(array, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Two classes, nested folders, upper-case suffixes, files that are no images, and one image outside of classes."""
    root = tmp_path / "pets"
    for i, name in enumerate(["cat/a.png", "cat/deep/b.PNG", "dog/c.jpg", "dog/d.jpeg", "loose.png"]):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(seed=i)).save(path)
    (root / "notes.txt").write_text("not an image")
    (root / "cat" / ".hidden.png").write_bytes(b"not an image")
    return root


# One image -----------------------------------------------------------------------------------------------------------


def test_plain_formats(tmp_path):
    array = picture()
    for kind, options in {"PNG": {}, "BMP": {}, "TIFF": {}, "WEBP": {"lossless": True}, "PPM": {}}.items():
        np.testing.assert_array_equal(decode_image(encoded(array, kind, **options)), array, err_msg=kind)
    assert np.abs(decode_image(encoded(array, "JPEG", quality=95, subsampling=0)).astype(int) - array).mean() < 4
    path = tmp_path / "a.png"
    path.write_bytes(encoded(array))
    for source in (path, str(path), array, Image.fromarray(array), {"bytes": encoded(array), "path": None}):
        np.testing.assert_array_equal(decode_image(source), array)


def test_grayscale_palette_and_bilevel():
    gray = picture()[..., 0]
    for image in (Image.fromarray(gray), Image.fromarray(gray).convert("P")):
        file = io.BytesIO()
        image.save(file, "PNG")
        np.testing.assert_array_equal(decode_image(file.getvalue()), np.repeat(gray[..., None], 3, -1))
    np.testing.assert_array_equal(decode_image(gray[..., None]), np.repeat(gray[..., None], 3, -1))
    file = io.BytesIO()
    Image.fromarray(gray > 128).save(file, "PNG")
    np.testing.assert_array_equal(decode_image(file.getvalue())[..., 0], np.where(gray > 128, 255, 0))


def test_transparency_is_laid_over_white():
    array, alpha = picture(), np.zeros((12, 12, 1), np.uint8)
    alpha[:4], alpha[4:8] = 255, 128
    rgb = decode_image(encoded(np.concatenate([array, alpha], -1)))
    np.testing.assert_array_equal(rgb[:4], array[:4])
    np.testing.assert_allclose(rgb[4:8], array[4:8] * (128 / 255) + 255 * (127 / 255), atol=1)
    np.testing.assert_array_equal(rgb[8:], 255)
    palette = Image.fromarray(array[..., 0]).convert("P")
    file = io.BytesIO()
    palette.save(file, "PNG", transparency=bytes([0] * 256))  # a palette all of whose colours are transparent
    np.testing.assert_array_equal(decode_image(file.getvalue()), 255)


def test_cmyk():
    file = io.BytesIO()
    Image.fromarray(picture()).convert("CMYK").save(file, "JPEG", quality=95, subsampling=0)
    assert np.abs(decode_image(file.getvalue()).astype(int) - picture()).mean() < 4


def test_sixteen_bits_are_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    expected = np.round(ramp / 257).astype(np.uint8)
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(decode_image(encoded(ramp, kind))[..., 1], expected)
    with pytest.raises(ValueError, match="8 or 16 bits"):
        decode_image(encoded(ramp.astype(np.float32), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    array = picture(8, 12)
    stored = {  # how a picture must be stored to be shown as `array` under each orientation
        1: array, 2: array[:, ::-1], 3: array[::-1, ::-1], 4: array[::-1], 5: array.transpose(1, 0, 2),
        6: np.rot90(array), 7: array[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(array, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decode_image(encoded(np.ascontiguousarray(stored), exif=exif)), array)


@pytest.mark.parametrize("height, width", [(20, 31), (31, 20), (20, 20), (10, 15)])
def test_resize_and_crop_as_pillow(height, width):
    array = picture(height, width)
    short = min(height, width)
    resized = Image.fromarray(array).resize((14 * width // short, 14 * height // short), Image.Resampling.BILINEAR)
    left, top = round((resized.width - 14) / 2), round((resized.height - 14) / 2)
    expected = np.asarray(resized)[top : top + 14, left : left + 14]
    np.testing.assert_array_equal(decode_image(array, 14), expected)
    assert decode_image(array, 14).shape == (14, 14, 3)


@pytest.mark.parametrize("height, width", [(20, 31), (31, 20), (41, 24), (17, 17), (14, 14), (19, 25), (7, 12), (1, 9)])
@pytest.mark.parametrize("resize", [14, 17, 19])
def test_resize_before_a_smaller_centre_as_pillow(height, width, resize):
    image = Image.fromarray(picture(height, width))
    long = int(resize * max(height, width) / min(height, width))  # torchvision's
    whole = image.resize((resize, long) if width < height else (long, resize), Image.Resampling.BILINEAR)
    left, top = round((whole.width - 14) / 2), round((whole.height - 14) / 2)
    expected = np.asarray(whole.crop((left, top, left + 14, top + 14)))
    np.testing.assert_array_equal(decode_image(image, 14, resize), expected)
    if resize == 14:
        np.testing.assert_array_equal(decode_image(image, 14), expected)


@pytest.mark.parametrize("sizes", [(14, 13), (None, 14), (14, 0), (14, 20.0), (0, None), (None, -1)])
def test_bad_sizes_of_one_image(sizes):
    with pytest.raises(ValueError, match="`resize` should be|`image_size` should be"):
        decode_image(picture(), *sizes)


def test_resize_follows_exif_orientation():
    array = picture(30, 44)
    exif = Image.Exif()
    exif[0x0112] = 8
    turned = encoded(np.ascontiguousarray(np.rot90(array, -1)), exif=exif)
    np.testing.assert_array_equal(decode_image(turned, 14, 20), decode_image(array, 14, 20))


def test_draft_mode_follows_resize():
    """A JPEG is shrunk while it is decoded, but to no less than twice what it is resized to."""
    array = picture(400, 600)
    stored = encoded(array, "JPEG", quality=95, subsampling=0)
    whole = decode_image(stored)  # decoded in full
    np.testing.assert_array_equal(decode_image(stored, 32, 101), decode_image(whole, 32, 101))  # 2 * 101 > 400 / 2
    assert np.abs(decode_image(stored, 32, 50).astype(int) - decode_image(array, 32, 50)).mean() < 1.5


def test_draft_mode_changes_little():
    array = picture(400, 600)
    full = decode_image(array, 32).astype(int)
    assert np.abs(decode_image(encoded(array, "JPEG", quality=95, subsampling=0), 32).astype(int) - full).mean() < 1.5


# Sources -------------------------------------------------------------------------------------------------------------


def test_digits():
    digits, train, test = load("digits"), load("digits", split="train"), load("digits", split="test", image_size=16)
    assert (len(digits), len(train), len(test)) == (1797, 1297, 500)
    assert train.image_shape == (8, 8, 3) and test.image_shape == (16, 16, 3)
    assert digits.images.dtype == np.uint8 and digits.images.max() == 255 and digits.images.min() == 0
    np.testing.assert_array_equal(digits.images[..., 0], digits.images[..., 2])
    share = np.bincount(digits.labels) * (500 / 1797)
    assert np.abs(np.bincount(test.labels) - share).max() < 1
    both = np.concatenate([train.images, load("digits", split="test").images]).reshape(1797, -1)
    assert np.array_equal(np.unique(both, axis=0), np.unique(digits.images.reshape(1797, -1), axis=0))
    assert train.fingerprint == load("digits", split="train").fingerprint != test.fingerprint
    with pytest.raises(ValueError, match='`split` of "digits"'):
        load("digits", split="valid")


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"scikit-learn, which is not installed. Install it with pip install"):
        load("digits")


def test_folder(folder):
    data = load(folder)
    assert data.name == "pets" and data.class_names == ("cat", "dog") and data.images.shape == (5, 12, 12, 3)
    assert data.labels.tolist() == [0, 0, 1, 1, -1]
    np.testing.assert_array_equal(data.images[0], picture(seed=0))
    np.testing.assert_array_equal(data.images[1], picture(seed=1))
    np.testing.assert_array_equal(data.images[4], picture(seed=4))
    assert not load(folder, labels=False).has_labels
    assert load(folder, limit=2).labels.tolist() == [0, -1]
    np.testing.assert_array_equal(load(folder, workers=3).images, load(folder, workers=1).images)


def test_folder_splits(folder, tmp_path):
    root = tmp_path / "both"
    root.mkdir()
    folder.rename(root / "train")
    (root / "val").mkdir()
    Image.fromarray(picture()).save(root / "val" / "a.png")
    assert load(root, split="train").class_names == ("cat", "dog")
    assert len(load(root, split="validation")) == 1
    with pytest.raises(ValueError, match=r"`split` should be a sub-folder .*\['train', 'val'\].*'test'"):
        load(root, split="test")
    with pytest.raises(ValueError, match=r"`split` should be one of \['train', 'val'\]"):
        load(root)


def test_flat_folder_has_no_labels(tmp_path):
    for i in range(3):
        Image.fromarray(picture(seed=i)).save(tmp_path / f"{i}.png")
    data = load(str(tmp_path))
    assert data.labels.tolist() == [-1] * 3 and data.class_names is None and not data.has_labels


def write_parquet(path, seeds, labels, names=("cat", "dog"), column="image", row_group_size=4):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    images = [None if seed is None else {"bytes": encoded(picture(seed=seed)), "path": f"{seed}.png"} for seed in seeds]
    table = pa.table({column: images, "label": labels})
    features = {column: {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(names)}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=row_group_size)
    return path


@pytest.fixture
def parquet(tmp_path):
    root = tmp_path / "birds"
    write_parquet(root / "train-00000-of-00002.parquet", range(9), [0, 1, 0] * 3)
    write_parquet(root / "train-00001-of-00002.parquet", range(9, 14), [1, 1, 1, 0, None])
    write_parquet(root / "valid.parquet", [20, 21], [0, 1])
    return root


def test_parquet(parquet):
    data = load(parquet, split="train")
    assert data.name == "birds/train" and data.class_names == ("cat", "dog")
    assert data.labels.tolist() == [0, 1, 0] * 3 + [1, 1, 1, 0, -1]
    np.testing.assert_array_equal(data.images, np.stack([picture(seed=i) for i in range(14)]))
    assert load(parquet, split="validation").labels.tolist() == [0, 1]
    assert len(load(parquet / "valid.parquet")) == 2
    assert len(load(str(parquet / "train-*.parquet"))) == 14
    assert len(load([parquet / "valid.parquet", parquet / "train-00001-of-00002.parquet"])) == 7
    with pytest.raises(ValueError, match=r"`split` should be one of \['train', 'valid'\]"):
        load(parquet)
    with pytest.raises(ValueError, match="`split` should be what a file's name starts with"):
        load(parquet, split="test")


def test_parquet_columns(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [1, 2], [1, 0], column="photo")
    with pytest.raises(ValueError, match=r"`image_column` should be a column of .*\['photo', 'label'\]"):
        load(path)
    np.testing.assert_array_equal(load(path, image_column="photo").images[1], picture(seed=2))
    with pytest.raises(ValueError, match="`label_column` should be a column"):
        load(path, image_column="photo", label_column="kind")


def test_parquet_string_labels_and_plain_bytes(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [encoded(picture(seed=seed)) for seed in range(3)]
    pq.write_table(pa.table({"image": images, "label": ["owl", "jay", None]}), tmp_path / "a.parquet")
    data = load(tmp_path)
    assert data.labels.tolist() == [1, 0, -1] and data.class_names == ("jay", "owl")


def test_parquet_files_of_two_datasets(tmp_path):
    write_parquet(tmp_path / "a.parquet", [1], [0])
    write_parquet(tmp_path / "b.parquet", [1], [0], names=("car", "bus"))
    with pytest.raises(ValueError, match="different class names"):
        load(tmp_path)


def test_parquet_without_pyarrow(parquet, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(
        ImportError, match=r'pyarrow, which is not installed. Install it with pip install "keras_issl\[data'
    ):
        load(parquet, split="train")


def test_hugging_face_objects(tmp_path):
    hf = pytest.importorskip("datasets", reason="the Hugging Face `datasets` library is not installed")
    features = hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=["cat", "dog"])})
    images = [Image.fromarray(picture(seed=i)) for i in range(3)]
    dataset = hf.Dataset.from_dict({"image": images, "label": [1, 0, 1]}, features=features)
    expected = np.stack([picture(seed=i) for i in range(3)])

    def check(data):
        np.testing.assert_array_equal(data.images, expected)
        assert data.labels.tolist() == [1, 0, 1] and data.class_names == ("cat", "dog")

    check(load(dataset))
    check(load(dataset.with_format("numpy")))
    check(load(hf.DatasetDict({"train": dataset, "test": dataset}), split="test"))
    hf.DatasetDict({"validation": dataset, "test": dataset}).save_to_disk(tmp_path / "both")
    check(load(tmp_path / "both", split="valid"))
    check(load(f"hf:{tmp_path / 'both'}", split="test"))
    dataset.save_to_disk(tmp_path / "one")
    check(load(tmp_path / "one"))
    with pytest.raises(ValueError, match=r"`split` should be one of \['validation', 'test'\]"):
        load(tmp_path / "both")
    arrays = hf.Dataset.from_dict(
        {"img": list(expected), "label": [1, 0, 1]},
        features=hf.Features({"img": hf.Array3D((12, 12, 3), "uint8"), "label": features["label"]}),
    )
    check(load(arrays))


def test_arrays():
    images, labels = np.stack([picture(seed=i) for i in range(4)]), [0, 1, 1, -1]
    data = load((images, labels))
    np.testing.assert_array_equal(data.images, images)
    assert data.labels.tolist() == labels and data.class_names is None
    np.testing.assert_array_equal(load(images.astype("float32")).images, images)
    np.testing.assert_array_equal(load(images.astype("int64")).images, images)
    assert load(images[..., 0]).image_shape == (12, 12, 3)
    np.testing.assert_array_equal(load(images, image_size=6).images[2], decode_image(images[2], 6))
    assert load((images, labels)).fingerprint != load(images).fingerprint
    changed = images.copy()
    changed[3, 5, 5, 1] ^= 1
    assert load(changed).fingerprint != load(images).fingerprint
    with pytest.raises(ValueError, match=r"values in \[0, 255\].*by 255"):
        load(images / 255)
    with pytest.raises(ValueError, match=r"values in \[0, 255\]"):
        load(images - 300.0)
    with pytest.raises(ValueError, match="`labels` should be 4 integers"):
        load((images, [0, 1]))
    with pytest.raises(ValueError, match="at least one image"):
        load(images[:0])


def test_tensorflow_datasets(tmp_path):
    """A real TFDS dataset, written and read without TensorFlow in its random-access format."""
    tfds = pytest.importorskip("tensorflow_datasets", reason="tensorflow-datasets is not installed")
    pytest.importorskip("array_record", reason="array-record, TFDS's random-access format, is not installed")

    class IsslTestPets(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(12, 12, 3)),
                "label": tfds.features.ClassLabel(names=["cat", "dog"]),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples(range(5)), "validation": self._generate_examples(range(5, 7))}

        def _generate_examples(self, seeds):
            for seed in seeds:
                yield seed, {"image": io.BytesIO(encoded(picture(seed=seed))), "label": seed % 2}

    builder = IsslTestPets(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    data = load(f"tfds:issl_test_pets/data_dir={tmp_path}", split="train")
    assert len(data) == 5 and data.class_names == ("cat", "dog") and data.name == "issl_test_pets/train"
    for image, label in zip(data.images, data.labels, strict=True):
        assert any(np.array_equal(image, picture(seed=seed)) and label == seed % 2 for seed in range(5))
    assert len(load(f"tfds:issl_test_pets/data_dir={tmp_path}", split="valid")) == 2


# Bad input -----------------------------------------------------------------------------------------------------------


def test_truncated_jpeg_in_a_folder(folder):
    good = load(folder).images
    path = folder / "dog" / "c.jpg"
    path.write_bytes(path.read_bytes()[:-150])
    with pytest.raises(ValueError, match=r'c\.jpg, which fails with OSError.*on_error="skip"'):
        load(folder)
    with pytest.warns(UserWarning, match=r"Skipped 1 of 5 images.*c\.jpg"):
        data = load(folder, on_error="skip")
    np.testing.assert_array_equal(data.images, good[[0, 1, 3, 4]])
    assert data.labels.tolist() == [0, 0, 1, -1]
    assert [place for place, _ in data.skipped] == [str(path)] and "OSError" in data.skipped[0][1]
    with pytest.warns(UserWarning, match="Skipped 1"):
        lazy = load(folder, on_error="skip", memory_limit=0)
    assert not lazy.in_memory and lazy.fingerprint == data.fingerprint and len(lazy.skipped) == 1


def test_broken_rows_of_parquet(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [0, 1, 2, 3, 4, None, 6], [0] * 7)
    with pytest.raises(ValueError, match=r"a\.parquet, row 1 of row group 1"):
        load(path)
    with pytest.warns(UserWarning, match="Skipped 1 of 7"):
        assert len(load(path, on_error="skip")) == 6


def test_nothing_but_broken_images(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"not an image")
    for options in ({}, {"image_size": 8}):
        with pytest.raises(ValueError, match="UnidentifiedImageError"):
            load(tmp_path, on_error="skip", **options)


def test_resize_loads_the_same_in_memory_and_on_the_fly(folder):
    for k, size in enumerate([(20, 31), (25, 17), (14, 14)]):
        Image.fromarray(picture(*size)).save(folder / "dog" / f"other{k}.png")
    files = sorted(file for file in folder.rglob("*.*") if file.suffix != ".txt" and file.name[0] != ".")
    data = load(folder, resize=13, image_size=9)
    lazy = load(folder, resize=13, image_size=9, memory_limit=0, workers=2)
    assert data.in_memory and not lazy.in_memory and lazy.image_shape == (9, 9, 3)
    assert data.fingerprint == lazy.fingerprint != load(folder, image_size=9).fingerprint
    expected = {decode_image(file, 9, 13).tobytes() for file in files}
    assert {image.tobytes() for image in data.images} == expected and len(data) == len(files)
    np.testing.assert_array_equal(lazy.images[[5, 0, 2]], data.images[[5, 0, 2]])
    np.testing.assert_array_equal(lazy.subset([7, 1]).take(1).images[:], data.images[[7]])
    np.testing.assert_array_equal(load(folder, resize=9, image_size=9).images, load(folder, image_size=9).images)
    (folder / "dog" / "broken.png").write_bytes(b"not an image")
    with pytest.warns(UserWarning, match="Skipped 1"):
        kept = load(folder, resize=13, image_size=9, on_error="skip")
    assert kept.fingerprint == data.fingerprint


def test_sizes_that_differ(folder):
    Image.fromarray(picture(10, 20)).save(folder / "dog" / "e.png")
    with pytest.raises(ValueError, match=r"`image_size` should be given.*e\.png is 10x20.*Pass e\.g\. image_size=12"):
        load(folder)
    assert load(folder, image_size=8).images.shape == (6, 8, 8, 3)


def test_places_without_images(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="which holds none"):
        load(empty)
    (empty / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="which holds none"):
        load(empty)
    with pytest.raises(FileNotFoundError, match="should be a path that exists.*nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"should be a path that exists.*\*\.parquet"):
        load(str(tmp_path / "*.parquet"))
    with pytest.raises(ValueError, match="Parquet files or a folder"):
        load(empty / "a.txt")
    write_parquet(tmp_path / "rows" / "a.parquet", [], [])
    with pytest.raises(ValueError, match="at least one image"):
        load(tmp_path / "rows")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"image_size": 0}, "`image_size` should be a positive integer"),
        ({"image_size": 8.5}, "`image_size` should be a positive integer"),
        ({"resize": 0, "image_size": 4}, "`resize` should be a positive integer"),
        ({"resize": 256}, r"`resize` should be at least `image_size`.*given too.*resize=256, image_size=None"),
        ({"resize": 7, "image_size": 8}, r"`resize` should be at least `image_size`.*resize=7, image_size=8"),
        ({"on_error": "ignore"}, "`on_error` should be"),
        ({"workers": 0}, "`workers`"),
        ({"limit": -1}, "`limit`"),
        ({"memory_limit": -1}, "`memory_limit`"),
        ({"source": 3}, "`source` should be"),
        ({"source": None}, "`source` should be"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        load(**{"source": np.zeros((2, 4, 4), np.uint8), **arguments})


def test_as_images():
    images = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3))
    assert as_images(images) is images
    gray = as_images(images[..., 0].astype("float32"))
    assert gray.shape == (4, 6, 5, 3) and gray.dtype == np.float32
    np.testing.assert_array_equal(gray[..., 2], images[..., 0])
    np.testing.assert_array_equal(as_images(images[..., :1]), as_images(images[..., 0]))
    assert as_images(images[..., 0], channels=1).shape == (4, 6, 5, 1)
    assert as_images(np.zeros((4, 6, 5, 7)), channels=7).shape == (4, 6, 5, 7)
    np.testing.assert_array_equal(as_images(keras.ops.convert_to_tensor(images)), images)
    for wrong in (images[0], images[..., :2], images[0, 0], np.zeros((2, 3, 4, 5, 3))):
        with pytest.raises(ValueError, match="`images` should have"):
            as_images(wrong)
    with pytest.raises(ValueError, match="should hold numbers"):
        as_images(np.full((2, 3, 4, 3), "a"))
    broken = images.astype("float16")
    broken[2, 3, 3, 1] = np.inf
    with pytest.raises(ValueError, match="in 1 of 4 images, first in image 2"):
        as_images(broken)


# The dataset ---------------------------------------------------------------------------------------------------------


def test_on_the_fly_is_the_same(parquet):
    memory, lazy = load(parquet, split="train"), load(parquet, split="train", memory_limit=1000)
    assert memory.in_memory and not lazy.in_memory and "on the fly" in repr(lazy)
    assert lazy.images.shape == memory.images.shape and lazy.fingerprint == memory.fingerprint
    np.testing.assert_array_equal(lazy.images[[13, 0, 5]], memory.images[[13, 0, 5]])
    np.testing.assert_array_equal(lazy.images[3], memory.images[3])
    np.testing.assert_array_equal(lazy.images[2:4], memory.images[2:4])
    np.testing.assert_array_equal(lazy.subset([7, 1]).take(1).images[:], memory.images[[7]])
    one, other = lazy.batches(4, seed=1, shuffle=8), memory.batches(4, seed=1, shuffle=8)
    for (a, b), (c, d) in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, d)


def test_subset_take_split(folder):
    data = load("digits")
    assert data.take(5).labels.tolist() == data.labels[:5].tolist() and len(data.subset(data.labels == 3)) == 183
    first, second = data.split(0.25, seed=1)
    assert len(first) == 449 and len(second) == 1797 - 449
    assert np.abs(np.bincount(first.labels) - np.bincount(data.labels) / 4).max() < 1
    again, _ = data.split(0.25, seed=1)
    other, _ = data.split(0.25, seed=2)
    assert again.fingerprint == first.fingerprint != other.fingerprint
    for fraction in (0, 1, -0.5):
        with pytest.raises(ValueError, match="`fraction` should leave"):
            data.split(fraction)


def test_image_dataset_checks():
    with pytest.raises(ValueError, match="`images` should be uint8"):
        ImageDataset(np.zeros((2, 4, 4, 3)))
    with pytest.raises(ValueError, match="`labels` should be 2 integers"):
        ImageDataset(np.zeros((2, 4, 4, 3), np.uint8), [0.5, 1])


# Batches -------------------------------------------------------------------------------------------------------------


def numbered(size):
    """Images that carry their own number in every pixel."""
    return np.arange(size, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)


class Recorder(keras.Model):
    """Keeps the numbers of the images that each training step saw, in a weight, whatever the backend compiles."""

    def __init__(self, size, steps):
        super().__init__()
        self.seen = self.add_weight(shape=(steps, size), initializer="zeros", trainable=False)
        self.step = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False)
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, images):
        numbers = keras.ops.cast(images[:, 0, 0, 0], "int32")
        size, steps = self.seen.shape[1], self.seen.shape[0]
        hot = keras.ops.sum(keras.ops.one_hot(numbers, size), axis=0)  # (size,)
        row = keras.ops.one_hot(self.step, steps)  # (steps,)
        self.seen.assign_add(row[:, None] * hot[None])
        self.step.assign_add(1)
        return self.scale * keras.ops.cast(images[:, 0, 0, 0], "float32")

    def sets(self):
        seen = keras.ops.convert_to_numpy(self.seen)[: int(self.step)]
        return [set(np.flatnonzero(row).tolist()) for row in seen]


def fit(batches, epochs, steps=40, callback=False, **options):
    model = Recorder(len(batches.images), steps)
    model.compile(optimizer="sgd", loss="mse")
    callbacks = [batches.callback()] if callback else []
    model.fit(batches, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks, **options)
    return model.sets()


def expected_sets(batches, epochs):
    return [set(batches.batch(e, k)[0][:, 0, 0, 0].tolist()) for e in epochs for k in range(len(batches))]


@pytest.mark.parametrize("callback", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
def test_fit_sees_each_epochs_own_order(callback, drop_last):
    batches = Batches(numbered(14), np.zeros(14), batch_size=4, seed=3, drop_last=drop_last)
    seen = fit(batches, epochs=3, callback=callback)
    assert seen == expected_sets(batches, range(3))
    assert batches.epoch == 3
    for epoch in range(3):
        parts = seen[epoch * len(batches) : (epoch + 1) * len(batches)]
        assert len(set.union(*parts)) == sum(map(len, parts)) == (12 if drop_last else 14)
    assert seen[: len(batches)] != seen[len(batches) : 2 * len(batches)]


def test_fit_resumes_at_any_epoch():
    fresh = Batches(numbered(14), np.zeros(14), batch_size=4)
    whole = fit(fresh, epochs=5)
    resumed = Batches(numbered(14), np.zeros(14), batch_size=4, initial_epoch=3)
    assert fit(resumed, epochs=2) == whole[12:]
    followed = Batches(numbered(14), np.zeros(14), batch_size=4)
    assert fit(followed, epochs=5, callback=True, initial_epoch=3) == whole[12:]


def test_a_second_fit_goes_on():
    batches = Batches(numbered(14), np.zeros(14), batch_size=4)
    expected = expected_sets(batches, range(4))
    assert fit(batches, epochs=2) + fit(batches, epochs=2) == expected


def test_single_batch_epochs_with_the_callback():
    batches = Batches(numbered(4), np.zeros(4), batch_size=4)
    fit(batches, epochs=3, callback=True)
    assert batches.epoch == 3


def test_steps_per_epoch_goes_through_the_passes():
    batches = Batches(numbered(14), np.zeros(14), batch_size=4, steps_per_epoch=3)  # a pass has four batches
    whole = Batches(numbered(14), np.zeros(14), batch_size=4)
    assert fit(batches, epochs=4) == expected_sets(whole, range(3))
    long = Batches(numbered(14), batch_size=4, steps_per_epoch=6)
    np.testing.assert_array_equal(long.batch(1, 5), whole.batch(2, 3)[0])


def test_batches_are_a_pure_function():
    images, labels = numbered(14), np.arange(14)
    batches = Batches(images, labels, batch_size=4, seed=7)
    order = np.random.default_rng([7, 2]).permutation(14)
    for k in (3, 0, 2, 1):
        found, found_labels = batches.batch(2, k)
        np.testing.assert_array_equal(found_labels, order[4 * k : 4 * k + 4])
        np.testing.assert_array_equal(found, images[found_labels])
    late = ImageDataset(images, labels).batches(4, seed=7, initial_epoch=2)
    for k in range(4):
        np.testing.assert_array_equal(late[k][1], batches.batch(2, k)[1])
    still = Batches(images, batch_size=4, shuffle=False)
    np.testing.assert_array_equal(np.concatenate(list(still)), images)
    np.testing.assert_array_equal(still.batch(5, 1), images[4:8])
    with pytest.raises(IndexError):
        batches[4]


def test_batches_with_and_without_labels():
    images = numbered(6)
    assert isinstance(ImageDataset(images).batches(3)[0], np.ndarray)
    assert isinstance(ImageDataset(images, [0, 1, -1] * 2).batches(3)[0], tuple)
    assert isinstance(ImageDataset(images, [0, 1, -1] * 2).batches(3, labels=False)[0], np.ndarray)


def test_bad_batches():
    with pytest.raises(ValueError, match="`batch_size` should be a positive integer"):
        Batches(numbered(4), batch_size=0)
    with pytest.raises(ValueError, match="`batch_size` should be at most"):
        Batches(numbered(4), batch_size=5, drop_last=True)
    with pytest.raises(ValueError, match="`labels` should be one an image"):
        Batches(numbered(4), np.zeros(3), batch_size=2)


# Incomplete batches --------------------------------------------------------------------------------------------------


def sizes(data):
    return [len(np.asarray(keras.tree.flatten(batch)[0])) for batch in data]


def test_drop_incomplete_from_batches():
    batches = Batches(numbered(10), np.arange(10), batch_size=4, seed=3, initial_epoch=2)
    whole, dropped = drop_incomplete(batches)
    assert dropped and sizes(whole) == [4, 4] and sizes(batches) == [4, 4, 2]
    np.testing.assert_array_equal(whole[1][1], np.random.default_rng([3, 2]).permutation(10)[4:8])
    even = Batches(numbered(8), batch_size=4)
    assert drop_incomplete(even) == (even, False)
    assert drop_incomplete(whole) == (whole, False)


class Plain(keras.utils.PyDataset):
    """Somebody's own PyDataset; counts epochs."""

    def __init__(self, size):
        super().__init__()
        self.size, self.epochs = size, 0

    def __len__(self):
        return -(-self.size // 4)

    def __getitem__(self, k):
        return numbered(self.size)[4 * k : 4 * k + 4], np.zeros(min(4, self.size - 4 * k))

    def on_epoch_end(self):
        self.epochs += 1


def test_drop_incomplete_from_py_dataset():
    uneven = Plain(10)
    whole, dropped = drop_incomplete(uneven)
    assert dropped and sizes(whole) == [4, 4]
    whole.on_epoch_end()
    assert uneven.epochs == 1
    even = Plain(8)
    assert drop_incomplete(even) == (even, False)


def test_drop_incomplete_from_generator():
    whole, dropped = drop_incomplete((numbered(10)[i : i + 4],) for i in (0, 4, 8))
    assert dropped is None and sizes(whole) == [4, 4]


def test_drop_incomplete_from_tf_data():
    tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    base = tf.data.Dataset.from_tensor_slices((numbered(10), np.zeros(10)))
    for data in (
        base.batch(4),
        base.shuffle(10).batch(4).prefetch(2),
        base.batch(4, num_parallel_calls=2).map(lambda x, y: (x + 1, y), num_parallel_calls=2).cache(),
    ):
        whole, dropped = drop_incomplete(data)
        assert dropped and sizes(whole) == [4, 4] and int(whole.cardinality()) == 2
    for data in (base.batch(5), base.batch(4, drop_remainder=True)):
        assert drop_incomplete(data) == (data, False)
    for data in (base.batch(4).shuffle(3), base.batch(4).repeat(), base.filter(lambda x, y: True).batch(4)):
        assert drop_incomplete(data) == (data, None)


def test_drop_incomplete_from_torch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    tensors = torch.utils.data.TensorDataset(torch.from_numpy(numbered(10)))
    loader = torch.utils.data.DataLoader(tensors, batch_size=4, shuffle=True)
    whole, dropped = drop_incomplete(loader)
    assert dropped and sizes(whole) == [4, 4] and len(whole) == 2
    for even in (
        torch.utils.data.DataLoader(tensors, batch_size=5),
        torch.utils.data.DataLoader(tensors, batch_size=4, drop_last=True),
    ):
        assert drop_incomplete(even) == (even, False)
    unbatched = torch.utils.data.DataLoader(tensors, batch_size=None)
    assert drop_incomplete(unbatched) == (unbatched, None)


def test_drop_incomplete_from_grain():
    grain = pytest.importorskip("grain", reason="grain is not installed")
    source = grain.MapDataset.source(numbered(10)).shuffle(seed=0)
    whole, dropped = drop_incomplete(source.batch(4))
    assert dropped and sizes(whole) == [4, 4]
    even = source.batch(5)
    assert drop_incomplete(even) == (even, False)
    whole, dropped = drop_incomplete(source.to_iter_dataset().batch(4))
    assert dropped is None and sizes(whole) == [4, 4]


def test_loading_is_silent(folder, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(folder)
    assert capsys.readouterr() == ("", "")
    load(folder, verbose=True)
    assert "decoding pets: 5/5 images" in capsys.readouterr().err
