"""Tables that workers exchange: Arrow record batches as bytes, each for one shard.

A shard holds all rows of some ids: those whose hash says so, on every machine alike. What travels
is one element per batch of a part of the input and shard, not one per row or id. It is an IPC
message without its schema: pickling a slice takes the whole batch along, and fifty times as long.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.interaction_gen.sorting import Ints, same_as_before, sorted_order

Sharded = tuple[int, bytes]  # (shard, record batch)

EVENTS = pa.schema(
    {
        "user_id": pa.binary(),
        "item_id": pa.binary(),
        "timestamp_ms": pa.int64(),
        "level": pa.int8(),
    }
)
SEEN = pa.schema({"item_id": pa.binary(), "in_train": pa.bool_()})

_ROWS_PER_SHARD = 200_000


class ShardCounts(NamedTuple):
    """Into how many shards ids are divided."""

    users: int
    items: int

    @classmethod
    def for_rows(cls, events: int, users: int, items: int) -> ShardCounts:
        """Enough for shards of about one size, whatever the sizes of the tables."""
        of_users = max(1, math.ceil(max(events, users) / _ROWS_PER_SHARD))
        # Each shard of users sends a table to each shard of items.
        of_items = max(math.ceil(math.sqrt(of_users)), math.ceil(items / _ROWS_PER_SHARD))
        return cls(of_users, of_items)


def shard_numbers(ids: pa.Array, shards: int) -> Ints:
    """[N] the shard of each id."""
    if shards == 1:
        return np.zeros(len(ids), np.int64)
    codes = pc.dictionary_encode(ids)
    distinct = [zlib.crc32(id_) % shards for id_ in id_list(codes.dictionary)]
    return np.array(distinct, np.int64)[codes.indices.to_numpy()]


def divide(table: pa.Table, key: str, shards: int) -> Iterator[Sharded]:
    """Divides a table by the ids in a column."""
    table = table.combine_chunks()
    if not len(table):
        return
    numbers = shard_numbers(_whole(table.column(key)), shards)
    order = sorted_order(numbers)
    batch = pa.RecordBatch.from_arrays(
        [_whole(column).take(pa.array(order)) for column in table.columns], schema=table.schema
    )
    ordered = numbers[order]
    starts = np.flatnonzero(~same_as_before(ordered)).tolist()
    for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
        yield int(ordered[start]), batch.slice(start, end - start).serialize().to_pybytes()


def gather(parts: Iterable[bytes], schema: pa.Schema) -> pa.Table:
    """Puts the tables of a shard together, in any order."""
    batches = [pa.ipc.read_record_batch(pa.py_buffer(part), schema) for part in parts]
    return pa.Table.from_batches(batches, schema)


def ranked(column: pa.ChunkedArray) -> tuple[Ints, pa.LargeBinaryArray]:
    """[N] codes of ids, and the ids by code, sorted."""
    encoded = column.dictionary_encode().unify_dictionaries().combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):  # no row at all
        return np.empty(0, np.int64), pa.array([], pa.large_binary())
    ids = encoded.dictionary
    order = pc.sort_indices(ids).to_numpy()
    rank: Ints = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank[encoded.indices.to_numpy()], ids.take(pa.array(order)).cast(pa.large_binary())


def id_list(ids: pa.Array | pa.ChunkedArray) -> list[bytes]:
    """Bytes as Python objects; ten times as fast as `to_pylist`."""
    if isinstance(ids, pa.ChunkedArray):
        return [id_ for chunk in ids.chunks for id_ in id_list(chunk)]
    found: list[bytes] = ids.to_numpy(zero_copy_only=False).tolist()
    return found


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
