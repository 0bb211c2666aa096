"""`Features`: an array of representations, its labels and where it comes from."""

import dataclasses
import os
import tempfile

import numpy as np

from keras_issl import datasets
from keras_issl.features import files


@dataclasses.dataclass(frozen=True)
class Features:
    """The representations of a dataset.

    Attributes:
        array: float32 (N, D); a float32 array is kept as it is, also where it is memory-mapped.
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
        array = array.astype(np.float32, copy=False)
        check_finite(array, "array")
        object.__setattr__(self, "array", array)
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
        """Writes a NumPy archive or a Parquet file, block by block. Whole or not at all.

        Args:
            path: the file; an existing one is replaced only by a complete new one. One that ends in `.parquet` becomes
                Parquet (columns `features` and, if any, `label`; needs `keras_issl[data]`); any other a NumPy archive
                of `array`, `labels` (if any) and `provenance` as JSON.
        """
        path = os.path.abspath(path)
        write = files.write_parquet if path.endswith(".parquet") else files.write_npz
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".features-")
        try:
            with os.fdopen(handle, "w+b") as file:
                write(file, self.array, self.labels, self.provenance)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise

    @classmethod
    def load(cls, path, *, mmap=False):
        """Reads what `save` or `extract_features` wrote. Nothing in the file is executed.

        Args:
            path: the file; one that ends in `.parquet` is read as Parquet.
            mmap: whether to leave the array on disk and map it, read-only, so that it need not fit in memory. It is
                read once, block by block, in search of NaN; the file may be deleted or replaced (`save` does), but not
                written over. The values of a Parquet file do not lie there as an array: they are copied to a nameless
                file in the same folder, which vanishes with the array.

        Raises:
            ValueError: a file that `save` did not write, or only in part.
            ImportError: a Parquet file, and pyarrow is not installed.

        Example:

        ```python
        train.save("features.npz")
        features = keras_issl.Features.load("features.npz", mmap=True)
        features.array[:10]  # reads ten rows
        ```
        """
        read = files.read_parquet if str(path).endswith(".parquet") else files.read_npz
        try:
            return cls(*read(os.path.abspath(path), mmap))
        except (FileNotFoundError, ImportError):
            raise
        except Exception as error:  # zipfile, NumPy, Arrow and JSON each have their own for a damaged file
            raise ValueError(
                f"`path` should be a file written by `Features.save`. Received: {path}, which fails with "
                f"{type(error).__name__}: {error}"
            ) from error


def check_finite(array, argument, first_row=0):
    """Raises a `ValueError` that names the first row of (N, D) with NaN or infinity. Works block by block.

    Args:
        array: (N, D).
        argument: what gave it, for the message.
        first_row: the number of the array's first row among all.
    """
    count, first, done = 0, None, 0
    for block in files.blocks(array):
        bad = ~np.isfinite(block).all(axis=1)  # (rows,)
        if first is None and bad.any():
            first = first_row + done + int(bad.argmax())
        count, done = count + int(bad.sum()), done + len(block)
    if count:
        raise ValueError(
            f"`{argument}` should give finite features. Received: NaN or infinity in {count} of {len(array)} rows, "
            f"first in row {first}."
        )
