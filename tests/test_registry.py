"""The built-in presets against the figures of their publications, and what the registry says of them."""

import hashlib
import json
import math

import pytest

import keras_issl
from keras_issl import encoders, report
from keras_issl.zoo import cache, registry
from keras_issl.zoo import format as preset_format

# An independent copy of what was published: width, epochs, views; README top-1, top-5; the audit's top-1, top-1 from
# 30 images a class, from 1 % of the labels, from 5 images a class; usability, probe and encoder generalisation error.
PUBLISHED = """
dissl_resnet50_dNone_e100_m2                  2048  100 2x224      66.9 87.5 61.86 48.05 40.7  31.18  2.74 27.46 7.09
dissl_resnet50_d8192_e100_m2                  8192  100 2x224      68.9 88.5 66.42 49.9  42.84 33.59  0.0  31.62 1.3
dissl_resnet50_d8192_e100_m6                  8192  100 2x160+4x96 70.7 88.5 -     -     -     -      -    -     -
dissl_resnet50_dNone_e400_m2                  2048  400 2x224      71.1 90.2 69.95 53.52 46.4  35.92  4.94 20.71 3.55
dissl_resnet50_dNone_e400_m6                  2048  400 2x160+4x96 73.0 91.3 71.62 54.02 46.76 35.85  0.45 24.17 2.91
dissl_resnet50_d8192_e400_m6                  8192  400 2x160+4x96 74.0 91.9 71.66 56.42 49.63 39.41  0.0  24.06 3.82
dissl_resnet50_d8192_e800_m8                  8192  800 2x224+6x96 73.9 91.9 72.0  56.59 49.14 38.88  0.0  23.42 4.12
dissl_resnet50_dNone_e100_m2_augLarge         2048  100 2x224      -    -    65.41 46.83 39.25 29.9   6.01 26.74 0.99
dissl_resnet50_dNone_e100_m2_augSmall         2048  100 2x224      -    -    65.43 47.28 40.24 30.71  3.91 27.56 2.25
dissl_resnet50_dNone_e100_m2_headTLinSLin     2048  100 2x224      -    -    66.16 48.29 41.04 31.33  4.45 25.52 3.02
dissl_resnet50_dNone_e100_m2_headTMlpSMlp     2048  100 2x224      -    -    66.04 46.71 39.14 29.56  5.2  24.74 3.18
dissl_resnet50_d4096_e100_m2                  4096  100 2x224      -    -    67.15 49.22 42.26 33.06  0.0  32.5  0.0
simclr_resnet50_dNone_e100_m2                 2048  100 2x224      -    -    64.84 43.01 35.63 25.84 11.59 19.6  3.12
simclr_resnet50_dNone_e100_m2_data010         2048 1000 2x224      -    -    59.03 38.5  31.81 23.33 10.72 26.01 3.4
simclr_resnet50_dNone_e100_m2_data030         2048  300 2x224      -    -    63.1  41.6  34.29 25.19  8.27 24.49 3.3
simclr_resnet50_dNone_e100_m2_headTLinSLin    2048  100 2x224      -    -    59.97 39.72 32.78 24.68 15.92 20.36 2.92
simclr_resnet50_dNone_e100_m2_headTMlpSLin    2048  100 2x224      -    -    60.53 40.4  33.98 25.67 11.14 24.06 3.43
simclr_resnet50_dNone_e100_m2_headTMlpSMlp    2048  100 2x224      -    -    64.82 43.33 35.67 26.24  8.69 22.39 3.25
simclr_resnet50_dNone_e100_m2_headTNoneSNone  2048  100 2x224      -    -    50.29 35.43 29.62 22.8  25.02 20.91 2.94
simclr_resnet50_d8192_e100_m2                 8192  100 2x224      -    -    66.08 45.5  37.64 28.07  0.0  29.97 3.49
"""
COLUMNS = (
    ("authors' README", "top-1"),
    ("authors' README", "top-5"),
    ("audit", "top-1"),
    ("audit", "top-1 from 30 images a class"),
    ("audit", "top-1 from 1 % of the labels"),
    ("audit", "top-1 from 5 images a class"),
    ("audit", "usability error"),
    ("audit", "probe generalisation error"),
    ("audit", "encoder generalisation error"),
)
ROWS = {row[0]: row[1:] for row in map(str.split, PUBLISHED.strip().splitlines())}
RELEASES = (
    "https://github.com/YannDubs/Invariant-Self-Supervised-Learning/releases/download/v1.0.0-alpha/",
    "https://github.com/YannDubs/SSL-Risk-Decomposition/releases/download/v0.1/",
)
SHIPPED = "dissl_resnet10_d160_cifar10"
MLP_PROBES = {"dissl_resnet50_dNone_e100_m2_headTMlpSMlp", "simclr_resnet50_dNone_e100_m2_headTMlpSMlp"}


