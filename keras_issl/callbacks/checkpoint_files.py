"""The files of a run's checkpoints: one each, whole or not there, and known to be what was written.

A file is an `.npz` archive: the arrays `000000`, `000001`, ... and `about`, JSON. Its name holds the step and the start
of its SHA-256, `step_00001200-3fa9c1d2e4b5a697.npz`, so that a file that is cut off, changed or under another's name
is told from the one that was written. It appears under that name once all of it is on the disk.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np

_NAME = re.compile(r"step_(\d{8,})-([0-9a-f]{16})\.npz")
_ABOUT = "about"
_FORMAT = 1
_FULL = (errno.ENOSPC, errno.EDQUOT) if hasattr(errno, "EDQUOT") else (errno.ENOSPC,)
MARGIN = 1 << 20  # bytes beside the arrays that a file system may want


class BrokenCheckpoint(ValueError):
    """A file that is not the checkpoint it should be."""


class OtherFormat(ValueError):
    """A checkpoint of another version of the library."""


class NoSpace(OSError):
    """The disk is full; the message says how much is needed, and what is still whole."""

    def __str__(self):
        return self.strerror


@dataclasses.dataclass
class Saved:
    """A run at one moment.

    Attributes:
        step: Finished training steps.
        epoch: The epoch it is in, from 0.
        batch: How many batches of it are done.
        arrays: Values of all variables, in order.
        about: What else was written: `variables` (names), `facts` (what the run is), `states` (of callbacks).
    """

    step: int
    epoch: int
    batch: int
    arrays: list
    about: dict


def hold(file):
    """Takes an exclusive lock on an open file; the system releases it when the process ends, however it ends.

    Raises:
        BlockingIOError: Another holds it, and is alive.
        OSError: The file system has no locks.
    """
    if os.name == "nt":
        import msvcrt

        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(str(error)) from None
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def listed(folder):
    """(step, path) of the checkpoints in a folder, oldest first."""
    folder = Path(folder)
    found = ((_NAME.fullmatch(path.name), path) for path in (folder.iterdir() if folder.is_dir() else ()))
    return sorted((int(match[1]), path) for match, path in found if match)


def write(folder, saved):
    """Writes a checkpoint; nothing that is there changes before all of it is on the disk.

    Args:
        folder: A folder that exists.
        saved: A `Saved`.

    Returns:
        The path.

    Raises:
        NoSpace: It does not fit on the disk.
        OSError: It cannot be written for another reason.
    """
    folder, needed = Path(folder), size_of(saved.arrays)
    temporary = folder / f"tmp_{os.getpid()}.npz"
    try:
        check_space(folder, needed)
        with open(temporary, "wb") as file:
            about = {"format": _FORMAT, "step": saved.step, "epoch": saved.epoch, "batch": saved.batch, **saved.about}
            about["dtypes"] = [array.dtype.name for array in saved.arrays]
            with zipfile.ZipFile(file, "w") as archive:
                for number, array in enumerate(saved.arrays):
                    _add(archive, f"{number:06d}", _plain(array))
                _add(archive, _ABOUT, np.frombuffer(json.dumps(about).encode(), np.uint8))
            file.flush()
            os.fsync(file.fileno())
        path = folder / f"step_{saved.step:08d}-{_digest(temporary)}.npz"
        os.replace(temporary, path)
        _sync(folder)
        return path
    except OSError as error:
        if isinstance(error, NoSpace) or error.errno not in _FULL:
            raise
        raise _no_space(folder, needed) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def read(path):
    """Reads a checkpoint.

    Returns:
        A `Saved`.

    Raises:
        BrokenCheckpoint: The file is not what was written under that name.
        OtherFormat: Another version of the library wrote it.
        PermissionError: It may not be read.
    """
    path = Path(path)
    match = _NAME.fullmatch(path.name)
    try:
        if match is None or _digest(path) != match[2]:
            raise BrokenCheckpoint(f"{path.name} is cut off or was changed: its SHA-256 is not that of its name")
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(file[_ABOUT].tobytes())
            if about["format"] != _FORMAT:  # sound, and not ours to set aside
                raise OtherFormat(
                    f"`folder` should hold checkpoints of format {_FORMAT}. Received: {str(path)!r}, of format "
                    f"{about['format']}. Go on with the version of keras_issl that wrote it, {_version(about)}."
                )
            arrays = [_typed(file[f"{number:06d}"], name) for number, name in enumerate(about["dtypes"])]
        if about["step"] != int(match[1]):
            raise BrokenCheckpoint(f"{path.name} holds step {about['step']}")
        return Saved(about["step"], about["epoch"], about["batch"], arrays, about)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, BrokenCheckpoint | OtherFormat | PermissionError):
            raise
        raise BrokenCheckpoint(f"{path.name} cannot be read: {type(error).__name__}: {error}") from error


def newest(folder, say=None):
    """The newest checkpoint that can be read.

    Args:
        folder: Where to look.
        say: Called with a sentence if there was a broken one; newer ones that are broken are then set aside, under
            `broken_...`. `None`: nothing is changed, as while another process writes there.

    Returns:
        A `Saved`, or `None` where there is none.

    Raises:
        BrokenCheckpoint: There are checkpoints, and none can be read.
    """
    reasons = []
    for _, path in reversed(listed(folder)):
        try:
            saved = read(path)
        except BrokenCheckpoint as error:
            reasons.append((path, str(error)))
            continue
        if reasons and say is not None:
            for broken, _ in reasons:
                os.replace(broken, broken.with_name(f"broken_{broken.name}"))
            names = "; ".join(reason for _, reason in reasons)
            say(f"{names}. Kept as broken_...; the run goes on from step {saved.step}, the checkpoint before.")
        return saved
    if reasons and say is None and [path for _, path in listed(folder)] != [path for path, _ in reversed(reasons)]:
        return newest(folder)  # they were replaced by newer ones meanwhile
    if reasons:
        raise BrokenCheckpoint(
            f"No checkpoint in {str(folder)!r} can be read: {'; '.join(reason for _, reason in reasons)}. Copy a sound "
            "one back, or move the folder away to begin anew."
        )
    return None


def clean(folder):
    """Removes what a process left that was killed while it wrote."""
    for left in Path(folder).glob("tmp_*.npz"):
        left.unlink(missing_ok=True)


def keep(folder, count):
    """Removes all but the newest `count` checkpoints."""
    for _, path in listed(folder)[:-count]:
        path.unlink(missing_ok=True)


def size_of(arrays):
    """Bytes of a checkpoint of these arrays, about."""
    return sum(array.nbytes for array in arrays) + MARGIN


def check_space(folder, needed):
    """Raises `NoSpace` where so many bytes do not fit on the disk."""
    if shutil.disk_usage(folder).free < needed:
        raise _no_space(folder, needed)


def is_full(error):
    """Whether an error says that the disk is full."""
    return isinstance(error, OSError) and error.errno in _FULL


def _no_space(folder, needed):
    return no_space(folder, f"for a checkpoint, which takes {_bytes(needed)}, ")


def no_space(folder, what=""):
    """A `NoSpace` that says what is free, and which of the checkpoints in a folder is whole."""
    whole = listed(folder)
    kept = f"The checkpoint of step {whole[-1][0]} is whole" if whole else "There is no checkpoint yet"
    free = _bytes(shutil.disk_usage(folder).free)
    return NoSpace(
        errno.ENOSPC,
        f"No space left {what}in {str(folder)!r}: {free} are free. {kept}. Make room and resume the run.",
    )


def _bytes(count):
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _add(archive, name, array):
    """As `numpy.savez` does it, which copies every array on its way, in parts: new memory costs more than writing."""
    array = np.ascontiguousarray(array).reshape(array.shape)  # it makes one axis of none
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, np.lib.format.header_data_from_array_1_0(array))
        member.write(array.reshape(-1).view(np.uint8))


def _plain(array):
    """As NumPy's own files hold it: its types know nothing of bfloat16."""
    array = np.asarray(array)
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "V" else array


def _typed(array, name):
    if array.dtype.name == name:
        return array
    import ml_dtypes  # of Keras's own requirements, for bfloat16 and float8

    return array.view(getattr(ml_dtypes, name))


def _version(about):
    return about.get("facts", {}).get("versions", {}).get("keras_issl", "not known")


def _digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _sync(folder):
    """Makes the folder's list of files last through a power cut, where the system can."""
    with contextlib.suppress(OSError, AttributeError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
