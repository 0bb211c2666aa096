"""A stand-in for the Hugging Face Hub on 127.0.0.1: real git repositories, LFS and xet storage, and faults on demand.

Everything on the client's side stays real. A model is a bare git repository, its large files are LFS objects in one
folder, and xet is hf_xet's own ``local://`` store. As on the Hub, the API and the storage are two origins.
"""

import base64
import codecs
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import site
import socket
import socketserver
import struct
import subprocess
import threading
import time
import traceback
from email.message import Message
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n"
POINTER_PATTERN = re.compile(POINTER.replace(".", r"\.").format("([0-9a-f]{64})", r"(\d+)").encode())
LARGE = (".h5", ".keras", ".npz", ".safetensors")
ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE).encode()
FRONT_MATTER = re.compile(r"\s*---[\r\n]+(.*?)[\r\n]+---(?:\r?\n|$)", re.DOTALL)
GIT = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
KEPT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR")  # of our own environment, for the clients
KEPT += ("CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS", "TF_CPP_MIN_LOG_LEVEL", "XLA_FLAGS")


@dataclasses.dataclass
class Request:
    """A request as it came (`headers` ignores case) and the status of its answer, 0 where there was none."""

    method: str
    path: str
    headers: Message
    origin: str  # "api" or "storage"
    status: int = 0
    query: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Fault:
    """What befalls the next `times` requests whose "METHOD path" holds a match of the regular expression `match`."""

    match: str
    times: float = 1  # math.inf: until `hub.faults` is cleared
    status: int | None = None  # answer with this error
    code: str | None = None  # its X-Error-Code
    message: str = "The server has a fault."
    headers: dict = dataclasses.field(default_factory=dict)  # sent too, such as {"Retry-After": "1"}
    drop: bool = False  # close the connection unanswered, nothing done
    after: bool = False  # do what is asked, then close the connection unanswered
    cut: int | None = None  # close the connection after so many bytes of the body
    corrupt: bool = False  # damage the body, keep its length
    stall: float = 0  # be silent for so many seconds: before the answer, or after `cut` bytes


class HubError(Exception):
    """An answer that is an error."""

    def __init__(self, status, message, code=None, headers=(), **body):
        self.status, self.message, self.code, self.headers, self.body = status, message, code, dict(headers), body


