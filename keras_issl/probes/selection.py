"""How a probe chooses its regularisation: on stratified held-out parts of the training set, never on test."""

import math

import numpy as np

from keras_issl.probes import engine as engines
from keras_issl.probes import rows as row_blocks
from keras_issl.probes import threads
from keras_issl.probes.base import (
    Probe,
    candidates,
    check_integer,
    class_numbers,
    example_weights,
    fold_numbers,
    inputs,
    is_number,
    sentence,
)
from keras_issl.probes.logistic import TOLERANCE, held_out_scores
from keras_issl.probes.rows import Rows, Standard, moments, spread, standard_of_large, standard_of_small

STRENGTHS = (1e-2, 1e-1, 1e0, 1e1, 1e2, 1e3)
_ACCELERATED_FROM = 10**10  # multiplications of a pass from which an accelerator is worth its latency
_SWEEP_TOLERANCE = {"few": 1e-7, "many": 1e-5}  # enough to rank strengths; few held-out examples often tie
_SINGLE_TOLERANCE = 1e-7  # what single precision can tell from the optimum
HELD_OUT_FROM = 10_000  # examples from which one held-out part is enough to choose a strength


def held_out_parts(numbers, folds, seed):
    """The parts of the class numbers (N,) that are held out in turn, each a mask (N,); none where every class is lone.

    Below 10,000 examples these are the `folds` parts of a stratified cross-validation; from there on its first part.
    Classes with one example are never held out.
    """
    dealt = fold_numbers(numbers, folds, np.random.default_rng(seed))
    parts = [dealt == part for part in range(dealt.max() + 1)]
    return parts if len(numbers) < HELD_OUT_FROM else parts[:1]


class StrengthSweep(Probe):
    """A linear probe with an L2 penalty: all strengths fitted at once without held-out parts, the best one on all.

    A subclass defines `_solve(rows, spectrum, strengths)`, which gives weights (S, K, R + 1) for `Rows`; unless it is
    `_exact` it also takes `start`, weights to begin from or None, and `tolerance`, as `logistic.solve` does.
    """

    family = "linear"
    _exact = False  # whether `_solve` does not iterate, and needs the true spectrum of the rows in their principal axes

    def __init__(
        self,
        strengths=STRENGTHS,
        *,
        folds=5,
        default_strength=10.0,
        class_weight=None,
        standardize="soft",
        engine="auto",
        seed=0,
    ):
        self.strengths = strengths
        self.folds = folds
        self.default_strength = default_strength
        self.class_weight = class_weight
        self.standardize = standardize
        self.engine = engine
        self.seed = seed

    def fit(self, x, y=None):
        """Chooses C on held-out parts of these examples, then fits all of them.

        Args:
            x: (N, D) features, or `Features` with labels.
            y: (N,) labels, integers or strings; every example needs one.

        Returns:
            self.

        Raises:
            ValueError: no examples, fewer than two classes, labels that are missing or -1, NaN or infinity, an
                argument of the constructor that is out of its range.
        """
        x, y = inputs(x, y, family=self.family)
        strengths = self._checked()
        classes, numbers = class_numbers(y)
        weights = example_weights(numbers, classes, self.class_weight)
        engine = engines.choose(self.engine)
        if self.engine == "auto" and x.size * len(classes) * len(strengths) < _ACCELERATED_FROM:
            engine = engines.choose("numpy")
        fits = _InMemory if x.size <= row_blocks.IN_MEMORY else _Streamed
        fits = fits(self, x, numbers, len(classes), weights, engine)
        parts = held_out_parts(numbers, self.folds, self.seed)
        scores = np.zeros((2, len(strengths)))
        with threads.enough_for(min(x.size, row_blocks.BLOCK["numpy"]) * len(classes) * len(strengths)):
            if len(strengths) > 1:
                for part in parts:
                    scores += fits.validate(part, strengths)
            best = self._choose(strengths, scores, parts, len(y))
            self.coef_, self.intercept_ = fits.final(best)
        self.classes_, self.n_features_in_ = classes, x.shape[1]
        return self

    def _checked(self):
        """The strengths, sorted; complains about any constructor argument that is out of its range."""
        if not (is_number(self.default_strength) and 0 < self.default_strength < math.inf):
            raise ValueError(f"`default_strength` should be a positive number. Received: {self.default_strength!r}.")
        if not (isinstance(self.standardize, bool) or self.standardize == "soft"):
            raise ValueError(f'`standardize` should be "soft", True or False. Received: {self.standardize!r}.')
        check_integer("folds", self.folds, 2)
        check_integer("seed", self.seed, 0)
        return candidates("strengths", self.strengths, lambda c: 0 < c < math.inf, "positive numbers")

    def _choose(self, strengths, scores, parts, size):
        """Sets the attributes that tell how the strength was chosen.

        Args:
            strengths: the S candidates, increasing.
            scores: (2, S): held-out examples classified correctly; and what decides between equals, more being better.
            parts: masks (N,) of the held-out parts.
            size: N.

        Returns:
            The strength: the best one, and of several the one that regularises most.
        """
        count = sum(int(part.sum()) for part in parts)
        tried = strengths if count and len(strengths) > 1 else []
        if tried:
            best = strengths[max(range(len(strengths)), key=lambda i: (scores[0, i], scores[1, i], -i))]
            whole, part = f"{len(parts)}-fold cross-validation on", f"one held-out part ({count:,} examples) of"
            how = f"{whole if len(parts) > 1 else part} the {size:,} training examples"
        elif len(strengths) == 1:
            best, how = strengths[0], "the only one given"
        else:
            best, how = float(self.default_strength), "the default: no class has a second example to hold out"
        self.selection_ = sentence("C", best, tried, how)
        self.validation_scores_ = dict(zip(tried, (scores[0] / count).tolist(), strict=True)) if tried else {}
        self.best_strength_, self.selected_ = best, {"strength": best}
        return best

    def _scores(self, block):
        return block @ self.coef_.T.astype(block.dtype) + self.intercept_


