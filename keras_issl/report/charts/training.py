"""Charts of a training run: what was measured against the step, and where a step's time goes."""

import dataclasses
import math

import numpy as np

from keras_issl.report.charts.drawing import INK, PALE, logarithmic, nothing, percent, rows_only, short, svg
from keras_issl.report.page import shown
from keras_issl.report.style import LEVEL_COLORS, PALETTE

__all__ = ["Line", "Mark", "over_time", "step_time", "thinned"]

DASHES = (0, (4, 3))
WIDTH, HEIGHT, LEGEND_ROW = 5.4, 2.9, 0.19  # inches
POINTS = 600  # of a line, at most
DRAWABLE = 1e30  # what is larger is as good as infinite, and axes would overflow
MANY, SMOOTHED = 150, 100  # more rows than so many are drawn pale, with so many medians over them
FEW = 30  # measurements that are drawn as dots, too


@dataclasses.dataclass(frozen=True)
class Line:
    """What one line of a chart shows.

    Attributes:
        label: Its name.
        x: When it was measured (n,).
        y: What was measured (n,). Non-finite values interrupt the line and are marked.
        color: Number of its colour.
        faint: Whether it is a companion of the line of the same colour, such as the validation of it.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    color: int = 0
    faint: bool = False


@dataclasses.dataclass(frozen=True)
class Mark:
    """A time to point at: since when something is so.

    Attributes:
        x: The time.
        label: What is so.
        level: `"good"`, `"warning"` or `"problem"`.
    """

    x: float
    label: str
    level: str = "warning"


def thinned(x, y, most=POINTS):
    """A line with fewer points that looks the same: of each of equal pieces the least and the greatest value.

    Args:
        x: When (n,).
        y: What (n,); a piece without finite values stays a gap.
        most: Points that are kept, at least 4.

    Returns:
        The pair of arrays, at most `most` long; as given if it is short enough.

    Example:

    >>> x, y = keras_issl.report.charts.thinned(np.arange(100_000), np.sin(np.arange(100_000)), most=10)
    >>> len(x) <= 10, float(y.max()) == float(np.sin(np.arange(100_000)).max())
    (True, True)
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(x) <= most:
        return x, y
    kept = [0, len(x) - 1]
    for piece in np.array_split(np.arange(len(x)), (most - 2) // 2):
        finite = piece[np.isfinite(y[piece])]
        kept += [finite[np.argmin(y[finite])], finite[np.argmax(y[finite])]] if len(finite) else [piece[0]]
    kept = np.unique(kept)
    return x[kept], y[kept]


def over_time(
    lines, *, title="", xlabel="step", ylabel="", bounds=(), marks=(), shares=False, zero=False, wide_range=False
):
    """Measurements against the step, a line each.

    What is not finite is marked by crosses on the axis. A bound far above what was measured is not drawn. A few
    values far from all others do not squeeze the rest: arrows at the edge stand for them, with the farthest said.

    Args:
        lines: `Line`s.
        title: What the picture is called.
        xlabel: What time is counted in.
        ylabel: What is measured, and its unit.
        bounds: Pairs of a label and a number: what to hold the lines against, drawn dashed.
        marks: `Mark`s: thin vertical lines with a label. Those after the last measurement are left out.
        shares: Whether values are shares, to be written in percent.
        zero: Whether the axis should begin at 0, so that noise is not enlarged.
        wide_range: Whether the axis becomes logarithmic where positive values span a factor of 30.

    Returns:
        SVG text, or `None` without matplotlib.

    Example:

    >>> line = keras_issl.report.charts.Line("loss", np.arange(1, 101), 1 / np.arange(1, 101))
    >>> mark = keras_issl.report.charts.Mark(40, "Learning stalls")
    >>> svg = keras_issl.report.charts.over_time([line], title="loss", marks=[mark])
    """
    lines = [dataclasses.replace(line, y=_drawable(line.y), x=np.asarray(line.x, np.float64)) for line in lines]
    every = np.concatenate([line.y[np.isfinite(line.y)] for line in lines] or [np.zeros(0)])
    as_logarithm = wide_range and every.size and every.min() > 0 and every.max() > 30 * every.min()
    if every.size:
        reach = 3 * np.abs(every).max()
        bounds = [(label, value) for label, value in bounds if as_logarithm or abs(value) <= reach]

    def draw(axes):
        _title(axes, title)
        last = max((line.x.max() for line in lines if len(line.x)), default=0.0)
        broken = np.concatenate([line.x[~np.isfinite(line.y)] for line in lines] or [np.zeros(0)])
        if not every.size and not broken.size:
            return nothing(axes, "nothing measured yet")
        for line in lines:
            _draw_line(axes, line)
        for number, (label, value) in enumerate(bounds if every.size else ()):
            look = {"color": PALE, "ls": ":"} if number else {"color": INK, "ls": DASHES}
            axes.axhline(value, lw=1, label=short(label, 44), **look)
        if as_logarithm:
            logarithmic(axes, "y")
            _few_decades(axes, [*every, *(value for _, value in bounds)])
        else:
            _limits(axes, lines, [value for _, value in bounds] + [0.0] * zero + [0.05] * shares)
            percent(axes.yaxis) if shares else _plain(axes.yaxis)
        if broken.size:
            look = {"color": LEVEL_COLORS["problem"], "marker": "x", "ms": 6, "mew": 1.6, "label": "not finite"}
            _at_the_edge(axes, broken, 0.03, **look)
            if not every.size:
                axes.set_ylim(0, 1)
                axes.set_yticks([])
        axes.set(xlabel=xlabel, ylabel="" if ylabel == title else ylabel, xlim=(0, 1.03 * last if last > 0 else 1))
        _plain(axes.xaxis, whole=True)
        _marks(axes, [mark for mark in marks if 0 <= mark.x <= last], last, lines)
        if len(axes.get_legend_handles_labels()[1]) > (1 if title and every.size else 0):
            _legend(axes)

    return svg(draw, (WIDTH, HEIGHT))


def step_time(parts):
    """Where the time of one training step goes: one bar of its parts.

    Args:
        parts: Dict from the name of a part to its seconds, in the order of the step.

    Returns:
        SVG text, or `None` without matplotlib.

    Example:

    >>> svg = keras_issl.report.charts.step_time({"load the batch": 0.004, "make views": 0.03, "backward": 0.1})
    """
    parts = {name: float(value) for name, value in parts.items() if math.isfinite(value) and 0 <= value < DRAWABLE}
    total = sum(parts.values())
    scale, unit = (1e3, "ms") if total < 1 else (1.0, "s")

    def draw(axes):
        if not total:
            return nothing(axes)
        start = 0.0
        for number, (name, value) in enumerate(parts.items()):
            color, share = PALETTE[number % len(PALETTE)], value / total
            label = f"{short(name, 40)}: {scale * value:.3g} {unit}, {100 * share:.0f} %"
            axes.barh(0, scale * value, left=scale * start, height=0.8, color=color, edgecolor="white", label=label)
            if share >= 0.09:
                at = (scale * (start + value / 2), 0)
                ink = "white" if _dark(color) else INK
                axes.text(*at, f"{100 * share:.0f} %", ha="center", va="center", color=ink, size=10)
            start += value
        _title(axes, f"one step: {scale * total:.3g} {unit}")
        axes.set(xlabel=unit, xlim=(0, scale * total), ylim=(-0.5, 0.5), yticks=[])
        rows_only(axes)
        axes.spines["left"].set_visible(False)
        _plain(axes.xaxis)
        axes.figure.legend(loc="outside lower left", ncols=1, fontsize=9.5, handlelength=1, handleheight=1)

    return svg(draw, (5.4, 1.6 + 0.24 * len(parts)))


def _drawable(values):
    values = np.asarray(values, np.float64)
    return np.where(np.abs(values) < DRAWABLE, values, np.nan)  # NaN and infinity compare false


def _draw_line(axes, line):
    x, y = thinned(line.x, line.y)
    finite = np.isfinite(y)
    if not finite.any():
        return
    look = {"color": PALETTE[line.color % len(PALETTE)], "ls": "-" if line.color < len(PALETTE) else "--"}
    label = short(line.label, 44)
    if line.faint:
        companion = {"lw": 1.1, "marker": "D", "ms": 3.5, "mfc": "white", "markevery": math.ceil(len(x) / FEW)}
        axes.plot(x, y, label=label, **look | companion)
    elif finite.sum() <= MANY:
        axes.plot(x, y, label=label, **look, **({"marker": "o", "ms": 3.5} if finite.sum() <= FEW else {}))
    else:  # every row pale, and on top what they do on the whole
        axes.plot(x, y, color=look["color"], lw=0.8, alpha=0.35)
        axes.plot(*_smoothed(line.x, line.y), label=label, **look)


def _smoothed(x, y):
    """Medians of many equal pieces; a piece without finite values stays a gap."""
    pieces = [piece[np.isfinite(y[piece])] for piece in np.array_split(np.arange(len(x)), SMOOTHED)]
    pairs = [(x[piece[len(piece) // 2]], np.median(y[piece])) if len(piece) else (np.nan, np.nan) for piece in pieces]
    return np.array(pairs).T


def _at_the_edge(axes, at, height, **look):
    """Symbols at a height of the picture, which is a share of it."""
    at = at[:: math.ceil(len(at) / 50)]
    axes.plot(at, np.full(len(at), height), ls="none", transform=axes.get_xaxis_transform(), **look)


def _limits(axes, lines, held):
    """A vertical axis for what most values are, and for what they are held against; arrows for those beyond it."""
    finite = [line.y[np.isfinite(line.y)] for line in lines]
    every = np.concatenate(finite)
    if not every.size:
        return
    low, high = every.min(), every.max()
    if every.size >= 50:
        bottom = min(np.quantile(y, 0.02, method="higher") for y in finite if len(y))
        top = max(np.quantile(y, 0.98, method="lower") for y in finite if len(y))
        if top > bottom:
            near = every[(every >= bottom - 2 * (top - bottom)) & (every <= top + 2 * (top - bottom))]
            low, high = near.min(), near.max()
    low, high = min([low, *held]), max([high, *held])
    room = max(0.06 * (high - low), 5e-3 * max(abs(low), abs(high)), 1e-9)  # noise in the last digit is no curve
    low, high = low - room * (low != 0 or 0.0 not in held), high + room
    axes.set_ylim(low, high)
    for beyond, y, marker, worst in ((every > high, 0.985, "^", every.max()), (every < low, 0.015, "v", every.min())):
        if beyond.any():
            at = np.concatenate([line.x[np.isfinite(line.y)] for line in lines])[beyond]
            label = f"beyond the axis, {'up' if marker == '^' else 'down'} to {shown(float(worst))}"
            _at_the_edge(axes, at, y, color=PALE, marker=marker, ms=5, clip_on=False, label=label)


def _few_decades(axes, values):
    """Ticks between the powers of ten where there are only one or two of these."""
    from matplotlib.ticker import FixedLocator

    low, high = min(values) / 1.25, max(values) * 1.25
    axes.set_ylim(low, high)
    if high < 1e3 * low:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
        axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.yaxis.set_major_formatter(lambda value, _: _tick(value))


def _marks(axes, marks, last, lines):
    """Vertical lines with a label along each; those at almost one time share a line."""
    low, high = axes.get_ylim()
    groups = []
    for mark in sorted(marks, key=lambda mark: mark.x):
        if groups and mark.x - groups[-1][0].x <= 0.04 * last:
            groups[-1].append(mark)
        else:
            groups.append([mark])
    for group in groups:
        worst = max(group, key=lambda mark: list(LEVEL_COLORS).index(mark.level))
        color = LEVEL_COLORS[worst.level]
        axes.axvline(group[0].x, color=color, lw=1, zorder=1.5)
        text = short(worst.label, 28) + (f" (+{len(group) - 1})" if len(group) > 1 else "")
        left = group[0].x > 0.93 * last
        near = [line.y[np.abs(line.x - group[0].x) <= 0.05 * last] for line in lines]
        near = np.concatenate([(y[np.isfinite(y)] - low) / ((high - low) or 1) for y in near] or [np.zeros(0)])
        up = (near > 0.4).sum() <= (near < 0.6).sum()  # where it covers less
        axes.annotate(
            text,
            (group[0].x, 0.97 if up else 0.03),
            (-3 if left else 3, 0),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            rotation=90,
            ha="right" if left else "left",
            va="top" if up else "bottom",
            size=8,
            color=color,
            zorder=1.6,  # over the grid, under the curves
            bbox={"fc": "white", "ec": "none", "alpha": 0.75, "pad": 0.6},
        )


def _legend(axes):
    """Names below the picture, where they cover nothing, side by side as far as they fit."""
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, min(len(labels), int(375 / (5.2 * max(map(len, labels), default=1) + 36))))
    axes.figure.legend(handles, labels, loc="outside lower left", ncols=columns)
    axes.figure.set_size_inches(WIDTH, HEIGHT + 0.1 + LEGEND_ROW * math.ceil(len(labels) / columns))


def _title(axes, text):
    if text:
        axes.set_title(short(text, 60), loc="left", weight="bold")


def _plain(axis, whole=False):
    """Numbers as they are read, without a common factor or offset beside the axis."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=6, steps=(1, 2, 2.5, 5, 10), integer=whole))
    axis.set_major_formatter(lambda value, _: _tick(value))


def _tick(value):
    text = f"{value:,.0f}" if abs(value) < 1e7 and value == round(value) else f"{value:.6g}"
    return text.replace("e-0", "e-").replace("e+0", "e").replace("e+", "e").replace("-", "−")


def _dark(color):
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue < 140
