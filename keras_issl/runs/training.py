"""`pretrain`: from a recipe and images to a run folder."""

import contextlib
import dataclasses
import json
import time
import warnings
from pathlib import Path

import keras

from keras_issl import callbacks, distribution, encoders, loggers, recipes, report, zoo
from keras_issl.callbacks import NonFiniteLoss
from keras_issl.runs import folder as folders
from keras_issl.runs.page import read, write_page


@dataclasses.dataclass
class Result:
    """What `pretrain` returns.

    Attributes:
        model: The trained `Pretrainer`; `model.encoder` is the encoder.
        folder: The run folder.
        history: A dict of lists, one value an epoch, over the whole run.
        finished_epochs: How many epochs were trained.
        stopped_by: The signal that ended the run early, `"collapse"` if the guard did, or `None`.
        seconds: Wall time of this call's training.
        steps: Finished steps of the run, and `first_step` of them before this call.
        verdicts: What the records say: `diagnostics.TrainingVerdict`s, problems first.
    """

    model: keras.Model
    folder: Path
    history: dict
    finished_epochs: int
    stopped_by: str | None
    seconds: float
    verdicts: tuple = ()
    steps: int = 0
    first_step: int = 0


def pretrain(
    recipe,
    data,
    out,
    *,
    resume=False,
    force=False,
    checkpoint_every=None,
    overrides=None,
    notes=(),
    online_probe="auto",
    on_collapse="warn",
    log=(),
    page=True,
    source=None,
    verbose=True,
):
    """Pre-trains an encoder into a run folder.

    Within `distribution.data_parallel` it trains on several devices. Of several processes, on PyTorch, all call it
    alike: the first writes the folder, the others train along.

    Ctrl-C and SIGTERM finish the batch, save what there is and return. A run that was killed goes on with `resume` from
    its last checkpoint, to the weights of one that was not; see `callbacks.Checkpoint`.

    Args:
        recipe: A `recipes.Recipe`; `recipes.fit_to_images` fits it to few images, and its notes go on record.
        data: An `ImageDataset`.
        out: The run folder; see `locked_folder`.
        resume: Whether to go on from the last checkpoint of an existing run with the same recipe, data and versions of
            libraries.
        force: Whether to go on although they differ; what does is recorded in `run.json`.
        checkpoint_every: Seconds between checkpoints; by default as often as costs 1 % of the time.
        overrides: A dict of what the user changed in the recipe, for the record; it is taken as it is.
        notes: Sentences on what followed from that, as `recipes.override` returns them, for the record.
        online_probe: Whether a linear probe learns from the labels beside the encoder, which it leaves bit for bit as
            it is; `"auto"`: where there are labels of two classes or more.
        on_collapse: `"warn"`, `"stop"` or `"rollback"`; see `callbacks.CollapseGuard`.
        log: Tools that get the numbers too, of `loggers.NAMES`.
        page: Whether to write `report.html`, the page of the run, when training ends.
        source: A dict: how `datasets.load` is called to get the same images, for `runs.make_page`.
        verbose: Whether to show the progress.

    Returns:
        A `Result`.

    Raises:
        ValueError: The recipe is for images of another size, or `fit` refuses it; the folder is occupied; or,
            resuming, it holds a run of another recipe, of other data or of other versions; or there is no room for
            its checkpoints. A new run that fails before its first step leaves the folder free.
        NoSpace: An `OSError`: the disk is full. The last checkpoint is whole.
        FloatingPointError: The loss became NaN or infinite. The last good weights are in the run folder.

    Example:

    >>> data = keras_issl.datasets.load("digits").take(256)
    >>> result = pretrain(recipes.digits("dissl", epochs=1), data, "runs/try", page=False, verbose=False)
    """
    check_size(recipe, data)
    recipe, fitted = recipes.fit_to_images(recipe, len(data), overrides or ())
    recipes.check(recipe, len(data))  # what cannot be built or trained leaves no folder
    if distribution.share_of_process()[1] > 1 and on_collapse == "rollback":
        raise ValueError(
            "`on_collapse` should be 'warn' or 'stop' for a run of several processes, which would not go back "
            "together. Received: 'rollback'."
        )
    if not distribution.is_writer():
        return _train_along(recipe, data, Path(out), online_probe)
    with folders.locked_folder(out, resume=resume) as folder, contextlib.ExitStack() as stack:
        stack.enter_context(folders.tells_of_space(folder))
        new = not (folder / "run.json").exists()
        if new:
            classes = _online_classes(online_probe, data)
        else:
            classes = (folders.read_description(folder).get("online_probe") or {}).get("classes")
            if online_probe is not (classes is not None) and online_probe != "auto":
                raise ValueError(
                    f"`online_probe` should be as it was when the run began, {'off' if classes is None else 'on'}: its "
                    f"state is in the checkpoints. Received: {online_probe}."
                )
        description = {
            "recipe": json.loads(json.dumps(dataclasses.asdict(recipe))),
            "data": {"name": data.name, "fingerprint": data.fingerprint, "images": len(data)},
        }
        how = {"resume": True, "force": force, "every_seconds": checkpoint_every}
        checkpoint = callbacks.Checkpoint(folder / "checkpoints", **how)
        saved = checkpoint.load()
        if saved is None and not new and {"ended", "calls"} & folders.read_description(folder).keys():
            raise ValueError(
                f"The run in {str(folder)!r} should have its checkpoints, to go on with it. Received: none in "
                "checkpoints/. Copy them back, or choose another `out` to begin anew."
            )
        tools = loggers.make(log, folder, config=description)  # a tool that is not installed is told of now
        zoo.saving.check_folder(folder / "preset", overwrite=True)
        model = recipes.build(recipe, len(data), fit=False, online_probe=classes)
        told = folders.describe(
            folder,
            description,
            overrides,
            [*notes, *(note for note in fitted if note not in notes)],
            objective={"name": type(model.objective).__name__, "config": _plain(model.objective.get_config())},
            feature_dim=encoders.feature_dim(model.encoder),
            image_shape=list(data.image_shape),
            force=force,
            online_probe=None if classes is None else {"classes": classes},
            source=source,
        )
        stop = stack.enter_context(callbacks.StopOnSignal())  # a signal finds all saved that there is
        start = 0 if saved is None else saved.epoch
        recorder = callbacks.Recorder(folder / "records.csv")
        guard = callbacks.CollapseGuard(recorder, action=on_collapse)
        begins = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: folders.begin(folder, told, start))
        history_log = keras.callbacks.CSVLogger(folder / "history.csv", append=start > 0)
        watching = [begins, stop, recorder, guard, history_log, checkpoint]
        watching += [callbacks.Progress(recorder)] if verbose else []
        if log:
            stack.enter_context(tools)
            recorder.listeners.append(lambda recorder: tools.record(recorder.rows[-1]["step"], recorder.rows[-1]))
        began = time.monotonic()
        failure = None
        try:
            with warnings.catch_warnings():  # the recipe's batch size is on record
                warnings.filterwarnings("ignore", message=".*incomplete last batch")
                model.fit(
                    data,
                    batch_size=min(recipe.batch_size, len(data)),
                    epochs=recipe.epochs,
                    shuffle=recipe.shuffle_window or True,
                    callbacks=[*watching, *tools.callbacks],
                    verbose=0,
                )
        except BaseException as error:
            history_log.on_train_end()  # closes the file
            recorder.close()
            if new and not checkpoint.stepped:
                tools.withdraw()
                folders.withdraw(folder)
                raise
            if not isinstance(error, NonFiniteLoss):
                raise
            failure = error
        seconds = time.monotonic() - began
        finished = checkpoint.finished_epochs
        stopped_by = stop.received or ("collapse" if model.stop_training and guard.verdict is not None else None)
        stopped_by = "NaN" if failure is not None else stopped_by
        history = report.read_history(folder / "history.csv") if (folder / "history.csv").exists() else {}
        if history:
            report.curves(history, folder / "curves.png", title=f"{recipe.objective}, {data.name}")
        folders.finish(
            folder,
            finished_epochs=finished,
            stopped_by=stopped_by,
            failure=None if failure is None else str(failure),
            restored_step=guard.restored_step,
            broken_images={"count": len(data.replaced), "first": data.replaced[:100]} if data.replaced else None,
            seconds={"training": seconds, "recording": recorder.seconds, "checkpoints": checkpoint.seconds},
        )
        zoo.save_preset(
            model.encoder,
            folder / "preset",
            name=folder.resolve().name,
            objective=model.objective,
            recipe=description["recipe"],
            metadata={"preprocessing": recipe.preprocessing} if recipe.preprocessing else None,
            provenance={
                **description["data"],
                "finished_epochs": finished,
                "stopped_by": stopped_by,
                **({} if guard.restored_step is None else {"weights_of_step": guard.restored_step}),
            },
            overwrite=(folder / "preset").exists(),
        )
        if failure is not None:
            model.save_weights(folder / "last_good.weights.h5")
            kept = f"preset/ (the encoder) and last_good.weights.h5 (all) in {folder}"
            failure.args = (f"{failure} The last good weights are {kept}.",)
        if page:
            try:
                write_page(folder, model=model, data=data)
            except Exception as error:  # whatever a picture stumbles over, the run is done and saved
                warnings.warn(
                    f"The page of the run could not be written: {type(error).__name__}: {error}. The run is complete; "
                    f"`keras-issl report {folder}` tries again.",
                    stacklevel=2,
                )
        if failure is not None:
            raise failure
        verdicts = read(folder).verdicts
    first = 0 if saved is None else saved.step
    steps = distribution.as_int(model.steps)
    stopped_by = stopped_by or stop.received  # whoever asked while all was saved wants no further run
    return Result(model, folder, history, finished, stopped_by, seconds, verdicts, steps, first)


