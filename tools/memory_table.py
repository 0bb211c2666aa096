"""Memory and time of the losses and of the encoder, as they are and with the switches of docs/memory.md.

    KERAS_BACKEND=jax python tools/memory_table.py            # what XLA plans for large cases; nothing is executed
    KERAS_BACKEND=torch python tools/memory_table.py --run    # small cases, executed on the backend at hand

Without `--run` it prints for the gradient of each loss, with respect to what the loss takes and the weights of the
last layers: the temporary memory that XLA plans on a CPU (`Compiled.memory_analysis().temp_size_in_bytes`, without the
arguments and the gradients themselves), and what is kept from the forward to the backward pass, inputs and weights
among it (the leaves of what `jax.vjp` returns). With `--run` each number is from a process of its own: the median of
CPU seconds of `--steps` steps after one that compiles, on one thread; and how far the peak of its resident memory rose
over what it was before the first step, while the allocator gives back what is freed (MALLOC_MMAP_THRESHOLD_=65536,
glibc).
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

MB = 1e6
# loss, images, classes (or None), chunk size (None: the plain form). Large ones are only compiled.
PLANNED = [
    ("dissl", 4096, 65536, None),
    *(("dissl", 4096, 65536, size) for size in (1024, 256, 64)),
    ("cissl", 32768, None, None),
    *(("cissl", 32768, None, size) for size in (4096, 1024, 256)),
]
EXECUTED = [
    ("dissl", 512, 8192, None),
    *(("dissl", 512, 8192, size) for size in (256, 64, 16)),
    ("cissl", 2048, None, None),
    *(("cissl", 2048, None, size) for size in (512, 128, 32)),
]
# variant, pixels, images of one step; whether activations are computed again
ENCODERS = [("resnet", 50, 224, 64, False), ("resnet", 50, 224, 64, True)]
SMALL_ENCODERS = [("resnet", 18, 32, 64, False), ("resnet", 18, 32, 64, True)]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
ONE_THREAD["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
GIVE_BACK = ONE_THREAD | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
BOTTLENECK, WIDTH, VIEWS = 512, 128, 2


def loss_of(kind, classes, chunk):
    """A scalar function of arrays: what DISSL's last layers take and their weights, or CISSL's projections."""
    from keras import ops

    from keras_issl import losses

    if kind == "cissl":
        return lambda student, teacher: losses.cissl_loss(student=student, teacher=teacher, chunk_size=chunk)

    def dissl(teacher, student, teacher_kernel, student_kernel):
        if chunk is None:
            return losses.dissl_loss(
                teacher_logits=ops.matmul(teacher, teacher_kernel), student_logits=ops.matmul(student, student_kernel)
            )[0]
        return losses.chunked_dissl_loss(
            teacher=teacher,
            student=student,
            teacher_output=(teacher_kernel, None),
            student_output=(student_kernel, None),
            chunk_size=chunk,
        )[0]

    return dissl


def shapes_of(kind, batch, classes):
    if kind == "cissl":
        return [(VIEWS, batch, WIDTH)] * 2
    return [(VIEWS, batch, BOTTLENECK)] * 2 + [(BOTTLENECK, classes)] * 2


def encoder_loss(variant, remat):
    """A scalar function of (trainable values, other values, images) of a ResNet in training, and its variables."""
    import keras
    from keras import ops

    import keras_issl

    encoder = keras_issl.encoders.ResNet(variant)
    forward = keras_issl.encoders.Remat(encoder) if remat else encoder

    def loss(trained, state, images):
        variables = [*encoder.trainable_variables, *encoder.non_trainable_variables]
        with keras.StatelessScope(zip(variables, [*trained, *state], strict=True)):
            return ops.mean(ops.square(forward(images, training=True)))

    return loss, encoder


def planned_bytes(row):
    """What XLA plans for the gradient, and what the forward pass keeps for the backward pass, in bytes."""
    import jax
    import jax.numpy as jnp

    if row[0] == "resnet":
        _, variant, side, batch, remat = row
        loss, encoder = encoder_loss(variant, remat)
        arrays = [
            [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in variables]
            for variables in (encoder.trainable_variables, encoder.non_trainable_variables)
        ]
        arrays.append(jax.ShapeDtypeStruct((batch, side, side, 3), jnp.float32))
        wanted = (0,)
    else:
        kind, batch, classes, chunk = row
        arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes_of(kind, batch, classes)]
        loss, wanted = loss_of(kind, classes, chunk), tuple(range(len(arrays)))

    def backward(*arrays):
        fixed = arrays[len(wanted) :]
        return jax.vjp(lambda *x: loss(*x, *fixed), *arrays[: len(wanted)])[1]  # its leaves are what it keeps

    kept = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(backward, *arrays)))
    compiled = jax.jit(jax.grad(loss, argnums=wanted)).lower(*arrays).compile()
    return compiled.memory_analysis().temp_size_in_bytes, kept


def compiled_step(row):
    """A function without arguments that takes one step of the backend at hand, as `fit` would compile it."""
    import keras
    import numpy as np

    import keras_issl

    rng = np.random.default_rng(0)
    if row[0] == "resnet":
        _, variant, side, batch, remat = row
        encoder = keras_issl.encoders.ResNet(variant, image_size=side)
        model = keras_issl.Pretrainer(encoder, keras_issl.objectives.CISSL(), remat=remat)
        model.compile(keras.optimizers.SGD(0.01))
        images = rng.integers(0, 256, (batch, side, side, 3), dtype="uint8")
        return lambda: model.train_on_batch(images)
    kind, batch, classes, chunk = row
    loss = loss_of(kind, classes, chunk)
    arrays = [rng.normal(size=shape).astype("float32") / 10 for shape in shapes_of(kind, batch, classes)]
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        gradient = jax.jit(jax.grad(loss, argnums=tuple(range(len(arrays)))))
        arrays = [jax.numpy.asarray(x) for x in arrays]
        return lambda: jax.block_until_ready(gradient(*arrays))
    if backend == "tensorflow":
        import tensorflow as tf

        @tf.function
        def step(*tensors):
            with tf.GradientTape() as tape:
                tape.watch(tensors)
                value = loss(*tensors)
            return tape.gradient(value, tensors)

        tensors = [tf.constant(x) for x in arrays]
        return lambda: [g.numpy() for g in step(*tensors)]
    import torch

    tensors = [torch.tensor(x, requires_grad=True) for x in arrays]
    return lambda: torch.autograd.grad(loss(*tensors), tensors)


def peak():
    """Peak resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def worker(row, steps):
    """Measures one row; its last line is JSON."""
    step, before = compiled_step(row), peak()
    step()
    times = []
    for _ in range(steps):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    print(json.dumps([statistics.median(times), peak() - before]))


