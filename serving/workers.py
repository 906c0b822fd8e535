"""Several serving processes behind the same ports, and the one process that looks after them.

Python runs one thread at a time, so more cores need more processes. Each worker has the models in
its own memory and listens with SO_REUSEPORT: the kernel spreads connections over them. The
supervisor loads no model and imports no TensorFlow; it starts the workers, replaces those that
die, and passes a new configuration on to all of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, NamedTuple

from serving.errors import STATUS_CODES, ServingError, StartupError, stopping
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
    supervisor -> every worker: take it. The number is the sender's own, later ones are higher."""

    number: int
    config: bytes


class _Taken(NamedTuple):
    """Worker -> supervisor: the _Reload of this number holds from now on; models may be loading."""

    number: int


class _Outcome(NamedTuple):
    """How a _Reload ended. Worker -> supervisor: here; supervisor -> worker that asked: everywhere.

    Attributes:
      number: of the _Reload, its sender's.
      code: canonical status number, 0 = fine.
      message: text of the error.
    """

    number: int
    code: int = 0
    message: str = ""


class Ports(NamedTuple):
    """Ports that are listened on; `rest` is None without REST."""

    grpc: int
    rest: int | None


@dataclass(eq=False)
class _Worker:
    """A process; `number` is that of the last _Reload it was given."""

    process: SpawnProcess
    connection: Connection
    number: int
    is_ready: bool = False


@dataclass
class _Pending:
    """A _Reload on its way: who asked, under which number, and who has not yet said how it went."""

    origin: _Worker
    asked_as: int
    reload: _Reload
    missing: set[_Worker]


class Workers:
    """Starts `options.workers` processes and keeps them running."""

    def __init__(self, options: ServerOptions) -> None:
        self._options = options
        self._undo = contextlib.ExitStack()
        self._metrics = self._undo.enter_context(tempfile.TemporaryDirectory(prefix="metrics-"))
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._numbers = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._loaded = _Reload(0, b"")  # the last one whose models are available everywhere
        self._taken = self._loaded  # the last one that holds
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
            worker.is_ready = True
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
                target=_work,
                args=(self._options, self._loaded.config, theirs),
                name="serving-worker",
            )
            process.start()
        theirs.close()  # so that its end shows here as the end of the stream
        return _Worker(process, ours, self._loaded.number)

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
        """Does what a message asks for. Waits for no worker: the others may need help meanwhile."""
        message = self._receive(worker)
        if isinstance(message, _Failed):
            _LOG.error("%s; starting another", message.reason)
            for number in list(self._pending):
                self._settle(worker, _Outcome(number, _UNKNOWN, message.reason))
            time.sleep(_PAUSE_SECONDS)  # a fault that lasts must not become a busy loop
            self._workers[index] = self._start_worker()
        elif isinstance(message, _Ready):
            worker.is_ready = True
            self._catch_up()
        elif isinstance(message, _Reload):
            self._reload_everywhere(worker, message)
        elif isinstance(message, _Taken):
            if message.number in self._pending and message.number > self._taken.number:
                self._taken = self._pending[message.number].reload
                self._catch_up()
        elif isinstance(message, _Outcome):
            self._settle(worker, message)

    def _reload_everywhere(self, origin: _Worker, request: _Reload) -> None:
        origin.is_ready = True  # its port is open, even if it has not said so yet
        reload = _Reload(next(self._numbers), request.config)
        # Those that are starting or have just died catch up, they or their replacements.
        told = {worker for worker in self._workers if worker.is_ready and _give(worker, reload)}
        if told:
            self._pending[reload.number] = _Pending(origin, request.number, reload, told)

    def _settle(self, worker: _Worker, outcome: _Outcome) -> None:
        """Notes how a worker fared with a _Reload; tells the one that asked when all is known."""
        pending = self._pending.get(outcome.number)
        if pending is None or worker not in pending.missing:
            return
        pending.missing.discard(worker)
        if pending.missing and not outcome.code:
            return
        del self._pending[outcome.number]
        if not outcome.code and outcome.number > self._loaded.number:
            self._loaded = pending.reload
        # It may have died; its client knows.
        _give(pending.origin, outcome._replace(number=pending.asked_as))

    def _catch_up(self) -> None:
        """Gives what holds to workers that began with something older.

        They began with the last configuration that could be loaded: one that waits for a wrong
        path would have kept them from serving at all.
        """
        for worker in self._workers:
            if worker.is_ready and worker.number < self._taken.number:
                _give(worker, self._taken)


