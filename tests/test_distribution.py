"""Replicas and devices, and the native layers against float64 NumPy and plain PyTorch."""

import contextlib
import os
import subprocess
import sys
import textwrap
from unittest import mock

import keras
import many_devices
import members
import numpy as np
import pytest
import torch
from graphs import graph
from keras import ops

from keras_issl import distribution
from keras_issl.distribution import BatchNormalization, Conv2D, MaxPooling2D

BACKEND = keras.config.backend()


def array(x):
    """A tensor of any backend and dtype as float64 NumPy."""
    x = x.detach() if BACKEND == "torch" and hasattr(x, "detach") else x
    return np.asarray(ops.convert_to_numpy(ops.cast(x, "float32")), "float64")


def forward_and_gradients(layer, x, cotangent, training=None):
    """Outputs, and gradients of sum(outputs * cotangent): of the input, then of each trainable weight."""
    x = ops.convert_to_tensor(x)
    kwargs = {} if training is None else {"training": training}

    def scalar(y):
        return ops.sum(ops.cast(y, "float32") * ops.convert_to_tensor(cotangent.astype("float32")))

    if BACKEND == "torch":
        x = x.detach().requires_grad_(True)
        layer.zero_grad()
        y = layer(x, **kwargs)
        scalar(y).backward()
        gradients = [x.grad, *(w.value.grad for w in layer.trainable_weights)]
    elif BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, **kwargs)
            loss = scalar(y)
        gradients = tape.gradient(loss, [x, *(w.value for w in layer.trainable_weights)])
    else:
        import jax

        def loss(x, weights):
            y, rest = layer.stateless_call(weights, [w.value for w in layer.non_trainable_variables], x, **kwargs)
            return scalar(y), (y, rest)

        weights = [w.value for w in layer.trainable_variables]
        (dx, dw), (y, rest) = jax.grad(loss, argnums=(0, 1), has_aux=True)(x, weights)
        for variable, value in zip(layer.non_trainable_variables, rest, strict=True):
            variable.assign(value)
        gradients = [dx, *dw]
    return array(y), [array(g) for g in gradients]


def reference_batch_norm(x, gamma, beta, moving_mean, moving_variance, cotangent, training, epsilon, momentum):
    """Ioffe and Szegedy 2015, algorithm 1 and the gradients of its section 3, in float64 over all but the last axis."""
    axes = tuple(range(x.ndim - 1))
    count = x[..., 0].size
    mean, variance = (x.mean(axes), x.var(axes)) if training else (moving_mean, moving_variance)
    scale = 1 / np.sqrt(variance + epsilon)
    normal = (x - mean) * scale
    d_gamma, d_beta = (cotangent * normal).sum(axes), cotangent.sum(axes)
    dx = gamma * scale * cotangent
    if training:
        dx -= gamma * scale * (d_beta + normal * d_gamma) / count
        moving_mean = momentum * moving_mean + (1 - momentum) * mean
        moving_variance = momentum * moving_variance + (1 - momentum) * variance
    return gamma * normal + beta, [dx, d_gamma, d_beta], [moving_mean, moving_variance]


def randomised(layer, shape, rng):
    """Builds a layer and gives it weights that are nobody's default."""
    if not layer.built:
        layer.build(shape)
    channels = shape[-1]
    values = {
        "gamma": rng.uniform(0.5, 2, channels),
        "beta": rng.normal(size=channels),
        "moving_mean": rng.normal(size=channels),
        "moving_variance": rng.uniform(0.5, 2, channels),
    }
    for weight in layer.weights:
        weight.assign(values[weight.name])
    return [array(getattr(layer, name)) if getattr(layer, name) is not None else None for name in values]


def close(value, expected, tolerance):
    np.testing.assert_allclose(value, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(12, 5), (6, 7, 5, 9)])
def test_batch_normalization_equals_float64(shape, training, rng):
    layer = BatchNormalization()
    gamma, beta, mean, variance = randomised(layer, shape, rng)
    x, cotangent = rng.normal(2, 3, shape).astype("float32"), rng.normal(size=shape)
    expected = reference_batch_norm(x.astype("float64"), gamma, beta, mean, variance, cotangent, training, 1e-5, 0.9)
    y, gradients = forward_and_gradients(layer, x, cotangent, training)
    close(y, expected[0], 2e-6)
    for gradient, wanted in zip(gradients, expected[1], strict=True):
        close(gradient, wanted, 1e-5)
    close(array(layer.moving_mean), expected[2][0], 2e-6)
    close(array(layer.moving_variance), expected[2][1], 2e-6)


