"""PyTorch checkpoints to and from `encoders.ResNet`: the same tensors, under torchvision's names.

Names, shapes and values are NumPy's and Keras's business here; `checkpoints.py` opens and writes the files.
"""

import itertools
from pathlib import Path

import numpy as np
from keras import ops

from keras_issl import distribution, encoders
from keras_issl.zoo import layout, saving
from keras_issl.zoo.checkpoints import COUNTER, RESIZER, listed, read_checkpoint, require_torch, write_checkpoint

NORMALIZATION = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


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
    found = [f"{len(names)} {problem} ({listed(names)})" for problem, names in problems.items() if names]
    if problems["misshapen"]:
        first = problems["misshapen"][0]
        found.append(f"`{first}` has the shape {np.shape(state[first])} and should have {shapes[first]}")
    if found:
        raise ValueError(f"`state` should hold the tensors of {network}. Received: {'; '.join(found)}.")


def infer_config(state, *, image_size=None):
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
    >>> config = keras_issl.zoo.conversion.infer_config(keras_issl.zoo.conversion.state_dict(encoder))
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
            f"(64, 3, 7, 7) and `layer1.0.conv1.weight`. Received: {len(state)} names, {listed(state)}"
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
            "`load_state_dict`."
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
def load_state_dict(encoder, state):
    """Assigns torchvision's tensors to an encoder: all of them or, after one complaint, none.

    Args:
        encoder: An `encoders.ResNet`.
        state: A dict from torchvision's names to arrays of floating point: kernels (out, in, h, w), the rest
            (channels,). `*.num_batches_tracked` may be there and counts for nothing.

    Raises:
        ValueError: The encoder is no ResNet, or names are missing, are too many, or have other shapes.

    Example:

    >>> encoder, twin = (keras_issl.encoders.ResNet(18, width=8) for _ in range(2))
    >>> keras_issl.zoo.conversion.load_state_dict(twin, keras_issl.zoo.conversion.state_dict(encoder))
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
    require_torch()  # before the weights are copied in vain
    return write_checkpoint(state_dict(encoder), path)


def convert(checkpoint, folder, *, image_size=None, overwrite=False, name=None, metadata=None):
    """Makes a preset folder of a PyTorch checkpoint.

    Args:
        checkpoint: Path of the checkpoint, read as `read_checkpoint` does.
        folder: Path of the folder to make.
        image_size: Integer, the side in pixels of the images, as in `infer_config`.
        overwrite: Whether an existing preset folder may be replaced.
        name: String, the name of the encoder, `"resnet50"` and the like by default.
        metadata: A dict: what the preset says of itself, as in `save_preset`. For a network for 224 pixels it says by
            default that images are resized to 256 and cropped to 224.

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
    saving.check_folder(folder, overwrite)
    state, dropped = read_checkpoint(checkpoint)
    with distribution.dtype_scope("float32"):  # as exact as the file, whatever the policy of the day
        try:
            config = infer_config(state, image_size=image_size)
            with encoders.from_zeros():
                encoder = encoders.ResNet(**config, name=name)
            load_state_dict(encoder, state)
        except ValueError as error:
            raise ValueError(f"The checkpoint {str(checkpoint)!r} was not converted: {error}") from error
        if config["image_size"] == 224:
            metadata = {"preprocessing": {"resize": 256, "crop": 224}} | (metadata or {})
        provenance = {"converted_from": Path(checkpoint).name, "sha256": layout.sha256(checkpoint)}
        folder = saving.save_preset(encoder, folder, overwrite=overwrite, provenance=provenance, metadata=metadata)
    return folder, dropped
