"""The Beam steps of the ingestion. Nothing here depends on a runner or on module state.

Counts leave as elements of a side output rather than as Beam metrics: a runner that repeats a
failed bundle may count metrics twice, and the books must balance exactly.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindows

from components.interaction_gen import spec
from components.interaction_gen import summary as counted
from components.interaction_gen.catalogue import Entity, Order, entity_parser
from components.interaction_gen.examples import item_example, timeline_example
from components.interaction_gen.faults import DeadLetter, Fault, UnusableError, shown
from components.interaction_gen.files import Work, open_input, table_at
from components.interaction_gen.histogram import Histogram, choose_cut
from components.interaction_gen.levels import DROP_RULES, event_parser
from components.interaction_gen.readers import BLANK_LINE, Row, open_rows
from components.interaction_gen.summary import CountKey, DeadLetterKind
from components.interaction_gen.timelines import (
    Bounds,
    TimelineEvent,
    UserEvent,
    UserTimeline,
    leave_out_split,
    time_split,
)
from schemas.logs import CatalogueTable, DataSettings, InteractionSource, Split, UserTable
from schemas.names import CONTEXT, EVAL_SPLIT, TRAIN_SPLIT

# Tags of outputs.
MAIN = "main"
COUNTS = "counts"  # (CountKey, int)
DEAD = "dead"  # DeadLetter
HISTOGRAMS = "histograms"  # Histogram of one part of the log
SEEN_ITEMS = "seen_items"  # (item id, IN_TRAIN | IN_EVAL)

IN_TRAIN = 1
IN_EVAL = 2

# Rows and ids held back to be sent in groups; bounds memory and saves most of the per-element cost.
_EVENTS_PER_FLUSH = 100_000
_ITEMS_PER_FLUSH = 200_000


class _Books:
    """Counts of the part being read."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self.read = 0
        self.counts: Counter[CountKey] = Counter()

    def drop(self, rule: str) -> None:
        self.counts[(counted.DROPPED, self._work.table, rule)] += 1

    def refuse(self, row: Row, fault: Fault) -> Iterator[TaggedOutput]:
        if fault.kind == BLANK_LINE:
            self.drop(BLANK_LINE)
            return
        work = self._work
        letter = DeadLetter(
            work.table, work.file, row.line, fault.kind, fault.reason, shown(row.raw)
        )
        yield TaggedOutput(DEAD, letter)

    def close(self) -> Iterator[TaggedOutput]:
        self.counts[(counted.READ, self._work.table, self._work.file)] = self.read
        return _tagged(COUNTS, sorted(self.counts.items()))


class ReadTables(beam.DoFn):
    """(index, [Work]) -> the rows of each table, tagged by table; counts and the like aside."""

    def __init__(self, data: DataSettings, objectives: list[str]) -> None:
        self._data = data
        self._objectives = objectives

    def process(self, element: tuple[int, Iterable[Work]]) -> Iterator[TaggedOutput]:
        """Reads parts from start to end."""
        for work in element[1]:
            if work.table == spec.INTERACTIONS:
                yield from read_log(work, self._data, self._objectives)
            else:
                yield from read_entities(work, self._data)


def read_log(work: Work, data: DataSettings, objectives: list[str]) -> Iterator[TaggedOutput]:
    """Reads a part of an interaction log.

    Yields:
      INTERACTIONS: (user id, [events]), a user possibly several times; HISTOGRAMS, COUNTS, DEAD.
    """
    source = table_at(data, work.table, work.source)
    assert isinstance(source, InteractionSource)
    timed = data.split.kind == "time"
    books = _Books(work)
    histogram = Histogram()
    by_user: dict[bytes, list[UserEvent]] = {}
    held = closed = 0
    with open_input(work.file) as handle:
        opened = open_rows(handle, work.file, source, data.max_line_bytes, work.row_group)
        parse = event_parser(source, opened.positions, objectives, timed)
        for row in opened.rows:
            books.read += 1
            fault = row.fault
            if row.values is not None:
                try:
                    event = parse(row.values)
                except UnusableError as error:
                    fault = error.fault
            if fault is not None:
                yield from books.refuse(row, fault)
                continue
            if event.level < 0:
                books.drop(DROP_RULES[event.level])
                continue
            closed += event.closed
            if timed:
                histogram.add(event.timestamp_ms)
            by_user.setdefault(event.user_id, []).append(
                (event.timestamp_ms, event.item_id, event.level)
            )
            held += 1
            if held >= _EVENTS_PER_FLUSH:
                yield from _tagged(spec.INTERACTIONS, by_user.items())
                by_user, held = {}, 0
    yield from _tagged(spec.INTERACTIONS, by_user.items())
    if histogram.counts:
        yield TaggedOutput(HISTOGRAMS, histogram)
    if closed:
        books.counts[(counted.CLOSED,)] = closed
    yield from books.close()


