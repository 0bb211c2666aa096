"""From an encoder to a page, in Python and from the shell."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest
from members import SMALL
from PIL import Image

import keras_issl
from keras_issl import augmentations, cli, datasets, diagnosis, diagnostics, recipes


@pytest.fixture(scope="module")
def model():
    encoder = keras_issl.encoders.ResNet(blocks=(1,), width=8, image_size=8, stem="cifar")
    model = keras_issl.Pretrainer(encoder, keras_issl.objectives.DISSL(num_classes=6), augmentations.Affine(8))
    model.compile("adam")
    model.fit(datasets.load("digits", split="train").take(128), batch_size=64, epochs=1, verbose=0)
    return model


@pytest.fixture
def preset(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = {"augmentation": "affine", "augmentation_args": {"size": 8, "rotation": 7.0}}
    keras_issl.save_preset(model.encoder, "mine", objective=model.objective, recipe=recipe)
    return "mine"


def headings(page):
    return re.findall(r"<h2[^>]*>(.*?)</h2>", page.read_text(encoding="utf-8"))


def test_a_page_of_everything(model, tmp_path):
    train, test = (datasets.load("digits", split=split) for split in ("train", "test"))
    untrained = keras_issl.encoders.ResNet(blocks=(1,), width=8, image_size=8, stem="cifar")
    said = []
    found = diagnosis.diagnose_encoder(
        model.encoder,
        test.take(48),
        augmentations.Affine(8),
        tmp_path / "new" / "page.html",
        objective=model.objective,
        untrained=untrained,
        labelled=(train.take(200), test.take(100)),
        num_views=3,
        tasks=4,
        say=said.append,
    )
    titles = headings(found.path)
    for title in ("Verdicts", "Measures", "Idealness", "Dimensions", "Where the error comes from", "Learned classes"):
        assert title in titles
    assert len(said) == 3 and found.seconds > 0
    parts = (found.risk.usability, found.risk.probe_generalization, found.risk.encoder_generalization)
    assert sum(parts) == pytest.approx(found.risk.total)
    names = {point.representation for one in found.idealness for point in one.points}
    assert names == {"this encoder", "random encoder", "raw pixels", "one-hot"}
    assert {point.probe for one in found.idealness for point in one.points} == {"linear", "mlp"}
    assert sum(len(one.images) for one in found.classes.classes) == 48


@pytest.mark.backend_independent
def test_without_labels_and_heads_there_are_fewer_sections(model, tmp_path):
    images = datasets.load(datasets.load("digits", split="test").take(16).images)
    found = diagnosis.diagnose_encoder(
        model.encoder, images, augmentations.Affine(8), tmp_path / "page.html", num_views=2, tasks=3
    )
    assert found.risk is None and found.classes is None
    titles = headings(found.path)
    assert "Verdicts" in titles and not {"Learned classes", "Where the error comes from"} & set(titles)
    with pytest.raises(ValueError, match="at least 16 images"):
        diagnosis.diagnose_encoder(model.encoder, images.take(5), augmentations.Affine(8), tmp_path / "page.html")
    with pytest.raises(ValueError, match="should end in .html"):
        diagnosis.diagnose_encoder(model.encoder, images, augmentations.Affine(8), tmp_path / "page.pdf")


@pytest.mark.parametrize("name", SMALL)
def test_heads_of_every_objective_are_asked_for_classes(name, rng):
    """DISSL's teacher assigns the encoder's features; DINO's reads those of a moving average, others none."""
    objective = SMALL[name]()
    objective.build((2, None, 5))
    views = rng.normal(size=(3, 6, 5)).astype("float32")
    found = diagnosis._probabilities(objective, views)
    if name == "DISSL":
        assert found.shape == (3, 6, 12)
        return
    assert found is None
    with pytest.raises(ValueError, match="moving-average encoder" if name == "DINO" else "learned classes"):
        diagnostics.assignments(objective, views)


