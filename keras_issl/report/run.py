"""A training run as a page needs it: plain data. And the file that a run writes its measurements to."""

import dataclasses
import math
from pathlib import Path

import numpy as np

__all__ = ["Run", "duration", "read_records"]

CLOCK = ("step", "epoch", "seconds")  # columns that say when a row was measured


@dataclasses.dataclass(frozen=True)
class Run:
    """What is known of a training run. Whatever is left out is not shown.

    Attributes:
        name: What the run is called.
        records: Columns of `records.csv`, float64 arrays (rows,): `step`, `epoch`, `seconds`, `loss`, the objective's
            logs, `learning_rate`, `images_per_second`, ...; NaN where nothing was measured.
        history: Columns of `history.csv`, lists with a value an epoch.
        recipe: The recipe's values.
        overrides: Those that the user changed; names of arguments within one have a dot.
        notes: Sentences on what followed from that.
        objective: Class name of the objective.
        config: The objective's arguments.
        data: `name`, `fingerprint`, `images`, `image_shape`, ...
        versions: Name -> version of what computed it.
        hardware: What computed it.
        backend: `name`, and the `reason` for it.
        verdicts: Objects with `level` (`"good"`, `"warning"`, `"problem"`), `title`, `evidence`, `advice`, `kind` and
            `since`, the step since which it is so, or `None`.
        finished_epochs: How many epochs were trained.
        stopped_by: What ended the run early: a signal's name, `"collapse"` or `"NaN"`.
        seconds: Wall time of training.
        started: Date and time.
        online_probe: `{"classes": 10}`, the number of classes of the online linear probe.
        feature_dim: Width of the encoder's features.
        step_parts: Seconds of one training step by part, such as `{"make views": 0.02, "backward and update": 0.1}`.

    Example:

    >>> run = keras_issl.report.Run("try", {"step": np.array([10.0, 20.0]), "loss": np.array([4.1, np.nan])})
    >>> run.steps, run.last("loss"), run.last("effective_rank")
    (20, nan, None)
    """

    name: str
    records: dict = dataclasses.field(default_factory=dict)
    history: dict = dataclasses.field(default_factory=dict)
    recipe: dict = dataclasses.field(default_factory=dict)
    overrides: dict = dataclasses.field(default_factory=dict)
    notes: tuple = ()
    objective: str = ""
    config: dict = dataclasses.field(default_factory=dict)
    data: dict = dataclasses.field(default_factory=dict)
    versions: dict = dataclasses.field(default_factory=dict)
    hardware: dict = dataclasses.field(default_factory=dict)
    backend: dict = dataclasses.field(default_factory=dict)
    verdicts: tuple = ()
    finished_epochs: int | None = None
    stopped_by: str | None = None
    seconds: float | None = None
    started: str | None = None
    online_probe: dict | None = None
    feature_dim: int | None = None
    step_parts: dict = dataclasses.field(default_factory=dict)

    @property
    def steps(self):
        """Finished training steps at the last record, or `None`."""
        steps = _finite(self.records.get("step"))
        return int(steps[-1]) if len(steps) else None

    @property
    def epochs(self):
        """Finished epochs: as the run says, else as records and history show; or `None`."""
        if self.finished_epochs is not None:
            return self.finished_epochs
        recorded = _finite(self.records.get("epoch"))
        logged = max(map(len, self.history.values()), default=0)
        return max(logged, int(recorded[-1] + 1e-6) if len(recorded) else 0) if logged or len(recorded) else None

    @property
    def wall_time(self):
        """Seconds of training, or `None`."""
        recorded = _finite(self.records.get("seconds"))
        return self.seconds if self.seconds is not None else float(recorded[-1]) if len(recorded) else None

    def series(self):
        """Everything measured over time.

        Returns:
            A pair: what time is counted in (`"step"`; `"epoch"` for a run without records), and a dict from a column's
            name to a pair of arrays, when and what. Rows without a measurement are left out; those of the loss are
            not, for it is always measured: its NaN is what it was. A line of the history stands at its epoch's end.
        """
        found, rows = {}, max((len(values) for values in self.records.values()), default=0)
        steps = np.asarray(self.records.get("step", np.arange(1, rows + 1)), np.float64)
        unit = "step" if rows else "epoch"
        columns = [(name, steps, self.records[name]) for name in self.records if name not in CLOCK]
        ends = self._ends()  # Keras counts epochs from 0
        columns += [(n, ends, v) for n, v in self.history.items() if n not in CLOCK and n not in self.records]
        for name, at, values in columns:
            values = np.asarray(values, np.float64)
            at, values = at[: len(values)], values[: len(at)]
            # Before the first step there is no loss yet.
            known = np.isfinite(at) & (~np.isnan(values) | ((name == "loss") & (at > 0)))
            if known.any():
                order = np.argsort(at[known], kind="stable")
                found[name] = at[known][order], values[known][order]
        return unit, found

    def last(self, name):
        """The last measurement of a column, of the history if there are no records of it; or `None`."""
        values = self._values(name)
        return float(values[-1]) if len(values) else None

    def usual(self, name):
        """The median of a column, which the first step's compilation does not move; or `None`."""
        values = _finite(self._values(name))
        return float(np.median(values)) if len(values) else None

    @property
    def steps_per_epoch(self):
        """How many steps an epoch has, by the records; or `None`."""
        steps, epochs = (np.asarray(self.records.get(name, ()), np.float64) for name in ("step", "epoch"))
        steps, epochs = steps[: len(epochs)], epochs[: len(steps)]
        known = np.isfinite(steps) & (epochs > 0)
        return float(steps[known][-1] / epochs[known][-1]) if known.any() else None

    def _values(self, name):
        """What was measured of a column; of the loss every row."""
        values = np.asarray(self.records[name] if name in self.records else self.history.get(name, ()), np.float64)
        return values if name == "loss" else values[~np.isnan(values)]

    def _ends(self):
        """When the epochs of the history ended, counted as the records are."""
        count = max(map(len, self.history.values()), default=0)
        return (np.asarray(self.history.get("epoch", np.arange(count)), np.float64) + 1) * (self.steps_per_epoch or 1)


