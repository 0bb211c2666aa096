"""What a preset folder holds: names of files, and entries of `metadata.json`."""

import hashlib

FORMAT = 1
CONFIG, METADATA, CARD = "config.json", "metadata.json", "README.md"
WEIGHTS, OBJECTIVE, OBJECTIVE_WEIGHTS = "model.weights.h5", "objective.json", "objective.weights.h5"
GOLDEN, PICTURE = "golden.npz", "neighbours.png"  # the picture is no part of a preset: its card shows it
FILES = {CONFIG, METADATA, CARD, WEIGHTS, OBJECTIVE, OBJECTIVE_WEIGHTS, GOLDEN}
REQUIRED = {  # entries of metadata.json -> their types: what every preset says of itself
    "format": int, "name": str, "feature_dim": int, "probe": str | None, "recipe": dict | None, "results": list,
    "provenance": dict, "versions": dict, "files": dict, "verified": bool,
}  # fmt: skip
OPTIONAL = {  # and what it may say
    "citation": str, "description": str, "hub": dict, "license": dict, "note": str, "parameters": int,
    "preprocessing": dict, "source": dict,
}  # fmt: skip


def sha256(path):
    """SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_sha1(data):
    """SHA-1 that git, and so the Hub, knows a small file by, in hexadecimal digits."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
