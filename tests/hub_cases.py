"""What goes wrong with the Hugging Face Hub: each situation, the call, and what its user must be told.

`test_hub.py` holds the library against this list and `tools/hub_failures.py` prints it. All is real but the server:
huggingface_hub, hf_xet and the cache on the disk, in processes of their own, as both read their settings when they are
imported. The processes are forks of one that has imported the library and nothing of the Hub, which takes a fifth of a
second each instead of three.
"""

import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import h5py

WEIGHTS, METADATA, CONFIG = "model.weights.h5", "metadata.json", "config.json"
ALWAYS = 10**6
XET_STORE = threading.RLock()  # one process at a time opens a store on the disk, such as the stand-in's
MAKE = (  # the preset that all others are variants of
    "keras_issl.save_preset(keras_issl.encoders.ResNet(blocks=(1,), width=8, image_size=12, stem='cifar'), "
    "{folder!r}, objective=keras_issl.objectives.SimCLR(output_dim=4, hidden=(4,)))"
)


# ---------------------------------------------------------------------- clients
class Outcome(NamedTuple):
    """What a call in a client gave, or raised."""

    value: Any = None
    kinds: tuple = ()  # names of the exception's class and of those that it is a kind of
    message: str = ""
    seconds: float = 0.0  # of the call alone, without the imports
    warnings: tuple = ()

    @property
    def error(self):
        return self.kinds[0] if self.kinds else None


class Clients:
    """Makes processes that use the library, each with an environment and caches of its own."""

    def __init__(self):
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["keras_issl"])
        before = dict(os.environ)
        os.environ |= {"KERAS_BACKEND": "jax", "OPENBLAS_NUM_THREADS": "1"}  # for the process that is forked later
        try:
            process = self.context.Process(target=int)
            process.start()
            process.join()
        finally:
            os.environ.clear()
            os.environ |= before

    def start(self, environment, before=""):
        """A `Client` that has run the statements `before`."""
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=_client, args=(environment, before, theirs), daemon=True)
        process.start()
        theirs.close()
        return Client(process, ours)

    def run(self, environment, *calls, before="", timeout=120):
        """The outcomes of `calls`, one after the other in one new process; of one call its outcome."""
        with self.start(environment, before) as client:
            outcomes = [client(call, timeout) for call in calls]
        return outcomes if len(calls) > 1 else outcomes[0]


