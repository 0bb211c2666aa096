"""The catalogue: recipes by name."""

import difflib
import functools
import types

from keras_issl.recipes import cifar10, imagenet, tiny_imagenet
from keras_issl.recipes.arguments import OBJECTIVES
from keras_issl.recipes.recipe import Recipe, feature_dim


@functools.cache
def _catalogue():
    recipes = [*tiny_imagenet.catalogue(), *imagenet.catalogue(), *cifar10.catalogue()]
    return types.MappingProxyType({recipe.name: recipe for recipe in recipes})


def names():
    """The names of all recipes of the catalogue, a tuple of strings.

    Example:

    >>> names()[:2]
    ('tiny_imagenet/simclr', 'tiny_imagenet/cissl')
    """
    return tuple(_catalogue())


def get(name):
    """The recipe of a name.

    Args:
        name: One of `names()`; or a `Recipe`, which comes back as it is: all that takes a recipe takes its name.

    Returns:
        A `Recipe`.

    Raises:
        ValueError: There is none; the message has the nearest names.

    Example:

    >>> get("tiny_imagenet/dissl+dim").encoder_args["feature_dim"]
    2048
    """
    if isinstance(name, Recipe):
        return name
    known = _catalogue()
    if name in known:
        return known[name]
    if name in imagenet.WITHOUT:
        raise ValueError(f"There is no recipe {name!r}: {imagenet.WITHOUT[name]}.")
    close = [k for k in known if k.split("/")[1] == name] or difflib.get_close_matches(str(name), known, n=3)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    raise ValueError(
        f"`recipe` should be the name of a recipe. Received: {name!r}.{hint} "
        "`keras-issl pretrain --list-recipes` or `keras_issl.recipes.names()` shows all."
    )


def describe(recipe):
    """A recipe in a line.

    Args:
        recipe: A `Recipe`, or its name.

    Example:

    >>> describe("tiny_imagenet/dissl+dim")
    'DISSL, ResNet-18 to 2048 features, 2x64 px, 300 epochs of batches of 256, Adam 0.002'
    """
    _, objective, encoder, views, epochs, batch, rate = _cells(get(recipe))
    counted = f"{epochs} epoch{'s' * (epochs != '1')}"
    return f"{objective}, {encoder} features, {views} px, {counted} of batches of {batch}, {rate}"


def table_rows():
    """Header and rows of a table of the catalogue, for `report.table`.

    Returns:
        A pair: the column titles, and a list of rows, all strings.

    Example:

    >>> print(keras_issl.report.table(*table_rows()))
    """
    header = ["recipe", "objective", "encoder to features", "views", "epochs", "batch", "learning rate"]
    return header, [_cells(recipe) for recipe in _catalogue().values()]


def _cells(recipe):
    variant = recipe.encoder_args.get("variant")
    encoder = f"{f'ResNet-{variant}' if variant else 'ResNet'} to {feature_dim(recipe.encoder_args)}"
    args = recipe.augmentation_args
    small = f"+{args['num_small']}x{args['small_size']}" if "small_size" in args else ""
    views = f"{args.get('num_large', args.get('num_views', 2))}x{args.get('size')}{small}"
    optimizer = {"adam": "Adam", "sgd": "SGD", "lars": "LARS"}[recipe.optimizer]
    objective = OBJECTIVES[recipe.objective].__name__
    rate = f"{optimizer} {recipe.learning_rate:g}"
    return [recipe.name, objective, encoder, views, str(recipe.epochs), str(recipe.batch_size), rate]
