"""What a run records, and that recording changes nothing of it."""

import io
import time
import warnings

import keras
import numpy as np
import pytest
from graphs import graph
from keras import ops

from keras_issl import augmentations, callbacks, datasets, diagnostics, encoders, objectives, pretraining, report

BACKEND = keras.config.backend()
IMAGES = np.random.default_rng(0).integers(0, 256, (70, 8, 8, 3)).astype("uint8")
LABELS = np.where(np.arange(70) < 60, np.arange(70) % 3, -1)


def make(objective=None, online_probe=3, optimizer=None):
    keras.utils.set_random_seed(0)
    encoder = encoders.ResNet(blocks=(1,), width=8, image_size=8, stem="cifar")
    objective = objective or objectives.DISSL(num_classes=12, teacher_hidden=(16,), bottleneck=8)
    model = pretraining.Pretrainer(encoder, objective, augmentations.Affine(8, seed=0), online_probe=online_probe)
    model.compile(optimizer or keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-2, 12)))
    return model


class EveryStep(keras.callbacks.Callback):
    """The logs of single steps: running means from metrics that are set back before each."""

    def __init__(self):
        super().__init__()
        self.logs = []

    def on_train_batch_end(self, batch, logs=None):
        self.logs.append({name: float(value) for name, value in logs.items()})


