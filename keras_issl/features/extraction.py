"""`extract_features`: an encoder over a dataset, into memory or into a file that a killed run can go on with."""

import contextlib
import hashlib
import json

import keras
import numpy as np

from keras_issl import datasets, distribution, encoders
from keras_issl import provenance as provenance_notes
from keras_issl.features.arrays import Features, check_finite
from keras_issl.features.partial import PartialFeatures, check_out


def extract_features(encoder, data, *, batch_size=256, labels=None, provenance=None, verbose="auto", out=None):
    """The encoder's representation of every image, in inference mode, as float32.

    With `out` they go to a file, batch by batch, so that neither the images nor the features need to fit in memory.
    What is there is recorded every two seconds in a folder beside it (`.features.npz.part` for `features.npz`). After a
    kill, an interruption or a full disk the same call goes on behind the last record; the file appears when it is
    complete, and the folder is gone. An array or an `ImageDataset` is not even read again up to there; of an iterable
    the recorded batches are drawn again and compared, not encoded: it must give the same batches each time.

    Args:
        encoder: a Keras model from images (B, H, W, C), RGB in [0, 255], to (B, D).
        data: an `ImageDataset`; an array (N, H, W[, C]); a tuple (array, labels); or an iterable of batches, each
            images or (images, labels). One channel is repeated to three where the encoder takes three.
        batch_size: images a forward pass. An iterable keeps its own batches.
        labels: (N,), instead of those of `data`; -1 for none.
        provenance: more entries for `Features.provenance`, such as the preset's name or its probe family.
        verbose: progress on stderr: True, False, or `"auto"`, on a terminal and after three seconds.
        out: None to keep the features in memory; or the file to make, `.npz` or `.parquet` (columns `features` and, if
            any, `label`; needs `keras_issl[data]`).

    Returns:
        `Features`: array (N, D), labels (or None) and provenance. With `out`, those of the file, with the array mapped
        from disk, as by `Features.load(out, mmap=True)`.

    Raises:
        ValueError: no images, a wrong rank, an encoder whose output is not (B, D), NaN or infinity in it. With `out`: a
            file that exists or has another ending, another process at work on it, or rows there of another encoder
            (by its weights), other data or another batch size, provenance, dtype policy, backend or Keras.
        OSError: with `out`: a missing folder, or not enough room on the disk.

    Example:

    ```python
    encoder = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    data = keras_issl.datasets.load("digits", split="test")
    keras_issl.extract_features(encoder, data).array.shape  # (500, 192)
    features = keras_issl.extract_features(encoder, data, out="digits.npz")
    features.array[:3]  # reads three rows of digits.npz
    ```
    """
    if out is not None:
        out = check_out(out)
        if not out.parent.is_dir():
            raise FileNotFoundError(f"`out` should be in a folder that exists. Received: {str(out)!r}.")
    if not hasattr(encoder, "predict_on_batch"):
        raise ValueError(
            f"`encoder` should be a keras.Model. Received: {type(encoder).__name__}. "
            "Wrap a layer: keras.Sequential([keras.Input(image_shape), layer])."
        )
    if not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise ValueError(f"`batch_size` should be a positive integer. Received: {batch_size!r}.")
    channels = encoders.image_channels(encoder)
    images, known, source = source_of(data, channels)
    total = None if images is None else len(images)
    if labels is not None and total is not None:
        labels = datasets.check_labels(labels, total)
    origin = describe(encoder, source) | {"image_shape": None if images is None else list(images.shape[1:])}
    if out is None:
        context = contextlib.nullcontext(_InMemory())
    else:
        run = {
            **origin,
            "encoder's digest": _digest(encoder),
            "batch_size": None if images is None else int(batch_size),
            "labels": "those of `data`" if labels is None else "given",
            "provenance": provenance or {},
        }
        context = PartialFeatures(out, run, total)
    with context as store:
        progress = datasets.progress_line(total, "features", verbose, begun=store.rows)
        if images is None:
            batches = _batches(data, channels, labels is None, store, hashed=out is not None)
        else:
            batches = _slices(images, store.rows, batch_size, channels)
        progress(store.rows)
        for batch, batch_labels, mark in batches:
            features = encode(encoder, batch, batch_size if total else None)  # (B, D)
            if store.dim not in (None, features.shape[1]):
                raise ValueError(
                    f"`encoder` should return features of one width. Received: {store.dim}, then {features.shape[1]}."
                )
            check_finite(features, "encoder", store.rows)
            store.append(features, batch_labels, mark)
            progress(store.rows)
        if total is None:
            progress(store.rows, finished=True)
        if not store.rows:
            raise ValueError("`data` should hold at least one batch of images. Received: none.")
        if images is None:
            origin["image_shape"] = store.mark["image_shape"]
            known = store.labels()
        chosen = known if labels is None else labels
        if chosen is not None:
            chosen = datasets.check_labels(chosen, store.rows)
            chosen = chosen if labels is not None or (chosen >= 0).any() else None
        features = store.finish(chosen, {**origin, **(provenance or {})})
    return features if out is None else Features.load(out, mmap=True)


class _InMemory:
    """The interface of `PartialFeatures`, in memory."""

    rows, dim, mark = 0, None, None

    def __init__(self):
        self._features, self._labels = [], []

    def append(self, features, labels=None, mark=None):
        self._features.append(features)
        self._labels.append(np.full(len(features), -1) if labels is None else labels)
        self.rows, self.dim, self.mark = self.rows + len(features), features.shape[1], mark

    def labels(self):
        return np.concatenate(self._labels)

    def finish(self, labels, provenance):
        return Features(np.concatenate(self._features), labels, provenance)


