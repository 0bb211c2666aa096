"""Scaling on paper: FLOPs, bytes sent, memory, input and time of a training run that nobody has made.

    python tools/scaling.py chips
    python tools/scaling.py objectives --devices 8 --batch-per-device 256
    python tools/scaling.py plan --recipe imagenet/dissl_resnet50_d8192_e800_m8 --chip h200 --devices 8

`chips` prints the vendors' figures; `objectives` what each of the ten objectives sends a step; `plan` a whole run. The
model itself is counted: it is built and its training step is traced, symbolically, so that nothing is computed and no
accelerator is needed. What is assumed has an option and stands in the output. Nothing printed here is a measurement.

- FLOPs: two for each multiply-add of convolutions, dense layers, prototypes and the matrix products of losses;
  backward twice forward; teachers only forward. Augmentation and elementwise work are left out.
- Communication: gradients 2(N-1)/N times their float32 bytes (ring all-reduce); batch normalisation 2 floats a channel
  forward and backward, one message a layer; the objective what its code gathers (see `objective_messages`); the
  latency of a binary tree on each message.
- Memory: float32 weights, gradients and optimizer slots, teachers, the outputs of all trained layers, views, the loss.
- Time: the slower of products and memory traffic, and the communication that nothing hides.
"""

import argparse
import dataclasses
import functools
import os
import sys
import textwrap
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import scaling_formulae as formulae  # noqa: E402

OBJECTIVES = ("dissl", "cissl", "simclr", "dino", "swav", "byol", "simsiam", "moco_v3", "barlow_twins", "vicreg")
CROPS = {"m2": ((2, 224),), "m6": ((2, 160), (4, 96)), "m8": ((2, 224), (6, 96))}
IMAGENET = 1_281_167  # training images


def read_views(text):
    """`"m8"` or `"2x224,6x96"` as [(how many, side)]."""
    if text in CROPS:
        return CROPS[text]
    try:
        views = tuple(tuple(int(n) for n in part.split("x")) for part in text.split(","))
        if all(len(view) == 2 and min(view) > 0 for view in views):
            return views
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"views should be one of {sorted(CROPS)}, or like 2x224,6x96: got {text!r}")


def _number(least):
    def read(text):
        value = float(text)
        if not least < value < float("inf"):
            raise argparse.ArgumentTypeError(f"should be above {least}, got {text}")
        return value

    return read


def _share(text):
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"should be in (0, 1], got {text}")
    return value


def _count(text):
    value = int(float(text))  # 1e9 is a number of images
    if value < 1:
        raise argparse.ArgumentTypeError(f"should be a number of at least 1, got {text}")
    return value


def described(options):
    """(function that makes the objective, arguments of the encoder, views, precision, epochs) of a command line."""
    from keras_issl import recipes

    views, epochs = options.views, options.epochs
    if options.recipe:
        recipe = recipes.get(options.recipe)
        make = functools.partial(recipes.OBJECTIVES[recipe.objective], **recipe.objective_args)
        if views is None:
            args = recipe.augmentation_args
            small = ((args["num_small"], args["small_size"]),) if "num_small" in args else ()
            views = ((2, args["size"]), *small)
        return make, dict(recipe.encoder_args), views, options.precision or recipe.precision, epochs or recipe.epochs
    make = functools.partial(recipes.OBJECTIVES[options.objective], heads="imagenet")
    encoder = {"variant": options.encoder, "feature_dim": options.feature_dim}
    views = views or CROPS["m2"]
    encoder["image_size"] = views[0][1]
    return make, encoder, views, options.precision or "mixed_bfloat16", epochs or 100


def plan_of(options):
    """The `formulae.Plan` of a command line, and the model it is of, in words."""
    import scaling_count

    make, encoder, views, precision, epochs = described(options)
    model = scaling_count.make(make, encoder, views, precision)
    side = max(s for _, s in views)
    counts = scaling_count.count(model, (options.batch_per_device, side, side, 3), views)
    given = {f.name: getattr(options, f.name) for f in dataclasses.fields(formulae.Assumptions)}
    plan = formulae.Plan(
        counts, model.objective, formulae.CHIPS[options.chip], options.devices, options.batch_per_device,
        sum(n for n, _ in views), options.images, epochs, formulae.Assumptions(**given), options.chunk_rows,
    )  # fmt: skip
    crops = " + ".join(f"{n}x{s}" for n, s in views)
    named = f"ResNet-{encoder['variant']}, {model.encoder.output_shape[-1]} features, {crops} px, {precision}"
    return plan, f"{type(model.objective).__name__}, {named}"


