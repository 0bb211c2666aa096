"""`diagnose`: every measure beside what it should be, and plain verdicts with their evidence and the knob to turn."""

import dataclasses

import numpy as np

from keras_issl.diagnostics import geometry, spectrum
from keras_issl.diagnostics.class_judges import classes
from keras_issl.diagnostics.judges import LEVELS, Verdict, collapse, idle, invariance, leaks, offset, rank
from keras_issl.diagnostics.measures import Found, rows
from keras_issl.diagnostics.teacher import check_probabilities, class_usage

JUDGES = (collapse, offset, invariance, rank, leaks, idle, classes)


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found.

    Attributes:
        measures: `Measure`s.
        verdicts: `Verdict`s, problems first.
        spectrum: shares of the variance between images along their principal directions, descending, (min(N, D),).
        within: (S,) squared distances of single pairs of views of one image.
        between: (S,) the same for different images.
        class_balance: (C,) mean probabilities of the classes; or None.
        dims: `"views"`, `"images"`, `"features"`, and `"classes"` or None.
        protocol: how it was measured, a dict that JSON can hold.

    Example:

    >>> found = keras_issl.diagnostics.diagnose(views)
    >>> found.dims["images"], 0 < found.measure("effective rank") <= 8, found.level
    (64, True, 'problem')
    """

    measures: tuple
    verdicts: tuple
    spectrum: np.ndarray
    within: np.ndarray
    between: np.ndarray
    class_balance: np.ndarray | None
    dims: dict
    protocol: dict

    def measure(self, name):
        """The value of the measure of that name.

        Raises:
            ValueError: no such measure; of too few images some are left out.
        """
        found = {measure.name: measure.value for measure in self.measures}
        if name not in found:
            raise ValueError(f"`name` should be one of {sorted(found)}. Received: {name!r}.")
        return found[name]

    @property
    def level(self):
        """The worst level of all verdicts."""
        return next(level for level in LEVELS if any(verdict.level == level for verdict in self.verdicts))


def diagnose(views, *, probabilities=None, parameters=None, objective=None, max_images=4096, seed=0):
    """Says what is good and what is wrong with a representation, without labels.

    Args:
        views: `Views`, or features (V, N, D): V augmented views of each of N images.
        probabilities: (V, N, C) class probabilities of the same views, as from `assignments`, for DISSL.
        parameters: (V, N, P), what each view was made with, if known; see `augmentation_leak`.
        objective: name of the one that the encoder was trained with, e.g. `"BYOL"` or `"barlow_twins"`: the advice is
            then for it alone.
        max_images: of more images, as many are drawn.
        seed: of all draws.

    Returns:
        `Diagnosis`.

    Raises:
        ValueError: fewer than two views or images, NaN or infinity, probabilities or parameters that do not fit.

    Example:

    >>> rng = np.random.default_rng(0)
    >>> images = np.eye(16)[np.arange(128) % 16]  # (N, D)
    >>> diagnose(images + 0.01 * rng.normal(size=(4, 128, 16))).level
    'good'
    """
    if isinstance(max_images, bool) or not isinstance(max_images, int | np.integer) or max_images < 2:
        raise ValueError(f"`max_images` should be an integer, at least 2. Received: {max_images!r}.")
    array = geometry.view_array(views)
    total = array.shape[1]
    if probabilities is not None:
        probabilities = check_probabilities(probabilities, images=total)
    if total > max_images:
        chosen = np.sort(np.random.default_rng(seed).choice(total, max_images, replace=False))
        array = array[:, chosen]
        probabilities = None if probabilities is None else probabilities[:, chosen]
        parameters = None if parameters is None else np.asarray(parameters)[:, chosen]
    usage = None if probabilities is None else class_usage(probabilities)
    array, exponent = spectrum.scaled(array)  # no measure changes, and no square overflows
    found = Found(array, usage, parameters, seed, objective)
    judged = [verdict for judge in JUDGES for verdict in judge(found)]
    v, n, d = array.shape
    if all(verdict.level == "good" for verdict in judged):
        known = usage is not None and usage.classes > 1
        title = "No collapse, leak or imbalance found" if known else "No collapse or leak found"
        unknown = "" if known else "; the balance of learned classes was not looked at, for none were given"
        judged.insert(0, Verdict("good", title, f"In {v} views of {n:,} images{unknown}.", ""))
    return Diagnosis(
        measures=rows(found),
        verdicts=tuple(sorted(judged, key=lambda verdict: LEVELS.index(verdict.level))),
        spectrum=found.variances,
        within=_unscaled(found.invariance.within_samples, exponent),
        between=_unscaled(found.invariance.between_samples, exponent),
        class_balance=None if usage is None else usage.balance,
        dims={"views": v, "images": n, "features": d, "classes": None if usage is None else usage.classes},
        protocol={
            "images": f"{n} of {total}",
            "views": v,
            "distance": "squared Euclidean, over all pairs; histograms of 4,096 drawn pairs",
            "spectrum": "variance between images, as the halves of their views share it",
            "effective rank": "the first view of each image, centred",
            "uniformity": f"all pairs of {min(n, geometry.ROWS)} images, one drawn view of each",
            "simplex": f"{found.etf.classes} {found.etf_of}" if found.etf else "none",
            "seed": seed,
        },
    )


def _unscaled(squared, exponent):
    """Squared distances of features before they were scaled; at most the largest number."""
    with np.errstate(over="ignore", under="ignore"):
        return np.minimum(np.ldexp(squared, 2 * exponent), np.finfo(float).max)
