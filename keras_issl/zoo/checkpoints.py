"""PyTorch checkpoint files: whether one is safe, and what tensors are in it.

The only room beside `distribution` that imports a backend, and only to open or write a torch file: what goes in
and comes out are NumPy arrays. A checkpoint is data, never code: nothing a file asks for is run.
"""

import io
import itertools
import os
import pickletools
import re
import warnings
import zipfile
from pathlib import Path

import numpy as np

WRAPPERS = ("state_dict", "model")  # keys under which training scripts keep the tensors
PREFIXES = ("module.", "backbone.", "encoder.")  # names of what the encoder was a part of
CLASSIFIER = "fc."
COUNTER = ".num_batches_tracked"  # how often torch updated the statistics; nothing depends on it
RESIZER, UNRELEASED_RESIZER = "resizer.", "avgpool.0."  # the wider block: as released, and in the authors' network
ZIP, LEGACY = b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # first bytes: of torch.save, before 1.6
# All that a file of tensors and settings asks for. torch's own list also has constructors that fill any amount of
# memory from a few bytes (bytearray, torch.FloatTensor, chains of codecs); it still applies after this one.
PLAIN = re.compile(
    r"collections\.(OrderedDict|Counter)|(builtins|__builtin__)\.set|torch\.nn\.parameter\.Parameter"
    r"|torch\._utils\._rebuild_\w+|torch\.serialization\._get_layout|torch\.storage\.UntypedStorage"
    r"|torch\.(Size|device|\w+Storage|bool|(b?float|u?int|complex|quint|qint|per_)\w+)"
)


