"""`compare_seeds`: several seeds, all labels, a row a run; what is done stays done."""

import dataclasses
import datetime
import json
import time
from pathlib import Path

import keras

from keras_issl import probes, recipes, results, runs
from keras_issl.comparison.rows import (
    BUDGET,
    LABELS,
    NAMES,
    PIXELS,
    RANDOM,
    ROWS,
    add_row,
    check_budget,
    read_rows,
    save_right,
)
from keras_issl.comparison.shared import check_folder, check_labels, features, pixels, same_classes
from keras_issl.comparison.standings import summarise
from keras_issl.files import write_json


def compare_seeds(
    make_recipe, train, test, out, *, objectives=tuple(LABELS), seeds=(0, 1, 2), bootstrap=10_000, say=print
):
    """Pre-trains an encoder for each objective and seed under one budget, and probes each on frozen features.

    Runs of one seed share the initial encoder, the order of the images and their views. A finished run is one row of
    `out/results.csv`, with the probes' right guesses in `out/right/`. The same call goes on where the last one ended,
    killed or not; calls with other objectives or seeds add rows. Raw pixels and the untrained encoder stand beside.

    The intervals say how far another test set of this size would move a difference, not how far other seeds would: see
    the standard deviations for that.

    Args:
        make_recipe: A function from the name of an objective to a `recipes.Recipe`; recipes of different objectives
            may differ in `objective_args` alone. Their seed is replaced.
        train: An `ImageDataset` with labels, which only the probes see.
        test: An `ImageDataset` with labels of the same classes.
        out: Folder for the runs, `budget.json`, `results.csv`, `comparison.md` and `comparison.png`.
        objectives: Names of objectives, keys of `LABELS`.
        seeds: Integers.
        bootstrap: Resamples of the test images.
        say: Called with each line of progress.

    Returns:
        A `SeedComparison` of all rows in `out`, those of earlier calls too; `None` if the user stopped it.

    Raises:
        ValueError: unknown objectives; `train` or `test` without labels, or the same images; recipes that differ in
            more than the objective; a folder with something else in it, or with a comparison of another budget.
        FloatingPointError: the loss of a run became NaN or infinite; finished rows are kept.

    Example: `tools/compare_cifar10.py`.
    """
    out, objectives, seeds = Path(out), _different(objectives, "objectives"), _different(seeds, "seeds")
    check_labels(train, test)
    check_folder(out, BUDGET)
    test = same_classes(train, test)
    found = {objective: make_recipe(objective) for objective in objectives}
    shared = check_budget(out, found, (train.fingerprint, test.fingerprint))
    protocol = _protocol(shared, train, test)

    def record(name, seed, splits, **facts):
        began = time.monotonic()
        row = {"objective": name, "seed": seed, "epochs": 0, "images": len(train), "steps": 0, **facts}
        right = {}
        for key, probe in (("linear", probes.LinearProbe()), ("knn", probes.KNNProbe())):
            right[key] = probe.fit(splits[0]).predict(splits[1]) == splits[1].labels  # (N,)
            row |= {f"{key}_top1": float(right[key].mean()), f"{key}_probe": probe.selection_}
        row |= {"versions": json.dumps(results.versions()), "hardware": json.dumps(results.hardware())}
        row |= {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "protocol": protocol}
        save_right(out, name, seed, right)  # before the row: what has a row is complete
        add_row(out / ROWS, row)
        say(
            f"{NAMES[name]}, seed {seed}: linear {row['linear_top1']:.4f}, kNN {row['knn_top1']:.4f}, probed in "
            f"{time.monotonic() - began:.0f} s"
        )

    done = {(row["objective"], row["seed"]) for row in read_rows(out / ROWS)}
    if PIXELS not in {name for name, _ in done}:
        record(PIXELS, 0, (pixels(train), pixels(test)))
    for seed in seeds:  # all objectives of a seed before the next seed: what is cut short is a comparison, too
        if (RANDOM, seed) not in done:
            encoder = recipes.build_encoder(dataclasses.replace(found[objectives[0]], seed=seed))
            record(RANDOM, seed, features(encoder, train, test))
        for objective in (objective for objective in objectives if (objective, seed) not in done):
            recipe = dataclasses.replace(found[objective], seed=seed)
            say(f"{LABELS[objective]}, seed {seed}: {_counted(recipe.epochs)} on {len(train):,} images without labels")
            result, seconds = _pretrain(recipe, train, out / f"{objective}-s{seed}")
            if result.stopped_by:
                return None
            losses = result.history["loss"]
            facts = {"epochs": recipe.epochs, "steps": int(result.model.steps), "seconds": seconds}
            facts |= {"first_loss": losses[0], "last_loss": losses[-1]}
            record(objective, seed, features(result.model.encoder, train, test), **facts)
    return summarise(out, bootstrap=bootstrap, title=f"{train.name}, {_counted(shared['epochs'])}")


def _different(values, argument):
    """A tuple of objectives or seeds, which should be known and different."""
    known = argument == "objectives"
    values = tuple(values) if isinstance(values, list | tuple | range) else (values,)
    good = all((v in LABELS) if known else (type(v) is int and v >= 0) for v in values)
    if not values or not good or len(set(values)) < len(values):
        words = f"different names of {', '.join(LABELS)}" if known else "different integers of at least 0"
        raise ValueError(f"`{argument}` should be {words}. Received: {values!r}")
    return values


def _pretrain(recipe, train, folder):
    """A finished or stopped run, and the seconds that all of it takes."""
    result = runs.pretrain(recipe, train, folder, resume=folder.exists(), online_probe=False, page=False)
    path = folder / "seconds.json"
    trained = result.steps - result.first_step
    if trained and not result.stopped_by:  # of a run that went on, this part is scaled to the whole
        seconds = result.seconds * result.steps / trained
        write_json(path, {"seconds": round(seconds, 2), "from_step": result.first_step})
    return result, json.loads(path.read_text())["seconds"] if path.is_file() else None


def _counted(epochs):
    return f"{epochs} epoch{'s' * (epochs > 1)}"


def _protocol(shared, train, test):
    """How the rows were made, in one sentence."""
    optimizer = {"adam": "Adam", "sgd": "SGD", "lars": "LARS"}[shared["optimizer"]]
    return (
        f"{train.name}: pre-training on {len(train):,} images without labels, {_counted(shared['epochs'])} of batches "
        f"of {shared['batch_size']}, {optimizer} with a peak learning rate of {shared['learning_rate']:g}, "
        f"{shared['augmentation']} views, {shared['precision']}, {keras.config.backend()}, with the same initial "
        "encoder, order of images and views for every objective of a seed; then a linear probe (its regularisation "
        "chosen on held-out training labels) and a kNN probe (k chosen by leaving one out of train) on frozen "
        f"features, fitted on all labels of train and scored once on {len(test):,} test images; ± is the standard "
        "deviation over seeds of pre-training, and [ ] the 95 % bootstrap interval over test images of the paired "
        "difference of means over seeds."
    )
