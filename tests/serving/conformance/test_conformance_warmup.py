"""Warm-up requests, replayed before a version is available: check 64 of the conformance list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import prediction_log_pb2

from schemas import names
from serving.errors import ServingError, StartupError
from serving.inference import CLASSIFY_METHOD, REGRESS_METHOD
from serving.metrics import Metrics
from serving.servable import Servable
from serving.warmup import load_warm, warm_up

Log = prediction_log_pb2.PredictionLog


def count_record(by: int, signature: str = "count") -> bytes:
    log = Log()
    request = log.predict_log.request
    request.model_spec.name = "some other name"
    request.model_spec.signature_name = signature
    request.inputs["by"].CopyFrom(tf.make_tensor_proto(by, dtype=types_pb2.DT_INT64))
    return log.SerializeToString()


@pytest.fixture(scope="module")
def example_counter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that counts the examples of each kind of call; `calls` reads the counts."""
    module = tf.Module()
    module.counts = tf.Variable([0, 0], dtype=tf.int64)
    strings = tf.TensorSpec([None], tf.string, "inputs")

    def count(kind: int, inputs: tf.Tensor) -> tf.Tensor:
        module.counts.scatter_nd_add([[kind]], [tf.size(inputs, tf.int64)])
        return tf.zeros([tf.size(inputs), 1])

    signatures = {
        "regress": tf.function(lambda inputs: {"outputs": count(0, inputs)}, [strings]),
        "classify": tf.function(lambda inputs: {"scores": count(1, inputs)}, [strings]),
        "calls": tf.function(
            lambda x: {"counts": module.counts + x}, [tf.TensorSpec([], tf.int64, "x")]
        ),
    }
    path = tmp_path_factory.mktemp("models") / "counter"
    tf.saved_model.save(module, str(path), signatures=signatures)
    return path


def counts(servable: Servable) -> list[int]:
    (values,) = servable.run(servable.signatures["calls"], {"x": np.int64(0)}, ["counts"])
    return values.tolist()


def example_record(kind: str) -> bytes:
    log = Log()
    request = getattr(log, kind).request
    request.input.example_list.examples.add()
    request.input.example_list.examples.add()
    if kind == "multi_inference_log":
        for signature, method in (("regress", REGRESS_METHOD), ("classify", CLASSIFY_METHOD)):
            task = request.tasks.add(method_name=method)
            task.model_spec.name = "whatever"
            task.model_spec.signature_name = signature
    else:
        request.model_spec.signature_name = kind.removesuffix("_log")
    return log.SerializeToString()


@pytest.fixture
def model(publish: Any, tmp_path: Path) -> Callable[[Path, Sequence[bytes]], Path]:
    """model(saved_model, records): a version 1 with this warm-up file."""

    def make(saved_model: Path, records: Sequence[bytes]) -> Path:
        version = publish(saved_model, tmp_path / "base", 1)
        (version / names.WARMUP_FILE).parent.mkdir(exist_ok=True)
        with tf.io.TFRecordWriter(str(version / names.WARMUP_FILE)) as writer:
            for record in records:
                writer.write(record)
        return version

    return make


def test_check_64_records_are_replayed_before_available(
    zoo: Path, model: Any, start_server: Any, connect: Any
) -> None:
    base = model(zoo, [count_record(5), count_record(7)]).parent
    by = {"by": tf.make_tensor_proto(0, dtype=tf.int64)}
    for options, expected in (
        ({}, 12),
        ({"warm_up_iterations": 3}, 36),
        ({"warm_up": False}, 0),
    ):
        caller = connect(start_server({"m": base}, **options).port)
        response = caller.predict("m", by, signature="count")
        assert list(response.outputs["n"].int64_val) == [expected]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("regress_log", [2, 0]), ("classify_log", [0, 2]), ("multi_inference_log", [2, 2])],
)
def test_check_64_calls_with_examples_are_replayed(
    example_counter: Path, model: Any, kind: str, expected: list[int]
) -> None:
    servable = load_warm("m", 1, str(model(example_counter, [example_record(kind)])))
    assert counts(servable) == expected
    servable.close()


def test_check_64_iterations(example_counter: Path, model: Any) -> None:
    path = model(example_counter, [example_record("regress_log"), example_record("classify_log")])
    servable = Servable("m", 1, str(path))
    assert warm_up(servable, iterations=5) == 2
    assert counts(servable) == [10, 10]
    servable.close()


