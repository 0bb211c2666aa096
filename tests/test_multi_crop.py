"""Multi-crop: the large views are SimCLR's, the small ones lie in their own interval, and no draw is used twice."""

import inspect
import itertools

import keras
import numpy as np
import pytest
from keras import ops
from sklearn.datasets import load_sample_image

from keras_issl import augmentations as A

BACKEND = keras.backend.backend()
PLAIN = {"jitter": 0.0, "hue": 0.0, "gray": 0.0, "blur": 0.0, "flip": False, "interpolation": "bilinear"}
COUNT, SIDE = 600, 96  # of the images whose views tell their draws


def array(tensor):
    return ops.convert_to_numpy(tensor)


@pytest.fixture(scope="module")
def images():
    """Four different pieces of a photograph, smaller than the large views: (4, 20, 18, 3) uint8."""
    china = load_sample_image("china.jpg")
    return np.stack([china[y : y + 20, x : x + 18] for y, x in ((100, 50), (200, 300), (330, 500), (20, 150))])


def layer(**changes):
    return A.MultiCrop(**{"size": 24, "small_size": (12, 10), "num_small": 3, "seed": 7, **changes})


# --- What the views are ---


@pytest.mark.parametrize("options", [{}, {"preset": "cifar10", "jitter": 0.3, "blur": 0.9, "blur_kernel": 5}])
def test_without_small_views_it_is_simclr(images, options):
    multi = layer(num_small=0, **options)
    simclr = A.SimCLR(24, num_views=2, min_scale=0.14, seed=7, **{"preset": "imagenet", **options})
    for training in (True, False, True):  # the generators move on together
        pairs = zip(multi(images, training=training), simclr(images, training=training), strict=True)
        for one, other in pairs:
            np.testing.assert_array_equal(array(one), array(other))
    for one, other in zip(multi.large(images), A.SimCLR(**simclr.get_config())(images), strict=True):
        np.testing.assert_array_equal(array(one), array(other))  # the attribute is that layer


def test_large_views_come_first(images):
    multi = layer(num_large=3)
    assert (multi.num_views, multi.num_large, multi.num_small) == (6, 3, 3)
    sizes = [(24, 24)] * 3 + [(12, 10)] * 3
    views = multi(images)
    assert [tuple(view.shape) for view in views] == [(4, *size, 3) for size in sizes]
    for view in map(array, views):
        assert view.dtype == "float32" and view.min() >= 0 and view.max() <= 255
    symbolic = multi(keras.Input((20, 18, 3), dtype="uint8"))
    assert [view.shape for view in symbolic] == [(None, *size, 3) for size in sizes]


def test_crop_areas_are_uniform_in_the_intervals_of_their_kind():
    """On ramps along x and y, a view's slopes tell its crop's width and height."""
    count, side = COUNT, SIDE
    ramp = np.arange(side, dtype="float32") * 255 / side
    image = np.stack(np.broadcast_arrays(ramp[None, :], ramp[:, None], 0 * ramp[None, :]), axis=-1)  # (side, side, 3)
    multi = A.MultiCrop(16, 8, 2, scale=(0.3, 0.6), small_scale=(0.05, 0.14), seed=1, **PLAIN)
    for k, view in enumerate(map(array, multi(np.repeat(image[None], count, axis=0)))):
        size, middle = view.shape[1], view.shape[1] // 2
        width = (view[:, middle, middle + 2, 0] - view[:, middle, middle - 2, 0]) / 4 * size / 255
        height = (view[:, middle + 2, middle, 1] - view[:, middle - 2, middle, 1]) / 4 * size / 255
        low, high = (0.3, 0.6) if k < 2 else (0.05, 0.14)
        area = width * height  # in whole pixels: each side is good to half a pixel of `side`
        slack = 0.5 * (width + height).max() / side + 1e-3
        assert low - slack <= area.min() and area.max() <= high + slack
        uniform = (np.sort(area) - low) / (high - low)
        assert np.abs(uniform - (np.arange(count) + 0.5) / count).max() < 1.95 / np.sqrt(COUNT) + 0.01


