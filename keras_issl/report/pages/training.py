"""The page of a training run: how it went, whether something is wrong, and how it was made."""

import dataclasses
import math

from keras_issl.report import charts
from keras_issl.report.page import LEVELS, Page, shown
from keras_issl.report.pages.shared import flat, made, pictures
from keras_issl.report.quantities import (
    CURVES,
    REPRESENTATION,
    THROUGHPUT,
    Panel,
    bounds,
    formula,
    further,
    most_classes,
    title_of,
)
from keras_issl.report.run import duration
from keras_issl.report.words import as_text

__all__ = ["settings", "training_page"]

WORST_FIRST = tuple(reversed(LEVELS))
PARTS = "parts of the loss"  # the panel that says how they add up
EMPTY = (
    "Nothing has been measured yet: the run writes its first row after a few steps. Make the page again then; it has "
    "the recipe and the data already."
)
STEP = "Where the time of one training step goes, part by part."


def training_page(path, run, *, galleries=(), date=None):
    """Writes one HTML page about a training run: numbers, verdicts, curves, and how it was made.

    Args:
        path: Where to write the page; ends in `.html`.
        run: A `Run`. A run without records is drawn from its history, an epoch a point; without either the page has
            what is known before the first step.
        galleries: PNG files, (file, caption) or (title, file, caption) tuples, such as example views.
        date: Text, of the page.

    Returns:
        The path.

    Raises:
        ValueError: `path` does not end in `.html`.

    Example:

    >>> records = {"step": np.arange(10.0, 101, 10), "loss": np.linspace(5.5, 4.8, 10)}
    >>> run = keras_issl.report.Run("try", records, objective="SimCLR", recipe={"epochs": 3, "batch_size": 256})
    >>> keras_issl.report.training_page("training.html", run).name
    'training.html'
    """
    unit, series = run.series()
    page = Page(run.name, _subtitle(run))
    page.section("At a glance").tiles([*_tiles(run, series)])
    _verdicts(page, run)
    if not series:
        page.paragraph(EMPTY)
    against = bounds(run)
    marks = [charts.Mark(float(v.since), v.title, v.level) for v in run.verdicts if unit == "step" and dated(v)]
    panels = [
        dataclasses.replace(panel, caption=f"{panel.caption} {formula(run)}".strip()) if panel.title == PARTS else panel
        for panel in CURVES
    ]
    _curves(page, "Curves", panels, unit, series, against, marks)
    own = [Panel(title_of(name), title_of(name), (name,), "") for name in further(series)]
    if own:
        page.subsection("Further logs")
        _figures(page, own, unit, series, {}, marks)
    _curves(page, "Representation over time", REPRESENTATION, unit, series, against, marks)
    if run.step_parts or any(name in series for panel in THROUGHPUT for name in panel.columns):
        page.section("Throughput")
        if run.step_parts:
            said = "; ".join(f"{name} {shown(1e3 * value)} ms" for name, value in run.step_parts.items())
            page.figure(charts.step_time(run.step_parts), STEP, alt=f"One step: {said}.")
        _figures(page, THROUGHPUT, unit, series, {}, marks)
    pictures(page, galleries)
    _recipe(page, run)
    page.section("Protocol")
    page.protocol(_protocol(run, date))
    known = {field.name: getattr(run, field.name) for field in dataclasses.fields(run)}
    verdicts = [{key: getattr(v, key, None) for key in ("level", "kind", "since", "title")} for v in run.verdicts]
    last = {name: float(values[-1]) for name, values in run.records.items() if len(values)}
    page.json(known | {"records": {"rows": _rows(run), "last": last}, "verdicts": verdicts, "date": date})
    return page.write(path)


def _subtitle(run):
    on = f"{run.objective or 'Training'} on {run.data['name']}" if run.data.get("name") else run.objective
    images = f"{shown(run.data['images'])} images" if run.data.get("images") else ""
    return ", ".join(filter(None, (on, images, run.started and f"started {run.started}")))


def _tiles(run, series):
    """The few numbers to remember, of those that were measured."""
    whole = run.recipe.get("epochs")
    steps = "" if run.steps is None else f"{shown(run.steps)} steps"
    stopped = f"stopped by {run.stopped_by}" if run.stopped_by else ""
    if run.epochs is not None or whole:
        note = ", ".join(filter(None, (f"of {shown(whole)}" if whole else "", steps, stopped)))
        yield shown(run.epochs or 0), "epochs done", note
    if "loss" in series:
        at, loss = series["loss"]
        finite = loss[abs(loss) < math.inf]
        if math.isfinite(loss[-1]):
            note = f"least so far {shown(float(finite.min()))}"
        else:
            note = f"last finite one {shown(float(finite[-1]))}" if len(finite) else "never finite"
        yield number(loss[-1]), "loss", note
    if (used := run.last("effective_classes")) is not None:
        most = most_classes(run, used)
        yield number(used, 1 if used < 1e4 else 0), "exp H(M)", most and f"effective classes, of at most {shown(most)}"
    if (rank := run.last("effective_rank")) is not None:
        width = f"of {shown(run.feature_dim)} dimensions" if run.feature_dim else "dimensions in use"
        yield number(rank, 1), "effective rank", width
    if (top1 := run.last("online_top1")) is not None:
        yield share(top1), "online top-1", "online: on augmented training views"
    if (speed := run.usual("images_per_second")) is not None:
        yield f"{speed:,.0f}" if speed >= 10 else shown(speed), "images a second", "median over the run"
    if run.wall_time is not None:
        yield duration(run.wall_time), "wall time", "of training"


