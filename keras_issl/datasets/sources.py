"""Where images come from: one function a kind of source, each of which returns `Records`."""

import dataclasses
import glob
import importlib
import itertools
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from keras_issl.datasets.images import as_images, check_range
from keras_issl.datasets.labels import check_labels, label_numbers, stratified
from keras_issl.datasets.row_groups import ParquetRows
from keras_issl.datasets.tfrecords import TFRecords

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
SPLITS = {"train": ("train", "training"), "valid": ("valid", "validation", "val", "dev"), "test": ("test", "testing")}


@dataclasses.dataclass(frozen=True)
class Records:
    """What a source hands over, before any pixel is decoded.

    Attributes:
        name: what to call the dataset.
        size: number of images N.
        read: from an index to encoded bytes, a path, `{"bytes", "path"}`, a Pillow image or an array; thread-safe.
        where: from an index to the place of that image, for messages.
        labels: int64 (N,), -1 where there is none; or None.
        class_names: one name a class; or None.
        cache: told how many bytes of encoded images it may keep, when images will be decoded on the fly; returns
            whether that is enough to read each image without reading others again.
        blocks: from indices to integers that are equal where images are read together; None where each is read alone.
    """

    name: str
    size: int
    read: Callable
    where: Callable
    labels: np.ndarray | None = None
    class_names: tuple | None = None
    cache: Callable = lambda budget: True
    blocks: Callable | None = None


class UnknownSplit(ValueError):
    """The dataset has no split of the name that was asked for."""


def find_records(source, split, image_column, label_column):
    """The source's function, chosen by what `source` is."""
    columns = (image_column, label_column)
    if isinstance(source, str) and source == "digits":
        return _digits(split)
    if isinstance(source, str) and source.startswith("tfds:"):
        return _tfds_name(source[5:], split, *columns)
    if isinstance(source, str) and source.startswith("hf:"):
        return _hugging_face_name(source[3:], split, *columns)
    if hasattr(source, "column_names"):
        return _hugging_face(source, split, getattr(source, "builder_name", None) or "dataset", *columns)
    if isinstance(source, np.ndarray):
        return _arrays(source)
    if isinstance(source, tuple) and len(source) == 2 and hasattr(source[0], "shape"):
        return _arrays(source[0], check_labels(source[1], len(source[0])))
    if isinstance(source, list | tuple) and source:
        files = [Path(file) for file in source]
    elif isinstance(source, str | os.PathLike):
        path = Path(source).expanduser()
        files = [path] if path.exists() else [Path(file) for file in glob.glob(str(path), recursive=True)]
    else:
        raise ValueError(
            '`source` should be "digits", a folder, Parquet files, "tfds:NAME", "hf:NAME", a `datasets.Dataset`, an '
            f"array or (images, labels). Received: {source!r:.200} of type {type(source).__name__}."
        )
    missing = [str(file) for file in files if not file.exists()]
    if missing or not files:
        raise FileNotFoundError(
            f"`source` should be a path that exists. Received: {missing[0] if missing else source!s}. "
            'Names of datasets start with "tfds:" or "hf:".'
        )
    if len(files) == 1 and files[0].is_dir():
        return _directory(files[0], split, *columns)
    wrong = [str(file) for file in files if file.suffix.lower() != ".parquet"]
    if wrong:
        raise ValueError(f"`source` should be Parquet files or a folder. Received: {wrong[0]}.")
    listed = not isinstance(source, str | os.PathLike)  # whoever lists files has chosen them
    return _parquet(files, split, files[0].parent.name or files[0].stem, *columns, listed=listed)


def _directory(path, split, image_column, label_column):
    """A folder is what lies in it: a saved `datasets` object, what TFDS wrote, Parquet files, or images."""
    if (path / "features.json").exists() and (path / "dataset_info.json").exists():
        tfds = _tensorflow_datasets()
        return _tfds(tfds, tfds.builder_from_directory(path), split, image_column, label_column)
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return _hugging_face_name(str(path), split, image_column, label_column)
    parquet = list(path.rglob("*.parquet"))
    if parquet:
        return _parquet(parquet, split, path.name, image_column, label_column)
    return _folder(path, split)


def _digits(split):
    """scikit-learn's 1,797 scanned digits (UCI, 8x8, 17 grey levels); 1,297 train and 500 test, stratified."""
    load_digits = _optional("sklearn.datasets", "scikit-learn", 'pip install "keras_issl[demo]"').load_digits
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8)
    test, train = stratified(digits.target, 500, np.random.default_rng(0))
    parts = {None: np.arange(len(images)), "train": train, "test": test}
    if split not in parts:
        raise UnknownSplit(f'`split` of "digits" should be None, "train" or "test". Received: split={split!r}.')
    name = "digits" if split is None else f"digits/{split}"
    chosen = parts[split]
    return _arrays(images[chosen], digits.target[chosen], name, [str(digit) for digit in range(10)])


