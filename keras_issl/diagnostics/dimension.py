"""The dimension advisor: what a wider representation would buy, and whether it is the width that is missing."""

import dataclasses

import numpy as np

from keras_issl.diagnostics.cover import cover_curve, whole
from keras_issl.diagnostics.geometry import view_array
from keras_issl.diagnostics.idealness import CLASSES, STRENGTH, draw_tasks, idealness, listed, random_projections
from keras_issl.diagnostics.sentences import SOLVED, sentences
from keras_issl.diagnostics.separability import factor, separable
from keras_issl.probes import threads

STRENGTHS = (0.1, 1.0, 100.0, 1e4, None)  # other penalties than the default; None: an exact separator
_FULL = 0.9  # share of the possible dimensions from which a representation uses its width
_FEWEST_VIEWS = 4
_WIDER = (2, 4)


@dataclasses.dataclass(frozen=True)
class DimensionAdvice:
    """What limits the tasks that a linear probe solves, and what more dimensions would change.

    Attributes:
        limit: the largest of `losses`: `"invariance"` (views of one image differ too much), `"penalty"` (another one
            would do better) or, of the structure, `"width"` (too few dimensions) or `"rank"` (they are not used); or
            `"none"` (nothing is lost) or `"unknown"` (too few images or views to tell).
        summary: tuple of sentences, each with its evidence, the verdict first.
        points: `IdealnessPoint`s of random projections to fewer dimensions and of the representation itself.
        predictions: dict from 2 D and 4 D to (accuracy, share of tasks solved or `None`) that are expected there.
        dim: D.
        rank: principal directions of the images along which views of them agree more than by chance.
        classes: equivalence classes n.
        losses: dict of the parts of 1 - accuracy: `"penalty"` (what another penalty wins), `"invariance"` (what is won
            if all views of an image coincide as well) and `"structure"` (the rest: width or rank).

    Example:

    >>> advice = keras_issl.diagnostics.advise_dimension(views, tasks=10)
    >>> [row[0] for row in advice.table()[1]]
    ['1', '2', '4', '8', '16', '32']
    """

    limit: str
    summary: tuple
    points: tuple
    predictions: dict
    dim: int
    rank: int
    classes: int
    losses: dict

    def table(self):
        """(header, rows) of strings: a row for each dimension, narrower ones measured and wider ones extrapolated."""
        rows = [
            (
                f"{p.dim:,}",
                "measured" if p.dim == self.dim else "measured, random projection",
                f"{100 * p.accuracy:.1f} ± {100 * p.accuracy_sd:.1f} %",
                f"{100 * p.solved:.0f} % ({100 * p.solved_low:.0f}–{100 * p.solved_high:.0f} %)",
                f"{100 * p.separable:.0f} %",
                f"{100 * p.cover:.0f} %",
            )
            for p in self.points
        ]
        for dim, (accuracy, solved) in self.predictions.items():
            solved = "" if solved is None else f"{100 * solved:.0f} %"
            cover = f"{100 * cover_curve(self.classes, dim):.0f} %"
            rows.append((f"{dim:,}", "extrapolated", f"{100 * accuracy:.1f} %", solved, "", cover))
        return ("dim", "how", "accuracy", "solved (95 %)", "separable", "Cover, if views agreed"), tuple(rows)


