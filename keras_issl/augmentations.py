"""Random views of image batches, on the device, with one independent draw per image and view.

Two families, both Keras layers from `(B, H, W, C)` images in [0, 255] to a list of `V` float32 views in [0, 255]:
`SimCLR` for photographs, `Affine` for everything whose label a mirror or a change of colour may destroy.

Under every random draw lies a deterministic, batched function (`crop_and_resize`, `adjust_hue`, ...) with one
parameter per image. They follow torchvision's transforms on Pillow images, with one difference: Pillow rounds to
uint8 after every operation, these stay in float32 and only clip to [0, 255]. (Where a backend multiplies float32
matrices in TF32 or bfloat16, as on GPUs and TPUs, resampling is good to about one gray level.)
"""

import itertools
import math

import keras
import numpy as np
from keras import ops

__all__ = [
    "PRESETS",
    "Affine",
    "SimCLR",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "affine_matrices",
    "affine_transform",
    "crop_and_resize",
    "gaussian_blur",
    "to_grayscale",
]

_IMAGENET = {"gray": 0.2, "blur": 0.5, "interpolation": "bilinear"}
_SMALL = {"min_scale": 0.2, "gray": 0.1, "blur": 0.0, "interpolation": "bicubic"}
PRESETS = {
    "cifar10": {**_SMALL, "jitter": 0.2, "hue": 0.05},
    "tiny_imagenet": {**_SMALL, "jitter": 0.4, "hue": 0.1},
    "stl10": {**_SMALL, "jitter": 0.4, "hue": 0.1},
    "imagenet": {**_IMAGENET, "min_scale": 0.08, "jitter": 0.8, "hue": 0.2},
    "imagenet_large": {**_IMAGENET, "min_scale": 0.04, "jitter": 1.0, "hue": 0.25},
    "imagenet_small": {**_IMAGENET, "min_scale": 0.16, "jitter": 0.4, "hue": 0.1},
}
"""The augmentations of the paper's runs (Dubois et al. 2022), by the name `SimCLR(preset=...)` takes."""

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, Pillow's "L"
CROP_TRIES = 10  # as torchvision's RandomResizedCrop
JITTER_PROBABILITY = 0.8
MAX_SHEAR = 60.0  # degrees; the slant is infinite at 90
_FAR = 1e6  # a position beyond the reach of every filter
EVALUATION_SEED = 1551  # the views of `training=False` are the same in every call, run and process


# --- Resampling: one weight matrix per image and axis, applied by two batched matrix products ---


def _bicubic(distance):
    """Twice Keys' cubic with a = -0.5, Pillow's: the weights are normalised anyway."""
    outer = ops.maximum(2.0 - distance, 0.0)
    rest = outer - 1.0
    inner = ops.maximum(rest, 0.0)
    return outer * outer * rest + inner * inner * (2.0 - 4.0 * inner)


def _bilinear(distance):
    return ops.maximum(1.0 - distance, 0.0)


_FILTERS = {"bicubic": _bicubic, "bilinear": _bilinear}


def _resample_weights(start, length, in_size, out_size, interpolation, flip=None):
    """Weights (B, out, in) of an antialiased resize of [start, start + length) to `out_size` pixels.

    The filter is stretched by the downscaling factor, and no pixel outside the crop has a weight: Pillow
    crops first. A flip mirrors the output's centres, so it costs nothing.
    """
    scale = length / out_size  # (B, 1)
    narrow = 1.0 / ops.maximum(scale, 1.0)
    centre = start + (ops.arange(out_size, dtype="float32") + 0.5) * scale  # (B, out)
    if flip is not None:
        centre = ops.where(flip, ops.flip(centre, axis=1), centre)
    pixel = ops.arange(in_size, dtype="float32") + 0.5
    inside = ops.logical_and(pixel > start, pixel < start + length)
    pixel = ops.where(inside, pixel * narrow, _FAR)  # (B, in)
    weights = _FILTERS[interpolation](ops.abs(ops.expand_dims(pixel, 1) - ops.expand_dims(centre * narrow, -1)))
    return weights / ops.sum(weights, axis=-1, keepdims=True)


