"""One serving process: loads the models, then opens the ports and answers until it is stopped."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from concurrent.futures import Future
from typing import Any, Self

import grpc
from aiohttp import web

from serving import service, transport
from serving.config import as_model_config
from serving.engine import Engine
from serving.errors import StartupError
from serving.health import Health
from serving.metrics import Metrics
from serving.options import ServerOptions, TlsOptions
from serving.reload import Reload, ReloadCalls, Reloader
from serving.rest.app import make_app
from serving.servable import Servable, Threads
from serving.versions import VersionManager
from serving.warmup import load_warm

_LOG = logging.getLogger(__name__)

_MAX_MESSAGE_BYTES = 2**31 - 1
_DRAIN_SECONDS = 0.05  # without a new call: none is waiting
_DRAIN_LOOKS = 20  # some clients never leave off


class ModelServer:
    """A running server. Usable as a context manager, which starts and stops it.

    Args:
      options: what to serve and how.
      shares_ports: other processes listen on the same ports (SO_REUSEPORT).
      reload: carries out HandleReloadConfigRequest; None = in this process only.
    """

    def __init__(
        self,
        options: ServerOptions,
        *,
        shares_ports: bool = False,
        reload: Reload | None = None,
    ) -> None:
        self.options = options
        self._shares_ports = shares_ports
        self._metrics = Metrics()
        self._versions = VersionManager(
            {name: as_model_config(model) for name, model in options.models.items()},
            poll_seconds=options.poll_seconds,
            max_load_retries=options.max_load_retries,
            load_retry_seconds=options.load_retry_seconds,
            load=self._load,
        )
        self.reloader = Reloader(self._versions, options)
        self._reload_calls = ReloadCalls(reload or self.reloader.reload)
        self._engine = Engine(self._versions, self._metrics, options)
        # aiohttp and the lesser gRPC calls live in an event loop in a thread of its own: the main
        # thread is the one that gets the signals.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop, name="event-loop", daemon=True)
        self._grpc: transport.Server | None = None
        self._health = Health(service.SERVICES)
        self._rest: web.AppRunner | None = None
        self._port = 0
        self._rest_port: int | None = None
        self._stop_requested = threading.Event()

    @property
    def port(self) -> int:
        """The gRPC port that is listened on; 0 before the server is ready."""
        return self._port

    @property
    def rest_port(self) -> int | None:
        """The REST port that is listened on; None without one, or before the server is ready."""
        return self._rest_port

    @property
    def versions(self) -> VersionManager:
        """The version manager behind the services."""
        return self._versions

    def start(self) -> bool:
        """Loads the first version of every model, however long that takes, then opens the ports.

        So an open port means ready, and clients see UNAVAILABLE before.

        Returns:
          False if `request_stop` was called meanwhile; nothing is served then.

        Raises:
          StartupError: a model cannot be loaded, or a port cannot be bound.
        """
        self._versions.start()
        self._thread.start()
        try:
            if not self._versions.wait_until_available():
                return False
            self._in_loop(self._open()).result()
        except StartupError:
            self._versions.stop()
            raise
        self.reloader.watch()
        return True

    def request_stop(self) -> None:
        """Asks `start` and `wait` to return. Returns at once."""
        self._stop_requested.set()
        self._versions.interrupt()

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Blocks until `request_stop` is called; returns False if the timeout came first."""
        return self._stop_requested.wait(timeout_seconds)

    def stop(self) -> None:
        """Refuses new calls, lets running ones finish within the grace time, unloads all models."""
        self.request_stop()
        self.reloader.stop()
        if self._thread.is_alive():
            self._in_loop(self._close()).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._reload_calls.close()
        self._engine.close()
        self._versions.stop(self.options.stop_grace_seconds)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    def _in_loop(self, coroutine: Any) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _load(self, name: str, version: int, path: str) -> Servable:
        options = self.options
        threads = Threads(options.intra_op_threads, options.inter_op_threads)
        if not options.warm_up:
            return Servable(name, version, path, options.tags, threads)
        return load_warm(
            name, version, path, options.tags, threads, options.warm_up_iterations, self._metrics
        )

    async def _open(self) -> None:
        options = self.options
        handlers = dict(service.handlers(self._engine, self._reload_calls.reload, self._loop))
        if options.health_service:
            handlers |= self._health.handlers
        server = transport.Server(
            handlers,
            self._engine.run_waiting,
            [
                ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
                # Without 0 a second server shares the port silently and takes half the calls.
                ("grpc.so_reuseport", int(self._shares_ports)),
                *options.channel_options,
            ],
            options.max_concurrent_calls,
        )
        address = f"{options.host}:{options.port}"
        try:
            self._port = server.add_port(address, _credentials(options.tls))
            if options.unix_socket:
                server.add_port(f"unix:{options.unix_socket}")
        except OSError as error:
            raise StartupError(
                f"cannot listen on {address}; is another server running there? ({error})"
            ) from error
        if options.rest_port is not None:
            await self._open_rest(options.rest_port)
        server.start()
        self._grpc = server
        _LOG.info("serving %s on %s:%d", ", ".join(options.models), options.host, self._port)

    async def _open_rest(self, port: int) -> None:
        host = self.options.host
        self._rest = web.AppRunner(make_app(self._engine), access_log=None)
        await self._rest.setup()
        site = web.TCPSite(self._rest, host, port, reuse_port=self._shares_ports or None)
        try:
            await site.start()
        except OSError as error:
            raise StartupError(
                f"cannot listen on {host}:{port} for REST; is another server running there? "
                f"({error})"
            ) from error
        self._rest_port = self._rest.addresses[0][1]

    async def _close(self) -> None:
        if self._grpc is not None:
            self._health.stop()
            # gRPC hands over as many calls as it was asked for; those that have arrived and wait
            # for that at the end are CANCELLED (https://github.com/grpc/grpc/issues/41785). So
            # they are refused first, which clients know how to handle.
            for _ in range(_DRAIN_LOOKS):
                refused = self._versions.refused
                await asyncio.sleep(_DRAIN_SECONDS)
                if self._versions.refused == refused:
                    break
            # In a thread: coroutines of this loop answer some of the calls that it waits for.
            await asyncio.to_thread(self._grpc.stop, self.options.stop_grace_seconds)
        if self._rest is not None:
            await self._rest.cleanup()


def spare_what_is_imported() -> None:
    """Has the garbage collector leave what is in memory by now; for processes that only serve.

    TensorFlow's modules are 340,000 objects, which every full collection would go through: 200 ms,
    in which no call is answered.
    """
    gc.collect()
    gc.freeze()


def _credentials(tls: TlsOptions | None) -> grpc.ServerCredentials | None:
    if tls is None:
        return None
    return grpc.ssl_server_credentials(
        [(tls.server_key.encode(), tls.server_cert.encode())],
        root_certificates=tls.custom_ca.encode() or None,
        require_client_auth=tls.client_verify,
    )
