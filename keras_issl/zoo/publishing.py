"""`push_to_hub`: a preset folder becomes one commit on the Hugging Face Hub, or nothing happens.

The folder is read and never written. What the Hub has and a preset does not is left alone, its card above all.
"""

import contextlib
import functools
import hashlib
import json
import re
import tempfile
import time
import warnings
from pathlib import Path

from keras_issl.zoo import hub, hub_errors, upload
from keras_issl.zoo.cache import is_offline
from keras_issl.zoo.layout import CARD, FILES, METADATA, PICTURE, WEIGHTS, git_sha1, sha256

ATTEMPTS, PAUSE = 4, 0.5  # of a commit, and seconds before the second one; doubled before each other
SILENCE = 60.0  # seconds after which a question has failed, and without a byte an upload or the commit
LATE = 20.0  # seconds after which a failed upload or commit is not tried again: huggingface_hub has done that itself
PATIENCE = 60.0  # seconds that the Hub may ask to wait; if it asks for more, the user is told
NOTHING_IGNORED = "# a preset is published whole\n"  # instead of the repository's own .gitignore


def push_to_hub(
    folder,
    address,
    *,
    private=False,
    tag=None,
    message=None,
    create=True,
    overwrite_card=False,
    parent_commit=None,
    picture=None,
):
    """Publishes a preset on the Hugging Face Hub, as one commit.

    The folder is checked first: a damaged preset is not published, and its files are only read. The commit holds the
    preset's files and its model card; files of a preset that an earlier push left and this one lacks are deleted in
    it. A card that somebody wrote or changed on the Hub is kept, and so is everything else there. A card that you wrote
    into the folder is published as it is (with a front matter if it has none), else one made for the Hub. If nothing
    has changed, there is no commit.

    A commit that fails is tried again, and never made twice; one that somebody else has made in between is not
    overwritten. It takes a token with the role `write`: `hf auth login`, or the environment variable `HF_TOKEN`.

    Args:
        folder: Path of a preset folder or of a run folder.
        address: Where to, `"hf://org/name"`; the commit goes to the branch `main`.
        private: Whether a repository that is made is private. An existing one stays what it is: a public one is
            refused if this is true.
        tag: Name of a tag to set on the commit, such as `"v1"`.
        message: The commit's message; by default the preset's name and the library's version.
        create: Whether the repository may be made if there is none.
        overwrite_card: Whether a card that somebody wrote or changed on the Hub may be replaced.
        parent_commit: The commit, 40 hexadecimal digits, that the branch must be at.
        picture: Path of a PNG file of at most 5 MB for the card, such as `keras_issl.report.neighbours` draws.

    Returns:
        The address of the commit, `"hf://org/name@"` and 40 hexadecimal digits, which `from_preset` takes.

    Raises:
        ValueError: The folder holds no sound preset; the address, an option or the card is not right; or somebody
            else has published in between. Nothing was published.
        PermissionError: There is no token, or one that does not allow it.
        ConnectionError: No network, or a Hub that does not answer as it should.

    Example (it takes a token):

    ```py
    keras_issl.save_preset(encoder, "my_preset")
    address = keras_issl.push_to_hub("my_preset", "hf://me/my_preset", tag="v1")
    encoder = keras_issl.from_preset(address)
    ```
    """
    from huggingface_hub import HfApi

    from keras_issl import __version__

    target = hub.parse(address)
    if target.revision is not None:
        raise ValueError(
            f"`address` should name no revision: a commit goes to the branch main. Received: {str(address)!r}. Write "
            f"{hub.HUB}{target.repo}, and tag=... to name the commit."
        )
    _check_options(target, tag, parent_commit)
    folder = upload.preset_folder(folder)
    metadata, custom_class, files = upload.read_preset(folder)
    make_card = functools.partial(upload.choose_card, folder, metadata, custom_class, target)
    card = make_card(picture is not None)
    if picture is not None:
        files[PICTURE] = upload.read_picture(picture)
    message = message or f"Upload {' '.join(metadata['name'].split())} with keras_issl {__version__}"

    if is_offline():
        raise ConnectionError(f"{target} cannot be published: HF_HUB_OFFLINE forbids the network. Unset it for this.")
    api = HfApi(token=True, library_name="keras_issl", library_version=__version__)
    with _bounded(SILENCE):
        parent, is_new = _open(api, target, create and parent_commit is None, private, card)
        if parent_commit not in (None, parent):
            raise ValueError(
                f"`parent_commit` should be the commit that the branch main of {target} is at, {parent}. Received: "
                f"{parent_commit!r}. Somebody has published since: look at {_page(target, 'commits/main')}, and push "
                "again."
            )
        made = f"The repository {target.repo} was made for this push and stays: the same call goes on."
        with _saying(made if is_new else ""):
            there = _tree(api, target, parent)
            _check_kind(api, target, there, parent, files)
            if picture is None and PICTURE in there and _is_same(there.get(WEIGHTS), files[WEIGHTS]):
                card = make_card(True)  # the picture there is of this very encoder
            old_card = _card_of_ours(api, target, there, parent, card)
            replaces_card = overwrite_card or old_card is not None
            wanted = _wanted(files, card if replaces_card else None, old_card)
            changes = _changes(there, wanted)
            has_tag = tag is not None and _has_tag(api, target, tag, parent, changes)
            if CARD in changes and not is_new:
                _patiently(target, lambda: upload.validate_card(target, card))
            commit = _commit(api, target, parent, wanted, changes, message) if changes else parent
        published = target._replace(revision=commit)
        if tag is not None and not has_tag:
            _set_tag(api, published, tag)
    if changes and not replaces_card:
        warnings.warn(
            f"The card on {hub_errors.endpoint()}/{target.repo} was kept, because somebody wrote or changed it: it may "
            "say what is not so of this preset. With overwrite_card=True (--overwrite-card) it is replaced.",
            stacklevel=2,
        )
    return str(published)


