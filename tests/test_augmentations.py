"""The deterministic half against Pillow, colorsys and float64 references; the draws against their distributions."""

import colorsys
import itertools
import math

import keras
import numpy as np
import pytest
from keras import ops
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_image

from keras_issl import augmentations as A
from keras_issl.augmentations.simclr import CROP_TRIES

BACKEND = keras.backend.backend()
RESAMPLE = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
LUMA = np.array([0.299, 0.587, 0.114])
WHOLE = {"min_scale": 1.0, "ratio": (1.0, 1.0)}  # a crop that is the (square) image
PLAIN = {**WHOLE, "jitter": 0.0, "hue": 0.0, "gray": 0.0, "blur": 0.0, "flip": False}


def array(tensor):
    return ops.convert_to_numpy(tensor)


def photos(height, width):
    """Three different pieces of a photograph, (3, height, width, 3) uint8."""
    china = load_sample_image("china.jpg")
    return np.stack([china[y : y + height, x : x + width] for y, x in ((100, 50), (200, 300), (330, 500))])


def each(images, function):
    """Applies a function of (Pillow image, index) to every image."""
    return np.stack([np.asarray(function(Image.fromarray(image), k)) for k, image in enumerate(images)])


def rate_within(observed, expected, count, sigmas=5.0):
    return abs(observed - expected) < sigmas * math.sqrt(expected * (1 - expected) / count)


def ks_distance(a, b):
    """Two-sample Kolmogorov-Smirnov statistic; ties of whole numbers are no disadvantage here."""
    grid = np.concatenate([a, b])
    a, b = np.sort(a), np.sort(b)
    return np.abs(np.searchsorted(a, grid, "right") / len(a) - np.searchsorted(b, grid, "right") / len(b)).max()


# --- Crop, resize, flip ---

BOXES = {"top": [0, 7, 13], "left": [5, 0, 11], "height": [61, 17, 31], "width": [42, 23, 9]}


@pytest.mark.backend_independent
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(32, 32), (7, 11), (96, 80)])
def test_crop_and_resize_is_pillows(size, interpolation):
    images = photos(61, 47)
    result = array(A.crop_and_resize(images, **BOXES, size=size, interpolation=interpolation))

    def cropped(image, k):
        top, left, height, width = (BOXES[name][k] for name in ("top", "left", "height", "width"))
        return image.crop((left, top, left + width, top + height)).resize(size[::-1], RESAMPLE[interpolation])

    exact = [
        [cropped(Image.fromarray(image[..., c].astype("float32")), k) for c in range(3)]
        for k, image in enumerate(images)
    ]
    exact = np.stack([np.stack([np.asarray(plane) for plane in planes], -1) for planes in exact])  # mode "F": unrounded
    np.testing.assert_allclose(result, np.clip(exact, 0, 255), atol=2e-3)
    rounded = np.abs(result - each(images, cropped))  # uint8: rounded, and clipped, after each of two passes
    assert np.quantile(rounded, 0.998) < 1.6 and rounded.mean() < 0.5


def test_crop_of_whole_image_at_its_size_is_the_image():
    images = photos(20, 20)
    box = {"top": [0] * 3, "left": [0] * 3, "height": [20] * 3, "width": [20] * 3}
    np.testing.assert_allclose(array(A.crop_and_resize(images, **box, size=20)), images, atol=1e-3)


def test_flip_mirrors_only_the_chosen():
    images = photos(61, 47)
    flip = np.array([True, False, True])
    straight = array(A.crop_and_resize(images, **BOXES, size=(24, 20)))
    flipped = array(A.crop_and_resize(images, **BOXES, size=(24, 20), flip=flip))
    expected = np.where(flip[:, None, None, None], straight[:, :, ::-1], straight)
    np.testing.assert_allclose(flipped, expected, atol=1e-2)


def test_pixels_outside_the_box_have_no_influence():
    images = photos(40, 40).astype("float32")
    changed = np.full_like(images, 255.0)
    changed[:, 10:25, 8:31] = images[:, 10:25, 8:31]
    box = {"top": [10] * 3, "left": [8] * 3, "height": [15] * 3, "width": [23] * 3}
    results = [array(A.crop_and_resize(x, **box, size=32)) for x in (images, changed)]
    np.testing.assert_array_equal(*results)


# --- Colour ---

FACTORS = np.array([0.0, 0.6, 1.9])


@pytest.mark.parametrize(
    "adjust, enhance",
    [
        (A.adjust_brightness, ImageEnhance.Brightness),
        (A.adjust_contrast, ImageEnhance.Contrast),
        (A.adjust_saturation, ImageEnhance.Color),
    ],
)
def test_adjustments_are_pillows(adjust, enhance):
    images = photos(24, 32)
    result = array(adjust(images, FACTORS))
    expected = each(images, lambda image, k: enhance(image).enhance(FACTORS[k]))
    np.testing.assert_allclose(result, expected, atol=1.6)  # Pillow rounds the mean, the gray and the result
    x, f = images.astype("float64"), FACTORS[:, None, None, None]
    gray = (x @ LUMA)[..., None]
    base = {
        A.adjust_brightness: 0.0 * gray,
        A.adjust_contrast: gray.mean((1, 2, 3), keepdims=True),
        A.adjust_saturation: gray,
    }
    np.testing.assert_allclose(result, np.clip(f * x + (1 - f) * base[adjust], 0, 255), atol=1e-3)


