"""Faults, injected into real runs, and what came of each: a table.

    KERAS_BACKEND=torch python tools/inject_faults.py               # all of them, 50 kills
    KERAS_BACKEND=jax python tools/inject_faults.py --kills 10 --only kill,"kill in a write"

Each fault hits `runs.pretrain` on scikit-learn's digits, in a process of its own; then the same call with `resume`
goes on, until the run is finished. The outcome is *same* if every number of its last checkpoint (weights, optimizer
slots, moving averages, random states, metrics) is that of a run that nothing happened to, bit for bit. The exit status
is 1 if one is not, or if a process took longer to end than `HANG` seconds.
"""

import argparse
import collections
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HANG = 60  # seconds
EPOCHS, IMAGES, BATCH = 60, 512, 32  # 960 steps
READY = "training"  # what a child says at its first step

# ---------------------------------------------------------------------- the child: a run


def child(options):
    """Trains in this process; `options.fault` breaks something in it."""
    import keras
    import numpy as np

    from keras_issl import datasets, distribution, recipes, runs
    from keras_issl.callbacks import checkpoint_files as files

    out, rng = Path(options.child), random.Random(options.seed)
    if options.data:
        data = datasets.load(options.data, memory_limit=0, image_size=8, on_error=options.on_error, verbose=False)
    else:
        data = datasets.load("digits", split="train").take(IMAGES)
    encoder = {"blocks": (1,), "width": 8, "image_size": 8, "stem": "cifar"}
    args = {"num_classes": 32, "teacher_hidden": (16,), "bottleneck": 8}
    recipe = recipes.digits("dissl", encoder_args=encoder, epochs=options.epochs, batch_size=BATCH, objective_args=args)

    begun = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs=None: print(READY, flush=True))
    fit = runs.training.recipes.build

    def build(*arguments, **changes):
        model = fit(*arguments, **changes)
        plain = model.fit

        def watched(*data, callbacks=(), **how):
            return plain(*data, callbacks=[begun, *callbacks], **how)

        object.__setattr__(model, "fit", watched)
        return model

    runs.training.recipes.build = build
    if options.fault == "kill in a write":
        die_in_a_write(files, np, rng)
    if options.fault == "clock":
        true, jumps = time.time, [0.0]

        def jumping():
            jumps[0] += rng.choice((0, 0, 86400, -86400 * 3))
            return true() + jumps[0]

        time.time = jumping
    with distribution.data_parallel(None if "WORLD_SIZE" in os.environ else 1):
        resume = out.exists() and (out / "run.json").exists()
        result = runs.pretrain(recipe, data, out, resume=resume, checkpoint_every=0.2, page=False, verbose=False)
    print(f"{result.finished_epochs} epochs, stopped by {result.stopped_by}, {len(data.replaced)} replaced", flush=True)


