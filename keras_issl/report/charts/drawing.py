"""What the charts share: the look, SVG text from matplotlib, and axes that read well."""

import io
import re
import warnings

import numpy as np

from keras_issl.report.words import clean

INK, PALE, GRID = "#1d2530", "#5a6675", "#e3e7ec"
RC = {
    "svg.fonttype": "none",  # text stays text: small, sharp, found by a search, in the reader's own font
    "svg.hashsalt": "keras_issl",  # the same numbers give the same ids
    "text.parse_math": False,  # a class may be called $5
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.edgecolor": PALE,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": PALE,
    "ytick.color": PALE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "errorbar.capsize": 2.5,
}
MOST = 30  # classes that a picture shows one by one


def svg(draw, size=(5.4, 3.3), panels=(1, 1)):
    """SVG text of what `draw(axes, ...)` draws on rows and columns of panels; `None` without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure  # no pyplot: it would choose a window system
    except ImportError:
        return None
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's font draws the text, not ours
        matplotlib.rcdefaults()  # a user's own style would change the page
        matplotlib.rcParams.update(RC)
        figure = Figure(figsize=size, layout="constrained")
        every = figure.subplots(*panels, squeeze=False, sharey=True).ravel()
        draw(*every)
        for axes in every:
            axes.set(xlabel=short(axes.get_xlabel(), 60), ylabel=short(axes.get_ylabel(), 60))
        file = io.StringIO()
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=no_metadata, transparent=True)
    text = file.getvalue()
    text = re.sub(r" font-family: [^;]*;", "", text[text.index("<svg") :])  # the page's font, else the one named here
    text = re.sub(r' transform="rotate\(-0 [^"]*"', "", text)
    return text.replace("<svg ", '<svg font-family="system-ui, sans-serif" ', 1)


def short(text, length=28):
    """A name on one line, cut to a length."""
    text = " ".join(clean(text).split())
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def short_names(names, count):
    """Names of as many classes, or their numbers."""
    return [short(name) for name in names] if names is not None else [str(i) for i in range(count)]


def rows_only(axes):
    """The vertical axis of horizontal bars: names, no lines."""
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def numbers(values):
    """Numbers as float64; what is not finite becomes NaN, which is not drawn."""
    values = np.asarray(values if values is not None else [], np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def nothing(axes, text="no finite numbers to draw"):
    """What is drawn where there is nothing to draw."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", color=PALE, transform=axes.transAxes)


def percent(axis):
    """An axis of shares, written in percent, with few enough numbers to read each."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=7, steps=(1, 2, 5, 10)))
    axis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %".replace("-", "−"))


def logarithmic(axes, which, ticks=None):
    """A logarithmic axis whose numbers are plain text (matplotlib's own would be formulas)."""
    from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator

    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogLocator(numticks=7) if ticks is None else FixedLocator(list(ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(lambda value, _: f"{value:g}".replace("e-0", "e-").replace("e+0", "e"))
