"""LinearProbe against scikit-learn and closed forms; its protocol; few labels."""

import tracemalloc

import numpy as np
import pytest
from sklearn import metrics
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, RidgeClassifier

from keras_issl import probes
from keras_issl.features import Features
from keras_issl.probes import LinearProbe, base, few_shot, rows, selection
from keras_issl.probes import engine as engines
from keras_issl.probes.logistic import solve
from keras_issl.probes.ridge import RidgeProbe


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.data))
    return data.data[order], data.target[order]


def objective(x, y, coef, intercept, strength, counts):
    """Weighted mean cross-entropy plus ||W||^2 / (2 C N), in float64, example by example."""
    loss = 0.0
    for features, label, count in zip(x.astype(np.float64), y, counts, strict=True):
        logits = coef @ features + intercept
        loss += count * (np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[label])
    return loss / len(x) + (coef**2).sum() / (2 * strength * len(x))


def normalised(x):
    x = x - x.mean(axis=0)
    return x / np.sqrt((x**2).sum(axis=1).mean())


def reference(x, y, strength, **options):
    """scikit-learn's optimum in float64, of three classes or more: coefficients, and intercepts that sum to zero."""
    found = LogisticRegression(C=strength, tol=1e-12, max_iter=50_000, **options).fit(x.astype(np.float64), y)
    return found.coef_, found.intercept_ - found.intercept_.mean()


SWEEP = (1e-2, 1e-1, 1e0, 1e1, 1e2, 1e3)
SHAPES = {"N > D": (400, 64), "N < D": (40, 64)}


@pytest.fixture(scope="module")
def optima(digits):
    """What scikit-learn finds for every strength: {(shape, weighted): (x, y, [(coef, intercept)])}."""
    found = {}
    for name, (size, _) in SHAPES.items():
        x, y = normalised(digits[0][:size]).astype(np.float32), digits[1][:size]
        for weights in (None, {0: 3.0, 4: 0.5}):
            path = [reference(x, y, strength, class_weight=weights) for strength in SWEEP]
            found[name, weights is not None] = x, y, weights, path
    return found


def sweep(x, y, strengths, engine, *, class_weight=None, streamed=False):
    """[(coef, intercept)] of one call of the solver, in memory or block by block."""
    engine, numbers = engines.choose(engine), np.unique(y, return_inverse=True)[1]
    weights = base.example_weights(numbers, np.unique(y), class_weight)
    classes = numbers.max() + 1
    if streamed:
        standard = rows.standard_of_large(x, engine, False, None, weights)
        data = rows.Rows(x, numbers, classes, engine, standard=standard, weights=weights, fits=len(strengths))
    else:
        standard, u = rows.standard_of_small(x.astype(np.float64), False, weights)
        data = rows.Rows(u, numbers, classes, engine, weights=weights, dtype=engine.precise, fits=len(strengths))
    found = solve(data, standard.spectrum, strengths)
    return [standard.original(weights) for weights in found]


