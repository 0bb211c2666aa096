"""The folder of a run: who may work in it, and what it says of the run."""

import contextlib
import json
import os
import time
from pathlib import Path

import keras

from keras_issl import _backend, results
from keras_issl.zoo.layout import write_json


def _lock(file):
    """Takes an exclusive lock that the system releases when the process ends, however it ends."""
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


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
    occupied = folder.is_dir() and any(path.name != "lock" for path in folder.iterdir())
    if occupied and not resume:
        raise ValueError(
            f"`out` should be a new folder. Received: {str(folder)!r}, which exists. "
            "Choose another, or pass resume=True (--resume) to go on with the run in it."
        )
    if occupied and not (folder / "run.json").is_file():
        raise ValueError(f"`out` exists and holds no run, so it is left alone. Received: {str(folder)!r}")
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a+") as file:
        try:
            _lock(file)
        except OSError:
            raise ValueError(
                f"Another process is at work in {str(folder)!r}. Wait for it, or choose another `out`."
            ) from None
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


def finish(folder, **facts):
    """Adds to `run.json` how the run ended."""
    write_json(Path(folder) / "run.json", read_description(folder) | {"ended": facts})


def describe(folder, description, overrides, notes, **facts):
    """Writes run.json, or holds the run that is there against what is asked for now."""
    path = folder / "run.json"
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        changes = [
            f"{part}.{key}: {before[part].get(key)!r} there, {value!r} now"
            for part in ("recipe", "data")
            for key, value in description[part].items()
            if before[part].get(key) != value
        ]
        if changes:
            raise ValueError(
                f"The run in {str(folder)!r} was started otherwise, so it cannot be resumed: {'; '.join(changes)}. "
                "Ask for the same, or choose another `out`."
            )
        if "ended" in before:  # it goes on
            before["calls"] = [*before.get("calls", []), before.pop("ended")]
            write_json(path, before)
        return
    write_json(
        path,
        {
            **description,
            **facts,
            "overrides": overrides or {},
            "notes": list(notes),
            "versions": results.versions(),
            "hardware": results.hardware(),
            "backend": {"name": keras.config.backend(), "reason": _backend.REASON},
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        },
    )


def withdraw(folder):
    """Takes back what a run wrote that never finished a step; whatever holds something stays."""
    (folder / "run.json").unlink()
    history = folder / "history.csv"
    if history.exists() and not history.stat().st_size:
        history.unlink()
    (folder / "records.csv").unlink(missing_ok=True)  # a look at the encoder before its first step
    with contextlib.suppress(OSError):  # not empty
        (folder / "checkpoints").rmdir()


def cut_history(path, epochs):
    """Drops the lines of epochs that will be trained again."""
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        temporary = path.with_name("history.csv.tmp")
        temporary.write_text("".join(lines[: epochs + 1]) if epochs else "")
        os.replace(temporary, path)