class Client:
    """A process that evaluates calls, until its context ends."""

    def __init__(self, process, connection):
        self.process, self.connection = process, connection

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.kill()

    def __call__(self, call, timeout=120):
        """The `Outcome` of a call."""
        self.send(call)
        return self.receive(timeout)

    def send(self, call):
        """Begins a call."""
        self.connection.send(call)

    def receive(self, timeout=120):
        """The `Outcome` of the call that was begun."""
        if not self.connection.poll(timeout):
            raise TimeoutError(f"the client did not answer within {timeout} seconds")
        try:
            return self.connection.recv()
        except EOFError:
            self.process.join()
            raise RuntimeError(f"the client ended with exit code {self.process.exitcode}") from None

    def kill(self):
        """Ends the process at once, by SIGKILL."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def _client(environment, before, connection):
    """What runs in a client."""
    import sys
    import warnings

    os.environ.clear()
    os.environ.update(environment)
    assert "huggingface_hub.constants" not in sys.modules, "the settings of the Hub have been read already"
    sys.modules["tensorflow"] = None  # as where only JAX is installed: Keras would look into it, for two seconds
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)  # progress bars
    os.dup2(sink, 2)
    import keras_issl

    def number(model):
        """The number that `variant` wrote into the weights."""
        return round(max(float(weight.numpy().max()) for weight in model.weights))

    def same(one, other):
        """Whether two models have the same weights."""
        pairs = zip(one.weights, other.weights, strict=True)
        return all((a.numpy() == b.numpy()).all() for a, b in pairs)

    names = {"keras_issl": keras_issl, "os": os, "number": number, "same": same, "mount": _mount}
    exec(before, names)
    while True:
        try:
            call = connection.recv()
        except EOFError:
            return
        value, kinds, message, began = None, (), "", time.monotonic()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.simplefilter("ignore", DeprecationWarning)  # which are between Keras and h5py
            try:
                value = eval(call, names)
            except Exception as error:
                kinds, message = tuple(kind.__name__ for kind in type(error).__mro__), str(error)
        seconds = time.monotonic() - began
        connection.send(Outcome(value, kinds, message, seconds, tuple(str(entry.message) for entry in caught)))


def _mount(folder, size=None):
    """In a client: a small disk on `folder`, or the folder itself as it is but read-only, for this process alone.

    This takes user namespaces; `OSError` where the system does not give them.
    """
    import ctypes

    libc, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()

    def check(result):
        if result:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    check(libc.unshare(0x10000000 | 0x00020000))  # CLONE_NEWUSER | CLONE_NEWNS
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    path = os.fsencode(folder)
    if size is not None:
        check(libc.mount(b"tmpfs", path, b"tmpfs", 0, f"size={size}".encode()))
        return
    check(libc.mount(path, path, None, 4096 | 16384, None))  # MS_BIND | MS_REC
    check(libc.mount(None, path, None, 32 | 4096 | 1, None))  # MS_REMOUNT | MS_BIND | MS_RDONLY


# ---------------------------------------------------------------------- presets
def read_folder(folder):
    """The files of a preset folder, a dict from names to bytes."""
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def variant(files, number):
    """The same preset with other weights, in which `number` is the largest."""
    content = io.BytesIO(files[WEIGHTS])
    with h5py.File(content, "r+") as file:
        arrays = []
        file.visititems(lambda name, item: arrays.append(item) if isinstance(item, h5py.Dataset) else None)
        arrays[0][...] = number
    return recorded({**files, WEIGHTS: content.getvalue()})


def recorded(files):
    """The files, with a `metadata.json` that records them as they are."""
    about = json.loads(files[METADATA])
    about["files"] = {
        name: {"sha256": hashlib.sha256(files[name]).hexdigest(), "bytes": len(files[name])}
        for name in about["files"]
        if name in files
    }
    return {**files, METADATA: json.dumps(about).encode()}


# ---------------------------------------------------------------------- cases
@dataclass
class Stage:
    """Where a case plays: a repository, a preset in it, and the environment of a client that has seen nothing yet."""

    hub: Any
    clients: Clients
    files: dict
    repo: str
    home: Path
    environment: dict = field(default_factory=dict)
    address: str = ""
    before: str = ""
    open_sockets: list = field(default_factory=list)

    def __post_init__(self):
        self.environment = self.environment or self.hub.environment(self.home, token=None, xet=False)
        self.address = self.address or f"hf://{self.repo}"

    @property
    def cache(self):
        return Path(self.environment["HF_HOME"]) / "hub"

    @property
    def oid(self):
        """What the storage calls the weights."""
        return hashlib.sha256(self.files[WEIGHTS]).hexdigest()

    def push(self, files=None):
        """Publishes the preset, or other files, in the repository's `main`."""
        return self.hub.push(self.repo, self.files if files is None else files)

    def pin(self):
        """Makes the case about the commit that is now published."""
        self.address = f"hf://{self.repo}@{self.hub.head(self.repo)}"

    def write(self):
        """Writes the preset into a folder on the disk and returns its path."""
        folder = self.home / "preset"
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        return folder

    def push_by_xet(self):
        """Publishes the preset as clients do that use xet, and lets this one use it."""
        environment = self.hub.environment(self.home / "author")
        publish = f"api.create_repo(repo), api.upload_folder(repo_id=repo, folder_path={str(self.write())!r})"
        before = f"import huggingface_hub; api = huggingface_hub.HfApi(); repo = {self.repo!r}"
        with XET_STORE:
            outcome = self.clients.run(environment, publish, before=before)
        assert not outcome.kinds, outcome
        del self.environment["HF_HUB_DISABLE_XET"]

    def fail(self, what, times=ALWAYS, **fault):
        """A fault of requests for files of this repository, or of the weights in the storage."""
        match = {
            "head": f"^HEAD /{self.repo}/resolve/",
            "file": f"^GET /{self.repo}/resolve/",
            "weights": f"^GET /lfs/{self.oid}",
            "xet": f"^GET /api/models/{self.repo}/xet-read-token/",
            "commit": f"^POST /api/models/{self.repo}/commit/",
            "upload": f"^PUT /lfs/{self.oid}",
        }.get(what, what)
        return self.hub.fail(match, times, **fault)

    def load(self, address=None, **options):
        """Loads the preset beforehand, in a client with the same cache."""
        options = "".join(f", {key}={value!r}" for key, value in options.items())
        call = f"number(keras_issl.from_preset({address or self.address!r}{options}))"
        return self.clients.run(self.environment, call)

    def listen(self, backlog):
        """Address of a server that never answers."""
        listener = socket.create_server(("127.0.0.1", 0), backlog=backlog)
        self.open_sockets.append(listener)
        return listener.getsockname()

    def close(self):
        for each in self.open_sockets:
            each.close()


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    situation: str
    prepare: Callable  # of a `Stage`
    error: str  # the name of the exception's class, or of one that it is a kind of
    says: tuple = ()  # beside the address: regular expressions, found in the message
    call: str = "keras_issl.from_preset({address!r})"
    within: float = 60.0  # seconds of a quiet machine
    action: str = "load"
    quiet: bool = True  # whether no warning may come too
    namespaces: bool = False  # whether it takes a disk of its own
    opens_store: bool = False  # whether the call comes as far as to the xet store


