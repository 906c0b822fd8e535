"""The vectorised ingestion reads and writes what reading row by row does, on all kinds of logs."""

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
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from components.interaction_gen import batches, extents, files, reading, shards, spec
from components.interaction_gen.examples import EncodedTimelines, feature_entry, user_entries
from components.interaction_gen.ingest import Outputs, ingest
from components.interaction_gen.reading import LogReader
from components.interaction_gen.shards import EVENTS, ShardCounts, gather, shard_numbers
from components.interaction_gen.timelines import Bounds, cut_into_chunks, time_split
from schemas.logs import DataSettings
from tests.components.interaction_gen.conftest import make_pipeline
from tests.components.interaction_gen.row_by_row import RowByRow, timeline_example
from tests.components.interaction_gen.row_by_row import time_split as split_one_by_one
from tests.components.interaction_gen.test_timelines import coded

OBJECTIVES = ["exposure", "click", "conversion"]
T0 = 1_600_000_000

# Fields of every kind of oddity. Most rows are to be good ones, so good values come often.
IDS = st.sampled_from(
    ["u1", "u2", "42", "i-3", "new york", "é", "日本", "x"] * 3
    + ["", " ", " pad ", "\u3000", "nul\0", "bell\7", "a,b", 'q"q', "\x7f", "\x85end", "y" * 1025]
)
SECONDS = st.sampled_from(
    [str(T0 + n) for n in range(20)]
    + [f"{T0}.5", f"{T0}.123456789", "0", "", "soon", f" {T0} ", f"+{T0}", f"{T0}000", "1e9", "nan"]
    + ["0x5F5E0FF1", "٣" * 10, "1_600_000_000", f"{T0}.", f"-{T0}", "9" * 30, "1912-06-23"]
)
ISO = st.sampled_from(
    [
        "2020-09-13",
        "2020-09-13T12:26:40",
        "2020-09-13 12:26:40",
        "2020-09-13T12:26:40Z",
        "2020-09-13T12:26:40.123",
        "2020-09-13T12:26:40.123Z",
        "2020-09-13T12:26:40.123456",
        "2020-09-13T12:26:40.123456Z",
        "2020-09-13T12:26:40+02:00",
        "2020-02-29T00:00:00-11:30",
        "2020-09-13T12:26:40.123456+00:00",
        "2020-09-13T12:26:40.999-23:59",
        "2020-09-13T12",
        "2021-02-29",
        "2020-13-01",
        "2020-09-13T24:00:00",
        "2020-09-13T12:60:00",
        "20200913",
        "2020-09-13T12:26:40.1",
        "2020-09-13x12:26:40",
        "1989-12-31",
        "2100-01-01",
        "1600000000",
        "2099-12-31T23:59:59.999999Z",
        "1990-01-01T00:00:00+00:01",
        "",
        "yesterday",
        "2020-W38-7",
        "2020-09-13T12:26:40.123456+24:00",
        "0000-01-01",
        "２０２０-09-13",
    ]
)
RATINGS = st.sampled_from(
    ["1", "3", "4", "5", "4.5", "5.0"] * 2 + ["", " ", "four", "inf", "nan", " 4 ", "1e1", "0x5"]
)
EVENTS_TEXT = st.sampled_from(["view", "cart", "buy", " view ", "seen"] * 2 + ["", "vieW", "7"])
LINES = st.sampled_from(
    [
        b"",
        b"   ",
        b",,,",
        b",",
        b"a,b\r",
        b"\r",
        b'"',
        b'"u1","i',
        b'x","y',
        b"\xff,\xfe,1,2",
        b'"u","i","4","' + str(T0).encode() + b'"',
        b'"u""1",i,4,' + str(T0).encode(),
        b"z" * 1100,
        b"\xef\xbb\xbfu1,i,4," + str(T0).encode(),
        b'u1,"i,1",4,' + str(T0).encode(),
        b"u\0,i,1,2",
        b'"u1"x,i,4,1',
        b'u1,i"i,4,' + str(T0).encode(),
        b"u1,i,4," + str(T0).encode() + b"\r",
    ]
)


