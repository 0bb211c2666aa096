"""SGDProbe against its equations, MLPProbe where no line helps, KNNProbe against scikit-learn and closed forms."""

import copy
import pickle
import random

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from keras_issl.features import Features
from keras_issl.probes import knn, mlp
from keras_issl.probes.base import fold_numbers
from keras_issl.probes.knn import KNNProbe
from keras_issl.probes.linear import LinearProbe
from keras_issl.probes.mlp import MLPProbe
from keras_issl.probes.sgd import SGDProbe

numpy_only = pytest.mark.backend_independent
ENGINES = [pytest.param("numpy", marks=numpy_only), "keras"]
SMALL = {"hidden": (8,), "weight_decays": [1e-2], "epochs": 2}
PROBES = [SGDProbe(epochs=2), MLPProbe(**SMALL), KNNProbe(k=(1, 3))]


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.data))
    return data.data[order].astype(np.float32), data.target[order]


@pytest.fixture
def data(rng):
    """(53, 7) features of three classes, which overlap."""
    y = rng.integers(3, size=53)
    return rng.normal(size=(53, 7)) + np.eye(3, 7)[y], y


def mapped(tmp_path, x):
    np.save(tmp_path / "x.npy", x.astype(np.float32))
    return np.load(tmp_path / "x.npy", mmap_mode="r")


# SGDProbe ------------------------------------------------------------------------------------------------------------


