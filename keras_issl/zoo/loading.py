"""`from_preset`: from a name to an encoder."""

import importlib.util
import os
import re
import shutil
import warnings
from pathlib import Path

from keras_issl import encoders, provenance
from keras_issl.files import write_json
from keras_issl.zoo import cache, conversion, downloads, format, golden, hub, layout, registry, saving


def from_preset(preset, *, revision=None, load_weights=True, dtype=None, verify=False, custom_objects=None):
    """Loads an encoder, by the name of a built-in preset, from a folder or from the Hugging Face Hub.

    The weights of a built-in preset come from the package where it ships them, else from a cache, else from the
    Hugging Face Hub where they are published there, else from the authors' release file, which is downloaded once,
    converted once (this needs PyTorch) and cached in `~/.cache/keras_issl`, or the folder that the environment variable
    `KERAS_ISSL_HOME` names; `KERAS_ISSL_MIRROR` names a server with copies of the release files. `KERAS_ISSL_HUB` names
    an organisation on the Hub that built-in presets are taken from instead. With `HF_HUB_OFFLINE=1` nothing is fetched.

    Args:
        preset: Name of a built-in preset (see `list_presets`); or path of a preset folder or of a run folder: what
            `save_preset` or `keras-issl pretrain` wrote; or an address on the Hub, `"hf://org/name"`. Write `./NAME`,
            or pass a `pathlib.Path`, for a folder with a built-in preset's name.
        revision: A branch, tag or commit on the Hub; `"hf://org/name@revision"` means the same. It is resolved once,
            so that all files are of one commit. A whole commit (40 digits) names weights that never change, and needs
            no request once they are cached.
        load_weights: Whether to load the weights, or to initialise the architecture afresh, which fetches no weights.
        dtype: A dtype policy such as `"mixed_bfloat16"`; by default the saved one.
        verify: Whether to compute the features that were recorded with the preset again, and to compare.
        custom_objects: A dict from class names to classes, for encoders that are your own.

    Returns:
        The encoder: a `keras.Model` from RGB images in [0, 255] to (N, D) float32 features.

    Raises:
        ValueError: There is no such preset, or it is not a sound one; the message says what is wrong.
        ImportError: A release file has to be converted and PyTorch is not installed.
        PermissionError: It is on the Hub and takes a token, or another one.
        ConnectionError: It is not on this machine, and there is no network.
        OSError: It cannot be downloaded, or there is no room for it.

    Example:

    >>> folder = keras_issl.save_preset(keras_issl.encoders.ResNet(18, image_size=32, width=8), "my_preset")
    >>> encoder = keras_issl.from_preset("my_preset", verify=True)
    """
    files = [layout.CONFIG, *([layout.WEIGHTS] * load_weights), *([layout.GOLDEN] * verify)]
    folder = preset_folder(preset, revision=revision, files=files)
    try:
        encoder = format.load_preset(
            folder, load_weights=load_weights, dtype=dtype, verify=verify, custom_objects=custom_objects
        )
    except ValueError as error:
        if folder.is_relative_to(cache.cache_folder()):
            raise ValueError(f"{error} It is in the cache: delete {folder} to rebuild it.") from error
        raise
    if load_weights:
        _note_provenance(encoder, preset, revision, folder)
    return encoder


def _note_provenance(encoder, preset, revision, folder):
    """Lets the encoder's features say which preset they are of, and which probe it is for."""
    address, metadata = _address(preset, revision), format.read_metadata(folder) or {}
    provenance.note(
        encoder,
        # The folder of a snapshot in the Hub's cache is named after its commit.
        preset=str(preset) if address is None else f"{hub.HUB}{address.repo}@{folder.name}",
        probe=metadata.get("probe"),
        weights_sha256=metadata.get("files", {}).get(layout.WEIGHTS, {}).get("sha256"),
    )


def load_objective(preset, *, revision=None, custom_objects=None):
    """The objective that a preset's encoder was trained with, with its trained heads: class assignments need them.

    Args:
        preset: Path of a preset folder or of a run folder that was saved with its objective, or its address on the Hub.
        revision: As in `from_preset`.
        custom_objects: A dict from class names to classes, for objectives and probes that are your own.

    Returns:
        The objective, a `keras.layers.Layer` built for the encoder's features.

    Raises:
        As `from_preset`, and
        ValueError: The preset holds no objective: the released checkpoints do not.

    Example:

    >>> heads = keras_issl.objectives.SimCLR(output_dim=8, hidden=(8,))
    >>> folder = keras_issl.save_preset(encoder, "with_heads", objective=heads)
    >>> projections = keras_issl.load_objective("with_heads")(np.zeros((2, 4, 8)))["projections"]
    """
    folder = preset_folder(preset, revision=revision, files=(layout.OBJECTIVE, layout.OBJECTIVE_WEIGHTS))
    return format.load_objective(folder, custom_objects=custom_objects)


