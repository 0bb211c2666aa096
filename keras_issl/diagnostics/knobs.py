"""The knob to turn, in the words of the objective that the encoder was trained with."""

import re

NAMES = {
    name.lower().replace(" ", ""): name
    for name in ("DISSL", "CISSL", "SimCLR", "MoCo v3", "DINO", "SwAV", "BYOL", "SimSiam", "Barlow Twins", "VICReg")
}
CONTRASTIVE = ("CISSL", "SimCLR", "MoCo v3")

# What is wrong -> [(objectives, what helps them)]. Where an objective is not named, its paper names no knob of its own.
KNOBS = {
    "collapse": [
        (("DISSL",), "raise maximality_weight (λ), at least to 1 + invariance_weight (β)"),
        # Caron et al. 2021, appendix: 0.999 collapses, and so does a temperature of 0.07 from the first step.
        (("DINO",), "lower teacher_temperature, or warm it up over more warmup_epochs; lower center_momentum"),
        # Caron et al. 2020, §3.1: a high ε shares every image out evenly, and a queue helps small batches.
        (("SwAV",), "lower epsilon; with batches smaller than num_prototypes, set queue_length"),
        (("BYOL",), "raise teacher_momentum, short of 1"),  # Grill et al. 2020, table 5a: at 0 it collapses
        (("VICReg",), "raise variance_weight, at least to invariance_weight"),  # Bardes et al. 2022, appendix D
    ],
    # Near uniformity the loss of DISSL falls only along logits on which two views agree; λ is not among what decides.
    "uniform_teacher": [
        (("DISSL",), "lower teacher_temperature (τ_t); λ does not help here"),
        (("DINO",), "lower teacher_temperature, or warm it up over more warmup_epochs"),  # sharpening
        (("SwAV",), "lower epsilon"),
    ],
    "one_class": [
        (("DISSL",), "raise maximality_weight (λ), at least to 1 + invariance_weight (β)"),
        (("DINO",), "lower center_momentum, so that the centre follows; raise teacher_temperature"),  # centring
        (("SwAV",), "with batches smaller than num_prototypes, set queue_length"),
    ],
    "few_classes": [(("DISSL",), "raise maximality_weight (λ); larger batches, which bound H(M) by log B")],
    "uncertain": [
        (("DISSL",), "train longer; lower teacher_temperature; raise invariance_weight (β), up to λ - 1"),
    ],
    "invariance": [
        (("DISSL",), "raise invariance_weight (β), up to maximality_weight (λ) - 1"),
        (CONTRASTIVE, "raise the temperature"),
        (("Barlow Twins",), "lower off_diagonal_weight"),
        (("VICReg",), "raise invariance_weight, and variance_weight with it"),
    ],
    "rank": [
        (("DISSL",), "raise num_classes or maximality_weight (λ)"),
        (CONTRASTIVE, "lower the temperature, larger batches"),
        (("DINO",), "raise num_prototypes"),  # Caron et al. 2021, appendix
        (("Barlow Twins",), "raise off_diagonal_weight"),
        (("VICReg",), "raise covariance_weight"),
    ],
    "leak": [
        (("DISSL",), "raise invariance_weight (β)"),
        (("Barlow Twins",), "lower off_diagonal_weight"),
        (("VICReg",), "raise invariance_weight, and variance_weight with it"),
    ],
}


def knob(kind, objective=None):
    """What to change in an objective, as a sentence.

    Args:
        kind: What is wrong, a key of `KNOBS`.
        objective: Its name, e.g. `"DISSL"` or a recipe's `"barlow_twins"`; `None` where it is not known.

    Returns:
        `"DISSL: raise num_classes or maximality_weight (λ)."`; where it is not known, the same for every objective;
        empty for one that has no such knob, or is not ours.

    Example:

    >>> from keras_issl.diagnostics.knobs import knob
    >>> knob("collapse", "byol")
    'BYOL: raise teacher_momentum, short of 1.'
    """
    if objective is None:
        return " ".join(f"{_listed(names)}: {text}." for names, text in KNOBS[kind])
    name = official_name(objective)
    return next((f"{name}: {text}." for names, text in KNOBS[kind] if name in names), "")


def official_name(objective):
    """An objective's name as its paper writes it; `None` for one that is not ours.

    Example:

    >>> from keras_issl.diagnostics.knobs import official_name
    >>> official_name("moco_v3"), official_name("BarlowTwins"), official_name("MyOwn")
    ('MoCo v3', 'Barlow Twins', None)
    """
    return NAMES.get(re.sub(r"[\W_]", "", str(objective).lower()))


def advice(general, kind, objective, last=""):
    """General advice, what to change in the objective, and what else there is to say."""
    return " ".join(filter(None, (general, knob(kind, objective), last)))


def _listed(names):
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
