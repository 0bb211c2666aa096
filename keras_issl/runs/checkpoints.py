"""Weights, optimizer and random states of a run, at ends of epochs."""

import os
import re
import time
from pathlib import Path

import keras

KEPT_CHECKPOINTS = 2


class Checkpoint(keras.callbacks.Callback):
    """Saves weights, optimizer and random states at the end of each epoch, through a temporary file."""

    COST = 0.02  # share of the time that may go into checkpoints; the first epoch always ends in one

    def __init__(self, folder):
        super().__init__()
        self.folder = Path(folder) / "checkpoints"
        self.folder.mkdir(exist_ok=True)
        for left in self.folder.glob("tmp_*"):  # by a process that was killed while it wrote
            left.unlink()
        self.next_at, self.finished, self.saved, self.stepped = 0.0, None, None, False
        self.seconds = 0.0

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
        spent = time.monotonic() - began
        self.seconds += spent
        self.next_at = time.monotonic() + spent / self.COST
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
