"""Three studies in small on CIFAR-10: each one command, resumable, with a CSV, a table and a picture.

    python tools/study.py dimension DATA OUT       # top-1 over the feature dimension, linear and MLP probe
    python tools/study.py augmentation DATA OUT    # over the strength of the views, at a fixed C and at a varied one
    python tools/study.py knobs DATA OUT           # λ, β, C, temperature, batch size, learning rate, one at a time

DATA is a folder with train.parquet and test.parquet in Hugging Face's layout. Every point is one pre-training by DISSL
of a narrow ResNet on the same images, once for each of --seeds; the knobs have the recipe itself with three. OUT/STUDY
holds a run folder and a row of results.csv for each run. Stopped or killed, the same call goes on; finished rows stay.
"""

import argparse
import csv
import dataclasses
import json
import os
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras

from keras_issl import comparison, datasets, probes, recipes, report, results, runs
from keras_issl.comparison.rows import write_rows
from keras_issl.files import write_json, write_text
from keras_issl.report.sweep import Panel, sweep

IMAGES, TEST_IMAGES, EPOCHS, CLASSES = 12_800, 10_000, 5, 1024  # 250 steps of 256
RANDOM, PIXELS = "random encoder", "raw pixels"
MLP = {"hidden": (512,), "epochs": 20}  # smaller and shorter than the library's own: a study has many
PROBES = {"linear": probes.LinearProbe, "mlp": lambda: probes.MLPProbe(**MLP)}
LOGGED = ("loss", "marginal_entropy", "conditional_entropy", "kl_invariance")  # of the last epoch
KEY = ("knob", "value", "curve", "seed")
ABOUT = ("changes", "versions", "hardware", "date")
COLUMNS = (*KEY, "linear_top1", "mlp_top1", *LOGGED, "problems", *ABOUT)


@dataclasses.dataclass(frozen=True)
class Point:
    """One pre-training: the value of a knob, and what it changes in the recipe."""

    knob: str
    value: float
    changes: dict
    curve: str = ""
    seed: int = 0

    @property
    def key(self):
        return (self.knob, f"{self.value:g}", self.curve, str(self.seed))


def dimension():
    """The widened representation at every width. 128, what the last stage has, would be without the block."""
    return [Point("feature dimension", d, {"encoder_args": {"feature_dim": d}}) for d in (32, 96, 256, 1024, 4096)]


def augmentation():
    """The paper's views for CIFAR-10 times a strength: jitter and gray times it, the lower crop scale divided by it.

    Unlike `SimCLR.coarser`, none of them adds a blur. At a varied C the number of classes falls as the views get
    coarser, so that the two change together, as in the paper's study of augmentations.
    """
    points = []
    for strength in (0.5, 1, 2, 4):
        views = {"min_scale": 0.2 / strength, "jitter": 0.2 * strength, "hue": 0.05 * strength, "gray": 0.1 * strength}
        for curve, classes in (("fixed C = 1024", 1024), ("C = 1024 / strength²", round(1024 / strength**2))):
            changes = {"augmentation_args": views, "objective_args": {"num_classes": classes}}
            points.append(Point("strength of the augmentation", strength, changes, curve))
    return points


def knobs():
    """One number at a time away from the recipe; the recipe itself with three seeds."""
    points = [Point("seed", seed, {}, seed=seed) for seed in (0, 1, 2)]
    arguments = {
        "maximality_weight": (0, 1, 1.8, 2.3, 2.8, 4, 8),
        "invariance_weight": (0, 0.4, 0.8, 1.3, 2.6),
        "num_classes": (16, 64, 256, 1024, 4096),
        "teacher_temperature": (0.1, 0.25, 0.5, 1, 2),
    }
    for name, values in arguments.items():
        points += [Point(name, value, {"objective_args": {name: value}}) for value in values]
    for size in (32, 64, 256, 1024):  # the learning rate in proportion, as many epochs
        points.append(Point("batch_size", size, {"batch_size": size, "learning_rate": 2e-3 * size / 256}))
    points += [Point("learning_rate", rate, {"learning_rate": rate}) for rate in (2e-5, 2e-4, 2e-3, 2e-2, 2e-1)]
    return points


