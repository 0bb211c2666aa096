"""Loading from the Hugging Face Hub, against a stand-in server: all else is real, and each client a process of its own.

What reaches the server is in its log, and what the tests hold the library against.
"""

import hashlib
import json
import os
import re
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hub_cases
import pytest
from hub_cases import CONFIG, METADATA, WEIGHTS, Clients, Stage, blobs, variant
from hub_client import run
from hub_server import HubServer

pytestmark = pytest.mark.backend_independent
NUMBER = 1000  # in the weights of the first preset; each gets another, and thereby another address in the storage


@pytest.fixture(scope="module")
def clients():
    return Clients()


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with HubServer(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(scope="module")
def files(hub, clients, tmp_path_factory):
    """A preset with heads and recorded features."""
    folder = tmp_path_factory.mktemp("made")
    outcome = clients.run(hub.environment(folder / "home"), hub_cases.MAKE.format(folder=str(folder / "preset")))
    assert not outcome.kinds, outcome
    return hub_cases.read_folder(folder / "preset")


@pytest.fixture(scope="module")
def numbers():
    return iter(range(NUMBER, 9 * NUMBER))


@pytest.fixture
def stage(request, hub, clients, files, numbers, tmp_path):
    """An empty repository of the test's own, and a client's home. At the end, its cache must be sound."""
    name = re.sub("[^a-z0-9]+", "-", request.node.name.lower())
    stage = make_stage(hub, clients, files, numbers, f"org/{name}", tmp_path)
    yield stage
    assert not damaged(stage)


def make_stage(hub, clients, files, numbers, repo, home):
    number = next(numbers)
    stage = Stage(hub, clients, variant(files, number), repo.rstrip("-"), home / "home")
    stage.number = number
    return stage


def damaged(stage):
    """The names of files in the client's cache whose content is not what they are named by."""
    found = []
    for path in stage.cache.glob("models--*/blobs/*"):
        content = path.read_bytes()
        names = (hashlib.sha256(content).hexdigest(), hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest())
        if path.suffix != ".incomplete" and path.name not in names:
            found.append(path.name)
    return found


def number(outcome):
    """What the client found in the weights that it loaded."""
    assert not outcome.kinds, outcome
    return outcome.value


def load(address, **options):
    """The call that loads a preset."""
    options = "".join(f", {key}={value!r}" for key, value in options.items())
    return f"number(keras_issl.from_preset({address!r}{options}))"


class Log:
    """The requests that come to the server within a `with` block."""

    def __init__(self, hub):
        self.hub, self.start = hub, len(hub.log)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.requests = self.hub.log[self.start :]

    @property
    def lines(self):
        return [f"{request.method} {request.path}" for request in self.requests]

    @property
    def sent(self):
        """Of the files that were sent the names in the repository, or the paths in the storage."""
        sent = [request for request in self.requests if request.method == "GET" and request.status in (200, 206)]
        return {
            each.path if each.origin == "storage" else each.path.split("/resolve/")[-1].split("/", 1)[-1]
            for each in sent
        }

    @property
    def stored(self):
        """What was asked of the storage."""
        return [request for request in self.requests if request.origin == "storage"]


# ---------------------------------------------------------------------- what goes wrong
@pytest.mark.parametrize("group", sorted(hub_cases.GROUPS))
def test_every_failure_is_one_clear_message(group, hub, clients, files, numbers, tmp_path):
    def play(case):
        stage, outcome = hub_cases.play(case, hub, clients, variant(files, next(numbers)), tmp_path)
        wrong = hub_cases.misbehaviour(case, stage, outcome, patient=True)
        return wrong and {case.situation: (wrong, outcome.error, outcome.message)}

    cases = [case for case in hub_cases.GROUPS[group] if not case.namespaces or hub_cases.has_namespaces()]
    with ThreadPoolExecutor(6) as threads:
        assert [wrong for wrong in threads.map(play, cases) if wrong] == []


def test_what_is_no_address_is_asked_of_nobody(stage):
    calls = {load(address): says for address, says in hub_cases.WRONG.items()}
    calls |= {
        load("hf://org/a@v1", revision="v2"): "given once",
        load("hf://org/a", revision="../x"): "branch, a tag or a commit",
        load("hf://org/a", revision=7): "branch, a tag or a commit",
        load(str(stage.write()), revision="v1"): "`revision` is for presets on the Hub",
    }
    with Log(stage.hub) as log:
        outcomes = stage.clients.run(stage.environment, *calls)
    for (call, says), outcome in zip(calls.items(), outcomes, strict=True):
        assert "ValueError" in outcome.kinds and says in outcome.message and "Received" in outcome.message, (
            call,
            outcome,
        )
    assert log.lines == []


# ---------------------------------------------------------------------- round trips
@pytest.mark.parametrize("way", ["xet", "http"])
def test_round_trip(way, stage, files):
    stage.files = files
    stage.push_by_xet()
    if way == "http":
        stage.environment["HF_HUB_DISABLE_XET"] = "1"
    here, there = str(stage.write()), stage.address
    with Log(stage.hub) as log:
        outcomes = stage.clients.run(
            stage.environment,
            f"same(keras_issl.from_preset({there!r}, verify=True), keras_issl.from_preset({here!r}))",
            f"same(keras_issl.load_objective({there!r}), keras_issl.load_objective({here!r}))",
            f"keras_issl.zoo.read_metadata({there!r}) == keras_issl.zoo.read_metadata({here!r})",
        )
    assert outcomes == [outcome._replace(value=True, kinds=(), warnings=()) for outcome in outcomes]
    asked_of_xet = [line for line in log.lines if "/xet-read-token/" in line]
    assert (bool(asked_of_xet), bool(log.stored)) == ((True, False) if way == "xet" else (False, True))


def test_revisions(stage):
    def push(number, **options):
        return stage.hub.push(stage.repo, variant(stage.files, number), **options)

    first, second = push(1), push(2)
    third = push(3, branch="feature/x")
    stage.hub.tag(stage.repo, "v1.0", first)
    stage.hub.tag(stage.repo, "releases/2", second)
    wanted = {
        None: 2,
        "main": 2,
        "v1.0": 1,
        "releases/2": 2,
        "feature/x": 3,
        first: 1,
        second: 2,
        third: 3,
        first[:10]: 1,
    }
    calls = {load(stage.address, revision=revision): value for revision, value in wanted.items()}
    calls |= {load(f"{stage.address}@{revision}"): value for revision, value in wanted.items() if revision}
    calls[load(f"{stage.address}@main", revision="v1.0")] = None
    outcomes = dict(zip(calls, stage.clients.run(stage.environment, *calls), strict=True))
    assert {call: outcome.value for call, outcome in outcomes.items()} == calls
    both = outcomes.popitem()[1]
    assert both.error == "ValueError" and "'v1.0'" in both.message
    assert not any(outcome.kinds or outcome.warnings for outcome in outcomes.values())


def test_what_moves_is_followed_and_what_is_pinned_stays(stage):
    first = stage.push()
    pinned, own = f"{stage.address}@{first}", stage.number
    with stage.clients.start(stage.environment) as client:
        assert number(client(load(stage.address))) == own
        stage.push(variant(stage.files, 7))
        assert number(client(load(stage.address))) == 7
        with Log(stage.hub) as log:
            assert number(client(load(pinned))) == own
            assert client(f"keras_issl.zoo.pin({pinned!r})").value == pinned
        assert log.lines == []
        assert client(f"keras_issl.zoo.pin({stage.address!r})").value == f"{stage.address}@{stage.hub.head(stage.repo)}"
    stage.push(variant(stage.files, 8))
    outcomes = stage.clients.run(stage.environment, load(pinned), load(stage.address))  # a process that knows nothing
    assert [number(outcome) for outcome in outcomes] == [own, 8]


def test_cached_commit_takes_no_request_and_cached_branch_one(stage):
    address = f"{stage.address}@{stage.push()}"
    for each in (address, stage.address):
        number(stage.load(each))
        for _ in range(2):
            with Log(stage.hub) as log:
                number(stage.load(each))
            assert log.lines == ([] if each == address else [f"HEAD /{stage.repo}/resolve/main/{METADATA}"])


def test_only_what_is_needed_is_fetched(stage):
    large = {name: os.urandom(300_000) for name in ("pytorch_model.bin", "model.safetensors", "extra/model.weights.h5")}
    stage.push(stage.files | large | {"modeling.py": b"raise SystemExit", ".gitignore": b"*"})
    calls = {  # what each needs beyond what those before it have fetched
        f"keras_issl.zoo.read_metadata({stage.address!r})": [METADATA],
        load(stage.address, load_weights=False): [CONFIG],
        f"keras_issl.load_objective({stage.address!r}) and 1": ["objective.json", "objective.weights.h5"],
        load(stage.address): [WEIGHTS],
        f"keras_issl.zoo.loading.preset_folder({stage.address!r}, files=['golden.npz']) and 1": ["golden.npz"],
        f"keras_issl.from_preset({stage.address!r}).output_shape": [],
    }
    for call, names in calls.items():
        with Log(stage.hub) as log:
            outcome = stage.clients.run(stage.environment, call)
        assert not outcome.kinds, outcome
        assert log.sent == {f"/lfs/{sha256(stage, name)}" if is_large(name) else name for name in names}, call
        assert {line.split("/")[-1] for line in log.lines if line.startswith("HEAD")} == {METADATA, *names}
    assert {path.name for path in stage.cache.glob("models--*/snapshots/*/**/*")} == set(stage.files) - {"README.md"}
    outcome = stage.load(verify=True)  # the variant's weights are not those of the recorded features
    assert outcome.error == "ValueError" and "features that were recorded" in outcome.message


def is_large(name):
    return not name.endswith((".json", ".md"))


def sha256(stage, name):
    return hashlib.sha256(stage.files[name]).hexdigest()


class Pushing(list):
    """A log that lets somebody publish a new version whenever a request for the repository comes."""

    def __init__(self, stage):
        self.stage, self.numbers = stage, iter(range(100, 500))

    def append(self, request):
        super().append(request)
        if self.stage.repo in request.path:
            number = next(self.numbers)
            files = variant(self.stage.files, number)
            about = json.loads(files[METADATA]) | {"description": f"version {number}"}
            self.stage.push(files | {METADATA: json.dumps(about).encode()})


def test_files_of_two_commits_are_never_mixed(stage):
    stage.push()
    log, stage.hub.log = stage.hub.log, Pushing(stage)
    try:
        outcomes = stage.clients.run(
            stage.environment,
            load(stage.address),
            load(stage.address, revision="main"),
            f"keras_issl.load_objective({stage.address!r}) and 1",
        )
    finally:
        stage.hub.log = log
    assert not any(outcome.kinds for outcome in outcomes), outcomes
    assert len(stage.hub.commits(stage.repo)) > 12
    snapshots = list(stage.cache.glob("models--*/snapshots/*"))
    assert len(snapshots) == 3  # one of each call
    for folder in snapshots:
        published = stage.hub.files(stage.repo, folder.name)
        assert all(path.read_bytes() == published[path.name] for path in folder.iterdir())
    assert len({json.loads((folder / METADATA).read_text())["description"] for folder in snapshots}) == 3


def test_renamed_repository_is_found(stage):
    commit = stage.push()
    old = f"{stage.repo}-before"
    for revision in ("main", commit):
        for name in stage.files:
            location = f"/{stage.repo}/resolve/{revision}/{name}"
            stage.fail(
                f"(HEAD|GET) /{old}/resolve/{revision}/{re.escape(name)}$", status=307, headers={"Location": location}
            )
    assert number(stage.load(f"hf://{old}")) == stage.number


def test_a_token_that_was_saved_wrongly_is_not_printed(stage):
    stage.push()
    path = Path(stage.environment["HF_HOME"]) / "token"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("hf_SecretSecret".encode("utf-16-le"))  # as some shells redirect into a file
    environment = {name: value for name, value in stage.environment.items() if name != "HF_TOKEN"}
    for call in (load(stage.address), f"keras_issl.push_to_hub({str(stage.write())!r}, {stage.address!r})"):
        outcome = stage.clients.run(environment, call)
        assert outcome.error == "PermissionError" and "characters that no token has" in outcome.message, outcome
        assert "S" not in outcome.message.split("characters")[0] and "\\x00" not in outcome.message


def test_token_goes_to_the_hub_and_never_to_the_storage(stage):
    stage.push()
    stage.hub.hide(stage.repo)
    stage.environment["HF_TOKEN"] = "hf_read"
    with Log(stage.hub) as log:
        assert number(stage.load()) == stage.number
    assert {request.headers["Authorization"] for request in log.requests if request.origin == "api"} == {
        "Bearer hf_read"
    }
    assert log.stored and all(request.headers["Authorization"] is None for request in log.stored)
    del stage.environment["HF_TOKEN"]
    with Log(stage.hub) as log:
        assert "does not exist or is private" in stage.load().message
        assert number(stage.load(f"{stage.address}@{stage.hub.head(stage.repo)}")) == stage.number  # it is on the disk
    assert all(request.headers["Authorization"] is None for request in log.requests)


# ---------------------------------------------------------------------- offline, and a server that is down
@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_from_the_cache(variable, stage):
    commit = stage.push()
    stage.hub.tag(stage.repo, "v1", commit)
    calls = [load(each) for each in (stage.address, f"{stage.address}@v1", f"{stage.address}@{commit}")]
    calls += [load(stage.address, verify=False), f"keras_issl.load_objective({stage.address!r}) and 1"]
    stage.clients.run(stage.environment, *calls)
    with Log(stage.hub) as log:
        outcomes = stage.clients.run(stage.environment | {variable: "1"}, *calls)
    assert [number(outcome) for outcome in outcomes] == [stage.number] * 4 + [1]
    assert log.lines == []
    if variable == "HF_HUB_OFFLINE":
        assert not any(outcome.warnings for outcome in outcomes)


def test_a_glance_at_a_newer_commit_does_not_cost_the_one_that_is_there(stage):
    stage.push()
    stage.clients.run(stage.environment, load(stage.address))
    stage.push(variant(stage.files, 7))
    glance = f"keras_issl.zoo.read_metadata({stage.address!r}) and 1"
    stage.clients.run(stage.environment, glance)
    outcome = stage.clients.run(stage.environment | {"HF_HUB_OFFLINE": "1"}, load(stage.address))
    assert number(outcome) == stage.number


def test_without_the_server_a_branch_is_what_it_was_and_this_is_said(hub, clients, files, numbers, tmp_path):
    def play(name):
        stage = make_stage(hub, clients, files, numbers, f"org/cached-{name}", tmp_path / name)
        try:
            stage.pinned = f"{stage.address}@{stage.push()}"
            number(stage.load())
            ways[name](stage)
            moving, pinned = clients.run(stage.environment, load(stage.address), load(stage.pinned))
        finally:
            stage.close()
        assert number(moving) == number(pinned) == stage.number
        assert len(moving.warnings) == 1 and not pinned.warnings
        assert stage.pinned in moving.warnings[0] and "cache" in moving.warnings[0]
        assert moving.seconds <= 10 and pinned.seconds <= 10

    ways = {
        "refused": hub_cases._refused,
        "silent": hub_cases._silent,
        "swallowed": hub_cases._swallowed,
        "busy": lambda stage: stage.fail("head", status=503),
        "limited": lambda stage: stage.fail("head", status=429),
        "dropped": lambda stage: stage.fail("head", drop=True),
    }
    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(play, ways)) == [None] * len(ways)


