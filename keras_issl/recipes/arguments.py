"""What a recipe's names stand for, which arguments they take, and of which type: read from the constructors."""

import ast
import difflib
import functools
import inspect
import types
import typing

import keras

from keras_issl import augmentations, encoders, objectives, optimizers

OBJECTIVES = {
    "dissl": objectives.DISSL,
    "cissl": objectives.CISSL,
    "simclr": objectives.SimCLR,
    "dino": objectives.DINO,
    "swav": objectives.SwAV,
    "byol": objectives.BYOL,
    "simsiam": objectives.SimSiam,
    "barlow_twins": objectives.BarlowTwins,
    "vicreg": objectives.VICReg,
    "moco_v3": objectives.MoCoV3,
}
AUGMENTATIONS = {
    "simclr": augmentations.SimCLR,
    "affine": augmentations.Affine,
    "multi_crop": augmentations.MultiCrop,
}
OPTIMIZERS = {"adam": optimizers.Adam, "sgd": optimizers.SGD, "lars": optimizers.LARS}

KINDS = {  # field of arguments -> field that names what takes them, and what it can name
    "objective_args": ("objective", OBJECTIVES),
    "encoder_args": (None, {None: encoders.ResNet}),
    "augmentation_args": ("augmentation", AUGMENTATIONS),
    "optimizer_args": ("optimizer", OPTIMIZERS),
}
# What a recipe sets itself, or what does not belong in one.
WITHHELD = {
    "self", "name", "dtype", "trainable", "seed", "channels", "learning_rate", "clipvalue", "clipnorm",
    "global_clipnorm", "use_ema", "ema_momentum", "ema_overwrite_frequency", "loss_scale_factor",
    "gradient_accumulation_steps",
}  # fmt: skip
ANY = object()  # in place of a default: every type will do


def takes(recipe, kind):
    """The class that one of a recipe's fields of arguments, such as `"objective_args"`, belongs to."""
    chosen, known = KINDS[kind]
    return known[chosen and getattr(recipe, chosen)]


@functools.cache
def defaults(cls):
    """Argument -> default of a constructor, those included that it hands on to its base class; `ANY` without one."""
    found = {}
    for base in cls.__mro__:
        if base in (objectives.Objective, keras.layers.Layer, keras.optimizers.Optimizer):
            break
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()
        for p in parameters:
            if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name not in WITHHELD:
                found.setdefault(p.name, ANY if p.default is p.empty else p.default)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return types.MappingProxyType(found)


def check_arguments(recipe):
    """Raises a `ValueError` for arguments that what the recipe names does not take, or not of this type."""
    for kind in KINDS:
        cls = takes(recipe, kind)
        known = defaults(cls)
        for name, value in getattr(recipe, kind).items():
            if name not in known:
                raise ValueError(
                    f"`{kind}` should hold arguments of {cls.__name__}: {', '.join(sorted(known))}. "
                    f"Received: {name!r}.{nearest(name, known)}"
                )
            checked(f"{kind}.{name}", value, kind_of(known[name]))


def check(recipe, num_images=None):
    """Raises a `ValueError` unless a recipe's objective, augmentation and optimizer take their arguments.

    A `Recipe` knows the names and types of arguments. Their ranges are known to the constructors, which are called
    here; `runs.pretrain` does so before it makes a folder.

    Args:
        recipe: A `Recipe`.
        num_images: How many images an epoch has, to check that the objective's schedules end within the run, too.

    Example:

    >>> check(keras_issl.recipes.digits("byol"))
    >>> check(keras_issl.recipes.digits("byol", optimizer_args={"l2": -1.0}))
    Traceback (most recent call last):
    ValueError: ...
    """
    for kind, first in (("objective_args", ()), ("augmentation_args", ()), ("optimizer_args", (1e-3,))):
        cls, given = takes(recipe, kind), getattr(recipe, kind)
        missing = [name for name, default in defaults(cls).items() if default is ANY and name not in given]
        if missing:
            raise ValueError(
                f"`{kind}` should hold {' and '.join(missing)}, which {cls.__name__} has no defaults for. "
                f"Received: {', '.join(given) or 'none'}"
            )
        try:
            made = cls(*first, name="checked", **given)
        except (ValueError, TypeError) as error:  # of a value within a tuple, say
            raise ValueError(f"`{kind}`, for {cls.__name__}: {error}") from error
        if kind == "objective_args" and num_images:
            epoch, _, _ = recipe.steps(num_images)
            batch = min(recipe.batch_size, num_images)
            made.check_run(batch_size=batch, epochs=recipe.epochs, steps_per_epoch=epoch)


def nearest(name, known, most=1):
    """` Did you mean ...?`, or nothing where nothing is near."""
    known, name = [str(k) for k in known], str(name)
    close = [k for k in known if name and name in k.split(".")]  # an argument without what it belongs to
    close = close or difflib.get_close_matches(name, known, n=most)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def tuples(value):
    """Lists as tuples, within dictionaries too: JSON knows no tuples, and a recipe read from it equals its origin."""
    if isinstance(value, dict):
        return {key: tuples(v) for key, v in value.items()}
    return tuple(tuples(v) for v in value) if isinstance(value, (list, tuple)) else value


def kind_of(default):
    """The type that stands for a default: an annotation, or `ANY`."""
    if default is ANY or default is None:
        return ANY
    if isinstance(default, tuple):  # of floats: such as a momentum, one number or a pair
        return tuple | float if all(isinstance(v, float) for v in default) and default else tuple
    return type(default)


def checked(name, value, kind):
    """The value, an int where a float should be as a float; a `ValueError` if it is of another type."""
    if kind is ANY:
        return value
    kinds = typing.get_args(kind) or (kind,)
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds):
        return value
    raise ValueError(f"`{name}` should be {_said(kinds)}. Received: {value!r}")


def parsed(name, text, kind):
    """What a string on the command line stands for, where a value of this type should be."""
    if kind is ANY or dict in (kind, *typing.get_args(kind)):
        text = "None" if text.lower() == "none" else text
        try:
            value = tuples(ast.literal_eval(text))
        except (ValueError, SyntaxError):
            value = text
        return value if kind is ANY else checked(name, value, kind)
    kinds = typing.get_args(kind) or (kind,)
    if types.NoneType in kinds and text.lower() == "none":
        return None
    if bool in kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for number in (int, float):
        if number in kinds:
            try:
                return number(text)
            except ValueError:
                continue
    if tuple in kinds:
        try:
            return checked(name, tuples(ast.literal_eval(text)), kind)
        except (ValueError, SyntaxError):
            pass
    if str in kinds:
        return text
    raise ValueError(f"`{name}` should be {_said(kinds)}. Received: {text!r}")


def _said(kinds):
    words = {
        int: "an integer",
        float: "a number",
        bool: "True or False",
        str: "a string",
        tuple: "a tuple such as (1, 2)",
        dict: "a dictionary of arguments",
        types.NoneType: "None",
    }
    return " or ".join(words[kind] for kind in sorted(kinds, key=list(words).index))
