"""`MLPProbe`: a multi-layer perceptron on frozen features, for encoders whose student head was one."""

import keras
import numpy as np

from keras_issl import distribution
from keras_issl.probes import engine as engines
from keras_issl.probes.base import BLOCK, blocks
from keras_issl.probes.sgd import WeightDecaySweep

WEIGHT_DECAYS = (1e-2, 1e-1, 1.0)


class MLPProbe(WeightDecaySweep):
    """A multi-layer perceptron on frozen features: the probe of encoders trained with `probe="mlp"`.

    Each hidden layer is Linear (no bias), batch normalisation and ReLU, as in the paper's MLP heads (2 x 2048, Dubois
    et al. 2022); the last is Linear. It is trained by Keras on the active backend, on its accelerator if there is one,
    in float32 under any dtype policy, and leaves Keras's random state alone. What is kept are the weights as NumPy
    arrays, with scaling and batch normalisation folded in: a fitted probe can be copied and pickled.

    The features are centred, and each divided by sqrt(its variance + the mean variance), as `LinearProbe` does and for
    the same reasons; the numbers come from the examples that a fit sees.

    AdamW (Loshchilov and Hutter, 2019) with a cosine to 0 by step. Adam, because one learning rate then serves features
    of every scale and width; decoupled decay, because an L2 penalty under Adam hardly regularises weights that batch
    normalisation rescales anyway. Kernels decay, offsets and scales don't.

    An epoch has as many batches of equal size as it takes for none to exceed `batch_size`, and passes over the few
    examples that are left, others each time: batch normalisation never sees a fragment. Fewer examples than
    `batch_size` are one batch.

    Args:
        hidden: widths of the hidden layers.
        weight_decays: the values to choose from, by accuracy on held-out training examples (then by their
            log-likelihood, then the largest).
        epochs: passes over the training examples.
        batch_size: most examples a step.
        learning_rate: of the first step.
        folds: one stratified part of this many is held out. Classes with one example are always trained on; if no
            class has two, nothing can be held out and the largest weight decay is used.
        class_weight: None, `"balanced"`, or a dict from labels to positive weights.
        seed: of the held-out part, the initial weights and, with the number of the epoch, the order of examples.

    Attributes:
        classes_: (K,) labels, sorted.
        selected_: `{"weight_decay": weight_decay}`.
        validation_scores_: dict from weight decay to its held-out accuracy; empty if nothing was held out.
        selection_: a sentence that names how the weight decay was chosen.
        layers_: a tuple of (kernel (D_in, D_out), bias (D_out,)), float32; a ReLU stands between two.
        n_features_in_: D.

    Example:

    ```python
    probe = keras_issl.probes.MLPProbe(hidden=(16,), weight_decays=[1e-2], epochs=3).fit(train)
    probe.score(test)
    ```
    """

    family = "mlp"

    def __init__(
        self,
        hidden=(2048, 2048),
        weight_decays=WEIGHT_DECAYS,
        *,
        epochs=100,
        batch_size=256,
        learning_rate=3e-3,
        folds=5,
        class_weight=None,
        seed=0,
    ):
        self.hidden = hidden
        self.weight_decays = weight_decays
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.folds = folds
        self.class_weight = class_weight
        self.seed = seed

    def _checked(self):
        widths = np.atleast_1d(np.asarray(self.hidden)).tolist()
        if not widths or not all(type(width) is int and width >= 1 for width in widths):
            raise ValueError(
                "`hidden` should be positive integers, one at least (without a hidden layer, it is `SGDProbe`). "
                f"Received: {self.hidden!r}."
            )
        return super()._checked()

    def _train(self, x, rows, numbers, weights, classes, decays):
        mean, scale = _preprocessing(x, rows)
        models = []
        for decay in decays:
            batches = _Batches(self, x, rows, numbers, weights, mean, scale)
            with distribution.dtype_scope("float32"), distribution.alone():
                network = self._network(x.shape[1], classes)
                rate = keras.optimizers.schedules.CosineDecay(self.learning_rate, len(batches))
                optimizer = keras.optimizers.AdamW(rate, weight_decay=decay, name="mlp_probe_optimizer")
                optimizer.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])
                loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
                network.compile(optimizer, loss, jit_compile=distribution.jit_compile_default())
                network.fit(batches, shuffle=False, verbose=0)  # one epoch for Keras: all of ours in a row
            models.append(_folded(network, mean, scale))
        return models

    def _network(self, width, classes):
        """A Keras model from (N, D) to logits. Every seed and name is its own: Keras's global ones stay as they are."""
        stack, widths = [keras.Input((width,), name="features")], np.atleast_1d(self.hidden).tolist()
        seeds = np.random.default_rng(self.seed).integers(2**31, size=len(widths) + 1).tolist()
        for i, units in enumerate(widths):
            he = keras.initializers.HeNormal(seed=seeds[i])
            stack += [
                keras.layers.Dense(units, use_bias=False, kernel_initializer=he, name=f"linear_{i}"),
                distribution.BatchNormalization(name=f"norm_{i}"),
                keras.layers.ReLU(name=f"relu_{i}"),
            ]
        glorot = keras.initializers.GlorotUniform(seed=seeds[-1])
        stack.append(keras.layers.Dense(classes, kernel_initializer=glorot, name="logits"))
        return keras.Sequential(stack, name="mlp_probe")

    def _logits(self, model, block):
        engine, logits = engines.choose(), []
        model = [tuple(engine.put(array) for array in layer) for layer in model]
        rows = max(1, BLOCK // max(kernel.shape[1] for kernel, _ in model))  # what is wide are the hidden layers
        for part in blocks(block, rows * block.shape[1]):
            hidden = engine.put(part)
            for i, (kernel, bias) in enumerate(model):
                hidden = engine.ops.maximum(hidden, 0) if i else hidden
                hidden = engine.ops.matmul(hidden, kernel) + bias  # (n, D_out)
            logits.append(engine.get(hidden))
        return np.concatenate(logits)

    def _keep(self, model):
        self.layers_ = model

    def _scores(self, block):
        return self._logits(self.layers_, block)


class _Batches(keras.utils.PyDataset):
    """All batches of all epochs of a probe; their order is a pure function of its seed."""

    def __init__(self, probe, x, rows, numbers, weights, mean, scale):
        super().__init__()
        self.seed, self.epochs = probe.seed, probe.epochs
        self.x, self.rows, self.numbers, self.weights = x, rows, numbers, weights
        self.mean, self.scale = mean, scale
        self.steps = -(-len(rows) // probe.batch_size)  # an epoch
        self.size = len(rows) // self.steps
        self.order = (None, None)  # the epoch and its order of rows

    def __len__(self):
        return self.epochs * self.steps

    def __getitem__(self, step):
        epoch, step = divmod(step, self.steps)
        if self.order[0] != epoch:
            self.order = epoch, self.rows[np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))]
        batch = np.sort(self.order[1][step * self.size :][: self.size])  # sorted: kinder to a disk
        x = ((self.x[batch] - self.mean) / self.scale).astype(np.float32)  # (B, D)
        return x, self.numbers[batch].astype(np.int32), self.weights[batch]


