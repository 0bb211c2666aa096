"""Less memory for more arithmetic: what the backward pass computes again instead of keeping it.

Keras's `RematScope` cannot be used for this: on JAX it fails with batch normalisation, on TensorFlow with keyword
arguments. Here what is computed again is a pure function of tensors, which every backend has a tool for.
"""

import functools
import gc

import keras
from keras import ops


def recompute(function):
    """A function that keeps its arguments for the backward pass, and computes what lies between again.

    Args:
        function: A pure function from tensors to a tensor, or to a tuple of tensors: it reads no variable, assigns
            none, and gives the same when it is called again.

    Returns:
        A function with the same values and gradients.

    Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".

    Example:

    >>> square = keras_issl.distribution.recompute(keras.ops.square)
    >>> float(square(keras.ops.convert_to_tensor(3.0)))
    9.0
    """
    if keras.config.backend() != "torch":
        return keras.remat(function)
    from torch.utils.checkpoint import checkpoint

    # An early stop is an exception through Keras's layers, which would put words of their own into it.
    return functools.partial(checkpoint, _without_leftovers(function), use_reentrant=False, early_stop=False)


def _without_leftovers(function):
    """A function that leaves no tensors behind for the garbage collector.

    On PyTorch Keras's trees are walked by functions that refer to themselves and to the tensors: a layer's
    inputs then live until the collector looks at old objects, many steps later. Collecting the youngest takes
    a millisecond, and all made within are among them as long as nothing else is collected.
    """

    @functools.wraps(function)
    def call(*args):
        enabled = gc.isenabled()
        gc.disable()
        try:
            return function(*args)
        finally:
            gc.collect(0)
            if enabled:
                gc.enable()

    return call


def sum_chunks(function, rows, shared=(), *, chunk_size):
    """The sum of a function over chunks of rows, one after the other, in the memory of one chunk.

    The backward pass computes each chunk again. It is exact where the function is a sum over rows: values and gradients
    are those of `function(*rows, *shared)` up to the order in which numbers are added. Which rows make a chunk is
    not said. (On JAX each chunk takes rows from all over the batch, so that all devices share its work.)

    Args:
        function: A pure function from tensors to a tuple of float tensors whose shapes do not depend on the number of
            rows. What it should send a gradient to has to be among its arguments. It takes the chunks of `rows` and
            then `shared`.
        rows: Sequence of tensors (N, ...). Those of integers get no gradient.
        shared: Sequence of float tensors that every chunk sees whole, such as weights.
        chunk_size: Positive integer, the rows of a chunk. It need not divide N: one chunk is then smaller.

    Returns:
        A tuple of tensors.

    Example:

    >>> x = keras.random.normal((10, 4), seed=0)
    >>> (total,) = keras_issl.distribution.sum_chunks(lambda x: (keras.ops.sum(x**2),), [x], chunk_size=4)
    """
    rows, shared = ([ops.cast(x, x.dtype) for x in tensors] for tensors in (rows, shared))  # variables as tensors
    sums = {"jax": _sum_on_jax, "tensorflow": _sum_on_tensorflow, "torch": _sum_on_torch}[keras.config.backend()]
    return tuple(sums(function, rows, shared, chunk_size))


def _add(a, b):
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _sum_on_torch(function, rows, shared, size):
    # `split` puts the gradients of all chunks together once; slices would each make one of the whole batch.
    chunks = zip(*(x.split(size) for x in rows), strict=True)
    function = recompute(function)
    return functools.reduce(_add, (function(*chunk, *shared) for chunk in chunks))


def _sum_on_jax(function, rows, shared, size):
    import jax

    count = rows[0].shape[0]
    whole = count // size
    parts = []
    if whole:
        # Chunk k takes rows k, k + whole, ...: where the batch is split over devices, each has a part of every chunk.
        chunks = [x[: whole * size].reshape(size, whole, *x.shape[1:]).swapaxes(0, 1) for x in rows]
        body = jax.checkpoint(function, prevent_cse=False)  # within a scan nothing is merged with what it repeats
        shapes = jax.eval_shape(function, *(x[0] for x in chunks), *shared)
        zeros = tuple(jax.numpy.zeros(x.shape, x.dtype) for x in shapes)
        parts.append(jax.lax.scan(lambda total, chunk: (_add(total, body(*chunk, *shared)), None), zeros, chunks)[0])
    if count % size:
        parts.append(jax.checkpoint(function)(*(x[whole * size :] for x in rows), *shared))
    return functools.reduce(_add, parts)


def _sum_on_tensorflow(function, rows, shared, size):
    import tensorflow as tf

    static = rows[0].shape[0]
    count = tf.shape(rows[0])[0] if static is None else static
    first = count % size  # rows of the first chunk, perhaps none: then it only gives sums their shapes
    others = count // size
    differentiable = [i for i, x in enumerate((*rows, *shared)) if x.dtype.is_floating]

    def chunk(tensors, i):
        """Chunk i of those of `size` rows, and what is shared."""
        start = first + i * size
        parts = []
        for x in tensors[: len(rows)]:
            part = x[start : start + size]
            part.set_shape((size, *x.shape[1:]))
            parts.append(part)
        return [*parts, *tensors[len(rows) :]]

    def first_chunk(tensors):
        return [*(x[:first] for x in tensors[: len(rows)]), *tensors[len(rows) :]]

    def loop(body, values):
        """A loop that does not begin a chunk before the last one is done, as a graph of unrolled chunks would."""
        if static is not None and not others:
            return values
        condition = lambda i, *_: i < others  # noqa: E731
        return tf.while_loop(condition, body, (tf.constant(0), *values), parallel_iterations=1)[1:]

    @tf.custom_gradient
    def total(*tensors):
        def add(i, *sums):
            return (i + 1, *_add(sums, function(*chunk(tensors, i))))

        def backward(*upstream):
            def gradients(arguments):
                watched = [arguments[i] for i in differentiable]
                with tf.GradientTape() as tape:
                    tape.watch(watched)
                    outputs = function(*arguments)
                return tape.gradient(outputs, watched, upstream, unconnected_gradients=tf.UnconnectedGradients.ZERO)

            def step(i, *state):
                arrays, sums = state[:of_rows], state[of_rows:]
                found = gradients(chunk(tensors, i))
                arrays = [array.write(i, g) for array, g in zip(arrays, found[:of_rows], strict=True)]
                return (i + 1, *arrays, *_add(sums, found[of_rows:]))

            of_rows = sum(i < len(rows) for i in differentiable)
            found = gradients(first_chunk(tensors))
            arrays = [
                tf.TensorArray(tensors[i].dtype, size=others, element_shape=(size, *tensors[i].shape[1:]))
                for i in differentiable[:of_rows]
            ]
            state = loop(step, (*arrays, *found[of_rows:]))
            rest = [array.stack() for array in state[:of_rows]]  # (others, size, ...)
            rest = [tf.reshape(x, (-1, *x.shape[2:])) for x in rest]
            joined = [tf.concat(pair, axis=0) for pair in zip(found[:of_rows], rest, strict=True)]
            all_gradients = dict(zip(differentiable, [*joined, *state[of_rows:]], strict=True))
            return [all_gradients.get(i) for i in range(len(tensors))]

        return loop(add, tuple(function(*first_chunk(tensors)))), backward

    return total(*rows, *shared)
