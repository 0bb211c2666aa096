"""Charts of a representation: its spectrum, distances and classes, idealness, and where its risk comes from."""

import math

import numpy as np

from keras_issl.report.charts.drawing import INK, PALE, logarithmic, nothing, numbers, percent, rows_only, short, svg
from keras_issl.report.page import shown
from keras_issl.report.style import ACCENT, PALETTE

__all__ = ["RISKS", "class_balance", "distances", "idealness", "risk", "spectrum"]

DASHES = (0, (4, 3))
PROBES = {"linear": "linear", "mlp": "MLP"}


def spectrum(shares, effective_rank=None, dim=None):
    """The share of the variance that each direction holds, and how many directions that makes in effect.

    Args:
        shares: Shares (D',) of the variance, descending.
        effective_rank: The effective rank (RankMe: Garrido et al., ICML 2023), or `None`.
        dim: The number of dimensions D, or `None`.

    Returns:
        SVG text, or `None` without matplotlib.

    Example:

    >>> svg = keras_issl.report.charts.spectrum([0.5, 0.3, 0.2], effective_rank=2.8, dim=64)
    """
    values = numbers(shares)

    def draw(axes):
        known = np.flatnonzero(values > 1e-12)  # NaN compares false; a logarithm shows no zeros
        if not len(known):
            return nothing(axes)
        axes.plot(known + 1, values[known], color=ACCENT, marker="o" if len(known) < 25 else None, ms=4)
        logarithmic(axes, "y")
        right = max(len(values), dim or 0, 2)
        axes.set_xlim(1 - 0.02 * right, right * 1.02)
        for at, text, color in ((effective_rank, "effective rank", PALETTE[1]), (dim, "D", PALE)):
            if at is not None and math.isfinite(at):
                axes.axvline(at, color=color, lw=1.5, ls=DASHES)
                after = at < 0.6 * right
                axes.annotate(
                    f"{text} {shown(round(float(at), 1) if at % 1 else int(at))}",
                    (at, 0.97),
                    (5 if after else -5, 0),
                    xycoords=axes.get_xaxis_transform(),
                    textcoords="offset points",
                    ha="left" if after else "right",
                    va="top" if text != "D" else "center",
                    color=INK,
                    size=9,
                )
        axes.set(xlabel="direction", ylabel="share of the variance")

    return svg(draw)


def distances(within, between, *, xlabel="distance"):
    """Distances between two views of an image beside distances between views of two images.

    Args:
        within: Distances (n,) of views of the same image.
        between: Distances (m,) of views of different images.
        xlabel: What distance it is.

    Returns:
        SVG text, or `None` without matplotlib.

    Example:

    >>> svg = keras_issl.report.charts.distances([0.1, 0.2, 0.15], [1.1, 1.3, 0.9])
    """

    def draw(axes):
        groups = [(numbers(within), "views of one image", PALETTE[0])]
        groups += [(numbers(between), "views of two images", PALETTE[1])]
        groups = [(values[np.isfinite(values)], name, color) for values, name, color in groups]
        both = np.concatenate([values for values, _, _ in groups])
        if not both.size:
            return nothing(axes)
        low, high = min(0.0, both.min()), both.max()
        edges = np.linspace(low, high if high > low else low + 1, 41)
        for values, name, color in groups:
            if values.size:
                weights = np.full(values.size, 1 / values.size)
                heights = np.histogram(values, edges, weights=weights)[0]
                axes.stairs(heights, edges, color=color, fill=True, alpha=0.45, label=name)
                axes.stairs(heights, edges, color=color, lw=1.3)
        axes.set(xlabel=xlabel, ylabel="share of the pairs")
        percent(axes.yaxis)
        axes.legend(loc="best")

    return svg(draw)


def class_balance(probabilities):
    """How often each class is used, most used first, beside the uniform use that DISSL's teacher is pushed to.

    Args:
        probabilities: Mean probabilities (C,) of the classes.

    Returns:
        SVG text, or `None` without matplotlib.

    Example:

    >>> svg = keras_issl.report.charts.class_balance([0.4, 0.3, 0.2, 0.1])
    """
    values = numbers(probabilities)
    values = np.sort(values[np.isfinite(values)])[::-1]

    def draw(axes):
        if not values.size:
            return nothing(axes)
        edges = np.arange(len(values) + 1) + 0.5  # class i stands around i
        axes.stairs(values, edges, color=ACCENT, fill=True, alpha=0.25)
        axes.stairs(values, edges, color=ACCENT, lw=1.5, baseline=None)
        axes.axhline(1 / len(values), color=INK, lw=1, ls=DASHES, label=f"uniform, 1/{len(values):,}")
        if len(values) > 1 and values[-1] > 0 and values[0] > 100 * values[-1]:
            logarithmic(axes, "y")
        else:
            axes.set_ylim(0, 1.15 * values[0] if values[0] > 0 else 1)
        axes.set(xlabel="class, most used first", ylabel="mean probability")
        axes.legend(loc="upper right")

    return svg(draw)