@pytest.mark.backend_independent
def test_advice_is_for_the_objective_at_hand(tmp_path):
    """Of a BYOL encoder no word on other objectives; without knowing the objective, what each one takes."""
    images = datasets.load(datasets.load("digits", split="test").take(16).images)
    encoder = keras_issl.encoders.ResNet(blocks=(1,), width=8, image_size=8, stem="cifar")
    byol = SMALL["BYOL"]()
    byol.build((2, None, 8))
    said = {}
    for name, given in {"known": {"objective": byol}, "named": {"trained_for": "vicreg"}, "unknown": {}}.items():
        path = tmp_path / f"{name}.html"
        diagnosis.diagnose_encoder(encoder, images, Noise(), path, num_views=2, tasks=2, **given)
        said[name] = path.read_text(encoding="utf-8")
    assert "use the augmentation that the encoder was trained with" in said["known"]
    assert "CISSL" not in said["known"] and "DISSL:" not in said["known"]
    assert "VICReg: raise invariance_weight" in said["named"] and "DISSL:" not in said["named"]
    assert "CISSL, SimCLR and MoCo v3: raise the temperature" in said["unknown"] and "DISSL:" in said["unknown"]


class Noise:
    """Views that know nothing of the image."""

    def __call__(self, images):
        shape = keras.ops.shape(images)
        return [keras.random.uniform(shape, 0, 255) for _ in range(2)]


def test_raw_pixels_are_averaged_to_at_most_32():
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype("uint8")
    pixels = diagnosis.raw_pixels((64, 64, 3)).predict(images, verbose=0)
    expected = images.astype("float64").reshape(2, 32, 2, 32, 2, 3).mean(axis=(2, 4)).reshape(2, -1) / 255
    np.testing.assert_allclose(pixels, expected, atol=1e-5)
    assert diagnosis.raw_pixels((8, 8, 3)).output_shape == (None, 192)


@pytest.mark.backend_independent
def test_diagnose_from_the_shell(preset, capsys):
    options = ["--limit", "60", "--views", "3", "--tasks", "3"]
    assert cli.main(["diagnose", preset, "digits", *options, "--out", "pages/d.html"]) == 0
    out = capsys.readouterr().out
    assert "views: Affine, as in training" in out and "Written in" in out and "pages/d.html" in out
    page = Path("pages/d.html").read_text(encoding="utf-8")
    assert "mine on digits/test" in page and "Learned classes" in page and "7.0" in page
    assert cli.main(["diagnose", preset, "digits", *options, "--views", "1"]) == 2
    assert "`num_views` should be an integer of at least 2" in capsys.readouterr().err
    assert cli.main(["diagnose", preset, "digits", "--out", "page.txt"]) == 2
    assert "should end in .html" in capsys.readouterr().err


@pytest.mark.backend_independent
def test_class_names_with_markup_reach_no_page_unescaped(preset, tmp_path, capsys):
    digits, hostile = datasets.load("digits", split="test").take(60), "<b onclick=x>&one"
    for i, label in enumerate(digits.labels):
        folder = tmp_path / "photos" / (hostile if label % 2 else "zero")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.images[i]).save(folder / f"{i}.png")
    assert cli.main(["probe", preset, "photos", "--probe", "linear", "knn", "--shots", "2", "10%", "--draws", "2"]) == 0
    out = capsys.readouterr().out
    assert "| labels a class | linear" in out and "0.1 of train" in out and "photos (1/5 held out, seed 0)" in out
    assert cli.main(["diagnose", preset, "photos", "--views", "2", "--tasks", "2"]) == 0
    assert "12 images, is held out as test" in capsys.readouterr().out  # for the risk decomposition
    files = sorted((tmp_path / "reports").iterdir())
    assert [file.suffix for file in files].count(".json") == 2
    for page in (file for file in files if file.suffix == ".html"):
        assert "<b " not in page.read_text(encoding="utf-8")


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "options, message",
    [
        (["--seeds", "0"], "`--seeds` should be at least 1"),
        (["--out", "x.json"], "should end in .html"),
        (["--out", "mine.html"], "mine.html, which do"),
        (["--out", "my.html"], "my.json, which do"),
        (["--test-split", "tset"], "should be"),
        (["--shots", "500"], "`shots` should be at most"),
    ],
)
def test_probe_refuses(preset, options, message, capsys):
    for name in ("mine.html", "my.json"):
        Path(name).write_text("somebody's")
    assert cli.main(["probe", preset, "digits", "--limit", "120", *options]) == 2
    assert Path("mine.html").read_text() == Path("my.json").read_text() == "somebody's"
    assert message in capsys.readouterr().err


