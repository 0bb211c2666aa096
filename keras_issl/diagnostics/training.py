"""`judge_training`: what the records of a run say, as plain verdicts with their evidence and the knob to turn."""

import math

import numpy as np

from keras_issl.diagnostics import training_collapses as collapses
from keras_issl.diagnostics import training_judges as judges
from keras_issl.diagnostics.judges import LEVELS
from keras_issl.diagnostics.training_records import COLLAPSES, Run, TrainingVerdict

LEAST_ROWS = 5  # to judge a run: of fewer a state that holds for three cannot be told from the start
JUDGES = (
    judges.diverged,
    judges.no_augmentation,
    collapses.teacher,
    collapses.codes,
    collapses.spread,
    collapses.redundancy,
    collapses.contrast,
    judges.directions,
    judges.learning,
    collapses.classes,
    judges.invariance,
    judges.probe,
    judges.slow_input,
)
AT_ONCE = ("diverged", "no_augmentation", "no_learning_rate", "slow_input")  # facts, however short the run is
UNTRAINED = ("few_classes", "uncertain", "not_invariant", "probe_at_chance", "few_directions")  # as at the start
EXPLAINED = ("chance", "flat", "changing_classes", *UNTRAINED)  # by a collapse or a divergence
FINAL = (  # column -> its words among the final numbers of a good run
    ("online_top1", "online top-1 {:.3g}"),
    ("within_between", "within / between {:.3g}"),
    ("effective_rank", "effective rank {:.3g}"),
    ("effective_classes", "{:.3g} classes in a batch"),
    ("alignment", "cosine of two views {:.3g}"),
    ("feature_std", "feature_std {:.3g}"),
    ("images_per_second", "{:,.0f} images a second"),
)


def judge_training(records, *, objective=None, config=None, batch_size=None, online_classes=None):
    """Says what is good and what is wrong with a training run, from what it recorded.

    Args:
        records: Column name -> values, (rows,), in the order of training; NaN where not measured. Known columns are
            `step`, `loss`, what the objective declares in `log_names`, `learning_rate`, `images_per_second`,
            `input_share`, `online_top1`, `effective_rank` and `within_between`; any may be missing, others are ignored.
        objective: Name of the objective, e.g. `"DISSL"` or `"barlow_twins"`; `None` for one's own, which is judged by
            what every run records.
        config: Its `get_config()`: the number of classes, the weights and temperatures that closed forms need.
        batch_size: Images of a global batch; the loss at chance of contrastive objectives follows from it.
        online_classes: Classes of the online probe.

    Returns:
        A tuple of `TrainingVerdict`s, problems first; of a run without any problem or warning, one that is good. With
        fewer than five rows, or while the learning rate still warms up, one says that it is too early: only what needs
        no patience stands beside it.

    Raises:
        ValueError: Columns that are not numbers, not one-dimensional or of different lengths.

    Source: the signatures of collapse follow from the losses; their docstrings in `keras_issl.losses` state them.

    Example:

    >>> uniform = {"step": np.arange(10, 110, 10), "loss": np.full(10, -0.5 * np.log(32))}
    >>> uniform |= {"marginal_entropy": np.full(10, np.log(32)), "conditional_entropy": np.full(10, np.log(32))}
    >>> config = {"num_classes": 32, "maximality_weight": 2.3, "invariance_weight": 0.8}
    >>> found = judge_training(uniform, objective="DISSL", config=config)[0]
    >>> found.kind, found.since, found.collapsed
    ('uniform_teacher', 10, True)
    """
    run = Run(records, objective=objective, config=config, batch_size=batch_size, online_classes=online_classes)
    with np.errstate(invalid="ignore", over="ignore"):
        found = [verdict for judge in JUDGES for verdict in judge(run)]
    found = _without_consequences(found, run)
    early = _too_early(run)
    if early:
        # A state of the first rows may be the start; one that began later has happened.
        found = [v for v in found if v.kind in AT_ONCE or (v.collapsed and v.since > run.steps[0])]
        found.append(TrainingVerdict("warning", "Too early to judge", early, "", "early"))
    if not found:
        found = [TrainingVerdict("good", "No collapse and no divergence found", _final(run), "", "good")]
    return tuple(sorted(found, key=lambda verdict: LEVELS.index(verdict.level)))


def _too_early(run):
    """Why it is too early to judge; empty if it is not."""
    if run.rows < LEAST_ROWS:
        return f"{run.rows} rows of records; from {LEAST_ROWS} on a state can be told from the start."
    rate = run.finite("learning_rate")
    if len(rate) > 1 and rate[-1] > rate[-2] and rate[-1] >= rate.max():
        return f"The learning rate still warms up: {rate[-1]:.3g} at step {int(run.steps[-1]):,}."
    return ""


def _without_consequences(found, run):
    """Leaves out what follows from something worse: a collapsed or diverged run is also flat, at chance, ..."""
    worst = [v for v in found if v.level == "problem" and v.kind in ("diverged", "no_learning_rate", *COLLAPSES[:4])]
    collapsed = [v for v in worst if v.collapsed]
    if collapsed:
        # A collapse that lasts ends any rise of the loss, and views of equal features are equal, too.
        start = run.steps[0] if run.rows else 0
        from_start = any(v.since == start for v in collapsed)
        out = ("diverged",) + (("no_augmentation",) if from_start and not run.has("within_between") else ())
        found = [v for v in found if v.kind not in out or (v.kind == "diverged" and not math.isfinite(run["loss"][-1]))]
    if worst:
        found = [v for v in found if v.kind not in EXPLAINED]
    if any(v.kind == "chance" for v in found):
        found = [v for v in found if v.kind != "flat"]
    if any(v.kind == "flat" for v in found):
        found = [v for v in found if v.kind not in UNTRAINED]
    worst_first = sorted(found, key=lambda verdict: LEVELS.index(verdict.level))
    return [v for n, v in enumerate(worst_first) if v.kind not in {u.kind for u in worst_first[:n]}]  # one of a kind


def _final(run):
    """The final numbers of a run, in words."""
    parts = [f"{run.rows:,} rows, {int(run.steps[-1]):,} steps"] if run.rows else []
    if run.has("loss"):
        parts.append(f"loss {run.first('loss'):.4g} -> {run.last('loss'):.4g}")
    parts += [text.format(run.last(name)) for name, text in FINAL if run.has(name)]
    return "; ".join(parts) + "."
