"""Optimizers and the schedule of the paper's runs: LARS, L2 as PyTorch adds it, warm-up and cosine by step.

`LARS` and `WarmupCosine` are missing in Keras. Its `SGD` and `Adam` know a *decoupled* `weight_decay` (it shrinks the
weights); those here have `l2` beside it, the coupled one of PyTorch's `weight_decay` (a part of the gradient, hence of
the momentum and of Adam's second moment). All take Keras's `clipvalue`, which clips the loss's gradient alone.
"""

import math
import numbers

import keras
from keras import ops


def _at_least_0(name, value):
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= value < math.inf:
        raise ValueError(f"`{name}` should be a finite number of at least 0. Received: {value!r}")
    return float(value)


def _is_bias_or_norm(variable):
    """Whether it is a bias, or a gain or offset of a normalisation: by its single axis, or by its name.

    Kernels and embeddings have more axes, but so have the biases of Keras's attention: (heads, width).
    """
    name = variable.name.split("/")[-1].split(":")[0]  # TensorFlow's own variables are "bias:0"
    return len(variable.shape) <= 1 or name in ("bias", "beta", "gamma")


def _dense(gradient, variable):
    """TensorFlow's gradient of an embedding is a list of rows: here it becomes a tensor, any other stays as it is."""
    return ops.reshape(gradient, tuple(variable.shape))


def exclude_from_weight_decay(optimizer, model):
    """Exempts a model's biases and normalisations from an optimizer's decay.

    They are the variables with at most one axis, or with the name `bias`, `beta` or `gamma`: the biases of Keras's
    attention have two. Position embeddings and class tokens decay, as kernels do.

    For Keras's own optimizers, such as `AdamW`. Those of this library have `exclude_bias_and_norm=`, which is saved
    with them; this choice is not, so call it again on an optimizer that was loaded.

    Args:
        optimizer: A Keras optimizer with weight decay that has not been trained with yet.
        model: A built model: a `Pretrainer` is built when it is made.

    Returns:
        The optimizer.

    Raises:
        ValueError: The optimizer has no weight decay, or is built already; the model has no variables yet.

    Source: the usual practice for transformers, e.g. Caron et al. 2021 (DINO), the authors' code.

    Example:

    >>> optimizer = exclude_from_weight_decay(keras.optimizers.AdamW(1e-3, weight_decay=0.04), model)
    >>> model.compile(optimizer)
    """
    if not (getattr(optimizer, "weight_decay", None) or getattr(optimizer, "l2", None)):
        raise ValueError(f"`optimizer` should have a weight decay above 0, e.g. AdamW. Received: {optimizer}")
    if optimizer.built:
        raise ValueError(f"`optimizer` should be new: exclude before `fit`. Received one that is built: {optimizer}")
    variables = model.trainable_variables
    if not variables:
        raise ValueError(f"`model` should be built: call it on a batch first. Received: {model}")
    optimizer.exclude_from_weight_decay(var_list=[v for v in variables if _is_bias_or_norm(v)])
    return optimizer


# --- Coupled L2 ---


def _implementation(optimizer):
    """The class that Keras puts in place of its own: on PyTorch one that updates all variables at once."""
    return type(optimizer.__new__(optimizer))


class _CoupledL2:
    """Adds `l2 * w` to the gradient, after clipping and before the moments. Stands before a Keras optimizer."""

    def __init__(self, *args, l2, exclude_bias_and_norm, **kwargs):
        super().__init__(*args, **kwargs)
        self.l2, self.exclude_bias_and_norm = _at_least_0("l2", l2), bool(exclude_bias_and_norm)

    def _with_l2(self, gradient, variable):
        exempt = self.exclude_bias_and_norm and _is_bias_or_norm(variable)
        if not self.l2 or exempt or not self._use_weight_decay(variable):
            return gradient
        return _dense(gradient, variable) + self.l2 * ops.convert_to_tensor(variable)

    # Gradients are summed over replicas before `update_step`: L2 added any earlier would be summed with them.
    def update_step(self, gradient, variable, learning_rate):
        super().update_step(self._with_l2(gradient, variable), variable, learning_rate)

    def _parallel_update_step(self, grads, variables, learning_rate):  # what `_implementation` calls on PyTorch
        grads = [self._with_l2(*pair) for pair in zip(grads, variables, strict=True)]
        super()._parallel_update_step(grads, variables, learning_rate)

    def get_config(self):
        return {**super().get_config(), "l2": self.l2, "exclude_bias_and_norm": self.exclude_bias_and_norm}


