"""One contract suite for every objective and encoder, this library's or a third party's.

Each check raises an `AssertionError` that says which clause of the contract is broken.
"""

from keras_issl.testing.encoder import check_encoder
from keras_issl.testing.objective import check_objective

__all__ = ["check_encoder", "check_objective"]