def read(name, file="metadata.json"):
    return json.loads((registry.shipped_folder(name) / file).read_text())


def test_all_twenty_are_there():
    assert registry.released_names() == tuple(sorted(ROWS)) and len(ROWS) == 20
    assert set(registry.names()) - set(ROWS) == {SHIPPED}


@pytest.mark.parametrize("name", sorted(ROWS))
def test_metadata_say_what_was_published(name):
    metadata, (width, epochs, views, *figures) = read(name), ROWS[name]
    assert preset_format.read_metadata(registry.shipped_folder(name)) == metadata  # the strict reader takes it
    assert metadata["name"] == name and metadata["feature_dim"] == int(width)
    assert metadata["recipe"]["epochs"] == int(epochs) and metadata["recipe"]["views"] == views
    assert metadata["recipe"]["objective"].lower() == name.split("_")[0]
    published = {key: float(value) for key, value in zip(COLUMNS, figures, strict=True) if value != "-"}
    assert {(row["source"], row["metric"]): row["value"] for row in metadata["results"]} == published
    assert len(metadata["results"]) == len(published)
    for row in metadata["results"]:
        assert row["protocol"] and row["unit"] == "%" and row["dataset"] == "ImageNet-1k" and row["url"]
    if COLUMNS[-1] in published:  # 0.845 of approximation are left out, negative terms are clipped
        assert sum(published[key] for key in COLUMNS[-3:]) + 0.845 >= 100 - published["audit", "top-1"] - 0.02
    assert metadata["source"]["url"] == RELEASES[figures[0] == "-"] + f"{name}.torch"
    assert metadata["license"]["id"] == "mit"
    seen = (metadata["source"]["sha256"], metadata["source"]["bytes"], metadata.get("hub"))
    assert metadata["verified"] is all(seen) and (all(seen) or not any(seen))  # tools/publish_zoo.py does it whole
    assert ("inference" in metadata["license"]["evidence"]) == (figures[2] == "-")  # only one was not audited
    probe = "mlp" if name in MLP_PROBES else None if name.endswith("SNone") else "linear"
    assert metadata["probe"] == probe
    assert "2209.06235" in metadata["citation"] and ("2302.03068" in metadata["citation"]) == (figures[2] != "-")


@pytest.mark.parametrize("name", sorted(ROWS))
def test_config_is_the_recorded_one(name):
    data = (registry.shipped_folder(name) / "config.json").read_bytes()
    recorded = read(name)["files"]
    assert recorded["config.json"] == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    weights = {"golden.npz", "model.weights.h5"} if read(name)["verified"] else set()
    assert set(recorded) == {"config.json"} | weights


@pytest.mark.backend_independent
@pytest.mark.parametrize("width", [2048, 4096, 8192])
def test_configs_build_the_released_architectures(width):
    same = [name for name, row in ROWS.items() if int(row[0]) == width]
    encoder = keras_issl.from_preset(registry.shipped_folder(same[0]), load_weights=False)
    assert isinstance(encoder, encoders.ResNet) and encoder.output_shape == (None, width)
    count = sum(math.prod(weight.shape) for weight in encoder.weights)
    assert count == {2048: 23_508_032, 4096: 29_023_296, 8192: 31_128_640}[width] + statistics(width)
    built = {**encoder.get_config(), "dtype": "float32"}
    for name in same:
        assert read(name)["parameters"] == count
        config = read(name, "config.json")
        assert config["format"] == 1 and config["class"] == "ResNet" and config["dtype"] == "float32"
        assert config["config"] == json.loads(json.dumps({**built, "name": name}))


