"""The contract of an objective. A new one is one file beside this and one line in `__init__`."""

import math

import keras
from keras import ops

from keras_issl import distribution, moving_average
from keras_issl.heads import unit_rows

PROBES = ("linear", "mlp")


def check_positive(**values):
    """Raises a `ValueError` that names the first value which is not a finite positive number."""
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"`{name}` should be a finite number above 0. Received: {value}")


def check_chunk_size(value):
    """Raises a `ValueError` unless `chunk_size` is `None` or a positive integer."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(
            "`chunk_size` should be None, for the whole batch at once, or a positive number of images. "
            f"Received: {value!r}"
        )


def check_views(name, tensor, least_views, most_views=None):
    """Checks that a tensor is (views, batch, width) with enough views, as far as shapes are static."""
    if len(tensor.shape) != 3:
        raise ValueError(
            f"`{name}` should have three axes, (views, batch, width): views first. "
            f"Received shape: {tuple(tensor.shape)}"
        )
    views = tensor.shape[0]
    if views is not None and views < least_views:
        raise ValueError(
            f"`{name}` should hold at least {least_views} views of each image, stacked on the first axis. "
            f"Received shape: {tuple(tensor.shape)}. An augmentation with `num_views={least_views}` makes them."
        )
    if views is not None and most_views is not None and views > most_views:
        raise ValueError(
            f"`{name}` should hold exactly {most_views} views, ({most_views}, batch, width). "
            f"Received shape: {tuple(tensor.shape)}"
        )


def check_pair(*, least_images=1, **tensors):
    """Checks that tensors are (2, batch, width), of one shape, with enough images, as far as shapes are static."""
    for name, tensor in tensors.items():
        check_views(name, tensor, 2, most_views=2)
        if tensor.shape[1] is not None and tensor.shape[1] * distribution.num_replicas() < least_images:
            raise ValueError(
                f"`{name}` should hold a batch of at least {least_images} images: the loss compares them with each "
                f"other. Received shape: {tuple(tensor.shape)}. Use a larger `batch_size`."
            )
    (first, a), (last, b) = next(iter(tensors.items())), list(tensors.items())[-1]
    if any(m != n for m, n in zip(a.shape, b.shape, strict=True) if None not in (m, n)):
        raise ValueError(f"`{first}` and `{last}` should have one shape. Received: {tuple(a.shape)}, {tuple(b.shape)}")


def feature_std(x):
    """Collapse in a number: √D times the mean standard deviation over the global batch of rows of unit length.

    About 1 when images differ in all directions, 0 when all have the same projection. Without gradient.

    Args:
        x: (V, B, D).

    Source: Chen & He 2021 (SimSiam), figure 2.
    """
    rows = ops.stop_gradient(unit_rows(x))
    # Two moments, and not the rows, are asked of the other replicas.
    _, variance = distribution.pool_moments(ops.mean(rows, axis=1), ops.var(rows, axis=1))  # (V, D)
    return ops.mean(ops.sqrt(variance)) * x.shape[-1] ** 0.5


def mean_of(tensors):
    """The mean of a list of tensors of one shape."""
    return sum(tensors) / len(tensors)


def flat(x):
    """(V, B, D) -> (V·B, D): the views of a batch one after the other."""
    return ops.reshape(x, (-1, x.shape[-1]))


def build_heads(width, *heads):
    """Builds heads for features of a width; a user's layer may come built."""
    for head in heads:
        if not head.built:
            head.build((None, width))
            head.built = True


def apply_head(head, features, training):
    """Runs a head once over all views together, so that its batch statistics see them all.

    Args:
        head: A layer from (N, D) to (N, E).
        features: (V, B, D) features.
        training: Whether batch statistics are used and updated.

    Returns:
        (V, B, E) in float32: losses are computed in float32 whatever the compute dtype.
    """
    return _by_view(head(flat(features), training=training), features)


