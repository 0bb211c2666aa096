"""Model cards: the README.md of a preset, made from its metadata alone.

The front matter is what the Hugging Face Hub reads (`license`, `library_name`, `pipeline_tag`, `tags`, `datasets`),
the rest is for people. Metadata are data: whatever their strings hold, it shows as text.
"""

import json
import math
import re
from pathlib import PurePosixPath
from urllib.parse import quote

from keras_issl.zoo.card_tables import pairs, regular, results_table
from keras_issl.zoo.layout import METADATA, PICTURE, WEIGHTS
from keras_issl.zoo.markdown import (
    escaped,
    fence,
    flat,
    is_url,
    link,
    paragraph,
    plain,
    quoted,
    section,
    slug,
)

HUB_DATASETS = {"ImageNet-1k": "imagenet-1k"}  # a recipe's dataset -> its name on the Hub
# The Hub refuses a card with a licence that it does not know: any other is `other` with a name of its own.
HUB_LICENSES = frozenset(
    """
    afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0 bigscience-openrail-m bsd
    bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0
    cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
    cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0
    creativeml-openrail-m ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 gfdl gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1
    lgpl-3.0 lgpl-lr lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 pddl postgresql
    unknown unlicense wtfpl zlib
    """.split()  # noqa: SIM905
)
INSTALL = (
    "It needs Python 3.11 or newer and the library keras\\_issl, which is not on PyPI yet: in a clone of its "
    'repository `pip install ".[tensorflow]"`, or `[torch]`, or `[jax]`.'
)
RELEASES = "https://github.com/YannDubs/"  # where the authors' files are


def card(metadata, custom_class=None, *, repo=None, picture=None, shipped=False):
    """The model card of a preset: for its folder, or for a repository on the Hugging Face Hub.

    The Hub's card loads the preset by its address, with code that runs as it stands, and lists every result in the
    front matter (`model-index`: metric, value, dataset, source, and the protocol among the metric's `args`).

    Args:
        metadata: A dict, the content of a preset's `metadata.json`.
        custom_class: Name of the encoder's class if it is not the library's, so that it has to be named to load it.
        repo: String `"org/name"`, the repository that the card is for; `None` for the preset's folder.
        picture: Name of a picture beside the card that `keras_issl.report.neighbours` drew; `None` for none.
        shipped: Whether the library comes with it, weights and all, so that it loads by its name.

    Returns:
        Markdown text with YAML front matter.

    Example:

    >>> metadata = {"name": "mine", "feature_dim": 128, "probe": "linear", "recipe": None, "results": [],
    ...             "provenance": {}, "versions": {}, "files": {}, "verified": False}
    >>> print(keras_issl.zoo.cards.card(metadata))
    """
    width, citation = escaped(metadata["feature_dim"]), metadata.get("citation")
    verified = f"- **Verified:** {'yes' if metadata.get('verified') else 'no'}; see [limits](#use-and-limits)"
    sections = [
        f"# {escaped(title(metadata, repo))}",
        paragraph(metadata.get("description")) or f"An encoder with {width} features, saved by keras_issl.",
        f"{facts(metadata)}\n{verified}",
        section("Load it", *_usage(metadata, custom_class, repo, shipped)),
        _picture(picture),
        section("How it was trained", *training(metadata)),
        section("Results", results_table(metadata.get("results") or [])),
        section("Use and limits", _limits(metadata)),
        section("Licence", licence_text(metadata)),
        section("Citation", fence(citation, "bibtex") if citation else ""),
    ]
    text = front_matter(metadata, repo) + "\n" + "\n\n".join(part for part in sections if part) + "\n"
    return text.encode("utf-8", "replace").decode("utf-8")  # a file name may hold lone surrogates


def builtin_card(folder):
    """The card of a folder under `presets/`, from what lies in it: metadata, weights or none, a picture or none.

    Args:
        folder: A `pathlib.Path`.

    Returns:
        Markdown text, as `card` makes it.

    Example:

    >>> folder = keras_issl.zoo.registry.shipped_folder("dissl_resnet50_d8192_e800_m8")
    >>> text = keras_issl.zoo.cards.builtin_card(folder)
    """
    metadata = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    picture = PICTURE if (folder / PICTURE).is_file() else None
    return card(metadata, picture=picture, shipped=(folder / WEIGHTS).is_file())


