"""The page of an evaluation: the numbers, how sure they are, and how they were made."""

import contextlib
import math

from keras_issl.report import charts
from keras_issl.report.page import Page, shown
from keras_issl.report.pages.shared import flat, listed, made, named_results, pictures, score, warnings
from keras_issl.report.words import as_text, metric_title

__all__ = ["evaluation_page"]


def evaluation_page(path, results, *, title="Evaluation", subtitle="", galleries=(), few_shot=None):
    """Writes one HTML page about one or several evaluations: the numbers, how sure they are, and how they were made.

    Args:
        path: Where to write the page; ends in `.html`.
        results: A `results.Result`, a sequence of them, or a dict from names to them, the most important one first.
        title: Heading of the page.
        subtitle: A line under it; by default what was fitted to what.
        galleries: Pictures, as for `diagnosis_page`.
        few_shot: Dict from names to label-efficiency rows, as for `charts.label_efficiency`; by default what the
            results hold.

    Returns:
        The path.

    Raises:
        ValueError: There are no results, or `path` does not end in `.html`.

    Example:

    >>> result = keras_issl.probes.evaluate(train, test, probe=keras_issl.probes.RidgeProbe())
    >>> keras_issl.report.evaluation_page("evaluation.html", result, title="Noise").name
    'evaluation.html'
    """
    named = named_results(results)
    if not named:
        raise ValueError("`results` should hold at least one evaluation. Received: none.")
    first = next(iter(named.values()))
    page = Page(title, subtitle or _subtitle([*named.values()]))
    page.section("Result")
    for name, result in named.items():
        warnings(page, name if len(named) > 1 else "", result)
    page.tiles([*_tiles(first)])
    page.paragraph(first.protocol())
    metrics = list(dict.fromkeys(metric for result in named.values() for metric in result.metrics))
    rows = [[name, *(score(result, metric) for metric in metrics)] for name, result in named.items()]
    page.table(
        ["", *(metric_title(metric) for metric in metrics)],
        rows,
        "Test accuracy, 95 % interval",
        _notes(named.values()),
    )
    if len(named) > 1:
        points = [(n, m["value"], m["low"], m["high"]) for n, r in named.items() if (m := r.metrics.get("top1"))]
        page.figure(
            charts.intervals(points),
            "Test top-1 with its 95 % bootstrap interval over test images.",
            alt=listed("Test top-1", ((name, f"{100 * value:.1f} %") for name, value, _, _ in points)),
        )
    shots = few_shot or {name: _shots(result.few_shot) for name, result in named.items() if result.few_shot}
    if shots:
        page.section("Fewer labels")
        page.figure(
            charts.label_efficiency(shots),
            "Accuracy against the number of labels that the probe was given: mean and standard deviation over draws.",
            alt="Accuracy against the number of labels; the table below has the numbers.",
            wide=True,
        )
        every = list(dict.fromkeys(shot for row in shots.values() for shot in row))
        cells = [[name, *(_mean_sd(row.get(shot)) for shot in every)] for name, row in shots.items()]
        page.table(["labels", *map(_labels, every)], cells)
    with_classes = [(name, result) for name, result in named.items() if result.per_class or result.confusions]
    if with_classes:
        page.section("Classes")
    for number, (name, result) in enumerate(with_classes):
        if len(named) > 1:
            page.subsection(name)
        with page.details("Charts") if number else contextlib.nullcontext():
            _classes(page, result)
    _sweeps(page, named)
    pictures(page, galleries)
    page.section("Protocol")
    for name, result in named.items():
        if len(named) > 1:
            page.subsection(name)
        page.protocol(_protocol(result))
        page.json(_attributes(result))
    return page.write(path)


def _subtitle(results):
    """What was fitted to what, in a line."""

    def count(values, words):
        values = list(dict.fromkeys(value for value in values if value is not None))
        return values[0] if len(values) == 1 else f"{len(values)} {words}" if values else ""

    features = {(r.representation["name"], r.representation["feature_dim"]) for r in results}
    width = next(iter(features))[1]
    of = f"{shown(width)} features" if width else "features"
    of = of if len(features) == 1 else f"{len(features)} representations"
    parts = [f"{count([r.probe['name'] for r in results], 'probes')} on {of}"]
    sizes = {(r.train["examples"], r.test["examples"]) for r in results}
    if len({r.test_name for r in results}) > 1:
        parts.append(count([r.test_name for r in results], "data sets"))
    elif len(sizes) == 1:
        known = zip(next(iter(sizes)), ("training", "test"), strict=True)
        known = [f"{shown(size)} {part}" for size, part in known if size]
        parts += [f"{' and '.join(known)} images"] if known else []
    return ", ".join(parts)


def _notes(results):
    """Row -> what sets it apart from the others: its probe, data or protocol."""
    parts = [(result.probe["name"], result.test_name, result.selection) for result in results]
    differ = [len(set(column)) > 1 for column in zip(*parts, strict=True)]
    return {i: "; ".join(p for p, differs in zip(row, differ, strict=True) if differs) for i, row in enumerate(parts)}


def _tiles(result):
    for metric, found in result.metrics.items():
        low = found.get("low")
        note = "" if low is None else f"95 % interval {100 * low:.1f}–{100 * found['high']:.1f} %"
        if (found.get("seeds") or 0) > 1:
            note += f"{'; ' if note else ''}± {100 * found['sd']:.1f} over {found['seeds']} seeds"
        yield f"{100 * found['value']:.1f} %", metric_title(metric), note
    if result.test.get("examples"):
        yield shown(result.test["examples"]), "test images", result.test_name
    if result.representation.get("feature_dim"):
        yield shown(result.representation["feature_dim"]), "dimensions", result.representation["name"]


