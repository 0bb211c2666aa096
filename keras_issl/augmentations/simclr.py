"""`SimCLR`: views of photographs."""

import itertools
import math

import keras
import numpy as np
from keras import ops

from keras_issl.augmentations.base import _Augmentation, _between, _in_range, _interval
from keras_issl.augmentations.functional import _blend, _interleave, _rgb, _shift_hue
from keras_issl.augmentations.resampling import (
    _blur_rows,
    _by_rows,
    _check_interpolation,
    _check_kernel,
    _crop_rows,
    _gaussian_kernel,
)

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

CROP_TRIES = 10  # as torchvision's RandomResizedCrop
JITTER_PROBABILITY = 0.8


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
