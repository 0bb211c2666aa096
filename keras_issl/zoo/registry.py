"""The built-in presets: what there is, and where each one's weights would come from."""

import contextlib
import dataclasses
import difflib
import json
import os
import re
from pathlib import Path

from keras_issl.zoo import hub
from keras_issl.zoo.cache import cached_preset
from keras_issl.zoo.layout import CONFIG, METADATA, WEIGHTS

PACKAGE = Path(__file__).resolve().parent.parent
ORGANIZATION = "keras-issl"  # on the Hub
README, AUDIT = "authors' README", "audit"  # the two sources of published figures
OURS = "keras_issl"  # the source of figures that this library measured
PROTOCOL = (
    "ours: top-1 in % of this library's linear probe on the test images of what the encoder was trained on; protocol "
    "on its card.\nREADME, audit: ImageNet-1k top-1 in % of a linear probe. README is what the authors published with "
    "the weights;\naudit is their later evaluation of many models under one protocol, its probe tuned on test images "
    "(arXiv 2302.03068).\nCompare figures within one column only."
)


@dataclasses.dataclass(frozen=True)
class PresetInfo:
    """One row of `list_presets()`.

    Attributes:
        name: What `from_preset` takes.
        objective: Name of the objective it was trained with.
        dataset: What it was trained on.
        feature_dim: Width D of its features.
        epochs: Passes over the images that it was trained on.
        views: Crops of each image, such as `"2x160+4x96"`.
        top1: Top-1 in % of this library's linear probe, on the test images of `dataset`; the protocol stands on the
            card. `None` where this library measured none.
        top1_readme: ImageNet top-1 in % of a linear probe in the authors' README, which does not state how the probe
            was tuned; `None` where they give none.
        top1_audit: The same in their later audit, all models under one protocol, its probe tuned on test images;
            `None` where it was not audited.
        parameters: How many numbers its weights hold, batch-normalisation statistics included.
        source: Where its weights come from now: `"shipped"` with the library, `"cached"` on this machine, the `"Hub"`,
            or the authors' `"release file"`, fetched and converted at the first use.
        verified: Whether the weights were checked against stored features, and, if they are the authors', their file.
    """

    name: str
    objective: str
    dataset: str
    feature_dim: int
    epochs: int
    views: str
    top1: float | None
    top1_readme: float | None
    top1_audit: float | None
    parameters: int
    source: str
    verified: bool


def presets_folder():
    """The folder of the built-in presets: inside the package in a wheel, beside it in a clone.

    Raises:
        FileNotFoundError: There is none, so the installation is incomplete.
    """
    return _presets_of(PACKAGE)


def _presets_of(package):
    inside, beside = package / "presets", package.parent / "presets"
    if inside.is_dir():
        return inside
    if beside.is_dir() and (package.parent / "pyproject.toml").is_file():
        return beside
    raise FileNotFoundError(
        f"The built-in presets are missing: there is neither {inside} nor {beside}. Install keras_issl again, from a "
        "wheel or from a whole clone; presets of your own load by their path."
    )


def names():
    """The names of the built-in presets, a sorted tuple of strings."""
    return tuple(sorted(path.parent.name for path in presets_folder().glob(f"*/{METADATA}")))


def released_names():
    """The names of the built-in presets that the paper's authors released, a sorted tuple of strings."""
    return tuple(name for name in names() if _metadata(presets_folder() / name).get("source"))


def is_builtin(name):
    """Whether `name`, a string, names a built-in preset. A path object never does."""
    with contextlib.suppress(FileNotFoundError):  # presets of one's own load without the built-in ones
        return isinstance(name, str) and name in names()
    return False


def shipped_folder(name):
    """The folder that the library ships for the built-in preset `name`: its architecture and metadata.

    Raises:
        ValueError: There is no such preset.
    """
    known = names()
    if name not in known:
        close = difflib.get_close_matches(str(name), known, n=3)
        hint = f"Did you mean {', '.join(close)}? " if close else ""
        raise ValueError(
            "`preset` should be the name of a built-in preset, or a folder. "
            f"Received: {name!r}. {hint}"
            f"`keras-issl presets` or `keras_issl.list_presets()` shows all {len(known)}."
        )
    return presets_folder() / name


