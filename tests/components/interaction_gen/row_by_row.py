"""The ingestion row by row: what the vectorised one must write, record for record.

It reads with the row reader, groups by user in a dictionary, and serialises with tf.train.Example.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

import pyarrow.parquet as pq
from tensorflow.core.example import example_pb2

from components.interaction_gen import spec
from components.interaction_gen.catalogue import Entity, entity_parser
from components.interaction_gen.faults import UnusableError, shown
from components.interaction_gen.files import match, open_input, tables
from components.interaction_gen.levels import DROP_RULES, Event, event_parser
from components.interaction_gen.readers import (
    BLANK_LINE,
    Row,
    open_lines,
    open_parquet,
    parquet_batches,
    rows_of_columns,
    text_columns,
    text_rows,
)
from components.interaction_gen.timelines import HELD_OUT_TIME, Bounds
from schemas import names
from schemas.logs import DataSettings, InteractionSource, Table
from schemas.names import CATALOGUE_SPLIT, CONTEXT, EVAL_SPLIT, TRAIN_SPLIT

_PARQUET_BATCH_ROWS = 8192

UserEvent = tuple[int, bytes, int]  # timestamp (ms), item id, level


def open_rows(
    handle: BinaryIO, file: str, table: Table, max_line_bytes: int
) -> tuple[dict[str, int], Iterator[Row]]:
    """Column -> index into the values of a row, and all rows of a file."""
    if table.format == "parquet":
        wanted = list(table.required_columns())
        positions = {name: index for index, name in enumerate(wanted)}
        return positions, _parquet_rows(open_parquet(handle, file), wanted)
    lines = open_lines(handle, table, max_line_bytes)
    columns = text_columns(lines, file, table)
    return columns.positions, text_rows(lines, table, columns)


def _parquet_rows(parquet: pq.ParquetFile, wanted: list[str]) -> Iterator[Row]:
    for group in range(parquet.num_row_groups):
        for first, batch in parquet_batches(parquet, wanted, group, _PARQUET_BATCH_ROWS):
            if isinstance(batch, Row):
                yield batch
            else:
                yield from rows_of_columns(
                    {name: batch.column(name) for name in wanted},
                    range(first, first + batch.num_rows),
                )


class TimelineEvent(NamedTuple):
    """One event of a chunk."""

    timestamp_ms: int
    item_id: bytes
    level: int
    target_level: int  # level to predict at this event, or CONTEXT


class UserTimeline(NamedTuple):
    """A user's chunks, and what became of the events given."""

    train: list[list[TimelineEvent]]
    evaluation: list[list[TimelineEvent]]
    train_events: list[TimelineEvent]  # every event of the split once, context left out
    eval_events: list[TimelineEvent]
    duplicates: int  # same item, level and time again
    repeats: int  # the item had already reached this level


def time_split(events: Iterable[UserEvent], cut_ms: int | None, bounds: Bounds) -> UserTimeline:
    """Divides a user's events at a moment.

    Args:
      events: in any order.
      cut_ms: events at or after it are for evaluation; None puts all into training.
      bounds: sizes of chunks.
    """
    kept, duplicates, repeats = rising_events(events)
    border = len(kept)
    if cut_ms is not None:
        border = next((i for i, event in enumerate(kept) if event[0] >= cut_ms), len(kept))
    return _timeline(kept[:border], kept[border:], duplicates, repeats, bounds)


def leave_out_split(
    events: Iterable[UserEvent], user_id: bytes, seed: int, eval_share: float, bounds: Bounds
) -> UserTimeline:
    """Holds out a share of a user's items by a seeded hash; the user keeps one at least.

    One event per item remains, with the highest level. Times are not used.

    Args:
      events: in any order.
      user_id: part of the hash.
      seed: another seed holds out other items.
      eval_share: expected share of the items that are held out.
      bounds: sizes of chunks.
    """
    highest: dict[bytes, int] = {}
    seen: set[tuple[bytes, int]] = set()
    duplicates = total = 0
    for _, item, level in events:
        total += 1
        if (item, level) in seen:
            duplicates += 1
        seen.add((item, level))
        highest[item] = max(level, highest.get(item, level))
    draws = {item: _draw(seed, user_id, item) for item in highest}
    held_out = {item for item, draw in draws.items() if draw < eval_share}
    if len(held_out) == len(highest):
        held_out.discard(max(highest, key=lambda item: (draws[item], item)))
    return _timeline(
        [(0, item, highest[item]) for item in sorted(highest) if item not in held_out],
        [(HELD_OUT_TIME, item, highest[item]) for item in sorted(held_out)],
        duplicates,
        total - duplicates - len(highest),
        bounds,
    )


