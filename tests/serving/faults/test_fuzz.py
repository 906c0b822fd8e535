"""Random bytes and mutated messages at both ports of a batching server: 21,000 seeded cases.

The right status of each is worked out from what was sent, by the rules of TensorFlow Serving 2.16:
undecodable messages are INTERNAL, as from any gRPC server in C++; whatever decodes is answered or
refused by the checks of the call. Nothing is UNKNOWN, UNAVAILABLE or 500, nothing raises in the
server, and good calls in between, which may share a batch with bad ones, are answered right.
"""

from __future__ import annotations

import base64
import gzip
import json
import random
import re
import socket
import urllib.parse
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    regression_pb2,
)

pytestmark = pytest.mark.slow

GRPC_CASES, REST_CASES = 12_500, 8_500
WINDOW = 50  # calls at the same time
SEED = 4

OK, INTERNAL = grpc.StatusCode.OK, grpc.StatusCode.INTERNAL
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
PRECONDITION, UNIMPLEMENTED = (
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNIMPLEMENTED,
)
RUN = frozenset({OK, INVALID})  # all names are right: the graph decides

# Signature -> names of its inputs, of those with a default, and of its outputs.
Signatures = dict[str, tuple[set[str], set[str], set[str]]]


@pytest.fixture(scope="module")
def infer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model for Classify, Regress and MultiInference."""
    path = tmp_path_factory.mktemp("models") / "infer"
    module = tf.Module()

    def parse(inputs: tf.Tensor) -> tf.Tensor:
        features = {"x": tf.io.FixedLenFeature([], tf.float32, 1.0)}
        return tf.io.parse_example(inputs, features)["x"][:, None] / 2.0 + 2.0

    examples = [tf.TensorSpec([None], tf.string, name="inputs")]
    signatures = {
        "serving_default": tf.function(lambda inputs: {"outputs": parse(inputs)}, examples),
        "classify": tf.function(lambda inputs: {"scores": parse(inputs)}, examples),
    }
    tf.saved_model.save(module, str(path), signatures=signatures)
    return path


@pytest.fixture
def server(
    start_process: Any, zoo: Path, recommender: Path, infer: Path, publish: Any, tmp_path: Path
) -> Any:
    """All models, batched; as a process, because that is what must not die."""
    models = {"zoo": zoo, "recommender": recommender, "infer": infer}
    for name, model in models.items():
        publish(model, tmp_path / "models" / name, 1)
    return start_process({n: tmp_path / "models" / n for n in models}, "--enable_batching")


# --- gRPC: what is right ------------------------------------------------------------------------


def signatures_of(caller: Any, model: str) -> Signatures:
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = model
    served = get_model_metadata_pb2.SignatureDefMap()
    caller.call("GetModelMetadata", request).metadata["signature_def"].Unpack(served)
    return {
        name: (set(definition.inputs), set(definition.defaults), set(definition.outputs))
        for name, definition in served.signature_def.items()
        if name != "__saved_model_init_op"
    }


class Rules:
    """The acceptable statuses of a call to a server of these models, all in version 1."""

    def __init__(self, served: dict[str, Signatures], base: Path) -> None:
        self._served = served
        self._base = base

    def of(self, method: str, request: Any) -> frozenset[grpc.StatusCode]:
        """Empty for a request that must not be sent: it would rightly change what is served."""
        statuses = getattr(self, f"_{method.lower()}")(request)
        return statuses if isinstance(statuses, frozenset) else frozenset({statuses})

    def _spec(self, request: Any) -> grpc.StatusCode | None:
        """Why the model is not found, or None."""
        spec = request.model_spec
        if not request.HasField("model_spec") or not spec.name:
            return INVALID
        if spec.WhichOneof("version_choice") == "version_label":
            return INVALID
        version = spec.version.value if spec.HasField("version") else 1
        return None if spec.name in self._served and version == 1 else NOT_FOUND

    def _predict(self, request: Any) -> Any:
        if refused := self._spec(request):
            return refused
        signatures = self._served[request.model_spec.name]
        found = signatures.get(request.model_spec.signature_name or "serving_default")
        if found is None:
            return PRECONDITION
        inputs, defaults, outputs = found
        sent, filtered = set(request.inputs), list(request.output_filter)
        if not inputs - defaults <= sent <= inputs:
            return INVALID
        if not set(filtered) <= outputs or len(set(filtered)) < len(filtered):
            return INVALID
        return RUN

    def _classify(self, request: Any) -> Any:
        return self._spec(request) or (RUN if request.model_spec.name == "infer" else INVALID)

    _regress = _classify

    def _multiinference(self, request: Any) -> Any:
        if not request.tasks:
            return INVALID
        if refused := self._spec(request.tasks[0]):
            return refused
        if request.tasks[0].model_spec.name != "infer":
            return frozenset({INVALID, UNIMPLEMENTED})
        return RUN | {UNIMPLEMENTED}

    def _getmodelmetadata(self, request: Any) -> Any:
        if not request.HasField("model_spec") or set(request.metadata_field) != {"signature_def"}:
            return INVALID
        return self._spec(request) or OK

    def _getmodelstatus(self, request: Any) -> Any:
        spec = request.model_spec
        if not request.HasField("model_spec"):
            return INVALID
        version = spec.version.value if spec.HasField("version") else 1
        return OK if spec.name in self._served and version == 1 else NOT_FOUND

    def _handlereloadconfigrequest(self, request: Any) -> Any:
        if request.config.WhichOneof("config") != "model_config_list":
            return INVALID
        configs = request.config.model_config_list.config
        names = [config.name for config in configs]
        if len(set(names)) < len(names):
            return INVALID
        unchanged = {
            config.name
            for config in configs
            if config == model_config(self._base, config.name) and config.name in self._served
        }
        if unchanged == set(self._served) == set(names):
            return OK
        return frozenset()


def model_config(base: Path, name: str) -> Any:
    from tensorflow_serving.config.model_server_config_pb2 import ModelConfig

    return ModelConfig(name=name, base_path=str(base / name), model_platform="tensorflow")


# --- gRPC: what is sent -------------------------------------------------------------------------


def spec(message: Any, name: str, signature: str = "") -> Any:
    message.model_spec.name = name
    message.model_spec.signature_name = signature
    return message


def examples(*values: float) -> Any:
    from tensorflow_serving.apis.input_pb2 import Input

    inputs = Input()
    for value in values:
        example = inputs.example_list.examples.add()
        example.features.feature["x"].float_list.value.append(value)
    return inputs


def good_messages(ask: Callable[..., Any], base: Path) -> list[tuple[str, Any]]:
    user = {"user_id": [b"u"], "exclude_item_ids": [[b"x", b"y"]]}
    history = {"history_item_ids": [[b"i"]], "history_levels": tf.constant([[1]], tf.int64)}
    history["history_levels"] = tf.make_tensor_proto([[1]], tf.int64)
    bits = tf.make_tensor_proto([1.0, 2.0], tf.float16)
    metadata = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    both = inference_pb2.MultiInferenceRequest(input=examples(1.0, 2.0))
    spec(both.tasks.add(method_name="tensorflow/serving/regress"), "infer")
    spec(both.tasks.add(method_name="tensorflow/serving/classify"), "infer", "classify")
    reload = model_management_pb2.ReloadConfigRequest()
    reload.config.model_config_list.config.extend(
        model_config(base, name) for name in ("zoo", "recommender", "infer")
    )
    predicts = [
        ask("zoo", {"x": [2.0, 3.0]}),
        ask("zoo", {"x": [2.0]}, "two_outputs", 1, ("z",)),
        ask("zoo", {"x": [[1.0, 2.0]]}, "matmul"),
        ask("zoo", {"s": [b"\xff\x00", b"1"]}, "text"),
        ask("zoo", {"s": [b"1.5"]}, "to_number"),
        ask("zoo", {"x": bits}, "half"),
        ask("zoo", {"x": [1.0], "scale": [2.0]}, "scaled"),
        ask("zoo", {"x": 1.0}, "scalar"),
        ask("recommender", user),
        ask("recommender", user | history, outputs=("scores",)),
        ask("recommender", {"user_id": [b"a", b"b"]}, "embed_user"),
        ask("recommender", {"item_ids": [[b"a"]]}, "item_titles"),
    ]
    return [
        *(("Predict", request) for request in predicts),
        (
            "Classify",
            spec(
                classification_pb2.ClassificationRequest(input=examples(1.0)), "infer", "classify"
            ),
        ),
        ("Regress", spec(regression_pb2.RegressionRequest(input=examples(1.0, 2.0)), "infer")),
        ("MultiInference", both),
        ("GetModelMetadata", spec(metadata, "zoo")),
        ("GetModelStatus", spec(get_model_status_pb2.GetModelStatusRequest(), "zoo")),
        ("HandleReloadConfigRequest", reload),
    ]


SIZES = [-(2**63), -1, 0, 1, 2, 3, 7, 300, 2**20, 2**31, 2**40, 2**62]
NAMES = ["", "x", "s", "zoo", "infer", "recommender", "y", "é" * 40, "a" * 5000, "\0", "{}%s"]
TEXTS = [b"", b"\0", b"\xff\xfe", b"1", b"nan", b"a" * 70_000, "é".encode()]


def mutate_tensor(rng: random.Random, tensor: Any) -> None:
    kind = rng.randrange(8)
    if kind == 0:
        tensor.dtype = rng.choice([*range(0, 35), 101, 119, 1000, -1])
    elif kind == 1:
        dims = tensor.tensor_shape.dim
        if dims and rng.random() < 0.7:
            rng.choice(dims).size = rng.choice(SIZES)
        else:
            dims.add(size=rng.choice(SIZES))
    elif kind == 2:
        for _ in range(rng.choice([1, 9, 33, 300])):
            tensor.tensor_shape.dim.add(size=rng.choice([1, 1, 1, 2, 0]))
    elif kind == 3:
        tensor.tensor_content = rng.randbytes(rng.choice([1, 4, 7, 8, 16]))
    elif kind == 4:
        tensor.float_val.extend(rng.choice([0.0, float("nan"), float("inf"), -1e38]) for _ in "ab")
    elif kind == 5:
        tensor.string_val.append(rng.choice(TEXTS))
    elif kind == 6:
        tensor.tensor_shape.unknown_rank = True
    else:
        tensor.int64_val.append(rng.choice([-(2**63), 2**63 - 1, 0]))
        tensor.half_val.append(rng.choice([-(2**31), 2**31 - 1, 0]))
        tensor.int_val.append(rng.choice([-(2**31), 2**31 - 1, 0]))


def mutate_spec(rng: random.Random, spec: Any) -> None:
    kind = rng.randrange(4)
    if kind == 0:
        spec.name = rng.choice(NAMES)
    elif kind == 1:
        spec.signature_name = rng.choice([*NAMES, "__saved_model_init_op", "classify"])
    elif kind == 2:
        spec.version.value = rng.choice([*SIZES, 1])
    else:
        spec.version_label = rng.choice(NAMES)


def mutate_message(rng: random.Random, message: Any) -> bytes:
    """Another message of the same type."""
    message = type(message).FromString(message.SerializeToString())
    tensors = list(message.inputs.values()) if hasattr(message, "inputs") else []
    specs = [message.model_spec] if hasattr(message, "model_spec") else []
    specs += [task.model_spec for task in getattr(message, "tasks", ())]
    for _ in range(rng.choice([1, 1, 2, 4])):
        kind = rng.randrange(6)
        if tensors and kind < 3:
            mutate_tensor(rng, rng.choice(tensors))
        elif specs and kind == 3:
            mutate_spec(rng, rng.choice(specs))
        elif tensors and kind == 4:
            name = rng.choice([*NAMES, *message.inputs])
            message.inputs[name].CopyFrom(rng.choice(tensors))
        elif hasattr(message, "output_filter"):
            message.output_filter.append(rng.choice([*NAMES, "scores", "item_ids", "z"]))
        elif hasattr(message, "metadata_field"):
            message.metadata_field.append(rng.choice([*NAMES, "signature_def"]))
    return message.SerializeToString()


def mutate_bytes(rng: random.Random, message: bytes) -> bytes:
    data = bytearray(message)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        elif kind == 2:
            data[at:at] = rng.randbytes(rng.choice([1, 2, 9]))
        elif kind == 3:
            del data[at : at + rng.choice([1, 2, 9])]
        elif kind == 4:
            del data[at:]
        elif kind == 5:
            data[at:at] = data[at : at + rng.randrange(40)]
        else:
            data[at:at] = b"\xff" * 9 + b"\x01"  # a varint of 64 bits
    return bytes(data)


def nested(rng: random.Random, message: bytes) -> bytes:
    """The message in a field of itself, over and over."""
    for _ in range(rng.choice([3, 99, 101, 500])):
        size, varint = len(message), b""
        while size > 127:
            varint += bytes([size & 127 | 128])
            size >>= 7
        message = bytes([rng.choice([0x0A, 0x12, 0x1A])]) + varint + bytes([size]) + message
    return message


def grpc_cases(
    rng: random.Random, good: list[tuple[str, Any]], methods: Iterable[str]
) -> Iterator[tuple[str, bytes]]:
    methods = list(methods)
    serialised = [(method, message.SerializeToString()) for method, message in good]
    while True:
        kind = rng.random()
        method, message = rng.choice(good)
        data = message.SerializeToString()
        if kind < 0.15:
            yield rng.choice(methods), rng.randbytes(rng.choice([0, 1, 3, 20, 300]))
        elif kind < 0.6:
            yield method, mutate_message(rng, message)
        elif kind < 0.85:
            yield method, mutate_bytes(rng, data)
        elif kind < 0.93:
            yield rng.choice(methods), mutate_bytes(rng, rng.choice(serialised)[1])
        elif kind < 0.95:
            yield method, nested(rng, data)
        else:
            other = rng.choice(serialised)[1]
            yield method, data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


def status_of(future: Any) -> tuple[grpc.StatusCode, str]:
    """Waits for the answer."""
    error = future.exception()
    return (OK, "") if error is None else (error.code(), error.details())


def test_any_bytes_at_the_grpc_port_get_the_right_status(
    server: Any, connect: Any, ask: Any, methods: Any, tmp_path: Path
) -> None:
    rng = random.Random(SEED)
    base = tmp_path / "models"
    caller = connect(server.port)
    rules = Rules({n: signatures_of(caller, n) for n in ("zoo", "recommender", "infer")}, base)
    cases = grpc_cases(rng, good_messages(ask, base), methods)
    seen: Counter[tuple[str, grpc.StatusCode]] = Counter()
    wrong: list[str] = []
    sent = 0
    while sent < GRPC_CASES:
        running = []
        while len(running) < WINDOW:
            method, message = next(cases)
            _, request, response = methods[method]
            try:
                allowed = rules.of(method, request.FromString(message))
            except DecodeError:
                allowed = frozenset({INTERNAL})
            if allowed:
                running.append((method, message, allowed, response, caller.raw(method, message)))
        sent += len(running)
        x = rng.uniform(-9, 9)
        right = caller.predict("zoo", {"x": [x, 1.0]})  # in the middle of it
        assert right.outputs["y"].float_val == pytest.approx([x / 2 + 2, 2.5], abs=1e-5)
        for method, message, allowed, response, future in running:
            status, details = status_of(future)
            if status not in allowed:
                answer = f"{status.name} {details!r}, expected {[s.name for s in allowed]}"
                wrong.append(f"{answer} for {method} {message[:1000]!r}")
            if status is OK:
                response.FromString(future.result())
            seen[method, status] += 1
    assert not wrong, "\n".join([f"{len(wrong)} wrong answers", *wrong[:20]])
    assert server.process.poll() is None
    assert "Traceback" not in server.text()
    # The cases went deep enough to tell: every method answered, refused and could not decode.
    for method in methods:
        assert seen[method, OK] > 10, seen
        assert seen[method, INTERNAL] > 50, seen
        assert seen[method, INVALID] > 10, seen
    assert seen["Predict", PRECONDITION] > 50
    assert seen["Predict", NOT_FOUND] > 50


# --- REST ---------------------------------------------------------------------------------------

PREDICT = b"/v1/models/zoo:predict"
POST_PATH = re.compile(
    r"/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?:(classify|regress|predict)",
    re.IGNORECASE | re.ASCII,
)
GET_PATH = re.compile(
    r"/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?(/metadata)?",
    re.IGNORECASE | re.ASCII,
)
SERVED = ("zoo", "recommender", "infer")
ASK_FOR_BODY = frozenset({200, 400})  # the body decides
LONGEST_LINE = 8000


def path_statuses(method: str, path: str, good_body: bool) -> frozenset[int]:
    """What a path may be answered with."""
    if not path.lower().startswith("/v1/"):
        return frozenset({404})
    match = {"POST": POST_PATH, "GET": GET_PATH}.get(method, re.compile("$^")).fullmatch(path)
    if match is None:
        return frozenset({400})
    name, version, label, call = match.groups()
    if version and int(version) >= 2**63:
        return frozenset({400})
    found = urllib.parse.unquote(name) in SERVED and int(version or 1) == 1
    if method == "GET" and not call:
        return frozenset({200 if found else 404})  # a label is dropped
    if label:
        return frozenset({400})
    if method == "GET":
        return frozenset({200 if found else 404})
    if call != call.lower():
        return frozenset({400})
    if not found:
        return frozenset({404} if good_body and call == "predict" else {400, 404})
    return ASK_FOR_BODY


class Http:
    """A keep-alive connection that sends any bytes."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open()

    def _open(self) -> None:
        self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=20)
        self._stream = self._socket.makefile("rb")
        self._fresh = True

    def close(self) -> None:
        self._stream.close()
        self._socket.close()

    def send(self, raw: bytes, last: bool = False) -> tuple[int, bytes]:
        """Status and body of the answer; (0, b"") if the server just closes.

        Args:
          raw: the request.
          last: nothing else follows on this connection.
        """
        try:
            self._socket.sendall(raw)
            if last:
                self._socket.shutdown(socket.SHUT_WR)
            line = self._stream.readline()
        except TimeoutError as error:
            raise AssertionError(f"no answer to {raw[:1000]!r}") from error
        except OSError:  # closed before everything was sent
            line = b""
        if not line:
            repeat = not self._fresh  # the server may close a connection after any answer
            self._again()
            return self.send(raw, last) if repeat else (0, b"")
        self._fresh = False
        status, length, close = int(line.split()[1]), 0, last
        while (header := self._stream.readline().strip().lower()) != b"":
            name, _, value = header.partition(b":")
            length = int(value) if name == b"content-length" else length
            close |= name == b"connection" and value.strip() == b"close"
        if raw.startswith(b"HEAD "):  # without the body that the length speaks of
            length, close = 0, True
        body = self._stream.read(length)
        if close:
            self._again()
        return status, body

    def _again(self) -> None:
        self.close()
        self._open()