def test_a_revision_that_was_deleted_is_not_taken_from_the_cache(stage):
    stage.push()
    stage.hub.push(stage.repo, {}, branch="gone")
    assert number(stage.load(f"{stage.address}@gone")) == stage.number
    stage.hub.git(stage.repo, "branch", "-D", "gone")
    assert "no revision 'gone'" in stage.load(f"{stage.address}@gone").message


# ---------------------------------------------------------------------- trouble that passes
PASSING = {  # what befalls the first request
    "dropped": ("head", {"drop": True}),
    "503": ("head", {"status": 503}),
    "limited": ("head", {"status": 429, "headers": {"Retry-After": "1"}}),
    "file-503": ("file", {"status": 503}),
    "file-dropped": ("file", {"drop": True}),
    "file-cut": ("file", {"cut": 100}),
    "storage-503": ("weights", {"status": 503}),
    "storage-429": ("weights", {"status": 429, "headers": {"Retry-After": "1"}}),
    "storage-dropped": ("weights", {"drop": True}),
    "storage-cut": ("weights", {"cut": 20_000}),
    "storage-damaged": ("weights", {"corrupt": True}),
    "file-damaged": ("file", {"corrupt": True}),
}


def test_trouble_that_passes_is_not_noticed(hub, clients, files, numbers, tmp_path):
    def play(name):
        stage = make_stage(hub, clients, files, numbers, f"org/passing-{name}", tmp_path / name)
        stage.push()
        what, fault = PASSING[name]
        fault = stage.fail(what, times=1, **fault)
        outcome = stage.load()
        assert number(outcome) == stage.number and not outcome.warnings, name
        assert fault.times == 0 and not damaged(stage)
        return stage

    with ThreadPoolExecutor(6) as threads:
        stages = dict(zip(PASSING, threads.map(play, PASSING), strict=True))
    cut = [request for request in hub.log if request.path == f"/lfs/{stages['storage-cut'].oid}"]
    assert len(cut) == 2


