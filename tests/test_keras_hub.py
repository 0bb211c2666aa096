"""keras-hub: what is written without it, and what it makes of that where it is installed."""

import hashlib
import json
import re
import shutil
import warnings
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import yaml
from hub_client import run
from hub_server import HubServer
from huggingface_hub import ModelCard

import keras_issl
from keras_issl import encoders
from keras_issl.encoders import NORMALIZATIONS, Adapter, ResNet
from keras_issl.zoo import keras_hub as interop
from keras_issl.zoo.keras_hub import export_keras_hub

PAGE = Path(__file__).parent.parent / "docs" / "keras-hub.md"
SMALL = {"blocks": (1, 1), "bottleneck": True}
LICENSE = {"license": {"id": "cc-by-4.0", "evidence": "we trained it"}}

# As keras-hub 0.32 writes a ResNetBackbone of these blocks, on Keras 3.15.
RECORDED = """\
conv2d conv1_conv (7, 7, 3, 64)
conv2d_1 stack0_block0_1_conv (1, 1, 64, 64)
conv2d_2 stack0_block0_2_conv (3, 3, 64, 64)
conv2d_3 stack0_block0_0_conv (1, 1, 64, 256)
conv2d_4 stack0_block0_3_conv (1, 1, 64, 256)
conv2d_5 stack1_block0_1_conv (1, 1, 256, 128)
conv2d_6 stack1_block0_2_conv (3, 3, 128, 128)
conv2d_7 stack1_block0_0_conv (1, 1, 256, 512)
conv2d_8 stack1_block0_3_conv (1, 1, 128, 512)
batch_normalization conv1_bn (64,)
batch_normalization_1 stack0_block0_1_bn (64,)
batch_normalization_2 stack0_block0_2_bn (64,)
batch_normalization_3 stack0_block0_0_bn (256,)
batch_normalization_4 stack0_block0_3_bn (256,)
batch_normalization_5 stack1_block0_1_bn (128,)
batch_normalization_6 stack1_block0_2_bn (128,)
batch_normalization_7 stack1_block0_0_bn (512,)
batch_normalization_8 stack1_block0_3_bn (512,)
"""
RECORDED_SHA256 = {  # of the sorted lines of `listing`, as keras-hub 0.32 writes these
    18: "8de6998530c2a2936709fc79cae28fb732bdcb02ab5ad1f72505877865e93a0b",
    50: "d7031e3c69c3678a453430ebacd95de56c3b26b6993834c37b36880d8ace30cc",
}
# Of the arrays of `filled(SMALL)`, the same on every backend.
ARRAYS_SHA256 = "65c75f41318d7c163d5f1ee3cc9a286a41c4fa9601933371fae6d47b4edeb966"


def filled(arguments, seed=0):
    """A ResNet none of whose weights is a default, the same on every backend."""
    encoder, rng = ResNet(**arguments), np.random.default_rng(seed)
    for weight in encoder.weights:
        kind = weight.path.rpartition("/")[2]
        value = rng.integers(-128, 129, weight.shape) / 128
        if kind == "kernel":
            value *= 2.0 ** np.round(np.log2((6 / np.prod(weight.shape[:3])) ** 0.5))
        weight.assign({"gamma": value / 2 + 1, "moving_variance": value / 2 + 1}.get(kind, value / 4))
    return encoder


def arrays(folder):
    """Path -> (name of the layer, array) of a weights file."""
    found = {}

    def visit(path, item):
        if isinstance(item, h5py.Dataset):
            found[path] = (item.parent.attrs["name"], item[()])

    with h5py.File(folder / "model.weights.h5") as file:
        file.visititems(visit)
    return found


def listing(folder):
    return sorted(f"{path} {name} {array.shape} {array.dtype}" for path, (name, array) in arrays(folder).items())


def digest(lines):
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read(path):
    return json.loads(path.read_text())


def snippet(text):
    """The Python of a card, which stands in one block."""
    (block,) = re.findall(r"^(`{3,})python\n(.*?)\n\1$", text, flags=re.S | re.M)
    return block[1]


