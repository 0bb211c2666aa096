"""Plain verdicts on features: collapse, invariance, rank, augmentation leak, idle dimensions."""

import dataclasses

import numpy as np

from keras_issl.diagnostics.knobs import advice
from keras_issl.diagnostics.leak import DIRECTIONS

# Each threshold, and why it stands there. Between the two numbers of a pair lies a warning.
NOT_INVARIANT = (0.5, 0.9)  # within / between: trained encoders 0.1 to 0.3, random ones 0.5 to 0.8; 1 is chance
FEW_DIRECTIONS = (0.2, 0.1)  # of the possible rank: trained encoders 0.27 to 0.4; below a tenth nine of ten are idle
LEAK = (0.05, 0.2)  # of all variance along nuisance directions: 0 for trained encoders, 0.4 for a random one
VIEW_ORDER = 0.01  # of all variance; about 0 where views are drawn independently
CHANCE = 20  # within-image variance over N: once by chance on average, 20 times in one of 100,000 (chi-squared)
PREDICTED = 0.5  # of an augmentation parameter's variance: more known than not
IDLE = (0.05, 0.5)  # of the dimensions dead or duplicated: beyond a stray few; half of the width
FIRING_IMAGES = 200  # a dimension that one image in fifty moves stands still in as many once in fifty times
LEAST_IMAGES = 16  # for duplicated dimensions: of fewer images two dimensions agree by chance

