"""A training step as what the backend computes in it, to be compared with another."""

import re

import keras
from keras import ops


def graph(model, images, labels):
    """The step of a compiled `Pretrainer` as a list of operations, or as JAX's text."""
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        state = model._get_jax_state(
            trainable_variables=True, non_trainable_variables=True, optimizer_variables=True, metrics_variables=True
        )
        text = str(jax.make_jaxpr(model.train_step)(state, (images, labels)))
        return re.sub(r"0x[0-9a-f]+", "", text)
    if backend == "tensorflow":
        import tensorflow as tf

        step = tf.function(model.train_step).get_concrete_function((tf.constant(images), tf.constant(labels)))
        return [(op.type, len(op.inputs)) for op in step.graph.get_operations()]
    from torch.utils._python_dispatch import TorchDispatchMode

    called = []

    class Note(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.append(str(function))
            return function(*args, **(kwargs or {}))

    with Note():
        model.train_step((ops.convert_to_tensor(images), ops.convert_to_tensor(labels)))
    return called
