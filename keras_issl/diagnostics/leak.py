"""Augmentation leak: does the representation tell how an image was augmented, rather than which image it is?"""

import dataclasses

import numpy as np

from keras_issl.diagnostics.geometry import image_blocks, view_array
from keras_issl.diagnostics.spectrum import scaled

SIDE = 0.5  # within-image share of a direction's variance above which it says more of the view than of the image
NOISE = 0.9  # that share of the usual direction from which on all of them are noise, and none stands out
SURE = 2.0  # standard errors by which it exceeds that
DIRECTIONS = 256  # of most variance within images: all of a narrower representation
IMAGES = 80  # half of them to pick directions on, half to measure: of fewer, a nuisance is within chance


@dataclasses.dataclass(frozen=True)
class Leak:
    """The directions in which views of one image differ most, and how much of the representation they are.

    Attributes:
        within: (K,) share of the variance along each direction that lies within images; 1: a nuisance alone.
        shares: (K,) share of all variance along each direction.
        share: of all variance, what lies within images along nuisance directions: those with more than half of their
            variance within images, and clearly more than the usual direction.
        view_order: share of all variance that the number of the view explains, beyond chance; above 0 only where
            the views of all images are made in the same order (first the large crops, then the small ones).
        parameters: (P,) share of each augmentation parameter's variance that a linear map of the features
            predicts for images that it was not fitted on; or None.

    Example:

    >>> found = keras_issl.diagnostics.augmentation_leak(views, directions=3)  # each view is noise of its own
    >>> found.within.shape, found.parameters is None
    ((3,), True)
    """

    within: np.ndarray
    shares: np.ndarray
    share: float
    view_order: float
    parameters: np.ndarray | None


def augmentation_leak(views, *, parameters=None, directions=DIRECTIONS, seed=0):
    """How much of the features is a nuisance of the augmentation that all images share, linearly encoded.

    With z_iv = a_i + e_iv, a_i the mean over views of image i, an encoder that is merely noisy has e of many
    directions, or along those in which images differ (a digit that looks like another one). One that encodes the
    augmentation, a rotation say, has e along few directions that are the same for all images and tell images apart
    badly. So let S_w be the within-image covariance, mean over i of V/(V-1) mean over v of e eᵀ, S_t that of all
    features, unbiased in the same manner, and u the leading eigenvectors of S_w: along u the within-image share
    is uᵀS_w u / uᵀS_t u and the weight uᵀS_t u / tr S_t. Rotations, shifts and scalings of all features change nothing.
    The directions are picked on one half of the images, drawn, and measured on the other. A direction is a nuisance if
    its within-image share is above (1 + r) / 2 by two standard errors, r that of all features or the mean one of the
    directions, whichever is less: noise of about the same strength in all directions is none.

    Args:
        views: `Views`, or features (V, N, D).
        parameters: (V, N, P), what each view was made with (angle, zoom, ...), if known: then the share of their
            variance that a ridge regression on the features explains on held-out images is a second, direct measure.
        directions: K, eigenvectors of S_w to look at; fewer than D are found by subspace iteration.
        seed: of its start and of the halves of the images.

    Returns:
        `Leak`.

    Raises:
        ValueError: as `view_array`; parameters that do not fit or are not finite.

    Example:

    >>> rng = np.random.default_rng(0)
    >>> images, angle = rng.normal(size=(1, 64, 4)), rng.normal(size=(3, 64, 1))
    >>> leak = augmentation_leak(images + angle * np.array([5.0, 0, 0, 0]))  # the first dimension tells the angle
    >>> leak.share > 0.5
    True
    """
    array, _ = scaled(view_array(views))
    v, n, dim = array.shape
    order = np.random.default_rng(seed).permutation(n)
    picked, measured = (np.sort(half) for half in (order[: n // 2], order[n // 2 :])) if n > 3 else (order, order)
    within_all, means_all, middle = _moments(array, np.zeros((dim, 0)))[2:]
    total = within_all + max(means_all, 0.0)
    constant = total <= 1e-24 * (np.square(middle).sum() + total)  # equal features: the rounding of their mean

    axes = _leading(array[:, picked], min(directions, dim), seed)  # (D, K)
    inside, means, within, between, _ = _moments(array[:, measured], axes)
    outside, total = np.maximum(means, 0.0), 0.0 if constant else total
    everything = within + max(between, 0.0)
    if constant or everything <= 0:
        inside, outside, everything, within = np.zeros_like(inside), np.zeros_like(outside), 1.0, 0.0
    along = inside + outside
    shares_within = inside / np.where(along > 0, along, 1.0)
    rest = everything - along.sum()  # of the directions that were not looked at, taken to be alike
    others = np.clip((within - inside.sum()) / rest, 0.0, 1.0) if rest > 1e-9 * everything else 0.0
    mean_share = (shares_within.sum() + (dim - len(along)) * others) / dim
    usual = min(within / everything, mean_share)
    bound = SIDE + (1 - SIDE) * usual
    # Variance of image means over that within images, a ratio with n - 1 and n (V - 1) degrees of freedom.
    m = len(measured)
    chance = np.exp(-SURE * np.sqrt(2 / (m - 1) + 2 / (m * (v - 1))))
    nuisance = means + inside / v < ((1 - bound) / bound + 1 / v) * chance * inside
    nuisance &= usual < NOISE

    # A fixed effect of the view's number: its variance less what the mean over N images varies by chance.
    view_means = sum(block.sum(axis=1) for block in image_blocks(array)) / n  # (V, D)
    between_views = np.square(view_means - middle).sum() / (v - 1) - within_all / n
    return Leak(
        shares_within,
        along / everything,
        float(inside[nuisance].sum() / everything),
        float(max(between_views, 0.0) / total) if total else 0.0,
        None if parameters is None else _predicted(array, parameters, seed),
    )


def _leading(array, count, seed):
    """Leading eigenvectors (D, K) of the covariance within images of (V, N, D), the first of most variance."""
    dim = array.shape[2]
    size = min(dim, count + 8)  # some to spare: the last ones converge slowly
    basis = np.eye(dim)
    if size < dim:
        basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, size)))[0]  # (D, k)
        for _ in range(3):
            image = np.zeros((dim, size))
            for block in image_blocks(array):
                errors = (block - block.mean(axis=0)).reshape(-1, dim).astype(np.float32)  # (V n, D)
                image += errors.T @ (errors @ basis.astype(np.float32))
            basis = np.linalg.qr(image)[0]
    inner = np.zeros((size, size))
    for block in image_blocks(array):
        errors = (block - block.mean(axis=0)).reshape(-1, dim) @ basis  # (V n, k)
        inner += errors.T @ errors
    return basis @ np.linalg.eigh(inner)[1][:, ::-1][:, :count]


