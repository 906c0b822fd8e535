"""Reading users: three formats say the same, and what cannot be used is said to be so."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.batch_recommend.model import AskedModel
from pipeline.batch_recommend.users import DeadLetter, User, plan, read
from schemas.logs import DataError

MODEL = AskedModel(
    name="recommender",
    version=1,
    path="/nowhere",
    model_id="id",
    objectives=("exposure", "click", "conversion"),
    top_k=8,
    inputs={
        "exclude_item_ids": "text",
        "history_item_ids": "text",
        "history_levels": "level",
        "user_age": "number",
        "user_gender": "text",
        "user_id": "text",
    },
)

ROWS: list[dict[str, Any]] = [
    {"user_id": "u1"},
    {"user_id": "u2", "history_item_ids": ["i1", "i2"], "history_levels": [0, 2]},
    {"user_id": "ü3", "history_item_ids": ["i,7"], "exclude_item_ids": ["i1", "i5"]},
    {"user_id": "u|4", "user_age": [31.5], "user_gender": ["F"]},
]
INPUTS = [
    {"user_id": [b"u1"]},
    {"user_id": [b"u2"], "history_item_ids": [b"i1", b"i2"], "history_levels": [0, 2]},
    {
        "user_id": ["ü3".encode()],
        "history_item_ids": [b"i,7"],
        "exclude_item_ids": [b"i1", b"i5"],
    },
    {"user_id": [b"u|4"], "user_age": [31.5], "user_gender": [b"F"]},
]
CSV = """\
user_id,history_item_ids,history_levels,exclude_item_ids,user_age,user_gender,shoe
u1,,,,,,44