# ---------------------------------------------------------------------- before any request
def _check_options(target, tag, parent_commit):
    if parent_commit is not None and not hub.COMMIT.fullmatch(str(parent_commit)):
        raise ValueError(f"`parent_commit` should be 40 hexadecimal digits. Received: {parent_commit!r}")
    if tag is None:
        return
    part = r"[A-Za-z0-9_][\w.+=-]*(?<!\.)(?<!\.lock)"
    good = isinstance(tag, str) and re.fullmatch(f"{part}(/{part})*", tag) and ".." not in tag
    if not good or tag == "main" or hub.COMMIT.fullmatch(tag):
        raise ValueError(
            "`tag` should be a name of letters, digits and any of _.+=-/ that is not that of a branch or a commit, "
            f"such as 'v1'. Received: {tag!r}"
        )
    hub.parse(f"{target}@{tag}")  # or the tag could not be loaded


# ---------------------------------------------------------------------- what is there, and what should be
def _open(api, target, create, private, card):
    """The commit that the branch `main` is at, and whether the repository was just made."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    is_new = False

    def ask():
        nonlocal is_new
        try:
            return api.model_info(target.repo, timeout=hub.TIMEOUT)
        except RepositoryNotFoundError as error:
            if not create or isinstance(error, GatedRepoError):
                raise
        upload.validate_card(target, card)  # before anything is made
        api.create_repo(target.repo, private=private or None, exist_ok=True)  # None: as the organisation has it
        is_new = True
        return api.model_info(target.repo, timeout=hub.TIMEOUT)

    info = _patiently(target, ask)
    if private and not info.private:
        raise ValueError(
            f"`private=True` makes a new repository private, and {target} is there and public: nothing was published. "
            f"Make it private on {_page(target, 'settings')} first, or leave `private` out."
        )
    return info.sha, is_new


def _tree(api, target, commit):
    """The files at the top of a commit, a dict from names to what the Hub says of them."""
    from huggingface_hub import RepoFile

    entries = _patiently(target, lambda: list(api.list_repo_tree(target.repo, revision=commit)))
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def _read(api, target, commit, name):
    """The content of a small file on the Hub."""
    with tempfile.TemporaryDirectory() as folder:
        path = _patiently(
            target, lambda: api.hf_hub_download(target.repo, name, revision=commit, cache_dir=folder, token=True)
        )
        return Path(path).read_bytes().decode("utf-8", "replace")


def _check_kind(api, target, there, commit, files):
    """Raises a `ValueError` for a repository that holds another library's model under the names of a preset's files."""
    names = sorted(FILES.intersection(there) - {CARD})
    if not names or _is_same(there.get(METADATA), files[METADATA]):
        return
    known = {}
    if METADATA in there:
        with contextlib.suppress(ValueError):
            known = json.loads(_read(api, target, commit, METADATA))
    if not isinstance(known, dict) or not {"feature_dim", "files", "format"} <= set(known):
        raise ValueError(
            f"{target} holds {', '.join(names)}, and is no preset of keras_issl: they would be replaced, so nothing "
            "was published. Choose another name, or delete them there first."
        )


def _card_of_ours(api, target, there, commit, card):
    """The card on the Hub if it is nobody's work: one that this library made, or "" for none; else `None`."""
    if CARD not in there:
        return ""
    if _is_same(there[CARD], _as_file(card)):
        return card
    text = _read(api, target, commit, CARD)
    return text if upload.is_made(text) else None


