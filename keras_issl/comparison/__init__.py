"""Objectives side by side: one encoder, one budget, one probe, one table.

`compare` asks how few labels are enough, with one seed; `compare_seeds` how sure a difference is, with several. A run
of the latter is a row of a CSV, so that a comparison of hours can be stopped, killed and made in parts.
"""

from keras_issl.comparison.few_labels import Comparison, compare
from keras_issl.comparison.rows import LABELS
from keras_issl.comparison.seeds import compare_seeds
from keras_issl.comparison.shared import pixels
from keras_issl.comparison.standings import SeedComparison, Standing, summarise

__all__ = ["LABELS", "Comparison", "SeedComparison", "Standing", "compare", "compare_seeds", "pixels", "summarise"]
