"""What `fit` does with a `callbacks.Checkpoint`: what a run is, and how Keras is made to go on within an epoch."""

import contextlib
import json
import re

import keras
import numpy as np

from keras_issl import datasets
from keras_issl.callbacks import Checkpoint, Snapshot, StopTogether
from keras_issl.environment import versions

SAMPLE = 64  # images whose pixels stand for all
LONGEST = 1000  # characters of a setting


def checkpoint_of(callbacks):
    """The `Checkpoint` among callbacks, or `None`.

    Raises:
        ValueError: There are several.
    """
    found = [callback for callback in callbacks if isinstance(callback, Checkpoint)]
    if len(found) > 1:
        raise ValueError(f"`callbacks` should hold one Checkpoint. Received: {len(found)}.")
    return found[0] if found else None


def check_seekable(x):
    """Raises a `ValueError` for a stream that cannot be asked for a batch by its number."""
    if not isinstance(x, datasets.Batches):
        raise ValueError(
            "`x` should be an array, an `ImageDataset` or `datasets.Batches` with a Checkpoint: a run goes on at "
            f"batch k, and this stream cannot be asked for it. Received: {type(x).__name__}. Load the images with "
            "`datasets.load`; or leave the Checkpoint away and use `keras.callbacks.BackupAndRestore`, which begins "
            "an epoch anew, in another order."
        )


def facts_of(model, batches, epochs):
    """What a run is, as far as its weights depend on it: nested dicts of what JSON can hold.

    Args:
        model: The `Pretrainer`.
        batches: The `datasets.Batches` it trains on.
        epochs: Of the run; it counts where schedules end with it.
    """
    objective = model.objective
    facts = {
        "encoder": _layers(model.encoder),
        "objective": _told(objective),
        "augmentation": _told(model.augmentation),
        "online_probe": _told(model.online_probe),
        "optimizer": json.loads(_optimizer_at_first(model)),
        "precision": model.encoder.dtype_policy.name,
        "order": {
            "batch_size": batches.batch_size,
            "steps_per_epoch": len(batches),
            "shuffle": batches.shuffle,
            "seed": batches.seed,
            "drop_last": batches.drop_last,
            "shards": batches.shards,
        },
        "images": _images(batches),
        "versions": versions(),
    }
    if objective.uses_run_length:
        facts["epochs"] = epochs
    return json.loads(json.dumps(facts, default=_plain))


def note_optimizer(model):
    """Notes how a `fit` left the optimizer, whose rate a callback may have changed."""
    with contextlib.suppress(Exception):  # after an error on JAX its variables may be gone
        model.optimizer_left = _optimizer(model)


def _optimizer_at_first(model):
    """The optimizer as the run began with it; as it is now, if it is not as a `fit` left it."""
    now = _optimizer(model)
    if now != model.optimizer_left:
        model.optimizer_at_first = now
    return model.optimizer_at_first


def _optimizer(model):
    return json.dumps(_told(model.optimizer), default=_plain)


def _told(thing):
    """A thing by its name and configuration; a function by its name alone."""
    return {"name": getattr(thing, "__qualname__", type(thing).__name__), **_config(thing)}


def _layers(encoder):
    """The layers of an encoder: two that have weights of the same shapes may still differ, as in their strides."""
    found = {}
    for number, layer in enumerate(encoder._flatten_layers()):
        kept = {key: value for key, value in _config(layer).items() if not key.endswith("_initializer")}
        if list(layer._flatten_layers(include_self=False)):  # those within come by themselves
            kept = {k: v for k, v in kept.items() if k not in ("input_layers", "output_layers") and _is_setting(v)}
        found[f"{number}"] = {"name": type(layer).__name__, **{k: v for k, v in kept.items() if v is not None}}
    return found


def _is_setting(value):
    """Whether a value is plain: a number, a text, or a list of them."""
    values = value if isinstance(value, list | tuple) else [value]
    return all(isinstance(one, int | float | str | None) for one in values)


def _config(thing):
    """The configuration of what has one."""
    try:
        config = keras.saving.serialize_keras_object(thing)["config"] if hasattr(thing, "get_config") else {}
    except Exception:  # of a class that cannot say
        config = {}
    return _nameless({key: value for key, value in config.items() if key not in ("trainable", "dtype")})


def _nameless(config):
    """Without names, which Keras numbers by what else a process has made; without code and weights in a text."""
    if isinstance(config, dict):
        if config.get("class_name") == "__lambda__":  # its code holds the number of its line
            return "a lambda"
        return {key: _nameless(value) for key, value in config.items() if key != "name"}
    if isinstance(config, str) and len(config) > LONGEST:
        return None
    return [_nameless(value) for value in config] if isinstance(config, list | tuple) else config


def _images(batches):
    count = len(batches.images)
    chosen = np.linspace(0, count - 1, min(SAMPLE, count)).astype(int)
    return {
        "count": count,
        "sample": datasets.fingerprint(batches.images[chosen], None)[:16],
        "labels": None if batches.labels is None else datasets.fingerprint(np.asarray(batches.labels))[:16],
    }


def _plain(value):
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return re.sub(r" at 0x[0-9a-fA-F]+", "", str(value))  # an address is another one in each process


class RunCallbacks(keras.callbacks.CallbackList):
    """The callbacks of a run that may go on within an epoch, which takes two calls of Keras's `fit`.

    They see one: it begins once and ends once, and batches keep their numbers.

    Args:
        callbacks: The callbacks.
        checkpoint: The `Checkpoint` among them.
        place: (epoch, batch) where the run goes on.
        **options: As `keras.callbacks.CallbackList`.
    """

    def __init__(self, callbacks, checkpoint, place, **options):
        epoch, batch = place
        # What is saved is the state after all others have seen the step, and it is known whether all stop.
        callbacks = sorted(callbacks, key=lambda c: 2 * isinstance(c, Checkpoint) + isinstance(c, StopTogether))
        super().__init__(callbacks, add_history=True, initial_epoch=epoch, initial_batch=batch, **options)
        self.checkpoint, self.place = checkpoint, place
        self.first, self.last = True, batch == 0 or epoch + 1 == options["epochs"]  # of the calls of `fit`
        checkpoint.others = self.callbacks

    def on_train_begin(self, logs=None):
        if self.first:
            super().on_train_begin(logs)
            self.checkpoint.restore_callbacks()

    def on_train_end(self, logs=None):
        if self.last or self.model.stop_training:
            self.checkpoint.close()  # while a signal is still held back by another callback
            super().on_train_end(logs)

    def on_epoch_begin(self, epoch, logs=None):
        self._skipped = self.place[1] if self.first and epoch == self.place[0] else 0
        if self._skipped:
            self.checkpoint.restore_metrics(self.model)
        begun = Snapshot(self.model) if self._skipped else None
        super().on_epoch_begin(epoch, logs)
        if begun is not None:  # what a scheduler does at the beginning of this epoch was done when it began
            begun.restore(self.model)

    def on_train_batch_begin(self, batch, logs=None):
        super().on_train_batch_begin(batch + self._skipped, logs)

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch + self._skipped, logs)

    def next_call(self):
        """Between the two calls."""
        self.first, self.last = False, True


@contextlib.contextmanager
def not_finalized(optimizer):
    """Keeps the optimizer from putting averaged weights in place of those it trains, within a run that goes on."""
    optimizer.finalize_variable_values = lambda *_: None
    try:
        yield
    finally:
        del optimizer.finalize_variable_values