def statistics(width):
    """Numbers in the moving means and variances of a ResNet-50: two for each channel that is normalised."""
    stages = [(64, 3), (128, 4), (256, 6), (512, 3)]
    channels = 64 + sum(blocks * (w + w + 4 * w) + 4 * w for w, blocks in stages)
    return 2 * (channels + (0 if width == 2048 else 512 + 512 + width))


def test_listing(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_ISSL_HOME", str(tmp_path))
    (shipped, *presets) = registry.list_presets()
    assert {preset.name for preset in presets} == set(ROWS)
    assert (shipped.name, shipped.source, shipped.verified, shipped.dataset) == (SHIPPED, "shipped", True, "CIFAR-10")
    assert shipped.top1 > 50 and (shipped.top1_readme, shipped.top1_audit) == (None, None)
    assert {(p.dataset, p.top1) for p in presets} == {("ImageNet-1k", None)}
    order = [(p.objective, -(p.top1_audit or 0)) for p in presets]
    assert order == sorted(order) and presets[0].objective == "DISSL" and presets[-1].objective == "SimCLR"
    first = presets[0]
    assert first.name == "dissl_resnet50_d8192_e800_m8" and (first.top1_audit, first.top1_readme) == (72.0, 73.9)
    assert (first.feature_dim, first.epochs, first.views) == (8192, 800, "2x224+6x96")
    assert first.parameters == 31_200_192
    assert {(p.source, p.verified) for p in presets} <= {("release file", False), ("Hub", True)}
    unaudited = next(p for p in presets if p.top1_audit is None)
    assert (unaudited.name, unaudited.top1_readme) == ("dissl_resnet50_d8192_e100_m6", 70.7)


def test_a_cached_preset_is_listed_as_such(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_ISSL_HOME", str(tmp_path))
    name = "simclr_resnet50_dNone_e100_m2"
    encoder = encoders.ResNet(blocks=(1,), width=8, image_size=12)
    keras_issl.save_preset(encoder, cache.cached_preset(name))
    assert [p.name for p in registry.list_presets() if p.source == "cached"] == [name]


def test_table_reads_well():
    presets = registry.list_presets()
    header, rows = registry.table_rows(presets)
    assert all(isinstance(cell, str) and cell for row in rows for cell in row) and len(rows) == 21
    text = report.table(header, rows)
    assert max(map(len, (text + "\n" + registry.PROTOCOL).splitlines())) <= 140
    cells = dict(zip(header, rows[1], strict=True))
    assert cells["preset"] == presets[1].name and (cells["README"], cells["audit"]) == ("73.9", "72.00")
    assert registry.table_rows([])[1] == []


def test_unknown_names_get_suggestions():
    assert registry.is_builtin("simclr_resnet50_d8192_e100_m2")
    for other in ("dissl", "", "../presets", ".", None, 3, registry.presets_folder()):
        assert not registry.is_builtin(other)
    with pytest.raises(ValueError, match="Did you mean .*dissl_resnet50_d8192_e800_m8.*keras-issl presets"):
        registry.shipped_folder("dissl_resnet50_d8192_e800_m9")
    with pytest.raises(ValueError, match=r"Received: '\.\./tests'. `keras-issl presets`"):
        registry.shipped_folder("../tests")


def test_presets_are_found_in_a_wheel_and_in_a_clone(tmp_path):
    package = tmp_path / "keras_issl"
    package.mkdir()
    with pytest.raises(FileNotFoundError, match="Install keras_issl again"):
        registry._presets_of(package)
    (tmp_path / "presets").mkdir()  # someone else's folder beside an installed package
    with pytest.raises(FileNotFoundError):
        registry._presets_of(package)
    (tmp_path / "pyproject.toml").touch()
    assert registry._presets_of(package) == tmp_path / "presets"
    (package / "presets").mkdir()
    assert registry._presets_of(package) == package / "presets"
