"""The tables of a model card: pairs of a key and a value, and results by source."""

from keras_issl.zoo.markdown import escaped, link, shown, table

FIRST = ("objective", "objective_args", "dataset", "dataset_fraction", "epochs", "views", "encoder", "heads")


def pairs(header, values):
    """A table of the entries of a dict that hold something, what a reader asks for first on top.

    Args:
        header: Of the column of keys.
        values: A dict with strings for keys, or `None`.

    Returns:
        Markdown text, empty if there is nothing to show.
    """
    known = sorted((values or {}).items(), key=lambda item: FIRST.index(item[0]) if item[0] in FIRST else len(FIRST))
    rows = [[escaped(str(key).replace("_", " ")), shown(value)] for key, value in known]
    rows = [row for row in rows if row[1]]
    return table([header, "value"], rows) if rows else ""


def results_table(results):
    """One table with a column a source; each figure points to its protocol, which sources may share.

    Rows of another form follow as they are.

    Args:
        results: A list, the `results` of a preset's metadata.

    Returns:
        Markdown text, empty if there are no results.
    """
    usual = regular(results)
    datasets = {escaped(row.get("dataset") or "") for row in usual}
    common = datasets.pop() if len(datasets) == 1 else ""
    sources, protocols, cells = {}, {}, {}
    for row in usual:
        source = escaped(row.get("source") or "this preset")
        note = escaped(row.get("protocol") or "protocol not recorded")
        note += f"; on {escaped(row['split'])} images." if row.get("split") else "."
        note += f" {link(row['url'])}" if row.get("url") else ""
        protocols.setdefault(note, {})[source] = True
        number = list(protocols).index(note) + 1
        label = escaped(row["metric"]) + (f" ({escaped(row['unit'])})" if row.get("unit") else "")
        label += "" if common or not row.get("dataset") else f", {escaped(row['dataset'])}"
        sources.setdefault(source)
        figure = f"{shown(row['value'])}{_spread(row)} <sup>{number}</sup>"
        cells.setdefault(label, {}).setdefault(source, []).append(figure)
    rows = [[label, *("; ".join(found.get(source, ["–"])) for source in sources)] for label, found in cells.items()]
    notes = [f"{number}. {', '.join(found)}: {note}" for number, (note, found) in enumerate(protocols.items(), 1)]
    others = [f"- {shown(row)}" for row in results if row not in usual]
    blocks = [
        table([common, *sources], rows, right=True),
        "The small numbers name the protocols:",
        "\n".join(notes),
    ]
    return "\n\n".join([*(blocks if rows else []), *(["\n".join(others)] if others else [])])


def _spread(row):
    """How sure a figure is: its interval, or its standard deviation, where it has one."""
    sure, low_high = row.get("sd"), row.get("interval")
    if isinstance(low_high, list) and len(low_high) == 2:
        return f" [{shown(low_high[0])}, {shown(low_high[1])}]"
    return "" if sure is None else f" ± {shown(sure)}"


def regular(results):
    """The results that a table can hold."""
    return [row for row in results if isinstance(row, dict) and {"metric", "value"} <= set(row)]
