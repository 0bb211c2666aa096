"""The formulae of `tools/scaling.py`: plain Python, no backend. Bytes, seconds, multiply-adds; GB is 10^9 bytes."""

import dataclasses
import math

FLOAT32 = 4  # bytes
BUCKET = 25 * 2**20  # bytes of gradients in one message: the default of PyTorch's DistributedDataParallel


@dataclasses.dataclass(frozen=True)
class Chip:
    """Public figures of an accelerator; bandwidths per chip, in bytes a second and in one direction.

    Attributes:
        flops: Peak bfloat16 operations a second, dense.
        memory: Bytes.
        memory_bandwidth: Of that memory.
        domain: Chips that the fast links join.
        fast: Bandwidth within the domain.
        slow: Bandwidth between domains, a chip's share of its host's.
        host: Bandwidth from the host's memory, or `None` where the vendor gives none.
        fast_latency: Seconds that a small message takes for a hop within the domain: assumed, no vendor gives it.
        slow_latency: The same between domains; assumed.
        source: Where the figures are from.
    """

    flops: float
    memory: float
    memory_bandwidth: float
    domain: int
    fast: float
    slow: float
    host: float | None
    fast_latency: float
    slow_latency: float
    source: str


CHIPS = {
    "h200": Chip(
        flops=989e12,  # 1,979 with sparsity
        memory=141e9,
        memory_bandwidth=4.8e12,
        domain=8,
        fast=450e9,  # NVLink, 900 GB/s both ways
        slow=50e9,  # eight ports of 400 Gb/s for eight GPUs
        host=64e9,  # PCIe 5, 128 GB/s both ways
        fast_latency=5e-6,
        slow_latency=10e-6,
        source="NVIDIA H200 datasheet (SXM), DGX H200 datasheet",
    ),
    "tpu_v5e": Chip(
        flops=197e12,
        memory=16e9,
        memory_bandwidth=819e9,
        domain=256,
        fast=200e9,  # ICI, 400 GB/s both ways, over four ports: a slice with fewer has less at its edges
        slow=3.125e9,  # two ports of 100 Gb/s for the eight chips of a host
        host=None,
        fast_latency=2e-6,
        slow_latency=25e-6,
        source="Google Cloud documentation, TPU v5e",
    ),
}


@dataclasses.dataclass(frozen=True)
class Message:
    """Collectives of a step that are alike.

    Attributes:
        kind: `"gradients"`, `"batch norm"`, `"objective"` or `"logs"` (what is only reported).
        what: In words.
        collective: `"all-reduce"`, `"all-gather"` or `"reduce-scatter"`.
        size: Bytes that a device puts in: the tensor that is summed, or its own part of what is gathered; of what is
            scattered, the part that it gets.
        count: How many a step.
    """

    kind: str
    what: str
    collective: str
    size: float
    count: int = 1

    def sent(self, devices):
        """Bytes that each of a ring of devices sends a step, (N - 1)·S; twice (N - 1)/N·S for an all-reduce."""
        share = 2 / devices if self.collective == "all-reduce" else 1
        return (devices - 1) * share * self.size * self.count

    def seconds(self, chip, devices, link_efficiency=1.0):
        """Time of these messages, one after the other: bytes within and between domains, and latency.

        An all-reduce is a reduce-scatter within each domain, an all-reduce of the shards between domains, and an
        all-gather within; a small message goes up a binary tree and down again.
        """
        inside = min(devices, chip.domain)
        outside = math.ceil(devices / inside)
        if self.collective == "all-reduce":
            fast = 2 * (inside - 1) / inside * self.size
            slow = 2 * (outside - 1) / outside * self.size / inside
        else:
            fast, slow = (inside - 1) * outside * self.size, (outside - 1) * self.size
        hops = 2 * math.ceil(math.log2(inside)) * chip.fast_latency + (
            2 * math.ceil(math.log2(outside)) * chip.slow_latency
        )
        return self.count * (fast / chip.fast / link_efficiency + slow / chip.slow / link_efficiency + hops)


# What an objective asks of the other devices ------------------------------------------------------------------------


def _all_reduces(kind, what, floats, count, gradient):
    both = ("forward", "backward") if gradient else ("forward",)
    return [Message(kind, f"{what}, {way}", "all-reduce", FLOAT32 * floats, count) for way in both]


