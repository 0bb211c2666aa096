"""Scaling on paper: formulae against hand-computed cases, counts against layers added up by hand, and the page."""

import math
import sys
from pathlib import Path

import keras
import members
import pytest

import keras_issl
from keras_issl import distribution, encoders, objectives, recipes

ROOT = Path(keras_issl.__file__).parent.parent
sys.path.append(str(ROOT / "tools"))
import benchmark_training  # noqa: E402
import scaling  # noqa: E402
import scaling_count  # noqa: E402
import scaling_formulae as F  # noqa: E402

once = pytest.mark.backend_independent
VARIANTS = members.SMALL | {"SwAV-queue": lambda **kw: members.SMALL["SwAV"](queue_length=16, **kw)}
TINY = {"blocks": (1,), "width": 8, "image_size": 12, "stem": "cifar"}
CHIP = F.Chip(1e12, 1e9, 1e11, 4, 1e9, 1e8, 1e10, 1e-3, 1e-2, "none")


def messages(objective, batch, *kinds):
    return [m for m in F.objective_messages(objective, batch) if not kinds or m.kind in kinds]


# ---------------------------------------------------------------------- formulae, by hand
@once
def test_bytes_that_a_device_sends():
    assert F.Message("", "", "all-reduce", 100, 3).sent(8) == 3 * 2 * 7 / 8 * 100
    assert F.Message("", "", "all-gather", 100, 2).sent(8) == 2 * 7 * 100
    assert F.Message("", "", "reduce-scatter", 100).sent(8) == 700


@once
def test_time_of_messages():
    """Within a domain of four, and over two of them: shards of a quarter go between."""
    message = F.Message("", "", "all-reduce", 4e6, 2)
    assert message.seconds(CHIP, 4) == pytest.approx(2 * (2 * 3 / 4 * 4e6 / 1e9 + 2 * 2 * 1e-3))
    slow = 2 * 1 / 2 * 1e6 / 1e8
    assert message.seconds(CHIP, 8, 0.5) == pytest.approx(2 * (2 * (6e6 / 1e9 + slow) + 4e-3 + 2e-2))
    gather = F.Message("", "", "all-gather", 1e6)
    assert gather.seconds(CHIP, 8) == pytest.approx(3 * 2 * 1e6 / 1e9 + 1e6 / 1e8 + 4e-3 + 2e-2)


@once
def test_products_of_losses():
    batch, devices = 4, 3  # 12 images, 24 views
    assert F.loss_multiply_adds(objectives.CISSL(output_dim=8), batch, devices) == 3 * 8 * 24 * 8
    assert F.loss_multiply_adds(objectives.SimCLR(output_dim=8), batch, devices) == 3 * 8 * 24 * 8
    assert F.loss_multiply_adds(objectives.MoCoV3(output_dim=8), batch, devices) == 2 * 2 * 4 * 12 * 8
    assert F.loss_multiply_adds(objectives.BarlowTwins(output_dim=8), batch, devices) == 3 * 12 * 8 * 8
    assert F.loss_multiply_adds(objectives.BarlowTwins(output_dim=80), batch, devices) == 3 * 2 * 12 * 12 * 80
    assert F.loss_multiply_adds(objectives.VICReg(output_dim=8), batch, devices) == 3 * 2 * 12 * 8 * 8
    for none in (objectives.DISSL(), objectives.DINO(), objectives.SwAV(), objectives.BYOL(), objectives.SimSiam()):
        assert F.loss_multiply_adds(none, batch, devices) == 0


