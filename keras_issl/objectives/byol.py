"""BYOL and SimSiam: one view predicts the other's projection, and nothing pushes images apart."""

import keras
from keras import ops

from keras_issl.heads import MLPHead, check_initialization
from keras_issl.objectives.base import (
    Objective,
    apply_head,
    apply_teacher_head,
    build_heads,
    check_pair,
    check_positive,
    feature_std,
    require_teacher_momentum,
    unit_rows,
)


def _cosine(predictions, targets):
    """Mean cosine of each view's prediction and the *other* view's target, which gets no gradient."""
    p, t = unit_rows(predictions), ops.stop_gradient(unit_rows(targets))  # (2, B, D)
    return ops.mean(ops.sum(p * ops.flip(t, axis=0), axis=-1))


def byol_loss(*, predictions, targets):
    """BYOL: the squared distance between unit-length predictions and targets, summed over both directions.

    With p_i the online network's prediction for view i and t_j the target network's projection of view j, both scaled
    to unit length, it is the batch mean of `(2 − 2 p_1·t_2) + (2 − 2 p_2·t_1)`: 0 when each view predicts the other,
    4 when they are orthogonal. The targets get no gradient.

    Args:
        predictions: (2, B, D) outputs of the predictor, views first.
        targets: (2, B, D) projections of the moving-average network.

    Returns:
        A float32 scalar in [0, 8].

    Raises:
        ValueError: Another rank, another number of views than 2, or shapes that differ.

    Source: Grill et al. 2020, "Bootstrap Your Own Latent", §3.1, equation 2 and its symmetrisation.

    Example:

    >>> z = keras.random.normal((2, 8, 16), seed=0)
    >>> loss = byol_loss(predictions=z, targets=z)
    """
    predictions, targets = ops.convert_to_tensor(predictions), ops.convert_to_tensor(targets)
    check_pair(predictions=predictions, targets=targets)
    return 4.0 - 4.0 * _cosine(predictions, targets)


def simsiam_loss(*, predictions, projections):
    """SimSiam: the negative cosine between predictions and projections, averaged over both directions.

    With p_i the prediction and z_i the projection of view i, it is the batch mean of `−½ cos(p_1, z_2) − ½ cos(p_2,
    z_1)`. The projections get no gradient here: that is what keeps them from collapsing.

    Args:
        predictions: (2, B, D) outputs of the predictor, views first.
        projections: (2, B, D) outputs of the projector.

    Returns:
        A float32 scalar in [-1, 1].

    Raises:
        ValueError: Another rank, another number of views than 2, or shapes that differ.

    Source: Chen & He 2021, "Exploring Simple Siamese Representation Learning", equations 1, 3 and 4.

    Example:

    >>> z = keras.random.normal((2, 8, 16), seed=0)
    >>> loss = simsiam_loss(predictions=z, projections=z)
    """
    predictions, projections = ops.convert_to_tensor(predictions), ops.convert_to_tensor(projections)
    check_pair(predictions=predictions, projections=projections)
    return -_cosine(predictions, projections)


class _Predictive(Objective):
    """What BYOL and SimSiam share: their hyperparameters and what they report."""

    log_names = ("alignment", "feature_std")
    needs_batch_statistics = False  # an image's loss is its own

    def __init__(self, output_dim, hidden, predictor_hidden, heads, probe, **kwargs):
        super().__init__(probe=probe, **kwargs)
        check_positive(output_dim=output_dim)
        check_initialization("heads", heads)
        self.output_dim, self.hidden, self.predictor_hidden = output_dim, hidden, predictor_hidden
        self.heads = heads

    def _logs(self, outputs, targets):
        return {
            "alignment": ops.stop_gradient(_cosine(outputs["predictions"], targets)),
            "feature_std": feature_std(targets),
        }

    def get_config(self):
        names = ("output_dim", "hidden", "predictor_hidden", "heads")
        return super().get_config() | {name: getattr(self, name) for name in names}


