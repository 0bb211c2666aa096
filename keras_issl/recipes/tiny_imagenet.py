"""The ten cells of the paper's Table 1: two families of objectives on Tiny-ImageNet, step by step.

Numbers are those of the authors' scripts and configurations (Dubois et al. 2022, appendix and released code) unless
a comment says that they were chosen here.
"""

from keras_issl.recipes.recipe import Recipe

CONTRASTIVE = {
    "output_dim": 128,  # SimCLR's
    "temperature": 0.07,  # for CISSL and, so that they differ in the heads alone, for SimCLR
    "heads": "small_images",  # one hidden layer of 1024
}
OBJECTIVE_ARGS = {
    "simclr": CONTRASTIVE,
    "cissl": CONTRASTIVE,
    "dissl": {
        "num_classes": 16384,  # C, also under coarser augmentations
        "maximality_weight": 2.3,  # λ, tuned by the authors in [1.8, 2.8]
        "invariance_weight": 0.8,  # β, in [0.4, 1]; theory suggests λ >= 1 + β
        "teacher_temperature": 0.5,  # sharper than the student, which is to be determined by it
        "student_temperature": 1.0,
        "heads": "small_images",  # teacher 1024, student linear, both through 512
    },
    "dino": {
        "num_prototypes": 1000,  # the authors'; DINO's own 65536 is for ImageNet
        "student_temperature": 0.1,
        "warmup_teacher_temperature": 0.04,  # this, the next and the centre's momentum are DINO's own, too
        "teacher_temperature": 0.07,
        "warmup_epochs": 50,  # of the teacher's temperature
        "center_momentum": 0.9,
        # Over the run, by the step. Upstream counts steps twice, so that the momentum is back at 0.996 at the end.
        "teacher_momentum": (0.996, 1.0),
        "hidden": (1024,),  # the head of the other objectives; DINO's own has two of 2048
        "batch_norm": True,  # as in the other heads
        "bottleneck": 256,  # DINO's own
        "freeze_epochs": 1,  # of the prototypes
        "heads": "small_images",
    },
}
COARSE = {  # "+aug", strength 2: fewer equivalence classes
    "min_scale": 0.1,  # half
    "jitter": 0.8,  # double
    "hue": 0.2,
    "gray": 0.2,
    "blur": 0.5,  # the standard views have none
}


def recipe(objective, *, wide=False, long=False, coarse=False):
    """One cell: the objective, and which of the paper's three improvements it has.

    Args:
        objective: `"simclr"`, `"cissl"`, `"dino"` or `"dissl"`.
        wide: +dim, 2048 features instead of 512.
        long: +epochs, 1000 instead of 300.
        coarse: +aug, coarser augmentations.
    """
    batch = 512 if objective in ("simclr", "cissl") else 256  # contrast wants negatives
    steps = {"+dim": wide, "+epochs": long, "+aug": coarse}
    return Recipe(
        name=f"tiny_imagenet/{objective}{''.join(name for name, taken in steps.items() if taken)}",
        objective=objective,
        objective_args=OBJECTIVE_ARGS[objective],
        encoder_args={
            "variant": 18,
            "image_size": 64,  # a 3x3 stem that keeps the resolution, then the max-pool
            "feature_dim": 2048 if wide else None,  # through a bottleneck of 512; more dimensions, more tasks
        },
        augmentation="simclr",
        augmentation_args={"size": 64, "preset": "tiny_imagenet", **(COARSE if coarse else {})},
        epochs=1000 if long else 300,
        batch_size=batch,
        learning_rate=2e-3 * batch / 256,  # the authors', with their rule
        learning_rate_rule="linear",
        optimizer="adam",
        optimizer_args={"l2": 1e-6, "epsilon": 1e-8},  # PyTorch's weight_decay and eps
        warmup_epochs=10,  # upstream steps it by the epoch and trains the first at rate 0; here by the step
        clip_value=2.0,  # "gradients clipped by value"
        precision="mixed_bfloat16",  # float16 upstream; bfloat16 is as fast and needs no scaling of the loss
        image_size=64,  # as the images come
        seed=0,  # chosen: the published table has a single seed, 1
    )


def catalogue():
    """The ten recipes, column by column, in the order of the table."""
    cells = []
    for baseline, ours in (("simclr", "cissl"), ("dino", "dissl")):
        cells += [recipe(baseline), recipe(ours), recipe(ours, wide=True), recipe(ours, wide=True, long=True)]
        cells += [recipe(ours, wide=True, long=True, coarse=True)]
    return cells
