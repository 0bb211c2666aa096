"""Where the time of a training step goes: its parts, compiled and timed apart on one batch."""

import statistics
import time

import keras
from keras import ops

ROUNDS = 5


class Part(keras.Model):
    """A function of a batch, compiled by itself; a number an image comes back, so that all of it is computed."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, images):
        tensors = self.function(images)
        return sum(ops.reshape(ops.mean(ops.cast(x, "float32"), axis=axes), (-1,)) for x, axes in tensors)


def step_parts(model, images, step):
    """Seconds that the parts of a step take.

    The parts up to the loss are timed in inference mode, each compiled by itself; backward and update are what is left
    of the step. So the split is an estimate, and the whole is measured.

    Args:
        model: A trained `Pretrainer`.
        images: (B, H, W, C), one batch.
        step: Seconds of a whole step without loading.

    Returns:
        A dict: `"make views"`, `"encoder and heads, forward"`, `"backward and update"` -> seconds.

    Example:

    >>> parts = keras_issl.runs.profile.step_parts(model, images[:64], step=1.0)
    >>> list(parts)
    ['make views', 'encoder and heads, forward', 'backward and update']
    """

    def views(batch):
        made = model.views(model._to_encoder_channels(batch), training=False)
        return [(view, (1, 2, 3)) for view in made]  # (B, h, w, C)

    def forward(batch):
        made = model.views(model._to_encoder_channels(batch), training=False)
        teacher = None if model.teacher_encoder is None else model.teacher_features(made, training=False)
        outputs = model.objective(model.features(made, training=False), teacher, training=False)
        # (V, B, C): views first.
        return [(x, (0, 2) if len(x.shape) == 3 else tuple(range(1, len(x.shape)))) for x in outputs.values()]

    made = min(_seconds(views, images), step)
    whole = min(max(_seconds(forward, images), made), step)
    return {"make views": made, "encoder and heads, forward": whole - made, "backward and update": step - whole}


def _seconds(function, images):
    part = Part(function)
    part.predict_on_batch(images)  # compiles
    times = []
    for _ in range(ROUNDS):
        began = time.monotonic()
        part.predict_on_batch(images)
        times.append(time.monotonic() - began)
    return statistics.median(times)
