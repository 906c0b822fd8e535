"""Columns of a log -> ids, times and levels, many rows at a time.

Everything here only decides what is certain. A value that is not of the common form (or that is
wrong) makes its row uncertain, and `levels.event_parser` reads that row again on its own: it either
understands the value or says what is wrong with it. Columns of few distinct values go through the
very functions of that parser, once per value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from components.interaction_gen.faults import UnusableError
from components.interaction_gen.levels import level_function, level_rules
from components.interaction_gen.readers import is_text, python_values
from components.interaction_gen.sorting import Flags, Ints
from components.interaction_gen.values import (
    EARLIEST_MS,
    LATEST_MS,
    MAX_ID_BYTES,
    NUMERIC_UNITS,
    identifier,
    number,
)
from schemas.logs import InteractionSource

Floats = npt.NDArray[np.float64]
Columns = dict[str, pa.Array]  # as read, [N] each


class EventColumns(NamedTuple):
    """What N rows say; only rows that are `certain` hold something."""

    user_id: pa.BinaryArray
    item_id: pa.BinaryArray
    timestamp_ms: Ints  # 0 where the log has no times
    level: Ints  # highest objective reached, or a code of DROP_RULES
    closed: Flags  # a higher objective held while a lower one did not
    certain: Flags


def event_columns(
    columns: Columns, source: InteractionSource, objectives: Sequence[str], timed: bool
) -> EventColumns:
    """Reads the columns of a log.

    Args:
      columns: the needed ones.
      source: the settings of the log.
      objectives: names, first of the funnel first.
      timed: read timestamps; a leave-out split does not need them.
    """
    user_id = identifiers(columns[source.columns.user_id], "user_id")
    item_id = identifiers(columns[source.columns.item_id], "item_id")
    certain = _valid(user_id) & _valid(item_id)
    times = np.zeros(len(user_id), np.int64)
    if timed and source.columns.timestamp is not None:
        times, known = timestamps(columns[source.columns.timestamp], source.timestamp_unit)
        certain &= known
    level, closed, known = levels(columns, source, list(objectives), len(user_id))
    certain &= known
    for column in columns.values():
        certain &= _decodable(column)
    return EventColumns(user_id, item_id, times, level, closed, certain)


def identifiers(column: pa.Array, role: str) -> pa.BinaryArray:
    """[N] ids as `values.identifier` returns them, null where the row is uncertain."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return identifiers(column.dictionary, role).take(column.indices)
    if pa.types.is_integer(kind):
        return column.cast(pa.string()).cast(pa.binary())
    if not is_text(kind):
        return _by_distinct_values(column, lambda value: identifier(value, role), pa.binary())
    column = _binary(column)
    size, _, content = _bytes_of(column)
    # Printable ASCII without spaces needs no look at each value.
    common = _all_bytes(column, (content - np.uint8(0x21)) <= 0x7E - 0x21)
    common &= (size >= 1) & (size <= MAX_ID_BYTES)
    if common.all():
        return column
    rare = np.flatnonzero(~common)
    text = column.take(pa.array(rare))
    found = _by_distinct_values(text, lambda value: identifier(value, role), pa.binary())
    index = np.arange(len(column))
    index[rare] = len(column) + np.arange(len(rare))
    return pa.concat_arrays([column, found]).take(pa.array(index))


