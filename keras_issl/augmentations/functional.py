"""The deterministic functions under every random draw: batched, with one parameter per image."""

import math

import numpy as np
from keras import ops

from keras_issl.augmentations.resampling import (
    _blur_rows,
    _by_rows,
    _check_interpolation,
    _check_kernel,
    _crop_rows,
    _gaussian_kernel,
)

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, Pillow's "L"


# --- The arguments they share ---


def _images(images):
    images = ops.convert_to_tensor(images)
    if len(images.shape) != 4 or None in images.shape[1:]:
        raise ValueError(
            "`images` should be a batch (B, H, W, C) whose H, W and C are known. "
            f"Received: shape {tuple(images.shape)}. Add a batch axis with images[None]; resize images of "
            "several sizes to one first (keras_issl.datasets does)."
        )
    return images


def _rgb(images):
    images = _images(images)
    if images.shape[-1] != 3:
        raise ValueError(
            f"`images` should have 3 channels (RGB). Received: shape {tuple(images.shape)}. Repeat a single "
            "channel three times, or use keras_issl.augmentations.Affine, which takes any number of channels."
        )
    return images


def _size(size):
    pair = (size, size) if isinstance(size, int) and not isinstance(size, bool) else size
    valid = isinstance(pair, (tuple, list)) and len(pair) == 2
    if not valid or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ValueError(f"`size` should be a positive int or a pair (height, width) of them. Received: {size!r}")
    return tuple(pair)


def _per_image(value, *axes):
    """A scalar or (B,) as float32, with ones after it: (B, 1, ...)."""
    value = ops.cast(ops.convert_to_tensor(value), "float32")
    return ops.reshape(value, (-1, *axes))


# --- Colour: on the three planes (r, g, b), each (B, h, w), with per-image parameters (B, 1, 1) ---


def _luma(planes):
    return LUMA[0] * planes[0] + LUMA[1] * planes[1] + LUMA[2] * planes[2]


def _blend(planes, factor, to_gray, to_mean):
    """clip(factor x + to_gray gray(x) + to_mean mean(gray(x))): brightness, contrast and saturation in one."""
    gray = _luma(planes)
    base = to_gray * gray + to_mean * ops.mean(gray, axis=(1, 2), keepdims=True)
    return [ops.clip(factor * plane + base, 0.0, 255.0) for plane in planes]


def _shift_hue(planes, shift):
    """Rotates the hue of HSV by `shift` turns, without a round trip: value and chroma stay as they are.

    With the hue h counted in sextants, a primary at hue c has the intensity low + chroma clip(2 - d, 0, 1),
    where d = 3 - ||h - c| - 3| is their distance on the circle. Shifting h is moving the three primaries.
    """
    r, g, b = planes
    high = ops.maximum(ops.maximum(r, g), b)
    low = ops.minimum(ops.minimum(r, g), b)
    chroma = high - low
    hue = ops.where(g == high, b - r + 2.0 * chroma, r - g + 4.0 * chroma)
    hue = ops.where(r == high, g - b, hue) / ops.maximum(chroma, 1e-6)  # in [-1, 5]; any value where gray
    floor = low - chroma
    primaries = [ops.mod(c + 1.0 - 6.0 * shift, 6.0) - 1.0 for c in (0.0, 2.0, 4.0)]  # in [-1, 5)
    return [floor + chroma * ops.clip(ops.abs(ops.abs(hue - c) - 3.0), 1.0, 2.0) for c in primaries]


def _planes(images):
    """(B, H, W, 3) -> three float32 planes (B, H, W)."""
    images = ops.cast(_rgb(images), "float32")
    return [images[..., channel] for channel in range(3)]


def _interleave(planes):
    """Three (B, h, w) -> (B, h, w, 3). Stacking on the last axis itself is three times slower on TensorFlow."""
    return ops.transpose(ops.stack(planes, axis=1), (0, 2, 3, 1))


# --- The deterministic functions: one parameter per image ---


def adjust_brightness(images, factor):
    """Multiplies by `factor`: 0 is black, 1 the same images.

    Args:
        images: `(B, H, W, C)` in [0, 255].
        factor: scalar or `(B,)`, at least 0.

    Returns:
        float32 `(B, H, W, C)`, clipped to [0, 255].

    Example:
    >>> brighter = adjust_brightness(np.full((2, 4, 4, 3), 100.0), [0.5, 3.0])
    >>> keras.ops.convert_to_numpy(brighter[:, 0, 0, 0]).tolist()
    [50.0, 255.0]
    """
    images = ops.cast(_images(images), "float32")
    return ops.clip(images * _per_image(factor, 1, 1, 1), 0.0, 255.0)