# ---------------------------------------------------------------------- damage
LINKS = {"links": {}, "no links": {"HF_HUB_DISABLE_SYMLINKS": "1"}}  # as on file systems that have none


@pytest.mark.parametrize("links", LINKS)
@pytest.mark.parametrize("name", [WEIGHTS, METADATA, CONFIG])
def test_bytes_that_arrive_damaged_are_neither_loaded_nor_kept(name, links, stage):
    stage.environment |= LINKS[links]
    stage.push()
    path = "/lfs/" + stage.oid if name == WEIGHTS else f"/{stage.repo}/resolve/[^/]*/{name}"
    fault = stage.fail(f"^GET {path}", corrupt=True)
    with Log(stage.hub) as log:
        outcome = stage.load()
    assert outcome.error == "ValueError" and f"{name} of {stage.address}" in outcome.message
    assert "nothing was loaded" in outcome.message
    assert len([line for line in log.lines if re.match(f"GET {path}", line)]) == 2
    assert not damaged(stage) and not blobs(stage, name)
    fault.times = 0
    assert number(stage.load()) == stage.number


@pytest.mark.parametrize(
    ("name", "way"),
    [(WEIGHTS, "xet"), (WEIGHTS, "links"), (METADATA, "links"), (CONFIG, "links"), (WEIGHTS, "no links")],
)
def test_damage_on_the_disk_is_healed_or_refused(name, way, stage):
    stage.environment |= LINKS.get(way, {})
    stage.push_by_xet() if way == "xet" else stage.push()
    pinned = f"{stage.address}@{stage.hub.head(stage.repo)}"
    assert number(stage.load()) == stage.number

    def damage(change):
        (path,) = blobs(stage, name)
        path.write_bytes(change(path.read_bytes()))

    def flip(content):
        return content[:100] + bytes([content[100] ^ 1]) + content[101:]

    for change in (flip, lambda content: b"", lambda content: content[:-1]):
        damage(change)
        offline = stage.clients.run(stage.environment | {"HF_HUB_OFFLINE": "1"}, load(stage.address), load(pinned))
        for outcome in offline:
            assert outcome.error == "ConnectionError" and name in outcome.message and pinned in outcome.message, outcome
        with Log(stage.hub) as log:
            assert number(stage.load(pinned)) == stage.number
        assert len(log.lines) <= 4 and not damaged(stage)


