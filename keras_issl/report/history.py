"""PNG pictures of what runs logged, and of comparisons of them."""

import csv
import math
from pathlib import Path


def read_history(path):
    """Columns of a `history.csv` as a dict of lists of floats.

    Keras's logger fills the columns of a validation that was not made with NA; they are left out.
    """
    text = Path(path).read_text()
    rows = list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))  # a last line may be cut off by a kill
    names = [name for name in (rows[0] if rows else {}) if any(row[name] != "NA" for row in rows)]
    return {name: [math.nan if row[name] == "NA" else float(row[name]) for row in rows] for name in names}


PANELS = (  # title, unit, and the columns drawn in it where they exist
    ("loss", "nats", ("loss", "val_loss")),
    ("entropies of the assignment M", "nats", ("marginal_entropy", "marginal_entropy_bound", "conditional_entropy")),
    ("divergences", "nats", ("kl_invariance", "kl_distillation")),
    ("alignment of two views", "cosine", ("alignment",)),
    ("classes", "count", ("effective_classes", "classes_used")),
)


def label_efficiency(rows, path, title=""):
    """Draws test accuracy against the number of labels, a line a representation, into a PNG.

    Args:
        rows: A dict from a name to a dict from labels a class (`None`: all) to (mean, standard deviation, draws).
        path: Where to write the picture.
        title: Heading of the picture.

    Returns:
        The path, or `None` if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # no pyplot: it would choose a window system
    except ImportError:
        return None
    figure = Figure(figsize=(5.5, 3.8), layout="constrained")
    axes = figure.subplots()
    shots = list(next(iter(rows.values())))
    for name, row in rows.items():
        mean, sd = ([row[k][i] for k in shots] for i in (0, 1))
        style = {"raw pixels": {"ls": ":", "color": "grey"}, "random encoder": {"ls": "--", "color": "grey"}}.get(
            name, {}
        )
        axes.errorbar(range(len(shots)), mean, sd, label=name, marker="o", ms=4, capsize=3, lw=1.5, **style)
    axes.set_xticks(range(len(shots)), ["all" if k is None else str(k) for k in shots])
    axes.set(xlabel="labels a class", ylabel="test top-1, linear probe", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)
    return Path(path)


def curves(history, path, title=""):
    """Draws what a run logged, an epoch a point, into a PNG.

    Args:
        history: A dict of lists, or the path of a `history.csv`.
        path: Where to write the picture.
        title: Heading of the picture.

    Returns:
        The path, or `None` if matplotlib is not installed or there is nothing to draw.
    """
    try:
        import matplotlib
    except ImportError:
        return None
    from matplotlib.figure import Figure  # no pyplot: it would choose a window system

    if not isinstance(history, dict):
        history = read_history(history)
    panels = [(t, unit, [c for c in columns if c in history]) for t, unit, columns in PANELS]
    panels = [panel for panel in panels if panel[2]]
    if not panels or not history["loss"]:
        return None
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure = Figure(figsize=(3.6 * len(panels), 3.0), layout="constrained")
        for axes, (name, unit, columns) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            epochs = range(1, len(history["loss"]) + 1)
            for column in columns:
                style = {"ls": "--", "color": "grey"} if column.endswith("_bound") else {}
                axes.plot(epochs, history[column], label=column.replace("_", " "), lw=1.5, **style)
            axes.set_title(name)
            axes.set_xlabel("epoch")
            axes.set_ylabel(unit)
            axes.grid(alpha=0.25)
            if len(columns) > 1:
                axes.legend(frameon=False, fontsize=8)
        if title:
            figure.suptitle(title)
        figure.savefig(path, dpi=120)
    return Path(path)