def _give(worker: _Worker, message: _Reload | _Outcome) -> bool:
    """Sends a message; returns False if the worker has died."""
    try:
        worker.connection.send(message)
    except OSError:
        return False
    if isinstance(message, _Reload):
        worker.number = message.number
    return True


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
        self._numbers = itertools.count(1)
        self._asked: dict[int, Future[_Outcome]] = {}
        self._asking = threading.Lock()
        self._is_closed = False

    def tell(self, message: NamedTuple) -> None:
        """Sends a message. If the supervisor is gone, `listen` knows."""
        with self._sending, contextlib.suppress(OSError):
            self._connection.send(message)

    def reload(self, config: Any) -> None:
        """Has every worker take a ModelServerConfig; blocks until they have.

        Raises:
          ServingError: one of them could not, or `close` was called.
        """
        answer: Future[_Outcome] = Future()
        with self._asking:
            if self._is_closed:
                raise stopping()
            number = next(self._numbers)
            self._asked[number] = answer
        self.tell(_Reload(number, config.SerializeToString()))
        outcome = answer.result()
        if outcome.code:
            raise ServingError(STATUS_CODES[outcome.code], outcome.message)

    def listen(self, take: Callable[[_Reload], None], stop: Callable[[], None]) -> None:
        """Follows the supervisor's orders, one after the other; calls `stop` when it is gone."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                message = self._connection.recv()
                if isinstance(message, _Reload):
                    take(message)
                elif isinstance(message, _Outcome):
                    with self._asking:
                        answer = self._asked.pop(message.number, None)
                    if answer is not None:
                        answer.set_result(message)
        stop()

    def close(self) -> None:
        """Ends the wait of all `reload`."""
        with self._asking:
            self._is_closed = True
            answers = list(self._asked.values())
            self._asked.clear()
        for answer in answers:
            answer.set_exception(stopping())


def _work(options: ServerOptions, config: bytes, connection: Connection) -> None:
    """The life of a worker."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group
    # TensorFlow: seconds and memory that the supervisor does not need.
    from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

    from serving import config_files
    from serving.server import ModelServer, spare_what_is_imported

    spare_what_is_imported()
    if config:
        models = config_files.models_of(ModelServerConfig.FromString(config))
        options = dataclasses.replace(options, models=models)
    supervisor = _Supervisor(connection)
    server = ModelServer(options, shares_ports=True, reload=supervisor.reload)

    def finish(number: int, wait: Callable[[], None]) -> None:
        try:
            wait()
        except ServingError as error:
            supervisor.tell(_Outcome(number, error.code.value[0], error.message))
        else:
            supervisor.tell(_Outcome(number))

    def take(request: _Reload) -> None:
        number = request.number
        try:
            wait = server.reloader.begin(ModelServerConfig.FromString(request.config))
        except ServingError as error:
            supervisor.tell(_Outcome(number, error.code.value[0], error.message))
            return
        supervisor.tell(_Taken(number))
        # In a thread: later configurations and answers must get through while a model loads.
        threading.Thread(target=finish, args=(number, wait), daemon=True).start()

    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.request_stop).start())
    threading.Thread(
        target=supervisor.listen, args=(take, server.request_stop), daemon=True
    ).start()
    try:
        if server.start():
            supervisor.tell(_Ready())
            server.wait()
    except StartupError as error:
        supervisor.tell(_Failed(str(error)))
    finally:
        supervisor.close()
        server.stop()
