"""Followers: copies that move towards a layer by an exponential moving average."""

import keras
import members
import numpy as np
import one_step
import pytest
from keras import ops

from keras_issl import encoders, moving_average, objectives
from keras_issl.pretraining import Pretrainer

IMAGES = np.random.default_rng(0).integers(0, 256, (32, 12, 12, 3)).astype("uint8")


def values(layer):
    return [ops.convert_to_numpy(w).copy() for w in layer.weights]


def head():
    layer = keras.Sequential([keras.layers.Dense(5), keras.layers.BatchNormalization()])
    layer.build((None, 4))
    return layer


def test_a_follower_starts_with_the_same_values_and_is_not_trained():
    layer = head()
    layer.weights[0].assign(np.random.default_rng(0).normal(size=(4, 5)))
    copy = moving_average.follower(layer)
    for ours, theirs in zip(values(copy), values(layer), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not copy.trainable_weights and len(layer.trainable_weights) == 4
    assert len(copy.non_trainable_weights) == len(layer.weights)
    layer.weights[0].assign(np.zeros((4, 5)))
    assert values(copy)[0].any(), "the two share no buffer"


def test_a_follower_computes_what_the_layer_does():
    """Also where a layer keeps tensors that it made of its weights, and where Keras would not find its class."""

    class Shift(keras.layers.Layer):
        def __init__(self, by, **kwargs):
            super().__init__(**kwargs)
            self.by = by

        def build(self, input_shape):
            self.count = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False)

        def call(self, x):
            return x + self.by

        def get_config(self):
            return super().get_config() | {"by": self.by}

    norm = keras.layers.Normalization()
    x = np.random.default_rng(0).normal(100, 30, (16, 4)).astype("float32")
    norm.adapt(x)
    layer = keras.Sequential([keras.Input((4,)), norm, Shift(2.0), keras.layers.Dense(3)])
    layer.layers[1].count.assign(7)
    copy = moving_average.follower(layer)
    np.testing.assert_allclose(ops.convert_to_numpy(copy(x)), ops.convert_to_numpy(layer(x)), rtol=1e-6)
    layer.layers[1].count.assign(8)
    moving_average.follow(layer, copy, 0.9)
    assert int(copy.layers[1].count) == 8, "integers are taken over"


def test_a_follower_stays_untrained_and_is_frozen_where_the_layer_is():
    model = one_step.make("BYOL")
    norm = next(layer for layer in model.encoder.layers if isinstance(layer, keras.layers.BatchNormalization))
    model.trainable = False
    model.trainable = True
    norm.trainable = False
    model.compile(keras.optimizers.SGD(0.5, weight_decay=0.5))
    trained = {id(w) for w in model.trainable_weights}
    assert not trained & {id(w) for _, copy in pairs(model) for w in copy.weights}
    x = ops.convert_to_tensor(IMAGES[:8].astype("float32"))
    outputs = [ops.convert_to_numpy(m(x, training=True)) for m in (model.encoder, model.teacher_encoder)]
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("policy", ["bfloat16", "float16"])
def test_weights_in_low_precision_are_refused(policy):
    layer = keras.layers.Dense(3, dtype=policy)
    layer.build((None, 4))
    with pytest.raises(ValueError, match=f"mixed_{policy}"):
        moving_average.follower(layer)


