"""Recipes: how a run is set up, as frozen dataclasses, with a reason beside each number."""

import dataclasses
import math

import keras

from keras_issl import augmentations, encoders, objectives
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


def replace(recipe, **changes):
    """A copy of a recipe with some attributes changed."""
    return dataclasses.replace(recipe, **changes)


def build_encoder(recipe):
    """The encoder of a recipe with the initial weights of its seed."""
    keras.utils.set_random_seed(recipe.seed)
    keras.config.set_dtype_policy(recipe.precision)
    return encoders.ResNet(**recipe.encoder_args)


def build(recipe, num_images):
    """The compiled `Pretrainer` of a recipe.

    Args:
        recipe: A `Recipe`.
        num_images: How many images an epoch has: the learning rate falls to 0 with the last step.
    """
    encoder = build_encoder(recipe)
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
    changes = dict(changes)
    objective_args = {
        # Fewer images than the paper's C=16384: about as many classes as images.
        "dissl": {"num_classes": 2048},
        "cissl": {},
        "simclr": {},
    }[objective] | changes.pop("objective_args", {})
    recipe = Recipe(
        objective=objective,
        objective_args=objective_args,
        # 3x3 stem without pooling: an 8x8 image has no resolution to lose. 32-64-128 channels.
        encoder_args={"blocks": (1, 1, 1), "width": 32, "image_size": 8, "stem": "cifar"},
        # Flips and colour would turn digits into others or do nothing; shape and stroke may vary.
        augmentation="affine",
        augmentation_args={"size": 8},
        epochs=60,
        batch_size=256,
    )
    return replace(recipe, **changes)


def small_images(objective="dissl", image_size=32, encoder="narrow", **changes):
    """One's own small photographs, or CIFAR-10: the paper's small-image settings.

    Args:
        objective: Key of `OBJECTIVES`.
        image_size: Side of the views in pixels.
        encoder: `"narrow"` (a ResNet of 16 to 128 channels with a strided stem, for CPUs),
            `"resnet18"` or `"resnet50"`.
        **changes: Attributes of `Recipe` to change.

    Raises:
        ValueError: Unknown encoder or objective.
    """
    changes = dict(changes)
    kinds = {
        "narrow": {"blocks": (1, 1, 1, 1), "width": 16, "stem": "strided"},
        "resnet18": {"variant": 18},
        "resnet50": {"variant": 50},
    }
    if encoder not in kinds:
        raise ValueError(f"`encoder` should be one of {sorted(kinds)}. Received: {encoder!r}")
    recipe = Recipe(
        objective=objective,
        objective_args=changes.pop("objective_args", {}),
        encoder_args={**kinds[encoder], "image_size": image_size, **encoders.NORMALIZATIONS["cifar10"]},
        augmentation="simclr",
        # 32 px: CIFAR-10's row of the paper's augmentations; larger: Tiny-ImageNet's.
        augmentation_args={"size": image_size, "preset": "cifar10" if image_size <= 32 else "tiny_imagenet"},
        epochs=100,
        batch_size=256,
        # The paper's Adam: 2e-3 at batch 256.
        learning_rate=2e-3,
    )
    return replace(recipe, **changes)
