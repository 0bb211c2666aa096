"""`keras-issl pretrain`."""

import argparse
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import keras

from keras_issl import callbacks, datasets, distribution, loggers
from keras_issl.cli import recipe_options
from keras_issl.cli.shared import SOURCES, load, load_split, on_broken, say

COMMAND = "KERAS_ISSL_COMMAND"  # in the environment of a run's processes: the number of the one that began them
GRACE = 50.0  # seconds that a process waits for the first one to save


def add(commands):
    """Adds the command to the parser."""
    p = commands.add_parser("pretrain", help="train an encoder without labels")
    p.add_argument("data", nargs="?", help=f"{SOURCES}; default: digits")
    p.add_argument("--data", dest="data_option", metavar="DATA", help="the same")
    p.add_argument("--compare", action="store_true", help="train several objectives alike and print one table")
    recipe_options.add(p)
    p.add_argument("--split", help="default: train where there is such a split, else all images")
    p.add_argument("--test-split", default="test", help="for --compare")
    p.add_argument("--shots", type=int, nargs="*", default=[1, 5, 10], help="labels a class for --compare")
    p.add_argument("--draws", type=int, default=10, help="random draws of labels for --compare")
    p.add_argument("--limit", type=int, help="use only so many images")
    p.add_argument("--skip-broken", action="store_true", help="skip and count images that cannot be read")
    p.add_argument(
        "--replace-broken",
        action="store_true",
        help="put another image in the place of one that cannot be read, when its turn comes, and count them",
    )
    p.add_argument("--out", help="run folder; default: runs/DATA-RECIPE-TIME")
    p.add_argument("--resume", action="store_true", help="go on with the run in --out")
    p.add_argument("--force", action="store_true", help="with --resume: go on although recipe, data or versions differ")
    p.add_argument(
        "--checkpoint-every", type=float, metavar="SECONDS", help="default: as often as costs 1 %% of the time"
    )
    p.add_argument(
        "--online-probe",
        action=argparse.BooleanOptionalAction,
        help="a linear probe beside the encoder, which it leaves as it is; default: where there are labels",
    )
    p.add_argument(
        "--on-collapse", choices=("warn", "stop", "rollback"), default="warn", help="when the records show a collapse"
    )
    p.add_argument(
        "--log", action="append", default=[], choices=loggers.NAMES, help="send the numbers there too; repeatable"
    )
    p.add_argument("--page", action=argparse.BooleanOptionalAction, default=True, help="write report.html at the end")
    p.add_argument(
        "--devices",
        type=int,
        metavar="N",
        help="train on the first N devices of this machine, each with a part of a batch",
    )
    p.add_argument(
        "--on-device", action="store_true", help="copy the images to the accelerator once; on JAX and PyTorch"
    )
    p.set_defaults(run=_pretrain)


def _pretrain(args):
    if args.list_recipes:
        recipe_options.say_recipes()
        return
    if args.data is not None and args.data_option is not None:
        raise ValueError(f"The images should be named once. Received: {args.data!r} and --data {args.data_option!r}")
    args.data = args.data or args.data_option or (None if args.recipe else "digits")
    if args.data is None:
        raise ValueError(f"`--data` should name the images to train --recipe {args.recipe} on: {SOURCES}.")
    make_recipe = recipe_options.read(args)
    if args.resume and not args.out:
        raise ValueError("--resume should come with --out, the folder of the run to go on with.")
    kind = "compare" if args.compare else (args.recipe or args.objective or "dissl").replace("/", "-")
    named = Path(args.data).name.replace(":", "-")
    out = Path(args.out or f"runs/{named}-{kind}-{time.strftime('%Y%m%d-%H%M%S')}")
    if args.smoke:
        from keras_issl.recipes import SMOKE_IMAGES

        args.limit = min(args.limit or SMOKE_IMAGES, SMOKE_IMAGES)
    if args.on_device:
        datasets.check_on_device()  # before all images are read
    if args.compare:
        _compare(args, make_recipe, out)
        return
    with _devices(args, out):
        _train(args, make_recipe, out)


