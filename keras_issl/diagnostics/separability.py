"""Linear separability of many binary tasks over the same points, decided exactly and all at once."""

import dataclasses

import numpy as np

from keras_issl.probes import threads

EDGE = 1e-8  # a relative margin that counts as none
_DESCENT_STEPS = 400
_NEWTON_STEPS = 200
_CHECK_EVERY = 10


@dataclasses.dataclass(frozen=True)
class Separators:
    """Affine functions, one a task.

    Attributes:
        separable: bool (T,): whether some affine function gives every point of the task its sign.
        weights: float64 (T, D).
        intercepts: float64 (T,).
        rank: the affine rank of the points: the dimension of the smallest flat that holds them.
        regularized: the regularised fits, also `Separators`, where a strength was given; or None.

    Example:

    >>> found = keras_issl.diagnostics.separability.separable([[0.0], [1.0]], [[1, -1]])
    >>> found.separable, found.rank
    (array([ True]), 1)
    """

    separable: np.ndarray
    weights: np.ndarray
    intercepts: np.ndarray
    rank: int
    regularized: "Separators | None" = None

    def decision_function(self, x):
        """Values (T, N) of the T functions at points (N, D)."""
        return self.weights @ np.asarray(x, np.float64).T + self.intercepts[:, None]


def separable(x, signs, *, strength=None):
    """Decides for T binary tasks whether an affine function separates their points.

    Separability does not change under invertible affine maps, so the points are whitened first: Z (N, R + 1), a
    constant column and the left singular vectors of the centred points. The squared hinge loss
    `f(v) = sum_i max(0, 1 - s_i z_i v)^2 / 2` then decides. At its minimum the residuals a = max(0, 1 - s_i z_i v) are
    non-negative and `sum_i a_i s_i z_i = 0`: if they are not all zero, they are Gordan's certificate that nothing
    separates, and their norm is at least 1. So the minimum is either 0 or at least 1/2: there is a gap even where the
    margin is small. Accelerated gradient steps for all tasks at once settle most of them, Newton steps the others.

    A separation by less than 1e-8 in those coordinates counts as none, and directions in which the points vary by less
    than the rounding of their type count as constant.

    Args:
        x: (N, D) points.
        signs: (T, N) of -1 and 1: a row a task.
        strength: None, or the C > 0 of a regularised fit: `sum_i hinge_i^2 / 2 + |w|^2 / (2 C)` over centred points
            whose mean squared norm is 1. Its function (a wide margin, which is what carries over to unseen points) is
            returned, too, where it separates its points; and always as `regularized`.

    Returns:
        `Separators`. Without a `strength`, the function of a task that is not separable has the least squared hinge
        loss.

    Raises:
        ValueError: points or signs of another shape, NaN or infinity, signs that are not -1 or 1.

    Example:

    ```python
    line = np.array([[0.0], [1.0], [2.0]])
    keras_issl.diagnostics.separability.separable(line, [[1, 1, -1], [1, -1, 1]]).separable  # [True, False]
    ```
    """
    x, signs = _checked(x, signs, strength)
    with threads.enough_for(x.size * len(signs)):
        return _separable(x, signs, strength)


def _separable(x, signs, strength):
    mean, scale, left, values, right = factor(x)
    z = np.concatenate([np.full((len(x), 1), len(x) ** -0.5), left], axis=1)  # (N, R + 1), orthonormal columns
    start = z.T @ signs.T  # (R + 1, T): least squares; it interpolates where R = N - 1
    soft, column = start, len(x) ** -0.5

    def functions(coefficients):
        weights = (coefficients[1:] / values[:, None]).T @ right / scale  # (T, D)
        return weights, coefficients[0] * column - weights @ mean

    if strength is not None and len(values):
        penalty = np.append(0.0, (values @ values / len(x)) / (strength * values**2))  # (R + 1,)
        soft = _descend(z, signs, start / (1 + penalty[:, None]), penalty)
    coefficients, found = _decide(z, signs, soft)
    if strength is None:
        return Separators(found, *functions(coefficients), len(values))
    solved = (signs.T * (z @ soft) > 0).all(axis=0)  # (T,)
    fits = Separators(solved, *functions(soft), len(values))
    return Separators(found, *functions(np.where(solved, soft, coefficients)), len(values), fits)


def factor(x):
    """The centred points' thin singular value decomposition, without directions that are only rounding.

    Args:
        x: (N, D).

    Returns:
        mean (D,); scale, a number by which the centred points were divided so that nothing over- or underflows;
        left (N, R); values (R,), descending; right (R, D). R is the affine rank of the points.
    """
    epsilon = np.finfo(x.dtype).eps if x.dtype.kind == "f" else np.finfo(np.float64).eps
    x = np.asarray(x, np.float64)
    mean = x.mean(axis=0)
    centred = x - mean
    scale = np.abs(centred).max() or 1.0
    # Rounding each entry by up to epsilon/2 of itself makes a random matrix of about a third of this norm.
    noise = epsilon * np.sqrt(np.mean((x / scale) ** 2)) * (np.sqrt(len(x)) + np.sqrt(x.shape[1]))
    left, values, right = np.linalg.svd(centred / scale, full_matrices=False)
    kept = values > noise
    kept[len(x) - 1 :] = False  # centred: at most N - 1 directions
    return mean, scale, left[:, kept], values[kept], right[kept]


