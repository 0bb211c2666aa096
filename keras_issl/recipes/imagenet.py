"""How the released ImageNet encoders were trained, one recipe for each, and one for CISSL, which was not released.

Numbers are those of the authors' scripts and configurations (Dubois et al. 2022, and the code it names) unless a
comment says that they were chosen here. What the library expresses otherwise than they did is in the recipe's `note`.
"""

from keras_issl.recipes.recipe import Recipe

DISSL = {
    "num_classes": 16384,  # C, as on small images
    "maximality_weight": 2.3,  # λ
    "invariance_weight": 0.6,  # β; 0.8 on small images
    "teacher_temperature": 0.5,
    "student_temperature": 1.0,
    "heads": "imagenet",  # the teacher's stack depends on the width; both heads go through 512
}
CONTRASTIVE = {
    "output_dim": 128,  # as on small images
    "temperature": 0.1,  # 0.07 on small images
    "heads": "imagenet",  # hidden layers of 2048, 2048
}
# Of 8192 features: the authors' SimCLR configuration of that width, in their fork of VISSL (configs/config/pretrain/
# simclr), puts 512 before the usual two.
WIDE_HIDDEN = {"hidden": (512, 2048, 2048)}
BETA_WARMUP = {"invariance_warmup_steps": 1000}  # β from λ: the 800-epoch run and augSmall
LARGE = {"min_scale": 0.04, "jitter": 1.0, "hue": 0.25}  # coarser than standard: half the scale, 1.25 times the colour
SMALL = {"min_scale": 0.16, "jitter": 0.4, "hue": 0.1}  # finer: twice the scale, half the colour
NOT_MASKED = (
    "The authors' loss of this run hides a view from itself, as SimCLR does, but with two heads; CISSL's, which is "
    "taken here, hides nothing."
)
NO_SCRIPT = "The authors' code has no script of this name: the numbers are those of the run of 400 epochs, over 100."
WITHOUT = {  # released, but not to be had here
    "imagenet/simclr_resnet50_dNone_e100_m2_headTNoneSNone": "it was trained without heads, the loss on the features, "
    "and objectives.SimCLR has a head"
}


def _recipe(name, objective, objective_args, *, dim=None, epochs=100, crops="m2", views=None, batch=2560, note=""):
    """A run of the authors.

    Args:
        name: That of the released encoder.
        objective: Key of `OBJECTIVES`.
        objective_args: Its arguments.
        dim: Width of the representation, `None` for ResNet-50's own 2048.
        epochs: Passes over the images.
        crops: `"m2"`: 2x224; `"m6"`: 2x160 + 4x96; `"m8"`: 2x224 + 6x96.
        views: Arguments of the augmentation that differ.
        batch: Images in a batch.
        note: What the sources leave open.
    """
    plain = {"size": 224, "preset": "imagenet"}
    multi = {  # the large crops begin at 0.14 instead of 0.08 of the area, where the small ones end
        "m6": {"size": 160, "small_size": 96, "num_small": 4},
        "m8": {"size": 224, "small_size": 96, "num_small": 6},
    }
    shared = {"scale": (0.14, 1.0), "small_scale": (0.05, 0.14), "preset": "imagenet"}
    return Recipe(
        name=f"imagenet/{name}",
        objective=objective,
        objective_args=objective_args,
        encoder_args={"variant": 50, "image_size": 224, "feature_dim": dim},
        augmentation="simclr" if crops == "m2" else "multi_crop",
        augmentation_args=plain | (views or {}) if crops == "m2" else multi[crops] | shared,
        epochs=epochs,
        batch_size=batch,  # 320 or 384 on each of eight GPUs
        # The rate, the optimizer and its numbers are those of the authors' configurations.
        learning_rate=0.3 * batch / 256,
        learning_rate_rule="linear",
        optimizer="lars",
        optimizer_args={
            "momentum": 0.9,
            "weight_decay": 1e-6,
            "trust_coefficient": 0.001,
            "epsilon": 1e-8,
            "clip": False,  # "LARC", but without its clipping
            "exclude_bias_and_norm": False,  # biases and batch normalisation adapt and decay too
        },
        warmup_epochs=10,  # the authors'
        warmup_start=0.001,  # theirs; not scaled with the batch
        global_cosine=True,  # the cosine is that of the whole run, with its head cut off
        clip_value=None,  # on small images alone
        precision="mixed_bfloat16",  # float16 there; bfloat16 is as fast and needs no scaling of the loss
        image_size=256,  # the authors cropped from images of 256 pixels, too; ours are the central squares
        preprocessing={"resize": 256, "crop": 224},  # how the authors evaluate, whatever the size of the views
        seed=0,  # chosen
        note=note,
    )


