"""Rows of the catalogue and of the users table -> ids with features, by a plan made per file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from components.interaction_gen.values import identifier, number, texts
from schemas import names
from schemas.logs import CatalogueTable, Feature, UserTable

_FLOAT32_MAX = 3.4e38  # tf.Example holds 32-bit floats

# Where a row stands, to tell which of two rows with one id came first: (file index, line).
Order = tuple[int, int]


class Entity(NamedTuple):
    """An item or a user with its features."""

    key: bytes
    title: bytes  # empty for users, and for items without one
    features: dict[str, list[bytes] | list[float]]  # tf.Example key -> values, absent ones left out
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
    if isinstance(table, CatalogueTable):
        role, column, key_of = "item_id", table.columns.item_id, names.item_feature
        title_column = table.columns.title
    else:
        role, column, key_of = "user_id", table.columns.user_id, names.user_feature
        title_column = None
    id_position = positions[column]
    title_position = None if title_column is None else positions[title_column]
    plan = [
        (feature, key_of(feature.name), positions[feature.column]) for feature in table.features
    ]

    def entity(values: Sequence[Any]) -> Entity:
        key = identifier(values[id_position], role)
        title = b"" if title_position is None else b" ".join(texts(values[title_position], None))
        features: dict[str, list[bytes] | list[float]] = {}
        unusable: list[str] = []
        for feature, name, position in plan:
            parsed = _feature_values(feature, values[position])
            if parsed is None:
                unusable.append(feature.name)
            elif parsed:
                features[name] = parsed
        return Entity(key, title, features, tuple(unusable))

    return entity


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
    return present if all(abs(part) <= _FLOAT32_MAX for part in present) else None