def test_check_64_no_file_or_an_empty_one_is_fine(zoo: Path, model: Any) -> None:
    for path in (zoo, model(zoo, [])):
        servable = Servable("m", 1, str(path))
        assert warm_up(servable) == 0
        servable.close()


def test_check_64_a_record_without_a_request_is_passed_over(zoo: Path, model: Any) -> None:
    servable = Servable("m", 1, str(model(zoo, [Log().SerializeToString(), count_record(1)])))
    assert warm_up(servable) == 2
    servable.close()


def test_check_64_a_thousand_records_are_not_too_many(example_counter: Path, model: Any) -> None:
    path = model(example_counter, [example_record("regress_log")] * 1000)
    servable = load_warm("m", 1, str(path))
    assert counts(servable) == [2000, 0]
    servable.close()


def session_run_record() -> bytes:
    log = Log()
    log.session_run_log.request.model_spec.name = "m"
    return log.SerializeToString()


def streamed_record() -> bytes:
    log = Log()
    log.predict_streamed_log.request.add().model_spec.name = "m"
    return log.SerializeToString()


@pytest.mark.parametrize(
    ("records", "code", "text"),
    [
        (
            [count_record(1)] * 1001,
            "INVALID_ARGUMENT",
            r"Number of warmup records exceeds the maximum \(1000\) at .*/tf_serving_warmup_requ",
        ),
        ([count_record(1), b"\xff"], "INVALID_ARGUMENT", "Failed to parse warmup record: 2 from"),
        ([count_record(1, "nope")], "FAILED_PRECONDITION", 'record 1 failed: .*"nope" not found'),
        ([example_record("regress_log")], "INVALID_ARGUMENT", "record 1 failed: No signature was"),
        ([session_run_record()], "UNIMPLEMENTED", "Unsupported log_type for warmup: session_run"),
        ([streamed_record()], "UNIMPLEMENTED", "Unsupported log_type for warmup: predict_stream"),
    ],
    ids=["too many", "unparsable", "failing", "unfit", "session run", "streamed"],
)
def test_check_64_bad_warm_up_fails_the_load(
    zoo: Path, model: Any, records: list[bytes], code: str, text: str
) -> None:
    version = model(zoo, records)
    with pytest.raises(ServingError, match=text) as caught:
        load_warm("m", 1, str(version))
    assert caught.value.code is grpc.StatusCode[code]


def test_check_64_a_file_that_is_no_tfrecord_fails_the_load(zoo: Path, model: Any) -> None:
    version = model(zoo, [])
    (version / names.WARMUP_FILE).write_bytes(b"not a TFRecord, but long enough to hold a length")
    with pytest.raises(tf.errors.DataLossError):
        load_warm("m", 1, str(version))


def test_check_64_bad_warm_up_is_a_startup_error(zoo: Path, model: Any, start_server: Any) -> None:
    base = model(zoo, [b"\xff"]).parent
    with pytest.raises(StartupError, match="Failed to parse warmup record"):
        start_server({"m": base})


def test_check_64_a_version_with_bad_warm_up_does_not_replace_a_good_one(
    zoo: Path, model: Any, publish: Any, start_server: Any, connect: Any, wait_for: Any
) -> None:
    base = model(zoo, [count_record(1)]).parent
    caller = connect(start_server({"m": base}).port)
    bad = publish(zoo, base.parent / "elsewhere", 2)
    (bad / names.WARMUP_FILE).parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(bad / names.WARMUP_FILE)) as writer:
        writer.write(count_record(1, "nope"))
    bad.rename(base / "2")
    wait_for(lambda: caller.states("m").get(2) == 50, "version 2 given up")
    assert caller.states("m")[1] == 30
    assert "warm-up record 1 failed" in caller.status("m", 2)[0].status.error_message


def test_check_64_the_time_is_measured(zoo: Path, model: Any) -> None:
    metrics = Metrics()
    path = model(zoo, [count_record(1)])
    load_warm("warmed", 1, str(path), metrics=metrics).close()
    load_warm("cold", 1, str(zoo), metrics=metrics).close()
    lines = [line for line in metrics.page().decode().splitlines() if "warmup_latency" in line]
    counted = [line for line in lines if "_count" in line and "warmed" in line]
    assert [float(line.rpartition(" ")[2]) for line in counted] == [1.0]
    assert not any("cold" in line for line in lines)