def _gathers(kind, what, floats, count, gradient):
    found = [Message(kind, f"{what}, forward", "all-gather", FLOAT32 * floats, count)]
    if gradient:  # PyTorch's; TensorFlow's gradient of a gather is an all-reduce of all of it, twice these bytes
        found.append(Message(kind, f"{what}, backward", "reduce-scatter", FLOAT32 * floats, count))
    return found


def objective_messages(objective, batch):
    """What the collectives of an objective of this library carry: those of `distribution.gather`, `global_mean` and
    `pool_moments`.

    Args:
        objective: One of the ten of `keras_issl.objectives`; only its hyperparameters are read.
        batch: B, images a device.

    Returns:
        A list of `Message`.

    Raises:
        ValueError: Another class.
    """
    name, teachers = type(objective).__name__, objective.num_teacher_views
    width = getattr(objective, "output_dim", None)  # E
    classes = getattr(objective, "num_classes", getattr(objective, "num_prototypes", None))  # C
    std = _all_reduces("logs", "feature_std (2, 2, E)", 2 * 2 * (width or 0), 1, False)  # two moments of two views
    marginals = _all_reduces("logs", "marginals (C,)", classes or 0, teachers, False)
    if name == "DISSL":
        return _all_reduces("objective", "marginals (T, C)", teachers * classes, 1, True)
    if name in ("CISSL", "SimCLR"):
        return _gathers("objective", "projections (2B, E)", 2 * batch * width, 1, True)
    if name == "MoCoV3":
        return _gathers("objective", "keys (B, E)", batch * width, 2, False) + std
    if name == "DINO":
        return _all_reduces("objective", "centre (C,)", classes, 1, False) + marginals
    if name == "SwAV":
        queue = _gathers("objective", "queue (B, E)", batch * width, teachers, False) if objective.queue_length else []
        return _gathers("objective", "scores (B, C)", batch * classes, teachers, False) + queue + marginals
    if name in ("BarlowTwins", "VICReg"):
        return _gathers("objective", "projections (B, E)", batch * width, 2, True) + std
    if name in ("BYOL", "SimSiam"):
        return std
    raise ValueError(
        f"`objective` should be one of the ten of keras_issl.objectives. Received: {name}. Add its collectives to "
        "`objective_messages`."
    )


def loss_multiply_adds(objective, batch, devices):
    """Multiply-adds of the matrix products of a loss on one device and step, backward pass included.

    Products with heads and prototypes are layers, and counted as such.
    """
    name, width, images = type(objective).__name__, getattr(objective, "output_dim", 0), batch * devices
    if name in ("CISSL", "SimCLR"):
        return 3 * (2 * batch) * (2 * images) * width
    if name == "MoCoV3":  # the keys get no gradient
        return 2 * 2 * batch * images * width
    if name in ("BarlowTwins", "VICReg"):  # every device makes the matrices of the global batch: (B, B) or (E, E)
        wide = images < width
        products = 1 if name == "BarlowTwins" and not wide else 2
        return 3 * products * (images**2 * width if wide else width**2 * images)
    return 0


def loss_bytes(objective, batch, devices, views, rows=None):
    """Bytes of the large float32 tensors of a loss that live at once on one device.

    Args:
        objective: As in `objective_messages`.
        batch: B, images a device.
        devices: N.
        views: V.
        rows: Rows of logits that live at once where the loss is evaluated in chunks of the batch, `None` for all.
    """
    name, teachers = type(objective).__name__, objective.num_teacher_views
    width = getattr(objective, "output_dim", 0)
    classes = getattr(objective, "num_classes", getattr(objective, "num_prototypes", 0))
    images = batch * devices
    some = batch if rows is None else min(rows, batch)
    if name == "DISSL":  # logits, log-probabilities and their gradients of V + T views, q of T
        return FLOAT32 * (3 * (views + teachers) + teachers) * some * classes
    if name == "DINO":  # the same of V views; of T teachers logits, log-probabilities and q
        return FLOAT32 * 3 * (views + teachers) * some * classes
    if name == "SwAV":  # scores, log-probabilities, gradients; codes; the gathered scores and one copy
        return FLOAT32 * ((3 * views + teachers) * some * classes + 2 * (images + objective.queue_length) * classes)
    if name in ("CISSL", "SimCLR"):  # logits, their exponentials, their gradient: 2B x 2N·B
        return FLOAT32 * 3 * (2 * some) * (2 * images)
    if name == "MoCoV3":
        return FLOAT32 * 3 * 2 * some * images
    if name in ("BarlowTwins", "VICReg"):  # three copies of two gathered views; two matrices and their gradients
        return FLOAT32 * (3 * 2 * images * width + 4 * min(images, width) ** 2)
    return FLOAT32 * 3 * 2 * batch * width  # BYOL, SimSiam


