"""Columns of the catalogue or of the users -> entities; `columns` says what certain means."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.interaction_gen.arrow_values import binary, decodable, valid
from components.interaction_gen.catalogue import FLOAT32_MAX, feature_names, roles_of, schema_of
from components.interaction_gen.columns import (
    Columns,
    by_distinct_values,
    cleaned,
    floats,
    identifiers,
)
from components.interaction_gen.examples import feature_entry, number_entries, text_entries
from components.interaction_gen.readers import is_text
from components.interaction_gen.sorting import Flags, Ints
from components.interaction_gen.values import texts
from schemas.logs import CatalogueTable, UserTable


def entity_columns(
    columns: Columns, table: CatalogueTable | UserTable, file: int, lines: Ints
) -> tuple[pa.Table, Flags]:
    """Reads the columns of a table.

    Args:
      columns: the needed ones, [N] each.
      table: its settings.
      file: its number, for the order of rows.
      lines: [N] where each row stands.

    Returns:
      [N] entities by `schema_of`, and [N] which of them are certain.
    """
    role, id_column, title_column = roles_of(table)
    key = identifiers(columns[id_column], role)
    size = len(key)
    title = pa.repeat(pa.scalar(b"", pa.binary()), size)
    if title_column is not None:
        title = _titles(columns[title_column])
    entries = [
        _numbers(name, columns[feature.column])
        if feature.kind == "numeric"
        else _texts(name, columns[feature.column], feature.separator)
        for feature, name in zip(table.features, feature_names(table), strict=True)
    ]
    certain = np.logical_and.reduce([valid(found) for found in (key, title, *entries)])
    for column in columns.values():
        certain &= decodable(column)
    schema = schema_of(table)
    usable = pa.repeat(pa.scalar([], schema.field("unusable").type), size)
    arrays = [key, pa.repeat(file, size), pa.array(lines), title, usable, *entries]
    return pa.Table.from_arrays(arrays, schema=schema), certain


def _titles(column: pa.Array) -> pa.BinaryArray:
    """[N] titles as `catalogue.entity_parser` has them, null where uncertain."""
    if is_text(column.type):
        return cleaned(binary(column))
    return by_distinct_values(column, lambda value: b" ".join(texts(value, None)), pa.binary())


def _numbers(name: str, column: pa.Array) -> pa.BinaryArray:
    """[N] serialised features, null where uncertain."""
    numbers, certain = floats(column)
    certain &= ~(np.abs(numbers) > FLOAT32_MAX)
    entries = number_entries(name, np.where(certain, numbers, np.nan)).cast(pa.binary())
    return pc.if_else(pa.array(certain), entries, pa.scalar(None, pa.binary()))


def _texts(name: str, column: pa.Array, separator: str | None) -> pa.BinaryArray:
    """[N] serialised features, null where uncertain."""
    kind = column.type
    if is_text(kind):
        distinct = binary(column).dictionary_encode()
        rows = np.arange(len(distinct.dictionary))
        return _joined(name, distinct.dictionary, rows, len(rows), separator).take(distinct.indices)
    if pa.types.is_list(kind) and is_text(kind.value_type):
        rows = pc.list_parent_indices(column).to_numpy()
        return _joined(name, binary(column.flatten()), rows, len(column), separator)
    return by_distinct_values(
        column, lambda value: feature_entry(name, texts(value, separator)), pa.binary()
    )


def _joined(
    name: str, parts: pa.BinaryArray, rows: Ints, size: int, separator: str | None
) -> pa.BinaryArray:
    """[size] serialised features of the parts of each row."""
    if separator is not None:
        pieces = pc.split_pattern(parts, separator)
        rows = rows[pc.list_parent_indices(pieces).to_numpy()]
        parts = pieces.flatten()
    parts = cleaned(parts)
    certain = np.ones(size, bool)
    certain[rows[~valid(parts)]] = False
    there = pc.greater(pc.binary_length(parts), 0).fill_null(False)
    entries = text_entries(
        name,
        parts.filter(there).cast(pa.large_binary()),
        rows[there.to_numpy(zero_copy_only=False)],
        size,
    )
    return pc.if_else(pa.array(certain), entries.cast(pa.binary()), pa.scalar(None, pa.binary()))