def http(method: str, path: bytes, body: bytes = b"", headers: bytes = b"") -> bytes:
    length = b"Content-Length: %d\r\n" % len(body)
    return b"%s %s HTTP/1.1\r\nHost: h\r\n%s%s\r\n%s" % (
        method.encode(),
        path,
        headers,
        length,
        body,
    )


BODIES = [
    {"instances": [2.0, 3.0]},
    {"inputs": [2.0, 3.0]},
    {"inputs": {"x": [1]}, "signature_name": "two_outputs"},
    {"instances": [{"x": 1.0, "scale": 2}], "signature_name": "scaled"},
    {"instances": [[1, 2]], "signature_name": "matmul"},
    {"instances": ["a", {"b64": "/wA="}], "signature_name": "text"},
    {"inputs": 1.5, "signature_name": "scalar"},
    {"instances": ["1.5"], "signature_name": "to_number"},
    {"inputs": {"by": 1}, "signature_name": "count"},
    {"examples": [{"x": 2.0}], "context": {"x": 1.0}},
    {"examples": [{"x": [1.0, 2.0], "y": {"b64": "AA=="}}], "signature_name": "classify"},
]
ODD_VALUES = [
    "null", "true", "-0", "1e5", "1e400", "-1e-400", "NaN", "Infinity", "-Infinity", "1.", ".5",
    "+1", "0x10", "01", "9" * 400, "9" * 5000, "1" + "0" * 5000 + ".0", "1e" + "9" * 60,
    "9223372036854775808", "-9223372036854775809", '"\\ud800"', '"\\udc00\\ud800"', '"\\u0000"',
    '"\x01"', '"\\q"', '{"b64": "!"}', '{"b64": 1}', '{"b64": "AA=="}', '{"b64": "AA", "x": 1}',
    "[]", "[[]]", "[[], []]", "[[1], [1, 2]]", "{}", '""', "tru", "'a'", "[1,]", '{"a":1,}',
]  # fmt: skip