def die_in_a_write(files, np, rng):
    """Has this process killed somewhere in the writing of its third to sixth checkpoint."""
    left, stage = [rng.randint(3, 6)], rng.choice(("before", "half", "written", "renamed", "removing"))
    write, savez, replace, keep = files.write, np.savez, os.replace, files.keep

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def counted(*arguments):
        left[0] -= 1
        return write(*arguments)

    def saving(file, **arrays):
        if left[0] == 0 and stage == "before":
            die()
        savez(file, **arrays)
        if left[0] == 0 and stage == "half":
            file.truncate(file.tell() // 2)
            die()
        if left[0] == 0 and stage == "written":
            die()

    def renaming(source, target):
        replace(source, target)
        if left[0] == 0 and stage == "renamed" and "step_" in str(target):
            die()

    def keeping(folder, count):
        if left[0] == 0:
            die()
        keep(folder, count)

    files.write, files.np.savez, files.os.replace, files.keep = counted, saving, renaming, keeping


# ---------------------------------------------------------------------- the parent: what happens to it


class Run:
    """Processes of one run, one after the other."""

    longest = 0.0  # seconds that any process took to end

    def __init__(self, out, *, fault="", epochs=EPOCHS, data=None, on_error="raise", processes=1, prefix=()):
        self.out, self.starts = Path(out), []
        self.command = [__file__, "--child", str(out), "--epochs", str(epochs), "--on-error", on_error]
        self.command += ["--data", str(data)] if data else []
        self.fault, self.processes, self.prefix = fault, processes, list(prefix)

    def start(self, fault=None, seed=0, ready=True):
        """A process that trains, once it has begun to (or has ended)."""
        command = [*self.command, "--fault", self.fault if fault is None else fault, "--seed", str(seed)]
        if self.processes > 1:
            command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.processes}", *command]
        began = time.monotonic()
        process = subprocess.Popen(
            [*self.prefix, sys.executable, *command], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        process.heard = []
        while ready and process.poll() is None:
            process.heard.append(process.stdout.readline())
            if process.heard[-1].startswith(READY):
                self.starts.append(time.monotonic() - began)
                break
        return process

    def end(self, process):
        """What a process said, and its exit status; it is timed."""
        began = time.monotonic()
        try:
            said = process.communicate(timeout=HANG)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            said = process.communicate()[0]
        Run.longest = max(Run.longest, time.monotonic() - began)
        return "".join(process.heard) + said, process.returncode

    def finish(self, seed=0, limit=600):
        """Goes on until the run is done; this part may take longer than ends do."""
        process = self.start(fault="", seed=seed, ready=False)
        said = process.communicate(timeout=limit)[0]
        return said, process.returncode


def state(out):
    """All numbers of the newest checkpoint."""
    from keras_issl.callbacks import checkpoint_files as files

    saved = files.newest(Path(out) / "checkpoints")
    return saved.step, saved.epoch, saved.batch, [(a.dtype.name, a.shape, a.tobytes()) for a in saved.arrays]


class Report:
    """Fault -> outcome -> count."""

    def __init__(self):
        self.counts, self.bad = collections.defaultdict(collections.Counter), []

    def add(self, fault, outcome, good=True, detail=""):
        self.counts[fault][outcome] += 1
        print(f"  {fault}: {outcome}", flush=True)
        if not good:
            self.bad.append(fault)
            print(detail[-3000:], flush=True)

    def compare(self, fault, run, expected, said=""):
        same = state(run.out) == expected
        self.add(fault, "same weights, slots and states" if same else "OTHER WEIGHTS", same, said)


def kills(folder, report, expected, options):
    """SIGKILL at random moments of one run, resumed after each."""
    run, rng, done = Run(folder / "kill"), random.Random(1), 0
    while done < options.kills:
        process = run.start(seed=done)
        time.sleep(rng.uniform(0.0, 1.5))
        process.kill()
        said, code = run.end(process)
        if code != -signal.SIGKILL:  # it was done before: one more run
            good = code == 0
            report.add("kill", "finished" if good else "FAILED", good, said)
            report.compare("kill", run, expected, said)
            shutil.rmtree(run.out)
            continue
        done += 1
        report.add("kill", "killed, resumed")
    said, code = run.finish()
    report.compare("kill", run, expected, said)
    return run.starts


def kills_in_a_write(folder, report, expected, options):
    """SIGKILL at five places inside the writing of a checkpoint."""
    run = Run(folder / "write", fault="kill in a write")
    for number in range(max(options.kills // 5, 2)):
        said, code = run.end(run.start(seed=number))
        if code == 0:
            break
        good = code == -signal.SIGKILL
        report.add("kill in a write", "killed, resumed" if good else "FAILED", good, said)
    said, _ = run.finish()
    report.compare("kill in a write", run, expected, said)


def stops(folder, report, expected, options):
    """SIGTERM and Ctrl-C save and exit 0."""
    run, rng = Run(folder / "stop"), random.Random(2)
    for number in (signal.SIGTERM, signal.SIGINT) * 3:
        process = run.start()
        time.sleep(rng.uniform(0.0, 1.0))
        process.send_signal(number)
        said, code = run.end(process)
        name = signal.Signals(number).name
        good = code == 0 and ("stopped by " + name in said or "stopped by None" in said)
        report.add("SIGTERM, Ctrl-C", "saved, exit 0" if good else "FAILED", good, said)
    said, _ = run.finish()
    report.compare("SIGTERM, Ctrl-C", run, expected, said)


def damages(folder, report, expected, options):
    """The newest checkpoint is cut off, changed in a bit, or has the content of another."""
    from keras_issl.callbacks import checkpoint_files as files

    def cut(newest, older):
        newest.write_bytes(newest.read_bytes()[: random.Random(3).randrange(newest.stat().st_size)])

    def flip(newest, older):
        content = bytearray(newest.read_bytes())
        content[random.Random(4).randrange(len(content))] ^= 16
        newest.write_bytes(content)

    def swap(newest, older):
        newest.write_bytes(older.read_bytes())

    for damage in (cut, flip, swap):
        run = Run(folder / damage.__name__)
        process = run.start()
        while len(files.listed(run.out / "checkpoints")) < 2 and process.poll() is None:
            time.sleep(0.05)
        process.kill()
        run.end(process)
        (_, older), (_, newest) = files.listed(run.out / "checkpoints")[-2:]
        damage(newest, older)
        said, _ = run.finish()
        told = "the checkpoint before" in said
        report.add(f"newest checkpoint: {damage.__name__}", "fell back, said so" if told else "FAILED", told, said)
        report.compare(f"newest checkpoint: {damage.__name__}", run, expected, said)


def two_runs(folder, report, expected, options):
    """A second run in the folder of a first one is refused; one in the folder of a dead one is not."""
    run = Run(folder / "two")
    first = run.start()
    said, code = run.end(run.start(ready=False))
    good = code != 0 and "Another process is at work" in said
    report.add("two runs in one folder", "second refused" if good else "FAILED", good, said)
    first.kill()
    run.end(first)
    said, _ = run.finish()
    report.compare("two runs in one folder", run, expected, said)


def clock(folder, report, expected, options):
    """The wall clock jumps by days at every look at it."""
    run = Run(folder / "clock", fault="clock")
    process = run.start()
    time.sleep(1)
    process.kill()
    run.end(process)
    said, _ = run.finish()
    report.compare("clock that jumps", run, expected, said)


def disks(folder, report, expected, options):
    """A disk that fills up while the run goes on, and one that cannot be written."""
    disk = folder / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", disk], capture_output=True).returncode:
        report.add("disk full", "not tried: no file system can be mounted here")
        return
    try:
        run = Run(disk / "run")
        process = run.start()
        while not (run.out / "checkpoints").is_dir() or not any((run.out / "checkpoints").glob("step_*")):
            time.sleep(0.05)
        room = os.statvfs(disk)
        (disk / "other").write_bytes(b"x" * (room.f_bavail * room.f_frsize - 8192))
        said, code = run.end(process)
        good = code != 0 and "No space left" in said and "is whole" in said
        report.add("disk full", "stopped, said what is needed" if good else "FAILED", good, said)
        (disk / "other").unlink()
        said, _ = run.finish()
        report.compare("disk full", run, expected, said)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        run = Run(disk / "new")
        said, code = run.end(run.start(ready=False))
        good = code != 0 and "should be a folder that can be written" in said
        report.add("read-only folder", "refused before the first step" if good else "FAILED", good, said)
    finally:
        subprocess.run(["umount", disk], check=False)


def shards(folder, report, expected, options):
    """A row group of a Parquet file is overwritten while the run goes on."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    from keras_issl import datasets

    data = datasets.load("digits", split="train").take(IMAGES)
    rows = []
    for image in data.images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "png")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    schema = pa.schema({"image": pa.struct({"bytes": pa.binary(), "path": pa.string()})})
    for on_error in ("raise", "replace"):
        file = folder / f"{on_error}.parquet"
        pq.write_table(pa.table({"image": rows}, schema=schema), file, row_group_size=64)
        place = pq.read_metadata(file).row_group(3).column(0)
        run = Run(folder / f"shard-{on_error}", data=file, on_error=on_error, epochs=20)
        process = run.start()
        with open(file, "r+b") as broken:
            broken.seek(place.dictionary_page_offset or place.data_page_offset)
            broken.write(b"\xff" * place.total_compressed_size)
        said, code = run.end(process)
        if on_error == "raise":
            good = code != 0 and "BrokenImage" in said and "row group 3" in said
            report.add("corrupt shard", "stopped, named file and row" if good else "FAILED", good, said)
        else:
            good = code == 0 and "64 replaced" in said
            report.add("corrupt shard, --replace-broken", "64 counted, finished" if good else "FAILED", good, said)


def ranks(folder, report, expected, options):
    """One of two processes of `torchrun` is killed."""
    if os.environ.get("KERAS_BACKEND") != "torch":
        return
    whole = Run(folder / "ranks-whole", processes=2, epochs=10)
    said, code = whole.finish()
    if code:
        report.add("dying rank", "FAILED", False, said)
        return
    for number in range(2):
        run = Run(folder / f"ranks-{number}", processes=2, epochs=10)
        process = run.start()
        time.sleep(1)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(workers[number]), signal.SIGKILL)
        said, code = run.end(process)
        report.add("dying rank", "all ended" if code else "FAILED", bool(code), said)
        said, _ = run.finish()
        report.compare("dying rank", run, state(whole.out), said)


FAULTS = {
    "kill": kills,
    "kill in a write": kills_in_a_write,
    "stop": stops,
    "damage": damages,
    "two runs": two_runs,
    "clock": clock,
    "disk": disks,
    "shard": shards,
    "rank": ranks,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(FAULTS), help=", ".join(FAULTS))
    for name in ("child", "data", "fault", "on-error"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    for name, default in (("seed", 0), ("epochs", EPOCHS)):
        parser.add_argument(f"--{name}", type=int, default=default, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options)
    if unknown := set(options.only) - set(FAULTS):
        parser.error(f"--only should name some of {', '.join(FAULTS)}. Received: {', '.join(sorted(unknown))}")
    report, began = Report(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        whole = Run(folder / "whole")
        process = whole.start()
        process.heard.append(process.communicate(timeout=600)[0])
        if process.returncode:
            sys.exit("".join(process.heard))
        expected, resumes = state(whole.out), None
        for name in options.only:
            found = FAULTS[name](folder, report, expected, options)
            resumes = found or resumes
    print("\n| fault | outcome | count |\n|---|---|---:|")
    for fault, outcomes in report.counts.items():
        for outcome, count in outcomes.items():
            print(f"| {fault} | {outcome} | {count} |")
    print(
        f"\n{os.environ.get('KERAS_BACKEND')}, {time.monotonic() - began:.0f} s. The longest wait for an end: "
        f"{Run.longest:.1f} s."
    )
    if resumes:
        resumes = sorted(resumes[1:])
        print(
            f"From the start of the process to its first step: {whole.starts[0]:.1f} s for a new run, "
            f"{resumes[len(resumes) // 2]:.1f} s (median; at most {resumes[-1]:.1f}) for {len(resumes)} resumed ones."
        )
    sys.exit(bool(report.bad) or Run.longest > HANG)


if __name__ == "__main__":
    main()
