"""Few labels: test accuracy against how many examples a probe is given."""

import collections

import numpy as np

from keras_issl.probes.base import inputs
from keras_issl.probes.linear import LinearProbe

FewShotScore = collections.namedtuple("FewShotScore", "mean sd draws")


def few_shot(train, test, *, shots=(1, 5, 10, None), draws=10, seed=0, probe=None):
    """Test accuracy of a probe that is given few labels.

    The draws depend on the labels, `seed` and nothing else, so that different representations of one dataset see the
    same labelled images (paired), and a draw's 5 labels a class contain its 1, its 10 % contain its 1 %.

    Args:
        train: `Features` with labels, from which the labelled examples are drawn.
        test: `Features` with labels.
        shots: each an integer, labels a class; a float in (0, 1), that share of every class, rounded, and one label at
            least (0.01 is 1 % of `train`); or None for all of `train`.
        draws: how many random sets of labels to average over.
        seed: of the draws.
        probe: an unfitted probe, `LinearProbe()` by default; each draw fits a copy.

    Returns:
        A dict from each element of `shots` to `FewShotScore(mean, sd, draws)`: mean and standard deviation (over the
        draws; 0 for a single one) of the top-1 accuracy.

    Raises:
        ValueError: features without labels, more shots than a class has examples.

    Example:

    ```python
    scores = keras_issl.probes.few_shot(train, test, shots=(1, 0.1, None), draws=3)
    scores[0.1].mean  # with a tenth of the labels
    ```
    """
    probe = LinearProbe() if probe is None else probe
    if not _is_count(draws):
        raise ValueError(f"`draws` should be a positive integer. Received: {draws!r}.")
    _, labels = inputs(train)
    inputs(test)
    shots, classes = check_shots(shots, labels), np.unique(labels)

    def accuracy(chosen):
        return probe.clone().fit(train.subset(chosen)).score(test)

    orders = []  # a draw: for each class its examples in random order
    for draw in range(draws):
        rng = np.random.default_rng([seed, draw])
        orders.append([rng.permutation(np.flatnonzero(labels == label)) for label in classes])
    scores = {}
    for shot in shots:
        if shot is None:
            found = [accuracy(slice(None))]
        else:
            found = [
                accuracy(np.sort(np.concatenate([order[: _labels_of(shot, len(order))] for order in draw])))
                for draw in orders
            ]
        sd = float(np.std(found, ddof=1)) if len(found) > 1 else 0.0
        scores[shot] = FewShotScore(float(np.mean(found)), sd, len(found))
    return scores


def check_shots(shots, labels):
    """Holds the `shots` of `few_shot` against the training labels, before anything is encoded or fitted.

    Args:
        shots: as in `few_shot`.
        labels: (N,), of the training examples.

    Returns:
        A tuple of them.

    Raises:
        ValueError: as `few_shot`.

    Example:

    >>> keras_issl.probes.check_shots([1, 0.1], train.labels)
    (1, 0.1)
    """
    shots = tuple(shots) if isinstance(shots, list | tuple | np.ndarray | range) else (shots,)
    wrong = [shot for shot in shots if not (shot is None or _is_count(shot) or _is_share(shot))]
    if wrong or not shots:
        raise ValueError(
            "`shots` should be positive integers (labels a class), floats between 0 and 1 (shares of train, 0.01 for "
            f"1 %) or None (all of train). Received: {', '.join(map(repr, wrong)) or 'none'}."
        )
    classes, sizes = np.unique(labels, return_counts=True)
    most = max((shot for shot in shots if _is_count(shot)), default=0)
    if most > sizes.min():
        raise ValueError(
            f"`shots` should be at most {sizes.min()}, the examples of class {classes[sizes.argmin()]}, or shares of "
            f"each class, such as 0.1. Received: {most}."
        )
    return shots


def _is_count(value):
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 1


def _is_share(value):
    return isinstance(value, float | np.floating) and 0 < value < 1


def _labels_of(shot, size):
    """How many of a class's examples a shot is."""
    return shot if _is_count(shot) else max(1, int(shot * size + 0.5))
