"""Presets: folders that hold an encoder, what it was trained for, and where its numbers come from."""

from keras_issl.zoo import cards, conversion, format, loading, preprocessing, registry
from keras_issl.zoo.format import check_folder, load_preset, read_metadata, save_preset
from keras_issl.zoo.loading import load_objective
from keras_issl.zoo.preprocessing import ResizeCenterCrop, load_images

__all__ = [
    "ResizeCenterCrop",
    "cards",
    "check_folder",
    "conversion",
    "format",
    "load_images",
    "load_objective",
    "load_preset",
    "loading",
    "preprocessing",
    "read_metadata",
    "registry",
    "save_preset",
]
