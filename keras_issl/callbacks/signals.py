"""Ctrl-C and SIGTERM as a clean stop."""

import signal
import threading
import time

import keras

AGAIN = 1.0  # seconds after which a signal is meant as a second one


class StopOnSignal(keras.callbacks.Callback):
    """Turns Ctrl-C and SIGTERM into a stop at the next batch, so that what there is can be saved.

    A second Ctrl-C, a second or more later, interrupts at once; a second SIGTERM changes nothing. Handlers are only
    installed in the main thread, when training begins, and the previous ones come back when it ends; or, within `with`,
    when what is saved then is saved.

    Attributes:
        received: Name of the signal that stopped the run, or `None`.

    Example:

    >>> with keras_issl.callbacks.StopOnSignal() as stop:
    ...     history = model.fit(images, batch_size=64, callbacks=[stop], verbose=0)
    ...     model.encoder.save("encoder.keras")
    """

    def __init__(self):
        super().__init__()
        self.received, self._at, self._previous, self._held = None, 0.0, {}, False

    def __enter__(self):
        self._held = True
        return self

    def __exit__(self, *error):
        self._held = False
        self.restore()

    def on_train_begin(self, logs=None):
        if threading.current_thread() is not threading.main_thread() or self._previous:
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)

    def _handle(self, number, frame):
        now = time.monotonic()
        if self.received is not None:
            if number == signal.SIGTERM or now - self._at < AGAIN:  # the same one, by way of another process
                return
            raise KeyboardInterrupt
        self.received, self._at = signal.Signals(number).name, now

    def on_train_batch_end(self, batch, logs=None):
        if self.received is not None:
            self.model.stop_training = True

    def on_train_end(self, logs=None):
        if not self._held:
            self.restore()

    def restore(self):
        """Puts the previous signal handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
