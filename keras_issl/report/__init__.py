"""Tables, pictures and self-contained HTML pages. It knows rows, arrays and results, not models."""

from keras_issl.report.class_gallery import equivalence_classes
from keras_issl.report.gallery import neighbours
from keras_issl.report.history import curves, label_efficiency, read_history
from keras_issl.report.markdown import table
from keras_issl.report.pages import (
    diagnosis_page,
    evaluation_page,
    recipe_differences,
    runs_page,
    runs_table,
    training_page,
)
from keras_issl.report.run import Run, read_records
from keras_issl.report.view_gallery import views

__all__ = [
    "Run",
    "curves",
    "diagnosis_page",
    "equivalence_classes",
    "evaluation_page",
    "label_efficiency",
    "neighbours",
    "read_history",
    "read_records",
    "recipe_differences",
    "runs_page",
    "runs_table",
    "table",
    "training_page",
    "views",
]
