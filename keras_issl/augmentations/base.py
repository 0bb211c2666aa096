"""What the layers share: one independent draw per image and view, and the checks of their arguments."""

import itertools
import math

import keras
from keras import ops

from keras_issl import distribution
from keras_issl.augmentations.functional import _images, _size

EVALUATION_SEED = 1551  # the views of `training=False` are the same in every call, run and process


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


def _uniform(shape, seed):
    """Uniform draws (V, n, B), float32: on every replica those of its images."""
    return distribution.draw(lambda shape: keras.random.uniform(shape, dtype="float32", seed=seed), shape, axis=2)


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
        self.built = True  # there are no weights: Keras need not try it on images first

    def call(self, images, training=None):
        images = _images(images)
        seeds = itertools.count(EVALUATION_SEED) if training is False else itertools.repeat(self.seed_generator)
        shape = (self.num_views, self._num_draws, ops.shape(images)[0])
        draws = _uniform(shape, next(seeds))
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
