"""Several serving processes behind the same ports, and the one process that looks after them.

Python runs one thread at a time, so more cores need more processes. Each worker has the models in
its own memory and listens with SO_REUSEPORT: the kernel spreads connections over them. The
supervisor loads no model and imports no TensorFlow; it starts the workers, replaces those that
die, and passes a new configuration on to all of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import multiprocessing
import os
import queue
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, NamedTuple

from serving.errors import STATUS_CODES, ServingError, StartupError
from serving.options import ServerOptions

_LOG = logging.getLogger(__name__)

_METRICS_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"  # where prometheus_client's processes meet
_PAUSE_SECONDS = 1.0  # between the death of a worker and its replacement
_JOIN_SECONDS = 10.0
_UNKNOWN = 2


class _Ready(NamedTuple):
    """Worker -> supervisor: the ports are open."""


class _Failed(NamedTuple):
    """Worker -> supervisor: it cannot start."""

    reason: str


class _Reload(NamedTuple):
    """Worker -> supervisor: a client wants this configuration (a serialised ModelServerConfig);
    supervisor -> every worker: take it."""

    config: bytes


class _Outcome(NamedTuple):
    """Worker -> supervisor: how that went. A canonical status number, 0 = fine, and a text."""

    code: int = 0
    message: str = ""


class _Answer(NamedTuple):
    """Supervisor -> the worker that asked: how it went everywhere."""

    outcome: _Outcome


class Ports(NamedTuple):
    """Ports that are listened on; `rest` is None without REST."""

    grpc: int
    rest: int | None


class _Worker(NamedTuple):
    process: SpawnProcess
    connection: Connection


class Workers:
    """Starts `options.workers` processes and keeps them running."""

    def __init__(self, options: ServerOptions) -> None:
        self._options = options
        self._undo = contextlib.ExitStack()
        self._metrics = self._undo.enter_context(tempfile.TemporaryDirectory(prefix="metrics-"))
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._config = b""  # the last one that was taken over the network
        self._requests: list[tuple[_Worker, _Reload]] = []
        self._wake, self._waker = self._context.Pipe(duplex=False)

    def start(self) -> Ports | None:
        """Starts the workers and waits until all are ready.

        Returns:
          the ports, or None if `request_stop` was called meanwhile.

        Raises:
          StartupError: a model cannot be loaded, or a port cannot be bound.
        """
        options = self._options
        ports = Ports(
            self._reserve(options.port),
            None if options.rest_port is None else self._reserve(options.rest_port),
        )
        self._options = dataclasses.replace(options, port=ports.grpc, rest_port=ports.rest)
        self._workers = [self._start_worker() for _ in range(options.workers)]
        for worker in self._workers:
            message = self._receive(worker)
            if message is None:
                return None
            if isinstance(message, _Failed):
                raise StartupError(message.reason)
        return ports

    def watch(self) -> None:
        """Replaces workers that die and passes configurations on, until `request_stop`."""
        while True:
            happened = wait([self._wake, *(worker.connection for worker in self._workers)])
            if self._wake in happened:
                return
            for index, worker in enumerate(self._workers):
                if worker.connection in happened:
                    self._handle(index, worker)
            while self._requests:
                self._reload_everywhere(*self._requests.pop(0))

    def request_stop(self) -> None:
        """Asks `start` and `watch` to return. Returns at once; for any thread."""
        self._waker.send(None)

    def stop(self) -> None:
        """Ends the workers, letting their running calls finish within the grace time."""
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join(self._options.stop_grace_seconds + _JOIN_SECONDS)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._undo.close()

    def _reserve(self, port: int) -> int:
        """Takes a port for all workers; it is bound here, but not listened on."""
        address = (self._options.host, port)
        try:
            # Without SO_REUSEPORT first: that fails if another server listens there.
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                address = probe.getsockname()
            reserved = self._undo.enter_context(socket.socket())
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            reserved.bind(address)
        except OSError as error:
            raise StartupError(
                f"cannot listen on {address[0]}:{address[1]}; is another server running there? "
                f"({error})"
            ) from error
        return address[1]

    def _start_worker(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        with _environment(_METRICS_DIRECTORY, self._metrics):
            process = self._context.Process(
                target=_work, args=(self._options, self._config, theirs), name="serving-worker"
            )
            process.start()
        theirs.close()  # so that its end shows here as the end of the stream
        return _Worker(process, ours)

    def _receive(self, worker: _Worker) -> Any:
        """The worker's next message, _Failed if it dies; None if a stop was requested."""
        if self._wake in wait([self._wake, worker.connection]):
            return None
        try:
            return worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join()
            return _Failed(f"a worker ended with exit code {worker.process.exitcode}")

    def _handle(self, index: int, worker: _Worker) -> None:
        message = self._receive(worker)
        if isinstance(message, _Failed):
            _LOG.error("%s; starting another", message.reason)
            time.sleep(_PAUSE_SECONDS)  # a fault that lasts must not become a busy loop
            self._workers[index] = self._start_worker()
        elif isinstance(message, _Reload):
            self._requests.append((worker, message))

    def _reload_everywhere(self, origin: _Worker, request: _Reload) -> None:
        outcomes = [self._reload(worker, request) for worker in self._workers]
        outcome = next((o for o in outcomes if o.code), _Outcome())
        if not outcome.code:
            self._config = request.config
        with contextlib.suppress(OSError):  # it may have died; its client knows
            origin.connection.send(_Answer(outcome))

    def _reload(self, worker: _Worker, request: _Reload) -> _Outcome:
        try:
            worker.connection.send(request)
        except OSError:
            return _Outcome()  # its replacement starts with the new configuration
        while True:
            message = self._receive(worker)
            if isinstance(message, _Outcome):
                return message
            if isinstance(message, _Reload):
                self._requests.append((worker, message))
            elif isinstance(message, _Failed):
                return _Outcome(_UNKNOWN, message.reason)
            elif message is None:
                return _Outcome(_UNKNOWN, "the server is stopping")


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Sets a variable for the processes started within."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