def close(features, expected, tolerance=1e-5):
    np.testing.assert_allclose(features, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def pooled(maps):
    return np.asarray(maps).mean((1, 2))


# --------------------------------------------------------------------------------------------------------------
# Writing, without keras-hub
# --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        SMALL | NORMALIZATIONS["cifar10"],
        {"blocks": (2, 1), "dtype": "mixed_bfloat16"},
        {"blocks": (1,), "channels": 1, "mean": 0.3, "std": 0.2},
    ],
)
def test_the_files_describe_the_encoders_features(arguments, rng, tmp_path):
    """Plain Keras layers in keras-hub's order, the written weights and normalisation give what the encoder gives."""
    encoder = filled(arguments)
    folder = export_keras_hub(encoder, tmp_path / "export")
    described, converter = (read(folder / name)["config"] for name in ("config.json", "image_converter.json"))
    assert described["stackwise_num_blocks"] == list(arguments["blocks"])
    assert described["block_type"] == ("bottleneck_block" if "bottleneck" in arguments else "basic_block")
    assert described["image_shape"] == [None, None, encoder.channels]
    network = interop._network(arguments["blocks"], "bottleneck" in arguments, encoder.channels)
    network.load_weights(folder / "model.weights.h5")
    images = rng.integers(0, 256, (2, 66, 45, encoder.channels)).astype("uint8")
    maps = network.predict(images * np.float32(converter["scale"]) + np.float32(converter["offset"]), verbose=0)
    exact = ResNet(**{**arguments, "dtype": "float32"})
    exact.set_weights(encoder.get_weights())
    close(pooled(maps), exact.predict(images, verbose=0))


def test_paths_are_the_recorded_ones(tmp_path):
    folder = export_keras_hub(filled(SMALL), tmp_path / "export")
    expected = []
    for line in RECORDED.splitlines():
        path, rest = line.split(" ", 1)
        expected += [f"layers/{path}/vars/{i} {rest} float32" for i in range(4 if "_bn" in rest else 1)]
    assert listing(folder) == sorted(expected)


@pytest.mark.parametrize("variant", sorted(RECORDED_SHA256))
def test_paths_of_the_known_variants_are_the_recorded_ones(variant, tmp_path):
    with encoders.from_zeros():
        folder = export_keras_hub(ResNet(variant), tmp_path / "export")
    assert digest(listing(folder)) == RECORDED_SHA256[variant]
    shutil.rmtree(folder)


def test_weights_are_byte_for_byte_the_same_on_every_backend(tmp_path):
    encoder = filled(SMALL)
    encoder.trainable = False  # moves weights between lists, not their numbers
    written = arrays(export_keras_hub(encoder, tmp_path / "export"))
    ours = {weight.path: keras.ops.convert_to_numpy(weight) for weight in encoder.weights}
    kinds = {"batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"), "conv2d": ("kernel",)}
    total = hashlib.sha256()
    for path, (name, array) in sorted(written.items()):
        kind, number = re.fullmatch(r"layers/(.*?)(?:_\d+)?/vars/(\d)", path).groups()
        weight = f"{interop._our_name(name)}/{kinds[kind][int(number)]}"
        np.testing.assert_array_equal(array, ours.pop(weight))
        total.update(array.tobytes())
    assert not ours
    assert total.hexdigest() == ARRAYS_SHA256


def test_names_of_layers():
    names = {"conv1_bn": "bn1", "stack0_block1_2_conv": "layer1_1_conv2", "stack3_block0_0_bn": "layer4_0_downsample_1"}
    assert {name: interop._our_name(name) for name in names} == names


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"variant": 50, "image_size": 32}, ["stem='auto', image_size=32"]),
        ({"variant": 18, "image_size": 64}, ["the stem for small images"]),
        ({"variant": 18, "stem": "strided", "width": 16}, ["stem='strided'", "width=16"]),
        ({"variant": 18, "feature_dim": 1024}, ["feature_dim=1024"]),
    ],
)
def test_what_keras_hub_cannot_express_is_named(arguments, named, tmp_path):
    with encoders.from_zeros():
        encoder = ResNet(**arguments)
    with pytest.raises(ValueError, match="`encoder` should be a plain ResNet.*keras_issl.from_preset") as raised:
        export_keras_hub(encoder, tmp_path / "export")
    assert all(name in str(raised.value) for name in named)
    assert not list(tmp_path.iterdir())


