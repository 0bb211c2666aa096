"""What a representation's geometry is like: closed-form measures of features of augmented views, without labels."""

import dataclasses
import math

import numpy as np

BLOCK = 1 << 22  # values of a block: 32 MiB in double precision
ROWS = 4096  # rows that pairs of rows or of dimensions are taken over


@dataclasses.dataclass(frozen=True)
class Invariance:
    """How far apart the views of one image are, and those of different images.

    Attributes:
        within: mean distance of two different views of one image.
        between: mean distance of views of two different images.
        ratio: within / between. 0: perfectly invariant; 1: the views of an image are no closer than any two; NaN where
            all features are equal.
        within_samples: (S,) distances of single pairs of views of one image, for a histogram.
        between_samples: (S,) the same for different images.

    Example:

    >>> found = keras_issl.diagnostics.invariance(views, samples=10)
    >>> found.ratio == found.within / found.between, found.within_samples.shape
    (True, (10,))
    """

    within: float
    between: float
    ratio: float
    within_samples: np.ndarray
    between_samples: np.ndarray


@dataclasses.dataclass(frozen=True)
class EtfDistance:
    """How far class means are from a simplex equiangular tight frame, in three numbers that are all 0 there.

    Attributes:
        angle: mean over pairs of |cos + 1/(K - 1)| of the centred means.
        equiangularity: standard deviation of those cosines.
        norms: standard deviation of the centred means' norms over their mean.
        classes: K.

    Example:

    >>> found = keras_issl.diagnostics.etf_distance(views, np.arange(64) % 5)
    >>> found.classes, found.angle > 0
    (5, True)
    """

    angle: float
    equiangularity: float
    norms: float
    classes: int


def view_array(views):
    """Checked features (V, N, D) of `Views` or of an array: two views, two images, finite.

    Raises:
        ValueError: another rank, one view, one image, no dimension, NaN or infinity.
    """
    array = np.asarray(getattr(views, "array", views))
    if array.ndim != 3 or array.shape[0] < 2 or array.shape[1] < 2 or array.shape[2] < 1:
        raise ValueError(
            "`views` should hold features (V, N, D) of at least two views of at least two images: "
            f"`features.extract_views` makes them. Received: shape {array.shape}."
        )
    return finite(array, "views")


def image_blocks(array):
    """Blocks of images of (V, N, D), in order, in double precision: (V, n, D)."""
    step = max(1, BLOCK // (array.shape[0] * array.shape[2]))
    for start in range(0, array.shape[1], step):
        yield array[:, start : start + step].astype(np.float64)


def on_sphere(rows):
    """Rows (..., D) divided by their Euclidean norm; one of norm 0 stays 0."""
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1.0)


