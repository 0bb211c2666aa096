"""Layers with a native kernel: weights, names and numbers of Keras's, and PyTorch's symmetric padding."""

import keras
from keras import ops

from keras_issl.distribution.replicas import num_replicas, pool_moments


def _on_torch(*tensors):
    """Whether these are PyTorch tensors with data: not symbolic ones, nor those of a shape inference."""
    if keras.config.backend() != "torch":
        return False
    return all(hasattr(x, "device") and x.device.type != "meta" for x in tensors)


def _channels_first(x):
    """(B, H, W, C) -> (B, C, H, W) as a view: in PyTorch's words a tensor in `channels_last` memory format."""
    return x.permute(0, 3, 1, 2)


def _channels_last(x):
    """(B, C, H, W) -> (B, H, W, C), undoing `_channels_first`."""
    return x.permute(0, 2, 3, 1)


def _torch_filters(kernel):
    """(h, w, C_in, C_out) -> (C_out, C_in, h, w) in `channels_last` memory format, which the convolution wants.

    It is written as the transposition of a matrix because that is the copy PyTorch has a blocked kernel for,
    and made once here because the convolution would otherwise make it in the forward and the backward pass.
    """
    h, w, c_in, c_out = kernel.shape
    filters = kernel.reshape(-1, c_out).t().contiguous()  # (C_out, h * w * C_in)
    return filters.view(c_out, h, w, c_in).permute(0, 3, 1, 2)


