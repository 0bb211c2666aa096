"""Recipes: the numbers of the paper's runs, overrides, schedules, and every recipe at work in small."""

import dataclasses
import json
import math
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops
from PIL import Image

import keras_issl
from keras_issl import augmentations, cli, comparison, datasets, recipes, runs
from keras_issl.cli import recipe_options
from keras_issl.optimizers import WarmupCosine
from keras_issl.recipes import arguments, imagenet, shrinking
from keras_issl.zoo import registry

pytestmark = pytest.mark.backend_independent
ROOT = Path(keras_issl.__file__).parent.parent

# The paper's Table 1, written from its text: objective, features, epochs, batch, coarse augmentations.
TABLE = {
    "simclr": ("simclr", 512, 300, 512, False),
    "cissl": ("cissl", 512, 300, 512, False),
    "cissl+dim": ("cissl", 2048, 300, 512, False),
    "cissl+dim+epochs": ("cissl", 2048, 1000, 512, False),
    "cissl+dim+epochs+aug": ("cissl", 2048, 1000, 512, True),
    "dino": ("dino", 512, 300, 256, False),
    "dissl": ("dissl", 512, 300, 256, False),
    "dissl+dim": ("dissl", 2048, 300, 256, False),
    "dissl+dim+epochs": ("dissl", 2048, 1000, 256, False),
    "dissl+dim+epochs+aug": ("dissl", 2048, 1000, 256, True),
}
HEADS = {
    "simclr": {"temperature": 0.07, "output_dim": 128},
    "cissl": {"temperature": 0.07, "output_dim": 128},
    "dissl": {"num_classes": 16384, "maximality_weight": 2.3, "invariance_weight": 0.8, "teacher_temperature": 0.5},
    "dino": {"num_prototypes": 1000, "warmup_epochs": 50, "freeze_epochs": 1, "bottleneck": 256, "hidden": (1024,)},
}


# ---------------------------------------------------------------------- the catalogue
def test_the_catalogue_holds_all_three_families():
    assert [n for n in recipes.names() if n.startswith("tiny_imagenet/")] == [f"tiny_imagenet/{n}" for n in TABLE]
    ours = {n for n in recipes.names() if n.startswith("cifar10/")}
    assert ours == {"cifar10/dissl-small"} | {f"cifar10/{n}" for n in recipes.OBJECTIVES}
    released = {f"imagenet/{name}" for name in registry.released_names()}
    ours = {n for n in recipes.names() if n.startswith("imagenet/")}
    assert ours - released == {"imagenet/cissl_resnet50_dNone_e100_m2"}
    assert released - ours == set(imagenet.WITHOUT)
    assert len(recipes.OBJECTIVES) == 10


@pytest.mark.parametrize("name", TABLE)
def test_a_cell_of_the_papers_table(name):
    objective, features, epochs, batch, coarse = TABLE[name]
    recipe = recipes.get(f"tiny_imagenet/{name}")
    assert (recipe.objective, recipe.epochs, recipe.batch_size, recipe.image_size) == (objective, epochs, batch, 64)
    assert recipe.encoder_args["variant"] == 18 and shrinking.feature_dim(recipe.encoder_args) == features
    assert recipe.learning_rate == pytest.approx(2e-3 * batch / 256) and recipe.warmup_epochs == 10
    assert (recipe.optimizer, recipe.optimizer_args["l2"], recipe.clip_value) == ("adam", 1e-6, 2.0)
    assert HEADS[objective].items() <= recipe.objective_args.items()
    views = augmentations.SimCLR(**recipe.augmentation_args)
    plain = augmentations.SimCLR(64, preset="tiny_imagenet")
    assert (plain.min_scale, plain.jitter, plain.hue, plain.gray, plain.blur) == (0.2, 0.4, 0.1, 0.1, 0.0)
    expected = augmentations.SimCLR(64, preset="tiny_imagenet", blur=0.5).coarser(2.0) if coarse else plain
    for number in ("size", "min_scale", "jitter", "hue", "gray", "blur", "blur_kernel", "interpolation"):
        assert getattr(views, number) == getattr(expected, number), number
    assert not coarse or (views.blur_kernel, views.blur) == (7, 0.5)


