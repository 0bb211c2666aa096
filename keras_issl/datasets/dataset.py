"""`ImageDataset`, and `load`, which makes one from any source."""

import functools
import hashlib
import os
import warnings
from pathlib import Path

import numpy as np

from keras_issl.datasets.batches import Batches
from keras_issl.datasets.device import DeviceImages
from keras_issl.datasets.images import (
    BrokenImage,
    EncodedImages,
    check_sizes,
    decode_record,
    decode_records,
    progress_line,
)
from keras_issl.datasets.labels import check_labels, stratified
from keras_issl.datasets.sources import find_records

_FULL_HASH_BYTES = 1 << 31  # datasets with more pixels than this are fingerprinted by a sample of them


def load(
    source,
    *,
    split=None,
    image_size=None,
    resize=None,
    labels=True,
    on_error="raise",
    memory_limit=None,
    workers=None,
    limit=None,
    image_column=None,
    label_column=None,
    verbose="auto",
):
    """Loads images as fixed-size uint8 RGB, decoded in parallel, in memory where they fit.

    The stored size is final: a random-resized-crop augmentation later crops from the `image_size` square, not from the
    file. Compared with cropping the full-size file (as ImageNet pipelines do), the margins beyond the central square
    are never seen and small crops are enlarged from fewer pixels. Store somewhat larger than the views, e.g.
    `image_size=256` for 224-pixel views, to come closer. To evaluate as ImageNet encoders usually are, pass
    `resize=256, image_size=224`.

    Args:
        source: one of
            - `"digits"`: scikit-learn's 1,797 scanned 8x8 digits; splits `"train"` (1,297) and `"test"` (500).
            - a folder of images, searched recursively; sub-folders of the first level, sorted, are the classes, and
              images outside of them have no label. With `split`, the sub-folder of that name.
            - a Parquet file, a list or a glob of them, or a folder of them, in Hugging Face style: `image` = {bytes,
              path}, `label`, class names in the schema metadata. With `split`, the files whose names start with it.
            - `"tfds:NAME"`: TensorFlow Datasets (TensorFlow itself is not needed); or a folder that it wrote, of
              ArrayRecord or TFRecord files with `features.json` and `dataset_info.json` beside them.
            - `"hf:NAME"`, a `datasets.Dataset`, or a folder written by its `save_to_disk`.
            - an array (N, H, W[, 1 or 3]) in [0, 255], or a tuple (images, labels).
        split: `"train"`, `"test"`, `"valid"` (also `"validation"`, `"val"`) ..., or None.
        image_size: S: the shorter side is resized (bilinear, antialiased) and the centre S x S kept. None keeps the
            stored size, which must then be the same for all.
        resize: what the shorter side is resized to, at least S pixels. Default: S.
        labels: False leaves the labels out.
        on_error: `"raise"` reports a broken image. `"skip"` looks at all images first, leaves broken ones out and lists
            them in `.skipped`. `"replace"` needs no such look: where an image cannot be read when its turn comes,
            another, always the same, takes its place, and `.replaced` lists it. With `"skip"` that is so for images
            that break later.
        memory_limit: bytes that decoded images may take; what is larger is decoded when a batch is asked for. Default:
            half of the memory that is free.
        workers: decoding threads. Default: one a CPU core.
        limit: load only this many images, evenly spaced over the source.
        image_column: where Parquet, `datasets` and TFDS sources keep the image, if not in `image` or `img`.
        label_column: and the label, if not in `label`, `labels` or `fine_label`.
        verbose: progress on stderr: True, False, or `"auto"`, on a terminal and after three seconds.

    Returns:
        An `ImageDataset`.

    Raises:
        ValueError: no images, broken images, sizes that differ, `resize` below `image_size`, an unknown split or
            column.
        FileNotFoundError: a path that does not exist.
        ImportError: the source needs an optional package; the message says which.

    Example:

    ```python
    train = keras_issl.datasets.load("digits", split="train", image_size=16)
    train.images.shape  # (1297, 16, 16, 3)
    ```
    """
    check_sizes(image_size, resize)
    _check_load_arguments(on_error, memory_limit, workers, limit)
    records = find_records(source, split, image_column, label_column)
    if records.size == 0:
        raise ValueError(f"`source` should hold at least one image. Received: {records.name!r} with no rows.")
    chosen = np.arange(records.size)
    if limit is not None and limit < records.size:
        chosen = np.linspace(0, records.size - 1, limit).astype(int)
    workers = workers or _cpu_count()
    limit_bytes = _available_memory() // 2 if memory_limit is None else memory_limit
    shape = (image_size, image_size, 3) if image_size else _first_shape(records, chosen, on_error != "raise")
    in_memory = len(chosen) * int(np.prod(shape)) <= limit_bytes
    images = np.empty((len(chosen), *shape), np.uint8) if in_memory else None
    broken, replaced = {}, None if on_error == "raise" else {}
    if in_memory or on_error == "skip":  # what is to be skipped must be known before the first batch
        progress = progress_line(len(chosen), f"decoding {records.name}", verbose)
        how = {"resize": resize, "skip": on_error != "raise", "progress": progress}
        broken = decode_records(records, chosen, image_size, shape, workers, out=images, **how)
    if len(broken) == len(chosen):
        raise broken[min(broken)]
    if in_memory and on_error == "replace" and broken:
        decoded = EncodedImages(records, chosen, image_size, shape, workers, resize, replaced=replaced)
        images[list(broken)] = decoded[list(broken)]
        broken = {}
    good = np.setdiff1d(np.arange(len(chosen)), list(broken))
    if not in_memory:
        how = {"by_blocks": not records.cache(limit_bytes), "replaced": replaced}
        images = EncodedImages(records, chosen[good], image_size, shape, workers, resize, **how)
    elif broken:
        images = images[good]
    skipped = [(error.where, error.reason) for _, error in sorted(broken.items())]
    if skipped:
        warnings.warn(
            f"Skipped {len(skipped)} of {len(chosen)} images of {records.name!r} that cannot be read, first: "
            f"{skipped[0][0]} ({skipped[0][1]}). All are listed in `.skipped`.",
            stacklevel=2,
        )
    known = labels and records.labels is not None
    return ImageDataset(
        images,
        records.labels[chosen[good]] if known else None,
        class_names=records.class_names if known else None,
        name=records.name,
        skipped=skipped,
        blocks=None if records.blocks is None else records.blocks(chosen[good]),
        replaced=replaced,
    )


