"""Optimizers against float64 references written from their equations, and against PyTorch's; the schedule's values."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_issl
from keras_issl import optimizers as O

BACKEND = keras.backend.backend()
SHAPES = {"kernel": (5, 4), "bias": (4,), "gain": (3,), "zeros": (6,), "conv": (2, 2, 3, 2), "still": (3, 3)}
STEPS = 4


def array(tensor):
    return ops.convert_to_numpy(tensor)


@pytest.fixture
def problem(rng):
    """Start and gradients of a few variables: `zeros` starts at 0, `still` never has a gradient."""
    start = {name: rng.normal(size=shape).astype("float32") for name, shape in SHAPES.items()}
    start["zeros"][:] = 0.0
    grads = [{name: rng.normal(size=s).astype("float32") for name, s in SHAPES.items()} for _ in range(STEPS)]
    for grad in grads:
        grad["still"][:] = 0.0
    return start, grads


def run(optimizer, start, grads, dtype="float32"):
    """The variables after one step per entry of `grads`."""
    variables = {name: keras.Variable(value, dtype=dtype, name=name) for name, value in start.items()}
    optimizer.build(list(variables.values()))
    for grad in grads:
        tensors = [ops.convert_to_tensor(grad[name]) for name in variables]
        optimizer.apply(tensors, list(variables.values()))
    return {name: array(ops.cast(variable, "float32")) for name, variable in variables.items()}


def assert_close(got, expected, rtol=2e-6):
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=rtol, atol=rtol, err_msg=name)


def reference(start, grads, rule, l2=0.0, clipvalue=None, exclude=False, adapt=None):
    """Float64: clip, add the decay, scale; then `rule(state, step, g)` gives the step to subtract."""
    start = {name: value.astype("float64") for name, value in start.items()}
    states = {name: {} for name in start}
    for step, grad in enumerate(grads):
        for name, w in start.items():
            g = grad[name].astype("float64")
            if clipvalue is not None:
                g = np.clip(g, -clipvalue, clipvalue)
            if not (exclude and w.ndim <= 1):
                g = g + l2 * w if adapt is None else adapt(g, w, l2, step)
            start[name] = w - rule(states[name], step, g)
    return start


def larc(g, w, decay, step, trust=0.001, eps=1e-8, clip_at=None):
    """Method, §6: g <- (g + wd w) trust |w| / (|g| + wd |w| + eps) where both norms are above 0."""
    g_norm, w_norm = np.linalg.norm(g), np.linalg.norm(w)
    if g_norm == 0 or w_norm == 0:
        return g
    ratio = trust * w_norm / (g_norm + decay * w_norm + eps)
    if clip_at is not None:
        ratio = min(ratio / clip_at(step), 1.0)
    return ratio * (g + decay * w)


def torch_sgd(rate, momentum=0.9, nesterov=False):
    def rule(state, step, g):
        m = state["m"] = momentum * state.get("m", 0.0) + g
        return rate(step) * (g + momentum * m if nesterov else m)

    return rule


def keras_sgd(rate, momentum):
    def rule(state, step, g):
        state["m"] = momentum * state.get("m", 0.0) - rate(step) * g
        return -state["m"]

    return rule


def adam(rate, b1=0.9, b2=0.999, eps=1e-7):
    def rule(state, step, g):
        m = state["m"] = b1 * state.get("m", 0.0) + (1 - b1) * g
        v = state["v"] = b2 * state.get("v", 0.0) + (1 - b2) * g * g
        alpha = rate(step) * np.sqrt(1 - b2 ** (step + 1)) / (1 - b1 ** (step + 1))
        return alpha * m / (np.sqrt(v) + eps)

    return rule


def cosine(peak, total, warmup=0, start=0.0, final=0.0, global_cosine=False):
    """The docstring's two lines in float64."""

    def rate(step):
        if step < warmup:
            return start + (peak - start) * step / warmup
        begin = 0 if global_cosine else warmup
        return final + (peak - final) * (1 + np.cos(np.pi * (min(step, total) - begin) / (total - begin))) / 2

    return rate