def _finite(values):
    values = np.asarray(() if values is None else values, np.float64)
    return values[np.isfinite(values)]


def read_records(path):
    """Columns of a `records.csv`.

    A last line without its end is left out: the run was killed while it wrote, and its last number may be cut.

    Args:
        path: The file.

    Returns:
        A dict from a column's name to a float64 array (rows,), NaN where a field is blank; empty for an empty file.

    Raises:
        ValueError: A name twice, a line with more or fewer fields than there are names, or a field that is no number.
        OSError: The file cannot be read.

    Example:

    >>> from pathlib import Path
    >>> _ = Path("records.csv").write_text("step,loss,effective_rank\\n10,4.5,\\n20,4.25,7.5\\n30,4.1")
    >>> keras_issl.report.read_records("records.csv")["effective_rank"]
    array([nan, 7.5])
    """
    text = Path(path).read_text(encoding="utf-8-sig", errors="replace")
    lines = text[: text.rfind("\n") + 1].splitlines()
    header, *rows = [line.split(",") if line.strip() else [] for line in lines] or [[]]
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise ValueError(f"{str(path)!r} should name each column once. Received: {twice!r} twice.")
    table = []
    for number, row in enumerate(rows, 2):
        if not row:
            continue
        if len(row) != len(header):
            raise ValueError(
                f"{str(path)!r} should have {len(header)} fields a line, one a column. "
                f"Received: {len(row)} in line {number}. Delete the line if it was damaged."
            )
        try:
            table.append([float(field) if field else math.nan for field in row])
        except ValueError:
            name, field = next(pair for pair in zip(header, row, strict=True) if not _is_number(pair[1]))
            raise ValueError(
                f"{str(path)!r} should hold numbers. Received: {field[:40]!r} in line {number}, column {name!r}. "
                "Delete the line if it was damaged."
            ) from None
    columns = np.array(table, np.float64).reshape(len(table), len(header)).T
    return dict(zip(header, columns, strict=True))


def _is_number(field):
    try:
        float(field or "nan")
    except ValueError:
        return False
    return True


def duration(seconds):
    """A time in the unit that suits it.

    Example:

    >>> from keras_issl.report.run import duration
    >>> [duration(seconds) for seconds in (4.26, 125, 7_400, 2_000_000)]
    ['4.3 s', '2.1 min', '2.1 h', '23 d']
    """
    units = (("s", 1, 99), ("min", 60, 99 * 60), ("h", 3600, 48 * 3600), ("d", 86400, math.inf))
    unit, length, _ = next(one for one in units if not seconds > one[2])  # NaN neither
    return f"{seconds / length:.{int(seconds < 10 * length)}f} {unit}"
