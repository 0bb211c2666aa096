"""The risk decomposition, recomputed by hand."""

import json

import numpy as np
import pytest

from keras_issl import Features
from keras_issl.diagnostics.risk import risk_decomposition
from keras_issl.probes import LinearProbe, RidgeProbe

pytestmark = pytest.mark.backend_independent
PARTS = ("usability", "probe_generalization", "encoder_generalization")


def blobs(rng, size, spread=1.5, width=12):
    labels = np.arange(size) % 3
    return Features(np.eye(3, width)[labels] * 2 + spread * rng.normal(size=(size, width)), labels)


@pytest.fixture
def data(rng):
    return blobs(rng, 120), blobs(rng, 90)


class Recording(LinearProbe):
    """A probe that keeps what its copies were fitted to."""

    fitted = []

    def fit(self, x, y=None):
        self.fitted.append((self.seed, x))
        return super().fit(x, y)


def test_it_is_what_three_fits_say(data):
    train, test = data
    Recording.fitted.clear()
    found = risk_decomposition(train, test, probe=Recording(strengths=(1.0,)), held_out=0.25)
    (_, whole), (_, rest) = Recording.fitted
    assert whole is train and len(rest) == 90
    assert np.bincount(rest.labels).tolist() == [30, 30, 30]  # stratified
    kept = {row.tobytes() for row in rest.array}
    sub = train.subset([row.tobytes() not in kept for row in train.array])
    assert len(sub) == 30 == found.protocol["held_out_examples"]

    everything = LinearProbe(strengths=(1.0,)).fit(train)
    fitted, tested = 1 - everything.score(train), 1 - everything.score(test)
    held_out = 1 - LinearProbe(strengths=(1.0,)).fit(rest).score(sub)
    assert found.usability == pytest.approx(fitted) and found.total == pytest.approx(tested)
    assert found.probe_generalization == pytest.approx(held_out - fitted)
    assert found.encoder_generalization == pytest.approx(tested - held_out)
    assert found.approximation is None and [*found.protocol["errors"].values()] == [fitted, held_out, tested]


def test_the_parts_add_up_over_seeds(data):
    found = risk_decomposition(*data, seeds=(0, 1, 2))
    assert sum(getattr(found, part) for part in PARTS) == pytest.approx(found.total, abs=1e-12)
    for seed in found.seeds:
        assert sum(seed[part] for part in PARTS) == pytest.approx(seed["total"], abs=1e-12)
    assert [seed["seed"] for seed in found.seeds] == [0, 1, 2]
    assert found.probe_generalization == pytest.approx(np.mean([s["probe_generalization"] for s in found.seeds]))
    sds = [sd for _, _, sd, _ in found.terms()]
    assert sds[1] == pytest.approx(np.std([s["probe_generalization"] for s in found.seeds], ddof=1)) and sds[1] > 0


def test_a_supervised_encoder_splits_off_approximation(rng, data):
    train, test = data
    better = (Features(train.array * 0.1 + np.eye(3, 12)[train.labels], train.labels), blobs(rng, 90, 0.5))
    plain, split = risk_decomposition(train, test), risk_decomposition(train, test, supervised=better)
    assert split.approximation == 1 - LinearProbe().fit(better[0]).score(better[0])
    assert split.approximation + split.usability == pytest.approx(plain.usability)
    assert split.approximation + sum(getattr(split, part) for part in PARTS) == pytest.approx(split.total)
    assert [name for name, *_ in split.terms()][0] == "Approximation" and len(plain.terms()) == 3
    assert "supervised encoder, train on train, test on test" in split.protocol["errors"]
    assert risk_decomposition(train, test, supervised=better[0]).approximation == split.approximation
    assert "approximation" in " ".join(plain.caveats) and "approximation" not in " ".join(split.caveats)


def test_negative_parts_are_shown(rng):
    """Test images that are easier than the training images: encoder generalisation is negative, and stays so."""
    found = risk_decomposition(blobs(rng, 120, 3.0), blobs(rng, 90, 0.1))
    assert found.encoder_generalization < -0.1 and found.total < 0.05
    assert any("encoder generalisation" in caveat and "not clipped" in caveat for caveat in found.caveats)
    header, rows = found.table()
    assert {len(row) for row in rows} == {len(header)} and rows[2][1].startswith("-") and rows[-1][0] == "Total"