# --- LARS ---


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("exclude", [False, True])
def test_lars_is_its_equations(problem, exclude, nesterov):
    rate = cosine(3.0, 6, 2, start=0.5)
    optimizer = O.LARS(
        O.WarmupCosine(3.0, 6, 2, start=0.5), weight_decay=0.3, exclude_bias_and_norm=exclude, nesterov=nesterov
    )
    expected = reference(*problem, torch_sgd(rate, nesterov=nesterov), l2=0.3, exclude=exclude, adapt=larc)
    assert_close(run(optimizer, *problem), expected)


def test_lars_clips_values_first_and_clip_is_larcs(problem):
    """At this trust the ratio is above the rate for some variables, below it for others."""

    def clipped(g, w, decay, step):
        return larc(g, w, decay, step, trust=0.2, eps=0.01, clip_at=lambda _: 0.1)

    options = {"trust_coefficient": 0.2, "epsilon": 0.01, "weight_decay": 0.05, "momentum": 0.5}
    got = run(O.LARS(0.1, clip=True, clipvalue=0.4, **options), *problem)
    rule = torch_sgd(lambda _: 0.1, momentum=0.5)
    expected = reference(*problem, rule, l2=0.05, clipvalue=0.4, adapt=clipped)
    assert_close(got, expected)
    unclipped = run(O.LARS(0.1, clipvalue=0.4, **options), *problem)
    assert np.abs(unclipped["kernel"] - got["kernel"]).max() > 1e-3
    ratios = [0.2 * np.linalg.norm(problem[0][k]) / np.linalg.norm(np.clip(problem[1][0][k], -0.4, 0.4)) / 0.1
              for k in ("kernel", "bias", "gain", "conv")]  # fmt: skip
    assert max(ratios) > 1.2  # else nothing would be clipped


def test_first_lars_step_is_as_long_as_the_weights_say(problem):
    """Without decay, |step| = rate · trust · |w|, whatever the gradient's length; zero norms take it raw."""
    start, grads = problem
    for factor in (1.0, 1e3):
        scaled = {name: factor * g for name, g in grads[0].items()}
        after = run(O.LARS(2.0, trust_coefficient=0.01), start, [scaled])
        for name in ("kernel", "bias", "gain", "conv"):
            moved = np.linalg.norm(after[name].astype("float64") - start[name])
            assert moved == pytest.approx(0.02 * np.linalg.norm(start[name]), rel=1e-4)
        np.testing.assert_allclose(after["zeros"], -2.0 * scaled["zeros"], rtol=1e-6)
        np.testing.assert_array_equal(after["still"], start["still"])


def test_still_variables_do_not_decay(problem):
    """A zero gradient is raw: not even the decay acts, as in LARC."""
    after = run(O.LARS(1.0, weight_decay=0.5), *problem)
    np.testing.assert_array_equal(after["still"], problem[0]["still"])


def test_lars_norms_of_bfloat16_variables_are_float32(rng):
    """4096 equal squares sum to less than half in bfloat16."""
    start = {"w": np.ones(4096, "float32")}
    after = run(O.LARS(1.0, trust_coefficient=0.25), start, [{"w": np.full(4096, 2.0, "float32")}], "bfloat16")
    np.testing.assert_array_equal(after["w"], np.full(4096, 0.75))


# --- Coupled L2 ---


@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("clipvalue", [None, 0.4])
def test_adam_with_l2_is_its_equations(problem, exclude, clipvalue):
    rate = cosine(0.1, 6, 2, start=0.02)
    optimizer = O.Adam(
        O.WarmupCosine(0.1, 6, 2, start=0.02), l2=0.3, exclude_bias_and_norm=exclude, clipvalue=clipvalue
    )
    expected = reference(*problem, adam(rate), l2=0.3, clipvalue=clipvalue, exclude=exclude)
    assert_close(run(optimizer, *problem), expected, rtol=1e-5)


@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_with_l2_is_its_equations(problem, exclude, momentum):
    rate = cosine(0.1, 6)
    optimizer = O.SGD(O.WarmupCosine(0.1, 6), momentum, l2=0.3, exclude_bias_and_norm=exclude, clipvalue=0.4)
    expected = reference(*problem, keras_sgd(rate, momentum), l2=0.3, clipvalue=0.4, exclude=exclude)
    assert_close(run(optimizer, *problem), expected)


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_without_l2_they_are_kerass(problem, kind):
    options = {"momentum": 0.9, "nesterov": True} if kind == "SGD" else {"amsgrad": True}
    ours, theirs = getattr(O, kind)(0.1, **options), getattr(keras.optimizers, kind)(0.1, **options)
    assert isinstance(ours, getattr(keras.optimizers, kind))
    assert_close(run(ours, *problem), run(theirs, *problem), rtol=0)


