"""The steps from the authors' release file to a preset on the Hub, for `publish_zoo.py`.

Each step may be cut off anywhere and repeated: what it makes appears whole, and what it has found is in the state file.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import zoo_checks

import keras_issl
from keras_issl import features, report
from keras_issl.files import write_bytes, write_json, write_text
from keras_issl.zoo import cards, downloads, format, hub, hub_errors, layout, loading, publishing, registry

STEPS = ("download", "convert", "verify", "card", "push", "check", "record")
CONVERTED, VERIFIED, CARDED, PUSHED = (STEPS.index(step) + 1 for step in STEPS[1:5])
LOAD = """
import json, sys
import keras_issl
keras_issl.from_preset(sys.argv[1], verify=True)
print(json.dumps(keras_issl.zoo.read_metadata(sys.argv[1])))
"""


class State:
    """What is known of each preset, kept in a JSON file that is replaced after every step.

    Args:
        path: Path of the file; it need not exist.
        organization: Where on the Hub the presets go. A file is of one organisation.

    Raises:
        ValueError: The file is damaged, or of another organisation.
    """

    def __init__(self, path, organization):
        self.path, self.organization, self._presets = Path(path), organization, {}
        if not self.path.exists():
            return
        try:
            known = json.loads(self.path.read_text(encoding="utf-8"))
            theirs, self._presets = known["organization"], dict(known["presets"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is damaged ({type(error).__name__}: {error}). Delete it: what has been published is known "
                "from the presets of the repository."
            ) from None
        if theirs != organization:
            raise ValueError(f"{path} is of {theirs!r}. Received: {organization!r}. Choose another folder with --work.")

    def of(self, name):
        """The entry of a preset, a dict to change and `save`."""
        return self._presets.setdefault(name, {})

    def save(self):
        """Writes all entries, at once."""
        write_json(self.path, {"organization": self.organization, "presets": self._presets})


class Publication:
    """One preset on its way from the release file to the Hub.

    Args:
        name: Name of a built-in preset.
        state: The `State` of all of them; release files and presets lie in its folder.
        private: Whether a new repository is private.
        tag: A tag for the commit, or `None`.
        pictures: A function from a preset's `preprocessing` to images (N, H, W, 3) for the card's picture, or `None`.
        say: A function that shows one line.
    """

    def __init__(self, name, state, *, private=False, tag=None, pictures=None, say=print):
        self.name, self.state, self.entry, self.say = name, state, state.of(name), say
        self.repo, self.private, self.tag, self.pictures = f"{state.organization}/{name}", private, tag, pictures
        self.work, self.shipped = state.path.parent, registry.shipped_folder(name)
        self.folder, self.release = self.work / name, self.work / f"{name}.torch"
        self.picture = self.work / f"{name}.png"
        self.about = format.read_metadata(self.shipped)

    @property
    def is_published(self):
        """Whether it is on the Hub, as far as is known here."""
        return self._taken() >= PUSHED

    def run(self, dry_run):
        """Takes the steps that are left; with `dry_run` those before the push.

        Returns:
            Whether a step was left.

        Raises:
            Exception: Whatever a step raises; those before it stay done.
        """
        self.entry.pop("error", None)
        steps = STEPS[self._first(dry_run) : CARDED if dry_run else None]
        for step in steps:
            begun = time.monotonic()
            try:
                getattr(self, step)()
                self.entry["step"] = step
            finally:
                self.entry["seconds"] = round(self.entry.get("seconds", 0) + time.monotonic() - begun, 1)
                self.state.save()
        self._tidy()
        return bool(steps)

    # ------------------------------------------------------------------ where to begin
    def _taken(self):
        """How many steps have been taken."""
        return STEPS.index(self.entry["step"]) + 1 if self.entry.get("step") in STEPS else 0

    def _first(self, dry_run):
        """The place in `STEPS` of the first that has to be taken: what those before it made is still there."""
        if not self.entry and self.about.get("hub", {}).get("repo") == self.repo:
            self._adopt()
        taken = self._taken()
        if taken >= PUSHED:
            if dry_run:
                return taken
            if not self._is_on_the_hub():
                taken = CARDED
            elif taken == len(STEPS) and self.about.get("hub") != self._address:
                taken -= 1  # the repository went back to before it was recorded
        if taken == CARDED and not self.entry.get("picture") == (self.pictures is not None) == self.picture.is_file():
            taken = VERIFIED
        if 0 < taken < len(STEPS) and not self._has_files(taken):
            taken = 0
        if taken:
            self.entry["step"] = STEPS[taken - 1]
        else:
            self.entry.clear()
        return taken

    @property
    def _address(self):
        return {"repo": self.repo, "commit": self.entry["commit"]}

    def _adopt(self):
        """What the repository says of a preset that was published with another work folder."""
        self.entry |= {
            "step": STEPS[-1],
            "source": self.about["source"],
            "bytes": self.about["files"][layout.WEIGHTS]["bytes"],
            "difference": self.about["provenance"].get("verified", {}).get("largest_difference"),
            "commit": self.about["hub"]["commit"],
        }

    def _is_on_the_hub(self):
        """Whether the Hub has the commit that was made; the branch may have gone on since."""
        from huggingface_hub import HfApi

        address = hub.Address(self.repo, self.entry["commit"])
        try:
            with hub_errors.explained(address, "load"):
                return HfApi().model_info(self.repo, revision=address.revision).sha == address.revision
        except ValueError as error:
            self.say(f"publishing it again, as the Hub does not have it any more: {error}")
            return False

    def _has_files(self, taken):
        """Whether the files that the next step needs are there and whole."""
        if taken <= CONVERTED and not (
            self.release.is_file() and layout.sha256(self.release) == self.entry["source"]["sha256"]
        ):
            return False
        try:
            if CONVERTED <= taken < PUSHED:
                format.check_hashes(self.folder)
            return taken < CONVERTED or bool(format.read_metadata(self.folder))
        except ValueError:
            return False

    def _tidy(self):
        """Removes the large files that no step needs any more."""
        if self._taken() >= CARDED:
            self.release.unlink(missing_ok=True)
        if self._taken() == len(STEPS):
            (self.folder / layout.WEIGHTS).unlink(missing_ok=True)

    # ------------------------------------------------------------------ steps
    def download(self):
        """The authors' release file, and its SHA-256."""
        needed = 4 * 4 * self.about["parameters"]  # the file, the preset, and the preset fetched again
        free = shutil.disk_usage(self.work).free
        if free < needed:
            raise OSError(
                f"{self.work} should have {needed / 2**20:,.0f} MiB free for a preset. Received: {free / 2**20:,.0f} "
                "MiB. Make room, or choose another folder with --work."
            )
        source = self.about["source"]
        if not self.release.is_file() or source["sha256"] not in (None, layout.sha256(self.release)):
            url = loading.source_url(source)
            self.say(f"downloading {url}")
            downloads.download(url, self.release, sha256=source["sha256"], size=source["bytes"])
        size, digest = self.release.stat().st_size, layout.sha256(self.release)
        self.entry["source"] = {"url": source["url"], "sha256": digest, "bytes": size}
        self.say(f"release file of {size / 2**20:,.1f} MiB, SHA-256 {digest}")

    def convert(self):
        """The release file's weights in the shipped architecture, as a preset folder."""
        loading.convert_release(self.name, self.release, self.shipped, self.folder)
        configs = [json.loads((folder / layout.CONFIG).read_text()) for folder in (self.folder, self.shipped)]
        if configs[0] != configs[1]:
            raise ValueError(f"{self.shipped / layout.CONFIG} should be what is published. Received: {configs[0]}")
        self.entry["bytes"] = (self.folder / layout.WEIGHTS).stat().st_size
        self.say(f"converted into {self.folder}")

    def verify(self):
        """The preset's features against those of a plain PyTorch network with the release file's tensors."""
        difference, pictures = zoo_checks.largest_difference(self.folder, self.release)
        if not difference <= zoo_checks.TOLERANCE:  # also NaN
            self.release.unlink()  # the next run fetches it again
            raise ValueError(
                f"its features differ from PyTorch's by {difference:.1e} of the largest feature, and may by "
                f"{zoo_checks.TOLERANCE}"
            )
        metadata = format.read_metadata(self.folder)
        metadata.pop("hub", None)  # of an earlier publication
        metadata["provenance"]["verified"] = {
            "against": "a plain torch.nn network with the tensors of the release file",
            "largest_difference": float(f"{difference:.2g}"),
            "unit": "the largest feature",
            "pictures": pictures,
            "versions": zoo_checks.versions(),
        }
        metadata |= {"source": self.entry["source"], "verified": True}
        write_json(self.folder / layout.METADATA, metadata)
        self.entry["difference"] = difference
        self.say(f"verified, largest difference to PyTorch {difference:.1e} of the largest feature")

    def card(self):
        """The Hub's card, and its picture of nearest neighbours."""
        self.picture.unlink(missing_ok=True)
        if self.pictures is not None:
            images = self.pictures(format.read_metadata(self.folder)["preprocessing"])  # (N, H, W, 3)
            encoder = keras_issl.from_preset(self.folder)
            found = features.extract_features(encoder, images, batch_size=64, verbose=False).array  # (N, D)
            report.neighbours(images, found, self.picture)
        metadata = format.read_metadata(self.folder)
        text = cards.card(metadata, repo=self.repo, picture=self.pictures and layout.PICTURE)
        write_text(self.folder / layout.CARD, text)
        metadata["files"][layout.CARD] = {
            "sha256": layout.sha256(self.folder / layout.CARD), "bytes": len(text.encode())
        }  # fmt: skip
        write_json(self.folder / layout.METADATA, metadata)
        self.entry["picture"] = self.pictures is not None
        files = [*sorted(self.folder.iterdir()), *([self.picture] if self.pictures else [])]
        sizes = ", ".join(f"{path.name} {path.stat().st_size / 2**10:,.0f} KiB" for path in files)
        self.say(f"ready for hf://{self.repo}: {sizes}")

    def push(self):
        """One commit on the Hub; none if it has the very same files."""
        address = publishing.push_to_hub(
            self.folder,
            f"hf://{self.repo}",
            private=self.private,
            tag=self.tag,
            message=f"{self.name}, converted by keras_issl {keras_issl.__version__} and verified",
            overwrite_card=True,
            picture=self.picture if self.pictures else None,
        )
        self.entry["commit"] = hub.parse(address).revision
        self.say(f"published as {address}")

    def check(self):
        """What the Hub has now, loaded as on a new machine: a process of its own with empty caches."""
        from huggingface_hub import get_token

        address = f"hf://{self.repo}@{self.entry['commit']}"
        own = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_XET_CACHE", "HF_HUB_OFFLINE")
        environment = {key: value for key, value in os.environ.items() if key not in own}
        with tempfile.TemporaryDirectory(prefix=".check-", dir=self.work) as home:
            environment |= {"HF_HOME": home, "KERAS_ISSL_HOME": home, "HF_TOKEN": get_token() or ""}
            environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
            command = [sys.executable, "-c", LOAD, address]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3600)
            if done.returncode:
                why = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
                raise OSError(f"{address} does not load on a new machine: {why}")
            there = json.loads(done.stdout.splitlines()[-1])
        if there != format.read_metadata(self.folder):
            raise OSError(f"{address} is not what was published: its {layout.METADATA} differs from {self.folder}'s")
        self.say("fetched again with empty caches: the same, and it gives its golden features")

    def record(self):
        """Hashes, golden features, `verified`, and where it is published, in the repository's presets."""
        metadata = format.read_metadata(self.folder)
        metadata["files"].pop(layout.CARD, None)  # which here is another one
        metadata["hub"] = self._address
        for name in (layout.GOLDEN, layout.CONFIG):
            write_bytes(self.shipped / name, (self.folder / name).read_bytes())
        write_json(self.shipped / layout.METADATA, metadata)
        write_text(self.shipped / layout.CARD, cards.card(metadata))
        self.say(f"recorded in {self.shipped}, {layout.GOLDEN} has {metadata['files'][layout.GOLDEN]['bytes']:,} bytes")
