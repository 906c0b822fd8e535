"""Settings of the `data:` section: where the logs lie, what their columns mean, how to split them.

Light on purpose: the command line reads it before anything heavy is imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from schemas.settings import ConfigError, Settings, nearest

Format = Literal["csv", "jsonl", "parquet"]
TimestampUnit = Literal["s", "ms", "us", "iso8601"]

DEFAULT_EVAL_SHARE = 0.2
# `user_id`, `item_ids`, `item_title`.. are taken by the examples themselves (schemas/names.py).
RESERVED_FEATURE_NAMES = frozenset({"id", "ids", "title"})
_FEATURE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


class DataError(ConfigError):
    """The data were read and cannot be used; the text says why and what to change."""


class Table(Settings):
    """Where a table lies and how its rows are written."""

    path: str = Field(min_length=1)  # file or glob, of any file system Beam can open
    format: Format = "csv"
    delimiter: str = ","  # csv
    quote: str | None = '"'  # csv; null where quotes are ordinary characters
    header: bool = True  # csv
    fields: tuple[str, ...] = ()  # csv without a header: the names of its columns
    encoding: str = "utf-8"  # csv and jsonl

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, value: str) -> str:
        if len(value) != 1 or value in "\r\n\0":
            raise ValueError('must be a single character, for example "," or "\\t"')
        return value

    @field_validator("quote")
    @classmethod
    def _one_character_or_none(cls, value: str | None) -> str | None:
        if value is not None and (len(value) != 1 or value in "\r\n\0"):
            raise ValueError("must be a single character, or null where the file has no quoting")
        return value

    @field_validator("encoding")
    @classmethod
    def _line_based_encoding(cls, value: str) -> str:
        try:
            ascii_compatible = '\n\r",\t{}0aZ'.encode(value) == b'\n\r",\t{}0aZ'
        except LookupError as error:
            raise ValueError(
                "is not an encoding Python knows; use for example utf-8 or latin-1"
            ) from error
        if not ascii_compatible:
            # Lines are cut at the byte \n before decoding, which UTF-16 and UTF-32 do not allow.
            raise ValueError(
                "cannot be read line by line; convert the file first, for example with"
                " `iconv -f UTF-16 -t UTF-8`"
            )
        return value

    @model_validator(mode="after")
    def _keys_fit_format(self) -> Table:
        if self.format != "csv":
            given = [
                key
                for key, default in (
                    ("delimiter", ","),
                    ("quote", '"'),
                    ("header", True),
                    ("fields", ()),
                )
                if getattr(self, key) != default
            ]
            if given:
                raise ValueError(
                    f"{', '.join(given)} only applies to format: csv, but this source has format:"
                    f" {self.format}; remove {'it' if len(given) == 1 else 'them'}"
                )
            return self
        if not self.header and not self.fields:
            raise ValueError(
                "a csv without a header needs the names of its columns, for example"
                " `fields: [user_id, item_id, rating, timestamp]`"
            )
        if self.header and self.fields:
            raise ValueError(
                "fields: names the columns of a csv without a header; set `header: false`, or"
                " remove fields: to use the names in the file"
            )
        repeated = sorted({name for name in self.fields if self.fields.count(name) > 1})
        if repeated:
            raise ValueError(f"fields: names {', '.join(repeated)} more than once")
        return self

    def required_columns(self) -> dict[str, str]:
        """Column -> what the configuration uses it for, in reading order."""
        raise NotImplementedError

    def _check_columns_in_fields(self) -> None:
        if not self.fields:
            return
        for column, use in self.required_columns().items():
            if column not in self.fields:
                raise ValueError(
                    f"{use} names the column '{column}', which is not in fields:"
                    f" [{', '.join(self.fields)}].{nearest(column, list(self.fields))}"
                )


class LevelRule(Settings):
    """Holds for a row where one of the columns is a number of at least `at_least`.

    An empty field means that the rule does not hold.
    """

    column: str | tuple[str, ...]
    at_least: float = 1.0

    @field_validator("column")
    @classmethod
    def _not_empty(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value or not all(value if isinstance(value, tuple) else (value,)):
            raise ValueError("names no column")
        return value

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns, one at least."""
        return (self.column,) if isinstance(self.column, str) else self.column


class EventRule(Settings):
    """One row per event: a column says which objective the row reaches."""

    column: str
    values: dict[str, str] = Field(min_length=1)  # text in the column -> objective
    ignore: tuple[str, ...] = ()  # texts whose rows are dropped, and counted

    @field_validator("values", mode="before")
    @classmethod
    def _numbers_as_text(cls, value: Any) -> Any:
        # YAML reads `1: click` as a number; in the log it is text.
        return (
            {_text(key): _text(goal) for key, goal in value.items()}
            if isinstance(value, Mapping)
            else value
        )

    @field_validator("ignore", mode="before")
    @classmethod
    def _list_as_text(cls, value: Any) -> Any:
        return [_text(part) for part in value] if isinstance(value, list | tuple) else value

    @model_validator(mode="after")
    def _disjoint(self) -> EventRule:
        both = sorted(set(self.values) & set(self.ignore))
        if both:
            raise ValueError(f"{', '.join(both)} cannot be both in values: and in ignore:")
        return self