@pytest.mark.parametrize("training", [True, False])
def test_batch_normalization_in_bfloat16_keeps_float32_statistics(training, rng):
    shape = (16, 4, 4, 3)
    layer = BatchNormalization(dtype="mixed_bfloat16")
    gamma, beta, mean, variance = randomised(layer, shape, rng)
    x = ops.cast(rng.normal(2, 3, shape).astype("float32"), "bfloat16")
    y, (dx, *_) = forward_and_gradients(layer, x, np.ones(shape), training)
    assert keras.backend.standardize_dtype(layer(x, training=False).dtype) == "bfloat16"
    expected = reference_batch_norm(array(x), gamma, beta, mean, variance, np.ones(shape), training, 1e-5, 0.9)
    np.testing.assert_allclose(y, expected[0], rtol=2**-7, atol=2**-7)
    np.testing.assert_allclose(dx, expected[1][0], rtol=2**-7, atol=2**-7)
    close(array(layer.moving_mean), expected[2][0], 2e-6)
    close(array(layer.moving_variance), expected[2][1], 2e-6)


@pytest.mark.parametrize("arguments", [{}, {"center": False}, {"scale": False}, {"center": False, "scale": False}])
@pytest.mark.parametrize("shape", [(8, 4), (8, 3, 3, 4), (8, 3, 4)])
def test_batch_normalization_equals_keras(shape, arguments, rng):
    """Without gamma or beta, and on a shape without native kernel, in training and then in inference."""
    ours, theirs = BatchNormalization(**arguments), keras.layers.BatchNormalization(-1, 0.9, 1e-5, **arguments)
    randomised(ours, shape, rng)
    theirs.build(shape)
    theirs.set_weights(ours.get_weights())
    assert [w.name for w in ours.weights] == [w.name for w in theirs.weights]
    x = rng.normal(1, 2, shape).astype("float32")
    for training in (True, False):
        np.testing.assert_allclose(array(ours(x, training=training)), array(theirs(x, training=training)), atol=2e-5)
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_batch_normalization_of_one_value_a_channel():
    """Variance 0: the output is beta and the moving variance decays, where a Bessel correction would divide by 0."""
    layer = BatchNormalization()
    y = array(layer(np.full((1, 4), 3.0, "float32"), training=True))
    np.testing.assert_allclose(y, np.zeros((1, 4)), atol=1e-4)  # float32 rounding of 3, times 1 / sqrt(epsilon)
    np.testing.assert_allclose(layer.get_weights()[2:], [[0.3] * 4, [0.9] * 4], rtol=1e-6)


def test_frozen_batch_normalization_is_in_inference_mode(rng):
    layer = BatchNormalization()
    randomised(layer, (8, 4), rng)
    layer.trainable = False
    before = layer.get_weights()
    x = rng.normal(size=(8, 4)).astype("float32")
    np.testing.assert_array_equal(array(layer(x, training=True)), array(layer(x, training=False)))
    np.testing.assert_array_equal(before, layer.get_weights())


def test_batch_normalization_is_the_same_under_fit(rng):
    """Compiled, and with a last batch of another size: the statistics are those of two eager calls."""
    x = rng.normal(2, 3, (6, 5, 5, 4)).astype("float32")
    layer, eager = BatchNormalization(), BatchNormalization()
    model = keras.Sequential([keras.Input((None, None, 4)), layer])
    randomised(layer, (None, None, None, 4), rng)
    eager.build((None, None, None, 4))
    eager.set_weights(layer.get_weights())
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=distribution.jit_compile_default())
    model.fit(x, x, batch_size=4, shuffle=False, verbose=0)
    eager(x[:4], training=True)
    eager(x[4:], training=True)
    for fitted, expected in zip(layer.get_weights(), eager.get_weights(), strict=True):
        np.testing.assert_allclose(fitted, expected, rtol=1e-5)
    np.testing.assert_allclose(model.predict(x, verbose=0), array(eager(x, training=False)), atol=1e-5)


@pytest.mark.parametrize("size", [(7, 9), (8, 8)])
@pytest.mark.parametrize(
    ("kernel", "stride", "groups"), [(1, 1, 1), (1, 2, 1), (3, 1, 1), (3, 2, 1), (7, 2, 1), (3, 1, 2)]
)
def test_convolution_equals_torch(size, kernel, stride, groups, rng):
    x = rng.normal(size=(2, *size, 4)).astype("float32")
    layer = Conv2D(6, kernel, strides=stride, groups=groups)
    layer.build(x.shape)
    layer.bias.assign(rng.normal(size=6))
    w, b = (torch.tensor(np.array(ops.convert_to_numpy(v)), requires_grad=True) for v in layer.weights)
    images = torch.tensor(x, requires_grad=True)
    expected = torch.nn.functional.conv2d(
        images.permute(0, 3, 1, 2), w.permute(3, 2, 0, 1), b, stride, kernel // 2, groups=groups
    ).permute(0, 2, 3, 1)
    assert layer.compute_output_shape((None, *size, 4)) == (None, *expected.shape[1:])
    cotangent = rng.normal(size=expected.shape).astype("float32")
    (expected * torch.tensor(cotangent)).sum().backward()
    y, gradients = forward_and_gradients(layer, x, cotangent)
    close(y, expected.detach().cpu().numpy(), 1e-5)
    for gradient, tensor in zip(gradients, (images, w, b), strict=True):
        close(gradient, tensor.grad.cpu().numpy(), 1e-5)