def rising_events(events: Iterable[UserEvent]) -> tuple[list[UserEvent], int, int]:
    """Keeps the events that take an item to a level it had not reached.

    Returns:
      The events in time order (ties by item id), the number of exact duplicates dropped, and the
      number of repeats dropped: events on an item that had reached that level before, or reaches
      a higher one at the same moment.
    """
    ordered = sorted(events, key=lambda event: (event[0], event[1], -event[2]))
    reached: dict[bytes, int] = {}
    kept: list[UserEvent] = []
    duplicates = repeats = 0
    previous: UserEvent | None = None
    for event in ordered:
        _, item, level = event
        if event == previous:
            duplicates += 1
        elif level > reached.get(item, -1):
            reached[item] = level
            kept.append(event)
        else:
            repeats += 1
        previous = event
    return kept, duplicates, repeats


def _timeline(
    before: Sequence[UserEvent],
    after: Sequence[UserEvent],
    duplicates: int,
    repeats: int,
    bounds: Bounds,
) -> UserTimeline:
    train = _with_targets(before, touched=frozenset())
    evaluation = _with_targets(after, touched=frozenset(item for _, item, _ in before))
    context = [event._replace(target_level=CONTEXT) for event in train]
    return UserTimeline(
        train=chunks([], train, bounds),
        evaluation=chunks(context, evaluation, bounds),
        train_events=train,
        eval_events=evaluation,
        duplicates=duplicates,
        repeats=repeats,
    )


def _with_targets(events: Sequence[UserEvent], touched: frozenset[bytes]) -> list[TimelineEvent]:
    """Marks the first event of every item that was not touched before as a target."""
    highest: dict[bytes, int] = {}
    for _, item, level in events:
        highest[item] = max(level, highest.get(item, level))
    seen = set(touched)
    marked = []
    for timestamp, item, level in events:
        marked.append(
            TimelineEvent(timestamp, item, level, CONTEXT if item in seen else highest[item])
        )
        seen.add(item)
    return marked


def chunks(
    context: Sequence[TimelineEvent], events: Sequence[TimelineEvent], bounds: Bounds
) -> list[list[TimelineEvent]]:
    """Cuts a timeline into chunks of at most `max_events` events.

    Args:
      context: what lies before the events of this split; all of it CONTEXT.
      events: the events of this split; each stands in exactly one chunk as itself.
      bounds: sizes of chunks.

    Returns:
      Chunks in order. The first starts with as much of the recent context as fits where that
      keeps all events in one chunk. Every other start repeats up to `context_events` events from
      before as CONTEXT.
    """
    if not events:
        return []
    if len(events) + min(len(context), bounds.context_events) <= bounds.max_events:
        room = bounds.max_events - len(events)
        return [[*context[max(0, len(context) - room) :], *events]]
    past = [*context, *(event._replace(target_level=CONTEXT) for event in events)]
    result = []
    start = 0
    while start < len(events):
        here = len(context) + start  # index of the next event in `past`
        prefix = past[max(0, here - bounds.context_events) : here]
        end = start + bounds.max_events - len(prefix)
        result.append([*prefix, *events[start:end]])
        start = end
    return result


def _draw(seed: int, user_id: bytes, item_id: bytes) -> float:
    """A number in [0, 1) that depends on nothing but its arguments."""
    # The length keeps ("a", "bc") and ("ab", "c") apart.
    text = b"%d:%d:%b%b" % (seed, len(user_id), user_id, item_id)
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