@pytest.mark.backend_independent
def test_unlabelled_images_can_be_diagnosed_and_not_probed(preset, tmp_path, capsys):
    digits = datasets.load("digits", split="test").take(20)
    (tmp_path / "bare").mkdir()
    for i, image in enumerate(digits.images):
        Image.fromarray(image).save(tmp_path / "bare" / f"{i}.png")
    options = ["--views", "2", "--tasks", "2"]
    assert cli.main(["diagnose", preset, "bare", *options]) == 0
    assert "no risk decomposition: there are images without a label" in capsys.readouterr().out
    assert cli.main(["diagnose", preset, "bare", *options, "--risk"]) == 2
    assert "`--risk` needs labelled training and test images" in capsys.readouterr().err
    assert cli.main(["probe", preset, "bare"]) == 2
    err = capsys.readouterr().err
    assert "one sub-folder a class" in err and "16 of 16 images without" in err


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    ("splits", "chosen"), [(("train", "val"), "val"), (("train",), "train"), (("val", "test"), "test")]
)
def test_splits_are_chosen_or_asked_for(preset, splits, chosen, tmp_path, capsys):
    digits = iter(datasets.load("digits", split="train").take(40 * len(splits)).images)
    for split in splits:
        for i in range(40):
            folder = tmp_path / "photos" / split / "ab"[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(next(digits)).save(folder / f"{i}.png")
    assert cli.main(["diagnose", preset, "photos", "--views", "2", "--tasks", "2"]) == 0
    out = capsys.readouterr().out
    assert f"data: photos/{chosen}, 40 images" in out
    assert ("no test split: these are the images of" in out) == (chosen != "test")
    assert ("8 images, is held out as test" in out) == (chosen == "train")
    assert ("no risk decomposition" in out) == ("train" not in splits)
    if len(splits) > 1:
        assert cli.main(["features", preset, "photos", "f.npz"]) == 2
        err = capsys.readouterr().err
        assert f"`--split` should be one of {sorted(splits)}" in err and "Received: none" in err and "split=" not in err
    assert cli.main(["features", preset, "photos", "f.npz", "--split", chosen]) == 0
    assert len(keras_issl.Features.load("f.npz")) == 40
    capsys.readouterr()
    assert cli.main(["probe", preset, "photos", "--split", chosen, "--test-split", "other"]) == 2
    assert "`--test-split` should be" in capsys.readouterr().err


@pytest.mark.backend_independent
def test_the_augmentation_of_a_recipe():
    released = keras_issl.zoo.read_metadata("dissl_resnet50_dNone_e100_m2_augSmall")["recipe"]
    views = recipes.build_augmentation(released, 224)
    assert (views.min_scale, views.max_scale, views.jitter, views.hue) == (0.16, 1.0, 0.4, 0.1)
    own = recipes.build_augmentation({"augmentation": "affine", "augmentation_args": {"size": 8, "shear": 3.0}})
    assert own.size == (8, 8) and own.shear == 3.0
    assert recipes.build_augmentation(None) is None and recipes.build_augmentation({"augmentation": "mixup"}) is None
