"""MoCo v3: contrast the predictions of one network with the keys of its moving average."""

import keras
from keras import ops

from keras_issl import distribution
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


def moco_loss(*, queries, keys, temperature=0.2):
    """MoCo v3's InfoNCE: find the other view's key among those of the batch, in both directions.

    With q_i and k_i the queries and keys of view i at unit length, a query's logits are its products with the keys of
    *all* images of the global batch under the other view, over τ; its class is its own image. The loss is `2τ` times
    the sum of the mean cross-entropies of (q_1, k_2) and (q_2, k_1), so that its gradient keeps its size whatever τ:
    `4τ log B` when all embeddings are equal. There is no queue, and the keys get no gradient.

    Args:
        queries: (2, B, D) outputs of the predictor, views first.
        keys: (2, B, D) projections of the moving-average network.
        temperature: τ, above 0.

    Returns:
        A float32 scalar, at least 0.

    Raises:
        ValueError: Another rank, another number of views than 2, shapes that differ, a batch of one image, or a
            temperature that is not above 0.

    Source: Chen, Xie & He 2021, "An Empirical Study of Training Self-Supervised Vision Transformers", equation 1 and
    algorithm 1.

    Example:

    >>> z = keras.random.normal((2, 8, 16), seed=0)
    >>> loss = moco_loss(queries=z, keys=z)
    """
    check_positive(temperature=temperature)
    queries, keys = ops.convert_to_tensor(queries), ops.convert_to_tensor(keys)
    check_pair(least_images=2, queries=queries, keys=keys)
    q, k = unit_rows(queries), ops.stop_gradient(unit_rows(keys))  # (2, B, D)
    k = ops.flip(k, axis=0)  # a query looks for the other view's key
    entropies = []
    for view in range(2):
        everyone = distribution.gather(k[view])  # (global B, D)
        logits = ops.matmul(q[view], ops.transpose(everyone)) / temperature  # (B, global B)
        positive = ops.sum(q[view] * k[view], axis=-1) / temperature  # (B,)
        entropies.append(ops.mean(ops.logsumexp(logits, axis=-1) - positive))
    return 2.0 * temperature * sum(entropies)


@keras.saving.register_keras_serializable(package="keras_issl")
class MoCoV3(Objective):
    """Momentum contrast, version 3: `moco_loss` of a predictor's queries and a moving-average projector's keys.

    Projector and predictor are Linear (no bias), batch normalisation, ReLU, and end in a Linear without bias and batch
    normalisation without offset and scale. Batch statistics are those of both views together. That is the paper's for
    ViTs; for ResNets the released code has `hidden=(4096,)`, `temperature=1.0` and `predictor_norm=False`.

    Args:
        output_dim: Width of queries and keys.
        hidden: Hidden widths of the projector: the paper's three layers for ViTs.
        predictor_hidden: Hidden widths of the predictor.
        temperature: τ; 0.2 is what the paper trains its ViTs with, 1.0 of the released code is for batches of 4096.
        teacher_momentum: m of the moving average; a pair goes from the first to the last by a cosine over the run.
            0.99 for up to 300 epochs, the released code uses 0.996 for 1000.
        heads: `"imagenet"` or `"small_images"`: how linear layers start, as in `heads.MLPHead`.
        probe: Downstream probe family; it is recorded, the heads do not depend on it.
        predictor_norm: Whether the predictor ends in batch normalisation, as the projector does.

    It reports `alignment`, the mean cosine between a query and its key (1 when invariant), and `feature_std`, √D times
    the mean standard deviation over the batch of the keys at unit length: about 1 when images differ in all
    directions, 0 when all have the same projection (collapse).

    Raises:
        ValueError: A temperature or width that is not above 0, a momentum outside [0, 1] or `None`, an unknown probe
            or initialisation.

    Source: Chen, Xie & He 2021, algorithm 1; heads: §3 and appendix on implementation.

    Example:

    >>> objective = MoCoV3(output_dim=16, hidden=(64,), predictor_hidden=(64,))
    >>> features = keras.random.normal((2, 8, 32), seed=0)
    >>> outputs = objective(features, features, training=True)
    >>> loss, logs = objective.compute_loss(outputs, step=0)
    """

    log_names = ("alignment", "feature_std")

    def __init__(
        self,
        output_dim=256,
        hidden=(4096, 4096),
        predictor_hidden=(4096,),
        temperature=0.2,
        teacher_momentum=(0.99, 1.0),
        heads="imagenet",
        probe="linear",
        predictor_norm=True,
        **kwargs,
    ):
        require_teacher_momentum(teacher_momentum)
        super().__init__(probe=probe, teacher_momentum=teacher_momentum, **kwargs)
        check_positive(output_dim=output_dim, temperature=temperature)
        check_initialization("heads", heads)
        self.output_dim, self.hidden, self.predictor_hidden = output_dim, hidden, predictor_hidden
        self.temperature, self.heads, self.predictor_norm = temperature, heads, bool(predictor_norm)

    def build(self, student_features_shape, teacher_features_shape=None):
        linear = {"output_bias": False, "initialization": self.heads}
        norm = "no_affine" if self.predictor_norm else False
        self.projector = MLPHead(self.output_dim, hidden=self.hidden, output_norm="no_affine", **linear)
        self.predictor = MLPHead(self.output_dim, hidden=self.predictor_hidden, output_norm=norm, **linear)
        build_heads(student_features_shape[-1], self.projector)
        build_heads(self.output_dim, self.predictor)
        self.teacher_projector = self.follow(self.projector)

    def call(self, student_features, teacher_features=None, training=None):
        projections = apply_head(self.projector, student_features, training)  # (2, B, E)
        return {
            "queries": apply_head(self.predictor, projections, training),  # (2, B, E)
            "keys": apply_teacher_head(self.teacher_projector, teacher_features, training),  # (2, B, E)
        }

    def compute_loss(self, outputs, step):
        queries, keys = outputs["queries"], outputs["keys"]
        q, k = (ops.stop_gradient(unit_rows(x)) for x in (queries, keys))
        logs = {
            "alignment": ops.mean(ops.sum(q * ops.flip(k, axis=0), axis=-1)),
            "feature_std": feature_std(keys),
        }
        return moco_loss(queries=queries, keys=keys, temperature=self.temperature), logs

    def get_config(self):
        names = ("output_dim", "hidden", "predictor_hidden", "temperature", "heads", "predictor_norm")
        return super().get_config() | {name: getattr(self, name) for name in names}