STUDIES = {"dimension": dimension, "augmentation": augmentation, "knobs": knobs}
USUAL = {
    "maximality_weight": 2.3, "invariance_weight": 0.8, "num_classes": CLASSES, "teacher_temperature": 0.5,
    "batch_size": 256, "learning_rate": 2e-3, "strength of the augmentation": 1,
}  # fmt: skip
REFERENCE = {**USUAL, "feature dimension": 256}  # what other values are held against, within a seed
TITLES = {
    "maximality_weight": "λ, maximality_weight", "invariance_weight": "β, invariance_weight",
    "num_classes": "C, num_classes", "teacher_temperature": "τ_t, teacher_temperature",
    "batch_size": "batch_size, learning rate in proportion", "learning_rate": "peak learning rate",
}  # fmt: skip


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=tuple(STUDIES))
    parser.add_argument("data")
    parser.add_argument("out")
    parser.add_argument("--only", nargs="+", metavar="KNOB", help="these knobs of the study; the next call adds others")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="a run of each point with each; default: 0")
    parser.add_argument("--images", type=int, default=IMAGES, help=f"to train on; default: {IMAGES}")
    parser.add_argument("--test-images", type=int, default=TEST_IMAGES)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    args = parser.parse_args(arguments)
    try:
        train = datasets.load(args.data, split="train", image_size=32, limit=args.images)
        test = datasets.load(args.data, split="test", image_size=32, limit=args.test_images)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from None
    test = test.with_classes(train.class_names)
    out = Path(args.out) / args.study
    study = [
        point if point.knob == "seed" else dataclasses.replace(point, seed=seed)
        for seed in args.seeds
        for point in STUDIES[args.study]()
    ]
    study = list({point.key: point for point in study}.values())  # the recipe's own seeds are there once
    points = [point for point in study if point.knob in (args.only or [point.knob])]
    base = _recipe(Point("", 0, {}), args.epochs)
    asked = {"recipe": dataclasses.asdict(base), "data": [train.fingerprint, test.fingerprint]}
    asked |= {"backend": keras.config.backend()}
    _same_study(out, json.loads(json.dumps(asked)))

    def record(point, splits, **facts):
        row = dict(zip(KEY, point.key, strict=True)) | facts
        wanted = ("linear",) if args.study == "knobs" else tuple(PROBES)
        for name in wanted if splits else ():
            probe = PROBES[name]().fit(splits[0])
            row[f"{name}_top1"] = f"{(probe.predict(splits[1]) == splits[1].labels).mean():.4f}"
        row |= {"changes": json.dumps(point.changes), "date": time.strftime("%Y-%m-%d")}
        row |= {"versions": json.dumps(results.versions()), "hardware": json.dumps(results.hardware())}
        write_rows(out / "results.csv", COLUMNS, [*_rows(out / "results.csv"), row])
        _say(", ".join(f"{key} {row[key]}" for key in COLUMNS if row.get(key) and key not in ABOUT))

    rows = {_key(row): row for row in _rows(out / "results.csv")}
    beside = [Point(PIXELS, 0, {}), Point(RANDOM, 0, {})]
    if beside[0].key not in rows:
        record(beside[0], (comparison.pixels(train), comparison.pixels(test)))
    if beside[1].key not in rows:
        record(beside[1], comparison.shared.features(recipes.build_encoder(base), train, test))
    for i, point in enumerate(points, 1):
        recipe = _recipe(point, args.epochs)
        rows = {_key(row): row for row in _rows(out / "results.csv")}
        if point.key in rows:
            continue
        twins = [other.key for other in study if _recipe(other, args.epochs) == recipe and other.key in rows]
        if twins:  # the recipe itself is a point of every knob
            twin = rows[twins[0]] | dict(zip(KEY, point.key, strict=True))
            write_rows(out / "results.csv", COLUMNS, [*rows.values(), twin])
            continue
        folder = out / "-".join(part.replace(" ", "_").replace("/", "_") for part in point.key if part)
        _say(f"{i} of {len(points)}: {point.knob} {point.value:g} {point.curve}, seed {point.seed}")
        keras.backend.clear_session()  # or thirty models pile up
        try:
            result = runs.pretrain(recipe, train, folder, resume=folder.exists(), online_probe=False, page=False)
        except FloatingPointError:  # which is a finding here
            record(point, None, problems="NaN")
            continue
        if result.stopped_by:
            return _say(f"Stopped; the same command goes on in {out}.")
        logged = {name: f"{result.history[name][-1]:.4f}" for name in LOGGED if name in result.history}
        problems = " ".join(verdict.kind for verdict in result.verdicts if verdict.level == "problem")
        try:
            splits = comparison.shared.features(result.model.encoder, train, test)
        except ValueError:  # features that are not finite, of weights that the last steps spoilt
            splits, problems = None, "NaN"
        record(point, splits, **logged, problems=problems)
    _tell(args.study, out, train, test, args.epochs)


