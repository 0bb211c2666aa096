"""Tables as Markdown."""


def table(header, rows):
    """A Markdown table with aligned columns.

    Args:
        header: Column titles.
        rows: Rows of strings, as many as there are titles.

    Returns:
        The table as text, without a newline at the end.

    Example:

    >>> print(table(["model", "top-1"], [["DISSL", "0.99"]]))
    | model | top-1 |
    |---|---|
    | DISSL | 0.99  |
    """
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    line = lambda row: "| " + " | ".join(str(c).ljust(w) for c, w in zip(row, widths, strict=True)) + " |"  # noqa: E731
    return "\n".join([line(header), "|" + "---|" * len(header), *map(line, rows)])
