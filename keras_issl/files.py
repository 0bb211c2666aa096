"""Files that are written whole or not at all."""

import json
import os
from pathlib import Path


def write_bytes(path, content):
    """Writes a file through one of this process beside it: a reader, or a power cut, never sees half of it.

    Args:
        path: The file; one that is there is replaced.
        content: Bytes.

    Example:

    >>> keras_issl.files.write_bytes("greeting.txt", b"hello")
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path, text):
    """Writes text, UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path, value):
    """Writes JSON, its keys sorted, as `write_bytes` does."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")
