"""`smoke`: any recipe in about a minute on two CPU cores, every part of it at work."""

import dataclasses

from keras_issl.encoders import EXPANSION, STEMS, VARIANTS
from keras_issl.recipes.arguments import defaults, takes
from keras_issl.recipes.catalogue import get
from keras_issl.recipes.recipe import feature_dim

IMAGES = 64  # that a smoke run should be given
MOST_PIXELS = 64  # side of an image
BATCH, EPOCHS, WIDTH, HIDDEN = 16, 2, 8, 32
MOST = {  # arguments of objectives
    "num_classes": 64,
    "num_prototypes": 64,
    "output_dim": 16,
    "bottleneck": 16,
    "queue_length": 2 * BATCH,
    "queue_start_epoch": 1,
    "freeze_steps": 2,
    "freeze_epochs": 1,
    "warmup_epochs": 1,
    "invariance_warmup_steps": 4,
}


def smoke(recipe):
    """Shrinks a recipe to about a minute on two CPU cores, to see that all of it works before it is run for days.

    It keeps what makes the recipe: the objective and its heads, teacher and schedules, the wider representation in
    proportion, the number and the proportions of the crops, the optimizer, the precision. Widths, classes, prototypes,
    queues, images, batch and epochs become small. A shrunk recipe says so (`recipe.smoke`), also in the run folder.

    Args:
        recipe: A `Recipe`, or its name.

    Returns:
        A `Recipe` of two epochs, for `IMAGES` = 64 images or a few more.

    Example:

    >>> small = smoke("imagenet/dissl_resnet50_d8192_e400_m6")
    >>> small.augmentation_args["size"], small.augmentation_args["small_size"], small.encoder_args["feature_dim"]
    (40, 24, 1024)
    """
    recipe = get(recipe)
    if recipe.smoke:
        return recipe
    side = recipe.image_size or _largest_side(recipe)
    shrink = max(1, -(-side // MOST_PIXELS))
    batch = min(recipe.batch_size, BATCH)
    rate = recipe.learning_rate * (batch / recipe.batch_size if recipe.learning_rate_rule == "linear" else 1)
    warmup = recipe.warmup_epochs
    return dataclasses.replace(
        recipe,
        encoder_args=_encoder(recipe, shrink),
        objective_args=_objective(recipe),
        augmentation_args={
            name: value // shrink if name in ("size", "small_size") else value
            for name, value in recipe.augmentation_args.items()
        },
        image_size=recipe.image_size and recipe.image_size // shrink,
        preprocessing=recipe.preprocessing and {name: v // shrink for name, v in recipe.preprocessing.items()},
        epochs=min(recipe.epochs, EPOCHS),
        batch_size=batch,
        learning_rate=rate,
        warmup_epochs=warmup and min(warmup, EPOCHS / 4),
        warmup_start=min(recipe.warmup_start, rate),
        smoke=True,
    )


def _largest_side(recipe):
    size = recipe.augmentation_args.get("size", 0)
    return max(size) if isinstance(size, tuple) else size


def _encoder(recipe, shrink):
    """One block a stage and 8 channels, with the stem of the large one, its blocks' kind and its widening."""
    args = dict(recipe.encoder_args)
    variant, size, stem = args.pop("variant", None), args.get("image_size", 224), args.get("stem", "auto")
    stages, deep = VARIANTS[variant] if variant else (args["blocks"], bool(args.get("bottleneck")))
    if stem not in STEMS:
        stem = "cifar" if size < 50 else "small" if size < 100 else "imagenet"
    width = min(args.get("width", 64), WIDTH)
    args |= {"blocks": (1,) * len(stages), "bottleneck": deep, "width": width, "stem": stem}
    args["image_size"] = max(1, size // shrink)
    if args.get("feature_dim") is not None:
        last = 2 ** (len(stages) - 1) * (EXPANSION if deep else 1)
        args["feature_dim"] = max(1, args["feature_dim"] * width // recipe.encoder_args.get("width", 64))
        args["feature_dim"] = max(args["feature_dim"], last)
    return args


def _objective(recipe):
    """The arguments of the objective, given or by default, where they are large."""
    known = dict(defaults(takes(recipe, "objective_args")))
    args, width = dict(recipe.objective_args), feature_dim(_encoder(recipe, 1))
    imagenet = args.get("heads", known.get("heads")) == "imagenet"
    stacks = {"hidden": (2048, 2048) if imagenet else (1024,), "teacher_hidden": (1024,)}  # of DISSL, CISSL and SimCLR
    if imagenet and feature_dim(recipe.encoder_args) == 2048:
        stacks["teacher_hidden"] = ((2048, 2048), 512)
    elif imagenet:
        stacks["teacher_hidden"] = (512, (2048, 2048, 512))
    for name, default in known.items():
        value = args.get(name, default)
        if name in MOST:
            args[name] = min(value, MOST[name])
        elif name.endswith("hidden"):
            args[name] = _narrow(stacks[name] if value is None else value, width)
    return args


def _narrow(hidden, width):
    """Widths of at most `HIDDEN`; a residual block ends in the width it began with, at first that of the features."""
    found = []
    for h in hidden:
        found.append((*(min(w, 2 * HIDDEN) for w in h[:-1]), width) if isinstance(h, tuple) else min(h, HIDDEN))
        width = width if isinstance(h, tuple) else found[-1]
    return tuple(found)
