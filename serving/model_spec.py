"""Which model a request asks for."""

from __future__ import annotations

from typing import Any

import grpc

from serving.errors import ServingError


def model_key(request: Any) -> tuple[str, int | None, str | None]:
    """Returns name, version and label of a request's ModelSpec.

    Raises:
      ServingError: INVALID_ARGUMENT, there is no ModelSpec or no name in it.
    """
    require_spec(request)
    spec = request.model_spec
    if not spec.name:
        raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, "ModelSpec has no name specified.")
    choice = spec.WhichOneof("version_choice")
    version = spec.version.value if choice == "version" else None
    label = spec.version_label if choice == "version_label" else None
    return spec.name, version, label


def require_spec(request: Any) -> None:
    """Raises:
    ServingError: INVALID_ARGUMENT, the request has no ModelSpec.
    """
    if not request.HasField("model_spec"):
        raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, "Missing ModelSpec")
