"""What goes wrong with the Hugging Face Hub, each in one sentence that names the way out."""

import contextlib
import errno
import os
import re

LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
BROKEN_OFF = ("CloseError", "ReadError", "RemoteProtocolError", "WriteError")  # httpx: there was a connection
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


@contextlib.contextmanager
def explained(address, action):
    """Turns the exceptions of huggingface_hub, its HTTP client and hf_xet into the four kinds that users can act on.

    Args:
        address: The repository, a `hub.Address`, as the message shows it.
        action: `"load"`, `"publish"` or `"tag"`: what cannot be done now.

    Raises:
        ValueError: The address is wrong: no such repository, revision or file.
        PermissionError: There is no token, or one that does not allow it.
        ConnectionError: No network, or a Hub that does not answer as it should.
        OSError: The disk is full or the cache cannot be written.
    """
    try:
        yield
    except Exception as error:
        clear = _clear(error, address, action)
        if clear is None:
            raise
        raise clear from (None if _holds_token(error) else error)


def no_preset(address, why):
    """The exception for a model on the Hub that is another library's, or none of a version that this one reads."""
    return ValueError(
        f"{address} is no preset of keras_issl: {said(why)} Presets are published by `keras_issl.push_to_hub`. A "
        "model of keras-hub becomes an encoder by `encoders.Adapter`, a torch checkpoint by `keras-issl convert`."
    )


def is_transient(error):
    """Whether the same request may succeed a little later: a dropped connection, a Hub that is busy or restarting."""
    code = status(error)
    if code is not None:
        return code in (408, 409, 425, 429) or code >= 500 or (code == 403 and _is_of_storage(error))
    if type(error).__name__ in ("OfflineModeIsEnabled", "UnsupportedProtocol", "LocalProtocolError"):
        return False
    return _is_network(error) or (_is_xet(error) and not _of_the_disk(error))


def _clear(error, address, action):
    """The exception that says what happened, or `None` for one that is not the Hub's."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError | errors.FileMetadataError):  # what it tried is the cause
        if isinstance(error.__cause__, Exception):
            return _clear(error.__cause__, address, action)
        return ConnectionError(f"{address} cannot be fetched: {said(error)}")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return ConnectionError(
            f"{address} cannot be {_done(action)}: HF_HUB_OFFLINE forbids the network. Unset it for this."
        )
    if isinstance(error, errors.HFValidationError):
        return ValueError(f"`address` should be hf://organisation/name. Received: {str(address)!r}. {said(error)}")
    if isinstance(error, errors.LocalTokenNotFoundError):
        return _no_token(address, action)
    if _holds_token(error):
        return PermissionError(
            f"HF_TOKEN, or the token of the last login, holds characters that no token has, so {address} cannot be "
            f"{_done(action)}: {LOGIN}."
        )
    for kind, make in _ANSWERS.items():
        if isinstance(error, getattr(errors, kind)):
            return make(address, action)
    if status(error) is not None:
        return _answered(error, address, action)
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, errors.HTTPError):  # of an upload
        return _clear(error.__cause__, address, action)
    if problem := _of_the_disk(error):
        return _disk(problem, address)
    if _is_xet(error):
        return ConnectionError(
            f"The Hub's storage cannot be reached, so {address} cannot be {_done(action)}. Check the connection"
            f"{_proxy()} and try again; with HF_HUB_DISABLE_XET=1 it goes over plain HTTP."
        )
    if type(error).__name__ == "UnsupportedProtocol":
        return ValueError(
            f"HF_ENDPOINT should be an http or https address. Received: {endpoint()!r}, from which {address} cannot be "
            f"{_done(action)}. Unset it for huggingface.co."
        )
    if "[SSL" in str(error):
        return ConnectionError(
            f"{endpoint()} does not answer over TLS ({said(error)}), so {address} cannot be {_done(action)}. Check "
            f"HF_ENDPOINT{_proxy()}."
        )
    if type(error).__name__ in BROKEN_OFF:
        return ConnectionError(
            f"The connection to {endpoint()} broke off ({said(error)}), so {address} cannot be {_done(action)}. "
            f"Check the connection{_proxy()} and try again."
        )
    if _is_network(error):
        return ConnectionError(
            f"No network: {endpoint()} cannot be reached ({said(error)}), so {address} cannot be {_done(action)}. "
            f"Check the connection{_proxy()}"
            + ("; what has been loaded once is in the cache and needs none." if action == "load" else ".")
        )
    if isinstance(error, OSError) and error.errno is not None:
        return _disk(error, address)
    return None


_ANSWERS = {  # in this order: the first is a special case of the second
    "GatedRepoError": lambda address, action: PermissionError(
        f"{address} asks its readers to accept conditions (it is gated). Accept them on {endpoint()}/{address.repo} "
        f"with your account, then {LOGIN}."
    ),
    "RepositoryNotFoundError": lambda address, action: ValueError(
        f"There is no model {address.repo!r} on {endpoint()} that you may read: it does not exist or is private. "
        f"Received: {str(address)!r}. Check the name; for a private one, {LOGIN}"
        + (" of an account that may read it." if _has_token() else ".")
    ),
    "RevisionNotFoundError": lambda address, action: ValueError(
        f"The model {address.repo!r} has no revision {address.revision!r}. Received: {str(address)!r}. A revision is "
        f"a branch, a tag or a commit: see {endpoint()}/{address.repo}/commits/main."
    ),
    "RemoteEntryNotFoundError": lambda address, action: no_preset(address, "it has no metadata.json."),
    "DisabledRepoError": lambda address, action: PermissionError(
        f"The Hub has disabled {address}. Its page, {endpoint()}/{address.repo}, may say why."
    ),
}


def _answered(error, address, action):
    """For an answer with an error status that is none of the kinds above."""
    code, message = status(error), _server_message(error)
    if code == 401 and not _has_token():
        return _no_token(address, action)
    if code == 401:
        return PermissionError(
            f"The Hub does not know the token that it was given, so {address} cannot be {_done(action)}: {LOGIN}. It "
            "refuses a bad token for public models too; unset HF_TOKEN to go without."
        )
    if code == 403 and _is_of_storage(error):
        return ConnectionError(
            f"The Hub's storage refuses ({message}), so {address} cannot be {_done(action)} now. Its links expire: try "
            "again."
        )
    if code == 403:
        need = "the right to read" if action == "load" else "a token with the role `write` and the right to write to"
        return PermissionError(
            f"The Hub refuses: {message}. If it is about rights, it takes {need} {address.repo}: {LOGIN}; "
            "`hf auth whoami` shows whose token it is."
        )
    if code == 429 or code >= 500:
        why = "limits the requests of your account or address" if code == 429 else "has a problem"
        wait = error.response.headers.get("Retry-After")
        after = f" in {wait} seconds" if wait and wait.isdigit() else " in a while"
        return ConnectionError(
            f"The Hub {why}, so {address} cannot be {_done(action)} now ({code} {message}). Try again{after}."
        )
    return ConnectionError(f"The Hub refuses, so {address} cannot be {_done(action)}: {code} {message}.")


def _no_token(address, action):
    return PermissionError(f"{address} cannot be {_done(action)} without a token of the Hub: {LOGIN}.")


def _disk(error, address):
    from huggingface_hub import constants

    cache = constants.HF_HUB_CACHE
    if error.errno in FULL:
        return _numbered(
            OSError,
            error.errno,
            f"There is no room for {address} in the cache {cache} ({error.strerror}). Make room, or set HF_HOME to a "
            "folder on another disk; the same call goes on.",
        )
    if error.errno in DENIED:
        return _numbered(
            PermissionError,
            error.errno,
            f"The cache {cache} cannot be written ({error.strerror}). Set HF_HOME to a folder of yours.",
        )
    return None


def _numbered(kind, number, message):
    """An `OSError` with its `errno`, which is not in its text."""
    error = kind(message)
    error.errno = number
    return error


def status(error):
    """The status of the Hub's answer, or `None` for an exception that is of none."""
    from huggingface_hub.errors import HfHubHTTPError

    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _holds_token(error):
    """Whether it is about the header with the token, which its text may show: not even a traceback should."""
    return isinstance(error, UnicodeError) or "Illegal header" in str(error)


