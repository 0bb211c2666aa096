"""From an encoder and images to a page that says how good the representation is, and why: all diagnostics, one call."""

import dataclasses
import datetime
import tempfile
import time
from pathlib import Path

import keras

from keras_issl import diagnostics, report, results
from keras_issl.diagnostics.teacher import NoClasses
from keras_issl.features import Features, extract_features, extract_views

LEAST = 16  # images below which nothing can be said of a representation
MOST_PIXELS = 32  # side that raw pixels are averaged down to, beside the encoder
RISK_SEEDS = 3  # held-out parts that the risk decomposition averages over
TASKS, MLP_TASKS = 50, 20  # an MLP is trained for each task
CLASSES, DIMENSIONS = (16, 64), (4, 8, 15, 32, 63, 128)  # n - 1 among them, where a linear probe may solve all


@dataclasses.dataclass(frozen=True)
class EncoderDiagnosis:
    """What `diagnose_encoder` found.

    Attributes:
        path: The page.
        diagnosis: `diagnostics.Diagnosis`: measures and verdicts.
        idealness: Pair of `diagnostics.Idealness` of the encoder beside its references, with linear and MLP probes.
        advice: `diagnostics.DimensionAdvice`.
        risk: `diagnostics.RiskDecomposition`, or `None` without labelled training and test images.
        classes: `diagnostics.EquivalenceClasses`, or `None` without the heads of an objective that has classes.
        seconds: Wall time.
    """

    path: Path
    diagnosis: object
    idealness: tuple
    advice: object
    risk: object
    classes: object
    seconds: float


