"""Recipes: how a run is set up, as frozen dataclasses, with a reason beside each number.

`names()` lists the catalogue and `get` takes from it: the paper's runs on Tiny-ImageNet and ImageNet, and CIFAR-10 for
every objective. `digits` and `small_images` make recipes for images of one's own, `override` changes numbers by name,
`fit_to_images` fits them to few images, `smoke` shrinks any of them to a minute, and `build` makes the compiled model.
"""

from keras_issl.recipes.arguments import AUGMENTATIONS, OBJECTIVES, OPTIMIZERS, check
from keras_issl.recipes.building import build, build_augmentation, build_encoder, build_schedule
from keras_issl.recipes.catalogue import describe, get, names, table_rows
from keras_issl.recipes.overrides import fit_to_images, lookup, override
from keras_issl.recipes.own_images import digits, small_images
from keras_issl.recipes.recipe import Recipe
from keras_issl.recipes.shrinking import IMAGES as SMOKE_IMAGES
from keras_issl.recipes.shrinking import smoke

__all__ = [
    "AUGMENTATIONS",
    "OBJECTIVES",
    "OPTIMIZERS",
    "SMOKE_IMAGES",
    "Recipe",
    "build",
    "build_augmentation",
    "build_encoder",
    "build_schedule",
    "check",
    "describe",
    "digits",
    "fit_to_images",
    "get",
    "lookup",
    "names",
    "override",
    "small_images",
    "smoke",
    "table_rows",
]
