"""The preset folder: an encoder (and its objective's heads) on disk, read strictly.

```
config.json            class, from an allow-list, and its arguments
metadata.json          versions, SHA-256 of each file, provenance, recipe, probe family, results
model.weights.h5       the encoder's weights
objective.json         optional: the objective and its arguments
objective.weights.h5   optional: its heads
README.md              the card
```

A preset is data, never code: a class that is not on the allow-list loads only when the user hands it over.
"""

import hashlib
import inspect
import json
import os
import shutil
import tempfile
from pathlib import Path

import keras
import numpy as np

from keras_issl import distribution, encoders, objectives

FORMAT = 1
ENCODERS = {"ResNet": encoders.ResNet}
OBJECTIVES = {name: getattr(objectives, name) for name in ("CISSL", "DISSL", "SimCLR")}
CONFIG, METADATA, CARD = "config.json", "metadata.json", "README.md"
WEIGHTS, OBJECTIVE, OBJECTIVE_WEIGHTS = "model.weights.h5", "objective.json", "objective.weights.h5"
FILES = {CONFIG, METADATA, CARD, WEIGHTS, OBJECTIVE, OBJECTIVE_WEIGHTS, "golden.npz"}


def sha256(path):
    """SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path, value):
    """Writes JSON through a temporary file, so that a reader never sees half of it."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(temporary, path)