def _train_along(recipe, data, folder, online_probe):
    """The part of a process that is not the first of its run: it trains and writes nothing."""
    if (folder / "run.json").exists():
        classes = (folders.read_description(folder).get("online_probe") or {}).get("classes")
    else:
        classes = _online_classes(online_probe, data)
    model = recipes.build(recipe, len(data), fit=False, online_probe=classes)
    began = time.monotonic()
    checkpoint = callbacks.Checkpoint(folder / "checkpoints", resume=True)  # the first process reads and writes them
    with callbacks.StopOnSignal() as stop:
        order = {"shuffle": recipe.shuffle_window or True, "batch_size": min(recipe.batch_size, len(data))}
        model.fit(data, epochs=recipe.epochs, callbacks=[stop, checkpoint], verbose=0, **order)
    return Result(model, folder, {}, recipe.epochs, stop.received, time.monotonic() - began)


def check_size(recipe, data):
    """Raises a `ValueError` unless the images are stored at the size that the recipe is for.

    Args:
        recipe: A `recipes.Recipe`.
        data: An `ImageDataset`.
    """
    side, (height, width) = recipe.image_size, data.image_shape[:2]
    if side is None or (height, width) == (side, side):
        return
    raise ValueError(
        f"`data` should be stored at {side}x{side} pixels for the recipe {recipe.name or recipe.objective!r}. "
        f"Received: {data.name} at {height}x{width}. Load it with `datasets.load(..., image_size={side})`; or change "
        "the recipe: `image_size`, and with it `augmentation_args.size` and `encoder_args.image_size`."
    )


def _online_classes(online_probe, data):
    """How many classes an online probe learns, or `None` for no probe."""
    labels = data.labels if data.has_labels else []
    classes = max(len(data.class_names or ()), int(max(labels, default=-1)) + 1)
    if online_probe not in ("auto", True, False):
        raise ValueError(f"`online_probe` should be 'auto', True or False. Received: {online_probe!r}")
    if online_probe is True and classes < 2:
        raise ValueError(
            f"`data` should have labels of at least two classes for an online probe. Received: {data.name} with "
            f"{classes}. Leave the probe away."
        )
    return classes if online_probe and classes > 1 else None


def _plain(config):
    """A configuration as JSON holds it."""
    return json.loads(json.dumps(config, default=str))
