"""`ResNet`: torchvision's layout, with the stems for small images and the wider representation.

He et al., *Deep Residual Learning for Image Recognition*, CVPR 2016, in its "v1.5" form: the stride sits on the 3x3
convolution of a bottleneck. The wider representation is that of Dubois et al., *Improving Self-Supervised Learning by
Characterizing Idealized Representations*, NeurIPS 2022 (arXiv 2209.06235).
"""

import contextlib
import contextvars
import math

import keras
import numpy as np
from keras import ops

from keras_issl import distribution
from keras_issl.encoders.base import Encoder

VARIANTS = {  # depth -> blocks a stage, whether they are bottlenecks
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}
STEMS = {  # name -> kernel size and stride of conv1, whether a max-pool follows
    "imagenet": (7, 2, True),
    "small": (3, 1, True),
    "cifar": (3, 1, False),
    "strided": (3, 2, False),
}
NORMALIZATIONS = {  # of RGB images in [0, 1]; ready for `ResNet(..., **NORMALIZATIONS["cifar10"])`
    "imagenet": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "cifar10": {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)},
}
EXPANSION = 4  # a bottleneck's output is this many times wider than its 3x3 convolution
RESIZER_WIDTH = 512  # hidden width of the block that makes the representation wider
MAX_BLOCKS = 1000

_zeros = contextvars.ContextVar("zeros", default=False)


@contextlib.contextmanager
def from_zeros():
    """Within it a `ResNet` starts from zeros: its weights are about to be loaded, and drawing them takes longer."""
    token = _zeros.set(True)
    try:
        yield
    finally:
        _zeros.reset(token)