NEVER = (  # jargon of the libraries below, and addresses that are of no use to a user
    "Traceback", "EntryNotFound", "HfHubHTTPError", "RepositoryNotFound", "httpx", "hf_xet", "RuntimeError", "errno",
    "/resolve/", "/api/", "/lfs/", "Request ID", "Root=", "force_download", "local_files_only", "has no config.json",
    "Error:", "CAS", "redb", "hf_write", "hf_read", "hf_wrong", "secret", "\n", "None", "  ",
)  # fmt: skip


def misbehaviour(case, stage, outcome, patient=False):
    """What is wrong with a case's outcome, a list of sentences; none if all is as it should be.

    With `patient` only those must come in time that are promised within ten seconds.
    """
    if not outcome.kinds:
        return [f"it should raise {case.error}, and gave {outcome.value!r}"]
    message, wrong = outcome.message, []
    if case.error not in outcome.kinds:
        wrong.append(f"it should raise {case.error}, not {outcome.error}")
    if not any(name in message for name in (stage.repo, str(stage.cache), str(stage.home / "preset"))):
        wrong.append(f"it names neither {stage.address} nor the folder")
    wrong += [f"it does not say {text!r}" for text in case.says if not re.search(text, message)]
    wrong += [f"it says {text!r}" for text in NEVER if text in message]
    endpoint = stage.environment["HF_ENDPOINT"]
    links = [link for link in re.findall(r"https?://\w[^\s,)]*", message) if not link.startswith(endpoint)]
    if links:
        wrong.append(f"it names {links}, of which the user knows nothing")
    if not 40 < len(message) < 700:
        wrong.append(f"it is {len(message)} characters long")
    if outcome.seconds > case.within and not (patient and case.within > 10):
        wrong.append(f"it takes {outcome.seconds:.1f} seconds, not {case.within:.0f}")
    if case.quiet and outcome.warnings:
        wrong.append(f"it warns: {outcome.warnings}")
    return wrong


def slug(case):
    """A name for a repository, from the situation."""
    return re.sub(r"[^a-z0-9]+", "-", f"{case.action} {case.situation}".lower()).strip("-")[:60].rstrip("-")