@keras.saving.register_keras_serializable(package="keras_issl")
class BYOL(_Predictive):
    """Bootstrap your own latent: `byol_loss` against a moving-average copy of encoder and projector.

    The student's predictor (Linear, batch normalisation, ReLU, Linear) predicts, from one view, what the teacher's
    projector (a stack of the same kind) makes of the other. Output layers have no bias and no normalisation. Batch
    statistics are those of both views together.

    Args:
        output_dim: Width of projections and predictions.
        hidden: Hidden widths of the projector.
        predictor_hidden: Hidden widths of the predictor.
        teacher_momentum: m of the moving average; a pair goes from the first to the last by a cosine over the run.
            The paper's 0.996 is for 1000 epochs on ImageNet; its 300-epoch runs use 0.99.
        heads: `"imagenet"` or `"small_images"`: how linear layers start, as in `heads.MLPHead`.
        probe: Downstream probe family; it is recorded, the heads do not depend on it.

    It reports `alignment`, the mean cosine between a prediction and its target (1 when one view predicts the other),
    and `feature_std`, √D times the mean standard deviation over the batch of the targets at unit length: about 1 when
    images differ in all directions, 0 when all have the same projection (collapse).

    Raises:
        ValueError: A width that is not above 0, a momentum outside [0, 1] or `None`, an unknown probe or
            initialisation.

    Source: Grill et al. 2020, equation 2 and appendix on implementation; heads and momentum: §3.2.

    Example:

    >>> objective = BYOL(output_dim=16, hidden=(64,), predictor_hidden=(64,))
    >>> features = keras.random.normal((2, 8, 32), seed=0)
    >>> outputs = objective(features, features, training=True)
    >>> loss, logs = objective.compute_loss(outputs, step=0)
    """

    def __init__(
        self,
        output_dim=256,
        hidden=(4096,),
        predictor_hidden=(4096,),
        teacher_momentum=(0.996, 1.0),
        heads="imagenet",
        probe="linear",
        **kwargs,
    ):
        require_teacher_momentum(teacher_momentum)
        kwargs["teacher_momentum"] = teacher_momentum
        super().__init__(output_dim, hidden, predictor_hidden, heads, probe, **kwargs)

    def build(self, student_features_shape, teacher_features_shape=None):
        # A bias of the projector would vanish in the predictor's batch normalisation.
        linear = {"initialization": self.heads, "output_bias": False}
        self.projector = MLPHead(self.output_dim, hidden=self.hidden, **linear)
        self.predictor = MLPHead(self.output_dim, hidden=self.predictor_hidden, **linear)
        build_heads(student_features_shape[-1], self.projector)
        build_heads(self.output_dim, self.predictor)
        self.teacher_projector = self.follow(self.projector)

    def call(self, student_features, teacher_features=None, training=None):
        projections = apply_head(self.projector, student_features, training)  # (2, B, E)
        return {
            "predictions": apply_head(self.predictor, projections, training),  # (2, B, E)
            "targets": apply_teacher_head(self.teacher_projector, teacher_features, training),  # (2, B, E)
        }

    def compute_loss(self, outputs, step):
        loss = byol_loss(predictions=outputs["predictions"], targets=outputs["targets"])
        return loss, self._logs(outputs, outputs["targets"])


@keras.saving.register_keras_serializable(package="keras_issl")
class SimSiam(_Predictive):
    """Simple Siamese representation learning: `simsiam_loss`, without teacher, negatives or large batches.

    The projector ends in batch normalisation without offset and scale; the predictor, a bottleneck, ends in a linear
    layer with a bias and no normalisation. Batch statistics are those of both views together. The paper keeps the
    learning rate of the predictor constant; here one schedule drives all weights.

    Args:
        output_dim: Width of projections and predictions.
        hidden: Hidden widths of the projector; the paper's has three layers of 2048 (two on CIFAR-10).
        predictor_hidden: Hidden widths of the predictor; the paper's is a quarter of `output_dim`.
        heads: `"imagenet"` or `"small_images"`: how linear layers start, as in `heads.MLPHead`.
        probe: Downstream probe family; it is recorded, the heads do not depend on it.

    It reports `alignment`, the mean cosine between a prediction and the other view's projection, and `feature_std`, √D
    times the mean standard deviation over the batch of the projections at unit length: about 1 when images differ in
    all directions, 0 when all have the same projection (the paper's figure 2, times √D).

    Raises:
        ValueError: A width that is not above 0, an unknown probe or initialisation.

    Source: Chen & He 2021, equations 3 and 4; heads: §3, baseline settings.

    Example:

    >>> objective = SimSiam(output_dim=32, hidden=(64, 64), predictor_hidden=(8,))
    >>> outputs = objective(keras.random.normal((2, 8, 32), seed=0), training=True)
    >>> loss, logs = objective.compute_loss(outputs, step=0)
    """

    def __init__(
        self,
        output_dim=2048,
        hidden=(2048, 2048),
        predictor_hidden=(512,),
        heads="imagenet",
        probe="linear",
        **kwargs,
    ):
        super().__init__(output_dim, hidden, predictor_hidden, heads, probe, **kwargs)

    def build(self, student_features_shape, teacher_features_shape=None):
        start = {"initialization": self.heads}
        self.projector = MLPHead(self.output_dim, hidden=self.hidden, output_norm="no_affine", **start)
        self.predictor = MLPHead(self.output_dim, hidden=self.predictor_hidden, **start)
        build_heads(student_features_shape[-1], self.projector)
        build_heads(self.output_dim, self.predictor)

    def call(self, student_features, teacher_features=None, training=None):
        projections = apply_head(self.projector, student_features, training)  # (2, B, E)
        return {
            "predictions": apply_head(self.predictor, projections, training),  # (2, B, E)
            "projections": projections,
        }

    def compute_loss(self, outputs, step):
        loss = simsiam_loss(predictions=outputs["predictions"], projections=outputs["projections"])
        return loss, self._logs(outputs, outputs["projections"])
