"""Bad input ends in counted dead letters or in an error that says what to change."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.interaction_gen.files import fingerprint_inputs
from schemas.logs import DataError, DataSettings
from schemas.settings import ConfigError

pytestmark = pytest.mark.slow  # each test runs a whole Beam pipeline

T0 = 1_600_000_000
GOOD = "".join(
    f"u{n % 7},i{n},{3 + n % 3},{T0 + n}\n" for n in range(60)
)  # every level in both splits
HEADER = "user,item,rating,time\n"


def section(path: Path, **more: object) -> dict[str, object]:
    given = {
        "path": str(path),
        "columns": {"user_id": "user", "item_id": "item", "timestamp": "time"},
        "levels": {
            "click": {"column": "rating", "at_least": 4},
            "conversion": {"column": "rating", "at_least": 5},
        },
        **more.pop("source", {}),  # type: ignore[dict-item]  # the default is a dict
    }
    return {
        "interactions": [given],
        "split": {"kind": "leave_out", "eval_share": 0.4},
        "shards": 1,
        **more,
    }


def timed(path: Path, **more: object) -> dict[str, object]:
    return section(path, split={"kind": "time", "eval_share": 0.3}, **more)


def event_section(path: Path, **more: object) -> dict[str, object]:
    data = timed(path, **more)
    (given,) = data["interactions"]  # type: ignore[misc]  # built above
    del given["levels"]
    given["event"] = {
        "column": "rating",
        "values": {"3": "exposure", "4": "click", "5": "conversion"},
    }
    return data


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.csv"


def test_each_bad_csv_row_becomes_a_dead_letter_with_file_line_and_reason(run, log) -> None:
    bad = [
        (b"u1,,4,%d" % T0, "no_item_id", "item_id is empty"),
        (b"  ,i1,4,%d" % T0, "no_user_id", "user_id is empty"),
        (b"u1,i1,4,soon", "bad_timestamp", "'soon' is not a number"),
        (b"u1,i1,4,2020-01-01", "bad_timestamp", "timestamp_unit: iso8601"),
        (b"u1,i1,4,%d000" % T0, "bad_timestamp", "in milliseconds it would fit"),
        (b"u1,i1,4,%d000000" % T0, "bad_timestamp", "timestamp_unit: us"),
        (b"u1,i1,4,12", "bad_timestamp", "outside 1990..2100"),
        (b"u1,i1,4,nan", "bad_timestamp", "not a number"),
        (b"u1,i1,4,", "bad_timestamp", "empty"),
        (b"u1,i1,four,%d" % T0, "bad_level", "column 'rating' holds 'four'"),
        (b"u1,i\xe9,4,%d" % T0, "undecodable", "byte 0xe9 at position 5"),
        (b"u1,i,1,4,%d" % T0, "column_count", "5 columns where 4 were expected"),
        (b"u1,i1,4", "column_count", "3 columns"),
        (b"u1,i\x001,4,%d" % T0, "nul_byte", "NUL"),
        (b"u1,i\x071,4,%d" % T0, "bad_item_id", "control character"),
        (b'u1,"i1"x,4,%d' % T0, "bad_quoting", "csv quoting"),
        (b"u1," + b"i" * 1100 + b",4,%d" % T0, "bad_item_id", "1100 bytes"),
    ]
    good = GOOD.encode()
    log.write_bytes(
        HEADER.encode()
        + good
        + b"".join(line + b"\n" for line, _, _ in bad)
        + b"\n   \n"
        # A quoted id holds the delimiter; a quoted one over two lines is one record.
        + b'u1,"i,1",4,%d\n' % T0
    )
    result = run(timed(log, max_dead_letter_share=0.5))
    counts = result.report.tables["interactions"]
    assert counts.read == 60 + len(bad) + 2 + 1
    assert counts.dead_letters == len(bad)
    assert counts.dropped["blank_line"] == 2
    assert counts.reconciled
    assert len(result.dead) == len(bad)
    for index, (letter, (line, kind, reason)) in enumerate(zip(result.dead, bad, strict=True)):
        assert letter["table"] == "interactions"
        assert letter["file"] == str(log)
        assert letter["line"] == 62 + index, line
        assert letter["kind"] == kind, line
        assert reason in letter["reason"], line
        assert len(letter["raw"]) <= 200
        assert letter["raw"].isprintable()
    assert result.dead[10]["raw"] == f"u1,i\\xe9,4,{T0}"
    assert "i,1" in result.titles


def test_an_unclosed_quote_loses_one_row_only(run, log) -> None:
    log.write_text(HEADER + GOOD + f'u1,"open,4,{T0}\n' + f"u1,after,4,{T0}\n")
    result = run(timed(log, max_dead_letter_share=0.5))
    assert [(letter["line"], letter["kind"]) for letter in result.dead] == [(62, "bad_quoting")]
    assert "never closed" in result.dead[0]["reason"]
    assert "after" in result.titles
    assert result.report.tables["interactions"].read == 62


def test_a_line_of_ten_megabytes_is_a_dead_letter(run, log) -> None:
    with log.open("w") as file:
        file.write(HEADER + GOOD + "u1,")
        for _ in range(10):
            file.write("x" * 1_000_000)
        file.write(f",4,{T0}\nu1,after,4,{T0}\n")
        file.write("y" * 2_000_000)  # the last line, without an end
    result = run(timed(log, max_dead_letter_share=0.5))
    assert [(letter["line"], letter["kind"]) for letter in result.dead] == [
        (62, "line_too_long"),
        (64, "line_too_long"),
    ]
    assert "after" in result.titles


def test_bad_json_lines(run, tmp_path) -> None:
    def row(**change: object) -> str:
        return json.dumps({"user": "u", "item": 7, "rating": 5, "time": T0} | change) + "\n"

    path = tmp_path / "log.jsonl"
    path.write_text(
        "".join(row(user=f"u{n % 7}", item=n, rating=3 + n % 3, time=T0 + n) for n in range(60))
        + '{"user": "u"\n'
        + "[1, 2]\n"
        + "[" * 100_000
        + "\n"
        + row(item=None)
        + row(item=True)
        + row(item=[1])
        + row(item="\ud800")
        + row(time={})
        + row(rating="x")
        + row(item=7.0, user="float")
    )
    result = run(
        timed(path, source={"format": "jsonl"}, max_dead_letter_share=0.5),
    )
    assert [(letter["line"], letter["kind"]) for letter in result.dead] == [
        (61, "bad_json"),
        (62, "bad_json"),
        (63, "bad_json"),
        (64, "no_item_id"),
        (65, "bad_item_id"),
        (66, "bad_item_id"),
        (67, "bad_item_id"),
        (68, "bad_timestamp"),
        (69, "bad_level"),
    ]
    assert result.chunks["train"]["float"][0][0][1] == "7"


def test_parquet_text_that_does_not_decode(run, tmp_path) -> None:
    path = tmp_path / "log.parquet"
    items = [b"i%d" % n for n in range(60)] + [b"\xff"]
    pq.write_table(
        pa.table(
            {
                "user": [f"u{n % 7}" for n in range(61)],
                "item": pa.array(items, pa.binary()),
                "rating": [3 + n % 3 for n in range(61)],
                "time": [T0 + n for n in range(61)],
            }
        ),
        path,
        row_group_size=20,
    )
    result = run(timed(path, source={"format": "parquet"}, max_dead_letter_share=0.5))
    assert [(letter["line"], letter["kind"]) for letter in result.dead] == [(61, "undecodable")]


def test_unknown_events_name_the_known_ones(run, log) -> None:
    log.write_text(HEADER + GOOD + f"u1,i1,buy,{T0}\n")
    result = run(event_section(log, max_dead_letter_share=0.5))
    (letter,) = result.dead
    assert letter["kind"] == "unknown_event"
    assert "'buy'" in letter["reason"]
    assert "Known events: 3, 4, 5" in letter["reason"]


def test_mixed_units_beyond_the_share_stop_the_run_and_leave_the_evidence(
    run, log, outputs
) -> None:
    log.write_text(HEADER + GOOD + "".join(f"u1,i{n},4,{T0}000\n" for n in range(6)))
    with pytest.raises(DataError) as error:
        run(timed(log, max_dead_letter_share=0.05))
    text = str(error.value)
    assert "interactions: 6 of 66 rows cannot be used (9.1%); at most 5.0%" in text
    assert f"6 x bad_timestamp, for example {log}:62:" in text
    assert "timestamp_unit: ms" in text
    assert "data.max_dead_letter_share" in text
    assert len((Path(outputs.dead_letters) / "dead_letters.jsonl").read_text().splitlines()) == 6
    summary = json.loads((Path(outputs.summary) / "summary.json").read_text())
    assert summary["tables"]["interactions"]["dead_letters"] == 6


def test_an_empty_log(run, log) -> None:
    log.write_text(HEADER)
    with pytest.raises(DataError, match="is empty: there is no row in"):
        run(timed(log))


def test_a_log_without_a_usable_event_says_why(run, log) -> None:
    log.write_text(HEADER + "u1,i1,4,soon\n" * 3 + ",i1,4,soon\n\n")
    with pytest.raises(DataError) as error:
        run(timed(log, max_dead_letter_share=1.0))
    text = str(error.value)
    assert "no usable event: 5 rows were read" in text
    assert "3 x bad_timestamp" in text
    assert "1 x no_user_id" in text
    assert "1 blank_line" in text


def test_no_positive_of_a_level_at_all(run, log) -> None:
    log.write_text(HEADER + GOOD.replace(",5,", ",4,"))
    with pytest.raises(DataError) as error:
        run(timed(log))
    text = str(error.value)
    assert "no positive of the objective 'conversion', and neither has the other split" in text
    assert "at_least" in text


@pytest.mark.parametrize(
    ("conversions_at", "split", "change"), [(0, "eval", "Raise"), (59, "train", "Lower")]
)
def test_no_positive_of_a_level_in_one_split(run, log, conversions_at, split, change) -> None:
    log.write_text(
        HEADER
        + "".join(
            f"u{n % 7},i{n},{5 if n == conversions_at else 3 + n % 2},{T0 + n}\n" for n in range(60)
        )
    )
    with pytest.raises(DataError) as error:
        run(timed(log))
    text = str(error.value)
    assert f"The {split} split has no positive of the objective 'conversion'" in text
    assert f"{change} data.split.eval_share (0.3)" in text


def test_a_log_of_a_single_moment_cannot_be_cut_in_time(run, log) -> None:
    log.write_text(HEADER + "".join(f"u{n},i{n},{3 + n % 3},{T0}\n" for n in range(20)))
    with pytest.raises(DataError, match=r"same time .* use `split: {kind: leave_out}`"):
        run(timed(log))


def test_a_missing_column_names_the_nearest_and_what_there_is(run, log) -> None:
    log.write_text(HEADER.replace("rating", "ratings") + GOOD)
    with pytest.raises(DataError) as error:
        run(timed(log))
    text = str(error.value)
    assert f"{log}: there is no column 'rating', which levels.click.column names." in text
    assert "Did you mean 'ratings'?" in text
    assert "user, item, ratings, time" in text


def test_a_wrong_delimiter_is_suspected(run, log) -> None:
    log.write_text(HEADER.replace(",", ";") + GOOD.replace(",", ";"))
    with pytest.raises(DataError, match="`delimiter: ','` is probably wrong"):
        run(timed(log))


def test_a_missing_key_of_json_lines_and_a_missing_parquet_column(run, tmp_path) -> None:
    (tmp_path / "log.jsonl").write_text('{"usr": 1, "item": 2, "rating": 3, "time": 4}\n')
    with pytest.raises(DataError, match=r"no column 'user'.*Did you mean 'usr'"):
        run(timed(tmp_path / "log.jsonl", source={"format": "jsonl"}))
    pq.write_table(pa.table({"user": ["a"], "item": ["b"]}), tmp_path / "log.parquet")
    with pytest.raises(DataError, match=r"no column 'time'.*columns: user, item\."):
        run(timed(tmp_path / "log.parquet", source={"format": "parquet"}))


def test_a_file_of_another_format(run, log) -> None:
    log.write_text(HEADER + GOOD)
    with pytest.raises(DataError, match=r"cannot be read as Parquet.*Check `format:`"):
        run(timed(log, source={"format": "parquet"}))
    log.write_bytes((HEADER + GOOD).encode("utf-16"))
    with pytest.raises(DataError, match="UTF-16"):
        run(timed(log))
    log.write_bytes(b"")
    with pytest.raises(DataError, match="the first line is empty"):
        run(timed(log))


def test_a_path_that_matches_nothing(run, tmp_path) -> None:
    with pytest.raises(DataError, match=r"data\.interactions\.0\.path: no file matches"):
        run(timed(tmp_path / "*.csv"))
    with pytest.raises(DataError, match=r"data\.interactions\.0\.path: no file matches"):
        fingerprint_inputs(DataSettings.parse(timed(tmp_path / "*.csv")))


def test_an_unknown_objective(run, log) -> None:
    log.write_text(HEADER + GOOD)
    with pytest.raises(ConfigError, match="'conversion' is not an objective"):
        run(timed(log), objectives=["exposure", "click", "purchase"])


def test_a_compressed_file_that_breaks_off(run, tmp_path) -> None:
    path = tmp_path / "log.csv.gz"
    path.write_bytes(gzip.compress((HEADER + GOOD).encode()))
    assert run(timed(path)).report.tables["interactions"].read == 60
    path.write_bytes(path.read_bytes()[:-20])  # found when the head is looked at
    with pytest.raises(DataError, match="ended before the end-of-stream marker"):
        run(timed(path))
    rows = "".join(f"u{n % 7},i{n % 50},{3 + n % 3},{T0 + n}\n" for n in range(40_000))
    whole = gzip.compress((HEADER + rows).encode())
    path.write_bytes(whole[: len(whole) * 3 // 4])  # found by Beam
    with pytest.raises(DataError, match="cannot be read to its end"):
        run(timed(path))


def test_a_bom_crlf_and_a_header_in_another_order_per_file(run, tmp_path) -> None:
    rows = [line.split(",") for line in GOOD.splitlines()]
    (tmp_path / "log1.csv").write_bytes(
        b"\xef\xbb\xbf" + (HEADER + GOOD).replace("\n", "\r\n").encode()
    )
    (tmp_path / "log2.csv").write_text(
        "time,more,item,user,rating\n"
        + "".join(f"{time},?,{item}b,{user},{rating}\n" for user, item, rating, time in rows)
    )
    result = run(timed(tmp_path / "log*.csv"))
    assert result.dead == []
    assert result.report.tables["interactions"].read == 120
    assert {"i0", "i0b"} <= set(result.titles)
    assert [file.rows for file in result.report.files] == [60, 60]


def test_latin_1_and_no_quoting(run, log) -> None:
    log.write_bytes((HEADER + GOOD + f'u1,"é,4,{T0}\n').encode("latin-1"))
    result = run(timed(log, source={"encoding": "latin-1", "quote": None}))
    assert '"é' in result.titles


def test_a_fingerprint_is_the_sha256_of_the_bytes_on_disk(tmp_path) -> None:
    path = tmp_path / "log.csv.gz"
    path.write_bytes(gzip.compress(b"user,item\n"))
    data = DataSettings.parse(timed(path))
    before = fingerprint_inputs(data)
    import hashlib

    assert before == {str(path): hashlib.sha256(path.read_bytes()).hexdigest()}
    path.write_bytes(gzip.compress(b"user,item\nu,i\n"))
    assert fingerprint_inputs(data) != before