def timestamps(column: pa.Array, unit: str) -> tuple[Ints, Flags]:
    """[N] milliseconds since the epoch, and [N] where they are certain."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        times, known = timestamps(column.dictionary, unit)
        codes, present = _numbers_of(column.indices)
        return times[codes], known[codes] & present
    if pa.types.is_timestamp(kind):
        return _of_arrow_times(column)
    if unit == "iso8601":
        return _of_iso_texts(_binary(column)) if is_text(kind) else _unknown(len(column))
    if pa.types.is_integer(kind):
        values, known = _numbers_of(column)
        return _of_integers(values, known, unit)
    if pa.types.is_floating(kind):
        values, known = _numbers_of(column)
        return _of_floats(values.astype(np.float64), known, unit)
    if is_text(kind):
        return _of_texts(_binary(column), unit)
    return _unknown(len(column))


def levels(
    columns: Columns, source: InteractionSource, objectives: list[str], size: int
) -> tuple[Ints, Flags, Flags]:
    """[N] highest objectives reached or codes of DROP_RULES, [N] closed, [N] certain."""
    closed, certain = np.zeros(size, bool), np.ones(size, bool)
    if source.level is not None:
        return np.full(size, objectives.index(source.level)), closed, certain
    if source.event is not None:
        level_of = level_function(source, {source.event.column: 0}, objectives)
        found = _by_distinct_values(
            columns[source.event.column], lambda value: level_of([value])[0], pa.int64()
        )
        level, certain = _numbers_of(found)
        return level, closed, certain
    rules, base = level_rules(source, objectives)
    numbers: dict[str, Floats] = {}
    for rule in rules:
        for column in rule.columns:
            if column not in numbers:
                numbers[column], known = _floats(columns[column])
                certain &= known
    level, missed = np.full(size, base), np.zeros(size, bool)
    for rule in rules:
        holds = np.zeros(size, bool)
        for column in rule.columns:
            holds |= numbers[column] >= rule.at_least  # NaN: no number, so it does not hold
        level[holds] = rule.level
        closed[holds] = missed[holds]
        missed |= ~holds
    return level, closed, certain


def _floats(column: pa.Array) -> tuple[Floats, Flags]:
    """[N] numbers, NaN where the field is empty, and [N] where they are certain."""
    kind = column.type
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
        kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        values, present = _numbers_of(column)
        numbers = values.astype(np.float64)
        numbers[~present] = np.nan
        return numbers, ~np.isinf(numbers)
    if is_text(kind):
        column = _binary(column)
        digits = _digits(column)
        if digits.all():
            return _numbers_of(column.cast(pa.string()).cast(pa.int64()))[0].astype(
                np.float64
            ), digits

    def read(value: Any) -> float:
        found = number(value)
        return np.nan if found is None else found

    found = _by_distinct_values(column, read, pa.float64(), (TypeError, ValueError))
    numbers, certain = _numbers_of(found)
    return numbers, certain


def _of_integers(
    values: npt.NDArray[np.integer[Any]], known: Flags, unit: str
) -> tuple[Ints, Flags]:
    limits = NUMERIC_UNITS[unit]
    known = known & (values >= limits.low) & (values < limits.high)
    counts = np.where(known, values, 0).astype(np.int64)
    return counts * limits.multiplier // limits.divisor, known


def _of_floats(values: Floats, known: Flags, unit: str) -> tuple[Ints, Flags]:
    limits = NUMERIC_UNITS[unit]
    known = known & (values >= limits.low) & (values < limits.high)
    return np.floor(np.where(known, values, 0.0) * limits.factor).astype(np.int64), known


def _of_texts(column: pa.BinaryArray, unit: str) -> tuple[Ints, Flags]:
    digits = _digits(column)
    text = column.cast(pa.string())
    if digits.all():
        values, known = _numbers_of(text.cast(pa.int64()))
        return _of_integers(values, known, unit)
    times, known = _unknown(len(column))
    whole = np.flatnonzero(digits)
    values, _ = _numbers_of(text.take(pa.array(whole)).cast(pa.int64()))
    times[whole], known[whole] = _of_integers(values, np.ones(len(whole), bool), unit)
    others = np.flatnonzero(~digits)
    fractions = pc.match_substring_regex(
        text.take(pa.array(others)), r"^[0-9]{1,15}\.[0-9]{1,9}$"
    ).fill_null(False)
    others = others[fractions.to_numpy(zero_copy_only=False)]
    floats, _ = _numbers_of(text.take(pa.array(others)).cast(pa.float64()))
    times[others], known[others] = _of_floats(floats, np.ones(len(others), bool), unit)
    return times, known


def _of_arrow_times(column: pa.TimestampArray) -> tuple[Ints, Flags]:
    per_second = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}[column.type.unit]
    values, known = _numbers_of(column.view(pa.int64()))
    known = known & (values >= EARLIEST_MS // 1000 * per_second)
    known &= values < LATEST_MS // 1000 * per_second
    counts = np.where(known, values, 0)
    if per_second == 1:
        return counts * 1000, known
    return counts // (per_second // 1000), known


def _of_iso_texts(column: pa.BinaryArray) -> tuple[Ints, Flags]:
    """ISO 8601 of the usual lengths: a date, or to seconds, ms or us, with or without a zone."""
    times, known = _unknown(len(column))
    size, offsets, content = _bytes_of(column)
    for length in np.unique(size).tolist():
        form = _ISO_FORMS.get(length)
        if form is None:
            continue
        rows = np.flatnonzero(size == length)
        texts = content[offsets[rows][:, None] + np.arange(length)]
        times[rows], known[rows] = _iso_times(texts, *form)
    return times, known


# Length -> digits of the fraction of a second, characters of the zone; None: a date only.
_ISO_FORMS: dict[int, tuple[int | None, int]] = {10: (None, 0)} | {
    19 + (fraction + 1 if fraction else 0) + zone: (fraction, zone)
    for fraction in (0, 3, 6)
    for zone in (0, 1, 6)
}


def _iso_times(texts: npt.NDArray[np.uint8], fraction: int | None, zone: int) -> tuple[Ints, Flags]:
    """[N] milliseconds of [N, length] characters, and [N] where they are certain."""
    digit = texts - np.uint8(ord("0"))
    good = np.ones(len(texts), bool)

    def read(start: int, end: int, low: int, high: int) -> Ints:
        nonlocal good
        value = np.zeros(len(texts), np.int64)
        for place in range(start, end):
            good &= digit[:, place] <= 9
            value = value * 10 + digit[:, place]
        good &= (value >= low) & (value <= high)
        return value

    def expect(place: int, characters: bytes) -> None:
        nonlocal good
        good &= np.isin(texts[:, place], list(characters))

    year, month, day = read(0, 4, 1, 9999), read(5, 7, 1, 12), read(8, 10, 1, 31)
    expect(4, b"-")
    expect(7, b"-")
    months = ((year - 1970) * 12 + np.clip(month, 1, 12) - 1).astype("datetime64[M]")
    first, following = (
        part.astype("datetime64[D]").astype(np.int64) for part in (months, months + 1)
    )
    good &= first + day <= following
    result = (first + day - 1) * 86_400_000
    if fraction is not None:
        expect(10, b"T ")
        expect(13, b":")
        expect(16, b":")
        seconds = (read(11, 13, 0, 23) * 60 + read(14, 16, 0, 59)) * 60 + read(17, 19, 0, 59)
        result += seconds * 1000
        if fraction:
            expect(19, b".")
            result += read(20, 20 + fraction, 0, 10**fraction) // 10 ** (fraction - 3)
        end = texts.shape[1]
        if zone == 1:
            expect(end - 1, b"Z")
        elif zone:
            expect(end - 6, b"+-")
            expect(end - 3, b":")
            away = (read(end - 5, end - 3, 0, 23) * 60 + read(end - 2, end, 0, 59)) * 60_000
            result -= np.where(texts[:, end - 6] == ord("-"), -away, away)
    good &= (result >= EARLIEST_MS) & (result < LATEST_MS)
    return result, good


def _by_distinct_values(
    column: pa.Array,
    function: Callable[[Any], Any],
    kind: pa.DataType,
    errors: tuple[type[Exception], ...] = (UnusableError,),
) -> pa.Array:
    """[N] results of a function that is called once per distinct value; null where it fails."""
    if not pa.types.is_dictionary(column.type):
        try:
            column = pc.dictionary_encode(column, null_encoding="encode")
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
            return pa.nulls(len(column), kind)  # lists and the like

    def result(value: Any) -> Any:
        try:
            return function(value)
        except errors:
            return None

    found = [
        None if isinstance(value, bytes) else result(value)
        for value in python_values(column.dictionary)
    ]
    return pa.array(found, kind, from_pandas=False).take(column.indices)


def _unknown(size: int) -> tuple[Ints, Flags]:
    return np.zeros(size, np.int64), np.zeros(size, bool)


def _binary(column: pa.Array) -> pa.BinaryArray:
    """A column of text as its bytes, without nulls: they become empty, which is uncertain."""
    if pa.types.is_string(column.type):
        column = column.view(pa.binary())
    elif not pa.types.is_binary(column.type):
        column = column.cast(pa.large_binary()).cast(pa.binary())
    return column.fill_null(b"") if column.null_count else column


def _bytes_of(column: pa.BinaryArray) -> tuple[Ints, Ints, npt.NDArray[np.uint8]]:
    """[N] lengths, [N] where each value starts in the bytes, and the bytes of all values."""
    _, offsets, content = column.buffers()
    bounds = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    bounds = bounds.astype(np.int64)
    start = int(bounds[0])
    everything: npt.NDArray[np.uint8] = (
        np.empty(0, np.uint8) if content is None else np.frombuffer(content, np.uint8)
    )
    return np.diff(bounds), bounds[:-1] - start, everything[start : int(bounds[-1])]


def _all_bytes(column: pa.BinaryArray, good: Flags) -> Flags:
    """[N] whether all bytes of a value are good; `good` has a flag per byte of the column."""
    result = np.ones(len(column), bool)
    if not good.all():
        _, offsets, _ = _bytes_of(column)
        result[np.searchsorted(offsets, np.flatnonzero(~good), side="right") - 1] = False
    return result


def _digits(column: pa.BinaryArray) -> Flags:
    """[N] whether a value is a number of one to 18 digits and nothing else."""
    size, _, content = _bytes_of(column)
    return _all_bytes(column, (content - np.uint8(ord("0"))) <= 9) & (size >= 1) & (size <= 18)


def _decodable(column: pa.Array) -> Flags:
    """[N] whether text is certainly UTF-8; Parquet does not promise it."""
    if pa.types.is_dictionary(column.type):
        if not is_text(column.type.value_type):
            return np.ones(len(column), bool)
        codes, _ = _numbers_of(column.indices)
        return _decodable(column.dictionary)[codes] if len(column.dictionary) else codes == 0
    if not is_text(column.type):
        return np.ones(len(column), bool)
    column = _binary(column)
    size, offsets, content = _bytes_of(column)
    if not (content & 0x80).any():
        return np.ones(len(column), bool)
    try:
        content.tobytes().decode()
    except UnicodeDecodeError:
        return _all_bytes(column, content < 0x80)
    # The bytes of all values together are UTF-8, so those of each are, too, unless one of them
    # starts within a character.
    starts = offsets[size > 0]
    good = np.ones(len(column), bool)
    good[size > 0] = (content[starts] & 0xC0) != 0x80
    if not good.all():
        return _all_bytes(column, content < 0x80)
    return good


def _valid(column: pa.Array) -> Flags:
    if not column.null_count:
        return np.ones(len(column), bool)
    return np.asarray(column.is_valid().to_numpy(zero_copy_only=False))


def _numbers_of(column: pa.Array) -> tuple[npt.NDArray[Any], Flags]:
    """[N] numbers, 0 where there is none, and [N] where there is one."""
    present = _valid(column)
    if column.null_count:
        column = column.fill_null(0)
    return np.array(column.to_numpy(zero_copy_only=False)), present
