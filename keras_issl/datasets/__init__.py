"""Real images as fixed-size uint8 RGB, in memory or decoded batch by batch, and batches that a run can resume.

No augmentation happens here. A new kind of dataset is one function in `sources` that returns `Records`, and one line
in `sources.find_records`.
"""

from keras_issl.datasets.batches import Batches
from keras_issl.datasets.dataset import ImageDataset, fingerprint, load
from keras_issl.datasets.device import DeviceImages, check_on_device
from keras_issl.datasets.images import (
    BrokenImage,
    EncodedImages,
    as_images,
    check_range,
    decode_image,
    progress_line,
    to_numpy,
)
from keras_issl.datasets.labels import check_labels
from keras_issl.datasets.order import order_of_pass
from keras_issl.datasets.sources import SPLITS, SUFFIXES, Records, UnknownSplit
from keras_issl.datasets.streams import as_py_dataset, batch_size_of, count_batches, drop_incomplete

__all__ = [
    "SPLITS",
    "SUFFIXES",
    "Batches",
    "BrokenImage",
    "DeviceImages",
    "EncodedImages",
    "ImageDataset",
    "Records",
    "UnknownSplit",
    "as_images",
    "as_py_dataset",
    "batch_size_of",
    "check_labels",
    "check_on_device",
    "check_range",
    "count_batches",
    "decode_image",
    "drop_incomplete",
    "fingerprint",
    "load",
    "order_of_pass",
    "progress_line",
    "to_numpy",
]
