"""Serving from the command line: starts the process or processes, and stops them on a signal."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from schemas.files import write_atomically
from serving.errors import StartupError
from serving.options import ServerOptions
from serving.workers import Ports, Workers


def serve(options: ServerOptions, port_file: Path | None = None) -> None:
    """Serves until SIGTERM or SIGINT, then stops gracefully.

    Prints one line once the ports are open; `port_file` then holds the gRPC port number. Must be
    called in the main thread, as everything that handles signals.

    Raises:
      click.ClickException: a model cannot be loaded or a port cannot be bound.
    """
    try:
        (_serve_here if options.workers == 1 else _serve_by_workers)(options, port_file)
    except StartupError as error:
        raise click.ClickException(f"Failed to start server. Error: {error}") from error


def _serve_here(options: ServerOptions, port_file: Path | None) -> None:
    from serving.server import ModelServer, spare_what_is_imported  # TensorFlow: seconds

    spare_what_is_imported()
    server = ModelServer(options)
    with _on_signals(server.request_stop):
        try:
            if server.start():
                _announce(options, Ports(server.port, server.rest_port), port_file)
                server.wait()
        finally:
            server.stop()


def _serve_by_workers(options: ServerOptions, port_file: Path | None) -> None:
    workers = Workers(options)
    with _on_signals(workers.request_stop):
        try:
            ports = workers.start()
            if ports is not None:
                _announce(options, ports, port_file)
                workers.watch()
        finally:
            workers.stop()


def _announce(options: ServerOptions, ports: Ports, port_file: Path | None) -> None:
    if port_file is not None:
        write_atomically(port_file, str(ports.grpc).encode())
    rest = "" if ports.rest is None else f", REST on {options.host}:{ports.rest}"
    click.echo(f"Serving {', '.join(options.models)} on {options.host}:{ports.grpc}{rest}")


@contextlib.contextmanager
def _on_signals(stop: Callable[[], None]) -> Iterator[None]:
    def handle(*_: object) -> None:
        # In a thread: the main thread may hold the very lock that `stop` needs.
        threading.Thread(target=stop, daemon=True).start()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
