"""What a comparison over seeds found: means, spreads, paired differences, as a table and a picture."""

import dataclasses
from pathlib import Path

import numpy as np

from keras_issl import probes, report
from keras_issl.comparison.rows import NAMES, PIXELS, RANDOM, ROWS, load_right, read_rows
from keras_issl.files import write_text
from keras_issl.report.standings import standings

REFERENCE = "simclr"


@dataclasses.dataclass(frozen=True)
class Standing:
    """One representation of a `SeedComparison`; tuples have an entry a seed.

    Attributes:
        seeds: The seeds of its runs, sorted.
        linear: Test top-1 of the linear probe.
        knn: Test top-1 of the kNN probe.
        seconds: Wall time of pre-training, `None` where there is none.
        difference: `probes.Difference` of linear top-1 to SimCLR over the seeds that both have, or `None`.
    """

    seeds: tuple
    linear: tuple
    knn: tuple
    seconds: tuple
    difference: probes.Difference | None = None


@dataclasses.dataclass(frozen=True)
class SeedComparison:
    """Objectives under one budget, over several seeds.

    Attributes:
        rows: A dict from the name of a representation to its `Standing`.
        protocol: One sentence.

    Example:

    >>> from keras_issl.comparison import SeedComparison, Standing
    >>> rows = {"SimCLR": Standing((0, 1), (0.50, 0.52), (0.40, 0.40), (60.0, 62.0))}
    >>> difference = keras_issl.probes.Difference(0.03, 0.02, 0.04)
    >>> rows["DISSL"] = Standing((0, 1), (0.54, 0.54), (0.50, 0.50), (90.0, 90.0), difference)
    >>> print(SeedComparison(rows, "").table())
    | objective | linear top-1, % | difference to SimCLR | kNN top-1, % | seconds a run |
    |---|---|---|---|---|
    | SimCLR    | 51.0 ± 1.4      |                      | 40.0 ± 0.0   | 61            |
    | DISSL     | 54.0 ± 0.0      | +3.0 [+2.0, +4.0]    | 50.0 ± 0.0   | 90            |
    """

    rows: dict
    protocol: str

    def table(self):
        """A Markdown table in percent: mean ± standard deviation over seeds, 95 % intervals of the differences."""
        most = max(len(row.seeds) for row in self.rows.values())
        lines = []
        for name, row in self.rows.items():
            some = f" ({len(row.seeds)} of {most} seeds)" if len(row.seeds) < most and name != NAMES[PIXELS] else ""
            known = [seconds for seconds in row.seconds if seconds is not None]
            gap = "" if row.difference is None else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*100 * np.array(row.difference))
            cells = (_spread(row.linear), gap, _spread(row.knn), f"{np.mean(known):.0f}" if known else "")
            lines.append([name + some, *cells])
        titles = (f"difference to {NAMES[REFERENCE]}", "kNN top-1, %", "seconds a run")
        return report.table(["objective", "linear top-1, %", *titles], lines)


def _spread(values):
    """Mean ± standard deviation of shares, in percent."""
    text = f"{100 * np.mean(values):.1f}"
    return text + (f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def summarise(out, *, bootstrap=10_000, title=""):
    """The comparison that `compare_seeds` left in a folder, as far as it got; writes `comparison.md` and a picture.

    A difference is the mean over the seeds that both have, paired by test image; its interval is over resamples of the
    test images. Raw pixels know no seed: they stand against the mean of the reference.

    Args:
        out: The folder.
        bootstrap: Resamples of the test images.
        title: Heading of the picture.

    Returns:
        A `SeedComparison`.

    Raises:
        ValueError: `results.csv` has no rows or damaged ones; right guesses are missing or are not of their row.
    """
    out = Path(out)
    found = {}  # name -> seed -> row
    for row in read_rows(out / ROWS):
        found.setdefault(row["objective"], {})[row["seed"]] = row | {"right": load_right(out, row)}
    if not found:
        raise ValueError(f"`out` should hold a comparison with a row at least. Received: {str(out)!r}")

    def right(name, seeds):
        """(N,): the share of the seeds that classify a test image right."""
        return np.mean([found[name][seed]["right"] for seed in seeds], axis=0)

    def difference(name):
        theirs = sorted(found.get(REFERENCE, ()))
        mine = sorted(found[name]) if name == PIXELS else [seed for seed in theirs if seed in found[name]]
        theirs = theirs if name == PIXELS else mine
        if name == REFERENCE or not theirs:
            return None
        return probes.paired_difference(right(name, mine), right(REFERENCE, theirs), bootstrap=bootstrap)

    rows = {}
    for name in (name for name in NAMES if name in found):
        seeds = tuple(sorted(found[name]))
        columns = (tuple(found[name][s][key] for s in seeds) for key in ("linear_top1", "knn_top1", "seconds"))
        rows[NAMES[name]] = Standing(seeds, *columns, difference(name))
    last = max((row for runs in found.values() for row in runs.values()), key=lambda row: row["date"])
    result = SeedComparison(rows, last["protocol"])
    write_text(out / "comparison.md", f"{result.table()}\n\n{result.protocol}\n")
    shown = {name: (row.linear, row.knn, row.difference) for name, row in rows.items()}
    lines = {NAMES[name]: shown.pop(NAMES[name], None) for name in (PIXELS, RANDOM)}
    lines = {name: float(np.mean(row[0])) for name, row in lines.items() if row}
    standings(shown, out / "comparison.png", lines=lines, reference=NAMES[REFERENCE], title=title)
    return result
