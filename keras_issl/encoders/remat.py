"""Encoders whose backward pass computes the activations again, block by block, instead of keeping them."""

import keras
from keras import ops

from keras_issl import distribution


class _Segment:
    """A part of a functional model from one tensor to one tensor, as a pure function of tensors."""

    def __init__(self, nodes, source, target):
        self.nodes, self.source, self.target = nodes, source, target  # nodes; symbolic tensors
        layers = [node.operation for node in nodes if isinstance(node.operation, keras.layers.Layer)]
        self.variables = list({id(v): v for layer in layers for v in layer.variables}.values())

    def _run(self, x):
        values = {id(self.source): x}
        for node in self.nodes:
            # A node holds the arguments of its call; tensors among them are looked up by their identity.
            args, kwargs = node.arguments.fill_in(values)
            if getattr(node.operation, "_call_has_training_arg", False):
                kwargs["training"] = True
            outputs = keras.tree.flatten(node.operation(*args, **kwargs))
            values.update(zip(map(id, node.outputs), outputs, strict=True))
        return values[id(self.target)]

    def __call__(self, x):
        """Its output in training. What its layers assign, such as moving statistics, is assigned once."""
        trainable = [v for v in self.variables if v.trainable]
        # Copies: the backward pass has to find what was there before the assignments below, a random state say.
        state = [(v, ops.copy(v)) for v in self.variables if not v.trainable]
        changed = []  # which of the state a run assigns; the same in each

        def pure(x, *values):
            mapping = [*state, *zip(trainable, values, strict=True)]
            with keras.StatelessScope(mapping, collect_losses=True) as scope:
                before = [scope.get_current_value(v) for v, _ in state]
                y = self._run(x)
            if scope.losses:
                raise ValueError(
                    "`remat` should be False for an encoder whose layers add losses, as an activity regularizer does: "
                    f"they would be lost. Received: {len(scope.losses)} losses."
                )
            new = [scope.get_current_value(v) for v, _ in state]
            changed[:] = [i for i, (a, b) in enumerate(zip(before, new, strict=True)) if a is not b]
            return y, *(ops.stop_gradient(new[i]) for i in changed)

        y, *new = distribution.recompute(pure)(x, *(ops.cast(v, v.dtype) for v in trainable))
        for i, value in zip(changed, new, strict=True):
            state[i][0].assign(value)
        return y


class Remat:
    """An encoder's forward pass in training, of which only what flows from block to block is kept.

    The backward pass computes each block again from its input. Values, gradients and moving statistics are the
    encoder's own: these move once a step. It holds no weights: the encoder stays the model that is trained and saved.

    Blocks begin where a tensor branches and no other is alive, as the input of a residual block does. Where nothing
    branches each operation of the model is a block: a transformer's layers, say.

    Args:
        encoder: A functional `keras.Model` from images (B, H, W, C) to features (B, D), such as `encoders.ResNet`, or
            an `encoders.Adapter` of one.

    Call arguments:
        images: As the encoder's.
        training: Whether the encoder is trained; else this is the encoder's own forward pass.

    Returns:
        What the encoder returns.

    Raises:
        ValueError: The encoder is not made of blocks, or holds a layer whose state Keras does not know.

    Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".

    Example:

    >>> forward = keras_issl.encoders.Remat(encoder)
    >>> tuple(forward(images[:4], training=True).shape)
    (4, 8)
    """

    def __init__(self, encoder):
        self.encoder = encoder
        wrapped = [layer.name for layer in encoder._flatten_layers() if type(layer).__name__ == "TorchModuleWrapper"]
        if wrapped:
            raise ValueError(
                "`remat` should be False for an encoder that holds a torch.nn.Module: the module would update its "
                f"buffers twice a step. Received: {encoder.name} with {wrapped}."
            )
        self.segments = _segments(encoder) if _is_graph(encoder) else []
        if len(self.segments) < 2:
            raise ValueError(
                "`remat` should be False for an encoder that is not a functional model of several blocks: there is "
                f"nothing to cut it at. Received: {encoder.name}, a {type(encoder).__name__}. Make it with "
                "keras.Model(inputs, outputs)."
            )

    @property
    def num_blocks(self):
        """How many blocks are computed again, one at a time."""
        return len(self.segments)

    def __call__(self, images, training=None):
        if not training:
            return self.encoder(images, training=training)
        x = ops.convert_to_tensor(images)
        for segment in self.segments:
            x = segment(ops.cast(x, segment.source.dtype))
        return x


def _is_graph(model):
    """Whether a model is a functional graph from one tensor to one tensor."""
    nodes = getattr(model, "_nodes_by_depth", None)
    return nodes is not None and len(model.inputs) == len(model.outputs) == 1


def _segments(model):
    """The parts of a functional model between the tensors at which it can be cut, in order."""
    nodes = [node for depth in sorted(model._nodes_by_depth, reverse=True) for node in model._nodes_by_depth[depth]]
    nodes = [node for node in nodes if not node.is_input]
    uses = {id(model.outputs[0]): 1}  # of each symbolic tensor
    for node in nodes:
        for x in node.input_tensors:
            uses[id(x)] = uses.get(id(x), 0) + 1
    branches = {key for key, count in uses.items() if count > 1}

    # (place in the order, tensor): before the node at that place no other tensor is alive.
    cuts, left = [(0, model.inputs[0])], {id(model.inputs[0]): uses[id(model.inputs[0])]}
    for place, node in enumerate(nodes, 1):
        for x in node.input_tensors:
            left[id(x)] -= 1
        left |= {id(x): uses[id(x)] for x in node.outputs if id(x) in uses}
        left = {key: count for key, count in left.items() if count}
        alive = [x for x in node.outputs if id(x) in left]
        if len(left) == 1 and alive:
            cuts.append((place, alive[0]))
    inner = {place for place in range(len(nodes)) if _is_graph(nodes[place].operation)}  # a model within an `Adapter`
    # Around such a model it is cut too, and within.
    at = {place + offset for place in inner for offset in (0, 1)}
    chosen = [cut for cut in cuts[1:-1] if id(cut[1]) in branches or cut[0] in at]
    if not chosen:
        chosen = cuts[1:-1]
    chosen = [cuts[0], *chosen, cuts[-1]]
    segments = []
    for (start, source), (stop, target) in zip(chosen, chosen[1:], strict=False):
        if stop == start + 1 and start in inner:
            segments += _segments(nodes[start].operation)
        else:
            segments.append(_Segment(nodes[start:stop], source, target))
    return segments
