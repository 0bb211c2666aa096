"""keras-hub: a plain ResNet written as a preset folder that `keras_hub.models.Backbone.from_preset` reads.

```
config.json            keras-hub's ResNetBackbone and its arguments
image_converter.json   the encoder's normalisation, for `keras_hub.layers.ImageConverter.from_preset`
model.weights.h5       the weights, at the paths that keras-hub looks them up
metadata.json          what keras-hub records, and under `keras_issl` what this library does
README.md              a card whose code runs with keras-hub alone
```

Writing needs no keras-hub: the paths of a weights file follow from the classes and the order of the layers, so a
network of plain Keras layers in keras-hub's order writes a file that keras-hub reads. The other way round, a backbone
of keras-hub is an encoder through `encoders.Adapter`.
"""

import re
from pathlib import Path

import keras

from keras_issl import encoders
from keras_issl.files import write_json
from keras_issl.zoo import card_tables, cards, hub, strict
from keras_issl.zoo.format import check_types
from keras_issl.zoo.layout import CARD, CONFIG, METADATA, OPTIONAL, REQUIRED, WEIGHTS, sha256
from keras_issl.zoo.markdown import escaped, fence, paragraph, quoted, section
from keras_issl.zoo.saving import whole_folder

CONVERTER = "image_converter.json"
FILES = {CONFIG, CONVERTER, METADATA, CARD, WEIGHTS}
EXPORT = "keras_issl"  # what metadata.json calls the entry that an export is known by
LAYOUT = "0.32.0"  # the version of keras-hub whose files these are
WIDTH = 64  # of the first stage: its ResNetBackbone takes no other
LIMITS = (
    "For features of images: probing, retrieval, clustering, a start for fine-tuning. It is not a classifier, and it "
    "has not been tested for decisions about people. keras-hub loads what it finds; metadata.json records the SHA-256 "
    "of each file."
)
UNVERIFIED = "**Not verified.** Figures on this card are what their sources say, not measured on these files."


def export_keras_hub(encoder, folder, *, name=None, address=None, metadata=None, overwrite=False):
    """Writes a plain ResNet as a preset folder of keras-hub, all of it or nothing. keras-hub itself is not needed.

    There, `keras_hub.layers.ImageConverter.from_preset(folder)`, then `keras_hub.models.Backbone.from_preset(folder)`,
    then a global average pool give the encoder's features. Weights are written in float32.

    Args:
        encoder: An `encoders.ResNet` with the ImageNet stem, `width=64` and no wider representation: `ResNet(50)`,
            18, 34, 101, or other `blocks`.
        folder: Path of the folder to make.
        name: The name on its card; by default the folder's. With an `address` the card has the repository's.
        address: Where it is going to be published, `"hf://org/name"`: the card's code then loads it from there.
        metadata: A dict with any entries of a preset's metadata, such as `license`
            (`{"id": "mit", "evidence": "..."}`), `description`, `citation`, `results`: the card says them.
            `keras_issl.zoo.read_metadata(preset)` gives all that a preset says of itself.
        overwrite: Whether an earlier export may be replaced. A card that somebody changed is kept.

    Returns:
        The folder, a `pathlib.Path`.

    Raises:
        ValueError: keras-hub cannot express the encoder; or the folder exists and `overwrite` is false, or it
            holds anything but an export; or `address` or `metadata` are not what they should be.

    Example:

    >>> encoder = keras_issl.encoders.ResNet(18)
    >>> folder = keras_issl.zoo.export_keras_hub(encoder, "for_keras_hub", metadata={"license": {"id": "cc-by-4.0"}})
    """
    given = Path(folder)
    folder = given.resolve()  # a link keeps pointing to where it points
    blocks, bottleneck = _architecture(encoder)
    described = {"recipe": None, "results": [], "provenance": {}, **_checked(metadata or {})}
    described |= {"name": name or folder.name, "feature_dim": encoders.feature_dim(encoder)}
    if address is not None and hub.parse(address).revision is not None:
        raise ValueError(f"`address` should be without a revision: keras-hub reads none. Received: {address!r}")
    _check_folder(folder, overwrite)
    with whole_folder(folder) as temporary:
        network = _network(blocks, bottleneck, encoder.channels)
        for layer in network.layers:
            if layer.weights:
                layer.set_weights(encoder.get_layer(_our_name(layer.name)).get_weights())
        network.save_weights(temporary / WEIGHTS)
        write_json(temporary / CONFIG, _backbone(blocks, bottleneck, encoder.channels))
        write_json(temporary / CONVERTER, _converter(encoder))
        described["parameters"] = network.count_params()
        users = _users_card(folder)
        (temporary / CARD).write_text(users or _card(described, encoder, address), encoding="utf-8")
        write_json(temporary / METADATA, _metadata(temporary, described, users is None))
    return given


