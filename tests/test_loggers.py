"""TensorBoard, Weights & Biases and MLflow: the tools themselves, offline, and what they kept, read back."""

import json
import time

import keras
import numpy as np
import pytest

import keras_issl
from keras_issl import loggers

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*incomplete last batch"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),  # MLflow 3.17 with SQLAlchemy 2.1
]


def read_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    return {
        tag: [(event.step, float(make_ndarray(event.tensor_proto))) for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }


def wandb_records(path):
    """The records of a `.wandb` file: LevelDB's log format, in blocks of 32 KiB, after a header of 7 bytes."""
    data, position, record = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:  # no room for the head of another piece: zeros
            position += left
            continue
        size, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        record, position = record + data[position + 7 : position + 7 + size], position + 7 + size
        if position > len(data):  # still being written
            return
        if kind in (1, 4):  # whole, or the last of several pieces
            yield record
            record = b""


def read_wandb(folder):
    from wandb.proto.wandb_internal_pb2 import Record

    found = {}
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        until, records = time.monotonic() + 30, []
        # its own process writes the file, and is not always done with it when `finish` returns
        while not any(record.HasField("exit") for record in records) and time.monotonic() < until:
            time.sleep(0.05)
            records = [Record.FromString(data) for data in wandb_records(path)]
        for record in records:
            items = record.history.item
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
            for name in [name for name in row if "/" in name]:
                axis = "training/step" if name.startswith("training/") else "epoch/epoch"
                found.setdefault(name, []).append((row[axis], row[name]))
    return found


def read_mlflow(folder):
    import mlflow

    client, run_id = mlflow.MlflowClient(), ids(folder)["mlflow"]
    return {
        name: [(metric.step, metric.value) for metric in client.get_metric_history(run_id, name)]
        for name in client.get_run(run_id).data.metrics
    }


READ = {"tensorboard": read_tensorboard, "wandb": read_wandb, "mlflow": read_mlflow}


def ids(folder):
    return json.loads((folder / "loggers.json").read_text())


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A folder for MLflow's database, which takes seconds to make."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def offline(store, monkeypatch):
    """Keeps the tools to this machine, and what lies outside the run folder out of it."""
    monkeypatch.chdir(store)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}/mlflow.db")


@pytest.fixture(params=loggers.NAMES)
def tool(request, offline):
    pytest.importorskip(request.param)
    return request.param


@pytest.fixture
def model():
    """With a learning rate schedule, as the recipes have: what the callback of Weights & Biases fails on."""
    encoder = keras_issl.encoders.ResNet(blocks=(1,), width=8, image_size=32, stem="strided")
    model = keras_issl.Pretrainer(encoder, keras_issl.objectives.SimCLR(output_dim=8, hidden=(8,)))
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, 100)))
    return model


IMAGES = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3)).astype("uint8")


class Rows(keras.callbacks.Callback):
    """Records a row every step, as a run does."""

    def __init__(self, log):
        super().__init__()
        self.log, self.step = log, 0

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        self.log.record(self.step, {"step": self.step, "loss": 2.0**-self.step, "effective_rank": float("nan")})


def test_epochs_and_rows_of_a_fit_arrive(tool, model, tmp_path):
    with loggers.make([tool], tmp_path, config={"recipe": {"name": "mine", "epochs": 2}}) as log:
        history = model.fit(
            IMAGES, batch_size=8, epochs=2, verbose=0, callbacks=[*log.callbacks, Rows(log)], validation_data=IMAGES
        )
    kept = READ[tool](tmp_path)
    assert kept["training/loss"] == [(1, 0.5), (2, 0.25), (3, 0.125), (4, 0.0625)]
    assert "training/effective_rank" not in kept  # never measured
    # MLflow's own callback counts the epochs from zero, and gives them no prefix
    prefix, first = ("", 0) if tool == "mlflow" else ("epoch/", 1)
    for name in ("loss", "alignment", "val_loss"):
        expected = [(first + epoch, value) for epoch, value in enumerate(history.history[name])]
        np.testing.assert_allclose(kept[prefix + name], expected, rtol=1e-6)


def test_a_resumed_run_goes_on_where_it_left_off(tool, tmp_path):
    kept = []
    for step in (1, 2):
        with loggers.make([tool], tmp_path, config={"recipe": "mine"}) as log:
            log.record(step, {"loss": 1 / step})
        if tool != "tensorboard":
            kept.append(ids(tmp_path)[tool])
    assert READ[tool](tmp_path)["training/loss"] == [(1, 1.0), (2, 0.5)]
    assert len(set(kept)) == (0 if tool == "tensorboard" else 1)  # its folder is all that TensorBoard knows a run by


def test_a_run_that_fails_is_closed_as_failed_and_can_be_withdrawn(tool, tmp_path):
    with pytest.raises(FloatingPointError), loggers.make([tool], tmp_path) as log:
        log.record(1, {"loss": 1.0})
        raise FloatingPointError
    if tool == "mlflow":
        import mlflow

        assert mlflow.active_run() is None
        assert mlflow.get_run(ids(tmp_path)["mlflow"]).info.status == "FAILED"
    log.withdraw()
    assert not list(tmp_path.iterdir())


def test_the_settings_of_a_run_are_kept_with_it(tmp_path, offline):
    mlflow = pytest.importorskip("mlflow")
    config = {"recipe": {"epochs": 2, "head": {}}, **{f"many_{i}": i for i in range(150)}}
    with loggers.make("mlflow", tmp_path, config=config, run_name="mine") as log:
        log.record(1, {"loss": 1.0})
    run = mlflow.get_run(ids(tmp_path)["mlflow"])
    assert run.info.run_name == "mine"
    assert run.data.params == {"recipe.epochs": "2", "recipe.head": "{}"} | {f"many_{i}": str(i) for i in range(150)}


def test_an_mlflow_run_of_the_user_stays_open_and_apart(tmp_path, offline):
    mlflow = pytest.importorskip("mlflow")
    with mlflow.start_run() as own:
        with loggers.make("mlflow", tmp_path) as log:
            log.record(1, {"loss": 1.0})
        assert mlflow.active_run().info.run_id == own.info.run_id != ids(tmp_path)["mlflow"]
    assert mlflow.get_run(own.info.run_id).data.metrics == {}


@pytest.mark.backend_independent
def test_nothing_is_written_before_training_begins(tmp_path):
    installed = []
    for name in loggers.NAMES:
        try:
            loggers.make([name], tmp_path)
            installed.append(name)
        except ImportError as error:
            assert f"pip install {name}" in str(error)
    with loggers.make(installed, tmp_path) as log:
        log.record(1, {"loss": None, "effective_rank": float("nan")})  # nothing was measured
    assert not list(tmp_path.iterdir()) and log.names == tuple(installed)


@pytest.mark.backend_independent
def test_unknown_names_are_refused_with_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="tensorboard, wandb, mlflow. Received: 'tensorbord'. Did you mean 'tensorb"):
        loggers.make(["tensorbord"], tmp_path)
    with pytest.raises(ValueError, match="Did you mean 'wandb'"):
        loggers.make("W&B", tmp_path)


@pytest.mark.backend_independent
def test_without_tools_nothing_is_called(tmp_path):
    log = loggers.make((), tmp_path)
    assert log.callbacks == [] and log.names == ()
    log.record(1, {"loss": 1.0})
    log.close()
    assert not list(tmp_path.iterdir())
