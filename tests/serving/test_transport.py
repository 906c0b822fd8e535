"""The gRPC server of callbacks, with gRPC's own client."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from serving import transport
from serving.errors import ServingError, invalid_argument
from serving.transport import Call, Server, decoded

CANCELLED, UNKNOWN = grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
OPTIONS = [("grpc.so_reuseport", 0)]
LONG_BYTES = 50_000_000  # more than gRPC takes from a server before a client has asked for it


class Service:
    """A server of one method of every kind, and a channel to it."""

    def __init__(self, max_concurrent_calls: int = 1000) -> None:
        self.calls: list[Any] = []
        self.kept: list[Call] = []
        self.left: list[tuple[bytes, Call]] = []
        self.lulls: list[int] = []  # how many had been left when the server came round to them
        self.at_once = 1000  # of these are done at a time
        self.while_running: Callable[[], object] = lambda: None
        self.over = threading.Semaphore(0)
        self.release = threading.Event()
        self.server = Server(
            {
                "/test/echo": lambda message, call: call.answer(message),
                "/test/keep": self._keep,
                "/test/leave": lambda message, call: self.left.append((message, call)),
                "/test/block": self._block,
                "/test/block-and-leave": self._block_and_leave,
                "/test/wrong": self._wrong,
                "/test/stream": self._stream,
                "/test/long-stream": lambda _, call: self._stream(bytes(LONG_BYTES), call),
            },
            self._run_waiting,
            OPTIONS,
            max_concurrent_calls,
        )
        self.port = self.server.add_port("127.0.0.1:0")
        self.server.start()
        self.channel = grpc.insecure_channel(
            f"127.0.0.1:{self.port}", [("grpc.max_receive_message_length", -1)]
        )

    def __call__(self, method: str, message: bytes = b"x", timeout: float | None = 20.0) -> Any:
        # gRPC cancels calls that nobody holds.
        self.calls.append(self.channel.unary_unary(f"/test/{method}").future(message, timeout))
        return self.calls[-1]

    def kept_call(self) -> Call:
        until(lambda: bool(self.kept))
        return self.kept.pop()

    def _keep(self, message: bytes, call: Call) -> None:
        self.kept.append(call)
        call.when_over(self.over.release)

    def _run_waiting(self) -> bool:
        if self.left:
            self.lulls.append(len(self.left))
            self.while_running()
        now, self.left = self.left[: self.at_once], self.left[self.at_once :]
        for message, call in now:
            call.answer(message)
        return bool(self.left)

    def _block(self, message: bytes, call: Call) -> None:
        assert self.release.wait(20.0)
        call.answer(message)

    def _block_and_leave(self, message: bytes, call: Call) -> None:
        assert self.release.wait(20.0)
        self.left.append((message, call))

    def _wrong(self, message: bytes, call: Call) -> None:
        if message == b"argument":
            raise invalid_argument("what was given")
        raise LookupError("a fault")

    def _stream(self, message: bytes, call: Call) -> None:
        call.send(message)
        self._keep(message, call)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.release.set()
    made.channel.close()
    made.server.stop(0.0)


def test_calls_are_answered_by_their_handler(service: Service) -> None:
    calls = [service("echo", b"%d" % number) for number in range(200)]
    assert [call.result() for call in calls] == [b"%d" % number for number in range(200)]
    unknown = service("nothing")
    assert unknown.code() is grpc.StatusCode.UNIMPLEMENTED
    assert unknown.details() == "Method not found!"


def test_what_handlers_leave_is_done_when_no_more_calls_come(service: Service) -> None:
    blocking = service("block")
    calls = [service("leave", b"%d" % number) for number in range(20)]
    service.release.set()
    assert [call.result() for call in calls] == [b"%d" % number for number in range(20)]
    assert blocking.result() == b"x"
    assert sum(service.lulls) == 20
    assert max(service.lulls) > 1  # together


def test_calls_that_come_in_during_a_run_are_read_before_the_next(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_PATIENCE_SECONDS", 10.0)
    service.at_once = 1
    calls = []

    def call_again() -> None:
        for message in {1: [b"second"], 2: [b"third", b"fourth"]}.get(len(service.lulls), []):
            calls.append(service("leave", message))
            time.sleep(0.1)

    service.while_running = call_again
    assert service("leave", b"first").result() == b"first"
    until(lambda: len(calls) == 3)
    assert [call.result() for call in calls] == [b"second", b"third", b"fourth"]
    assert service.lulls == [1, 1, 2, 1]


def test_a_handler_that_takes_long_holds_up_no_other(service: Service) -> None:
    for _ in range(3):  # each takes the place of the one before
        service("block")
        started = time.monotonic()
        assert service("echo").result() == b"x"
        assert time.monotonic() - started < 5.0
    assert service("leave").result() == b"x"


def test_what_a_handler_that_took_long_has_left_is_done(service: Service) -> None:
    call = service("block-and-leave")
    assert service("echo").result() == b"x"  # another thread has taken the place
    service.release.set()
    assert call.result() == b"x"


def test_a_stream_of_calls_does_not_keep_what_is_left_waiting(service: Service) -> None:
    done = threading.Event()

    def flood() -> None:
        while not done.is_set():
            service.channel.unary_unary("/test/echo")(b"x")

    threads = [threading.Thread(target=flood) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            assert service("leave").result() == b"x"
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_the_faults_of_a_handler_are_its_callers(service: Service) -> None:
    wrong = service("wrong", b"argument")
    assert (wrong.code(), wrong.details()) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "what was given",
    )
    fault = service("wrong")
    assert (fault.code(), fault.details()) == (UNKNOWN, "LookupError: a fault")
    assert service("echo").result() == b"x"


def test_a_call_knows_its_deadline_and_when_it_is_over(service: Service) -> None:
    service("keep", timeout=None)
    assert service.kept_call().deadline is None
    expiring = service("keep", timeout=0.3)
    call = service.kept_call()
    assert call.deadline is not None
    assert 0.0 < call.deadline - time.monotonic() < 0.4
    assert expiring.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert service.over.acquire(timeout=10.0)
    # gRPC has it on another clock, which runs apart from this one by a little.
    assert time.monotonic() >= call.deadline - 0.01
    call.answer(b"too late")  # for nobody

    leaving = service("keep")
    call = service.kept_call()
    leaving.cancel()
    assert service.over.acquire(timeout=10.0)
    called = threading.Event()
    call.when_over(called.set)
    assert called.is_set()  # at once: it is over

    answered = service("keep")
    call = service.kept_call()
    call.answer(b"first")
    call.refuse(CANCELLED, "second")
    assert answered.result() == b"first"
    assert service.over.acquire(timeout=10.0)


def test_calls_beyond_the_bound_are_refused() -> None:
    service = Service(max_concurrent_calls=2)
    for _ in range(2):
        service("keep")
    until(lambda: len(service.kept) == 2)
    refused = service("echo")
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.details() == "Concurrent RPC limit exceeded!"
    service.kept_call().answer(b"")
    until(lambda: service("echo").code() is grpc.StatusCode.OK)
    service.server.stop(0.0)


def test_a_stream_is_a_message_and_its_end(service: Service) -> None:
    stream = service.channel.unary_stream("/test/stream")(b"now")
    assert next(stream) == b"now"
    service.kept_call().answer(b"later")
    assert list(stream) == [b"later"]
    assert stream.code() is grpc.StatusCode.OK


def test_a_stream_that_its_client_does_not_read_ends_with_the_server() -> None:
    service = Service()
    stream = service.channel.unary_stream("/test/long-stream")(b"")
    service.kept_call().answer(b"later")
    started = time.monotonic()
    service.server.stop(0.3)
    assert 0.3 <= time.monotonic() - started < 5.0
    with pytest.raises(grpc.RpcError) as ended:
        list(stream)
    assert ended.value.code() in (CANCELLED, UNAVAILABLE)


def test_a_client_that_sends_no_message_is_told(service: Service) -> None:
    call = service.channel.stream_unary("/test/echo").future(iter(()))
    assert call.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "exactly one request message" in call.details()


def test_an_address_in_use_is_an_error(service: Service) -> None:
    with pytest.raises(OSError, match=f"gRPC cannot listen on 127.0.0.1:{service.port}"):
        Server({}, lambda: None, OPTIONS, 1).add_port(f"127.0.0.1:{service.port}")


def test_stopping_lets_calls_end_and_waits_for_no_idle_client() -> None:
    service = Service()
    assert service("echo").result() == b"x"
    call = service("keep")
    kept = service.kept_call()
    stopping = threading.Thread(target=service.server.stop, args=(20.0,))
    started = time.monotonic()
    stopping.start()
    time.sleep(0.2)
    assert stopping.is_alive()
    kept.answer(b"in time")
    stopping.join(10.0)
    assert call.result() == b"in time"
    assert time.monotonic() - started < 5.0
    assert service("echo").code() is UNAVAILABLE


def test_what_outlives_the_grace_time_is_cancelled_and_harms_nothing() -> None:
    service = Service()
    call = service("keep")
    kept = service.kept_call()
    started = time.monotonic()
    service.server.stop(0.3)
    assert 0.3 <= time.monotonic() - started < 5.0
    assert call.code() in (CANCELLED, UNAVAILABLE)
    kept.answer(b"too late")


def test_what_is_no_protobuf_is_an_internal_error() -> None:
    from grpc_health.v1.health_pb2 import HealthCheckRequest

    assert decoded(b"\x0a\x01s", HealthCheckRequest).service == "s"
    with pytest.raises(ServingError, match="Failed to parse the request") as wrong:
        decoded(b"\x0a\xff", HealthCheckRequest)
    assert wrong.value.code is grpc.StatusCode.INTERNAL