def fit(model, *watching, **options):
    options = {"batch_size": 14, "epochs": 3, "verbose": 0} | options
    return model.fit(IMAGES, LABELS, callbacks=list(watching), **options).history


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run of 15 steps with a row every four, its running means step by step, and its file."""
    path = tmp_path_factory.mktemp("run") / "records.csv"
    model, recorder, steps = make(), callbacks.Recorder(path, every=4), EveryStep()
    history = fit(model, recorder, steps)
    return model, recorder, steps.logs, history, path


def test_rows_are_the_means_of_their_steps(recorded):
    _, recorder, running, history, _ = recorded
    single = []  # means over the first k steps of an epoch -> the step's own
    for k, now in enumerate(running):
        position = k % 5 + 1
        before = running[k - 1] if position > 1 else now
        single.append({n: position * now[n] - (position - 1) * before[n] for n in ("loss", "distillation")})
    columns = recorder.columns()
    assert columns["step"].tolist() == [0, 4, 8, 12, 15]  # the last by the measurement at the end
    for (first, last), row in zip([(0, 4), (4, 8), (8, 12), (12, 15)], recorder.rows[1:], strict=True):
        for name in ("loss", "distillation"):
            assert row[name] == pytest.approx(np.mean([s[name] for s in single[first:last]]), rel=1e-4, abs=1e-5), name
    assert columns["classes_used"][-1] == history["classes_used"][-1]  # a count, not a mean
    np.testing.assert_allclose(columns["epoch"], [0, 0.8, 1.6, 2.4, 3])


def test_a_row_says_rate_speed_and_what_the_features_are_like(recorded):
    model, recorder, _, _, _ = recorded
    columns = recorder.columns()
    schedule = keras.optimizers.schedules.CosineDecay(1e-2, 12)
    expected = [float(schedule(step - 1)) for step in (4, 8, 12, 15)]
    np.testing.assert_allclose(columns["learning_rate"][1:], expected, rtol=1e-5, atol=1e-9)
    assert (columns["images_per_second"][2:] > 0).all() and (columns["input_share"][2:] <= 1).all()
    assert (np.diff(columns["seconds"]) > 0).all()
    views = [ops.convert_to_numpy(v) for v in model.views(IMAGES, training=False)]
    features = np.stack([model.encoder.predict(view, verbose=0) for view in views]).astype("float64")
    assert columns["effective_rank"][-1] == pytest.approx(diagnostics.effective_rank(features[0]), rel=1e-3)
    assert columns["within_between"][-1] == pytest.approx(diagnostics.invariance(features).ratio, rel=1e-3)


def test_the_file_holds_the_rows(recorded):
    _, recorder, _, _, path = recorded
    for name, values in report.read_records(path).items():
        np.testing.assert_allclose(values, recorder.columns()[name], rtol=1e-6, err_msg=name)
    assert report.read_records(path).keys() == recorder.columns().keys()


def arrays(model):
    return [ops.convert_to_numpy(v) for v in [*model.weights, *model.optimizer.variables]]


def test_recording_changes_neither_the_step_nor_a_bit_of_the_run(recorded):
    """The same graph, and the same weights, slots and history, with every callback of a run and with none."""
    plain = make()
    history = fit(plain)
    model, recorder = make(), callbacks.Recorder(every=4)
    assert fit(model, recorder, callbacks.CollapseGuard(recorder, "rollback"),
               callbacks.Progress(recorder, io.StringIO())) == history  # fmt: skip
    for ours, theirs in zip(arrays(model), arrays(plain), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with_recording, without = (graph(m, IMAGES[:14], LABELS[:14]) for m in (model, plain))
    assert with_recording == without and len(without) > 100
    other = make(online_probe=None)
    other.optimizer.build(other.trainable_variables)
    assert graph(other, IMAGES[:14], LABELS[:14]) != without  # what would differ is seen


def test_a_resumed_run_goes_on_with_its_rows(tmp_path):
    path = tmp_path / "records.csv"
    model = make()
    fit(model, callbacks.Recorder(path, every=2, measure=False), epochs=2)
    whole = report.read_records(path)
    again = make()
    fit(again, callbacks.Recorder(path, every=2, measure=False), epochs=1)
    with open(path, "a") as file:
        file.write(",".join(["6.0"] * 3) + "," * (len(whole) - 3) + "\n")  # a row of steps that will be trained again
    previous = report.read_records(path)
    assert previous["step"].tolist() == [2, 4, 5, 6]
    fit(again, callbacks.Recorder(path, every=2, measure=False, previous=previous), epochs=2, initial_epoch=1)
    columns = report.read_records(path)
    assert columns["step"].tolist() == [2, 4, 5, 6, 8, 10] and whole["step"].tolist() == [2, 4, 6, 8, 10]
    assert (np.diff(columns["seconds"]) > 0).all()
    np.testing.assert_allclose(columns["loss"][[0, 1, 4, 5]], whole["loss"][[0, 1, 3, 4]], rtol=1e-5)


def test_a_stream_is_recorded_without_what_cannot_be_known_of_it():
    model, recorder = make(), callbacks.Recorder(every=2)

    def stream():
        for start in range(0, 70, 14):
            yield IMAGES[start : start + 14], LABELS[start : start + 14]

    model.fit(stream(), epochs=1, steps_per_epoch=5, callbacks=[recorder], verbose=0)
    columns = recorder.columns()
    assert columns["step"].tolist() == [2, 4, 5] and np.isfinite(columns["loss"]).all()
    assert np.isnan(columns["input_share"]).all() and np.isnan(columns["effective_rank"]).all()


@pytest.mark.usefixtures("guard_with_time")
def test_slow_loading_is_seen_and_said():
    class Slow:
        shape, dtype = IMAGES.shape, IMAGES.dtype

        def __len__(self):
            return len(IMAGES)

        def __getitem__(self, indices):
            time.sleep(0.4 if len(indices) == 14 else 0)
            return IMAGES[indices]

    model, recorder = make(online_probe=None), callbacks.Recorder(every=1)
    guard = callbacks.CollapseGuard(recorder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        batches = datasets.Batches(Slow(), batch_size=14, read_ahead=0)
        model.fit(batches, epochs=3, callbacks=[recorder, guard], verbose=0)
    assert sum("waits for" in str(warning.message) for warning in caught) == 1
    assert np.nanmean(recorder.columns()["input_share"][3:]) > 0.3


def test_online_means_are_those_of_the_labelled_images_of_their_steps():
    """With six labels in seventy, and first batches without any."""
    labels = np.full(70, -1)
    labels[[31, 44, 45, 60, 61, 62]] = 1
    model, recorder = make(), callbacks.Recorder(every=2, measure=False)
    batches = datasets.Batches(IMAGES, labels, batch_size=14, shuffle=False)
    single = callbacks.Recorder(every=1, measure=False)
    model.fit(batches, epochs=2, callbacks=[recorder, single], verbose=0)
    counts = np.tile([0, 0, 1, 2, 3], 2)
    for name in ("online_top1", "online_loss"):
        values = np.where(counts > 0, single.columns()[name], 0.0)
        assert np.isnan(single.columns()[name][[0, 1, 5, 6]]).all()
        for row, steps in enumerate([(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]):
            seen = counts[list(steps)].sum()
            mean = (values * counts)[list(steps)].sum() / seen if seen else np.nan
            np.testing.assert_allclose(recorder.columns()[name][row], mean, rtol=1e-4, atol=1e-6)
    assert "online_labels" not in recorder.columns()


def test_validation_and_other_batch_sizes_are_not_the_speed_of_training():
    class Slow(keras.utils.PyDataset):
        def __len__(self):
            return 1

        def __getitem__(self, number):
            time.sleep(0.5)
            return IMAGES[:64], LABELS[:64]

    model, recorder = make(), callbacks.Recorder(every=5, measure=False)
    fit(model, recorder, validation_data=Slow(), epochs=4)
    rate, seconds = recorder.columns()["images_per_second"], np.diff(recorder.columns()["seconds"])
    assert (rate[1:] > 70 / seconds * 1.5).all()  # with validation in it, it would be 70 images by the whole time
    fitted = make()
    seen = []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(fitted.images_per_step))
    fit(fitted, note, validation_data=Slow(), epochs=1)
    fitted.evaluate(Slow(), verbose=0)
    assert seen == [14] and fitted.images_per_step is None


def test_the_recorded_rate_is_that_of_a_scheduler_and_of_a_new_optimizer():
    model, recorder = make(optimizer=keras.optimizers.SGD(0.5)), callbacks.Recorder(every=5, measure=False)
    rates = [0.1, 0.01, 0.001]
    fit(model, recorder, keras.callbacks.LearningRateScheduler(lambda epoch, rate: rates[epoch]))
    np.testing.assert_allclose(recorder.columns()["learning_rate"], rates, rtol=1e-6)
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([4], [0.25, 0.125])
    model.compile(keras.optimizers.SGD(schedule))
    again = callbacks.Recorder(every=5, measure=False)
    fit(model, again, epochs=2)
    np.testing.assert_allclose(again.columns()["learning_rate"], [schedule(4), schedule(9)])
    assert again.columns()["step"].tolist() == [20, 25]


@pytest.mark.skipif(BACKEND == "jax", reason="Keras refuses draws without a seed in a step that JAX compiles")
def test_a_function_that_draws_from_keras_is_not_asked_for_views():
    """Its draws are the run's: with a recorder the run would be another."""

    def noisy(images):
        x = ops.cast(images, "float32")
        return [x + keras.random.normal(ops.shape(x)) for _ in range(2)]

    losses = []
    for watching in ([], [callbacks.Recorder()]):
        keras.utils.set_random_seed(0)
        encoder = encoders.ResNet(blocks=(1,), width=8, image_size=8, stem="cifar")
        model = pretraining.Pretrainer(encoder, objectives.SimCLR(output_dim=8, hidden=(16,)), noisy)
        model.compile("adam")
        losses.append(fit(model, *watching)["loss"])
    assert losses[0] == losses[1]
    columns = watching[0].columns()
    assert np.isfinite(columns["effective_rank"][-1]) and np.isnan(columns["within_between"]).all()


