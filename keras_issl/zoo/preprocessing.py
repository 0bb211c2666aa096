"""What an encoder is shown when it is evaluated: the shorter side resized, then the centre cropped.

Two ways to the same pixels: `load_images` (like `datasets.load(resize=..., image_size=...)`) decodes pictures of any
sizes with Pillow, on the CPU; the layer `ResizeCenterCrop` works on batches of one size, on the device. A preset's
metadata says which sizes its results were measured with, e.g. `"preprocessing": {"resize": 256, "crop": 224}`:
both take these two names.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
from keras import ops

from keras_issl.datasets import decode_image
from keras_issl.zoo import loading


@keras.saving.register_keras_serializable(package="keras_issl")
class ResizeCenterCrop(keras.layers.Layer):
    """Resizes the shorter side of a batch of images (bilinear, antialiased), then keeps the central square.

    It does what torchvision's `Resize(resize)` and `CenterCrop(crop)` do to Pillow images, their rounding of the longer
    side and of the crop's position included; but Pillow also rounds to whole grey levels after each axis, this layer
    not at all. Smaller images are enlarged. It computes in float32 under every dtype policy. (Where a backend
    multiplies float32 matrices in TF32 or bfloat16, as on GPUs and TPUs, the result is good to about one grey level.)

    Args:
        resize: Integer, pixels of the shorter side after the resize.
        crop: Integer, side of the central square in pixels, at most `resize`.
        name: String, the name of the layer.

    Call arguments:
        images: `(B, H, W, C)`, or one image `(H, W, C)`, in [0, 255], uint8 or float. H and W may differ from call to
            call; on TensorFlow they may be unknown to the graph, as they are within `tf.data`.

    Returns:
        float32 `(B, crop, crop, C)`, or `(crop, crop, C)`, in [0, 255].

    Raises:
        ValueError: sizes that are no positive integers, `crop` above `resize`, images of another rank.

    Example:

    >>> tuple(ResizeCenterCrop(resize=48, crop=40)(images[:2]).shape)
    (2, 40, 40, 3)
    >>> model = keras.Sequential([ResizeCenterCrop(resize=36, crop=32), encoder])  # from images to features
    >>> model(images[:2]).shape[0]
    2
    """

    def __init__(self, resize=256, crop=224, *, name=None):
        super().__init__(name=name, dtype="float32")  # in bfloat16 pixels would lose their last bits
        _check_sizes(resize, crop)
        self.resize, self.crop = int(resize), int(crop)
        self.built = True  # there are no weights

    @classmethod
    def from_preset(cls, preset, *, revision=None):
        """The layer that a preset's results were measured with.

        Args:
            preset: As in `keras_issl.from_preset`. Of one on the Hub its metadata are fetched, of others nothing.
            revision: As in `keras_issl.from_preset`.

        Raises:
            As `keras_issl.from_preset`, and
            ValueError: The preset's metadata name no sizes.

        Example:

        >>> layer = ResizeCenterCrop.from_preset("dissl_resnet50_d8192_e800_m8")
        >>> layer.resize, layer.crop
        (256, 224)
        """
        sizes = loading.read_metadata(preset, revision=revision).get("preprocessing")
        if not sizes:
            raise ValueError(
                f"`preset` should say how its images are resized and cropped. Received: {str(preset)!r}, whose "
                "metadata have no `preprocessing`. Use ResizeCenterCrop(resize=..., crop=...)."
            )
        return cls(**sizes)

    def call(self, images):
        if len(images.shape) == 3:
            return self.call(images[None])[0]
        _check_shape(images.shape)
        _, height, width, channels = ops.shape(images)
        sides, xp = (height, width), np
        if not all(isinstance(side, int) for side in sides):  # TensorFlow alone traces unknown sizes
            sides, xp = [ops.cast(side, "int64") for side in sides], ops
        short = xp.minimum(*sides)
        # (crop, H) and (crop, W), for all images: constants where the sizes are known.
        vertical, horizontal = (
            ops.convert_to_tensor(_resize_crop_weights(side, self.resize * side // short, self.crop, xp), "float32")
            for side in sides
        )
        rows = ops.cast(ops.transpose(images, (0, 1, 3, 2)), "float32")  # (B, H, C, W)
        rows = ops.matmul(vertical, ops.reshape(rows, (-1, height, channels * width)))  # (B, crop, C W)
        rows = ops.matmul(ops.reshape(rows, (-1, width)), ops.transpose(horizontal))  # (B crop C, crop)
        rows = ops.clip(ops.reshape(rows, (-1, self.crop, channels, self.crop)), 0.0, 255.0)  # of rounding errors
        return ops.transpose(rows, (0, 1, 3, 2))

    def compute_output_shape(self, images_shape):
        _check_shape(images_shape)
        return (*images_shape[:-3], self.crop, self.crop, images_shape[-1])

    def get_config(self):
        return {"resize": self.resize, "crop": self.crop, "name": self.name}


def load_images(sources, resize=256, crop=224):
    """Pictures of any sizes and formats as one array for an encoder: shorter side resized, centre cropped, by Pillow.

    For folders, Parquet files and datasets, and what does not fit in memory, use `keras_issl.datasets.load`.

    Args:
        sources: list of paths, Pillow images, encoded bytes or uint8 arrays (H, W[, 1|3|4]), in any mixture.
            EXIF orientation, transparency and colour modes are handled as in `datasets.decode_image`.
        resize: integer, pixels of the shorter side after the resize (bilinear, antialiased).
        crop: integer, side of the central square in pixels, at most `resize`.

    Returns:
        uint8 array (N, crop, crop, 3).

    Raises:
        ValueError: no list, an empty one, a picture that cannot be read (its place is named), `crop` above `resize`.

    Example:

    >>> keras.utils.array_to_img(np.zeros((500, 300, 3))).save("portrait.png")
    >>> pictures = load_images(["portrait.png", np.zeros((300, 400, 3), "uint8")])
    >>> pictures.shape
    (2, 224, 224, 3)
    >>> features = encoder.predict(pictures, verbose=0)
    """
    _check_sizes(resize, crop)
    shape = getattr(sources, "shape", None)
    one_array = shape is not None and (len(shape) < 3 or (len(shape) == 3 and 1 < shape[-1] <= 4))
    if isinstance(sources, str | os.PathLike | bytes | dict) or not hasattr(sources, "__iter__") or one_array:
        received = f"an array of shape {shape}" if one_array else f"{sources!r:.200} of type {type(sources).__name__}"
        raise ValueError(
            f"`sources` should be a list of pictures. Received: {received}. Put a single one in a list; load a folder "
            "or a dataset with keras_issl.datasets.load."
        )
    sources = list(sources)
    if not sources:
        raise ValueError("`sources` should hold at least one picture. Received: an empty list.")
    images = np.empty((len(sources), crop, crop, 3), np.uint8)

    def decode(position):
        source = sources[position]
        try:
            images[position] = decode_image(source, crop, resize)
        except MemoryError:
            raise
        except Exception as error:  # Pillow raises a dozen kinds on damaged files
            place = f" ({source})" if isinstance(source, str | os.PathLike) else ""
            raise ValueError(
                f"`sources` should be paths, Pillow images, encoded bytes or uint8 arrays. Received: item {position}"
                f"{place}, which fails with {type(error).__name__}: {error}"
            ) from error

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow works outside the interpreter lock
        for _ in pool.map(decode, range(len(sources))):
            pass
    return images


def _check_sizes(resize, crop):
    for name, value in {"resize": resize, "crop": crop}.items():
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{name}` should be a positive integer. Received: {value!r}.")
    if crop > resize:
        raise ValueError(f"`crop` should be at most `resize`. Received: crop={crop}, resize={resize}.")


def _check_shape(shape):
    if len(shape) not in (3, 4) or 0 in shape[-3:]:
        raise ValueError(
            f"`images` should be (B, H, W, C), or one image (H, W, C). Received: shape {tuple(shape)}. Images of "
            "several sizes are no array: decode them with `load_images`."
        )


def _resize_crop_weights(in_size, resized, crop, xp=np):
    """(crop, in): the rows of an antialiased bilinear resize, `in_size` to `resized`, that a centre crop keeps.

    The triangle filter is stretched by the downscaling factor and normalised, as Pillow's. Pixels beyond the crop have
    a share in its border: the resize comes first. Sizes are integers with `xp=np`, int64 tensors with `xp=keras.ops`.
    """
    margin = resized - crop
    first = (margin + margin // 2 % 2) // 2  # margin / 2 rounded half to even, as torchvision does
    # Positions in units of 1 / (2 resized) pixels of the image: exact, however large it is.
    pixel = (2 * xp.arange(in_size, dtype="int64") + 1) * resized  # (in,)
    centre = (2 * (first + xp.arange(crop, dtype="int64")) + 1) * in_size  # (crop,)
    distance = xp.abs(pixel - centre[:, None]) / (2 * xp.maximum(in_size, resized))  # (crop, in)
    weights = xp.maximum(1.0 - distance, 0.0)
    return weights / xp.sum(weights, axis=1, keepdims=True)
