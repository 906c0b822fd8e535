"""Files -> batches of columns, and the rows that must be read one by one.

A line is plain where it certainly is one row: it decodes, is not too long, has the right number of
delimiters, no NUL byte and no lone carriage return, and its quotes, if any, enclose whole fields.
The plain lines of a block go through Arrow's CSV or JSON parser at once. All others go through
`readers`, which knows what is wrong with them: so the two ways to read differ in speed only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json

from components.interaction_gen.catalogue import roles_of
from components.interaction_gen.columns import Columns
from components.interaction_gen.lines import Lines, read_blocks
from components.interaction_gen.plain_lines import Block, PlainLines
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
from schemas.logs import CatalogueTable, InteractionSource, Table, UserTable

BLOCK_BYTES = 8 << 20  # of a text file, read at a time
_EVENTS_PER_BATCH = 1 << 17  # of Parquet
_ENTITIES_PER_BATCH = 1 << 14  # whose texts may be long
_PARSE_BYTES = 1 << 20  # of a block that one thread of Arrow parses
_SAMPLE_LINES = 1000  # looked at to learn the types of JSON values
_JSON_KINDS = {
    frozenset({str}): pa.string(),
    frozenset({int}): pa.int64(),
    frozenset({float}): pa.float64(),
    frozenset({int, float}): pa.float64(),
    frozenset({bool}): pa.bool_(),
}


class Batch(NamedTuple):
    """Rows of a table, in no order.

    Attributes:
      columns: column -> [N] values; empty where N is 0.
      lines: [N] numbers of the lines, in Parquet of the rows, from 1.
      rows: reads rows of the batch one by one, by their indices in the columns.
      odd: rows that are not in the columns.
    """

    columns: Columns
    lines: Ints
    rows: Callable[[Ints], Iterator[Row]]
    odd: Sequence[Row]


class Extent(NamedTuple):
    """The part of a file to read."""

    row_group: int | None = None  # Parquet
    start: int = 0  # byte; a text file is read from the start of a line ..
    end: int | None = None  # .. to before this byte
    first_line: int = 1  # number of the line at `start`


def open_batches(
    handle: BinaryIO, file: str, table: Table, max_line_bytes: int, extent: Extent
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
        events = isinstance(table, InteractionSource)
        rows = _EVENTS_PER_BATCH if events else _ENTITIES_PER_BATCH
        return positions, _parquet_batches(handle, file, wanted, extent.row_group, rows)
    head = open_lines(handle, table, max_line_bytes)
    columns = text_columns(head, file, table)
    handle.seek(extent.start)
    text = _Text(table, columns, max_line_bytes)
    skipped = head.taken if extent.start == 0 else 0
    return columns.positions, text.batches(handle, extent, skipped)


def _parquet_batches(
    handle: BinaryIO, file: str, wanted: list[str], group: int, size: int
) -> Iterator[Batch]:
    parquet = open_parquet(handle, file)
    for first, batch in parquet_batches(parquet, wanted, group, size):
        if isinstance(batch, Row):
            yield _only([batch])
            continue
        columns = {name: batch.column(name) for name in wanted}

        def rows(indices: Ints, columns: Columns = columns, first: int = first) -> Iterator[Row]:
            index = pa.array(indices)
            taken = {name: column.take(index) for name, column in columns.items()}
            return rows_of_columns(taken, (indices + first).tolist())

        yield Batch(columns, first + np.arange(batch.num_rows), rows, [])


def _only(odd: Sequence[Row]) -> Batch:
    """A batch of rows that are not in columns."""
    return Batch({}, np.empty(0, np.int64), _no_rows, odd)


def _no_rows(indices: Ints) -> Iterator[Row]:
    assert not len(indices)
    return iter(())


class _Text:
    """Reads a text file by columns."""

    def __init__(self, table: Table, columns: TextColumns, limit: int) -> None:
        self._table = table
        self._columns = columns
        self._limit = limit
        self._plain = PlainLines(table, columns.width)
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
                yield _only([broken_row(error)])
                data = None
            final = data is None
            text = pending + (data or b"")
            if not text:
                continue
            block = Block.of(text, first_line, self._limit)
            batch, done = self._batch(block, skipped, final)
            skipped = 0
            first_line += done
            pending = b"" if done == len(block.starts) else text[block.starts[done] :]
            yield batch

    def _batch(self, block: Block, skipped: int, final: bool) -> tuple[Batch, int]:
        """Reads a block; returns the number of lines that are dealt with."""
        plain = self._plain(block)
        plain[:skipped] = False
        odd, done = self._odd_rows(block, plain, skipped, final)
        plain[done:] = False
        if not plain.any():
            return _only(odd), done
        columns = self._parse(block, plain)
        indices = np.flatnonzero(plain)
        if columns is None:  # Arrow does not take them after all
            odd += self._rows(block, indices.tolist())[1]
            return _only(odd), done

        def rows(chosen: Ints) -> Iterator[Row]:
            return self._rows(block, indices[chosen].tolist())[1]

        return Batch(columns, block.first_line + indices, rows, odd), done

    def _rows(self, block: Block, indices: Iterable[int]) -> tuple[Lines, Iterator[Row]]:
        """Reads lines of a block one by one; a quoted field may take several of them."""
        lines = Lines(block.lines(indices), self._table.encoding)
        return lines, text_rows(lines, self._table, self._columns)

    def _odd_rows(
        self, block: Block, plain: Flags, skipped: int, final: bool
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
            lines, reader = self._rows(block, range(start, size))
            while position < size and not plain[position]:
                if position >= safe and mark is not None:
                    piece = block.data[block.starts[position] : block.ends[position]]
                    if mark in piece:
                        return rows, position
                rows.append(next(reader))
                plain[position : start + lines.taken] = False
                position = start + lines.taken

    def _parse(self, block: Block, plain: Flags) -> Columns | None:
        data = self._plain.utf8(block.of_lines(plain))
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
        exact = _exact_columns(self._table)
        fields = []
        for name, found in kinds.items():
            kind = _JSON_KINDS.get(frozenset(found))
            if kind is None or (kind == pa.float64() and name in exact):
                return None
            fields.append((name, kind))
        return pa.schema(fields)


def _exact_columns(table: Table) -> set[str | None]:
    """Where a whole number and the same one with a fraction mean different things."""
    if isinstance(table, InteractionSource):
        roles = table.columns
        timestamp = roles.timestamp if table.timestamp_unit == "us" else None
        return {roles.user_id, roles.item_id, timestamp}
    assert isinstance(table, CatalogueTable | UserTable)
    _, id_column, title_column = roles_of(table)
    return {id_column, title_column} | {
        part.column for part in table.features if part.kind == "categorical"
    }


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