def source_of(data, channels):
    """Images (N, H, W, C), or None for an iterable of batches; their labels, if known; and the data's provenance."""
    if isinstance(data, tuple) and len(data) == 2:
        images, known = data
    elif isinstance(data, datasets.ImageDataset):
        images, known = data.images, data.labels
    elif hasattr(data, "shape") and hasattr(data, "dtype"):
        images, known = data, None
    elif hasattr(data, "__iter__"):
        return None, None, {"dataset": type(data).__name__}
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
    return images, known, source


def describe(encoder, source):
    """Provenance of what an encoder makes of a source: its preset and probe family where it has them, and versions."""
    return {
        **provenance_notes.of(encoder),
        "encoder": encoder.name,
        **source,
        "keras": keras.__version__,
        "backend": keras.backend.backend(),
        "dtype_policy": _dtype_policy(encoder),
    }


def _slices(images, start, batch_size, channels):
    """Batches of the images from `start` on: (images (B, H, W, C), no labels, no mark)."""
    for begin in range(start, len(images), batch_size):
        yield datasets.as_images(images[begin : begin + batch_size], channels), None, None


def _batches(data, channels, labelled, store, *, hashed):
    """Batches of an iterable behind those that `store` holds: (images (B, H, W, C), labels or None, mark).

    The mark of a batch tells the images and labels up to its end from others and from another order. That at the end of
    the recorded ones must be the recorded mark.
    """
    recorded, expected = store.rows, store.mark
    seen, digest = 0, b""
    for batch in data:
        images, labels = _pair(batch)
        images = datasets.as_images(images, channels)
        if not len(images):
            continue
        labels = datasets.check_labels(labels, len(images)) if labelled and labels is not None else None
        digest = _chained(digest, images, labels) if hashed else digest
        mark = {"images": digest.hex(), "image_shape": list(images.shape[1:])}
        before, seen = seen, seen + len(images)
        if before >= recorded:
            yield images, labels, mark
        elif seen > recorded or (seen == recorded and mark != expected):
            raise store.disagree()
    if seen < recorded:
        raise store.disagree()


def _chained(digest, images, labels):
    """SHA-256 over the digest so far and one more batch; 1,024 scattered values stand for a larger image."""
    digest = hashlib.sha256(digest + f"{images.shape} {images.dtype} {labels is None}".encode())
    flat = images.reshape(len(images), -1)  # (B, P)
    if flat.shape[1] > 1024:
        flat = flat[:, np.arange(1024) * 2654435761 % flat.shape[1]]  # (B, 1024)
    digest.update(_bytes(flat))
    if labels is not None:
        digest.update(_bytes(labels))
    return digest.digest()


def _layers(layer):
    """A model's layers, those within its layers too."""
    for inner in getattr(layer, "layers", ()):
        yield from (inner, *_layers(inner))


def _dtype_policy(encoder):
    """Names of the policies of the layers that have weights: a model's own says nothing of its layers."""
    found = {layer.dtype_policy.name for layer in _layers(encoder) if layer.weights and not hasattr(layer, "layers")}
    return ", ".join(sorted(found)) or getattr(encoder, "dtype_policy", keras.config.dtype_policy()).name


_NAMES = {"name", "inbound_nodes", "input_layers", "output_layers"}


def _nameless(config):
    """A configuration without names: Keras numbers those of layers anew for each model of a process."""
    if isinstance(config, dict):
        return {key: _nameless(value) for key, value in config.items() if key not in _NAMES}
    return [_nameless(value) for value in config] if isinstance(config, list | tuple) else config


def _digest(encoder):
    """SHA-256 over the configuration and over the shapes, types and values of all weights, in hexadecimal digits."""
    if not getattr(encoder, "built", False):
        raise ValueError(
            f"`encoder` should have weights that stay the same. Received: {encoder.name!r}, which is not built yet, so "
            "each run would start from others. Call it once on a batch of images, and load its weights."
        )
    digest = hashlib.sha256()
    with contextlib.suppress(NotImplementedError):  # a model of somebody's own need not have one
        digest.update(json.dumps(_nameless(encoder.get_config()), sort_keys=True, default=str).encode())
    for weight in encoder.weights:
        value = keras.ops.convert_to_numpy(weight)
        digest.update(f"{value.shape} {value.dtype}".encode())
        digest.update(_bytes(value))
    return digest.hexdigest()


def _bytes(array):
    """The bytes of an array, also of a type that has no buffer of its own, such as bfloat16."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _pair(batch):
    """(images, labels or None) of a batch that may hold either."""
    if not isinstance(batch, tuple | list):
        return batch, None
    return (batch[0], batch[1]) if len(batch) > 1 else (batch[0], None)


def encode(encoder, images, batch_size):
    """float32 (B, D). A short batch is filled up to `batch_size`, so that nothing is compiled for it alone."""
    count = len(images)
    size = max(batch_size or 0, count)
    size += -size % distribution.parts_of_batch(encoder)  # each device takes as many
    if count < size:
        images = np.concatenate([images, np.zeros((size - count, *images.shape[1:]), images.dtype)])
    output = encoder.predict_on_batch(images)
    if not hasattr(output, "ndim") or output.ndim != 2:
        shape = getattr(output, "shape", type(output).__name__)
        raise ValueError(f"`encoder` should return features (B, D). Received: {shape}. Pool or flatten its output.")
    return datasets.to_numpy(output)[:count].astype(np.float32)