@keras.saving.register_keras_serializable(package="keras_issl")
class ResNet(Encoder):
    """A ResNet v1.5 that maps images to pooled features.

    It takes images of any size; `image_size` only chooses the stem and how it is initialised. Layer names
    are torchvision's with underscores (`layer1_0_conv1`, `layer2_0_downsample_0`, `resizer_conv1`).

    Args:
        variant: 18, 34, 50 or 101. Leave it out where `blocks` is given.
        blocks: Sequence of integers, the number of blocks in each stage, for a network of your own. Each
            stage after the first halves the resolution and doubles the width.
        bottleneck: Boolean, whether blocks are 1x1-3x3-1x1 bottlenecks. Follows `variant`; `False` with `blocks`.
        image_size: Integer, the side in pixels of the images it is meant for.
        width: Integer, channels of the first stage. Four stages of basic blocks of width 16 end in 128.
        feature_dim: Integer D, the width of the representation. `None`, or the width of the last stage, adds
            nothing; any other value adds the wider representation of the paper ahead of the pooling: 1x1
            convolution to 512, 3x3 to 512, 1x1 to D, plus its own input tiled along the channels if D is
            not below its width.
        stem: `"imagenet"` (7x7 convolution of stride 2, then max-pool), `"small"` (3x3 of stride 1, then max-pool),
            `"cifar"` (3x3 of stride 1 alone), `"strided"` (3x3 of stride 2 alone: the cheapest on a CPU), or
            `"auto"`: `"cifar"` under 50 pixels, `"small"` under 100, else `"imagenet"`.
        channels: Integer, channels of the images.
        mean: Number or sequence of one per channel, mean of the images scaled to [0, 1]. ImageNet's by default
            (averaged over the colours where `channels` is not 3); see `NORMALIZATIONS`.
        std: Like `mean`, the standard deviation.
        dtype: Dtype policy of the layers, the global policy by default.
        name: String, the name of the model.

    Call arguments:
        images: RGB images in [0, 255], uint8 or float, of shape (B, H, W, channels).

    Returns:
        Float32 features of shape (B, D), whatever the compute dtype.

    Raises:
        ValueError: an argument is out of range, or images have the wrong rank or channels.

    Example:

    >>> encoder = keras_issl.encoders.ResNet(blocks=(1, 1, 1, 1), image_size=32, width=16, stem="strided")
    >>> tuple(encoder(np.zeros((2, 32, 32, 3), "uint8")).shape)
    (2, 128)
    """

    def __init__(
        self,
        variant=None,
        *,
        blocks=None,
        bottleneck=None,
        image_size=224,
        width=64,
        feature_dim=None,
        stem="auto",
        channels=3,
        mean=None,
        std=None,
        dtype=None,
        name=None,
    ):
        if (variant is None) == (blocks is None):
            raise ValueError(
                "Exactly one of `variant` and `blocks` should be given. "
                f"Received: variant={variant}, blocks={blocks}. Use ResNet(18) or ResNet(blocks=(2, 2, 2, 2))."
            )
        if variant is not None and variant not in VARIANTS:
            raise ValueError(f"`variant` should be one of {sorted(VARIANTS)}. Received: {variant}. Or pass `blocks=`.")
        stages, deep = VARIANTS[variant] if variant is not None else (tuple(blocks), False)
        if not stages or not all(_is_count(n) for n in stages) or sum(stages) > MAX_BLOCKS:
            raise ValueError(
                f"`blocks` should be positive integers, one for each stage, {MAX_BLOCKS} in all at most. "
                f"Received: {blocks}"
            )
        counts = {"image_size": image_size, "width": width, "channels": channels, "feature_dim": feature_dim}
        for argument, value in counts.items():
            if not _is_count(value) and (argument, value) != ("feature_dim", None):
                raise ValueError(f"`{argument}` should be a positive integer. Received: {value}")
        if stem != "auto" and stem not in STEMS:
            raise ValueError(f"`stem` should be one of {['auto', *STEMS]}. Received: {stem!r}")
        deep = deep if bottleneck is None else bool(bottleneck)
        chosen = stem if stem != "auto" else "cifar" if image_size < 50 else "small" if image_size < 100 else "imagenet"
        mean, std = (_per_channel(key, value, channels) for key, value in (("mean", mean), ("std", std)))
        if min(std) <= 0:
            raise ValueError(f"`std` should be positive. Received: {std}")
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        net = _Builder(policy)

        images = keras.Input((None, None, channels), name="images")
        # Plain operations, so in float32 under every policy: bfloat16 would round pixels to whole grey levels.
        scale = 1 / (255 * np.asarray(std, "float32"))
        x = (images - 255 * np.asarray(mean, "float32")) * scale
        size, stride, pool = STEMS[chosen]
        first_init = _he_fan_out() if chosen == "imagenet" else _small_init()
        x = net.conv_bn(x, width, size, stride, conv="conv1", bn="bn1", init=first_init)  # (B, H/s, W/s, width)
        if pool:
            x = distribution.MaxPooling2D(3, 2, dtype=policy, name="maxpool")(x)
        for stage, depth in enumerate(stages):
            for block in range(depth):
                stride = 2 if stage and not block else 1
                x = net.block(x, width * 2**stage, stride, deep, f"layer{stage + 1}_{block}")
        natural = x.shape[-1]  # (B, h, w, natural)
        if feature_dim not in (None, natural):
            x = net.expand(x, feature_dim, small=chosen != "imagenet")  # (B, h, w, feature_dim)
        # In float32: a bfloat16 sum over the pixels of a map loses what the probes live on.
        features = keras.layers.GlobalAveragePooling2D(data_format="channels_last", dtype="float32", name="avgpool")(x)
        super().__init__(inputs=images, outputs=features, name=name or f"resnet{'' if variant is None else variant}")
        self._config = {
            "variant": variant,
            "blocks": None if blocks is None else tuple(blocks),
            "bottleneck": bottleneck,
            "image_size": image_size,
            "width": width,
            "feature_dim": feature_dim,
            "stem": stem,
            "channels": channels,
            "mean": mean,
            "std": std,
            "dtype": policy,
        }

    @property
    def image_size(self):
        """The side in pixels of the images it is meant for."""
        return self._config["image_size"]

    def get_config(self):
        """The constructor's arguments."""
        # Serialised only here: Keras imports TensorFlow for it, whatever the backend, if that is installed.
        return {**self._config, "dtype": keras.dtype_policies.serialize(self._config["dtype"]), "name": self.name}


