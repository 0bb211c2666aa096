"""The adapter against scikit-learn's own contract, and in its tools."""

import builtins
import importlib
import sys

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from keras_issl.probes.knn import KNNProbe
from keras_issl.probes.linear import LinearProbe
from keras_issl.probes.mlp import MLPProbe
from keras_issl.probes.ridge import RidgeProbe
from keras_issl.probes.scikit_learn import ProbeClassifier
from keras_issl.probes.sgd import SGDProbe

pytestmark = pytest.mark.backend_independent
PROBES = [LinearProbe(strengths=[1.0, 10.0]), RidgeProbe(), SGDProbe([1e-5], epochs=50), KNNProbe(k=(1, 5))]


@parametrize_with_checks([ProbeClassifier(), *map(ProbeClassifier, PROBES)])
def test_scikit_learns_contract(estimator, check):
    check(estimator)


@pytest.fixture
def data(rng):
    """Two rings, which no linear map separates."""
    radius = np.repeat([1.0, 3.0], 60)
    angle = rng.uniform(0, 2 * np.pi, 120)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1) + rng.normal(0, 0.1, (120, 2))
    return points, np.repeat([-1, 1], 60)


def test_pipelines_and_cross_validation(data):
    mlp = MLPProbe((32,), [1e-2], epochs=60, batch_size=16, learning_rate=1e-2)
    scores = cross_val_score(make_pipeline(StandardScaler(), ProbeClassifier(mlp)), *data, cv=2)
    assert scores.mean() > 0.95
    assert cross_val_score(ProbeClassifier(LinearProbe()), *data).mean() < 0.7


def test_grid_search_reaches_the_probes_arguments(data):
    rng, y = np.random.default_rng(0), np.repeat([-1, 1], 60)
    points = np.stack([y, rng.normal(size=120)], axis=1)
    flipped = points, np.where(rng.random(120) < 0.2, -y, y)
    grid = {"probe__k": [1, 15], "probe__temperature": [0.07, 1.0]}
    search = GridSearchCV(ProbeClassifier(KNNProbe()), grid, error_score="raise").fit(*flipped)
    assert search.best_params_["probe__k"] == 15  # one neighbour alone errs with its label
    swapped = GridSearchCV(ProbeClassifier(), {"probe": [LinearProbe(), KNNProbe(k=3)]}, error_score="raise").fit(*data)
    assert type(swapped.best_estimator_.probe_) is type(swapped.best_params_["probe"])


@pytest.mark.parametrize("probe", [*PROBES, MLPProbe((3,))], ids=lambda probe: type(probe).__name__)
def test_probes_themselves_can_be_cloned(probe):
    copy = clone(probe)
    assert type(copy) is type(probe) and copy is not probe and copy.get_params() == probe.get_params()
    nested = clone(ProbeClassifier(probe))
    assert nested.probe is not probe and nested.probe.get_params() == probe.get_params()
    assert {"probe", *(f"probe__{name}" for name in probe.get_params())} == set(nested.get_params())


def test_the_given_probe_stays_unfitted(data):
    probe = KNNProbe(k=3)
    fitted = ProbeClassifier(probe).fit(*data)
    assert not hasattr(probe, "classes_") and fitted.probe_.selected_ == {"k": 3}


@pytest.mark.parametrize("labels", [[-1, 1], [0.0, 2.0], ["a", "b"], [False, True]])
def test_labels_of_any_kind_come_back(data, labels):
    y = np.array(labels)[(data[1] > 0).astype(int)]
    classifier = ProbeClassifier(KNNProbe(k=1)).fit(data[0] + [10, 0], y)
    np.testing.assert_array_equal(classifier.classes_, labels)
    assert classifier.predict(data[0] + [10, 0]).dtype == y.dtype
    assert classifier.score(data[0] + [10, 0], y) > 0.5


def test_probabilities_are_the_probes(data):
    classifier = ProbeClassifier(LinearProbe([1.0])).fit(*data)
    np.testing.assert_allclose(
        classifier.predict_proba(data[0]), LinearProbe([1.0]).fit(data[0], data[1] + 1).predict_proba(data[0])
    )


def test_without_scikit_learn_the_way_out_is_named(monkeypatch):
    real = builtins.__import__

    def hidden(name, *args, **kwargs):
        if name.split(".")[0] == "sklearn":
            raise ImportError("No module named 'sklearn'")
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "keras_issl.probes.scikit_learn")
    monkeypatch.setattr(builtins, "__import__", hidden)
    with pytest.raises(ImportError, match="pip install"):
        importlib.import_module("keras_issl.probes.scikit_learn")
