"""A client of gRPC that is little more than its frames.

A call costs it 35 us of the processor, and grpc.aio 110 to 150, which the load generator would take
from the server on the same cores. The client of the peers' HTTP/1.1 is as plain.

Frames: https://www.rfc-editor.org/rfc/rfc9113. What gRPC puts in them:
https://github.com/grpc/grpc/blob/v1.65.5/doc/PROTOCOL-HTTP2.md
"""

from __future__ import annotations

import asyncio
import struct
import urllib.parse
from collections import deque
from dataclasses import dataclass

import grpc
import hpack

from benchmarks.serving.connections import TIMEOUT_SECONDS, CallError

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME = struct.Struct(">IBI")  # length * 256 + kind, flags, stream
_MESSAGE = struct.Struct(">BI")  # of gRPC: whether it is compressed, length
_SETTING = struct.Struct(">HI")
_NUMBER = struct.Struct(">I")

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS, _PADDED = 0x1, 0x1, 0x4, 0x8
_HEADER_TABLE_SIZE, _INITIAL_WINDOW_SIZE = 1, 4

_WHOLE_CONNECTION = 0
_DEFAULT_WINDOW = 2**16 - 1
_LARGEST_WINDOW = 2**31 - 1
_REPLENISH_BYTES = 2**30
_LARGEST_FRAME = 2**14  # that every server takes

_CODES = {str(code.value[0]): code.name for code in grpc.StatusCode}


@dataclass(slots=True)
class _Call:
    """One that waits for its answer, of which `body` has come in."""

    answer: asyncio.Future[bytes]
    body: bytes = b""


