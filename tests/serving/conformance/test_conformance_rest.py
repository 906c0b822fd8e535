"""The REST interface: checks 65 to 80 of the conformance list, over real HTTP."""

from __future__ import annotations

import concurrent.futures
import gzip
import http.client
import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from serving.config import All, ModelConfig
from serving.options import ServerOptions
from serving.server import ModelServer

METRICS_PATH = "/monitoring/prometheus/metrics"
HALF = "/v1/models/half:predict"
ZOO = "/v1/models/zoo:predict"
TYPES = "/v1/models/types:predict"
EXAMPLES = "/v1/models/examples"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["Content-Type"] == "application/json"
        return json.loads(self.body)


Call = Callable[..., Answer]


def _signature(function: Callable[..., Any], *specs: tf.TensorSpec) -> Any:
    return tf.function(function, input_signature=list(specs))


def _save_types(path: Path) -> Path:
    """Signatures for the forms that values take in JSON."""
    text = tf.TensorSpec([None], tf.string, "s")
    number = tf.TensorSpec([None], tf.float32, "x")
    matrix = tf.TensorSpec([None, None], tf.float32, "m")
    signatures: dict[str, Any] = {
        "bytes": _signature(lambda s: {"s": s, "s_bytes": s}, text),
        "pair": _signature(lambda x, s: {"x": x * 2.0, "s": s}, number, text),
        "uneven": _signature(lambda x: {"a": x, "b": x[:1]}, number),
        "sum": _signature(lambda x: {"y": tf.reduce_sum(x)}, number),
        "matrix": _signature(lambda m: {"m": m}, matrix),
        "long": _signature(lambda n: {"n": n + 1}, tf.TensorSpec([None], tf.int64, "n")),
        "double": _signature(lambda d: {"d": d}, tf.TensorSpec([None], tf.float64, "d")),
        "flag": _signature(lambda b: {"b": b}, tf.TensorSpec([None], tf.bool, "b")),
    }
    tf.saved_model.save(tf.Module(), str(path), signatures=signatures)
    return path


def _save_examples(path: Path) -> Path:
    """y = x / 2 + 2 over tf.Examples, as a classification and as a regression."""
    v1 = tf.compat.v1
    graph = tf.Graph()
    with graph.as_default(), v1.Session(graph=graph) as session:
        inputs = {"inputs": v1.placeholder(tf.string, [None], "serialised")}
        features = {
            "x": tf.io.FixedLenFeature([], tf.float32, 0.0),
            "n": tf.io.FixedLenFeature([], tf.int64, 0),
            "name": tf.io.FixedLenFeature([], tf.string, ""),
        }
        parsed = tf.io.parse_example(inputs["inputs"], features)
        y = (parsed["x"] / 2.0 + 2.0 + tf.cast(parsed["n"], tf.float32))[:, None]
        build = v1.saved_model.signature_def_utils.build_signature_def
        infos = v1.saved_model.utils.build_tensor_info

        def signature(method: str, **outputs: Any) -> Any:
            return build(
                {alias: infos(tensor) for alias, tensor in inputs.items()},
                {alias: infos(tensor) for alias, tensor in outputs.items()},
                f"tensorflow/serving/{method}",
            )

        builder = v1.saved_model.builder.SavedModelBuilder(str(path))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            {
                "serving_default": signature("regress", outputs=y),
                "scores": signature("classify", scores=y),
                "classes": signature("classify", classes=parsed["name"][:, None], scores=y),
            },
        )
        builder.save()
    return path


@pytest.fixture(scope="module")
def server(
    half_plus_two: Path,
    half_plus_three: Path,
    zoo: Path,
    publish: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ModelServer]:
    root = tmp_path_factory.mktemp("rest")
    publish(half_plus_two, root / "half", 123)
    publish(half_plus_two, root / "pair", 1)
    publish(half_plus_three, root / "pair", 2)
    publish(zoo, root / "zoo", 7)
    publish(_save_types(root / "saved_types"), root / "types", 1)
    publish(_save_examples(root / "saved_examples"), root / "examples", 1)
    labels = {"stable": 1, "can ary/é": 2}
    options = ServerOptions(
        models={
            "half": root / "half",
            "pair": ModelConfig(str(root / "pair"), All(), labels),
            "two words": root / "half",
            "zoo": root / "zoo",
            "types": root / "types",
            "examples": root / "examples",
        },
        host="127.0.0.1",
        port=0,
        rest_port=0,
        metrics_path=METRICS_PATH,
        max_load_retries=0,
    )
    with ModelServer(options) as running:
        yield running


