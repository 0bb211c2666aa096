"""The sections `objectives` and `multicrop` of `tools/benchmark.py`: their contestants and what is printed of them."""

import math
import statistics

import numpy as np

OBJECTIVES = ("simclr", "cissl", "dissl", "dino", "swav", "byol", "simsiam", "moco_v3", "barlow_twins", "vicreg")
# The encoder, the images of a batch and their side; the heads are those of the recipes for CIFAR-10.
STEP = {"cpu": ("ResNet-18, 32 px", {"variant": 18, "image_size": 32, "stem": "small"}, 64)}
STEP["gpu"] = ("ResNet-18, 64 px", {"variant": 18, "image_size": 64, "stem": "small"}, 256)
# m6: 2 views of 160 px and 4 of 96, of so many images.
CROPS = {"cpu": ("ResNet-18, m6", {"variant": 18}, 8), "gpu": ("ResNet-50, m6", {"variant": 50}, 64)}
LARGE, SMALL, MOST = (2, 160), (4, 96), 1.15


def model_of(objective, encoder_args, gpu, **arguments):
    """A compiled `Pretrainer` without augmentation."""
    import keras

    import keras_issl
    from keras_issl import recipes

    if gpu:
        keras.config.set_dtype_policy("mixed_bfloat16")
    layer = recipes.OBJECTIVES[objective](**arguments)
    model = keras_issl.Pretrainer(keras_issl.encoders.ResNet(**encoder_args), layer)
    model.compile(keras.optimizers.Adam(1e-3))
    if layer.uses_run_length:
        layer.set_run_length(200, 195)  # the recipes'
    return model


def objectives_worker(who, case, gpu):
    """Returns (one training step, facts); who is a backend and an objective."""
    from keras_issl import recipes

    objective = who.partition(" ")[2]
    _, encoder_args, batch = STEP["gpu" if gpu else "cpu"]
    model = model_of(objective, encoder_args, gpu, **recipes.get(f"cifar10/{objective}").objective_args)
    side = encoder_args["image_size"]
    images = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype="uint8")
    facts = {"views": model.objective.num_views, "teacher_views": 0}
    if model.objective.teacher_momentum is not None:
        facts["teacher_views"] = model.objective.num_teacher_views
    facts["weights"] = sum(math.prod(w.shape) for w in model.encoder.trainable_weights)
    return lambda: model.train_on_batch(images), facts


def multicrop_worker(who, case, gpu):
    """Returns (features of views and their gradient, facts); who is a backend and "m6", "large" or "small"."""
    _, encoder_args, batch = CROPS["gpu" if gpu else "cpu"]
    model = model_of("dissl", encoder_args, gpu, num_classes=8)
    rng = np.random.default_rng(0)
    kinds = {"m6": (LARGE, SMALL), "large": (LARGE,), "small": (SMALL,)}[who.partition(" ")[2]]
    views = [rng.integers(0, 256, (batch, side, side, 3), dtype="uint8") for count, side in kinds for _ in range(count)]
    return forward_backward(model, views), {"views": len(views)}


def forward_backward(model, views):
    """A function that runs the encoder over views as the training step does, and differentiates the features."""
    import keras
    from keras import ops

    weights, views = model.encoder.trainable_weights, [ops.convert_to_tensor(view) for view in views]

    def loss_of(views):
        return ops.mean(ops.square(ops.cast(model.features(views), "float32")))

    if keras.config.backend() == "torch":

        def step():
            model.zero_grad()
            loss = loss_of(views)
            loss.backward()
            return loss.item()

    elif keras.config.backend() == "tensorflow":
        import tensorflow as tf

        @tf.function(jit_compile=model.jit_compile)
        def gradients():
            with tf.GradientTape() as tape:
                loss = loss_of(views)
            return loss, tape.gradient(loss, [weight.value for weight in weights])

        def step():
            return gradients()[0].numpy()

    else:
        import jax

        others = [v for v in model.encoder.variables if all(v is not w for w in weights)]

        def pure(values, state, views):
            pairs = [*zip(weights, values, strict=True), *zip(others, state, strict=True)]
            with keras.StatelessScope(state_mapping=pairs) as scope:
                loss = loss_of(views)
            return loss, [scope.get_current_value(v) for v in others]

        compiled = jax.jit(jax.value_and_grad(pure, has_aux=True))

        def step():
            found = compiled([w.value for w in weights], [v.value for v in others], views)
            jax.block_until_ready(found)

    return step


def measure_objectives(options, compare, row):
    """Rows of the section `objectives`: the time of a step as a multiple of SimCLR's on the same backend."""
    case, _, batch = STEP["gpu" if options.gpu else "cpu"]
    case = f"{case}, {batch} images"
    for backend in options.backends:
        if backend == "jax" and not options.gpu:
            print("objectives: jax is left out on a CPU, where XLA's convolutions take a step of seconds to minutes")
            continue
        whos = tuple(f"{backend} {objective}" for objective in OBJECTIVES)
        found = compare("objectives", case, whos, options.gpu, options.rounds, 2, options.profile)
        if len({facts["weights"] for facts, _, _ in found.values()}) != 1:
            raise RuntimeError("The objectives should train the same encoder.")
        base = found[whos[0]][1]
        for who, (facts, times, _) in found.items():
            passes = f"{facts['views']} views" + (f" + {facts['teacher_views']} EMA" if facts["teacher_views"] else "")
            ratio = statistics.median(t / b for t, b in zip(times, base, strict=True))
            yield row("objectives", f"{case}: {passes}", who, statistics.median(times), "s", ratio)


def measure_multicrop(options, compare, row):
    """Rows of the section `multicrop`: m6 in one step against each size alone, forward and backward."""
    case, _, batch = CROPS["gpu" if options.gpu else "cpu"]
    case = f"{case}, {batch} images"
    for backend in options.backends:
        whos = tuple(f"{backend} {kind}" for kind in ("m6", "large", "small"))
        found = compare("multicrop", case, whos, options.gpu, options.rounds, 1, options.profile)
        both, *alone = (found[who][1] for who in whos)
        ratio = statistics.median(t / sum(parts) for t, *parts in zip(both, *alone, strict=True))
        for who, times in zip(whos[1:], alone, strict=True):
            yield row("multicrop", case, who, statistics.median(times), "s")
        both = statistics.median(both)
        yield row("multicrop", f"{case} against the sum", whos[0], both, "s", ratio, MOST, at_most=True)