def _arrays(images, labels=None, name="array", class_names=None):
    """Arrays: uint8, or numbers in [0, 255], which are rounded."""
    images = as_images(images)
    if len(images) == 0:
        raise ValueError(f"`source` should hold at least one image. Received: an array of shape {images.shape}.")
    if images.dtype != np.uint8:
        check_range(images)
        images = np.round(images).astype(np.uint8)
    return Records(name, len(images), lambda i: images[i], lambda i: f"image {i} of the array", labels, class_names)


def _folder(folder, split):
    """A folder of image files, in sub-folders of any depth; the first level of sub-folders names the classes."""
    root = folder
    if split is not None:
        names = SPLITS.get(_canonical(split), (split,))
        root = next((folder / name for name in (split, *names) if (folder / name).is_dir()), None)
        if root is None:
            found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
            raise UnknownSplit(f"`split` should be a sub-folder of {folder}: {found[:10]}. Received: split={split!r}.")
    files = sorted(
        Path(directory, file).relative_to(root).as_posix()
        for directory, _, names in os.walk(root, followlinks=True)
        for file in names
        if Path(file).suffix.lower() in SUFFIXES and not file.startswith(".")
    )
    if not files:
        raise ValueError(
            f"`source` should be a folder with images ({', '.join(sorted(SUFFIXES))}), Parquet files or sub-folders "
            f"of them. Received: {root}, which holds none."
        )
    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if split is None and len(classes) > 1 and all(_canonical(name) in SPLITS for name in classes):
        raise ValueError(f"`split` should be one of {classes}, the sub-folders of {folder}. Received: split=None.")
    number = {name: i for i, name in enumerate(classes)}
    labels = np.array([number.get(file.split("/")[0], -1) if "/" in file else -1 for file in files])
    name = folder.name if split is None else f"{folder.name}/{root.name}"
    return Records(name, len(files), lambda i: root / files[i], lambda i: str(root / files[i]), labels, classes or None)


def _parquet(files, split, name, image_column, label_column, *, listed=False):
    """Parquet files in Hugging Face style: `image` = {bytes, path} (or binary), `label`."""
    parquet = _optional("pyarrow.parquet", "pyarrow", 'pip install "keras_issl[data]"')
    files = list(map(str, files)) if listed and split is None else _of_split(files, split)
    schemas = [parquet.read_schema(file) for file in files]
    features = [_hugging_face_features(schema.metadata) for schema in schemas]
    image_column = _column(schemas[0].names, image_column, ("image", "img"), "image_column", files[0])
    label_column = _column(schemas[0].names, label_column, ("label", "labels", "fine_label"), None, files[0])
    labels, class_names = None, None
    if label_column:
        named = {tuple(feature.get(label_column, {}).get("names") or ()) for feature in features}
        if len(named) > 1:
            raise ValueError(f"`source` should be files of one dataset. Received: {files} with different class names.")
        columns = [parquet.read_table(file, columns=[label_column]).column(0).to_pylist() for file in files]
        labels, class_names = label_numbers(list(itertools.chain.from_iterable(columns)), named.pop())
    rows = ParquetRows(parquet, files, image_column)
    name = name if split is None else f"{name}/{_canonical(split)}"
    return Records(name, len(rows), rows, rows.where, labels, class_names, rows.cache, rows.blocks)


def _hugging_face_features(metadata):
    """Column name -> feature, from the JSON that the `datasets` library leaves in a Parquet schema; {} if none."""
    text = (metadata or {}).get(b"huggingface")
    return json.loads(text).get("info", {}).get("features", {}) if text else {}


def _of_split(files, split):
    """The files of one split, which their names (or folders) start with. Several splits and no choice is an error."""
    files = sorted(map(str, files))
    found = {file: _named_split(file) for file in files}
    names = sorted({name for name in found.values() if name})
    if split is None:
        if len(names) > 1:
            raise ValueError(f"`split` should be one of {names}, which the files' names show. Received: split=None.")
        return files
    chosen = [file for file in files if found[file] == _canonical(split)]
    if not chosen:
        raise UnknownSplit(
            f"`split` should be what a file's name starts with, one of {names}. Received: split={split!r}, "
            f"files {[Path(file).name for file in files[:5]]}."
        )
    return chosen


def _named_split(file):
    path = Path(file)
    for part in (re.split(r"[-_.]", path.name)[0], path.parent.name):
        if _canonical(part) in SPLITS:
            return _canonical(part)
    return None


