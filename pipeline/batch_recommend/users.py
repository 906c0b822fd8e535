"""Files of users -> what the model is told of each, or why a row cannot be used."""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from components.interaction_gen.files import match, open_input
from pipeline.batch_recommend.model import AskedModel, Kind
from schemas import names
from schemas.logs import DataError
from schemas.settings import nearest

Format = Literal["csv", "jsonl", "parquet"]

LIST_SEPARATOR = "|"  # in the cells of CSV
_FORMATS: Mapping[str, Format] = {".csv": "csv", ".jsonl": "jsonl", ".parquet": "parquet"}
_COMPRESSIONS = (".gz", ".bz2", ".xz")
_ALMOST = 0.8  # similarity of a column's name to an input's that is taken for a slip
_SAMPLE_LINES = 100  # of JSON lines, to learn which keys there are
_PARQUET_ROWS = 1024  # at once in memory
_MOST_TEXT = 1 << 20  # characters of one CSV cell; one quote too many would take in a whole file
_SHOWN_CHARACTERS = 500  # of a row, in its dead letter


class Part(NamedTuple):
    """What one worker reads from start to end.

    Attributes:
      file: path.
      format: how its rows are written.
      row_group: of a Parquet file; else None.
      first_row: number of its first row in the file, from 1.
    """

    file: str
    format: Format
    row_group: int | None
    first_row: int


class User(NamedTuple):
    """One usable row: input of the model -> values. The id is a list of one; no list is empty."""

    inputs: dict[str, list[Any]]


class DeadLetter(NamedTuple):
    """A row that cannot be used.

    Attributes:
      file, row: where it is; rows count from 1, headers and blank lines do not.
      reason: a name to count by.
      detail: what was given and expected.
      content: the row, or its beginning.
    """

    file: str
    row: int
    reason: str
    detail: str
    content: str


