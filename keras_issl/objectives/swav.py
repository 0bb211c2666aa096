"""SwAV: predict the cluster of one view, balanced over the batch by Sinkhorn-Knopp, from another view."""

import keras
from keras import ops

from keras_issl import distribution
from keras_issl.heads import MLPHead, PrototypeHead, check_initialization
from keras_issl.objectives.base import (
    Objective,
    apply_head,
    build_heads,
    check_positive,
    check_views,
    flat,
    mean_of,
    unit_rows,
)

LOG_NAMES = ("code_entropy", "marginal_entropy", "effective_classes", "kl")
MASKED = -1e9  # in place of -inf, whose differences are NaN


def _check_sinkhorn(epsilon, iterations):
    check_positive(epsilon=epsilon)
    if not isinstance(iterations, int) or iterations < 1:
        raise ValueError(f"The number of Sinkhorn iterations should be an integer above 0. Received: {iterations!r}")


def sinkhorn(scores, *, epsilon=0.05, iterations=3, queue_scores=None, use_queue=None):
    """Codes of a batch: soft assignments to prototypes that share the *global* batch out evenly.

    From exp(scores/ε), Sinkhorn-Knopp alternately gives every prototype the same total and every image the same
    total; the last step is the images', so that each code is a distribution. That limit is the assignment of largest
    Σ codes·scores + ε·H(codes) among the even ones. Computed in the log domain, in float32, where no score or ε
    overflows, and without gradient.

    Args:
        scores: (B, C) scores of images and prototypes.
        epsilon: ε, above 0: how soft the codes are.
        iterations: Times that both totals are equalised.
        queue_scores: (Q, C) scores of earlier images, which take part in the sharing and get no code, or `None`.
        use_queue: Scalar, 1 where they take part, 0 where they are left out; 1 by default.

    Returns:
        (B, C) float32 codes, rows that sum to 1.

    Raises:
        ValueError: Another rank, widths that differ, an ε or a number of iterations that is not above 0.

    Source: Caron et al. 2020, "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments",
    equations 3 to 5; Cuturi 2013.

    Example:

    >>> codes = sinkhorn(keras.random.uniform((8, 4), seed=0), epsilon=1.0, iterations=50)
    >>> bool(keras.ops.max(keras.ops.abs(keras.ops.sum(codes, axis=0) - 8 / 4)) < 1e-3)
    True
    """
    _check_sinkhorn(epsilon, iterations)
    scores = ops.stop_gradient(ops.cast(scores, "float32") / epsilon)  # (B, C)
    if len(scores.shape) != 2:
        raise ValueError(f"`scores` should have two axes, (batch, prototypes). Received shape: {tuple(scores.shape)}")
    rows = distribution.gather(scores)  # (global B, C)
    mask = ops.zeros_like(rows[:, :1])  # (global B, 1): log weights of the rows
    if queue_scores is not None:
        queue = ops.stop_gradient(ops.cast(queue_scores, "float32") / epsilon)  # (Q, C): the same on every replica
        if len(queue.shape) != 2 or queue.shape[-1] != scores.shape[-1]:
            raise ValueError(
                "`queue_scores` (Q, C) should have the width of `scores` (B, C). "
                f"Received shapes: {tuple(queue.shape)}, {tuple(scores.shape)}"
            )
        out = 0.0 if use_queue is None else MASKED * (1.0 - ops.cast(use_queue, "float32"))
        rows = ops.concatenate([rows, queue], axis=0)  # (N, C)
        mask = ops.concatenate([mask, ops.zeros_like(queue[:, :1]) + out], axis=0)  # (N, 1)
    by_row, by_prototype = mask, None
    for iteration in range(iterations):
        if iteration:
            by_row = mask - ops.logsumexp(rows + by_prototype, axis=1, keepdims=True)  # (N, 1)
        by_prototype = -ops.logsumexp(rows + by_row, axis=0, keepdims=True)  # (1, C)
    # What equal totals are is left out above: constants cancel in this last normalisation.
    return ops.softmax(scores + by_prototype, axis=-1)


