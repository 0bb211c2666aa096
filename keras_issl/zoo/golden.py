"""Golden features: what an encoder made of two pictures when it was saved, to hold it against later."""

import numpy as np
from PIL import Image

from keras_issl import distribution, encoders
from keras_issl.zoo import strict

# The largest difference allowed, in units of the largest feature. Backends and PyTorch differ by less than 1e-6 on a
# CPU (tools/parity.py), matrix products in TF32 on a GPU by more; a wrong padding or normalisation by more than this.
TOLERANCE = 1e-3
COSINE = 0.999  # for low precision
SIDE = 512  # pixels, for an encoder that takes any size: the pictures need not be larger
PICTURES, BYTES = 16, 12 << 20  # what is read: there are two, and many or large ones would take minutes and gigabytes


def pictures(encoder, image_size=None):
    """Two smooth, colourful pictures of the size that the encoder is meant for, uint8 (2, H, W, C)."""
    shape = encoder.inputs[0].shape[1:] if getattr(encoder, "inputs", None) else (None, None)
    height, width = (side or min(image_size or 64, SIDE) for side in shape[:2])
    channels = encoders.image_channels(encoder) or 3
    coarse = np.random.default_rng(0).integers(0, 256, (2, channels, 8, 8)).astype("uint8")
    fine = [[Image.fromarray(c).resize((width, height), Image.Resampling.BICUBIC) for c in image] for image in coarse]
    return np.stack([np.stack([np.asarray(c) for c in image], axis=-1) for image in fine])


def write(encoder, path, image_size=None):
    """Writes the pictures and the encoder's features of them; skipped for encoders of very large images."""
    images = pictures(encoder, image_size)
    if images.nbytes > BYTES:
        return
    np.savez_compressed(path, images=images, features=_features(encoder, images))


def check(encoder, path, exact=True):
    """Raises a `ValueError` unless the encoder makes of the pictures what it made when it was saved.

    Args:
        encoder: The encoder.
        path: The file that `write` made.
        exact: Whether it computed in float32 then and does now; otherwise only the directions are compared.
    """
    golden = strict.read_archive(path, ("images", "features"))
    images, expected = golden["images"], golden["features"]
    if images.ndim != 4 or expected.ndim != 2 or len(images) != len(expected) or expected.dtype != np.float32:
        raise ValueError(f"{path} should hold images (N, H, W, C) and float32 features (N, D).")
    if len(images) > PICTURES or images.nbytes > BYTES:
        raise ValueError(
            f"{path} should hold at most {PICTURES} images in {BYTES:,} bytes. Received: {len(images):,} in "
            f"{images.nbytes:,} bytes."
        )
    try:
        found = _features(encoder, images)
    except Exception as error:
        raise ValueError(f"{path} holds images that the encoder does not take: {error}") from error
    if found.shape != expected.shape:
        raise ValueError(f"{path} holds features of shape {expected.shape}. The encoder computes {found.shape}.")
    difference = float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    cosine = float((np.sum(found * expected, axis=1) / np.maximum(norms, 1e-30)).min())
    if not (difference <= TOLERANCE if exact else cosine >= COSINE):  # also NaN
        raise ValueError(
            f"The encoder does not compute the features that were recorded in {path} when it was saved: the largest "
            f"difference is {difference:.2g} of the largest feature, the least cosine {cosine:.6f}. The weights or the "
            "versions of Keras and its backend are not those that the preset was made with; see its metadata.json."
        )


def _features(encoder, images):
    with distribution.alone():  # two pictures
        return np.asarray(encoder.predict(images, verbose=0), "float32")
