"""Changing numbers of a recipe by name, with their types checked and their consequences said."""

import dataclasses
import types

from keras_issl.recipes.arguments import ANY, KINDS, checked, defaults, kind_of, nearest, parsed, takes, tuples
from keras_issl.recipes.catalogue import get
from keras_issl.recipes.recipe import Recipe

IDENTITY = ("name", "note", "smoke")  # what a recipe is, and not how it trains
SCHEDULES = ("warmup_epochs", "freeze_epochs", "queue_start_epoch")  # of objectives, in epochs: they end within the run
MEANS_THE_SAME = {  # field that names what takes arguments -> theirs, and those that whatever else is named takes alike
    "objective": ("objective_args", ("heads", "probe")),
    "augmentation": ("augmentation_args", ("size", "preset", "jitter", "hue", "gray", "blur")),
    "optimizer": ("optimizer_args", ()),  # an epsilon or a weight decay of one is not that of another
}


def override(recipe, changes, *, argument="changes"):
    """A recipe with some of its numbers changed, and what followed from that.

    Args:
        recipe: A `Recipe`, or its name.
        changes: A dict from names to values, or to strings as they stand on a command line. A name is that of an
            attribute, such as `"epochs"`, or of an argument within one, such as `"objective_args.num_classes"`. A dict
            for all arguments of one, as in `{"objective_args": {"num_classes": 64}}`, completes those that it has.
        argument: What the user of a caller knows `changes` as, for messages.

    These consequences are drawn, unless the number they change is given too, and said in the notes:

    - a changed `batch_size` scales the learning rate by the recipe's `learning_rate_rule`, and keeps the images of
      `freeze_steps`;
    - with fewer `epochs`, the warm-up and the schedules of the objective that are counted in epochs take at most a
      quarter of the run, or their share of the recipe's where that is more;
    - another objective, augmentation or optimizer begins with its own defaults;
    - `warmup_fraction` takes the place of `warmup_epochs`.

    Returns:
        A pair: the new recipe, and a list of sentences.

    Raises:
        ValueError: A name that does not exist, with the nearest one; a value of another type or out of its range.

    Example:

    >>> recipe, notes = override("tiny_imagenet/simclr", {"batch_size": "128"})
    >>> recipe.learning_rate, notes
    (0.001, ['learning_rate 0.004 -> 0.001: linear in batch_size, 512 -> 128'])
    """
    recipe = get(recipe)
    given = set(changes) | {f"{name}.{key}" for name, v in changes.items() if isinstance(v, dict) for key in v}
    values, notes = _chosen(recipe, changes)
    begun = types.SimpleNamespace(**{**vars(recipe), **values})  # not checked yet: arguments may still be missing
    for name, value in sorted(changes.items(), key=lambda change: "." in change[0]):  # all of a dict, then one of it
        field, _, within = name.partition(".")
        value = _value(begun, name, value, argument)
        if within or isinstance(value, dict):
            values[field] = {
                **(values.get(field, getattr(recipe, field)) or {}),
                **({within: value} if within else value),
            }
        else:
            values[field] = value
    if values.get("warmup_fraction") is not None and recipe.warmup_epochs is not None and "warmup_epochs" not in values:
        values["warmup_epochs"] = None
        notes.append(f"warmup_epochs {recipe.warmup_epochs:g} -> none: warmup_fraction says")
    fitted, batch_notes = _fit_to_batch(recipe, values, given)
    changed, epoch_notes = fit_to_epochs(recipe, fitted, given)
    return changed, notes + batch_notes + epoch_notes


def _chosen(recipe, changes):
    """Another objective, augmentation or optimizer, with those arguments that mean the same to it; and notes."""
    values, notes = {}, []
    for field, (kind, shared) in MEANS_THE_SAME.items():
        before, now = getattr(recipe, field), changes.get(field, getattr(recipe, field))
        known = KINDS[kind][1]
        if now == before or now not in known:  # which `Recipe` refuses
            continue
        kept = {n: v for n, v in getattr(recipe, kind).items() if n in shared and n in defaults(known[now])}
        values |= {field: now, kind: kept}
        left = [name for name in getattr(recipe, kind) if name not in kept]
        notes.append(
            f"{field} {before} -> {now}: with the defaults of {known[now].__name__}"
            + (f" in place of {', '.join(left)}" if left else "")
            + (f"; learning_rate stays {recipe.learning_rate:g}" if _keeps_rate(field, changes) else "")
        )
    return values, notes


def _keeps_rate(field, changes):
    return field == "optimizer" and "learning_rate" not in changes


