"""Presets: folders that hold an encoder, what it was trained for, and where its numbers come from."""

from keras_issl.zoo import cards, conversion, format, loading, preprocessing, registry, saving
from keras_issl.zoo.loading import fetch, from_preset, load_objective, read_metadata
from keras_issl.zoo.preprocessing import ResizeCenterCrop, load_images
from keras_issl.zoo.registry import list_presets
from keras_issl.zoo.saving import save_preset

__all__ = [
    "ResizeCenterCrop",
    "cards",
    "conversion",
    "fetch",
    "format",
    "from_preset",
    "list_presets",
    "load_images",
    "load_objective",
    "loading",
    "preprocessing",
    "read_metadata",
    "registry",
    "save_preset",
    "saving",
]
