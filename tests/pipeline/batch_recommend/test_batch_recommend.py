"""`csmf batch-recommend`: the server's own answers for many users, all of them or none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from click.testing import CliRunner, Result
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from components.pusher.push import publish
from pipeline.batch_recommend.command import batch_recommend
from pipeline.batch_recommend.job import Request, run
from pipeline.temporary_server import TemporaryServer
from pipeline.versions import roll_back, servable_models
from schemas.names import STOCK_SUFFIX
from schemas.settings import ConfigError
from serving.client import RecommenderClient
from serving.errors import ServingError

pytestmark = pytest.mark.slow  # a real Transform, model, server; Beam

WEIGHTS = "click=1,conversion=2"
# Known and unknown users; with histories of all lengths, unknown items, exclusions, features.
ROWS: list[dict[str, Any]] = [
    {
        "user_id": f"u{n}",
        "history_item_ids": [f"i{(5 * n + step) % 43}" for step in range(n % 9)] or None,
        "history_levels": [step % 3 for step in range(n % 9)] if n % 2 else None,
        "exclude_item_ids": [f"i{n}", "i3"] if n % 3 == 0 else None,
        "user_age": [float(n)] if n % 5 == 0 else None,
        "user_gender": ["F"] if n % 4 == 0 else None,
    }
    for n in range(60)
]
for _row in ROWS:
    if _row["history_item_ids"] is None:
        _row["history_levels"] = None


def write(path: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


@pytest.fixture
def users(tmp_path: Path) -> Path:
    return write(tmp_path / "users.parquet", ROWS, row_group_size=25)


@pytest.fixture(scope="module")
def server(pushed: Path) -> Iterator[str]:
    with TemporaryServer(servable_models(pushed)) as running:
        yield running.wait()


def lists(output: Path) -> dict[str, tuple[list[str], bytes]]:
    """User -> item ids and the bits of the scores."""
    found = pq.read_table(output / "recommendations").to_pylist()
    assert len({row["user_id"] for row in found}) == len(found)
    return {row["user_id"]: (row["item_ids"], bits(row["scores"])) for row in found}


def bits(scores: list[float]) -> bytes:
    return np.array(scores, np.float32).tobytes()


def answer(client: RecommenderClient, row: dict[str, Any], n: int) -> tuple[list[str], bytes]:
    items = row["history_item_ids"] or []
    found = client.recommend(
        row["user_id"],
        weights=[0, 1, 2],
        exclude=row["exclude_item_ids"] or [],
        n=n,
        # The client sends levels with every item; 0 is what the model takes for one left out.
        history=list(zip(items, row["history_levels"] or [0] * len(items), strict=True)),
        features={name: row[f"user_{name}"] for name in ("age", "gender") if row[f"user_{name}"]},
    )
    return [item for item, _ in found.items], bits([score for _, score in found.items])


def temporary_files(output: Path) -> list[str]:
    return [path.name for path in output.parent.glob(f".{output.name}*")]


@pytest.mark.parametrize("stock", [False, True])
def test_lists_are_bit_for_bit_what_the_server_answers(
    stock: bool, pushed: Path, server: str, users: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    result = run(Request(pushed, str(users), output, WEIGHTS, 5, stock=stock))
    model = "recommender" + STOCK_SUFFIX * stock
    with RecommenderClient(server, model, timeout_seconds=60) as client:
        assert lists(output) == {row["user_id"]: answer(client, row, 5) for row in ROWS}
    assert (result.read, result.written, result.dead_letters) == (60, 60, {})
    assert (result.model, result.version) == (model, 2)
    assert result.weights == {"exposure": 0, "click": 1, "conversion": 2}
    summary = json.loads((output / "summary.json").read_text())
    assert summary["model_id"] == result.model_id
    assert (summary["read"], summary["items_per_list"]) == (60, 5)
    assert temporary_files(output) == []


def test_batches_are_what_the_server_answers_to_a_request_with_as_many_rows(
    pushed: Path, server: str, tmp_path: Path
) -> None:
    rows = [{"user_id": f"u{n}"} for n in range(30)]
    path = write(tmp_path / "users.parquet", rows)
    output = tmp_path / "out"
    run(Request(pushed, str(path), output, batch_size=8))
    expected = {}
    with grpc.insecure_channel(server) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        for start in range(0, 30, 8):
            ids = [row["user_id"].encode() for row in rows[start : start + 8]]
            request = predict_pb2.PredictRequest()
            request.model_spec.name = "recommender"
            request.inputs["user_id"].CopyFrom(tf.make_tensor_proto(ids))
            outputs = stub.Predict(request, timeout=60).outputs
            items = tf.make_ndarray(outputs["item_ids"])
            scores = tf.make_ndarray(outputs["scores"])
            for user, names, values in zip(ids, items, scores, strict=True):
                found = [name.decode() for name in names if name]
                expected[user.decode()] = found, bits(values[: len(found)])
    assert lists(output) == expected


def test_worker_processes_answer_alike(pushed: Path, users: Path, tmp_path: Path) -> None:
    options = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    for name, arguments in (("here", []), ("there", ["--runner=DirectRunner", *options])):
        # Who is in a batch must not depend on the runner either.
        request = Request(pushed, str(users), tmp_path / name, WEIGHTS, batch_size=16)
        result = run(request, arguments)
        assert (result.read, result.written) == (60, 60)
    assert lists(tmp_path / "here") == lists(tmp_path / "there")


def test_a_process_loads_the_model_once(
    pushed: Path, users: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "serving.servable")
    options = ["--direct_running_mode=multi_threading", "--direct_num_workers=4"]
    run(Request(pushed, str(users), tmp_path / "out"), ["--runner=DirectRunner", *options])
    assert [record.message for record in caplog.records if "loaded in" in record.message] == [
        record.message for record in caplog.records if record.name == "serving.servable"
    ]
    assert sum("loaded in" in record.message for record in caplog.records) == 1


def test_rows_read_are_lists_and_dead_letters(pushed: Path, tmp_path: Path) -> None:
    path = tmp_path / "users.jsonl"
    bad = ['{"user_id": ""}', "{", '{"user_id": "u1", "history_levels": [0]}', "[]"]
    good = [json.dumps({"user_id": f"u{n}"}) for n in range(1500)]
    path.write_text("\n".join(good[:700] + bad + good[700:]))
    output = tmp_path / "out"
    result = run(Request(pushed, str(path), output, count=3))
    assert (result.read, result.written) == (1504, 1500)
    assert result.dead_letters == {"bad_json": 2, "history_length": 1, "no_user_id": 1}
    assert len(lists(output)) == 1500
    letters = [
        json.loads(line) for line in (output / "dead_letters.jsonl").read_text().split("\n")[:-1]
    ]
    assert sorted(letter["row"] for letter in letters) == [701, 702, 703, 704]
    assert {letter["content"] for letter in letters} == set(bad)


def test_lists_end_where_items_do(pushed: Path, tmp_path: Path) -> None:
    history = [f"i{n}" for n in range(37)]
    path = write(tmp_path / "users.parquet", [{"user_id": "x", "history_item_ids": history}])
    run(Request(pushed, str(path), tmp_path / "out"))
    items, scores = lists(tmp_path / "out")["x"]
    assert sorted(items) == ["i37", "i38", "i39"]
    assert len(scores) == 3 * 4


def test_the_version_is_the_one_that_is_served(workdir: Path, users: Path, tmp_path: Path) -> None:
    assert run(Request(workdir, str(users), tmp_path / "newest")).version == 2
    roll_back(workdir, None, 1, 1.0)
    assert run(Request(workdir, str(users), tmp_path / "served")).version == 1
    assert run(Request(workdir, str(users), tmp_path / "asked", version=2)).version == 2


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"version": 7}, r"version 7 of recommender is not in .*; there are 1, 2"),
        ({"weights": "clik=1"}, "no objective 'clik'. Did you mean 'click'"),
        ({"weights": "click=nan"}, "weights must be finite"),
        ({"count": 9}, "-n 9: recommender version 2 returns 8 items at most"),
        ({"model": "recomender"}, "no model 'recomender'. Did you mean 'recommender'"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_the_job(
    options: dict[str, Any], error: str, pushed: Path, users: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    with pytest.raises(ConfigError, match=error):
        run(Request(pushed, str(users), output, **options))
    assert not output.exists()


def test_nothing_was_pushed(users: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no pushed model under .*Run: csmf run"):
        run(Request(tmp_path, str(users), tmp_path / "out"))


def test_an_output_that_exists_is_kept(pushed: Path, users: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    run(Request(pushed, str(users), output))  # empty: taken
    before = sorted(path.stat().st_mtime_ns for path in output.rglob("*"))
    with pytest.raises(ConfigError, match="exists already"):
        run(Request(pushed, str(users), output))
    assert sorted(path.stat().st_mtime_ns for path in output.rglob("*")) == before


def test_no_usable_row_publishes_nothing(pushed: Path, tmp_path: Path) -> None:
    path = tmp_path / "users.csv"
    output = tmp_path / "out"
    path.write_text("user_id,history_levels\n,\nu1,click\n")
    with pytest.raises(ConfigError, match=r'none of the 2 rows can be used.*"reason": "'):
        run(Request(pushed, str(path), output))
    path.write_text("user_id\n")
    with pytest.raises(ConfigError, match="hold no rows"):
        run(Request(pushed, str(path), output))
    assert not output.exists()
    assert temporary_files(output) == []


def test_a_job_that_fails_midway_publishes_nothing(pushed: Path, tmp_path: Path) -> None:
    rows = [{"user_id": f"u{n:06}"} for n in range(4000)]
    path = write(tmp_path / "users.parquet", rows, row_group_size=1000, compression="none")
    group = pq.ParquetFile(path).metadata.row_group(3).column(0)
    content = bytearray(path.read_bytes())
    start = group.dictionary_page_offset
    content[start : start + 200] = b"\xff" * 200  # only reading the last rows shows it
    path.write_bytes(content)
    output = tmp_path / "out"
    with pytest.raises(Exception, match=r"(?i)parquet|thrift|page|deserialize"):
        run(Request(pushed, str(path), output))
    assert not output.exists()
    assert temporary_files(output) == []


def test_a_model_whose_files_changed_answers_nobody(
    workdir: Path, users: Path, tmp_path: Path
) -> None:
    (variables,) = (workdir / "serving/recommender/2/variables").glob("variables.data*")
    variables.write_bytes(variables.read_bytes()[:-1] + b"?")
    output = tmp_path / "out"
    with pytest.raises((ServingError, RuntimeError), match="were not exported together"):
        run(Request(workdir, str(users), output))
    assert not output.exists()


def ask(*arguments: str | Path) -> Result:
    return CliRunner().invoke(batch_recommend, [str(argument) for argument in arguments])


def test_the_command_runs_where_the_configuration_says(
    pushed: Path, users: Path, tmp_path: Path, exported: Any
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        """
name: shop
objectives: [{name: exposure, tau: 0.3}, {name: click}, {name: conversion}]
data: {interactions: [{path: log.csv, columns: {user_id: u, item_id: i}, level: conversion}],
       split: {kind: leave_out}}
beam:
  runner: DirectRunner
  options: ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
"""
    )
    output = tmp_path / "out"
    done = ask(
        "--workdir", pushed, "--users", users, "-o", output, "--config", config, "-n", "2",
        "--weights", "click=1", "--version", "1",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    assert "60 rows read, 60 lists written by recommender version 1, 0 dead letters" in text
    assert {len(items) for items, _ in lists(output).values()} == {2}


def test_a_pushed_directory_without_the_other_flavour(
    exported: Any, users: Path, tmp_path: Path
) -> None:
    import shutil

    workdir = tmp_path / "work"
    publish(exported.directory, workdir / "serving", "recommender")
    shutil.rmtree(workdir / "serving" / "recommender_stock")
    with pytest.raises(ConfigError, match="--stock: no flavour recommender_stock was pushed"):
        run(Request(workdir, str(users), tmp_path / "out", stock=True))
