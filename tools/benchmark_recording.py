"""The section `recording` of `tools/benchmark.py`: what a run pays for its guard, its records and its page.

The fits of all contestants take turns in one process, compiled beforehand: one round in the order of `CONTESTANTS`, the
next in the reverse (A B B A ...), so that a machine that slows down meets both sides of a pair alike. Each fit is the
same run: it starts from the same weights, optimizer and seeds.
"""

import gc
import io
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np

# Pairs stand side by side: the fit with and without its guard, the fit without and with its records.
CONTESTANTS = ("without NaNGuard", "plain", "recorded", "online probe")
PAIRS = (("plain", "without NaNGuard"), ("recorded", "plain"), ("online probe", "plain"))
GOAL = 1.02  # time of a recorded fit over a plain one's
ENOUGH = 6  # rounds: of fewer there is no 95 % interval, and the goal is not judged
CLASSES = 10
# name -> recipe, its arguments, images, their side. A fit takes about a minute, where what is paid once, at its start
# and end, counts for more than in a longer run.
CASES = {
    "cpu": {
        "narrow ResNet, 32 px": ("small_images", {"epochs": 10}, 2560, 32),
        "digits, 8 px": ("digits", {}, 1280, 8),
    },
    "gpu": {"ResNet-18, 32 px": ("small_images", {"encoder": "resnet18", "epochs": 10}, 51200, 32)},
}


