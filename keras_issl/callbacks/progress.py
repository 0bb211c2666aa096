"""How a run shows while it goes on: one line that says what the representation is becoming."""

import math
import sys
import time

import keras

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
        recorder.listeners.append(self._look)

    def on_train_begin(self, logs=None):
        self.out = self.stream or sys.stdout
        self.live = bool(getattr(self.out, "isatty", lambda: False)())
        self.began = self.said_at = time.monotonic()
        self.first_step, self.said_share = int(self.model.steps), 0.0
        steps = self.params.get("steps")
        self.total = steps * (self.params.get("epochs") or 1) if steps else None

    def on_train_end(self, logs=None):
        if self.live and self._width:
            self.out.write("\n")
            self.out.flush()
            self._width = 0

    def _look(self, recorder):
        row, now = recorder.rows[-1], time.monotonic()
        if not math.isfinite(row.get("learning_rate", math.nan)):
            return  # measured before any step
        share, last = self._share(row["step"]), row["step"] == self.total
        if self.live:
            if now - self.said_at < REDRAW and not last:
                return
            text = line(recorder.rows, self.params.get("epochs"), self.total, self._left(row["step"], now))
            self.out.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            first = self.said_share == 0.0
            if not (first or last or share - self.said_share >= 1 / LINES or now - self.said_at >= SILENCE):
                return
            text = line(recorder.rows, self.params.get("epochs"), self.total, self._left(row["step"], now))
            self.out.write(f"  {text}\n")
        self.said_at, self.said_share = now, max(share, 1e-9)
        self.out.flush()

    def _share(self, step):
        return step / self.total if self.total else 0.0

    def _left(self, step, now):
        """Seconds to the end, at the speed so far."""
        done = step - self.first_step
        if not self.total or done < 1:
            return None
        return (now - self.began) / done * (self.total - step)


def line(rows, epochs=None, total=None, left=None):
    """The line for the last of some rows; of what is measured now and then, the last measurement.

    Args:
        rows: Rows of a `Recorder`.
        epochs: Epochs of the run.
        total: Steps of the run.
        left: Seconds to its end.

    Example:

    >>> rows = [{"step": 120.0, "epoch": 2.0, "loss": -3.21, "effective_classes": 27.9, "online_top1": 0.871}]
    >>> keras_issl.callbacks.progress.line(rows, epochs=60, total=3600, left=75)
    'epoch 2.0/60, step 120/3,600: loss -3.210, exp H(M) 27.9, online top-1 87.1 %, 75 s left'
    """

    def last(name):
        values = (row.get(name, math.nan) for row in reversed(rows))
        return next((value for value in values if math.isfinite(value)), None)

    row = rows[-1]
    whole = f"/{epochs}" if epochs else ""
    steps = f"/{total:,}" if total else ""
    place = f"epoch {row['epoch']:.1f}{whole}, step {int(row['step']):,}{steps}"
    parts = [f"loss {row['loss']:.3f}"]
    parts += [text.format(row[name]) for name, text in SHOWN if math.isfinite(row.get(name, math.nan))]
    if (classes := last("effective_classes")) is not None:
        bound = last("marginal_entropy_bound")
        most = f" of {math.exp(bound):.0f}" if bound is not None else ""
        parts.append(f"exp H(M) {classes:.1f}{most}")
    for name, text in (("effective_rank", "rank {:.1f}"), ("images_per_second", "{:,.0f} images/s")):
        if (value := last(name)) is not None:
            parts.append(text.format(value))
    if (top1 := last("online_top1")) is not None:
        parts.insert(len(parts) - (last("images_per_second") is not None), f"online top-1 {100 * top1:.1f} %")
    if left is not None:
        parts.append(f"{_time(left)} left")
    return f"{place}: {', '.join(parts)}"


def _time(seconds):
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} d"
