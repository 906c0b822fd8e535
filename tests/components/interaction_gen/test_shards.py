"""Shards: the same on every machine, in any order, and of any size."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from components.interaction_gen import reading, shards
from components.interaction_gen.ingest import Outputs, ingest
from components.interaction_gen.shards import EVENTS, ShardCounts, divide, gather, ranked
from components.interaction_gen.sorting import sorted_order
from schemas.logs import DataSettings
from tests.components.interaction_gen.conftest import make_pipeline

T0 = 1_600_000_000


def events(rows: list[tuple[bytes, bytes, int, int]]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * 4
    arrays = [pa.array(column, field.type) for column, field in zip(columns, EVENTS, strict=True)]
    return pa.Table.from_arrays(arrays, schema=EVENTS)


def test_the_number_of_shards_follows_the_size() -> None:
    assert ShardCounts.for_rows(0, 0, 0) == (1, 1)
    assert ShardCounts.for_rows(200_000, 1000, 1000) == (1, 1)
    assert ShardCounts.for_rows(10_000_000, 1000, 1000) == (50, 8)
    assert ShardCounts.for_rows(1000, 1_000_000, 4_000_000) == (5, 20)


def test_the_hash_of_an_id_never_changes() -> None:
    rows = [(b"ann", b"x", 1, 0), (b"bob", b"y", 2, 1), (b"cyd", b"z", 3, 2), (b"ann", b"y", 4, 0)]
    found = {shard: gather([part], EVENTS) for shard, part in divide(events(rows), "user_id", 5)}
    users = {shard: table.column("user_id").to_pylist() for shard, table in found.items()}
    assert users == {0: [b"cyd"], 2: [b"ann", b"ann"], 4: [b"bob"]}


@given(
    st.lists(
        st.tuples(
            st.binary(max_size=2), st.binary(max_size=2), st.integers(0, 9), st.integers(0, 2)
        ),
        max_size=40,
    ),
    st.integers(1, 5),
    st.integers(1, 7),
    st.integers(0, 9),
)
def test_tables_are_divided_and_put_together_again(rows, number, size, shuffle) -> None:
    parts: dict[int, list[bytes]] = {}
    for start in range(0, len(rows), size):
        for shard, part in divide(events(rows[start : start + size]), "user_id", number):
            parts.setdefault(shard, []).append(part)
    found = []
    for of_shard in parts.values():
        random.Random(shuffle).shuffle(of_shard)
        table = gather(of_shard, EVENTS)
        codes, ids = ranked(table.column("user_id"))
        assert ids.to_pylist() == sorted(set(table.column("user_id").to_pylist()))
        assert ids.take(pa.array(codes)).to_pylist() == table.column("user_id").to_pylist()
        found += list(zip(*(column.to_pylist() for column in table.columns), strict=True))
    assert sorted(found) == sorted(rows)


@given(
    st.lists(
        st.tuples(
            st.integers(-5, 5) | st.integers(-(2**61), 2**61),
            st.integers(0, 3) | st.integers(0, 2**40),
            st.integers(-2, 2),
        ),
        max_size=50,
    )
)
def test_sorting_by_several_keys(rows) -> None:
    columns = np.array(rows, np.int64).reshape(-1, 3).T
    assert sorted_order(*columns).tolist() == sorted(range(len(rows)), key=lambda row: rows[row])


def log_settings(path: str) -> DataSettings:
    return DataSettings.parse(
        {
            "interactions": [
                {
                    "path": path,
                    "format": "parquet",
                    "columns": {"user_id": "user", "item_id": "item", "timestamp": "time"},
                    "level": "exposure",
                }
            ],
            "split": {"kind": "time", "eval_share": 0.3},
        }
    )


def example_bytes(outputs: Outputs) -> dict[str, bytes]:
    root = Path(outputs.examples)
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.gz")}


@pytest.mark.slow
def test_the_order_of_rows_and_files_does_not_change_a_byte(tmp_path, outputs, monkeypatch) -> None:
    monkeypatch.setattr(shards, "_ROWS_PER_SHARD", 300)
    monkeypatch.setattr(reading.LogReader, "_rows_per_flush", 200)
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "user": rng.integers(0, 50, 2000),
            "item": rng.integers(0, 90, 2000),
            "time": T0 + rng.integers(0, 999, 2000),
        }
    )
    found = []
    for seed in range(2):
        shuffled = table.take(pa.array(np.random.default_rng(seed).permutation(2000)))
        pq.write_table(shuffled.slice(0, 900), tmp_path / "log0.parquet", row_group_size=170)
        pq.write_table(shuffled.slice(900), tmp_path / "log1.parquet", row_group_size=400)
        ingest(log_settings(f"{tmp_path}/log*"), ["exposure"], 7, make_pipeline, outputs)
        found.append(example_bytes(outputs))
    assert found[0] == found[1]
    assert len(found[0]) == 4 + 4 + 1


@pytest.mark.slow
def test_a_user_with_a_million_events(tmp_path, outputs) -> None:
    rows = 1_000_000
    rng = np.random.default_rng(0)
    users = np.where(rng.random(rows + 1000) < 0.001, "somebody", "everybody")
    users[:rows] = "everybody"
    pq.write_table(
        pa.table(
            {
                "user": users,
                "item": rng.permutation(rows + 1000),
                "time": T0 + rng.integers(0, 10**7, rows + 1000),
            }
        ),
        tmp_path / "log.parquet",
    )
    data = log_settings(f"{tmp_path}/log.parquet")
    report = ingest(data, ["exposure"], 7, make_pipeline, outputs)
    assert report.tables["interactions"].used == rows + 1000
    chunks = targets = 0
    for path in Path(outputs.examples).glob("Split-[et]*/*"):
        for record in tf.data.TFRecordDataset([str(path)], compression_type="GZIP"):
            feature = tf.train.Example.FromString(record.numpy()).features.feature
            levels = np.array(feature["target_levels"].int64_list.value)
            assert len(levels) <= data.timeline.max_events
            targets += int((levels >= 0).sum())
            chunks += feature["user_id"].bytes_list.value[0] == b"everybody"
    assert chunks > rows / data.timeline.max_events
    assert targets == rows + 1000
