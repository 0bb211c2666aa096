"""What the hardware and the backend want."""

import contextlib
import re

import keras
import numpy as np


def has_accelerator():
    """Whether the active backend sees a GPU, a TPU or another device beside the CPU.

    Returns:
        A boolean. The backend is asked anew at each call: devices may be hidden after the import.
    """
    backend = keras.config.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return any(device.device_type != "CPU" for device in tf.config.get_visible_devices())
    if backend == "torch":
        import torch

        return torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available()
    import jax

    return any(device.platform != "cpu" for device in jax.devices())


@contextlib.contextmanager
def dtype_scope(policy):
    """Makes `policy` the global dtype policy within a `with` block, and puts the former one back.

    Args:
        policy: A dtype policy or its name, such as `"mixed_bfloat16"`.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def prefetches():
    """Whether `fit` makes the batches of a `PyDataset` ahead, in a thread of its own; elsewhere steps wait for them.

    Example:

    >>> isinstance(keras_issl.distribution.prefetches(), bool)
    True
    """
    return keras.config.backend() == "tensorflow"


def jit_compile_default():
    """The value of `jit_compile` that suits the backend and the device at hand.

    Returns:
        `False` for TensorFlow on a CPU, whose XLA convolutions of small images are 10 to 50 times slower than
        TensorFlow's own; `"auto"` (Keras decides) everywhere else.
    """
    return False if keras.config.backend() == "tensorflow" and not has_accelerator() else "auto"


def host_array(variable):
    """The value of a variable as a NumPy array; without a copy where the host's memory holds it, so not to be kept.

    Example:

    >>> keras_issl.distribution.host_array(keras.Variable([1.0, 2.0])).tolist()
    [1.0, 2.0]
    """
    backend = keras.config.backend()
    if backend == "torch" and str(variable.value.dtype) != "torch.bfloat16":  # which NumPy does not know
        return variable.value.detach().cpu().numpy()
    if backend == "tensorflow":
        return np.asarray(keras.ops.copy(variable.value))  # a plain tensor, also of a mirrored variable
    return np.asarray(variable.value) if backend == "jax" else keras.ops.convert_to_numpy(variable.value)


def as_int(variable):
    """The value of a scalar variable as a Python integer, also of one that lives on several devices.

    Example:

    >>> keras_issl.distribution.as_int(keras.Variable(3, trainable=False, dtype="int32"))
    3
    """
    return int(keras.ops.copy(variable.value))  # a plain tensor, also of a mirrored variable


def gradients(function, variables):
    """Gradients of a scalar with respect to variables, outside of any compiled step.

    Args:
        function: A function of no arguments that returns a scalar tensor.
        variables: Keras variables of floating-point numbers.

    Returns:
        A list of tensors, one a variable; `None` where the scalar does not depend on it (on JAX: zeros).

    Example:

    >>> gradients = keras_issl.distribution.gradients(
    ...     lambda: keras.ops.sum(encoder(images[:2], training=True)), encoder.trainable_variables
    ... )
    """
    backend = keras.config.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value = function()
        return tape.gradient(value, [v.value for v in variables])
    if backend == "torch":
        import torch

        with torch.enable_grad():
            return list(torch.autograd.grad(function(), [v.value for v in variables], allow_unused=True))
    import jax

    def of_values(values):
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return function()

    return jax.grad(of_values)([v.value for v in variables])


_NO_MEMORY = re.compile(
    r"out of memory|RESOURCE_EXHAUSTED|OOM when allocating|can't allocate memory|unable to allocate|failed to allocate"
    r"|bad_alloc",
    re.IGNORECASE,
)


def is_out_of_memory(error):
    """Whether an error says that memory, of the host or of a device, did not suffice; each backend says it otherwise.

    Args:
        error: An exception.

    Example:

    >>> keras_issl.distribution.is_out_of_memory(MemoryError())
    True
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"MemoryError", "OutOfMemoryError", "ResourceExhaustedError"}:
        return True
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None
