"""Model cards: the README.md of a preset, made from its metadata alone.

The front matter is what the Hugging Face Hub reads (`license`, `library_name`, `pipeline_tag`, `tags`, `datasets`),
the rest is for people. Metadata are data: whatever their strings hold, it shows as text.
"""

import json
import re
from pathlib import PurePosixPath

from keras_issl.zoo.layout import WEIGHTS

HUB_DATASETS = {"ImageNet-1k": "imagenet-1k"}  # a recipe's dataset -> its name on the Hub
FIRST = ("objective", "objective_args", "dataset", "dataset_fraction", "epochs", "views", "encoder", "heads")
RELEASES = "https://github.com/YannDubs/"  # where the authors' files are


def card(metadata, custom_class=None):
    """The model card of a preset.

    Args:
        metadata: A dict, the content of a preset's `metadata.json`.
        custom_class: Name of the encoder's class if it is not the library's, so that it has to be named to load it.

    Returns:
        Markdown text with YAML front matter.

    Example:

    >>> metadata = {"name": "mine", "feature_dim": 128, "probe": "linear", "recipe": None, "results": [],
    ...             "provenance": {}, "versions": {}, "files": {}, "verified": False}
    >>> print(keras_issl.zoo.cards.card(metadata))
    """
    width, citation = _text(metadata["feature_dim"]), metadata.get("citation")
    training = _pairs("recipe", metadata.get("recipe")), _pairs("data and run", metadata.get("provenance"))
    sections = [
        f"# {_text(metadata['name'])}",
        _paragraph(metadata.get("description")) or f"An encoder with {width} features, saved by keras_issl.",
        _facts(metadata),
        _usage(metadata, custom_class),
        _section("How it was trained", *training),
        _section("Results", _results(metadata.get("results") or [])),
        _section("Use and limits", _limits(metadata)),
        _section("Licence", _licence(metadata)),
        _section("Citation", _fence(citation, "bibtex") if citation else ""),
    ]
    text = _front_matter(metadata) + "\n" + "\n\n".join(section for section in sections if section) + "\n"
    return text.encode("utf-8", "replace").decode("utf-8")  # a file name may hold lone surrogates


# ---------------------------------------------------------------------- sections
def _front_matter(metadata):
    recipe = metadata.get("recipe") or {}
    lines = [
        "---",
        *_license_lines(metadata),
        "library_name: keras_issl",
        "pipeline_tag: image-feature-extraction",
        "tags:",
    ]
    objective = recipe.get("objective")
    tags = ["keras", "self-supervised-learning", objective.lower() if isinstance(objective, str) else None]
    lines += [f"- {_quoted(tag)}" for tag in tags if tag]
    dataset = recipe.get("dataset")
    if isinstance(dataset, str) and dataset in HUB_DATASETS:
        lines += ["datasets:", f"- {HUB_DATASETS[dataset]}"]
    return "\n".join([*lines, "---", ""])


def _license_lines(metadata):
    name = (metadata.get("license") or {}).get("id")
    if not name:
        return []
    known = re.fullmatch(r"[a-z0-9][a-z0-9.-]*", str(name))  # the form of the Hub's identifiers
    return [f"license: {_quoted(name)}"] if known else ["license: other", f"license_name: {_quoted(name)}"]


def _facts(metadata):
    lines = [f"- **Features:** {_text(metadata['feature_dim'])}, float32"]
    if parameters := metadata.get("parameters"):
        size = f"{parameters * 4 / 2**20:,.0f} MiB in float32"
        lines.append(f"- **Weights:** {parameters:,} numbers, batch-normalisation statistics included; {size}")
    if probe := metadata.get("probe"):
        lines.append(f"- **Probe family it is for:** {_text(probe)}")
    size = metadata.get("preprocessing") or {}
    if {"resize", "crop"} <= set(size):
        resize, crop = _text(size["resize"]), _text(size["crop"])
        lines.append(
            f"- **Images at evaluation:** shorter side resized to {resize} pixels (bilinear, antialiased), "
            f"central {crop} × {crop} pixels of it"
        )
    lines.append(f"- **Verified:** {'yes' if metadata.get('verified') else 'no'}; see [limits](#use-and-limits)")
    return "\n".join(lines)


def _usage(metadata, custom_class=None):
    name, width, released = str(metadata["name"]), metadata["feature_dim"], _is_released(metadata)
    arguments = _quoted(name if released else f"path/to/{name}")
    if custom_class is not None:
        arguments += f", custom_objects={{{_quoted(custom_class)}: {_plain(custom_class)}}}"
    shape = "(N, H, W, 3)" if released else "(N, H, W, C)"
    code = [
        "import keras_issl",
        "",
        f"encoder = keras_issl.from_preset({arguments})",
        f"features = encoder.predict(images)  # {shape} -> (N, {_plain(width)})",
    ]
    pixels = "RGB in 0…255" if released else "in 0…255"
    after = f"`images` is a NumPy array, {pixels}, uint8 or float: the encoder normalises it itself."
    if released and WEIGHTS not in metadata.get("files", {}):
        after += (
            " The first call fetches the authors' file, converts it once and keeps it; later calls need no network."
        )
    return f"## Load it\n\n{_fence(chr(10).join(code), 'python')}\n\n{after}"


