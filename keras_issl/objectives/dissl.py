"""DISSL: distil a jointly learned, maximal and invariant discrete teacher into the probe."""

import math

import keras
from keras import ops

from keras_issl import distribution
from keras_issl.heads import MLPHead, check_initialization, probe_head
from keras_issl.objectives.base import (
    Objective,
    apply_head,
    build_heads,
    check_positive,
    check_views,
    mean_of,
)

LOG_NAMES = (
    "distillation",
    "invariance",
    "marginal_entropy",
    "marginal_entropy_bound",
    "conditional_entropy",
    "kl_invariance",
    "kl_distillation",
    "effective_classes",
)


def _cross_entropy(p, log_q):
    """Batch mean of the cross-entropy of (B, C) targets and log-probabilities, a scalar."""
    return -ops.mean(ops.sum(p * log_q, axis=-1))


def dissl_loss(
    *,
    teacher_logits,
    student_logits,
    teacher_temperature=0.5,
    student_temperature=1.0,
    maximality_weight=2.3,
    invariance_weight=0.8,
):
    """DISSL: distillation − λ · marginal entropy + β · invariance.

    With q_i the softmax of teacher view i and p_j that of student view j, each after division by
    its temperature:

    - *distillation*: mean over teacher views i and student views j ≠ i of the cross-entropy of p_j
      under q_i;
    - *invariance* (and determinism): the same between teacher views i and k ≠ i;
    - *marginal entropy* H(M): mean over i of the entropy of the *global* batch mean of q_i.

    Nothing is detached: gradients flow into both logits from every term, so the effective weight of
    invariance and determinism is 1 + β. Theory suggests λ ≥ 1 + β. Collapse can be read off: a uniform
    teacher gives distillation = H(M) = log C and loss = (1 + β − λ) · log C; one class gives
    H(M) = 0 and loss 0.

    Args:
        teacher_logits: (T, B, C) logits of the teacher views, which are the first T student views.
        student_logits: (V, B, C) logits of all views, V ≥ T (multi-crop: V > T).
        teacher_temperature: τ_t, above 0; logits enter before it.
        student_temperature: τ_s, above 0.
        maximality_weight: λ.
        invariance_weight: β, a number or a float32 scalar.

    Returns:
        A float32 scalar and a dict of float32 scalars (without gradient), in nats:
        `distillation`, `invariance`, `marginal_entropy` H(M), `marginal_entropy_bound`
        log min(B, C) (the most that nearly deterministic assignments can reach),
        `conditional_entropy` H(M|Z), `kl_invariance` = invariance − H(M|Z), `kl_distillation` = the
        same-view cross-entropy − H(M|Z), and `effective_classes` = exp H(M).

    Raises:
        ValueError: Another rank, fewer than two views, widths that differ, fewer student than
            teacher views, or a temperature that is not above 0.

    Source: Dubois et al. 2022, §5.2 (distillation ISSL) and its algorithm.

    Example:

    >>> teacher = keras.random.normal((2, 8, 32), seed=0)
    >>> loss, logs = dissl_loss(teacher_logits=teacher, student_logits=teacher)
    """
    check_positive(teacher_temperature=teacher_temperature, student_temperature=student_temperature)
    teacher_logits, student_logits = ops.convert_to_tensor(teacher_logits), ops.convert_to_tensor(student_logits)
    check_views("teacher_logits", teacher_logits, 2)
    check_views("student_logits", student_logits, 2)
    (views, batch, classes), teacher_batch = student_logits.shape, teacher_logits.shape[1]
    same_batch = batch == teacher_batch or None in (batch, teacher_batch)
    if teacher_logits.shape[-1] != classes or teacher_logits.shape[0] > views or not same_batch:
        raise ValueError(
            "`teacher_logits` (T, B, C) and `student_logits` (V, B, C) should have one batch size B, one number of "
            f"classes C, and V ≥ T. Received shapes: {tuple(teacher_logits.shape)}, {tuple(student_logits.shape)}"
        )
    log_q = ops.log_softmax(ops.cast(teacher_logits, "float32") / teacher_temperature, axis=-1)  # (T, B, C)
    log_p = ops.log_softmax(ops.cast(student_logits, "float32") / student_temperature, axis=-1)  # (V, B, C)
    teachers, students = range(log_q.shape[0]), range(log_p.shape[0])
    log_q, log_p = [log_q[i] for i in teachers], [log_p[j] for j in students]
    q = [ops.exp(x) for x in log_q]  # T × (B, C)

    distillation = mean_of([_cross_entropy(q[i], log_p[j]) for i in teachers for j in students if j != i])
    invariance = mean_of([_cross_entropy(q[i], log_q[k]) for i in teachers for k in teachers if k != i])
    marginals = [distribution.global_mean(x) for x in q]  # T × (C,)
    # A class of probability 0 contributes 0; the floor keeps its gradient finite.
    marginal_entropy = mean_of([-ops.sum(m * ops.log(ops.maximum(m, 1e-30))) for m in marginals])
    loss = distillation - maximality_weight * marginal_entropy + invariance_weight * invariance

    conditional_entropy = mean_of([_cross_entropy(q[i], log_q[i]) for i in teachers])
    same_view = mean_of([_cross_entropy(q[i], log_p[i]) for i in teachers])
    logs = {
        "distillation": distillation,
        "invariance": invariance,
        "marginal_entropy": marginal_entropy,
        "marginal_entropy_bound": _log_bound(q[0]),
        "conditional_entropy": conditional_entropy,
        "kl_invariance": invariance - conditional_entropy,
        "kl_distillation": same_view - conditional_entropy,
        "effective_classes": ops.exp(marginal_entropy),
    }
    return loss, {name: ops.stop_gradient(value) for name, value in logs.items()}