def _recipe(point, epochs):
    usual = {name: USUAL[name] for name in ("maximality_weight", "invariance_weight", "teacher_temperature")}
    changes = {"objective_args": {**usual, "num_classes": CLASSES}, "epochs": epochs, "seed": point.seed}
    for name, value in point.changes.items():
        changes[name] = changes.get(name, {}) | value if isinstance(value, dict) else value
    return recipes.small_images("dissl", image_size=32, **changes)


def _same_study(out, asked):
    """Holds what is asked for against what its folder was begun with."""
    path = out / "study.json"
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != asked:
        raise SystemExit(
            f"{out} has the study with another recipe, other images or on another backend: choose another OUT."
        )
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, asked)


def _rows(path):
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _key(row):
    return tuple(row[name] for name in KEY)


def _tell(study, out, train, test, epochs):
    """Prints the table, and writes it beside the picture."""
    rows = _rows(out / "results.csv")
    lines = {f"{row['knob']}, linear": float(row["linear_top1"]) for row in rows if row["knob"] in (PIXELS, RANDOM)}
    rows = [row for row in rows if row["knob"] not in (PIXELS, RANDOM)]
    panels = []
    for knob in dict.fromkeys(row["knob"] for row in rows if row["knob"] != "seed"):
        mine = [row for row in rows if row["knob"] == knob]
        curves = {}
        for row in mine:
            for name in PROBES:
                if row[f"{name}_top1"]:  # none after NaN, and in the study of knobs no MLP
                    words = f"{'MLP' if name == 'mlp' else name} probe" + (f", {row['curve']}" if row["curve"] else "")
                    curves.setdefault(words, []).append((float(row["value"]), float(row[f"{name}_top1"])))
        shaded = tuple({float(row["value"]) for row in mine if row["problems"]})
        panels.append(Panel(TITLES.get(knob, knob), curves, shaded, USUAL.get(knob), log=True))
    picture = sweep(panels, out / "study.png", lines=lines, shading="the records of a run show a problem")
    has_mlp = any(row["mlp_top1"] for row in rows)
    titles, cells, several = _table(rows)
    one = next((row["seed"] for row in rows if row["knob"] != "seed"), "as it says")
    seeds = "the seeds that stand there, mean [lowest, highest]" if several else f"seed {one}"
    beside = "; ".join(f"{name} {100 * value:.1f} %" for name, value in lines.items())
    protocol = (
        f"{train.name}: DISSL on {len(train):,} images without labels for {epochs} epochs, a ResNet of 16 to 128 "
        f"channels, `recipes.small_images` with C = {CLASSES} but for what the knob says, {seeds}, float32, "
        f"{keras.config.backend()}; probes fitted on the same images with all labels, their regularisation chosen on "
        f"held-out training labels, scored once on {len(test):,} test images; another draw of these would move a "
        f"figure by {196 * (0.25 / len(test)) ** 0.5:.1f} points at most (95 %). "
        + (f"The MLP probe has {MLP['hidden'][0]} hidden units and {MLP['epochs']} epochs. " if has_mlp else "")
        + ("Differences are taken within a seed, to the usual value; of dimensions, to 256. " if several else "")
        + f"Beside: {beside}. Entropies and losses are the last epoch's means; problems are what the run's own records "
        "are judged as (`diagnostics.judge_training`)."
    )
    text = f"{report.table(titles, cells)}\n\n{protocol}\n"
    write_text(out / "study.md", text)
    _say(f"\n{text}\nWritten to {out}: results.csv, study.md{', study.png' if picture else ''}.")


