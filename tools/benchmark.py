"""Speed against plain PyTorch, Pillow and bare Keras: one run, ratios, one Markdown table.

    python tools/benchmark.py                                  # everything this machine can show
    python tools/benchmark.py --only step --backends torch --profile
    python tools/benchmark.py --rounds 9 --out benchmark.md --json benchmark.json

Each contestant lives in a process of its own. They take turns, one running while the others wait, so that other
load on the machine hits all alike; a ratio is the median over the rounds of the ratios within a round.

- step: the DISSL training step without augmentation, `Pretrainer.train_on_batch` against the same step written in
  plain PyTorch (eager on a CPU; on a GPU compiled, bfloat16).
- augmentation: two views an image, all cores, against a Pillow pipeline of the same operations on one core.
- import: `import keras_issl` after `import keras`.
- features: ResNet-50 at 224 px in inference, as `extract_features` calls it, against plain PyTorch (eager on a CPU; on
  a GPU compiled, bfloat16).
- presets: the conversion of a checkpoint of `dissl_resnet50_d8192_e800_m8`'s shape (synthetic weights), and
  `from_preset` of it from the cache; each in a new process, after the imports. And `from_preset` of the shipped preset
  with `import keras_issl`, after `import keras`.
- input: JPEG files to training steps against DataLoader and torchvision; needs a GPU and torchvision.
- training: `fit` of a recipe, with its augmentation and without records or checkpoints, from images on the host and on
  the device (JAX and PyTorch; the ratio is device to host). On a GPU: DISSL on Tiny-ImageNet's shapes, ResNet-18 at 64
  px, bfloat16, in batches of 256, the recipe's, and of 512; what 100 epochs would take at that rate; and on an H200 the
  shares of its peaks, by what `tools/scaling.py` counts.
- objectives: the training step of every objective without augmentation, as a multiple of SimCLR's time, beside the
  views that the encoder sees: an EMA teacher sees two more, without gradient.
- multicrop: what the encoder takes of an m6 step, forward and backward, as a multiple of the sum of its two sizes
  alone.
- recording: a run of `Pretrainer.fit` with what it records at the default intervals (Recorder, CollapseGuard,
  Progress) against the same fit without; the cost of its NaNGuard and of an online probe; the first look and the page,
  paid once a run. About ten minutes a round on 2 CPU cores, on TensorFlow alone unless `--backends` says otherwise. An
  even number of rounds lets each side of a pair come first equally often; from six on the goal is judged.
"""

import argparse
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import benchmark_objectives
import benchmark_recording
import benchmark_training
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
TAG = "@@"  # before what a worker says to the parent: libraries print too
SECTIONS = ("step", "augmentation", "features", "presets", "import", "input", "training", "objectives", "multicrop")
SECTIONS += ("recording",)
BACKENDS = ("torch", "tensorflow", "jax")
# name -> depth, image size (and so the stem), images a batch, classes
STEPS = {
    "ResNet-18, 32 px": {"depth": 18, "pixels": 32, "stem": "small", "batch": 64, "classes": 4096},
    "ResNet-18, 64 px": {"depth": 18, "pixels": 64, "stem": "small", "batch": 256, "classes": 16384},
    "ResNet-50, 224 px": {"depth": 50, "pixels": 224, "stem": "imagenet", "batch": 128, "classes": 16384},
}
CPU_STEPS, GPU_STEPS = ("ResNet-18, 32 px",), ("ResNet-18, 64 px", "ResNet-50, 224 px")
# pixels -> preset, and the goals: the best backend and torch, as multiples of Pillow on one core
AUGMENTATIONS = {32: ("cifar10", 6.0, 1.2), 64: ("tiny_imagenet", 3.0, 0.7)}
AUGMENTATION_BATCH = 256  # the small-image recipes'
FEATURES_CPU_BATCH, FEATURES_GPU_BATCH = 32, 256
PRESET = "dissl_resnet50_d8192_e800_m8"
PRESET_GOALS = {"convert": 20.0, "from_preset, from the cache": 3.0}  # seconds, of the fastest backend
SHIPPED, SHIPPED_GOAL = "dissl_resnet10_d160_cifar10", 2.0  # seconds, of every backend