def settings_of(path: Path, form: str, kind: str, rule: str, **more: Any) -> DataSettings:
    source: dict[str, Any] = {
        "path": str(path),
        "format": form,
        "columns": {"user_id": "user", "item_id": "item", "timestamp": "time"},
        "timestamp_unit": kind,
        **more.pop("source", {}),
    }
    if rule == "event":
        source["event"] = {
            "column": "what",
            "values": {"view": "exposure", "cart": "click", "buy": "conversion", "7": "click"},
            "ignore": ["seen"],
        }
    elif rule == "levels":
        source["levels"] = {
            "exposure": {"column": ["what", "more"], "at_least": 3},
            "click": {"column": "what", "at_least": 4},
            "conversion": {"column": "more", "at_least": 5},
        }
    else:
        source["level"] = "conversion"
    return DataSettings.parse({"interactions": [source], "max_line_bytes": 1024, **more})


def read_both(data: DataSettings, users: int = 3) -> None:
    """Reads a log both ways and compares events, dead letters, drops and counts."""
    expected = RowByRow(data, OBJECTIVES)
    tables: dict[int, list[bytes]] = defaultdict(list)
    dead: list[tuple[Any, ...]] = []
    dropped: Counter[tuple[str, str]] = Counter()
    read = closed = 0
    moments = []
    for work in files.plan_work(data):
        reader = LogReader(work, data, OBJECTIVES, ShardCounts(users, 1))
        for found in reader.read():
            if isinstance(found, str):
                dead.append(tuple(json.loads(found).values()))
            else:
                tables[found[0]].append(found[1])
        for key, n in reader.books.close():
            if key[0] == "dropped":
                dropped[key[1], key[2]] += n
            read += n if key[0] == "read" else 0
            closed += n if key[0] == "closed_rows" else 0
        moments.append(reader.histogram)
    expected.read_file(spec.INTERACTIONS, data.interactions[0].path, data.interactions[0])
    assert dead == expected.dead
    assert read == expected.read[spec.INTERACTIONS]
    assert dropped == +expected.dropped
    assert closed == expected.closed
    events = Counter()
    for shard, parts in tables.items():
        table = gather(parts, EVENTS)
        assert set(shard_numbers(table.column("user_id").combine_chunks(), users)) == {shard}
        events.update(zip(*(column.to_pylist() for column in table.columns), strict=True))
    assert events == Counter(
        (user, item, time, level)
        for user, of_user in expected.events.items()
        for time, item, level in of_user
    )
    if data.split.kind == "time":
        assert sum(sum(part.counts.values()) for part in moments) == sum(events.values())


def csv_line(fields: tuple[str, ...], style: int, encoding: str) -> bytes:
    """Fields as they are, quoted where they must be, or all quoted."""
    if style == 0:
        text = ",".join(fields)
    else:
        text = ",".join(
            '"' + field.replace('"', '""') + '"'
            if style == 2 or '"' in field or "," in field
            else field
            for field in fields
        )
    return text.encode(encoding, errors="replace")


csv_logs = st.lists(
    st.tuples(IDS, IDS, RATINGS | EVENTS_TEXT, RATINGS, SECONDS | ISO).flatmap(
        lambda fields: st.tuples(st.just(fields), st.integers(0, 2))
    )
    | LINES,
    max_size=30,
)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BLOCK_BYTES", 300)
    monkeypatch.setattr(batches, "_EVENTS_PER_BATCH", 7)
    monkeypatch.setattr(reading.LogReader, "_rows_per_flush", 10)


@settings(max_examples=100, deadline=None)
@given(
    csv_logs,
    st.sampled_from(["s", "ms", "us", "iso8601"]),
    st.sampled_from(["event", "levels", "level"]),
    st.sampled_from(["utf-8", "latin-1", "ascii", "cp932"]),
    st.sampled_from(['"', "'", None]),
    st.sampled_from([b"\n", b"\r\n"]),
    st.booleans(),
    st.sampled_from(["time", "leave_out"]),
)
def test_csv(rows, unit, rule, encoding, quote, end, last, split) -> None:
    lines = [b"user,item,what,more,time"]
    lines += [row if isinstance(row, bytes) else csv_line(*row, encoding) for row in rows]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "log.csv"
        path.write_bytes(end.join(lines) + (end if last else b""))
        source = {"encoding": encoding, "quote": quote}
        read_both(settings_of(path, "csv", unit, rule, source=source, split={"kind": split}))


