"""Resize and centre crop: against Pillow, against float64 loops, and the layer against the loader."""

import io
import math

import keras
import numpy as np
import pytest
from keras import ops
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits, load_sample_image

from keras_issl import encoders
from keras_issl.datasets import load
from keras_issl.zoo.preprocessing import ResizeCenterCrop, load_images

BACKEND = keras.backend.backend()


def array(tensor):
    return ops.convert_to_numpy(tensor)


def photo(height, width):
    """A piece of a photograph, uint8 (height, width, 3)."""
    return np.ascontiguousarray(load_sample_image("china.jpg")[-height:, :width])


def drawing(height, width):
    """Thin lines and hard edges: what aliases."""
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    for x in range(0, width, 5):
        draw.line((x, 0, width - x, height), fill=(x % 256, 0, 255 - x % 256))
    draw.ellipse((width // 4, height // 4, width // 2, height // 2), fill="black")
    return np.asarray(image)


def noise(height, width):
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def by_pillow(image, resize, crop):
    """The steps of torchvision's Resize and CenterCrop on a Pillow image."""
    image = Image.fromarray(image)
    if image.width <= image.height:
        size = (resize, int(resize * image.height / image.width))
    else:
        size = (int(resize * image.width / image.height), resize)
    image = image.resize(size, Image.Resampling.BILINEAR)
    top, left = int(round((image.height - crop) / 2.0)), int(round((image.width - crop) / 2.0))
    return np.asarray(image.crop((left, top, left + crop, top + crop)))


def resample_axis(pixels, size):
    """The first axis resized to `size`, antialiased: the triangle filter as wide as `scale`, in float64 loops."""
    count = len(pixels)
    scale = count / size
    support = max(scale, 1.0)
    result = np.zeros((size, *pixels.shape[1:]))
    for out in range(size):
        centre, total = (out + 0.5) * scale, 0.0
        for k in range(max(math.floor(centre - support), 0), min(math.ceil(centre + support), count)):
            weight = max(0.0, 1.0 - abs(k + 0.5 - centre) / support)
            result[out] += weight * pixels[k]
            total += weight
        result[out] /= total
    return result


def reference(image, resize, crop):
    height, width = image.shape[:2]
    short = min(height, width)
    rows = resample_axis(image.astype("float64"), int(resize * height / short))
    whole = resample_axis(rows.swapaxes(0, 1), int(resize * width / short)).swapaxes(0, 1)
    top, left = (round((side - crop) / 2) for side in whole.shape[:2])  # Python rounds half to even
    return whole[top : top + crop, left : left + crop]


# The layer -----------------------------------------------------------------------------------------------------------

SIZES = [  # height, width, resize, crop: margins of 0 to 9 pixels, halves rounded up and down, both orientations
    (61, 47, 40, 32),
    (47, 61, 39, 32),
    (50, 50, 37, 32),
    (90, 31, 37, 32),
    (33, 100, 31, 31),
    (32, 32, 32, 32),
    (9, 7, 20, 17),  # enlarged
    (5, 80, 16, 13),
    (1, 3, 8, 5),
]


@pytest.mark.parametrize("height, width, resize, crop", SIZES)
@pytest.mark.parametrize("picture", [noise, photo])
def test_layer_is_the_float64_reference(picture, height, width, resize, crop):
    image = picture(height, width)
    result = array(ResizeCenterCrop(resize, crop)(image[None]))
    assert result.shape == (1, crop, crop, 3) and result.dtype == np.float32
    np.testing.assert_allclose(result[0], reference(image, resize, crop), atol=1e-3)


@pytest.mark.parametrize("height, width", [(427, 640), (333, 501), (400, 231), (257, 255), (101, 90)])
@pytest.mark.parametrize("picture", [noise, photo, drawing])
def test_layer_is_pillows_up_to_its_rounding(picture, height, width):
    image = picture(height, width)
    difference = np.abs(array(ResizeCenterCrop(256, 224)(image[None]))[0] - by_pillow(image, 256, 224))
    # Half a level for each of Pillow's two roundings and its 22-bit weights; two uniform errors have a mean of 1/3.
    assert difference.max() < 1.01 and difference.mean() < 1 / 3


def test_digits_are_pillows():
    images = np.round(load_digits().images[:20] * (255 / 16)).astype(np.uint8)
    images = np.repeat(images[..., None], 3, -1)  # (20, 8, 8, 3)
    expected = np.stack([by_pillow(image, 36, 32) for image in images])
    difference = np.abs(array(ResizeCenterCrop(36, 32)(images)) - expected)
    assert difference.max() < 1.01 and difference.mean() < 1 / 3


def test_an_image_of_the_size_is_only_cropped():
    image = noise(32, 40)
    np.testing.assert_allclose(array(ResizeCenterCrop(32, 24)(image[None]))[0], image[4:28, 8:32], atol=1e-4)


def test_a_plain_image_stays_plain_and_in_range():
    for size in ((31, 50), (300, 200)):
        result = array(ResizeCenterCrop(64, 56)(np.full((2, *size, 3), 255, "uint8")))
        np.testing.assert_allclose(result, 255.0, atol=1e-4)
        assert result.max() <= 255


def test_pixels_just_outside_the_crop_are_seen():
    """The resize comes first: a crop that came first would not see them."""
    image = np.zeros((40, 40, 3), np.uint8)
    image[:, :4] = 255  # resize 20, crop 16: the crop begins at pixel 4 of the image
    result = array(ResizeCenterCrop(20, 16)(image[None]))[0, :, :, 0]
    np.testing.assert_allclose(result[:, 0], 255 / 8, atol=1e-3)  # the triangle's tail: 1/8 of its weight
    np.testing.assert_allclose(result[:, 1:], 0, atol=1e-3)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_types_channels_and_single_images(channels):
    images = np.random.default_rng(0).integers(0, 256, (3, 30, 41, channels)).astype("uint8")
    layer = ResizeCenterCrop(24, 20)
    expected = array(layer(images))
    assert expected.shape == (3, 20, 20, channels)
    same = [images.astype(kind) for kind in ("float32", "float64", "int32", "float16")]  # all hold 0 ... 255 exactly
    for equal in [*same, ops.cast(images, "bfloat16")]:
        result = layer(equal)
        assert keras.backend.standardize_dtype(result.dtype) == "float32"
        np.testing.assert_array_equal(array(result), expected)
    for image, one in zip(images, expected, strict=True):
        np.testing.assert_allclose(array(layer(image)), one, atol=1e-4)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_float32_under_every_policy(policy):
    images = noise(30, 41)[None].astype("float32") + 0.3
    expected = array(ResizeCenterCrop(24, 20)(images))
    keras.config.set_dtype_policy(policy)
    layer = ResizeCenterCrop(24, 20)
    result = layer(images)
    assert keras.backend.standardize_dtype(result.dtype) == layer(keras.Input((9, 9, 3))).dtype == "float32"
    np.testing.assert_array_equal(array(result), expected)


def test_symbolic_shapes_and_configuration():
    layer = ResizeCenterCrop(resize=30, crop=25, name="evaluation")
    assert layer(keras.Input((None, None, 3))).shape == (None, 25, 25, 3)
    assert layer(keras.Input((40, 50, 1), batch_size=2)).shape == (2, 25, 25, 1)
    assert layer.compute_output_shape((7, 9, 3)) == (25, 25, 3)
    assert layer.get_config() == {"resize": 30, "crop": 25, "name": "evaluation"}
    again = keras.layers.deserialize(keras.layers.serialize(layer))
    assert isinstance(again, ResizeCenterCrop) and again.get_config() == layer.get_config()
    assert ResizeCenterCrop().get_config() | {"name": ""} == {"resize": 256, "crop": 224, "name": ""}
    assert not layer.variables


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"resize": 20, "crop": 21}, r"`crop` should be at most `resize`.*crop=21, resize=20"),
        ({"crop": 0}, "`crop` should be a positive integer.*Received: 0"),
        ({"resize": 256.0}, "`resize` should be a positive integer.*Received: 256.0"),
        ({"resize": True, "crop": 1}, "`resize` should be a positive integer"),
        ({"resize": (256, 256)}, "`resize` should be a positive integer"),
    ],
)
def test_bad_sizes(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResizeCenterCrop(**arguments)
    with pytest.raises(ValueError, match=message):
        load_images([photo(30, 30)], **arguments)


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 4, 5, 3), (2, 0, 4, 3), (2, 4, 0, 3)])
def test_bad_images(shape):
    with pytest.raises(ValueError, match=r"`images` should be \(B, H, W, C\)"):
        ResizeCenterCrop(8, 8)(np.zeros(shape, "float32"))
    assert array(ResizeCenterCrop(8, 8)(np.zeros((0, 9, 10, 3), "float32"))).shape == (0, 8, 8, 3)


