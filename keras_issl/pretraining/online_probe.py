"""A linear probe that learns beside the encoder, inside the same `fit`, without touching it."""

import keras
import numpy as np
from keras import ops

from keras_issl import distribution
from keras_issl.pretraining.encoding import plain_errors

ONLINE = "online_features"  # their place beside the objective's outputs


@keras.saving.register_keras_serializable(package="keras_issl")
class LabelledMean(keras.metrics.Mean):
    """The mean over labelled images; NaN, not 0, where there was none."""

    def result(self):
        return ops.where(self.count > 0, super().result(), float("nan"))


@keras.saving.register_keras_serializable(package="keras_issl")
class OnlineProbe(keras.layers.Layer):
    """A linear probe on the features of the first view, trained step by step beside the encoder.

    It says while a run goes on what its representation is becoming. Features reach it without gradient, standardized
    by the statistics of the batch; its weights move by an optimizer of its own, outside of the one of `compile`: the
    encoder is bit for bit the same with and without it.

    Its numbers are *online* ones: `online_top1` is measured on augmented training views, each before the step in which
    the probe learns from them, while the encoder still changes; with validation data `val_online_top1` is measured on
    the images as they are. Neither is the accuracy of a probe that was fitted to the finished encoder and scored on
    test images: that is `probes.evaluate`.

    Args:
        num_classes: Labels are 0 … `num_classes` − 1. Any other, such as −1, is no label.
        optimizer: A Keras optimizer, or its name; Adam at 0.01 by default.

    Raises:
        ValueError: Fewer than two classes.

    Source: stop-gradient online evaluation as in Chen et al. 2020 (SimCLR), appendix B.

    Example:

    >>> probe = keras_issl.pretraining.OnlineProbe(10)
    >>> model = keras_issl.Pretrainer(encoder, keras_issl.objectives.DISSL(num_classes=64), online_probe=probe)
    >>> model.compile("adam")
    >>> history = model.fit(images, labels, batch_size=64, verbose=0).history
    >>> 0 <= history["online_top1"][0] <= 1
    True
    """

    def __init__(self, num_classes, optimizer=None, **kwargs):
        super().__init__(**{"name": "online_probe"} | kwargs | {"dtype": "float32"})  # whatever the encoder computes in
        if isinstance(num_classes, bool) or not isinstance(num_classes, int | np.integer) or num_classes < 2:
            raise ValueError(f"`num_classes` should be an integer, at least 2. Received: {num_classes!r}")
        self.num_classes = int(num_classes)
        self.optimizer = keras.optimizers.get(keras.optimizers.Adam(1e-2) if optimizer is None else optimizer)
        self.normalization = distribution.BatchNormalization(center=False, scale=False, dtype="float32")
        self.trackers = {name: LabelledMean(name=name) for name in ("online_loss", "online_top1")}
        self.trackers["online_labels"] = keras.metrics.Mean(name="online_labels")  # a step: what the means weigh

    def build(self, features_shape):
        """Makes the weights for features (B, D)."""
        self.normalization.build(features_shape)
        # Not trainable by the optimizer of `compile`, and zeros: nothing is drawn that the encoder would miss.
        options = {"initializer": "zeros", "trainable": False}
        self.kernel = self.add_weight((features_shape[-1], self.num_classes), name="kernel", **options)  # (D, C)
        self.bias = self.add_weight((self.num_classes,), name="bias", **options)
        self.optimizer.build([self.kernel, self.bias])
        self.slots = list(self.optimizer.variables)  # state of the layer: saved, and seen by a compiled step

    def call(self, features, training=None):
        """Logits (B, C) of features (B, D)."""
        return ops.matmul(self._standardized(features, training), self.kernel) + self.bias

    def _standardized(self, features, training):
        return self.normalization(ops.cast(ops.stop_gradient(features), "float32"), training=training)

    def score(self, features, labels, training=False):
        """Takes a batch into the mean loss and top-1, and learns from it afterwards if `training`.

        Args:
            features: (B, D).
            labels: Integers (B,) or (B, 1).
            training: Whether the probe takes a step.
        """
        if len(labels.shape) > 1 and labels.shape[-1] != 1:
            with plain_errors():
                raise ValueError(
                    "Labels for the online probe should be integers (B,), -1 where there is none. Received shape: "
                    f"{tuple(labels.shape)}. One-hot labels become integers by `argmax(axis=-1)`."
                )
        labels = ops.cast(ops.reshape(labels, (-1,)), "int32")  # (B,)
        known = ops.cast((labels >= 0) & (labels < self.num_classes), "float32")
        labels = ops.clip(labels, 0, self.num_classes - 1)
        x = self._standardized(features, training)  # (B, D)
        logits = ops.matmul(x, self.kernel) + self.bias  # (B, C)
        targets = ops.one_hot(labels, self.num_classes, dtype="float32")
        log_p = ops.log_softmax(logits, axis=-1)
        replicas = distribution.num_replicas()
        self.trackers["online_labels"].update_state(replicas * ops.sum(known))  # of the global batch, on the mean
        self.trackers["online_loss"].update_state(-ops.sum(targets * log_p, axis=-1), sample_weight=known)
        hits = ops.cast(ops.equal(ops.cast(ops.argmax(logits, axis=-1), "int32"), labels), "float32")
        self.trackers["online_top1"].update_state(hits, sample_weight=known)
        if training:
            # The gradient of the mean cross-entropy over labelled images: linear, so that it can be written down.
            labelled = ops.maximum(distribution.replica_mean(ops.sum(known)), 1.0 / replicas)  # a replica
            error = (ops.exp(log_p) - targets) * (known / labelled)[:, None]  # (B, C)
            gradients = [ops.matmul(ops.transpose(x), error), ops.sum(error, axis=0)]
            self.optimizer.apply(distribution.scale_gradients(gradients), [self.kernel, self.bias])

    def get_config(self):
        optimizer = keras.optimizers.serialize(self.optimizer)
        return super().get_config() | {"num_classes": self.num_classes, "optimizer": optimizer}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        if isinstance(config.get("optimizer"), dict):
            config["optimizer"] = keras.optimizers.deserialize(config["optimizer"])
        return cls(**config)


