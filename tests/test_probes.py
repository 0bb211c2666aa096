"""LinearProbe against scikit-learn and closed forms; its protocol; few labels."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from keras_issl import probes
from keras_issl.features import Features
from keras_issl.probes import LinearProbe, few_shot, solve


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.data))
    return data.data[order], data.target[order]


def objective(x, y, coef, intercept, strength):
    """Mean cross-entropy plus ||W||^2 / (2 C N), in float64, example by example."""
    loss = 0.0
    for features, label in zip(x, y, strict=True):
        logits = coef @ features + intercept
        loss += np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[label]
    return loss / len(x) + (coef**2).sum() / (2 * strength * len(x))


def normalised(x):
    x = x - x.mean(axis=0)
    return x / np.sqrt((x**2).sum(axis=1).mean())


@pytest.mark.parametrize("strength", [1e-2, 1.0, 1e2])
@pytest.mark.parametrize("size", [40, 600])
def test_solver_reaches_scikit_learns_optimum(digits, strength, size):
    x, y = normalised(digits[0][:size]), digits[1][:size]
    theirs = LogisticRegression(C=strength, tol=1e-12, max_iter=20_000).fit(x, y)
    rotated, basis, spectrum = probes._rotate(x)
    weights = solve(rotated, y, strength, spectrum=spectrum)
    coef, intercept = (basis @ weights[:-1]).T, weights[-1]
    expected = objective(x, y, theirs.coef_, theirs.intercept_, strength)
    assert objective(x, y, coef, intercept, strength) == pytest.approx(expected, rel=1e-6)
    if strength <= 1:
        np.testing.assert_allclose(coef, theirs.coef_, atol=1e-3)
        np.testing.assert_allclose(
            intercept - intercept.mean(), theirs.intercept_ - theirs.intercept_.mean(), atol=1e-3
        )


def test_solver_without_rotation_and_from_another_start(digits, rng):
    x, y = normalised(digits[0][:300]), digits[1][:300]
    rotated, basis, spectrum = probes._rotate(x)
    weights = solve(rotated, y, 1.0, spectrum=spectrum)
    plain = solve(x, y, 1.0, start=rng.normal(size=(x.shape[1] + 1, 10)))
    np.testing.assert_allclose(plain[:-1], basis @ weights[:-1], atol=1e-3)


def test_more_features_than_examples_is_exact(rng):
    x, y = normalised(rng.normal(size=(30, 200))), rng.integers(3, size=30)
    rotated, basis, spectrum = probes._rotate(x)
    assert rotated.shape == (30, 30)
    np.testing.assert_allclose(rotated @ basis.T, x, atol=1e-12)
    weights = solve(rotated, y, 1.0, spectrum=spectrum)
    np.testing.assert_allclose(basis @ weights[:-1], solve(x, y, 1.0)[:-1], atol=1e-4)


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
    assert "5-fold" in probe.selection_ and f"C={probe.best_strength_:g}" in probe.selection_
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


def test_single_example_a_class_uses_the_default():
    x, y = np.eye(4), ["d", "b", "c", "a"]
    probe = LinearProbe(default_strength=7.0).fit(x, y)
    assert probe.best_strength_ == 7.0 and probe.validation_scores_ == {} and "default" in probe.selection_
    assert probe.predict(x).tolist() == y


def test_lone_examples_are_never_held_out(rng):
    y = np.array([0] * 7 + [1] * 2 + [2])
    numbers = probes._fold_numbers(y, 5, rng)
    assert numbers[-1] == -1
    assert sorted(numbers[numbers >= 0].tolist()) == sorted([0, 1, 2, 3, 4, 0, 1, 2, 3])
    assert len(set(numbers[7:9])) == 2  # each held out once, trained on in the other part
    assert set(LinearProbe().fit(rng.normal(size=(10, 3)), y).classes_) == {0, 1, 2}


def test_large_sets_use_one_held_out_part(digits, monkeypatch):
    monkeypatch.setattr(probes, "_HELD_OUT_FROM", 500)
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
    assert probe.get_params() == {"strengths": [1.0], "folds": 5, "default_strength": 10.0, "seed": 4}
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


def test_bad_parameters_and_use():
    with pytest.raises(ValueError, match="`strengths` should be positive"):
        LinearProbe(strengths=[1.0, 0.0]).fit(X, Y)
    with pytest.raises(ValueError, match="`folds`"):
        LinearProbe(folds=1).fit(X, Y)
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