def swav_loss(
    scores,
    *,
    num_teacher_views=2,
    temperature=0.1,
    epsilon=0.05,
    iterations=3,
    queue_scores=None,
    use_queue=None,
):
    """SwAV's swapped prediction: cross-entropy of other views under the codes of the first T views.

    With q_i = `sinkhorn(scores_i)` for i < T, without gradient, and p_j = softmax(scores_j/τ) for all views j < V, the
    loss is the mean over pairs j ≠ i and images of −Σ_c q_i log p_j.

    Codes are shared out evenly, so their own marginal says nothing. Collapse shows in their entropy: images with one
    projection get uniform codes, `code_entropy` = log C, and the loss is at least log C, which it equals when all
    scores are equal. Prototypes that nobody predicts show in `marginal_entropy`, which is that of the predictions.

    Args:
        scores: (V, B, C) cosines of the projections of all views with the prototypes.
        num_teacher_views: T, how many of the views, from the first, get codes.
        temperature: τ, above 0.
        epsilon: ε of `sinkhorn`.
        iterations: Iterations of `sinkhorn`.
        queue_scores: (T, Q, C) scores of earlier images, as in `sinkhorn`, or `None`.
        use_queue: Scalar, 1 where they take part, 0 where they are left out; 1 by default.

    Returns:
        A float32 scalar and a dict of float32 scalars (without gradient), in nats: `code_entropy`, the mean of
        H(q); `marginal_entropy`, the entropy of the global batch mean of p, mean over the first T views;
        `effective_classes`, its exponential; and `kl`, the mean of KL(q_i ‖ p_j), which is the loss − `code_entropy`.

    Raises:
        ValueError: Another rank, fewer than two views or than T, or a temperature, an ε or a number of iterations
            that is not above 0.

    Source: Caron et al. 2020, equations 1 and 2; with small crops, §3.2, equation 6.

    Example:

    >>> loss, logs = swav_loss(keras.random.uniform((2, 8, 32), minval=-1, seed=0))
    """
    check_positive(temperature=temperature)
    scores = ops.convert_to_tensor(scores)
    check_views("scores", scores, max(2, num_teacher_views))
    scores = ops.cast(scores, "float32")
    teachers, students = range(num_teacher_views), range(scores.shape[0])
    queues = [None] * num_teacher_views if queue_scores is None else [queue_scores[i] for i in teachers]
    settings = {"epsilon": epsilon, "iterations": iterations, "use_queue": use_queue}
    codes = [sinkhorn(scores[i], queue_scores=queues[i], **settings) for i in teachers]  # T × (B, C)
    log_p = ops.log_softmax(scores / temperature, axis=-1)  # (V, B, C)
    pairs = [-ops.mean(ops.sum(codes[i] * log_p[j], axis=-1)) for i in teachers for j in students if j != i]
    loss = mean_of(pairs)

    log = lambda x: ops.log(ops.maximum(x, 1e-30))  # noqa: E731  0·log 0 = 0
    code_entropy = mean_of([-ops.mean(ops.sum(q * log(q), axis=-1)) for q in codes])
    marginals = [distribution.global_mean(ops.exp(ops.stop_gradient(log_p[i]))) for i in teachers]  # T × (C,)
    marginal_entropy = mean_of([-ops.sum(m * log(m)) for m in marginals])
    logs = {
        "code_entropy": code_entropy,
        "marginal_entropy": marginal_entropy,
        "effective_classes": ops.exp(marginal_entropy),
        "kl": loss - code_entropy,
    }
    return loss, {name: ops.stop_gradient(value) for name, value in logs.items()}