def _check_load_arguments(on_error, memory_limit, workers, limit):
    for name, value in {"workers": workers, "limit": limit}.items():
        if value is not None and (not isinstance(value, int | np.integer) or value < 1):
            raise ValueError(f"`{name}` should be a positive integer or None. Received: {value!r}.")
    if on_error not in ("raise", "skip", "replace"):
        raise ValueError(f'`on_error` should be "raise", "skip" or "replace". Received: {on_error!r}.')
    if memory_limit is not None and memory_limit < 0:
        raise ValueError(f"`memory_limit` should be a number of bytes or None. Received: {memory_limit!r}.")


def _first_shape(records, indices, skip):
    """Shape of the first image that can be read."""
    for index in indices:
        try:
            return decode_record(records, index, None, None).shape
        except BrokenImage as error:
            if not skip:
                raise
            last = error
    raise last


def _cpu_count():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _available_memory():
    """Bytes that are free, or the container's limit where that is lower; 4 GiB where neither can be read."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    except (OSError, StopIteration, ValueError):
        return 4 << 30
    try:
        return min(free, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # not in a container, or "max"
        return free


class ImageDataset:
    """Fixed-size uint8 RGB images and their labels, in memory or decoded when indexed.

    Attributes:
        images: uint8 array (N, H, W, 3); or what looks like one: `EncodedImages` when they do not fit in memory,
            `DeviceImages` after `on_device`.
        labels: int64 (N,), -1 where there is none.
        class_names: tuple of names, or None.
        name: what the dataset is called.
        skipped: tuple of (place, reason) of the broken images that were left out.
        replaced: tuple of (place, reason) of the broken images in whose place others were given so far.
        blocks: integers (N,), equal for images that are read together, such as a row group of a Parquet file; or None.

    Args: the same, with `labels=None` for no labels.

    Raises:
        ValueError: images that are not uint8 (N, H, W, 3), labels that do not fit them.

    Example:

    ```python
    data = keras_issl.datasets.load("digits")
    train, valid = data.split(0.9)
    for images, labels in train.batches(128):
        ...
    ```
    """

    def __init__(self, images, labels=None, *, class_names=None, name="array", skipped=(), blocks=None, replaced=None):
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(
                f"`images` should be uint8 (N, H, W, 3). Received: {images.dtype} {images.shape}. "
                "`datasets.load(images)` converts other arrays."
            )
        self.images, self.name, self.skipped, self.blocks = images, name, tuple(skipped), blocks
        self._replaced = {} if replaced is None else replaced  # fills while images are read
        self.class_names = tuple(class_names) if class_names else None
        self.labels = np.full(len(images), -1) if labels is None else check_labels(labels, len(images))

    def __len__(self):
        return len(self.images)

    def __repr__(self):
        height, width, _ = self.image_shape
        classes = f", {len(self.class_names)} classes" if self.class_names else ""
        place = "in memory" if self.in_memory else "decoded on the fly"
        place = "on the device" if isinstance(self.images, DeviceImages) else place
        return f"<ImageDataset {self.name}: {len(self):,} images {height}x{width}{classes}, {place}>"

    @property
    def image_shape(self):
        """(H, W, 3)"""
        return tuple(self.images.shape[1:])

    @property
    def in_memory(self):
        """Whether the images are decoded already."""
        return isinstance(self.images, np.ndarray | DeviceImages)

    @property
    def replaced(self):
        """(place, reason) of each broken image in whose place another was given so far."""
        return tuple((error.where, error.reason) for _, error in sorted(self._replaced.items()))

    @property
    def has_labels(self):
        """Whether any image has a label."""
        return bool((self.labels >= 0).any())

    @functools.cached_property
    def fingerprint(self):
        """SHA-256 over pixels and labels, as a hexadecimal string; see `datasets.fingerprint`."""
        return fingerprint(self.images, self.labels)

    def subset(self, indices):
        """The images at `indices` (integers, a boolean mask or a slice), in that order."""
        images = self.images[indices] if isinstance(self.images, np.ndarray) else self.images.subset(indices)
        blocks = None if self.blocks is None else self.blocks[indices]
        same = {"class_names": self.class_names, "name": self.name, "replaced": self._replaced}
        return ImageDataset(images, self.labels[indices], blocks=blocks, **same)

    def on_device(self):
        """The same images for training on an accelerator: they are copied there once, as uint8, when `fit` begins.

        `fit` then gathers each batch on the device: no images travel any more. The batches hold the same images. It
        takes N H W 3 bytes of the device's memory for as long as this dataset is there, and as much again for each part
        of it (`split`, `take`) that is trained on. Each process has a copy, on its first device: from there JAX sends
        the others their parts.

        Returns:
            An `ImageDataset`.

        Raises:
            ValueError: Images that are not in memory; on TensorFlow, whose `fit` takes every batch through the host.

        Example:

        ```python
        train = keras_issl.datasets.load("digits", split="train")
        if keras.config.backend() != "tensorflow":
            train = train.on_device()
        ```
        """
        if not self.in_memory:
            raise ValueError(
                "Images should be in memory to be put on the device. Received: images that are decoded when a batch "
                "asks for them. Load fewer (`limit`) or smaller ones (`image_size`), raise `datasets.load`'s "
                "`memory_limit`, or leave them off the device."
            )
        if isinstance(self.images, DeviceImages):
            return self
        return self._with(images=DeviceImages(self.images))

    def take(self, count):
        """The first `count` images."""
        return self.subset(slice(count))

    def split(self, fraction, seed=0):
        """Two datasets, the first with `fraction` of the images, each class in proportion.

        Args:
            fraction: between 0 and 1.
            seed: which of the many such splits.

        Returns:
            A tuple of two `ImageDataset`s.
        """
        count = round(fraction * len(self))
        if not 0 < count < len(self):
            raise ValueError(
                f"`fraction` should leave images in both parts. Received: {fraction} of {len(self)} images."
            )
        first, second = stratified(self.labels, count, np.random.default_rng(seed))
        return self.subset(first), self.subset(second)

    def with_classes(self, class_names):
        """The same images, their labels numbered as in `class_names`: of a test set, by the training set's names.

        Args:
            class_names: the names to number by, or None to change nothing.

        Raises:
            ValueError: this dataset has a class that `class_names` lacks.
        """
        if class_names is None or self.class_names is None or self.class_names == tuple(class_names):
            return self
        unknown = sorted(set(self.class_names) - set(class_names))
        if unknown:
            raise ValueError(
                f"`class_names` should hold every class of {self.name}. Received: {len(class_names)} names, without "
                f"{unknown[:10]}. Classes must be the same in training and test."
            )
        number = np.array([*map(list(class_names).index, self.class_names), -1])  # -1 stays -1
        return self._with(labels=number[self.labels], class_names=class_names)

    def _with(self, **changes):
        """The same dataset but for some of the constructor's arguments."""
        same = {
            "images": self.images,
            "labels": self.labels,
            "class_names": self.class_names,
            "name": self.name,
            "skipped": self.skipped,
            "blocks": self.blocks,
            "replaced": self._replaced,
        }
        return ImageDataset(**same | changes)

    def batches(self, batch_size, *, labels=True, **options):
        """`Batches` of images, or of (images, labels) where there are labels and `labels` is True.

        Args:
            batch_size: images a batch.
            labels: whether batches hold labels.
            **options: `shuffle`, `seed`, `drop_last`, `initial_epoch`, `shards` and others of `Batches`.
        """
        known = self.labels if labels and self.has_labels else None
        return Batches(self.images, known, batch_size=batch_size, blocks=self.blocks, **options)


def fingerprint(images, labels=None):
    """SHA-256 over shape, type, labels and pixels: the same whether images lie in memory or are decoded on the fly.

    Above 2 GiB of pixels 1,024 evenly spaced images stand for all, so that it stays cheap.
    """
    digest = hashlib.sha256(f"{tuple(images.shape)} {images.dtype}".encode())
    if labels is not None:
        digest.update(np.ascontiguousarray(labels, np.int64))
    size, count = int(np.prod(images.shape)), len(images)
    seen = np.linspace(0, count - 1, 1024).astype(int) if size > _FULL_HASH_BYTES and count > 1024 else np.arange(count)
    for start in range(0, len(seen), 256):
        digest.update(np.ascontiguousarray(images[seen[start : start + 256]]))
    return digest.hexdigest()
