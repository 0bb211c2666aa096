"""Features on disk: NumPy archives whose array can be memory-mapped, and Parquet. Written and read block by block."""

import json
import math
import mmap
import os
import struct
import tempfile
import zipfile
import zlib

import numpy as np

SUFFIXES = (".npz", ".parquet")
START = 192  # bytes before the first row of an archive: 64 of the zip member's header, 128 of NumPy's
_BLOCK = 1 << 21  # values, 8 MiB
_METADATA = b"keras_issl"


def blocks(array):
    """Views of an array's rows, in order, of 8 MiB each.

    The pages of a read-only map are given back after each block: whoever reads all of a mapped file this way does not
    end up with all of it in memory.
    """
    pages = _map_under(array)
    step = max(1, _BLOCK // max(1, array.shape[1]))
    for start in range(0, len(array), step):
        yield array[start : start + step]
        if pages is not None:
            pages.madvise(mmap.MADV_DONTNEED)


def _map_under(array):
    """The read-only memory map under an array, whose pages can be dropped without a loss; or None."""
    read_only = False
    while isinstance(array, np.ndarray):
        read_only = read_only or getattr(array, "mode", None) == "r"
        array = array.base
    return array if read_only and isinstance(array, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED") else None


def write_npz(file, array, labels, provenance):
    """Writes a NumPy archive to an empty file open for reading and writing."""
    file.write(bytes(START))
    for block in blocks(array):
        file.write(np.ascontiguousarray(block, "<f4"))
    seal_npz(file, array.shape, labels, provenance)


def seal_npz(file, shape, labels, provenance):
    """Makes a NumPy archive of a file that holds `START` bytes and then the rows, without moving the rows.

    The array is the first member, stored as it is and aligned to 64 bytes, so that it can be mapped. The same content
    gives the same bytes.

    Args:
        file: open for reading and writing.
        shape: (N, D), that of the rows.
        labels: int64 (N,), or None.
        provenance: a dictionary that JSON can hold.
    """
    rows, dim = shape
    text = json.dumps(provenance)
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dim}), }}".ljust(117) + "\n"
    file.seek(64)
    file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + header.encode())  # 10 + 118 bytes
    info = _member("array.npy")
    info.header_offset, info.CRC = 0, 0
    info.file_size = info.compress_size = START - 64 + rows * dim * 4
    info.extra = struct.pack("<HHB", 0xD935, 1, 0)  # alignment: 30 + 9 (name) + 5 + 20 (64-bit sizes) = 64 bytes
    file.seek(64)
    while chunk := file.read(4 * _BLOCK):
        info.CRC = zlib.crc32(chunk, info.CRC)
    file.seek(0)
    file.write(info.FileHeader(zip64=True))
    file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file, "w") as archive:
        archive.filelist.append(info)
        members = {"provenance": np.array(text)} | ({} if labels is None else {"labels": labels})
        for name, value in members.items():
            with archive.open(_member(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, value, allow_pickle=False)


def _member(name):
    """A stored member of a zip archive, without the date."""
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o600 << 16
    return info


def read_npz(path, mapped):
    """(array, labels or None, provenance) of a NumPy archive."""
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as members:
        array = _map_npz(members.zip, path) if mapped else members["array"]
        return array, members.get("labels"), json.loads(str(members["provenance"]))


def _map_npz(archive, path):
    info = archive.getinfo("array.npy")
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = header(member)
        skipped = member.tell()
    if info.compress_type != zipfile.ZIP_STORED or fortran_order or dtype != np.dtype("<f4"):
        raise ValueError("an array that is not float32 row after row, uncompressed, cannot be mapped: use mmap=False")
    if skipped + math.prod(shape) * dtype.itemsize != info.file_size:
        raise ValueError(f"an array of shape {shape} in {info.file_size} bytes")
    with open(path, "rb") as file:
        file.seek(info.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
    return np.memmap(path, dtype, "r", info.header_offset + 30 + name + extra + skipped, shape)


def pyarrow():
    """The pyarrow package, with `parquet`."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            'Parquet needs pyarrow: pip install "keras_issl[data]". Or write an .npz file, which needs nothing.'
        ) from error
    return pyarrow


def write_parquet(file, array, labels, provenance):
    """Writes Parquet: `features`, a list of D float32; `label`, int64, null for none; the provenance as metadata."""
    arrow = pyarrow()
    rows, dim = array.shape
    columns = {"features": arrow.list_(arrow.float32(), dim)} | ({} if labels is None else {"label": arrow.int64()})
    schema = arrow.schema(columns, metadata={_METADATA: json.dumps(provenance).encode()})
    done = 0
    with arrow.parquet.ParquetWriter(file, schema, compression="none", use_dictionary=False) as writer:
        for block in blocks(array):  # one row group each
            values = arrow.array(np.ascontiguousarray(block).reshape(-1))
            parts = [arrow.FixedSizeListArray.from_arrays(values, dim)]
            if labels is not None:
                some = labels[done : done + len(block)]
                parts.append(arrow.array(some, arrow.int64(), mask=some < 0))
            writer.write_table(arrow.table(parts, schema=schema), row_group_size=len(block))
            done += len(block)


def read_parquet(path, mapped):
    """(array, labels or None, provenance) of a Parquet file that `write_parquet` wrote."""
    arrow = pyarrow()
    with arrow.parquet.ParquetFile(path) as file:
        schema = file.schema_arrow
        column = schema.field("features").type
        if not arrow.types.is_fixed_size_list(column) or column.value_type != arrow.float32():
            raise ValueError(f"a column `features` of {column} instead of fixed-size lists of float32")
        shape = (file.metadata.num_rows, column.list_size)
        provenance = json.loads((schema.metadata or {})[_METADATA])
        labels = None
        if "label" in schema.names:
            labels = file.read(["label"]).column("label").fill_null(-1).to_numpy()
        if mapped:
            with tempfile.TemporaryFile(dir=os.path.dirname(path)) as copy:
                for values in _parquet_rows(file, shape[1]):
                    copy.write(values)
                copy.flush()
                array = np.memmap(copy, np.float32, "r", shape=shape)
        else:
            array, done = np.empty(shape, np.float32), 0
            for values in _parquet_rows(file, shape[1]):
                array[done : done + len(values)] = values
                done += len(values)
    return array, labels, provenance


def _parquet_rows(file, dim):
    """The column `features` in parts, float32 (rows, D)."""
    for group in range(file.num_row_groups):
        # `iter_batches` would do the same in memory that grows with the file.
        for part in file.read_row_group(group, columns=["features"]).column("features").chunks:
            values = part.flatten().to_numpy(zero_copy_only=False)
            yield np.ascontiguousarray(values).reshape(len(part), dim)  # does not fit if a row is null
        pyarrow().default_memory_pool().release_unused()