def play(case, hub, clients, files, folder):
    """Plays a case; returns its stage and its outcome."""
    name = slug(case)
    stage = Stage(hub, clients, files, f"org/{name}", Path(folder) / name)
    try:
        case.prepare(stage)
        folder = str(stage.write()) if "{folder" in case.call else None
        call = case.call.format(address=stage.address, folder=folder)
        with XET_STORE if case.opens_store else contextlib.nullcontext():
            return stage, clients.run(stage.environment, call, before=stage.before, timeout=300)
    finally:
        stage.close()


# ---------------------------------------------------------------------- no network
def _refused(stage):
    """Nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    stage.environment["HF_ENDPOINT"] = f"http://127.0.0.1:{port}"


def _unresolvable(stage):
    stage.environment["HF_ENDPOINT"] = "http://hub.invalid"


def _silent(stage):
    """The connection is made, and never a word comes."""
    host, port = stage.listen(16)
    stage.environment["HF_ENDPOINT"] = f"http://{host}:{port}"


def _swallowed(stage):
    """Packets vanish, as behind a firewall: no connection is made."""
    address = stage.listen(0)
    for _ in range(4):  # more than wait in the queue; the next are not answered
        waiting = socket.socket()
        waiting.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            waiting.connect(address)
        stage.open_sockets.append(waiting)
    stage.environment["HF_ENDPOINT"] = "http://{}:{}".format(*address)


def _no_tls(stage):
    stage.environment["HF_ENDPOINT"] = stage.hub.url.replace("http:", "https:")


def _proxy(stage):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    stage.environment |= {"HF_ENDPOINT": "http://hub.invalid", "HTTP_PROXY": f"http://me:secret@127.0.0.1:{port}"}


def _no_scheme(stage):
    stage.environment["HF_ENDPOINT"] = "hub.invalid"


def _no_store(stage):
    """The Hub answers, and the store that xet is sent to does not."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    stage.fail("xet", headers={"X-Xet-Cas-Url": f"http://127.0.0.1:{port}"})


def _then(*steps):
    def prepare(stage):
        for step in steps:
            step(stage)

    return prepare


def _pushed(stage):
    stage.push()


def _commit(stage):
    """A commit that is in no cache."""
    stage.push()
    stage.pin()


def _token(token):
    return lambda stage: stage.environment.update(HF_TOKEN=token)


def _fails(what, **fault):
    return lambda stage: stage.fail(what, **fault)


def _at(revision):
    return lambda stage: setattr(stage, "address", f"{stage.address}@{revision}")


NETWORKS = {
    "the connection is refused": _refused,
    "the server's name is unknown": _unresolvable,
    "the server never answers": _silent,
    "packets vanish (a firewall)": _swallowed,
}
NO_NETWORK = [
    Case(
        f"No network: {how}{what}",
        _then(start, network),
        "ConnectionError",
        ("[Nn]o network", "HF_ENDPOINT|127.0.0.1|hub.invalid", "cache"),
        within=10.0,
    )
    for how, network in NETWORKS.items()
    for what, start in {"": _pushed, "; a commit": _commit}.items()
] + [
    Case("The proxy is down", _then(_pushed, _proxy), "ConnectionError", ("[Nn]o network", "HTTP_PROXY"), within=10.0),
    Case(
        "HF_ENDPOINT without http",
        _then(_pushed, _no_scheme),
        "ValueError",
        ("HF_ENDPOINT .*hub.invalid",),
        within=10.0,
    ),
    Case("No TLS where it should be", _then(_pushed, _no_tls), "ConnectionError", ("https://127.0.0.1",), within=10.0),
]


# ---------------------------------------------------------------------- the wrong address, or no right to it
def _without_weights(stage):
    files = dict(stage.files)
    del files[WEIGHTS]
    stage.push(files)


def _torch_model(stage):
    stage.push(
        {CONFIG: b'{"architectures": ["ResNetModel"], "model_type": "resnet"}', "pytorch_model.bin": b"\0" * 5000}
    )