@pytest.mark.parametrize("streamed", [False, True], ids=["in memory", "streamed"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("engine", ["numpy", "keras"])
def test_solver_reaches_scikit_learns_optimum(optima, monkeypatch, tmp_path, engine, shape, weighted, streamed):
    """Objective within 1e-6 for every strength, all fitted at once; coefficients within 1e-3 for C <= 1."""
    x, y, class_weight, expected = optima[shape, weighted]
    if streamed:
        monkeypatch.setitem(rows.BLOCK, engine, 20 * 65 if shape == "N < D" else 150 * 65)  # the last block is shorter
        monkeypatch.setitem(rows.RESIDENT, engine, 0)
        np.save(tmp_path / "x.npy", x)
        x = np.load(tmp_path / "x.npy", mmap_mode="r")
    found = sweep(x, y, SWEEP, engine, class_weight=class_weight, streamed=streamed)
    counts = np.vectorize((class_weight or {}).get)(y, 1.0)
    for strength, (coef, intercept), (their_coef, their_intercept) in zip(SWEEP, found, expected, strict=True):
        best = objective(x, y, their_coef, their_intercept, strength, counts)
        assert objective(x, y, coef, intercept, strength, counts) == pytest.approx(best, rel=1e-6)
        if strength <= 1:
            np.testing.assert_allclose(coef, their_coef, atol=1e-3)
            np.testing.assert_allclose(intercept, their_intercept, atol=1e-3)


@pytest.mark.parametrize("weighted", [False, True])
def test_engines_agree(digits, weighted):
    """The whole probe, selection and last fit, on NumPy and on the backend."""
    x, y = digits[0][:300], digits[1][:300]
    one, other = (
        LinearProbe((0.1, 1.0), engine=engine, class_weight="balanced" if weighted else None).fit(x, y)
        for engine in ("numpy", "keras")
    )
    assert one.selection_ == other.selection_ and one.validation_scores_ == other.validation_scores_
    np.testing.assert_allclose(one.predict_proba(x), other.predict_proba(x), atol=2e-3)


@pytest.mark.parametrize("engine", ["numpy", "keras"])
@pytest.mark.parametrize("kind", [LinearProbe, RidgeProbe])
def test_streamed_features_give_the_same_probe(digits, monkeypatch, tmp_path, kind, engine):
    """A file read in small blocks, against the same features in memory: the same choice, the same map."""
    Features(digits[0][:300], digits[1][:300]).save(tmp_path / "x.npz")
    features = Features.load(tmp_path / "x.npz", mmap=True)
    whole = kind((0.1, 1.0), class_weight={3: 5.0}).fit(features)
    monkeypatch.setattr(rows, "IN_MEMORY", 0)
    monkeypatch.setitem(rows.BLOCK, engine, 130 * 65)
    monkeypatch.setitem(rows.RESIDENT, engine, 0)
    streamed = kind((0.1, 1.0), engine=engine, class_weight={3: 5.0}).fit(features)
    assert streamed.selection_ == whole.selection_
    assert streamed.validation_scores_ == pytest.approx(whole.validation_scores_, abs=2 / 300)  # 1e-5 from the optimum
    np.testing.assert_allclose(streamed.coef_, whole.coef_, atol=2e-3 * abs(whole.coef_).max())
    np.testing.assert_allclose(streamed.decision_function(digits[0]), whole.decision_function(digits[0]), atol=1e-2)


@pytest.mark.parametrize("engine", [pytest.param("numpy", marks=pytest.mark.backend_independent), "keras"])
@pytest.mark.parametrize("standardize", ["soft", True])
@pytest.mark.parametrize("kind", [LinearProbe, RidgeProbe])
def test_streamed_features_may_be_of_any_scale(digits, monkeypatch, kind, standardize, engine):
    """Squares of these do not fit into single precision; in memory, double precision holds them."""
    monkeypatch.setattr(rows, "IN_MEMORY", 1)
    monkeypatch.setitem(rows.BLOCK, engine, 70 * 65)
    x, y = digits[0][:200].astype(np.float32) / 16, digits[1][:200]
    settings = {"folds": 2, "standardize": standardize, "engine": engine}
    found = kind([0.1, 1.0], **settings).fit(x, y)
    for scale in (2.0**-120, 2.0**-70, 2.0**70, 2.0**120):
        other = kind([0.1, 1.0], **settings).fit(x * np.float32(scale), y)
        assert other.validation_scores_ == pytest.approx(found.validation_scores_, abs=1 / 200)
        np.testing.assert_allclose(other.coef_ * scale, found.coef_, atol=1e-3 * abs(found.coef_).max())


@pytest.mark.backend_independent
@pytest.mark.parametrize("diagonal", [False, True])
def test_moments_of_features_of_all_scales_at_once(rng, monkeypatch, diagonal):
    """Each has a unit of its own, also where a later block has larger values, or a first one none at all."""
    monkeypatch.setitem(rows.BLOCK, "numpy", 20 * 5)
    x = rng.normal(size=(90, 5)) + 3
    x[:20, 3], x[:40, 4] = 3, x[:40, 4] / 1024
    scale = 2.0 ** np.array([-120, 120, 0, -110, 100])
    weights = rng.uniform(1, 2, 90)
    for counts in (None, weights):
        expected = np.cov(x.T, aweights=counts, bias=True)
        mean, covariance = rows.moments(
            (x * scale).astype(np.float32), engines.choose("numpy"), None, counts, diagonal=diagonal
        )
        np.testing.assert_allclose(mean / scale, np.average(x, axis=0, weights=counts), rtol=1e-6)
        if diagonal:
            np.testing.assert_allclose(covariance / scale**2, expected.diagonal(), rtol=1e-5)
        else:
            np.testing.assert_allclose(covariance / np.outer(scale, scale), expected, atol=1e-5 * abs(expected).max())


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("C", 1000.0, [10.0, 1000.0, 1e4], "here"), "C = 1000, the best of 3 by accuracy in here"),
        (("C", 1000.0, [10.0, 1000.0], "here"), "C = 1000 (the largest tried), the best of 2 by accuracy in here"),
        (
            ("k", 5, [5, 7], "here", "9 dropped"),
            "k = 5 (the smallest tried), the best of 2 (9 dropped) by accuracy in here",
        ),
        (("k", 5, []), "k = 5, the only one given"),
    ],
)
def test_the_sentence_says_where_the_sweep_ended(arguments, expected):
    assert base.sentence(*arguments) == expected