def _log_bound(q):
    """log min(global B, C) for one (B, C) tensor."""
    batch = ops.cast(ops.shape(q)[0], "float32") * distribution.num_replicas()
    return ops.minimum(ops.log(batch), math.log(q.shape[-1]))


@keras.saving.register_keras_serializable(package="keras_issl")
class DistinctClasses(keras.metrics.Metric):
    """Counts the classes that were the most probable one of some image since the last reset.

    Args:
        num_classes: C.
        name: Name in the logs.
    """

    def __init__(self, num_classes, name="classes_used", **kwargs):
        super().__init__(name=name, **kwargs)
        self.num_classes = num_classes
        self.seen = self.add_variable((num_classes,), initializer="zeros", name="seen")

    def update_state(self, classes, sample_weight=None):
        """Marks a flat integer tensor of classes as used."""
        hits = ops.segment_sum(ops.ones_like(classes, dtype="float32"), classes, num_segments=self.num_classes)
        self.seen.assign(ops.maximum(self.seen, ops.cast(hits > 0, "float32")))

    def result(self):
        return ops.sum(ops.cast(self.seen > 0, "float32"))  # of several replicas Keras adds the marks up


@keras.saving.register_keras_serializable(package="keras_issl")
class DISSL(Objective):
    """Distillation invariant self-supervised learning: `dissl_loss` on asymmetric heads.

    The teacher head (an MLP) assigns an image to one of C learned equivalence classes; the student
    head, a probe of the family used downstream, predicts the assignment from another view. No
    moving average, stop-gradient, centring or Sinkhorn steps.

    Args:
        num_classes: C, the number of equivalence classes to learn; 16384 in the paper.
        teacher_temperature: τ_t.
        student_temperature: τ_s.
        maximality_weight: λ; the paper tunes it in [1.8, 2.8].
        invariance_weight: β; 0.8 on small images (tune in [0.4, 1]), 0.6 on ImageNet.
        invariance_warmup_steps: N, steps in which β rises or falls linearly from λ to its value: with n finished
            steps it is λ + (β − λ)·min((n + 1) / N, 1). 1000 for the paper's run of 800 epochs. (The authors' code
            does so from its second step on; its first differs.)
        teacher_hidden: Hidden blocks of the teacher head, as in `heads.MLPHead`. By default 1024 on
            small images; on ImageNet a residual block of two 2048 for features of that width, else
            Linear 512 and a residual block 2048, 2048, 512.
        bottleneck: Rank of the student head and width before the teacher's output layer.
        heads: `"small_images"` or `"imagenet"`, as in `heads.MLPHead`.
        probe: `"linear"`: a low-rank linear student head; `"mlp"`: two hidden layers of 2048 (small
            images) or the teacher's stack (ImageNet); or a layer from features (N, D) to logits (N, C).

    It takes small crops too (multi-crop): the student sees all views, the teacher the first two.

    It reports the logs of `dissl_loss`, and `classes_used`: how many classes were the most probable
    one of some training view in the epoch.

    Raises:
        ValueError: A class number, width or temperature that is not above 0, an unknown probe, a probe layer of
            another width than C, or a warm-up that is longer than the run.

    Source: Dubois et al. 2022, §5.2; heads: appendix on implementation.

    Example:

    >>> objective = DISSL(num_classes=64)
    >>> outputs = objective(keras.random.normal((2, 8, 32), seed=0), training=True)
    >>> loss, logs = objective.compute_loss(outputs, step=0)
    """

    log_names = LOG_NAMES
    multi_crop = True

    def __init__(
        self,
        num_classes=16384,
        teacher_temperature=0.5,
        student_temperature=1.0,
        maximality_weight=2.3,
        invariance_weight=0.8,
        teacher_hidden=None,
        bottleneck=512,
        heads="small_images",
        probe="linear",
        invariance_warmup_steps=0,
        **kwargs,
    ):
        super().__init__(probe=probe, **kwargs)
        check_positive(
            num_classes=num_classes,
            teacher_temperature=teacher_temperature,
            student_temperature=student_temperature,
            bottleneck=bottleneck,
        )
        check_initialization("heads", heads)
        self.num_classes = num_classes
        self.teacher_temperature, self.student_temperature = teacher_temperature, student_temperature
        self.maximality_weight, self.invariance_weight = maximality_weight, invariance_weight
        self.teacher_hidden, self.bottleneck = teacher_hidden, bottleneck
        self.heads = heads
        if not isinstance(invariance_warmup_steps, int) or invariance_warmup_steps < 0:
            raise ValueError(
                "`invariance_warmup_steps` should be a number of steps, 0 for none. "
                f"Received: {invariance_warmup_steps!r}"
            )
        self.invariance_warmup_steps = invariance_warmup_steps
        self.distinct_classes = DistinctClasses(num_classes)

    def _head(self, hidden, last):
        """`last` is the low-rank layer before the output; ImageNet's teacher puts a ReLU on it."""
        if last == "relu":
            hidden, bottleneck = (*hidden, self.bottleneck), None
        else:
            bottleneck = self.bottleneck if last == "linear" else None
        return MLPHead(self.num_classes, hidden=hidden, bottleneck=bottleneck, initialization=self.heads)

    def _teacher_stack(self, width):
        """(hidden blocks, what precedes the output layer) of the teacher head."""
        if self.heads == "small_images":
            return (1024,) if self.teacher_hidden is None else self.teacher_hidden, "linear"
        if self.teacher_hidden is not None:
            return self.teacher_hidden, "none"
        if width == 2048:
            return ((2048, 2048),), "relu"
        return (512, (2048, 2048, 512)), "none"

    def build(self, student_features_shape, teacher_features_shape=None):
        width = student_features_shape[-1]
        stack = self._teacher_stack(width)
        small = self.heads == "small_images"
        if isinstance(self.probe, keras.layers.Layer):
            self.student_head = probe_head(self.probe, width, self.num_classes)
        elif self.probe == "mlp":
            student = ((2048, 2048), "linear") if small else stack
            stack = student if self.teacher_hidden is None else stack
            self.student_head = self._head(*student)
        else:
            self.student_head = self._head((), "linear")
        self.teacher_head = self._head(*stack)
        build_heads(width, self.teacher_head, self.student_head)

    def call(self, student_features, teacher_features=None, training=None):
        teacher_views = student_features[: self.num_teacher_views]  # (T, B, D)
        return {
            "teacher_logits": apply_head(self.teacher_head, teacher_views, training),  # (T, B, C)
            "student_logits": apply_head(self.student_head, student_features, training),  # (V, B, C)
        }

    def compute_loss(self, outputs, step):
        self.distinct_classes.update_state(ops.reshape(ops.argmax(outputs["teacher_logits"], axis=-1), (-1,)))
        return dissl_loss(
            teacher_logits=outputs["teacher_logits"],
            student_logits=outputs["student_logits"],
            teacher_temperature=self.teacher_temperature,
            student_temperature=self.student_temperature,
            maximality_weight=self.maximality_weight,
            invariance_weight=self.current_invariance_weight(step),
        )

    def current_invariance_weight(self, step):
        """β after `step` finished steps: a number, or a float32 scalar while there is a warm-up."""
        if not self.invariance_warmup_steps:
            return self.invariance_weight
        done = ops.minimum((ops.cast(step, "float32") + 1.0) / self.invariance_warmup_steps, 1.0)
        return self.maximality_weight + (self.invariance_weight - self.maximality_weight) * done

    def check_run(self, *, batch_size, epochs, steps_per_epoch):
        steps = None if steps_per_epoch is None else epochs * steps_per_epoch
        if steps is not None and steps < self.invariance_warmup_steps:
            raise ValueError(
                f"`invariance_warmup_steps` should be at most the {steps} steps of the run, {epochs} epochs of "
                f"{steps_per_epoch}: else β never reaches its value. Received: {self.invariance_warmup_steps}. Train "
                "longer, or warm up for fewer steps."
            )

    def get_config(self):
        names = (
            "num_classes",
            "teacher_temperature",
            "student_temperature",
            "maximality_weight",
            "invariance_weight",
            "teacher_hidden",
            "bottleneck",
            "heads",
            "invariance_warmup_steps",
        )
        return super().get_config() | {name: getattr(self, name) for name in names}
