"""The maintainers' command that publishes the presets, in a copy of the repository with small ones."""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch_resnet
from file_server import Fault, FileServer
from hub_server import HubServer
from PIL import Image

from keras_issl import encoders
from keras_issl.files import write_json
from keras_issl.zoo import cards, registry, saving

pytestmark = pytest.mark.backend_independent
REPOSITORY = Path(__file__).resolve().parent.parent
GOOD, ODD, SHIFTED = ("one", "two"), "odd", "shifted"  # of other tensors; of another mean than its architecture says
RELEASES = "https://github.com/YannDubs/releases/"
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype("uint8")


def network(name, width=4):
    return torch_resnet.make(18, width=width, seed=sum(name.encode()))


def write_preset(folder, name):
    """What the repository has of a preset that nobody has published."""
    mean = {"mean": 0.5} if name == SHIFTED else {}
    encoder = encoders.ResNet(18, image_size=32, width=4, stem="imagenet", name=name, **mean)
    about = json.loads((registry.shipped_folder("simclr_resnet50_dNone_e100_m2") / "metadata.json").read_text())
    about = {key: about[key] for key in ("license", "probe", "recipe", "results", "citation", "description")}
    made = json.loads((saving.save_preset(encoder, folder) / "metadata.json").read_text())
    for path in folder.iterdir():
        if path.name != "config.json":
            path.unlink()
    source = {"url": f"{RELEASES}{name}.torch", "sha256": None, "bytes": None}
    sizes = {"resize": 36, "crop": 32}
    files = {"config.json": made["files"]["config.json"]}
    made |= about | {"name": name, "source": source, "preprocessing": sizes, "versions": {}, "files": files}
    write_json(folder / "metadata.json", made)
    (folder / "README.md").write_text(cards.card(made), encoding="utf-8")


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """The copy, a server with the release files, and the Hub."""
    root = tmp_path_factory.mktemp("publish")
    (root / "no").mkdir()
    (root / "no" / "tensorflow.py").write_text("raise ImportError")  # Keras imports it where it is, which takes seconds
    for part in ("keras_issl", "tools"):
        shutil.copytree(REPOSITORY / part, root / "copy" / part, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "copy" / "tests").mkdir()
    for file in ("pyproject.toml", "tests/torch_resnet.py"):
        shutil.copy(REPOSITORY / file, root / "copy" / file)
    (root / "images").mkdir()
    for i in range(12):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 48, 3)).astype("uint8")).save(
            root / "images" / f"{i}.png"
        )
    files = {}
    for name in (*GOOD, ODD, SHIFTED):
        write_preset(root / "copy" / "presets" / name, name)
        torch.save(network(name, width=8 if name == ODD else 4).state_dict(), buffer := io.BytesIO())
        files[f"/zoo/{name}.torch"] = buffer.getvalue()
    with FileServer(files) as server, HubServer(root / "hub") as hub:
        house = SimpleNamespace(root=root, copy=root / "copy", work=root / "work", server=server, hub=hub)
        house.forks = Forks(root, environment(house))
        yield house
        house.forks.close()


def environment(house, home="home", **options):
    """That of a maintainer, or of anybody who uses the copy."""
    own = {
        "PYTHONPATH": f"{house.copy}:{house.root / 'no'}",
        "KERAS_ISSL_MIRROR": house.server.url("/zoo/"),
        "OMP_NUM_THREADS": "1",  # the networks are too small for more
    }
    return house.hub.environment(house.root / home, backend="torch", **options) | own


