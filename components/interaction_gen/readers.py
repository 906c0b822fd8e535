"""Lines -> numbered rows, one by one. A row that cannot be read carries a Fault instead of values.

These are the rows that `batches` cannot convert by columns: here each fault is known, `batches`
only knows what is certainly none. Everything here streams: memory is bounded by one row, or by one
batch of a Parquet row group.
"""

from __future__ import annotations

import csv
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from components.interaction_gen.faults import BROKEN_FILE, Fault
from components.interaction_gen.lines import Line, Lines, lines_of, read_blocks
from schemas.logs import DataError, Table
from schemas.settings import nearest

_BLOCK_BYTES = 1 << 18
MAX_QUOTED_LINES = 100  # of one csv record whose quoted fields contain line breaks
_SAMPLE_RECORDS = 1000  # JSON objects looked at to learn which keys a file has

READ_ERRORS = (OSError, EOFError, zlib.error)  # of a file that breaks off

# Not a fault: blank lines are dropped under this name.
BLANK_LINE = "blank_line"
_BLANK = Fault(BLANK_LINE, "blank line")


class Row(NamedTuple):
    """One record of a file."""

    line: int  # from 1
    values: Sequence[Any] | None  # None: see `fault`
    raw: Any  # the record as it stands in the file, or its start
    fault: Fault | None = None


class TextColumns(NamedTuple):
    """Where the needed values of a text file stand."""

    positions: dict[str, int]  # column -> index into Row.values
    width: int  # of Row.values


def open_lines(handle: BinaryIO, table: Table, max_line_bytes: int) -> Lines:
    """Starts reading the lines of a text file."""
    blocks = read_blocks(handle, max_line_bytes, _BLOCK_BYTES)
    return Lines(lines_of(blocks, max_line_bytes), table.encoding)


def text_columns(lines: Lines, file: str, table: Table) -> TextColumns:
    """Learns the columns of a text file; takes the header where there is one.

    Raises:
      DataError: the header cannot be read, or a needed column is missing or there twice.
    """
    wanted = list(table.required_columns())
    if table.format == "jsonl":
        return TextColumns(_positions(wanted), len(wanted))
    names = list(table.fields) or _csv_header(lines, table, file)
    _require(names, table, file, "columns")
    repeated = [name for name in wanted if names.count(name) > 1]
    if repeated:
        raise DataError(
            f"{file}: the header has the column '{repeated[0]}' more than once, so it is not clear"
            " which one is meant. Rename one of them."
        )
    return TextColumns({name: names.index(name) for name in wanted}, len(names))


def text_rows(lines: Lines, table: Table, columns: TextColumns) -> Iterator[Row]:
    """Reads rows from lines of text."""
    if table.format == "jsonl":
        return _json_rows(lines, table, list(columns.positions))
    return _csv_rows(lines, table, columns.width)


def check_file(handle: BinaryIO, file: str, table: Table, max_line_bytes: int) -> None:
    """Looks at the head of a file, so that a missing column is reported before Beam starts.

    Raises:
      DataError: a needed column is missing, for JSON lines in all of the first objects; or the file
        is not of the stated format.
    """
    if table.format == "parquet":
        _require(open_parquet(handle, file).schema_arrow.names, table, file, "columns")
        return
    lines = open_lines(handle, table, max_line_bytes)
    if table.format == "csv":
        text_columns(lines, file, table)
        return
    keys: set[str] = set()
    found = 0
    for line in lines:
        try:
            value = json.loads(line.raw.decode(table.encoding))
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            keys.update(value)
            found += 1
        if found == _SAMPLE_RECORDS:
            break
    if found:
        # No usable object at all is a matter of dead letters, which show what the lines look like.
        _require(sorted(keys), table, file, f"keys in its first {found} objects")


def open_parquet(handle: BinaryIO, file: str) -> pq.ParquetFile:
    """Opens a Parquet file.

    Raises:
      DataError: it is not one.
    """
    try:
        return pq.ParquetFile(handle)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{file} cannot be read as Parquet: {error}. Check `format:` of this source."
        ) from error


def _positions(wanted: list[str]) -> dict[str, int]:
    return {name: index for index, name in enumerate(wanted)}


def _require(names: Sequence[str], table: Table, file: str, what: str) -> None:
    for column, use in table.required_columns().items():
        if column not in names:
            present = ", ".join(names) or "none"
            advice = ""
            if table.format == "csv" and table.header and len(names) == 1:
                advice = (
                    f" The header is a single column, so `delimiter: {table.delimiter!r}` is"
                    " probably wrong."
                )
            raise DataError(
                f"{file}: there is no column '{column}', which {use} names."
                f"{nearest(column, list(names))} Its {what}: {present}.{advice}"
            )


def broken_row(error: Exception) -> Row:
    """What stands for the rows behind the place where a compressed file breaks off."""
    return Row(0, None, b"", Fault(BROKEN_FILE, f"the file cannot be read to its end: {error}"))


def _decoded(lines: Lines, table: Table) -> Iterator[tuple[Line, str, Fault | None]]:
    """Lines as text, or with the fault that every text format shares."""
    encoding = table.encoding
    while True:
        try:
            line = next(lines)
        except StopIteration:
            return
        except READ_ERRORS as error:
            row = broken_row(error)
            yield Line(row.line, row.raw, False), "", row.fault
            return
        if line.too_long:
            yield line, "", Fault("line_too_long", "the line is longer than max_line_bytes")
        elif not line.raw.strip(b" "):
            yield line, "", _BLANK
        elif b"\0" in line.raw:
            yield line, "", Fault("nul_byte", "the line contains a NUL byte")
        else:
            try:
                text = line.raw.decode(encoding)
            except UnicodeDecodeError as error:
                yield (
                    line,
                    "",
                    Fault(
                        "undecodable",
                        f"byte 0x{line.raw[error.start]:02x} at position {error.start + 1} of the"
                        f" line is not {encoding}",
                    ),
                )
            else:
                yield line, text, None


