"""CIFAR-10 for all ten objectives: one encoder, one augmentation, one optimizer, one budget.

The objectives differ in their heads and in what their own papers say of them; none of them got a search of its own.
Where a number has another source than the paper (Dubois et al. 2022) or was chosen here, a comment says so.
"""

import dataclasses

from keras_issl.encoders import NORMALIZATIONS
from keras_issl.recipes import tiny_imagenet
from keras_issl.recipes.arguments import OBJECTIVES
from keras_issl.recipes.recipe import Recipe

EPOCHS = 200  # chosen: lightly's shorter budget on CIFAR-10, a fifth of solo-learn's


def objective_args(objective, width=512, steps_per_epoch=195):
    """Arguments of an objective on small images, with heads in proportion to the encoder.

    The paper's own (DISSL, CISSL, SimCLR, DINO) are those of its small-image runs. The others keep what their papers
    say, but for the widths of hidden layers: those are given for ResNet-50's 2048 features, and keep their ratio to the
    encoder's width; so do the projections of Barlow Twins, VICReg and SimSiam, as wide as their hidden layers.

    Args:
        objective: Key of `OBJECTIVES`.
        width: Features of the encoder, before they are made wider.
        steps_per_epoch: Steps of an epoch.

    Returns:
        A dict.

    Example:

    >>> objective_args("byol", width=512)["hidden"]
    (1024,)
    """
    if objective in tiny_imagenet.OBJECTIVE_ARGS:
        return dict(tiny_imagenet.OBJECTIVE_ARGS[objective])
    if objective == "byol":
        # 4096 for 2048 features; projections stay 256 wide, as the paper has them for encoders of all widths. The
        # momentum starts lower than in the paper (0.996), as in solo-learn's CIFAR-10 runs: they are short.
        return {"hidden": (2 * width,), "predictor_hidden": (2 * width,), "teacher_momentum": (0.99, 1.0)}
    if objective == "moco_v3":
        # As BYOL, the 256 of the projections too. One hidden layer and not the two of the ViT. τ is solo-learn's on
        # CIFAR-10; ResNet-50 has 1, and, in the released code, no batch normalisation after the predictor, as here.
        heads = {"hidden": (2 * width,), "predictor_hidden": (2 * width,), "predictor_norm": False}
        return heads | {"temperature": 0.2, "teacher_momentum": (0.99, 1.0)}
    if objective == "simsiam":
        # Two layers instead of three, as in the paper's CIFAR-10 runs; 2048 wide, the predictor's hidden layer 512,
        # whatever the encoder: here at most.
        wide = min(2048, 4 * width)
        return {"hidden": (wide,), "output_dim": wide, "predictor_hidden": (wide // 4,)}
    if objective == "swav":
        return {
            "num_prototypes": 3000,  # the paper's and, on CIFAR-10, solo-learn's
            "hidden": (4 * width,),  # solo-learn's 2048 for 512 features
            # A batch of 256 is small beside the prototypes: the queue and its start of the paper's runs at 256.
            "queue_length": 3840,
            "queue_start_epoch": 15,
            # One epoch, as in the paper's runs at 256 and at 4096; of CIFAR-10. `fit_to_images` fits it to others.
            "freeze_steps": steps_per_epoch,
        }
    # Barlow Twins and VICReg: 8192 for 2048 features, solo-learn's 2048 for 512. Their weights stay those of their
    # papers (λ = 0.0051, set for a width of 8192; 25, 25 and 1): chosen, for want of a search at this width.
    return {"hidden": (4 * width, 4 * width), "output_dim": 4 * width}


def recipe(objective):
    """One objective on CIFAR-10.

    Args:
        objective: Key of `OBJECTIVES`.
    """
    return Recipe(
        name=f"cifar10/{objective}",
        objective=objective,
        objective_args=objective_args(objective),
        encoder_args={
            "variant": 18,
            "image_size": 32,
            "stem": "cifar",  # 3x3, no pool: the paper's for images under 50 pixels, and everybody's
            **NORMALIZATIONS["cifar10"],  # CIFAR-10's own mean and standard deviation, as in the paper's code
        },
        augmentation="simclr",
        augmentation_args={"size": 32, "preset": "cifar10"},  # the paper's: no solarisation, the same for both views
        epochs=EPOCHS,
        batch_size=256,  # that of the paper's distillation runs; solo-learn's of all
        # The paper's optimizer for small images, for all: SimSiam's own paper, for one, has SGD. Chosen, not measured.
        learning_rate=2e-3,
        learning_rate_rule="linear",
        optimizer="adam",
        optimizer_args={"l2": 1e-6, "epsilon": 1e-8},  # PyTorch's weight_decay and eps, as on Tiny-ImageNet
        warmup_epochs=10,  # the paper's, of 300
        clip_value=2.0,  # the paper's
        precision="mixed_bfloat16",  # float16 there; bfloat16 is as fast and needs no scaling of the loss
        image_size=32,  # as the images come
        seed=0,  # chosen
    )


def shipped():
    """What the preset that comes with the library was trained by: the paper's DISSL for about an hour on two CPU cores.

    `tools/shipped_preset.py` runs it.
    """
    encoder_args = {
        # ResNet-10 of 20 to 160 channels, 0.5 million numbers. Chosen for the budget, between two that two to three
        # epochs told apart by less than two points: of 16 channels, and of 28 with a stem that halves the resolution.
        "blocks": (1, 1, 1, 1),
        "width": 20,
        "image_size": 32,
        "stem": "cifar",
        **NORMALIZATIONS["cifar10"],
    }
    return dataclasses.replace(
        recipe("dissl"),
        name="cifar10/dissl-small",
        objective_args={"num_classes": 1024},  # four an image of a batch: the paper's 16384 want more steps than here
        encoder_args=encoder_args,
        epochs=20,  # what fits into about an hour
        warmup_epochs=1,  # chosen: a twentieth of the run, beside the paper's thirtieth
        precision="float32",  # for CPUs
    )


def catalogue():
    """The ten recipes, and that of the shipped preset."""
    return [*(recipe(objective) for objective in OBJECTIVES), shipped()]
