"""What `diagnose` measures: everything that the judges look at, and the rows of the table of measures."""

import dataclasses
import math

import numpy as np

from keras_issl.diagnostics import geometry, leak, spectrum

IMAGES_A_CLASS = 2  # to see how evenly classes are used: as many images leave 14 % of equal classes empty, one 37 %
IMAGES_A_USED_CLASS = 4  # to have seen nearly all classes in use: as many images miss 2 % of equal ones
OFFSET = 1e-6  # variance over mean square: cosines of 0.999999, a thousand times what images differ by
ROUNDING = 8  # units of the last digit by which equal features differ after many operations


@dataclasses.dataclass(frozen=True)
class Measure:
    """A number, what it should be, and what it means.

    Attributes:
        name: of the quantity.
        value: of the representation.
        reference: what the best representation has, or the most that there can be; the meaning says which.
        meaning: one sentence.

    Example:

    >>> found = keras_issl.diagnostics.diagnose(views).measures[0]
    >>> found.name, found.reference
    ('invariance ratio', 0.0)
    """

    name: str
    value: float
    reference: float
    meaning: str


class Found:
    """All measures of features (V, N, D), as the judges need them.

    Args:
        array: (V, N, D), checked.
        usage: `ClassUsage` of the same images, or None.
        parameters: (V, N, P), or None.
        seed: of all draws.
        objective: name of the one that the encoder was trained with, or None.
    """

    def __init__(self, array, usage, parameters, seed, objective=None):
        v, n, d = array.shape
        self.images, self.dim, self.usage, self.objective = n, d, usage, objective
        self.invariance = geometry.invariance(array, seed=seed)
        self.cosine = geometry.invariance(array, distance="cosine", samples=0)
        singular = spectrum.singular_values(array[0])
        self.rank, self.participation = spectrum.rank_of(singular), spectrum.participation_of(singular)
        variances = spectrum.image_variances(array)
        self.variances = variances / variances.sum() if variances.any() else variances
        self.image_rank = spectrum.rank_of(np.sqrt(self.variances))
        self.limit = self.needed = max(1, min(d, n - 1))
        # Of fewer images the classes in use are as many as the images make them, and say nothing of the teacher.
        grouped = usage is not None and 2 <= usage.used <= n / IMAGES_A_USED_CLASS
        if grouped:
            # Features that tell the class and nothing else have no more directions than a simplex of the classes.
            self.needed = min(self.limit, usage.used - 1)
        self.dimensions = spectrum.dimensions(array, seed=seed)
        self.leak = leak.augmentation_leak(array, parameters=parameters, seed=seed)
        self.leak_images = leak.IMAGES
        self.alignment = geometry.alignment(array)
        self.uniformity = geometry.uniformity(array, seed=seed)
        square = sum(np.square(block).sum() for block in geometry.image_blocks(array)) / (v * n)
        # Half the mean squared distance of two images is the variance.
        self.relative_variance = self.invariance.between / 2 / square if square else 0.0
        digit, self.half = last_digit(array)
        self.constant = not self.relative_variance > max((ROUNDING * digit) ** 2, 1e-24)
        # Features of half precision that differ by its rounding may be equal, or may not: then it is said.
        self.half_rounding = (ROUNDING * self.half) ** 2
        self.offset = not self.constant and self.relative_variance <= max(OFFSET, self.half_rounding)
        self.etf, self.etf_of = None, "images"
        if grouped:
            self.etf, self.etf_of = geometry.etf_distance(array, usage.assigned), "learned classes"
        elif not self.constant:
            # More images than a simplex in D dimensions has corners could not be one.
            most = min(n, d + 1, 1024)
            chosen = np.sort(np.random.default_rng(seed).choice(n, max(2, most), replace=False))
            self.etf = geometry.etf_distance(array[:, chosen])


