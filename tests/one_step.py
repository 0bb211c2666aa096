"""A few SGD steps of every objective from given weights: `python one_step.py FOLDER`, backend by KERAS_BACKEND."""

import sys

import keras
import members
import numpy as np
from keras import ops

import keras_issl
from keras_issl import moving_average


def two_views(images):
    """Two views that differ, without any randomness."""
    x = ops.cast(images, "float32")
    return [x, ops.flip(x, axis=2) * 0.9 + 5.0]


STEPS = 3  # an EMA teacher is the student in the first, and has left it in the third


def make(objective, **arguments):
    """A small pretrainer whose weights come from NumPy, so that every backend starts from the same."""
    encoder = keras_issl.encoders.ResNet(blocks=(1, 1), width=8, image_size=12, stem="cifar")
    model = keras_issl.Pretrainer(encoder, members.SMALL[objective](**arguments), two_views)
    rng = np.random.default_rng(0)
    for w in model.trainable_weights:
        if len(w.shape) > 1:
            fan_in = int(np.prod(w.shape[:-1]))
            w.assign(rng.normal(size=w.shape).astype("float32") / np.sqrt(fan_in))
        elif w.path.endswith("bias"):
            w.assign(0.1 * rng.normal(size=w.shape).astype("float32"))
    for layer, copy in [(model.encoder, model.teacher_encoder), *model.objective.teacher_pairs]:
        if copy is not None:
            moving_average.follow(layer, copy, 0.0)
    return model


def step(objective):
    """Weights and state after `STEPS` steps, as arrays by path."""
    ema = members.SMALL[objective]().teacher_momentum is not None
    model = make(objective, **({"teacher_momentum": (0.5, 0.9)} if ema else {}))  # so that teachers move, by a schedule
    # A rate at which rounding (2e-7) stays small: at 0.05 it reaches 3e-6 and flips a ReLU in the third step, 3e-3.
    model.compile(keras.optimizers.SGD(0.01))
    images = np.random.default_rng(1).integers(0, 256, (STEPS * 16, 12, 12, 3)).astype("uint8")
    history = model.fit(images, batch_size=16, shuffle=False, verbose=0).history
    weights = {f"{i:03d}": ops.convert_to_numpy(w) for i, w in enumerate(model.weights)}
    return weights | {"loss": np.float32(history["loss"][0])}


if __name__ == "__main__":
    for name in members.SMALL:
        np.savez(f"{sys.argv[1]}/{name}.npz", **step(name))
