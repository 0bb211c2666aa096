"""`MultiCrop`: a few large views for the teacher, more small ones for the student alone."""

import keras
from keras import ops

from keras_issl.augmentations.base import EVALUATION_SEED, _Augmentation, _interval, _uniform
from keras_issl.augmentations.functional import _images, _size
from keras_issl.augmentations.simclr import SimCLR

_COLOUR = ("jitter", "hue", "gray", "blur", "interpolation")  # a preset's, in both kinds of view


def _count(name, value, least):
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"`{name}` should be an int of at least {least}. Received: {value!r}")
    return value


@keras.saving.register_keras_serializable(package="keras_issl", name="MultiCropViews")
class MultiCrop(_Augmentation):
    """Large views of most of the image, then small views of parts of it: cheap positives for the student.

    All of them are `SimCLR` views with the same flips, colours and blur, and differ in the crop's area and in their
    pixels. The large come first: an objective whose teacher looks at two views sees those. Views of one size are
    neighbours, so the encoder, which has to take both sizes, is called once for each.

    `MultiCrop.m6()` and `MultiCrop.m8()` are those of the paper's ImageNet runs. Small images take smaller crops:
    `MultiCrop(64, 32, 4, preset="tiny_imagenet")`.

    Source: Caron et al. 2020 (SwAV), §3.3 and appendix A; Dubois et al. 2022 for m6 and m8.

    Args:
        size: int or `(h, w)`, the large views' pixels.
        small_size: the small views', less than `size` on both sides.
        num_small: int, small views per image; with 0 the views are those of `SimCLR(size, num_views=num_large)` with
            the same numbers and seed.
        num_large: int, large views per image.
        scale: pair, the large crops' area, as a fraction of the image's.
        small_scale: pair, the small crops'.
        preset: as `SimCLR`'s, without its crop scale.
        ratio, jitter, hue, gray, blur, blur_kernel, blur_sigma, flip, interpolation: as `SimCLR`'s, for both kinds of
            view. By default the blur's kernel follows each one's pixels.
        seed: int or `None`, of the draws.
        name: of the layer.

    Attributes:
        num_views: all views, `num_large + num_small`.
        large, small: the `SimCLR` layers of the two kinds (`small` is `None` without small views), e.g. to show or
            measure the large views alone.

    Call arguments:
        images: `(B, H, W, 3)`, uint8 or float, RGB in [0, 255].
        training: `False` draws the same views in every call (for `evaluate`); otherwise the draws are random.

    Returns:
        List of `num_large` float32 tensors `(B, h, w, 3)` in [0, 255], then of `num_small` smaller ones.

    Raises:
        ValueError: an argument is out of its range, or the images have another rank or number of channels.

    Example:
    >>> augment = MultiCrop(32, 16, 4, preset="cifar10")
    >>> [view.shape[1] for view in augment(images)]
    [32, 32, 16, 16, 16, 16]
    """

    _num_draws = SimCLR._num_draws
    _arguments = (
        *("size", "small_size", "num_small", "num_large", "scale", "small_scale", *_COLOUR),
        *("ratio", "blur_kernel", "blur_sigma", "flip", "seed", "name"),
    )

    def __init__(
        self,
        size,
        small_size,
        num_small,
        *,
        num_large=2,
        scale=(0.14, 1.0),
        small_scale=(0.05, 0.14),
        preset="imagenet",
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
        super().__init__(size, _count("num_large", num_large, 1) + _count("num_small", num_small, 0), seed, name)
        self.num_large, self.num_small, self.small_size = num_large, num_small, _size(small_size)
        if not all(small < large for small, large in zip(self.small_size, self.size, strict=True)):
            raise ValueError(
                f"`small_size` should be less than size={self.size} on both sides. Received: {small_size!r}. For more "
                "views of one size, use SimCLR(size, num_views=...)."
            )
        self.scale = _interval("scale", scale, 0.0, 1.0)
        self.small_scale = _interval("small_scale", small_scale, 0.0, 1.0)
        options = {"preset": preset, "ratio": ratio, "jitter": jitter, "hue": hue, "gray": gray, "blur": blur}
        options |= {"blur_sigma": blur_sigma, "flip": flip, "interpolation": interpolation, "seed": seed}

        def views(count, size, scale):
            return SimCLR(
                size, num_views=count, min_scale=scale[0], max_scale=scale[1], blur_kernel=blur_kernel, **options
            )

        self.large = views(num_large, self.size, self.scale)
        self.small = views(num_small, self.small_size, self.small_scale) if num_small else None
        self.blur_kernel = blur_kernel  # as given: `None` is each one's own
        for attribute in (*_COLOUR, "ratio", "blur_sigma", "flip"):
            setattr(self, attribute, getattr(self.large, attribute))

    @classmethod
    def m6(cls, **changes):
        """2 views of 160 pixels and 4 of 96, as the paper's "m6" presets were trained.

        Args:
            **changes: arguments of the class, e.g. `seed`.
        """
        return cls(**{"size": 160, "small_size": 96, "num_small": 4, **changes})

    @classmethod
    def m8(cls, **changes):
        """2 views of 224 pixels and 6 of 96, as the paper's "m8" presets were trained.

        Args:
            **changes: arguments of the class, e.g. `seed`.
        """
        return cls(**{"size": 224, "small_size": 96, "num_small": 6, **changes})

    def coarser(self, strength):
        """The paper's "+aug": stronger views, hence fewer equivalence classes. As `SimCLR.coarser`, for both kinds.

        Args:
            strength: at least 1. The paper's is 2.

        Returns:
            A new `MultiCrop`.
        """
        large = self.large.coarser(strength)
        small_scale = (self.small_scale[0] / strength, self.small_scale[1])
        colours = {name: getattr(large, name) for name in _COLOUR}
        return self._with(scale=(large.min_scale, large.max_scale), small_scale=small_scale, **colours)

    def call(self, images, training=None):
        images = _images(images)
        # One array of uniforms for all views, as `SimCLR` has: no two views share a draw.
        shape = (self.num_views, self._num_draws, ops.shape(images)[0])
        seed = EVALUATION_SEED if training is False else self.seed_generator
        draws = _uniform(shape, seed)
        rows = self.large._prepare(images)
        kinds = [self.large] * self.num_large + [self.small] * self.num_small
        return [kind._view(rows, images.shape, draws[view], None) for view, kind in enumerate(kinds)]

    def compute_output_shape(self, images_shape):
        sizes = [self.size] * self.num_large + [self.small_size] * self.num_small
        return [(images_shape[0], *size, images_shape[-1]) for size in sizes]

    def get_config(self):
        return {name: getattr(self, name) for name in self._arguments}