# ---------------------------------------------------------------------- repositories and storage
class Store:
    """What the Hub keeps, in the folder `root`: git repositories, LFS objects and what hf_xet writes."""

    def __init__(self, root):
        self.root, self.lock = Path(root).resolve(), threading.RLock()
        self.xet_url, self._trees, self._shards = f"local://{self.root}/xet", {}, {}
        (self.root / "lfs").mkdir(parents=True)

    def exists(self, repo):
        return self._folder(repo).exists()

    def create(self, repo):
        """Makes a repository, whose first commit holds .gitattributes, as on the Hub."""
        subprocess.run(["git", "init", "-q", "--bare", "-b", "main", self._folder(repo)], check=True, env=GIT)
        return self.commit(repo, "main", "initial commit", {".gitattributes": ATTRIBUTES})

    def push(self, repo, files, message="Push", branch="main"):
        """Commits `{path: bytes, a path on disk, or None to delete}` and returns the commit's SHA-1.

        The repository is made where it is missing, and a new branch starts at the head of main.
        """
        contents = {}
        for path, content in files.items():
            content = Path(content).read_bytes() if isinstance(content, str | os.PathLike) else content
            large = content is not None and is_large(path, len(content), content[:512])
            contents[path] = self.add_lfs(content) if large else content
        with self.lock:
            if not self.exists(repo):
                self.create(repo)
            return self.commit(repo, branch, message, contents)

    def commit(self, repo, branch, message, contents, parent=None):
        """Commits `{path: bytes or None to delete}` as they are; `parent` is what the head should be, if it matters."""
        with self.lock:
            refs = self.refs(repo)
            head = refs.get(f"refs/heads/{branch}", refs.get("refs/heads/main"))
            if parent and parent != head:
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            stream = [f"commit refs/heads/{branch}\nmark :1\ncommitter hub <hub@localhost> now\n".encode()]
            stream += [b"data %d\n%b\n" % (len(message.encode()), message.encode())]
            stream += [f"from {head}\n".encode()] if head else []
            for path, content in contents.items():
                data = b"" if content is None else b"data %d\n%b\n" % (len(content), content)
                stream.append(f"{'D' if content is None else 'M 100644 inline'} {path}\n".encode() + data)
            stream.append(b"get-mark :1\n")
            return (
                self.git(repo, "fast-import", "--quiet", "--date-format=now", content=b"".join(stream)).decode().strip()
            )

    def tag(self, repo, tag, revision="main"):
        self.git(repo, "tag", tag, self.head(repo, revision))

    def refs(self, repo):
        """`{"refs/heads/main": SHA-1, "refs/tags/v1": ...}`."""
        rows = self.git(repo, "for-each-ref", "--format=%(refname) %(objectname)").decode().splitlines()
        return dict(row.split(" ") for row in rows)

    def head(self, repo, revision="main"):
        """The SHA-1 of a branch, a tag, a full reference or a commit."""
        refs = self.refs(repo)
        for name in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if name in refs:
                return refs[name]
        if re.fullmatch("[0-9a-f]{7,40}", revision):
            sha = self.git(repo, "rev-parse", "-q", "--verify", f"{revision}^{{commit}}", check=False)
            if sha:
                return sha.decode().strip()
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def commits(self, repo, revision="main"):
        """The SHA-1s of a revision's history, newest first."""
        return self.git(repo, "rev-list", self.head(repo, revision)).decode().split()

    def files(self, repo, revision="main"):
        """`{path: bytes}` of a revision, large files included."""
        rows = self.tree(repo, self.head(repo, revision))
        return {row["path"]: self.read(repo, row) for row in rows if row["type"] == "file"}

    def tree(self, repo, sha):
        """The rows of a commit's files and folders, as the API lists them."""
        if (repo, sha) not in self._trees:  # a commit never changes
            lines = self.git(repo, "ls-tree", "-r", "-t", "-z", "-l", sha).decode().split("\0")[:-1]
            self._trees[repo, sha] = [self._row(repo, line) for line in lines]
        return self._trees[repo, sha]

    def read(self, repo, row):
        """The bytes of a file in `tree`."""
        return self.lfs(row["lfs"]["oid"]) if "lfs" in row else self.git(repo, "cat-file", "blob", row["oid"])

    def add_lfs(self, content):
        """Stores a large file; returns the pointer that git holds."""
        oid = hashlib.sha256(content).hexdigest()
        (self.root / "lfs" / oid).write_bytes(content)
        return POINTER.format(oid, len(content)).encode()

    def has_lfs(self, oid):
        return (self.root / "lfs" / oid).exists() or oid in self.xet_hashes()

    def lfs(self, oid):
        """The bytes of a large file; one that came over xet is put together again."""
        path = self.root / "lfs" / oid
        with self.lock:
            if not path.exists():
                import hf_xet

                with hf_xet.XetSession().new_file_download_group(endpoint=self.xet_url) as group:
                    group.start_download_file(hf_xet.XetFileInfo(self.xet_hashes()[oid]), str(path))
        return path.read_bytes()

    def xet_hashes(self):
        """`{SHA-256: xet hash}` of all files in the xet store, read from the shards that hf_xet wrote."""
        for shard in (self.root / "xet").glob("xet/xorbs/shards/*.mdb"):
            if shard not in self._shards:
                self._shards[shard] = read_shard(shard.read_bytes())
        return {oid: value for hashes in list(self._shards.values()) for oid, value in hashes.items()}

    def git(self, repo, *arguments, content=None, check=True):
        """What git prints; None where it fails and may."""
        command = ["git", "--git-dir", self._folder(repo), *arguments]
        result = subprocess.run(command, input=content, capture_output=True, env=GIT)
        if check and result.returncode:
            raise RuntimeError(result.stderr.decode())
        return None if result.returncode else result.stdout

    def _folder(self, repo):
        return self.root / "repositories" / f"{repo}.git"

    def _row(self, repo, line):
        about, path = line.split("\t")
        _, kind, oid, size = about.split()
        if kind == "tree":
            return {"type": "directory", "oid": oid, "size": 0, "path": path}
        row = {"type": "file", "oid": oid, "size": int(size), "path": path}
        if 120 < row["size"] < 140 and (pointer := POINTER_PATTERN.fullmatch(self.read(repo, row))):
            large = {"oid": pointer[1].decode(), "size": int(pointer[2])}
            row |= {"size": large["size"], "lfs": large | {"pointerSize": row["size"]}}
            if large["oid"] in (hashes := self.xet_hashes()):
                row["xetHash"] = hashes[large["oid"]]
        return row