@once
def test_bytes_of_losses():
    """The paper's batch: logits of two heads for 2 x 2560 views, C = 16,384, 320 MiB a head."""
    mib = 2**20
    assert F.loss_bytes(objectives.DISSL(), 2560, 1, 2) == 7 * 320 * mib
    assert F.loss_bytes(objectives.DISSL(), 2560, 1, 2, rows=320) == 7 * 40 * mib
    assert F.loss_bytes(objectives.DISSL(), 2560, 1, 2, rows=9999) == 7 * 320 * mib
    assert F.loss_bytes(objectives.DISSL(num_classes=10), 4, 1, 8) == 4 * (3 * 10 + 2) * 4 * 10
    assert F.loss_bytes(objectives.DINO(num_prototypes=10), 4, 1, 3) == 4 * 3 * 5 * 4 * 10
    queue = objectives.SwAV(num_prototypes=10, queue_length=7)
    assert F.loss_bytes(queue, 4, 3, 2) == 4 * (8 * 4 * 10 + 2 * (12 + 7) * 10)
    assert F.loss_bytes(objectives.CISSL(), 4, 3, 2) == 4 * 3 * 8 * 24
    assert F.loss_bytes(objectives.SimCLR(), 4, 3, 2, rows=2) == 4 * 3 * 4 * 24
    assert F.loss_bytes(objectives.MoCoV3(), 4, 3, 2) == 4 * 3 * 2 * 4 * 12
    assert F.loss_bytes(objectives.VICReg(output_dim=10), 4, 3, 2) == 4 * (6 * 12 * 10 + 4 * 100)
    assert F.loss_bytes(objectives.BYOL(output_dim=10), 4, 3, 2) == 4 * 3 * 8 * 10


@once
def test_a_step_and_a_run_by_hand():
    counts = F.Counts(1e9, 5e8, 4e8, 1e8, (8, 16), (8,), 1_000_000, 2_500_000, 1e6)
    assumed = F.Assumptions(0.5, 0.5, 1.0, 0.5, 5, 2, 10.0, 1e5, 100)
    plan = F.Plan(counts, objectives.BYOL(output_dim=10), CHIP, 4, 16, 2, 6_400, 3, assumed)
    assert plan.flops == 2 * 3.5e9
    assert plan.compute_seconds == pytest.approx(7e9 / 5e11)
    traffic = 5 * 4e8 + 2 * 1e8 + 4 * (2 * 2.5e6 + 1e6 * 8) + 2 * 4 * 3 * 2 * 16 * 10
    assert plan.traffic == traffic and plan.memory_seconds == pytest.approx(traffic / 5e10)
    gradients, norm, logs = plan.messages
    assert (gradients.count, gradients.size) == (1, 4e6)
    assert norm.count == 5 and norm.count * norm.size == pytest.approx(2 * 4 * (8 + 16 + 8 + 16 + 8))
    assert logs.kind == "logs" and logs.size == 4 * 2 * 2 * 10
    sent = 2 * 3 / 4 * 4e6 / 1e9 + 4e-3  # 10 ms, beside a backward pass of 2/3 x 44 ms, half of which hides it
    assert plan.message_seconds("gradients") == pytest.approx(sent) and sent < 0.5 * plan.memory_seconds * 2 / 3
    waiting = norm.seconds(CHIP, 4) + logs.seconds(CHIP, 4)
    assert plan.waiting_seconds == pytest.approx(waiting)
    assert plan.step_seconds == pytest.approx(plan.memory_seconds + waiting)
    assert plan.efficiency == pytest.approx(plan.memory_seconds / plan.step_seconds)
    assert plan.least_batch == pytest.approx(16 * waiting / plan.memory_seconds)
    assert plan.steps == 300 and plan.seconds == pytest.approx(300 * plan.step_seconds)
    assert plan.images_per_second == pytest.approx(64 / plan.step_seconds)
    memory = plan.memory()
    assert sum(memory.values()) == 4 * (2.5e6 + 1e6 + 2e6) + 4e8 + 1e6 + 4 * 3 * 2 * 16 * 10
    nothing_hidden = F.dataclasses.replace(plan, assumptions=F.dataclasses.replace(assumed, overlap=1e-9))
    assert nothing_hidden.waiting_seconds == pytest.approx(waiting + sent, rel=1e-6)
    alone = F.dataclasses.replace(plan, devices=1)
    assert alone.messages == [] and alone.efficiency == 1


@once
def test_an_objective_of_another_class_is_refused():
    with pytest.raises(ValueError, match="one of the ten .* Received: Layer"):
        F.objective_messages(type("Layer", (objectives.DISSL,), {})(), 4)


