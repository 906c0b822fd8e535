"""The gRPC services `PredictionService` and `ModelService` of TensorFlow Serving.

Predict, which is nearly all of the traffic, is answered by the threads that run the graph; all else
by coroutines, in the event loop of REST.

`prediction_service_pb2` and `model_service_pb2` cannot be imported with protobuf's upb runtime;
the message modules can, and hold all that is needed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import CancelledError
from typing import Any

import grpc
from google.protobuf.message import Message
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

from serving import inference, model_info, predict
from serving.aside import LARGE_BYTES, aside
from serving.engine import Engine
from serving.errors import ServingError
from serving.transport import Call, Handler, decoded

SERVICES = ("PredictionService", "ModelService")
"""The bare names under which the health service reports, as TensorFlow Serving has them."""

_PREDICTION, _MODEL = (f"/tensorflow.serving.{service}/" for service in SERVICES)
_ENTRYPOINT = "GRPC"

# Replaces what is served; returns when new models are available, raises ServingError.
_Reload = Callable[[model_server_config_pb2.ModelServerConfig], Awaitable[None]]
# Answers a decoded request, given its call's deadline; raises ServingError.
_Answer = Callable[[Any, float | None], Awaitable[Message]]


def handlers(
    engine: Engine, reload: _Reload, loop: asyncio.AbstractEventLoop
) -> Mapping[str, Handler]:
    """The methods of both services by their full names.

    Args:
      engine: answers for the models.
      reload: carries out HandleReloadConfigRequest.
      loop: where all calls but Predict are answered.
    """
    prediction = _PredictionService(engine)
    models = _ModelService(engine, reload)
    in_loop = {
        _PREDICTION + "Classify": (
            prediction.classify,
            classification_pb2.ClassificationRequest,
        ),
        _PREDICTION + "Regress": (prediction.regress, regression_pb2.RegressionRequest),
        _PREDICTION + "MultiInference": (
            prediction.multi_inference,
            inference_pb2.MultiInferenceRequest,
        ),
        _PREDICTION + "GetModelMetadata": (
            prediction.metadata,
            get_model_metadata_pb2.GetModelMetadataRequest,
        ),
        _MODEL + "GetModelStatus": (models.status, get_model_status_pb2.GetModelStatusRequest),
        _MODEL + "HandleReloadConfigRequest": (
            models.reload,
            model_management_pb2.ReloadConfigRequest,
        ),
    }
    return {
        _PREDICTION + predict.API: prediction.predict,
        **{name: _in_loop(loop, answer, kind) for name, (answer, kind) in in_loop.items()},
    }


class _PredictionService:
    """Calls that run a model, and its metadata."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def predict(self, message: bytes, call: Call) -> None:
        if len(message) > LARGE_BYTES:
            self._engine.aside(lambda: self._begin_predict(message, call, caller_runs=False))
        else:
            self._begin_predict(message, call, caller_runs=True)

    def _begin_predict(self, message: bytes, call: Call, caller_runs: bool) -> None:
        started = time.monotonic()
        model = ""

        def done(answer: bytes | Exception) -> None:
            # Before the answer, so that who has one finds it on the metrics page.
            seconds = time.monotonic() - started
            status = _status_name(answer, call.deadline)
            self._engine.metrics.request(model, predict.API, _ENTRYPOINT, status, seconds)
            if isinstance(answer, bytes):
                call.answer(answer)
            elif isinstance(answer, CancelledError):
                call.refuse(grpc.StatusCode.CANCELLED, "")  # whose client is gone
            else:
                call.fail(answer)

        try:
            request = decoded(message, predict_pb2.PredictRequest)
            model = request.model_spec.name
            run = self._engine.predict(request, call.deadline, done, caller_runs)
        except Exception as error:  # process boundary: `fail` logs what is no ServingError
            done(error)
        else:
            call.when_over(run.cancel)

    async def classify(
        self, request: classification_pb2.ClassificationRequest, deadline: float | None
    ) -> classification_pb2.ClassificationResponse:
        answer = inference.classify(self._engine, request, deadline)
        return await self._counted("Classify", request.model_spec.name, answer, deadline)

    async def regress(
        self, request: regression_pb2.RegressionRequest, deadline: float | None
    ) -> regression_pb2.RegressionResponse:
        answer = inference.regress(self._engine, request, deadline)
        return await self._counted("Regress", request.model_spec.name, answer, deadline)

    async def multi_inference(
        self, request: inference_pb2.MultiInferenceRequest, deadline: float | None
    ) -> inference_pb2.MultiInferenceResponse:
        name = request.tasks[0].model_spec.name if request.tasks else ""
        answer = inference.multi_inference(self._engine, request, deadline)
        return await self._counted("MultiInference", name, answer, deadline)

    async def metadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest, deadline: float | None
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        return model_info.metadata(self._engine.versions, request)

    async def _counted(
        self, api: str, model: str, answer: Awaitable[Any], deadline: float | None
    ) -> Any:
        started = time.monotonic()
        outcome: Any = None
        try:
            outcome = await answer
            return outcome
        except (Exception, asyncio.CancelledError) as error:
            outcome = error
            raise
        finally:
            seconds = time.monotonic() - started
            status = _status_name(outcome, deadline)
            self._engine.metrics.request(model, api, _ENTRYPOINT, status, seconds)


class _ModelService:
    """Status of the versions, and the configuration of what is served."""

    def __init__(self, engine: Engine, reload: _Reload) -> None:
        self._engine = engine
        self._reload = reload

    async def status(
        self, request: get_model_status_pb2.GetModelStatusRequest, deadline: float | None
    ) -> get_model_status_pb2.GetModelStatusResponse:
        return model_info.status(self._engine.versions, request)

    async def reload(
        self, request: model_management_pb2.ReloadConfigRequest, deadline: float | None
    ) -> model_management_pb2.ReloadConfigResponse:
        await self._reload(request.config)
        return model_management_pb2.ReloadConfigResponse()


def _status_name(outcome: Any, deadline: float | None) -> str:
    """Of a call that ended with an answer or an error, as the metrics count it."""
    if not isinstance(outcome, BaseException):
        return grpc.StatusCode.OK.name
    if isinstance(outcome, ServingError):
        return outcome.code.name
    if isinstance(outcome, CancelledError | asyncio.CancelledError):
        expired = deadline is not None and time.monotonic() >= deadline
        return (grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED).name
    return grpc.StatusCode.UNKNOWN.name


def _in_loop(loop: asyncio.AbstractEventLoop, answer: _Answer, kind: type[Message]) -> Handler:
    """Has calls answered by a coroutine, which is cancelled when its client is gone."""

    async def serve(message: bytes, call: Call) -> None:
        try:
            request = await aside(len(message) > LARGE_BYTES, decoded, message, kind)
            response = await answer(request, call.deadline)
            call.answer(response.SerializeToString())
        except asyncio.CancelledError:
            call.refuse(grpc.StatusCode.CANCELLED, "")
            raise
        except Exception as error:  # process boundary: `fail` logs what is no ServingError
            call.fail(error)

    def handle(message: bytes, call: Call) -> None:
        running = asyncio.run_coroutine_threadsafe(serve(message, call), loop)
        call.when_over(running.cancel)

    return handle
