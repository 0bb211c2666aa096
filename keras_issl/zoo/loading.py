"""`from_preset`: from a name to an encoder."""

import os
import re
import shutil
from pathlib import Path

from keras_issl import encoders
from keras_issl.zoo import cache, conversion, downloads, format, layout, registry, saving

HUB = "hf://"


def from_preset(preset, *, revision=None, load_weights=True, dtype=None, verify=False, custom_objects=None):
    """Loads an encoder, by the name of a built-in preset or from a folder.

    The weights of a built-in preset come from the package where it ships them, else from the cache, else from the
    authors' release file, which is downloaded once, converted once (this needs PyTorch) and cached. The cache is
    `~/.cache/keras_issl`, or the folder that the environment variable `KERAS_ISSL_HOME` names; `KERAS_ISSL_MIRROR`
    names a server with copies of the release files. With `HF_HUB_OFFLINE=1` nothing is fetched.

    Args:
        preset: Name of a built-in preset (see `list_presets`), or path of a preset folder or of a run folder: what
            `save_preset` or `keras-issl pretrain` wrote. Write `./NAME`, or pass a `pathlib.Path`, for a folder with a
            built-in preset's name.
        revision: Reserved for presets on the Hugging Face Hub.
        load_weights: Whether to load the weights, or to initialise the architecture afresh, which fetches nothing.
        dtype: A dtype policy such as `"mixed_bfloat16"`; by default the saved one.
        verify: Whether to compute the features that were recorded with the preset again, and to compare.
        custom_objects: A dict from class names to classes, for encoders that are your own.

    Returns:
        The encoder: a `keras.Model` from RGB images in [0, 255] to (N, D) float32 features.

    Raises:
        ValueError: There is no such preset, or it is not a sound one; the message says what is wrong.
        ImportError: A release file has to be converted and PyTorch is not installed.
        OSError: It cannot be downloaded, or there is no room for it.

    Example:

    >>> folder = keras_issl.save_preset(keras_issl.encoders.ResNet(18, image_size=32, width=8), "my_preset")
    >>> encoder = keras_issl.from_preset("my_preset", verify=True)
    """
    _check_revision(preset, revision)
    if registry.is_builtin(preset):
        folder = fetch(preset) if load_weights else registry.shipped_folder(preset)
    else:
        folder = preset_folder(preset)
    try:
        return format.load_preset(
            folder, load_weights=load_weights, dtype=dtype, verify=verify, custom_objects=custom_objects
        )
    except ValueError as error:
        if folder.is_relative_to(cache.cache_folder()):
            raise ValueError(f"{error} It is in the cache: delete {folder} to rebuild it.") from error
        raise


def load_objective(preset, *, custom_objects=None):
    """The objective that a preset's encoder was trained with, with its trained heads: class assignments need them.

    Args:
        preset: Path of a preset folder or of a run folder that was saved with its objective.
        custom_objects: A dict from class names to classes, for objectives and probes that are your own.

    Returns:
        The objective, a `keras.layers.Layer` built for the encoder's features.

    Raises:
        ValueError: As `from_preset`, or the preset holds no objective: the released checkpoints do not.

    Example:

    >>> heads = keras_issl.objectives.SimCLR(output_dim=8, hidden=(8,))
    >>> folder = keras_issl.save_preset(encoder, "with_heads", objective=heads)
    >>> projections = keras_issl.load_objective("with_heads")(np.zeros((2, 4, 8)))["projections"]
    """
    return format.load_objective(preset_folder(preset), custom_objects=custom_objects)


def read_metadata(preset):
    """What a preset says of itself: recipe, results with their protocols, licence, preprocessing, hashes, versions.

    Args:
        preset: As in `from_preset`. Nothing is fetched.

    Returns:
        A dict, the content of the preset's `metadata.json`.

    Raises:
        ValueError: There is no such preset, or its metadata are missing or not sound.

    Example:

    >>> keras_issl.zoo.read_metadata("dissl_resnet50_d8192_e800_m8")["preprocessing"]
    {'crop': 224, 'resize': 256}
    """
    folder = preset_folder(preset)
    if not (metadata := format.read_metadata(folder)):
        raise ValueError(f"`preset` should be a preset folder. Received: {str(folder)!r}, without {layout.METADATA}.")
    return metadata


