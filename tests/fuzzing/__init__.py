"""Hostile presets and checkpoints: makes them, has them read in a process apart, and says what was broken.

Case `number` of `seed` is always the same: a fresh copy of a sound preset or checkpoint, one mutation, one reader.
A mutated preset either keeps its old hashes, as damage does (stale), or has them recorded anew, as somebody would who
means harm (signed). Whatever the file, a reader may succeed or raise a `ValueError` of ours. It may not raise anything
else, hang, take half a gigabyte, touch what lies outside of the case's folder, or read what a stale hash should have
caught; nor may it bring the process down, so a `worker` reads and its parent, `run`, looks on.

`presets` and `checkpoints` hold one function a kind of mutation, `sandbox` the place and the watch.
"""

import contextlib
import dataclasses
import faulthandler
import gc
import hashlib
import json
import os
import queue
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

import numpy as np

from fuzzing import checkpoints, presets  # which fill MUTATIONS
from fuzzing.sandbox import MUTATIONS, ROOT, Box, Watch, canaries, measured, snapshot

TAG = "@@fuzz "  # before what a worker says to its parent: libraries print too
TARGETS = ("preset", "checkpoint")
SECONDS = 20  # that a case may take
GRACE = 30  # more, for what a signal does not interrupt, until the parent ends the worker
BATCH = 250  # cases a worker
MEMORY = 512 << 20  # that a case may take at its peak
ADDRESSES = 8 << 30  # that a worker may ask for: the second net
MESSAGE = 4000  # characters an error may have and still be read
QUIET = {  # no word of TensorFlow's; XLA compiles many small models once, which unoptimised takes a fifth of the time
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
}
ALONE = {"JAX_ENABLE_COMPILATION_CACHE": "false"}  # a cache kept in files would be files that a reader opens
PATHS = [str(ROOT), str(ROOT / "tests")]
WORKER = f"import sys; sys.path[:1] = {PATHS!r}; import fuzzing; fuzzing.worker(*sys.argv[1:])"


@dataclasses.dataclass
class Outcome:
    """What came of one case: `result` is "refused", "read" or "died", `violations` what should not have happened."""

    number: int
    target: str
    kind: str
    mode: str = ""
    action: str = ""
    result: str = ""
    message: str = ""
    seconds: float = 0.0
    peak: int = 0  # bytes beyond what the process had before
    violations: list = dataclasses.field(default_factory=list)