def _preprocessing(x, rows):
    """Mean (D,) and scale (D,) of the class's docstring, of some rows of (N, D), from two passes over blocks."""

    def over_rows(statistic):
        return sum(
            statistic(x[part[:, 0]].astype(np.float64)).sum(axis=0)
            for part in blocks(rows[:, None], max(1, BLOCK // x.shape[1]))
        ) / len(rows)

    mean = over_rows(lambda block: block)
    variance = over_rows(lambda block: (block - mean) ** 2)
    scale = np.sqrt(variance + variance.mean())
    return mean, np.where(scale > 0, scale, 1.0)


def _folded(network, mean, scale):
    """The network as ((kernel, bias), ...) between which stand ReLUs, for features as they came."""
    folded, widths = [], sum(layer.name.startswith("linear_") for layer in network.layers)
    for i in range(widths):
        (kernel,) = network.get_layer(f"linear_{i}").get_weights()
        norm = network.get_layer(f"norm_{i}")
        gamma, beta, moving_mean, moving_variance = (array.astype(np.float64) for array in norm.get_weights())
        factor = gamma / np.sqrt(moving_variance + norm.epsilon)  # (D_out,)
        kernel, bias = kernel * factor, beta - moving_mean * factor
        if i == 0:
            kernel = kernel / scale[:, None]
            bias = bias - mean @ kernel
        folded.append((kernel.astype(np.float32), bias.astype(np.float32)))
    return (*folded, tuple(network.get_layer("logits").get_weights()))
