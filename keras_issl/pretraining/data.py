"""What `fit` and `evaluate` take, turned into batches, and held against the objective before anything is trained."""

import warnings

import keras
import numpy as np
from keras import ops

from keras_issl import datasets, distribution, encoders
from keras_issl.pretraining.online_probe import check_labels

DEFAULT_BATCH_SIZE = 256


def is_array(x):
    """Whether `fit` would slice it: an array or tensor, not a stream of batches."""
    return hasattr(x, "shape") and hasattr(x, "dtype") and not isinstance(x, keras.utils.PyDataset)


class Feeding:
    """Mixin of the `Pretrainer`: data in, batches out."""

    def _hold_out(self, x, y, fraction, validation_data):
        if not is_array(x) or not 0 < fraction < 1 or validation_data is not None:
            raise ValueError(
                "`validation_split` should be a fraction between 0 and 1, of an array of images, without "
                f"`validation_data`. Received: validation_split={fraction}, x of type {type(x).__name__}"
            )
        cut = round(len(x) * (1 - fraction))
        first, second = slice(cut), slice(cut, None)
        parts = [x.subset(part) if isinstance(x, datasets.DeviceImages) else x[part] for part in (first, second)]
        return parts[0], None if y is None else y[first], (parts[1], None if y is None else y[second])

    def _channels(self):
        return encoders.image_channels(self.encoder)

    def _stream(self, x, y, batch_size, shuffle, steps=None, fit=True):
        """Turns images into batches of our own, and drops incomplete batches where they change the loss."""
        parts = distribution.parts_of_batch(self)
        whole = self.objective.needs_batch_statistics or parts > 1
        if isinstance(x, tuple) and y is None and 1 <= len(x) <= 2:
            x, y = x[0], x[1] if len(x) == 2 else None
        blocks = None
        if isinstance(x, datasets.ImageDataset):
            images, y, blocks = x.images, x.labels if x.has_labels else None, x.blocks
        elif is_array(x):
            images = datasets.as_images(x, self._channels())
            datasets.check_range(images)
        else:
            return self._checked_stream(x, whole, steps, fit, parts), y
        count = len(images)
        if count == 0:
            raise ValueError("`x` should hold at least one image. Received an empty array.")
        labels = None
        if self.online_probe is not None and (fit or y is not None):
            labels = check_labels(self.online_probe, y, count, needed=fit)
        if count < parts:
            raise ValueError(f"`x` should hold at least an image for each of {parts} devices. Received: {count}.")
        most = DEFAULT_BATCH_SIZE if batch_size is None else batch_size
        size = most if fit and batch_size is not None else min(most, count)
        if batch_size is None or not fit:  # a size of our own choice
            size -= size % parts
        distribution.check_batch(size, parts)
        self._check_batch_size(size)
        if whole and size <= count and count % size:
            self._say_drop(f"{count % size} images of the incomplete last batch")
        order = {"shuffle": shuffle, "seed": self.seed, "steps_per_epoch": steps, "blocks": blocks}
        order["share"] = distribution.share_of_process()
        return datasets.Batches(images, labels, batch_size=size, drop_last=whole, **order), None

    def _checked_stream(self, x, whole, steps, fit, parts):
        """A stream of batches without an incomplete last one; what can be seen of it ahead of time is checked."""
        x = datasets.as_py_dataset(x)
        processes = distribution.share_of_process()[1]
        if isinstance(x, datasets.Batches):
            distribution.check_batch(x.batch_size, parts)
            changes = {} if steps is None else {"steps_per_epoch": steps}
            changes |= {} if x.share[1] == processes else {"share": distribution.share_of_process()}
            x = x.replace(**changes) if changes else x
        elif parts > 1:  # what each process brings is its own part, for its own devices
            self._check_local_batch(x, self._local_parts())
        if isinstance(x, keras.utils.PyDataset) and x.num_batches != 0:
            batch = x[0]
            images = batch[0] if isinstance(batch, (tuple, list)) else batch
            self._check_batch_size(len(images))
            if fit:
                self.images_per_step = len(images) * processes
            datasets.as_images(images, self._channels())
            if processes > 1 and not isinstance(x, datasets.Batches):
                distribution.check_parts(images)
        if whole:
            x, dropped = datasets.drop_incomplete(x)
            if dropped:
                self._say_drop("the incomplete last batch")
        return x

    def _local_parts(self):
        """Devices that this process feeds, each with an equal part of what it brings."""
        return distribution.parts_of_batch(self) // distribution.share_of_process()[1]

    @staticmethod
    def _check_local_batch(x, devices):
        """Refuses a stream whose batches may not be split evenly over the devices that this process feeds."""
        if devices == 1:
            return
        size = datasets.batch_size_of(x)
        if size is None and isinstance(x, keras.utils.PyDataset) and x.num_batches != 0:
            size = len(keras.tree.flatten(x[0])[0])
        if size is None:
            raise ValueError(
                f"`x` should give batches of one known size on {devices} devices, which each take a part of it. "
                f"Received: a {type(x).__name__} that does not say. Use `batch(size, drop_remainder=True)`."
            )
        distribution.check_batch(int(size), devices, name="x")

    def _check_batch_size(self, size):
        if self.objective.needs_batch_statistics and size < 2:
            raise ValueError(
                f"`batch_size` should be at least 2 images for {type(self.objective).__name__}, whose loss compares "
                f"the images of a batch. Received: {size}"
            )

    def _say_drop(self, left):
        if not self._said_drop:
            warnings.warn(
                (
                    f"{type(self.objective).__name__} couples the images of a batch"
                    if self.objective.needs_batch_statistics
                    else "A batch is split evenly over the devices"
                )
                + f", so {left} will be left out of every epoch. A batch size that divides the number of images avoids "
                "this.",
                stacklevel=4,
            )
            self._said_drop = True

    def _begin_run(self, x, epochs, place, steps):
        """Holds the run against the objective and the encoder before anything is trained.

        It begins at `place`, (epoch, batch).
        """
        objective, kind = self.objective, type(self.objective).__name__
        steps, done = steps or datasets.count_batches(x), distribution.as_int(self.steps)
        size = x.batch_size if isinstance(x, datasets.Batches) else None
        local, processes = datasets.batch_size_of(x), distribution.share_of_process()[1]
        self.images_per_step = size or self.images_per_step or (local and local * processes)
        objective.check_run(batch_size=size, epochs=epochs, steps_per_epoch=steps)
        if objective.uses_run_length:
            if steps is None:
                raise ValueError(
                    f"`steps_per_epoch` should be given: the schedules of {kind} end with the run, and this stream "
                    f"does not say how long it is. Received: x of type {type(x).__name__}"
                )
            # The schedules run along the epochs that this call counts: a second `fit` is a run of its own.
            objective.set_run_length(epochs, steps, first_step=done - place[0] * steps - place[1])
        if isinstance(x, datasets.Batches) and not isinstance(self.encoder, encoders.ResNet) and not done:
            self._check_features(x)

    def _check_features(self, batches):
        """A foreign encoder is tried on a few images: after a step NaN would be everywhere."""
        batch = batches.batch(0, 0)
        images = batch[0] if isinstance(batch, tuple) else batch
        views = self.views(self._to_encoder_channels(images[: 2 * self._local_parts()]), training=False)
        features = ops.convert_to_numpy(self.encoder.predict_on_batch(views[0]))
        if not np.isfinite(features).all():
            raise ValueError(
                "`encoder` should return finite features. Received: "
                f"{self.encoder.name}, whose features of the first images hold NaN or infinite values, before any "
                "training. Look at its weights, and at the range of its input: images are in [0, 255] "
                "(encoders.Adapter takes `scale` and `offset`)."
            )