@pytest.mark.parametrize("name", [n for n in recipes.names() if n.startswith("imagenet/") and "cissl" not in n])
def test_an_imagenet_recipe_says_what_the_released_encoder_says_of_itself(name):
    recipe = recipes.get(name)
    metadata = json.loads((registry.shipped_folder(name.split("/")[1]) / "metadata.json").read_text())
    released = metadata["recipe"]
    assert (recipe.epochs, recipe.batch_size) == (released["epochs"], released["batch_size"])
    assert shrinking.feature_dim(recipe.encoder_args) == metadata["feature_dim"]
    views = arguments.AUGMENTATIONS[recipe.augmentation](**recipe.augmentation_args)
    small = f"+{views.num_small}x{views.small_size[0]}" if recipe.augmentation == "multi_crop" else ""
    assert f"2x{views.size[0]}{small}" == released["views"]
    large, told = getattr(views, "large", views), released["augmentation"]
    assert [large.min_scale, large.max_scale] == told["crop_scale"]
    assert list(getattr(views, "small_scale", ())) == told.get("crop_scale_small", [])
    assert (large.jitter, large.hue, large.gray) == (told["jitter"], told["hue"], told["gray_probability"])
    args, theirs = recipe.objective_args, released["objective_args"]
    if recipe.objective == "dissl":
        assert (args["maximality_weight"], args["invariance_weight"]) == (theirs["lambda"], theirs["beta"])
        assert args.get("invariance_warmup_steps", 0) == (1000 if "beta_warmup" in theirs else 0)
    else:
        assert args["temperature"] == theirs["temperature"]
    assert args.get("probe", "linear") == metadata["probe"] and args["heads"] == "imagenet"
    assert recipe.learning_rate == pytest.approx(0.3 * recipe.batch_size / 256)
    lars = {"momentum": 0.9, "weight_decay": 1e-6, "trust_coefficient": 0.001, "epsilon": 1e-8, "clip": False}
    assert recipe.optimizer == "lars" and lars.items() <= recipe.optimizer_args.items()
    assert (recipe.warmup_epochs, recipe.clip_value, recipe.image_size) == (10, None, 256)
    assert recipe.preprocessing == metadata["preprocessing"]
    # What is released as SimCLR and trained with two heads, and what is not on record, is said.
    unsure = "data0" in name or "TLin" in name or name.endswith("d8192_e100_m6")
    assert bool(recipe.note) == (released["objective"].lower() != recipe.objective or unsure)


@pytest.mark.parametrize("objective", recipes.OBJECTIVES)
def test_cifar10_is_the_same_for_all_but_the_objective(objective):
    recipe, other = recipes.get(f"cifar10/{objective}"), recipes.get("cifar10/dissl")
    own = {"name": "", "objective": "dissl", "objective_args": {}}
    assert dataclasses.replace(recipe, **own) == dataclasses.replace(other, **own)
    assert (recipe.epochs, recipe.batch_size, recipe.encoder_args["stem"]) == (200, 256, "cifar")
    arguments.OBJECTIVES[objective](**recipe.objective_args).check_run(batch_size=256, epochs=200, steps_per_epoch=195)


def test_names_that_are_not_there_are_answered_with_near_ones():
    for name, words in {
        "tiny_imagenet/disl": "Did you mean tiny_imagenet/dissl",
        "dissl+dim": "Did you mean tiny_imagenet/dissl+dim",
        "mine": "--list-recipes",
        next(iter(imagenet.WITHOUT)): "without heads",
    }.items():
        with pytest.raises(ValueError, match=re.escape(words)):
            recipes.get(name)


def test_recipes_survive_json_and_share_nothing():
    for name in recipes.names():
        recipe = recipes.get(name)
        assert recipes.Recipe(**json.loads(json.dumps(dataclasses.asdict(recipe)))) == recipe
        assert dataclasses.replace(recipe).objective_args is not recipe.objective_args


def test_the_documented_table_is_the_code():
    header, rows = recipes.table_rows()
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert keras_issl.report.table(header, rows) in page
    for recipe in map(recipes.get, recipes.names()):
        assert recipe.note in page