def plan(seed, number, only=None):
    """(target, kind, generator) of a case: the kinds take turns, each case draws the rest."""
    kinds = [pair for pair in MUTATIONS if only in (None, pair[0])]
    order = np.random.default_rng([seed, number // len(kinds)]).permutation(len(kinds))
    return *kinds[order[number % len(kinds)]], np.random.default_rng([seed, number, 1])


class Hang(BaseException):
    """The case took too long: no `except Exception` keeps it."""


@contextlib.contextmanager
def limited():
    """Raises `Hang` in what takes too long."""

    def alarm(number, frame):
        raise Hang

    old = signal.signal(signal.SIGALRM, alarm)
    try:
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def sign(folder, touched):
    """Records the hashes of the files as they are now, wherever metadata still hold some."""
    path = folder / "metadata.json"
    if touched == path.name or path.is_symlink() or not path.is_file():
        return
    metadata = json.loads(path.read_text())
    for name, entry in metadata["files"].items():
        file = folder / name
        if file.is_file() and file.stat().st_size < 1 << 26:
            entry |= {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "bytes": file.stat().st_size}
    path.write_text(json.dumps(metadata))


class Bench:
    """Sound originals, a place for cases, and what the originals give when they are read."""

    READERS = {  # of a preset -> the files that one reads
        "read_metadata": (),
        "from_preset": ("config.json", "model.weights.h5"),
        "from_preset, verify": ("config.json", "model.weights.h5", "golden.npz"),
        "from_preset, no weights": ("config.json",),
        "load_objective": ("objective.json", "objective.weights.h5"),
    }
    CHANCES = {  # of these readers, for what was touched: mostly one that reads it
        "golden.npz": (0, 0.1, 0.9, 0, 0), "objective.json": (0, 0, 0, 0, 1),
        "objective.weights.h5": (0, 0.05, 0, 0, 0.95), "config.json": (0, 0.6, 0.2, 0.2, 0),
        "model.weights.h5": (0, 0.85, 0.15, 0, 0), "metadata.json": (0.4, 0.2, 0.1, 0.1, 0.2),
    }  # fmt: skip

    def __init__(self, place):
        import keras

        import keras_issl
        from keras_issl import encoders, objectives
        from keras_issl.zoo import conversion

        self.place, self.kit, self.outside = place, place / "kit", place / "cases" / "outside"
        self.outside.mkdir(parents=True)
        (place / "cwd").mkdir()
        numbers = {"preset": {"stem": "cifar"}, "other": {"stem": "strided", "mean": 0.5, "std": 0.25}}
        for name, options in numbers.items():  # the same shapes, other numbers
            encoder = encoders.ResNet(blocks=(1,), width=8, image_size=12, **options)
            objective = objectives.DISSL(num_classes=12, teacher_hidden=(16,), bottleneck=8)
            keras_issl.Pretrainer(encoder, objective)
            keras_issl.save_preset(encoder, self.kit / name, objective=objective, results=[{"top-1": 0.5}])
        (self.kit / "checkpoint").mkdir()
        network = encoders.ResNet(blocks=(1, 1), width=4, image_size=12, stem="cifar")
        state = {k: checkpoints.torch.tensor(v, device="cpu") for k, v in conversion.state_dict(network).items()}
        checkpoints.save(Box(self.kit / "checkpoint", self.outside, self.kit, True), state)
        canaries(self.outside, self.kit / "other")
        self.made = made = []

        @keras.saving.register_keras_serializable(package="fuzz")
        class Registered(keras.layers.Layer):
            """A class that this process knows and no preset may ask for."""

            def __init__(self, *args, **kwargs):
                made.append("an object of a registered class that is on no list")
                super().__init__()

        self.watch = Watch(self.outside)
        sound = self.actions(self.kit / "preset", self.kit / "checkpoint" / "checkpoint.pt", self.kit)
        self.sound = {name: action() for name, action in sound.items()}  # and all that is imported on the way

    def actions(self, folder, checkpoint, out):
        """The readers: name -> what reads, and gives what it read in a form that can be compared."""
        import keras_issl
        from keras_issl.zoo import conversion
        from keras_issl.zoo import format as preset_format

        def encoder(**options):
            model = keras_issl.from_preset(folder, **options)
            config = model.get_config()
            weights = [value.tobytes() for value in model.get_weights()] if options.get("load_weights", True) else []
            return repr(sorted(config.items())), model.dtype_policy.name, weights

        def objective():
            layer = keras_issl.load_objective(folder)
            return repr(sorted(layer.get_config().items())), [value.tobytes() for value in layer.get_weights()]

        def state():
            found, _ = conversion.read_checkpoint(checkpoint)
            conversion.infer_config(found, image_size=12)
            return {name: (value.shape, value.tobytes()) for name, value in found.items()}

        def convert():
            made, _ = conversion.convert(checkpoint, out / "out", image_size=12)
            return [value.tobytes() for value in keras_issl.from_preset(made).get_weights()]

        return {
            "read_metadata": lambda: preset_format.read_metadata(folder) and None, "from_preset": encoder,
            "from_preset, verify": lambda: encoder(verify=True),
            "from_preset, no weights": lambda: encoder(load_weights=False), "load_objective": objective,
            "read_checkpoint": state, "convert": convert,
        }  # fmt: skip

    def run(self, seed, number, only=None, keep=None, action=None):
        """Outcome of one case, as `run` yields it; `action`, a function of the box, tries the rules themselves."""
        target, kind, rng = plan(seed, number, only)
        folder = self.place / "cases" / f"case-{number}"
        shutil.copytree(self.kit / target, folder)
        box = Box(folder, self.outside, self.kit, target == "checkpoint" or bool(rng.random() < 0.7))
        touched = MUTATIONS[target, kind](rng, box)
        if target == "preset":
            reader = str(rng.choice(list(self.READERS), p=self.CHANCES.get(touched, (0.1, 0.4, 0.2, 0.1, 0.2))))
            if box.signed:
                sign(folder, touched)
        else:
            reader = "convert" if rng.random() < 0.15 else "read_checkpoint"
        outcome = Outcome(number, target, kind, "signed" if box.signed else "stale", reader)
        followed = os.path.realpath(box.checkpoint) if kind == "checkpoint kinds" else None
        before = snapshot(folder, self.outside)
        self.made.clear()
        error = result = None
        read = (lambda: action(box)) if action else self.actions(folder, box.checkpoint, folder)[reader]
        with self.watch.case(folder), measured(outcome):
            try:
                with limited():
                    result = read()
            except (Exception, Hang) as caught:  # kept past the clause, to be judged
                error = caught
        if followed:
            names = followed, repr(os.path.basename(followed))  # as Python says it and as the kernel does
            self.watch.events = [e for e in self.watch.events if not any(name in e for name in names)]
        found = [f"it touched what is none of its business: {event}" for event in dict.fromkeys(self.watch.events)]
        found += [*self.made, *self.judge(outcome, box, error, result if action is None else self.sound[reader])]
        if (outcome.action, outcome.result) == ("convert", "read"):
            shutil.rmtree(folder / "out", ignore_errors=True)
        after = snapshot(folder, self.outside)
        if changed := sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k)):
            found.append(f"it changed files: {changed[:5]}")
        if outcome.peak > MEMORY:
            found.append(f"it took {outcome.peak >> 20} MiB")
        outcome.violations = found
        if found and keep is not None:
            shutil.rmtree(kept := Path(keep) / f"seed-{seed}-case-{number}", ignore_errors=True)
            with contextlib.suppress(OSError, shutil.Error):  # sockets cannot be copied
                shutil.copytree(folder, kept, symlinks=True)
        shutil.rmtree(folder, ignore_errors=True)
        for path in (self.outside / "same", box.owned):
            with contextlib.suppress(OSError):
                path.unlink()
        error = None  # its traceback holds what the reader held
        return outcome

    def judge(self, outcome, box, error, result):
        """What is wrong with the outcome itself."""
        if error is None:
            outcome.result = "read"
            if box.hopeless:
                return ["read although no reader should have"]
            changed = [name for name in self.READERS.get(outcome.action, ()) if not self.same(box.folder / name)]
            if outcome.mode == "stale" and changed:
                return [f"read although {', '.join(changed)} changed and the recorded hash did not"]
            if outcome.mode == "stale" and result != self.sound[outcome.action]:
                return ["read, and it gave something else than the original"]
            return []
        text = str(error)
        outcome.result, outcome.message = "refused", f"{type(error).__name__}: {text}"[:2000]
        trace = traceback.extract_tb(error.__traceback__)
        ours = [t for t in trace if Path(t.filename).is_relative_to(ROOT / "keras_issl")]
        where = f"{trace[-1].filename}:{trace[-1].lineno}"
        found = []
        if outcome.kind in ("none", "no change"):
            found.append(f"the unchanged original was refused: {text[:300]}")
        if isinstance(error, Hang):
            return [*found, f"it took more than {SECONDS} s, and was at {where}"]
        if type(error) is not ValueError or ours[-1:] != trace[-1:]:
            by = [f"{Path(t.filename).name}:{t.lineno}" for t in ours[-1:]]
            return [*found, f"{type(error).__name__} of {where} (by {by}), not a ValueError of ours: {text[:300]}"]
        if len(text) > MESSAGE:
            found.append(f"the message has {len(text):,} characters: {text[:200]}")
        if not any(word in text for word in (str(box.folder), *presets.ALL_FILES, "`")):
            found.append(f"the message names neither a file nor an argument: {text[:300]}")
        with contextlib.suppress(UnicodeEncodeError):
            text.encode()
            return found
        return [*found, f"the message cannot be printed: {text[:200]!a}"]

    def same(self, path):
        """Whether a file of a preset has the original's bytes; there may be a terabyte."""
        original = self.kit / "preset" / path.name
        if not path.is_file() or path.stat().st_size != original.stat().st_size:
            return False
        return path.read_bytes() == original.read_bytes()