# ---------------------------------------------------------------------- the network
def _architecture(encoder):
    """(blocks of each stage, whether they are bottlenecks), or a `ValueError` that names what keras-hub lacks."""
    if type(encoder) is not encoders.ResNet:
        way_out = "share it with `keras_issl.save_preset`, and load it with `keras_issl.from_preset`."
        if isinstance(encoder, encoders.Adapter) and hasattr(encoder.model, "save_to_preset"):
            way_out = "the model inside writes itself, with `encoder.model.save_to_preset(folder)`."
        raise ValueError(f"`encoder` should be an encoders.ResNet. Received: {encoder!r}. For others, {way_out}")
    config, lacking = encoder.get_config(), []
    if encoder.get_layer("conv1").kernel_size != (7, 7):
        lacking.append(f"the stem for small images (stem={config['stem']!r}, image_size={config['image_size']})")
    if config["width"] != WIDTH:
        lacking.append(f"a first stage of width={config['width']}")
    if "resizer_conv1" in {layer.name for layer in encoder.layers}:
        lacking.append(f"the wider representation (feature_dim={config['feature_dim']})")
    if lacking:
        raise ValueError(
            f"`encoder` should be a plain ResNet: stem='imagenet', width={WIDTH}, feature_dim=None. Received what "
            f"keras-hub's ResNetBackbone cannot express: {', '.join(lacking)}. Share it with `keras_issl.save_preset`, "
            "and load it with `keras_issl.from_preset`, on every backend."
        )
    blocks, deep = encoders.VARIANTS.get(config["variant"], (config["blocks"], False))
    return blocks, deep if config["bottleneck"] is None else bool(config["bottleneck"])


