"""Callbacks of a run: guards, checkpoints, what it records, how it shows."""

from keras_issl.callbacks.checkpoint import Checkpoint
from keras_issl.callbacks.checkpoint_files import BrokenCheckpoint, NoSpace
from keras_issl.callbacks.collapse_guard import CollapseGuard
from keras_issl.callbacks.nan_guard import NaNGuard, NonFiniteLoss
from keras_issl.callbacks.progress import Progress
from keras_issl.callbacks.recorder import Recorder
from keras_issl.callbacks.representation import FixedViews
from keras_issl.callbacks.signals import StopOnSignal
from keras_issl.callbacks.snapshot import Snapshot
from keras_issl.callbacks.stop_together import StopTogether

__all__ = [
    "BrokenCheckpoint",
    "Checkpoint",
    "CollapseGuard",
    "FixedViews",
    "NaNGuard",
    "NonFiniteLoss",
    "NoSpace",
    "Progress",
    "Recorder",
    "Snapshot",
    "StopOnSignal",
    "StopTogether",
]
