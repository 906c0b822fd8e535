"""gRPC Predict as TensorFlow Serving answers it: checks 1 to 30 of the conformance list."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import predict_pb2

from serving.options import BatchingOptions, ServerOptions
from serving.server import ModelServer

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND


@pytest.fixture(scope="module", params=["alone", "batched"])
def server(
    request: pytest.FixtureRequest,
    zoo: Path,
    publish: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ModelServer]:
    base = tmp_path_factory.mktemp("zoo_base")
    publish(zoo, base, "00000123")
    options = ServerOptions(
        models={"zoo": base},
        host="127.0.0.1",
        port=0,
        max_load_retries=0,
        # As long as the longest vector below: each of its elements is a row.
        batching=BatchingOptions(2_500_000) if request.param == "batched" else None,
    )
    with ModelServer(options) as running:
        yield running


@pytest.fixture(scope="module")
def caller(server: ModelServer, connect: Any) -> Any:
    return connect(server.port)


def tensor(dtype: int, shape: list[int], **values: Any) -> tensor_pb2.TensorProto:
    proto = tensor_pb2.TensorProto(dtype=dtype, **values)
    proto.tensor_shape.SetInParent()
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    return proto


def floats(shape: list[int], *values: float) -> tensor_pb2.TensorProto:
    return tensor(types_pb2.DT_FLOAT, shape, float_val=values)


def test_check_01_predict_answers_in_float_val(caller: Any) -> None:
    response = caller.predict("zoo", {"x": floats([1], 2.0)}, signature="serving_default")
    output = response.outputs["y"]
    assert list(output.float_val) == [3.0]
    assert output.dtype == types_pb2.DT_FLOAT
    assert [dim.size for dim in output.tensor_shape.dim] == [1]
    assert output.tensor_content == b""


def test_check_02_output_filter(caller: Any) -> None:
    everything = caller.predict("zoo", {"x": [1.0]}, signature="two_outputs")
    assert sorted(everything.outputs) == ["y", "z"]
    filtered = caller.predict("zoo", {"x": [1.0]}, signature="two_outputs", outputs=("z",))
    assert list(filtered.outputs) == ["z"]
    assert filtered.outputs["z"] == everything.outputs["z"]


def test_check_03_response_model_spec(caller: Any) -> None:
    spec = caller.predict("zoo", {"x": [2.0]}, signature="serving_default").model_spec
    assert (spec.name, spec.version.value) == ("zoo", 123)
    assert spec.signature_name == "serving_default"
    assert spec.WhichOneof("version_choice") == "version"


def test_check_04_empty_signature_name_is_serving_default(caller: Any) -> None:
    response = caller.predict("zoo", {"x": [2.0]})
    assert list(response.outputs["y"].float_val) == [3.0]
    assert response.model_spec.signature_name == "serving_default"


def test_check_05_named_signature(caller: Any) -> None:
    response = caller.predict("zoo", {"x": [2.0]}, signature="triple")
    assert list(response.outputs["y"].float_val) == [6.0]
    assert response.model_spec.signature_name == "triple"


def test_check_06_missing_model_spec(caller: Any, error_of: Any) -> None:
    request = predict_pb2.PredictRequest()
    assert error_of(lambda: caller.prediction.Predict(request, timeout=5)) == (
        INVALID,
        "Missing ModelSpec",
    )


def test_check_07_empty_model_name(caller: Any) -> None:
    assert caller.predict_error("", {"x": [1.0]}) == (INVALID, "ModelSpec has no name specified.")


def test_check_08_unknown_model(caller: Any) -> None:
    assert caller.predict_error("foo", {"x": [1.0]}) == (
        NOT_FOUND,
        "Servable not found for request: Latest(foo)",
    )


def test_check_09_unknown_version(caller: Any) -> None:
    assert caller.predict_error("zoo", {"x": [1.0]}, version=99) == (
        NOT_FOUND,
        "Servable not found for request: Specific(zoo, 99)",
    )


def test_check_09_version_zero_is_a_version(caller: Any) -> None:
    assert caller.predict_error("zoo", {"x": [1.0]}, version=0) == (
        NOT_FOUND,
        "Servable not found for request: Specific(zoo, 0)",
    )


@pytest.mark.parametrize("name", ["s", "__saved_model_init_op"])
def test_check_10_unknown_signature(caller: Any, name: str) -> None:
    assert caller.predict_error("zoo", {"x": [1.0]}, signature=name) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        f'Serving signature key "{name}" not found.',
    )


def test_check_11_no_inputs(caller: Any) -> None:
    assert caller.predict_error("zoo") == (
        INVALID,
        "input size does not match signature: 0!=1 len({}) != len({x}). Sent extra: {}. "
        "Missing but required: {x}.",
    )


def test_check_12_one_input_too_many(caller: Any) -> None:
    assert caller.predict_error("zoo", {"z": [1.0], "x": [1.0]}) == (
        INVALID,
        "input size does not match signature: 2!=1 len({x,z}) != len({x}). Sent extra: {z}. "
        "Missing but required: {}.",
    )


def test_check_13_wrong_input_name(caller: Any) -> None:
    assert caller.predict_error("zoo", {"z": [1.0]}) == (
        INVALID,
        "Signature input alias: x(feed name: serving_default_x:0) not found in request and no "
        "default value provided. Inputs expected to be in the request {z}, or default input "
        "alias set: ",
    )


def test_check_14_wrong_dtype(caller: Any) -> None:
    assert caller.predict_error("zoo", {"x": ["a"]}) == (
        INVALID,
        "Expects arg[0] to be float but string is provided",
    )


def test_check_15_unknown_output(caller: Any) -> None:
    assert caller.predict_error("zoo", {"x": [1.0]}, outputs=("z",)) == (
        INVALID,
        "output tensor alias not found in signature: z Outputs expected to be in the set {y}.",
    )


def test_check_16_duplicate_output(caller: Any) -> None:
    assert caller.predict_error("zoo", {"x": [1.0]}, outputs=("y", "y")) == (
        INVALID,
        "duplicate output tensor alias: y",
    )


@pytest.mark.parametrize(
    "proto",
    [
        tensor(types_pb2.DT_FLOAT, [2], tensor_content=b"12345"),
        floats([2], 1.0, 2.0, 3.0),
        floats([-1], 1.0),
        tensor(types_pb2.DT_INVALID, [1]),
        floats([10**9, 10**9], 1.0),
    ],
    ids=["content length", "too many values", "negative dimension", "no dtype", "absurd size"],
)
def test_check_17_undecodable_tensor(caller: Any, proto: tensor_pb2.TensorProto) -> None:
    assert caller.predict_error("zoo", {"x": proto}) == (INVALID, "tensor parsing error: x")


def test_check_18_only_the_graph_judges_shapes(caller: Any) -> None:
    # The signature says [None]; addition works for any rank, and so does the call.
    response = caller.predict("zoo", {"x": floats([2, 3], 2.0)})
    assert list(response.outputs["y"].float_val) == [3.0] * 6
    code, text = caller.predict_error("zoo", {"x": floats([2, 3], 1.0)}, signature="matmul")
    assert code is INVALID
    assert "Matrix size-incompatible: In[0]: [2,3], In[1]: [2,1]" in text
    assert "{{node MatMul}}]]" in text


def test_check_19_content_typed_and_splat_agree(caller: Any) -> None:
    values = np.full(4, 6.0, np.float32)
    content = tensor(types_pb2.DT_FLOAT, [4], tensor_content=values.tobytes())
    for proto in (content, floats([4], *values), floats([4], 6.0)):
        assert list(caller.predict("zoo", {"x": proto}).outputs["y"].float_val) == [5.0] * 4
    last_repeated = caller.predict("zoo", {"x": floats([3], 2.0, 4.0)})
    assert list(last_repeated.outputs["y"].float_val) == [3.0, 4.0, 4.0]


def test_check_20_strings_are_any_bytes(caller: Any) -> None:
    values = [b"", b"\xff\x00\xfe", "ü".encode(), b"x" * 1000]
    proto = tensor(types_pb2.DT_STRING, [4], string_val=values)
    output = caller.predict("zoo", {"s": proto}, signature="text").outputs["s"]
    assert output.dtype == types_pb2.DT_STRING
    assert list(output.string_val) == values


@pytest.mark.parametrize(("signature", "dtype"), [("half", tf.float16), ("brain", tf.bfloat16)])
def test_check_21_half_types_as_bit_patterns(caller: Any, signature: str, dtype: tf.DType) -> None:
    values = np.array([1.5, -2.0, 0.25], dtype.as_numpy_dtype)
    bits = values.view(np.uint16).tolist()
    proto = tensor(dtype.as_datatype_enum, [3], half_val=bits)
    output = caller.predict("zoo", {"x": proto}, signature=signature).outputs["y"]
    assert len(output.half_val) == 3
    assert tf.make_ndarray(output).tolist() == (values * 2).tolist()


def test_check_22_defaults_fill_missing_inputs(caller: Any) -> None:
    filled = caller.predict("zoo", {"x": [1.0, 2.0]}, signature="scaled")
    assert list(filled.outputs["y"].float_val) == [10.0, 20.0]
    given = caller.predict("zoo", {"x": [1.0, 2.0], "scale": [3.0]}, signature="scaled")
    assert list(given.outputs["y"].float_val) == [3.0, 6.0]


def test_check_22_default_does_not_replace_a_required_input(caller: Any) -> None:
    code, text = caller.predict_error("zoo", {"scale": [3.0]}, signature="scaled")
    assert code is INVALID
    assert text == (
        "Signature input alias: x(feed name: scaled_x:0) not found in request and no default value "
        "provided. Inputs expected to be in the request {scale}, or default input alias set: scale"
    )


def test_check_22_unknown_name_beside_a_default(caller: Any) -> None:
    assert caller.predict_error("zoo", {"x": [1.0], "w": [1.0]}, signature="scaled") == (
        INVALID,
        "Inputs contains invalid name. Used request inputs: x, request input: w,x",
    )


def test_check_24_scalars_and_empty_batches(caller: Any) -> None:
    scalar = caller.predict("zoo", {"x": floats([], 4.0)}, signature="scalar").outputs["y"]
    assert list(scalar.float_val) == [5.0]
    assert scalar.HasField("tensor_shape")
    assert not scalar.tensor_shape.dim
    empty = caller.predict("zoo", {"x": floats([0, 2])}, signature="matmul").outputs["y"]
    assert list(empty.float_val) == []
    assert [dim.size for dim in empty.tensor_shape.dim] == [0, 1]


def test_check_25_long_error_text_is_cut(caller: Any) -> None:
    proto = tensor(types_pb2.DT_STRING, [1], string_val=[b"x" * 5000])
    code, text = caller.predict_error("zoo", {"s": proto}, signature="to_number")
    assert code is INVALID
    assert len(text) == 1024 + len("...TRUNCATED")
    assert text.endswith("x...TRUNCATED")


def test_check_25_error_text_that_is_not_utf8(caller: Any) -> None:
    proto = tensor(types_pb2.DT_STRING, [1], string_val=[b"\xff\xfe not a number"])
    code, text = caller.predict_error("zoo", {"s": proto}, signature="to_number")
    assert code is INVALID
    assert "not a number" in text


def test_check_26_deadline_cancels_the_run(caller: Any, server: ModelServer, wait_for: Any) -> None:
    with server.versions.lease("zoo") as servable:
        before = servable.calls_in_flight
        forever = {"n": tensor(types_pb2.DT_INT64, [], int64_val=[10**15])}
        code, _ = caller.predict_error("zoo", forever, signature="loop", timeout=0.3)
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_for(lambda: servable.calls_in_flight == before, "the run is cancelled", seconds=3)


def test_check_27_messages_beyond_the_default_limits(caller: Any) -> None:
    values = np.arange(2_200_000, dtype=np.float32)
    proto = tensor(types_pb2.DT_FLOAT, [len(values)], tensor_content=values.tobytes())
    request = caller.request("zoo", {"x": proto}, signature="triple")
    assert request.ByteSize() > 8_000_000
    output = caller.prediction.Predict(request, timeout=30).outputs["y"]
    np.testing.assert_array_equal(np.array(output.float_val, np.float32), values * 3)


def test_check_28_variables_keep_their_values(caller: Any) -> None:
    by = {"by": tensor(types_pb2.DT_INT64, [], int64_val=[5])}
    first, second = (
        caller.predict("zoo", by, signature="count").outputs["n"].int64_val[0] for _ in range(2)
    )
    assert second == first + 5


def test_check_29_concurrent_calls_do_not_mix(caller: Any) -> None:
    barrier = threading.Barrier(2)

    def calls(offset: int) -> list[float]:
        barrier.wait()
        return [
            caller.predict("zoo", {"x": floats([1], offset + i)}).outputs["y"].float_val[0]
            for i in range(300)
        ]

    with ThreadPoolExecutor(2) as pool:
        for offset, answers in zip((0, 10_000), pool.map(calls, (0, 10_000)), strict=True):
            assert answers == [(offset + i) / 2 + 2 for i in range(300)]


@pytest.mark.parametrize("method", ["SessionService/SessionRun", "PredictionService/Generate"])
def test_check_30_other_methods_are_unimplemented(caller: Any, error_of: Any, method: str) -> None:
    call = caller.channel.unary_unary(f"/tensorflow.serving.{method}")
    code, _ = error_of(lambda: call(b"", timeout=5))
    assert code is grpc.StatusCode.UNIMPLEMENTED


def test_call_without_deadline(caller: Any) -> None:
    started = time.monotonic()
    response = caller.predict("zoo", {"x": [2.0]}, timeout=None)
    assert list(response.outputs["y"].float_val) == [3.0]
    assert time.monotonic() - started < 5
