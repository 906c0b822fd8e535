"""Log files -> batches of columns, and the rows that must be read one by one.

A line is plain where it certainly is one row: it decodes, is not too long, has the right number of
delimiters, no NUL byte and no lone carriage return, and its quotes, if any, enclose whole fields.
The plain lines of a block go through Arrow's CSV or JSON parser at once. All others go through
`readers`, which knows what is wrong with them: so the two ways to read differ in speed only.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.json

from components.interaction_gen.columns import Columns
from components.interaction_gen.lines import UTF8_BOM, Line, Lines, as_line, read_blocks
from components.interaction_gen.readers import (
    MAX_QUOTED_LINES,
    READ_ERRORS,
    Row,
    TextColumns,
    broken_row,
    open_lines,
    open_parquet,
    parquet_batches,
    rows_of_columns,
    text_columns,
    text_rows,
)
from components.interaction_gen.sorting import Flags, Ints
from schemas.logs import InteractionSource

BLOCK_BYTES = 8 << 20  # of a text file, read at a time
_PARQUET_BATCH_ROWS = 1 << 17
_PARSE_BYTES = 1 << 20  # of a block that one thread of Arrow parses
_MAX_BRACKETS = 200  # of a JSON line; Python's parser has a limit to the depth, Arrow's has none
_MAX_QUOTED_BYTES = 100_000  # of a line; the csv module limits fields to some more, Arrow does not
_SAMPLE_LINES = 1000  # looked at to learn the types of JSON values
_JSON_KINDS = {
    frozenset({str}): pa.string(),
    frozenset({int}): pa.int64(),
    frozenset({float}): pa.float64(),
    frozenset({int, float}): pa.float64(),
    frozenset({bool}): pa.bool_(),
}
# Encodings of one byte per character, where a delimiter is one wherever it stands.
_TRANSCODED = {"ascii", "iso8859-1", "iso8859-15", "cp1252"}


class Batch(NamedTuple):
    """Rows of a log, in no order.

    Attributes:
      columns: column -> [N] values; empty where N is 0.
      size: N.
      rows: reads rows of the batch one by one, by their indices in the columns.
      odd: rows that are not in the columns.
    """

    columns: Columns
    size: int
    rows: Callable[[Ints], Iterator[Row]]
    odd: Sequence[Row]


class Extent(NamedTuple):
    """The part of a file to read."""

    row_group: int | None = None  # Parquet
    start: int = 0  # byte; a text file is read from the start of a line ..
    end: int | None = None  # .. to before this byte
    first_line: int = 1  # number of the line at `start`


def open_batches(
    handle: BinaryIO, file: str, table: InteractionSource, max_line_bytes: int, extent: Extent
) -> tuple[dict[str, int], Iterator[Batch]]:
    """Starts reading a part of a file.

    Returns:
      Column -> index into the values of the rows that are read one by one; the batches.

    Raises:
      DataError: a needed column is missing, or the file is not of the stated format.
    """
    if table.format == "parquet":
        wanted = list(table.required_columns())
        positions = {name: index for index, name in enumerate(wanted)}
        assert extent.row_group is not None
        return positions, _parquet_batches(handle, file, wanted, extent.row_group)
    head = open_lines(handle, table, max_line_bytes)
    columns = text_columns(head, file, table)
    handle.seek(extent.start)
    text = _Text(table, columns, max_line_bytes)
    skipped = head.taken if extent.start == 0 else 0
    return columns.positions, text.batches(handle, extent, skipped)


def _parquet_batches(handle: BinaryIO, file: str, wanted: list[str], group: int) -> Iterator[Batch]:
    parquet = open_parquet(handle, file)
    for first, batch in parquet_batches(parquet, wanted, group, _PARQUET_BATCH_ROWS):
        if isinstance(batch, Row):
            yield Batch({}, 0, _no_rows, [batch])
            continue
        columns = {name: batch.column(name) for name in wanted}

        def rows(indices: Ints, columns: Columns = columns, first: int = first) -> Iterator[Row]:
            index = pa.array(indices)
            taken = {name: column.take(index) for name, column in columns.items()}
            return rows_of_columns(taken, (indices + first).tolist())

        yield Batch(columns, batch.num_rows, rows, [])


def _no_rows(indices: Ints) -> Iterator[Row]:
    assert not len(indices)
    return iter(())


@dataclass(frozen=True)
class _Block:
    """Whole lines and where each begins and ends, [L], without the line feed."""

    data: bytes
    first_line: int
    limit: int
    starts: Ints
    ends: Ints

    @classmethod
    def of(cls, data: bytes, first_line: int, limit: int) -> _Block:
        ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
        if not data.endswith(b"\n"):
            ends = np.append(ends, len(data))
        return cls(data, first_line, limit, np.append(0, ends[:-1] + 1), ends)

    def lines(self, start: int) -> Iterator[Line]:
        for index in range(start, len(self.starts)):
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


class _Text:
    """Reads a text file by columns."""

    def __init__(self, table: InteractionSource, columns: TextColumns, limit: int) -> None:
        self._table = table
        self._columns = columns
        self._limit = limit
        self._encoding = codecs.lookup(table.encoding).name
        marks = [mark for mark in (table.delimiter, table.quote) if mark is not None]
        self._fast = all(mark.isascii() for mark in marks) and (
            self._encoding in _TRANSCODED or self._encoding == "utf-8"
        )
        # A line of one column without delimiters is too hard to tell from a blank one.
        self._fast &= table.format == "jsonl" or columns.width > 1
        self._json_schema: pa.Schema | None = None

    def batches(self, handle: BinaryIO, extent: Extent, skipped: int) -> Iterator[Batch]:
        """Reads the file; `skipped` lines at the start are the header."""
        size = None if extent.end is None else extent.end - extent.start
        blocks = read_blocks(handle, self._limit, BLOCK_BYTES, size)
        first_line = extent.first_line
        pending = b""  # lines of the block before, read again with what follows
        final = False
        while not final:
            try:
                data = next(blocks, None)
            except READ_ERRORS as error:
                yield Batch({}, 0, _no_rows, [broken_row(error)])
                data = None
            final = data is None
            text = pending + (data or b"")
            if not text:
                continue
            block = _Block.of(text, first_line, self._limit)
            batch, done = self._batch(block, skipped, final)
            skipped = 0
            first_line += done
            pending = b"" if done == len(block.starts) else text[block.starts[done] :]
            yield batch

    def _batch(self, block: _Block, skipped: int, final: bool) -> tuple[Batch, int]:
        """Reads a block; returns the number of lines that are dealt with."""
        plain = self._plain(block)
        plain[:skipped] = False
        odd, done = self._odd_rows(block, plain, skipped, final)
        plain[done:] = False
        if not plain.any():
            return Batch({}, 0, _no_rows, odd), done
        columns = self._parse(block, plain)
        if columns is None:  # Arrow does not take them after all
            odd += [row for index in np.flatnonzero(plain) for row in self._row(block, index)]
            return Batch({}, 0, _no_rows, odd), done
        indices = np.flatnonzero(plain)

        def rows(chosen: Ints) -> Iterator[Row]:
            for index in indices[chosen].tolist():
                yield from self._row(block, index)

        return Batch(columns, len(indices), rows, odd), done

    def _row(self, block: _Block, index: int) -> Iterator[Row]:
        """Reads one line, which is a row."""
        line = next(block.lines(index))
        return text_rows(Lines(iter((line,)), self._table.encoding), self._table, self._columns)

    def _odd_rows(
        self, block: _Block, plain: Flags, skipped: int, final: bool
    ) -> tuple[list[Row], int]:
        """Reads the lines that are not plain; takes plain ones away that are part of their rows.

        A quoted field may run over lines. At the end of a block it is left for the next one.
        """
        rows: list[Row] = []
        size = len(plain)
        quote = self._table.quote if self._table.format == "csv" else None
        safe = size if final or quote is None else size - MAX_QUOTED_LINES - 2
        mark = None if quote is None else quote.encode(self._table.encoding)
        others = np.flatnonzero(~plain)
        position = skipped
        while True:
            following = np.searchsorted(others, position)
            if following == len(others):
                return rows, size
            start = position = int(others[following])
            lines = Lines(block.lines(start), self._table.encoding)
            reader = text_rows(lines, self._table, self._columns)
            while position < size and not plain[position]:
                if position >= safe and mark is not None:
                    piece = block.data[block.starts[position] : block.ends[position]]
                    if mark in piece:
                        return rows, position
                rows.append(next(reader))
                plain[position : start + lines.taken] = False
                position = start + lines.taken

    def _plain(self, block: _Block) -> Flags:
        """[L] which lines are plain."""
        odd = np.zeros(len(block.starts), bool)
        if not self._fast:
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

    def _mark_undecodable(self, block: _Block, odd: Flags) -> None:
        others: Flags = np.zeros_like(odd)
        block.mark(others, np.flatnonzero(np.frombuffer(block.data, np.uint8) >= 0x80))
        for index in np.flatnonzero(others).tolist():
            line = block.data[block.starts[index] : block.ends[index]]
            odd[index] |= not _decodes(line, self._encoding)

    def _mark_irregular(self, block: _Block, content: npt.NDArray[np.uint8], odd: Flags) -> None:
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
            padded = np.concatenate([[ord("\n")], content, [ord("\n")]])
            beside = np.where(opens, padded[quotes], padded[quotes + 2])
            # A quote, a line feed in Windows' form and a quoted quote are left to the row reader.
            simple = (beside == delimiter) | (beside == ord("\n"))
            simple |= ~opens & (beside == ord("\r"))
            block.mark(odd, quotes[~simple])
            # Delimiters after an odd number of quotes stand inside of a field.
            so_far = np.searchsorted(quotes, delimiters)
            line = np.searchsorted(block.ends, delimiters)
            delimiters = delimiters[(so_far - before[line]) % 2 == 0]
        odd |= block.counts(delimiters) != self._columns.width - 1

    def _mark_not_objects(self, block: _Block, content: npt.NDArray[np.uint8], odd: Flags) -> None:
        """Marks lines that are not one JSON object from the first character to the last."""
        ends = block.ends - (content[block.ends - 1] == ord("\r"))
        odd |= (ends - block.starts < 2) | (content[block.starts] != ord("{"))
        odd |= content[np.maximum(ends - 1, 0)] != ord("}")
        deep = block.counts(np.flatnonzero((content == ord("[")) | (content == ord("{"))))
        odd |= deep > _MAX_BRACKETS

    def _parse(self, block: _Block, plain: Flags) -> Columns | None:
        data = block.of_lines(plain)
        if self._encoding in _TRANSCODED and not data.isascii():
            data = data.decode(self._encoding).encode()
        longest = int((block.ends - block.starts)[plain].max())
        size = int(plain.sum())
        if self._table.format == "csv":
            columns = self._parse_csv(data, 4 * longest)
        else:
            columns = self._parse_json(data, 4 * longest)
        if columns is None or any(len(column) != size for column in columns.values()):
            return None
        return columns

    def _parse_csv(self, data: bytes, longest: int) -> Columns | None:
        quote = self._table.quote
        quoted = quote is not None and quote.encode() in data
        names = {f"{index}": name for name, index in self._columns.positions.items()}
        try:
            table = pa.csv.read_csv(
                pa.BufferReader(data),
                pa.csv.ReadOptions(
                    column_names=[str(index) for index in range(self._columns.width)],
                    block_size=max(_PARSE_BYTES, longest),
                ),
                pa.csv.ParseOptions(
                    delimiter=self._table.delimiter,
                    quote_char=quote if quoted else False,
                    escape_char=False,
                    ignore_empty_lines=False,
                ),
                pa.csv.ConvertOptions(
                    check_utf8=False,  # known by now
                    include_columns=list(names),
                    column_types=dict.fromkeys(names, pa.string()),
                    strings_can_be_null=False,
                ),
            )
        except pa.ArrowInvalid:
            return None
        return {name: _whole(table.column(key)) for key, name in names.items()}

    def _parse_json(self, data: bytes, longest: int) -> Columns | None:
        schema = self._json_schema or self._find_json_schema(data)
        if schema is None:
            return None
        self._json_schema = schema
        try:
            table = pa.json.read_json(
                pa.BufferReader(data),
                pa.json.ReadOptions(block_size=max(_PARSE_BYTES, longest)),
                pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
            )
        except pa.ArrowInvalid:
            return None
        return {name: _whole(table.column(name)) for name in schema.names}

    def _find_json_schema(self, data: bytes) -> pa.Schema | None:
        """The types of the values in the first lines; None where a column has no clear one."""
        kinds: dict[str, set[type]] = {name: set() for name in self._columns.positions}
        for line in data.split(b"\n", _SAMPLE_LINES)[:_SAMPLE_LINES]:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            for name, found in kinds.items():
                if row.get(name) is not None:
                    found.add(type(row[name]))
        roles = self._table.columns
        # Where a whole number and the same one with a fraction mean different things.
        exact: set[str | None] = {roles.user_id, roles.item_id}
        if self._table.timestamp_unit == "us":
            exact.add(roles.timestamp)
        fields = []
        for name, found in kinds.items():
            kind = _JSON_KINDS.get(frozenset(found))
            if kind is None or (kind == pa.float64() and name in exact):
                return None
            fields.append((name, kind))
        return pa.schema(fields)


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