def _by_rows(images):
    """(B, H, W, C) -> float32 (B, H, C, W): both matrix products of `_separable` then need no transposition."""
    height, width, channels = images.shape[1:]
    rows = ops.reshape(ops.transpose(images, (0, 1, 3, 2)), (-1, height, channels * width))
    return ops.reshape(ops.cast(rows, "float32"), (-1, height, channels, width))


def _separable(rows, vertical, horizontal):
    """(B, H, C, W) by weights (B, h, H) and (B, w, W) -> (B, h, C, w), clipped: bicubic overshoots."""
    height, channels, width = rows.shape[1:]
    rows = ops.matmul(vertical, ops.reshape(rows, (-1, height, channels * width)))
    out_height, out_width = vertical.shape[1], horizontal.shape[1]
    rows = ops.reshape(rows, (-1, out_height * channels, width))
    rows = ops.matmul(rows, ops.transpose(horizontal, (0, 2, 1)))
    return ops.clip(ops.reshape(rows, (-1, out_height, channels, out_width)), 0.0, 255.0)


def _crop_rows(rows, top, left, height, width, size, flip, interpolation):
    in_height, in_width = rows.shape[1], rows.shape[3]
    vertical = _resample_weights(top, height, in_height, size[0], interpolation)
    horizontal = _resample_weights(left, width, in_width, size[1], interpolation, flip)
    return _separable(rows, vertical, horizontal)


def _blur_rows(rows, kernel):
    """Separable convolution of (B, h, C, w) with one normalised kernel (B, k) per image, edges reflected."""
    vertical = _reflected_band(kernel, rows.shape[1])
    square = rows.shape[1] == rows.shape[3]
    return _separable(rows, vertical, vertical if square else _reflected_band(kernel, rows.shape[3]))


def _reflected_band(kernel, size):
    """(B, k) -> (B, size, size): the convolution as a matrix."""
    taps = kernel.shape[1]
    where = np.arange(size)[:, None] + np.arange(taps) - taps // 2  # (size, k): the pixel each tap reads
    where = (size - 1) - np.abs((size - 1) - np.abs(where))  # reflected without repeating the edge
    counts = (where[..., None] == np.arange(size)).astype("float32")  # (size, k, size)
    counts = counts.transpose(1, 0, 2).reshape(taps, size * size)
    return ops.reshape(ops.matmul(kernel, ops.convert_to_tensor(counts)), (-1, size, size))


def _gaussian_kernel(sigma, kernel_size):
    """(B, 1) -> (B, k), normalised to sum 1."""
    taps = ops.arange(kernel_size, dtype="float32") - kernel_size // 2
    kernel = ops.exp(-0.5 * ops.square(taps / sigma))
    return kernel / ops.sum(kernel, axis=-1, keepdims=True)


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


def _jitter_schedule(with_hue):
    """One-hot table (24, slots, 4) of which of brightness, contrast, saturation, nothing runs in which slot.

    A batch runs every slot, each image its own order. With a hue shift there are three slots before it and
    three after it, the unused ones idle: six cheap blends and one costly hue shift, instead of four of each.
    """
    table = []
    for order in itertools.permutations(range(4)):  # 3 is the hue shift, and the idle operation of a slot
        before, after = order[: order.index(3)], order[order.index(3) + 1 :]
        slots = (*before, *[3] * (3 - len(before)), *after, *[3] * (3 - len(after))) if with_hue else before + after
        table.append(slots)
    return np.eye(4, dtype="float32")[np.array(table)]


