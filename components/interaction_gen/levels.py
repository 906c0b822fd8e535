"""A row of an interaction log -> an event, by a plan made once per file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from components.interaction_gen.faults import UnusableError
from components.interaction_gen.values import as_text, identifier, number, timestamp_reader
from schemas.logs import InteractionSource
from schemas.settings import nearest

# In place of a level: the row is dropped under a rule.
IGNORED_EVENT = -1
NO_LEVEL = -2
DROP_RULES = {IGNORED_EVENT: "ignored_event", NO_LEVEL: "no_level"}

# (level or a drop code, a lower rule did not hold)
LevelFunction = Callable[[Sequence[Any]], tuple[int, bool]]


class Event(NamedTuple):
    """What one row says."""

    user_id: bytes
    item_id: bytes
    timestamp_ms: int  # 0 where the log has no times
    level: int  # highest objective reached, or a code of DROP_RULES
    closed: bool  # a higher objective held while a lower one did not


def event_parser(
    source: InteractionSource, positions: dict[str, int], objectives: Sequence[str], timed: bool
) -> Callable[[Sequence[Any]], Event]:
    """Returns the function that turns the values of a row into an event.

    Args:
      source: the settings of the log.
      positions: column -> index into the values, from the reader.
      objectives: names, first of the funnel first.
      timed: read timestamps; a leave-out split does not need them.

    Returns:
      A function that raises UnusableError for a row that must become a dead letter.
    """
    user = positions[source.columns.user_id]
    item = positions[source.columns.item_id]
    level_of = level_function(source, positions, list(objectives))
    if not timed or source.columns.timestamp is None:

        def untimed_event(values: Sequence[Any]) -> Event:
            user_id = identifier(values[user], "user_id")
            item_id = identifier(values[item], "item_id")
            level, closed = level_of(values)
            return Event(user_id, item_id, 0, level, closed)

        return untimed_event

    time = positions[source.columns.timestamp]
    milliseconds = timestamp_reader(source.timestamp_unit)

    def event(values: Sequence[Any]) -> Event:
        user_id = identifier(values[user], "user_id")
        item_id = identifier(values[item], "item_id")
        timestamp = milliseconds(values[time])
        level, closed = level_of(values)
        return Event(user_id, item_id, timestamp, level, closed)

    return event


def level_function(
    source: InteractionSource, positions: dict[str, int], objectives: list[str]
) -> LevelFunction:
    """Returns the function that finds the level of a row; it raises UnusableError."""
    if source.level is not None:
        constant = (objectives.index(source.level), False)
        return lambda values: constant
    if source.event is not None:
        return _event_levels(source, positions, objectives)
    return _rule_levels(source, positions, objectives)


def _event_levels(
    source: InteractionSource, positions: dict[str, int], objectives: list[str]
) -> LevelFunction:
    assert source.event is not None
    rule = source.event
    known = {value: (objectives.index(goal), False) for value, goal in rule.values.items()}
    known.update({value: (IGNORED_EVENT, False) for value in rule.ignore})
    position = positions[rule.column]

    def level_of(values: Sequence[Any]) -> tuple[int, bool]:
        value = values[position]
        if isinstance(value, str) and value in known:
            return known[value]
        text = as_text(value, "event")
        if text in known:
            return known[text]
        raise UnusableError(
            "unknown_event",
            f"unknown event '{text:.60}'.{nearest(text[:60], list(known))} Known events:"
            f" {', '.join(known)}; events to skip belong into event.ignore",
        )

    return level_of


class Rule(NamedTuple):
    """An objective holds where one of the columns has at least this value."""

    level: int
    columns: tuple[str, ...]
    at_least: float


def level_rules(source: InteractionSource, objectives: list[str]) -> tuple[list[Rule], int]:
    """Returns the rules from the first objective to the last, and what holds without any."""
    assert source.levels is not None
    rules = [
        Rule(level, rule.columns, rule.at_least)
        for level, name in enumerate(objectives)
        if (rule := source.levels.get(name)) is not None
    ]
    return rules, NO_LEVEL if objectives[0] in source.levels else 0


def _rule_levels(
    source: InteractionSource, positions: dict[str, int], objectives: list[str]
) -> LevelFunction:
    rules, base = level_rules(source, objectives)

    def level_of(values: Sequence[Any]) -> tuple[int, bool]:
        reached, missed, closed = base, False, False
        for level, columns, threshold in rules:
            holds = False
            for column in columns:
                field = values[positions[column]]
                try:
                    value = number(field)
                except (TypeError, ValueError) as error:
                    raise UnusableError(
                        "bad_level",
                        f"column '{column}' holds {field!r:.60}, which is not a number; the rule"
                        f" of '{objectives[level]}' needs one",
                    ) from error
                if value is not None and value >= threshold:
                    holds = True
            if holds:
                reached, closed = level, missed
            else:
                missed = True
        return reached, closed

    return level_of
