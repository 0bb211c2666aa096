"""`Adapter` makes an encoder of any other Keras model; `feature_dim` says what an encoder returns."""

import keras
import numpy as np
from keras import ops

from keras_issl.encoders.base import Encoder, input_shape


@keras.saving.register_keras_serializable(package="keras_issl")
class Adapter(Encoder):
    """Makes an encoder of any Keras model or keras-hub backbone: images to float32 features (B, D).

    What the model returns decides: features (B, D) pass as they are, maps (B, h, w, D) are averaged over the
    pixels, tokens (B, T, D) over the tokens. Of a dictionary the entry named `output` is taken, or the first
    of `"features"`, `"pooled_output"`, `"sequence_output"` and `"last_hidden_state"` that is there.

    Args:
        model: A `keras.Model`, which may be part of nothing else.
        image_shape: Triple (height, width, channels), `None` where any size will do. By default the model's own
            input shape, or (None, None, 3) if it has none yet.
        scale: Number that images in [0, 255] are multiplied with, for a model that wants another range:
            1 / 255 for [0, 1], 1 / 127.5 with `offset=-1` for [-1, 1]. It is 1 by default.
        offset: Number added after it.
        output: String, the entry to take of a dictionary of outputs.
        name: String, the name of the encoder.

    Call arguments:
        images: Images in [0, 255], uint8 or float, of shape (B, H, W, C).

    Returns:
        Float32 features of shape (B, D).

    Raises:
        ValueError: the model returns something that is none of the above, or whose width is unknown.

    Example:

    >>> backbone = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(8, 3)])
    >>> encoder = keras_issl.encoders.Adapter(backbone, scale=1 / 255)
    >>> tuple(encoder(np.zeros((2, 32, 32, 3), "uint8")).shape)
    (2, 8)
    """

    OUTPUTS = ("features", "pooled_output", "sequence_output", "last_hidden_state")

    def __init__(self, model, *, image_shape=None, scale=1.0, offset=0.0, output=None, name=None):
        if not isinstance(model, keras.layers.Layer):
            raise ValueError(f"`model` should be a keras.Model or a layer. Received: {model!r}")
        if image_shape is None:
            image_shape = input_shape(model) or (None, None, 3)
        if len(image_shape) != 3:
            raise ValueError(f"`image_shape` should be (height, width, channels). Received: {image_shape}")
        images = keras.Input(tuple(image_shape), name="images")
        x = images if (scale, offset) == (1.0, 0.0) else images * float(scale) + float(offset)
        y = _select(model(x), output, self.OUTPUTS)
        rank = len(y.shape)
        if rank not in (2, 3, 4):
            raise ValueError(
                "`model` should return features (B, D), tokens (B, T, D) or maps (B, h, w, D). "
                f"Received: shape {tuple(y.shape)}. Add a pooling layer to it first."
            )
        if y.shape[-1] is None:
            raise ValueError(
                f"`model` should return features of a known width. Received: shape {tuple(y.shape)}. "
                "Pass `image_shape=(height, width, channels)`."
            )
        features = ops.cast(y, "float32")
        if rank > 2:
            features = ops.mean(features, axis=tuple(range(1, rank - 1)))  # (B, D)
        super().__init__(inputs=images, outputs=features, name=name or f"{model.name}_encoder")
        self.model = model
        self._config = {"image_shape": tuple(image_shape), "scale": scale, "offset": offset, "output": output}

    def get_config(self):
        """The constructor's arguments; the model inside is serialised as Keras serialises it."""
        return {"model": keras.saving.serialize_keras_object(self.model), **self._config, "name": self.name}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        model = keras.saving.deserialize_keras_object(config["model"], custom_objects=custom_objects)
        return cls(**{**config, "model": model})


