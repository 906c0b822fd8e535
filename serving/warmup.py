"""Replay of recorded requests before a version becomes available.

The first run of a signature builds and optimises its executor, which takes many times longer than
a normal call; without warm-up a client pays for that right after every swap.
"""

from __future__ import annotations

import contextlib
import logging
import posixpath
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from schemas import names
from serving.errors import ServingError, invalid_argument
from serving.inference import Plan, plan_classify, plan_multi_inference, plan_regress
from serving.metrics import Metrics
from serving.predict import decode_inputs, find_signature, respond, select_outputs
from serving.servable import AUTOMATIC, Servable, Threads

_LOG = logging.getLogger(__name__)

MAX_RECORDS = 1000


def warm_up(servable: Servable, iterations: int = 1) -> int:
    """Runs the requests of the SavedModel's warm-up file, a TFRecord of PredictionLog.

    Args:
      servable: a version that nobody calls yet.
      iterations: how often each request is run.

    Returns:
      the number of records, 0 without a file.

    Raises:
      ServingError: INVALID_ARGUMENT for too many records or one that is no PredictionLog,
        UNIMPLEMENTED for a log of session runs or streams, and whatever a call fails with.
      tf.errors.OpError: the file cannot be read.
    """
    path = posixpath.join(servable.path, names.WARMUP_FILE)
    if not tf.io.gfile.exists(path):
        return 0
    count = 0
    for count, log in enumerate(_read(path), start=1):
        try:
            for _ in range(iterations):
                _replay(servable, log)
        except ServingError as error:
            raise ServingError(
                error.code, f"{path}: warm-up record {count} failed: {error.message}"
            ) from error
    return count


def _read(path: str) -> Iterator[prediction_log_pb2.PredictionLog]:
    for count, record in enumerate(tf.data.TFRecordDataset(path).as_numpy_iterator(), start=1):
        if count > MAX_RECORDS:
            raise invalid_argument(
                f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {path}"
            )
        try:
            yield prediction_log_pb2.PredictionLog.FromString(record)
        except DecodeError as error:
            raise invalid_argument(f"Failed to parse warmup record: {count} from {path}") from error


def _plan_predict(servable: Servable, request: predict_pb2.PredictRequest) -> Plan:
    signature = find_signature(servable, request.model_spec.signature_name)
    feeds = decode_inputs(signature, request.inputs)
    outputs = select_outputs(signature, request.output_filter)
    return Plan(
        signature, feeds, outputs, lambda results: respond(servable, signature, outputs, results)
    )


_PLANS: dict[str, Callable[[Servable, Any], Plan]] = {
    "predict_log": _plan_predict,
    "classify_log": plan_classify,
    "regress_log": plan_regress,
    "multi_inference_log": plan_multi_inference,
}


def _replay(servable: Servable, log: prediction_log_pb2.PredictionLog) -> None:
    kind = log.WhichOneof("log_type")
    if kind is None:
        return
    if kind not in _PLANS:
        raise ServingError(
            grpc.StatusCode.UNIMPLEMENTED, f"Unsupported log_type for warmup: {kind}"
        )
    plan = _PLANS[kind](servable, getattr(log, kind).request)
    plan.respond(servable.run(plan.signature, plan.feeds, plan.outputs))


def load_warm(
    name: str,
    version: int,
    path: str,
    tags: Sequence[str] = ("serve",),
    threads: Threads = AUTOMATIC,
    iterations: int = 1,
    metrics: Metrics | None = None,
) -> Servable:
    """Loads a version and warms it up; closes it again if that fails.

    Args:
      name, version, path, tags, threads: as of Servable.
      iterations: how often each recorded request is run.
      metrics: told how long the warm-up took.

    Raises:
      as Servable and warm_up.
    """
    with contextlib.ExitStack() as undo:
        servable = Servable(name, version, path, tags, threads)
        undo.callback(servable.close)
        started = time.monotonic()
        if count := warm_up(servable, iterations):
            seconds = time.monotonic() - started
            _LOG.info("%s version %d warmed up by %d records", name, version, count)
            if metrics is not None:
                metrics.warm_up(name, seconds)
        undo.pop_all()
        return servable
