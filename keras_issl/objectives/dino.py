"""DINO: the student predicts the centred and sharpened assignments of its own moving average."""

import keras
from keras import layers, ops

from keras_issl import distribution
from keras_issl.heads import PrototypeHead, check_initialization
from keras_issl.objectives.base import (
    Objective,
    apply_head,
    apply_teacher_head,
    build_heads,
    check_positive,
    check_views,
    flat,
    mean_of,
    require_teacher_momentum,
)

LOG_NAMES = ("teacher_entropy", "marginal_entropy", "effective_classes", "kl")


def _check_logits(student, teacher):
    check_views("student_logits", student, 2)
    check_views("teacher_logits", teacher, 1)
    pairs = list(zip(student.shape[1:], teacher.shape[1:], strict=True))
    if any(a != b for a, b in pairs if None not in (a, b)) or teacher.shape[0] > student.shape[0]:
        raise ValueError(
            "`student_logits` (V, B, C) and `teacher_logits` (T, B, C) should have one batch size B, one number of "
            f"prototypes C, and V ≥ T. Received shapes: {tuple(student.shape)}, {tuple(teacher.shape)}"
        )


def dino_loss(*, student_logits, teacher_logits, center=None, student_temperature=0.1, teacher_temperature=0.07):
    """DINO: cross-entropy of the student under the centred, sharpened teacher, between different views.

    With q_i = softmax((t_i − center)/τ_t) for the teacher's views i < T and p_j = softmax(s_j/τ_s) for all views
    j < V, the loss is the mean over pairs j ≠ i and images of −Σ_c q_i log p_j. No gradient reaches the teacher or
    the centre.

    Nothing in the loss itself forbids a constant teacher; centring works against one prototype that takes all,
    sharpening (τ_t < τ_s) against the uniform assignment. Both collapses have `kl` near 0, and are told apart by the
    entropies: a uniform teacher gives `teacher_entropy` = `marginal_entropy` = loss = log C; one prototype for all
    images gives 0, 0 and 0, `effective_classes` 1. A teacher that works has a low `teacher_entropy` and a high
    `marginal_entropy`.

    Args:
        student_logits: (V, B, C) logits of all views.
        teacher_logits: (T, B, C) logits of the teacher for the first T of these views.
        center: (C,) the centre c, subtracted from the teacher's logits; `None` for 0.
        student_temperature: τ_s, above 0.
        teacher_temperature: τ_t, above 0; a number or a scalar tensor.

    Returns:
        A float32 scalar and a dict of float32 scalars (without gradient), in nats: `teacher_entropy`, the mean of
        H(q); `marginal_entropy`, the entropy of the global batch mean of q, mean over the teacher's views;
        `effective_classes`, its exponential; and `kl`, the mean of KL(q_i ‖ p_j), which is the loss −
        `teacher_entropy`.

    Raises:
        ValueError: Another rank, fewer than two student views, fewer student than teacher views, widths or batch
            sizes that differ, or a temperature that is not above 0.

    Source: Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers", equations 1 to 3.

    Example:

    >>> logits = keras.random.normal((2, 8, 32), seed=0)
    >>> loss, logs = dino_loss(student_logits=logits, teacher_logits=logits)
    """
    check_positive(student_temperature=student_temperature)
    if isinstance(teacher_temperature, (int, float)):
        check_positive(teacher_temperature=teacher_temperature)
    student_logits, teacher_logits = ops.convert_to_tensor(student_logits), ops.convert_to_tensor(teacher_logits)
    _check_logits(student_logits, teacher_logits)
    centred = ops.cast(teacher_logits, "float32")
    if center is not None:
        centred = centred - ops.cast(center, "float32")
    log_q = ops.log_softmax(ops.stop_gradient(centred / teacher_temperature), axis=-1)  # (T, B, C)
    log_p = ops.log_softmax(ops.cast(student_logits, "float32") / student_temperature, axis=-1)  # (V, B, C)
    teachers, students = range(log_q.shape[0]), range(log_p.shape[0])
    q = [ops.exp(log_q[i]) for i in teachers]  # T × (B, C)
    pairs = [-ops.mean(ops.sum(q[i] * log_p[j], axis=-1)) for i in teachers for j in students if j != i]
    loss = mean_of(pairs)

    teacher_entropy = mean_of([-ops.mean(ops.sum(q[i] * log_q[i], axis=-1)) for i in teachers])
    marginals = [distribution.global_mean(x) for x in q]  # T × (C,)
    marginal_entropy = mean_of([-ops.sum(m * ops.log(ops.maximum(m, 1e-30))) for m in marginals])
    logs = {
        "teacher_entropy": teacher_entropy,
        "marginal_entropy": marginal_entropy,
        "effective_classes": ops.exp(marginal_entropy),
        "kl": loss - teacher_entropy,
    }
    return loss, {name: ops.stop_gradient(value) for name, value in logs.items()}


