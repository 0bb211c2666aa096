"""The folder of a run: who may work in it, and what it says of the run."""

import contextlib
import json
import os
import platform
import re
import time
import warnings
from pathlib import Path

import keras

from keras_issl import _backend, results
from keras_issl.callbacks.checkpoint import differences, in_words
from keras_issl.callbacks.checkpoint_files import NoSpace, hold, is_full, listed, no_space
from keras_issl.files import write_json, write_text


@contextlib.contextmanager
def locked_folder(path, *, resume=False):
    """Opens a run folder for this process alone. A folder that it makes, and an error leaves empty, goes again.

    Args:
        path: The folder. It must not exist, or be empty, unless `resume` is true.
        resume: Whether to go on in an existing run folder.

    Yields:
        The folder, a `pathlib.Path`.

    Raises:
        ValueError: The folder exists and `resume` is false; or it holds something else than a run;
            or another process works in it.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`out` should be a folder. Received: {str(folder)!r}, which is a file.")
    # What a process leaves that was killed before run.json was there.
    nothing = re.compile(r"lock|\.run\.json\.\d+\.tmp")
    occupied = folder.is_dir() and any(not nothing.fullmatch(path.name) for path in folder.iterdir())
    if occupied and not resume:
        raise ValueError(
            f"`out` should be a new folder. Received: {str(folder)!r}, which exists. "
            "Choose another, or pass resume=True (--resume) to go on with the run in it."
        )
    if occupied and not (folder / "run.json").is_file():
        raise ValueError(f"`out` exists and holds no run, so it is left alone. Received: {str(folder)!r}")
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "lock", "a+", encoding="utf-8")  # noqa: SIM115  the next lines close it
    except OSError as error:
        raise ValueError(
            f"`out` should be a folder that can be written. Received: {str(folder)!r} ({error.strerror})."
        ) from None
    with file:
        try:
            hold(file)
        except BlockingIOError:  # the system releases it with the process: who holds it is alive
            file.seek(0)
            raise ValueError(
                f"Another process is at work in {str(folder)!r}: {file.read().strip() or 'its number is not known'}. "
                "Wait for it, or choose another `out`."
            ) from None
        except OSError as error:
            warnings.warn(
                f"The file system of {str(folder)!r} has no locks ({error.strerror}): see to it that no second run "
                "writes there.",
                stacklevel=3,
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        try:
            yield folder
        except BaseException:
            if made and [path.name for path in folder.iterdir()] == ["lock"]:
                with contextlib.suppress(OSError):  # Windows keeps a file that is open
                    (folder / "lock").unlink()
                    folder.rmdir()
            raise


def read_description(folder):
    """What `run.json` of a run folder says.

    Raises:
        ValueError: The folder holds no run.
    """
    path = Path(folder) / "run.json"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(folder)!r} should be a run folder, with a run.json in it. ({error})") from None
    if not isinstance(told, dict) or not {"recipe", "data"} <= told.keys():
        raise ValueError(f"{str(path)!r} should describe a run: its recipe and data. Received: {str(told)[:80]}")
    return told


def begin(folder, told, epochs):
    """Says in a run folder that the run goes on now, once nothing refuses it any more.

    Args:
        folder: The run folder.
        told: What `describe` returned.
        epochs: How many are done: lines of the history of later ones, which a kill lets be trained again, are cut off.
    """
    told = dict(told)
    if "ended" in told:
        told["calls"] = [*told.get("calls", []), told.pop("ended")]
    if told != read_description(folder):
        write_json(folder / "run.json", told)
    _cut_history(folder / "history.csv", epochs)


def finish(folder, **facts):
    """Adds to `run.json` how the run ended."""
    write_json(Path(folder) / "run.json", read_description(folder) | {"ended": facts})


def describe(folder, description, overrides, notes, *, force=False, **facts):
    """Writes run.json of a new run, or holds the run that is there against what is asked for now.

    Returns:
        What run.json is to say once the run goes on, for `begin`; with `force` what differs is part of it.
    """
    path = folder / "run.json"
    if path.is_file():
        before = read_description(folder)
        now = description | {"versions": results.versions()}
        changes = differences({part: before.get(part) or {} for part in now}, now)
        if changes and not force:
            raise ValueError(
                f"The run in {str(folder)!r} was started otherwise, so it cannot be resumed: {in_words(changes)}. "
                "Ask for the same, choose another `out`, or pass force=True (--force), which records the changes."
            )
        if changes:
            when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            before |= now | {name: value for name, value in facts.items() if value is not None}
            before |= {"forced": [*before.get("forced", []), {"time": when, "changes": changes}]}
        return before
    told = {
        **description,
        **facts,
        "overrides": overrides or {},
        "notes": list(notes),
        "versions": results.versions(),
        "hardware": results.hardware(),
        "backend": {"name": keras.config.backend(), "reason": _backend.REASON},
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_json(path, told)
    return read_description(folder)


def withdraw(folder):
    """Takes back what a run wrote that never finished a step; whatever holds something stays."""
    (folder / "run.json").unlink()
    history = folder / "history.csv"
    if history.exists() and not history.stat().st_size:
        history.unlink()
    (folder / "records.csv").unlink(missing_ok=True)  # a look at the encoder before its first step
    (folder / "checkpoints" / "lock").unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty
        (folder / "checkpoints").rmdir()


@contextlib.contextmanager
def tells_of_space(folder):
    """Turns any failure to write, because the disk is full, into one that says what is whole and how to go on."""
    try:
        yield
    except OSError as error:
        if not is_full(error) or isinstance(error, NoSpace):
            raise
        kept = folder / "checkpoints"
        raise no_space(kept if kept.is_dir() else folder) from error


def checkpoints(folder):
    """(step, path) of every checkpoint of a run, oldest first."""
    return listed(Path(folder) / "checkpoints")


def _cut_history(path, epochs):
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        write_text(path, "".join(lines[: epochs + 1]) if epochs else "")
