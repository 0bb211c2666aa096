"""How `fit` runs on several devices: `keras.distribution`, `tf.distribute`, `torch.distributed`."""

import atexit
import contextlib
import functools
import json
import os
import zlib

import keras
import numpy as np
from keras import ops

from keras_issl.distribution.replicas import _torch_group, num_replicas, replica_mean

DOCS = "docs/distribution.md"


# Who feeds and who sees which part of a batch -------------------------------------------------------------------------


def share_of_process():
    """Which part of each global batch this process has to bring.

    Returns:
        A pair of integers: the number of the part, from 0, and how many there are. (0, 1) where one process feeds all
        devices: on TensorFlow, and on JAX on one host.
    """
    backend = keras.config.backend()
    if backend == "torch" and num_replicas() > 1:
        group = _torch_group()
        return group.get_rank(), group.get_world_size()
    if backend == "jax" and keras.distribution.distribution() is not None:
        import jax

        return jax.process_index(), jax.process_count()
    return 0, 1


def parts_of_batch(model=None):
    """Into how many equal parts a global batch is split over all devices.

    Args:
        model: On TensorFlow, the model that is trained: its strategy is the one that it was made in.

    Returns:
        An integer: 1 on one device.
    """
    backend = keras.config.backend()
    if backend == "tensorflow":
        strategy = _strategy(model)
        return 1 if strategy is None else strategy.num_replicas_in_sync
    if backend == "torch":
        return share_of_process()[1]
    distribution = keras.distribution.distribution()
    if distribution is None:
        return 1
    mesh = distribution.device_mesh
    return int(dict(zip(mesh.axis_names, mesh.shape, strict=True)).get(distribution.batch_dim_name, 1))


def is_writer():
    """Whether this process is the one that writes files and prints: the first of a run."""
    return share_of_process()[0] == 0


def any_process(flag):
    """Asks all processes of a run whether one of them says yes; all have to call it.

    Args:
        flag: What this process says.

    Returns:
        A function that waits for the answer and returns it, a boolean.
    """
    if share_of_process()[1] == 1:
        return lambda: bool(flag)
    if keras.config.backend() == "jax":
        answer = _largest_of_jax(float(flag))
        return lambda: bool(np.asarray(answer.addressable_data(0)))
    group = _torch_group()
    answer = ops.convert_to_tensor(float(flag))
    sent = group.all_reduce(answer, op=group.ReduceOp.MAX, async_op=True)

    def read():
        sent.wait()
        return bool(answer.item())

    return read


def from_first(value):
    """What the first process of a run says, in all of them; all have to call it.

    Args:
        value: What JSON can hold; of the other processes it is not looked at.
    """
    if share_of_process()[1] == 1:
        return value
    if keras.config.backend() == "torch":
        told = [value]
        _torch_group().broadcast_object_list(told, src=0)
        return told[0]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(_from_first_of_jax(np.array(len(text), np.int32)))
    text = text if is_writer() else np.zeros(size, np.uint8)
    return json.loads(_from_first_of_jax(text).tobytes())


def arrays_from_first(arrays):
    """The first process's arrays, in all processes of a run; all have to call it.

    Args:
        arrays: A list of NumPy arrays, of the same shapes and types in all of them.
    """
    if share_of_process()[1] == 1:
        return arrays
    if keras.config.backend() == "jax":
        return [_from_first_of_jax(array) for array in arrays]
    found = []
    for array in arrays:
        data = ops.convert_to_tensor(np.frombuffer(array.tobytes(), np.uint8).copy())
        _torch_group().broadcast(data, src=0)
        found.append(ops.convert_to_numpy(data).view(array.dtype).reshape(array.shape))
    return found


def _largest_of_jax(value):
    """The largest of all processes' numbers, an array that is not waited for."""
    import jax

    split, largest = _jax_max()
    mine = [jax.device_put(np.array([value], np.float32), device) for device in jax.local_devices()]
    return largest(jax.make_array_from_single_device_arrays((jax.device_count(),), split, mine))