def test_a_second_fit_goes_on_with_the_rows_and_is_guarded_anew():
    model, recorder, out = make(), callbacks.Recorder(every=5, measure=False), io.StringIO()
    guard, shown = callbacks.CollapseGuard(recorder), callbacks.Progress(recorder, out)
    fit(model, recorder, guard, shown, epochs=2)
    guard.verdict = "of the first run"
    fit(model, recorder, guard, shown, epochs=4, initial_epoch=2)
    assert recorder.columns()["step"].tolist() == [5, 10, 15, 20] and guard.verdict is None
    assert "step 20/20" in out.getvalue().splitlines()[-1] and "0 s left" in out.getvalue().splitlines()[-1]
    assert not recorder.listeners


def test_every_is_checked():
    for wrong in (0, True, 2.5):
        with pytest.raises(ValueError, match="`every`"):
            callbacks.Recorder(every=wrong)


# ---------------------------------------------------------------------- the line
def test_the_line_goes_to_a_file_about_twenty_times():
    model, recorder, out = make(), callbacks.Recorder(every=1), io.StringIO()
    fit(model, recorder, callbacks.Progress(recorder, out), epochs=9)
    lines = out.getvalue().splitlines()
    assert 14 <= len(lines) <= 24
    for part in ("loss ", "distillation", "exp H(M)", "rank", "online top-1", "images/s", "0 s left", "step 45/45"):
        assert part in lines[-1], part


def test_the_line_of_a_terminal_is_drawn_over_itself(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    model, recorder, out = make(), callbacks.Recorder(every=1), Terminal()
    fit(model, recorder, callbacks.Progress(recorder, out))
    assert out.getvalue().startswith("\repoch") and out.getvalue().endswith("\n") and out.getvalue().count("\n") == 1
    assert max(map(len, out.getvalue().rstrip("\n").split("\r"))) < 80  # as wide as a terminal of unknown width
