"""Runs a pipeline on this machine, node by node, with SQLite ML Metadata."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Literal

from absl import logging as absl_logging
from tfx.dsl.compiler.constants import PIPELINE_RUN_ID_PARAMETER_NAME
from tfx.orchestration.local.local_dag_runner import LocalDagRunner
from tfx.orchestration.pipeline import Pipeline, RunOptions
from tfx.orchestration.portable.runtime_parameter_utils import substitute_runtime_parameter
from tfx.proto.orchestration import pipeline_pb2

from pipeline.config import PipelineConfig
from pipeline.dag import Workdir, create_pipeline
from pipeline.local.base_run import find_base_run
from pipeline.local.code import code_version
from pipeline.local.lock import exclusive_run
from pipeline.local.logs import NodeLogs
from pipeline.local.memory import MemoryWatch
from pipeline.local.records import Failure, begin_run, end_run
from pipeline.metadata.runs import CONFIG, CONFIG_SHA256, CSMF_VERSION
from schemas.settings import ConfigError, nearest

NodeEvent = Literal["starts", "executed", "cached"]
NodeProgress = Callable[[str, NodeEvent], None]  # node id, what happened


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
      from_node: first node to run; what it reads comes from an earlier run, see `find_base_run`.
        None = the first.
      to_node: last node to run. None = the last.
      enable_cache: take what did not change from the cache.
      progress: told when a node starts and ends.

    Raises:
      ConfigError: no node of that name, nothing to begin `from_node` with, or another run is under
        way in the directory; else what a node raised.
    """
    workdir.root.mkdir(parents=True, exist_ok=True)
    with exclusive_run(workdir.root):
        notes = {
            CONFIG: config.model_dump_json(exclude_defaults=True),
            CONFIG_SHA256: config.sha256(),
            CSMF_VERSION: code_version(),
        }
        pipeline = create_pipeline(config, workdir, enable_cache)
        run_pipeline(pipeline, workdir, notes, from_node, to_node, progress)


def run_pipeline(
    pipeline: Pipeline,
    workdir: Workdir,
    notes: Mapping[str, str],
    from_node: str | None,
    to_node: str | None,
    progress: NodeProgress,
) -> None:
    """Runs a pipeline whose ML Metadata is that of the working directory, and records the run.

    Args:
      pipeline: what `from_node` and `to_node` name nodes of.
      workdir: exists; gets a log file per node that is executed.
      notes: about the run, for ML Metadata.
      from_node, to_node, progress: as of `run_locally`.

    Raises:
      ConfigError: no node of that name, or nothing to begin `from_node` with; else what a node
        raised.
    """
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
            base_pipeline_run_id=(
                find_base_run(pipeline, workdir.metadata, from_node) if from_node else None
            ),
        )
    run_id = datetime.now().isoformat()
    log_dir = workdir.root / "logs" / run_id.replace(":", "-")
    begin_run(workdir.metadata, pipeline.pipeline_info.pipeline_name, run_id, log_dir, notes)
    with MemoryWatch() as memory, NodeLogs(log_dir).attached() as logs:
        nodes = _Nodes(progress, memory, logs)
        try:
            with _listening(nodes), _no_arguments():
                _Runner(run_id).run(pipeline, options)
        except BaseException as error:
            failure = nodes.failed(error)
            try:
                end_run(workdir.metadata, run_id, nodes.peaks, failure)
            except Exception as second:  # e.g. the disk is full; the first error tells more
                error.add_note(f"This could not be noted in ML Metadata: {second}")
            if from_node is None or not isinstance(error, LookupError):
                raise
            raise ConfigError(
                f"--from-node {from_node}: an earlier run must have executed every node before it, "
                f"but ML Metadata lacks one ({error}). Run without --from-node first."
            ) from error
    end_run(workdir.metadata, run_id, nodes.peaks, None)


class _Runner(LocalDagRunner):
    """Gives the run an id that is known before it begins."""

    def __init__(self, run_id: str) -> None:
        super().__init__()
        self._run_id = run_id

    def run_with_ir(
        self, pipeline: pipeline_pb2.Pipeline, run_options: pipeline_pb2.RunOptions | None = None
    ) -> None:
        """Runs the compiled pipeline."""
        substitute_runtime_parameter(pipeline, {PIPELINE_RUN_ID_PARAMETER_NAME: self._run_id})
        super().run_with_ir(pipeline, run_options)


@contextlib.contextmanager
def _no_arguments() -> Iterator[None]:
    """Hides the command line: TFX parses it with absl's flags where Beam has options of its own."""
    given = sys.argv
    sys.argv = given[:1]
    try:
        yield
    finally:
        sys.argv = given


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


class _Nodes(logging.Handler):
    """Follows the nodes by the runner's log lines: it tells its progress in no other way.

    Attributes:
      peaks: node that was executed -> most bytes of memory while it ran.
    """

    _LINE = re.compile(r"Component (\S+) is (running|finished)\.")
    _NOT_CACHED = "Going to run a new execution"

    def __init__(self, progress: NodeProgress, memory: MemoryWatch, logs: NodeLogs):
        super().__init__(logging.INFO)
        self.peaks: dict[str, int] = {}
        self._progress = progress
        self._memory = memory
        self._logs = logs
        self._node = ""
        self._executes = False

    def emit(self, record: logging.LogRecord) -> None:
        """Reads one log record."""
        message = record.getMessage()
        if message.startswith(self._NOT_CACHED):
            self._executes = True
        elif found := self._LINE.fullmatch(message):
            if found[2] == "running":
                self._start(found[1])
            else:
                self._end()

    def _start(self, node: str) -> None:
        self._node, self._executes = node, False
        self._memory.begin()
        self._logs.begin(node)
        self._progress(node, "starts")

    def _end(self) -> None:
        node, self._node = self._node, ""
        self._logs.end(keep=self._executes)
        if self._executes:
            self.peaks[node] = self._memory.peak()
        self._progress(node, "executed" if self._executes else "cached")

    def failed(self, error: BaseException) -> Failure | None:
        """Takes down what ended the run; a person who interrupts it is no failure."""
        self._logs.fail(error)
        if self._node and self._executes:
            self.peaks[self._node] = self._memory.peak()
        return Failure.of(self._node, error) if isinstance(error, Exception) else None