class _RowError(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


# --- before the job: which files, which columns ---------------------------------------------------


def plan(pattern: str, model: AskedModel) -> tuple[list[Part], list[str]]:
    """Lists the parts of the files, and looks at the columns of each.

    Returns:
      (parts, columns that the model has no input for).

    Raises:
      DataError: no file, one of unknown format or type of column, or one without `user_id`, or
        with a column that is almost an input of the model.
    """
    parts: list[Part] = []
    unused: dict[str, None] = {}
    for file in match(pattern, "--users"):
        kind = _format(file)
        try:
            with open_input(file) as handle:
                if kind == "parquet":
                    parquet = pq.ParquetFile(handle)
                    found = _check_columns(parquet.schema_arrow.names, model, file)
                    _check_types(parquet.schema_arrow, model, file)
                    parts += _row_groups(parquet, file)
                else:
                    columns = (_header if kind == "csv" else _keys)(handle)
                    found = _check_columns(columns, model, file)
                    parts.append(Part(file, kind, None, 1))
        except (OSError, EOFError, pa.ArrowException) as error:
            raise DataError(
                f"--users: {file} cannot be read as {kind}: {error}. Check that it is complete and "
                "that its name ends in what it is."
            ) from error
        unused |= dict.fromkeys(found)
    return parts, list(unused)


def _format(file: str) -> Format:
    name = file.lower()
    for suffix in _COMPRESSIONS:
        name = name.removesuffix(suffix)
    for suffix, kind in _FORMATS.items():
        if name.endswith(suffix):
            return kind
    raise DataError(
        f"--users: {file} must end in {', '.join(_FORMATS)}, so that it is clear how to read it"
        f" (.csv and .jsonl may be followed by {', '.join(_COMPRESSIONS)})"
    )


def _row_groups(parquet: pq.ParquetFile, file: str) -> Iterator[Part]:
    first = 1
    for group in range(parquet.num_row_groups):
        yield Part(file, "parquet", group, first)
        first += parquet.metadata.row_group(group).num_rows


def _header(handle: BinaryIO) -> list[str]:
    return next(_csv_rows(handle), [])


def _keys(handle: BinaryIO) -> list[str]:
    """Of the first objects; bad lines are a matter of dead letters."""
    keys: dict[str, None] = {names.USER_ID: None}
    for _, line in zip(range(_SAMPLE_LINES), handle, strict=False):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            keys |= dict.fromkeys(value)
    return list(keys)


def _check_types(schema: pa.Schema, model: AskedModel, file: str) -> None:
    for name, kind in model.inputs.items():
        if name not in schema.names:
            continue
        column = schema.field(name).type
        while pa.types.is_dictionary(column) or (
            name != names.USER_ID and (pa.types.is_list(column) or pa.types.is_large_list(column))
        ):
            column = column.value_type
        number = pa.types.is_integer(column) or (kind == "number" and pa.types.is_floating(column))
        text = kind == "text" and any(
            check(column)
            for check in (
                pa.types.is_string,
                pa.types.is_large_string,
                pa.types.is_binary,
                pa.types.is_large_binary,
            )
        )
        if not (number or text or pa.types.is_null(column)):
            expected = {"text": "strings or integers", "number": "numbers", "level": "integers"}
            lists = "" if name == names.USER_ID else ", or lists of them"
            raise DataError(
                f"--users: column {name!r} of {file} is {schema.field(name).type}, expected "
                f"{expected[kind]}{lists}"
            )


def _check_columns(columns: Sequence[str], model: AskedModel, file: str) -> list[str]:
    """The columns that are not used."""
    inputs = list(model.inputs)
    if names.USER_ID not in columns:
        hint = nearest(names.USER_ID, list(columns))
        raise DataError(
            f"--users: {file} has no column {names.USER_ID!r}.{hint}"
            f" Columns: {', '.join(columns) or 'none'}. Inputs of the model: {', '.join(inputs)}."
        )
    repeated = [name for name in inputs if columns.count(name) > 1]
    if repeated:
        raise DataError(f"--users: {file} has the column {repeated[0]!r} more than once")
    unused = [column for column in columns if column not in model.inputs]
    absent = [name for name in inputs if name not in columns]
    for column in unused:
        for name in absent:
            if difflib.SequenceMatcher(None, column, name).ratio() >= _ALMOST:
                raise DataError(
                    f"--users: {file} has a column {column!r}, which the model does not know. Did "
                    f"you mean {name!r}? Rename or drop it. Inputs of the model: "
                    f"{', '.join(inputs)}."
                )
    return unused


# --- in the job: rows -----------------------------------------------------------------------------


def read(part: Part, inputs: Mapping[str, Kind], levels: int) -> Iterator[User | DeadLetter]:
    """Yields every row of a part.

    Args:
      part: what to read.
      inputs: of the model.
      levels: number of objectives.

    Raises:
      OSError, EOFError, pa.ArrowException: the file breaks off or changed since it was planned.
    """
    with open_input(part.file) as handle:
        if part.format == "parquet":
            rows = _parquet_records(handle, part, inputs)
        else:
            rows = (_csv_records if part.format == "csv" else _json_records)(handle)
        for number, row in enumerate(rows, part.first_row):
            try:
                if isinstance(row.record, _RowError):
                    raise row.record
                yield User(_usable(row.record, inputs, levels))
            except _RowError as fault:
                content = row.content
                if not isinstance(content, str):
                    content = json.dumps(content, ensure_ascii=False, default=repr)
                yield DeadLetter(
                    part.file, number, fault.reason, str(fault), content[:_SHOWN_CHARACTERS]
                )


class _Row(NamedTuple):
    record: dict[str, Any] | _RowError
    content: Any


def _parquet_records(handle: BinaryIO, part: Part, inputs: Mapping[str, Kind]) -> Iterator[_Row]:
    parquet = pq.ParquetFile(handle)
    columns = [name for name in parquet.schema_arrow.names if name in inputs]
    for batch in parquet.iter_batches(_PARQUET_ROWS, row_groups=[part.row_group], columns=columns):
        try:
            yield from (_Row(record, record) for record in batch.to_pylist())
        except UnicodeDecodeError:
            yield from map(_one_record, (batch.slice(i, 1) for i in range(batch.num_rows)))


def _one_record(row: pa.RecordBatch) -> _Row:
    try:
        (record,) = row.to_pylist()
    except UnicodeDecodeError:
        return _Row(_RowError("undecodable", "a text of the row is not UTF-8"), "")
    return _Row(record, record)


def _json_records(handle: BinaryIO) -> Iterator[_Row]:
    for line in handle:
        if not line.strip():
            continue
        text = line.decode("utf-8", errors="replace").rstrip("\r\n")
        try:
            record: Any = json.loads(line)
        except UnicodeDecodeError:
            record = _RowError("undecodable", "the line is not UTF-8")
        except (ValueError, RecursionError) as error:
            record = _RowError("bad_json", f"not a JSON object: {error}")
        else:
            if not isinstance(record, dict):
                record = _RowError("bad_json", f"a {type(record).__name__}, expected a JSON object")
        yield _Row(record, text)


def _csv_records(handle: BinaryIO) -> Iterator[_Row]:
    rows = _csv_rows(handle)
    header = next(rows, [])
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield _Row(_RowError("bad_csv", str(error)), "")
            continue
        text = ",".join(row)
        if len(row) != len(header):
            found = f"{len(row)} cells, expected {len(header)}"
            yield _Row(_RowError("column_count", found), _shown(text))
        elif _shown(text) != text:
            yield _Row(_RowError("undecodable", "the row is not UTF-8"), _shown(text))
        else:
            cells = zip(header, row, strict=True)
            yield _Row({name: _cell(name, text) for name, text in cells}, text)


def _cell(name: str, text: str) -> str | list[str]:
    is_list = name != names.USER_ID and LIST_SEPARATOR in text
    return text.split(LIST_SEPARATOR) if is_list else text


def _csv_rows(handle: BinaryIO) -> Iterator[list[str]]:
    csv.field_size_limit(_MOST_TEXT)
    text = io.TextIOWrapper(handle, "utf-8-sig", errors="surrogateescape", newline="")
    return _CsvLists(csv.reader(text))


class _CsvLists(Iterator[list[str]]):
    """Rows that are not blank; goes on after an error, which a generator could not."""

    def __init__(self, rows: Iterator[list[str]]) -> None:
        self._rows = rows

    def __next__(self) -> list[str]:
        while not (row := next(self._rows)):
            pass
        return row


def _shown(text: str) -> str:
    return text.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="replace")