def as_probe(probe):
    """`None`, an `OnlineProbe`, or one for that many classes.

    Raises:
        ValueError: It is something else.
    """
    if probe is None or isinstance(probe, OnlineProbe):
        return probe
    if isinstance(probe, bool) or not isinstance(probe, int | np.integer):
        raise ValueError(f"`online_probe` should be None, a number of classes or an `OnlineProbe`. Received: {probe!r}")
    return OnlineProbe(probe)


def prepare(probe, width):
    """Builds a probe for features of a width, unless there is none.

    Raises:
        ValueError: It was built for other features.
    """
    if probe is None:
        return
    if not probe.built:
        probe.build((None, width))
        probe.built = True
    if probe.kernel.shape[0] != width:
        raise ValueError(
            f"`online_probe` should be new, or built for the {width} features of this encoder. Received: one that was "
            f"built for {probe.kernel.shape[0]}."
        )


def check_labels(probe, labels, count, *, needed=True):
    """Labels for a probe as int64 (N,): one an image; at least one of them is a class, if they are `needed` to learn.

    Raises:
        ValueError: There are none, or they do not fit.
    """
    way_out = "Leave `online_probe` away to train without labels."
    if labels is None:
        raise ValueError(
            f"`y` should hold labels for the online probe, -1 where there is none. Received: None. {way_out}"
        )
    labels = np.asarray(labels)
    flat = labels.reshape(-1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if flat.ndim != 1 or len(flat) != count or flat.dtype.kind not in "iu":
        raise ValueError(
            f"`y` should be integer labels ({count},) for the online probe, one an image, -1 where there is none. "
            f"Received: {labels.dtype} {labels.shape}. {way_out}"
        )
    flat = flat.astype(np.int64)
    if needed and not (flat >= 0).any():
        raise ValueError(f"`y` should hold at least one label of 0 or more. Received: none in {count}. {way_out}")
    if flat.max() >= probe.num_classes or flat.min() < -1:
        raise ValueError(
            f"`y` should hold labels from 0 to {probe.num_classes - 1}, and -1 where there is none. Received: "
            f"{flat.min()} to {flat.max()}. Give `online_probe` the number of classes that there are."
        )
    return flat


class OnlineScoring:
    """Mixin of the `Pretrainer`: which features its online probe gets, and when."""

    def _online_features(self, images, views, features, training):
        """(B, D): of the first view in training; what is validated is the image, not a view of it."""
        return features[0] if training else self.encoder(_resized(images, views[0].shape), training=False)

    def _score_online(self, features, labels, training):
        if self.online_probe is None:
            return
        if labels is None and training:
            with plain_errors():
                raise ValueError(
                    "`x` should give (images, labels) for the online probe, -1 where there is no label. Received: "
                    "images alone. Leave `online_probe` away to train without labels."
                )
        if labels is not None:
            self.online_probe.score(features, labels, training=training)


def _resized(images, view_shape):
    """Images at the size of a view (B, h, w, C), where they have another."""
    if None in view_shape[1:3] or tuple(images.shape[1:3]) == tuple(view_shape[1:3]):
        return images
    return ops.image.resize(ops.cast(images, "float32"), view_shape[1:3], antialias=True)
