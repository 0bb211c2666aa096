"""`evaluate`: its figures, intervals, refusals and warnings; `transfer`; shares of train in `few_shot`."""

import collections
import dataclasses
import warnings

import numpy as np
import pytest

from keras_issl.features import Features
from keras_issl.probes import LinearProbe, few_shot
from keras_issl.probes.base import Probe, class_numbers, inputs
from keras_issl.probes.evaluation import evaluate, transfer
from keras_issl.probes.figures import metrics, paired_difference
from keras_issl.results import Result

pytestmark = pytest.mark.backend_independent


class FirstColumns(Probe):
    """A probe that learns the labels' names alone: the first K columns are its logits. Its answers are known."""

    def __init__(self, offset=0.0, *, seed=0):
        self.offset = offset
        self.seed = seed

    def fit(self, x, y=None):
        x, y = inputs(x, y, family=self.family)
        self.classes_, self.n_features_in_ = class_numbers(y)[0], x.shape[1]
        return self

    def _scores(self, block):
        rng = np.random.default_rng(self.seed)
        return block[:, : len(self.classes_)] + self.offset * rng.normal(size=(len(block), len(self.classes_)))


class MLPLike(FirstColumns):
    family = "mlp"


class Seedless(FirstColumns):
    def __init__(self):
        self.offset, self.seed = 0.0, 0


def one_hot(labels, classes, rng, provenance=()):
    """Features whose first columns are the one-hot labels, and a random one, so that no two rows are equal."""
    labels = np.asarray(labels)
    array = np.column_stack([np.eye(classes)[labels], rng.normal(size=len(labels))])
    return Features(array, labels, dict(provenance))


def guesses(right, rng, classes=2):
    """Features for which `FirstColumns` is right where `right` says so, and labels 0, 1, 0, …"""
    labels = np.arange(len(right)) % classes
    features = one_hot(np.where(right, labels, (labels + 1) % classes), classes, rng)
    return Features(features.array, labels)


@pytest.fixture
def train(rng):
    return one_hot(np.arange(60) % 3, 3, rng)


@pytest.fixture
def test(rng):
    return one_hot(np.arange(100, 190) % 3, 3, rng)


def test_a_probe_that_is_always_right_has_the_interval_one_to_one(train, test):
    result = evaluate(train, test, probe=FirstColumns())
    certain = {"value": 1.0, "low": 1.0, "high": 1.0, "sd": 0.0, "seeds": 1}
    assert result.metrics == {"top1": certain, "mean_per_class": certain}
    assert result.confusions == [] and [entry["accuracy"] for entry in result.per_class] == [1.0] * 3
    assert result.selected_on == "nothing" and result.mode == "offline" and result.seeds == [0]


@pytest.mark.parametrize(("size", "share"), [(400, 0.5), (2000, 0.9), (1000, 0.98)])
def test_the_interval_is_the_binomials(size, share):
    """The bootstrap of one 0/1 figure is Bin(N, p)/N: 1.96 standard errors to each side."""
    rng = np.random.default_rng(1)
    right = np.arange(size) < share * size
    features = guesses(rng.permutation(right), rng)
    found = evaluate(guesses(np.ones(20, bool), rng), features, probe=FirstColumns(), bootstrap=20_000).metrics["top1"]
    error = np.sqrt(share * (1 - share) / size)
    assert found["value"] == share
    np.testing.assert_allclose(
        [found["low"], found["high"]], share + 1.96 * error * np.array([-1, 1]), atol=0.12 * error + 0.5 / size
    )


def mean_per_class(correct, y):
    return np.mean([correct[y == label].mean() for label in np.unique(y)])


def test_metrics_and_intervals_agree_with_a_bootstrap_over_examples(rng):
    """The draws are of kinds of examples; here every example is drawn by itself, in a loop."""
    ranks, labels = rng.integers(0, 9, (3, 150)), rng.integers(0, 7, 150)
    labels[0] = 7  # a class that a third of the resamples lack
    found = metrics(ranks, labels, 8, 4000)
    seeds = {
        "top1": [(seed < 1).mean() for seed in ranks],
        "top5": [(seed < 5).mean() for seed in ranks],
        "mean_per_class": [mean_per_class(seed == 0, labels) for seed in ranks],
    }
    resampled = collections.defaultdict(list)
    for _ in range(4000):
        drawn = rng.integers(0, 150, 150)
        resampled["top1"].append((ranks[:, drawn] < 1).mean())
        resampled["top5"].append((ranks[:, drawn] < 5).mean())
        resampled["mean_per_class"].append(mean_per_class((ranks[:, drawn] < 1).mean(axis=0), labels[drawn]))
    assert set(found) == set(seeds)
    for name, values in seeds.items():
        np.testing.assert_allclose(found[name]["value"], np.mean(values))
        np.testing.assert_allclose(found[name]["sd"], np.std(values, ddof=1))
        expected = np.quantile(resampled[name], [0.025, 0.975])
        np.testing.assert_allclose([found[name]["low"], found[name]["high"]], expected, atol=0.006)
        assert found[name]["seeds"] == 3


