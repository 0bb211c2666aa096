"""Representations as plain arrays with their provenance: what probes and diagnostics work on."""

import dataclasses
import json
import os
import tempfile

import keras
import numpy as np

from keras_issl import datasets, encoders


@dataclasses.dataclass(frozen=True)
class Features:
    """The representations of a dataset.

    Attributes:
        array: float32 (N, D).
        labels: int64 (N,), -1 for none; or None.
        provenance: where they come from: a dictionary that JSON can hold (encoder, dataset and its fingerprint,
            versions, backend, dtype policy, image shape, probe family if the encoder names one).

    Raises:
        ValueError: an array that is not (N, D), NaN or infinity, labels that do not fit.

    Example:

    ```python
    features = keras_issl.features.Features(np.eye(3), labels=[0, 1, 0])
    features.save("features.npz")
    keras_issl.features.Features.load("features.npz").labels  # array([0, 1, 0])
    ```
    """

    array: np.ndarray
    labels: np.ndarray | None = None
    provenance: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        array = datasets.to_numpy(self.array)
        if array.ndim != 2:
            raise ValueError(f"`array` should have shape (N, D). Received: shape {array.shape}.")
        object.__setattr__(self, "array", _finite(array.astype(np.float32, copy=False), "array"))
        if self.labels is not None:
            object.__setattr__(self, "labels", datasets.check_labels(self.labels, len(array)))
        object.__setattr__(self, "provenance", dict(self.provenance))

    def __len__(self):
        return len(self.array)

    def subset(self, indices):
        """The features at `indices` (integers, a boolean mask or a slice), in that order."""
        labels = None if self.labels is None else self.labels[indices]
        return Features(self.array[indices], labels, self.provenance)

    def save(self, path):
        """Writes a NumPy archive: `array`, `labels` (if any) and `provenance` as JSON. Whole or not at all.

        Args:
            path: the file; an existing one is replaced only by a complete new one.
        """
        path = os.path.abspath(path)
        members = {"array": self.array, "provenance": np.array(json.dumps(self.provenance))}
        if self.labels is not None:
            members["labels"] = self.labels
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".features-", suffix=".npz")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, **members)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise

    @classmethod
    def load(cls, path):
        """Reads what `save` wrote. Nothing in the file is executed.

        Raises:
            ValueError: a file that `save` did not write, or only in part.
        """
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as members:
                return cls(members["array"], members.get("labels"), json.loads(str(members["provenance"])))
        except FileNotFoundError:
            raise
        except Exception as error:  # zipfile, NumPy and JSON each have their own for a damaged file
            raise ValueError(
                f"`path` should be a file written by `Features.save`. Received: {path}, which fails with "
                f"{type(error).__name__}: {error}"
            ) from error


