"""VICReg: variance, invariance and covariance, each a term of its own."""

import keras
from keras import ops

from keras_issl import distribution
from keras_issl.heads import MLPHead, check_initialization
from keras_issl.objectives.base import Objective, apply_head, build_heads, check_pair, check_positive, feature_std


def _regularisers(x, target_std, epsilon):
    """v and c of one view's (B, D) projections: equations 1 to 4."""
    x = distribution.gather(x)  # (global B, D)
    x = x - ops.mean(x, axis=0)
    degrees = ops.cast(ops.shape(x)[0], "float32") - 1.0
    variances = ops.sum(ops.square(x), axis=0) / degrees  # (D,)
    std = ops.sqrt(variances + epsilon)
    if x.shape[0] is None or x.shape[0] < x.shape[1]:
        product = ops.matmul(x, ops.transpose(x))  # (B, B): its entries' squares have the sum of the (D, D) one's
    else:
        product = ops.matmul(ops.transpose(x), x)  # (D, D)
    off_diagonal = ops.sum(ops.square(product / degrees)) - ops.sum(ops.square(variances))
    return ops.mean(ops.relu(target_std - std)), off_diagonal / x.shape[-1]


def vicreg_loss(
    projections,
    *,
    invariance_weight=25.0,
    variance_weight=25.0,
    covariance_weight=1.0,
    target_std=1.0,
    epsilon=1e-4,
):
    """VICReg: λ·s(Z, Z') + μ·(v(Z) + v(Z')) + ν·(c(Z) + c(Z')) of the projections Z, Z' of two views.

    - *invariance* s: the mean squared difference of the two views, over images and dimensions;
    - *variance* v: the mean over dimensions of max(0, γ − √(Var + ε)), a hinge on the standard deviation;
    - *covariance* c: the sum of the squared covariances of different dimensions, over D.

    Variances and covariances are unbiased ones (over B − 1) of the *global* batch. No D × D matrix is made where D
    exceeds the batch. When all projections are equal it is 2μ(γ − √ε).

    Two details differ between the paper and its released code. Equation 5 does not divide s by D, but algorithm 1 and
    the code do, and the weights suit that: so it is here. The code halves v(Z) + v(Z'), the paper's equation 6 and
    algorithm 1 do not: nor is it here; `variance_weight=12.5` gives the code's loss.

    Args:
        projections: (2, B, D) projections, views first.
        invariance_weight: λ.
        variance_weight: μ.
        covariance_weight: ν.
        target_std: γ, the standard deviation from which a dimension is left alone.
        epsilon: ε, added to variances.

    Returns:
        A float32 scalar and a dict of float32 scalars (without gradient): `invariance` s, `variance` v(Z) + v(Z')
        (2(γ − √ε) when collapsed), and `covariance` c(Z) + c(Z').

    Raises:
        ValueError: Another rank, another number of views than 2, a batch of one image, weights below 0, or a
            `target_std` or `epsilon` that is not above 0.

    Source: Bardes, Ponce & LeCun 2022, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised
    Learning", equations 1 to 6 and algorithm 1.

    Example:

    >>> loss, logs = vicreg_loss(keras.random.normal((2, 8, 16), seed=0))
    """
    check_positive(target_std=target_std, epsilon=epsilon)
    _check_weights(invariance_weight, variance_weight, covariance_weight)
    projections = ops.convert_to_tensor(projections)
    check_pair(least_images=2, projections=projections)
    z = ops.cast(projections, "float32")
    (v0, c0), (v1, c1) = (_regularisers(z[view], target_std, epsilon) for view in range(2))
    invariance, variance, covariance = ops.mean(ops.square(z[0] - z[1])), v0 + v1, c0 + c1
    loss = invariance_weight * invariance + variance_weight * variance + covariance_weight * covariance
    logs = {"invariance": invariance, "variance": variance, "covariance": covariance}
    return loss, {name: ops.stop_gradient(value) for name, value in logs.items()}


def _check_weights(invariance_weight, variance_weight, covariance_weight):
    weights = {"invariance_weight": invariance_weight, "variance_weight": variance_weight}
    for name, value in (weights | {"covariance_weight": covariance_weight}).items():
        if not 0 <= value < float("inf"):
            raise ValueError(f"`{name}` should be a finite number of at least 0. Received: {value}")


@keras.saving.register_keras_serializable(package="keras_issl")
class VICReg(Objective):
    """Variance-invariance-covariance regularisation: `vicreg_loss` on one shared, wide MLP head, the expander.

    The expander is Linear (no bias), batch normalisation, ReLU, twice, and a Linear without bias.

    Args:
        invariance_weight: λ.
        variance_weight: μ; the paper keeps λ = μ.
        covariance_weight: ν.
        output_dim: D, width of the projections.
        hidden: Hidden widths of the expander.
        heads: `"imagenet"` or `"small_images"`: how linear layers start, as in `heads.MLPHead`.
        probe: Downstream probe family; it is recorded, the shared head does not depend on it.

    It reports `invariance`, `variance` and `covariance` of `vicreg_loss`, and `feature_std`, √D times the mean
    standard deviation over the batch of the projections at unit length: about 1 when images differ in all directions,
    0 when all have the same projection (collapse).

    Raises:
        ValueError: A width that is not above 0, a weight below 0, an unknown probe or initialisation.

    Source: Bardes, Ponce & LeCun 2022, equation 6; expander and weights: §4.2 and appendix on implementation.

    Example:

    >>> objective = VICReg(output_dim=64, hidden=(64, 64))
    >>> outputs = objective(keras.random.normal((2, 8, 32), seed=0), training=True)
    >>> loss, logs = objective.compute_loss(outputs, step=0)
    """

    log_names = ("invariance", "variance", "covariance", "feature_std")

    def __init__(
        self,
        invariance_weight=25.0,
        variance_weight=25.0,
        covariance_weight=1.0,
        output_dim=8192,
        hidden=(8192, 8192),
        heads="imagenet",
        probe="linear",
        **kwargs,
    ):
        super().__init__(probe=probe, **kwargs)
        check_positive(output_dim=output_dim)
        check_initialization("heads", heads)
        _check_weights(invariance_weight, variance_weight, covariance_weight)
        self.invariance_weight, self.variance_weight = invariance_weight, variance_weight
        self.covariance_weight = covariance_weight
        self.output_dim, self.hidden, self.heads = output_dim, hidden, heads

    def build(self, student_features_shape, teacher_features_shape=None):
        # No term sees the mean of both views: a bias of the last layer would get no gradient.
        self.head = MLPHead(self.output_dim, hidden=self.hidden, output_bias=False, initialization=self.heads)
        build_heads(student_features_shape[-1], self.head)

    def call(self, student_features, teacher_features=None, training=None):
        return {"projections": apply_head(self.head, student_features, training)}  # (2, B, E)

    def compute_loss(self, outputs, step):
        projections = outputs["projections"]
        loss, logs = vicreg_loss(
            projections,
            invariance_weight=self.invariance_weight,
            variance_weight=self.variance_weight,
            covariance_weight=self.covariance_weight,
        )
        logs["feature_std"] = feature_std(projections)
        return loss, logs

    def get_config(self):
        names = ("invariance_weight", "variance_weight", "covariance_weight", "output_dim", "hidden", "heads")
        return super().get_config() | {name: getattr(self, name) for name in names}
