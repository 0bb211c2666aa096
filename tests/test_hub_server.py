"""The stand-in Hub is held against the real client, which is the only judge of it that we have without a network."""

import hashlib
import math

import numpy as np
import pytest
from hub_client import run
from hub_server import HubServer

pytestmark = pytest.mark.backend_independent

CARD = b"---\nlicense: mit\ntags: [images]\nlibrary_name: keras_issl\n---\n# A model\n"
WEIGHTS = np.random.default_rng(0).bytes(3_000_000)
IMPORTS = "import hashlib, os, pathlib, huggingface_hub as h; api = h.HfApi()\n"
TRIES = """
def name(call):
    "What the call raised, with the status of the answer."
    try:
        call()
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        return [type(error).__name__, status, str(error)]
    return ["none", 200, ""]

start()
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """One server for all; two models, of which the tests that write make copies."""
    with HubServer(tmp_path_factory.mktemp("hub") / "hub") as hub:
        for repo in ("user/model", "other/model", "other/private", "other/gated"):
            hub.push(repo, {"model.weights.h5": WEIGHTS, "README.md": CARD, "folder/config.json": b"{}"})
        hub.hide("other/private")
        hub.gate("other/gated")
        yield hub


@pytest.fixture(autouse=True)
def faultless(hub):
    hub.faults.clear()
    hub.log.clear()


@pytest.fixture
def client(hub, tmp_path):
    """Runs code after the imports, in a fresh home; the names given are variables in it."""

    def call(code, environment=None, **values):
        settings = {name: values.pop(name) for name in ("token", "xet") if name in values}
        environment = hub.environment(tmp_path / values.pop("home", "home"), **settings) | (environment or {})
        given = "".join(f"{name} = {value!r}\n" for name, value in values.items())
        return run(IMPORTS + TRIES + given + code, environment)

    return call


def digests(files):
    return {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}


READ = """
def digests(folder):
    paths = [path for path in pathlib.Path(folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}

"""


@pytest.mark.parametrize("xet", [True, False])
def test_round_trip(hub, client, tmp_path, xet):
    """Three megabytes and a text go up in one commit and come down again, here and over the other way of transport."""
    repo = f"org/round-trip-{xet}"
    path = tmp_path / "weights"
    path.write_bytes(bytes([xet]) + WEIGHTS)  # the server has not seen them
    publish = """
api.create_repo(repo)
api.create_repo(repo, exist_ok=True)
files = [h.CommitOperationAdd("model.weights.h5", path), h.CommitOperationAdd("README.md", card)]
made = api.create_commit(repo, files, commit_message="Weights", commit_description="All")
api.create_tag(repo, tag="v1.0")
report([made.oid, made.commit_url, digests(h.snapshot_download(repo, revision="v1.0"))])
"""
    result = client(READ + publish, repo=repo, path=str(path), card=CARD, xet=xet)
    assert result.error is None, result.stderr
    sha, url, down = result.value
    stored = hub.files(repo)
    assert (stored["model.weights.h5"], stored["README.md"]) == (path.read_bytes(), CARD)
    assert down == digests(stored) and len(down) == 3  # with .gitattributes
    assert hub.head(repo) == hub.head(repo, "v1.0") == sha == hub.commits(repo)[0] and len(hub.commits(repo)) == 2
    assert url == f"{hub.url}/{repo}/commit/{sha}"
    assert [request.status for request in hub.log if "/commit/" in request.path] == [200]
    storage = [request.method for request in hub.log if request.origin == "storage"]
    tokens = {request.path.split("/")[-2] for request in hub.log if "/xet-" in request.path}
    assert (storage, tokens) == (([], {"xet-write-token", "xet-read-token"}) if xet else (["PUT", "GET"], set()))

    download = "report(digests(h.snapshot_download(repo)))"
    other = client(READ + download, repo=repo, xet=not xet, home="other")
    assert other.value == down, other.stderr


def test_no_token_reaches_the_storage(hub, client):
    assert client("h.snapshot_download('user/model')").error is None
    kinds = {(request.origin, "AUTHORIZATION" in request.headers) for request in hub.log}
    assert kinds == {("api", True), ("storage", False)}


def test_cached_commit_needs_no_request(hub, client):
    result = client("h.snapshot_download('user/model', revision=sha)", sha=hub.head("user/model"))
    assert result.error is None and hub.log
    hub.log.clear()
    again = "report(digests(h.snapshot_download('user/model', revision=sha, local_files_only=True)))"
    result = client(READ + again, sha=hub.head("user/model"))
    assert result.value == digests(hub.files("user/model")) and not hub.log


def test_information(hub, client):
    code = """
info = api.model_info("user/model", files_metadata=True)
rows = {row.path: row for row in api.list_repo_tree("user/model", recursive=True)}
head = h.get_hf_file_metadata(h.hf_hub_url("user/model", "model.weights.h5"), token=os.environ["HF_TOKEN"])
report({
    "sha": info.sha, "card": info.card_data.to_dict(), "private": info.private, "gated": info.gated,
    "sizes": {file.rfilename: file.size for file in info.siblings},
    "digest": rows["model.weights.h5"].lfs.sha256, "blob": rows["README.md"].blob_id,
    "top": sorted(row.path for row in api.list_repo_tree("user/model")),
    "folder": [row.path for row in api.list_repo_tree("user/model", "folder")],
    "paths": [row.path for row in api.get_paths_info("user/model", ["folder", "README.md", "none"])],
    "head": [head.commit_hash, head.etag, head.size, head.location, head.xet_file_data],
    "user": [api.whoami()["name"], api.whoami()["auth"]["accessToken"]["role"]],
    "gate": api.model_info("other/gated").gated,
    "exists": [api.file_exists("user/model", "README.md"), api.file_exists("user/model", "none"),
               api.repo_exists("user/none"), api.revision_exists("user/model", "none")],
})
"""
    value = client(code).value
    files, sha, digest = hub.files("user/model"), hub.head("user/model"), hashlib.sha256(WEIGHTS).hexdigest()
    assert value["sizes"] == {path: len(content) for path, content in files.items()}
    assert value["card"] == {"license": "mit", "tags": ["images"], "library_name": "keras_issl"}
    assert (value["sha"], value["private"], value["gated"], value["gate"]) == (sha, False, False, "manual")
    assert value["blob"] == hashlib.sha1(b"blob %d\0%b" % (len(CARD), CARD)).hexdigest()
    assert value["digest"] == digest
    assert value["top"] == [".gitattributes", "README.md", "folder", "model.weights.h5"]
    assert value["folder"] == ["folder/config.json"] and value["paths"] == ["README.md", "folder"]
    assert value["head"] == [sha, digest, len(WEIGHTS), f"{hub.storage}/lfs/{digest}", None]
    assert value["user"] == ["user", "write"] and value["exists"] == [True, False, False, False]


def test_history(hub, client):
    """Branches, tags and commits: what is old stays as it was, and what is stale is refused."""
    first = hub.push("user/history", {"a": b"1", "b/c": b"\0binary", "b/d": b"2"})
    hub.tag("user/history", "v0")
    second = hub.push("user/history", {"a": b"2"}, branch="next")
    code = """
repo = "user/history"
def add(path, **where):
    return api.create_commit(repo, [h.CommitOperationAdd(path, b"x")], commit_message="m", **where).oid
refs = api.list_repo_refs(repo)
found = {ref.ref: ref.target_commit for ref in refs.branches + refs.tags}
again, missing = name(lambda: api.create_tag(repo, tag="v0")), name(lambda: api.delete_tag(repo, tag="v9"))
api.create_tag(repo, tag="v0", exist_ok=True)
api.create_tag(repo, tag="v1", revision="next")
api.delete_tag(repo, tag="v0")
api.create_branch(repo, branch="made", revision=first[:8])
made = add("e", revision="made")
third = add("f", parent_commit=first)
stale = name(lambda: add("g", parent_commit=first))
astray = name(lambda: add("g", revision="none"))
api.create_commit(repo, [h.CommitOperationDelete("b/"), h.CommitOperationDelete("a")], commit_message="m")
report([found, made, third, again[:2], missing[:2], stale[:2], astray[:2]])
"""
    result = client(code, first=first)
    assert result.error is None, result.stderr
    found, made, third, again, missing, stale, astray = result.value
    assert found == {"refs/heads/main": first, "refs/heads/next": second, "refs/tags/v0": first}
    assert [again[1], missing[1], stale[1]] == [409, 404, 412]
    assert astray == ["RevisionNotFoundError", 404]
    assert set(hub.refs("user/history")) == {
        f"refs/{name}" for name in ("heads/main", "heads/made", "heads/next", "tags/v1")
    }
    assert hub.head("user/history", "v1") == second and hub.files("user/history", "next")["a"] == b"2"
    assert hub.head("user/history", "made") == made and hub.commits("user/history", made)[1] == first
    assert hub.files("user/history", first)["b/c"] == b"\0binary"
    assert set(hub.files("user/history")) == {".gitattributes", "f"} and hub.commits("user/history")[1] == third


def test_who_may_do_what(hub, client):
    """Each token's own namespace and its organisations, and what strangers are told."""
    code = """
def download(repo, file="README.md", **where):
    return name(lambda: h.hf_hub_download(repo, file, **where))[:2]
def write(repo):
    return name(lambda: api.create_commit(repo, [h.CommitOperationAdd("x", b"x")], commit_message="m"))[1]
report({
    "public": download("other/model"), "private": download("other/private"), "gated": download("other/gated"),
    "missing": download("other/none"), "file": download("user/model", "none"),
    "revision": download("user/model", revision="none"), "info": name(lambda: api.model_info("other/private"))[:2],
    "create": [name(lambda: api.create_repo(repo))[1] for repo in create], "who": name(api.whoami)[1],
    "write": [write("user/model"), write("other/model")], "message": name(lambda: api.create_repo("other/x"))[2],
})
"""
    told = {}
    for token in ("hf_write", "hf_read", "hf_bad", None):
        names = [f"user/{token}", f"org/{token}", f"other/{token}", "user/model"]
        result = client(code, create=names, token=token, home=str(token))
        assert result.error is None, result.stderr
        told[token] = result.value
    lost, denied = "RepositoryNotFoundError", "HfHubHTTPError"
    for token in ("hf_write", "hf_read", None):
        status = 404 if token else 401
        assert told[token]["public"] == ["none", 200]
        assert told[token]["private"] == told[token]["missing"] == told[token]["info"] == [lost, status]
        assert told[token]["gated"] == ["GatedRepoError", 403 if token else 401]
        assert told[token]["file"] == ["RemoteEntryNotFoundError", 404]
        assert told[token]["revision"] == ["RevisionNotFoundError", 404]
    assert all(told["hf_bad"][key] == [denied, 401] for key in ("public", "private", "missing", "file", "info"))
    assert told["hf_write"]["create"] == [200, 200, 403, 409] and told["hf_write"]["write"] == [200, 403]
    assert told["hf_read"]["create"] == [403] * 4 and told["hf_read"]["write"] == [403, 403]
    for token in ("hf_bad", None):
        assert told[token]["create"] == [401] * 4 and told[token]["write"] == [401, 401]
    assert [told[token]["who"] for token in told] == [200, 200, 401, None]  # without one the client does not ask
    assert 'namespace "other"' in told["hf_write"]["message"] and "Invalid credentials" in told["hf_bad"]["message"]


def test_own_private_and_gated_models_are_open(hub, client):
    code = """
api.create_repo("user/secret", private=True)
report([api.model_info("user/secret").private, pathlib.Path(h.hf_hub_download("user/closed", "a")).read_text()])
"""
    hub.push("user/closed", {"a": b"1"})
    hub.gate("user/closed")
    assert client(code).value == [True, "1"]
    assert "user/secret" in hub.private


def test_model_cards(hub, client):
    """A card that the Hub would refuse never gets into a commit."""
    results = "model-index:\n- name: m\n  results:\n  - task: {type: t}\n    dataset: {name: d, type: d}\n    metrics: "
    texts = [
        f"license: mit\n{results}[{{type: accuracy, value: 1}}]",
        f"{results}[{{value: 1}}]",
        "license: My Own",
        "a: [",
    ]
    code = """
def commit(text):
    return api.create_commit(repo, [h.CommitOperationAdd("README.md", text.encode())], commit_message="m")
report([name(lambda: commit(text)) for text in texts] + [name(lambda: h.ModelCard(texts[0]).validate())])
"""
    hub.push("user/card", {})
    answers = client(code, repo="user/card", texts=[f"---\n{text}\n---\n" for text in texts]).value
    assert [answer[0] for answer in answers] == ["none", "ValueError", "ValueError", "ValueError", "none"]
    assert '"metrics.type" is required' in answers[1][2] and len(hub.commits("user/card")) == 3


def test_faults(hub, client):
    """Each fault befalls just the requests it is meant for, and is what the client sees."""
    file = "/resolve/main/folder/config.json"
    hub.fail(f"HEAD .*first{file}", status=429, message="Slow down", headers={"Retry-After": "7"})
    hub.fail(f"GET /user/fault{file}", status=503, times=2)
    hub.fail(f"HEAD .*gone{file}", drop=True, times=math.inf)
    hub.fail(f"GET /user/silent{file}", stall=0.1)
    hub.fail(f"GET /user/silent{file}", stall=60, cut=2)
    hub.fail("POST /api/repos/create", status=403, code="GatedRepo", message="No")
    code = """
import httpx2
def get(method="GET", repo="user/fault", file="folder/config.json", **headers):
    with httpx2.Client(timeout=1) as session:
        answer = session.request(method, f"{h.constants.ENDPOINT}/{repo}/resolve/main/{file}", headers=headers)
        return [answer.status_code, answer.text, answer.headers.get("Retry-After")]
limited = get("HEAD", "user/first")
unavailable = [get()[0] for _ in range(3)]
silent = [get(repo="user/silent")[0], *(name(lambda: get(repo="user/silent"))[0] for _ in range(2))]
dropped = [name(lambda: get("HEAD", "user/gone"))[0] for _ in range(3)]
report([limited, unavailable, silent, dropped, name(lambda: api.create_repo("user/x"))[:2], get(range="bytes=1-3")])
"""
    for repo in ("user/fault", "user/first", "user/gone", "user/silent"):
        hub.push(repo, {"folder/config.json": b"0123456789"})
    result = client(code)
    assert result.error is None, result.stderr
    limited, unavailable, silent, dropped, create, part = result.value
    assert limited == [429, "", "7"] and unavailable == [503, 503, 200]
    assert silent == [200, "ReadTimeout", "none"]
    assert dropped == ["RemoteProtocolError"] * 3 and create == ["GatedRepoError", 403]
    assert part[:2] == [206, "123"] and not hub.exists("user/x")
    assert [fault.times for fault in hub.faults] == [0, 0, math.inf, 0, 0, 0]
    assert [request.status for request in hub.log if "gone" in request.path] == [0, 0, 0]


def test_bodies_cut_short_and_damaged(hub, client):
    """The client asks again for a body cut short; a damaged one of the right length it takes for good."""
    hub.fail("GET /lfs/", cut=1_000_000)
    download = "report(digests(h.snapshot_download('user/model', local_dir=folder)))"
    whole = client(READ + download, folder="whole")
    assert whole.value == whole.value | digests(hub.files("user/model"))
    assert [request.status for request in hub.log if request.origin == "storage"] == [200, 200]

    hub.fail("GET /lfs/", corrupt=True)
    code = """
path = pathlib.Path(h.hf_hub_download("user/model", "model.weights.h5", local_dir="damaged"))
report([path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()])
"""
    size, digest = client(code).value
    assert size == len(WEIGHTS) and digest != hashlib.sha256(WEIGHTS).hexdigest()


def test_lost_answer(hub, client):
    """The commit is made, and the client does not get to know."""
    sha = hub.push("user/lost", {"a": b"1"})
    hub.fail("POST .*/commit/", after=True)
    code = "api.create_commit('user/lost', [h.CommitOperationAdd('b', b'2')], commit_message='m')"
    result = client(code)
    assert result.error[0] == "RemoteProtocolError" and result.returncode == 1
    assert hub.commits("user/lost")[1] == sha and hub.files("user/lost")["b"] == b"2"
    assert [request.status for request in hub.log if "/commit/" in request.path] == [0]


def test_down_and_up(tmp_path):
    code = IMPORTS + TRIES + "report(name(lambda: h.create_repo('user/new'))[0])"
    with HubServer(tmp_path / "hub", xet=False) as hub:
        environment = hub.environment(tmp_path / "home")
        assert environment["HF_HUB_DISABLE_XET"] == "1"
        hub.down()
        assert run(code, environment).value == "ConnectError" and not hub.log
        hub.up()
        assert run(code, environment).value == "none" and hub.exists("user/new")


def test_wrong_answers_are_noticed(tmp_path, monkeypatch):
    """A server that serves another file's bytes, or does not know a request, fails the test that uses it."""
    code = IMPORTS + READ + "report(digests(h.snapshot_download('user/model', allow_patterns=['a', 'b'])))"
    with HubServer(tmp_path / "hub") as hub:
        hub.push("user/model", {"a": b"1", "b": b"2"})
        right = digests(hub.files("user/model"))
        read = hub.read
        monkeypatch.setattr(hub, "read", lambda repo, row: b"!" if row["path"] == "a" else read(repo, row))
        value = run(code, hub.environment(tmp_path / "home")).value
        assert value["a"] != right["a"] and value["b"] == right["b"]
    unknown = pytest.raises(AssertionError, match="GET /api/models/user/model/discussions")
    with unknown, HubServer(tmp_path / "another") as hub:
        hub.push("user/model", {})
        run(IMPORTS + "list(api.get_repo_discussions('user/model'))", hub.environment(tmp_path / "home"))


def test_storage_holds_what_its_names_say(hub, client):
    """Bytes of another digest are refused, and so is a commit of a large file that was never sent."""
    code = """
import httpx2
wrong = httpx2.put(f"{storage}/lfs/{'0' * 64}", content=b"x").status_code
header, file = {"summary": "m"}, {"path": "a.h5", "algo": "sha256", "oid": "0" * 64, "size": 1}
lines = [json.dumps({"key": key, "value": value}) for key, value in (("header", header), ("lfsFile", file))]
token = {"Authorization": "Bearer hf_write"}
answer = httpx2.post(f"{url}/api/models/user/model/commit/main", content="\\n".join(lines), headers=token)
report([wrong, answer.status_code, answer.json()["error"], httpx2.get(f"{url}/lfs/{digest}").status_code])
"""
    sha, digest = hub.head("user/model"), hashlib.sha256(WEIGHTS).hexdigest()
    result = client("import json\n" + code, url=hub.url, storage=hub.storage, digest=digest)
    assert result.error is None, result.stderr
    wrong, status, message, elsewhere = result.value
    assert (wrong, status, elsewhere) == (400, 400, 501) and "does not exist: a.h5" in message
    assert hub.head("user/model") == sha and not hub.has_lfs("0" * 64)
    assert "GET /lfs/" in hub.failures.pop()


def test_clients_have_an_environment_of_their_own(hub, tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "KERAS_ISSL_OFFLINE", "HTTP_PROXY", "PYTHONWARNINGS"):
        monkeypatch.setenv(name, "ours")
    code = "import os, sys; print('out'); report([dict(os.environ), sorted(sys.modules)]); start(); raise KeyError('k')"
    result = run(code, hub.environment(tmp_path / "home", token=None, backend="torch"))
    environment, modules = result.value
    assert "ours" not in environment.values() and "HF_TOKEN" not in environment
    assert environment["HF_ENDPOINT"] == hub.url and environment["KERAS_BACKEND"] == "torch"
    assert environment["HF_HOME"].startswith(str(tmp_path)) and environment["KERAS_ISSL_HOME"].startswith(str(tmp_path))
    assert not {"keras", "huggingface_hub", "numpy"} & set(modules)
    assert result.error[:2] == ("KeyError", "'k'") and 0 <= result.error[2] < 60 and "LookupError" in result.kinds
    assert (result.returncode, result.stdout) == (1, "out\n") and "KeyError" in result.stderr
    assert run("import sys; report(1); sys.exit(3)", {}) == run("report(1); raise SystemExit(3)", {})
