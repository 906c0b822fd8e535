"""The catalogue and the users read by columns are what reading row by row gives."""

from __future__ import annotations

import json
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.interaction_gen import batches, columns, extents, files, reading, spec
from components.interaction_gen.catalogue import Entities, schema_of
from components.interaction_gen.examples import feature_entry, number_entries
from components.interaction_gen.reading import EntityReader
from components.interaction_gen.shards import ShardCounts, gather, shard_numbers
from components.interaction_gen.values import number, texts
from schemas.logs import DataSettings
from tests.components.interaction_gen.row_by_row import RowByRow
from tests.components.interaction_gen.test_same_as_row_by_row import IDS, LINES, arrays, csv_line

SHARDS = 3

TITLES = st.sampled_from(
    ["a title", "word word", "Ünïcode", "日本 語", "x", "The End (1999)"] * 2
    + ["", "  ", " pad", "pad ", "two  spaces", "tab\there", "a\u3000b", "\x1c", "\x85", "\x7f"]
    + ["nul\0", 'q"q', "c,d", "z" * 200, "é" * 100, "\xa0nbsp", "a\x0bb", " é ", "- ", "a  |  b"]
)
TAGS = st.sampled_from(
    ["a|b", "a", "b c|d", "|", "a||b", " a | b ", "", " ", "é|ü", "a b  c", "||x|", "日本|語 "] * 2
    + [f"{'x' * 130}|{'y' * 200}", "\x1c|a", "a||b|c::d", "|\x7f|", "1|2", "aéb"]
)
NUMBERS = st.sampled_from(
    ["1", "0", "12.5", "-3", "-0", "-0.0", "0.1", "19.99", "123456789012345", "0.000000001"] * 2
    + ["", " ", " 4 ", "1e3", "1e38", "3.5e38", "1e400", "nan", "inf", "-inf", "x", "1_000", "٣"]
    + ["1.", ".5", "+1", "1,5", "1234567890123456789", "12345678901234567890", "0x10", "00012"]
    + ["16777217", "0.30000001192092896", "9007199254740993", "1.17549435e-39", "5\n", "--1"]
)


def data_of(path: Path, kind: str, form: str, separator: str | None, **source: Any) -> DataSettings:
    roles = {"item_id": "id", "title": "title"} if kind == spec.CATALOGUE else {"user_id": "id"}
    features = [
        {"name": "tags", "column": "tags", "kind": "categorical", "separator": separator},
        {"name": "name", "column": "title", "kind": "categorical"},
        {"name": "size", "column": "size", "kind": "numeric"},
        {"name": "code", "column": "size", "kind": "categorical"},
    ]
    table = {"path": str(path), "format": form, "columns": roles, "features": features} | source
    log = {"path": "unused", "level": "exposure"}
    return DataSettings.parse(
        {
            "interactions": [log],
            "split": {"kind": "leave_out"},
            kind: table,
            "max_line_bytes": 1024,
        }
    )


def read_both(data: DataSettings, kind: str) -> None:
    """Reads a table both ways and compares entities, dead letters and counts."""
    table = data.catalogue if kind == spec.CATALOGUE else data.users
    assert table is not None
    expected = RowByRow(data, ["exposure"])
    expected.read_file(kind, table.path, table)
    parts: dict[int, list[bytes]] = defaultdict(list)
    dead, dropped, read = [], Counter[str](), 0
    for extent, rows in files._parts(table.path, table, data.max_line_bytes):
        work = files.Work(kind, 0, 0, table.path, extent, rows)
        reader = EntityReader(work, data, ShardCounts(SHARDS, SHARDS))
        for found in reader.read():
            if isinstance(found, str):
                dead.append(tuple(json.loads(found).values()))
            else:
                parts[found[0]].append(found[1])
        for key, n in reader.books.close():
            dropped[key[2]] += n if key[0] == "dropped" else 0
            read += n if key[0] == "read" else 0
    assert dead == expected.dead
    assert read == expected.read[kind]
    entities, unusable = {}, Counter[str]()
    for shard, of_shard in parts.items():
        gathered = Entities.of(gather(reversed(of_shard), schema_of(table)))
        assert set(shard_numbers(gathered.keys, SHARDS)) <= {shard}
        dropped["duplicate"] += gathered.duplicates
        unusable += gathered.unusable
        values = (gathered.keys, gathered.titles, *gathered.features.values())
        for key, title, *features in zip(*(v.to_pylist() for v in values), strict=True):
            entities[key] = (title, tuple(features))
    assert +dropped == Counter(
        {rule: n for (name, rule), n in expected.dropped.items() if name == kind and n}
    )
    assert entities == {
        key: (entity.title, entity.features) for key, entity in expected.entities[kind].items()
    }
    assert unusable == Counter(
        name for entity in expected.entities[kind].values() for name in entity.unusable
    )