@contextlib.contextmanager
def _devices(args, out):
    """Several devices, if they were asked for; on PyTorch as many processes of the same command."""
    count = args.devices
    if count is None:
        yield
        return
    if keras.config.backend() == "torch" and count > 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m", "keras_issl.cli"]
        raise SystemExit(_launch([sys.executable, *launch, *args.command_line, "--out", str(out)], out))
    if COMMAND in os.environ and os.name == "posix":
        threading.Thread(target=_end_with, args=(int(os.environ[COMMAND]),), daemon=True).start()
    with distribution.data_parallel(count), contextlib.ExitStack() as stack:
        if not distribution.is_writer():  # one of them speaks
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        yield


def _launch(command, out):
    """Runs the processes of a run and hands signals on to them; the exit status is 0 if they saved and ended.

    The first signal asks them to save and end. Another Ctrl-C, a second or more later, ends the launcher at once. The
    processes of the run notice that, and whatever kills this one, see `_end_with`.
    """
    from keras_issl import runs

    asked, launcher = [], None

    def hand_on(number, frame):
        now = time.monotonic()
        if asked and (number == signal.SIGTERM or now - asked[0] < callbacks.signals.AGAIN):  # as `StopOnSignal`
            return
        again = bool(asked)
        asked.append(now)
        if launcher is not None:
            launcher.send_signal(signal.SIGKILL if again else signal.SIGTERM)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        # In a session of their own: Ctrl-C at a terminal reaches them once, through us, and not the launcher besides.
        environment = os.environ | {COMMAND: str(os.getpid())}
        launcher = subprocess.Popen(command, start_new_session=True, env=environment)
        if asked:  # meanwhile
            launcher.send_signal(signal.SIGTERM)
        status = launcher.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked and status:  # the launcher finds it an error that it was asked to end
        with contextlib.suppress(ValueError):
            status = 0 if "ended" in runs.folder.read_description(out) else status
    return status


def _end_with(command):
    """Asks this process of a run to save and end once its launcher, or the command that began it, is gone."""
    launcher, first = os.getppid(), os.environ.get("RANK") == "0"
    while os.getppid() == launcher and _alive(command):
        time.sleep(1.0)
    alone = os.getppid() != launcher
    if first:  # the others stop with it. The launcher is killed where Ctrl-C was pressed again: so that is what it is
        os.kill(os.getpid(), signal.SIGINT if alone else signal.SIGTERM)
    elif alone:
        time.sleep(GRACE)
        os._exit(1)  # it waits for processes that are gone


def _alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _train(args, make_recipe, out):
    from keras_issl import recipes, runs

    recipe, notes, asked = make_recipe(args.objective or "dissl")
    say(f"recipe: {f'{recipe.name}: ' if recipe.name else ''}{recipes.describe(recipe)}")
    for note in notes:
        say(note)
    size = recipe_options.stored_size(args, recipe)
    data, everything = load_split(args, size)
    _say_size(args, size, data)
    data = data.on_device() if args.on_device else data
    for note in recipes.fit_to_images(recipe, len(data), asked)[1]:
        say(note)
    result = runs.pretrain(
        recipe,
        data,
        out,
        resume=args.resume,
        force=args.force,
        checkpoint_every=args.checkpoint_every,
        overrides=asked,
        notes=notes,
        online_probe="auto" if args.online_probe is None else args.online_probe,
        on_collapse=args.on_collapse,
        log=args.log,
        page=args.page,
        source=_source(args, everything, size),
    )
    if not distribution.is_writer():
        return
    for verdict in result.verdicts:
        say(f"{verdict.level}: {verdict.title}. {verdict.evidence} {verdict.advice}".rstrip())
    written = ["preset/ (the encoder)", "history.csv", "records.csv", "checkpoints/", "run.json"]
    for name, what in (("curves.png", ""), ("report.html", " (the page of the run)")):
        if (out / name).exists():
            written.insert(1, name + what)
    if data.replaced:
        say(f"{len(data.replaced)} images could not be read, and others took their place; run.json lists them")
    plural = "s" * (result.finished_epochs != 1)
    state = f"stopped by {result.stopped_by} after" if result.stopped_by else "trained"
    say(
        f"{state} {result.finished_epochs} epoch{plural} in {result.seconds:.0f} s; written to {out}: "
        f"{', '.join(written)}"
    )
    if result.stopped_by and result.stopped_by != "collapse":
        saved = max((step for step, _ in runs.checkpoints(out)), default=0)
        say(f"The same command with --out {out} --resume goes on, from step {saved}.")


