"""Learned equivalence classes: which images share one, which are confused, and what coarser views merge."""

import dataclasses

import numpy as np

from keras_issl.diagnostics.teacher import by_image, check_probabilities

LEAST_IMAGES = 2  # of a class in a pair or in the purity: one image says little of its class
DRAWS = 100  # random groups that the chance of a purity is the mean over


@dataclasses.dataclass(frozen=True)
class EquivalenceClass:
    """The images that share a learned class M̂.

    Attributes:
        number: of the class, from 0 to C - 1.
        images: (n,) indices of the images, the most confident first.
        confidence: (n,) mean probability of the class over the views of each.
        share: n / N.
        labels: how often each label occurs, a dict, the most frequent first, without those below 0; or None.

    Example:

    >>> q = np.array([[0.2, 0.8], [0.1, 0.9], [0.7, 0.3]])[None]  # (V, N, C)
    >>> largest = equivalence_classes(q, labels=[5, 5, 6]).classes[0]
    >>> largest.number, largest.images.tolist(), largest.labels
    (1, [1, 0], {5: 2})
    """

    number: int
    images: np.ndarray
    confidence: np.ndarray
    share: float
    labels: dict | None


@dataclasses.dataclass(frozen=True)
class EquivalenceClasses:
    """What `equivalence_classes` found.

    Attributes:
        classes: the used classes, the largest first.
        confused: (a, b, share), a < b: the pairs of classes that single views tell apart worst.
        merged: (a, b, share), a < b: the pairs that coarser views bring together; empty without `coarser`.
        purity: share of the images whose label is the most frequent one of their class, among labelled images in
            classes with at least two of them: an image on its own always has it. None without such classes.
        purity_chance: the purity that random groups of labelled images, of the same sizes, have on average; or None.

    Example:

    >>> q = np.eye(2)[[0, 0, 0, 1, 1, 1]][None]  # (V, N, C)
    >>> found = equivalence_classes(q, labels=[3, 3, 3, 3, 4, 4])
    >>> round(found.purity, 3), 0.66 < found.purity_chance < 0.84
    (0.833, True)
    """

    classes: tuple
    confused: tuple
    merged: tuple
    purity: float | None
    purity_chance: float | None


def equivalence_classes(probabilities, *, labels=None, coarser=None, top=12):
    """Which images share a learned class M̂, which classes are confused, and what coarser views merge.

    An image belongs to the most probable class of the mean over its views. A single view may fall into another one:
    let P(c|a) be the share of the views of the images of a whose most probable class is c. Two classes are
    confused by 1 - ½ Σ_c |P(c|a) - P(c|b)|: 0 where one view tells them apart, 1 where none does. Coarser views merge
    a and b by how much more they are confused under those: 0, nothing changes; 1, apart before and indistinguishable
    now.

    Args:
        probabilities: (V, N, C), as from `assignments`.
        labels: (N,) integers, below 0 for none.
        coarser: (W, N, C), of the same images under a coarser augmentation, such as `augmentation.coarser(2)`.
        top: pairs to list at most. Only classes of at least two images are paired.

    Returns:
        `EquivalenceClasses`.

    Raises:
        ValueError: no probabilities, or labels or coarser ones that do not fit.

    Source: Dubois et al. 2022, §2: equivalence classes of an augmentation and coarser ones.

    Example:

    >>> q = np.eye(2)[[0, 0, 1]]  # (N, C)
    >>> [found.images.tolist() for found in equivalence_classes(np.stack([q, q])).classes]
    [[0, 1], [2]]
    """
    q = check_probabilities(probabilities)
    n = q.shape[1]
    if labels is not None:
        labels = np.asarray(labels)
        if labels.shape != (n,) or labels.dtype.kind not in "iu":
            raise ValueError(
                f"`labels` should be one integer an image, shape ({n},). Received: {labels.dtype} {labels.shape}."
            )
    mean = np.concatenate([block.mean(axis=0) for _, block in by_image(q, np.float32)])  # (N, C)
    assigned, confidence = mean.argmax(axis=1), mean.max(axis=1)
    order = np.lexsort((np.arange(n), -confidence, assigned))  # class by class, the most confident first
    numbers, starts = np.unique(assigned[order], return_index=True)
    groups = np.split(order, starts[1:])
    found = []
    for number, images in zip(numbers, groups, strict=True):
        counts = None
        if labels is not None:
            values, times = np.unique(labels[images][labels[images] >= 0], return_counts=True)
            ranked = np.argsort(-times, kind="stable")
            counts = {int(values[i]): int(times[i]) for i in ranked}
        found.append(EquivalenceClass(int(number), images, confidence[images], len(images) / n, counts))
    found.sort(key=lambda one: (-len(one.images), one.number))

    paired = np.array([one.number for one in found if len(one.images) >= LEAST_IMAGES], np.int64)
    paired.sort()
    overlap = _overlap(assigned, q.argmax(axis=-1), paired)
    merged = ()
    if coarser is not None:
        coarser = check_probabilities(coarser, "coarser", n)
        if coarser.shape[2] != q.shape[2]:
            raise ValueError(f"`coarser` should have {q.shape[2]} classes. Received: shape {coarser.shape}.")
        merged = _pairs(paired, _overlap(assigned, coarser.argmax(axis=-1), paired) - overlap, top)
    purity = (None, None) if labels is None else _purity(assigned, labels)
    return EquivalenceClasses(tuple(found), _pairs(paired, overlap, top), merged, *purity)


