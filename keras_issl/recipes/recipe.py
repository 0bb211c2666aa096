"""`Recipe`: everything that decides a pre-training run but the data, checked when it is made."""

import dataclasses
import math

import keras

from keras_issl.encoders import EXPANSION, STEMS, VARIANTS
from keras_issl.recipes.arguments import (
    AUGMENTATIONS,
    OBJECTIVES,
    OPTIMIZERS,
    check_arguments,
    checked,
    nearest,
    tuples,
)

RULES = ("linear", "none")
WARMUP_FRACTION = 0.1


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
        learning_rate: Peak learning rate, at this batch size.
        warmup_fraction: Share of the steps in which the rate rises linearly; then it follows a cosine to 0. 0.1 by
            default; `None` where `warmup_epochs` says.
        clip_value: Each gradient component is clipped to ± this; `None` clips nothing.
        precision: A Keras dtype policy.
        seed: Of the initial weights, the order of images and the augmentation.
        name: What the recipe is called in the catalogue; it stays when numbers are overridden.
        optimizer: `"adam"`, `"sgd"` or `"lars"`: those of `keras_issl.optimizers`.
        optimizer_args: Its arguments that differ from its defaults, other than the learning rate and the clipping.
            Ranges of arguments are checked by `recipes.check`, and by all that builds or trains.
        learning_rate_rule: What a changed batch size does to the learning rate in `override`: `"linear"`, they keep
            their ratio; `"none"`, nothing.
        warmup_epochs: Epochs in which the rate rises, by the step; `None`: `warmup_fraction` says.
        warmup_start: Learning rate of the first step.
        global_cosine: Whether the cosine begins with the run, so that warm-up cuts its head off, instead of after it.
        image_size: Side of the stored images in pixels that the numbers are for; `None`: any.
        preprocessing: How images are to be shown when the encoder is evaluated, as a preset records it, such as
            `{"resize": 256, "crop": 224}`; `None`: as they are, at the size of the views.
        note: What the sources leave open, in a sentence.
        shuffle_window: Images among which they are shuffled, where files are read block by block; see
            `datasets.order_of_pass`. `None`: among all.
        smoke: Whether `smoke` shrunk it: such a run shows that everything works, and its figures mean nothing.

    Raises:
        ValueError: An unknown name, with the nearest one that there is, or a value out of its range or of another type.

    Example:

    >>> recipe = Recipe(objective="simclr", objective_args={"temperature": 0.1}, epochs=10)
    >>> Recipe(objective_args={"num_clases": 64})
    Traceback (most recent call last):
    ValueError: ...
    """

    objective: str = "dissl"
    objective_args: dict = dataclasses.field(default_factory=dict)
    encoder_args: dict = dataclasses.field(default_factory=dict)
    augmentation: str = "simclr"
    augmentation_args: dict = dataclasses.field(default_factory=dict)
    epochs: int = 100
    batch_size: int = 256
    learning_rate: float = 2e-3
    warmup_fraction: float | None = None
    clip_value: float | None = 2.0
    precision: str = "float32"
    seed: int = 0
    name: str = ""
    optimizer: str = "adam"
    optimizer_args: dict = dataclasses.field(default_factory=dict)
    learning_rate_rule: str = "linear"
    warmup_epochs: float | None = None
    warmup_start: float = 0.0
    global_cosine: bool = False
    image_size: int | None = None
    preprocessing: dict | None = None
    note: str = ""
    shuffle_window: int | None = None
    smoke: bool = False

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = checked(field.name, tuples(getattr(self, field.name)), field.type)
            object.__setattr__(self, field.name, value)  # dictionaries of its own: nobody changes a catalogue's
        choices = {"objective": OBJECTIVES, "augmentation": AUGMENTATIONS, "optimizer": OPTIMIZERS}
        for name, known in (choices | {"learning_rate_rule": RULES}).items():
            if getattr(self, name) not in known:
                hint = nearest(getattr(self, name), known)
                raise ValueError(f"`{name}` should be one of {sorted(known)}. Received: {getattr(self, name)!r}.{hint}")
        for name in ("epochs", "batch_size", "learning_rate", "clip_value", "image_size", "shuffle_window"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"`{name}` should be above 0. Received: {value}")
        if self.shuffle_window == 1:
            raise ValueError("`shuffle_window` should be None, or images of a window, above 1. Received: 1")
        if self.warmup_epochs is not None or self.warmup_fraction is None:  # of the two, one counts
            object.__setattr__(self, "warmup_fraction", WARMUP_FRACTION if self.warmup_epochs is None else None)
        if self.warmup_fraction is not None and not 0 <= self.warmup_fraction < 1:
            raise ValueError(f"`warmup_fraction` should be in [0, 1). Received: {self.warmup_fraction}")
        if self.warmup_epochs is not None and not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(
                f"`warmup_epochs` should be at least 0 and below `epochs`, which is {self.epochs}. "
                f"Received: {self.warmup_epochs}"
            )
        if not 0 <= self.warmup_start <= self.learning_rate:
            raise ValueError(
                "`warmup_start` should be at least 0 and at most `learning_rate`, which is "
                f"{self.learning_rate:g}. Received: {self.warmup_start}"
            )
        self._check_precision()
        self._check_preprocessing()
        check_arguments(self)
        _check_encoder(self.encoder_args)

    def _check_precision(self):
        try:
            keras.dtype_policies.DTypePolicy(self.precision)
        except (ValueError, TypeError) as error:
            raise ValueError(
                "`precision` should be a dtype policy of Keras, such as 'float32' or 'mixed_bfloat16'. "
                f"Received: {self.precision!r}"
            ) from error

    def _check_preprocessing(self):
        sizes = self.preprocessing
        if sizes is None:
            return
        whole = set(sizes) == {"resize", "crop"} and all(type(v) is int and v > 0 for v in sizes.values())
        if not whole or sizes["crop"] > sizes["resize"]:
            raise ValueError(
                "`preprocessing` should be None or two sizes in pixels, `crop` at most `resize`, such as "
                f"{{'resize': 256, 'crop': 224}}. Received: {sizes}"
            )

    def steps(self, num_images):
        """Steps of an epoch and of the warm-up, and of the whole run, over so many images.

        Example:

        >>> Recipe(epochs=10, batch_size=100, warmup_epochs=2).steps(1050)
        (10, 20, 100)
        """
        epoch = max(1, num_images // min(self.batch_size, num_images))
        if self.warmup_epochs is None:
            return epoch, _whole(self.warmup_fraction * epoch * self.epochs), epoch * self.epochs
        return epoch, _whole(self.warmup_epochs * epoch), epoch * self.epochs


def _whole(steps):
    return math.ceil(round(steps, 6))  # 0.2 * 600 is 120.00000000000001


def _check_encoder(args):
    """What `encoders.ResNet` says of its arguments, without building one; a recipe without an encoder is a draft."""
    if args.get("variant") is not None and args["variant"] not in VARIANTS:
        raise ValueError(f"`encoder_args.variant` should be one of {sorted(VARIANTS)}. Received: {args['variant']}")
    if args and (args.get("variant") is None) == (args.get("blocks") is None):
        raise ValueError(f"`encoder_args` should hold exactly one of variant and blocks. Received: {args}")
    if args.get("stem", "auto") not in ("auto", *STEMS):
        raise ValueError(f"`encoder_args.stem` should be one of {['auto', *STEMS]}. Received: {args['stem']!r}")
    for name in ("image_size", "width", "feature_dim"):
        if args.get(name) is not None and args[name] < 1:
            raise ValueError(f"`encoder_args.{name}` should be above 0. Received: {args[name]}")


def feature_dim(encoder_args):
    """Width of the features of an encoder that these arguments describe, without building it."""
    variant, width = encoder_args.get("variant"), encoder_args.get("width", 64)
    stages, deep = VARIANTS[variant] if variant else (encoder_args["blocks"], encoder_args.get("bottleneck"))
    return encoder_args.get("feature_dim") or width * 2 ** (len(stages) - 1) * (EXPANSION if deep else 1)
