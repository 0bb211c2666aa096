"""A run's numbers in TensorBoard, Weights & Biases and MLflow.

Each tool gets the same scalars, under the same names (MLflow's own callback names those of an epoch):

```
training/<column>   a row of records.csv; x axis: finished training steps (`training/step` in Weights & Biases)
epoch/<name>        what Keras logs at the end of an epoch; x axis: finished epochs (`epoch/epoch`)
```

Keras's own TensorBoard callback needs TensorFlow under torch and JAX too, and that of Weights & Biases (0.31) reads
a learning rate schedule in a way that fails on JAX. So these two are fed here, through the tools' own writers, at the
ends of epochs: nothing is done at the end of a batch. MLflow's callback works on every backend, and is used.
"""

import contextlib
import difflib
import json
import math
import os
import shutil
import time
from pathlib import Path

import keras

from keras_issl.files import write_json

IDS = "loggers.json"  # in the run folder: tool -> its id of this run, by which a resumed run goes on


class _TensorBoard:
    """Event files in the run's folder; a resumed run adds one more, and TensorBoard shows them as one."""

    callbacks = ()

    def __init__(self):
        from tensorboard.summary import Writer

        self._make_writer = Writer

    def open(self, folder, run_id, config, run_name):
        self.writer = self._make_writer(str(folder / "tensorboard"))

    def log(self, prefix, axis, x, values):
        for name, value in values.items():
            self.writer.add_scalar(f"{prefix}/{name}", value, x)
        self.writer.flush()  # else what happens now shows two minutes later

    def close(self, failed):
        self.writer.close()


class _WandB:
    """A run of Weights & Biases of its own, beside any that the process has open already."""

    callbacks = ()

    def __init__(self):
        import wandb

        self.wandb = wandb

    def open(self, folder, run_id, config, run_name):
        self.run = self.wandb.init(
            project=os.environ.get("WANDB_PROJECT", "keras_issl"),
            dir=folder,
            id=run_id,
            resume="allow" if run_id else None,
            name=run_name,
            config=config,
            reinit="create_new",
        )
        for axis in ("training/step", "epoch/epoch"):  # its own counter counts calls
            self.run.define_metric(axis)
            self.run.define_metric(axis.split("/")[0] + "/*", step_metric=axis)
        return self.run.id

    def log(self, prefix, axis, x, values):
        self.run.log({f"{prefix}/{name}": value for name, value in values.items()} | {f"{prefix}/{axis}": x})

    def close(self, failed):
        self.run.finish(exit_code=int(failed))


class _MLflow:
    """An active MLflow run, nested in the one that is active already, if there is one."""

    def __init__(self):
        import mlflow
        from mlflow.keras import MlflowCallback

        self.mlflow = mlflow
        self.callbacks = (MlflowCallback(),)  # logs to the active run

    def open(self, folder, run_id, config, run_name):
        self.run = self.mlflow.start_run(run_id=run_id, run_name=None if run_id else run_name, nested=True)
        self.client, run_id = self.mlflow.MlflowClient(), self.run.info.run_id
        if config:
            self.mlflow.log_params(dict(_flat(config)))
        return run_id

    def log(self, prefix, axis, x, values):
        if prefix == "epoch":  # by MLflow's callback
            return
        now = int(time.time() * 1000)
        metrics = [self.mlflow.entities.Metric(f"{prefix}/{name}", value, now, x) for name, value in values.items()]
        self.client.log_batch(self.run.info.run_id, metrics, synchronous=False)

    def close(self, failed):
        self.mlflow.flush_async_logging()
        self.mlflow.end_run("FAILED" if failed else "FINISHED")


_TOOLS = {"tensorboard": _TensorBoard, "wandb": _WandB, "mlflow": _MLflow}
NAMES = tuple(_TOOLS)


class _Epochs(keras.callbacks.Callback):
    """Opens the tools when training begins, and hands them what Keras logs at the end of an epoch."""

    def __init__(self, loggers):
        super().__init__()
        self.loggers = loggers

    def on_train_begin(self, logs=None):
        self.loggers.open()

    def on_epoch_end(self, epoch, logs=None):
        self.loggers.log("epoch", "epoch", epoch + 1, logs or {})