def read_metadata(preset, *, revision=None):
    """What a preset says of itself: recipe, results with their protocols, licence, preprocessing, hashes, versions.

    Args:
        preset: As in `from_preset`. Of one on the Hub this file is fetched, of a built-in one nothing.
        revision: As in `from_preset`.

    Returns:
        A dict, the content of the preset's `metadata.json`.

    Raises:
        As `from_preset`, and
        ValueError: The metadata are missing or not sound.

    Example:

    >>> keras_issl.zoo.read_metadata("dissl_resnet50_d8192_e800_m8")["preprocessing"]
    {'crop': 224, 'resize': 256}
    """
    folder = preset_folder(preset, revision=revision)
    if not (metadata := format.read_metadata(folder)):
        raise ValueError(f"`preset` should be a preset folder. Received: {str(folder)!r}, without {layout.METADATA}.")
    return metadata


def pin(preset, revision=None):
    """The same preset with what a revision on the Hub stands for: call it once where several calls must agree.

    Args:
        preset: As in `from_preset`.
        revision: As in `from_preset`.

    Returns:
        `"hf://org/name@commit"` for a preset that is fetched from the Hub at a revision, else `preset` itself.

    Raises:
        As `from_preset`.

    Example:

    >>> keras_issl.zoo.pin("dissl_resnet50_d8192_e800_m8")
    'dissl_resnet50_d8192_e800_m8'
    """
    address = _address(preset, revision)
    return preset if address is None else hub.pin(address)


def preset_folder(preset, *, revision=None, files=()):
    """The folder that holds a preset: a built-in name's, a path's, `preset/` in a run folder, or in the Hub's cache.

    Args:
        preset: As in `from_preset`.
        revision: As in `from_preset`.
        files: Names of the files that are wanted: those of a preset on the Hub are fetched, and the weights of a
            built-in one.

    Raises:
        As `from_preset`.
    """
    if not isinstance(preset, str | os.PathLike) or not str(preset):
        raise ValueError(
            f"`preset` should be a built-in name, the path of a folder or an address on the Hub. Received: {preset!r}"
        )
    if (address := _address(preset, revision)) is not None:
        return hub.fetch(address, files)
    if registry.is_builtin(preset):
        if layout.WEIGHTS in files:
            return fetch(preset, files=files)
        return registry.folder_with_weights(preset) or registry.shipped_folder(preset)
    folder = Path(preset)
    if folder.is_dir():
        inner = folder / "preset"  # of a run folder; a link may lead anywhere
        is_run = not (folder / layout.CONFIG).exists() and not inner.is_symlink() and (inner / layout.CONFIG).is_file()
        return inner if is_run else folder
    if found := re.fullmatch(r"(?:https?://huggingface\.co/)?([\w.-]+/[\w.-]+)/?", str(preset)):
        raise ValueError(
            f"`preset` should be a built-in name, the path of a preset folder or of a run folder, or an address on the "
            f"Hub. Received: {str(preset)!r}, which is no folder. Did you mean {hub.HUB}{found[1]}?"
        )
    if re.fullmatch(r"[\w.-]+", str(preset)):
        registry.shipped_folder(str(preset))  # raises, and suggests the nearest name
    raise ValueError(
        "`preset` should be a built-in name, the path of a preset folder or of a run folder, or an address on the Hub. "
        f"Received: {str(preset)!r}, which is no folder. `keras-issl presets` lists the names; addresses begin with "
        f"{hub.HUB}."
    )


def _address(preset, revision):
    """The address on the Hub that a preset is fetched from; `None` for what is found by its name or path."""
    if hub.is_address(preset):
        return hub.parse(preset, revision)
    name, at, own = preset.partition("@") if isinstance(preset, str) else (preset, "", "")
    if registry.is_builtin(name) and (at or revision is not None):
        return hub.parse(f"{hub.HUB}{registry.organization()}/{preset}", revision)
    if revision is not None:
        raise ValueError(
            f"`revision` is for presets on the Hub ({hub.HUB}org/name) and built-in ones. Received: "
            f"revision={revision!r} for {str(preset)!r}. Leave it out."
        )
    return None


