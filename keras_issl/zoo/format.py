"""The preset folder: what it holds, and how it is read, strictly.

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
import inspect
import os
from pathlib import Path

import keras

from keras_issl import distribution, encoders, objectives
from keras_issl.zoo import golden, strict
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
)

ENCODERS = {"ResNet": encoders.ResNet}
OBJECTIVES = {name: getattr(objectives, name) for name in objectives.__all__ if name != "Objective"}


class ObjectiveModel(keras.Model):
    """A model that holds an objective, whose weights can be saved like a model's."""

    def __init__(self, objective):
        super().__init__()
        self.objective = objective
        self.built = True

    def call(self, features):
        return self.objective(features)


def as_model(objective, width):
    """An objective, built for features of a width, as a model."""
    if not objective.built:
        objective.build((objective.num_views, None, width))
        objective.built = True
    return ObjectiveModel(objective)


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
        return as_model(make(), width)

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
    check_types(path, metadata)
    if unknown := sorted(set(metadata["files"]) - FILES):
        raise ValueError(f"{path} should record files of {sorted(FILES)} alone. Received: {unknown[:5]}")
    return metadata


def check_types(path, metadata):
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
