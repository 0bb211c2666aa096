"""`LinearProbe`: multinomial logistic regression whose regularisation is chosen on held-out training examples."""

from keras_issl.probes.logistic import solve
from keras_issl.probes.selection import StrengthSweep

PROTOCOL = (
    "Linear probe; its regularisation is chosen on held-out training labels (strength 10 where every class has a "
    "single label), and test is scored once per draw of labels."
)


class LinearProbe(StrengthSweep):
    """Multinomial logistic regression whose regularisation is chosen on held-out parts of the training set.

    Minimises `mean_i w_i cross_entropy(softmax(W x_i + b), y_i) + ||W||^2 / (2 C N)` over all N training examples:
    times C N, this is scikit-learn's objective for three classes or more, so `C` has its meaning; b is not penalised.
    w_i is the weight of the example's class. All strengths are fitted at once, see `logistic.solve`.

    Features larger than memory (`Features.load(path, mmap=True)`) are read block by block in each pass.

    Args:
        strengths: the values of C to choose from, by accuracy on held-out training examples (then by their
            log-likelihood).
        folds: parts of the stratified cross-validation. From 10,000 examples on, a single held-out part, 1/folds of
            them, is used. Classes with one example are always trained on; if no class has two, nothing can be held out
            and `default_strength` is used.
        default_strength: C in that case.
        class_weight: None; `"balanced"`, so that all classes weigh the same; or a dict from labels to weights, 1 for
            those that it lacks. A class of weight 2 counts as if each of its examples were there twice.
        standardize: what the penalty sees; `coef_` and `intercept_` are in the original feature space in any case, and
            what is learned here is learned from the examples that a fit sees, never from held-out ones.

            - `"soft"`: centred, each feature divided by sqrt(its variance + the mean variance), and all by one number
              that makes the mean squared norm 1. Half-way between one scale for all (better on few pixels, most of
              which hardly vary) and a scale for each (better on features of uneven size); it lets one range of
              strengths serve every width.
            - True: each feature with mean 0 and variance 1; constant ones are left out.
            - False: the features as they are. Then the objective is scikit-learn's on `x`; of two classes, W has the
              rows -w / 2 and w / 2 for its one w, half its penalty (||w||^2 / 4): C = 1 here is C = 2 there.
        engine: where to compute: `"numpy"`; `"keras"`, the active Keras backend; or `"auto"`: Keras for work that is
            worth it where the backend sees an accelerator, else NumPy.
        seed: of the held-out parts.

    Attributes:
        classes_: (K,) labels, sorted.
        best_strength_: the C chosen, with which the probe was fitted again on all of the training set.
        selected_: `{"strength": best_strength_}`.
        validation_scores_: dict from C to its held-out accuracy; empty if nothing was held out.
        selection_: a sentence that names how C was chosen.
        coef_: (K, D).
        intercept_: (K,).
        n_features_in_: D.

    Example:

    ```python
    probe = keras_issl.probes.LinearProbe().fit(train.array, train.labels)
    probe.score(test.array, test.labels)  # top-1 accuracy; the only use of the test set
    ```
    """

    _solve = staticmethod(solve)