def last_digit(array):
    """Relative size of the last digit of the type of an array (..., D), and of the half precision that it holds.

    The second is 0 where the values have more digits than half precision; values that went through it have none of the
    others: 2⁻⁷ for bfloat16, 2⁻¹⁰ for float16.
    """
    digit = float(np.finfo(array.dtype).eps)
    flat = array.reshape(-1, array.shape[-1])
    used, single = 0, True
    for row in range(0, len(flat), 1024):
        block = flat[row : row + 1024]
        values = np.ascontiguousarray(block, np.float32)
        single = single and (array.dtype == np.float32 or bool((values == block).all()))
        used |= int(np.bitwise_or.reduce(values.view(np.uint32), axis=None))
    if not single:
        return digit, 0.0
    half = next((2.0**-bits for bits in (7, 10) if not used & ((1 << (23 - bits)) - 1)), 0.0)
    return float(np.finfo(np.float32).eps), half


def rows(found):
    """The `Measure`s of a `Found`; without those that its images are too few for."""
    usage, dims, leaks = found.usage, found.dimensions, found.leak
    table = [
        ("invariance ratio", found.invariance.ratio, 0.0,
         "Mean squared distance of views of one image over that of different images: 0 invariant, 1 chance."),
        ("invariance ratio, cosine", found.cosine.ratio, 0.0, "The same for 1 - cos."),
        ("effective rank of the images", found.image_rank, float(found.limit),
         "How many directions images differ along, without the noise of their views; of at most min(D, N - 1)."),
        ("effective rank", found.rank, float(found.limit),
         "RankMe of the centred features of one view: counts directions of view noise, too."),
        ("participation ratio", found.participation, float(found.limit),
         "A rank that counts only directions of much variance."),
        ("alignment", found.alignment, 0.0, "Mean squared distance of two views on the unit sphere: 0 at best."),
        ("uniformity", found.uniformity, geometry.sphere_uniformity(found.dim),
         "How evenly images fill the unit sphere, the lower the better; the reference fills it uniformly."),
        ("dead dimensions", float(len(dims.dead)), 0.0, "Dimensions that do not vary."),
        ("duplicated dimensions", float(len(dims.duplicated)), 0.0,
         f"Dimensions that repeat another one (|correlation| ≥ {spectrum.DUPLICATE})."),
    ]  # fmt: skip
    if found.images >= found.leak_images:
        meaning = "Share of all variance within images along directions that tell of the view rather than of the image."
        table.append(("nuisance share", leaks.share, 0.0, meaning))
    table.append(("view order", leaks.view_order, 0.0, "Share of all variance that the number of the view explains."))
    if leaks.parameters is not None:
        meaning = "Greatest share of an augmentation parameter's variance that a linear map predicts."
        table.append(("predicted parameters", float(leaks.parameters.max(initial=0.0)), 0.0, meaning))
    if found.etf is not None:
        table += [
            ("simplex angle", found.etf.angle, 0.0,
             f"Mean |cos + 1/(K - 1)| of the centred means of {found.etf.classes} {found.etf_of}: 0 for a simplex."),
            ("simplex norms", found.etf.norms, 0.0, "Spread of the norms of those means over their mean."),
        ]  # fmt: skip
    if usage is not None:
        most = min(found.images, usage.classes)
        meaning = "Classes that are the most probable one of some image, of at most min(N, C)."
        table.append(("classes used", float(usage.used), float(most), meaning))
        if found.images >= IMAGES_A_CLASS * usage.classes:
            meaning = "As many equal classes are as evenly used: exp of the entropy of the assigned classes."
            table.append(("effective classes", usage.effective, float(usage.classes), meaning))
        table += [
            ("information", usage.information, usage.bound,
             "I = H(M) - E[H(q|x)], what the class tells of the image, in nats; at most log min(N, C)."),
            ("marginal entropy", usage.marginal_entropy, math.log(usage.classes),
             "H(M) in nats, at most log C, which uncertain assignments reach as well as even ones."),
            ("conditional entropy", usage.conditional_entropy, 0.0, "E[H(q|x)] in nats: 0 certain, log C uniform."),
            ("KL between views", usage.kl, 0.0, "How differently two views of an image are assigned, in nats."),
            ("view agreement", usage.agreement, 1.0, "Share of pairs of views of an image with one class."),
            ("largest class", usage.largest, 1 / most, "Share of the images in the largest class."),
        ]  # fmt: skip
    return tuple(Measure(*row) for row in table)