@keras.saving.register_keras_serializable(package="keras_issl")
class SwAV(Objective):
    """Swapping assignments between views: `swav_loss` on an MLP head and learned prototypes.

    Features pass an MLP with batch normalisation; its output is scaled to unit length and compared with C unit
    prototypes. There is no moving-average teacher: codes come from the same network, without gradient.

    *Prototypes* differ from the authors' in one point. They keep unit vectors and, after each optimizer step, scale
    the stored ones back to length 1; here the stored vectors are free, and are scaled to length 1 wherever they are
    used. The cosines, and so the loss, are the same. The gradient here is that of the paper without the part along
    the prototype, divided by the stored length, which starts near 1: directions move alike to first order in the
    learning rate, while optimizers that look at norms (LARS) see other ones. Decay that shrinks weights (`AdamW`,
    `optimizers.SGD(l2=)`) changes lengths alone, but `optimizers.Adam(l2=)` turns prototypes, frozen ones above all:
    beside a gradient of zero L2 is the whole step, which Adam makes as long as any other. Exclude them with
    `optimizer.exclude_from_weight_decay(var_names=["prototypes"])`, as recipes do.

    *The queue*, one a teacher view, holds the latest `queue_length` projections, unit vectors, newest first. It is
    filled by every training step from the first, and enters the sharing of `sinkhorn` from `queue_start_epoch` on
    (the authors fill it from there), once it is full. Use it where a batch is small against C.

    Args:
        num_prototypes: C.
        temperature: τ.
        epsilon: ε of `sinkhorn`.
        sinkhorn_iterations: Iterations of `sinkhorn`.
        queue_length: Images of each teacher view to keep; 0 for no queue. 3840 in the authors' runs of small batches.
        queue_start_epoch: Finished epochs before which the queue is not used.
        freeze_steps: First steps in which the prototypes get a gradient of zero; 313 is an epoch of the authors' runs.
        hidden: Hidden blocks of the head, as in `heads.MLPHead`.
        output_dim: Width of the projections.
        heads: `"small_images"` or `"imagenet"`, the initialisation in `heads.MLPHead`.
        probe: Downstream probe family; it is recorded, the head does not depend on it.

    It reports the logs of `swav_loss`; its docstring says how collapse looks in them.

    Raises:
        ValueError: A temperature, an ε, a width or a number of iterations or prototypes that is not above 0, a
            negative length, epoch or number of steps; in `fit`, a queue shorter than the batch or never used, or
            prototypes that stay frozen to the end.

    Source: Caron et al. 2020, §3.1 and §3.2; its appendix on implementation and on the queue.

    Example:

    >>> objective = SwAV(num_prototypes=64)
    >>> outputs = objective(keras.random.normal((2, 8, 32), seed=0), training=True)
    >>> loss, logs = objective.compute_loss(outputs, step=0)
    """

    log_names = LOG_NAMES
    multi_crop = True

    def __init__(
        self,
        num_prototypes=3000,
        temperature=0.1,
        epsilon=0.05,
        sinkhorn_iterations=3,
        queue_length=0,
        queue_start_epoch=15,
        freeze_steps=313,
        hidden=(2048,),
        output_dim=128,
        heads="imagenet",
        probe="linear",
        **kwargs,
    ):
        super().__init__(probe=probe, uses_run_length=queue_length > 0, **kwargs)
        check_positive(num_prototypes=num_prototypes, temperature=temperature, output_dim=output_dim)
        _check_sinkhorn(epsilon, sinkhorn_iterations)
        check_initialization("heads", heads)
        counts = {"queue_length": queue_length, "queue_start_epoch": queue_start_epoch, "freeze_steps": freeze_steps}
        for name, value in counts.items():
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"`{name}` should be an integer, at least 0. Received: {value!r}")
        self.num_prototypes, self.temperature = num_prototypes, temperature
        self.epsilon, self.sinkhorn_iterations = epsilon, sinkhorn_iterations
        self.queue_length, self.queue_start_epoch, self.freeze_steps = queue_length, queue_start_epoch, freeze_steps
        self.hidden, self.output_dim, self.heads = tuple(hidden), output_dim, heads

    def build(self, student_features_shape, teacher_features_shape=None):
        self.head = MLPHead(self.output_dim, hidden=self.hidden, initialization=self.heads)
        self.prototypes = PrototypeHead(self.num_prototypes)
        build_heads(student_features_shape[-1], self.head)
        build_heads(self.output_dim, self.prototypes)
        if self.queue_length:
            state = {"initializer": "zeros", "trainable": False, "autocast": False}
            shape = (self.num_teacher_views, self.queue_length, self.output_dim)
            self.queue = self.add_weight(shape=shape, dtype="float32", name="queue", **state)
            self.queued = self.add_weight(shape=(), dtype="int32", name="queued", **state)

    def call(self, student_features, teacher_features=None, training=None):
        projections = unit_rows(apply_head(self.head, student_features, training))  # (V, B, E)
        outputs = {"projections": projections}
        if self.queue_length:
            queue = ops.copy(ops.convert_to_tensor(self.queue))  # a copy: `assign` may work in place
            queued = ops.copy(ops.convert_to_tensor(self.queued))
            outputs["queue"] = queue  # (T, Q, E), before this batch
            outputs["queue_full"] = ops.cast(queued >= self.queue_length, "float32")
            if training:
                self._fill(ops.stop_gradient(projections), queue, queued)
        return outputs

    def _fill(self, projections, queue, queued):
        """Puts the global batch in front of each queue; the oldest fall off its end."""
        new = ops.stack(
            [distribution.gather(projections[i]) for i in range(self.num_teacher_views)]
        )  # (T, global B, E)
        self.queue.assign(ops.reshape(ops.concatenate([new, queue], axis=1)[:, : self.queue_length], self.queue.shape))
        self.queued.assign(ops.minimum(queued + ops.shape(new)[1], self.queue_length))

    def _scores(self, projections, frozen):
        """(V, B, E) unit rows -> (V, B, C) cosines."""
        scores = self.prototypes(flat(projections), frozen=frozen)
        return ops.reshape(scores, (projections.shape[0], -1, self.num_prototypes))

    def compute_loss(self, outputs, step):
        queue_scores = use_queue = None
        if self.queue_length:
            # Kept as projections, so that all scores are those of the prototypes of now.
            queue_scores = ops.stop_gradient(self._scores(outputs["queue"], None))  # (T, Q, C)
            started = ops.cast(self.epoch(step) >= self.queue_start_epoch, "float32")
            use_queue = outputs["queue_full"] * started
        frozen = ops.cast(ops.cast(step, "int32") < self.freeze_steps, "float32")
        return swav_loss(
            self._scores(outputs["projections"], frozen),
            num_teacher_views=self.num_teacher_views,
            temperature=self.temperature,
            epsilon=self.epsilon,
            iterations=self.sinkhorn_iterations,
            queue_scores=queue_scores,
            use_queue=use_queue,
        )

    def check_run(self, *, batch_size, epochs, steps_per_epoch):
        steps = None if epochs is None or steps_per_epoch is None else epochs * steps_per_epoch
        if steps is not None and self.freeze_steps >= steps:
            raise ValueError(
                f"`freeze_steps` should be below the {steps} steps of the run, or the prototypes are never trained. "
                f"Received: {self.freeze_steps}. Train longer, or freeze them for fewer steps: the paper does for an "
                "epoch of hundreds."
            )
        if not self.queue_length:
            return
        if batch_size is not None and self.queue_length < batch_size:
            raise ValueError(
                "`queue_length` should be at least the batch size, whose images a step puts into the queue, or 0. "
                f"Received: queue_length={self.queue_length}, batch_size={batch_size}. Pass a longer queue; a batch "
                "of this size may well need none."
            )
        if epochs is not None and self.queue_start_epoch >= epochs:
            raise ValueError(
                "`queue_start_epoch` should be below the epochs of the run, or the queue is never used. Received: "
                f"queue_start_epoch={self.queue_start_epoch}, epochs={epochs}. Pass a smaller `queue_start_epoch`, or "
                "queue_length=0."
            )
        # A step uses the queue as the steps before it left it.
        if None not in (steps, batch_size) and (steps - 1) * batch_size < self.queue_length:
            raise ValueError(
                f"`queue_length` should be at most the {(steps - 1) * batch_size} images of all but the last of the "
                f"{steps} steps of the run: a queue that is never full is never used. Received: {self.queue_length}. "
                "Train longer, pass a shorter queue, or queue_length=0."
            )

    def get_config(self):
        names = (
            "num_prototypes",
            "temperature",
            "epsilon",
            "sinkhorn_iterations",
            "queue_length",
            "queue_start_epoch",
            "freeze_steps",
            "hidden",
            "output_dim",
            "heads",
        )
        return super().get_config() | {name: getattr(self, name) for name in names}
