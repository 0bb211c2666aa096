"""`extract_views`: the representations of several augmented views of each image, what diagnostics look at."""

import dataclasses

import keras
import numpy as np

from keras_issl import datasets, distribution, encoders
from keras_issl.features.arrays import Features, check_finite
from keras_issl.features.extraction import describe, encode, source_of


@dataclasses.dataclass(frozen=True)
class Views:
    """The representations of V augmented views of each of N images.

    Attributes:
        array: float32 (V, N, D); views of one image share the second index.
        labels: int64 (N,), -1 for none; or None.
        provenance: as in `Features`, with the augmentation.

    Raises:
        ValueError: an array that is not (V, N, D) with two views at least, NaN or infinity, labels that do not fit.

    Example:

    ```python
    views = keras_issl.features.Views(np.zeros((2, 5, 3)))
    views.view(0).array.shape  # (5, 3)
    ```
    """

    array: np.ndarray
    labels: np.ndarray | None = None
    provenance: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        array = datasets.to_numpy(self.array)
        if array.ndim != 3 or array.shape[0] < 2 or 0 in array.shape:
            raise ValueError(
                "`array` should have shape (V, N, D): at least two views of each image, views first. Received: shape "
                f"{array.shape}."
            )
        array = array.astype(np.float32, copy=False)
        for view in array:
            check_finite(view, "array")
        object.__setattr__(self, "array", array)
        if self.labels is not None:
            object.__setattr__(self, "labels", datasets.check_labels(self.labels, array.shape[1]))
        object.__setattr__(self, "provenance", dict(self.provenance))

    def __len__(self):
        return self.array.shape[1]

    def view(self, index):
        """One view of every image, as `Features`."""
        return Features(self.array[index], self.labels, self.provenance)

    def subset(self, indices):
        """All views of the images at `indices` (integers, a boolean mask or a slice), in that order."""
        labels = None if self.labels is None else self.labels[indices]
        return Views(self.array[:, indices], labels, self.provenance)


def extract_views(encoder, data, augmentation, *, num_views=4, batch_size=256, seed=0, provenance=None, verbose="auto"):
    """The encoder's representation, in inference mode, of several augmented views of every image.

    Args:
        encoder: a Keras model from images (B, H, W, C), RGB in [0, 255], to (B, D).
        data: an `ImageDataset`; an array (N, H, W[, C]); or a tuple (array, labels).
        augmentation: a layer or callable from images (B, H, W, C) in [0, 255] to a list of views (B, h, w, C), such as
            the one that the encoder was trained with. One of this library's is copied with `num_views` and `seed`, and
            stays as it is; another is called until there are enough views.
        num_views: V, views of each image.
        batch_size: images that are augmented at a time.
        seed: of the views, where the augmentation is a layer with a `seed`: the same call gives the same views.
        provenance: more entries for `Views.provenance`.
        verbose: progress on stderr: True, False, or `"auto"`, on a terminal and after three seconds.

    Returns:
        `Views`: array (V, N, D), labels (or None) and provenance.

    Raises:
        ValueError: no images, fewer than two views, an augmentation that returns no list of views, an encoder whose
            output is not (B, D), NaN or infinity in it.

    Example:

    ```python
    encoder = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    data = keras_issl.datasets.load("digits", split="test").take(32)
    views = keras_issl.features.extract_views(encoder, data, keras_issl.augmentations.Affine(8), num_views=2)
    views.array.shape  # (2, 32, 192)
    ```
    """
    for name, value, least in (("num_views", num_views, 2), ("batch_size", batch_size, 1)):
        if not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"`{name}` should be an integer of at least {least}. Received: {value!r}.")
    channels = encoders.image_channels(encoder)
    images, labels, source = source_of(data, channels)
    if images is None:
        raise ValueError(
            f"`data` should be an ImageDataset, an array or (array, labels). Received: {type(data).__name__}."
        )
    make_views, described = _view_maker(augmentation, int(num_views), seed)
    progress = datasets.progress_line(len(images), "features of views", verbose, begun=0)
    array, size = None, min(int(batch_size), len(images))
    for begin in range(0, len(images), size):
        batch = datasets.as_images(images[begin : begin + size], channels)  # (B, H, W, C)
        count = len(batch)
        if count < size:  # filled up, so that nothing is compiled for a short batch alone
            batch = np.concatenate([batch, np.zeros((size - count, *batch.shape[1:]), batch.dtype)])
        for index, view in enumerate(make_views(batch)):
            features = encode(encoder, view, None)[:count]  # (B, D)
            if array is None:
                array = np.empty((num_views, len(images), features.shape[1]), np.float32)
            array[index, begin : begin + count] = features
        progress(begin + count)
    origin = describe(encoder, source) | {
        "image_shape": list(images.shape[1:]),
        "augmentation": described,
        "num_views": int(num_views),
    }
    known = None if labels is None or not (labels >= 0).any() else labels
    return Views(array, known, {**origin, **(provenance or {})})


class ViewMaker(keras.Model):
    """An augmentation as a model: `predict_on_batch` compiles it where the backend does."""

    def __init__(self, augmentation):
        super().__init__(autocast=False, name="view_maker")
        self.augmentation = augmentation
        self.built = True

    def call(self, images, training=None):
        return self.augmentation(images, training=True)


def _view_maker(augmentation, num_views, seed):
    """A function from a NumPy batch to V NumPy views (B, h, w, C), and what the augmentation is, for JSON."""
    config = augmentation.get_config() if isinstance(augmentation, keras.layers.Layer) else {}
    described = {"name": type(augmentation).__name__, **{k: v for k, v in config.items() if k not in ("name", "dtype")}}
    if {"seed", "num_views"} <= set(config):
        copy = type(augmentation).from_config({**config, "num_views": num_views, "seed": seed})
        described |= {"num_views": num_views, "seed": seed}
        model = ViewMaker(copy)
        model.compile(jit_compile=distribution.jit_compile_default())
        draw = model.predict_on_batch
    elif callable(augmentation):
        takes_training = getattr(augmentation, "_call_has_training_arg", False)
        options = {"training": True} if takes_training else {}

        def draw(batch):
            return augmentation(keras.ops.convert_to_tensor(batch), **options)
    else:
        raise ValueError(f"`augmentation` should be a layer or callable. Received: {augmentation!r}.")

    def make_views(batch):
        views = []
        while len(views) < num_views:
            with distribution.alone():  # batches of any size
                drawn = draw(batch)
            if not isinstance(drawn, list | tuple) or not drawn:
                raise ValueError(
                    "`augmentation` should return a list of views, each of shape (batch, height, width, channels). "
                    f"Received: {type(drawn).__name__}."
                )
            views += [datasets.to_numpy(view) for view in drawn]
        return views[:num_views]

    return make_views, described
