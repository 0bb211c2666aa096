"""Reading untrusted files: JSON, HDF5 and NumPy archives, held against what they may hold.

A preset comes from anywhere. What is read here is bounded in size, stays inside its folder and never becomes code; all
that is wrong with a file becomes one `ValueError` that names it.
"""

import functools
import json
import math
import re
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import keras
import numpy as np

JSON_BYTES = 16 << 20  # a config of that size is a mistake or an attack
ARCHIVE_BYTES = 16 << 20
MESSAGE = 2000  # characters of an error: a file may hold names and values of any length
CHANNELS = 4096  # of an image
LIST, NODES = 256, 5000  # entries of a list, and values in all, in the description of an object
BUILD_WEIGHTS = 1 << 29  # an architecture without weights on disk may have this many: 2 GiB in float32
POLICIES = ("float32", "float16", "bfloat16", "float64", "mixed_float16", "mixed_bfloat16")
# What a preset may describe within an objective: the layers that a probe is made of, and what they are made with.
LAYERS = {
    "Activation", "BatchNormalization", "Dense", "Dropout", "InputLayer", "LayerNormalization", "ReLU", "Sequential",
}  # fmt: skip
INITIALIZERS = {
    "Constant", "GlorotNormal", "GlorotUniform", "HeNormal", "HeUniform", "Identity", "LecunNormal", "LecunUniform",
    "Ones", "Orthogonal", "RandomNormal", "RandomUniform", "TruncatedNormal", "VarianceScaling", "Zeros",
}  # fmt: skip
KNOWN = {"keras": LAYERS | {"DTypePolicy"}, "keras.layers": LAYERS, None: LAYERS, "keras.initializers": INITIALIZERS}


def find_file(folder, name, why):
    """Path of a regular file in a folder that no link leads out of, except within the Hub's cache: its files are links.

    Args:
        folder: The folder, a `pathlib.Path`.
        name: The file's name in it.
        why: End of the error's first sentence, for a file that is not there.

    Raises:
        ValueError: There is no such file, or it is a link to somewhere else.
    """
    path = folder / name
    if path.is_symlink():
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError) as error:  # a link to nowhere or, before Python 3.13, in a circle
            raise ValueError(why) from error
        if not target.is_relative_to(folder.resolve()) and not _is_in_store(folder, target):
            raise ValueError(
                f"{path} is a link to a file outside of the preset, which is not read. Received: a link to "
                f"{str(target)!r}. Replace the link by the file."
            )
    if not path.is_file():
        raise ValueError(why)
    return path


def _is_in_store(folder, target):
    """Whether a link leads from a snapshot in Hugging Face's cache to where that repository's contents are kept."""
    from huggingface_hub import constants

    cache, repository = Path(constants.HF_HUB_CACHE), folder.parent.parent
    is_snapshot = re.fullmatch(r"[0-9a-f]{40}", folder.name) and folder.parent.name == "snapshots"
    if not is_snapshot or not repository.name.startswith("models--") or repository.parent != cache:
        return False
    stores = (repository.resolve() / "blobs", cache.resolve() / "blobs")  # the second is shared by all repositories
    return any(target.is_relative_to(store) for store in stores)


def brief(reader):
    """Decorates a reader: what it says of a file is short and can be printed, whatever the file holds."""

    @functools.wraps(reader)
    def read(*args, **kwargs):
        try:
            return reader(*args, **kwargs)
        except RecursionError as error:
            raise ValueError(f"`{(*args, *kwargs.values())[0]}` holds values that are nested too deeply.") from error
        except ValueError as error:
            text = str(error).encode("utf-8", "backslashreplace").decode()
            if len(text) <= MESSAGE and text == str(error):
                raise
        raise ValueError(text if len(text) <= MESSAGE else f"{text[:MESSAGE]}... ({len(text):,} characters)")

    return read


def _number(text):
    if math.isinf(value := float(text)):
        raise ValueError(f"{text[:30]} is no finite number")
    return value


