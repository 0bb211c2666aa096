"""The presets are found from a clone, from an editable install and from a wheel."""

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.backend_independent
pytest.importorskip("setuptools", "77", reason='building needs pip install "setuptools>=77"')
REPOSITORY = Path(__file__).parent.parent
PARTS = ("keras_issl", "presets", "pyproject.toml", "README.md", "LICENSE")
LOOK = """
import pathlib, keras_issl
from keras_issl.zoo import registry
print(pathlib.Path(keras_issl.__file__).parent)
print(registry.presets_folder(), len(keras_issl.list_presets()))
print(keras_issl.zoo.format.read_metadata(registry.shipped_folder("dissl_resnet50_d8192_e800_m8"))["feature_dim"])
print(keras_issl.from_preset("dissl_resnet10_d160_cifar10", verify=True).output_shape[1])
"""


@pytest.fixture
def clone(tmp_path):
    """The repository without what it ignores."""
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for part in PARTS:
        source = REPOSITORY / part
        if source.is_dir():
            shutil.copytree(source, tmp_path / "clone" / part, ignore=ignore)
        else:
            shutil.copy(source, tmp_path / "clone" / part)
    return tmp_path / "clone"


@pytest.fixture
def python(tmp_path):
    """A new virtual environment that sees this one's packages, its editable keras_issl excepted."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True
    ).stdout.strip()
    # A path added by a .pth file has its own .pth files ignored: an editable install is one.
    Path(site, "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def run(*command, cwd):
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def pip(python, *arguments, cwd):
    quiet = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation")
    return run(sys.executable, "-m", "pip", "--python", python, arguments[0], *quiet, *arguments[1:], cwd=cwd)


@pytest.mark.parametrize("way", ["clone", "editable install", "wheel"])
def test_presets_are_found(way, clone, python, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if way == "editable install":
        pip(python, "install", "-e", clone, cwd=elsewhere)
    elif way == "wheel":
        pip(python, "wheel", clone, "-w", tmp_path / "dist", cwd=elsewhere)
        (wheel,) = (tmp_path / "dist").iterdir()
        pip(python, "install", wheel, cwd=elsewhere)
        shutil.rmtree(clone)
    look = LOOK if way != "clone" else f"import sys; sys.path.insert(0, {str(clone)!r})\n{LOOK}"
    package, found, width, loaded = run(python, "-W", "ignore", "-c", look, cwd=elsewhere).strip().splitlines()
    folder, count = found.rsplit(" ", 1)
    assert int(count) >= 21 and (width, loaded) == ("8192", "160")
    assert Path(package).is_relative_to(tmp_path) and Path(folder).is_relative_to(tmp_path)
    assert Path(folder).is_relative_to(Path(package)) == (way == "wheel")


def test_git_ignores_no_module():
    """A folder named like one that .gitignore holds off would be missing from every clone."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("this is no clone")
    files = [str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "keras_issl").rglob("*.py")]
    done = subprocess.run(["git", "check-ignore", *files], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.split() == []