def _results(results):
    """One table with a column a source; each figure points to its protocol. Rows of another form follow as they are."""
    regular = [row for row in results if isinstance(row, dict) and {"metric", "value"} <= set(row)]
    datasets = {_text(row.get("dataset") or "") for row in regular}
    common = datasets.pop() if len(datasets) == 1 else ""
    sources, protocols, cells = {}, {}, {}
    for row in regular:
        source = _text(row.get("source") or "this preset")
        note = source + ": " + _text(row.get("protocol") or "protocol not recorded")
        note += f"; on {_text(row['split'])} images." if row.get("split") else "."
        note += f" {_url(row['url'])}" if row.get("url") else ""
        number = protocols.setdefault(note, len(protocols) + 1)
        label = _text(row["metric"]) + (f" ({_text(row['unit'])})" if row.get("unit") else "")
        label += "" if common or not row.get("dataset") else f", {_text(row['dataset'])}"
        sources.setdefault(source)
        cells.setdefault(label, {}).setdefault(source, []).append(f"{_value(row['value'])} <sup>{number}</sup>")
    rows = [[label, *("; ".join(found.get(source, ["–"])) for source in sources)] for label, found in cells.items()]
    notes = [f"{number}. {note}" for note, number in protocols.items()]
    others = [f"- {_value(row)}" for row in results if row not in regular]
    blocks = [_table([common, *sources], rows, right=True), "The small numbers name the protocols:", "\n".join(notes)]
    return "\n\n".join([*(blocks if rows else []), *(["\n".join(others)] if others else [])])


def _limits(metadata):
    dataset = (metadata.get("recipe") or {}).get("dataset")
    probe = metadata.get("probe")
    use = "For features of images: probing, with few labels too, retrieval, clustering, a start for fine-tuning."
    if probe in ("linear", "mlp"):
        family = {"linear": "linear", "mlp": "MLP"}[probe]
        use += f" Evaluate it with {'a' if probe == 'linear' else 'an'} {family} probe, the family named above."
    limits = "It is not a classifier, and it has not been tested for decisions about people."
    if dataset:
        limits += f" It was trained on {_text(dataset)} alone and has its gaps and biases."
    return "\n\n".join(part for part in (use, limits, _status(metadata), _paragraph(metadata.get("note"))) if part)


def _status(metadata):
    if metadata.get("verified"):
        return (
            "**Verified.** The weights were converted from the file they come from, whose SHA-256 is recorded, and "
            "give the golden features stored beside them; `keras_issl.from_preset(…, verify=True)` computes them again."
        )
    if not _is_released(metadata):
        return (
            "**Not verified.** What stands here is what its maker recorded. Loading holds each file against its "
            "SHA-256; with `verify=True` also the features of two pictures against those stored when it was saved."
        )
    weights = "We have not downloaded and checked the authors' weights: "
    if WEIGHTS in metadata.get("files", {}):
        weights += "hashes and golden features are of the conversion on the machine of whoever loaded them."
    else:
        weights += "this is the architecture and what is on record of it, without hash and golden features."
    return f"**Not verified.** {weights} The figures above are the cited sources', not ours."


def _licence(metadata):
    licence = metadata.get("license")
    if not licence:
        return "No licence is recorded: ask its maker before you use or share it."
    evidence = _text(licence.get("evidence") or "No evidence is recorded.")
    lines = [f"Weights: {_text(licence.get('id') or 'not named')}. {evidence}"]
    if url := (metadata.get("source") or {}).get("url"):
        lines.append(f"Source of the weights: {_url(url)}")
    return "\n\n".join(lines)


def _is_released(metadata):
    """Whether it is one of the released checkpoints: those load by name, from a file of that name."""
    url = str((metadata.get("source") or {}).get("url"))
    return url.startswith(RELEASES) and PurePosixPath(url).stem == metadata["name"]


# ---------------------------------------------------------------------- Markdown
def _section(title, *blocks):
    body = "\n\n".join(block for block in blocks if block)
    return f"## {title}\n\n{body}" if body else ""


def _table(header, rows, right=False):
    rule = ["---", *("---:" if right else "---" for _ in header[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


def _pairs(title, values):
    """A table of the entries of a dict that hold something, what a reader asks for first on top."""
    known = sorted((values or {}).items(), key=lambda item: FIRST.index(item[0]) if item[0] in FIRST else len(FIRST))
    rows = [[_text(str(key).replace("_", " ")), _value(value)] for key, value in known]
    rows = [row for row in rows if row[1]]
    return _table([title, ""], rows) if rows else ""


def _value(value, limit=400):
    """A value as one line of text: nested dicts and lists are written out, nothing stays nothing."""
    text = _plain(_flat(value))
    return _text(text if len(text) <= limit else text[: limit - 1] + "…")


def _flat(value):
    if isinstance(value, dict):
        parts = ((str(key).replace("_", " "), _flat(v)) for key, v in value.items())
        return "; ".join(f"{key}: {text}" for key, text in parts if text)
    if isinstance(value, list | tuple):
        return ", ".join(map(_flat, value))
    return "" if value is None else str(value)


def _plain(value):
    """Text on one line, without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())


def _text(value):
    """Text that Markdown and HTML leave as it is, also in a cell of a table."""
    text = re.sub(r"([\\`*\[\]<>|~$])", r"\\\1", _plain(value))
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # within a word an underscore is just that


def _paragraph(value):
    """Text that begins a line: no heading, list or quotation."""
    text = re.sub(r"^([#+\-=:])", r"\\\1", _text(value or ""))
    return re.sub(r"^(\d+)([.)])", r"\1\\\2", text)


def _url(value):
    """A link, if the value is an address and nothing more."""
    text = _plain(value)
    return f"<{text}>" if re.fullmatch(r"https?://[^\s<>\\`|]+", text) else _text(text)


def _quoted(value):
    """A quoted string on one line that YAML, JSON and Python read alike."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    return json.dumps(text, ensure_ascii=False)


def _fence(code, language):
    """A fenced block that the code cannot close."""
    code = "\n".join("".join(c if c.isprintable() else " " for c in line) for line in str(code).strip().split("\n"))
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    return f"{ticks}{language}\n{code}\n{ticks}"
