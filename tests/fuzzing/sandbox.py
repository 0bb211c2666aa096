"""Where a case takes place: a folder, canaries beside it, what would break out of it, and who watches.

`Box` says where, `MUTATIONS` what can be done to a file, `Watch`, `measured` and `snapshot` what a reader did.
"""

import collections
import contextlib
import ctypes
import dataclasses
import os
import pickle
import resource
import shutil
import socket
import stat
import struct
import sys
import time
import warnings
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PAYLOAD = "fuzz_payload"  # a module beside the folder, on the path: no file may have it imported
MUTATIONS = {}  # (target, kind) -> function that changes a file of a box and returns the file's name


def mutation(target):
    """Registers `function(rng, box)` as a kind of mutation of a target, named as the function is."""

    def register(function):
        MUTATIONS[target, function.__name__.replace("_", " ")] = function
        return function

    return register


@dataclasses.dataclass
class Box:
    """Where a case takes place: `folder` is handed to the reader; what is `outside` may not be touched."""

    folder: Path
    outside: Path
    kit: Path  # the originals
    signed: bool  # whether hashes or checksums are, or are to be, those of the changed bytes
    hopeless: bool = False  # whether every reader has to refuse it, signed or not

    @property
    def checkpoint(self):
        return self.folder / "checkpoint.pt"

    @property
    def owned(self):
        """What a payload that is run would make."""
        return self.outside / "owned"


# ---------------------------------------------------------------------- changing files
def pick(rng, values):
    return values[int(rng.integers(len(values)))]


def flip(rng, data, low=0, high=None, count=None):
    """Bytes with a few bits flipped, those from `low` to `high`."""
    data, high = bytearray(data), high or len(data)
    for _ in range(count or pick(rng, (1, 1, 2, 8, 64))):
        data[int(rng.integers(low, max(high, low + 1)))] ^= 1 << int(rng.integers(8))
    return bytes(data)


def write(path, data):
    path.write_bytes(data)
    return path.name


def archive(path, members, compression=zipfile.ZIP_STORED):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as file:
        warnings.simplefilter("ignore")  # of a name that stands twice
        for name, data in members:
            file.writestr(name, data)
    return path.name


def no_file(rng, box, path):
    """Puts something else in the place of a file: nothing, a link, a folder, a device."""
    data = path.read_bytes()
    path.unlink()
    links = {
        "out": box.outside / pick(rng, ("secret.json", "weights.h5", "fifo")),
        "folder link": pick(rng, (box.outside, box.folder, "/")), "loop": path, "dangling": box.folder / "nowhere",
        "zero": "/dev/zero", "null": "/dev/null", "tty": "/dev/tty", "through": "../outside/../outside/secret.json",
        "copy": pick(rng, (box.outside / "same", "../outside/same")), "in": ".elsewhere",
    }  # fmt: skip
    how = pick(rng, (*links, "missing", "empty", "fifo", "socket", "folder", "hole"))
    if how in links:
        path.symlink_to(links[how])
    if how in ("copy", "in"):  # the very same bytes, elsewhere
        (box.outside / "same" if how == "copy" else box.folder / ".elsewhere").write_bytes(data)
    elif how == "fifo":
        os.mkfifo(path)
    elif how == "socket":
        # A socket's path may have 108 bytes.
        with socket.socket(socket.AF_UNIX) as end, contextlib.chdir(box.folder):
            end.bind(path.name)
    elif how == "folder":
        path.mkdir()
        write(path / path.name, data)
    elif how in ("empty", "hole"):
        path.touch()
        os.truncate(path, 0 if how == "empty" else 10**12)
    return path.name


# ---------------------------------------------------------------------- breaking out
def canaries(outside, preset):
    """Puts what nobody may look at beside the cases, and what nobody may import on the path."""
    shutil.copytree(preset, outside / "elsewhere")
    shutil.copyfile(preset / "model.weights.h5", outside / "weights.h5")
    (outside / "secret.json").write_text('{"secret": 1}')
    (outside / "numbers").write_bytes(b"\0\0\x80?" * 10_000)
    os.mkfifo(outside / "fifo")
    make = f"open({str(outside / 'owned')!r}, 'w').close()"
    method = f"    __init__ = __setstate__ = lambda self, *arguments, **options: {make}"
    (outside / f"{PAYLOAD}.py").write_text(f"{make}\nclass Payload:\n{method}\n")
    sys.path.insert(0, str(outside))