def organization():
    """The organisation on the Hub that built-in presets live under: `keras-issl`, or what `KERAS_ISSL_HUB` names."""
    name = os.environ.get("KERAS_ISSL_HUB") or ORGANIZATION
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise ValueError(f"KERAS_ISSL_HUB should be the name of a user or an organisation. Received: {name!r}")
    return name


def hub_address(name):
    """Where on the Hub a built-in preset is, an address; `None` while it is not published.

    The library records the commit that it was published as. An organisation that the user names is taken at its word,
    and at its branch `main`.
    """
    published = _metadata(shipped_folder(name)).get("hub")
    if os.environ.get("KERAS_ISSL_HUB"):
        return f"{hub.HUB}{organization()}/{name}"
    return f"{hub.HUB}{published['repo']}@{published['commit']}" if published else None


def folder_with_weights(name):
    """The folder of a built-in preset that has its weights on this machine, shipped or cached; else `None`."""
    for folder in (shipped_folder(name), cached_preset(name)):
        if (folder / WEIGHTS).is_file() and (folder / METADATA).is_file():
            return folder
    return None


def list_presets():
    """What built-in presets there are, for every one what it is and where its weights are.

    Nothing is loaded or downloaded.

    Returns:
        A list of `PresetInfo`: what is shipped first, then by objective, the best audited top-1 first.

    Example:

    >>> for preset in keras_issl.list_presets():
    ...     print(preset.name, preset.feature_dim, preset.top1_audit)
    """
    found = [_info(presets_folder() / name) for name in names()]
    return sorted(found, key=lambda p: (p.source != "shipped", p.objective, -(p.top1_audit or 0.0), p.name))


def _info(folder):
    metadata = _metadata(folder)
    recipe, name = metadata["recipe"], folder.name
    top1 = {row["source"]: row["value"] for row in metadata["results"] if row["metric"] == "top-1"}
    found, address = folder_with_weights(name), hub_address(name)
    if found is None and address is not None and hub.parse(address).is_pinned:
        found = hub.cached(address, [CONFIG, WEIGHTS])
    absent = "Hub" if address else "release file"
    source = absent if found is None else "shipped" if found == folder else "cached"
    if source == "cached":  # what was fetched before a preset was verified is not
        metadata |= {"verified": _metadata(found)["verified"]}
    return PresetInfo(
        name=name,
        objective=recipe["objective"],
        dataset=recipe["dataset"],
        feature_dim=metadata["feature_dim"],
        epochs=recipe["epochs"],
        views=recipe["views"],
        top1=top1.get(OURS),
        top1_readme=top1.get(README),
        top1_audit=top1.get(AUDIT),
        parameters=metadata["parameters"],
        source=source,
        verified=metadata["verified"],
    )


def _metadata(folder):
    return json.loads((folder / METADATA).read_text(encoding="utf-8"))


def table_rows(presets):
    """Header and rows of a table of presets, for `report.table`; `PROTOCOL` belongs under it.

    Args:
        presets: A list of `PresetInfo`.

    Returns:
        A pair: the column titles, and a list of rows, all strings.

    Example:

    >>> header, rows = keras_issl.zoo.registry.table_rows(keras_issl.list_presets())
    >>> print(keras_issl.report.table(header, rows))
    """
    header = ["preset", "width", "epochs", "views", "ours", "README", "audit", "MiB", "weights", "verified"]
    figure = lambda value, digits: "–" if value is None else f"{value:.{digits}f}"  # noqa: E731
    return header, [
        [
            preset.name,
            str(preset.feature_dim),
            str(preset.epochs),
            preset.views,
            figure(preset.top1, 1),
            figure(preset.top1_readme, 1),
            figure(preset.top1_audit, 2),
            f"{preset.parameters * 4 / 2**20:.0f}",
            preset.source,
            "yes" if preset.verified else "no",
        ]
        for preset in presets
    ]
