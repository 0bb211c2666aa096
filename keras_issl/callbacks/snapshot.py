"""A copy in memory of all that a training step changes."""

import contextlib
import math
import warnings

import numpy as np
from keras import ops

from keras_issl import distribution


class Snapshot:
    """All variables of a model and its optimizer, copied to the host: weights, slots, seeds, teachers, centres, queues.

    It may be taken and restored in the middle of `fit`, from a callback.

    Args:
        model: A built and compiled `keras.Model`.
        copy: Whether to copy what the host's memory holds already. Without it the arrays are those that training
            changes: for use before the next step.

    Example:

    >>> before = keras_issl.callbacks.Snapshot(model)
    >>> history = model.fit(images, batch_size=64, verbose=0)
    >>> before.restore(model)
    """

    def __init__(self, model, copy=True):
        synchronize(model)
        with _plain_conversions():
            arrays = [distribution.host_array(variable) for variable in _variables(model)]
        self.arrays = [array.copy() for array in arrays] if copy else arrays

    def restore(self, model):
        """Gives the model the values back.

        Raises:
            ValueError: The model has other variables than the one it was taken of.
        """
        synchronize(model)
        variables = _variables(model)
        if [tuple(v.shape) for v in variables] != [a.shape for a in self.arrays]:
            raise ValueError(
                "`model` should be the one that the snapshot was taken of. Received: one of other variables."
            )
        for variable, array in zip(variables, self.arrays, strict=True):
            variable.assign(array)

    @staticmethod
    def variables(model):
        """The variables whose values `arrays` holds, in that order."""
        return _variables(model)

    @staticmethod
    def size_of(model):
        """Bytes of such a copy, about: nearly all of it is float32."""
        return 4 * sum(math.prod(variable.shape) for variable in _variables(model))


def synchronize(model):
    """Brings the variables up to date: on JAX they are behind the steps while `fit` runs."""
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()


def not_finite(model, ignored=()):
    """Paths of the weights that hold NaN or infinity, but for those that are to be ignored."""
    synchronize(model)
    with _plain_conversions():
        return [v.path for v in model.weights if v.path not in ignored and not _finite(v)]


def useless(model):
    """Whether a trainable weight is so large that squares, as in batch statistics, overflow float32."""
    return any(np.abs(_array(v)).max(initial=0.0) > 1e18 for v in model.trainable_weights)


def listed(paths, most=3):
    """Some names in words: the first few, and how many more."""
    return ", ".join(paths[:most]) + (f" and {len(paths) - most} more" if len(paths) > most else "")


def _finite(variable):
    return bool(np.isfinite(_array(variable).astype(np.float32, copy=False)).all())


def _array(variable):
    return ops.convert_to_numpy(ops.copy(variable.value))


@contextlib.contextmanager
def _plain_conversions():
    """NumPy finds how Keras converts PyTorch's tensors and TensorFlow's variables old-fashioned; users need not."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
        yield


def _variables(model):
    optimizer = getattr(model, "optimizer", None)
    return [*model.variables, *(optimizer.variables if optimizer is not None else [])]