def test_scalar_factor_holds_for_every_image():
    images = photos(8, 8)
    for adjust in (A.adjust_brightness, A.adjust_contrast, A.adjust_saturation, A.adjust_hue):
        np.testing.assert_array_equal(array(adjust(images, 0.3)), array(adjust(images, [0.3] * 3)))


@pytest.mark.parametrize("channels", [1, 4])
def test_brightness_and_contrast_take_any_channels(rng, channels):
    x = rng.uniform(0, 255, (3, 6, 5, channels))
    f = FACTORS[:, None, None, None]
    np.testing.assert_allclose(array(A.adjust_brightness(x, FACTORS)), np.clip(f * x, 0, 255), atol=1e-3)
    expected = np.clip(f * x + (1 - f) * x.mean((1, 2, 3), keepdims=True), 0, 255)
    np.testing.assert_allclose(array(A.adjust_contrast(x, FACTORS)), expected, atol=1e-3)


def test_hue_is_the_hue_of_hsv(rng):
    corners = np.array(list(itertools.product([0, 128, 255], repeat=3)), "float64")  # primaries, grays, ties
    pixels = np.concatenate([corners, rng.uniform(0, 255, (100, 3)), rng.integers(0, 256, (100, 3))])
    shifts = np.array([-0.5, -0.37, -1 / 6, -0.01, 0.0, 0.1, 1 / 3, 0.5])
    images = np.broadcast_to(pixels[None, :, None], (len(shifts), len(pixels), 1, 3))

    def shifted(pixel, shift):
        h, s, v = colorsys.rgb_to_hsv(*(pixel / 255))
        return np.array(colorsys.hsv_to_rgb((h + shift) % 1.0, s, v)) * 255

    expected = np.array([[shifted(pixel, shift) for pixel in pixels] for shift in shifts])[:, :, None]
    result = array(A.adjust_hue(images, shifts))
    np.testing.assert_allclose(result, expected, atol=2e-3)
    assert result.min() >= 0 and result.max() <= 255


def test_third_of_a_turn_permutes_the_channels():
    images = photos(16, 16)
    np.testing.assert_allclose(array(A.adjust_hue(images, 1 / 3)), images[..., [2, 0, 1]], atol=1e-3)


def test_grayscale_is_pillows():
    images = photos(24, 32)
    result = array(A.to_grayscale(images))
    expected = each(images, lambda image, _: image.convert("L").convert("RGB"))
    np.testing.assert_allclose(result, expected, atol=0.51)
    np.testing.assert_allclose(result, np.repeat((images @ LUMA)[..., None], 3, -1), atol=1e-3)


# --- Blur ---


@pytest.mark.parametrize("shape, kernel_size", [((20, 31, 3), 7), ((9, 6, 1), 11), ((8, 8, 3), 1)])
def test_blur_against_a_reference(rng, shape, kernel_size):
    x, sigma = rng.uniform(0, 255, (3, *shape)), np.array([0.1, 0.8, 2.0])
    half = kernel_size // 2
    expected = np.zeros_like(x)
    padded = np.pad(x, ((0, 0), (half, half), (half, half), (0, 0)), mode="reflect")
    for k in range(3):
        taps = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma[k]) ** 2)
        kernel = np.outer(taps, taps) / taps.sum() ** 2
        for i, j in itertools.product(range(kernel_size), repeat=2):
            expected[k] += kernel[i, j] * padded[k, i : i + shape[0], j : j + shape[1]]
    np.testing.assert_allclose(array(A.gaussian_blur(x, sigma, kernel_size)), expected, atol=1e-3)


# --- Affine ---


def bilinear_reference(image, matrix, size, fill):
    """One output pixel after another, in float64."""
    result = np.zeros((*size, image.shape[-1]))

    def pixel(row, column):
        inside = 0 <= row < image.shape[0] and 0 <= column < image.shape[1]
        return image[row, column] if inside else np.full(image.shape[-1], fill)

    for i, j in np.ndindex(size):
        x, y = matrix @ [j + 0.5, i + 0.5, 1.0] - 0.5
        column, row = math.floor(x), math.floor(y)
        right, down = x - column, y - row
        upper = (1 - right) * pixel(row, column) + right * pixel(row, column + 1)
        lower = (1 - right) * pixel(row + 1, column) + right * pixel(row + 1, column + 1)
        result[i, j] = (1 - down) * upper + down * lower
    return result