def _keras_hub_model(stage):
    about = {
        "keras_version": "3.15.1",
        "keras_hub_version": "0.29.0",
        "parameter_count": 23561152,
        "date_saved": "2026",
    }
    config = {"module": "keras_hub.src.models.resnet.resnet_backbone", "class_name": "ResNetBackbone", "config": {}}
    files = {CONFIG: config, METADATA: about, "preprocessor.json": {}}
    stage.push({name: json.dumps(value).encode() for name, value in files.items()} | {WEIGHTS: stage.files[WEIGHTS]})


LOGIN = "HF_TOKEN"
ADDRESSES = [
    Case(
        "No such model", lambda stage: None, "ValueError", ("does not exist or is private", "[Cc]heck the name", LOGIN)
    ),
    Case("No such model, with a token", _token("hf_write"), "ValueError", ("does not exist or is private",)),
    Case(
        "A private model, no token",
        _then(_pushed, lambda stage: stage.hub.hide(stage.repo)),
        "ValueError",
        ("does not exist or is private", LOGIN),
    ),
    Case(
        "No such branch or tag",
        _then(_pushed, _at("v9")),
        "ValueError",
        ("no revision 'v9'", "branch, a tag or a commit"),
    ),
    Case(
        "No such commit",
        _then(_pushed, _at("0123456789" * 4)),
        "ValueError",
        ("no revision", "branch, a tag or a commit"),
    ),
    Case("A token that the Hub does not know", _then(_pushed, _token("hf_wrong")), "PermissionError", ("token", LOGIN)),
    Case("A token that cannot be one", _then(_pushed, _token("hf_wrong\x7f")), "PermissionError", ("token", LOGIN)),
    Case("A token in other letters", _then(_pushed, _token("hf_wröng")), "PermissionError", ("token", LOGIN)),
    Case(
        "A gated model, no token",
        _then(_pushed, lambda stage: stage.hub.gate(stage.repo)),
        "PermissionError",
        ("gated", "[Aa]ccept", LOGIN),
    ),
    Case("A file of the preset is missing", _without_weights, "ValueError", (WEIGHTS,)),
    Case("A model of torch", _torch_model, "ValueError", ("no preset of keras_issl", "convert")),
    Case("A model of keras-hub", _keras_hub_model, "ValueError", ("no preset of keras_issl", "keras.hub")),
]
WRONG = {  # what is no address, asked of nobody
    "hf://preset": "organisation/name",
    "hf://org/a/b": "organisation/name",
    "hf://org/../b": "hf://",
    "hf://org/-b": "hf://",
    "hf://org/a b": "organisation/name",
    "hf://org/preset@": "branch, a tag or a commit",
    "hf://org/preset@../../x": "branch, a tag or a commit",
    "hf://org/preset@/etc/passwd": "branch, a tag or a commit",
    "hf://org/preset@v1?x=1": "branch, a tag or a commit",
    "hf://org/preset@a/../../b": "branch, a tag or a commit",
}


# ---------------------------------------------------------------------- a server in trouble
BUSY = ("503", "[Tt]ry again")
SERVER = [
    Case(
        "The connection is dropped", _then(_pushed, _fails("head", drop=True)), "ConnectionError", ("cannot be loaded",)
    ),
    Case("The Hub is down (503)", _then(_pushed, _fails("head", status=503)), "ConnectionError", BUSY),
    Case("The Hub is down (503) for a file", _then(_pushed, _fails("file", status=503)), "ConnectionError", BUSY),
    Case("The storage is down (503)", _then(_pushed, _fails("weights", status=503)), "ConnectionError", BUSY),
    Case(
        "Too many requests (429)",
        _then(_pushed, _fails("head", status=429, headers={"Retry-After": "41"})),
        "ConnectionError",
        ("429", "41 seconds|limit"),
    ),
    Case(
        "The storage drops every connection",
        _then(_pushed, _fails("weights", drop=True)),
        "ConnectionError",
        ("cannot be loaded",),
    ),
    Case(
        "The storage refuses (403)",
        _then(_pushed, _fails("weights", status=403, message="Request has expired")),
        "OSError",
        ("Request has expired",),
    ),
    Case(
        "A portal answers for the Hub",
        _then(_pushed, _fails("head", status=200, message="Please log in")),
        "ConnectionError",
        ("Hub",),
    ),
]


