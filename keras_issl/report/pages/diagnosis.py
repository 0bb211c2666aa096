"""The page of a diagnosis: how good a representation is, and why."""

from keras_issl.report import charts
from keras_issl.report.page import Page, shown
from keras_issl.report.pages.shared import flat, listed, made, named_results, pictures, score, several, warnings
from keras_issl.report.words import public_name

__all__ = ["diagnosis_page"]

ORDER = ("problem", "warning", "good")
DIMS = {"images": "images", "views": "views of each", "features": "dimensions", "classes": "learned classes"}
IDEALNESS = (
    "Take some images and give each a yes or a no by tossing a coin; the label stays the same however the image is "
    "augmented. On an ideal representation a simple classifier that was shown a few augmented views of each learns "
    "every such labelling, and gets every fresh view right. The chart has the mean accuracy on fresh views."
)
REFERENCES = {
    "one-hot": "One-hot is the ideal: each image has a coordinate of its own.",
    "raw pixels": "Raw pixels are what there is to see without an encoder.",
    "random encoder": "The random encoder has the same architecture and was never trained.",
}
PROJECTED = "Points below a representation's full width are random projections of it to fewer dimensions."
SOLVED = (
    "The strictest count: how many labellings were learned without a single error on any fresh view. Bars are 95 % "
    "intervals. Dashed, for linear probes, is what geometry allows for images in general position (Cover, 1965): in d "
    "dimensions an affine classifier learns every labelling of d + 1 images, half of those of 2 (d + 1), and almost "
    "none of many more."
)
POINTS = ("images", "dimensions", "views", "probe", "accuracy", "solved", "separable", "Cover's curve")
LIMITS = "Which of width, rank and invariance limits this representation is said under Dimensions."
RISK = (
    "The error on test images is split into what it comes from (Dubois et al., ICML 2023). Usability: what a probe "
    "cannot even fit on its training images. Probe generalisation: what it loses on images that it has not seen but "
    "the encoder may have. Encoder generalisation: what is lost besides on images that neither has seen. The parts "
    "add up to the test error; an estimate may be negative, and is drawn as it is."
)


def diagnosis_page(
    path,
    diagnosis,
    *,
    title="Diagnosis",
    subtitle="",
    provenance=None,
    idealness=None,
    advice=None,
    risk=None,
    classes=None,
    galleries=(),
    results=(),
    versions=None,
    hardware=None,
    date=None,
    seconds=None,
):
    """Writes one HTML page that says how good a representation is and why. What is not given has no section.

    Args:
        path: Where to write the page; ends in `.html`.
        diagnosis: A `diagnostics.Diagnosis`.
        title: Heading of the page.
        subtitle: A line under it; by default what was looked at.
        provenance: A dict: where the features come from (`Views.provenance`). The path of a preset is shortened to a
            name.
        idealness: A `diagnostics.Idealness`, or a sequence of them, one a representation.
        advice: A `diagnostics.DimensionAdvice`.
        risk: A `diagnostics.RiskDecomposition`, or a dict from names of representations to them.
        classes: `diagnostics.EquivalenceClasses`.
        galleries: PNG files, (file, caption) or (title, file, caption) tuples. Galleries of ours hold their caption.
        results: A `results.Result`, a sequence of them or a dict from names to them.
        versions: A dict: versions of what computed it (`results.versions()`).
        hardware: A dict: what computed it (`results.hardware()`).
        date: Text, of the diagnosis.
        seconds: Number, wall time of the diagnosis.

    Returns:
        The path.

    Raises:
        ValueError: `path` does not end in `.html`.

    Example:

    >>> views = np.random.normal(size=(2, 64, 8)) + 9 * np.random.normal(size=(64, 8))  # (V, N, D)
    >>> diagnosis = keras_issl.diagnostics.diagnose(views)
    >>> keras_issl.report.diagnosis_page("diagnosis.html", diagnosis, title="Noise").name
    'diagnosis.html'
    """
    provenance, dims = _public(provenance), dict(diagnosis.dims)
    looked_at = ", ".join(f"{shown(dims[key])} {word}" for key, word in DIMS.items() if dims.get(key) is not None)
    page = Page(title, subtitle or looked_at)
    page.section("Verdicts")
    counts = {level: sum(v.level == level for v in diagnosis.verdicts) for level in ORDER}
    page.tiles(_tiles(diagnosis, risk))
    page.paragraph(_summary(counts))
    for verdict in sorted(diagnosis.verdicts, key=lambda v: ORDER.index(v.level)):
        page.verdict(verdict.level, verdict.title, verdict.evidence, verdict.advice)
    _measures(page, diagnosis)
    if any(one.points for one in several(idealness)):
        _idealness(page, several(idealness), advice)
    if advice is not None:
        _dimensions(page, advice)
    if risk is not None:
        _risk(page, risk)
    if classes is not None:
        _equivalence(page, classes, dims.get("classes") or len(classes.classes))
    pictures(page, galleries)
    named = named_results(results)
    if named:
        page.section("Probes")
        rows = [[n, r.probe["name"], r.test_name, score(r, "top1")] for n, r in named.items()]
        page.table(["", "probe", "tested on", "top-1, 95 % interval"], rows)
        for name, result in named.items():
            warnings(page, name, result)
            page.paragraph(f"{name}: {result.protocol()}", note=True)
    page.section("Protocol")
    trained_for = {"trained for" if key == "probe" else key: value for key, value in provenance.items()}
    page.protocol({**flat(trained_for), **flat(diagnosis.protocol), **made(versions, hardware, seconds, date)})
    found = {"provenance": provenance, "dims": dims, "protocol": diagnosis.protocol, "measures": _values(diagnosis)}
    page.json(found | {"versions": versions, "hardware": hardware, "date": date, "seconds": seconds})
    return page.write(path)