@functools.cache
def _jax_max():
    """The sharding of one number a device, and the compiled maximum of such numbers, on all devices."""
    import jax

    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("devices",))
    split, whole = (jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axis)) for axis in (["devices"], []))
    return split, jax.jit(jax.numpy.max, out_shardings=whole)


def _from_first_of_jax(array):
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(array))


def _strategy(model):
    """The `tf.distribute` strategy that a model was made in, or the one of now; `None` where there is none."""
    if model is not None:
        return getattr(model, "_distribute_strategy", None)
    import tensorflow as tf

    return tf.distribute.get_strategy() if tf.distribute.has_strategy() else None


def scope_of(model):
    """A context in which variables of a model are made: on TensorFlow, that of the strategy it was made in."""
    strategy = _strategy(model) if keras.config.backend() == "tensorflow" else None
    return contextlib.nullcontext() if strategy is None else strategy.scope()


@contextlib.contextmanager
def data_parallel(devices=None):
    """Makes and trains models on several devices, each of which takes a part of the batch.

    It is the engine of the backend with the lines that the engine asks for: `keras.distribution.DataParallel` on JAX,
    `tf.distribute.MirroredStrategy` on TensorFlow, `torch.distributed` on PyTorch, whose processes `torchrun` starts.
    Whoever has set the engine up needs none of it.

    Args:
        devices: How many of them, an integer; all by default. On PyTorch it is what `torchrun --nproc-per-node` says.

    Raises:
        ValueError: There are not as many devices; on PyTorch, `torchrun` has not started as many processes.

    Example:

    >>> with keras_issl.distribution.data_parallel(1):
    ...     model = keras_issl.Pretrainer(encoder, keras_issl.objectives.DISSL(num_classes=64))
    ...     model.compile("adam")
    ...     history = model.fit(images, batch_size=64, verbose=0)
    """
    if devices is not None and (isinstance(devices, bool) or not isinstance(devices, int | np.integer) or devices < 1):
        raise ValueError(f"`devices` should be None for all, or a number of at least 1. Received: {devices!r}")
    backend = keras.config.backend()
    with {"jax": _on_jax, "tensorflow": _on_tensorflow, "torch": _on_torch}[backend](devices):
        yield


def _first(found, devices):
    if devices is not None and devices > len(found):
        raise ValueError(
            f"`devices` should be at most {len(found)}, as many as there are. Received: {devices}. Several parts of a "
            f"CPU can stand for devices in tests; see {DOCS}."
        )
    return found[:devices]


@contextlib.contextmanager
def _on_jax(devices):
    found = _first(keras.distribution.list_devices(), devices)
    # Every process brings its own part of a batch.
    with keras.distribution.DataParallel(devices=found, auto_shard_dataset=False).scope():
        yield


@contextlib.contextmanager
def _on_tensorflow(devices):
    import tensorflow as tf

    found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    found = [device.name for device in _first(found, devices)]
    if len(found) == 1:
        yield
        return
    with _mirrored(tuple(found)).scope():
        yield


@functools.cache
def _mirrored(devices):
    """One strategy a process: a second would number its collectives as the first, and TensorFlow keeps their shapes."""
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(devices)


@contextlib.contextmanager
def _on_torch(devices):
    import torch
    import torch.distributed as dist

    world = dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", 1))
    if devices is not None and devices != world:
        raise ValueError(
            f"`devices` should be {world}, the number of processes of this run: on PyTorch each device has a process "
            f"of its own. Received: {devices}. Start them by `torchrun --nproc-per-node {devices} SCRIPT`."
        )
    if world == 1 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))  # what Keras calls "cuda" from here on
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    atexit.register(dist.destroy_process_group)  # not sooner: the meeting point of `torchrun` serves a group but once
    yield


# What cannot be right on several devices ------------------------------------------------------------------------------