def read_entities(work: Work, data: DataSettings) -> Iterator[TaggedOutput]:
    """Reads a part of the catalogue or of the users table.

    Yields:
      the table: (id, (order, Entity)); COUNTS, DEAD.
    """
    table = table_at(data, work.table, work.source)
    assert isinstance(table, CatalogueTable | UserTable)
    books = _Books(work)
    with open_input(work.file) as handle:
        opened = open_rows(handle, work.file, table, data.max_line_bytes, work.row_group)
        parse = entity_parser(table, opened.positions)
        for row in opened.rows:
            books.read += 1
            fault = row.fault
            if row.values is not None:
                try:
                    entity = parse(row.values)
                except UnusableError as error:
                    fault = error.fault
            if fault is not None:
                yield from books.refuse(row, fault)
                continue
            order: Order = (work.file_index, row.line)
            yield TaggedOutput(work.table, (entity.key, (order, entity)))
    yield from books.close()


def _tagged(tag: str, elements: Iterable[Any]) -> Iterator[TaggedOutput]:
    return (TaggedOutput(tag, element) for element in elements)


def _first(rows: list[tuple[Order, Entity]]) -> Entity | None:
    return min(rows, key=lambda row: row[0])[1] if rows else None


class _CountingDoFn(beam.DoFn):
    """Adds counts up within a bundle and sends them when it ends."""

    def start_bundle(self) -> None:
        """Starts the counts of a bundle."""
        self._counts: Counter[CountKey] = Counter()

    def finish_bundle(self) -> Iterator[Any]:
        """Sends the counts of a bundle."""
        for pair in sorted(self._counts.items()):
            yield TaggedOutput(COUNTS, GlobalWindows.windowed_value(pair))

    def _entity(self, table: str, rows: list[tuple[Order, Entity]]) -> Entity | None:
        """Returns the first row of an id and counts the others as duplicates."""
        if len(rows) > 1:
            self._counts[(counted.DROPPED, table, "duplicate")] += len(rows) - 1
        entity = _first(rows)
        if entity is not None:
            for name in entity.unusable:
                self._counts[(counted.UNUSABLE, table, name)] += 1
        return entity


class BuildTimelines(_CountingDoFn):
    """(user id, {"events", "users"}) -> tf.Examples, tagged by split."""

    def __init__(self, data: DataSettings, seed: int) -> None:
        self._split = data.split
        self._bounds = Bounds(data.timeline.max_events, data.timeline.context_events)
        self._seed = seed
        self._users_table = data.users is not None

    def start_bundle(self) -> None:
        """Starts the counts of a bundle."""
        super().start_bundle()
        self._seen: dict[bytes, int] = {}

    def process(self, element: tuple[bytes, Any], cut_ms: int | None) -> Iterator[Any]:
        """Builds the chunks of one user."""
        user_id, grouped = element
        events = [event for batch in grouped["events"] for event in batch]
        entity = self._entity(spec.USERS, list(grouped["users"]))
        if not events:
            self._counts[(counted.DROPPED, spec.USERS, "not_in_log")] += 1
            return
        if self._split.kind == "time":
            timeline = time_split(events, cut_ms, self._bounds)
        else:
            timeline = leave_out_split(events, user_id, self._seed, self._split.share, self._bounds)
        self._count(timeline, entity)
        features = entity.features if entity is not None else {}
        for split, chunks in ((TRAIN_SPLIT, timeline.train), (EVAL_SPLIT, timeline.evaluation)):
            for chunk in chunks:
                self._counts[(counted.EXAMPLES, split)] += 1
                yield TaggedOutput(split, timeline_example(user_id, chunk, features))
        for flag, split_events in (
            (IN_TRAIN, timeline.train_events),
            (IN_EVAL, timeline.eval_events),
        ):
            for event in split_events:
                self._seen[event.item_id] = self._seen.get(event.item_id, 0) | flag
        if len(self._seen) > _ITEMS_PER_FLUSH:
            for pair in self._seen.items():
                yield TaggedOutput(SEEN_ITEMS, pair)
            self._seen = {}

    def finish_bundle(self) -> Iterator[Any]:
        """Sends the counts and the items of a bundle."""
        yield from super().finish_bundle()
        for pair in self._seen.items():
            yield TaggedOutput(SEEN_ITEMS, GlobalWindows.windowed_value(pair))

    def _count(self, timeline: UserTimeline, entity: Entity | None) -> None:
        counts = self._counts
        counts[(counted.USERS, "total")] += 1
        if entity is not None:
            counts[(counted.USED, spec.USERS)] += 1
        elif self._users_table:
            counts[(counted.USERS, "without_features")] += 1
        for rule, n in (("duplicate", timeline.duplicates), ("repeat", timeline.repeats)):
            if n:
                counts[(counted.DROPPED, spec.INTERACTIONS, rule)] += n
        for split, events in (
            (TRAIN_SPLIT, timeline.train_events),
            (EVAL_SPLIT, timeline.eval_events),
        ):
            if events:
                counts[(counted.USERS, split)] += 1
                counts[(counted.USED, spec.INTERACTIONS)] += len(events)
                self._count_levels(split, events)

    def _count_levels(self, split: str, events: list[TimelineEvent]) -> None:
        for event in events:
            self._counts[(counted.EVENTS, split, str(event.level))] += 1
            if event.target_level != CONTEXT:
                self._counts[(counted.TARGETS, split, str(event.target_level))] += 1