def request(
    port: int | None,
    method: str,
    path: str,
    body: Any = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    """Sends a request; a body that is no text or bytes goes as JSON."""
    if body is not None and not isinstance(body, str | bytes):
        body = json.dumps(body)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return Answer(response.status, dict(response.getheaders()), response.read())
    finally:
        connection.close()


@pytest.fixture(scope="module")
def call(server: ModelServer) -> Call:
    """call(method, path, body, headers): an answer of the server."""
    return lambda *args: request(server.rest_port, *args)


@pytest.fixture(scope="module")
def post(call: Call) -> Call:
    """post(path, body): an answer of the server."""
    return lambda *args: call("POST", *args)


def error(answer: Answer) -> tuple[int, str]:
    assert list(answer.json) == ["error"]
    return answer.status, answer.json["error"]


# --- Predict --------------------------------------------------------------------------------


def test_check_65_rows(post: Call) -> None:
    answer = post(HALF, {"instances": [2.0, 3.0, 4.0]})
    assert (answer.status, answer.body) == (200, b'{"predictions":[3.0,3.5,4.0]}')
    assert answer.headers["Content-Type"] == "application/json"


def test_check_66_columns(post: Call) -> None:
    answer = post(HALF, {"inputs": [2.0, 3.0, 4.0]})
    assert (answer.status, answer.body) == (200, b'{"outputs":[3.0,3.5,4.0]}')


def test_check_67_several_inputs_and_outputs(post: Call) -> None:
    rows = {"signature_name": "pair", "instances": [{"x": 1, "s": "a"}, {"x": 2.5, "s": "b"}]}
    assert post(TYPES, rows).json == {
        "predictions": [{"s": "a", "x": 2.0}, {"s": "b", "x": 5.0}],
    }
    columns = {"signature_name": "pair", "inputs": {"x": [1, 2.5], "s": ["a"], "more": None}}
    assert post(TYPES, columns).json == {"outputs": {"s": ["a"], "x": [2.0, 5.0]}}
    named = {"signature_name": "two_outputs", "instances": [{"x": 1}]}
    assert post(ZOO, named).json == {"predictions": [{"y": 2.0, "z": 3.0}]}


def test_check_67_nested_lists_and_scalars(post: Call) -> None:
    matrix = [[1.0, 2.0], [3.0, 4.0]]
    assert post(TYPES, {"signature_name": "matrix", "instances": matrix}).json == {
        "predictions": matrix
    }
    assert post(ZOO, {"signature_name": "scalar", "inputs": 1.5}).json == {"outputs": 2.5}


def test_check_67_outputs_without_a_common_batch_size(post: Call) -> None:
    uneven = post(TYPES, {"signature_name": "uneven", "instances": [1, 2]})
    assert error(uneven) == (400, "Tensor name: b has inconsistent batch size: 1 expecting: 2")
    scalar = post(TYPES, {"signature_name": "sum", "instances": [1, 2]})
    assert error(scalar) == (400, "Tensor name: y has no shape information ")
    assert post(TYPES, {"signature_name": "sum", "inputs": [1, 2]}).json == {"outputs": 3.0}


def test_check_68_versions_labels_and_signatures(post: Call) -> None:
    x = {"instances": [2.0]}
    assert post("/v1/models/pair:predict", x).json == {"predictions": [4.0]}
    assert post("/v1/models/pair/versions/1:predict", x).json == {"predictions": [3.0]}
    assert post("/v1/models/pair/versions/0002:predict", x).json == {"predictions": [4.0]}
    assert post("/v1/models/pair/labels/stable:predict", x).json == {"predictions": [3.0]}
    assert post("/v1/models/pair/labels/can%20ary%2F%C3%A9:predict", x).json == {
        "predictions": [4.0]
    }
    assert post(ZOO, {"signature_name": "triple", **x}).json == {"predictions": [6.0]}
    assert post(ZOO, {"signature_name": "", **x}).json == {"predictions": [3.0]}


def test_check_68_names_are_url_decoded_and_paths_ignore_case(post: Call) -> None:
    x = {"instances": [2.0]}
    assert post("/v1/models/two%20words:predict", x).json == {"predictions": [3.0]}
    assert post("/V1/MODELS/half/Versions/123:predict", x).json == {"predictions": [3.0]}


def test_check_69_unknown_models_versions_and_labels(post: Call) -> None:
    x = {"instances": [2.0]}
    assert error(post("/v1/models/none:predict", x)) == (
        404,
        "Servable not found for request: Latest(none)",
    )
    assert error(post("/v1/models/half/versions/9:predict", x)) == (
        404,
        "Servable not found for request: Specific(half, 9)",
    )
    assert error(post("/v1/models/half/labels/none:predict", x)) == (
        400,
        "Unrecognized servable version label: none",
    )


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("", "JSON Parse error: The document is empty"),
        ("this is no JSON", "JSON Parse error: Invalid value. at offset: 1"),
        (
            '{"instances": [1.0 2.0]}',
            "JSON Parse error: Missing a comma or ']' after an array element. at offset: 19",
        ),
        (
            '{"instances": ["a"]}',
            "Failed to process element: 0 of 'instances' list. Error: INVALID_ARGUMENT: "
            'JSON Value: "a" Type: String is not of expected type: float',
        ),
        ('{"inputs": [true]}', "JSON Value: true Type: True is not of expected type: float"),
        (
            '{"signature_name": 5, "instances": [1]}',
            'JSON Value: {\n    "signature_name": 5,\n    "instances": [\n        1\n    ]\n} not '
            "formatted correctly. 'signature_name' key must be a string value.",
        ),
    ],
)
def test_check_70_bodies_that_cannot_be_read(post: Call, body: str, text: str) -> None:
    assert error(post(HALF, body)) == (400, text)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("{}", "Missing 'inputs' or 'instances' key"),
        (
            '{"inputs": 1, "instances": 1}',
            'JSON Value: {\n    "inputs": 1,\n    "instances": 1\n} Not formatted correctly '
            "expecting only one of 'inputs' or 'instances' keys to exist ",
        ),
        (
            '{"instances": 1}',
            "JSON Value: {\n    \"instances\": 1\n} Expecting 'instances' to be an list/array",
        ),
        (
            '{"instances": []}',
            "JSON Value: {\n    \"instances\": []\n} No values in 'instances' array",
        ),
    ],
)
def test_check_71_instances_or_inputs(post: Call, body: str, text: str) -> None:
    assert error(post(HALF, body)) == (400, text)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"inputs": {"x": [1]}}, "Missing named input: s in 'inputs' object."),
        (
            {"instances": [{"x": 1}]},
            "Failed to process element: 0 of 'instances' list. JSON object: {\n    \"x\": 1\n} "
            "keys must be equal to: s,x",
        ),
        (
            {"instances": [{"x": 1, "s": "a"}, {"x": [1, 2], "s": "a"}]},
            "Failed to process element: 1 key: x of 'instances' list. Error: INVALID_ARGUMENT: "
            "Expecting tensor size: 1 but got: 2",
        ),
        (
            {"instances": [{"x": 1, "s": "a"}, {"x": [1], "s": "a"}]},
            "Failed to process element: 1 key: x of 'instances' list. Error: INVALID_ARGUMENT: "
            "Expecting shape [] but got: [1]",
        ),
        (
            {"instances": [1]},
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map",
        ),
    ],
)
def test_check_72_names_and_shapes(post: Call, body: Any, text: str) -> None:
    assert error(post(TYPES, {"signature_name": "pair", **body})) == (400, text)