def _select(outputs, key, known):
    """The one tensor among a model's outputs that holds its features."""
    if isinstance(outputs, dict):
        wanted = [key] if key is not None else known
        for name in wanted:
            if name in outputs:
                return outputs[name]
        raise ValueError(
            f"`output` should name one of the model's outputs {sorted(outputs)}. Received: {key!r}"
            + ("" if key is not None else f", and none of {list(known)} is there.")
        )
    if key is not None or not hasattr(outputs, "shape"):
        raise ValueError(
            "`model` should return one tensor, or a dictionary with `output` naming its entry. "
            f"Received: output={key!r} and {type(outputs).__name__} of outputs. "
            "Wrap it in a keras.Model that returns the one tensor you mean."
        )
    return outputs


def feature_dim(encoder, image_shape=None):
    """The width D of an encoder's features, known before any image is seen.

    Args:
        encoder: A built `keras.Model` from images (B, H, W, C) to features (B, D).
        image_shape: Triple (height, width, channels) of integers. A model that has not been built yet is
            built by calling it on one black image of this shape.

    Returns:
        An integer.

    Raises:
        ValueError: the encoder is no model, returns something else than (B, D), or has not been built and no
            `image_shape` is given.

    Example:

    >>> keras_issl.encoders.feature_dim(keras_issl.encoders.ResNet(18, image_size=32))
    512
    """
    if not isinstance(encoder, keras.Model):
        raise ValueError(
            "`encoder` should be a keras.Model from images to features, such as keras_issl.encoders.ResNet(18). "
            f"Received: {encoder!r}. `keras_issl.encoders.Adapter(layer)` makes one of a layer."
        )
    if not encoder.built and image_shape is not None:
        encoder(np.zeros((1, *image_shape), "float32"), training=False)
    if not encoder.built:
        raise ValueError(
            f"`encoder` should be built: its weights do not exist yet. Received: {encoder!r}. Call it once on a batch "
            "of images, or wrap it in `keras_issl.encoders.Adapter(encoder, image_shape=(height, width, channels))`."
        )
    outputs = _symbolic_outputs(encoder)
    shape = getattr(outputs, "shape", None)
    if shape is not None and len(shape) == 2 and shape[-1] is not None:
        return int(shape[-1])
    raise ValueError(
        f"`encoder` should map images to features (batch, D) with D known. Received: {encoder!r}, which returns "
        f"{_described(outputs)}"
    )


def _symbolic_outputs(encoder):
    """What a built model returns, without any numbers: symbolic tensors in the structure that it has."""
    try:
        return encoder.output  # a functional model's
    except AttributeError:  # a subclassed model is tried on images like those it was built with
        shape = (getattr(encoder, "get_build_config", dict)() or {}).get("input_shape")
        shape = tuple(shape[1:]) if isinstance(shape, (tuple, list)) and len(shape) == 4 else (None, None, 3)
    try:
        return encoder.compute_output_spec(keras.KerasTensor((None, *shape), dtype="float32"))
    except Exception as error:
        raise ValueError(
            f"`encoder` should take a batch of images. Received: {encoder!r}, which fails on images of shape {shape} "
            f"with {type(error).__name__}: {error}"
        ) from error


def _described(outputs):
    """What an encoder returns that is not features, and the way out."""
    if isinstance(outputs, dict):
        known = [name for name in Adapter.OUTPUTS if name in outputs]
        way_out = "" if known else f", output={next(iter(outputs), None)!r}"
        return (
            f"a dictionary of {sorted(outputs)}. `keras_issl.encoders.Adapter(encoder{way_out})` takes one entry and "
            "pools it."
        )
    shape = getattr(outputs, "shape", None)
    if shape is None:
        return (
            f"a {type(outputs).__name__} of {len(keras.tree.flatten(outputs))} outputs. Make a model that returns the "
            "one you mean, as `keras.Model(encoder.input, encoder.output[-1])` does, and pass it to "
            "`keras_issl.encoders.Adapter`, which pools maps and tokens."
        )
    kind = {3: "tokens", 4: "maps"}.get(len(shape), "a tensor")
    return (
        f"{kind} of shape {tuple(shape)}. `keras_issl.encoders.Adapter(encoder)` averages maps and tokens; pass "
        "`image_shape` to it if the width depends on the size of the images."
    )
