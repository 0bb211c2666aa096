"""`push_to_hub` against the stand-in Hub: what goes up, what is left alone, and what happens when it goes wrong.

huggingface_hub, hf_xet and git are real; every client is a process of its own.
"""

import hashlib
import json
import re
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hub_cases import Clients, variant
from hub_client import run
from hub_server import HubServer
from PIL import Image

import keras_issl
from keras_issl.zoo import cards, publishing
from keras_issl.zoo.layout import FILES

pytestmark = pytest.mark.backend_independent
BEFORE = """
from keras_issl import push_to_hub
from keras_issl.zoo import publishing, upload
publishing.PAUSE = 0.01
"""
COMMIT = "POST /api/models/.*/commit/"
OBJECTIVE = {"objective.json", "objective.weights.h5"}
BAD_TAGS = ("main", "a b", "x..y", "-x", "", "a.lock", "a/", "a" * 40, 1)
OWN = "---\nlicense: mit\ntags:\n- mine\n---\n\n# My own card\n"


class Site(NamedTuple):
    """A Hub, clients of it, and two presets: `with_heads` holds an objective, `plain` other weights and none."""

    hub: HubServer
    clients: Clients
    folder: Path
    kept: dict  # clients that go on: environment -> client

    def client(self, xet=False, before="", **options):
        """A new client; as a context it ends."""
        environment = self.hub.environment(self.folder / "home", xet=xet, **options)
        return self.clients.start(environment, BEFORE + before)

    def push(self, *calls, xet=False):
        """The outcomes of calls, of one call its outcome."""
        client = self.kept.get(xet) or self.kept.setdefault(xet, self.client(xet))
        outcomes = [client(call) for call in calls]
        return outcomes if len(calls) > 1 else outcomes[0]

    def requests(self, since, match="."):
        """The requests since the log had `since` entries."""
        return [r for r in self.hub.log[since:] if re.search(match, f"{r.method} {r.path}")]

    def wait_for(self, since, match):
        """Until there is such a request."""
        end = time.monotonic() + 30
        while not self.requests(since, match):
            assert time.monotonic() < end, f"no request {match}"
            time.sleep(0.01)


def call(folder, repo, **options):
    """Source code of a push."""
    given = "".join(f", {key}={str(value) if isinstance(value, Path) else value!r}" for key, value in options.items())
    return f"push_to_hub({str(folder)!r}, 'hf://{repo}'{given})"


def commit_of(outcome):
    """The commit of a push that succeeded without a warning, but for httpx2's of how huggingface_hub calls it."""
    assert not outcome.kinds and not [text for text in outcome.warnings if "'content=<...>'" not in text], outcome
    address = re.fullmatch(r"hf://[\w-]+/[\w-]+@([0-9a-f]{40})", outcome.value)
    assert address, outcome
    return address[1]