FORKS = """
import json, os, runpy, sys, traceback
import h5py, keras, PIL.Image, torch  # what takes long, and neither keras_issl nor what reads the Hub's settings
for line in sys.stdin:
    arguments, environment, output = json.loads(line)
    process = os.fork()
    if not process:
        for number in (1, 2):
            os.dup2(os.open(output[number - 1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:0] = environment["PYTHONPATH"].split(":")
        sys.argv, status = arguments, 1
        try:
            runpy.run_path(arguments[0], run_name="__main__")
            status = 0
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(process, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


class Forks:
    """Runs scripts in forks of a process that has imported Keras and PyTorch, which takes each a few seconds less."""

    def __init__(self, folder, environment):
        self.output = [folder / "stdout", folder / "stderr"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._parent = subprocess.Popen([sys.executable, "-W", "ignore", "-c", FORKS], env=environment, **pipes)

    def run(self, arguments, environment, kill_when=None):
        """The end of a script; with `kill_when` it gets SIGKILL as soon as that holds."""
        print(
            json.dumps([list(map(str, arguments)), environment, list(map(str, self.output))]), file=self._parent.stdin
        )
        self._parent.stdin.flush()
        process, end = int(self._parent.stdout.readline()), time.monotonic() + 120
        if kill_when is not None:
            while not kill_when():
                assert time.monotonic() < end and Path(f"/proc/{process}/fd/0").exists(), self._read(1)
                time.sleep(0.02)
            os.kill(process, signal.SIGKILL)
        status = int(self._parent.stdout.readline())
        return SimpleNamespace(returncode=status, stdout=self._read(0), stderr=self._read(1))

    def evaluate(self, code, environment):
        """What the code handed to `report`."""
        script, value = self.output[0].with_name("script.py"), self.output[0].with_name("value.json")
        prelude = f"def report(value): import json; json.dump(value, open({str(value)!r}, 'w'))\n"
        script.write_text(prelude + textwrap.dedent(code))
        done = self.run([script], environment)
        assert done.returncode == 0, done.stderr
        return json.loads(value.read_text())

    def close(self):
        self._parent.communicate()

    def _read(self, number):
        return self.output[number].read_text()


def publish(house, *arguments, work="work", kill_when=None, **options):
    tool = house.copy / "tools" / "publish_zoo.py"
    command = [tool, "--organization", "org", "--work", house.root / work, *arguments]
    return house.forks.run(command, environment(house, **options), kill_when)


def rows(stdout):
    """The table's rows, by the preset's name."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in stdout.splitlines() if line[:1] == "|"]
    return {row[0]: dict(zip(cells[0], row, strict=True)) for row in cells[2:]}


