"""The contract of an objective within a `Pretrainer`: a run of a few steps."""

import tempfile
import warnings
from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_issl.testing.shared import as_numpy, copy_of, require, require_still, values

STEPS = 3


def check_training(objective, feature_dim, batch_size, without_gradient):
    """Trains a copy of an objective for three steps and checks what has moved, and what has not."""
    objective = copy_of(objective, "float32")
    name = type(objective).__name__
    model = _pretrainer(objective, feature_dim)
    images = np.random.default_rng(0).integers(0, 256, (STEPS * batch_size, 4, 4, 3)).astype("uint8")
    batch = ops.convert_to_tensor(images[:batch_size])
    if not objective.multi_crop:
        _check_refuses_more_views(model, batch)
    pairs = _teacher_pairs(model)
    _check_teachers_start(name, model, pairs)

    before = [as_numpy(w) for w in model.trainable_weights]
    recorder = _Recorder(pairs)
    run = {"batch_size": batch_size, "epochs": 1, "shuffle": False, "verbose": 0, "callbacks": [recorder]}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Gradients do not exist")  # said below, with the way out
            history = model.fit(images, **run).history
    except ValueError as error:
        raise AssertionError(
            f"{name} should train for one epoch of {STEPS} steps. `fit` fails with: {error} Where its schedules are "
            "longer than that, check an instance with shorter ones."
        ) from error
    missing = ({"loss"} | set(objective.log_names)) - set(history)
    require(not missing, f"{name}: {sorted(missing)} are missing from the logs of fit.")
    require(np.isfinite(history["loss"][0]), f"{name}: the loss is not finite after {STEPS} steps.")
    still = [
        w.path
        for w, b in zip(model.trainable_weights, before, strict=True)
        if np.array_equal(as_numpy(w), b) and not any(part in w.path for part in without_gradient)
    ]
    require(
        not still,
        f"{name}: no gradient reaches {still}. Make what is not to be learned with `trainable=False`, and name a bias "
        "ahead of batch normalisation in `biases_without_gradient`.",
    )
    _check_teachers_follow(name, objective, pairs, recorder.seen)
    _check_run_length(name, objective)
    _check_evaluation_and_saving(name, model, feature_dim, batch)


def _pretrainer(objective, feature_dim):
    """A small encoder, with batch statistics of its own, around an objective."""
    from keras_issl.encoders import Adapter
    from keras_issl.pretraining import Pretrainer

    inputs = keras.Input((4, 4, 3))
    x = keras.layers.Dense(feature_dim, use_bias=False, dtype="float32")(keras.layers.Flatten()(inputs / 255.0))
    encoder = Adapter(keras.Model(inputs, keras.layers.BatchNormalization(dtype="float32")(x)))
    model = Pretrainer(encoder, objective, _noisy_copies(objective.num_views))
    # Plain SGD keeps in place what has no gradient; clipped, it does not care how large a loss is.
    model.compile(optimizer=keras.optimizers.SGD(0.5, clipnorm=1.0))
    return model


def _noisy_copies(views):
    def augment(images):
        x = ops.cast(images, "float32")
        return [x * (1.0 - 0.1 * i) + 3.0 * i for i in range(views)]

    return augment


def _check_refuses_more_views(model, batch):
    augmentation, model.augmentation = model.augmentation, _noisy_copies(model.objective.num_views + 1)
    try:
        model.views(batch)
    except ValueError:
        return
    finally:
        model.augmentation = augmentation
    raise AssertionError(
        f"{type(model.objective).__name__} does not declare multi_crop, and got more than num_views views. Set "
        "`multi_crop = True` if it can use them."
    )


def _teacher_pairs(model):
    """[(layer, its EMA copy)] of a pretrainer: the encoder's first, then the heads'."""
    if model.teacher_encoder is None:
        return list(model.objective.teacher_pairs)
    return [(model.encoder, model.teacher_encoder), *model.objective.teacher_pairs]


