"""Every objective under the contract suite, the suite's teeth, and student heads that are probes."""

import keras
import members
import numpy as np
import pytest
from keras import ops

import keras_issl
from keras_issl import objectives, provenance, testing
from keras_issl.objectives.base import Objective, apply_head, apply_teacher_head, build_heads

VARIANTS = {
    "DISSL-mlp": lambda: objectives.DISSL(num_classes=12, probe="mlp", heads="imagenet", teacher_hidden=((16, 16),)),
    "DISSL-layer": lambda: objectives.DISSL(
        num_classes=12, teacher_hidden=(16,), bottleneck=8, probe=keras.layers.Dense(12)
    ),
    "SwAV-queue": lambda: members.SMALL["SwAV"](queue_length=16, queue_start_epoch=0),
    "MoCoV3-resnet": lambda: members.SMALL["MoCoV3"](predictor_norm=False),
}


@pytest.mark.parametrize("name", [*members.SMALL, *VARIANTS])
def test_every_objective_keeps_the_contract(name):
    objective = (members.SMALL | VARIANTS)[name]()
    # The last linear layer of a contrastive head on small images has a bias, though batch normalisation follows.
    contrastive = isinstance(objective, (objectives.CISSL, objectives.SimCLR))
    testing.check_objective(objective, biases_without_gradient=("dense/bias",) if contrastive else ())
    assert not objective.built, "copies are tried"


# ---------------------------------------------------------------------- the suite has teeth
@keras.saving.register_keras_serializable(package="tests")
class Sound(Objective):
    """A small objective with an EMA teacher and state, that keeps the contract; each broken one is a subclass."""

    log_names = ("distance",)
    teacher_momentum = 0.5
    state_dtype, state_autocast = "float32", False

    def __init__(self, width=4, **kwargs):
        super().__init__(**kwargs)
        self.width = width

    def build(self, student_features_shape, teacher_features_shape=None):
        self.head = keras.layers.Dense(self.width)
        build_heads(student_features_shape[-1], self.head)
        self.teacher_head = self.follow(self.head)
        state = {"trainable": False, "dtype": self.state_dtype, "autocast": self.state_autocast}
        self.count = self.add_weight(shape=(), initializer="zeros", name="count", **state)

    def call(self, student_features, teacher_features=None, training=None):
        if training:
            self.count.assign_add(1.0)
        return {
            "student": apply_head(self.head, student_features, training),
            "teacher": apply_teacher_head(self.teacher_head, teacher_features, training),
        }

    def compute_loss(self, outputs, step):
        loss = ops.mean(ops.square(outputs["student"] - ops.flip(outputs["teacher"], axis=0)))
        return loss, {"distance": ops.stop_gradient(loss)}

    def get_config(self):
        return super().get_config() | {"width": self.width}


class Undeclared(Sound):
    def compute_loss(self, outputs, step):
        loss, logs = super().compute_loss(outputs, step)
        return loss, logs | {"extra": loss}


class FreshTeacher(Sound):
    def build(self, *shapes):
        super().build(*shapes)
        self.teacher_head.kernel.assign(2.0 * self.teacher_head.kernel)


class EagerTeacher(Sound):
    """Moves its teacher a second time."""

    def call(self, student_features, teacher_features=None, training=None):
        if training:
            self.teacher_head.kernel.assign(0.5 * self.teacher_head.kernel)
        return super().call(student_features, teacher_features, training)


class StateInTheLoss(Sound):
    def compute_loss(self, outputs, step):
        self.count.assign_add(1.0)
        return super().compute_loss(outputs, step)


class StateInEvaluation(Sound):
    def call(self, student_features, teacher_features=None, training=None):
        self.count.assign_add(1.0)
        return super().call(student_features, teacher_features, training)


class Half(Sound):
    def call(self, *args, **kwargs):
        return {name: ops.cast(x, "bfloat16") for name, x in super().call(*args, **kwargs).items()}


class StateOfThePolicy(Sound):
    state_dtype = None


class CastState(Sound):
    state_autocast = True


class Forgetful(Sound):
    def get_config(self):
        return {name: value for name, value in super().get_config().items() if name != "width"}


class Idle(Sound):
    """Has a weight that nothing uses."""

    def build(self, *shapes):
        super().build(*shapes)
        self.idle = self.add_weight(shape=(2,), name="idle")


class DeafTeacher(Sound):
    def call(self, student_features, teacher_features=None, training=None):
        return super().call(student_features, student_features, training)


class TwoViewsOnly(Sound):
    multi_crop = True


class Demanding(Sound):
    def __init__(self, width, **kwargs):
        super().__init__(width=width, **kwargs)


