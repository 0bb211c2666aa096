"""`Result`: what an evaluation found, with its protocol."""

import dataclasses
import json
from pathlib import Path

from keras_issl.files import write_text
from keras_issl.report.words import metric_title, one_line
from keras_issl.results.schema import SCHEMA, checked, filled, refuse, unique
from keras_issl.results.words import CAVEATS, called, caveats, cell, clause, described, of_family, percent

FORMAT = 1
MODES = ("offline", "online")
SELECTED_ON = ("held-out part of train", "test", "nothing")
HELD_OUT = "hyperparameters chosen on a held-out part of the training labels"


@dataclasses.dataclass(frozen=True)
class Result:
    """What an evaluation found, and all that is needed to know what the number means. JSON holds it without loss.

    `probes.evaluate` makes it. Made by hand, from a publication say, it needs no more than is known:
    `Result({"top1": {"value": 0.451}}, {"name": "SGDProbe"}, {"name": "Tiny-ImageNet"}, selected_on="test")`.

    Attributes:
        metrics: dict from a metric (`"top1"`, `"top5"`, `"mean_per_class"`) to a dict of `value`, the mean over the
            seeds, in [0, 1]; `low` and `high`, its 95 % bootstrap interval over test examples, or None; `sd`, the
            standard deviation over the seeds, 0 for a single one; and `seeds`, how many.
        probe: dict of `name`, `family` (`"linear"`, `"mlp"` or None), `parameters`, the `selected` ones of them,
            `selection`, a sentence: how they were, and `validation_scores`, a dict from each candidate as text to its
            held-out top-1 (the mean over the seeds), empty where nothing was tried.
        test: dict of `name`, `split`, `fingerprint` (of images and labels, as loaded), `labels_sha256` (of the labels
            in their order), each perhaps None; `examples` and `classes`, how many; `also_in_train`, examples whose
            features are those of a training example; `of_unknown_class`, examples whose class is not in `train`.
        train: dict of the same, but for the last two.
        representation: dict of `name` and `feature_dim`, and of what is known of `preset`, `weights_sha256`, `encoder`,
            `probe` (the probe family that it was trained for), `image_shape`, `preprocessing`, `dtype_policy`,
            `backend` and `keras`.
        mode: `"offline"`, a probe on features of a fixed encoder; `"online"`, one that learned beside it.
        selected_on: what hyperparameters were chosen on: `"held-out part of train"`, `"test"` or `"nothing"`.
        seeds: list of the probe's seeds; empty for a probe without one.
        bootstrap: how many resamples of the test set are behind `low` and `high`.
        few_shot: None, or a dict from labels a class (`"5"`), a share of train (`"0.01"`) or `"all"` to a dict of
            `mean`, `sd` and `draws` of top-1.
        per_class: None, or a list of dicts of `label`, `examples` in test and `accuracy`, the mean over the seeds.
        confusions: None, or a list of dicts of `label`, `guess`, `count` (the mean over the seeds) and `share` of the
            label's examples, the most frequent first.
        versions: dict, see `versions`.
        hardware: dict, see `hardware`.
        seconds: wall time of fitting and scoring, or None.
        date: of the evaluation, UTC, ISO 8601, or None.

    Raises:
        ValueError: names the entry that is missing, unknown or of the wrong type.

    Example:

    ```python
    result = keras_issl.probes.evaluate(train, test)
    result.save("result.json")
    print(keras_issl.results.Result.load("result.json").protocol())
    ```
    """

    metrics: dict
    probe: dict
    test: dict
    train: dict = dataclasses.field(default_factory=dict)
    representation: dict = dataclasses.field(default_factory=dict)
    mode: str = "offline"
    selected_on: str = "nothing"
    seeds: list = dataclasses.field(default_factory=list)
    bootstrap: int = 0
    few_shot: dict | None = None
    per_class: list | None = None
    confusions: list | None = None
    versions: dict = dataclasses.field(default_factory=dict)
    hardware: dict = dataclasses.field(default_factory=dict)
    seconds: float | None = None
    date: str | None = None

    def __post_init__(self):
        for name, schema in SCHEMA.items():
            value = getattr(self, name)
            if isinstance(value, dict):
                value = filled(name, value)
            object.__setattr__(self, name, checked(value, schema, name))
        for name, allowed in (("mode", MODES), ("selected_on", SELECTED_ON)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` should be one of {allowed}. Received: {getattr(self, name)!r}.")
        if not self.metrics:
            raise ValueError("`metrics` should hold a metric at least. Received: none.")
        for name, found in self.metrics.items():
            low, value, high = found["low"], found["value"], found["high"]
            if (low is None) != (high is None) or (low is not None and not low - 1e-9 <= value <= high + 1e-9):
                raise ValueError(
                    f"`metrics.{name}` should have low <= value <= high, or neither low nor high. Received: low={low}, "
                    f"value={value}, high={high}."
                )
            if not all(0 <= number <= 1 for number in (low, value, high) if number is not None):
                raise ValueError(f"`metrics.{name}` should be shares in [0, 1], not percent. Received: {value}.")

    def save(self, path):
        """Writes the result as JSON, whole or not at all; a file that is there is replaced."""
        content = json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2, allow_nan=False) + "\n"
        write_text(path, content)

    @classmethod
    def load(cls, path):
        """Reads what `save` wrote.

        Raises:
            ValueError: not JSON, or an entry that is missing, unknown or of the wrong type: file and entry are named.
        """
        data = Path(path).read_bytes()
        try:
            content = json.loads(data.decode(), parse_constant=refuse, object_pairs_hook=unique)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} should be JSON written by `Result.save`, but: {error}.") from None
        try:
            if not isinstance(content, dict):
                raise ValueError(f"The file should hold a JSON object. Received: {type(content).__name__}.")
            if (version := content.pop("format", None)) != FORMAT or type(version) is not int:
                raise ValueError(f"`format` should be {FORMAT}; this keras_issl knows no other. Received: {version!r}.")
            return cls(**checked(content, SCHEMA, ""))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: {error}") from None

    def protocol(self):
        """One sentence: what was measured, on what, and how the probe's hyperparameters were chosen."""
        parts = [*self._about(), f"fitted on {described(self.train)}", self._selection(self.probe["selection"])]
        parts += self._tested()
        if (seeds := max(found["seeds"] for found in self.metrics.values())) > 1:
            parts.append(f"mean ± standard deviation over {seeds} seeds of the probe")
        if self.bootstrap:
            parts.append(f"95 % intervals from {self.bootstrap:,} bootstrap resamples of the test examples")
        return one_line("; ".join(parts) + ".")

    def _few_shot_protocol(self, labels, draws):
        drawn = f"fitted on {labels} of {described(self.train)}, mean ± standard deviation over {draws:,} draws of them"
        few = "where a class has two of them" if self.selected_on == "held-out part of train" else ""
        return one_line("; ".join([*self._about(), drawn, self._selection(few), *self._tested()]) + ".")

    def _about(self):
        """Clauses on probe and representation."""
        probe, about, trained_for = self.probe, self.representation, self.representation.get("probe")
        family = f" ({probe['family']} family)" if probe["family"] else ""
        width = f" ({about['feature_dim']:,} dimensions)" if about["feature_dim"] else ""
        how = "on frozen features" if self.mode == "offline" else "trained online, beside a moving encoder, on features"
        yield f"{probe['name']}{family} {how} of {about['name']}{width}"
        if self.mismatch:
            yield f"which were trained for {of_family(trained_for)}, another family"

    def _selection(self, how=""):
        how = f" ({clause(how)})" if how else ""
        if self.selected_on == "test":
            return f"hyperparameters chosen on test{how}, so that the figures are optimistic"
        return ("hyperparameters fixed beforehand" if self.selected_on == "nothing" else HELD_OUT) + how

    def _tested(self):
        """Clauses on the test set."""
        once = "" if self.selected_on == "test" else ", scored once per fitted probe"
        yield f"tested on {described(self.test)}{once}"
        yield from (f"{self.test[key]:,} of them {words}" for key, (words, *_) in CAVEATS.items() if self.test.get(key))

    @property
    def mismatch(self):
        """Whether the features were trained for another family of probes than this one."""
        trained_for, family = self.representation.get("probe"), self.probe["family"]
        return trained_for is not None and family is not None and trained_for != family

    @property
    def caveats(self):
        """What a reader must know before the numbers: a tuple of tuples `title`, `note` (a clause) and `advice`.

        Of an online number, of one selected on test, of a probe of another family than the features were trained for,
        of a test set that overlaps with train or has classes unknown to it. Empty for a number without a catch.
        """
        return tuple(caveats(self))

    @property
    def test_name(self):
        """The name of the test set with its split."""
        return called(self.test)

    @property
    def train_name(self):
        """The name of the training set with its split."""
        return called(self.train)

    @property
    def selection(self):
        """How the number was made, in short: its mode, and what the hyperparameters were chosen on."""
        words = {"nothing": "fixed beforehand", "test": "chosen on test"}
        return f"{self.mode}, hyperparameters {words.get(self.selected_on, 'chosen on a held-out part of train')}"

    def figure(self, metric, digits=2):
        """A metric in percent as text: value (95 % interval) ± standard deviation over seeds; None without it.

        Example:

        >>> result = keras_issl.results.Result({"top1": {"value": 0.451}}, {"name": "SGDProbe"}, {"name": "cells"})
        >>> result.figure("top1", digits=1)
        '45.1'
        """
        return cell(self.metrics[metric], digits) if metric in self.metrics else None

    def to_metadata(self):
        """The figures as a preset's metadata hold them, so that a model card shows each with its protocol.

        Returns:
            A list of dicts of `dataset`, `split`, `metric`, `unit`, `value`, `protocol`, and `low`, `high` and `sd`
            where they are known: percentages.

        Example:

        ```python
        result = keras_issl.probes.evaluate(train, test)
        keras_issl.save_preset(encoder, "my_preset", results=result.to_metadata())
        ```
        """
        name, split = self.test["name"] or "", self.test["split"] or ""
        common = {"dataset": name.removesuffix(f"/{split}") or "unnamed data", "unit": "%"}
        common |= {"split": split} if split else {}
        rows = []
        for metric, found in self.metrics.items():
            row = {
                "metric": metric_title(metric),
                "value": percent(found["value"]),
                "protocol": self.protocol().rstrip("."),
            }
            row |= {key: percent(found[key]) for key in ("low", "high") if found[key] is not None}
            rows.append(common | row | ({"sd": percent(found["sd"])} if found["seeds"] > 1 else {}))
        for shot, found in (self.few_shot or {}).items():
            if shot == "all":
                continue
            share = "." in shot or "e" in shot
            labels = f"{float(shot) * 100:g} % of the labels" if share else f"{shot} label{'s' * (shot != '1')} a class"
            protocol = self._few_shot_protocol(labels, found["draws"])
            row = {"metric": f"top-1 from {labels}", "value": percent(found["mean"]), "protocol": protocol.rstrip(".")}
            rows.append(common | row | ({"sd": percent(found["sd"])} if found["draws"] > 1 else {}))
        return rows

    def __str__(self):
        figures = ", ".join(f"{metric_title(name)} {self.figure(name)}" for name in self.metrics)
        return f"{figures}, in %. {self.protocol()}"