def _shots(few_shot):
    """The `few_shot` of a result as charts take it: its keys are text."""
    number = lambda key: None if key == "all" else float(key) if "." in key or "e" in key else int(key)  # noqa: E731
    return {number(str(key)): (row["mean"], row["sd"], row["draws"]) for key, row in few_shot.items()}


def _mean_sd(row):
    if row is None:
        return None
    mean, sd, draws = (row.mean, row.sd, row.draws) if hasattr(row, "mean") else row
    return f"{100 * mean:.1f} ± {100 * sd:.1f} %" if draws > 1 else f"{100 * mean:.1f} %"


def _labels(shot):
    if shot is None:
        return "all"
    return f"{100 * shot:g} %" if isinstance(shot, float) and 0 < shot < 1 else f"{shot} a class"


def _sweeps(page, named):
    """A chart for each probe that chose among several candidates."""
    tried = {name: result.probe for name, result in named.items() if len(result.probe["validation_scores"]) > 1}
    if tried:
        page.section("Choice of the hyperparameter")
    for name, probe in tried.items():
        knob, chosen = next(iter(probe["selected"].items()), ("candidate", None))
        chosen = [_number(value) for value in (chosen if isinstance(chosen, list) else [chosen])]
        page.figure(
            charts.validation(
                {_number(candidate): score for candidate, score in probe["validation_scores"].items()},
                chosen,
                xlabel=knob.replace("_", " "),
            ),
            f"{name}: chosen on held-out training images. The test images had no part in it.",
            alt=f"Held-out accuracy against {knob}; chosen: {', '.join(map(str, chosen))}.",
        )


def _number(candidate):
    """A candidate as the number that its text is, if it is one."""
    try:
        value = float(candidate)
    except (TypeError, ValueError):
        return candidate
    return value if math.isfinite(value) else str(candidate)


def _classes(page, result):
    """Accuracy of each class and what is taken for what; the whole matrix where the result holds it."""
    per_class, confusions = result.per_class or [], result.confusions or []
    if per_class:
        worst = min(per_class, key=lambda row: row["accuracy"])
        page.figure(
            charts.per_class([row["accuracy"] for row in per_class], [row["label"] for row in per_class]),
            f"Accuracy of each class; dashed is their mean. Lowest: {worst['label']}, {100 * worst['accuracy']:.1f} %.",
            alt=f"A bar a class, from the most to the least accurate; the lowest is {worst['label']}.",
        )
    if not confusions:
        return
    matrix, labels = _matrix(per_class, confusions)
    pairs = [(row["label"], row["guess"], row["share"]) for row in confusions]
    most = pairs[0]
    page.figure(
        charts.confusion(matrix, labels) if matrix else charts.confusions(pairs),
        f"What is taken for what, in percent of the class. Most often: {most[0]} for {most[1]}, {100 * most[2]:.1f} %.",
        alt=f"Confusions of classes; the most frequent is {most[0]} taken for {most[1]}.",
    )
    page.table(["class", "taken for", "of its images"], [(a, b, f"{100 * s:.1f} %") for a, b, s in pairs[:10]])


def _matrix(per_class, confusions):
    """Counts and labels of up to 30 classes, or `None`: where some confusions are left out, a matrix would mislead."""
    labels = [row["label"] for row in per_class]
    at = {label: i for i, label in enumerate(labels)}
    known = all(row["label"] in at and row["guess"] in at for row in confusions)
    if not 0 < len(labels) <= charts.MOST or not known or len(at) < len(labels):
        return None, labels
    matrix = [[0.0] * len(labels) for _ in labels]
    for i, row in enumerate(per_class):
        matrix[i][i] = row["accuracy"] * row["examples"]
    for row in confusions:
        matrix[at[row["label"]]][at[row["guess"]]] += row["count"]
    total = sum(row["examples"] for row in per_class)
    return (matrix if sum(map(sum, matrix)) > 0.995 * total else None), labels


def _protocol(result):
    probe = result.probe
    return {
        "probe": probe["name"] + (f", {probe['family']} family" if probe["family"] else ""),
        "chosen": ", ".join(f"{key} = {as_text(value, key)}" for key, value in probe["selected"].items()) or None,
        "how": probe["selection"] or None,
        "mode": result.selection,
        "train": _described(result.train_name, result.train),
        "test": _described(result.test_name, result.test),
        "features": ", ".join(f"{key}: {value}" for key, value in _features(result.representation).items()),
        "seeds of the probe": ", ".join(map(str, result.seeds)) or None,
        **made(result.versions, result.hardware, result.seconds, result.date),
    }


def _features(known):
    """Where features come from; their `probe` is what they were trained for."""
    found = flat({key: value for key, value in known.items() if value not in (None, {}, [])})
    return {"trained for" if key == "probe" else key: value for key, value in found.items()}


def _described(name, data):
    counts = [f"{shown(data[key])} {key}" for key in ("examples", "classes") if data.get(key)]
    marks = [f"fingerprint {data['fingerprint']}"] if data.get("fingerprint") else []
    return ", ".join([name, *counts, *marks])


def _attributes(item):
    return {key: value for key, value in vars(item).items() if not key.startswith("_")}