@keras.saving.register_keras_serializable(package="keras_issl")
class SGD(_CoupledL2, _implementation(keras.optimizers.SGD)):
    """`keras.optimizers.SGD` with L2 regularisation as PyTorch's `weight_decay`.

    Keras's momentum holds steps (the rate of the day multiplies each gradient that enters), PyTorch's holds gradients:
    with a constant rate the two are the same, under a schedule they differ by the rate's change over 1 / (1 - momentum)
    steps.

    Args:
        learning_rate: A float or a schedule.
        momentum: In [0, 1].
        nesterov: Whether the momentum is Nesterov's.
        l2: λ; λw is added to the (clipped) gradient of each weight w.
        exclude_bias_and_norm: Whether biases and normalisations, as in `exclude_from_weight_decay`, go without.
        **kwargs: As `keras.optimizers.SGD`: `clipvalue`, `name`, ...

    Raises:
        ValueError: `l2` is negative or not a number.

    Example:

    >>> optimizer = SGD(0.3, momentum=0.9, l2=1e-6, clipvalue=2.0)
    """

    def __init__(
        self, learning_rate=0.01, momentum=0.0, nesterov=False, *, l2=0.0, exclude_bias_and_norm=False, **kwargs
    ):
        given = {"momentum": momentum, "nesterov": nesterov, "l2": l2, "exclude_bias_and_norm": exclude_bias_and_norm}
        super().__init__(learning_rate, **given, **kwargs)


@keras.saving.register_keras_serializable(package="keras_issl")
class Adam(_CoupledL2, _implementation(keras.optimizers.Adam)):
    """`keras.optimizers.Adam` with L2 regularisation as PyTorch's `weight_decay`.

    It is the optimizer of the paper's runs on small images (there with l2 = 1e-6). Keras's `epsilon` is that of Kingma
    and Ba's faster form: PyTorch's `eps` at step t equals `eps * sqrt(1 - beta_2 ** t)` here.

    Args:
        learning_rate: A float or a schedule.
        beta_1, beta_2: Decay of the first and second moment.
        epsilon: Added to the root of the second moment.
        l2: λ; λw is added to the (clipped) gradient of each weight w, and so is scaled as the gradient is.
        exclude_bias_and_norm: Whether biases and normalisations, as in `exclude_from_weight_decay`, go without.
        **kwargs: As `keras.optimizers.Adam`: `clipvalue`, `amsgrad`, `name`, ...

    Raises:
        ValueError: `l2` is negative or not a number.

    Source: Kingma and Ba 2015, algorithm 1; Loshchilov and Hutter 2019, algorithm 2, the line without decoupling.

    Example:

    >>> optimizer = Adam(WarmupCosine(2e-3, total_steps=1000, warmup_steps=100), l2=1e-6, clipvalue=2.0)
    """

    def __init__(
        self,
        learning_rate=0.001,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-7,
        *,
        l2=0.0,
        exclude_bias_and_norm=False,
        **kwargs,
    ):
        given = {"beta_1": beta_1, "beta_2": beta_2, "epsilon": epsilon, "l2": l2}
        super().__init__(learning_rate, exclude_bias_and_norm=exclude_bias_and_norm, **given, **kwargs)


# --- LARS ---