@pytest.mark.parametrize("size", [(7, 9), (8, 8), (1, 2)])
def test_max_pooling_equals_torch(size, rng):
    """On negative numbers: a border of zeros would win."""
    x = -rng.uniform(1, 2, (2, *size, 3)).astype("float32")
    layer = MaxPooling2D(3, strides=2)
    images = torch.tensor(x, requires_grad=True)
    expected = torch.nn.functional.max_pool2d(images.permute(0, 3, 1, 2), 3, 2, 1).permute(0, 2, 3, 1)
    assert layer.compute_output_shape((None, *size, 3)) == (None, *expected.shape[1:])
    cotangent = rng.normal(size=expected.shape).astype("float32")
    (expected * torch.tensor(cotangent)).sum().backward()
    y, (dx,) = forward_and_gradients(layer, x, cotangent)
    np.testing.assert_array_equal(y, expected.detach().cpu().numpy())
    np.testing.assert_allclose(dx, images.grad.cpu().numpy(), atol=1e-6)


@pytest.mark.parametrize(
    "layer", [BatchNormalization(epsilon=1e-4), Conv2D(6, 3, strides=2, use_bias=False), MaxPooling2D(3, strides=2)]
)
def test_layers_survive_serialisation(layer, rng):
    x = rng.normal(size=(2, 8, 8, 3)).astype("float32")
    y = layer(x)
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    if not twin.built:
        twin.build(x.shape)
    twin.set_weights(layer.get_weights())
    assert type(twin) is type(layer)
    assert twin.get_config() == layer.get_config()
    np.testing.assert_array_equal(array(twin(x)), array(y))


def test_one_replica_is_the_global_batch(rng):
    x = rng.normal(size=(4, 3)).astype("float32")
    assert distribution.num_replicas() == 1
    np.testing.assert_array_equal(array(distribution.gather(ops.convert_to_tensor(x))), x)
    np.testing.assert_allclose(array(distribution.global_mean(ops.convert_to_tensor(x))), x.mean(0), rtol=1e-6)


# PyTorch notes the operations of a step in no time; the others trace and compile.
@pytest.mark.parametrize("name", members.SMALL if BACKEND == "torch" else ["DISSL"])
def test_on_one_device_the_seam_adds_nothing_to_the_step(name, rng):
    """The same operations in the same order as with functions in its place that know nothing of devices."""
    plain = {
        "gather": lambda x: x, "global_mean": lambda x: ops.mean(x, axis=0), "replica_mean": lambda x: x,
        "num_replicas": lambda: 1, "replica_index": lambda: 0, "scale_loss": lambda x: x,
        "scale_gradients": lambda x: x, "draw": lambda sample, shape, axis: sample(shape),
        "pool_moments": lambda mean, variance, center=0.0: (mean, variance),
    }  # fmt: skip
    images, labels = rng.integers(0, 256, (4, 12, 12, 3), dtype="uint8"), np.arange(4, dtype="int32") % 2

    def step():
        keras.backend.clear_session()
        model = many_devices.small(name)
        model.compile(keras.optimizers.SGD(0.01))
        model.optimizer.build(model.trainable_variables)
        return graph(model, images, labels)

    found = step()
    with contextlib.ExitStack() as stack:
        for function, replacement in plain.items():
            stack.enter_context(mock.patch.object(distribution, function, replacement))
        stack.enter_context(mock.patch.object(distribution.layers, "pool_moments", plain["pool_moments"]))
        expected = step()
    assert found == expected and len(found) > 100


@pytest.mark.skipif(BACKEND != "jax", reason="of the others see test_many_devices.py")
def test_on_jax_two_devices_are_one_replica_of_global_arrays():
    """In a fresh process on the CPU alone, because devices are made once a process."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu", "KERAS_BACKEND": "jax"}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    script = """
        import jax, keras, numpy as np
        from keras_issl import distribution
        assert len(jax.devices()) == 2 and distribution.parts_of_batch() == 1
        keras.distribution.set_distribution(keras.distribution.DataParallel())
        x = np.arange(8, dtype="float32").reshape(4, 2)
        assert distribution.num_replicas() == 1 and distribution.parts_of_batch() == 2
        assert not distribution.has_accelerator() and distribution.jit_compile_default() == "auto"
        x = keras.ops.convert_to_tensor(x)
        np.testing.assert_array_equal(distribution.gather(x), x)
        np.testing.assert_array_equal(distribution.global_mean(x), [3, 4])
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
