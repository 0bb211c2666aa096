"""A picture of representations side by side, over seeds."""

from pathlib import Path

import numpy as np

from keras_issl.report.style import PALETTE


def standings(rows, path, *, lines=None, reference="", title=""):
    """Draws accuracies, a dot a seed, beside their differences to a reference, into a PNG.

    Args:
        rows: Dict from a name to (linear, kNN, difference): top-1 of each seed, and (value, low, high) or `None`.
        path: Where to write the picture.
        lines: Dict from a name to linear top-1, drawn as a line through all rows: what training should exceed.
        reference: What the differences are to.
        title: Heading of the picture.

    Returns:
        The path, or `None` if matplotlib is not installed or there are no rows.

    Example:

    >>> from keras_issl.report.standings import standings
    >>> rows = {"DISSL": ([0.54, 0.55], [0.50, 0.49], (0.03, 0.02, 0.04))}
    >>> path = standings(rows, "standings.png", reference="SimCLR")
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure  # no pyplot: it would choose a window system
    except ImportError:
        return None
    if not rows:
        return None
    at = np.arange(len(rows))[::-1]
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure = Figure(figsize=(8.4, 1.5 + 0.36 * len(rows)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        for y, (linear, knn, difference) in zip(at, rows.values(), strict=True):
            for values, offset, color, label in ((linear, 0.13, PALETTE[0], "linear"), (knn, -0.13, PALETTE[4], "kNN")):
                values = 100 * np.asarray(values)
                left.plot(values, np.full(len(values), y + offset), "o", ms=4, color=color, alpha=0.6, mew=0)
                mean = {"ms": 13, "mew": 2, "color": color, "label": f"{label} probe" if y == at[0] else None}
                left.plot(values.mean(), y + offset, "|", **mean)
            if difference is not None:
                value, low, high = 100 * np.asarray(difference)
                right.plot([low, high], [y, y], color=PALETTE[0], lw=2)
                right.plot(value, y, "o", color=PALETTE[0], ms=5)
        for (name, value), style in zip((lines or {}).items(), (":", "--", "-."), strict=False):
            left.axvline(100 * value, color="grey", ls=style, lw=1.2, label=f"{name}, linear")
        left.set_yticks(at, list(rows))
        left.set(xlabel="test top-1, %: a dot a seed, a bar their mean", ylim=(-0.6, len(rows) - 0.4))
        right.axvline(0, color="grey", lw=1)
        right.set(xlabel=f"linear: difference to {reference}, points" if reference else "")
        right.spines["left"].set_visible(False)
        for axes in (left, right):
            axes.grid(axis="x", alpha=0.25)
            axes.tick_params(axis="y", length=0)
        figure.legend(loc="outside lower left", ncols=4, frameon=False, fontsize=8)
        if title:
            figure.suptitle(title)
        figure.savefig(path, dpi=120)
    return Path(path)
