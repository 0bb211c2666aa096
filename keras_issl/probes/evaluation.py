"""`evaluate`: a probe's figures on test with intervals and protocol; `transfer`, over several datasets."""

import datetime
import hashlib
import re
import time
import warnings

import numpy as np

from keras_issl import results
from keras_issl.features import Features
from keras_issl.probes import figures
from keras_issl.probes.base import blocks, inputs, ranks_of
from keras_issl.probes.few_shot import check_shots, few_shot
from keras_issl.probes.linear import LinearProbe
from keras_issl.results.result import MODES

SPLIT = re.compile(r"/(train|test|validation|valid|val)$")


def evaluate(
    train,
    test,
    *,
    probe=None,
    seeds=(0,),
    bootstrap=1000,
    shots=(),
    draws=10,
    class_names=None,
    name=None,
    mode="offline",
):
    """Fits a probe on `train`, scores `test` once per fitted probe, and returns the figures with their protocol.

    The intervals are percentiles over resamples of the test examples, of the mean over the seeds: they say how far
    another test set of this size would move a figure; without errors they are [1, 1], though up to 3 / N may be left.
    The standard deviation over seeds says how far another fit would. Neither says how far another pre-training would.

    Args:
        train: `Features` with labels. Hyperparameters are chosen on held-out parts of them.
        test: `Features` of the same encoder, with labels of the same classes.
        probe: an unfitted probe, `LinearProbe()` by default; a copy is fitted for every seed.
        seeds: of the probe; one without a seed is fitted once.
        bootstrap: resamples of the test set; 0 for no intervals.
        shots: as in `few_shot`, for a curve over few labels beside the figures; none by default.
        draws: as in `few_shot`.
        class_names: names, so that label i is called `class_names[i]`.
        name: of the representation in tables; by default its preset or encoder.
        mode: `"offline"`, or `"online"` if the probe belongs to an encoder that is still in training.

    Returns:
        A `results.Result` with the metrics `"top1"`, `"top5"` (from six classes on) and `"mean_per_class"`, the
        accuracy of each class (beyond 1,000, of the worst), and the most frequent confusions.

    Raises:
        ValueError: no labels, different widths, features of different encoders, the same images for both.

    Warns:
        UserWarning: rows of test that are in train too; classes of test that train does not have.

    Example:

    ```python
    result = keras_issl.probes.evaluate(train, test, seeds=(0, 1, 2))
    print(result)
    result.save("linear.json")
    ```
    """
    began = time.monotonic()
    probe = LinearProbe() if probe is None else probe
    if isinstance(probe, type) or not all(
        hasattr(probe, name) for name in ("clone", "get_params", "decision_function")
    ):
        raise ValueError(f"`probe` should be an unfitted probe, such as LinearProbe(). Received: {probe!r}.")
    if mode not in MODES:
        raise ValueError(f"`mode` should be one of {MODES}. Received: {mode!r}.")
    for argument, value, least in (("bootstrap", bootstrap, 0), ("draws", draws, 1)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"`{argument}` should be an integer of at least {least}. Received: {value!r}.")
    seeds = _checked_seeds(seeds)
    labels, overlap = check_pair(train, test)
    shots = check_shots(shots, train.labels) if np.size(shots) else ()
    unknown = np.isin(labels, train.labels, invert=True)  # (N,)
    if unknown.any():
        warnings.warn(
            f"{unknown.sum():,} of {len(test):,} test examples have a class that train does not have "
            f"({', '.join(map(str, np.unique(labels[unknown])[:10]))}): they count as errors.",
            stacklevel=2,
        )
    seeded = "seed" in probe.get_params()
    fitted, ranks, guesses = [], [], []
    for seed in seeds if seeded else seeds[:1]:
        one = (probe.clone(seed=seed) if seeded else probe.clone()).fit(train)
        logits = one.decision_function(test)  # (N, K)
        ranks.append(ranks_of(logits, one.classes_, labels))
        guesses.append(one.classes_[logits.argmax(axis=1)])
        fitted.append(one)
        del logits
    ranks, guesses = np.stack(ranks), np.stack(guesses)  # (S, N)
    curve = few_shot(train, test, shots=shots, draws=draws, seed=seeds[0], probe=probe) if shots else None
    class_names = () if class_names is None else class_names
    names = lambda label: str(class_names[label]) if label < len(class_names) else str(label)  # noqa: E731
    return results.Result(
        metrics=figures.metrics(ranks, labels, len(fitted[0].classes_), bootstrap),
        probe=_probe(fitted, seeded),
        mode=mode,
        selected_on="held-out part of train" if any(_held_out(one) for one in fitted) else "nothing",
        seeds=list(seeds) if seeded else [],
        train=_data(train, train.labels),
        test=_data(test, labels) | {"also_in_train": overlap, "of_unknown_class": int(unknown.sum())},
        representation=results.representation(train.provenance, name=name, feature_dim=train.array.shape[1]),
        bootstrap=bootstrap,
        few_shot=curve and {"all" if shot is None else str(shot): score._asdict() for shot, score in curve.items()},
        per_class=figures.per_class(ranks == 0, labels, names),
        confusions=figures.confusions(guesses, labels, names),
        versions=results.versions(),
        hardware=results.hardware(),
        seconds=round(time.monotonic() - began, 3),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def transfer(pairs, **options):
    """Evaluates a representation on several datasets.

    Args:
        pairs: dict from the name of a dataset to its `Features` (train, test).
        **options: see `evaluate`. `class_names` may be a dict with the same keys.

    Returns:
        A dict from each name to a `results.Result`. Its data are called by that name if they have none.

    Raises:
        ValueError: as `evaluate`; the message names the dataset.

    Example:

    ```python
    found = keras_issl.probes.transfer({"noise": (train, test), "more noise": (test, train)})
    {name: result.metrics["top1"]["value"] for name, result in found.items()}
    ```
    """
    if not isinstance(pairs, dict) or not pairs:
        raise ValueError(f"`pairs` should be a dict {{name: (train, test)}}. Received: {type(pairs).__name__}.")
    names = options.pop("class_names", None)
    found = {}
    for name, pair in pairs.items():
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ValueError(f"`pairs` should hold (train, test) for {name!r}. Received: {type(pair).__name__}.")
        train, test = (_named(features, name) for features in pair)
        options["class_names"] = names.get(name) if isinstance(names, dict) else names
        try:
            found[name] = evaluate(train, test, **options)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return found


def _checked_seeds(seeds):
    found = list(seeds) if isinstance(seeds, list | tuple | range | np.ndarray) else [seeds]
    good = all(isinstance(seed, int | np.integer) and not isinstance(seed, bool) and seed >= 0 for seed in found)
    if not found or not good or len(set(found)) < len(found):
        raise ValueError(f"`seeds` should be different integers of at least 0. Received: {seeds!r}.")
    return [int(seed) for seed in found]


def check_pair(train, test):
    """Labels of test (N,), and how many of its rows are in train, too."""
    for argument, features in (("train", train), ("test", test)):
        if not isinstance(features, Features):
            raise ValueError(
                f"`{argument}` should be Features: keras_issl.Features(array, labels). Received: "
                f"{type(features).__name__}."
            )
        inputs(features)
    if train.array.shape[1] != test.array.shape[1]:
        raise ValueError(
            f"`train` and `test` should have the same width. Received: {train.array.shape[1]} and "
            f"{test.array.shape[1]} features."
        )
    for key in ("weights_sha256", "preset"):  # a preset goes by many addresses, its weights by one hash
        known = [features.provenance.get(key) for features in (train, test)]
        if None not in known:
            if known[0] != known[1]:
                raise ValueError(
                    f"`train` and `test` should be of one encoder. Received: {key} {known[0]}, {known[1]}."
                )
            break
    for key in ("preprocessing", "dtype_policy"):
        known = [features.provenance.get(key) for features in (train, test)]
        if None not in known and known[0] != known[1]:
            warnings.warn(f"`train` and `test` differ in {key}: {known[0]} and {known[1]}.", stacklevel=3)
    overlap = _rows_in(test.array, train.array)
    prints = [features.provenance.get("fingerprint") for features in (train, test)]
    same = prints[0] is not None and prints[0] == prints[1] and np.array_equal(train.labels, test.labels)
    if same and overlap == len(test):  # two subsets of one dataset have its fingerprint, too
        raise ValueError(
            f"`train` and `test` should be different images. Received: {train.provenance.get('dataset', 'array')} for "
            "both."
        )
    if overlap:
        warnings.warn(
            f"{overlap:,} of {len(test):,} test examples have the features of a training example, bit for bit: the "
            "same images, or a representation that cannot tell some apart. The result records how many.",
            stacklevel=3,
        )
    return test.labels, overlap


def _rows_in(x, others):
    """How many rows of x (N, D) are among the rows of others (M, D)."""
    seen = {hash(row.tobytes()) for block in blocks(others) for row in block + 0.0}  # + 0: -0 and 0 are one
    return sum(hash(row.tobytes()) in seen for block in blocks(x) for row in block + 0.0)


def _held_out(probe):
    return bool(getattr(probe, "validation_scores_", None))


def _probe(fitted, seeded):
    """`Result.probe` of the fitted copies; what they chose differently is a list, one a seed."""
    first = fitted[0]
    parameters = {key: value for key, value in first.get_params().items() if not (seeded and key == "seed")}
    chosen = [getattr(one, "selected_", {}) for one in fitted]
    selected = {key: [one.get(key) for one in chosen] for key in chosen[0]}
    return {
        "name": type(first).__name__,
        "family": getattr(first, "family", None),
        "parameters": results.json_value(parameters),
        "selected": {
            key: values[0] if len(set(map(repr, values))) == 1 else values for key, values in selected.items()
        },
        "validation_scores": _validation_scores(fitted),
        "selection": "; or ".join(dict.fromkeys(str(getattr(one, "selection_", "")) for one in fitted)),
    }


def _validation_scores(fitted):
    """Held-out top-1 of each candidate, the mean over the fitted copies."""
    tried = [getattr(one, "validation_scores_", {}) for one in fitted]
    common = [key for key in tried[0] if all(key in scores for scores in tried)]
    return {str(key): float(np.mean([scores[key] for scores in tried])) for key in common}


def _data(features, labels):
    """`Result.train` or `Result.test`."""
    known = features.provenance
    name = known.get("dataset")
    ending = SPLIT.search(name) if isinstance(name, str) else None
    return {
        "name": name,
        "split": known.get("split") or (ending[1] if ending else None),
        "fingerprint": known.get("fingerprint"),
        "labels_sha256": hashlib.sha256(np.ascontiguousarray(labels, np.int64)).hexdigest(),
        "examples": len(features),
        "classes": len(np.unique(labels)),
    }


def _named(features, name):
    """Features of a dataset that is called `name`, if it has no name of its own."""
    if not isinstance(features, Features) or features.provenance.get("dataset") not in (None, "array"):
        return features
    return Features(features.array, features.labels, {**features.provenance, "dataset": name})
