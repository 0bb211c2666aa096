"""The ten cells of the paper's Table 1 on Tiny-ImageNet: trained in slices, probed by two protocols, one table.

    python tools/reproduce_table1.py DATA OUT                                 # every cell in small: does it all work?
    python tools/reproduce_table1.py DATA OUT --tier 100 --cells dissl dino   # 100 epochs; --minutes 9 for slices
    python tools/reproduce_table1.py DATA OUT --tier paper --cells dissl+dim  # 300 epochs, 1000 with +epochs
    python tools/reproduce_table1.py DATA OUT --tier paper --table            # the table of what is there

DATA is a folder with train*.parquet and valid*.parquet in Hugging Face's layout. OUT holds a folder for each tier, in
it table.md and one for each cell: its run with history and preset, result.json, and which validation images its probes
classify right. Stopped, killed or at the end of its minutes, the same call goes on.
"""

import argparse
import dataclasses
import json
import os
import signal
import threading
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

from keras_issl import comparison, datasets, probes, recipes, report, results, runs
from keras_issl.zoo.layout import write_json

# Top-1 in the authors' README: one seed, the probe's weight decay chosen on the validation images that it is scored on.
PUBLISHED = {
    "simclr": 45.2, "cissl": 45.8, "cissl+dim": 47.6, "cissl+dim+epochs": 48.7, "cissl+dim+epochs+aug": 51.2,
    "dino": 43.3, "dissl": 45.1, "dissl+dim": 48.0, "dissl+dim+epochs": 49.0, "dissl+dim+epochs+aug": 50.7,
}  # fmt: skip
CELLS = tuple(PUBLISHED)
BEFORE = dict(zip(CELLS[1:], CELLS, strict=False)) | {"dino": None}  # what a cell is a step from
TIERS = {"smoke": "shrunk, figures mean nothing", "100": "100 epochs", "paper": "300 epochs, or 1000 with +epochs"}
SMOKE_IMAGES = {"train": 512, "valid": 256}
RESULT, RIGHT, TABLE = "result.json", "right.npz", "table.md"
PROTOCOL = (
    "Top-1 in % on the official validation images, frozen features of un-augmented images, probes fitted on all labels "
    "of train. *Held out*: the paper's SGD probe, its weight decay chosen on a fifth of train, scored once. *Linear*: "
    "this library's `LinearProbe`, its strength chosen on held-out training labels, scored once. *On test* †: the "
    "paper's protocol, the best of three weight decays **on the validation images it is scored on**; `published` are "
    "the authors' figures by it, one seed. [ ]: 95 % intervals of 10,000 bootstrap resamples of the validation images; "
    "those of *step*, the difference to the cell above it, are paired by image. *Off*: on test minus published, with "
    "the interval of ours alone: nobody has the authors' guesses. Images/s: the median of the run's records."
)


def main(arguments=None):
    args = _parser().parse_args(arguments)
    out = Path(args.out) / args.tier
    if args.table:
        return _tell(out)
    splits = {}
    for split in ("train", "valid"):
        limit = args.limit or (SMOKE_IMAGES[split] if args.tier == "smoke" else None)
        try:
            splits[split] = datasets.load(args.data, split=split, image_size=64, limit=limit)
        except (ValueError, OSError) as error:
            raise SystemExit(str(error)) from None
    train, valid = splits["train"], splits["valid"].with_classes(splits["train"].class_names)
    ends = time.monotonic() + 60 * args.minutes
    for cell in args.cells:
        folder, recipe = out / cell, _recipe(cell, args.tier, args.seed)
        asked = _asked(recipe, train, valid)
        if (folder / RESULT).is_file():
            if json.loads((folder / RESULT).read_text(encoding="utf-8"))["asked"] != asked:
                raise SystemExit(f"{folder} has the cell with another recipe, seed or data: choose another OUT.")
            continue
        if time.monotonic() > ends:
            return _say(f"{args.minutes:g} minutes are over; the same command goes on with {cell}.")
        encoder = _pretrain(recipe, train, folder / "run", ends - time.monotonic())
        if encoder is None:
            return _say(f"{cell} is stopped and saved; the same command goes on in {out}.")
        records = report.read_records(folder / "run" / "records.csv")
        speed = float(np.nanmedian(records["images_per_second"]))
        _evaluate(cell, encoder, train, valid, folder, {"asked": asked, "images_per_second": speed})
    _tell(out)


def _parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("out")
    parser.add_argument("--tier", default="smoke", choices=tuple(TIERS))
    parser.add_argument("--cells", nargs="+", default=list(CELLS), choices=CELLS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e6, help="end cleanly after so many; the same call goes on")
    parser.add_argument("--limit", type=int, help="use only so many images of each split")
    parser.add_argument("--table", action="store_true", help="print the table of finished cells, train nothing")
    return parser


