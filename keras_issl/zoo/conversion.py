"""PyTorch checkpoints to and from `encoders.ResNet`: the same tensors, under torchvision's names.

The only room beside `distribution.py` that imports a backend, and only to open or write a torch file: names,
shapes and values are NumPy's business. A checkpoint is data, never code: nothing a file asks for is run.
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
from keras import ops

from keras_issl import distribution, encoders
from keras_issl.zoo import format as preset_format

WRAPPERS = ("state_dict", "model")  # keys under which training scripts keep the tensors
PREFIXES = ("module.", "backbone.", "encoder.")  # names of what the encoder was a part of
CLASSIFIER = "fc."
COUNTER = ".num_batches_tracked"  # how often torch updated the statistics; nothing depends on it
RESIZER, UNRELEASED_RESIZER = "resizer.", "avgpool.0."  # the wider block: as released, and in the authors' network
NORMALIZATION = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
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
        `*.num_batches_tracked` go without a word.

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


def _listed(names, limit=5):
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
            raise _refused(path, f"it holds several dictionaries, {_listed(found)}. Save the one you mean by itself")
        value = value[found[0]] if found else value
    if not isinstance(value, dict) or not value:
        raise _refused(path, f"it holds no dictionary of tensors, but a {type(value).__name__}")
    if not all(isinstance(key, str) for key in value):
        raise _refused(path, f"its keys should be strings: {_listed(k for k in value if not isinstance(k, str))}")
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
            raise _refused(path, f"{_listed([renamed[name], key])} are both {_shown(name)}")
        renamed[name] = key
    return renamed


# ---------------------------------------------------------------------- architecture
def _modules(blocks, bottleneck, width, feature_dim, kernel, channels):
    """Modules in torchvision's order: (name, kernel shape) of a convolution, (name, (channels,)) of a normalisation.

    `encoders.ResNet` gives its layers the same names, with underscores for the dots.
    """
    yield from (("conv1", (width, channels, kernel, kernel)), ("bn1", (width,)))
    inputs = width
    for stage, depth in enumerate(blocks):
        inner = width * 2**stage
        outputs = inner * encoders.EXPANSION if bottleneck else inner
        plan = ((inner, 1), (inner, 3), (outputs, 1)) if bottleneck else ((inner, 3), (inner, 3))
        for block in range(depth):
            name, c = f"layer{stage + 1}.{block}", inputs
            for i, (out, size) in enumerate(plan, 1):
                yield from ((f"{name}.conv{i}", (out, c, size, size)), (f"{name}.bn{i}", (out,)))
                c = out
            if not block and (stage or inputs != outputs):
                yield from ((f"{name}.downsample.0", (outputs, inputs, 1, 1)), (f"{name}.downsample.1", (outputs,)))
            inputs = outputs
    if feature_dim not in (None, inputs):
        c = inputs
        for i, (out, size) in enumerate(
            ((encoders.RESIZER_WIDTH, 1), (encoders.RESIZER_WIDTH, 3), (feature_dim, 1)), 1
        ):
            yield from ((f"{RESIZER}conv{i}", (out, c, size, size)), (f"{RESIZER}bn{i}", (out,)))
            c = out


def _shapes(modules):
    """torchvision's names -> shapes, of the tensors that have weights or statistics."""
    shapes = {}
    for module, shape in modules:
        parts = ("weight",) if len(shape) == 4 else NORMALIZATION
        shapes.update({f"{module}.{part}": shape for part in parts})
    return shapes


def _require(state, shapes, network):
    """Names all that keeps `state` from being the tensors of a network, at once."""
    problems = {
        "missing": [name for name in shapes if name not in state],
        "extra": [name for name in state if name not in shapes],
        "misshapen": [n for n, shape in shapes.items() if n in state and np.shape(state[n]) != shape],
        "not floating point": [n for n in shapes if n in state and np.asarray(state[n]).dtype.kind != "f"],
    }
    found = [f"{len(names)} {problem} ({_listed(names)})" for problem, names in problems.items() if names]
    if problems["misshapen"]:
        first = problems["misshapen"][0]
        found.append(f"`{first}` has the shape {np.shape(state[first])} and should have {shapes[first]}")
    if found:
        raise ValueError(f"`state` should hold the tensors of {network}. Received: {'; '.join(found)}.")