def read(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("publishing")
    encoder = keras_issl.encoders.ResNet(blocks=(1,), width=8, image_size=12, stem="cifar")
    heads = keras_issl.objectives.SimCLR(output_dim=4, hidden=(4,))
    keras_issl.save_preset(encoder, folder / "with_heads", name="tiny", objective=heads)
    encoder.set_weights([weight + 0.25 for weight in encoder.get_weights()])
    keras_issl.save_preset(encoder, folder / "plain", name="tiny", metadata={"license": {"id": "mit"}})
    # For the round trip alone, in whatever order the tests run: what the Hub has seen is not sent again.
    for name, objective in (("trip_with_heads", heads), ("trip_plain", None)):
        encoder.set_weights([weight + 0.25 for weight in encoder.get_weights()])
        keras_issl.save_preset(encoder, folder / name, name="tiny", objective=objective)
    Image.fromarray(np.zeros((8, 8, 3), "uint8")).save(folder / "picture.png")
    with HubServer(folder / "hub") as hub:
        yield (site := Site(hub, Clients(), folder, {}))
        for client in site.kept.values():
            client.kill()


@pytest.fixture(autouse=True)
def no_faults(site):
    yield
    site.hub.faults.clear()


@pytest.fixture
def preset(site, tmp_path):
    """A preset of the test's own, with weights that the Hub has never seen."""
    return write(tmp_path / "preset", variant(read(site.folder / "plain"), int(time.time_ns() % 10**6)))


def write(folder, files):
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


# ---------------------------------------------------------------------- the round trip
COMPARE = """
import sys
sys.modules["tensorflow"] = None  # as where it is not installed: Keras would import it, for seconds
import numpy as np, keras_issl

def compare(address, folder):
    images = np.arange(2 * 12 * 12 * 3, dtype="float32").reshape(2, 12, 12, 3) % 256
    there = keras_issl.from_preset(address, verify=True).predict(images, verbose=0)
    here = keras_issl.from_preset(folder).predict(images, verbose=0)
    return [list(there.shape), bool((there == here).all()), float(np.abs(there).max())]
"""


@pytest.mark.parametrize(("xet", "backend", "name"), [(True, "torch", "trip_with_heads"), (False, "jax", "trip_plain")])
def test_round_trip_into_another_environment(site, tmp_path, xet, backend, name):
    """JAX pushes, over xet and over LFS; someone else, on PyTorch and on JAX, loads what was pushed, bit for bit."""
    hub, folder, repo = site.hub, site.folder / name, f"user/trip-{backend}"
    since = len(hub.log)
    commit = commit_of(site.push(call(folder, repo), xet=xet))
    assert len(site.requests(since, COMMIT)) == 1 and hub.commits(repo)[0] == commit and len(hub.commits(repo)) == 2
    assert bool(site.requests(since, "xet-write-token")) == xet and bool(site.requests(since, "PUT /lfs/")) != xet
    assert not [r for r in hub.log[since:] if r.origin == "storage" and r.headers.get("Authorization")]
    agents = [r.headers["User-Agent"] for r in site.requests(since, "(GET|POST) /api/models/")]
    assert all(agent.startswith(f"keras_issl/{keras_issl.__version__};") for agent in agents)
    there, here = hub.files(repo), read(folder)
    assert f'from_preset("hf://{repo}' in there.pop("README.md").decode() and here.pop("README.md")
    assert there.pop(".gitattributes") and there == here

    environment = hub.environment(tmp_path / "else", token=None, xet=xet, backend=backend)
    question = f"compare('hf://{repo}@{commit}', {str(folder)!r})"
    if backend == "jax":
        loaded = site.clients.run(environment, question, before=COMPARE)
    else:
        loaded = run(f"{COMPARE}\nreport({question})", environment)
    assert loaded.value, loaded
    shape, equal, largest = loaded.value
    assert shape == [2, 8] and equal and largest > 0


def test_message_and_metadata_of_the_commit(site, preset):
    site.push(call(preset, "user/message"), call(preset, "user/message-own", message="First try"))
    subject = lambda repo: site.hub.git(repo, "log", "-1", "--format=%B", "main").decode().strip()  # noqa: E731
    assert subject("user/message") == f"Upload tiny with keras_issl {keras_issl.__version__}"
    assert subject("user/message-own") == "First try"


def test_the_folder_is_only_read(site, preset):
    """Also a folder that cannot be written; of other files in it nothing goes up; a run folder's preset is found."""
    (preset / "secret.txt").write_text("mine")
    (preset / "config.json.orig").write_text("{}")
    run_folder = preset.parent / "run"
    run_folder.mkdir()
    shutil.copytree(preset, run_folder / "preset")
    (run_folder / "run.json").write_text("{}")
    state = lambda: {path: (path.stat().st_mtime_ns, path.stat().st_mode) for path in preset.parent.rglob("*")}  # noqa: E731
    for path in [*preset.iterdir(), preset]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before, files = state(), read(preset)
    try:
        for xet in (False, True):
            outcomes = site.push(
                call(preset, f"user/read-only-{xet}", tag="v1"), call(run_folder, f"user/run-{xet}"), xet=xet
            )
            assert [len(commit_of(outcome)) for outcome in outcomes] == [40, 40]
        assert state() == before and read(preset) == files
    finally:
        preset.chmod(0o755)
    names = set(read(preset)) - {"secret.txt", "config.json.orig"} | {".gitattributes"}
    for repo in ("read-only-True", "read-only-False", "run-True", "run-False"):
        assert set(site.hub.files(f"user/{repo}")) == names


def test_an_encoder_of_ones_own_class(site, tmp_path):
    """It can be published, though not loaded to see if it can; the card says what it takes."""
    encoder = keras_issl.encoders.ResNet(blocks=(1,), width=8, image_size=12, stem="cifar")
    keras_issl.save_preset(keras_issl.encoders.Adapter(encoder), tmp_path / "adapted")
    commit_of(site.push(call(tmp_path / "adapted", "user/adapted")))
    assert "custom_objects" in site.hub.files("user/adapted")["README.md"].decode()


# ---------------------------------------------------------------------- what is left alone
def test_an_unchanged_preset_makes_no_commit(site, preset):
    repo = "user/unchanged"
    first, again, tagged = site.push(call(preset, repo), call(preset, repo), call(preset, repo, tag="v1"))
    assert commit_of(first) == commit_of(again) == commit_of(tagged) == site.hub.head(repo)
    assert len(site.hub.commits(repo)) == 2 and site.hub.refs(repo)["refs/tags/v1"] == commit_of(first)
    since = len(site.hub.log)
    over_xet = site.push(call(preset, repo, parent_commit=commit_of(first)), xet=True)
    assert commit_of(over_xet) == commit_of(first)
    assert [r.method for r in site.hub.log[since:]] == ["GET", "GET"]  # where it is, and what is there


def test_stale_files_go_in_the_same_commit_and_nothing_else(site):
    repo, others = "user/stale", {"notes.txt": b"mine", "old/model.weights.h5": b"\x00old", "golden.npz.bak": b"x"}
    first = commit_of(site.push(call(site.folder / "with_heads", repo)))
    assert set(site.hub.files(repo)) >= OBJECTIVE
    site.hub.push(repo, others)
    before = site.hub.files(repo)
    second = commit_of(site.push(call(site.folder / "plain", repo)))
    after, plain = site.hub.files(repo), read(site.folder / "plain")
    assert len(site.hub.commits(repo)) == 4 and site.hub.commits(repo)[0] == second
    assert set(before) - set(after) == OBJECTIVE
    kept = {*others, ".gitattributes"}
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    sent = set(plain) - {"README.md"}
    assert set(after) == kept | sent | {"README.md"}
    assert {name: after[name] for name in sent} == {name: plain[name] for name in sent}
    assert after["README.md"] != before["README.md"]  # nobody had changed it, so it is the new preset's
    assert set(site.hub.files(repo, first)) >= OBJECTIVE  # the older commit is what it was


@pytest.mark.parametrize("by_hand", ["Written by hand, without a front matter.\n", None])
def test_a_card_that_somebody_wrote_on_the_hub_is_kept_unless_asked(site, preset, by_hand):
    repo = f"user/card-{by_hand is None}"
    if by_hand is None:  # or changed
        commit_of(site.push(call(site.folder / "with_heads", repo)))
        by_hand = site.hub.files(repo)["README.md"].decode().replace("## Load it", "## Load it, please")
    site.hub.push(repo, {"README.md": by_hand.encode()})
    since, before = len(site.hub.log), len(site.hub.commits(repo))
    outcome = site.push(call(preset, repo))
    assert not outcome.kinds and "was kept, because somebody wrote or changed it" in " ".join(outcome.warnings)
    assert site.hub.files(repo)["README.md"].decode() == by_hand
    assert not site.requests(since, "validate-yaml")
    commit_of(site.push(call(preset, repo, overwrite_card=True)))
    made, seal = site.hub.files(repo)["README.md"].decode().rsplit("\n<!-- Made by keras_issl", 1)
    assert made == cards.card(json.loads((preset / "metadata.json").read_text()), repo=repo)
    assert hashlib.sha256(made.encode()).hexdigest() in seal and len(site.hub.commits(repo)) == before + 2


def test_a_card_of_ones_own_is_published_as_it_is(site, preset):
    (preset / "README.md").write_bytes(OWN.replace("\n", "\r\n").encode())
    commit_of(site.push(call(preset, "user/own-card")))
    assert site.hub.files("user/own-card")["README.md"] == OWN.replace("\n", "\r\n").encode()

    (preset / "README.md").write_text("\ufeff# My own card — without a front matter\n", encoding="utf-8")
    commit_of(site.push(call(preset, "user/own-text")))
    published = site.hub.files("user/own-text")["README.md"].decode()
    made = cards.card(json.loads((preset / "metadata.json").read_text()), repo="user/own-text")
    front = made[: made.index("\n---\n") + 5]
    assert published == f"{front}\n# My own card — without a front matter\n" and "license" in front

    (preset / "README.md").unlink()
    commit_of(site.push(call(preset, "user/no-card")))
    assert "hf://user/no-card" in site.hub.files("user/no-card")["README.md"].decode()


def test_the_picture_lives_with_the_card_that_shows_it(site, preset):
    repo, picture = "user/picture", str(site.folder / "picture.png")
    commit_of(site.push(call(preset, repo, picture=picture)))
    files = site.hub.files(repo)
    assert files["neighbours.png"] == Path(picture).read_bytes() and b"neighbours.png" in files["README.md"]
    again, other = site.push(call(preset, repo), call(site.folder / "with_heads", repo))
    assert commit_of(again) == site.hub.commits(repo)[1]  # nothing new: it is this encoder's picture
    commit_of(other)
    files = site.hub.files(repo)
    assert "neighbours.png" not in files and b"neighbours.png" not in files["README.md"]


# ---------------------------------------------------------------------- what is refused
def test_what_is_wrong_here_is_said_before_any_request(site, preset, tmp_path):
    files = read(preset)
    broken = {
        "damaged": {**files, "model.weights.h5": files["model.weights.h5"][:-1] + b"?"},
        "missing": {name: content for name, content in files.items() if name != "golden.npz"},
        "unknown key": {**files, "metadata.json": files["metadata.json"].replace(b"{", b'{"typo": 1,', 1)},
        "no weights": {name: content for name, content in files.items() if name != "model.weights.h5"},
        "yaml": {**files, "README.md": b"---\nlicense: [mit\n---\n"},
        "text": {**files, "README.md": b"---\ntags: mine\n---\n"},
        "number": {**files, "README.md": b"---\npipeline_tag: 1\n---\n"},
        "norway": {**files, "README.md": b"---\ntags:\n- no\n---\n"},
        "index": {**files, "README.md": b"---\nmodel-index:\n- name: x\n---\n"},
        "latin": {**files, "README.md": "Für".encode("latin-1")},
    }
    config = json.loads(files["config.json"])
    config["config"]["width"] = 16
    broken["other weights"] = rehashed(files, "config.json", json.dumps(config).encode())
    for name, content in (broken | {"empty": {}}).items():
        write(tmp_path / name, content)
    large = tmp_path / "large.png"
    large.write_bytes(Path(site.folder / "picture.png").read_bytes() + bytes(5_000_000))
    (tmp_path / "text.png").write_text("not a picture")
    shipped = "dissl_resnet50_d8192_e800_m8"  # without weights
    cases = [
        (call(tmp_path / "damaged", "user/no"), "model.weights.h5 is not the file that was saved"),
        (call(tmp_path / "missing", "user/no"), "lacks its file golden.npz"),
        (call(tmp_path / "unknown key", "user/no"), r"unknown \['typo'\]"),
        (call(tmp_path / "no weights", "user/no"), "lacks its file model.weights.h5"),
        (call(tmp_path / "other weights", "user/no"), "should hold the .* weights of the model"),
        (call(tmp_path / "yaml", "user/no"), "front matter of .*README.md is not valid, so nothing was published"),
        (call(tmp_path / "text", "user/no"), "`tags` should be a list, and is 'mine'"),
        (call(tmp_path / "number", "user/no"), "`pipeline_tag` should be text, and is 1"),
        (call(tmp_path / "norway", "user/no"), r"`tags` should be a list of texts, and is \[False\]"),
        (call(tmp_path / "index", "user/no"), "front matter of .*README.md .*model.index"),
        (call(tmp_path / "latin", "user/no"), "README.md should be text in UTF-8"),
        (call(tmp_path / "empty", "user/no"), "without metadata.json"),
        (call(shipped, "user/no"), "`folder` should be the path of a preset folder"),
        (call("hf://user/other", "user/no"), "`folder` should be the path of a preset folder"),
        (call(keras_issl.zoo.registry.shipped_folder(shipped), "user/no"), "records no model.weights.h5"),
        (call(tmp_path / "nowhere", "user/no"), "which is no folder"),
        (call(preset, "user/no@v1"), "`address` should name no revision"),
        (call(preset, "no"), "`address` should be hf://"),
        (call(preset, "user/no", picture=str(large)), "`picture` should be a PNG file .* bytes\\.$"),
        (call(preset, "user/no", picture=str(tmp_path / "text.png")), "`picture` should be a PNG file"),
        (call(preset, "user/no", picture=str(tmp_path / "none.png")), "`picture` should be a PNG file"),
        (call(preset, "user/no", parent_commit="abc"), "`parent_commit` should be 40 hexadecimal digits"),
        *((call(preset, "user/no", tag=tag), "`tag` should be a name") for tag in BAD_TAGS),
    ]  # fmt: skip
    since = len(site.hub.log)
    for (source, says), outcome in zip(cases, site.push(*[source for source, _ in cases]), strict=True):
        assert outcome.error == "ValueError" and re.search(says, outcome.message), (source, outcome)
    assert site.hub.log[since:] == [] and not site.hub.exists("user/no")


def rehashed(files, name, content):
    """The preset with another file, recorded as it is."""
    about = json.loads(files["metadata.json"])
    about["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    return {**files, name: content, "metadata.json": json.dumps(about).encode()}


def test_a_card_that_the_hub_refuses_is_not_published(site, preset):
    (preset / "README.md").write_text("---\nlicense: My Own Licence\n---\n# Mine\n")
    site.hub.push("user/refused", {"notes.txt": b"mine"})
    since = len(site.hub.log)
    for outcome in site.push(call(preset, "user/refused"), call(preset, "user/refused-new")):
        assert outcome.error == "ValueError"
        assert re.search('front matter .* not valid, so nothing was published: "license" must be', outcome.message)
    assert len(site.hub.commits("user/refused")) == 2 and not site.hub.exists("user/refused-new")
    assert not site.requests(since, "preupload|PUT|create")


def test_private_and_create(site, preset):
    hub, commits = site.hub, lambda repo: len(site.hub.commits(f"user/{repo}"))
    for repo in ("public", "hidden"):
        hub.create(f"user/{repo}")
    hub.hide("user/hidden")
    calls = {
        "new": call(preset, "user/new", private=True),
        "again": call(preset, "user/new", private=True, overwrite_card=True),
        "public": call(preset, "user/public", private=True),
        "hidden": call(preset, "user/hidden"),
        "missing": call(preset, "user/missing", create=False),
        "present": call(preset, "user/present", create=False),
    }
    hub.create("user/present")
    outcomes = dict(zip(calls, site.push(*calls.values()), strict=True))
    assert "user/new" in hub.private and commit_of(outcomes["new"]) == commit_of(outcomes["again"])
    assert outcomes["public"].error == "ValueError" and "there and public" in outcomes["public"].message
    assert "user/public" not in hub.private and commits("public") == 1
    assert commit_of(outcomes["hidden"]) and "user/hidden" in hub.private and commits("hidden") == 2
    assert outcomes["missing"].error == "ValueError" and "does not exist or is private" in outcomes["missing"].message
    assert not hub.exists("user/missing") and commit_of(outcomes["present"]) and commits("present") == 2


@pytest.mark.parametrize(
    ("token", "repo"), [(None, "user/allowed"), ("hf_read", "user/allowed"), ("hf_write", "stranger/allowed")]
)
def test_who_may_not_publish_is_told(site, preset, token, repo):
    since = len(site.hub.log)
    with site.client(token=token) as client:
        outcome = client(call(preset, repo))
    assert outcome.error == "PermissionError" and "hf auth login" in outcome.message, outcome
    assert not site.hub.exists(repo) and (token or not site.hub.log[since:])


def test_tags(site, preset):
    hub, repo = site.hub, "user/tags"
    first = commit_of(site.push(call(preset, repo, tag="v1")))
    hub.push(repo, {"notes.txt": b"mine"}, branch="next")
    changed = shutil.copytree(site.folder / "with_heads", preset.parent / "changed")
    since = len(hub.log)
    taken, branch = site.push(call(changed, repo, tag="v1"), call(changed, repo, tag="next"))
    assert taken.error == branch.error == "ValueError" and not site.requests(since, "preupload|PUT|commit/|/tag/")
    assert first in taken.message and "nothing was published" in taken.message and "branch" in branch.message
    hub.fail("POST .*/tag/", status=403, message="You may not tag.")
    failed = site.push(call(changed, repo, tag="v2"))
    second = hub.head(repo)
    assert failed.error == "PermissionError" and "You may not tag" in failed.message
    assert f"{repo}@{second} is published" in failed.message and second != first
    assert f"hf repos tag create {repo} v2 --revision {second}" in failed.message
    hub.fail("POST .*/tag/", after=True)  # the tag is made, and the answer lost
    assert commit_of(site.push(call(changed, repo, tag="v2"))) == second
    assert hub.refs(repo) | {"refs/tags/v1": first, "refs/tags/v2": second} == hub.refs(repo)
    assert len(hub.commits(repo)) == 3


# ---------------------------------------------------------------------- somebody else, and the network
def test_a_stale_parent_is_refused(site, preset):
    hub, repo = site.hub, "user/parent"
    old = hub.create(repo)
    new = hub.push(repo, {"notes.txt": b"theirs"})
    since = len(hub.log)
    outcome = site.push(call(preset, repo, parent_commit=old))
    assert outcome.error == "ValueError" and old in outcome.message and new in outcome.message
    assert hub.head(repo) == new and not site.requests(since, "POST|PUT")
    commit_of(site.push(call(preset, repo, parent_commit=new)))
    assert hub.commits(repo)[1] == new
    outcome = site.push(call(preset, "user/parentless", parent_commit=new))
    assert outcome.error == "ValueError" and not hub.exists("user/parentless")


@pytest.mark.parametrize("busy", [False, True])
def test_a_commit_in_between_is_not_overwritten(site, preset, busy):
    """Whether the Hub says so (412), or it is seen after a failure."""
    hub, repo = site.hub, f"user/between-{busy}"
    old = hub.create(repo)
    hub.fail("POST .*/preupload", stall=1.0)
    if busy:
        hub.fail(COMMIT, status=503)
    since = len(hub.log)
    with site.client() as client:
        client.send(call(preset, repo))
        site.wait_for(since, "preupload")
        theirs = hub.push(repo, {"neighbours.png": b"theirs"})
        outcome = client.receive()
    assert outcome.error == "ValueError" and len(site.requests(since, COMMIT)) == 1, outcome
    for text in (old, theirs, "Somebody else", "push again"):
        assert text in outcome.message
    assert hub.head(repo) == theirs and set(hub.files(repo)) == {".gitattributes", "neighbours.png"}
    commit_of(site.push(call(preset, repo)))
    assert hub.files(repo)["neighbours.png"] == b"theirs"  # no card of ours showed it
    assert hub.files(repo)["config.json"] == (preset / "config.json").read_bytes()


@pytest.mark.parametrize("theirs", [{"config.json": b"{}"}, {"metadata.json": b'{"keras_hub_version": "0.32"}'}])
def test_another_librarys_model_is_not_replaced(site, preset, theirs):
    repo = f"user/bert-{min(theirs)[:6]}"
    head = site.hub.push(repo, theirs | {"model.safetensors": b"weights"})
    outcome = site.push(call(preset, repo, overwrite_card=True))
    assert outcome.error == "ValueError" and "is no preset of keras_issl: they would be replaced" in outcome.message
    assert site.hub.head(repo) == head


def test_a_hub_that_falls_silent_does_not_hang_the_push(site, preset):
    """At each stage of a push, one after the other, in one client."""
    with site.client(False, before="publishing.SILENCE, publishing.ATTEMPTS = 1.0, 1") as client:
        for stage in ("GET .*/tree/", "POST .*/preupload", "POST .*/objects/batch", COMMIT, "POST .*/tag/"):
            repo = "user/silent-" + re.sub(r"\W", "", stage)
            site.hub.create(repo)
            site.hub.fail(f"{stage}.*", times=100, stall=4)
            client.send(call(preset, repo, tag="v1"))
            outcome = client.receive()
            site.hub.faults.clear()
            told = outcome.error == "ConnectionError" and "timed out" in outcome.message and outcome.seconds < 30
            assert told, (stage, outcome)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("busy", {"times": 2, "status": 503}),
        ("limited", {"times": 1, "status": 429, "headers": {"Retry-After": "1"}}),
        ("dropped", {"times": 3, "drop": True}),
    ],
)
def test_a_commit_that_fails_is_tried_again(site, preset, name, fault):
    repo, since = f"user/{name}", len(site.hub.log)
    site.hub.fail(COMMIT, **fault)
    outcome = site.push(call(preset, repo))
    assert commit_of(outcome) == site.hub.head(repo) and len(site.hub.commits(repo)) == 2
    assert len(site.requests(since, COMMIT)) == fault["times"] + 1
    assert name != "limited" or outcome.seconds > 1


