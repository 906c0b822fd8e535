"""The Beam steps of the ingestion. Nothing here depends on a runner or on module state.

Counts leave as elements of a side output rather than as Beam metrics: a runner that repeats a
failed bundle may count metrics twice, and the books must balance exactly.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.io.filesystems import FileSystems
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindows

from components.interaction_gen import spec
from components.interaction_gen import summary as counted
from components.interaction_gen.catalogue import Entities, schema_of
from components.interaction_gen.examples import EncodedTimelines, item_examples, user_entries
from components.interaction_gen.faults import DeadLetter
from components.interaction_gen.files import Work
from components.interaction_gen.histogram import Histogram, choose_cut
from components.interaction_gen.reading import LogReader, reader_of
from components.interaction_gen.records import Part, PartsWriter, put_together
from components.interaction_gen.shards import (
    EVENTS,
    SEEN,
    ShardCounts,
    divide,
    gather,
    id_list,
    ranked,
)
from components.interaction_gen.sorting import same_as_before
from components.interaction_gen.summary import CountKey, DeadLetterKind
from components.interaction_gen.timelines import (
    Bounds,
    Chunks,
    Events,
    Timelines,
    cut_into_chunks,
    leave_out_split,
    time_split,
)
from schemas.logs import DataSettings, Split
from schemas.names import CATALOGUE_SPLIT, CONTEXT, EVAL_SPLIT, TRAIN_SPLIT

# Tags of outputs.
MAIN = "main"
COUNTS = "counts"  # (CountKey, int)
KINDS = "kinds"  # ((table, kind of fault), (how many, the first DeadLetter))
HISTOGRAMS = "histograms"  # Histogram of one part of the log
SEEN_ITEMS = "seen_items"  # (shard of items, table SEEN)
PARTS = "parts"  # (path of a file, Part)

_SPLITS = ((TRAIN_SPLIT, False), (EVAL_SPLIT, True))


class Places(NamedTuple):
    """Where the steps write.

    Attributes:
      examples: directory of the splits.
      dead_letters: file.
      parts: directory of what the files are put together from.
    """

    examples: str
    dead_letters: str
    parts: str

    def split_directory(self, split: str) -> str:
        """The directory of the files of a split."""
        return FileSystems.join(self.examples, f"Split-{split}")

    def example_files(self, split: str, files: int) -> list[str]:
        """Paths of the files of a split."""
        directory = self.split_directory(split)
        return [
            FileSystems.join(directory, f"{spec.EXAMPLES_PREFIX}-{index:05d}-of-{files:05d}.gz")
            for index in range(files)
        ]


class ReadTables(beam.DoFn):
    """(index, [Work]) -> tables of rows for shards, tagged by table; counts and the like aside."""

    def __init__(
        self, data: DataSettings, objectives: list[str], shards: ShardCounts, places: Places
    ) -> None:
        self._data = data
        self._objectives = objectives
        self._shards = shards
        self._places = places

    def process(self, element: tuple[int, Iterable[Work]]) -> Iterator[TaggedOutput]:
        """Reads parts from start to end."""
        index, parts = element
        for work in parts:
            yield from self._read(index, work)

    def _read(self, index: int, work: Work) -> Iterator[TaggedOutput]:
        reader = reader_of(work, self._data, self._objectives, self._shards)
        writer = PartsWriter(self._places.parts, compress=False)
        writer.start((index,))
        for found in reader.read():
            if isinstance(found, str):
                writer.add(self._places.dead_letters, found.encode())
            else:
                yield TaggedOutput(work.table, found)
        yield from _tagged(PARTS, writer.close())
        yield from _tagged(COUNTS, reader.books.close())
        for kind, counted_letter in sorted(reader.books.kinds.items()):
            yield TaggedOutput(KINDS, ((work.table, kind), counted_letter))
        if isinstance(reader, LogReader) and reader.histogram.counts:
            yield TaggedOutput(HISTOGRAMS, reader.histogram)


def _tagged(tag: str, elements: Iterable[Any]) -> Iterator[TaggedOutput]:
    return (TaggedOutput(tag, element) for element in elements)


class _WritingDoFn(beam.DoFn):
    """Writes examples as parts, and counts; sends both when a bundle ends."""

    def __init__(self, places: Places, files: dict[str, list[str]]) -> None:
        self._places = places
        self._files = files  # of each split

    def start_bundle(self) -> None:
        """Starts the counts and the files of a bundle."""
        self._counts: Counter[CountKey] = Counter()
        self._writer = PartsWriter(self._places.parts)

    def finish_bundle(self) -> Iterator[Any]:
        """Sends the counts and the parts of a bundle."""
        for part in self._writer.close():
            yield TaggedOutput(PARTS, GlobalWindows.windowed_value(part))
        for pair in sorted(self._counts.items()):
            yield TaggedOutput(COUNTS, GlobalWindows.windowed_value(pair))

    def _count_entities(self, table: str, entities: Entities) -> None:
        if entities.duplicates:
            self._counts[(counted.DROPPED, table, "duplicate")] += entities.duplicates
        for name, fields in entities.unusable.items():
            self._counts[(counted.UNUSABLE, table, name)] += fields


class BuildTimelines(_WritingDoFn):
    """(shard, {"events", "users"}) -> tf.Examples as parts; the items of the shard."""

    def __init__(self, data: DataSettings, seed: int, shards: ShardCounts, places: Places) -> None:
        super().__init__(
            places, {split: places.example_files(split, data.shards) for split, _ in _SPLITS}
        )
        self._split = data.split
        self._bounds = Bounds(data.timeline.max_events, data.timeline.context_events)
        self._seed = seed
        self._users_table = data.users is not None
        self._user_schema = schema_of(data.users)
        self._item_shards = shards.items

    def process(self, element: tuple[int, Any], cut_ms: int | None) -> Iterator[TaggedOutput]:
        """Builds the timelines of the users of a shard."""
        shard, grouped = element
        table = gather(grouped["events"], EVENTS)
        users, user_ids = ranked(table.column("user_id"))
        items, item_ids = ranked(table.column("item_id"))
        events = Events(
            users,
            items,
            table.column("timestamp_ms").to_numpy(),
            table.column("level").to_numpy().astype(np.int64),
        )
        del table
        keys = id_list(user_ids)
        if self._split.kind == "time":
            timelines = time_split(events, cut_ms)
        else:
            timelines = leave_out_split(
                events, keys, id_list(item_ids), self._seed, self._split.share
            )
        entities = Entities.of(gather(grouped["users"], self._user_schema))
        found = pc.index_in(user_ids, entities.keys)
        chunks = cut_into_chunks(timelines, self._bounds)
        self._count(timelines, chunks)
        self._count_users(found, entities)
        self._writer.start((shard,))
        entries = user_entries(user_ids, found, entities.features)
        encoded = EncodedTimelines(timelines, item_ids, entries)
        for split, evaluation in _SPLITS:
            chosen = Chunks(*(column[chunks.evaluation == evaluation] for column in chunks))
            self._writer.add_examples(self._files[split], encoded.examples(chosen))
        self._writer.flush()
        seen = np.zeros(len(item_ids), bool)
        seen[timelines.item[~timelines.evaluation]] = True
        items_table = pa.Table.from_arrays(
            [item_ids.cast(pa.binary()), pa.array(seen)], schema=SEEN
        )
        yield from _tagged(SEEN_ITEMS, divide(items_table, "item_id", self._item_shards))

    def _count_users(self, found: pa.Int32Array, entities: Entities) -> None:
        counts = self._counts
        self._count_entities(spec.USERS, entities)
        known = len(found) - found.null_count
        counts[(counted.USERS, "total")] += len(found)
        if known:
            counts[(counted.USED, spec.USERS)] += known
        if self._users_table and len(found) > known:
            counts[(counted.USERS, "without_features")] += len(found) - known
        if len(entities.keys) > known:
            counts[(counted.DROPPED, spec.USERS, "not_in_log")] += len(entities.keys) - known

    def _count(self, timelines: Timelines, chunks: Chunks) -> None:
        counts = self._counts
        for rule, n in (("duplicate", timelines.duplicates), ("repeat", timelines.repeats)):
            if n:
                counts[(counted.DROPPED, spec.INTERACTIONS, rule)] += n
        for split, evaluation in _SPLITS:
            chosen = timelines.evaluation == evaluation
            if not chosen.any():
                continue
            counts[(counted.USED, spec.INTERACTIONS)] += int(chosen.sum())
            counts[(counted.USERS, split)] += int((~same_as_before(timelines.user[chosen])).sum())
            counts[(counted.EXAMPLES, split)] += int((chunks.evaluation == evaluation).sum())
            for what, found in (
                (counted.EVENTS, timelines.level[chosen]),
                (counted.TARGETS, timelines.target_level[chosen]),
            ):
                for level, n in enumerate(np.bincount(found[found != CONTEXT]).tolist()):
                    if n:
                        counts[(what, split, str(level))] += n


class BuildCatalogue(_WritingDoFn):
    """(shard, {"seen", "catalogue"}) -> tf.Examples of items as parts."""

    def __init__(self, data: DataSettings, places: Places) -> None:
        files = places.example_files(CATALOGUE_SPLIT, data.catalogue_shards)
        super().__init__(places, {CATALOGUE_SPLIT: files})
        self._catalogue_table = data.catalogue is not None
        self._schema = schema_of(data.catalogue)

    def process(self, element: tuple[int, Any]) -> list[Any]:
        """Builds the examples of a shard's items, but for those that only the future knows."""
        shard, grouped = element
        entities = Entities.of(gather(grouped["catalogue"], self._schema))
        seen = gather(grouped["seen"], SEEN)
        codes, item_ids = ranked(seen.column("item_id"))
        in_train = np.zeros(len(item_ids), bool)
        in_train[codes[seen.column("in_train").to_numpy()]] = True
        known = entities.keys
        new = pc.is_in(item_ids, known).to_numpy(zero_copy_only=False) == 0
        added, after_cut = item_ids.filter(pa.array(new & in_train)), int((new & ~in_train).sum())
        self._count_entities(spec.CATALOGUE, entities)
        counts = self._counts
        for key, n in (
            ((counted.USED, spec.CATALOGUE), len(known)),
            ((counted.ITEMS, "after_cut"), after_cut),
            ((counted.ITEMS, "total"), len(known) + len(added)),
            ((counted.EXAMPLES, CATALOGUE_SPLIT), len(known) + len(added)),
        ):
            if n:
                counts[key] += n
        if self._catalogue_table and (len(added) or after_cut):
            counts[(counted.ITEMS, "without_features")] += len(added) + after_cut
        self._writer.start((shard,))
        nothing = pa.array([b""] * len(added), pa.large_binary())
        examples = item_examples(
            pa.concat_arrays([known, added]),
            pa.concat_arrays([entities.titles, nothing]),
            {name: pa.concat_arrays([e, nothing]) for name, e in entities.features.items()},
        )
        self._writer.add_examples(self._files[CATALOGUE_SPLIT], examples)
        self._writer.flush()
        return []  # the parts leave when the bundle ends


def write_file(element: tuple[str, Iterable[Part | None]], places: Places) -> None:
    """Puts a file together; None stands for no part."""
    path, parts = element
    put_together(path, [part for part in parts if part is not None], places.parts)


class SummariseDeadLetters(beam.CombineFn):
    """Parts of the dead letters of one kind -> how many, and the first of them by file and line."""

    def create_accumulator(self) -> tuple[int, DeadLetter | None]:
        """Nothing yet."""
        return 0, None

    def add_input(
        self, accumulator: tuple[int, DeadLetter | None], element: tuple[int, DeadLetter]
    ) -> tuple[int, DeadLetter | None]:
        """Adds one part."""
        return self.merge_accumulators([accumulator, element])

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


def write_lines(lines: Sequence[str], path: str) -> None:
    """Writes a small file."""
    with FileSystems.create(path) as handle:
        handle.write("".join(f"{line}\n" for line in lines).encode())
