"""DISSL: distil a jointly learned, maximal and invariant discrete teacher into the probe."""

import math

import keras
from keras import ops

from keras_issl import distribution
from keras_issl.heads import LinearHead, MLPHead, check_initialization, probe_head
from keras_issl.objectives.base import (
    Objective,
    apply_head,
    build_heads,
    check_chunk_size,
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


def _terms(teacher_logits, student_logits, temperatures, reduce):
    """The four cross-entropies of a set of images, and what the marginals are made of.

    Args:
        teacher_logits: (T, B, C).
        student_logits: (V, B, C).
        temperatures: (τ_t, τ_s).
        reduce: `ops.mean` or `ops.sum`, over the images.

    Returns:
        distillation, invariance, conditional entropy and same-view cross-entropy, scalars; and (T, C), the q_i over
        the images. All float32.
    """
    log_q, log_p = (
        ops.log_softmax(ops.cast(logits, "float32") / temperature, axis=-1)  # (T, B, C), (V, B, C)
        for logits, temperature in zip((teacher_logits, student_logits), temperatures, strict=True)
    )
    teachers, students = range(log_q.shape[0]), range(log_p.shape[0])
    log_q, log_p = [log_q[i] for i in teachers], [log_p[j] for j in students]
    q = [ops.exp(x) for x in log_q]  # T × (B, C)

    def cross_entropy(p, log_q):
        return -reduce(ops.sum(p * log_q, axis=-1))

    distillation = mean_of([cross_entropy(q[i], log_p[j]) for i in teachers for j in students if j != i])
    invariance = mean_of([cross_entropy(q[i], log_q[k]) for i in teachers for k in teachers if k != i])
    marginals = ops.stack([reduce(x, axis=0) for x in q])  # (T, C)
    # Logs alone: without the stop PyTorch would keep what their gradient needs of every chunk.
    q, log_q, log_p = (list(map(ops.stop_gradient, tensors)) for tensors in (q, log_q, log_p))
    conditional_entropy = mean_of([cross_entropy(q[i], log_q[i]) for i in teachers])
    same_view = mean_of([cross_entropy(q[i], log_p[i]) for i in teachers])
    return distillation, invariance, conditional_entropy, same_view, marginals


def _loss(terms, batch, maximality_weight, invariance_weight):
    """The loss and the logs from the means that `_terms` takes over the images of this replica, `batch` of them."""
    distillation, invariance, conditional_entropy, same_view, marginals = terms
    marginals = distribution.global_mean(marginals[None])  # (T, C): the replicas' means count alike
    # A class of probability 0 contributes 0; the floor keeps its gradient finite.
    entropies = -ops.sum(marginals * ops.log(ops.maximum(marginals, 1e-30)), axis=-1)  # (T,)
    marginal_entropy = ops.mean(entropies)
    loss = distillation - maximality_weight * marginal_entropy + invariance_weight * invariance
    logs = {
        "distillation": distillation,
        "invariance": invariance,
        "marginal_entropy": marginal_entropy,
        "marginal_entropy_bound": _log_bound(batch, marginals.shape[-1]),
        "conditional_entropy": conditional_entropy,
        "kl_invariance": invariance - conditional_entropy,
        "kl_distillation": same_view - conditional_entropy,
        "effective_classes": ops.exp(marginal_entropy),
    }
    return loss, {name: ops.stop_gradient(value) for name, value in logs.items()}


def _log_bound(batch, classes):
    """log min(global B, C), for `batch` images on this replica."""
    batch = ops.cast(batch, "float32") * distribution.num_replicas()
    return ops.minimum(ops.log(batch), math.log(classes))


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
    terms = _terms(teacher_logits, student_logits, (teacher_temperature, student_temperature), ops.mean)
    return _loss(terms, ops.shape(teacher_logits)[1], maximality_weight, invariance_weight)


def chunked_dissl_loss(
    *,
    teacher,
    student,
    teacher_output,
    student_output,
    chunk_size,
    compute_dtype="float32",
    teacher_temperature=0.5,
    student_temperature=1.0,
    maximality_weight=2.3,
    invariance_weight=0.8,
):
    """`dissl_loss` and the linear layers before it, in the memory of `chunk_size` images.

    What takes memory in DISSL are the logits, (T + V)·B·C numbers, and as many for each of the next steps and their
    gradients. Here the last linear layers and all that follows are computed for `chunk_size` images after the other,
    and again in the backward pass. The marginals are sums over chunks, so loss, logs and gradients are those of
    the whole (global) batch, up to rounding.

    Args:
        teacher: (T, B, K) what the teacher's last linear layer takes.
        student: (V, B, L) what the student's takes.
        teacher_output: (kernel (K, C), bias (C,) or `None`).
        student_output: (kernel (L, C), bias (C,) or `None`).
        chunk_size: Images whose (T + V) · `chunk_size` rows of logits are in memory at once.
        compute_dtype: Of the linear layers. The gradients of chunks are added up in the dtype of the kernels.
        teacher_temperature: As in `dissl_loss`.
        student_temperature: As in `dissl_loss`.
        maximality_weight: As in `dissl_loss`.
        invariance_weight: As in `dissl_loss`.

    Returns:
        The float32 loss and the dict of logs of `dissl_loss`, and (C,) float32 without gradient: how many teacher views
        each class was the most probable one of.

    Raises:
        ValueError: As `dissl_loss`, or a `chunk_size` that is no positive integer.

    Source: Dubois et al. 2022, §5.2. Recomputation: Chen et al. 2016.

    Example:

    >>> x, kernel = keras.random.normal((2, 8, 4), seed=0), keras.random.normal((4, 32), seed=1)
    >>> layer = (kernel, None)
    >>> loss, logs, counts = chunked_dissl_loss(
    ...     teacher=x, student=x, teacher_output=layer, student_output=layer, chunk_size=3
    ... )
    """
    check_positive(teacher_temperature=teacher_temperature, student_temperature=student_temperature)
    check_chunk_size(1 if chunk_size is None else chunk_size)
    teacher, student = ops.convert_to_tensor(teacher), ops.convert_to_tensor(student)
    check_views("teacher", teacher, 2)
    check_views("student", student, 2)
    batches = {x.shape[1] for x in (teacher, student)} - {None}
    classes = {kernel.shape[-1] for kernel, _ in (teacher_output, student_output)}
    if teacher.shape[0] > student.shape[0] or len(batches) > 1 or len(classes) > 1:
        raise ValueError(
            "`teacher` (T, B, K) and `student` (V, B, L) should have one batch size B, V ≥ T, and outputs of one "
            f"number of classes. Received shapes: {tuple(teacher.shape)}, {tuple(student.shape)}, and {classes} classes"
        )
    (num_classes,) = classes
    shared = [x for x in (*teacher_output, *student_output) if x is not None]
    has_bias = [bias is not None for _, bias in (teacher_output, student_output)]

    def logits(rows, kernel, bias):
        """(b, V, K) of a chunk -> (V, b, C) float32."""
        x = ops.matmul(ops.cast(ops.transpose(rows, (1, 0, 2)), compute_dtype), ops.cast(kernel, compute_dtype))
        return ops.cast(x if bias is None else x + ops.cast(bias, compute_dtype), "float32")

    def of_images(teacher, student, *shared):  # (b, T, K), (b, V, L)
        shared = list(shared)
        layers = [(shared.pop(0), shared.pop(0) if bias else None) for bias in has_bias]
        teacher_logits, student_logits = (
            logits(x, *layer) for x, layer in zip((teacher, student), layers, strict=True)
        )
        terms = _terms(teacher_logits, student_logits, (teacher_temperature, student_temperature), ops.sum)
        return *terms, _counts(_winners(teacher_logits), num_classes)

    rows = [ops.transpose(x, (1, 0, 2)) for x in (teacher, student)]  # (B, T, K), (B, V, L)
    *sums, counts = distribution.sum_chunks(of_images, rows, shared, chunk_size=chunk_size)
    batch = ops.shape(teacher)[1]
    means = [x / ops.cast(batch, "float32") for x in sums]
    return *_loss(means, batch, maximality_weight, invariance_weight), ops.stop_gradient(counts)


def _winners(logits):
    """The most probable class of each row of (T, B, C), flat."""
    return ops.reshape(ops.argmax(logits, axis=-1), (-1,))


def _counts(classes, num_classes):
    """How often each class is in a flat integer tensor, (C,) float32."""
    return ops.segment_sum(ops.ones_like(classes, dtype="float32"), classes, num_segments=num_classes)


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
        self.update_counts(_counts(classes, self.num_classes))

    def update_counts(self, counts):
        """Marks the classes whose entry in (C,) counts is above 0 as used."""
        self.seen.assign(ops.maximum(self.seen, ops.cast(counts > 0, "float32")))

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
        chunk_size: For many classes and large batches: `chunked_dissl_loss` on this many images at once, which is the
            same loss in less memory. `call` then returns what the last linear layers take, and `logits` makes logits of
            it. `None` computes all logits at once.

    It takes small crops too (multi-crop): the student sees all views, the teacher the first two.

    It reports the logs of `dissl_loss`, and `classes_used`: how many classes were the most probable
    one of some training view in the epoch.

    Raises:
        ValueError: A class number, width or temperature that is not above 0, an unknown probe, a probe layer of
            another width than C, a warm-up that is longer than the run, or a `chunk_size` where the last layer of
            a `probe` of one's own is not known to be linear.

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
        chunk_size=None,
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
        check_chunk_size(chunk_size)
        self.chunk_size = chunk_size
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
        if self.chunk_size is not None:
            _check_last_layer(self.student_head, self.chunk_size)
        build_heads(width, self.teacher_head, self.student_head)

    def call(self, student_features, teacher_features=None, training=None):
        teacher_views = student_features[: self.num_teacher_views]  # (T, B, D)
        if self.chunk_size is None:
            return {
                "teacher_logits": apply_head(self.teacher_head, teacher_views, training),  # (T, B, C)
                "student_logits": apply_head(self.student_head, student_features, training),  # (V, B, C)
            }
        # Batch normalisation stands before the last linear layers, so it sees the whole batch here.
        teacher, student = self.teacher_head.before_output, self.student_head.before_output
        return {
            "teacher": apply_head(teacher, teacher_views, training),  # (T, B, bottleneck)
            "student": apply_head(student, student_features, training),  # (V, B, bottleneck)
        }

    def logits(self, outputs):
        """The logits of what `call` returned: `teacher_logits` (T, B, C) and `student_logits` (V, B, C), float32.

        Args:
            outputs: The dict that `call` returned, with a `chunk_size` or without.
        """
        if "teacher_logits" in outputs:
            return outputs
        return {
            f"{name}_logits": apply_head(lambda x, training, head=head: head.output_layer(x), outputs[name], None)
            for name, head in (("teacher", self.teacher_head), ("student", self.student_head))
        }

    def compute_loss(self, outputs, step):
        arguments = {
            "teacher_temperature": self.teacher_temperature,
            "student_temperature": self.student_temperature,
            "maximality_weight": self.maximality_weight,
            "invariance_weight": self.current_invariance_weight(step),
        }
        if self.chunk_size is None:
            self.distinct_classes.update_state(_winners(outputs["teacher_logits"]))
            return dissl_loss(
                teacher_logits=outputs["teacher_logits"], student_logits=outputs["student_logits"], **arguments
            )
        teacher, student = self.teacher_head.output_layer, self.student_head.output_layer
        loss, logs, counts = chunked_dissl_loss(
            teacher=outputs["teacher"],
            student=outputs["student"],
            teacher_output=(teacher.kernel, teacher.bias),
            student_output=(student.kernel, student.bias),
            chunk_size=self.chunk_size,
            compute_dtype=student.compute_dtype,
            **arguments,
        )
        self.distinct_classes.update_counts(counts)
        return loss, logs

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
            "chunk_size",
        )
        return super().get_config() | {name: getattr(self, name) for name in names}


def _check_last_layer(head, chunk_size):
    """Refuses a head, a user's, whose last layer cannot be computed for some images at a time."""
    if type(head) in (MLPHead, LinearHead) and not head.output_norm:
        return
    reason = "a layer of its own kind, of which it is not known what its last step is"
    if type(head) in (MLPHead, LinearHead):
        reason = "which ends in a batch normalisation: that needs all images at once"
    raise ValueError(
        "`chunk_size` should be None with this `probe`: in chunks the loss is exact where the student head ends in a "
        f"linear layer. Received: chunk_size={chunk_size}, probe={head!r}, {reason}. Use probe='linear' or 'mlp', or "
        "a heads.MLPHead or heads.LinearHead with output_norm=False."
    )
