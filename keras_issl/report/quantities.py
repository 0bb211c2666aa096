"""What a run's columns are called, in which unit they are, and which of them belong into one picture."""

import dataclasses
import math

__all__ = [
    "CURVES",
    "PANELS",
    "REPRESENTATION",
    "THROUGHPUT",
    "Panel",
    "bounds",
    "formula",
    "further",
    "most_classes",
    "title_of",
]

TITLES = {  # column -> what it is called
    "loss": "loss",
    "distillation": "distillation",
    "invariance": "invariance",
    "redundancy": "redundancy",
    "variance": "variance",
    "covariance": "covariance",
    "marginal_entropy": "H(M)",
    "conditional_entropy": "H(M|Z)",
    "teacher_entropy": "H(M|Z), the teacher's",
    "code_entropy": "H(M|Z), the codes'",
    "kl_invariance": "KL between views",
    "kl_distillation": "KL of the student",
    "kl": "KL of the student",
    "effective_classes": "exp H(M)",
    "classes_used": "classes used in the epoch",
    "alignment": "alignment",
    "correlation": "correlation",
    "feature_std": "spread of the projections",
    "learning_rate": "learning rate",
    "effective_rank": "effective rank",
    "within_between": "within / between",
    "online_top1": "online top-1",
    "online_loss": "online probe's loss",
    "images_per_second": "images a second",
    "input_share": "share of the time that loading takes",
    "input_images_per_second": "images a second that loading delivers",
}


@dataclasses.dataclass(frozen=True)
class Panel:
    """Columns of one scale that are looked at together.

    Attributes:
        title: What the picture is called.
        unit: What is on its vertical axis.
        columns: Columns, drawn where they exist.
        caption: What to see in it.
        percent: Whether values are shares.
        zero: Whether the axis begins at 0.
        wide_range: Whether values may span orders of magnitude, so that a logarithmic axis is allowed.
    """

    title: str
    unit: str
    columns: tuple
    caption: str
    percent: bool = False
    zero: bool = False
    wide_range: bool = False


CURVES = (
    Panel("loss", "loss", ("loss",), "What training makes small."),
    Panel(
        "parts of the loss",
        "before their weights",
        ("distillation", "invariance", "redundancy", "variance", "covariance"),
        "The terms of the loss, before their weights.",
    ),
    Panel(
        "entropies of the assignment M",
        "nats",
        ("marginal_entropy", "conditional_entropy", "teacher_entropy", "code_entropy"),
        "H(M) says how evenly a batch is spread over the classes, H(M|Z) how undecided single images are. Healthy: "
        "H(M) near log min(B, C), the most for sure assignments, and H(M|Z) well below it. Both at log C: every image "
        "gets the uniform assignment. Both at 0: one class for all.",
    ),
    Panel(
        "divergences",
        "nats",
        ("kl_invariance", "kl_distillation", "kl"),
        "How far the assignments of two views differ, and how far the student is from the teacher: 0 is agreement. "
        "Collapse agrees too, so read it beside the entropies.",
    ),
    Panel(
        "classes",
        "classes",
        ("effective_classes", "classes_used"),
        "exp H(M), the classes that a batch uses in effect, beside the most that it can; and how many classes were the "
        "most probable one of some image since the epoch began.",
        zero=True,
        wide_range=True,
    ),
    Panel("alignment of two views", "cosine", ("alignment",), "1: both views of an image are at the same place."),
    Panel(
        "correlation of two views",
        "mean over the dimensions",
        ("correlation",),
        "How far a dimension agrees between the views of an image: 1 is invariance.",
    ),
    Panel(
        "spread of the projections",
        "√D × standard deviation",
        ("feature_std",),
        "About 1 where images differ in all directions, 0 where all have the same projection (collapse).",
    ),
    Panel("learning rate", "learning rate", ("learning_rate",), "What the schedule gave."),
)
REPRESENTATION = (
    Panel(
        "effective rank",
        "dimensions",
        ("effective_rank",),
        "How many directions the features of a fixed set of images use in effect (RankMe).",
        zero=True,
    ),
    Panel(
        "invariance",
        "within / between",
        ("within_between",),
        "Squared distance between two views of an image over that between images: 0 is invariance, 1 is chance.",
        zero=True,
    ),
    Panel(
        "online top-1",
        "online top-1",
        ("online_top1",),
        "The linear probe that is trained along, on augmented training views, each before the update that learns from "
        "it. It follows the representation; it is no test accuracy.",
        zero=True,
        percent=True,
    ),
    Panel("loss of the online probe", "nats", ("online_loss",), "The cross-entropy that the online probe learns from."),
)
THROUGHPUT = (
    Panel("throughput", "images a second", ("images_per_second",), "Mean over the steps of each row.", zero=True),
    Panel(
        "time spent on loading",
        "of the wall time",
        ("input_share",),
        "Where this is high, the device waits for images.",
        zero=True,
        percent=True,
    ),
    Panel(
        "what loading delivers",
        "images a second",
        ("input_images_per_second",),
        "Images that are read and decoded a second, waited for or not. Training cannot be faster.",
        zero=True,
    ),
)
PANELS = (*CURVES, *REPRESENTATION, *THROUGHPUT)
FORMULAS = {  # objective -> its loss, with names of its arguments
    "DISSL": "distillation − {maximality_weight:g} H(M) + {invariance_weight:g} invariance",
    "BarlowTwins": "invariance + {off_diagonal_weight:g} redundancy",
    "VICReg": "{invariance_weight:g} invariance + {variance_weight:g} variance + {covariance_weight:g} covariance",
}
DRAWN_AS_BOUND = ("marginal_entropy_bound",)


