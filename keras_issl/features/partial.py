"""A folder of features that are still being extracted, beside the file they will become; it survives a kill.

```
.features.npz.part/
    state.json       what the run is, and how many rows of it are on disk
    rows             the archive in the making: float32 (rows, D) after 192 bytes
    labels           int64 (rows,)
    lock             held while a process works in the folder
```
"""

import contextlib
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np

from keras_issl.features import files

_FORMAT = 1
_NAMES = ("state.json", "rows", "labels", "tmp.json", "tmp.parquet", "lock")


def check_out(out):
    """Holds the `out` of `extract_features` against what it may be, before anything is loaded or encoded.

    Args:
        out: the file to make.

    Returns:
        Its absolute path.

    Raises:
        ValueError: another ending than `.npz` and `.parquet`, or something that exists.
        ImportError: Parquet without pyarrow.

    Example:

    ```python
    keras_issl.features.check_out("features.npz")
    ```
    """
    out = Path(os.path.abspath(out))
    if out.suffix not in files.SUFFIXES:
        raise ValueError(f"`out` should end in {' or '.join(files.SUFFIXES)}. Received: {str(out)!r}.")
    if os.path.lexists(out):
        raise ValueError(f"`out` should not exist yet. Received: {str(out)!r}. Delete it, or choose another.")
    if out.suffix == ".parquet":
        files.pyarrow()
    return out