def _canonical(split):
    """ "validation" and "val" are "valid"; other names stay."""
    return next((name for name, same in SPLITS.items() if str(split).lower() in same), split)


def _hugging_face(dataset, split, name, image_column, label_column):
    """A `datasets.Dataset` (or a DatasetDict and a split)."""
    datasets = sys.modules.get("datasets")
    if isinstance(dataset, dict):
        split = _known_split(split, list(dataset))
        dataset, name = dataset[split], f"{name}/{split}"
    if not len(dataset):
        raise ValueError(f"`source` should hold at least one image. Received: {name!r} with no rows.")
    columns = dataset.column_names
    image_column = _column(columns, image_column, ("image", "img"), "image_column", name)
    label_column = _column(columns, label_column, ("label", "labels", "fine_label"), None, name)
    labels, class_names = None, None
    if label_column:
        names = getattr(dataset.features[label_column], "names", None) or ()
        labels, class_names = label_numbers(list(dataset.with_format(None)[label_column]), names)
    feature = dataset.features[image_column]
    if datasets is not None and isinstance(feature, datasets.Image):
        dataset = dataset.cast_column(image_column, datasets.Image(decode=False))  # decoding is ours
    images = dataset.select_columns([image_column]).with_format(None)
    return Records(
        name, len(images), lambda i: images[int(i)][image_column], lambda i: f"{name}, row {i}", labels, class_names
    )


def _hugging_face_name(name, split, image_column, label_column):
    """A dataset by its name on the Hub, or one saved by `save_to_disk`, through the `datasets` library."""
    datasets = _optional("datasets", "datasets", "pip install datasets")
    if Path(name).is_dir() and any((Path(name) / file).exists() for file in ("state.json", "dataset_dict.json")):
        dataset = datasets.load_from_disk(name)
    else:
        dataset = datasets.load_dataset(name)
    return _hugging_face(dataset, split, Path(name).name, image_column, label_column)


def _tensorflow_datasets():
    return _optional("tensorflow_datasets", "tensorflow-datasets", 'pip install "keras_issl[data]"')


def _tfds_name(name, split, image_column, label_column):
    """A TensorFlow Datasets name; its random-access format needs no TensorFlow."""
    tfds = _tensorflow_datasets()
    builder = tfds.builder(name, file_format="array_record")
    builder.download_and_prepare()
    return _tfds(tfds, builder, split, image_column, label_column)


def _tfds(tfds, builder, split, image_column, label_column):
    """What TensorFlow Datasets wrote: ArrayRecord or TFRecord files, with features.json beside them."""
    split = split if split and "[" in split else _known_split(split, list(builder.info.splits))
    features, name = builder.info.features, f"{builder.info.name}/{split}"
    image_column = _column(list(features), image_column, ("image", "img"), "image_column", name)
    label_column = _column(list(features), label_column, ("label", "labels"), None, name)
    decoders = {image_column: tfds.decode.SkipDecoding()}  # decoding is ours
    if builder.info.file_format.value == "tfrecord":
        files = builder.info.splits[split].file_instructions
        records = TFRecords([(file.filename, file.skip, file.take) for file in files])
        where = records.where

        def example(i):
            return features.deserialize_example_np(records[i], decoders=decoders)
    else:
        records = builder.as_data_source(split, decoders=decoders)
        example = records.__getitem__

        def where(i):
            return f"{name}, example {i}"

    labels, class_names = None, None
    if label_column:
        names = getattr(features[label_column], "names", None) or ()
        labels, class_names = label_numbers([int(example(i)[label_column]) for i in range(len(records))], names)
    return Records(name, len(records), lambda i: example(i)[image_column], where, labels, class_names)


def _known_split(split, known):
    chosen = [name for name in known if split is not None and _canonical(name) == _canonical(split)]
    if split in known:
        return split
    if len(chosen) != 1 and not (split is None and len(known) == 1):
        raise UnknownSplit(f"`split` should be one of {known}. Received: split={split!r}.")
    return chosen[0] if chosen else known[0]


def _column(columns, wanted, usual, argument, place):
    """The column that was asked for, or the first of the usual names. `argument=None`: there need not be one."""
    if wanted is not None and wanted in columns:
        return wanted
    found = next((name for name in usual if name in columns), None) if wanted is None else None
    if found is None and (argument or wanted is not None):
        raise ValueError(
            f"`{argument or 'label_column'}` should be a column of {place}: {list(columns)}. Received: {wanted!r}."
        )
    return found


def _optional(module, package, way_out):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"This dataset needs {package}, which is not installed. Install it with {way_out}."
        ) from error