def torch_run(make, start, grads):
    import torch

    parameters = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    optimizer = make(torch.optim, list(parameters.values()))
    for grad in grads:
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(grad[name])
        optimizer.step()
    return {name: parameter.detach().cpu().numpy() for name, parameter in parameters.items()}


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_torchs_with_weight_decay(problem, nesterov):
    got = run(O.SGD(0.1, momentum=0.9, nesterov=nesterov, l2=0.3), *problem)
    options = {"lr": 0.1, "momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.3}
    assert_close(got, torch_run(lambda optim, p: optim.SGD(p, **options), *problem))


def test_adam_is_torchs_with_weight_decay(problem):
    """One step at a time: PyTorch's eps is this epsilon over sqrt(1 - beta_2^t)."""
    eps = 1e-3
    for steps in range(1, STEPS + 1):
        problem_so_far = problem[0], problem[1][:steps]
        if steps > 1:  # the epsilon of earlier steps differs: make it negligible
            eps = 1e-12
        got = run(O.Adam(0.05, epsilon=eps * np.sqrt(1 - 0.999**steps), l2=0.3), *problem_so_far)
        options = {"lr": 0.05, "eps": eps, "weight_decay": 0.3}
        assert_close(got, torch_run(lambda optim, p, o=options: optim.Adam(p, **o), *problem_so_far), rtol=2e-5)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "LARS"])
def test_kerass_own_exclusion_is_heeded(problem, kind):
    decay = {"weight_decay": 0.3} if kind == "LARS" else {"l2": 0.3}
    optimizer = getattr(O, kind)(0.1, **decay)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    without, every = (run(getattr(O, kind)(0.1, **d), *problem) for d in ({}, decay))
    got = run(optimizer, *problem)
    for name in SHAPES:
        np.testing.assert_array_equal(got[name], (without if name == "bias" else every)[name])
    assert np.abs(without["bias"] - every["bias"]).max() > 1e-5


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow has gradients that are lists of rows")
@pytest.mark.parametrize("make", [lambda: O.LARS(0.5, weight_decay=0.1), lambda: O.Adam(0.1, l2=0.1)])
def test_gradients_of_embeddings(rng, make):
    import tensorflow as tf

    start, rows = rng.normal(size=(5, 2)).astype("float32"), rng.normal(size=(3, 2)).astype("float32")
    dense = np.zeros((5, 2), "float32")
    np.add.at(dense, [1, 3, 3], rows)
    expected = run(make(), {"table": start}, [{"table": dense}])["table"]
    variable, optimizer = keras.Variable(start), make()
    optimizer.apply([tf.IndexedSlices(rows, tf.constant([1, 3, 3]), tf.constant([5, 2]))], [variable])
    np.testing.assert_allclose(array(variable), expected, rtol=1e-6)


# --- Decoupled decay of Keras's own ---


def tiny_model():
    layers = [keras.layers.Dense(4, name="one"), keras.layers.BatchNormalization(), keras.layers.Dense(1, name="two")]
    return keras.Sequential([keras.Input((3,)), *layers])


def test_exclude_from_weight_decay():
    """Without a gradient AdamW only decays: kernels shrink by 1 - rate · decay, the rest stays as it is."""
    model = tiny_model()
    for variable in model.trainable_variables:
        variable.assign(np.ones(variable.shape))
    optimizer = O.exclude_from_weight_decay(keras.optimizers.AdamW(0.1, weight_decay=0.5), model)
    optimizer.apply([ops.zeros(v.shape) for v in model.trainable_variables], model.trainable_variables)
    for variable in model.trainable_variables:
        expected = 0.95 if variable.path.endswith("kernel") else 1.0
        np.testing.assert_allclose(array(variable), np.full(variable.shape, expected), rtol=1e-6)
    with pytest.raises(ValueError, match="`optimizer` should be new"):
        O.exclude_from_weight_decay(optimizer, model)
    with pytest.raises(ValueError, match="`optimizer` should have a weight decay"):
        O.exclude_from_weight_decay(keras.optimizers.Adam(0.1), model)
    with pytest.raises(ValueError, match="`model` should be built"):
        O.exclude_from_weight_decay(keras.optimizers.AdamW(0.1), keras.Sequential([keras.layers.Dense(2)]))


