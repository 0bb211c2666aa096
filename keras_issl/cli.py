"""The command line: parses, calls the library, prints."""

import argparse
import contextlib
import os
import sys
import time
import warnings
from pathlib import Path

PRESET = "name of a built-in preset, preset folder, run folder or hf://org/name[@revision]"


def say(line=""):
    """Prints a line at once, also into a pipe."""
    print(line, flush=True)


def _parser():
    parser = argparse.ArgumentParser(
        prog="keras-issl", description="Self-supervised pre-training (DISSL, CISSL, SimCLR) and probing on your images."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    sources = "'digits' (scikit-learn's scanned digits), a folder of images, Parquet files, 'tfds:NAME' or 'hf:NAME'"

    p = commands.add_parser("pretrain", help="train an encoder without labels")
    p.add_argument("data", nargs="?", default="digits", help=f"{sources}; default: digits")
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

    p = commands.add_parser("probe", help="fit a linear probe on the features of a preset")
    p.add_argument("preset", help=PRESET)
    p.add_argument("data", nargs="?", default="digits", help=sources)
    p.add_argument("--split", help="default: train where there is such a split, else all images")
    p.add_argument("--test-split", default="test", help="a fifth of the images is held out where there is none")
    p.add_argument("--shots", type=int, nargs="*", default=[], help="labels a class, beside all labels")
    p.add_argument("--draws", type=int, default=10)
    _encoding_options(p)
    p.set_defaults(run=_probe)

    p = commands.add_parser("features", help="write the features of a dataset; the same command resumes")
    p.add_argument("preset", help=PRESET)
    p.add_argument("data", help=sources)
    p.add_argument("out", help="an .npz or .parquet file to make")
    p.add_argument("--split", help="needed where the data have several")
    _encoding_options(p)
    p.set_defaults(run=_features)

    p = commands.add_parser("presets", help="list the built-in presets")
    p.add_argument("name", nargs="?", help="print the card of this one instead")
    p.add_argument("--fetch", nargs="+", metavar="NAME", help="download and convert these, so that they work offline")
    p.set_defaults(run=_presets)

    p = commands.add_parser("push", help="publish a preset on the Hugging Face Hub, as one commit")
    p.add_argument("folder", help="preset folder or run folder")
    p.add_argument("address", help="hf://NAMESPACE/NAME: your user or organisation, and the repository")
    p.add_argument("--private", action="store_true", help="if the repository is made, only you can read it")
    p.add_argument("--tag", help="a new name for this version, such as v1")
    p.add_argument("--message", help="message of the commit")
    p.add_argument("--no-create", action="store_true", help="only into a repository that is there")
    p.add_argument("--overwrite-card", action="store_true", help="replace a README.md that somebody wrote there")
    p.add_argument("--parent-commit", help="the commit that you mean to replace; another one there is refused")
    p.add_argument("--picture", help="a PNG of at most 5 MB for the card, such as `keras-issl neighbours` writes")
    p.set_defaults(run=_push)

    p = commands.add_parser("neighbours", help="draw images beside those with the most similar features")
    p.add_argument("preset", help=PRESET)
    p.add_argument("data", help=sources)
    p.add_argument("out", help="a .png file to make")
    p.add_argument("--split", help="default: test where there is such a split, else all images")
    p.add_argument("--queries", type=int, default=6, help="rows of the picture")
    _encoding_options(p)
    p.set_defaults(run=_neighbours)

    p = commands.add_parser("convert", help="make a preset of a torch checkpoint, or a checkpoint of a preset")
    p.add_argument("source", help="a torch checkpoint of a ResNet; with --to-torch a preset")
    p.add_argument("out", help="preset folder to make; with --to-torch a file")
    p.add_argument("--to-torch", action="store_true", help="write torchvision's state dict of a preset")
    p.add_argument("--overwrite", action="store_true", help="replace a preset that is there")
    p.add_argument("--image-size", type=int, help="what the network is meant for, where its first convolution is 3x3")
    p.set_defaults(run=_convert)
    return parser


def _encoding_options(parser):
    parser.add_argument("--image-size", type=int, help="default: the size the preset is meant for")
    parser.add_argument("--verify", action="store_true", help="first compute the preset's recorded features again")
    parser.add_argument("--batch-size", type=int, help="default: 256, or 64 for images of 128 pixels and more")
    parser.add_argument("--limit", type=int, help="use only so many images")
    parser.add_argument("--skip-broken", action="store_true", help="skip and count images that cannot be read")


def _load(args, split, size):
    """The images of a split; `size` holds `image_size` and perhaps `resize`, as `datasets.load` takes them."""
    from keras_issl import datasets

    on_error = "skip" if args.skip_broken else "raise"
    data = datasets.load(args.data, split=split, on_error=on_error, limit=args.limit, **size)
    shape = "x".join(map(str, data.image_shape))
    say(f"data: {data.name}, {len(data):,} images {shape}" + (f", {len(data.skipped)} skipped" if data.skipped else ""))
    return data


def _load_split(args, size, default="train"):
    """The split that was asked for, else the default one, else everything; and whether it was everything."""
    from keras_issl import datasets

    try:
        return _load(args, args.split or default, size), False
    except datasets.UnknownSplit:
        if args.split:
            raise
        return _load(args, None, size), True


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
        data = _load(args, args.split or "train", size)
        test = _load(args, args.test_split, size)
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
    data, _ = _load_split(args, size)
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


def _encoder(args):
    """The preset's encoder, how to bring images to its size, and what its features should say of their origin."""
    from keras_issl import zoo

    preset = zoo.pin(args.preset)  # so that all that is read, and recorded, is of one commit
    encoder = zoo.from_preset(preset, verify=args.verify)
    metadata = zoo.read_metadata(preset)
    provenance = {"preset": str(preset)}
    if metadata.get("probe"):
        provenance["probe"] = metadata["probe"]
    if weights := metadata.get("files", {}).get("model.weights.h5"):
        provenance["weights_sha256"] = weights["sha256"]
    size = _image_size(args, metadata, encoder)
    if "resize" in size:
        provenance["preprocessing"] = {"resize": size["resize"], "crop": size["image_size"]}
    return encoder, size, provenance


def _image_size(args, metadata, encoder):
    """What was asked for, else the preset's evaluation protocol, the size of its training views or the encoder's."""
    if args.image_size is not None:
        return {"image_size": args.image_size}
    if protocol := metadata.get("preprocessing"):
        return {"image_size": protocol["crop"], "resize": protocol["resize"]}
    if args.data == "digits":
        return {"image_size": None}
    views = (metadata.get("recipe") or {}).get("augmentation_args")
    size = views.get("size") if isinstance(views, dict) else None
    return {"image_size": size if isinstance(size, int) else getattr(encoder, "image_size", None)}


def _batch_size(args, data):
    """What was asked for, else what a laptop's memory holds: activations grow with the pixels."""
    return args.batch_size or (256 if max(data.image_shape[:2]) < 128 else 64)


def _probe(args):
    from keras_issl import datasets, probes, report
    from keras_issl.features import extract_features

    encoder, size, provenance = _encoder(args)
    train, everything = _load_split(args, size)
    try:
        test = None if everything else _load(args, args.test_split, size)
    except datasets.UnknownSplit:
        test = None
    if test is None:
        train, test = train.split(0.8)
        say(f"no train and test splits: a stratified fifth, {len(test):,} images, is held out as test")
    test = test.with_classes(train.class_names)
    if train.fingerprint == test.fingerprint:
        raise ValueError(
            f"`--split` and `--test-split` should be different images. Received: {train.name} for both. Leave "
            "`--test-split` out to hold out a fifth."
        )
    train, test = (
        extract_features(encoder, data, batch_size=_batch_size(args, data), provenance=provenance)
        for data in (train, test)
    )
    scores = probes.few_shot(train, test, shots=(*args.shots, None), draws=args.draws)
    rows = [
        ["all" if k is None else str(k), f"{mean:.4f}" + (f" ± {sd:.4f}" if n > 1 else ""), str(n)]
        for k, (mean, sd, n) in scores.items()
    ]
    say(report.table(["labels a class", "test top-1", "draws"], rows))
    say(probes.PROTOCOL)


def _features(args):
    from keras_issl.features import check_out, extract_features

    check_out(args.out)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    encoder, size, provenance = _encoder(args)
    data = _load(args, args.split, size)
    batch_size = _batch_size(args, data)
    features = extract_features(encoder, data, batch_size=batch_size, provenance=provenance, out=args.out)
    say(f"{len(features):,} x {features.array.shape[1]} features written to {args.out}")


def _presets(args):
    from keras_issl import report
    from keras_issl.zoo import format, loading, registry

    if args.fetch:
        for name in args.fetch:
            folder = loading.fetch(name, verbose=True)
            format.check_hashes(folder)
            say(f"{name} is in {folder}")
        return
    if args.name:
        say(registry.shipped_folder(args.name).joinpath("README.md").read_text(encoding="utf-8"))
        return
    say(report.table(*registry.table_rows(registry.list_presets())))
    say(registry.PROTOCOL)


def _push(args):
    from keras_issl.zoo import hub, hub_errors, publishing

    address = publishing.push_to_hub(
        args.folder,
        args.address,
        private=args.private,
        tag=args.tag,
        message=args.message,
        create=not args.no_create,
        overwrite_card=args.overwrite_card,
        parent_commit=args.parent_commit,
        picture=args.picture,
    )
    commit = hub.parse(address).revision
    say(f"{hub_errors.endpoint()}/{hub.parse(address).repo} is at commit {commit}")
    say(f'keras_issl.from_preset("{args.address}@{args.tag or commit}") loads it on any machine')


def _neighbours(args):
    from PIL import Image

    from keras_issl import report
    from keras_issl.features import extract_features

    if not args.out.endswith(".png"):  # before the images are encoded in vain
        raise ValueError(f"`out` should end in .png. Received: {args.out!r}")
    encoder, size, provenance = _encoder(args)
    data, _ = _load_split(args, size, "test")
    features = extract_features(encoder, data, batch_size=_batch_size(args, data), provenance=provenance)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    path = report.neighbours(
        data.images,
        features.array,
        args.out,
        queries=min(args.queries, len(data)),
        neighbours=min(8, len(data) - 1),
        labels=data.labels,
        class_names=data.class_names,
    )
    with Image.open(path) as picture:
        say(f"{picture.text['Description']}\nWritten to {path}")


def _convert(args):
    from keras_issl.zoo import checkpoints, conversion
    from keras_issl.zoo.loading import from_preset

    if args.to_torch:
        checkpoints.check_path(args.out)
        path = conversion.save_checkpoint(from_preset(args.source), args.out)
        say(f"torchvision's state dict of {args.source} written to {path}")
        return
    folder, dropped = conversion.convert(args.source, args.out, image_size=args.image_size, overwrite=args.overwrite)
    if dropped:
        say(f"left out: {', '.join(dropped)}")
    say(f"preset written to {folder}: config.json, model.weights.h5, golden.npz, metadata.json, README.md")


@contextlib.contextmanager
def _plain_warnings():
    """Shows warnings that are meant for users as one line, without the place in the code."""
    usual = warnings.formatwarning

    def line(message, category, *place, **rest):
        return f"keras-issl: {message}\n" if category is UserWarning else usual(message, category, *place, **rest)

    warnings.formatwarning = line
    try:
        yield
    finally:
        warnings.formatwarning = usual


def main(argv=None):
    """Runs `keras-issl`; errors of the user's making are one line on stderr and exit status 2."""
    args = _parser().parse_args(argv)
    try:
        from keras_issl import _backend

        say(f"backend: {_backend.NAME} ({_backend.REASON})")
        with _plain_warnings():
            args.run(args)
    except (ValueError, ImportError, FloatingPointError, OSError) as error:
        if os.environ.get("KERAS_ISSL_TRACEBACK"):
            raise
        print(f"keras-issl: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("keras-issl: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