def check_batch(size, parts, *, name="batch_size"):
    """Raises a `ValueError` for a global batch that cannot be split into equal parts.

    Args:
        size: Images a global batch.
        parts: As `parts_of_batch` returns them.
        name: Argument to name.
    """
    if size % parts:
        less = size - size % parts
        choice = f"{less} or {less + parts}" if less else f"{parts}"
        raise ValueError(
            f"`{name}` should be a multiple of {parts}: the global batch is split evenly over {parts} devices, and the "
            f"loss is a function of all of it. Received: {size}. Use {choice}."
        )


def check_parts(images):
    """Compares what the processes of a run bring as their parts of one batch; all of them have to call it.

    Args:
        images: NumPy array (B_local, ...), the part of this process.

    Raises:
        ValueError: Parts of several sizes, or the same one from several processes.
    """
    mine = np.array([len(images), zlib.crc32(np.ascontiguousarray(images).tobytes())], np.uint32)
    if keras.config.backend() == "torch":
        everyone = [None] * num_replicas()
        _torch_group().all_gather_object(everyone, mine.tolist())
    else:
        from jax.experimental import multihost_utils

        everyone = multihost_utils.process_allgather(mine).tolist()
    sizes, sums = zip(*everyone, strict=True)
    if len(set(sizes)) > 1:
        raise ValueError(
            "`x` should give every process as many images a batch: the loss is a function of the global batch. "
            f"Received: {', '.join(map(str, sizes))} images in the first."
        )
    if len(set(sums)) < len(sums):
        raise ValueError(
            "`x` should give every process its own part of the global batch. Received: the same batch in several of "
            f"{len(sums)} processes. Give `fit` an array, an `ImageDataset` or `datasets.Batches`, which are shared "
            "out; or a stream that is sharded, such as a DataLoader with a `torch.utils.data.DistributedSampler`."
        )


def check_engine(model):
    """Raises a `ValueError` for what the engine of several devices would compute wrongly, or not at all."""
    if keras.config.backend() != "tensorflow":
        return
    import tensorflow as tf

    strategy = _strategy(model)
    if strategy is None or strategy.num_replicas_in_sync == 1:
        return
    elsewhere = f"See {DOCS}, or train with KERAS_BACKEND=jax."
    if type(strategy) not in (tf.distribute.MirroredStrategy, tf.distribute.OneDeviceStrategy):
        raise ValueError(
            "The model should be made within a `tf.distribute.MirroredStrategy`: Keras trains wrongly or not at all "
            f"within others. Received: {type(strategy).__name__}. {elsewhere}"
        )
    if model.steps_per_execution not in (None, 1):
        raise ValueError(
            "`steps_per_execution` should be 1 on several devices of TensorFlow: Keras hands the batches out wrongly "
            f"otherwise. Received: {model.steps_per_execution}. {elsewhere}"
        )
    if model.jit_compile is True:
        raise ValueError(
            "`jit_compile` should be False or 'auto' on several devices of TensorFlow: XLA has no gather across "
            f"replicas there. Received: True. {elsewhere}"
        )
    scaled = getattr(model.optimizer, "inner_optimizer", None)
    for name in _clips(scaled):
        raise ValueError(
            f"`{name}` should be None under loss scaling on several devices of TensorFlow: Keras clips the gradient of "
            "each device before it adds them up, which is another step than on one device. Received: "
            f"{getattr(scaled, name)}. Use mixed_bfloat16, which needs no scaling. {elsewhere}"
        )


def _clips(optimizer):
    """Names of the clippings that an optimizer does."""
    names = ("clipnorm", "global_clipnorm", "clipvalue")
    return [name for name in names if getattr(optimizer, name, None) is not None]


# The training step ----------------------------------------------------------------------------------------------------