@settings(max_examples=100, deadline=None)
@given(st.lists(LINES | st.binary(max_size=20), max_size=250), st.booleans())
def test_lines_of_anything(lines, header) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "log.csv"
        path.write_bytes(b"user,item,what,time\n" * header + b"\n".join(lines))
        source = {} if header else {"header": False, "fields": ["user", "item", "what", "time"]}
        read_both(settings_of(path, "csv", "s", "level", source=source))


def test_records_over_many_lines_at_the_ends_of_blocks(tmp_path: Path) -> None:
    good = f"u,i,view,4,{T0}\n"
    for before in range(0, 40, 5):
        for inside in (1, 5, 60, 99, 100, 101, 150):
            path = tmp_path / "log.csv"
            path.write_text(
                "user,item,what,more,time\n"
                + good * before
                + f'u,"{"x" + chr(10) * inside}",view,4,{T0}\n'
                + good * 150
                + '"open,'
            )
            read_both(settings_of(path, "csv", "s", "event"))


json_values = {
    "user": IDS | st.sampled_from([1, 7, 7.0, None, True, 2**70]),
    "item": IDS | st.integers(0, 9),
    "time": st.integers(T0, T0 + 9) | st.sampled_from([T0 + 0.5, str(T0), None, True, "soon", 1]),
    "what": EVENTS_TEXT | st.sampled_from([1, 4, 5.5, True, None]),
    "more": st.sampled_from([0, 5, 4.5, False, "5", None]),
    "other": st.sampled_from([None, [1], {"a": [2]}, "\ud800"]),
}
# Whole columns of one type, too, which are what Arrow reads.
plain_json = {
    "user": st.sampled_from(["a", "b", "é", "", "\ud800"]),
    "item": st.integers(0, 9),
    "time": st.integers(T0, T0 + 9) | st.sampled_from([T0 + 0.25]),
    "what": st.sampled_from([1.5, 3, 4, 5, None]),
    "more": st.booleans(),
    "other": st.sampled_from([None, [1], {"a": [2]}]),
}
JSON_LINES = st.sampled_from(
    [
        b"",
        b"  ",
        b"{",
        b"}",
        b"[1]",
        b"{}{}",
        b'{"user": 1}{"a": 2,',
        b'"b": 3}',
        b"[" * 5000,
        b'{"user": "a", "user": "b", "item": 1, "time": 1600000000}',
        b" {} ",
        b'{"a":' * 300,
        b'{"user": NaN}',
        b'{"user": "a", "item": 1, "time": 1.6e9, "what": 4, "more": true} ',
        b'{"user": "\xff"}',
        b'{"time": 01}',
        b'{"user": "a", "item": 99999999999999999999}',
        b'{"x": ' + b"[" * 600 + b"]" * 600 + b"}",
        b"{}\r",
        b'{"user": "a\tb"}',
        b"\xef\xbb\xbf{}",
    ]
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.fixed_dictionaries(json_values), max_size=12)
    | st.lists(
        st.fixed_dictionaries({}, optional=plain_json) | st.fixed_dictionaries(plain_json),
        max_size=25,
    ),
    st.lists(st.tuples(st.integers(0, 25), JSON_LINES), max_size=2),
    st.sampled_from(["s", "us", "iso8601"]),
    st.sampled_from(["event", "levels", "level"]),
)
def test_json_lines(rows, odd, unit, rule) -> None:
    lines = [json.dumps(row).encode() for row in rows]
    for place, line in odd:
        lines.insert(place, line)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "log.jsonl"
        # The plan wants to see every key.
        first = {"user": "f", "item": 1, "time": T0, "what": 1, "more": True}
        path.write_bytes(b"\n".join([json.dumps(first).encode(), *lines]))
        read_both(settings_of(path, "jsonl", unit, rule))


def arrays(values: st.SearchStrategy[Any], *kinds: pa.DataType) -> st.SearchStrategy[Any]:
    return st.tuples(
        st.lists(st.none() | values, min_size=20, max_size=20), st.sampled_from(kinds)
    ).map(lambda pair: pa.array(*pair))


