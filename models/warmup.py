"""Requests that a served version answers once before it is available.

The first run of a signature takes many times longer than the next ones, so an export carries
requests of every kind for every signature.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from schemas import names

_UNKNOWN_USER = b""
_USERS = 3
_ITEMS = 5

Arrays = dict[str, npt.NDArray]


def write_warm_up(
    path: Path,
    defaults: Arrays,
    user_ids: Sequence[bytes],
    item_ids: Sequence[bytes],
    weights: Sequence[Sequence[float]],
) -> None:
    """Writes a TFRecord of PredictionLog, as TensorFlow Serving reads it.

    Args:
      path: of the file; its directory is made.
      defaults: input of `serving_default` -> value for one user. Every input is sent, as
        TensorFlow Serving before 2.14 knows no defaults.
      user_ids: known users, the most active first.
      item_ids: the candidates.
      weights: objective weights [K] that callers use.
    """
    users, items = list(user_ids[:_USERS]), list(item_ids[:_ITEMS])
    known = users[0] if users else _UNKNOWN_USER
    one = _user(defaults, [known])
    informed = _user(defaults, [known]) | {
        names.HISTORY_ITEM_IDS: np.array([items], object),
        names.HISTORY_LEVELS: np.arange(len(items))[None, :] % len(weights[0]),
        names.EXCLUDE_ITEM_IDS: np.array([items[-1:]], object),
        names.OBJECTIVE_WEIGHTS: np.array([weights[-1]], np.float32),
    }
    recommendations = [
        *(_user(defaults, [user]) for user in [*users, _UNKNOWN_USER]),
        *(one | {names.OBJECTIVE_WEIGHTS: np.array([w], np.float32)} for w in weights),
        informed,
        _user(defaults, [*users, _UNKNOWN_USER]),
    ]
    asked = {names.ITEM_IDS: np.array([items], object)}
    requests: list[tuple[str, Arrays]] = [
        *((names.SIGNATURE_RECOMMEND, request) for request in recommendations),
        *((names.SIGNATURE_EMBED_USER, _without_query(request)) for request in (one, informed)),
        *(
            (names.SIGNATURE_SCORE_ITEMS, _without_exclusions(request) | asked)
            for request in (one, informed)
        ),
        *(
            (names.SIGNATURE_EXAMPLES, {names.EXAMPLES: np.array([_example(request)], object)})
            for request in (one, informed)
        ),
        (names.SIGNATURE_ITEM_TITLES, asked),
        (names.SIGNATURE_USER_HISTORY, {names.USER_ID: one[names.USER_ID]}),
    ]
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in requests:
            writer.write(_log(signature, inputs))
        # TensorFlow builds an executor for each choice of outputs. This is the common other one.
        writer.write(_log(names.SIGNATURE_RECOMMEND, one, outputs=(names.ITEM_IDS,)))


def _user(defaults: Arrays, user_ids: list[bytes]) -> Arrays:
    """A request for these users, all else being left to the model."""
    return {names.USER_ID: np.array(user_ids, object)} | {
        key: np.repeat(value, len(user_ids), axis=0) for key, value in defaults.items()
    }


def _without_exclusions(request: Arrays) -> Arrays:
    return {key: value for key, value in request.items() if key != names.EXCLUDE_ITEM_IDS}


def _without_query(request: Arrays) -> Arrays:
    return {
        key: value
        for key, value in _without_exclusions(request).items()
        if key != names.OBJECTIVE_WEIGHTS
    }


def _log(signature: str, inputs: Arrays, outputs: Sequence[str] = ()) -> bytes:
    log = prediction_log_pb2.PredictionLog()
    request = log.predict_log.request
    request.model_spec.signature_name = signature
    request.output_filter.extend(outputs)
    for key, value in inputs.items():
        dtype = tf.string if value.dtype == object else None  # an empty list does not tell
        request.inputs[key].CopyFrom(tf.make_tensor_proto(value, dtype))
    # The order of map entries is free otherwise: equal exports are to be equal files.
    return log.SerializeToString(deterministic=True)


def _example(request: Arrays) -> bytes:
    """The first row of a request as a tf.Example."""
    example = tf.train.Example()
    for key, value in request.items():
        row = value[:1].ravel().tolist()
        feature = example.features.feature[key]
        if value.dtype == object:
            feature.bytes_list.value.extend(row)
        elif value.dtype == np.int64:
            feature.int64_list.value.extend(row)
        else:
            feature.float_list.value.extend(row)
    return example.SerializeToString(deterministic=True)
