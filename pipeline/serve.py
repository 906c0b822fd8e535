"""Serving of a run's pushed directory, from the command line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pipeline import console
from pipeline.temporary_server import TemporaryServer
from pipeline.versions import (
    ADDRESS_FILE,
    pinned_version,
    rollback_note,
    servable_models,
    served_states,
    server_address,
    write_models,
)
from schemas.names import STOCK_SUFFIX
from serving.command import serve
from serving.options import BatchingOptions, ServerOptions

# Rows that run together at most, and full batches that may wait: beyond, calls are refused.
_BATCHING = BatchingOptions(max_batch_size=1024, max_enqueued_batches=2)
_METRICS_PATH = "/monitoring/prometheus/metrics"


def serve_workdir(
    workdir: Path,
    host: str,
    port: int,
    rest_port: int | None,
    workers: int,
    batching: bool,
    poll_seconds: float,
) -> None:
    """Serves until interrupted; the workdir then holds the server's address for other commands.

    Versions are those that `models.config` in the serving directory asks for, which is written if
    there is none; it is read again as often as the base paths.

    Args:
      host, port: of gRPC; port 0 picks a free one.
      rest_port: of REST, metrics on it; 0 picks a free one, None = no REST.
      workers: processes.
      batching: run concurrent calls together.
      poll_seconds: time between two looks for new versions or a rollback; 0 = look once.

    Raises:
      ConfigError: nothing was pushed, or what is to be served is not on disk.
    """
    models = servable_models(workdir)
    config_file = write_models(workdir, models)
    for name in models:
        if pinned_version(models, name) is not None and not name.endswith(STOCK_SUFFIX):
            console.say(rollback_note(workdir, name), "yellow")
    address_file = workdir / ADDRESS_FILE
    options = ServerOptions(
        models=models,
        host=host,
        port=port,
        rest_port=rest_port,
        workers=workers,
        metrics_path=_METRICS_PATH,
        health_service=True,
        poll_seconds=poll_seconds,
        config_file=config_file,
        config_poll_seconds=poll_seconds,
        allow_labels_for_unavailable=True,  # labels in the file must not prevent a restart
        batching=_BATCHING if batching else None,
        # Calls run side by side; sharing one among threads costs up to half as much again.
        intra_op_threads=1,
    )
    try:
        serve(options, address_file)
    finally:
        address_file.unlink(missing_ok=True)


@contextlib.contextmanager
def any_server(workdir: Path, model: str) -> Iterator[str]:
    """Address of the workdir's running server, or of one that is started for the time being."""
    address = server_address(workdir)
    if address is not None and _is_available(address, model):
        yield address
        return
    with TemporaryServer(servable_models(workdir)) as server:
        yield server.wait()


def _is_available(address: str, model: str) -> bool:
    states = served_states(address, model) or {}
    return any(state.state == "AVAILABLE" for state in states.values())
