"""One SGD step of a pretrainer from given weights: `python one_step.py OBJECTIVE OUT.npz`, backend by KERAS_BACKEND."""

import sys

import keras
import numpy as np
from keras import ops

import keras_issl


def two_views(images):
    """Two views that differ, without any randomness."""
    x = ops.cast(images, "float32")
    return [x, ops.flip(x, axis=2) * 0.9 + 5.0]


def make(objective):
    """A small pretrainer whose weights come from NumPy, so that every backend starts from the same."""
    members = {
        "DISSL": lambda: keras_issl.objectives.DISSL(num_classes=12, teacher_hidden=(16,), bottleneck=8),
        "CISSL": lambda: keras_issl.objectives.CISSL(output_dim=8, hidden=(16,)),
        "SimCLR": lambda: keras_issl.objectives.SimCLR(output_dim=8, hidden=(16,), temperature=0.5),
    }
    encoder = keras_issl.encoders.ResNet(blocks=(1, 1), width=8, image_size=12, stem="cifar")
    model = keras_issl.Pretrainer(encoder, members[objective](), two_views)
    rng = np.random.default_rng(0)
    for w in model.trainable_weights:
        if len(w.shape) > 1:
            fan_in = int(np.prod(w.shape[:-1]))
            w.assign(rng.normal(size=w.shape).astype("float32") / np.sqrt(fan_in))
    return model


def step(objective):
    """Weights and state after one step, as arrays by path."""
    model = make(objective)
    model.compile(keras.optimizers.SGD(0.05))
    images = np.random.default_rng(1).integers(0, 256, (16, 12, 12, 3)).astype("uint8")
    history = model.fit(images, batch_size=16, shuffle=False, verbose=0).history
    weights = {f"{i:03d}": ops.convert_to_numpy(w) for i, w in enumerate(model.weights)}
    return weights | {"loss": np.float32(history["loss"][0])}


if __name__ == "__main__":
    np.savez(sys.argv[2], **step(sys.argv[1]))