# ------------------------------------------------------------------------------------ plain PyTorch


def torch_network(depth, stem, classes):
    """ResNet v1.5 and the small-image DISSL heads (teacher, student) as one writes them in plain PyTorch."""
    from torch import nn

    def conv_bn(inputs, outputs, size, stride=1):
        return [nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs)]

    class Block(nn.Module):
        def __init__(self, inputs, width, stride, bottleneck):
            super().__init__()
            self.outputs = 4 * width if bottleneck else width
            if bottleneck:
                layers = [*conv_bn(inputs, width, 1), nn.ReLU(inplace=True), *conv_bn(width, width, 3, stride)]
                layers += [nn.ReLU(inplace=True), *conv_bn(width, self.outputs, 1)]
            else:
                layers = [*conv_bn(inputs, width, 3, stride), nn.ReLU(inplace=True), *conv_bn(width, width, 3)]
            self.main = nn.Sequential(*layers)
            same = stride == 1 and inputs == self.outputs
            self.skip = nn.Identity() if same else nn.Sequential(*conv_bn(inputs, self.outputs, 1, stride))
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x):
            return self.relu(self.main(x) + self.skip(x))

    first = conv_bn(3, 64, 7, 2) if stem == "imagenet" else conv_bn(3, 64, 3)
    layers, channels = [*first, nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)], 64
    for stage, depth_of_stage in enumerate({18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}[depth]):
        for block in range(depth_of_stage):
            layers.append(Block(channels, 64 * 2**stage, 2 if stage and not block else 1, depth == 50))
            channels = layers[-1].outputs
    encoder = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def linear_bn(inputs, outputs):
        return [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs)]

    hidden = [*linear_bn(channels, 1024), nn.ReLU(inplace=True)]
    teacher = nn.Sequential(*hidden, *linear_bn(1024, 512), nn.Linear(512, classes))
    student = nn.Sequential(*linear_bn(channels, 512), nn.Linear(512, classes))
    return nn.ModuleList([encoder, teacher, student])


def torch_dissl(teacher, student):
    """The DISSL loss of (2, B, C) logits: temperatures 0.5 and 1, lambda 2.3, beta 0.8."""
    log_q, log_s = (teacher.float() / 0.5).log_softmax(-1), student.float().log_softmax(-1)
    q = log_q.exp()
    other, mean = q.flip(0), q.mean(1)
    distil, invariance = -(other * log_s).sum(-1).mean(), -(other * log_q).sum(-1).mean()
    maximality = -(mean * mean.log()).sum(-1).mean()
    return distil - 2.3 * maximality + 0.8 * invariance


def torch_step(depth, stem, classes, gpu):
    """A function from two uint8 batches of views (B, H, W, 3) to the loss of one step, and its network."""
    import torch

    device = torch.device("cuda" if gpu else "cpu")
    network = torch_network(depth, stem, classes).to(device)
    if gpu:
        network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def loss_of(x):  # (2B, 3, H, W)
        encoder, teacher, student = network
        with torch.autocast(device.type, torch.bfloat16, enabled=gpu):
            z = encoder((x.float() / 255 - mean) / std)
            t, s = (head(z).view(2, -1, classes) for head in (teacher, student))
        return torch_dissl(t, s)

    compiled = torch.compile(loss_of) if gpu else loss_of

    def step(first, second):
        x = torch.cat([torch.as_tensor(v).to(device, non_blocking=True) for v in (first, second)])
        loss = compiled(
            x.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last if gpu else torch.contiguous_format)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step, network


# ------------------------------------------------------------------------------------ Pillow