class Call:
    """What pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def payloads(box):
    """Pickles that run something when they are loaded by one who trusts them, each with operations of its own."""
    owned = str(box.owned)
    command, code = f"touch {owned}", f"open({owned!r}, 'w')"
    calls = Call(os.system, command), Call(exec, code), Call(collections.OrderedDict, [("a", Call(os.system, command))])
    text, payload = command.encode(), f"c{PAYLOAD}\nPayload\n".encode()
    return [
        # A function named by GLOBAL in text, by GLOBAL under a binary frame, by STACK_GLOBAL.
        *(pickle.dumps(call, protocol) for call in calls for protocol in (0, 2, 4)),
        b"(S'" + text + b"'\nios\nsystem\n.", b"\x80\x02(cos\nsystem\nU" + bytes([len(text)]) + text + b"o.",
        b"\x80\x02" + payload + b")\x81.", b"\x80\x02" + payload + b")R}b.",
        b"\x80\x02" + payload + b")\x81}U\x01aK\x01sb.", b"\x80\x04" + payload + b")}\x92.",
        b"(i" + PAYLOAD.encode() + b"\nPayload\n.",
        b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94h\x00h\x01\x93\x8c" + bytes([len(text)]) + text + b"\x85R.",
        b"\x80\x02\x82\x01.", b"\x80\x02\x83\x01\x01.", b"\x80\x02\x84\x01\x01\x01\x01.",
        b"ccollections\nOrderedDict.__init__.__globals__\n.",
        b"\x80\x02ctorch.serialization\nload\nU" + bytes([len(owned)]) + owned.encode() + b"\x85R.",
        b"\x80\x02ctorch.hub\nload\n)R.",
        b"\x80\x02cbuiltins\ngetattr\nctorch._utils\n_rebuild_tensor\nU\x0b__globals__\x86R.",
        b"\x80\x02cnumpy\nload\nU\x01x\x85R.", b"\x80\x02ctorch.storage\n_load_from_bytes\nC\x04\x80\x02N.\x85R.",
        b"\x80\x05\x97.", b"\x80\x05\x98.", b"\x80\x02c_codecs\nencode\nX\x03\0\0\0abcX\x03\0\0\0zip\x86R.",
        b"c__builtin__\neval\n(V" + code.encode() + b"\ntR.",
    ]  # fmt: skip


# ---------------------------------------------------------------------- watching
class Watch:
    """What a case does beyond its folder: Python's audit events, and what the kernel saw opened there.

    HDF5 and torch open files without a word to Python, so the canaries' folder is watched by inotify as well, where
    there is one.
    """

    FORBIDDEN = {
        "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "pickle.find_class", "pty.spawn",
        "socket.bind", "socket.connect", "subprocess.Popen",
    }  # fmt: skip
    PATHS = {
        "open", "os.chmod", "os.link", "os.listdir", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.scandir",
        "os.symlink", "os.truncate", "os.utime",
    }  # fmt: skip
    SEEN = 0x1 | 0x2 | 0x20 | 0x100  # inotify: read, changed, opened, made
    FOLDER = 0x40000000  # inotify: it was the folder itself

    def __init__(self, outside):
        self.outside, self.folder, self.events, self.inotify = outside, None, [], None
        system = {sys.prefix, sys.base_prefix, ROOT, "/proc", "/sys", "/usr", "/lib", "/lib64"}
        self.system = [*map(os.path.realpath, system), sys.prefix, "/dev/null", "/dev/urandom"]
        if sys.platform == "linux":
            self.libc = ctypes.CDLL(None, use_errno=True)
            self.inotify = self.libc.inotify_init1(os.O_NONBLOCK)
        sys.addaudithook(self.hook)

    def hook(self, event, arguments):
        if self.folder is None:
            return
        if event in self.FORBIDDEN or (event == "import" and str(arguments[0]).split(".")[0] == PAYLOAD):
            self.events.append(f"{event} {arguments[:2]!r}"[:300])
        elif event in self.PATHS:
            for path in arguments[: 2 if event in ("os.rename", "os.link", "os.symlink") else 1]:
                if isinstance(path, str | bytes) and not self.allowed(os.fsdecode(path)):
                    self.events.append(f"{event} {os.fsdecode(path)!r}"[:300])

    def allowed(self, path):
        if path.endswith((".py", ".pyx")) and not os.path.exists(path):  # the source of a line of a traceback
            return True
        path = os.path.abspath(path)
        return any(path == p or path.startswith(f"{p}/") for p in (self.folder, *self.system))

    def opened(self):
        """What the kernel saw since the last call: (name, mask) of each event."""
        with contextlib.suppress(BlockingIOError):
            data = os.read(self.inotify, 1 << 16)
            while data:
                _, mask, _, length = struct.unpack_from("iIII", data)
                yield data[16 : 16 + length].rstrip(b"\0").decode(), mask
                data = data[16 + length :]

    @contextlib.contextmanager
    def kernel(self):
        """Adds what the kernel sees to the events."""
        places = (self.outside, self.outside / "elsewhere")
        marks = [self.libc.inotify_add_watch(self.inotify, os.fsencode(place), self.SEEN) for place in places]
        list(self.opened())
        try:
            yield
        finally:
            for name, mask in self.opened():
                if name and not mask & self.FOLDER:  # listing the folder itself is no harm
                    self.events.append(f"the kernel saw {name!r} beside the folder opened (mask {mask:#x})")
            for mark in marks:
                self.libc.inotify_rm_watch(self.inotify, mark)

    @contextlib.contextmanager
    def case(self, folder):
        """Watches while one file is read."""
        self.events = []
        with contextlib.nullcontext() if self.inotify is None else self.kernel():
            self.folder = str(folder)
            try:
                yield
            finally:
                self.folder = None


def memory():
    """(resident, its peak) in bytes; where the system tells only the peak of the whole life, that one twice."""
    try:
        text = Path("/proc/self/status").read_text()
        return tuple(int(text.split(key + ":")[1].split()[0]) * 1024 for key in ("VmRSS", "VmHWM"))
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return peak, peak


@contextlib.contextmanager
def measured(outcome):
    """Time and peak memory of what happens within it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, start = memory()[0], time.perf_counter()
    try:
        yield
    finally:
        outcome.seconds = round(time.perf_counter() - start, 4)
        outcome.peak = max(memory()[1] - before, 0)


def snapshot(*folders):
    """What lies in folders: kind, size, time of the last change, target of a link."""
    found = {}
    for folder in folders:
        for root, inner, files in os.walk(folder):
            for path in (os.path.join(root, name) for name in (*inner, *files)):
                info = os.lstat(path)
                link = os.readlink(path) if stat.S_ISLNK(info.st_mode) else None
                found[path] = (info.st_mode, info.st_size, 0 if stat.S_ISDIR(info.st_mode) else info.st_mtime_ns, link)
    return found