@keras.saving.register_keras_serializable(package="keras_issl")
class LARS(keras.optimizers.Optimizer):
    """Momentum SGD whose gradients are scaled, variable by variable, to the length of the weights: LARS and LARC.

    With the gradient g (after clipping) and the decay β, a variable w moves by

        r = trust_coefficient · ‖w‖ / (‖g‖ + β‖w‖ + epsilon)
        m ← momentum · m + r (g + βw)
        w ← w - learning_rate · m

    Where ‖w‖ or ‖g‖ is 0, so in the first step of biases that start at 0, `r (g + βw)` is the raw g.

    Differences from You et al. 2017, algorithm 1, all of them as in NVIDIA's LARC, with which the paper's ImageNet runs
    were made: the rate multiplies the momentum instead of entering it (the same but under a schedule), `epsilon`, and
    the raw gradient of zero norms. `clip=True` is LARC proper: `min(r / learning_rate, 1)` in place of r, so that no
    variable moves faster than under plain SGD.

    Args:
        learning_rate: A float or a schedule.
        momentum: In [0, 1].
        weight_decay: β; part of the gradient, and scaled with it (so not Keras's decoupled decay).
        trust_coefficient: The length of a step in units of ‖w‖, at a rate of 1 and without momentum.
        epsilon: Keeps r finite.
        clip: Whether r is LARC's.
        exclude_bias_and_norm: Whether biases and normalisations, as in `exclude_from_weight_decay`, are left to plain
            momentum SGD: neither scaled nor decayed (BYOL, Barlow Twins, VICReg; the paper's runs exclude nothing).
        nesterov: Whether the momentum is Nesterov's, as in PyTorch.
        **kwargs: As `keras.optimizers.Optimizer`: `clipvalue`, `name`, ...

    Raises:
        ValueError: An argument is out of its range.

    Source: You, Gitman and Ginsburg 2017, "Large batch training of convolutional networks", algorithm 1 and eq. (6);
        the defaults are those of the paper's ImageNet runs (method of Dubois et al. 2022).

    Example:

    >>> rate = WarmupCosine(3.0, total_steps=50_000, warmup_steps=5_000, start=0.001, global_cosine=True)
    >>> model.compile(LARS(rate, weight_decay=1e-6))
    """

    def __init__(
        self,
        learning_rate=0.1,
        momentum=0.9,
        weight_decay=0.0,
        trust_coefficient=0.001,
        epsilon=1e-8,
        clip=False,
        exclude_bias_and_norm=False,
        nesterov=False,
        **kwargs,
    ):
        super().__init__(learning_rate, **kwargs)
        if _at_least_0("momentum", momentum) > 1:
            raise ValueError(f"`momentum` should be in [0, 1]. Received: {momentum!r}")
        if not _at_least_0("trust_coefficient", trust_coefficient):
            raise ValueError(f"`trust_coefficient` should be above 0. Received: {trust_coefficient!r}")
        self.momentum, self.weight_decay = float(momentum), _at_least_0("weight_decay", weight_decay)
        self.trust_coefficient, self.epsilon = float(trust_coefficient), _at_least_0("epsilon", epsilon)
        self.clip, self.exclude_bias_and_norm, self.nesterov = bool(clip), bool(exclude_bias_and_norm), bool(nesterov)

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._momentums = self.add_optimizer_variables(variables, "momentum")

    def update_step(self, gradient, variable, learning_rate):
        dtype = keras.backend.result_type(variable.dtype, "float32")  # a norm is too much for 8 bits
        w, rate = ops.cast(variable, dtype), ops.cast(learning_rate, dtype)
        g = ops.cast(_dense(gradient, variable), dtype)
        if not (self.exclude_bias_and_norm and _is_bias_or_norm(variable)):
            g = self._adapted(g, w, rate, self.weight_decay if self._use_weight_decay(variable) else 0.0)
        momentum = self._momentums[self._get_variable_index(variable)]
        m = self.momentum * ops.cast(momentum, dtype) + g
        self.assign(momentum, m)
        self.assign_sub(variable, rate * (g + self.momentum * m if self.nesterov else m))

    def _adapted(self, g, w, rate, decay):
        """The gradient with its decay, scaled; itself where a norm is 0."""
        g_norm, w_norm = (ops.sqrt(ops.sum(ops.square(x))) for x in (g, w))
        ratio = self.trust_coefficient * w_norm / (g_norm + decay * w_norm + self.epsilon)
        if self.clip:
            ratio = ops.minimum(ratio / rate, 1.0)
        adapts = g_norm * w_norm > 0.0
        ratio = ops.where(adapts, ratio, 1.0)
        return ratio * (g + ops.where(adapts, decay, 0.0) * w) if decay else ratio * g

    def _apply_weight_decay(self, variables):
        """Nothing: the decay is part of the gradient, in `update_step`."""

    def get_config(self):
        own = ("momentum", "trust_coefficient", "epsilon", "clip", "exclude_bias_and_norm", "nesterov")
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}


