"""What a representation is like, and why: measured on the features of augmented views, without training the encoder.

`diagnose` measures and gives plain verdicts; `idealness` solves random tasks that no augmentation changes, beside
Cover's curve; `advise_dimension` says what a wider representation would buy; `risk_decomposition` splits a test error.
`judge_training` does not look at features: it reads the records of a run, and says whether it collapsed or diverged.
"""

from keras_issl.diagnostics.classes import EquivalenceClass, EquivalenceClasses, equivalence_classes
from keras_issl.diagnostics.cover import cover_curve
from keras_issl.diagnostics.dimension import DimensionAdvice, advise_dimension
from keras_issl.diagnostics.geometry import (
    EtfDistance,
    Invariance,
    alignment,
    etf_distance,
    invariance,
    sphere_uniformity,
    uniformity,
)
from keras_issl.diagnostics.idealness import (
    Idealness,
    IdealnessPoint,
    compare_idealness,
    idealness,
    one_hot,
    random_projections,
)
from keras_issl.diagnostics.judges import Verdict
from keras_issl.diagnostics.leak import Leak, augmentation_leak
from keras_issl.diagnostics.measures import Measure
from keras_issl.diagnostics.retrieval import retrieve
from keras_issl.diagnostics.risk import RiskDecomposition, risk_decomposition
from keras_issl.diagnostics.separability import separable
from keras_issl.diagnostics.spectrum import Dimensions, dimensions, effective_rank, participation_ratio, singular_values
from keras_issl.diagnostics.teacher import ClassUsage, assignments, class_usage
from keras_issl.diagnostics.training import judge_training
from keras_issl.diagnostics.training_records import TrainingVerdict
from keras_issl.diagnostics.verdicts import Diagnosis, diagnose

__all__ = [
    "ClassUsage",
    "Diagnosis",
    "DimensionAdvice",
    "Dimensions",
    "EquivalenceClass",
    "EquivalenceClasses",
    "EtfDistance",
    "Idealness",
    "IdealnessPoint",
    "Invariance",
    "Leak",
    "Measure",
    "RiskDecomposition",
    "TrainingVerdict",
    "Verdict",
    "advise_dimension",
    "alignment",
    "assignments",
    "augmentation_leak",
    "class_usage",
    "compare_idealness",
    "cover_curve",
    "diagnose",
    "dimensions",
    "effective_rank",
    "equivalence_classes",
    "etf_distance",
    "idealness",
    "invariance",
    "judge_training",
    "one_hot",
    "participation_ratio",
    "random_projections",
    "retrieve",
    "risk_decomposition",
    "separable",
    "singular_values",
    "sphere_uniformity",
    "uniformity",
]
