"""Fine-tuning: an encoder with a linear layer on top, trained end to end on labelled images.

The head starts at zero, so that training starts from uniform predictions whatever the scale of the features, and
its first step leaves the encoder as it is: no random head pulls at pre-trained weights (the concern of Kumar et al.,
*Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution*, ICLR 2022, arXiv 2202.10054).
"""

import keras
import numpy as np
from keras import ops

from keras_issl import distribution

HEAD = "classifier_head"  # name of the linear layer: its weights are `classifier_head/kernel` and `.../bias`


def classifier(encoder, num_classes, *, freeze=False, dropout=0.0, name=None):
    """A model from images to the logits of classes, to be trained with `compile` and `fit`.

    - The encoder is shared, not copied: training the classifier changes it. To keep the original, pass a copy made by
      `type(encoder).from_config(encoder.get_config())` and `set_weights`.
    - A frozen encoder runs as in `predict`: neither its weights nor the moving statistics of its batch normalisation
      change. `freeze` sets `encoder.trainable = False`.
    - To thaw it, set `encoder.trainable = True` and compile again: its weights learn, its batch normalisation keeps the
      statistics of pre-training.

    Args:
        encoder: A `keras.Model` from images (B, H, W, C) to features (B, D), such as `keras_issl.from_preset`,
            `encoders.ResNet` or `encoders.Adapter` give. One that has no shape yet must be called once before.
        num_classes: Integer K, the number of classes.
        freeze: Boolean, whether to train the head alone.
        dropout: Number in [0, 1), the share of the features that is dropped in training.
        name: String, the name of the model. By default the encoder's, followed by `_classifier`.

    Returns:
        A `Classifier`: a `keras.Model` from images in [0, 255], uint8 or float, of shape (B, H, W, C) or
        (B, H, W, 1) to float32 logits (B, K). The softmax is left to the loss (`from_logits=True`).

    Raises:
        ValueError: an argument is out of range, or the encoder does not return features (B, D).

    Example:

    >>> model = keras_issl.finetuning.classifier(encoder, 4)
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> model.compile("adam", loss, metrics=["accuracy"])
    >>> history = model.fit(images, labels, verbose=0)
    >>> model.predict(images, verbose=0).shape
    (256, 4)
    """
    return Classifier(encoder, num_classes, freeze=freeze, dropout=dropout, name=name)


@keras.saving.register_keras_serializable(package="keras_issl")
class Classifier(distribution.Exportable, distribution.DataParallel, keras.Model):
    """What `classifier` returns, with the same arguments.

    Attributes:
        encoder: The encoder, shared with whoever passed it.
        num_classes: Integer K.
        freeze: Boolean, whether the encoder runs in inference mode while the head is trained.
    """

    def __init__(self, encoder, num_classes, *, freeze=False, dropout=0.0, name=None):
        if not isinstance(encoder, keras.Model):
            raise ValueError(
                f"`encoder` should be a keras.Model from images to features. Received: {encoder!r}. "
                "Load one with `keras_issl.from_preset`, or wrap a layer in `keras_issl.encoders.Adapter`."
            )
        if not isinstance(num_classes, int | np.integer) or isinstance(num_classes, bool) or num_classes < 1:
            raise ValueError(f"`num_classes` should be a positive integer. Received: {num_classes!r}")
        if not isinstance(dropout, int | float | np.number) or isinstance(dropout, bool) or not 0 <= dropout < 1:
            raise ValueError(f"`dropout` should be a number in [0, 1). Received: {dropout!r}")
        if freeze not in (True, False):
            raise ValueError(f"`freeze` should be True or False. Received: {freeze!r}")

        layers = {"encoder": encoder, "dropout": keras.layers.Dropout(dropout, dtype="float32", name="dropout")}
        # In float32 under every policy: a softmax of bfloat16 logits rounds the small probabilities away.
        layers["head"] = keras.layers.Dense(int(num_classes), kernel_initializer="zeros", dtype="float32", name=HEAD)
        images = keras.Input(_image_shape(encoder), name="images")  # (B, H, W, C)
        name = name or f"{encoder.name}_classifier"
        super().__init__(inputs=images, outputs=_logits(images, **layers), name=name)
        self.input_spec = keras.layers.InputSpec(ndim=4)  # `call` looks at the channels
        self.encoder, self.dropout, self.head = layers.values()
        self.num_classes, self.freeze = int(num_classes), bool(freeze)
        if freeze:
            encoder.trainable = False

    def compile(self, *args, jit_compile="auto", **kwargs):
        """`keras.Model.compile`; `jit_compile="auto"` follows the backend and the device."""
        jit_compile = distribution.jit_compile_default() if jit_compile == "auto" else jit_compile
        super().compile(*args, jit_compile=jit_compile, **kwargs)

    def compile_from_config(self, config):
        """Compiles a model that is loaded from a file, as Keras does, for the device at hand."""
        self.compile(**keras.saving.deserialize_keras_object(config) | {"jit_compile": "auto"})
        self.optimizer.build(self.trainable_variables)

    def call(self, images, training=None, mask=None):
        """Logits (B, K) of images (B, H, W, C), whose one channel is repeated where the encoder takes RGB."""
        channels = self.inputs[0].shape[-1]
        if images.shape[-1] in (1, None) and channels == 3:  # None: TensorFlow met both before
            images = ops.broadcast_to(images, (*ops.shape(images)[:-1], 3))  # (B, H, W, 3)
        elif images.shape[-1] != channels:
            raise ValueError(
                f"`images` should be a batch of shape (batch, height, width, {channels}) with values in [0, 255]. "
                f"Received: shape {tuple(images.shape)}. Other channel counts need an encoder built for them."
            )
        # Not the functional graph: Keras's `training=True` would overrule the inference mode of a frozen encoder.
        return _logits(images, self.encoder, self.dropout, self.head, training=training, freeze=self.freeze)

    def get_config(self):
        """The constructor's arguments, and whether the encoder's weights learn."""
        return {
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "num_classes": self.num_classes,
            "freeze": self.freeze,
            "dropout": self.dropout.rate,
            "encoder_trainable": self.encoder.trainable,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        trainable = config.pop("encoder_trainable")
        encoder = keras.saving.deserialize_keras_object(config.pop("encoder"), custom_objects=custom_objects)
        model = cls(encoder, **config)
        encoder.trainable = trainable
        return model


def _logits(images, encoder, dropout, head, *, training=False, freeze=False):
    """(B, H, W, C) -> (B, K)."""
    features = encoder(images, training=training and not freeze)
    shape = getattr(features, "shape", None)
    if shape is None or len(shape) != 2 or shape[-1] is None:
        raise ValueError(
            f"`encoder` should map images to features (batch, D) with D known. Received: output shape {shape}. "
            "Wrap it in `keras_issl.encoders.Adapter`."
        )
    return head(dropout(features, training=training))


def _image_shape(encoder):
    """The (height, width, channels) that an encoder was built for, `None` where any will do."""
    shape = getattr(encoder, "input_shape", None)
    return tuple(shape[1:]) if isinstance(shape, tuple) and len(shape) == 4 else (None, None, 3)
