"""Rows of features for a fit: their moments in one pass, their standardisation, and blocks of them on an engine."""

import contextlib
import dataclasses

import numpy as np

from keras_issl.probes import threads

BLOCK = {"numpy": 1 << 21, "keras": 1 << 26}  # values of a block, of its features or of its logits
RESIDENT = {"numpy": 1 << 27, "keras": 3 << 30}  # values up to which standardised rows are kept: 512 MiB and 12 GiB
IN_MEMORY = 1 << 24  # values up to which a fit may hold a few copies of its rows in double precision: 128 MiB each
ROTATED = 8_192  # dimensions up to which an eigendecomposition of the covariance pays


@dataclasses.dataclass(frozen=True)
class Standard:
    """The coordinates that a fit works in: u = (x - mean) / scale @ basis, in which the rows are uncorrelated.

    A linear map W of u is the map (basis @ W) / scale of x, so that an L2 penalty on W is one on the map of
    (x - mean) / scale: the basis is orthonormal.

    Attributes:
        mean: (D,) float64.
        scale: (D,) float64.
        basis: (D, R) float64, the principal directions of (x - mean) / scale; or None, which leaves it as it is.
        spectrum: (R,) float64, the (weighted) mean squares of u's columns.
    """

    mean: np.ndarray
    scale: np.ndarray
    basis: np.ndarray | None
    spectrum: np.ndarray

    def apply(self, x):
        """u (N, R), float64, of x (N, D)."""
        x = (x - self.mean) / self.scale
        return x if self.basis is None else x @ self.basis

    def original(self, weights):
        """(coef (K, D), intercept (K,)), float64, of weights (K, R + 1), whose last column is the intercept."""
        weights = np.asarray(weights, np.float64)
        maps = weights[:, :-1] if self.basis is None else weights[:, :-1] @ self.basis.T  # (K, D)
        coef = maps / self.scale
        return coef, weights[:, -1] - coef @ self.mean

    def weights(self, coef, intercept):
        """Weights (K, R + 1), float64, of a map of x: the inverse of `original`, up to what the basis does not span."""
        maps = coef * self.scale if self.basis is None else coef * self.scale @ self.basis  # (K, R)
        return np.hstack([maps, (intercept + coef @ self.mean)[:, None]])


def spread(mean, variance, standardize):
    """The scale (D,) of each feature.

    Args:
        mean: (D,).
        variance: (D,); a feature that varies by rounding alone counts as constant.
        standardize: `"soft"`, True or False, see `LinearProbe`.
    """
    variance = np.where(variance > (1e-6 * mean) ** 2, variance, 0.0)
    if standardize is False or not variance.any():
        return np.ones_like(variance)
    if standardize is True:
        return np.sqrt(np.where(variance > 0, variance, variance.mean()))  # of any size that suits the others
    scale = np.sqrt(variance + variance.mean())
    return scale * np.sqrt((variance / scale**2).sum())


def standard_of_small(x, standardize, weights=None):
    """The `Standard` of rows x (N, D), float64, and their u (N, R).

    With fewer rows than features the basis spans the rows only, which is exact too: W of the optimum lies in their
    span.
    """
    mean, variance = x.mean(axis=0), None
    if weights is not None:
        mean = weights @ x / weights.sum()
        variance = weights @ (x - mean) ** 2 / weights.sum()
    scale = spread(mean, x.var(axis=0) if variance is None else variance, standardize)
    u, basis = (x - mean) / scale, None
    with threads.one():  # more help little in a decomposition, and wait for each other where the cores are busy
        if len(u) < u.shape[1]:
            basis, triangle = np.linalg.qr(u.T)  # (D, N), (N, N)
            u = triangle.T
        spectrum, turn = np.linalg.eigh((u.T if weights is None else u.T * weights) @ u)
    basis = turn if basis is None else basis @ turn
    return Standard(mean, scale, basis, np.maximum(spectrum, 0) / len(u)), u @ turn


