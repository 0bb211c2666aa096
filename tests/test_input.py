"""Training from files that do not fit in memory: order by blocks, shares of processes, batches made ahead, TFRecord."""

import functools
import io
import threading
import warnings

import keras
import numpy as np
import pytest
from PIL import Image

import keras_issl
from keras_issl import objectives, recipes, runs
from keras_issl.datasets import Batches, ImageDataset, load, order_of_pass
from keras_issl.datasets.ahead import Ahead
from keras_issl.datasets.tfrecords import TFRecords

once = pytest.mark.backend_independent
IDS = np.arange(96, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)  # image i is of value i


def values(batch):
    return np.asarray(batch)[:, 0, 0, 0].tolist()


def an_epoch(batches, epoch=0):
    return [values(batches.batch(epoch, k)) for k in range(len(batches))]


def encoded(value, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(file, kind)
    return file.getvalue()


@pytest.fixture
def shards(tmp_path):
    """Three Parquet files of 96 images in 20 row groups: five of each file, six of the last two rows."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for file, part in enumerate(np.split(np.arange(96), [30, 62])):
        table = pa.table({"image": [{"bytes": encoded(i), "path": None} for i in part], "label": part % 2})
        parquet.write_table(table, tmp_path / f"train-{file}.parquet", row_group_size=5)
    return tmp_path


# ---------------------------------------------------------------------- order
@once
@pytest.mark.parametrize("shuffle", [True, 24, 7])
def test_an_order_is_a_permutation_and_a_pure_function(shuffle):
    def make(number=0, seed=0):
        return order_of_pass(96, seed=seed, number=number, shuffle=shuffle, blocks=np.arange(96) // 5)

    (order,) = make()
    assert sorted(order) == list(range(96))
    np.testing.assert_array_equal(order, make()[0])
    assert (order != make(number=1)[0]).any() and (order != make(seed=1)[0]).any()


@once
def test_a_window_holds_few_blocks():
    """Each window of 20 images lies in at most 20 / 5 + 1 blocks of five, next to each other in the pass alone."""
    (order,) = order_of_pass(100, seed=0, number=0, shuffle=20, blocks=np.arange(100) // 5)
    for window in np.split(order, 5):
        assert len(set(window // 5)) == 4
        assert list(window) != sorted(window)
    starts = [min(window // 5) for window in np.split(order, 5)]
    assert starts != sorted(starts), "blocks come in an order of their own"


@once
def test_blocks_need_not_lie_together():
    """Of a subset, or numbered by names far apart."""
    blocks = np.array([900, 7, 900, 7, 7, 900])
    (order,) = order_of_pass(6, seed=0, number=0, shuffle=3, blocks=blocks)
    assert {frozenset(order[:3]), frozenset(order[3:])} == {frozenset([0, 2, 5]), frozenset([1, 3, 4])}


@once
@pytest.mark.parametrize(("shards", "processes"), [(1, 1), (1, 4), (4, 1), (4, 2), (4, 4), (8, 4)])
@pytest.mark.parametrize("shuffle", [False, True, 16])
def test_parts_of_processes_join_to_the_batches_of_one(shuffle, shards, processes):
    given = {"batch_size": 16, "shuffle": shuffle, "shards": shards, "blocks": np.arange(96) // 4, "drop_last": True}
    whole = an_epoch(Batches(IDS, **given), 3)
    parts = [an_epoch(Batches(IDS, **given, share=(i, processes)), 3) for i in range(processes)]
    assert [sum(pieces, []) for pieces in zip(*parts, strict=True)] == whole
    assert sorted(sum(whole, [])) == list(range(96)), "every image exactly once"


@once
def test_a_process_reads_its_own_blocks_alone():
    given = {"batch_size": 16, "shuffle": 16, "shards": 4, "blocks": np.arange(96) // 4}
    read = [
        {value // 4 for batch in an_epoch(Batches(IDS, **given, share=(i, 4))) for value in batch} for i in range(4)
    ]
    assert [len(blocks) for blocks in read] == [6] * 4 and len(set.union(*read)) == 24
    plain = given | {"shards": 1}
    shared = [{v // 4 for batch in an_epoch(Batches(IDS, **plain, share=(i, 4))) for v in batch} for i in range(4)]
    assert sum(map(len, shared)) > 24, "without shards blocks are read several times"


@once
def test_what_does_not_divide_is_left_out_anew_each_pass():
    batches = Batches(IDS[:90], batch_size=16, shuffle=True, shards=4)
    assert len(batches) == 5
    left = [set(range(90)) - set(sum(an_epoch(batches, e), [])) for e in range(3)]
    assert all(len(missing) == 10 for missing in left) and left[0] != left[1]


@once
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"shuffle": 1}, "images of a window"),
        ({"shuffle": "batch"}, "images of a window"),
        ({"shards": 3}, "`shards`.*divides the batch size.*shards=3 for batch_size=16"),
        ({"shards": 0}, "`shards`"),
        ({"blocks": np.zeros(3)}, "`blocks` should be one an image"),
    ],
)
def test_orders_that_cannot_be(given, said):
    with pytest.raises(ValueError, match=said):
        Batches(IDS, batch_size=16, **given)


# ---------------------------------------------------------------------- Parquet, by row groups
@once
def test_parquet_is_read_by_row_groups(shards, monkeypatch):
    import pyarrow.parquet

    read, plain = [], pyarrow.parquet.ParquetFile.read_row_group

    def counted(file, number, **given):
        read.append(number)
        return plain(file, number, **given)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "read_row_group", counted)
    data = load(shards, memory_limit=3000, workers=1)  # room for some row groups
    assert not data.in_memory and len(set(data.blocks.tolist())) == 20
    with pytest.warns(UserWarning, match="`shuffle` should be a number of images.*Received: True"):
        data.batches(16)
    in_memory = load(shards)
    batches = data.batches(16, shuffle=20, seed=3)
    read.clear()
    for k, (images, labels) in enumerate(batches):
        np.testing.assert_array_equal(images, in_memory.batches(16, shuffle=20, seed=3).batch(0, k)[0])
        np.testing.assert_array_equal(labels, images[:, 0, 0, 0] % 2)
    assert len(read) <= 1.5 * 20 + 8, "each about once; and two batches of the next epoch"


@once
def test_a_data_set_that_fits_needs_no_window(shards, recwarn):
    load(shards, memory_limit=17_000).batches(16)  # 96 files of about 80 bytes, 18,432 of pixels
    assert not recwarn.list


@once
def test_subsets_keep_their_blocks(shards):
    data = load(shards)
    first, second = data.split(0.5)
    np.testing.assert_array_equal(first.blocks, data.blocks[first.images[:, 0, 0, 0]])
    assert len(second.take(3).blocks) == 3
    assert ImageDataset(IDS).subset([1, 2]).blocks is None


# ---------------------------------------------------------------------- ahead
@once
def test_batches_are_made_ahead_of_the_step(shards):
    """While the caller holds batch k, the next two are made, and no more; the epoch that follows too."""
    data, made, enough = load(shards, memory_limit=3000), [], threading.Event()
    batches = data.batches(24, shuffle=False)

    def batch(epoch, number, make=batches.batch):
        made.append((epoch, number))
        if len(made) == 3:
            enough.set()
        return make(epoch, number)

    batches.batch = batch
    first = batches[0]
    assert enough.wait(20) and made == [(0, 0), (0, 1), (0, 2)]
    np.testing.assert_array_equal(first[0], load(shards).images[:24])
    for k in range(1, 4):
        batches[k]
    batches.epoch = 1
    batches[0]
    assert made[:5] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]
    assert batches.images_per_second > 0 and batches.seconds > 0


@once
def test_what_fails_ahead_is_told_when_it_is_asked_for():
    def make(i):
        if i == 2:
            raise ValueError("broken")
        return i

    ahead = Ahead(make, lambda i: i + 1 if i < 4 else None, 2)
    assert [ahead(0), ahead(1)] == [0, 1]
    with pytest.raises(ValueError, match="broken"):
        ahead(2)
    assert [ahead(3), ahead(4), ahead(0)] == [3, 4, 0]


@once
def test_a_broken_image_is_named_while_training(tmp_path):
    for i in range(8):
        (tmp_path / f"{i}.png").write_bytes(encoded(i))
    data = load(tmp_path, memory_limit=1)
    (tmp_path / "5.png").write_bytes(encoded(5)[:30])
    with pytest.raises(ValueError, match=r"readable images. Received: .*5\.png"):
        list(data.batches(2, shuffle=False))


# ---------------------------------------------------------------------- training
def test_fit_reads_by_blocks(shards):
    data = load(shards, memory_limit=3000)
    encoder = keras_issl.encoders.ResNet(blocks=(1,), width=4, image_size=8, stem="cifar")
    model = keras_issl.Pretrainer(encoder, objectives.SimCLR(output_dim=4, hidden=(4,)), lambda x: [x, x])
    model.compile("sgd")
    used = []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: used.append(model.batches))
    history = model.fit(data, batch_size=32, shuffle=20, epochs=2, verbose=0, callbacks=[note]).history
    assert np.isfinite(history["loss"]).all()
    assert used[1].shuffle == 20 and used[1].images_per_second > 0
    assert used[1].blocks is data.blocks


@once
def test_a_recipe_has_a_window_and_a_run_records_what_input_delivers(shards, tmp_path):
    with pytest.raises(ValueError, match="`shuffle_window`"):
        recipes.digits("simclr", shuffle_window=0)
    arguments = {"output_dim": 4, "hidden": (4,)}
    recipe = recipes.digits(
        "simclr", objective_args=arguments, encoder_args={"blocks": (1,), "width": 4, "image_size": 8, "stem": "cifar"},
        shuffle_window=20, batch_size=32, epochs=2,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="`shuffle` should be a number of images")  # not of all images
        runs.pretrain(recipe, load(shards, memory_limit=3000), tmp_path / "run", verbose=False)
    header = (tmp_path / "run" / "records.csv").read_text().splitlines()
    rows = [dict(zip(header[0].split(","), line.split(","), strict=True)) for line in header[1:]]
    assert float(rows[-1]["input_images_per_second"]) > 0


# ---------------------------------------------------------------------- TFRecord and ArrayRecord
@functools.cache  # a class of one name is registered once a process
def tfds_builder():
    tfds = pytest.importorskip("tensorflow_datasets")

    class IsslTestInput(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"image": tfds.features.Image(shape=(8, 8, 3)), "label": tfds.features.ClassLabel(names="ab")}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples(range(20)), "test": self._generate_examples(range(20, 24))}

        def _generate_examples(self, numbers):
            for i in numbers:
                yield i, {"image": io.BytesIO(encoded(i)), "label": i % 2}

    return IsslTestInput


def write_tfds(folder, file_format):
    builder = tfds_builder()(data_dir=folder, file_format=file_format)
    builder.download_and_prepare()
    return builder.data_path


@once
@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_what_tfds_wrote_is_read_at_random(tmp_path, file_format):
    path = write_tfds(tmp_path, file_format)
    data = load(str(path), split="train", memory_limit=100)
    assert not data.in_memory and len(data) == 20 and data.class_names == ("a", "b")
    found = values(data.images[:])
    assert sorted(found) == list(range(20)) and data.labels.tolist() == [v % 2 for v in found]
    assert values(data.images[[7, 0, 7]]) == [found[7], found[0], found[7]]
    assert values(load(str(path), split="train[5:9]").images) == found[5:9]
    assert len(load(str(path), split="test")) == 4
    with pytest.raises(ValueError, match="`split` should be one of"):
        load(str(path), split="extra")


@once
def test_tfrecord_files_that_are_not_whole(tmp_path):
    path = write_tfds(tmp_path, "tfrecord")
    (file,) = [f for f in path.iterdir() if "-train.tfrecord" in f.name]
    content = file.read_bytes()
    file.write_bytes(content[:-10])
    with pytest.raises(ValueError, match=r"whole TFRecord files. Received: .*train\.tfrecord.*would end after"):
        load(str(path), split="train")
    records = TFRecords([(file.with_name(file.name.replace("train", "test")), 1, 2)])
    assert len(records) == 2 and "record at byte" in records.where(1)
    file.write_bytes(content[: content.index(records[0][:0] + content[:4], 1)] if content[:4] in content[1:] else b"")
    with pytest.raises(ValueError, match="`source` should"):
        load(str(path), split="train")