def is_large(path, size, sample):
    """Whether the Hub keeps a file outside git: by .gitattributes, by size, or because it is no text."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)  # a character cut off at the end is fine
    except UnicodeDecodeError:
        return True
    return path.endswith(LARGE) or size > 10_000_000 or b"\0" in sample


def read_shard(data):
    """`{SHA-256: xet hash}` of a shard: after 48 bytes, one block of 48-byte rows per file, the last one all ones."""
    hashes, at = {}, 48

    def digits(at):
        return "".join(f"{word:016x}" for word in struct.unpack_from("<4Q", data, at))

    while data[at : at + 32] != b"\xff" * 32:
        flags, segments = struct.unpack_from("<II", data, at + 32)
        end = at + 48 * (1 + segments * (2 if flags >> 31 else 1))  # a verification row follows each segment
        if flags >> 30 & 1:  # and the file's SHA-256 follows them all
            hashes[digits(end)] = digits(at)
            end += 48
        at = end
    return hashes


def front_matter(readme):
    """The metadata of a model card; None where there are none."""
    match = FRONT_MATTER.match(readme)
    return yaml.safe_load(match[1]) if match else None


def card_errors(card):
    """What the Hub objects to in a model card's metadata."""
    if not isinstance(card, dict):
        return ["The metadata must be a mapping"]
    keys = ("library_name", "license", "pipeline_tag")
    errors = [f'"{key}" must be a string' for key in keys if not isinstance(card.get(key, ""), str)]
    if not re.fullmatch(r"[a-z0-9.-]+", str(card.get("license", "mit"))):
        errors.append('"license" must be one of the known identifiers')
    if not all(isinstance(tag, str) for tag in card.get("tags", ())):
        errors.append('"tags" must be strings')
    for model in card.get("model-index", ()):
        parts = [("model-index", model, ("name", "results"))]
        for result in model.get("results", ()):
            parts.append(("task", result.get("task", {}), ("type",)))
            parts.append(("dataset", result.get("dataset", {}), ("name", "type")))
            parts += [("metrics", metric, ("type", "value")) for metric in result.get("metrics", [{}])]
        errors += [f'"{name}.{key}" is required' for name, part, keys in parts for key in keys if key not in part]
    return errors