def test_so_is_an_upload_over_xet(site, preset):
    site.hub.fail("xet-write-token", times=2, status=503)
    commit_of(site.push(call(preset, "user/xet-busy"), xet=True))
    assert len(site.hub.commits("user/xet-busy")) == 2


def test_a_lost_answer_makes_no_second_commit(site, preset):
    """The commit is made and the connection is lost, twice over: also the question what the branch is at now."""
    repo, since = "user/lost", len(site.hub.log)
    site.hub.fail(COMMIT, after=True)
    outcome = site.push(call(preset, repo))
    assert commit_of(outcome) == site.hub.head(repo) and len(site.hub.commits(repo)) == 2
    assert len(site.requests(since, COMMIT)) == 1

    deaf, since = "user/lost-and-deaf", len(site.hub.log)
    site.hub.create(deaf)
    site.hub.fail("preupload", stall=0.5)
    site.hub.fail(COMMIT, after=True)
    with site.client() as client:
        client.send(call(preset, deaf))
        site.wait_for(since, "preupload")
        site.hub.fail(f"GET /api/models/{deaf}$", status=503)  # when it asks what has become of the commit
        assert commit_of(client.receive()) == site.hub.head(deaf) and len(site.hub.commits(deaf)) == 2
    assert [r.status for r in site.requests(since, COMMIT)] == [0, 412]