# --- The schedule ---


@keras.saving.register_keras_serializable(package="keras_issl")
class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """A linear rise, then half a cosine, both by step: step t of T in all, W of them warm-up.

        t < W: start + (peak - start) · t / W
        else:  final + (peak - final) · (1 + cos(π · (t - W) / (T - W))) / 2

    From step T on it stays at `final`. With `global_cosine` the cosine runs on t / T instead, as if there were no
    warm-up, and the rate drops a little where it takes over: so it was in the paper's ImageNet runs.

    Args:
        peak: The rate at the end of the warm-up.
        total_steps: T, e.g. epochs × steps per epoch.
        warmup_steps: W, at most T; 0 for none.
        start: The rate at step 0, if there is a warm-up.
        final: The rate at step T.
        global_cosine: Whether the cosine runs on the step of the whole run.

    Call argument:
        step: int tensor, the number of finished steps.

    Returns:
        float32 scalar.

    Raises:
        ValueError: A rate is negative, a number of steps not an int, or the warm-up longer than the run.

    Source: Loshchilov and Hutter 2017 (SGDR), eq. (5) with one period; warm-up: Goyal et al. 2017, §2.2.

    Example:

    >>> rate = WarmupCosine(0.3, total_steps=1000, warmup_steps=100)
    >>> [round(float(rate(step)), 6) for step in (0, 50, 100, 550, 1000)]
    [0.0, 0.15, 0.3, 0.15, 0.0]
    """

    def __init__(self, peak, total_steps, warmup_steps=0, start=0.0, final=0.0, global_cosine=False):
        for name, value, least in (("total_steps", total_steps, 1), ("warmup_steps", warmup_steps, 0)):
            if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
                raise ValueError(f"`{name}` should be an int of at least {least}. Received: {value!r}")
        if warmup_steps > total_steps:
            raise ValueError(
                f"`warmup_steps` should be at most total_steps={total_steps}. Received: {warmup_steps}. Train for more "
                "epochs, or warm up for less."
            )
        self.peak, self.start, self.final = (
            _at_least_0(name, value) for name, value in (("peak", peak), ("start", start), ("final", final))
        )
        self.total_steps, self.warmup_steps = int(total_steps), int(warmup_steps)
        self.global_cosine = bool(global_cosine)

    def __call__(self, step):
        step = ops.cast(step, "float32")
        rise = self.start + (self.peak - self.start) * step / max(1, self.warmup_steps)
        begin = 0 if self.global_cosine else self.warmup_steps
        left = ops.clip((self.total_steps - step) / max(1, self.total_steps - begin), 0.0, 1.0)
        # (1 + cos π(1 - left)) / 2 = sin² (π left / 2), which does not cancel in float32 where the rate is near 0.
        fall = self.final + (self.peak - self.final) * ops.square(ops.sin(0.5 * math.pi * left))
        return ops.where(step < self.warmup_steps, rise, fall)

    def get_config(self):
        names = ("peak", "total_steps", "warmup_steps", "start", "final", "global_cosine")
        return {name: getattr(self, name) for name in names}
