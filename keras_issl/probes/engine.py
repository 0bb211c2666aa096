"""Where a probe's matrix products run: NumPy on a CPU, the Keras backend on an accelerator. One code for both."""

import keras
import numpy as np

from keras_issl import distribution

ENGINES = ("auto", "numpy", "keras")


class Engine:
    """An array library with NumPy's names, and the way into it and back.

    Attributes:
        name: `"numpy"` or `"keras"`.
        ops: the module: `numpy` or `keras.ops`. Use only functions that both have under one name.
        precise: the widest float type that it computes in, `"float64"` or `"float32"`.

    Example:

    ```python
    engine, x = choose("numpy"), np.eye(3)
    gram = engine.ops.matmul(engine.put(x.T), engine.put(x))
    engine.get(gram)  # a NumPy array
    ```
    """

    def __init__(self, name):
        self.name = name
        self.ops = np if name == "numpy" else keras.ops
        self.precise = "float64" if name == "numpy" else "float32"

    def put(self, array, dtype="float32"):
        """The engine's array of a NumPy array, on its device."""
        array = np.ascontiguousarray(array, dtype)
        return array if self.ops is np else keras.ops.convert_to_tensor(array)

    def get(self, array):
        """The NumPy array of one of the engine's."""
        return np.asarray(array) if self.ops is np else keras.ops.convert_to_numpy(array)


def choose(name="auto"):
    """The engine of that name.

    Args:
        name: `"numpy"`; `"keras"`, the active Keras backend; or `"auto"`: Keras where its backend sees an accelerator,
            else NumPy, which is faster on a CPU and has double precision.

    Raises:
        ValueError: another name.
    """
    if name not in ENGINES:
        raise ValueError(f"`engine` should be one of {ENGINES}. Received: {name!r}.")
    if name == "auto":
        name = "keras" if distribution.has_accelerator() else "numpy"
    return Engine(name)