def _table(rows):
    """Titles, cells with a row a point, and whether there are several seeds."""
    points = {}  # the rows of each, one a seed
    for row in rows:
        own = row["seed"] if row["knob"] == "seed" else ""  # there a seed is a point
        points.setdefault((row["knob"], row["value"], row["curve"], own), []).append(row)
    several = len({row["seed"] for row in rows if row["knob"] != "seed"}) > 1
    titles, cells = [], [[] for _ in points]

    def add(title, column):
        titles.append(title)
        for cell, fellows in zip(cells, points.values(), strict=True):
            cell.append(column(fellows))

    for name in (*KEY[:3], *(["seed"] if several else []), "linear_top1", "mlp_top1", *LOGGED, "problems"):
        if not any(row[name] for row in rows):
            continue
        title = name.replace("_top1", " top-1, %").replace("mlp", "MLP").replace("_", " ")
        add(title, lambda fellows, name=name: _cell(name, [row[name] for row in fellows]))
        if several and name.endswith("_top1"):
            add("difference", lambda fellows, name=name: _difference(name, fellows, rows))
    return titles, cells, several


def _difference(name, fellows, rows):
    """How far the rows of a point are from those of the knob's usual value with the same seed: mean and range."""
    key = lambda row, value: (row["knob"], float(value), row["curve"], row["seed"])  # noqa: E731
    known = {key(row, row["value"]): float(row[name]) for row in rows if row[name]}
    usual = REFERENCE.get(fellows[0]["knob"])
    if usual is None or float(fellows[0]["value"]) == usual:
        return ""
    found = [(key(row, row["value"]), key(row, usual)) for row in fellows]
    found = [100 * (known[here] - known[there]) for here, there in found if here in known and there in known]
    if not found:
        return ""
    text = f"{sum(found) / len(found):+.1f}"
    text += "" if len(found) == 1 else f" [{min(found):+.1f}, {max(found):+.1f}]"
    return text if len(found) == len(fellows) else f"{text} ({len(found)} of {len(fellows)})"


def _cell(name, values):
    """A cell of the table: the value of a run; of several, one for each seed, their mean and range."""
    count = len(values)
    values = [value for value in values if value]  # none after NaN
    if name == "problems":
        kinds = [kind for value in values for kind in value.split()]
        some = {kind: f" ({kinds.count(kind)} of {count})" if count > 1 else "" for kind in dict.fromkeys(kinds)}
        return ", ".join(kind + number for kind, number in some.items())
    if name in KEY or not values:
        return ", ".join(dict.fromkeys(values))
    scale, digits = (100, 1) if name.endswith("_top1") else (1, 2)
    numbers = [scale * float(value) for value in values]
    text = f"{sum(numbers) / len(numbers):.{digits}f}"
    text += "" if len(numbers) == 1 else f" [{min(numbers):.{digits}f}, {max(numbers):.{digits}f}]"
    return text if len(numbers) == count else f"{text} ({len(numbers)} of {count})"


def _say(line):
    print(line, flush=True)


if __name__ == "__main__":
    main()