def sgd(x, y, decay, *, epochs, batch_size, learning_rate=0.3, momentum=0.9, clip=2.0, seed=0, weights=None):
    """Weights and biases of softmax regression by stochastic gradient descent, example by example in float64."""
    classes, size = y.max() + 1, len(x)
    steps = -(-size // batch_size)
    parameters = np.zeros((classes, x.shape[1] + 1))
    velocity = np.zeros_like(parameters)
    for step in range(epochs * steps):
        order = np.random.default_rng([seed, step // steps]).permutation(size)
        batch = order[step % steps * batch_size :][:batch_size]
        gradient = np.zeros_like(parameters)
        for i in batch:
            extended = np.append(x[i], 1.0)
            powers = np.exp(parameters @ extended)
            gradient += (1 if weights is None else weights[i]) * np.outer(
                powers / powers.sum() - np.eye(classes)[y[i]], extended
            )
        velocity = momentum * velocity + np.clip(gradient / len(batch), -clip, clip) + decay * parameters
        cosine = (1 + np.cos(np.pi * step / (epochs * steps))) / 2
        parameters = parameters - learning_rate * batch_size / 256 * cosine * velocity
    return parameters[:, :-1], parameters[:, -1]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("clip", [2.0, 0.05])
def test_sgd_is_its_equations(data, engine, clip):
    probe = SGDProbe([0.1], epochs=3, batch_size=16, learning_rate=2.0, clip=clip, engine=engine, seed=3).fit(*data)
    coef, intercept = sgd(*data, 0.1, epochs=3, batch_size=16, learning_rate=2.0, clip=clip, seed=3)
    np.testing.assert_allclose(probe.coef_, coef, atol=2e-6)
    np.testing.assert_allclose(probe.intercept_, intercept, atol=2e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_sgd_sweeps_as_one_by_one_on_a_held_out_part(data, engine):
    x, y = data
    decays, settings = [1e-3, 0.3, 1.0], {"epochs": 2, "batch_size": 16, "learning_rate": 2.0}
    probe = SGDProbe(decays, engine=engine, folds=4, **settings).fit(x, y)
    held_out = fold_numbers(y, 4, np.random.default_rng(0)) == 0
    for decay in decays:
        coef, intercept = sgd(x[~held_out], y[~held_out], decay, **settings)
        correct = (x[held_out] @ coef.T + intercept).argmax(axis=1) == y[held_out]
        assert probe.validation_scores_[decay] == pytest.approx(correct.mean())
    best = probe.selected_["weight_decay"]
    assert probe.validation_scores_[best] == max(probe.validation_scores_.values())
    np.testing.assert_allclose(probe.coef_, sgd(x, y, best, **settings)[0], atol=2e-6)
    edge = {1e-3: " (the smallest tried)", 1.0: " (the largest tried)"}.get(best, "")
    assert probe.selection_ == (
        f"weight decay = {best:g}{edge}, the best of 3 by accuracy in one held-out part ({held_out.sum()} examples) of "
        "the 53 training examples"
    )


@numpy_only
def test_sgd_with_a_batch_of_everything(data):
    whole = SGDProbe([0.1], epochs=5, batch_size=1000, learning_rate=0.1).fit(*data)
    exact = SGDProbe([0.1], epochs=5, batch_size=53, learning_rate=0.1 * 1000 / 53).fit(*data)
    np.testing.assert_allclose(whole.coef_, exact.coef_, atol=1e-6)


@numpy_only
def test_sgd_weighs_classes(data):
    x, y = data
    weighted = SGDProbe([0.1], epochs=2, batch_size=16, class_weight={1: 3.0}).fit(x, y)
    coef, _ = sgd(x, y, 0.1, epochs=2, batch_size=16, weights=np.where(y == 1, 3.0, 1.0))
    np.testing.assert_allclose(weighted.coef_, coef, atol=2e-6)


@numpy_only
def test_sgd_on_digits(digits):
    x, y = digits
    probe = SGDProbe(epochs=30).fit(x[:1000], y[:1000])
    assert probe.score(x[1000:], y[1000:]) > 0.92
    assert list(probe.validation_scores_) == [1e-6, 1e-5, 1e-4] and min(probe.validation_scores_.values()) > 0.9


@numpy_only
def test_sgd_says_when_it_diverges(data):
    with pytest.raises(ValueError, match="`x` should be of moderate size.*diverges"):
        SGDProbe(epochs=2, clip=None).fit(np.float32(1e38) * np.sign(data[0]).astype(np.float32), data[1])


# MLPProbe ------------------------------------------------------------------------------------------------------------


def test_mlp_solves_what_no_line_can():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 2))
    y = (x[:, 0] * x[:, 1] > 0).astype(int)
    train, test = (x[:400], y[:400]), (x[400:], y[400:])
    assert LinearProbe().fit(*train).score(*test) < 0.65
    assert MLPProbe((32, 32), [1e-2], epochs=40, batch_size=64).fit(*train).score(*test) > 0.92


@numpy_only
def test_mlp_beats_the_line_on_pixels(digits):
    x, y = digits
    linear = LinearProbe([10.0]).fit(x[:600], y[:600]).score(x[600:], y[600:])
    probe = MLPProbe((64, 64), [0.1, 1.0], epochs=40, batch_size=64).fit(x[:600], y[:600])
    assert probe.score(x[600:], y[600:]) > linear
    assert set(probe.validation_scores_) == {0.1, 1.0} and "of 2 by accuracy in one held-out part" in probe.selection_


def test_mlp_folds_the_network_into_its_layers(data):
    x, y = data
    probe = MLPProbe((5, 4), epochs=3, batch_size=20)
    mean, scale = mlp._preprocessing(x, np.arange(len(x)))
    np.testing.assert_allclose(mean, x.mean(axis=0))
    np.testing.assert_allclose(scale, np.sqrt(x.var(axis=0) + x.var(axis=0).mean()))
    network = probe._network(7, 3)
    network.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    network.fit(
        mlp._Batches(probe, x, np.arange(len(x)), y, np.ones(len(x), np.float32), mean, scale), shuffle=False, verbose=0
    )
    expected = network.predict(((x - mean) / scale).astype(np.float32), verbose=0)
    layers = mlp._folded(network, mean, scale)
    assert [kernel.shape for kernel, _ in layers] == [(7, 5), (5, 4), (4, 3)]
    np.testing.assert_allclose(probe._logits(layers, x), expected, atol=1e-5)


def test_mlp_repeats_itself_and_leaves_keras_as_it_was(data):
    def state():
        follow = keras.random.uniform((3,))
        return (
            keras.ops.convert_to_numpy(follow).tolist(),
            np.random.get_state()[1].tolist(),
            random.getstate(),
            keras.layers.Dense(1).name,
        )

    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    expected = state()
    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    first = MLPProbe(**SMALL).fit(*data)
    assert state() == expected
    keras.config.set_dtype_policy("mixed_bfloat16")
    second = MLPProbe(**SMALL).fit(*data)
    assert keras.config.dtype_policy().name == "mixed_bfloat16"
    np.testing.assert_array_equal(first.predict_proba(data[0]), second.predict_proba(data[0]))
    assert second.predict_proba(data[0]).dtype == np.float32
    other = MLPProbe(**SMALL, seed=1).fit(*data)
    assert not np.array_equal(first.layers_[0][0], other.layers_[0][0])


def test_mlp_does_not_care_for_units_of_measure(data):
    x, y = data
    settings = {"hidden": (8,), "weight_decays": [1e-2], "epochs": 10}
    moved = MLPProbe(**settings).fit(1024 * x + 5, y)
    np.testing.assert_allclose(
        moved.predict_proba(1024 * x + 5), MLPProbe(**settings).fit(x, y).predict_proba(x), atol=5e-3
    )


def test_mlp_on_very_few_examples():
    x = np.array([[0.0, 0, 7], [0, 1, 7], [1, 0, 7], [1, 1, 7]])  # the last feature is constant
    probe = MLPProbe((32,), [1e-2], epochs=60).fit(x, [0, 1, 1, 0])
    assert probe.score(x, [0, 1, 1, 0]) == 1
    lone = MLPProbe((8,), [1e-2, 1e-1], epochs=60).fit(x[:2], ["a", "b"])  # nothing can be held out
    assert lone.validation_scores_ == {} and lone.selected_ == {"weight_decay": 0.1}
    assert lone.selection_ == "weight decay = 0.1, the largest: no class has a second example to hold out"
    assert lone.predict(x[:2]).tolist() == ["a", "b"]


@numpy_only
@pytest.mark.parametrize(
    ("size", "batch_size", "steps", "each"), [(5, 8, 1, 5), (8, 8, 1, 8), (9, 8, 2, 4), (25, 8, 4, 6)]
)
def test_mlp_batches_are_whole_and_equal(rng, size, batch_size, steps, each):
    x, rows = rng.normal(size=(30, 2)), rng.permutation(30)[:size]
    arguments = x, rows, np.arange(30), np.ones(30, np.float32), np.zeros(2), np.ones(2)
    batches = mlp._Batches(MLPProbe(epochs=3, batch_size=batch_size), *arguments)
    assert len(batches) == 3 * steps
    epochs = [np.concatenate([batches[step][1] for step in range(e * steps, (e + 1) * steps)]) for e in range(3)]
    for numbers in epochs:
        assert len(numbers) == steps * each and len(set(numbers)) == len(numbers) and set(numbers) <= set(rows)
    assert len({tuple(numbers) for numbers in epochs}) > (steps > 1)  # sorted within a batch: one batch never changes
    np.testing.assert_array_equal(batches[0][0], x[batches[0][1]].astype(np.float32))


# KNNProbe ------------------------------------------------------------------------------------------------------------


def votes(x, y, queries, k, temperature, own=None):
    """(n, C) shares of the votes, neighbour by neighbour in float64; `own` numbers what each query must not see."""
    shares = np.zeros((len(queries), y.max() + 1))
    for row, query in enumerate(queries):
        similarity = (x @ query) / np.linalg.norm(x, axis=1) / np.linalg.norm(query)
        if own is not None:
            similarity[own[row]] = -np.inf
        for i in np.argsort(-similarity, kind="stable")[:k]:
            shares[row, y[i]] += np.exp(similarity[i] / temperature)
    return shares / shares.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("bank", "queries"), [(4096, 2048), (7, 5), (20, 40)])
def test_knn_is_its_definition_in_blocks_of_any_size(data, rng, monkeypatch, engine, bank, queries):
    monkeypatch.setattr(knn, "_BANK", bank)
    monkeypatch.setattr(knn, "_QUERIES", queries)
    (x, y), new = data, rng.normal(size=(23, 7))
    probe = KNNProbe(k=[9, 1, 30], temperature=0.2, engine=engine).fit(x, y)
    for k in (1, 9, 30):
        probe.selected_ = {"k": k}
        np.testing.assert_allclose(probe.predict_proba(new), votes(x, y, new, k, 0.2), atol=1e-5)
        left_out = votes(x, y, x, k, 0.2, own=np.arange(len(x))).argmax(axis=1) == y
        assert probe.validation_scores_[k] == pytest.approx(left_out.mean())


@numpy_only
def test_knn_as_scikit_learn_has_it(digits):
    (x, y), temperature = digits, 0.07
    probe = KNNProbe(k=20, temperature=temperature).fit(x[:1200], y[:1200])
    theirs = KNeighborsClassifier(20, weights=lambda d: np.exp((1 - d) / temperature), metric="cosine")
    theirs.fit(x[:1200], y[:1200])
    np.testing.assert_allclose(probe.predict_proba(x[1200:]), theirs.predict_proba(x[1200:]), atol=1e-5)
    np.testing.assert_array_equal(probe.predict(x[1200:]), theirs.predict(x[1200:]))


@numpy_only
def test_knn_limits(data, rng):
    (x, y), new = data, rng.normal(size=(23, 7))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    nearest = (new @ unit.T).argmax(axis=1)
    np.testing.assert_array_equal(KNNProbe(k=1).fit(x, y).predict(new), y[nearest])
    np.testing.assert_array_equal(KNNProbe(k=40, temperature=1e-4).fit(x, y).predict(new), y[nearest])
    majority = KNNProbe(k=5, temperature=np.inf).fit(x, y).predict_proba(new)
    np.testing.assert_allclose(majority * 5, np.round(majority * 5), atol=1e-6)
    np.testing.assert_array_equal(
        (majority * 5).round(),
        [np.bincount(y[row], minlength=3) for row in np.argsort(-(new @ unit.T), axis=1)[:, :5]],
    )


@numpy_only
def test_knn_sees_directions_only(data, rng):
    (x, y), new = data, rng.normal(size=(23, 7))
    probe = KNNProbe(k=(3, 9)).fit(x, y)
    scales = 2.0 ** rng.integers(-40, 40, (53, 1))
    scaled = KNNProbe(k=(3, 9)).fit(x * scales, y)
    assert scaled.validation_scores_ == probe.validation_scores_
    np.testing.assert_array_equal(scaled.predict_proba(new * scales[:23]), probe.predict_proba(new))


@numpy_only
@pytest.mark.parametrize("bank", [4096, 3])
def test_knn_ties_and_zeros(monkeypatch, bank):
    monkeypatch.setattr(knn, "_BANK", bank)
    x = np.array([[1.0, 0]] * 4 + [[0, 1]] * 4 + [[0, 0]])
    y = np.array([2, 1, 0, 0, 1, 1, 2, 2, 0])
    probe = KNNProbe(k=2).fit(x, y)
    np.testing.assert_allclose(probe.predict_proba([[3.0, 0]]), [[0, 0.5, 0.5]], atol=1e-6)  # examples 0 and 1
    assert probe.predict([[3.0, 0]]) == 1  # the first of two equal classes
    np.testing.assert_allclose(probe.predict_proba([[0.0, 5]]), [[0, 1, 0]], atol=1e-6)  # examples 4 and 5
    np.testing.assert_allclose(probe.predict_proba([[0.0, 0]]), [[0, 0.5, 0.5]], atol=1e-6)  # all alike: 0 and 1
    similarity, index = probe._neighbours(np.array([[-1.0, 0]]), 6)
    np.testing.assert_array_equal(
        index, [[4, 5, 6, 7, 8, 0]]
    )  # the zero vector: similarity 0, after those at 90 degrees
    np.testing.assert_array_equal(similarity, [[0, 0, 0, 0, 0, -1]])


@numpy_only
def test_knn_scores_all_k_at_once(digits):
    x, y = (array[:500] for array in digits)
    probe = KNNProbe(k=(1, 5, 50)).fit(x[:300], y[:300])
    scores = probe.scores_by_k(Features(x[300:], y[300:]))
    assert scores == {k: KNNProbe(k=k).fit(x[:300], y[:300]).score(x[300:], y[300:]) for k in (1, 5, 50)}
    assert scores[probe.selected_["k"]] == probe.score(x[300:], y[300:])


@numpy_only
def test_knn_chooses_among_the_k_that_fit(data, monkeypatch):
    x, y = data
    probe = KNNProbe(k=(2, 5, 53, 100)).fit(x, y)
    assert list(probe.validation_scores_) == [2, 5]
    best = {2: "2 (the smallest tried)", 5: "5 (the largest tried)"}[probe.selected_["k"]]
    assert probe.selection_ == (
        f"k = {best}, the best of 2 (53, 100 dropped: there are 52 others) by accuracy in leaving out each of the 53 "
        "training examples"
    )
    few = KNNProbe().fit(x[:5], [0, 0, 1, 1, 1])
    assert few.selected_ == {"k": 4} and few.selection_.startswith("k = 4, the only one left (10, 20, 100, 200 dropped")
    assert KNNProbe(k=3).fit(x, y).selection_ == "k = 3, the only one given"
    assert "no class has a second" in KNNProbe(k=(1, 2)).fit(x[:4], [0, 1, 2, 3]).selection_
    monkeypatch.setattr(knn, "_HELD_OUT", 20)
    assert "in leaving out 1" in KNNProbe(k=(2, 5)).fit(x, y).selection_  # a stratified third of them


# All three -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: type(probe).__name__)
def test_mapped_files_copies_and_names(data, tmp_path, probe):
    x, y = mapped(tmp_path, data[0]), np.array(["c", "a", "b"])[data[1]]
    fitted = probe.clone().fit(x, y)
    assert fitted is not probe and not hasattr(probe, "classes_")
    in_memory = probe.clone().fit(np.array(x), y)
    np.testing.assert_array_equal(fitted.predict_proba(x), in_memory.predict_proba(np.array(x)))
    for twin in (copy.deepcopy(fitted), pickle.loads(pickle.dumps(fitted))):
        np.testing.assert_array_equal(twin.predict_proba(x), fitted.predict_proba(x))
    assert fitted.classes_.tolist() == ["a", "b", "c"] and fitted.n_features_in_ == 7
    np.testing.assert_allclose(fitted.predict_proba(x).sum(axis=1), 1, atol=1e-6)
    assert set(fitted.metrics(x, y)) == {"top1", "mean_per_class"} and isinstance(fitted.selection_, str)


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: type(probe).__name__)
@numpy_only
def test_bad_input_is_refused(data, probe):
    x, y = data
    with pytest.raises(ValueError, match="at least two classes"):
        probe.clone().fit(x, np.zeros(53, int))
    with pytest.raises(ValueError, match="53 negative"):
        probe.clone().fit(x, np.full(53, -1))
    with pytest.raises(ValueError, match="should be finite"):
        probe.clone().fit(np.where(x > 1, np.nan, x), y)
    with pytest.raises(ValueError, match="not fitted"):
        probe.clone().predict(x)
    fitted = probe.clone().fit(x, y)
    with pytest.raises(ValueError, match="should have 7 features"):
        fitted.predict(x[:, :6])
    with pytest.raises(ValueError, match="should be finite"):
        fitted.predict(x * np.inf)