@pytest.mark.parametrize("training", [True, False])
def test_no_two_views_share_a_draw(training):
    """The brightness of a gray image tells a draw: over many images, those of two views don't correlate."""
    gray = np.full((COUNT, SIDE, SIDE, 3), 100.0, "float32")
    multi = A.MultiCrop(16, 8, 2, seed=3, **{**PLAIN, "jitter": 0.4})
    level = np.stack([array(view)[:, 0, 0, 0] for view in multi(gray, training=training)])  # (V, B)
    assert level.std(axis=1).min() > 10  # every kind of view is jittered
    correlations = np.corrcoef(level)[np.triu_indices(4, 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(COUNT)


def test_evaluation_views_are_fixed_and_others_are_not(images):
    multi = layer()
    fixed = [array(view) for view in multi(images, training=False)]
    for view, again in zip(fixed, layer(seed=8)(images.astype("float32"), training=False), strict=True):
        np.testing.assert_array_equal(view, array(again))
    drawn = [[array(view) for view in multi(images, training=mode)] for mode in (None, True)]
    for one, other in itertools.combinations([fixed, *drawn], 2):
        assert all(np.abs(a - b).max() > 1 for a, b in zip(one, other, strict=True))


# --- The paper's, and the numbers ---


@pytest.mark.parametrize("name, size, num_small", [("m6", 160, 4), ("m8", 224, 6)])
def test_recipes_of_the_paper(name, size, num_small):
    """Section 5 of the method page."""
    multi = getattr(A.MultiCrop, name)(seed=3)
    assert (multi.size, multi.small_size, multi.num_large, multi.num_small) == ((size,) * 2, (96, 96), 2, num_small)
    assert (multi.num_views, multi.seed) == (int(name[1]), 3)
    for kind, low, high, kernel in ((multi.large, 0.14, 1.0, size // 10 | 1), (multi.small, 0.05, 0.14, 9)):
        assert (kind.min_scale, kind.max_scale, kind.blur_kernel) == (low, high, kernel)
        assert (kind.jitter, kind.hue, kind.gray, kind.blur, kind.interpolation) == (0.8, 0.2, 0.2, 0.5, "bilinear")
    small = getattr(A.MultiCrop, name)(size=64, small_size=32, preset="tiny_imagenet")
    assert (small.size, small.num_small, small.jitter) == ((64, 64), num_small, 0.4)


def test_coarser():
    multi = layer(preset="cifar10", seed=3, num_large=1)
    coarse = multi.coarser(2.0)
    assert (coarse.scale, coarse.small_scale) == ((0.07, 1.0), (0.025, 0.14))
    assert (coarse.num_large, coarse.num_small, coarse.small_size, coarse.seed) == (1, 3, (12, 10), 3)
    for kind, expected in ((coarse.large, multi.large.coarser(2.0)), (coarse.small, multi.small.coarser(2.0))):
        ignored = {"name", "min_scale", "max_scale"}
        for key, value in expected.get_config().items():
            assert key in ignored or getattr(kind, key) == value, key
        assert (kind.min_scale, kind.max_scale) == (expected.min_scale, expected.max_scale)
    assert layer(num_small=0).coarser(2.0).num_views == 2
    with pytest.raises(ValueError, match="`strength`"):
        multi.coarser(0.5)


def test_every_option_of_simclr_reaches_both_kinds():
    options = {"ratio": (0.5, 2.0), "jitter": 0.3, "hue": 0.15, "gray": 0.25, "blur": 0.35, "blur_kernel": 3}
    options |= {"blur_sigma": (0.2, 1.0), "flip": 0.1, "interpolation": "bicubic"}
    crop = {"size", "num_views", "preset", "min_scale", "max_scale", "seed", "name"}
    assert set(options) | crop == set(inspect.signature(A.SimCLR).parameters)
    multi = layer(**options)
    for kind in (multi, multi.large, multi.small):
        assert {name: getattr(kind, name) for name in options} == options


def test_serialisation_round_trip(images):
    for multi in (layer(preset="stl10", hue=0.2), layer(num_small=0, flip=True, blur_kernel=3)):
        copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(multi))
        assert copy.get_config() == multi.get_config()
        for kind, other in ((multi.large, copy.large), (multi.small, copy.small)):
            assert (kind is other is None) or kind.get_config() == {**other.get_config(), "name": kind.name}
        for one, other in zip(multi(images), copy(images), strict=True):
            np.testing.assert_array_equal(array(one), array(other))


# --- Under fit ---


def test_float32_under_mixed_bfloat16(images):
    expected = [array(view) for view in layer()(images)]
    keras.config.set_dtype_policy("mixed_bfloat16")
    for view, reference in zip(layer()(images), expected, strict=True):
        np.testing.assert_array_equal(array(view), reference)


@pytest.mark.skipif(BACKEND == "torch", reason="the torch backend runs eagerly")
def test_compiled_equals_eager(images):
    multi, expected = layer(), layer()(images)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        dataset = tf.data.Dataset.from_tensor_slices(images).batch(4).map(multi)  # the batch dimension is unknown
        (views,) = dataset
    else:
        import jax
        from jax import export

        step = jax.jit(lambda s, x: multi.stateless_call([], s, x))
        state = [variable.value for variable in multi.variables]
        views, _ = step(state, images)
        shapes = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in state]
        exported = export.export(step, platforms=["tpu", "cuda"])
        assert "callback" not in exported(shapes, jax.ShapeDtypeStruct(images.shape, "uint8")).mlir_module()
    for view, eager in zip(views, expected, strict=True):
        np.testing.assert_allclose(array(view), array(eager), atol=0.02)


# --- Bad input ---


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_small": -1}, "`num_small`"),
        ({"num_small": 2.0}, "`num_small`"),
        ({"num_large": 0}, "`num_large`"),
        ({"num_large": True}, "`num_large`"),
        ({"small_size": 24}, "`small_size` should be less than"),
        ({"small_size": (12, 24)}, "`small_size` should be less than"),
        ({"small_size": 0}, "`size`"),
        ({"scale": (0.0, 1.0)}, "`scale`"),
        ({"scale": 0.14}, "`scale`"),
        ({"small_scale": (0.2, 0.1)}, "`small_scale`"),
        ({"small_scale": (0.2, 1.1)}, "`small_scale`"),
        ({"preset": "imagnet"}, "tiny_imagenet"),
        ({"hue": 0.6}, "`hue`"),
        ({"blur_kernel": 21}, "reflected"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=f"{message}"):
        layer(**arguments)


def test_bad_images():
    for shape in ((8, 8, 3), (2, 8, 8, 1)):
        with pytest.raises(ValueError, match="`images` should"):
            layer()(np.zeros(shape, "uint8"))