def _recipe(cell, tier, seed):
    recipe = recipes.get(f"tiny_imagenet/{cell}")
    if tier == "smoke":
        recipe = recipes.smoke(recipe)
    elif tier == "100":
        recipe, _ = recipes.override(recipe, {"epochs": 100})
    return dataclasses.replace(recipe, seed=seed)


def _asked(recipe, train, valid):
    """What decides a cell, as JSON holds it."""
    asked = {"recipe": dataclasses.asdict(recipe), "data": [train.fingerprint, valid.fingerprint]}
    return json.loads(json.dumps(asked))


def _pretrain(recipe, train, folder, seconds):
    """The trained encoder; `None` if the run was stopped, by the user or because its seconds are over."""
    _say(f"{recipe.name}: {recipe.epochs} epochs on {len(train):,} images, {folder}")
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))  # on which a run saves and returns
    timer.daemon = True
    timer.start()
    try:
        result = runs.pretrain(recipe, train, folder, resume=folder.exists(), online_probe=False, page=False)
    finally:
        timer.cancel()
    return None if result.stopped_by else result.model.encoder


def _evaluate(cell, encoder, train, valid, folder, facts):
    """Probes the encoder by both protocols and writes what came out."""
    began = time.monotonic()
    splits = comparison.shared.features(encoder, train, valid)
    right, chosen = {}, {}
    for name, probe in (("held_out", probes.SGDProbe()), ("linear", probes.LinearProbe())):
        right[name] = probe.fit(splits[0]).predict(splits[1]) == splits[1].labels  # (N,)
        chosen[name] = probe.selection_
    tried = {decay: probes.SGDProbe((decay,)).fit(splits[0]) for decay in probes.sgd.WEIGHT_DECAYS}
    tried = {decay: probe.predict(splits[1]) == splits[1].labels for decay, probe in tried.items()}
    best = max(tried, key=lambda decay: tried[decay].mean())
    right["on_test"], chosen["on_test"] = tried[best], f"weight decay {best:g}, the best of {len(tried)} on test"
    np.savez_compressed(folder / RIGHT, **right)
    write_json(
        folder / RESULT,
        {
            "cell": cell,
            "top1": {name: float(values.mean()) for name, values in right.items()},
            "chosen": chosen,
            "versions": results.versions(),
            "hardware": results.hardware(),
            **facts,
        },
    )
    _say(f"{cell}: held out {right['held_out'].mean():.4f}, probed in {time.monotonic() - began:.0f} s")


def _tell(out):
    """Prints and writes the table of the cells that are finished."""
    found = {cell: out / cell for cell in CELLS if (out / cell / RESULT).is_file()}
    if not found:
        return _say(f"No cell is finished in {out}.")
    about = {cell: json.loads((folder / RESULT).read_text(encoding="utf-8")) for cell, folder in found.items()}
    right = {}
    for cell, folder in found.items():
        with np.load(folder / RIGHT) as file:
            right[cell] = dict(file)
    rows = [_row(cell, about, right) for cell in found]
    titles = ["cell", "held out", "step", "linear", "on test †", "published †", "off", "epochs", "images/s"]
    first = next(iter(about.values()))
    hardware = {json.dumps([row["hardware"], row["versions"]], sort_keys=True) for row in about.values()}
    notes = [PROTOCOL, f"Tier: {out.name}, {TIERS[out.name]}; seed {first['asked']['recipe']['seed']}."]
    notes += [f"Hardware, versions: {text}" for text in sorted(hardware)]
    if out.name == "smoke":
        notes.insert(0, "**A smoke run of shrunk recipes on a few images: it shows that every cell runs, no more.**")
    text = "\n\n".join([report.table(titles, rows), *notes]) + "\n"
    (out / TABLE).write_text(text, encoding="utf-8")
    _say(f"\n{text}\n{len(found)} of {len(CELLS)} cells. Written to {out / TABLE}.")


def _row(cell, about, right):
    """A row of the table: cells of text."""
    mine = right[cell]
    chance = np.zeros(len(mine["held_out"]))
    own = {name: probes.paired_difference(values, chance, bootstrap=10_000) for name, values in mine.items()}
    before, step = BEFORE.get(cell), ""
    if before in right and len(right[before]["held_out"]) == len(chance):
        step = _signed(probes.paired_difference(mine["held_out"], right[before]["held_out"], bootstrap=10_000))
    off = np.array(own["on_test"]) - PUBLISHED[cell] / 100
    return [
        cell,
        _interval(own["held_out"]),
        step,
        _interval(own["linear"]),
        f"{100 * own['on_test'].value:.1f}",
        f"{PUBLISHED[cell]:.1f}",
        _signed(off),
        str(about[cell]["asked"]["recipe"]["epochs"]),
        f"{about[cell]['images_per_second']:,.0f}",
    ]


def _interval(found):
    return "{:.1f} [{:.1f}, {:.1f}]".format(*100 * np.array(found))


def _signed(found):
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*100 * np.array(found))


def _say(line):
    print(line, flush=True)


if __name__ == "__main__":
    main()
