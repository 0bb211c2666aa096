"""The section `recording` of `tools/benchmark.py`: what a run pays for its guard, its records and its page.

The fits of all contestants take turns in one process, compiled beforehand: one round in the order of `CONTESTANTS`, the
next in the reverse (A B B A ...), so that a machine that slows down meets both sides of a pair alike. Each fit is the
same run: it starts from the same weights, optimizer and seeds.

`epochs` is the finer pairing, for what such fits leave open: within one long fit the callbacks that record see one
epoch and miss the next (A B B A ...), so that neighbours of seconds, not fits of minutes, are compared. What is paid
once a run, the first look and the page, has rows of its own.
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
CONTESTANTS = ("without NaNGuard", "plain", "recorded", "online probe", "checkpoints", "epochs")
PAIRS = (("plain", "without NaNGuard"), ("recorded", "plain"), ("online probe", "plain"), ("checkpoints", "plain"))
# Contestant -> what its own time is called: a part of its fit, held against the rest of that fit.
INSIDE = {"recorded": "inside the callbacks", "checkpoints": "saving, both threads"}
GOAL = 1.02  # time of a recorded fit over a plain one's
ENOUGH = 6  # rounds: of fewer there is no 95 % interval, and the goal is not judged
CLASSES = 10
# name -> recipe, its arguments, images, their side. A fit takes about a minute, where what is paid once, at its start
# and end, counts for more than in a longer run.
CASES = {
    "cpu": {
        "narrow ResNet, 32 px": ("small_images", {"epochs": 10}, 2560, 32),
        "digits, 8 px": ("digits", {}, 1280, 8),
        # Five minutes, for what is done more rarely than once a minute; by `--case long` alone.
        "long: narrow ResNet, 32 px": ("small_images", {"epochs": 32}, 2560, 32),
    },
    "gpu": {"ResNet-18, 32 px": ("small_images", {"encoder": "resnet18", "epochs": 10}, 51200, 32)},
}


def timed(watching, hears=lambda epoch: True):
    """A callback that hands its hooks on to others and adds up the seconds that they take.

    Args:
        watching: The other callbacks.
        hears: Whether they hear of an epoch; the hooks at the ends of a fit they hear in any case.
    """
    import keras

    class Timed(keras.callbacks.Callback):
        inside, epoch = 0.0, 0

        def set_params(self, params):
            super().set_params(params)
            for callback in watching:
                callback.set_params(params)

        def set_model(self, model):
            super().set_model(model)
            for callback in watching:
                callback.set_model(model)

        def hand(self, name, *arguments, always=False):
            if always or hears(self.epoch):
                began = time.perf_counter()
                for callback in watching:
                    getattr(callback, name)(*arguments)
                self.inside += time.perf_counter() - began

        def on_train_begin(self, logs=None):
            self.hand("on_train_begin", logs, always=True)

        def on_train_end(self, logs=None):
            self.hand("on_train_end", logs, always=True)

        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch
            self.hand("on_epoch_begin", epoch, logs)

        def on_epoch_end(self, epoch, logs=None):
            self.hand("on_epoch_end", epoch, logs)

        def on_train_batch_begin(self, batch, logs=None):
            self.hand("on_train_batch_begin", batch, logs)

        def on_train_batch_end(self, batch, logs=None):
            self.hand("on_train_batch_end", batch, logs)

    return Timed()


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
        """Seconds of one fit and of all cores in it; of the first look, and inside all that records or saves."""
        import keras

        from keras_issl import callbacks
        from keras_issl.pretraining import pretrainer

        name = who if who in self.models else "plain"
        model, recorder, looks, watching, own, saving = self.models[name], None, [], [], None, None
        self.starts[name].restore(model)
        # The same `fit` with a callback that does nothing where it puts its guard.
        guard = keras.callbacks.Callback if who == "without NaNGuard" else callbacks.NaNGuard
        with tempfile.TemporaryDirectory() as folder, mock.patch.object(pretrainer, "NaNGuard", guard):
            if who == "recorded":
                recorder = callbacks.Recorder(Path(folder) / "records.csv")
                after = keras.callbacks.LambdaCallback(on_epoch_begin=lambda *_: looks.append(recorder.seconds))
                others = [callbacks.CollapseGuard(recorder), callbacks.Progress(recorder, io.StringIO())]
                own = timed([recorder, *others])
                watching = [own, after]
            if who == "checkpoints":
                saving = callbacks.Checkpoint(Path(folder) / "checkpoints")
                watching = [saving]
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
        inside = 0.0 if own is None else own.inside
        inside += 0.0 if saving is None else saving.seconds + saving.written_seconds
        recording = 0.0 if recorder is None else recorder.seconds
        look = looks[0] if looks else 0.0
        return {"seconds": seconds, "cpu": used, "look": look, "inside": inside, "own": recording}

    def epochs(self, count):
        """Seconds of pairs of epochs of one fit of `count` epochs, a multiple of 4, and 4 to warm up.

        Each is [with the callbacks of `fit("recorded")`, without, what passed inside them in the epoch with them]; the
        hooks at the ends of the fit are theirs in any case.
        """
        import keras

        from keras_issl import callbacks

        model = self.models["plain"]
        self.starts["plain"].restore(model)
        seconds, inside = [], []
        with tempfile.TemporaryDirectory() as folder:
            recorder = callbacks.Recorder(Path(folder) / "records.csv")
            watching = [recorder, callbacks.CollapseGuard(recorder), callbacks.Progress(recorder, io.StringIO())]

            every = timed(watching, hears=lambda epoch: epoch % 4 in (0, 3))
            clock = []

            def begin(*_):
                clock[:] = [time.perf_counter(), every.inside]

            def end(*_):
                seconds.append(time.perf_counter() - clock[0])
                inside.append(every.inside - clock[1])

            first = keras.callbacks.LambdaCallback(on_epoch_begin=begin)
            last = keras.callbacks.LambdaCallback(on_epoch_end=end)
            gc.collect()
            epochs = {"epochs": count + 4, "callbacks": [first, every, last], "verbose": 0}
            model.fit(self.data, batch_size=self.recipe.batch_size, **epochs)
        firsts = range(4, count + 4, 4)
        triples = (
            [(seconds[i], seconds[i + 1], inside[i]), (seconds[i + 3], seconds[i + 2], inside[i + 3])] for i in firsts
        )
        return [triple for pair in triples for triple in pair]

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
        if isinstance(order, int):
            say(fits.epochs(order))
        else:
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
            if not any(part in case and (part.startswith("long") or "long" not in case) for part in options.case):
                continue
            process = contestant("recording", backend, case, options.gpu)
            try:
                who = [name for name in CONTESTANTS if name in options.who and name != "epochs"]
                orders = (json.dumps(who), json.dumps(who[::-1]))
                rounds = [process.ask(orders[turn % 2]) for turn in range(options.rounds if who else 0)]
                pairs = process.ask(json.dumps(4 * options.rounds)) if "epochs" in options.who else []
                page = process.ask(json.dumps("page")) if "recorded" in who else None
            finally:
                process.close()
            facts = process.facts
            if rounds:
                yield from rows_of(rounds, f"{case}, {facts['steps']} steps of {facts['batch']}", backend, row)
            if pairs:
                yield from rows_of_pairs(pairs, case, backend, row)
            yield row("recording", f"{case}: first look, once a run", backend, facts["look"], "s")
            if page is not None:
                yield row("recording", f"{case}: the page, once a run", backend, page, "s")


def rows_of_pairs(triples, case, backend, row):
    """Rows of `Fits.epochs`: the sum of the recorded epochs over that of the plain ones, and the callbacks' own time.

    A ratio of sums, because looks at the features are rare and a median would not see them; its 95 % interval is a
    bootstrap's over the pairs. Time inside the callbacks needs no pair and has little noise, and it is all there is
    where steps are synchronous, as on a CPU.
    """
    found = np.array(triples)  # (pairs, 3)
    chosen = np.random.default_rng(0).integers(0, len(found), (10_000, len(found)))
    parts = ("recorded / plain", 0, 0.0), ("1 + time inside the callbacks / plain", 2, 1.0)
    for name, column, offset in parts:
        sums = found[chosen][..., [column, 1]].sum(axis=1)  # (10000, 2)
        ratio = offset + found[:, column].sum() / found[:, 1].sum()
        case_name = f"{case}: {len(found)} pairs of epochs, sums"
        goal = GOAL if len(found) >= ENOUGH else None
        made = row(
            "recording", case_name, f"{backend}, {name}", found[:, column].mean(), "s", ratio, goal, at_most=True
        )
        yield made | {"interval": tuple(np.quantile(offset + sums[:, 0] / sums[:, 1], (0.025, 0.975)).tolist())}


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
    for who in INSIDE.keys() & rounds[0].keys():
        # Two parts of one fit: no noise between fits enters. All that is paid, where steps are synchronous as on a CPU.
        ratios = [1 + r[who]["inside"] / (r[who]["seconds"] - r[who]["inside"]) for r in rounds]
        goal = GOAL if len(rounds) >= ENOUGH else None
        name, ratio = f"{backend}, fit / all of it but {INSIDE[who]}", statistics.median(ratios)
        inside = row("recording", case, name, seconds(who, "inside"), "s", ratio, goal, at_most=True)
        yield inside | {"interval": median_interval(ratios)}
    if not {"recorded", "plain"} <= rounds[0].keys():
        return
    # Steadier on a busy machine, and too low: a callback keeps one core busy and the others waiting.
    yield pair(f"{case}: CPU time", "recorded", "plain", "cpu")
    yield row("recording", f"{case}: Recorder.seconds", f"{backend}, recorded", seconds("recorded", "own"), "s")
