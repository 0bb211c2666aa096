"""What the checks share."""

import keras
import numpy as np
from keras import ops


def as_numpy(x):
    """A tensor or variable as an array."""
    return ops.convert_to_numpy(x)


def is_count(value):
    """Whether a value is a positive integer."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def require(condition, message):
    """Raises an `AssertionError` with the message unless the condition holds."""
    if not condition:
        raise AssertionError(message)


def values(layer):
    """The weights of a layer as arrays of their own; metrics and random states are not among them."""
    return [np.array(as_numpy(w)) for w in layer.weights]


def require_still(layer, before, what, way_out):
    """Requires that the weights of a layer are what `values` gave before."""
    moved = [w.path for w, b in zip(layer.weights, before, strict=True) if not np.array_equal(as_numpy(w), b)]
    require(not moved, f"{what} moved {moved}; {way_out}")


def copy_of(member, policy):
    """A layer of the same config and another dtype policy, not built."""
    config = member.get_config() | {"dtype": policy}
    config.pop("name", None)
    return type(member).from_config(config)


def round_trip(member):
    """Requires that a layer or model survives its own config."""
    name, config = type(member).__name__, keras.saving.serialize_keras_object(member)
    try:
        again = keras.saving.deserialize_keras_object(config)
    except Exception as error:
        raise AssertionError(
            f"{name} cannot be made again from its config: {error} Register the class with "
            "@keras.saving.register_keras_serializable(package=...)."
        ) from error
    require(
        type(again) is type(member) and again.get_config() == member.get_config(),
        f"{name} does not survive get_config and from_config: the copy, a {type(again).__name__}, has another config. "
        "Register the class, and return every argument of its constructor from get_config.",
    )