def _public(provenance):
    """Provenance that may be read by others: no path of this machine."""
    provenance = dict(provenance or {})
    if provenance.get("preset") is not None:
        provenance["preset"] = public_name(provenance["preset"])
    return provenance


def _tiles(diagnosis, risk):
    """The few numbers to remember, of those that were measured."""
    values, dims = _values(diagnosis), diagnosis.dims
    if (ratio := values.get("invariance ratio")) is not None:
        yield (
            shown(float(f"{ratio:.2g}")),
            "invariance ratio",
            "distance within images over between: 0 at best, 1 chance",
        )
    if (rank := values.get("effective rank of the images")) is not None:
        yield shown(round(rank, 1)), "effective rank", f"of {shown(dims['features'])} dimensions"
    if (used := values.get("effective classes")) is not None:
        yield shown(round(used, 1)), "effective classes", f"of {shown(dims['classes'])}"
    if risk is not None:
        name, one = next(iter(risk.items())) if hasattr(risk, "items") else ("", risk)
        yield f"{100 * one.total:.1f} %", "test error", name or "of a probe on the features"


def _values(diagnosis):
    return {measure.name: measure.value for measure in diagnosis.measures}


def _summary(counts):
    words = {
        "problem": ("problem", "problems"),
        "warning": ("warning", "warnings"),
        "good": ("good sign", "good signs"),
    }
    parts = [f"{count} {words[level][count != 1]}" for level, count in counts.items() if count]
    bad = counts["problem"] + counts["warning"]
    return (", ".join(parts) or "No verdicts") + (". Warnings say what to do." if bad else ".")


def _measures(page, diagnosis):
    page.section("Measures")
    values = {key.lower(): value for key, value in _values(diagnosis).items()}
    rank, dim = values.get("effective rank of the images"), diagnosis.dims.get("features")
    if len(diagnosis.spectrum):
        page.figure(
            charts.spectrum(diagnosis.spectrum, rank, dim),
            "How the variance spreads over directions. A representation that uses its width falls slowly; one that "
            "collapsed falls off a cliff.",
            alt=f"Share of variance of each direction; effective rank {shown(rank)} of {shown(dim)}.",
        )
    if len(diagnosis.within) and len(diagnosis.between):
        page.figure(
            charts.distances(diagnosis.within, diagnosis.between, xlabel="squared distance"),
            "Squared distances between two views of one image, and between views of two images. The less they overlap, "
            "the better the views of an image are kept together.",
            alt="Two histograms of distances: of views of the same image, and of views of different images.",
        )
    if diagnosis.class_balance is not None:
        page.figure(
            charts.class_balance(diagnosis.class_balance),
            "How often the teacher uses each class. Dashed is uniform use, which DISSL's entropy term asks for.",
            alt="Mean probability of each class, from the most to the least used, beside the uniform line.",
        )
    rows = [[m.name, _measured(m.value), _measured(m.reference)] for m in diagnosis.measures]
    page.table(["measure", "value", "reference"], rows, notes={i: m.meaning for i, m in enumerate(diagnosis.measures)})


def _measured(value):
    """A number of the table of measures: what is too small to tell from zero says so."""
    return f"{'< ' if value > 0 else '> −'}0.0001" if value is not None and 0 < abs(value) < 1e-4 else value


