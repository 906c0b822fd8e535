"""The load generator's client of gRPC and its open loop, against servers of grpcio."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
import pytest

from benchmarks.serving import http2
from benchmarks.serving.connections import CallError
from benchmarks.serving.frames import write_frames
from benchmarks.serving.http2 import GrpcConnection
from benchmarks.serving.load import Plan, _Run

METHOD = "/test/Method"
LARGEST_REQUEST = 2**14 - 5

Answer = Callable[[bytes, Any], Awaitable[bytes]]


async def echo(request: bytes, context: Any) -> bytes:
    return request


@contextlib.asynccontextmanager
async def serving(answer: Answer, port: int = 0) -> AsyncIterator[str]:
    """Serves METHOD; yields "host:port"."""
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(answer)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("test", {"Method": handler}),)
    )
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def within_seconds(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 30.0))


def test_answers_come_back_to_their_calls_however_many_are_under_way() -> None:
    """More than the server takes before it asks for more (64 KB), and answers of many frames."""

    async def tripled(request: bytes, context: Any) -> bytes:
        await asyncio.sleep(0.01 if request[0] % 2 else 0)  # not in the order of the calls
        return request * 3

    async def work() -> None:
        async with serving(tripled) as target:
            connection = GrpcConnection(target, METHOD)
            sizes = [1, 2, 300, 9_000, LARGEST_REQUEST]
            requests = [bytes([n]) * sizes[n % len(sizes)] for n in range(200)]
            answers = await asyncio.gather(*(connection.call(request) for request in requests))
            assert answers == [request * 3 for request in requests]

    within_seconds(work())


def test_a_connection_that_has_received_much_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2, "_LARGEST_WINDOW", http2._DEFAULT_WINDOW + 1)
    monkeypatch.setattr(http2, "_REPLENISH_BYTES", 20_000)

    async def work() -> None:
        async with serving(echo) as target:
            connection = GrpcConnection(target, METHOD)
            for _ in range(50):
                assert await connection.call(bytes(10_000)) == bytes(10_000)

    within_seconds(work())


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (grpc.StatusCode.UNAVAILABLE, "the queue is full"),
        (grpc.StatusCode.INVALID_ARGUMENT, "ids: 100 % wrong, naïve\n" + "x" * 300),
        (grpc.StatusCode.DATA_LOSS, ""),
    ],
)
def test_errors_are_told_as_by_grpcio(code: grpc.StatusCode, details: str) -> None:
    async def refuse(request: bytes, context: Any) -> bytes:
        if request == b"good":
            return b"answer"
        await context.abort(code, details)
        raise AssertionError

    async def work() -> None:
        async with serving(refuse) as target:
            connection = GrpcConnection(target, METHOD)
            for _ in range(2):
                with pytest.raises(CallError) as caught:
                    await connection.call(b"bad")
                assert str(caught.value) == f"{code.name}: {details}"
                assert await connection.call(b"good") == b"answer"

    within_seconds(work())


def test_a_method_that_is_not_there_is_unimplemented() -> None:
    async def work() -> None:
        async with serving(echo) as target:
            with pytest.raises(CallError, match="UNIMPLEMENTED: Method not found!"):
                await GrpcConnection(target, "/test/Other").call(b"x")

    within_seconds(work())


def test_calls_end_when_the_server_goes_and_the_next_one_connects_anew() -> None:
    begun = asyncio.Event()

    async def never(request: bytes, context: Any) -> bytes:
        begun.set()
        await asyncio.sleep(60.0)
        return b""

    async def work() -> None:
        async with serving(never) as target:
            connection = GrpcConnection(target, METHOD)
            call = asyncio.ensure_future(connection.call(b"x"))
            await begun.wait()
        with pytest.raises(CallError):
            await call
        async with serving(echo, int(target.rpartition(":")[2])):
            assert await connection.call(b"again") == b"again"

    within_seconds(work())


def test_a_call_where_nobody_listens_fails() -> None:
    async def work() -> None:
        with pytest.raises(CallError, match="not connected: "):
            await GrpcConnection("127.0.0.1:1", METHOD).call(b"x")

    within_seconds(work())


def test_a_request_that_does_not_fit_in_a_frame_is_refused() -> None:
    async def work() -> None:
        with pytest.raises(ValueError, match=r"16380 bytes; no more than 16 KB"):
            await GrpcConnection("127.0.0.1:1", METHOD).call(bytes(LARGEST_REQUEST + 1))

    within_seconds(work())


@pytest.mark.parametrize("client", ["frames", "grpcio"])
def test_calls_at_a_rate_go_out_on_time_and_pass_by_a_connection_that_hangs(
    tmp_path: Path, client: str
) -> None:
    slow: list[str] = []

    async def answer(request: bytes, context: Any) -> bytes:
        if not slow or context.peer() == slow[0]:  # the first connection
            slow.append(context.peer())
            await asyncio.sleep(0.5)
        return request

    write_frames(tmp_path / "requests", [b"one", b"two"])
    plan = Plan(
        target="",
        requests=[str(tmp_path / "requests")],
        path=METHOD,
        client=client,
        clients=4,
        rate=200.0,
        seconds=1.0,
        warm_seconds=0.2,
        check="",
        check_every=1,
    )
    result: dict[str, Any] = {}

    async def work() -> None:
        async with serving(answer) as target:
            result.update(await _Run(Plan(**vars(plan) | {"target": target})).run())

    within_seconds(work())
    assert result["failed"] == 0
    assert result["checked"] == pytest.approx(240, abs=1), "200 a second for 1.2 s"
    assert result["units"] == pytest.approx(200, abs=5)
    assert len(slow) <= 4, "it has one call under way, the others none"