# ---------------------------------------------------------------------- processes
def say(kind, value):
    print(f"{TAG}{json.dumps([kind, value])}", flush=True)


def worker(seed, first, last, only=None, keep=None, actions=()):
    """Runs cases and says so, one line when one begins and one when it ends.

    The arguments may be strings, as on a command line; `actions` read instead of our readers, in turn.
    """
    import keras

    faulthandler.enable()
    seed, first, last = int(seed), int(first), int(last)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        bench = Bench(Path(place).resolve())
        os.chdir(bench.place / "cwd")
        with contextlib.suppress(OSError, ValueError):  # a system without it has one net less
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESSES, resource.RLIM_INFINITY))
        for number in range(first, last):
            action = actions[number % len(actions)] if actions else None
            say("begin", number)
            say("end", dataclasses.asdict(bench.run(seed, number, only or None, keep or None, action)))
            if number % 50 == 49:
                keras.utils.clear_session()
                gc.collect()


def run(cases, seed, only=None, *, first=0, keep=None, batch=BATCH, command=None):
    """Runs cases in workers, a new one after each batch and after each that died.

    Args:
        cases: Integer, how many.
        seed: Integer.
        only: `"preset"`, `"checkpoint"` or `None` for both.
        first: Integer, number of the first case.
        keep: Folder for the cases that break a rule, or `None`.
        batch: Integer, how many cases a worker runs.
        command: The worker, for trials; `worker` by default.

    Yields:
        An `Outcome` for each case, in order.
    """
    number, end = first, first + cases
    while number < end:
        last = min(number + batch, end)
        with tempfile.TemporaryFile("w+") as errors:
            arguments = map(str, (seed, number, last, only or "", keep or ""))
            process = subprocess.Popen(
                [*(command or [sys.executable, "-c", WORKER]), *arguments],
                stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, env=QUIET | os.environ | ALONE,
            )  # fmt: skip
            begun, why = False, ""
            with contextlib.closing(told(process, lambda: SECONDS + GRACE if begun else 600)) as lines:  # noqa: B023
                try:
                    for kind, value in lines:
                        begun = kind == "begin"
                        if not begun:
                            yield Outcome(**value)
                            number += 1
                except queue.Empty:
                    why = f"it hung for {SECONDS + GRACE} s beyond the reach of signals"
            if number < last:
                errors.seek(0)
                tail = errors.read().strip()[-1500:]
                if not begun:
                    raise RuntimeError(f"The worker ended with status {process.returncode} between cases:\n{tail}")
                target, kind, _ = plan(seed, number, only)
                why = why or f"the process died with status {process.returncode}: {tail}"
                yield Outcome(number, target, kind, result="died", violations=[why])
                number += 1


def told(process, patience):
    """What a worker says, until it ends; `queue.Empty` when it is silent for more than `patience()` seconds.

    When this generator ends, so has the worker.
    """
    lines = queue.Queue()

    def listen():
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    reader = threading.Thread(target=listen)
    reader.start()
    try:
        while (line := lines.get(timeout=patience())) is not None:
            if line.startswith(TAG):
                yield json.loads(line.removeprefix(TAG))
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()
