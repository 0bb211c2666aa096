"""Probes on frozen features, with scikit-learn's manners. They know arrays and `Features`, never models or training.

`evaluate` fits one, scores test once and returns a `results.Result`: the number with its protocol.
`probes.scikit_learn.ProbeClassifier` makes a scikit-learn classifier of any of them.
"""

from keras_issl.probes.evaluation import evaluate, transfer
from keras_issl.probes.few_shot import FewShotScore, check_shots, few_shot
from keras_issl.probes.figures import Difference, paired_difference
from keras_issl.probes.knn import KNNProbe
from keras_issl.probes.linear import PROTOCOL, LinearProbe
from keras_issl.probes.mlp import MLPProbe
from keras_issl.probes.ridge import RidgeProbe
from keras_issl.probes.selection import STRENGTHS
from keras_issl.probes.sgd import SGDProbe

PROTOCOLS = {"linear": LinearProbe, "ridge": RidgeProbe, "sgd": SGDProbe, "mlp": MLPProbe, "knn": KNNProbe}
"""The probes by the names that `keras-issl probe --probe` takes."""

__all__ = [
    "PROTOCOL",
    "PROTOCOLS",
    "STRENGTHS",
    "Difference",
    "FewShotScore",
    "KNNProbe",
    "LinearProbe",
    "MLPProbe",
    "RidgeProbe",
    "SGDProbe",
    "check_shots",
    "evaluate",
    "few_shot",
    "paired_difference",
    "transfer",
]