def _checked(x, signs, strength):
    x, signs = np.asarray(x), np.asarray(signs, np.float64)
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"`x` should have shape (N, D), with N and D at least 1. Received: shape {x.shape}.")
    if x.dtype not in (np.float32, np.float64):
        x = x.astype(np.float64)
    if not np.isfinite(x).all():
        raise ValueError("`x` should be finite. Received: NaN or infinity.")
    if signs.ndim != 2 or signs.shape[1] != len(x) or len(signs) == 0:
        raise ValueError(f"`signs` should have shape (T, {len(x)}), a row a task. Received: shape {signs.shape}.")
    if not (np.abs(signs) == 1).all():
        raise ValueError(f"`signs` should be -1 or 1. Received: {np.unique(signs)[:5].tolist()}.")
    if strength is not None and not strength > 0:
        raise ValueError(f"`strength` should be None or positive. Received: {strength!r}.")
    return x, signs


def _decide(z, signs, start):
    """Coefficients (R + 1, T), and which of the tasks (T,) they separate: all that can be."""
    coefficients = _descend(z, signs, start, np.zeros(z.shape[1]), decide=True)
    found, refuted = _verdict(z, signs, coefficients)
    for task in np.flatnonzero(~found & ~refuted):
        coefficients[:, task], found[task] = _newton(signs[task][:, None] * z, coefficients[:, task])
    return coefficients, found


def _verdict(z, signs, coefficients):
    """Which tasks (T,) the coefficients (R + 1, T) separate, and of which they prove that nothing does.

    If a unit v has s_i z_i v >= m for all i, then for any a >= 0 the norm of sum_i a_i s_i z_i is at least m sum_i a_i:
    the residuals bound every margin from above.
    """
    margins = signs.T * (z @ coefficients)  # (N, T)
    residuals = np.maximum(0, 1 - margins)  # (N, T)
    bound = np.linalg.norm(z.T @ (signs.T * residuals), axis=0)  # (T,)
    found = margins.min(axis=0) > EDGE * np.linalg.norm(coefficients, axis=0)
    return found, ~found & (bound <= EDGE * residuals.sum(axis=0))


def _descend(z, signs, start, penalty, decide=False):
    """Minimises squared hinge + `sum_j penalty_j v_j^2 / 2` for all tasks, by Nesterov's steps with restarts.

    The columns of z are orthonormal, so the Hessian is at most diag(1 + penalty): the step needs no search.

    Args:
        z: (N, R + 1).
        signs: (T, N).
        start: (R + 1, T).
        penalty: (R + 1,).
        decide: whether a task is done as soon as it is known to be separable or not; else it is at its minimum.
    """
    result, running = start.copy(), np.arange(len(signs))
    point = ahead = start
    momentum = np.ones(len(signs))
    step = 1 / (1 + penalty[:, None])  # (R + 1, 1)
    for iteration in range(_DESCENT_STEPS):
        signed = signs[running].T  # (N, T')
        if iteration % _CHECK_EVERY == 0:
            if decide:
                done = np.logical_or(*_verdict(z, signs[running], point))
            else:
                slope = penalty[:, None] * point - z.T @ (signed * np.maximum(0, 1 - signed * (z @ point)))
                done = np.linalg.norm(step * slope, axis=0) <= 1e-5 * (1 + np.linalg.norm(point, axis=0))
            result[:, running] = point
            if done.all():
                return result
            running, point, ahead, momentum = running[~done], point[:, ~done], ahead[:, ~done], momentum[~done]
            signed = signed[:, ~done]
        slope = penalty[:, None] * ahead - z.T @ (signed * np.maximum(0, 1 - signed * (z @ ahead)))  # (R + 1, T')
        last, point = point, ahead - step * slope
        uphill = np.einsum("rt,rt->t", slope, point - last) > 0
        momentum = np.where(uphill, 1.0, momentum)
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = point + np.where(uphill, 0.0, (momentum - 1) / following) * (point - last)
        momentum = following
    result[:, running] = point
    return result


def _newton(rows, v):
    """Minimises sum_i max(0, 1 - rows_i v)^2 / 2 of one task: (v, whether it separates).

    A step solves the least-squares problem of the rows whose residual is positive; once their set no longer changes,
    it is the minimum. Rows (N, R + 1) carry their signs.
    """
    for _ in range(_NEWTON_STEPS):
        margins = rows @ v  # (N,)
        if margins.min() > EDGE * np.linalg.norm(v):
            return v, True
        residuals = np.maximum(0, 1 - margins)
        if np.linalg.norm(rows.T @ residuals) <= EDGE * residuals.sum():
            return v, False
        active = rows[residuals > 0]  # (A, R + 1)
        if len(active) >= rows.shape[1]:
            step = np.linalg.solve(active.T @ active + 1e-12 * np.eye(rows.shape[1]), rows.T @ residuals)
        else:
            step = active.T @ np.linalg.solve(active @ active.T + 1e-12 * np.eye(len(active)), residuals[residuals > 0])
        v = v + _line_search(margins, rows @ step) * step
    return v, bool((rows @ v).min() > 0)


def _line_search(margins, change):
    """The t > 0 that minimises sum_i max(0, 1 - margins_i - t change_i)^2: its derivative rises, so bisect."""

    def slope(t):
        return -(np.maximum(0, 1 - margins - t * change) * change).sum()

    low, high = 0.0, 1.0
    while slope(high) < 0 and high < 1e12:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return high
