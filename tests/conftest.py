"""One backend a run: ``KERAS_BACKEND=torch pytest``. Nothing here is shared between rooms but that."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras_issl  # noqa: E402, F401  chooses the backend before any test imports Keras

import keras  # noqa: E402, I001
import numpy as np  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def clean_state():
    """Every test starts from the same seeds, default names and float32."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_dtype_policy("float32")
