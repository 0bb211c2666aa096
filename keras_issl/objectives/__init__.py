"""Objectives: a pure loss and the layer with its heads, one file a family."""

from keras_issl.objectives.barlow_twins import BarlowTwins
from keras_issl.objectives.base import Objective
from keras_issl.objectives.byol import BYOL, SimSiam
from keras_issl.objectives.contrastive import CISSL, SimCLR
from keras_issl.objectives.dino import DINO
from keras_issl.objectives.dissl import DISSL
from keras_issl.objectives.moco import MoCoV3
from keras_issl.objectives.swav import SwAV
from keras_issl.objectives.vicreg import VICReg

__all__ = [
    "BYOL",
    "CISSL",
    "DINO",
    "DISSL",
    "BarlowTwins",
    "MoCoV3",
    "Objective",
    "SimCLR",
    "SimSiam",
    "SwAV",
    "VICReg",
]
