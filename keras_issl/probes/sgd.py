"""`SGDProbe`: the paper's linear probe by stochastic gradient descent; and the sweep that it shares with `MLPProbe`."""

import math

import numpy as np

from keras_issl.probes import engine as engines
from keras_issl.probes import threads
from keras_issl.probes.base import (
    Probe,
    blocks,
    candidates,
    check_integer,
    class_numbers,
    example_weights,
    fold_numbers,
    inputs,
    is_number,
    sentence,
)

WEIGHT_DECAYS = (1e-6, 1e-5, 1e-4)


class WeightDecaySweep(Probe):
    """A probe trained once per weight decay without a held-out part, then once with the best on all examples.

    A subclass has the constructor arguments `weight_decays`, `epochs`, `batch_size`, `learning_rate`, `folds`,
    `class_weight` and `seed`, and defines `_train`, which gives a fitted model for each weight decay, `_logits` of one
    of them, and `_keep`, which stores the one that is used.
    """

    def fit(self, x, y=None):
        """Chooses the weight decay on a held-out part of these examples, then trains on all of them.

        Args:
            x: (N, D) features, or `Features` with labels; a mapped array is read batch by batch.
            y: (N,) labels, integers or strings; every example needs one.

        Returns:
            self.

        Raises:
            ValueError: no examples, fewer than two classes, labels that are missing or -1, NaN or infinity, an
                argument of the constructor that is out of its range, features so large that training diverges.
        """
        x, y = inputs(x, y, family=self.family)
        decays = self._checked()
        classes, numbers = class_numbers(y)
        weights = example_weights(numbers, classes, self.class_weight)
        weights = np.ones(len(y)) if weights is None else weights

        def train(rows, decays):
            work = min(self.batch_size, len(rows)) * x.shape[1] * len(classes) * len(decays)
            # Overflow is looked for in the outcome instead.
            with threads.enough_for(work), np.errstate(over="ignore", invalid="ignore"):
                models = self._train(x, rows, numbers, weights.astype(np.float32), len(classes), decays)
            if not all(np.isfinite(array).all() for model in models for array in _arrays(model)):
                raise ValueError(f"`x` should be of moderate size. Received: values up to {_largest(x):.3g}, on which "
                                 "training diverges. Scale the features, or lower `learning_rate`.")  # fmt: skip
            return models

        held_out = fold_numbers(numbers, self.folds, np.random.default_rng(self.seed)) == 0  # (N,)
        scores = np.zeros((2, len(decays)))  # accuracy and mean log-likelihood of the held-out examples
        if len(decays) > 1 and held_out.any():
            models = train(np.flatnonzero(~held_out), decays)
            scores = self._validate(models, x, numbers, np.flatnonzero(held_out))
        best = self._choose(decays, scores, int(held_out.sum()), len(y))
        self._keep(train(np.arange(len(y)), [best])[0])
        self.classes_, self.n_features_in_ = classes, x.shape[1]
        return self

    def _validate(self, models, x, numbers, rows):
        """Accuracy and mean log-likelihood of the examples `rows`, for each model: (2, S)."""
        scores = np.zeros((2, len(models)))
        for part in blocks(rows[:, None], max(1, (1 << 22) // x.shape[1])):  # as many rows as a block of x has
            part = part[:, 0]
            for i, model in enumerate(models):
                logits = self._logits(model, x[part])  # (n, K)
                shifted = logits - logits.max(axis=1, keepdims=True)
                likelihood = shifted[np.arange(len(part)), numbers[part]] - np.log(np.exp(shifted).sum(axis=1))
                scores[:, i] += (logits.argmax(axis=1) == numbers[part]).sum(), likelihood.sum()
        return scores / len(rows)

    def _choose(self, decays, scores, count, size):
        """Sets the attributes that tell how the weight decay was chosen.

        Args:
            decays: the S candidates, increasing.
            scores: (2, S): accuracy on held-out examples; and what decides between equals, more being better.
            count: number of held-out examples.
            size: N.

        Returns:
            The weight decay: the best one; of several, and where nothing was held out, the largest.
        """
        tried = decays if count else []
        how = f"one held-out part ({count:,} examples) of the {size:,} training examples"
        best = decays[max(range(len(decays)), key=lambda i: (scores[0, i], scores[1, i], i))]
        if len(decays) == 1:
            how = "the only one given"
        elif not count:
            how = "the largest: no class has a second example to hold out"
        self.selected_, self.selection_ = {"weight_decay": best}, sentence("weight decay", best, tried, how)
        self.validation_scores_ = dict(zip(tried, scores[0].tolist(), strict=True)) if len(tried) > 1 else {}
        return best

    def _checked(self):
        """The weight decays, sorted; complains about any constructor argument that is out of its range."""
        for name, least in {"epochs": 1, "batch_size": 1, "folds": 2, "seed": 0}.items():
            check_integer(name, getattr(self, name), least)
        if not (is_number(self.learning_rate) and 0 < self.learning_rate < math.inf):
            raise ValueError(f"`learning_rate` should be positive. Received: {self.learning_rate!r}.")
        return candidates(
            "weight_decays", self.weight_decays, lambda decay: 0 <= decay < math.inf, "numbers of at least 0"
        )

    def _train(self, x, rows, numbers, weights, classes, decays):
        """A model for each weight decay, trained on the examples `rows` of x (N, D)."""
        raise NotImplementedError

    def _logits(self, model, block):
        """Logits (n, K) of a block of rows (n, D)."""
        raise NotImplementedError

    def _keep(self, model):
        """Stores what `_scores` needs."""
        raise NotImplementedError


class SGDProbe(WeightDecaySweep):
    """The paper's linear probe: softmax regression on unscaled features by stochastic gradient descent.

    Dubois et al. 2022, as their code for small images does it: momentum 0.9, learning rate 0.3 x batch size / 256, 100
    epochs on a cosine to 0 (by step), gradients clipped by value at 2, weight decay swept over {1e-6, 1e-5, 1e-4},
    features of un-augmented images as they are. Upstream takes the weight decay that is best on *test*. Here it is
    chosen on a held-out part of train, and the probe trained again on all of train; so a number of this probe is
    comparable with theirs, and a little lower for honesty.

    As in PyTorch, the decay is added to the clipped gradient, of the bias too. The weights start from zero. All weight
    decays are trained at once, on the same batches. `LinearProbe` finds the optimum of a like objective in less time.

    Args:
        weight_decays: the values to choose from, by accuracy on held-out training examples (then by their
            log-likelihood, then the largest).
        epochs: passes over the training examples.
        batch_size: examples a step; the last step of an epoch may have fewer, and so has every step on a smaller
            training set.
        learning_rate: per 256 examples of `batch_size`.
        momentum: of the gradient's running sum.
        clip: bound of each entry of the gradient, or None.
        folds: one stratified part of this many is held out. Classes with one example are always trained on; if no
            class has two, nothing can be held out and the largest weight decay is used.
        class_weight: None, `"balanced"`, or a dict from labels to positive weights.
        engine: `"auto"`, `"numpy"` or `"keras"`: where the steps are computed.
        seed: of the held-out part and, with the number of the epoch, of the order of examples.

    Attributes:
        classes_: (K,) labels, sorted.
        selected_: `{"weight_decay": weight_decay}`.
        validation_scores_: dict from weight decay to its held-out accuracy; empty if nothing was held out.
        selection_: a sentence that names how the weight decay was chosen.
        coef_: (K, D) float32.
        intercept_: (K,) float32.
        n_features_in_: D.

    Example:

    ```python
    probe = keras_issl.probes.SGDProbe(epochs=10).fit(train)
    probe.score(test), probe.selection_
    ```
    """

    family = "linear"

    def __init__(
        self,
        weight_decays=WEIGHT_DECAYS,
        *,
        epochs=100,
        batch_size=512,
        learning_rate=0.3,
        momentum=0.9,
        clip=2.0,
        folds=5,
        class_weight=None,
        engine="auto",
        seed=0,
    ):
        self.weight_decays = weight_decays
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.clip = clip
        self.folds = folds
        self.class_weight = class_weight
        self.engine = engine
        self.seed = seed

    def _checked(self):
        engines.choose(self.engine)
        if not (is_number(self.momentum) and 0 <= self.momentum < 1):
            raise ValueError(f"`momentum` should be in [0, 1). Received: {self.momentum!r}.")
        if self.clip is not None and not (is_number(self.clip) and self.clip > 0):
            raise ValueError(f"`clip` should be positive or None. Received: {self.clip!r}.")
        return super()._checked()

    def _train(self, x, rows, numbers, weights, classes, decays):
        engine, sweep = engines.choose(self.engine), len(decays)
        ops, one_hot = engine.ops, np.eye(classes, dtype=np.float32)
        # The S sweeps lie side by side, so that one product serves them all.
        kernel = engine.put(np.zeros((x.shape[1], sweep * classes)))  # (D, S K)
        bias = engine.put(np.zeros((1, sweep * classes)))  # (1, S K)
        velocity, bias_velocity = kernel, bias
        decay = engine.put(np.repeat(decays, classes)[None])  # (1, S K)
        steps = math.ceil(len(rows) / self.batch_size)
        peak = self.learning_rate * self.batch_size / 256
        clip = (lambda slope: slope) if self.clip is None else (lambda slope: ops.clip(slope, -self.clip, self.clip))
        for step in range(self.epochs * steps):
            if step % steps == 0:
                order = rows[np.random.default_rng([self.seed, step // steps]).permutation(len(rows))]
            batch = np.sort(order[step % steps * self.batch_size :][: self.batch_size])  # sorted: kinder to a disk
            block = engine.put(x[batch])  # (B, D)
            target = engine.put(one_hot[numbers[batch]][:, None])  # (B, 1, K)
            share = engine.put((weights[batch] / len(batch))[:, None, None])  # (B, 1, 1)
            logits = ops.reshape(ops.matmul(block, kernel) + bias, (len(batch), sweep, classes))
            powers = ops.exp(logits - ops.max(logits, axis=-1, keepdims=True))  # (B, S, K)
            error = (powers / ops.sum(powers, axis=-1, keepdims=True) - target) * share
            error = ops.reshape(error, (len(batch), sweep * classes))  # (B, S K), the gradient of the logits
            slope = clip(ops.matmul(ops.transpose(block), error)) + decay * kernel
            bias_slope = clip(ops.sum(error, axis=0, keepdims=True)) + decay * bias
            velocity = self.momentum * velocity + slope
            bias_velocity = self.momentum * bias_velocity + bias_slope
            rate = peak * (1 + math.cos(math.pi * step / (self.epochs * steps))) / 2
            kernel, bias = kernel - rate * velocity, bias - rate * bias_velocity
        coefs = engine.get(kernel).reshape(-1, sweep, classes).transpose(1, 2, 0)  # (S, K, D)
        return list(zip(coefs, engine.get(bias).reshape(sweep, classes), strict=True))

    def _logits(self, model, block):
        coef, intercept = model
        return block @ coef.T + intercept

    def _keep(self, model):
        self.coef_, self.intercept_ = (np.ascontiguousarray(array) for array in model)

    def _scores(self, block):
        return self._logits((self.coef_, self.intercept_), block)


def _arrays(model):
    """The arrays in nested tuples."""
    return [array for part in model for array in _arrays(part)] if isinstance(model, tuple) else [model]


def _largest(x):
    return max(float(np.abs(block).max()) for block in blocks(x))
