"""Contrastive objectives: CISSL (asymmetric heads, nothing masked) and SimCLR (one shared head)."""

import keras
from keras import ops

from keras_issl import distribution
from keras_issl.heads import MLPHead, check_initialization, probe_head
from keras_issl.objectives.base import (
    Objective,
    apply_head,
    build_heads,
    check_chunk_size,
    check_pair,
    check_positive,
    flat,
    unit_rows,
)

MLP_PROBE = (2048, 2048)  # hidden widths of an MLP probe, and of heads matched to it
MASKED = -1e9  # in place of -inf, whose gradient through a softmax is NaN on some backends


def _mean_logsumexp(rows, columns, temperature, *, masked, chunk_size):
    """Mean over the rows of the log of Σ exp(cosine / τ) over all columns of the global batch.

    Args:
        rows: (2, B, D) of unit length.
        columns: The same of this replica's columns.
        temperature: τ.
        masked: Whether a row leaves itself out.
        chunk_size: Images whose rows are computed at once, or `None` for all.
    """
    columns = ops.transpose(distribution.gather(flat(columns)))  # (D, global 2B)
    count = ops.shape(flat(rows))[0]
    own = ops.arange(count) + distribution.replica_index() * count  # (2B,) of the rows among the global columns

    def values(rows, own, columns):
        """Of rows (n, D) with their places (n,)."""
        logits = ops.matmul(rows, columns) / temperature  # (n, global 2B)
        if masked:
            itself = own[:, None] == ops.arange(ops.shape(logits)[1])[None, :]
            logits = ops.where(itself, MASKED, logits)  # a view does not predict itself
        return ops.logsumexp(logits, axis=-1)  # (n,)

    if chunk_size is None:
        return ops.mean(values(flat(rows), own, columns))

    def of_images(rows, own, columns):  # (b, 2, D), (b, 2)
        return (ops.sum(values(flat(rows), ops.reshape(own, (-1,)), columns)),)

    images = [ops.transpose(rows, (1, 0, 2)), ops.transpose(ops.reshape(own, (2, -1)))]  # (B, 2, D), (B, 2)
    (total,) = distribution.sum_chunks(of_images, images, [columns], chunk_size=chunk_size)
    return total / ops.cast(count, "float32")


def cissl_loss(*, student, teacher, temperature=0.07, chunk_size=None):
    """CISSL: predict which view of the batch shares the image, from the other head's point of view.

    Both projections are scaled to unit length; `logits = student · teacherᵀ / temperature` over all
    2B views, the global batch on the teacher's side. Nothing is masked: each row's target is ½ on
    its own view and ½ on its positive, which asymmetric heads can meet.

    Args:
        student: (2, B, D) projections of the student head, views first.
        teacher: (2, B, D) projections of the teacher head.
        temperature: τ, above 0.
        chunk_size: Images whose 2 · `chunk_size` rows of logits are in memory at once; the backward pass computes them
            again. The loss and its gradient are the same. `None` computes all rows at once.

    Returns:
        A float32 scalar, the mean cross-entropy of the 2B rows.

    Raises:
        ValueError: Another rank or number of views, shapes that differ, a batch of one image, a
            temperature that is not above 0, or a `chunk_size` that is no positive integer.

    Source: Dubois et al. 2022, §5.1 (contrastive ISSL).

    Example:

    >>> z = keras.random.normal((2, 8, 16), seed=0)
    >>> loss = cissl_loss(student=z, teacher=z)
    """
    check_positive(temperature=temperature)
    check_chunk_size(chunk_size)
    student, teacher = ops.convert_to_tensor(student), ops.convert_to_tensor(teacher)
    check_pair(least_images=2, student=student, teacher=teacher)
    s, t = unit_rows(student), unit_rows(teacher)  # (2, B, D)
    own = ops.sum(s * t, axis=-1) / temperature  # (2, B)
    positive = ops.sum(s * ops.flip(t, axis=0), axis=-1) / temperature  # (2, B): the other view's teacher
    rows = _mean_logsumexp(s, t, temperature, masked=False, chunk_size=chunk_size)
    return rows - 0.5 * ops.mean(own + positive)


