"""What every probe shares: scikit-learn's manners, checked arguments and inputs, held-out parts, words and metrics."""

import inspect
import math
import numbers
import warnings

import numpy as np

from keras_issl.features import Features
from keras_issl.probes import figures

BLOCK = 1 << 22  # values of a block of rows: 16 MiB in single precision
MISMATCH = {  # (family that the features were trained for, family of the probe) -> what follows
    ("mlp", "linear"): (
        "the paper matches the student head to the probe: this one promises that an MLP can name the classes, not that "
        "a linear map can, so a linear probe may understate these features. Use MLPProbe"
    ),
    ("linear", "mlp"): (
        "the paper matches the student head to the probe: this one was made for a linear map, for which it needs more "
        "dimensions than an MLP would, so an encoder trained with probe='mlp' may do better under an MLP. Use "
        "LinearProbe"
    ),
}


class Probe:
    """A classifier on frozen features, with scikit-learn's manners.

    The constructor stores its arguments, `fit` returns self, and what is learned ends in `_`. A subclass defines `fit`
    (which sets `classes_`, (K,) sorted labels, and `n_features_in_`) and `_scores`, the logits of a block of rows.

    Attributes:
        family: `"linear"`, `"mlp"`, or None for a probe that the paper's theory says nothing of.
    """

    family = None

    def get_params(self, deep=True):
        """The constructor's arguments."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params):
        """Changes constructor arguments; returns self."""
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                raise ValueError(f"`{name}` should be one of {sorted(known)}.")
            setattr(self, name, value)
        return self

    def clone(self, **changes):
        """An unfitted probe with the same arguments, but for the changes."""
        return type(self)(**{**self.get_params(), **changes})

    def __repr__(self):
        defaults = inspect.signature(type(self)).parameters
        changed = {name: value for name, value in self.get_params().items() if value is not defaults[name].default}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in changed.items())})"

    def decision_function(self, x):
        """Logits (N, K) of (N, D) features or `Features`, columns in the order of `classes_`. Works block by block."""
        return np.concatenate([self._scores(block) for block in blocks(self._fitting(x))])

    def predict_proba(self, x):
        """Probabilities (N, K), columns in the order of `classes_`."""
        return softmax(self.decision_function(x))

    def predict(self, x):
        """The most probable class of each example, (N,)."""
        best = self.decision_function(x).argmax(axis=1)
        return self.classes_[best]

    def score(self, x, y=None):
        """Top-1 accuracy on (x, y), or on `Features` with labels."""
        return float((self.ranks(x, y) == 0).mean())

    def metrics(self, x, y=None):
        """What is reported on a test set, as `evaluate` computes it, without intervals.

        Args:
            x: (N, D) features, or `Features` with labels.
            y: (N,) labels. A label that training did not have counts as an error.

        Returns:
            A dict: `"top1"` and, of more than five classes, `"top5"`, the share of examples whose label is among the k
            best guesses (of any k it is `(probe.ranks(x, y) < k).mean()`); `"mean_per_class"`, the unweighted mean over
            the classes of y of their top-1.
        """
        x, y = inputs(x, y)
        found = figures.metrics(self.ranks(x, y)[None], y, len(self.classes_), bootstrap=0)
        return {name: figure["value"] for name, figure in found.items()}

    def ranks(self, x, y=None):
        """How many classes are guessed before the true one, (N,): 0 where top-1 is right; K for an unknown label."""
        x, y = inputs(x, y)
        return ranks_of(self.decision_function(x), self.classes_, y)

    def _fitting(self, x):
        """Checked (N, D) features, as wide as those that this probe was fitted to."""
        if not hasattr(self, "classes_"):
            raise ValueError(f"This {type(self).__name__} is not fitted yet. Call `fit` first.")
        x = matrix(x)
        if x.shape[1] != self.n_features_in_:
            raise ValueError(f"`x` should have {self.n_features_in_} features. Received: shape {x.shape}.")
        return x

    def _scores(self, block):
        """Logits (n, K) of a block of rows (n, D)."""
        raise NotImplementedError


def is_number(value):
    """Whether it is a real number, and no boolean."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_integer(name, value, least):
    """`ValueError` unless the argument of that name is an integer of at least `least`; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"`{name}` should be an integer of at least {least}. Received: {value!r}.")


def candidates(name, values, valid, what, kind=float):
    """The values of a hyperparameter to choose from, increasing and without repetition.

    Args:
        name: of the argument.
        values: one number, or a sequence of them.
        valid: tells whether a number may be one.
        what: what they should be, for the `ValueError` where they are not.
        kind: float or int, the type of those returned.
    """
    found = np.atleast_1d(np.asarray(values, object))
    if found.ndim != 1 or not found.size or not all(is_number(value) and valid(value) for value in found):
        raise ValueError(f"`{name}` should be {what}. Received: {values!r}.")
    return sorted({kind(value) for value in found})


def sentence(name, best, tried, how="the only one given", note=""):
    """`selection_`, which says how a hyperparameter was chosen.

    Args:
        name: of the hyperparameter, as the reader knows it.
        best: the value chosen.
        tried: the values compared; fewer than two if none were.
        how: where their accuracy was compared; or why it is this value if none were.
        note: what is to be said of the values in brackets.

    Example:

    >>> sentence("C", 10.0, [1.0, 10.0], "5-fold cross-validation on the 60 training examples")
    'C = 10 (the largest tried), the best of 2 by accuracy in 5-fold cross-validation on the 60 training examples'
    """
    value = f"{name} = {best if isinstance(best, int) else format(best, 'g')}"
    note = f" ({note})" if note else ""
    if len(tried) < 2:
        return f"{value}, {how}{note}"
    edge = {min(tried): " (the smallest tried)", max(tried): " (the largest tried)"}.get(best, "")
    return f"{value}{edge}, the best of {len(tried)}{note} by accuracy in {how}"


def blocks(x, size=BLOCK):
    """Blocks of whole rows of (N, D), in order."""
    rows = max(1, size // x.shape[1])
    for start in range(0, len(x), rows):
        yield x[start : start + rows]


def matrix(x):
    """Finite (N, D), float32 or float64; a mapped array stays on the disk."""
    if isinstance(x, Features):
        array, checked = x.array, True  # finite: `Features` has looked
    else:
        array, checked = x if isinstance(x, np.ndarray) else np.asarray(x), False
        if array.dtype not in (np.float32, np.float64):
            array = array.astype(np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"`x` should have shape (N, D), with N and D at least 1. Received: shape {array.shape}.")
    if not checked:
        bad = sum(int((~np.isfinite(block).all(axis=1)).sum()) for block in blocks(array))
        if bad:
            raise ValueError(f"`x` should be finite. Received: NaN or infinity in {bad} of {len(array)} rows.")
    return array


def inputs(x, y=None, *, family=None):
    """Checked (N, D) features and (N,) labels.

    Args:
        x: (N, D), or `Features` with labels.
        y: (N,) labels, or None for those of `x`.
        family: the family of the probe that is about to be fitted: another one than the features were trained for is
            worth a warning.
    """
    if isinstance(x, Features):
        trained_for = x.provenance.get("probe")
        if (trained_for, family) in MISMATCH:
            warnings.warn(
                f"These features were trained for a probe of the family {trained_for!r}, and this one is "
                f"{family!r}: {MISMATCH[trained_for, family]}, or say so beside the number.",
                stacklevel=3,
            )
        y = x.labels if y is None else y
    if y is None:
        raise ValueError("`y` should be given. Received: None, and features without labels.")
    x, y = matrix(x), np.asarray(y)
    if y.shape != (len(x),):
        raise ValueError(f"`y` should be one label an example, shape ({len(x)},). Received: shape {y.shape}.")
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        raise ValueError("`y` should have a label for every example. Received: NaN or infinity.")
    if y.dtype.kind in "if" and (y < 0).any():
        raise ValueError(
            f"`y` should have a label for every example. Received: {(y < 0).sum()} of {len(y)} negative, which means "
            "none. Select the labelled ones: features.subset(features.labels >= 0)."
        )
    return x, y


def class_numbers(y):
    """(classes (K,), numbers (N,)) of labels; two classes at least."""
    classes, numbers = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"`y` should have at least two classes. Received: only {classes.tolist()}.")
    return classes, numbers


def example_weights(numbers, classes, class_weight):
    """(N,) weights of examples, or None where all weigh the same.

    Args:
        numbers: (N,) class numbers.
        classes: (K,) labels.
        class_weight: None; `"balanced"`, N / (K n_k) for a class with n_k examples, so that the weights' mean is 1; or
            a dict from labels to positive numbers, taken as they are, 1 for those that it lacks.
    """
    if class_weight is None:
        return None
    if isinstance(class_weight, str) and class_weight == "balanced":
        counts = np.bincount(numbers, minlength=len(classes))
        return (len(numbers) / (len(classes) * np.maximum(counts, 1)))[numbers]
    if not isinstance(class_weight, dict):
        raise ValueError(f'`class_weight` should be None, "balanced" or a dict. Received: {class_weight!r}.')
    unknown = [label for label in class_weight if label not in classes.tolist()]
    weights = [class_weight.get(label, 1.0) for label in classes.tolist()]  # (K,)
    if unknown or not all(is_number(weight) and 0 < weight < math.inf for weight in weights):
        raise ValueError(
            f"`class_weight` should hold a positive number for labels among {classes.tolist()[:20]}. Received: "
            f"{class_weight!r}."
        )
    return np.array(weights, np.float64)[numbers]


def fold_numbers(y, folds, rng):
    """The part (N,) in which each example is held out: each class dealt evenly; -1 (never) for lone examples."""
    numbers = np.full(len(y), -1)
    dealt = 0
    for label, size in enumerate(np.bincount(y)):
        if size > 1:
            numbers[rng.permutation(np.flatnonzero(y == label))] = (dealt + np.arange(size)) % folds
            dealt += size
    return numbers


def ranks_of(logits, classes, y):
    """Of logits (N, K), how many classes (K,) stand before the label (N,) of each row: (N,); K for an unknown label."""
    if (classes.dtype.kind in "biuf") != (y.dtype.kind in "biuf"):
        raise ValueError(
            f"`y` should hold labels like those of training, such as {classes[0]!r}. Received: labels such as {y[0]!r}."
        )
    position = np.minimum(np.searchsorted(classes, y), len(classes) - 1)
    own = logits[np.arange(len(y)), position][:, None]  # (N, 1)
    # Of equal logits the first class wins, as argmax has it.
    before = (logits > own) | ((logits == own) & (np.arange(len(classes)) < position[:, None]))
    return np.where(classes[position] == y, before.sum(axis=1), len(classes))


def softmax(logits):
    """Probabilities (N, K)."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