def invariance(views, *, distance="squared", samples=4096, seed=0):
    """Distances of views of one image against those of different images; their ratio is 0 for an invariant encoder.

    With z the features and d their distance, within = mean over images and pairs of views v ≠ w of d(z_iv, z_iw) and
    between = mean over images i ≠ j and any views of d(z_iv, z_jw), both over all pairs: of squared distances the means
    are closed forms of first and second moments, so none is sampled but for the histograms. The ratio does not
    change under rotations, shifts (not for the cosine) and scalings of all features.

    Args:
        views: `Views`, or features (V, N, D).
        distance: `"squared"` Euclidean, or `"cosine"`: 1 - cos.
        samples: pairs of each kind for the histograms.
        seed: of those.

    Returns:
        `Invariance`.

    Raises:
        ValueError: fewer than two views or images, NaN or infinity, another distance.

    Source: Dubois et al. 2022: the best encoders have φ(x) = φ(x⁺) for equivalent x, x⁺.

    Example:

    >>> images = np.eye(4)  # (N, D)
    >>> invariance(np.stack([images, images])).ratio
    0.0
    """
    if distance not in ("squared", "cosine"):
        raise ValueError(f'`distance` should be "squared" or "cosine". Received: {distance!r}.')
    array = view_array(views)
    v, n, _ = array.shape
    cosine = distance == "cosine"
    prepare = on_sphere if cosine else np.asarray
    scale = 0.5 if cosine else 1.0  # on the sphere 1 - cos is half the squared distance
    middle = sum(prepare(block).sum(axis=(0, 1)) for block in image_blocks(array)) / (v * n)  # (D,)
    spread = means = 0.0
    for block in image_blocks(array):
        block = prepare(block) - middle  # (V, n, D): the moments below lose no digits to a large common mean
        mean = block.mean(axis=0)  # (n, D)
        spread += np.square(block - mean).sum()
        means += np.square(mean).sum()
    spread /= v * n  # mean squared distance from the mean of the image, and of that from the mean of all
    means /= n
    within, between = 2 * spread * v / (v - 1), 2 * (spread + means * n / (n - 1))

    rng = np.random.default_rng(seed)
    first, image = rng.integers(v, size=samples), rng.integers(n, size=samples)
    other_view, other_image = (first + rng.integers(1, v, size=samples)) % v, rng.integers(v, size=samples)
    other = (image + rng.integers(1, n, size=samples)) % n
    inside, outside = np.empty(samples), np.empty(samples)
    step = max(1, BLOCK // array.shape[2])
    for start in range(0, samples, step):
        part = slice(start, start + step)
        one = prepare(array[first[part], image[part]].astype(np.float64))  # (s, D)
        same = prepare(array[other_view[part], image[part]].astype(np.float64))
        different = prepare(array[other_image[part], other[part]].astype(np.float64))
        inside[part] = scale * np.square(one - same).sum(axis=1)
        outside[part] = scale * np.square(one - different).sum(axis=1)
    ratio = float(within / between) if between > 0 else math.nan
    return Invariance(scale * float(within), scale * float(between), ratio, inside, outside)


def alignment(views, *, alpha=2):
    """Mean distance, to the power alpha, of two views of an image on the unit sphere: E ‖f(x) - f(x⁺)‖^α; at best 0.

    Over all pairs of views. Rows are divided by their norm; one of norm 0 stays 0.

    Args:
        views: `Views`, or features (V, N, D).
        alpha: the power, above 0.

    Returns:
        The mean, between 0 and 2^α.

    Raises:
        ValueError: fewer than two views or images, NaN or infinity, a power that is not above 0.

    Source: Wang and Isola 2020, §4.1.1.

    Example:

    >>> alignment(np.array([[[1.0, 0], [0, 1]], [[2, 0], [1, 0]]]))  # the squared distances are 0 and 2
    1.0
    """
    if not alpha > 0:
        raise ValueError(f"`alpha` should be above 0. Received: {alpha!r}.")
    array = view_array(views)
    v, n, _ = array.shape
    total = 0.0
    for block in image_blocks(array):
        block = on_sphere(block)
        for i in range(v - 1):
            squared = np.square(block[i + 1 :] - block[i]).sum(axis=-1)  # (V - i - 1, n)
            total += (squared ** (alpha / 2)).sum()
    return float(total / (n * v * (v - 1) / 2))


def uniformity(features, *, t=2, rows=ROWS, seed=0):
    """log E exp(-t ‖f(x) - f(y)‖²) over different images on the unit sphere; the lower, the more uniform; at most 0.

    Over all pairs of at most `rows` images, each shown by one of its views, drawn. `sphere_uniformity` is what the
    uniform distribution reaches.

    Args:
        features: `Views`, `Features`, (N, D) or (V, N, D).
        t: the sharpness, above 0.
        rows: images at most.
        seed: of the draw.

    Returns:
        The logarithm, between -4t and 0.

    Raises:
        ValueError: another rank, one image, NaN or infinity, a sharpness that is not above 0.

    Source: Wang and Isola 2020, §4.1.2.

    Example:

    >>> round(uniformity(np.eye(4)), 6)  # all squared distances are 2
    -4.0
    """
    if not t > 0:
        raise ValueError(f"`t` should be above 0. Received: {t!r}.")
    unit = on_sphere(one_view(features, rows, seed).astype(np.float64))  # (n, D)
    n = len(unit)
    if n < 2:
        raise ValueError("`features` should hold at least two images. Received: one.")
    squared = np.square(unit).sum(axis=1)  # (n,) 1, or 0 for a row of zeros
    total = 0.0
    step = max(1, BLOCK // n)
    for a in range(0, n, step):
        part = unit[a : a + step]
        distances = squared[a : a + step, None] + squared - 2 * part @ unit.T  # (s, n)
        powers = np.exp(-t * np.maximum(distances, 0.0))
        total += powers.sum() - np.trace(powers[:, a : a + step])
    return float(np.log(total / (n * (n - 1))))


def sphere_uniformity(dim, *, t=2):
    """`uniformity` of the uniform distribution on the unit sphere of `dim` dimensions: the least that can be reached.

    -2t + log ₀F₁(; dim/2; t²), the logarithm of the mean of exp(-2t + 2t cos): -2t for many dimensions.

    Args:
        dim: dimensions of the features, at least 1.
        t: as in `uniformity`.

    Returns:
        The logarithm, below 0.

    Raises:
        ValueError: `dim` is not an integer of at least 1, or `t` not above 0.

    Example:

    >>> round(sphere_uniformity(2048), 3)
    -3.996
    """
    if isinstance(dim, bool) or not isinstance(dim, int | np.integer) or dim < 1:
        raise ValueError(f"`dim` should be an integer, at least 1. Received: {dim!r}.")
    if not t > 0:
        raise ValueError(f"`t` should be above 0. Received: {t!r}.")
    term = total = 1.0
    k = 0
    while term > 1e-17 * total:
        term *= t * t / ((dim / 2 + k) * (k + 1))
        total, k = total + term, k + 1
    return float(-2 * t + math.log(total))


def etf_distance(features, classes=None):
    """Distance of the class means from a simplex equiangular tight frame, which is what neural collapse ends in.

    For K means centred at their mean, m_k: the mean over pairs of |cos(m_k, m_l) + 1/(K - 1)|, the spread of these
    cosines, and that of the norms ‖m_k‖ over their mean. All are 0 for one-hot classes and any rotation, scaling or
    shift of them. It takes D ≥ K - 1 dimensions.

    Args:
        features: `Views`, `Features`, (N, D) or (V, N, D).
        classes: (N,) integers, such as labels or the classes of DISSL; below 0 for none. By default each image
            is a class of its own, so that its views are what is averaged.

    Returns:
        `EtfDistance`.

    Raises:
        ValueError: another rank, NaN or infinity, fewer than two classes, or classes that do not fit.

    Source: Papyan, Han and Donoho 2020, (NC2) and its figures 2 and 3.

    Example:

    >>> etf_distance(np.eye(5)).angle < 1e-12
    True
    """
    rows = np.asarray(getattr(features, "array", features))
    views = rows[None] if rows.ndim == 2 else rows  # (V, N, D)
    if views.ndim != 3:
        raise ValueError(f"`features` should have shape (N, D) or (V, N, D). Received: shape {rows.shape}.")
    views = finite(views, "features")
    count = views.shape[1]
    numbers = np.arange(count) if classes is None else np.asarray(classes)
    if numbers.shape != (count,) or numbers.dtype.kind not in "iu":
        raise ValueError(
            f"`classes` should be one integer an image, shape ({count},). Received: {numbers.dtype} {numbers.shape}."
        )
    known, numbers = np.unique(np.where(numbers < 0, -1, numbers), return_inverse=True)
    missing = int(known[0] == -1)  # images of no class are the first
    k = len(known) - missing
    if k < 2:
        raise ValueError(f"`classes` should hold at least two classes. Received: {k}.")
    sums, start = np.zeros((k + missing, views.shape[2])), 0
    for block in image_blocks(views):
        np.add.at(sums, numbers[start : start + block.shape[1]], block.mean(axis=0))
        start += block.shape[1]
    means = (sums / np.bincount(numbers)[:, None])[missing:]  # (K, D)
    means = means - means.mean(axis=0)
    norms = np.linalg.norm(means, axis=1)
    unit = on_sphere(means)
    cosines = (unit @ unit.T)[~np.eye(k, dtype=bool)]  # (K (K - 1),)
    spread = float(norms.std() / norms.mean()) if norms.any() else math.nan
    return EtfDistance(float(np.abs(cosines + 1 / (k - 1)).mean()), float(cosines.std()), spread, k)


def finite(array, name):
    """The array (..., D) as float32 or float64; a `ValueError` that names the argument where it is not finite."""
    if array.dtype.kind not in "fiub":
        raise ValueError(f"`{name}` should hold numbers. Received: {array.dtype}.")
    array = array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)
    flat = array.reshape(-1, array.shape[-1])
    step = max(1, BLOCK // max(1, flat.shape[1]))
    bad = sum(int((~np.isfinite(flat[a : a + step]).all(axis=1)).sum()) for a in range(0, len(flat), step))
    if bad:
        raise ValueError(f"`{name}` should be finite. Received: NaN or infinity in {bad} of {len(flat)} rows.")
    return array


def all_rows(features):
    """Finite rows (N, D), all views of (V, N, D) among them."""
    array = np.asarray(getattr(features, "array", features))
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(f"`features` should have shape (N, D) or (V, N, D). Received: shape {array.shape}.")
    return finite(array, "features").reshape(-1, array.shape[-1])


def one_view(features, rows, seed):
    """At most `rows` images, drawn, and of each one view, drawn: (n, D)."""
    array = np.asarray(getattr(features, "array", features))
    array = all_rows(array).reshape(-1, *array.shape[-2:])  # (V, N, D)
    v, n, _ = array.shape
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(n, min(rows, n), replace=False))
    return array[rng.integers(v, size=len(chosen)), chosen]
