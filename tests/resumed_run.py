"""A run of `fit` with a checkpoint, as a process that tests kill: OBJECTIVE FOLDER [KILL_AT].

With KILL_AT it kills itself (SIGKILL) at the end of that step, counted in this process. Otherwise it writes all of its
final state to FOLDER.npz, its history to FOLDER.json and its records to FOLDER.csv.
"""

import json
import os
import signal
import sys
from pathlib import Path

import keras
import members
import numpy as np

import keras_issl
from keras_issl import augmentations, callbacks, encoders

COUNT, BATCH, EPOCHS = 84, 8, 3  # 10 steps an epoch, 4 images left out of each
STEPS = COUNT // BATCH * EPOCHS


class Kill(keras.callbacks.Callback):
    """Ends the process like a power cut, after so many steps."""

    def __init__(self, left):
        super().__init__()
        self.left = left

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)


def images():
    return np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3), dtype="uint8")


def model(objective):
    """A tiny model with dropout, batch normalisation, a schedule, a moving average of weights and an online probe."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(8, 3, strides=2)(keras.layers.Rescaling(1 / 255)(inputs))
    x = keras.layers.Dropout(0.2, seed=3)(keras.layers.ReLU()(keras.layers.BatchNormalization()(x)))
    encoder = encoders.Adapter(keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x)))
    queue = {"queue_length": 16, "queue_start_epoch": 1} if objective == "SwAV" else {}
    scores = members.SMALL[objective](**queue)
    made = keras_issl.Pretrainer(encoder, scores, augmentations.SimCLR(8, preset="cifar10"), online_probe=4, seed=5)
    schedule = keras.optimizers.schedules.CosineDecay(1e-2, STEPS)
    made.compile(keras.optimizers.Adam(schedule, use_ema=True, ema_momentum=0.9))
    return made


def train(objective, folder, *, kill_at=None, **options):
    """Trains into a folder; returns the model, its history and its recorder."""
    folder = Path(folder)
    rows = folder.with_suffix(".csv")
    made = model(objective)
    recorder = callbacks.Recorder(rows, every=4, measure=False)
    options = {"resume": True, "every_steps": 3} | options
    saving = callbacks.Checkpoint(folder, **options)
    labels = np.arange(COUNT) % 5 - 1
    watching = [saving, recorder, *([Kill(kill_at)] if kill_at else [])]
    try:
        history = made.fit((images(), labels), batch_size=BATCH, epochs=EPOCHS, verbose=0, callbacks=watching)
    finally:
        recorder.close()
    return made, history.history, recorder, saving


if __name__ == "__main__":
    kill = int(sys.argv[3]) if len(sys.argv) > 3 else None
    made, history, _, _ = train(sys.argv[1], sys.argv[2], kill_at=kill)
    out = Path(sys.argv[2])
    np.savez(out.with_suffix(".npz"), *callbacks.Snapshot(made).arrays)
    out.with_suffix(".json").write_text(json.dumps(history))
