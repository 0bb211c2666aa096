"""From a recipe to what it describes: the encoder, the augmentation, the compiled model."""

import keras

from keras_issl import augmentations, distribution, encoders
from keras_issl.optimizers import WarmupCosine
from keras_issl.pretraining import Pretrainer
from keras_issl.recipes.arguments import AUGMENTATIONS, OBJECTIVES, OPTIMIZERS, check
from keras_issl.recipes.catalogue import get
from keras_issl.recipes.overrides import fit_to_images


def build_encoder(recipe):
    """The encoder of a recipe with the initial weights of its seed, which it gives to Keras's global generators.

    Args:
        recipe: A `Recipe`, or its name.

    Example:

    >>> build_encoder("cifar10/byol").output_shape
    (None, 512)
    """
    recipe = get(recipe)
    keras.utils.set_random_seed(recipe.seed)
    return encoders.ResNet(dtype=recipe.precision, **recipe.encoder_args)


def build_augmentation(described, image_size=None):
    """The augmentation that a preset's recipe describes.

    Args:
        described: The `recipe` of a preset's metadata: a run's `Recipe` as a dict, or what a release says of itself,
            with the numbers of the crop, the jitter, ... under `augmentation`.
        image_size: Side of the views where the recipe has none.

    Returns:
        The augmentation (of multi-crop the large views, which the teacher sees), or `None` if the recipe does not say
        which.

    Example:

    >>> metadata = keras_issl.zoo.read_metadata("dissl_resnet50_d8192_e800_m8")
    >>> build_augmentation(metadata["recipe"], 224).min_scale
    0.14
    """
    kind = (described or {}).get("augmentation")
    if isinstance(kind, str) and kind in AUGMENTATIONS:
        augmentation = AUGMENTATIONS[kind](**{"size": image_size, **described.get("augmentation_args", {})})
        return getattr(augmentation, "large", augmentation)
    if not isinstance(kind, dict) or "crop_scale" not in kind:
        return None
    low, high = kind["crop_scale"]  # of the large views
    given = {"jitter": "jitter", "hue": "hue", "gray": "gray_probability", "blur": "blur_probability"}
    options = {name: kind[key] for name, key in given.items() if key in kind}
    return augmentations.SimCLR(image_size or 224, preset="imagenet", min_scale=low, max_scale=high, **options)


def build_schedule(recipe, num_images):
    """The learning rate of a recipe, step by step.

    Args:
        recipe: A `Recipe`, or its name.
        num_images: How many images an epoch has.

    Returns:
        An `optimizers.WarmupCosine`.

    Example:

    >>> rate = build_schedule("tiny_imagenet/dissl", 100_000)
    >>> round(float(rate(3900)), 6)  # after ten epochs of 390 steps
    0.002
    """
    recipe = get(recipe)
    _, warmup, total = recipe.steps(num_images)
    return WarmupCosine(
        recipe.learning_rate, total, warmup, start=recipe.warmup_start, global_cosine=recipe.global_cosine
    )


def build(recipe, num_images, *, fit=True, online_probe=None):
    """The compiled `Pretrainer` of a recipe.

    Args:
        recipe: A `Recipe`, or its name.
        num_images: How many images an epoch has: the learning rate falls to 0 with the last step.
        fit: Whether the recipe is fitted to them first, as `fit_to_images` does, which also says what it changed.
        online_probe: As in `Pretrainer`.

    Example:

    >>> model = build(keras_issl.recipes.digits("simclr"), 1280)
    >>> model.optimizer.clipvalue
    2.0
    """
    recipe = fit_to_images(recipe, num_images)[0] if fit else get(recipe)
    check(recipe)
    encoder = build_encoder(recipe)
    with distribution.dtype_scope(recipe.precision):
        model = Pretrainer(
            encoder,
            OBJECTIVES[recipe.objective](**recipe.objective_args),
            AUGMENTATIONS[recipe.augmentation](seed=recipe.seed, **recipe.augmentation_args),
            online_probe=online_probe,
            seed=recipe.seed,
        )
    options = {} if recipe.clip_value is None else {"clipvalue": recipe.clip_value}
    rate = build_schedule(recipe, num_images)
    optimizer = OPTIMIZERS[recipe.optimizer](rate, **recipe.optimizer_args, **options)
    # The length of a prototype has no effect, so there is nothing to decay. A frozen one has a gradient of zero, beside
    # which L2 is the whole of Adam's step, as long as any other: it would turn.
    optimizer.exclude_from_weight_decay(var_names=["prototypes"])
    model.compile(optimizer)
    return model