@pytest.fixture(scope="module")
def encoder():
    return encoders.ResNet(blocks=(1,), width=8, image_size=32, stem="strided")


@pytest.mark.parametrize("sequential", [True, False])
def test_in_front_of_an_encoder(encoder, tmp_path, sequential):
    """One model for images of several sizes, which survives its file."""
    layer = ResizeCenterCrop(36, 32)
    if sequential:
        model = keras.Sequential([layer, encoder])
    else:
        images = keras.Input((None, None, 3))
        model = keras.Model(images, encoder(layer(images)))
    batches = [np.stack([noise(height, width)] * 3) for height, width in ((40, 60), (52, 41), (30, 30))]
    expected = [encoder.predict(array(layer(batch)), verbose=0) for batch in batches]
    for _ in range(2):
        for batch, features in zip(batches, expected, strict=True):
            np.testing.assert_allclose(model.predict(batch, verbose=0), features, rtol=1e-3, atol=1e-3)
        model.save(tmp_path / "model.keras")
        model = keras.saving.load_model(tmp_path / "model.keras")


@pytest.mark.skipif(BACKEND == "torch", reason="the torch backend runs eagerly")
def test_compiled_equals_eager():
    layer, image = ResizeCenterCrop(36, 32), noise(40, 61)[None]
    if BACKEND == "tensorflow":
        import tensorflow as tf

        known = [tf.function(layer), tf.function(layer, jit_compile=True)]
        unknown = tf.TensorSpec((None, None, None, None), "uint8")
        functions = known + [tf.function(layer, [unknown], jit_compile=xla) for xla in (False, True)]
    else:
        import jax

        functions = [jax.jit(layer)]
    for function in functions:
        for images in (image, image[:, :33], image[:, :, :25]):
            np.testing.assert_allclose(array(function(images)), array(layer(images)), atol=1e-3)


