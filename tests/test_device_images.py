"""Images that lie on the device: the same batches, the same weights."""

import keras
import many_devices
import members
import numpy as np
import pytest

import keras_issl
from keras_issl import callbacks, cli, datasets, runs

BACKEND = keras.config.backend()
on_a_device = pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow takes every batch through the host")
SIDE, COUNT, BATCH = 12, 42, 8


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (COUNT, SIDE, SIDE, 3), "uint8")
    return datasets.ImageDataset(images, np.arange(COUNT) % 3, class_names="abc")


def pretrainer(**options):
    keras.utils.set_random_seed(0)
    encoder = keras_issl.encoders.ResNet(blocks=(1,), width=4, image_size=SIDE, stem="strided")
    augmentation = keras_issl.augmentations.SimCLR(SIDE, preset="cifar10")
    objective = members.SMALL["DISSL"]()
    model = keras_issl.Pretrainer(encoder, objective, augmentation, seed=0, **options)
    model.compile(keras.optimizers.Adam(1e-2))
    return model


def state(model):
    return callbacks.Snapshot(model).arrays


@pytest.fixture
def gathered(monkeypatch):
    """How many images each call of `gather` was asked for."""
    sizes, gather = [], datasets.DeviceImages.gather

    def spy(self, indices):
        sizes.append(len(indices))
        return gather(self, indices)

    monkeypatch.setattr(datasets.DeviceImages, "gather", spy)
    return sizes


def assert_same_state(found, expected):
    found, expected = state(found), state(expected)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@on_a_device
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"drop_last": True, "steps_per_epoch": 3},  # epochs that end within a pass
        {"shuffle": False},
        {"shuffle": 8, "shards": 2},
        {"share": (1, 2)},
    ],
    ids=str,
)
def test_batches_are_the_same(data, options):
    host, device = (d.batches(BATCH, seed=3, **options) for d in (data, data.on_device()))
    assert len(host) == len(device) and not device.decodes
    for epoch in range(3):
        for number in range(len(host)):
            (images, labels), (expected, known) = device.batch(epoch, number), host.batch(epoch, number)
            assert keras.ops.is_tensor(images) and images.shape == expected.shape
            np.testing.assert_array_equal(datasets.to_numpy(images), expected)
            np.testing.assert_array_equal(labels, known)
            assert datasets.to_numpy(images).dtype == np.uint8


@on_a_device
@pytest.mark.filterwarnings("ignore:.*incomplete last batch")
@pytest.mark.parametrize("options", [{}, {"online_probe": 3}], ids=["alone", "with labels"])
def test_fit_takes_the_same_steps(data, options, gathered):
    models = [pretrainer(**options) for _ in range(2)]
    histories = [
        model.fit(d, batch_size=BATCH, epochs=2, verbose=0).history
        for model, d in zip(models, (data, data.on_device()), strict=True)
    ]
    assert histories[0] == histories[1] and gathered.count(BATCH) >= 10
    assert_same_state(models[1], models[0])
    # The loss and features of images on the device, too.
    scores = [models[0].evaluate(d, batch_size=7, verbose=0, return_dict=True) for d in (data, data.on_device())]
    assert scores[0] == scores[1]
    features = [models[0].predict(d, batch_size=BATCH, verbose=0) for d in (data, data.on_device())]
    np.testing.assert_array_equal(features[0], features[1])


@on_a_device
def test_what_looks_like_an_array_is_taken_for_one(data, gathered):
    images = data.on_device().images
    np.testing.assert_array_equal(np.asarray(images), data.images)
    assert np.asarray(images, "float32").dtype == np.float32 and np.shares_memory(np.asarray(images), data.images)
    models = [pretrainer() for _ in range(2)]
    for model, x in zip(models, (data.images[:40], images.subset(slice(40))), strict=True):
        model.fit(x, batch_size=BATCH, verbose=0)
    assert_same_state(*models)
    assert gathered == [BATCH] * 5
    models[1].fit(images.subset(slice(32)), batch_size=BATCH, validation_split=0.5, verbose=0)
    assert gathered[5:].count(BATCH) >= 4  # two of each half
    features = [models[0].predict(x, verbose=0) for x in (data.images, images)]
    np.testing.assert_array_equal(features[0], features[1])
    features = [keras_issl.extract_features(models[0].encoder, x, verbose=False) for x in (data, data.on_device())]
    np.testing.assert_array_equal(features[0].array, features[1].array)
    for wrong in (data.images.astype("float32"), data.images[0], list(data.images), data.images[..., :1]):
        with pytest.raises(ValueError, match="`images` should be a NumPy array"):
            datasets.DeviceImages(wrong)
    with pytest.raises(ValueError, match="`read_ahead` should be left out"):
        data.on_device().batches(BATCH, read_ahead=2)


@on_a_device
@pytest.mark.slow
def test_several_devices_take_their_parts():
    engine = next(name for name, (backend, *_) in many_devices.ENGINES.items() if backend == BACKEND)
    host, device = many_devices.run(engine, 2, ["on_device"])["on_device"]
    for a, b in zip(host, device, strict=True):
        np.testing.assert_array_equal(a, b)


@on_a_device
@pytest.mark.filterwarnings("ignore:.*incomplete last batch")
def test_a_run_goes_on_from_wherever_the_images_are(data, tmp_path):
    whole, model = pretrainer(), pretrainer()
    whole.fit(data, batch_size=BATCH, epochs=2, verbose=0)
    model.fit(data.on_device(), batch_size=BATCH, epochs=1, verbose=0, callbacks=[callbacks.Checkpoint(tmp_path / "c")])
    again = pretrainer()
    resume = callbacks.Checkpoint(tmp_path / "c", resume=True)
    again.fit(data, batch_size=BATCH, epochs=2, verbose=0, callbacks=[resume])
    assert_same_state(again, whole)


