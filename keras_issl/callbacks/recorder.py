"""What a run records beside its history: a row every few steps."""

import contextlib
import csv
import math
import os
import time
from pathlib import Path

import keras
import numpy as np

from keras_issl import distribution
from keras_issl.callbacks.budget import Budget
from keras_issl.callbacks.representation import FixedViews

ROWS = 200  # of a whole run
EVERY = 50  # steps a row, of a run whose length is not known
COST = 0.0025  # share of the time that may go into measuring the representation
BUSY = 0.9  # TensorFlow makes batches ahead: the device waits for them when making them takes nearly all the time
WEIGHT = "online_labels"  # labelled images a step, which an online probe's means weigh; no column
DECODING = "input_images_per_second"
ALWAYS = ("step", "epoch", "seconds", "learning_rate", "images_per_second", "input_share", *FixedViews.names, DECODING)


class Recorder(keras.callbacks.Callback):
    """Records a run: the means of all logs over a few steps, the learning rate, speed, and what the features are like.

    Everything is derived on the host from what a step returns anyway: the compiled step is the same with and without
    a recorder. Rows stand at fixed steps, whatever the machine's speed. Columns:

    - `step`, `epoch` (with its fraction), `seconds` since training began, validation included;
    - `loss`, the objective's logs and those of an online probe: means over the steps since the row before;
      `classes_used` is a count since the epoch began;
    - `learning_rate`; `images_per_second`;
    - `input_share`: the share of the time in which the device waits for the next batch to be made. It is known where
      `fit` takes an array, an `ImageDataset` or `datasets.Batches`. TensorFlow makes batches ahead of the steps: there
      it is 0 unless making them takes over 90 % of the time;
    - `input_images_per_second`, where images are decoded when they are asked for: what reading and decoding delivers,
      waited for or not;
    - `effective_rank` and `within_between` of fixed images (see `FixedViews`), measured at ends of epochs, as often as
      costs 0.25 % of the time, and at the end of the run; they stand in the row that follows.

    Args:
        path: A CSV file to write, or `None` to keep the rows in memory alone.
        every: Steps a row; `None`: the run's steps over 200, at least 1 and at most an epoch.
        measure: Whether to measure the representation, where the images are known.
        previous: Columns of the rows of a run that this one goes on with, as `report.read_records` gives them; those
            that lie ahead are dropped. Without it an existing file is begun anew; but a second `fit` of the same model
            goes on, and so does a run that a `Checkpoint` resumes.

    Attributes:
        rows: A list of dicts, column -> number; NaN where nothing was measured.
        listeners: Functions of the recorder, called after each new row.
        seconds: Of its own work in this `fit`, so that it can be told what recording costs.

    Example:

    >>> recorder = keras_issl.callbacks.Recorder("records.csv")
    >>> history = model.fit(images, batch_size=64, epochs=2, callbacks=[recorder], verbose=0)
    >>> len(recorder.columns()["loss"]), "effective_rank" in recorder.rows[-1]
    (9, True)
    """

    def __init__(self, path=None, *, every=None, measure=True, previous=None):
        super().__init__()
        if every is not None and (isinstance(every, bool) or not isinstance(every, int | np.integer) or every < 1):
            raise ValueError(f"`every` should be None or a number of steps, at least 1. Received: {every!r}")
        self.path, self.every, self.measure = None if path is None else Path(path), every, measure
        self.previous, self.rows, self.listeners, self.seconds = previous, [], [], 0.0
        self._file = None

    def columns(self):
        """Column -> float64 array, one value a row."""
        names = self.rows[0] if self.rows else {}
        return {name: np.array([row.get(name, math.nan) for row in self.rows], np.float64) for name in names}

    # ------------------------------------------------------------------ what Keras calls
    def on_train_begin(self, logs=None):
        steps, epochs = self.params.get("steps"), self.params.get("epochs") or 1
        self.first = distribution.as_int(self.model.steps)
        # What a schedule counts, which a new optimizer begins anew.
        self.offset = distribution.as_int(self.model.optimizer.iterations) - self.first
        self.apart = self.every or EVERY
        if steps and self.every is None:  # a row an epoch at least
            self.apart = max(1, min(steps * epochs // ROWS, steps))
        self._begin_rows()
        self.names = [metric.name for metric in self.model.metrics if metric.name != WEIGHT]
        self.means = {"loss", *self.model.log_trackers, *(n for n in self.names if n.startswith("online_"))}
        self.done, self.batch, self.epoch, self.rate = self.first, 0, 0, None
        self.window = _Window(self.means)
        self.clock, self.timed, self.images, self.loading = None, 0.0, 0, 0.0
        self.began, self.seconds, self.budget, self.fixed = time.monotonic(), 0.0, Budget(COST), None
        self.begun, self.measured, self.goes_on = False, {}, False
        self.unstopped = None  # the state without the last row, which is there because the run was stopped

    def get_state(self):
        """What a `Checkpoint` keeps, so that the rows of a run that goes on are those of one that never stopped."""
        if self.unstopped is not None:
            return self.unstopped
        window = {"kept": dict(self.window.kept), "seen": dict(self.window.seen)}
        return {"rows": len(self.rows), "measured": dict(self.measured), **window}

    def set_state(self, state):
        """Goes on from what `get_state` returned."""
        if len(self.rows) < state["rows"] and self.path is not None and self.path.exists():
            self.rows = self._read()
        self.rows = self.rows[: state["rows"]]
        self.before = self.rows[-1]["seconds"] if self.rows else 0.0
        self.measured, self.goes_on = state["measured"], True
        for name in ("kept", "seen"):
            setattr(self.window, name, {key: tuple(pair) for key, pair in state[name].items()})

    def _look_before(self):
        """The row before the first step, once the listeners are ready: the encoder as it is."""
        batches = self.model.batches
        if self.measure and batches is not None and len(batches.images) >= 4:
            with self._own():  # outside of the budget: most of it is compiled once
                self.fixed = FixedViews(self.model, batches.images)
                known = self.rows and self.rows[-1]["step"] >= self.first
                if not known and not self.goes_on:
                    self.measured = self.fixed()
                    self._row({})

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self.batch, self.rate = epoch, 0, None
        if not self.begun:
            self.begun, self.batch = True, self.params.get("initial_batch", 0)
            self._rewrite()  # once a checkpoint has said which rows are there
            self._look_before()
        self.epoch_first = self.done - self.batch

    def on_train_batch_begin(self, batch, logs=None):
        # Once a scheduler has set it; on JAX the variable is out of reach later in the epoch.
        if self.rate is None and self._schedule() is None:
            self.rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))

    def on_test_begin(self, logs=None):
        if self.clock is not None:  # validation is not the speed of training
            self._tick(0)
            self.clock = None

    def on_train_batch_end(self, batch, logs=None):
        steps = batch + 1 - self.batch
        self.batch = batch + 1
        self.done = self.epoch_first + self.batch
        self._tick(steps)
        final = (self.epoch + 1, self.batch) == (self.params.get("epochs"), self.params.get("steps"))
        if self.done // self.apart > (self.done - steps) // self.apart and not final:  # the end of the epoch makes it
            with self._own():
                logs = {name: float(value) for name, value in (logs or {}).items()}  # waits for the step
                self._tick(0)
                self._row(self.window.take(logs, self.batch))

    def on_epoch_end(self, epoch, logs=None):
        last = epoch + 1 == self.params.get("epochs") or self.model.stop_training
        with self._own():
            self._tick(0)
            self.clock = None  # nor are checkpoints
            logs = {name: float(value) for name, value in (logs or {}).items() if not name.startswith("val_")}
            self.window.end_epoch(logs, self.batch)
            if self.fixed is not None and (self.budget.due or last):
                with self.budget.spend():
                    self.measured = self.fixed()
            if last and epoch + 1 != self.params.get("epochs"):
                self.unstopped = self.get_state()
            if last and self.done > self.first:
                if self.rows and self.rows[-1]["step"] == self.done:  # a run that was stopped at a row
                    self.rows[-1] |= self.measured
                    self._rewrite()
                else:
                    self._row(self.window.take(logs, 0))

    def on_train_end(self, logs=None):
        self.close()

    def close(self):
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    # ------------------------------------------------------------------ rows
    def _row(self, logs):
        step = self.done
        length = self.params.get("steps")
        fraction = self.batch / length if length else 0.0
        row = dict.fromkeys((*ALWAYS[:3], *self.names, *ALWAYS[3:]), math.nan)
        row |= {"step": step, "epoch": self.epoch + fraction, "seconds": self.before + time.monotonic() - self.began}
        if logs:
            row |= {name: logs[name] for name in self.names if name in logs}
            row |= {"learning_rate": self._learning_rate(step), **self._speed()}
        row |= self.measured
        self.measured = {}
        self.rows.append(row)
        self._write(row)
        for listener in self.listeners:
            listener(self)

    def _schedule(self):
        """The learning rate's schedule, or `None`."""
        optimizer = getattr(
            self.model.optimizer, "inner_optimizer", self.model.optimizer
        )  # of one that scales the loss
        schedule = getattr(optimizer, "_learning_rate", None)
        return schedule if isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule) else None

    def _learning_rate(self, step):
        schedule = self._schedule()
        if schedule is None:
            return self.rate
        return float(keras.ops.convert_to_numpy(schedule(max(step - 1 + self.offset, 0))))  # of the finished step

    def _tick(self, steps):
        """Adds the time since the last tick to the training time; compilation, in the first step, is left out."""
        now, batches = time.monotonic(), self.model.batches
        loading = 0.0 if batches is None else batches.seconds
        if self.clock is not None:
            self.timed += now - self.clock
            self.images += steps * (self.model.images_per_step or 0)
            self.loading += loading - self.loaded
        self.clock, self.loaded = now, loading

    def _speed(self):
        found = {}
        if self.timed > 0 and self.images:
            found["images_per_second"] = self.images / self.timed
        if self.timed > 0 and self.model.batches is not None:
            share = min(self.loading / self.timed, 1.0)
            found["input_share"] = share if share > BUSY or not distribution.prefetches() else 0.0
            if self.model.batches.decodes:
                found[DECODING] = self.model.batches.images_per_second
        self.timed, self.images, self.loading = 0.0, 0, 0.0
        return found

    # ------------------------------------------------------------------ the file
    def _begin_rows(self):
        rows = self.rows  # of a `fit` before
        if self.previous is not None:
            count = len(self.previous.get("step", ()))
            rows = [{name: float(values[i]) for name, values in self.previous.items()} for i in range(count)]
            rows = [row | {DECODING: row.get(DECODING, math.nan)} for row in rows]  # of a version before that column
            self.previous = None
        self.rows = [row for row in rows if row["step"] <= self.first] if self.first else []
        self.before = self.rows[-1]["seconds"] if self.rows else 0.0
        self.close()

    def _read(self):
        """The rows of the file, as `_write` writes them; a line that a kill cut off is none."""
        whole = self.path.read_text(encoding="utf-8").rpartition("\n")[0]
        rows = csv.DictReader(whole.splitlines())
        return [{name: float(value or "nan") for name, value in row.items()} for row in rows]

    def _rewrite(self):
        """Writes all rows, through a temporary file."""
        if self.path is None:
            return
        self.close()
        temporary = self.path.with_name(f"{self.path.name}.tmp")
        with open(temporary, "w", newline="") as file:
            for row in self.rows:
                self._write(row, file, header=row is self.rows[0])
        os.replace(temporary, self.path)

    def _write(self, row, file=None, header=False):
        if self.path is None:
            return
        if file is None:
            if self._file is None:
                header = not self.path.exists() or not self.path.stat().st_size
                self._file = open(self.path, "a", newline="")  # noqa: SIM115  closed when training ends
            file = self._file
        lines = csv.writer(file, lineterminator="\n")
        if header:
            lines.writerow(row)
        lines.writerow("" if math.isnan(value) and name != "loss" else f"{value:.8g}" for name, value in row.items())
        file.flush()

    @contextlib.contextmanager
    def _own(self):
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds += time.monotonic() - began


