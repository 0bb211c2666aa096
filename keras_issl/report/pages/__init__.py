"""Pages for people, from what training, probes and diagnostics return. They read attributes and import none."""

from keras_issl.report.pages.diagnosis import diagnosis_page
from keras_issl.report.pages.evaluation import evaluation_page
from keras_issl.report.pages.runs import recipe_differences, runs_page, runs_table
from keras_issl.report.pages.training import training_page

__all__ = [
    "diagnosis_page",
    "evaluation_page",
    "recipe_differences",
    "runs_page",
    "runs_table",
    "training_page",
]