# --- in the job: values ---------------------------------------------------------------------------


def _usable(record: dict[str, Any], inputs: Mapping[str, Kind], levels: int) -> dict[str, list]:
    """Raises _RowError where the model could not be told what the row says."""
    known: dict[str, list] = {}
    for name, kind in inputs.items():
        if values := _values(record.get(name), kind, name):
            known[name] = values
    if len(known.get(names.USER_ID, ())) != 1:
        raise _RowError("no_user_id", f"{names.USER_ID} is empty or a list")
    history = known.get(names.HISTORY_ITEM_IDS, [])
    reached = known.get(names.HISTORY_LEVELS)
    if reached is not None and len(reached) != len(history):
        raise _RowError(
            "history_length",
            f"{len(reached)} {names.HISTORY_LEVELS} for {len(history)} {names.HISTORY_ITEM_IDS}",
        )
    for level in reached or ():
        if not 0 <= level < levels:
            raise _RowError(
                "bad_level", f"{names.HISTORY_LEVELS} holds {level}, expected 0 to {levels - 1}"
            )
    return known


def _values(value: Any, kind: Kind, name: str) -> list:
    """All of a cell; [] where it is empty."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return []
    elements = value if isinstance(value, list) else [value]
    convert = {"text": _text, "number": _number, "level": _level}[kind]
    return [convert(element, name) for element in elements]


def _text(value: Any, name: str) -> bytes:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str):
        try:
            value = value.encode()
        except UnicodeEncodeError as error:
            raise _RowError("undecodable", f"{name} holds half a surrogate pair") from error
    if not isinstance(value, bytes) or not value:
        raise _RowError("bad_text", f"{name} holds {value!r}, expected text that is not empty")
    return value


def _number(value: Any, name: str) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise _RowError("bad_number", f"{name} holds {value!r}, expected a number") from error


def _level(value: Any, name: str) -> int:
    try:
        if not isinstance(value, int | str) or isinstance(value, bool):
            raise ValueError
        return int(value)
    except ValueError as error:
        raise _RowError("bad_level", f"{name} holds {value!r}, expected whole numbers") from error