def test_follow_is_the_closed_form():
    """After k steps at m: m^k w'_0 + (1 − m) Σ m^(k−1−i) w_i, batch statistics included."""
    layer, m, rng = head(), 0.9, np.random.default_rng(0)
    copy = moving_average.follower(layer)
    expected = [v.astype("float64") for v in values(copy)]
    for _ in range(5):
        for w in layer.weights:
            w.assign(rng.normal(size=w.shape))
        moving_average.follow(layer, copy, m)
        expected = [m * e + (1 - m) * v for e, v in zip(expected, values(layer), strict=True)]
    for got, want in zip(values(copy), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    before = values(copy)
    moving_average.follow(layer, copy, 1.0)
    for got, want in zip(values(copy), before, strict=True):
        np.testing.assert_array_equal(got, want)


def test_forward_normalises_by_its_batch_and_leaves_no_trace():
    layer = head()
    copy = moving_average.follower(layer)
    x = np.random.default_rng(0).normal(3, 2, (16, 4)).astype("float32")
    before = values(copy)
    out = ops.convert_to_numpy(moving_average.forward(copy, x, training=True))
    np.testing.assert_allclose(out.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(out.std(0), 1, atol=0.05)
    for got, want in zip(values(copy), before, strict=True):
        np.testing.assert_array_equal(got, want)
    still = ops.convert_to_numpy(moving_average.forward(copy, x, training=False))
    assert np.abs(still - out).max() > 0.1, "evaluation uses the moving statistics"


class Unfaithful(keras.layers.Layer):
    """Its configuration forgets how wide it is."""

    def __init__(self, units=3, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape):
        self.w = self.add_weight(shape=(input_shape[-1], self.units))

    def get_config(self):
        return {"name": self.name}


class Unclonable(keras.layers.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)

    def build(self, input_shape):
        self.w = self.add_weight(shape=(input_shape[-1],))

    def get_config(self):
        return {"name": self.name}


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (lambda: Unfaithful(7), "`get_config` describes"),
        (lambda: Unclonable(7), "Return every argument"),
    ],
)
def test_what_cannot_be_copied_is_refused(layer, words):
    layer = layer()
    with pytest.raises(ValueError, match="should be built"):
        moving_average.follower(layer)
    layer.build((None, 4))
    with pytest.raises(ValueError, match=words):
        moving_average.follower(layer)


# ---------------------------------------------------------------------- in the Pretrainer
class Recorder(keras.callbacks.Callback):
    """The student's weights after every step, the encoder's and the heads'."""

    def __init__(self, pretrainer):
        super().__init__()
        self.pretrainer, self.seen = pretrainer, []

    def on_train_batch_end(self, batch, logs=None):
        model = self.model  # brings JAX's state back into the variables
        self.seen.append([values(layer) for layer, _ in pairs(model)])


def pairs(model):
    assert len(model.teacher_pairs) == 2
    return model.teacher_pairs


def test_the_teacher_follows_encoder_and_heads_once_a_step():
    """Before the forward pass of step k the teacher has moved k times, along the cosine of the momentum."""
    first, last, steps = 0.5, 1.0, 4
    model = Pretrainer(
        encoders.ResNet(blocks=(1,), width=4, image_size=12, stem="cifar"),
        members.SMALL["BYOL"](teacher_momentum=(first, last)),
        one_step.two_views,
    )
    trained = {id(w) for w in model.trainable_weights}
    for _, copy in pairs(model):
        assert not copy.trainable_weights and not trained & {id(w) for w in copy.weights}
    expected = [[v.astype("float64") for v in values(copy)] for _, copy in pairs(model)]
    for group, (layer, _) in zip(expected, pairs(model), strict=True):
        for e, v in zip(group, values(layer), strict=True):
            np.testing.assert_array_equal(e, v, "it starts from the student")
    model.compile(keras.optimizers.SGD(0.5))
    recorder = Recorder(model)
    model.fit(IMAGES, batch_size=16, epochs=2, shuffle=False, verbose=0, callbacks=[recorder])
    assert len(recorder.seen) == steps
    for k, weights in enumerate(recorder.seen[:-1]):  # what the last step made is taken when the next begins
        m = last - (last - first) * (np.cos(np.pi * k / steps) + 1) / 2
        expected = [
            [m * e + (1 - m) * v for e, v in zip(group, now, strict=True)]
            for group, now in zip(expected, weights, strict=True)
        ]
    for (_, copy), group in zip(pairs(model), expected, strict=True):
        for w, got, want in zip(copy.weights, values(copy), group, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6, err_msg=w.path)
    before = [values(copy) for _, copy in pairs(model)]
    model.evaluate(IMAGES, batch_size=16, verbose=0)
    for (_, copy), group in zip(pairs(model), before, strict=True):
        for got, want in zip(values(copy), group, strict=True):
            np.testing.assert_array_equal(got, want, "evaluation moves nothing")


def test_the_teacher_is_saved_and_restored(tmp_path):
    def make(seed):
        keras.utils.set_random_seed(seed)
        model = one_step.make("BYOL")
        model.compile(keras.optimizers.SGD(0.5))
        return model

    model = make(0)
    model.fit(IMAGES, batch_size=16, shuffle=False, verbose=0)
    model.save_weights(tmp_path / "a.weights.h5")
    again = make(1)
    again.optimizer.build(again.trainable_variables)
    again.load_weights(tmp_path / "a.weights.h5")
    assert len(model.weights) == len(again.weights)
    for theirs, ours in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(theirs), ops.convert_to_numpy(ours), theirs.path)
    assert int(again.objective.run_epochs) == 1 and int(again.objective.epoch_steps) == 2


