"""Values in words, as pages, tables and protocols have them; not escaped, which who writes HTML or Markdown does."""

import re

__all__ = ["as_text", "clean", "metric_title", "one_line", "public_name"]

# Control characters, halves of surrogate pairs, non-characters, and what turns the direction of the text after it.
HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufdd0-\ufdef\ufeff\ufffe\uffff\ud800-\udfff]"
)


def clean(value):
    """Text without what could hide or turn other text: such characters become U+FFFD. It is not yet escaped.

    Example:

    >>> from keras_issl.report.words import clean
    >>> clean("cat\\x00\\u202e<b>")
    'cat��<b>'
    """
    return HIDDEN.sub("\ufffd", str(value))


def one_line(value):
    """A value on one line, without control characters.

    Example:

    >>> from keras_issl.report.words import one_line
    >>> one_line("two\\n lines\\x00")
    'two lines'
    """
    return " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())


def as_text(value, name=""):
    """A value of JSON's types in words, without its braces; a shape or a size, by its name, has crosses.

    Example:

    >>> from keras_issl.report.words import as_text
    >>> as_text({"size": [32, 32], "scale": [0.2, 1.0], "flip": True})
    'size 32 × 32, scale 0.2, 1, flip True'
    """
    if hasattr(value, "items"):
        return ", ".join(f"{key} {as_text(item, str(key))}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return (" × " if "shape" in name or "size" in name else ", ").join(map(as_text, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def public_name(preset):
    """What a preset is called where others read it: its address on a hub, or the last name of a path of this machine.

    Of a run folder's `preset` it is the run's name.

    Example:

    >>> from keras_issl.report.words import public_name
    >>> [public_name(name) for name in ("/home/me/runs/cells/preset", "hf://me/cells@v1", "dissl")]
    ['cells', 'hf://me/cells@v1', 'dissl']
    """
    preset = str(preset)
    if preset.startswith("hf://"):
        return preset
    names = [part for part in re.split(r"[\\/]+", preset) if part not in ("", ".")] or [preset]
    return names[-2] if names[-1] == "preset" and len(names) > 1 else names[-1]


def metric_title(metric):
    """A metric's name as it heads a column.

    Example:

    >>> from keras_issl.report.words import metric_title
    >>> metric_title("top5"), metric_title("mean_per_class")
    ('top-5', 'accuracy, mean over classes')
    """
    if re.fullmatch(r"top\d+", metric):
        return f"top-{metric[3:]}"
    return "accuracy, mean over classes" if metric == "mean_per_class" else metric.replace("_", " ")