def test_other_models_are_refused(tmp_path):
    class Mine(ResNet):
        pass

    images = keras.Input((None, None, 3))
    model = keras.Model(images, keras.layers.Conv2D(4, 3)(images))
    for encoder in (model, Adapter(model), Mine(blocks=(1,)), "resnet"):
        with pytest.raises(ValueError, match="`encoder` should be an encoders.ResNet.*save_preset"):
            export_keras_hub(encoder, tmp_path / "export")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"address": "me/model"}, "hf://"),
        ({"address": "hf://me/model@v1"}, "`address` should be without a revision"),
        ({"metadata": {"licence": {"id": "mit"}}}, r"`metadata` may hold .*\['licence'\]"),
        ({"metadata": {"license": "mit"}}, "`license` a value of type dict"),
    ],
)
def test_bad_arguments_write_nothing(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_keras_hub(ResNet(blocks=(1,)), tmp_path / "export", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_replaced_when_asked_and_only_an_export(tmp_path):
    encoder, folder = filled({"blocks": (1,)}), tmp_path / "deep" / "export"
    export_keras_hub(encoder, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="overwrite=True"):
        export_keras_hub(encoder, folder)
    export_keras_hub(encoder, folder, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before  # written alike again
    export_keras_hub(filled({"blocks": (1,)}, seed=1), folder, overwrite=True)
    assert (folder / "model.weights.h5").read_bytes() != before["model.weights.h5"]
    assert [path.name for path in folder.parent.iterdir()] == ["export"]  # nothing temporary stays

    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="left alone.*notes.txt"):
        export_keras_hub(encoder, folder, overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"

    preset = keras_issl.save_preset(ResNet(blocks=(1,), width=4, image_size=12), tmp_path / "preset")
    weights = (preset / "model.weights.h5").read_bytes()
    with pytest.raises(ValueError, match="something else than an export"):
        export_keras_hub(encoder, preset, overwrite=True)
    assert (preset / "model.weights.h5").read_bytes() == weights
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="a file of that name"):
        export_keras_hub(encoder, tmp_path / "file", overwrite=True)


def test_a_preset_that_keras_hub_saved_is_left_alone(tmp_path):
    encoder, folder = ResNet(blocks=(1,)), export_keras_hub(filled({"blocks": (1,)}), tmp_path / "export")
    metadata = read(folder / "metadata.json")
    del metadata["keras_issl"]  # what tells ours from keras-hub's own
    (folder / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="something else than an export"):
        export_keras_hub(encoder, folder, overwrite=True)


def test_a_users_card_outlives_the_export(tmp_path):
    encoder, folder = ResNet(blocks=(1,)), tmp_path / "export"
    export_keras_hub(encoder, folder)
    assert "README.md" in read(folder / "metadata.json")["keras_issl"]["files"]
    (folder / "README.md").write_text("# Mine\n")
    for _ in range(2):
        export_keras_hub(encoder, folder, metadata=LICENSE, overwrite=True)
        assert (folder / "README.md").read_text() == "# Mine\n"
        assert "README.md" not in read(folder / "metadata.json")["keras_issl"]["files"]


def test_what_fails_changes_nothing(tmp_path):
    class Broken:
        def __str__(self):
            raise RuntimeError("no words")

    encoder, folder = ResNet(blocks=(1,)), tmp_path / "export"
    export_keras_hub(encoder, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(RuntimeError, match="no words"):  # on the card, once the weights are written
        export_keras_hub(filled({"blocks": (1,)}), folder, metadata={"recipe": {"data": Broken()}}, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_every_file_is_recorded_with_its_hash(tmp_path):
    folder = export_keras_hub(ResNet(blocks=(1,)), tmp_path / "export", name="mine")
    metadata = read(folder / "metadata.json")
    assert metadata["parameter_count"] == ResNet(blocks=(1,)).count_params()
    own = metadata["keras_issl"]
    assert own["name"] == "mine" and set(own["files"]) == interop.FILES - {"metadata.json"}
    for name, entry in own["files"].items():
        content = (folder / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    assert {path.name for path in folder.iterdir()} == interop.FILES


def test_the_card_says_what_the_metadata_say(tmp_path):
    metadata = keras_issl.zoo.read_metadata("dissl_resnet50_dNone_e100_m2")
    folder = export_keras_hub(
        ResNet(blocks=(1,)), tmp_path / "export", name="x", address="hf://me/published", metadata=metadata
    )
    text = (folder / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    (index,) = front.pop("model-index")
    assert index["name"] == "published" and index["results"]
    assert front == {
        "license": "mit",
        "library_name": "keras-hub",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["keras", "self-supervised-learning", "dissl"],
        "datasets": ["imagenet-1k"],
    }
    data = ModelCard(text).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "keras-hub", "image-feature-extraction")
    assert "(2, 224, 224, 3)" in snippet(text)
    assert 'preset = "hf://me/published"' in snippet(text) and "keras_issl" not in snippet(text)
    said = (
        "# published\n",
        metadata["citation"],
        metadata["license"]["evidence"],
        "61.86",
        "resized to 256",
        "Not verified",
    )
    for part in said:
        assert part in text
    bare = (export_keras_hub(ResNet(blocks=(1,)), tmp_path / "bare") / "README.md").read_text()
    assert "\n# bare\n" in bare and "Not verified" not in bare
    run = {"recipe": {"augmentation_args": {"size": 32}}, "provenance": {"name": "digits", "fingerprint": "ab" * 32}}
    ours = (export_keras_hub(ResNet(blocks=(1,)), tmp_path / "run", metadata=run) / "README.md").read_text()
    assert "(2, 32, 32, 3)" in snippet(ours) and "32 × 32 pixels, as trained" in ours
    assert "| dataset | digits |" in ours and "| fingerprint | abababababab… |" in ours
    assert "license" not in yaml.safe_load(bare.split("---\n")[1]) and "No licence is recorded" in bare


@pytest.mark.parametrize("text", ["---\nlicense: gpl\n---", "```\nx", "'\"\\ {x: [1]}", "<b>\n# |", "\ud800 emoji 🙂"])
def test_no_string_breaks_the_card(text, tmp_path):
    metadata = {"description": text, "note": text, "citation": text, "license": {"id": text, "evidence": text}}
    metadata |= {"recipe": {text: text}, "results": [{"metric": text, "value": text}]}
    folder = export_keras_hub(ResNet(blocks=(1,)), tmp_path / "export", name=text, metadata=metadata)
    card = (folder / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["library_name"] == "keras-hub"
    compile(snippet(card), "card", "exec")


# --------------------------------------------------------------------------------------------------------------
# With keras-hub
# --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it imports
        return pytest.importorskip(
            "keras_hub",
            reason="keras-hub is not installed: through tensorflow-text it brings the full TensorFlow, which would "
            "overwrite the tensorflow-cpu that the other tests use. It has an environment of its own.",
        )


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A ResNet-50 with its folder, on which the page and the tests agree."""
    encoder = filled({"variant": 50})
    return encoder, export_keras_hub(encoder, tmp_path_factory.mktemp("export") / "my_resnet", metadata=LICENSE)


def ours_in(module, folder):
    """The encoder as keras-hub loads it."""
    converter = module.layers.ImageConverter.from_preset(str(folder))
    backbone = module.models.Backbone.from_preset(str(folder))
    return keras.Sequential([converter, backbone, keras.layers.GlobalAveragePooling2D()])


@pytest.mark.parametrize("variant", [18, 34, 50, 101])
def test_the_network_is_keras_hubs(hub, variant, tmp_path):
    """Layer by layer: class, name, shapes, and what it takes its input from."""

    def described(model):
        return [
            (
                type(layer).__name__,
                layer.name if layer.weights else "",
                [tuple(weight.shape) for weight in layer.weights],
                [tensor.shape for tensor in keras.tree.flatten(layer.input)],
                {key: layer.get_config().get(key) for key in ("strides", "padding", "epsilon", "momentum")},
            )
            for layer in model.layers
        ]

    blocks, bottleneck = encoders.VARIANTS[variant]
    config = interop._backbone(blocks, bottleneck, 3)
    theirs = keras.saving.deserialize_keras_object(config)
    assert type(theirs) is hub.models.ResNetBackbone
    assert described(theirs) == described(interop._network(blocks, bottleneck, 3))


@pytest.mark.parametrize("blocks", [(1, 1), (2, 1)])
def test_keras_hub_would_write_the_same_files(hub, blocks, tmp_path):
    arguments = {"blocks": blocks, "bottleneck": blocks == (1, 1), "mean": (0.1, 0.2, 0.3), "std": (0.3, 0.2, 0.1)}
    ours = export_keras_hub(filled(arguments), tmp_path / "ours")
    hub.models.Backbone.from_preset(str(ours)).save_to_preset(str(tmp_path / "theirs"))
    hub.layers.ImageConverter.from_preset(str(ours)).save_to_preset(str(tmp_path / "theirs"))
    for name in ("config.json", "image_converter.json"):
        assert read(tmp_path / "theirs" / name) == read(ours / name)
    metadata, theirs = (read(folder / "metadata.json") for folder in (ours, tmp_path / "theirs"))
    assert {key: metadata[key] for key in ("parameter_count", "tasks")} == {
        key: theirs[key] for key in ("parameter_count", "tasks")
    }
    assert listing(ours) == listing(tmp_path / "theirs")
    for path, (_, array) in arrays(tmp_path / "theirs").items():
        np.testing.assert_array_equal(arrays(ours)[path][1], array)


def test_resnet50_has_our_features_there(hub, exported, rng):
    encoder, folder = exported
    theirs = ours_in(hub, folder)
    for size in ((224, 224), (97, 130)):
        images = rng.integers(0, 256, (2, *size, 3)).astype("uint8")
        close(theirs.predict(images, verbose=0), encoder.predict(images, verbose=0))


@pytest.mark.parametrize("arguments", [{"variant": 18}, {"blocks": (1, 1), "channels": 4, "mean": 0.3, "std": 0.2}])
def test_others_have_our_features_there(hub, arguments, rng, tmp_path):
    encoder = filled(arguments)
    theirs = ours_in(hub, export_keras_hub(encoder, tmp_path / "export"))
    images = rng.integers(0, 256, (2, 71, 64, encoder.channels)).astype("uint8")
    close(theirs.predict(images, verbose=0), encoder.predict(images, verbose=0))


def test_the_code_of_the_card_runs(hub, exported, tmp_path, monkeypatch):
    encoder, folder = exported
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "to").symlink_to(folder.parent)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(snippet((folder / "README.md").read_text()), "card", "exec"), names)
    close(names["features"], encoder.predict(names["images"], verbose=0))


def test_keras_hub_puts_its_classifier_on_it(hub, rng, tmp_path):
    encoder = filled(SMALL)
    folder = export_keras_hub(encoder, tmp_path / "export")
    classifier = hub.models.ImageClassifier.from_preset(str(folder), num_classes=3, activation=None)
    images = rng.integers(0, 256, (2, 40, 40, 3)).astype("uint8")
    head = classifier.get_layer("predictions")
    kernel, bias = (keras.ops.convert_to_numpy(weight) for weight in (head.kernel, head.bias))
    close(classifier.predict(images, verbose=0), encoder.predict(images, verbose=0) @ kernel + bias)


# --------------------------------------------------------------------------------------------------------------
# Its backbones as encoders
# --------------------------------------------------------------------------------------------------------------

SIZE = 32
BACKBONES = {  # name of the class -> (arguments, width of the features)
    "ResNetBackbone": (
        {
            "input_conv_filters": [64],
            "input_conv_kernel_sizes": [7],
            "stackwise_num_filters": [64, 64],
            "stackwise_num_blocks": [1, 1],
            "stackwise_num_strides": [1, 2],
            "block_type": "bottleneck_block_vd",
        },
        256,
    ),
    "ViTBackbone": (
        {
            "image_shape": (SIZE, SIZE, 3),
            "patch_size": 8,
            "num_layers": 1,
            "num_heads": 2,
            "hidden_dim": 16,
            "mlp_dim": 32,
        },
        16,
    ),
    "MobileNetBackbone": (
        {
            "stackwise_expansion": [[16], [24]],
            "stackwise_num_blocks": [1, 1],
            "stackwise_num_filters": [[8], [16]],
            "stackwise_kernel_size": [[3], [5]],
            "stackwise_num_strides": [[2], [2]],
            "stackwise_se_ratio": [[None], [0.25]],
            "stackwise_activation": [["relu"], ["hard_swish"]],
            "stackwise_padding": [[1], [2]],
            "output_num_filters": 48,
            "last_layer_filter": 48,
            "input_activation": "hard_swish",
            "output_activation": "hard_swish",
            "input_num_filters": 8,
            "depthwise_filters": 8,
            "depthwise_stride": 2,
            "depthwise_residual": False,
        },
        48,
    ),
    "EfficientNetBackbone": (
        {
            "stackwise_kernel_sizes": [3, 3],
            "stackwise_num_repeats": [1, 1],
            "stackwise_input_filters": [8, 8],
            "stackwise_output_filters": [8, 16],
            "stackwise_expansion_ratios": [1, 4],
            "stackwise_squeeze_and_excite_ratios": [0.25, 0.25],
            "stackwise_strides": [1, 2],
            "stackwise_block_types": ["unfused", "fused"],
            "width_coefficient": 1.0,
            "depth_coefficient": 1.0,
        },
        1280,
    ),
    "DenseNetBackbone": ({"stackwise_num_repeats": [1, 1], "growth_rate": 8}, 44),
}
SCALE, OFFSET = [0.01, 0.02, 0.03], [-1.0, -2.0, -3.0]


def adapted(hub, name):
    """An encoder of a backbone with random weights, and of a normalisation of its own for each channel."""
    backbone = getattr(hub.models, name)(**BACKBONES[name][0])
    converter = hub.layers.ImageConverter(scale=SCALE, offset=OFFSET)
    return backbone, Adapter(keras.Sequential([converter, backbone]), image_shape=(SIZE, SIZE, 3))


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_a_backbone_is_an_encoder(hub, name, rng, tmp_path):
    backbone, encoder = adapted(hub, name)
    images = rng.integers(0, 256, (4, SIZE, SIZE, 3)).astype("uint8")
    outputs = backbone.predict(images * np.float32(SCALE) + np.float32(OFFSET), verbose=0)
    expected = outputs.reshape(4, -1, outputs.shape[-1]).mean(1)  # over pixels or tokens
    features = keras_issl.extract_features(encoder, images).array
    assert features.shape == (4, BACKBONES[name][1]) == (4, encoders.feature_dim(encoder))
    close(features, expected)
    folder = keras_issl.save_preset(encoder, tmp_path / "preset")
    again = keras_issl.from_preset(folder, custom_objects={"Adapter": Adapter}, verify=True)
    assert type(again.model.layers[-1]) is type(backbone)
    close(again.predict(images, verbose=0), features, 1e-6)


@pytest.mark.parametrize("name", ["ResNetBackbone", "ViTBackbone"])
@pytest.mark.filterwarnings("ignore:.*incomplete last batch")
def test_a_backbone_learns(hub, name, rng):
    _, encoder = adapted(hub, name)
    objective = keras_issl.objectives.SimCLR(output_dim=8, hidden=(8,))
    model = keras_issl.Pretrainer(encoder, objective, keras_issl.augmentations.SimCLR(SIZE))
    model.compile(keras.optimizers.SGD(0.1))
    before = encoder.get_weights()
    history = model.fit(rng.integers(0, 256, (4, SIZE, SIZE, 3)).astype("uint8"), batch_size=4, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    frozen = [
        weight.path
        for weight, value in zip(encoder.weights, before, strict=True)
        if weight.trainable and np.array_equal(keras.ops.convert_to_numpy(weight), value)
    ]
    assert not frozen


def test_the_class_token_alone(hub, rng):
    backbone = hub.models.ViTBackbone(**BACKBONES["ViTBackbone"][0])
    encoder = Adapter(keras.Model(backbone.input, backbone.output[:, 0]))
    images = rng.integers(0, 256, (2, SIZE, SIZE, 3)).astype("uint8")
    close(encoder.predict(images, verbose=0), backbone.predict(images, verbose=0)[:, 0])


def test_an_export_comes_back_as_an_encoder(hub, exported, rng):
    encoder, folder = exported
    converter = hub.layers.ImageConverter.from_preset(str(folder))
    again = Adapter(keras.Sequential([converter, hub.models.Backbone.from_preset(str(folder))]))
    images = rng.integers(0, 256, (2, 64, 80, 3)).astype("uint8")
    close(again.predict(images, verbose=0), encoder.predict(images, verbose=0))


def test_a_backbone_writes_itself(hub, tmp_path):
    encoder = Adapter(hub.models.ResNetBackbone(**BACKBONES["ResNetBackbone"][0]))
    with pytest.raises(ValueError, match="encoder.model.save_to_preset"):
        export_keras_hub(encoder, tmp_path / "export")


def test_the_python_of_the_page_runs(hub, exported, rng, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, *blocks = re.findall(r"```py(?:thon)?\n(.*?)```", PAGE.read_text(), flags=re.S)
    names = {}
    for block in (first, *blocks):
        exec(compile(block, PAGE.name, "exec"), names)
    assert names["features"].array.shape == (8, 512)
    assert type(names["encoder"]) is Adapter


# --------------------------------------------------------------------------------------------------------------
# On the Hub
# --------------------------------------------------------------------------------------------------------------


def test_from_the_hub(hub, tmp_path):
    """Published by one client; another one, on this backend, runs the card's code as it stands, and fine-tunes."""
    encoder = filled(SMALL)
    folder = export_keras_hub(encoder, tmp_path / "export", address="hf://user/small", metadata=LICENSE)
    publish = f"""
        import huggingface_hub
        huggingface_hub.create_repo("user/small")
        huggingface_hub.upload_folder(repo_id="user/small", folder_path={str(folder)!r})
        info = huggingface_hub.model_info("user/small")
        report([info.card_data.library_name, info.card_data.pipeline_tag, info.card_data.license])
    """
    load = f"""
        import huggingface_hub
        import numpy as np

        text = open(huggingface_hub.hf_hub_download("user/small", "README.md")).read()
        names = {{}}
        exec(text.split("```python\\n")[1].split("```")[0], names)
        np.savez({str(tmp_path / "out.npz")!r}, images=names["images"], features=names["features"])

        classifier = names["keras_hub"].models.ImageClassifier.from_preset("hf://user/small", num_classes=2)
        images = names["keras"].random.randint((4, 32, 32, 3), 0, 256)  # the code that the Hub shows does all this
        classifier.fit(x=images, y=names["keras"].random.randint((4, 1), 0, 2), verbose=0)
        report([names["keras"].config.backend(), list(classifier.predict(images, verbose=0).shape)])
    """
    with HubServer(tmp_path / "hub") as server:
        result = run(publish, server.environment(tmp_path / "one"))
        assert result.value == ["keras-hub", "image-feature-extraction", "cc-by-4.0"], result.stderr
        assert {path.name for path in folder.iterdir()} <= set(server.files("user/small"))
        result = run(load, server.environment(tmp_path / "two", token=None, backend=keras.config.backend()))
        assert result.value == [keras.config.backend(), [4, 2]], result.stderr
    with np.load(tmp_path / "out.npz") as found:
        close(found["features"], encoder.predict(found["images"], verbose=0))
