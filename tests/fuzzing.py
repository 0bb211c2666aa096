"""Hostile presets and checkpoints: makes them, has them read in a process apart, and says what was broken.

Case `number` of `seed` is always the same: a fresh copy of a sound preset or checkpoint, one mutation, one reader.
A mutated preset either keeps its old hashes, as damage does (stale), or has them recorded anew, as somebody would who
means harm (signed). Whatever the file, a reader may succeed or raise a `ValueError` of ours. It may not raise anything
else, hang, take half a gigabyte, touch what lies outside of the case's folder, or read what a stale hash should have
caught; nor may it bring the process down, so a worker reads and its parent looks on:

    python tests/fuzzing.py SEED FIRST LAST ONLY KEEP

`mutated_presets` and `mutated_checkpoints` below hold one function a kind of mutation.
"""

import collections
import contextlib
import ctypes
import dataclasses
import gc
import io
import json
import math
import os
import pickle
import pickletools
import queue
import resource
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import traceback
import zipfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
TAG = "@@fuzz "  # before what a worker says to its parent: libraries print too
TARGETS = ("preset", "checkpoint")
SECONDS = 20  # that a case may take
GRACE = 30  # more, for what a signal does not interrupt, until the parent ends the worker
BATCH = 250  # cases a worker
MEMORY = 512 << 20  # that a case may take at its peak
ADDRESSES = 8 << 30  # that a worker may ask for: the second net
MESSAGE = 4000  # characters an error may have and still be read
QUIET = {  # no word of TensorFlow's; XLA compiles many small models once, which unoptimised takes a fifth of the time
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
}
PAYLOAD = "fuzz_payload"  # a module beside the folder, on the path: no file may have it imported

mutated_presets, mutated_checkpoints = {}, {}


def mutation(kinds):
    def register(function):
        kinds[function.__name__.replace("_", " ")] = function
        return function

    return register


@dataclasses.dataclass
class Box:
    """Where a case takes place: `folder` is handed to the reader; what is `outside` may not be touched."""

    folder: Path
    outside: Path
    kit: Path  # the originals
    signed: bool

    @property
    def checkpoint(self):
        return self.folder / "checkpoint.pt"

    @property
    def owned(self):
        """What a payload that is run would make."""
        return self.outside / "owned"


@dataclasses.dataclass
class Outcome:
    """What came of one case: `result` is "refused", "read" or "died", `violations` what should not have happened."""

    number: int
    target: str
    kind: str
    mode: str = ""
    action: str = ""
    result: str = ""
    message: str = ""
    seconds: float = 0.0
    peak: int = 0  # bytes beyond what the process had before
    violations: list = dataclasses.field(default_factory=list)


# ---------------------------------------------------------------------- JSON
JSON_FILES = ("config.json", "metadata.json", "objective.json")
WEIGHT_FILES = ("model.weights.h5", "objective.weights.h5")
ALL_FILES = (*JSON_FILES, *WEIGHT_FILES, "golden.npz", "README.md")
HERE = "@@here@@"
VALUES = [
    "null", "true", "false", "[]", "{}", '""', '"8"', "[[]]", "[null]", '{"a": 1}', "[1, 2, 3]", '"auto"', '"\\ud800"',
    '"\\u0000"', '"a\\u0000/../b"', '"\\u202e"', '["a", 1, null]', "[0.5, 0.5, 0.5]", '{"": {}}', '"None"', '"nan"',
    "[[1, 2]]",
]  # fmt: skip
NUMBERS = [
    "0", "-1", "-0.0", "1.5", "1e999", "-1e999", "NaN", "Infinity", "-Infinity", "1e308", "1e-320", "2147483648",
    "9223372036854775808", "-9223372036854775809", "1" + "0" * 400, "9" * 5000, "1000000000", "4294967296", "65537",
    "8.0", "[999]", "[1000]", "[1e999, 1, 1]", "[0, 0, 0]", "[-1]", "[1000000000000]",
    "[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]",
]  # fmt: skip


def pick(rng, values):
    return values[int(rng.integers(len(values)))]


