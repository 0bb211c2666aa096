"""Tables, pictures and self-contained HTML pages. It knows rows, arrays and results, not models."""

from keras_issl.report.class_gallery import equivalence_classes
from keras_issl.report.gallery import neighbours
from keras_issl.report.history import curves, label_efficiency, read_history
from keras_issl.report.markdown import table
from keras_issl.report.pages import diagnosis_page, evaluation_page

__all__ = [
    "curves",
    "diagnosis_page",
    "equivalence_classes",
    "evaluation_page",
    "label_efficiency",
    "neighbours",
    "read_history",
    "table",
]
