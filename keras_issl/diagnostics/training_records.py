"""What verdicts on a training run are made of: its records as columns, and how long a state has held in them."""

import dataclasses
import math

import numpy as np

from keras_issl.diagnostics.judges import Verdict
from keras_issl.diagnostics.knobs import official_name

PERSIST = 3  # rows that a state has to hold: a single row is a few steps, whose means scatter
TAIL = 3  # rows whose mean stands for now
TELLS = 0.15  # H(M) - H(M|Z), what the class tells about the image: untrained heads have 0.3, healthy runs end at 2
COLLAPSES = ("uniform_teacher", "one_class", "constant_teacher", "same_features", "few_directions")


@dataclasses.dataclass(frozen=True)
class TrainingVerdict(Verdict):
    """A plain judgement of a training run: a `Verdict` that also says what kind it is and since when.

    Attributes:
        kind: what is the case, in one word. Collapses: `"uniform_teacher"`, `"one_class"`, `"constant_teacher"`,
            `"same_features"`, `"few_directions"`. Other states: `"diverged"`, `"no_augmentation"`,
            `"no_learning_rate"`, `"flat"`, `"chance"`, `"not_invariant"`, `"uncertain"`, `"few_classes"`,
            `"changing_classes"`, `"probe_at_chance"`, `"slow_input"`, `"early"`, `"good"`.
        since: the training step from which on it has held without a break; `None` where it is over, or where no step
            can be named.

    Example:

    >>> records = {"step": [10, 20, 30, 40, 50], "loss": [3.0, 2.5, 2.2, float("nan"), float("nan")]}
    >>> found = keras_issl.diagnostics.judge_training(records)[0]
    >>> found.kind, found.since, found.collapsed
    ('diverged', 40, False)
    """

    kind: str = ""
    since: int | None = None

    @property
    def collapsed(self):
        """Whether the representation has collapsed: the run, as it is, need not go on."""
        return self.level == "problem" and self.kind in COLLAPSES


@dataclasses.dataclass(frozen=True)
class Held:
    """How long a state has held.

    Attributes:
        since: step of the first row of the final stretch in which it holds; `None` if it does not hold at the end.
        rows: rows of that stretch.
        whole: whether it has held from the first row on.
        before: [(step, step)] of earlier stretches of at least `PERSIST` rows that began within the run.
    """

    since: int | None
    rows: int
    whole: bool
    before: list


