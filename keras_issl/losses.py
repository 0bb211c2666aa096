"""The pure losses: tensors in, `(loss, logs)` or a scalar out; no weights, no state."""

from keras_issl.objectives.barlow_twins import barlow_twins_loss
from keras_issl.objectives.byol import byol_loss, simsiam_loss
from keras_issl.objectives.contrastive import cissl_loss, simclr_loss
from keras_issl.objectives.dino import dino_loss
from keras_issl.objectives.dissl import chunked_dissl_loss, dissl_loss
from keras_issl.objectives.moco import moco_loss
from keras_issl.objectives.swav import swav_loss
from keras_issl.objectives.vicreg import vicreg_loss

__all__ = [
    "barlow_twins_loss",
    "byol_loss",
    "chunked_dissl_loss",
    "cissl_loss",
    "dino_loss",
    "dissl_loss",
    "moco_loss",
    "simclr_loss",
    "simsiam_loss",
    "swav_loss",
    "vicreg_loss",
]