class Loggers:
    """The tools that a run reports to; `make` makes one.

    Leaving its `with` block closes the tools, as failed where an error leaves it.

    Attributes:
        names: A tuple of the tools' names.
        callbacks: A list of Keras callbacks for `fit`, in this order: the first opens the tools when training begins.
    """

    def __init__(self, tools, folder, config=None, run_name=None):
        self._tools, self._folder, self._config, self._run_name = tools, Path(folder), config, run_name
        self._open = {}
        self.names = tuple(tools)
        self.callbacks = [callback for tool in tools.values() for callback in tool.callbacks]
        if tools:
            self.callbacks.insert(0, _Epochs(self))

    def open(self):
        """Opens the tools that are not open yet: new, or where the run that `loggers.json` names left off."""
        path = self._folder / IDS
        for name in [name for name in self._tools if name not in self._open]:
            ids = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            run_id = self._tools[name].open(self._folder, ids.get(name), self._config, self._run_name)
            self._open[name] = self._tools[name]
            if run_id and run_id != ids.get(name):
                write_json(path, ids | {name: run_id})

    def record(self, step, row):
        """Logs one row of a run's records.

        Args:
            step: The finished training steps, an integer: the x axis.
            row: A dict of column names to numbers. `None` and NaN mean not measured, and are left out.
        """
        self.log("training", "step", step, row)

    def log(self, prefix, axis, x, values):
        """Logs `<prefix>/<name>` for each of `values`, a dict, at `x` on the axis `<prefix>/<axis>`."""
        values = {name: float(value) for name, value in values.items() if value is not None and name != axis}
        values = {name: value for name, value in values.items() if not math.isnan(value)}
        if values:
            self.open()
            for tool in self._open.values():
                tool.log(prefix, axis, int(x), values)

    def close(self, failed=False):
        """Closes the tools that are open. Weights & Biases may write for a moment longer, in a process of its own.

        Args:
            failed: Whether the run is marked as failed, where the tool has such marks.
        """
        with contextlib.ExitStack() as stack:  # one that fails to close keeps no other open
            for tool in self._open.values():
                stack.callback(tool.close, failed)
            self._open = {}

    def withdraw(self):
        """Closes the tools and removes from the run folder what they wrote there: for a new run without a step."""
        self.close(failed=True)
        (self._folder / IDS).unlink(missing_ok=True)
        for path in (self._folder / name for name in {"tensorboard", "wandb"} & set(self.names)):
            until = time.monotonic() + 5
            while path.exists() and time.monotonic() < until:  # Weights & Biases may add a file meanwhile
                shutil.rmtree(path, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.close(failed=kind is not None)


def make(names, folder, *, config=None, run_name=None):
    """Makes the loggers of a run. Nothing is written before training begins.

    TensorBoard's files go to `<folder>/tensorboard`. Where Weights & Biases and MLflow keep their runs is their own
    setting: `wandb login`, `WANDB_MODE`, `WANDB_PROJECT` (`keras_issl` if unset); `MLFLOW_TRACKING_URI`,
    `MLFLOW_EXPERIMENT_NAME`. Their ids of the run go to `<folder>/loggers.json`: loggers made for a folder that has
    the file go on with those runs.

    Args:
        names: The tools' names, any of `NAMES`.
        folder: The run folder. It must exist when training begins.
        config: A dict of the run's settings, nested or not, which Weights & Biases and MLflow keep with the run.
        run_name: The run's name in Weights & Biases and MLflow. Defaults to the folder's.

    Returns:
        A `Loggers`: give its `callbacks` to `fit`, rows to `record`, and close it.

    Raises:
        ValueError: A name is unknown.
        ImportError: A tool's package is not installed; the message says what to install.

    Example:

    >>> with make((), "runs/try") as loggers:  # ("tensorboard", "wandb", "mlflow"), or some of them
    ...     history = model.fit(images, callbacks=loggers.callbacks, verbose=0)
    ...     loggers.record(8, {"loss": 0.5, "effective_rank": 6.3})
    """
    if isinstance(names, str):
        names = (names,)
    folder, tools = Path(folder), {}
    for name in names:
        if name not in _TOOLS:
            close = difflib.get_close_matches(str(name).lower(), NAMES, n=1, cutoff=0.3)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"`names` should be among {', '.join(NAMES)}. Received: {name!r}.{hint}")
    for name in dict.fromkeys(names):
        try:
            tools[name] = _TOOLS[name]()
        except ImportError as error:
            raise ImportError(f"The logger {name!r} needs its package: pip install {name}. ({error})") from error
    return Loggers(tools, folder, config, run_name or folder.resolve().name)


def _flat(config, prefix=""):
    """(dotted name, value) of every leaf of nested dicts: MLflow's parameters have one level."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
