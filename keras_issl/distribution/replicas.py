"""The global batch: what replicas that each see a part of it have to ask each other.

One rule: **every replica returns a loss whose mean over the replicas is the global loss, and the gradient of a
collective sums over the replicas.** Then the mean of the replicas' gradients is the gradient of the global loss.

On JAX under `keras.distribution` an array is the global one: there is one replica, and nothing to ask.
"""

import contextlib
import contextvars
import functools

import keras
from keras import ops

_alone = contextvars.ContextVar("alone", default=False)


@contextlib.contextmanager
def alone():
    """Within it this process works by itself, on batches of any size: inference, a probe, what is written of a model.

    Else batch normalisation in training would wait for other processes of PyTorch, and JAX would want every batch to be
    a multiple of its devices. For JAX on several hosts it is of no use: their arrays belong to all of them.

    Example:

    >>> with keras_issl.distribution.alone():
    ...     features = encoder.predict(images[:3], verbose=0)
    """
    jax = keras.config.backend() == "jax"
    before, token = keras.distribution.distribution() if jax else None, _alone.set(True)
    if jax:
        keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        _alone.reset(token)
        if jax:
            keras.distribution.set_distribution(before)


def num_replicas():
    """Number of replicas that each see a part of the batch, here and now.

    Returns:
        An integer. Always 1 on JAX, whose arrays are global, and outside of the replicas of a `tf.distribute`
        strategy, where a batch is whole.
    """
    backend = keras.config.backend()
    if _alone.get():
        return 1
    if backend == "tensorflow":
        context = _tensorflow_replica()
        return 1 if context is None else context.num_replicas_in_sync
    if backend == "torch":
        group = _torch_group()
        return 1 if group is None else group.get_world_size()
    return 1


def replica_index():
    """Which replica this is: from 0, in the order in which the global batch is split.

    Returns:
        An integer; a scalar int32 tensor within a TensorFlow strategy.
    """
    if num_replicas() == 1:
        return 0
    if keras.config.backend() == "tensorflow":
        return _tensorflow_replica().replica_id_in_sync_group
    return _torch_group().get_rank()


def _tensorflow_replica():
    import tensorflow as tf

    return tf.distribute.get_replica_context()  # None outside of the replicas of a strategy


def _torch_group():
    """`torch.distributed` where a process group exists, else `None`."""
    import torch.distributed as dist

    return dist if dist.is_available() and dist.is_initialized() else None


@functools.cache
def _torch_collectives():
    """Sum over and gather from all processes, with gradients; PyTorch 2.13 deprecates its own."""
    import torch
    import torch.distributed as dist

    def summed(x):
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    class Sum(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return summed(x)

        @staticmethod
        def backward(context, gradient):
            return summed(gradient)

    class Gather(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
            dist.all_gather(parts, x.contiguous())
            return torch.cat(parts)

        @staticmethod
        def backward(context, gradient):  # (B_global, ...) -> (B_local, ...): the sum of what all have for this part
            parts = [part.contiguous() for part in gradient.chunk(dist.get_world_size())]
            mine = torch.empty_like(parts[dist.get_rank()])
            dist.reduce_scatter(mine, parts)
            return mine

    return Sum.apply, Gather.apply


def _whole(x):
    """Whether `x` is the whole batch already, or of no device (in a shape inference)."""
    return num_replicas() == 1 or (hasattr(x, "device") and getattr(x.device, "type", None) == "meta")


def gather(x):
    """The global batch of `x`, differentiable.

    Args:
        x: Tensor of shape (B_local, ...), this replica's part of the batch; parts are of one size.

    Returns:
        Tensor of shape (B_global, ...), the parts in the order of the replicas. The same tensor where there is one.
    """
    if _whole(x):
        return x
    if keras.config.backend() == "tensorflow":
        gathered = _tensorflow_replica().all_gather(x, axis=0)
        # Of more than two replicas TensorFlow forgets what is known of the shape.
        gathered.set_shape((x.shape[0] and x.shape[0] * num_replicas(), *x.shape[1:]))
        return gathered
    _, gathered = _torch_collectives()
    return gathered(x)


def global_mean(x):
    """Mean over the global batch, differentiable.

    Args:
        x: Tensor of shape (B_local, ...), this replica's part of the batch; parts are of one size.

    Returns:
        Tensor of shape (...): the mean over axis 0 of the batch of all replicas.
    """
    return replica_mean(ops.mean(x, axis=0))


def replica_mean(x):
    """Mean over the replicas of a tensor that each of them has, differentiable.

    Args:
        x: Tensor of any shape, the same shape on all replicas.

    Returns:
        Tensor of that shape. The same tensor where there is one replica.
    """
    if _whole(x):
        return x
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        return _tensorflow_replica().all_reduce(tf.distribute.ReduceOp.MEAN, x)
    summed, _ = _torch_collectives()
    return summed(x) / num_replicas()


def pool_moments(mean, variance, center=0.0):
    """Mean and variance over all replicas, from those that each has of its own part; one message, differentiable.

    Args:
        mean: Tensor of any shape.
        variance: Tensor of that shape, about `mean`, biased.
        center: Numbers near the mean that are the same on all replicas: about them squares are small, and few of
            their digits are lost.

    Returns:
        A pair of tensors of that shape. The same ones where there is one replica.
    """
    if num_replicas() == 1:
        return mean, variance
    both = ops.stack([mean - center, variance + ops.square(mean - center)])  # (2, ...)
    mean, square = ops.unstack(replica_mean(both), 2)
    return mean + center, ops.maximum(square - ops.square(mean), 0.0)


def scale_loss(loss):
    """A replica's loss as its engine wants it: `tf.distribute` adds gradients up, the others average them.

    Args:
        loss: Scalar tensor; its mean over the replicas is the global loss.
    """
    return loss / num_replicas() if keras.config.backend() == "tensorflow" and num_replicas() > 1 else loss


def scale_gradients(gradients):
    """Gradients for `Optimizer.apply` of a loss that was written down without a compiled step.

    Args:
        gradients: List of tensors; their mean over the replicas is the gradient of the global loss.

    Returns:
        A list of tensors: what `apply` takes. Keras's optimizers on TensorFlow add up over replicas by themselves.
    """
    count = num_replicas()
    if count == 1:
        return gradients
    if keras.config.backend() == "tensorflow":
        return [gradient / count for gradient in gradients]
    return [replica_mean(gradient) for gradient in gradients]


def draw(sample, shape, axis):
    """Random numbers for this replica's images: its part of what one device would draw for the global batch.

    Replicas share a seed, so each could only draw the same; and so images are augmented alike however many devices
    there are.

    Args:
        sample: A function of a shape that draws a tensor of it.
        shape: Tuple, of the numbers for this replica's part of the batch.
        axis: Non-negative integer, the axis of the images.
    """
    count = num_replicas()
    if count == 1:
        return sample(shape)
    size = shape[axis]
    everyone = sample((*shape[:axis], size * count, *shape[axis + 1 :]))
    parts = ops.reshape(everyone, (*shape[:axis], count, size, *shape[axis + 1 :]))
    return ops.take(parts, replica_index(), axis=axis)
