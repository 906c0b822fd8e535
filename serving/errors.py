"""Errors that travel to a client as a gRPC status."""

from __future__ import annotations

from typing import Protocol

import grpc

STATUS_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}

_DETAILS_LIMIT_BYTES = 1024
_TRUNCATED = "...TRUNCATED"


class ServingError(Exception):
    """A request or a model cannot be served; `message` is what the client reads."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def invalid_argument(message: str) -> ServingError:
    """The request or the configuration is wrong, whatever the state of the server."""
    return ServingError(grpc.StatusCode.INVALID_ARGUMENT, message)


def stopping() -> ServingError:
    """What a call gets that the end of the server cuts short."""
    return ServingError(grpc.StatusCode.UNAVAILABLE, "The server is stopping")


class StatusError(Protocol):
    """What TensorFlow's OpError offers: a canonical status number and a text."""

    @property
    def error_code(self) -> int:
        """The number of the canonical status code."""

    @property
    def message(self) -> str:
        """TensorFlow's own text."""


def status_of(error: StatusError) -> grpc.StatusCode:
    """The gRPC status of a TensorFlow error: both count the canonical codes alike."""
    return STATUS_CODES.get(error.error_code, grpc.StatusCode.UNKNOWN)


def details(message: str) -> str:
    """Cuts an error text to 1024 bytes as TensorFlow Serving does.

    gRPC sends details in an HTTP/2 trailer, for which clients accept only about 8 KB.
    """
    encoded = message.encode("utf-8", errors="replace")
    if len(encoded) <= _DETAILS_LIMIT_BYTES:
        return message
    return encoded[:_DETAILS_LIMIT_BYTES].decode("utf-8", errors="ignore") + _TRUNCATED


class StartupError(RuntimeError):
    """The server cannot start: a model cannot be made available, or a port cannot be bound."""