def extract_features(encoder, data, *, batch_size=256, labels=None, provenance=None, verbose="auto"):
    """The encoder's representation of every image, in inference mode, as float32.

    Args:
        encoder: a Keras model from images (B, H, W, C), RGB in [0, 255], to (B, D).
        data: an `ImageDataset`; an array (N, H, W[, C]); a tuple (array, labels); or an iterable of batches, each
            images or (images, labels). One channel is repeated to three where the encoder takes three.
        batch_size: images a forward pass. An iterable keeps its own batches.
        labels: (N,), instead of those of `data`; -1 for none.
        provenance: more entries for `Features.provenance`, such as the preset's name or its probe family.
        verbose: progress on stderr: True, False, or `"auto"`, on a terminal and after three seconds.

    Returns:
        `Features`: array (N, D), labels (or None) and provenance.

    Raises:
        ValueError: no images, a wrong rank, an encoder whose output is not (B, D), NaN or infinity in it.

    Example:

    ```python
    encoder = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    data = keras_issl.datasets.load("digits", split="test")
    keras_issl.extract_features(encoder, data).array.shape  # (500, 192)
    ```
    """
    if not hasattr(encoder, "predict_on_batch"):
        raise ValueError(
            f"`encoder` should be a keras.Model. Received: {type(encoder).__name__}. "
            "Wrap a layer: keras.Sequential([keras.Input(image_shape), layer])."
        )
    if not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise ValueError(f"`batch_size` should be a positive integer. Received: {batch_size!r}.")
    channels = encoders.image_channels(encoder)
    batches, total, known, source = _batches(data, batch_size, channels)
    progress = datasets.progress_line(total, "features", verbose) if total else lambda done: None
    parts, found, done, shape = [], [], 0, None
    for images, batch_labels in batches:
        images = datasets.as_images(images, channels)  # (B, H, W, C)
        shape = list(images.shape[1:])
        parts.append(_encode(encoder, images, batch_size if total else None))  # (B, D)
        found.append(np.full(len(images), -1) if batch_labels is None else datasets.to_numpy(batch_labels))
        done += len(images)
        progress(done)
    if not parts:
        raise ValueError("`data` should hold at least one batch of images. Received: none.")
    known = np.concatenate(found) if labels is None and known is None else known
    chosen = known if labels is None else labels
    if chosen is not None:
        chosen = datasets.check_labels(chosen, done)
        chosen = chosen if labels is not None or (chosen >= 0).any() else None
    origin = {
        "encoder": encoder.name,
        **source,
        "image_shape": shape,
        "keras": keras.__version__,
        "backend": keras.backend.backend(),
        "dtype_policy": getattr(encoder, "dtype_policy", keras.config.dtype_policy()).name,
    }
    return Features(_finite(np.concatenate(parts), "encoder"), chosen, {**origin, **(provenance or {})})


def _batches(data, batch_size, channels):
    """Iterator of (images, labels or None), the total if known, the labels if known, and the data's provenance."""
    if isinstance(data, tuple) and len(data) == 2:
        images, known = data
    elif isinstance(data, datasets.ImageDataset):
        images, known = data.images, data.labels
    elif hasattr(data, "shape") and hasattr(data, "dtype"):
        images, known = data, None
    elif hasattr(data, "__iter__"):
        return map(_pair, data), None, None, {"dataset": type(data).__name__}
    else:
        raise ValueError(
            "`data` should be an ImageDataset, an array, (array, labels) or an iterable of batches. Received: "
            f"{type(data).__name__}."
        )
    if isinstance(data, datasets.ImageDataset):
        source = {"dataset": data.name, "fingerprint": data.fingerprint}
    else:
        images = datasets.as_images(images, channels)
        known = None if known is None else datasets.check_labels(known, len(images))
        source = {"dataset": "array", "fingerprint": datasets.fingerprint(images, known)}
    if len(images) == 0:
        raise ValueError(f"`data` should hold at least one image. Received: shape {images.shape}.")
    slices = ((images[start : start + batch_size], None) for start in range(0, len(images), batch_size))
    return slices, len(images), known, source


def _pair(batch):
    """(images, labels or None) of a batch that may hold either."""
    if not isinstance(batch, tuple | list):
        return batch, None
    return (batch[0], batch[1]) if len(batch) > 1 else (batch[0], None)


def _encode(encoder, images, batch_size):
    """float32 (B, D). A short batch is filled up to `batch_size`, so that nothing is compiled for it alone."""
    count = len(images)
    if batch_size and count < batch_size:
        images = np.concatenate([images, np.zeros((batch_size - count, *images.shape[1:]), images.dtype)])
    output = encoder.predict_on_batch(images)
    if not hasattr(output, "ndim") or output.ndim != 2:
        shape = getattr(output, "shape", type(output).__name__)
        raise ValueError(f"`encoder` should return features (B, D). Received: {shape}. Pool or flatten its output.")
    return datasets.to_numpy(output)[:count].astype(np.float32)


def _finite(array, argument):
    bad = ~np.isfinite(array).all(axis=1)
    if bad.any():
        raise ValueError(
            f"`{argument}` should give finite features. Received: NaN or infinity in {bad.sum()} of {len(array)} rows, "
            f"first in row {int(bad.argmax())}."
        )
    return array
