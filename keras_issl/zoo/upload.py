"""What `push_to_hub` publishes: a preset's files, card and picture, read and found sound before anything is sent."""

import contextlib
import hashlib
import io
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

from keras_issl.zoo import cards, format, hub, loading, registry, strict
from keras_issl.zoo.layout import CARD, CONFIG, METADATA, OBJECTIVE, PICTURE, WEIGHTS, sha256

PICTURE_BYTES = 5_000_000
IN_MEMORY = 16 << 20  # bytes: what is smaller is read once, so that what was checked is what is sent
FRONT_MATTER = re.compile(r"\s*---(?:\r\n|\r|\n)([\s\S]*?)(?:\r\n|\r|\n)---[ \t]*(?:\r\n|\n|$)")
FIELDS = {  # of the front matter -> what the Hub takes; in a list, texts
    "base_model": str | list, "datasets": str | list, "language": str | list, "library_name": str,
    "license": str | list, "license_link": str, "license_name": str, "metrics": str | list, "model-index": list,
    "pipeline_tag": str, "tags": list,
}  # fmt: skip


class File(NamedTuple):
    """A file to publish: its bytes, or the path of a large one, and the SHA-256 that it was checked to have."""

    content: bytes | Path
    sha256: str


def preset_folder(folder):
    """The folder that holds the preset itself."""
    if hub.is_address(folder) or registry.is_builtin(folder):
        raise ValueError(
            f"`folder` should be the path of a preset folder or of a run folder. Received: {str(folder)!r}, which is "
            "a preset that has its place. Write ./NAME for a folder of that name."
        )
    if not Path(folder).is_dir():
        raise ValueError(
            "`folder` should be the path of a preset folder or of a run folder. Received: "
            f"{str(folder)!r}, which is no folder."
        )
    found = loading.preset_folder(folder)
    if not (found / METADATA).exists() and (inner := sorted(Path(folder).glob(f"*/preset/{METADATA}"))):
        raise ValueError(
            f"`folder` should be a preset folder or a run folder. Received: {str(folder)!r}, which holds run folders. "
            f"Name one of them, such as {str(inner[-1].parent.parent)!r}."
        )
    return found


def read_preset(folder):
    """A preset's metadata, the name of its class if it is not the library's, and its files, all found to be sound."""
    if not (metadata := format.read_metadata(folder)):
        raise ValueError(
            f"`folder` should be a preset folder or a run folder. Received: {str(folder)!r}, without {METADATA}."
        )
    if lacking := sorted({CONFIG, WEIGHTS} - set(metadata["files"])):
        raise ValueError(
            f"`folder` should be a preset folder with its weights. Received: {str(folder)!r}, whose {METADATA} records "
            f"no {' and no '.join(lacking)}."
        )
    format.check_hashes(folder)
    config = strict.read_json(strict.find_file(folder, CONFIG, f"The preset {str(folder)!r} lacks its {CONFIG}."))
    custom_class = config.get("class") if config.get("class") not in format.ENCODERS else None
    if custom_class is not None and not str(custom_class).isidentifier():  # it goes into the card's code
        raise ValueError(f"{folder / CONFIG} should name a class. Received: {custom_class!r}")
    if custom_class is None:
        format.load_preset(folder)  # what cannot be loaded is of no use to anybody
    else:
        strict.check_keys(folder / CONFIG, config, {"format", "class", "config", "dtype"})
    if OBJECTIVE in metadata["files"]:
        strict.check_keys(
            folder / OBJECTIVE, strict.read_json(folder / OBJECTIVE), {"format", "class", "config", "feature_dim"}
        )
    recorded = {name: metadata["files"][name]["sha256"] for name in set(metadata["files"]) - {CARD}}
    files = {name: _read_file(folder / name, recorded[name]) for name in sorted(recorded)}
    data = (folder / METADATA).read_bytes()
    if json.loads(data) != metadata:
        raise changed(folder / METADATA)
    return metadata, custom_class, files | {METADATA: File(data, hashlib.sha256(data).hexdigest())}