def number(value, digits=None):
    """A measurement as text: what is not finite says so, for here it is news."""
    if value is None or not math.isnan(value):
        rounded = digits is not None and value is not None and math.isfinite(value)
        return shown(round(float(value), digits) if rounded else value)
    return "NaN"


def share(value):
    """A share in percent, as text."""
    return f"{100 * value:.1f} %" if math.isfinite(value) else number(value)


def _verdicts(page, run):
    verdicts = sorted(run.verdicts, key=lambda verdict: WORST_FIRST.index(verdict.level))
    for verdict in verdicts:
        page.verdict(verdict.level, verdict.title, evidence(verdict), verdict.advice)


def evidence(verdict):
    """The evidence of a verdict, and since when it is so, if that is known."""
    since = f"Since step {shown(verdict.since)}." if dated(verdict) else ""
    return " ".join(filter(None, (verdict.evidence, since)))


def dated(verdict):
    """Whether it is known since when a verdict holds."""
    return verdict.since is not None and math.isfinite(verdict.since)


def _curves(page, title, panels, unit, series, against, marks):
    """A section of charts, if something of it was measured."""
    if any(name.removeprefix("val_") in panel.columns for name in series for panel in panels):
        page.section(title)
        _figures(page, panels, unit, series, against, marks)


def _figures(page, panels, unit, series, against, marks):
    for panel in panels:
        names = [name for column in panel.columns for name in (column, f"val_{column}") if name in series]
        if not names:
            continue
        lines = [
            charts.Line(title_of(name), *series[name], panel.columns.index(name.removeprefix("val_")), "val_" in name)
            for name in names
        ]
        held = [pair for column in panel.columns if column in names for pair in against.get(column, ())]
        picture = charts.over_time(
            lines,
            title=panel.title,
            xlabel=unit,
            ylabel=panel.unit,
            bounds=held,
            marks=marks,
            shares=panel.percent,
            zero=panel.zero,
            wide_range=panel.wide_range,
        )
        text = share if panel.percent else number
        ends = [f"{line.label} from {text(float(line.y[0]))} to {text(float(line.y[-1]))}" for line in lines]
        page.figure(picture, panel.caption, alt=f"{panel.title} against the {unit}: {'; '.join(ends)}.")


def settings(values, prefix=""):
    """Nested values as a flat dict: `{"args": {"size": 3}}` becomes `{"args.size": 3}`.

    Example:

    >>> keras_issl.report.pages.training.settings({"epochs": 3, "args": {"size": [3, 3]}})
    {'epochs': 3, 'args.size': [3, 3]}
    """
    found = {}
    for name, value in values.items():
        inner = hasattr(value, "items") and len(value) > 0
        found |= settings(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return found


def said(value, name=""):
    """A value of a recipe in words."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return as_text(value, name) or "none"


def _recipe(page, run):
    values, changed = settings(run.recipe), settings(run.overrides)
    if not values and not changed:
        return
    page.section("Recipe")
    for note in run.notes:
        page.paragraph(note, note=True)
    values = {name: value for name, value in (values | {n: v for n, v in changed.items() if n not in values}).items()}
    header = ["setting", "value", "origin"] if changed else ["setting", "value"]
    rows = [[name, said(value, name), *(["overridden"] * (name in changed) or [""])] for name, value in values.items()]
    count = sum(name in changed for name in values)
    caption = f"{count} of {len(values)} settings were overridden." if changed else "As the recipe has it."
    page.table(header, [row[: len(header)] for row in rows], caption)


def _protocol(run, date):
    return {
        "objective": run.objective or None,
        **{f"data: {key}": value for key, value in flat(run.data).items()},
        "features": f"{shown(run.feature_dim)} wide" if run.feature_dim else None,
        "online probe": as_text(run.online_probe) if run.online_probe else None,
        "backend": ", ".join(f"{run.backend[key]}" for key in ("name", "reason") if run.backend.get(key)) or None,
        "started": run.started,
        "stopped by": run.stopped_by,
        "wall time": None if run.wall_time is None else duration(run.wall_time),
        "records": f"{shown(_rows(run))} rows" if _rows(run) else None,
        **{key: value for key, value in made(run.versions, run.hardware, None, date).items() if value is not None},
    }


def _rows(run):
    return max((len(values) for values in run.records.values()), default=0)
