"""How many directions a representation uses: its spectrum, its effective rank, and dimensions that carry nothing."""

import dataclasses

import numpy as np

from keras_issl.diagnostics.geometry import BLOCK, ROWS, all_rows, on_sphere, one_view, view_array

DEAD = 1e-6  # of the mean variance of a dimension: a standard deviation a thousandth of the usual one
DUPLICATE = 0.999  # |correlation|; what is left, 0.2 % of the variance, is noise to any probe
SUPPORT = 8  # images, about, that a dimension varies on before its correlations mean anything: two that fire for the
# same lone image correlate at 1
AGREE = (3.0, 0.5)  # correlation of two halves of the views above which they see the images: 3 / √N; a half is enough


@dataclasses.dataclass(frozen=True)
class Dimensions:
    """Dimensions that carry nothing of their own.

    Attributes:
        dead: (n,) numbers of the dimensions that do not vary.
        duplicated: (n,) numbers of those that an earlier one gives up to sign, scale and shift.
        share: of all dimensions that are either.

    Example:

    >>> found = keras_issl.diagnostics.dimensions(np.array([[1.0, -2, 7], [3, -6, 7]]))  # the second is twice the first
    >>> found.dead, found.duplicated, round(found.share, 3)
    (array([2]), array([1]), 0.667)
    """

    dead: np.ndarray
    duplicated: np.ndarray
    share: float


def scaled(array):
    """The array times the power of two that brings its largest absolute value to [1/2, 1), and the exponent taken out.

    Squares of it neither overflow nor vanish, and no digit changes.
    """
    exponent = int(np.frexp(max(abs(float(array.max())), abs(float(array.min()))))[1])
    return np.ldexp(array, -exponent), exponent


