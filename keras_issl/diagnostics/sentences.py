"""What the dimension advisor says, in words: the verdict first, then its evidence."""

import numpy as np

from keras_issl.diagnostics.cover import cover_curve
from keras_issl.diagnostics.idealness import CLASSES, STRENGTH

SOLVED = 0.95  # share of tasks from which nothing is left to gain


def sentences(limit, points, rank, losses, predictions, *, images, views, strength, default):
    """A tuple of sentences for `DimensionAdvice`.

    Args:
        limit: As there.
        points: As there.
        rank: As there.
        losses: As there.
        predictions: As there.
        images: N.
        views: V.
        strength: The best C on fresh views, or None for an exact separator.
        default: Whether the number of classes is the default.
    """
    now = points[-1]
    found = [_verdict(limit, now, rank, images, views, strength)]
    found.append(
        f"Asked were {now.tasks} random tasks: each gives {now.n:,} images ({now.n:,} equivalence classes) one of two "
        f"labels by a coin. With {now.dim:,} dimensions a linear probe gets {percent(now.accuracy, 1)} of fresh views "
        f"right (chance: 50 %), and solves {percent(now.solved)} of the tasks without an error."
    )
    if now.accuracy < 1:
        found.append(
            f"Of the {100 * (1 - now.accuracy):.1f} points of accuracy that are missing, views of an image that "
            f"disagree cost {100 * losses['invariance']:.1f}, too few directions {100 * losses['structure']:.1f} (they "
            f"would be missing even if the views coincided), and the probe's penalty "
            f"{100 * losses['penalty']:.1f} (another one wins them)."
        )
    if rank == 0:
        found.append("Different views of an image agree along no direction more than by chance.")
    else:
        least = "at least " if images < 2 * now.dim and rank < now.dim else ""
        tail = f", but not well enough to tell {now.n:,} images apart" if limit == "invariance" else ""
        agreeing = f"along {least}{rank:,} of {now.dim:,} directions{tail}"
        found.append(f"Different views of an image agree more than by chance {agreeing}.")
    needed = int(np.argmax(cover_curve(now.n, np.arange(now.n)) >= SOLVED))
    if limit in ("width", "rank") and rank < needed:
        found.append(f"{needed:,} such directions would let {percent(SOLVED)} of the tasks be solved (Cover's curve).")
    if limit not in ("none", "rank") and len(points) > 1:
        found.append(_outlook(points, predictions, limit))
    if default and images >= min(CLASSES):
        found.append(
            f"{now.n:,} classes are the largest of {CLASSES[0]}, {CLASSES[1]} and {CLASSES[2]} that {images:,} images "
            "suffice for; more classes need more dimensions."
        )
    return tuple(found)


def _verdict(limit, now, rank, images, views, strength):
    """The first sentence."""
    if limit == "unknown":
        few = f"more views are needed: {views} of each image, at least 4"
        if views >= 4:
            few = f"more images are needed: {images:,}, at least {2 * now.dim:,} for {now.dim:,} dimensions"
        return f"It cannot be told yet what limits these features: {few}."
    penalty = "without a penalty" if strength is None else f"with C = {strength:g}"
    return {
        "none": f"{now.dim:,} dimensions are enough for {now.n:,} classes: a wider representation buys nothing here. "
        "Ask for more classes to see where it would.",
        "width": f"The width is the limit: {now.n:,} classes need more than {now.dim:,} dimensions.",
        "rank": f"Not the width first: only {rank:,} of {now.dim:,} directions tell images apart, so more dimensions "
        "buy nothing until those that there are get used.",
        "invariance": "Not the width first: the views of an image disagree. More training, more views in training or "
        "coarser augmentations help more than dimensions.",
        "penalty": f"Not the width first: a probe {penalty} instead of C = {STRENGTH:g} gets more right.",
    }[limit]


def _outlook(points, predictions, limit):
    """What doublings bought, and would buy."""
    steps = [f"{100 * (b.accuracy - a.accuracy):+.1f}" for a, b in zip(points, points[1:], strict=False)]
    widths = ", ".join(f"{p.dim:,}" for p in points[:-1]) + f" to {points[-1].dim:,}"
    told = f"From {widths} dimensions (random projections), accuracy changed by {', '.join(steps)} points"
    (twice, (first, solved)), (four, (second, most)) = predictions.items()
    told += f"; if that goes on, {twice:,} dimensions would give about {percent(first, 1)} and {four:,} "
    told += f"{percent(second, 1)} accuracy."
    if most is not None:
        told += f" They would solve about {percent(solved)} and {percent(most)} of the tasks without an error."
    elif limit == "width":
        told += " Tasks without a single error would stay rare: for those the views must agree better."
    return told


def percent(share, digits=0):
    """A share as text: `95 %`."""
    return f"{100 * share:.{digits}f} %"
