"""One HTML file that says it all: text, tables, pictures. It opens offline, prints well and escapes everything."""

import contextlib
import html
import json
import math
import os
import re
import tempfile
from pathlib import Path

import numpy as np

from keras_issl.report.embedding import embedded_png, embedded_svg
from keras_issl.report.style import STYLE
from keras_issl.report.words import clean

__all__ = ["LEVELS", "Page", "shown"]

LEVELS = {"good": ("✓", "Good"), "warning": ("!", "Warning"), "problem": ("✕", "Problem")}  # never colour alone
NONE = "–"  # what stands for a value that is not there
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"

NUMBER = re.compile(r"[<>]? ?[-+−]?(\d|\.\d)[\d\s.,%±–e+\-−×()\[\]*†‡/]*")


def shown(value):
    """A value as a reader sees it: four digits of a float, thousands apart in an integer, a dash for none or NaN.

    Example:

    >>> from keras_issl.report.page import shown
    >>> [shown(value) for value in (0.123456, 50_000, None, float("nan"), "as it is", True)]
    ['0.1235', '50,000', '–', '–', 'as it is', 'yes']
    """
    if value is None:
        return NONE
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if isinstance(value, float | np.floating):
        value = float(value)
        if not math.isfinite(value):
            return NONE if math.isnan(value) else "∞" if value > 0 else "−∞"
        small = 0 < abs(value) < 1e-4 or abs(value) >= 1e6
        return (f"{value:.3g}" if small else f"{value:,.4g}" if abs(value) < 1e3 else f"{value:,.1f}").replace("-", "−")
    return clean(value)


