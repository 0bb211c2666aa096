"""Chooses the Keras backend before Keras is first imported.

``KERAS_BACKEND`` decides when it is set. Otherwise the choice follows what is installed, not what
``keras.json`` says: Keras writes its own default into that file, so it is no one's decision.
"""

import importlib.util
import os
import sys
from pathlib import Path

BACKENDS = {"tensorflow": "tensorflow", "torch": "torch", "jax": "jax"}  # name -> module it needs
# Convolutional training on XLA:CPU is about ten times slower than on TensorFlow or torch.
CPU_ORDER = ("tensorflow", "torch", "jax")
ACCELERATOR_ORDER = ("jax", "torch", "tensorflow")
EXTRAS = 'pip install "keras_issl[tensorflow]" (or [torch], or [jax])'


def _installed(module):
    return importlib.util.find_spec(module) is not None


def _jax_accelerator():
    """Whether JAX could drive an accelerator here: a plugin is installed and a device file exists."""
    plugins = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin", "libtpu")
    devices = ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0", "/dev/kfd")
    return any(map(_installed, plugins)) and any(Path(d).exists() for d in devices)


def choose(environment=os.environ):
    """Sets ``KERAS_BACKEND`` when it is unset and Keras is not imported yet.

    Returns:
        A pair of strings: the backend's name, and the reason for it in one clause.

    Raises:
        ValueError: `KERAS_BACKEND` names no backend that this library runs on.
        ImportError: the wanted backend, or any at all, is not installed.
    """
    if "keras" in sys.modules:
        return sys.modules["keras"].config.backend(), "Keras was imported before keras_issl"
    named = environment.get("KERAS_BACKEND")
    if named:
        if named not in BACKENDS:
            raise ValueError(
                f"`KERAS_BACKEND` should be one of {sorted(BACKENDS)}. Received: {named!r}. "
                "Set it to one of these, or unset it to let keras_issl choose."
            )
        if not _installed(BACKENDS[named]):
            raise ImportError(
                f"`KERAS_BACKEND` is {named!r}, but {BACKENDS[named]} is not installed. "
                f'Install it with pip install "keras_issl[{named}]", or unset KERAS_BACKEND.'
            )
        return named, "KERAS_BACKEND is set"
    if _jax_accelerator() and _installed("jax"):
        order, why = ACCELERATOR_ORDER, "an accelerator that JAX can use is present"
    else:
        order, why = CPU_ORDER, "no accelerator plugin of JAX is present"
    found = [name for name in order if _installed(BACKENDS[name])]
    if not found:
        raise ImportError(
            f"keras_issl needs a Keras backend, and none of {', '.join(BACKENDS.values())} is installed. "
            f"Install one with {EXTRAS}."
        )
    environment["KERAS_BACKEND"] = found[0]
    return found[0], f"first installed of {', '.join(order)}: {why}"


NAME, REASON = choose()