@pytest.mark.skipif(BACKEND != "jax", reason="only JAX lowers for an accelerator that is not there")
def test_lowers_for_accelerators():
    import jax
    from jax import export

    exported = export.export(jax.jit(ResizeCenterCrop(36, 32)), platforms=["tpu", "cuda"])
    assert "callback" not in exported(jax.ShapeDtypeStruct((4, 40, 61, 3), "uint8")).mlir_module()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="keras.ops run inside tf.data on the TensorFlow backend only")
def test_inside_tf_data():
    import tensorflow as tf

    images = [noise(40, 61), noise(50, 33), noise(17, 19)]
    layer, spec = ResizeCenterCrop(36, 32), tf.TensorSpec((None, None, 3), "uint8")
    singles = tf.data.Dataset.from_generator(lambda: iter(images), output_signature=spec).map(layer).batch(3)
    assert singles.element_spec.shape == (None, 32, 32, 3)  # images of several sizes, batched once they have one
    (batch,) = singles
    for result, image in zip(array(batch), images, strict=True):
        np.testing.assert_allclose(result, array(layer(image)), atol=1e-3)
    batches = tf.data.Dataset.from_tensor_slices(np.stack([images[0]] * 4)).batch(3).map(layer)
    assert [array(batch).shape for batch in batches] == [(3, 32, 32, 3), (1, 32, 32, 3)]


