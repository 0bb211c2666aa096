"""The page of a run: read what its folder holds, draw what its model sees, judge, and write `report.html`."""

import dataclasses
import datetime
import tempfile
from pathlib import Path

import numpy as np
from keras import ops

from keras_issl import datasets, diagnostics, recipes, report
from keras_issl.callbacks import Checkpoint
from keras_issl.features import extract_features
from keras_issl.runs.folder import read_description
from keras_issl.runs.profile import step_parts

NAME = "report.html"
SHOWN, NEIGHBOURS = 6, 512  # images of the view gallery; among how many neighbours are looked for
LARGE, OF_LARGE = 128, 128  # pixels from which on fewer images are encoded, and how many
LONG = 300  # seconds of training from which on the parts of a step are timed: it takes a few seconds


def read(folder):
    """What a run folder says of its run, at any time of it.

    Args:
        folder: A run folder.

    Returns:
        A `report.Run` with the verdicts on its records.

    Raises:
        ValueError: It is no run folder, or a file in it is damaged.

    Example:

    ```python
    data = keras_issl.datasets.load("digits").take(256)
    keras_issl.runs.pretrain(keras_issl.recipes.digits("dissl", epochs=2), data, "runs/read", page=False, verbose=False)
    keras_issl.runs.read("runs/read").verdicts[0].title
    ```
    """
    folder = Path(folder)
    told = read_description(folder)
    records, history = folder / "records.csv", folder / "history.csv"
    records = report.read_records(records) if records.is_file() else {}
    history = report.read_history(history) if history.is_file() and history.stat().st_size else {}
    objective, result, probe = told.get("objective") or {}, told.get("ended") or {}, told.get("online_probe")
    verdicts = []
    if failure := result.get("failure"):
        verdicts.append(diagnostics.TrainingVerdict("problem", "Stopped: NaN or infinity", failure, "", "diverged"))
    if records:
        found = diagnostics.judge_training(
            records,
            objective=objective.get("name"),
            config=objective.get("config"),
            batch_size=min(told["recipe"]["batch_size"], told["data"]["images"]),
            online_classes=(probe or {}).get("classes"),
        )
        verdicts += [verdict for verdict in found if not (failure and verdict.kind in ("good", "diverged"))]
    if result.get("stopped_by") == "collapse":
        verdicts.insert(
            0, diagnostics.TrainingVerdict("warning", "Stopped by the collapse guard", _restored(result), "", "stopped")
        )
    return report.Run(
        name=folder.resolve().name,
        records=records,
        history=history,
        recipe=told["recipe"],
        overrides=told.get("overrides") or {},
        notes=tuple(told.get("notes") or ()),
        objective=objective.get("name") or told["recipe"]["objective"],
        config=objective.get("config") or {},
        data={**told["data"], "image_shape": told.get("image_shape")},
        versions=told.get("versions") or {},
        hardware=told.get("hardware") or {},
        backend=told.get("backend") or {},
        verdicts=tuple(sorted(verdicts, key=lambda verdict: _LEVELS.index(verdict.level))),
        finished_epochs=result.get("finished_epochs"),
        stopped_by=result.get("stopped_by"),
        seconds=None,  # the records have it, over all calls that trained the run
        started=told.get("started"),
        online_probe=probe,
        feature_dim=told.get("feature_dim"),
        step_parts=_parts(records, result, told),
    )


_LEVELS = ("problem", "warning", "good")


def _restored(result):
    step = result.get("restored_step")
    if step is None:
        return "As asked; preset/ has the weights of the last step."
    return f"As asked; preset/ has the weights of step {step:,}, from before."


def _parts(records, result, told):
    """Seconds of a step: loading, the step itself, and what is done beside it."""
    rates = records.get("images_per_second", np.empty(0))
    rates = rates[np.isfinite(rates)]
    if not len(rates):
        return {}
    step = min(told["recipe"]["batch_size"], told["data"]["images"]) / float(np.median(rates))
    shares = records.get("input_share", np.empty(0))
    shares = shares[np.isfinite(shares)]
    load = step * float(np.mean(shares)) if len(shares) else 0.0
    parts = {"wait for the batch": load, "training step": step - load}
    calls = [call.get("seconds") or {} for call in (*(told.get("calls") or []), result)]
    steps = float(records["step"][-1])
    if result and steps:
        for name in ("recording", "checkpoints"):
            parts[name] = sum(call.get(name, 0.0) for call in calls) / steps
    return parts


