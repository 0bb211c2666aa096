"""Presets on the Hugging Face Hub: from `hf://org/name@revision` to a folder with the files of one commit.

The files are kept in Hugging Face's own cache (`HF_HOME`), which its other tools show and clean. A revision is resolved
to a commit once, by one request; a commit in the cache costs none. Nothing that was damaged on its way, or on the disk,
is handed on: each file is held against its SHA-1 in git, or the SHA-256 of a large file.
"""

import os
import queue
import re
import threading
import time
import warnings
from typing import NamedTuple

from keras_issl.zoo import hub_cache, hub_errors, strict
from keras_issl.zoo.cache import is_offline
from keras_issl.zoo.format import read_metadata
from keras_issl.zoo.hub_cache import COMMIT
from keras_issl.zoo.layout import CONFIG, GOLDEN, METADATA, OBJECTIVE

HUB = "hf://"
ATTEMPTS, PAUSE = 3, 0.5  # of one request, and seconds before the second one; doubled before the third
LARGEST = {CONFIG: strict.JSON_BYTES, OBJECTIVE: strict.JSON_BYTES, GOLDEN: strict.ARCHIVE_BYTES}
TIMEOUT = 5.0  # seconds without an answer: with what comes before it, "no network" is said within ten
DEADLINE = 7.0  # for all of it: looking up the name, and each of a host's addresses in turn
QUICK = 2.0  # seconds after which a failed request is not tried again: it waited for its time-out


class Address(NamedTuple):
    """A model on the Hub, `organisation/name`, and a branch, tag or commit of it; `None` is the branch `main`."""

    repo: str
    revision: str | None = None

    def __str__(self):
        return HUB + self.repo + (f"@{self.revision}" if self.revision else "")

    @property
    def is_pinned(self):
        """Whether the revision is a commit, whose files never change."""
        return COMMIT.fullmatch(self.revision or "") is not None


def is_address(preset):
    """Whether `preset` is meant as an address on the Hub: a string that begins with `hf://`."""
    return isinstance(preset, str) and preset.startswith(HUB)