@pytest.mark.backend_independent
def test_features_larger_than_memory_need_only_blocks(monkeypatch, tmp_path):
    """26 MB of features on the disk; the fit never holds a quarter of them."""
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=100_000)
    mapped = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (len(y), 64))
    mapped[:] = rng.normal(size=mapped.shape) + 0.3 * y[:, None]
    mapped.flush()
    monkeypatch.setattr(rows, "IN_MEMORY", 1 << 20)
    monkeypatch.setitem(rows.BLOCK, "numpy", 1 << 16)
    monkeypatch.setitem(rows.RESIDENT, "numpy", 1 << 20)
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    tracemalloc.start()
    probe = LinearProbe((0.1, 1.0)).fit(x, y)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < x.nbytes / 4 + 8 * 5 * len(y)  # and a few numbers for each example
    assert probe.score(x[:5000], y[:5000]) > 0.7 and "one held-out part" in probe.selection_


@pytest.mark.backend_independent
@pytest.mark.parametrize("standardize", ["soft", True, False])
@pytest.mark.parametrize("kind", [LinearProbe, RidgeProbe])
def test_a_class_weight_repeats_its_examples(digits, kind, standardize):
    x, y = digits[0][:150], digits[1][:150]
    weighted = kind([1e-2], class_weight={2: 3, 7: 2}, standardize=standardize).fit(x, y)
    times = np.where(y == 2, 3, np.where(y == 7, 2, 1))
    # N counts the repeated examples too, in the penalty as in the mean: what is left of both is the same.
    repeated = kind([1e-2], standardize=standardize).fit(np.repeat(x, times, axis=0), np.repeat(y, times))
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, atol=2e-4 * abs(repeated.coef_).max())
    np.testing.assert_allclose(weighted.predict_proba(x), repeated.predict_proba(x), atol=1e-4)


