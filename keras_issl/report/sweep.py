"""A picture of what knobs do: accuracy over one number of a recipe at a time."""

import dataclasses
from pathlib import Path

import numpy as np

from keras_issl.report.style import LEVEL_COLORS, PALETTE


@dataclasses.dataclass(frozen=True)
class Panel:
    """One knob.

    Attributes:
        title: What the knob is called, on the axis under the panel.
        curves: Dict from the name of a curve to its points, pairs (value of the knob, top-1 in [0, 1]). Several points
            of one value, as of several seeds, are all drawn, and the line goes through their means.
        shaded: Values whose regions are shaded, such as those at which training collapsed.
        usual: The recipe's own value, marked; `None` for none.
        log: Whether the knob's axis is logarithmic. Where 0 is among the values, they stand at equal distances.

    Example:

    >>> from keras_issl.report.sweep import Panel
    >>> panel = Panel("λ", {"linear probe": [(0, 0.10), (1, 0.31), (2.3, 0.44)]}, shaded=(0,), usual=2.3)
    """

    title: str
    curves: dict
    shaded: tuple = ()
    usual: float | None = None
    log: bool = False


def sweep(panels, path, *, lines=None, title="", shading="shaded"):
    """Draws accuracies over the values of knobs, a panel a knob, into a PNG.

    Args:
        panels: A list of `Panel`s with a value each at least.
        path: Where to write the picture.
        lines: Dict from a name to top-1 in [0, 1], drawn through all panels: what training should exceed.
        title: Heading of the picture.
        shading: What the shaded regions are, for the legend.

    Returns:
        The path, or `None` if matplotlib is not installed or there is nothing to draw.

    Example:

    >>> from keras_issl.report.sweep import Panel, sweep
    >>> path = sweep([Panel("C", {"linear probe": [(64, 0.4), (256, 0.5)]}, log=True)], "sweep.png")
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure  # no pyplot: it would choose a window system
        from matplotlib.ticker import NullLocator
    except ImportError:
        return None
    if not panels:
        return None
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure = Figure(figsize=(1.9 + 2.9 * columns, 1.2 + 2.5 * rows), layout="constrained")
        all_axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes in all_axes.flat[len(panels) :]:
            axes.set_axis_off()
        legend = {}  # what is said -> what it is said of: once for all panels
        for i, (panel, axes) in enumerate(zip(panels, all_axes.flat, strict=False)):
            _draw(panel, axes, lines or {}, shading)
            axes.xaxis.set_minor_locator(NullLocator())
            handles, labels = axes.get_legend_handles_labels()
            legend = dict(zip(labels, handles, strict=True)) | legend
            if i % columns == 0:
                axes.set_ylabel("test top-1, %")
        figure.legend(legend.values(), legend, loc="outside lower left", ncols=1 + columns, frameon=False, fontsize=8)
        if title:
            figure.suptitle(title)
        figure.savefig(path, dpi=120)
    return Path(path)


def _draw(panel, axes, lines, shading):
    values = sorted({value for points in panel.curves.values() for value, _ in points} | set(panel.shaded))
    # Points of equal distance where 0 is among numbers that differ by factors: the ticks say what they are.
    even = panel.log and values[0] == 0
    place = {value: float(at if even else value) for at, value in enumerate(values)}
    if panel.log and not even:
        axes.set_xscale("log")
    for (name, points), color in zip(panel.curves.items(), PALETTE, strict=False):
        at = {value: [100 * top1 for v, top1 in points if v == value] for value, _ in sorted(points)}
        xs, means = [place[value] for value in at], [float(np.mean(ys)) for ys in at.values()]
        axes.plot(xs, means, "o-", color=color, ms=4, lw=1.5, label=name)
        for x, ys in zip(xs, at.values(), strict=True):
            if len(ys) > 1:
                axes.plot([x] * len(ys), ys, "o", color=color, ms=3, alpha=0.4, mew=0)
    for (name, top1), style in zip(lines.items(), (":", "--", "-."), strict=False):
        axes.axhline(100 * top1, color="grey", ls=style, lw=1.2, label=name)
    edges = _edges([place[value] for value in values], log=panel.log and not even)
    for value in panel.shaded:
        at = values.index(value)
        axes.axvspan(edges[at], edges[at + 1], color=LEVEL_COLORS["problem"], alpha=0.13, lw=0, label=shading)
    if panel.usual in place:
        axes.axvline(place[panel.usual], color="grey", lw=0.8, alpha=0.6, label="the recipe's value")
    axes.set_xticks([place[value] for value in values], [f"{value:g}" for value in values])
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xlabel(panel.title)
    axes.grid(axis="y", alpha=0.25)


def _edges(places, log):
    """Where the region of one value ends and that of the next begins, half way: one more number than values."""
    at = np.log(places) if log else np.asarray(places, float)
    if len(at) == 1:
        edges = np.array([at[0] - 0.5, at[0] + 0.5])
    else:
        middle = (at[1:] + at[:-1]) / 2
        edges = np.array([at[0] - (middle[0] - at[0]), *middle, at[-1] + (at[-1] - middle[-1])])
    return np.exp(edges) if log else edges