@keras.saving.register_keras_serializable(package="keras_issl")
class DINOHead(layers.Layer):
    """DINO's projection before the prototypes: linear layers with GELU between, the last one a bottleneck.

    Args:
        bottleneck: Width of the output.
        hidden: Widths of the hidden layers.
        batch_norm: Whether batch normalisation stands between a hidden layer, then without bias, and its GELU.

    Input `(N, D)` features, output `(N, bottleneck)` in the compute dtype.

    Raises:
        ValueError: A width that is not a positive integer.

    Source: Caron et al. 2021, appendix on the projection head. Kernels start normal with standard deviation 0.02, as
    in the authors' code (truncated at ±2, that is, not at all), and biases at 0.

    Example:

    >>> keras_issl.objectives.dino.DINOHead(256, hidden=(64,))(keras.ops.ones((8, 512))).shape[-1]
    256
    """

    def __init__(self, bottleneck=256, hidden=(2048, 2048), batch_norm=False, **kwargs):
        super().__init__(**kwargs)
        self.bottleneck, self.hidden, self.batch_norm = bottleneck, tuple(hidden), batch_norm
        if any(not isinstance(w, int) or w <= 0 for w in (*self.hidden, bottleneck)):
            raise ValueError(
                "`hidden` and `bottleneck` should hold positive integers. "
                f"Received: hidden={self.hidden}, bottleneck={bottleneck}"
            )

    def build(self, input_shape):
        width, self.linears, self.norms = input_shape[-1], [], []
        for units in (*self.hidden, self.bottleneck):
            last = len(self.linears) == len(self.hidden)
            normal = keras.initializers.RandomNormal(stddev=0.02)
            self.linears.append(layers.Dense(units, use_bias=last or not self.batch_norm, kernel_initializer=normal))
            self.linears[-1].build((None, width))
            if self.batch_norm and not last:
                self.norms.append(distribution.BatchNormalization())
                self.norms[-1].build((None, units))
            width = units

    def call(self, features, training=None):
        x = features
        for n, linear in enumerate(self.linears[:-1]):
            x = linear(x)  # (N, hidden[n])
            x = self.norms[n](x, training=training) if self.batch_norm else x
            x = ops.gelu(x, approximate=False)
        return self.linears[-1](x)  # (N, bottleneck)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.bottleneck)

    def get_config(self):
        names = ("bottleneck", "hidden", "batch_norm")
        return super().get_config() | {name: getattr(self, name) for name in names}


