"""How a run shows while it goes on: one line that says what the representation is becoming."""

import math
import shutil
import sys
import time

import keras

from keras_issl import distribution

LINES = 20  # of a whole run, where they are kept
SILENCE = 600  # seconds without a line at the most
REDRAW = 0.5  # seconds between two versions of the line on a terminal
SHOWN = (  # column -> how it is said
    ("distillation", "distillation {:.3f}"),
    ("invariance", "invariance {:.3f}"),
    ("alignment", "alignment {:.3f}"),
    ("correlation", "correlation {:.3f}"),
    ("feature_std", "feature std {:.3f}"),
)


class Progress(keras.callbacks.Callback):
    """One line: where the run is, the loss and its parts, exp H(M), effective rank, online top-1, speed, time left.

    On a terminal the line is drawn anew; elsewhere, in a file or pipe, there are about twenty lines a run, and at least
    one in ten minutes.

    Args:
        recorder: The run's `Recorder`, whose rows it shows.
        stream: Where to write, `sys.stdout` by default.

    Example:

    >>> recorder = keras_issl.callbacks.Recorder()
    >>> shown = keras_issl.callbacks.Progress(recorder)
    >>> history = model.fit(images, batch_size=64, epochs=2, callbacks=[recorder, shown], verbose=0)
    """

    def __init__(self, recorder, stream=None):
        super().__init__()
        self.recorder, self.stream, self._width = recorder, stream, 0

    def on_train_begin(self, logs=None):
        self.out = self.stream or sys.stdout
        self.live = bool(getattr(self.out, "isatty", lambda: False)())
        self.began = self.said_at = time.monotonic()
        self.first_step, self.said_share, self.total = distribution.as_int(self.model.steps), 0.0, None
        if self._look not in self.recorder.listeners:
            self.recorder.listeners.append(self._look)

    def on_epoch_begin(self, epoch, logs=None):
        steps, epochs = self.params.get("steps"), self.params.get("epochs")
        if self.total is None and steps and epochs:
            self.total = self.first_step + steps * (epochs - epoch) - self.params.get("initial_batch", 0)

    def on_train_batch_end(self, batch, logs=None):
        if time.monotonic() - self.said_at >= (REDRAW if self.live else SILENCE) and self._measured():
            self._say(self.recorder.done)

    def on_train_end(self, logs=None):
        self.recorder.listeners.remove(self._look)
        if self.live and self._width:
            self.out.write("\n")
            self.out.flush()
            self._width = 0

    def _measured(self):
        return any(math.isfinite(row.get("learning_rate", math.nan)) for row in self.recorder.rows[-2:])

    def _look(self, recorder):
        row, now = recorder.rows[-1], time.monotonic()
        if not math.isfinite(row.get("learning_rate", math.nan)):
            return  # measured before any step
        share, last = (row["step"] - self.first_step) / self._length(), row["step"] == self.total
        if self.live:
            due = now - self.said_at >= REDRAW
        else:
            due = self.said_share == 0.0 or share - self.said_share >= 1 / LINES or now - self.said_at >= SILENCE
        if due or last:
            self._say(row["step"])

    def _length(self):
        return max(self.total - self.first_step, 1) if self.total else math.inf

    def _say(self, step):
        """Writes the line: what was recorded last, at the step where the run is."""
        now, epochs = time.monotonic(), self.params.get("epochs")
        left = None
        if self.total and step > self.first_step:
            left = (now - self.began) / (step - self.first_step) * (self.total - step)
        width = shutil.get_terminal_size().columns - 1 if self.live else None
        text = line(self.recorder.rows, epochs, self.total, left, step=step, width=width)
        self.out.write("\r" + text.ljust(self._width) if self.live else f"  {text}\n")
        self.out.flush()
        self._width = len(text)
        self.said_at, self.said_share = now, max((step - self.first_step) / self._length(), 1e-9)


def line(rows, epochs=None, total=None, left=None, *, step=None, width=None):
    """The line for the last of some rows; of what is measured now and then, the last measurement.

    Args:
        rows: Rows of a `Recorder`.
        epochs: Epochs of the run.
        total: Steps of the run.
        left: Seconds to its end.
        step: Where the run is, if it is past the last row.
        width: Characters that it may have; what matters least is left out.

    Example:

    >>> rows = [{"step": 120.0, "epoch": 2.0, "loss": -3.21, "effective_classes": 27.9, "online_top1": 0.871}]
    >>> keras_issl.callbacks.progress.line(rows, epochs=60, total=3600, left=75)
    'epoch 2.0/60, step 120/3,600: loss -3.210, exp H(M) 27.9, online top-1 87.1 %, 75 s left'
    >>> keras_issl.callbacks.progress.line(rows, epochs=60, total=3600, left=75, width=50)
    'epoch 2.0/60: loss -3.210, exp H(M) 27.9'
    """

    def last(name):
        values = (row.get(name, math.nan) for row in reversed(rows))
        return next((value for value in values if math.isfinite(value)), None)

    row = rows[-1]
    place = f"epoch {row['epoch']:.1f}" + (f"/{epochs}" if epochs else "")
    steps = f", step {int(step or row['step']):,}" + (f"/{total:,}" if total else "")
    parts = [(0, f"loss {row['loss']:.3f}")]  # (how soon it is left out, text)
    for name, text in SHOWN:
        if math.isfinite(row.get(name, math.nan)):
            parts.append((5, text.format(row[name])))
    if (classes := last("effective_classes")) is not None:
        bound = last("marginal_entropy_bound")
        # Sure assignments fill at most min(B, C) classes; unsure ones are spread over more.
        most = "" if bound is None or classes > 1.02 * math.exp(bound) else f" of {math.exp(bound):.0f}"
        parts.append((1, f"exp H(M) {classes:,.1f}{most}"))
    for rank, name, text, factor in (
        (3, "effective_rank", "rank {:.1f}", 1),
        (3, "online_top1", "online top-1 {:.1f} %", 100),
        (4, "images_per_second", "{:,.0f} images/s", 1),
    ):
        if (value := last(name)) is not None:
            parts.append((rank, text.format(factor * value)))
    if left is not None:
        parts.append((2, f"{_time(max(left, 0))} left"))
    text = f"{place}{steps}: {', '.join(part for _, part in parts)}"
    for most in (5, 4, 3, 2, 1):
        if width is None or len(text) <= width:
            return text
        parts, steps = [part for part in parts if part[0] < most], ""
        text = f"{place}: {', '.join(part for _, part in parts)}"
    return text[:width]


def _time(seconds):
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} d"