def test_check_73_unknown_signature(post: Call) -> None:
    text = 'Serving signature name: "none" not found in signature def'
    assert error(post(HALF, {"signature_name": "none", "instances": [1]})) == (400, text)


def test_check_73_signature_without_inputs(post: Call) -> None:
    name = "__saved_model_init_op"
    text = f"Failed to get input map for signature: {name}"
    assert error(post(HALF, {"signature_name": name, "instances": [1]})) == (400, text)


def test_check_74_base64(post: Call) -> None:
    body = {"signature_name": "bytes", "instances": ["plain", {"b64": "AP8="}]}
    answer = post(TYPES, body)
    assert answer.status == 200
    assert answer.body == (
        b'{"predictions":[{"s":"plain","s_bytes":{"b64":"cGxhaW4="}},'
        b'{"s":"\\u0000\xff","s_bytes":{"b64":"AP8="}}]}'
    )
    wrong = post(TYPES, {"signature_name": "bytes", "inputs": [{"b64": "?"}]})
    assert error(wrong) == (400, "Unable to base64 decode")


def test_check_74_strings_of_any_bytes(post: Call) -> None:
    body = b'{"signature_name": "text", "instances": ["\xff\xfe", "\\u00e9\xc3\xa9"]}'
    assert post(ZOO, body).body == b'{"predictions":["\xff\xfe","\xc3\xa9\xc3\xa9"]}'