# ---------------------------------------------------------------------- damaged, incomplete, untrue
def _lying(stage, **entry):
    about = json.loads(stage.files[METADATA])
    about["files"][WEIGHTS] |= entry
    stage.push(stage.files | {METADATA: json.dumps(about).encode()})


def _huge(stage):
    stage.push(stage.files | {METADATA: b" " * (17 << 20)})


def _of_a_class(stage):
    config = json.loads(stage.files[CONFIG]) | {"class": "Popen", "config": {"args": "true"}}
    stage.push(recorded(stage.files | {CONFIG: json.dumps(config).encode()}))


DAMAGE = [
    Case(
        "Bytes are damaged on their way",
        _then(_pushed, _fails("weights", corrupt=True)),
        "ValueError",
        (WEIGHTS, "damaged", "nothing was loaded"),
    ),
    Case(
        "metadata.json is damaged on its way",
        _then(_pushed, _fails("file", corrupt=True)),
        "ValueError",
        (METADATA, "damaged", "nothing was loaded"),
    ),
    Case(
        "The preset records another hash",
        lambda stage: _lying(stage, sha256="0" * 64),
        "ValueError",
        (WEIGHTS, "SHA-256|hash"),
    ),
    Case("The preset records another size", lambda stage: _lying(stage, bytes=17), "ValueError", (WEIGHTS, "bytes")),
]


# ---------------------------------------------------------------------- offline
def _offline(stage):
    stage.environment["HF_HUB_OFFLINE"] = "1"


def blobs(stage, name):
    """The files of this name in the cache, links followed to the end."""
    return [path.resolve() for path in stage.cache.glob(f"models--{stage.repo.replace('/', '--')}/snapshots/*/{name}")]


def _emptied(stage):
    for path in blobs(stage, WEIGHTS):
        path.write_bytes(b"")


OFFLINE = [
    Case(
        "HF_HUB_OFFLINE, not in the cache",
        _then(_pushed, _offline),
        "ConnectionError",
        ("HF_HUB_OFFLINE", "not in the cache", "[Uu]nset"),
    ),
    Case(
        "HF_HUB_OFFLINE, a commit that is not in the cache",
        _then(_commit, _offline),
        "ConnectionError",
        ("HF_HUB_OFFLINE", "not in the cache", "[Uu]nset"),
    ),
    Case(
        "HF_HUB_OFFLINE, another commit in the cache",
        _then(_pushed, Stage.load, _at("0123456789" * 4), _offline),
        "ConnectionError",
        ("HF_HUB_OFFLINE", "not in the cache"),
    ),
    Case(
        "HF_HUB_OFFLINE, the cache lacks the weights",
        _then(_pushed, lambda stage: stage.load(load_weights=False), _offline),
        "ConnectionError",
        ("HF_HUB_OFFLINE", WEIGHTS),
    ),
    Case(
        "HF_HUB_OFFLINE, the weights in the cache were emptied",
        _then(_pushed, Stage.load, _emptied, _offline),
        "ConnectionError",
        ("HF_HUB_OFFLINE", WEIGHTS),
    ),
    Case(
        "No network, the cache lacks the weights",
        _then(_commit, lambda stage: stage.load(load_weights=False), _refused),
        "ConnectionError",
        ("[Nn]o network",),
        within=10.0,
    ),
]


# ---------------------------------------------------------------------- the disk
def has_namespaces():
    """Whether this system lets a process have disks of its own, which takes no rights on most."""
    return subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0


def _disk(**options):
    def prepare(stage):
        stage.cache.mkdir(parents=True)
        arguments = "".join(f", {key}={value}" for key, value in options.items())
        stage.before = f"mount({str(stage.environment['HF_HOME'])!r}{arguments})"

    return prepare


