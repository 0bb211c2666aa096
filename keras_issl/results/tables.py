"""`table`: results side by side, where they are comparable."""

import os

from keras_issl import report
from keras_issl.report.words import as_text, metric_title
from keras_issl.results import words
from keras_issl.results.result import Result

SYMBOLS = "†‡§¶"


def table(results, metric="top1", mark=False):
    """Results as a Markdown table, one a row. Refuses to put into one column what is not comparable.

    Not comparable are an online and an offline number, one selected on test and one that is not, different test sets
    or training labels, and different families of probes. Columns name what else differs. An online number has a
    footnote always, and so has one selected on test, one of a probe of another family than its features were trained
    for, and one whose test set overlaps with train.

    Between one image size and another, pixels and so fingerprints differ: then the name of a dataset, the number of
    examples and their labels tell.

    Args:
        results: `Result`s, or paths of their JSON files.
        metric: one that all of them have.
        mark: whether to show numbers that are not comparable after all, each odd one with a footnote: what fewer of
            the rows have.

    Returns:
        Markdown text: the value in percent (its 95 % interval) ± the standard deviation over seeds, where there are
        several; footnotes under the table.

    Raises:
        ValueError: results that are not comparable, and not `mark`; a metric that one of them lacks; none at all.

    Example:

    ```python
    linear = keras_issl.probes.evaluate(train, test)
    print(keras_issl.results.table([linear, linear]))
    ```
    """
    if isinstance(results, Result | str | os.PathLike):
        results = [results]
    results = [item if isinstance(item, Result) else _load(item) for item in results]
    if not results:
        raise ValueError("`results` should hold at least one Result. Received: none.")
    for row, result in enumerate(results, 1):
        if metric not in result.metrics:
            raise ValueError(
                f"`metric` should be one of {list(result.metrics)}, which row {row} has. Received: {metric!r}."
            )
    notes = [[caveat.note for caveat in result.caveats] for result in results]  # a row -> its footnotes
    conflicts = []
    for what, noted, values in _comparable(results):
        kinds = list(dict.fromkeys(values))
        if len(kinds) == 1:
            continue
        rows = {kind: ", ".join(str(row) for row, value in enumerate(values, 1) if value == kind) for kind in kinds}
        conflicts.append(f"{what}: " + "; ".join(f"{kind} (row {numbers})" for kind, numbers in rows.items()))
        usual = max(kinds, key=values.count)
        for note, value in zip(notes, values, strict=True):
            if value != usual and not noted:
                note.append(f"{what}: {value}, elsewhere {usual}")
    if conflicts and not mark:
        raise ValueError(
            f"`results` should be comparable to stand in one column. Received: {' | '.join(conflicts)}. Make a table "
            "for each, or pass mark=True to mark the odd ones with footnotes."
        )
    symbols = {}
    for note in dict.fromkeys(note for row in notes for note in row):
        symbols[note] = SYMBOLS[len(symbols)] if len(symbols) < len(SYMBOLS) else f"({len(symbols) + 1})"
    found = [result.metrics[metric] for result in results]
    differing = {title: cells for title, cells in _columns(results).items() if len(set(cells)) > 1}
    unit = "%, 95 % interval" if any(figures["low"] is not None for figures in found) else "%"
    unit += ", ± sd over seeds" if any(figures["seeds"] > 1 for figures in found) else ""
    rows = []
    for i, result in enumerate(results):
        names = result.representation["name"], result.probe["name"], result.test_name
        value = " ".join([result.figure(metric), *(symbols[note] for note in notes[i])])
        rows.append([*map(words.escaped, names), value, *(words.escaped(cells[i]) for cells in differing.values())])
    header = ["representation", "probe", "data", f"{words.escaped(metric_title(metric))} ({unit})", *differing]
    lines = [report.table(header, rows), *(f"{symbol} {words.escaped(note)}." for note, symbol in symbols.items())]
    return "\n\n".join(lines)


def _comparable(results):
    """(what, whether `Result.caveats` notes it, a value a result): where values differ, numbers are not comparable."""
    yield "mode", True, [result.mode for result in results]
    yield "selection", True, ["on test" if result.selected_on == "test" else "not on test" for result in results]
    yield "probe family", False, [result.probe["family"] or result.probe["name"] for result in results]
    for part in ("test", "train"):
        yield f"{part} set", False, _sets(part, results)


def _sets(part, results):
    """A name a result for its test or train set, the same for those that hold the same examples."""
    data = [getattr(result, part) for result in results]
    shapes = [result.representation.get("image_shape") for result in results]

    def same(i, j):
        known = {key for key in data[i] if None not in (data[i][key], data[j].get(key))}
        keys = {"examples", "classes", "labels_sha256"}
        # Pixels, and so fingerprints, differ between image sizes: then, and without any, the name must tell.
        keys |= {"fingerprint"} if shapes[i] == shapes[j] and "fingerprint" in known else {"name", "split"}
        return all(data[i][key] == data[j][key] for key in keys & known)

    groups = []
    for i in range(len(data)):  # like all of a group: one of which little is known makes no peace between two others
        group = next((group for group in groups if all(same(i, j) for j in group)), None)
        if group is None:
            groups.append([i])
        else:
            group.append(i)
    names = [words.described(data[group[0]]) for group in groups]
    if len(set(names)) < len(names):
        names = [f"{name}, set {k}" for k, name in enumerate(names, 1)]
    return [next(name for name, group in zip(names, groups, strict=True) if i in group) for i in range(len(data))]


def _columns(results):
    """Title -> a cell a result, of what may differ between numbers of one column."""
    columns = {
        "mode": [result.mode for result in results],
        "selected on": [result.selected_on for result in results],
        "train": [words.described(result.train) for result in results],
        "seeds": [len(result.seeds) or 1 for result in results],
        "dimensions": [result.representation["feature_dim"] for result in results],
    }
    titles = {"probe": "trained for", "image_shape": "image shape", "dtype_policy": "dtype policy"}
    for key in ("probe", "image_shape", "preprocessing", "dtype_policy"):
        columns[titles.get(key, key)] = [result.representation.get(key) for result in results]
    return {
        title: ["?" if cell is None else as_text(cell, title) for cell in cells] for title, cells in columns.items()
    }


def _load(item):
    if isinstance(item, str | os.PathLike):
        return Result.load(item)
    raise ValueError(f"`results` should hold Results, or paths of their JSON files. Received: {type(item).__name__}.")