def _source(args, everything, size):
    """How `datasets.load` is called to get the same images again."""
    source = str(Path(args.data).resolve()) if Path(args.data).exists() else args.data
    split = args.split or (None if everything else "train")
    return {"source": source, "split": split, "limit": args.limit, "on_error": on_broken(args), **size}


def _say_size(args, size, data):
    """Says so where images are stored at another size than they have."""
    stored, side = data.image_shape[:2], _first_size(args.data)
    if side is None or side == stored or size.get("image_size") is None:
        return
    what = "enlarged" if min(side) < min(stored) else "shrunk" if min(side) > min(stored) else "cut"
    say(
        f"images are stored at {stored[1]}x{stored[0]}{' for this recipe' if args.recipe else ''}; those of "
        f"{data.name} are {side[1]}x{side[0]} (the first one) and are {what}"
    )


def _first_size(source):
    """Height and width of one image of a source, where they are cheap to know, else `None`."""
    import PIL.Image

    from keras_issl.datasets.images import decode_record
    from keras_issl.datasets.sources import find_records

    if source == "digits":
        return 8, 8
    path = Path(source)
    walk = (Path(folder, name) for folder, _, names in os.walk(path) for name in sorted(names))
    for file in itertools.islice([path] if path.is_file() else walk, 100):
        with contextlib.suppress(OSError, ValueError):  # not an image, or a broken one
            if file.suffix == ".parquet":
                return decode_record(find_records(str(file), None, None, None), 0, None, None).shape[:2]
            with PIL.Image.open(file) as image:
                return image.height, image.width
    return None


def _compare(args, make_recipe, out):
    from keras_issl import comparison, recipes

    made = {objective: make_recipe(objective) for objective in args.objectives}
    recipe, notes, _ = made[args.objectives[0]]
    for note in notes:
        say(note)
    size = recipe_options.stored_size(args, recipe)
    data = load(args, args.split or "train", size)
    test = load(args, args.test_split, size, "--test-split")
    _say_size(args, size, data)
    data = data.on_device() if args.on_device else data
    for objective, (own, further, _) in made.items():
        for note in (*(n for n in further if n not in notes), *recipes.fit_to_images(own, len(data))[1]):
            say(f"{objective}: {note}")
    result = comparison.compare(
        lambda objective: make_recipe(objective)[0],
        data,
        test,
        out,
        objectives=tuple(args.objectives),
        shots=(*args.shots, None),
        draws=args.draws,
        resume=args.resume,
        say=say,
    )
    if result is None:
        say(f"Stopped. Everything so far is in {out}; the same command with --out {out} --resume goes on.")
        return
    say(f"\n{result.table()}\n\n{result.protocol}")
    picture = " and comparison.png" if (out / "comparison.png").exists() else ""
    *first, last = (f"{objective}/" for objective in args.objectives)
    folders = f"{', '.join(first)} and {last}" if first else last
    say(f"\nWritten to {out}: comparison.md{picture}; {folders}, each a run folder with a preset.")
