"""Clients that are slow, vanish, or ask for what no client should."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf

from schemas import names
from serving.options import BatchingOptions, ServerOptions
from serving.server import ModelServer
from serving.versions import State

pytestmark = pytest.mark.slow

OK, INVALID = grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)[:3] + b"\x04" + bytes(5)
BODY = b'{"instances": [2.0]}'
POST = b"POST /v1/models/zoo:predict HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s" % (
    len(BODY),
    BODY,
)


@pytest.fixture
def server(start_server: Any, publish: Any, zoo: Path, tmp_path: Path) -> Any:
    publish(zoo, tmp_path / "zoo", 1)
    return start_server({"zoo": tmp_path / "zoo"}, rest_port=0, batching=BatchingOptions())


def plus_two(caller: Any, x: float = 2.0, timeout: float = 20.0) -> float:
    return caller.predict("zoo", {"x": [x]}, timeout=timeout).outputs["y"].float_val[0]


def calls_in_flight(server: Any, model: str = "zoo") -> int:
    with server.versions.lease(model) as servable:
        return servable.calls_in_flight - 1


@pytest.mark.parametrize(("port", "message"), [("port", PREFACE), ("rest_port", POST)])
def test_trickling_clients_hold_nobody_up(
    port: str, message: bytes, server: Any, connect: Any
) -> None:
    caller = connect(server.port)
    plus_two(caller)
    with contextlib.ExitStack() as undo:
        slow = [
            undo.enter_context(socket.create_connection(("127.0.0.1", getattr(server, port))))
            for _ in range(100)
        ]
        worst = 0.0
        for byte in message[:-1]:
            for connection in slow:
                connection.sendall(bytes([byte]))
            started = time.monotonic()
            assert plus_two(caller) == 3.0
            worst = max(worst, time.monotonic() - started)
        assert worst < 1.0
        if port == "rest_port":  # and slow is not wrong
            for connection in slow:
                connection.sendall(message[-1:])
                assert connection.recv(12) == b"HTTP/1.1 200"
    assert calls_in_flight(server) == 0


def test_clients_that_do_not_read_hold_nobody_up(server: Any, connect: Any, wait_for: Any) -> None:
    caller = connect(server.port)
    body = b'{"signature_name": "text", "instances": ["%s"]}' % (b"a" * 4_000_000)
    head = b"POST /v1/models/zoo:predict HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n"
    with contextlib.ExitStack() as undo:
        for _ in range(10):
            connection = undo.enter_context(
                socket.create_connection(("127.0.0.1", server.rest_port))
            )
            connection.sendall(head % len(body) + body)  # and never reads the 4 MB of the answer
        started = time.monotonic()
        assert plus_two(caller) == 3.0
        assert time.monotonic() - started < 2.0
        wait_for(lambda: calls_in_flight(server) == 0, "no lease waits for a reader")


def test_dropped_connections_leak_no_lease_and_unloading_still_works(
    server: Any, ask: Any, connect: Any, publish: Any, zoo: Path, wait_for: Any, tmp_path: Path
) -> None:
    caller = connect(server.port)
    plus_two(caller)
    inputs = {"n": tf.make_tensor_proto(100_000, tf.int64)}
    message = ask("zoo", inputs, "loop").SerializeToString()
    for _ in range(10):
        gone = connect(server.port)
        running = [gone.raw("Predict", message) for _ in range(2)]
        time.sleep(0.05)
        gone.channel.close()
        assert all(future.code() is grpc.StatusCode.CANCELLED for future in running)
        with socket.create_connection(("127.0.0.1", server.rest_port)) as connection:
            connection.sendall(POST[:-3])
        with socket.create_connection(("127.0.0.1", server.rest_port)) as connection:
            connection.sendall(POST)
    wait_for(lambda: calls_in_flight(server) == 0, "no leaked lease", seconds=30.0)
    assert plus_two(caller) == 3.0
    publish(zoo, tmp_path / "zoo", 2)
    unloaded = {2: int(State.AVAILABLE), 1: int(State.END)}
    wait_for(lambda: caller.states("zoo") == unloaded, "unloaded", seconds=30.0)


def test_messages_of_200_mb_are_answered_and_others_meanwhile(
    server: Any, ask: Any, connect: Any, methods: Any
) -> None:
    big, other = connect(server.port), connect(server.port)
    plus_two(other)
    numbers = np.arange(50_000_000 // 4, dtype=np.float32).repeat(4)
    tensor = tf.make_tensor_proto(numbers)
    assert len(tensor.tensor_content) == 200_000_000
    messages = {
        "text": ask("zoo", {"s": [b"x" * 200_000_000]}, "text"),
        "numbers": ask("zoo", {"x": tensor}),
    }
    for kind, request in messages.items():
        # More rows than a batch may have are refused, as by TensorFlow Serving with batching.
        expected = OK if kind == "text" else INVALID
        future = big.raw("Predict", request.SerializeToString(), 120.0)
        answered, worst = 0, 0.0
        while not future.done():
            started = time.monotonic()
            assert plus_two(other) == 3.0
            answered, worst = answered + 1, max(worst, time.monotonic() - started)
        assert future.code() is expected, future.details()
        assert answered > 0
        assert worst < 5.0
        if expected is OK:
            (text,) = methods["Predict"][2].FromString(future.result()).outputs["s"].string_val
            assert text == b"x" * 200_000_000
    assert calls_in_flight(server) == 0


def test_a_small_message_cannot_claim_all_memory(server: Any, ask: Any, connect: Any) -> None:
    caller = connect(server.port)
    one = tf.make_tensor_proto([1.0])
    one.tensor_shape.dim[0].size = 2**29 - 1
    long = tf.make_tensor_proto([b"x" * 1_000_000])
    long.tensor_shape.dim[0].size = 1_000_000
    for inputs, signature in (({"x": one}, ""), ({"s": long}, "text")):
        (alias,) = inputs
        code, text = caller.error(lambda i=inputs, s=signature: caller.predict("zoo", i, s))
        assert (code, text) == (INVALID, f"tensor parsing error: {alias}")


# --- a real export ------------------------------------------------------------------------------


FLAVOURS = [(flavour, batched) for flavour in names.FLAVOURS for batched in (True, False)]


@pytest.fixture(scope="module", params=FLAVOURS, ids=str)
def shop_port(
    request: pytest.FixtureRequest,
    exported: Any,
    publish: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[int]:
    """A server of each flavour, with and without batching."""
    flavour, batched = request.param
    base = tmp_path_factory.mktemp("shop")
    publish(exported.directory / flavour, base, 1)
    batching = BatchingOptions() if batched else None
    options = ServerOptions({"shop": base}, host="127.0.0.1", port=0, batching=batching)
    with ModelServer(options) as server:
        yield server.port


@pytest.fixture
def shop_caller(shop_port: int, connect: Any) -> Any:
    return connect(shop_port)


def strings(rows: list[list[bytes]]) -> Any:
    return tf.make_tensor_proto(np.array(rows, object), tf.string)


def floats(rows: Any) -> Any:
    return tf.make_tensor_proto(np.array(rows, np.float32))


def ids(answer: Any) -> list[bytes]:
    return list(answer.outputs[names.ITEM_IDS].string_val)


USER = {names.USER_ID: [b"u1"]}


def test_weights_are_checked_and_negative_ones_are_weights(shop_caller: Any) -> None:
    plain = ids(shop_caller.predict("shop", USER))
    bad = [
        [[float("nan"), 1, 1]],
        [[1, float("inf"), 1]],
        [[1, 1, -float("inf")]],
        [[1, 1]],
        [[1, 1, 1, 1]],
        [[]],
    ]
    for weights in bad:
        inputs = USER | {names.OBJECTIVE_WEIGHTS: floats(weights)}
        good = shop_caller.raw("Predict", request_of(USER))  # may share its batch
        code, text = shop_caller.error(lambda i=inputs: shop_caller.predict("shop", i))
        assert code is INVALID
        assert names.OBJECTIVE_WEIGHTS in text, (weights, text)
        assert good.code() is OK
    for weights in ([[1, -0.5, 0.2]], [[-1, -1, -1]], [[0, 0, 0]], [[1e30, 1e30, 1e30]]):
        answer = shop_caller.predict("shop", USER | {names.OBJECTIVE_WEIGHTS: floats(weights)})
        scores = np.array(answer.outputs[names.SCORES].float_val)
        assert len(set(ids(answer))) == len(plain)
        assert np.all(np.isfinite(scores))
        assert np.all(np.diff(scores) <= 1e-5 * np.abs(scores[:-1]))
    assert ids(shop_caller.predict("shop", USER)) == plain


def request_of(inputs: dict[str, Any]) -> bytes:
    from tensorflow_serving.apis.predict_pb2 import PredictRequest

    request = PredictRequest()
    request.model_spec.name = "shop"
    for alias, value in inputs.items():
        request.inputs[alias].CopyFrom(tf.make_tensor_proto(value))
    return request.SerializeToString()


def test_ten_thousand_exclusions_and_a_long_history_are_answered(
    shop_caller: Any, shop: Any
) -> None:
    first = ids(shop_caller.predict("shop", {names.USER_ID: [b"stranger"]}))
    unknown = [b"no item %d" % number for number in range(10_000 - 3)]
    answer = shop_caller.predict(
        "shop",
        {
            names.USER_ID: [b"stranger"],
            names.EXCLUDE_ITEM_IDS: strings([[*first[:3], *unknown]]),
        },
    )
    assert ids(answer)[: len(first) - 3] == first[3:]
    items = [b"i%d" % (number % 40) for number in range(5_000)]
    recent = items[-6:]  # what the graph reads
    levels = tf.make_tensor_proto([[0] * len(items)], tf.int64)
    history = {names.HISTORY_ITEM_IDS: strings([items]), names.HISTORY_LEVELS: levels}
    long = shop_caller.predict("shop", {names.USER_ID: [b"stranger"]} | history)
    assert ids(long) == [b""] * len(first), "everything has been seen"
    blocks = [
        list(shop_caller.predict("shop", inputs, "embed_user").outputs["blocks"].float_val)
        for inputs in (
            {names.USER_ID: [b"stranger"]} | history,
            {
                names.USER_ID: [b"stranger"],
                names.HISTORY_ITEM_IDS: strings([recent]),
                names.HISTORY_LEVELS: tf.make_tensor_proto([[0] * 6], tf.int64),
            },
        )
    ]
    assert blocks[0] == pytest.approx(blocks[1], abs=1e-5)


@pytest.mark.parametrize(
    "odd", [b"\0", b"u\0 1", b"\xff\xfe", b"\xed\xa0\x80", b"x" * 2**20, b"", b"%s{}\n"]
)
def test_ids_may_be_any_bytes(odd: bytes, shop_caller: Any) -> None:
    stranger = ids(shop_caller.predict("shop", {names.USER_ID: [b"stranger"]}))
    assert ids(shop_caller.predict("shop", {names.USER_ID: [odd]})) == stranger
    excluded = {names.USER_ID: [b"stranger"], names.EXCLUDE_ITEM_IDS: strings([[odd]])}
    assert ids(shop_caller.predict("shop", excluded)) == stranger
    titles = shop_caller.predict("shop", {names.ITEM_IDS: strings([[odd, b"i4"]])}, "item_titles")
    assert list(titles.outputs[names.TITLES].string_val) == [b"", b"Title of 4"]


def test_inputs_that_do_not_fit_are_named(shop_caller: Any) -> None:
    two = {names.USER_ID: [b"u1", b"u2"]}
    three = floats([[1, 1, 1]] * 3)
    code, text = shop_caller.error(
        lambda: shop_caller.predict("shop", two | {names.OBJECTIVE_WEIGHTS: three})
    )
    assert code is INVALID
    assert text
    plain = {names.OBJECTIVE_WEIGHTS: floats([1, 1, 1])}
    code, text = shop_caller.error(lambda: shop_caller.predict("shop", USER | plain))
    assert code is INVALID
    assert text
    code, text = shop_caller.error(
        lambda: shop_caller.predict("shop", USER | {"objective_weight": floats([[1, 1, 1]])})
    )
    assert code is INVALID
    assert "Inputs contains invalid name" in text or "objective_weight" in text
    code, text = shop_caller.error(
        lambda: shop_caller.predict("shop", USER | {names.EXCLUDE_ITEM_IDS: floats([[1]])})
    )
    assert code is INVALID
    assert "string" in text