def nodes(value, path=()):
    """Paths of all values in a JSON value, itself included."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from nodes(item, (*path, key))


def put(rng, box, raw, name=None):
    """Puts raw JSON text in the place of one value; a third of the time within the arguments of a class."""
    name = name or pick(rng, JSON_FILES)
    value = json.loads((box.folder / name).read_text())
    paths = [path for path in nodes(value) if path]
    arguments = [path for path in paths if path[0] == "config"]
    path = pick(rng, arguments if arguments and rng.random() < 0.4 else paths)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = HERE
    (box.folder / name).write_text(json.dumps(value).replace(f'"{HERE}"', raw))
    return name


@mutation(mutated_presets)
def json_types(rng, box):
    return put(rng, box, pick(rng, VALUES))


@mutation(mutated_presets)
def json_numbers(rng, box):
    return put(rng, box, pick(rng, NUMBERS))


@mutation(mutated_presets)
def json_arguments(rng, box):
    """A value of the right type and an absurd size, for an argument that has something to build from it."""
    name = pick(rng, ("config.json", "objective.json"))
    value = json.loads((box.folder / name).read_text())
    sizes = (0, -1, 1, 3, 100, 10**4, 10**6, 10**9, 10**12, 2**31, 2**63, 10**30)
    if name == "config.json":
        change = pick(rng, [
            {"width": pick(rng, sizes)}, {"channels": pick(rng, sizes)}, {"image_size": pick(rng, sizes)},
            {"feature_dim": pick(rng, sizes)}, {"blocks": [pick(rng, sizes)]},
            {"blocks": [1] * pick(rng, (0, 30, 200, 999))},
            {"variant": pick(rng, (18, 50, 101, "50", 1e9)), "blocks": None}, {"mean": [0.0] * pick(rng, (1, 10**5))},
            {"std": [0.0, 0.0, 0.0]}, {"std": 1e-320}, {"stem": pick(rng, ("imagenet", "", "x" * 10**5))},
            {"width": 1, "blocks": [400]}, {"name": pick(rng, ("", "a/b", "../../x", "\u0000", "n" * 10**6))},
            {"bottleneck": pick(rng, (1, "yes", True))},
        ])  # fmt: skip
    else:
        change = pick(rng, [
            {"num_classes": pick(rng, sizes)}, {"bottleneck": pick(rng, sizes)}, {"teacher_hidden": [pick(rng, sizes)]},
            {"teacher_hidden": [1] * pick(rng, (0, 50, 3000, 10**6))},
            {"heads": pick(rng, ("", "imagenet", "x" * 10**5))}, {"probe": pick(rng, ("mlp", "", "../x", 3))},
            {"name": pick(rng, ("", "a/b", "../../x", "n" * 10**6))}, {"trainable": pick(rng, (3, "no", []))},
            {"teacher_temperature": pick(rng, (0.0, -1.0, 1e308))},
        ])  # fmt: skip
        if rng.random() < 0.3:
            value["feature_dim"] = pick(rng, (*sizes, True, 8.0, "8"))
    value["config"].update(change)
    (box.folder / name).write_text(json.dumps(value))
    return name


@mutation(mutated_presets)
def json_depth(rng, box):
    depth = pick(rng, (50, 200, 320, 480, 700, 900, 980, 3000, 20_000, 200_000))
    start, middle, end = pick(rng, (("[", "", "]"), ('{"a":', "1", "}"), ('[{"config":', "[]", "}]")))
    return put(rng, box, start * depth + middle + end * depth)


@mutation(mutated_presets)
def json_duplicate_keys(rng, box):
    name = pick(rng, JSON_FILES)
    text = (box.folder / name).read_text()
    if rng.random() < 0.5:
        key = pick(rng, list(json.loads(text)))
        extra = f'"{key}": {pick(rng, VALUES)}, '
    else:
        extra = ", ".join(['"again": 1'] * pick(rng, (2, 10**5))) + ", "
    (box.folder / name).write_text(text.replace("{", "{" + extra, 1))
    return name


@mutation(mutated_presets)
def json_keys(rng, box):
    """Keys that are unknown, renamed or missing, at any depth."""
    name = pick(rng, JSON_FILES)
    value = json.loads((box.folder / name).read_text())
    inner = value
    for key in pick(rng, list(nodes(value))):
        if not isinstance(inner[key], dict):
            break
        inner = inner[key]
    key = pick(rng, list(inner) or [""])
    change = pick(rng, ("add", "rename", "remove", "class"))
    if change in ("rename", "remove"):
        removed = inner.pop(key, None)
    if change == "rename":
        inner[pick(rng, (key + " ", key.upper(), "__class__", "../" + key, ""))] = removed
    elif change == "add":
        inner[pick(rng, ("__init__", "self", "cls", "custom_objects", "build_config", "k" * 10**6, "\ud800"))] = 1
    elif change == "class":
        inner.update(pick(rng, descriptions(box)))
    (box.folder / name).write_text(json.dumps(value))
    return name


@mutation(mutated_presets)
def json_bytes(rng, box):
    """A file that is no JSON, not UTF-8, or not the JSON that was hashed."""
    name = pick(rng, JSON_FILES)
    path = box.folder / name
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    path.write_bytes(pick(rng, [
        b"", b"\xff\xfe" + data, b"\xef\xbb\xbf" + data, data.decode().encode("utf-16"), data.replace(b"e", b"\xc3", 1),
        data.replace(b'"', b'"\x00', 1), data[: int(rng.integers(len(data)))], data + b"\n", data + b"{}",
        b"[" + data + b"]", b"null", b'"text"', b"\x00" * 1000, bytes(flipped), bytes(flipped),
        data.replace(b" ", b"", 1), b"\x80\x02}.",
    ]))  # fmt: skip
    return name


def descriptions(box):
    """Descriptions of objects that would run, fetch or open something if they were made."""
    command, dense = f"touch {box.owned}", {"units": 2}
    payload = {"module": PAYLOAD, "class_name": "Payload", "config": {}}
    sequential = {"module": "keras", "class_name": "Sequential"}
    layer = {"module": "keras.layers", "class_name": "Dense", "config": dense}
    registered = {"module": "fuzz", "class_name": "Registered", "config": {}, "registered_name": "fuzz>Registered"}
    layers = {"layers": [{"module": "keras.layers", "class_name": "InputLayer", "config": {"batch_shape": [None, 8]}}]}
    return [
        payload, {"module": "os", "class_name": "system", "config": {"command": command}},
        {"module": "builtins", "class_name": "function", "config": "exec", "registered_name": "function"},
        {"module": "keras.layers", "class_name": "Lambda", "config": {"function": ["4wA=", None, None]}},
        {"module": "keras.layers", "class_name": "TFSMLayer", "config": {"filepath": str(box.outside)}},
        {"module": "keras.layers", "class_name": "TorchModuleWrapper", "config": {"module": {}}},
        layer | {"registered_name": "fuzz>Registered"},
        registered,
        {"module": None, "class_name": "Dense", "config": dense, "registered_name": "fuzz>Registered"},
        {"module": "keras.initializers", "class_name": "fuzz>Registered", "config": {}},
        registered | {"module": "keras.initializers"},
        {"module": "keras.initializers", "class_name": "get", "config": {"identifier": payload}},
        {"module": "keras.initializers", "class_name": "deserialize", "config": {"config": payload}},
        {"module": "keras.initializers", "class_name": "Orthogonal", "config": {"gain": "x", "seed": payload}},
        layer | {"config": dense | {"activation": "fuzz>Registered"}},
        layer | {"config": dense | {"units": 10**12}},
        layer | {"config": dense | {"kernel_initializer": payload}},
        layer | {"config": dense | {"dtype": {"class_name": "float32"}}},
        layer | {"build_config": {"input_shape": [1, 10**9]}},
        {"module": "keras.layers", "class_name": "Dropout", "config": {"rate": 0.5, "seed": 10**400}},
        {**sequential, "config": layers, "compile_config": {"optimizer": payload, "loss": "mse"}},
        {**sequential, "config": layers, "compile_config": {"optimizer": "adam", "loss": "fuzz>Registered"}},
        {**sequential, "config": layers, "build_config": {"input_shape": [10**9, 10**9]}},
        {**sequential, "config": {"layers": [layers["layers"][0]] * 2000}},
        {**sequential, "config": {"layers": [layer] * 2000}},
        {"class_name": "__lambda__", "config": {"value": "4wA="}},
        {"class_name": "__tensor__", "config": {"value": [[1]], "dtype": "float31"}},
        {"class_name": "__numpy__", "config": {"value": [0], "dtype": "O"}},
        {"class_name": "__bytes__", "config": {"value": "x"}}, {"class_name": "__ellipsis__", "config": {}},
        {"class_name": "__slice__", "config": {"start": 0, "stop": 1, "step": 0}},
        {"class_name": ["Dense"], "config": {}}, {"class_name": None, "config": None, "module": "keras.layers"},
        {"module": "keras.models", "class_name": "Model", "config": {}},
        {"module": "keras.src.saving.serialization_lib", "class_name": "enable_unsafe_deserialization", "config": {}},
        {"class_name": "DTypePolicy", "module": "keras", "config": {"name": "int8_from_float32"}},
    ]  # fmt: skip


@mutation(mutated_presets)
def json_classes(rng, box):
    """A description of an object in the place of a value, or another class as the whole."""
    raw = json.dumps(pick(rng, descriptions(box)))
    if rng.random() < 0.2:
        name = pick(rng, ("config.json", "objective.json"))
        value = json.loads((box.folder / name).read_text())
        value["class"] = pick(rng, (
            "os.system", "Sequential", "keras.layers.Lambda", "ResNet ", "../ResNet", "DISSL", "SimCLR", "Adapter",
            "__init__", "fuzz>Registered", PAYLOAD,
        ))  # fmt: skip
        (box.folder / name).write_text(json.dumps(value))
        return name
    if rng.random() < 0.6:  # where Keras would make it: the probe
        path = box.folder / "objective.json"
        value = json.loads(path.read_text())
        value["config"]["probe"] = HERE
        path.write_text(json.dumps(value).replace(f'"{HERE}"', raw))
        return path.name
    return put(rng, box, raw)


@mutation(mutated_presets)
def json_dtypes(rng, box):
    name = pick(rng, ("config.json", "objective.json"))
    value = json.loads((box.folder / name).read_text())
    dtype = pick(rng, [
        "float16", "float64", "int8", "int8_from_float32", "float8_from_bfloat16", "mixed_float16", "object", "string",
        "bool", "", None, 32, ["float32"], {"class_name": "DTypePolicyMap", "config": {}},
        {"class_name": "DTypePolicy", "config": {"name": "O"}}, {"class_name": "DTypePolicy", "config": None},
        {"class_name": PAYLOAD, "config": {}}, "float32\u0000", "x" * 10**6,
    ])  # fmt: skip
    for place in pick(rng, ((value,), (value["config"],), (value, value["config"]))):
        if place is not value or name == "config.json" or rng.random() < 0.3:
            place["dtype"] = dtype
    (box.folder / name).write_text(json.dumps(value))
    return name


@mutation(mutated_presets)
def json_paths(rng, box):
    """Paths that lead out of the folder, wherever a name stands."""
    away = pick(rng, (
        "../outside/secret.json", str(box.outside / "secret.json"), "../" * 30 + "etc/passwd", "/dev/zero",
        "~/.ssh/id_rsa", "file:///etc/passwd", "\\\\host\\share", "config.json/../../outside/secret.json", "a\u0000b",
        "hf://a/b", ".", "..", "",
    ))  # fmt: skip
    path = box.folder / "metadata.json"
    if rng.random() < 0.5:
        return put(rng, box, json.dumps(away))
    value = json.loads(path.read_text())
    entry = {"sha256": "0" * 64, "bytes": 1}
    change = pick(rng, ("file", "name", "hash", "url"))
    if change == "file":
        value["files"][away] = entry
    elif change == "hash":
        value["files"][pick(rng, list(value["files"]))] = pick(
            rng, (away, [], None, {"sha256": [away]}, {"sha256": None}, {})
        )
    else:
        value |= {"name": away} if change == "name" else {"source": {"url": away, "sha256": away}}
    path.write_text(json.dumps(value))
    return path.name


@mutation(mutated_presets)
def json_megabytes(rng, box):
    raw = pick(rng, (
        lambda: json.dumps("x" * 10**6), lambda: json.dumps("\\" * 10**6), lambda: json.dumps({"k" * 10**6: 1}),
        lambda: json.dumps(list(range(10**5))), lambda: json.dumps({str(i): i for i in range(10**5)}),
        lambda: "[" + "[]," * 10**5 + "0]", lambda: json.dumps("\U0001f600" * 10**5),
        lambda: json.dumps("x" * (20 << 20)),
    ))()  # fmt: skip
    name = put(rng, box, raw)
    if rng.random() < 0.1:
        with open(box.folder / name, "r+b") as file:
            file.truncate(10**12)  # a hole
    return name


# ---------------------------------------------------------------------- HDF5
def flip(rng, data, low=0, high=None, count=None):
    data, high = bytearray(data), high or len(data)
    for _ in range(count or pick(rng, (1, 1, 2, 8, 64))):
        data[int(rng.integers(low, max(high, low + 1)))] ^= 1 << int(rng.integers(8))
    return bytes(data)


def swapped(path, data):
    path.write_bytes(data)
    return path.name


@mutation(mutated_presets)
def hdf5_truncated(rng, box):
    path = box.folder / pick(rng, WEIGHT_FILES)
    data = path.read_bytes()
    return swapped(path, data[: pick(rng, (0, 1, 8, 96, 512, 2048, int(rng.integers(len(data))), len(data) - 1))])


@mutation(mutated_presets)
def hdf5_flipped(rng, box):
    path = box.folder / pick(rng, WEIGHT_FILES)
    return swapped(path, flip(rng, path.read_bytes()))


def structures(data):
    """Where the structures of an HDF5 file begin: superblock, object headers, trees, heaps, tables of symbols."""
    found = [0]
    for mark in (b"TREE", b"HEAP", b"SNOD", b"OHDR", b"GCOL"):
        start = data.find(mark)
        while start >= 0:
            found.append(start)
            start = data.find(mark, start + 1)
    return found


@mutation(mutated_presets)
def hdf5_flipped_structures(rng, box):
    path = box.folder / pick(rng, WEIGHT_FILES)
    data = path.read_bytes()
    start = pick(rng, structures(data))
    return swapped(path, flip(rng, data, start, min(start + 96, len(data)), pick(rng, (1, 2, 3))))


@mutation(mutated_presets)
def hdf5_edited_structures(rng, box):
    """Addresses, sizes and counts in the file's structures set to other ones, or to extremes."""
    path = box.folder / pick(rng, WEIGHT_FILES)
    data = bytearray(path.read_bytes())
    starts = structures(data)
    for _ in range(pick(rng, (1, 1, 2, 4))):
        at = min(pick(rng, starts) + 4 * int(rng.integers(32)), len(data) - 8)
        value = pick(
            rng,
            (0, 1, 0xFF, 0xFFFF, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1, len(data), *starts[:8], pick(rng, starts)),
        )
        size = pick(rng, (1, 2, 4, 8))
        data[at : at + size] = (value & (2 ** (8 * size) - 1)).to_bytes(size, "little")
    return swapped(path, bytes(data))