def test_check_75_numbers(post: Call) -> None:
    body = '{"signature_name": "matrix", "instances": [[NaN, Infinity, -Infinity, 0.2, 2, 1e30]]}'
    answer = post(TYPES, body)
    assert answer.body == b'{"predictions":[[NaN,Infinity,-Infinity,0.2,2.0,1e+30]]}'
    exact = '{"signature_name": "double", "inputs": [0.1, 1, 1e-300, 0.30000000000000004]}'
    assert post(TYPES, exact).body == b'{"outputs":[0.1,1.0,1e-300,0.30000000000000004]}'
    long = {"signature_name": "long", "inputs": [9007199254740993]}
    assert post(TYPES, long).body == b'{"outputs":[9007199254740994]}'
    flags = {"signature_name": "flag", "inputs": [True, False]}
    assert post(TYPES, flags).body == b'{"outputs":[true,false]}'


@pytest.mark.parametrize(
    ("signature", "value", "kind", "name"),
    [
        ("long", 1.0, "Number", "int64"),
        ("long", True, "True", "int64"),
        ("long", 2**63, "Number", "int64"),
        ("flag", 1, "Number", "bool"),
        ("bytes", 1, "Number", "string"),
        ("double", None, "Null", "double"),
    ],
)
def test_check_75_types_are_strict(
    post: Call, signature: str, value: Any, kind: str, name: str
) -> None:
    text = f"JSON Value: {json.dumps(value)} Type: {kind} is not of expected type: {name}"
    assert error(post(TYPES, {"signature_name": signature, "inputs": [value]})) == (400, text)


def test_check_75_half_is_not_in_json(post: Call) -> None:
    text = "Conversion of JSON Value: 1 to type: half"
    assert error(post(ZOO, {"signature_name": "half", "inputs": [1]})) == (501, text)


# --- status and metadata --------------------------------------------------------------------


def test_check_76_status(call: Call) -> None:
    answer = call("GET", "/v1/models/half")
    assert (answer.status, answer.json) == (
        200,
        {
            "model_version_status": [
                {
                    "version": "123",
                    "state": "AVAILABLE",
                    "status": {"error_code": "OK", "error_message": ""},
                }
            ]
        },
    )


def test_check_76_status_of_versions(call: Call) -> None:
    def versions(path: str) -> list[str]:
        statuses = call("GET", path).json["model_version_status"]
        return [status["version"] for status in statuses]

    assert versions("/v1/models/pair") == ["2", "1"]
    assert versions("/v1/models/pair/versions/1") == ["1"]
    assert versions("/v1/models/pair/labels/stable") == ["2", "1"]  # the label is ignored


def test_check_76_status_of_what_is_not_there(call: Call) -> None:
    assert error(call("GET", "/v1/models/none")) == (
        404,
        "Could not find any versions of model none",
    )
    assert error(call("GET", "/v1/models/half/versions/9")) == (
        404,
        "Could not find version 9 of model half",
    )


def test_check_77_metadata(call: Call) -> None:
    answer = call("GET", "/v1/models/pair/versions/1/metadata")
    assert answer.status == 200
    assert answer.json["model_spec"] == {"name": "pair", "signature_name": "", "version": "1"}
    assert list(answer.json["metadata"]) == ["signature_def"]
    signatures = answer.json["metadata"]["signature_def"]["signature_def"]
    assert set(signatures) == {"serving_default", "__saved_model_init_op"}
    assert signatures["serving_default"] == {
        "inputs": {
            "x": {
                "dtype": "DT_FLOAT",
                "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False},
                "name": "serving_default_x:0",
            }
        },
        "outputs": {
            "y": {
                "dtype": "DT_FLOAT",
                "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False},
                "name": "StatefulPartitionedCall:0",
            }
        },
        "method_name": "tensorflow/serving/predict",
        "defaults": {},
    }
    by_label = call("GET", "/v1/models/pair/labels/stable/metadata")
    assert by_label.json == answer.json
    assert call("GET", "/v1/models/none/metadata").status == 404