def _csv_header(lines: Lines, table: Table, file: str) -> list[str]:
    first = next(lines, None)
    if first is not None and first.raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(
            f"{file} is UTF-16. Convert it first, for example with `iconv -f UTF-16 -t UTF-8`."
        )
    if first is None or first.too_long or not first.raw.strip():
        what = "empty" if first is None else "too long" if first.too_long else "blank"
        raise DataError(
            f"{file}: the first line is {what}, but the names of the columns were expected there."
            " For a file without a header set `header: false` and `fields: [..]`."
        )
    try:
        text = first.raw.decode(table.encoding)
        names = _split_csv(text, table)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{file}: the header cannot be read: {error}. Check `encoding:`."
        ) from error
    return [name.strip() for name in names]


def _split_csv(text: str, table: Table) -> list[str]:
    if table.quote is None or table.quote not in text:
        return text.split(table.delimiter)
    return next(csv.reader([text], delimiter=table.delimiter, quotechar=table.quote, strict=True))


def _csv_rows(lines: Lines, table: Table, width: int) -> Iterator[Row]:
    delimiter, quote = table.delimiter, table.quote
    for line, text, fault in _decoded(lines, table):
        if fault is not None:
            yield Row(line.number, None, line.raw, fault)
            continue
        if quote is None or quote not in text:
            values = text.split(delimiter)
        else:
            try:
                values = _quoted_record(text, lines, table)
            except csv.Error as error:
                yield Row(line.number, None, text, Fault("bad_quoting", f"csv quoting: {error}"))
                continue
        if len(values) == width:
            yield Row(line.number, values, text)
        else:
            yield Row(
                line.number,
                None,
                text,
                Fault(
                    "column_count",
                    f"{len(values)} columns where {width} were expected; a value that contains the"
                    " delimiter must be quoted",
                ),
            )


def _quoted_record(text: str, lines: Lines, table: Table) -> list[str]:
    """Parses a record with quotes, which may run over several lines."""
    assert table.quote is not None
    taken: list[Line] = []
    while True:
        try:
            return _split_csv(text, table)
        except csv.Error as error:
            if "unexpected end of data" not in str(error):
                lines.give_back(taken)
                raise
        # The quote is still open: join lines up to the next one that has a quote.
        while True:
            following = next(lines, None)
            if following is not None:
                taken.append(following)
            if (
                following is None
                or following.too_long
                or len(taken) > MAX_QUOTED_LINES
                or not _decodes(following.raw, table.encoding)
            ):
                # Only the first line is lost; the others are read again on their own.
                lines.give_back(taken)
                raise csv.Error("a quoted field is never closed")
            part = following.raw.decode(table.encoding)
            text = f"{text}\n{part}"
            if table.quote in part:
                break


def _decodes(raw: bytes, encoding: str) -> bool:
    try:
        raw.decode(encoding)
    except UnicodeDecodeError:
        return False
    return b"\0" not in raw


def _json_rows(lines: Lines, table: Table, wanted: list[str]) -> Iterator[Row]:
    for line, text, fault in _decoded(lines, table):
        if fault is not None:
            yield Row(line.number, None, line.raw, fault)
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield Row(line.number, None, text, Fault("bad_json", f"not JSON: {error}"))
            continue
        if isinstance(value, dict):
            yield Row(line.number, [value.get(column) for column in wanted], text)
        else:
            yield Row(
                line.number,
                None,
                text,
                Fault("bad_json", f"a JSON object was expected, not {type(value).__name__}"),
            )


def parquet_batches(
    parquet: pq.ParquetFile, wanted: list[str], group: int, rows: int
) -> Iterator[tuple[int, pa.RecordBatch | Row]]:
    """Yields (number of the first row, batch) of a row group; a Row where it cannot be read."""
    line = 1 + sum(parquet.metadata.row_group(index).num_rows for index in range(group))
    batches = parquet.iter_batches(batch_size=rows, row_groups=[group], columns=wanted)
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as error:
            fault = Fault(BROKEN_FILE, f"row group {group} cannot be read: {error}")
            yield line, Row(line, None, "", fault)
            return
        if batch is None:
            return
        yield line, batch
        line += batch.num_rows


def rows_of_columns(columns: Mapping[str, pa.Array], numbers: Iterable[int]) -> Iterator[Row]:
    """Rows of columns of Parquet."""
    names = list(columns)
    values_of = [python_values(column) for column in columns.values()]
    for number, *values in zip(numbers, *values_of, strict=True):
        undecodable = [
            name for name, value in zip(names, values, strict=True) if isinstance(value, bytes)
        ]
        if undecodable:
            fault = Fault("undecodable", f"column '{undecodable[0]}' is not utf-8")
            yield Row(number, None, dict(zip(names, values, strict=True)), fault)
        else:
            yield Row(number, values, tuple(values))


def is_text(kind: pa.DataType) -> bool:
    """Whether values are text; some writers of Parquet call it binary."""
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )


def python_values(column: pa.Array) -> list[Any]:
    """Values of a column; text that does not decode stays bytes."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    if is_text(kind):
        return [_utf8(value) for value in column.cast(pa.large_binary()).to_pylist()]
    try:
        return column.to_pylist()
    except (OverflowError, ValueError):
        return [_python_value(scalar) for scalar in column]


def _python_value(scalar: pa.Scalar) -> Any:
    """The value; a time that Python cannot express stays a number."""
    try:
        return scalar.as_py()
    except (OverflowError, ValueError):
        return scalar.value


def _utf8(value: bytes | None) -> str | bytes | None:
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value