# ---------------------------------------------------------------------- what a recipe refuses
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"objective": "disl"}, "Did you mean dissl?"),
        ({"objective_args": {"num_clases": 8}}, "Did you mean num_classes?"),
        ({"objective": "simclr", "objective_args": {"num_classes": 8}}, "arguments of SimCLR"),
        ({"objective_args": {"num_classes": "8"}}, "`objective_args.num_classes` should be an integer"),
        ({"encoder_args": {"feature_dm": 8}}, "Did you mean feature_dim?"),
        ({"augmentation_args": {"seed": 1}}, "'seed'"),
        ({"optimizer": "lars", "optimizer_args": {"l2": 1e-6}}, "arguments of LARS"),
        ({"optimizer_args": {"learning_rate": 1.0}}, "'learning_rate'"),
        ({"learning_rate_rule": "root"}, "`learning_rate_rule` should be one of"),
        ({"epochs": 1.5}, "`epochs` should be an integer"),
        ({"epochs": True}, "`epochs` should be an integer"),
        ({"learning_rate": math.inf}, "`learning_rate` should be above 0"),
        ({"clip_value": 0.0}, "`clip_value` should be above 0"),
        ({"epochs": 10, "warmup_epochs": 10}, "`warmup_epochs` should be at least 0 and below `epochs`"),
        ({"warmup_start": 1.0}, "`warmup_start` should be at least 0 and at most"),
        ({"image_size": 0}, "`image_size` should be above 0"),
        ({"precision": "float23"}, "`precision` should be a dtype policy of Keras"),
        ({"encoder_args": {"variant": 19}}, "`encoder_args.variant` should be one of"),
        ({"encoder_args": {"variant": 18, "blocks": (1,)}}, "exactly one of variant and blocks"),
        ({"encoder_args": {"variant": 18, "stem": "wide"}}, "`encoder_args.stem` should be one of"),
        ({"encoder_args": {"variant": 18, "image_size": 0}}, "`encoder_args.image_size` should be above 0"),
        ({"preprocessing": {"resize": 224, "crop": 256}}, "`preprocessing` should be None or two sizes"),
    ],
)
def test_what_is_wrong_is_said(wrong, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        recipes.Recipe(**wrong)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("cifar10/byol", {"optimizer_args.l2": -1}, "`l2`"),
        ("cifar10/byol", {"objective_args.teacher_momentum": (0.9, 2)}, "`teacher_momentum`"),
        ("cifar10/byol", {"augmentation_args.min_scale": 2.0}, "`augmentation_args`, for SimCLR: `(min_scale"),
        (
            "cifar10/byol",
            {"augmentation": "multi_crop"},
            "should hold small_size and num_small, which MultiCrop has no",
        ),
        ("cifar10/swav", {"objective_args.freeze_steps": 400}, "`freeze_steps` should be below the 400 steps"),
    ],
)
def test_arguments_out_of_range_leave_no_folder(name, changes, words, tmp_path):
    changed, _ = recipes.override(name, changes)
    data = datasets.ImageDataset(np.zeros((512, 32, 32, 3), "uint8"))
    with pytest.raises(ValueError, match=re.escape(words)):
        runs.pretrain(changed, data, tmp_path / "run", overrides=changes, verbose=False)
    assert not (tmp_path / "run").exists()


def test_what_takes_a_recipe_takes_its_name():
    recipe = recipes.get("cifar10/byol")
    assert recipes.get(recipe) is recipe
    assert recipes.describe("cifar10/byol") == recipes.describe(recipe)
    assert recipes.smoke("cifar10/byol") == recipes.smoke(recipe)
    assert recipes.override("cifar10/byol", {"epochs": 3}) == recipes.override(recipe, {"epochs": 3})
    assert " 1 epoch of " in recipes.describe(recipes.override(recipe, {"epochs": 1})[0])


def test_the_list_of_objectives_is_one():
    """The command line's, which must not import Keras, and those that have names to print."""
    assert set(recipe_options.OBJECTIVES) == set(recipes.OBJECTIVES) == set(comparison.LABELS)
    assert len(set(recipe_options.OBJECTIVES)) == len(recipe_options.OBJECTIVES)