def adjust_contrast(images, factor):
    """Blends with the image's mean gray level: 0 is that level everywhere, 1 the same images.

    Args:
        images: `(B, H, W, C)` in [0, 255]. The mean is that of the luma for three channels, of all values otherwise.
        factor: scalar or `(B,)`, at least 0.

    Returns:
        float32 `(B, H, W, C)`, clipped to [0, 255].
    """
    images = _images(images)
    if images.shape[-1] == 3:
        factor = _per_image(factor, 1, 1)
        return _interleave(_blend(_planes(images), factor, 0.0, 1.0 - factor))
    images, factor = ops.cast(images, "float32"), _per_image(factor, 1, 1, 1)
    mean = ops.mean(images, axis=(1, 2, 3), keepdims=True)
    return ops.clip(factor * images + (1.0 - factor) * mean, 0.0, 255.0)


def adjust_saturation(images, factor):
    """Blends with the gray image: 0 is gray, 1 the same images.

    Args:
        images: `(B, H, W, 3)`, RGB in [0, 255].
        factor: scalar or `(B,)`, at least 0.

    Returns:
        float32 `(B, H, W, 3)`, clipped to [0, 255].
    """
    factor = _per_image(factor, 1, 1)
    return _interleave(_blend(_planes(images), factor, 1.0 - factor, 0.0))


def adjust_hue(images, shift):
    """Rotates the hue of HSV.

    Args:
        images: `(B, H, W, 3)`, RGB in [0, 255].
        shift: scalar or `(B,)`, in turns from -0.5 to 0.5: 1/3 makes red green.

    Returns:
        float32 `(B, H, W, 3)`.
    """
    return ops.clip(_interleave(_shift_hue(_planes(images), _per_image(shift, 1, 1))), 0.0, 255.0)


def to_grayscale(images):
    """The luma 0.299 R + 0.587 G + 0.114 B, in all three channels.

    Args:
        images: `(B, H, W, 3)`, RGB in [0, 255].

    Returns:
        float32 `(B, H, W, 3)`.
    """
    gray = _luma(_planes(images))
    return _interleave([gray, gray, gray])


def gaussian_blur(images, sigma, kernel_size):
    """A true Gaussian of `kernel_size` taps, edges reflected, as torchvision's `GaussianBlur`.

    Pillow's filter of that name, which the ImageNet runs of the paper used, approximates it by boxes.

    Args:
        images: `(B, H, W, C)` in [0, 255].
        sigma: scalar or `(B,)`, in pixels, positive.
        kernel_size: odd int, less than twice the shorter side.

    Returns:
        float32 `(B, H, W, C)`.
    """
    images = _images(images)
    _check_kernel(kernel_size, images.shape[1:3])
    sigma = _per_image(sigma, 1) * ops.ones((ops.shape(images)[0], 1))
    rows = _blur_rows(_by_rows(images), _gaussian_kernel(sigma, kernel_size))
    return ops.transpose(rows, (0, 1, 3, 2))


def crop_and_resize(images, top, left, height, width, size, flip=None, interpolation="bicubic"):
    """Resizes one box per image, antialiased as Pillow does: pixels outside the box have no influence.

    Args:
        images: `(B, H, W, C)` in [0, 255].
        top: `(B,)`, the boxes' upper edges, in whole pixels. The boxes lie inside their images.
        left: `(B,)`, their left edges.
        height: `(B,)`, at least 1.
        width: `(B,)`, at least 1.
        size: int or `(h, w)` of the result. A box smaller than that is enlarged.
        flip: optional boolean `(B,)`: whose result is mirrored left to right.
        interpolation: `"bicubic"` (Keys' with a = -0.5, Pillow's) or `"bilinear"`.

    Returns:
        float32 `(B, h, w, C)`, clipped to [0, 255].

    Example:
    >>> tuple(crop_and_resize(images[:2], top=[0, 2], left=[3, 0], height=[9, 8], width=[5, 8], size=32).shape)
    (2, 32, 32, 3)
    """
    _check_interpolation(interpolation)
    box = [_per_image(edge, 1) for edge in (top, left, height, width)]
    flip = None if flip is None else ops.reshape(ops.convert_to_tensor(flip, dtype="bool"), (-1, 1))
    rows = _crop_rows(_by_rows(_images(images)), *box, _size(size), flip, interpolation)
    return ops.transpose(rows, (0, 1, 3, 2))