# ---------------------------------------------------------------------- sections
def title(metadata, repo=None):
    """What the card calls the model: by the repository's name on the Hub, elsewhere by the preset's."""
    return repo.split("/")[-1] if repo else metadata["name"]


def front_matter(metadata, repo=None, library="keras_issl"):
    """The card's YAML, between lines of three dashes: what the Hub reads.

    Args:
        metadata: A dict, the content of a preset's `metadata.json`.
        repo: String `"org/name"`, the repository that the card is for: it is the model's name in the `model-index`,
            which a card for a folder (`None`) does not have.
        library: What loads the files, `library_name`.

    Returns:
        Text that ends in a newline.
    """
    recipe = metadata.get("recipe") or {}
    lines = [
        "---",
        *_license_lines(metadata),
        # The Hub has no entry of the name keras_issl, so it shows no code of its own making: the card's is what loads
        # the preset. `keras` or `keras-hub` would show calls that fail on these files.
        f"library_name: {library}",
        "pipeline_tag: image-feature-extraction",
        "tags:",
    ]
    objective = recipe.get("objective")
    tag = objective.lower() if isinstance(objective, str) else ""
    tags = ["keras", "self-supervised-learning", *([tag] if re.fullmatch(r"\w[\w .+-]{0,39}", tag) else [])]
    lines += [f"- {quoted(tag)}" for tag in tags]
    dataset = recipe.get("dataset")
    if isinstance(dataset, str) and dataset in HUB_DATASETS:
        lines += ["datasets:", f"- {HUB_DATASETS[dataset]}"]
    if repo:
        from huggingface_hub.utils import yaml_dump

        index = _model_index(metadata, title(metadata, repo))
        lines.append(yaml_dump({"model-index": index}, sort_keys=False).rstrip())
    return "\n".join([*lines, "---", ""])


def _license_lines(metadata):
    name = str((metadata.get("license") or {}).get("id") or "").lower()
    if not name or name in HUB_LICENSES:
        return [f"license: {quoted(name)}"] if name else []
    return [
        "license: other",
        *(f"license_name: {quoted(known)}" for known in [slug(name, "-")] if known),
    ]


def _model_index(metadata, name):
    """The results, as the Hub's `model-index` has them: figures of one task, dataset and source side by side.

    `huggingface_hub.eval_results_to_model_index` is not used: it puts figures of one dataset together whatever their
    source, and names the first one's, so that an audit's figures would appear as the authors' own.
    """
    groups = {}
    for row in regular(metadata.get("results") or []):
        is_number = type(row["value"]) is int or (isinstance(row["value"], float) and math.isfinite(row["value"]))
        value = row["value"] if is_number else plain(flat(row["value"]))
        if value == "":
            continue
        metric, unit, source, url = (plain(row.get(key) or "") for key in ("metric", "unit", "source", "url"))
        kind = "accuracy" if re.match(r"(top-?\d+|accuracy)\b(?!.*error)", metric, re.I) else slug(metric, "_")
        task = "image-classification" if kind == "accuracy" else "image-feature-extraction"
        dataset = plain(row.get("dataset") or "") or "unknown"
        where = _filled(type=_dataset_id(dataset), name=dataset, split=plain(row.get("split") or ""))
        # Entries that the Hub keeps and does not show. The source is here too: it takes none without an address.
        args = _filled(protocol=plain(row.get("protocol") or "") or "not recorded", source=source)
        label = metric + (f" ({unit})" if unit else "")
        found = _filled(type=kind or "other", value=value, name=label, args=args)
        group = {"task": {"type": task}, "dataset": where, "metrics": []}
        group |= {"source": _filled(name=source, url=url)} if is_url(url) else {}
        groups.setdefault(json.dumps(group), group)["metrics"].append(found)
    return [{"name": plain(name) or "unnamed", "results": list(groups.values())}]


def _filled(**entries):
    """A dict of the entries that say something."""
    return {key: value for key, value in entries.items() if value != ""}


def _dataset_id(name):
    """A dataset's name in the form that the Hub demands; its own name where it is known."""
    name = HUB_DATASETS.get(name, name)
    return name if re.fullmatch(r"([\w-]+/)?[\w.-]+", name, re.A) else slug(name, "-") or "unknown"