def _wanted(files, card, old_card):
    """What the commit should hold: a dict from names to files, or to `None` for what should not be there."""
    wanted = dict.fromkeys(FILES - {CARD}) | files
    if card is not None:
        wanted[CARD] = _as_file(card)
        if PICTURE not in card and PICTURE in (old_card or ""):
            wanted.setdefault(PICTURE, None)  # no card shows it any more
    return wanted


def _as_file(text):
    data = text.encode("utf-8")
    return upload.File(data, hashlib.sha256(data).hexdigest())


def _changes(there, wanted):
    """The names of `wanted` for which the Hub has something else."""
    return [name for name, file in sorted(wanted.items()) if not _is_same(there.get(name), file)]


def _is_same(entry, file):
    if entry is None or file is None:
        return entry is file
    if entry.lfs is not None:
        return entry.lfs.sha256 == file.sha256
    data = file.content if isinstance(file.content, bytes) else file.content.read_bytes()
    return entry.blob_id == git_sha1(data)


def _patiently(target, ask, action="publish"):
    """What `ask()` returns; tried again after a failure that may pass, unless it took its time."""
    pause = PAUSE
    for attempt in range(1, ATTEMPTS + 1):
        began = time.monotonic()
        try:
            with hub_errors.explained(target, action):
                return hub.within(SILENCE, ask)
        except ConnectionError as error:
            wait, late = _wait(error.__cause__, pause), time.monotonic() - began > hub.QUICK
            if attempt == ATTEMPTS or late or wait is None or not hub_errors.is_transient(error.__cause__):
                raise
        time.sleep(wait)
        pause *= 2