@pytest.mark.parametrize("channels, fill", [(1, 0.0), (3, 40.0), (5, 255.0)])
def test_affine_transform_against_a_reference(rng, channels, fill):
    images = rng.uniform(0, 255, (4, 9, 12, channels))
    matrices = rng.normal(size=(4, 2, 3)) * [0.4, 0.4, 2.0] + [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    result = array(A.affine_transform(images, matrices, (10, 7), fill=fill))
    expected = [bilinear_reference(*pair, (10, 7), fill) for pair in zip(images, matrices, strict=True)]
    np.testing.assert_allclose(result, np.stack(expected), atol=2e-3)


def test_affine_transform_is_pillows_inside():
    image = photos(40, 40)[:1, ..., :1]
    matrix = np.array([[0.6, 0.2, 4.3], [-0.15, 0.55, 12.1]])
    result = array(A.affine_transform(image, matrix[None], 32))[0, ..., 0]
    pillow = Image.fromarray(image[0, ..., 0].astype("float32"))
    pillow = pillow.transform((32, 32), Image.Transform.AFFINE, matrix.reshape(-1), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(result, np.asarray(pillow), atol=2e-3)


def moved(image, size=None, **changes):
    still = {"rotation": 0.0, "scale": 1.0, "translate_x": 0.0, "translate_y": 0.0, "shear": 0.0}
    size = size or image.shape[:2]
    matrices = A.affine_matrices(**{**still, **changes}, image_size=image.shape[:2], size=size)
    return array(A.affine_transform(image[None], matrices, size))[0]


def test_affine_matrices_turn_zoom_move_and_slant(rng):
    image = rng.uniform(0, 255, (8, 8, 2))
    np.testing.assert_allclose(moved(image), image, atol=1e-3)
    np.testing.assert_allclose(moved(image, rotation=90.0), np.rot90(image), atol=2e-3)  # counter-clockwise
    np.testing.assert_allclose(moved(image, rotation=-180.0), image[::-1, ::-1], atol=2e-3)
    right_down = moved(image, translate_x=0.25, translate_y=0.125)  # 2 and 1 pixels
    np.testing.assert_allclose(right_down[1:, 2:], image[:-1, :-2], atol=2e-3)
    assert not right_down[0].any() and not right_down[:, :2].any()
    leaning = moved(image[:7], shear=45.0)  # the row y pixels above the centre moves by y to the right
    np.testing.assert_allclose(leaning[0, 3:], image[0, :-3], atol=2e-3)
    np.testing.assert_allclose(leaning[6, :-3], image[6, 3:], atol=2e-3)
    doubled = array(A.affine_matrices(0.0, 2.0, 0.0, 0.0, 0.0, (8, 8), (8, 8)))
    np.testing.assert_allclose(doubled, [[[0.5, 0, 2], [0, 0.5, 2]]], atol=1e-6)
    resized = array(A.affine_matrices(0.0, 1.0, 0.0, 0.0, 0.0, (8, 8), (16, 4)))
    np.testing.assert_allclose(resized, [[[2, 0, 0], [0, 0.5, 0]]], atol=1e-6)


# --- The draws of SimCLR ---


def boxes_of(layer, rng, count, shape):
    """`count` boxes (top, left, height, width) of the layer, from uniforms of NumPy."""
    draws = ops.convert_to_tensor(rng.random((2 * CROP_TRIES + 2, count)).astype("float32"))
    draws = ops.concatenate([draws, draws[:1]])  # the flip's
    return np.concatenate([array(edge) for edge in layer._box(draws, shape)], axis=1)


def reference_box(rng, height, width, scale, ratio):
    for _ in range(10):
        area, aspect = height * width * rng.uniform(*scale), math.exp(rng.uniform(*np.log(ratio)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return rng.integers(height - h + 1), rng.integers(width - w + 1), h, w
    raise AssertionError("no crop fits")


def test_crop_area_is_uniform_and_aspect_log_uniform(rng):
    count, (height, width) = 5000, (1000, 1200)
    boxes = boxes_of(A.SimCLR(32, min_scale=0.2, max_scale=0.5), rng, count, (height, width))  # every try fits
    area, aspect = boxes[:, 2] * boxes[:, 3] / (height * width), np.log(boxes[:, 3] / boxes[:, 2])
    limit = 1.95 / math.sqrt(count)  # p = 0.001
    for values, low, high in ((area, 0.2, 0.5), (aspect, math.log(3 / 4), math.log(4 / 3))):
        values = np.sort((values - low) / (high - low))
        assert np.abs(values - (np.arange(count) + 0.5) / count).max() < limit
    assert abs(np.corrcoef(area, aspect)[0, 1]) < 5 / math.sqrt(count)


@pytest.mark.parametrize("shape", [(32, 32), (40, 24)])
def test_boxes_with_retries_follow_the_rule(rng, shape):
    count = 4000
    boxes = boxes_of(A.SimCLR(32, min_scale=0.2), rng, count, shape)
    expected = np.array([reference_box(rng, *shape, (0.2, 1.0), (3 / 4, 4 / 3)) for _ in range(count)])
    np.testing.assert_array_equal(boxes, np.round(boxes))
    assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= shape).all() and (boxes[:, 2:] > 0).all()
    assert (boxes[:, 0] + boxes[:, 2] == shape[0]).any() and (boxes[:, 1] + boxes[:, 3] == shape[1]).any()
    for column in range(4):
        assert ks_distance(boxes[:, column], expected[:, column]) < 1.95 * math.sqrt(2 / count)
    assert ks_distance(boxes[:, 2] * boxes[:, 3], expected[:, 2] * expected[:, 3]) < 1.95 * math.sqrt(2 / count)


@pytest.mark.parametrize("shape, box", [((10, 400), (0, 193, 10, 13)), ((401, 10), (194, 0, 13, 10))])
def test_elongated_images_fall_back_to_the_central_crop(rng, shape, box):
    boxes = boxes_of(A.SimCLR(8, min_scale=0.2), rng, 50, shape)
    np.testing.assert_array_equal(boxes, np.broadcast_to(box, (50, 4)))


def test_whole_crop_changes_nothing():
    images = photos(16, 16)
    for view in A.SimCLR(16, **PLAIN)(images):
        np.testing.assert_allclose(array(view), images, atol=1e-3)


def many(count):
    """`count` copies of a small picture without any symmetry."""
    return np.repeat(photos(8, 8)[2:], count, axis=0)


def changed(views, images):
    """(V, B): which views differ from their images."""
    return np.stack([np.abs(array(view) - images).max((1, 2, 3)) > 0.01 for view in views])


@pytest.mark.parametrize(
    "options, expected",
    [({"flip": 0.3}, 0.3), ({"flip": True}, 0.5), ({"jitter": 0.4}, 0.8), ({"hue": 0.2}, 0.8), ({"gray": 0.2}, 0.2)]
    + [({"blur": 0.4, "blur_kernel": 3, "blur_sigma": (0.5, 2.0)}, 0.4)],
)
def test_rates_and_independence(options, expected):
    images = many(2000)
    chosen = changed(A.SimCLR(8, **{**PLAIN, **options}, seed=3)(images), images)
    for view in chosen:
        assert rate_within(view.mean(), expected, view.size)
        neighbours = np.corrcoef(view[1:], view[:-1])[0, 1]
        assert abs(neighbours) < 5 / math.sqrt(view.size)
    assert abs(np.corrcoef(*chosen)[0, 1]) < 5 / math.sqrt(chosen.shape[1])  # of the two views of one image


def test_crop_and_flip_are_drawn_apart():
    """On a ramp, a view's slope tells its crop's width and its flip, its mean the crop's place."""
    ramp = np.broadcast_to(np.arange(16.0)[:, None] * 15, (2000, 16, 16, 3))
    (view,) = A.SimCLR(8, **{**PLAIN, "min_scale": 0.3, "flip": True}, num_views=1, seed=4)(ramp)
    level = array(view)[..., 0].mean(1)
    slope, place = level[:, -1] - level[:, 0], level.mean(1)
    assert rate_within((slope < 0).mean(), 0.5, len(slope))
    for other in (np.abs(slope), place):
        assert abs(np.corrcoef(slope < 0, other)[0, 1]) < 5 / math.sqrt(len(slope))


def test_flipped_and_gray_views_are_what_they_say():
    images = many(50)
    (flipped,) = A.SimCLR(8, **{**PLAIN, "flip": 1.0}, num_views=1)(images)
    np.testing.assert_allclose(array(flipped), images[:, :, ::-1], atol=1e-3)
    (gray,) = A.SimCLR(8, **{**PLAIN, "gray": 1.0}, num_views=1)(images)
    np.testing.assert_allclose(array(gray), array(A.to_grayscale(images)), atol=1e-3)


@pytest.mark.backend_independent
def test_jitter_factors_are_uniform():
    """A uniform gray image has neither contrast nor saturation: its level is the brightness factor."""
    images = np.full((4000, 4, 4, 3), 100.0, "float32")
    for jitter, low, high in ((0.4, 0.6, 1.4), (1.5, 0.0, 2.5)):
        first, second = A.SimCLR(4, **{**PLAIN, "jitter": jitter}, seed=1)(images)
        factor = array(first)[:, 0, 0, 0] / 100
        factor = np.sort(factor[np.abs(factor - 1) > 1e-6])
        uniform = (factor - low) / (high - low)
        assert factor.min() >= low - 1e-5 and factor.max() <= high + 1e-5
        assert np.abs(uniform - (np.arange(len(uniform)) + 0.5) / len(uniform)).max() < 1.95 / math.sqrt(len(uniform))


def fixed_draws(layer, count, **chosen):
    """Uniforms that crop the whole image, neither flip nor gray nor blur, and jitter as chosen."""
    draws = np.full((layer._num_draws, count), 0.999, "float32")
    names = ("on", "brightness", "contrast", "saturation", "hue", "order")
    for name, value in chosen.items():
        draws[2 * CROP_TRIES + 3 + names.index(name)] = value
    return ops.convert_to_tensor(draws)


@pytest.mark.backend_independent
@pytest.mark.parametrize("hue", [0.0, 0.3])
def test_all_24_orders_occur_and_each_is_its_sequence(rng, hue):
    images = np.repeat(rng.uniform(0, 255, (1, 6, 6, 3)), 24, axis=0)  # clipped by every operation
    layer = A.SimCLR(6, **{**PLAIN, "jitter": 0.8, "hue": hue})
    draws = {"on": 0.5, "brightness": 0.7, "contrast": 0.8, "saturation": 0.95, "hue": 0.75}
    draws = fixed_draws(layer, 24, **draws, order=(np.arange(24) + 0.5) / 24)
    result = array(layer._view(layer._prepare(ops.convert_to_tensor(images)), images.shape, draws, None))
    steps = [
        lambda x: A.adjust_brightness(x, 1 + 0.8 * 0.4),
        lambda x: A.adjust_contrast(x, 1 + 0.8 * 0.6),
        lambda x: A.adjust_saturation(x, 1 + 0.8 * 0.9),
        lambda x: A.adjust_hue(x, 0.5 * hue),
    ]
    expected = []
    for order in itertools.permutations(range(4)):
        image = images[:1]
        for step in order:
            image = steps[step](image)
        expected.append(array(image)[0])
    np.testing.assert_allclose(result, np.stack(expected), atol=0.01)
    distinct = {tuple(np.round(image.reshape(-1), 1)) for image in result}
    assert len(distinct) == (24 if hue else 6)


@pytest.mark.backend_independent
def test_orders_are_uniform(rng):
    layer = A.SimCLR(6, **{**PLAIN, "jitter": 0.8, "hue": 0.3})
    count, image = 2400, rng.uniform(0, 255, (1, 6, 6, 3))
    draws = {"on": 0.5, "brightness": 0.7, "contrast": 0.8, "saturation": 0.95, "hue": 0.75}
    images = np.repeat(image, count, axis=0)
    draws = fixed_draws(layer, count, **draws, order=rng.random(count))
    result = array(layer._view(layer._prepare(ops.convert_to_tensor(images)), images.shape, draws, None))
    _, counts = np.unique(np.round(result.reshape(count, -1)).astype(int), axis=0, return_counts=True)
    assert len(counts) == 24
    assert ((counts - 100) ** 2 / 100).sum() < 49.7  # chi-squared, 23 degrees of freedom, p = 0.001


@pytest.mark.backend_independent
def test_blurred_views_have_their_own_sigma():
    images = many(400)
    (view,) = A.SimCLR(8, **{**PLAIN, "blur": 1.0, "blur_kernel": 7, "blur_sigma": (0.5, 2.0)}, num_views=1)(images)
    spread = array(view).std((1, 2, 3))
    widest, narrowest = (array(A.gaussian_blur(images[:1], sigma, 7)).std() for sigma in (2.0, 0.5))
    assert widest - 1e-3 <= spread.min() and spread.max() <= narrowest + 1e-3
    assert len(np.unique(np.round(spread, 3))) > 200


# --- Affine's draws ---

STILL = {"rotation": 0.0, "scale": (1.0, 1.0), "translate": 0.0, "shear": 0.0, "brightness": 0.0, "contrast": 0.0}


def test_still_affine_is_the_image(rng):
    images = rng.uniform(0, 255, (3, 8, 6, 5))
    for view in A.Affine((8, 6), **STILL)(images):
        np.testing.assert_allclose(array(view), images, atol=1e-3)


def test_affine_moves_are_uniform_and_independent():
    count, size = 2000, 21
    image = np.zeros((1, size, size, 1), "float32")
    image[0, 9:12, 9:12] = 100.0
    layer = A.Affine(size, **{**STILL, "translate": 0.25}, seed=5)
    where = []
    for view in map(array, layer(np.repeat(image, count, axis=0))):
        mass = view[..., 0] / view.sum((1, 2, 3))[:, None, None]
        where += [(mass.sum(axis) @ np.arange(size) - 10) / size for axis in (1, 2)]  # x, y
    for shift in where:
        uniform = np.sort(shift / 0.5 + 0.5)
        assert np.abs(uniform - (np.arange(count) + 0.5) / count).max() < 1.95 / math.sqrt(count)
    correlations = np.corrcoef(where)[np.triu_indices(4, 1)]
    assert np.abs(correlations).max() < 5 / math.sqrt(count)


@pytest.mark.parametrize("option", [{"rotation": 30.0}, {"scale": (0.5, 2.0)}, {"shear": 30.0}])
def test_each_geometric_draw_changes_every_image_differently(option):
    images = np.repeat(photos(12, 12)[:1, ..., :2], 50, axis=0)
    first, second = map(array, A.Affine(12, **{**STILL, **option})(images))
    views = np.concatenate([first, second]).reshape(100, -1)
    assert len(np.unique(np.round(views, 3), axis=0)) > 95


def test_affine_zoom_is_log_uniform():
    count, size = 1000, 61
    bell = np.exp(-0.5 * (np.linspace(-6, 6, size)) ** 2)
    image = (100 * bell[:, None] * bell)[None, ..., None]
    (view,) = A.Affine(size, num_views=1, **{**STILL, "scale": (0.5, 2.0)}, seed=2)(np.repeat(image, count, axis=0))
    zoom = np.sqrt(array(view).sum((1, 2, 3)) / image.sum())
    uniform = np.sort(np.log2(zoom) + 1) / 2
    assert np.abs(uniform - (np.arange(count) + 0.5) / count).max() < 1.95 / math.sqrt(count)


def test_affine_intensity():
    flat = np.full((2000, 4, 4, 2), 100.0, "float32")
    (bright,) = A.Affine(4, num_views=1, **{**STILL, "brightness": 0.3}, seed=1)(flat)
    factor = array(bright)[:, 1, 1, 0] / 100
    assert 0.7 - 1e-4 <= factor.min() < 0.71 and 1.29 < factor.max() <= 1.3 + 1e-4
    images = np.repeat(flat[:1], 2000, axis=0) + np.array([[-50.0], [50.0]], "float32")[None, None, [0, 1, 0, 1], :]
    (contrast,) = A.Affine(4, num_views=1, **{**STILL, "contrast": 0.5}, seed=1)(images)
    contrast = array(contrast)
    np.testing.assert_allclose(contrast.mean((1, 2, 3)), 100.0, atol=1e-3)
    spread = contrast.std((1, 2, 3)) / 50
    assert 0.5 - 1e-4 <= spread.min() < 0.52 and 1.48 < spread.max() <= 1.5 + 1e-4
    noisy = A.Affine(8, **STILL, noise=0.1, seed=1)(np.full((500, 8, 8, 3), 128.0, "float32"))
    first, second = (array(view) - 128.0 for view in noisy)
    sigma = first.std((1, 2, 3)) / 255
    assert 0 <= sigma.min() < 0.005 and 0.09 < sigma.max() < 0.12 and abs(sigma.mean() - 0.05) < 0.01
    assert abs(np.corrcoef(first.reshape(-1), second.reshape(-1))[0, 1]) < 0.02
    assert abs(np.corrcoef(first[:-1].reshape(-1), first[1:].reshape(-1))[0, 1]) < 0.02


# --- The layers ---


def layers(seed=7):
    return [
        A.SimCLR(16, preset="imagenet", blur_kernel=5, seed=seed),
        A.SimCLR((16, 12), preset="cifar10", num_views=3, seed=seed),
        A.Affine(16, noise=0.1, seed=seed),
    ]


@pytest.mark.parametrize("index", range(3))
def test_contract(index):
    layer, images = layers()[index], photos(20, 18)
    before = images.astype("float32")
    tensor = ops.convert_to_tensor(before)
    fixed = [array(view) for view in layer(images, training=False)]
    assert len(fixed) == layer.num_views
    for view in fixed:
        assert view.shape == (3, *layer.size, 3) and view.dtype == "float32"
        assert view.min() >= 0 and view.max() <= 255
    np.testing.assert_array_equal(fixed, [array(view) for view in layer(tensor, training=False)])  # uint8 or float
    np.testing.assert_array_equal(array(tensor), before)  # nothing is written into the input
    other_seed = layers(seed=8)[index](images, training=False)
    np.testing.assert_array_equal(fixed, [array(view) for view in other_seed])
    drawn = [np.stack([array(view) for view in layer(images, training=mode)]) for mode in (None, True, True)]
    assert all(np.abs(a - b).max() > 1 for a, b in itertools.combinations([*drawn, np.stack(fixed)], 2))
    assert all(np.abs(a - b).max() > 1 for a, b in itertools.combinations(fixed, 2))
    again = [array(view) for view in layers()[index](images)]
    np.testing.assert_array_equal(drawn[0], again)  # one seed, one sequence
    symbolic = layer(keras.Input((20, 18, 3), dtype="uint8"))
    assert [view.shape for view in symbolic] == [(None, *layer.size, 3)] * layer.num_views


@pytest.mark.parametrize("index", range(3))
def test_serialisation_round_trip(index):
    layer = layers()[index]
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert copy.get_config() == layer.get_config()
    images = photos(20, 18)
    for one, other in zip(layer(images), copy(images), strict=True):
        np.testing.assert_array_equal(array(one), array(other))


@pytest.mark.parametrize("index", range(3))
def test_float32_under_mixed_bfloat16(index):
    images = photos(20, 18).astype("float32") + 0.3
    expected = [array(view) for view in layers()[index](images)]
    keras.config.set_dtype_policy("mixed_bfloat16")
    layer = layers()[index]
    for view, reference in zip(layer(images), expected, strict=True):
        assert keras.backend.standardize_dtype(view.dtype) == "float32"
        np.testing.assert_array_equal(array(view), reference)
    assert all(view.dtype == "float32" for view in layer(keras.Input((20, 18, 3))))


@pytest.mark.skipif(BACKEND == "torch", reason="the torch backend runs eagerly")
@pytest.mark.parametrize("index", range(3))
def test_compiled_equals_eager(index):
    images = photos(20, 18)
    eager, compiled = layers()[index], layers()[index]
    eager(images)
    compiled(images)  # builds; both seeds are one step on
    if BACKEND == "tensorflow":
        import tensorflow as tf

        function = tf.function(compiled)
        results = [function(tf.constant(images)) for _ in range(2)]
    else:
        import jax

        function, results = jax.jit(lambda s, x: compiled.stateless_call([], s, x)), []
        state = [variable.value for variable in compiled.variables]
        for _ in range(2):
            views, state = function(state, images)
            results.append(views)
    for views in results:
        for view, expected in zip(views, eager(images), strict=True):
            np.testing.assert_allclose(array(view), array(expected), atol=0.02)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="XLA is an option of the TensorFlow backend only")
@pytest.mark.parametrize("index", range(3))
def test_xla_equals_eager_from_the_same_uniforms(index):
    """TensorFlow's random numbers themselves differ under XLA, so they come from outside."""
    import tensorflow as tf

    layer, images = layers()[index], tf.constant(photos(20, 18))
    layer.noise = 0.0
    draws = tf.random.stateless_uniform((layer._num_draws, 3), seed=(1, 2))

    def view(images, draws):
        return layer._view(layer._prepare(images), images.shape, draws, None)

    compiled = tf.function(view, jit_compile=True)
    np.testing.assert_allclose(array(compiled(images, draws)), array(view(images, draws)), atol=0.02)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="XLA is an option of the TensorFlow backend only")
def test_whole_layer_under_xla():
    import tensorflow as tf

    images = photos(20, 18)
    for layer in layers()[::2]:
        function = tf.function(layer, jit_compile=True)
        first, second = ([array(view) for view in function(images)] for _ in range(2))
        for view in first:
            assert view.shape == (3, 16, 16, 3) and view.min() >= 0 and view.max() <= 255
        assert all(np.abs(a - b).max() > 1 for a, b in itertools.combinations(first + second, 2))


@pytest.mark.skipif(BACKEND != "jax", reason="only JAX lowers for an accelerator that is not there")
@pytest.mark.parametrize("index", range(3))
def test_lowers_for_accelerators(index):
    import jax
    from jax import export

    layer, images = layers()[index], photos(20, 18)
    layer(images)
    state = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in layer.variables]
    exported = export.export(jax.jit(lambda s, x: layer.stateless_call([], s, x)), platforms=["tpu", "cuda"])
    assert "callback" not in exported(state, jax.ShapeDtypeStruct(images.shape, "uint8")).mlir_module()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="keras.ops run inside tf.data on the TensorFlow backend only")