def _is_of_storage(error):
    """Whether it is the storage that answered, to which the Hub sends with links that expire."""
    from huggingface_hub import constants

    return not str(error.response.url).startswith(constants.ENDPOINT)


def _server_message(error):
    return said(error.server_message or error.response.reason_phrase or "no reason given").rstrip(".")


def _is_network(error):
    from huggingface_hub import errors

    return isinstance(error, (errors.HTTPError, ConnectionError, TimeoutError)) and status(error) is None


def _is_xet(error):
    """hf_xet reports failures as `RuntimeError`, or as a class of its own module."""
    from huggingface_hub import errors

    kinds = (RuntimeError, getattr(errors, "XetDownloadError", RuntimeError))
    return type(error) in kinds or type(error).__module__.split(".")[0] == "hf_xet"


def _of_the_disk(error):
    """The disk's error that hf_xet tells of in its text, as an `OSError`, or `None`."""
    code = re.search(r"\(os error (\d+)\)", str(error)) if _is_xet(error) else None
    number = int(code.group(1)) if code else None
    return OSError(number, os.strerror(number)) if number in FULL + DENIED else None


def said(error):
    """What an exception says, on one short line."""
    text = re.sub(r"\[Errno -?\d+\] | \(_ssl\.c:\d+\)", "", " ".join(str(error).split())) or type(error).__name__
    text = re.sub(r"hf_\w{8,}|Bearer \S+|(?<=://)[^/@\s]+@", "…", text)  # no token or password
    return text if len(text) <= 200 else text[:199] + "…"


def _done(action):
    return {"load": "loaded", "publish": "published", "tag": "tagged"}[action]


def endpoint():
    """The address of the Hub: Hugging Face's, or what HF_ENDPOINT names."""
    from huggingface_hub import constants

    return re.sub(r"(?<=://)[^/@]+@", "", constants.ENDPOINT)  # without a password


def _has_token():
    from huggingface_hub import get_token

    return get_token() is not None


def _proxy():
    named = sorted(name for name in os.environ if name.upper() in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"))
    return f" and the proxy in {' and '.join(named)}" if named else ""
