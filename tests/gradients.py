"""Losses against float64 references: value and gradient on the backend at hand."""

import keras
import numpy as np
import pytest
import reference
from keras import ops


def value_and_grad(loss, *arrays):
    """Value and gradient of a scalar loss on the backend at hand."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        compiled = jax.jit(jax.value_and_grad(loss, argnums=tuple(range(len(arrays)))))  # as in training
        value, grads = compiled(*map(jax.numpy.asarray, arrays))
    elif backend == "tensorflow":
        import tensorflow as tf

        tensors = [tf.Variable(a) for a in arrays]
        with tf.GradientTape() as tape:
            value = loss(*tensors)
        grads = [tf.convert_to_tensor(g) for g in tape.gradient(value, tensors, unconnected_gradients="zero")]
    else:
        import torch

        tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
        value = loss(*tensors)
        value.backward()
        grads = [torch.zeros_like(t) if t.grad is None else t.grad for t in tensors]
    return float(ops.convert_to_numpy(value)), [ops.convert_to_numpy(g) for g in grads]


def assert_equal(loss, expected, *arrays, tolerance=2e-5):
    """Value, and gradient of every tensor, against the float64 reference."""
    arrays = [np.asarray(a, "float32") for a in arrays]
    value, grads = value_and_grad(loss, *arrays)
    wanted = expected(*arrays)
    assert value == pytest.approx(wanted, rel=tolerance, abs=tolerance)
    for got, want in zip(grads, reference.gradient(expected, *arrays), strict=True):
        assert np.linalg.norm(got - want) <= tolerance * np.linalg.norm(want)


def arrays(*shapes, scale=3.0, seed=0):
    """float32 normal arrays of these shapes."""
    rng = np.random.default_rng(seed)
    return [scale * rng.normal(size=s).astype("float32") for s in shapes]