@pytest.mark.parametrize("index", range(3))
def test_inside_tf_data(index):
    import tensorflow as tf

    layer, images = layers()[index], photos(20, 18)
    dataset = tf.data.Dataset.from_tensor_slices(np.concatenate([images] * 3)).batch(3).map(layer)
    assert dataset.element_spec[0].shape == (None, *layer.size, 3)
    batches = [np.stack([array(view) for view in views]) for _ in range(2) for views in dataset]
    assert all(np.abs(a - b).max() > 1 for a, b in itertools.combinations(batches, 2))  # batches and epochs
    eager = layers()[index]
    for batch in batches:
        np.testing.assert_allclose(batch, [array(view) for view in eager(images)], atol=0.02)


def test_small_images_are_enlarged():
    for layer in (A.SimCLR(16), A.Affine(16)):
        for view in layer(photos(5, 4)):
            assert view.shape == (3, 16, 16, 3) and np.isfinite(array(view)).all()


# --- Presets and strength ---

METHOD = {  # section 5 of the method page: lower crop scale, jitter, hue, gray, blur, interpolation
    "cifar10": (0.2, 0.2, 0.05, 0.1, 0.0, "bicubic"),
    "tiny_imagenet": (0.2, 0.4, 0.1, 0.1, 0.0, "bicubic"),
    "stl10": (0.2, 0.4, 0.1, 0.1, 0.0, "bicubic"),
    "imagenet": (0.08, 0.8, 0.2, 0.2, 0.5, "bilinear"),
    "imagenet_large": (0.04, 1.0, 0.25, 0.2, 0.5, "bilinear"),
    "imagenet_small": (0.16, 0.4, 0.1, 0.2, 0.5, "bilinear"),
}