def image_size(metadata):
    """The side in pixels of the square images that a preset is meant for, an integer; `None` if it is not recorded.

    It is the crop of the preset's preprocessing, else the size of the views that it was trained on.
    """
    arguments = (metadata.get("recipe") or {}).get("augmentation_args")
    trained = arguments.get("size") if isinstance(arguments, dict) else None
    sizes = (metadata.get("preprocessing") or {}).get("crop"), trained
    return next((size for size in sizes if type(size) is int and size > 0), None)


def facts(metadata, about="float32"):
    """A list of what is known of an encoder: features, weights, probe family, images.

    Args:
        metadata: A dict, the content of a preset's `metadata.json`.
        about: Markdown, what to say of the features besides their number.

    Returns:
        Markdown text, a line an entry.
    """
    lines = [f"- **Features:** {escaped(metadata['feature_dim'])}, {about}"]
    if parameters := metadata.get("parameters"):
        mebibytes = f"{parameters * 4 / 2**20:,.0f} MiB in float32"
        lines.append(f"- **Weights:** {parameters:,} numbers, batch-normalisation statistics included; {mebibytes}")
    if probe := metadata.get("probe"):
        lines.append(f"- **Probe family it is for:** {escaped(probe)}")
    sizes = metadata.get("preprocessing") or {}
    if {"resize", "crop"} <= set(sizes):
        resize, crop = escaped(sizes["resize"]), escaped(sizes["crop"])
        lines.append(
            f"- **Images at evaluation:** shorter side resized to {resize} pixels (bilinear, antialiased), "
            f"central {crop} × {crop} pixels of it"
        )
    elif size := image_size(metadata):
        lines.append(f"- **Images:** {size} × {size} pixels, as trained")
    return "\n".join(lines)


def _usage(metadata, custom_class, repo, shipped):
    """The blocks of the section that says how the preset is loaded."""
    name, width, released = str(metadata["name"]), metadata["feature_dim"], _is_released(metadata)
    arguments = quoted(f"hf://{repo}" if repo else name if released or shipped else f"path/to/{name}")
    if custom_class is not None:
        arguments += f", custom_objects={{{quoted(custom_class)}: {plain(custom_class)}}}"
    code = ["import keras_issl", "", f"encoder = keras_issl.from_preset({arguments})"]
    if repo:
        size = f", {image_size(metadata)}" if image_size(metadata) else ""
        code.append(f"images = keras_issl.zoo.golden.pictures(encoder{size})  # two made-up pictures: put yours here")
        sizes = metadata.get("preprocessing") or {}
        if isinstance(sizes.get("resize"), int) and isinstance(sizes.get("crop"), int):
            sizes = f"resize={sizes['resize']}, crop={sizes['crop']}"
            code.append(f'# images = keras_issl.zoo.load_images(["cat.jpg", "dog.jpg"], {sizes})')
    shape = "(N, H, W, 3)" if released or shipped else "(N, H, W, C)"
    code.append(f"features = encoder.predict(images)  # {shape} -> (N, {plain(width)})")
    snippet = fence("\n".join(code), "python")
    pixels = "RGB in 0…255" if released or shipped else "in 0…255"
    after = f"`images` is a NumPy array, {pixels}, uint8 or float: the encoder normalises it itself."
    if shipped and not repo:
        return [snippet, f"{after} The weights come with the library: no call needs a network."]
    if not repo:
        fetched = metadata.get("hub") or (released and WEIGHTS not in metadata.get("files", {}))
        return [snippet, f"{after} {_first_call(metadata)}" if fetched else after]
    if custom_class is not None:
        after += f" `{plain(custom_class)}` is a class of its maker's: define or import it first, a preset is no code."
    pinned = (
        f"This follows the branch `main`. `hf://{repo}@COMMIT`, with a commit of the repository's history, "
        "always loads the same files, and needs no network once they are in the cache."
    )
    return [INSTALL, snippet, after, pinned]


def _first_call(metadata):
    if hub := metadata.get("hub"):
        place = f"the Hugging Face Hub, hf://{escaped(hub.get('repo'))} at commit {escaped(hub.get('commit'))}"
        return f"The first call fetches the verified weights from {place}, and keeps them; later calls need no network."
    return "The first call fetches the authors' file, converts it once and keeps it; later calls need no network."


