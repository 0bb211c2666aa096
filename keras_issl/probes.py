"""Probes on frozen features, with scikit-learn's manners. They know arrays and `Features`, never models or training."""

import collections
import contextlib
import inspect
import warnings

import numpy as np

from keras_issl._logistic import TOLERANCE, softmax, solve
from keras_issl.features import Features

PROTOCOL = (
    "Linear probe; its regularisation is chosen on held-out training labels (strength 10 where every class has a "
    "single label), and test is scored once per draw of labels."
)
STRENGTHS = (1e-2, 1e-1, 1e0, 1e1, 1e2, 1e3)
_HELD_OUT_FROM = 10_000  # examples from which one held-out fifth is enough to choose a strength
_ROTATE_UP_TO = 4_096  # dimensions up to which an eigendecomposition of the Gram matrix pays
_THREADS_FROM = 50_000_000  # multiplications a product with the features takes
_SWEEP_TOLERANCE = 1e-5  # enough to rank strengths; the final fit takes the solver's own


class LinearProbe:
    """Multinomial logistic regression whose regularisation is chosen on held-out parts of the training set.

    Minimises `mean_i cross_entropy(softmax(W x_i + b), y_i) + ||W||^2 / (2 C N)` over all N training examples: times
    C N, this is scikit-learn's objective, so `C` has its meaning; b is not penalised. Two classes have two rows of W.

    The features are centred, each is divided by sqrt(its variance + the mean variance), and all by one number that
    makes the mean squared norm 1. This is half-way between one scale for all (better on few pixels, most of which
    hardly vary) and a scale for each (better on features of uneven size), leaves constant features at zero, and lets
    one range of strengths serve every width. All of it is learned from the examples that a fit sees, never from
    held-out ones; `coef_` and `intercept_` are in the original feature space.

    Args:
        strengths: the values of C to choose from, by accuracy on held-out training examples (then by their
            log-likelihood).
        folds: parts of the stratified cross-validation. From 10,000 examples on, a single held-out part, 1/folds of
            them, is used. Classes with one example are always trained on; if no class has two, nothing can be held out
            and `default_strength` is used.
        default_strength: C in that case.
        seed: of the held-out parts.

    Attributes:
        classes_: (K,) labels, sorted.
        best_strength_: the C chosen, with which the probe was fitted again on all of the training set.
        validation_scores_: dict from C to its held-out accuracy; empty if nothing was held out.
        selection_: a sentence that names how C was chosen.
        coef_: (K, D).
        intercept_: (K,).
        n_features_in_: D.

    Example:

    ```python
    probe = keras_issl.probes.LinearProbe().fit(train.array, train.labels)
    probe.score(test.array, test.labels)  # top-1 accuracy; the only use of the test set
    ```
    """

    def __init__(self, strengths=STRENGTHS, *, folds=5, default_strength=10.0, seed=0):
        self.strengths = strengths
        self.folds = folds
        self.default_strength = default_strength
        self.seed = seed

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

    def fit(self, x, y=None):
        """Chooses C on held-out parts of these examples, then fits all of them.

        Args:
            x: (N, D) features, or `Features` with labels.
            y: (N,) labels, integers or strings; every example needs one.

        Returns:
            self.

        Raises:
            ValueError: no examples, fewer than two classes, labels that are missing or -1, NaN or infinity, a strength
                that is not positive.
        """
        x, y = _inputs(x, y)
        strengths = self._checked_strengths()
        classes, y = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"`y` should have at least two classes. Received: only {classes.tolist()}.")
        folds = _fold_numbers(y, self.folds, np.random.default_rng(self.seed))
        held_out = range(folds.max() + 1 if len(y) < _HELD_OUT_FROM else min(1, folds.max() + 1))
        correct = np.zeros((2, len(strengths)))  # held-out examples classified correctly, log-likelihood
        count = 0
        with _blas_threads(x.size * len(classes)):
            if len(strengths) > 1:
                for fold in held_out:
                    correct += _validate(x, y, folds == fold, len(classes), strengths)
                    count += int((folds == fold).sum())
            best = self._select(strengths, correct, count, len(held_out), len(y))
            path = strengths[: strengths.index(best) + 1] if best in strengths else [best]
            self.coef_, self.intercept_ = _fit_path(x, y, len(classes), path, last_only=True)[-1]
        self.classes_, self.n_features_in_ = classes, x.shape[1]
        return self

    def _select(self, strengths, correct, count, parts, size):
        """Sets the attributes that tell how the strength was chosen, and returns it."""
        if count:
            best = strengths[max(range(len(strengths)), key=lambda i: (correct[0, i], correct[1, i], -i))]
            how = f"{parts}-fold cross-validation on" if parts > 1 else f"one held-out part ({count:,} examples) of"
            self.selection_ = f"C={best:g} of {len(strengths)}, by accuracy in {how} the {size:,} training examples"
        elif len(strengths) == 1:
            best, self.selection_ = strengths[0], f"C={strengths[0]:g}, the only one given"
        else:
            best = float(self.default_strength)
            self.selection_ = f"C={best:g}, the default: no class has a second example to hold out"
        scores = correct[0] / max(count, 1)
        self.validation_scores_ = dict(zip(strengths, scores.tolist(), strict=True)) if count else {}
        self.best_strength_ = best
        return best

    def _checked_strengths(self):
        strengths = np.atleast_1d(np.asarray([*np.atleast_1d(self.strengths)], np.float64))
        if len(strengths) == 0 or not (np.isfinite(strengths) & (strengths > 0)).all():
            raise ValueError(f"`strengths` should be positive numbers. Received: {self.strengths!r}.")
        if not self.default_strength > 0:
            raise ValueError(f"`default_strength` should be positive. Received: {self.default_strength!r}.")
        if not isinstance(self.folds, int | np.integer) or self.folds < 2:
            raise ValueError(f"`folds` should be an integer of at least 2. Received: {self.folds!r}.")
        return sorted(set(strengths.tolist()))  # from strong to weak regularisation: each fit starts from the last

    def decision_function(self, x):
        """Logits (N, K)."""
        if not hasattr(self, "coef_"):
            raise ValueError("This LinearProbe is not fitted yet. Call `fit` first.")
        x = _matrix(x)
        if x.shape[1] != self.n_features_in_:
            raise ValueError(f"`x` should have {self.n_features_in_} features. Received: shape {x.shape}.")
        return x @ self.coef_.T + self.intercept_

    def predict_proba(self, x):
        """Probabilities (N, K), columns in the order of `classes_`."""
        return softmax(self.decision_function(x))[0]

    def predict(self, x):
        """The most probable class of each example, (N,)."""
        best = self.decision_function(x).argmax(axis=1)
        return self.classes_[best]

    def score(self, x, y=None):
        """Top-1 accuracy on (x, y), or on `Features` with labels."""
        x, y = _inputs(x, y)
        return float((self.predict(x) == y).mean())


