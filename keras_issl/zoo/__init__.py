"""Presets: folders that hold an encoder, what it was trained for, and where its numbers come from."""

from keras_issl.zoo import cards, conversion, format, golden, hub, loading, preprocessing, registry, saving
from keras_issl.zoo.keras_hub import export_keras_hub
from keras_issl.zoo.loading import fetch, from_preset, load_objective, pin, read_metadata
from keras_issl.zoo.preprocessing import ResizeCenterCrop, load_images
from keras_issl.zoo.publishing import push_to_hub
from keras_issl.zoo.registry import list_presets
from keras_issl.zoo.saving import save_preset

__all__ = [
    "ResizeCenterCrop",
    "cards",
    "conversion",
    "export_keras_hub",
    "fetch",
    "format",
    "from_preset",
    "golden",
    "hub",
    "list_presets",
    "load_images",
    "load_objective",
    "loading",
    "pin",
    "preprocessing",
    "push_to_hub",
    "read_metadata",
    "registry",
    "save_preset",
    "saving",
]