def test_no_bootstrap_no_interval(train, test):
    found = evaluate(train, test, probe=FirstColumns(), bootstrap=0)
    assert found.metrics["top1"]["low"] is None and found.metrics["top1"]["high"] is None
    assert "interval" not in found.protocol()


def test_evaluation_is_deterministic_and_seeds_are_fitted_each(train, test):
    noisy = FirstColumns(0.6)
    first, second = (evaluate(train, test, probe=noisy, seeds=(3, 4, 5)) for _ in range(2))
    assert first.metrics == second.metrics and first.confusions == second.confusions
    scores = [noisy.clone(seed=seed).fit(train).score(test) for seed in (3, 4, 5)]
    top1 = first.metrics["top1"]
    np.testing.assert_allclose([top1["value"], top1["sd"]], [np.mean(scores), np.std(scores, ddof=1)])
    assert first.seeds == [3, 4, 5] and top1["seeds"] == 3 and "seed" not in first.probe["parameters"]
    errors = sum(entry["examples"] * (1 - entry["accuracy"]) for entry in first.per_class)
    np.testing.assert_allclose(errors, sum(entry["count"] for entry in first.confusions))
    assert "3 seeds" in first.protocol()


def test_a_probe_without_a_seed_is_fitted_once(train, test):
    result = evaluate(train, test, probe=Seedless(), seeds=(0, 1))
    assert result.seeds == [] and result.metrics["top1"]["seeds"] == 1


def test_classes_and_confusions_are_named(rng):
    """One "a" is taken for class 2, which has no name; a quarter of "b" for "a"."""
    train = one_hot([0, 1, 2] * 4, 3, rng)
    seen = one_hot([0] * 4 + [2] + [1] * 6 + [0] * 2 + [2] * 2, 3, rng)
    test = Features(seen.array, [0] * 5 + [1] * 8 + [2] * 2)
    result = evaluate(train, test, probe=FirstColumns(), class_names=["a", "<b>"])
    assert result.confusions == [
        {"label": "<b>", "guess": "a", "count": 2.0, "share": 0.25},
        {"label": "a", "guess": "2", "count": 1.0, "share": 0.2},
    ]
    assert result.per_class[1:] == [
        {"label": "<b>", "examples": 8, "accuracy": 0.75},
        {"label": "2", "examples": 2, "accuracy": 1.0},
    ]


def test_the_test_set_is_scored_once_per_fitted_probe(train, test):
    calls = []

    class Counting(FirstColumns):
        def decision_function(self, x):
            calls.append(len(x))
            return super().decision_function(x)

    evaluate(train, test, probe=Counting(), seeds=(0, 1))
    assert calls == [len(test), len(test)]


def test_rows_of_train_in_test_are_counted(train, test):
    mixed = Features(np.concatenate([test.array, train.array[:7]]), np.append(test.labels, train.labels[:7]))
    with pytest.warns(UserWarning, match="7 of 97 test examples have the features of a training example"):
        result = evaluate(train, mixed, probe=FirstColumns())
    assert result.test["also_in_train"] == 7 and "7 of them have the features of a training" in result.protocol()


def test_negative_zero_is_zero(train, test):
    first, second = train.array.copy(), test.array.copy()
    first[:2], second[0], second[1] = [[0.0], [-0.0]], -0.0, 0.0
    first[1, 3] = second[1, 3] = 1.0
    with pytest.warns(UserWarning, match="2 of 90 test examples have the features"):
        evaluate(Features(first, train.labels), Features(second, test.labels), probe=FirstColumns())


def test_one_dataset_for_both_is_refused_and_two_subsets_of_it_are_not(train):
    known = Features(train.array, train.labels, {"fingerprint": "f", "dataset": "cells"})
    with pytest.raises(ValueError, match="should be different images. Received: cells for both"):
        evaluate(known, known, probe=FirstColumns())
    one, other = known.subset(slice(30)), known.subset(slice(30, None))  # with the same labels
    assert evaluate(one, other, probe=FirstColumns()).test["examples"] == 30
    with pytest.warns(UserWarning, match="1 of 30"):
        evaluate(one, known.subset([0, *range(31, 60)]), probe=FirstColumns())


def test_classes_that_train_lacks_count_as_errors(rng, train):
    test = one_hot([0, 1, 2, 2], 3, rng)
    test = Features(test.array, [0, 1, 2, 7])
    with pytest.warns(UserWarning, match=r"1 of 4 test examples have a class that train does not have \(7\)"):
        result = evaluate(train, test, probe=FirstColumns())
    assert result.metrics["top1"]["value"] == 0.75 and result.test["of_unknown_class"] == 1
    assert "1 of them of a class that train does not have" in result.protocol()