def pillow_view(pixels, layer):
    """One view with the operations of `augmentations.SimCLR`, `layer` being its config."""
    from PIL import Image, ImageEnhance, ImageFilter

    image, size = Image.fromarray(pixels), layer["size"]
    box = (0, 0, *image.size)
    for _ in range(10):
        area = image.width * image.height * random.uniform(layer["min_scale"], 1)
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= image.width and 0 < h <= image.height:
            x, y = random.randint(0, image.width - w), random.randint(0, image.height - h)
            box = (x, y, x + w, y + h)
            break
    image = image.crop(box).resize((size, size), Image.Resampling.BICUBIC)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if random.random() < 0.8:
        for operation in random.sample(range(4), 4):
            if operation == 3:  # as torchvision turns the hue of a Pillow image
                h, s, v = image.convert("HSV").split()
                turns = np.uint8(int(random.uniform(-layer["hue"], layer["hue"]) * 255) % 256)
                h = Image.fromarray(np.asarray(h) + turns)
                image = Image.merge("HSV", (h, s, v)).convert("RGB")
            else:
                enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[operation]
                jitter = layer["jitter"]
                image = enhance(image).enhance(random.uniform(max(0.0, 1 - jitter), 1 + jitter))
    if random.random() < layer["gray"]:
        image = Image.merge("RGB", [image.convert("L")] * 3)
    if random.random() < layer["blur"]:
        image = image.filter(ImageFilter.GaussianBlur(random.uniform(*layer["blur_sigma"])))
    return np.asarray(image)


# ------------------------------------------------------------------------------------ workers


def random_images(count, pixels):
    return np.random.default_rng(0).integers(0, 256, (count, pixels, pixels, 3), dtype="uint8")


def step_worker(who, case, gpu):
    """Returns (one step, facts): who is "plain" or a backend."""
    spec = STEPS[case]
    images = random_images(spec["batch"], spec["pixels"])
    if who == "plain":
        step, network = torch_step(spec["depth"], spec["stem"], spec["classes"], gpu)
        return lambda: step(images, images), {"weights": sum(p.numel() for p in network.parameters())}
    model = pretrainer(spec, gpu)
    weights = sum(math.prod(w.shape) for w in model.trainable_weights)
    return lambda: model.train_on_batch(images), {"weights": weights}


def features_worker(who, case, gpu):
    """Returns (features of one batch, facts): who is "plain", "plain channels_last" or a backend."""
    images = random_images(FEATURES_GPU_BATCH if gpu else FEATURES_CPU_BATCH, 224)
    if not who.startswith("plain"):
        import keras_issl

        encoder = keras_issl.encoders.ResNet(50, dtype="mixed_bfloat16" if gpu else "float32")
        trainable = sum(math.prod(w.shape) for w in encoder.trainable_weights)
        return lambda: encoder.predict_on_batch(images), {"weights": trainable}
    import torch

    device = torch.device("cuda" if gpu else "cpu")
    network = torch_network(50, "imagenet", 8)[0].eval().to(device)
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    layout = torch.channels_last if gpu or who == "plain channels_last" else torch.contiguous_format
    network = network.to(memory_format=layout)
    network = torch.compile(network) if gpu else network

    def run():
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=gpu):
            x = torch.as_tensor(images).to(device, non_blocking=True).permute(0, 3, 1, 2).float()
            x = ((x / 255 - mean) / std).contiguous(memory_format=layout)
            return network(x).float().cpu().numpy()

    return run, {"weights": sum(p.numel() for p in network.parameters())}


def pretrainer(spec, gpu, augmentation=None):
    import keras

    import keras_issl

    if gpu:
        keras.config.set_dtype_policy("mixed_bfloat16")
    encoder = keras_issl.encoders.ResNet(spec["depth"], image_size=spec["pixels"], stem=spec["stem"])
    model = keras_issl.Pretrainer(encoder, keras_issl.objectives.DISSL(num_classes=spec["classes"]), augmentation)
    model.compile(keras.optimizers.Adam(1e-3))
    return model