def _purity(assigned, labels):
    """Purity of the classes (N,) in terms of labels (N,), and its mean over random groups of the same sizes."""
    known = labels >= 0
    groups, sizes = np.unique(assigned[known], return_counts=True)
    counted = known & np.isin(assigned, groups[sizes >= LEAST_IMAGES])
    n = int(counted.sum())
    if n == 0:
        return None, None
    own = np.unique(assigned[counted], return_inverse=True)[1]  # (n,)
    kinds, numbers = np.unique(labels[known], return_inverse=True)  # of all, from which the random groups are drawn
    rng = np.random.default_rng(0)

    def right(numbers):
        """How many images have the most frequent number of their group."""
        codes, counts = np.unique(own * len(kinds) + numbers, return_counts=True)  # (group, number) pairs, by group
        return np.maximum.reduceat(counts, np.unique(codes // len(kinds), return_index=True)[1]).sum()

    chance = np.mean([right(rng.permutation(numbers)[:n]) for _ in range(DRAWS)])
    return float(right(numbers[counted[known]]) / n), float(chance / n)


def _overlap(assigned, best, paired):
    """(K, K) 1 - total variation between the classes of the views of images of two classes.

    Args:
        assigned: (N,) class of each image.
        best: (V, N) class of each view.
        paired: (K,) the classes to compare, sorted.
    """
    k = len(paired)
    overlap = np.zeros((k, k))
    keep = np.isin(assigned, paired)
    own = np.searchsorted(paired, assigned[keep])  # (n,)
    into = best[:, keep]  # (V, n)
    totals = np.bincount(own, minlength=k) * len(best)  # (K,) views
    width = int(into.max(initial=0)) + 1
    codes, counts = np.unique(into * k + own, return_counts=True)
    target, source = codes // k, codes % k
    shares = counts / totals[source]
    for start, end in _runs(target, width):
        here = source[start:end]  # the classes with views in this one
        overlap[np.ix_(here, here)] += np.minimum.outer(shares[start:end], shares[start:end])
    return overlap


def _runs(values, width):
    """(start, end) of the runs of equal numbers below `width` in a sorted array."""
    ends = np.searchsorted(values, np.arange(width), side="right")
    starts = np.concatenate([[0], ends[:-1]])
    return [(a, b) for a, b in zip(starts, ends, strict=True) if b > a]


def _pairs(numbers, shares, top):
    """The `top` pairs a < b of the greatest shares (K, K) above 0, as (a, b, share)."""
    one, two = np.triu_indices(len(numbers), 1)
    values = shares[one, two]
    order = np.argsort(-values, kind="stable")[:top]
    return tuple(
        (int(numbers[one[i]]), int(numbers[two[i]]), float(min(values[i], 1.0))) for i in order if values[i] > 1e-9
    )
