"""Reading and decoding: images a second and core, against plain tf.data and torch's DataLoader on the same files.

    python tools/benchmark_input.py                      # 2,000 JPEG files of 500 x 375 pixels that it writes
    python tools/benchmark_input.py --folder my/images   # JPEG files of one's own

Each contestant reads every file once, in an order of its own, decodes it, resizes the shorter side to `--resize`
(bilinear, antialiased), crops the centre of `--size` pixels and makes batches of uint8. `keras_issl` is
`datasets.Batches` of a folder; of a Parquet file, in windows; and of TFRecord files that TensorFlow Datasets wrote.
`tf.data` maps with AUTOTUNE. `DataLoader` has as many worker processes as there are cores, and Pillow. Every number is
from a process of its own, after a pass that is not counted; contestants take turns. Images a core are images over
seconds of processor time, of all threads and processes; the ratio is to tf.data, with the smallest and the largest of
all rounds.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONTESTANTS = ("tf.data", "DataLoader", "keras_issl folder", "keras_issl Parquet", "keras_issl TFRecord")
BACKENDS = {"tf.data": "tensorflow", "DataLoader": "torch"}


def write_images(folder, count):
    """JPEG files of 500 x 375 pixels: smooth pictures with some noise, about 60 KB each."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        picture = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.int16)
        noisy = picture + rng.normal(scale=8, size=picture.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{i:05d}.jpg", quality=90)


def write_shards(files, root):
    """The same files as Parquet, and as TFRecord through TensorFlow Datasets."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    schema = pa.schema({"image": pa.struct({"bytes": pa.binary(), "path": pa.string()})})
    (root / "parquet").mkdir()
    with pq.ParquetWriter(root / "parquet" / "train.parquet", schema) as writer:
        for start in range(0, len(files), 100):
            rows = [{"bytes": file.read_bytes(), "path": file.name} for file in files[start : start + 100]]
            writer.write_table(pa.table({"image": rows}, schema=schema))

    class IsslBenchmark(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": ((file.name, {"image": str(file)}) for file in files)}

        def _generate_examples(self):
            raise NotImplementedError

    IsslBenchmark(data_dir=root / "tfds", file_format="tfrecord").download_and_prepare()


class _Files:
    """A map-style data set for torch's DataLoader."""

    def __init__(self, files, resize, size):
        self.files, self.resize, self.size = files, resize, size

    def __len__(self):
        return len(self.files)

    def __getitem__(self, number):
        import numpy as np
        from PIL import Image

        image = Image.open(self.files[number]).convert("RGB")
        width, height = image.size
        short = min(width, height)
        image = image.resize((self.resize * width // short, self.resize * height // short), Image.Resampling.BILINEAR)
        left, top = (image.width - self.size) // 2, (image.height - self.size) // 2
        return np.asarray(image.crop((left, top, left + self.size, top + self.size)))


def batches_of(who, options):
    """A function that returns an iterator over the batches of a new pass."""
    files = sorted(str(file) for file in Path(options.folder).rglob("*.jpg"))
    cores, size, resize, batch = len(os.sched_getaffinity(0)), options.size, options.resize, options.batch_size
    if who == "tf.data":
        import tensorflow as tf

        def load(file):
            image = tf.io.decode_jpeg(tf.io.read_file(file), channels=3)
            shape = tf.cast(tf.shape(image)[:2], tf.float32)
            sides = tf.cast(shape * resize / tf.reduce_min(shape), tf.int32)
            image = tf.image.resize(image, sides, antialias=True)
            image = tf.image.resize_with_crop_or_pad(image, size, size)
            return tf.cast(tf.round(image), tf.uint8)

        data = tf.data.Dataset.from_tensor_slices(files).shuffle(len(files), seed=0)
        data = data.map(load, tf.data.AUTOTUNE).batch(batch, drop_remainder=True).prefetch(2)
        return lambda: iter(data)
    if who == "DataLoader":
        import torch

        loader = torch.utils.data.DataLoader(
            _Files(files, resize, size), batch, shuffle=True, num_workers=cores, drop_last=True, persistent_workers=True
        )
        return lambda: iter(loader)
    from keras_issl import datasets

    root = Path(options.shards)
    source, shuffle = {
        "keras_issl folder": (options.folder, True),
        "keras_issl Parquet": (root / "parquet", 512),
        "keras_issl TFRecord": (next(root.glob("tfds/issl_benchmark/*")), True),
    }[who]
    split = "train" if who.endswith("TFRecord") else None
    limit = min(64 << 20, len(files) * size * size)  # a third of the images: they are decoded in each pass
    data = datasets.load(
        source, split=split, image_size=size, resize=resize, memory_limit=limit, labels=False, verbose=False
    )
    batches = data.batches(batch, shuffle=shuffle, drop_last=True, seed=0)

    def a_pass():
        yield from (batches[k] for k in range(len(batches)))
        batches.epoch += 1

    return a_pass


def cpu_seconds():
    """Of this process and those of its children that ended, and of worker processes that still run."""
    used = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    ticks = os.sysconf("SC_CLK_TCK")
    for child in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
        fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        used += (int(fields[11]) + int(fields[12])) / ticks
    return used


def worker(who, options):
    """Measures one pass after another one; its last line is JSON: images, seconds, seconds of processor time."""
    a_pass = batches_of(who, options)
    for _ in range(2):
        began, used, images = time.monotonic(), cpu_seconds(), 0
        for batch in a_pass():
            images += len(batch)
        measured = images, time.monotonic() - began, cpu_seconds() - used
    print(json.dumps(measured))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="JPEG files, instead of ones that are written for this")
    parser.add_argument("--count", type=int, default=2000, help="files to write")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--resize", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=CONTESTANTS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--shards", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(options.worker, options)
    with tempfile.TemporaryDirectory() as root:
        root = Path(root)
        if not options.folder:
            options.folder = root / "images"
            write_images(options.folder, options.count)
        files = sorted(Path(options.folder).rglob("*.jpg"))
        write_shards(files, root)
        size = sum(file.stat().st_size for file in files) / len(files) / 1e3
        found = {who: [] for who in options.only}
        for _ in range(options.rounds):
            for who in options.only:
                found[who].append(measured(who, options, root))
    cores = len(os.sched_getaffinity(0))
    print(
        f"\n{len(files):,} JPEG files of {size:.0f} KB to {options.size} px, {cores} cores, {options.rounds} rounds\n"
    )
    print("| contestant | images/s | images/s a core | of tf.data's a core |\n|---|---|---|---|")
    for who, rounds in found.items():
        wall = statistics.median(images / seconds for images, seconds, _ in rounds)
        cpu = [images / used for images, _, used in rounds]
        ratio = ""
        if "tf.data" in found:
            base = [images / used for images, _, used in found["tf.data"]]
            ratios = [a / b for a, b in zip(cpu, base, strict=True)]
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        print(f"| {who} | {wall:,.0f} | {statistics.median(cpu):,.0f} | {ratio} |")


def measured(who, options, root):
    """One round of a contestant, in a process of its own."""
    names = ("folder", "size", "resize", "batch_size")
    given = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in names]
    command = [sys.executable, __file__, "--worker", who, "--shards", str(root), *given]
    backend = BACKENDS.get(who, "torch")
    said = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"KERAS_BACKEND": backend})
    if said.returncode:
        raise RuntimeError(said.stderr[-3000:])
    return json.loads(said.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
