"""Risk decomposition: which part of the test error to work on."""

import dataclasses

import numpy as np

from keras_issl.probes import LinearProbe
from keras_issl.probes.base import inputs
from keras_issl.probes.evaluation import check_pair

MEANINGS = {
    "approximation": (
        "What this encoder and probe cannot fit even when the encoder is trained with labels. A larger architecture."
    ),
    "usability": (
        "Training error: what a probe of this family cannot read off the representation even with all labels. More "
        "dimensions, a head that matches the probe, another objective, longer pre-training."
    ),
    "probe_generalization": (
        "What the probe loses on images that it was not fitted to, though the encoder was. More labels, coarser "
        "augmentations (fewer equivalence classes), a more invariant representation or a smaller probe."
    ),
    "encoder_generalization": (
        "What is lost on images that the encoder was not pre-trained on. More images or epochs of varied views."
    ),
}
NAMES = {
    "approximation": "Approximation",
    "usability": "Usability",
    "probe_generalization": "Probe generalisation",
    "encoder_generalization": "Encoder generalisation",
}
# The errors that the parts are differences of, the examples that they are measured on, and the errors of each part.
FITTED = "train on train, test on train"
HELD_OUT = "train on train without sub, test on sub"
TESTED = "train on train, test on test"
SUPERVISED = "supervised encoder, train on train, test on train"
SIZES = {
    FITTED: "train_examples",
    HELD_OUT: "held_out_examples",
    TESTED: "test_examples",
    SUPERVISED: "train_examples",
}
DIFFERENCES = {
    "approximation": (SUPERVISED,),
    "usability": (FITTED, SUPERVISED),
    "probe_generalization": (HELD_OUT, FITTED),
    "encoder_generalization": (TESTED, HELD_OUT),
    "total": (TESTED,),
}


@dataclasses.dataclass(frozen=True)
class RiskDecomposition:
    """The parts of a probe's test error, as shares of the examples; they add up to it.

    Each is a difference of measured errors, so it may be negative: noise, or what regularisation gives. It is shown as
    it is, never clipped.

    Attributes:
        approximation: training error on a supervised encoder of the same architecture; None if none was given, and
            then it is part of `usability`.
        usability: training error, less the approximation.
        probe_generalization: error on a held-out part of the training set, less the training error.
        encoder_generalization: test error less the error on that part.
        total: the test error.
        protocol: dict that JSON can hold: probe, sizes, seeds, and the errors that the parts are differences of.
        seeds: a dict for each seed: its number and parts. Above are their means.

    Example:

    >>> risk = keras_issl.diagnostics.risk_decomposition(train, test)
    >>> [name for name, *_ in risk.terms()]
    ['Usability', 'Probe generalisation', 'Encoder generalisation']
    >>> sorted(risk.standard_errors)
    ['encoder_generalization', 'probe_generalization', 'total', 'usability']
    """

    approximation: float | None
    usability: float
    probe_generalization: float
    encoder_generalization: float
    total: float
    protocol: dict
    seeds: tuple

    def terms(self):
        """The parts, in the order in which they add up: tuples (name, share, its sd over seeds or None, meaning)."""
        found = []
        for key, name in NAMES.items():
            if getattr(self, key) is not None:
                values = [part[key] for part in self.seeds]
                sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
                found.append((name, getattr(self, key), sd, MEANINGS[key]))
        return tuple(found)

    @property
    def standard_errors(self):
        """Standard error of each part and of `"total"`, a dict: what the finite number of examples leaves open.

        An error p over n examples has √(p (1 - p) / n); a part is a difference of two errors, whose squares add up. For
        errors on the same images, such as usability beside an approximation, that is too much. Several seeds share
        their images, so that they count as one.
        """
        variances = self._variances()
        return {
            key: float(np.sqrt(sum(variances[name] for name in names)))
            for key, names in DIFFERENCES.items()
            if getattr(self, key) is not None
        }

    def _variances(self):
        """Squared standard error of each error that the parts are differences of; 0 of one that was not measured."""
        return {
            name: p * (1 - p) / self.protocol[size]
            for name, size in SIZES.items()
            for p in (self.protocol["errors"].get(name, 0.0),)
        }

    def table(self):
        """(header, rows) of strings: a row a part, and the total."""
        errors = list(self.standard_errors.values())
        terms = (*self.terms(), ("Total", self.total, None, "The test error, which the parts add up to."))
        rows = []
        for (name, share, sd, meaning), error in zip(terms, errors, strict=True):
            value = f"{100 * share:.1f}" if sd is None else f"{100 * share:.1f} ± {100 * sd:.1f}"
            rows.append((name, value, f"{100 * error:.1f}", meaning))
        measured = "error %" if len(self.seeds) == 1 else "error % ± sd over seeds"
        return ("part", measured, "standard error", "what it is, and what reduces it"), tuple(rows)

    @property
    def caveats(self):
        """Sentences without which the figures mislead."""
        protocol = self.protocol
        error = protocol["errors"][HELD_OUT]
        standard = np.sqrt(self._variances()[HELD_OUT])
        caveats = [
            "Encoder generalisation means something only where the labelled training set is the one that the encoder "
            "was pre-trained on. Otherwise read it together with probe generalisation, as one gap.",
            f"The held-out part has {protocol['held_out_examples']:,} examples: the error of {100 * error:.1f} % on it "
            f"has a standard error of {100 * standard:.1f} points, and the probe that is tested on it has "
            f"{100 * protocol['held_out']:.0f} % fewer labels, which counts as probe generalisation.",
        ]
        if inside := protocol["test_examples_in_train"]:
            caveats.insert(0, _overlap(inside, protocol["test_examples"]))
        if self.approximation is None:
            caveats.append("Usability includes the approximation error: no supervised encoder was given to split it.")
        negative = [name.lower() for name, share, *_ in self.terms() if share < 0]
        if negative:
            caveats.append(f"Negative, and not clipped: {', '.join(negative)}. Within the noise it means zero.")
        return tuple(caveats)


