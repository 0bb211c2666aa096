"""One contract suite for every objective and encoder, this library's or a third party's.

Each check raises an `AssertionError` that says which clause of the contract is broken.
"""

import keras
import numpy as np
from keras import ops


def _numpy(x):
    return ops.convert_to_numpy(x)


def _require(condition, message):
    if not condition:
        raise AssertionError(message)


def _round_trip(member):
    config = keras.saving.serialize_keras_object(member)
    again = keras.saving.deserialize_keras_object(config)
    _require(
        type(again) is type(member) and again.get_config() == member.get_config(),
        f"{type(member).__name__} does not survive get_config/from_config. "
        "Register the class and return every argument of its constructor from get_config.",
    )
    return again


def check_objective(objective, *, feature_dim=16, batch_size=8, biases_without_gradient=()):
    """Holds an objective against the contract of `objectives.Objective`.

    It checks the defaults, the declarations, the round trip through the config, the outputs and
    their dtype under float32 and bfloat16, that the declared logs are the logs, that every
    trainable weight gets a gradient, and one training step inside a `Pretrainer`.

    Args:
        objective: An unbuilt objective; its class must also be constructible without arguments.
        feature_dim: Width D of the random features it is tried on.
        batch_size: Images B in the random batch.
        biases_without_gradient: Parts of paths of weights that cannot have a gradient (a bias ahead
            of batch normalisation).

    Raises:
        AssertionError: A clause is broken; the message names it.

    Example:

    >>> keras_issl.testing.check_objective(keras_issl.objectives.DISSL(num_classes=32))
    """
    from keras_issl.encoders import Adapter
    from keras_issl.pretraining import Pretrainer

    name = type(objective).__name__
    type(objective)()  # constructible without arguments
    _round_trip(objective)
    _require(all(isinstance(n, str) for n in objective.log_names), f"{name}.log_names should hold strings.")
    _require(
        1 <= objective.num_teacher_views <= objective.num_views, f"{name}: num_teacher_views should be in 1..num_views."
    )

    views = objective.num_views
    features = keras.random.normal((views, batch_size, feature_dim), seed=0)
    objective.build((views, None, feature_dim))
    objective.built = True
    outputs = objective(features, training=True)
    _require(isinstance(outputs, dict) and outputs, f"{name}.call should return a dict of tensors.")
    for key, value in outputs.items():
        dtype = keras.backend.standardize_dtype(value.dtype)
        _require(dtype == "float32", f"{name}.call: output {key!r} should be float32, it is {dtype}.")
    loss, logs = objective.compute_loss(outputs, 0)
    _require(tuple(loss.shape) == (), f"{name}.compute_loss should return a scalar loss.")
    _require(np.isfinite(_numpy(loss)), f"{name}: the loss of random features is {_numpy(loss)}.")
    _require(
        set(logs) == set(objective.log_names),
        f"{name}.compute_loss returned the logs {sorted(logs)}, it declares {sorted(objective.log_names)}.",
    )
    again = objective.compute_loss(objective(features, training=True), 0)[0]
    _require(np.allclose(_numpy(loss), _numpy(again), atol=1e-5), f"{name}: the loss of one batch is not repeatable.")

    # One real step: every trainable weight moves, with plain SGD only a gradient of zero keeps it in place.
    for policy in ("float32", "mixed_bfloat16"):
        fresh = _with_policy(objective, policy)
        inputs = keras.Input((4, 4, 3))
        pooled = keras.layers.Dense(feature_dim, dtype="float32")(keras.layers.Flatten()(inputs / 255.0))
        encoder = Adapter(keras.Model(inputs, pooled))
        model = Pretrainer(encoder, fresh, _two_noisy_copies(views))
        model.compile(optimizer=keras.optimizers.SGD(1.0))
        before = [_numpy(w) for w in model.trainable_weights]
        images = np.random.default_rng(0).integers(0, 256, (batch_size, 4, 4, 3)).astype("uint8")
        result = model.fit(images, batch_size=batch_size, verbose=0).history
        missing = ({"loss"} | set(objective.log_names)) - set(result)
        _require(not missing, f"{name}: {sorted(missing)} are missing from the logs of fit.")
        _require(np.isfinite(result["loss"][0]), f"{name}: the loss is not finite after a step in {policy}.")
        if policy == "float32":
            still = [
                w.path
                for w, b in zip(model.trainable_weights, before, strict=True)
                if np.array_equal(_numpy(w), b) and not any(part in w.path for part in biases_without_gradient)
            ]
            _require(not still, f"{name}: no gradient reaches {still}.")


def _with_policy(member, policy):
    config = member.get_config()
    config["dtype"] = policy
    config.pop("name", None)
    return type(member).from_config(config)


def _two_noisy_copies(views):
    def augment(images):
        x = ops.cast(images, "float32")
        return [x * (1.0 - 0.1 * i) + 3.0 * i for i in range(views)]

    return augment


def check_encoder(encoder, *, image_shape=(32, 32, 3)):
    """Holds an encoder against its contract: images in [0, 255] to finite (B, D) float32 features.

    It checks uint8 and float images, the declared width, that images do not see each other in
    inference, the round trip through the config, and that training mode updates nothing but
    non-trainable state.

    Args:
        encoder: A `keras.Model`, e.g. `encoders.ResNet(...)` or an adapted backbone.
        image_shape: (H, W, C) of the random images it is tried on.

    Raises:
        AssertionError: A clause is broken; the message names it.

    Example:

    >>> keras_issl.testing.check_encoder(keras_issl.encoders.ResNet(18, image_size=32, width=8))
    """
    from keras_issl.encoders import feature_dim

    name = type(encoder).__name__
    images = np.random.default_rng(0).integers(0, 256, (4, *image_shape)).astype("uint8")
    features = _numpy(encoder(images, training=False))
    _require(features.ndim == 2 and len(features) == 4, f"{name} should return (B, D). It returned {features.shape}.")
    _require(features.dtype == np.float32, f"{name} should return float32 features. It returned {features.dtype}.")
    _require(features.shape[1] == feature_dim(encoder), f"{name}: features are not as wide as declared.")
    _require(np.isfinite(features).all(), f"{name}: features of random images are not finite.")
    _require(features.std(axis=0).max() > 0, f"{name}: features do not depend on the image.")
    scale = np.abs(features).max()
    as_float = _numpy(encoder(images.astype("float32"), training=False))
    _require(np.allclose(features, as_float, atol=1e-4 * scale), f"{name}: uint8 and float images differ.")
    alone = _numpy(encoder(images[:1], training=False))
    _require(np.allclose(features[:1], alone, atol=1e-4 * scale), f"{name}: images of a batch see each other.")
    before = [_numpy(w) for w in encoder.trainable_weights]
    encoder(images, training=True)
    same = all(np.array_equal(_numpy(w), b) for w, b in zip(encoder.trainable_weights, before, strict=True))
    _require(same, f"{name}: a forward pass changed trainable weights.")
    _round_trip(encoder)
