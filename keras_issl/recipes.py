"""Recipes: how a run is set up, as frozen dataclasses, with a reason beside each number."""

import dataclasses
import math

import keras

from keras_issl import augmentations, distribution, encoders, objectives
from keras_issl.pretraining import Pretrainer

OBJECTIVES = {"dissl": objectives.DISSL, "cissl": objectives.CISSL, "simclr": objectives.SimCLR}
AUGMENTATIONS = {"simclr": augmentations.SimCLR, "affine": augmentations.Affine}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides a pre-training run but the data.

    Attributes:
        objective: Key of `OBJECTIVES`.
        objective_args: Arguments of the objective that differ from its defaults.
        encoder_args: Arguments of `encoders.ResNet`.
        augmentation: Key of `AUGMENTATIONS`.
        augmentation_args: Arguments of the augmentation, the view size among them.
        epochs: Passes over the images.
        batch_size: Images in a batch; incomplete batches are dropped.
        learning_rate: Peak learning rate of Adam.
        warmup_fraction: Share of the steps in which the rate rises linearly from 0; then cosine to 0.
        clip_value: Each gradient component is clipped to ± this.
        precision: A Keras dtype policy.
        seed: Of the initial weights, the order of images and the augmentation.
    """

    objective: str = "dissl"
    objective_args: dict = dataclasses.field(default_factory=dict)
    encoder_args: dict = dataclasses.field(default_factory=dict)
    augmentation: str = "simclr"
    augmentation_args: dict = dataclasses.field(default_factory=dict)
    epochs: int = 100
    batch_size: int = 256
    learning_rate: float = 2e-3
    warmup_fraction: float = 0.1
    clip_value: float = 2.0
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self):
        for name, known in (("objective", OBJECTIVES), ("augmentation", AUGMENTATIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` should be one of {sorted(known)}. Received: {getattr(self, name)!r}")
        for name in ("epochs", "batch_size", "learning_rate", "clip_value"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` should be above 0. Received: {getattr(self, name)}")
        if not 0 <= self.warmup_fraction < 1:
            raise ValueError(f"`warmup_fraction` should be in [0, 1). Received: {self.warmup_fraction}")


def build_encoder(recipe):
    """The encoder of a recipe with the initial weights of its seed, which it gives to Keras's global generators."""
    keras.utils.set_random_seed(recipe.seed)
    return encoders.ResNet(dtype=recipe.precision, **recipe.encoder_args)


def build_augmentation(described, image_size=None):
    """The augmentation that a preset's recipe describes.

    Args:
        described: The `recipe` of a preset's metadata: a run's `Recipe` as a dict, or what a release says of itself,
            with the numbers of the crop, the jitter, ... under `augmentation`.
        image_size: Side of the views where the recipe has none.

    Returns:
        The augmentation, or `None` if the recipe does not say which.

    Example:

    >>> metadata = keras_issl.zoo.read_metadata("dissl_resnet50_d8192_e800_m8")
    >>> build_augmentation(metadata["recipe"], 224).min_scale
    0.14
    """
    kind = (described or {}).get("augmentation")
    if isinstance(kind, str) and kind in AUGMENTATIONS:
        return AUGMENTATIONS[kind](**{"size": image_size, **described.get("augmentation_args", {})})
    if not isinstance(kind, dict) or "crop_scale" not in kind:
        return None
    low, high = kind["crop_scale"]  # of the large views, which the teacher sees
    given = {"jitter": "jitter", "hue": "hue", "gray": "gray_probability", "blur": "blur_probability"}
    options = {name: kind[key] for name, key in given.items() if key in kind}
    return augmentations.SimCLR(image_size or 224, preset="imagenet", min_scale=low, max_scale=high, **options)