texts = arrays(IDS, pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()))
broken = arrays(
    st.sampled_from([b"a", b"\xff", b"\xc3", b"\xa9", "é".encode()]), pa.binary(), pa.large_binary()
).map(lambda array: array.view(pa.string()) if array.type == pa.binary() else array)
numbers_ = arrays(st.integers(0, 9), pa.int8(), pa.uint16(), pa.int64(), pa.uint64(), pa.float64())
floats = arrays(st.sampled_from([0.0, 1.5, 4.0, 5.0, float("nan"), float("inf")]), pa.float32())
others = st.one_of(
    arrays(st.booleans(), pa.bool_()),
    arrays(st.lists(st.integers(0, 3)), pa.list_(pa.int8())),
    arrays(st.decimals(0, 9, places=2), pa.decimal128(9, 2)),
)
moments_ = st.one_of(
    arrays(st.integers(T0, T0 + 9), pa.int64(), pa.uint64(), pa.float64(), pa.int32()),
    arrays(
        st.sampled_from([T0, T0 * 1000 + 1, T0 * 10**6 + 1999, T0 * 10**9 + 1_999_999, 0, -1]),
        pa.int64(),
        *(pa.timestamp(unit, zone) for unit in ("ms", "us", "ns") for zone in (None, "UTC")),
    ),
    arrays(st.sampled_from([T0, 4_102_444_800, 631_152_000]), pa.timestamp("s"), pa.date64()),
    arrays(SECONDS | ISO, pa.string(), pa.dictionary(pa.int8(), pa.string())),
    arrays(st.sampled_from([b"1600000000", b"1600000000.5", b"\xff", b"\xff.5"]), pa.binary()),
    arrays(st.sampled_from([T0 + 0.25, T0 * 1000.5, float("nan"), -1.0]), pa.float64()),
    numbers_,
    others,
)


@settings(max_examples=100, deadline=None)
@given(
    st.one_of(texts, broken, numbers_, floats, others),
    st.one_of(texts, numbers_),
    moments_,
    st.one_of(arrays(EVENTS_TEXT, pa.string()), texts, numbers_, floats, others, broken),
    st.one_of(numbers_, floats, others, arrays(RATINGS, pa.string())),
    st.sampled_from(["s", "ms", "us", "iso8601"]),
    st.sampled_from(["event", "levels", "level"]),
    st.sampled_from(["time", "leave_out"]),
)
def test_parquet(user, item, time, what, more, unit, rule, split) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "log.parquet"
        table = pa.table({"user": user, "item": item, "time": time, "what": what, "more": more})
        pq.write_table(table, path, row_group_size=11, version="2.6")
        read_both(settings_of(path, "parquet", unit, rule, split={"kind": split}))


