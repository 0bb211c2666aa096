"""Charts of probes: how accurate, how sure, what was chosen, what is taken for what."""

import math

import numpy as np

from keras_issl.report.charts.drawing import (
    INK,
    MOST,
    logarithmic,
    nothing,
    numbers,
    percent,
    rows_only,
    short,
    short_names,
    svg,
)
from keras_issl.report.style import ACCENT, PALETTE

__all__ = ["confusion", "confusions", "intervals", "label_efficiency", "per_class", "validation"]


def _is_fraction(shots):
    return isinstance(shots, float) and 0 < shots < 1


def label_efficiency(rows, *, ylabel="test top-1"):
    """Accuracy against the number of labels, a line a representation, with the standard deviation over draws.

    Labels a class and fractions of train have a panel each.

    Args:
        rows: Dict from a name to a dict from labels a class (`None`: all; a fraction: that part of train) to a
            (mean, standard deviation, ...) tuple or an object with `mean` and `sd`.
        ylabel: What is on the vertical axis.

    Returns:
        SVG text, or `None` without matplotlib.

    Example:

    >>> svg = keras_issl.report.charts.label_efficiency({"DISSL": {1: (0.4, 0.05), 10: (0.7, 0.02), None: (0.9, 0.0)}})
    """
    given = {shots for row in rows.values() for shots in row}
    fractions, counts = (
        sorted(shots for shots in given if shots is not None and _is_fraction(shots) == is_fraction)
        for is_fraction in (True, False)
    )
    end = [None] * (None in given)
    panels = [(counts + end, str, "labels a class")] if counts or not fractions else []
    panels += [(fractions + end, lambda shots: f"{100 * shots:g} %", "part of the labels")] if fractions else []

    def draw(*every):
        for axes, (shots, text, label) in zip(every, panels, strict=True):
            for i, (name, row) in enumerate(rows.items()):
                scores = [row.get(k, (math.nan, math.nan)) for k in shots]
                pairs = [(s.mean, s.sd) if hasattr(s, "sd") else s[:2] for s in scores]
                mean, sd = numbers(pairs).reshape(-1, 2).T
                known = np.isfinite(mean)
                if known.any():
                    look = {"color": PALETTE[i % len(PALETTE)], "ls": "-" if i < len(PALETTE) else "--", "marker": "o"}
                    at = np.arange(len(shots))[known] + 0.04 * (i - (len(rows) - 1) / 2)  # bars beside each other
                    axes.errorbar(at, mean[known], np.nan_to_num(sd[known]), label=short(name), **look)
            if not axes.has_data():
                nothing(axes)
                continue
            axes.set_xticks(range(len(shots)), ["all" if k is None else text(k) for k in shots])
            axes.set(xlabel=label, ylabel=ylabel if axes is every[0] else None)
            percent(axes.yaxis)
        if len(rows) > 1 and every[0].has_data():
            every[0].legend()

    return svg(draw, (5.4 if len(panels) == 1 else 8.2, 3.3), (1, len(panels)))


def intervals(rows, *, xlabel="test top-1"):
    """Values with their intervals, a row each: which differences are larger than their uncertainty.

    Args:
        rows: Sequence of (name, value, low, high); low and high may be `None`.
        xlabel: What is on the horizontal axis.

    Returns:
        SVG text, or `None` without matplotlib.

    Example:

    >>> svg = keras_issl.report.charts.intervals([("linear", 0.91, 0.90, 0.92), ("kNN", 0.88, None, None)])
    """
    table = numbers([[math.nan if v is None else v for v in row[1:4]] for row in rows]).reshape(-1, 3)

    def draw(axes):
        if not np.isfinite(table[:, 0]).any():
            return nothing(axes)
        y = np.arange(len(rows))[::-1]
        axes.hlines(y, table[:, 1], table[:, 2], color=ACCENT, lw=2.2, alpha=0.55)
        axes.plot(table[:, 0], y, "o", color=ACCENT, ms=7)
        for value, at in zip(table[:, 0], y, strict=True):
            if np.isfinite(value):
                axes.annotate(
                    f"{100 * value:.1f} %", (value, at), (0, 7), textcoords="offset points", ha="center", size=9
                )
        axes.set_yticks(y, [short(row[0]) for row in rows])
        axes.set(xlabel=xlabel, ylim=(-0.6, len(rows) - 0.3))
        axes.margins(x=0.12)
        rows_only(axes)
        percent(axes.xaxis)

    return svg(draw, (5.4, 1.1 + 0.42 * len(rows)))


def validation(scores, chosen=None, *, xlabel="strength", ylabel="held-out top-1"):
    """The sweep that chose a hyperparameter: accuracy on held-out images against each candidate.

    Args:
        scores: Dict from a candidate to its score, such as a probe's `validation_scores_`. Positive numbers get a
            logarithmic axis, other candidates stand side by side.
        chosen: The candidate that was chosen, a list of those that different seeds chose, or `None`.
        xlabel: Name of the hyperparameter.
        ylabel: What the score is.

    Returns:
        SVG text, or `None` without matplotlib.

    Example:

    >>> svg = keras_issl.report.charts.validation({0.1: 0.85, 1.0: 0.91, 10.0: 0.90}, chosen=1.0)
    """
    candidates, values = list(scores), numbers(list(scores.values()))
    is_number = all(isinstance(c, int | float) and not isinstance(c, bool) for c in candidates)

    def draw(axes):
        if not np.isfinite(values).any():
            return nothing(axes)
        order = np.argsort(candidates) if is_number else np.arange(len(candidates))
        at = numbers(candidates) if is_number else np.arange(len(candidates), dtype="float64")
        axes.plot(at[order], values[order], "o-", color=ACCENT)
        if is_number and min(candidates) > 0:
            logarithmic(axes, "x", at if len(at) <= 8 else None)
            axes.set_xlim(at.min() / 1.6, at.max() * 1.6)
        elif not is_number:
            axes.set_xticks(at, [short(c, 14) for c in candidates])
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.margins(y=0.2)
        percent(axes.yaxis)
        for i in (candidates.index(one) for one in (chosen if isinstance(chosen, list) else [chosen]) if one in scores):
            axes.plot(at[i], values[i], "o", ms=11, mfc="none", mec=PALETTE[1], mew=2)
            axes.annotate(
                "chosen", (at[i], values[i]), (0, 10), textcoords="offset points", ha="center", color=INK, size=9
            )

    return svg(draw)


