"""Processes of one run stop at the same step, or those that go on would wait for the others for ever."""

import keras

from keras_issl import distribution


class StopTogether(keras.callbacks.Callback):
    """Takes a wish of one process to stop as that of all; `Pretrainer.fit` brings it, as the last callback.

    A callback sets `model.stop_training` in its own process, because a signal arrived there or its clock said so. The
    wish is sent off after each step and read one step later, so that no device has to wait for the answer.

    Example:

    >>> history = model.fit(images, callbacks=[keras_issl.callbacks.StopTogether()], verbose=0)
    """

    def on_train_begin(self, logs=None):
        self.wish, self.answer = False, None

    def on_train_batch_end(self, batch, logs=None):
        self.wish = self.wish or self.model.stop_training
        self.model.stop_training = self.answer is not None and self.answer()
        self.answer = distribution.any_process(self.wish)

    def on_epoch_end(self, epoch, logs=None):
        self.wish = self.wish or self.model.stop_training
        before = self.answer is not None and self.answer()
        self.model.stop_training = distribution.any_process(self.wish)() or before
        self.answer = None