# ---------------------------------------------------------------------- the server
class HubServer(Store):
    """The Hub; `tokens`, `organizations`, `private`, `gated`, `faults` and `log` are open to the tests.

    Every token's user may write to the own namespace and to those of `organizations`; all others are foreign. What is
    private or gated remains open to who may write to it, as on the Hub. A request that the stand-in does not know, or
    fails at, is answered by status 501 and raised when the context closes.

    ```python
    with HubServer(tmp_path / "hub") as hub:
        sha = hub.push("user/model", {"config.json": b"{}"})
        hub.fail("GET .*/config.json", status=503)
        run("import huggingface_hub; ...", hub.environment(tmp_path / "home"))
    ```

    Args:
        root: Folder for the repositories and the storage.
        xet: Whether clients may use xet.
    """

    def __init__(self, root, xet=True):
        super().__init__(root)
        self.xet, self.tokens = xet, {"hf_write": ("user", "write"), "hf_read": ("user", "read")}
        self.organizations, self.private, self.gated = {"org"}, set(), set()
        self.faults, self.log, self.failures, self.closing = [], [], [], threading.Event()
        self._origins = [Origin(self, name) for name in ("api", "storage")]
        self.url, self.storage = (f"http://127.0.0.1:{origin.port}" for origin in self._origins)

    def __enter__(self):
        self.up()
        return self

    def __exit__(self, kind, *error):
        self.closing.set()
        for origin in self._origins:
            origin.stop()
        if self.failures and kind is None:
            raise AssertionError("The stand-in Hub failed:\n" + "\n".join(self.failures))

    def up(self):
        """Accept connections."""
        for origin in self._origins:
            origin.start()

    def down(self):
        """Refuse connections, and close the open ones; the ports stay ours."""
        for origin in self._origins:
            origin.stop()
        self._origins = [Origin(self, origin.name, origin.port) for origin in self._origins]

    def fail(self, match, times=1, **fault):
        """Adds a `Fault`, which is also returned; its `times` counts down."""
        self.faults.append(Fault(match, times, **fault))
        return self.faults[-1]

    def hide(self, repo):
        """Makes the repository private: to others it does not exist."""
        self.private.add(repo)

    def gate(self, repo):
        """Makes the repository's files open only to who may write to it; others still see its name and the list."""
        self.gated.add(repo)

    def environment(self, home, token="hf_write", xet=True, backend="jax"):
        """A complete environment for a client whose home and caches are under `home`; `token` may be None."""
        home = Path(home).resolve()
        home.mkdir(parents=True, exist_ok=True)
        environment = {name: os.environ[name] for name in KEPT if name in os.environ} | {
            "HOME": str(home),
            "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
            "PYTHONUSERBASE": site.getuserbase(),
            "NO_PROXY": "127.0.0.1",
            "KERAS_BACKEND": backend,
            "KERAS_HOME": str(home / "keras"),
            "KERAS_ISSL_HOME": str(home / "keras_issl"),
            "HF_HOME": str(home / "huggingface"),
            "HF_ENDPOINT": self.url,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "2",
            "HF_XET_CLIENT_RETRY_BASE_DELAY": "100ms",
        }
        environment |= {} if token is None else {"HF_TOKEN": token}
        return environment | ({} if xet and self.xet else {"HF_HUB_DISABLE_XET": "1"})


class Origin(socketserver.ThreadingTCPServer):
    """One port; bound from the start, it accepts connections between `start` and `stop`."""

    daemon_threads, block_on_close, allow_reuse_address, request_queue_size = True, False, True, 64

    def __init__(self, hub, name, port=0):
        handler = type("BoundHandler", (Handler,), {"hub": hub, "origin": name})
        super().__init__(("127.0.0.1", port), handler, bind_and_activate=False)
        self.server_bind()
        self.name, self.port, self.thread, self.connections = name, self.server_address[1], None, set()

    def start(self):
        self.server_activate()
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def stop(self):
        if self.thread:
            self.shutdown()
        self.server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):  # closed already
                connection.shutdown(socket.SHUT_RDWR)

    def process_request(self, request, address):
        self.connections.add(request)
        super().process_request(request, address)

    def shutdown_request(self, request):
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request, address):
        pass  # the client hung up


# ---------------------------------------------------------------------- the requests
ROUTES = []
REPO, REV = "/api/models/([^/]+/[^/]+)", "/([^/]+)"


def route(pattern, origin="api"):
    """Has a method of `Handler` answer "METHOD path": the groups of `pattern` are its arguments, HEAD goes with GET."""

    def add(method):
        ROUTES.append((origin, re.compile(pattern), method))
        return method

    return add


