"""The server: loads the models, then opens the port and answers until it is stopped.

python -m serving.server --model recommender=/models/recommender --port 8500
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Mapping
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Self

import click
import grpc
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from serving.config import ModelConfig, as_model_config
from serving.servable import Servable
from serving.service import ModelService, PredictionService
from serving.versions import StartupError, VersionManager
from serving.warmup import load_warm

_LOG = logging.getLogger(__name__)

_MAX_MESSAGE_BYTES = 2**31 - 1


def _default_workers() -> int:
    return 4 * (os.cpu_count() or 1)


@dataclass(frozen=True)
class ServerOptions:
    """How to serve. Defaults are TensorFlow Serving's where it has the option.

    Attributes:
      models: model name -> base path, or a ModelConfig with policy and labels.
      host: address to listen on.
      port: 0 picks a free one.
      poll_seconds: time between two looks at the base paths; 0 = look once.
      max_workers: calls that run at the same time; further ones wait.
      max_concurrent_calls: calls running or waiting; further ones get RESOURCE_EXHAUSTED.
      max_load_retries: how often a failed load is tried again.
      load_retry_seconds: time between two attempts.
      warm_up: replay `assets.extra/tf_serving_warmup_requests` before a version is available.
      stop_grace_seconds: time that running calls get to finish when the server stops.
    """

    models: Mapping[str, ModelConfig | str | os.PathLike[str]]
    host: str = "0.0.0.0"
    port: int = 8500
    poll_seconds: float = 1.0
    max_workers: int = field(default_factory=_default_workers)
    max_concurrent_calls: int = 4096
    max_load_retries: int = 5
    load_retry_seconds: float = 60.0
    warm_up: bool = True
    stop_grace_seconds: float = 5.0

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("no model to serve was given; name at least one as NAME=BASE_PATH")


class ModelServer:
    """A running server. Usable as a context manager, which starts and stops it."""

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self._versions = VersionManager(
            {name: as_model_config(model) for name, model in options.models.items()},
            poll_seconds=options.poll_seconds,
            max_load_retries=options.max_load_retries,
            load_retry_seconds=options.load_retry_seconds,
            load=load_warm if options.warm_up else Servable,
        )
        self._server: grpc.Server | None = None
        self._port = 0
        self._stop_requested = threading.Event()

    @property
    def port(self) -> int:
        """The port that is listened on; 0 before the server is ready."""
        return self._port

    @property
    def versions(self) -> VersionManager:
        """The version manager behind the services."""
        return self._versions

    def start(self) -> bool:
        """Loads the first version of every model, however long that takes, then opens the port.

        So an open port means ready, and clients see UNAVAILABLE before.

        Returns:
          False if `request_stop` was called meanwhile; nothing is served then.

        Raises:
          StartupError: a model cannot be loaded, or the port cannot be bound.
        """
        self._versions.start()
        try:
            if not self._versions.wait_until_available():
                return False
            self._open_port()
        except StartupError:
            self._versions.stop()
            raise
        return True

    def _open_port(self) -> None:
        options = self.options
        server = grpc.server(
            futures.ThreadPoolExecutor(options.max_workers, thread_name_prefix="grpc"),
            options=[
                ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
                # Without this a second server shares the port silently and takes half the calls.
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=options.max_concurrent_calls,
        )
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            PredictionService(self._versions), server
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(
            ModelService(self._versions), server
        )
        address = f"{options.host}:{options.port}"
        try:
            self._port = server.add_insecure_port(address)
        except RuntimeError as error:
            raise StartupError(
                f"cannot listen on {address}; is another server running there? ({error})"
            ) from error
        server.start()
        self._server = server
        _LOG.info("serving %s on %s:%d", ", ".join(options.models), options.host, self._port)

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
        if self._server is not None:
            self._server.stop(self.options.stop_grace_seconds).wait()
            self._server = None
        self._versions.stop(self.options.stop_grace_seconds)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


def _parse_models(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    models: dict[str, str] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not (name and equals and path):
            raise click.BadParameter(f"{value!r} is not of the form NAME=BASE_PATH")
        if name in models:
            raise click.BadParameter(f"model {name!r} is given twice")
        models[name] = path
    return models


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


@click.command(context_settings={"show_default": True})
@click.option(
    "--model",
    "models",
    multiple=True,
    required=True,
    callback=_parse_models,
    metavar="NAME=BASE_PATH",
    help="A model and the directory of its numbered versions. May be repeated.",
)
@click.option("--host", default=ServerOptions.host, help="Address to listen on.")
@click.option("--port", default=ServerOptions.port, help="Port to listen on; 0 picks a free one.")
@click.option(
    "--port-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write the port to, once serving.",
)
@click.option(
    "--file-system-poll-wait-seconds",
    "poll_seconds",
    default=ServerOptions.poll_seconds,
    help="Time between two looks at the base paths; 0 looks once.",
)
@click.option(
    "--max-num-load-retries",
    "max_load_retries",
    default=ServerOptions.max_load_retries,
    help="How often a failed load is tried again.",
)
@click.option(
    "--load-retry-interval-seconds",
    "load_retry_seconds",
    default=ServerOptions.load_retry_seconds,
    help="Time between two attempts to load.",
)
@click.option("--max-workers", type=click.IntRange(min=1), help="Calls run at the same time.")
def main(
    models: dict[str, str],
    host: str,
    port: int,
    port_file: Path | None,
    poll_seconds: float,
    max_load_retries: int,
    load_retry_seconds: float,
    max_workers: int | None,
) -> None:
    """Serves SavedModels over TensorFlow Serving's gRPC interface."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    options = ServerOptions(
        models=models,
        host=host,
        port=port,
        poll_seconds=poll_seconds,
        max_load_retries=max_load_retries,
        load_retry_seconds=load_retry_seconds,
        max_workers=max_workers or _default_workers(),
    )
    run(options, port_file)


def run(options: ServerOptions, port_file: Path | None = None) -> None:
    """Serves until SIGTERM or SIGINT, then stops gracefully.

    Prints one line once the port is open; `port_file` then holds the port number. Must be called
    in the main thread, as everything that handles signals.

    Raises:
      click.ClickException: a model cannot be loaded or the port cannot be bound.
    """
    server = ModelServer(options)

    def on_signal(number: int, frame: FrameType | None) -> None:
        # In a thread: the main thread may hold the very lock that request_stop needs.
        threading.Thread(target=server.request_stop, daemon=True).start()

    previous = {
        number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        if server.start():
            if port_file is not None:
                _write_atomically(port_file, str(server.port))
            click.echo(f"Serving {', '.join(options.models)} on {options.host}:{server.port}")
            server.wait()
    except StartupError as error:
        raise click.ClickException(f"Failed to start server. Error: {error}") from error
    finally:
        server.stop()
        for number, handler in previous.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    main()