def simclr_loss(projections, *, temperature=0.07, chunk_size=None):
    """SimCLR's NT-Xent: predict the other view of the image among all views but one's own.

    Args:
        projections: (2, B, D) projections, views first.
        temperature: τ, above 0.
        chunk_size: As in `cissl_loss`.

    Returns:
        A float32 scalar, the mean cross-entropy of the 2B rows.

    Raises:
        ValueError: As `cissl_loss`.

    Source: Chen et al. 2020, "A Simple Framework for Contrastive Learning", equation 1.

    Example:

    >>> loss = simclr_loss(keras.random.normal((2, 8, 16), seed=0), temperature=0.5)
    """
    check_positive(temperature=temperature)
    check_chunk_size(chunk_size)
    projections = ops.convert_to_tensor(projections)
    check_pair(least_images=2, projections=projections)
    z = unit_rows(projections)  # (2, B, D)
    positive = ops.sum(z * ops.flip(z, axis=0), axis=-1) / temperature  # (2, B)
    return _mean_logsumexp(z, z, temperature, masked=True, chunk_size=chunk_size) - ops.mean(positive)


class _Contrastive(Objective):
    """What CISSL and SimCLR share: their hyperparameters and the teacher's stack of layers."""

    log_names = ("alignment",)

    def __init__(self, output_dim, temperature, hidden, heads, probe, chunk_size, **kwargs):
        super().__init__(probe=probe, **kwargs)
        check_positive(output_dim=output_dim, temperature=temperature)
        check_chunk_size(chunk_size)
        self.chunk_size = chunk_size
        self.output_dim, self.temperature = output_dim, temperature
        check_initialization("heads", heads)
        self.hidden, self.heads = hidden, heads

    def _hidden(self, default=None):
        """Hidden widths of the MLP head: what was asked for, or the recipe's."""
        if self.hidden is not None:
            return tuple(self.hidden)
        return default or ((1024,) if self.heads == "small_images" else (2048, 2048))

    def _head(self, hidden, **kwargs):
        stddev = self.output_dim**-0.5 if self.heads == "imagenet" else None
        return MLPHead(
            self.output_dim,
            hidden=hidden,
            initialization=self.heads,
            output_stddev=stddev,
            **{"output_norm": True} | kwargs,
        )

    def get_config(self):
        names = ("output_dim", "temperature", "hidden", "heads", "chunk_size")
        return super().get_config() | {name: getattr(self, name) for name in names}


def _alignment(a, b):
    """Mean cosine between one view's projection and the other view's: 1 when invariant."""
    return ops.stop_gradient(ops.mean(ops.sum(unit_rows(a) * ops.flip(unit_rows(b), axis=0), axis=-1)))


