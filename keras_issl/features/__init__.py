"""Representations as plain arrays with their provenance, in memory or on disk: what probes and diagnostics work on.

`Features` is the array; `extract_features` makes it, or streams it to a file that a killed run can go on with.
"""

from keras_issl.features.arrays import Features
from keras_issl.features.extraction import extract_features
from keras_issl.features.partial import check_out

__all__ = ["Features", "check_out", "extract_features"]
