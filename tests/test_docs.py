"""Every example in a docstring and the README's Python run as they stand."""

import doctest
import importlib
import pkgutil
import re
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_issl

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(keras_issl.__path__, "keras_issl.")
    if module.name not in ("keras_issl.cli.__main__", "keras_issl._backend", "keras_issl.probes.scikit_learn")
)
ROOT = Path(__file__).parent.parent
ELSEWHERE = {"distribution.md"}  # each snippet on its engine: test_many_devices.py
ON_TENSORFLOW = pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="its numbers are TensorFlow's")
WHERE = {
    "README.md": [pytest.mark.slow("tensorflow", "jax")],
    "collapse.md": [ON_TENSORFLOW, pytest.mark.slow],  # it trains again and again
}
PAGES = [
    pytest.param(page, marks=WHERE.get(page.name, [pytest.mark.backend_independent]), id=page.name)
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if page.name not in ELSEWHERE
]


class Stated(doctest.OutputChecker):
    """What an example states is compared; where it states nothing, it must only run."""

    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got, optionflags | doctest.ELLIPSIS)


@pytest.fixture(scope="module")
def known():
    """The names that examples may use without making them."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (256, 32, 32, 3)).astype("uint8"), np.arange(256) % 4
    encoder = keras_issl.encoders.ResNet(blocks=(1,), width=8, image_size=32, stem="strided")
    model = keras_issl.Pretrainer(encoder, keras_issl.objectives.SimCLR(output_dim=8, hidden=(8,)))
    model.compile("adam")
    train, test = (keras_issl.Features(rng.normal(size=(256, 8)), labels) for _ in range(2))
    names = {"np": np, "keras": keras, "keras_issl": keras_issl, "images": images, "labels": labels}
    names |= {"encoder": encoder, "model": model, "train": train, "test": test}
    return names | {"views": keras_issl.features.Views(rng.normal(size=(4, 64, 8)), labels[:64])}


@pytest.mark.backend_independent
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore:.*incomplete last batch")
def test_docstring_examples_run(name, known, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # examples write files
    runner = doctest.DocTestRunner(Stated(), verbose=False)
    for test in doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name), extraglobs=known):
        for fenced in re.findall(r"^( *)```python\n(.*?)```", test.docstring, flags=re.S | re.M):
            code = textwrap.dedent(fenced[1].replace(">>> ", ""))
            exec(compile(code, f"{test.name} example", "exec"), dict(test.globs))
        if "```python" not in test.docstring:
            runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache with one built-in preset in it, of random weights: what a download would have left there."""
    folder, name = tmp_path_factory.mktemp("cache"), "dissl_resnet50_d8192_e800_m8"
    encoder = keras_issl.from_preset(name, load_weights=False)
    keras_issl.save_preset(encoder, folder / "presets" / name, metadata={"preprocessing": {"resize": 256, "crop": 224}})
    return folder


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.filterwarnings("ignore:No augmentation", "ignore:One class for all images", "ignore:Uniform teacher")
def test_the_python_of_a_page_runs(page, request, tmp_path, monkeypatch):
    """All of a page's blocks, one after the other, in a folder with two photographs."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.S))
    if 'from_preset("dissl' in code:
        monkeypatch.setenv("KERAS_ISSL_HOME", str(request.getfixturevalue("cache")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    for name in ("cat.jpg", "dog.jpg"):
        keras.utils.array_to_img(np.zeros((300, 400, 3))).save(name)
    exec(compile(code, page.name, "exec"), {})