def _jitter(planes, factors, shift, order, schedule):
    """`factors` (B, 4) of brightness, contrast, saturation and 1; `shift` (B,) turns; `order` (B,) in 0..23."""
    chosen = ops.take(ops.convert_to_tensor(schedule), order, axis=0)  # (B, slots, 4)
    factor = ops.sum(chosen * ops.expand_dims(factors, 1), axis=-1)  # (B, slots)
    to_mean = (1.0 - factor) * chosen[..., 1]
    to_gray = (1.0 - factor) * chosen[..., 2]
    slots = schedule.shape[1]
    for slot in range(slots):
        if slots == 6 and slot == 3:
            planes = _shift_hue(planes, shift[:, None, None])
        planes = _blend(planes, *(value[:, slot, None, None] for value in (factor, to_gray, to_mean)))
    return planes


def _planes(images):
    """(B, H, W, 3) -> three float32 planes (B, H, W)."""
    images = ops.cast(_rgb(images), "float32")
    return [images[..., channel] for channel in range(3)]


def _interleave(planes):
    """Three (B, h, w) -> (B, h, w, 3). Stacking on the last axis itself is three times slower on TensorFlow."""
    return ops.transpose(ops.stack(planes, axis=1), (0, 2, 3, 1))


# --- The deterministic functions: one parameter per image ---


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


def _per_image(value, *axes):
    """A scalar or (B,) as float32, with ones after it: (B, 1, ...)."""
    value = ops.cast(ops.convert_to_tensor(value), "float32")
    return ops.reshape(value, (-1, *axes))


def adjust_brightness(images, factor):
    """Multiplies by `factor`: 0 is black, 1 the same images.

    Args:
        images: `(B, H, W, C)` in [0, 255].
        factor: scalar or `(B,)`, at least 0.

    Returns:
        float32 `(B, H, W, C)`, clipped to [0, 255].

    Example:
    >>> adjust_brightness(np.full((2, 4, 4, 3), 100.0), [0.5, 3.0])[:, 0, 0, 0]
    [50., 255.]
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
    >>> crop_and_resize(images[:2], top=[0, 2], left=[3, 0], height=[9, 8], width=[5, 8], size=32).shape
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


# --- The layers: the draws ---


def _size(size):
    pair = (size, size) if isinstance(size, int) and not isinstance(size, bool) else size
    valid = isinstance(pair, (tuple, list)) and len(pair) == 2
    if not valid or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ValueError(f"`size` should be a positive int or a pair (height, width) of them. Received: {size!r}")
    return tuple(pair)


def _check_interpolation(interpolation):
    if interpolation not in _FILTERS:
        raise ValueError(f"`interpolation` should be one of {sorted(_FILTERS)}. Received: {interpolation!r}")


def _check_kernel(kernel_size, size):
    if not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0 or kernel_size >= 2 * min(size):
        raise ValueError(
            f"The blur's kernel size should be an odd int, less than twice the shorter side of {tuple(size)}: "
            f"reflected edges end there. Received: {kernel_size!r}"
        )


def _in_range(name, value, low=0.0, high=math.inf):
    """`value` as a float; the bounds included."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        bounds = f"at least {low}" if high == math.inf else f"from {low} to {high}"
        raise ValueError(f"`{name}` should be a number {bounds}. Received: {value!r}")
    return float(value)


def _interval(name, value, low=0.0, high=math.inf):
    """A pair of floats, low < both <= high, in order."""
    if not isinstance(value, (tuple, list)) or len(value) != 2 or not low < value[0] <= value[1] <= high:
        raise ValueError(f"`{name}` should be a pair, {low} < lower <= upper <= {high}. Received: {value!r}")
    return tuple(map(float, value))


def _between(uniform, low, high):
    return low + (high - low) * uniform