# ---------------------------------------------------------------------- writing
def save_preset(
    encoder, folder, *, objective=None, recipe=None, results=None, provenance=None, card=None, overwrite=False
):
    """Writes an encoder as a preset folder, all of it or nothing.

    Args:
        encoder: The encoder, built.
        folder: Path of the folder to make.
        objective: The objective it was trained with: its heads are saved too, its probe family recorded.
        recipe: A dict: how it was trained.
        results: A list of dicts: figures, each with its protocol.
        provenance: A dict: the data and the run it came from.
        card: Markdown text of the model card; by default one made from the metadata.
        overwrite: Whether an existing preset folder may be replaced.

    Returns:
        The folder, a `pathlib.Path`.

    Raises:
        ValueError: The folder exists and `overwrite` is false, or it holds anything but a preset.

    Example:

    >>> encoder = keras_issl.encoders.ResNet(18, image_size=32, width=8)
    >>> folder = keras_issl.save_preset(encoder, "my_preset")
    >>> again = keras_issl.from_preset("my_preset")
    """
    folder = Path(folder)
    check_folder(folder, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write(temporary, folder.name, encoder, objective, recipe, results, provenance, card)
        temporary.chmod(0o755)
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
            os.replace(folder, old)
            try:
                os.replace(temporary, folder)
            except OSError:
                os.replace(old, folder)
                raise
            shutil.rmtree(old)
        else:
            os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


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
    others = sorted(name for name in found if name not in FILES and not name.startswith("."))
    if others:
        raise ValueError(
            f"`folder` holds more than a preset, so it is left alone. Received: {str(folder)!r} with {others[:5]}. "
            "Move them elsewhere."
        )


def _write(folder, name, encoder, objective, recipe, results, provenance, card):
    config = {"class": type(encoder).__name__, "config": encoder.get_config(), "dtype": encoder.dtype_policy.name}
    write_json(folder / CONFIG, {"format": FORMAT, **_plain(config)})
    encoder.save_weights(folder / WEIGHTS)
    files = [CONFIG, WEIGHTS]
    if objective is not None:
        config = {"class": type(objective).__name__, "config": objective.get_config()}
        width = encoders.feature_dim(encoder)
        write_json(folder / OBJECTIVE, {"format": FORMAT, "feature_dim": width, **_plain(config)})
        _as_model(objective, width).save_weights(folder / OBJECTIVE_WEIGHTS)
        files += [OBJECTIVE, OBJECTIVE_WEIGHTS]
    from keras_issl import __version__

    probe = getattr(objective, "probe", None)
    metadata = {
        "format": FORMAT,
        "name": name,
        "feature_dim": encoders.feature_dim(encoder),
        "probe": probe if probe is None or isinstance(probe, str) else "custom",
        "recipe": recipe,
        "results": results or [],
        "provenance": provenance or {},
        "versions": {"keras_issl": __version__, "keras": keras.__version__, "backend": keras.config.backend()},
        "files": {f: {"sha256": sha256(folder / f), "bytes": (folder / f).stat().st_size} for f in files},
        "verified": False,
    }
    write_json(folder / METADATA, _plain(metadata))
    (folder / CARD).write_text(card or _card(metadata), encoding="utf-8")


def _plain(value):
    """JSON's own types: tuples become lists, NumPy scalars Python numbers."""
    return json.loads(json.dumps(value, default=lambda x: x.item() if isinstance(x, np.generic) else str(x)))


def _card(metadata):
    lines = [
        f"# {metadata['name']}",
        "",
        f"An encoder with {metadata['feature_dim']} features, saved by keras_issl.",
        "",
    ]
    if metadata["probe"]:
        lines += [f"Its objective was matched to a {metadata['probe']} probe.", ""]
    lines += [
        "```python",
        "import keras_issl",
        "",
        f'encoder = keras_issl.from_preset("path/to/{metadata["name"]}")',
        f"features = encoder.predict(images)  # RGB in 0..255, (N, H, W, 3) -> (N, {metadata['feature_dim']})",
        "```",
        "",
    ]
    for row in metadata["results"]:
        lines.append("- " + ", ".join(f"{key}: {value}" for key, value in row.items()))
    return "\n".join(lines) + "\n"


class _Heads(keras.Model):
    """A model that holds an objective, whose weights can be saved like a model's."""

    def __init__(self, objective):
        super().__init__()
        self.objective = objective
        self.built = True

    def call(self, features):
        return self.objective(features)


def _as_model(objective, width):
    if not objective.built:
        objective.build((objective.num_views, None, width))
        objective.built = True
    return _Heads(objective)


# ---------------------------------------------------------------------- reading
def load_preset(folder, *, load_weights=True, dtype=None, custom_objects=None):
    """Reads the encoder of a preset folder.

    Args:
        folder: Path of a preset folder.
        load_weights: Whether to load weights; otherwise the architecture is freshly initialised.
        dtype: A dtype policy such as `"mixed_bfloat16"`; by default the saved one.
        custom_objects: A dict from class names to classes, for encoders that are not the library's own.

    Returns:
        The encoder, a `keras.Model`.

    Raises:
        ValueError: The folder is no preset, holds unknown keys, a class that is not allowed, or a
            file whose SHA-256 is not the recorded one.
    """
    folder = Path(folder)
    config = _read(folder, CONFIG, {"format", "class", "config", "dtype"})
    if dtype is not None and "dtype" in config["config"]:
        config["config"]["dtype"] = dtype
    with distribution.dtype_scope(dtype or config["dtype"]):
        encoder = _make(config, ENCODERS, custom_objects, folder / CONFIG)
    if load_weights:
        _verify(folder, WEIGHTS)
        encoder.load_weights(folder / WEIGHTS)
    return encoder


def load_objective(folder, *, custom_objects=None):
    """Reads the objective of a preset folder, with its trained heads: class assignments need them.

    Args:
        folder: Path of a preset folder that was saved with its objective.
        custom_objects: As in `load_preset`.

    Returns:
        The objective, built for the encoder's features.

    Raises:
        ValueError: As `load_preset`, or the preset holds no objective.
    """
    folder = Path(folder)
    if not (folder / OBJECTIVE).exists():
        raise ValueError(f"The preset {str(folder)!r} was saved without its objective: there is no {OBJECTIVE}.")
    config = _read(folder, OBJECTIVE, {"format", "class", "config", "feature_dim"})
    objective = _make(config, OBJECTIVES, custom_objects, folder / OBJECTIVE)
    _verify(folder, OBJECTIVE_WEIGHTS)
    _as_model(objective, config["feature_dim"]).load_weights(folder / OBJECTIVE_WEIGHTS)
    return objective


def _read(folder, name, keys):
    path = folder / name
    if not path.is_file():
        raise ValueError(
            f"`folder` should be a preset folder, with a {name} in it. Received: {str(folder)!r}. "
            "`keras_issl.save_preset` and `keras-issl pretrain` write such folders."
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict) or set(value) != keys:
        found = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise ValueError(f"{path} should hold exactly the keys {sorted(keys)}. Received: {found}")
    if value["format"] != FORMAT:
        raise ValueError(
            f"{path} has preset format {value['format']!r}, this version of keras_issl reads format {FORMAT}. "
            "Update keras_issl."
        )
    return value


def _make(config, allowed, custom_objects, path):
    known = allowed | (custom_objects or {})
    if config["class"] not in known:
        raise ValueError(
            f"{path} names the class {config['class']!r}, which is not one of {sorted(known)}. A preset never "
            f"brings code: pass custom_objects={{{config['class']!r}: TheClass}} if you trust it (an adapted model "
            "is an `encoders.Adapter`)."
        )
    cls = known[config["class"]]
    if config["class"] in allowed:
        accepted = set(inspect.signature(cls).parameters) | {"name", "dtype", "trainable"}
        unknown = sorted(set(config["config"]) - accepted)
        if unknown:
            raise ValueError(f"{path} holds arguments that {config['class']} does not have: {unknown}")
    _verify(path.parent, path.name)
    with keras.saving.custom_object_scope(custom_objects or {}):
        return cls.from_config(dict(config["config"]))


def read_metadata(folder):
    """The metadata of a preset folder, a dict; empty if there is none.

    Raises:
        ValueError: The file is not valid JSON.
    """
    path = Path(folder) / METADATA
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a JSON object: {error}") from error


def _verify(folder, name):
    try:
        recorded = read_metadata(folder)["files"][name]["sha256"]
    except (KeyError, TypeError):
        recorded = None
    path = folder / name
    if not path.is_file():
        raise ValueError(f"The preset {str(folder)!r} lacks its file {name}.")
    if recorded is None:
        raise ValueError(f"{folder / METADATA} records no SHA-256 for {name}, so it cannot be trusted.")
    if sha256(path) != recorded:
        raise ValueError(
            f"{path} is not the file that was saved: its SHA-256 differs from the one in {METADATA}. "
            "Copy or download the preset again."
        )
