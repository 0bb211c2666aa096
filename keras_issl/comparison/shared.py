"""What both comparisons share: their data and what stands beside the objectives."""

import numpy as np

from keras_issl.features import Features, extract_features


def pixels(data):
    """Raw pixels of an `ImageDataset` as `Features`, in [0, 1]."""
    flat = np.asarray(data.images, "float32").reshape(len(data), -1) / 255
    return Features(flat, data.labels, {"encoder": "raw pixels", "dataset": data.name})


def features(encoder, *splits):
    """`Features` of each `ImageDataset`."""
    return [extract_features(encoder, data, verbose=0) for data in splits]


def check_labels(train, test):
    """Refuses data without a label for every image."""
    for name, data in (("train", train), ("test", test)):
        if data.labels is None or (data.labels < 0).any():
            raise ValueError(f"`{name}` should have a label for every image: the probe needs them.")


def check_folder(out, marker):
    """Refuses a folder with something else in it than a comparison, which has the file `marker`."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"`out` should be a folder. Received: {str(out)!r}, which is a file.")
    if out.is_dir() and any(out.iterdir()) and not (out / marker).is_file():
        raise ValueError(f"`out` exists and holds no comparison, so it is left alone. Received: {str(out)!r}")


def same_classes(train, test):
    """`test` with labels as in `train`; refuses the same images for both."""
    test = test.with_classes(train.class_names)
    if train.fingerprint == test.fingerprint:
        raise ValueError(f"`train` and `test` should be different images. Received: {train.name} for both.")
    return test
