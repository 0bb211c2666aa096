"""What computes here: versions and hardware, without names of machines or places."""

import contextlib
import os
import platform
import re
import sys
from pathlib import Path

import keras
import numpy as np
import PIL

from keras_issl import distribution


def versions():
    """Versions of what computes here.

    Returns:
        A dict: `backend`, its name, and the versions of `keras_issl`, `keras`, the backend, `numpy`, `pillow` (which
        decodes images) and `python`.

    Example:

    >>> keras_issl.results.versions()["keras"] == keras.__version__
    True
    """
    from keras_issl import __version__

    backend = keras.config.backend()
    # Keras has imported its backend: there is no need to import it here.
    found = {"keras_issl": __version__, "keras": keras.__version__, "backend": backend}
    found |= {backend: str(getattr(sys.modules.get(backend), "__version__", "unknown"))}
    return found | {"numpy": np.__version__, "pillow": PIL.__version__, "python": platform.python_version()}


def hardware():
    """What computed a result, without names of machines.

    Returns:
        A dict: `cpu`, its model; `cores`, how many this process may use; `accelerators`, a list such as `["gpu:0"]`.

    Example:

    >>> sorted(keras_issl.results.hardware())
    ['accelerators', 'cores', 'cpu']
    """
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        model = found[1].strip() if found else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    accelerators = []
    if distribution.has_accelerator():
        try:
            accelerators = keras.distribution.list_devices()
        except (AttributeError, NotImplementedError):  # Keras lists no devices of PyTorch
            accelerators = ["accelerator"]
    return {"cpu": model, "cores": cores, "accelerators": accelerators}
