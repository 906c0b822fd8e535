"""The parts of a Predict call, with TensorFlow Serving's checks in its order: find the signature,
decode the inputs, choose the outputs; then, when the graph has run, encode the response."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import grpc

from serving import tensors, wire
from serving.errors import ServingError, invalid_argument
from serving.model_spec import answer_spec
from serving.servable import Servable, Signature

DEFAULT_SIGNATURE = "serving_default"
PREDICT_METHOD = "tensorflow/serving/predict"
API = "Predict"  # in the metrics


def find_signature(servable: Servable, key: str) -> Signature:
    """The signature of this name, `serving_default` for "".

    Raises:
      ServingError: FAILED_PRECONDITION, there is none.
    """
    signature = servable.signatures.get(key or DEFAULT_SIGNATURE)
    if signature is None:
        raise ServingError(
            grpc.StatusCode.FAILED_PRECONDITION,
            f'Serving signature key "{key or DEFAULT_SIGNATURE}" not found.',
        )
    return signature


def check_method(signature: Signature, call: str, expected: str) -> None:
    """Refuses signatures exported for another call (--enable_signature_method_name_check).

    Raises:
      ServingError: INVALID_ARGUMENT.
    """
    if signature.method_name != expected:
        raise invalid_argument(
            f"Expected {call} signature method_name to be {expected}. Was: {signature.method_name}"
        )


def decode_inputs(signature: Signature, inputs: Mapping[str, Any]) -> dict[str, tensors.Array]:
    """Decodes a request's inputs and fills in the signature's defaults.

    Args:
      signature: what is called.
      inputs: alias -> TensorProto.

    Returns:
      alias -> value for every input of the signature.

    Raises:
      ServingError: INVALID_ARGUMENT, the names or a tensor are wrong.
    """
    check_names(signature, inputs)
    feeds = dict(signature.defaults)
    for alias in inputs:
        try:
            feeds[alias] = tensors.to_array(inputs[alias])
        except tensors.TensorParseError as error:
            raise invalid_argument(f"tensor parsing error: {alias}") from error
    return feeds


def check_names(signature: Signature, sent: Iterable[str]) -> None:
    """Checks that a request names the inputs of the signature, save for those with a default.

    Raises:
      ServingError: INVALID_ARGUMENT.
    """
    known = signature.inputs.keys()
    names = set(sent)
    if signature.required <= names <= known:
        return
    if len(names) > len(known) or (len(names) < len(known) and not signature.defaults):
        missing = known - names - signature.defaults.keys()
        raise invalid_argument(
            f"input size does not match signature: {len(names)}!={len(known)} "
            f"len({{{_list(names)}}}) != len({{{_list(known)}}}). "
            f"Sent extra: {{{_list(names - known)}}}. Missing but required: {{{_list(missing)}}}."
        )
    for alias, info in signature.inputs.items():
        if alias not in names and alias not in signature.defaults:
            raise invalid_argument(
                f"Signature input alias: {alias}(feed name: {info.name}) "
                "not found in request and no default value provided. Inputs expected to be in the "
                f"request {{{_list(names)}}}, or default input alias set: "
                f"{_list(signature.defaults)}"
            )
    raise invalid_argument(
        f"Inputs contains invalid name. Used request inputs: {_list(names & known)}, "
        f"request input: {_list(names)}"
    )


def select_outputs(signature: Signature, output_filter: Sequence[str]) -> list[str]:
    """The aliases to answer with: those of the filter, all without one.

    Raises:
      ServingError: INVALID_ARGUMENT, an alias is unknown or repeated.
    """
    known = signature.outputs
    if not output_filter:
        return list(known)
    aliases: list[str] = []
    for alias in output_filter:
        if alias not in known:
            raise invalid_argument(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in "
                f"the set {{{_list(known)}}}."
            )
        if alias in aliases:
            raise invalid_argument(f"duplicate output tensor alias: {alias}")
        aliases.append(alias)
    return aliases


def respond(
    servable: Servable, signature: Signature, outputs: Sequence[str], results: Sequence[Any]
) -> bytes:
    """The serialised PredictResponse that carries `results`, the values of `outputs`.

    Raises:
      ServingError: UNIMPLEMENTED, a dtype has no encoding.
    """
    spec = answer_spec(servable.name, servable.version, signature.name)
    try:
        return wire.predict_response(spec, zip(outputs, results, strict=True))
    except TypeError as error:
        raise ServingError(grpc.StatusCode.UNIMPLEMENTED, str(error)) from error


def _list(names: Iterable[str]) -> str:
    return ",".join(sorted(names))