def read_json(path):
    """A JSON object, without repeated keys, NaN or infinity.

    Raises:
        ValueError: Anything else.
    """

    def once(pairs):
        value = dict(pairs)
        if len(value) != len(pairs):
            raise ValueError(f"the keys {sorted(k for k, _ in pairs)} are not all different")
        return value

    def refuse(constant):
        raise ValueError(f"{constant} is no JSON number")

    if (size := path.stat().st_size) > JSON_BYTES:
        raise ValueError(f"{path} should be a JSON file of at most {JSON_BYTES:,} bytes. Received: {size:,} bytes.")
    try:
        value = json.loads(
            path.read_text(encoding="utf-8"), object_pairs_hook=once, parse_constant=refuse, parse_float=_number
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not a JSON object. Received: {type(value).__name__}")
    return value


def check_keys(path, value, required, optional=frozenset()):
    """Raises a `ValueError` unless the dict has all of the `required` keys and none that is not known."""
    missing, unknown = sorted(required - set(value)), sorted(set(value) - required - optional)
    if missing or unknown:
        also = f" and may hold {sorted(optional)}" if optional else ""
        raise ValueError(
            f"{path} should hold the keys {sorted(required)}{also}. Received: {sorted(value)[:20]}, "
            f"missing {missing}, unknown {unknown[:20]}."
        )


def policy_name(path, value):
    """Name of a dtype policy, from the name or from what Keras makes of a plain policy.

    Raises:
        ValueError: A policy that is none of `POLICIES`.
    """
    if isinstance(value, dict) and value.get("class_name") == "DTypePolicy" and isinstance(value.get("config"), dict):
        value = value["config"].get("name")
    if value not in POLICIES:  # also what cannot be hashed: `in` a tuple only compares
        raise ValueError(f"{path} should name one of the dtype policies {list(POLICIES)}. Received: {value!r}")
    return value


def check_plain(path, value, known=()):
    """Raises a `ValueError` for a description of an object that is not one of a few layers: it could run code.

    So does one so long that Keras would be building for minutes before its weights can be counted.
    """
    nodes, pending = 0, [value]
    while pending:
        inner = pending.pop()
        if isinstance(inner, list) and len(inner) <= CHANNELS and all(type(value) is float for value in inner):
            continue  # the mean of each channel, say: numbers of which no layers are made
        pending += inner.values() if isinstance(inner, dict) else inner if isinstance(inner, list) else ()
        nodes += 1
        if nodes + len(pending) > NODES or (isinstance(inner, list) and len(inner) > LIST):
            raise ValueError(
                f"{path} describes an object in more than {NODES:,} values or in a list of more than {LIST}, more than "
                "any of this library needs."
            )
    _check_classes(path, value, known)


def _check_classes(path, value, known):
    if isinstance(value, dict):
        name, module, registered = (value.get(key) for key in ("class_name", "module", "registered_name"))
        # Keras looks for the registered name first, among all classes that the process knows.
        if registered not in (None, name) and str(registered).split(">")[-1] not in known:
            raise ValueError(
                f"{path} asks for the registered class {registered!r}. A preset never brings code: pass the class in "
                "`custom_objects` if you trust it."
            )
        words = isinstance(name, str) and isinstance(module, str | None)
        if "class_name" in value and not (words and (name in known or name in KNOWN.get(module, ()))):
            raise ValueError(
                f"{path} describes an object of the class {name!r} of {module!r}. A preset never brings code: "
                f"only {sorted(LAYERS)} of keras.layers are read, or what `custom_objects` names."
            )
        for item in value.values():
            _check_classes(path, item, known)
    elif isinstance(value, list):
        for item in value:
            _check_classes(path, item, known)


def count_weights(make):
    """How many numbers the weights of the model that `make()` builds hold, found without allocating one.

    The model is built in a stateless scope, where variables have shapes and no values, and in a thread of its own,
    which takes Keras's bookkeeping of those variables with it when it ends.
    """

    def census():
        with keras.StatelessScope(initialize_variables=False):
            return sum(math.prod(weight.shape) for weight in make().weights)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(census).result()


def check_weights(path, count):
    """Holds an HDF5 file of weights against the number of weights of the model that it is for.

    The file may hold groups and plain arrays of numbers, each stored whole in the file itself: no links to other
    files, no filters (a small file that unpacks to a large array), no references, no declared shape without data.

    Args:
        path: The file.
        count: How many numbers the model's weights hold.

    Raises:
        ValueError: The file holds anything else.
    """
    seen, found = set(), 0

    def visit(group, depth):
        nonlocal found
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{group.name}/{name} is a link to somewhere else")
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen or depth > 64:
                raise ValueError(f"{item.name} occurs twice")
            seen.add(address)
            if isinstance(item, h5py.Group):
                visit(item, depth + 1)
            elif not isinstance(item, h5py.Dataset):
                raise ValueError(f"{item.name} is neither a group nor an array")
            else:
                # Before anything that asks for the shape: to tell that of some virtual arrays, HDF5 opens other files.
                layout = item.id.get_create_plist().get_layout()
                if layout not in (h5py.h5d.COMPACT, h5py.h5d.CONTIGUOUS) or item.external:
                    raise ValueError(f"{item.name} is stored in pieces or elsewhere, not plainly in the file")
                if item.dtype.kind not in "fiuV" or item.dtype.hasobject or item.dtype.fields:
                    raise ValueError(f"{item.name} holds {item.dtype}, not numbers")
                if item.id.get_storage_size() != item.nbytes:
                    raise ValueError(f"{item.name} declares {item.nbytes:,} bytes that are not plainly in the file")
                found += item.size

    try:
        with h5py.File(path, "r") as file:
            visit(file, 0)
    except Exception as error:  # h5py has a dozen kinds for damaged files
        raise ValueError(f"{path} is not a sound file of weights: {error}") from error
    if found != count:
        raise ValueError(
            f"{path} should hold the {count:,} weights of the model that the preset describes. Received: {found:,}."
        )


def read_archive(path, names):
    """The arrays of a NumPy archive that holds exactly `names`.

    Raises:
        ValueError: Anything else, or an array that is larger than it is stored.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info.file_size for info in archive.infolist()}
            if sorted(members) != sorted(f"{name}.npy" for name in names) or sum(members.values()) > ARCHIVE_BYTES:
                raise ValueError(f"it holds {sorted(members)[:10]} of {sum(members.values()):,} bytes")
            arrays = {}
            for name in names:
                with archive.open(f"{name}.npy") as file:
                    version = np.lib.format.read_magic(file)
                    if version != (1, 0):
                        raise ValueError(f"{name} is of the .npy version {version}")
                    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
                    data = file.read()  # no more than `file_size` bytes
                if dtype.hasobject or fortran or math.prod(shape) * dtype.itemsize != len(data):
                    raise ValueError(f"{name} declares {dtype} {shape} in {len(data):,} bytes")
                arrays[name] = np.frombuffer(data, dtype).reshape(shape)
            return arrays
    except Exception as error:  # zipfile, zlib and NumPy each have their own for damaged files
        raise ValueError(f"{path} is not a sound archive of {list(names)}: {error}") from error
