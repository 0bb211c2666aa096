"""Plain verdicts on the collapses of our objectives, from what each of them logs during training."""

import math

import numpy as np

from keras_issl.diagnostics.class_judges import UNEVEN
from keras_issl.diagnostics.knobs import advice, knob
from keras_issl.diagnostics.training_judges import ROSE
from keras_issl.diagnostics.training_records import TELLS, state

# Each threshold, and why it stands there. Entropies are in nats.
UNIFORM = 0.1  # H(M) below log C, where the class tells nothing: all classes are alike
ONE = math.log(1.5)  # entropy of the classes: one of them, and a little more
HARDLY = 0.3  # H(M) over its bound: 2.8 of 32 classes, 5 of 256
UNDECIDED = 0.5  # H(M|Z) over log C: as unsure as between √C classes; healthy runs end below 0.2
AT_CHANCE = 0.02  # of the loss of equal embeddings: an untrained encoder is further away
ALIGNED = 0.95  # cosine between views: all embeddings are equal when the loss is at chance too
SPREAD = 0.1  # standard deviation of unit projections times √D: healthy runs have 0.5 to 1
HINGE = 0.95  # of VICReg's largest variance term: the standard deviations are then a twentieth of their target
UNCORRELATED = 0.05  # Barlow Twins: mean correlation of the views' dimensions; trained ones have 0.8

TEACHERS = {  # objective -> (entropy of an image's assignment, what holds the number of classes, what they are called)
    "DISSL": ("conditional_entropy", "num_classes", "class"),
    "DINO": ("teacher_entropy", "num_prototypes", "prototype"),
}
CHANCE = {  # objective -> (loss when all embeddings are equal, of B and τ, and in words)
    "SimCLR": (lambda batch, temperature: math.log(2 * batch - 1), "log(2B - 1)"),
    "CISSL": (lambda batch, temperature: math.log(2 * batch), "log 2B"),
    "MoCo v3": (lambda batch, temperature: 4 * temperature * math.log(batch), "4τ log B"),
}
TEMPERATURES = {"MoCo v3": 0.2}  # the default of those whose loss at chance depends on it


def teacher(run):
    """The teacher of DISSL or DINO: uniform, one class for all, or a constant one."""
    if run.name not in TEACHERS:
        return
    conditional, number, noun = TEACHERS[run.name]
    if not run.has(conditional, "marginal_entropy"):
        return
    marginal, unsure, classes = run["marginal_entropy"], run[conditional], run.number(number)
    columns = (conditional, "marginal_entropy")
    tells_nothing = marginal - unsure < TELLS
    uniform = tells_nothing & (marginal > math.log(classes) - UNIFORM if classes else False)
    one = ~uniform & (marginal < ONE)
    constant = ~uniform & ~one & tells_nothing
    # Of the constant assignments those to many classes are left as the uniform one is, those to few as one class is.
    mends = "uniform_teacher" if classes and run.last("marginal_entropy") > math.log(classes) / 2 else "one_class"
    entropies = f"H(M) = {run.last('marginal_entropy'):.4g}, H(M|Z) = {run.last(conditional):.4g}"
    yield from state(
        run,
        run.held(uniform, *columns),
        "uniform_teacher",
        "problem",
        f"Uniform teacher: every image belongs to every {noun}",
        _uniform_evidence(run, classes, entropies),
        _uniform_advice(run),
    )
    yield from state(
        run,
        run.held(one, *columns),
        "one_class",
        "problem",
        f"One {noun} for all images",
        _one_evidence(run, entropies),
        _one_advice(run),
    )
    yield from state(
        run,
        run.held(constant, *columns),
        "constant_teacher",
        "problem",
        "Constant teacher: all images have the same assignment",
        f"{entropies} nats: the {noun} tells nothing about the image.",
        advice("Lower the learning rate or warm it up longer.", mends, run.given),
    )


def _weights(run):
    """λ and β of DISSL, as it is configured or by default."""
    return run.number("maximality_weight", 2.3), run.number("invariance_weight", 0.8)


def _uniform_evidence(run, classes, entropies):
    if not classes:
        return ""
    nats = math.log(classes)
    if run.name == "DINO":
        return f"Loss {run.last('loss'):.4g} of log {classes:g} = {nats:.4g} nats; {entropies}."
    weight, beta = _weights(run)
    return (
        f"Distillation {run.last('distillation'):.4g} of log {classes:g} = {nats:.4g} nats, loss "
        f"{run.last('loss'):.4g} where (1 + β - λ)·log C = {(1 + beta - weight) * nats:.4g} with λ = {weight:g}, "
        f"β = {beta:g}; {entropies}."
    )