def augmentation_worker(who, case, gpu):
    """Returns (augmentation of one batch, facts): who is "pillow", or a backend and how it runs."""
    pixels, blur = case
    from keras_issl import augmentations

    layer = augmentations.SimCLR(pixels, preset=AUGMENTATIONS[pixels][0], seed=0)
    layer = layer.coarser(2.0) if blur else layer
    images = random_images(AUGMENTATION_BATCH, pixels)
    if who == "pillow":
        keys = ("min_scale", "jitter", "hue", "gray", "blur", "blur_sigma")
        plan = {"size": pixels, **{key: getattr(layer, key) for key in keys}}
        return lambda: [pillow_view(image, plan) for image in images], {"views": AUGMENTATION_BATCH}
    import keras

    facts, x = {"views": 2 * AUGMENTATION_BATCH}, keras.ops.convert_to_tensor(images)
    how = who.partition(" ")[2]
    if how in ("XLA", "graph"):
        import tensorflow as tf

        function = tf.function(layer, jit_compile=how == "XLA")
        return lambda: [view.numpy() for view in function(x)], facts
    if how == "jit":
        import jax

        layer(images[:1])
        state = [v.value for v in layer.variables]
        function = jax.jit(lambda state, x: layer.stateless_call([], state, x))

        def step():  # the seeds move, as they do in training
            views, state[:] = function(list(state), x)
            jax.block_until_ready(views)

        return step, facts
    return lambda: layer(x), facts


def input_worker(who, folder, gpu):
    """Returns (one epoch from JPEG files, facts) on ResNet-50 at 224 px."""
    spec = STEPS["ResNet-50, 224 px"]
    count = len(list(Path(folder).rglob("*.jpg")))
    if who != "plain":
        import keras_issl

        model = pretrainer(spec, gpu, keras_issl.augmentations.SimCLR(224, preset="imagenet"))
        data = keras_issl.datasets.load(folder, image_size=256, memory_limit=0, workers=16)
        return lambda: model.fit(data, batch_size=spec["batch"], epochs=1, verbose=0), {"views": count}
    import torch
    from torchvision import datasets, transforms

    jitter = transforms.RandomApply([transforms.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8)
    blur = transforms.RandomApply([transforms.GaussianBlur(23)], 0.5)
    view = transforms.Compose(
        [
            transforms.RandomResizedCrop(224, (0.08, 1)),
            *(transforms.RandomHorizontalFlip(), jitter, transforms.RandomGrayscale(0.2), blur),
            transforms.Lambda(np.asarray),
        ]
    )
    data = datasets.ImageFolder(folder, lambda image: (view(image), view(image)))
    options = {"shuffle": True, "drop_last": True, "num_workers": 16, "pin_memory": True, "persistent_workers": True}
    loader = torch.utils.data.DataLoader(data, spec["batch"], **options)
    step, _ = torch_step(spec["depth"], spec["stem"], spec["classes"], gpu)
    return lambda: [step(*views) for views, _ in loader], {"views": count}


def worker(section, who, case, gpu):
    """A contestant's process: sets up, says its facts, then runs as often as each line on stdin says."""

    def say(value):
        print(TAG + json.dumps(value), flush=True)

    if section == "recording":  # its contestants share a process
        return benchmark_recording.worker(case, gpu, say)
    make = {"step": step_worker, "augmentation": augmentation_worker, "features": features_worker}
    make["training"] = benchmark_training.training_worker
    make |= {name: getattr(benchmark_objectives, f"{name}_worker") for name in ("objectives", "multicrop")}
    run, facts = make.get(section, input_worker)(who, case, gpu)
    for _ in range(2):
        run()
    say(facts)
    for line in sys.stdin:
        if line.strip() == "profile":
            say(profile(run))
            continue
        start = time.perf_counter()
        for _ in range(int(line)):
            run()
        say((time.perf_counter() - start) / int(line))


def profile(run, rows=14):
    """Where the time of a step goes: [(name, milliseconds, calls)] by own time, on torch and TensorFlow."""
    backend = os.environ["KERAS_BACKEND"]
    if backend == "torch":
        from torch.profiler import ProfilerActivity
        from torch.profiler import profile as record

        with record(activities=[ProfilerActivity.CPU]) as recorded:
            run()
        events = [(e.key, e.self_cpu_time_total / 1e3, e.count) for e in recorded.key_averages()]
    elif backend == "tensorflow":
        events = tensorflow_events(run)
    else:
        return []
    return sorted(events, key=lambda e: -e[1])[:rows]


def tensorflow_events(run):
    """Own time of every kind of kernel, from TensorFlow's trace of one step."""
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        run()
        tf.profiler.experimental.stop()
        space = xplane_pb2.XSpace()
        space.ParseFromString(next(Path(folder).rglob("*.xplane.pb")).read_bytes())
    totals = {}
    for plane in space.planes:
        names = {key: value.name for key, value in plane.event_metadata.items()}
        for event in (event for line in plane.lines for event in line.events):
            # A kernel's event is "node:Kind"; "Class::Method" and "Call: name" are the runtime's own.
            node, _, kind = names[event.metadata_id].partition(":")
            if node and kind and kind[0] not in ": ":
                milliseconds, calls = totals.get(kind, (0.0, 0))
                totals[kind] = (milliseconds + event.duration_ps / 1e9, calls + 1)
    return [(kind, *value) for kind, value in totals.items()]


class Contestant:
    """The parent's end of a worker."""

    def __init__(self, section, who, case, gpu):
        self.who = who
        backend = who.partition(" ")[0]
        environment = {**os.environ, "KERAS_BACKEND": backend if backend in BACKENDS else "torch"}
        environment["TF_CPP_MIN_LOG_LEVEL"] = "3"
        # They take turns on one GPU: none may take most of its memory beforehand.
        environment |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  close() closes it, with the process
        command = [sys.executable, __file__, "--worker", json.dumps([section, who, case, gpu])]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.process = subprocess.Popen(command, env=environment, text=True, **pipes)
        self.facts = self._answer()

    def ask(self, line):
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self):
        for line in self.process.stdout:
            if line.startswith(TAG):
                return json.loads(line[len(TAG) :])
        self.errors.seek(0)
        raise RuntimeError(f"{self.who} ended before it answered:\n{self.errors.read()[-3000:]}")

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.errors.close()


