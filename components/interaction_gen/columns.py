"""Columns of a table -> ids, times, levels and numbers, many rows at a time.

Everything here only decides what is certain. A value that is not of the common form (or that is
wrong) makes its row uncertain, and `levels.event_parser` or `catalogue.entity_parser` reads that
row again on its own: it either understands the value or says what is wrong with it. Columns of few
distinct values go through the very functions of that parser, once per value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from components.interaction_gen.arrow_values import (
    all_bytes,
    binary,
    bytes_of,
    decodable,
    digits_only,
    numbers_of,
    valid,
)
from components.interaction_gen.faults import UnusableError
from components.interaction_gen.levels import level_function, level_rules
from components.interaction_gen.readers import is_text, python_values
from components.interaction_gen.sorting import Flags, Ints
from components.interaction_gen.times import timestamps
from components.interaction_gen.values import MAX_ID_BYTES, identifier, number, texts
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
    certain = valid(user_id) & valid(item_id)
    times = np.zeros(len(user_id), np.int64)
    if timed and source.columns.timestamp is not None:
        times, known = timestamps(columns[source.columns.timestamp], source.timestamp_unit)
        certain &= known
    level, closed, known = levels(columns, source, list(objectives), len(user_id))
    certain &= known
    for column in columns.values():
        certain &= decodable(column)
    return EventColumns(user_id, item_id, times, level, closed, certain)


def identifiers(column: pa.Array, role: str) -> pa.BinaryArray:
    """[N] ids as `values.identifier` returns them, null where the row is uncertain."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return identifiers(column.dictionary, role).take(column.indices)
    if pa.types.is_integer(kind):
        return column.cast(pa.string()).cast(pa.binary())
    if not is_text(kind):
        return by_distinct_values(column, lambda value: identifier(value, role), pa.binary())
    column = binary(column)
    size, _, content = bytes_of(column)
    # Printable ASCII without spaces needs no look at each value.
    common = all_bytes(column, (content - np.uint8(0x21)) <= 0x7E - 0x21)
    common &= (size >= 1) & (size <= MAX_ID_BYTES)
    return all_but(common, column, lambda value: identifier(value, role))


def cleaned(column: pa.BinaryArray) -> pa.BinaryArray:
    """[N] texts as `values.texts` returns them, without a separator; null where uncertain."""
    size, offsets, content = bytes_of(column)
    # Printable ASCII with single spaces inside needs no look at each value.
    good = (content - np.uint8(0x20)) <= 0x7E - 0x20
    space = content == 0x20
    good[1:] &= ~(space[1:] & space[:-1])
    offsets, last = offsets[size > 0], (offsets + size - 1)[size > 0]
    good[offsets] &= ~space[offsets]
    good[last] &= ~space[last]
    return all_but(all_bytes(column, good), column, lambda value: b"".join(texts(value, None)))


def all_but(
    common: Flags, column: pa.BinaryArray, function: Callable[[Any], bytes]
) -> pa.BinaryArray:
    """[N] values as they are, or, where they are not `common`, as `by_distinct_values` has them."""
    if common.all():
        return column
    rare = np.flatnonzero(~common)
    found = by_distinct_values(column.take(pa.array(rare)), function, pa.binary())
    index = np.arange(len(column))
    index[rare] = len(column) + np.arange(len(rare))
    return pa.concat_arrays([column, found]).take(pa.array(index))


def levels(
    columns: Columns, source: InteractionSource, objectives: list[str], size: int
) -> tuple[Ints, Flags, Flags]:
    """[N] highest objectives reached or codes of DROP_RULES, [N] closed, [N] certain."""
    closed, certain = np.zeros(size, bool), np.ones(size, bool)
    if source.level is not None:
        return np.full(size, objectives.index(source.level)), closed, certain
    if source.event is not None:
        level_of = level_function(source, {source.event.column: 0}, objectives)
        found = by_distinct_values(
            columns[source.event.column], lambda value: level_of([value])[0], pa.int64()
        )
        level, certain = numbers_of(found)
        return level, closed, certain
    rules, base = level_rules(source, objectives)
    numbers: dict[str, Floats] = {}
    for rule in rules:
        for column in rule.columns:
            if column not in numbers:
                numbers[column], known = floats(columns[column])
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


def floats(column: pa.Array) -> tuple[Floats, Flags]:
    """[N] numbers, NaN where the field is empty, and [N] where they are certain."""
    kind = column.type
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
        kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        values, present = numbers_of(column)
        numbers = values.astype(np.float64)
        numbers[~present] = np.nan
        return numbers, ~np.isinf(numbers)
    if is_text(kind):
        return _text_floats(binary(column))
    return _rare_floats(column)


def _text_floats(column: pa.BinaryArray) -> tuple[Floats, Flags]:
    common = digits_only(column)
    if common.all():
        return numbers_of(column.cast(pa.string()).cast(pa.int64()))[0].astype(np.float64), common
    common = pc.match_substring_regex(column, r"^-?[0-9]{1,15}(\.[0-9]{1,9})?$").to_numpy(
        zero_copy_only=False
    )
    text = column.filter(pa.array(common)).cast(pa.string())
    numbers, certain = np.empty(len(column)), np.ones(len(column), bool)
    numbers[common] = text.cast(pa.float64()).to_numpy()
    numbers[~common], certain[~common] = _rare_floats(column.filter(pa.array(~common)))
    return numbers, certain


def _rare_floats(column: pa.Array) -> tuple[Floats, Flags]:
    def read(value: Any) -> float:
        found = number(value)
        return np.nan if found is None else found

    return numbers_of(by_distinct_values(column, read, pa.float64(), (TypeError, ValueError)))


def by_distinct_values(
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