def _small_files(stage):
    """No file may grow as large as the weights: the error comes while they are written."""
    stage.before = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))"


def _cache_is_a_file(stage):
    stage.push()
    Path(stage.environment["HF_HOME"]).write_text("")


FULL = ("OSError", ("room|space", "cache", "HF_HOME"))
DISK = [
    Case(
        "The disk is full",
        _then(_pushed, _disk(size=32768)),
        "OSError",
        ("room|space", "cache", "MB|KB", "HF_HOME"),
        quiet=False,
        namespaces=True,
    ),
    Case("The disk becomes full on the way", _then(_pushed, _small_files), *FULL),
    Case("The cache is read-only", _then(_pushed, _disk()), "OSError", ("cache", "HF_HOME"), namespaces=True),
    Case("HF_HOME is a file", _cache_is_a_file, "OSError", ("cache", "HF_HOME")),
]
XET = [
    Case("The Hub is down (503) for xet", _then(Stage.push_by_xet, _fails("xet", status=503)), "ConnectionError", BUSY),
    Case(
        "The disk becomes full on the way, by xet",
        _then(Stage.push_by_xet, _disk(size=65536)),
        *FULL,
        quiet=False,
        namespaces=True,
        opens_store=True,
    ),
    Case(
        "The xet store cannot be reached",
        _then(Stage.push_by_xet, _no_store),
        "ConnectionError",
        ("HF_HUB_DISABLE_XET",),
    ),
]
GROUPS = {  # of what may happen while loading
    "no network": NO_NETWORK,
    "wrong address": ADDRESSES,
    "server in trouble": SERVER,
    "damaged": DAMAGE,
    "offline": OFFLINE,
    "disk": DISK,
    "xet": XET,
}
LOADING = [case for cases in GROUPS.values() for case in cases]


# ---------------------------------------------------------------------- publishing
PUSH = "keras_issl.push_to_hub({folder!r}, {address!r})"


def _author(stage, token="hf_write"):
    stage.environment["HF_TOKEN"] = token


def _foreign(stage):
    _author(stage)
    stage.address = "hf://somebody/else"
    stage.repo = "somebody/else"


def _damaged(stage):
    _author(stage)
    stage.files = stage.files | {WEIGHTS: stage.files[WEIGHTS][:-1]}


def _to(**fault):
    return _then(_author, _fails("commit", **fault))


def _published(situation, prepare, error, says=(), **options):
    return Case(f"Publishing: {situation}", prepare, error, says, call=PUSH, action="publish", **options)


UNCHANGED = "[Tt]ry again"
PUBLISHING = [
    _published("no token", lambda stage: None, "PermissionError", ("token", LOGIN)),
    _published("a token that the Hub does not know", _token("hf_wrong"), "PermissionError", ("token", LOGIN)),
    _published("a token that may only read", _token("hf_read"), "PermissionError", ("write",)),
    _published("somebody else's namespace", _foreign, "PermissionError", ("somebody",)),
    _published("an address with a revision", _then(_author, _at("v1")), "ValueError", ("revision", "tag=")),
    _published("a damaged preset", _damaged, "ValueError", (WEIGHTS,)),
    _published("HF_HUB_OFFLINE", _then(_author, _offline), "ConnectionError", ("HF_HUB_OFFLINE",)),
    *(
        _published(f"no network: {how}", _then(_author, network), "ConnectionError", ("[Nn]o network",), within=10.0)
        for how, network in NETWORKS.items()
    ),
    _published("the Hub is down (503)", _to(status=503), "ConnectionError", ("503",)),
    _published("the connection is dropped", _to(drop=True), "ConnectionError"),
    _published("too many requests (429)", _to(status=429, headers={"Retry-After": "900"}), "ConnectionError", ("900",)),
    _published(
        "the storage fails", _then(_author, _fails("upload", status=503)), "ConnectionError", ("503",), within=120.0
    ),
    _published(
        "the commit is refused",
        _to(status=403, message="Forbidden: storage quota exceeded"),
        "PermissionError",
        ("quota",),
    ),
]
