"""Replay of recorded requests before a version becomes available.

The first run of a signature builds and optimises its executor, which takes many times longer than
a normal call; without warm-up a client pays for that right after every swap.
"""

from __future__ import annotations

import contextlib
import posixpath

import grpc
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import prediction_log_pb2

from serving.errors import ServingError
from serving.predict import predict
from serving.servable import Servable

WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"
MAX_RECORDS = 1000


def warm_up(servable: Servable) -> int:
    """Runs the requests of the SavedModel's warm-up file, a TFRecord of PredictionLog.

    Returns:
      the number of requests run, 0 without a file.

    Raises:
      ServingError: too many records, a record that is not a Predict call, or a call that fails.
      tf.errors.OpError: the file cannot be read.
    """
    path = posixpath.join(servable.path, WARMUP_FILE)
    if not tf.io.gfile.exists(path):
        return 0
    count = 0
    for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
        count += 1
        if count > MAX_RECORDS:
            raise _invalid(f"{path} holds more than {MAX_RECORDS} warm-up records")
        try:
            log = prediction_log_pb2.PredictionLog.FromString(record)
        except DecodeError as error:
            raise _invalid(f"{path}: record {count} is not a PredictionLog ({error})") from error
        kind = log.WhichOneof("log_type")
        if kind != "predict_log":
            raise ServingError(
                grpc.StatusCode.UNIMPLEMENTED,
                f"{path}: record {count} is a {kind}; only predict_log can be replayed",
            )
        try:
            predict(servable, log.predict_log.request, timeout_ms=None)
        except ServingError as error:
            raise ServingError(
                error.code, f"{path}: warm-up record {count} failed: {error.message}"
            ) from error
    return count


def _invalid(message: str) -> ServingError:
    return ServingError(grpc.StatusCode.INVALID_ARGUMENT, message)


def load_warm(name: str, version: int, path: str) -> Servable:
    """Loads a version and warms it up; closes it again if that fails.

    Raises:
      as Servable and warm_up.
    """
    with contextlib.ExitStack() as undo:
        servable = Servable(name, version, path)
        undo.callback(servable.close)
        warm_up(servable)
        undo.pop_all()
        return servable
