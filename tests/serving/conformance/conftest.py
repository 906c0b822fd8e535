"""Stock clients of tensorflow-serving-api and helpers to call with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)


@dataclass(frozen=True)
class Caller:
    """Calls one server with the stock stubs."""

    channel: grpc.Channel
    prediction: prediction_service_pb2_grpc.PredictionServiceStub
    models: model_service_pb2_grpc.ModelServiceStub

    def request(
        self,
        model: str,
        inputs: dict[str, Any] | None = None,
        *,
        signature: str = "",
        version: int | None = None,
        label: str | None = None,
        outputs: tuple[str, ...] = (),
    ) -> predict_pb2.PredictRequest:
        request = predict_pb2.PredictRequest(output_filter=outputs)
        request.model_spec.name = model
        request.model_spec.signature_name = signature
        if version is not None:
            request.model_spec.version.value = version
        if label is not None:
            request.model_spec.version_label = label
        for alias, value in (inputs or {}).items():
            proto = value if isinstance(value, tensor_pb2.TensorProto) else _proto(value)
            request.inputs[alias].CopyFrom(proto)
        return request

    def predict(self, *args: Any, timeout: float = 10.0, **kwargs: Any) -> Any:
        return self.prediction.Predict(self.request(*args, **kwargs), timeout=timeout)

    def predict_error(self, *args: Any, **kwargs: Any) -> tuple[grpc.StatusCode, str]:
        return error_of(lambda: self.predict(*args, **kwargs))

    def status(self, model: str, version: int | None = None) -> Any:
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = model
        if version is not None:
            request.model_spec.version.value = version
        return self.models.GetModelStatus(request, timeout=10).model_version_status

    def states(self, model: str) -> dict[int, int]:
        """Version -> number of its state, newest first."""
        return {entry.version: entry.state for entry in self.status(model)}

    def metadata(self, model: str, *fields: str) -> Any:
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
        request.model_spec.name = model
        return self.prediction.GetModelMetadata(request, timeout=10)


def _proto(value: Any) -> Any:
    dtype = tf.float32 if isinstance(value, float) or _is_floats(value) else None
    return tf.make_tensor_proto(value, dtype=dtype)


def _is_floats(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(element, float) for element in value)


def error_of(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


@pytest.fixture(name="error_of", scope="session")
def error_of_fixture() -> Callable[..., tuple[grpc.StatusCode, str]]:
    """error_of(call): status and details of the gRPC error that the call must raise."""
    return error_of


@pytest.fixture(scope="session")
def connect() -> Iterator[Callable[[int], Caller]]:
    """connect(port): a caller whose message limits are lifted."""
    channels: list[grpc.Channel] = []

    def open_channel(port: int) -> Caller:
        channel = grpc.insecure_channel(
            f"127.0.0.1:{port}",
            options=[
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
            ],
        )
        channels.append(channel)
        return Caller(
            channel,
            prediction_service_pb2_grpc.PredictionServiceStub(channel),
            model_service_pb2_grpc.ModelServiceStub(channel),
        )

    yield open_channel
    for channel in channels:
        channel.close()