def _network(blocks, bottleneck, channels):
    """keras-hub's ResNetBackbone in plain Keras layers: its classes and names, in its order."""
    options = {"data_format": "channels_last", "dtype": "float32"}

    def conv_bn(x, filters, size, stride, name):
        """Convolution and batch normalisation, padded alike on all sides."""
        if stride > 1 and size > 1:
            x = keras.layers.ZeroPadding2D(size // 2, name=f"{name}_pad", **options)(x)
        padding = "same" if size > 1 and stride == 1 else "valid"
        plain = {"use_bias": False, "kernel_initializer": "zeros", "name": f"{name}_conv"}
        x = keras.layers.Conv2D(filters, size, strides=stride, padding=padding, **plain, **options)(x)
        return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn", dtype="float32")(x)

    def relu(x, name):
        return keras.layers.Activation("relu", name=name, dtype="float32")(x)

    images = keras.Input((None, None, channels), name="input_layer")  # a name without a counter: equal files
    x = relu(conv_bn(images, WIDTH, 7, 2, "conv1"), "conv1_relu")  # (B, H/2, W/2, 64)
    x = keras.layers.ZeroPadding2D(1, name="pool1_pad", **options)(x)  # after a ReLU zeros never win, as -inf
    x = keras.layers.MaxPooling2D(3, strides=2, name="pool1_pool", **options)(x)  # (B, H/4, W/4, 64)
    for stage, depth in enumerate(blocks):
        for block in range(depth):
            name, width, stride = f"stack{stage}_block{block}", WIDTH * 2**stage, 2 if stage and not block else 1
            out = width * encoders.EXPANSION if bottleneck else width
            plan = ((width, 1, 1), (width, 3, stride), (out, 1, 1)) if bottleneck else ((width, 3, stride), (out, 3, 1))
            y = x
            for i, (filters, size, step) in enumerate(plan, 1):
                y = conv_bn(y, filters, size, step, f"{name}_{i}")
                y = relu(y, f"{name}_{i}_relu") if i < len(plan) else y
            if stride != 1 or x.shape[-1] != out:
                x = conv_bn(x, out, 1, stride, f"{name}_0")
            x = relu(keras.layers.Add(name=f"{name}_add", dtype="float32")([x, y]), f"{name}_out")
    return keras.Model(images, x, name="res_net_backbone")  # (B, h, w, D)


def _our_name(name):
    """`encoders.ResNet`'s name of a layer: stack0_block1_2_conv -> layer1_1_conv2."""
    if name.startswith("conv1_"):
        return {"conv1_conv": "conv1", "conv1_bn": "bn1"}[name]
    stage, block, number, kind = re.fullmatch(r"stack(\d+)_block(\d+)_(\d)_(conv|bn)", name).groups()
    ours = f"{kind}{number}" if number != "0" else {"conv": "downsample_0", "bn": "downsample_1"}[kind]
    return f"layer{int(stage) + 1}_{block}_{ours}"


# ---------------------------------------------------------------------- the files
def _serialized(class_name, module, **config):
    """An object as Keras serialises it."""
    dtype = {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "float32"}, "registered_name": None}
    return {
        "module": f"keras_hub.src.models.resnet.{module}",
        "class_name": class_name,
        "config": {"name": module.replace("resnet", "res_net"), "trainable": True, "dtype": dtype, **config},
        "registered_name": f"keras_hub>{class_name}",
    }


def _backbone(blocks, bottleneck, channels):
    stages = range(len(blocks))
    return _serialized(
        "ResNetBackbone",
        "resnet_backbone",
        input_conv_filters=[WIDTH],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[WIDTH * 2**stage for stage in stages],
        stackwise_num_blocks=list(blocks),
        stackwise_num_strides=[2 if stage else 1 for stage in stages],
        block_type="bottleneck_block" if bottleneck else "basic_block",
        use_pre_activation=False,
        image_shape=[None, None, channels],
    )


def _converter(encoder):
    """What takes images in [0, 255] to (x / 255 - mean) / std, of any size: x * scale + offset."""
    mean, std = (encoder.get_config()[key] for key in ("mean", "std"))
    return _serialized(
        "ResNetImageConverter",
        "resnet_image_converter",
        image_size=None,
        scale=[1 / (255 * s) for s in std],
        offset=[-m / s for m, s in zip(mean, std, strict=True)],
        interpolation="bilinear",
        antialias=False,
        crop_to_aspect_ratio=True,
        pad_to_aspect_ratio=False,
        bounding_box_format="yxyx",
    )


def _metadata(folder, described, card_is_ours):
    """What keras-hub records of a preset; and what an export is known by, as `save_preset` records it."""
    from keras_issl import __version__

    names = {path.name for path in folder.iterdir()} - (set() if card_is_ours else {CARD})
    files = {name: {"sha256": sha256(folder / name), "bytes": (folder / name).stat().st_size} for name in names}
    return {
        "keras_version": keras.__version__,
        "keras_hub_version": LAYOUT,
        "parameter_count": described["parameters"],
        "tasks": ["ImageClassifier"],
        EXPORT: {"version": __version__, "name": described["name"], "files": files},
    }