def snapshot(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def asked(house, name):
    return sum(entry.path == f"/zoo/{name}.torch" for entry in house.server.log)


def commits(house):
    return sum("/commit/" in request.path for request in house.hub.log)


def digest(content):
    return hashlib.sha256(content).hexdigest()


def test_without_the_right_to_write_nothing_is_downloaded(house):
    ends = [publish(house, token=token) for token in (None, "hf_read", "hf_wrong")]
    ends.append(publish(house, "--organization", "theirs"))
    assert [(end.returncode, end.stdout, end.stderr.count("\n")) for end in ends] == [(2, "", 1)] * 4
    none, read, wrong, foreign = (end.stderr for end in ends)
    assert "takes a token of the Hugging Face Hub. Received: none." in none
    assert "should have the role `write`. Received: 'read'" in read
    assert "does not know the token" in wrong
    assert "may write to 'theirs'. Received: one of 'user', who may write to ['org', 'user']" in foreign
    for message in (none, read, wrong, foreign):
        assert f"{house.hub.url}/settings/tokens" in message and "HF_TOKEN" in message and "--dry-run" in message
        assert "Nothing was downloaded." in message
    assert house.server.log == [] and not house.work.exists()


@pytest.fixture(scope="module")
def rehearsed(house):
    """A dry run that was killed in a download and run again: its end, and what was there before."""
    before, asked_before = snapshot(house.copy / "presets"), len(house.hub.log)
    size = len(house.server.files["/zoo/one.torch"])
    house.server.faults = [Fault(stall=size // 2)]
    part = house.work / "one.torch.part"
    names = (*GOOD, ODD, SHIFTED)
    half = lambda: part.exists() and part.stat().st_size >= size // 2  # noqa: E731
    assert publish(house, "--dry-run", "--only", *names, kill_when=half).returncode == -signal.SIGKILL
    done = publish(house, "--dry-run", "--only", *names, token=None)
    assert [entry.start for entry in house.server.log if entry.path == "/zoo/one.torch"] == [0, size // 2]
    assert len(house.hub.log) == asked_before and snapshot(house.copy / "presets") == before
    return done


def test_a_dry_run_goes_on_after_a_kill_and_publishes_nothing(house, rehearsed):
    done, names = rehearsed, (*GOOD, ODD, SHIFTED)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    table = rows(done.stdout)
    assert list(table) == list(names)
    for name in GOOD:
        assert table[name]["release file"] == digest(house.server.files[f"/zoo/{name}.torch"])[:12]
        assert 0 < float(table[name]["difference"]) < 1e-5 and table[name]["commit"] == "dry run"
        assert f"{name}: ready for hf://org/{name}: README.md" in done.stdout
        assert not (house.work / f"{name}.torch").exists()
    assert table[ODD]["commit"].startswith("failed: The release file of 'odd' is not the checkpoint it should be")
    assert table[SHIFTED]["commit"].startswith("failed: its features differ from PyTorch's by ")
    assert done.stdout.splitlines()[-1].startswith("2 of 4 presets converted and verified in ")
    # Only what was held against PyTorch says so.
    verified = {name: json.loads((house.work / name / "metadata.json").read_text())["verified"] for name in table
                if (house.work / name).exists()}  # fmt: skip
    assert verified == {"one": True, "two": True, SHIFTED: False}


@pytest.fixture(scope="module")
def published(house, rehearsed):
    """The presets on the Hub, by a run that was killed in a commit and run again: its end."""
    downloads = len(house.server.log)
    fault = house.hub.fail(r"POST .*/commit/main", stall=30)
    options = ("--images", house.root / "images")
    assert publish(house, *options, kill_when=lambda: fault.times == 0).returncode == -signal.SIGKILL
    house.hub.faults.clear()
    assert len(house.hub.commits("org/one")) == 1  # the Hub's own, of an empty repository
    (house.work / ".check-killed").mkdir()
    done = publish(house, *options)
    assert {entry.path for entry in house.server.log[downloads:]} == {f"/zoo/{name}.torch" for name in (ODD, SHIFTED)}
    return done


def test_the_whole_run_goes_on_after_a_kill_and_records_what_it_published(house, published):
    done = published
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert [path.name for path in house.work.glob(".*")] == [".lock"]
    table = rows(done.stdout)
    for name in GOOD:
        repo, folder = f"org/{name}", house.copy / "presets" / name
        head, files = house.hub.head(repo), house.hub.files(repo)
        assert table[name]["commit"] == head[:12] and house.hub.refs(repo)["refs/tags/v1"] == head
        assert len(house.hub.commits(repo)) == 2 and repo not in house.hub.private
        assert files["neighbours.png"].startswith(b"\x89PNG") and b"neighbours.png" in files["README.md"]
        here, there = json.loads((folder / "metadata.json").read_text()), json.loads(files["metadata.json"])
        assert set(snapshot(folder)) == {Path(f) for f in ("README.md", "config.json", "golden.npz", "metadata.json")}
        assert (folder / "golden.npz").read_bytes() == files["golden.npz"]
        assert (folder / "config.json").read_bytes() == files["config.json"]
        assert (folder / "README.md").read_text() == cards.card(here)
        # The two say the same, but for the commit, which cannot name itself, and the card, of which there are two.
        assert here["hub"] == {"repo": repo, "commit": head} and "README.md" not in here["files"]
        assert there == {k: v for k, v in here.items() if k != "hub"} | {"files": there["files"]}
        for file in ("config.json", "golden.npz", "model.weights.h5"):
            recorded = {"sha256": digest(files[file]), "bytes": len(files[file])}
            assert here["files"][file] == recorded == there["files"][file]
        release = house.server.files[f"/zoo/{name}.torch"]
        assert here["source"] == {"url": f"{RELEASES}{name}.torch", "sha256": digest(release), "bytes": len(release)}
        measured = here["provenance"]["verified"]
        assert here["verified"] is True and measured["largest_difference"] == float(table[name]["difference"])
        assert {"keras_issl", "keras", "backend", "torch"} == set(measured["versions"])
        assert not (house.work / name / "model.weights.h5").exists()
    assert table[ODD]["commit"].startswith("failed: ") and not house.hub.exists("org/odd")
    assert table[SHIFTED]["commit"].startswith("failed: ") and not house.hub.exists("org/shifted")
    assert not json.loads((house.copy / "presets" / "odd" / "metadata.json").read_text())["verified"]
    assert "2 of 4 presets published under hf://org/ and recorded in " in done.stdout.splitlines()[-1]


def test_a_second_run_publishes_nothing_anew(house, published):
    presets, made, downloads = snapshot(house.copy / "presets"), commits(house), len(house.server.log)
    for work in ("work", "another"):  # the second knows from presets/ alone
        done = publish(house, "--only", *GOOD, work=work)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "one: nothing left to do, it is on the Hub" in done.stdout
        for name, row in rows(done.stdout).items():
            assert row["commit"] == house.hub.head(f"org/{name}")[:12] and float(row["difference"]) < 1e-5
    assert snapshot(house.copy / "presets") == presets
    assert commits(house) == made and len(house.server.log) == downloads


def test_published_presets_load_by_name_on_a_new_machine(house, published):
    code = f"""
        import numpy as np, keras_issl
        from keras_issl.zoo import registry
        images = np.array({IMAGES.tolist()}, "uint8")
        encoder = keras_issl.from_preset("one", verify=True)
        sources = {{p.name: [p.source, p.verified] for p in keras_issl.list_presets()}}
        report([encoder.predict(images, verbose=0).tolist(), sources])
    """
    downloads = len(house.server.log)
    found, sources = house.forks.evaluate(code, environment(house, "new machine", token=None))
    fetching = """
        import os
        from keras_issl import cli, from_preset
        status = cli.main(["presets", "--fetch", "two"])
        os.environ["HF_HUB_OFFLINE"] = "1"
        from_preset("two", verify=True)
        report(status)
    """
    assert house.forks.evaluate(fetching, environment(house, "another machine", token=None)) == 0
    features, expected = np.array(found), network("one").features(IMAGES)
    np.testing.assert_allclose(features, expected, atol=1e-5 * np.abs(expected).max())
    assert sources["one"] == ["cached", True] and sources["two"] == ["Hub", True]
    assert sources["odd"] == ["release file", False]
    assert len(house.server.log) == downloads


def test_a_published_preset_comes_from_its_release_file_where_the_hub_is_blocked(house, published):
    code = """
        import warnings, keras_issl
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            keras_issl.from_preset("one", verify=True)
        sources = {p.name: [p.source, p.verified] for p in keras_issl.list_presets()}
        report([[str(warning.message) for warning in said], sources["one"]])
    """
    house.hub.down()
    said, source = house.forks.evaluate(code, environment(house, "behind a wall", token=None))
    house.hub.up()
    assert any("No network" in line and "release file is fetched and converted instead" in line for line in said)
    assert source == ["cached", True]


def test_each_step_may_be_cut_off_and_repeated(house):
    """Lives of the command: every second one dies after a step's work, before the state file knows of it."""
    write_preset(house.copy / "presets" / "three", "three")
    torch.save(network("three").state_dict(), buffer := io.BytesIO())
    house.server.files["/zoo/three.torch"] = buffer.getvalue()
    (house.root / "lives").mkdir()
    code = f"""
        import sys
        sys.path[:0] = [{str(house.copy / "tools")!r}, {str(house.copy / "tests")!r}]
        import zoo_steps

        class Death(BaseException):
            pass

        class Mortal(zoo_steps.State):
            saves = 0

            def save(self):
                if not self.saves:
                    raise Death
                self.saves -= 1
                super().save()

        path, taken = {str(house.root / "lives" / "state.json")!r}, []
        for saves in (0, 1) * len(zoo_steps.STEPS):
            state = Mortal(path, "org")
            state.saves = saves
            try:
                zoo_steps.Publication("three", state, tag="v1", say=lambda line: None).run(False)
            except Death:
                pass
            taken.append(zoo_steps.State(path, "org").of("three").get("step"))
        report(taken)
    """
    taken = house.forks.evaluate(code, environment(house))
    steps = ["download", "convert", "verify", "card", "push", "check", "record"]
    assert taken == [step for pair in zip([None, *steps], steps, strict=False) for step in pair]
    repo, metadata = "org/three", json.loads((house.copy / "presets" / "three" / "metadata.json").read_text())
    assert len(house.hub.commits(repo)) == 2 and metadata["hub"] == {"repo": repo, "commit": house.hub.head(repo)}
    assert metadata["verified"] is True and asked(house, "three") == 1
    for file in ("config.json", "golden.npz", "model.weights.h5"):
        assert metadata["files"][file]["sha256"] == digest(house.hub.files(repo)[file])


def test_what_the_hub_has_lost_is_published_again_from_the_start(house, published):
    shutil.rmtree(house.hub.root / "repositories" / "org" / "two.git")
    house.server.faults = [Fault(status=404)]
    presets = snapshot(house.copy / "presets")
    done = publish(house, "--only", "two")
    assert done.returncode == 1 and "publishing it again, as the Hub does not have it any more" in done.stdout
    assert "two: downloading " in done.stdout and "404" in rows(done.stdout)["two"]["commit"]
    assert snapshot(house.copy / "presets") == presets
