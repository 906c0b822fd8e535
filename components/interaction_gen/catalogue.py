"""Rows of the catalogue and of the users table -> ids with features, by a plan made per file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from components.interaction_gen.examples import feature_entry
from components.interaction_gen.shards import ranked
from components.interaction_gen.sorting import same_as_before, sorted_order
from components.interaction_gen.values import identifier, number, texts
from schemas import names
from schemas.logs import CatalogueTable, Feature, UserTable

FLOAT32_MAX = 3.4e38  # tf.Example holds 32-bit floats


class Entity(NamedTuple):
    """An item or a user with its features."""

    key: bytes
    title: bytes  # empty for users, and for items without one
    features: tuple[bytes, ...]  # serialised entries of tf.Example, in the order of the settings
    unusable: tuple[str, ...]  # names of numeric features whose field was not a number


def entity_parser(
    table: CatalogueTable | UserTable, positions: dict[str, int]
) -> Callable[[Sequence[Any]], Entity]:
    """Returns the function that turns the values of a row into an Entity.

    A numeric field that is not a number costs that feature, not the row, and is reported.

    Args:
      table: the settings of the table.
      positions: column -> index into the values, from the reader.

    Returns:
      A function that raises UnusableError for a row without a usable id.
    """
    role, id_column, title_column = roles_of(table)
    id_position = positions[id_column]
    title_position = None if title_column is None else positions[title_column]
    plan = [
        (feature, name, positions[feature.column])
        for feature, name in zip(table.features, feature_names(table), strict=True)
    ]

    def entity(values: Sequence[Any]) -> Entity:
        key = identifier(values[id_position], role)
        title = b"" if title_position is None else b" ".join(texts(values[title_position], None))
        entries: list[bytes] = []
        unusable: list[str] = []
        for feature, name, position in plan:
            parsed = _feature_values(feature, values[position])
            if parsed is None:
                unusable.append(feature.name)
            entries.append(feature_entry(name, parsed or []))
        return Entity(key, title, tuple(entries), tuple(unusable))

    return entity


def roles_of(table: CatalogueTable | UserTable) -> tuple[str, str, str | None]:
    """The role of the ids, their column, and the column of the titles."""
    if isinstance(table, CatalogueTable):
        return "item_id", table.columns.item_id, table.columns.title
    return "user_id", table.columns.user_id, None


def feature_names(table: CatalogueTable | UserTable | None) -> list[str]:
    """Names of the features in tf.Examples, in the order of the settings."""
    if table is None:
        return []
    key_of = names.item_feature if isinstance(table, CatalogueTable) else names.user_feature
    return [key_of(feature.name) for feature in table.features]


def schema_of(table: CatalogueTable | UserTable | None) -> pa.Schema:
    """Columns in which entities travel: `key`, where the row stands, what it says."""
    features = [(f"features.{name}", pa.binary()) for name in feature_names(table)]
    return pa.schema(
        [
            ("key", pa.binary()),
            ("file", pa.int64()),
            ("line", pa.int64()),
            ("title", pa.binary()),
            ("unusable", pa.list_(pa.string())),
            *features,
        ]
    )


def table_of(rows: Sequence[tuple[int, Entity]], file: int, schema: pa.Schema) -> pa.Table:
    """Puts entities, each with its line, into columns."""
    columns = [
        [entity.key for _, entity in rows],
        [file] * len(rows),
        [line for line, _ in rows],
        [entity.title for _, entity in rows],
        [entity.unusable for _, entity in rows],
        *zip(*(entity.features for _, entity in rows), strict=True),
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


@dataclass(frozen=True)
class Entities:
    """The entities of a shard: of rows with one id the first one in reading order.

    Attributes:
      keys: sorted.
      titles: by entity.
      features: tf.Example key -> serialised entries by entity.
      duplicates: rows that are not the first of their id.
      unusable: feature -> fields that were not a number.
    """

    keys: pa.LargeBinaryArray
    titles: pa.LargeBinaryArray
    features: dict[str, pa.LargeBinaryArray]
    duplicates: int
    unusable: Counter[str]

    @classmethod
    def of(cls, table: pa.Table) -> Entities:
        """Takes the rows of all workers, in any order."""
        codes, keys = ranked(table.column("key"))
        order = sorted_order(
            codes, table.column("file").to_numpy(), table.column("line").to_numpy()
        )
        first = order[~same_as_before(codes[order])]
        chosen = table.take(pa.array(first))
        return cls(
            keys=keys,
            titles=_large(chosen.column("title")),
            features={
                name.removeprefix("features."): _large(chosen.column(name))
                for name in table.column_names
                if name.startswith("features.")
            },
            duplicates=len(table) - len(first),
            unusable=Counter(pc.list_flatten(chosen.column("unusable")).to_pylist()),
        )


def _large(column: pa.ChunkedArray) -> pa.LargeBinaryArray:
    kind = pa.large_binary()
    return pa.concat_arrays([pa.array([], kind), *column.cast(kind).chunks])


def _feature_values(feature: Feature, value: Any) -> list[bytes] | list[float] | None:
    """Values of a feature; None where a numeric field is not a number."""
    if feature.kind == "categorical":
        return texts(value, feature.separator)
    parts = value if isinstance(value, list | tuple) else [value]
    try:
        numbers = [number(part) for part in parts]
    except (TypeError, ValueError):
        return None
    present = [part for part in numbers if part is not None]
    return present if all(abs(part) <= FLOAT32_MAX for part in present) else None
