"""Random views of image batches, on the device, with one independent draw per image and view.

Keras layers from `(B, H, W, C)` images in [0, 255] to a list of `V` float32 views in [0, 255], of two families:
`SimCLR` for photographs (and `MultiCrop`, its large views with small ones beside them), `Affine` for everything whose
label a mirror or a change of colour may destroy.

Under every random draw lies a deterministic, batched function (`crop_and_resize`, `adjust_hue`, ...) with one
parameter per image. They follow torchvision's transforms on Pillow images, with one difference: Pillow rounds to
uint8 after every operation, these stay in float32 and only clip to [0, 255]. (Where a backend multiplies float32
matrices in TF32 or bfloat16, as on GPUs and TPUs, resampling is good to about one gray level.)

A new augmentation is one file here, with a layer on `base._Augmentation`, and one re-export below.
"""

from keras_issl.augmentations.affine import Affine
from keras_issl.augmentations.functional import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    affine_matrices,
    affine_transform,
    crop_and_resize,
    gaussian_blur,
    to_grayscale,
)
from keras_issl.augmentations.multi_crop import MultiCrop
from keras_issl.augmentations.simclr import PRESETS, SimCLR

__all__ = [
    "PRESETS",
    "Affine",
    "MultiCrop",
    "SimCLR",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "affine_matrices",
    "affine_transform",
    "crop_and_resize",
    "gaussian_blur",
    "to_grayscale",
]