u2,i1|i2,0|2,,,,
ü3,"i,7",,i1|i5,,,
u|4,,,,31.5,F,
"""


def rows(path: Path | str) -> list[User | DeadLetter]:
    parts, _ = plan(str(path), MODEL)
    return [row for part in parts for row in read(part, MODEL.inputs, 3)]


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def write_parquet(path: Path, table: list[dict[str, Any]] | pa.Table, **options: Any) -> Path:
    if isinstance(table, list):
        keys = dict.fromkeys(key for row in table for key in row)
        table = pa.Table.from_pylist([{key: row.get(key) for key in keys} for row in table])
    pq.write_table(table, path, **options)
    return path


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "csv with BOM", "jsonl", "parquet"])
def test_every_format_tells_the_same(kind: str, tmp_path: Path) -> None:
    if kind == "csv":
        path = write(tmp_path / "users.csv", CSV)
    elif kind == "csv.gz":
        path = write(tmp_path / "users.csv.gz", gzip.compress(CSV.encode()))
    elif kind == "csv with BOM":
        path = write(tmp_path / "users.csv", b"\xef\xbb\xbf" + CSV.replace("\n", "\r\n").encode())
    elif kind == "jsonl":
        lines = "\n".join(json.dumps(row) for row in ROWS)
        path = write(tmp_path / "users.jsonl", lines + "\n\n")
    else:
        path = write_parquet(tmp_path / "users.parquet", ROWS, row_group_size=3)
    assert rows(path) == [User(inputs) for inputs in INPUTS]


def test_numbers_are_ids_too(tmp_path: Path) -> None:
    columns = {"user_id": [7], "history_item_ids": [[1, 2]], "user_age": [30]}
    expected = {"user_id": [b"7"], "history_item_ids": [b"1", b"2"], "user_age": [30.0]}
    parquet = write_parquet(tmp_path / "users.parquet", pa.table(columns))
    line = {name: values[0] for name, values in columns.items()}
    jsonl = write(tmp_path / "users.jsonl", json.dumps(line))
    assert rows(parquet) == rows(jsonl) == [User(expected)]


def test_dictionaries_binaries_and_zero_bytes(tmp_path: Path) -> None:
    table = pa.table(
        {
            "user_id": pa.array(["a", "b", "a"]).dictionary_encode(),
            "history_item_ids": pa.array([[b"x\0"], [], None], pa.large_list(pa.binary())),
        }
    )
    assert rows(write_parquet(tmp_path / "users.parquet", table)) == [
        User({"user_id": [b"a"], "history_item_ids": [b"x\0"]}),
        User({"user_id": [b"b"]}),
        User({"user_id": [b"a"]}),
    ]


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        ('{"user_id": ""}', "no_user_id", "user_id is empty or a list"),
        ('{"history_item_ids": ["i1"]}', "no_user_id", "user_id is empty or a list"),
        ('{"user_id": ["u1", "u2"]}', "no_user_id", "user_id is empty or a list"),
        ('{"user_id": 1.5}', "bad_text", "user_id holds 1.5, expected text that is not empty"),
        ('{"user_id": true}', "bad_text", "user_id holds True"),
        ('{"user_id": "\\ud800"}', "undecodable", "half a surrogate pair"),
        ('{"user_id": "u", "history_item_ids": ["i1", null]}', "bad_text", "holds None"),
        ('{"user_id": "u", "history_item_ids": {"a": 1}}', "bad_text", "holds {'a': 1}"),
        (
            '{"user_id": "u", "history_item_ids": ["i1"], "history_levels": [0, 1]}',
            "history_length",
            "2 history_levels for 1 history_item_ids",
        ),
        ('{"user_id": "u", "history_levels": [0]}', "history_length", "1 history_levels for 0"),
        (
            '{"user_id": "u", "history_item_ids": ["i1"], "history_levels": [3]}',
            "bad_level",
            "holds 3, expected 0 to 2",
        ),
        (
            '{"user_id": "u", "history_item_ids": ["i1"], "history_levels": [-1]}',
            "bad_level",
            "holds -1, expected 0 to 2",
        ),
        (
            '{"user_id": "u", "history_item_ids": ["i1"], "history_levels": [0.5]}',
            "bad_level",
            "holds 0.5, expected whole numbers",
        ),
        ('{"user_id": "u", "user_age": "old"}', "bad_number", "holds 'old', expected a number"),
        ('{"user_id": "u", "user_age": [1' + "0" * 400 + "]}", "bad_number", "expected a number"),
        ('["u1"]', "bad_json", "a list, expected a JSON object"),
        ('{"user_id": "u1"', "bad_json", "not a JSON object"),
        ("[" * 100_000, "bad_json", "not a JSON object"),
    ],
)
def test_a_bad_line_is_a_dead_letter(line: str, reason: str, detail: str, tmp_path: Path) -> None:
    path = write(tmp_path / "users.jsonl", f'{{"user_id": "before"}}\n{line}\n{{"user_id": "x"}}')
    before, dead, after = rows(path)
    assert [before, after] == [User({"user_id": [b"before"]}), User({"user_id": [b"x"]})]
    assert isinstance(dead, DeadLetter)
    assert (dead.file, dead.row, dead.reason) == (str(path), 2, reason)
    assert detail in dead.detail
    assert dead.content == line[:500]


def test_bad_rows_of_csv(tmp_path: Path) -> None:
    text = b"user_id,history_item_ids\nu1\nu\xff,\nu2,i1,i2\n" + b'"' + b"x" * 2**21 + b'"\n'
    path = write(tmp_path / "users.csv", text + b"u3,i1\n")
    *dead, good = rows(path)
    assert [letter.reason for letter in dead] == [
        "column_count",
        "undecodable",
        "column_count",
        "bad_csv",
    ]
    assert [letter.row for letter in dead] == [1, 2, 3, 4]
    assert dead[1].content == "u\ufffd,"
    assert good == User({"user_id": [b"u3"], "history_item_ids": [b"i1"]})


def test_a_line_that_is_not_utf8(tmp_path: Path) -> None:
    path = write(tmp_path / "users.jsonl", b'{"user_id": "\xff"}\n{"user_id": "u"}\n')
    dead, good = rows(path)
    assert (dead.reason, good) == ("undecodable", User({"user_id": [b"u"]}))


def test_bad_text_in_parquet_costs_one_row(tmp_path: Path) -> None:
    ids = pa.array([b"u1", b"\xff", b"u3"], pa.binary())
    texts = pa.StringArray.from_buffers(3, *ids.buffers()[1:])  # Arrow does not look
    first, dead, last = rows(write_parquet(tmp_path / "u.parquet", pa.table({"user_id": texts})))
    assert [first, last] == [User({"user_id": [b"u1"]}), User({"user_id": [b"u3"]})]
    assert (dead.row, dead.reason) == (2, "undecodable")


def test_rows_of_parquet_are_counted_over_row_groups(tmp_path: Path) -> None:
    table = pa.table({"user_id": ["u", "u", "u", None, "u"]})
    found = rows(write_parquet(tmp_path / "users.parquet", table, row_group_size=2))
    assert [(i, row.row) for i, row in enumerate(found, 1) if isinstance(row, DeadLetter)] == [
        (4, 4)
    ]


def test_a_glob_stands_for_all_its_files(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "user_id\nu1\n")
    write(tmp_path / "b.jsonl", '{"user_id": "u2", "shoe": 44}\n')
    parts, unused = plan(str(tmp_path / "*"), MODEL)
    assert [part.file for part in parts] == [str(tmp_path / "a.csv"), str(tmp_path / "b.jsonl")]
    assert unused == ["shoe"]


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("u.csv", "userid,x\n", "no column 'user_id'. Did you mean 'userid'? Columns: userid, x."),
        ("u.csv", "", "no column 'user_id'. Columns: none. Inputs of the model: exclude_item_ids,"),
        ("u.csv", "user_id,user_id\n", "has the column 'user_id' more than once"),
        ("u.csv", "user_id,history_items\n", "'history_items', which the model does not know. Did"),
        ("u.jsonl", '{"user_id": "u", "history_level": [1]}', "Did you mean 'history_levels'?"),
        ("u.txt", "user_id\n", "must end in .csv, .jsonl, .parquet"),
        ("u.parquet", "user_id\n", "cannot be read as parquet"),
        ("u.csv.gz", "user_id\n", "cannot be read as csv"),
    ],
)
def test_what_cannot_be_read_is_told_at_once(
    name: str, text: str, error: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as refused:
        plan(str(write(tmp_path / name, text)), MODEL)
    assert error in str(refused.value)
    assert name in str(refused.value)


@pytest.mark.parametrize(
    ("column", "values", "error"),
    [
        ("user_id", [1.5], "column 'user_id' of {} is double, expected strings or integers"),
        ("user_id", [["u1"]], "is list<item: string>, expected strings or integers"),
        ("history_levels", [["click"]], "expected integers, or lists of them"),
        ("user_age", [["old"]], "expected numbers, or lists of them"),
    ],
)
def test_columns_of_the_wrong_type(
    column: str, values: list[Any], error: str, tmp_path: Path
) -> None:
    columns = {"user_id": ["u"], column: values}
    path = write_parquet(tmp_path / "u.parquet", pa.table(columns))
    with pytest.raises(DataError) as refused:
        plan(str(path), MODEL)
    assert error.format(path) in str(refused.value)


def test_no_file() -> None:
    with pytest.raises(DataError, match=r"--users: no file matches '/nowhere/users\.csv'"):
        plan("/nowhere/users.csv", MODEL)
