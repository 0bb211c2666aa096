"""Plain verdicts on any training run: divergence, augmentation, learning rate, directions, invariance, input."""

import math

import numpy as np

from keras_issl.diagnostics.judges import NOT_INVARIANT, percent
from keras_issl.diagnostics.knobs import advice
from keras_issl.diagnostics.training_records import PERSIST, TAIL, TELLS, TrainingVerdict, state

# Each threshold, and why it stands there.
ENOUGH_ROWS = 10  # to say that nothing moves: the first and the last third are then three rows each
ROSE = 1.0  # loss above its start, in nats or of a squared cosine: less is the noise of small batches
FLAT = 0.01  # change of the loss over its start: less than that of any run that learns
SLOW = 0.05  # the same where the features are known not to improve: a learning rate 400 times too low moves it by 4 %
IDENTICAL = 1e-4  # within over between, nats, 1 - cosine: copies differ by rounding; the mildest crops give 0.01
ONE_DIRECTION = 2.0  # effective rank: two directions; an untrained encoder of digits has 90 to 110
RANK_FALL = 0.1  # of the first effective rank: healthy runs keep more than half of it
IMPROVED = 0.9  # of the first within / between: a healthy run falls below this within an epoch or two
TWICE_CHANCE = 2.0  # online top-1 over chance: a probe on raw pixels is above this
ABOVE_CHANCE = 0.1  # the same where classes are few: of the way from chance to 1
FELL = 0.1  # of its start: a loss that has fallen by this much has learnt something
WAITING = 0.3  # share of the wall time that batches take to load: below it, a faster loader buys little
MEASURES = 4  # of the fixed images, to say that they do not get better
SPARSE = 2  # rows that a state of rarely measured columns has to hold for


def diverged(run):
    """Did the loss become NaN, or rise far above its start and stay there?"""
    if "loss" not in run.columns or not run.rows:
        return
    lost = run.held(~np.isfinite(run["loss"]), persist=1)
    slower = "Lower the learning rate, warm it up longer, clip gradients (`clipvalue`)"
    first = "from the first row on" if lost.whole else f"since step {lost.since:,}" if lost.since is not None else ""
    yield from state(
        run,
        lost,
        "diverged",
        "problem",
        "Diverged: the loss is not a number",
        f"NaN or infinite {first}{_rate(run, lost.since)}.",
        f"{slower}; look for images with NaN. Go on from the last checkpoint before it.",
        persist=1,
    )
    if lost.since is not None:
        return
    start, least = run.first("loss"), np.min(run.finite("loss"))
    limit = start + max(ROSE, abs(start), start - least)
    held = run.held(run["loss"] > limit, "loss")
    highest, when = run.highest("loss")
    yield from state(
        run,
        held,
        "diverged",
        "problem",
        "Diverged: the loss is far above its start",
        f"Loss {run.last('loss'):.4g}, {start:.4g} at the start and {least:.4g} at best; at most "
        f"{highest:.4g}, at step {when:,}{_rate(run, held.since)}.",
        f"{slower}.",
    )


def _rate(run, step):
    """`, at a learning rate of 0.4`, where that was recorded."""
    rate = math.nan if step is None else run.at("learning_rate", step)
    return f", at a learning rate of {rate:.3g}" if math.isfinite(rate) else ""


def no_augmentation(run):
    """Are the views of an image copies of each other?"""
    # Classes that tell nothing about the image agree between any two views.
    telling = run["marginal_entropy"] - run["conditional_entropy"] > TELLS
    distances = {  # column -> distance of the views, 0 for copies
        "within_between": run["within_between"],
        "kl_invariance": np.where(telling, run["kl_invariance"], np.nan),
        "alignment": 1.0 - run["alignment"] if run.name == "SimCLR" else np.full(run.rows, np.nan),  # of one head
        "correlation": 1.0 - run["correlation"],
    }
    told = {name: values[np.isfinite(values)] for name, values in distances.items()}
    told = {name: values for name, values in told.items() if len(values)}
    # From the first row on: later, views may have become equal because everything has.
    same = [name for name, values in told.items() if np.all(np.abs(values) < IDENTICAL)]
    if run.measured("within_between").any() and "within_between" not in same:
        return
    if same:
        shown = ", ".join(f"{name} {run.last(name):.3g}" for name in same)
        yield TrainingVerdict(
            "problem",
            "No augmentation: the views of an image are equal",
            f"Since the first row: {shown}. There is nothing to be invariant to.",
            "Pass an `augmentation` to the Pretrainer, e.g. `augmentations.SimCLR(size)`, or a stronger one.",
            "no_augmentation",
            int(run.steps[0]),
        )


