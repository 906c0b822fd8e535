"""What a server tells about its models: status of the versions and signatures."""

from __future__ import annotations

from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

from serving.errors import invalid_argument
from serving.model_spec import answer_spec, model_key, require_spec
from serving.versions import VersionManager

_SIGNATURE_DEF = "signature_def"


def metadata(
    versions: VersionManager, request: get_model_metadata_pb2.GetModelMetadataRequest
) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """All signatures of a version (get_model_metadata.proto).

    Raises:
      ServingError: the request is incomplete, asks for another field, or for an unknown model.
    """
    require_spec(request)
    if not request.metadata_field:
        raise invalid_argument("GetModelMetadataRequest must specify at least one metadata_field")
    for field in request.metadata_field:
        if field != _SIGNATURE_DEF:
            raise invalid_argument(f"Metadata field {field} is not supported")
    name, version, label = model_key(request)
    with versions.lease(name, version, label) as servable:
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for key, definition in servable.signature_defs.items():
            signatures.signature_def[key].CopyFrom(definition)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.ParseFromString(answer_spec(servable.name, servable.version))
        response.metadata[_SIGNATURE_DEF].Pack(signatures)
        return response


def status(
    versions: VersionManager, request: get_model_status_pb2.GetModelStatusRequest
) -> get_model_status_pb2.GetModelStatusResponse:
    """State of the versions of a model, newest first (get_model_status.proto).

    Raises:
      ServingError: INVALID_ARGUMENT without a ModelSpec, NOT_FOUND.
    """
    require_spec(request)
    spec = request.model_spec
    # A label is ignored by this call, as in TensorFlow Serving.
    version = spec.version.value if spec.HasField("version") else None
    response = get_model_status_pb2.GetModelStatusResponse()
    for known in versions.statuses(spec.name, version):
        entry = response.model_version_status.add(version=known.version, state=int(known.state))
        entry.status.error_code = known.error_code
        entry.status.error_message = known.error_message
    return response