class Strict(Sound):
    def check_run(self, *, batch_size, epochs, steps_per_epoch):
        if batch_size < 4:
            raise ValueError("too small")


def test_the_sound_objective_passes():
    testing.check_objective(Sound(width=3))


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (Undeclared, r"logs \['distance', 'extra'\], the class declares \['distance'\]"),
        (FreshTeacher, "should start from the student's value"),
        (EagerTeacher, "should move once a step"),
        (StateInTheLoss, r"compute_loss moved \['.*count'\]; it also evaluates"),
        (StateInEvaluation, r"call\(training=False\) moved"),
        (Half, "should be float32 under mixed_bfloat16 too, it is bfloat16"),
        (StateOfThePolicy, r'state .*count should be float32 .* Pass dtype="float32"'),
        (CastState, r"state .*count should be float32 .* autocast=False"),
        (Forgetful, r"get_config leaves out the arguments \['width'\]"),
        (Idle, r"no gradient reaches \['.*idle'\]"),
        (DeafTeacher, "does not depend on `teacher_features`"),
        (TwoViewsOnly, "declares multi_crop, so it should take further views"),
        (Demanding, "give every argument a default"),
        (Strict, "let pass what is not known"),
    ],
)
def test_a_broken_objective_is_told_what_is_broken(broken, words):
    with keras.saving.custom_object_scope({broken.__name__: broken}), pytest.raises(AssertionError, match=words):
        testing.check_objective(broken(width=3))


def test_an_unregistered_class_is_told_to_register():
    with pytest.raises(AssertionError, match="Unregistered cannot be made again .* Register the class"):
        testing.check_objective(type("Unregistered", (Sound,), {})())


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("log_names", ("loss",)),
        ("log_names", ("a", "a")),
        ("num_views", 2.0),
        ("num_teacher_views", 3),
        ("multi_crop", None),
        ("needs_batch_statistics", 1),
        ("teacher_momentum", 1.5),
        ("teacher_momentum", (0.9,)),
        ("probe", "forest"),
    ],
)
def test_a_wrong_declaration_is_named(attribute, value):
    objective = Sound()
    setattr(objective, attribute, value)
    with pytest.raises(AssertionError, match=f"Sound.{attribute} should be"):
        testing.check_objective(objective)


# ---------------------------------------------------------------------- the student head is the probe
def size(head):
    return sum(int(np.prod(w.shape)) for w in head.trainable_weights)


def built(objective, width):
    objective.build((2, None, width))
    return objective


@pytest.mark.backend_independent
def test_heads_of_an_mlp_probe_are_the_papers():
    """The table of heads: the student is the MLP that is used downstream, the teacher has its shape."""
    d, c, bn = 48, 40, 2
    trunk = d * 2048 + bn * 2048 + 2048 * 2048 + bn * 2048  # two hidden layers of 2048, without biases
    dissl = built(objectives.DISSL(num_classes=c, probe="mlp"), d)
    expected = trunk + 2048 * 512 + bn * 512 + 512 * c + c
    assert size(dissl.student_head) == size(dissl.teacher_head) == expected
    cissl = built(objectives.CISSL(probe="mlp"), d)
    assert size(cissl.student_head) == size(cissl.teacher_head) == trunk + 2048 * 128 + 128 + bn * 128
    dissl = built(objectives.DISSL(num_classes=c, probe="mlp", heads="imagenet"), d)  # the teacher's stack, twice
    stack = d * 512 + bn * 512 + 512 * 2048 + bn * 2048 + 2048 * 2048 + bn * 2048 + 2048 * 512 + bn * 512
    assert size(dissl.student_head) == size(dissl.teacher_head) == stack + 512 * c + c
    assert dissl.student_head is not dissl.teacher_head
    for ours, theirs in zip(dissl.student_head.weights, dissl.teacher_head.weights, strict=True):
        assert ours is not theirs


@pytest.mark.parametrize("name", ["DISSL", "CISSL"])
def test_a_probe_layer_is_the_student_head(name, tmp_path):
    """It makes the student's outputs, is recorded as the family, and comes back from a preset with its values."""
    width = {"DISSL": 12, "CISSL": 8}[name]
    probe = keras.Sequential([keras.layers.Dense(5, activation="relu"), keras.layers.Dense(width)])
    objective = members.SMALL[name](probe=probe)
    encoder = keras_issl.encoders.ResNet(blocks=(1,), width=8, image_size=8, stem="strided")
    keras_issl.Pretrainer(encoder, objective)
    assert objective.student_head is probe and provenance.of(encoder)["probe"] == "custom"
    features = np.random.default_rng(0).normal(size=(2, 6, 8)).astype("float32")
    outputs = objective(features, training=False)
    student = ops.convert_to_numpy(outputs["student_logits" if name == "DISSL" else "student"])
    np.testing.assert_allclose(student[1], ops.convert_to_numpy(probe(features[1])), rtol=1e-5, atol=1e-6)

    keras_issl.save_preset(encoder, tmp_path / "preset", objective=objective)
    loaded = keras_issl.load_objective(tmp_path / "preset")
    assert type(loaded.probe) is keras.Sequential and loaded.student_head is loaded.probe
    again = loaded(features, training=False)
    for key, value in outputs.items():
        np.testing.assert_array_equal(ops.convert_to_numpy(again[key]), ops.convert_to_numpy(value))