def test_biases_of_attention_are_biases():
    """Keras's have two axes, (heads, width): they are known by name; position embeddings are not exempt."""
    inputs = keras.Input((3, 4))
    x = inputs + keras.layers.Embedding(3, 4, name="positions")(ops.arange(3))
    x = keras.layers.LayerNormalization()(x)
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.MultiHeadAttention(2, 3)(x, x)))
    biases = [v for v in model.trainable_variables if v.path.endswith("bias")]
    assert [tuple(v.shape) for v in biases] == [*[(2, 3)] * 3, (4,), (1,)]
    decayed = {
        "AdamW": lambda: O.exclude_from_weight_decay(keras.optimizers.AdamW(0.1, weight_decay=0.5), model),
        "SGD": lambda: O.SGD(0.1, l2=0.5, exclude_bias_and_norm=True),
    }
    for make in decayed.values():
        for variable in model.trainable_variables:
            variable.assign(np.ones(variable.shape))
        make().apply([ops.zeros(v.shape) for v in model.trainable_variables], model.trainable_variables)
        for variable in model.trainable_variables:
            expected = 0.95 if variable.path.split("/")[-1] in ("kernel", "embeddings") else 1.0
            np.testing.assert_allclose(array(variable), np.full(variable.shape, expected), rtol=1e-6)
    optimizer = O.LARS(0.1, weight_decay=0.5, exclude_bias_and_norm=True)
    for variable in model.trainable_variables:
        variable.assign(np.ones(variable.shape))
    optimizer.apply([ops.ones(v.shape) for v in model.trainable_variables], model.trainable_variables)
    for variable in biases:
        np.testing.assert_allclose(array(variable), np.full(variable.shape, 0.9), rtol=1e-6)


# --- The schedule ---


def test_schedule_at_its_key_steps():
    rate = O.WarmupCosine(2.0, 100, 20, start=0.5, final=0.1)
    for step, expected in {0: 0.5, 10: 1.25, 20: 2.0, 40: 0.1 + 1.9 * (1 + 0.5**0.5) / 2, 60: 1.05, 100: 0.1}.items():
        assert float(rate(step)) == pytest.approx(expected, rel=1e-6)
    assert float(rate(1000)) == pytest.approx(0.1, rel=1e-6)  # stays
    upstream = O.WarmupCosine(3.0, 100, 10, start=0.001, global_cosine=True)
    assert float(upstream(9)) == pytest.approx(0.001 + 2.999 * 0.9, rel=1e-6)
    for step in (10, 25, 50, 99):
        assert float(upstream(step)) == pytest.approx(3.0 * (1 + np.cos(np.pi * step / 100)) / 2, rel=1e-6)
    assert float(O.WarmupCosine(2.0, 100)(0)) == 2.0  # without warm-up `start` plays no part
    all_warmup = O.WarmupCosine(1.0, 4, 4)
    np.testing.assert_allclose([float(all_warmup(t)) for t in range(4)], [0, 0.25, 0.5, 0.75])


@pytest.mark.parametrize("options", [{}, {"start": 0.3, "final": 0.2}, {"global_cosine": True}])
def test_schedule_is_the_same_traced_as_in_float64(options):
    steps, schedule, rate = np.arange(60), O.WarmupCosine(2.0, 50, 7, **options), cosine(2.0, 50, 7, **options)
    expected = [rate(t) for t in steps]
    got = array(ops.vectorized_map(schedule, ops.convert_to_tensor(steps, "int32")))  # traced, step by step
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert keras.backend.standardize_dtype(schedule(ops.convert_to_tensor(3, "int32")).dtype) == "float32"
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert copy.get_config() == schedule.get_config()


# --- In a model ---


def optimizer_of(kind):
    rate = O.WarmupCosine(0.1, 8, 2, start=0.01)
    if kind == "LARS":
        return O.LARS(rate, weight_decay=0.01, clip=True, exclude_bias_and_norm=True, clipvalue=1.0, epsilon=1e-6)
    moments = {"momentum": 0.8, "nesterov": True} if kind == "SGD" else {"beta_1": 0.8, "epsilon": 1e-6}
    return getattr(O, kind)(rate, l2=0.01, exclude_bias_and_norm=True, clipvalue=1.0, **moments)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "LARS"])
