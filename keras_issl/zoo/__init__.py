"""Presets: folders that hold an encoder, what it was trained for, and where its numbers come from."""

from keras_issl.zoo.format import check_folder, load_objective, load_preset, save_preset

__all__ = ["check_folder", "load_objective", "load_preset", "save_preset"]
