"""Small logs with known answers through the real Beam pipeline."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.interaction_gen.ingest import ingest
from schemas.logs import DataSettings
from schemas.names import CONTEXT
from tests.components.interaction_gen.conftest import OBJECTIVES, make_pipeline

pytestmark = pytest.mark.slow  # each test runs a whole Beam pipeline

DAY = 86_400  # seconds
T0 = 1_600_000_000 // DAY * DAY

ROWS = [  # user, item, rating, seconds
    ("ann", "x", 3, T0),
    ("ann", "y", 5, T0 + 10),
    ("ann", "x", 4, T0 + 20),
    ("bob", "x", 5, T0 + 30),
    ("bob", "x", 5, T0 + 30),  # duplicate
    ("bob", "x", 3, T0 + 40),  # repeat
    ("bob", "z", 4, T0 + 50),
    ("ann", "z", 5, T0 + 60),
    ("ann", "new", 4, T0 + 70),
    ("cyd", "x", 3, T0 + 80),
]
LEVELS = {
    "click": {"column": "rating", "at_least": 4},
    "conversion": {"column": "rating", "at_least": 5},
}
CUT = datetime.fromtimestamp(T0 + 60, UTC).isoformat()  # three rows lie at or after it


def ms(seconds: int) -> int:
    return (T0 + seconds) * 1000


EXPECTED_CHUNKS = {
    "train": {
        "ann": [[(ms(0), "x", 0, 1), (ms(10), "y", 2, 2), (ms(20), "x", 1, CONTEXT)]],
        "bob": [[(ms(30), "x", 2, 2), (ms(50), "z", 1, 1)]],
    },
    "eval": {
        "ann": [
            [
                (ms(0), "x", 0, CONTEXT),
                (ms(10), "y", 2, CONTEXT),
                (ms(20), "x", 1, CONTEXT),
                (ms(60), "z", 2, 2),
                (ms(70), "new", 1, 1),
            ]
        ],
        "cyd": [[(ms(80), "x", 0, 0)]],
    },
}


def csv_text(rows=ROWS, header: str = "user,item,rating,time") -> str:
    return "".join(f"{line}\n" for line in (header, *(",".join(map(str, row)) for row in rows)))


def source(path: Path, **more: object) -> dict[str, object]:
    return {
        "path": str(path),
        "columns": {"user_id": "user", "item_id": "item", "timestamp": "time"},
        "levels": LEVELS,
        **more,
    }


def section(*sources: dict[str, object], **more: object) -> dict[str, object]:
    return {
        "interactions": list(sources),
        "split": {"kind": "time", "eval_from": CUT},
        "shards": 1,
        **more,
    }


@pytest.fixture
def csv_log(tmp_path: Path) -> Path:
    path = tmp_path / "log.csv"
    path.write_text(csv_text())
    return path


def test_timelines_levels_and_counts_of_a_small_log(run, csv_log, outputs) -> None:
    result = run(section(source(csv_log)), fingerprint={str(csv_log): "abc"})
    assert result.chunks == EXPECTED_CHUNKS
    report = result.report
    log = report.tables["interactions"]
    assert (log.read, log.used, log.dead_letters) == (10, 8, 0)
    assert log.dropped == {"duplicate": 1, "repeat": 1}
    assert report.events == {
        "train": {"exposure": 1, "click": 2, "conversion": 2},
        "eval": {"exposure": 1, "click": 1, "conversion": 1},
    }
    assert report.targets == {
        "train": {"exposure": 0, "click": 2, "conversion": 2},
        "eval": {"exposure": 1, "click": 1, "conversion": 1},
    }
    assert report.positives("train") == {"exposure": 4, "click": 4, "conversion": 2}
    assert report.users == {"total": 3, "train": 2, "eval": 2, "without_features": 0}
    # "new" appears after the cut only: the catalogue must not know it.
    assert report.items == {"total": 3, "without_features": 0, "after_cut": 1}
    assert result.titles == {"x": "x", "y": "y", "z": "z"}
    assert report.examples == {"train": 2, "eval": 2, "catalogue": 3}
    assert report.split["cut_ms"] == ms(60)
    assert report.split["cut"] == "2020-09-13T00:01:00Z"
    assert (report.files[0].rows, report.files[0].sha256) == (10, "abc")
    assert json.loads((Path(outputs.summary) / "summary.json").read_text())["seed"] == 7
    assert sorted(path.name for path in Path(outputs.summary).iterdir()) == ["summary.json"]


def test_the_directories_of_the_splits_are_there_before_the_workers(csv_log, outputs) -> None:
    """Two workers that made one at the same time would stop each other."""
    found = []

    def make() -> beam.Pipeline:
        found.extend(sorted(path.name for path in Path(outputs.examples).glob("Split-*")))
        return make_pipeline()

    ingest(DataSettings.parse(section(source(csv_log))), OBJECTIVES, 7, make, outputs)
    assert found == ["Split-catalogue", "Split-eval", "Split-train"]


def test_csv_json_lines_and_parquet_give_the_same_timelines(run, tmp_path) -> None:
    (tmp_path / "log.jsonl").write_text(
        "".join(
            json.dumps({"user": u, "item": i, "rating": r, "time": t, "more": [1]}) + "\n"
            for u, i, r, t in ROWS
        )
    )
    users, items, ratings, seconds = zip(*ROWS, strict=True)
    table = pa.table(
        {
            "rating": pa.array(ratings, pa.int8()),
            "user": pa.array(users).dictionary_encode(),
            "item": items,
            "time": pa.array([t * 1000 for t in seconds], pa.timestamp("ms")),
        }
    )
    pq.write_table(table, tmp_path / "log.parquet", row_group_size=4)
    json_lines = run(section(source(tmp_path / "log.jsonl", format="jsonl")))
    assert json_lines.chunks == EXPECTED_CHUNKS
    parquet = run(section(source(tmp_path / "log.parquet", format="parquet")))
    assert parquet.chunks == EXPECTED_CHUNKS
    assert parquet.report.tables == json_lines.report.tables


def test_event_rows_and_one_file_per_event(run, tmp_path) -> None:
    names = {3: "view", 4: "addtocart", 5: "transaction"}
    (tmp_path / "events.tsv").write_text(
        csv_text(
            [(u, i, names[r], t * 1000) for u, i, r, t in ROWS]
            + [("ann", "x", "impression", (T0 + 1) * 1000)],
        ).replace(",", "\t")
    )
    result = run(
        section(
            {
                "path": str(tmp_path / "events.tsv"),
                "delimiter": "\t",
                "columns": {"user_id": "user", "item_id": "item", "timestamp": "time"},
                "timestamp_unit": "ms",
                "event": {
                    "column": "rating",
                    "values": {
                        "view": "exposure",
                        "addtocart": "click",
                        "transaction": "conversion",
                    },
                    "ignore": ["impression"],
                },
            }
        )
    )
    assert result.chunks == EXPECTED_CHUNKS
    assert result.report.tables["interactions"].dropped == {
        "duplicate": 1,
        "ignored_event": 1,
        "repeat": 1,
    }

    sources = []
    for rating, level in ((3, "exposure"), (4, "click"), (5, "conversion")):
        path = tmp_path / f"{level}.csv"
        rows = [
            (u, i, datetime.fromtimestamp(t, UTC).isoformat()) for u, i, r, t in ROWS if r == rating
        ]
        path.write_text(csv_text(rows, "user,item,time"))
        sources.append(
            {
                "path": str(path),
                "columns": {"user_id": "user", "item_id": "item", "timestamp": "time"},
                "timestamp_unit": "iso8601",
                "level": level,
            }
        )
    assert run(section(*sources)).chunks == EXPECTED_CHUNKS


def test_leave_out_of_an_untimed_log(run, tmp_path) -> None:
    rows = [(f"u{u}", f"i{i}", 3 + (u + i) % 3) for u in range(10) for i in range(10)]
    (tmp_path / "log.csv").write_text(csv_text(rows, "user,item,rating"))
    data = {
        "interactions": [
            {
                "path": str(tmp_path / "log.csv"),
                "columns": {"user_id": "user", "item_id": "item"},
                "levels": LEVELS,
            }
        ],
        "split": {"kind": "leave_out", "eval_share": 0.3},
        "shards": 1,
    }
    result = run(data)
    report = result.report
    held_out = sum(report.events["eval"].values())
    assert sum(report.events["train"].values()) + held_out == 100
    assert 15 <= held_out <= 45
    assert report.split["cut"] is None
    for user, (chunk,) in result.chunks["eval"].items():
        train = {item for _, item, _, _ in result.chunks["train"][user][0]}
        assert {item for time, item, _, _ in chunk if time == 0} == train
        assert not {item for time, item, _, _ in chunk if time == 1} & train
    assert run(data).chunks == result.chunks
    assert run(data, seed=8).chunks != result.chunks


def test_catalogue_and_users(run, csv_log, tmp_path) -> None:
    (tmp_path / "items.csv").write_bytes(
        b"\xef\xbb\xbfid,name,tags,year\r\n"
        b'x,"Title, with comma",a|b,1999\r\n'
        b'y,"Two\nlines",,none\r\n'
        b"y,second,c,2001\r\n"  # duplicate
        b"\r\n"  # blank
        b",nameless,,\r\n"  # dead
        b"w,Never seen,a,\r\n"
    )
    (tmp_path / "users.csv").write_text("user,age\nann,30\nann,31\nzoe,50\nbob,\n")
    result = run(
        section(
            source(csv_log),
            catalogue={
                "path": str(tmp_path / "items.csv"),
                "columns": {"item_id": "id", "title": "name"},
                "features": [
                    {"name": "tags", "column": "tags", "kind": "categorical", "separator": "|"},
                    {"name": "year", "column": "year", "kind": "numeric"},
                ],
            },
            users={
                "path": str(tmp_path / "users.csv"),
                "columns": {"user_id": "user"},
                "features": [{"name": "age", "column": "age", "kind": "numeric"}],
            },
            max_dead_letter_share=0.5,
        )
    )
    assert result.titles == {
        "x": "Title, with comma",
        "y": "Two lines",
        "w": "Never seen",
        "z": "z",  # in training but not in the table
    }
    assert result.features["item x"] == {"item_tags": ["a", "b"], "item_year": [1999.0]}
    assert result.features["item y"] == {}  # "none" is no number: the feature is lost, not the row
    assert result.features["user ann"] == {"user_age": [30.0]}
    assert result.features["user bob"] == {}
    assert result.features["user cyd"] == {}
    report = result.report
    catalogue = report.tables["catalogue"]
    assert (catalogue.read, catalogue.used, catalogue.dead_letters) == (6, 3, 1)
    assert catalogue.dropped == {"blank_line": 1, "duplicate": 1}
    users = report.tables["users"]
    assert (users.read, users.used, users.dropped) == (4, 2, {"duplicate": 1, "not_in_log": 1})
    assert report.users["without_features"] == 1
    assert report.items == {"total": 4, "without_features": 2, "after_cut": 1}
    assert report.unusable_feature_values == {"catalogue.year": 1}
    assert [(letter["line"], letter["kind"]) for letter in result.dead] == [(7, "no_item_id")]


def test_two_runs_write_the_same_bytes(run, csv_log, outputs) -> None:
    def content() -> dict[str, bytes]:
        root = Path(outputs.examples)
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.gz")}

    run(section(source(csv_log), shards=3))
    first = content()
    run(section(source(csv_log), shards=3))
    assert content() == first
    assert len(first) == 3 + 3 + 1


def test_a_time_share_is_met_at_the_nearest_border(run, tmp_path) -> None:
    rows = [("u", f"i{n}", 3 + n % 3, T0 + n) for n in range(10)]
    (tmp_path / "log.csv").write_text(csv_text(rows))
    result = run(section(source(tmp_path / "log.csv"), split={"kind": "time", "eval_share": 0.32}))
    assert result.report.split["cut_ms"] == ms(7)
    assert len(result.chunks["train"]["u"][0]) == 7
    assert result.report.split["first_event"] == "2020-09-13T00:00:00Z"


def test_closed_rows_and_rows_below_every_level(run, tmp_path) -> None:
    (tmp_path / "log.csv").write_text(
        "user,item,time,click,buy\n"
        f"a,x,{T0},1,1\n"
        f"a,y,{T0},0,1\n"  # bought without a click: closed downwards
        f"a,z,{T0},0,\n"  # nothing holds
        f"a,v,{T0 + 60},1,1\n"
    )
    result = run(
        section(
            source(
                tmp_path / "log.csv",
                levels={"click": {"column": "click"}, "conversion": {"column": "buy"}},
            )
        ),
        objectives=["click", "conversion"],
    )
    assert result.chunks["train"]["a"] == [[(ms(0), "x", 1, 1), (ms(0), "y", 1, 1)]]
    assert result.report.closed_rows == 1
    assert result.report.tables["interactions"].dropped == {"no_level": 1}


def test_a_long_timeline_is_cut_into_chunks(run, tmp_path) -> None:
    rows = [("u", f"i{n}", 3 + n % 3, T0 + n) for n in range(10)]
    rows += [("u", f"e{n}", 3 + n % 3, T0 + 60 + n) for n in range(3)]
    (tmp_path / "log.csv").write_text(csv_text(rows))
    result = run(
        section(source(tmp_path / "log.csv"), timeline={"max_events": 4, "context_events": 1})
    )
    train = result.chunks["train"]["u"]
    assert [[item for _, item, _, _ in chunk] for chunk in train] == [
        ["i0", "i1", "i2", "i3"],
        ["i3", "i4", "i5", "i6"],
        ["i6", "i7", "i8", "i9"],
    ]
    (chunk,) = result.chunks["eval"]["u"]
    assert [(item, target == CONTEXT) for _, item, _, target in chunk] == [
        ("i9", True),
        ("e0", False),
        ("e1", False),
        ("e2", False),
    ]
