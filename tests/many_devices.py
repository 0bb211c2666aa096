"""Five steps of every objective on one device and on several of an engine: the workload of the equality tests.

`python many_devices.py ENGINE DEVICES FOLDER ITEM ...` runs one engine; `run` starts it, with its processes.
"""

import contextlib
import os
import pickle
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np

HERE = Path(__file__).resolve().parent
ENGINES = {  # name -> (backend, processes, devices a process; `None`: all the devices asked for)
    "jax, DataParallel": ("jax", 1, None),
    "jax, two processes": ("jax", 2, None),
    "tensorflow, MirroredStrategy": ("tensorflow", 1, None),
    "torch, DistributedDataParallel": ("torch", None, 1),
}
STEPS, BATCH, SIDE = 5, 16, 12
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # to compile
# At 0.01 rounding reaches 3e-5 in five steps of CISSL, whose temperature is 0.07.
RATES = {"DISSL": 0.02}
CLIPS = {
    "CISSL": {"global_clipnorm": 0.1},
    "SwAV": {"clipnorm": 0.01},
    "BYOL": {"clipvalue": 0.001},
}  # all of them bite
# What a seam that is wrong somewhere would do: each has to be seen by the comparison.
FAULTS = ("local statistics", "stopped gradients", "local batch normalization", "same draws", "unscaled loss")


def environment(engine, devices):
    """Of a process of an engine, on virtual devices of the CPU."""
    backend = ENGINES[engine][0]
    flags = os.environ.get("XLA_FLAGS", QUICK) if backend == "jax" else ""
    count = max(1, devices // (ENGINES[engine][1] or 1))
    flags += f" --xla_force_host_platform_device_count={count}" if backend == "jax" else ""
    return os.environ | {
        "KERAS_BACKEND": backend, "XLA_FLAGS": flags.strip(), "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")])),
    }  # fmt: skip


def run(engine, devices, items, *, timeout=600):
    """Runs items on an engine in processes of its own: an objective, "OBJECTIVE/FAULT", or the name of a function.

    Returns:
        A dict, item -> {"loss", log or variable: array}, or what the function of that name returns.
    """
    with tempfile.TemporaryDirectory() as folder:
        launch(engine, devices, [__file__, engine, str(devices), folder, *items], timeout=timeout)
        return {item: pickle.loads(Path(folder, f"{item.replace('/', ' ')}.pickle").read_bytes()) for item in items}