KINDS = st.sampled_from([spec.CATALOGUE, spec.USERS])
SEPARATORS = st.sampled_from(["|", "||", "::", "é", None])


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BLOCK_BYTES", 300)
    monkeypatch.setattr(batches, "_ENTITIES_PER_BATCH", 7)
    monkeypatch.setattr(reading.EntityReader, "_rows_per_flush", 10)
    monkeypatch.setattr(files, "RANGE_BYTES", 400)
    monkeypatch.setattr(extents, "_BLOCK_BYTES", 200)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(IDS, TITLES, TAGS, NUMBERS).flatmap(
            lambda fields: st.tuples(st.just(fields), st.integers(0, 2))
        )
        | LINES,
        max_size=30,
    ),
    KINDS,
    SEPARATORS,
    st.sampled_from(["utf-8", "latin-1", "cp932"]),
    st.sampled_from(['"', "'", None]),
    st.sampled_from([b"\n", b"\r\n"]),
)
def test_csv(rows, kind, separator, encoding, quote, end) -> None:
    lines = [b"id,title,tags,size"]
    lines += [row if isinstance(row, bytes) else csv_line(*row, encoding) for row in rows]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "table.csv"
        path.write_bytes(end.join(lines) + end)
        read_both(data_of(path, kind, "csv", separator, encoding=encoding, quote=quote), kind)


json_fields = {
    "id": IDS | st.sampled_from([1, 7, 7.0, None, True, 2**70]),
    "title": TITLES | st.sampled_from([None, 3, ["a", " b "], 2.5]),
    "tags": TAGS | st.sampled_from([None, ["a|b", "c"], [], [None, "x", 1.0], 7, True, {"a": 1}]),
    "size": NUMBERS | st.sampled_from([None, 1, 2.5, [1, 2], [], True, 2**60 + 1, 1e39, "4"]),
}
# Whole columns of one type, which are what Arrow reads.
plain_json = {
    "id": st.integers(0, 9),
    "title": TITLES,
    "tags": TAGS,
    "size": st.sampled_from([1, 2.5, 2**53 + 1, 16777217, -0.0, 1e39, None]),
}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.fixed_dictionaries(json_fields), max_size=10)
    | st.lists(st.fixed_dictionaries({}, optional=plain_json), max_size=25),
    KINDS,
    SEPARATORS,
)
def test_json_lines(rows, kind, separator) -> None:
    first = {"id": 1, "title": "t", "tags": "a|b", "size": 1}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "table.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in [first, *rows]))
        read_both(data_of(path, kind, "jsonl", separator), kind)


TEXT_KINDS = (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.binary())
broken = arrays(
    st.sampled_from([b"a", b"\xff", b"b|\xc3", b"\xa9", "é".encode()]), pa.binary()
).map(lambda array: array.view(pa.string()))
lists = st.one_of(
    arrays(st.lists(TAGS | st.none(), max_size=4), pa.list_(pa.string())),
    arrays(st.lists(TITLES, max_size=3), pa.list_(pa.string()), pa.large_list(pa.string())),
    arrays(st.lists(st.sampled_from([b"a", b"\xff", b"b|c"]), max_size=3), pa.list_(pa.binary())),
    arrays(st.lists(st.floats(width=32), max_size=3), pa.list_(pa.float64())),
)
numbers = st.one_of(
    arrays(st.integers(0, 9), pa.int8(), pa.uint16(), pa.int64(), pa.uint64(), pa.float64()),
    arrays(st.sampled_from([2**53 + 1, 2**62 + 1, 16777217, -5]), pa.int64()),
    arrays(st.floats(), pa.float64()),
    arrays(st.floats(width=32), pa.float32()),
    arrays(st.booleans(), pa.bool_()),
    arrays(st.decimals(0, 9, places=2), pa.decimal128(9, 2)),
)
others = st.one_of(
    arrays(st.dates(), pa.date32()),
    arrays(st.sampled_from([0, 1_600_000_000_123_456_789]), pa.timestamp("ns"), pa.time64("ns")),
    st.just(pa.nulls(20)),
)