@keras.saving.register_keras_serializable(package="keras_issl")
class CISSL(_Contrastive):
    """Contrastive invariant self-supervised learning: `cissl_loss` on asymmetric heads.

    The student head is a probe of the family used downstream, the teacher head an MLP; both end in
    batch normalisation, and both see every view.

    Args:
        output_dim: Width of the projections.
        temperature: τ; the paper's 0.07 on small images, 0.1 on ImageNet.
        hidden: Hidden widths of the teacher head; by default 1024 (small images) or 2048, 2048.
        heads: `"small_images"` or `"imagenet"`, as in `heads.MLPHead`.
        probe: `"linear"`: a linear student head; `"mlp"`: two hidden layers of 2048; or a layer
            from features (N, D) to projections (N, output_dim).
        chunk_size: For large batches, as in `cissl_loss`: the same loss in less memory.

    It reports `alignment`: the mean cosine between the student's view and the teacher's other view.

    Raises:
        ValueError: A temperature, width or chunk size that is not above 0, an unknown probe or initialisation, or a
            probe layer of another width than `output_dim`.

    Source: Dubois et al. 2022, §5.1; heads: appendix.

    Example:

    >>> objective = CISSL(temperature=0.1)
    >>> outputs = objective(keras.random.normal((2, 8, 32), seed=0), training=True)
    >>> loss, logs = objective.compute_loss(outputs, step=0)
    """

    def __init__(
        self,
        output_dim=128,
        temperature=0.07,
        hidden=None,
        heads="small_images",
        probe="linear",
        chunk_size=None,
        **kwargs,
    ):
        super().__init__(output_dim, temperature, hidden, heads, probe, chunk_size, **kwargs)

    def build(self, student_features_shape, teacher_features_shape=None):
        imagenet = self.heads == "imagenet"
        # ImageNet freezes the offset of the teacher's last normalisation at its initial zero.
        norm = {"output_norm": "no_bias" if imagenet else True}
        self.teacher_head = self._head(self._hidden(MLP_PROBE if self.probe == "mlp" else None), **norm)
        if isinstance(self.probe, keras.layers.Layer):
            self.student_head = probe_head(self.probe, student_features_shape[-1], self.output_dim)
        elif self.probe == "mlp":
            self.student_head = self._head(MLP_PROBE)
        else:
            self.student_head = self._head(())
        build_heads(student_features_shape[-1], self.teacher_head, self.student_head)

    def call(self, student_features, teacher_features=None, training=None):
        return {
            "student": apply_head(self.student_head, student_features, training),  # (2, B, E)
            "teacher": apply_head(self.teacher_head, student_features, training),  # (2, B, E)
        }

    def compute_loss(self, outputs, step):
        loss = cissl_loss(
            student=outputs["student"],
            teacher=outputs["teacher"],
            temperature=self.temperature,
            chunk_size=self.chunk_size,
        )
        return loss, {"alignment": _alignment(outputs["student"], outputs["teacher"])}


@keras.saving.register_keras_serializable(package="keras_issl")
class SimCLR(_Contrastive):
    """The contrastive baseline: `simclr_loss` on one shared MLP head.

    Args:
        output_dim: Width of the projections.
        temperature: τ; 0.07 on small images and 0.1 on ImageNet, as the paper tunes its baseline.
        hidden: Hidden widths of the head; by default 1024 (small images) or 2048, 2048.
        heads: `"small_images"` or `"imagenet"`, as in `heads.MLPHead`.
        probe: Downstream probe family; it is recorded, the shared head does not depend on it.
        chunk_size: For large batches, as in `cissl_loss`: the same loss in less memory.

    It reports `alignment`: the mean cosine between the two views' projections.

    Raises:
        ValueError: A temperature, width or chunk size that is not above 0, an unknown probe or initialisation.

    Source: Chen et al. 2020, equation 1; head and τ: Dubois et al. 2022, appendix.

    Example:

    >>> objective = SimCLR()
    >>> outputs = objective(keras.random.normal((2, 8, 32), seed=0), training=True)
    >>> loss, logs = objective.compute_loss(outputs, step=0)
    """

    def __init__(
        self,
        output_dim=128,
        temperature=0.07,
        hidden=None,
        heads="small_images",
        probe="linear",
        chunk_size=None,
        **kwargs,
    ):
        super().__init__(output_dim, temperature, hidden, heads, probe, chunk_size, **kwargs)

    def build(self, student_features_shape, teacher_features_shape=None):
        self.head = self._head(self._hidden())
        build_heads(student_features_shape[-1], self.head)

    def call(self, student_features, teacher_features=None, training=None):
        return {"projections": apply_head(self.head, student_features, training)}  # (2, B, E)

    def compute_loss(self, outputs, step):
        projections = outputs["projections"]
        loss = simclr_loss(projections, temperature=self.temperature, chunk_size=self.chunk_size)
        return loss, {"alignment": _alignment(projections, projections)}
