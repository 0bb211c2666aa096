"""`ProbeClassifier`: any probe as a scikit-learn estimator, for pipelines and grid searches. Needs scikit-learn."""

import numpy as np

from keras_issl.probes.linear import LinearProbe

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "`keras_issl.probes.scikit_learn` needs scikit-learn 1.6 or later: pip install 'scikit-learn>=1.6'"
    ) from error


class ProbeClassifier(ClassifierMixin, BaseEstimator):
    """A probe with the whole of scikit-learn's contract: it passes `sklearn.utils.estimator_checks.check_estimator`.

    Works in `Pipeline`, `cross_val_score` and `GridSearchCV`, whose parameters reach the probe as `probe__...`. Labels
    may be whatever scikit-learn takes for classes, negative integers too: there, -1 is a class and not "no label".

    Args:
        probe: an unfitted probe, which is left as it is: `fit` works on a copy. `LinearProbe()` by default.

    Attributes:
        classes_: (K,) labels, sorted.
        probe_: the fitted probe; its classes are the numbers 0 to K - 1, its `selection_` says what it chose.
        n_features_in_: D.
        feature_names_in_: (D,) names of columns, where `fit` saw a data frame.

    Example:

    ```python
    from sklearn.model_selection import cross_val_score
    from keras_issl.probes.knn import KNNProbe
    from keras_issl.probes.scikit_learn import ProbeClassifier

    cross_val_score(ProbeClassifier(KNNProbe(k=5)), train.array, train.labels)
    ```
    """

    def __init__(self, probe=None):
        self.probe = probe

    def fit(self, X, y):
        """Fits a copy of the probe to (N, D) features and (N,) labels; returns self.

        Raises:
            ValueError: what scikit-learn or the probe refuses.
        """
        X, y = validate_data(self, X, y, dtype=[np.float32, np.float64], ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        self.probe_ = (LinearProbe() if self.probe is None else self.probe.clone()).fit(X, numbers)
        return self

    def predict_proba(self, X):
        """Probabilities (N, K) of (N, D) features, columns in the order of `classes_`."""
        check_is_fitted(self)
        return self.probe_.predict_proba(validate_data(self, X, dtype=[np.float32, np.float64], reset=False))

    def predict(self, X):
        """The most probable class of each example, (N,)."""
        best = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]