def numbers(layer):
    return layer.min_scale, layer.jitter, layer.hue, layer.gray, layer.blur, layer.interpolation


def test_presets():
    assert set(METHOD) == set(A.PRESETS)
    for name, expected in METHOD.items():
        layer = A.SimCLR(32, preset=name)
        assert numbers(layer) == expected
        assert (layer.max_scale, layer.flip, layer.ratio, layer.blur_sigma) == (1.0, 0.5, (3 / 4, 4 / 3), (0.1, 2.0))
    assert numbers(A.SimCLR(32)) == METHOD["tiny_imagenet"]
    assert numbers(A.SimCLR(32, preset="cifar10", hue=0.0, blur=1)) == (0.2, 0.2, 0.0, 0.1, 1.0, "bicubic")


@pytest.mark.parametrize("size, kernel", [(32, 3), (64, 7), (224, 23), (96, 9), ((70, 50), 5)])
def test_coarser(size, kernel):
    layer = A.SimCLR(size, preset="cifar10", num_views=4, seed=3)
    coarse = layer.coarser(2.0)
    assert numbers(coarse) == (0.1, 0.4, 0.1, 0.2, 0.5, "bicubic")
    assert (coarse.blur_kernel, coarse.blur_sigma, coarse.size) == (kernel, (0.1, 2.0), layer.size)
    assert (coarse.num_views, coarse.seed) == (4, 3)
    assert numbers(layer) == METHOD["cifar10"] and numbers(layer.coarser(1)) == METHOD["cifar10"]
    assert numbers(A.SimCLR(64, preset="imagenet").coarser(6)) == (0.08 / 6, 0.8 * 6, 0.5, 1.0, 0.5, "bilinear")


