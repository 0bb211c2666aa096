"""The section `training` of `tools/benchmark.py`: `fit` of a recipe, its images on the host and on the device."""

import functools
import statistics

import numpy as np

# Recipe, batch sizes, what else is changed of it, and the steps of an epoch. On a CPU small, for XLA's convolutions.
GPU = ("tiny_imagenet/dissl", (256, 512), {}, 60)
CPU = ("cifar10/dissl-small", (64,), {"encoder_args": {"width": 8, "stem": "strided"}}, 8)
HOST, DEVICE = "images on the host", "images on the device"
CELL, GOAL = 100 * 100_000, 600.0  # images of 100 epochs of Tiny-ImageNet, and the seconds that they should take


def training_worker(who, case, gpu):
    """Returns (an epoch of `fit`, facts); who is a backend and where the images are, case a batch size."""
    import keras

    from keras_issl import datasets, recipes

    name, _, changes, steps = GPU if gpu else CPU
    recipe, _ = recipes.override(name, changes | {"batch_size": case})
    side, count = recipe.augmentation_args["size"], steps * case
    data = datasets.ImageDataset(np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype="uint8"))
    data = data.on_device() if who.endswith(DEVICE) else data
    model = recipes.build(recipe, count)

    def epoch():
        model.fit(data, batch_size=case, epochs=1, verbose=0)
        keras.ops.convert_to_numpy(model.steps)  # all steps are done when their number is there

    device = device_name()
    return epoch, {"images": count, "side": side, "device": device, "shares": shares(recipe, device)}


def device_name():
    """What the vendor calls the accelerator; empty for none, and on TensorFlow, which is not asked."""
    import keras

    if keras.config.backend() == "jax":
        import jax

        device = jax.devices()[0]
        return "" if device.platform == "cpu" else device.device_kind
    if keras.config.backend() == "torch":
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return ""


def shares(recipe, device):
    """Dict: what of a known chip's peaks one image a second takes, by what `tools/scaling.py` counts of a step."""
    import scaling_count
    import scaling_formulae

    from keras_issl import recipes

    words = f"_{'_'.join(device.lower().split())}_"  # "NVIDIA H200": a GH200 is another chip
    chip = next((chip for name, chip in scaling_formulae.CHIPS.items() if f"_{name}_" in words), None)
    if chip is None:
        return {}
    side, batch = recipe.augmentation_args["size"], recipe.batch_size
    objective = functools.partial(recipes.OBJECTIVES[recipe.objective], **recipe.objective_args)
    model = scaling_count.make(objective, dict(recipe.encoder_args), ((2, side),), recipe.precision)
    counts = scaling_count.count(model, (batch, side, side, 3), ((2, side),))
    plan = scaling_formulae.Plan(counts, model.objective, chip, 1, batch, 2, batch, 1)
    return {
        "peak bfloat16 operations": plan.flops / batch / chip.flops,
        "memory bandwidth": plan.traffic / batch / chip.memory_bandwidth,
    }


def measure_training(options, compare, row):
    """Rows of the section `training`: images a second; on a GPU what 100 epochs would take, and shares of its peaks."""
    name, sizes, _, steps = GPU if options.gpu else CPU
    for size in sizes:
        for backend in options.backends:
            places = (HOST,) if backend == "tensorflow" else (HOST, DEVICE)
            whos = tuple(f"{backend} {place}" for place in places)
            found = compare("training", size, whos, options.gpu, options.rounds)
            base = found[whos[0]][1]
            for who, (facts, times, _) in found.items():
                case = f"{name}, {steps} x {size} images of {facts['side']} px"
                rate = facts["images"] / statistics.median(times)
                ratio = statistics.median(b / t for b, t in zip(base, times, strict=True))
                yield row("training", case, who, rate, "images/s", None if who == whos[0] else ratio)
                if not options.gpu:
                    continue
                where = f"{who}, {size} a batch"
                yield row("training", "100 epochs of 100,000 images at that rate", where, CELL / rate, "s", goal=GOAL)
                for what, share in facts["shares"].items():
                    case = f"share of the {what} of {facts['device']}, on paper"
                    yield row("training", case, where, 100 * share * rate, "%")
