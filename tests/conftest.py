"""One backend a run: ``KERAS_BACKEND=torch pytest``. Nothing here is shared between rooms but that."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# XLA compiles each of hundreds of small models once: unoptimised code takes a fifth of the time, with equal numbers.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

import keras
import numpy as np
import pytest

import keras_issl  # noqa: F401  chooses the backend before any test imports Keras


def pytest_collection_modifyitems(items):
    if keras.config.backend() != "tensorflow":
        once = pytest.mark.skip(reason="the same on every backend: it runs on TensorFlow")
        for item in items:
            if item.get_closest_marker("backend_independent"):
                item.add_marker(once)


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
