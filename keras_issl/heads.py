"""Projection heads: what stands between the features and an objective.

The paper's rule (§ on practical SSL objectives): the *student* head must be a probe of the family
that is used downstream, the *teacher* head may be as expressive as one likes. `LinearHead` is the
former for linear probes, `MLPHead` serves for both. The table of heads is in each objective.
"""

import keras
from keras import layers

from keras_issl.distribution import BatchNormalization

INITIALIZATIONS = ("small_images", "imagenet")


def check_initialization(name, value):
    """Raises a `ValueError` that names the argument unless the value is one of `INITIALIZATIONS`."""
    if value not in INITIALIZATIONS:
        raise ValueError(f"`{name}` should be one of {INITIALIZATIONS}. Received: {value!r}")


def _linear(units, fan_in, use_bias, initialization, kernel_stddev=None):
    """One dense layer, initialised as the paper's recipes are (method: normal 0.02, or torch's default)."""
    if kernel_stddev is not None:
        kernel = keras.initializers.RandomNormal(stddev=kernel_stddev)
    elif initialization == "small_images":
        kernel = keras.initializers.RandomNormal(stddev=0.02)
    else:  # torch's Linear: weight and bias uniform in ±1/sqrt(fan_in)
        kernel = keras.initializers.VarianceScaling(1 / 3, mode="fan_in", distribution="uniform")
    bound = fan_in**-0.5
    bias = "zeros" if initialization == "small_images" else keras.initializers.RandomUniform(-bound, bound)
    return layers.Dense(units, use_bias=use_bias, kernel_initializer=kernel, bias_initializer=bias)


class _Linear(layers.Layer):
    """Linear without bias, batch normalisation, and a ReLU unless told otherwise."""

    def __init__(self, units, initialization, relu=True, **kwargs):
        super().__init__(**kwargs)
        self.units, self.initialization, self.relu = units, initialization, relu

    def build(self, input_shape):
        self.linear = _linear(self.units, input_shape[-1], False, self.initialization)
        self.norm = BatchNormalization()
        self.linear.build(input_shape)
        self.norm.build((*input_shape[:-1], self.units))

    def call(self, x, training=None):
        x = self.norm(self.linear(x), training=training)  # (N, units)
        return keras.ops.relu(x) if self.relu else x


