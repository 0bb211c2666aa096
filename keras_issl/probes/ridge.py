"""`RidgeProbe`: the closed-form linear classifier, all strengths from one eigendecomposition."""

import numpy as np

from keras_issl.probes.selection import StrengthSweep


class RidgeProbe(StrengthSweep):
    """Ridge regression onto the classes: a linear probe in closed form.

    Minimises `sum_i w_i ||W x_i + b - t_i||^2 + ||W||^2 / C`, with t_i = 1 for the class of x_i and -1 for the others;
    b is not penalised. With C = 1 / alpha this is scikit-learn's `RidgeClassifier`. In the principal axes of the
    features the solution for every C is a division, so a sweep costs one eigendecomposition: no iteration, no
    tolerance. It ranks representations much as `LinearProbe` does, somewhat below it in accuracy.

    Features larger than memory are read block by block, twice for the sweep and twice for the last fit.

    Args:
        strengths: the values of C to choose from, by accuracy on held-out training examples.
        folds: parts of the stratified cross-validation; see `LinearProbe`.
        default_strength: C where nothing can be held out.
        class_weight: None, `"balanced"` or a dict; see `LinearProbe`.
        standardize: `"soft"`, True or False; see `LinearProbe`.
        engine: `"auto"`, `"numpy"` or `"keras"`; see `LinearProbe`.
        seed: of the held-out parts.

    Attributes:
        classes_: (K,) labels, sorted.
        best_strength_, selected_, validation_scores_, selection_: as `LinearProbe` has them.
        coef_: (K, D), also for two classes.
        intercept_: (K,).
        n_features_in_: D.

    Example:

    ```python
    probe = keras_issl.probes.ridge.RidgeProbe().fit(train)
    probe.score(test)
    ```
    """

    _exact = True

    def _solve(self, rows, spectrum, strengths):
        """Ridge regression of rows in their principal axes onto +1 and -1, for all strengths.

        Args:
            rows: `Rows` whose columns have mean zero and are uncorrelated.
            spectrum: (R,) mean squares of the rows' columns.
            strengths: (S,) values of C.

        Returns:
            (S, K, R + 1) weights, the intercept last. Their logits are regressions onto +1 and -1: their order is that
            of the classes, but they are no log-probabilities.
        """
        engine, ops = rows.engine, rows.engine.ops
        labels = engine.put(np.arange(rows.classes).reshape(-1, 1), "int32")
        products, weight = 0, 0.0
        for x, numbers, counts in rows:
            targets = ops.where(numbers[0] == labels, counts[0], -counts[0])  # (K, n)
            products = products + ops.matmul(targets, x)  # (K, D + 1), the last column the sum
            weight += float(engine.get(ops.sum(counts)))
        if rows.basis is not None:
            turned = ops.matmul(products[:, :-1], rows.basis)
            products = ops.concatenate([turned, products[:, -1:]], axis=1)  # (K, R + 1)
        products = engine.get(products).astype(np.float64) / rows.size
        # The rows' mean is zero, so the intercept is the targets' mean, and the two do not interact.
        penalty = 1 / (np.asarray(strengths, np.float64) * rows.size)
        maps = products[:, :-1] / (np.asarray(spectrum) + penalty[:, None, None])  # (S, K, R)
        intercept = np.broadcast_to(products[:, -1:] * rows.size / weight, (*maps.shape[:2], 1))
        return np.concatenate([maps, intercept], axis=2).astype(rows.dtype)