def _moments(array, axes):
    """Of (V, N, D): variances within images and of their true means, (K,) along axes (D, K) and in all; the mean (D,).

    Unbiased: from the variance of the means of V views that within images, over V, is taken.
    """
    v, n, dim = array.shape
    middle = sum(block.sum(axis=(0, 1)) for block in image_blocks(array)) / (v * n)  # (D,)
    inside, means, within, between = np.zeros(axes.shape[1]), np.zeros(axes.shape[1]), 0.0, 0.0
    for block in image_blocks(array):
        mean = block.mean(axis=0)  # (n, D)
        errors, mean = (block - mean).reshape(-1, dim), mean - middle
        inside += np.square(errors @ axes).sum(axis=0)
        means += np.square(mean @ axes).sum(axis=0)
        within, between = within + np.square(errors).sum(), between + np.square(mean).sum()
    inside, within = inside / (n * (v - 1)), within / (n * (v - 1))
    return inside, means / (n - 1) - inside / v, within, between / (n - 1) - within / v, middle


def _predicted(array, parameters, seed):
    """(P,) explained share of the variance of the parameters (V, N, P) on the half of the images not fitted on."""
    v, n, dim = array.shape
    wanted = np.asarray(parameters)
    if wanted.ndim != 3 or wanted.shape[:2] != (v, n) or wanted.dtype.kind not in "fiub":
        raise ValueError(
            f"`parameters` should be numbers (V, N, P) with V = {v} and N = {n}. Received: {wanted.dtype} "
            f"{wanted.shape}."
        )
    wanted = wanted.astype(np.float64)
    if not np.isfinite(wanted).all():
        raise ValueError("`parameters` should be finite. Received: NaN or infinity.")
    order = np.random.default_rng(seed).permutation(n)
    fitted, held_out = order[: (n + 1) // 2], order[(n + 1) // 2 :]
    x, y = (a[:, fitted].reshape(-1, a.shape[2]).astype(np.float64) for a in (array, wanted))
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    x, y = x - x_mean, y - y_mean
    # A strength of a thousandth of the mean eigenvalue for each row's worth: enough to be well posed for D > N.
    kernel = x @ x.T if len(x) < dim else x.T @ x
    kernel[np.diag_indices_from(kernel)] += 1e-3 * max(np.trace(kernel) / min(len(x), dim), 1e-300)
    weights = x.T @ np.linalg.solve(kernel, y) if len(x) < dim else np.linalg.solve(kernel, x.T @ y)  # (D, P)
    x, y = (a[:, held_out].reshape(-1, a.shape[2]).astype(np.float64) for a in (array, wanted))
    error = np.square(y - y_mean - (x - x_mean) @ weights).sum(axis=0)
    variance = np.square(y - y.mean(axis=0)).sum(axis=0)
    return np.where(variance > 0, np.clip(1 - error / np.where(variance > 0, variance, 1.0), 0.0, 1.0), 0.0)
