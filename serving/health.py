"""The gRPC service `grpc.health.v1.Health`: every service serves, until the server stops.

https://github.com/grpc/grpc/blob/master/doc/health-checking.md
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from serving.transport import Call, Handler, decoded

_SERVING = HealthCheckResponse(status=HealthCheckResponse.SERVING).SerializeToString()
_NOT_SERVING = HealthCheckResponse(status=HealthCheckResponse.NOT_SERVING).SerializeToString()
_UNKNOWN = HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN).SerializeToString()


class Health:
    """State of the server as its probes see it.

    Args:
      services: what probes may ask for; "" is the server as a whole.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._services = {"", *services}
        self._lock = threading.Lock()
        self._is_stopping = False
        self._watchers: set[Call] = set()

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """Its methods."""
        return {
            "/grpc.health.v1.Health/Check": self._check,
            "/grpc.health.v1.Health/Watch": self._watch,
        }

    def stop(self) -> None:
        """Tells all who watch that nothing is served any more, and all who ask from now on."""
        with self._lock:
            self._is_stopping = True
            watchers, self._watchers = self._watchers, set()
        for call in watchers:
            call.answer(_NOT_SERVING)

    def _check(self, message: bytes, call: Call) -> None:
        if decoded(message, HealthCheckRequest).service not in self._services:
            call.refuse(grpc.StatusCode.NOT_FOUND, "")
        else:
            call.answer(_NOT_SERVING if self._is_stopping else _SERVING)

    def _watch(self, message: bytes, call: Call) -> None:
        is_known = decoded(message, HealthCheckRequest).service in self._services
        with self._lock:
            if self._is_stopping:
                call.answer(_NOT_SERVING)
                return
            call.send(_SERVING if is_known else _UNKNOWN)
            self._watchers.add(call)

        def leave() -> None:
            self._watchers.discard(call)
            call.refuse(grpc.StatusCode.CANCELLED, "")

        call.when_over(leave)