# Inputs --------------------------------------------------------------------------------------------------------------


def _matrix(x):
    """Finite float64 (N, D)."""
    x = np.asarray(x.array if isinstance(x, Features) else x, np.float64)
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"`x` should have shape (N, D), with N and D at least 1. Received: shape {x.shape}.")
    bad = ~np.isfinite(x).all(axis=1)
    if bad.any():
        raise ValueError(f"`x` should be finite. Received: NaN or infinity in {bad.sum()} of {len(x)} rows.")
    return x


def _inputs(x, y):
    """Checked (N, D) and (N,)."""
    if isinstance(x, Features):
        family = x.provenance.get("probe", "linear")
        if family != "linear":
            warnings.warn(
                f"These features were trained for a probe of the family {family!r}; a linear one understates them.",
                stacklevel=3,
            )
        y = x.labels if y is None else y
    if y is None:
        raise ValueError("`y` should be given. Received: None, and features without labels.")
    x, y = _matrix(x), np.asarray(y)
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


def _blas_threads(work):
    """One BLAS thread for small problems, where threadpoolctl is installed (scikit-learn brings it).

    Thousands of small products gain little from threads, and lose tenfold when other processes hold the cores.
    """
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return contextlib.nullcontext()
    return threadpool_limits(1 if work < _THREADS_FROM else None, "blas")


def _fold_numbers(y, folds, rng):
    """The part (N,) in which each example is held out: each class dealt evenly; -1 (never) for lone examples."""
    numbers = np.full(len(y), -1)
    dealt = 0
    for label, size in enumerate(np.bincount(y)):
        if size > 1:
            numbers[rng.permutation(np.flatnonzero(y == label))] = (dealt + np.arange(size)) % folds
            dealt += size
    return numbers


# Logistic regression -------------------------------------------------------------------------------------------------


def _validate(x, y, held_out, classes, strengths):
    """Correct predictions and log-likelihood of the held-out examples, for each strength: (2, S)."""
    fits = _fit_path(x[~held_out], y[~held_out], classes, strengths, tolerance=_SWEEP_TOLERANCE)
    x, y = x[held_out], y[held_out]
    scores = np.empty((2, len(strengths)))
    for i, (coef, intercept) in enumerate(fits):
        logits = x @ coef.T + intercept
        scores[:, i] = (logits.argmax(axis=1) == y).sum(), -softmax(logits, y)[1] * len(y)
    return scores


