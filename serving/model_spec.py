"""Which model a request asks for, and which one has answered."""

from __future__ import annotations

import functools
from typing import Any

from tensorflow_serving.apis import model_pb2

from serving.errors import invalid_argument


def model_key(request: Any) -> tuple[str, int | None, str | None]:
    """Returns name, version and label of a request's ModelSpec.

    Raises:
      ServingError: INVALID_ARGUMENT, there is no ModelSpec or no name in it.
    """
    require_spec(request)
    spec = request.model_spec
    if not spec.name:
        raise invalid_argument("ModelSpec has no name specified.")
    choice = spec.WhichOneof("version_choice")
    version = spec.version.value if choice == "version" else None
    label = spec.version_label if choice == "version_label" else None
    return spec.name, version, label


@functools.lru_cache(maxsize=256)
def answer_spec(model: str, version: int, signature: str = "") -> bytes:
    """The serialised ModelSpec of an answer; every Predict call needs one.

    Args:
      model, version: what has answered.
      signature: what of it was run, if anything was.
    """
    spec = model_pb2.ModelSpec(name=model, signature_name=signature)
    spec.version.value = version
    return spec.SerializeToString()


def require_spec(request: Any) -> None:
    """Raises:
    ServingError: INVALID_ARGUMENT, the request has no ModelSpec.
    """
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