@keras.saving.register_keras_serializable(package="keras_issl")
class MLPHead(layers.Layer):
    """A multi-layer perceptron with batch normalisation, as in the paper's teacher heads.

    Args:
        output_dim: Width of the output: classes C for DISSL, dimension of the projection for
            contrastive objectives.
        hidden: Hidden blocks in order. An integer is Linear (no bias), batch normalisation, ReLU.
            A tuple of integers is a residual block of such layers, whose input is added to its
            output; its last width must equal the width of its input.
        bottleneck: Width of a last linear layer with batch normalisation and *no* ReLU before the
            output layer, or `None`. It makes the output layer a low-rank map.
        output_norm: `False`, `True`, or `"no_bias"` (batch normalisation without a learned offset)
            after the output layer. With `"no_bias"` or in the ImageNet initialisation the output
            layer has no bias of its own either.
        initialization: `"small_images"` (normal, standard deviation 0.02; zero biases) or
            `"imagenet"` (torch's default for linear layers).
        output_stddev: Standard deviation of the output layer's kernel, if it differs from that.

    Input `(N, D)` features, output `(N, output_dim)` in the compute dtype.

    Raises:
        ValueError: A width that is not positive, an unknown initialisation, or a residual block
            that does not end in the width it began with.

    Source: Dubois et al. 2022, appendix on implementation; the authors' configurations.

    Example:

    >>> head = MLPHead(16384, hidden=(1024,), bottleneck=512)  # DISSL's teacher, small images
    >>> head(keras.ops.ones((8, 512))).shape[-1]
    16384
    """

    def __init__(
        self,
        output_dim,
        hidden=(),
        bottleneck=None,
        output_norm=False,
        initialization="small_images",
        output_stddev=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        hidden = tuple(tuple(h) if isinstance(h, (list, tuple)) else h for h in hidden)
        widths = [output_dim, *(w for h in hidden for w in (h if isinstance(h, tuple) else (h,)))]
        widths += [] if bottleneck is None else [bottleneck]
        if any(not isinstance(w, int) or w <= 0 for w in widths):
            raise ValueError(
                "`output_dim`, `hidden` and `bottleneck` should hold positive integers. "
                f"Received: output_dim={output_dim}, hidden={hidden}, bottleneck={bottleneck}"
            )
        check_initialization("initialization", initialization)
        if output_norm not in (False, True, "no_bias"):
            raise ValueError(f'`output_norm` should be False, True or "no_bias". Received: {output_norm!r}')
        self.output_dim, self.hidden, self.bottleneck = output_dim, hidden, bottleneck
        self.output_norm, self.initialization, self.output_stddev = output_norm, initialization, output_stddev

    def build(self, input_shape):
        width, self.blocks = input_shape[-1], []
        for h in self.hidden:
            block = []
            for units in h if isinstance(h, tuple) else (h,):
                block.append(self._normed(units, len(block) and block[-1].units or width))
            if isinstance(h, tuple) and block[-1].units != width:
                raise ValueError(
                    "A residual block in `hidden` should end in the width of its input, "
                    f"{width}, so that the two can be added. Received: {h}"
                )
            width = block[-1].units
            self.blocks.append(block)
        self.low_rank = None
        if self.bottleneck is not None:
            self.low_rank = self._normed(self.bottleneck, width, relu=False)
            width = self.bottleneck
        bias = not self.output_norm or (self.output_norm is True and self.initialization == "small_images")
        self.output_layer = _linear(self.output_dim, width, bias, self.initialization, self.output_stddev)
        self.output_layer.build((None, width))
        self.norm = None
        if self.output_norm:
            self.norm = BatchNormalization(center=self.output_norm is True)
            self.norm.build((None, self.output_dim))

    def _normed(self, units, fan_in, relu=True):
        layer = _Linear(units, self.initialization, relu=relu)
        layer.build((None, fan_in))
        return layer

    def call(self, features, training=None):
        x = features
        for spec, block in zip(self.hidden, self.blocks, strict=True):
            y = x
            for layer in block:
                y = layer(y, training=training)  # (N, units)
            x = x + y if isinstance(spec, tuple) else y
        if self.low_rank is not None:
            x = self.low_rank(x, training=training)  # (N, bottleneck)
        x = self.output_layer(x)  # (N, output_dim)
        return x if self.norm is None else self.norm(x, training=training)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.output_dim)

    def get_config(self):
        names = ("output_dim", "hidden", "bottleneck", "output_norm", "initialization", "output_stddev")
        return super().get_config() | {name: getattr(self, name) for name in names}


@keras.saving.register_keras_serializable(package="keras_issl")
class LinearHead(MLPHead):
    """A head that a linear probe can express: the student's, when the probe downstream is linear.

    It is linear because batch normalisation is affine once its statistics are fixed.

    Args:
        output_dim: Width of the output.
        rank: Width of the bottleneck (the map is Linear, batch normalisation, Linear: a linear map
            of at most this rank), or `None` for one linear layer.
        output_norm, initialization, output_stddev: As in `MLPHead`.

    Input `(N, D)` features, output `(N, output_dim)`.

    Example:

    >>> LinearHead(16384, rank=512)(keras.ops.ones((8, 512))).shape[-1]  # DISSL's student
    16384
    """

    def __init__(self, output_dim, rank=None, **kwargs):
        super().__init__(output_dim, hidden=(), bottleneck=rank, **kwargs)

    def get_config(self):
        config = super().get_config()
        config["rank"] = config.pop("bottleneck")
        config.pop("hidden")
        return config
