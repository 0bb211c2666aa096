"""Callbacks of a run: stop at the first loss that is not a number, and stop cleanly when asked to."""

import math
import signal
import threading

import keras


class NaNGuard(keras.callbacks.Callback):
    """Stops training with an error if the loss of the first step, or the mean loss of an epoch, is not finite.

    `Pretrainer.fit` brings one of its own.

    Raises:
        FloatingPointError: The loss is NaN or infinite; the message says when, and what to try.

    Example: `model.fit(images, callbacks=[keras_issl.callbacks.NaNGuard()])`
    """

    def on_train_begin(self, logs=None):
        self.first = True

    def on_train_batch_end(self, batch, logs=None):
        if self.first:  # a loss that starts like this never recovers: an epoch would be lost on it
            self.first = False
            self._check(
                logs,
                "is {} at the first step, before any update. Look for NaN among the images, the augmentation's views "
                "and the weights the encoder started from.",
            )

    def on_epoch_end(self, epoch, logs=None):
        self._check(
            logs,
            f"became {{}} in epoch {epoch + 1}. Checkpoints from before are untouched. "
            "Lower the learning rate, clip gradients (`clipvalue`), or look for images with NaN.",
        )

    @staticmethod
    def _check(logs, what):
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(float(loss)):
            raise FloatingPointError("The loss " + what.format(float(loss)))


class StopOnSignal(keras.callbacks.Callback):
    """Turns Ctrl-C and SIGTERM into a stop at the next batch, so that what there is can be saved.

    A second Ctrl-C interrupts at once. Handlers are only installed in the main thread, and the
    previous ones come back when training ends.

    Attributes:
        received: Name of the signal that stopped the run, or `None`.
    """

    def __init__(self):
        super().__init__()
        self.received, self._previous = None, {}

    def on_train_begin(self, logs=None):
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)

    def _handle(self, number, frame):
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    def on_train_batch_end(self, batch, logs=None):
        if self.received is not None:
            self.model.stop_training = True

    def on_train_end(self, logs=None):
        self.restore()

    def restore(self):
        """Puts the previous signal handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