def launch(engine, devices, command, *, timeout=600, cwd=None):
    """Runs a script with its arguments as the engine wants it: in one process, in two, or by `torchrun`."""
    if ENGINES[engine][0] == "torch" and devices > 1:
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}", *command]
    count = ENGINES[engine][1] if devices > 1 and ENGINES[engine][1] else 1
    shared = environment(engine, devices) | {"COORDINATOR": f"127.0.0.1:{_free_port()}", "PROCESSES": str(count)}
    running = [
        subprocess.Popen(
            [sys.executable, *command], env=shared | {"PROCESS": str(i)}, cwd=cwd,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(count)
    ]  # fmt: skip
    said = []
    try:
        for process in running:
            said.append(process.communicate(timeout=timeout)[0])
    finally:
        for process in running:
            process.kill()
    if any(process.returncode for process in running):
        raise RuntimeError(f"{engine} on {devices} devices failed:\n" + "\n".join(said)[-6000:])


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def distance(found, expected):
    """The largest difference of the loss, of a log and of a weight, relative to it where it is larger than 1."""
    assert found.keys() == expected.keys()

    def far(name):
        a, b = (np.asarray(x[name], np.float64) for x in (found, expected))
        return float((np.abs(a - b) / np.maximum(np.abs(b), 1.0)).max(initial=0.0))

    logs = {name for name in expected if name.startswith("log ")}
    weights = max(far(name) for name in expected.keys() - logs - {"loss"})
    return {"loss": far("loss"), "logs": max(map(far, logs)), "weights": weights}


# In a process of an engine --------------------------------------------------------------------------------------------


def begin(engine, devices, meet=True):
    """Makes the virtual devices, before anything has asked for them; and lets processes meet."""
    process, count = (int(os.environ.get(name, default)) for name, default in (("PROCESS", 0), ("PROCESSES", 1)))
    if ENGINES[engine][0] == "tensorflow":
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
    if ENGINES[engine][0] == "jax" and count > 1:
        import jax

        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        if meet:
            import keras

            keras.distribution.initialize(os.environ["COORDINATOR"], count, process)


@contextlib.contextmanager
def broken_seam(fault):
    """Makes the seam wrong in one of the ways in `FAULTS`; `None`: in none."""
    import keras
    from keras import ops

    from keras_issl import distribution
    from keras_issl.distribution import layers

    gather, mean, scale = distribution.gather, distribution.global_mean, distribution.scale_loss
    patches = {
        None: {},
        "local statistics": {"gather": lambda x: x, "global_mean": lambda x: ops.mean(x, axis=0)},
        "stopped gradients": {
            "gather": lambda x: ops.stop_gradient(gather(x)), "global_mean": lambda x: ops.stop_gradient(mean(x))
        },
        "local batch normalization": {"pool_moments": lambda mean, variance, center: (mean, variance)},
        "same draws": {"draw": lambda sample, shape, axis: sample(shape)},
        # TensorFlow adds the gradients of replicas up, the others average them.
        "unscaled loss": {"scale_loss": lambda x: x if keras.config.backend() == "tensorflow" else scale(x) / 2},
    }[fault]  # fmt: skip
    with contextlib.ExitStack() as stack:
        for name, function in patches.items():
            where = layers if fault == "local batch normalization" else distribution
            stack.enter_context(mock.patch.object(where, name, function))
        yield


def small(name, probe=True):
    """A small model of an objective, with random views; on every device count the same.

    After the objective's name there may be "+chunks" and "+remat", the switches of docs/memory.md.
    """
    import keras
    import members

    import keras_issl
    from keras_issl import augmentations, encoders

    keras.utils.set_random_seed(0)
    name, *switches = name.split("+")
    arguments = {"teacher_momentum": (0.5, 0.9)} if members.SMALL[name]().teacher_momentum is not None else {}
    arguments |= {"queue_length": 2 * BATCH, "queue_start_epoch": 0} if name == "SwAV" else {}
    arguments |= {"chunk_size": 3} if "chunks" in switches else {}
    encoder = encoders.ResNet(blocks=(1, 1), width=8, image_size=SIDE, stem="cifar")
    views = augmentations.SimCLR(SIDE, preset="cifar10", seed=7)
    given = {"online_probe": 4 if probe else None, "remat": "remat" in switches}
    return keras_issl.Pretrainer(encoder, members.SMALL[name](**arguments), views, **given)


def train(name):
    """Loss, logs and all variables after `STEPS` steps of SGD of an objective, with an online probe beside it."""
    import keras
    from keras import ops

    model, plain = small(name), name.split("+")[0]
    model.compile(keras.optimizers.SGD(RATES.get(plain, 0.002), momentum=0.9, **CLIPS.get(plain, {})))
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (STEPS * BATCH, SIDE, SIDE, 3), dtype="uint8")
    labels = rng.integers(-1, 4, len(images))
    history = model.fit(images, labels, batch_size=BATCH, verbose=0).history
    metrics = {id(variable) for metric in model.metrics for variable in metric.variables}
    variables = [v for v in [*model.variables, *model.optimizer.variables] if id(v) not in metrics]
    values = {f"{i:03d} {v.path}": ops.convert_to_numpy(v) for i, v in enumerate(variables)}
    logs = {f"log {name}": np.float32(values[-1]) for name, values in history.items() if name != "loss"}
    return values | logs | {"loss": np.float32(history["loss"][0])}


def pretrain(devices, folder):
    """A run folder, written on several devices: its history and what is in it."""
    from keras_issl import datasets, distribution, recipes, report, runs

    recipe = recipes.digits("dissl", epochs=2)
    data = datasets.load("digits", split="train").take(2 * recipe.batch_size)
    runs.pretrain(recipe, data, Path(folder) / "run", page=False, verbose=False)
    if not distribution.is_writer():
        return None
    names = sorted(path.name for path in (Path(folder) / "run").iterdir())
    return {"history": report.read_history(Path(folder) / "run" / "history.csv"), "names": names}


