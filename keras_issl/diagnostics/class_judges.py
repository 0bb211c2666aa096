"""Plain verdicts on the learned classes of a teacher: one class, uniform, undecided, unbalanced, not invariant."""

import math

from keras_issl.diagnostics.judges import Verdict, percent
from keras_issl.diagnostics.measures import IMAGES_A_CLASS

# Each threshold, and why it stands there. An image's assigned class is its most probable one.
ONE_CLASS = 0.1  # entropy of the assigned classes over its bound: 1.4 of 32 classes, 2.5 of 10,000
UNEVEN = 0.7  # the same: 11 of 32 classes, 630 of 10,000; as many images as classes, drawn at random, have 0.8 to 0.95
LARGEST = 0.25  # share of the images in one class, where there could be ten or more
UNIFORM = 0.9  # E[H(q|x)] over log C: a certain assignment among 32 classes has 0, a coin between two 0.2
SPREAD = 2.0  # exp E[H(q|x)], classes a view is spread over: a coin between two
UNSURE = 0.5  # mean probability of the most probable class: the others have more
CERTAIN = 1.5  # exp E[H(q|x)] up to which a class is called nearly certain: 0.4 nats
DISAGREE = 0.25  # share of pairs of views with one class: most views of an image fall elsewhere
LEAST_IMAGES = 16  # to call classes uneven: fewer collide by chance


def classes(found):
    """Verdicts on a `Found` with `usage`; none without."""
    usage = found.usage
    if usage is None or usage.classes < 2:
        return
    enough = found.images >= LEAST_IMAGES
    many = enough and found.images >= IMAGES_A_CLASS * usage.classes
    evidence = _evidence(usage, found.images)
    if usage.conditional_entropy > UNIFORM * math.log(usage.classes):
        yield Verdict(
            "problem",
            "Uniform teacher: every image belongs to every class",
            f"{evidence} The loss of a uniform teacher is (1 + β - λ) log C.",
            "Lower teacher_temperature; raise invariance_weight (β), which also asks for certain assignments; raise "
            "the learning rate or train longer if the loss never left that value.",
        )
        return
    if enough and usage.assigned_entropy < ONE_CLASS * usage.bound:
        yield Verdict(
            "problem",
            "One class: the teacher puts all images into the same class",
            evidence,
            "Raise maximality_weight (λ), at least to 1 + invariance_weight (β); lower the learning rate.",
        )
        return
    undecided = math.exp(usage.conditional_entropy) >= SPREAD or usage.confidence < UNSURE
    if undecided:
        yield Verdict(
            "warning",
            "Undecided teacher: assignments are far from certain",
            f"{evidence} The class tells {usage.information:.3g} nats about the image, of at most {usage.bound:.3g}.",
            "Train longer; lower teacher_temperature; raise invariance_weight (β).",
        )
    most = min(found.images, usage.classes)
    large = most >= 10 and usage.largest > LARGEST
    if enough and (large or usage.assigned_entropy < UNEVEN * usage.bound):
        yield Verdict(
            "warning",
            "Unbalanced classes: a few take most images",
            evidence,
            "Raise maximality_weight (λ); larger batches, which bound H(M) by log B; fewer num_classes.",
        )
    elif not many:
        needed = max(IMAGES_A_CLASS * usage.classes, LEAST_IMAGES)
        yield Verdict(
            "warning",
            "Too few images to judge the balance of the classes",
            f"{'' if undecided else evidence + ' '}Equal classes, too, are filled unevenly by {found.images:,} images: "
            f"{usage.classes:,} classes take at least {needed:,}.",
            "Diagnose more images, and raise `max_images` if it is less.",
        )
    elif not undecided:  # where every image has many classes, the most probable ones may be even by chance
        yield Verdict("good", "The classes are balanced", evidence, "")
    agree = usage.agreement >= DISAGREE
    yield Verdict(
        "good" if agree else "warning",
        "Views of an image share a class" if agree else "Views of one image fall into different classes",
        f"{percent(usage.agreement, 1)} of the pairs of views have one class; KL between views {usage.kl:.3g} nats.",
        "" if agree else "Train longer; raise invariance_weight (β); fewer num_classes.",
    )


def _evidence(usage, images):
    """How many classes are used, how evenly and how surely, in words."""
    entropy = f"entropy {usage.assigned_entropy:.3g} of at most {usage.bound:.3g} nats"
    if images < IMAGES_A_CLASS * usage.classes:
        used = f"{usage.used:,} of {usage.classes:,} classes used by {images:,} images ({entropy}, log min(N, C))"
    else:
        equal = f"as evenly as {usage.effective:.3g} equal ones"
        used = f"{usage.used:,} of {usage.classes:,} classes used, {equal} ({entropy})"
    spread = math.exp(usage.conditional_entropy)
    surely = "an image's class is nearly certain" if spread < CERTAIN else f"a view is spread over {spread:.2g} classes"
    return (
        f"{used}, the largest with {percent(usage.largest, 1)} of the images; {surely} (E[H(q|x)] = "
        f"{usage.conditional_entropy:.2g} of at most {math.log(usage.classes):.3g} nats; the most probable class has "
        f"{percent(usage.confidence)} on average)."
    )