# --- in the worker ------------------------------------------------------------------------------


class _Supervisor:
    """A worker's line to its supervisor."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._asking = threading.Lock()
        self._answers: queue.SimpleQueue[_Outcome] = queue.SimpleQueue()

    def tell(self, message: NamedTuple) -> None:
        """Sends a message."""
        with self._sending:
            self._connection.send(message)

    def reload(self, config: Any) -> None:
        """Has every worker take a ModelServerConfig; blocks until they have.

        Raises:
          ServingError: one of them could not.
        """
        with self._asking:
            self.tell(_Reload(config.SerializeToString()))
            outcome = self._answers.get()
        if outcome.code:
            raise ServingError(STATUS_CODES[outcome.code], outcome.message)

    def listen(self, reload: Callable[[bytes], None], stop: Callable[[], None]) -> None:
        """Follows the supervisor's orders; calls `stop` when it is gone."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                message = self._connection.recv()
                if isinstance(message, _Answer):
                    self._answers.put(message.outcome)
                elif isinstance(message, _Reload):
                    # In a thread: answers must get through while a model loads.
                    threading.Thread(target=reload, args=(message.config,), daemon=True).start()
        stop()


def _work(options: ServerOptions, config: bytes, connection: Connection) -> None:
    """The life of a worker."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group
    # TensorFlow: seconds and memory that the supervisor does not need.
    from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

    from serving import config_files
    from serving.server import ModelServer

    if config:
        models = config_files.models_of(ModelServerConfig.FromString(config))
        options = dataclasses.replace(options, models=models)
    supervisor = _Supervisor(connection)
    server = ModelServer(options, shares_ports=True, reload=supervisor.reload)

    def reload(wanted: bytes) -> None:
        try:
            server.reloader.reload(ModelServerConfig.FromString(wanted))
        except ServingError as error:
            supervisor.tell(_Outcome(error.code.value[0], error.message))
        else:
            supervisor.tell(_Outcome())

    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.request_stop).start())
    threading.Thread(
        target=supervisor.listen, args=(reload, server.request_stop), daemon=True
    ).start()
    try:
        if server.start():
            supervisor.tell(_Ready())
            server.wait()
    except StartupError as error:
        supervisor.tell(_Failed(str(error)))
    finally:
        server.stop()
