"""TFRecord files by index: where each record begins is found once, by its length, without reading its content."""

import itertools
import os
import struct

import numpy as np

_HEAD = struct.Struct("<Q4x")  # length of the content, and a checksum of it
_TAIL = 4  # bytes of the content's checksum


class TFRecords:
    """The contents of records, by number.

    Args:
        parts: List of (file, records to leave out, records to take); the second and third as TFDS says them.

    Raises:
        ValueError: A file that is cut off, compressed or no TFRecord file, or has fewer records.

    Example:

    ```python
    with open("one.tfrecord", "wb") as file:
        file.write(struct.pack("<Q4x", 3) + b"abc" + bytes(4))
    TFRecords([("one.tfrecord", 0, 1)])[0]  # b"abc"
    ```
    """

    def __init__(self, parts):
        self._files = [os.fspath(file) for file, _, _ in parts]
        self._begins = [_begins(file)[skip : skip + take] for file, skip, take in parts]
        for (file, skip, take), found in zip(parts, self._begins, strict=True):
            if len(found) < take:
                raise ValueError(
                    f"`source` should hold the records that its dataset_info.json names. Received: {file} with "
                    f"{skip + len(found)} instead of {skip + take}. Download or write it again."
                )
        self._starts = np.array([0, *itertools.accumulate(map(len, self._begins))])

    def __len__(self):
        return int(self._starts[-1])

    def _locate(self, index):
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._files[number], int(self._begins[number][index - self._starts[number]])

    def where(self, index):
        """The place of a record, for messages."""
        file, begin = self._locate(index)
        return f"{file}, record at byte {begin}"

    def __getitem__(self, index):
        file, begin = self._locate(index)
        with open(file, "rb") as stream:  # each read for itself: threads share no position
            stream.seek(begin)
            (length,) = _HEAD.unpack(stream.read(_HEAD.size))
            return stream.read(length)


def _begins(file):
    """Byte at which each record of a file begins."""
    size, begin, found = os.path.getsize(file), 0, []
    with open(file, "rb", buffering=0) as stream:
        while begin < size:
            stream.seek(begin)
            head = stream.read(_HEAD.size)
            end = begin + _HEAD.size + _HEAD.unpack(head)[0] + _TAIL if len(head) == _HEAD.size else size + 1
            if end > size:
                raise ValueError(
                    f"`source` should be uncompressed, whole TFRecord files. Received: {file}, whose record at byte "
                    f"{begin} would end after the file's {size} bytes. Download or write it again."
                )
            found.append(begin)
            begin = end
    return np.array(found, np.int64)
