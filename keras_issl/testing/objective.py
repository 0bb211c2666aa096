"""The contract of an objective: what it declares, its config, one forward pass. `run` trains it."""

import inspect

import keras
import numpy as np
from keras import ops

from keras_issl.testing.run import check_training
from keras_issl.testing.shared import as_numpy, copy_of, is_count, require, require_still, round_trip, values


def check_objective(objective, *, feature_dim=16, batch_size=8, biases_without_gradient=()):
    """Holds an objective against the contract of `objectives.Objective`.

    It checks, in this order: what the class declares; the constructor's defaults and the round trip through the
    config; state in float32 under the policy `bfloat16`; one forward pass on random features under `mixed_bfloat16`
    (float32 outputs, weights and loss, the declared logs, state that moves in `call(training=True)` alone, small crops,
    the EMA teacher's features); and a run of three steps in a `Pretrainer` (every trainable weight gets a gradient, EMA
    teachers start from the student, follow it once a step and are not trained, the length of the run arrives,
    evaluation changes nothing, saved weights give the same loss). The objective itself is left as it is: copies made
    from its config are tried.

    Args:
        objective: An objective whose schedules fit a run of one epoch of three steps (no warm-up over epochs, no
            frozen layers); its class must also be constructible without arguments.
        feature_dim: Width D of the random features it is tried on.
        batch_size: Images B in the random batch.
        biases_without_gradient: Parts of paths of weights that cannot have a gradient (a bias ahead
            of batch normalisation).

    Raises:
        AssertionError: A clause is broken; the message names it, and the way out.

    Example:

    >>> keras_issl.testing.check_objective(keras_issl.objectives.DISSL(num_classes=32))
    """
    _check_declarations(objective)
    _check_config(objective)
    _check_run_hook(objective, batch_size)
    _check_state(copy_of(objective, "bfloat16"), feature_dim)
    _check_forward(copy_of(objective, "mixed_bfloat16"), feature_dim, batch_size)
    check_training(objective, feature_dim, batch_size, tuple(biases_without_gradient))


# ---------------------------------------------------------------------- what is declared
def _check_declarations(objective):
    from keras_issl.objectives.base import PROBES

    name, logs = type(objective).__name__, objective.log_names
    require(
        isinstance(logs, (tuple, list)) and all(isinstance(n, str) for n in logs) and len({*logs, "loss"}) > len(logs),
        f"{name}.log_names should be a tuple of different names, none of them 'loss'. It is {logs!r}.",
    )
    for attribute in ("num_views", "num_teacher_views"):
        value = getattr(objective, attribute)
        require(is_count(value), f"{name}.{attribute} should be a positive integer. It is {value!r}.")
    require(
        objective.num_teacher_views <= objective.num_views,
        f"{name}.num_teacher_views should be at most num_views = {objective.num_views}: the teacher's views are the "
        f"first of them. It is {objective.num_teacher_views}.",
    )
    for attribute in ("multi_crop", "needs_batch_statistics", "uses_run_length"):
        value = getattr(objective, attribute)
        require(isinstance(value, bool), f"{name}.{attribute} should be True or False. It is {value!r}.")
    momentum = objective.teacher_momentum
    pair = momentum if isinstance(momentum, (tuple, list)) else (momentum, momentum)
    require(
        momentum is None or (len(pair) == 2 and all(isinstance(m, (int, float)) and 0 <= m <= 1 for m in pair)),
        f"{name}.teacher_momentum should be None (no EMA teacher), a number in [0, 1] or a pair of them. "
        f"It is {momentum!r}.",
    )
    probe = objective.probe
    require(
        isinstance(probe, keras.layers.Layer) or probe in PROBES,
        f"{name}.probe should be one of {PROBES} or a layer: pass `probe` on to Objective.__init__. It is {probe!r}.",
    )


def _check_config(objective):
    cls, config = type(objective), objective.get_config()
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    arguments = [p.name for p in inspect.signature(cls).parameters.values() if p.kind not in kinds]
    missing = [argument for argument in arguments if argument not in config]
    require(
        not missing,
        f"{cls.__name__}.get_config leaves out the arguments {missing} of its constructor, so a saved objective would "
        "come back with their defaults. Return `super().get_config() | {...}` with each of them.",
    )
    try:
        cls()
    except TypeError as error:
        raise AssertionError(
            f"{cls.__name__}() should work without arguments: give every argument a default. It fails with: {error}"
        ) from error
    round_trip(objective)


