"""Saves a run, so that it can go on bit for bit after whatever ends it."""

import concurrent.futures
import time
import warnings
from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_issl import distribution
from keras_issl.callbacks import checkpoint_files as files
from keras_issl.callbacks import states
from keras_issl.callbacks.snapshot import Snapshot

COST = 0.01  # share of the time that may go into checkpoints
SMALL = 16e6  # bytes of a state that is saved at the first step; for a larger one the run has to be long enough
RATE = 100e6  # bytes a second at which the first one is expected to be saved


class Checkpoint(keras.callbacks.Callback):
    """Saves all that a run is, and brings it back: a run that is resumed has the weights of one that never stopped.

    `Pretrainer.fit` with this callback can be killed at any moment. The same call with `resume=True` goes on at the
    batch after the last checkpoint, with the same weights, optimizer slots, moving averages, centres, queues, random
    states, schedules and order of images, on all backends; on a CPU bit for bit (docs/long-runs.md says what an
    accelerator needs for that). `fit` has to bring an array, an `ImageDataset` or `datasets.Batches`: of other streams
    it cannot ask for batch k.

    A checkpoint is copied to the host's memory between two steps and written by another thread, under a name that holds
    its SHA-256, once all of it is on the disk. Where the newest is cut off or changed, the one before is taken, with a
    warning. Of several processes the first writes, and gives the others what it reads.

    Args:
        folder: Where to keep them; it is made.
        resume: Whether to go on from the newest checkpoint in the folder. Without it a folder that holds some is
            refused. It may be true from the start: then the first call begins, and all others go on.
        force: Whether to go on although the run was begun with other arguments, images or versions of libraries. What
            differs is warned of and recorded.
        every_steps: Steps between two checkpoints.
        every_seconds: Or seconds. By default it is as often as costs 1 % of the time, the first one after the first
            step, or later where the state is large. One more is written where training ends or is stopped.
        keep: How many of the latest stay.

    Attributes:
        saved: The `Saved` (step, epoch, batch, ...) that the run went on from, or `None`. Its arrays are let go of once
            training begins.
        step: The step of the last checkpoint that is on the disk, or `None`.
        finished_epochs: How many epochs are done.
        seconds: Time that it took of training, in this `fit`.
        written_seconds: And of a processor beside it, in the thread that writes.

    Other callbacks keep their state in the checkpoints if they have `get_state()`, which returns what JSON can hold,
    and `set_state(state)`, called after `on_train_begin`; so do Keras's `EarlyStopping` (without its best weights),
    `ReduceLROnPlateau` and `ModelCheckpoint`.

    Raises:
        ValueError: Arguments that contradict each other; a folder that holds checkpoints, without `resume`; or
            checkpoints of another run, without `force`. `fit` raises it.
        BrokenCheckpoint: A `ValueError`: there are checkpoints, and none can be read.
        NoSpace: An `OSError`: the disk is full. The checkpoint before is whole.

    Example:

    >>> saving = keras_issl.callbacks.Checkpoint("checkpoints", resume=True)
    >>> history = model.fit(images, batch_size=64, epochs=2, callbacks=[saving], verbose=0)
    >>> saving.step
    8
    """

    def __init__(self, folder, *, resume=False, force=False, every_steps=None, every_seconds=None, keep=2):
        super().__init__()
        if every_steps is not None and every_seconds is not None:
            raise ValueError("`every_steps` and `every_seconds` should not both be given.")
        for name, value in {"every_steps": every_steps, "keep": keep}.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1):
                raise ValueError(f"`{name}` should be an integer of at least 1. Received: {value!r}")
        if every_seconds is not None and not every_seconds > 0:
            raise ValueError(f"`every_seconds` should be a positive number. Received: {every_seconds!r}")
        self.folder, self.resume, self.force, self.kept = Path(folder), bool(resume), bool(force), keep
        self.every_steps, self.every_seconds = every_steps, every_seconds
        self.saved, self.step, self.finished_epochs, self.stepped = None, None, 0, False
        self.facts, self.forced, self.others, self._states = {}, [], (), None
        self.seconds = self.written_seconds = 0.0
        self._looked, self._writing, self._pool, self._lock = False, None, None, None

    # ------------------------------------------------------------------ before training: what is there
    def load(self, changes=True):
        """The newest checkpoint that can be read, a `Saved` or `None`; it is read once for each `fit`.

        Args:
            changes: Whether broken ones may be set aside; not while another process trains.

        Raises:
            ValueError: The folder holds checkpoints, and `resume` is false.
            BrokenCheckpoint: None of them can be read.
        """
        if self._looked:
            return self.saved
        if files.listed(self.folder) and not self.resume:
            raise ValueError(
                f"`folder` should hold no checkpoints of another run. Received: {str(self.folder)!r}, with "
                f"{files.listed(self.folder)[-1][1].name}. Pass resume=True to go on with it, or choose another."
            )
        say = (lambda text: warnings.warn(text, stacklevel=4)) if changes else None
        self.saved = files.newest(self.folder, say) if self.resume else None
        self._looked = True
        if self.saved is not None:
            self.step, self.finished_epochs = self.saved.step, self.saved.epoch
            self.forced = self.saved.about.get("forced", [])
        return self.saved

    def begin(self, model, facts):
        """Makes the folder, and brings the model to the newest checkpoint.

        Args:
            model: The `Pretrainer`, compiled, its optimizer built.
            facts: What the run is, nested dicts of what JSON can hold; it is held against what was saved.

        Returns:
            A pair: (epoch, batch) to go on with, (0, 0) for a new run.
        """
        self.facts, self._states = facts, None
        place, failure = None, None
        if distribution.is_writer():
            try:
                place = self._find(model, facts)
            except Exception as error:  # the others wait for a word
                failure = error
        told = distribution.from_first({"place": place, "failure": None if failure is None else str(failure)})
        if failure is not None:
            raise failure
        if told["failure"] is not None:
            raise ValueError(f"The first process of this run cannot begin: {told['failure']}")
        if told["place"] is None:
            return 0, 0
        self.restore(model)
        self.finished_epochs, self._states = told["place"]["epoch"], told["place"]["states"]
        if told["place"]["rate"] is not None:  # the variable that was restored holds the one of before
            model.optimizer.learning_rate = told["place"]["rate"]
        return self.finished_epochs, told["place"]["batch"]

    def _find(self, model, facts):
        """Where the run goes on, the states of callbacks, and a learning rate that was changed; `None` if it is new."""
        self._make_folder()
        saved = self.load()
        if saved is None:
            files.check_space(self.folder, (self.kept + 1) * (Snapshot.size_of(model) + files.MARGIN))
            return None
        self._check(saved.about["facts"], facts)
        self._check_variables(model)
        rates = [_rate(said) for said in (saved.about["facts"], facts)]
        changed = rates[0] != rates[1] and isinstance(rates[1], float)
        place = {"epoch": saved.epoch, "batch": saved.batch, "states": saved.about["states"]}
        return place | {"rate": rates[1] if changed else None}

    def _check_variables(self, model):
        """Refuses a model that the arrays do not fit."""
        variables, names = Snapshot.variables(model), self.saved.about["variables"]
        now = [(tuple(v.shape), keras.backend.standardize_dtype(v.value.dtype)) for v in variables]
        then = [(a.shape, a.dtype.name) for a in self.saved.arrays[: len(names)]]
        if now == then:
            return
        at = next((i for i, (a, b) in enumerate(zip(now, then, strict=False)) if a != b), min(len(now), len(then)))
        paths = [variable.path for variable in variables]
        found = " has ".join(map(str, (paths[at], now[at]))) if at < len(now) else "no more"
        expected = " ".join(map(str, (names[at], then[at]))) if at < len(then) else "no more"
        raise ValueError(
            f"`model` should be built like the one that was saved in {str(self.folder)!r}. Received: one that differs "
            f"from variable {at} on: {found} here, {expected} there. Build it as before."
        )

    def restore(self, model):
        """Gives a model the state that was saved; of several processes the first one's, to all of them."""
        snapshot = Snapshot(model, copy=False)  # of the other processes the shapes count
        if distribution.is_writer():
            snapshot.arrays = self.saved.arrays[: len(snapshot.arrays)]
        snapshot.arrays = distribution.arrays_from_first(snapshot.arrays)
        snapshot.restore(model)

    def restore_metrics(self, model):
        """Gives the running means of the epoch back, once Keras has begun it; all processes have to call it.

        On PyTorch each process has sums of its own, of which the first one's are known.
        """
        variables = model.metrics_variables
        if self.saved is None:
            arrays = [np.zeros(v.shape, v.dtype) for v in variables]
        else:
            arrays = self.saved.arrays[-len(variables) :]
        if keras.config.backend() == "jax":  # one variable of all processes, which all have to assign
            arrays = distribution.arrays_from_first(arrays)
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(array)

    def restore_callbacks(self):
        """Gives other callbacks their states back."""
        if self._states is not None:  # of several processes the others have fewer callbacks
            states.give(self.others, self._states, warn=distribution.is_writer())

    def _make_folder(self):
        """Makes the folder, and keeps other runs out of it until `close`."""
        if self._lock is not None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = open(self.folder / "lock", "a")  # noqa: SIM115  `close` closes it
        except OSError as error:
            raise ValueError(
                f"`folder` should be a folder that can be written. Received: {str(self.folder)!r} ({error.strerror})."
            ) from None
        try:
            files.hold(lock)
        except BlockingIOError:
            lock.close()
            raise ValueError(
                f"`folder` should be of this run alone. Received: {str(self.folder)!r}, where another run is writing. "
                "Wait for it, or choose another."
            ) from None
        except OSError:  # a file system without locks
            pass
        self._lock = lock
        files.clean(self.folder)

    def _check(self, then, now):
        found = differences(then, now)
        if not found:
            return
        if not self.force:
            raise ValueError(
                f"The checkpoints in {str(self.folder)!r} are of another run, so this one cannot go on from them: "
                f"{in_words(found)}. Ask for the same, choose another folder, or pass force=True (--force), which "
                "records it."
            )
        warnings.warn(f"Going on although this is not the run that was begun: {in_words(found)}.", stacklevel=4)
        self.forced = [*self.forced, {"step": self.saved.step, "changes": found}]

    # ------------------------------------------------------------------ while it trains
    def on_train_begin(self, logs=None):
        self.seconds = self.written_seconds = 0.0
        self.epoch, self.stepped = 0, False
        self.done = distribution.as_int(self.model.steps)
        self._last, self._last_at = (self.done if self.saved else None), time.monotonic()
        size = Snapshot.size_of(self.model)
        self._trained = {variable.path for variable in self.model.trainable_weights}
        self._pause = 0.0 if size < SMALL else size / RATE / COST
        if distribution.is_writer():
            self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")

    def on_epoch_begin(self, epoch, logs=None):
        first = self.params.get("initial_batch", 0) if epoch == self.params.get("initial_epoch", 0) else 0
        self.epoch, self.epoch_first, self.batch = epoch, self.done - first, first
        if self.saved is not None:  # the model has them, and they may be large
            self.saved.arrays = []

    def on_train_batch_end(self, batch, logs=None):
        self.batch, self.done, self.stepped = batch + 1, self.epoch_first + batch + 1, True
        self._look()
        if self.batch != self.params.get("steps") and (self.model.stop_training or self._due()):
            self.save(self.epoch, self.batch)  # the end of an epoch has its own

    def on_epoch_end(self, epoch, logs=None):
        last = epoch + 1 == self.params.get("epochs") or self.model.stop_training
        if self.batch == self.params.get("steps") or not self.model.stop_training:
            self.finished_epochs = epoch + 1
            if last or self._due():
                self.save(epoch + 1, 0, last=last)

    def on_train_end(self, logs=None):
        self.close()

    def _due(self):
        if self.every_steps is not None:
            return self.done // self.every_steps > (self._last or 0) // self.every_steps
        if self._writing is not None:
            return False
        wait = self._pause if self.every_seconds is None else self.every_seconds
        return time.monotonic() - self._last_at >= wait

    def save(self, epoch, batch, last=False):
        """Copies the state, and has it written; the last one is written as it is, and waited for."""
        self._last = self.done
        if self._pool is None:
            return
        self._look(wait=True)
        began = time.monotonic()
        snapshot = Snapshot(self.model, copy=not last)
        if distribution.as_int(self.model.steps) != self.done:
            return  # a collapse guard has put weights from before in their place
        names = [variable.path for variable in snapshot.variables(self.model)]
        metrics = [np.array(ops.convert_to_numpy(v.value)) for v in self.model.metrics_variables]
        about = {"variables": names, "facts": self.facts, "states": states.take(self.others), "forced": self.forced}
        saved = files.Saved(self.done, epoch, batch, [*snapshot.arrays, *metrics], about)
        self._copied = time.monotonic() - began
        self.seconds += self._copied
        self._writing = self._pool.submit(self._write, saved)
        self._look(wait=last)

    def _write(self, saved):
        began = time.thread_time()  # what training cannot have: not the waiting for a disk
        pairs = zip(saved.about["variables"], saved.arrays, strict=False)  # the metrics come after
        # The guard sees a loss one step late: weights that are lost already must not take the place of good ones.
        if not all(np.isfinite(np.asarray(a, np.float32)).all() for path, a in pairs if path in self._trained):
            return self.step, time.thread_time() - began
        files.write(self.folder, saved)
        files.keep(self.folder, self.kept)
        return saved.step, time.thread_time() - began

    def _look(self, wait=False):
        """Takes note of a checkpoint that has been written, or could not be."""
        if self._writing is None or not (wait or self._writing.done()):
            return
        writing, self._writing = self._writing, None
        began = time.monotonic()
        self.step, spent = writing.result()
        waited = time.monotonic() - began
        self.seconds += waited
        self.written_seconds += max(0.0, spent - waited)  # of what was waited for nothing else could have been done
        self._last_at, self._pause = time.monotonic(), (self._copied + spent) / COST

    def close(self):
        """Waits for what is being written, and lets others into the folder.

        Raises:
            OSError: It could not be written.
        """
        pool, self._pool, self._looked = self._pool, None, False
        try:
            if pool is not None:
                self._look(wait=True)
        finally:
            if pool is not None:
                pool.shutdown()
            if self._lock is not None:
                self._lock.close()
                self._lock = None


def differences(then, now, place=""):
    """What differs between two nested dicts, in words: `place.key: value there, value now`."""
    found = []
    for key in {**then, **now}:
        a, b, where = then.get(key), now.get(key), f"{place}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{where}.")
        elif a != b:
            found.append(f"{where}: {_short(a)} there, {_short(b)} now")
    return found


def in_words(found, most=8):
    """The first few of `differences`, and how many more there are."""
    return "; ".join([*found[:most], *([f"and {len(found) - most} more"] if len(found) > most else [])])


def _rate(facts):
    """The optimizer's learning rate, a number or a schedule's configuration."""
    optimizer = facts.get("optimizer", {})
    inner = optimizer.get("inner_optimizer") or {}  # of one that scales the loss
    return inner.get("config", optimizer).get("learning_rate")


def _short(value):
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
