"""The training model: images -> views -> features -> objective, under plain `compile` and `fit`."""

import warnings

import keras
import numpy as np
from keras import ops

from keras_issl import datasets, distribution, encoders, provenance
from keras_issl.callbacks import NaNGuard

DEFAULT_BATCH_SIZE = 256


def _is_array(x):
    """Whether `fit` would slice it: an array or tensor, not a stream of batches."""
    return hasattr(x, "shape") and hasattr(x, "dtype") and not isinstance(x, keras.utils.PyDataset)


@keras.saving.register_keras_serializable(package="keras_issl")
class Pretrainer(keras.Model):
    """Trains an encoder without labels: an augmentation makes views, an objective scores their features.

    Args:
        encoder: A model from images (N, H, W, C) in [0, 255] to features (N, D): `encoders.ResNet`,
            or any other through `encoders.Adapter`.
        objective: What to train for, e.g. `objectives.DISSL()`.
        augmentation: A layer or callable from images (B, H, W, C) in [0, 255] to a list of views
            (B, h, w, C), e.g. `augmentations.SimCLR(32, preset="cifar10")`. `None` passes copies.
        seed: Decides the order in which `fit` takes the images of an array.

    `fit` takes an array of images, (images, labels), an `ImageDataset`, a `tf.data.Dataset`, a
    `PyDataset` or a grain dataset; labels are ignored. Where the loss couples the images of a batch
    the incomplete last batch is dropped, with one warning. `evaluate` is the loss on views drawn
    with a fixed seed, in inference mode. `predict` gives features, (N, D) float32. The encoder stays
    a model of its own: `model.encoder.predict`, `model.encoder.save`.

    Besides the loss, logs hold what the objective declares in `log_names`.

    Raises:
        ValueError: The encoder's features are not (N, D); the augmentation gives fewer views than
            the objective needs; images of the wrong rank, empty, or with NaN or infinite values.

    Source: Dubois et al. 2022, §5.

    Example:

    >>> encoder = keras_issl.encoders.ResNet(18, image_size=32, width=8)
    >>> model = keras_issl.Pretrainer(encoder, keras_issl.objectives.DISSL(num_classes=64))
    >>> model.compile(optimizer="adam")
    >>> history = model.fit(np.random.randint(0, 256, (32, 32, 32, 3), "uint8"), batch_size=16, verbose=0)
    """

    def __init__(self, encoder, objective, augmentation=None, *, seed=0, **kwargs):
        # Views are made from uint8 or float32 images: nothing may round the input to bfloat16 first.
        super().__init__(autocast=False, **kwargs)
        if objective.teacher_momentum is not None:
            raise ValueError(
                "`objective` should not ask for a moving-average teacher: this version has none. "
                f"Received: {objective.name} with teacher_momentum={objective.teacher_momentum}"
            )
        self.encoder, self.objective, self.augmentation, self.seed = encoder, objective, augmentation, seed
        # Everything is built here: values assigned while `fit` builds a model are lost in its scope.
        width = encoders.feature_dim(encoder)
        if not objective.built:
            objective.build((objective.num_views, None, width))
            objective.built = True
        provenance.note(encoder, probe=provenance.probe_family(objective))
        self.steps = self.add_weight(shape=(), dtype="int32", trainable=False, initializer="zeros", name="steps")
        self.log_trackers = {name: keras.metrics.Mean(name=name) for name in objective.log_names}
        self._said_drop, self._scoring = False, False
        self.built = True

    # ------------------------------------------------------------------ one step
    def views(self, images, training=True):
        """Views of a batch: a list of at least `objective.num_views` tensors (B, h, w, C).

        Args:
            images: (B, H, W, C) in [0, 255].
            training: `False` draws with a fixed seed.
        """
        if self.augmentation is None:
            return [images] * self.objective.num_views
        if getattr(self.augmentation, "_call_has_training_arg", False):
            views = self.augmentation(images, training=training)
        else:
            views = self.augmentation(images)
        if not isinstance(views, (list, tuple)) or len(views) < self.objective.num_views:
            count = len(views) if isinstance(views, (list, tuple)) else type(views).__name__
            raise ValueError(
                f"`augmentation` should return a list of at least {self.objective.num_views} views for "
                f"{type(self.objective).__name__}. Received: {count}. "
                f"Pass num_views={self.objective.num_views} to it."
            )
        return list(views)

    def features(self, views, training=True):
        """Features (V, B, D) of a list of V views; views of one size go through the encoder together."""
        stacked, start = [], 0
        while start < len(views):
            shape, end = tuple(views[start].shape[1:]), start + 1
            while end < len(views) and tuple(views[end].shape[1:]) == shape:
                end += 1
            group = views[start] if end == start + 1 else ops.concatenate(views[start:end], axis=0)  # (k·B, h, w, C)
            x = self.encoder(group, training=training)  # (k·B, D)
            stacked.append(ops.reshape(x, (end - start, -1, x.shape[-1])))  # (k, B, D)
            start = end
        return stacked[0] if len(stacked) == 1 else ops.concatenate(stacked, axis=0)

    def outputs(self, images, training=True):
        """The objective's outputs for the views of a batch of images."""
        features = self.features(self.views(images, training=training), training=training)
        return self.objective(features, training=training)

    def call(self, images, training=None):
        images = self._to_encoder_channels(images)
        if training or self._scoring:
            return self.outputs(images, training=bool(training))
        return self.encoder(images, training=False)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if not isinstance(y_pred, dict):  # `test_on_batch`: the forward pass gave features, the loss needs views
            y_pred = self.outputs(self._to_encoder_channels(x), training=False)
        loss, logs = self.objective.compute_loss(y_pred, self.steps)
        for name, value in logs.items():
            self.log_trackers[name].update_state(value)
        for penalty in self.losses:
            loss = loss + ops.cast(penalty, loss.dtype)
        if training:
            self.steps.assign_add(1)
        return loss

    def _to_encoder_channels(self, images):
        """One-channel images are repeated to RGB when the encoder takes RGB."""
        images = ops.convert_to_tensor(images)
        if len(images.shape) != 4:
            raise ValueError(
                f"Images should have shape (batch, height, width, channels). Received shape: {tuple(images.shape)}"
            )
        if images.shape[-1] == 1 and self._channels() == 3:
            images = ops.repeat(images, 3, axis=-1)
        return images

    # ------------------------------------------------------------------ compile, fit, evaluate
    def compile(self, optimizer="adam", *, jit_compile="auto", **kwargs):
        """As `keras.Model.compile`, without `loss`: the objective is the loss.

        Args:
            optimizer: A Keras optimizer or its name.
            jit_compile: `"auto"` is Keras's own choice, except for TensorFlow on a CPU: there XLA is
                ten times slower on convolutions, and is left off.
            **kwargs: As `keras.Model.compile`.
        """
        for name in ("loss", "metrics", "weighted_metrics"):
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"`{name}` should be left out of `compile`: the objective given to Pretrainer is the loss, and "
                    f"names what is logged. Received: {kwargs[name]!r}"
                )
        if jit_compile == "auto":
            jit_compile = distribution.jit_compile_default()
        super().compile(optimizer=optimizer, jit_compile=jit_compile, **kwargs)

    def compile_from_config(self, config):
        """Compiles a model that was loaded from a `.keras` file."""
        config = keras.saving.deserialize_keras_object(config)
        # What suited the machine it was saved on need not suit this one.
        self.compile(**config | {"jit_compile": "auto"})
        self.optimizer.build(self.trainable_variables)

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        validation_split=0.0,
        validation_data=None,
        shuffle=True,
        steps_per_epoch=None,
        **kwargs,
    ):
        """As `keras.Model.fit`; see the class for what `x` may be. `batch_size` defaults to 256."""
        if validation_split:
            x, y, validation_data = self._hold_out(x, y, validation_split, validation_data)
        reorder = shuffle and isinstance(x, keras.utils.PyDataset)  # other streams bring their own order
        x, y = self._stream(x, y, batch_size, shuffle=shuffle, steps=steps_per_epoch)
        if validation_data is not None:
            pair = validation_data if isinstance(validation_data, tuple) else (validation_data, None)
            size = kwargs.pop("validation_batch_size", None) or batch_size
            validation_data, _ = self._stream(pair[0], None, size, shuffle=False, fit=False)
        if isinstance(x, datasets.Batches):  # its order is its own: a pure function of seed and epoch
            callbacks = self._with(callbacks, x.callback())
            reorder, steps_per_epoch = False, None  # the batches hold them
        callbacks = self._with(callbacks, NaNGuard())
        return super().fit(
            x,
            y,
            epochs=epochs,
            verbose=verbose,
            callbacks=callbacks,
            validation_data=validation_data,
            shuffle=reorder,
            steps_per_epoch=steps_per_epoch,
            **kwargs,
        )

    @staticmethod
    def _with(callbacks, extra):
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks.callbacks.insert(0, extra)
            return callbacks
        return [extra, *keras.tree.flatten(callbacks or [])]

    def evaluate(self, x=None, y=None, batch_size=None, verbose="auto", **kwargs):
        """As `keras.Model.evaluate`: the loss on views drawn with a fixed seed, in inference mode."""
        if not kwargs.get("_use_cached_eval_dataset"):  # else `fit` calls, and has prepared the data
            x, y = self._stream(x, y, batch_size, shuffle=False, fit=False)
        self._scoring = True
        try:
            return super().evaluate(x, y, verbose=verbose, **kwargs)
        finally:
            self._scoring = False

    def predict(self, x, batch_size=None, verbose="auto", **kwargs):
        """Features (N, D), float32, of what `fit` takes.

        Args:
            x: An array (N, H, W, C), (N, H, W, 1) or (N, H, W), a tuple of images and labels, an
                `ImageDataset`, or any stream that `keras.Model.predict` takes.
            batch_size: Images a forward pass, 256 by default for arrays.
            verbose: As `keras.Model.predict`.
            **kwargs: As `keras.Model.predict`.
        """
        x = datasets.as_py_dataset(x[0] if isinstance(x, tuple) else x)
        if isinstance(x, datasets.ImageDataset) or _is_array(x):
            images = x.images if isinstance(x, datasets.ImageDataset) else datasets.as_images(x, self._channels())
            x = datasets.Batches(images, batch_size=batch_size or DEFAULT_BATCH_SIZE, shuffle=False)
            batch_size = None
        scoring, self._scoring = self._scoring, False  # a callback may ask for features within `evaluate`
        try:
            return super().predict(x, batch_size=batch_size, verbose=verbose, **kwargs)
        finally:
            self._scoring = scoring

    def _hold_out(self, x, y, fraction, validation_data):
        if not _is_array(x) or not 0 < fraction < 1 or validation_data is not None:
            raise ValueError(
                "`validation_split` should be a fraction between 0 and 1, of an array of images, without "
                f"`validation_data`. Received: validation_split={fraction}, x of type {type(x).__name__}"
            )
        cut = round(len(x) * (1 - fraction))
        return x[:cut], None if y is None else y[:cut], (x[cut:],)

    def _channels(self):
        return encoders.image_channels(self.encoder)

    def _stream(self, x, y, batch_size, shuffle, steps=None, fit=True):
        """Turns images into batches of our own, and drops incomplete batches where they change the loss."""
        whole = self.objective.needs_batch_statistics
        if isinstance(x, tuple) and y is None and 1 <= len(x) <= 2:
            x = x[0]
        if isinstance(x, datasets.ImageDataset):
            images = x.images
        elif _is_array(x):
            images = datasets.as_images(x, self._channels())
            datasets.check_range(images)
        else:
            return self._checked_stream(x, whole, steps), y
        count = len(images)
        if count == 0:
            raise ValueError("`x` should hold at least one image. Received an empty array.")
        size = batch_size or min(DEFAULT_BATCH_SIZE, count)
        size = size if fit else min(size, count)
        self._check_batch_size(size)
        if whole and size <= count and count % size:
            self._say_drop(f"{count % size} images of the incomplete last batch")
        order = {"shuffle": bool(shuffle), "seed": self.seed, "steps_per_epoch": steps}
        return datasets.Batches(images, batch_size=size, drop_last=whole, **order), None

    def _checked_stream(self, x, whole, steps):
        """A stream of batches without an incomplete last one; what can be seen of it ahead of time is checked."""
        x = datasets.as_py_dataset(x)
        if isinstance(x, datasets.Batches) and steps is not None:
            x = x.replace(steps_per_epoch=steps)
        if isinstance(x, keras.utils.PyDataset) and x.num_batches != 0:
            batch = x[0]
            images = batch[0] if isinstance(batch, (tuple, list)) else batch
            self._check_batch_size(len(images))
            datasets.as_images(images, self._channels())
        if whole:
            x, dropped = datasets.drop_incomplete(x)
            if dropped:
                self._say_drop("the incomplete last batch")
        return x

    def _check_batch_size(self, size):
        if self.objective.needs_batch_statistics and size < 2:
            raise ValueError(
                f"`batch_size` should be at least 2 images for {type(self.objective).__name__}, whose loss compares "
                f"the images of a batch. Received: {size}"
            )

    def _say_drop(self, left):
        if not self._said_drop:
            warnings.warn(
                f"{type(self.objective).__name__} couples the images of a batch, so {left} will be left out of "
                "every epoch. A batch size that divides the number of images avoids this.",
                stacklevel=4,
            )
            self._said_drop = True

    # ------------------------------------------------------------------ saving
    def _seed_states(self):
        return [v for v in self.non_trainable_variables if "seed_generator_state" in v.path]

    def save_own_variables(self, store):
        """Adds the random states of the layers to the weights, which Keras leaves out of them."""
        super().save_own_variables(store)
        for i, state in enumerate(self._seed_states()):
            store[f"seed_{i}"] = ops.convert_to_numpy(state.value)

    def load_own_variables(self, store):
        states = self._seed_states()
        for i, state in enumerate(states):
            if f"seed_{i}" in store:
                state.assign(np.asarray(store[f"seed_{i}"]))
        own = {key: store[key] for key in store.keys() if not key.startswith("seed_")}  # noqa: SIM118  an HDF5 view
        super().load_own_variables(own)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        augmentation = None if self.augmentation is None else serialize(self.augmentation)
        return {
            "name": self.name,
            "encoder": serialize(self.encoder),
            "objective": serialize(self.objective),
            "augmentation": augmentation,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        for name in ("encoder", "objective", "augmentation"):
            config[name] = keras.saving.deserialize_keras_object(config[name], custom_objects=custom_objects)
        return cls(**config)