class _Augmentation(keras.layers.Layer):
    """Views, seeds and configuration. A family gives `_num_draws`, `_arguments`, `_prepare` and `_view`.

    Every random number of a call comes from one `(V, _num_draws, B)` array of uniforms. The layer computes in
    float32 under every dtype policy: bfloat16 has 8 bits, the images have 8 bits of their own.
    """

    _num_draws = 0  # uniforms per image and view
    _arguments = ()  # the family's own, for the configuration

    def __init__(self, size, num_views, seed, name):
        super().__init__(name=name, dtype="float32")
        if isinstance(num_views, bool) or not isinstance(num_views, int) or num_views < 1:
            raise ValueError(f"`num_views` should be a positive int. Received: {num_views!r}")
        self.size, self.num_views, self.seed = _size(size), num_views, seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, images, training=None):
        images = _images(images)
        seeds = itertools.count(EVALUATION_SEED) if training is False else itertools.repeat(self.seed_generator)
        shape = (self.num_views, self._num_draws, ops.shape(images)[0])
        draws = keras.random.uniform(shape, dtype="float32", seed=next(seeds))
        prepared = self._prepare(images)
        return [self._view(prepared, images.shape, draws[view], next(seeds)) for view in range(self.num_views)]

    def compute_output_shape(self, images_shape):
        return [(images_shape[0], *self.size, images_shape[-1])] * self.num_views

    def get_config(self):
        return {name: getattr(self, name) for name in (*self._arguments, "size", "num_views", "seed", "name")}

    def _with(self, **changes):
        """The same layer but for `changes`, unnamed."""
        return type(self)(**{**self.get_config(), "name": None, **changes})

    def _check_strength(self, strength):
        if _in_range("strength", strength) < 1.0:
            raise ValueError(
                f"`strength` should be at least 1. Received: {strength!r}. For finer views, make a "
                f"{type(self).__name__} with smaller numbers."
            )