def test_when_it_gives_up_it_says_how_things_are(site, preset):
    hub, repo = site.hub, "user/given-up"
    hub.fail(COMMIT, times=4, status=503, message="Under repair.")
    since = len(hub.log)
    busy = site.push(call(preset, repo))
    assert busy.error == "ConnectionError" and len(site.requests(since, COMMIT)) == 4
    for text in ("Under repair", "The branch is unchanged", f"The repository {repo} was made for this push"):
        assert text in busy.message
    hub.fail(COMMIT, times=1, status=429, headers={"Retry-After": "3600"})
    since = len(hub.log)
    limited = site.push(call(preset, repo))
    assert limited.error == "ConnectionError" and "3600 seconds" in limited.message
    assert "was made" not in limited.message and len(site.requests(since, COMMIT)) == len(hub.commits(repo)) == 1
    assert commit_of(site.push(call(preset, repo))) == hub.head(repo) and len(hub.commits(repo)) == 2


def test_the_first_questions_are_asked_again_too(site, preset):
    repo = "user/questions"
    for match in ("GET /api/models/[^/]*/[^/]*$", "repos/create", "/tree/", "/refs"):
        site.hub.fail(match, status=503)
    assert commit_of(site.push(call(preset, repo, tag="v1"))) == site.hub.head(repo)
    assert len(site.hub.commits(repo)) == 2


