"""Layers that follow others by an exponential moving average: EMA teachers.

A *follower* is a copy of a layer, or of a whole encoder, with weights of its own that no optimizer trains. Once a step
each of its weights w', batch statistics included, becomes m·w' + (1 − m)·w of the layer it follows.

Source: Tarvainen & Valpola 2017, "Mean teachers", equation 2; Grill et al. 2020 (BYOL), equation 1.
"""

import keras
from keras import ops


def follower(layer):
    """A copy of a built layer with the same values, which is not trained.

    Its variables, not its layers, are marked as not trainable: a batch normalisation that is not `trainable` would
    leave training mode, and teachers normalise with the statistics of their batch.

    Args:
        layer: A built `keras.layers.Layer` or `keras.Model` that `get_config` describes.

    Returns:
        A layer of the same class.

    Raises:
        ValueError: The layer is not built, cannot be made again from its configuration, or has weights in less than
            float32: their small steps would be rounded away.

    Example:

    >>> teacher = keras_issl.moving_average.follower(encoder)
    >>> len(teacher.trainable_weights)
    0
    """
    if not layer.built:
        raise ValueError(
            f"`layer` should be built before a moving average of it can be kept: its weights do not exist yet. "
            f"Received: {layer!r}. Call it once on a batch."
        )
    dtypes = {keras.backend.standardize_dtype(w.dtype) for w in layer.weights}
    if low := sorted(dtypes & {"bfloat16", "float16"}):
        raise ValueError(
            f"`layer` should have float32 weights, so that a moving average of them can take small steps. Received: "
            f'{layer!r} with weights in {", ".join(low)}. Use the dtype policy "mixed_{low[0]}": it computes in '
            f"{low[0]} and keeps weights in float32."
        )
    try:
        # Whatever its parts are, they are in memory: nothing has to be registered to be made again.
        parts = {type(part).__name__: type(part) for part in layer._flatten_layers()}
        with keras.saving.custom_object_scope(parts):
            copy = type(layer).from_config(layer.get_config())
        if not copy.built:
            copy.build_from_config(layer.get_build_config() or {})
    except Exception as error:
        reason = str(error).strip().split("\n")[0]  # Keras adds a tutorial
        way_out = "Return every argument of its constructor from `get_config`."
        if "Lambda" in str(error):
            way_out = "Put what the Lambda does into a layer of its own."
        raise ValueError(
            f"`layer` should be a layer that its `get_config` describes, so that a copy can follow it. Received: "
            f"{layer!r}, whose copy failed with {type(error).__name__}: {reason} {way_out}"
        ) from error
    shapes, copied = ([tuple(w.shape) for w in x.weights] for x in (layer, copy))
    if shapes != copied:
        raise ValueError(
            f"`layer` should be a layer that its `get_config` describes, so that a copy can follow it. Received: "
            f"{layer!r} with weights of shapes {shapes}; its copy has {copied}."
        )
    for ours, theirs in zip(copy.weights, layer.weights, strict=True):
        ours.assign(ops.copy(ops.convert_to_tensor(theirs)))  # a copy: JAX would share the buffer
    for part in copy._flatten_layers():
        if hasattr(part, "finalize_state"):  # Normalization computes with what it noted of its weights
            part.finalize_state()
    hold(layer, copy)
    return copy


def hold(layer, copy):
    """Keeps a follower from being trained, with the same of its layers frozen as of the layer it follows.

    `follower` does it. It is needed again once `trainable` was set on a layer that holds the follower: Keras hands that
    on to all within.

    Args:
        layer: The layer that is followed.
        copy: What `follower(layer)` returned.
    """
    for theirs, ours in zip(layer._flatten_layers(), copy._flatten_layers(), strict=True):
        if ours.trainable != theirs.trainable:  # a frozen batch normalisation is in inference mode
            ours.trainable = theirs.trainable
    for weight in copy.weights:
        weight.trainable = False


def follow(layer, copy, momentum):
    """Moves the weights of a follower one step towards those of the layer it follows.

    Args:
        layer: The layer that is followed.
        copy: What `follower(layer)` returned.
        momentum: m, a number or scalar tensor in [0, 1]: the share that the follower keeps.
    """
    for theirs, ours in zip(layer.weights, copy.weights, strict=True):
        new = ops.convert_to_tensor(theirs)
        if "float" in keras.backend.standardize_dtype(ours.dtype):
            # m·w' + (1 − m)·w, in the form that leaves w' as it is where the two are equal.
            new = ours + (1.0 - ops.cast(momentum, ours.dtype)) * (new - ours)
        # Without the stop JAX would send the loss's gradient through the average into the student.
        ours.assign(ops.stop_gradient(new))


def forward(copy, inputs, training=None):
    """A follower's output, without gradient and without a trace in its state.

    In training it normalises with the statistics of its batch, as in BYOL, MoCo v3 and DINO; its moving statistics
    follow the student's average and are left as they are.

    Args:
        copy: What `follower` returned.
        inputs: Its inputs.
        training: Whether batch statistics are used.
    """
    kept = _state(copy) if training else []
    before = [ops.copy(ops.convert_to_tensor(w)) for w in kept]
    outputs = ops.stop_gradient(copy(ops.stop_gradient(ops.convert_to_tensor(inputs)), training=training))
    for weight, value in zip(kept, before, strict=True):
        weight.assign(value)
    return outputs


def _state(layer):
    """The weights that a forward pass in training may change: not those that an optimizer would train."""
    return [*layer._non_trainable_variables, *(w for inner in layer._layers for w in _state(inner))]
