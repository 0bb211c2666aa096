"""What callbacks remember of a run, as a checkpoint keeps it."""

import collections
import warnings

import keras
import numpy as np

# Keras's own that remember something, and where: they have no methods to ask for it.
_REMEMBERED = {
    keras.callbacks.EarlyStopping: ("wait", "best", "best_epoch", "stopped_epoch"),
    keras.callbacks.ReduceLROnPlateau: ("wait", "best", "cooldown_counter"),
    keras.callbacks.ModelCheckpoint: ("best", "_batches_seen_since_last_saving", "_last_batch_seen"),
}


def take(callbacks):
    """The states of callbacks: a dict of what JSON can hold, by kind and how many of the kind came before."""
    return {key: _state(callback) for key, callback in _keyed(callbacks)}


def give(callbacks, states, warn=True):
    """Gives callbacks back what `take` returned, after their `on_train_begin`.

    With `warn` a warning names the states that no callback is there for: the run is gone on with without it.
    """
    for key, callback in _keyed(callbacks):
        if key not in states:
            continue
        names = _names(callback)
        if names is None:
            callback.set_state(states[key])
            continue
        for name in names:
            if name in states[key]:
                setattr(callback, name, states[key][name])
        if warn and getattr(callback, "restore_best_weights", False) and callback.best is not None:
            warnings.warn(
                "EarlyStopping(restore_best_weights=True): the best weights so far are not in the checkpoint. If no "
                "later epoch is better, the run ends with those of the first epoch from here; a "
                "ModelCheckpoint(save_best_only=True) keeps the best on the disk.",
                stacklevel=5,
            )
    without = states.keys() - {key for key, _ in _keyed(callbacks)}
    if warn and without:
        warnings.warn(
            f"The checkpoint holds the state of callbacks that are not there: {', '.join(sorted(without))}. Pass the "
            "same callbacks, or what these did goes on without what they remembered.",
            stacklevel=5,
        )


def _keyed(callbacks):
    counts = collections.Counter()
    for callback in callbacks:
        if _has_methods(callback) or _names(callback) is not None:
            kind = type(callback).__name__
            yield f"{kind}:{counts[kind]}", callback
            counts[kind] += 1


def _has_methods(callback):
    return hasattr(callback, "get_state") and hasattr(callback, "set_state")


def _names(callback):
    """The attributes that one of Keras's own remembers by, or `None` for one that has methods."""
    if _has_methods(callback):
        return None
    return next((names for kind, names in _REMEMBERED.items() if isinstance(callback, kind)), None)


def _state(callback):
    names = _names(callback)
    if names is None:
        return callback.get_state()
    return {name: _number(getattr(callback, name, None)) for name in names}


def _number(value):
    return value if value is None or isinstance(value, int | float) else np.asarray(value).item()