def learning(run):
    """Is there a learning rate, and does the loss move?"""
    rates = run.finite("learning_rate")
    if len(rates) >= PERSIST and np.all(rates == 0):
        yield TrainingVerdict(
            "problem",
            "The learning rate is 0",
            f"In all {len(rates)} rows.",
            "Check the schedule: its length and its warm-up are counted in steps, not in epochs.",
            "no_learning_rate",
            int(run.steps[0]),
        )
        return
    loss = run.finite("loss")
    if len(loss) < ENOUGH_ROWS:
        return
    first, last = loss[: len(loss) // 3], loss[-(len(loss) // 3) :]
    change, noise = abs(last.mean() - first.mean()), (first.std() + last.std()) / 2
    ratios = run.finite("within_between")
    better = len(ratios) > 1 and ratios[-1] <= IMPROVED * ratios[0]  # whatever a large constant hides in the loss
    limit = SLOW if len(ratios) > 1 else FLAT
    if not better and change <= max(limit * max(abs(first.mean()), ROSE), noise / 2):
        rate = f" at learning rates of at most {rates.max():.3g}" if len(rates) else ""
        yield TrainingVerdict(
            "warning",
            "The loss has not moved since the beginning",
            f"Loss {first.mean():.4g} in the first third of the rows and {last.mean():.4g} in the last{rate}.",
            "Raise the learning rate, first tenfold; check that the encoder is trainable and that the images differ.",
            "flat",
            int(run.steps[0]),
        )


def directions(run):
    """How many directions do the features of the fixed images use?"""
    rank = run["effective_rank"]
    if not run.has("effective_rank"):
        return
    start = run.first("effective_rank")
    evidence = f"Effective rank of the features {run.last('effective_rank'):.3g}, {start:.3g} at the first measure."
    told = ("Lower the learning rate.", "rank", run.given)
    found = run.held(rank < ONE_DIRECTION, "effective_rank", persist=SPARSE)
    one = list(
        state(
            run,
            found,
            "few_directions",
            "problem",
            "Dimensional collapse: images differ along one direction",
            evidence,
            advice(*told),
            persist=SPARSE,
        )
    )
    yield from one
    if not one:
        fallen = run.held(rank < RANK_FALL * start, "effective_rank", persist=SPARSE)
        title = "Few directions are left of those at the start"
        yield from state(run, fallen, "few_directions", "warning", title, evidence, advice(*told), persist=SPARSE)


def invariance(run):
    """Do the views of an image come together?"""
    if np.count_nonzero(run.measured("within_between")) < MEASURES:
        return
    start, now = run.first("within_between"), run.last("within_between")
    held = run.held(run["within_between"] >= NOT_INVARIANT[0], "within_between", persist=SPARSE)
    if held.since is None or now <= IMPROVED * start:  # on its way
        return
    level = "problem" if now >= NOT_INVARIANT[1] else "warning"
    yield from state(
        run,
        held,
        "not_invariant",
        level,
        "Not invariant: views of one image do not come together",
        f"Mean squared distance of features within images over between images {now:.3g}, {start:.3g} at the first "
        "measure; 0 is invariant, 1 chance.",
        advice("Train longer; use a milder augmentation.", "invariance", run.given),
        persist=SPARSE,
    )


def probe(run):
    """Does the online probe learn while the loss falls?"""
    if not run.online_classes or run.online_classes < 2 or np.count_nonzero(run.measured("online_top1")) < ENOUGH_ROWS:
        return
    chance, top1 = 1 / run.online_classes, run.tail("online_top1")
    limit = min(TWICE_CHANCE * chance, chance + ABOVE_CHANCE * (1 - chance))
    fell = run.first("loss") - run.tail("loss") > FELL * max(abs(run.first("loss")), ROSE)
    if top1 > limit or not fell:
        return
    held = run.held(run["online_top1"] <= limit, "online_top1")
    yield from state(
        run,
        held,
        "probe_at_chance",
        "warning",
        "The online probe is at chance while the loss falls",
        f"Online top-1 {top1:.3g} on augmented training views, chance {chance:.3g}; loss {run.first('loss'):.4g} -> "
        f"{run.last('loss'):.4g}.",
        "Check that labels and images belong together; that the augmentation leaves what the labels name (coarse crops "
        "and colours may not); train longer.",
    )


def slow_input(run):
    """Does the device wait for images?"""
    values = run.finite("input_share")[1:]  # the first batches fill the buffers
    if len(values) < PERSIST or run.tail("input_share") <= WAITING:
        return
    held = run.held(run["input_share"] > WAITING, "input_share")
    speed = run.tail("images_per_second")
    images = f"; {speed:,.0f} images a second" if math.isfinite(speed) else ""
    if math.isfinite(delivered := run.tail("input_images_per_second")):
        images += f", and reading and decoding delivers {delivered:,.0f}"
    yield from state(
        run,
        held,
        "slow_input",
        "warning",
        "Slow input: the device waits for images",
        f"Loading takes {percent(run.tail('input_share'))} of the wall time (mean of the last {TAIL} rows){images}.",
        "Keep the decoded images in memory (`memory_limit`); store smaller images; more cores. docs/input.md.",
    )
