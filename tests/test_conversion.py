"""PyTorch checkpoints to encoders and back, against the plain network of `torch_resnet.py`."""

import io
import os
import pickle
import resource
import sys
import zipfile
from collections import OrderedDict
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import torch
import torch_resnet
from keras import ops

import keras_issl
from keras_issl import encoders
from keras_issl.zoo import conversion

RELEASED = {None: 2048, 4096: 4096, 8192: 8192}  # d in the names of the released files -> features


def features(encoder, images):
    return np.asarray(ops.convert_to_numpy(ops.stop_gradient(encoder(images, training=False))))


def difference(features, expected):
    return np.abs(features - expected).max() / np.abs(expected).max()


def cosine(a, b):
    """The smallest cosine between features of one image."""
    a, b = a.astype("float64"), b.astype("float64")
    return ((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).min()


def loaded(path, image_size=None, **kwargs):
    """An encoder with the weights of a file."""
    state, _ = conversion.read_checkpoint(path)
    encoder = encoders.ResNet(**conversion.infer_config(state, image_size=image_size), **kwargs)
    conversion.load_state_dict(encoder, state)
    return encoder


def saved(network, path, **kwargs):
    torch.save(network if isinstance(network, dict) else network.state_dict(), path, **kwargs)
    return path


def same(a, b):
    return list(a) == list(b) and all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


# ---------------------------------------------------------------------- numbers
@pytest.fixture(scope="module", params=RELEASED, ids=lambda d: f"d{d}")
def released(request, tmp_path_factory):
    """A network of a released shape, its file, and images with the features they should have."""
    rng = np.random.default_rng(0)
    network = torch_resnet.make(50, request.param)
    path = saved(network, tmp_path_factory.mktemp("released") / f"dissl_resnet50_d{request.param}.torch")
    images = {
        "224": rng.integers(0, 256, (1, 224, 224, 3)).astype("uint8"),
        "odd": rng.integers(0, 256, (2, 161, 187, 3)).astype("uint8"),
    }
    with torch.device("cpu"):
        expected = {size: network.features(x) for size, x in images.items()}
    return SimpleNamespace(path=path, images=images, expected=expected, dim=RELEASED[request.param])


@pytest.mark.backend_independent
def test_released_shapes_equal_torch(released):
    encoder = loaded(released.path)
    assert encoders.feature_dim(encoder) == released.dim
    for size, expected in released.expected.items():
        assert expected.shape[-1] == released.dim and np.isfinite(expected).all()
        assert difference(features(encoder, released.images[size]), expected) < 1e-5, size


@pytest.mark.backend_independent
def test_released_shapes_in_bfloat16_point_the_same_way(released):
    expected = released.expected["odd"]
    encoder = loaded(released.path, dtype="mixed_bfloat16")
    computed = features(encoder, released.images["odd"])
    assert computed.dtype == np.float32 and encoder.get_layer("conv1").compute_dtype == "bfloat16"
    assert cosine(computed, expected) > 0.999
    # Features of one random network are all alike: what sets an image apart should survive too.
    assert cosine(computed - expected.mean(0), expected - expected.mean(0)) > 0.98


@pytest.mark.parametrize(
    ("variant", "dim", "kernel", "pool", "image_size", "stem"),
    [
        (34, 100, 7, True, None, "imagenet"),  # above the 64 channels of the last stage, no multiple of them
        (18, 40, 3, False, 32, "cifar"),  # below: nothing to add
        (50, 600, 3, True, 64, "small"),
    ],
)
def test_other_shapes_equal_torch(variant, dim, kernel, pool, image_size, stem, tmp_path, rng):
    network = torch_resnet.make(variant, dim, width=8, kernel=kernel, pool=pool)
    path = saved(network, tmp_path / "x.pt")
    state, dropped = conversion.read_checkpoint(path)
    config = conversion.infer_config(state, image_size=image_size)
    sizes = {"image_size": image_size or 224, "width": 8, "feature_dim": dim, "channels": 3}
    assert config == {"variant": variant, "stem": stem, **sizes} and dropped == []
    images = rng.integers(0, 256, (2, 45, 38, 3)).astype("uint8")
    with torch.device("cpu"):
        expected = network.features(images)
    assert difference(features(loaded(path, image_size), images), expected) < 1e-5


# ---------------------------------------------------------------------- there and back
@pytest.fixture
def network():
    return torch_resnet.make(18, 96, width=8, classes=5)


@pytest.fixture
def tensors(network):
    """What a released file holds: no classifier."""
    return {name: value for name, value in network.state_dict().items() if not name.startswith("fc.")}


@pytest.mark.parametrize(("variant", "dim"), [(18, 96), (50, None)])
def test_torch_to_preset_to_torch_is_bit_exact(variant, dim, tmp_path):
    network = torch_resnet.make(variant, dim, width=8)
    path = saved(network, tmp_path / "released.torch")
    keras.config.set_dtype_policy("mixed_bfloat16")  # must not cost a bit
    folder, dropped = conversion.convert(path, tmp_path / "preset", name="mine")
    assert keras.config.dtype_policy().name == "mixed_bfloat16"
    keras.config.set_dtype_policy("float32")
    encoder = keras_issl.from_preset(folder)
    assert dropped == [] and encoder.name == "mine" and encoder.get_layer("conv1").compute_dtype == "float32"
    again = torch.load(conversion.save_checkpoint(encoder, tmp_path / "again.pt"), weights_only=True)
    expected = network.state_dict()
    assert list(again) == list(expected)  # the order too
    for name, value in expected.items():
        assert again[name].dtype == value.dtype and again[name].shape == value.shape
        assert name.endswith("num_batches_tracked") or torch.equal(again[name], value), name
    with torch.device("cpu"):
        twin = torch_resnet.ResNet(variant, dim, width=8, classes=5, seed=1)
    assert twin.load_state_dict(again, strict=False) == (["fc.weight", "fc.bias"], [])


def test_provenance_names_the_file_and_its_hash(tensors, tmp_path):
    path = saved(tensors, tmp_path / "released.torch")
    folder, _ = conversion.convert(path, tmp_path / "preset", metadata={"description": "From elsewhere."})
    metadata = keras_issl.zoo.format.read_metadata(folder)
    assert metadata["provenance"] == {"converted_from": "released.torch", "sha256": keras_issl.zoo.format.sha256(path)}
    assert metadata["description"] == "From elsewhere."


@pytest.mark.parametrize(
    "arguments",
    [
        {"variant": 18, "width": 8},
        {"variant": 34, "width": 4, "image_size": 32, "feature_dim": 20},
        {"variant": 50, "width": 4, "image_size": 64, "channels": 1},
        {"blocks": (1, 2), "width": 4, "image_size": 32},
        {"blocks": (2, 1, 1), "width": 4, "bottleneck": True, "feature_dim": 100},
        {"variant": 18, "width": 4, "bottleneck": True},
    ],
)
def test_encoder_to_torch_to_encoder_is_bit_exact(arguments, tmp_path):
    encoder = encoders.ResNet(**arguments)
    path = conversion.save_checkpoint(encoder, tmp_path / "new" / "x.pt")
    assert os.listdir(path.parent) == ["x.pt"]
    state, dropped = conversion.read_checkpoint(path)
    assert dropped == []
    config = conversion.infer_config(state, image_size=arguments.get("image_size"))
    again = encoders.ResNet(**config)
    assert len(encoder.weights) == len(again.weights) == len(state)
    conversion.load_state_dict(again, state)
    assert same(conversion.state_dict(again), conversion.state_dict(encoder))
    for a, b in zip(encoder.weights, again.weights, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(a), ops.convert_to_numpy(b))


def test_bfloat16_weights_are_exact_in_float32(tmp_path, rng):
    encoder = encoders.ResNet(blocks=(1, 1), width=8, dtype="bfloat16")
    path = conversion.save_checkpoint(encoder, tmp_path / "x.pt")
    twin, exact = loaded(path, dtype="bfloat16"), loaded(path)
    state = conversion.state_dict(encoder)
    assert state["conv1.weight"].dtype == np.float32
    assert same(conversion.state_dict(twin), state) and same(conversion.state_dict(exact), state)
    images = rng.integers(0, 256, (2, 32, 33, 3)).astype("uint8")
    assert cosine(features(twin, images), features(exact, images)) > 0.999


def test_nothing_shares_memory(tensors, tmp_path):
    state, _ = conversion.read_checkpoint(saved(tensors, tmp_path / "x.pt"))
    assert all(a.flags.owndata and a.flags.writeable and a.flags.c_contiguous for a in state.values())
    encoder = encoders.ResNet(**conversion.infer_config(state))
    conversion.load_state_dict(encoder, state)
    before = conversion.state_dict(encoder)
    for array in [*state.values(), *conversion.state_dict(encoder).values()]:
        array += 1  # as torch does with running statistics
    assert same(conversion.state_dict(encoder), before)


# ---------------------------------------------------------------------- names
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "encoder.", "module.backbone.", "module.module."])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"state_dict": x, "epoch": 3}, lambda x: {"model": x}])
def test_wrappers_and_prefixes_are_taken_off(prefix, wrap, tensors, tmp_path):
    expected, _ = conversion.read_checkpoint(saved(tensors, tmp_path / "plain.pt"))
    renamed = OrderedDict((prefix + name, value) for name, value in tensors.items())
    state, dropped = conversion.read_checkpoint(saved(wrap(renamed), tmp_path / "x.pt"))
    assert same(state, expected) and dropped == []


