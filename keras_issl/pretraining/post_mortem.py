"""After a loss that is not a number: the last good weights, and the first tensor that was bad."""

import keras
import numpy as np
from keras import ops

from keras_issl import datasets, distribution
from keras_issl.callbacks import NonFiniteLoss, Snapshot
from keras_issl.callbacks.snapshot import not_finite

ADVICE = {
    "image": "Look for NaN or infinity among the images.",
    "view": "Look at the augmentation: try it on single images, and in float32.",
    "feature": "Lower the learning rate or warm it up longer; under float16 use bfloat16.",
    "logit": "Lower the learning rate, or raise the temperature; under float16 use bfloat16.",
    "loss": "Look at the objective: a logarithm or a root of 0, a temperature that is too low.",
    "gradient": "Look at roots, norms and logarithms near 0 in the encoder or the objective; clip gradients "
    "(`clipvalue`); lower the learning rate.",
    "weight": "Lower the learning rate, and look at its schedule.",
}
ORDER = ("image", "view", "feature", "logit", "loss", "gradient")


def explain(model, error, batches):
    """Brings a model back to before its first bad step.

    The steps since the last copy are repeated, each from the state before it, until one is bad. That one is looked at
    tensor by tensor, uncompiled.

    Args:
        model: The `Pretrainer`, out of `fit`.
        error: The guard's `NonFiniteLoss`.
        batches: `datasets.Batches` that `fit` took; of anything else nothing can be repeated.

    Returns:
        A `NonFiniteLoss` that says what was found.
    """
    if error.snapshot is None:  # the weights were bad from the start
        return _told(error, f"{error} {error.tensor}: NaN or infinity before the first step. {ADVICE['weight']}")
    damaged = not_finite(model)
    error.snapshot.restore(model)
    repeatable = isinstance(batches, datasets.Batches) and model.steps_per_execution == 1
    if not repeatable:
        epoch, batch = error.taken
        return _told(
            error,
            f"{error} The model has the weights from before batch {batch + 1} of epoch {epoch + 1} again. Which tensor "
            "was the first to be bad is not known: this stream cannot be asked for the same batches again. Train on an "
            "array, an ImageDataset or `datasets.Batches` to have it named. Lower the learning rate, clip gradients "
            "(`clipvalue`), or look for images with NaN.",
        )
    for epoch, number in _steps(error.taken, error.seen, len(batches)):
        step, before = int(model.steps) + 1, Snapshot(model)
        x, y, _ = keras.utils.unpack_x_y_sample_weight(batches.batch(epoch, number))
        model.reset_metrics()
        loss = model.train_on_batch(x, y, return_dict=True)["loss"]
        after = not_finite(model)
        if np.isfinite(float(loss)) and not after:
            continue
        before.restore(model)
        kind, tensor = _first_bad(model, x, y) or ("weight", _listed(after))
        before.restore(model)
        return _found(step, epoch, number, kind, tensor, model)
    tensor = _listed(damaged) if damaged else "a weight"
    error = _told(
        error,
        f"{error} {tensor}: NaN or infinity that did not come from a step: the steps since, repeated from the last "
        "good weights, are finite. Look for what changes weights besides: a callback, another thread, memory. "
        "The model has the weights of the repeated steps.",
    )
    error.kind, error.tensor = "weight", tensor
    return error


def _told(error, message):
    return NonFiniteLoss(
        message, step=error.step, kind=error.kind, tensor=error.tensor, snapshot=error.snapshot, taken=error.taken,
        seen=error.seen,
    )  # fmt: skip


def _found(step, epoch, number, kind, tensor, model):
    fine = [f"{name}s" for name in ORDER[: ORDER.index(kind)]] if kind in ORDER else ["gradients"]
    before = f" The {_and(fine)} of that step {'is' if fine == ['loss'] else 'are'} finite." if fine else ""
    rate = (
        f" Its learning rate is {float(model.optimizer.learning_rate):.3g}." if kind in ("gradient", "weight") else ""
    )
    return NonFiniteLoss(
        f"Step {step} (epoch {epoch + 1}, batch {number + 1}) is the first bad one: {tensor} {_verb(tensor)} NaN or "
        f"infinite.{before}{rate} The model has its weights from before that step again. {ADVICE[kind]}",
        step=step,
        kind=kind,
        tensor=tensor,
        seen=(epoch, number),
    )


def _steps(first, last, length):
    """(epoch, number) of every step from one to another, both included; a last number of `None` is the epoch's last."""
    (epoch, number), (last_epoch, last_number) = first, last
    last_number = length - 1 if last_number is None else last_number
    while (epoch, number) <= (last_epoch, last_number):
        yield epoch, number
        epoch, number = (epoch, number + 1) if number + 1 < length else (epoch + 1, 0)


def _first_bad(model, x, y):
    """(kind, name) of the first tensor of a step that is not finite, or `None`."""
    for kind, name, tensor in _tensors(model, x, y):
        if not np.isfinite(ops.convert_to_numpy(ops.cast(tensor, "float32"))).all():
            return kind, name
    return None


def _tensors(model, x, y):
    """(kind, name, tensor) of one training step, in the order in which they come about."""
    state = Snapshot(model)
    images = model._to_encoder_channels(x)
    yield "image", "the images", images
    views = model.views(images)
    for i, view in enumerate(views):
        yield "view", f"view {i + 1}", view
    teacher_features = None
    if model.teacher_encoder is not None:
        model._move_teacher()
        teacher_features = model.teacher_features(views)
        yield "feature", "the features of the moving-average encoder", teacher_features
    features = model.features(views)
    for i in range(features.shape[0]):
        yield "feature", f"the features of view {i + 1}", features[i]
    outputs = model.objective(features, teacher_features, training=True)
    for name, tensor in outputs.items():
        yield "logit", f"the {name.replace('_', ' ')} of the objective", tensor
    loss, logs = model.objective.compute_loss(outputs, model.steps)
    yield "loss", _terms(loss, logs), loss
    state.restore(model)
    variables = model.trainable_variables
    gradients = distribution.gradients(lambda: _loss(model, x, y), variables)
    for variable, gradient in zip(variables, gradients, strict=True):
        if gradient is not None:
            yield "gradient", f"the gradient of {variable.path}", gradient


def _loss(model, x, y):
    """The loss that a training step differentiates."""
    return model.optimizer.scale_loss(model.compute_loss(x=x, y=y, y_pred=model(x, training=True), training=True))


def _terms(loss, logs):
    bad = [
        name.replace("_", " ") for name, value in logs.items() if not np.isfinite(float(ops.convert_to_numpy(value)))
    ]
    return f"the loss ({', '.join(bad)})" if bad else "the loss"


def _listed(paths, most=3):
    return ", ".join(paths[:most]) + (f" and {len(paths) - most} more" if len(paths) > most else "")


def _and(words):
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _verb(tensor):
    plural = "," in tensor or tensor.startswith(("the features", "the images"))
    return "are" if plural else "is"