def test_serialisation_round_trip(kind):
    optimizer = optimizer_of(kind)
    for copy in (
        keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer)),
        keras.optimizers.deserialize(keras.optimizers.serialize(optimizer)),
    ):
        assert type(copy) is type(optimizer)
        assert copy.get_config() == optimizer.get_config()
        assert copy.learning_rate is not None


@pytest.mark.parametrize("kind", ["SGD", "Adam", "LARS"])
def test_fit_saves_its_state_and_goes_on_bit_for_bit(kind, rng, tmp_path):
    x, y = rng.normal(size=(8, 3)).astype("float32"), rng.normal(size=(8, 1)).astype("float32")
    model = tiny_model()
    model.compile(optimizer_of(kind), loss="mse")
    model.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    assert type(copy.optimizer) is type(model.optimizer)
    assert int(copy.optimizer.iterations) == 4
    for saved, loaded in zip(model.optimizer.variables, copy.optimizer.variables, strict=True):
        np.testing.assert_array_equal(array(saved), array(loaded))
    for trained in (model, copy):
        trained.fit(x, y, batch_size=4, epochs=1, shuffle=False, verbose=0)
    for one, other in zip(model.weights, copy.weights, strict=True):
        np.testing.assert_array_equal(array(one), array(other))


def test_a_pretraining_step_is_lars(rng):
    """From the gradient of a plain step, the Pretrainer's compiled step moves every variable as the equations say."""
    images = rng.integers(0, 256, (8, 4, 4, 3)).astype("uint8")

    def trained(optimizer):
        keras.utils.set_random_seed(1)
        encoder = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(4)])
        model = keras_issl.Pretrainer(encoder, keras_issl.objectives.SimCLR(output_dim=4, hidden=(4,)))
        before = [array(v).astype("float64") for v in model.trainable_variables]
        model.compile(optimizer)
        model.fit(images, batch_size=8, epochs=1, verbose=0)
        return before, [array(v).astype("float64") for v in model.trainable_variables]

    before, after = trained(keras.optimizers.SGD(1.0))
    gradients = [w - moved for w, moved in zip(before, after, strict=True)]
    _, after = trained(O.LARS(2.0, weight_decay=0.1, trust_coefficient=0.1))
    for w, g, got in zip(before, gradients, after, strict=True):
        np.testing.assert_allclose(got, w - 2.0 * larc(g, w, 0.1, 0, trust=0.1), rtol=1e-3, atol=1e-4)


# --- Bad input ---


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: O.WarmupCosine(0.1, 10, 11), "`warmup_steps` should be at most total_steps=10. Received: 11"),
        (lambda: O.WarmupCosine(0.1, 0), "`total_steps`"),
        (lambda: O.WarmupCosine(0.1, 10.5), "`total_steps`"),
        (lambda: O.WarmupCosine(0.1, 10, -1), "`warmup_steps`"),
        (lambda: O.WarmupCosine(0.1, 10, True), "`warmup_steps`"),
        (lambda: O.WarmupCosine(-0.1, 10), "`peak`"),
        (lambda: O.WarmupCosine("fast", 10), "`peak`"),
        (lambda: O.WarmupCosine(0.1, 10, start=float("nan")), "`start`"),
        (lambda: O.WarmupCosine(0.1, 10, final=-1), "`final`"),
        (lambda: O.SGD(0.1, l2=-1e-4), "`l2`"),
        (lambda: O.Adam(0.1, l2="1e-4"), "`l2`"),
        (lambda: O.LARS(0.1, momentum=1.5), "`momentum`"),
        (lambda: O.LARS(0.1, momentum=-0.5), "`momentum`"),
        (lambda: O.LARS(0.1, weight_decay=None), "`weight_decay`"),
        (lambda: O.LARS(0.1, trust_coefficient=0.0), "`trust_coefficient`"),
        (lambda: O.LARS(0.1, epsilon=-1e-8), "`epsilon`"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=f"{message}.*Received" if "Received" not in message else message):
        make()