def fetch(name, *, files=None, verbose="auto"):
    """Makes sure that a built-in preset lies on this machine, with its weights.

    Args:
        name: Name of a built-in preset.
        files: The files that are wanted where they are fetched one by one; by default all but the card.
        verbose: Progress of a download on stderr: True, False, or `"auto"`, on a terminal and after three seconds.

    Returns:
        Its folder, a `pathlib.Path`: the shipped one, or one in a cache.

    Raises:
        As `from_preset`.
    """
    if folder := registry.folder_with_weights(name):
        return folder
    if address := registry.hub_address(name):
        try:
            return _from_hub(name, address, layout.FILES - {layout.CARD} if files is None else files)
        except ConnectionError as error:
            if cache.is_offline() or importlib.util.find_spec("torch") is None:
                raise
            warnings.warn(f"{error} The authors' release file is fetched and converted instead.", stacklevel=2)
    shipped = registry.shipped_folder(name)
    source = format.read_metadata(shipped)["source"]
    target = cache.cached_preset(name)
    if cache.is_offline():
        raise ConnectionError(
            f"The preset {name!r} is not in the cache, and HF_HUB_OFFLINE forbids fetching it. Unset HF_HUB_OFFLINE, "
            f"or copy the folder {target} from a machine that has it."
        )
    conversion.require_torch()  # before 100 MB are downloaded in vain
    with cache.locked(name):
        if folder := registry.folder_with_weights(name):  # another process was faster
            return folder
        file = cache.cache_folder() / "downloads" / Path(source["url"]).name
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            downloads.download(source_url(source), file, sha256=source["sha256"], size=source["bytes"], verbose=verbose)
        convert_release(name, file, shipped, target)
        file.unlink()
    return target


def _from_hub(name, address, files):
    """A built-in preset's folder in the Hub's cache, once its files are found to be those that the library knows."""
    known = format.read_metadata(registry.shipped_folder(name))["files"]
    folder = hub.fetch(address, files)
    for file in sorted(set(files) & set(known)):
        if not (folder / file).is_file() or layout.sha256(folder / file) != known[file]["sha256"]:
            way_out = "Unset KERAS_ISSL_HUB, or load" if os.environ.get("KERAS_ISSL_HUB") else "Load"
            raise ValueError(
                f"{file} of {address} is not the one that this version of keras_issl knows as the preset {name!r}, so "
                f"it was not loaded. {way_out} it by that address if you trust it."
            )
    return folder


def source_url(source):
    """Where a release file is fetched from: `KERAS_ISSL_MIRROR` may name a folder on another server that has it."""
    mirror = os.environ.get("KERAS_ISSL_MIRROR")
    if mirror and not mirror.startswith(("http://", "https://")):
        raise ValueError(f"KERAS_ISSL_MIRROR should be an http or https address. Received: {mirror!r}")
    return f"{mirror.rstrip('/')}/{Path(source['url']).name}" if mirror else source["url"]


def convert_release(name, file, shipped, target):
    """Writes a release file's weights in the shipped architecture as a preset folder.

    Args:
        name: Name of the built-in preset.
        file: The release file, removed if it is not what it should be.
        shipped: The folder that the library ships for it.
        target: The folder to write.

    Raises:
        ValueError: The file is not that checkpoint.
    """
    about = format.read_metadata(shipped)
    with encoders.from_zeros():
        encoder = format.load_preset(shipped, load_weights=False, dtype="float32")
    problem = None
    try:
        state, _ = conversion.read_checkpoint(file)
        conversion.load_state_dict(encoder, state)
        if (shipped / layout.GOLDEN).is_file():  # of the verified weights, where there are some
            golden.check(encoder, shipped / layout.GOLDEN)
    except ValueError as error:
        problem = error.with_traceback(None)  # which would keep the file mapped
    if problem is not None:
        file.unlink()  # or the next call would stumble over it again
        raise ValueError(
            f"The release file of {name!r} is not the checkpoint it should be, and was removed: {problem}"
        ) from problem
    if target.exists():
        shutil.rmtree(target)  # without weights: it was interrupted or emptied by hand
    saving.save_preset(
        encoder,
        target,
        recipe=about["recipe"],
        results=about["results"],
        provenance={"converted_from": about["source"]["url"], "sha256": layout.sha256(file)},
        metadata={key: about[key] for key in {*layout.OPTIONAL, "probe"} - {"parameters", "hub"} if about.get(key)},
    )
    if about["verified"]:  # so is this: the release file has the recorded SHA-256, and gives the golden features
        write_json(target / layout.METADATA, format.read_metadata(target) | {"verified": True})