@pytest.mark.parametrize("classifier", ["fc.", "module.fc."])
def test_the_classifier_is_dropped_with_a_word(classifier, network, tensors, tmp_path):
    expected, _ = conversion.read_checkpoint(saved(tensors, tmp_path / "plain.pt"))
    renamed = {f"module.{name}": value for name, value in tensors.items()}
    renamed |= {f"{classifier}{kind}": torch.zeros(5) for kind in ("weight", "bias")}
    state, dropped = conversion.read_checkpoint(saved(renamed, tmp_path / "x.pt"))
    assert same(state, expected)
    assert [line.split()[0] for line in dropped] == ["fc.weight", "fc.bias"] and "classifier" in dropped[0]


def test_the_authors_own_name_of_the_wider_representation(tensors, tmp_path):
    expected, _ = conversion.read_checkpoint(saved(tensors, tmp_path / "plain.pt"))
    renamed = {name.replace("resizer.", "avgpool.0."): value for name, value in tensors.items()}
    state, _ = conversion.read_checkpoint(saved(renamed, tmp_path / "x.pt"))
    assert same(state, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_becomes_float32(dtype, tensors, tmp_path):
    other = {name: value.to(dtype) for name, value in tensors.items()}
    state, _ = conversion.read_checkpoint(saved(other, tmp_path / "x.pt"))
    for name, value in state.items():
        np.testing.assert_array_equal(value, other[name].float().numpy())


def test_files_of_the_old_format_and_parameters_are_read(network, tensors, tmp_path):
    expected, _ = conversion.read_checkpoint(saved(tensors, tmp_path / "plain.pt"))
    path = saved(tensors, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert same(conversion.read_checkpoint(path)[0], expected)
    parameters = {name: torch.nn.Parameter(v) if v.is_floating_point() else v for name, v in tensors.items()}
    assert same(conversion.read_checkpoint(saved(parameters, tmp_path / "p.pt"))[0], expected)


# ---------------------------------------------------------------------- refusals of files
class Payload:
    """Makes a folder when it is unpickled by one who does not look."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


class Lie:
    """A storage that says it has 2^40 numbers, of which the file has one."""


class LiarPickler(pickle.Pickler):
    def persistent_id(self, value):
        return ("storage", torch.FloatStorage, "0", "cpu", 1 << 40) if isinstance(value, Lie) else None

    def reducer_override(self, value):
        if isinstance(value, torch.Tensor):
            return torch._utils._rebuild_tensor_v2, (Lie(), 0, (1 << 40,), (1,), False, OrderedDict())
        return NotImplemented


def archive(path, data, pickler=pickle.Pickler, protocol=2, compression=zipfile.ZIP_STORED):
    """A zip archive like `torch.save`'s, around a pickle of one's own (or its bytes)."""
    if not isinstance(data, bytes):
        buffer = io.BytesIO()
        pickler(buffer, protocol).dump(data)
        data = buffer.getvalue()
    with zipfile.ZipFile(path, "w", compression) as file:
        records = {"data.pkl": data, "byteorder": b"little", "data/0": b"\0" * 4, "version": b"3\n"}
        for name, content in records.items():
            file.writestr(f"archive/{name}", content)
    return path


@pytest.mark.parametrize(
    "write",
    [
        lambda value, path: torch.save(value, path),
        lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
        lambda value, path: torch.save({"state_dict": {}, "args": value}, path),
        lambda value, path: path.write_bytes(pickle.dumps(value)),
        lambda value, path: archive(path, value, protocol=4),
        lambda value, path: archive(path, value, protocol=0),
    ],
    ids=["zip", "old", "beside", "bare", "protocol4", "protocol0"],
)
def test_code_is_refused_and_never_run(write, tmp_path):
    path, folder = tmp_path / "x.pt", tmp_path / "owned"
    write(Payload(folder), path)
    with pytest.raises(ValueError, match="which may (hold|be) code.*nothing of it was run"):
        conversion.read_checkpoint(path)
    assert os.listdir(tmp_path) == ["x.pt"]
    torch.serialization.add_safe_globals([os.mkdir])  # another library's leniency is not ours
    try:
        with pytest.raises(ValueError, match="code"):
            conversion.read_checkpoint(path)
    finally:
        torch.serialization.clear_safe_globals()
    assert os.listdir(tmp_path) == ["x.pt"]


def test_few_bytes_cannot_ask_for_much_memory(tmp_path):
    for value in (bytearray(9), b"\xff" * 9):  # bytearray(n), and codecs that double what they get
        with pytest.raises(ValueError, match="bytearray|_codecs.encode"):
            conversion.read_checkpoint(archive(tmp_path / "x.pt", {"conv1.weight": value}))
    constructor = b"\x80\x02}X\x01\x00\x00\x00wctorch\nFloatTensor\n\x8a\x05\x00\x00\x00\x00\x10\x85Rs."
    with pytest.raises(ValueError, match="torch.FloatTensor"):
        conversion.read_checkpoint(archive(tmp_path / "x.pt", constructor))
    with pytest.raises(ValueError, match="damaged"):
        conversion.read_checkpoint(archive(tmp_path / "x.pt", {"w": torch.zeros(1)}, LiarPickler))
    with pytest.raises(ValueError, match="compressed archive"):
        conversion.read_checkpoint(archive(tmp_path / "x.pt", b"." * 10**6, compression=zipfile.ZIP_DEFLATED))
    for shape in ((1 << 20, 1 << 20), (1 << 14,)):
        with pytest.raises(ValueError, match="`conv1.weight` brings the tensors to .* bytes, which a file of"):
            conversion.read_checkpoint(saved({"conv1.weight": torch.zeros(1).expand(shape)}, tmp_path / "x.pt"))
    shared = torch.zeros(1000)
    with pytest.raises(ValueError, match="`w[0-9]` brings the tensors to"):
        conversion.read_checkpoint(saved({f"w{i}": shared for i in range(9)}, tmp_path / "x.pt"))


def test_files_that_are_no_checkpoints(tmp_path):
    contents = {"empty": b"", "text": b"hello", "html": b"<!DOCTYPE html>", "zip": b"PK\x03\x04" + b"\0" * 100}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"should be a PyTorch checkpoint.*{name}'"):
            conversion.read_checkpoint(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("a", "b")
    with pytest.raises(ValueError, match="an archive without tensors"):
        conversion.read_checkpoint(tmp_path / "other.zip")
    with pytest.raises(ValueError, match="no such file"):
        conversion.read_checkpoint(tmp_path / "missing.pt")
    with pytest.raises(ValueError, match="it is no file"):
        conversion.read_checkpoint(tmp_path)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torchscript_is_refused(tmp_path):
    with torch.device("cpu"):
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "x.pt"))
    with pytest.raises(ValueError, match="x.pt"):
        conversion.read_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files_give_our_errors_or_the_right_tensors(zipped, tmp_path, rng):
    state = {f"layer1.{i}.conv1.weight": torch.randn(3, 2, 3, 3) for i in range(3)}
    path = saved(state, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    whole, damaged = path.read_bytes(), tmp_path / "damaged.pt"
    for case in range(60):
        data = bytearray(whole)
        if case % 3 == 0:
            del data[rng.integers(len(data)) :]
        else:
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        damaged.write_bytes(data)
        try:
            again, _ = conversion.read_checkpoint(damaged)
        except ValueError as error:
            assert str(error).startswith("`path` should be a PyTorch checkpoint") and "damaged.pt" in str(error)
        else:
            assert not zipped or same(again, {name: value.numpy() for name, value in state.items()})


def change(tensors, **values):
    return tensors | {name.replace("__", "."): value for name, value in values.items()}


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: [1, 2], "no dictionary of tensors, but a list"),
        (lambda t: {}, "no dictionary of tensors"),
        (lambda t: {"state_dict": t, "model": t}, "several dictionaries, 'state_dict', 'model'"),
        (lambda t: t | {3: torch.zeros(1)}, "keys should be strings, and some are of the types 'int'"),
        (lambda t: t | {"epoch": 3}, "`epoch` is no tensor but of type int"),
        (lambda t: {"fc.weight": torch.zeros(2)}, "no tensor of an encoder"),
        (lambda t: change(t, conv1__weight=t["conv1.weight"].to_sparse()), "`conv1.weight` .* sparse_coo"),
        (lambda t: change(t, bn1__bias=torch.zeros(8, dtype=torch.int32)), "`bn1.bias` .* int32"),
        (lambda t: change(t, bn1__bias=torch.zeros(8, dtype=torch.bool)), "`bn1.bias` .* bool"),
        (lambda t: change(t, bn1__bias=torch.zeros(8, dtype=torch.complex64)), "`bn1.bias` .* complex64"),
        (lambda t: change(t, bn1__bias=torch.zeros(8, device="meta")), "`bn1.bias` .* 'meta'"),
        (lambda t: change(t, bn1__bias=torch.full((8,), torch.nan)), "`bn1.bias` holds numbers that are not finite"),
        (lambda t: change(t, bn1__bias=torch.full((8,), -torch.inf)), "`bn1.bias` holds numbers that are not finite"),
        (lambda t: change(t, bn1__bias=torch.full((8,), 1e39, dtype=torch.float64)), "not finite in float32"),
        (lambda t: change(t, bn1__running_var=-torch.ones(8)), "`bn1.running_var` holds negative variances"),
        (lambda t: t | {"avgpool.0.bn1.bias": torch.zeros(512)}, "there twice, under `resizer.` and `avgpool.0.`"),
        (
            lambda t: (
                {f"module.{k}": v for k, v in t.items()}
                | {"module.fc.weight": torch.zeros(1), "fc.weight": torch.zeros(1)}
            ),
            "'module.fc.weight', 'fc.weight' are both `fc.weight`",
        ),
    ],
)
def test_what_is_no_dense_finite_tensor_is_named(edit, words, tensors, tmp_path):
    path = tmp_path / "bad.pt"
    with torch.device("cpu"):
        torch.save(edit(tensors), path)
    with pytest.raises(ValueError, match=words) as caught:
        conversion.read_checkpoint(path)
    assert "bad.pt" in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*quantiz.*")
def test_quantised_tensors_are_named(tensors, tmp_path):
    with torch.device("cpu"):
        quantised = torch.quantize_per_tensor(tensors["conv1.weight"], 0.1, 0, torch.qint8)
    with pytest.raises(ValueError, match="`conv1.weight` .* qint8"):
        conversion.read_checkpoint(saved(tensors | {"conv1.weight": quantised}, tmp_path / "x.pt"))


# ---------------------------------------------------------------------- refusals of tensors
@pytest.fixture
def state(tensors):
    return {n: v.numpy().copy() for n, v in tensors.items() if not n.endswith("num_batches_tracked")}


def without(state, *parts):
    return {name: value for name, value in state.items() if not any(part in name for part in parts)}


@pytest.mark.parametrize(
    ("edit", "image_size", "words"),
    [
        (lambda s: {}, None, "torchvision's names.*0 names"),
        (
            lambda s: {f"net.{n}": v for n, v in s.items()},
            None,
            r"Received: 115 names, 'net.conv1.weight'.*, \.\.\.\.$",
        ),
        (lambda s: s | {"conv1.weight": s["bn1.bias"]}, None, r"`conv1.weight` of shape \(8,\)"),
        (lambda s: s | {"conv1.weight": np.zeros((0, 3, 7, 7), "f")}, None, r"shape \(0, 3, 7, 7\)"),
        (lambda s: s | {"conv1.weight": np.zeros((8, 3, 5, 5), "f")}, None, "7x7 or 3x3"),
        (lambda s: s | {"conv1.weight": np.zeros((8, 3, 3, 3), "f")}, None, "whether a max-pool follows"),
        (lambda s: s | {"conv1.weight": np.zeros((8, 3, 3, 3), "f")}, 224, "should be under 100"),
        (lambda s: s | {"conv1.weight": np.zeros((8, 3, 7, 3), "f")}, None, r"1 misshapen \('conv1.weight'\)"),
        (
            lambda s: s | {"conv1.weight": np.zeros((1 << 20, 3, 7, 7), "?")},
            None,
            "misshapen",
        ),  # no such network is built
        (lambda s: s, 0, "`image_size` should be a positive integer. Received: 0"),
        (lambda s: s, "224", "`image_size` should be a positive integer. Received: '224'"),
        (lambda s: without(s, "layer1"), None, "torchvision's names"),
        (lambda s: without(s, "layer3.0.bn1"), None, r"ResNet\(18\). Received: 4 missing \('layer3.0.bn1.weight'"),
        (lambda s: without(s, "layer3"), None, r"a ResNet of \(2, 2\) blocks. Received: 25 extra.*; 1 misshapen"),
        (lambda s: s | {"head.weight": s["bn1.bias"]}, None, r"1 extra \('head.weight'\)"),
        (lambda s: s | {"layer4.1.bn2.bias": np.zeros(3, "f")}, None, r"has the shape \(3,\) and should have \(64,\)"),
        (lambda s: without(s, "resizer.conv3"), None, "`resizer.conv3.weight` should widen.*Received: shape None"),
        (lambda s: s | {"resizer.conv3.weight": np.zeros((64, 512, 1, 1), "f")}, None, "widen the 64 channels"),
        (lambda s: s | {"bn1.bias": np.zeros(8, "int32")}, None, r"1 not floating point \('bn1.bias'\)"),
    ],
)
def test_what_is_no_resnet_is_named(edit, image_size, words, state):
    with pytest.raises(ValueError, match=words):
        conversion.infer_config(edit(state), image_size=image_size)


def test_blocks_are_counted(state):
    config = conversion.infer_config(without(state, "layer2.1", "layer4", "resizer"))
    assert (config["blocks"], config["bottleneck"], config["feature_dim"]) == ((2, 1, 2), False, None)
    assert "variant" not in config


def test_load_state_dict_names_everything_at_once_and_touches_nothing(state):
    encoder = encoders.ResNet(**conversion.infer_config(state))
    before = conversion.state_dict(encoder)
    wrong = without(state, "layer1.0.bn1", "layer2.0.downsample") | {"head.weight": np.zeros(3, "f")}
    wrong["conv1.weight"] = wrong["conv1.weight"].transpose(2, 3, 1, 0)  # Keras's own layout
    with pytest.raises(ValueError) as caught:
        conversion.load_state_dict(encoder, wrong)
    for words in (
        "9 missing ('layer1.0.bn1.weight', ",
        ", ...); 1 extra ('head.weight'); 1 misshapen ('conv1.weight')",
        "`conv1.weight` has the shape (7, 7, 3, 8) and should have (8, 3, 7, 7)",
    ):
        assert words in str(caught.value)
    assert same(conversion.state_dict(encoder), before)


def test_other_models_are_refused(tmp_path):
    model = encoders.Adapter(keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()]))
    for function in (conversion.state_dict, lambda m: conversion.load_state_dict(m, {})):
        with pytest.raises(ValueError, match="`encoder` should be a `keras_issl.encoders.ResNet`. Received: Adapter"):
            function(model)
    with pytest.raises(ValueError, match="Adapter"):
        conversion.save_checkpoint(model, tmp_path / "x.pt")
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------------- nothing half done
def test_existing_files_are_kept(tmp_path):
    encoder, path = encoders.ResNet(blocks=(1,), width=4), tmp_path / "x.pt"
    path.write_text("precious")
    (tmp_path / "link.pt").symlink_to(tmp_path / "nowhere")
    for name in ("x.pt", "link.pt", "."):
        with pytest.raises(ValueError, match="`path` should not exist yet"):
            conversion.save_checkpoint(encoder, tmp_path / name)
    assert path.read_text() == "precious" and sorted(os.listdir(tmp_path)) == ["link.pt", "x.pt"]


def test_a_full_disk_leaves_no_file(tmp_path):
    encoder = encoders.ResNet(blocks=(1,), width=64)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises((OSError, RuntimeError)):
            conversion.save_checkpoint(encoder, tmp_path / "x.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_a_failed_conversion_writes_nothing(tensors, tmp_path):
    path = saved(without(tensors, "layer3.0.bn1"), tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt' was not converted: .*4 missing"):
        conversion.convert(path, tmp_path / "new" / "preset")
    with pytest.raises(ValueError, match="no such file"):
        conversion.convert(tmp_path / "missing.pt", tmp_path / "preset")
    assert os.listdir(tmp_path) == ["x.pt"]


def test_the_folder_is_checked_before_anything_is_read(tensors, tmp_path):
    folder, _ = conversion.convert(saved(tensors, tmp_path / "x.pt"), tmp_path / "preset")
    before = (folder / "metadata.json").read_bytes()
    with pytest.raises(ValueError, match="overwrite=True"):
        conversion.convert(tmp_path / "missing.pt", folder)
    with pytest.raises(ValueError, match="no such file"):
        conversion.convert(tmp_path / "missing.pt", folder, overwrite=True)
    assert (folder / "metadata.json").read_bytes() == before
    other = saved(torch_resnet.make(18, width=4), tmp_path / "other.pt")
    conversion.convert(other, folder, overwrite=True)
    assert keras_issl.from_preset(folder).output_shape[-1] == 32


def test_without_torch_the_way_out_is_said(state, tmp_path, monkeypatch):
    encoder = encoders.ResNet(**conversion.infer_config(state))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)  # as Python has it where an import is blocked
        for use in (
            conversion.require_torch,
            lambda: conversion.read_checkpoint(tmp_path / "x.pt"),
            lambda: conversion.save_checkpoint(encoder, tmp_path / "x.pt"),
            lambda: conversion.convert(tmp_path / "x.pt", tmp_path / "preset"),
        ):
            with pytest.raises(ImportError, match="needed only to read or write torch checkpoints.*pip install torch"):
                use()
        if keras.config.backend() != "torch":  # names, shapes and weights need none
            conversion.load_state_dict(encoder, state)
            assert np.array_equal(conversion.state_dict(encoder)["conv1.weight"], state["conv1.weight"])
    assert os.listdir(tmp_path) == []