LEVELS = ("problem", "warning", "good")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A plain judgement.

    Attributes:
        level: `"good"`, `"warning"` or `"problem"`.
        title: what is the case.
        evidence: the numbers that say so.
        advice: the knob to turn; may be empty.

    Example:

    >>> found = keras_issl.diagnostics.diagnose(views).verdicts[0]  # problems stand first
    >>> found.level, found.title
    ('problem', 'Not invariant: views of one image are about as far apart as different images')
    """

    level: str
    title: str
    evidence: str
    advice: str


def percent(share, digits=0):
    """The share in words: 0.171 is 17 %."""
    return f"{100 * share:.{digits}f} %"


def level_of(value, thresholds):
    """Good, a warning or a problem; thresholds that fall say that small values are bad."""
    sign = 1 if thresholds[0] < thresholds[1] else -1
    return LEVELS[2 - sum(sign * value >= sign * threshold for threshold in thresholds)]


def collapse(found):
    """Are all features equal?"""
    if found.constant:
        yield Verdict(
            "problem",
            "Complete collapse: all images have the same features",
            f"The variance is {found.relative_variance:.1g} of the mean square: rounding.",
            advice(
                "Lower the learning rate or warm it up longer; check that the images reach the encoder in [0, 255].",
                "collapse",
                found.objective,
            ),
        )


def offset(found):
    """Do all features share a large part, beside which they hardly differ?"""
    if not found.offset:
        return
    half = found.relative_variance <= found.half_rounding
    yield Verdict(
        "warning",
        "Large common offset: beside it, images hardly differ",
        f"The variance is {found.relative_variance:.1g} of the mean square."
        + (" The features have the digits of half precision, whose rounding alone may be as much." if half else ""),
        "Centre the features before cosines, nearest neighbours and unscaled probes; `LinearProbe` standardizes them. "
        + ("Extract them in float32 to tell an offset from a complete collapse. " if half else "")
        + "The other verdicts are on centred features.",
    )


def invariance(found):
    """Do views of one image lie together?"""
    if found.constant:
        return
    ratio = found.invariance.ratio
    level = level_of(ratio, NOT_INVARIANT)
    title = {
        "good": "Invariant: views of one image lie together",
        "warning": "Weakly invariant: views of one image lie far apart",
        "problem": "Not invariant: views of one image are about as far apart as different images",
    }[level]
    yield Verdict(
        level,
        title,
        f"Mean squared distance within images over between images: {ratio:.3g} (cosine: {found.cosine.ratio:.3g}); "
        "0 is invariant, 1 chance.",
        "To get by with fewer labels, pre-train with `augmentation.coarser(2)`: fewer, larger equivalence classes."
        if level == "good"
        else advice(
            "Train longer; use the augmentation that the encoder was trained with, or a milder one.",
            "invariance",
            found.objective,
        ),
    )


def rank(found):
    """How many directions do images differ along?"""
    if found.constant or (not found.image_rank and found.invariance.ratio >= NOT_INVARIANT[1]):
        return  # images that are no further apart than views use no direction, which is said already
    level = level_of(found.image_rank / found.needed, FEW_DIRECTIONS)
    enough = f"; {found.needed} directions suffice for the {found.needed + 1} learned classes in use"
    needed = enough if found.needed < found.limit else ""
    # Of N images no rank above N - 1 can be seen, so that a wider encoder's could be small all the same.
    far = f", as far as {found.images} images can tell" if found.needed == found.limit < found.dim else ""
    title = {
        "good": f"The dimensions are used{far}",
        "warning": "Few directions are used",
        "problem": "Dimensional collapse: images differ in a few directions",
    }[level]
    yield Verdict(
        level,
        title,
        f"Effective rank of the images {found.image_rank:.3g} of at most {found.limit}, for {found.dim} dimensions and "
        f"{found.images} images{needed}; the first direction has {percent(found.variances[0])} of their variance. With "
        f"the noise of the views it is {found.rank:.3g} (RankMe).",
        ""
        if level == "good"
        else advice(
            "A linear probe solves every task on n classes only in n - 1 directions. Lower the learning rate.",
            "rank",
            found.objective,
            "If it stays, a smaller feature_dim loses nothing.",
        ),
    )


def leaks(found):
    """Do the features tell how an image was augmented?"""
    if found.constant:
        return
    told, order = found.leak.parameters, found.leak.view_order
    enough = found.images >= found.leak_images
    known = [] if told is None else np.flatnonzero(told > PREDICTED).tolist()
    ordered = order > max(VIEW_ORDER, CHANCE * found.invariance.ratio / found.images)
    level = level_of(found.leak.share, LEAK) if enough else "good"
    if level == "good" and (ordered or known):
        level = "warning"
    if level == "good" and not enough:
        yield Verdict(
            "warning",
            "Too few images to look for an augmentation leak",
            f"{found.images} images; directions that tell of the view rather than of the image are seen from "
            f"{found.leak_images} images on.",
            "Diagnose more images.",
        )
        return
    evidence = [f"the number of the view explains {percent(order, 2)} of all variance."]
    if enough:
        share = f"{percent(found.leak.share, 1)} of all variance lies within images along directions that say more of "
        share += "the view than of the image"
        if found.dim > DIRECTIONS:
            share += f", of the {DIRECTIONS} in which views differ most"
        evidence = [f"{share}; the number of the view explains {percent(order, 2)}."]
    if told is not None and len(told):
        numbers = f" (numbers above {percent(PREDICTED)}: {', '.join(map(str, known))})" if known else ""
        best = f"A linear map predicts {percent(told.max())} of the best known augmentation parameter's variance"
        evidence.append(f"{best}{numbers}.")
    if level == "good" and found.invariance.ratio >= NOT_INVARIANT[0]:
        return  # views that lie as far apart as this are told of already, and where they differ most is their noise
    looked = f" of the {DIRECTIONS} in which views differ most" if found.dim > DIRECTIONS else ""
    good = f"No augmentation leak: no direction{looked} tells how an image was augmented"
    text = " ".join(evidence)
    yield Verdict(
        level,
        good if level == "good" else "Augmentation leak: the features tell how an image was augmented",
        text[0].upper() + text[1:],
        ""
        if level == "good"
        else advice(
            "Train longer.",
            "leak",
            found.objective,
            "If a task needs that information, the augmentation is too coarse for it: switch that operation off. If "
            "the view's number is predictable, give all views the same augmentation.",
        ),
    )


def idle(found):
    """Do dimensions carry nothing of their own?"""
    dims = found.dimensions
    if found.constant or found.images < LEAST_IMAGES:
        return
    enough = found.images >= FIRING_IMAGES
    level = level_of(dims.share if enough else len(dims.duplicated) / found.dim, IDLE)
    kinds = "dead or duplicated dimensions" if enough else "duplicated dimensions"
    far = "" if enough or not len(dims.dead) else f"; too few images ({found.images}) to call the others dead"
    yield Verdict(
        level,
        f"Almost no {kinds}" if level == "good" else kinds[0].upper() + kinds[1:],
        f"Of {found.dim} dimensions {len(dims.dead)} do not vary and {len(dims.duplicated)} repeat another one "
        f"({percent(dims.share, 1)}){far}.",
        ""
        if level == "good"
        else "Lower the learning rate or weight decay (dead ReLUs); a smaller feature_dim would lose nothing.",
    )