class Fits:
    """The run of a case, with and without what it records.

    Args:
        case: Key of `CASES["cpu"]` or of `CASES["gpu"]`.
        gpu: Whether there is one.

    Attributes:
        facts: Steps and batch size of a fit; seconds of the recorder's first look with what it compiles.
    """

    def __init__(self, case, gpu):
        from keras_issl import callbacks, datasets, recipes

        kind, changes, count, side = CASES["gpu" if gpu else "cpu"][case]
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (count, side, side, 3), dtype="uint8")
        self.data = datasets.load((images, rng.integers(0, CLASSES, count)), verbose=False)
        self.recipe = getattr(recipes, kind)("dissl", **changes)
        self.models, self.starts = {}, {}
        for name, classes in (("plain", None), ("online probe", CLASSES)):
            model = recipes.build(self.recipe, count, online_probe=classes)
            model.optimizer.build(model.trainable_variables)
            self.models[name], self.starts[name] = model, callbacks.Snapshot(model)
        look = self.fit("recorded", epochs=1)["look"]  # the first fit of the process, as in a run
        self.fit("online probe", epochs=1)
        batch = self.recipe.batch_size
        self.facts = {"steps": count // batch * self.recipe.epochs, "batch": batch, "look": look}

    def fit(self, who, epochs=None):
        """Seconds of one fit and of all cores in it; of the recorder's first look, and of all its work (0 without)."""
        import keras

        from keras_issl import callbacks
        from keras_issl.pretraining import pretrainer

        name = who if who in self.models else "plain"
        model, recorder, looks, watching = self.models[name], None, [], []
        self.starts[name].restore(model)
        # The same `fit` with a callback that does nothing where it puts its guard.
        guard = keras.callbacks.Callback if who == "without NaNGuard" else callbacks.NaNGuard
        with tempfile.TemporaryDirectory() as folder, mock.patch.object(pretrainer, "NaNGuard", guard):
            if who == "recorded":
                recorder = callbacks.Recorder(Path(folder) / "records.csv")
                after = keras.callbacks.LambdaCallback(on_epoch_begin=lambda *_: looks.append(recorder.seconds))
                watching = [recorder, callbacks.CollapseGuard(recorder), callbacks.Progress(recorder, io.StringIO())]
                watching.append(after)
            gc.collect()
            began, used = time.perf_counter(), time.process_time()
            model.fit(
                self.data,
                batch_size=self.recipe.batch_size,
                epochs=epochs or self.recipe.epochs,
                callbacks=watching,
                verbose=0,
            )
            seconds, used = time.perf_counter() - began, time.process_time() - used
        own = 0.0 if recorder is None else recorder.seconds
        return {"seconds": seconds, "cpu": used, "look": looks[0] if looks else 0.0, "own": own}

    def page(self):
        """Seconds of the page at the end of the run, with what it compiles."""
        from keras_issl import runs
        from keras_issl.runs.page import write_page

        with tempfile.TemporaryDirectory() as folder:
            result = runs.pretrain(self.recipe, self.data, Path(folder) / "run", page=False, verbose=False)
            began = time.perf_counter()
            write_page(result.folder, model=result.model, data=self.data)
            return time.perf_counter() - began


def worker(case, gpu, say):
    """A process of one backend: sets up, says its facts, then fits in the order that each line on stdin says."""
    fits = Fits(case, gpu)
    say(fits.facts)
    for line in sys.stdin:
        order = json.loads(line)
        say(fits.page() if order == "page" else {who: fits.fit(who) for who in order})


def median_interval(values, level=0.95):
    """The narrowest pair of order statistics with the median between them in at least `level` of samples.

    It is the inversion of the sign test and supposes nothing of the values' distribution. Fewer than six values say too
    little for 95 %: then it is their range.

    Args:
        values: Independent numbers.
        level: The coverage asked for.

    Returns:
        A pair: the lower and the upper end.

    Example:

    >>> median_interval([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8])
    (1.1, 1.7)
    """
    values, cut = sorted(values), 0
    outside = [2 * math.comb(len(values), k) / 2 ** len(values) for k in range(len(values) // 2)]
    while cut + 1 < len(outside) and sum(outside[: cut + 2]) <= 1 - level:
        cut += 1
    return values[cut], values[-1 - cut]


def measure_recording(options, backends, contestant, row):
    """Rows of the section `recording`: the time of a fit over that of the same fit without, pair by pair."""
    for backend in backends:
        if backend == "jax" and not options.gpu:
            print("recording: jax is left out on a CPU, where XLA's convolutions take a step of seconds to minutes")
            continue
        for case in CASES["gpu" if options.gpu else "cpu"]:
            if not any(part in case for part in options.case):
                continue
            process = contestant("recording", backend, case, options.gpu)
            try:
                who = [name for name in CONTESTANTS if name in options.who]
                orders = (json.dumps(who), json.dumps(who[::-1]))
                rounds = [process.ask(orders[turn % 2]) for turn in range(options.rounds)]
                page = process.ask(json.dumps("page"))
            finally:
                process.close()
            facts = process.facts
            yield from rows_of(rounds, f"{case}, {facts['steps']} steps of {facts['batch']}", backend, row)
            yield row("recording", f"{case}: first look, once a run", backend, facts["look"], "s")
            yield row("recording", f"{case}: the page, once a run", backend, page, "s")


def rows_of(rounds, case, backend, row):
    """Rows of one case; `rounds` are dicts, contestant -> what `Fits.fit` returns."""

    def seconds(who, what="seconds"):
        return statistics.median(found[who][what] for found in rounds)

    def pair(case, who, base, what="seconds", goal=None):
        ratios = [found[who][what] / found[base][what] for found in rounds]
        label, ratio = f"{backend}, {who} / {base}", statistics.median(ratios)
        found = row("recording", case, label, seconds(who, what), "s", ratio, goal, at_most=True)
        return found | {"interval": median_interval(ratios)}

    first = next(iter(rounds[0]))
    yield row("recording", case, f"{backend}, {first}", seconds(first), "s")
    for who, base in PAIRS:
        if not {who, base} <= rounds[0].keys():
            continue
        yield pair(case, who, base, goal=GOAL if who == "recorded" and len(rounds) >= ENOUGH else None)
    if not {"recorded", "plain"} <= rounds[0].keys():
        return
    # Steadier on a busy machine, and too low: a callback keeps one core busy and the others waiting.
    yield pair(f"{case}: CPU time", "recorded", "plain", "cpu")
    yield row("recording", f"{case}: Recorder.seconds", f"{backend}, recorded", seconds("recorded", "own"), "s")