def apply_teacher_head(head, features, training):
    """`apply_head` for a head that follows another (`Objective.follow`): without gradient, its state stays.

    In training it normalises with the statistics of its own batch; its moving ones follow the student's.

    Raises:
        ValueError: The features are `None`.
    """
    if features is None:
        raise ValueError(
            "`teacher_features` should be the (T, batch, width) features of the moving-average encoder for the first T "
            "views. Received: None. The `Pretrainer` passes them."
        )
    return _by_view(moving_average.forward(head, flat(features), training=training), features)


def _by_view(x, features):
    return ops.cast(ops.reshape(x, (features.shape[0], -1, x.shape[-1])), "float32")  # (V·B, E) -> (V, B, E)


def require_teacher_momentum(momentum):
    """Raises a `ValueError` for a `teacher_momentum` of `None`, for objectives whose teacher is a moving average."""
    if momentum is None:
        raise ValueError(
            "`teacher_momentum` should be a number in [0, 1], or a pair (first, last) of such numbers: the teacher is "
            "a moving average. Received: None. Use 0.0 for a teacher that is the student."
        )


def _momentum_bounds(momentum):
    """`teacher_momentum` as a (first, last) pair of floats."""
    pair = momentum if isinstance(momentum, (tuple, list)) else (momentum, momentum)
    numbers = len(pair) == 2 and all(isinstance(m, (int, float)) and 0 <= m <= 1 for m in pair)
    if not numbers:
        raise ValueError(
            "`teacher_momentum` should be None, a number in [0, 1], or a pair (first, last) of such numbers. "
            f"Received: {momentum!r}"
        )
    return tuple(float(m) for m in pair)