def described(row):
    if row[0] == "resnet":
        _, variant, side, batch, remat = row
        return f"ResNet-{variant}, {side} px, {batch} images", "remat" if remat else "plain"
    kind, batch, classes, chunk = row
    name = kind.upper() if classes is None else f"{kind.upper()}, C = {classes}"
    return f"{name}, {batch} images x {VIEWS} views", "plain" if chunk is None else f"chunk_size={chunk}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="execute the small cases on the backend at hand")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        worker(json.loads(arguments.row), arguments.steps)
        return
    import keras

    backend = keras.config.backend()
    if not arguments.run:
        if backend != "jax":
            parser.error(f"memory is planned by JAX's compiler: set KERAS_BACKEND=jax. It is {backend}.")
        print("| gradient of | form | temporary, MB | kept for the backward pass, MB |\n|---|---|---|---|")
        for row in [*PLANNED, *ENCODERS]:
            temporary, kept = (f"{x / MB:,.0f}" for x in planned_bytes(row))
            print(f"| {' | '.join(described(row))} | {temporary} | {kept} |", flush=True)
        return
    print(f"| one step, {backend} | form | CPU seconds | peak rises by, MB |\n|---|---|---|---|")
    for row in [*EXECUTED, *SMALL_ENCODERS]:
        seconds, _ = measured(row, arguments.steps, ONE_THREAD)
        _, rise = measured(row, 1, GIVE_BACK)
        print(f"| {' | '.join(described(row))} | {seconds:.2f} | {rise / MB:,.0f} |", flush=True)


def measured(row, steps, environment):
    """(CPU seconds, bytes) of a row in a process of its own."""
    command = [sys.executable, __file__, "--steps", str(steps), "--row", json.dumps(row)]
    said = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    if said.returncode:
        raise RuntimeError(said.stderr[-3000:])
    return json.loads(said.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