def moments(x, engine, index=None, weights=None, *, diagonal=False):
    """Mean (D,) and covariance (D, D) of rows, in one pass over them.

    Args:
        x: (N, D), of any size; it is read block by block.
        engine: an `Engine`, for the products.
        index: (n,) rows to take, or None for all.
        weights: (N,) what each row counts, or None for 1.
        diagonal: whether to return the covariance's diagonal (D,) alone.
    """
    dim = x.shape[1]
    shift, total, sums = None, 0.0, np.zeros(dim)
    products = np.zeros(dim if diagonal else (dim, dim))
    unit = np.full(dim, np.finfo(np.float64).tiny)  # of each feature, a power of two: squares have to fit into float32
    for block, chosen in chunks(x, index, max(1, BLOCK[engine.name] // dim)):
        if shift is None:
            shift = block.mean(axis=0, dtype=np.float64)  # near the mean, so that nothing cancels
        largest = np.maximum(block.max(axis=0) - shift, shift - block.min(axis=0))
        larger = np.ldexp(1.0, np.frexp(np.maximum(largest, unit / 2))[1])  # (D,), at least the unit
        if (larger > unit).any():
            sums *= unit / larger
            products *= (unit / larger) ** 2 if diagonal else np.outer(unit / larger, unit / larger)
            unit = larger
        block = ((block - shift) / unit).astype(np.float32)  # (n, D), in [-1, 1]
        counts = np.ones(len(block), np.float32) if weights is None else weights[chosen].astype(np.float32)
        total += counts.sum(dtype=np.float64)
        sums += counts @ block.astype(np.float64)
        if diagonal:
            products += counts @ np.square(block)
        else:
            left = block if weights is None else block * np.sqrt(counts)[:, None]
            left = engine.put(left)
            products += engine.get(engine.ops.matmul(engine.ops.transpose(left), left))
    offset = sums / total
    products /= total
    products -= offset**2 if diagonal else np.outer(offset, offset)
    return shift + offset * unit, products * (unit**2 if diagonal else np.outer(unit, unit))


def standard_of_large(x, engine, standardize, index=None, weights=None, *, exact=False):
    """The `Standard` of rows of any size, in one pass over them; beyond 8,192 features without axes unless `exact`."""
    diagonal = x.shape[1] > ROTATED and not exact
    mean, covariance = moments(x, engine, index, weights, diagonal=diagonal)
    variance = np.maximum(covariance if diagonal else covariance.diagonal(), 0)
    scale = spread(mean, variance, standardize)
    share = 1.0 if weights is None else (weights if index is None else weights[index]).mean()  # of a row
    if diagonal:
        return Standard(mean, scale, None, share * variance / scale**2)
    with threads.one() if len(mean) <= 2_048 else contextlib.nullcontext():
        spectrum, basis = np.linalg.eigh(covariance / np.outer(scale, scale))
    return Standard(mean, scale, basis, share * np.maximum(spectrum, 0))


def chunks(x, index, rows):
    """Blocks of the rows of x (N, D) at `index` (None: all), in order, each with what selects it."""
    for start in range(0, len(x) if index is None else len(index), rows):
        chosen = slice(start, start + rows) if index is None else index[start : start + rows]
        yield x[chosen], chosen


class Rows:
    """Examples as `solve` and `held_out_scores` see them: standardised blocks on an engine.

    Blocks are made from x at each pass, unless all of them are small enough to keep. The basis is left to the weights:
    turning them is far less work.

    Args:
        x: (N, D), of any size; or u (N, R), where `standard` is None.
        numbers: (N,) class numbers.
        classes: K.
        engine: an `Engine`.
        standard: a `Standard`, or None for rows that are in its coordinates already.
        weights: (N,) weights of the examples, or None.
        index: (n,) increasing rows to take, or None for all.
        dtype: float type of all computation.
        fits: how many linear maps are computed at once, which decides how long a block may be.
        keep: whether blocks may be kept for the next pass.
    """

    def __init__(
        self,
        x,
        numbers,
        classes,
        engine,
        *,
        standard=None,
        weights=None,
        index=None,
        dtype="float32",
        fits=1,
        keep=True,
    ):
        self.engine, self.classes, self.dtype, self.size = engine, classes, dtype, len(x if index is None else index)
        self.basis = None
        if standard is not None and standard.basis is not None:
            self.basis = engine.put(standard.basis, dtype)
        self.dim = x.shape[1] if self.basis is None else standard.basis.shape[1]  # R
        self._source = x, numbers, weights, index
        self._standard = standard
        self._length = max(1, BLOCK[engine.name] // max(x.shape[1] + 1, fits * classes))
        self._kept = [] if keep and self.size * (x.shape[1] + 1) <= RESIDENT[engine.name] else None
        self._complete = False

    def __iter__(self):
        """Blocks (x (n, D + 1) with a last column of ones, class numbers (1, 1, n), weights (1, 1, n))."""
        if self._complete:
            yield from self._kept
            return
        x, numbers, weights, index = self._source
        kept = []
        for block, chosen in chunks(x, index, self._length):
            filled = np.ones((len(block), block.shape[1] + 1), self.dtype)
            if self._standard is None:
                filled[:, :-1] = block
            elif self._standard.scale.min() > 1e-30 and self._standard.scale.max() < 1e30:
                np.subtract(block, self._standard.mean, out=filled[:, :-1], casting="same_kind")
                filled[:, :-1] *= (1 / self._standard.scale).astype(self.dtype)
            else:  # single precision has no such numbers, or few digits of them
                filled[:, :-1] = (block - self._standard.mean) / self._standard.scale
            counts = np.ones(len(block)) if weights is None else weights[chosen]
            made = (
                self.engine.put(filled, self.dtype),
                self.engine.put(numbers[chosen].reshape(1, 1, -1), "int32"),
                self.engine.put(counts.reshape(1, 1, -1), self.dtype),
            )
            if self._kept is not None:
                kept.append(made)
            yield made
        if self._kept is not None:
            self._kept, self._complete = kept, True
            self._source = None
