"""Batches that others made: what can be told of them, and without their incomplete last one."""

import types

import keras

from keras_issl.datasets.batches import Batches

_ENDLESS = 1 << 48  # batches; grain counts what repeats for ever up to the largest integer


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