def _fit_path(x, y, classes, strengths, *, tolerance=TOLERANCE, last_only=False):
    """One (coef (K, D), intercept (K,)) in the original space per strength, each fit starting from the one before."""
    mean, scale = _preprocessing(x)
    x, basis, spectrum = _rotate((x - mean) / scale)
    if not last_only:  # a sweep only ranks strengths: single precision is twice as fast
        x, spectrum = x.astype(np.float32), spectrum.astype(np.float32)
    weights, path = np.zeros((x.shape[1] + 1, classes), x.dtype), []
    for strength in strengths:
        final = tolerance if not last_only or strength == strengths[-1] else _SWEEP_TOLERANCE
        weights = solve(x, y, strength, start=weights, spectrum=spectrum, tolerance=final)
        coef = (basis @ weights[:-1] if basis is not None else weights[:-1]).T / scale  # (K, D)
        path.append((coef, weights[-1] - coef @ mean))
    return path


def _preprocessing(x):
    """Mean (D,) and scale (D,) of the class's docstring."""
    mean, variance = x.mean(axis=0), x.var(axis=0)
    if not variance.any():
        return mean, np.ones_like(mean)
    scale = np.sqrt(variance + variance.mean())
    return mean, scale * np.sqrt((variance / scale**2).sum())


def _rotate(x):
    """x in another orthonormal basis, in which its Gram matrix is diagonal: the optimum rotates along.

    With fewer examples than features the basis spans the examples only, which is exact too: W of the optimum lies in
    their span. Returns x (N, R), the basis (D, R) or None for the old one, and the diagonal of x^T x / N, (R,).
    """
    if min(x.shape) > _ROTATE_UP_TO:
        return x, None, np.einsum("nd,nd->d", x, x) / len(x)
    basis = None
    if len(x) < x.shape[1]:
        basis, triangle = np.linalg.qr(x.T)  # (D, N), (N, N)
        x = triangle.T
    spectrum, turn = np.linalg.eigh(x.T @ x)
    return x @ turn, turn if basis is None else basis @ turn, np.maximum(spectrum, 0) / len(x)


# Few labels ----------------------------------------------------------------------------------------------------------

FewShotScore = collections.namedtuple("FewShotScore", "mean sd draws")


def few_shot(train, test, *, shots=(1, 5, 10, None), draws=10, seed=0, probe=None):
    """Test accuracy of a probe that is given few labels of each class.

    The draws depend on the labels, `seed` and nothing else, so that different representations of one dataset see the
    same labelled images (paired), and a draw's 5 labels contain its 1.

    Args:
        train: `Features` with labels, from which the labelled examples are drawn.
        test: `Features` with labels.
        shots: labels a class; None for all of `train`.
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
    few_shot(train, test, shots=(1, None))[1].mean
    ```
    """
    probe = LinearProbe() if probe is None else probe
    for name, value in {"shots": [shot for shot in shots if shot is not None] or 1, "draws": draws}.items():
        if not all(isinstance(number, int | np.integer) and number >= 1 for number in np.atleast_1d(value).tolist()):
            raise ValueError(f"`{name}` should be positive integers. Received: {value!r}.")
    _, labels = _inputs(train, None)
    classes, sizes = np.unique(labels, return_counts=True)
    most = max((shot for shot in shots if shot is not None), default=0)
    if most > sizes.min():
        raise ValueError(
            f"`shots` should be at most {sizes.min()}, the examples of class {classes[sizes.argmin()]}. "
            f"Received: {most}."
        )

    def accuracy(chosen):
        return type(probe)(**probe.get_params()).fit(train.subset(chosen)).score(test)

    orders = []  # a draw: for each class its examples in random order
    for draw in range(draws):
        rng = np.random.default_rng([seed, draw])
        orders.append([rng.permutation(np.flatnonzero(labels == label)) for label in classes])
    scores = {}
    for shot in shots:
        if shot is None:
            found = [accuracy(slice(None))]
        else:
            found = [accuracy(np.sort(np.concatenate([order[:shot] for order in draw]))) for draw in orders]
        sd = float(np.std(found, ddof=1)) if len(found) > 1 else 0.0
        scores[shot] = FewShotScore(float(np.mean(found)), sd, len(found))
    return scores