# ------------------------------------------------------------------------------------ sections


def compare(section, case, whos, gpu, rounds, repeats=1, profiled=False):
    """Lets contestants take turns. Returns {who: (facts, seconds a round, profile)}; the first is the baseline."""
    contestants = []
    try:
        for who in whos:
            contestants.append(Contestant(section, who, case, gpu))
        times = {who: [] for who in whos}
        for _ in range(rounds):
            for contestant in contestants:
                # XLA:CPU needs seconds where the others need tenths: one step a turn is enough.
                slow = contestant.who.partition(" ")[0] == "jax" and section in ("step", "features") and not gpu
                times[contestant.who].append(contestant.ask(1 if slow else repeats))
        profiles = {c.who: c.ask("profile") if profiled else [] for c in contestants}
        return {c.who: (c.facts, times[c.who], profiles[c.who]) for c in contestants}
    finally:
        for contestant in contestants:
            contestant.close()


def row(section, case, who, rate, unit, ratio=None, goal=None, at_most=False):
    found = {"section": section, "case": case, "who": who, "rate": rate, "unit": unit, "ratio": ratio, "goal": goal}
    return found | {"at_most": at_most, "interval": None}  # whether the goal is the ratio's upper bound; 95 %


def ratio_to(base, times, work=1.0):
    return statistics.median(b / t for b, t in zip(base, times, strict=True)) * work


def with_best(rows, section, case, goal):
    """A row for the best backend, whose goal is another than each one's."""
    best = max(rows, key=lambda r: r["ratio"])
    return row(section, case, f"best: {best['who']}", best["rate"], best["unit"], best["ratio"], goal)