class Page:
    """A report in one HTML file: no script, no request to anywhere, every text escaped, the same bytes every time.

    Parts come one after the other, in the order of the calls; every method returns the page.

    Args:
        title: Heading of the page.
        subtitle: A line under it.

    Example:

    >>> page = keras_issl.report.page.Page("Features of a cat", subtitle="and of a dog")
    >>> page = page.section("Result").tiles([("98.1 %", "top-1", "of 10,000 images")])
    >>> page = page.table(["class", "accuracy"], [["<cat>", 0.98], ["dog", 0.97]])
    >>> page.write("page.html").name
    'page.html'
    """

    def __init__(self, title, subtitle=""):
        self.title, self.subtitle = title, subtitle
        self._sections = [("", [])]  # title, blocks of (kind, HTML)
        self._blocks = self._sections[0][1]
        self._pictures, self._told = 0, False

    def section(self, title):
        """Begins a section, with a heading and a link to it at the top of the page.

        Raises:
            ValueError: Inside `details`.
        """
        if self._blocks is not self._sections[-1][1]:
            raise ValueError(f"`section` should not begin inside `details`. Received: {title!r}.")
        self._blocks = []
        self._sections.append((title, self._blocks))
        return self

    def subsection(self, title):
        """A heading inside a section.

        Raises:
            ValueError: There is no section yet.
        """
        if len(self._sections) == 1:
            raise ValueError(f"`subsection` should stand in a section: call `section` first. Received: {title!r}.")
        return self._add(f"<h3>{_escaped(title)}</h3>")

    def paragraph(self, text, note=False):
        """A paragraph; a `note` is smaller and paler."""
        return self._add(f'<p class="note">{_escaped(text)}</p>' if note else f"<p>{_escaped(text)}</p>")

    def tiles(self, items):
        """Key numbers.

        Args:
            items: Sequence of (number, what it is, a note or `None`). The first stands out.
        """
        tiles = [
            f'<div class="tile"><b>{_escaped(number)}</b><span>{_escaped(label)}</span>{_small(note)}</div>'
            for number, label, note in items
        ]
        return self._add(f'<div class="tiles">{"".join(tiles)}</div>')

    def verdict(self, level, title, evidence, advice=""):
        """A card that says what was found.

        Args:
            level: `"good"`, `"warning"` or `"problem"`.
            title: What was found.
            evidence: The numbers that show it.
            advice: What to do about it, if anything.

        Raises:
            ValueError: The level is none of these.
        """
        if level not in LEVELS:
            raise ValueError(f"`level` should be one of {', '.join(LEVELS)}. Received: {level!r}.")
        sign, word = LEVELS[level]
        lead = "Next" if level == "good" else "What to do"
        advice = f"<p><b>{lead}:</b> {_escaped(advice)}</p>" if advice else ""
        return self._add(
            f'<div class="verdict {level}"><p class="title"><span class="level"><span aria-hidden="true">{sign}</span> '
            f"{word}</span>{_escaped(title)}</p><p>{_escaped(evidence)}</p>{advice}</div>"
        )

    def table(self, header, rows, caption="", notes=None):
        """A table. Columns of numbers are set flush right; the first column names the row.

        Args:
            header: Titles of the columns.
            rows: Rows of as many values: text, numbers, or `None` for a value that is not there.
            caption: A line above the table.
            notes: Dict from a row's index to a line under its name.

        Raises:
            ValueError: A row has more or fewer values than there are titles.
        """
        header, rows, notes = list(header), [list(row) for row in rows], notes or {}
        for row in rows:
            if len(row) != len(header):
                raise ValueError(f"`rows` should have {len(header)} values each, one a title. Received: {row!r}.")
        cells = [[shown(value) for value in row] for row in rows]
        numeric = [_is_numeric([row[i] for row in cells]) and i > 0 for i in range(len(header))]
        kinds = [' class="number"' if is_number else "" for is_number in numeric]
        head = "".join(f'<th scope="col"{kind}>{_escaped(t)}</th>' for t, kind in zip(header, kinds, strict=True))
        body = ""
        for number, (first, *rest) in enumerate(cells):
            body += f'<tr><th scope="row">{_escaped(first)}{_small(notes.get(number))}</th>'
            body += "".join(f"<td{kind}>{_escaped(c)}</td>" for c, kind in zip(rest, kinds[1:], strict=True))
            body += "</tr>\n"
        name = _escaped(caption or f"Table: {', '.join(clean(title) for title in header)}")
        caption = f"<caption>{_escaped(caption)}</caption>" if caption else ""
        return self._add(
            f'<div class="scroll" role="region" tabindex="0" aria-label="{name}"><table>{caption}<thead><tr>{head}</tr>'
            f"</thead>\n<tbody>{body}</tbody></table></div>"
        )

    def figure(self, picture, caption, *, alt, wide=False):
        """A picture with its caption. Pictures that are not `wide` stand beside each other where there is room.

        Args:
            picture: SVG as text, a PNG as bytes, or the path of either. `None` is what `charts` give without
                matplotlib: the page then says, once, what to install.
            caption: What to see in it; empty for a picture that says so itself.
            alt: What it shows, for those who cannot see it.
            wide: Whether it takes the page's whole width.

        Raises:
            ValueError: It is no such picture, or SVG that could run or load something; or `alt` is empty.
            OSError: There is no such file.
        """
        if not str(alt).strip():
            raise ValueError(f"`alt` should say what the picture shows. Received: {alt!r}.")
        if picture is None:
            if not self._told:
                self._told = True
                self.paragraph("Charts are left out: matplotlib is not installed. `pip install matplotlib`.", note=True)
            return self
        if isinstance(picture, os.PathLike) or (isinstance(picture, str) and not picture.lstrip().startswith("<")):
            data = Path(picture).read_bytes()
            picture = data if data.startswith(b"\x89PNG") else data.decode("utf-8", "replace")
        self._pictures += 1
        drawn = (
            embedded_png(picture, alt)
            if isinstance(picture, bytes)
            else embedded_svg(picture, alt, f"f{self._pictures}-")
        )
        if wide:  # on a narrow screen it keeps a size that can be read, and scrolls
            drawn = (
                f'<div class="scroll" role="region" tabindex="0" aria-label="Picture {self._pictures}">{drawn}</div>'
            )
        kind = ' class="wide"' if wide else ""
        caption = f"<figcaption>{_escaped(caption)}</figcaption>" if caption else ""
        figure = f"<figure{kind}>{drawn}{caption}</figure>"
        return self._add(figure, "block" if wide else "figure")

    def protocol(self, items):
        """A list of names and values, such as the protocol of an evaluation. Values that are `None` are left out.

        Args:
            items: A dict, or pairs of a name and a value.
        """
        items = items.items() if hasattr(items, "items") else items
        pairs = [(name, value) for name, value in items if value is not None]
        pairs = "".join(f"<dt>{_escaped(name)}</dt><dd>{_escaped(shown(value))}</dd>\n" for name, value in pairs)
        return self._add(f"<dl>{pairs}</dl>") if pairs else self

    @contextlib.contextmanager
    def details(self, summary, on_paper=True):
        """What is added inside `with page.details(...)` is folded away on screen; on paper it is open, or left out."""
        outer, self._blocks, kind = self._blocks, [], "" if on_paper else ' class="raw"'
        try:
            yield self
        finally:
            inner, self._blocks = _laid_out(self._blocks), outer
            self._add(f"<details{kind}><summary>{_escaped(summary)}</summary>\n{inner}</details>")

    def json(self, value, summary="Raw JSON"):
        """A value as JSON, folded away, on screen only. What is not finite becomes null, arrays become lists."""
        text = json.dumps(_json_value(value), indent=1, ensure_ascii=False, allow_nan=False)
        return self._add(
            f'<details class="raw"><summary>{_escaped(summary)}</summary>'
            f"<pre>{html.escape(clean(text))}</pre></details>"
        )

    def html(self):
        """The whole page as text."""
        titles = [(f"s{i}", title) for i, (title, _) in enumerate(self._sections) if i]
        links = "".join(f'<li><a href="#{key}">{_escaped(title)}</a></li>' for key, title in titles)
        nav = f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n' if len(titles) > 1 else ""
        subtitle = f'<p class="subtitle">{_escaped(self.subtitle)}</p>\n' if self.subtitle else ""
        body = _laid_out(self._sections[0][1])
        for (key, title), (_, blocks) in zip(titles, self._sections[1:], strict=True):
            heading = f'<h2 id="{key}-title">{_escaped(title)}</h2>'
            body += f'<section id="{key}" aria-labelledby="{key}-title">\n{heading}\n{_laid_out(blocks)}</section>\n'
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light">\n<meta name="referrer" content="no-referrer">\n'
            f"<title>{_escaped(self.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
            f"<header>\n<h1>{_escaped(self.title)}</h1>\n{subtitle}{nav}</header>\n<main>\n{body}</main>\n"
            "<footer>Made by keras_issl. One file: nothing is loaded from anywhere.</footer>\n</body>\n</html>\n"
        )

    def write(self, path):
        """Writes the page, all of it or nothing, and returns the path.

        Raises:
            ValueError: `path` does not end in `.html`.
            OSError: It cannot be written; what was there stays.
        """
        path = Path(path)
        if path.suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"`path` should end in .html. Received: {str(path)!r}.")
        data = self.html().encode()
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            mask = os.umask(0)  # mkstemp's file is the owner's alone: give it what other files get
            os.umask(mask)
            os.chmod(draft, 0o666 & ~mask)
            os.replace(draft, path)
        except BaseException:
            os.unlink(draft)
            raise
        return path

    def _add(self, block, kind="block"):
        self._blocks.append((kind, block))
        return self


def _escaped(value):
    return html.escape(re.sub(r"(?<=\d) ?%(?!\w)", "\u00a0%", clean(value)))  # a line does not begin with the sign


def _small(note):
    return f"<small>{_escaped(note)}</small>" if note else ""


def _is_numeric(cells):
    cells = [cell.strip() for cell in cells if cell.strip() not in ("", NONE)]
    return bool(cells) and all(cell in ("∞", "−∞") or NUMBER.fullmatch(cell) for cell in cells)


def _laid_out(blocks):
    """The HTML of blocks, neighbouring figures in one grid."""
    text, previous = "", "block"
    for kind, block in [*blocks, ("block", "")]:
        if kind != previous:
            text += '<div class="figures">\n' if kind == "figure" else "</div>\n"
        text, previous = text + (block and f"{block}\n"), kind
    return text


def _json_value(value):
    """JSON's types only."""
    if hasattr(value, "items"):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_json_value(item) for item in (sorted(value, key=str) if isinstance(value, set | frozenset) else value)]
    if hasattr(value, "tolist"):  # NumPy
        return _json_value(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int) else str(value)
