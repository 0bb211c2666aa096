"""Looks at what a run records, and warns, stops or rolls back when the representation collapses."""

import math
import warnings

import keras

from keras_issl import diagnostics
from keras_issl.callbacks.budget import Budget
from keras_issl.callbacks.snapshot import Snapshot, not_finite

ACTIONS = ("warn", "stop", "rollback")
COST = 0.0025  # share of the time that may go into verdicts
COPIES = 0.02  # and into copies of the weights, for who asks for a rollback
KEPT = 4  # copies of the weights beside the first, `PATIENCE` rows apart: a collapse is acted on long after it began
PATIENCE = 10  # rows, a twentieth of a run; twice as many where it was so from the start, as before learning begins
ONCE = ("slow_input", "no_augmentation", "no_learning_rate")  # what is worth a word at once, and not more


class CollapseGuard(keras.callbacks.Callback):
    """Judges a run by its records while it goes on: `diagnostics.judge_training` after new rows.

    A collapse (a uniform teacher, a single class, equal features, ...) that has lasted for ten rows, a twentieth of the
    run, or for twenty if it was there from the start, is warned of once; or stops the run; or stops it and gives the
    model the weights from before the collapse began. It warns as well where the device waits for its
    input, where the views of an image are copies and where the learning rate is 0. Judging takes at most 0.25 % of the
    time, and copies of the weights, which only a rollback needs, 2 %; up to five of them stay in the host's memory.

    Args:
        recorder: The run's `Recorder`, which must come before this in `callbacks`.
        action: `"warn"`, `"stop"` or `"rollback"`.

    Attributes:
        verdict: The `TrainingVerdict` that it acted on, or `None`.
        restored_step: After a rollback: finished steps of the weights that the model has again.

    Raises:
        ValueError: Another action.

    Example:

    ```python
    views = keras_issl.augmentations.SimCLR(32, preset="cifar10")
    model = keras_issl.Pretrainer(encoder, keras_issl.objectives.SimCLR(), views)
    model.compile("adam")
    recorder = keras_issl.callbacks.Recorder()
    guard = keras_issl.callbacks.CollapseGuard(recorder, action="rollback")
    model.fit(images, batch_size=64, epochs=2, callbacks=[recorder, guard], verbose=0)
    guard.verdict  # None, or what it acted on
    ```
    """

    def __init__(self, recorder, action="warn"):
        super().__init__()
        if action not in ACTIONS:
            raise ValueError(f"`action` should be one of {', '.join(ACTIONS)}. Received: {action!r}")
        self.recorder, self.action = recorder, action
        self.verdict, self.restored_step = None, None
        self._said, self.batch_size = set(), None

    def on_train_begin(self, logs=None):
        self.verdict, self.restored_step, self._said = None, None, set()
        self.batch_size = self.model.images_per_step
        if self._look not in self.recorder.listeners:
            self.recorder.listeners.append(self._look)
        self.judging, self.copying, self.copies, self.copied_at = Budget(COST), Budget(COPIES), [], None

    def on_train_batch_begin(self, batch, logs=None):
        rows = len(self.recorder.rows)
        apart = self.copied_at is None or rows >= self.copied_at + PATIENCE
        if self.action == "rollback" and apart and self.copying.due:
            with self.copying.spend():
                if not not_finite(self.model):
                    first, rest = self.copies[:1], self.copies[1:]
                    self.copies = [*first, *rest[-KEPT + 1 :], (self.recorder.done, Snapshot(self.model))]
                    self.copied_at = rows

    def on_train_end(self, logs=None):
        self.recorder.listeners.remove(self._look)

    def _look(self, recorder):
        if self.judging.due:
            with self.judging.spend():
                self._judge()

    def _judge(self):
        """Looks at all rows so far."""
        if not self.recorder.rows:
            return
        for verdict in self.verdicts():
            if verdict.collapsed and self.verdict is None and self._lasts(verdict):
                self.verdict = verdict
                self._act(verdict)
            elif verdict.kind in ONCE and verdict.kind not in self._said and verdict.level != "good":
                self._said.add(verdict.kind)
                _warn(verdict, "")

    def _lasts(self, verdict):
        steps = [row["step"] for row in self.recorder.rows if math.isfinite(row["loss"])]
        held = sum(step >= (verdict.since or 0) for step in steps)
        return held >= (2 * PATIENCE if held == len(steps) else PATIENCE)

    def verdicts(self):
        """What `diagnostics.judge_training` says of the records so far."""
        probe = self.model.online_probe
        return diagnostics.judge_training(
            self.recorder.columns(),
            objective=type(self.model.objective).__name__,
            config=self.model.objective.get_config(),
            batch_size=self.batch_size,
            online_classes=None if probe is None else probe.num_classes,
        )

    def _act(self, verdict):
        if self.action == "warn":
            _warn(verdict, "")
            return
        self.model.stop_training = True
        if self.action == "stop":
            _warn(verdict, "Training stops here.")
            return
        before = [copy for copy in self.copies if copy[0] < (verdict.since or 0)] or self.copies[:1]
        self.restored_step, copy = before[-1]
        copy.restore(self.model)
        late = "" if self.restored_step < (verdict.since or 1) else "; there is no copy from before the collapse"
        late = ", untrained" if not self.restored_step else late
        said = f"Training stops here, and the model has the weights of step {self.restored_step:,} again{late}."
        _warn(verdict, said)


def _warn(verdict, what):
    parts = (f"{verdict.title}. {verdict.evidence}", what, verdict.advice)
    warnings.warn(" ".join(filter(None, parts)), stacklevel=2)