# A step -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Counts:
    """What a training step of one device is made of; see `scaling_count.count`.

    Attributes:
        trained: Multiply-adds of the forward pass of what is trained.
        teacher: The same of moving averages.
        trained_outputs: Bytes of the outputs of its layers.
        teacher_outputs: The same of moving averages.
        norms: Channels of each batch normalisation that is trained, once a pass.
        teacher_norms: The same of moving averages.
        parameters: Numbers that are trained.
        weights: Numbers in all weights, moving averages and batch statistics included.
        view_bytes: Bytes of the views in float32.
    """

    trained: float
    teacher: float
    trained_outputs: float
    teacher_outputs: float
    norms: tuple
    teacher_norms: tuple
    parameters: int
    weights: int
    view_bytes: float


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What a plan takes for granted; none of it was measured.

    Attributes:
        utilisation: Share of the peak FLOP/s that the matrix products reach.
        memory_efficiency: Share of the memory bandwidth that the rest reaches.
        link_efficiency: Share of the links' bandwidth that collectives reach.
        overlap: Share of the backward pass beside which gradients can be sent.
        accesses: How often a layer's output passes through memory: written and read forward; read, and its gradient
            written and read, backward. Fused layers do with less.
        slots: Numbers that the optimizer keeps for each trained one: 1 momentum, 2 Adam.
        decode: Images that a core decodes and resizes a second.
        file: Bytes of a stored image.
        stored: Side in pixels of the uint8 RGB image that goes to the device.
    """

    utilisation: float = 0.3
    memory_efficiency: float = 0.4
    link_efficiency: float = 0.7
    overlap: float = 0.5
    accesses: int = 5
    slots: int = 1
    decode: float = 150.0
    file: float = 110e3
    stored: int = 256


def step_messages(counts, objective, batch):
    """All collectives of a training step, a list of `Message`."""
    gradients = FLOAT32 * counts.parameters
    buckets = max(1, math.ceil(gradients / BUCKET))
    norms = [*counts.norms, *counts.norms, *counts.teacher_norms]  # forward, backward, forward
    mean = sum(norms) / max(1, len(norms))
    return [
        Message("gradients", "float32, in buckets", "all-reduce", gradients / buckets, buckets),
        # One message a layer, of mean and square a channel; what they carry in all is what counts here.
        Message("batch norm", "2 floats a channel and layer", "all-reduce", 2 * FLOAT32 * mean, len(norms)),
        *objective_messages(objective, batch),
    ]


@dataclasses.dataclass(frozen=True)
class Plan:
    """A training run on paper. `rows()` is what `tools/scaling.py plan` prints.

    Args:
        counts: `Counts` of one device's step.
        objective: The objective.
        chip: A `Chip`.
        devices: N.
        batch: B, images a device.
        views: V.
        images: Images an epoch.
        epochs: Passes over them.
        assumptions: `Assumptions`.
        chunk: As `rows` of `loss_bytes`.
    """

    counts: Counts
    objective: object
    chip: Chip
    devices: int
    batch: int
    views: int
    images: int
    epochs: float
    assumptions: Assumptions = Assumptions()
    chunk: int | None = None

    @property
    def messages(self):
        return step_messages(self.counts, self.objective, self.batch) if self.devices > 1 else []

    @property
    def flops(self):
        """Operations of a step on one device: two a multiply-add; backward twice forward; none for teachers."""
        products = 3 * self.counts.trained + self.counts.teacher
        return 2 * (products + loss_multiply_adds(self.objective, self.batch, self.devices))

    @property
    def traffic(self):
        """Bytes that a step moves through a device's memory."""
        outputs = self.assumptions.accesses * self.counts.trained_outputs + 2 * self.counts.teacher_outputs
        # Weights are read forward and backward; an optimizer reads gradient, weight and slots and writes the latter.
        weights = FLOAT32 * (2 * self.counts.weights + self.counts.parameters * (4 + 2 * self.assumptions.slots))
        # In chunks logits are made again: no fewer of them pass.
        return outputs + weights + 2 * loss_bytes(self.objective, self.batch, self.devices, self.views)

    @property
    def compute_seconds(self):
        return self.flops / self.chip.flops / self.assumptions.utilisation

    @property
    def memory_seconds(self):
        return self.traffic / self.chip.memory_bandwidth / self.assumptions.memory_efficiency

    def message_seconds(self, kind):
        efficiency = self.assumptions.link_efficiency
        return sum(m.seconds(self.chip, self.devices, efficiency) for m in self.messages if m.kind == kind)

    @property
    def work_seconds(self):
        """A device's own work: the slower of products and memory."""
        return max(self.compute_seconds, self.memory_seconds)

    @property
    def waiting_seconds(self):
        """What communication adds: gradients that find no backward pass to hide behind, all else in full."""
        hidden = self.assumptions.overlap * self.work_seconds * 2 / 3
        exposed = max(0.0, self.message_seconds("gradients") - hidden)
        return exposed + sum(self.message_seconds(kind) for kind in ("batch norm", "objective", "logs"))

    @property
    def step_seconds(self):
        return self.work_seconds + self.waiting_seconds

    @property
    def efficiency(self):
        """Share of a step in which devices work: images a second over N times those of one device alone."""
        return self.work_seconds / self.step_seconds

    @property
    def images_per_second(self):
        return self.devices * self.batch / self.step_seconds

    @property
    def steps(self):
        return math.floor(self.images / (self.devices * self.batch)) * self.epochs

    @property
    def seconds(self):
        return self.steps * self.step_seconds

    @property
    def least_batch(self):
        """Images a device at which the same messages take as long as the work: below it half of the time is lost."""
        return self.batch * self.waiting_seconds / self.work_seconds

    def memory(self):
        """Part -> bytes on one device."""
        return {
            "weights, teachers and statistics, float32": FLOAT32 * self.counts.weights,
            "gradients, float32": FLOAT32 * self.counts.parameters,
            "optimizer slots": FLOAT32 * self.assumptions.slots * self.counts.parameters,
            "outputs of trained layers, all kept": self.counts.trained_outputs,
            "views, float32": self.counts.view_bytes,
            "loss": loss_bytes(self.objective, self.batch, self.devices, self.views, self.chunk),
        }

    def rows(self):
        """(section, quantity, value in words) of all that the plan says."""
        a, rate = self.assumptions, self.images_per_second
        one = rate / self.devices
        pixels = 3 * a.stored**2
        memory = self.memory()
        total = sum(memory.values())
        yield "step", "global batch", f"{self.batch * self.devices:,} images"
        yield "step", "FLOPs a device", f"{self.flops:.3g}"
        yield "step", "matrix products", _ms(self.compute_seconds)
        yield "step", "memory traffic", f"{_ms(self.memory_seconds)} for {_gb(self.traffic)}"
        yield "step", "bound by", "matrix products" if self.compute_seconds > self.memory_seconds else "memory traffic"
        for kind in ("gradients", "batch norm", "objective", "logs"):
            found = [m for m in self.messages if m.kind == kind]
            sent, count = sum(m.sent(self.devices) for m in found), sum(m.count for m in found)
            value = f"{_mb(sent)} sent a device, {count} messages, {_ms(self.message_seconds(kind))}"
            yield "communication", kind, value if found else "none"
        yield "step", "communication that nothing hides", _ms(self.waiting_seconds)
        yield "step", "time of a step", _ms(self.step_seconds)
        yield "step", "scaling efficiency", f"{self.efficiency:.0%}"
        yield "step", "half of it is lost below", f"{math.ceil(self.least_batch)} images a device"
        for part, size in memory.items():
            yield "memory a device", part, _gb(size)
        yield (
            "memory a device",
            "all",
            f"{_gb(total)} of {_gb(self.chip.memory)}" + ("" if total <= self.chip.memory else ": does not fit"),
        )
        yield "input", "images a second", f"{rate:,.0f} in all, {one:,.0f} a device"
        yield "input", "read from storage", f"{_gb(rate * a.file)}/s in all, {_gb(self.images * a.file)} an epoch"
        host = "" if self.chip.host is None else f", {one * pixels / self.chip.host:.1%} of the link"
        yield "input", "to each device", f"{_gb(one * pixels)}/s{host}"
        yield "input", "cores that decode", f"{one / a.decode:.1f} a device"
        yield "run", "steps", f"{self.steps:,.0f}"
        yield "run", "time", f"{self.seconds / 3600:,.1f} h"
        yield "run", "device hours", f"{self.devices * self.seconds / 3600:,.0f}"


def _ms(seconds):
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _mb(size):
    return f"{size / 1e6:.3g} MB" if size < 1e9 else _gb(size)


def _gb(size):
    return f"{size / 1e9:,.3g} GB" if size < 1e12 else f"{size / 1e12:,.3g} TB"
