"""`keras-issl probe`, `diagnose`, `features` and `neighbours`."""

import argparse
import re
import time
from pathlib import Path

import numpy as np

from keras_issl.cli.shared import PRESET, SOURCES, batch_size, encoding_options, load, load_encoder, load_split, say

TEST = "default: the first of test, valid and train that there is, else all images"


def add(commands):
    """Adds the commands to the parser."""
    p = commands.add_parser("probe", help="fit probes on the features of a preset, and write a report")
    p.add_argument("preset", help=PRESET)
    p.add_argument("data", nargs="?", default="digits", help=SOURCES)
    p.add_argument(
        "--probe",
        nargs="+",
        choices=("linear", "ridge", "sgd", "mlp", "knn"),
        default=["linear"],
        help="logistic regression (default), ridge classifier, the paper's SGD protocol, MLP, nearest neighbours",
    )
    p.add_argument("--split", help="default: train where there is such a split, else all images")
    p.add_argument("--test-split", help="default: test; a fifth of the images is held out where there is no such split")
    p.add_argument("--shots", type=_shots, nargs="*", default=[], help="labels a class (5), or a share of train (1%%)")
    p.add_argument("--draws", type=int, default=10, help="random draws of labels for each of --shots")
    p.add_argument("--seeds", type=int, default=1, help="fits with so many seeds (held-out parts, weights)")
    p.add_argument("--out", help="the .html file to make, with a .json of the same name a probe; default: in reports/")
    encoding_options(p)
    p.set_defaults(run=_probe)

    p = commands.add_parser("diagnose", help="say how good a representation is, and why, in a report")
    p.add_argument("preset", help=PRESET)
    p.add_argument("data", nargs="?", default="digits", help=SOURCES)
    p.add_argument("--split", help=TEST)
    p.add_argument("--train-split", default="train", help="labelled images that the risk is decomposed with, if any")
    p.add_argument("--augmentation", choices=("simclr", "affine"), help="default: the one it was trained with")
    p.add_argument("--views", type=int, default=6, help="augmented views of each image")
    p.add_argument("--tasks", type=int, default=50, help="random tasks behind each point of the idealness section")
    p.add_argument("--out", help="the .html file to make; default: in reports/")
    p.add_argument(
        "--risk", action=argparse.BooleanOptionalAction, help="decompose the risk; default: for images below 128 pixels"
    )
    encoding_options(p, limit="default: 2,000 images, 500 of 128 pixels and more, but all for the risk")
    p.set_defaults(run=_diagnose)

    p = commands.add_parser("features", help="write the features of a dataset; the same command resumes")
    p.add_argument("preset", help=PRESET)
    p.add_argument("data", help=SOURCES)
    p.add_argument("out", help="an .npz or .parquet file to make")
    p.add_argument("--split", help="needed where the data have several: one file for each")
    encoding_options(p)
    p.set_defaults(run=_features)

    p = commands.add_parser("neighbours", help="draw images beside those with the most similar features")
    p.add_argument("preset", help=PRESET)
    p.add_argument("data", help=SOURCES)
    p.add_argument("out", help="a .png file to make")
    p.add_argument("--split", help=TEST)
    p.add_argument("--queries", type=int, default=6, help="rows of the picture, drawn at random")
    p.add_argument("--image", nargs="+", metavar="FILE", help="pictures of your own to be the rows instead")
    encoding_options(p)
    p.set_defaults(run=_neighbours)


def _shots(text):
    """Labels a class, or a share of train: `5`, `0.01` or `1%`; `100%` is all of it."""
    share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    if share == 1 and text.endswith("%"):
        return None
    return share if text.endswith("%") or not share.is_integer() else int(share)


def _page(args, kind, also=()):
    """The report to write, by default a new file in `reports/`; and files beside it, of the same name but for the end.

    None of them exists yet: a user's file is never replaced, and nothing is encoded in vain.
    """
    if args.out:
        path = Path(args.out)
    else:
        names = [re.sub(r"[^\w.-]+", "-", Path(str(name)).name).strip("-.") for name in (args.preset, args.data)]
        path = Path("reports") / f"{'-'.join(names)}-{kind}-{time.strftime('%Y%m%d-%H%M%S')}.html"
    if path.suffix != ".html":
        raise ValueError(f"`--out` should end in .html. Received: {args.out!r}")
    beside = [path.with_name(path.stem + end) for end in also]
    if existing := [str(file) for file in (path, *beside) if file.exists()]:
        raise ValueError(f"`--out` should name files that do not exist yet. Received: {', '.join(existing)}, which do.")
    return path, beside


