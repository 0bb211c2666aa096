"""Pages for people, from what probes and diagnostics return. They read attributes and import neither."""

from keras_issl.report.pages.diagnosis import diagnosis_page
from keras_issl.report.pages.evaluation import evaluation_page

__all__ = ["diagnosis_page", "evaluation_page"]
