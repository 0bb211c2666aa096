"""A run that collapses in earnest, and what the guard does about it."""

import warnings

import numpy as np
import pytest
from keras import ops

from keras_issl import callbacks, datasets, recipes

pytestmark = pytest.mark.usefixtures("guard_with_time")
DIGITS = datasets.load("digits", split="train").take(256)


def collapsing():
    """DISSL at a hundred times a sane learning rate: after a few steps every image is in one class."""
    encoder = {"blocks": (1,), "width": 8, "image_size": 8, "stem": "cifar"}
    changes = {"epochs": 20, "batch_size": 64, "learning_rate": 0.4, "warmup_fraction": 0.1}
    return recipes.build(recipes.digits(encoder_args=encoder, **changes), len(DIGITS))


def guarded(action):
    model, recorder = collapsing(), callbacks.Recorder(every=1)
    guard = callbacks.CollapseGuard(recorder, action)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(DIGITS, batch_size=64, epochs=20, callbacks=[recorder, guard], verbose=0)
    said = [str(w.message) for w in caught if guard.verdict and guard.verdict.title in str(w.message)]
    return model, recorder, guard, said


def test_it_warns_once_and_goes_on():
    model, recorder, guard, said = guarded("warn")
    assert guard.verdict.collapsed and guard.verdict.kind == "one_class"
    assert len(said) == 1 and "learning rate" in said[0] and int(model.steps) == 80


def test_it_stops():
    model, recorder, guard, said = guarded("stop")
    assert guard.verdict.since + callbacks.collapse_guard.PATIENCE <= int(model.steps) + 1 < 80
    assert len(said) == 1 and "Training stops here." in said[0]
    assert recorder.rows[-1]["step"] == int(model.steps)


def test_it_rolls_back_to_weights_from_before():
    model, recorder, guard, said = guarded("rollback")
    assert guard.restored_step < guard.verdict.since < recorder.rows[-1]["step"] < 80
    assert int(model.steps) == guard.restored_step and f"step {guard.restored_step} again" in said[0]
    again = collapsing()
    if guard.restored_step:  # how often copies are taken depends on the machine's speed
        again.fit(DIGITS, batch_size=64, epochs=20, callbacks=[StopAt(guard.restored_step)], verbose=0)
    for ours, theirs in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(ours), ops.convert_to_numpy(theirs), err_msg=ours.path)


class StopAt(callbacks.StopOnSignal):
    """Stops after so many steps."""

    def __init__(self, steps):
        super().__init__()
        self.left = steps

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            self.model.stop_training = True


def test_another_action_is_refused():
    with pytest.raises(ValueError, match="`action` should be one of warn, stop, rollback. Received: 'panic'"):
        callbacks.CollapseGuard(callbacks.Recorder(), "panic")