def config_of(state, *, image_size=None):
    """The `encoders.ResNet` that tensors belong to, read off their names and shapes, every one of which is checked.

    Args:
        state: A dict from torchvision's names to arrays, as `read_checkpoint` returns it.
        image_size: Integer, the side in pixels of the images it is meant for. A first convolution of 7x7 pixels
            means 224 by default; one of 3x3 needs it, because no tensor shows whether a max-pool follows
            (`encoders.ResNet`: none under 50 pixels). The stem `"strided"`, which looks the same, is never guessed.

    Returns:
        A dict of arguments: `variant`, or `blocks` and `bottleneck`; `image_size`, `width`, `feature_dim`, `stem`
        and `channels`. Mean and standard deviation are in no checkpoint: `encoders.ResNet` takes ImageNet's.

    Raises:
        ValueError: They are not the tensors of a ResNet, or `image_size` is missing or contradicts them.

    Example:

    >>> encoder = keras_issl.encoders.ResNet(18, width=8, feature_dim=256)
    >>> config = keras_issl.zoo.conversion.config_of(keras_issl.zoo.conversion.state_dict(encoder))
    >>> config["variant"], config["width"], config["feature_dim"]
    (18, 8, 256)
    """
    if image_size is not None and (isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1):
        raise ValueError(f"`image_size` should be a positive integer. Received: {image_size!r}")
    state = {name: value for name, value in state.items() if not name.endswith(COUNTER)}
    shape = np.shape(state.get("conv1.weight", 0))
    if len(shape) != 4 or min(shape) < 1 or "layer1.0.conv1.weight" not in state:
        raise ValueError(
            "`state` should hold the tensors of a ResNet under torchvision's names, such as `conv1.weight` of shape "
            f"(64, 3, 7, 7) and `layer1.0.conv1.weight`. Received: {len(state)} names, {_listed(state)}"
            + (f", with `conv1.weight` of shape {shape}." if shape else ".")
        )
    width, channels, kernel = shape[:3]
    if kernel == 7:
        image_size, stem = image_size or 224, "imagenet"
    elif kernel != 3:
        raise ValueError(f"`conv1.weight` should be 7x7 or 3x3 pixels large. Received: shape {shape}")
    elif image_size is None or image_size >= 100:
        raise ValueError(
            "`image_size` should be under 100 for these tensors: the first convolution is 3x3, and the side in pixels "
            "of the images decides whether a max-pool follows it (none under 50 pixels), which no tensor shows. "
            f"Received: image_size={image_size}. If neither is so, build the `encoders.ResNet` yourself and use "
            "`load_state`."
        )
    else:
        stem = "cifar" if image_size < 50 else "small"
    blocks = []
    while f"layer{len(blocks) + 1}.0.conv1.weight" in state:
        stage = len(blocks) + 1
        blocks.append(next(i for i in itertools.count() if f"layer{stage}.{i}.conv1.weight" not in state))
    blocks, bottleneck = tuple(blocks), "layer1.0.conv3.weight" in state
    feature_dim = None
    if any(name.startswith(RESIZER) for name in state):
        last = np.shape(state.get(f"{RESIZER}conv3.weight", 0))
        feature_dim = int(last[0]) if last else 0
        natural = width * 2 ** (len(blocks) - 1) * (encoders.EXPANSION if bottleneck else 1)
        if feature_dim in (0, natural):
            raise ValueError(
                f"`{RESIZER}conv3.weight` should widen the {natural} channels of the last stage to another number. "
                f"Received: shape {last if last else None}"
            )
    modules = _modules(blocks, bottleneck, width, feature_dim, kernel, channels)
    known = [variant for variant, layout in encoders.VARIANTS.items() if layout == (blocks, bottleneck)]
    network = f"ResNet({known[0]})" if known else f"a ResNet of {blocks} blocks"
    _require(state, _shapes(modules), network)
    depth = {"variant": known[0]} if known else {"blocks": blocks, "bottleneck": bottleneck}
    sizes = {"image_size": image_size, "width": int(width), "feature_dim": feature_dim}
    return {**depth, **sizes, "stem": stem, "channels": int(channels)}


def _modules_of(encoder):
    if not isinstance(encoder, encoders.ResNet):
        raise ValueError(
            f"`encoder` should be a `keras_issl.encoders.ResNet`. Received: {type(encoder).__name__}. torchvision has "
            "no names for other models; keep them with `keras_issl.save_preset`."
        )
    config = encoder.get_config()
    blocks, bottleneck = encoders.VARIANTS.get(config["variant"], (config["blocks"], False))
    if config["bottleneck"] is not None:
        bottleneck = config["bottleneck"]
    kernel = encoder.get_layer("conv1").kernel_size[0]
    return list(_modules(blocks, bottleneck, config["width"], config["feature_dim"], kernel, config["channels"]))


def _variable(encoder, name):
    """The Keras weight of a torchvision name."""
    module, _, part = name.rpartition(".")
    layer = encoder.get_layer(module.replace(".", "_"))
    return layer.kernel if hasattr(layer, "kernel") else getattr(layer, NORMALIZATION[part])