class InteractionColumns(Settings):
    """Which column plays which role in an interaction log."""

    user_id: str = "user_id"
    item_id: str = "item_id"
    timestamp: str | None = None


class InteractionSource(Table):
    """One interaction log. Exactly one of `levels`, `event` and `level` says what a row reaches."""

    columns: InteractionColumns = InteractionColumns()
    timestamp_unit: TimestampUnit = "s"
    levels: dict[str, LevelRule] | None = None  # objective -> rule, for rows with several columns
    event: EventRule | None = None
    level: str | None = None  # every row reaches this objective

    @model_validator(mode="after")
    def _consistent(self) -> InteractionSource:
        given = [key for key in ("levels", "event", "level") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(
                "needs exactly one of levels: (a rule per objective), event: (a column naming the"
                " event) and level: (every row is the same event);"
                f" given: {', '.join(given) or 'none of them'}"
            )
        self._check_columns_in_fields()
        return self

    def required_columns(self) -> dict[str, str]:
        """Column -> what the configuration uses it for."""
        uses = {
            self.columns.user_id: "columns.user_id",
            self.columns.item_id: "columns.item_id",
        }
        if self.columns.timestamp is not None:
            uses.setdefault(self.columns.timestamp, "columns.timestamp")
        for objective, rule in (self.levels or {}).items():
            for column in rule.columns:
                uses.setdefault(column, f"levels.{objective}.column")
        if self.event is not None:
            uses.setdefault(self.event.column, "event.column")
        return uses

    def objectives_named(self) -> dict[str, str]:
        """Objective -> the key of this source that names it first."""
        named: dict[str, str] = {}
        for objective in self.levels or {}:
            named.setdefault(objective, f"levels.{objective}")
        if self.event is not None:
            for value, objective in self.event.values.items():
                named.setdefault(objective, f"event.values.{value}")
        if self.level is not None:
            named.setdefault(self.level, "level")
        return named


class Feature(Settings):
    """A feature of items or users."""

    name: str
    column: str
    kind: Literal["categorical", "numeric"]
    separator: str | None = None  # categorical: several values in one field
    values: tuple[str, ...] | None = None  # categorical: others are an anomaly
    min: float | None = None  # numeric: smaller values are an anomaly
    max: float | None = None

    @field_validator("values", mode="before")
    @classmethod
    def _numbers_as_text(cls, value: Any) -> Any:
        return [_text(part) for part in value] if isinstance(value, list | tuple) else value

    @model_validator(mode="after")
    def _consistent(self) -> Feature:
        if not _FEATURE_NAME.fullmatch(self.name) or self.name in RESERVED_FEATURE_NAMES:
            raise ValueError(
                f"'{self.name}' cannot be the name of a feature: use letters, digits and '_',"
                f" starting with a letter, and none of {', '.join(sorted(RESERVED_FEATURE_NAMES))}"
            )
        wrong = ("min", "max") if self.kind == "categorical" else ("separator", "values")
        given = [key for key in wrong if getattr(self, key) is not None]
        if given:
            raise ValueError(
                f"{', '.join(given)} does not apply to the {self.kind} feature '{self.name}'"
            )
        if self.separator == "":
            raise ValueError("separator must not be empty; leave it out for one value per field")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is larger than max {self.max}")
        return self


def _check_feature_names(features: tuple[Feature, ...]) -> None:
    names = [feature.name for feature in features]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"features: the name {', '.join(repeated)} is used more than once")


class CatalogueColumns(Settings):
    """Which column plays which role in the catalogue."""

    item_id: str = "item_id"
    title: str | None = None