def diagnose_encoder(
    encoder,
    data,
    augmentation,
    path,
    *,
    objective=None,
    trained_for=None,
    untrained=None,
    labelled=None,
    num_views=6,
    tasks=TASKS,
    batch_size=256,
    seed=0,
    title=None,
    provenance=None,
    say=None,
):
    """Measures an encoder's representation on augmented views, and writes one self-contained HTML page.

    Args:
        encoder: A `keras.Model` from images (B, H, W, C) in [0, 255] to features (B, D).
        data: An `ImageDataset`; labels are used for the pictures and the risk alone.
        augmentation: The augmentation that the encoder should be invariant to; see `features.extract_views`.
        path: The page to write; ends in `.html`.
        objective: The objective with its heads, e.g. of `load_objective`: DISSL's says which images share a class.
        trained_for: Name of the objective, e.g. `"simclr"`, whose knobs the advice names; that of `objective` by
            default.
        untrained: The same encoder with random weights, to stand beside it in the idealness section.
        labelled: A pair of `ImageDataset`s, training and test, with labels: for the risk decomposition.
        num_views: Augmented views of each image.
        tasks: Random binary tasks behind each point of the idealness section.
        batch_size: Images that are encoded at a time.
        seed: Of the views, the tasks and the drawn images.
        title: Heading of the page.
        provenance: What else the page should say of the encoder's origin.
        say: Called with a line before each long step.

    Returns:
        An `EncoderDiagnosis`.

    Raises:
        ValueError: Too few images; views or features that are not what they should be.

    Example:

    ```python
    data = keras_issl.datasets.load("digits", split="test").take(128)
    encoder = keras_issl.encoders.ResNet(blocks=(1,), width=8, image_size=8, stem="cifar")
    augmentation = keras_issl.augmentations.Affine(8)
    found = keras_issl.diagnosis.diagnose_encoder(encoder, data, augmentation, "page.html", num_views=3, tasks=10)
    [verdict.title for verdict in found.diagnosis.verdicts]
    ```
    """
    began, path, say = time.monotonic(), Path(path), say or (lambda line: None)
    if path.suffix.lower() != ".html":
        raise ValueError(f"`path` should end in .html. Received: {str(path)!r}.")
    if len(data) < LEAST:
        raise ValueError(f"`data` should hold at least {LEAST} images. Received: {len(data)}.")
    views_of = _Views(data, augmentation, num_views, batch_size, seed, provenance)
    say(f"features of {num_views} views of {len(data):,} images")
    views = views_of(encoder)
    probabilities = _probabilities(objective, views)
    if trained_for is None and objective is not None:
        trained_for = type(objective).__name__
    diagnosis = diagnostics.diagnose(views, probabilities=probabilities, objective=trained_for)
    classes = None
    if probabilities is not None:
        coarser = augmentation.coarser(2.0) if hasattr(augmentation, "coarser") else None
        merged = None if coarser is None else _probabilities(objective, views_of(encoder, coarser))
        labels = data.labels if data.has_labels else None
        classes = diagnostics.equivalence_classes(probabilities, labels=labels, coarser=merged)
    say("idealness: random tasks that no augmentation changes")
    beside = {"this encoder": views}
    if untrained is not None:
        beside["random encoder"] = views_of(untrained)
    beside["raw pixels"] = views_of(raw_pixels(data.image_shape))
    idealness = _idealness(beside, tasks, seed)
    advice = diagnostics.advise_dimension(views, tasks=tasks, seed=seed)
    risk = None
    if labelled is not None:
        say(f"risk decomposition: probes on {len(labelled[0]):,} labelled images")
        risk = diagnostics.risk_decomposition(
            *(extract_features(encoder, part, batch_size=batch_size, provenance=provenance) for part in labelled),
            seeds=range(seed, seed + RISK_SEEDS),
        )
    with tempfile.TemporaryDirectory() as folder:
        galleries = _galleries(Path(folder), data, views, classes, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        report.diagnosis_page(
            path,
            diagnosis,
            title=title or f"{encoder.name} on {data.name}",
            provenance=views.provenance,
            idealness=idealness,
            advice=advice,
            risk=risk,
            classes=classes,
            galleries=galleries,
            versions=results.versions(),
            hardware=results.hardware(),
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            seconds=time.monotonic() - began,
        )
    return EncoderDiagnosis(path, diagnosis, idealness, advice, risk, classes, time.monotonic() - began)


class _Views:
    """The views of one dataset under one augmentation, for several encoders: the same seeds, so the same views."""

    def __init__(self, data, augmentation, num_views, batch_size, seed, provenance):
        self.data, self.augmentation = data, augmentation
        self.options = {"num_views": num_views, "batch_size": batch_size, "seed": seed, "provenance": provenance}

    def __call__(self, encoder, augmentation=None):
        return extract_views(encoder, self.data, augmentation or self.augmentation, **self.options)


def _probabilities(objective, views):
    """(V, N, C) of each image's classes, or `None` without an objective that has classes."""
    if objective is None:
        return None
    try:
        return diagnostics.assignments(objective, views)
    except NoClasses:  # most heads project, and assign nothing
        return None


def raw_pixels(shape):
    """A model from images to their pixels in [0, 1], averaged down to at most 32 x 32.

    Args:
        shape: (H, W, C) of the images.

    Returns:
        A `keras.Model` from (B, H, W, C) to (B, D), for `extract_features` and `extract_views`.

    Example:

    >>> keras_issl.diagnosis.raw_pixels((64, 64, 3)).output_shape
    (None, 3072)
    """
    height, width, channels = shape
    pool = max(1, -(-max(height, width) // MOST_PIXELS))
    return keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Rescaling(1 / 255),
            keras.layers.AveragePooling2D(pool, padding="same"),
            keras.layers.Flatten(),
        ],
        name="raw_pixels",
    )


def _idealness(representations, tasks, seed):
    """Share solved against the number of dimensions, for few and many classes and views, linear and MLP probes."""
    num_views, size, width = next(iter(representations.values())).array.shape  # of the encoder
    shared = {
        "classes": tuple(n for n in CLASSES if n <= size),
        "dims": sorted({*DIMENSIONS, width}),
        "seed": seed,
    }
    beside = representations | {"one-hot": diagnostics.one_hot(size, num_views)}
    half = max(1, num_views // 2)
    linear = diagnostics.compare_idealness(beside, train_views=tuple({1, half}), tasks=tasks, **shared)
    mlp = diagnostics.compare_idealness(beside, train_views=(half,), tasks=min(tasks, MLP_TASKS), probe="mlp", **shared)
    return linear, mlp


def _galleries(folder, data, views, classes, seed):
    """(title, picture, caption) of what the features hold together."""
    names = data.class_names
    features = Features(views.array.mean(axis=0), views.labels)  # of an image: the mean of its views
    labels = data.labels if data.has_labels else None
    options = {"labels": labels, "class_names": names, "seed": seed}
    found = report.neighbours(
        data.images,
        features.array,
        folder / "neighbours.png",
        queries=min(6, len(data)),
        neighbours=min(8, len(data) - 1),
        **options,
    )
    pictures = [("Nearest neighbours", found, "Images and those with the most similar features.")]
    if classes is not None:
        drawn = report.equivalence_classes(data.images, classes, folder / "classes.png", class_names=names)
        pictures.append(("Equivalence classes", drawn, "Images that the objective takes for the same."))
    return pictures
