"""Invariant self-supervised learning on Keras 3 (JAX, TensorFlow, PyTorch): DISSL, CISSL and their rivals."""

from keras_issl import _backend  # noqa: F401, I001  first: it chooses the backend before Keras is imported

from keras_issl import (
    augmentations,
    callbacks,
    datasets,
    diagnosis,
    diagnostics,
    distribution,
    encoders,
    features,
    finetuning,
    heads,
    loggers,
    losses,
    moving_average,
    objectives,
    optimizers,
    probes,
    provenance,
    recipes,
    report,
    results,
    runs,
    testing,
    zoo,
)
from keras_issl.features import Features, extract_features
from keras_issl.pretraining import Pretrainer
from keras_issl.zoo.loading import from_preset, load_objective
from keras_issl.zoo.publishing import push_to_hub
from keras_issl.zoo.registry import list_presets
from keras_issl.zoo.saving import save_preset

__version__ = "0.1.0"

__all__ = [
    "Features",
    "Pretrainer",
    "augmentations",
    "callbacks",
    "datasets",
    "diagnosis",
    "diagnostics",
    "distribution",
    "encoders",
    "extract_features",
    "features",
    "finetuning",
    "from_preset",
    "heads",
    "list_presets",
    "load_objective",
    "loggers",
    "losses",
    "moving_average",
    "objectives",
    "optimizers",
    "probes",
    "provenance",
    "push_to_hub",
    "recipes",
    "report",
    "results",
    "runs",
    "save_preset",
    "testing",
    "zoo",
]
