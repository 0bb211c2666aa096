"""Mutations of a preset: its JSON, its weights in HDF5, its golden features, its files and folder.

Each takes a generator and a `Box`, changes one file of `box.folder` and returns the name of that file.
"""

import functools
import json
import math
import os
import shutil
import struct
import zipfile

import h5py
import numpy as np

from fuzzing.sandbox import PAYLOAD, archive, flip, mutation, no_file, payloads, pick, write

JSON_FILES = ("config.json", "metadata.json", "objective.json")
DESCRIBED = ("config.json", "objective.json")  # of objects to be made
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


# ---------------------------------------------------------------------- JSON
def load(box, name):
    return json.loads((box.folder / name).read_text())


def dump(box, name, value, raw=""):
    """Writes a JSON file, with raw text in the place of `HERE`."""
    (box.folder / name).write_text(json.dumps(value).replace(f'"{HERE}"', raw))
    return name


def nodes(value, path=()):
    """Paths of all values in a JSON value, itself included."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from nodes(item, (*path, key))


def put(rng, box, raw, name=None):
    """Puts raw JSON text in the place of one value; often within the arguments of a class."""
    name = name or pick(rng, JSON_FILES)
    value = json.loads((box.folder / name).read_text())
    paths = [path for path in nodes(value) if path]
    arguments = [path for path in paths if path[0] == "config"]
    *outer, last = pick(rng, arguments if arguments and rng.random() < 0.4 else paths)
    functools.reduce(lambda inner, key: inner[key], outer, value)[last] = HERE
    return dump(box, name, value, raw)


@mutation("preset")
def json_types(rng, box):
    return put(rng, box, pick(rng, VALUES))


@mutation("preset")
def json_numbers(rng, box):
    return put(rng, box, pick(rng, NUMBERS))


@mutation("preset")
def json_infinite(rng, box):
    """Metadata with numbers that no float can hold: no JSON writer would write them back."""
    box.hopeless = True
    return put(
        rng, box, pick(rng, ("1e999", "-1e999", "[0.5, 1e400]", '{"top-1": 1e999}', "Infinity")), "metadata.json"
    )


@mutation("preset")
def json_arguments(rng, box):
    """A value of the right type and an absurd size, for an argument that has something to build from it."""
    name = pick(rng, DESCRIBED)
    value = load(box, name)
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
    return dump(box, name, value)


@mutation("preset")
def json_depth(rng, box):
    depth = pick(rng, (50, 200, 320, 480, 700, 900, 980, 3000, 20_000, 200_000))
    start, middle, end = pick(rng, (("[", "", "]"), ('{"a":', "1", "}"), ('[{"config":', "[]", "}]")))
    return put(rng, box, start * depth + middle + end * depth)


@mutation("preset")
def json_duplicate_keys(rng, box):
    path = box.folder / pick(rng, JSON_FILES)
    text = path.read_text()
    extra = '"again": 1, ' * pick(rng, (2, 10**5))
    if rng.random() < 0.5:
        extra = f'"{pick(rng, list(json.loads(text)))}": {pick(rng, VALUES)}, '
    return write(path, text.replace("{", "{" + extra, 1).encode())


@mutation("preset")
def json_keys(rng, box):
    """Keys that are unknown, renamed or missing, at any depth."""
    name = pick(rng, JSON_FILES)
    value = inner = load(box, name)
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
    return dump(box, name, value)


@mutation("preset")
def json_bytes(rng, box):
    """A file that is no JSON, not UTF-8, or not the JSON that was hashed."""
    path = box.folder / pick(rng, JSON_FILES)
    data = path.read_bytes()
    flipped = flip(rng, data, count=1)
    changed = pick(rng, [
        b"", b"\xff\xfe" + data, b"\xef\xbb\xbf" + data, data.decode().encode("utf-16"), data.replace(b"e", b"\xc3", 1),
        data.replace(b'"', b'"\x00', 1), data[: int(rng.integers(len(data)))], data + b"\n", data + b"{}",
        b"[" + data + b"]", b"null", b'"text"', b"\x00" * 1000, bytes(flipped), bytes(flipped),
        data.replace(b" ", b"", 1), b"\x80\x02}.",
    ])  # fmt: skip
    return write(path, changed)


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


@mutation("preset")
def json_classes(rng, box):
    """A description of an object in the place of a value, or another class as the whole."""
    raw = json.dumps(pick(rng, descriptions(box)))
    draw = rng.random()
    if draw < 0.3:
        return put(rng, box, raw)
    name = "objective.json" if draw < 0.8 else pick(rng, DESCRIBED)
    value = load(box, name)
    if draw < 0.8:  # where Keras would make it: the probe
        value["config"]["probe"] = HERE
    else:
        value["class"] = pick(rng, (
            "os.system", "Sequential", "keras.layers.Lambda", "ResNet ", "../ResNet", "DISSL", "SimCLR", "Adapter",
            "__init__", "fuzz>Registered", PAYLOAD,
        ))  # fmt: skip
    return dump(box, name, value, raw)


@mutation("preset")
def json_dtypes(rng, box):
    name = pick(rng, DESCRIBED)
    value = load(box, name)
    dtype = pick(rng, [
        "float16", "float64", "int8", "int8_from_float32", "float8_from_bfloat16", "mixed_float16", "object", "string",
        "bool", "", None, 32, ["float32"], {"class_name": "DTypePolicyMap", "config": {}},
        {"class_name": "DTypePolicy", "config": {"name": "O"}}, {"class_name": "DTypePolicy", "config": None},
        {"class_name": PAYLOAD, "config": {}}, "float32\u0000", "x" * 10**6,
    ])  # fmt: skip
    for place in pick(rng, ((value,), (value["config"],), (value, value["config"]))):
        if place is not value or name == "config.json" or rng.random() < 0.3:
            place["dtype"] = dtype
    return dump(box, name, value)


@mutation("preset")
def json_paths(rng, box):
    """Paths that lead out of the folder, wherever a name stands."""
    away = pick(rng, (
        "../outside/secret.json", str(box.outside / "secret.json"), "../" * 30 + "etc/passwd", "/dev/zero",
        "~/.ssh/id_rsa", "file:///etc/passwd", "\\\\host\\share", "config.json/../../outside/secret.json", "a\u0000b",
        "hf://a/b", ".", "..", "",
    ))  # fmt: skip
    change = pick(rng, ("file", "name", "hash", "url", "any", "any", "any", "any"))
    if change == "any":
        return put(rng, box, json.dumps(away))
    value = load(box, "metadata.json")
    if change == "file":
        value["files"][away] = {"sha256": "0" * 64, "bytes": 1}
    elif change == "hash":
        entries = (away, [], None, {"sha256": [away]}, {"sha256": None}, {})
        value["files"][pick(rng, list(value["files"]))] = pick(rng, entries)
    else:
        value |= {"name": away} if change == "name" else {"source": {"url": away, "sha256": away}}
    return dump(box, "metadata.json", value)


@mutation("preset")
def json_megabytes(rng, box):
    raw = pick(rng, (
        lambda: json.dumps("x" * 10**6), lambda: json.dumps("\\" * 10**6), lambda: json.dumps({"k" * 10**6: 1}),
        lambda: json.dumps(list(range(10**5))), lambda: json.dumps({str(i): i for i in range(10**5)}),
        lambda: "[" + "[]," * 10**5 + "0]", lambda: json.dumps("\U0001f600" * 10**5),
        lambda: json.dumps("x" * (20 << 20)),
    ))()  # fmt: skip
    name = put(rng, box, raw)
    if rng.random() < 0.1:
        os.truncate(box.folder / name, 10**12)  # a hole
    return name


# ---------------------------------------------------------------------- HDF5, by its bytes
def opened(rng, box):
    path = box.folder / pick(rng, WEIGHT_FILES)
    return path, path.read_bytes()


def structures(data):
    """Where the structures of an HDF5 file begin: superblock, object headers, trees, heaps, tables of symbols."""
    marks = (b"TREE", b"HEAP", b"SNOD", b"OHDR", b"GCOL")
    return [0, *(i for mark in marks for i in range(len(data)) if data.startswith(mark, i))]


@mutation("preset")
def hdf5_truncated(rng, box):
    path, data = opened(rng, box)
    return write(path, data[: pick(rng, (0, 1, 8, 96, 512, 2048, int(rng.integers(len(data))), len(data) - 1))])


@mutation("preset")
def hdf5_flipped(rng, box):
    path, data = opened(rng, box)
    return write(path, flip(rng, data))


@mutation("preset")
def hdf5_flipped_structures(rng, box):
    path, data = opened(rng, box)
    start = pick(rng, structures(data))
    return write(path, flip(rng, data, start, min(start + 96, len(data)), pick(rng, (1, 2, 3))))


@mutation("preset")
def hdf5_edited_structures(rng, box):
    """Addresses, sizes and counts in the file's structures set to other ones, or to extremes."""
    path, data = opened(rng, box)
    starts, data = structures(data), bytearray(data)
    extremes = (0, 1, 0xFF, 0xFFFF, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1, len(data))
    for _ in range(pick(rng, (1, 1, 2, 4))):
        at = min(pick(rng, starts) + 4 * int(rng.integers(32)), len(data) - 8)
        value, size = pick(rng, (*extremes, *starts[:8], pick(rng, starts))), pick(rng, (1, 2, 4, 8))
        data[at : at + size] = (value & (2 ** (8 * size) - 1)).to_bytes(size, "little")
    return write(path, data)


