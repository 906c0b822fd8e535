"""A thin client of the recommender. Needs grpcio, protobuf and numpy, not TensorFlow.

with RecommenderClient("localhost:8500") as client:
    answer = client.recommend("42", weights=[0.1, 0.3, 0.6], n=10)
    titles = client.titles([item_id for item_id, _ in answer.items])
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import grpc
import numpy as np
import numpy.typing as npt

from schemas import names
from serving import messages

_PREDICT = "/tensorflow.serving.PredictionService/Predict"
_GET_MODEL_STATUS = "/tensorflow.serving.ModelService/GetModelStatus"

_FIRST_BACKOFF_SECONDS = 0.05
_MAX_BACKOFF_SECONDS = 1.0
_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # gRPC's own reconnection waits up to two minutes, longer than any caller does.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
_STATES = {0: "UNKNOWN", 10: "START", 20: "LOADING", 30: "AVAILABLE", 40: "UNLOADING", 50: "END"}


# One value, or several of a list feature.
Feature = str | bytes | float | Sequence[str] | Sequence[float]
# A number, or the label of one; None = the newest.
Version = int | str | None
# The content of a PEM file, or its path.
Pem = bytes | str | os.PathLike[str]


@dataclass(frozen=True)
class Tls:
    """Certificates of an encrypted connection.

    Attributes:
      root_certificates: what must have signed the server's certificate; None = the system's.
      certificate, key: of this client, for servers that ask for them (mutual TLS).
    """

    root_certificates: Pem | None = None
    certificate: Pem | None = None
    key: Pem | None = None


class RecommenderError(RuntimeError):
    """A call failed.

    Attributes:
      address: server that was called.
      status: name of the gRPC status, e.g. "NOT_FOUND".
      details: the server's text.
    """

    def __init__(self, address: str, status: str, details: str) -> None:
        hint = ""
        if status == grpc.StatusCode.UNAVAILABLE.name:
            hint = " Is the server running there, and has it loaded its first version?"
        super().__init__(f"{address} answered {status}: {details}{hint}")
        self.address = address
        self.status = status
        self.details = details


@dataclass(frozen=True)
class Recommendation:
    """Recommended items of one user, best first.

    Attributes:
      model, version: what answered.
      items: (item id, fused score).
    """

    model: str
    version: int
    items: list[tuple[str, float]]


@dataclass(frozen=True, eq=False)
class UserEmbedding:
    """A user's vector.

    Attributes:
      model, version: what answered.
      blocks: [D] float32, the objectives' blocks one after the other, without weights.
      block_sizes: [K], their lengths.
    """

    model: str
    version: int
    blocks: npt.NDArray[np.float32]
    block_sizes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ItemScores:
    """Exact scores of M items for one user.

    Attributes:
      model, version: what answered.
      objective_scores: [M, K] float32, per objective, without weights.
      scores: [M] float32, fused: the sum of the former times the weights.
    """

    model: str
    version: int
    objective_scores: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]


class VersionState(NamedTuple):
    """State of one model version, as the server reports it."""

    version: int
    state: str
    error_message: str


class RecommenderClient:
    """Calls one model on one server. Safe to share between threads.

    Args:
      address: "host:port".
      model: served model name.
      timeout_seconds: limit for each call, retries included. While the server is unavailable
        (starting, restarting) calls are repeated within this time.
      tls: encrypts the connection; None = clear text.

    Raises:
      OSError: a certificate cannot be read.
    """

    def __init__(
        self,
        address: str,
        model: str = "recommender",
        timeout_seconds: float = 5.0,
        tls: Tls | None = None,
    ) -> None:
        self.address = address
        self.model = model
        self._timeout_seconds = timeout_seconds
        self._channel = _open_channel(address, tls)
        self._predict = self._channel.unary_unary(
            _PREDICT,
            request_serializer=messages.PredictRequest.SerializeToString,
            response_deserializer=messages.PredictResponse.FromString,
        )
        self._get_status = self._channel.unary_unary(
            _GET_MODEL_STATUS,
            request_serializer=messages.GetModelStatusRequest.SerializeToString,
            response_deserializer=messages.GetModelStatusResponse.FromString,
        )

    def recommend(
        self,
        user: str | bytes,
        weights: Sequence[float] | None = None,
        exclude: Sequence[str | bytes] = (),
        n: int | None = None,
        history: Sequence[tuple[str | bytes, int]] = (),
        version: Version = None,
        features: Mapping[str, Feature] | None = None,
    ) -> Recommendation:
        """Asks for the items to show to a user.

        Args:
          user: any id; an unknown user gets an answer too.
          weights: one per objective, in the model's order; None = the model's defaults.
          exclude: item ids that must not be returned.
          n: at most so many items; the model returns no more than it was exported for.
          history: (item id, level reached), oldest first.
          version: number or label of the model version; None = the newest.
          features: name -> value of user features, without the prefix `user_`; those left out
            are the ones known from training, if any.

        Raises:
          RecommenderError: the call failed.
          ValueError: `n` is not positive.
        """
        if n is not None and n < 1:
            raise ValueError(f"n must be at least 1, not {n}")
        inputs = _user_inputs(user, history, features or {})
        if weights is not None:
            inputs[names.OBJECTIVE_WEIGHTS] = _floats(weights)
        if exclude:
            inputs[names.EXCLUDE_ITEM_IDS] = _strings(exclude, [1, len(exclude)])
        response = self._call_predict(names.SIGNATURE_RECOMMEND, inputs, version)
        item_ids = self._output(response, names.ITEM_IDS).string_val
        scores = self._floats_of(response, names.SCORES)
        # Where fewer items remain than the model returns, the rest is "".
        items = [
            (item_id.decode("utf-8", errors="replace"), float(score))
            for item_id, score in zip(item_ids, scores, strict=True)
            if item_id
        ]
        spec = response.model_spec
        return Recommendation(spec.name, spec.version.value, items[:n])

    def score_items(
        self,
        user: str | bytes,
        item_ids: Sequence[str | bytes],
        weights: Sequence[float] | None = None,
        history: Sequence[tuple[str | bytes, int]] = (),
        version: Version = None,
        features: Mapping[str, Feature] | None = None,
    ) -> ItemScores:
        """Scores given items for a user, objective by objective, in the order asked.

        Args:
          user, weights, history, version, features: as in `recommend`.
          item_ids: at least one; an unknown one is scored as an item without features.

        Raises:
          RecommenderError: the call failed.
          ValueError: no item is given.
        """
        if not item_ids:
            raise ValueError("name at least one item to score")
        inputs = _user_inputs(user, history, features or {})
        inputs[names.ITEM_IDS] = _strings(item_ids, [1, len(item_ids)])
        if weights is not None:
            inputs[names.OBJECTIVE_WEIGHTS] = _floats(weights)
        response = self._call_predict(names.SIGNATURE_SCORE_ITEMS, inputs, version)
        spec = response.model_spec
        return ItemScores(
            spec.name,
            spec.version.value,
            self._floats_of(response, names.OBJECTIVE_SCORES).reshape(len(item_ids), -1),
            self._floats_of(response, names.SCORES),
        )

    def user_history(self, user: str | bytes, version: Version = None) -> list[tuple[str, int]]:
        """Returns what the model has stored of a user: (item id, level reached), oldest first.

        It is empty for a user unknown from training.

        Raises:
          RecommenderError: the call failed; FAILED_PRECONDITION if the version has no such
            signature, as those exported before there was one.
        """
        inputs = {names.USER_ID: _strings([user], [1])}
        response = self._call_predict(names.SIGNATURE_USER_HISTORY, inputs, version)
        item_ids = self._output(response, names.HISTORY_ITEM_IDS).string_val
        levels = _values(self._output(response, names.HISTORY_LEVELS), "int64_val", "<i8")
        return [
            (item_id.decode("utf-8", errors="replace"), int(level))
            for item_id, level in zip(item_ids, levels, strict=True)
            if item_id
        ]

    def titles(self, item_ids: Sequence[str | bytes], version: Version = None) -> list[str]:
        """Returns the titles of items, in the order asked.

        Raises:
          RecommenderError: the call failed.
        """
        if not item_ids:
            return []
        inputs = {names.ITEM_IDS: _strings(item_ids, [1, len(item_ids)])}
        response = self._call_predict(names.SIGNATURE_ITEM_TITLES, inputs, version)
        titles = self._output(response, names.TITLES).string_val
        return [title.decode("utf-8", errors="replace") for title in titles]

    def embed_user(
        self,
        user: str | bytes,
        history: Sequence[tuple[str | bytes, int]] = (),
        version: Version = None,
        features: Mapping[str, Feature] | None = None,
    ) -> UserEmbedding:
        """Returns the user's vector, objective by objective.

        Args: as in `recommend`.

        Raises:
          RecommenderError: the call failed.
        """
        inputs = _user_inputs(user, history, features or {})
        response = self._call_predict(names.SIGNATURE_EMBED_USER, inputs, version)
        sizes = self._output(response, names.BLOCK_SIZES)
        spec = response.model_spec
        return UserEmbedding(
            spec.name,
            spec.version.value,
            self._floats_of(response, names.BLOCKS),
            tuple(_values(sizes, "int64_val", "<i8").tolist()),
        )

    def status(self) -> list[VersionState]:
        """Returns (version, state, error message) of every version the server has seen, newest
        first.

        Raises:
          RecommenderError: the call failed, e.g. NOT_FOUND for an unknown model.
        """
        request = messages.GetModelStatusRequest()
        request.model_spec.name = self.model
        response = self._call(self._get_status, request)
        return [
            VersionState(
                entry.version,
                _STATES.get(entry.state, str(entry.state)),
                entry.status.error_message,
            )
            for entry in response.model_version_status
        ]

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _call_predict(self, signature: str, inputs: Mapping[str, Any], version: Version) -> Any:
        request = messages.PredictRequest()
        spec = request.model_spec
        spec.name = self.model
        spec.signature_name = signature
        if isinstance(version, str):
            spec.version_label = version
        elif version is not None:
            spec.version.value = version
            spec.version.SetInParent()
        for alias, tensor in inputs.items():
            request.inputs[alias].CopyFrom(tensor)
        return self._call(self._predict, request)

    def _call(self, method: Any, request: Any) -> Any:
        deadline = time.monotonic() + self._timeout_seconds
        backoff = _FIRST_BACKOFF_SECONDS
        while True:
            try:
                return method(request, timeout=max(deadline - time.monotonic(), 0.001))
            except grpc.RpcError as error:
                status = error.code()
                if (
                    status is not grpc.StatusCode.UNAVAILABLE
                    or time.monotonic() + backoff >= deadline
                ):
                    raise RecommenderError(
                        self.address, status.name, error.details() or ""
                    ) from error
            time.sleep(backoff)
            backoff = min(2 * backoff, _MAX_BACKOFF_SECONDS)

    def _output(self, response: Any, alias: str) -> Any:
        if alias not in response.outputs:
            raise RecommenderError(
                self.address,
                grpc.StatusCode.INTERNAL.name,
                f"model {self.model!r} returned {sorted(response.outputs)} instead of {alias!r}; "
                "is it a recommender of this project?",
            )
        return response.outputs[alias]

    def _floats_of(self, response: Any, alias: str) -> npt.NDArray[np.float32]:
        return _values(self._output(response, alias), "float_val", "<f4")


def _open_channel(address: str, tls: Tls | None) -> grpc.Channel:
    if tls is None:
        return grpc.insecure_channel(address, options=_CHANNEL_OPTIONS)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_read(tls.root_certificates),
        private_key=_read(tls.key),
        certificate_chain=_read(tls.certificate),
    )
    return grpc.secure_channel(address, credentials, options=_CHANNEL_OPTIONS)


def _read(pem: Pem | None) -> bytes | None:
    return pem if pem is None or isinstance(pem, bytes) else Path(pem).read_bytes()


def _user_inputs(
    user: str | bytes,
    history: Sequence[tuple[str | bytes, int]],
    features: Mapping[str, Feature],
) -> dict[str, Any]:
    inputs = {names.USER_ID: _strings([user], [1])}
    if history:
        inputs[names.HISTORY_ITEM_IDS] = _strings([item for item, _ in history], [1, len(history)])
        levels = _tensor(messages.DT_INT64, [1, len(history)])
        levels.int64_val.extend(level for _, level in history)
        inputs[names.HISTORY_LEVELS] = levels
    for name, value in features.items():
        inputs[names.user_feature(name)] = _feature(value)
    return inputs


def _feature(value: Feature) -> Any:
    values: Sequence[Any] = [value] if isinstance(value, str | bytes | int | float) else value
    if all(isinstance(element, str | bytes) for element in values):
        return _strings(values, [1, len(values)])
    return _floats(values)


def _tensor(dtype: int, shape: Sequence[int]) -> Any:
    tensor = messages.TensorProto(dtype=dtype)
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    return tensor


def _strings(values: Sequence[str | bytes], shape: Sequence[int]) -> Any:
    tensor = _tensor(messages.DT_STRING, shape)
    tensor.string_val.extend(
        value.encode() if isinstance(value, str) else value for value in values
    )
    return tensor


def _floats(values: Sequence[float]) -> Any:
    tensor = _tensor(messages.DT_FLOAT, [1, len(values)])
    tensor.float_val.extend(values)
    return tensor


def _values(tensor: Any, field: str, dtype: str) -> npt.NDArray[Any]:
    """Reads numbers from either field: TensorFlow Serving can be told to send tensor_content."""
    if tensor.tensor_content:
        return np.frombuffer(tensor.tensor_content, dtype=dtype)
    values = np.fromiter(getattr(tensor, field), dtype)
    count = math.prod(dim.size for dim in tensor.tensor_shape.dim)
    # One repeated value may be sent only once.
    return np.full(count, values[-1]) if 0 < len(values) < count else values