def measure_steps(options):
    cases = GPU_STEPS if options.gpu else CPU_STEPS
    goals = {"jax": 1.0} if options.gpu else {"torch": 0.75}
    for case in cases:
        views = 2 * STEPS[case]["batch"]
        found = compare("step", case, ("plain", *options.backends), options.gpu, options.rounds, 4, options.profile)
        weights = {who: facts["weights"] for who, (facts, _, _) in found.items()}
        if len(set(weights.values())) != 1:
            raise RuntimeError(f"The contestants should train the same network. Received weights: {weights}")
        base = found["plain"][1]
        rows = [
            row("step", case, who, views / statistics.median(t), "views/s", ratio_to(base, t), goals.get(who))
            for who, (_, t, _) in found.items()
            if who != "plain"
        ]
        name = "plain PyTorch, compiled" if options.gpu else "plain PyTorch"
        yield row("step", case, name, views / statistics.median(base), "views/s", 1.0)
        yield from rows
        if not options.gpu:
            yield with_best(rows, "step", case, 0.9)
        report_profiles(found, "One step")


def report_profiles(found, what):
    """Prints what `--profile` recorded of the contestants."""
    for who, (_, _, events) in found.items():
        if events:
            print(f"\n{what} of {who}, own time of the most expensive operations:")
            for name, milliseconds, calls in events:
                print(f"  {milliseconds:9.1f} ms {calls:6d} x {name[:70]}")


def measure_augmentations(options):
    ways = {"torch": ("torch eager",), "tensorflow": ("tensorflow XLA", "tensorflow graph"), "jax": ("jax jit",)}
    whos = ("pillow", *(way for backend in options.backends for way in ways[backend]))
    for pixels, (_, best_goal, torch_goal) in AUGMENTATIONS.items():
        for blur in (False, True):
            case = f"{pixels} px, {'with blur (coarse)' if blur else 'preset, no blur'}"
            found = compare("augmentation", (pixels, blur), whos, options.gpu, options.rounds, 4)
            base, rows = found["pillow"][1], []
            yield row(
                "augmentation", case, "Pillow, one core", AUGMENTATION_BATCH / statistics.median(base), "views/s", 1.0
            )
            for who in whos[1:]:
                facts, times, _ = found[who]
                ratio = ratio_to(base, times, facts["views"] / AUGMENTATION_BATCH)
                goal = torch_goal if who.startswith("torch") else None
                rows.append(
                    row("augmentation", case, who, facts["views"] / statistics.median(times), "views/s", ratio, goal)
                )
            yield from rows
            yield with_best(rows, "augmentation", case, best_goal)


def measure_features(options):
    case, batch = "ResNet-50, 224 px", FEATURES_GPU_BATCH if options.gpu else FEATURES_CPU_BATCH
    plain = ("plain",) if options.gpu else ("plain", "plain channels_last")  # a GPU's is channels_last anyway
    found = compare("features", case, (*plain, *options.backends), options.gpu, options.rounds, 2, options.profile)
    weights = {who: facts["weights"] for who, (facts, _, _) in found.items()}
    if len(set(weights.values())) != 1:
        raise RuntimeError(f"The contestants should run the same network. Received weights: {weights}")
    base, goals = found["plain"][1], {} if options.gpu else {"torch": 0.85}
    name = "plain PyTorch, compiled" if options.gpu else "plain PyTorch"
    yield row("features", case, name, batch / statistics.median(base), "images/s", 1.0)
    rows = [
        row("features", case, who, batch / statistics.median(times), "images/s", ratio_to(base, times), goals.get(who))
        for who, (_, times, _) in found.items()
        if who != "plain"
    ]
    yield from rows
    yield with_best([r for r in rows if r["who"] in options.backends], "features", case, 1.0)
    report_profiles(found, "One batch")


PRESETS_SCRIPT = """
import sys, time
import keras_issl
from keras_issl import encoders
from keras_issl.zoo import conversion
conversion.require_torch()
what, source, target = sys.argv[1:]
start = time.perf_counter()
if what == "make":
    conversion.save_checkpoint(keras_issl.from_preset(source, load_weights=False), target)
elif what == "convert":
    conversion.convert(source, target)
else:
    keras_issl.from_preset(source)
print(time.perf_counter() - start)
"""


