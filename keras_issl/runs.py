"""A run folder: what was asked for, what happened, and the encoder that came of it.

```
run.json         recipe, what was overridden and what followed, data fingerprint, versions
history.csv      one line an epoch
curves.png       the same as a picture
checkpoints/     the last two epochs: weights, optimizer, random states
preset/          the encoder and its objective, for `from_preset`
lock             held while a process works in the folder
```
"""

import contextlib
import dataclasses
import json
import os
import platform
import re
import sys
import time
import warnings
from pathlib import Path

import keras

from keras_issl import _backend, callbacks, recipes, report, zoo
from keras_issl.zoo.layout import write_json

KEPT_CHECKPOINTS = 2


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


class _Checkpoint(keras.callbacks.Callback):
    """Saves weights, optimizer and random states at the end of each epoch, through a temporary file."""

    COST = 0.02  # share of the time that may go into checkpoints; the first epoch always ends in one

    def __init__(self, folder):
        super().__init__()
        self.folder = folder / "checkpoints"
        self.folder.mkdir(exist_ok=True)
        for left in self.folder.glob("tmp_*"):  # by a process that was killed while it wrote
            left.unlink()
        self.next_at, self.finished, self.saved, self.stepped = 0.0, None, None, False

    def on_train_batch_end(self, batch, logs=None):
        self.stepped = True

    def on_epoch_end(self, epoch, logs=None):
        if self.model.stop_training:  # stopped within the epoch: what was finished is the epoch before
            return
        self.finished = epoch + 1
        if time.monotonic() >= self.next_at:
            self.save()

    def save(self):
        """Writes the checkpoint of the last finished epoch and removes the oldest ones."""
        began = time.monotonic()
        path = self.folder / f"epoch_{self.finished:05d}.weights.h5"
        temporary = self.folder / f"tmp_{path.name}"
        self.model.save_weights(temporary)
        os.replace(temporary, path)
        self.saved = self.finished
        self.next_at = time.monotonic() + (time.monotonic() - began) / self.COST
        for old in checkpoints(self.folder.parent)[:-KEPT_CHECKPOINTS]:
            old[1].unlink()


def checkpoints(folder):
    """(finished epochs, path) of every checkpoint of a run, oldest first."""
    found = []
    for path in Path(folder, "checkpoints").glob("epoch_*.weights.h5"):
        match = re.fullmatch(r"epoch_(\d+)\.weights\.h5", path.name)
        if match:
            found.append((int(match[1]), path))
    return sorted(found)


