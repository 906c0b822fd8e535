"""What the local runner notes of a run in ML Metadata, on the context of the run.

Not on executions: any change of the configuration would then invalidate the cache of a node, and
the time of an execution's last update, which tells how long it took, would change.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ml_metadata.metadata_store import MetadataStore
from ml_metadata.proto import metadata_store_pb2
from tfx.orchestration.metadata import Metadata
from tfx.orchestration.portable.mlmd import context_lib

from pipeline.metadata import runs

_LONGEST_MESSAGE = 10_000  # Beam repeats whole tracebacks in its messages


@dataclass(frozen=True)
class Failure:
    """What ended a run."""

    node: str  # "" if none was running
    type: str
    message: str

    @classmethod
    def of(cls, node: str, error: BaseException) -> Failure:
        """The failure of a node that raised `error`."""
        return cls(node, type(error).__name__, str(error)[:_LONGEST_MESSAGE])


def begin_run(
    path: Path, pipeline: str, run_id: str, log_dir: Path, notes: Mapping[str, str]
) -> None:
    """Makes the context of a run, with all that is known before its first node.

    Args:
      path: of the SQLite database; made if necessary.
      pipeline: name.
      run_id: of the new run.
      log_dir: where its nodes' logs will be.
      notes: custom properties besides.
    """
    with Metadata(_connection(path)) as metadata:
        # As TFX makes them, which then finds them.
        parent = context_lib.register_context_if_not_exists(
            metadata, runs.PIPELINE_CONTEXT, pipeline
        )
        context_lib.register_context_if_not_exists(metadata, runs.RUN_CONTEXT, run_id, [parent])
    process = {"host": socket.gethostname(), "pid": os.getpid()}
    _note(
        path,
        run_id,
        {
            runs.LOG_DIR: str(log_dir.absolute()),
            runs.PROCESS: json.dumps(process),
            **notes,
        },
    )


def end_run(path: Path, run_id: str, peaks: Mapping[str, int], failure: Failure | None) -> None:
    """Notes how a run went.

    Args:
      path: of the SQLite database.
      run_id: of a run that `begin_run` was called for.
      peaks: node that was executed -> most bytes of memory while it ran.
      failure: what ended the run; None if nothing did.
    """
    notes = {runs.NODES: json.dumps({node: {"peak_bytes": n} for node, n in peaks.items()})}
    if failure is not None:
        notes[runs.ERROR] = json.dumps(asdict(failure))
    _note(path, run_id, notes)


def open_store(path: Path) -> MetadataStore:
    """Opens ML Metadata for writing; the database is made if necessary."""
    return MetadataStore(_connection(path))


def _note(path: Path, run_id: str, notes: Mapping[str, str]) -> None:
    store = open_store(path)
    context = store.get_context_by_type_and_name(runs.RUN_CONTEXT, run_id)
    for key, value in notes.items():
        context.custom_properties[key].string_value = value
    store.put_contexts([context])


def _connection(path: Path) -> metadata_store_pb2.ConnectionConfig:
    connection = metadata_store_pb2.ConnectionConfig()
    connection.sqlite.filename_uri = str(path)
    connection.sqlite.connection_mode = (
        metadata_store_pb2.SqliteMetadataSourceConfig.READWRITE_OPENCREATE
    )
    return connection
