"""A client's line to a server, of every kind that the load generator calls by."""

from __future__ import annotations

import asyncio
from typing import Protocol

import grpc

TIMEOUT_SECONDS = 30.0


class CallError(Exception):
    """A call failed; the text is its status."""


class Connection(Protocol):
    """One client's line to the server, shared with no other client."""

    async def call(self, request: bytes) -> bytes:
        """The answer to a request; raises CallError."""


class GrpcioConnection:
    """What grpcio has for an event loop."""

    def __init__(self, target: str, method: str) -> None:
        self._channel = grpc.aio.insecure_channel(
            target,
            options=[
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.max_receive_message_length", -1),
            ],
        )
        self._call = self._channel.unary_unary(method, None, None)

    async def call(self, request: bytes) -> bytes:
        """See Connection."""
        try:
            return await self._call(request, timeout=TIMEOUT_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise CallError(f"{error.code().name}: {error.details()}") from error


class BlockingGrpcioConnection:
    """What most clients of grpcio use; for one at a time.

    grpc.aio hands every answer from a thread of its own to the event loop, for which a lone client
    would wait.
    """

    def __init__(self, target: str, method: str) -> None:
        self._channel = grpc.insecure_channel(
            target, options=[("grpc.max_receive_message_length", -1)]
        )
        self._call = self._channel.unary_unary(method, None, None)

    async def call(self, request: bytes) -> bytes:
        """See Connection."""
        try:
            answer: bytes = self._call(request, timeout=TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            raise CallError(f"{error.code().name}: {error.details()}") from error
        return answer


class HttpConnection(asyncio.Protocol):
    """HTTP/1.1 kept alive, one call at a time, with no more parsing than a correct answer needs."""

    def __init__(self, target: str, path: str) -> None:
        self._address = target.rsplit(":", 1)
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: {target}\r\nContent-Type: application/json\r\n"
            "Content-Length: "
        ).encode()
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._answer: asyncio.Future[bytes] | None = None

    async def call(self, request: bytes) -> bytes:
        """See Connection."""
        loop = asyncio.get_running_loop()
        if self._transport is None:
            host, port = self._address
            await loop.create_connection(lambda: self, host, int(port))
        self._received.clear()
        self._answer = loop.create_future()
        assert self._transport is not None
        self._transport.write(b"%s%d\r\n\r\n%s" % (self._head, len(request), request))
        return await self._answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Of asyncio."""
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(CallError(f"connection lost: {exc}"))

    def data_received(self, data: bytes) -> None:
        """Of asyncio."""
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0 or self._answer is None or self._answer.done():
            return
        head = bytes(self._received[:end]).lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r", 1)[0])
        if len(self._received) < end + 4 + length:
            return
        body = bytes(self._received[end + 4 :])
        if head.startswith(b"http/1.1 200"):
            self._answer.set_result(body)
        else:
            self._answer.set_exception(CallError(f"{head[9:12].decode()}: {body[:200]!r}"))
