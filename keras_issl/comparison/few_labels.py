"""`compare`: one seed, and how few labels are enough."""

import dataclasses
import json
import time
from pathlib import Path

import keras

from keras_issl import probes, recipes, report, runs
from keras_issl.comparison.rows import LABELS
from keras_issl.comparison.shared import check_folder, check_labels, features, pixels, same_classes
from keras_issl.files import write_json


@dataclasses.dataclass
class Comparison:
    """Rows of a comparison, and the protocol behind them.

    Attributes:
        rows: A dict from the name of a representation to a dict from labels a class (`None`: all)
            to (mean, standard deviation, draws) of test top-1.
        protocol: One sentence.
    """

    rows: dict
    protocol: str

    def table(self):
        """The comparison as a Markdown table, mean ± standard deviation over label draws."""
        shots = list(next(iter(self.rows.values())))
        titles = ["all labels" if k is None else f"{k} label{'s' * (k > 1)} a class" for k in shots]
        lines = []
        for name, row in self.rows.items():
            cells = [f"{m:.3f}" + (f" ± {s:.3f}" if n > 1 else "") for m, s, n in (row[k] for k in shots)]
            lines.append([name, *cells])
        return report.table(["representation", *titles], lines)


def compare(
    make_recipe,
    train,
    test,
    out,
    *,
    objectives=("simclr", "cissl", "dissl"),
    shots=(1, 5, 10, None),
    draws=10,
    resume=False,
    say=print,
):
    """Pre-trains one encoder per objective and probes them all, beside raw pixels and the untrained encoder.

    Every run starts from the same initial encoder. Training sees the images of `train` without
    labels; the probe sees labels of `train` only, and scores `test` once for each draw of labels.

    Args:
        make_recipe: A function from the name of an objective to a `recipes.Recipe`.
        train: An `ImageDataset` with labels.
        test: An `ImageDataset` with labels of the same classes.
        out: Folder for the runs and `comparison.json`.
        objectives: Names of objectives.
        shots: Labels a class; `None` for all.
        draws: How many random draws of labels are averaged for each number of shots.
        resume: Whether to keep finished runs and rows in `out` and go on with the rest.
        say: Called with each line of progress.

    Returns:
        A `Comparison`, or `None` if the user stopped it.

    Raises:
        ValueError: `train` or `test` has no labels; the folder is occupied and `resume` is false.
    """
    check_labels(train, test)
    out = Path(out)
    path = out / "comparison.json"
    if out.exists() and any(out.iterdir()) and not resume:
        raise ValueError(
            f"`out` should be a new folder. Received: {str(out)!r}, which exists. "
            "Choose another, or pass resume=True (--resume) to go on with it."
        )
    check_folder(out, path.name)
    test = same_classes(train, test)
    out.mkdir(parents=True, exist_ok=True)
    asked = {
        "recipes": {objective: dataclasses.asdict(make_recipe(objective)) for objective in objectives},
        "data": [train.fingerprint, test.fingerprint],
        "shots": list(shots),
        "draws": draws,
    }
    done = _rows_so_far(path, json.loads(json.dumps(asked)))
    recipe = make_recipe(objectives[0])

    def probe(name, split):
        began = time.monotonic()
        scores = probes.few_shot(*split, shots=shots, draws=draws)
        done[name] = {str(k): list(v) for k, v in scores.items()}
        write_json(path, {"asked": asked, "rows": done})
        say(f"{name}: probed in {time.monotonic() - began:.1f} s")

    if "raw pixels" not in done:
        probe("raw pixels", (pixels(train), pixels(test)))
    if "random encoder" not in done:
        probe("random encoder", features(recipes.build_encoder(recipe), train, test))
    for objective in objectives:
        name = LABELS[objective]
        if name in done:
            continue
        recipe = make_recipe(objective)
        say(f"{name}: pre-training {recipe.epochs} epochs on {len(train):,} images without labels")
        result = runs.pretrain(
            recipe, train, out / objective, resume=(out / objective).exists(), online_probe=False, page=False
        )
        if result.stopped_by:
            return None
        say(f"{name}: trained in {result.seconds:.0f} s")
        probe(name, features(result.model.encoder, train, test))

    order = ["raw pixels", "random encoder", *(LABELS[o] for o in objectives)]
    rows = {n: {k: tuple(done[n][str(k)]) for k in shots} for n in order}
    classes = make_recipe("dissl").objective_args.get("num_classes") if "dissl" in objectives else None
    protocol = (
        f"{train.name}: {len(train):,} training and {len(test):,} test images. One encoder with the same initial "
        f"weights for all, {recipe.epochs} epochs of batches of {recipe.batch_size}, {recipe.augmentation} views, "
        + (f"C = {classes} for DISSL, " if classes else "")
        + f"seed {recipe.seed}, {recipe.precision}, {keras.config.backend()}. {probes.PROTOCOL} Mean ± standard "
        f"deviation over {draws} draws of labels, the same draws for every row."
    )
    result = Comparison(rows, protocol)
    (out / "comparison.md").write_text(f"{result.table()}\n\n{protocol}\n", encoding="utf-8")
    report.label_efficiency(rows, out / "comparison.png", title=train.name)
    return result


def _rows_so_far(path, asked):
    """Finished rows of a comparison that was asked for in the same words, or none."""
    if not path.is_file():
        return {}
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = [key for key, value in asked.items() if before["asked"].get(key) != value]
    if changed:
        raise ValueError(
            f"The comparison in {str(path.parent)!r} was started with other {' and '.join(changed)}, so it cannot be "
            "resumed. Ask for the same, or choose another `out`."
        )
    return before["rows"]