def _uniform_advice(run):
    agree = (
        "If the loss never left that value: train longer, or use a milder augmentation, so that views of one image "
        "agree."
    )
    return advice("", "uniform_teacher", run.given, agree if run.name == "DISSL" else "")


def _one_evidence(run, entropies):
    used = f"; {run.last('classes_used'):g} classes used" if run.has("classes_used") else ""
    peak = ""
    if run.has("loss"):
        highest, step = run.highest("loss")
        if highest > run.first("loss") + max(ROSE, abs(run.first("loss"))):
            peak = f" Before that the loss rose to {highest:.4g}, at step {step:,}: it had diverged."
    effective = math.exp(run.last("marginal_entropy"))
    return f"{entropies} nats, {effective:.3g} classes; loss {run.last('loss'):.4g}{used}.{peak}"


def _one_advice(run):
    slower = "Lower the learning rate, warm it up longer."
    if run.name != "DISSL":
        return advice(slower, "one_class", run.given)
    weight, beta = _weights(run)
    if weight < 1 + beta:
        return f"Raise maximality_weight (λ), here {weight:g}, at least to 1 + invariance_weight (β) = {1 + beta:g}."
    return f"{slower} Clip gradients (`clipvalue`). λ = {weight:g} is above 1 + β = {1 + beta:g}, as it should be."


def classes(run):
    """DISSL's classes: few, undecided, or changing with the view."""
    if run.name != "DISSL" or not run.has("marginal_entropy", "conditional_entropy"):
        return
    weight, beta = _weights(run)
    number = run.number("num_classes")
    marginal, unsure = run["marginal_entropy"], run["conditional_entropy"]
    bound, told = run["marginal_entropy_bound"], "log min(B, C)"
    if not run.has("marginal_entropy_bound"):
        least = [n for n in (number, run.batch_size) if n]
        bound = np.full(run.rows, math.log(min(least)) if least else math.inf)
    few = (marginal < UNEVEN * bound) & (marginal >= ONE)
    used = f"; {run.last('classes_used'):g} were the most probable one of some view" if run.has("classes_used") else ""
    low = weight < 1 + beta
    hardly = run.last("marginal_entropy") < HARDLY * bound[-1]
    yield from state(
        run,
        run.held(few, "marginal_entropy", "conditional_entropy"),
        "few_classes",
        "problem" if hardly else "warning",
        "Hardly any classes are used" if hardly else "Few classes are used",
        f"H(M) = {run.last('marginal_entropy'):.3g} of at most {bound[-1]:.3g} nats, {told}: "
        f"{math.exp(run.last('marginal_entropy')):.3g} classes{used}.",
        f"Raise maximality_weight (λ), here {weight:g}, at least to 1 + invariance_weight (β) = {1 + beta:g}."
        if low
        else advice("", "few_classes", run.given),
        passing=False,
    )
    if not number:
        return
    changing = (run["invariance"] >= marginal) & (marginal >= ONE)
    limit = math.log(number)
    found = state(
        run,
        run.held(changing, "invariance", "marginal_entropy"),
        "changing_classes",
        "warning",
        "The classes change with the view",
        f"Cross-entropy between the assignments of two views {run.last('invariance'):.3g} nats, no less than the "
        f"entropy {run.last('marginal_entropy'):.3g} of the classes: knowing one view's class does not help to name "
        "the other's.",
        f"Raise invariance_weight (β), here {beta:g}, or lower maximality_weight (λ), here {weight:g}, until λ is "
        "little above 1 + β; train longer; use a milder augmentation.",
        passing=False,
    )
    found = list(found)
    yield from found
    if found:
        return  # classes that change are undecided, too
    undecided = (unsure > UNDECIDED * limit) & (marginal - unsure >= TELLS)
    batch = run.batch_size
    shared = (
        f" With C = {number:g} classes and batches of B = {batch:g}, λ > 1 + β pays for spreading each image over "
        "C/B classes: fewer num_classes or larger batches."
        if batch and number > batch
        else ""
    )
    yield from state(
        run,
        run.held(undecided, "conditional_entropy", "marginal_entropy"),
        "uncertain",
        "warning",
        "Undecided teacher: assignments are far from certain",
        f"H(M|Z) = {run.last('conditional_entropy'):.3g} of at most log C = {limit:.3g} nats: a view is spread over "
        f"{math.exp(run.last('conditional_entropy')):.3g} classes.",
        knob("uncertain", run.given) + shared,
        passing=False,
    )