@numpy_only
@pytest.mark.parametrize(
    ("probe", "named"),
    [
        *[(SGDProbe(**{name: value}), name) for name, value in [
            ("weight_decays", [-1e-6]), ("weight_decays", []), ("weight_decays", [np.nan]), ("epochs", 0),
            ("epochs", 1.5), ("batch_size", 0), ("learning_rate", 0), ("momentum", 1), ("clip", 0), ("folds", 1),
            ("engine", "cuda"), ("class_weight", {0: -1}), ("class_weight", {0: "x"}), ("epochs", True),
            ("batch_size", True), ("folds", True), ("seed", None), ("seed", -1), ("seed", True), ("seed", 0.5),
            ("weight_decays", "x"), ("weight_decays", [True]), ("learning_rate", "x"), ("momentum", None),
            ("clip", "x"),
        ]],
        *[(MLPProbe(**{name: value}), name) for name, value in [
            ("hidden", ()), ("hidden", (8, 0)), ("hidden", (2.5,)), ("weight_decays", [-1.0]), ("epochs", 0),
            ("batch_size", -1), ("learning_rate", float("inf")), ("folds", 0), ("hidden", True), ("epochs", True),
            ("seed", None), ("seed", -1),
        ]],
        *[(KNNProbe(**{name: value}), name) for name, value in [
            ("k", 0), ("k", ()), ("k", (3, -1)), ("k", 2.5), ("k", True), ("temperature", 0),
            ("temperature", float("nan")), ("engine", "gpu"), ("k", [3, True]), ("k", "x"), ("temperature", "x"),
            ("seed", None), ("seed", -1), ("seed", True),
        ]],
    ],
    ids=repr,
)  # fmt: skip
def test_bad_arguments_are_named(data, probe, named):
    with pytest.raises(ValueError, match=f"`{named}` should"):
        probe.fit(*data)
    assert not hasattr(probe, "classes_")


@numpy_only
def test_only_the_mlp_is_of_its_family(data):
    features = Features(*data, provenance={"probe": "mlp"})
    with pytest.warns(UserWarning, match="Use MLPProbe"):
        SGDProbe(epochs=1).fit(features)
    KNNProbe(k=1).fit(features)
    MLPProbe(**SMALL).fit(features)
    with pytest.warns(UserWarning, match="Use LinearProbe"):
        MLPProbe(**SMALL).fit(Features(*data, provenance={"probe": "linear"}))