class PartialFeatures:
    """The rows recorded so far of features on their way to a file: a context, entered by one process at a time.

    Args:
        out: a path that `check_out` returned.
        run: what the run is: a dictionary that JSON can hold. Rows of another run are not continued.
        total: the number of rows there will be, to check that they fit on the disk; None if unknown.

    Attributes:
        rows: how many rows are there.
        dim: D, or None as long as there are none.
        mark: digest of the data read up to there, as `append` was told it.
    """

    SECONDS = 2.0  # between two records of what is there: what a kill can cost

    def __init__(self, out, run, total=None):
        self.out, self.total = out, total
        self.folder = out.parent / f".{out.name}.part"
        try:
            self.run = json.loads(json.dumps(run))
        except (TypeError, ValueError) as error:
            raise ValueError(f"`provenance` should hold what JSON can hold. Received: {error}.") from None
        self.rows, self.dim, self.mark = 0, None, None
        self._recorded = 0
        self._next_at = 0.0  # the first batch is recorded at once
        self._opened, self._files = contextlib.ExitStack(), []

    def __enter__(self):
        from filelock import FileLock, Timeout

        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{str(self.folder)!r} is a file where a folder of rows should be. Move it away.")
        self.folder.mkdir(exist_ok=True)
        self._lock = FileLock(self.folder / "lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise ValueError(
                f"Another process is at work on {str(self.out)!r}. Wait for it, or choose another `out`."
            ) from None
        try:
            check_out(self.out)  # again: another process may have finished since
            self._open()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, kind, error, trace):
        try:
            if self.rows > self._recorded:
                self._record()
        except OSError:
            if error is None:  # a full disk has been reported already
                raise
        finally:
            self._leave(remove=self.rows == 0)

    def _leave(self, remove=False):
        """Gives the folder back; removes it where it holds nothing to go on with."""
        with contextlib.suppress(OSError):  # of what could not be written before either
            self._opened.close()
        if remove:
            for name in _NAMES:
                with contextlib.suppress(OSError):
                    (self.folder / name).unlink(missing_ok=True)
        self._lock.release()
        if remove:
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    def _open(self):
        """Goes on behind the recorded rows, or begins."""
        others = {path.name for path in self.folder.iterdir()} - {*_NAMES}
        if others:
            raise ValueError(
                f"{str(self.folder)!r} holds something else than rows: {sorted(others)[:5]}. Move it away, or choose "
                "another `out`."
            )
        paths = [self.folder / name for name in ("rows", "labels")]
        begun = (self.folder / "state.json").exists() and paths[0].exists()
        if begun:
            self._read_state()
            sizes = [files.START + self.rows * self.dim * 4, self.rows * 8]
            if any(not path.exists() or path.stat().st_size < size for path, size in zip(paths, sizes, strict=True)):
                raise self._damaged("fewer rows than recorded")
            self._check_space()
        for path in paths:
            self._files.append(self._opened.enter_context(open(path, "r+b" if begun else "w+b")))  # noqa: SIM115
        # What lies behind the recorded rows is part of a batch, or the end of an archive.
        self._files[0].truncate(files.START + (self.rows * self.dim * 4 if begun else 0))
        self._files[1].truncate(self.rows * 8)
        for file in self._files:
            file.seek(0, os.SEEK_END)

    def _read_state(self):
        try:
            state = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
            run, self.rows, self.dim, self.mark = (state[name] for name in ("run", "rows", "dim", "mark"))
            counts = all(isinstance(number, int) and number > 0 for number in (self.rows, self.dim))
            whole = state["format"] == _FORMAT and counts and isinstance(run, dict)
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(f"{type(error).__name__}: {error}") from None
        if not whole:
            raise self._damaged("state.json of another version")
        self._recorded = self.rows
        changes = [
            f"{key}: {run.get(key)!r} there, {self.run.get(key)!r} now"
            for key in {**run, **self.run}
            if run.get(key) != self.run.get(key)
        ]
        if changes:
            raise ValueError(
                f"The {self.rows:,} rows in {str(self.folder)!r} are of another run and cannot be continued: "
                f"{'; '.join(changes)}. Ask for the same, delete that folder, or choose another `out`."
            )

    def _damaged(self, reason):
        return ValueError(
            f"The rows in {str(self.folder)!r} are damaged and cannot be continued ({reason}). Delete that folder to "
            "begin anew."
        )

    def disagree(self):
        """The error for images that are not those behind the recorded rows."""
        return ValueError(
            f"`data` should repeat the batches behind the {self.rows:,} rows in {str(self.folder)!r}. Received: other "
            "images, or the same in another order or other batches. Pass the same without shuffling, delete that "
            "folder, or choose another `out`."
        )

    def append(self, features, labels=None, mark=None):
        """Adds float32 (B, D) features and int64 (B,) labels, recorded every two seconds."""
        if self.dim is None:
            self.dim = features.shape[1]
            self._check_space()
        labels = np.full(len(features), -1) if labels is None else labels
        self._files[0].write(np.ascontiguousarray(features, "<f4"))
        self._files[1].write(np.ascontiguousarray(labels, "<i8"))
        self.rows, self.mark = self.rows + len(features), mark
        if time.monotonic() >= self._next_at:
            self._record()

    def _check_space(self):
        """Raises an `OSError` if the rest does not fit. Parquet needs the rows a second time."""
        if self.total is None:
            return
        size = files.START + self.total * self.dim * 4
        needed = size * (2 if self.out.suffix == ".parquet" else 1) + 16 * self.total - self.rows * self.dim * 4
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise OSError(
                f"`out` needs {needed / 1e9:,.2f} GB more for {self.total:,} x {self.dim:,} features, and "
                f"{free / 1e9:,.2f} GB are free in {str(self.out.parent)!r}. Make room, or choose another `out`."
            )

    def _record(self):
        """Brings what was appended to the disk, and only then says so in state.json."""
        for file in self._files:
            _sync(file)
        state = {"format": _FORMAT, "rows": self.rows, "dim": self.dim, "mark": self.mark, "run": self.run}
        with open(self.folder / "tmp.json", "w", encoding="utf-8") as file:
            json.dump(state, file)
            _sync(file)
        os.replace(self.folder / "tmp.json", self.folder / "state.json")
        self._recorded, self._next_at = self.rows, time.monotonic() + self.SECONDS

    def labels(self):
        """int64 (N,): the labels that were appended."""
        self._files[1].flush()
        return np.fromfile(self.folder / "labels", "<i8", self.rows)

    def finish(self, labels, provenance):
        """Makes the file, in bounded memory, whole or not at all. Leaving the context then removes the folder."""
        self._record()
        if self.out.suffix == ".npz":  # the rows stay where they are
            complete = self.folder / "rows"
            files.seal_npz(self._files[0], (self.rows, self.dim), labels, provenance)
            _sync(self._files[0])
        else:
            complete = self.folder / "tmp.parquet"
            array = np.memmap(self.folder / "rows", "<f4", "r", files.START, (self.rows, self.dim))
            with open(complete, "wb") as file:
                files.write_parquet(file, array, labels, provenance)
                _sync(file)
        self._opened.close()
        check_out(self.out)
        os.replace(complete, self.out)
        self.rows = 0  # nothing is left to go on with


def _sync(file):
    file.flush()
    os.fsync(file.fileno())
