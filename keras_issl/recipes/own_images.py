"""Recipes for one's own images: a function of their size, the encoder and the objective."""

from keras_issl import encoders
from keras_issl.recipes import cifar10
from keras_issl.recipes.arguments import OBJECTIVES, nearest
from keras_issl.recipes.overrides import fit_to_epochs
from keras_issl.recipes.recipe import Recipe

PAPERS_OWN = ("dissl", "cissl", "simclr")  # on small images, the defaults of the objectives are the paper's
ENCODERS = {  # chosen; name -> arguments of the encoder, and the width of its features
    "narrow": ({"blocks": (1, 1, 1, 1), "width": 16, "stem": "strided"}, 128),
    "resnet18": ({"variant": 18}, 512),
    "resnet50": ({"variant": 50}, 2048),
}


def digits(objective="dissl", **changes):
    """scikit-learn's 1,797 scanned digits, 8x8 pixels: the README's first run, minutes on two CPU cores.

    Args:
        objective: Key of `OBJECTIVES`.
        **changes: Attributes of `Recipe` to change.

    Returns:
        A `Recipe`.

    Example:

    >>> digits("cissl", epochs=10).batch_size
    128
    """
    recipe = Recipe(
        name="digits",
        objective=_known(objective),
        # The best of 32, 64 and 128 with this encoder on a held-out quarter of train: few classes merge more.
        objective_args={"num_classes": 32} if objective == "dissl" else _objective_args(objective, 192, 10),
        # Chosen: the stem keeps the resolution, four stages see the whole digit. 24 to 192 channels.
        encoder_args={"blocks": (1, 1, 1, 1), "width": 24, "image_size": 8, "stem": "cifar"},
        # Flips and colour would turn digits into others or do nothing; shape and stroke may vary.
        augmentation="affine",
        augmentation_args={"size": 8},
        epochs=60,  # chosen: minutes on two CPU cores
        batch_size=128,  # chosen: ten steps an epoch
        learning_rate=4e-3,
        learning_rate_rule="none",  # found for DISSL at this batch size, and tried at no other
        warmup_fraction=0.1,  # chosen
        clip_value=2.0,  # the paper's for small images
        precision="float32",  # for CPUs
        seed=0,  # chosen
        image_size=8,
    )
    return _changed(recipe, changes)


def small_images(objective="dissl", image_size=32, encoder="narrow", augmentation="simclr", **changes):
    """One's own small images, or CIFAR-10: the paper's objectives, heads, augmentations and Adam.

    It differs from the paper's runs in the number of epochs, the share of warm-up steps, and in being Keras's Adam as
    it comes: without an L2 penalty (theirs 1e-6), with an epsilon of 1e-7 (theirs 1e-8), in float32.

    Args:
        objective: Key of `OBJECTIVES`.
        image_size: Side of the views in pixels.
        encoder: `"narrow"` (a ResNet of 16 to 128 channels with a strided stem, for CPUs),
            `"resnet18"` or `"resnet50"`.
        augmentation: `"simclr"` for photographs; `"affine"` where flips and colour change the label.
        **changes: Attributes of `Recipe` to change.

    Returns:
        A `Recipe`.

    Raises:
        ValueError: Unknown encoder or objective.

    Example:

    >>> small_images("byol", image_size=64, encoder="resnet18").objective_args["hidden"]
    (1024,)
    """
    if encoder not in ENCODERS:
        hint = nearest(encoder, ENCODERS)
        raise ValueError(f"`encoder` should be one of {sorted(ENCODERS)}. Received: {encoder!r}.{hint}")
    encoder_args, width = ENCODERS[encoder]
    # 32 px: CIFAR-10's row of the paper's augmentations and its constants; larger: Tiny-ImageNet's row, ImageNet's.
    like_cifar = image_size <= 32
    preset = {"preset": "cifar10" if like_cifar else "tiny_imagenet"} if augmentation == "simclr" else {}
    normalization = encoders.NORMALIZATIONS["cifar10" if like_cifar else "imagenet"]
    recipe = Recipe(
        name="small_images",
        objective=_known(objective),
        objective_args=_objective_args(objective, width),
        encoder_args={**encoder_args, "image_size": image_size, **normalization},
        augmentation=augmentation,
        augmentation_args={"size": image_size, **preset},
        epochs=100,  # chosen: a third of the paper's shortest small-image runs
        batch_size=256,  # that of the paper's distillation runs
        # The paper's Adam: 2e-3 at batch 256, in proportion at others.
        learning_rate=2e-3,
        learning_rate_rule="linear",
        warmup_fraction=0.1,  # chosen: the paper's ten epochs are a thirtieth of its runs
        clip_value=2.0,  # the paper's
        precision="float32",  # for CPUs
        seed=0,  # chosen
    )
    return _changed(recipe, changes)


def _known(objective):
    if objective not in OBJECTIVES:
        hint = nearest(objective, OBJECTIVES)
        raise ValueError(f"`objective` should be one of {sorted(OBJECTIVES)}. Received: {objective!r}.{hint}")
    return objective


def _objective_args(objective, width, steps_per_epoch=195):
    return {} if objective in PAPERS_OWN else cifar10.objective_args(objective, width, steps_per_epoch)


def _changed(recipe, changes):
    """The recipe with some attributes changed; dictionaries of arguments are completed, not replaced."""
    merged = {
        name: getattr(recipe, name) | value if isinstance(value, dict) else value for name, value in changes.items()
    }
    given = {f"objective_args.{name}" for name in changes.get("objective_args", {})}
    return fit_to_epochs(recipe, merged, given)[0]
