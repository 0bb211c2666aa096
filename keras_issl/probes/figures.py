"""Figures of a test set from ranks and guesses: metrics with bootstrap intervals, classes, confusions, differences."""

import collections

import numpy as np

INTERVAL = (0.025, 0.975)
CONFUSIONS = 100  # pairs of classes that a result names: all there are of ten classes
CLASSES = 1000  # classes whose accuracy it lists
COUNTS = 1 << 24  # counts of a block of resamples: 128 MiB

Difference = collections.namedtuple("Difference", "value low high")


def paired_difference(a, b, *, bootstrap=1000, seed=0):
    """How much more often a is right than b on the same test examples.

    Args:
        a: (N,) booleans, whether each example is classified correctly, or shares of seeds that do.
        b: (N,), the same for another probe or representation.
        bootstrap: resamples of the examples.
        seed: of the resamples.

    Returns:
        `Difference(value, low, high)`: the mean of a - b and its 95 % interval. Being paired, it is narrower than the
        two intervals suggest.

    Example:

    >>> right = np.arange(100) < 80
    >>> keras_issl.probes.figures.paired_difference(right, right)
    Difference(value=0.0, low=0.0, high=0.0)
    """
    a, b = (np.asarray(values, np.float64) for values in (a, b))
    if a.shape != b.shape or a.ndim != 1 or not len(a) or not np.isfinite(a + b).all():
        raise ValueError(
            f"`a` and `b` should have one finite number an example. Received: shapes {a.shape}, {b.shape}."
        )
    if isinstance(bootstrap, bool) or not isinstance(bootstrap, int | np.integer) or bootstrap < 1:
        raise ValueError(f"`bootstrap` should be a positive integer. Received: {bootstrap!r}.")
    kinds, counts = np.unique(a - b, return_counts=True)  # (G,)
    means = [block @ kinds / len(a) for block in _resamples(counts, bootstrap, seed)]
    low, high = np.quantile(np.concatenate(means), INTERVAL).tolist()
    return Difference(float((a - b).mean()), low, high)


def _resamples(counts, bootstrap, seed=0):
    """Blocks (B, G) of how often each of G kinds of examples is drawn, N times with replacement.

    Examples of one kind are interchangeable, so that this is the bootstrap over the N examples exactly, at the price of
    G numbers a resample.
    """
    rng, size = np.random.default_rng(seed), max(1, COUNTS // len(counts))
    for start in range(0, bootstrap, size):
        yield rng.multinomial(counts.sum(), counts / counts.sum(), min(size, bootstrap - start))


def metrics(ranks, labels, num_classes, bootstrap):
    """Metrics of a `Result`, from ranks (S, N) and labels (N,)."""
    tops = [1] + [5] * (num_classes > 5)
    hits = np.stack([(ranks < k).sum(axis=0) for k in tops])  # (M, N): seeds, of S, that are right
    classes, numbers = np.unique(labels, return_inverse=True)
    # All that counts of an example is its class and its hits: (G, 1 + M) kinds.
    kinds, counts = np.unique(np.vstack([numbers, hits]).T, axis=0, return_counts=True)
    starts = np.searchsorted(kinds[:, 0], np.arange(len(classes)))  # (K,): kinds are sorted by class
    right = kinds[:, 1:] / len(ranks)  # (G, M)

    def of(counts):
        """Each metric (B, M + 1) of resamples (B, G)."""
        counts = counts.astype(np.float64)
        sizes, correct = (np.add.reduceat(x, starts, axis=1) for x in (counts, counts * right[:, 0]))  # (B, K)
        present = sizes > 0
        per_class = np.divide(correct, sizes, out=np.zeros(sizes.shape), where=present)
        return np.column_stack([counts @ right / len(labels), per_class.sum(axis=1) / present.sum(axis=1)])

    values = of(counts[None])[0]
    low = high = [None] * len(values)
    if bootstrap:
        resampled = np.concatenate([of(block) for block in _resamples(counts, bootstrap)])
        low, high = np.quantile(resampled, INTERVAL, axis=0).tolist()
    of_seeds = [[(seed < k).mean() for k in tops] for seed in ranks]
    sizes = np.bincount(numbers)
    for found, seed in zip(of_seeds, ranks, strict=True):
        found.append((np.bincount(numbers, seed == 0) / sizes).mean())
    sds = np.std(of_seeds, axis=0, ddof=1) if len(ranks) > 1 else np.zeros(len(values))
    columns = zip(values.tolist(), low, high, sds.tolist(), strict=True)
    names = [*(f"top{k}" for k in tops), "mean_per_class"]
    return {
        name: {"value": value, "low": low, "high": high, "sd": sd, "seeds": len(ranks)}
        for name, (value, low, high, sd) in zip(names, columns, strict=True)
    }


def per_class(correct, labels, names):
    """Accuracy of each class over (S, N) correct guesses, of the worst 1,000 where there are more."""
    classes, numbers, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    accuracy = np.bincount(numbers, correct.mean(axis=0)) / sizes  # (K,)
    listed = np.sort(np.argsort(accuracy, kind="stable")[:CLASSES])
    columns = (column[listed].tolist() for column in (classes, sizes, accuracy))
    return [{"label": names(c), "examples": n, "accuracy": share} for c, n, share in zip(*columns, strict=True)]


def confusions(guesses, labels, names):
    """The most frequent pairs of a label (N,) and a wrong guess (S, N)."""
    wrong = guesses != labels
    pairs = np.stack([np.broadcast_to(labels, guesses.shape)[wrong], guesses[wrong]])  # (2, errors)
    pairs, counts = np.unique(pairs, axis=1, return_counts=True)
    first = np.argsort(-counts, kind="stable")[:CONFUSIONS]
    found = []
    for (label, guess), count in zip(pairs.T[first].tolist(), counts[first] / len(guesses), strict=True):
        share = float(count / (labels == label).sum())
        found.append({"label": names(label), "guess": names(guess), "count": float(count), "share": share})
    return found
