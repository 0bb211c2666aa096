"""The pure losses: tensors in, `(loss, logs)` or a scalar out; no weights, no state."""

from keras_issl.objectives.contrastive import cissl_loss, simclr_loss
from keras_issl.objectives.dissl import dissl_loss

__all__ = ["cissl_loss", "dissl_loss", "simclr_loss"]