def print_plan(options):
    plan, words = plan_of(options)
    print(f"{words}; {options.devices} x {options.chip}, {options.batch_per_device} images a device.")
    print("On paper: nothing here was measured. Assumed:")
    assumed = ", ".join(f"{name}={value:g}" for name, value in dataclasses.asdict(plan.assumptions).items())
    print(textwrap.fill(assumed, 118) + "\n")
    print("| | | |\n|---|---|---|")
    order = ("step", "communication", "memory a device", "input", "run")
    for section, quantity, value in sorted(plan.rows(), key=lambda row: order.index(row[0])):
        print(f"| {section} | {quantity} | {value} |")


def print_objectives(options):
    """What each objective sends a step."""
    batch, devices = options.batch_per_device, options.devices
    options.recipe = None
    print(f"{devices} x {options.chip}, {batch} images a device; MB that a device sends a step.\n")
    print("| objective | what the objective exchanges | objective | only reported | batch norm | gradients |", end="")
    print(" messages | loss holds |\n|---|---|---|---|---|---|---|---|")
    for name in OBJECTIVES:
        options.objective = name
        plan, _ = plan_of(options)
        messages = plan.messages
        what = "; ".join(f"{m.collective} {m.count} x {m.what}" for m in messages if m.kind == "objective") or "nothing"
        kinds = ("objective", "logs", "batch norm", "gradients")
        sent = [sum(m.sent(devices) for m in messages if m.kind == kind) / 1e6 for kind in kinds]
        columns = " | ".join(f"{x:.3g}" for x in sent)
        loss = formulae.loss_bytes(plan.objective, batch, devices, plan.views) / 1e6
        count = sum(m.count for m in messages)
        print(f"| {type(plan.objective).__name__} | {what} | {columns} | {count} | {loss:,.0f} MB |")


def print_chips(options):
    print("| chip | bf16 TFLOP/s | memory | bandwidth | fast links | joins | between | from host | source |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, c in formulae.CHIPS.items():
        host = "–" if c.host is None else f"{c.host / 1e9:g} GB/s"
        numbers = f"{c.flops / 1e12:g} | {c.memory / 1e9:g} GB | {c.memory_bandwidth / 1e9:g} GB/s"
        links = f"{c.fast / 1e9:g} GB/s | {c.domain} | {c.slow / 1e9:g} GB/s | {host}"
        print(f"| {name} | {numbers} | {links} | {c.source} |")


def parser():
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = p.add_subparsers(required=True)
    chips = commands.add_parser("chips", help="the vendors' figures")
    chips.set_defaults(run=print_chips)
    default = formulae.Assumptions()
    for name, run, words in (
        ("objectives", print_objectives, "what each objective sends a step"),
        ("plan", print_plan, "a whole run"),
    ):
        c = commands.add_parser(name, help=words, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        c.set_defaults(run=run, recipe=None, objective=None)
        if name == "plan":
            one = c.add_mutually_exclusive_group(required=True)
            one.add_argument("--recipe", help="a name of keras_issl.recipes: objective, encoder, views, epochs")
            one.add_argument("--objective", choices=OBJECTIVES, help="with its defaults and the heads for ImageNet")
        c.add_argument("--encoder", type=int, default=50, choices=(18, 34, 50, 101), help="ResNet, without a recipe")
        c.add_argument("--feature-dim", type=_count, help="of the wider representation, without a recipe")
        c.add_argument("--views", type=read_views, help=f"{', '.join(CROPS)} or like 2x224,6x96")
        c.add_argument("--precision", help="dtype policy; the recipe's, or mixed_bfloat16")
        c.add_argument("--chip", default="h200", choices=formulae.CHIPS)
        c.add_argument("--devices", type=_count, default=8)
        c.add_argument("--batch-per-device", type=_count, default=256, help="images")
        c.add_argument("--images", type=_count, default=IMAGENET, help="images an epoch")
        c.add_argument("--epochs", type=_number(0), help="the recipe's, or 100")
        c.add_argument("--chunk-rows", type=_count, help="images whose logits live at once, in a loss by chunks")
        c.add_argument("--utilisation", type=_share, default=default.utilisation, help="of the peak FLOP/s")
        c.add_argument("--memory-efficiency", type=_share, default=default.memory_efficiency, help="of its bandwidth")
        c.add_argument("--link-efficiency", type=_share, default=default.link_efficiency, help="of the links'")
        c.add_argument("--overlap", type=_share, default=default.overlap, help="share of backward that hides gradients")
        c.add_argument("--accesses", type=_count, default=default.accesses, help="of memory, for each layer's output")
        c.add_argument("--slots", type=int, default=default.slots, help="of the optimizer: 1 momentum, 2 Adam")
        c.add_argument("--decode", type=_number(0), default=default.decode, help="images a second and core")
        c.add_argument("--file", type=_number(0), default=default.file, help="bytes of a stored image")
        c.add_argument("--stored", type=_count, default=default.stored, help="side of the decoded image, pixels")
    return p


def main(arguments=None):
    options = parser().parse_args(arguments)
    options.run(options)


if __name__ == "__main__":
    main()