def make_page(folder, out=None, *, data=None, profile=False, say=None):
    """Writes the page of a run at any time: while it trains, after it ended, or from a copy of its folder.

    The model is that of the last checkpoint. The images are loaded again as they were for the run, if they are where
    they were; without them the page has no pictures.

    Args:
        folder: A run folder.
        out: The file to write, ending in `.html`; `report.html` in the folder by default.
        data: The run's `ImageDataset`, if it cannot be loaded as it was.
        profile: Whether to time the parts of a training step.
        say: Called with a line on what was left out.

    Returns:
        A pair: the path, and the `report.Run` it shows.

    Raises:
        ValueError: It is no run folder; or `data` are not the run's images.

    Example:

    ```python
    data = keras_issl.datasets.load("digits").take(256)
    keras_issl.runs.pretrain(keras_issl.recipes.digits("dissl", epochs=2), data, "runs/page", page=False, verbose=False)
    path, run = keras_issl.runs.make_page("runs/page", data=data)
    ```
    """
    folder, say = Path(folder), say or (lambda line: None)
    if out is not None and Path(out).suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"`out` should end in .html. Received: {str(out)!r}.")
    told = read_description(folder)
    given = data is not None
    if not given:
        data = _load(told, say)
    if data is not None and data.fingerprint != told["data"]["fingerprint"]:
        problem = f"{data.name} has other images than the run was trained on ({told['data']['name']})"
        if given:
            raise ValueError(f"`data` should be the run's images. Received: {problem}.")
        say(f"{problem}: the page has no pictures")
        data = None
    saved = Checkpoint(folder / "checkpoints", resume=True)
    model = None
    if data is not None and saved.load(changes=False) is not None:
        recipe = recipes.Recipe(**told["recipe"])
        probe = (told.get("online_probe") or {}).get("classes")
        model = recipes.build(recipe, len(data), fit=False, online_probe=probe)
        model.optimizer.build(model.trainable_variables)
        saved.restore(model)
    elif data is not None:
        say("there is no checkpoint yet: the page has no pictures")
    run = write_page(folder, out, model=model, data=data, profile=profile)
    return Path(out or folder / NAME), run


def _load(told, say):
    if not told.get("source"):
        say("the run does not say where its images are: the page has no pictures (--data names them)")
        return None
    try:
        return datasets.load(**told["source"])
    except (ValueError, OSError, ImportError) as error:
        say(f"the images could not be loaded, so the page has no pictures: {error}")
        return None


def write_page(folder, out=None, *, model=None, data=None, profile="auto"):
    """Writes `report.html` for a run whose model and images are at hand, and returns its `report.Run`."""
    folder = Path(folder)
    run = read(folder)
    with tempfile.TemporaryDirectory() as pictures:
        galleries = [] if model is None or data is None else _galleries(model, data, run, Path(pictures))
        wanted = profile is True or (profile == "auto" and (run.wall_time or 0) > LONG)
        if wanted and model is not None and data is not None and "training step" in run.step_parts:
            batch = data.images[np.arange(min(run.recipe["batch_size"], len(data)))]
            run = dataclasses.replace(run, step_parts=_finer(run.step_parts, model, batch))
        report.training_page(
            out or folder / NAME,
            run,
            galleries=galleries,
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
    return run


def _finer(parts, model, batch):
    """The parts of a step with the training step itself in parts of its own."""
    found = {}
    for name, seconds in parts.items():
        found |= step_parts(model, batch, seconds) if name == "training step" else {name: seconds}
    return found


def _galleries(model, data, run, folder):
    """(title, picture, caption): views as the model sees them; neighbours before training and after it."""
    shown = np.linspace(0, len(data) - 1, min(SHOWN, len(data))).astype(int)
    images = data.images[shown]
    views = [ops.convert_to_numpy(view) for view in model.views(model._to_encoder_channels(images), training=False)]
    found = [("What the model sees", report.views(images, views, folder / "views.png"), "")]
    count = OF_LARGE if max(data.image_shape[:2]) >= LARGE else NEIGHBOURS
    some = data.take(min(count, len(data)))
    if len(some) < 4:
        return found
    before = recipes.build_encoder(recipes.Recipe(**run.recipe))
    for name, encoder in (("before training", before), ("now", model.encoder)):
        try:
            features = extract_features(encoder, some, batch_size=64, verbose=False).array
        except ValueError:  # not finite: there are no neighbours
            continue
        picture = report.neighbours(
            some.images,
            features,
            folder / f"{name.split()[0]}.png",
            queries=min(SHOWN, len(some)),
            neighbours=min(8, len(some) - 1),
            labels=some.labels if some.has_labels else None,
            class_names=some.class_names if some.has_labels else None,
        )
        found.append((f"Nearest neighbours, {name}", picture, ""))
    return found