def json_body(rng: random.Random) -> bytes:
    body = json.dumps(rng.choice(BODIES))
    kind = rng.randrange(7)
    if kind == 0:  # any value in the place of another
        places = list(re.finditer(r'-?\d+(\.\d+)?|"[^"]*"|\[[^\[\]]*\]', body))
        place = rng.choice(places)
        body = body[: place.start()] + rng.choice(ODD_VALUES) + body[place.end() :]
    elif kind == 1:  # a key twice
        key = rng.choice(["instances", "inputs", "signature_name", "x", "b64"])
        body = body[:-1] + f', "{key}": {rng.choice(ODD_VALUES)}' + body[-1]
        body = body.replace("{", "{" + f'"{key}": {rng.choice(ODD_VALUES)}, ', 1)
    elif kind == 2:  # deep
        depth = rng.choice([5, 31, 32, 33, 64, 200, 900, 990, 1000, 5000, 100_000])
        opening, closing = rng.choice([("[", "]"), ('{"a":', "}"), ('{"inputs":', "}")])
        cut = rng.random() < 0.3
        deep = opening * depth + rng.choice(["1", "", '"x"', "[1, 2]"]) + closing * (depth - cut)
        body = rng.choice(['{"instances": %s}', '{"inputs": {"x": %s}}', "%s"]) % deep
    elif kind == 3:
        data = rng.choice([b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\x80", b"\0"]).decode(
            "utf-8", "surrogateescape"
        )
        at = rng.randrange(len(body))
        body = body[:at] + data + body[at:]
    elif kind == 4:
        return mutate_bytes(rng, body.encode())
    elif kind == 5:
        return rng.randbytes(rng.choice([0, 1, 5, 100]))
    else:
        body = rng.choice(["", " ", "\ufeff", "{}", "[1]", "1", '"a"', body + "x", body + body])
    return body.encode("utf-8", "surrogateescape")


class Case(NamedTuple):
    """A request, what it may be answered with (0 = closed without an answer), whether an error has
    to be explained in JSON, and whether nothing can follow on the connection."""

    raw: bytes
    allowed: frozenset[int]
    explained: bool = False
    last: bool = False


def path_case(rng: random.Random) -> Case:
    parts = [
        "/v1/models/", "zoo", "infer", "recommender", ":predict", ":classify", ":REGRESS",
        "/versions/1", "/versions/", "/labels/", "stable", "1", "9" * 25, "0001", "/metadata", "/",
        "//", "%2F", "%00", "%FF", "%zz", "%", "zo%6f", "?a=b", "..", "V1", "/v1/", "é", ":", "~",
        "x" * 3000,
    ]  # fmt: skip
    bases = [
        "/v1/models/zoo:predict", "/v1/models/zoo", "/v1/models/infer/versions/1:regress",
        "/v1/models/zoo/metadata", "/v1/models/zoo/labels/a:predict", "/v1/models", "/", "",
    ]  # fmt: skip
    path = rng.choice(bases)
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        at = rng.randrange(len(path) + 1)
        path = path[:at] + rng.choice(parts) + path[at + rng.choice([0, 0, 1, 3]) :]
    path = "/" + path.lstrip("/")
    method = rng.choice(["GET", "POST", "GET", "POST", "PUT", "DELETE", "HEAD", "PATCH"])
    good_body = rng.random() < 0.5
    body = b'{"instances": [1.0]}' if good_body else b"{"
    if method in ("GET", "HEAD"):
        body = b""
    allowed = path_statuses(method, path, good_body)
    explained = path.lower().startswith("/v1/")
    if method == "HEAD" or not path.isascii() or len(path) > LONGEST_LINE:
        # HTTP itself does not allow this, or no body in the answer.
        allowed, explained = allowed | {400}, False
    return Case(http(method, path.encode(), body), allowed, explained)


def header_case(rng: random.Random) -> Case:
    body = b'{"instances": [2.0, 4.0]}'
    packed = gzip.compress(body, mtime=0)
    rubbish = mutate_bytes(rng, packed)
    kind = rng.randrange(12)
    either = ASK_FOR_BODY
    length = len(body)
    fixed: list[tuple[bytes, bytes, frozenset[int], bool]] = [
        (b"Content-Encoding: gzip\r\n", packed, frozenset({200}), False),
        (b"Content-Encoding: gzip\r\n", rubbish, either, False),
        (b"Content-Encoding: gzip\r\n", rng.randbytes(50), frozenset({400}), False),
        (b"Content-Encoding: gzip\r\n", packed[: rng.randrange(len(packed))], either, False),
        (b"Content-Encoding: deflate\r\n", zlib.compress(body), either, False),
        (b"Content-Encoding: %s\r\n" % rng.choice([b"br", b"zstd", b"x"]), body, either, False),
        (b"Content-Type: %s\r\n" % rng.choice([b"text/plain", b";", b"a/b; charset=x"]), body,
         frozenset({200}), False),
        (b"X: %s\r\n" % (b"a" * rng.choice([10, 9_000, 100_000])), body, either, False),
        (b"%s: 1\r\n" % rng.randbytes(6).translate(None, b"\r\n"), body, either, False),
    ]  # fmt: skip
    if kind < len(fixed):
        headers, body, allowed, last = fixed[kind]
        return Case(http("POST", PREDICT, body, headers), allowed, last=last)
    line = b"POST %s HTTP/1.1\r\nHost: h\r\n" % PREDICT
    if kind == 9:
        claimed = rng.choice([b"-1", b"1" * 30, b"x", b"%d" % (length + 5), b"%d" % (length - 5)])
        raw = line + b"Content-Length: %s\r\n\r\n%s" % (claimed, body)
        return Case(raw, either | {0}, last=True)
    if kind == 10:
        chunk = rng.choice([b"%x" % length, b"%x" % (length + 1), b"-1", b"zz", b"f" * 30])
        chunks = b"%s\r\n%s\r\n0\r\n\r\n" % (chunk, body)
        raw = line + b"Transfer-Encoding: chunked\r\n\r\n" + chunks
        return Case(raw, either | {0}, last=True)
    raw = rng.randbytes(rng.choice([1, 20, 400])) + b"\r\n\r\n"
    return Case(raw, frozenset({0, 400}), last=True)


def rest_case(rng: random.Random) -> Case:
    kind = rng.random()
    if kind < 0.25:
        return path_case(rng)
    if kind < 0.45:
        return header_case(rng)
    body = json_body(rng)
    path = rng.choice(
        [PREDICT] * 4 + [b"/v1/models/infer:classify", b"/v1/models/infer/versions/1:regress"]
    )
    return Case(http("POST", path, body), ASK_FOR_BODY, explained=True)


def test_any_bytes_at_the_rest_port_get_the_right_status(server: Any) -> None:
    rng = random.Random(SEED)
    connection = Http(server.rest_port)
    seen: Counter[int] = Counter()
    wrong: list[str] = []
    for number in range(REST_CASES):
        case = rest_case(rng)
        status, body = connection.send(case.raw, case.last)
        said = not case.explained or status == 200 or body.startswith(b'{"error":')
        if status not in case.allowed or not said:
            answer = f"{status} {body[:500]!r}, expected {set(case.allowed)}"
            wrong.append(f"{answer} for {case.raw[:1000]!r}")
        seen[status] += 1
        if number % 50 == 0:
            x = rng.uniform(-9, 9)
            answer = connection.send(http("POST", PREDICT, json.dumps({"instances": [x]}).encode()))
            assert answer[0] == 200, (answer, case)
            (y,) = json.loads(answer[1])["predictions"]
            assert y == pytest.approx(x / 2 + 2, abs=1e-5)
    connection.close()
    assert not wrong, "\n".join([f"{len(wrong)} wrong answers", *wrong[:20]])
    assert server.process.poll() is None
    # aiohttp logs a traceback of its own for what it cannot read; this is that of the handler.
    assert " failed\nTraceback" not in server.text()
    # The cases went deep enough to tell.
    assert seen[200] > 500, seen
    assert seen[400] > 2000, seen
    assert seen[404] > 300, seen


def test_a_small_body_that_unpacks_to_much_is_refused(server: Any) -> None:
    packed = gzip.compress(b" " * 2**29, compresslevel=1, mtime=0)
    connection = Http(server.rest_port)
    bomb = http("POST", PREDICT, packed, b"Content-Encoding: gzip\r\n")
    status, body = connection.send(bomb)
    assert (status, b"larger than" in body) == (400, True), body
    text = base64.b64encode(b"\xff" * 10).decode()
    good = json.dumps({"instances": [{"b64": text}], "signature_name": "text"}).encode()
    assert connection.send(http("POST", PREDICT, good))[0] == 200
    connection.close()