def lower(devices):
    """Devices that the whole training step of every objective is exported for, to TPU and CUDA: name -> number."""
    import jax
    import keras
    import members

    images, labels = np.zeros((2 * devices, SIDE, SIDE, 3), "uint8"), np.zeros(2 * devices, "int32")
    placed = [
        jax.device_put(x, keras.distribution.distribution().get_data_layout(x.shape).backend_layout)
        for x in (images, labels)
    ]
    found = {}
    for name in members.SMALL:
        model = small(name)
        model.compile(keras.optimizers.SGD(0.01))
        model.optimizer.build(model.trainable_variables)
        kinds = ("trainable_variables", "non_trainable_variables", "optimizer_variables", "metrics_variables")
        state = model._get_jax_state(**dict.fromkeys(kinds, True))
        exported = jax.export.export(jax.jit(model.train_step), platforms=["tpu", "cuda"])(state, tuple(placed))
        assert exported.platforms == ("tpu", "cuda")
        found[name] = exported.nr_devices
    return found


def beside(devices, folder):
    """What is done with a model on several devices beside its training, in numbers that no device count divides."""
    import keras_issl
    from keras_issl import distribution, probes

    model = small("DISSL", probe=False)
    model.compile("sgd")
    images = np.random.default_rng(0).integers(0, 256, (BATCH + 3, SIDE, SIDE, 3), dtype="uint8")
    found = {"predict": model.predict(images, batch_size=BATCH, verbose=0)}
    found["extract"] = keras_issl.extract_features(model.encoder, images, batch_size=7, verbose=False).array
    if distribution.is_writer():  # alone, while the others wait for nothing
        keras_issl.save_preset(model.encoder, Path(folder) / "preset")
        keras_issl.from_preset(Path(folder) / "preset", verify=True)
        labels = np.arange(len(images)) % 2
        probe = probes.MLPProbe(hidden=(8,), weight_decays=(1e-4,), epochs=1, batch_size=8)
        probe.fit(keras_issl.Features(found["extract"], labels))
    return found


def on_device(devices):
    """Weights after an epoch of `fit` on images on the host and on the device."""
    from keras_issl import callbacks, datasets

    images = np.random.default_rng(0).integers(0, 256, (3 * BATCH, SIDE, SIDE, 3), dtype="uint8")
    found = []
    for x in (images, datasets.DeviceImages(images)):
        model = small("DISSL", probe=False)
        model.compile("sgd")
        model.fit(x, batch_size=BATCH, verbose=0)
        found.append(callbacks.Snapshot(model).arrays)
    return found


def refused(name, call):
    """What a call is refused with, or None."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return None


def refusals(devices):
    """What is refused on several devices: name -> message."""
    import keras

    from keras_issl import datasets, distribution

    backend = keras.config.backend()
    images = np.random.default_rng(0).integers(0, 256, (4 * BATCH, SIDE, SIDE, 3), dtype="uint8")
    process, processes = distribution.share_of_process()
    found = {}

    def fit(name, x=images, batch_size=BATCH, optimizer=None, **compile_arguments):
        model = small("DISSL", probe=False)
        model.compile(optimizer or keras.optimizers.SGD(0.01), **compile_arguments)
        before = [np.array(w) for w in model.encoder.get_weights()]
        found[name] = refused(name, lambda: model.fit(x, batch_size=batch_size, verbose=0))
        same = all(np.array_equal(a, b) for a, b in zip(before, model.encoder.get_weights(), strict=True))
        assert same, f"{name}: weights moved"

    class Stream(keras.utils.PyDataset):
        """Batches of a size of this process's own."""

        def __init__(self, size, offset):
            super().__init__()
            self.size, self.offset = size, offset

        def __len__(self):
            return 2

        def __getitem__(self, number):
            return images[self.offset : self.offset + self.size]

    fit("batch size", batch_size=BATCH + 1)
    fit("few images", x=images[: devices - 1], batch_size=None)
    steps = keras.optimizers.SGD(0.01, gradient_accumulation_steps=2)
    found["accumulation"] = refused("accumulation", lambda: small("DISSL", probe=False).compile(steps))
    if processes > 1:
        fit("same batches", x=Stream(8, 0))
        fit("uneven batches", x=Stream(8 + 2 * process, 16 * process))
    else:
        fit("uneven stream", x=Stream(BATCH + 1, 0))
    if backend == "tensorflow":
        import tensorflow as tf

        fit("unknown size", x=tf.data.Dataset.from_tensor_slices(images).batch(BATCH))
        fit("steps_per_execution", steps_per_execution=2)
        fit("jit_compile", jit_compile=True)
        for clip in ("clipnorm", "global_clipnorm", "clipvalue"):
            clipped = keras.optimizers.SGD(0.01, **{clip: 1.0})
            fit(clip, optimizer=keras.optimizers.LossScaleOptimizer(clipped))
    assert datasets.Batches(images, batch_size=BATCH, share=(0, 2)).drop_last
    return found