@keras.saving.register_keras_serializable(package="keras_issl", name="SimCLRViews")
class SimCLR(_Augmentation):
    """Views of photographs: a random resized crop, a flip, colour jitter, gray, blur, in this order.

    Each image and view has its own draw. The semantics are torchvision's on Pillow images: the crop's area is
    uniform in `(min_scale, max_scale)` and its aspect ratio log-uniform in `ratio`, in whole pixels, at most ten
    tries and then the largest central box of an allowed ratio; brightness, contrast and saturation factors are
    uniform in [max(0, 1 - jitter), 1 + jitter], the hue moves by up to `hue` turns, and the four come in random
    order, all or (with probability 0.2) none. Crops smaller than `size` are enlarged, so small images are no error.

    Source: Dubois et al. 2022, and Chen et al. 2020 (SimCLR), appendix A.

    Args:
        size: int or `(h, w)`, the views' pixels.
        num_views: int, views per image.
        preset: `None` or a name in `PRESETS`: `"cifar10"`, `"tiny_imagenet"`, `"stl10"`, `"imagenet"`,
            `"imagenet_large"`, `"imagenet_small"`. What is not given below is the preset's; `None` means the
            numbers of `"tiny_imagenet"`.
        min_scale, max_scale: the crop's area, as a fraction of the image's.
        ratio: pair, the crop's width over its height.
        jitter: of brightness, contrast and saturation.
        hue: in turns, at most 0.5.
        gray: probability of a gray view.
        blur: probability of a blurred view; 0 is none. The blur is a true Gaussian.
        blur_kernel: odd int, its taps; by default odd(floor(0.1 * shorter side)): 3 at 32 px, 7 at 64, 23 at 224.
            A kernel of one tap, as below 20 px, blurs nothing.
        blur_sigma: pair, in pixels, its standard deviation is uniform between.
        flip: probability of a left-right flip, or `True` for 0.5.
        interpolation: `"bicubic"` or `"bilinear"`, antialiased as Pillow's.
        seed: int or `None`, of the draws.
        name: of the layer.

    Call arguments:
        images: `(B, H, W, 3)`, uint8 or float, RGB in [0, 255].
        training: `False` draws the same views in every call (for `evaluate`); otherwise the draws are random.

    Returns:
        List of `num_views` float32 tensors `(B, h, w, 3)` in [0, 255].

    Raises:
        ValueError: an argument is out of its range, or the images have another rank or number of channels.

    The layer also works on batches inside `tf.data.Dataset.map` (TensorFlow backend). Leave `num_parallel_calls`
    unset there: parallel calls may read the same state of the seed, and give two batches the same draws.
    TensorFlow's generator gives other numbers under XLA than without, from the same seed.

    Example:
    >>> augment = SimCLR(32, preset="cifar10", hue=0.1)
    >>> first, second = augment(images)
    >>> coarse = augment.coarser(2.0)
    """

    _num_draws = 3 * CROP_TRIES + 12
    _arguments = (
        *("min_scale", "max_scale", "ratio", "jitter", "hue", "gray", "blur", "blur_kernel", "blur_sigma"),
        *("flip", "interpolation"),
    )

    def __init__(
        self,
        size,
        *,
        num_views=2,
        preset=None,
        min_scale=None,
        max_scale=1.0,
        ratio=(3 / 4, 4 / 3),
        jitter=None,
        hue=None,
        gray=None,
        blur=None,
        blur_kernel=None,
        blur_sigma=(0.1, 2.0),
        flip=0.5,
        interpolation=None,
        seed=None,
        name=None,
    ):
        super().__init__(size, num_views, seed, name)
        if preset is not None and preset not in PRESETS:
            raise ValueError(f"`preset` should be None or one of {sorted(PRESETS)}. Received: {preset!r}")
        given = {"min_scale": min_scale, "jitter": jitter, "hue": hue, "gray": gray, "blur": blur}
        given["interpolation"] = interpolation
        values = {**PRESETS[preset or "tiny_imagenet"], **{k: v for k, v in given.items() if v is not None}}
        self.min_scale, self.max_scale = _interval("(min_scale, max_scale)", (values["min_scale"], max_scale), 0.0, 1.0)
        self.ratio = _interval("ratio", ratio)
        self.jitter = _in_range("jitter", values["jitter"])
        self.hue = _in_range("hue", values["hue"], 0.0, 0.5)
        self.gray = _in_range("gray", values["gray"], 0.0, 1.0)
        self.blur = _in_range("blur", values["blur"], 0.0, 1.0)
        self.blur_kernel = min(self.size) // 10 | 1 if blur_kernel is None else blur_kernel
        _check_kernel(self.blur_kernel, self.size)
        self.blur_sigma = _interval("blur_sigma", blur_sigma)
        self.flip = 0.5 * flip if isinstance(flip, bool) else _in_range("flip", flip, 0.0, 1.0)
        self.interpolation = values["interpolation"]
        _check_interpolation(self.interpolation)

    def coarser(self, strength):
        """The paper's "+aug": stronger views, hence fewer equivalence classes.

        Multiplies the jitter, the hue (at most 0.5) and the probability of gray (at most 1), divides the lower
        crop scale, and adds a blur with probability 0.5 where there is none.

        Args:
            strength: at least 1. The paper's is 2.

        Returns:
            A new `SimCLR`.
        """
        self._check_strength(strength)
        return self._with(
            min_scale=self.min_scale / strength,
            jitter=self.jitter * strength,
            hue=min(0.5, self.hue * strength),
            gray=min(1.0, self.gray * strength),
            blur=self.blur or (0.5 if strength > 1 else 0.0),
        )

    def _prepare(self, images):
        return _by_rows(_rgb(images))

    def _view(self, rows, shape, draws, seed):
        crop, draws = draws[: 2 * CROP_TRIES + 3], draws[2 * CROP_TRIES + 3 :]
        box = self._box(crop, shape[1:3])
        flip = ops.expand_dims(crop[-1] < self.flip, -1)
        rows = _crop_rows(rows, *box, self.size, flip, self.interpolation)
        planes = [rows[:, :, channel] for channel in range(3)]  # (B, h, w) each
        if self.jitter or self.hue:
            planes = self._jittered(planes, draws)
        if self.gray:
            # Gray is saturation 0. As a `where`, XLA would compute the whole chain once per plane: 3 times slower.
            gray = ops.cast(draws[6] < self.gray, "float32")[:, None, None]
            planes = _blend(planes, 1.0 - gray, gray, ops.zeros_like(gray))
        if not self.blur or self.blur_kernel == 1:
            return _interleave(planes)
        kernel = _gaussian_kernel(ops.expand_dims(_between(draws[7], *self.blur_sigma), -1), self.blur_kernel)
        sharp = np.eye(self.blur_kernel, dtype="float32")[self.blur_kernel // 2]
        kernel = ops.where(ops.expand_dims(draws[8] < self.blur, -1), kernel, ops.convert_to_tensor(sharp))
        return ops.transpose(_blur_rows(ops.stack(planes, axis=2), kernel), (0, 1, 3, 2))

    def _box(self, draws, shape):
        """torchvision's RandomResizedCrop: top, left, height and width, (B, 1) each, from (23, B) uniforms."""
        in_height, in_width = shape
        area = in_height * in_width * _between(draws[:CROP_TRIES], self.min_scale, self.max_scale)
        ratio = ops.exp(_between(draws[CROP_TRIES : 2 * CROP_TRIES], *map(math.log, self.ratio)))
        width, height = ops.round(ops.sqrt(area * ratio)), ops.round(ops.sqrt(area / ratio))  # (tries, B)
        fits = ops.logical_and(width <= in_width, height <= in_height)
        fits = ops.cast(ops.logical_and(fits, ops.minimum(width, height) > 0), "float32")
        first = fits * ops.cast(ops.cumsum(fits, axis=0) == 1.0, "float32")  # one-hot over the tries, or zero
        none = 1.0 - ops.sum(first, axis=0)
        # No try fits: the whole image, shortened to the nearest allowed ratio, from the centre.
        widest = min(in_width, round(in_height * self.ratio[1]))
        highest = min(in_height, round(in_width / self.ratio[0]))
        width = ops.sum(first * width, axis=0) + none * widest
        height = ops.sum(first * height, axis=0) + none * highest
        box = []
        for draw, room in ((draws[-3], in_height - height), (draws[-2], in_width - width)):
            anywhere = ops.minimum(ops.floor(draw * (room + 1.0)), room)
            box.append(ops.where(none > 0.5, ops.floor(room / 2.0), anywhere))
        return [ops.expand_dims(edge, -1) for edge in (*box, height, width)]

    def _jittered(self, planes, draws):
        on = ops.cast(draws[0] < JITTER_PROBABILITY, "float32")
        low, high = min(1.0, self.jitter), self.jitter
        factors = [1.0 + on * _between(draws[k], -low, high) for k in (1, 2, 3)]
        factors = ops.stack([*factors, ops.ones_like(on)], axis=-1)  # (B, 4)
        order = ops.cast(ops.minimum(ops.floor(24.0 * draws[5]), 23.0), "int32")
        shift = on * _between(draws[4], -self.hue, self.hue)
        return _jitter(planes, factors, shift, order, _jitter_schedule(self.hue > 0))


@keras.saving.register_keras_serializable(package="keras_issl", name="AffineViews")
class Affine(_Augmentation):
    """Views of data whose label a mirror or a change of colour may destroy: digits, scans, spectra, any channels.

    Each image and view is turned, zoomed, slanted and moved about its centre, sampled bilinearly, and then changed
    in brightness, contrast and by Gaussian noise, in this order. Each strength is drawn on its own, uniformly
    between its bounds (the zoom log-uniformly); 0 switches an operation off.

    Args:
        size: int or `(h, w)`, the views' pixels. Without any draw a view shows the whole image.
        num_views: int, views per image.
        rotation: degrees either way, at most 180.
        scale: pair, zoom factors; `(1, 1)` is none.
        translate: fraction of the width and of the height either way, at most 1.
        shear: degrees either way, at most 60.
        brightness: the image is multiplied by a factor from [max(0, 1 - brightness), 1 + brightness].
        contrast: likewise for its distance from its own mean (over all pixels and channels; for three channels,
            of the luma).
        noise: the greatest standard deviation of the noise, as a fraction of 255; each view's is uniform from 0.
        fill: value outside the image, in [0, 255].
        seed: int or `None`, of the draws.
        name: of the layer.

    Call arguments:
        images: `(B, H, W, C)`, uint8 or float, in [0, 255].
        training: `False` draws the same views in every call (for `evaluate`); otherwise the draws are random.

    Returns:
        List of `num_views` float32 tensors `(B, h, w, C)` in [0, 255].

    Raises:
        ValueError: an argument is out of its range, or the images have another rank.

    Example:
    >>> augment = Affine(28, rotation=20, noise=0.05)
    >>> first, second = augment(images)
    """

    _num_draws = 8
    _arguments = ("rotation", "scale", "translate", "shear", "brightness", "contrast", "noise", "fill")

    def __init__(
        self,
        size,
        *,
        num_views=2,
        rotation=15.0,
        scale=(0.8, 1.25),
        translate=0.1,
        shear=10.0,
        brightness=0.2,
        contrast=0.4,
        noise=0.0,
        fill=0.0,
        seed=None,
        name=None,
    ):
        super().__init__(size, num_views, seed, name)
        self.rotation = _in_range("rotation", rotation, 0.0, 180.0)
        self.scale = _interval("scale", scale)
        self.translate = _in_range("translate", translate, 0.0, 1.0)
        self.shear = _in_range("shear", shear, 0.0, MAX_SHEAR)
        self.brightness = _in_range("brightness", brightness)
        self.contrast = _in_range("contrast", contrast)
        self.noise = _in_range("noise", noise, 0.0, 1.0)
        self.fill = _in_range("fill", fill, 0.0, 255.0)

    def coarser(self, strength):
        """Stronger views, hence fewer equivalence classes: every bound times `strength`, that of log zoom too.

        Each stays within what the constructor takes. As in `SimCLR.coarser`, nothing that is off comes on.

        Args:
            strength: at least 1.

        Returns:
            A new `Affine`.
        """
        self._check_strength(strength)
        limits = {"rotation": 180.0, "translate": 1.0, "shear": MAX_SHEAR, "brightness": math.inf}
        limits |= {"contrast": math.inf, "noise": 1.0}
        changes = {name: min(limit, getattr(self, name) * strength) for name, limit in limits.items()}
        return self._with(scale=tuple(bound**strength for bound in self.scale), **changes)

    def _prepare(self, images):
        return _framed(images, self.fill)

    def _view(self, pixels, shape, draws, seed):
        def around(draw, bound):
            return _between(draw, -bound, bound)

        scale = ops.exp(_between(draws[1], *map(math.log, self.scale)))
        shift = (around(draws[2], self.translate), around(draws[3], self.translate))
        rotation, shear = around(draws[0], self.rotation), around(draws[4], self.shear)
        matrices = affine_matrices(rotation, scale, *shift, shear, shape[1:3], self.size)
        images = _sample(pixels, shape, matrices, self.size)
        if self.brightness:
            factor = 1.0 + _between(draws[5], -min(1.0, self.brightness), self.brightness)
            images = adjust_brightness(images, factor)
        if self.contrast:
            factor = 1.0 + _between(draws[6], -min(1.0, self.contrast), self.contrast)
            images = adjust_contrast(images, factor)
        if self.noise:
            noise = keras.random.normal(ops.shape(images), dtype="float32", seed=seed)
            images = ops.clip(images + _per_image(255.0 * self.noise * draws[7], 1, 1, 1) * noise, 0.0, 255.0)
        return images