@pytest.mark.backend_independent
def test_balanced_classes_weigh_the_same():
    """A class with half the examples, balanced, is that class with each example twice (and C for the fewer rows)."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 4)) + np.repeat([0, 1], [60, 30])[:, None]
    y = np.repeat(["a", "b"], [60, 30])
    balanced = LinearProbe([1.0], class_weight="balanced", standardize=False).fit(x, y)
    twice = LinearProbe([0.75], standardize=False).fit(np.vstack([x, x[60:]]), np.append(y, y[60:]))
    np.testing.assert_allclose(balanced.coef_, twice.coef_, atol=1e-4)


@pytest.mark.backend_independent
def test_standardize(digits):
    """True is scikit-learn's pipeline, False the features as they are."""
    x, y = digits[0][:100] / 16, digits[1][:100]
    deviation = x.std(axis=0)
    scaled = (x - x.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    for standardize, seen in ((True, scaled), (False, x)):
        coef, intercept = reference(seen, y, 0.1)
        probe = LinearProbe([0.1], standardize=standardize).fit(x, y)
        expected = seen @ coef.T + intercept
        np.testing.assert_allclose(probe.decision_function(x), expected, atol=2e-3)
    with pytest.raises(ValueError, match="`standardize` should be"):
        LinearProbe(standardize="hard").fit(x, y)
    with pytest.raises(ValueError, match="`engine` should be"):
        LinearProbe(engine="cuda").fit(x, y)


@pytest.mark.backend_independent
def test_two_classes_have_half_the_penalty(digits):
    """Rows -w / 2 and w / 2, as the docstring has it: C = 0.5 here is C = 1 in scikit-learn."""
    x, y = digits[0][digits[1] < 2][:60] / 16, digits[1][digits[1] < 2][:60]
    theirs = LogisticRegression(C=1.0, tol=1e-12, max_iter=50_000).fit(x, y)
    probe = LinearProbe([0.5], standardize=False).fit(x, y)
    np.testing.assert_allclose(probe.coef_[1] - probe.coef_[0], theirs.coef_[0], atol=1e-4)
    np.testing.assert_allclose(probe.predict_proba(x), theirs.predict_proba(x), atol=1e-4)


@pytest.mark.backend_independent
@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("size", [40, 400])
def test_ridge_is_scikit_learns(digits, classes, size):
    x, y = digits[0][digits[1] < classes], digits[1][digits[1] < classes]
    x, y = x[:size], y[:size]
    for weights in (None, "balanced"):
        theirs = RidgeClassifier(alpha=4.0, class_weight=weights, solver="cholesky").fit(x, y)
        probe = RidgeProbe([0.25], standardize=False, class_weight=weights).fit(x, y)
        scores = probe.decision_function(digits[0][:50])
        expected = theirs.decision_function(digits[0][:50])
        np.testing.assert_allclose(scores[:, 1] if classes == 2 else scores, expected, atol=1e-8)
        np.testing.assert_array_equal(probe.predict(x), theirs.predict(x))


@pytest.mark.backend_independent
def test_ridge_chooses_its_strength(digits):
    x, y = digits
    probe = RidgeProbe().fit(x[:1000], y[:1000])
    assert probe.score(x[1000:], y[1000:]) > 0.88
    assert probe.validation_scores_[probe.best_strength_] == max(probe.validation_scores_.values())
    assert probe.selected_ == {"strength": probe.best_strength_} and "5-fold" in probe.selection_


@pytest.mark.backend_independent
def test_metrics_are_scikit_learns(digits):
    x, y = digits[0][:200], digits[1][:200]
    probe = LinearProbe([0.01]).fit(x, y)
    x, y = digits[0][1000:], digits[1][1000:]
    found, ranks = probe.metrics(x, y), probe.ranks(x, y)
    assert set(found) == {"top1", "top5", "mean_per_class"}
    for k in (1, 3, 5):
        expected = metrics.top_k_accuracy_score(y, probe.decision_function(x), k=k)
        assert (ranks < k).mean() == pytest.approx(expected) == found.get(f"top{k}", expected)
    assert found["mean_per_class"] == pytest.approx(metrics.balanced_accuracy_score(y, probe.predict(x)))
    assert found["top1"] == probe.score(x, y)


@pytest.mark.backend_independent
def test_unknown_labels_and_ties(digits):
    """A label that training lacked is an error at every k; of equal logits the first class is the guess."""
    known = digits[1][:300] < 8
    probe = LinearProbe([1.0]).fit(digits[0][:300][known], digits[1][:300][known])
    x, y = digits[0][300:600], digits[1][300:600]
    ranks = probe.ranks(x, y)
    assert (ranks[y >= 8] == 8).all() and (ranks[y < 8] < 8).all()
    assert probe.metrics(x, y)["top5"] == (ranks < 5).mean() <= (y < 8).mean()
    probe.coef_, probe.intercept_ = np.zeros((8, 64)), np.array([0.0, 1, 1, 0, 0, 0, 0, 0])
    assert [int(probe.ranks(x[:1], [label])[0]) for label in range(8)] == [2, 0, 1, 3, 4, 5, 6, 7]
    assert probe.predict(x[:1]) == [1]


def test_no_weights_is_the_class_prior():
    """With C -> 0 only the intercept is left, and its optimum is the logarithm of the class frequencies."""
    y = np.repeat([0, 1, 2], [10, 30, 60])
    x = np.random.default_rng(0).normal(size=(100, 4))
    probe = LinearProbe(strengths=[1e-9]).fit(x, y)
    np.testing.assert_allclose(probe.predict_proba(x)[0], [0.1, 0.3, 0.6], atol=1e-5)


def test_two_mirrored_points_closed_form():
    """At x = -1 and 1, which need no scaling, W = (-w, w) and w / (C N) = 1 - sigmoid(2 w)."""
    probe = LinearProbe(strengths=[3.0]).fit(np.array([[-1.0], [1.0]]), [0, 1])
    w = probe.coef_[1, 0]
    assert probe.coef_[0, 0] == pytest.approx(-w, abs=1e-6)
    assert w / (3.0 * 2) == pytest.approx(1 - 1 / (1 + np.exp(-2 * w)), abs=1e-5)


def test_probe_on_digits(digits):
    x, y = digits
    probe = LinearProbe().fit(x[:1000], y[:1000])
    assert probe.score(x[1000:], y[1000:]) > 0.94
    assert probe.coef_.shape == (10, 64) and probe.intercept_.shape == (10,) and probe.n_features_in_ == 64
    assert list(probe.validation_scores_) == list(probes.STRENGTHS)
    assert probe.validation_scores_[probe.best_strength_] == max(probe.validation_scores_.values())
    assert "5-fold" in probe.selection_ and f"C = {probe.best_strength_:g}, the best of 6" in probe.selection_
    probabilities = probe.predict_proba(x)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    np.testing.assert_array_equal(probabilities.argmax(axis=1), probe.predict(x))


def test_validation_scores_are_honest(digits):
    """Labels without relation to x: held-out accuracy is chance, though the probe could learn them by heart."""
    x, rng = digits[0][:200], np.random.default_rng(1)
    wide = np.hstack([x, rng.normal(size=(200, 400))])
    probe = LinearProbe().fit(wide, rng.integers(2, size=200))
    assert max(probe.validation_scores_.values()) < 0.65
    assert LinearProbe(strengths=[1e4]).fit(wide, rng.integers(2, size=200)).selection_.endswith("the only one given")


def test_preprocessing_is_invariant_to_shift_and_one_scale(digits):
    x, y = digits[0][:300], digits[1][:300]
    one, other = LinearProbe().fit(x, y), LinearProbe().fit(1000 * x + 5, y)
    assert one.best_strength_ == other.best_strength_
    np.testing.assert_allclose(one.predict_proba(x), other.predict_proba(1000 * x + 5), atol=1e-5)


def test_constant_features_do_nothing(digits):
    x, y = digits[0][:300], digits[1][:300]
    padded = np.hstack([x, np.full((300, 3), 7.0)])
    probe = LinearProbe(strengths=[1.0]).fit(padded, y)
    moved = padded.copy()
    moved[:, -3:] += 1e3  # a feature that was constant in training moves at test time
    np.testing.assert_allclose(probe.coef_[:, -3:], 0, atol=1e-12)
    np.testing.assert_array_equal(probe.predict(moved), probe.predict(padded))
    still = LinearProbe().fit(np.ones((20, 3)), np.arange(20) % 2)
    np.testing.assert_allclose(still.predict_proba(np.ones((1, 3))), 0.5, atol=1e-6)
    assert still.best_strength_ == min(probes.STRENGTHS)  # of equal ones that which regularises most


def test_single_example_a_class_uses_the_default():
    x, y = np.eye(4), ["d", "b", "c", "a"]
    probe = LinearProbe(default_strength=7.0).fit(x, y)
    assert probe.best_strength_ == 7.0 and probe.validation_scores_ == {} and "default" in probe.selection_
    assert probe.predict(x).tolist() == y


def test_lone_examples_are_never_held_out(rng):
    y = np.array([0] * 7 + [1] * 2 + [2])
    numbers = base.fold_numbers(y, 5, rng)
    assert numbers[-1] == -1
    assert sorted(numbers[numbers >= 0].tolist()) == sorted([0, 1, 2, 3, 4, 0, 1, 2, 3])
    assert len(set(numbers[7:9])) == 2  # each held out once, trained on in the other part
    assert set(LinearProbe().fit(rng.normal(size=(10, 3)), y).classes_) == {0, 1, 2}


def test_large_sets_use_one_held_out_part(digits, monkeypatch):
    monkeypatch.setattr(selection, "HELD_OUT_FROM", 500)
    probe = LinearProbe().fit(digits[0][:500], digits[1][:500])
    assert "one held-out part (100 examples)" in probe.selection_


def test_labels_may_be_strings_or_have_gaps(digits):
    x, y = digits[0][:200], digits[1][:200]
    names = np.array([f"digit {label}" for label in y])
    assert LinearProbe().fit(x, names).score(x, names) > 0.9
    assert set(LinearProbe().fit(x, y * 10 + 3).predict(x)) <= set(range(3, 94, 10))


def test_same_input_same_probe(digits):
    one, other = (LinearProbe(seed=3).fit(digits[0][:150], digits[1][:150]) for _ in range(2))
    np.testing.assert_array_equal(one.coef_, other.coef_)


def test_parameters():
    probe = LinearProbe(strengths=[1.0], seed=4)
    assert probe.get_params() == {
        "strengths": [1.0],
        "folds": 5,
        "default_strength": 10.0,
        "class_weight": None,
        "standardize": "soft",
        "engine": "auto",
        "seed": 4,
    }
    assert repr(probe) == "LinearProbe(strengths=[1.0], seed=4)"
    assert probe.clone(seed=5).get_params() == {**probe.get_params(), "seed": 5}
    assert probe.set_params(folds=3) is probe and probe.folds == 3
    with pytest.raises(ValueError, match="`depth` should be one of"):
        probe.set_params(depth=2)


X, Y = np.random.default_rng(0).normal(size=(8, 3)), np.arange(8) % 2
WORST = np.arange(24).reshape(8, 3) == 7  # one value of one example


@pytest.mark.parametrize(
    "x, y, message",
    [
        (X, None, "`y` should be given"),
        (Features(X), None, "`y` should be given"),
        (X, np.where(Y, -1, 0), "4 of 8 negative"),
        (X, np.zeros(8, int), "at least two classes"),
        (X, Y[:5], r"shape \(8,\)"),
        (np.where(WORST, np.nan, X), Y, "in 1 of 8 rows"),
        (np.where(WORST, np.inf, X), Y, "in 1 of 8 rows"),
        (np.zeros((0, 3)), np.zeros(0), r"shape \(0, 3\)"),
        (X[0], Y, r"shape \(3,\)"),
        (X, np.where(Y, np.nan, 0.0), "NaN"),
    ],
)
def test_bad_input(x, y, message):
    with pytest.raises(ValueError, match=message):
        LinearProbe().fit(x, y)


@pytest.mark.parametrize("kind", [LinearProbe, RidgeProbe])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("strengths", value) for value in ([1.0, 0.0], [], "x", [True], [[1.0]], [np.inf])],
        *[("folds", value) for value in (1, True, 2.5, "x")],
        *[("default_strength", value) for value in (0, "x", None, np.inf, True)],
        *[("seed", value) for value in (None, -1, True, 0.5)],
        *[("standardize", value) for value in ("hard", 1, None)],
        *[("class_weight", value) for value in ({0: "x"}, {0: 0.0}, {0: True})],
    ],
)
def test_bad_arguments_are_named(kind, name, value):
    probe = kind(**{name: value})
    with pytest.raises(ValueError, match=f"`{name}` should"):
        probe.fit(X, Y)
    assert not hasattr(probe, "classes_")