def parse(address, revision=None):
    """The parts of an address.

    Args:
        address: `"hf://org/name"` or `"hf://org/name@revision"`, or an `Address`.
        revision: The revision, where the address names none.

    Returns:
        An `Address`.

    Raises:
        ValueError: It is no such address, or names a revision beside `revision`.

    Example:

    >>> keras_issl.zoo.hub.parse("hf://keras-issl/my_preset@v1")
    Address(repo='keras-issl/my_preset', revision='v1')
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    match = re.fullmatch(r"hf://([^/@\s]+/[^/@\s]+)(?:@(.*))?", str(address))
    if match is None:
        raise ValueError(
            "`address` should be hf://organisation/name or hf://organisation/name@revision, where a revision is a "
            f"branch, a tag or a commit. Received: {str(address)!r}"
        )
    repo, own = match.groups()
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"`address` should name a model on the Hub. Received: {str(address)!r}. {error}") from None
    if own is not None and revision is not None:
        raise ValueError(
            f"The revision should be given once. Received: {str(address)!r} and revision={revision!r}. Leave one out."
        )
    revision = own if revision is None else revision
    if revision is not None and not (
        isinstance(revision, str) and re.fullmatch(r"[\w.+=-]+(/[\w.+=-]+)*", revision) and ".." not in revision
    ):
        raise ValueError(f"The revision should be a branch, a tag or a commit. Received: {revision!r} in {address!r}.")
    return Address(repo, revision)


def pin(address, revision=None):
    """The same address with its revision resolved to a commit, so that what it names never changes.

    This takes one request, or none for a commit. Without network a branch or tag is what it was when it was last used
    on this machine, and a warning says so.

    Args:
        address: As in `parse`.
        revision: As in `parse`.

    Returns:
        A string, `"hf://org/name@"` and 40 hexadecimal digits.

    Raises:
        ValueError: There is no such model or revision, or it is no preset.
        PermissionError: It takes a token, or another one.
        ConnectionError: There is no network, and the revision was never used on this machine.
    """
    address = parse(address, revision)
    if address.is_pinned:
        return str(address)
    known = hub_cache.known_commit(address)
    if is_offline():
        if known is None:
            raise ConnectionError(_offline(address))
        return str(address._replace(revision=known))
    try:
        commit = _ask(address, METADATA).commit_hash
        if not COMMIT.fullmatch(commit or ""):
            raise ConnectionError(
                f"{hub_errors.endpoint()} does not say which commit {address} is. Is it a Hugging Face Hub?"
            )
    except ConnectionError as error:
        if known is None:
            raise
        pinned = str(address._replace(revision=known))
        warnings.warn(
            f"No answer from {hub_errors.endpoint()} ({hub_errors.said(error.__cause__ or error)}): using {pinned} "
            f"from the cache, which is what {address.revision or 'main'!r} was when it was last loaded here.",
            stacklevel=2,
        )
        return pinned
    return str(address._replace(revision=commit))


def fetch(address, names, revision=None):
    """Makes sure that a preset's files lie in the cache, all of one commit and sound.

    Args:
        address: As in `parse`.
        names: Names of files of a preset, such as `"model.weights.h5"`; those that it does not have are left out.
            Its `metadata.json` is always fetched.
        revision: As in `parse`.

    Returns:
        The folder of that commit, a `pathlib.Path`.

    Raises:
        ValueError: There is no such model or revision, it is no preset, or its files are not what git knows.
        PermissionError: It takes a token, or another one; or the cache cannot be written.
        ConnectionError: A file is not in the cache, and cannot be fetched.
        OSError: There is no room.
    """
    asked = parse(address, revision)
    address = parse(pin(asked))
    folder = hub_cache.snapshot(address)
    _require(address, METADATA, strict.JSON_BYTES)
    hub_cache.remember(asked, address.revision)  # if the rest breaks off, what is missing can be named offline
    try:
        recorded = read_metadata(folder)["files"]
    except ValueError as error:
        why = str(error).replace(f"{folder}{os.sep}", "")
        raise hub_errors.no_preset(address, f"its {METADATA} is not one. {why}") from error
    wanted = sorted(set(names) & set(recorded))
    missing = [name for name in wanted if not hub_cache.is_sound(folder / name, _hash(recorded[name]))]
    hub_cache.check_room(address, sum(_size(recorded[name]) or 0 for name in missing))
    for name in missing:
        if name in LARGEST and (_size(recorded[name]) or 0) > LARGEST[name]:
            raise ValueError(
                f"{name} of {address} should have at most {LARGEST[name]:,} bytes. Received: {recorded[name]}."
            )
        _require(address, name, _size(recorded[name]), _hash(recorded[name]), exact=True)
    for name in wanted:
        if hub_cache.sha256_of(folder / name) != _hash(recorded[name]):
            raise ValueError(
                f"{name} of {address} is not the file whose SHA-256 its {METADATA} records: its author "
                "published it like that, and nothing was loaded. Choose another revision, or tell the author."
            )
    hub_cache.remember(asked, address.revision)
    return folder


def cached(address, names):
    """The folder of a pinned address if the cache has these files of it, else `None`. Nothing is asked or read."""
    folder = hub_cache.snapshot(parse(address))
    return folder if all((folder / name).is_file() for name in (METADATA, *names)) else None


# ---------------------------------------------------------------------- requests
def _ask(address, name):
    """What the Hub says of a file without sending it: commit, size, hash. One request, tried again where that helps."""
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.errors import RemoteEntryNotFoundError

    url = hf_hub_url(address.repo, name, revision=address.revision)
    began, pause = time.monotonic(), PAUSE
    with hub_errors.explained(address, "load"):
        for attempt in range(1, ATTEMPTS + 1):
            try:
                api = HfApi(library_name="keras_issl")
                return within(DEADLINE, api.get_hf_file_metadata, url=url, timeout=TIMEOUT)
            except Exception as error:
                if isinstance(error, RemoteEntryNotFoundError) and name != METADATA:
                    raise ValueError(f"{address} lacks its file {name}: it was not published whole.") from error
                late = time.monotonic() - began > QUICK
                if attempt == ATTEMPTS or late or not hub_errors.is_transient(error):
                    raise
            time.sleep(pause)
            pause *= 2


def within(seconds, ask, **kwargs):
    """What `ask(**kwargs)` returns; a `TimeoutError` if it takes longer. Then it ends by itself, unheard."""
    outcome = queue.SimpleQueue()

    def run():
        try:
            outcome.put((ask(**kwargs), None))
        except Exception as error:  # of any kind: it is raised where it was asked
            outcome.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        value, error = outcome.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError("timed out") from None
    if error is not None:
        raise error
    return value


def _require(address, name, size, known=None, exact=False):
    """Fetches a file of at most, or exactly, `size` bytes, unless the cache has it; a damaged one once more."""
    path = hub_cache.snapshot(address) / name
    if hub_cache.is_sound(path, known):
        return
    if is_offline():
        raise ConnectionError(_offline(address, name))
    for _ in range(2):
        hub_cache.remove(path, address.repo)
        told = _download(address, name, size, exact)
        if hub_cache.is_sound(path, known or told):
            return
    hub_cache.remove(path, address.repo)
    raise ValueError(
        f"{name} of {address} arrives damaged: its SHA is not the one that the Hub names. It was removed, and nothing "
        "was loaded. A proxy or a failing disk may be the cause; try another connection or cache (HF_HOME)."
    )


def _download(address, name, size, exact):
    """Fetches a file; returns the hash that the Hub says it has."""
    from huggingface_hub import HfApi

    pause = PAUSE
    for attempt in range(1, ATTEMPTS + 1):
        answer = _ask(address, name)  # says within seconds if there is no network
        offered = answer.size
        if None not in (size, offered) and (offered != size if exact else offered > size):
            raise ValueError(
                f"{name} of {address} should have {'' if exact else 'at most '}{size:,} bytes. The Hub offers "
                f"{offered:,}, which were not fetched: its {METADATA} is wrong, tell its author."
            )
        began = time.monotonic()
        with hub_errors.explained(address, "load"):
            try:
                HfApi(library_name="keras_issl").hf_hub_download(address.repo, name, revision=address.revision)
                return answer.etag
            except Exception as error:
                late = time.monotonic() - began > TIMEOUT  # it has tried again itself
                if attempt == ATTEMPTS or late or not hub_errors.is_transient(error):
                    raise
        time.sleep(pause)
        pause *= 2


# ---------------------------------------------------------------------- what metadata and errors say
def _offline(address, name=None):
    what = f"{address} is not in the cache {hub_cache.root()}"
    if name is not None and hub_cache.snapshot(address).is_dir():
        what = f"{address} is in the cache {hub_cache.root()} without a sound {name}: it was left out, or broke off"
    elif found := hub_cache.revisions(address.repo):
        what += f", which has {', '.join(str(address._replace(revision=revision)) for revision in found[:5])}"
    return f"{what}; HF_HUB_OFFLINE forbids fetching it. Unset HF_HUB_OFFLINE and load it once with a network."


def _size(entry):
    size = entry.get("bytes") if isinstance(entry, dict) else None
    return size if isinstance(size, int) and size >= 0 else None


def _hash(entry):
    value = entry.get("sha256") if isinstance(entry, dict) else None
    return value if isinstance(value, str) else None