@mutation(mutated_presets)
def hdf5_noise(rng, box):
    path = box.folder / pick(rng, WEIGHT_FILES)
    data = bytearray(path.read_bytes())
    size = pick(rng, (8, 64, 1024, 10_000))
    at = int(rng.integers(max(len(data) - size, 1)))
    filler = pick(rng, (rng.bytes(size), b"\0" * size, b"\xff" * size))
    how = pick(rng, ("over", "insert", "remove", "append", "prepend", "superblock"))
    if how == "superblock":
        data[8] = pick(rng, (1, 2, 3, 4, 255))
    elif how in ("append", "prepend"):
        data = data + filler if how == "append" else filler + data
    else:
        data[at : at + (0 if how == "insert" else size)] = b"" if how == "remove" else filler
    return swapped(path, bytes(data))


@mutation(mutated_presets)
def hdf5_swapped(rng, box):
    """A sound file in the place of another: of another preset, of the other half, of another format."""
    name = pick(rng, (*WEIGHT_FILES, "golden.npz"))
    sources = [box.kit / kind / other for kind in ("preset", "other") for other in ALL_FILES]
    source = pick(rng, [s for s in sources if s != box.kit / "preset" / name])
    shutil.copyfile(source, box.folder / name)
    return name


@contextlib.contextmanager
def weights(rng, box):
    """An open file of weights, and the path of one of its arrays."""
    import h5py

    name = pick(rng, WEIGHT_FILES)
    with h5py.File(box.folder / name, "r+") as file:
        arrays = []
        file.visititems(lambda key, item: arrays.append(key) if isinstance(item, h5py.Dataset) else None)
        yield name, file, pick(rng, arrays)


@mutation(mutated_presets)
def hdf5_external_link(rng, box):
    import h5py

    with weights(rng, box) as (name, file, key):
        place = pick(rng, (key, key.split("/")[0], "extra"))
        if place in file:
            del file[place]
        away = pick(
            rng,
            (str(box.outside / "weights.h5"), "../outside/weights.h5", str(box.outside / "fifo"), "/dev/zero", name),
        )
        file[place] = h5py.ExternalLink(away, pick(rng, (key, "/", place)))
    return name


@mutation(mutated_presets)
def hdf5_soft_link(rng, box):
    import h5py

    with weights(rng, box) as (name, file, key):
        file.move(key, "real")
        file[key] = h5py.SoftLink(pick(rng, ("/real", "/" + key, "/nowhere", ".", "/", "x" * 10**4, key.split("/")[0])))
    return name


@mutation(mutated_presets)
def hdf5_external_storage(rng, box):
    import h5py

    with weights(rng, box) as (name, file, key):
        shape = file[key].shape
        del file[key]
        away = pick(rng, (str(box.outside / "numbers"), "../outside/numbers", str(box.outside / "fifo"), "/dev/zero"))
        size = pick(rng, (h5py.h5f.UNLIMITED, 4 * math.prod(shape)))
        file.create_dataset(key, shape, "float32", external=[(away, pick(rng, (0, 4)), size)])
    return name


@mutation(mutated_presets)
def hdf5_virtual(rng, box):
    """Arrays that lie in other files; with a source of any length, a look at the shape opens it."""
    import h5py

    with weights(rng, box) as (name, file, key):
        shape = file[key].shape
        del file[key]
        away = pick(rng, (str(box.outside / "weights.h5"), "../outside/weights.h5", str(box.outside / "fifo"), "."))
        if rng.random() < 0.5:
            layout = h5py.VirtualLayout(shape, "float32")
            layout[...] = h5py.VirtualSource(away, key, shape=shape)
            file.create_virtual_dataset(key, layout)
        else:
            space = h5py.h5s.create_simple((1,), (h5py.h5s.UNLIMITED,))
            space.select_hyperslab((0,), (h5py.h5s.UNLIMITED,), (1,), (1,))
            source = h5py.h5s.create_simple((1,), (h5py.h5s.UNLIMITED,))
            source.select_hyperslab((0,), (h5py.h5s.UNLIMITED,), (1,), (1,))
            properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            properties.set_virtual(space, away.encode(), b"numbers", source)
            links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
            links.set_create_intermediate_group(True)
            h5py.h5d.create(file.id, key.encode(), h5py.h5t.IEEE_F32LE, space, properties, lcpl=links)
    return name


@mutation(mutated_presets)
def hdf5_cycle(rng, box):
    with weights(rng, box) as (name, file, key):
        parent = key.rsplit("/", 1)[0]
        source, place = pick(
            rng, (("/", "again"), (parent, parent + "/again"), (key, key + "2"), ("/", parent + "/root"))
        )
        file[place] = file[source]
    return name


@mutation(mutated_presets)
def hdf5_declared(rng, box):
    """Shapes that are declared and not stored."""
    with weights(rng, box) as (name, file, key):
        shape = file[key].shape
        del file[key]
        huge = pick(rng, ((1 << 20, 1 << 20), (2**31,), (2**60,), (2**33, 8), (10**6, 10**3), shape))
        if rng.random() < 0.5:
            file.create_dataset(key, huge, "float32", chunks=tuple(min(side, 1024) for side in huge))
        else:
            file.create_dataset(key, huge, "float32", fillvalue=7.0)
    return name


@mutation(mutated_presets)
def hdf5_bomb(rng, box):
    with weights(rng, box) as (name, file, key):
        value = file[key][()]
        del file[key]
        options = pick(rng, (
            {"compression": "gzip"}, {"compression": "lzf"}, {"shuffle": True}, {"fletcher32": True},
            {"scaleoffset": 2},
        ))  # fmt: skip
        if rng.random() < 0.5:
            value = np.zeros((1 << 20, 16), "float32")  # 64 MiB in a few kilobytes
            options = {"compression": "gzip", "chunks": (1 << 20, 16)}
        file.create_dataset(key, data=value, **options)
    return name


@mutation(mutated_presets)
def hdf5_dtypes(rng, box):
    import h5py

    with weights(rng, box) as (name, file, key):
        shape = file[key].shape
        del file[key]
        count = math.prod(shape)
        kind = pick(rng, (
            "f8", "f2", "i8", "u1", "?", "c8", "S4", "V4", ">f4", "string", "vlen", "reference", "region", "enum",
            "record", "array", "nested", "f16", "empty",
        ))  # fmt: skip
        if kind == "empty":
            file[key] = h5py.Empty("f4")
        elif kind in ("string", "vlen", "reference", "region"):
            dtype = {"string": h5py.string_dtype(), "vlen": h5py.vlen_dtype("f4"), "reference": h5py.ref_dtype}.get(
                kind
            )
            file.create_dataset(key, shape, dtype or h5py.regionref_dtype)
        elif kind in ("record", "array", "nested", "enum"):
            dtype = {
                "record": np.dtype([("a", "f4")]), "array": np.dtype(("f4", (10**4,))),
                "enum": h5py.enum_dtype({"a": 1}, "i4"), "nested": np.dtype([("a", [("b", "f4", (2, 2))])]),
            }[kind]  # fmt: skip
            file.create_dataset(key, shape, dtype)
        else:
            dtype = np.dtype(np.longdouble if kind == "f16" else kind)
            file.create_dataset(key, data=np.frombuffer(b"\1" * (count * dtype.itemsize), dtype).reshape(shape))
    return name


@mutation(mutated_presets)
def hdf5_values(rng, box):
    """Sound arrays: other numbers, other shapes, too many, too few."""
    with weights(rng, box) as (name, file, key):
        how = pick(rng, ("value", "shape", "rank", "missing", "extra", "renamed", "scalar", "group"))
        value = file[key][()]
        if how == "value":
            file[key][...] = pick(rng, (np.nan, np.inf, 0.0, -1.0, 1e38))
            return name
        if how != "extra":
            del file[key]
        if how in ("shape", "rank"):
            file[key] = (
                value.reshape(-1) if how == "shape" else value.reshape((1,) * int(rng.integers(1, 28)) + value.shape)
            )
        elif how == "extra":
            file["extra"] = np.zeros(pick(rng, (0, 1, 10**6)), "f4")
        elif how == "renamed":
            file[pick(rng, ("é", "..", "a" * 10**4, key + "/0"))] = value
        elif how == "scalar":
            file[key] = np.float32(1)
        elif how == "group":
            file.create_group(key)
    return name


@mutation(mutated_presets)
def hdf5_groups(rng, box):
    """Trees of groups that are deep or broad, and attributes."""
    with weights(rng, box) as (name, file, key):
        how = pick(rng, ("deep", "broad", "attribute", "empty"))
        if how == "deep":
            group = file
            for _ in range(pick(rng, (60, 70, 2000))):
                group = group.create_group("g")
        elif how == "broad":
            for i in range(5000):
                file.create_group(f"g{i}")
        elif how == "attribute":
            file.attrs["x" * 1000] = "y" * 60_000
            file[key].attrs["a"] = np.zeros(8000)
        else:
            file.clear()
    return name


# ---------------------------------------------------------------------- golden features
def npy(shape, dtype="<f4", data=b"", version=(1, 0), fortran=False):
    header = repr({"descr": dtype, "fortran_order": fortran, "shape": shape}).encode() + b"\n"
    size = struct.pack("<H" if version == (1, 0) else "<I", len(header))
    return b"\x93NUMPY" + bytes(version) + size + header + data


