"""Idealness: how many of the tasks that are invariant to the augmentations can a probe solve on a representation?"""

import dataclasses
import math

import numpy as np

from keras_issl.diagnostics.cover import cover_curve, whole, wilson
from keras_issl.diagnostics.geometry import view_array
from keras_issl.diagnostics.networks import HIDDEN, network_logits
from keras_issl.diagnostics.separability import factor, separable
from keras_issl.probes import threads

STRENGTH = 10.0  # C of the linear probe: `LinearProbe`'s default
PROBES = {
    "linear": f"squared hinge loss, L2 with C={STRENGTH:g} over the number of views; a task whose training points are "
    "separable but not by that fit counts as solved if an exact separator of them is right on all fresh views",
    "mlp": f"one hidden layer of {HIDDEN} ReLU units a task, Adam on the logistic loss until every point has margin 1",
}
_TASKS = {"linear": 100, "mlp": 20}
CLASSES = (16, 64, 256)  # as many as images suffice for
_DRAWS = 4  # sets of images that the tasks are dealt over
HEADER = (
    "representation", "n", "dim", "rank", "views", "probe", "accuracy", "solved", "95 %", "separable", "Cover",
    "Cover at rank",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class IdealnessPoint:
    """What was measured for one representation, number of classes, number of views and probe.

    Attributes:
        representation: its name.
        n: equivalence classes, that is, images.
        dim: dimensions of the representation.
        train_views: views of each image that the probes were trained on.
        probe: `"linear"` or `"mlp"`.
        tasks: how many random tasks.
        accuracy, accuracy_sd: on fresh views of the same images: mean and standard deviation over the tasks.
        solved: share of the tasks in which every fresh view is classified correctly.
        solved_low, solved_high: its 95 % Wilson interval.
        separable: share of the tasks whose training points an affine function separates (exact, whatever the probe).
        cover: `cover_curve(n, dim)`: that share for n points in general position.
        rank: affine rank of the images' mean training views.
        cover_at_rank: `cover_curve(n, rank)`.

    Example:

    >>> point = keras_issl.diagnostics.idealness(views, classes=16).points[0]
    >>> point.n, point.dim, point.train_views
    (16, 8, 1)
    """

    representation: str
    n: int
    dim: int
    train_views: int
    probe: str
    tasks: int
    accuracy: float
    accuracy_sd: float
    solved: float
    solved_low: float
    solved_high: float
    separable: float
    cover: float
    rank: int
    cover_at_rank: float


@dataclasses.dataclass(frozen=True)
class Idealness:
    """Measured points and how they were measured.

    Attributes:
        points: tuple of `IdealnessPoint`.
        protocol: dict that JSON can hold.

    Example:

    >>> header, rows = keras_issl.diagnostics.idealness(views, classes=(16, 64)).table()
    >>> len(rows)  # for each number of classes, one and two views to train on
    4
    """

    points: tuple
    protocol: dict

    def table(self):
        """(header, rows) of strings: a row a point."""
        rows = []
        for p in self.points:
            accuracy = f"{100 * p.accuracy:.1f} ± {100 * p.accuracy_sd:.1f} %"
            interval = f"{100 * p.solved_low:.0f}–{100 * p.solved_high:.0f} %"
            shares = [f"{100 * share:.0f} %" for share in (p.solved, p.separable, p.cover, p.cover_at_rank)]
            sizes = [f"{size:,}" for size in (p.n, p.dim, p.rank, p.train_views)]
            rows.append((p.representation, *sizes, p.probe, accuracy, shares[0], interval, *shares[1:]))
        return HEADER, tuple(rows)


def idealness(
    views,
    *,
    classes=None,
    train_views=None,
    test_views=None,
    tasks=None,
    probe="linear",
    seed=0,
    name=None,
):
    """Measures how many random tasks that are invariant to the augmentations a probe solves on a representation.

    Every image stands for its equivalence class. A task gives each of n images a random sign; a probe is trained on
    some augmented views of each, and tested on fresh views of the same images. The paper's theorem (Dubois et al.,
    2022): on an ideal representation every such task is solved, which takes views that coincide and, for linear
    probes, n - 1 dimensions.

    Linear probes are L2-regularised fits of the squared hinge loss, whose accuracy is given. Close to the limit of what
    is separable they err on some training points where another function would not; then the task counts as solved if
    an exact separator of its training points (`separability.separable`) is right on all fresh views. So close to the
    limit all tasks may be solved at an accuracy below 1. MLP probes are small networks, one a task, trained side by
    side. Whether the training points are linearly separable is decided exactly for either.

    Args:
        views: `Views`, or an array (V, N, D): V augmented views of N images.
        classes: numbers n of equivalence classes; those of 16, 64 and 256 that the images suffice for by default.
        train_views: numbers k of views to train on; 1 and half of the views by default.
        test_views: how many of the last views to test on; by default all that no k trains on.
        tasks: random tasks for each n and k; 100 for linear and 20 for MLP probes by default. They are dealt evenly
            over 4 random sets of n images.
        probe: `"linear"` or `"mlp"`.
        seed: of the tasks, the images and the MLPs. Representations of the same images see the same tasks.
        name: of the representation; its encoder or preset in the provenance by default.

    Returns:
        `Idealness`.

    Raises:
        ValueError: views that are not (V, N, D) with V at least 2, more classes than images, no view left to test on.

    Example:

    ```python
    views = keras_issl.diagnostics.one_hot(16, 4)
    point = keras_issl.diagnostics.idealness(views, classes=(16,), train_views=(1,)).points[0]
    point.solved  # 1.0: 16 classes, 15 dimensions, and views that coincide
    ```
    """
    array = view_array(views)
    classes, train_views, test_views = _checked(array, classes, train_views, test_views)
    if probe not in PROBES:
        raise ValueError(f"`probe` should be one of {sorted(PROBES)}. Received: {probe!r}.")
    tasks = _TASKS[probe] if tasks is None else tasks
    whole("tasks", tasks)
    name = name or _name(views)
    points = []
    for n in classes:
        for k in train_views:
            with threads.one():
                measured = _measure(array, n, k, test_views, tasks, probe, seed)
            points.append(_point(name, n, array.shape[2], k, probe, *measured))
    protocol = {
        "tasks": int(tasks), "images": array.shape[1], "train_views": list(train_views), "test_views": test_views,
        "seed": seed, "probes": {probe: PROBES[probe]}, "labels": "a fair coin for each image",
    }  # fmt: skip
    return Idealness(tuple(points), protocol)


def compare_idealness(representations, *, dims=None, seed=0, **options):
    """Idealness of several representations of the same images, in one result: what a figure draws side by side.

    Args:
        representations: dict from names to `Views` or arrays (V, N, D).
        dims: None for the representations as they are; or numbers of dimensions, to each of which every wider
            representation is projected at random (`random_projections`): share solved as a function of the dimension.
        seed: of the tasks and the projections.
        **options: of `idealness`. `probe` may also be a tuple of names.

    Returns:
        `Idealness` with the points of all.

    Raises:
        ValueError: no representation; `dims` that are no positive integers, or all wider than every representation;
            and as `idealness`.

    Example:

    ```python
    references = {"one-hot": keras_issl.diagnostics.one_hot(32, 2), "noise": np.random.normal(size=(2, 32, 64))}
    keras_issl.diagnostics.compare_idealness(references, dims=(8, 16, 31), classes=(32,)).table()
    ```
    """
    if not representations:
        raise ValueError("`representations` should be a dict from names to views. Received: an empty one.")
    probes = options.pop("probe", "linear")
    probes = (probes,) if isinstance(probes, str) else tuple(probes)
    widths = {name: view_array(views).shape[2] for name, views in representations.items()}
    for dim in () if dims is None else (dims := listed(dims)):
        whole("dims", dim)
    if dims is not None and min(dims, default=math.inf) > max(widths.values()):
        raise ValueError(f"`dims` should hold some of at most {max(widths.values())}. Received: {dims}.")
    points, protocol = [], {"probes": {}}
    for name, views in representations.items():
        width = widths[name]
        for dim in [None] if dims is None else [dim for dim in dims if dim <= width]:
            projected = views if dim in (None, width) else random_projections(views, dim, seed)
            for probe in probes:
                found = idealness(projected, probe=probe, seed=seed, name=name, **options)
                points += found.points
                protocol = found.protocol | {"probes": protocol["probes"] | found.protocol["probes"]}
    return Idealness(tuple(points), protocol | {"dims": None if dims is None else [int(dim) for dim in dims]})


def one_hot(n, views):
    """The reference that solves every task: each view of image i is the i-th unit vector.

    Args:
        n: images, and dimensions.
        views: views of each.

    Returns:
        float32 (views, n, n), read-only.

    Raises:
        ValueError: numbers that are no positive integers.

    Example:

    >>> keras_issl.diagnostics.one_hot(16, 4).shape
    (4, 16, 16)
    """
    whole("n", n)
    whole("views", views)
    return np.broadcast_to(np.eye(n, dtype=np.float32), (views, n, n))


def random_projections(views, dim, seed=0):
    """The same representation in fewer dimensions: a Gaussian matrix with variance 1 / dim times each row.

    With probability one it leaves points in general position (Cover's curve at `dim` is then what to expect), and keeps
    distances, hence the ratio of those within and between images, up to a relative error of about 1 / sqrt(dim).

    Args:
        views: `Views`, or an array (V, N, D).
        dim: dimensions, from 1 to D.
        seed: of the matrix.

    Returns:
        What was given, with `dim` dimensions.

    Raises:
        ValueError: views that are not (V, N, D); `dim` that is no integer from 1 to D.

    Example:

    ```python
    keras_issl.diagnostics.random_projections(keras_issl.diagnostics.one_hot(16, 2), 4).shape  # (2, 16, 4)
    ```
    """
    array = view_array(views)
    whole("dim", dim, 1, array.shape[2])
    matrix = np.random.default_rng([seed, int(dim)]).normal(size=(array.shape[2], dim)) / math.sqrt(dim)
    projected = array @ matrix.astype(np.float32)  # (V, N, dim)
    return dataclasses.replace(views, array=projected) if dataclasses.is_dataclass(views) else projected


def listed(values):
    """A tuple of Python's own numbers, from one or from several; `True` stays what it is."""
    return tuple(np.atleast_1d(np.asarray(values, dtype=object)).tolist())


def _checked(array, classes, train_views, test_views):
    """Tuples of classes and training views, and the number of test views."""
    count, images = array.shape[:2]
    if classes is None:
        classes = tuple(n for n in CLASSES if n <= images) or (images,)
    if train_views is None:
        train_views = tuple(dict.fromkeys((1, max(1, count // 2))))
    classes, train_views = listed(classes), listed(train_views)
    if not classes or not all(type(n) is int and 2 <= n <= images for n in classes):
        raise ValueError(f"`classes` should be integers from 2 to {images}, the images. Received: {classes}.")
    if not train_views or not all(type(k) is int and 1 <= k < count for k in train_views):
        raise ValueError(
            f"`train_views` should be integers from 1 to {count - 1}: of {count} views one at least is tested on. "
            f"Received: {train_views}. Extract more views (`num_views`)."
        )
    left = count - max(train_views)
    if test_views is None:
        test_views = left
    whole("test_views", test_views, 1, left)
    return classes, train_views, int(test_views)


def _name(views):
    provenance = getattr(views, "provenance", None) or {}
    return str(provenance.get("preset") or provenance.get("encoder") or "representation")


def _point(name, n, dim, k, probe, correct, solved, separated, rank):
    """The point of what `_measure` returns."""
    low, high = wilson(int(solved.sum()), len(solved))
    return IdealnessPoint(
        name, n, dim, k, probe, len(correct), float(correct.mean()), float(correct.std(ddof=min(1, len(correct) - 1))),
        float(solved.mean()), low, high, float(separated.mean()), float(cover_curve(n, dim)), rank,
        float(cover_curve(n, rank)),
    )  # fmt: skip


def draw_tasks(n, images, tasks, seed):
    """Yields images (n,) and signs (T', n) until there are `tasks` rows of them.

    They depend on nothing else: the same tasks whatever the views, the dimension and the representation.
    """
    rng = np.random.default_rng([seed, n])
    for share in np.array_split(np.arange(tasks), min(_DRAWS, tasks) if n < images else 1):
        yield np.sort(rng.permutation(images)[:n]), rng.choice((-1.0, 1.0), size=(len(share), n))


def _measure(array, n, k, test_views, tasks, probe, seed):
    """Accuracies on fresh views (T,), solved (T,), separable (T,), and the affine rank of the images' means."""
    rng = np.random.default_rng([seed, n, k])
    correct, solved, separated, ranks = [], [], [], []
    for images, signs in draw_tasks(n, array.shape[1], tasks, seed):
        train = array[:k, images]  # (k, n, D)
        fresh = array[-test_views:, images].reshape(test_views * n, -1)
        x, y = train.reshape(k * n, -1), np.tile(signs, k)  # (k n, D), (T', k n)
        fitted = separable(x, y, strength=STRENGTH / k)  # k copies of a view weigh as much as one
        target = np.tile(signs, test_views) > 0  # (T', M)
        values = fitted.regularized.decision_function(fresh) if probe == "linear" else network_logits(x, y, fresh, rng)
        right = (values > 0) == target
        exact = (fitted.decision_function(fresh) > 0) == target if probe == "linear" else right
        solved.append(exact.all(axis=1))
        correct.append(right.mean(axis=1))
        separated.append(fitted.separable)
        ranks.append(fitted.rank if k == 1 else len(factor(train.mean(axis=0))[3]))
    return np.concatenate(correct), np.concatenate(solved), np.concatenate(separated), max(ranks)
