"""Runs a pipeline on this machine, node by node, with SQLite ML Metadata."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Literal

from absl import logging as absl_logging
from ml_metadata.metadata_store import MetadataStore
from ml_metadata.proto import metadata_store_pb2
from tfx.orchestration.local.local_dag_runner import LocalDagRunner
from tfx.orchestration.pipeline import RunOptions

from pipeline.config import PipelineConfig
from pipeline.dag import Workdir, create_pipeline
from schemas.settings import ConfigError, nearest

NodeEvent = Literal["starts", "executed", "cached"]
NodeProgress = Callable[[str, NodeEvent], None]  # node id, what happened

_CONTEXT_TYPE = "pipeline_run"


def run_locally(
    config: PipelineConfig,
    workdir: Workdir,
    from_node: str | None,
    to_node: str | None,
    enable_cache: bool,
    progress: NodeProgress,
) -> None:
    """Runs all nodes, or those between two of them.

    Args:
      config: all settings.
      workdir: made if necessary.
      from_node: first node to run; what it reads comes from the run before. None = the first.
      to_node: last node to run. None = the last.
      enable_cache: take what did not change from the cache.
      progress: told when a node starts and ends.

    Raises:
      ConfigError: no node of that name, or nothing to begin `from_node` with; else what a node
        raised.
    """
    workdir.root.mkdir(parents=True, exist_ok=True)
    pipeline = create_pipeline(config, workdir, enable_cache)
    node_ids = [node.id for node in pipeline.components]
    for node in (from_node, to_node):
        if node is not None and node not in node_ids:
            raise ConfigError(
                f"no node {node!r}.{nearest(node, node_ids)} Nodes: {', '.join(node_ids)}."
            )
    options = None
    if from_node or to_node:
        options = RunOptions(
            from_nodes=[from_node] if from_node else None,
            to_nodes=[to_node] if to_node else None,
        )
    before = _latest_run_id(workdir)
    with _listening(_ProgressHandler(progress)):
        try:
            LocalDagRunner().run(pipeline, options)
        except LookupError as error:
            if from_node is None:
                raise
            raise ConfigError(
                f"--from-node {from_node}: an earlier run must have executed every node before it, "
                f"but ML Metadata lacks one ({error}). Run without --from-node first."
            ) from error
        finally:
            if _latest_run_id(workdir) != before:
                _record_config(config, workdir)


@contextlib.contextmanager
def _listening(handler: logging.Handler) -> Iterator[None]:
    logger = absl_logging.get_absl_logger()
    verbosity = absl_logging.get_verbosity()
    logger.addHandler(handler)
    # Not logger.setLevel: TensorFlow resets the level to this verbosity whenever it saves a model.
    absl_logging.set_verbosity(absl_logging.INFO)
    try:
        yield
    finally:
        absl_logging.set_verbosity(verbosity)
        logger.removeHandler(handler)


class _ProgressHandler(logging.Handler):
    """Turns the runner's log lines into calls: it tells its progress in no other way."""

    _LINE = re.compile(r"Component (\S+) is (running|finished)\.")
    _NOT_CACHED = "Going to run a new execution"

    def __init__(self, progress: NodeProgress):
        super().__init__(logging.INFO)
        self._progress = progress
        self._executes = False

    def emit(self, record: logging.LogRecord) -> None:
        """Reads one log record."""
        message = record.getMessage()
        if message.startswith(self._NOT_CACHED):
            self._executes = True
        elif found := self._LINE.fullmatch(message):
            if found[2] == "running":
                self._executes = False
                self._progress(found[1], "starts")
            else:
                self._progress(found[1], "executed" if self._executes else "cached")


def open_store(workdir: Workdir) -> MetadataStore:
    """The run's ML Metadata."""
    connection = metadata_store_pb2.ConnectionConfig()
    connection.sqlite.filename_uri = str(workdir.metadata)
    return MetadataStore(connection)


def latest_run(store: MetadataStore) -> metadata_store_pb2.Context | None:
    """The context of the newest run, None before the first."""
    runs = store.get_contexts_by_type(_CONTEXT_TYPE)
    return max(runs, key=lambda run: run.id, default=None)


def _record_config(config: PipelineConfig, workdir: Workdir) -> None:
    """Notes the configuration on the run's context, where `csmf lineage` finds it.

    Not an execution property: any change of the file would then invalidate the cache of a node.
    """
    store = open_store(workdir)
    run = latest_run(store)
    assert run is not None
    run.custom_properties["config"].string_value = config.model_dump_json(exclude_defaults=True)
    run.custom_properties["config_sha256"].string_value = config.sha256()
    run.custom_properties["csmf_version"].string_value = version("csmf")
    store.put_contexts([run])


def _latest_run_id(workdir: Workdir) -> int | None:
    run = latest_run(open_store(workdir)) if workdir.metadata.exists() else None
    return None if run is None else run.id
