"""The seam between the library and its backends: replicas, devices and native kernels.

This is the one room (beside the checkpoint converter) that imports TensorFlow, PyTorch or JAX, and it does
so inside functions. Everything else is written in `keras.ops`.

Four kinds of things live here:

- **The global batch**: `num_replicas`, `gather` and `global_mean`. An objective of this library is a function
  of the whole batch (the entropy of a mean is no mean of entropies), so it asks for the global batch here.
- **What the hardware wants**: `has_accelerator` and `jit_compile_default`.
- **Layers with a native kernel**: `BatchNormalization`, `Conv2D` and `MaxPooling2D` have the weights, names and
  numbers of the Keras layers of the same name and PyTorch's symmetric padding, and call PyTorch's and
  TensorFlow's fused kernels without copying images between memory layouts.
- **Export**: `Exportable` fills in what each backend's exporter needs for batches of any size.
"""

import contextlib
import warnings

import keras
from keras import ops

__all__ = [
    "BatchNormalization",
    "Conv2D",
    "dtype_scope",
    "Exportable",
    "MaxPooling2D",
    "gather",
    "gradients",
    "global_mean",
    "has_accelerator",
    "jit_compile_default",
    "num_replicas",
    "prefetches",
]


def num_replicas():
    """Number of replicas that each see a part of the batch.

    Returns:
        An integer. Always 1 on JAX: under `keras.distribution` an array is already the global one.
    """
    backend = keras.config.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.distribute.get_strategy().num_replicas_in_sync
    if backend == "torch":
        import torch.distributed as dist

        return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    return 1


def _require_one_replica(what):
    """Refuses what would silently compute on a part of the batch."""
    count = num_replicas()
    if count > 1:
        raise NotImplementedError(
            f"{what} needs the global batch, and training on several {keras.config.backend()} replicas is not "
            f"supported yet. Received: {count} replicas. Train on one device, or set KERAS_BACKEND=jax and use "
            "`keras.distribution.DataParallel`, where every batch is global."
        )


def gather(x):
    """The global batch of `x`, differentiable.

    Args:
        x: Tensor of shape (B_local, ...), this replica's part of the batch.

    Returns:
        Tensor of shape (B_global, ...). The same tensor where there is one replica.

    Raises:
        NotImplementedError: TensorFlow or PyTorch runs on several replicas.
    """
    _require_one_replica("`gather`")
    return x


def global_mean(x):
    """Mean over the global batch, differentiable.

    Args:
        x: Tensor of shape (B_local, ...), this replica's part of the batch.

    Returns:
        Tensor of shape (...): the mean over axis 0 of the batch of all replicas.

    Raises:
        NotImplementedError: TensorFlow or PyTorch runs on several replicas.
    """
    _require_one_replica("`global_mean`")
    return ops.mean(x, axis=0)


def gradients(function, variables):
    """Gradients of a scalar with respect to variables, outside of any compiled step.

    Args:
        function: A function of no arguments that returns a scalar tensor.
        variables: Keras variables of floating-point numbers.

    Returns:
        A list of tensors, one a variable; `None` where the scalar does not depend on it (on JAX: zeros).

    Example:

    >>> gradients = keras_issl.distribution.gradients(
    ...     lambda: keras.ops.sum(encoder(images[:2], training=True)), encoder.trainable_variables
    ... )
    """
    backend = keras.config.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value = function()
        return tape.gradient(value, [v.value for v in variables])
    if backend == "torch":
        import torch

        with torch.enable_grad():
            return list(torch.autograd.grad(function(), [v.value for v in variables], allow_unused=True))
    import jax

    def of_values(values):
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return function()

    return jax.grad(of_values)([v.value for v in variables])


def has_accelerator():
    """Whether the active backend sees a GPU, a TPU or another device beside the CPU.

    Returns:
        A boolean. The backend is asked anew at each call: devices may be hidden after the import.
    """
    backend = keras.config.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return any(device.device_type != "CPU" for device in tf.config.get_visible_devices())
    if backend == "torch":
        import torch

        return torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available()
    import jax

    return any(device.platform != "cpu" for device in jax.devices())