@settings(max_examples=80, deadline=None)
@given(
    st.one_of(arrays(IDS, *TEXT_KINDS[:3]), numbers, broken),
    st.one_of(arrays(TITLES, *TEXT_KINDS), lists, numbers, broken, others),
    st.one_of(arrays(TAGS, *TEXT_KINDS), lists, numbers, broken, others),
    st.one_of(arrays(NUMBERS, *TEXT_KINDS), lists, numbers, broken, others),
    KINDS,
    SEPARATORS,
)
def test_parquet(ids, title, tags, size, kind, separator) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "table.parquet"
        table = pa.table({"id": ids, "title": title, "tags": tags, "size": size})
        pq.write_table(table, path, row_group_size=11, version="2.6")
        read_both(data_of(path, kind, "parquet", separator), kind)


def test_whole_numbers_beside_fractions_and_numbers_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "BLOCK_BYTES", 10_000)
    sizes = [1, 2.5, 2**53 + 1, 16777217, 1e39, -1e39, 3.4e38, -0.0, 10**17 + 1]
    path = tmp_path / "table.jsonl"
    for ids in (range(9), [1, 2.5, 2**53 + 1, 2**53, 3.0, 3, 4, 5, 6]):
        rows = zip(ids, sizes, strict=True)
        lines = [
            json.dumps({"id": id_, "title": "t", "tags": "a", "size": size}) for id_, size in rows
        ]
        path.write_text("\n".join(lines))
        read_both(data_of(path, spec.CATALOGUE, "jsonl", None), spec.CATALOGUE)
    path = tmp_path / "table.csv"
    path.write_text("id,title,tags,size\n" + "".join(f"{s},t,a,{s:.1f}\n" for s in sizes))
    read_both(data_of(path, spec.CATALOGUE, "csv", None), spec.CATALOGUE)


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_ordinary_rows_are_read_by_columns_alone(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(values: Any) -> Any:
        raise AssertionError(f"{values} was read on its own")

    monkeypatch.setattr(reading, "entity_parser", lambda *_: refuse)
    rows = [
        {"id": f"i{n}", "title": f"No  {n} é", "tags": f"a|b{n}| ", "size": n} for n in range(50)
    ]
    path = tmp_path / f"table.{form}"
    if form == "csv":
        path.write_text(
            "id,title,tags,size\n" + "".join(f"{','.join(map(str, r.values()))}\n" for r in rows)
        )
    elif form == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(
            pa.Table.from_pylist([row | {"tags": ["a", f"{row['id']} "]} for row in rows]), path
        )
    read_both(data_of(path, spec.CATALOGUE, form, "|"), spec.CATALOGUE)


@given(st.lists(st.text(" ab\té\u3000\x1c", max_size=6)))
def test_texts_are_cleaned_as_one_by_one(values) -> None:
    found = columns.cleaned(pa.array([value.encode() for value in values], pa.binary()))
    assert found.to_pylist() == [b"".join(texts(value, None)) for value in values]


@given(st.lists(st.floats(-3e38, 3e38) | st.just(float("nan"))))
def test_numbers_are_the_bytes_of_one_feature_each(values) -> None:
    expected = [feature_entry("x", [] if np.isnan(value) else [value]) for value in values]
    assert number_entries("x", np.array(values, np.float64)).to_pylist() == expected


@given(st.lists(st.decimals(allow_nan=False, allow_infinity=False, places=4).map(str) | NUMBERS))
def test_texts_of_numbers_are_read_as_python_does(values) -> None:
    found, certain = columns.floats(pa.array(values, pa.string()))
    for value, read, known in zip(values, found.tolist(), certain.tolist(), strict=True):
        if known:
            expected = number(value)
            assert np.isnan(read) if expected is None else read.hex() == expected.hex()
