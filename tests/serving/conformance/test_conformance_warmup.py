"""Warm-up requests, replayed before a version is available: check 64 of the conformance list."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import prediction_log_pb2

from serving.errors import ServingError
from serving.servable import Servable
from serving.versions import StartupError
from serving.warmup import WARMUP_FILE, load_warm, warm_up


def count_record(by: int, signature: str = "count") -> bytes:
    log = prediction_log_pb2.PredictionLog()
    request = log.predict_log.request
    request.model_spec.name = "some other name"
    request.model_spec.signature_name = signature
    request.inputs["by"].CopyFrom(tf.make_tensor_proto(by, dtype=types_pb2.DT_INT64))
    return log.SerializeToString()


@pytest.fixture
def model(zoo: Path, publish: Any, tmp_path: Path) -> Callable[[list[bytes]], Path]:
    """model(records): base path of a version 1 with this warm-up file."""

    def make(records: list[bytes]) -> Path:
        version = publish(zoo, tmp_path / "base", 1)
        (version / WARMUP_FILE).parent.mkdir(exist_ok=True)
        with tf.io.TFRecordWriter(str(version / WARMUP_FILE)) as writer:
            for record in records:
                writer.write(record)
        return version

    return make


def test_check_64_records_are_replayed_before_available(
    model: Any, start_server: Any, connect: Any
) -> None:
    base = model([count_record(5), count_record(7)]).parent
    caller = connect(start_server({"m": base}).port)
    by = {"by": tf.make_tensor_proto(0, dtype=tf.int64)}
    response = caller.predict("m", by, signature="count")
    assert list(response.outputs["n"].int64_val) == [12]


def test_check_64_no_file_or_an_empty_one_is_fine(zoo: Path, model: Any) -> None:
    for path in (zoo, model([])):
        servable = Servable("m", 1, str(path))
        assert warm_up(servable) == 0
        servable.close()


def classify_record() -> bytes:
    log = prediction_log_pb2.PredictionLog()
    log.classify_log.request.model_spec.name = "m"
    return log.SerializeToString()


@pytest.mark.parametrize(
    ("records", "code", "text"),
    [
        ([count_record(1)] * 1001, "INVALID_ARGUMENT", "more than 1000 warm-up records"),
        ([count_record(1), b"\xff"], "INVALID_ARGUMENT", "record 2 is not a PredictionLog"),
        ([count_record(1, "nope")], "FAILED_PRECONDITION", 'record 1 failed: .*"nope" not found'),
        ([classify_record()], "UNIMPLEMENTED", "record 1 is a classify_log"),
    ],
    ids=["too many", "unparsable", "failing", "not a predict call"],
)
def test_check_64_bad_warm_up_fails_the_load(
    model: Any, records: list[bytes], code: str, text: str
) -> None:
    version = model(records)
    with pytest.raises(ServingError, match=text) as caught:
        load_warm("m", 1, str(version))
    assert caught.value.code is grpc.StatusCode[code]


def test_check_64_bad_warm_up_is_a_startup_error(model: Any, start_server: Any) -> None:
    base = model([b"\xff"]).parent
    with pytest.raises(StartupError, match="not a PredictionLog"):
        start_server({"m": base})
