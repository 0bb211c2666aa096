"""Counts what a training step of a `Pretrainer` is made of, by a symbolic pass: nothing is computed."""

import dataclasses
import math
from unittest import mock

import keras
from keras import ops
from scaling_formulae import FLOAT32, Counts

import keras_issl
from keras_issl import distribution, heads, moving_average

CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
DENSE = (keras.layers.Dense, heads.PrototypeHead)


@dataclasses.dataclass
class Calls:
    """What a pass called: [(layer, shape of its input, shape and dtype of its output, whether of a moving average)].

    `gathered` and `reduced` hold the shapes that went into `distribution.gather` and `distribution.global_mean`.
    """

    layers: list
    gathered: list
    reduced: list


class _Step(keras.layers.Layer):
    """A training step up to the loss, as a layer: symbolic inputs make it a shape inference."""

    def __init__(self, model):
        super().__init__(autocast=False)
        self.model, self.error, self.built = model, None, True

    def call(self, images):
        if self.error is not None:  # Keras on PyTorch would now compute the whole step instead
            raise self.error
        try:
            return self.model.objective.compute_loss(self.model.outputs(images, training=True), 0)[0]
        except Exception as error:
            self.error = error
            raise


def calls(model, images_shape):
    """Runs a training step symbolically and notes what it calls.

    Args:
        model: A `Pretrainer`.
        images_shape: (B, H, W, channels), all known.

    Returns:
        `Calls`.
    """
    found, inside = Calls([], [], []), []
    plain_call, plain_forward = keras.layers.Layer.__call__, moving_average.forward
    plain_gather, plain_mean = distribution.gather, distribution.global_mean
    plain_pool = distribution.pool_moments

    def call(layer, *args, **kwargs):
        outputs = plain_call(layer, *args, **kwargs)
        if hasattr(outputs, "shape"):
            inputs = tuple(args[0].shape) if args and hasattr(args[0], "shape") else None  # an addition takes a list
            # PyTorch's shape inference has dense layers in float32, whatever they compute in.
            dtype = layer.compute_dtype if isinstance(layer, keras.layers.Dense) else outputs.dtype
            dtype = keras.backend.standardize_dtype(dtype)
            found.layers.append((layer, inputs, tuple(outputs.shape), dtype, bool(inside)))
        return outputs

    def forward(*args, **kwargs):
        inside.append(True)
        try:
            return plain_forward(*args, **kwargs)
        finally:
            inside.pop()

    def gather(x):
        found.gathered.append(tuple(x.shape))
        return plain_gather(x)

    def global_mean(x):
        found.reduced.append(tuple(x.shape[1:]))
        return plain_mean(x)

    def pool_moments(mean, *others):
        found.reduced.append((2, *mean.shape))
        return plain_pool(mean, *others)

    step = _Step(model)
    with (
        mock.patch.object(keras.layers.Layer, "__call__", call),
        mock.patch.object(moving_average, "forward", forward),
        mock.patch.object(distribution, "gather", gather),
        mock.patch.object(distribution, "global_mean", global_mean),
        mock.patch.object(distribution, "pool_moments", pool_moments),
        # Classes that a metric counts: PyTorch has no shape inference for it.
        mock.patch.object(ops, "segment_sum", lambda x, ids, num_segments: ops.zeros((num_segments,))),
    ):
        step(keras.KerasTensor(images_shape, dtype="float32"))
    found.layers = [c for c in found.layers if c[0] is not step]
    return found


def multiply_adds(layer, inputs, outputs):
    """Multiply-adds of one call of a layer; 0 for those without matrices.

    Args:
        layer: A built layer.
        inputs: Shape of its input.
        outputs: Shape of its output.

    Raises:
        ValueError: It has matrices and is none of the layers that are known here.
    """
    if isinstance(layer, CONVOLUTIONS):
        return math.prod(outputs) * math.prod(layer.kernel.shape[:-1])  # kernel (h, w, C_in / groups, C_out)
    if isinstance(layer, DENSE):
        return math.prod(outputs) * inputs[-1]
    if any(len(w.shape) > 1 for w in layer.trainable_weights):
        raise ValueError(
            "The model should be made of convolutions, dense layers and layers without matrices. Received: "
            f"{layer!r}. Say in `multiply_adds` what one of its calls costs."
        )
    return 0


def count(model, images_shape, views):
    """Counts of a training step on one device.

    Args:
        model: A `Pretrainer`.
        images_shape: (B, H, W, channels), B the images of one device.
        views: [(how many, side in pixels)], for their bytes.

    Returns:
        `scaling_formulae.Counts`.
    """
    total = {"trained": 0, "teacher": 0, "trained_outputs": 0, "teacher_outputs": 0}
    norms = {"trained": [], "teacher": []}
    for layer, inputs, outputs, dtype, of_teacher in calls(model, images_shape).layers:
        if list(layer._flatten_layers(include_self=False)):
            continue  # its parts are called, too
        who = "teacher" if of_teacher else "trained"
        total[who] += multiply_adds(layer, inputs, outputs)
        total[f"{who}_outputs"] += math.prod(outputs) * (2 if dtype in ("bfloat16", "float16") else FLOAT32)
        if isinstance(layer, keras.layers.BatchNormalization):
            norms[who].append(outputs[-1])
    metrics = {id(v) for v in model.metrics_variables}
    weights = [w for w in model.weights if id(w) not in metrics]
    return Counts(
        **total,
        norms=tuple(norms["trained"]),
        teacher_norms=tuple(norms["teacher"]),
        parameters=sum(math.prod(w.shape) for w in model.trainable_weights),
        weights=sum(math.prod(w.shape) for w in weights),
        view_bytes=FLOAT32 * images_shape[0] * images_shape[-1] * sum(n * side**2 for n, side in views),
    )


def make(objective, encoder_args, views, policy):
    """A `Pretrainer` whose augmentation cuts views of given sizes out of its images.

    Args:
        objective: A function of no arguments that makes it, within the dtype policy.
        encoder_args: Of `encoders.ResNet`.
        views: [(how many, side in pixels)], the largest first.
        policy: A dtype policy.
    """

    def augmentation(images):
        return [images[:, :side, :side] for n, side in views for _ in range(n)]

    with distribution.dtype_scope(policy):
        with keras_issl.encoders.from_zeros():  # values do not matter
            encoder = keras_issl.encoders.ResNet(**encoder_args)
        return keras_issl.Pretrainer(encoder, objective(), augmentation)