def per_class(accuracies, names=None, *, xlabel="top-1 of the class"):
    """A bar a class, highest first. Of more than 30 classes the 30 lowest are shown.

    Args:
        accuracies: Numbers (C,).
        names: Names (C,) of the classes, or `None` for their numbers.
        xlabel: What the bars are.

    Returns:
        SVG text, or `None` without matplotlib.

    Example:

    >>> svg = keras_issl.report.charts.per_class([0.9, 0.7], names=["cat", "dog"])
    """
    values = numbers(accuracies)
    order = [i for i in np.argsort(-values, kind="stable") if np.isfinite(values[i])]
    lowest = order[-MOST:]

    def draw(axes):
        if not lowest:
            return nothing(axes)
        named, y = short_names(names, len(values)), np.arange(len(lowest))[::-1]
        axes.barh(y, values[lowest], color=ACCENT, height=0.68)
        axes.axvline(np.mean(values[order]), color=INK, lw=1, ls=(0, (4, 3)))
        axes.set_yticks(y, [named[i] for i in lowest])
        axes.set(xlabel=xlabel, xlim=(0, max(1, values[lowest].max())), ylim=(-0.6, len(lowest) - 0.4))
        if len(order) > MOST:
            axes.set_title(f"the {MOST} lowest of {len(order):,} classes", loc="left")
        rows_only(axes)
        percent(axes.xaxis)

    return svg(draw, (5.4, 1.1 + 0.22 * max(4, len(lowest))))


def confusion(counts, names=None):
    """What is taken for what: a heat map of up to 30 classes, the 20 most frequent confusions of more.

    Args:
        counts: Array (C, C): how many images of the row's class were taken for the column's.
        names: Names (C,) of the classes, or `None` for their numbers.

    Returns:
        SVG text, or `None` without matplotlib.

    Example:

    >>> svg = keras_issl.report.charts.confusion([[9, 1], [2, 8]], names=["cat", "dog"])
    """
    counts = np.nan_to_num(numbers(counts))
    totals = counts.sum(axis=1, keepdims=True) if counts.size else counts
    shares = counts / np.where(totals, totals, 1) if counts.size else counts
    named = short_names(names, len(counts))

    def heat(axes):
        if not counts.any():
            return nothing(axes)
        from matplotlib.colors import LinearSegmentedColormap

        colors = LinearSegmentedColormap.from_list("page", ["#ffffff", "#b9d7ea", ACCENT, "#003a5c"])
        axes.pcolormesh(shares[::-1], cmap=colors, vmin=0, vmax=1, edgecolors="white", linewidth=0.8)
        if len(named) <= 15:
            for row, column in np.argwhere(shares >= 0.005):
                color = "white" if shares[row, column] > 0.45 else INK
                at = (column + 0.5, len(named) - row - 0.5)
                axes.text(*at, f"{100 * shares[row, column]:.0f}", ha="center", va="center", size=8.5, color=color)
        ticks = np.arange(len(named)) + 0.5
        axes.set_xticks(ticks, named, rotation=90 if max(map(len, named)) > 2 else 0)
        axes.set_yticks(ticks, named[::-1])
        axes.set(xlabel="taken for", ylabel="class", aspect="equal")
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)

    if len(counts) <= MOST:
        side = 1.9 + max(2.6, min(5.2, 0.34 * len(counts)))
        return svg(heat, (side, side))
    wrong = np.where(np.eye(len(counts), dtype=bool), 0, counts)
    pairs = [divmod(int(i), len(counts)) for i in np.argsort(-wrong, axis=None, kind="stable")[:20]]
    return confusions([(named[a], named[b], shares[a, b]) for a, b in pairs if wrong[a, b] > 0])


def confusions(rows, *, xlabel="of the class's images"):
    """The most frequent confusions, a bar each.

    Args:
        rows: Sequence of (class, what its images are taken for, share), the most frequent first; 20 are drawn.
        xlabel: What the shares are.

    Returns:
        SVG text, or `None` without matplotlib.

    Example:

    >>> svg = keras_issl.report.charts.confusions([("cat", "dog", 0.12), ("truck", "car", 0.05)])
    """
    rows = [row for row in rows if math.isfinite(row[2])][:20]

    def draw(axes):
        if not rows:
            return nothing(axes, "no confusions")
        y = np.arange(len(rows))[::-1]
        axes.barh(y, [row[2] for row in rows], color=ACCENT, height=0.68)
        axes.set_yticks(y, [f"{short(row[0], 20)} → {short(row[1], 20)}" for row in rows])
        axes.set(xlabel=xlabel, ylim=(-0.6, len(rows) - 0.4))
        rows_only(axes)
        percent(axes.xaxis)

    return svg(draw, (5.4, 1.1 + 0.22 * max(4, len(rows))))