class _Window:
    """Means over some steps, from running means that begin anew with each epoch."""

    def __init__(self, means):
        self.means = means
        self.kept, self.seen = {}, {}  # name -> (sum, weight): of epochs before; of this epoch, taken already

    def take(self, logs, steps):
        """Logs over the steps since the last call; `logs` are running means over `steps` steps of this epoch."""
        now, found = self._sums(logs, steps), {}
        for name, value in logs.items():
            if name not in self.means:
                found[name] = value
                continue
            total, weight = self._since(name, now)
            found[name] = total / weight if weight > 0 else math.nan
        self.kept, self.seen = {}, now
        return found

    def end_epoch(self, logs, steps):
        """Keeps what the epoch's last steps add to the next row."""
        now = self._sums(logs, steps)
        self.kept, self.seen = {name: self._since(name, now) for name in now}, {}

    def _since(self, name, now):
        """Sum and weight of what was not taken yet."""
        pairs = (now[name], self.kept.get(name, (0.0, 0.0)), self.seen.get(name, (0.0, 0.0)))
        (total, weight), (kept, of_kept), (seen, of_seen) = pairs
        return total + kept - seen, weight + of_kept - of_seen

    def _sums(self, logs, steps):
        """Name -> (sum, weight) over the epoch so far."""
        labels = logs.get(WEIGHT, 1.0) * steps
        weights = {name: labels if name.startswith("online_") else float(steps) for name in logs if name in self.means}
        return {name: (logs[name] * weight if weight else 0.0, weight) for name, weight in weights.items()}
