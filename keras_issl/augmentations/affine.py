"""`Affine`: views of data whose label a mirror or a change of colour may destroy."""

import math

import keras
from keras import ops

from keras_issl import distribution
from keras_issl.augmentations.base import _Augmentation, _between, _in_range, _interval
from keras_issl.augmentations.functional import (
    _framed,
    _per_image,
    _sample,
    adjust_brightness,
    adjust_contrast,
    affine_matrices,
)

MAX_SHEAR = 60.0  # degrees; the slant is infinite at 90


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
            normal = lambda shape: keras.random.normal(shape, dtype="float32", seed=seed)  # noqa: E731
            noise = distribution.draw(normal, ops.shape(images), axis=0)
            images = ops.clip(images + _per_image(255.0 * self.noise * draws[7], 1, 1, 1) * noise, 0.0, 255.0)
        return images