def _check_teachers_start(name, model, pairs):
    require(
        not pairs or model.teacher_encoder is not None,
        f"{name} has heads that follow others, so it should declare `teacher_momentum`, at which they do.",
    )
    trained = {id(w) for w in model.trainable_weights}
    for layer, copy in pairs:
        for theirs, ours in zip(layer.weights, copy.weights, strict=True):
            require(
                np.array_equal(as_numpy(theirs), as_numpy(ours)),
                f"{name}: the EMA teacher's {ours.path} should start from the student's value. Make it with "
                "`self.follow(head)` in `build`, once the head is built.",
            )
            require(
                id(ours) not in trained,
                f"{name}: the EMA teacher's {ours.path} should not be trained. Make it with `self.follow(head)`, and "
                "leave its `trainable` alone.",
            )


class _Recorder(keras.callbacks.Callback):
    """Notes the values of students and teachers after each step."""

    def __init__(self, pairs):
        super().__init__()
        self.pairs, self.seen = pairs, []

    def on_train_batch_end(self, batch, logs=None):
        if self.pairs and self.model is not None:  # asking for the model brings its values up to date on JAX
            self.seen.append([([*map(as_numpy, a.weights)], [*map(as_numpy, b.weights)]) for a, b in self.pairs])


def _check_teachers_follow(name, objective, pairs, seen):
    """With S, T after n steps, step n + 1 begins with T = m·T + (1 − m)·S at the momentum m of step n."""
    for n, (before, after) in enumerate(zip(seen, seen[1:], strict=False)):
        m = float(as_numpy(objective.momentum(n)))
        for (_, copy), (students, teachers), (_, moved) in zip(pairs, before, after, strict=True):
            for w, s, t, new in zip(copy.weights, students, teachers, moved, strict=True):
                require(
                    np.allclose(new, m * t + (1 - m) * s, rtol=1e-4, atol=1e-5)
                    or not np.issubdtype(s.dtype, np.floating),
                    f"{name}: the EMA teacher's {w.path} should move once a step to m·teacher + (1 − m)·student with "
                    f"m = {m:g}, and by nothing else. Leave moving it to the Pretrainer, and run teacher heads through "
                    "`apply_teacher_head`, which sends no gradient into them and leaves their batch statistics alone.",
                )


def _check_run_length(name, objective):
    if objective.uses_run_length:
        seen = [float(as_numpy(objective.progress(step))) for step in (0, STEPS)]
        seen.append(float(as_numpy(objective.epoch(STEPS))))
        require(
            np.allclose(seen, [0, 1, 1]),
            f"{name}: after a run of one epoch progress(0), progress({STEPS}) and epoch({STEPS}) should be 0, 1, 1. "
            f"They are {seen}. Do not override `set_run_length`, and pass **kwargs on to Objective.__init__.",
        )


def _check_evaluation_and_saving(name, model, feature_dim, batch):
    def score(model):
        outputs = model.outputs(batch, training=False)
        return float(as_numpy(model.objective.compute_loss(outputs, model.steps)[0]))

    before = values(model)
    first, second = score(model), score(model)
    require_still(model, before, f"Evaluating {name}", "move it in `call`, and only in training.")
    require(
        np.isclose(first, second, rtol=1e-6),
        f"{name}: evaluation should repeat itself. The loss was {first}, then {second}.",
    )
    again = _pretrainer(copy_of(model.objective, "float32"), feature_dim)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.weights.h5"
        model.save_weights(path)
        again.load_weights(path)
    same = all(np.array_equal(a, b) for a, b in zip(values(model), values(again), strict=True))
    require(
        same and np.isclose(score(again), first, rtol=1e-6),
        f"{name}: a model with the saved weights should have the same state and loss ({first}). It has {score(again)}. "
        "Make all state with `add_weight` in `build`, and in the same order every time.",
    )