@dataclass
class RowByRow:
    """What an ingestion reads and writes.

    Attributes:
      events: user -> events.
      entities: table -> id -> the first row of it.
      dead: (table, file, line, kind, reason, raw), in reading order.
      dropped: (table, rule) -> rows.
      read: table -> rows.
      closed: rows with a higher objective while a lower one did not hold.
      files: (split, number of the file) -> its records, sorted.
    """

    data: DataSettings
    objectives: Sequence[str]
    events: dict[bytes, list[UserEvent]] = field(default_factory=lambda: defaultdict(list))
    entities: dict[str, dict[bytes, Entity]] = field(default_factory=lambda: defaultdict(dict))
    dead: list[tuple[Any, ...]] = field(default_factory=list)
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)
    read: Counter[str] = field(default_factory=Counter)
    closed: int = 0
    files: dict[tuple[str, int], list[bytes]] = field(default_factory=lambda: defaultdict(list))

    def ingest(self, seed: int, cut_ms: int | None) -> RowByRow:
        """Does what `ingest` does, one row after the other."""
        for name, source, table in tables(self.data):
            for file in match(table.path, f"{name} {source}"):
                self.read_file(name, file, table)
        self._write(seed, cut_ms)
        for records in self.files.values():
            records.sort()
        self.dropped = +self.dropped
        return self

    def read_file(self, name: str, file: str, table: Table) -> None:
        """Reads a file from start to end."""
        with open_input(file) as handle:
            positions, rows = open_rows(handle, file, table, self.data.max_line_bytes)
            if isinstance(table, InteractionSource):
                timed = self.data.split.kind == "time"
                parse: Any = event_parser(table, positions, self.objectives, timed)
            else:
                parse = entity_parser(table, positions)
            for row in rows:
                self.read[name] += 1
                fault = row.fault
                if row.values is not None:
                    try:
                        self._add(name, parse(row.values))
                    except UnusableError as error:
                        fault = error.fault
                if fault is not None and fault.kind == BLANK_LINE:
                    self.dropped[name, BLANK_LINE] += 1
                elif fault is not None:
                    letter = (name, file, row.line, fault.kind, fault.reason, shown(row.raw))
                    self.dead.append(letter)

    def _add(self, name: str, parsed: Entity | Event) -> None:
        if isinstance(parsed, Entity):
            if parsed.key in self.entities[name]:
                self.dropped[name, "duplicate"] += 1
            self.entities[name].setdefault(parsed.key, parsed)
        elif parsed.level < 0:
            self.dropped[name, DROP_RULES[parsed.level]] += 1
        else:
            self.closed += parsed.closed
            self.events[parsed.user_id].append((parsed.timestamp_ms, parsed.item_id, parsed.level))

    def _write(self, seed: int, cut_ms: int | None) -> None:
        data, users = self.data, self.entities[spec.USERS]
        bounds = Bounds(data.timeline.max_events, data.timeline.context_events)
        items = dict(self.entities[spec.CATALOGUE])
        for user_id, events in self.events.items():
            if data.split.kind == "time":
                timeline = time_split(events, cut_ms, bounds)
            else:
                timeline = leave_out_split(events, user_id, seed, data.split.share, bounds)
            self.dropped[spec.INTERACTIONS, "duplicate"] += timeline.duplicates
            self.dropped[spec.INTERACTIONS, "repeat"] += timeline.repeats
            for event in timeline.train_events:
                items.setdefault(event.item_id, Entity(event.item_id, b"", (), ()))
            for split, cut in ((TRAIN_SPLIT, timeline.train), (EVAL_SPLIT, timeline.evaluation)):
                for chunk in cut:
                    record = timeline_example(user_id, chunk, users.get(user_id))
                    self.files[split, zlib.crc32(record) % data.shards].append(record)
        self.dropped[spec.USERS, "not_in_log"] += len(users.keys() - self.events.keys())
        for entity in items.values():
            example = example_pb2.Example()
            feature = example.features.feature
            feature[names.ITEM_ID].bytes_list.value.append(entity.key)
            feature[names.ITEM_TITLE].bytes_list.value.append(entity.title or entity.key)
            record = _with_features(example, entity)
            file = zlib.crc32(record) % data.catalogue_shards
            self.files[CATALOGUE_SPLIT, file].append(record)


def timeline_example(
    user_id: bytes, events: Sequence[TimelineEvent], entity: Entity | None
) -> bytes:
    """Serialises a chunk with tf.train.Example."""
    example = example_pb2.Example()
    feature = example.features.feature
    timestamps, items, levels, targets = zip(*events, strict=True)
    feature[names.USER_ID].bytes_list.value.append(user_id)
    feature[names.ITEM_IDS].bytes_list.value.extend(items)
    feature[names.LEVELS].int64_list.value.extend(levels)
    feature[names.TIMESTAMPS].int64_list.value.extend(timestamps)
    feature[names.TARGET_LEVELS].int64_list.value.extend(targets)
    return _with_features(example, entity)


def _with_features(example: example_pb2.Example, entity: Entity | None) -> bytes:
    # The entries of an entity are those of Features.feature.
    for entry in () if entity is None else entity.features:
        example.features.MergeFromString(entry)
    return example.SerializeToString(deterministic=True)
