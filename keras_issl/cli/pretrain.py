"""`keras-issl pretrain`."""

import time
from pathlib import Path

from keras_issl.cli.shared import SOURCES, load, load_split, say


def add(commands):
    """Adds the command to the parser."""
    p = commands.add_parser("pretrain", help="train an encoder without labels")
    p.add_argument("data", nargs="?", default="digits", help=f"{SOURCES}; default: digits")
    p.add_argument("--compare", action="store_true", help="train SimCLR, CISSL and DISSL alike and print one table")
    p.add_argument("--objective", choices=("dissl", "cissl", "simclr"))
    p.add_argument("--augmentation", choices=("simclr", "affine"), help="default: simclr; affine for digits")
    p.add_argument("--encoder", choices=("narrow", "resnet18", "resnet50"), help="default: narrow, trains on a CPU")
    p.add_argument("--image-size", type=int, help="side in pixels that images are stored and trained at")
    p.add_argument("--epochs", type=int)
    p.add_argument("--batch-size", type=int)
    p.add_argument("--learning-rate", type=float)
    p.add_argument("--num-classes", type=int, help="DISSL's equivalence classes C")
    p.add_argument("--precision", choices=("float32", "mixed_bfloat16"))
    p.add_argument("--seed", type=int)
    p.add_argument("--split", help="default: train where there is such a split, else all images")
    p.add_argument("--test-split", default="test", help="for --compare")
    p.add_argument("--shots", type=int, nargs="*", default=[1, 5, 10], help="labels a class for --compare")
    p.add_argument("--draws", type=int, default=10, help="random draws of labels for --compare")
    p.add_argument("--limit", type=int, help="use only so many images")
    p.add_argument("--skip-broken", action="store_true", help="skip and count images that cannot be read")
    p.add_argument("--out", help="run folder; default: runs/DATA-OBJECTIVE-TIME")
    p.add_argument("--resume", action="store_true", help="go on with the run in --out")
    p.set_defaults(run=_pretrain)


def _recipes(args):
    """A function from an objective's name to its recipe, and what the user changed."""
    from keras_issl import recipes

    names = ("epochs", "batch_size", "learning_rate", "precision", "seed", "num_classes")
    names += ("encoder", "augmentation", "image_size")
    asked = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.compare and args.objective:
        raise ValueError(f"`--compare` trains every objective. Received: --objective {args.objective} as well.")
    if args.num_classes is not None and args.objective not in (None, "dissl"):
        raise ValueError(f"`--num-classes` is for DISSL. Received: --objective {args.objective}")

    def make(objective):
        options = {name: asked[name] for name in names[:5] if name in asked}
        if objective == "dissl" and args.num_classes is not None:
            options["objective_args"] = {"num_classes": args.num_classes}
        if args.data == "digits" and not {"encoder", "augmentation", "image_size"} & set(asked):
            return recipes.digits(objective, **options)
        augmentation = args.augmentation or ("affine" if args.data == "digits" else "simclr")
        return recipes.small_images(
            objective, args.image_size or _default_size(args), args.encoder or "narrow", augmentation, **options
        )

    return make, asked


def _default_size(args):
    """Digits are 8x8; other images are brought to 32x32 unless told otherwise."""
    return 8 if args.data == "digits" else 32


def _pretrain(args):
    from keras_issl import comparison, runs

    make_recipe, asked = _recipes(args)
    size = {"image_size": args.image_size or (None if args.data == "digits" else _default_size(args))}
    kind = "compare" if args.compare else args.objective or "dissl"
    default_out = f"runs/{Path(args.data).name.replace(':', '-')}-{kind}-{time.strftime('%Y%m%d-%H%M%S')}"
    out = Path(args.out or default_out)
    if args.resume and not args.out:
        raise ValueError("--resume should come with --out, the folder of the run to go on with.")

    if args.compare:
        data = load(args, args.split or "train", size)
        test = load(args, args.test_split, size)
        result = comparison.compare(
            make_recipe, data, test, out, shots=(*args.shots, None), draws=args.draws, resume=args.resume, say=say
        )
        if result is None:
            say(f"Stopped. Everything so far is in {out}; the same command with --out {out} --resume goes on.")
            return
        say(f"\n{result.table()}\n\n{result.protocol}")
        picture = " and comparison.png" if (out / "comparison.png").exists() else ""
        say(f"\nWritten to {out}: comparison.md{picture}; simclr/, cissl/ and dissl/, each a run folder with a preset.")
        return
    data, _ = load_split(args, size)
    recipe = make_recipe(kind)
    result = runs.pretrain(recipe, data, out, resume=args.resume, overrides=asked)
    pictures = "curves.png, " if (out / "curves.png").exists() else ""
    state = f"stopped by {result.stopped_by} after" if result.stopped_by else "trained"
    say(
        f"{state} {result.finished_epochs} epochs in {result.seconds:.0f} s; written to {out}: "
        f"preset/ (the encoder), history.csv, {pictures}checkpoints/, run.json"
    )
    if result.stopped_by:
        say(f"The same command with --out {out} --resume goes on.")