@given(
    st.dictionaries(
        st.binary(max_size=3),
        st.lists(
            st.tuples(
                st.integers(631_152_000_000, 4_102_444_799_999),
                st.binary(max_size=2) | st.binary(min_size=120, max_size=140),
                st.integers(0, 5),
            ),
            min_size=1,
            max_size=20,
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(2, 9),
    st.booleans(),
)
def test_examples_are_the_bytes_of_tf_train_example(log, size, untimed) -> None:
    if untimed:
        log = {user: [(n % 2, i, v) for n, (_, i, v) in enumerate(of)] for user, of in log.items()}
    events, users, items = coded(log)
    cut = 1 if untimed else 2_000_000_000_000
    bounds = Bounds(size, size // 2)
    timelines = time_split(events, cut)
    ids = pa.array(users, pa.large_binary())
    encoded = EncodedTimelines(
        timelines,
        pa.array(items, pa.large_binary()),
        user_entries(ids, pa.nulls(len(users), pa.int32()), {}),
    )
    expected = []
    for user in users:
        timeline = split_one_by_one(log[user], cut, bounds)
        expected += [
            timeline_example(user, chunk, None) for chunk in (*timeline.train, *timeline.evaluation)
        ]
    assert list(encoded.examples(cut_into_chunks(timelines, bounds))) == expected


@given(
    st.lists(st.binary(max_size=300), max_size=3)
    | st.lists(st.floats(width=32, allow_nan=False), max_size=40)
)
def test_a_feature_is_the_bytes_of_tf_train_example(values) -> None:
    example = tf.train.Example()
    if values:
        feature = example.features.feature["user_x"]
        kind = feature.bytes_list if isinstance(values[0], bytes) else feature.float_list
        kind.value.extend(values)
    assert feature_entry("user_x", values) == example.features.SerializeToString()


def random_log(path: Path, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    lines = ["user,item,what,more,time"]
    for _ in range(rows):
        user, item = rng.zipf(1.3) % 300, rng.zipf(1.2) % 500
        rating = rng.choice(["1", "3", "4", "5", "x"], p=[0.2, 0.3, 0.3, 0.19, 0.01])
        lines.append(f"u{user},i{item},{rating},{rng.integers(0, 6)},{T0 + rng.integers(0, 400)}")
        if rng.random() < 0.02:
            lines.append(str(rng.choice(["", "a,b", '"q",i,4,4,1600000000', "u\0,i,4,4,1"])))
    path.write_text("\n".join(lines) + "\n")


def records(outputs: Outputs) -> dict[tuple[str, int], list[bytes]]:
    found = {}
    for path in Path(outputs.examples).rglob("data_tfrecord-*"):
        dataset = tf.data.TFRecordDataset([str(path)], compression_type="GZIP")
        split = path.parent.name.removeprefix("Split-")
        content = sorted(record.numpy() for record in dataset)
        if content:
            found[split, int(path.name.split("-")[1])] = content
    return found


@pytest.mark.slow
@pytest.mark.parametrize("split", ["time", "leave_out"])
@pytest.mark.parametrize("per_shard", [100, 10**6])
def test_the_whole_ingestion(split, per_shard, tmp_path, outputs, monkeypatch) -> None:
    monkeypatch.setattr(batches, "BLOCK_BYTES", 20_000)
    monkeypatch.setattr(reading.LogReader, "_rows_per_flush", 1500)
    monkeypatch.setattr(reading.EntityReader, "_rows_per_flush", 50)
    monkeypatch.setattr(shards, "_ROWS_PER_SHARD", per_shard)
    monkeypatch.setattr(files, "RANGE_BYTES", 30_000)
    monkeypatch.setattr(extents, "_BLOCK_BYTES", 10_000)
    for part in range(2):
        random_log(tmp_path / f"log{part}.csv", 4000, part)
    (tmp_path / "users.csv").write_text(
        "user,age,zone\n" + "".join(f"u{n % 350},{n % 90},z{n % 3}\n" for n in range(380))
    )
    (tmp_path / "items.csv").write_text(
        "item,title,genre\n" + "".join(f"i{n % 550},t{n},{n % 7}|g\n" for n in range(600))
    )
    data = settings_of(
        tmp_path / "log*.csv",
        "csv",
        "s",
        "levels",
        split={"kind": split, "eval_share": 0.3},
        max_dead_letter_share=0.5,
        shards=3,
        catalogue_shards=2,
        timeline={"max_events": 20, "context_events": 7},
        users={
            "path": str(tmp_path / "users.csv"),
            "columns": {"user_id": "user"},
            "features": [
                {"name": "age", "column": "age", "kind": "numeric"},
                {"name": "zone", "column": "zone", "kind": "categorical"},
            ],
        },
        catalogue={
            "path": str(tmp_path / "items.csv"),
            "columns": {"item_id": "item", "title": "title"},
            "features": [
                {"name": "genre", "column": "genre", "kind": "categorical", "separator": "|"},
                {"name": "year", "column": "genre", "kind": "numeric"},
            ],
        },
    )
    report = ingest(data, OBJECTIVES, 7, make_pipeline, outputs)
    expected = RowByRow(data, OBJECTIVES).ingest(7, report.split["cut_ms"])
    assert records(outputs) == expected.files
    dead = (Path(outputs.dead_letters) / "dead_letters.jsonl").read_text().splitlines()
    assert [tuple(json.loads(line).values()) for line in dead] == expected.dead
    for name, counts in report.tables.items():
        assert counts.read == expected.read[name]
        assert counts.dropped == {
            rule: n for (table, rule), n in expected.dropped.items() if table == name
        }
        assert counts.reconciled
    assert report.closed_rows == expected.closed
    assert sorted(path.name for path in Path(outputs.examples).iterdir()) == [
        "Split-catalogue",
        "Split-eval",
        "Split-train",
    ]
