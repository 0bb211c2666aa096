"""Representations as plain arrays with their provenance, in memory or on disk: what probes and diagnostics work on.

`Features` is the array; `extract_features` makes it, or streams it to a file that a killed run can go on with.
`Views` is the same for several augmented views of each image; `extract_views` makes it.
"""

from keras_issl.features.arrays import Features
from keras_issl.features.extraction import extract_features
from keras_issl.features.partial import check_out
from keras_issl.features.views import Views, extract_views

__all__ = ["Features", "Views", "check_out", "extract_features", "extract_views"]
