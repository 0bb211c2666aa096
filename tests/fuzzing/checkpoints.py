"""Mutations of a torch checkpoint: its bytes, its archive, its pickle, its tensors.

Each takes a generator and a `Box`, changes `box.checkpoint` and returns that file's name. A checkpoint has no hash
beside it, only the checksums of its archive: a mutation that leaves them as they were sets `box.signed` to false.
"""

import functools
import io
import math
import pickle
import pickletools
import shutil
import struct
import tarfile
import zipfile

import torch

from fuzzing.sandbox import archive, flip, mutation, no_file, payloads, pick, write


# ---------------------------------------------------------------------- bytes
def damaged(function):
    """Registers `function(rng, data)`, which returns other bytes for those of the file."""

    @mutation("checkpoint")
    @functools.wraps(function)
    def mutate(rng, box):
        box.signed = False
        return write(box.checkpoint, function(rng, box.checkpoint.read_bytes()))

    return mutate


@damaged
def no_change(rng, data):
    return data


@damaged
def truncated(rng, data):
    return data[: pick(rng, (0, 1, 4, 64, len(data) - 1, len(data) - 22, int(rng.integers(len(data)))))]


@damaged
def flipped(rng, data):
    return flip(rng, data)


@damaged
def flipped_directory(rng, data):
    """The archive's own structures: headers of records and the directory at its end."""
    starts = [i for i in range(len(data)) if data.startswith(b"PK", i)]
    start = pick(rng, starts[-40:] if rng.random() < 0.7 else starts)
    return flip(rng, data, start, min(start + 64, len(data)), pick(rng, (1, 2, 4)))


@damaged
def directories(rng, data):
    """Sizes and places that are declared, and what stands before and after the archive."""
    changed, central = bytearray(data), data.find(b"PK\x01\x02")
    how = pick(rng, ("declared", "overlap", "comment", "prefix", "zip64"))
    if how == "declared":
        changed[central + 20 : central + 28] = b"\xff\xff\xff\x7f" * 2
    elif how == "overlap":
        second = data.find(b"PK\x01\x02", central + 4)
        changed[second + 42 : second + 46] = data[central + 42 : central + 46]
    elif how == "comment":
        changed += data[-22:] + bytes(100)
    elif how == "prefix":
        changed[:0] = b"PK\x03\x04" + bytes(60)
    else:
        changed[-12:-4] = b"\xff" * 8
    return changed


@mutation("checkpoint")
def checkpoint_kinds(rng, box):
    """No file, or a link; a link to another file is the user's own and is followed."""
    return no_file(rng, box, box.checkpoint)


@mutation("checkpoint")
def not_checkpoints(rng, box):
    if rng.random() < 0.3:
        return write(box.checkpoint, pick(rng, (
            b"PK\x03\x04", b"PK\x05\x06" + bytes(18), b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"\x89HDF\r\n\x1a\n",
            bytes(10**6),
        )))  # fmt: skip
    source = pick(rng, ("config.json", "model.weights.h5", "golden.npz", "README.md"))
    return shutil.copyfile(box.kit / "preset" / source, box.checkpoint).name


# ---------------------------------------------------------------------- records
def records(box):
    """The archive's records by name, and the name of the pickle among them."""
    with zipfile.ZipFile(box.checkpoint) as file:
        found = {info.filename: file.read(info) for info in file.infolist()}
    return found, next(name for name in found if name.endswith("data.pkl"))


