"""The REST interface over HTTP: paths, methods and status codes of TensorFlow Serving 2.16.

Sources: model_servers/http_server.cc, http_rest_api_handler.cc, http_rest_api_util.cc.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import urllib.parse
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import grpc
from aiohttp import web
from aiohttp.http import HttpProcessingError
from google.protobuf import json_format
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    regression_pb2,
)

from serving import inference, model_info, predict
from serving.aside import LARGE_BYTES, aside
from serving.engine import Engine
from serving.errors import ServingError, invalid_argument
from serving.rest import json_examples, json_tensor, json_text
from serving.servable import Servable, Signature

_LOG = logging.getLogger(__name__)

_ENTRYPOINT = "REST"
_SIGNATURE_DEF = "signature_def"
_MAX_BODY_BYTES = 2**28
_LARGE_ANSWER_ELEMENTS = 20_000  # encoding more is long work
_MAX_INT64 = 2**63 - 1
_INT64_DIGITS = 19

_MODEL = r"/([^/:]+)"
_VERSION = r"(?:/versions/(\d+)|/labels/([^/:]+))?"
_FLAGS = re.IGNORECASE | re.ASCII
_POST_PATH = re.compile(rf"/v1/models{_MODEL}{_VERSION}:(classify|regress|predict)", _FLAGS)
_GET_PATH = re.compile(rf"/v1/models(?:{_MODEL})?{_VERSION}(?:/(metadata))?", _FLAGS)
_CORS_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}
_NOT_FOUND_PAGE = (
    "<HTML><HEAD>\n<TITLE>404 Not Found</TITLE>\n</HEAD>"
    "<BODY>\n<H1>Not Found</H1>\n</BODY></HTML>\n"
)
# The type stubs of protobuf know only the names these have since protobuf 5.
_JSON_FORMAT: dict[str, Any] = {
    "preserving_proto_field_name": True,
    "including_default_value_fields": True,
}

_HTTP_STATUS: dict[grpc.StatusCode, int] = {
    grpc.StatusCode.OK: HTTPStatus.OK,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNKNOWN: HTTPStatus.INTERNAL_SERVER_ERROR,
    grpc.StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
    grpc.StatusCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS: HTTPStatus.CONFLICT,
    grpc.StatusCode.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    grpc.StatusCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    grpc.StatusCode.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    grpc.StatusCode.FAILED_PRECONDITION: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.ABORTED: HTTPStatus.CONFLICT,
    grpc.StatusCode.OUT_OF_RANGE: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.UNIMPLEMENTED: HTTPStatus.NOT_IMPLEMENTED,
    grpc.StatusCode.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
    grpc.StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS: HTTPStatus.INTERNAL_SERVER_ERROR,
}


def make_app(engine: Engine) -> web.Application:
    """The application that serves `engine`, to be run in the engine's event loop."""
    logging.getLogger("aiohttp.server").addFilter(_is_worth_logging)
    app = web.Application(client_max_size=_MAX_BODY_BYTES)
    app.router.add_route("*", r"/{path:[\s\S]*}", _RestApi(engine).handle)
    return app


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """False for what aiohttp answers with 400: anyone can fill the log with requests that are no
    HTTP, a traceback each."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


@dataclass(frozen=True)
class _Target:
    """What the path of a request names; `call` is "status" or "metadata" for GET."""

    model: str
    version: int | None
    label: str | None
    call: str


def _parse_path(method: str, path: str) -> _Target:
    """Raises:
    ServingError: INVALID_ARGUMENT, there is nothing at this path for this method.
    """
    pattern = {"POST": _POST_PATH, "GET": _GET_PATH}.get(method)
    match = pattern.fullmatch(path) if pattern else None
    if match is None:
        raise invalid_argument(f"Malformed request: {method} {path}")
    model, version, label, call = match.groups()
    if version and (len(version.lstrip("0")) > _INT64_DIGITS or int(version) > _MAX_INT64):
        raise invalid_argument(f"Failed to convert version: {version} to numeric.")
    if method == "GET":
        # The pattern ignores case, but the names of the calls themselves do not.
        call = "metadata" if call == "metadata" else "status"
        if not model:
            raise invalid_argument("Missing model name in request.")
    elif call != call.lower():
        raise invalid_argument(f"Malformed request: {method} {path}")
    return _Target(
        urllib.parse.unquote(model),
        int(version) if version else None,
        urllib.parse.unquote(label) if label else None,
        call,
    )


class _RestApi:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._options = engine.options
        self._running = 0

    async def handle(self, request: web.Request) -> web.Response:
        path = request.rel_url.raw_path_qs
        if path == self._options.metrics_path:
            page = await asyncio.to_thread(self._engine.metrics.page)
            return web.Response(body=page, content_type="text/plain")
        if not path.lower().startswith("/v1/"):
            return web.Response(
                text=_NOT_FOUND_PAGE, status=HTTPStatus.NOT_FOUND, content_type="text/html"
            )
        headers = _CORS_HEADERS if self._options.cors else None
        if request.method == "OPTIONS":
            has_origin = re.search("https?://", request.headers.get("Origin", ""))
            status = HTTPStatus.OK if has_origin else HTTPStatus.BAD_REQUEST
            return web.Response(status=status, headers=headers)
        code, body = await self._answer(request, path)
        return web.Response(
            body=body,
            status=_HTTP_STATUS[code],
            headers=headers,
            content_type="application/json",
        )

    async def _answer(self, request: web.Request, path: str) -> tuple[grpc.StatusCode, bytes]:
        started = time.monotonic()
        model = api = ""
        code = grpc.StatusCode.OK
        try:
            target = _parse_path(request.method, path)
            model = target.model
            if request.method == "GET":
                body = self._describe(target)
            else:
                api = target.call
                body = await self._call(target, await _read(request), started)
        except ServingError as error:
            code = error.code
            body = _error_body(error.message)
        except UnicodeEncodeError:
            code = grpc.StatusCode.INVALID_ARGUMENT
            body = _error_body("A name in the request is not valid UTF-8")
        # Process boundary: the fault of one request must not close the connection of others.
        except Exception as error:
            _LOG.exception("%s %s failed", request.method, path)
            code = grpc.StatusCode.INTERNAL
            body = _error_body(f"{type(error).__name__}: {error}")
        seconds = time.monotonic() - started
        self._engine.metrics.request(model, api, _ENTRYPOINT, code.name, seconds)
        return code, body

    async def _call(self, target: _Target, body: bytes, started: float) -> bytes:
        if self._running >= self._options.max_concurrent_calls:
            raise ServingError(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "Concurrent call limit exceeded!"
            )
        timeout = self._options.rest_timeout_seconds
        deadline = started + timeout if timeout > 0 else None
        self._running += 1
        try:
            large = len(body) > LARGE_BYTES
            document = await aside(large, json_text.parse, body)
            signature_name = _signature_name(document)
            if target.call == "predict":
                return await self._predict(target, document, signature_name, large, deadline)
            return await self._infer(target, document, signature_name, deadline)
        finally:
            self._running -= 1

    async def _predict(
        self,
        target: _Target,
        document: dict[str, Any],
        signature_name: str,
        large: bool,
        deadline: float | None,
    ) -> bytes:
        engine = self._engine
        with engine.versions.lease(target.model, target.version, target.label) as servable:
            signature = _find_signature(servable, signature_name)
            feeds, form = await aside(large, json_tensor.decode, document, signature.inputs)
            if self._options.check_method_names:
                predict.check_method(signature, "predict", predict.PREDICT_METHOD)
            predict.check_names(signature, feeds)
            outputs = predict.select_outputs(signature, ())
            results = await engine.run(
                servable,
                signature,
                {**signature.defaults, **feeds},
                outputs,
                deadline,
                predict.API,
            )
        large = sum(result.size for result in results) > _LARGE_ANSWER_ELEMENTS
        named = dict(zip(outputs, results, strict=True))
        return await aside(large, json_tensor.encode, named, form)

    async def _infer(
        self,
        target: _Target,
        document: dict[str, Any],
        signature_name: str,
        deadline: float | None,
    ) -> bytes:
        spec = _model_spec(target)
        spec.signature_name = signature_name
        if target.call == "classify":
            classify = classification_pb2.ClassificationRequest(model_spec=spec)
            json_examples.fill_input(document, classify.input)
            answer = await inference.classify(self._engine, classify, deadline)
            return json_examples.classifications(answer.result)
        regress = regression_pb2.RegressionRequest(model_spec=spec)
        json_examples.fill_input(document, regress.input)
        numbers = await inference.regress(self._engine, regress, deadline)
        return json_examples.regressions(numbers.result)

    def _describe(self, target: _Target) -> bytes:
        spec = _model_spec(target)
        if target.call == "status":
            status = model_info.status(
                self._engine.versions,
                get_model_status_pb2.GetModelStatusRequest(model_spec=spec),
            )
            return _proto_json(status).encode()
        metadata = model_info.metadata(
            self._engine.versions,
            get_model_metadata_pb2.GetModelMetadataRequest(
                model_spec=spec, metadata_field=[_SIGNATURE_DEF]
            ),
        )
        signatures = get_model_metadata_pb2.SignatureDefMap()
        metadata.metadata[_SIGNATURE_DEF].Unpack(signatures)
        return (
            f'{{\n"model_spec":{_proto_json(metadata.model_spec)},\n'
            f'"metadata": {{"signature_def": {_proto_json(signatures)}}}\n}}\n'
        ).encode()


async def _read(request: web.Request) -> bytes:
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise invalid_argument(f"The request body is larger than {_MAX_BODY_BYTES} bytes") from None
    except web.RequestPayloadError:
        return b""  # compressed data that is none; no body either for TensorFlow Serving
    except ConnectionError:
        raise ServingError(grpc.StatusCode.CANCELLED, "The client closed the connection") from None


def _signature_name(document: dict[str, Any]) -> str:
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid_argument(
            f"JSON Value: {json_text.quote(document)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    return name


def _find_signature(servable: Servable, name: str) -> Signature:
    """Not the codes and texts of the same failure in gRPC."""
    key = name or predict.DEFAULT_SIGNATURE
    if key not in servable.signature_defs:
        raise invalid_argument(f'Serving signature name: "{key}" not found in signature def')
    signature = servable.signatures.get(key)
    if signature is None or not signature.inputs:
        raise invalid_argument(f"Failed to get input map for signature: {name or 'DEFAULT'}")
    return signature


def _model_spec(target: _Target) -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec(name=target.model)
    if target.version is not None:
        spec.version.value = target.version
    elif target.label is not None:
        spec.version_label = target.label
    return spec


def _error_body(message: str) -> bytes:
    return json_text.dump({"error": message})


def _proto_json(message: Any) -> str:
    return json_format.MessageToJson(message, **_JSON_FORMAT)
