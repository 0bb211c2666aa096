"""The contract of an objective. A new one is one file beside this and one line in `__init__`."""

import keras
from keras import ops

PROBES = ("linear", "mlp")


def check_positive(**values):
    """Raises a `ValueError` that names the first value which is not a finite positive number."""
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"`{name}` should be a finite number above 0. Received: {value}")


def check_views(name, tensor, least_views):
    """Checks that a tensor is (views, batch, width) with enough views, as far as shapes are static."""
    if len(tensor.shape) != 3:
        raise ValueError(
            f"`{name}` should have three axes, (views, batch, width): views first. "
            f"Received shape: {tuple(tensor.shape)}"
        )
    if tensor.shape[0] is not None and tensor.shape[0] < least_views:
        raise ValueError(
            f"`{name}` should hold at least {least_views} views of each image, stacked on the first axis. "
            f"Received shape: {tuple(tensor.shape)}. An augmentation with `num_views={least_views}` makes them."
        )


def build_heads(width, *heads):
    """Builds heads for features of a width; a user's layer may come built."""
    for head in heads:
        if not head.built:
            head.build((None, width))


def apply_head(head, features, training):
    """Runs a head once over all views together, so that its batch statistics see them all.

    Args:
        head: A layer from (N, D) to (N, E).
        features: (V, B, D) features.
        training: Whether batch statistics are used and updated.

    Returns:
        (V, B, E) in float32: losses are computed in float32 whatever the compute dtype.
    """
    views, width = features.shape[0], features.shape[-1]
    x = head(ops.reshape(features, (-1, width)), training=training)  # (V·B, E)
    return ops.cast(ops.reshape(x, (views, -1, x.shape[-1])), "float32")  # (V, B, E)


class Objective(keras.layers.Layer):
    """What the features are trained to do: heads, a loss, and the names of what it reports.

    A subclass stores its hyperparameters in `__init__` (every one with a default), makes its heads
    in `build`, runs them in `call` and scores their outputs in `compute_loss`. The `Pretrainer`
    builds it with the width of the encoder's features and reads what it *declares*:

    Attributes:
        log_names: Names of the scalars that `compute_loss` returns beside the loss.
        num_views: Views of an image that it needs, at least.
        num_teacher_views: How many of them, from the first, are the teacher's.
        teacher_momentum: `None`, or the momentum of a moving-average copy of the encoder whose
            features it wants as `teacher_features`.
        needs_batch_statistics: Whether the loss couples the images of a batch, so that an
            incomplete batch is a different objective.
        probe: `"linear"`, `"mlp"` or a layer: the probe family that the student head belongs to.

    `call(student_features, teacher_features=None, training=None)` takes features of shape
    (V, B, D), (T, B, D) and returns a dict of float32 tensors. `compute_loss(outputs, step)` takes
    that dict and the number of finished steps, and returns a scalar and a dict of scalars.

    Example: see `testing.check_objective`, which holds any objective against this contract.
    """

    log_names = ()
    num_views = 2
    num_teacher_views = 2
    teacher_momentum = None
    needs_batch_statistics = True

    def __init__(self, probe="linear", **kwargs):
        super().__init__(**kwargs)
        if isinstance(probe, dict):  # a layer, on its way back from get_config
            probe = keras.saving.deserialize_keras_object(probe)
        if not isinstance(probe, keras.layers.Layer) and probe not in PROBES:
            raise ValueError(f"`probe` should be one of {PROBES}, or a Keras layer. Received: {probe!r}")
        self.probe = probe

    def compute_loss(self, outputs, step):
        """The loss of what `call` returned, and the scalars named in `log_names`.

        Args:
            outputs: The dict that `call` returned.
            step: Finished training steps, an integer tensor; for schedules.

        Returns:
            A float32 scalar, and a dict of float32 scalars.
        """
        raise NotImplementedError

    def get_config(self):
        probe = self.probe
        if isinstance(probe, keras.layers.Layer):
            probe = keras.saving.serialize_keras_object(probe)
        return super().get_config() | {"probe": probe}