class GrpcConnection(asyncio.Protocol):
    """Unary calls of one method, any number at a time.

    Understands what a gRPC server sends, and no more of HTTP/2. A request fits in a frame.
    """

    def __init__(self, target: str, method: str) -> None:
        self._address = target.rsplit(":", 1)
        self._fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", method),
            (":authority", target),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("grpc-timeout", f"{TIMEOUT_SECONDS:.0f}S"),
        ]
        self._connecting = asyncio.Lock()
        self._transport: asyncio.Transport | None = None

    async def call(self, request: bytes) -> bytes:
        """See Connection.

        Raises:
          ValueError: the request is too large.
        """
        if len(request) + _MESSAGE.size > _LARGEST_FRAME:
            raise ValueError(f"a request has {len(request)} bytes; no more than 16 KB can be sent")
        loop = asyncio.get_running_loop()
        if self._transport is None:
            async with self._connecting:
                if self._transport is None:
                    await self._connect()
        self._stream += 2
        call = self._calls[self._stream] = _Call(loop.create_future())
        self._unsent.append((self._stream, request))
        self._send_requests()
        return await call.answer

    async def _connect(self) -> None:
        host, port = self._address
        try:
            await asyncio.get_running_loop().create_connection(lambda: self, host, int(port))
        except OSError as error:
            raise CallError(f"not connected: {error}") from error

    # --- of asyncio.Protocol ----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greets the server."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._stream = -1
        self._calls: dict[int, _Call] = {}  # by stream
        self._received = bytearray()
        self._consumed = 0  # bytes of answers since the server was last told to send more
        self._window = _DEFAULT_WINDOW  # bytes of requests that the server is ready to take
        self._unsent: deque[tuple[int, bytes]] = deque()  # requests that wait for that
        encoder = hpack.Encoder()
        # The first block fills the server's table; those after it only refer to that.
        self._blocks = deque(encoder.encode(self._fields) for _ in range(2))
        # The server's own blocks are to mean the same each time, so they may use no table.
        self._decoder = hpack.Decoder()
        self._decoder.header_table_size = self._decoder.max_allowed_table_size = 0
        self._statuses: dict[bytes, str] = {}  # by block: "" is OK
        transport.write(_PREFACE)
        self._send(
            _SETTINGS,
            _SETTING.pack(_HEADER_TABLE_SIZE, 0)
            + _SETTING.pack(_INITIAL_WINDOW_SIZE, _LARGEST_WINDOW),
        )
        self._send(_WINDOW_UPDATE, _NUMBER.pack(_LARGEST_WINDOW - _DEFAULT_WINDOW))

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends all calls."""
        self._transport = None
        for call in self._calls.values():
            _fail(call, f"connection lost: {exc}")

    def data_received(self, data: bytes) -> None:
        """Takes in whole frames."""
        received = self._received
        received += data
        start = 0
        while (begin := start + _FRAME.size) <= len(received):
            length_and_kind, flags, stream = _FRAME.unpack_from(received, start)
            end = begin + (length_and_kind >> 8)
            if end > len(received):
                break
            self._take(length_and_kind & 0xFF, flags, stream, bytes(received[begin:end]))
            start = end
        del received[:start]
        if self._consumed > _REPLENISH_BYTES:
            self._send(_WINDOW_UPDATE, _NUMBER.pack(self._consumed))
            self._consumed = 0

    # --- frames -----------------------------------------------------------------------------

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _DATA and not flags & _PADDED:
            self._consumed += len(payload)
            self._calls[stream].body += payload
        elif kind == _HEADERS and flags & _END_HEADERS and not flags & _PADDED:
            if flags & _END_STREAM:
                self._end(self._calls.pop(stream), payload)
        elif kind == _RST_STREAM:
            if call := self._calls.pop(stream, None):
                _fail(call, f"stream reset, HTTP/2 error {_NUMBER.unpack(payload)[0]}")
        elif kind == _WINDOW_UPDATE:
            if stream == _WHOLE_CONNECTION:
                self._window += _NUMBER.unpack(payload)[0]
                self._send_requests()
        elif kind in (_SETTINGS, _PING):
            if not flags & _ACK:
                self._send(kind, payload if kind == _PING else b"", _ACK)
        elif kind == _GOAWAY:
            raise ConnectionError(f"the server says goodbye: {payload[8:]!r}")
        else:
            raise ConnectionError(f"HTTP/2 frame of kind {kind}, flags {flags:#x}, not understood")

    def _end(self, call: _Call, trailers: bytes) -> None:
        status = self._statuses.get(trailers)
        if status is None:
            status = self._statuses[trailers] = self._status(trailers)
        if status:
            _fail(call, status)
        elif not call.answer.done():
            call.answer.set_result(call.body[_MESSAGE.size :])

    def _status(self, trailers: bytes) -> str:
        fields = {str(name): str(value) for name, value in self._decoder.decode(trailers)}
        code = _CODES.get(fields.get("grpc-status", ""), grpc.StatusCode.UNKNOWN.name)
        if code == grpc.StatusCode.OK.name:
            return ""
        return f"{code}: {urllib.parse.unquote(fields.get('grpc-message', ''))}"

    def _send_requests(self) -> None:
        assert self._transport is not None
        while self._unsent and len(self._unsent[0][1]) + _MESSAGE.size <= self._window:
            stream, request = self._unsent.popleft()
            block = self._blocks.popleft() if len(self._blocks) > 1 else self._blocks[0]
            size = len(request) + _MESSAGE.size
            self._window -= size
            self._transport.write(
                b"".join(
                    (
                        _FRAME.pack(len(block) << 8 | _HEADERS, _END_HEADERS, stream),
                        block,
                        _FRAME.pack(size << 8 | _DATA, _END_STREAM, stream),
                        _MESSAGE.pack(False, len(request)),
                        request,
                    )
                )
            )

    def _send(self, kind: int, payload: bytes, flags: int = 0) -> None:
        """Sends a frame that concerns the whole connection."""
        assert self._transport is not None
        self._transport.write(
            _FRAME.pack(len(payload) << 8 | kind, flags, _WHOLE_CONNECTION) + payload
        )


def _fail(call: _Call, text: str) -> None:
    if not call.answer.done():
        call.answer.set_exception(CallError(text))
