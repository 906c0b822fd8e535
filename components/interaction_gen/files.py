"""Which files the settings mean, whether they can be read, and their hashes."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from components.interaction_gen import spec
from components.interaction_gen.batches import Extent
from components.interaction_gen.extents import RANGE_BYTES, line_ranges
from components.interaction_gen.readers import check_file, open_parquet
from schemas.logs import DataError, DataSettings, Table

_HASH_BLOCK_BYTES = 1 << 20
# To guess the number of rows, which decides the number of shards.
_BYTES_PER_ROW = 40
_COMPRESSION = 4
_DECOMPRESSORS: dict[str, Callable[..., Any]] = {
    CompressionTypes.GZIP: gzip.open,
    CompressionTypes.BZIP2: bz2.open,
    CompressionTypes.LZMA: lzma.open,
}


class Work(NamedTuple):
    """A part of the input that one worker reads from start to end."""

    table: str  # one of spec.TABLES
    source: int  # index into data.interactions; 0 for the other tables
    file_index: int  # in reading order, over all files of the table
    file: str
    extent: Extent
    rows: int  # about how many


def tables(data: DataSettings) -> Iterator[tuple[str, int, Table]]:
    """Yields every source: its table, its index in it, its settings."""
    for index, source in enumerate(data.interactions):
        yield spec.INTERACTIONS, index, source
    if data.catalogue is not None:
        yield spec.CATALOGUE, 0, data.catalogue
    if data.users is not None:
        yield spec.USERS, 0, data.users


def table_at(data: DataSettings, table: str, source: int) -> Table:
    """Returns the settings of a source."""
    if table == spec.INTERACTIONS:
        return data.interactions[source]
    found = data.catalogue if table == spec.CATALOGUE else data.users
    assert found is not None
    return found


def match(path: str, where: str) -> list[str]:
    """Returns the files that a path or glob stands for, sorted.

    Raises:
      DataError: there are none.
    """
    try:
        found = FileSystems.match([path])[0].metadata_list
    except (BeamIOError, ValueError) as error:
        raise DataError(
            f"{where}: '{path}' cannot be listed: {error}. Check the path and, for a remote file"
            " system, that its Beam extra is installed."
        ) from error
    files = sorted(metadata.path for metadata in found)
    if not files:
        raise DataError(
            f"{where}: no file matches '{path}'. Relative paths are taken from the working"
            " directory; `csmf datasets fetch` gets the public data sets."
        )
    return files


@contextmanager
def open_input(file: str) -> Iterator[BinaryIO]:
    """Opens a file of any file system for reading, decompressed by the end of its name."""
    decompressor = _DECOMPRESSORS.get(CompressionTypes.detect_compression_type(file))
    if decompressor is None:
        with FileSystems.open(file) as handle:
            yield handle
        return
    # Beam's own decompression takes a file that breaks off for a complete one.
    with (
        FileSystems.open(file, compression_type=CompressionTypes.UNCOMPRESSED) as compressed,
        decompressor(compressed, "rb") as handle,
    ):
        yield handle


def plan_work(data: DataSettings) -> list[Work]:
    """Lists the files of all tables and looks at the head of each.

    Raises:
      DataError: no file matches, a file cannot be opened, or a needed column is missing.
    """
    work: list[Work] = []
    indices = dict.fromkeys(spec.TABLES, 0)
    for name, source, table in tables(data):
        for file in match(table.path, location(name, source)):
            work += [
                Work(name, source, indices[name], file, extent, rows)
                for extent, rows in _parts(file, table, data.max_line_bytes)
            ]
            indices[name] += 1
    return work


def location(table: str, source: int) -> str:
    """Returns the configuration key of a source's path."""
    return f"data.{table}.{source}.path" if table == spec.INTERACTIONS else f"data.{table}.path"


def _parts(file: str, table: Table, max_line_bytes: int) -> list[tuple[Extent, int]]:
    """Looks at the head of a file and returns its parts, each with about how many rows it has."""
    try:
        with open_input(file) as handle:
            check_file(handle, file, table, max_line_bytes)
        with open_input(file) as handle:
            if table.format == "parquet":
                metadata = open_parquet(handle, file).metadata
                return [
                    (Extent(row_group=group), metadata.row_group(group).num_rows)
                    for group in range(metadata.num_row_groups)
                ]
            size = FileSystems.match([file])[0].metadata_list[0].size_in_bytes
            if CompressionTypes.detect_compression_type(file) in _DECOMPRESSORS:
                return [(Extent(), size * _COMPRESSION // _BYTES_PER_ROW)]
            if size < 2 * RANGE_BYTES:
                return [(Extent(), size // _BYTES_PER_ROW)]
            return [
                (extent, ((extent.end or size) - extent.start) // _BYTES_PER_ROW)
                for extent in line_ranges(handle, table)
            ]
    except (BeamIOError, OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{file} cannot be read: {error}. Check that it is a readable"
            f" {table.format} file and, where its name ends in .gz or .bz2, that it is complete."
        ) from error


def fingerprint_inputs(data: DataSettings) -> dict[str, str]:
    """Returns the SHA-256 of every input file, by path, in reading order.

    Raises:
      DataError: a path matches nothing, or a file cannot be read.
    """
    hashes: dict[str, str] = {}
    for name, source, table in tables(data):
        for file in match(table.path, location(name, source)):
            if file in hashes:
                continue
            digest = hashlib.sha256()
            try:
                # The bytes on the disk, so that the hash is the one `sha256sum` prints.
                with FileSystems.open(
                    file, compression_type=CompressionTypes.UNCOMPRESSED
                ) as handle:
                    while block := handle.read(_HASH_BLOCK_BYTES):
                        digest.update(block)
            except (BeamIOError, OSError) as error:
                raise DataError(f"{file} cannot be read: {error}") from error
            hashes[file] = digest.hexdigest()
    return hashes