def idealness(points, *, value="solved"):
    """How well random invariant tasks are solved: the share without an error beside Cover's curve, or the accuracy.

    A colour a representation, a panel for each probe, number of training views and, where dimensions differ, number of
    images. The horizontal axis is the dimension if a representation was measured in several, else the number of
    images. Shares have 95 % binomial intervals, and dashed beside those of linear probes is the share of tasks that an
    affine function can solve on points in general position; accuracies have their standard deviation over tasks, and
    dashed is chance.

    Args:
        points: Sequence of `diagnostics.IdealnessPoint`, or of objects with the same attributes.
        value: `"solved"` or `"accuracy"`.

    Returns:
        SVG text, or `None` without matplotlib.

    Example:

    >>> views = np.random.normal(size=(2, 32, 8)) + 9 * np.random.normal(size=(32, 8))
    >>> svg = keras_issl.report.charts.idealness(keras_issl.diagnostics.idealness(views, classes=(8, 16, 32)).points)
    """
    points = [p for p in points if math.isfinite(getattr(p, value))]
    names = list(dict.fromkeys(p.representation for p in points))
    sizes = {}  # (representation, n) -> its dimensions; with one alone it is a property, with several an axis
    for p in points:
        sizes.setdefault((p.representation, p.n), set()).add(p.dim)
    by_dim = max(map(len, sizes.values()), default=0) > 1
    key, other = ("dim", "n") if by_dim else ("n", "probe")
    place = lambda p: (p.probe, p.train_views, getattr(p, other))  # noqa: E731
    panels = sorted({place(p) for p in points}, key=lambda panel: (panel[0], panel[2], panel[1])) or [("", 0, 0)]
    columns = min(3, len(panels))
    shape = (-(-len(panels) // columns), columns)
    ticks = sorted({getattr(p, key) for p in points})
    is_wide = bool(ticks) and ticks[-1] > 6 * ticks[0]  # for a logarithmic axis
    width = 5.4 if columns == 1 else 10.2
    named = {}  # of the legend

    def draw(*every):
        for axes, panel in zip(every, panels, strict=False):
            inside = sorted((p for p in points if place(p) == panel), key=lambda p: getattr(p, key))
            for i, name in enumerate(names):
                line = [p for p in inside if p.representation == name]
                if not line:
                    continue
                x, color = numbers([getattr(p, key) for p in line]), PALETTE[i % len(PALETTE)]
                beside = i - (len(names) - 1) / 2  # lines that coincide stand beside each other
                y, bars = (
                    numbers([getattr(p, value) for p in line]),
                    np.nan_to_num(numbers([_bars(p, value) for p in line])),
                )
                at = x * 1.035**beside if is_wide else x + 0.012 * beside * (ticks[-1] - ticks[0])
                drawn = axes.errorbar(at, y, bars.T.clip(0), fmt="o-", color=color, ms=4.5)
                named.setdefault(short(name) if len(names) > 1 else "measured", drawn)
                if value == "solved" and not by_dim and panel[0] == "linear":
                    axes.plot(x, numbers([p.cover for p in line]), color=color, lw=1.2, ls=DASHES)
            if value == "solved" and by_dim and inside and panel[0] == "linear":  # it is of affine functions
                cover = numbers(sorted({p.dim: p.cover for p in inside}.items()))
                axes.plot(*cover.T, color=INK, lw=1.2, ls=DASHES)
            if value == "accuracy":
                axes.axhline(0.5, color=INK, lw=1.2, ls=DASHES)
            if not inside:
                nothing(axes)
                continue
            if is_wide:
                logarithmic(axes, "x", ticks if len(ticks) < 9 else None)
            probe, views, images = panel
            of = f", {images:,} images" if by_dim else ""
            axes.set_title(f"{PROBES.get(probe, short(probe))} probe, {views} view{'s' * (views != 1)}{of}")
            axes.set(
                xlabel="dimensions" if by_dim else "images", ylim=(-0.05, 1.07) if value == "solved" else (0.38, 1.04)
            )
            percent(axes.yaxis)
        for axes in every[len(panels) :]:
            axes.set_axis_off()
        if points:
            for axes in every[::columns]:
                axes.set_ylabel("tasks solved without an error" if value == "solved" else "accuracy on fresh views")
            dashed = every[0].plot([], [], color=INK if by_dim else PALE, lw=1.2, ls=DASHES)[0]
            named["Cover's curve" if value == "solved" else "chance"] = dashed
            fits = sum(0.65 + 0.075 * len(name) for name in named) < width  # inches of an entry
            every[0].figure.legend(
                named.values(),
                named,
                loc="outside lower center",
                ncols=len(named) if fits else max(1, int(width / 2.6)),
            )

    return svg(draw, (width, 3.9 if columns == 1 else 0.9 + 2.7 * shape[0]), shape)


def _bars(point, value):
    """How far the error bar of a point reaches down and up."""
    if value == "accuracy":
        return point.accuracy_sd, min(point.accuracy_sd, 1 - point.accuracy)
    return point.solved - point.solved_low, point.solved_high - point.solved


RISKS = (
    ("approximation", "approximation"),
    ("usability", "usability"),
    ("probe_generalization", "probe generalisation"),
    ("encoder_generalization", "encoder generalisation"),
)


def risk(rows):
    """Where the test error comes from: a stacked bar a representation. Negative parts stand left of zero.

    Above each bar is the test error, which its parts add up to, with its standard error where it is known.

    Args:
        rows: Dict from a name to an object with `approximation` (or `None`), `usability`, `probe_generalization`,
            `encoder_generalization`, `total` and perhaps `standard_errors`, a dict of the same names, such as
            `diagnostics.risk_decomposition` gives.

    Returns:
        SVG text, or `None` without matplotlib.

    Example:

    >>> found = keras_issl.diagnostics.risk_decomposition(train, test)
    >>> svg = keras_issl.report.charts.risk({"noise": found})
    """
    parts = [[math.nan if (v := getattr(row, key)) is None else v for key, _ in RISKS] for row in rows.values()]
    parts = numbers(parts).reshape(-1, len(RISKS))
    totals = numbers([row.total for row in rows.values()])
    errors = [getattr(row, "standard_errors", None) or {} for row in rows.values()]

    def draw(axes):
        y = np.arange(len(rows))[::-1]
        if not np.isfinite(parts).any():
            return nothing(axes)
        left, right = np.zeros(len(rows)), np.zeros(len(rows))
        width = max(np.nansum(np.abs(parts), axis=1).max(), 1e-9)
        for (key, name), values, color in zip(RISKS, parts.T, (PALETTE[7], *PALETTE[:3]), strict=True):
            values = np.nan_to_num(values)
            if not values.any():  # no bar, so no colour to explain; the table has the zero
                continue
            start = np.where(values >= 0, right, left)
            axes.barh(y, values, left=start, color=color, height=0.44, label=name, edgecolor="white", lw=0.8)
            for at, begin, value, error in zip(y, start, values, errors, strict=True):
                text = _points(value, error.get(key))
                text = text if abs(value) > 0.014 * len(text) * width else _points(value)  # if there is room
                if abs(value) > 0.05 * width:
                    axes.text(begin + value / 2, at, text, ha="center", va="center", color="white", size=9)
            right, left = right + values.clip(0), left + values.clip(None, 0)
        bars = np.nan_to_num(numbers([error.get("total") or 0.0 for error in errors]))
        axes.errorbar(totals, y + 0.34, xerr=bars, fmt="D", color=INK, ms=5, lw=1.4, label="test error")
        for at, total, error in zip(y, totals, errors, strict=True):
            if math.isfinite(total):
                text, far = _points(total, error.get("total")), total + (error.get("total") or 0.0)
                axes.annotate(text, (far, at + 0.34), (7, 0), textcoords="offset points", va="center", size=9)
        axes.axvline(0, color=INK, lw=1)
        axes.set_yticks(y, [short(name) for name in rows])
        axes.set(xlabel="error", ylim=(-0.5, len(rows) - 0.4))
        axes.margins(x=0.08)
        rows_only(axes)
        percent(axes.xaxis)
        handles, labels = axes.get_legend_handles_labels()
        order = sorted(range(len(labels)), key=lambda i: labels[i] == "test error")
        axes.figure.legend(
            [handles[i] for i in order], [labels[i] for i in order], loc="outside lower center", ncols=len(order)
        )

    return svg(draw, (7.4, 1.7 + 0.6 * max(1, len(rows))))


def _points(value, error=None):
    """A share and its standard error in percent, without the sign."""
    return f"{100 * value:.1f}".replace("-", "−") + ("" if not error else f" ± {100 * error:.1f}")