def _picture(name):
    if not name:
        return ""
    alt = "Rows of pictures: a query, then its nearest neighbours."
    return section(
        "Nearest neighbours",
        f"![{alt}]({quote(str(name), errors='replace')})",
        "Each row begins with a query, drawn at random: from the classes in turn where there are labels, else from all "
        "images. After the gap stand the images whose features have the largest cosine similarity to the query's, "
        "nearest first. Where there are labels, a green frame means the query's class, a red one another. "
        "A few rows show what the features take for alike; they measure nothing.",
    )


def training(metadata):
    """The blocks of the section that says how it was trained: a table of the recipe, one of data and run."""
    return pairs("recipe", metadata.get("recipe")), pairs("data and run", _provenance(metadata))


def _provenance(metadata):
    """Where a preset comes from, in a reader's words: a run records its dataset as `name` beside a `fingerprint`."""
    entries = dict(metadata.get("provenance") or {})
    if "fingerprint" in entries and "dataset" not in entries:
        entries = {"dataset" if key == "name" else key: value for key, value in entries.items()}
    if re.fullmatch("[0-9a-f]{64}", str(entries.get("fingerprint"))):
        entries["fingerprint"] = entries["fingerprint"][:12] + "…"  # metadata.json has all of it
    return entries


def _limits(metadata):
    dataset = (metadata.get("recipe") or {}).get("dataset") or _provenance(metadata).get("dataset")
    dataset = "the images of one array" if dataset == "array" else dataset  # an array without a name
    probe = metadata.get("probe")
    use = "For features of images: probing, with few labels too, retrieval, clustering, a start for fine-tuning."
    if probe in ("linear", "mlp"):
        family = {"linear": "linear", "mlp": "MLP"}[probe]
        use += f" Evaluate it with {'a' if probe == 'linear' else 'an'} {family} probe, the family named above."
    limits = "It is not a classifier, and it has not been tested for decisions about people."
    if dataset:
        limits += f" It was trained on {escaped(dataset)} alone and has its gaps and biases."
    return "\n\n".join(part for part in (use, limits, _status(metadata), paragraph(metadata.get("note"))) if part)


def _status(metadata):
    if metadata.get("verified") and not metadata.get("source"):
        return (
            "**Verified.** Trained with this library, and found to give the golden features stored beside the weights "
            "on every backend; `keras_issl.from_preset(…, verify=True)` computes them again."
        )
    if metadata.get("verified"):
        return (
            "**Verified.** The weights were converted from the file they come from, whose SHA-256 is recorded, and "
            "give the golden features stored beside them; `keras_issl.from_preset(…, verify=True)` computes them again."
        )
    if not _is_released(metadata):
        return (
            "**Not verified.** What stands here is what its maker recorded. Loading holds each file against its "
            "SHA-256; with `verify=True` also the features of two pictures against those stored when it was saved."
        )
    weights = "We have not downloaded and checked the authors' weights: "
    if WEIGHTS in metadata.get("files", {}):
        weights += "hashes and golden features are of the conversion on the machine of whoever loaded them."
    else:
        weights += "this is the architecture and what is on record of it, without hash and golden features."
    return f"**Not verified.** {weights} The figures above are the cited sources', not ours."


def licence_text(metadata):
    """The licence of the weights, what speaks for it, and where the weights come from, as Markdown."""
    licence = metadata.get("license")
    if not licence:
        return "No licence is recorded: ask its maker before you use or share it."
    evidence = escaped(licence.get("evidence") or "No evidence is recorded.")
    lines = [f"Weights: {escaped(licence.get('id') or 'not named')}. {evidence}"]
    source = metadata.get("source") or {}
    if url := source.get("url"):
        digest = f", SHA-256 {escaped(source['sha256'])}" if source.get("sha256") else ""
        lines.append(f"Source of the weights: {link(url)}{digest}")
    return "\n\n".join(lines)


def _is_released(metadata):
    """Whether it is one of the released checkpoints: those load by name, from a file of that name."""
    url = str((metadata.get("source") or {}).get("url"))
    return url.startswith(RELEASES) and PurePosixPath(url).stem == metadata["name"]