class _Progress(keras.callbacks.Callback):
    """Progress over the whole run: a bar on a terminal, a dozen plain lines in a file or pipe."""

    FIRST = ("marginal_entropy", "marginal_entropy_bound", "effective_classes", "alignment")
    MOST = 3  # logs beside the loss

    def __init__(self, epochs, initial_epoch, log_names):
        super().__init__()
        self.epochs, self.initial_epoch, self.every = epochs, initial_epoch, max(1, epochs // 10)
        order = [*(name for name in self.FIRST if name in log_names), *log_names]
        self.shown = ("loss", *list(dict.fromkeys(order))[: self.MOST])
        self.bar = None
        if sys.stdout.isatty():
            self.bar = keras.utils.Progbar(None, unit_name="step", stateful_metrics=self.shown, width=20)
        self.began = time.monotonic()

    def on_train_begin(self, logs=None):
        if self.bar is not None:
            self.steps = self.params["steps"]
            self.bar.target = (self.epochs - self.initial_epoch) * self.steps

    def on_train_batch_end(self, batch, logs=None):
        if self.bar is not None:
            self.bar.update((self.done - self.initial_epoch) * self.steps + batch + 1, finalize=False)

    def on_epoch_begin(self, epoch, logs=None):
        self.done = epoch

    def on_epoch_end(self, epoch, logs=None):
        done, values = epoch + 1, [(name, float(logs[name])) for name in self.shown if name in (logs or {})]
        if self.bar is not None:
            self.bar.update((done - self.initial_epoch) * self.steps, values, finalize=done == self.epochs)
        elif done % self.every == 0 or done in (self.initial_epoch + 1, self.epochs):
            left = (time.monotonic() - self.began) / (done - self.initial_epoch) * (self.epochs - done)
            parts = [f"{name.replace('_', ' ')} {value:.3f}" for name, value in values]
            sys.stdout.write(f"  epoch {done}/{self.epochs}, {left:.0f} s left: {', '.join(parts)}\n")
            sys.stdout.flush()


@dataclasses.dataclass
class Result:
    """What `pretrain` returns.

    Attributes:
        model: The trained `Pretrainer`; `model.encoder` is the encoder.
        folder: The run folder.
        history: A dict of lists, one value an epoch, over the whole run.
        finished_epochs: How many epochs were trained.
        stopped_by: The signal that ended the run early, or `None`.
        seconds: Wall time of this call's training.
    """

    model: keras.Model
    folder: Path
    history: dict
    finished_epochs: int
    stopped_by: str | None
    seconds: float


def pretrain(recipe, data, out, *, resume=False, overrides=None, notes=(), verbose=True):
    """Pre-trains an encoder into a run folder.

    Ctrl-C and SIGTERM finish the batch, save what there is and return. Checkpoints are written at the ends of
    epochs, as often as costs at most 2 % of the time.

    Args:
        recipe: A `recipes.Recipe`; `recipes.fit_to_images` fits it to few images, and its notes go on record.
        data: An `ImageDataset`.
        out: The run folder; see `locked_folder`.
        resume: Whether to go on from the last checkpoint of an existing run with the same recipe and data.
        overrides: A dict of what the user changed in the recipe, for the record; it is taken as it is.
        notes: Sentences on what followed from that, as `recipes.override` returns them, for the record.
        verbose: Whether to show a progress bar.

    Returns:
        A `Result`.

    Raises:
        ValueError: The recipe is for images of another size, or `fit` refuses it; the folder is occupied; or,
            resuming, it holds a run of another recipe or of other data. A new run that fails before its first step
            leaves the folder free.
        FloatingPointError: The loss became NaN or infinite.

    Example:

    >>> data = keras_issl.datasets.load("digits").take(256)
    >>> result = pretrain(recipes.digits("dissl", epochs=1), data, "runs/try", verbose=False)
    """
    check_size(recipe, data)
    recipe, fitted = recipes.fit_to_images(recipe, len(data), overrides or ())
    recipes.check(recipe, len(data))  # what cannot be built or trained leaves no folder
    with locked_folder(out, resume=resume) as folder:
        description = {
            "recipe": json.loads(json.dumps(dataclasses.asdict(recipe))),
            "data": {"name": data.name, "fingerprint": data.fingerprint, "images": len(data)},
        }
        zoo.saving.check_folder(folder / "preset", overwrite=True)
        model = recipes.build(recipe, len(data), fit=False)
        new = not (folder / "run.json").exists()
        _describe(folder, description, overrides, [*notes, *(note for note in fitted if note not in notes)])
        start = 0
        for epoch, path in checkpoints(folder)[-1:]:
            model.optimizer.build(model.trainable_variables)
            model.load_weights(path)
            start = epoch
        _cut_history(folder / "history.csv", start)

        stop, checkpoint = callbacks.StopOnSignal(), _Checkpoint(folder)
        log = keras.callbacks.CSVLogger(folder / "history.csv", append=start > 0)
        watching = [stop, checkpoint, log]
        watching += [_Progress(recipe.epochs, start, model.objective.log_names)] if verbose else []
        began = time.monotonic()
        if start < recipe.epochs:
            try:
                with warnings.catch_warnings():  # the recipe's batch size is on record
                    warnings.filterwarnings("ignore", message=".*incomplete last batch")
                    model.fit(
                        data,
                        batch_size=min(recipe.batch_size, len(data)),
                        epochs=recipe.epochs,
                        initial_epoch=start,
                        callbacks=watching,
                        verbose=0,
                    )
            except BaseException:
                log.on_train_end()  # closes the file
                if new and not checkpoint.stepped:
                    _withdraw(folder)
                raise
            finally:
                stop.restore()
        seconds = time.monotonic() - began
        finished = max(start, checkpoint.finished or 0)
        if checkpoint.finished != checkpoint.saved and stop.received is None:
            checkpoint.save()
        history = report.read_history(folder / "history.csv") if (folder / "history.csv").exists() else {}
        if history:
            report.curves(history, folder / "curves.png", title=f"{recipe.objective}, {data.name}")
        zoo.save_preset(
            model.encoder,
            folder / "preset",
            name=folder.resolve().name,
            objective=model.objective,
            recipe=description["recipe"],
            metadata={"preprocessing": recipe.preprocessing} if recipe.preprocessing else None,
            provenance={**description["data"], "finished_epochs": finished, "stopped_by": stop.received},
            overwrite=(folder / "preset").exists(),
        )
    return Result(model, folder, history, finished, stop.received, seconds)


def check_size(recipe, data):
    """Raises a `ValueError` unless the images are stored at the size that the recipe is for.

    Args:
        recipe: A `recipes.Recipe`.
        data: An `ImageDataset`.
    """
    side, (height, width) = recipe.image_size, data.image_shape[:2]
    if side is None or (height, width) == (side, side):
        return
    raise ValueError(
        f"`data` should be stored at {side}x{side} pixels for the recipe {recipe.name or recipe.objective!r}. "
        f"Received: {data.name} at {height}x{width}. Load it with `datasets.load(..., image_size={side})`; or change "
        "the recipe: `image_size`, and with it `augmentation_args.size` and `encoder_args.image_size`."
    )


def _describe(folder, description, overrides, notes):
    """Writes run.json, or holds the run that is there against what is asked for now."""
    from keras_issl import __version__

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
        return
    versions = {"keras_issl": __version__, "keras": keras.__version__, "python": platform.python_version()}
    write_json(
        path,
        {
            **description,
            "overrides": overrides or {},
            "notes": list(notes),
            "versions": versions,
            "backend": {"name": keras.config.backend(), "reason": _backend.REASON},
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        },
    )


def _withdraw(folder):
    """Takes back what a run wrote that never finished a step; whatever holds something stays."""
    (folder / "run.json").unlink()
    history = folder / "history.csv"
    if history.exists() and not history.stat().st_size:
        history.unlink()
    with contextlib.suppress(OSError):  # not empty
        (folder / "checkpoints").rmdir()


def _cut_history(path, epochs):
    """Drops the lines of epochs that will be trained again."""
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        temporary = path.with_name("history.csv.tmp")
        temporary.write_text("".join(lines[: epochs + 1]) if epochs else "")
        os.replace(temporary, path)
