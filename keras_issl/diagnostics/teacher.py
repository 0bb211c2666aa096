"""The classes of an objective's teacher: its probabilities for all views, and how it uses its classes."""

import dataclasses

import keras
import numpy as np

from keras_issl.diagnostics.geometry import BLOCK, finite, view_array

TINY = 1e-30  # floor under a logarithm, as in the objective


class NoClasses(ValueError):
    """The objective has no learned classes that its heads alone could assign features to."""


@dataclasses.dataclass(frozen=True)
class ClassUsage:
    """How a teacher uses its classes, in nats; M is the class, x a view, q its probabilities.

    How evenly the classes are used says `assigned_entropy`: H(M) grows with the uncertainty of the assignments, too.

    Attributes:
        classes: C.
        used: how many are the most probable one of some image, over the mean of its views.
        marginal_entropy: H(M), the mean over views of the entropy of the mean over images.
        conditional_entropy: E[H(q|x)]; 0: certain, log C: uniform. Its exponential is how many classes a view is
            spread over.
        information: H(M) - E[H(q|x)], what the class tells about the image.
        assigned_entropy: entropy of the shares of the images in the classes, each image in its most probable one.
        bound: log min(N, C), the most that `information` and `assigned_entropy` can reach; H(M) can reach log C.
        effective: exp of `assigned_entropy`: as many equal classes are as evenly used; at most `used`.
        confidence: mean probability of the most probable class of a view.
        kl: mean over two views v ≠ w of an image of KL(q_v ‖ q_w); 0: invariant.
        agreement: share of pairs of views of an image with the same most probable class.
        largest: share of the images in the largest class.
        balance: (C,) mean probabilities.
        assigned: (N,) the most probable class of each image.

    Example:

    >>> sure, torn = np.eye(4), np.full((4, 4), 0.25)  # both have H(M) = log C
    >>> [round(class_usage(q[None]).information, 6) for q in (sure, torn)]
    [1.386294, 0.0]
    """

    classes: int
    used: int
    marginal_entropy: float
    conditional_entropy: float
    information: float
    assigned_entropy: float
    bound: float
    effective: float
    confidence: float
    kl: float
    agreement: float
    largest: float
    balance: np.ndarray
    assigned: np.ndarray


def assignments(objective, views, *, batch_size=256):
    """The class probabilities q(M̂|view) of an objective with classes, such as DISSL, for all views.

    Args:
        objective: with its heads, as from `load_objective` or a `Pretrainer`'s `objective`. Called on features
            (T, B, D) in inference mode, it returns a dict with `"teacher_logits"` (T, B, C); its
            `teacher_temperature` divides them, and `num_teacher_views` is T. Its teacher reads the encoder's own
            features: DINO's, with `teacher_momentum`, reads those of a moving average, which no preset holds.
        views: `Views`, or features (V, N, D), of the encoder that the heads belong to.
        batch_size: B.

    Returns:
        float32 (V, N, C).

    Raises:
        ValueError: an objective without such classes (`NoClasses`) or without weights, or no views.

    Example:

    >>> objective = keras_issl.objectives.DISSL(num_classes=16)
    >>> objective.build((2, None, 8))
    >>> assignments(objective, np.random.default_rng(0).normal(size=(3, 5, 8))).shape
    (3, 5, 16)
    """
    name = type(objective).__name__
    if not all(hasattr(objective, known) for known in ("teacher_temperature", "num_teacher_views")):
        raise NoClasses(
            f"`objective` should have learned classes: a teacher with logits and a temperature. Received: {name}, "
            "whose heads project but do not assign. Load that of a DISSL preset: keras_issl.load_objective(preset)."
        )
    if getattr(objective, "teacher_momentum", None) is not None:
        raise NoClasses(
            "`objective` should have learned classes of the encoder's own features. Received: "
            f"{name}, whose teacher reads the features of a moving-average encoder, which a preset does not hold. Load "
            "that of a DISSL preset: keras_issl.load_objective(preset)."
        )
    if not objective.built:
        raise ValueError(
            f"`objective` should have trained heads. Received: a {name} that is not built. Load one with "
            "keras_issl.load_objective(preset), or take that of a Pretrainer."
        )
    array = view_array(views)
    v, n, dim = array.shape
    rows, teachers = array.reshape(-1, dim), objective.num_teacher_views  # (V N, D)
    found, step = None, teachers * batch_size
    for start in range(0, len(rows), step):
        part = rows[start : start + step].astype(np.float32)
        # Filled up, so that every call has one shape; in inference mode rows know nothing of each other.
        full = np.concatenate([part, np.zeros((step - len(part), dim), np.float32)])
        outputs = objective(keras.ops.convert_to_tensor(full.reshape(teachers, batch_size, dim)), training=False)
        outputs = getattr(objective, "logits", dict)(outputs)  # of one that computes them in chunks
        if "teacher_logits" not in outputs:
            raise NoClasses(
                f'`objective` should return "teacher_logits". Received: {name}, which returns {sorted(outputs)}. '
                "Only objectives with learned classes, such as DISSL, have them."
            )
        logits = keras.ops.convert_to_numpy(outputs["teacher_logits"]).astype(np.float64)  # (T, B, C)
        logits = logits.reshape(step, -1)[: len(part)] / objective.teacher_temperature
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        found = np.empty((len(rows), logits.shape[1]), np.float32) if found is None else found
        found[start : start + step] = powers / powers.sum(axis=1, keepdims=True)
    return found.reshape(v, n, -1)


