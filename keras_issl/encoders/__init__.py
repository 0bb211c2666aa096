"""Encoders: images in [0, 255] to pooled float32 features (B, D). A new one is one file here and one line below."""

from keras_issl.encoders.adapter import Adapter, feature_dim
from keras_issl.encoders.base import check_images, image_channels
from keras_issl.encoders.remat import Remat
from keras_issl.encoders.resnet import (
    EXPANSION,
    MAX_BLOCKS,
    NORMALIZATIONS,
    RESIZER_WIDTH,
    STEMS,
    VARIANTS,
    ResNet,
    from_zeros,
)

__all__ = [
    "EXPANSION",
    "MAX_BLOCKS",
    "NORMALIZATIONS",
    "RESIZER_WIDTH",
    "STEMS",
    "VARIANTS",
    "Adapter",
    "Remat",
    "ResNet",
    "check_images",
    "feature_dim",
    "from_zeros",
    "image_channels",
]