@mutation("preset")
def hdf5_noise(rng, box):
    path, data = opened(rng, box)
    size = pick(rng, (8, 64, 1024, 10_000))
    at = int(rng.integers(max(len(data) - size, 1)))
    noise = pick(rng, (rng.bytes(size), b"\0" * size, b"\xff" * size))
    return write(path, pick(rng, (
        data[:at] + noise + data[at + size :], data[:at] + noise + data[at:], data[:at] + data[at + size :],
        data + noise, noise + data, data[:8] + bytes([pick(rng, (1, 2, 3, 4, 255))]) + data[9:],
    )))  # fmt: skip


@mutation("preset")
def hdf5_swapped(rng, box):
    """A sound file in the place of another: of another preset, of the other half, of another format."""
    name = pick(rng, (*WEIGHT_FILES, "golden.npz"))
    sources = [box.kit / kind / other for kind in ("preset", "other") for other in ALL_FILES]
    shutil.copyfile(pick(rng, [s for s in sources if s != box.kit / "preset" / name]), box.folder / name)
    return name


# ---------------------------------------------------------------------- HDF5, by its library
def hdf5(function):
    """Registers `function(rng, box, file, key)`, which changes an open file of weights, mostly the array at a key."""

    @mutation("preset")
    @functools.wraps(function)
    def mutate(rng, box):
        name = pick(rng, WEIGHT_FILES)
        with h5py.File(box.folder / name, "r+") as file:
            arrays = []
            file.visititems(lambda key, item: arrays.append(key) if isinstance(item, h5py.Dataset) else None)
            function(rng, box, file, pick(rng, arrays))
        return name

    return mutate


