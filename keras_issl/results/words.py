"""Figures, data sets and caveats of a result in words."""

import re
from typing import NamedTuple

from keras_issl.report.words import one_line

FAMILIES = {"linear": "a linear probe", "mlp": "an MLP probe", "custom": "a probe of their own"}
CAVEATS = {  # of test: what examples are, a heading, what to do
    "also_in_train": (
        "have the features of a training example, bit for bit",
        "test images with the features of a training image",
        "They are the same images, or the representation cannot tell them apart: compare pixels, and take out of test "
        "what is in train.",
    ),
    "of_unknown_class": (
        "of a class that train does not have, counted as errors",
        "test images of a class unknown to train",
        "Take them out of test, or add the class to train.",
    ),
}


class Caveat(NamedTuple):
    """What a reader must know of a number before reading it.

    Attributes:
        title: a heading.
        note: a clause that says it, for a footnote.
        advice: a sentence: what to do.

    Example:

    >>> from keras_issl.results.words import Caveat
    >>> Caveat("an online number", "the encoder was still changing", "Train a probe on the finished one.").title
    'an online number'
    """

    title: str
    note: str
    advice: str


def caveats(result):
    """Yields the `Caveat`s of a result."""
    if result.mode == "online":
        yield Caveat(
            "an online number",
            "online: the probe learned beside an encoder that was still changing",
            "For a number to report, train a probe on the features of the finished encoder.",
        )
    if result.selected_on == "test":
        yield Caveat(
            "hyperparameters chosen on the test images",
            "hyperparameters chosen on test, so the number is optimistic",
            "Select on a held-out part of train, as `probes.evaluate` does.",
        )
    if result.mismatch:
        trained_for = of_family(result.representation["probe"])
        yield Caveat(
            "a probe of another family than the features were trained for",
            f"the features were trained for {trained_for}, and this one is of another family",
            f"Representations are best for the probes that they were trained for (Dubois et al., 2022): compare with "
            f"{trained_for}, or choose a preset that was trained for this family.",
        )
    for key, (words, title, advice) in CAVEATS.items():
        if count := result.test.get(key):
            yield Caveat(title, f"{count:,} test examples {words}", advice)


def of_family(name):
    """The probe of a family, in words."""
    return FAMILIES.get(name, name)


def percent(value):
    return round(100 * value, 2)


def cell(found, digits=2):
    """`91.20 (90.10–92.00) ± 0.10`: percent, the interval, the deviation over seeds."""
    value, low, high, sd = (
        None if found[key] is None else f"{100 * found[key]:.{digits}f}" for key in ("value", "low", "high", "sd")
    )
    return value + ("" if low is None else f" ({low}–{high})") + (f" ± {sd}" if found["seeds"] > 1 else "")


def called(data):
    """A data set's name with its split."""
    name, split = data["name"] or "unnamed data", data["split"]
    return name if not split or name.endswith(f"/{split}") else f"{name}/{split}"


def described(data):
    """A data set's name and sizes."""
    if all(value is None for value in data.values()):
        return "data that are not recorded"
    counts = " of ".join(f"{data[key]:,} {key}" for key in ("examples", "classes") if data[key])
    return called(data) + (f" ({counts})" if counts else "")


def clause(sentence):
    return one_line(sentence).rstrip(".").replace(";", ",")


def escaped(value):
    """Text that Markdown and HTML leave as it is, also in a cell of a table."""
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", re.sub(r"([\\`*\[\]<>|~$&])", r"\\\1", one_line(value)))