def _train_and_test(args, size):
    """Two `ImageDataset`s; a fifth of the images is held out where there is no test split."""
    from keras_issl import datasets

    train, everything = load_split(args, size)
    try:
        wanted = args.test_split or (None if everything else "test")
        test = None if wanted is None else load(args, wanted, size, "--test-split")
    except datasets.UnknownSplit:
        if args.test_split:
            raise
        test = None
    if test is None:
        train, test = _split(train)
    test = test.with_classes(train.class_names)
    if train.fingerprint == test.fingerprint:
        raise ValueError(
            f"`--split` and `--test-split` should be different images. Received: {train.name} for both. Leave "
            "`--test-split` out to hold out a fifth."
        )
    return train, test


def _split(data):
    """Four fifths and the last one, each class in proportion, with names that say so."""
    train, test = data.split(0.8, seed=0)
    train.name, test.name = f"{data.name} (4/5, seed 0)", f"{data.name} (1/5 held out, seed 0)"
    say(f"no other images to test on: a stratified fifth, {len(test):,} images, is held out as test")
    return train, test


def _probe(args):
    from keras_issl import probes, report, results
    from keras_issl.features import extract_features

    kinds = list(dict.fromkeys(args.probe))
    path, files = _page(args, "probe", [f"-{kind}.json" if len(kinds) > 1 else ".json" for kind in kinds])
    if args.seeds < 1:
        raise ValueError(f"`--seeds` should be at least 1. Received: {args.seeds}")
    encoder, size, provenance = load_encoder(args)
    train, test = _train_and_test(args, size)
    for data in (train, test):
        if (data.labels < 0).any():
            raise ValueError(
                f"`data` should have a label for every image: one sub-folder a class. Received: {data.name}, "
                f"{(data.labels < 0).sum():,} of {len(data):,} images without. `keras-issl diagnose` needs none."
            )
    shots = tuple(dict.fromkeys([*probes.check_shots(args.shots, train.labels), None])) if args.shots else ()
    names = train.class_names
    train, test = (
        extract_features(encoder, data, batch_size=batch_size(args, data), provenance=provenance)
        for data in (train, test)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {}
    for kind, file in zip(kinds, files, strict=True):
        probe = probes.PROTOCOLS[kind]()
        say(f"{kind}: fitting" + (f", also {len(shots) - 1} times {args.draws} draws of few labels" if shots else ""))
        found[kind] = probes.evaluate(
            train, test, probe=probe, seeds=range(args.seeds), shots=shots, draws=args.draws, class_names=names
        )
        found[kind].save(file)
        say(f"{kind} in {found[kind].seconds:.1f} s: {found[kind].protocol()}")
        report.evaluation_page(path, found, title=f"{_named(found)} on {found[kind].test['name']}")
    if args.shots:
        say(f"\n{_label_efficiency(found)}")
    say(f"\n{results.table(found.values(), mark=True)}")
    say(f"\nWritten: {path} (open it in a browser), and beside it {', '.join(file.name for file in files)}")


def _named(found):
    """What the representation is called."""
    return next(iter(found.values())).representation["name"]


def _label_efficiency(found):
    """Markdown: test top-1 against labels a class, a column a probe."""
    from keras_issl import report

    kinds = ["test top-1"] if len(found) == 1 else list(found)
    rows = []
    for key in next(iter(found.values())).few_shot:
        scores = [result.few_shot[key] for result in found.values()]
        cells = [f"{s['mean']:.4f}" + (f" ± {s['sd']:.4f}" if s["draws"] > 1 else "") for s in scores]
        label = f"{float(key):.3g} of train" if "." in key else key
        rows.append([label, *cells, str(scores[0]["draws"])])
    return report.table(["labels a class", *kinds, "draws"], rows)


def _diagnose(args):
    from keras_issl import diagnosis, zoo

    path, _ = _page(args, "diagnosis")
    encoder, size, provenance = load_encoder(args)
    data, everything = load_split(args, size, "test")
    is_small = max(data.image_shape[:2]) < 128
    labelled = _labelled(args, data, everything, size) if (is_small if args.risk is None else args.risk) else None
    most = args.limit or (2_000 if is_small else 500)
    if len(data) > most:
        data = data.subset(np.linspace(0, len(data) - 1, most).astype(int))
        say(f"diagnosed on {most:,} of them, evenly spaced")
    preset = provenance["preset"]
    metadata = zoo.read_metadata(preset)
    try:
        objective = zoo.load_objective(preset)
    except ValueError as error:
        objective = None
        say(f"no classes of its own: {error}")
    found = diagnosis.diagnose_encoder(
        encoder,
        data,
        _augmentation(args, metadata, data),
        path,
        objective=objective,
        trained_for=None if objective is not None else (metadata.get("recipe") or {}).get("objective"),
        untrained=zoo.from_preset(preset, load_weights=False),
        labelled=labelled,
        num_views=args.views,
        tasks=args.tasks,
        batch_size=batch_size(args, data),
        title=f"{metadata['name']} on {data.name}",
        provenance=provenance,
        say=say,
    )
    for verdict in found.diagnosis.verdicts:
        say(f"{verdict.level}: {verdict.title}. {verdict.evidence}" + (f" {verdict.advice}" if verdict.advice else ""))
    say("\n".join([*found.advice.summary, f"Written in {found.seconds:.0f} s: {path} (open it in a browser)"]))


def _labelled(args, data, everything, size):
    """Labelled training and test images for the risk decomposition, or None with a line that says why."""
    from keras_issl import datasets

    reason = None
    if (data.labels < 0).any():
        reason = "there are images without a label"
    elif everything:
        return _split(data)
    else:
        try:
            train = load(args, args.train_split, size, "--train-split")
        except datasets.UnknownSplit as error:
            reason = str(error)
        else:
            if (train.labels >= 0).all() and train.fingerprint != data.fingerprint:
                return train, data.with_classes(train.class_names)
            reason = f"{train.name} should be other images than {data.name}, all with labels"
    if args.risk:
        raise ValueError(f"`--risk` needs labelled training and test images, but {reason}.")
    say(f"no risk decomposition: {reason}")
    return None


def _augmentation(args, metadata, data):
    """The one that was asked for, else that of the preset's recipe, else one that suits the images."""
    from keras_issl import recipes

    side = data.image_shape[0]
    kind = args.augmentation or ("affine" if args.data == "digits" else "simclr")
    trained_with = None if args.augmentation else recipes.build_augmentation(metadata.get("recipe"), side)
    chosen = trained_with or recipes.AUGMENTATIONS[kind](side)
    say(f"views: {type(chosen).__name__}, {'as in training' if trained_with else 'chosen for these images'}")
    return chosen


def _features(args):
    from keras_issl.features import check_out, extract_features

    check_out(args.out)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    encoder, size, provenance = load_encoder(args)
    data = load(args, args.split, size)
    features = extract_features(encoder, data, batch_size=batch_size(args, data), provenance=provenance, out=args.out)
    say(f"{len(features):,} x {features.array.shape[1]} features written to {args.out}")


def _neighbours(args):
    from PIL import Image

    from keras_issl import report
    from keras_issl.features import extract_features

    if not args.out.endswith(".png"):  # before the images are encoded in vain
        raise ValueError(f"`out` should end in .png. Received: {args.out!r}")
    encoder, size, provenance = load_encoder(args)
    data, _ = load_split(args, size, "test")
    own = _own_pictures(args, encoder, data, size)
    features = extract_features(encoder, data, batch_size=batch_size(args, data), provenance=provenance)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    path = report.neighbours(
        data.images,
        features.array,
        args.out,
        queries=min(args.queries, len(data)),
        neighbours=min(8, len(data) - 1),
        labels=data.labels,
        class_names=data.class_names,
        **own,
    )
    with Image.open(path) as picture:
        say(f"{picture.text['Description']}\nWritten to {path}")


def _own_pictures(args, encoder, data, size):
    """The user's own queries, brought to the size of the images, and their features."""
    from keras_issl import zoo
    from keras_issl.features import extract_features

    if not args.image:
        return {}
    side = size["image_size"] or min(data.image_shape[:2])
    images = zoo.load_images(args.image, resize=size.get("resize", side), crop=side)
    return {"query_images": images, "query_features": extract_features(encoder, images, verbose=False).array}
