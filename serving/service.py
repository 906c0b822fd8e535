"""The gRPC services `PredictionService` and `ModelService` of TensorFlow Serving, for grpc.aio.

`prediction_service_pb2` and `model_service_pb2` cannot be imported with protobuf's upb runtime;
the message modules can, and hold all that is needed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

from serving import inference, model_info
from serving.engine import Engine
from serving.errors import ServingError, details

_ENTRYPOINT = "GRPC"
# A call without a deadline reports an absurdly distant one, depending on the grpcio release.
_NO_DEADLINE_SECONDS = 10 * 365 * 24 * 3600.0

_Response = TypeVar("_Response")
# Replaces what is served; returns when new models are available, raises ServingError.
_Reload = Callable[[model_server_config_pb2.ModelServerConfig], Awaitable[None]]


def _deadline(context: grpc.aio.ServicerContext) -> float | None:
    """time.monotonic() at which the client gives up, None = never."""
    remaining = context.time_remaining()
    if remaining is None or remaining > _NO_DEADLINE_SECONDS:
        return None
    return time.monotonic() + remaining


class PredictionService:
    """Calls that run a model, and its metadata."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def Predict(  # noqa: D102 (named by the protocol)
        self, request: predict_pb2.PredictRequest, context: grpc.aio.ServicerContext
    ) -> bytes:
        answer = self._engine.predict(request, _deadline(context))
        return await self._counted("Predict", request.model_spec.name, answer, context)

    async def Classify(  # noqa: D102
        self, request: classification_pb2.ClassificationRequest, context: grpc.aio.ServicerContext
    ) -> classification_pb2.ClassificationResponse:
        answer = inference.classify(self._engine, request, _deadline(context))
        return await self._counted("Classify", request.model_spec.name, answer, context)

    async def Regress(  # noqa: D102
        self, request: regression_pb2.RegressionRequest, context: grpc.aio.ServicerContext
    ) -> regression_pb2.RegressionResponse:
        answer = inference.regress(self._engine, request, _deadline(context))
        return await self._counted("Regress", request.model_spec.name, answer, context)

    async def MultiInference(  # noqa: D102
        self, request: inference_pb2.MultiInferenceRequest, context: grpc.aio.ServicerContext
    ) -> inference_pb2.MultiInferenceResponse:
        name = request.tasks[0].model_spec.name if request.tasks else ""
        answer = inference.multi_inference(self._engine, request, _deadline(context))
        return await self._counted("MultiInference", name, answer, context)

    async def GetModelMetadata(  # noqa: D102
        self,
        request: get_model_metadata_pb2.GetModelMetadataRequest,
        context: grpc.aio.ServicerContext,
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        try:
            return model_info.metadata(self._engine.versions, request)
        except ServingError as error:
            await context.abort(error.code, details(error.message))

    async def _counted(
        self,
        api: str,
        model: str,
        answer: Awaitable[_Response],
        context: grpc.aio.ServicerContext,
    ) -> _Response:
        started = time.monotonic()
        status = grpc.StatusCode.UNKNOWN.name
        try:
            response = await answer
            status = grpc.StatusCode.OK.name
            return response
        except ServingError as error:
            status = error.code.name
            await context.abort(error.code, details(error.message))
            raise AssertionError("unreachable: abort raises") from error
        except asyncio.CancelledError:
            status = grpc.StatusCode.CANCELLED.name
            raise
        finally:
            seconds = time.monotonic() - started
            self._engine.metrics.request(model, api, _ENTRYPOINT, status, seconds)


class ModelService:
    """Status of the versions, and the configuration of what is served."""

    def __init__(self, engine: Engine, reload: _Reload) -> None:
        self._engine = engine
        self._reload = reload

    async def GetModelStatus(  # noqa: D102
        self,
        request: get_model_status_pb2.GetModelStatusRequest,
        context: grpc.aio.ServicerContext,
    ) -> get_model_status_pb2.GetModelStatusResponse:
        try:
            return model_info.status(self._engine.versions, request)
        except ServingError as error:
            await context.abort(error.code, details(error.message))

    async def HandleReloadConfigRequest(  # noqa: D102
        self,
        request: model_management_pb2.ReloadConfigRequest,
        context: grpc.aio.ServicerContext,
    ) -> model_management_pb2.ReloadConfigResponse:
        try:
            await self._reload(request.config)
        except ServingError as error:
            await context.abort(error.code, details(error.message))
        return model_management_pb2.ReloadConfigResponse()


def register(server: grpc.aio.Server, engine: Engine, reload: _Reload) -> None:
    """Adds both services to a server that has not started.

    Args:
      server: gets the services.
      engine: answers for the models.
      reload: carries out HandleReloadConfigRequest.
    """
    prediction, models = PredictionService(engine), ModelService(engine, reload)
    _add(
        server,
        "PredictionService",
        {
            prediction.Predict: predict_pb2.PredictRequest,
            prediction.Classify: classification_pb2.ClassificationRequest,
            prediction.Regress: regression_pb2.RegressionRequest,
            prediction.MultiInference: inference_pb2.MultiInferenceRequest,
            prediction.GetModelMetadata: get_model_metadata_pb2.GetModelMetadataRequest,
        },
    )
    _add(
        server,
        "ModelService",
        {
            models.GetModelStatus: get_model_status_pb2.GetModelStatusRequest,
            models.HandleReloadConfigRequest: model_management_pb2.ReloadConfigRequest,
        },
    )


def _add(server: grpc.aio.Server, service: str, methods: Mapping[Any, Any]) -> None:
    handlers = {
        method.__name__: grpc.unary_unary_rpc_method_handler(
            _decoding(method, request), response_serializer=_serialised
        )
        for method, request in methods.items()
    }
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(f"tensorflow.serving.{service}", handlers),)
    )


def _decoding(method: Any, request: Any) -> Any:
    """The method for serialised requests.

    grpc.aio answers UNKNOWN, with a traceback in the log, to what its own deserializer cannot
    decode; gRPC in C++ answers INTERNAL.
    """

    async def call(message: bytes, context: grpc.aio.ServicerContext) -> Any:
        try:
            decoded = request.FromString(message)
        except DecodeError as error:
            await context.abort(grpc.StatusCode.INTERNAL, f"Failed to parse the request: {error}")
        return await method(decoded, context)

    return call


def _serialised(response: Message | bytes) -> bytes:
    return response if isinstance(response, bytes) else response.SerializeToString()


SERVICES = ("PredictionService", "ModelService")
"""The bare names under which the health service reports, as TensorFlow Serving has them."""
