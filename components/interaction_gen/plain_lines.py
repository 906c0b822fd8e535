"""Which lines of a block are plain: certainly one row each, which Arrow reads as `readers` does."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from components.interaction_gen.lines import UTF8_BOM, Line, as_line
from components.interaction_gen.sorting import Flags, Ints
from schemas.logs import Table

_MAX_BRACKETS = 200  # of a JSON line; Python's parser has a limit to the depth, Arrow's has none
_MAX_QUOTED_BYTES = 100_000  # of a line; the csv module limits fields to some more, Arrow does not
# Encodings of one byte per character, where a delimiter is one wherever it stands.
_TRANSCODED = {"ascii", "iso8859-1", "iso8859-15", "cp1252"}


@dataclass(frozen=True)
class Block:
    """Whole lines and where each begins and ends, [L], without the line feed."""

    data: bytes
    first_line: int
    limit: int
    starts: Ints
    ends: Ints

    @classmethod
    def of(cls, data: bytes, first_line: int, limit: int) -> Block:
        """Finds the lines of some bytes."""
        ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
        if not data.endswith(b"\n"):
            ends = np.append(ends, len(data))
        return cls(data, first_line, limit, np.append(0, ends[:-1] + 1), ends)

    def lines(self, indices: Iterable[int]) -> Iterator[Line]:
        """Some of the lines."""
        for index in indices:
            piece = self.data[self.starts[index] : self.ends[index]]
            yield as_line(self.first_line + index, piece, self.limit)

    def mark(self, flags: Flags, places: Ints) -> None:
        """Sets the flags of the lines that hold these bytes."""
        flags[np.searchsorted(self.ends, places)] = True

    def counts(self, places: Ints) -> Ints:
        """[L] how many of these bytes, in order, each line has."""
        return np.searchsorted(places, self.ends) - np.searchsorted(places, self.starts)

    def of_lines(self, chosen: Flags) -> bytes:
        """The bytes of some of the lines."""
        if chosen.all():
            return self.data
        change = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]])))
        pieces = [
            self.data[self.starts[first] : self.ends[last - 1] + 1]
            for first, last in change.reshape(-1, 2).tolist()
        ]
        # Only the last line of a file may lack its line feed.
        return b"".join(pieces)


class PlainLines:
    """Tells plain lines from others, for one kind of file."""

    def __init__(self, table: Table, width: int) -> None:
        """Looks at the settings.

        Args:
          table: how rows are written.
          width: csv: the number of columns.
        """
        self._table = table
        self._width = width
        self._encoding = codecs.lookup(table.encoding).name
        marks = [mark for mark in (table.delimiter, table.quote) if mark is not None]
        self._possible = all(mark.isascii() for mark in marks) and (
            self._encoding in _TRANSCODED or self._encoding == "utf-8"
        )
        # A line of one column without delimiters is too hard to tell from a blank one.
        self._possible &= table.format == "jsonl" or width > 1

    def utf8(self, data: bytes) -> bytes:
        """Plain lines as UTF-8."""
        if self._encoding in _TRANSCODED and not data.isascii():
            return data.decode(self._encoding).encode()
        return data

    def __call__(self, block: Block) -> Flags:
        """[L] which lines are plain."""
        odd = np.zeros(len(block.starts), bool)
        if not self._possible:
            return odd
        data = block.data
        content = np.frombuffer(data, np.uint8)
        if int((block.ends - block.starts).max()) > block.limit:
            odd |= block.ends - block.starts > block.limit
        if b"\0" in data:
            block.mark(odd, np.flatnonzero(content == 0))
        if b"\r" in data:
            places = np.flatnonzero(content[:-1] == ord("\r"))
            block.mark(odd, places[content[places + 1] != ord("\n")])
            odd[-1] |= data.endswith(b"\r")
        if UTF8_BOM in data:  # Arrow takes it for none of the text
            odd |= content[block.starts] == UTF8_BOM[0]
        if not data.isascii() and not _decodes(data, self._encoding):
            self._mark_undecodable(block, odd)
        if self._table.format == "csv":
            self._mark_irregular(block, content, odd)
        else:
            self._mark_not_objects(block, content, odd)
        return ~odd

    def _mark_undecodable(self, block: Block, odd: Flags) -> None:
        others: Flags = np.zeros_like(odd)
        block.mark(others, np.flatnonzero(np.frombuffer(block.data, np.uint8) >= 0x80))
        for index in np.flatnonzero(others).tolist():
            line = block.data[block.starts[index] : block.ends[index]]
            odd[index] |= not _decodes(line, self._encoding)

    def _mark_irregular(self, block: Block, content: npt.NDArray[np.uint8], odd: Flags) -> None:
        """Marks lines with another number of fields, and those whose quotes are not simple."""
        delimiter = ord(self._table.delimiter)
        delimiters = np.flatnonzero(content == delimiter)
        if self._table.quote is not None and self._table.quote.encode() in block.data:
            quotes = np.flatnonzero(content == ord(self._table.quote))
            of_line = block.counts(quotes)
            odd |= of_line % 2 == 1
            odd |= (of_line > 0) & (block.ends - block.starts > _MAX_QUOTED_BYTES)
            # The first, third, .. quote of a line opens a field, the others close one.
            before = np.append(0, np.cumsum(of_line)[:-1])
            opens = (np.arange(len(quotes)) - np.repeat(before, of_line)) % 2 == 0
            end = np.array([ord("\n")], np.uint8)
            padded = np.concatenate([end, content, end])
            beside = np.where(opens, padded[quotes], padded[quotes + 2])
            simple = (beside == delimiter) | (beside == ord("\n"))
            simple |= ~opens & (beside == ord("\r"))
            block.mark(odd, quotes[~simple])
            # Delimiters after an odd number of quotes stand inside of a field.
            so_far = np.searchsorted(quotes, delimiters)
            line = np.searchsorted(block.ends, delimiters)
            delimiters = delimiters[(so_far - before[line]) % 2 == 0]
        odd |= block.counts(delimiters) != self._width - 1

    def _mark_not_objects(self, block: Block, content: npt.NDArray[np.uint8], odd: Flags) -> None:
        """Marks lines that are not one JSON object from the first character to the last."""
        ends = block.ends - (content[block.ends - 1] == ord("\r"))
        odd |= (ends - block.starts < 2) | (content[block.starts] != ord("{"))
        odd |= content[np.maximum(ends - 1, 0)] != ord("}")
        deep = block.counts(np.flatnonzero((content == ord("[")) | (content == ord("{"))))
        odd |= deep > _MAX_BRACKETS


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True
