"""Where downloaded and converted presets are kept, and the lock that lets one process at a time write there."""

import contextlib
import os
from pathlib import Path

from filelock import FileLock  # huggingface-hub brings it


def cache_folder():
    """The folder of converted presets and unfinished downloads.

    `KERAS_ISSL_HOME` if that is set, else `keras_issl` in `XDG_CACHE_HOME` or `~/.cache`.

    Returns:
        A `pathlib.Path`; it may not exist yet.
    """
    if home := os.environ.get("KERAS_ISSL_HOME"):
        return Path(home).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "keras_issl"


def cached_preset(name):
    """The folder that the built-in preset `name` is kept in once it has been converted."""
    return cache_folder() / "presets" / name


def is_offline():
    """Whether `HF_HUB_OFFLINE` forbids the network, as it does to every Hugging Face library."""
    return os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in ("1", "ON", "YES", "TRUE")


@contextlib.contextmanager
def locked(name):
    """Holds the lock of the cache entry `name`; another process that wants it waits.

    The system releases it when the process ends, however it ends.
    """
    folder = cache_folder() / "locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            error.errno,
            f"The cache {cache_folder()} cannot be written ({error.strerror}). Set KERAS_ISSL_HOME to another folder",
        ) from error
    with FileLock(folder / f"{name}.lock"):
        yield
