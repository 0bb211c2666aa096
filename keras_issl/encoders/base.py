"""What encoders share: a functional model of images that looks at its input first."""

import keras
import numpy as np

from keras_issl import distribution


class Encoder(distribution.Exportable, keras.Model):
    """A functional model from images (B, H, W, channels) to features, which looks at its input first."""

    @property
    def channels(self):
        """Number of channels of the images it takes, `None` for any."""
        return self.inputs[0].shape[-1]

    def __call__(self, images, *args, **kwargs):
        check_images(self, images.shape if hasattr(images, "shape") else np.shape(images))
        return super().__call__(images, *args, **kwargs)

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)


def input_shape(model):
    """The (height, width, channels) a model was built for, or None."""
    try:
        shape = model.input_shape
    except AttributeError:
        return None
    return shape[1:] if isinstance(shape, tuple) and len(shape) == 4 else None


def check_images(encoder, shape):
    """Raises a `ValueError` that names the way out unless an encoder was built for images of a shape.

    Args:
        encoder: A `keras.Model`. What it does not say of its input is not checked.
        shape: (batch, height, width, channels), `None` where unknown.

    Example:

    >>> keras_issl.encoders.check_images(keras_issl.encoders.ResNet(18), (None, 224, 224, 3))
    """
    wanted = input_shape(encoder) or (None, None, None)
    if len(shape) == 4 and all(a == b or None in (a, b) for a, b in zip(wanted, shape[1:], strict=True)):
        return
    height, width, channels = (n or name for n, name in zip(wanted, ("height", "width", "channels"), strict=True))
    if len(shape) == 3:
        way_out = "Add a batch axis to a single image with `image[None]`."
    elif len(shape) != 4:
        way_out = "Stack images on the first axis."
    elif wanted[2] not in (None, shape[-1]):
        way_out = f"Repeat the channel with `np.repeat(images, {channels}, axis=-1)`."
        if shape[-1] != 1:
            way_out = "Other channel counts need an encoder built for them, with `channels=`."
    else:
        way_out = (
            "It was built for images of this one size: give it views of that size alone (no small crops of a "
            "`MultiCrop`), or build it with `image_shape=(None, None, channels)` if its layers take any size."
        )
    raise ValueError(
        f"`images` should be a batch of shape (batch, {height}, {width}, {channels}) with values in [0, 255]. "
        f"Received: shape {tuple(shape)}. {way_out}"
    )


def image_channels(encoder):
    """How many channels an encoder's images have: what it was built for, or 3 where it does not say.

    Args:
        encoder: A `keras.Model` from images (B, H, W, C) to features (B, D).
    """
    shape = getattr(encoder, "input_shape", None)
    return shape[-1] if isinstance(shape, tuple) and len(shape) == 4 and shape[-1] else 3