def test_coarser_affine():
    layer = A.Affine(8, rotation=20, scale=(0.8, 1.5), translate=0.1, shear=5, brightness=0.2, contrast=0.3, noise=0.02)
    coarse = layer.coarser(2.0).get_config()
    expected = {"rotation": 40, "scale": (0.64, 2.25), "translate": 0.2, "shear": 10, "brightness": 0.4}
    expected |= {"contrast": 0.6, "noise": 0.04}
    for name, value in expected.items():
        np.testing.assert_allclose(coarse[name], value, rtol=1e-12)
    limits = layer.coarser(1000.0)
    assert (limits.rotation, limits.translate, limits.noise) == (180.0, 1.0, 1.0) and limits.shear < 90


# --- Bad input ---


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"size": 0}, "`size`"),
        ({"size": (8, -1)}, "`size`"),
        ({"size": 8.5}, "`size`"),
        ({"num_views": 0}, "`num_views`"),
        ({"preset": "imagnet"}, "tiny_imagenet"),
        ({"min_scale": 0.0}, "min_scale"),
        ({"min_scale": 0.9, "max_scale": 0.5}, "max_scale"),
        ({"max_scale": 1.5}, "max_scale"),
        ({"ratio": (2.0, 1.0)}, "`ratio`"),
        ({"jitter": -0.1}, "`jitter`"),
        ({"jitter": float("nan")}, "`jitter`"),
        ({"hue": 0.6}, "`hue`"),
        ({"gray": 1.1}, "`gray`"),
        ({"blur": -0.5}, "`blur`"),
        ({"blur_kernel": 4}, "odd"),
        ({"blur_kernel": 17}, "reflected"),
        ({"blur_sigma": (0.0, 1.0)}, "`blur_sigma`"),
        ({"flip": 2}, "`flip`"),
        ({"interpolation": "nearest"}, "`interpolation`"),
    ],
)
def test_bad_simclr_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        A.SimCLR(**{"size": 8, **arguments})


