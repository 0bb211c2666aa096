"""Large files from the web: resumed after any interruption, and kept only when they are whole."""

import contextlib
import email.utils
import errno
import hashlib
import http.client
import json
import os
import re
import shutil
import ssl
import time
import urllib.request
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from keras_issl.datasets.images import progress_line

_BLOCK = 1 << 18
_LARGEST = 8 << 30  # bytes; far above any release file, so that a body without an end has one
_MB = 10**6


class DownloadError(OSError):
    """No network, or a server that does not give the file. What has arrived is kept; the same call goes on with it."""


def download(url, path, *, sha256=None, size=None, timeout=20.0, attempts=6, pause=0.5, verbose="auto"):
    """Downloads the file at `url` to `path`, resuming where an earlier call stopped.

    The bytes gather in `<path>.part`, and `<path>.part.json` says of which version of the file (its ETag or
    Last-Modified) they are the beginning: they are continued only with that version. `path` appears, or is replaced,
    at once and only with a whole file: as long as the server declared, and of the right `size` and `sha256` where these
    are given. Without them a file of undeclared length is taken only from a chunked answer, which marks its end.

    Broken, stalled and truncated transfers, 408, 425, 429 and 5xx are tried again, after growing pauses or what
    Retry-After asks (at most a minute), until `attempts` in a row have brought nothing new. Other refusals end at once,
    an unreachable host after three quick tries. Redirects are followed, but never from https to http.
    `HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY` and `SSL_CERT_FILE` work as in every Python program.

    Two calls for one `path` at the same time have to be kept apart: see `keras_issl.zoo.cache.locked`.

    Args:
        url: An http or https address without credentials.
        path: Where the file goes. Missing folders are made.
        sha256: Its SHA-256, 64 hexadecimal digits, if known.
        size: Its size in bytes, if known.
        timeout: Seconds without a single byte after which a connection counts as dead. A slow but steady transfer has
            no limit.
        attempts: How many attempts in a row may bring nothing new.
        pause: Seconds before the next attempt; doubled after each that brought nothing new, up to 16 times as long.
        verbose: `True`, `False` or `"auto"`: progress on stderr; `"auto"` writes only to a terminal, after 3 seconds.

    Returns:
        `path`, as a `pathlib.Path`.

    Raises:
        DownloadError: The network or the server failed; the message says how, and what to do.
        ValueError: The file is whole but does not have the `sha256` or the `size` (it is deleted), or an argument is
            wrong.
        OSError: The file cannot be written, for instance because the disk is full.

    Example:

    ```
    download("https://github.com/keras-team/keras/archive/refs/tags/v3.0.0.tar.gz", "keras.tar.gz")
    ```
    """
    _check(url, sha256)
    path = Path(path)
    with _writing(path, size or 0):
        path.parent.mkdir(parents=True, exist_ok=True)
    part = _Part(url, path, size)
    failures, answered, most = 0, False, part.length  # only bytes beyond `most` are progress: a restart is none
    while not part.complete:
        try:
            with _ask(part, timeout) as response:
                end = _begin(response, part, size, sha256)
                _receive(response, part, end, path, verbose)
        except _Retry as trouble:
            failures = 0 if part.length > most else failures + 1
            most, answered = max(most, part.length), answered or trouble.answered
            if failures >= (attempts if answered else min(attempts, trouble.tries)):
                raise DownloadError(
                    f"{url} could not be downloaded: {trouble}; {part.length:,} bytes are kept in {part.path}. "
                    "The same call resumes where it stopped. Behind a proxy set HTTPS_PROXY; on a machine without "
                    f"network copy the file from another one to {path}."
                ) from trouble
            if not part.complete:
                time.sleep(max(trouble.wait, pause * 2 ** min(failures, 4)))
    received = {"size": part.length, "sha256": sha256 and part.sha256()}
    for name, expected in (("size", size), ("sha256", sha256 and sha256.lower())):
        if expected is not None and received[name] != expected:
            part.drop()
            raise _mismatch(url, name, expected, received[name])
    with _writing(path, 0):
        part.finish(path)
    return path


class _Retry(Exception):
    """A failed attempt that may be repeated, not before `wait` seconds; `tries` times if nothing ever `answered`."""

    def __init__(self, reason, *, wait=0.0, answered=True, tries=3):
        super().__init__(reason)
        self.wait, self.answered, self.tries = wait, answered, tries