class _Fits:
    """The fits of a `StrengthSweep`: `validate` without a part, and `final` on all rows."""

    def __init__(self, probe, x, numbers, classes, weights, engine):
        self.x, self.numbers, self.classes, self.weights, self.engine = x, numbers, classes, weights, engine
        self.standardize, self.exact, self._solve = probe.standardize, probe._exact, probe._solve

    def solve(self, rows, spectrum, strengths, **iteration):
        """Weights (S, K, R + 1)."""
        return self._solve(rows, spectrum, strengths, **({} if self.exact else iteration))


class _InMemory(_Fits):
    """Fits of few values: rows in their principal axes, the sweep in single precision and the last fit in double."""

    def __init__(self, probe, x, *arguments):
        super().__init__(probe, np.asarray(x, np.float64), *arguments)
        self.last = None  # (standard, weights (S, K, R + 1)) of the last sweep

    def validate(self, part, strengths):
        """Held-out scores (2, S) of fits without the part."""
        weights = None if self.weights is None else self.weights[~part]
        standard, u = standard_of_small(self.x[~part], self.standardize, weights)
        rows = self._rows(u, ~part, weights, "float32", len(strengths))
        found = self.solve(rows, standard.spectrum, strengths, tolerance=_SWEEP_TOLERANCE["few"])
        self.last = standard, dict(zip(strengths, found, strict=True))
        return held_out_scores(self._rows(standard.apply(self.x[part]), part, None, "float32", len(strengths)), found)

    def final(self, strength):
        """(coef (K, D), intercept (K,)) of all rows."""
        standard, u = standard_of_small(self.x, self.standardize, self.weights)
        rows = self._rows(u, slice(None), self.weights, self.engine.precise, 1)
        start = None
        if self.last is not None and strength in self.last[1]:
            start = standard.weights(*self.last[0].original(self.last[1][strength]))[None]
        tolerance = TOLERANCE if rows.dtype == "float64" else _SINGLE_TOLERANCE
        return standard.original(self.solve(rows, standard.spectrum, [strength], start=start, tolerance=tolerance)[0])

    def _rows(self, u, chosen, weights, dtype, fits):
        numbers = self.numbers[chosen]
        return Rows(u, numbers, self.classes, self.engine, weights=weights, dtype=dtype, fits=fits)


class _Streamed(_Fits):
    """Fits of any number of rows: block by block, in single precision; the last fit starts from the sweep's."""

    standard, found = None, {}  # of the last sweep: its `Standard`, and weights (K, R + 1) for each strength

    def validate(self, part, strengths):
        """Held-out scores (2, S) of fits without the part."""
        index = np.flatnonzero(~part)
        self.standard = self._axes(index)
        rows = self._rows(self.standard, index, len(strengths), weights=self.weights)
        found = self.solve(rows, self.standard.spectrum, strengths, tolerance=_SWEEP_TOLERANCE["many"])
        self.found = dict(zip(strengths, found, strict=True))
        del rows  # before the next ones are made
        return held_out_scores(self._rows(self.standard, np.flatnonzero(part), len(strengths), keep=False), found)

    def final(self, strength):
        """(coef (K, D), intercept (K,)) of all rows."""
        if self.standard is None or self.exact:
            standard = self._axes(None)
        else:  # the axes of the sweep are as good
            mean, variance = moments(self.x, self.engine, None, self.weights, diagonal=True)
            scale = spread(mean, variance, self.standardize)
            standard = Standard(mean, scale, self.standard.basis, self.standard.spectrum)
        start = self.found[strength][None] if strength in self.found else None
        rows = self._rows(standard, None, 1, weights=self.weights)
        found = self.solve(rows, standard.spectrum, [strength], start=start, tolerance=_SINGLE_TOLERANCE)
        return standard.original(found[0])

    def _axes(self, index):
        return standard_of_large(self.x, self.engine, self.standardize, index, self.weights, exact=self.exact)

    def _rows(self, standard, index, fits, **options):
        return Rows(
            self.x, self.numbers, self.classes, self.engine, standard=standard, index=index, fits=fits, **options
        )