class CatalogueTable(Table):
    """The catalogue: one row per item."""

    columns: CatalogueColumns = CatalogueColumns()
    features: tuple[Feature, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> CatalogueTable:
        _check_feature_names(self.features)
        self._check_columns_in_fields()
        return self

    def required_columns(self) -> dict[str, str]:
        """Column -> what the configuration uses it for."""
        uses = {self.columns.item_id: "columns.item_id"}
        if self.columns.title is not None:
            uses.setdefault(self.columns.title, "columns.title")
        for feature in self.features:
            uses.setdefault(feature.column, f"features.{feature.name}.column")
        return uses


class UserColumns(Settings):
    """Which column plays which role in the users table."""

    user_id: str = "user_id"


class UserTable(Table):
    """The users: one row per user."""

    columns: UserColumns = UserColumns()
    features: tuple[Feature, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> UserTable:
        _check_feature_names(self.features)
        self._check_columns_in_fields()
        return self

    def required_columns(self) -> dict[str, str]:
        """Column -> what the configuration uses it for."""
        uses = {self.columns.user_id: "columns.user_id"}
        for feature in self.features:
            uses.setdefault(feature.column, f"features.{feature.name}.column")
        return uses


class Split(Settings):
    """How events are divided into training and evaluation."""

    kind: Literal["time", "leave_out"] = "time"
    eval_share: float | None = Field(default=None, gt=0.0, lt=1.0)
    eval_from: datetime | None = None  # kind: time; UTC unless it says otherwise

    @field_validator("eval_from", mode="before")
    @classmethod
    def _date_or_time(cls, value: Any) -> Any:
        if isinstance(value, str):
            try:
                value = datetime.fromisoformat(value)
            except ValueError as error:
                raise ValueError(
                    "must be a date or an ISO 8601 time, for example 1998-03-01 or"
                    " 1998-03-01T12:00:00Z"
                ) from error
        if isinstance(value, date) and not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day)
        if isinstance(value, datetime):
            return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        return value

    @model_validator(mode="after")
    def _one_rule(self) -> Split:
        if self.eval_from is not None and self.kind == "leave_out":
            raise ValueError("eval_from only applies to kind: time; use eval_share with leave_out")
        if self.eval_from is not None and self.eval_share is not None:
            raise ValueError("give eval_share or eval_from, not both")
        return self

    @property
    def share(self) -> float:
        """Share of events wanted in the evaluation split."""
        return DEFAULT_EVAL_SHARE if self.eval_share is None else self.eval_share

    @property
    def eval_from_ms(self) -> int | None:
        """`eval_from` in milliseconds since the epoch."""
        return None if self.eval_from is None else round(self.eval_from.timestamp() * 1000)


class TimelineSettings(Settings):
    """Bounds of one example: at most `max_events` events, context included."""

    max_events: int = Field(default=2000, ge=2)
    context_events: int = Field(default=500, ge=0)

    @model_validator(mode="after")
    def _progress(self) -> TimelineSettings:
        if self.context_events >= self.max_events:
            raise ValueError(
                f"context_events ({self.context_events}) must be smaller than max_events"
                f" ({self.max_events}), or a chunk has no room for new events"
            )
        return self


class DataSettings(Settings):
    """The `data:` section."""

    interactions: tuple[InteractionSource, ...] = Field(min_length=1)
    catalogue: CatalogueTable | None = None
    users: UserTable | None = None
    split: Split = Split()
    max_line_bytes: int = Field(default=1_048_576, ge=1024, le=67_108_864)
    max_dead_letter_share: float = Field(default=0.01, ge=0.0, le=1.0)
    timeline: TimelineSettings = TimelineSettings()
    shards: int = Field(default=4, ge=1, le=10_000)  # files per timeline split
    catalogue_shards: int = Field(default=1, ge=1, le=10_000)

    @model_validator(mode="after")
    def _time_split_needs_time(self) -> DataSettings:
        if self.split.kind == "time":
            untimed = [
                source.path for source in self.interactions if source.columns.timestamp is None
            ]
            if untimed:
                raise ValueError(
                    f"split.kind: time needs columns.timestamp on every interaction source; it is"
                    f" missing for {', '.join(untimed)}. Name the column, or use"
                    " `split: {kind: leave_out}` for a log without times"
                )
        return self


def check_objectives(data: DataSettings, objectives: list[str]) -> None:
    """Checks that sources and objectives fit together.

    Args:
      data: the data section.
      objectives: names from the first of the funnel to the last.

    Raises:
      ConfigError: a source names an objective that does not exist, an objective beyond the first
        lacks a rule in a `levels:` source, or no source can reach the last objective.
    """
    faults = []
    for index, source in enumerate(data.interactions):
        where = f"data.interactions.{index}"
        named = source.objectives_named()
        faults += [
            f"{where}.{key}: '{objective}' is not an objective.{nearest(objective, objectives)}"
            f" Objectives: {', '.join(objectives)}."
            for objective, key in named.items()
            if objective not in objectives
        ]
        if source.levels is not None:
            faults += [
                f"{where}.levels: the objective '{objective}' has no rule. Only the first one"
                f" ('{objectives[0]}') may go without: it then holds for every row."
                for objective in objectives[1:]
                if objective not in named
            ]
    if not faults:
        reached = {name for source in data.interactions for name in source.objectives_named()}
        if len(objectives) > 1 and objectives[-1] not in reached:
            faults.append(
                f"data.interactions: no source can reach the objective '{objectives[-1]}'. Add a"
                " source or an event value for it, or remove it from objectives:."
            )
    if faults:
        raise ConfigError("\n".join(faults))


def feature_columns(features: Iterable[Feature]) -> list[str]:
    """Columns that the features read, in order."""
    return [feature.column for feature in features]


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
