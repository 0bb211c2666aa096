"""A real HTTP server on 127.0.0.1 that serves bytes with Range, ETag and Last-Modified, and fails as it is told."""

import dataclasses
import socket
import ssl
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

OLD, NEW = "Wed, 01 Jan 2020 00:00:00 GMT", "Thu, 02 Jan 2020 00:00:00 GMT"


@dataclasses.dataclass
class Fault:
    """What goes wrong with one request; the defaults are a faultless answer."""

    status: int | None = None  # answer with this alone
    headers: dict = dataclasses.field(default_factory=dict)  # sent too, or instead of ours
    content: bytes | None = None  # from here on the file is this, and has another ETag
    location: str | None = None  # redirect to there
    cut: int | None = None  # close after so many bytes of the body
    stall: int | None = None  # fall silent after so many bytes
    reset: bool = False  # no answer, and the connection is torn down
    declare: int = 0  # Content-Length is wrong by this much
    extra: bytes = b""  # follows the body
    endless: bool = False  # the body repeats until the client has enough
    ignore_range: bool = False
    ignore_if_range: bool = False
    shift: int = 0  # Content-Range and body begin later than asked for
    longest: int | None = None  # a 206 has at most so many bytes
    framing: str = "length"  # or "chunked" or "close"
    validators: tuple = ("ETag", "Last-Modified")  # which of them are sent
    flip: int | None = None  # this byte of the body is damaged


@dataclasses.dataclass
class Entry:
    """A request as it came, and what was sent of the body."""

    path: str
    headers: dict
    status: int = 0
    start: int = 0
    sent: int = 0


class FileServer:
    """Serves `files`; `faults` befall the next requests in turn, `always` all others; `log` holds an `Entry` each.

    ```python
    with FileServer({"/file": b"..."}) as server:
        server.faults = [Fault(cut=2)]
        urllib.request.urlopen(server.url("/file"))
    ```
    """

    def __init__(self, files=(), certificate=None):
        self.files, self.faults, self.always, self.log = dict(files), [], Fault(), []
        self.version, self.closing = 1, threading.Event()
        handler = type("BoundHandler", (_Handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._scheme, self._host = "http", "127.0.0.1"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            self._server.handle_error = lambda *client: None  # a client that does not trust us hangs up
            self._scheme = "https"

    def url(self, path="/file"):
        return f"{self._scheme}://{self._host}:{self._server.server_port}{path}"

    @property
    def sent(self):
        """Bytes of bodies sent so far."""
        return sum(entry.sent for entry in self.log)

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner = None

    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.owner
        fault = server.faults.pop(0) if server.faults else server.always
        entry = Entry(self.path, dict(self.headers))
        server.log.append(entry)
        self.close_connection = True
        if fault.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            return
        if fault.content is not None:
            server.files[self.path], server.version = fault.content, server.version + 1
        if fault.location:
            return self._answer(entry, fault, 302, {"Location": fault.location}, b"moved" * 100)
        if fault.status or self.path not in server.files:
            return self._answer(entry, fault, fault.status or 404, {}, b"<html>no</html>")
        self._file(entry, fault, server.files[self.path])

    def _file(self, entry, fault, content):
        validators = {"ETag": f'"v{self.owner.version}"', "Last-Modified": OLD if self.owner.version == 1 else NEW}
        validators = {name: validators[name] for name in fault.validators}
        asked, condition = self.headers["Range"], self.headers["If-Range"]
        same = condition is None or condition in validators.values() or fault.ignore_if_range
        if not asked or not same or fault.ignore_range:
            return self._answer(entry, fault, 200, validators, content)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) + fault.shift
        if start >= len(content):
            return self._answer(entry, fault, 416, {"Content-Range": f"bytes */{len(content)}"}, b"")
        body = content[start:][: fault.longest]
        entry.start = start
        span = {"Content-Range": f"bytes {start}-{start + len(body) - 1}/{len(content)}"}
        self._answer(entry, fault, 206, validators | span, body)

    def _answer(self, entry, fault, status, headers, body):
        entry.status = status
        if fault.framing == "length":
            headers["Content-Length"] = str(len(body) + fault.declare)
        elif fault.framing == "chunked":
            headers["Transfer-Encoding"] = "chunked"
        self.send_response(status)
        for name, value in (headers | {"Connection": "close"} | fault.headers).items():
            self.send_header(name, value)
        self.end_headers()
        if fault.flip is not None:
            body = body[: fault.flip] + bytes([body[fault.flip] ^ 1]) + body[fault.flip + 1 :]
        ends = [end for end in (fault.cut, fault.stall) if end is not None]
        try:
            self._send(entry, fault, (body + fault.extra)[: min(ends, default=None)])
            while fault.endless:
                self._send(entry, fault, body)
            if fault.framing == "chunked" and not ends:
                self.wfile.write(b"0\r\n\r\n")
            self.wfile.flush()
            if fault.stall is not None:
                self.owner.closing.wait(30)
        except OSError:  # the client had enough
            pass

    def _send(self, entry, fault, body):
        for start in range(0, len(body), 1 << 16):
            piece = body[start : start + (1 << 16)]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if fault.framing == "chunked" else piece)
            entry.sent += len(piece)