def _checked(metadata):
    """Some entries of a preset's metadata, or all."""
    known = REQUIRED | OPTIONAL
    if unknown := sorted(set(metadata) - set(known)):
        raise ValueError(f"`metadata` may hold the entries {sorted(known)} of a preset. Received: {unknown}")
    check_types("`metadata`", metadata)
    return metadata


def _check_folder(folder, overwrite):
    """Raises a `ValueError` unless an export can be written to `folder` without a loss to its owner."""
    if not folder.exists():
        return
    if not overwrite:
        raise ValueError(
            f"`folder` should not exist yet. Received: {str(folder)!r}. Pass overwrite=True to replace the export."
        )
    found = {path.name for path in folder.iterdir()} - {".DS_Store"} if folder.is_dir() else {"a file of that name"}
    if found and (found - FILES or _recorded(folder) is None):
        raise ValueError(
            f"`folder` holds something else than an export for keras-hub, so it is left alone. Received: "
            f"{str(folder)!r} with {sorted(found - FILES or found)[:5]}. Choose another folder."
        )


def _recorded(folder):
    """What an export says of its files; `None` where there is no export of ours."""
    try:
        return strict.read_json(folder / METADATA)[EXPORT]["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _users_card(folder):
    """The card of the export that is replaced, if somebody wrote or changed it; else `None`."""
    path, entry = folder / CARD, (_recorded(folder) or {}).get(CARD, {})
    return path.read_text(encoding="utf-8") if path.is_file() and sha256(path) != entry.get("sha256") else None


# ---------------------------------------------------------------------- the card
def _card(described, encoder, address):
    """The card: what the Hub reads, code that runs with keras-hub alone, and what is known of the encoder."""
    repo = hub.parse(address).repo if address else None
    variant, width = encoder.get_config()["variant"], described["feature_dim"]
    kind = f"ResNet-{variant}" if variant else "ResNet"
    about, note = (paragraph(described.get(key)) for key in ("description", "note"))
    unverified = UNVERIFIED if described.get("verified") is False else ""
    sections = [
        f"# {escaped(cards.title(described, repo))}",
        about or f"An encoder of images, trained without labels by keras_issl: a {kind} with {width} features.",
        cards.facts(described, "the average of the last maps over the pixels"),
        section("Load it", *_usage(described, encoder, address)),
        section("How it was trained", *cards.training(described)),
        section("Results", card_tables.results_table(described["results"])),
        section("Limits", LIMITS, unverified, note),
        section("Licence", cards.licence_text(described)),
        section("Citation", fence(described["citation"], "bibtex") if "citation" in described else ""),
    ]
    front = cards.front_matter(described, repo, library="keras-hub")
    text = front + "\n" + "\n\n".join(part for part in sections if part) + "\n"
    return text.encode("utf-8", "replace").decode("utf-8")  # a file name may hold lone surrogates


def _usage(described, encoder, address):
    """The blocks of the section that says how keras-hub loads it."""
    channels, preset = encoder.channels, address or f"path/to/{described['name']}"
    size = cards.image_size(described) or 224
    kind = "RGB, 0…255" if channels == 3 else "0…255"
    code = f"""
import keras
import keras_hub
import numpy as np

preset = {quoted(preset)}
converter = keras_hub.layers.ImageConverter.from_preset(preset)  # normalises
backbone = keras_hub.models.Backbone.from_preset(preset)
encoder = keras.Sequential([converter, backbone, keras.layers.GlobalAveragePooling2D()])

images = np.random.randint(0, 256, (2, {size}, {size}, {channels}))  # yours: {kind}, of any size
features = encoder.predict(images)  # (2, {described["feature_dim"]})
"""
    after = (
        "It needs `pip install keras-hub` and one of TensorFlow, JAX and PyTorch. "
        "`keras_hub.models.ImageClassifier.from_preset(preset, num_classes=…)` puts a classifier on it for fine-tuning."
    )
    return fence(code, "python"), after