def taken(file, key):
    """Takes an array out of a file."""
    value = file[key][()]
    del file[key]
    return value


def elsewhere(rng, box, name):
    """A path out of the folder."""
    return pick(rng, (str(box.outside / name), f"../outside/{name}", str(box.outside / "fifo"), "/dev/zero", "."))


@hdf5
def hdf5_external_link(rng, box, file, key):
    place = pick(rng, (key, key.split("/")[0], "extra"))
    if place in file:
        del file[place]
    away = pick(rng, (*[elsewhere(rng, box, "weights.h5")] * 4, os.path.basename(file.filename)))
    file[place] = h5py.ExternalLink(away, pick(rng, (key, "/", place)))


@hdf5
def hdf5_soft_link(rng, box, file, key):
    file.move(key, "real")
    file[key] = h5py.SoftLink(pick(rng, ("/real", "/" + key, "/nowhere", ".", "/", "x" * 10**4, key.split("/")[0])))


@hdf5
def hdf5_external_storage(rng, box, file, key):
    shape = taken(file, key).shape
    size = pick(rng, (h5py.h5f.UNLIMITED, 4 * math.prod(shape)))
    file.create_dataset(key, shape, "float32", external=[(elsewhere(rng, box, "numbers"), pick(rng, (0, 4)), size)])