# ---------------------------------------------------------------------- overrides
def test_overrides_are_typed():
    recipe = recipes.get("tiny_imagenet/dino")
    text = {
        "epochs": "400",
        "learning_rate": "1e-3",
        "clip_value": "none",
        "precision": "float32",
        "global_cosine": "true",
        "encoder_args.feature_dim": "1024",
        "objective_args.teacher_momentum": "0.99",
        "objective_args.hidden": "(64, 32)",
        "objective_args.batch_norm": "false",
        "augmentation_args.min_scale": "0.3",
        "optimizer_args.l2": "0",
    }
    changed, notes = recipes.override(recipe, text)
    assert notes == []
    values = {
        "epochs": 400,
        "learning_rate": 1e-3,
        "clip_value": None,
        "precision": "float32",
        "global_cosine": True,
        "encoder_args.feature_dim": 1024,
        "objective_args.teacher_momentum": 0.99,
        "objective_args.hidden": (64, 32),
        "objective_args.batch_norm": False,
        "augmentation_args.min_scale": 0.3,
        "optimizer_args.l2": 0.0,
    }
    assert {name: recipes.lookup(changed, name) for name in text} == values
    assert recipes.override(recipe, values) == (changed, [])
    assert changed.objective_args["num_prototypes"] == 1000, "the others stay"
    replaced, _ = recipes.override(recipe, {"optimizer": "sgd", "optimizer_args": "{'momentum': 0.9}"})
    assert replaced.optimizer_args == {"momentum": 0.9}
    completed, _ = recipes.override(recipe, {"optimizer_args.l2": 0.5, "optimizer_args": {"beta_1": 0.8, "l2": 0.1}})
    assert completed.optimizer_args == {"beta_1": 0.8, "l2": 0.5, "epsilon": 1e-8}
    small = recipes.small_images("byol", objective_args={"output_dim": 9}).objective_args
    assert (
        recipes.override(recipes.small_images("byol"), {"objective_args": {"output_dim": 9}})[0].objective_args == small
    )
    evaluated, _ = recipes.override(recipe, {"preprocessing": "{'resize': 72, 'crop': 64}"})
    assert evaluated.preprocessing == {"resize": 72, "crop": 64}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("epoch", "3", "Did you mean epochs?"),
        ("num_classes", "3", "Did you mean objective_args.num_classes?"),
        ("objective_args.num_clases", "3", "Did you mean objective_args.num_classes?"),
        ("name", "mine", "`changes` should name attributes"),
        ("objective_args.temperature", "1", "`changes` should name attributes"),
        ("epochs", "1.5", "`epochs` should be an integer. Received: '1.5'"),
        ("learning_rate", "fast", "`learning_rate` should be a number"),
        ("clip_value", "x", "`clip_value` should be a number or None"),
        ("global_cosine", "1", "`global_cosine` should be True or False"),
        ("objective_args.num_classes", 2.0, "`objective_args.num_classes` should be an integer"),
        ("optimizer", "lar", "Did you mean lars?"),
        ("epochs", "-1", "`epochs` should be above 0"),
    ],
)
def test_overrides_that_are_wrong(name, value, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        recipes.override(recipes.get("tiny_imagenet/dissl"), {name: value})


def test_a_changed_batch_rescales_the_learning_rate_and_says_so():
    recipe = recipes.get("tiny_imagenet/simclr")
    changed, notes = recipes.override(recipe, {"batch_size": "128"})
    assert changed.learning_rate == 0.001
    assert notes == ["learning_rate 0.004 -> 0.001: linear in batch_size, 512 -> 128"]
    given, notes = recipes.override(recipe, {"batch_size": 128, "learning_rate": 0.5})
    assert given.learning_rate == 0.5 and notes == []
    assert recipes.override(recipe, {"batch_size": 512}) == (recipe, [])
    unruled = dataclasses.replace(recipe, learning_rate_rule="none")
    assert recipes.override(unruled, {"batch_size": 128})[0].learning_rate == 0.004
    assert recipes.override(recipes.digits(), {"batch_size": 64})[0].learning_rate == 4e-3


def test_another_objective_views_or_optimizer_begin_with_their_defaults():
    changed, notes = recipes.override("tiny_imagenet/dissl", {"objective": "dino", "objective_args.bottleneck": "64"})
    assert changed.objective_args == {"heads": "small_images", "bottleneck": 64}
    assert len(notes) == 1 and "objective dissl -> dino: with the defaults of DINO" in notes[0]
    assert "teacher_temperature" in notes[0] and "heads" not in notes[0]
    changed, notes = recipes.override("tiny_imagenet/dissl", {"optimizer": "lars", "optimizer_args.momentum": "0.8"})
    assert changed.optimizer_args == {"momentum": 0.8} and notes[0].endswith("learning_rate stays 0.002")
    assert "learning_rate" not in recipes.override(changed, {"optimizer": "adam", "learning_rate": 1.0})[1][0]
    crops = {"augmentation": "multi_crop", "augmentation_args.small_size": 32, "augmentation_args.num_small": 2}
    changed, _ = recipes.override("tiny_imagenet/dissl", crops)
    assert changed.augmentation_args == {"size": 64, "preset": "tiny_imagenet", "small_size": 32, "num_small": 2}
    recipes.check(changed)


def test_of_two_warm_ups_one_counts():
    recipe = recipes.get("cifar10/byol")
    assert recipe.warmup_fraction is None and recipes.digits().warmup_fraction == 0.1
    changed, notes = recipes.override(recipe, {"warmup_fraction": "0.2"})
    assert (changed.warmup_fraction, changed.warmup_epochs) == (0.2, None)
    assert changed.steps(1000) == (3, 120, 600) and notes == ["warmup_epochs 10 -> none: warmup_fraction says"]
    assert recipes.Recipe(warmup_epochs=2, warmup_fraction=0.3).warmup_fraction is None


def test_a_short_run_shortens_its_schedules_and_says_so():
    recipe = recipes.get("tiny_imagenet/dino")  # 300 epochs, 10 of warm-up, 50 until the teacher's temperature is there
    changed, notes = recipes.override(recipe, {"epochs": 6})
    assert changed.warmup_epochs == 1.5 and changed.objective_args["warmup_epochs"] == 1
    assert [note.split()[0] for note in notes] == ["warmup_epochs", "objective_args.warmup_epochs"]
    longer, notes = recipes.override(recipe, {"epochs": 60})
    assert longer.warmup_epochs == 10 and longer.objective_args["warmup_epochs"] == 15
    assert notes == ["objective_args.warmup_epochs 50 -> 15: for 60 instead of 300 epochs"]
    half = dataclasses.replace(recipe, warmup_epochs=150)  # a share of more than a quarter stays one
    assert recipes.override(half, {"epochs": 30})[0].warmup_epochs == 15
    given, notes = recipes.override(recipe, {"epochs": 60, "objective_args": {"warmup_epochs": 40}})
    assert given.objective_args["warmup_epochs"] == 40 and notes == []
    with pytest.raises(ValueError, match="`warmup_epochs`"):
        recipes.override(recipe, {"epochs": 6, "warmup_epochs": 8})
    before = None
    for epochs in range(1, 301):  # no jumps: an epoch more is at most so much more of a schedule
        now, notes = recipes.override(recipe, {"epochs": epochs})
        lengths = now.warmup_epochs, now.objective_args["warmup_epochs"], now.objective_args["freeze_epochs"]
        if before:
            assert all(0 <= b - a <= 1 for a, b in zip(before, lengths, strict=True)), epochs
        changes = zip(lengths, (10, 50, 1), strict=True)
        assert len(notes) == sum(a != b for a, b in changes)
        before = lengths
    for objective in recipes.OBJECTIVES:
        short = recipes.small_images(objective, epochs=3)
        layer = arguments.OBJECTIVES[objective](**short.objective_args)
        layer.check_run(batch_size=256, epochs=3, steps_per_epoch=195)


def test_swav_fits_small_data_and_says_so():
    recipe = recipes.get("cifar10/swav")
    assert recipes.fit_to_images(recipe, 50_000) == (recipe, [])
    small, notes = recipes.fit_to_images(recipe, 1000)
    assert small.objective_args["freeze_steps"] == 3 and small.objective_args["queue_length"] == 3 * 256
    assert [note.split(":")[0] for note in notes] == [
        "objective_args.freeze_steps 195 -> 3",
        "objective_args.queue_length 3840 -> 768",
    ]
    assert recipes.fit_to_images(small, 1000) == (small, []), "once is enough"
    given = {"objective_args.freeze_steps": 300}
    asked, _ = recipes.override(recipe, given)
    assert recipes.fit_to_images(asked, 1000, given)[0].objective_args["freeze_steps"] == 300
    half, notes = recipes.override(recipe, {"batch_size": 128})  # an epoch has twice the steps
    assert half.objective_args["freeze_steps"] == 390 and notes[1].startswith("objective_args.freeze_steps 195 -> 390")
    for shrunk in (recipe, recipes.small_images("swav"), recipes.smoke(recipe)):
        for epochs in (1, 2, 5, 60):
            short, _ = recipes.override(shrunk, {"epochs": epochs, "batch_size": 8})
            for images in (1, 7, 24, 64, 1000):
                recipes.check(recipes.fit_to_images(short, images)[0], images)
    untouched = recipes.get("cifar10/dissl")
    assert recipes.fit_to_images(untouched, 8) == (untouched, [])


def test_build_fits_to_the_images():
    recipe = recipes.smoke("cifar10/swav")
    assert recipes.build(recipe, 20).objective.queue_length == 0
    assert recipes.build(recipe, 20, fit=False).objective.queue_length == 32


# ---------------------------------------------------------------------- schedules
def rates(recipe, images, steps):
    schedule = recipes.build_schedule(recipe, images)
    return [float(ops.convert_to_numpy(schedule(step))) for step in steps]


def test_the_learning_rate_of_a_tiny_imagenet_run():
    recipe = recipes.get("tiny_imagenet/dissl")  # 390 steps an epoch, ten of them warm-up
    assert recipe.steps(100_000) == (390, 3900, 117_000)
    found = rates(recipe, 100_000, [0, 390, 3900, 60_450, 117_000])
    assert found == pytest.approx([0.0, 2e-4, 2e-3, 1e-3, 0.0], abs=1e-9)


def test_the_learning_rate_of_an_imagenet_run():
    recipe = recipes.get("imagenet/dissl_resnet50_dNone_e100_m2")
    assert recipe.steps(1_281_167) == (500, 5000, 50_000)
    found = rates(recipe, 1_281_167, [0, 2500, 5000, 25_000, 50_000])
    # The cosine is the run's: at a tenth of it, it has fallen already.
    assert found == pytest.approx([0.001, 1.5005, 1.5 * (1 + math.cos(math.pi / 10)), 1.5, 0.0], abs=1e-6)


def test_digits_train_as_they_did_when_the_readme_was_measured():
    recipe = recipes.digits()
    assert (recipe.learning_rate, recipe.clip_value, recipe.epochs, recipe.batch_size) == (4e-3, 2.0, 60, 128)
    before = keras.optimizers.schedules.CosineDecay(0.0, 540, warmup_target=4e-3, warmup_steps=60)
    steps = range(0, 601, 7)
    wanted = [float(ops.convert_to_numpy(before(step))) for step in steps]
    assert rates(recipe, 1297, steps) == pytest.approx(wanted, rel=1e-4, abs=1e-9)  # Keras's cancels near 0
    assert isinstance(recipes.build_schedule(recipe, 1297), WarmupCosine)


# ---------------------------------------------------------------------- smoke
@pytest.mark.parametrize("name", recipes.names())
def test_smoke_keeps_what_makes_a_recipe(name):
    recipe = recipes.get(name)
    small = recipes.smoke(recipe)
    assert small.smoke and not recipe.smoke and recipes.smoke(small) == small
    for attribute in ("name", "objective", "optimizer", "optimizer_args", "augmentation", "precision", "clip_value"):
        assert getattr(small, attribute) == getattr(recipe, attribute)
    views = [arguments.AUGMENTATIONS[r.augmentation](**r.augmentation_args) for r in (recipe, small)]
    assert views[0].num_views == views[1].num_views and small.image_size <= 64 and small.batch_size == 16

    def widening(r):
        natural = shrinking.feature_dim({**r.encoder_args, "feature_dim": None})
        return shrinking.feature_dim(r.encoder_args) / natural

    assert widening(small) == widening(recipe)
    objective = arguments.OBJECTIVES[small.objective](**small.objective_args)
    objective.build((2, None, shrinking.feature_dim(small.encoder_args)))
    objective.check_run(batch_size=16, epochs=small.epochs, steps_per_epoch=4)
    assert objective.count_params() < 10_000_000


STEPS = (  # one of each kind of objective, heads, encoder, views and optimizer
    "tiny_imagenet/dissl+dim+epochs+aug",
    "tiny_imagenet/cissl+dim",
    "tiny_imagenet/dino",
    "imagenet/dissl_resnet50_d8192_e800_m8",
    "imagenet/dissl_resnet50_dNone_e400_m6",
    "imagenet/simclr_resnet50_d8192_e100_m2",
    "cifar10/swav",
    "cifar10/byol",
    "cifar10/simsiam",
    "cifar10/barlow_twins",
    "cifar10/vicreg",
    "cifar10/moco_v3",
)


@pytest.mark.parametrize("name", STEPS)
def test_a_shrunk_recipe_takes_a_step(name):
    recipe = dataclasses.replace(recipes.smoke(recipes.get(name)), warmup_epochs=0)  # whose first step has a rate of 0
    model = recipes.build(recipe, 64)
    model.run_eagerly = True  # tracing takes longer than a step
    assert model.encoder.output_shape[-1] == shrinking.feature_dim(recipe.encoder_args)
    before = [ops.convert_to_numpy(w).astype("float32") for w in model.encoder.trainable_weights]
    frozen = getattr(model.objective, "prototypes", None)  # in the first epoch
    start = frozen and ops.convert_to_numpy(frozen.kernel).copy()
    images = np.random.default_rng(0).integers(0, 256, (4, recipe.image_size, recipe.image_size, 3)).astype("uint8")
    if model.objective.uses_run_length:
        model.objective.set_run_length(recipe.epochs, 4)
    assert np.isfinite(model.train_on_batch(images)).all() and int(model.steps) == 1
    moved = [np.any(ops.convert_to_numpy(w) != b) for w, b in zip(model.encoder.trainable_weights, before, strict=True)]
    assert np.mean(moved) > 0.9
    if frozen:
        np.testing.assert_array_equal(ops.convert_to_numpy(frozen.kernel), start, "L2 is not a step of theirs")


# ---------------------------------------------------------------------- runs and the command line
@pytest.fixture
def images(tmp_path):
    """A folder of 64-pixel photographs, as Tiny-ImageNet's are."""
    rng = np.random.default_rng(0)
    for number in range(48):
        folder = tmp_path / "tiny" / "train" / f"n{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 64, 3)).astype("uint8")).save(folder / f"{number}.png")
    return str(tmp_path / "tiny")


def test_a_recipe_by_name_from_the_command_line(images, tmp_path, capsys):
    run = tmp_path / "run"
    options = ["--smoke", "--batch-size", "64", "--set", "objective_args.maximality_weight=2", "--out", str(run)]
    assert cli.main(["pretrain", "--recipe", "tiny_imagenet/dissl+dim", "--data", images, *options]) == 0
    out = capsys.readouterr().out
    assert "recipe: tiny_imagenet/dissl+dim: DISSL" in out and "48 images 64x64x3" in out
    assert "learning_rate 0.002 -> 0.0005: linear in batch_size, 256 -> 64" in out and "exp H(M)" in out
    described = json.loads((run / "run.json").read_text())
    assert described["overrides"] == {"batch_size": 64, "objective_args.maximality_weight": 2.0}
    assert [note.split()[0] for note in described["notes"]] == ["learning_rate", "smoke:"]
    recipe = recipes.Recipe(**described["recipe"])
    assert recipe.smoke and recipe.name == "tiny_imagenet/dissl+dim" and recipe.learning_rate == 0.0005 / 4
    assert recipe.objective_args["maximality_weight"] == 2.0
    assert keras_issl.from_preset(run).output_shape == (None, 256)
    assert (
        "smoke: everything shrunk to a minute's work, 2 epochs of batches of 16 at a learning rate of 0.000125" in out
    )
    assert recipes.build_augmentation(described["recipe"]).size == (64, 64)


def test_a_shrunk_swav_and_an_evaluation_protocol_from_the_command_line(images, tmp_path, capsys):
    run, options = tmp_path / "run", ["--limit", "10", "--smoke", "--set", "preprocessing={'resize': 36, 'crop': 32}"]
    assert cli.main(["pretrain", "--recipe", "cifar10/swav", "--data", images, "--out", str(run), *options]) == 0
    out = capsys.readouterr().out
    assert "stored at 32x32 for this recipe; those of" in out and "are 64x64 (the first one) and are shrunk" in out
    assert "objective_args.freeze_steps 2 -> 0: an epoch of 10 images has 1 step, the run 2" in out
    notes = json.loads((run / "run.json").read_text())["notes"]
    assert [note.split()[0] for note in notes] == [
        "smoke:",
        *(f"objective_args.{n}" for n in ("freeze_steps", "queue_length")),
    ]
    assert keras_issl.zoo.read_metadata(run)["preprocessing"] == {"resize": 36, "crop": 32}


@pytest.mark.parametrize(("option", "words"), [("64", "are 8x8 (the first one) and are enlarged"), (None, None)])
def test_what_a_size_does_to_the_images_is_said(option, words, tmp_path, capsys):
    options = ["--image-size", option] if option else []
    cli.main(
        [
            "pretrain",
            "digits",
            *options,
            "--smoke",
            "--objective",
            "simclr",
            "--limit",
            "16",
            "--out",
            str(tmp_path / "r"),
        ]
    )
    out = capsys.readouterr().out
    assert words in out if words else "stored at" not in out


def test_images_of_another_size_are_refused(tmp_path):
    data = datasets.load("digits", split="test").take(64)
    with pytest.raises(ValueError, match=r"64x64 pixels for the recipe 'tiny_imagenet/dissl'. Received: .* at 8x8"):
        runs.pretrain(recipes.get("tiny_imagenet/dissl"), data, tmp_path / "run", verbose=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recipe", "tiny_imagenet/disl", "--data", "digits"], "Did you mean tiny_imagenet/dissl"),
        (["--recipe", "cifar10/byol"], "`--data` should name the images"),
        (["digits", "--data", "digits"], "should be named once"),
        (["digits", "--recipe", "cifar10/byol", "--objective", "byol"], "without --objective"),
        (["digits", "--recipe", "cifar10/byol", "--compare", "--encoder", "narrow"], "without --encoder and --compare"),
        (["digits", "--objectives", "byol"], "is for --compare"),
        (["digits", "--compare", "--objectives", "byol", "byol"], "once"),
        (["digits", "--set", "epochs"], "should be NAME=VALUE"),
        (["digits", "--set", "epochs=3", "--epochs", "4"], "should be given once"),
        (["digits", "--set", "epohcs=3"], "Did you mean epochs?"),
        (["digits", "--set", "objective_args.num_classes=many"], "should be an integer"),
        (["digits", "--recipe", "cifar10/byol", "--num-classes", "9"], "`--num-classes` is for DISSL"),
        (["digits", "--set", "objective_args.temprature=3"], "`--set` should name attributes"),
        (["digits", "--set", "augmentation=multi_crop"], "should hold small_size and num_small"),
        (["digits", "--set", "optimizer=lars", "--set", "optimizer_args.momentum=-1"], "`momentum`"),
    ],
)
def test_mistakes_with_recipes_are_one_line(arguments, words, capsys):
    assert cli.main(["pretrain", *arguments]) == 2
    err = capsys.readouterr().err
    assert words in err and "Traceback" not in err and err.count("\n") == 1


def test_the_catalogue_is_printed(capsys):
    assert cli.main(["pretrain", "--list-recipes"]) == 0
    out = capsys.readouterr().out
    assert all(f"{name} " in out for name in recipes.names())
    assert "DISSL, ResNet-50 to 8192 features, 2x160+4x96 px, 400 epochs of batches of 2560, LARS 3" in out