# ---------------------------------------------------------------------- the commit
def _commit(api, target, parent, wanted, changes, message):
    """Makes the commit, and returns it; after a failure that may pass it is tried again, and never made twice."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    added = {name: CommitOperationAdd(name, wanted[name].content) for name in changes if wanted[name] is not None}
    deleted = [CommitOperationDelete(name) for name in changes if wanted[name] is None]
    pause = PAUSE
    for attempt in range(1, ATTEMPTS + 1):
        began = time.monotonic()
        try:
            with hub_errors.explained(target, "publish"):
                api.preupload_lfs_files(
                    target.repo, added.values(), free_memory=False, gitignore_content=NOTHING_IGNORED
                )
                for name, operation in added.items():
                    _check_sent(operation, wanted[name])
                began = time.monotonic()
                return api.create_commit(
                    target.repo, [*added.values(), *deleted], commit_message=message, parent_commit=parent
                ).oid
        except ConnectionError as error:
            cause = error.__cause__
            if not (hub_errors.is_transient(cause) or hub_errors.status(cause) == 412):
                raise
            head = _head(api, target)
            if head not in (None, parent):
                if not _changes(_tree(api, target, head), wanted):
                    return head  # it was made, and the answer was lost
                raise _stale(target, parent, head, attempt) from error
            wait, late = _wait(cause, pause), time.monotonic() - began > LATE
            if attempt == ATTEMPTS or wait is None or late:
                note = "It is not known whether the commit has arrived" if head is None else "The branch is unchanged"
                with _saying(f"{note}: push again, which makes no commit twice."):
                    raise
        time.sleep(wait)
        pause *= 2


def _check_sent(operation, file):
    """Raises a `ValueError` if a large file is not what it was when it was checked."""
    if isinstance(file.content, bytes):
        return
    # The first is what was sent: over xet it is computed while sending, over LFS before it.
    if operation.upload_info.sha256.hex() != file.sha256 or sha256(file.content) != file.sha256:
        raise upload.changed(file.content)


def _head(api, target):
    """The commit that the branch is at, or `None` if the Hub does not say."""
    with contextlib.suppress(ConnectionError), hub_errors.explained(target, "publish"):
        return api.model_info(target.repo, timeout=hub.TIMEOUT).sha
    return None


def _wait(error, pause):
    """Seconds to wait before the next attempt, or `None` if the Hub asks for more than is worth waiting for."""
    headers = {} if hub_errors.status(error) is None else error.response.headers
    asked = headers.get("Retry-After", "")
    if not asked.isdigit():  # the Hub's own: "api";r=0;t=55
        left = re.search(r"\br=0;.*\bt=(\d+)", headers.get("RateLimit", ""))
        asked = left.group(1) if left else "0"
    return max(float(asked), pause) if float(asked) <= PATIENCE else None


def _stale(target, parent, head, attempt):
    ours = "nothing was published" if attempt == 1 else "it may have this push below it"
    return ValueError(
        f"Somebody else has published to {target} in the meantime: the branch main was at {parent} and is now at "
        f"{head}. Nothing of theirs was overwritten, and {ours}. Look at it, "
        f"{_page(target, 'commits/main')}, and push again."
    )


# ---------------------------------------------------------------------- the tag
def _has_tag(api, target, tag, parent, changes):
    """Whether the tag is where it should be; a `ValueError` if it is elsewhere."""
    refs = _patiently(target, lambda: api.list_repo_refs(target.repo))
    if tag in {branch.name for branch in refs.branches}:
        raise ValueError(f"`tag` should not be the name of a branch of {target}. Received: {tag!r}. Choose another.")
    commit = next((ref.target_commit for ref in refs.tags if ref.name == tag), None)
    if commit is not None and (changes or commit != parent):
        raise ValueError(
            f"`tag` should be a new one. Received: {tag!r}, which {target} has on the commit {commit}; nothing was "
            f"published. Choose another, or delete it first: `hf repos tag delete {target.repo} {tag}`."
        )
    return commit is not None


def _set_tag(api, published, tag):
    def ask():
        try:
            api.create_tag(published.repo, tag=tag, revision=published.revision)
        except Exception:  # it may have been made, and the answer lost
            refs = api.list_repo_refs(published.repo)
            if (tag, published.revision) not in {(ref.name, ref.target_commit) for ref in refs.tags}:
                raise

    done = f"The commit {published} is published, but not tagged: `hf repos tag create {published.repo} {tag}"
    with _saying(f"{done} --revision {published.revision}` tags it."):
        _patiently(published, ask, "tag")


@contextlib.contextmanager
def _bounded(seconds):
    """Lets requests fail after so many seconds of silence; huggingface_hub waits for ever, which hangs a push."""
    from huggingface_hub.utils import get_session

    session = get_session()
    before = session.timeout
    session.timeout = seconds
    try:
        yield
    finally:
        session.timeout = before


@contextlib.contextmanager
def _saying(note):
    """Adds to what went wrong what is on the Hub nevertheless."""
    try:
        yield
    except (ValueError, OSError) as error:
        if not note:
            raise
        kind = next(k for k in (PermissionError, ConnectionError, OSError, ValueError) if isinstance(error, k))
        raise kind(f"{error} {note}") from error.__cause__


def _page(target, page):
    return f"{hub_errors.endpoint()}/{target.repo}/{page}"