@mutation("checkpoint")
def records_changed(rng, box):
    found, listing = records(box)
    name = pick(rng, list(found))
    how = pick(rng, ("missing", "shorter", "longer", "noise", "more", "twice", "folder", "pickle", "renamed", "case"))
    if how == "missing":
        del found[name]
    elif how == "shorter":
        found[name] = found[name][: len(found[name]) // 2]
    elif how == "longer":
        found[name] *= 2
    elif how == "noise":
        found[name] = rng.bytes(len(found[name]))
    elif how == "more":
        found[pick(rng, (
            "../outside/x", str(box.owned), "archive/../data.pkl", "archive/code/x.py", "constants.pkl",
            "archive/constants.pkl",
        ))] = b"\x80\x02N."  # fmt: skip
    elif how == "pickle":
        found[listing] = pick(rng, payloads(box))
    items = list(found.items())
    if how in ("twice", "case"):
        other = listing if how == "twice" else listing.replace("data.pkl", "DATA.pkl")
        items.insert(0, (other, pick(rng, payloads(box))))
    elif how == "folder":
        items = [(f"../{n}", data) for n, data in items]
    elif how == "renamed":
        items = [(n.replace("/data/", "/../data/"), data) for n, data in items]
    return archive(box.checkpoint, items, zipfile.ZIP_DEFLATED if rng.random() < 0.15 else zipfile.ZIP_STORED)


@mutation("checkpoint")
def zip_bombs(rng, box):
    items = list(records(box)[0].items())
    if rng.random() < 0.5:
        return archive(box.checkpoint, [*items, ("archive/data/x", bytes(200 << 20))], zipfile.ZIP_DEFLATED)
    return archive(box.checkpoint, [*items, *((f"archive/data/x{i}", b"") for i in range(20_000))])


@mutation("checkpoint")
def flipped_pickle(rng, box):
    """The list of tensors changed, and its checksum recorded anew."""
    found, name = records(box)
    data = found[name]
    i, j = sorted(int(x) for x in rng.choice([at for _, _, at in pickletools.genops(data)], 2))
    cut = (data[:i] + data[j:], data[:j] + data[i:j] + data[j:], data[:i] + pick(rng, bombs()), data[:i])
    found[name] = flip(rng, data) if rng.random() < 0.5 else pick(rng, cut)
    return archive(box.checkpoint, found.items())


@mutation("checkpoint")
def storages(rng, box):
    """Storages whose declared size, kind, key or place is not the record's."""
    found, name = records(box)
    data = found[name]
    rebuilt = (
        "parameter", "qtensor", "sparse_tensor", "meta_tensor_no_storage", "device_tensor_from_numpy",
        "wrapper_subclass", "from_type_v2",
    )  # fmt: skip
    old, new = pick(rng, (
        *((b"FloatStorage", kind + b"Storage") for kind in (b"Long", b"Double", b"Byte", b"QInt8", b"Untyped")),
        *((b"_rebuild_tensor_v2", f"_rebuild_{way}".encode()) for way in rebuilt),
        (b"X\x03\0\0\0cpu", b"X\x04\0\0\0cuda"), (b"X\x03\0\0\0cpu", b"X\x04\0\0\0meta"),
        (b"X\x01\0\0\x000", b"X\x04\0\0\0../0"), (b"X\x07\0\0\0storage", b"X\x06\0\0\0module"),
        (b"K\x03K\x03", b"J\xff\xff\xff\x7fK\x03"), (b"K\x04K\x03K\x03K\x03\x87", b"M\xff\xffK\x03K\x03K\x03\x87"),
        (b"K\x04", b"J\xff\xff\xff\x7f"), (b"K\x04", b"J\xff\xff\xff\xff"), (b"K\x00", b"M\xff\xff"),
        (b"K\x01", b"\x8a\x09\0\0\0\0\0\0\0\0\1"),
    ))  # fmt: skip
    if places := [i for i in range(len(data)) if data.startswith(old, i)]:
        i = pick(rng, places)
        found[name] = data[:i] + new + data[i + len(old) :]
    return archive(box.checkpoint, found.items())


# ---------------------------------------------------------------------- pickles
def bombs():
    """Pickles that ask for memory, time or depth."""
    size = struct.pack("<Q", 1 << 31)
    laugh = b"".join(b"](" + (b"h" + bytes([i])) * 10 + b"eq" + bytes([i + 1]) for i in range(30))
    return [
        b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\0\0\0\0\x10\x85R.", b"\x80\x02ctorch\nFloatTensor\nJ\0\0\0\x7f\x85R.",
        b"\x80\x02Nr\xff\xff\xff\x7f.", b"\x80\x04\x8d" + size + b"abc.", b"\x80\x04\x8e" + size + b"abc.",
        b"\x80\x04\x95" + size + b"N.", b"\x80\x05\x96" + size + b"abc.", b"\x80\x02\x8b\xff\xff\xff\x7f1.",
        b"\x80\x02" + b"(" * 10**6 + b".", b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
        b"\x80\x02" + b"}" * 20_000 + b"".join([b"K\x01" + b"s"] * 5) + b".",
        b"\x80\x02" + b")" * 10**5 + b"\x85" * 10**5 + b".",
        b"\x80\x02K\x01" + b"\x85" * 10**5 + b"K\x01" + b"\x85" * 10**5 + b"\x86.",
        b"\x80\x02}K\x01" + b"\x85" * 10**5 + b"K\x01s.", b"\x80\x02]q\x00" + laugh + b".",
        b"\x80\x02" + b"2" * 100 + b".", b"\x80\x02.",
        b"\x80\x02N0.", b"I" + b"9" * 10**5 + b"\n.", b"L" + b"9" * 10**5 + b"L\n.",
        b"\x80\x02" + b"\x8a\xff" + b"\xff" * 255 + b".", b"\x80\xff.", b"\x80\x02h\xff.", b"g" + b"9" * 4000 + b"\n.",
        b"F1e999\n.", b"\x80\x02U\x07storageQ.", b"\x80\x02(U\x07storageNNNNtQ.", b"Pstorage\n.",
        b"\x80\x02" + b"Nq\x00" * 10**5 + b".",
    ]  # fmt: skip


def wrapped(rng, box, data):
    """A pickle as a torch file would hold it, or by itself."""
    how = pick(rng, ("bare", "zip", "zip", "legacy", "legacy keys"))
    if how == "zip":
        members = [("archive/data.pkl", data), ("archive/version", b"3\n"), ("archive/byteorder", b"little")]
        return archive(box.checkpoint, members)
    start = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    legacy = {"legacy": start + data + pickle.dumps([], 2), "legacy keys": start + pickle.dumps({}, 2) + data}
    return write(box.checkpoint, legacy.get(how, data))


@mutation("checkpoint")
def pickled_calls(rng, box):
    return wrapped(rng, box, pick(rng, payloads(box)))


@mutation("checkpoint")
def pickle_bombs(rng, box):
    return wrapped(rng, box, pick(rng, bombs()))


@mutation("checkpoint")
def pickled_noise(rng, box):
    return wrapped(rng, box, pick(rng, (b"\x80\x02", b"")) + rng.bytes(pick(rng, (4, 40, 400))))


@mutation("checkpoint")
def old_formats(rng, box):
    """What torch wrote before its archives, sound or not, and what it writes for programs."""
    how = pick(rng, ("legacy", "legacy flipped", "legacy cut", "legacy twice", "tar", "script"))
    if how == "tar":
        with tarfile.open(box.checkpoint, "w") as file:
            for name in ("sys_info", "pickle", "tensors", "storages", pick(rng, ("../outside/x", "x"))):
                info, data = tarfile.TarInfo(name), pick(rng, payloads(box))
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
        return box.checkpoint.name
    if how == "script":
        with torch.device("cpu"):
            traced = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
        torch.jit.save(traced, str(box.checkpoint))
        return box.checkpoint.name
    save(box, torch.load(box.checkpoint, weights_only=True), _use_new_zipfile_serialization=False)
    data = box.checkpoint.read_bytes()
    head = data.find(b"conv1.weight") + 4000
    return write(box.checkpoint, {
        "legacy": data, "legacy flipped": flip(rng, data, 0, min(pick(rng, (head, len(data))), len(data))),
        "legacy twice": data + data, "legacy cut": data[: int(rng.integers(len(data)))],
    }[how])  # fmt: skip


# ---------------------------------------------------------------------- tensors
def save(box, value, **options):
    """As a training script would, through a file object: `torch.save` names the records after the path."""
    with open(box.checkpoint, "wb") as file:
        torch.save(value, file, **options)
    return box.checkpoint.name


def tensors(function):
    """Registers `function(rng, state, key)`, which returns what to save instead of a dict of tensors."""

    @mutation("checkpoint")
    @functools.wraps(function)
    def mutate(rng, box):
        with torch.device("cpu"):  # Keras may have set another
            state = torch.load(box.checkpoint, weights_only=True)
            return save(box, function(rng, state, pick(rng, [key for key, value in state.items() if value.ndim])))

    return mutate


@tensors
def strides(rng, state, key):
    """Views of a few numbers that declare many."""
    one = torch.zeros(1)
    state[key] = pick(rng, (
        lambda: one.expand(1 << 40), lambda: one.expand(1 << 20, 1 << 20), lambda: one.expand(2**31, 2**31),
        lambda: one.expand(0, 2**40), lambda: state[key].reshape(-1)[:1].expand(state[key].shape),
        lambda: torch.zeros(10).as_strided((5, 5), (1, 1)), lambda: state[key].transpose(0, -1),
        lambda: one.expand(10**6, 64, 1, 1), lambda: torch.zeros(50)[40:].expand(10**4, 10),
    ))()  # fmt: skip
    return state


@tensors
def values(rng, state, key):
    """Things that are no dense tensors of finite numbers."""
    value = state[key].float()
    state[key] = pick(rng, (
        lambda: None, lambda: "text", lambda: 3, lambda: [1.0], lambda: {}, lambda: value * math.nan,
        lambda: value + math.inf, lambda: value.double() * 1e300, lambda: value.to_sparse(),
        lambda: value.to(torch.complex64), lambda: value.bool(), lambda: value.long(), lambda: value.half(),
        lambda: value.bfloat16(), lambda: torch.empty(value.shape, device="meta"), lambda: torch.nn.Parameter(value),
        lambda: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), lambda: value.to(torch.complex64).conj(),
        lambda: torch._neg_view(value), lambda: value.requires_grad_(), lambda: torch.nn.Buffer(value),
        lambda: value.to(torch.float8_e4m3fn), lambda: value.reshape(-1), lambda: value[None], lambda: value[:0],
        lambda: torch.zeros(()), lambda: -value.abs(),
        lambda: torch.device("cpu"), lambda: torch.float32, lambda: value.untyped_storage(), lambda: torch.Size([1]),
    ))()  # fmt: skip
    return state


