"""One backend a run: ``KERAS_BACKEND=torch pytest``. Nothing here is shared between rooms but that."""

import gc
import os
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# XLA compiles each of hundreds of small models once: unoptimised code takes a fifth of the time, with equal numbers,
# and fusing operations the older way takes about a third off what is left.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false",
)
# PyTorch's threads of several workers would wait for each other, for most of the time.
if "PYTEST_XDIST_WORKER" in os.environ and os.environ.get("KERAS_BACKEND") == "torch":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# What JAX compiles is kept in a folder of this run, for the other workers and the processes that tests start.
if "PYTEST_XDIST_WORKER" not in os.environ:
    compiled = tempfile.TemporaryDirectory(prefix="keras_issl-compiled-")  # removed when the run ends
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import keras
import numpy as np
import pytest

import keras_issl  # noqa: F401  chooses the backend before any test imports Keras


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also what is left out for its time, marked slow")


def pytest_collection_finish():
    gc.collect()
    gc.freeze()  # a million objects of imported packages, which each collection would look through again


def pytest_collection_modifyitems(config, items):
    if not config.getoption("slow"):
        left_out = pytest.mark.skip(reason="slow: --slow runs it")
        for item in items:
            if any(not mark.args or keras.config.backend() in mark.args for mark in item.iter_markers("slow")):
                item.add_marker(left_out)
    if keras.config.backend() != "torch":
        once = pytest.mark.skip(reason="the same on every backend: it runs on PyTorch")
        for item in items:
            if item.get_closest_marker("backend_independent"):
                item.add_marker(once)


@pytest.fixture(autouse=True, scope="module")
def clean_memory():
    """Models are circles of references: without this those of hundreds of tests would pile up to gigabytes."""
    yield
    gc.collect()


@pytest.fixture
def guard_with_time(monkeypatch):
    """A collapse guard judges every row: on a busy machine its share of a run of seconds may be one look."""
    monkeypatch.setattr("keras_issl.callbacks.collapse_guard.COST", 1e9)


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