def risk_decomposition(train, test, *, probe=None, held_out=0.2, supervised=None, seeds=(0,)):
    """Splits a probe's test error into usability, probe generalisation and encoder generalisation.

    With `sub` a stratified held-out part of train, and A -> B the error on B of a probe fitted on A:

    - usability = train -> train
    - probe generalisation = (train without sub -> sub) - (train -> train)
    - encoder generalisation = (train -> test) - (train without sub -> sub)

    Source: Dubois, Hashimoto and Liang, *Evaluating Self-Supervised Learning via Risk Decomposition*, ICML 2023. They
    estimate the approximation error by the training error on a supervised encoder, and split it off usability.

    Args:
        train: `Features` with labels of the images that the encoder was pre-trained on.
        test: `Features` with labels of other images.
        probe: an unfitted probe, `LinearProbe()` by default; each fit takes a copy, with the seed if it has one.
        held_out: the share of each class that is held out, between 0 and 1. Classes with one example stay in train.
        supervised: `Features` of a supervised encoder on the training images, or the pair of them and those of test
            (whose error is then recorded beside); None to leave the approximation error in usability.
        seeds: of the held-out part and the probe; the parts are means over them.

    Returns:
        `RiskDecomposition`.

    Raises:
        ValueError: features without labels, of different widths or encoders, the same images for both, nothing to hold
            out, a share out of range.

    Warns where test examples have the features of training examples: their errors are those of a fit.

    Example:

    ```python
    risk = keras_issl.diagnostics.risk_decomposition(train, test)
    risk.usability + risk.probe_generalization + risk.encoder_generalization - risk.total  # 0
    ```
    """
    probe = LinearProbe() if probe is None else probe
    x, y = inputs(train)
    test_x, test_y = inputs(test)
    if np.array_equal(x, test_x) and np.array_equal(y, test_y):
        raise ValueError("`train` and `test` should be different images. Received: the same features for both.")
    _, inside = check_pair(train, test)
    if not 0 < held_out < 1:
        raise ValueError(f"`held_out` should be a share between 0 and 1. Received: {held_out!r}.")
    seeds = tuple(int(seed) for seed in np.atleast_1d(seeds))
    if not seeds:
        raise ValueError("`seeds` should have at least one. Received: none.")
    reference = supervised if isinstance(supervised, tuple | list) else (supervised,)
    if supervised is not None and len(inputs(reference[0])[1]) != len(y):
        raise ValueError(
            f"`supervised` should be the features of the {len(y)} training images. Received: {len(reference[0])}."
        )

    parts, errors = [], []
    for seed in seeds:
        fresh = probe.clone(**({"seed": seed} if "seed" in probe.get_params() else {}))
        sub = _held_out(y, held_out, np.random.default_rng(seed))
        whole, rest = fresh.clone().fit(train), fresh.clone().fit(train.subset(~sub))
        found = {
            FITTED: 1 - whole.score(train),
            HELD_OUT: 1 - rest.score(train.subset(sub)),
            TESTED: 1 - whole.score(test),
        }
        if supervised is not None:
            best = fresh.clone().fit(reference[0])
            found[SUPERVISED] = 1 - best.score(reference[0])
            if len(reference) > 1:
                found["supervised encoder, train on train, test on test"] = 1 - best.score(reference[1])
        errors.append(found)
        parts.append({"seed": seed} | _parts(*list(found.values())[:4]))
    means = {key: float(np.mean([part[key] for part in parts])) for key in parts[0] if key != "seed"}
    protocol = {
        "probe": repr(probe),
        "family": probe.family,
        "train_examples": len(y),
        "test_examples": len(test_x),
        "held_out": float(held_out),
        "held_out_examples": int(sub.sum()),
        "test_examples_in_train": inside,
        "seeds": list(seeds),
        "errors": {name: float(np.mean([found[name] for found in errors])) for name in errors[0]},
    }
    return RiskDecomposition(**{"approximation": None} | means, protocol=protocol, seeds=tuple(parts))


def _parts(fitted, held_out, tested, supervised=None):
    """The decomposition of one seed, from its errors."""
    split = {"usability": fitted}
    if supervised is not None:
        split = {"approximation": supervised, "usability": fitted - supervised}
    return split | {
        "probe_generalization": held_out - fitted,
        "encoder_generalization": tested - held_out,
        "total": tested,
    }


def _overlap(inside, size):
    return (
        f"{inside:,} of {size:,} test examples have the features of a training example, bit for bit: the same images, "
        "or a representation that cannot tell some apart. Encoder generalisation and the total come out too small."
    )


def _held_out(y, share, rng):
    """Mask (N,) of a part that holds this share of every class, at least one example of it and never all."""
    mask = np.zeros(len(y), bool)
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        if len(members) > 1:
            mask[members[: min(len(members) - 1, max(1, round(share * len(members))))]] = True
    if not mask.any():
        raise ValueError("`train` should have a class with two examples, to hold one out. Received: only lone ones.")
    return mask
