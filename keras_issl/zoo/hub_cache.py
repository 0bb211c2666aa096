"""Hugging Face's cache, as it documents it: a folder a repository, whose snapshots link to contents named by hash."""

import contextlib
import os
import re
import shutil
from pathlib import Path

from keras_issl.files import write_text
from keras_issl.zoo.layout import git_sha1, sha256

COMMIT = SHA1 = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")


def root():
    """The folder of the cache: `hub` in `HF_HOME`, or what `HF_HUB_CACHE` names."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def repository(repo):
    """The folder of a model, `organisation/name`, in the cache."""
    return root() / f"models--{repo.replace('/', '--')}"


def known_commit(address):
    """The commit that a branch or tag was when it was last used on this machine, or `None`."""
    revision = address.revision or "main"
    with contextlib.suppress(OSError, ValueError):
        commit = (repository(address.repo) / "refs" / revision).read_text(encoding="ascii").strip()
        return commit if COMMIT.fullmatch(commit) else None
    if re.fullmatch(r"[0-9a-f]{7,39}", revision):  # the beginning of a commit
        found = [commit for commit in revisions(address.repo) if commit.startswith(revision)]
        return found[0] if len(found) == 1 and COMMIT.fullmatch(found[0]) else None
    return None


def remember(address, commit):
    """Notes what a branch or tag is now, where Hugging Face's own tools note it; a cache that is read-only stays so.

    A commit of which the cache has more stays noted: it is what there is without a network.
    """
    if address.is_pinned:
        return
    known, snapshots = known_commit(address), repository(address.repo) / "snapshots"
    if known not in (None, commit):
        old, new = ({path.name for path in (snapshots / sha).glob("*")} for sha in (known, commit))
        if not old <= new:
            return
    path = repository(address.repo) / "refs" / (address.revision or "main")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, commit)


def is_sound(path, known=None):
    """Whether a file of a snapshot is there and whole: its content is named by its SHA-1 in git, or its SHA-256.

    `known` is that hash for a cache without links, which some file systems do not have.
    """
    if not path.is_file():
        return False
    name = _name_in_store(path) or known or ""
    if SHA256.fullmatch(name):
        return sha256(path) == name
    if SHA1.fullmatch(name):
        return git_sha1(path.read_bytes()) == name
    return True  # a cache without links: what is in metadata.json is then held against the other files


def _name_in_store(path):
    """The name of the content that a file of a snapshot links to; `None` in a cache without links."""
    return Path(os.readlink(path)).name if path.is_symlink() else None


def sha256_of(path):
    """SHA-256 of a sound file, computed only where it is not its name."""
    name = _name_in_store(path) or ""
    return name if SHA256.fullmatch(name) else sha256(path)


def remove(path, repo):
    """Takes a damaged file out of the cache, and all that it links to there."""
    roots = (root().resolve(), repository(repo).resolve())  # a repository's folder may lie on another disk
    while os.path.lexists(path) and any(path.parent.resolve().is_relative_to(place) for place in roots):
        target = path.parent / os.readlink(path) if path.is_symlink() else None
        path.unlink()
        if target is None:
            return
        path = target


def check_room(address, needed):
    """Raises an `OSError` unless the cache's disk has so many bytes free."""
    folder = root()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"There is no room for {address} in the cache {root()}: it takes {_amount(needed)}, and "
            f"{_amount(free)} are free. Make room, or set HF_HOME to a folder on another disk."
        )


def _amount(count):
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.0f} KB"


def revisions(repo):
    """The branches and tags, and the commits, of which the cache has something."""
    refs = repository(repo) / "refs"
    names = sorted(path.relative_to(refs).as_posix() for path in refs.rglob("*") if path.is_file())
    return names + sorted(path.name for path in (repository(repo) / "snapshots").glob("*"))


def snapshot(address):
    """Where the cache keeps the files of a pinned address."""
    return repository(address.repo) / "snapshots" / address.revision