class Run:
    """The records of a run, as the judges read them.

    Args:
        records: Column name -> values, one a row, in the order of training; NaN where not measured.
        objective: Name of the objective, or `None`.
        config: Its `get_config()`, or `None`.
        batch_size: Images of the global batch, or `None`.
        online_classes: Classes of the online probe, or `None`.

    Raises:
        ValueError: Columns that are not numbers, not one-dimensional or of different lengths.

    Example:

    >>> run = Run({"step": [10, 20, 30], "loss": [2.0, np.nan, 1.0]})
    >>> run.last("loss"), run.held(run["loss"] < 1.5, "loss").since
    (1.0, 30)
    """

    def __init__(self, records, *, objective=None, config=None, batch_size=None, online_classes=None):
        self.columns = {name: _column(name, values) for name, values in records.items()}
        lengths = {name: len(values) for name, values in self.columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"`records` should hold columns of one length. Received lengths: {lengths}.")
        self.rows = max(lengths.values(), default=0)
        steps = self.columns.get("step", np.full(self.rows, np.nan))
        self.steps = np.where(np.isfinite(steps), steps, np.arange(1, self.rows + 1))
        if "step" in self.columns:  # a resumed run may have written rows of the same steps twice: the later ones count
            order = np.argsort(self.steps, kind="stable")
            order = order[np.append(np.diff(self.steps[order]) > 0, True)[: self.rows]]
            self.columns = {name: values[order] for name, values in self.columns.items()}
            self.steps, self.rows = self.steps[order], len(order)
        self.given, self.name = objective, None if objective is None else official_name(objective)
        self.config, self.batch_size, self.online_classes = dict(config or {}), batch_size, online_classes

    def __getitem__(self, name):
        """The column, (rows,); NaN where there is none."""
        return self.columns.get(name, np.full(self.rows, np.nan))

    def measured(self, *names):
        """(rows,) of booleans: where all of these columns have a finite number."""
        return np.logical_and.reduce([np.ones(self.rows, bool), *(np.isfinite(self[name]) for name in names)])

    def has(self, *names):
        """Whether some row has all of these columns."""
        return bool(np.any(self.measured(*names)))

    def finite(self, name):
        """The finite values of a column."""
        return self[name][np.isfinite(self[name])]

    def first(self, name):
        """The first finite value, or NaN."""
        values = self.finite(name)
        return float(values[0]) if len(values) else math.nan

    def last(self, name):
        """The last finite value, or NaN."""
        values = self.finite(name)
        return float(values[-1]) if len(values) else math.nan

    def tail(self, name):
        """The mean of the last `TAIL` finite values, or NaN."""
        values = self.finite(name)
        return float(np.mean(values[-TAIL:])) if len(values) else math.nan

    def highest(self, name):
        """(largest finite value, step of its row) of a column that has one."""
        rows = np.flatnonzero(self.measured(name))
        index = rows[np.argmax(self[name][rows])]
        return float(self[name][index]), int(self.steps[index])

    def number(self, name, default=None):
        """A number of the objective's configuration."""
        value = self.config.get(name, default)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else default

    def at(self, name, step):
        """A column's value in the first row from this step on that has one, or NaN."""
        values = self[name][(self.steps >= step) & np.isfinite(self[name])]
        return float(values[0]) if len(values) else math.nan

    def held(self, condition, *of, persist=PERSIST):
        """How long a condition, (rows,) of booleans, has held in those rows that have the columns `of`."""
        rows = np.flatnonzero(self.measured(*of))
        holds = np.asarray(condition)[rows]
        edges = np.flatnonzero(np.diff(np.concatenate([[False], holds, [False]]).astype(int)))
        stretches = list(zip(edges[::2], edges[1::2] - 1, strict=True))  # (first, last) of `rows`
        final = stretches.pop() if stretches and stretches[-1][1] == len(rows) - 1 else None
        step = lambda index: int(self.steps[rows[index]])  # noqa: E731
        before = [(step(a), step(b)) for a, b in stretches if b - a + 1 >= persist and a > 0]
        if final is None:
            return Held(None, 0, False, before)
        return Held(step(final[0]), int(final[1] - final[0] + 1), bool(final[0] == 0), before)


def _column(name, values):
    try:
        column = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise ValueError(f"`records[{name!r}]` should hold numbers, NaN where not measured.") from None
    if column.ndim != 1:
        raise ValueError(f"`records[{name!r}]` should have one axis. Received shape: {column.shape}.")
    return column


def state(run, held, kind, level, title, evidence, advice, *, persist=PERSIST, passing=True):
    """The verdict on a state that holds at the end; a warning where it only held for a while.

    Args:
        run: The `Run`.
        held: Its `Held`.
        kind: As `TrainingVerdict.kind`.
        level: Where it holds at the end.
        title: What is the case.
        evidence: The numbers of now.
        advice: The knob to turn.
        persist: Rows that it has to hold for.
        passing: Whether one that is over is worth a word; not where healthy runs pass through it.
    """
    if held.since is not None and held.rows >= min(persist, run.rows):
        yield TrainingVerdict(level, title, evidence, advice, kind, held.since)
    elif passing and held.before:
        first, last = held.before[-1]
        yield TrainingVerdict(
            "warning",
            f"For a while: {title[0].lower()}{title[1:]}",
            f"Between steps {first:,} and {last:,}; since then no more.",
            f"Nothing, if it stays away. Otherwise: {advice[0].lower()}{advice[1:]}" if advice else "",
            kind,
        )
