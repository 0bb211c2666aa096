"""Batches that a run can resume, and batches that others made without their incomplete last one."""

import time
import types
import warnings

import keras
import numpy as np

from keras_issl.datasets.ahead import Ahead
from keras_issl.datasets.order import check_order, order_of_pass

_AHEAD = 2  # batches, where images are decoded when they are asked for
_ENDLESS = 1 << 48  # batches; grain counts what repeats for ever up to the largest integer


class Batches(keras.utils.PyDataset):
    """Batches whose content is a pure function of (seed, epoch, number), so that a run can be resumed at any epoch.

    `fit` takes it on every backend. Pass `shuffle=False` to `fit`: Keras would otherwise visit the batches of an epoch
    in an order drawn from Python's global generator. The epoch advances when Keras reports the end of an epoch in which
    every batch was asked for; `callback()` ties it to `fit`'s own count instead, which also covers `initial_epoch`, a
    second `fit` and datasets of a single batch.

    Args:
        images: array (N, ...) or `EncodedImages`.
        labels: array (N,), or None.
        batch_size: images a batch, B.
        shuffle: draw a new order for each pass over the images: True for a permutation of all of them. An integer W
            for files that are read block by block, such as Parquet: the blocks come in a new order, and images are
            shuffled within windows of W; see `datasets.order_of_pass`.
        seed: of these orders: pass p draws from `np.random.default_rng([seed, p])`.
        drop_last: leave out the last batch of a pass if it is smaller.
        initial_epoch: the epoch to begin with.
        steps_per_epoch: batches an epoch; an epoch then begins where the one before it ended, also within a pass.
            None: one pass an epoch.
        share: pair (i, n): of each batch give the i-th of n equal parts, from 0, to the i-th of n processes. B is the
            size of the whole batch, which has to be a multiple of n; incomplete ones are left out.
        blocks: integer array (N,), equal for images that are read together; `ImageDataset.blocks`. For windows.
        shards: S: each batch is made of S equal parts, each from its own part of the blocks. Where S is a multiple of
            n, the i-th of n processes reads only its own blocks; with 1 it decodes its own images but reads as many
            blocks as all. The order depends on S, never on n.
        read_ahead: batches that a thread makes ahead of the one asked for. None: 2 where images are decoded when they
            are asked for, else 0.

    Each item is images (B, ...), or a tuple of images and labels (B,).

    Attributes:
        seconds: Time that was waited for all items so far.
        images_per_second: How many images a second reading and decoding has made so far, waited for or not; NaN before
            the first.

    Raises:
        ValueError: lengths that differ, a batch size below 1, not a multiple of n or S or, with `drop_last`, above N, a
            window of one image.

    Example:

    ```python
    batches = keras_issl.datasets.Batches(images, labels, batch_size=128)
    model.fit(batches, epochs=10, shuffle=False, callbacks=[batches.callback()])
    ```
    """

    def __init__(
        self,
        images,
        labels=None,
        *,
        batch_size,
        shuffle=True,
        seed=0,
        drop_last=False,
        initial_epoch=0,
        steps_per_epoch=None,
        share=(0, 1),
        blocks=None,
        shards=1,
        read_ahead=None,
    ):
        super().__init__(workers=1, use_multiprocessing=False)
        for name, values in {"labels": labels, "blocks": blocks}.items():
            if values is not None and len(values) != len(images):
                raise ValueError(f"`{name}` should be one an image. Received: {len(values)} for {len(images)} images.")
        if not isinstance(batch_size, int | np.integer) or batch_size < 1:
            raise ValueError(f"`batch_size` should be a positive integer. Received: {batch_size!r}.")
        shuffle = bool(shuffle) if isinstance(shuffle, np.bool_) else shuffle
        index, parts = share
        if not 0 <= index < parts or batch_size % parts:
            raise ValueError(
                "`share` should be a pair (i, n), 0 <= i < n, where n divides the batch size. Received: "
                f"{share!r} for batch_size={batch_size}."
            )
        check_order(shuffle, shards, batch_size)
        drop_last = drop_last or parts > 1 or shards > 1
        if len(images) < (batch_size if drop_last else 1):
            raise ValueError(
                f"`batch_size` should be at most the number of images when incomplete batches are dropped. Received: "
                f"batch_size={batch_size} for {len(images)} images."
            )
        if shuffle is True and getattr(images, "by_blocks", False):
            warnings.warn(
                "`shuffle` should be a number of images, such as 8192, for Parquet files that do not fit in memory: "
                "row groups then come in a new order each pass, and images within windows of that many. Received: "
                "True, for which a whole row group is read for nearly every image.",
                stacklevel=2,
            )
        self.images, self.labels, self.batch_size = images, labels, int(batch_size)
        self.shuffle, self.seed, self.drop_last = shuffle, seed, drop_last
        self.steps_per_epoch, self.share = steps_per_epoch, (int(index), int(parts))
        self.blocks, self.shards, self.read_ahead = blocks, int(shards), read_ahead
        self.epoch = initial_epoch
        self._order = (None, None)  # the latest pass and its order
        self._served = None  # numbers asked for in the epoch that Keras has begun
        self.seconds, self._made, self._making = 0.0, 0, 0.0
        ahead = _AHEAD * (not isinstance(images, np.ndarray)) if read_ahead is None else read_ahead
        self._timed_ahead = Ahead(self._timed, self._following, ahead) if ahead else self._timed

    @property
    def batches_per_pass(self):
        """Batches it takes to see every image once."""
        return len(self.images) // self.batch_size if self.drop_last else -(-len(self.images) // self.batch_size)

    @property
    def images_per_second(self):
        """Images that reading and decoding has made a second so far."""
        return self._made / self._making if self._making else float("nan")

    def __len__(self):
        return self.steps_per_epoch or self.batches_per_pass

    def __getitem__(self, number):
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of {len(self)}")
        if self._served is not None:
            self._served.add(number)
        began = time.monotonic()
        try:
            return self._timed_ahead((self.epoch, number))
        finally:
            self.seconds += time.monotonic() - began

    def _timed(self, key):
        began = time.monotonic()
        batch = self.batch(*key)
        self._making += time.monotonic() - began
        self._made += len(batch if self.labels is None else batch[0])
        return batch

    def _following(self, key):
        """(epoch, number) of the batch that `fit` asks for next."""
        epoch, number = key
        return (epoch, number + 1) if number + 1 < len(self) else (epoch + 1, 0)

    def batch(self, epoch, number):
        """Batch `number` of `epoch`, whatever was asked for before."""
        pass_number, position = divmod(epoch * len(self) + number, self.batches_per_pass)
        size = self.batch_size // self.shards  # images of each shard
        indices = self._shards(pass_number)[:, position * size : (position + 1) * size].reshape(-1)  # (B,)
        index, parts = self.share
        if parts > 1:
            indices = np.split(indices, parts)[index]
        images = self.images[indices]
        return images if self.labels is None else (images, self.labels[indices])

    def _shards(self, pass_number):
        """Indices (shards, images a shard) of a pass."""
        known, order = self._order  # one read: a thread may be replacing the pair
        if known != pass_number:
            how = {"shuffle": self.shuffle, "blocks": self.blocks, "shards": self.shards}
            order = order_of_pass(len(self.images), seed=self.seed, number=pass_number, **how)
            self._order = (pass_number, order)
        return order

    def replace(self, **changes):
        """The same batches but for some of the constructor's arguments."""
        same = {
            "labels": self.labels,
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "seed": self.seed,
            "drop_last": self.drop_last,
            "initial_epoch": self.epoch,
            "steps_per_epoch": self.steps_per_epoch,
            "share": self.share,
            "blocks": self.blocks,
            "shards": self.shards,
            "read_ahead": self.read_ahead,
        }
        return Batches(self.images, **same | changes)

    def on_epoch_begin(self):
        """Called by Keras."""
        self._served = set()

    def on_epoch_end(self):
        """Called by Keras, also once before the first epoch and after a look at the first batch: neither counts."""
        if self._served is not None and len(self._served) == len(self):
            self.epoch += 1
        self._served = None

    def callback(self):
        """A Keras callback for `fit` that sets `epoch` to the epoch that `fit` is in."""

        def follow(epoch, logs=None):
            self.epoch = epoch

        return keras.callbacks.LambdaCallback(on_epoch_begin=follow)