@on_a_device
@pytest.mark.filterwarnings("ignore:.*incomplete last batch", "ignore:overflow", "ignore:invalid value")
def test_a_loss_that_is_not_finite_is_traced_to_its_step(data):
    model = pretrainer()
    model.optimizer.learning_rate = 1e30
    with pytest.raises(callbacks.NonFiniteLoss, match=r"Step \d+ .* is the first bad one"):
        model.fit(data.on_device(), batch_size=BATCH, epochs=3, verbose=0)


@on_a_device
def test_it_is_the_same_dataset(data):
    there = data.on_device()
    assert there.fingerprint == data.fingerprint and there.in_memory and "on the device" in repr(there)
    assert there.on_device() is there and there.class_names == data.class_names
    np.testing.assert_array_equal(there.images[3:5], data.images[3:5])
    assert isinstance(there.images[[1, 2]], np.ndarray)  # probes and pictures take it from the host
    one, other = there.split(0.5)
    for part, expected in zip((one, other), data.split(0.5), strict=True):
        assert part.fingerprint == expected.fingerprint and "on the device" in repr(part)
        gathered = part.images.gather(part.images.to_device(np.arange(len(part))))
        np.testing.assert_array_equal(datasets.to_numpy(gathered), expected.images)
    assert "on the device" in repr(there.with_classes("cab"))


@on_a_device
def test_images_are_copied_once_and_by_the_first_batch(data, monkeypatch):
    copied, convert = [], keras.ops.convert_to_tensor

    def counted(x, *args, **kwargs):
        copied.append(np.shape(x))
        return convert(x, *args, **kwargs)

    monkeypatch.setattr(datasets.device.ops, "convert_to_tensor", counted)
    data.images.flags.writeable = False  # as a memory-mapped file's
    batches = data.on_device().batches(BATCH)
    assert not copied
    for number in range(3):
        batches.replace(seed=1).batch(0, number)
    assert copied.count(data.images.shape) == 1


@on_a_device
@pytest.mark.filterwarnings("ignore:.*incomplete last batch")
@pytest.mark.parametrize("way", ["a dataset", "batches", "a foreign encoder"])
def test_a_device_that_they_do_not_fit_on_is_told_of(way, data, monkeypatch):
    def full(*args):
        raise MemoryError("out of memory")

    monkeypatch.setattr(datasets.DeviceImages, "gather", full)
    model, x, size = pretrainer(), data.on_device(), {"batch_size": BATCH}
    if way == "batches":
        x, size = x.batches(BATCH, labels=False, drop_last=True), {}
    if way == "a foreign encoder":
        layers = [keras.Input((SIDE, SIDE, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(4)]
        model = keras_issl.Pretrainer(keras_issl.encoders.Adapter(keras.Sequential(layers)), members.SMALL["DISSL"]())
        model.compile("sgd")
    words = r"before the first step, in batches of 8 images\. Try leaving the images on the host, without "
    words += r"`on_device\(\)`.*they take 0 MB"
    with pytest.raises(MemoryError, match=words):
        model.fit(x, **size, verbose=0)
    assert model.batches is None
    monkeypatch.setattr(datasets.Batches, "batch", full)
    with pytest.raises(MemoryError, match=r"of 8 images\. Try (`chunk_size`|`Pretrainer\(remat)"):
        pretrainer().fit(data, batch_size=BATCH, verbose=0)  # of images on the host no word of that


@on_a_device
@pytest.mark.slow("jax")
def test_a_recipe_runs_on_images_on_the_device(data, tmp_path, gathered):
    recipe = keras_issl.recipes.smoke(keras_issl.recipes.get("cifar10/dissl-small"))
    data = datasets.load((np.repeat(np.repeat(data.images, 3, 1), 3, 2), data.labels), image_size=32)
    results = [
        runs.pretrain(recipe, d, tmp_path / name, page=name == "device", verbose=False)
        for name, d in {"host": data, "device": data.on_device()}.items()
    ]
    assert_same_state(*(result.model for result in results))
    assert gathered and (tmp_path / "device" / "report.html").stat().st_size > 10_000


@on_a_device
@pytest.mark.slow("jax")
def test_the_command_takes_it(tmp_path, capsys, gathered):
    command = ["pretrain", "digits", "--recipe", "cifar10/simclr", "--smoke", "--no-page", "--out"]
    assert cli.main([*command, str(tmp_path / "device"), "--on-device"]) == 0 and gathered
    assert cli.main([*command, str(tmp_path / "host")]) == 0
    found = [keras_issl.from_preset(tmp_path / name / "preset") for name in ("device", "host")]
    for a, b in zip(*(encoder.get_weights() for encoder in found), strict=True):
        np.testing.assert_array_equal(a, b)
    capsys.readouterr()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="others take it")
def test_tensorflow_refuses_it(data, capsys):
    with pytest.raises(ValueError, match="on JAX or PyTorch only.*Received: the backend 'tensorflow'"):
        data.on_device()
    assert cli.main(["pretrain", "digits", "--smoke", "--on-device"]) == 2
    assert "Leave the images where they are" in capsys.readouterr().err


@pytest.mark.backend_independent
def test_images_that_are_not_in_memory_are_refused(tmp_path):
    from PIL import Image

    for i in range(3):
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / f"{i}.png")
    encoded = datasets.load(tmp_path, image_size=8, memory_limit=0)
    with pytest.raises(ValueError, match="Images should be in memory to be put on the device.*`memory_limit`"):
        encoded.on_device()
