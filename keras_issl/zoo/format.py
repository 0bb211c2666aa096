"""The preset folder: an encoder (and its objective's heads) on disk, read strictly.

```
config.json            class, from an allow-list, and its arguments
metadata.json          versions, SHA-256 of each file, provenance, recipe, probe family, results
model.weights.h5       the encoder's weights
objective.json         optional: the objective and its arguments
objective.weights.h5   optional: its heads
golden.npz             optional: two pictures and the encoder's features of them
README.md              the card
```

A preset is data, never code: a class that is not on the allow-list loads only when the user hands it over.
"""

import contextlib
import difflib
import inspect
import json
import os
import shutil
import tempfile
import uuid
from pathlib import Path

import keras
import numpy as np

from keras_issl import distribution, encoders, objectives
from keras_issl.zoo import cards, golden, strict
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
    REQUIRED,
    WEIGHTS,
    sha256,
    write_json,
)

ENCODERS = {"ResNet": encoders.ResNet}
OBJECTIVES = {name: getattr(objectives, name) for name in ("CISSL", "DISSL", "SimCLR")}


# ---------------------------------------------------------------------- writing
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
    given = Path(folder)
    folder = given.resolve()  # a link keeps pointing to where it points
    _check_class(encoder, ENCODERS, "encoder")
    _check_class(objective, OBJECTIVES, "objective")
    entries = {"recipe": recipe, "results": [] if results is None else results, "provenance": provenance or {}}
    entries = _plain(entries | _check_metadata(metadata or {}))
    _check_types("save_preset", entries)
    check_folder(folder, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write(temporary, encoder, objective)
        metadata = _metadata(temporary, name or folder.name, encoder, objective) | entries
        own = None if type(encoder) in ENCODERS.values() else type(encoder).__name__
        card = card or _users_card(folder) or cards.card(metadata, own)
        (temporary / CARD).write_text(card, encoding="utf-8")
        if card == cards.card(metadata, own):  # a card that somebody wrote is nobody's to replace
            metadata["files"][CARD] = _described(temporary / CARD)
        write_json(temporary / METADATA, metadata)
        temporary.chmod(0o755)
        if folder.exists():
            old = folder.with_name(f".{folder.name}-old-{uuid.uuid4().hex}")
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
    return given


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
    write_json(folder / CONFIG, {"format": FORMAT, **_plain(described)})
    encoder.save_weights(folder / WEIGHTS)
    golden.write(encoder, folder / GOLDEN, config.get("image_size"))
    if objective is not None:
        width = encoders.feature_dim(encoder)
        described = {"class": type(objective).__name__, "config": objective.get_config(), "feature_dim": width}
        write_json(folder / OBJECTIVE, {"format": FORMAT, **_plain(described)})
        _as_model(objective, width).save_weights(folder / OBJECTIVE_WEIGHTS)


def _metadata(folder, name, encoder, objective):
    """What the files of a folder say of themselves."""
    from keras_issl import __version__

    probe = getattr(objective, "probe", None)
    return {
        "format": FORMAT,
        "name": name,
        "feature_dim": encoders.feature_dim(encoder),
        "parameters": sum(int(np.prod(weight.shape)) for weight in encoder.weights),
        "probe": probe if probe is None or isinstance(probe, str) else "custom",
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
@strict.brief
def load_preset(folder, *, load_weights=True, dtype=None, verify=False, custom_objects=None):
    """Reads the encoder of a preset folder.

    Args:
        folder: Path of a preset folder.
        load_weights: Whether to load weights; otherwise the architecture is freshly initialised.
        dtype: A dtype policy such as `"mixed_bfloat16"`; by default the saved one.
        verify: Whether to compute the recorded features of two pictures again, and to compare.
        custom_objects: A dict from class names to classes, for encoders that are not the library's own.

    Returns:
        The encoder, a `keras.Model`.

    Raises:
        ValueError: The folder is no preset, holds unknown keys, a class that is not allowed, or a
            file whose SHA-256 is not the recorded one; or, with `verify`, the features differ.
    """
    folder = Path(folder)
    if verify and not load_weights:
        raise ValueError("`verify` compares features, which fresh weights do not give. Received: load_weights=False.")
    config = _read(folder, CONFIG, {"format", "class", "config", "dtype"})
    metadata = read_metadata(folder)
    ours = config["class"] in ENCODERS
    own = config["config"].get("dtype") if ours else None
    saved = strict.policy_name(folder / CONFIG, own) if own is not None else config["dtype"]
    if dtype is not None:
        dtype = _policy(dtype)
        if not ours and "dtype" not in config["config"]:
            raise ValueError(
                f"`dtype` should be left out for a preset of the class {config['class']}, whose layers keep their "
                f"policies. Received: {dtype!r}. Build the model with that policy, and `set_weights`."
            )
        config["dtype"] = config["config"]["dtype"] = dtype
    if load_weights:
        weights = _verified(folder, WEIGHTS, metadata)
    if verify:
        recorded = _verified(folder, GOLDEN, metadata)
    make = _maker(folder, config, ENCODERS, custom_objects, metadata)

    def build():
        with distribution.dtype_scope(config["dtype"]):
            return make()

    if ours:
        count = _count(build, folder / CONFIG)
        if load_weights:
            strict.check_weights(weights, count)
        elif count > strict.BUILD_WEIGHTS:
            raise ValueError(f"{folder / CONFIG} describes a model of {count:,} weights, too many to be one of ours.")
    if not load_weights:
        return _built(build, folder / CONFIG)
    with encoders.from_zeros() if ours else contextlib.nullcontext():
        encoder = _built(build, folder / CONFIG)
    _load_weights(encoder, weights)
    if verify:
        dtypes = {layer.compute_dtype for layer in encoder._flatten_layers()} | {saved}
        golden.check(encoder, recorded, exact=dtypes <= {"float32", "float64"})
    return encoder


@strict.brief
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
    metadata = read_metadata(folder)
    width = config["feature_dim"]
    if not isinstance(width, int) or isinstance(width, bool) or width < 1:
        raise ValueError(f"{folder / OBJECTIVE} should hold a positive integer `feature_dim`. Received: {width!r}")
    weights = _verified(folder, OBJECTIVE_WEIGHTS, metadata)
    make = _maker(folder, config, OBJECTIVES, custom_objects, metadata, OBJECTIVE)

    def build():
        return _as_model(make(), width)

    if config["class"] in OBJECTIVES:
        strict.check_weights(weights, _count(build, folder / OBJECTIVE))
    model = _built(build, folder / OBJECTIVE)
    _load_weights(model, weights)
    return model.objective


@strict.brief
def read_metadata(folder):
    """The metadata of a preset folder, a dict; empty if there is none.

    Raises:
        ValueError: The file is not a JSON object with the entries of a preset's metadata.
    """
    path = Path(folder) / METADATA
    if not os.path.lexists(path):
        return {}
    metadata = strict.read_json(strict.find_file(Path(folder), METADATA, f"{path} should be a file."))
    strict.check_keys(path, metadata, set(REQUIRED), set(OPTIONAL))
    _check_types(path, metadata)
    if unknown := sorted(set(metadata["files"]) - FILES):
        raise ValueError(f"{path} should record files of {sorted(FILES)} alone. Received: {unknown[:5]}")
    return metadata


def _check_types(path, metadata):
    """Raises a `ValueError` unless every entry is of its type, and `preprocessing` names two sizes that fit."""
    for key, value in metadata.items():
        kind = (REQUIRED | OPTIONAL)[key]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            name = getattr(kind, "__name__", kind)
            raise ValueError(f"{path} should hold for `{key}` a value of type {name}. Received: {value!r}")
    sizes = metadata.get("preprocessing")
    if sizes is not None:
        whole = set(sizes) == {"resize", "crop"} and all(type(size) is int for size in sizes.values())
        if not whole or not 0 < sizes["crop"] <= sizes["resize"]:
            raise ValueError(
                f"{path} should hold for `preprocessing` two sizes in pixels, `crop` at most `resize`, such as "
                f'{{"resize": 256, "crop": 224}}. Received: {sizes}'
            )


def _read(folder, name, keys):
    path = strict.find_file(
        folder,
        name,
        f"`folder` should be a preset folder, with a {name} in it. Received: {str(folder)!r}. "
        "`keras_issl.save_preset` and `keras-issl pretrain` write such folders.",
    )
    value = strict.read_json(path)
    strict.check_keys(path, value, keys)
    if value["format"] != FORMAT:
        raise ValueError(
            f"{path} has preset format {value['format']!r}, this version of keras_issl reads format {FORMAT}. "
            "Update keras_issl."
        )
    if not isinstance(value["class"], str) or not isinstance(value["config"], dict):
        raise ValueError(f"{path} should hold the name of a `class` and an object `config`. Received: {value}")
    if "dtype" in value:
        value["dtype"] = strict.policy_name(path, value["dtype"])
    return value


def _maker(folder, config, allowed, custom_objects, metadata, name=CONFIG):
    """A function without arguments that makes the object a file describes, of a class that is allowed."""
    path, known = folder / name, allowed | (custom_objects or {})
    if config["class"] not in known:
        raise ValueError(
            f"{path} names the class {config['class']!r}, which is not one of {sorted(known)}. A preset never "
            f"brings code: pass custom_objects={{{config['class']!r}: TheClass}} if you trust it (an adapted model "
            "is an `encoders.Adapter`)."
        )
    cls, arguments = known[config["class"]], dict(config["config"])
    if config["class"] in allowed:
        accepted = set(inspect.signature(cls).parameters) | {"name", "dtype", "trainable"}
        if unknown := sorted(set(arguments) - accepted):
            raise ValueError(f"{path} holds arguments that {config['class']} does not have: {unknown}")
        if arguments.get("dtype") is not None:
            arguments["dtype"] = strict.policy_name(path, arguments["dtype"])
        strict.check_plain(path, arguments, set(custom_objects or ()))
    _verified(folder, name, metadata)

    def make():
        with keras.saving.custom_object_scope(custom_objects or {}):
            return cls.from_config(dict(arguments))

    return make


def _built(build, path):
    try:
        return build()
    except Exception as error:  # a constructor's own words, or NumPy's or the backend's for a value of a wrong type
        raise ValueError(f"{path} describes a model that cannot be built: {error}") from error


def _count(build, path):
    return _built(lambda: strict.count_weights(build), path)


def _load_weights(model, path):
    try:
        model.load_weights(path)
    except Exception as error:  # Keras and h5py have many kinds for what does not fit
        raise ValueError(f"{path} holds other weights than the model that the preset describes: {error}") from error


def _policy(dtype):
    name = getattr(dtype, "name", dtype)
    if name not in strict.POLICIES:
        raise ValueError(f"`dtype` should be a dtype policy, one of {list(strict.POLICIES)}. Received: {dtype!r}")
    return name


def check_hashes(folder):
    """Raises a `ValueError` unless every file that a preset records is there and is the one that was saved."""
    metadata = read_metadata(folder)
    for name in set(metadata.get("files", {})) - {CARD}:
        _verified(Path(folder), name, metadata)


def _verified(folder, name, metadata):
    """Path of a preset's file, once its SHA-256 is found to be the recorded one."""
    path = strict.find_file(folder, name, f"The preset {str(folder)!r} lacks its file {name}.")
    entry = metadata.get("files", {}).get(name)
    recorded = entry.get("sha256") if isinstance(entry, dict) else None
    if recorded is None:
        raise ValueError(f"{folder / METADATA} records no SHA-256 for {name}, so it cannot be trusted.")
    size = entry.get("bytes")  # first, because a hole of a terabyte takes hours to hash
    if (isinstance(size, int) and path.stat().st_size != size) or sha256(path) != recorded:
        raise ValueError(
            f"{path} is not the file that was saved: its SHA-256 differs from the one in {METADATA}. "
            "Copy or download the preset again."
        )
    return path
