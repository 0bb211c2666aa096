"""The section `training` of `tools/benchmark.py`: `fit` of a recipe, its images on the host and on the device."""

import functools
import statistics

import numpy as np

# Recipe, what is changed of it, and the steps of an epoch; on a CPU small, for XLA's convolutions.
GPU = ("tiny_imagenet/dissl", {"batch_size": 512}, 60)
CPU = ("cifar10/dissl-small", {"encoder_args": {"width": 8, "stem": "strided"}, "batch_size": 64}, 8)
HOST, DEVICE = "images on the host", "images on the device"
CELL, GOAL = 100 * 100_000, 600.0  # images of 100 epochs of Tiny-ImageNet, and the seconds that they should take


def recipe_of(gpu):
    """The recipe and the steps of an epoch."""
    from keras_issl import recipes

    name, changes, steps = GPU if gpu else CPU
    return recipes.override(name, changes)[0], steps


def training_worker(who, case, gpu):
    """Returns (an epoch of `fit`, facts); who is a backend and where the images are."""
    import keras

    from keras_issl import datasets, recipes

    recipe, steps = recipe_of(gpu)
    side, count = recipe.augmentation_args["size"], steps * recipe.batch_size
    data = datasets.ImageDataset(np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype="uint8"))
    data = data.on_device() if who.endswith(DEVICE) else data
    model = recipes.build(recipe, count)

    def epoch():
        model.fit(data, batch_size=recipe.batch_size, epochs=1, verbose=0)
        keras.ops.convert_to_numpy(model.steps)  # all steps are done when their number is there

    return epoch, {"images": count, "device": device_name()}


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


def measure_training(options, compare, row):
    """Rows of the section `training`: images a second, and on a known GPU the shares of its peaks that they take."""
    recipe, steps = recipe_of(options.gpu)
    case = f"{recipe.name}, {steps} x {recipe.batch_size} images of {recipe.augmentation_args['size']} px"
    best, device = 0.0, ""
    for backend in options.backends:
        places = (HOST,) if backend == "tensorflow" else (HOST, DEVICE)
        found = compare("training", case, tuple(f"{backend} {place}" for place in places), options.gpu, options.rounds)
        base = found[f"{backend} {HOST}"][1]
        for who, (facts, times, _) in found.items():
            rate = facts["images"] / statistics.median(times)
            ratio = statistics.median(b / t for b, t in zip(base, times, strict=True))
            yield row("training", case, who, rate, "images/s", None if who.endswith(HOST) else ratio)
            best, device = max(best, rate), device or facts["device"]
    if options.gpu:
        yield row("training", "100 epochs of Tiny-ImageNet at the best rate", device, CELL / best, "s", goal=GOAL)
    yield from _shares(recipe, best, device, row)


def _shares(recipe, rate, device, row):
    """What the best rate takes of a chip's peaks, by the operations and bytes of a step that are counted on paper."""
    import scaling_count
    import scaling_formulae

    chip = next((c for name, c in scaling_formulae.CHIPS.items() if name in device.lower().replace(" ", "_")), None)
    if chip is None:
        return
    from keras_issl import recipes

    side, batch = recipe.augmentation_args["size"], recipe.batch_size
    objective = functools.partial(recipes.OBJECTIVES[recipe.objective], **recipe.objective_args)
    model = scaling_count.make(objective, dict(recipe.encoder_args), ((2, side),), recipe.precision)
    counts = scaling_count.count(model, (batch, side, side, 3), ((2, side),))
    plan = scaling_formulae.Plan(counts, model.objective, chip, 1, batch, 2, batch, 1)
    for what, each, peak in (
        ("peak bfloat16 operations", plan.flops, chip.flops),
        ("memory bandwidth", plan.traffic, chip.memory_bandwidth),
    ):
        yield row("training", f"share of the {what}, on paper", device, 100 * each / batch * rate / peak, "%")