@tensors
def names(rng, state, key):
    value = state[key]
    how = pick(rng, (
        "missing", "renamed", "keys", "prefix", "prefixes", "many", "gap", "twice", "resizer", "long", "fc", "depth",
    ))  # fmt: skip
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
        block = pick(rng, ("layer1.999999999", "layer9.0", "layer1.-1", "layer1.1"))
        state[f"{block}.conv1.weight"] = value
    elif how == "twice":
        state["module." + key] = value
    elif how == "resizer":
        state[pick(rng, ("resizer.conv3.weight", "avgpool.0.conv3.weight", "resizer.x", "avgpool.0."))] = value
    elif how == "long":
        state["fc." + "x" * 10**6] = value
    elif how == "fc":
        state["fc.weight"] = pick(rng, (None, value, Ellipsis if rng.random() < 0.1 else "x"))
    elif how == "depth":
        for _ in range(pick(rng, (1, 2, 3, 90))):
            state = {pick(rng, ("state_dict", "model")): state}
    return state


@tensors
def shapes(rng, state, key):
    """Sound tensors of a network that is not there."""
    shape = pick(rng, (
        (0, 3, 3, 3), (4, 0, 3, 3), (4, 3, 5, 5), (4, 3, 7, 7), (1, 1, 1, 1), (4, 3, 3), (), (10**5, 3, 3, 3),
        (4, 10**5, 3, 3), (4, 3, 3, 7), (8, 3, 3, 3),
    ))  # fmt: skip
    state[pick(rng, ("conv1.weight", "layer1.0.conv1.weight", "bn1.running_var"))] = torch.zeros(shape)
    return state