def _idealness(page, found, advice):
    """Accuracy on random tasks; folded away the share solved, and on screen only all numbers."""
    points = [point for one in found for point in one.points]
    names = list(dict.fromkeys(point.representation for point in points))
    widths = {}  # representation -> its dimensions
    for point in points:
        widths.setdefault(point.representation, set()).add(point.dim)
    said = [text for name, text in REFERENCES.items() if name in names]
    said += [PROJECTED] if max(map(len, widths.values())) > 1 else []
    page.section("Idealness")
    page.paragraph(IDEALNESS)
    if said:
        page.paragraph(" ".join(said))
    page.figure(
        charts.idealness(points, value="accuracy"),
        "Accuracy on fresh views: mean and standard deviation over the tasks. Dashed is chance.",
        alt="Accuracy on random invariant tasks, a line a representation; the tables below have the numbers.",
        wide=True,
    )
    with page.details("Tasks solved without a single error"):
        page.paragraph(SOLVED if advice is None else f"{SOLVED} {LIMITS}")
        page.figure(
            charts.idealness(points),
            "Share of random invariant tasks solved without an error on fresh views, beside Cover's curve (dashed).",
            alt="Share of tasks solved, a line a representation; the tables below have the numbers.",
            wide=True,
        )
    with page.details("All numbers, and how they were measured", on_paper=False):
        for name in names:
            rows = [_row(point) for point in points if point.representation == name]
            page.table(POINTS, rows, name)
        for one in found:
            page.protocol(flat(one.protocol))


def _row(point):
    sizes = [shown(size) for size in (point.n, point.dim, point.train_views)]
    shares = [f"{100 * share:.0f} %" for share in (point.solved, point.separable, point.cover)]
    probe, accuracy = charts.PROBES.get(point.probe, point.probe), 100 * point.accuracy
    return [*sizes, probe, f"{accuracy:.1f} ± {100 * point.accuracy_sd:.1f} %", *shares]


def _dimensions(page, advice):
    page.section("Dimensions")
    for sentence in advice.summary:
        page.paragraph(sentence)
    page.figure(
        charts.idealness(advice.points, value="accuracy"),
        "Accuracy on fresh views. Random projections to fewer dimensions show what each doubling bought so far.",
        alt="Accuracy against the number of dimensions; the table below has the numbers.",
    )
    page.figure(
        charts.idealness(advice.points),
        "The share of tasks solved without a single error, which is harder.",
        alt="Share of tasks solved against the number of dimensions; the table below has the numbers.",
    )
    page.table(*advice.table())


def _risk(page, risk):
    named = dict(risk) if hasattr(risk, "items") else {"this representation": risk}
    page.section("Where the error comes from")
    page.paragraph(RISK)
    parts = [key for key, _ in charts.RISKS if any(getattr(one, key) is not None for one in named.values())]
    titles = [dict(charts.RISKS)[key] for key in parts]
    rows = [[name, *(_share(one, key) for key in [*parts, "total"])] for name, one in named.items()]
    measured = any(getattr(one, "standard_errors", None) for one in named.values())
    page.figure(
        charts.risk(named),
        "Parts of the test error, in percent. Negative parts stand left of zero; the diamond above is the test error, "
        f"their sum{', and ± the standard error' if measured else ''}.",
        alt=listed("Test error", ((name, _share(one, "total")) for name, one in named.items())),
        wide=True,
    )
    page.table(["representation", *titles, "test error"], rows)
    for name, one in named.items():
        for caveat in getattr(one, "caveats", ()):
            page.paragraph(caveat if len(named) == 1 else f"{name}: {caveat}", note=True)
        with page.details("How it was measured" if len(named) == 1 else f"How it was measured: {name}"):
            page.protocol(flat(one.protocol))


def _share(risk, key):
    """A part of the risk with its standard error, or `None`."""
    value, error = getattr(risk, key), (getattr(risk, "standard_errors", None) or {}).get(key)
    if value is None:
        return None
    return f"{100 * value:.1f}".replace("-", "−") + ("" if error is None else f" ± {100 * error:.1f}") + " %"


def _equivalence(page, classes, total):
    page.section("Learned classes")
    sentence = f"{shown(len(classes.classes))} of {shown(total)} learned classes are in use."
    if (purity := getattr(classes, "purity", None)) is not None:
        chance = getattr(classes, "purity_chance", None)
        chance = "" if chance is None else f" ({100 * chance:.0f} % by chance)"
        sentence += f" In those with two images or more, {100 * purity:.0f} % of the images share the majority label"
        sentence += f"{chance}."
    page.paragraph(sentence)
    titles = {"told apart worst": classes.confused, "merged by coarser augmentations": classes.merged}
    if any(titles.values()):
        with page.details("Pairs of classes"):
            for title, found in titles.items():
                if found:
                    rows = [[f"{a} and {b}", f"{100 * share:.1f} %"] for a, b, share in found[:8]]
                    page.table([f"classes {title}", "share"], rows)
