"""The page that compares training runs, and its tables for a terminal."""

from keras_issl.report import charts
from keras_issl.report.page import LEVELS, Page, shown
from keras_issl.report.pages.shared import made
from keras_issl.report.pages.training import evidence, number, said, settings, share
from keras_issl.report.quantities import PANELS, further, most_classes, title_of
from keras_issl.report.run import duration

__all__ = ["recipe_differences", "runs_page", "runs_table"]

HEADER = ("run", "objective", "epochs", "steps", "loss", "exp H(M)", "effective rank", "within / between",
          "top-1 (online)", "images/s", "wall time", "worst verdict")  # fmt: skip
OTHER_OBJECTIVE, OTHER_SCALE = "†", "‡"  # at a loss
SCALES = {
    OTHER_OBJECTIVE: "The loss of another objective than that of {}: the two are not comparable.",
    OTHER_SCALE: "A loss with other weights, temperatures, classes or batch size than {} has: its scale may differ.",
}
NOT_TRAINING = ("name", "note", "smoke")  # what a recipe is, and not how it trains
BATCH = "batch_size"
ARCHITECTURE = (
    "name",
    "dtype",
    "trainable",
    "heads",
    "probe",
    "hidden",
    "teacher_hidden",
    "predictor_hidden",
    "predictor_norm",
    "bottleneck",
    "output_dim",
)  # fmt: skip  (of a config: not the loss's scale)
FIRST = ("loss", "effective_classes", "marginal_entropy", "conditional_entropy", "effective_rank", "within_between",
         "online_top1", "val_online_top1", "images_per_second")  # fmt: skip
ONLINE = (
    "Top-1 (online) is that of the linear probe trained along, on augmented training views: it ranks runs of the same "
    "data and augmentation, and is no test accuracy. Images/s is the median over the run."
)
IMAGES = "Read a difference between these runs as one of images and recipes together, or train them on the same images."


def runs_table(runs):
    """The table of a comparison, for a terminal or a page.

    Args:
        runs: `Run`s.

    Returns:
        A header and a row of text for each run. A dagger marks the loss of another objective than the first run's,
        which cannot be held against it; a double dagger one whose scale may differ, for its weights, temperatures,
        classes or batch size do.

    Example:

    >>> runs = [keras_issl.report.Run(name, {"step": [9], "loss": [loss]}) for name, loss in (("a", 4.5), ("b", 4.25))]
    >>> print(keras_issl.report.table(*keras_issl.report.runs_table(runs)))
    | run | objective | epochs | steps | loss | ...
    """
    rows = []
    for name, run in zip(_names(runs), runs, strict=True):
        loss, used = run.last("loss"), run.last("effective_classes")
        most = most_classes(run, used)
        epochs, whole = run.epochs, run.recipe.get("epochs")
        top1, speed = run.last("online_top1"), run.usual("images_per_second")
        worst = max(run.verdicts, key=lambda verdict: list(LEVELS).index(verdict.level), default=None)
        row = [
            name,
            run.objective or None,
            None if epochs is None else f"{shown(epochs)} / {shown(whole)}" if whole else shown(epochs),
            run.steps,
            None if loss is None else number(loss) + _scale(runs[0], run),
            None if used is None else number(used, 1) + (f" / {shown(most)}" if most else ""),
            number(run.last("effective_rank"), 1),
            number(run.last("within_between"), 3),
            None if top1 is None else share(top1),
            None if speed is None else f"{speed:,.0f}" if speed >= 10 else speed,
            None if run.wall_time is None else duration(run.wall_time),
            None if worst is None else "good" if worst.level == "good" else f"{worst.level}: {worst.title}",
        ]
        rows.append([shown(value) for value in row])
    return list(HEADER), rows


def recipe_differences(runs):
    """What sets the runs' recipes apart.

    Args:
        runs: `Run`s.

    Returns:
        A header, and a row of text for each setting whose value is not the same in all of them; a dash where a recipe
        leaves it to its default.

    Example:

    >>> runs = [keras_issl.report.Run(name, recipe={"epochs": 9, "seed": seed}) for name, seed in (("a", 0), ("b", 1))]
    >>> keras_issl.report.recipe_differences(runs)
    (['setting', 'a', 'b'], [['seed', '0', '1']])
    """
    differ, _ = _settings(runs)
    rows = []
    for setting, values in differ.items():
        texts = [shown(None) if value is MISSING else said(value, setting) for value in values]
        if len(set(texts)) == 1:  # which differ in a digit that is not shown
            texts = [str(value) for value in values]
        rows.append([setting, *texts])
    return ["setting", *_names(runs)], rows


def runs_page(path, runs, *, title="Comparison of runs", date=None):
    """Writes one HTML page that compares training runs: what came of them, what they were told, and their curves.

    Args:
        path: Where to write the page; ends in `.html`.
        runs: `Run`s, the one to hold the others against first.
        title: Heading of the page.
        date: Text, of the page.

    Returns:
        The path.

    Raises:
        ValueError: There is no run, or `path` does not end in `.html`.

    Example:

    >>> runs = [keras_issl.report.Run(name, {"step": [9, 18], "loss": [5.0, 4.5]}) for name in ("first", "second")]
    >>> keras_issl.report.runs_page("runs.html", runs).name
    'runs.html'
    """
    runs = list(runs)
    if not runs:
        raise ValueError("`runs` should hold at least one run. Received: none.")
    names = _names(runs)
    objectives = list(dict.fromkeys(run.objective for run in runs if run.objective))
    page = Page(title, ", ".join(filter(None, (f"{len(runs)} runs" if len(runs) > 1 else names[0], *objectives))))
    page.section("Runs")
    _cards(page, runs, names)
    header, rows = runs_table(runs)
    notes = {i: row[-1] for i, row in enumerate(rows) if row[-1] != shown(None)}
    cells = [[*row[:-2], row[-2].replace(" ", "\u00a0")] for row in rows]
    page.table(header[:-1], cells, "Each run at its end, or as far as it has come", notes)  # the verdict under the name
    for sign, text in SCALES.items():
        if any(sign in row[4] for row in rows):
            page.paragraph(f"{sign} {text.format(names[0])}", note=True)
    page.paragraph(ONLINE, note=True)
    _differences(page, runs)
    _overlaid(page, runs, names)
    page.section("Protocol")
    for name, run in zip(names, runs, strict=True):
        page.subsection(name)
        page.protocol(_protocol(run))
    page.json({"header": header, "rows": rows, "date": date})
    return page.write(path)