def preset_folder(preset):
    """The folder that holds a preset's description: a built-in name's, a path's, or `preset/` in a run folder.

    Raises:
        ValueError: There is neither such a name nor such a folder.
    """
    if not isinstance(preset, str | os.PathLike) or not str(preset):
        raise ValueError(f"`preset` should be a built-in name or the path of a folder. Received: {preset!r}")
    if registry.is_builtin(preset):
        return registry.folder_with_weights(preset) or registry.shipped_folder(preset)
    if str(preset).startswith(HUB):
        raise ValueError(
            f"`preset` should be a built-in name or a folder. Received: {str(preset)!r}. This version does not read "
            "from the Hugging Face Hub: fetch the folder with `huggingface_hub.snapshot_download(..., local_dir=...)`."
        )
    folder = Path(preset)
    if folder.is_dir():
        inner = folder / "preset"  # of a run folder; a link may lead anywhere
        is_run = not (folder / layout.CONFIG).exists() and not inner.is_symlink() and (inner / layout.CONFIG).is_file()
        return inner if is_run else folder
    if re.fullmatch(r"[\w.-]+", str(preset)):
        registry.shipped_folder(str(preset))  # raises, and suggests the nearest name
    raise ValueError(
        f"`preset` should be a built-in name, or the path of a preset folder or of a run folder. Received: "
        f"{str(preset)!r}, which is no folder. `keras-issl presets` lists the names."
    )


def fetch(name, *, verbose="auto"):
    """Makes sure that a built-in preset lies on this machine, with its weights.

    Args:
        name: Name of a built-in preset.
        verbose: Progress of a download on stderr: True, False, or `"auto"`, on a terminal and after three seconds.

    Returns:
        Its folder, a `pathlib.Path`: the shipped one, or one in the cache.

    Raises:
        As `from_preset`.
    """
    if folder := registry.folder_with_weights(name):
        return folder
    shipped = registry.shipped_folder(name)
    source = format.read_metadata(shipped)["source"]
    target = cache.cached_preset(name)
    if cache.is_offline():
        raise ValueError(
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
            downloads.download(_url(source), file, sha256=source["sha256"], size=source["bytes"], verbose=verbose)
        _convert(name, file, shipped, target)
        file.unlink()
    return target


def _url(source):
    """Where a release file is fetched from: `KERAS_ISSL_MIRROR` may name a folder on another server that has it."""
    mirror = os.environ.get("KERAS_ISSL_MIRROR")
    if mirror and not mirror.startswith(("http://", "https://")):
        raise ValueError(f"KERAS_ISSL_MIRROR should be an http or https address. Received: {mirror!r}")
    return f"{mirror.rstrip('/')}/{Path(source['url']).name}" if mirror else source["url"]


def _convert(name, file, shipped, target):
    """The release file's weights in the shipped architecture, as a preset folder in the cache."""
    about = format.read_metadata(shipped)
    with encoders.from_zeros():
        encoder = format.load_preset(shipped, load_weights=False, dtype="float32")
    problem = None
    try:
        state, _ = conversion.read_checkpoint(file)
        conversion.load_state_dict(encoder, state)
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
        metadata={key: about[key] for key in (*layout.OPTIONAL, "probe") if about.get(key) and key != "parameters"},
    )


def _check_revision(preset, revision):
    if revision is not None:
        raise ValueError(
            f"`revision` is for presets on the Hugging Face Hub ({HUB}org/name), which this version does not read yet. "
            f"Received: revision={revision!r} for {str(preset)!r}. Leave it out."
        )
