"""Parquet files by row: whole row groups are read, and the latest of them kept."""

import collections
import threading
from pathlib import Path

import numpy as np


class ParquetRows:
    """The image column of some Parquet files, row by row. Whole row groups are read; the latest are kept."""

    def __init__(self, parquet, files, column):
        self._parquet, self._column, self._lock = parquet, column, threading.Lock()
        self._groups = []  # (file, row group)
        sizes, self._bytes = [], 0
        for file in files:
            metadata = parquet.read_metadata(file)
            for number in range(metadata.num_row_groups):
                group = metadata.row_group(number)
                columns = map(group.column, range(group.num_columns))
                self._bytes += sum(
                    c.total_uncompressed_size for c in columns if c.path_in_schema.split(".")[0] == column
                )
                self._groups.append((file, number))
                sizes.append(group.num_rows)
        self._starts = np.cumsum([0, *sizes])
        self._kept, self._held = collections.OrderedDict(), 0  # what is kept, and its bytes
        self._budget = 0

    def __len__(self):
        return int(self._starts[-1])

    def cache(self, budget):
        self._budget = budget
        return self._bytes <= budget

    def _locate(self, index):
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return number, int(index - self._starts[number])

    def blocks(self, indices):
        """The row group of each image, numbered over all files."""
        return (np.searchsorted(self._starts, indices, side="right") - 1).astype(np.int32)

    def where(self, index):
        number, row = self._locate(index)
        file, group = self._groups[number]
        return f"{file}, row {row} of row group {group}"

    def __call__(self, index):
        number, row = self._locate(index)
        with self._lock:
            column = self._kept.pop(number, None)
            if column is None:
                file, group = self._groups[number]
                with self._parquet.ParquetFile(file) as opened:
                    column = opened.read_row_group(group, columns=[self._column]).column(0)
                self._held += column.nbytes
            self._kept[number] = column
            while len(self._kept) > 2 and self._held > self._budget:  # two at least: threads straddle one
                self._held -= self._kept.popitem(last=False)[1].nbytes
        value = column[row].as_py()
        if isinstance(value, dict) and value.get("bytes") is None and value.get("path"):
            return Path(self._groups[number][0]).parent / value["path"]
        return value