@pytest.mark.parametrize("key", ["weights_sha256", "preset"])
def test_features_of_two_encoders_are_refused(train, test, key):
    one, other = (Features(f.array, f.labels, {key: value}) for f, value in ((train, "a"), (test, "b")))
    with pytest.raises(ValueError, match=f"should be of one encoder. Received: {key} a, b"):
        evaluate(one, other, probe=FirstColumns())


def test_one_encoder_by_two_addresses_is_one_encoder(train, test):
    one, other = (
        Features(f.array, f.labels, {"weights_sha256": "a", "preset": preset})
        for f, preset in ((train, "mine"), (test, "hf://me/mine"))
    )
    assert evaluate(one, other, probe=FirstColumns()).representation["name"] == "mine"


def test_two_ways_of_preprocessing_warn(train, test):
    one, other = (
        Features(f.array, f.labels, {"preprocessing": {"crop": crop}}) for f, crop in ((train, 224), (test, 96))
    )
    with pytest.warns(UserWarning, match="differ in preprocessing: {'crop': 224} and {'crop': 96}"):
        evaluate(one, other, probe=FirstColumns())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train": np.eye(3)}, "`train` should be Features"),
        ({"test": Features(np.eye(3), [0, 1, 2])}, "should have the same width. Received: 4 and 3"),
        ({"test": Features(np.ones((2, 4)))}, "`y` should be given"),
        ({"test": Features(np.ones((2, 4)), [0, -1])}, "1 of 2 negative, which means none"),
        ({"seeds": ()}, "`seeds` should be different"),
        ({"seeds": (1, 1)}, "`seeds` should be different"),
        ({"seeds": (0.5,)}, "`seeds` should be different"),
        ({"bootstrap": -1}, "`bootstrap` should be"),
        ({"draws": 0}, "`draws` should be"),
        ({"mode": "on-line"}, "`mode` should be one of"),
        ({"probe": LinearProbe}, "`probe` should be an unfitted probe"),
        ({"probe": object()}, "`probe` should be an unfitted probe"),
        ({"shots": (21,)}, "`shots` should be at most 20"),
    ],
)
def test_bad_arguments_are_named(train, test, change, words):
    with pytest.raises(ValueError, match=words):
        evaluate(**{"train": train, "test": test, "probe": FirstColumns()} | change)


def test_both_families_are_recorded_and_told_where_they_differ(train, test):
    one, other = (
        Features(f.array, f.labels, {"probe": "linear", "preset": "/home/me/runs/cells/preset"}) for f in (train, test)
    )
    with pytest.warns(UserWarning, match="trained for a probe of the family 'linear'"):
        result = evaluate(one, other, probe=MLPLike())
    assert (result.representation["probe"], result.probe["family"]) == ("linear", "mlp") and result.mismatch
    assert "trained for a linear probe, another family" in result.protocol()
    neighbours = evaluate(one, other, probe=FirstColumns())  # of no family, as kNN is
    assert neighbours.probe["family"] is None and not neighbours.mismatch
    assert "family" not in neighbours.protocol()


def test_provenance_is_carried_without_paths(train, test, tmp_path):
    origin = {"weights_sha256": "a" * 64, "encoder": "resnet", "image_shape": (8, 8, 3), "backend": "jax", "keras": "3"}
    for preset, name in (
        ("/home/me/runs/cells/preset", "cells"),
        (r"C:\me\cells", "cells"),
        ("hf://me/c@v1", "hf://me/c@v1"),
    ):
        one, other = (
            Features(f.array, f.labels, origin | {"preset": preset, "dataset": f"cells/{part}", "fingerprint": part})
            for f, part in ((train, "train"), (test, "test"))
        )
        result = evaluate(one, other, probe=FirstColumns())
        expected = origin | {"image_shape": [8, 8, 3], "preset": name, "name": name, "feature_dim": 4}
        assert result.representation == expected
    assert {key: result.test[key] for key in ("name", "split", "fingerprint", "examples", "classes")} == {
        "name": "cells/test", "split": "test", "fingerprint": "test", "examples": 90, "classes": 3,
    }  # fmt: skip
    assert "me/runs" not in str(dataclasses.asdict(result))
    result.save(tmp_path / "result.json")
    assert Result.load(tmp_path / "result.json") == result


def test_linear_probe_says_how_it_was_chosen(train, test):
    result = evaluate(train, test, shots=(1, 0.5, None), draws=2)
    assert result.selected_on == "held-out part of train" and result.probe["selection"] in result.protocol()
    assert list(result.few_shot) == ["1", "0.5", "all"] and result.few_shot["1"]["draws"] == 2
    assert result.few_shot["all"]["mean"] == result.metrics["top1"]["value"]
    only = evaluate(train, test, probe=LinearProbe(strengths=[1.0]))
    assert only.selected_on == "nothing"


