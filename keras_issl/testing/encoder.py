"""The contract of an encoder."""

import numpy as np

from keras_issl.testing.shared import as_numpy, require, round_trip


def check_encoder(encoder, *, image_shape=(32, 32, 3)):
    """Holds an encoder against its contract: images in [0, 255] to finite (B, D) float32 features.

    It checks uint8 and float images, the declared width, that images do not see each other in
    inference, the round trip through the config, and that training mode updates nothing but
    non-trainable state.

    Args:
        encoder: A `keras.Model`, e.g. `encoders.ResNet(...)` or an adapted backbone.
        image_shape: (H, W, C) of the random images it is tried on.

    Raises:
        AssertionError: A clause is broken; the message names it.

    Example:

    >>> keras_issl.testing.check_encoder(keras_issl.encoders.ResNet(18, image_size=32, width=8))
    """
    from keras_issl.encoders import feature_dim

    name = type(encoder).__name__
    images = np.random.default_rng(0).integers(0, 256, (4, *image_shape)).astype("uint8")
    features = as_numpy(encoder(images, training=False))
    require(features.ndim == 2 and len(features) == 4, f"{name} should return (B, D). It returned {features.shape}.")
    require(features.dtype == np.float32, f"{name} should return float32 features. It returned {features.dtype}.")
    require(features.shape[1] == feature_dim(encoder), f"{name}: features are not as wide as declared.")
    require(np.isfinite(features).all(), f"{name}: features of random images are not finite.")
    require(features.std(axis=0).max() > 0, f"{name}: features do not depend on the image.")
    scale = np.abs(features).max()
    as_float = as_numpy(encoder(images.astype("float32"), training=False))
    require(np.allclose(features, as_float, atol=1e-4 * scale), f"{name}: uint8 and float images differ.")
    alone = as_numpy(encoder(images[:1], training=False))
    require(np.allclose(features[:1], alone, atol=1e-4 * scale), f"{name}: images of a batch see each other.")
    before = [as_numpy(w) for w in encoder.trainable_weights]
    encoder(images, training=True)
    same = all(np.array_equal(as_numpy(w), b) for w, b in zip(encoder.trainable_weights, before, strict=True))
    require(same, f"{name}: a forward pass changed trainable weights.")
    round_trip(encoder)
