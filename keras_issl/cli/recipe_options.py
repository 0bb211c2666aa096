"""Which recipe `keras-issl pretrain` trains by: one of the catalogue, or one for the images at hand, with changes."""

from keras_issl.cli.shared import say

OBJECTIVES = ("dissl", "cissl", "simclr", "dino", "swav", "byol", "simsiam", "barlow_twins", "vicreg", "moco_v3")
COMPARED = ("simclr", "cissl", "dissl")
OWN = ("objective", "encoder", "augmentation", "image_size")  # options that a recipe of the catalogue answers
OVERRIDES = {  # option -> what it overrides in a recipe
    "epochs": "epochs",
    "batch_size": "batch_size",
    "learning_rate": "learning_rate",
    "precision": "precision",
    "seed": "seed",
    "num_classes": "objective_args.num_classes",
}


def add(parser):
    """Adds the options to a parser."""
    p = parser.add_argument_group("what to train")
    p.add_argument("--recipe", metavar="NAME", help="a recipe of the catalogue, such as tiny_imagenet/dissl+dim")
    p.add_argument("--list-recipes", action="store_true", help="print the catalogue and stop")
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a number of the recipe, such as clip_value=none or objective_args.num_classes=4096; repeatable",
    )
    p.add_argument(
        "--smoke", action="store_true", help="shrink the recipe, overrides and all, to a minute: does everything work?"
    )
    p.add_argument("--objective", choices=OBJECTIVES, help="default: dissl")
    p.add_argument("--objectives", nargs="+", choices=OBJECTIVES, help="for --compare; default: simclr cissl dissl")
    p.add_argument("--augmentation", choices=("simclr", "affine"), help="default: simclr; affine for digits")
    p.add_argument("--encoder", choices=("narrow", "resnet18", "resnet50"), help="default: narrow, trains on a CPU")
    p.add_argument("--image-size", type=int, help="side in pixels that images are stored and trained at")
    p.add_argument("--epochs", type=int)
    p.add_argument("--batch-size", type=int, help="scales the learning rate by the recipe's rule")
    p.add_argument("--learning-rate", type=float)
    p.add_argument("--num-classes", type=int, help="DISSL's equivalence classes C")
    p.add_argument("--precision", choices=("float32", "mixed_bfloat16"))
    p.add_argument("--seed", type=int)


def say_recipes():
    """Prints the catalogue, a line a recipe."""
    from keras_issl import recipes

    width = max(map(len, recipes.names()))
    for name in recipes.names():
        say(f"{name:<{width}}  {recipes.describe(recipes.get(name))}")
    say("\nkeras-issl pretrain --recipe NAME --data DATA [--set NAME=VALUE ...] [--smoke]")


def read(args):
    """The recipe that was asked for.

    Args:
        args: The parsed options. `objectives` becomes what --compare trains.

    Returns:
        A function from an objective's name to its recipe, the notes on it, and a dict of what the user changed.
    """
    _check(args)
    overrides = _overrides(args)
    chosen = {name: getattr(args, name) for name in OWN[1:] if getattr(args, name) is not None}

    def make(objective):
        from keras_issl import recipes

        recipe = recipes.get(args.recipe) if args.recipe else _own(args, objective)
        ours = overrides
        if args.compare and objective != "dissl":  # the others have no classes
            ours = {name: value for name, value in overrides.items() if name != OVERRIDES["num_classes"]}
        if OVERRIDES["num_classes"] in ours and args.num_classes is not None and recipe.objective != "dissl":
            raise ValueError(f"`--num-classes` is for DISSL. Received: --recipe {args.recipe}")
        recipe, notes = recipes.override(recipe, ours, argument="--set")
        asked = chosen | {name: recipes.lookup(recipe, name) for name in ours}
        if args.smoke:
            recipe = recipes.smoke(recipe)
            notes.append(
                f"smoke: everything shrunk to a minute's work, {recipe.epochs} epochs of batches of "
                f"{recipe.batch_size} at a learning rate of {recipe.learning_rate:g}, to see that it works; "
                "its figures mean nothing"
            )
        recipes.check(recipe)
        return recipe, notes, asked

    return make


def _check(args):
    """Options that contradict each other."""
    if args.recipe:
        given = [name for name in (*OWN, "compare", "objectives") if getattr(args, name)]
        if given:
            names = " and ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ValueError(
                f"`--recipe` should stand without {names}: the recipe says. Received: --recipe {args.recipe}. "
                "Change numbers of it with --set NAME=VALUE, such as --set augmentation_args.size=32."
            )
    if args.objectives and not args.compare:
        raise ValueError("`--objectives` is for --compare. Use --objective to train one.")
    if args.compare and args.objective:
        raise ValueError(
            f"`--compare` trains several objectives. Received: --objective {args.objective} as well. "
            "Name them with --objectives."
        )
    if args.objectives and len(set(args.objectives)) < len(args.objectives):
        raise ValueError(f"`--objectives` should name each objective once. Received: {' '.join(args.objectives)}")
    args.objectives = args.objectives or list(COMPARED)
    from_catalogue = args.recipe or args.compare
    if args.num_classes is not None and not from_catalogue and args.objective not in (None, "dissl"):
        raise ValueError(f"`--num-classes` is for DISSL. Received: --objective {args.objective}")


def _overrides(args):
    """Name of an attribute of the recipe -> value, from the options and from --set."""
    found = {name: getattr(args, option) for option, name in OVERRIDES.items() if getattr(args, option) is not None}
    for pair in args.set:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise ValueError(f"`--set` should be NAME=VALUE, such as epochs=10. Received: {pair!r}")
        if name in found:
            raise ValueError(f"{name!r} should be given once. Received: {found[name]!r} and --set {pair}")
        found[name] = value
    return found


def _own(args, objective):
    """A recipe for the images at hand."""
    from keras_issl import recipes

    if args.data == "digits" and not (args.encoder or args.augmentation or args.image_size):
        return recipes.digits(objective)
    augmentation = args.augmentation or ("affine" if args.data == "digits" else "simclr")
    return recipes.small_images(
        objective, args.image_size or _default_size(args), args.encoder or "narrow", augmentation
    )


def _default_size(args):
    """Digits are 8x8; other images are brought to 32x32 unless told otherwise."""
    return 8 if args.data == "digits" else 32


def stored_size(args, recipe):
    """The size that images are stored at, as `datasets.load` takes it."""
    if recipe.image_size is not None:
        return {"image_size": recipe.image_size}
    return {"image_size": args.image_size or (None if args.data == "digits" else _default_size(args))}