# --- paths and HTTP -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", HALF),
        ("POST", "/v1/models/half"),
        ("POST", "/v1/models/half/metadata"),
        ("POST", "/v1/models/half:unknown"),
        ("POST", "/v1/models/half:PREDICT"),
        ("POST", f"{HALF}?x=1"),
        ("POST", "/v1/models:predict"),
        ("PUT", "/v1/models/half"),
        ("DELETE", "/v1/models/half"),
        ("GET", "/v1/models/half/version/50"),
        ("GET", "/v1/models/half/versions/HELLO"),
        ("GET", "/v1/models/half/versions/1/labels/stable"),
        ("GET", "/v1/models/half/labels/stable/versions/1"),
        ("GET", "/v1/models/half/"),
        ("GET", "/v1/"),
        ("GET", "/v1/nothing%0Ahere"),
    ],
)
def test_check_78_malformed_paths(call: Call, method: str, path: str) -> None:
    answer = call(method, path, "{}" if method == "POST" else None)
    assert error(answer) == (400, f"Malformed request: {method} {path}")


def test_check_78_other_paths(call: Call) -> None:
    assert error(call("GET", "/v1/models")) == (400, "Missing model name in request.")
    huge = "9" * 19
    assert error(call("GET", f"/v1/models/half/versions/{huge}")) == (
        400,
        f"Failed to convert version: {huge} to numeric.",
    )
    longer = "1" * 5000
    assert call("GET", f"/v1/models/half/versions/{longer}").status == 400
    outside = call("GET", "/")
    assert outside.status == 404
    assert outside.headers["Content-Type"].startswith("text/html")


def test_check_78_compressed_bodies(call: Call) -> None:
    body = gzip.compress(b'{"instances": [2.0]}')
    header = {"Content-Encoding": "gzip"}
    assert call("POST", HALF, body, header).json == {"predictions": [3.0]}
    assert error(call("POST", HALF, b"no gzip", header)) == (
        400,
        "JSON Parse error: The document is empty",
    )


def test_check_78_the_content_type_of_requests_is_ignored(call: Call) -> None:
    header = {"Content-Type": "text/html"}
    assert call("POST", HALF, {"instances": [2.0]}, header).json == {"predictions": [3.0]}


def test_check_78_large_bodies(post: Call) -> None:
    values = [float(number % 1000) for number in range(300_000)]
    answer = post(HALF, {"inputs": values})
    assert answer.status == 200
    assert answer.json["outputs"] == [value / 2 + 2 for value in values]
    assert post(HALF, {"inputs": [*values, "a"]}).status == 400


def test_check_78_long_errors_are_not_cut(post: Call) -> None:
    name = "n" * 5000
    assert error(post(f"/v1/models/{name}:predict", {"instances": [1]})) == (
        404,
        f"Servable not found for request: Latest({name})",
    )


def test_check_78_errors_of_the_graph(post: Call) -> None:
    answer = post(ZOO, {"signature_name": "matmul", "inputs": [[1.0, 2.0, 3.0]]})
    status, text = error(answer)
    assert status == 400
    assert text.startswith("Matrix size-incompatible: In[0]: [1,3], In[1]: [2,1]")


def test_check_78_other_calls_go_on_while_large_bodies_are_read(call: Call) -> None:
    body = json.dumps({"signature_name": "matrix", "inputs": [[0.125] * 100] * 5_000})
    waits = []
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        large = pool.submit(call, "POST", TYPES, body)
        while not large.done():
            started = time.monotonic()
            assert call("POST", HALF, {"instances": [2.0]}).status == 200
            waits.append(time.monotonic() - started)
    assert large.result().status == 200
    assert len(waits) > 10