class Objective(keras.layers.Layer):
    """What the features are trained to do: heads, a loss, and the names of what it reports.

    A subclass stores its hyperparameters in `__init__` (every one with a default), makes its heads
    in `build`, runs them in `call` and scores their outputs in `compute_loss`. The `Pretrainer`
    builds it with the width of the encoder's features and reads what it *declares*:

    Attributes:
        log_names: Names of the scalars that `compute_loss` returns beside the loss.
        num_views: Views of an image that it needs.
        num_teacher_views: T, how many of them, from the first, are the teacher's.
        multi_crop: Whether it takes more than `num_views` views, the further ones (small crops) for
            the student alone.
        teacher_momentum: `None`; or m, the share of its weights that a moving-average copy of the
            encoder, the EMA teacher, keeps each step: then `call` gets the teacher's features. A
            pair (first, last) is joined by a cosine over the run.
        needs_batch_statistics: Whether the loss couples the images of a batch, so that an
            incomplete batch is a different objective.
        uses_run_length: Whether its schedules need the length of the run: then `progress` and
            `epoch` tell how much of it is done. A pair as `teacher_momentum` needs it.
        probe: `"linear"`, `"mlp"` or a layer: the probe family that the student head belongs to.
        teacher_pairs: [(head, its EMA copy)], as `follow` notes them.

    `call(student_features, teacher_features=None, training=None)` takes features of shape
    (V, B, D), (T, B, D) and returns a dict of float32 tensors. State that moves with training
    (centres, queues) is read and updated there, when `training` is true: `compute_loss` also
    evaluates. `compute_loss(outputs, step)` takes that dict and the number of finished steps, and
    returns a scalar and a dict of scalars.

    Example: see `testing.check_objective`, which holds any objective against this contract.
    """

    log_names = ()
    num_views = 2
    num_teacher_views = 2
    multi_crop = False
    teacher_momentum = None
    needs_batch_statistics = True
    uses_run_length = False

    def __init__(self, probe="linear", *, teacher_momentum=None, uses_run_length=None, **kwargs):
        super().__init__(**kwargs)
        if isinstance(probe, dict):  # a layer, on its way back from get_config
            probe = keras.saving.deserialize_keras_object(probe)
        if not isinstance(probe, keras.layers.Layer) and probe not in PROBES:
            raise ValueError(f"`probe` should be one of {PROBES}, or a Keras layer. Received: {probe!r}")
        self.probe = probe
        self.teacher_pairs = []
        self._given = {} if teacher_momentum is None else {"teacher_momentum": teacher_momentum}
        if teacher_momentum is not None:
            self.teacher_momentum = teacher_momentum
        if uses_run_length is not None:
            self.uses_run_length = uses_run_length
        if self.teacher_momentum is not None:
            first, last = _momentum_bounds(self.teacher_momentum)
            self.uses_run_length = self.uses_run_length or first != last
        if self.uses_run_length:  # state, so that a compiled step need not know the run it is part of
            state = {"shape": (), "dtype": "int32", "trainable": False, "initializer": "zeros"}
            self.run_epochs = self.add_weight(name="run_epochs", **state)
            self.epoch_steps = self.add_weight(name="epoch_steps", **state)
            self.first_step = self.add_weight(name="first_step", **state)

    # ------------------------------------------------------------------ what a subclass writes
    def compute_loss(self, outputs, step):
        """The loss of what `call` returned, and the scalars named in `log_names`.

        Args:
            outputs: The dict that `call` returned.
            step: Finished training steps, an integer tensor; for schedules.

        Returns:
            A float32 scalar, and a dict of float32 scalars.
        """
        raise NotImplementedError

    def check_run(self, *, batch_size, epochs, steps_per_epoch):
        """Raises a `ValueError` for a run that does not suit the objective; `fit` calls it before its first step.

        Args:
            batch_size: Images a batch, or `None` where a stream does not say.
            epochs: Epochs of the run, those before `initial_epoch` included.
            steps_per_epoch: Steps an epoch, or `None` where a stream does not say.
        """

    # ------------------------------------------------------------------ the EMA teacher
    def follow(self, head):
        """A copy of a built head whose weights are the moving average of the head's; for `build`.

        Args:
            head: A built layer.

        Returns:
            The copy, with the head's values. Run it with `apply_teacher_head`.
        """
        copy = moving_average.follower(head)
        self.teacher_pairs.append((head, copy))
        return copy

    def momentum(self, step):
        """The EMA teacher's momentum m after `step` finished steps, a number or float32 scalar.

        Between a pair (first, last) it is last − (last − first)·(cos(π·progress) + 1)/2: first at the beginning of the
        run, last at its end.
        """
        first, last = _momentum_bounds(self.teacher_momentum)
        if first == last:
            return first
        return last - (last - first) * (ops.cos(math.pi * self.progress(step)) + 1.0) / 2.0

    # ------------------------------------------------------------------ the length of the run
    def set_run_length(self, epochs, steps_per_epoch, *, first_step=0):
        """Notes the length of the run, from which `progress` and `epoch` follow.

        `fit` calls it; whoever trains with `train_on_batch` does so before.

        Args:
            epochs: Epochs of the run.
            steps_per_epoch: Steps an epoch.
            first_step: Finished steps when the run began, those of earlier runs.
        """
        self.run_epochs.assign(epochs)
        self.epoch_steps.assign(steps_per_epoch)
        self.first_step.assign(first_step)

    def epoch(self, step):
        """Finished epochs of the run after `step` finished steps, with their fraction, float32; 0 before any `fit`."""
        length = ops.convert_to_tensor(self.epoch_steps)
        done = ops.maximum(ops.cast(step, "int32") - ops.convert_to_tensor(self.first_step), 0)
        known = ops.cast(length > 0, "float32")
        return known * ops.cast(done, "float32") / ops.cast(ops.maximum(length, 1), "float32")

    def progress(self, step):
        """Share of the run that is done after `step` finished steps, float32 in [0, 1]; 0 before any `fit`."""
        epochs = ops.cast(ops.maximum(ops.convert_to_tensor(self.run_epochs), 1), "float32")
        return ops.minimum(self.epoch(step) / epochs, 1.0)

    def get_config(self):
        probe = self.probe
        if isinstance(probe, keras.layers.Layer):
            probe = keras.saving.serialize_keras_object(probe)
        return super().get_config() | {"probe": probe, **self._given}
