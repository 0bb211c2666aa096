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
import contextlib
import dataclasses
import io
import json
import os
import signal
import threading
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

from keras_issl import comparison, datasets, probes, recipes, report, results, runs
from keras_issl.files import write_bytes, write_json, write_text

# Top-1 in the authors' README: one seed, the probe's weight decay chosen on the validation images that it is scored on.
PUBLISHED = {
    "simclr": 45.2, "cissl": 45.8, "cissl+dim": 47.6, "cissl+dim+epochs": 48.7, "cissl+dim+epochs+aug": 51.2,
    "dino": 43.3, "dissl": 45.1, "dissl+dim": 48.0, "dissl+dim+epochs": 49.0, "dissl+dim+epochs+aug": 50.7,
}  # fmt: skip
CELLS = tuple(PUBLISHED)
BEFORE = dict(zip(CELLS[1:], CELLS, strict=False)) | {"dino": None}  # what a cell is a step from
TIERS = {
    "smoke": "shrunk, figures mean nothing",
    "100": "a third of the paper's epochs: 100, or 333 with +epochs",
    "paper": "300 epochs, or 1000 with +epochs",
}
SMOKE_IMAGES = {"train": 512, "valid": 256}
ASKED, RIGHT, CHOSEN, RESULT, TABLE = "asked.json", "right.npz", "chosen.json", "result.json", "table.md"
HELD_OUT, LINEAR, ON_TEST = "held_out", "linear", "on_test"
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
    ends = time.monotonic() + 60 * args.minutes
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
    for cell in args.cells:
        recipe, notes = _recipe(cell, args.tier, args.seed)
        asked = {"recipe": dataclasses.asdict(recipe), "data": [train.fingerprint, valid.fingerprint]}
        job = Cell(cell, out / cell, recipe, json.loads(json.dumps(asked)), notes)
        if job.is_finished():
            continue
        if time.monotonic() > ends:
            return _say(f"{args.minutes:g} minutes are over; the same command goes on with {cell}.")
        encoder = job.pretrain(train, ends - time.monotonic())
        if encoder is None or not job.probe(encoder, train, valid, ends):
            return _say(f"{cell} is stopped and saved; the same command goes on in {out}.")
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
    """The recipe of a cell, and a list of sentences: what a shorter run changed beside its epochs."""
    recipe, notes = recipes.get(f"tiny_imagenet/{cell}"), []
    if tier == "smoke":
        recipe = recipes.smoke(recipe)
    elif tier == "100":
        recipe, notes = recipes.override(recipe, {"epochs": recipe.epochs // 3})
    return dataclasses.replace(recipe, seed=seed), notes


@dataclasses.dataclass
class Cell:
    """A cell of the table: what is asked for, and its folder with what is done of it."""

    name: str
    folder: Path
    recipe: recipes.Recipe
    asked: dict
    notes: list

    def is_finished(self):
        """Whether its result is there; refuses a folder of other recipes, seeds or images."""
        path = self.folder / ASKED
        if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != self.asked:
            raise SystemExit(f"{self.folder} has the cell with another recipe, seed or data: choose another OUT.")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, self.asked)
        return (self.folder / RESULT).is_file()

    def pretrain(self, train, seconds):
        """The trained encoder; `None` if the run was stopped, by the user or because its seconds are over."""
        run = self.folder / "run"
        _say(f"{self.recipe.name}: {self.recipe.epochs} epochs on {len(train):,} images, {run}")
        options = {"online_probe": False, "page": False, "notes": self.notes}
        if keras.config.backend() != "tensorflow":  # which takes every batch through the host
            train = train.on_device()
        with _ends_after(seconds):
            result = runs.pretrain(self.recipe, train, run, resume=run.exists(), **options)
        return None if result.stopped_by else result.model.encoder

    def probe(self, encoder, train, valid, ends):
        """Probes the encoder by both protocols; whether that is done. Each finished probe is kept."""
        began = time.monotonic()
        splits = comparison.shared.features(encoder, train, valid)
        decays = probes.sgd.WEIGHT_DECAYS
        jobs = {HELD_OUT: probes.SGDProbe(), LINEAR: probes.LinearProbe()}
        jobs |= {f"{decay:g}": probes.SGDProbe((decay,)) for decay in decays}
        (right, chosen), fitted = self._done(), False
        for name, probe in jobs.items():
            if name in right:
                continue
            if fitted and time.monotonic() > ends:  # one in every call at least, however little time is left
                return False
            fitted = True
            right[name] = probe.fit(splits[0]).predict(splits[1]) == splits[1].labels  # (N,)
            chosen[name] = probe.selection_
            if name == HELD_OUT:  # trained again on all of train with the decay it chose: that is one of the others
                right[f"{probe.selected_['weight_decay']:g}"] = right[name]
            self._keep(right, chosen)
        best = max((f"{decay:g}" for decay in decays), key=lambda name: right[name].mean())
        right[ON_TEST], chosen[ON_TEST] = right[best], f"weight decay {best}, the best of {len(decays)} on test"
        self._keep(right, chosen)
        records = report.read_records(self.folder / "run" / "records.csv")
        found = {
            "cell": self.name,
            "top1": {name: float(values.mean()) for name, values in right.items()},
            "chosen": chosen,
            "images_per_second": float(np.nanmedian(records["images_per_second"])),
            "notes": self.notes,
            "asked": self.asked,
            "versions": results.versions(),
            "hardware": results.hardware(),
        }
        write_json(self.folder / RESULT, found)
        _say(f"{self.name}: held out {right[HELD_OUT].mean():.4f}, probed in {time.monotonic() - began:.0f} s")
        return True

    def _done(self):
        """Which validation images the finished probes classify right, and how they were chosen."""
        if not (self.folder / CHOSEN).is_file():
            return {}, {}
        with np.load(self.folder / RIGHT) as file:
            right = dict(file)
        chosen = json.loads((self.folder / CHOSEN).read_text(encoding="utf-8"))
        return right, chosen

    def _keep(self, right, chosen):
        content = io.BytesIO()
        np.savez_compressed(content, **right)
        write_bytes(self.folder / RIGHT, content.getvalue())
        write_json(self.folder / CHOSEN, chosen)


@contextlib.contextmanager
def _ends_after(seconds):
    """After so many seconds, or a SIGTERM, SIGTERMs until training takes one: it then saves and returns."""
    asked, over = threading.Event(), threading.Event()

    def send():
        asked.wait(seconds)
        while not over.wait(5 * asked.is_set()):  # before training begins and after it nobody but `asked` takes it
            asked.set()
            os.kill(os.getpid(), signal.SIGTERM)

    previous = signal.signal(signal.SIGTERM, lambda number, frame: asked.set())
    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        asked.set()
        thread.join()
        signal.signal(signal.SIGTERM, previous)


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
    hardware = {json.dumps([row["hardware"], row["versions"]], sort_keys=True) for row in about.values()}
    seeds = sorted({row["asked"]["recipe"]["seed"] for row in about.values()})
    notes = [PROTOCOL, f"Tier {out.name}: {TIERS[out.name]}. Seed: {', '.join(map(str, seeds))}."]
    notes += [f"{cell}: {'; '.join(row['notes'])}." for cell, row in about.items() if row["notes"]]
    notes += [f"Hardware, versions: {text}" for text in sorted(hardware)]
    if out.name == "smoke":
        notes.insert(0, "**A smoke run of shrunk recipes on a few images: it shows that every cell runs, no more.**")
    text = "\n\n".join([report.table(titles, rows), *notes]) + "\n"
    write_text(out / TABLE, text)
    _say(f"\n{text}\n{len(found)} of {len(CELLS)} cells. Written to {out / TABLE}.")


def _row(cell, about, right):
    """A row of the table: cells of text."""
    mine = right[cell]
    nothing = np.zeros(len(mine[HELD_OUT]))
    own = {n: probes.paired_difference(mine[n], nothing, bootstrap=10_000) for n in (HELD_OUT, LINEAR, ON_TEST)}
    before, step = BEFORE.get(cell), ""
    if before in right and _comparable(about[cell], about[before]):
        step = _signed(probes.paired_difference(mine[HELD_OUT], right[before][HELD_OUT], bootstrap=10_000))
    off = np.array(own[ON_TEST]) - PUBLISHED[cell] / 100
    return [
        cell,
        _interval(own[HELD_OUT]),
        step,
        _interval(own[LINEAR]),
        f"{100 * own[ON_TEST].value:.1f}",
        f"{PUBLISHED[cell]:.1f}",
        _signed(off),
        str(about[cell]["asked"]["recipe"]["epochs"]),
        f"{about[cell]['images_per_second']:,.0f}",
    ]


def _comparable(one, other):
    """Whether two cells have the same seed and images, so that their guesses can be paired."""
    one, other = one["asked"], other["asked"]
    return one["data"] == other["data"] and one["recipe"]["seed"] == other["recipe"]["seed"]


def _interval(found):
    return "{:.1f} [{:.1f}, {:.1f}]".format(*100 * np.array(found))


def _signed(found):
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*100 * np.array(found))


def _say(line):
    print(line, flush=True)


if __name__ == "__main__":
    main()