# Pictures of any size ------------------------------------------------------------------------------------------------


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def test_load_images_is_pillows(tmp_path):
    images = [photo(300, 400), drawing(333, 257), noise(90, 100), photo(256, 256), photo(224, 224)]
    Image.fromarray(images[0]).save(tmp_path / "a.png")
    Image.fromarray(images[1]).save(tmp_path / "b.png")
    sources = [str(tmp_path / "a.png"), tmp_path / "b.png", Image.fromarray(images[2]), images[3], encoded(images[4])]
    result = load_images(sources)
    assert result.shape == (5, 224, 224, 3) and result.dtype == np.uint8
    np.testing.assert_array_equal(result, [by_pillow(image, 256, 224) for image in images])
    np.testing.assert_array_equal(load_images(reversed(sources), resize=40, crop=40)[4], by_pillow(images[0], 40, 40))
    np.testing.assert_array_equal(load_images(np.stack([images[2]] * 2), 50, 41)[1], by_pillow(images[2], 50, 41))
    sources[2].load()  # ours to use, not to close


def test_load_images_keeps_the_order_of_many():
    images = [np.full((9 + k % 3, 9, 3), k, np.uint8) for k in range(200)]
    np.testing.assert_array_equal(load_images(images, 8, 6)[:, 3, 3, 1], np.arange(200))


def test_loader_dataset_and_layer_agree(tmp_path):
    sizes = [(300, 400), (333, 257), (90, 100)]
    for k, size in enumerate(sizes):
        Image.fromarray(photo(*size)).save(tmp_path / f"{k}.png")
    pictures = load_images(sorted(tmp_path.iterdir()), resize=72, crop=64)
    np.testing.assert_array_equal(load(tmp_path, resize=72, image_size=64).images, pictures)
    for size, picture in zip(sizes, pictures, strict=True):
        assert np.abs(array(ResizeCenterCrop(72, 64)(photo(*size))) - picture).max() < 1.01


def test_load_images_applies_orientation_and_transparency():
    image = photo(60, 80)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned
    turned = encoded(np.ascontiguousarray(np.rot90(image)), exif=exif)
    invisible = np.concatenate([image, np.zeros((60, 80, 1), np.uint8)], -1)
    oriented, white, gray = load_images([turned, invisible, image[..., 0]], 40, 32)
    np.testing.assert_array_equal(oriented, by_pillow(image, 40, 32))
    np.testing.assert_array_equal(white, 255)
    np.testing.assert_array_equal(gray, by_pillow(np.repeat(image[..., :1], 3, -1), 40, 32))


def test_load_images_names_what_is_broken(tmp_path):
    path = tmp_path / "half.jpg"
    path.write_bytes(encoded(photo(60, 80), "JPEG")[:-300])
    with pytest.raises(ValueError, match=r"Received: item 1 \(.*half\.jpg\), which fails with OSError"):
        load_images([photo(30, 40), path])
    with pytest.raises(ValueError, match=r"item 0 \(nowhere\.png\), which fails with FileNotFoundError"):
        load_images(["nowhere.png"])
    with pytest.raises(ValueError, match="uint8 arrays. Received: item 0, which fails with TypeError"):
        load_images([photo(30, 40).astype("float32")])
    for single in ("a.png", path, b"bytes", photo(30, 40), photo(30, 40)[..., 0], Image.fromarray(photo(30, 40)), None):
        with pytest.raises(ValueError, match="`sources` should be a list of pictures.*Put a single one in a list"):
            load_images(single)
    with pytest.raises(ValueError, match="at least one picture"):
        load_images([])