def _read_file(path, recorded):
    if path.stat().st_size > IN_MEMORY:
        return File(path, recorded)
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != recorded:
        raise changed(path)
    return File(data, recorded)


def changed(path):
    return ValueError(
        f"{path} has changed while the preset was being published, so nothing was: push again when nothing else "
        "writes to it."
    )


def read_picture(path):
    from PIL import Image

    problem = None
    try:
        if (size := os.path.getsize(path)) > PICTURE_BYTES:
            problem = f"{size:,} bytes"
        else:
            data = Path(path).read_bytes()
            with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
                image.verify()
    except (OSError, SyntaxError, ValueError, TypeError) as error:  # Pillow's words for a broken file are SyntaxError
        problem = str(error)
    if problem is not None:
        raise ValueError(
            f"`picture` should be a PNG file of at most {PICTURE_BYTES:,} bytes. Received: {str(path)!r}: {problem}."
        )
    return File(data, hashlib.sha256(data).hexdigest())


# ---------------------------------------------------------------------- the card
def choose_card(folder, metadata, custom_class, target, has_picture):
    """The card to publish: the folder's own if somebody wrote it, else one made for the Hub; with a front matter."""
    made = cards.card(metadata, custom_class, repo=target.repo, picture=PICTURE if has_picture else None)
    text, source = made + _seal(made), "the card that keras_issl made"
    if (own := _own_card(folder, metadata)) is not None:
        text, source = own, str(folder / CARD)
        if not FRONT_MATTER.match(text):
            text = FRONT_MATTER.match(made).group().rstrip() + "\n\n" + text.lstrip()
    _check_card(text, source)
    return text


def _seal(text):
    """What ends a card that nobody has changed since it was made."""
    return f"\n<!-- Made by keras_issl; SHA-256 of all above: {hashlib.sha256(text.encode()).hexdigest()} -->\n"


def is_made(text):
    """Whether a card is one that `push_to_hub` made and nobody has changed."""
    text = text.replace("\r\n", "\n")
    body, mark, seal = text.rpartition("\n<!-- Made by keras_issl")
    return bool(mark) and mark + seal == _seal(body)


def _own_card(folder, metadata):
    """The folder's card if it is not the one that was saved with the preset; else `None`."""
    if not os.path.lexists(folder / CARD):
        return None
    path = strict.find_file(folder, CARD, f"{folder / CARD} should be a file.")
    recorded = metadata["files"].get(CARD)
    if isinstance(recorded, dict) and sha256(path) == recorded.get("sha256"):
        return None
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} should be text in UTF-8, nothing was published: {error}.") from error


def _check_card(text, source):
    """Raises a `ValueError` for a front matter that the Hub does not take, as far as that is known without it."""
    import yaml
    from huggingface_hub import ModelCard

    problem = None
    try:
        entries = yaml.safe_load(FRONT_MATTER.match(text).group(1)) or {}
        ModelCard(text)
    except Exception as error:  # YAML's own, and whatever unforeseen types lead to
        raise _bad_card(source, " ".join(str(error).split())) from error
    for field, kind in FIELDS.items():
        value = entries.get(field)
        if value is None:
            continue
        if not isinstance(value, kind):
            problem = f"`{field}` should be {'a list' if kind is list else 'text'}, and is {value!r}"
        elif isinstance(value, list) and field != "model-index" and not all(isinstance(item, str) for item in value):
            problem = f"`{field}` should be a list of texts, and is {value!r}: put each into quotation marks"
        if problem is not None:
            raise _bad_card(source, problem)


def _bad_card(source, problem):
    return ValueError(f"The front matter of {source} is not valid, so nothing was published: {problem}.")


def validate_card(target, text):
    """Raises a `ValueError` for a card that the Hub, which is asked, does not take."""
    from huggingface_hub import ModelCard

    try:
        ModelCard(text).validate()
    except ValueError as error:
        problem = str(error)
        with contextlib.suppress(ValueError, KeyError, TypeError):
            problem = "; ".join(entry["message"] for entry in json.loads(problem)["errors"])
        raise _bad_card(f"the card for {target}", " ".join(problem.split()).rstrip(".")) from error