def title_of(column):
    """What a column is called, one of a validation included.

    Example:

    >>> from keras_issl.report.quantities import title_of
    >>> [title_of(name) for name in ("marginal_entropy", "val_loss", "gradient_norm")]
    ['H(M)', 'loss, validation', 'gradient norm']
    """
    if column.startswith("val_"):
        return f"{title_of(column[4:])}, validation"
    return TITLES.get(column, column.replace("_", " "))


def formula(run):
    """The loss of a run's objective as a sum of its parts, or an empty text.

    Example:

    >>> run = keras_issl.report.Run("x", objective="BarlowTwins", config={"off_diagonal_weight": 0.005})
    >>> keras_issl.report.quantities.formula(run)
    'The loss is invariance + 0.005 redundancy.'
    """
    try:
        return f"The loss is {FORMULAS[run.objective].format(**run.config)}."
    except (KeyError, ValueError, TypeError):  # another objective, or an argument that is not on record
        return ""


def further(columns):
    """Those columns that no panel has, such as the logs of an objective of one's own; without validation's.

    Example:

    >>> from keras_issl.report.quantities import further
    >>> further(["loss", "val_loss", "gradient_norm", "val_margin"])
    ['gradient_norm', 'margin']
    """
    known = {column for panel in PANELS for column in panel.columns} | {*DRAWN_AS_BOUND, "online_labels"}
    return list(dict.fromkeys(n for n in (c.removeprefix("val_") for c in columns) if n not in known))


def bounds(run):
    """What a run's columns are to be held against.

    Args:
        run: A `Run`.

    Returns:
        A dict from a column to pairs of a label and a number, the nearest first.

    Example:

    >>> run = keras_issl.report.Run("x", config={"num_classes": 64}, recipe={"batch_size": 32}, feature_dim=512)
    >>> keras_issl.report.quantities.bounds(run)["effective_classes"]
    [('the most of a batch, 32', 32.0), ('C, 64', 64.0)]
    """
    found = {
        "effective_rank": [(f"features' width, {run.feature_dim:,}", run.feature_dim)] if run.feature_dim else [],
        "within_between": [("chance, 1", 1.0)],
        "feature_std": [("all directions, 1", 1.0)],
    }
    if (run.online_probe or {}).get("classes"):
        found["online_top1"] = [(f"chance, 1/{run.online_probe['classes']:,}", 1 / run.online_probe["classes"])]
    classes = _number(run.config.get("num_classes", run.config.get("num_prototypes")))
    most = _most(run, classes)
    if most:
        found["marginal_entropy"] = [("log min(B, C), the bound", math.log(most))]
        found["effective_classes"] = [(f"the most of a batch, {most:,.0f}", most)]
    if classes and (not most or classes > 1.01 * most):
        found["marginal_entropy"] = [*found.get("marginal_entropy", ()), ("log C", math.log(classes))]
        found["effective_classes"] = [*found.get("effective_classes", ()), (f"C, {classes:,.0f}", classes)]
    if run.objective == "DISSL" and classes:
        weights = [_number(run.config.get(name)) for name in ("maximality_weight", "invariance_weight")]
        if None not in weights:
            loss = (1 + weights[1] - weights[0]) * math.log(classes)
            found["loss"] = [("uniform teacher, (1 + β − λ) log C", loss)]
    return found


def most_classes(run, used):
    """What exp H(M) is to be held against: min(B, C); or C, where unsure assignments are spread over more than that.

    Example:

    >>> run = keras_issl.report.Run("x", config={"num_classes": 64}, recipe={"batch_size": 32})
    >>> [keras_issl.report.quantities.most_classes(run, used) for used in (20.5, 60.0)]
    [32, 64]
    """
    known = [round(most) for _, most in bounds(run).get("effective_classes", ())]
    return next((most for most in known if used is None or used <= 1.02 * most), known[-1] if known else None)


def _most(run, classes):
    """min(B, C), as the run measured it or as its recipe has it."""
    measured = run.last("marginal_entropy_bound")
    if measured is not None and 0 <= measured < 100:
        return float(round(math.exp(measured), 3))
    batch = _number(run.recipe.get("batch_size"))
    images = _number(run.data.get("images"))
    return min(min(batch, images) if images else batch, classes) if batch and classes else None


def _number(value):
    """A positive number as a float, else `None`."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 < value < math.inf else None
