"""A part of the input -> tables for shards, dead letters and counts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from components.interaction_gen import spec
from components.interaction_gen import summary as counted
from components.interaction_gen.batches import Batch, open_batches
from components.interaction_gen.catalogue import Entity, entity_parser, schema_of, table_of
from components.interaction_gen.columns import event_columns
from components.interaction_gen.faults import DeadLetter, Fault, UnusableError, shown
from components.interaction_gen.files import Work, open_input, table_at
from components.interaction_gen.histogram import Histogram
from components.interaction_gen.levels import DROP_RULES, Event, event_parser
from components.interaction_gen.readers import BLANK_LINE, Row, open_rows
from components.interaction_gen.shards import EVENTS, ShardCounts, Sharded, divide
from components.interaction_gen.summary import CountKey
from schemas.logs import CatalogueTable, DataSettings, InteractionSource, UserTable

# Rows held back to be sent together: bounds memory and saves most of the cost per element.
_EVENTS_PER_FLUSH = 500_000
_ENTITIES_PER_FLUSH = 50_000


class Books:
    """Counts and dead letters of a part of the input."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self.read = 0
        self.counts: Counter[CountKey] = Counter()
        self.kinds: dict[str, tuple[int, DeadLetter]] = {}  # how many, and the first one

    def drop(self, rule: str, rows: int = 1) -> None:
        """Counts rows that a rule drops."""
        if rows:
            self.counts[(counted.DROPPED, self._work.table, rule)] += rows

    def refuse(self, row: Row, fault: Fault) -> str | None:
        """Counts a row that cannot be used; returns its line of the dead letters file."""
        if fault.kind == BLANK_LINE:
            self.drop(BLANK_LINE)
            return None
        work = self._work
        letter = DeadLetter(
            work.table, work.file, row.line, fault.kind, fault.reason, shown(row.raw)
        )
        count, first = self.kinds.get(fault.kind, (0, letter))
        self.kinds[fault.kind] = (count + 1, min(first, letter))
        return json.dumps(letter._asdict(), ensure_ascii=False) + "\n"

    def close(self) -> list[tuple[CountKey, int]]:
        """Returns all counts."""
        self.counts[(counted.READ, self._work.table, self._work.file)] = self.read
        return sorted(self.counts.items())


class LogReader:
    """Reads a part of an interaction log, once.

    Attributes:
      books: what became of the rows.
      histogram: of the times of the events.
    """

    def __init__(
        self, work: Work, data: DataSettings, objectives: Sequence[str], shards: ShardCounts
    ) -> None:
        source = table_at(data, work.table, work.source)
        assert isinstance(source, InteractionSource)
        self.books = Books(work)
        self.histogram = Histogram()
        self._work = work
        self._source = source
        self._objectives = list(objectives)
        self._timed = data.split.kind == "time"
        self._max_line_bytes = data.max_line_bytes
        self._shards = shards.users
        self._closed = 0
        self._held: list[pa.Table] = []

    def read(self) -> Iterator[Sharded | str]:
        """Yields tables of events for shards, and lines of the dead letters file, in order."""
        work = self._work
        with open_input(work.file) as handle:
            positions, batches = open_batches(
                handle, work.file, self._source, self._max_line_bytes, work.extent
            )
            parse = event_parser(self._source, positions, self._objectives, self._timed)
            for batch in batches:
                self.books.read += batch.size + len(batch.odd)
                rows = [*batch.rows(self._add_certain(batch)), *batch.odd]
                events: list[Event] = []
                for row in sorted(rows, key=lambda row: row.line):
                    fault = row.fault
                    if row.values is not None:
                        try:
                            events.append(parse(row.values))
                        except UnusableError as error:
                            fault = error.fault
                    if fault is not None:
                        letter = self.books.refuse(row, fault)
                        if letter is not None:
                            yield letter
                self._add_events(events)
                if sum(map(len, self._held)) >= _EVENTS_PER_FLUSH:
                    yield from self._flush()
        yield from self._flush()
        if self._closed:
            self.books.counts[(counted.CLOSED,)] = self._closed

    def _add_certain(self, batch: Batch) -> np.ndarray:
        """Adds the rows that are certain; returns the indices of the others."""
        if not batch.size:
            return np.empty(0, np.int64)
        found = event_columns(batch.columns, self._source, self._objectives, self._timed)
        table = pa.Table.from_arrays(
            [
                found.user_id,
                found.item_id,
                pa.array(found.timestamp_ms),
                pa.array(found.level.astype(np.int8)),
            ],
            schema=EVENTS,
        )
        used = found.certain & (found.level >= 0)
        self._closed += int((found.closed & used).sum())
        for code, rule in DROP_RULES.items():
            self.books.drop(rule, int((found.certain & (found.level == code)).sum()))
        self._hold(table if used.all() else table.filter(pa.array(used)))
        return np.flatnonzero(~found.certain)

    def _add_events(self, events: Sequence[Event]) -> None:
        used = [event for event in events if event.level >= 0]
        for event in events:
            if event.level < 0:
                self.books.drop(DROP_RULES[event.level])
        self._closed += sum(event.closed for event in used)
        if used:
            *columns, _ = zip(*used, strict=True)
            arrays = [
                pa.array(column, field.type) for column, field in zip(columns, EVENTS, strict=True)
            ]
            self._hold(pa.Table.from_arrays(arrays, schema=EVENTS))

    def _hold(self, table: pa.Table) -> None:
        if self._timed:
            self.histogram.add(table.column("timestamp_ms").to_numpy())
        self._held.append(table)

    def _flush(self) -> Iterator[Sharded]:
        held, self._held = self._held, []
        if held:
            yield from divide(pa.concat_tables(held), "user_id", self._shards)


class EntityReader:
    """Reads a part of the catalogue or of the users table, once."""

    def __init__(self, work: Work, data: DataSettings, shards: ShardCounts) -> None:
        table = table_at(data, work.table, work.source)
        assert isinstance(table, CatalogueTable | UserTable)
        self.books = Books(work)
        self._work = work
        self._table = table
        self._max_line_bytes = data.max_line_bytes
        self._shards = shards.users if work.table == spec.USERS else shards.items

    def read(self) -> Iterator[Sharded | str]:
        """Yields tables of entities for shards, and lines of the dead letters file, in order."""
        work = self._work
        held: list[tuple[int, int, Entity]] = []
        with open_input(work.file) as handle:
            opened = open_rows(
                handle, work.file, self._table, self._max_line_bytes, work.extent.row_group
            )
            parse = entity_parser(self._table, opened.positions)
            for row in opened.rows:
                self.books.read += 1
                fault = row.fault
                if row.values is not None:
                    try:
                        held.append((work.file_index, row.line, parse(row.values)))
                    except UnusableError as error:
                        fault = error.fault
                if fault is not None:
                    letter = self.books.refuse(row, fault)
                    if letter is not None:
                        yield letter
                if len(held) >= _ENTITIES_PER_FLUSH:
                    yield from self._send(held)
                    held = []
        yield from self._send(held)

    def _send(self, rows: Sequence[tuple[int, int, Entity]]) -> Iterator[Sharded]:
        if rows:
            yield from divide(table_of(rows, schema_of(self._table)), "key", self._shards)