# ---------------------------------------------------------------------- weights
def load_state(encoder, state):
    """Assigns torchvision's tensors to an encoder: all of them or, after one complaint, none.

    Args:
        encoder: An `encoders.ResNet`.
        state: A dict from torchvision's names to arrays of floating point: kernels (out, in, h, w), the rest
            (channels,). `*.num_batches_tracked` may be there and counts for nothing.

    Raises:
        ValueError: The encoder is no ResNet, or names are missing, are too many, or have other shapes.

    Example:

    >>> encoder, twin = (keras_issl.encoders.ResNet(18, width=8) for _ in range(2))
    >>> keras_issl.zoo.conversion.load_state(twin, keras_issl.zoo.conversion.state_dict(encoder))
    """
    shapes = _shapes(_modules_of(encoder))
    state = {name: value for name, value in state.items() if not name.endswith(COUNTER)}
    _require(state, shapes, f"the encoder {encoder.name!r}")
    for name, shape in shapes.items():
        value = np.asarray(state[name], "float32")
        value = value.transpose(2, 3, 1, 0) if len(shape) == 4 else value  # (out, in, h, w) -> (h, w, in, out)
        _variable(encoder, name).assign(np.array(value, order="C"))  # a copy: JAX may keep the memory it is given


def state_dict(encoder):
    """An encoder's weights under torchvision's names, in torchvision's order.

    Args:
        encoder: An `encoders.ResNet`.

    Returns:
        A dict of NumPy arrays, float32 but for the counters `*.num_batches_tracked` (int64, 0), which torch expects.
        `torchvision.models.resnet50().load_state_dict(..., strict=False)` takes them as tensors; it lacks `fc`. A
        wider representation is under `resizer.`, as in the released files.

    Raises:
        ValueError: The encoder is no `encoders.ResNet`.

    Example:

    >>> list(keras_issl.zoo.conversion.state_dict(keras_issl.encoders.ResNet(18, width=8)))[:2]
    ['conv1.weight', 'bn1.weight']
    """
    state = {}
    for module, shape in _modules_of(encoder):
        for name in _shapes([(module, shape)]):
            value = ops.convert_to_numpy(ops.cast(_variable(encoder, name), "float32"))
            value = value.transpose(3, 2, 0, 1) if len(shape) == 4 else value  # (h, w, in, out) -> (out, in, h, w)
            state[name] = np.array(value, order="C")
        if len(shape) == 1:
            state[module + COUNTER] = np.zeros((), "int64")
    return state


def save_checkpoint(encoder, path):
    """Writes an encoder as a PyTorch checkpoint that torchvision's and the authors' code can read.

    Args:
        encoder: An `encoders.ResNet`.
        path: Path of the file to make.

    Returns:
        The path, a `pathlib.Path`.

    Raises:
        ImportError: PyTorch is not installed.
        ValueError: The path exists, or the encoder is no `encoders.ResNet`.

    Example:

    >>> encoder = keras_issl.encoders.ResNet(18, width=8)
    >>> path = keras_issl.zoo.conversion.save_checkpoint(encoder, "encoder.pt")
    """
    torch, path = require_torch(), Path(path)
    if os.path.lexists(path):
        raise ValueError(f"`path` should not exist yet. Received: {str(path)!r}. Choose another, or remove it.")
    tensors = {name: torch.from_numpy(value) for name, value in state_dict(encoder).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(tensors, file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def convert(checkpoint, folder, *, image_size=None, overwrite=False, name=None, about=None):
    """Makes a preset folder of a PyTorch checkpoint.

    Args:
        checkpoint: Path of the checkpoint, read as `read_checkpoint` does.
        folder: Path of the folder to make.
        image_size: Integer, the side in pixels of the images, as in `config_of`.
        overwrite: Whether an existing preset folder may be replaced.
        name: String, the name of the encoder, `"resnet50"` and the like by default.
        about: A dict: what the preset says of itself, as in `save_preset`.

    Returns:
        A pair: the folder, a `pathlib.Path`, and the list of what was left out of the checkpoint and why.

    Raises:
        ImportError: PyTorch is not installed.
        ValueError: The folder is taken, which is checked first, or the checkpoint is not one of a ResNet. Nothing
            is written then.

    Example:

    >>> encoder = keras_issl.encoders.ResNet(18, width=8)
    >>> path = keras_issl.zoo.conversion.save_checkpoint(encoder, "to_convert.pt")
    >>> folder, dropped = keras_issl.zoo.conversion.convert(path, "converted")
    >>> encoder = keras_issl.from_preset("converted")
    """
    preset_format.check_folder(folder, overwrite)
    state, dropped = read_checkpoint(checkpoint)
    config = config_of(state, image_size=image_size)
    with distribution.dtype_scope("float32"):  # as exact as the file, whatever the policy of the day
        with encoders.from_zeros():
            encoder = encoders.ResNet(**config, name=name)
        load_state(encoder, state)
        provenance = {"converted_from": Path(checkpoint).name, "sha256": preset_format.sha256(checkpoint)}
        folder = preset_format.save_preset(encoder, folder, overwrite=overwrite, provenance=provenance, about=about)
    return folder, dropped