def test_lone_examples_stay_in_train(data):
    train, test = data
    labels = train.labels.copy()
    labels[:2] = 7, 8
    found = risk_decomposition(Features(train.array, labels), test, held_out=0.001)
    assert found.protocol["held_out_examples"] == 3  # one of each class that has two


def test_standard_errors_are_those_of_the_measured_errors(rng):
    """√(p (1 - p) / n) of each error, not that of one half: for small errors it is far less."""
    train, test = blobs(rng, 900, 0.6), blobs(rng, 450, 0.6)
    found = risk_decomposition(train, test, supervised=blobs(rng, 900, 0.5))
    fitted, held_out, tested, best = list(found.protocol["errors"].values())
    assert 0 < held_out < 0.05  # the case that √(1/4 / n) is wrong about
    squares = {k: p * (1 - p) / n for k, p, n in (("f", fitted, 900), ("h", held_out, 180), ("t", tested, 450))}
    squares["s"] = best * (1 - best) / 900
    wanted = {
        "approximation": squares["s"],
        "usability": squares["f"] + squares["s"],
        "probe_generalization": squares["h"] + squares["f"],
        "encoder_generalization": squares["t"] + squares["h"],
        "total": squares["t"],
    }
    assert found.standard_errors == pytest.approx({key: np.sqrt(value) for key, value in wanted.items()})
    caveat = next(caveat for caveat in found.caveats if "held-out" in caveat)
    assert f"standard error of {100 * np.sqrt(squares['h']):.1f} points" in caveat and "20 % fewer" in caveat
    header, rows = found.table()
    at = header.index("standard error")
    assert [row[at] for row in rows] == [f"{100 * value:.1f}" for value in found.standard_errors.values()]
    plain = risk_decomposition(train, test, seeds=(0, 1))
    assert list(plain.standard_errors) == [*PARTS, "total"] and "sd over seeds" in plain.table()[0][1]
    json.dumps([plain.protocol, plain.standard_errors], allow_nan=False)


def test_standard_errors_cover_what_repetition_shows(rng):
    """Over many draws of the data a part varies as its standard error says, within a factor of two."""
    found = [risk_decomposition(blobs(rng, 240), blobs(rng, 240), probe=RidgeProbe((10.0,))) for _ in range(30)]
    for part in ("encoder_generalization", "total"):
        spread = np.std([getattr(one, part) for one in found], ddof=1)
        assert 0.5 < spread / np.mean([one.standard_errors[part] for one in found]) < 1.6


def test_training_images_in_test_are_told(data):
    train, test = data
    leaky = Features(np.concatenate([test.array, train.array[:7]]), np.concatenate([test.labels, train.labels[:7]]))
    with pytest.warns(UserWarning, match="7 of 97 test examples"):
        found = risk_decomposition(train, leaky)
    assert found.protocol["test_examples_in_train"] == 7 and "7 of 97" in found.caveats[0]
    clean = risk_decomposition(train, test)
    assert clean.protocol["test_examples_in_train"] == 0 and "bit for bit" not in " ".join(clean.caveats)


def test_one_set_is_no_pair(data):
    train, test = data
    copy = Features(train.array.copy(), train.labels.copy())
    for twice in (train, copy):
        with pytest.raises(ValueError, match="different images"):
            risk_decomposition(train, twice)
    for key in ("weights_sha256", "preset"):
        one, other = (Features(f.array, f.labels, {key: name}) for f, name in ((train, "a"), (test, "b")))
        with pytest.raises(ValueError, match="one encoder"):
            risk_decomposition(one, other)


@pytest.mark.parametrize(
    "change, match",
    [
        ({"held_out": 0}, "held_out"),
        ({"held_out": 1.0}, "held_out"),
        ({"seeds": ()}, "seeds"),
        ({"test": Features(np.zeros((4, 5)), [0, 1, 2, 0])}, "12 and 5 features"),
        ({"test": Features(np.zeros((4, 12)))}, "labels"),
        ({"train": Features(np.zeros((4, 12)), [0, 1, -1, 0])}, "label"),
        ({"train": Features(np.eye(3, 12), [0, 1, 2])}, "two examples"),
        ({"supervised": Features(np.eye(3, 12), [0, 1, 2])}, "training images"),
    ],
)
def test_bad_input(data, change, match):
    arguments = {"train": data[0], "test": data[1]} | change
    with pytest.raises(ValueError, match=match):
        risk_decomposition(arguments.pop("train"), arguments.pop("test"), **arguments)