@pytest.mark.parametrize(
    "arguments",
    [{"rotation": 200}, {"scale": (0.0, 1.0)}, {"scale": 2}, {"scale": (2.0, 1.0)}, {"translate": -1}, {"shear": 90}]
    + [{"brightness": -1}, {"contrast": "much"}, {"noise": 2.0}, {"fill": 300}],
)
def test_bad_affine_arguments(arguments):
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}`.*Received"):
        A.Affine(8, **arguments)


def test_bad_images_and_strength():
    for layer in (A.SimCLR(8), A.Affine(8)):
        with pytest.raises(ValueError, match="(B, H, W, C)"):
            layer(np.zeros((8, 8, 3), "uint8"))
        with pytest.raises(ValueError, match="`strength`"):
            layer.coarser(0.5)
    for channels in (1, 4):
        with pytest.raises(ValueError, match="Affine"):
            A.SimCLR(8)(np.zeros((2, 8, 8, channels), "uint8"))
        with pytest.raises(ValueError, match="3 channels"):
            A.adjust_hue(np.zeros((2, 8, 8, channels)), 0.1)
    box = {"top": [0], "left": [0], "height": [4], "width": [4]}
    with pytest.raises(ValueError, match="`interpolation`"):
        A.crop_and_resize(np.zeros((1, 8, 8, 3)), **box, size=8, interpolation="area")
    with pytest.raises(ValueError, match="odd"):
        A.gaussian_blur(np.zeros((1, 8, 8, 3)), 1.0, 2)