@hdf5
def hdf5_virtual(rng, box, file, key):
    """Arrays that lie in other files; with a source of any length, a look at the shape opens it."""
    shape, away = taken(file, key).shape, elsewhere(rng, box, "weights.h5")
    if rng.random() < 0.5:
        layout = h5py.VirtualLayout(shape, "float32")
        layout[...] = h5py.VirtualSource(away, key, shape=shape)
        file.create_virtual_dataset(key, layout)
        return
    space, source = (h5py.h5s.create_simple((1,), (h5py.h5s.UNLIMITED,)) for _ in range(2))
    for each in (space, source):
        each.select_hyperslab((0,), (h5py.h5s.UNLIMITED,), (1,), (1,))
    properties, links = h5py.h5p.create(h5py.h5p.DATASET_CREATE), h5py.h5p.create(h5py.h5p.LINK_CREATE)
    properties.set_virtual(space, away.encode(), b"numbers", source)
    links.set_create_intermediate_group(True)
    h5py.h5d.create(file.id, key.encode(), h5py.h5t.IEEE_F32LE, space, properties, lcpl=links)


@hdf5
def hdf5_cycle(rng, box, file, key):
    parent = key.rsplit("/", 1)[0]
    pairs = (("/", "again"), (parent, parent + "/again"), (key, key + "2"), ("/", parent + "/root"))
    source, place = pick(rng, pairs)
    file[place] = file[source]


@hdf5
def hdf5_declared(rng, box, file, key):
    """Shapes that are declared and not stored."""
    shape = taken(file, key).shape
    huge = pick(rng, ((1 << 20, 1 << 20), (2**31,), (2**60,), (2**33, 8), (10**6, 10**3), shape))
    options = pick(rng, ({"chunks": tuple(min(side, 1024) for side in huge)}, {"fillvalue": 7.0}))
    file.create_dataset(key, huge, "float32", **options)


@hdf5
def hdf5_bomb(rng, box, file, key):
    value = taken(file, key)
    options = pick(rng, (
        {"compression": "gzip"}, {"compression": "lzf"}, {"shuffle": True}, {"fletcher32": True}, {"scaleoffset": 2},
    ))  # fmt: skip
    if rng.random() < 0.5:
        value = np.zeros((1 << 20, 16), "float32")  # 64 MiB in a few kilobytes
        options = {"compression": "gzip", "chunks": (1 << 20, 16)}
    file.create_dataset(key, data=value, **options)


@hdf5
def hdf5_dtypes(rng, box, file, key):
    shape = taken(file, key).shape
    dtype = pick(rng, (
        "f8", "f2", "i8", "u1", "?", "c8", "S4", "V4", ">f4", np.longdouble, h5py.string_dtype(), h5py.vlen_dtype("f4"),
        h5py.ref_dtype, h5py.regionref_dtype, h5py.enum_dtype({"a": 1}, "i4"), np.dtype([("a", "f4")]),
        np.dtype(("f4", (10**4,))), np.dtype([("a", [("b", "f4", (2, 2))])]), None,
    ))  # fmt: skip
    if dtype is None:
        file[key] = h5py.Empty("f4")
    elif isinstance(dtype, np.dtype):  # structured or of the file's own: declared, not filled
        file.create_dataset(key, shape, dtype)
    else:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        file.create_dataset(key, data=np.frombuffer(b"\1" * size, dtype).reshape(shape))


@hdf5
def hdf5_values(rng, box, file, key):
    """Sound arrays: other numbers, other shapes, too many, too few."""
    how = pick(rng, ("value", "shape", "rank", "missing", "extra", "renamed", "scalar", "group"))
    value = file[key][()] if how == "extra" else taken(file, key)
    if how == "value":
        file[key] = np.full_like(value, pick(rng, (np.nan, np.inf, 0.0, -1.0, 1e38)))
    elif how == "shape":
        file[key] = value.reshape(-1)
    elif how == "rank":
        file[key] = value.reshape((1,) * int(rng.integers(1, 28)) + value.shape)
    elif how == "extra":
        file["extra"] = np.zeros(pick(rng, (0, 1, 10**6)), "f4")
    elif how == "renamed":
        file[pick(rng, ("é", "..", "a" * 10**4, key + "/0"))] = value
    elif how == "scalar":
        file[key] = np.float32(1)
    elif how == "group":
        file.create_group(key)


@hdf5
def hdf5_groups(rng, box, file, key):
    """Trees of groups that are deep or broad, and attributes."""
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


