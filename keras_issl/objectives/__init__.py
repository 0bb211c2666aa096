"""Objectives: a pure loss and the layer with its heads, one file a family."""

from keras_issl.objectives.base import Objective
from keras_issl.objectives.contrastive import CISSL, SimCLR
from keras_issl.objectives.dissl import DISSL

__all__ = ["CISSL", "DISSL", "Objective", "SimCLR"]
