"""Stops a run at the first loss that is not a number, with a copy of the weights from before."""

import collections
import math

import keras

from keras_issl.callbacks.budget import Budget
from keras_issl.callbacks.snapshot import Snapshot, listed, not_finite, useless

COST = 0.005  # share of the time that may go into copies of the weights
LAG = 1  # a loss is looked at when so many further steps were sent off, so that an accelerator need not wait for us


class NonFiniteLoss(FloatingPointError):
    """The loss became NaN or infinite.

    Attributes:
        step: The first bad step, counted from 1 over the whole run; `None` where it cannot be told.
        kind: `"image"`, `"view"`, `"feature"`, `"logit"`, `"loss"`, `"gradient"` or `"weight"`: what was the first to
            be not finite; `None` where it cannot be told.
        tensor: Its name in words.
        snapshot: A `Snapshot` from before, or `None`.
        taken: (epoch, batch) that the snapshot was taken before.
        seen: (epoch, batch) in which the loss was seen to be not finite, from 0.
        ignored: Paths of constants that were not finite from the start, and are meant to be so.
    """

    def __init__(
        self, message, *, step=None, kind=None, tensor=None, snapshot=None, taken=None, seen=None, ignored=frozenset()
    ):
        super().__init__(message)
        self.step, self.kind, self.tensor = step, kind, tensor
        self.snapshot, self.taken, self.seen, self.ignored = snapshot, taken, seen, ignored


class NaNGuard(keras.callbacks.Callback):
    """Stops training with an error at the first loss that is not finite, and keeps the weights from before.

    `Pretrainer.fit` brings one of its own, gives the model its last good weights back and names the tensor that was
    the first to be NaN or infinite: it repeats the steps since the last copy, which it can where the batches come from
    an array, an `ImageDataset` or `datasets.Batches`. Of other streams the model gets the last copy.

    The loss of a step is looked at one step later. Kernels of TensorFlow and XLA may turn NaN into 0 at a ReLU: then
    the loss stays a number while batch statistics are lost. So the weights are looked at too, whenever a copy is taken,
    and at the end of the run. Copies are taken as often as costs 0.5 % of the time.

    Raises:
        NonFiniteLoss: A `FloatingPointError`: the loss is NaN or infinite; the message says when, and what to try.

    Example:

    >>> history = model.fit(images, callbacks=[keras_issl.callbacks.NaNGuard()], verbose=0)
    """

    def on_train_begin(self, logs=None):
        self.snapshot, self.taken, self.budget = None, None, Budget(COST)
        self.pending, self.epoch = collections.deque(), 0
        # Constants, such as a mask of -inf, are meant to be so; a weight that trains is not.
        trained = {v.path for v in self.model.trainable_weights}
        self.ignored = frozenset(path for path in not_finite(self.model) if path not in trained)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if not self.budget.due:
            return
        with self.budget.spend():
            self._check_all()  # a copy of bad weights would be of no use
            if self.snapshot is not None and useless(self.model):
                return  # finite, and too large to compute with: no good weights to go back to
            self.snapshot, self.taken = Snapshot(self.model), (self.epoch, batch)

    def on_train_batch_end(self, batch, logs=None):
        if logs and "loss" in logs:
            self.pending.append(((self.epoch, batch), logs["loss"]))  # the mean of the epoch so far: NaN stays
        while len(self.pending) > LAG:
            self._check()

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 == self.params.get("epochs") or self.model.stop_training:
            self._check_all()
        while self.pending:
            self._check()

    def _check_all(self):
        while self.pending:
            self._check()
        if bad := not_finite(self.model, self.ignored):
            self._raise("Weights became NaN or infinite.", tensor=listed(bad), kind="weight")

    def _check(self):
        at, loss = self.pending.popleft()
        loss = float(loss)
        if not math.isfinite(loss):
            self._raise(f"The loss became {loss}.", seen=at)

    def _raise(self, what, **facts):
        epoch, batch = facts.setdefault("seen", (self.epoch, None))
        place = f" In epoch {epoch + 1}" + (f", batch {batch + 1}." if batch is not None else ".")
        raise NonFiniteLoss(what + place, snapshot=self.snapshot, taken=self.taken, ignored=self.ignored, **facts)