def test_check_78_clients_that_leave(server: ModelServer, call: Call) -> None:
    before = _counted(call, "half", "CANCELLED")
    head = f"POST {HALF} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", server.rest_port or 0)) as connection:
        connection.sendall(head + b'{"inst')
        time.sleep(0.2)
        reset = struct.pack("ii", 1, 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    deadline = time.monotonic() + 10
    while _counted(call, "half", "CANCELLED") == before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert call("POST", HALF, {"instances": [2.0]}).status == 200


@pytest.mark.parametrize("junk", [b"GET / HTTP/1.1\r\nno header\r\n\r\n", b"\x16\x03\x01\r\n\r\n"])
def test_check_78_what_is_no_http_is_refused_without_a_traceback(
    server: ModelServer, call: Call, caplog: pytest.LogCaptureFixture, junk: bytes
) -> None:
    port = server.rest_port or 0
    with caplog.at_level("INFO"), socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(10)
        connection.sendall(junk)
        assert connection.recv(100).startswith(b"HTTP/1.0 400 ")
    assert caplog.records == []
    assert call("POST", HALF, {"instances": [2.0]}).status == 200


def test_check_78_time_limit(zoo: Path, publish: Any, tmp_path: Path, start_server: Any) -> None:
    publish(zoo, tmp_path / "zoo", 1)
    server = start_server({"zoo": tmp_path / "zoo"}, rest_port=0, rest_timeout_seconds=0.2)
    started = time.monotonic()
    endless = request(server.rest_port, "POST", ZOO, {"signature_name": "loop", "inputs": 10**15})
    assert endless.status == 504
    assert list(endless.json) == ["error"]
    assert time.monotonic() - started < 5
    assert request(server.rest_port, "POST", ZOO, {"instances": [2]}).status == 200


def test_check_78_call_limit(zoo: Path, publish: Any, tmp_path: Path, start_server: Any) -> None:
    publish(zoo, tmp_path / "zoo", 1)
    server = start_server(
        {"zoo": tmp_path / "zoo"}, rest_port=0, rest_timeout_seconds=1.0, max_concurrent_calls=2
    )
    endless = {"signature_name": "loop", "inputs": 10**15}
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(request, server.rest_port, "POST", ZOO, endless) for _ in range(4)]
        assert sorted(call.result().status for call in calls) == [429, 429, 504, 504]
    assert request(server.rest_port, "POST", ZOO, {"instances": [2]}).status == 200


def test_check_78_cross_origin_requests(
    half_plus_two: Path, publish: Any, tmp_path: Path, start_server: Any, call: Call
) -> None:
    publish(half_plus_two, tmp_path / "half", 1)
    allowing = start_server({"half": tmp_path / "half"}, rest_port=0, cors=True).rest_port
    origin = {"Origin": "https://example.org"}
    for answer in (
        request(allowing, "OPTIONS", HALF, None, origin),
        request(allowing, "POST", HALF, {"instances": [2.0]}, origin),
        request(allowing, "POST", HALF, "", origin),
    ):
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert answer.headers["Access-Control-Allow-Methods"] == "POST, GET"
        assert answer.headers["Access-Control-Allow-Headers"] == "Content-Type"
    assert request(allowing, "OPTIONS", HALF, None, origin).status == 200
    assert request(allowing, "OPTIONS", HALF).status == 400
    for method, body in (("OPTIONS", None), ("POST", {"instances": [2.0]})):
        answer = call(method, HALF, body, origin)
        assert answer.status == 200
        assert not [name for name in answer.headers if name.startswith("Access-Control")]


# --- Classify and Regress -------------------------------------------------------------------


def test_check_79_classify(post: Call) -> None:
    scores = {"signature_name": "scores", "examples": [{"x": 2.0}, {"x": 0.4}]}
    answer = post(f"{EXAMPLES}:classify", scores)
    assert (answer.status, answer.body) == (200, b'{"results":[[["",3.0]],[["",2.2]]]}')
    body = {"signature_name": "classes", "examples": [{"name": "é"}, {"name": {"b64": "YQ=="}}]}
    assert post(f"{EXAMPLES}/versions/1:classify", body).json == {
        "results": [[["é", 2.0]], [["a", 2.0]]]
    }


def test_check_79_regress(post: Call) -> None:
    body = {"examples": [{"x": [2.0]}, {"n": 3}, {"n": True, "x": []}, {}]}
    answer = post(f"{EXAMPLES}:regress", body)
    assert (answer.status, answer.body) == (200, b'{"results":[3.0,5.0,3.0,2.0]}')


