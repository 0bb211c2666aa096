"""Writing presets: all of a folder or nothing, and nothing that could not be read again."""

import contextlib
import difflib
import json
import os
import shutil
import tempfile
import uuid
from pathlib import Path

import keras
import numpy as np

from keras_issl import encoders, provenance
from keras_issl.files import write_json
from keras_issl.zoo import cards, golden, strict
from keras_issl.zoo.format import ENCODERS, OBJECTIVES, as_model, check_types, read_metadata
from keras_issl.zoo.layout import (
    CARD,
    CONFIG,
    FILES,
    FORMAT,
    GOLDEN,
    METADATA,
    OBJECTIVE,
    OBJECTIVE_WEIGHTS,
    OPTIONAL,
    WEIGHTS,
    sha256,
)


def save_preset(
    encoder,
    folder,
    *,
    name=None,
    objective=None,
    recipe=None,
    results=None,
    provenance=None,
    metadata=None,
    card=None,
    overwrite=False,
):
    """Writes an encoder as a preset folder, all of it or nothing.

    The folder also holds the encoder's features of two pictures: `from_preset(folder, verify=True)` computes them
    again.

    Args:
        encoder: The encoder, built.
        folder: Path of the folder to make.
        name: The preset's name on its card; by default the folder's.
        objective: The objective it was trained with: its heads are saved too, its probe family recorded.
        recipe: A dict: how it was trained.
        results: A list of dicts: figures, each with its protocol.
        provenance: A dict: the data and the run it came from.
        metadata: A dict with any of `description`, `license` (`{"id": ..., "evidence": ...}`), `citation`, `note`,
            `preprocessing` (`{"resize": 256, "crop": 224}`: resize and crop before the encoder), `source`
            (`{"url": ...}`) and, without an objective, `probe`: the family its objective was trained for.
        card: Markdown text of the model card; by default one made from the metadata.
        overwrite: Whether an existing preset folder may be replaced.

    Returns:
        The folder, a `pathlib.Path`.

    Raises:
        ValueError: The folder exists and `overwrite` is false, or it holds anything but a preset; or `metadata`
            has an entry of another name or type.

    Example:

    >>> encoder = keras_issl.encoders.ResNet(18, image_size=32, width=8)
    >>> folder = keras_issl.save_preset(encoder, "my_preset")
    >>> again = keras_issl.from_preset("my_preset")
    """
    if str(folder).startswith("hf://"):
        raise ValueError(
            f"`folder` should be the path of a folder to make. Received: {str(folder)!r}. Save the preset into a "
            "folder, and publish that with `keras_issl.push_to_hub`."
        )
    given = Path(folder)
    folder = given.resolve()  # a link keeps pointing to where it points
    _check_class(encoder, ENCODERS, "encoder")
    _check_class(objective, OBJECTIVES, "objective")
    _check_built_by_config(encoder)
    entries = {"recipe": recipe, "results": [] if results is None else results, "provenance": provenance or {}}
    entries = _plain(entries | _check_metadata(metadata or {}))
    check_types("save_preset", entries)
    check_folder(folder, overwrite)
    with whole_folder(folder) as temporary:
        _write(temporary, encoder, objective)
        metadata = _metadata(temporary, name or folder.name, encoder, objective) | entries
        own = None if type(encoder) in ENCODERS.values() else type(encoder).__name__
        card = card or _users_card(folder) or cards.card(metadata, own)
        (temporary / CARD).write_text(card, encoding="utf-8")
        if card == cards.card(metadata, own):  # a card that somebody wrote is nobody's to replace
            metadata["files"][CARD] = _described(temporary / CARD)
        write_json(temporary / METADATA, metadata)
    return given


@contextlib.contextmanager
def whole_folder(folder):
    """A temporary folder that takes the place of `folder` once all in it is written; an error changes nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        old = folder.with_name(f".{folder.name}-old-{uuid.uuid4().hex}")
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(temporary, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_folder(folder, overwrite=False):
    """Raises a `ValueError` unless a preset can be written to `folder` without a loss to its owner."""
    folder = Path(folder)
    if not folder.exists():
        return
    if not overwrite:
        raise ValueError(
            f"`folder` should not exist yet. Received: {str(folder)!r}. Pass overwrite=True to replace the preset."
        )
    found = [path.name for path in folder.iterdir()] if folder.is_dir() else ["a file of that name"]
    others = sorted(name for name in found if name not in FILES | {".DS_Store"})
    if others:
        raise ValueError(
            f"`folder` holds more than a preset, so it is left alone. Received: {str(folder)!r} with {others[:5]}. "
            "Move them elsewhere."
        )


def _check_class(value, allowed, argument):
    """Refuses what would come back as something else: a class of one's own with the name of one of ours."""
    name = type(value).__name__
    if name in allowed and type(value) is not allowed[name]:
        raise ValueError(
            f"`{argument}` should not be of a class of your own named like one of the library's. Received: {name}, "
            "which would be loaded as the library's. Rename the class."
        )


