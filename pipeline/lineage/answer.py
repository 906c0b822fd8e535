"""What the JSON of an answer says about the version that gave it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.metadata.store import MetadataError

_WITHOUT_VERSION = ("predictions", "outputs", "results", "result")  # REST
_INSTEAD = (
    "Use an answer that does: that of `csmf recommend --json`, a PredictResponse over gRPC "
    "written as JSON (its model_spec has the version), or GET /v1/models/MODEL/metadata of the "
    "same server. Or name the version that was served then: --version N."
)


@dataclass(frozen=True)
class Answer:
    """Where an answer came from; None for what it does not say.

    Attributes:
      model: served name.
      version: its number.
      model_id: of the manifest.
    """

    model: str | None
    version: int | None
    model_id: str | None


def parse_answer(text: str) -> Answer:
    """Reads a PredictResponse as JSON, or the output of `csmf recommend --json`.

    Args:
      text: JSON.

    Raises:
      MetadataError: no JSON, or nothing in it tells the version.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise MetadataError(f"the answer is no JSON ({error}). {_INSTEAD}") from error
    if not isinstance(content, dict):
        raise MetadataError(f"the answer is no JSON object but {_kind(content)}. {_INSTEAD}")
    spec = content.get("modelSpec", content.get("model_spec"))
    source: Mapping[str, Any] = spec if isinstance(spec, dict) else content
    model = source.get("name") if source is spec else source.get("model")
    model_id = content.get("model_id", content.get("modelId"))
    answer = Answer(
        model=model if isinstance(model, str) and model else None,
        version=_version(source.get("version")),
        model_id=model_id if isinstance(model_id, str) and model_id else None,
    )
    if answer.version is None and answer.model_id is None:
        rest = [key for key in _WITHOUT_VERSION if key in content]
        what = (
            f"a REST answer ({rest[0]!r}) carries no version."
            if rest
            else f"the answer carries no version; its keys are {', '.join(content) or 'none'}."
        )
        raise MetadataError(f"{what} {_INSTEAD}")
    return answer


def _version(value: Any) -> int | None:
    """3, "3" or {"value": "3"}, as the JSON of protocol buffers and others write it.

    Raises:
      MetadataError: something else is given as the version.
    """
    if isinstance(value, dict):
        value = value.get("value")
    if value is None:
        return None
    if isinstance(value, bool) or not str(value).isdecimal():
        raise MetadataError(f"the answer's version is {value!r}; a whole number was expected.")
    return int(value)


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else repr(value)