# Batches that others made --------------------------------------------------------------------------------------------


def drop_incomplete(data):
    """The same data without its incomplete last batch, for objectives that need statistics of whole batches.

    Args:
        data: what `fit` takes and is not an array: `Batches`, a `keras.utils.PyDataset`, `tf.data.Dataset`, torch
            `DataLoader`, grain `MapDataset`, `IterDataset` or `DataLoader`, or a Python generator.

    Returns:
        A tuple (data, dropped). dropped is True if there is an incomplete last batch, which the returned data leaves
        out; False if there is none; None if that cannot be told without reading everything: a generator or grain
        `IterDataset` is then returned with a filter for batches smaller than its first, other kinds as they are.

    Example:

    ```python
    batches, dropped = drop_incomplete(Batches(images, batch_size=64))
    ```
    """
    kinds = _kinds(data)
    if isinstance(data, keras.utils.PyDataset):
        return _drop_from_py_dataset(data)
    if "tensorflow.DatasetV2" in kinds:
        return _drop_from_tf_data(data)
    if "torch.DataLoader" in kinds:
        return _drop_from_torch(data)
    if "grain.MapDataset" in kinds:
        whole = len(data) < 2 or _batch_length(data[len(data) - 1]) == _batch_length(data[0])
        return (data, False) if whole else (data[: len(data) - 1], True)
    if "grain.IterDataset" in kinds:
        size = _batch_length(next(iter(data)))
        return data.filter(lambda batch: _batch_length(batch) == size), None
    if isinstance(data, types.GeneratorType):
        return _complete_batches(data), None
    return data, None


