"""Records -> files whose bytes do not depend on the order in which workers deliver them.

A worker compresses what it has for a file into parts, files of their own in a directory for
that. Only their names travel through Beam. In the end the parts of a file are put one behind the
other in the order of their places: a gzip file may consist of several members. No step holds more
than a part in memory, and a repeated bundle writes parts that nobody asks for.
"""

from __future__ import annotations

import uuid
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

import google_crc32c
import numpy as np
from apache_beam.io.filesystems import CompressionTypes, FileSystems

GZIP_LEVEL = 1  # level 6 takes two and a half times as long and saves a tenth
_PART_BYTES = 4 << 20  # before compression
_PARTS_AT_A_TIME = 16  # being compressed or waiting for it
_EXAMPLES_AT_A_TIME = 1000
_COPY_BYTES = 1 << 20

Place = tuple[int, ...]  # parts of a file stand in this order


class Part(NamedTuple):
    """A piece of a file to come."""

    place: Place
    path: str  # of the piece


class PartsWriter:
    """Collects records for several files and writes them as parts, compressing in a thread."""

    def __init__(self, directory: str, compress: bool = True) -> None:
        self._directory = directory
        self._compress = compress
        self._threads = ThreadPoolExecutor(1)
        self._collected: dict[str, list[bytes]] = {}
        self._sizes: dict[str, int] = {}
        self._place: Place = ()
        self._numbers: dict[str, int] = {}
        self._waiting: deque[tuple[str, Future[Part]]] = deque()
        self._done: list[tuple[str, Part]] = []

    def start(self, place: Place) -> None:
        """Says where what follows belongs; what was added before must have been flushed."""
        assert not self._collected
        self._place = place
        self._numbers = {}

    def add(self, file: str, content: bytes) -> None:
        """Adds bytes to a file."""
        self._collected.setdefault(file, []).append(content)
        size = self._sizes.get(file, 0) + len(content)
        self._sizes[file] = size
        if size >= _PART_BYTES:
            self._send(file)

    def add_examples(self, files: Sequence[str], examples: Iterable[bytes]) -> None:
        """Adds examples, each as a record of one of the files.

        Which one depends on the content, so that every run writes the same files.
        """
        for some in _groups(examples, _EXAMPLES_AT_A_TIME):
            collected: list[list[bytes]] = [[] for _ in files]
            numbers = np.fromiter(map(zlib.crc32, some), np.uint32, len(some)) % len(files)
            for number, frame in zip(numbers.tolist(), frames(some), strict=True):
                collected[number] += frame
            for file, pieces in zip(files, collected, strict=True):
                if pieces:
                    self.add(file, b"".join(pieces))

    def flush(self) -> None:
        """Sends what was collected to the thread."""
        for file in list(self._collected):
            self._send(file)

    def close(self) -> list[tuple[str, Part]]:
        """Waits for the thread; returns the parts by file."""
        self.flush()
        self._settle(0)
        self._threads.shutdown()
        return self._done

    def _send(self, file: str) -> None:
        content = b"".join(self._collected.pop(file))
        del self._sizes[file]
        number = self._numbers.get(file, 0)
        self._numbers[file] = number + 1
        self._settle(_PARTS_AT_A_TIME - 1)
        task = self._threads.submit(self._write, (*self._place, number), content)
        self._waiting.append((file, task))

    def _settle(self, left: int) -> None:
        while len(self._waiting) > left:
            file, task = self._waiting.popleft()
            self._done.append((file, task.result()))

    def _write(self, place: Place, content: bytes) -> Part:
        path = FileSystems.join(self._directory, uuid.uuid4().hex)
        with FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED) as handle:
            handle.write(gzip_member(content) if self._compress else content)
        return Part(place, path)


def gzip_member(content: bytes) -> bytes:
    """Compresses bytes; without a time in the header, so that the same give the same."""
    compressor = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    return compressor.compress(content) + compressor.flush()


def frames(records: Sequence[bytes]) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Records as they stand in a TFRecord file, in pieces."""
    heads = map(_frame_head, map(len, records))
    checks = _checksums(records)
    ends = range(4, len(checks) + 1, 4)
    return zip(heads, records, (checks[end - 4 : end] for end in ends), strict=True)


def _checksums(contents: Sequence[bytes]) -> bytes:
    """The masked CRC-32C of each content, four bytes each."""
    checks = np.fromiter(map(google_crc32c.value, contents), np.uint32, len(contents))
    return ((checks >> 15 | checks << 17) + np.uint32(0xA282EAD8)).astype("<u4").tobytes()


def put_together(file: str, parts: Iterable[Part], directory: str) -> None:
    """Writes a file from its parts; a reader sees all of it or nothing.

    Args:
      file: to write, in a directory that is there.
      parts: in any order.
      directory: that of the parts.
    """
    temporary = FileSystems.join(directory, uuid.uuid4().hex)
    with FileSystems.create(temporary, compression_type=CompressionTypes.UNCOMPRESSED) as writing:
        for part in sorted(parts):
            for block in _blocks(part.path):
                writing.write(block)
    FileSystems.rename([temporary], [file])


def delete_parts(directory: str) -> None:
    """Deletes the directory of the parts."""
    if not FileSystems.exists(directory):
        return
    (found,) = FileSystems.match([FileSystems.join(directory, "*")])
    FileSystems.delete([metadata.path for metadata in found.metadata_list])
    if FileSystems.exists(directory):  # an object store knows no empty directories
        FileSystems.delete([directory])


def _blocks(path: str) -> Iterator[bytes]:
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as reading:
        while block := reading.read(_COPY_BYTES):
            yield block


@lru_cache(maxsize=1 << 16)
def _frame_head(length: int) -> bytes:
    packed = length.to_bytes(8, "little")
    return packed + _checksums([packed])


def _groups(values: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    iterator = iter(values)
    while group := list(islice(iterator, size)):
        yield group
