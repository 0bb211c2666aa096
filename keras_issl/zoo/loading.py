"""`from_preset`: from a name to an encoder."""

from pathlib import Path

from keras_issl.zoo.format import load_preset


def from_preset(preset, *, load_weights=True, dtype=None, custom_objects=None):
    """Loads an encoder from a preset folder.

    Args:
        preset: Path of a preset folder: what `save_preset` or `keras-issl pretrain` wrote.
        load_weights: Whether to load the weights, or to initialise the architecture afresh.
        dtype: A dtype policy such as `"mixed_bfloat16"`; by default the saved one.
        custom_objects: A dict from class names to classes, for encoders that are your own.

    Returns:
        The encoder: a `keras.Model` from RGB images in [0, 255] to (N, D) float32 features.

    Raises:
        ValueError: There is no such folder, or it is not a sound preset; the message says what is wrong.

    Example:

    >>> folder = keras_issl.save_preset(keras_issl.encoders.ResNet(18, image_size=32, width=8), "my_preset")
    >>> encoder = keras_issl.from_preset("my_preset")
    """
    return load_preset(preset_folder(preset), load_weights=load_weights, dtype=dtype, custom_objects=custom_objects)


def preset_folder(preset):
    """The folder that a preset's path means: itself, or `preset/` in a run folder.

    Raises:
        ValueError: There is no such folder.
    """
    folder = Path(preset)
    if not folder.is_dir():
        raise ValueError(
            f"`preset` should be the path of a preset folder or of a run folder. Received: {str(preset)!r}, "
            "which is no folder."
        )
    return folder / "preset" if (folder / "preset" / "config.json").is_file() else folder
