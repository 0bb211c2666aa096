"""Batches that a run can resume."""

import contextlib
import time
import warnings

import keras
import numpy as np

from keras_issl.datasets.ahead import Ahead
from keras_issl.datasets.device import DeviceImages
from keras_issl.datasets.order import check_order, order_of_pass

_AHEAD = 2  # batches, where images are decoded when they are asked for


class Batches(keras.utils.PyDataset):
    """Batches whose content is a pure function of (seed, epoch, number), so that a run can be resumed at any epoch.

    `fit` takes it on every backend. Pass `shuffle=False` to `fit`: Keras would otherwise visit the batches of an epoch
    in an order drawn from Python's global generator. The epoch advances when Keras reports the end of an epoch in which
    every batch was asked for; `callback()` ties it to `fit`'s own count instead, which also covers `initial_epoch`, a
    second `fit` and datasets of a single batch.

    Args:
        images: array (N, ...), `EncodedImages`, or `DeviceImages`: batches of these are tensors on the device.
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

    Each item is images (B, ...), or a tuple of images and labels (B,). Of images on the device they are tensors, in a
    tuple of one where there are no labels: Keras takes no bare tensor.

    Attributes:
        decodes: Whether images are read and decoded when they are asked for.
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
        self._first = 0  # batches of this epoch that are left out
        self._order = (None, None)  # the latest pass and the indices of its batches
        self._served = None  # numbers asked for in the epoch that Keras has begun
        self.seconds, self._made, self._making = 0.0, 0, 0.0
        self.decodes = not isinstance(images, np.ndarray | DeviceImages)
        ahead = _AHEAD * self.decodes if read_ahead is None else read_ahead
        if ahead and isinstance(images, DeviceImages):
            raise ValueError(f"`read_ahead` should be left out for images on the device. Received: {read_ahead}.")
        self._ahead = Ahead(self._timed, self._following, ahead) if ahead else None

    @property
    def batches_per_pass(self):
        """Batches it takes to see every image once."""
        return len(self.images) // self.batch_size if self.drop_last else -(-len(self.images) // self.batch_size)

    @property
    def images_per_second(self):
        """Images that reading and decoding has made a second so far."""
        return self._made / self._making if self._making else float("nan")

    @property
    def batches_per_epoch(self):
        """Batches of a whole epoch."""
        return self.steps_per_epoch or self.batches_per_pass

    def __len__(self):
        return self.batches_per_epoch - self._first

    @contextlib.contextmanager
    def starting_at(self, number):
        """Within it an epoch begins with batch `number`, which is asked for as 0, and is so much shorter."""
        self._first = number
        try:
            yield
        finally:
            self._first = 0

    def __getitem__(self, number):
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of {len(self)}")
        if self._served is not None:
            self._served.add(number)
        began = time.monotonic()
        try:
            batch = (self._ahead or self._timed)((self.epoch, self._first + number))
            return batch if isinstance(batch, tuple | np.ndarray) else (batch,)  # Keras takes no bare tensor
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
        return (epoch, number + 1) if number + 1 < self.batches_per_epoch else (epoch + 1, 0)

    def batch(self, epoch, number):
        """Batch `number` of `epoch`, whatever was asked for before."""
        pass_number, position = divmod(epoch * self.batches_per_epoch + number, self.batches_per_pass)
        size = self.batch_size // self.share[1]
        mine = slice(position * size, (position + 1) * size)
        order, there = self._order_of(pass_number)
        images = self.images[order[mine]] if there is None else self.images.gather(there[mine])  # (B, ...)
        return images if self.labels is None else (images, self.labels[order[mine]])

    def _order_of(self, pass_number):
        """Indices of a pass, those of one batch after those of another, and the same on the device or `None`."""
        known, found = self._order  # one read: a thread may be replacing the pair
        if known != pass_number:
            how = {"shuffle": self.shuffle, "blocks": self.blocks, "shards": self.shards}
            order = order_of_pass(len(self.images), seed=self.seed, number=pass_number, **how)  # (S, images a shard)
            (index, parts), size = self.share, self.batch_size // self.shards
            if parts > 1 or self.shards > 1:  # whole batches, each of a part of every shard
                whole = order.shape[1] // size
                order = order[:, : whole * size].reshape(self.shards, whole, size).transpose(1, 0, 2)
                order = order.reshape(whole, parts, -1)[:, index]  # (batches, B / parts)
            order = order.reshape(-1)
            found = order, self.images.to_device(order) if isinstance(self.images, DeviceImages) else None
            self._order = (pass_number, found)
        return found

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