class DataParallel:
    """Mixin of a `keras.Model`: `fit` on several devices takes the steps that it would take on one.

    *PyTorch.* Keras 3.15 knows nothing of process groups: each process would train by itself. Here the forward pass
    goes through `DistributedDataParallel`, whose hooks average the gradients; what `fit` logs are the numbers of the
    global batch; and a batch that is not this process's own is refused. Keras 3.16 wraps the model by itself, and this
    steps aside.

    *TensorFlow.* Keras clips the gradient of each replica before it adds them up. Here it is added up before.

    On JAX, and on one device, it does nothing.
    """

    _ddp = _seen = None

    def make_train_function(self, force=False):
        if keras.config.backend() == "torch" and num_replicas() > 1 and not hasattr(self, "_initialize_ddp"):
            self._wrap()
        return super().make_train_function(force)

    def _wrap(self):
        from torch.nn.parallel import DistributedDataParallel

        object.__setattr__(self, "_seen", None)  # past Keras's and PyTorch's tracking
        if self._ddp is None:
            same_on_all(self)
            object.__setattr__(self, "_ddp", DistributedDataParallel(self))

    def train_step(self, *args, **kwargs):
        if num_replicas() > 1 and self._ddp is not None:
            return self._torch_step(*args, **kwargs)
        if num_replicas() > 1 and keras.config.backend() == "tensorflow" and _clips(self.optimizer):
            return self._clipped_step(*args, **kwargs)
        return super().train_step(*args, **kwargs)

    def _clipped_step(self, data):
        """Keras's step, but for gradients that are added up over the replicas before they are clipped."""
        import tensorflow as tf

        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        count = num_replicas()
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self._compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True)
        self._loss_tracker.update_state(loss * count, sample_weight=ops.shape(keras.tree.flatten(x)[0])[0])
        weights = self.trainable_weights
        pairs = [(g, w) for g, w in zip(tape.gradient(loss, weights), weights, strict=True) if g is not None]
        gradients, weights = zip(*pairs, strict=True)
        gradients = self.optimizer._clip_gradients([replica_mean(gradient) * count for gradient in gradients])
        # Keras clips again, which changes nothing: a share of what is within the bounds is so too. Then it adds up.
        self.optimizer.apply_gradients(zip([gradient / count for gradient in gradients], weights, strict=True))
        return self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def _torch_step(self, data):
        """Keras's step with the forward pass through `DistributedDataParallel`."""
        import torch

        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self._check_parts(x)
        y_pred = self._ddp(x, training=True)
        self.zero_grad()
        loss = self._compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True)
        self._loss_tracker.update_state(loss, sample_weight=len(keras.tree.flatten(x)[0]))
        self.optimizer.scale_loss(loss).backward()
        weights = self.trainable_weights[:]
        with torch.no_grad():
            self.optimizer.apply([weight.value.grad for weight in weights], weights)
        return self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def _check_parts(self, x):
        """Refuses parts of several sizes, and a batch that several processes bring."""
        images = keras.tree.flatten(x)[0]
        if self._seen is None:
            check_parts(ops.convert_to_numpy(images))
            object.__setattr__(self, "_seen", len(images))
        elif len(images) != self._seen:
            raise ValueError(
                f"`x` should give batches of one size on several devices. Received: {len(images)} images after "
                f"batches of {self._seen}. Leave the incomplete last batch out, e.g. by `drop_last=True`."
            )

    def get_metrics_result(self):
        if keras.config.backend() != "torch" or num_replicas() == 1:
            return super().get_metrics_result()
        # Keras's metrics are sums and counts: those of all processes together are the global ones.
        variables = [v for metric in self.metrics for v in metric.variables]
        flat = ops.concatenate([ops.reshape(ops.cast(v, "float32"), (-1,)) for v in variables])
        _torch_group().all_reduce(flat)
        pieces = ops.split(flat, np.cumsum([int(np.prod(v.shape)) for v in variables])[:-1].tolist())
        pairs = zip(variables, pieces, strict=True)
        with keras.StatelessScope([(v, ops.cast(ops.reshape(piece, v.shape), v.dtype)) for v, piece in pairs]):
            return super().get_metrics_result()


def same_on_all(model):
    """Gives every process of `torch.distributed` the first one's weights, seeds and optimizer slots."""
    group = _torch_group()
    optimizer = getattr(model, "optimizer", None)
    for variable in [*model.variables, *(optimizer.variables if optimizer is not None else [])]:
        group.broadcast(variable.value.data, src=0)
