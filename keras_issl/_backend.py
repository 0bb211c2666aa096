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
DEVICES = ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0", "/dev/kfd")  # files of GPUs and TPUs
JAX_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin", "libtpu")
EXTRAS = 'pip install "keras_issl[tensorflow]" (or [torch], or [jax])'


COMMAND = Path(sys.argv[0]).stem == "keras-issl"  # whether this process is the command line's


def _installed(module):
    return importlib.util.find_spec(module) is not None


def choose(environment=os.environ):
    """Sets ``KERAS_BACKEND`` when it is unset and Keras is not imported yet.

    Returns:
        A pair of strings: the backend's name, and the reason for it in one clause.

    Raises:
        ValueError: `KERAS_BACKEND` names no backend that this library runs on.
        ImportError: the wanted backend, or any at all, is not installed.
    """
    if "keras" in sys.modules:
        name = sys.modules["keras"].config.backend()
        if name not in BACKENDS:
            raise ValueError(
                f"The Keras backend should be one of {sorted(BACKENDS)}. Received: {name!r}, with which Keras was "
                "imported before keras_issl. Set KERAS_BACKEND, or import keras_issl first."
            )
        return name, "Keras was imported before keras_issl"
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
    if not any(Path(device).exists() for device in DEVICES):
        order, why = CPU_ORDER, "there is no accelerator"
    elif any(map(_installed, JAX_PLUGINS)):
        order, why = ("jax", "torch", "tensorflow"), "there is an accelerator, and JAX has a plugin for one"
    else:
        order, why = ("torch", "tensorflow", "jax"), "there is an accelerator, for which JAX has no plugin"
    found = [name for name in order if _installed(BACKENDS[name])]
    if not found:
        raise ImportError(
            f"keras_issl needs a Keras backend, and none of {', '.join(BACKENDS.values())} is installed. "
            f"Install one with {EXTRAS}."
        )
    environment["KERAS_BACKEND"] = found[0]
    return found[0], f"first installed of {', '.join(order)}: {why}"


try:
    NAME, REASON = choose()
except (ImportError, ValueError) as error:
    if COMMAND:  # at a shell prompt one line says more than a traceback
        raise SystemExit(f"keras-issl: {error}") from None
    raise
if COMMAND:  # TensorFlow's start-up notes would bury the first lines
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