@keras.saving.register_keras_serializable(package="tests")
class OwnProbe(keras.layers.Layer):
    """A user's probe without a `build` of its own: its weights are made when it is first called."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(units)

    def call(self, x):
        return self.dense(ops.tanh(x))


def test_a_users_own_layer_is_built_with_the_objective():
    objective = built(members.SMALL["CISSL"](probe=OwnProbe(8)), 16)
    assert tuple(objective.probe.dense.kernel.shape) == (16, 8)
    assert len(objective.student_head.trainable_weights) == 2


def used(layer):
    layer(np.zeros((2, 3), "float32"))
    return layer


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        (lambda: members.SMALL["DISSL"](probe=keras.layers.Dense(5)), r"outputs \(N, 12\).*shape \(None, 5\)"),
        (lambda: members.SMALL["CISSL"](probe=keras.layers.Dense(5)), r"keras.layers.Dense\(8\)"),
        (lambda: members.SMALL["DISSL"](probe=used(keras.layers.Dense(12))), "keeps the width it was built for"),
        (lambda: members.SMALL["CISSL"](probe=used(keras.layers.Dense(8))), r"features, \(N, 16\)"),
        (lambda: members.SMALL["DISSL"](probe=keras.layers.Conv2D(12, 1)), "should be a layer that takes"),
        (lambda: members.SMALL["CISSL"](probe=keras.layers.RepeatVector(8)), r"shape \(None, 8, 16\)"),
    ],
)
def test_a_probe_layer_of_another_width_is_refused(objective, words):
    with pytest.raises(ValueError, match=words) as raised:
        built(objective(), 16)
    assert "`probe`" in str(raised.value)


# ---------------------------------------------------------------------- DISSL's warm-up of the invariance weight
def test_invariance_weight_warms_up_from_the_maximality_weight():
    """β_n = λ + (β − λ)(n + 1)/N after n finished steps, then β."""
    objective = objectives.DISSL(maximality_weight=2.3, invariance_weight=0.6, invariance_warmup_steps=4)
    seen = [float(objective.current_invariance_weight(ops.convert_to_tensor(n, dtype="int32"))) for n in range(6)]
    assert seen == pytest.approx([2.3 - 1.7 / 4, 2.3 - 1.7 / 2, 2.3 - 1.7 * 3 / 4, 0.6, 0.6, 0.6], rel=1e-6)
    assert objectives.DISSL(invariance_weight=0.6).current_invariance_weight(0) == 0.6


def test_the_loss_is_that_of_the_current_weight():
    objective = built(members.SMALL["DISSL"](invariance_weight=0.5, invariance_warmup_steps=10), 16)
    outputs = objective(keras.random.normal((2, 8, 16), seed=0), training=False)
    for step, beta in ((0, 2.3 - 0.18), (9, 0.5), (500, 0.5)):
        expected = keras_issl.losses.dissl_loss(**outputs, maximality_weight=2.3, invariance_weight=beta)[0]
        loss = ops.convert_to_numpy(objective.compute_loss(outputs, step)[0])
        assert loss == pytest.approx(ops.convert_to_numpy(expected), rel=1e-5)


def test_a_warm_up_longer_than_the_run_is_refused():
    objective = members.SMALL["DISSL"](invariance_warmup_steps=9)
    objective.check_run(batch_size=8, epochs=3, steps_per_epoch=3)
    objective.check_run(batch_size=8, epochs=2, steps_per_epoch=None)
    encoder = keras_issl.encoders.ResNet(blocks=(1,), width=8, image_size=8, stem="strided")
    model = keras_issl.Pretrainer(encoder, objective)
    model.compile("sgd")
    with pytest.raises(ValueError, match="`invariance_warmup_steps` should be at most the 8 steps"):
        model.fit(np.zeros((16, 8, 8, 3), "uint8"), batch_size=4, epochs=2, verbose=0)
    assert int(model.steps) == 0
    with pytest.raises(ValueError, match="`invariance_warmup_steps`"):
        objectives.DISSL(invariance_warmup_steps=-1)