SHIPPED_SCRIPT = """
import sys, time
import keras
start = time.perf_counter()
import keras_issl
keras_issl.from_preset(sys.argv[1])
print(time.perf_counter() - start)
"""


def measure_presets(options):
    def seconds(backend, home, *arguments, script=PRESETS_SCRIPT):
        environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "HF_HUB_OFFLINE": "1"}
        environment["KERAS_ISSL_HOME"] = str(home)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        command = [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)]
        return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        checkpoint, cached = folder / f"{PRESET}.torch", folder / "home" / "presets" / PRESET
        seconds(options.backends[0], folder / "home", "make", PRESET, checkpoint)
        shipped = "from_preset, shipped, with import keras_issl"
        times = {(case, backend): [] for case in (*PRESET_GOALS, shipped) for backend in options.backends}
        for turn in range(options.rounds):
            for backend in options.backends:
                target = cached if not cached.exists() else folder / f"{backend}-{turn}"
                times["convert", backend].append(seconds(backend, folder / "home", "convert", checkpoint, target))
                if target != cached:
                    shutil.rmtree(target)
            for backend in options.backends:
                found = seconds(backend, folder / "home", "load", PRESET, "-")
                times["from_preset, from the cache", backend].append(found)
                times[shipped, backend].append(seconds(backend, folder / "none", SHIPPED, script=SHIPPED_SCRIPT))
        for case, goal in PRESET_GOALS.items():
            rows = [
                row("presets", case, backend, statistics.median(times[case, backend]), "s")
                for backend in options.backends
            ]
            yield from rows
            best = min(rows, key=lambda r: r["rate"])
            yield row("presets", case, f"best: {best['who']}", best["rate"], "s", goal=goal)
        for backend in options.backends:
            yield row("presets", shipped, backend, statistics.median(times[shipped, backend]), "s", goal=SHIPPED_GOAL)


def measure_import(options):
    script = (
        "import time; a = time.perf_counter(); import keras; b = time.perf_counter(); import keras_issl; "
        "print(b - a, time.perf_counter() - b)"
    )
    for backend in options.backends:
        seconds = []
        for _ in range(options.rounds + 1):
            environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
            command = [sys.executable, "-c", script]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            seconds.append([float(value) for value in done.stdout.split()[-2:]])
        keras_seconds, ours = (
            statistics.median(column) for column in zip(*seconds[1:], strict=True)
        )  # first: cold disk
        yield row("import", "import keras", backend, keras_seconds, "s")
        yield row("import", "keras_issl adds", backend, ours, "s", goal=0.3)


def measure_input(options):
    if not options.gpu:
        print("input: left out, it needs a GPU")
        return
    try:
        import torchvision  # noqa: F401
    except ImportError:
        print("input: left out, it needs torchvision")
        return
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        count = 2048
        for index in range(count):
            pixels = np.random.default_rng(index).integers(0, 256, (24, 32, 3), dtype="uint8")
            path = Path(folder) / f"class{index % 2}" / f"{index}.jpg"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels).resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
        found = compare("input", folder, ("plain", *options.backends), True, min(3, options.rounds))
    case, base = "JPEG files to ResNet-50 steps", found["plain"][1]
    yield row("input", case, "DataLoader (16) + torchvision", count / statistics.median(base), "images/s", 1.0)
    for who in options.backends:
        times = found[who][1]
        goal = 2.0 if who == "jax" else None
        yield row("input", case, who, count / statistics.median(times), "images/s", ratio_to(base, times), goal)


