"""What the pages share: names of results, caveats that come before a number, pictures."""

from pathlib import Path

from keras_issl.report.words import as_text


def named_results(results):
    """Name -> result; of those without names the probe, and the data where probes are the same."""
    if hasattr(results, "items"):
        return dict(results)
    named = {}
    for result in several(results):
        name = result.probe["name"]
        if name in named or len({r.test["name"] for r in several(results)}) > 1:
            name = f"{name}, {result.test_name}"
        number, unique = 2, name
        while unique in named:
            unique, number = f"{name} ({number})", number + 1
        named[unique] = result
    return named


def several(value):
    """A list of what was given: nothing, one, or several."""
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def score(result, metric):
    """`91.2 (90.1–92.0) ± 0.1 %`, or nothing."""
    found = result.figure(metric, digits=1)
    return None if found is None else f"{found} %"


def warnings(page, name, result):
    """Cards for what a reader has to know before the numbers."""
    for caveat in result.caveats:
        title = f"{name}: {caveat.title}" if name else caveat.title
        page.verdict("warning", title, f"{caveat.note[:1].upper()}{caveat.note[1:]}.", caveat.advice)


def flat(items):
    """A protocol's entries as pairs of text; what is not known is `None`."""
    return {str(key).replace("_", " "): None if v is None else as_text(v, str(key)) for key, v in items.items()}


def made(versions, hardware, seconds, date):
    """What computed it, as the last entries of a protocol."""
    return {
        "versions": ", ".join(f"{key} {value}" for key, value in (versions or {}).items()) or None,
        "hardware": ", ".join(f"{key}: {as_text(value)}" for key, value in (hardware or {}).items() if value) or None,
        "wall time": None if seconds is None else f"{seconds:.1f} s",
        "date": date,
    }


def listed(what, pairs):
    return f"{what}: " + ", ".join(f"{name} {value}" for name, value in pairs) + "."


def pictures(page, galleries):
    """A section of PNG files: paths, (path, caption) or (title, path, caption). What they say stands once."""
    from PIL import Image

    for number, gallery in enumerate(several(galleries)):
        if not number:
            page.section("Pictures")
        gallery = gallery if isinstance(gallery, tuple) else (gallery, "")
        title, picture, caption = gallery if len(gallery) == 3 else ("", *gallery)
        with Image.open(picture) as file:
            described = file.info.get("Description", "")
        if not described and not caption:
            caption = Path(picture).stem.replace("_", " ")
        if title:
            page.subsection(title)
        page.figure(Path(picture), caption, alt=" ".join(filter(None, (caption, described))), wide=True)