class _Part:
    """What has arrived of the file, which version of it that is (`validator`), and the `total` to come, if known."""

    def __init__(self, url, path, size):
        self.url, self.validator, self.total = url, None, None
        self.path = path.with_name(path.name + ".part")
        self._notes = path.with_name(path.name + ".part.json")
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # damaged notes are none
            notes = json.loads(self._notes.read_text(encoding="utf-8"))
            if notes["url"] == url and (size is None or notes["total"] in (None, size)):
                self.validator, self.total = notes["validator"], notes["total"]
                return
        with _writing(path, size or 0):
            self.drop()

    @property
    def length(self):
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def complete(self):
        return self.path.exists() and self.length == self.total

    def start(self, validator, total):
        """Starts over with a version of the file. Old bytes go before the new notes come: they never mix."""
        self.drop()
        self.validator, self.total = validator, total
        notes = {"url": self.url, "validator": validator, "total": total}
        self._notes.write_text(json.dumps(notes), encoding="utf-8")
        self.path.touch()

    def drop(self):
        self.validator = self.total = None
        self.path.unlink(missing_ok=True)
        self._notes.unlink(missing_ok=True)

    def sha256(self):
        with open(self.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def finish(self, path):
        with open(self.path, "rb+") as file:
            os.fsync(file.fileno())  # the name must not outlive the bytes in a power failure
        os.replace(self.path, path)
        self._notes.unlink(missing_ok=True)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not out of https; remembers the `host` asked last."""

    def __init__(self, url):
        self.host = urlsplit(url).hostname

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        fp.close()  # urllib would read this answer to its end, if it has one
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme not in ("http", "https") or (old.scheme, new.scheme) == ("https", "http"):
            raise DownloadError(
                f"A download should stay on https. Received: a redirect from {old.scheme}://{old.hostname} to "
                f"{new.scheme}://{new.hostname}. Nothing was fetched from there: is a login page in between?"
            )
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        request.remove_header("Proxy-authorization")  # urllib adds it again where the proxy is used again
        self.host = new.hostname
        return request


def _ask(part, timeout):
    """The server's answer to a request for the bytes that are missing."""
    request = urllib.request.Request(part.url, headers={"User-Agent": "keras_issl"})
    if part.length and part.validator:
        request.add_header("Range", f"bytes={part.length}-")
        request.add_header("If-Range", part.validator)  # another version is sent whole
    redirects = _Redirects(part.url)
    try:
        return urllib.request.build_opener(redirects).open(request, timeout=timeout)
    except DownloadError:
        raise
    except HTTPError as error:
        error.close()
        raise _refusal(error, part, request) from error
    except URLError as error:  # could not connect
        reason, tries = error.reason, 3
        if isinstance(reason, TimeoutError):
            tries = 1  # a firewall that swallows everything would cost as much again
        if isinstance(reason, ssl.SSLCertVerificationError):
            tries, reason = 1, f"{reason}. SSL_CERT_FILE names the certificates to trust, e.g. `python -m certifi`"
        network = "no network: " if redirects.host == urlsplit(part.url).hostname else ""
        reason = f"{network}could not reach {redirects.host} ({reason})"
        raise _Retry(reason, answered=False, tries=tries) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _Retry(f"{redirects.host} did not answer ({_said(error)})") from error


def _refusal(error, part, request):
    """What an HTTP error means: a `_Retry` if it may pass, else a `DownloadError`."""
    said = f"HTTP {error.code} ({error.reason})"
    if error.code == 416 and request.has_header("Range"):
        part.drop()  # there are fewer bytes than we have: not the file we began with
        return _Retry(said)
    if error.code in (408, 425, 429) or error.code >= 500:
        return _Retry(f"the server answers {said}", wait=_retry_after(error.headers))
    meaning = {
        401: "It asks for credentials: is the file private?",
        403: "It refuses access: is the file private, or the network filtered?",
        404: "There is no such file: is the address right?",
        410: "The file has been taken away.",
    }.get(error.code, "Asking again would not help.")
    return DownloadError(f"{part.url} could not be downloaded. Received: {said}. {meaning}")


def _retry_after(headers):
    """Seconds that the server asks us to wait, at most 60."""
    value, seconds = headers.get("Retry-After", ""), 0.0
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        try:
            seconds = float(value)
        except ValueError:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    return min(60.0, max(0.0, seconds))


def _begin(response, part, size, sha256):
    """Settles what the answer continues or begins; returns the length of the part at the end of the answer."""
    version = response.headers.get("ETag", "")
    version = version if version.startswith('"') else response.headers.get("Last-Modified")  # W/"..." is no identity
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", response.headers.get("Content-Range", ""))
        first, last, total = map(int, match.groups()) if match else (None, 0, 0)
        same = version in (None, part.validator) and part.total in (None, total)
        if first != part.length or not first <= last < total or not same:
            part.drop()
            raise _Retry("the server answers with another range or version than was asked for")
        part.total, end = total, last + 1
    elif response.status == 200:
        total = size if response.length is None else response.length
        if total is None and not response.chunked and sha256 is None:
            raise DownloadError(
                f"{part.url} could not be downloaded. The server does not say how long the file is, so that nothing "
                "could tell half of it from the whole. Pass `size` or `sha256`."
            )
        end = total
    else:
        raise DownloadError(f"{part.url} could not be downloaded. Received: HTTP {response.status}, which is no file.")
    if size is not None and total != size:
        raise _mismatch(part.url, "size", size, total)  # what we have so far may still be right
    if size is None and (total or 0) > _LARGEST:
        raise DownloadError(f"{part.url} should have at most {_LARGEST:,} bytes. Received: a length of {total:,}.")
    with _writing(part.path, (end or 0) - part.length):
        if response.status == 200:
            part.start(version, total)
        if (end or 0) - part.length > shutil.disk_usage(part.path.parent).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return end


def _receive(response, part, end, path, verbose):
    """Appends the answer's body to the part."""
    if response.will_close:
        response.length = None  # read to the end of the connection: a body longer than declared must show
    have = start = part.length
    limit = _LARGEST if end is None else end
    label = f"{path.name} (from {start // _MB:,} MB on)" if start else path.name
    update = progress_line(-(-(limit - start) // _MB), label, end is not None and verbose, unit="MB")
    with _writing(path, limit - start if end else 0), open(part.path, "ab") as file:
        while have <= limit and (block := _read(response)):
            have += len(block)
            file.write(block)
            update((have - start) // _MB if have < limit else -(-(limit - start) // _MB))
    if have > limit:
        part.drop()
        raise DownloadError(
            f"{part.url} should have {limit:,} bytes, by what the server declared or at most. Received: more. Nothing "
            "was kept: the server, or a proxy in between, is not to be trusted with this file."
        )
    if end is None:
        part.total = have  # the last chunk has come, or the sha256 decides
    elif not part.complete:
        raise _Retry(f"the connection ended after {have:,} of {part.total:,} bytes")


def _read(response):
    try:
        return response.read1(_BLOCK)  # what is there: a stall later on does not cost it
    except (OSError, http.client.HTTPException) as error:
        raise _Retry(f"the connection broke ({_said(error)})") from error


def _said(error):
    return "nothing came for too long" if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}"


def _mismatch(url, name, expected, received):
    return ValueError(
        f"`{name}` should be that of the file at {url}. Received: {received} where {expected} was expected. It was not "
        "kept: the file there has changed, or a proxy or login page answered in its place."
    )


@contextlib.contextmanager
def _writing(path, needed):
    """Says of a failure to write how much space is needed and where."""
    try:
        yield
    except DownloadError:
        raise
    except OSError as error:
        raise OSError(
            error.errno,
            f"{path} could not be written: {error.strerror}. It should be in a writable folder with "
            f"{max(needed, 0) / _MB:,.1f} MB free. Make room or choose another folder (KERAS_ISSL_HOME moves the "
            "cache); the same call resumes where it stopped",
        ) from error


def _check(url, sha256):
    parts = urlsplit(url)
    if not re.fullmatch("https?://[!-~]+", url) or not parts.hostname or parts.username is not None:
        raise ValueError(
            "`url` should be an address that begins with https:// or http:// and holds no credentials. "
            f"Received: {parts.scheme}://{parts.hostname}."
        )
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise ValueError(f"`sha256` should be 64 hexadecimal digits. Received: {sha256!r}.")