def require_torch():
    """PyTorch, imported when a checkpoint is at hand and no sooner.

    Returns:
        The module `torch`.

    Raises:
        ImportError: PyTorch is not installed; the message says what else one can do.
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "PyTorch is needed only to read or write torch checkpoints, and it is not installed here. Install it with "
            "`pip install torch` (its CPU build will do), or convert the checkpoint once on another machine with "
            "`keras-issl convert CHECKPOINT FOLDER` and load the preset folder here with `keras_issl.from_preset`."
        ) from error
    return torch


# ---------------------------------------------------------------------- reading
def read_checkpoint(path):
    """Reads the tensors of a ResNet from a PyTorch file, under torchvision's names.

    A dictionary under `"state_dict"` or `"model"` is unwrapped, the prefixes `module.`, `backbone.` and `encoder.`
    go if every name has them (beside the classifier `fc`), and `avgpool.0.`, where the authors' network keeps the
    wider representation, becomes `resizer.`, as in the released files. No more memory is taken than the file is
    large: it is mapped, and tensors that declare more are refused. Checksums are checked, except in files from
    before PyTorch 1.6, which have none.

    Args:
        path: Path of a file that `torch.save` wrote.

    Returns:
        A pair. A dict from names to float32 NumPy arrays of their own memory, in the file's order: kernels
        (out, in, h, w), the rest (channels,). And a list of strings, what was left out and why; the counters
        `*.num_batches_tracked` are dropped silently.

    Raises:
        ImportError: PyTorch is not installed.
        ValueError: It is no such file, damaged, asks for anything but tensors, or a tensor is not dense, floating
            point and finite.

    Example:

    >>> encoder = keras_issl.encoders.ResNet(18, width=8)
    >>> path = keras_issl.zoo.conversion.save_checkpoint(encoder, "resnet18.pt")
    >>> state, dropped = keras_issl.zoo.conversion.read_checkpoint(path)
    >>> state["conv1.weight"].shape
    (8, 3, 7, 7)
    """
    torch, path = require_torch(), Path(path)
    tensors = _unwrapped(_load(torch, path), path)
    size, declared = path.stat().st_size, 0
    state, dropped = {}, []
    for name, key in _renamed(tensors, path).items():
        tensor = tensors.pop(key)  # so that what has been copied can be freed
        if name.startswith(CLASSIFIER):
            dropped.append(f"{name} (the classifier: an encoder ends with its pooled features)")
        elif not name.endswith(COUNTER):
            if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
                raise _refused(path, f"{_shown(key)} is no tensor but of type {type(tensor).__name__}")
            if tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.dtype not in (
                torch.float16, torch.bfloat16, torch.float32, torch.float64
            ):  # fmt: skip
                kind = f"{tensor.layout}, {tensor.dtype}, on the device {tensor.device.type!r}".replace("torch.", "")
                raise _refused(path, f"{_shown(key)} should be dense and floating point, and is {kind}")
            declared += tensor.numel() * tensor.element_size()
            if declared > size:  # a view may repeat its few numbers without end
                raise _refused(
                    path,
                    f"{_shown(key)} brings the tensors to {declared:,} bytes, which a file of {size:,} cannot hold",
                )
            array = np.array(tensor.detach().to(torch.float32).numpy(force=True), order="C")
            if not np.isfinite(array).all():
                raise _refused(path, f"{_shown(key)} holds numbers that are not finite in float32")
            if name.endswith("running_var") and array.size and array.min() < 0:
                raise _refused(path, f"{_shown(key)} holds negative variances")
            state[name] = array
    if not state:
        raise _refused(path, "there is no tensor of an encoder in it")
    return state, dropped


def _refused(path, why):
    return ValueError(f"`path` should be a PyTorch checkpoint, a file of tensors. Received: {str(path)!r}: {why}.")


def listed(names, limit=5):
    """The first few of many names, each shortened: a file may hold names of any length."""
    names = [repr(name)[:100] for name in itertools.islice(names, limit + 1)]
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def _shown(name):
    """One name, shortened, with nothing in it that a terminal would act upon."""
    return f"`{repr(name)[1:-1][:100]}`"


def _load(torch, path):
    """What is in a torch file, once it is known to be whole and to ask for nothing but tensors."""
    if not path.is_file():
        raise _refused(path, "there is no such file" if not path.exists() else "it is no file")
    try:
        with open(path, "rb") as file:
            start = file.read(len(LEGACY))
            file.seek(0)
            if start.startswith(ZIP):
                pickles = _records(path, file)
            elif start == LEGACY:
                pickles = [file] * 5  # magic number, protocol, system, tensors, keys of the storages
            elif start.startswith(b"\x80"):
                raise _refused(path, "it is a bare pickle, which may hold code, so nothing of it was run")
            else:
                raise _refused(path, "it does not begin like one")
            for pickle in pickles:
                _require_plain(pickle, path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters is raised
            # Mapped, a storage is a part of the file, never more; a file of the old format cannot be.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=start.startswith(ZIP))
    except ValueError as error:
        if str(error).startswith("`path`"):
            raise
        raise _damaged(path, error) from error
    except Exception as error:  # unpickling damaged bytes raises whatever the bytes say
        raise _damaged(path, error) from error


def _damaged(path, error):
    reason = (str(error).strip().splitlines() or [""])[0][:200]
    return _refused(path, f"it is damaged or was not written by `torch.save` ({type(error).__name__}: {reason})")


def _records(path, file):
    """The pickles of a zip archive, whose records are all whole and as large as they say."""
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        if any(r.compress_type != zipfile.ZIP_STORED for r in records):
            raise _refused(path, "it is a compressed archive, which `torch.save` does not write")
        if sum(r.file_size for r in records) > path.stat().st_size:
            raise _refused(path, "its records declare more bytes than the file has")
        if len({r.filename.lower() for r in records}) < len(records):
            raise _refused(path, "two of its records have one name")
        damaged = archive.testzip()  # torch itself does not look at the checksums
        if damaged is not None:
            raise _refused(path, f"it is damaged: the checksum of its record {damaged[:100]!r} is wrong")
        pickles = [io.BytesIO(archive.read(r)) for r in records if r.filename.lower().endswith("data.pkl")]
    if not pickles:
        raise _refused(path, "it is an archive without tensors")
    return pickles


def _require_plain(file, path):
    """Reads the operations of a pickle without carrying any out, and refuses all but those of plain tensors."""
    for operation, argument, _ in pickletools.genops(file):
        wanted = None
        if operation.name == "GLOBAL":
            wanted = argument.replace(" ", ".", 1)
        elif operation.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            wanted = str(argument or operation.name)
        if wanted is not None and not PLAIN.fullmatch(wanted):
            raise _refused(
                path,
                f"it asks for {_shown(wanted)}, which a file of tensors has no need of and which may be code. It was "
                "refused, and nothing of it was run. If you trust its author, load it where it was made and save its "
                "tensors alone, `torch.save(model.state_dict(), path)`",
            )


def _unwrapped(value, path):
    """The dictionary of tensors in what a training script may have saved."""
    for _ in range(len(WRAPPERS)):
        found = [key for key in WRAPPERS if isinstance(value, dict) and isinstance(value.get(key), dict)]
        if len(found) > 1:
            raise _refused(path, f"it holds several dictionaries, {listed(found)}. Save the one you mean by itself")
        value = value[found[0]] if found else value
    if not isinstance(value, dict) or not value:
        raise _refused(path, f"it holds no dictionary of tensors, but a {type(value).__name__}")
    kinds = {type(key).__name__ for key in value} - {"str"}  # not the keys: a nested one has no end when it is printed
    if kinds:
        raise _refused(path, f"its keys should be strings, and some are of the types {listed(sorted(kinds))}")
    return value


def _renamed(tensors, path):
    """torchvision's names -> the file's."""
    names = {key: key for key in tensors}  # the file's -> torchvision's

    def strip():
        for prefix in PREFIXES:
            inside = [n.startswith(prefix) for n in names.values() if not n.startswith(CLASSIFIER)]
            if inside and all(inside):
                names.update({key: n.removeprefix(prefix) for key, n in names.items()})
                return True
        return False

    while strip():
        pass
    kinds = [p for p in (RESIZER, UNRELEASED_RESIZER) if any(n.startswith(p) for n in names.values())]
    if len(kinds) > 1:
        raise _refused(path, f"the wider representation is there twice, under `{RESIZER}` and `{UNRELEASED_RESIZER}`")
    if kinds == [UNRELEASED_RESIZER]:
        length = len(UNRELEASED_RESIZER)
        names = {k: RESIZER + n[length:] if n.startswith(UNRELEASED_RESIZER) else n for k, n in names.items()}
    renamed = {}
    for key, name in names.items():
        if name in renamed:
            raise _refused(path, f"{listed([renamed[name], key])} are both {_shown(name)}")
        renamed[name] = key
    return renamed


# ---------------------------------------------------------------------- writing
def check_path(path):
    """Raises a `ValueError` if there is something at the path of a checkpoint that is to be written."""
    if os.path.lexists(path):
        raise ValueError(f"`path` should not exist yet. Received: {str(path)!r}. Choose another, or remove it.")


def write_checkpoint(state, path):
    """Writes arrays as a PyTorch file, whole or not at all.

    Args:
        state: A dict from names to NumPy arrays, as `conversion.state_dict` returns it.
        path: Path of the file to make; missing folders are made too.

    Returns:
        The path, a `pathlib.Path`.

    Raises:
        ImportError: PyTorch is not installed.
        ValueError: The path exists.

    Example:

    >>> state = {"conv1.weight": np.zeros((8, 3, 7, 7), "float32")}
    >>> path = keras_issl.zoo.checkpoints.write_checkpoint(state, "tensors.pt")
    """
    torch, path = require_torch(), Path(path)
    check_path(path)
    tensors = {name: torch.from_numpy(value) for name, value in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(tensors, file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