@keras.saving.register_keras_serializable(package="keras_issl")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` on the native fused kernel of PyTorch and TensorFlow.

    Weights, their names, the config and the numbers are Keras's: in particular `moving_variance` follows the
    biased variance of the batch (`torch.nn.BatchNorm2d` follows the unbiased one). Statistics are computed in
    float32 whatever the compute dtype. Inputs of shape (B, D) and (B, H, W, C) normalised over their last
    axis take the fused kernel; JAX, masks, `renorm` and other shapes take Keras's own path, and so do several
    replicas (`tf.distribute`, `torch.distributed`), whose statistics are those of the global batch.

    Args:
        momentum: Float, weight of the past in the moving statistics (PyTorch's `momentum` is one minus it).
        epsilon: Float, added to the variance.
        **kwargs: Arguments of `keras.layers.BatchNormalization`.

    Example:

    >>> layer = keras_issl.distribution.BatchNormalization()
    >>> tuple(layer(np.random.rand(8, 4, 4, 3), training=True).shape)
    (8, 4, 4, 3)
    """

    def __init__(self, momentum=0.9, epsilon=1e-5, **kwargs):
        super().__init__(momentum=momentum, epsilon=epsilon, **kwargs)

    def call(self, inputs, training=None, mask=None):
        training = bool(training and self.trainable)
        kernel = None if training and num_replicas() > 1 else self._kernel(inputs, mask)
        if kernel is None:
            return super().call(inputs, training=training, mask=mask)
        outputs, mean, variance = kernel(inputs, training)
        if training:
            for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.assign(moving * self.momentum + ops.cast(batch, moving.dtype) * (1.0 - self.momentum))
        return ops.cast(outputs, self.compute_dtype)

    def _moments(self, inputs, mask):
        """Statistics of the global batch: those of all replicas, pooled."""
        mean, variance = super()._moments(inputs, mask)  # (C,), (C,)
        if num_replicas() == 1:
            return mean, variance
        if mask is not None:
            raise ValueError(
                "`mask` should be None in training on several replicas: its parts of the batch are not of one size. "
                f"Received: a mask, on {num_replicas()} replicas."
            )
        return pool_moments(mean, variance, ops.cast(ops.stop_gradient(self.moving_mean), mean.dtype))

    def _kernel(self, inputs, mask):
        """The native function for these inputs: (inputs, training) -> (outputs, mean, biased variance)."""
        rank = len(inputs.shape)
        if mask is not None or self.renorm or self.synchronized or rank not in (2, 4) or self.axis % rank != rank - 1:
            return None
        if _on_torch(inputs):
            return self._torch_kernel
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        if keras.config.backend() == "tensorflow" and dtype in ("float32", "float16", "bfloat16"):
            return self._tensorflow_kernel
        return None

    def _torch_kernel(self, x, training):
        import torch

        gamma, beta = (None if w is None else ops.convert_to_tensor(w) for w in (self.gamma, self.beta))
        images = x.ndim == 4
        x = _channels_first(x) if images else x
        if training:
            # Without running statistics to update, and 1/sqrt(variance + epsilon) gives the biased variance back.
            y, mean, scale = torch.native_batch_norm(x, gamma, beta, None, None, True, 0.0, self.epsilon)
            mean, variance = mean.detach(), scale.detach() ** -2 - self.epsilon
        else:
            mean, variance = ops.convert_to_tensor(self.moving_mean), ops.convert_to_tensor(self.moving_variance)
            y = torch.nn.functional.batch_norm(x, mean, variance, gamma, beta, False, 0.0, self.epsilon)
        return _channels_last(y) if images else y, mean, variance

    def _tensorflow_kernel(self, x, training):
        import tensorflow as tf

        shape = self.moving_mean.shape

        def vector(weight):  # the kernel takes float32 alone
            return tf.cast(tf.convert_to_tensor(weight), "float32")

        gamma = tf.ones(shape) if self.gamma is None else vector(self.gamma)
        beta = tf.zeros(shape) if self.beta is None else vector(self.beta)
        flat = x.shape.rank == 2
        y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=x[:, None, None, :] if flat else x,  # (B, D) -> (B, 1, 1, D)
            scale=gamma,
            offset=beta,
            mean=[] if training else vector(self.moving_mean),
            variance=[] if training else vector(self.moving_variance),
            epsilon=self.epsilon,
            is_training=training,
        )
        if training:  # undo Bessel's correction n / max(n - 1, 1)
            count = tf.cast(tf.size(x) // shape[0], "float32")
            mean, variance = tf.stop_gradient(mean), tf.stop_gradient(variance) * tf.maximum(count - 1, 1) / count
        return y[:, 0, 0, :] if flat else y, mean, variance


class _SymmetricPadding:
    """PyTorch's rule: `size // 2` pixels on each of the four sides, whatever the stride.

    Keras's `padding="same"` pads an even image on the bottom and the right only when the stride is 2, which
    shifts every feature map against the PyTorch model that checkpoints come from.
    """

    def _pads(self, size):
        return [(0, 0), *((s // 2, s // 2) for s in size), (0, 0)]

    def _padded_shape(self, shape, size):
        return tuple(s if s is None else s + sum(p) for s, p in zip(shape, self._pads(size), strict=True))


@keras.saving.register_keras_serializable(package="keras_issl")
class Conv2D(_SymmetricPadding, keras.layers.Conv2D):
    """`keras.layers.Conv2D` padded by `kernel_size // 2` zeros on every side, on the native kernels.

    Weights, names and config are Keras's (`padding` stays `"valid"` there). Shapes: (B, H, W, C_in) to
    (B, ⌊(H-1)/stride⌋ + 1, ⌊(W-1)/stride⌋ + 1, C_out) for odd kernels.

    Args:
        filters: Integer, the number of output channels.
        kernel_size: Integer or pair of integers, in pixels; odd.
        **kwargs: Arguments of `keras.layers.Conv2D`, except `padding` and `data_format`.

    Example:

    >>> layer = keras_issl.distribution.Conv2D(16, 3, strides=2, use_bias=False)
    >>> tuple(layer(np.random.rand(8, 32, 32, 3)).shape)
    (8, 16, 16, 16)
    """

    def __init__(self, filters, kernel_size, **kwargs):
        kwargs |= {"padding": "valid", "data_format": "channels_last"}
        super().__init__(filters, kernel_size, **kwargs)

    def convolution_op(self, inputs, kernel):
        kernel = ops.convert_to_tensor(kernel)
        pads = self._pads(self.kernel_size)
        if _on_torch(inputs, kernel):
            import torch

            y = torch.nn.functional.conv2d(
                _channels_first(inputs),
                _torch_filters(kernel),
                stride=self.strides,
                padding=[p for p, _ in pads[1:3]],
                dilation=self.dilation_rate,
                groups=self.groups,
            )
            return _channels_last(y)
        if keras.config.backend() == "tensorflow" and set(self.strides) | set(self.dilation_rate) == {1}:
            # "same" is symmetric where nothing strides. Elsewhere padding and "valid": TensorFlow's explicit padding
            # leaves oneDNN, which makes such a gradient several times slower on a CPU.
            return ops.conv(inputs, kernel, padding="same", data_format="channels_last")
        if any(map(sum, pads)):
            inputs = ops.pad(inputs, pads)
        return super().convolution_op(inputs, kernel)

    def compute_output_shape(self, input_shape):
        return super().compute_output_shape(self._padded_shape(input_shape, self.kernel_size))


@keras.saving.register_keras_serializable(package="keras_issl")
class MaxPooling2D(_SymmetricPadding, keras.layers.MaxPooling2D):
    """`keras.layers.MaxPooling2D` padded by `pool_size // 2` on every side, on the native kernels.

    The padding is -inf, as in `torch.nn.MaxPool2d`: a border never wins.

    Args:
        pool_size: Integer or pair of integers, in pixels.
        strides: Integer or pair of integers, in pixels. `pool_size` when `None`.
        **kwargs: Arguments of `keras.layers.MaxPooling2D`, except `padding` and `data_format`.

    Example:

    >>> layer = keras_issl.distribution.MaxPooling2D(3, strides=2)
    >>> tuple(layer(np.random.rand(8, 32, 32, 3)).shape)
    (8, 16, 16, 3)
    """

    def __init__(self, pool_size=3, strides=None, **kwargs):
        kwargs |= {"padding": "valid", "data_format": "channels_last"}
        super().__init__(pool_size, strides=strides, **kwargs)

    def call(self, inputs):
        pads = self._pads(self.pool_size)
        if _on_torch(inputs):
            import torch

            pad = [p for p, _ in pads[1:3]]
            return _channels_last(
                torch.nn.functional.max_pool2d(_channels_first(inputs), self.pool_size, self.strides, pad)
            )
        return super().call(ops.pad(inputs, pads, constant_values=-float("inf")))

    def compute_output_shape(self, input_shape):
        return super().compute_output_shape(self._padded_shape(input_shape, self.pool_size))
