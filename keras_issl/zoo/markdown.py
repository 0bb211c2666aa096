"""Strings of any origin as Markdown and links: whatever they hold, it shows as text."""

import json
import re


def section(title, *blocks):
    """A section of the blocks that hold something; nothing if none does."""
    body = "\n\n".join(block for block in blocks if block)
    return f"## {title}\n\n{body}" if body else ""


def table(header, rows, right=False):
    """A table; `right` aligns all columns but the first to the right."""
    rule = ["---", *("---:" if right else "---" for _ in header[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


def fence(code, language):
    """A fenced block that the code cannot close."""
    code = "\n".join("".join(c if c.isprintable() else " " for c in line) for line in str(code).strip().split("\n"))
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    return f"{ticks}{language}\n{code}\n{ticks}"


def plain(value):
    """A value on one line, without control characters; not escaped."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())


def flat(value):
    """A value in words: nested dicts and lists are written out, nothing stays nothing; not escaped."""
    if isinstance(value, dict):
        parts = ((str(key).replace("_", " "), flat(item)) for key, item in value.items())
        return "; ".join(f"{key}: {words}" for key, words in parts if words)
    if isinstance(value, list | tuple):
        return ", ".join(map(flat, value))
    return "" if value is None else str(value)


def escaped(value):
    """A value that Markdown and HTML leave as it is, also in a cell of a table."""
    text = re.sub(r"([\\`*\[\]<>|~$])", r"\\\1", plain(value))
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # within a word an underscore is just that


def shown(value, limit=400):
    """A value of any type as one escaped line of at most `limit` characters."""
    text = plain(flat(value))
    return escaped(text if len(text) <= limit else text[: limit - 1] + "…")


def paragraph(value):
    """A value that begins a line: no heading, list or quotation."""
    text = re.sub(r"^([#+\-=:])", r"\\\1", escaped(value or ""))
    return re.sub(r"^(\d+)([.)])", r"\1\\\2", text)


def link(value):
    """A link, if the value is an address and nothing more; else text."""
    text = plain(value)
    return f"<{text}>" if is_url(text) else escaped(text)


def is_url(text):
    """Whether a text is an http or https address and nothing more."""
    return re.fullmatch(r"https?://[^\s<>\\`|]+", text) is not None


def slug(text, joint):
    """Lower-case letters, digits, dots and joints, of at most 96 characters; nothing if there are none of them."""
    return re.sub(r"[^a-z0-9.]+", joint, text.lower())[:96].strip(joint + ".")


def quoted(value):
    """A quoted string on one line that YAML, JSON and Python read alike."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    return json.dumps(text, ensure_ascii=False)