def markdown(rows):
    """The table of all rows."""
    lines = ["| what | case | who | measured | ratio | goal | met |", "|---|---|---|---:|---:|---:|---|"]
    for r in rows:
        measured = f"{r['rate']:.3f} {r['unit']}" if r["unit"] == "s" else f"{r['rate']:,.0f} {r['unit']}"
        goal = ""
        if r["goal"] is not None:
            goal = f"≤ {r['goal']} s" if r["ratio"] is None else f"{'≤' if r['at_most'] else '≥'} {r['goal']}"
        ratio, met = ratio_in_words(r), verdict(r)
        lines.append(f"| {r['section']} | {r['case']} | {r['who']} | {measured} | {ratio} | {goal} | {met} |")
    return "\n".join(lines)


def ratio_in_words(r):
    if r["ratio"] is None:
        return ""
    return "{:.3f} [{:.3f}, {:.3f}]".format(r["ratio"], *r["interval"]) if r["interval"] else f"{r['ratio']:.2f}"


def verdict(r):
    """Whether a row meets its goal: "yes", "no", or "open" where the goal lies within the interval."""
    if r["goal"] is None:
        return ""
    value = r["rate"] if r["ratio"] is None else r["ratio"]
    low, high = r["interval"] or (value, value)
    if r["ratio"] is None or r["at_most"]:
        return "yes" if high <= r["goal"] else "no" if low > r["goal"] else "open"
    return "yes" if low >= r["goal"] else "no" if high < r["goal"] else "open"


def accelerator():
    """Whether PyTorch, the baseline, sees a GPU; asked in another process, which leaves this one light."""
    script = "import torch; raise SystemExit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 0


def names(known):
    def parse(text):
        chosen = tuple(text.split(","))
        if not set(chosen) <= set(known):
            raise argparse.ArgumentTypeError(f"should be some of {','.join(known)}. Received: {text}")
        return chosen

    return parse


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = tuple(section for section in SECTIONS if section != "recording")  # which takes an hour
    parser.add_argument("--only", type=names(SECTIONS), default=usual, help="sections; default: all but recording")
    contestants = benchmark_recording.CONTESTANTS
    parser.add_argument("--who", type=names(contestants), default=contestants, help="contestants of recording")
    parser.add_argument("--case", type=lambda text: text.split(","), default=[""], help="parts of names of its cases")
    parser.add_argument("--backends", type=names(BACKENDS), help="backends, separated by commas")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contestant")
    parser.add_argument("--profile", action="store_true", help="show where a training step's time goes")
    parser.add_argument("--out", type=Path, help="also write the table to this Markdown file")
    parser.add_argument("--json", type=Path, help="also write the rows to this JSON file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(*json.loads(options.worker))
    if options.rounds < 1:
        parser.error("--rounds should be at least 1")
    recorded, options.backends = options.backends or ("tensorflow",), options.backends or BACKENDS
    options.gpu = accelerator()
    sections = {
        "step": measure_steps,
        "augmentation": measure_augmentations,
        "features": measure_features,
        "presets": measure_presets,
        "import": measure_import,
        "input": measure_input,
        "training": lambda options: benchmark_training.measure_training(options, compare, row),
        "objectives": lambda options: benchmark_objectives.measure_objectives(options, compare, row),
        "multicrop": lambda options: benchmark_objectives.measure_multicrop(options, compare, row),
        "recording": lambda options: benchmark_recording.measure_recording(options, recorded, Contestant, row),
    }
    rows = []
    for section in options.only:
        for found in sections[section](options):
            rows.append(found)
            ratio = "" if found["ratio"] is None else f", ratio {ratio_in_words(found)}"
            print(f"{section}: {found['case']}: {found['who']}: {found['rate']:.4g} {found['unit']}{ratio}", flush=True)
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    table = (
        f"{markdown(rows)}\n\nMedians of {options.rounds} rounds; load average {load:.1f} on {cores} cores at the end."
    )
    if any(r["interval"] for r in rows):
        table += " [ ]: the interval of the sign test over the rounds, 95 % or more; of fewer than six, their range."
    if load > 1.5 * cores:
        table += " Other work ran beside it: PyTorch's threads suffer most from that, so repeat it on a quiet machine."
    print("\n" + table)
    if options.out:
        options.out.write_text(table + "\n", encoding="utf-8")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