def _check_run_hook(objective, batch_size):
    for known in ({"batch_size": batch_size, "steps_per_epoch": 1000}, {"batch_size": None, "steps_per_epoch": None}):
        try:
            objective.check_run(epochs=1000, **known)
        except Exception as error:
            raise AssertionError(
                f"{type(objective).__name__}.check_run should refuse only runs that do not suit the objective, and let "
                f"pass what is not known (None). For 1000 epochs and {known} it fails with: {error}"
            ) from error


# ---------------------------------------------------------------------- state
def _check_state(objective, feature_dim):
    """State of its own is float32 even where weights are not, and no layer's `call` rounds it."""
    name = type(objective).__name__
    try:
        objective.build((objective.num_views, None, feature_dim))
    except ValueError:  # moving averages refuse such weights, as they may be the heads' here
        return
    for w in objective._non_trainable_variables:
        dtype = keras.backend.standardize_dtype(w.dtype)
        require(
            "float" not in dtype or (dtype == "float32" and not w._autocast),
            f"{name}: the state {w.path} should be float32 under bfloat16 and mixed_bfloat16 too, as small "
            'changes are rounded away in less. Pass dtype="float32" and autocast=False to `add_weight`.',
        )


# ---------------------------------------------------------------------- one forward pass
def _check_forward(objective, feature_dim, batch_size):
    name, views, teachers = type(objective).__name__, objective.num_views, objective.num_teacher_views
    objective.build((views, None, feature_dim))
    objective.built = True
    features = keras.random.normal((views, batch_size, feature_dim), seed=0)  # (V, B, D)
    ema = None if objective.teacher_momentum is None else 0.5 * features[:teachers]  # (T, B, D)

    outputs = objective(features, ema, training=True)
    require(isinstance(outputs, dict) and outputs, f"{name}.call should return a dict of tensors.")
    for key, value in outputs.items():
        dtype = keras.backend.standardize_dtype(value.dtype)
        require(
            dtype == "float32",
            f"{name}.call: the output {key!r} should be float32 under mixed_bfloat16 too, it is {dtype}. Heads run "
            'through `apply_head` give float32; else use `ops.cast(x, "float32")`.',
        )
    for w in objective.weights:
        dtype = keras.backend.standardize_dtype(w.dtype)
        require(
            "float" not in dtype or dtype == "float32",
            f"{name}: the weight {w.path} should be float32 under mixed_bfloat16 too, it is {dtype}. Leave `dtype` out "
            'of `add_weight`, or pass dtype="float32".',
        )

    before = values(objective)
    loss, logs = objective.compute_loss(outputs, 0)
    require_still(objective, before, f"{name}.compute_loss", "it also evaluates: update state in `call`, in training.")
    require(
        tuple(loss.shape) == () and keras.backend.standardize_dtype(loss.dtype) == "float32",
        f"{name}.compute_loss should return a float32 scalar first. It returned {loss.dtype} of shape {loss.shape}.",
    )
    require(np.isfinite(as_numpy(loss)), f"{name}: the loss of random features is {as_numpy(loss)}.")
    require(
        set(logs) == set(objective.log_names),
        f"{name}.compute_loss returned the logs {sorted(logs)}, the class declares {sorted(objective.log_names)} as "
        "`log_names`. They should be the same: metrics are made from the declaration.",
    )
    for key, value in logs.items():
        scalar = np.ndim(as_numpy(value)) == 0 and np.isfinite(as_numpy(value))
        require(scalar, f"{name}: the log {key!r} of random features should be a finite scalar. It is {value}.")

    def score(features, ema):
        return float(as_numpy(objective.compute_loss(objective(features, ema, training=False), 0)[0]))

    before = values(objective)
    first, second = score(features, ema), score(features, ema)
    require_still(objective, before, f"{name}.call(training=False)", "update state only where `training` is true.")
    require(
        np.isfinite(first) and np.isclose(first, second, rtol=1e-6),
        f"{name}: the loss of one batch in inference mode should repeat itself. It was {first}, then {second}.",
    )
    if ema is not None:
        require(
            score(features, -ema) != first,
            f"{name} declares teacher_momentum, but its loss does not depend on `teacher_features`. Use them in "
            "`call`, or leave teacher_momentum None: the EMA encoder costs a forward pass.",
        )
    if objective.multi_crop:
        more = ops.concatenate([features, 2.0 * features[:1]], axis=0)  # (V + 1, B, D)
        try:
            fault = None if np.isfinite(score(more, ema)) else "its loss is not finite"
        except Exception as error:  # each backend has its own kind for shapes that do not fit
            fault = f"{type(error).__name__}: {error}"
        require(
            fault is None,
            f"{name} declares multi_crop, so it should take further views, for the student alone. With {views + 1} "
            f"views and teacher features of {teachers}: {fault}",
        )
