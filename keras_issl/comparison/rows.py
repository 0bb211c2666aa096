"""What `compare_seeds` leaves on the disk: the budget, a row a run, and which test images were classified right."""

import csv
import dataclasses
import io
import json
from pathlib import Path

import keras
import numpy as np

from keras_issl.files import write_bytes, write_json, write_text

LABELS = {
    "simclr": "SimCLR", "cissl": "CISSL", "dissl": "DISSL", "dino": "DINO", "swav": "SwAV", "byol": "BYOL",
    "simsiam": "SimSiam", "moco_v3": "MoCo v3", "barlow_twins": "Barlow Twins", "vicreg": "VICReg",
}  # fmt: skip
PIXELS, RANDOM = "raw_pixels", "random_encoder"  # beside the objectives
NAMES = {PIXELS: "raw pixels", RANDOM: "random encoder", **LABELS}
BUDGET, ROWS, RIGHT = "budget.json", "results.csv", "right"
OWN = ("objective", "seed", "name", "note")  # fields of a recipe that are not the budget
WHOLE = ("seed", "epochs", "images", "steps")
DECIMAL = ("seconds", "linear_top1", "knn_top1", "first_loss", "last_loss")
# `seconds` is the wall time of pre-training; of a run that was interrupted, its last part's, scaled to all epochs.
COLUMNS = ("objective", *WHOLE, *DECIMAL, "linear_probe", "knn_probe", "versions", "hardware", "date", "protocol")


def check_budget(out, found, data):
    """Writes what a comparison is asked for, or holds what its folder has against it.

    Args:
        out: The folder.
        found: A dict from objectives to recipes.
        data: Fingerprints of the images.

    Returns:
        A dict of what the recipes share.

    Raises:
        ValueError: The recipes differ in more than the objective; the folder has a comparison of another budget.
    """
    described = json.loads(json.dumps({name: dataclasses.asdict(recipe) for name, recipe in found.items()}))
    arguments = {name: recipe.pop("objective_args") for name, recipe in described.items()}
    for recipe in described.values():
        for key in OWN:
            recipe.pop(key, None)
    first, shared = next(iter(described.items()))
    for name, recipe in described.items():
        if different := sorted(key for key in shared if recipe[key] != shared[key]):
            raise ValueError(
                "`make_recipe` should give recipes that differ in objective and objective_args alone. Received: "
                f"other {', '.join(different)} for {name} than for {first}."
            )
    asked = {**shared, "data": list(data), "backend": keras.config.backend()}
    path = out / BUDGET
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"shared": asked, "arguments": {}}
    changes = [f"{key}: {before['shared'].get(key)!r} there, {asked[key]!r} now" for key in asked]
    changes = [text for text, key in zip(changes, asked, strict=True) if before["shared"].get(key) != asked[key]]
    for name, mine in arguments.items():
        if (theirs := before["arguments"].get(name, mine)) != mine:
            changes.append(f"{name}'s arguments: {theirs!r} there, {mine!r} now")
    if changes:
        raise ValueError(
            f"The comparison in {str(out)!r} was started with another budget: {'; '.join(changes)}. Ask for the same, "
            "or choose another `out`."
        )
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, {"shared": asked, "arguments": before["arguments"] | arguments})
    return shared


def read_rows(path):
    """Rows of a `results.csv` as dicts, numbers as numbers and empty cells as `None`; none without a file.

    Raises:
        ValueError: The file is no CSV or has other columns, a row that is not whole, or two rows of one run.
    """
    path = Path(path)
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        try:
            lines = list(csv.reader(file, strict=True))
        except csv.Error as error:
            raise ValueError(f"{path} should be a CSV of whole rows, but: {error}.") from None
    if not lines or tuple(lines[0]) != COLUMNS:
        raise ValueError(f"{path} should begin with the columns {','.join(COLUMNS)}. Received: {lines[:1]}")
    rows = {}
    for number, cells in enumerate(lines[1:], 2):
        try:
            row = dict(zip(COLUMNS, cells, strict=True))
            row |= {name: int(row[name]) for name in WHOLE}
            row |= {name: float(row[name]) if row[name] else None for name in DECIMAL}
            if row["objective"] not in NAMES or None in (row["linear_top1"], row["knn_top1"]):
                raise ValueError
        except ValueError:
            raise ValueError(f"{path}, line {number} should be a row of a comparison. Received: {cells}") from None
        if rows.setdefault((row["objective"], row["seed"]), row) is not row:
            raise ValueError(f"{path}, line {number} repeats {row['objective']}, seed {row['seed']}.")
    return list(rows.values())


def add_row(path, row):
    """Adds a run to a `results.csv`, unless it is there. A process that is killed leaves a file of whole rows."""
    rows = read_rows(path)
    if any((other["objective"], other["seed"]) == (row["objective"], row["seed"]) for other in rows):
        return
    write_rows(path, COLUMNS, [*rows, row])


def write_rows(path, columns, rows):
    """Writes dicts as a CSV, whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def save_right(out, name, seed, right):
    """Keeps which test images the probes classify right: dict of (N,) booleans."""
    (out / RIGHT).mkdir(exist_ok=True)
    content = io.BytesIO()
    np.savez_compressed(content, **right)
    write_bytes(out / RIGHT / f"{name}-s{seed}.npz", content.getvalue())


def load_right(out, row):
    """Which test images (N,) the linear probe of a row classifies right."""
    path = Path(out, RIGHT, f"{row['objective']}-s{row['seed']}.npz")
    try:
        with np.load(path) as file:
            right = file["linear"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} should hold the right guesses of a row of {ROWS}, but: {error}") from None
    if right.dtype != bool or right.ndim != 1 or abs(right.mean() - row["linear_top1"]) > 1e-9:
        raise ValueError(
            f"{path} should be of the same run as its row in {ROWS}, which has {row['linear_top1']:.6f} right. "
            f"Received: {right.mean():.6f} right."
        )
    return right