def _check_built_by_config(encoder):
    """Refuses a model of one's own whose weights could not be read again: its configuration does not make them."""
    if type(encoder) in ENCODERS.values() or not encoder.built:
        return
    with contextlib.suppress(NotImplementedError):  # Keras says that better when it writes the configuration
        again = type(encoder).from_config(encoder.get_config())
        if len(again.weights) != len(encoder.weights):
            raise ValueError(
                f"`encoder` should have its weights once it is made from its `get_config`. Received: {encoder.name}, "
                f"which then has {len(again.weights)} of {len(encoder.weights)}. Build it in its constructor, or "
                "save it within keras_issl.encoders.Adapter."
            )


def _users_card(folder):
    """The card of the preset that is replaced, if its owner wrote or changed it; else `None`."""
    path = folder / CARD
    if not path.is_file():
        return None
    try:
        recorded = read_metadata(folder)["files"][CARD]["sha256"]
    except (ValueError, KeyError, TypeError):
        recorded = None
    return None if sha256(path) == recorded else path.read_text(encoding="utf-8")


def _described(path):
    return {"sha256": sha256(path), "bytes": path.stat().st_size}


def _check_metadata(metadata):
    kinds = {key: kind for key, kind in OPTIONAL.items() if key != "parameters"} | {"probe": str}
    for key, value in metadata.items():
        if key not in kinds or not isinstance(value, kinds[key]):
            close = difflib.get_close_matches(key, set(kinds) - {key}, n=1)
            names = ", ".join(f"{name} ({kind.__name__})" for name, kind in kinds.items())
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"`metadata` may hold the entries {names}. Received: {key}={value!r}.{hint}")
    return metadata


def _write(folder, encoder, objective):
    """Writes the files that hold numbers and how to build what they belong to."""
    config = encoder.get_config()
    described = {"class": type(encoder).__name__, "config": config, "dtype": encoder.dtype_policy.name}
    described = _plain(described)
    if described["class"] in ENCODERS:
        strict.check_plain(CONFIG, described["config"])  # what could not be read again is not written
    write_json(folder / CONFIG, {"format": FORMAT, **described})
    encoder.save_weights(folder / WEIGHTS)
    golden.write(encoder, folder / GOLDEN, config.get("image_size"))
    if objective is not None:
        width = encoders.feature_dim(encoder)
        described = {"class": type(objective).__name__, "config": objective.get_config(), "feature_dim": width}
        write_json(folder / OBJECTIVE, {"format": FORMAT, **_plain(described)})
        as_model(objective, width).save_weights(folder / OBJECTIVE_WEIGHTS)


def _metadata(folder, name, encoder, objective):
    """What the files of a folder say of themselves."""
    from keras_issl import __version__

    return {
        "format": FORMAT,
        "name": name,
        "feature_dim": encoders.feature_dim(encoder),
        "parameters": sum(int(np.prod(weight.shape)) for weight in encoder.weights),
        "probe": provenance.probe_family(objective),
        "versions": {"keras_issl": __version__, "keras": keras.__version__, "backend": keras.config.backend()},
        "files": {path.name: _described(path) for path in sorted(folder.iterdir())},
        "verified": False,
    }


def _json(value):
    """What JSON lacks and a preset's entries may hold: NumPy's numbers and arrays, paths."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{value!r:.100} of type {type(value).__name__}")


def _plain(value):
    """JSON's own types: tuples become lists, NumPy's numbers Python's, a plain dtype policy its name."""
    try:
        text = json.dumps(value, default=_json, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise ValueError(f"A preset should hold what JSON can, without NaN or infinity. Received: {error}") from error
    value = json.loads(text)
    config = value.get("config")
    if isinstance(config, dict) and isinstance(config.get("dtype"), dict):
        name = (config["dtype"].get("config") or {}).get("name")
        config["dtype"] = name if name in strict.POLICIES else config["dtype"]
    return value
