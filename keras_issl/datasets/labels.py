"""Labels: int64, one an image, -1 where there is none."""

import numpy as np

from keras_issl.datasets.images import to_numpy


def check_labels(labels, size):
    """int64 (N,) labels; -1 means none."""
    labels = to_numpy(labels)
    whole = labels.dtype.kind in "uib" or (labels.dtype.kind == "f" and (labels == np.round(labels)).all())
    if labels.shape != (size,) or not whole or (size and labels.min() < -1):
        raise ValueError(
            f"`labels` should be {size} integers, one an image, -1 for none. Received: shape {labels.shape}, dtype "
            f"{labels.dtype}" + (f", smallest {labels.min()}." if whole and labels.size else ".")
        )
    return labels.astype(np.int64)


def label_numbers(values, names=()):
    """int64 labels and class names from numbers, None (-1) or strings (numbered in sorted order)."""
    if any(isinstance(value, str) for value in values):
        names = names or sorted({value for value in values if value is not None})
        number = {name: i for i, name in enumerate(names)}
        values = [None if value is None else number[value] for value in values]
    return np.array([-1 if value is None else value for value in values], np.int64), tuple(names) or None


def stratified(labels, count, rng):
    """Splits `range(len(labels))` in two: the first part holds `count`, each class in proportion. Both sorted."""
    classes, sizes = np.unique(labels, return_counts=True)
    share = sizes * (count / len(labels))
    take = np.floor(share).astype(int)
    take[np.argsort(take - share, kind="stable")[: count - take.sum()]] += 1  # largest remainders
    first = [rng.permutation(np.flatnonzero(labels == c))[:k] for c, k in zip(classes, take, strict=True)]
    first = np.sort(np.concatenate(first))
    return first, np.setdiff1d(np.arange(len(labels)), first)