def advise_dimension(views, *, dims=None, classes=None, train_views=None, tasks=50, seed=0, name=None):
    """Says what a wider representation would buy a linear probe on tasks that are invariant to the augmentations.

    Narrower versions are random projections. They keep the representation's rank (up to their width), general position
    and the ratio of distances within and between images, so they are what an encoder of the same quality and less
    width would give. Leading principal components would answer another question, namely how few directions hold the
    variance: a projection on them is better than a narrow encoder.

    What is lost at full width, 1 - accuracy, is split in three by changing one thing after the other. First the probe's
    penalty: the best of six, an exact separator among them, on the same views. Then the views: each is replaced by its
    image's mean over all views, in the directions along which views agree, and an exact separator is asked. What is
    still wrong is structure: a lack of width if those directions are nearly all that there can be, min(D, n - 1), and
    else of rank.

    Views agree along the principal directions (of the images' means over half of the views) whose coordinates
    correlate with those of the other half: by 4 standard errors alone, or, as a small signal is spread over many,
    together with all directions of less variance by 3. Their number can only be trusted with at least 2 D images: with
    fewer it is a lower bound, and no verdict is built on it. Nor is any on fewer than 4 views.

    Args:
        views: `Views`, or an array (V, N, D): V augmented views of N images.
        dims: numbers of dimensions to measure; D/8, D/4, D/2 and D by default.
        classes: equivalence classes n; the largest of 16, 64 and 256 that the images suffice for by default, whatever
            D is, so that encoders of any width are asked the same. The images of a training set are many more: take the
            largest n for which you want every task solved.
        train_views: views to train on; half of them by default.
        tasks: random tasks for each number of dimensions.
        seed: of tasks and projections.
        name: of the representation.

    Returns:
        `DimensionAdvice`. Predicted accuracies go on by the mean gain of the last two measured doublings (not at all
        where nothing or the rank is the limit); where views agree well, that leans low close to n - 1 dimensions.
        Shares solved are predicted only where width is the limit and views agree well enough that 4 D dimensions would
        solve at least half of the tasks: Cover's curve for n in m times the rank, times the share of what it allows
        that is solved for n / m classes on fresh views, to the power m as m times as many images must be right.

    Raises:
        ValueError: as `idealness` and `random_projections`.

    Example:

    ```python
    views = keras_issl.diagnostics.random_projections(keras_issl.diagnostics.one_hot(64, 4), 24)
    keras_issl.diagnostics.advise_dimension(views, classes=64).limit  # "width"
    ```
    """
    array = view_array(views)
    count, images, dim = array.shape
    n = max([c for c in CLASSES if c <= images], default=images) if classes is None else classes
    k = max(1, count // 2) if train_views is None else train_views
    whole("classes", n, 2, images)
    whole("train_views", k, 1, count - 1)
    dims = [max(1, dim // part) for part in (8, 4, 2)] if dims is None else list(listed(dims))
    for width in dims:
        whole("dims", width, 1, dim)
    options = {"classes": (n,), "train_views": (k,), "tasks": tasks, "seed": seed, "name": name}
    points = []
    for width in sorted({*dims, dim}):
        projected = random_projections(views, width, seed) if width != dim else views
        points += idealness(projected, **options).points
    now = points[-1]

    with threads.one():
        drawn = list(draw_tasks(n, images, tasks, seed))
        strength, best = _best_penalty(array, k, drawn, now)
        directions = _agreeing(array)
        coinciding = _without_noise(array, directions, drawn)
    rank = len(directions)
    ideal = max(coinciding, best)  # what fresh views reach needs no more structure
    losses = {"penalty": best - now.accuracy, "invariance": ideal - best, "structure": 1 - ideal}
    limit = _limit(losses, now, rank, images, count)
    predictions = _predictions(
        limit, points, rank, lambda m: idealness(views, **options | {"classes": (max(2, n // m),)})
    )
    facts = {"images": images, "views": count, "strength": strength, "default": classes is None}
    summary = sentences(limit, points, rank, losses, predictions, **facts)
    return DimensionAdvice(limit, summary, tuple(points), predictions, dim, rank, int(n), losses)


def _limit(losses, now, rank, images, views):
    """The verdict's name."""
    if now.solved >= SOLVED:
        return "none"
    if views < _FEWEST_VIEWS:
        return "unknown"
    largest = max(losses, key=losses.get)
    if largest != "structure":
        return largest
    if rank == 0 and now.rank > 0:  # nothing but noise
        return "invariance"
    if rank >= now.n - 1 or cover_curve(now.n, rank) >= SOLVED:
        return "invariance" if losses["invariance"] >= losses["penalty"] else "penalty"
    if images < 2 * now.dim:
        return "unknown"
    return "width" if rank >= _FULL * min(now.dim, now.n - 1) else "rank"


def _best_penalty(array, k, drawn, now):
    """The C, or None, with the highest accuracy on fresh views, and that accuracy.

    Args:
        array: (V, N, D).
        k: views to train on.
        drawn: images (n,) and signs (T', n), as `draw_tasks` yields them.
        now: the default's `IdealnessPoint`.
    """
    best = STRENGTH, now.accuracy
    for strength in STRENGTHS if now.separable else STRENGTHS[:-1]:
        right = []
        for images, signs in drawn:
            x, fresh = (part[:, images].reshape(-1, array.shape[2]) for part in (array[:k], array[k:]))  # (M, D)
            found = separable(x, np.tile(signs, k), strength=None if strength is None else strength / k)
            values = (found if strength is None else found.regularized).decision_function(fresh)  # (T', M)
            right.append((values * np.tile(signs, len(array) - k) > 0).mean(axis=1))
        best = max(best, (strength, float(np.concatenate(right).mean())), key=lambda pair: pair[1])
    return best


def _agreeing(array):
    """Directions (R, D) along which views of an image agree more than by chance: see `advise_dimension`."""
    count, images, _ = array.shape
    first, second = array[: count // 2].mean(axis=0), array[count // 2 :].mean(axis=0)  # (N, D)
    _, _, left, _, right = factor(first)  # (N, R), (R, D)
    if not len(right):
        return right
    other = (second - second.mean(axis=0)) @ right.T  # (N, R)
    correlation = (left * other).sum(axis=0) / np.maximum(np.linalg.norm(other, axis=0), 1e-30)  # (R,)
    # Independent values correlate by 0 ± 1 / sqrt(N); of m of them together the mean does by 1 / sqrt(N m).
    errors = np.sqrt(images) * correlation
    rest = np.cumsum(errors[::-1])[::-1] / np.sqrt(np.arange(len(right), 0, -1))  # (R,): directions j and on
    last = np.flatnonzero(rest > 3).max(initial=-1)
    # With few images no correlation is 4 standard errors: 0.9 then is as good as any.
    return right[(np.arange(len(right)) <= last) | (errors > min(4, 0.9 * np.sqrt(images)))]


def _without_noise(array, directions, drawn):
    """Mean accuracy of exact separators if all views of an image coincided with their mean in these directions."""
    if not len(directions):
        return 0.5
    means = array.mean(axis=0, dtype=np.float64) @ directions.T  # (N, R)
    right = []
    for images, signs in drawn:
        right.append((separable(means[images], signs).decision_function(means[images]) * signs > 0).mean(axis=1))
    return float(np.concatenate(right).mean())


def _predictions(limit, points, rank, of_fewer_classes):
    """dict from 2 D and 4 D to (accuracy, share solved or None)."""
    now, narrower = points[-1], [p for p in points[:-1] if 4 * p.dim >= points[-1].dim] or points[-2:-1]
    if limit in ("none", "rank") or not narrower:
        return {m * now.dim: (now.accuracy, now.solved if limit == "none" else None) for m in _WIDER}
    doublings = np.log2(now.dim / narrower[0].dim)
    gain = max(0.0, now.accuracy - narrower[0].accuracy) / doublings
    accuracy = {m: min(1.0, now.accuracy + gain * np.log2(m)) for m in _WIDER}
    solved = dict.fromkeys(_WIDER)
    if limit == "width":
        for m in _WIDER:
            fewer = of_fewer_classes(m).points[0]
            allowed = float(cover_curve(fewer.n, rank))
            kept = min(1.0, fewer.solved / allowed) ** m if allowed > 1 - SOLVED else 1.0
            solved[m] = max(now.solved, float(cover_curve(now.n, m * rank)) * kept)
        if solved[_WIDER[-1]] < 0.5:  # it is the views that keep tasks from being solved without an error
            solved = dict.fromkeys(_WIDER)
    return {m * now.dim: (float(accuracy[m]), solved[m]) for m in _WIDER}