def count_batches(data):
    """How many batches an epoch of what `fit` takes has, or None if it does not say.

    Args:
        data: as `drop_incomplete`.

    Example:

    ```python
    steps = count_batches(Batches(images, batch_size=64))
    ```
    """
    if isinstance(data, keras.utils.PyDataset):
        return data.num_batches
    if "tensorflow.DatasetV2" in _kinds(data):
        count = int(data.cardinality())
        return count if count >= 0 else None  # negative: unknown or infinite
    try:
        return len(data)
    except TypeError:
        return None


def batch_size_of(data):
    """Examples a batch of what `fit` takes has, or None if it does not say without being read.

    Args:
        data: as `drop_incomplete`.

    Example:

    ```python
    size = batch_size_of(Batches(images, batch_size=64))  # 64
    ```
    """
    if "tensorflow.DatasetV2" in _kinds(data):
        shape = keras.tree.flatten(data.element_spec)[0].shape
        return shape[0] if shape.rank else None
    return getattr(data, "batch_size", None)


def _kinds(data):
    """Package and name of each class that `data` is an instance of: no package need be imported to ask."""
    return {f"{kind.__module__.split('.')[0]}.{kind.__name__}" for kind in type(data).__mro__}


def _batch_length(batch):
    return int(keras.tree.flatten(batch)[0].shape[0])


def _complete_batches(generator):
    first = next(generator)
    yield first
    size = _batch_length(first)
    yield from (batch for batch in generator if _batch_length(batch) == size)


class _FirstBatches(keras.utils.PyDataset):
    """The first `count` batches of a PyDataset or of a grain MapDataset; `None`: without end."""

    def __init__(self, data, count):
        if isinstance(data, keras.utils.PyDataset):
            super().__init__(data.workers, data.use_multiprocessing, data.max_queue_size)
            self.on_epoch_begin, self.on_epoch_end = data.on_epoch_begin, data.on_epoch_end
        else:
            super().__init__()
        self._data, self._count = data, count

    @property
    def num_batches(self):
        return self._count

    def __getitem__(self, number):
        return self._data[number]


def as_py_dataset(data):
    """A grain MapDataset as a `keras.utils.PyDataset`, anything else as it is.

    Keras 3.15 on TensorFlow trains a step too many in every epoch of a grain dataset.
    """
    if "grain.MapDataset" not in _kinds(data):
        return data
    return _FirstBatches(data, len(data) if len(data) < _ENDLESS else None)


def _drop_from_py_dataset(data):
    if isinstance(data, Batches):
        if data.drop_last or len(data.images) % data.batch_size == 0:
            return data, False
        return data.replace(drop_last=True), True
    count = data.num_batches
    if count is None:
        return data, None
    if count < 2 or _batch_length(data[count - 1]) >= _batch_length(data[0]):
        return data, False
    return _FirstBatches(data, count - 1), True


def _drop_from_tf_data(data):
    if all(spec.shape.rank and spec.shape[0] is not None for spec in keras.tree.flatten(data.element_spec)):
        return data, False  # a static batch size: TensorFlow has dropped the remainder, or there was none
    count = int(data.cardinality())
    # Down to where batches were made, through steps that neither reorder nor resize them.
    kept = ("Prefetch", "Map", "ParallelMap", "Options", "Cache", "Model")
    step = data
    while type(step).__name__.strip("_V12").removesuffix("Dataset") in kept:
        step = getattr(step, "_input_dataset", None)
    size = getattr(step, "_batch_size", None)
    if count < 1 or size is None:
        return data, None
    examples = int(step._input_dataset.cardinality())
    if examples < 0:
        return data, None
    return (data, False) if examples % int(size) == 0 else (data.take(count - 1), True)


def _drop_from_torch(loader):
    if loader.batch_size is None or not hasattr(loader.dataset, "__len__"):
        return loader, None
    if loader.drop_last or len(loader.sampler) % loader.batch_size == 0:
        return loader, False
    names = ("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context")
    names += ("generator", "prefetch_factor", "persistent_workers", "batch_size", "sampler")
    return type(loader)(loader.dataset, drop_last=True, **{name: getattr(loader, name) for name in names}), True
