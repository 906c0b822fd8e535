"""Waits until a server has loaded a version. Works with TensorFlow Serving as with our server."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import grpc
from tensorflow_serving.apis import get_model_status_pb2

from components.pusher.push import PushError

# The method's path, because the generated model_service_pb2 cannot be imported with protobuf 4.
_GET_MODEL_STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
_POLL_SECONDS = 0.2
_CALL_TIMEOUT_SECONDS = 5.0
_NOT_YET = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
_STATES = get_model_status_pb2.ModelVersionStatus.State


class NotAvailableError(PushError):
    """The version is published, but the server did not load it."""


def wait_until_available(
    address: str, model_names: Sequence[str], version: int, timeout_seconds: float
) -> None:
    """Polls GetModelStatus until every one of the models that the server knows has the version.

    A server may serve only one of the flavours; a name unknown to it is left out. It must know at
    least one of them.

    Args:
      address: "host:port".
      model_names: served names.
      version: version to wait for.
      timeout_seconds: for all of them together.

    Raises:
      NotAvailableError: the load failed (with the server's error), or the time is over.
    """
    deadline = time.monotonic() + timeout_seconds
    states: dict[str, str] = {}
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(
            _GET_MODEL_STATUS,
            request_serializer=get_model_status_pb2.GetModelStatusRequest.SerializeToString,
            response_deserializer=get_model_status_pb2.GetModelStatusResponse.FromString,
        )
        while True:
            states = {name: _state(call, address, name, version) for name in model_names}
            served = [state for state in states.values() if state != "not served"]
            if served and all(state == "AVAILABLE" for state in served):
                return
            if time.monotonic() >= deadline:
                raise NotAvailableError(
                    f"version {version} is published, but {address} did not serve it within "
                    f"{timeout_seconds:g} s. Last seen: "
                    + "; ".join(f"{name}: {state}" for name, state in states.items())
                    + ". Check that the server serves the directory that was pushed to."
                )
            time.sleep(_POLL_SECONDS)


def _state(call: Any, address: str, model_name: str, version: int) -> str:
    """Returns the state of one model's version, in words.

    Raises:
      NotAvailableError: the server gave up loading it, or refuses the call.
    """
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = model_name
    try:
        response = call(request, timeout=_CALL_TIMEOUT_SECONDS)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return "not served"
        if error.code() in _NOT_YET:
            return f"{error.code().name} {error.details()}"
        raise NotAvailableError(
            f"{address} answered {error.code().name} to GetModelStatus of {model_name}: "
            f"{error.details()}. Is it a TensorFlow Serving endpoint?"
        ) from error
    for entry in response.model_version_status:
        if entry.version != version:
            continue
        failed = entry.status.error_code != 0
        if entry.state == _STATES.Value("END") and failed:
            raise NotAvailableError(
                f"{address} could not load version {version} of {model_name}: "
                f"{entry.status.error_message}. It stays published: delete its directories to "
                "withdraw it, or push a newer version."
            )
        state = _STATES.Name(entry.state)
        return f"{state} ({entry.status.error_message})" if failed else state
    return "the version is not seen yet"