# ---------------------------------------------------------------------- the length of the run
class Scheduled(objectives.Objective):
    """Reports its clock."""

    log_names = ("progress", "epoch")
    uses_run_length = True
    needs_batch_statistics = False

    def call(self, student_features, teacher_features=None, training=None):
        return {"features": ops.cast(student_features, "float32")}

    def compute_loss(self, outputs, step):
        loss = ops.mean(ops.square(outputs["features"]))
        return loss, {"progress": self.progress(step), "epoch": self.epoch(step)}


def scheduled():
    encoder = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(3)])
    model = Pretrainer(encoder, Scheduled())
    model.compile("sgd")
    return model


def test_progress_and_epoch_are_of_the_whole_run():
    model, images = scheduled(), np.zeros((32, 4, 4, 3), "uint8")
    assert float(model.objective.progress(3)) == float(model.objective.epoch(3)) == 0.0, "no run, no progress"
    history = model.fit(images, batch_size=16, epochs=2, verbose=0).history
    assert history["progress"] == pytest.approx([0.125, 0.625])
    assert history["epoch"] == pytest.approx([0.25, 1.25])
    history = model.fit(images, batch_size=16, epochs=4, initial_epoch=2, verbose=0).history
    assert history["progress"] == pytest.approx([0.5 + 0.0625, 0.75 + 0.0625])
    history = model.fit(images, batch_size=16, epochs=2, verbose=0).history
    assert history["progress"] == pytest.approx([0.125, 0.625]), "a run of its own"
    history = model.fit(images, batch_size=8, epochs=4, initial_epoch=2, verbose=0).history
    assert history["epoch"] == pytest.approx([2.375, 3.375]), "the clock is fit's, whatever the batches were"


def test_a_stream_of_unknown_length_needs_steps_per_epoch():
    def stream():
        while True:
            yield (np.zeros((16, 4, 4, 3), "uint8"),)

    with pytest.raises(ValueError, match="`steps_per_epoch`"):
        scheduled().fit(stream(), verbose=0)
    history = scheduled().fit(stream(), steps_per_epoch=4, verbose=0).history
    assert history["progress"] == pytest.approx([0.375])


@pytest.mark.parametrize("momentum", [-0.1, 1.5, (0.9,), (0.9, 2.0), "high"])
def test_a_momentum_out_of_range_is_refused(momentum):
    with pytest.raises(ValueError, match="`teacher_momentum`"):
        Scheduled(teacher_momentum=momentum)


def test_train_on_batch_needs_the_length_of_the_run():
    model, images = scheduled(), np.zeros((16, 4, 4, 3), "uint8")
    with pytest.raises(ValueError, match="set_run_length"):
        model.train_on_batch(images)
    model.objective.set_run_length(2, 4)
    model.train_on_batch(images)


# ---------------------------------------------------------------------- what does not fit together
def test_accumulated_gradients_are_refused():
    for objective, words in (("BYOL", "moving averages"), ("SimCLR", "whole batch")):
        with pytest.raises(ValueError, match=words):
            one_step.make(objective).compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))
    one_step.make("SimSiam").compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))


def test_an_objective_built_for_other_features_is_refused():
    objective = one_step.make("BYOL").objective
    encoder = encoders.ResNet(blocks=(1,), width=4, image_size=12, stem="cifar")
    with pytest.raises(ValueError, match="built for 16"):
        Pretrainer(encoder, objective)


def test_the_teachers_views_are_the_large_ones():
    def views(images):
        x = ops.cast(images, "float32")
        return [x, x[:, :8, :8]] if images.shape[1] == 12 else [x[:, :8, :8], x[:, :8, :8], x]

    encoder = encoders.ResNet(blocks=(1,), width=4, image_size=12, stem="cifar")
    model = Pretrainer(encoder, members.SMALL["DINO"](), views)
    for images in (IMAGES, np.zeros((4, 16, 16, 3), "uint8")):
        with pytest.raises(ValueError, match="large views that the teacher sees first"):
            model.outputs(images[:4])
    unknown = keras.KerasTensor((None, None, None, 3))
    model._check_views([unknown, unknown])  # sizes that a stream does not tell are left to the encoder
