"""Every objective, small enough for a test."""

from keras_issl import objectives

SMALL = {
    "DISSL": lambda **kw: objectives.DISSL(**{"num_classes": 12, "teacher_hidden": (16,), "bottleneck": 8} | kw),
    "CISSL": lambda **kw: objectives.CISSL(**{"output_dim": 8, "hidden": (16,)} | kw),
    "SimCLR": lambda **kw: objectives.SimCLR(**{"output_dim": 8, "hidden": (16,), "temperature": 0.5} | kw),
    "DINO": lambda **kw: objectives.DINO(
        **{"num_prototypes": 12, "hidden": (16,), "bottleneck": 8, "warmup_epochs": 0, "freeze_epochs": 0} | kw
    ),
    "SwAV": lambda **kw: objectives.SwAV(
        **{"num_prototypes": 12, "hidden": (16,), "output_dim": 8, "freeze_steps": 0} | kw
    ),
    "BYOL": lambda **kw: objectives.BYOL(**{"output_dim": 8, "hidden": (16,), "predictor_hidden": (16,)} | kw),
    "SimSiam": lambda **kw: objectives.SimSiam(**{"output_dim": 8, "hidden": (16,), "predictor_hidden": (6,)} | kw),
    "MoCoV3": lambda **kw: objectives.MoCoV3(**{"output_dim": 8, "hidden": (16,), "predictor_hidden": (16,)} | kw),
    "BarlowTwins": lambda **kw: objectives.BarlowTwins(**{"output_dim": 8, "hidden": (16,)} | kw),
    # The paper's proportions; its 25 would make steps as many times larger than the others'.
    "VICReg": lambda **kw: objectives.VICReg(
        **{"output_dim": 8, "hidden": (16,), "invariance_weight": 1.0, "variance_weight": 1.0}
        | {"covariance_weight": 0.04}
        | kw
    ),
}
