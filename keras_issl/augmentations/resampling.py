"""Resampling: one weight matrix per image and axis, applied by two batched matrix products."""

import numpy as np
from keras import ops

_FAR = 1e6  # a position beyond the reach of every filter


def _bicubic(distance):
    """Twice Keys' cubic with a = -0.5, Pillow's: the weights are normalised anyway."""
    outer = ops.maximum(2.0 - distance, 0.0)
    rest = outer - 1.0
    inner = ops.maximum(rest, 0.0)
    return outer * outer * rest + inner * inner * (2.0 - 4.0 * inner)


def _bilinear(distance):
    return ops.maximum(1.0 - distance, 0.0)


_FILTERS = {"bicubic": _bicubic, "bilinear": _bilinear}


def _check_interpolation(interpolation):
    if interpolation not in _FILTERS:
        raise ValueError(f"`interpolation` should be one of {sorted(_FILTERS)}. Received: {interpolation!r}")


def _check_kernel(kernel_size, size):
    if not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0 or kernel_size >= 2 * min(size):
        raise ValueError(
            f"The blur's kernel size should be an odd int, less than twice the shorter side of {tuple(size)}: "
            f"reflected edges end there. Received: {kernel_size!r}"
        )


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