class Handler(BaseHTTPRequestHandler):
    """Answers one connection's requests."""

    protocol_version = "HTTP/1.1"
    hub = origin = None

    def log_message(self, *args):
        pass

    def answer_request(self):
        url, hub = urlsplit(self.path), self.hub
        line = f"{self.command} {url.path}"
        with hub.lock:
            self.entry = Request(self.command, url.path, self.headers, self.origin, query=parse_qs(url.query))
            hub.log.append(self.entry)
            matching = (fault for fault in hub.faults if fault.times > 0 and re.search(fault.match, line))
            self.fault = next(matching, Fault(""))
            self.fault.times -= 1
        try:
            self.content = self.rfile.read(int(self.headers.get("Content-Length", 0)))  # the client never sends chunks
            if self.fault.cut is None:
                hub.closing.wait(self.fault.stall)
            if self.fault.drop:
                self.close_connection = True
                return
            if self.fault.status:
                raise HubError(self.fault.status, self.fault.message, self.fault.code, self.fault.headers)
            self.dispatch(line)
        except HubError as error:
            headers = {"X-Error-Message": error.message} | ({"X-Error-Code": error.code} if error.code else {})
            self.send(error.status, {"error": error.message} | error.body, headers | error.headers)
        except ConnectionError:
            self.close_connection = True
        except Exception:
            hub.failures.append(f"{line}\n{traceback.format_exc()}")
            self.send(501, {"error": "The stand-in failed."})

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer_request

    def dispatch(self, line):
        for origin, pattern, method in ROUTES:
            match = pattern.fullmatch(line.replace("HEAD ", "GET ", 1)) if origin == self.origin else None
            if match:
                return method(self, *(group and unquote(group) for group in match.groups()))
        raise NotImplementedError("The stand-in does not know this request.")

    def send(self, status=200, body=b"", headers=()):
        """Answers with JSON, or with bytes (or the range of them that was asked for)."""
        headers = {"X-Request-Id": f"request-{len(self.hub.log)}"} | dict(headers)
        if not isinstance(body, bytes):
            body, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        elif status == 200 and (span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))):
            total, start = len(body), int(span[1])
            body = body[start : int(span[2] or total) + 1]
            status = 206 if body else 416
            headers["Content-Range"] = f"bytes {start}-{start + len(body) - 1}/{total}" if body else f"bytes */{total}"
        if self.fault.after:
            self.close_connection = True
            return
        if self.fault.corrupt:
            middle = len(body) // 2
            body = body[:middle] + bytes(byte ^ 255 for byte in body[middle : middle + 64]) + body[middle + 64 :]
        self.entry.status = status
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))} | self.fault.headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: self.fault.cut])
        if self.fault.cut is not None:
            self.wfile.flush()
            self.hub.closing.wait(self.fault.stall)
            self.close_connection = True

    def user(self, needed=False):
        """(name, role) of the token; (None, None) without one."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        if needed and not token:
            raise HubError(401, "Invalid username or password.")
        return self.hub.tokens.get(token, (None, None))

    def check(self, repo, write=False, files=False):
        """Raises what the Hub answers to who may not see the repository, write to it, or have its files."""
        hub, (user, role) = self.hub, self.user()
        member = user is not None and repo.split("/")[0] in {user, *hub.organizations}
        if not hub.exists(repo) or (repo in hub.private and not member):
            if user is None:  # who asks without a token does not learn which it is
                raise HubError(401, "Invalid username or password.", "RepoNotFound")
            raise HubError(404, "Repository not found", "RepoNotFound")
        if files and repo in hub.gated and not member:
            message = f"Access to model {repo} is restricted and you are not in the authorized list."
            raise HubError(403 if user else 401, message, "GatedRepo")
        if write:
            self.user(needed=True)
            if role != "write":
                raise HubError(403, "Forbidden: you must use a write token to upload to a repository.")
            if not member:
                raise HubError(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")

    def body(self):
        return json.loads(self.content or b"{}")

    @route("GET /api/whoami-v2")
    def whoami(self):
        name, role = self.user(needed=True)
        organizations = [{"type": "org", "name": name} for name in sorted(self.hub.organizations)]
        token = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
        self.send(body={"type": "user", "id": name, "name": name, "orgs": organizations, "auth": token})

    @route("POST /api/repos/create")
    def create(self):
        (user, role), asked = self.user(needed=True), self.body()
        owner = asked.get("organization") or user
        repo = f"{owner}/{asked['name']}"
        url = f"{self.hub.url}/{repo}"
        if role != "write" or owner not in {user, *self.hub.organizations}:
            raise HubError(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        with self.hub.lock:
            if self.hub.exists(repo):
                raise HubError(409, "You already created this model repo", url=url)
            self.hub.create(repo)
            if asked.get("visibility") == "private" or asked.get("private"):
                self.hub.hide(repo)
        self.send(body={"url": url, "name": repo, "id": repo})

    @route("POST /api/validate-yaml")
    def validate_card(self):
        self.user()
        try:
            card = front_matter(self.body()["content"])
            errors = [] if card is None else card_errors(card)
        except yaml.YAMLError as error:
            card, errors = {}, [str(error)]
        warnings = ["empty or missing yaml metadata in repo card"] if card is None else []
        answer = {"errors": [{"message": text} for text in errors], "warnings": [{"message": w} for w in warnings]}
        self.send(400 if errors else 200, answer)

    @route(f"GET {REPO}(?:/revision{REV})?")
    def info(self, repo, revision):
        self.check(repo)
        hub, sha = self.hub, self.hub.head(repo, revision or "main")
        rows = {row["path"]: row for row in hub.tree(repo, sha) if row["type"] == "file"}
        readme = hub.read(repo, rows["README.md"]).decode() if "README.md" in rows else ""
        card = front_matter(readme) or {}
        siblings = []
        for path, row in rows.items():
            lfs = {"lfs": row["lfs"] | {"sha256": row["lfs"]["oid"]}} if "lfs" in row else {}
            blob = {"blobId": row["oid"], "size": row["size"]} | lfs if "blobs" in self.entry.query else {}
            siblings.append({"rfilename": path} | blob)
        about = {"id": repo, "modelId": repo, "author": repo.split("/")[0], "sha": sha, "downloads": 0, "likes": 0}
        state = {"private": repo in hub.private, "gated": "manual" if repo in hub.gated else False, "disabled": False}
        told = {key: card[key] for key in ("library_name", "pipeline_tag", "model-index") if key in card}
        self.send(body=about | state | told | {"cardData": card, "tags": card.get("tags", []), "siblings": siblings})

    @route(f"GET {REPO}/refs")
    def refs(self, repo):
        self.check(repo)
        answer = {"branches": [], "converts": [], "tags": []}
        for ref, sha in self.hub.refs(repo).items():
            _, folder, name = ref.split("/", 2)
            answer["tags" if folder == "tags" else "branches"].append({"name": name, "ref": ref, "targetCommit": sha})
        self.send(body=answer | ({"pullRequests": []} if "include_prs" in self.entry.query else {}))

    @route(f"GET {REPO}/tree{REV}(?:/(.+))?")
    def tree(self, repo, revision, folder):
        self.check(repo)
        rows, prefix = self.hub.tree(repo, self.hub.head(repo, revision)), f"{folder}/" if folder else ""
        rows = [row for row in rows if row["path"].startswith(prefix)]
        if folder and not rows:
            raise HubError(404, f'{folder} does not exist on "{revision}"', "EntryNotFound")
        if self.entry.query.get("recursive", ["false"])[0].lower() != "true":
            rows = [row for row in rows if "/" not in row["path"].removeprefix(prefix)]
        self.send(body=rows)

    @route(f"POST {REPO}/paths-info{REV}")
    def paths_info(self, repo, revision):
        self.check(repo)
        paths = parse_qs(self.content.decode())["paths"]
        self.send(body=[row for row in self.hub.tree(repo, self.hub.head(repo, revision)) if row["path"] in paths])

    @route(f"POST {REPO}/(tag|branch){REV}")
    def add_reference(self, repo, kind, name):
        """A tag comes as {"tag": name} for the revision in the path; a branch the other way round."""
        self.check(repo, write=True)
        body, folder = self.body(), "tags" if kind == "tag" else "heads"
        name, revision = (body["tag"], name) if kind == "tag" else (name, body.get("startingPoint", "main"))
        with self.hub.lock:
            if f"refs/{folder}/{name}" in self.hub.refs(repo):
                raise HubError(409, f"{kind.title()} reference exists already")
            if self.hub.git(repo, kind, name, self.hub.head(repo, revision), check=False) is None:
                raise HubError(400, f"Invalid reference name: {name}")
        self.send(body={})

    @route(f"DELETE {REPO}/tag{REV}")
    def delete_tag(self, repo, name):
        self.check(repo, write=True)
        if self.hub.git(repo, "tag", "-d", name, check=False) is None:
            raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
        self.send(body={})

    @route(f"POST {REPO}/preupload{REV}")
    def preupload(self, repo, revision):
        self.check(repo, write=True)
        rows = {row["path"]: row for row in self.hub.tree(repo, self.hub.head(repo, revision))}
        files = []
        for file in self.body()["files"]:
            row = rows.get(file["path"], {})
            large = is_large(file["path"], file["size"], base64.b64decode(file["sample"]))
            files.append({"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False})
            files[-1] |= {"oid": row.get("lfs", row)["oid"]} if row else {}
        self.send(body={"files": files})

    @route(r"POST /([^/]+/[^/]+)\.git/info/lfs/objects/batch")
    def lfs_batch(self, repo):
        self.check(repo, write=True)
        objects = self.body()["objects"]
        for row in objects:
            if not self.hub.has_lfs(row["oid"]):
                row["actions"] = {"upload": {"href": f"{self.hub.storage}/lfs/{row['oid']}"}}
        self.send(body={"transfer": "basic", "objects": objects})

    @route(f"POST {REPO}/commit{REV}")
    def commit(self, repo, branch):
        self.check(repo, write=True)
        if f"refs/heads/{branch}" not in self.hub.refs(repo):
            raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        lines = [json.loads(line) for line in self.content.splitlines()]
        header, contents = lines[0]["value"], {}
        for kind, value in ((line["key"], line["value"]) for line in lines[1:]):
            content = None  # deletedFile or deletedFolder
            if kind == "file":
                content = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                if not self.hub.has_lfs(value["oid"]):
                    raise HubError(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
                content = POINTER.format(value["oid"], value["size"]).encode()
            contents[value["path"].rstrip("/")] = content
        message = "\n\n".join(filter(None, (header["summary"], header.get("description"))))
        sha = self.hub.commit(repo, branch, message, contents, header.get("parentCommit"))
        self.send(body={"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo}/commit/{sha}"})

    @route(f"GET {REPO}/xet-(read|write)-token{REV}")
    def xet_token(self, repo, kind, revision):
        self.check(repo, write=kind == "write", files=True)
        token = {"casUrl": self.hub.xet_url, "exp": int(time.time()) + 3600, "accessToken": "xet"}
        names = {"casUrl": "X-Xet-Cas-Url", "exp": "X-Xet-Token-Expiration", "accessToken": "X-Xet-Access-Token"}
        self.send(body=token, headers={names[key]: str(value) for key, value in token.items()})

    @route(f"GET /([^/]+/[^/]+)/resolve{REV}/(.+)")
    def file(self, repo, revision, path):
        self.check(repo, files=True)
        sha = self.hub.head(repo, revision)
        row = next((row for row in self.hub.tree(repo, sha) if (row["type"], row["path"]) == ("file", path)), None)
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if row is None:
            raise HubError(404, "Entry not found", "EntryNotFound", headers)
        if "lfs" not in row:
            return self.send(body=self.hub.read(repo, row), headers=headers | {"ETag": f'"{row["oid"]}"'})
        oid = row["lfs"]["oid"]
        headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(row["size"])}
        if "xetHash" in row:
            route = f"{self.hub.url}/api/models/{repo}/xet-read-token/{sha}"
            headers |= {"X-Xet-Hash": row["xetHash"], "X-Xet-Refresh-Route": route}
        self.send(302, headers=headers | {"Location": f"{self.hub.storage}/lfs/{oid}"})

    @route(r"PUT /lfs/([0-9a-f]{64})", origin="storage")
    def put_lfs(self, oid):
        if hashlib.sha256(self.content).hexdigest() != oid:
            raise HubError(400, "BadDigest")
        self.hub.add_lfs(self.content)
        self.send()

    @route(r"GET /lfs/([0-9a-f]{64})", origin="storage")
    def get_lfs(self, oid):
        if not self.hub.has_lfs(oid):
            raise HubError(404, "NoSuchKey")
        self.send(body=self.hub.lfs(oid), headers={"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})