@pytest.mark.parametrize("match", ["PUT /lfs/", COMMIT])
def test_a_killed_upload_changes_nothing_and_can_be_repeated(site, preset, match):
    hub, repo = site.hub, f"user/killed-{match[:3].lower()}"
    hub.fail(match, stall=60, drop=True)
    since = len(hub.log)
    with site.client() as client:  # its end is a SIGKILL
        client.send(call(preset, repo))
        site.wait_for(since, match)
    assert len(hub.commits(repo)) == 1 and set(hub.files(repo)) == {".gitattributes"}
    assert commit_of(site.push(call(preset, repo))) == hub.head(repo) and len(hub.commits(repo)) == 2
    files = hub.files(repo)
    assert {name: files[name] for name in FILES & set(files) - {"README.md"}} == {
        name: content for name, content in read(preset).items() if name != "README.md"
    }


@pytest.mark.parametrize("xet", [False, True])
def test_a_file_that_changes_during_the_push_is_not_published(site, preset, xet):
    """Files that are too large to be held in memory, so here all of them."""
    hub, repo = site.hub, f"user/changing-{xet}"
    hub.fail("preupload", stall=1.0)
    since = len(hub.log)
    with site.client(xet, before="upload.IN_MEMORY = 0") as client:
        client.send(call(preset, repo))
        site.wait_for(since, "preupload")
        weights = (preset / "model.weights.h5").read_bytes()
        (preset / "model.weights.h5").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
        outcome = client.receive()
    assert outcome.error == "ValueError" and "model.weights.h5 has changed while" in outcome.message, outcome
    assert len(hub.commits(repo)) == 1 and not site.requests(since, COMMIT)


def test_offline_it_says_so_at_once(site, preset):
    since = len(site.hub.log)
    environment = site.hub.environment(site.folder / "home") | {"HF_HUB_OFFLINE": "1"}
    with site.clients.start(environment, BEFORE) as client:
        outcome = client(call(preset, "user/offline"))
    assert outcome.error == "ConnectionError" and "HF_HUB_OFFLINE" in outcome.message and not site.hub.log[since:]


def test_tag_names():
    """What git, and an address, can hold."""
    target = publishing.hub.parse("hf://user/model")
    for tag in ("v1", "1.0.0", "release/2026-01", "v1.0+cpu", "e800_m8"):
        publishing._check_options(target, tag, None)
