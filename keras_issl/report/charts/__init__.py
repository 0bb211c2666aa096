"""Charts as SVG text for a page. They know numbers and names, not models; without matplotlib each gives `None`."""

from keras_issl.report.charts.drawing import MOST
from keras_issl.report.charts.evaluation import (
    confusion,
    confusions,
    intervals,
    label_efficiency,
    per_class,
    validation,
)
from keras_issl.report.charts.representation import PROBES, RISKS, class_balance, distances, idealness, risk, spectrum
from keras_issl.report.charts.training import Line, Mark, over_time, step_time, thinned

__all__ = [
    "MOST",
    "PROBES",
    "RISKS",
    "Line",
    "Mark",
    "class_balance",
    "confusion",
    "confusions",
    "distances",
    "idealness",
    "intervals",
    "label_efficiency",
    "over_time",
    "per_class",
    "risk",
    "spectrum",
    "step_time",
    "thinned",
    "validation",
]
