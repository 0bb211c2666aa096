"""Features of augmented views, and what features say of their encoder's origin."""

import keras
import numpy as np
import pytest

import keras_issl
from keras_issl import augmentations, datasets, provenance
from keras_issl.features import Views, extract_features, extract_views


@pytest.fixture(scope="module")
def data():
    return datasets.load("digits", split="test").take(70)


@pytest.fixture(scope="module")
def encoder():
    return keras_issl.encoders.ResNet(blocks=(1,), width=8, image_size=8, stem="cifar")


def test_identity_gives_the_features(encoder, data):
    """Views that change nothing are encoded like the images, in batches that do not divide them."""
    views = extract_views(encoder, data, lambda images: [images], num_views=3, batch_size=32)
    expected = extract_features(encoder, data)
    assert views.array.shape == (3, 70, 8) and len(views) == 70
    np.testing.assert_allclose(views.array, np.broadcast_to(expected.array, (3, 70, 8)), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(views.view(1).labels, data.labels)


def test_views_are_drawn_anew_for_each_image_view_and_batch_and_repeat_with_the_seed(encoder, data):
    augmentation = augmentations.Affine(8, num_views=2, seed=5)
    same = np.repeat(data.images[:1], 40, axis=0)
    views = extract_views(encoder, same, augmentation, num_views=3, batch_size=16)
    flat = views.array.reshape(-1, 8)
    assert len(np.unique(flat.round(5), axis=0)) == len(flat)
    again = extract_views(encoder, same, augmentation, num_views=3, batch_size=16)
    np.testing.assert_array_equal(views.array, again.array)
    other = extract_views(encoder, same, augmentation, num_views=3, batch_size=16, seed=1)
    assert np.abs(views.array - other.array).max() > 1e-3
    assert views.labels is None
    described = views.provenance["augmentation"]
    assert described["name"] == "Affine" and described["rotation"] == 15.0 and described["seed"] == 0
    assert views.provenance["num_views"] == 3 and augmentation.num_views == 2


def test_views_of_several_sizes_and_subsets(encoder, data):
    large, small = augmentations.SimCLR(8, num_views=1), augmentations.SimCLR(6, num_views=1)

    def both(images):
        return [*large(images, training=True), *small(images, training=True)]

    views = extract_views(encoder, data, both, num_views=4)
    part = views.subset([3, 1])
    np.testing.assert_array_equal(part.array, views.array[:, [3, 1]])
    np.testing.assert_array_equal(part.labels, data.labels[[3, 1]])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_views": 1}, "`num_views` should be an integer of at least 2"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"augmentation": "flip"}, "`augmentation` should be a layer or callable"),
        ({"augmentation": lambda images: images}, "should return a list of views"),
        ({"data": iter([])}, "`data` should be an ImageDataset"),
    ],
)
def test_bad_arguments(encoder, data, change, message):
    arguments = {"data": data, "augmentation": lambda images: [images]} | change
    with pytest.raises(ValueError, match=message):
        extract_views(encoder, **arguments)


@pytest.mark.parametrize("array", [np.zeros((1, 4, 2)), np.zeros((4, 2)), np.full((2, 3, 2), np.nan)])
def test_bad_views(array):
    with pytest.raises(ValueError, match="`array` should"):
        Views(array)


def test_features_carry_preset_and_probe_family_until_the_weights_change(data, tmp_path):
    encoder = keras_issl.encoders.ResNet(blocks=(1,), width=8, image_size=8, stem="cifar")
    objective = keras_issl.objectives.SimCLR(output_dim=8, hidden=(8,), probe="mlp")
    model = keras_issl.Pretrainer(encoder, objective, augmentations.Affine(8))
    assert extract_features(encoder, data).provenance["probe"] == "mlp"
    folder = keras_issl.save_preset(encoder, tmp_path / "mine", objective=objective)
    loaded = keras_issl.from_preset(folder)
    features = extract_features(loaded, data)
    digest = keras_issl.zoo.read_metadata(folder)["files"]["model.weights.h5"]["sha256"]
    assert features.provenance["preset"] == str(folder) and features.provenance["weights_sha256"] == digest
    with pytest.warns(UserWarning, match="the paper matches the student head to the probe"):
        keras_issl.probes.LinearProbe(strengths=[1.0]).fit(features)
    weight = loaded.trainable_weights[0]
    weight.assign(keras.ops.add(weight, 1.0))
    changed = extract_features(loaded, data).provenance
    assert changed["probe"] == "mlp" and "preset" not in changed and "weights_sha256" not in changed
    assert "preset" not in provenance.of(keras_issl.from_preset(folder, load_weights=False))
    del model


def test_probe_families():
    assert provenance.probe_family(keras_issl.objectives.DISSL(num_classes=4)) == "linear"
    assert provenance.probe_family(keras_issl.objectives.DISSL(num_classes=4, probe=keras.layers.Dense(4))) == "custom"
    assert provenance.probe_family(None) is None