def archive(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members:
            file.writestr(name, data)
    return path.name


def golden(box):
    with zipfile.ZipFile(box.folder / "golden.npz") as file:
        return {name: file.read(name) for name in file.namelist()}


@mutation(mutated_presets)
def golden_flipped(rng, box):
    path = box.folder / "golden.npz"
    data = path.read_bytes()
    return swapped(path, flip(rng, data) if rng.random() < 0.7 else data[: int(rng.integers(len(data)))])


@mutation(mutated_presets)
def golden_headers(rng, box):
    """Headers that declare what is not there, or are no headers."""
    members = golden(box)
    name = pick(rng, list(members))
    sound = members[name]
    members[name] = pick(rng, [
        npy((1 << 40,)), npy((2**62, 4)), npy((-1,), data=b"1234"), npy((2, 12, 12, 3), "|u1", b"x" * 863), npy((0,)),
        npy((), data=b"1234"), npy((0, 10**12)), npy((10**9, 0, 12, 3), "|u1"), npy((1,) * 40, data=b"1234"),
        npy((2, 8), "<f4", b"0" * 64, fortran=True), npy((2, 8), "<f4", b"0" * 64, (2, 0)),
        npy((2, 8), "<f4", b"0" * 64, (9, 9)), npy((2, 8), ">f4", b"0" * 64), npy((2,), "|V0"),
        npy((2, 8), "<M8[ns]", b"0" * 128), npy((2, 12, 12, 3), "<U1", b"0\0\0\0" * 864), npy((2, 8), "|O", b"0" * 128),
        npy((2, 12, 12, 3), "<c8", b"0" * 6912), npy((2, 12, 12, 3), "|b1", b"\1" * 864),
        npy((2, 12, 12, 3), [("a", "|u1")], b"0" * 864), sound[:8] + b"\xff\xff" + sound[10:],
        sound.replace(b"True", b"1+1*"), sound.replace(b"False", b"[][0]"), sound[:50], b"",
        sound.replace(b"(2, ", b"(2.,"), sound.replace(b"{", b"(" * 500 + b"{"),
        b"\x93NUMPY\x01\x00\xff\xff" + b"[" * 65535, flip(rng, sound, 0, 80),
    ])  # fmt: skip
    return archive(box.folder / "golden.npz", members.items())


@mutation(mutated_presets)
def golden_pickles(rng, box):
    members = golden(box)
    members[pick(rng, list(members))] = npy((1,), "|O", pick(rng, payloads(box)))
    return archive(box.folder / "golden.npz", members.items())


@mutation(mutated_presets)
def golden_sizes(rng, box):
    """Images and features that are sound and too many, too large or not for this encoder."""
    members = golden(box)
    shape = pick(rng, (
        (2, 0, 0, 3), (2, 1, 1, 3), (2, 12, 12, 1), (2, 12, 12, 4), (0, 12, 12, 3), (12, 12, 3), (2, 13, 500, 3),
        (1, 4000, 4000, 3), (200_000, 12, 12, 3), (20_000_000, 1, 1, 3), (2, 12, 12, 3, 1),
    ))  # fmt: skip
    members["images.npy"] = npy(shape, "|u1", b"\7" * math.prod(shape))
    if rng.random() < 0.8:
        rows = shape[0]
        members["features.npy"] = npy((rows, 8), "<f4", b"\0" * (rows * 32))
    return archive(box.folder / "golden.npz", members.items(), zipfile.ZIP_DEFLATED)


@mutation(mutated_presets)
def golden_archives(rng, box):
    """Archives with other members, paths for names, bombs, false sizes and odd flags."""
    path, members = box.folder / "golden.npz", golden(box)
    how = pick(rng, (
        "path", "twice", "more", "less", "bomb", "bzip2", "lzma", "size", "flags", "method", "comment", "zip64",
        "directory",
    ))  # fmt: skip
    items = list(members.items())
    if how == "path":
        items[0] = (pick(rng, (
            "../outside/secret.json", str(box.outside / "x.npy"), "images.npy\0.txt", "images.npy/", "\\images.npy",
        )), items[0][1])  # fmt: skip
    elif how == "twice":
        items.append((items[0][0], npy((2, 8), data=b"0" * 64)))
    elif how in ("more", "less"):
        items = [*items, ("extra.npy", b"")] if how == "more" else items[1:]
    elif how == "bomb":
        items[0] = (items[0][0], npy((100 << 20,), "|u1") + bytes(100 << 20))
    compression = {"bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA, "bomb": zipfile.ZIP_DEFLATED}.get(
        how, zipfile.ZIP_STORED
    )
    with contextlib.ExitStack() as stack:
        import warnings

        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # of the name that stands twice
        archive(path, items, compression)
    data = bytearray(path.read_bytes())
    central = data.find(b"PK\x01\x02")
    if how in ("size", "flags", "method", "zip64", "directory"):
        offset, value = {
            "size": (pick(rng, (20, 24)), pick(rng, (b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\xff\xff\xff\xff"))),
            "flags": (8, pick(rng, (b"\x01\0", b"\x20\0", b"\x40\0"))),
            "method": (10, pick(rng, (b"\x08\0", b"\x0c\0", b"\x63\0"))), "zip64": (42, b"\xff\xff\xff\xff"),
            "directory": (28, b"\xff\xff"),
        }[how]  # fmt: skip
        data[central + offset : central + offset + len(value)] = value
    if how == "comment":
        data[-2:] = b"\x16\0"
        data += data[-22:]
    path.write_bytes(bytes(data))
    return path.name


# ---------------------------------------------------------------------- files that are none
def no_file(rng, box, path):
    """Puts something else in the place of a file."""
    name = path.name
    kinds = (
        "missing", "empty", "out", "copy", "folder link", "loop", "dangling", "fifo", "socket", "zero", "null",
        "folder", "in", "tty", "through", "hole",
    )  # fmt: skip
    how = pick(rng, kinds)
    data = path.read_bytes()
    path.unlink()
    targets = {
        "out": box.outside / pick(rng, ("secret.json", "weights.h5", "fifo")),
        "folder link": pick(rng, (box.outside, box.folder, Path("/"))), "dangling": box.folder / "nowhere",
        "zero": Path("/dev/zero"), "null": Path("/dev/null"), "loop": path, "tty": Path("/dev/tty"),
        "through": Path("../outside/../outside/secret.json"),
    }  # fmt: skip
    if how == "copy":  # the very same bytes, elsewhere
        (box.outside / "same").write_bytes(data)
        path.symlink_to(pick(rng, (box.outside / "same", "../outside/same")))
    elif how in targets:
        path.symlink_to(targets[how])
    elif how == "in":
        (box.folder / ".elsewhere").write_bytes(data)
        path.symlink_to(".elsewhere")
    elif how == "fifo":
        os.mkfifo(path)
    elif how == "socket":
        with socket.socket(socket.AF_UNIX) as end:
            here = os.getcwd()
            os.chdir(box.folder)  # a socket's path may have 108 bytes
            end.bind(name)
            os.chdir(here)
    elif how == "folder":
        path.mkdir()
        (path / name).write_bytes(data)
    elif how in ("empty", "hole"):
        path.touch()
        os.truncate(path, 0 if how == "empty" else 10**12)
    return name


@mutation(mutated_presets)
def file_kinds(rng, box):
    return no_file(rng, box, box.folder / pick(rng, ALL_FILES[:-1]))


@mutation(mutated_presets)
def folder_links(rng, box):
    """The folder's own shape: a `preset` within it, as in a run folder, that leads elsewhere, and stray files."""
    inner = box.folder / "preset"
    how = pick(rng, ("link", "loop", "fifo", "deep", "stray", "files"))
    if how == "link":
        inner.symlink_to(pick(rng, (box.outside / "elsewhere", "../outside/elsewhere")))
    elif how == "loop":
        inner.symlink_to(pick(rng, (".", "preset")))
    elif how == "fifo":
        os.mkfifo(inner)
    elif how == "deep":
        inner.mkdir()
        (inner / "config.json").symlink_to("../../outside/elsewhere/config.json")
    elif how == "stray":
        (box.folder / "__init__.py").write_text(f"open({str(box.owned)!r}, 'w')")
        (box.folder / "objective.py").write_text(f"open({str(box.owned)!r}, 'w')")
        (box.folder / "keras.json").write_text("{}")
    else:
        (inner / "config.json").mkdir(parents=True)
    return "folder"


@mutation(mutated_presets)
def none(rng, box):
    return "nothing"


# ---------------------------------------------------------------------- checkpoints
class Call:
    """What pickles as a call."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


def payloads(box):
    """Pickles that run something when they are loaded by one who trusts them, each with operations of its own."""
    owned = str(box.owned)
    command, code = f"touch {owned}", f"open({owned!r}, 'w')"
    calls = [
        Call(os.system, command), Call(exec, code), Call(eval, code), Call(subprocess.Popen, ["touch", owned]),
        Call(open, owned, "w"), Call(__import__, PAYLOAD), Call(os.mkdir, owned),
        Call(collections.OrderedDict, [("a", Call(os.system, command))]), {"conv1.weight": Call(exec, code)},
        {Call(eval, "1"): 1},
    ]  # fmt: skip
    text = command.encode()
    found = [pickle.dumps(call, protocol) for call in calls for protocol in (0, 2, 4)]
    payload = f"c{PAYLOAD}\nPayload\n".encode()
    found += [
        b"(S'" + text + b"'\nios\nsystem\n.", b"\x80\x02(cos\nsystem\nU" + bytes([len(text)]) + text + b"o.",
        b"\x80\x02" + payload + b")\x81.", b"\x80\x02" + payload + b")R}b.",
        b"\x80\x02" + payload + b")\x81}U\x01aK\x01sb.", b"\x80\x04" + payload + b")}\x92.",
        b"(i" + PAYLOAD.encode() + b"\nPayload\n.",
        b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94h\x00h\x01\x93\x8c" + bytes([len(text)]) + text + b"\x85R.",
        b"\x80\x02\x82\x01.", b"\x80\x02\x83\x01\x01.", b"\x80\x02\x84\x01\x01\x01\x01.",
        b"ccollections\nOrderedDict.__init__.__globals__\n.",
        b"\x80\x02ctorch.serialization\nload\nU" + bytes([len(owned)]) + owned.encode() + b"\x85R.",
        b"\x80\x02ctorch.hub\nload\n)R.",
        b"\x80\x02cbuiltins\ngetattr\nctorch._utils\n_rebuild_tensor\nU\x0b__globals__\x86R.",
        b"\x80\x02cnumpy\nload\nU\x01x\x85R.",
        b"\x80\x02ctorch.storage\n_load_from_bytes\nC" + bytes([4]) + b"\x80\x02N." + b"\x85R.", b"\x80\x05\x97.",
        b"\x80\x05\x98.", b"\x80\x02c_codecs\nencode\nX\x03\0\0\0abcX\x03\0\0\0zip\x86R.",
        b"c__builtin__\neval\n(V" + code.encode() + b"\ntR.",
    ]  # fmt: skip
    return found


def bombs():
    """Pickles that ask for memory, time or depth."""
    size = struct.pack("<Q", 1 << 31)
    laugh = (
        b"\x80\x02]q\x00"
        + b"".join(b"](" + (b"h" + bytes([i])) * 10 + b"eq" + bytes([i + 1]) for i in range(30))
        + b"."
    )
    return [
        b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\0\0\0\0\x10\x85R.", b"\x80\x02ctorch\nFloatTensor\nJ\0\0\0\x7f\x85R.",
        b"\x80\x02Nr\xff\xff\xff\x7f.", b"\x80\x04\x8d" + size + b"abc.", b"\x80\x04\x8e" + size + b"abc.",
        b"\x80\x04\x95" + size + b"N.", b"\x80\x05\x96" + size + b"abc.", b"\x80\x02\x8b\xff\xff\xff\x7f1.",
        b"\x80\x02" + b"(" * 10**6 + b".", b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
        b"\x80\x02" + b"}" * 20_000 + b"".join([b"K\x01" + b"s"] * 5) + b".",
        b"\x80\x02" + b")" * 10**5 + b"\x85" * 10**5 + b".",
        b"\x80\x02K\x01" + b"\x85" * 10**5 + b"K\x01" + b"\x85" * 10**5 + b"\x86.",
        b"\x80\x02}K\x01" + b"\x85" * 10**5 + b"K\x01s.", laugh, b"\x80\x02" + b"2" * 100 + b".", b"\x80\x02.",
        b"\x80\x02N0.", b"I" + b"9" * 10**5 + b"\n.", b"L" + b"9" * 10**5 + b"L\n.",
        b"\x80\x02" + b"\x8a\xff" + b"\xff" * 255 + b".", b"\x80\xff.", b"\x80\x02h\xff.", b"g" + b"9" * 4000 + b"\n.",
        b"F1e999\n.", b"\x80\x02U\x07storageQ.", b"\x80\x02(U\x07storageNNNNtQ.", b"Pstorage\n.",
        b"\x80\x02" + b"Nq\x00" * 10**5 + b".",
    ]  # fmt: skip


def records(path):
    with zipfile.ZipFile(path) as file:
        return {info.filename: file.read(info) for info in file.infolist()}


def tensors(box):
    import torch

    return torch.load(box.checkpoint, weights_only=True)


def save(box, value, **options):
    """As a training script would, through a file object: `torch.save` names the records after the path."""
    import torch

    with open(box.checkpoint, "wb") as file:
        torch.save(value, file, **options)


@mutation(mutated_checkpoints)
def truncated(rng, box):
    data = box.checkpoint.read_bytes()
    box.checkpoint.write_bytes(
        data[: pick(rng, (0, 1, 4, 64, len(data) - 1, len(data) - 22, int(rng.integers(len(data)))))]
    )
    return "stale"


@mutation(mutated_checkpoints)
def flipped(rng, box):
    data = box.checkpoint.read_bytes()
    box.checkpoint.write_bytes(flip(rng, data))
    return "stale"


@mutation(mutated_checkpoints)
def flipped_directory(rng, box):
    """The archive's own structures: headers of records and the directory at its end."""
    data = box.checkpoint.read_bytes()
    starts = [i for i in range(len(data) - 4) if data[i : i + 2] == b"PK"] if len(data) < 10**6 else [0]
    start = pick(rng, starts[-40:] if rng.random() < 0.7 else starts)
    box.checkpoint.write_bytes(flip(rng, data, start, min(start + 64, len(data)), pick(rng, (1, 2, 4))))
    return "stale"


@mutation(mutated_checkpoints)
def flipped_pickle(rng, box):
    """The list of tensors changed, and its checksum recorded anew."""
    found = records(box.checkpoint)
    name = next(n for n in found if n.endswith("data.pkl"))
    if rng.random() < 0.5:
        found[name] = flip(rng, found[name])
    else:
        at = [i for _, _, i in pickletools.genops(found[name])]
        i, j = sorted(int(x) for x in rng.choice(at, 2))
        data = found[name]
        found[name] = pick(
            rng, (data[:i] + data[j:], data[:j] + data[i:j] + data[j:], data[:i] + pick(rng, bombs()), data[:i])
        )
    archive(box.checkpoint, found.items())
    return "signed"


@mutation(mutated_checkpoints)
def records_changed(rng, box):
    found = records(box.checkpoint)
    items, name = list(found.items()), pick(rng, list(found))
    how = pick(rng, ("missing", "shorter", "longer", "noise", "more", "twice", "folder", "pickle", "renamed", "case"))
    if how == "missing":
        items = [i for i in items if i[0] != name]
    elif how in ("shorter", "longer", "noise"):
        change = {
            "shorter": lambda d: d[: len(d) // 2],
            "longer": lambda d: d * 2,
            "noise": lambda d: rng.bytes(len(d)),
        }[how]
        items = [(n, change(d) if n == name else d) for n, d in items]
    elif how == "more":
        items += [(pick(rng, (
            "../outside/x", str(box.owned), "archive/../data.pkl", "archive/code/x.py", "constants.pkl",
            "archive/constants.pkl",
        )), b"\x80\x02N.")]  # fmt: skip
    elif how in ("twice", "case"):
        inner = next(n for n in found if n.endswith("data.pkl"))
        items.insert(0, (inner if how == "twice" else inner.replace("data.pkl", "DATA.pkl"), pick(rng, payloads(box))))
    elif how == "folder":
        items = [(f"../{n}", d) for n, d in items]
    elif how == "pickle":
        items = [(n, pick(rng, payloads(box)) if n.endswith("data.pkl") else d) for n, d in items]
    else:
        items = [(n.replace("/data/", "/../data/"), d) for n, d in items]
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive(box.checkpoint, items, zipfile.ZIP_DEFLATED if rng.random() < 0.15 else zipfile.ZIP_STORED)
    return "signed"


@mutation(mutated_checkpoints)
def zip_bombs(rng, box):
    found, how = (
        records(box.checkpoint),
        pick(rng, ("deflated", "declared", "overlap", "comment", "prefix", "many", "zip64")),
    )
    if how == "deflated":
        archive(box.checkpoint, [*found.items(), ("archive/data/x", bytes(200 << 20))], zipfile.ZIP_DEFLATED)
        return "signed"
    if how == "many":
        archive(box.checkpoint, [*found.items(), *((f"archive/data/x{i}", b"") for i in range(20_000))])
        return "signed"
    data = bytearray(box.checkpoint.read_bytes())
    central = data.find(b"PK\x01\x02")
    if how == "declared":
        data[central + 20 : central + 28] = b"\xff\xff\xff\x7f" * 2
    elif how == "overlap":
        second = data.find(b"PK\x01\x02", central + 4)
        data[second + 42 : second + 46] = data[central + 42 : central + 46]
    elif how == "comment":
        data += data[-22:] + b"\0" * 100
    elif how == "prefix":
        data = bytearray(b"PK\x03\x04" + bytes(60)) + data
    else:
        data[-12:-4] = b"\xff" * 8
    box.checkpoint.write_bytes(bytes(data))
    return "stale"


def wrapped(rng, box, data):
    """A pickle as a torch file would hold it, or by itself."""
    how = pick(rng, ("bare", "zip", "zip", "legacy", "legacy keys"))
    start = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    if how == "zip":
        archive(
            box.checkpoint, [("archive/data.pkl", data), ("archive/version", b"3\n"), ("archive/byteorder", b"little")]
        )
    elif how == "bare":
        box.checkpoint.write_bytes(data)
    else:
        keys = pickle.dumps([], 2)
        box.checkpoint.write_bytes(start + (data + keys if how == "legacy" else pickle.dumps({}, 2) + data))
    return "signed"


@mutation(mutated_checkpoints)
def pickled_calls(rng, box):
    return wrapped(rng, box, pick(rng, payloads(box)))


@mutation(mutated_checkpoints)
def pickle_bombs(rng, box):
    return wrapped(rng, box, pick(rng, bombs()))


@mutation(mutated_checkpoints)
def pickled_noise(rng, box):
    return wrapped(rng, box, pick(rng, (b"\x80\x02", b"")) + rng.bytes(pick(rng, (4, 40, 400))))


@mutation(mutated_checkpoints)
def old_formats(rng, box):
    """What torch wrote before its archives, sound or not, and what it writes for programs."""
    import torch

    how = pick(rng, ("legacy", "legacy flipped", "legacy cut", "tar", "script", "legacy twice"))
    if how.startswith("legacy"):
        save(box, tensors(box), _use_new_zipfile_serialization=False)
        data = box.checkpoint.read_bytes()
        head = data.find(b"conv1.weight") + 4000
        changed = {"legacy": data, "legacy flipped": flip(
            rng, data, 0, pick(rng, (head, len(data))),
        ), "legacy twice": data + data, "legacy cut": data[: int(rng.integers(len(data)))]}  # fmt: skip
        box.checkpoint.write_bytes(changed[how])
    elif how == "tar":
        with tarfile.open(box.checkpoint, "w") as file:
            for name in ("sys_info", "pickle", "tensors", "storages", pick(rng, ("../outside/x", "x"))):
                info = tarfile.TarInfo(name)
                info.size = len(data := pick(rng, payloads(box)))
                file.addfile(info, io.BytesIO(data))
    else:
        with torch.device("cpu"):
            module = torch.nn.Linear(2, 2)
        torch.jit.save(torch.jit.trace(module, torch.zeros(1, 2, device="cpu")), str(box.checkpoint))
    return "signed"


@mutation(mutated_checkpoints)
def strides(rng, box):
    """Views of a few numbers that declare many."""
    import torch

    state = tensors(box)
    key = pick(rng, [k for k, v in state.items() if v.ndim])
    one = torch.zeros(1, device="cpu")
    state[key] = pick(rng, (
        lambda: one.expand(1 << 40), lambda: one.expand(1 << 20, 1 << 20), lambda: one.expand(2**31, 2**31),
        lambda: one.expand(0, 2**40), lambda: state[key].reshape(-1)[:1].expand(state[key].shape),
        lambda: torch.zeros(10, device="cpu").as_strided((5, 5), (1, 1)), lambda: state[key].transpose(0, -1),
        lambda: one.expand(10**6, 64, 1, 1), lambda: torch.zeros(50, device="cpu")[40:].expand(10**4, 10),
    ))()  # fmt: skip
    save(box, state)
    return "signed"


@mutation(mutated_checkpoints)
def storages(rng, box):
    """Storages whose declared size, kind, key or place is not the record's."""
    found = records(box.checkpoint)
    name = next(n for n in found if n.endswith("data.pkl"))
    data = found[name]
    old, new = pick(rng, (
        (b"FloatStorage", b"LongStorage"), (b"FloatStorage", b"DoubleStorage"), (b"FloatStorage", b"ByteStorage"),
        (b"FloatStorage", b"QInt8Storage"), (b"FloatStorage", b"UntypedStorage"),
        (b"X\x03\0\0\0cpu", b"X\x04\0\0\0cuda"), (b"X\x03\0\0\0cpu", b"X\x04\0\0\0meta"),
        (b"X\x01\0\0\x000", b"X\x04\0\0\0../0"), (b"X\x07\0\0\0storage", b"X\x06\0\0\0module"),
        (b"K\x03K\x03", b"J\xff\xff\xff\x7fK\x03"), (b"K\x04K\x03K\x03K\x03\x87", b"M\xff\xffK\x03K\x03K\x03\x87"),
        (b"K\x04", b"J\xff\xff\xff\x7f"), (b"K\x04", b"J\xff\xff\xff\xff"), (b"K\x00", b"M\xff\xff"),
        (b"_rebuild_tensor_v2", b"_rebuild_parameter"), (b"_rebuild_tensor_v2", b"_rebuild_qtensor"),
        (b"_rebuild_tensor_v2", b"_rebuild_sparse_tensor"), (b"_rebuild_tensor_v2", b"_rebuild_meta_tensor_no_storage"),
        (b"_rebuild_tensor_v2", b"_rebuild_device_tensor_from_numpy"),
        (b"_rebuild_tensor_v2", b"_rebuild_wrapper_subclass"), (b"_rebuild_tensor_v2", b"_rebuild_from_type_v2"),
        (b"K\x01", b"\x8a\x09\0\0\0\0\0\0\0\0\1"),
    ))  # fmt: skip
    places = [i for i in range(len(data)) if data.startswith(old, i)]
    if places:
        i = pick(rng, places)
        found[name] = data[:i] + new + data[i + len(old) :]
    archive(box.checkpoint, found.items())
    return "signed"


@mutation(mutated_checkpoints)
def values(rng, box):
    """Things that are no dense tensors of finite numbers."""
    import torch

    state = tensors(box)
    key = pick(rng, list(state))
    value = state[key].float()
    state[key] = pick(rng, (
        lambda: None, lambda: "text", lambda: 3, lambda: [1.0], lambda: {}, lambda: value * math.nan,
        lambda: value + math.inf, lambda: value.double() * 1e300, lambda: value.to_sparse(),
        lambda: value.to(torch.complex64), lambda: value.bool(), lambda: value.long(), lambda: value.half(),
        lambda: value.bfloat16(), lambda: torch.empty(value.shape, device="meta"), lambda: torch.nn.Parameter(value),
        lambda: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), lambda: value.to(torch.complex64).conj(),
        lambda: torch._neg_view(value), lambda: value.requires_grad_(), lambda: torch.nn.Buffer(value),
        lambda: value.to(torch.float8_e4m3fn), lambda: value.reshape(-1), lambda: value[None], lambda: value[:0],
        lambda: torch.zeros((), device="cpu"), lambda: -value.abs(),
        lambda: torch.device("cpu"), lambda: torch.float32, lambda: value.untyped_storage(), lambda: torch.Size([1]),
    ))()  # fmt: skip
    save(box, state)
    return "signed"


@mutation(mutated_checkpoints)
def names(rng, box):
    state = tensors(box)
    key = pick(rng, list(state))
    how = pick(
        rng,
        ("missing", "renamed", "keys", "prefix", "prefixes", "many", "gap", "twice", "resizer", "long", "fc", "depth"),
    )
    value = state[key]
    if how in ("missing", "renamed"):
        del state[key]
    if how == "renamed":
        state[pick(rng, ("../../x", "", "\u0000", "é", "x" * 10**6, key + ".weight", "\ud800"))] = value
    elif how == "keys":
        state[pick(rng, (3, None, (1, 2), 1.5, b"x", True))] = value
    elif how == "prefix":
        state = {pick(rng, ("module.", "backbone.", "encoder.", "model.", "")) + k: v for k, v in state.items()}
    elif how == "prefixes":
        state = {"module.encoder." * pick(rng, (3, 1000, 20_000)) + k: v for k, v in state.items()}
    elif how == "many":
        state |= {f"layer1.{i}.conv1.weight": value for i in range(10**4)}
    elif how == "gap":
        state[pick(rng, (
            "layer1.999999999.conv1.weight", "layer9.0.conv1.weight", "layer1.-1.conv1.weight", "layer1.1.conv1.weight",
        ))] = value  # fmt: skip
    elif how == "twice":
        state["module." + key] = value
    elif how == "resizer":
        state[pick(rng, ("resizer.conv3.weight", "avgpool.0.conv3.weight", "resizer.x", "avgpool.0."))] = value
    elif how == "long":
        state["fc." + "x" * 10**6] = value
    elif how == "fc":
        state["fc.weight"] = pick(rng, (None, value, Ellipsis if rng.random() < 0.1 else "x"))
    else:
        for _ in range(pick(rng, (1, 2, 3, 90))):
            state = {pick(rng, ("state_dict", "model")): state}
    save(box, state)
    return "signed"


@mutation(mutated_checkpoints)
def shapes(rng, box):
    """Sound tensors of a network that is not there."""
    import torch

    state = tensors(box)
    shape = pick(rng, (
        (0, 3, 3, 3), (4, 0, 3, 3), (4, 3, 5, 5), (4, 3, 7, 7), (1, 1, 1, 1), (4, 3, 3), (), (10**5, 3, 3, 3),
        (4, 10**5, 3, 3), (4, 3, 3, 7), (8, 3, 3, 3),
    ))  # fmt: skip
    state[pick(rng, ("conv1.weight", "layer1.0.conv1.weight", "bn1.running_var"))] = torch.zeros(shape, device="cpu")
    save(box, state)
    return "signed"


@mutation(mutated_checkpoints)
def not_checkpoints(rng, box):
    source = pick(rng, ("config.json", "model.weights.h5", "golden.npz", "README.md"))
    if rng.random() < 0.3:
        box.checkpoint.write_bytes(pick(rng, (
            b"PK\x03\x04", b"PK\x05\x06" + bytes(18), b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"\x89HDF\r\n\x1a\n",
            bytes(10**6),
        )))  # fmt: skip
    else:
        shutil.copyfile(box.kit / "preset" / source, box.checkpoint)
    return "signed"


@mutation(mutated_checkpoints)
def checkpoint_kinds(rng, box):
    """No file, or a link; a link to another file is the user's own and is followed."""
    no_file(rng, box, box.checkpoint)
    return "file"


@mutation(mutated_checkpoints)
def no_change(rng, box):
    return "stale"


# ---------------------------------------------------------------------- watching
class Hang(BaseException):
    """The case took too long: no `except Exception` keeps it."""


class Watch:
    """What a case does beyond its folder: Python's audit events, and what the kernel saw opened there.

    HDF5 and torch open files without a word to Python, so the canaries' folder is watched by inotify as well, where
    there is one.
    """

    FORBIDDEN = {
        "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "pickle.find_class", "pty.spawn",
        "socket.bind", "socket.connect", "subprocess.Popen",
    }  # fmt: skip
    PATHS = {
        "open", "os.chmod", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate",
        "os.utime",
    }  # fmt: skip
    LISTING = {"os.listdir", "os.scandir"}

    def __init__(self, outside):
        self.outside, self.folder, self.events, self.inotify, self.libc = outside, None, [], None, None
        self.system = [
            os.path.realpath(p) for p in {sys.prefix, sys.base_prefix, ROOT, "/proc", "/sys", "/usr", "/lib", "/lib64"}
        ]
        self.system += [sys.prefix, "/dev/null", "/dev/urandom"]
        if sys.platform == "linux":
            self.libc = ctypes.CDLL(None, use_errno=True)
            self.inotify = self.libc.inotify_init1(os.O_NONBLOCK)
        sys.addaudithook(self.hook)

    def hook(self, event, arguments):
        if self.folder is None:
            return
        if event in self.FORBIDDEN or (event == "import" and str(arguments[0]).split(".")[0] == PAYLOAD):
            self.events.append(f"{event} {arguments[:2]!r}"[:300])
        elif event in self.PATHS or event in self.LISTING:
            for path in arguments[: 2 if event in ("os.rename", "os.link", "os.symlink") else 1]:
                if isinstance(path, str | bytes) and not self.allowed(os.fsdecode(path)):
                    self.events.append(f"{event} {os.fsdecode(path)!r}"[:300])

    def allowed(self, path):
        if path.endswith((".py", ".pyx")) and not os.path.exists(path):  # the source of a line of a traceback
            return True
        path = os.path.abspath(path)
        return any(path == p or path.startswith(f"{p}/") for p in (self.folder, *self.system))

    @contextlib.contextmanager
    def case(self, folder):
        """Watches while one file is read."""
        self.events = []
        marks = []
        if self.inotify is not None:
            for place in (self.outside, self.outside / "elsewhere"):
                marks.append(self.libc.inotify_add_watch(self.inotify, os.fsencode(place), 0x00000021 | 0x2 | 0x100))
            with contextlib.suppress(BlockingIOError):
                os.read(self.inotify, 1 << 16)
        self.folder = str(folder)
        try:
            yield
        finally:
            self.folder = None
            if self.inotify is not None:
                with contextlib.suppress(BlockingIOError):
                    data = os.read(self.inotify, 1 << 16)
                    while data:
                        _, mask, _, length = struct.unpack_from("iIII", data)
                        name = data[16 : 16 + length].rstrip(b"\0").decode()
                        if name and not mask & 0x40000000:  # listing the folder itself is no harm
                            self.events.append(f"the kernel saw {name!r} beside the folder opened (mask {mask:#x})")
                        data = data[16 + length :]
                for mark in marks:
                    self.libc.inotify_rm_watch(self.inotify, mark)


def memory():
    """(resident, its peak) in bytes; where the system tells only the peak of the whole life, that one twice."""
    try:
        text = Path("/proc/self/status").read_text()
        return tuple(int(text.split(key + ":")[1].split()[0]) * 1024 for key in ("VmRSS", "VmHWM"))
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return peak, peak


@contextlib.contextmanager
def measured(outcome):
    """Time and peak memory of what happens within it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, start = memory()[0], time.perf_counter()
    try:
        yield
    finally:
        outcome.seconds = round(time.perf_counter() - start, 4)
        outcome.peak = max(memory()[1] - before, 0)


def snapshot(*folders):
    """What lies in folders: kind, size, time of the last change, target of a link."""
    found = {}
    for folder in folders:
        for root, inner, files in os.walk(folder):
            for path in (os.path.join(root, name) for name in (*inner, *files)):
                info = os.lstat(path)
                link = os.readlink(path) if stat.S_ISLNK(info.st_mode) else None
                found[path] = (info.st_mode, info.st_size, 0 if stat.S_ISDIR(info.st_mode) else info.st_mtime_ns, link)
    return found


# ---------------------------------------------------------------------- one case
def plan(seed, number, only=None):
    """(target, kind, generator) of a case: the kinds take turns, each case draws the rest."""
    kinds = [("preset", kind) for kind in mutated_presets] + [("checkpoint", kind) for kind in mutated_checkpoints]
    kinds = [pair for pair in kinds if only in (None, pair[0])]
    order = np.random.default_rng([seed, number // len(kinds)]).permutation(len(kinds))
    target, kind = kinds[order[number % len(kinds)]]
    return target, kind, np.random.default_rng([seed, number, 1])


class Bench:
    """Sound originals, a place for cases, and what the originals give when they are read."""

    def __init__(self, place):
        import keras
        import torch

        import keras_issl
        from keras_issl import encoders, objectives
        from keras_issl.zoo import conversion

        self.place, self.kit, self.outside = place, place / "kit", place / "cases" / "outside"
        self.outside.mkdir(parents=True)
        (place / "cwd").mkdir()
        encoder = encoders.ResNet(blocks=(1,), width=8, image_size=12, stem="cifar")
        objective = objectives.DISSL(num_classes=12, teacher_hidden=(16,), bottleneck=8)
        keras_issl.Pretrainer(encoder, objective)
        keras_issl.save_preset(encoder, self.kit / "preset", objective=objective, results=[{"top-1": 0.5}])
        encoder = encoders.ResNet(blocks=(1,), width=8, image_size=12, stem="strided", mean=0.5, std=0.25)
        objective = objectives.DISSL(
            num_classes=12, teacher_hidden=(16,), bottleneck=8
        )  # the same shapes, other numbers
        keras_issl.Pretrainer(encoder, objective)
        keras_issl.save_preset(encoder, self.kit / "other", objective=objective)
        network = encoders.ResNet(blocks=(1, 1), width=4, image_size=12, stem="cifar")
        (self.kit / "checkpoint").mkdir()
        state = {name: torch.tensor(value, device="cpu") for name, value in conversion.state_dict(network).items()}
        with open(self.kit / "checkpoint" / "checkpoint.pt", "wb") as file:
            torch.save(state, file)
        # What nobody may look at:
        shutil.copytree(self.kit / "other", self.outside / "elsewhere")
        shutil.copyfile(self.kit / "other" / "model.weights.h5", self.outside / "weights.h5")
        (self.outside / "secret.json").write_text('{"secret": 1}')
        (self.outside / "numbers").write_bytes(b"\0\0\x80?" * 10_000)
        os.mkfifo(self.outside / "fifo")
        make = f"open({str(self.outside / 'owned')!r}, 'w').close()"
        method = f"    __init__ = __setstate__ = lambda self, *arguments, **options: {make}"
        (self.outside / f"{PAYLOAD}.py").write_text(f"{make}\nclass Payload:\n{method}\n")
        sys.path.insert(0, str(self.outside))
        self.made = made = []

        @keras.saving.register_keras_serializable(package="fuzz")
        class Registered(keras.layers.Layer):
            """A class that this process knows and no preset may ask for."""

            def __init__(self, *args, **kwargs):
                made.append("an object of a registered class that is on no list")
                super().__init__()

        self.watch = Watch(self.outside)
        self.sound = {}
        for name, action in self.actions(
            self.kit / "preset", self.kit / "checkpoint" / "checkpoint.pt", self.kit
        ).items():
            self.sound[name] = action()  # and everything that is imported on the way

    def actions(self, folder, checkpoint, out):
        """The readers: name -> what reads, and gives what it read in a form that can be compared."""
        import keras_issl
        from keras_issl.zoo import conversion
        from keras_issl.zoo import format as preset_format

        def encoder(**options):
            model = keras_issl.from_preset(folder, **options)
            config = model.get_config()
            weights = [value.tobytes() for value in model.get_weights()] if options.get("load_weights", True) else []
            return repr(sorted(config.items())), model.dtype_policy.name, weights

        def objective():
            layer = keras_issl.load_objective(folder)
            return repr(sorted(layer.get_config().items())), [value.tobytes() for value in layer.get_weights()]

        def state():
            found, _ = conversion.read_checkpoint(checkpoint)
            conversion.config_of(found, image_size=12)
            return {name: (value.shape, value.tobytes()) for name, value in found.items()}

        def convert():
            made, _ = conversion.convert(checkpoint, out / "out", image_size=12)
            return [value.tobytes() for value in keras_issl.from_preset(made).get_weights()]

        return {
            "read_metadata": lambda: preset_format.read_metadata(folder) and None, "from_preset": encoder,
            "from_preset, verify": lambda: encoder(verify=True),
            "from_preset, no weights": lambda: encoder(load_weights=False), "load_objective": objective,
            "read_checkpoint": state, "convert": convert,
        }  # fmt: skip

    READS = {
        "from_preset": ("config.json", "model.weights.h5"),
        "from_preset, verify": ("config.json", "model.weights.h5", "golden.npz"),
        "from_preset, no weights": ("config.json",),
        "load_objective": ("objective.json", "objective.weights.h5"),
    }

    def choose(self, rng, target, touched):
        """The reader of a case: mostly one that reads what was touched."""
        if target == "checkpoint":
            return "convert" if rng.random() < 0.15 else "read_checkpoint"
        chances = {
            "golden.npz": (0, 0.1, 0.9, 0, 0), "objective.json": (0, 0, 0, 0, 1),
            "objective.weights.h5": (0, 0.05, 0, 0, 0.95), "config.json": (0, 0.6, 0.2, 0.2, 0),
            "model.weights.h5": (0, 0.85, 0.15, 0, 0), "metadata.json": (0.4, 0.2, 0.1, 0.1, 0.2),
        }.get(touched, (0.1, 0.4, 0.2, 0.1, 0.2))  # fmt: skip
        names = ("read_metadata", "from_preset", "from_preset, verify", "from_preset, no weights", "load_objective")
        return names[int(rng.choice(5, p=chances))]

    def run(self, seed, number, only=None, keep=None, action=None):
        """Runs one case.

        Args:
            seed: Integer.
            number: Integer, the number of the case.
            only: `"preset"`, `"checkpoint"` or `None` for both.
            keep: Folder that the case is copied to if it breaks a rule, or `None`.
            action: A function of the `Box` that reads instead of ours, to try the rules themselves.

        Returns:
            An `Outcome`.
        """
        target, kind, rng = plan(seed, number, only)
        outcome = Outcome(number, target, kind)
        folder = self.place / "cases" / f"case-{number}"
        folder.mkdir()
        original = self.kit / target
        inside = folder / "preset" if target == "preset" else folder
        shutil.copytree(original, inside, dirs_exist_ok=True)
        if target == "preset":  # so that `../outside` leads outside from within a preset
            inside = inside.rename(self.place / "cases" / f"case-{number}-preset")
        box = Box(inside, self.outside, self.kit, bool(rng.random() < 0.7))
        touched = (mutated_presets if target == "preset" else mutated_checkpoints)[kind](rng, box)
        if target == "preset":
            outcome.mode = "signed" if box.signed else "stale"
            if box.signed:
                sign(inside, touched)
        else:
            outcome.mode = touched
        outcome.action = self.choose(rng, target, touched)
        before = snapshot(inside, self.outside)
        self.made.clear()
        error = result = None
        reader = (lambda: action(box)) if action else self.actions(inside, box.checkpoint, folder)[outcome.action]
        place = str(folder if target == "checkpoint" else inside)
        ours = box.checkpoint.resolve() if touched == "file" and not is_loop(box.checkpoint) else None
        old = signal.signal(signal.SIGALRM, alarm)
        with self.watch.case(place), measured(outcome):
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, SECONDS)
                    result = reader()
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except (Exception, Hang) as caught:  # kept past the clause, to be judged
                error = caught
        signal.signal(signal.SIGALRM, old)
        events = [e for e in self.watch.events if ours is None or not mentions(e, ours)]
        found = [f"it touched what is none of its business: {event}" for event in dict.fromkeys(events)] + self.made
        found += self.judge(outcome, target, kind, touched, inside, error, result, action is not None)
        after = {k: v for k, v in snapshot(inside, self.outside).items() if not k.startswith(f"{inside}/out")}
        if outcome.result != "read" or outcome.action != "convert":
            after |= {k: v for k, v in snapshot(inside).items()}
        if changed := sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k)):
            found.append(f"it changed files: {changed[:5]}")
        if outcome.peak > MEMORY:
            found.append(f"it took {outcome.peak >> 20} MiB")
        outcome.violations = found
        if found and keep is not None:
            shutil.rmtree(kept := Path(keep) / f"seed-{seed}-case-{number}", ignore_errors=True)
            with contextlib.suppress(OSError, shutil.Error):  # sockets cannot be copied
                shutil.copytree(inside, kept, symlinks=True, copy_function=copy_regular)
        for path in {folder, inside}:
            shutil.rmtree(path, ignore_errors=True)
        for name in ("same", "owned"):
            with contextlib.suppress(OSError):
                (self.outside / name).unlink()
        error = None  # its traceback holds what the reader held
        return outcome

    def judge(self, outcome, target, kind, touched, folder, error, result, trial):
        """What is wrong with the outcome itself."""
        if error is None:
            outcome.result = "read"
            changed = [] if target == "checkpoint" else self.changed(folder, outcome.action)
            if outcome.mode == "stale" and changed:
                return [f"read although {', '.join(changed)} changed and the recorded hash did not"]
            if outcome.mode == "stale" and not trial and result != self.sound[outcome.action]:
                return ["read, and it gave something else than the original"]
            return []
        outcome.result, outcome.message = "refused", f"{type(error).__name__}: {error}"[:2000]
        trace = traceback.extract_tb(error.__traceback__)
        found = []
        if kind in ("none", "no change"):
            found.append(f"the unchanged original was refused: {outcome.message[:300]}")
        if isinstance(error, Hang):
            return [*found, f"it took more than {SECONDS} s, and was at {trace[-1].filename}:{trace[-1].lineno}"]
        if type(error) is not ValueError or not Path(trace[-1].filename).is_relative_to(ROOT / "keras_issl"):
            where = f"{trace[-1].filename}:{trace[-1].lineno}"
            ours = [
                f"{Path(t.filename).name}:{t.lineno}"
                for t in trace
                if Path(t.filename).is_relative_to(ROOT / "keras_issl")
            ]
            return [
                *found,
                f"{type(error).__name__} of {where} (by {ours[-1:]}), not a ValueError of ours: {str(error)[:300]}",
            ]
        text = str(error)
        if len(text) > MESSAGE:
            found.append(f"the message has {len(text):,} characters: {text[:200]}")
        if not any(word in text for word in (str(folder), *ALL_FILES, "`")):
            found.append(f"the message names neither a file nor an argument: {text[:300]}")
        with contextlib.suppress(UnicodeEncodeError):
            text.encode()
            return found
        return [*found, f"the message cannot be printed: {text[:200]!a}"]

    def changed(self, folder, action):
        """The files that an action reads and that are not the original's bytes."""

        def same(name):
            path, original = folder / name, self.kit / "preset" / name
            sizes = (
                {p.stat().st_size for p in (path, original)} if path.is_file() else {0, 1}
            )  # there may be a terabyte
            return len(sizes) == 1 and path.read_bytes() == original.read_bytes()

        return [name for name in self.READS.get(action, ()) if not same(name)]


def alarm(number, frame):
    raise Hang


def is_loop(path):
    try:
        path.resolve(strict=True)
    except (OSError, RuntimeError):
        return True
    return False


def mentions(event, path):
    return path.name in event


def copy_regular(source, target):
    if os.path.isfile(source):
        shutil.copyfile(source, target)


def sign(folder, touched):
    """Records the hashes of the files as they are now, wherever metadata still hold some."""
    import hashlib

    path = folder / "metadata.json"
    if touched == path.name or path.is_symlink() or not path.is_file():
        return
    metadata = json.loads(path.read_text())
    for name, entry in metadata["files"].items():
        file = folder / name
        if file.is_file() and file.stat().st_size < 1 << 26:
            entry |= {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "bytes": file.stat().st_size}
    path.write_text(json.dumps(metadata))


# ---------------------------------------------------------------------- processes
def worker(seed, first, last, only, keep, actions=()):
    """Runs cases and says so, one line when one begins and one when it ends; `actions` as in `Bench.run`, in turn."""
    import faulthandler

    faulthandler.enable()
    sys.path.insert(0, str(ROOT))
    say = lambda kind, value: print(f"{TAG}{json.dumps([kind, value])}", flush=True)  # noqa: E731
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        bench = Bench(Path(place).resolve())
        os.chdir(bench.place / "cwd")
        with contextlib.suppress(OSError, ValueError):  # a system without it has one net less
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESSES, resource.RLIM_INFINITY))
        for number in range(first, last):
            action = actions[number % len(actions)] if actions else None
            say("begin", number)
            say("end", dataclasses.asdict(bench.run(seed, number, only, keep, action)))
            if number % 50 == 49:
                import keras

                keras.utils.clear_session()
                gc.collect()


def run(cases, seed, only=None, *, first=0, keep=None, batch=BATCH, command=None):
    """Runs cases in workers, a new one after each batch and after each that died.

    Args:
        cases: Integer, how many.
        seed: Integer.
        only: `"preset"`, `"checkpoint"` or `None` for both.
        first: Integer, number of the first case.
        keep: Folder for the cases that break a rule, or `None`.
        batch: Integer, how many cases a worker runs.
        command: The worker, for trials; this file by default.

    Yields:
        An `Outcome` for each case, in order.
    """
    number, end = first, first + cases
    while number < end:
        last = min(number + batch, end)
        with tempfile.TemporaryFile("w+") as errors:
            arguments = [str(seed), str(number), str(last), only or "", str(keep or "")]
            process = subprocess.Popen(
                [*(command or [sys.executable, __file__]), *arguments],
                stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, env=QUIET | os.environ,
            )  # fmt: skip
            lines = queue.Queue()
            reader = threading.Thread(
                target=lambda p, q: [q.put(line) for line in p.stdout] + [q.put(None)], args=(process, lines)
            )
            reader.start()
            begun, why = False, ""
            try:
                while True:
                    line = lines.get(timeout=SECONDS + GRACE if begun else 600)
                    if line is None:
                        break
                    if line.startswith(TAG):
                        kind, value = json.loads(line.removeprefix(TAG))
                        begun = kind == "begin"
                        if not begun:
                            yield Outcome(**value)
                            number += 1
            except queue.Empty:
                why = f"it hung for {SECONDS + GRACE} s beyond the reach of signals"
            finally:
                process.kill()
                code = process.wait()
                reader.join()
                process.stdout.close()
            if number < last:
                errors.seek(0)
                tail = errors.read().strip()[-1500:]
                if not begun:
                    raise RuntimeError(f"The worker ended with status {code} between cases:\n{tail}")
                target, kind, _ = plan(seed, number, only)
                why = why or f"the process died with status {code}: {tail}"
                yield Outcome(number, target, kind, result="died", violations=[why])
                number += 1


if __name__ == "__main__":
    worker(*map(int, sys.argv[1:4]), sys.argv[4] or None, sys.argv[5] or None)