def test_bad_parameters_and_use():
    with pytest.raises(ValueError, match="`class_weight` should hold a positive number"):
        LinearProbe(class_weight={0: 1.0, 9: 2.0}).fit(X, Y)
    with pytest.raises(ValueError, match="`class_weight` should be None"):
        LinearProbe(class_weight="even").fit(X, Y)
    with pytest.raises(ValueError, match="not fitted"):
        LinearProbe().predict(X)
    with pytest.raises(ValueError, match="should have 3 features"):
        LinearProbe().fit(X, Y).predict(X[:, :2])


def test_another_probe_family_warns(digits):
    features = Features(digits[0][:50], digits[1][:50], {"probe": "mlp"})
    with pytest.warns(UserWarning, match="'mlp'"):
        LinearProbe().fit(features)


def test_few_shot_rows(digits):
    x, y = digits
    train, test = Features(x[:600], y[:600]), Features(x[600:], y[600:])
    scores = few_shot(train, test, shots=(1, 5, None), draws=3)
    assert list(scores) == [1, 5, None]
    assert scores[1].mean < scores[5].mean < scores[None].mean
    assert scores[1].draws == 3 and scores[1].sd > 0
    assert scores[None] == (LinearProbe().fit(train).score(test), 0.0, 1)
    assert scores == few_shot(train, test, shots=(1, 5, None), draws=3)


def test_few_shot_draws_are_paired_nested_and_balanced(digits):
    """The draws are seen through a probe that writes down the features it is given: the row's own number."""
    seen = []

    class Recorder(LinearProbe):
        def fit(self, features):
            seen.append(features.array[:, 0].astype(int))
            return super().fit(features)

    y = digits[1][:300]
    numbered = Features(np.arange(300)[:, None], y)
    scaled = Features(np.arange(300)[:, None] * np.ones((1, 5)), y)
    for features in (numbered, scaled):
        few_shot(features, features, shots=(1, 2), draws=2, seed=5, probe=Recorder(strengths=[1.0]))
    for one, other in zip(seen[:4], seen[4:], strict=True):
        np.testing.assert_array_equal(one, other)
    assert set(seen[0]) < set(seen[2]) and set(seen[0]) != set(seen[1])
    assert np.bincount(y[seen[2]]).tolist() == [2] * 10


def test_few_shot_refuses_more_shots_than_examples(digits):
    features = Features(digits[0][:60], digits[1][:60])
    with pytest.raises(ValueError, match="`shots` should be at most"):
        few_shot(features, features, shots=(50,))
    with pytest.raises(ValueError, match="`shots` should be positive"):
        few_shot(features, features, shots=(0,))