def codes(run):
    """SwAV: uniform codes, or one prototype for all predictions."""
    if run.name != "SwAV" or not run.has("code_entropy"):
        return
    number = run.number("num_prototypes")
    if number:
        nats = math.log(number)
        yield from state(
            run,
            run.held(run["code_entropy"] > nats - UNIFORM, "code_entropy"),
            "uniform_teacher",
            "problem",
            "Uniform codes: every image belongs to every prototype",
            f"Code entropy {run.last('code_entropy'):.4g} and loss {run.last('loss'):.4g} of log {number:g} = "
            f"{nats:.4g} nats.",
            advice("Lower the learning rate.", "uniform_teacher", run.given),
        )
    one = run["marginal_entropy"] < ONE
    yield from state(
        run,
        run.held(one, "marginal_entropy"),
        "one_class",
        "problem",
        "One prototype for all images",
        f"Entropy of the predicted prototypes {run.last('marginal_entropy'):.3g} nats: "
        f"{math.exp(run.last('marginal_entropy')):.3g} of them; loss {run.last('loss'):.4g}.",
        advice("Lower the learning rate.", "one_class", run.given),
    )


def contrast(run):
    """SimCLR, CISSL and MoCo v3: a loss at chance, with equal embeddings or not."""
    if run.name not in CHANCE or not run.batch_size or not run.has("loss"):
        return
    loss_of, words = CHANCE[run.name]
    chance = loss_of(run.batch_size, run.number("temperature", TEMPERATURES.get(run.name)))
    at_chance = np.abs(run["loss"] - chance) < AT_CHANCE * chance
    equal = at_chance & (run["alignment"] > ALIGNED)
    cosine = f"; cosine of two views {run.last('alignment'):.3g}" if run.has("alignment") else ""
    evidence = (
        f"Loss {run.last('loss'):.4g}; all embeddings equal would have {words} = {chance:.4g} with B = "
        f"{run.batch_size:g}{cosine}."
    )
    slower = "Lower the learning rate or warm it up longer; check that the images reach the encoder in [0, 255]."
    yield from state(
        run,
        run.held(equal, "loss"),
        "same_features",
        "problem",
        "Complete collapse: all embeddings are equal",
        evidence,
        slower,
    )
    yield from state(
        run,
        run.held(at_chance & ~equal, "loss"),
        "chance",
        "problem",
        "The loss is at chance: a view does not tell its image from others",
        evidence,
        "Check that the two views come from one image; use a milder augmentation; raise the learning rate.",
        passing=False,
    )


def spread(run):
    """BYOL, SimSiam and others that report `feature_std`: do all images have one projection?"""
    if not run.has("feature_std"):
        return
    aligned = f"; cosine of two views {run.last('alignment'):.3g}" if run.has("alignment") else ""
    yield from state(
        run,
        run.held(run["feature_std"] < SPREAD, "feature_std"),
        "same_features",
        "problem",
        "Complete collapse: all images have one projection",
        f"feature_std {run.last('feature_std'):.3g}, about 1 where images differ in all directions and 0 where none "
        f"do{aligned}; loss {run.last('loss'):.4g}.",
        advice("Lower the learning rate or warm it up longer.", "collapse", run.given),
    )


def redundancy(run):
    """VICReg and Barlow Twins: projections without variance, and views that do not correlate."""
    if run.name == "VICReg" and run.has("variance"):
        most = 2.0 * (1.0 - 1e-4**0.5)  # its class fixes the target at 1 and ε at 1e-4
        yield from state(
            run,
            run.held(run["variance"] > HINGE * most, "variance"),
            "same_features",
            "problem",
            "Complete collapse: the projections of all images are equal",
            f"Variance term {run.last('variance'):.4g} of at most {most:.4g}, where nothing varies; invariance "
            f"{run.last('invariance'):.3g}.",
            advice("Lower the learning rate or warm it up longer.", "collapse", run.given),
        )
    if run.name == "Barlow Twins" and run.has("correlation"):
        width = run.number("output_dim")
        most = f" of {width:g} for projections that tell nothing" if width else ""
        yield from state(
            run,
            run.held(np.abs(run["correlation"]) < UNCORRELATED, "correlation"),
            "same_features",
            "problem",
            "Collapse: the two views' projections do not correlate",
            f"Correlation {run.last('correlation'):.3g} (1 when invariant, 0 when collapsed), loss "
            f"{run.last('loss'):.4g}{most}.",
            "Lower the learning rate or warm it up longer; use a milder augmentation.",
        )
