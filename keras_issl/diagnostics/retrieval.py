"""The nearest neighbours of any image."""

import numpy as np

from keras_issl.diagnostics.geometry import BLOCK, finite, on_sphere


def retrieve(query, features, k=10):
    """The nearest neighbours by cosine, exactly, block by block: neither side is copied as a whole.

    Args:
        query: (D,) or (Q, D), features of the images that are asked for; those that stand in `features` find
            themselves first.
        features: `Features`, or (N, D), which may be mapped from a file.
        k: neighbours, at most N.

    Returns:
        Indices, int64 (k,) or (Q, k), the nearest first, and their cosines, float32; 0 with a row of zeros.

    Raises:
        ValueError: shapes that do not fit, NaN or infinity, or a k out of range.

    Example:

    >>> indices, cosines = retrieve(np.array([1.0, 0.1]), np.array([[0.0, 1], [2, 0], [1, 1]]), k=2)
    >>> indices
    array([1, 2])
    """
    rows = np.asarray(getattr(features, "array", features))
    asked = np.asarray(getattr(query, "array", query))
    single = asked.ndim == 1
    asked = asked[None] if single else asked
    if rows.ndim != 2 or asked.ndim != 2 or rows.shape[1] != asked.shape[1] or 0 in (*rows.shape, *asked.shape):
        raise ValueError(
            "`query` should have shape (D,) or (Q, D) and `features` (N, D), of one width D. Received: shapes "
            f"{np.shape(getattr(query, 'array', query))} and {rows.shape}."
        )
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= len(rows):
        raise ValueError(f"`k` should be an integer from 1 to {len(rows)}. Received: {k!r}.")
    asked = on_sphere(finite(asked, "query").astype(np.float32))  # (Q, D)
    rows = finite(rows, "features")
    indices = np.empty((len(asked), k), np.int64)
    cosines = np.empty((len(asked), k), np.float32)
    by_query = max(1, BLOCK // max(rows.shape[1], k))
    for first in range(0, len(asked), by_query):
        part = asked[first : first + by_query]
        step = max(1, BLOCK // max(rows.shape[1], len(part)))
        best = np.empty((len(part), 0), np.float32)
        where = np.empty((len(part), 0), np.int64)
        for start in range(0, len(rows), step):
            near = part @ on_sphere(rows[start : start + step].astype(np.float32)).T  # (q, s)
            nearest = _largest(near, k)
            best = np.concatenate([best, np.take_along_axis(near, nearest, 1)], axis=1)  # (q, at most 2 k)
            where = np.concatenate([where, nearest + start], axis=1)
            kept = _largest(best, k)
            best, where = np.take_along_axis(best, kept, 1), np.take_along_axis(where, kept, 1)
        order = np.lexsort((where, -best), axis=1)  # of equal cosines the first image
        indices[first : first + by_query] = np.take_along_axis(where, order, 1)
        cosines[first : first + by_query] = np.take_along_axis(best, order, 1)
    return (indices[0], cosines[0]) if single else (indices, cosines)


def _largest(values, k):
    """Columns of the k largest values of each row of (Q, S), in any order; all where there are no more."""
    if values.shape[1] <= k:
        return np.broadcast_to(np.arange(values.shape[1]), values.shape)
    return np.argpartition(values, -k, axis=1)[:, -k:]
