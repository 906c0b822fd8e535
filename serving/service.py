"""The gRPC services `PredictionService` and `ModelService` of TensorFlow Serving.

`prediction_service_pb2` and `model_service_pb2` cannot be imported with protobuf's upb runtime;
the `_grpc` modules and the message modules can, and hold all that is needed.
"""

from __future__ import annotations

from typing import Any, NoReturn

import grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving.errors import ServingError, details
from serving.predict import predict
from serving.versions import VersionManager, VersionStatus

_SIGNATURE_DEF = "signature_def"
# A call without a deadline reports an absurdly distant one, depending on the grpcio release.
_NO_DEADLINE_SECONDS = 10 * 365 * 24 * 3600.0


def _abort(context: grpc.ServicerContext, error: ServingError) -> NoReturn:
    context.abort(error.code, details(error.message))
    raise AssertionError("unreachable: abort raises") from error


def _timeout_ms(context: grpc.ServicerContext) -> int | None:
    """Time left for this call, None without a deadline.

    Raises:
      ServingError: CANCELLED or DEADLINE_EXCEEDED, nobody waits for the answer any more. Calls
        may have queued for a worker that long.
    """
    if not context.is_active():
        raise ServingError(grpc.StatusCode.CANCELLED, "the client cancelled the call")
    remaining = context.time_remaining()
    if remaining is None or remaining > _NO_DEADLINE_SECONDS:
        return None
    if remaining <= 0:
        raise ServingError(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
    return max(int(remaining * 1000), 1)


def _model_key(request: Any) -> tuple[str, int | None, str | None]:
    """Returns name, version and label of a request's ModelSpec.

    Raises:
      ServingError: INVALID_ARGUMENT, there is no ModelSpec or no name in it.
    """
    _require_spec(request)
    spec = request.model_spec
    if not spec.name:
        raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, "ModelSpec has no name specified.")
    choice = spec.WhichOneof("version_choice")
    version = spec.version.value if choice == "version" else None
    label = spec.version_label if choice == "version_label" else None
    return spec.name, version, label


def _require_spec(request: Any) -> None:
    if not request.HasField("model_spec"):
        raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, "Missing ModelSpec")


def _unimplemented(context: grpc.ServicerContext, method: str) -> NoReturn:
    _abort(
        context,
        ServingError(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not supported by this server."),
    )


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata; the tf.Example based calls answer UNIMPLEMENTED."""

    def __init__(self, versions: VersionManager) -> None:
        self._versions = versions

    def Predict(  # noqa: D102 (named by the protocol)
        self, request: predict_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> predict_pb2.PredictResponse:
        try:
            name, version, label = _model_key(request)
            with self._versions.lease(name, version, label) as servable:
                return predict(servable, request, _timeout_ms(context))
        except ServingError as error:
            _abort(context, error)

    def GetModelMetadata(  # noqa: D102 (named by the protocol)
        self,
        request: get_model_metadata_pb2.GetModelMetadataRequest,
        context: grpc.ServicerContext,
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        try:
            return self._metadata(request)
        except ServingError as error:
            _abort(context, error)

    def _metadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        _require_spec(request)
        if not request.metadata_field:
            raise ServingError(
                grpc.StatusCode.INVALID_ARGUMENT,
                "GetModelMetadataRequest must specify at least one metadata_field",
            )
        for metadata_field in request.metadata_field:
            if metadata_field != _SIGNATURE_DEF:
                raise ServingError(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"Metadata field {metadata_field} is not supported",
                )
        name, version, label = _model_key(request)
        with self._versions.lease(name, version, label) as servable:
            signatures = get_model_metadata_pb2.SignatureDefMap()
            for key, definition in servable.signature_defs.items():
                signatures.signature_def[key].CopyFrom(definition)
            response = get_model_metadata_pb2.GetModelMetadataResponse()
            response.model_spec.name = servable.name
            response.model_spec.version.value = servable.version
            response.metadata[_SIGNATURE_DEF].Pack(signatures)
            return response

    def Classify(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: D102
        _unimplemented(context, "Classify")

    def Regress(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: D102
        _unimplemented(context, "Regress")

    def MultiInference(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: D102
        _unimplemented(context, "MultiInference")


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus; the configuration cannot be replaced over the network."""

    def __init__(self, versions: VersionManager) -> None:
        self._versions = versions

    def GetModelStatus(  # noqa: D102 (named by the protocol)
        self,
        request: get_model_status_pb2.GetModelStatusRequest,
        context: grpc.ServicerContext,
    ) -> get_model_status_pb2.GetModelStatusResponse:
        try:
            _require_spec(request)
            spec = request.model_spec
            # A label is ignored by this call, as in TensorFlow Serving.
            version = spec.version.value if spec.HasField("version") else None
            statuses = self._versions.statuses(spec.name, version)
        except ServingError as error:
            _abort(context, error)
        response = get_model_status_pb2.GetModelStatusResponse()
        for status in statuses:
            _fill_status(status, response.model_version_status.add())
        return response

    def HandleReloadConfigRequest(  # noqa: D102
        self, request: Any, context: grpc.ServicerContext
    ) -> Any:
        _unimplemented(context, "HandleReloadConfigRequest")


def _fill_status(status: VersionStatus, proto: Any) -> None:
    proto.version = status.version
    proto.state = int(status.state)
    proto.status.error_code = status.error_code
    proto.status.error_message = status.error_message