# ---------------------------------------------------------------------- golden features
def npy(shape, dtype="<f4", data=b"", version=(1, 0), fortran=False):
    header = repr({"descr": dtype, "fortran_order": fortran, "shape": shape}).encode() + b"\n"
    size = struct.pack("<H" if version == (1, 0) else "<I", len(header))
    return b"\x93NUMPY" + bytes(version) + size + header + data


def golden(rng, box):
    """Path of the archive, its members by name, and one of the names."""
    path = box.folder / "golden.npz"
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    return path, members, pick(rng, list(members))


@mutation("preset")
def golden_flipped(rng, box):
    path = box.folder / "golden.npz"
    data = path.read_bytes()
    return write(path, flip(rng, data) if rng.random() < 0.7 else data[: int(rng.integers(len(data)))])


@mutation("preset")
def golden_headers(rng, box):
    """Headers that declare what is not there, or are no headers."""
    path, members, name = golden(rng, box)
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
    return archive(path, members.items())


@mutation("preset")
def golden_pickles(rng, box):
    path, members, name = golden(rng, box)
    return archive(path, (members | {name: npy((1,), "|O", pick(rng, payloads(box)))}).items())


@mutation("preset")
def golden_sizes(rng, box):
    """Images and features that are sound and too many, too large or not for this encoder."""
    path, members, _ = golden(rng, box)
    shape = pick(rng, (
        (2, 0, 0, 3), (2, 1, 1, 3), (2, 12, 12, 1), (2, 12, 12, 4), (0, 12, 12, 3), (12, 12, 3), (2, 13, 500, 3),
        (1, 4000, 4000, 3), (200_000, 12, 12, 3), (20_000_000, 1, 1, 3), (2, 12, 12, 3, 1),
    ))  # fmt: skip
    members["images.npy"] = npy(shape, "|u1", b"\7" * math.prod(shape))
    if rng.random() < 0.8:
        members["features.npy"] = npy((shape[0], 8), "<f4", bytes(shape[0] * 32))
    return archive(path, members.items(), zipfile.ZIP_DEFLATED)


@mutation("preset")
def golden_archives(rng, box):
    """Archives with other members, paths for names, bombs, false sizes and odd flags."""
    path, members, _ = golden(rng, box)
    (first, data), *rest = items = list(members.items())
    away = pick(rng, (
        "../outside/secret.json", str(box.outside / "x.npy"), "images.npy\0.txt", "images.npy/", "\\images.npy",
    ))  # fmt: skip
    changed = {
        "path": [(away, data), *rest], "twice": [*items, (first, npy((2, 8), data=b"0" * 64))],
        "more": [*items, ("extra.npy", b"")], "less": rest,
    }  # fmt: skip
    packed = {"bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA, "bomb": zipfile.ZIP_DEFLATED}
    directory = {  # offset in the archive's first entry, what stands there
        "size": (pick(rng, (20, 24)), pick(rng, (b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\xff\xff\xff\xff"))),
        "flags": (8, pick(rng, (b"\x01\0", b"\x20\0", b"\x40\0"))),
        "method": (10, pick(rng, (b"\x08\0", b"\x0c\0", b"\x63\0"))), "zip64": (42, b"\xff\xff\xff\xff"),
        "directory": (28, b"\xff\xff"),
    }  # fmt: skip
    how = pick(rng, (*changed, "bomb", "bzip2", "lzma", *directory, "comment"))
    if how == "bomb":
        items = [(first, npy((100 << 20,), "|u1") + bytes(100 << 20)), *rest]
    archive(path, changed.get(how, items), packed.get(how, zipfile.ZIP_STORED))
    data = bytearray(path.read_bytes())
    if how in directory:
        offset, value = directory[how]
        offset += data.find(b"PK\x01\x02")
        data[offset : offset + len(value)] = value
    elif how == "comment":
        data[-2:] = b"\x16\0"
        data += data[-22:]
    return write(path, data)


# ---------------------------------------------------------------------- files and folders
@mutation("preset")
def file_kinds(rng, box):
    return no_file(rng, box, box.folder / pick(rng, ALL_FILES[:-1]))


@mutation("preset")
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
        for name in ("__init__.py", "objective.py"):
            (box.folder / name).write_text(f"open({str(box.owned)!r}, 'w')")
        (box.folder / "keras.json").write_text("{}")
    else:
        (inner / "config.json").mkdir(parents=True)
    return inner.name


@mutation("preset")
def none(rng, box):
    return ""