def singular_values(features, *, center=True):
    """Singular values, descending, (min(N, D),), of features (N, D); all views of (V, N, D) are rows.

    They come from the smaller of the two Gram matrices, built block by block in double precision: single precision
    would bury the small ones, of which there are many, in noise.

    Args:
        features: `Features`, `Views`, (N, D) or (V, N, D).
        center: whether the mean of the rows is subtracted first.

    Returns:
        float64 (min(N, D),); 0 where they are rounding.

    Raises:
        ValueError: another rank, NaN or infinity.

    Example:

    >>> singular_values(np.diag([3.0, 4.0]), center=False)
    array([4., 3.])
    """
    rows, exponent = scaled(all_rows(features))
    count, dim = rows.shape
    size = min(count, dim)
    by_rows, by_columns = max(1, BLOCK // dim), max(1, BLOCK // count)
    starts = range(0, count, by_rows)
    mean = sum(rows[a : a + by_rows].sum(axis=0, dtype=np.float64) for a in starts) / count  # (D,)
    middle = mean if center else np.zeros(dim)
    gram = np.zeros((size, size))
    if dim <= count:
        for a in starts:
            block = rows[a : a + by_rows] - middle  # (n, D)
            gram += block.T @ block
    else:
        for a in range(0, dim, by_columns):
            block = rows[:, a : a + by_columns] - middle[a : a + by_columns]  # (N, d)
            gram += block @ block.T
    # The eigenvalues of equal rows are the rounding of their mean; no float32 feature varies by so little.
    floor = 1e-24 * (np.trace(gram) + count * np.square(mean).sum())
    values = np.linalg.eigvalsh(gram)[::-1]
    values[values <= max(floor, max(count, dim) * np.finfo(float).eps * values[0])] = 0.0
    return np.ldexp(np.sqrt(values), exponent)


def image_variances(views):
    """Variance between images along each direction, descending, (min(N, D),), without the noise of the views.

    The mean over half of the views is x_i + noise, that over the others x_i + other noise: their cross-covariance has
    the covariance of x alone as its expectation, which is that of the image means less S_w / V, S_w the covariance
    within images. Along each principal direction u of the first half the variance is uᵀCu, C the cross-covariance,
    and 0 where the halves correlate by no more than chance, 3 / √N or at most a half. Where all views of an image
    are equal these are the eigenvalues of the covariance.

    Args:
        views: `Views`, or features (V, N, D).

    Returns:
        float64 (min(N, D),).

    Raises:
        ValueError: fewer than two views or images, NaN or infinity.

    Example:

    >>> image_variances(np.array([[[1.0, 0], [-1, 0]]] * 2))  # two equal views of two images
    array([2., 0.])
    """
    array, exponent = scaled(view_array(views))
    v, n, dim = array.shape
    parts = array[: v // 2], array[v // 2 :]
    size = min(n, dim)
    chosen, crossed, other = np.zeros((3, size, size))
    middle = [part.mean(axis=(0, 1), dtype=np.float64) for part in parts]  # (D,) each
    square = sum(n * np.square(mean).sum() for mean in middle)
    by_rows, by_columns = max(1, BLOCK // (v * dim)), max(1, BLOCK // (v * n))
    step, count = (by_rows, n) if dim <= n else (by_columns, dim)
    for start in range(0, count, step):
        at, every = slice(start, start + step), slice(None)
        images, columns = (at, every) if dim <= n else (every, at)
        x, y = (
            part[:, images, columns].mean(axis=0, dtype=np.float64) - mean[columns]
            for part, mean in zip(parts, middle, strict=True)
        )
        if dim > n:  # (N, N): λ_k = p_kᵀ Y Xᵀ p_k, p_k the left singular vectors of X
            x, y = x.T, y.T
        chosen, crossed = chosen + x.T @ x, crossed + x.T @ y
        if dim <= n:
            other += y.T @ y
    values, directions = np.linalg.eigh(chosen)
    floor = max(1e-24 * (np.trace(chosen) + square), max(n, dim) * np.finfo(float).eps * max(values[-1], 0.0))
    shared = np.einsum("ik,ij,jk->k", directions, crossed, directions, optimize=True)
    if dim <= n:
        spread = np.einsum("ik,ij,jk->k", directions, other, directions, optimize=True)
    else:  # |Y q_k|², q_k = Xᵀ p_k / s_k
        spread = np.square(crossed.T @ directions).sum(axis=0) / np.where(values > floor, values, 1.0)
    chance = min(AGREE[0] / np.sqrt(n), AGREE[1])
    seen = (values > floor) & (shared > chance * np.sqrt(np.maximum(values, 0.0) * np.maximum(spread, 0.0)))
    return np.ldexp(np.sort(np.where(seen, shared, 0.0))[::-1] / (n - 1), 2 * exponent)


def effective_rank(features, *, center=True):
    """RankMe: exp of the entropy of the singular values divided by their sum; between 1 and min(N, D).

    exp(-Σ p_k log p_k), p_k = σ_k / Σ σ: r for r equal singular values, 0 for constant features.

    Args:
        features: `Features`, `Views`, (N, D) or (V, N, D), whose views are all rows.
        center: whether the mean is subtracted first, so that what all images share is not a direction. False as
            published.

    Returns:
        The rank, a float.

    Raises:
        ValueError: another rank of the array, NaN or infinity.

    Source: Garrido et al. 2023, RankMe, equation 2; Roy and Vetterli 2007.

    Example:

    >>> round(effective_rank(np.eye(8), center=False), 6)
    8.0
    """
    return rank_of(singular_values(features, center=center))


def rank_of(singular):
    """exp of the entropy of singular values (K,) divided by their sum; 0 where all are 0."""
    total = singular.sum()
    if total == 0:
        return 0.0
    p = singular[singular > 0] / total
    return float(np.exp(-(p * np.log(p)).sum()))


def participation_ratio(features):
    """(Σ λ)² / Σ λ² of the covariance's eigenvalues: a rank that counts only directions of much variance.

    r for r equal eigenvalues, 0 for constant features.

    Args:
        features: `Features`, `Views`, (N, D) or (V, N, D), whose views are all rows.

    Returns:
        The ratio, a float of at most min(N, D).

    Raises:
        ValueError: another rank of the array, NaN or infinity.

    Example:

    >>> corners = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    >>> round(participation_ratio(corners), 6)
    2.0
    """
    return participation_of(singular_values(features))


def participation_of(singular):
    """The participation ratio of singular values (K,); 0 where all are 0."""
    values = np.square(singular)
    return float(values.sum() ** 2 / np.square(values).sum()) if values.any() else 0.0


def dimensions(features, *, rows=ROWS, seed=0):
    """Dimensions that do not vary, and those that repeat another one.

    Dead: a variance of at most 1e-6 of the mean variance. Duplicated: |correlation| with an earlier dimension of
    at least 0.999, over at most `rows` images, one view of each, where both vary on about eight images or more (half of
    them, if there are fewer than sixteen). Neither changes under a scaling of all features.

    Args:
        features: `Views`, `Features`, (N, D) or (V, N, D).
        rows: images at most for the correlations.
        seed: of their draw.

    Returns:
        `Dimensions`.

    Raises:
        ValueError: another rank of the array, NaN or infinity.

    Example:

    >>> x = np.random.default_rng(0).normal(size=(64, 3))
    >>> dimensions(np.column_stack([x, -2 * x[:, 1], np.ones(64)])).duplicated
    array([3])
    """
    array = np.asarray(getattr(features, "array", features))
    every, _ = scaled(all_rows(array))
    dim = every.shape[1]
    step = max(1, BLOCK // dim)
    starts = range(0, len(every), step)
    mean = sum(every[a : a + step].sum(axis=0, dtype=np.float64) for a in starts) / len(every)
    variance = sum(np.square(every[a : a + step] - mean).sum(axis=0) for a in starts) / len(every)  # (D,)
    # Equal values of a large mean leave its rounding behind.
    alive = variance > np.maximum(DEAD * variance.mean(), 1e-24 * np.square(mean))
    chosen = one_view(every.reshape(array.shape), rows, seed)  # (n, D)
    kept = np.flatnonzero(alive)
    unit = (chosen[:, kept] - mean[kept]).astype(np.float32)  # (n, d)
    # (Σ |x|)² / Σ x² of deviations from the median: k for k images that deviate alike.
    away = np.abs(unit - np.median(unit, axis=0)) if len(kept) else unit
    squares = np.square(away).sum(axis=0)
    wide = np.square(away.sum(axis=0)) >= min(SUPPORT, len(chosen) / 2) * squares
    unit -= unit.mean(axis=0)
    unit[:, ~wide | (squares == 0)] = 0  # correlates with nothing
    unit = np.ascontiguousarray(on_sphere(unit.T))  # (d, n)
    repeated = np.zeros(len(kept), bool)
    step = max(1, BLOCK // max(1, len(kept)))
    for a in range(0, len(kept), step):
        part = unit[a : a + step]
        earlier = np.abs(part @ unit[: a + len(part)].T) >= DUPLICATE  # (s, a + s)
        repeated[a : a + step] = (earlier & (np.arange(a + len(part)) < np.arange(a, a + len(part))[:, None])).any(1)
    dead, duplicated = np.flatnonzero(~alive), kept[repeated]
    return Dimensions(dead, duplicated, (len(dead) + len(duplicated)) / dim)