def test_check_79_context(post: Call) -> None:
    body = {"context": {"x": 4.0}, "examples": [{"n": 1}, {"x": 2.0}]}
    assert post(f"{EXAMPLES}:regress", body).json == {"results": [5.0, 3.0]}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (
            {},
            "JSON Value: {} When method is classify, key 'examples' is expected and was not found",
        ),
        (
            {"examples": 1},
            "JSON Value: {\n    \"examples\": 1\n} Expecting 'examples' value to be an list/array",
        ),
        (
            {"examples": []},
            "JSON Value: {\n    \"examples\": []\n} 'examples' value is an empty array",
        ),
        ({"examples": [1]}, "Example must be JSON object but got JSON Number"),
        (
            {"examples": [{"x": None}]},
            "Feature: x has element with unexpected JSON type: Null",
        ),
        (
            {"examples": [{"x": [[1.0]]}]},
            "Feature: x has element with unexpected JSON type: Array",
        ),
        (
            {"examples": [{"x": {"b65": ""}}]},
            "Feature: x has element with unexpected JSON type: Object",
        ),
        (
            {"examples": [{"x": [1.0, "a"]}]},
            "Unexpected element type in feature: x expecting type: float",
        ),
        (
            {"examples": [{"x": 2**63}]},
            "Feature: x has uint64_t element. Only int64_t is supported.",
        ),
        (
            {"signature_name": "none", "examples": [{}]},
            "No signature was found with the name: none",
        ),
        (
            {"signature_name": 1},
            'JSON Value: {\n    "signature_name": 1\n} not formatted correctly. '
            "'signature_name' key must be a string value.",
        ),
    ],
)
def test_check_79_refusals(post: Call, body: Any, text: str) -> None:
    for method in ("classify", "regress"):
        assert error(post(f"{EXAMPLES}:{method}", body)) == (400, text)


def test_check_79_names_that_are_not_utf8(post: Call) -> None:
    answer = post(f"{EXAMPLES}:regress", b'{"examples": [{"\xff": 1}]}')
    assert error(answer) == (400, "A name in the request is not valid UTF-8")


def test_check_79_predict_signatures_are_refused(post: Call) -> None:
    for method in ("classify", "regress"):
        assert post(f"/v1/models/zoo:{method}", {"examples": [{"x": 1.0}]}).status == 400
    unknown = post("/v1/models/none:classify", {"examples": [{}]})
    assert error(unknown) == (404, "Servable not found for request: Latest(none)")


# --- metrics --------------------------------------------------------------------------------


def _counted(call: Call, model: str, status: str) -> int:
    name = f':tensorflow:serving:request_count{{model_name="{model}",status="{status}"}} '
    lines = call("GET", METRICS_PATH).body.decode().splitlines()
    return sum(int(line.removeprefix(name)) for line in lines if line.startswith(name))


def test_check_80_metrics_page(call: Call) -> None:
    good, bad = _counted(call, "half", "OK"), _counted(call, "half", "INVALID_ARGUMENT")
    call("POST", HALF, {"instances": [2.0]})
    call("POST", HALF, {"instances": ["a"]})
    page = call("GET", METRICS_PATH)
    assert page.status == 200
    assert page.headers["Content-Type"].startswith("text/plain")
    lines = page.body.decode().splitlines()
    assert "# TYPE :tensorflow:serving:request_count counter" in lines
    assert "# TYPE :tensorflow:serving:request_latency histogram" in lines
    assert _counted(call, "half", "OK") == good + 1
    assert _counted(call, "half", "INVALID_ARGUMENT") == bad + 1
    for name in (
        'request_latency_count{model_name="half",API="predict",entrypoint="REST"} ',
        'runtime_latency_count{model_name="half",API="Predict",runtime="TF1"} ',
    ):
        assert [line for line in lines if line.startswith(f":tensorflow:serving:{name}")]


def test_check_80_no_metrics_page_unless_asked_for(
    half_plus_two: Path, publish: Any, tmp_path: Path, start_server: Any
) -> None:
    publish(half_plus_two, tmp_path / "half", 1)
    server = start_server({"half": tmp_path / "half"}, rest_port=0)
    assert request(server.rest_port, "GET", METRICS_PATH).status == 404