def affine_matrices(rotation, scale, translate_x, translate_y, shear, image_size, size):
    """The matrices of `affine_transform` that turn, zoom, slant and move an image about its centre.

    Args:
        rotation: `(B,)`, degrees, counter-clockwise as seen.
        scale: `(B,)`, positive: 2 makes everything twice as large.
        translate_x: `(B,)`, to the right, as a fraction of the width.
        translate_y: `(B,)`, down, as a fraction of the height.
        shear: `(B,)`, degrees by which verticals lean to the right, less than 90 either way.
        image_size: `(H, W)` of the images.
        size: `(h, w)` of the result, which shows the whole image.

    Returns:
        float32 `(B, 2, 3)`, from coordinates of the result to coordinates of the image.
    """
    radians = math.pi / 180.0
    rotation, scale, dx, dy, shear = (_per_image(value) for value in (rotation, scale, translate_x, translate_y, shear))
    cos, sin, slant = ops.cos(rotation * radians) / scale, ops.sin(rotation * radians) / scale, ops.tan(shear * radians)
    # With y down, what is seen is A = s R [[1, -tan], [0, 1]], R = [[cos, sin], [-sin, cos]]; this is its inverse.
    inverse = ((cos + slant * sin, slant * cos - sin), (sin, cos))
    height, width = size
    x0, y0 = width * (0.5 + dx), height * (0.5 + dy)  # where the centre goes
    rows = []
    for (a, b), extent, in_extent in zip(inverse, (width, height), (image_size[1], image_size[0]), strict=True):
        zoom = in_extent / extent
        rows += [zoom * a, zoom * b, in_extent / 2 - zoom * (a * x0 + b * y0)]
    return ops.reshape(ops.stack(rows, axis=-1), (-1, 2, 3))


def affine_transform(images, matrices, size, fill=0.0):
    """Samples each image bilinearly at affinely mapped positions.

    Nothing is averaged where the map shrinks an image: it suits moderate changes of scale.

    Args:
        images: `(B, H, W, C)`.
        matrices: `(B, 2, 3)`, from `(x, y, 1)` in the result to `(x, y)` in the image, as Pillow's
            `Image.transform`: in pixels, from the upper left corner, so that pixel centres are at 0.5, 1.5, ...
        size: int or `(h, w)` of the result.
        fill: value of everything outside the image, blended into at its border.

    Returns:
        float32 `(B, h, w, C)`.
    """
    images, matrices = _images(images), ops.cast(ops.convert_to_tensor(matrices), "float32")
    return _sample(_framed(images, fill), images.shape, matrices, _size(size))


def _framed(images, fill):
    """Pixels of the images with a border of `fill` around each: (B, H, W, C) -> (B * (H + 2) * (W + 2), C)."""
    frame = ((0, 0), (1, 1), (1, 1), (0, 0))
    return ops.reshape(ops.pad(ops.cast(images, "float32"), frame, constant_values=fill), (-1, images.shape[-1]))


def _sample(pixels, shape, matrices, size):
    in_height, in_width, channels = shape[1:]
    grid = np.stack(np.meshgrid(np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5)).reshape(2, -1)
    grid = np.concatenate([grid, np.ones_like(grid[:1])]).astype("float32")  # (3, P)
    batch = ops.shape(matrices)[0]
    rows = []
    for row, extent in ((matrices[:, 0], in_width), (matrices[:, 1], in_height)):
        where = ops.clip(ops.matmul(row, ops.convert_to_tensor(grid)) - 0.5, -1.0, float(extent))  # (B, P)
        first = ops.minimum(ops.floor(where), extent - 1.0)
        rows.append((ops.cast(first, "int32") + 1, ops.expand_dims(where - first, -1)))  # index in the frame
    (x, right), (y, down) = rows
    stride = in_width + 2
    index = ops.expand_dims(ops.arange(batch, dtype="int32") * (stride * (in_height + 2)), -1) + y * stride + x

    def corner(offset):
        return ops.take(pixels, index + offset, axis=0)  # (B, P, C)

    upper = corner(0) * (1.0 - right) + corner(1) * right
    lower = corner(stride) * (1.0 - right) + corner(stride + 1) * right
    return ops.reshape(upper + down * (lower - upper), (-1, *size, channels))