def build(recipe, num_images):
    """The compiled `Pretrainer` of a recipe.

    Args:
        recipe: A `Recipe`.
        num_images: How many images an epoch has: the learning rate falls to 0 with the last step.
    """
    encoder = build_encoder(recipe)
    with distribution.dtype_scope(recipe.precision):
        model = Pretrainer(
            encoder,
            OBJECTIVES[recipe.objective](**recipe.objective_args),
            AUGMENTATIONS[recipe.augmentation](seed=recipe.seed, **recipe.augmentation_args),
            seed=recipe.seed,
        )
    steps = max(1, num_images // min(recipe.batch_size, num_images)) * recipe.epochs
    warmup = math.ceil(recipe.warmup_fraction * steps)
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else recipe.learning_rate,
        decay_steps=max(1, steps - warmup),
        warmup_target=recipe.learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    model.compile(keras.optimizers.Adam(schedule, clipvalue=recipe.clip_value))
    return model


def digits(objective="dissl", **changes):
    """scikit-learn's 1,797 scanned digits, 8x8 pixels: the README's first run, minutes on two CPU cores.

    Args:
        objective: Key of `OBJECTIVES`.
        **changes: Attributes of `Recipe` to change.
    """
    recipe = Recipe(
        objective=objective,
        # The best of 32, 64 and 128 with this encoder on a held-out quarter of train: few classes merge more.
        objective_args={"num_classes": 32} if objective == "dissl" else {},
        # The stem keeps the resolution, four stages see the whole digit. 24 to 192 channels.
        encoder_args={"blocks": (1, 1, 1, 1), "width": 24, "image_size": 8, "stem": "cifar"},
        # Flips and colour would turn digits into others or do nothing; shape and stroke may vary.
        augmentation="affine",
        augmentation_args={"size": 8},
        epochs=60,
        batch_size=128,
        learning_rate=4e-3,
    )
    return _changed(recipe, changes)


def _changed(recipe, changes):
    """The recipe with some attributes changed; dictionaries of arguments are completed, not replaced."""
    merged = {
        name: getattr(recipe, name) | value if isinstance(value, dict) else value for name, value in changes.items()
    }
    return dataclasses.replace(recipe, **merged)


def small_images(objective="dissl", image_size=32, encoder="narrow", augmentation="simclr", **changes):
    """One's own small images, or CIFAR-10: the paper's objectives, heads, augmentations and Adam.

    It differs from the paper's runs in the share of warm-up steps and in having no L2 penalty.

    Args:
        objective: Key of `OBJECTIVES`.
        image_size: Side of the views in pixels.
        encoder: `"narrow"` (a ResNet of 16 to 128 channels with a strided stem, for CPUs),
            `"resnet18"` or `"resnet50"`.
        augmentation: `"simclr"` for photographs; `"affine"` where flips and colour change the label.
        **changes: Attributes of `Recipe` to change.

    Raises:
        ValueError: Unknown encoder or objective.
    """
    kinds = {
        "narrow": {"blocks": (1, 1, 1, 1), "width": 16, "stem": "strided"},
        "resnet18": {"variant": 18},
        "resnet50": {"variant": 50},
    }
    if encoder not in kinds:
        raise ValueError(f"`encoder` should be one of {sorted(kinds)}. Received: {encoder!r}")
    # 32 px: CIFAR-10's row of the paper's augmentations and its constants; larger: Tiny-ImageNet's row, ImageNet's.
    like_cifar = image_size <= 32
    preset = {"preset": "cifar10" if like_cifar else "tiny_imagenet"} if augmentation == "simclr" else {}
    normalization = encoders.NORMALIZATIONS["cifar10" if like_cifar else "imagenet"]
    recipe = Recipe(
        objective=objective,
        encoder_args={**kinds[encoder], "image_size": image_size, **normalization},
        augmentation=augmentation,
        augmentation_args={"size": image_size, **preset},
        epochs=100,
        batch_size=256,
        # The paper's Adam: 2e-3 at batch 256.
        learning_rate=2e-3,
    )
    return _changed(recipe, changes)