def _dissl():
    yield _recipe("dissl_resnet50_dNone_e100_m2", "dissl", DISSL)
    yield _recipe("dissl_resnet50_d4096_e100_m2", "dissl", DISSL, dim=4096)
    yield _recipe("dissl_resnet50_d8192_e100_m2", "dissl", DISSL, dim=8192)
    yield _recipe("dissl_resnet50_d8192_e100_m6", "dissl", DISSL, dim=8192, crops="m6", note=NO_SCRIPT)
    yield _recipe("dissl_resnet50_dNone_e400_m2", "dissl", DISSL, epochs=400)
    yield _recipe("dissl_resnet50_dNone_e400_m6", "dissl", DISSL, epochs=400, crops="m6")
    yield _recipe("dissl_resnet50_d8192_e400_m6", "dissl", DISSL, dim=8192, epochs=400, crops="m6")
    yield _recipe("dissl_resnet50_d8192_e800_m8", "dissl", {**DISSL, **BETA_WARMUP}, dim=8192, epochs=800, crops="m8")
    yield _recipe("dissl_resnet50_dNone_e100_m2_augLarge", "dissl", DISSL, views=LARGE)
    yield _recipe("dissl_resnet50_dNone_e100_m2_augSmall", "dissl", {**DISSL, **BETA_WARMUP}, views=SMALL)
    yield _recipe(
        "dissl_resnet50_dNone_e100_m2_headTLinSLin",
        "dissl",
        {**DISSL, "teacher_hidden": ()},
        note="The authors' linear teacher goes through 512 dimensions; this one is a single layer.",
    )
    yield _recipe("dissl_resnet50_dNone_e100_m2_headTMlpSMlp", "dissl", {**DISSL, "probe": "mlp"})


def _contrastive():
    yield _recipe(
        "cissl_resnet50_dNone_e100_m2", "cissl", CONTRASTIVE, note="Not released: SimCLR's recipe with CISSL's heads."
    )
    # The scripts of SimCLR with 2048 features say 8 x 384; the README says 2560 of all.
    yield _recipe("simclr_resnet50_dNone_e100_m2", "simclr", CONTRASTIVE, batch=3072)
    yield _recipe("simclr_resnet50_d8192_e100_m2", "simclr", {**CONTRASTIVE, **WIDE_HIDDEN}, dim=8192)
    for part, epochs in (("010", 1000), ("030", 300)):  # about as many steps: of all images it were 100 and 90 epochs
        yield _recipe(
            f"simclr_resnet50_dNone_e100_m2_data{part}",
            "simclr",
            CONTRASTIVE,
            epochs=epochs,
            note=f"For {int(part)} % of ImageNet's training images; which ones is not on record.",
        )
    heads = {"TLinSLin": {"hidden": ()}, "TMlpSLin": {}, "TMlpSMlp": {"probe": "mlp"}}
    for name, args in heads.items():
        yield _recipe(
            f"simclr_resnet50_dNone_e100_m2_head{name}", "cissl", CONTRASTIVE | args, batch=3072, note=NOT_MASKED
        )


def catalogue():
    """The recipes, DISSL first."""
    return [*_dissl(), *_contrastive()]
