"""The Predict call: checks in TensorFlow Serving's order, then decode, run, encode."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
import numpy as np
from tensorflow_serving.apis import predict_pb2

from serving import tensors
from serving.errors import ServingError
from serving.servable import Servable, Signature

DEFAULT_SIGNATURE = "serving_default"


def predict(
    servable: Servable, request: predict_pb2.PredictRequest, timeout_ms: int | None
) -> predict_pb2.PredictResponse:
    """Answers a request with a servable that the caller has acquired.

    Raises:
      ServingError: status and text as TensorFlow Serving 2.16 gives them.
    """
    key = request.model_spec.signature_name or DEFAULT_SIGNATURE
    signature = servable.signatures.get(key)
    if signature is None:
        raise ServingError(
            grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{key}" not found.'
        )
    feeds = _feeds(signature, request.inputs)
    aliases, fetches = _fetches(signature, request.output_filter)
    results = servable.run(feeds, fetches, timeout_ms)
    return _response(servable, key, aliases, results)


def _invalid(message: str) -> ServingError:
    return ServingError(grpc.StatusCode.INVALID_ARGUMENT, message)


def _names(names: Iterable[str]) -> str:
    return ",".join(sorted(names))


def _feeds(signature: Signature, inputs: Any) -> dict[Any, tensors.Array]:
    known = signature.feeds
    if len(inputs) > len(known) or (len(inputs) < len(known) and not signature.defaults):
        extra = set(inputs) - known.keys()
        missing = known.keys() - set(inputs) - signature.defaults.keys()
        raise _invalid(
            f"input size does not match signature: {len(inputs)}!={len(known)} "
            f"len({{{_names(inputs)}}}) != len({{{_names(known)}}}). "
            f"Sent extra: {{{_names(extra)}}}. Missing but required: {{{_names(missing)}}}."
        )
    feeds: dict[Any, tensors.Array] = {}
    used = 0
    for alias, handle in known.items():
        if alias in inputs:
            used += 1
        elif alias in signature.defaults:
            feeds[handle] = signature.defaults[alias]
        else:
            raise _invalid(
                f"Signature input alias: {alias}(feed name: {signature.feed_names[alias]}) "
                "not found in request and no default value provided. Inputs expected to be in the "
                f"request {{{_names(inputs)}}}, or default input alias set: "
                f"{_names(signature.defaults)}"
            )
    if used != len(inputs):
        used_names = _names(set(inputs) & known.keys())
        raise _invalid(
            f"Inputs contains invalid name. Used request inputs: {used_names}, "
            f"request input: {_names(inputs)}"
        )
    for alias, proto in inputs.items():
        try:
            feeds[known[alias]] = tensors.to_array(proto)
        except tensors.TensorParseError as error:
            raise _invalid(f"tensor parsing error: {alias}") from error
    return feeds


def _fetches(signature: Signature, output_filter: Any) -> tuple[list[str], list[Any]]:
    known = signature.fetches
    if not output_filter:
        return list(known), list(known.values())
    aliases: list[str] = []
    for alias in output_filter:
        if alias not in known:
            raise _invalid(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in "
                f"the set {{{_names(known)}}}."
            )
        if alias in aliases:
            raise _invalid(f"duplicate output tensor alias: {alias}")
        aliases.append(alias)
    return aliases, [known[alias] for alias in aliases]


def _response(
    servable: Servable, key: str, aliases: list[str], results: list[tensors.Array]
) -> predict_pb2.PredictResponse:
    response = predict_pb2.PredictResponse()
    spec = response.model_spec
    spec.name = servable.name
    spec.version.value = servable.version
    spec.signature_name = key
    for alias, result in zip(aliases, results, strict=True):
        try:
            tensors.fill_proto(np.asarray(result), response.outputs[alias])
        except TypeError as error:
            raise ServingError(
                grpc.StatusCode.UNIMPLEMENTED, f"output {alias} cannot be sent: {error}"
            ) from error
    return response
