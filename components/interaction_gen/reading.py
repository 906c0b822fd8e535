"""A part of the input -> tables for shards, dead letters and counts."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from components.interaction_gen import spec
from components.interaction_gen import summary as counted
from components.interaction_gen.batches import Batch, open_batches
from components.interaction_gen.catalogue import Entity, entity_parser, schema_of, table_of
from components.interaction_gen.columns import event_columns
from components.interaction_gen.entity_columns import entity_columns
from components.interaction_gen.faults import DeadLetter, Fault, UnusableError, shown
from components.interaction_gen.files import Work, open_input, table_at
from components.interaction_gen.histogram import Histogram
from components.interaction_gen.levels import DROP_RULES, Event, event_parser
from components.interaction_gen.readers import BLANK_LINE, Row
from components.interaction_gen.shards import EVENTS, ShardCounts, Sharded, divide
from components.interaction_gen.sorting import Ints
from components.interaction_gen.summary import CountKey
from schemas.logs import CatalogueTable, DataSettings, Table, UserTable


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


class TableReader(ABC):
    """Reads a part of a table, once: by columns what is certain, row by row what is not.

    Attributes:
      books: what became of the rows.
    """

    _key: str  # column of the ids that decide on the shard
    # Rows held back to be sent together: bounds memory and saves most of the cost per element.
    _rows_per_flush: int

    def __init__(self, work: Work, table: Table, max_line_bytes: int, shards: int) -> None:
        self.books = Books(work)
        self._work = work
        self._table = table
        self._max_line_bytes = max_line_bytes
        self._shards = shards
        self._held: list[pa.Table] = []

    def read(self) -> Iterator[Sharded | str]:
        """Yields tables for shards, and lines of the dead letters file, in order."""
        work = self._work
        with open_input(work.file) as handle:
            positions, batches = open_batches(
                handle, work.file, self._table, self._max_line_bytes, work.extent
            )
            parse = self._parser(positions)
            for batch in batches:
                self.books.read += len(batch.lines) + len(batch.odd)
                uncertain = self._add_certain(batch) if len(batch.lines) else batch.lines
                rows = [*batch.rows(uncertain), *batch.odd]
                parsed = []
                for row in sorted(rows, key=lambda row: row.line):
                    fault = row.fault
                    if row.values is not None:
                        try:
                            parsed.append((row.line, parse(row.values)))
                        except UnusableError as error:
                            fault = error.fault
                    if fault is not None:
                        letter = self.books.refuse(row, fault)
                        if letter is not None:
                            yield letter
                self._add_parsed(parsed)
                if sum(map(len, self._held)) >= self._rows_per_flush:
                    yield from self._flush()
        yield from self._flush()

    @abstractmethod
    def _parser(self, positions: dict[str, int]) -> Callable[[Sequence[Any]], Any]:
        """The function that understands the values of a row or raises UnusableError."""

    @abstractmethod
    def _add_certain(self, batch: Batch) -> Ints:
        """Adds the rows that are certain; returns the indices of the others."""

    @abstractmethod
    def _add_parsed(self, rows: Sequence[tuple[int, Any]]) -> None:
        """Adds what the parser made of rows, each with its line."""

    def _hold(self, table: pa.Table) -> None:
        self._held.append(table)

    def _flush(self) -> Iterator[Sharded]:
        held, self._held = self._held, []
        if held:
            yield from divide(pa.concat_tables(held), self._key, self._shards)


class LogReader(TableReader):
    """Reads a part of an interaction log.

    Attributes:
      histogram: of the times of the events.
    """

    _key = "user_id"
    _rows_per_flush = 500_000

    def __init__(
        self, work: Work, data: DataSettings, objectives: Sequence[str], shards: ShardCounts
    ) -> None:
        self._source = data.interactions[work.source]
        super().__init__(work, self._source, data.max_line_bytes, shards.users)
        self.histogram = Histogram()
        self._objectives = list(objectives)
        self._timed = data.split.kind == "time"

    def _parser(self, positions: dict[str, int]) -> Callable[[Sequence[Any]], Event]:
        return event_parser(self._source, positions, self._objectives, self._timed)

    def _add_certain(self, batch: Batch) -> Ints:
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
        self._count_closed(int((found.closed & used).sum()))
        for code, rule in DROP_RULES.items():
            self.books.drop(rule, int((found.certain & (found.level == code)).sum()))
        self._hold(table if used.all() else table.filter(pa.array(used)))
        return np.flatnonzero(~found.certain)

    def _add_parsed(self, rows: Sequence[tuple[int, Event]]) -> None:
        used = [event for _, event in rows if event.level >= 0]
        for _, event in rows:
            if event.level < 0:
                self.books.drop(DROP_RULES[event.level])
        self._count_closed(sum(event.closed for event in used))
        if used:
            *columns, _ = zip(*used, strict=True)
            arrays = [
                pa.array(column, field.type) for column, field in zip(columns, EVENTS, strict=True)
            ]
            self._hold(pa.Table.from_arrays(arrays, schema=EVENTS))

    def _count_closed(self, rows: int) -> None:
        if rows:
            self.books.counts[(counted.CLOSED,)] += rows

    def _hold(self, table: pa.Table) -> None:
        if self._timed:
            self.histogram.add(table.column("timestamp_ms").to_numpy())
        super()._hold(table)


class EntityReader(TableReader):
    """Reads a part of the catalogue or of the users table."""

    _key = "key"
    _rows_per_flush = 50_000

    def __init__(self, work: Work, data: DataSettings, shards: ShardCounts) -> None:
        table = table_at(data, work.table, work.source)
        assert isinstance(table, CatalogueTable | UserTable)
        self._entities = table
        users = work.table == spec.USERS
        super().__init__(work, table, data.max_line_bytes, shards.users if users else shards.items)

    def _parser(self, positions: dict[str, int]) -> Callable[[Sequence[Any]], Entity]:
        return entity_parser(self._entities, positions)

    def _add_certain(self, batch: Batch) -> Ints:
        table, certain = entity_columns(
            batch.columns, self._entities, self._work.file_index, batch.lines
        )
        self._hold(table if certain.all() else table.filter(pa.array(certain)))
        return np.flatnonzero(~certain)

    def _add_parsed(self, rows: Sequence[tuple[int, Entity]]) -> None:
        if rows:
            self._hold(table_of(rows, self._work.file_index, schema_of(self._entities)))


def reader_of(
    work: Work, data: DataSettings, objectives: Sequence[str], shards: ShardCounts
) -> TableReader:
    """Returns the reader for a part of the input."""
    if work.table == spec.INTERACTIONS:
        return LogReader(work, data, objectives, shards)
    return EntityReader(work, data, shards)
