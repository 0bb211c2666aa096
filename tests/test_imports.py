"""Who may import whom, read from the syntax trees: the house as drawn."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import keras_issl

pytestmark = pytest.mark.backend_independent
ROOT = Path(keras_issl.__file__).parent
BACKENDS = {"tensorflow", "torch", "jax"}
MAY_IMPORT_A_BACKEND = {"distribution", "zoo/checkpoints"}

BASE = {"_backend", "distribution", "heads", "encoders", "augmentations", "optimizers", "datasets", "provenance"}
BASE |= {"environment", "files", "moving_average"}
EVALUATION = {"features", "probes", "results", "diagnostics", "report"}
ALLOWED = {  # room -> rooms of this library that it may import
    "_backend": set(),
    "distribution": set(),
    "files": set(),
    "environment": {"distribution"},
    "heads": {"distribution"},
    "encoders": {"distribution"},
    "augmentations": {"distribution"},
    "datasets": set(),
    "moving_average": set(),
    "optimizers": set(),
    "objectives": {"distribution", "heads", "moving_average"},
    "losses": {"objectives"},
    "pretraining": BASE | {"objectives", "callbacks"},
    "callbacks": BASE | {"objectives", "diagnostics"},
    "loggers": {"files"},
    "provenance": set(),
    "features": {"datasets", "distribution", "encoders", "provenance"},
    "probes": {"distribution", "features", "results"},
    "diagnostics": {"features", "probes"},
    "results": {"distribution", "environment", "files", "report"},
    "report": set(),
    "finetuning": {"distribution", "encoders"},
    "zoo": {"distribution", "files", "encoders", "objectives", "augmentations", "datasets", "provenance"},
    "recipes": BASE | {"objectives", "pretraining"},
    "runs": BASE | EVALUATION | {"objectives", "pretraining", "callbacks", "loggers", "recipes", "zoo"},
    "comparison": BASE | EVALUATION | {"recipes", "runs", "zoo"},
    "diagnosis": EVALUATION,
    "testing": {"encoders", "objectives", "pretraining"},
    "cli": BASE | EVALUATION | {"callbacks", "loggers", "zoo", "recipes", "runs", "comparison", "diagnosis"},
}


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).with_suffix("").as_posix()
        if name != "__init__":
            yield name.removesuffix("/__init__"), ast.parse(path.read_text())


def imported(tree):
    """(module, names) of every import, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", tuple(alias.name for alias in node.names)


def test_rooms_import_as_drawn():
    for module, tree in modules():
        room = module.split("/")[0]
        assert room in ALLOWED, f"{module} is a new room: draw it in ALLOWED and on the architecture page"
        for name, names in imported(tree):
            if name.split(".")[0] != "keras_issl":
                continue
            targets = [name.split(".")[1]] if "." in name else [n for n in names if n != "__version__"]
            for target in set(targets) - {room, "keras_issl"}:
                assert target in ALLOWED[room] | {"_backend"}, f"{module} imports {target}"


def test_objectives_do_not_import_each_other():
    files = {module.split("/")[1] for module, _ in modules() if module.startswith("objectives/")}
    for module, tree in modules():
        if module.startswith("objectives/"):
            for name, _ in imported(tree):
                if name.startswith("keras_issl.objectives."):
                    assert name.split(".")[2] == "base", f"{module} imports {name}"
    assert {"base", "contrastive", "dissl"} <= files


def test_only_the_seam_imports_a_backend_and_lazily():
    for module, tree in modules():
        for name, _ in imported(tree):
            if name.split(".")[0] in BACKENDS:
                assert {module, module.split("/")[0]} & MAY_IMPORT_A_BACKEND, f"{module} imports {name}"
        top = {name.split(".")[0] for node in tree.body for name, _ in imported(ast.Module([node], []))
               if isinstance(node, (ast.Import, ast.ImportFrom))}  # fmt: skip
        assert not top & BACKENDS, f"{module} imports a backend at its top"


def python(code, **environment):
    env = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"} | environment
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=env, capture_output=True, text=True)


def test_import_brings_nothing_heavy_that_keras_does_not():
    code = (
        "import sys, os; import keras; before = set(sys.modules); import keras_issl;"
        "new = {m.split('.')[0] for m in set(sys.modules) - before};"
        "print(new & {'tensorflow', 'torch', 'jax', 'matplotlib', 'pyarrow', 'sklearn', 'datasets', 'scipy'})"
    )
    for backend in ("jax", "torch"):
        assert python(code, KERAS_BACKEND=backend).stdout.strip() == "set()"


def test_backend_is_chosen_by_what_is_installed_and_said():
    code = "from keras_issl import _backend; import keras; print(keras.config.backend(), '|', _backend.REASON)"
    assert python(code).stdout.startswith("tensorflow | first installed of tensorflow, torch, jax")
    assert python(code, KERAS_BACKEND="torch").stdout.strip() == "torch | KERAS_BACKEND is set"


def test_unknown_and_missing_backends_are_named():
    result = python("import keras_issl", KERAS_BACKEND="theano")
    assert "`KERAS_BACKEND` should be one of" in result.stderr and "'theano'" in result.stderr
    hide = (
        "import importlib.util as u; real = u.find_spec;"
        "u.find_spec = lambda n, *a: None if n in ('tensorflow', 'torch', 'jax') else real(n, *a); import keras_issl"
    )
    assert "none of tensorflow, torch, jax is installed" in python(hide).stderr
    assert "tensorflow is not installed" in python(hide, KERAS_BACKEND="tensorflow").stderr