def test_transfer_evaluates_every_dataset_and_names_a_faulty_one(train, test):
    found = transfer({"one": (train, test), "two": (test, train)}, probe=FirstColumns(), class_names={"two": "abc"})
    assert list(found) == ["one", "two"] and found["two"].test["examples"] == 60
    assert found["one"].test["name"] == "one" and found["two"].per_class[1]["label"] == "b"
    named = Features(test.array, test.labels, {"dataset": "cells/test"})
    assert transfer({"x": (train, named)}, probe=FirstColumns())["x"].test["name"] == "cells/test"
    with pytest.raises(ValueError, match="^two: `y` should be given"):
        transfer({"one": (train, test), "two": (train, Features(test.array))}, probe=FirstColumns())
    for wrong in ({}, [(train, test)], {"one": train}):
        with pytest.raises(ValueError, match="`pairs` should"):
            transfer(wrong)


def test_a_paired_difference_has_the_standard_error_of_the_differences():
    a, b = np.zeros(1000), np.zeros(1000)
    a[:800], b[50:850] = 1, 1  # they differ on 100 examples, 50 each way
    found = paired_difference(a, b, bootstrap=20_000)
    assert found.value == 0
    np.testing.assert_allclose([found.low, found.high], np.array([-1, 1]) * 1.96 * np.sqrt(0.1 / 1000), atol=1.1e-3)
    assert found == paired_difference(a, b, bootstrap=20_000)
    assert paired_difference(a.astype(bool), np.zeros(1000, bool)).value == 0.8


@pytest.mark.parametrize("arguments", [([1, 0], [1]), ([], []), ([1.0, np.nan], [1, 1]), ([[1]], [[1]])])
def test_a_paired_difference_needs_pairs(arguments):
    with pytest.raises(ValueError, match="`a` and `b` should have one finite number"):
        paired_difference(*arguments)


# Few labels ----------------------------------------------------------------------------------------------------------


def drawn(labels, shots, draws=2, **options):
    """The rows that a probe is given, a list a draw."""
    rows = []

    class Recorder(FirstColumns):
        def fit(self, x, y=None):
            rows.append(x.array[:, 0].astype(int))
            return super().fit(x, y)

    numbered = Features(np.arange(len(labels))[:, None] * np.ones((1, len(set(labels)))), labels)
    scores = few_shot(numbered, numbered, shots=shots, draws=draws, probe=Recorder(), **options)
    return rows, scores


def test_shares_are_stratified_nested_and_leave_no_class_out():
    labels = np.repeat([0, 1, 2], [200, 50, 3])
    rows, scores = drawn(labels, (0.01, 0.1, 2, None))
    assert list(scores) == [0.01, 0.1, 2, None] and [score.draws for score in scores.values()] == [2, 2, 2, 1]
    percent, tenth, two, everything = rows[:2], rows[2:4], rows[4:6], rows[6]
    assert [np.bincount(labels[draw]).tolist() for draw in (percent[0], tenth[0], two[0])] == [
        [2, 1, 1], [20, 5, 1], [2, 2, 2],
    ]  # fmt: skip
    for draw in range(2):
        assert set(percent[draw]) < set(tenth[draw])
    assert set(tenth[0]) != set(tenth[1]) and len(everything) == 253


def test_integer_shots_draw_what_they_always_drew():
    """The first of a permutation of each class, by the generator of (seed, draw)."""
    labels = np.random.default_rng(3).integers(0, 4, 120)
    rows, _ = drawn(labels, (3,), seed=7)
    for draw, found in enumerate(rows):
        rng = np.random.default_rng([7, draw])
        expected = [rng.permutation(np.flatnonzero(labels == label))[:3] for label in range(4)]
        np.testing.assert_array_equal(found, np.sort(np.concatenate(expected)))


@pytest.mark.parametrize("shots", [(0,), (1.0,), (-0.1,), (True,), ("5",), (np.nan,), ()])
def test_shots_that_are_no_shots_are_named(train, test, shots):
    with pytest.raises(ValueError, match="`shots` should be positive integers"):
        few_shot(train, test, shots=shots)


def test_more_shots_than_examples_point_to_shares(rng):
    features = one_hot([0] * 9 + [1] * 4, 2, rng)
    with pytest.raises(
        ValueError, match="at most 4, the examples of class 1, or shares of each class, such as 0.1. Rec"
    ):
        few_shot(features, features, shots=(0.5, 5))


def test_nothing_warns_without_a_reason(train, test):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(train, test, probe=FirstColumns(), shots=(1,), draws=1)
