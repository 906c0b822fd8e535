"""Requests as any TensorFlow Serving client sends them, with the plain message types.

Not the project's client: it hides what has to be checked here, e.g. the padding of short lists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import grpc
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from schemas import names


@dataclass(frozen=True)
class UserRequest:
    """One user's request.

    Attributes:
      user_id: any bytes.
      history: (item id, level), oldest first; empty = not sent.
      exclude: item ids; empty = not sent.
      weights: one per objective; None = not sent.
    """

    user_id: bytes
    history: tuple[tuple[bytes, int], ...] = ()
    exclude: tuple[bytes, ...] = ()
    weights: tuple[float, ...] | None = None


@dataclass(frozen=True, eq=False)
class Answer:
    """`item_ids` bytes [N] and `scores` float32 [N] of one user, as sent, padding included."""

    item_ids: list[bytes]
    scores: npt.NDArray[np.float32]


class Asker:
    """Calls one model. Every call is bounded by the time that `seconds_left` returns."""

    def __init__(self, address: str, model: str, seconds_left: Callable[[], float]) -> None:
        self._channel = grpc.insecure_channel(address)
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._model = model
        self._seconds_left = seconds_left

    def recommend(self, request: UserRequest) -> Answer:
        """Asks the default signature.

        Raises:
          grpc.RpcError: the call failed.
          ValueError: the answer does not have the documented form.
        """
        inputs = _user_inputs(request)
        if request.exclude:
            inputs[names.EXCLUDE_ITEM_IDS] = tf.make_tensor_proto([list(request.exclude)])
        if request.weights is not None:
            inputs[names.OBJECTIVE_WEIGHTS] = tf.make_tensor_proto([request.weights], tf.float32)
        outputs = self._predict(names.SIGNATURE_RECOMMEND, inputs)
        item_ids = _output(outputs, names.ITEM_IDS, 2)[0].tolist()
        scores = _output(outputs, names.SCORES, 2)[0]
        if len(item_ids) != len(scores):
            raise ValueError(f"{len(item_ids)} item ids came with {len(scores)} scores")
        return Answer(item_ids, scores)

    def embed(self, request: UserRequest) -> tuple[npt.NDArray[np.float32], list[int]]:
        """Asks `embed_user`: blocks [D], and their sizes [K]. Raises as `recommend`."""
        outputs = self._predict(names.SIGNATURE_EMBED_USER, _user_inputs(request))
        blocks = _output(outputs, names.BLOCKS, 2)[0]
        return blocks, _output(outputs, names.BLOCK_SIZES, 1).tolist()

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _predict(self, signature: str, inputs: Mapping[str, Any]) -> Any:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = self._model
        request.model_spec.signature_name = signature
        for name, tensor in inputs.items():
            request.inputs[name].CopyFrom(tensor)
        return self._stub.Predict(request, timeout=max(self._seconds_left(), 0.001)).outputs


def weightings(n_objectives: int) -> Sequence[tuple[float, ...]]:
    """The weightings to try: all ones, each objective alone, rising weights, all zeros."""
    alone = [tuple(float(i == k) for i in range(n_objectives)) for k in range(n_objectives)]
    rising = tuple(float(k + 1) for k in range(n_objectives))
    return [(1.0,) * n_objectives, *alone, rising, (0.0,) * n_objectives]


def _user_inputs(request: UserRequest) -> dict[str, Any]:
    inputs = {names.USER_ID: tf.make_tensor_proto([request.user_id])}
    if request.history:
        inputs[names.HISTORY_ITEM_IDS] = tf.make_tensor_proto([[i for i, _ in request.history]])
        inputs[names.HISTORY_LEVELS] = tf.make_tensor_proto(
            [[level for _, level in request.history]], tf.int64
        )
    return inputs


def _output(outputs: Any, name: str, rank: int) -> npt.NDArray[Any]:
    if name not in outputs:
        raise ValueError(f"the answer holds {sorted(outputs)}, but not {name!r}")
    value = tf.make_ndarray(outputs[name])
    if value.ndim != rank:
        raise ValueError(f"{name} has shape {value.shape}, expected {rank} dimensions")
    return value
