"""A gRPC server of callbacks: one thread reads gRPC's completion queue and calls the handlers.

An empty call of 2 KB costs 200 us of the processor in grpc.aio and 250 in grpc.server, where it
passes through an event loop or through several threads. Here it costs 55. This stands on what both
of them are made of, `cygrpc`, and uses it as grpc.server does:
https://github.com/grpc/grpc/blob/v1.65.5/src/python/grpcio/grpc/_server.py
It is no public interface; setup.py pins grpcio to one version.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # grpc-stubs

from serving.errors import ServingError, details

_LOG = logging.getLogger(__name__)

Handler = Callable[[bytes, "Call"], None]
"""Gets the serialised request in the thread that all calls need, so it must not take long. Ends the
call, then or later, or raises ServingError."""

_Message = TypeVar("_Message", bound=Message)

# Calls that gRPC may hand over before the thread has come round to asking for more.
_REQUESTED_CALLS = 64
_NO_FLAGS = 0
# Each look reads one socket at most (https://github.com/grpc/grpc/blob/v1.65.5/src/core/lib/iomgr/
# ev_epoll1_linux.cc, MAX_EPOLL_EVENTS_HANDLED_PER_ITERATION), and not all of them complete a call.
_LOOKS = 4
_AT_ONCE = 0.0
# What handlers have left waits no longer than this for a lull. When there is too much to do, the
# calls that came in during a run are all read before the next one, so that they can be refused.
_LONGEST_WAIT_SECONDS = 0.02
# Without a deadline a call has one in the year 292277026596.
_NO_DEADLINE_SECONDS = 10 * 365 * 24 * 3600.0
# After which another thread takes the place of one that is busy; longer than what is run here.
_PATIENCE_SECONDS = 0.05


class Call:
    """One call of a client. The methods may be called from any thread.

    Attributes:
      deadline: time.monotonic() at which the client gives up; None = never.
    """

    __slots__ = (
        "_call",
        "_has_begun",
        "_is_answered",
        "_is_over",
        "_on_over",
        "_server",
        "deadline",
    )

    def __init__(self, server: Server, call: Any, deadline: float | None) -> None:
        self.deadline = deadline
        self._server = server
        self._call = call
        self._has_begun = False
        self._is_answered = False
        self._is_over = False
        self._on_over: Callable[[], object] | None = None

    def send(self, message: bytes) -> None:
        """Sends the first message of a stream; `answer` or `refuse` ends it."""
        self._has_begun = True
        self._start(
            cygrpc.SendInitialMetadataOperation((), _NO_FLAGS),
            cygrpc.SendMessageOperation(message, _NO_FLAGS),
        )

    def answer(self, message: bytes) -> None:
        """Ends the call with its one message, or a stream with its last."""
        self._end(
            cygrpc.SendMessageOperation(message, _NO_FLAGS),
            cygrpc.SendStatusFromServerOperation((), cygrpc.StatusCode.ok, b"", _NO_FLAGS),
        )

    def refuse(self, code: grpc.StatusCode, details: str) -> None:
        """Ends the call with an error."""
        number, text = code.value[0], details.encode(errors="replace")
        self._end(cygrpc.SendStatusFromServerOperation((), number, text, _NO_FLAGS))

    def fail(self, error: Exception) -> None:
        """Ends the call with what a ServingError says; any other is a fault, and logged."""
        if isinstance(error, ServingError):
            self.refuse(error.code, details(error.message))
        else:
            _LOG.error("a call failed", exc_info=error)
            self.refuse(grpc.StatusCode.UNKNOWN, details(f"{type(error).__name__}: {error}"))

    def when_over(self, callback: Callable[[], object]) -> None:
        """Calls back once, when the call is over: answered, expired, or its client gone."""
        with self._server.lock:
            if not self._is_over:
                self._on_over = callback
                return
        callback()

    def _end(self, *operations: Any) -> None:
        """The first to end a call does so."""
        with self._server.lock:
            if self._is_answered:
                return
            self._is_answered = True
            self._server.unanswered -= 1
        if self._has_begun:
            self._start(*operations)
        else:
            self._start(cygrpc.SendInitialMetadataOperation((), _NO_FLAGS), *operations)

    def _start(self, *operations: Any) -> None:
        with self._server.lock:
            self._server.due += 1
        if self._call.start_server_batch(operations, self._server.on_sent):
            # The client of a stream has not read its first message: stopping cancels it.
            self._server.on_sent(None)

    def receive(self, handler: Handler) -> None:
        """Has `handler` called with the message of the client. For the server."""
        self._call.start_server_batch(
            (cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),), self._on_close
        )

        def on_message(event: Any) -> None:
            message = event.batch_operations[0].message()
            if message is None:
                # The client is gone, or never sent one, which it is told in grpc's words.
                self.refuse(
                    grpc.StatusCode.UNIMPLEMENTED, "exactly one request message is required"
                )
                return
            try:
                handler(message, self)
                self._server.on_message()
            # Process boundary: the fault of one call must not end the thread of all.
            except Exception as error:
                self.fail(error)

        self._call.start_server_batch((cygrpc.ReceiveMessageOperation(_NO_FLAGS),), on_message)

    def _on_close(self, event: Any) -> None:
        with self._server.lock:
            self._is_over = True
            callback, self._on_over = self._on_over, None
        try:
            if callback is not None:
                callback()
        finally:
            self._server.on_call_over()


class Server:
    """Ports, and the thread that serves them.

    What handlers leave to `run_waiting` runs in that thread, too, when no further call is coming
    in: handing it to another and fighting with that for Python's global lock costs half as much
    again. Should a run, or a handler, keep the thread for long, another takes its place.

    Args:
      handlers: of the methods, by their full names ("/package.Service/Method").
      run_waiting: does a part of what the handlers have left, and says whether there is more.
      options: gRPC channel arguments.
      max_concurrent_calls: further ones get RESOURCE_EXHAUSTED.
    """

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        run_waiting: Callable[[], bool],
        options: Sequence[tuple[str, str | int]],
        max_concurrent_calls: int,
    ) -> None:
        self._handlers = {name.encode(): handler for name, handler in handlers.items()}
        self._run_waiting = run_waiting
        self._max_concurrent_calls = max_concurrent_calls
        self._queue = cygrpc.CompletionQueue()
        self._server = cygrpc.Server(tuple(options), False)
        self._server.register_completion_queue(self._queue)
        self._leader: threading.Thread | None = None
        self._busy_since = math.inf  # time.monotonic() since which the leader has not been polling
        self._work_since = math.inf  # time.monotonic() since which there is some for `run_waiting`
        self._calls = 0
        self._stopping = False
        self._shut_down = threading.Event()
        # For the calls: guards what they and the server count. Entered directly where nothing is
        # waited for: a Condition is in Python.
        self.lock = threading.Lock()
        self._all_sent = threading.Condition(self.lock)
        self.due = 0  # events of calls that are still to come
        self.unanswered = 0

    def add_port(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        """Listens on an address, "host:port" or "unix:path"; with TLS if there are credentials.

        Returns:
          the port.

        Raises:
          OSError: the address cannot be listened on.
        """
        secrets = () if credentials is None else (credentials._credentials,)  # type: ignore[attr-defined]
        port: int = self._server.add_http2_port(address.encode(), *secrets)
        if not port:
            raise OSError(f"gRPC cannot listen on {address}")
        return port

    def start(self) -> None:
        """Begins to take calls."""
        self._server.start()
        for _ in range(_REQUESTED_CALLS):
            self._request_call()
        self._lead()
        threading.Thread(target=self._watch, name="grpc-watch", daemon=True).start()

    def stop(self, grace_seconds: float) -> None:
        """Takes no new calls, and cancels those that have not ended after the grace time."""
        self._stopping = True
        self._server.shutdown(self._queue, self._on_shutdown)
        with self._all_sent:
            self._all_sent.wait_for(lambda: not self.due, grace_seconds)
        # Also closes the connections: idle clients answer no GOAWAY, and would be waited for.
        self._server.cancel_all_calls()
        self._shut_down.wait()
        with self.lock:
            if self.unanswered:
                return  # a run outlives the grace time: its answer goes nowhere, but needs a queue
        self._server.destroy()
        self._queue.shutdown()
        if self._leader is not None:
            self._leader.join()

    # --- the thread -------------------------------------------------------------------------

    def _lead(self) -> None:
        self._busy_since = math.inf
        self._leader = threading.Thread(target=self._serve, name="grpc", daemon=True)
        self._leader.start()

    def _watch(self) -> None:
        while not self._shut_down.wait(_PATIENCE_SECONDS):
            if time.monotonic() - self._busy_since > _PATIENCE_SECONDS:
                self._lead()

    def _serve(self) -> None:
        me = threading.current_thread()
        looks = 0  # for further calls, in vain, since the last event
        while self._leader is me:
            event = self._queue.poll(None if self._work_since == math.inf else _AT_ONCE)
            self._busy_since = now = time.monotonic()
            try:
                if event.completion_type == cygrpc.CompletionType.queue_shutdown:
                    return
                if event.completion_type == cygrpc.CompletionType.operation_complete:
                    looks = 0
                    event.tag(event)
                else:
                    looks += 1
                if looks == _LOOKS or now - self._work_since > _LONGEST_WAIT_SECONDS:
                    looks = 0
                    self._work_since = math.inf
                    if self._run_waiting():
                        self._work_since = time.monotonic()
            # Nothing is known to raise; should something, the other calls need this thread.
            except Exception:
                _LOG.exception("an event of gRPC was not handled")
            # As in grpc.server: an event that is kept while polling keeps its call, which can spin.
            del event
            if self._leader is me:
                self._busy_since = math.inf
        # Another has taken the place, and may be waiting for calls; it does not see what is left.
        while self._run_waiting():
            pass

    def _request_call(self) -> None:
        self._server.request_call(self._queue, self._queue, self._on_call)

    def _on_call(self, event: Any) -> None:
        if not event.success:
            return  # the server is stopping
        if not self._stopping:
            self._request_call()
        wanted = event.call_details
        remaining = wanted.deadline - time.time()
        deadline = time.monotonic() + remaining if remaining < _NO_DEADLINE_SECONDS else None
        with self.lock:
            self._calls += 1
            self.due += 1
            self.unanswered += 1
        call = Call(self, event.call, deadline)
        handler = self._handlers.get(wanted.method, _unknown)
        call.receive(handler if self._calls <= self._max_concurrent_calls else _too_many)

    def _on_shutdown(self, event: Any) -> None:
        self._shut_down.set()

    # --- told by the calls ------------------------------------------------------------------

    def on_message(self) -> None:
        """Told after a handler has been called."""
        self._work_since = min(self._work_since, time.monotonic())

    def on_call_over(self) -> None:
        """Told after the last event that a call gets from its client."""
        with self.lock:
            self._calls -= 1
        self.on_sent(None)

    def on_sent(self, event: Any) -> None:
        """Told when what a call sent is out, or never will be."""
        with self.lock:
            self.due -= 1
            if not self.due:
                self._all_sent.notify_all()


def decoded(message: bytes, kind: type[_Message]) -> _Message:
    """A request as protobuf.

    Raises:
      ServingError: INTERNAL, as gRPC in C++ answers what is none.
    """
    try:
        return kind.FromString(message)
    except DecodeError as error:
        raise ServingError(
            grpc.StatusCode.INTERNAL, f"Failed to parse the request: {error}"
        ) from error


def _unknown(message: bytes, call: Call) -> None:
    call.refuse(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")


def _too_many(message: bytes, call: Call) -> None:
    call.refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!")