def _names(runs):
    """Names of runs, unique."""
    found = []
    for run in runs:
        name, number = run.name, 2
        while name in found:
            name, number = f"{run.name} ({number})", number + 1
        found.append(name)
    return found


def _scale(first, other):
    """A sign at a loss that does not measure the same as the first run's, or no sign."""
    if first.objective != other.objective:
        return OTHER_OBJECTIVE
    ours, theirs = (
        {BATCH: run.recipe.get(BATCH)} | {k: v for k, v in settings(run.config).items() if k not in ARCHITECTURE}
        for run in (first, other)
    )
    return OTHER_SCALE if any(_plain(ours[key]) != _plain(theirs[key]) for key in ours if key in theirs) else ""


def _cards(page, runs, names):
    marks = {name: run.data.get("fingerprint") for name, run in zip(names, runs, strict=True)}
    if len({mark for mark in marks.values() if mark}) > 1:
        told = [
            f"{name}: {run.data.get('name') or 'images'}, {marks[name] or 'fingerprint not known'}"
            for name, run in zip(names, runs, strict=True)
        ]
        page.verdict("warning", "Not the same images", "; ".join(told) + ".", IMAGES)
    for name, run in zip(names, runs, strict=True):
        for verdict in run.verdicts:
            if verdict.level == "problem":
                page.verdict("problem", f"{name}: {verdict.title}", evidence(verdict), verdict.advice)


MISSING = object()


def _settings(runs):
    """Settings that differ, each with a value a run, and how many are the same in all."""
    recipes = [settings(run.recipe) for run in runs]
    names = [n for n in dict.fromkeys(n for recipe in recipes for n in recipe) if n not in NOT_TRAINING]
    values = {name: [_plain(recipe.get(name, MISSING)) for recipe in recipes] for name in names}
    differ = {name: row for name, row in values.items() if any(value != row[0] for value in row)}
    return differ, len(values) - len(differ)


def _plain(value):
    """Tuples as lists, as JSON has them."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _differences(page, runs):
    if len(runs) < 2:
        return
    page.section("What differs")
    header, rows = recipe_differences(runs)
    same = _settings(runs)[1]
    if rows:
        page.table(header, rows)
        page.paragraph(f"{same} other settings are the same in all. A dash is an argument's default.", note=True)
    else:
        page.paragraph(f"The recipes are the same: {same} settings." if same else "No run has its recipe on record.")


def _overlaid(page, runs, names):
    """A chart a quantity, a colour a run."""
    units, measured = zip(*(run.series() for run in runs), strict=True)
    columns = list(dict.fromkeys(name for series in measured for name in series))
    if not columns:
        return
    by_epoch = _by_epoch(runs, units)
    page.section("Curves")
    if by_epoch:
        page.paragraph("Against the epoch, for the runs' epochs have different numbers of steps.", note=True)
    known = [name for panel in PANELS for c in panel.columns for name in (c, f"val_{c}") if name in columns]
    known += [name for c in further(columns) for name in (c, f"val_{c}") if name in columns]
    for name in (name for name in known if name in FIRST):
        _overlay(page, name, names, measured, by_epoch)
    if rest := [name for name in known if name not in FIRST]:
        with page.details(f"{len(rest)} more charts" if len(rest) > 1 else "One more chart"):
            for name in rest:
                _overlay(page, name, names, measured, by_epoch)


def _by_epoch(runs, units):
    """How many steps an epoch of each run has, or `None` if all may be drawn against the step."""
    lengths = [run.steps_per_epoch if unit == "step" else 1.0 for run, unit in zip(runs, units, strict=True)]
    alike = set(units) == {"step"} and (None in lengths or max(lengths) < 1.02 * min(lengths))
    return None if alike else [length or 1.0 for length in lengths]


def _overlay(page, name, names, measured, by_epoch):
    panel = next((p for p in PANELS if name.removeprefix("val_") in p.columns), None)
    lines = [
        charts.Line(run, series[name][0] / (by_epoch[i] if by_epoch else 1), series[name][1], i)
        for i, (run, series) in enumerate(zip(names, measured, strict=True))
        if name in series
    ]
    title, unit = title_of(name), panel.unit if panel else ""
    picture = charts.over_time(
        lines,
        title=title,
        xlabel="epoch" if by_epoch else "step",
        ylabel=unit,
        shares=bool(panel and panel.percent),
        zero=bool(panel and panel.zero),
        wide_range=bool(panel and panel.wide_range),
    )
    text = share if panel and panel.percent else number
    ends = "; ".join(f"{line.label} {text(float(line.y[-1]))}" for line in lines)
    page.figure(picture, "", alt=f"{title}, a line a run; at last: {ends}.")


def _protocol(run):
    data = [shown(run.data[key]) for key in ("name", "images", "fingerprint") if run.data.get(key)]
    return {
        "data": ", ".join(data) or None,
        "backend": run.backend.get("name"),
        "started": run.started,
        "stopped by": run.stopped_by,
        **made(run.versions, run.hardware, None, None),
    }