class _Builder:
    """Applies the blocks of a ResNet to symbolic tensors, in one dtype policy."""

    def __init__(self, policy):
        self.policy = policy

    def conv_bn(self, x, width, size, stride, *, conv, bn, init=None, relu=True):
        """Convolution without bias, batch normalisation and, if wanted, ReLU."""
        x = distribution.Conv2D(
            width,
            size,
            strides=stride,
            use_bias=False,
            kernel_initializer="zeros" if _zeros.get() else init or _he_fan_out(),
            dtype=self.policy,
            name=conv,
        )(x)
        x = distribution.BatchNormalization(dtype=self.policy, name=bn)(x)
        return self.relu(x, bn.replace("bn", "relu")) if relu else x

    def relu(self, x, name):
        return keras.layers.ReLU(dtype=self.policy, name=name)(x)

    def block(self, x, width, stride, bottleneck, name):
        """A residual block: (B, h, w, c) -> (B, h/stride, w/stride, width or 4 * width)."""
        if bottleneck:
            out, plan = width * EXPANSION, ((width, 1, 1), (width, 3, stride), (width * EXPANSION, 1, 1))
        else:
            out, plan = width, ((width, 3, stride), (width, 3, 1))
        y = x
        for i, (channels, size, step) in enumerate(plan, 1):
            y = self.conv_bn(y, channels, size, step, conv=f"{name}_conv{i}", bn=f"{name}_bn{i}", relu=i < len(plan))
        if stride != 1 or x.shape[-1] != out:
            down = f"{name}_downsample"
            x = self.conv_bn(x, out, 1, stride, conv=f"{down}_0", bn=f"{down}_1", relu=False)
        return self.relu(keras.layers.Add(dtype=self.policy, name=f"{name}_add")([y, x]), f"{name}_relu")

    def expand(self, x, feature_dim, small):
        """The paper's wider representation (`BottleneckExpand`): (B, h, w, c) -> (B, h, w, feature_dim)."""
        width = x.shape[-1]
        plan = ((RESIZER_WIDTH, 1), (RESIZER_WIDTH, 3), (feature_dim, 1))
        y = x
        for i, (channels, size) in enumerate(plan, 1):
            init = _small_init() if small else _he_fan_out()
            if i == 1 and not small:
                init = keras.initializers.RandomNormal(stddev=RESIZER_WIDTH**-0.5)
            names = {"conv": f"resizer_conv{i}", "bn": f"resizer_bn{i}"}
            y = self.conv_bn(y, channels, size, 1, init=init, relu=i < len(plan), **names)
        if feature_dim >= width:  # channel c of the sum gets channel c mod width of the input
            tiled = ops.tile(x, (1, 1, 1, math.ceil(feature_dim / width)))[..., :feature_dim]
            y = keras.layers.Add(dtype=self.policy, name="resizer_add")([y, tiled])
        return self.relu(y, "resizer_relu")


def _he_fan_out():
    """torchvision's initialisation. Made anew for each layer: a shared instance repeats its numbers."""
    return keras.initializers.VarianceScaling(2.0, mode="fan_out", distribution="untruncated_normal")


def _small_init():
    """The released code's initialisation of what it replaces for small images: std = 1.137 / sqrt(fan_in)."""
    return keras.initializers.VarianceScaling(1.137**2, mode="fan_in", distribution="untruncated_normal")


def _is_count(value):
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and value > 0


def _per_channel(key, value, channels):
    """A tuple of `channels` floats from `None` (ImageNet's), a number or a sequence."""
    if value is None:
        value = NORMALIZATIONS["imagenet"][key]
        value = value if channels == 3 else float(np.mean(value))
    values = np.asarray(value, "float64")
    if values.ndim > 1 or values.size not in (1, channels):
        raise ValueError(f"`{key}` should be a number or {channels} numbers, one for each channel. Received: {value}")
    return tuple(float(v) for v in np.broadcast_to(values.reshape(-1), (channels,)))