@keras.saving.register_keras_serializable(package="keras_issl")
class DINO(Objective):
    """Self-distillation without labels: `dino_loss` against a moving-average teacher.

    Student and teacher have one architecture: encoder, `DINOHead`, rows scaled to unit length, cosines with C unit
    prototypes. The teacher is the moving average of the student, head, prototypes and batch statistics included; it
    starts from the student and sees the first two views, the student sees all. The centre is the moving average of
    the teacher's logits, c ← m·c + (1 − m)·mean over its views and the global batch; it starts at 0 and moves once a
    training step, after its use.

    Three schedules need the length of the run, which `Pretrainer.fit` notes: the teacher's momentum (a cosine), its
    temperature (linear by step over the first `warmup_epochs`; the authors' code goes by epoch), and the prototypes,
    which get a gradient of zero in the first `freeze_epochs`. Prototypes are scaled to unit length wherever they are
    used, so decay that shrinks them (`AdamW`, `optimizers.SGD(l2=)`) changes nothing, but `optimizers.Adam(l2=)` turns
    frozen ones: beside a gradient of zero L2 is the whole step, which Adam makes as long as any other. Exclude them
    with `optimizer.exclude_from_weight_decay(var_names=["prototypes"])`, as recipes do.

    Args:
        num_prototypes: C; 65536 in the paper on ImageNet, 1000 for small images in Dubois et al. 2022.
        student_temperature: τ_s.
        teacher_temperature: τ_t after its warm-up.
        warmup_teacher_temperature: τ_t at the first step.
        warmup_epochs: Epochs over which τ_t goes from one to the other; 0 for none.
        center_momentum: Share of the centre that a step keeps.
        teacher_momentum: Share of its weights that the teacher keeps a step: a number, or the (first, last) of a
            cosine over the run.
        hidden: Widths of the hidden layers of the head.
        bottleneck: Width of the head's output, in which the prototypes live.
        freeze_epochs: Epochs in which the prototypes stay where they started; 0 for none.
        batch_norm: Whether the head's hidden layers have batch normalisation; the paper's have none, which keeps
            its transformers free of it.
        heads: `"small_images"` or `"imagenet"`, the recipe that the head belongs to. Both start linear layers alike
            here, normal with standard deviation 0.02, so it is recorded and changes nothing.
        probe: Downstream probe family; it is recorded, the head does not depend on it.

    It reports the logs of `dino_loss`; its docstring says how the two collapses look in them.

    Raises:
        ValueError: A temperature, width or number of prototypes that is not above 0, a momentum outside of [0, 1] or
            `None`, negative epochs; in `fit`, a warm-up longer than the run, or prototypes frozen for all of it.

    Source: Caron et al. 2021, §3.1, equations 1 to 4, algorithm 1 and the appendices on the head and on multi-crop.

    Example:

    >>> objective = DINO(num_prototypes=64, hidden=(32,))
    >>> features = keras.random.normal((2, 8, 16), seed=0)
    >>> outputs = objective(features, teacher_features=features, training=True)
    >>> loss, logs = objective.compute_loss(outputs, step=0)
    """

    log_names = LOG_NAMES
    multi_crop = True
    uses_run_length = True

    def __init__(
        self,
        num_prototypes=65536,
        student_temperature=0.1,
        teacher_temperature=0.07,
        warmup_teacher_temperature=0.04,
        warmup_epochs=30,
        center_momentum=0.9,
        teacher_momentum=(0.996, 1.0),
        hidden=(2048, 2048),
        bottleneck=256,
        freeze_epochs=1,
        batch_norm=False,
        heads="imagenet",
        probe="linear",
        **kwargs,
    ):
        require_teacher_momentum(teacher_momentum)
        super().__init__(probe=probe, teacher_momentum=teacher_momentum, **kwargs)
        check_positive(
            num_prototypes=num_prototypes,
            student_temperature=student_temperature,
            teacher_temperature=teacher_temperature,
            warmup_teacher_temperature=warmup_teacher_temperature,
            bottleneck=bottleneck,
        )
        check_initialization("heads", heads)
        for name, epochs in (("warmup_epochs", warmup_epochs), ("freeze_epochs", freeze_epochs)):
            if not 0 <= epochs < float("inf"):
                raise ValueError(f"`{name}` should be a number of epochs, at least 0. Received: {epochs}")
        if not 0 <= center_momentum <= 1:
            raise ValueError(f"`center_momentum` should be a number in [0, 1]. Received: {center_momentum}")
        self.num_prototypes = num_prototypes
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature
        self.warmup_teacher_temperature, self.warmup_epochs = warmup_teacher_temperature, warmup_epochs
        self.center_momentum, self.freeze_epochs = center_momentum, freeze_epochs
        self.hidden, self.bottleneck, self.batch_norm, self.heads = tuple(hidden), bottleneck, batch_norm, heads

    def build(self, student_features_shape, teacher_features_shape=None):
        self.head = DINOHead(self.bottleneck, hidden=self.hidden, batch_norm=self.batch_norm)
        self.prototypes = PrototypeHead(self.num_prototypes)
        build_heads(student_features_shape[-1], self.head)
        build_heads(self.bottleneck, self.prototypes)
        self.teacher_head, self.teacher_prototypes = self.follow(self.head), self.follow(self.prototypes)
        state = {"dtype": "float32", "trainable": False, "autocast": False}
        self.center = self.add_weight(shape=(self.num_prototypes,), initializer="zeros", name="center", **state)

    def call(self, student_features, teacher_features=None, training=None):
        center = ops.copy(ops.convert_to_tensor(self.center))  # a copy: `assign` below may work in place
        x = apply_teacher_head(self.teacher_head, teacher_features, training)  # (T, B, bottleneck)
        teacher_logits = apply_teacher_head(self.teacher_prototypes, x, training)  # (T, B, C)
        if training:
            mean = distribution.global_mean(ops.mean(teacher_logits, axis=0))  # (C,)
            self.center.assign(self.center_momentum * center + (1 - self.center_momentum) * mean)
        return {
            "student": apply_head(self.head, student_features, training),  # (V, B, bottleneck)
            "teacher_logits": teacher_logits,  # (T, B, C)
            "center": center,  # (C,)
        }

    def compute_loss(self, outputs, step):
        student = outputs["student"]
        frozen = ops.cast(self.epoch(step) < self.freeze_epochs, "float32")
        logits = self.prototypes(flat(student), frozen=frozen)  # (V·B, C)
        return dino_loss(
            student_logits=ops.reshape(logits, (student.shape[0], -1, self.num_prototypes)),  # (V, B, C)
            teacher_logits=outputs["teacher_logits"],
            center=outputs["center"],
            student_temperature=self.student_temperature,
            teacher_temperature=self.scheduled_teacher_temperature(step),
        )

    def scheduled_teacher_temperature(self, step):
        """τ_t after `step` finished steps, a number or a float32 scalar."""
        if not self.warmup_epochs:
            return self.teacher_temperature
        share = ops.minimum(self.epoch(step) / self.warmup_epochs, 1.0)
        return (1.0 - share) * self.warmup_teacher_temperature + share * self.teacher_temperature

    def check_run(self, *, batch_size, epochs, steps_per_epoch):
        if epochs is None:
            return
        if self.warmup_epochs > epochs:
            raise ValueError(
                "`warmup_epochs` should be at most the epochs of the run, or the teacher's temperature never arrives. "
                f"Received: warmup_epochs={self.warmup_epochs}, epochs={epochs}. Pass a smaller `warmup_epochs`."
            )
        if self.freeze_epochs >= epochs:
            raise ValueError(
                "`freeze_epochs` should be below the epochs of the run, or the prototypes are never trained. "
                f"Received: freeze_epochs={self.freeze_epochs}, epochs={epochs}. Pass a smaller `freeze_epochs`."
            )

    def get_config(self):
        names = (
            "num_prototypes",
            "student_temperature",
            "teacher_temperature",
            "warmup_teacher_temperature",
            "warmup_epochs",
            "center_momentum",
            "teacher_momentum",
            "hidden",
            "bottleneck",
            "freeze_epochs",
            "batch_norm",
            "heads",
        )
        return super().get_config() | {name: getattr(self, name) for name in names}