class BuildCatalogue(_CountingDoFn):
    """(item id, {"seen", "catalogue"}) -> tf.Examples of items."""

    def __init__(self, data: DataSettings) -> None:
        self._catalogue_table = data.catalogue is not None

    def process(self, element: tuple[bytes, Any]) -> Iterator[Any]:
        """Builds the example of one item, unless only the future knows the item."""
        item_id, grouped = element
        seen = 0
        for flag in grouped["seen"]:
            seen |= flag
        entity = self._entity(spec.CATALOGUE, list(grouped["catalogue"]))
        if entity is not None:
            self._counts[(counted.USED, spec.CATALOGUE)] += 1
        else:
            if self._catalogue_table:
                self._counts[(counted.ITEMS, "without_features")] += 1
            if not seen & IN_TRAIN:
                self._counts[(counted.ITEMS, "after_cut")] += 1
                return
            entity = Entity(item_id, b"", {}, ())
        self._counts[(counted.ITEMS, "total")] += 1
        self._counts[(counted.EXAMPLES, "catalogue")] += 1
        yield item_example(item_id, entity.title, entity.features)


class SummariseDeadLetters(beam.CombineFn):
    """Dead letters of one kind -> how many, and the first of them by file and line."""

    def create_accumulator(self) -> tuple[int, DeadLetter | None]:
        """Nothing yet."""
        return 0, None

    def add_input(
        self, accumulator: tuple[int, DeadLetter | None], element: DeadLetter
    ) -> tuple[int, DeadLetter | None]:
        """Adds one dead letter."""
        return self.merge_accumulators([accumulator, (1, element)])

    def merge_accumulators(
        self, accumulators: Iterable[tuple[int, DeadLetter | None]]
    ) -> tuple[int, DeadLetter | None]:
        """Adds parts up."""
        parts = list(accumulators)
        letters = [letter for _, letter in parts if letter is not None]
        return sum(n for n, _ in parts), min(letters, default=None)

    def extract_output(
        self, accumulator: tuple[int, DeadLetter | None]
    ) -> tuple[int, DeadLetter | None]:
        """The pair itself."""
        return accumulator


def count_fact(pair: tuple[CountKey, int]) -> str:
    """A count as a line of the facts file."""
    key, n = pair
    return json.dumps({"count": list(key), "n": n})


def dead_letter_fact(pair: tuple[tuple[str, str], tuple[int, DeadLetter]]) -> str:
    """A kind of dead letter as a line of the facts file."""
    key, (n, first) = pair
    kind = DeadLetterKind(n, first.file, first.line, first.reason, first.raw)
    return json.dumps({"dead_letter": list(key), "kind": asdict(kind)})


def cut_of(histogram: Histogram, split: Split) -> int | None:
    """The moment from which events are for evaluation; None where the split is not one in time."""
    if split.kind != "time":
        return None
    fixed = split.eval_from_ms
    return choose_cut(histogram, split.share) if fixed is None else fixed


def time_fact(histogram: Histogram, cut_ms: int | None) -> str:
    """The span of the log and its cut as a line of the facts file."""
    return json.dumps(
        {
            "time": {
                "first_ms": histogram.first_ms,
                "last_ms": histogram.last_ms,
                "cut_ms": cut_ms,
            }
        }
    )


def dead_letter_line(letter: DeadLetter) -> str:
    """A dead letter as a line of the dead letters file."""
    return json.dumps(letter._asdict(), ensure_ascii=False)


def shard_of(example: bytes, shards: int) -> int:
    """The file an example goes to: by its content, so that every run writes the same files."""
    return zlib.crc32(example) % shards
