"""The form of a `Result`, field by field, and the check that names what is wrong."""

import math

import numpy as np

number, optional_number, text, optional_text = (int, float), (int, float, None), (str,), (str, None)
DATA = {
    "name": optional_text, "split": optional_text, "fingerprint": optional_text, "labels_sha256": optional_text,
    "examples": (int, None), "classes": (int, None), "also_in_train?": (int,), "of_unknown_class?": (int,),
}  # fmt: skip
EMPTY_DATA = {
    "name": None, "split": None, "fingerprint": None, "labels_sha256": None, "examples": None, "classes": None
}  # fmt: skip
DEFAULTS = {  # of entries that a result made by hand may leave out
    "probe": {"family": None, "parameters": {}, "selected": {}, "selection": "", "validation_scores": {}},
    "train": EMPTY_DATA,
    "test": EMPTY_DATA,
    "representation": {"name": "features", "feature_dim": None},
}
# A schema: a tuple of types; {name: schema}, where `name?` may be missing and `*` stands for any name; [schema] a list.
SCHEMA = {
    "metrics": {
        "*": {"value": number, "low": optional_number, "high": optional_number, "sd": number, "seeds": (int,)}
    },
    "probe": {
        "name": text, "family": optional_text, "parameters": (dict,), "selected": (dict,), "selection": text,
        "validation_scores?": {"*": number},
    },
    "mode": text,
    "selected_on": text,
    "seeds": [(int,)],
    "train": DATA,
    "test": DATA,
    "representation": {
        "name": text, "feature_dim": (int, None), "preset?": optional_text, "weights_sha256?": optional_text,
        "encoder?": optional_text, "probe?": optional_text, "image_shape?": (list, None),
        "preprocessing?": (dict, None), "dtype_policy?": optional_text, "backend?": optional_text,
        "keras?": optional_text,
    },
    "bootstrap": (int,),
    "few_shot": ({"*": {"mean": number, "sd": number, "draws": (int,)}}, None),
    "per_class": ([{"label": text, "examples": (int,), "accuracy": number}], None),
    "confusions": ([{"label": text, "guess": text, "count": number, "share": number}], None),
    "versions": {"*": optional_text},
    "hardware": (dict,),
    "seconds": optional_number,
    "date": optional_text,
}  # fmt: skip


def filled(name, value):
    """The dict of that field, with defaults for what it leaves out."""
    if name == "metrics":
        default = {"low": None, "high": None, "sd": 0.0, "seeds": 1}
        return {key: _with(default, item) if isinstance(item, dict) else item for key, item in value.items()}
    return _with(DEFAULTS.get(name, {}), value)


def _with(default, value):
    return {**value, **{key: item for key, item in default.items() if key not in value}}


def checked(value, schema, place):
    """A copy of the value in JSON's types, if it has the form; else a `ValueError` that names the place."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(schema, tuple) and isinstance(schema[0], dict | list):  # or None
        return None if value is None else checked(value, schema[0], place)
    if isinstance(schema, dict):
        _require(isinstance(value, dict), place, "a dict", value)
        _require_names(value, schema, f"`{place}`" if place else "A result")
        known, prefix = {name.rstrip("?"): form for name, form in schema.items()}, f"{place}." if place else ""
        return {name: checked(item, known.get(name) or known["*"], prefix + name) for name, item in value.items()}
    if isinstance(schema, list):
        _require(isinstance(value, list | tuple), place, "a list", value)
        return [checked(item, schema[0], f"{place}[{i}]") for i, item in enumerate(value)]
    if dict in schema or list in schema:
        value = json_value(value)
    words = " or ".join("None" if kind is None else kind.__name__ for kind in schema)
    good = any(value is None if kind is None else type(value) is kind for kind in schema)
    _require(good and not (isinstance(value, float) and not math.isfinite(value)), place, f"of type {words}", value)
    _require(not (type(value) is int and value < 0), place, "0 or more", value)
    return value


def _require_names(value, schema, place):
    if not all(isinstance(name, str) for name in value):
        raise ValueError(f"{place} should have strings for keys. Received: {list(value)}.")
    required = {name for name in schema if not name.endswith("?") and name != "*"}
    unknown = set() if "*" in schema else value.keys() - {name.rstrip("?") for name in schema}
    if missing := sorted(required - value.keys()):
        raise ValueError(
            f"{place} should have {', '.join(f'`{name}`' for name in missing)}. Received: {sorted(value)}."
        )
    if unknown:
        raise ValueError(
            f"{place} should have entries among {sorted(name.rstrip('?') for name in schema)}. Received: "
            f"{', '.join(map(repr, sorted(unknown)))}."
        )


def _require(condition, place, words, value):
    if not condition:
        raise ValueError(f"`{place}` should be {words}. Received: {str(value)[:80]!r} ({type(value).__name__}).")


def json_value(value):
    """A value as JSON can hold it: what it has no type for becomes a list or a string.

    Example:

    >>> keras_issl.results.json_value({"k": (np.int64(3), float("inf"))})
    {'k': [3, 'inf']}
    """
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {str(name): json_value(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset | range):
        return [json_value(item) for item in value]
    return type(value).__name__ if " at 0x" in repr(value) else repr(value)


def refuse(constant):
    raise ValueError(f"{constant} is no JSON")


def unique(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a key stands there twice, among {sorted(found)}")
    return found
