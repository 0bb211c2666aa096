"""After a loss that is not a number: the last good weights, and the first tensor that was bad."""

import sys

import keras
import numpy as np
from keras import ops

from keras_issl import datasets, distribution
from keras_issl.callbacks import NonFiniteLoss, Snapshot
from keras_issl.callbacks.snapshot import listed, not_finite, useless

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
MANY = 50  # steps from which on a word is said before they are repeated
ORDER = ("image", "view", "feature", "logit", "loss", "gradient")


def explain(model, error, batches):
    """Brings a model back to before its first bad step.

    The steps since the last copy are repeated until one is bad. That one is looked at tensor by tensor, uncompiled.

    Args:
        model: The `Pretrainer`, out of `fit`.
        error: The guard's `NonFiniteLoss`.
        batches: `datasets.Batches` that `fit` took; of anything else nothing can be repeated.

    Returns:
        A `NonFiniteLoss` that says what was found.
    """
    if error.snapshot is None:  # the weights were bad from the start
        return _told(error, f"{error} {error.tensor}: NaN or infinity before the first step. {ADVICE['weight']}")
    damaged = not_finite(model, error.ignored)
    error.snapshot.restore(model)
    epoch, batch = error.taken
    unknown = (
        f"{error} The model has the weights from before batch {batch + 1} of epoch {epoch + 1} again. Which tensor "
    )
    unknown += "was the first to be bad is not known: "
    if distribution.parts_of_batch(model) > 1:
        return _told(
            error,
            f"{unknown}it is looked for on one device only. Lower the learning rate, clip gradients, look for images "
            "with NaN, or repeat the run on one device to have it named.",
        )
    if not isinstance(batches, datasets.Batches) or model.steps_per_execution != 1:
        return _told(
            error,
            f"{unknown}this stream cannot be asked for the same batches again. Train on an array, an ImageDataset or "
            "`datasets.Batches` to have it named. Lower the learning rate, clip gradients (`clipvalue`), or look for "
            "images with NaN.",
        )
    steps = list(_steps(error.taken, error.seen, len(batches)))
    if len(steps) > MANY:
        print(f"The loss is not finite: repeating {len(steps)} steps to find the first bad one.", file=sys.stderr)
    try:
        found = _search(model, error, batches, steps)
    except KeyboardInterrupt:
        error.snapshot.restore(model)
        return _told(error, f"{unknown}the search for it was interrupted.")
    if found is not None:
        return found
    tensor = listed(damaged) if damaged else "a weight"
    error = _told(
        error,
        f"{error} {tensor}: NaN or infinity that did not come from a step: the steps since, repeated from the last "
        "good weights, are finite. Look for what changes weights besides: a callback, another thread, memory. "
        "The model has the weights of the repeated steps.",
    )
    error.kind, error.tensor = "weight", tensor
    return error


def _search(model, error, batches, steps):
    """Repeats steps until one is bad; what was found, with the model at the state before it, or `None`."""

    def repeat(number):
        x, y, _ = keras.utils.unpack_x_y_sample_weight(batches.batch(*steps[number]))
        model.reset_metrics()
        return np.isfinite(float(model.train_on_batch(x, y, return_dict=True)["loss"]))

    # A bad gradient shows in the loss of the next step. So all up to two steps before can be repeated without a look
    # at the weights, which on the host takes as long as a step; unless kernels hid the NaN, and that look is needed.
    bad = next((number for number in range(len(steps)) if not repeat(number)), None)
    if bad is None and not not_finite(model, error.ignored):
        return None
    # One step more is repeated before it: what it made of the weights may be what was bad.
    error.snapshot.restore(model)
    first = max((0 if bad is None else bad) - 2, 0)
    previous = None
    for number in range(first):
        previous = Snapshot(model) if number == first - 1 else None
        repeat(number)
    if first and not_finite(model, error.ignored):
        error.snapshot.restore(model)
        first, previous = 0, None
    for number in range(first, len(steps)):
        step, before = distribution.as_int(model.steps) + 1, Snapshot(model)
        finite = repeat(number)
        after = not_finite(model, error.ignored)
        if finite and not after:
            previous = before
            continue
        before.restore(model)
        x, y, _ = keras.utils.unpack_x_y_sample_weight(batches.batch(*steps[number]))
        kind, tensor = _first_bad(model, x, y) or ("weight", listed(after))
        before.restore(model)
        if kind in ("feature", "logit", "loss") and previous is not None and _useless(model, x):
            # What the step before made of the weights is finite, and too large to compute with: that step was bad.
            largest = max(float(np.abs(ops.convert_to_numpy(w)).max()) for w in model.trainable_weights)
            previous.restore(model)
            tensor = f"a weight after the update, too large to compute with ({largest:.3g}),"
            return _found(step - 1, *steps[number - 1], "weight", tensor, model)
        return _found(step, *steps[number], kind, tensor, model)
    return None


def _useless(model, x):
    """Whether the weights give no finite features and outputs, in inference mode, of images that are fine."""
    if useless(model):
        return True
    state = Snapshot(model)
    views = model.views(model._to_encoder_channels(x), training=False)
    features = model.features(views, training=False)
    teacher = None if model.teacher_encoder is None else model.teacher_features(views, training=False)
    outputs = model.objective(features, teacher, training=False)
    finite = all(np.isfinite(ops.convert_to_numpy(ops.cast(x, "float32"))).all() for x in (features, *outputs.values()))
    state.restore(model)
    return not finite


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


def _and(words):
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _verb(tensor):
    plural = "," in tensor or tensor.startswith(("the features", "the images"))
    return "are" if plural else "is"