# ---------------------------------------------------------------------- what the code asks for
@pytest.mark.parametrize("name", VARIANTS)
def test_messages_are_those_of_the_code(name):
    """Shapes that go into `distribution.gather` and `global_mean` in one step, whatever they are for."""
    model = scaling_count.make(VARIANTS[name], TINY, ((2, 12),), "float32")
    found = scaling_count.calls(model, (4, 12, 12, 3))
    forward = [m for m in F.objective_messages(model.objective, 4) if not m.what.endswith("backward")]

    def sizes(collective):
        return sorted(m.size for m in forward if m.collective == collective for _ in range(m.count))

    assert sizes("all-gather") == sorted(4 * math.prod(shape) for shape in found.gathered)
    assert sizes("all-reduce") == sorted(4 * math.prod(shape) for shape in found.reduced)


@pytest.mark.skipif(keras.config.backend() != "torch", reason="only PyTorch's tensors know whether they need gradients")
@pytest.mark.parametrize("name", VARIANTS)
def test_messages_go_back_where_gradients_do(name, monkeypatch):
    needed = {"all-gather": 0, "all-reduce": 0}
    gather, mean = distribution.gather, distribution.global_mean
    monkeypatch.setattr(
        distribution,
        "gather",
        lambda x: needed.update({"all-gather": needed["all-gather"] + x.requires_grad}) or gather(x),
    )
    monkeypatch.setattr(
        distribution,
        "global_mean",
        lambda x: needed.update({"all-reduce": needed["all-reduce"] + x.requires_grad}) or mean(x),
    )
    model = scaling_count.make(VARIANTS[name], TINY, ((2, 12),), "float32")
    model.objective.compute_loss(model.outputs(keras.random.uniform((4, 12, 12, 3), maxval=255.0), training=True), 0)
    back = [m for m in F.objective_messages(model.objective, 4) if m.what.endswith("backward")]
    assert needed["all-gather"] == sum(m.count for m in back if m.collective == "reduce-scatter")
    assert needed["all-reduce"] == sum(m.count for m in back if m.collective == "all-reduce")


# ---------------------------------------------------------------------- counts, by hand
def tiny_encoder(side):
    """(multiply-adds, numbers in outputs) of an image: a 3x3 convolution from 3 to 8 channels, two from 8 to 8."""
    pixels = side**2
    # conv, norm, ReLU; conv, norm, ReLU, conv, norm, add, ReLU: ten maps; and eight pooled features, in float32.
    return pixels * 9 * 8 * (3 + 8 + 8), 10 * pixels * 8


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_counts_of_a_small_network(policy):
    """DISSL with a small crop: the student's head sees three views, the teacher's two."""
    model = scaling_count.make(members.SMALL["DISSL"], TINY, ((2, 12), (1, 6)), policy)
    batch, width = 4, 2 if policy == "mixed_bfloat16" else 4
    counts = scaling_count.count(model, (batch, 12, 12, 3), ((2, 12), (1, 6)))
    (large, large_out), (small, small_out) = tiny_encoder(12), tiny_encoder(6)
    student, teacher = 8 * 8 + 8 * 12, 8 * 16 + 16 * 8 + 8 * 12  # 8 -> 8 -> 12; 8 -> 16 -> 8 -> 12
    assert counts.trained == batch * (2 * large + small + 3 * student + 2 * teacher)
    heads = 3 * (8 + 8 + 12) + 2 * (16 + 16 + 8 + 8 + 12)  # linear and norm, linear; the same twice
    assert counts.trained_outputs == batch * (width * (2 * large_out + small_out + heads) + 4 * 3 * 8)
    assert (counts.teacher, counts.teacher_outputs, counts.teacher_norms) == (0, 0, ())
    assert sorted(counts.norms) == sorted([8] * 6 + [16, 8, 8]), "three of the encoder, for each size of view"
    assert counts.view_bytes == 4 * batch * 3 * (2 * 144 + 36)
    trained = 9 * 8 * (3 + 8 + 8) + 6 * 8 + student + 12 + 16 + teacher + 12 + 2 * 16 + 16
    assert counts.parameters == trained
    assert counts.weights == trained + 6 * 8 + 2 * (8 + 16 + 8) + 1, "statistics, and the number of steps"