@contextlib.contextmanager
def dtype_scope(policy):
    """Makes `policy` the global dtype policy within a `with` block, and puts the former one back.

    Args:
        policy: A dtype policy or its name, such as `"mixed_bfloat16"`.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def prefetches():
    """Whether `fit` makes the batches of a `PyDataset` ahead, in a thread of its own; elsewhere steps wait for them.

    Example:

    >>> isinstance(keras_issl.distribution.prefetches(), bool)
    True
    """
    return keras.config.backend() == "tensorflow"


def jit_compile_default():
    """The value of `jit_compile` that suits the backend and the device at hand.

    Returns:
        `False` for TensorFlow on a CPU, whose XLA convolutions of small images are 10 to 50 times slower than
        TensorFlow's own; `"auto"` (Keras decides) everywhere else.
    """
    return False if keras.config.backend() == "tensorflow" and not has_accelerator() else "auto"


# --------------------------------------------------------------------------------------------------------------
# Layers with a native kernel
# --------------------------------------------------------------------------------------------------------------


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
    axis take the fused kernel; JAX, masks, `renorm` and other shapes take Keras's own path.

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
        if training:
            _require_one_replica("`BatchNormalization` in training")
        kernel = self._kernel(inputs, mask)
        if kernel is None:
            return super().call(inputs, training=training, mask=mask)
        outputs, mean, variance = kernel(inputs, training)
        if training:
            for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.assign(moving * self.momentum + ops.cast(batch, moving.dtype) * (1.0 - self.momentum))
        return ops.cast(outputs, self.compute_dtype)

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


# --------------------------------------------------------------------------------------------------------------
# Export
# --------------------------------------------------------------------------------------------------------------


class Exportable:
    """Mixin of a functional model of images (B, H, W, C): `export` works for batches of any number and size.

    The artefact takes float32 images in [0, 255]. Without `input_signature`, every axis that the model leaves
    open (the batch, and mostly height and width) is open in the artefact.
    """

    def export(self, filepath, format="tf_saved_model", verbose=None, input_signature=None, **kwargs):
        """Writes the model for inference, as `keras.Model.export` does.

        Args:
            filepath: String or path: a folder for a SavedModel, else a file (`.pt2` for `"torch"`).
            format: `"tf_saved_model"` (on TensorFlow, or on JAX with TensorFlow installed), `"onnx"` (on TensorFlow
                with tf2onnx, on torch with onnx, on JAX with jax2onnx), `"torch"` (on torch: a
                `torch.export.ExportedProgram`), or another format of `keras.Model.export`.
            verbose: Boolean, whether to say where the artefact is.
            input_signature: A list of one `keras.InputSpec`, to fix axes.
            **kwargs: Arguments of the exporter, see `keras.Model.export`.

        Raises:
            ValueError: no artefact of this format that works can be written here.
        """
        backend = keras.config.backend()
        self._require_exportable(backend, format, input_signature)
        if backend == "jax" and format == "tf_saved_model":
            # Inference needs no gradient, and JAX has none of a strided convolution of images of unknown size.
            kwargs["jax2tf_kwargs"] = {"with_gradient": False} | (kwargs.get("jax2tf_kwargs") or {})
        if input_signature is None:
            shape = self.inputs[0].shape
            if (backend, format) == ("torch", "torch") and "dynamic_shapes" not in kwargs:
                from torch.export import Dim

                kwargs["dynamic_shapes"] = {axis: Dim.DYNAMIC for axis, size in enumerate(shape) if size is None}
                # Keras would record one image of one pixel. Sizes that differ, or PyTorch takes them for the same.
                shape = tuple(size or sample for size, sample in zip(shape, (2, 224, 192, 3), strict=True))
            input_signature = [keras.InputSpec(shape=shape, dtype="float32", name="images")]
        with warnings.catch_warnings():
            # The tracers warn of every shape that Keras and this library read, and of their own age.
            warnings.filterwarnings("ignore", module=r"keras(_issl)?\b")
            warnings.simplefilter("ignore", DeprecationWarning)
            super().export(filepath, format, verbose=verbose, input_signature=input_signature, **kwargs)

    def _require_exportable(self, backend, format, input_signature):
        """Refuses what the exporters would only fail at late, or write so that nothing can read it."""
        elsewhere = "Save the model, load it under KERAS_BACKEND=tensorflow and export it there."
        if (backend, format, input_signature) == ("torch", "tf_saved_model", None):
            raise ValueError(
                "`format` should be 'onnx' or 'torch' on the torch backend, from which Keras writes no SavedModel for "
                f"batches of any size. Received: 'tf_saved_model'. {elsewhere}"
            )
        if format != "onnx":
            return
        layers = list(self._flatten_layers())
        dtypes = sorted({layer.compute_dtype for layer in layers} - {"float32"})
        if dtypes:
            raise ValueError(
                "`format` should be 'onnx' only for a model that computes in float32, all that ONNX Runtime runs. "
                f'Received: a model with layers in {dtypes}. Load it with `dtype="float32"`.'
            )
        if backend == "jax" and any(isinstance(layer, keras.layers.MaxPooling2D) for layer in layers):
            raise ValueError(
                "`format` should be 'tf_saved_model' for a model with max-pooling on JAX, whose ONNX form ONNX Runtime "
                f"cannot run. Received: 'onnx'. {elsewhere}"
            )