def late_stops(folder, whole=True):
    """What is saved, (step, epoch, batch), where the last process alone wishes to stop; and what all are refused.

    With `whole` also the end of the run, held against a run that was not stopped, and a learning rate that is forced.
    """
    import warnings

    import keras
    from keras import ops

    from keras_issl import callbacks, distribution
    from keras_issl.callbacks import checkpoint_files as files

    process, _ = distribution.share_of_process()
    images = np.random.default_rng(0).integers(0, 256, (4 * BATCH, SIDE, SIDE, 3), dtype="uint8")

    def fit(stop_at=None, rate=0.1, epochs=3, name="run", **options):
        model = small("SimCLR", probe=False)
        model.compile(keras.optimizers.SGD(rate, momentum=0.9))

        class Wish(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                self.epoch = epoch

            def on_train_batch_end(self, batch, logs=None):
                if process and 4 * self.epoch + batch + 1 == stop_at:
                    self.model.stop_training = True

        saving = callbacks.Checkpoint(Path(folder) / name, resume=True, every_steps=1000, **options)
        model.fit(images, batch_size=BATCH, epochs=epochs, callbacks=[Wish(), saving], verbose=0)
        return model

    found = {"saved": []}
    for stop_at in (4, 7, 9) if whole else (4,):  # in the last step of an epoch, one before, and within
        fit(stop_at)
        if distribution.is_writer():
            saved = files.newest(Path(folder) / "run")
            found["saved"].append((saved.step, saved.epoch, saved.batch))
    if whole:
        ends = [callbacks.Snapshot(model).arrays for model in (fit(), fit(name="other"))]
        found["differ"] = sum(not np.array_equal(a, b) for a, b in zip(*ends, strict=True))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = fit(rate=0.5, epochs=4, force=True)
        assert float(ops.convert_to_numpy(model.optimizer.learning_rate)) == 0.5
    found["refused"] = refused("rate", lambda: fit(rate=0.75, epochs=4))
    begins = "The checkpoints" if distribution.is_writer() else "The first process of this run"
    assert found["refused"].startswith(begins), found["refused"]
    return found


def main(engine, devices, folder, *items):
    devices = int(devices)
    begin(engine, devices)
    import keras

    from keras_issl import distribution

    for item in items:
        name, _, fault = item.partition("/")
        keras.backend.clear_session()  # names are counted
        with distribution.data_parallel(devices), broken_seam(fault or None):
            kinds = {
                "beside": lambda: beside(devices, folder),
                "lower": lambda: lower(devices),
                "on_device": lambda: on_device(devices),
                "pretrain": lambda: pretrain(devices, folder),
                "refusals": lambda: refusals(devices),
                "late_stops": lambda: late_stops(folder),
                "late_stop": lambda: late_stops(folder, whole=False),
            }
            found, writes = kinds.get(name, lambda: train(name))(), distribution.is_writer()  # noqa: B023
        if writes:
            Path(folder, f"{item.replace('/', ' ')}.pickle").write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
