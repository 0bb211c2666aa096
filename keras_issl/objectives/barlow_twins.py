"""Barlow Twins: the cross-correlation of two views should be the identity."""

import keras
from keras import ops

from keras_issl import distribution
from keras_issl.heads import MLPHead, check_initialization
from keras_issl.objectives.base import Objective, apply_head, build_heads, check_pair, check_positive, feature_std

EPSILON = 1e-5  # added to variances, as batch normalisation does: a dimension without variance correlates with nothing


def _standardised(x):
    """(B, D) with mean 0 and variance 1 over the images of the global batch."""
    x = distribution.gather(ops.cast(x, "float32"))  # (global B, D)
    x = x - ops.mean(x, axis=0)
    return x * ops.rsqrt(ops.mean(ops.square(x), axis=0) + EPSILON)


def barlow_twins_loss(projections, *, off_diagonal_weight=0.0051):
    """Barlow Twins: Σ_i (1 − C_ii)² + λ Σ_{i≠j} C_ij², with C the cross-correlation of two views.

    Each dimension of each view is standardised over the *global* batch (mean 0, variance 1, 1e-5 added to the variance
    as in batch normalisation); C_ij is then the batch mean of dimension i of view 1 times dimension j of view 2. It is
    0 when both views agree and the dimensions are uncorrelated, and D when all projections are equal.

    The D × D matrix is never made where D exceeds the batch: Σ_ij C_ij² is also the sum of the products of the entries
    of the views' B × B Gram matrices, over B².

    Args:
        projections: (2, B, D) projections, views first.
        off_diagonal_weight: λ.

    Returns:
        A float32 scalar and a dict of float32 scalars (without gradient): `invariance` Σ_i (1 − C_ii)²,
        `redundancy` Σ_{i≠j} C_ij², and `correlation`, the mean of C_ii (1 when invariant, 0 when collapsed).

    Raises:
        ValueError: Another rank, another number of views than 2, a batch of one image, or a weight that is not above 0.

    Source: Zbontar et al. 2021, "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", equations 1 and 2.

    Example:

    >>> loss, logs = barlow_twins_loss(keras.random.normal((2, 8, 16), seed=0))
    """
    check_positive(off_diagonal_weight=off_diagonal_weight)
    projections = ops.convert_to_tensor(projections)
    check_pair(least_images=2, projections=projections)
    a, b = _standardised(projections[0]), _standardised(projections[1])  # (B, D)
    batch = ops.cast(ops.shape(a)[0], "float32")
    diagonal = ops.mean(a * b, axis=0)  # (D,)
    if a.shape[0] is None or a.shape[0] < a.shape[1]:
        squares = ops.sum(ops.matmul(a, ops.transpose(a)) * ops.matmul(b, ops.transpose(b)))  # of B × B matrices
    else:
        squares = ops.sum(ops.square(ops.matmul(ops.transpose(a), b)))  # of a D × D matrix
    invariance = ops.sum(ops.square(1.0 - diagonal))
    redundancy = squares / ops.square(batch) - ops.sum(ops.square(diagonal))
    logs = {"invariance": invariance, "redundancy": redundancy, "correlation": ops.mean(diagonal)}
    logs = {name: ops.stop_gradient(value) for name, value in logs.items()}
    return invariance + off_diagonal_weight * redundancy, logs


@keras.saving.register_keras_serializable(package="keras_issl")
class BarlowTwins(Objective):
    """Redundancy reduction: `barlow_twins_loss` on one shared, wide MLP head.

    The head is Linear (no bias), batch normalisation, ReLU, twice, and a Linear without bias; the standardisation that
    follows belongs to the loss.

    Args:
        off_diagonal_weight: λ, the weight of the redundancy. The paper says 0.005; 0.0051 is what its released code
            and its results use. It was tuned for D = 8192: Σ_{i≠j} grows with D², Σ_i with D.
        output_dim: D, width of the projections; the paper gains from width up to 16384.
        hidden: Hidden widths of the head.
        heads: `"imagenet"` or `"small_images"`: how linear layers start, as in `heads.MLPHead`.
        probe: Downstream probe family; it is recorded, the shared head does not depend on it.

    It reports `invariance`, `redundancy` and `correlation` of `barlow_twins_loss`, and `feature_std`, √D times the mean
    standard deviation over the batch of the projections at unit length: about 1 when images differ in all directions,
    0 when all have the same projection (collapse).

    Raises:
        ValueError: A weight or width that is not above 0, an unknown probe or initialisation.

    Source: Zbontar et al. 2021, equations 1 and 2; head and λ: §2.2.

    Example:

    >>> objective = BarlowTwins(output_dim=64, hidden=(64, 64))
    >>> outputs = objective(keras.random.normal((2, 8, 32), seed=0), training=True)
    >>> loss, logs = objective.compute_loss(outputs, step=0)
    """

    log_names = ("invariance", "redundancy", "correlation", "feature_std")

    def __init__(
        self,
        off_diagonal_weight=0.0051,
        output_dim=8192,
        hidden=(8192, 8192),
        heads="imagenet",
        probe="linear",
        **kwargs,
    ):
        super().__init__(probe=probe, **kwargs)
        check_positive(off_diagonal_weight=off_diagonal_weight, output_dim=output_dim)
        check_initialization("heads", heads)
        self.off_diagonal_weight, self.output_dim = off_diagonal_weight, output_dim
        self.hidden, self.heads = hidden, heads

    def build(self, student_features_shape, teacher_features_shape=None):
        # The loss subtracts the mean: a bias of the last layer would get no gradient.
        self.head = MLPHead(self.output_dim, hidden=self.hidden, output_bias=False, initialization=self.heads)
        build_heads(student_features_shape[-1], self.head)

    def call(self, student_features, teacher_features=None, training=None):
        return {"projections": apply_head(self.head, student_features, training)}  # (2, B, E)

    def compute_loss(self, outputs, step):
        projections = outputs["projections"]
        loss, logs = barlow_twins_loss(projections, off_diagonal_weight=self.off_diagonal_weight)
        logs["feature_std"] = feature_std(projections)
        return loss, logs

    def get_config(self):
        names = ("off_diagonal_weight", "output_dim", "hidden", "heads")
        return super().get_config() | {name: getattr(self, name) for name in names}
