"""The training model: images -> views -> features -> objective, under plain `compile` and `fit`."""

from keras_issl.pretraining.memory import OutOfMemory
from keras_issl.pretraining.online_probe import OnlineProbe
from keras_issl.pretraining.pretrainer import Pretrainer

__all__ = ["OnlineProbe", "OutOfMemory", "Pretrainer"]