def _fit_to_batch(recipe, values, given):
    """The values, with what follows from another batch size, and a list of sentences."""
    before, now, notes = recipe.batch_size, values.get("batch_size", recipe.batch_size), []
    if now == before or now < 1:
        return values, notes
    values = dict(values)
    if "learning_rate" not in given and recipe.learning_rate_rule == "linear":
        values["learning_rate"] = recipe.learning_rate * now / before
        notes.append(
            f"learning_rate {recipe.learning_rate:g} -> {values['learning_rate']:g}: "
            f"linear in batch_size, {before} -> {now}"
        )
    arguments = values.get("objective_args", recipe.objective_args)
    steps = arguments.get("freeze_steps", 0)
    if "objective" not in values and "objective_args.freeze_steps" not in given and steps * before // now != steps:
        values["objective_args"] = arguments | {"freeze_steps": steps * before // now}
        notes.append(f"objective_args.freeze_steps {steps} -> {steps * before // now}: as many images, {now} a step")
    return values, notes


def _names(recipe):
    """Everything of a recipe that can be overridden."""
    fields = [field.name for field in dataclasses.fields(Recipe) if field.name not in IDENTITY]
    return fields + [f"{kind}.{argument}" for kind in KINDS for argument in sorted(defaults(takes(recipe, kind)))]


def _value(recipe, name, value, called):
    """The value that is asked for under a name, as a checked number, string, tuple, ..."""
    known = _names(recipe)
    if name not in known:
        fields = ", ".join(n for n in known if "." not in n)
        hint = nearest(name, known) or f" It has {fields}; arguments follow a dot, as in objective_args.probe."
        raise ValueError(
            f"`{called}` should name attributes of the recipe, or their arguments. Received: {name!r}.{hint}"
        )
    field, _, argument = name.partition(".")
    if argument:
        kind = kind_of(defaults(takes(recipe, field))[argument])
        current = getattr(recipe, field).get(argument)
        if kind is ANY and current is not None:  # the constructor does not say, but the recipe does
            kind = kind_of(current)
    else:
        kind = next(f.type for f in dataclasses.fields(Recipe) if f.name == name)
    return parsed(name, value, kind) if isinstance(value, str) else checked(name, tuples(value), kind)


def lookup(recipe, name):
    """What a recipe has under a name that `override` takes; `None` for an argument that it leaves to its default.

    Example:

    >>> lookup(keras_issl.recipes.get("cifar10/simclr"), "objective_args.temperature")
    0.07
    """
    field, _, argument = name.partition(".")
    value = getattr(recipe, field)
    return value.get(argument) if argument else value


def fit_to_epochs(recipe, values, given):
    """`dataclasses.replace`, with the schedules of a shorter run brought to what it has room for.

    They take at most a quarter of it, or as much of it as of the recipe's run, where that is more.

    Args:
        recipe: A `Recipe`.
        values: Attributes to replace.
        given: Names that were asked for, as in `override`; those stay as they are.

    Returns:
        A pair: the new recipe, and a list of sentences.
    """
    epochs, notes = values.get("epochs", recipe.epochs), []
    if not isinstance(epochs, int) or epochs >= recipe.epochs or epochs < 1:
        return dataclasses.replace(recipe, **values), notes

    def shorter(name, value):
        room = max(value * epochs / recipe.epochs, epochs / 4)
        found = min(value, int(room) if isinstance(value, int) else room)
        if found != value:
            notes.append(f"{name} {value:g} -> {found:.3g}: for {epochs} instead of {recipe.epochs} epochs")
        return found

    values = dict(values)
    warmup = values.get("warmup_epochs", recipe.warmup_epochs)
    if warmup is not None and "warmup_epochs" not in given:
        values["warmup_epochs"] = shorter("warmup_epochs", warmup)
    if values.get("objective", recipe.objective) == recipe.objective:
        arguments = dict(values.get("objective_args", recipe.objective_args))
        for name, value in (dict(defaults(takes(recipe, "objective_args"))) | arguments).items():
            if name in SCHEDULES and f"objective_args.{name}" not in given:
                found = shorter(f"objective_args.{name}", value)
                arguments |= {name: found} if found != value else {}
        values["objective_args"] = arguments
    return dataclasses.replace(recipe, **values), notes


def fit_to_images(recipe, num_images, given=()):
    """A recipe whose objective has room over so few images, and what was changed for that.

    SwAV freezes its prototypes for a number of steps, and keeps a number of images: its recipes' are an epoch and less
    of CIFAR-10. Both become at most an epoch of these images, and at most a quarter of the run; a queue that would be
    shorter than a batch is left out.

    Args:
        recipe: A `Recipe`, or its name.
        num_images: How many images an epoch has.
        given: Names that were asked for, as in `override`; those stay as they are.

    Returns:
        A pair: the new recipe, and a list of sentences, as `override` returns them.

    Example:

    >>> fit_to_images("cifar10/swav", 1000)[1][0]
    'objective_args.freeze_steps 195 -> 3: an epoch of 1,000 images has 3 steps, the run 600'
    """
    recipe, notes = get(recipe), []
    epoch, _, total = recipe.steps(num_images)
    steps = min(epoch, total // 4)
    known, arguments = defaults(takes(recipe, "objective_args")), dict(recipe.objective_args)
    for name, most in (("freeze_steps", steps), ("queue_length", steps * min(recipe.batch_size, num_images))):
        value = arguments.get(name, known.get(name, 0))
        if value > most and (recipe.smoke or f"objective_args.{name}" not in given):
            arguments[name] = most
            counted = f"{epoch} step{'s' * (epoch != 1)}"
            notes.append(
                f"objective_args.{name} {value} -> {most}: an epoch of {num_images:,} images has {counted}, the run "
                f"{total}"
            )
    return (dataclasses.replace(recipe, objective_args=arguments) if notes else recipe), notes
