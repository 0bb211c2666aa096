"""Images that lie on the accelerator, where batches are gathered."""

import keras
import numpy as np
from keras import ops


class DeviceImages:
    """Images in memory that are copied to the accelerator once: looks like the uint8 array (N, H, W, 3) it holds.

    What is indexed comes from the host, as a NumPy array. `gather` makes batches on the device. Both copies are kept:
    fingerprints, probes and pictures want the one on the host.

    Args:
        images: uint8 array (N, H, W, 3).

    Raises:
        ValueError: Another array; on TensorFlow, whose `fit` takes every batch through the host.

    Example:

    ```python
    images = keras_issl.datasets.DeviceImages(np.zeros((100, 32, 32, 3), "uint8"))
    images.gather(images.to_device([3, 1, 4])).shape  # (3, 32, 32, 3)
    ```
    """

    ndim = 4

    def __init__(self, images):
        check_on_device()
        is_array = isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 4
        if not is_array or images.shape[-1] != 3:
            raise ValueError(
                f"`images` should be a NumPy array (N, H, W, 3) of uint8. Received: {type(images).__name__}"
                f"{getattr(images, 'shape', '')} of {getattr(images, 'dtype', 'no dtype')}."
            )
        self._host, self._device = images, None

    @property
    def shape(self):
        return self._host.shape

    @property
    def dtype(self):
        return self._host.dtype

    @property
    def nbytes(self):
        """Bytes that they take on the device, and again on the host."""
        return self._host.nbytes

    @property
    def copied(self):
        """Whether they have been copied to the device."""
        return self._device is not None

    def __len__(self):
        return len(self._host)

    def __array__(self, dtype=None, copy=None):
        return np.array(self._host, dtype, copy=copy)

    def __getitem__(self, indices):
        return self._host[indices]

    def subset(self, indices):
        """The images at `indices`, to be copied to the device themselves."""
        return DeviceImages(self._host[indices])

    @staticmethod
    def to_device(indices):
        """Indices (M,) as a tensor on the device: whoever gathers parts of it waits for no copy."""
        return ops.convert_to_tensor(np.asarray(indices, np.int32))

    def gather(self, indices):
        """The images at `indices`, a tensor (B,), as a tensor (B, H, W, 3). The first call copies all images."""
        if self._device is None:  # not sooner: in a process of several, which device is its own is known by now
            # On a CPU PyTorch shares the array, and warns of one that it must not write to.
            host = self._host if self._host.flags.writeable else self._host.copy()
            self._device = ops.convert_to_tensor(host)  # (N, H, W, 3)
        return ops.take(self._device, indices, axis=0)


def check_on_device():
    """Raises a `ValueError` on TensorFlow, whose `fit` takes every batch through the host."""
    backend = keras.config.backend()
    if backend not in ("jax", "torch"):
        raise ValueError(
            "Images should be put on the device on JAX or PyTorch only: on TensorFlow Keras takes every batch through "
            f"the host (`tf.data.Dataset.from_generator`), and reads ahead. Received: the backend {backend!r}. Leave "
            "the images where they are, or set KERAS_BACKEND."
        )