def test_counts_of_a_teacher():
    """DINO: encoder, head and prototypes of the moving average run forward, on two views of three."""
    model = scaling_count.make(members.SMALL["DINO"], TINY, ((2, 12), (1, 6)), "float32")
    counts = scaling_count.count(model, (4, 12, 12, 3), ((2, 12), (1, 6)))
    (large, _), (small, _) = tiny_encoder(12), tiny_encoder(6)
    head = 8 * 16 + 16 * 8 + 8 * 12
    assert counts.teacher == 4 * 2 * (large + head)
    assert counts.trained == 4 * (2 * large + small + 3 * head)
    assert counts.teacher_norms == (8, 8, 8) and counts.norms == (8,) * 6


@once
def test_counts_of_a_resnet_50():
    """25,557,032 parameters with a classifier of 1000, as torchvision says; products by the paper's table."""
    model = scaling_count.make(members.SMALL["SimSiam"], {"variant": 50}, ((2, 224),), "float32")
    heads = sum(math.prod(w.shape) for w in model.objective.trainable_weights)
    counts = scaling_count.count(model, (1, 224, 224, 3), ((2, 224),))
    assert counts.parameters - heads == 25_557_032 - 2049 * 1000
    products, inside, side = 112**2 * 49 * 3 * 64, 64, 56
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width, stride = 64 * 2**stage, 2 if stage else 1
        for block in range(blocks):
            stride = stride if not block else 1
            products += side**2 * inside * width  # before the stride
            side //= stride
            products += side**2 * (9 * width * width + width * 4 * width)
            products += 0 if block else side**2 * inside * 4 * width  # the way around
            inside = 4 * width
    assert counts.trained == 2 * (products + 2048 * 16 + 16 * 8 + 8 * 6 + 6 * 8)
    assert products == pytest.approx(4.09e9, rel=2e-3), "as it is commonly given"


def test_a_layer_that_cannot_be_counted_is_refused():
    layer = keras.layers.EinsumDense("ab,bc->ac", output_shape=3)
    layer.build((None, 4))
    with pytest.raises(ValueError, match="made of convolutions, dense layers"):
        scaling_count.multiply_adds(layer, (2, 4), (2, 3))


def test_what_fails_in_a_pass_is_said():
    encoder = encoders.ResNet(**TINY)
    model = keras_issl.Pretrainer(encoder, members.SMALL["DISSL"](), lambda images: [images])
    with pytest.raises(ValueError, match="at least 2 views"):
        scaling_count.calls(model, (4, 12, 12, 3))


# ---------------------------------------------------------------------- the command and its page
@once
def test_the_command(capsys):
    words = "plan --objective dissl --encoder 18 --views 2x32,1x16 --devices 4 --batch-per-device 8 --images 1e4"
    scaling.main(words.split())
    said = capsys.readouterr().out
    assert "DISSL, ResNet-18, 512 features, 2x32 + 1x16 px, mixed_bfloat16; 4 x h200, 8 images a device" in said
    assert "nothing here was measured" in said and "| run | steps | 31,200 |" in said
    for wrong in (
        ["plan"],
        [*words.split(), "--views", "2y3"],
        [*words.split(), "--utilisation", "1.5"],
        ["plan", "--devices", "0"],
    ):
        with pytest.raises(SystemExit):
            scaling.main(wrong)
    with pytest.raises(SystemExit):
        scaling.main(["--help"])
    assert "Nothing printed here is a measurement" in capsys.readouterr().out


@once
@pytest.mark.parametrize(
    "words", ["chips", "plan --recipe imagenet/dissl_resnet50_d8192_e800_m8 --batch-per-device 320"]
)
def test_the_page_says_what_the_command_prints(words, capsys):
    """In full, where the page has the command."""
    page = (ROOT / "docs" / "scaling.md").read_text()
    assert f"python tools/scaling.py {words}\n" in page
    scaling.main(words.split())
    for line in capsys.readouterr().out.splitlines():
        assert line in page


@once
def test_the_benchmark_of_training_knows_a_chip_by_its_name():
    recipe, _ = recipes.override("tiny_imagenet/dissl", {"batch_size": 8})
    found = benchmark_training.shares(recipe, "NVIDIA H200")
    assert len(found) == 2 and all(0 < share < 1e-3 for share in found.values())  # of what an image a second takes
    for other in ("NVIDIA GH200 480GB", "NVIDIA A100-SXM4-80GB", ""):
        assert benchmark_training.shares(recipe, other) == {}