def test_damage_in_another_commit_of_the_same_file_is_healed(stage):
    stage.push()
    number(stage.load())
    for path in blobs(stage, WEIGHTS):
        path.write_bytes(path.read_bytes()[::-1])
    stage.push({"README.md": b"A new card."})  # a new commit, whose weights the cache believes that it has
    assert number(stage.load()) == stage.number


# ---------------------------------------------------------------------- processes that die, and that meet
def test_killed_while_the_weights_come(stage):
    commit = stage.push()
    fault = stage.fail("weights", times=1, cut=20_000, stall=60)
    with stage.clients.start(stage.environment) as client:
        client.send(load(stage.address))
        wait_for(lambda: fault.times == 0 and list(stage.cache.rglob("*.incomplete")), "the download to begin")
        client.kill()
    for address in (stage.address, f"{stage.address}@{commit}"):
        outcome = stage.clients.run(stage.environment | {"HF_HUB_OFFLINE": "1"}, load(address))
        assert outcome.error == "ConnectionError" and WEIGHTS in outcome.message, outcome
    assert number(stage.load()) == stage.number


def wait_for(condition, what, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.01)


def test_processes_that_load_into_one_cache_at_the_same_time(stage):
    stage.push()  # over HTTP: hf_xet's store on the disk, which the stand-in offers, is for one process at a time
    for what in ("file", "weights"):
        stage.fail(what, stall=0.2)  # so that they meet
    running = [stage.clients.start(stage.environment) for _ in range(4)]
    try:
        for client in running:
            client.send(load(stage.address))
        outcomes = [client.receive() for client in running]
    finally:
        for client in running:
            client.kill()
    assert [number(outcome) for outcome in outcomes] == [stage.number] * 4


