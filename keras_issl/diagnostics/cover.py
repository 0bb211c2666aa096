"""Cover's curve: the share of random tasks that so many dimensions let a linear probe solve."""

import math

import numpy as np


def cover_curve(n, d):
    """The share of binary labellings of n points in general position in R^d that an affine function separates.

    Cover (1965): let C(n, m) count the labellings that linear functions realise on n points in general position in
    R^m. A further point splits in two those labellings that a hyperplane through that point realises, which are the
    C(n, m - 1) of the points projected along it: C(n + 1, m) = C(n, m) + C(n, m - 1), with C(1, m) = 2. Hence
    C(n, m) = 2 sum_{i < m} binom(n - 1, i). An affine function in R^d is a linear one in R^(d + 1), so of the 2^n
    labellings it realises the share `2 sum_{i <= d} binom(n - 1, i) / 2^n = P(Binomial(n - 1, 1/2) <= d)`: 1 from
    d = n - 1 on, about one half at n = 2 (d + 1), almost none beyond.

    Args:
        n: number of points, at least 1.
        d: number of dimensions, at least 0: an integer or an array of them.

    Returns:
        float64 of the shape of `d`.

    Raises:
        ValueError: n that is no positive integer; d that is no integer of at least 0.

    Example:

    ```python
    keras_issl.diagnostics.cover_curve(4, [1, 2, 3])  # [0.5, 0.875, 1]: exclusive or is among what 2-D lacks
    ```
    """
    d = np.asarray(d)
    whole("n", n)
    if d.dtype.kind not in "iu" or (d < 0).any():
        raise ValueError(f"`d` should be integers of at least 0. Received: {d.tolist()!r}.")
    steps = np.arange(1, n)
    logs = np.append(0.0, np.cumsum(np.log((n - steps) / steps))) - (n - 1) * math.log(2)  # (n,): of each term
    sums = np.cumsum(np.exp(logs))  # (n,)
    # Above the middle the complement is the smaller sum, by symmetry: P(<= d) = 1 - P(<= n - 2 - d).
    d = np.minimum(d, n - 1).astype(np.int64)
    upper = 1 - np.where(d < n - 1, sums[np.maximum(n - 2 - d, 0)], 0.0)
    return np.where(2 * d < n - 1, sums[d], upper)[()]


def wilson(successes, trials):
    """The 95 % Wilson interval (low, high) of a share.

    Args:
        successes: from 0 to `trials`.
        trials: at least 1.

    Example:

    >>> low, high = keras_issl.diagnostics.cover.wilson(10, 10)
    >>> round(float(low), 2), high
    (0.72, 1.0)
    """
    share, z2 = successes / trials, 1.959964**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = math.sqrt(z2 * share * (1 - share) / trials + z2**2 / (4 * trials**2)) / (1 + z2 / trials)
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return (0.0 if successes == 0 else low), (1.0 if successes == trials else high)


def whole(name, value, least=1, most=None):
    """Raises a `ValueError` that names the argument unless `value` is an integer from `least` to `most`."""
    good = isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= least
    if not good or (most is not None and value > most):
        wanted = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"`{name}` should be an integer {wanted}. Received: {value!r}.")
