"""Projection heads: what stands between the features and an objective.

The paper's rule (§ on practical SSL objectives): the *student* head must be a probe of the family
that is used downstream, the *teacher* head may be as expressive as one likes. `LinearHead` is the
former for linear probes, `MLPHead` serves for both. The table of heads is in each objective.
"""

import keras
from keras import layers, ops

from keras_issl.distribution import BatchNormalization

INITIALIZATIONS = ("small_images", "imagenet")
OUTPUT_NORMS = (False, True, "no_bias", "no_affine")


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
        return ops.relu(x) if self.relu else x


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
        output_norm: What follows the output layer: `False`, nothing; `True`, batch normalisation;
            `"no_bias"`, the same without a learned offset; `"no_affine"`, without offset and scale.
        output_bias: Whether the output layer has a bias. By default it has, unless a normalisation follows; that of
            the small-image recipes has one then too, which does nothing.
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
        output_bias=None,
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
        if output_norm not in OUTPUT_NORMS:
            raise ValueError(f"`output_norm` should be one of {OUTPUT_NORMS}. Received: {output_norm!r}")
        if output_bias not in (None, False, True):
            raise ValueError(f"`output_bias` should be None, False or True. Received: {output_bias!r}")
        self.output_dim, self.hidden, self.bottleneck = output_dim, hidden, bottleneck
        self.output_norm, self.initialization, self.output_stddev = output_norm, initialization, output_stddev
        self.output_bias = output_bias

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
        bias = self.output_bias
        if bias is None:
            bias = not self.output_norm or (self.output_norm is True and self.initialization == "small_images")
        self.output_layer = _linear(self.output_dim, width, bias, self.initialization, self.output_stddev)
        self.output_layer.build((None, width))
        self.norm = None
        if self.output_norm:
            self.norm = BatchNormalization(center=self.output_norm is True, scale=self.output_norm != "no_affine")
            self.norm.build((None, self.output_dim))

    def _normed(self, units, fan_in, relu=True):
        layer = _Linear(units, self.initialization, relu=relu)
        layer.build((None, fan_in))
        return layer

    def before_output(self, features, training=None):
        """What the output layer takes: activations (N, K) of the layers before it, in the compute dtype.

        Args:
            features: (N, D).
            training: Whether batch statistics are used and updated.
        """
        x = ops.cast(features, self.compute_dtype)
        for spec, block in zip(self.hidden, self.blocks, strict=True):
            y = x
            for layer in block:
                y = layer(y, training=training)  # (N, units)
            x = x + y if isinstance(spec, tuple) else y
        return x if self.low_rank is None else self.low_rank(x, training=training)  # (N, bottleneck)

    def call(self, features, training=None):
        x = self.output_layer(self.before_output(features, training=training))  # (N, output_dim)
        return x if self.norm is None else self.norm(x, training=training)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.output_dim)

    def get_config(self):
        names = ("output_dim", "hidden", "bottleneck", "output_norm", "initialization", "output_stddev")
        names += ("output_bias",)
        return super().get_config() | {name: getattr(self, name) for name in names}


@keras.saving.register_keras_serializable(package="keras_issl")
class LinearHead(MLPHead):
    """A head that a linear probe can express: the student's, when the probe downstream is linear.

    It is linear because batch normalisation is affine once its statistics are fixed.

    Args:
        output_dim: Width of the output.
        rank: Width of the bottleneck (the map is Linear, batch normalisation, Linear: a linear map
            of at most this rank), or `None` for one linear layer.
        output_norm, initialization, output_stddev, output_bias: As in `MLPHead`.

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


def unit_rows(x):
    """The last axis scaled to unit length, in float32; a row of zeros stays one, and has a finite gradient.

    Args:
        x: (..., D).
    """
    x = ops.cast(x, "float32")
    return x * ops.rsqrt(ops.maximum(ops.sum(ops.square(x), axis=-1, keepdims=True), 1e-12))


@keras.saving.register_keras_serializable(package="keras_issl")
class PrototypeHead(layers.Layer):
    """Cosines between features and learned prototypes, both scaled to unit length.

    The length of a prototype has no effect and its gradient is orthogonal to it: weight normalisation with a
    length fixed at 1 (DINO's last layer; SwAV instead scales the stored prototypes back after each step).

    Args:
        num_prototypes: C.
        **kwargs: As `keras.layers.Layer`.

    Input `(N, D)`, output `(N, C)` float32 in [-1, 1].

    Raises:
        ValueError: A number of prototypes that is not positive.

    Source: Caron et al. 2021 (DINO), appendix on the projection head; Caron et al. 2020 (SwAV), §3.

    Example:

    >>> PrototypeHead(1000)(keras.ops.ones((8, 256))).shape[-1]
    1000
    """

    def __init__(self, num_prototypes, **kwargs):
        super().__init__(autocast=False, **kwargs)  # float32 under every policy: these are logits
        if not isinstance(num_prototypes, int) or num_prototypes <= 0:
            raise ValueError(f"`num_prototypes` should be a positive integer. Received: {num_prototypes!r}")
        self.num_prototypes = num_prototypes

    def build(self, input_shape):
        # Only directions count: any distribution without a preferred one would do.
        self.kernel = self.add_weight(
            shape=(self.num_prototypes, input_shape[-1]),
            initializer=keras.initializers.RandomNormal(stddev=input_shape[-1] ** -0.5),
            dtype="float32",
            autocast=False,
            name="prototypes",
        )

    def call(self, x, frozen=None):
        """`frozen` is a scalar tensor, 1 where the prototypes should get no gradient, else 0."""
        prototypes = unit_rows(self.kernel)  # (C, D)
        if frozen is not None:
            still, frozen = ops.stop_gradient(prototypes), ops.cast(frozen, "float32")
            prototypes = frozen * still + (1.0 - frozen) * prototypes
        return ops.matmul(unit_rows(x), ops.transpose(prototypes))  # (N, C)

    def compute_output_shape(self, input_shape, frozen=None):
        return (*input_shape[:-1], self.num_prototypes)

    def get_config(self):
        return super().get_config() | {"num_prototypes": self.num_prototypes}


def probe_head(layer, width, output_dim):
    """Builds a user's layer for features of a width, and holds it against the outputs that the objective needs.

    Args:
        layer: A `keras.layers.Layer` from features (N, D) to outputs (N, E).
        width: D.
        output_dim: E, the number of classes or the width of the projections.

    Returns:
        The layer.

    Raises:
        ValueError: The layer does not take such features, as when it has been built for others, or its outputs are of
            another shape.
    """
    try:
        outputs = layer(keras.KerasTensor((None, width), dtype="float32"))  # symbolic: it builds what is not built yet
    except Exception as error:
        raise ValueError(
            f"`probe` should be a layer that takes the encoder's features, (N, {width}). Received: {layer!r}, which "
            f"fails on them with {type(error).__name__}: {error} A layer that was used elsewhere keeps the width it "
            "was built for: pass a new one."
        ) from error
    shape = getattr(outputs, "shape", None)
    if shape is None or len(shape) != 2 or shape[-1] != output_dim:
        returned = type(outputs).__name__ if shape is None else f"shape {tuple(shape)}"
        raise ValueError(
            f"`probe` should be a layer from features (N, {width}) to outputs (N, {output_dim}), as wide as those of "
            f"the teacher head. Received: {layer!r}, which returns {returned}. End it in "
            f"keras.layers.Dense({output_dim}), or change the width of the objective."
        )
    return layer