def test_after_a_full_disk_the_same_call_succeeds(stage):
    stage.push()
    hub_cases._small_files(stage)
    with Log(stage.hub) as log:
        outcome = stage.clients.run(stage.environment, load(stage.address), before=stage.before)
    assert "OSError" in outcome.kinds and str(stage.cache) in outcome.message
    assert len(log.stored) == 1  # there is no point in trying it again
    assert not damaged(stage)
    assert number(stage.load()) == stage.number


@pytest.mark.skipif(not hub_cases.has_namespaces(), reason="a read-only disk takes user namespaces, which are off here")
def test_read_only_cache_is_read(stage):
    commit = stage.push()
    number(stage.load())
    calls = [load(stage.address), load(f"{stage.address}@{commit}"), "os.mkdir(os.environ['HF_HOME'] + '/new')"]
    outcomes = stage.clients.run(stage.environment, *calls, before=f"mount({stage.environment['HF_HOME']!r})")
    assert [outcome.value for outcome in outcomes] == [stage.number, stage.number, None]
    assert not outcomes[0].warnings and outcomes[2].kinds


# ---------------------------------------------------------------------- the real Hub
@pytest.mark.skipif(
    os.environ.get("KERAS_ISSL_LIVE_TEST") != "1" or not os.environ.get("HF_TOKEN"),
    reason="it publishes on huggingface.co: set HF_TOKEN, with the role `write`, and KERAS_ISSL_LIVE_TEST=1",
)
def test_the_real_hub(tmp_path):
    name = f"keras-issl-test-{secrets.token_hex(4)}"
    code = f"""
        import keras_issl, huggingface_hub, shutil
        
        api = huggingface_hub.HfApi()
        repo = api.whoami()["name"] + "/{name}"
        encoder = keras_issl.encoders.ResNet(blocks=(1,), width=8, image_size=12, stem="cifar")
        folder = keras_issl.save_preset(encoder, "{tmp_path}/preset")
        try:
            address = keras_issl.push_to_hub(folder, f"hf://{{repo}}", private=True, tag="v1")
            loaded = [keras_issl.from_preset(each, verify=True) for each in (f"hf://{{repo}}@v1", address)]
            report([address, keras_issl.zoo.pin(f"hf://{{repo}}"), len(loaded)])
        finally:
            api.delete_repo(repo, missing_ok=True)
    """
    kept = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "HF_ENDPOINT")}
    result = run(code, kept | {"HF_HOME": str(tmp_path / "home"), "KERAS_BACKEND": "jax"}, timeout=600)
    assert result.error is None, result.error
    assert result.value[0] == result.value[1] and result.value[2] == 2