def class_usage(probabilities):
    """How many classes a teacher uses, how evenly, how surely, and how invariantly.

    With what DISSL logs during training, over a whole dataset: with q the probabilities of a view, H(M) =
    mean over views of H[mean over images of q], E[H(q|x)], and KL = mean over v ≠ w of E[Σ q_v log(q_v / q_w)],
    which is its invariance term less E[H(q|x)]. Probabilities below 1e-30 count as that under the logarithm.

    Args:
        probabilities: (V, N, C); V may be 1, then `kl` is 0 and `agreement` 1.

    Returns:
        `ClassUsage`.

    Raises:
        ValueError: no probabilities.

    Source: Dubois et al. 2022, §5.2.

    Example:

    >>> usage = class_usage(np.stack([np.eye(8), np.eye(8)]))  # every image has a class of its own
    >>> usage.used, round(usage.effective, 6), abs(usage.conditional_entropy)
    (8, 8.0, 0.0)
    """
    q = check_probabilities(probabilities)
    v, n, c = q.shape
    marginals, conditional, confidence, kl, same = np.zeros((v, c)), 0.0, 0.0, 0.0, 0.0
    assigned = np.empty(n, np.int64)
    for start, block in by_image(q):
        logs = np.log(np.maximum(block, TINY))  # (V, n, C)
        marginals += block.sum(axis=1)
        entropies = -(block * logs).sum(axis=-1)  # (V, n)
        conditional += entropies.sum()
        confidence += block.max(axis=-1).sum()
        # Σ over v ≠ w of the cross-entropies, from the sums over all pairs.
        own = (block * logs).sum()
        crosses = (block.sum(axis=0) * logs.sum(axis=0)).sum() - own
        kl += (own * (v - 1) - crosses) if v > 1 else 0.0
        best = block.argmax(axis=-1)  # (V, n)
        same += sum((best[i] == best[i + 1 :]).sum() for i in range(v - 1))
        assigned[start : start + block.shape[1]] = block.mean(axis=0).argmax(axis=-1)
    marginals /= n
    marginal, conditional = float(_entropy(marginals).mean()), float(conditional / (v * n))
    counts = np.bincount(assigned, minlength=c)
    hard = float(_entropy(counts / n))
    pairs = n * v * (v - 1)
    return ClassUsage(
        classes=c,
        used=int((counts > 0).sum()),
        marginal_entropy=marginal,
        conditional_entropy=conditional,
        information=max(marginal - conditional, 0.0),
        assigned_entropy=hard,
        bound=float(np.log(min(n, c))),
        effective=float(np.exp(hard)),
        confidence=float(confidence / (v * n)),
        kl=float(max(kl / pairs, 0.0)) if v > 1 else 0.0,
        agreement=float(same / (pairs / 2)) if v > 1 else 1.0,
        largest=float(counts.max() / n),
        balance=marginals.mean(axis=0),
        assigned=assigned,
    )


def check_probabilities(probabilities, name="probabilities", images=None):
    """Checked probabilities (V, N, C): finite, at least 0, each row with the sum 1.

    Raises:
        ValueError: anything else, or another number of images than `images`.
    """
    q = np.asarray(probabilities)
    if q.ndim != 3 or 0 in q.shape or q.dtype.kind not in "fiub":
        raise ValueError(
            f"`{name}` should be numbers (V, N, C), the classes of V views of N images: `diagnostics.assignments` "
            f"makes them. Received: {q.dtype} {q.shape}."
        )
    if images is not None and q.shape[1] != images:
        raise ValueError(f"`{name}` should belong to the same {images} images. Received: shape {q.shape}.")
    q = finite(q, name)
    for _, block in by_image(q):
        sums = block.sum(axis=-1)
        worst = np.abs(sums - 1).max()
        if worst > 1e-2 or block.min() < 0:
            raise ValueError(
                f"`{name}` should be at least 0, with a sum of 1 over the classes. Received: a minimum of "
                f"{block.min():.3g} and sums from {sums.min():.3g} to {sums.max():.3g}. Logits become probabilities "
                "by a softmax after division by the teacher's temperature."
            )
    return q


def _entropy(p):
    """Entropies (...) of probabilities (..., C)."""
    return -(p * np.log(np.maximum(p, TINY))).sum(axis=-1)


def by_image(q, dtype=np.float64):
    """(first image, block (V, n, C)) of (V, N, C), in order."""
    step = max(1, BLOCK // (q.shape[0] * q.shape[2]))
    for start in range(0, q.shape[1], step):
        yield start, q[:, start : start + step].astype(dtype)
