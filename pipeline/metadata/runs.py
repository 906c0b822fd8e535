"""The runs of a pipeline and their nodes, as ML Metadata has them. Works while one is under way."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.metadata.store import MetadataError, Value, properties

if TYPE_CHECKING:
    from ml_metadata import MetadataStore
    from ml_metadata.proto.metadata_store_pb2 import Artifact, Context, Execution

# Types of contexts, as TFX names them.
RUN_CONTEXT = "pipeline_run"
PIPELINE_CONTEXT = "pipeline"
NODE_CONTEXT = "node"

# What the runner notes on the context of a run.
CONFIG = "config"  # JSON
CONFIG_SHA256 = "config_sha256"
CSMF_VERSION = "csmf_version"
LOG_DIR = "log_dir"  # absolute; one <node>.log each
PROCESS = "host_pid"  # JSON: host, pid
NODES = "nodes"  # JSON: node -> peak_bytes; noted when the run has ended, however it ended
ERROR = "error"  # JSON: node, type, message

COMPLETE, CACHED, FAILED, RUNNING = "COMPLETE", "CACHED", "FAILED", "RUNNING"
INTERRUPTED = "INTERRUPTED"  # not a state of ML Metadata: the process has gone without a word


@dataclass(frozen=True)
class NodeRun:
    """One node in one run.

    Attributes:
      id: of the execution.
      node: its id in the pipeline, e.g. "CascadedTrainer.click".
      state: COMPLETE, CACHED, FAILED, RUNNING, INTERRUPTED or another state of ML Metadata.
      started: UTC.
      seconds: from the start to the publication; of a running node, until now.
      parameters: execution properties.
      inputs, outputs: artifacts by key; empty where only runs are listed.
      peak_bytes: most memory of the process tree while it ran; None if not recorded.
      error: what it failed with; "" if it did not.
      log: its log file, None if there is none.
    """

    id: int
    node: str
    state: str
    started: datetime
    seconds: float
    parameters: Mapping[str, Value]
    inputs: Mapping[str, list[Artifact]] = field(default_factory=dict)
    outputs: Mapping[str, Artifact] = field(default_factory=dict)
    peak_bytes: int | None = None
    error: str = ""
    log: Path | None = None

    @property
    def cached(self) -> bool:
        """Nothing was executed: an earlier execution's outputs were taken."""
        return self.state == CACHED

    @property
    def done(self) -> bool:
        """Its outputs can be read."""
        return self.state in (COMPLETE, CACHED)


@dataclass(frozen=True)
class Run:
    """One run of the pipeline.

    Attributes:
      id: name of its context, by the local runner the time of its start.
      pipeline: name.
      started: UTC.
      state: COMPLETE, FAILED, RUNNING or INTERRUPTED.
      notes: what the runner noted; see the constants of this module.
      nodes: by id, in the order of execution.
    """

    id: str
    pipeline: str
    started: datetime
    state: str
    notes: Mapping[str, Value]
    nodes: Mapping[str, NodeRun]

    @property
    def config(self) -> dict[str, Any]:
        """The configuration, without what was left at its default; {} if not recorded."""
        return _json(self.notes.get(CONFIG))

    @property
    def error(self) -> str:
        """What ended the run; "" if nothing did."""
        return str(_json(self.notes.get(ERROR)).get("message", ""))


def list_runs(store: MetadataStore, limit: int | None = None) -> list[Run]:
    """All runs, the newest first; nodes without their artifacts.

    Args:
      store: ML Metadata.
      limit: at most so many.
    """
    names = _NodeNames(store)
    return [_run(store, context, names) for context in _contexts(store)[:limit]]


def read_run(store: MetadataStore, run_id: str | None = None) -> Run:
    """One run with the artifacts of its nodes.

    Args:
      store: ML Metadata.
      run_id: or the beginning of it; None = the newest.

    Raises:
      MetadataError: no such run (the text names those that exist), or several begin like that.
    """
    contexts = _contexts(store)
    if not contexts:
        raise MetadataError("no run is recorded yet: start with `csmf run`.")
    found = [c for c in contexts if run_id is None or c.name.startswith(run_id)]
    exact = [context for context in found if context.name == run_id]
    if run_id is not None and len(exact or found) != 1:
        named = ", ".join(context.name for context in (found or contexts)[:5])
        raise MetadataError(
            f"{'several runs begin' if found else 'no run begins'} with {run_id!r}. "
            f"{'They are' if found else 'The newest are'}: {named}."
        )
    return _run(store, (exact or found)[0], _NodeNames(store), with_artifacts=True)


def _contexts(store: MetadataStore) -> list[Context]:
    return sorted(store.get_contexts_by_type(RUN_CONTEXT), key=lambda context: -context.id)


class _NodeNames:
    """Execution -> (pipeline, node). One query per node, not one per execution."""

    def __init__(self, store: MetadataStore) -> None:
        pipelines = [context.name for context in store.get_contexts_by_type(PIPELINE_CONTEXT)]
        self._names: dict[int, tuple[str, str]] = {}
        for context in store.get_contexts_by_type(NODE_CONTEXT):
            # TFX names it "<pipeline>.<node>"; both may contain dots.
            owners = [name for name in pipelines if context.name.startswith(f"{name}.")]
            owner = max(owners, key=len, default="")
            named = (owner, context.name.removeprefix(f"{owner}."))
            for execution in store.get_executions_by_context(context.id):
                self._names[execution.id] = named

    def of(self, execution_id: int) -> tuple[str, str]:
        return self._names.get(execution_id, ("", f"execution {execution_id}"))


def _run(
    store: MetadataStore, context: Context, names: _NodeNames, with_artifacts: bool = False
) -> Run:
    notes = properties(context)
    executions = sorted(store.get_executions_by_context(context.id), key=lambda e: e.id)
    artifacts = _artifacts(store, executions) if with_artifacts else {}
    alive = _is_alive(notes, context)
    measured, failed = _json(notes.get(NODES)), _json(notes.get(ERROR))
    nodes: dict[str, NodeRun] = {}
    for execution in executions:
        node = names.of(execution.id)[1]
        inputs, outputs = artifacts.get(execution.id, ({}, {}))
        state = _state(execution, alive)
        nodes[node] = NodeRun(
            id=execution.id,
            node=node,
            state=state,
            started=_moment(execution.create_time_since_epoch),
            seconds=_seconds(execution, state),
            parameters=properties(execution),
            inputs=inputs,
            outputs=outputs,
            peak_bytes=measured.get(node, {}).get("peak_bytes"),
            error=str(failed.get("message", "")) if failed.get("node") == node else "",
            log=_log(notes, node),
        )
    return Run(
        id=context.name,
        pipeline=names.of(executions[0].id)[0] if executions else "",
        started=_moment(context.create_time_since_epoch),
        state=_run_state(notes, nodes.values(), alive),
        notes=notes,
        nodes=nodes,
    )


def _artifacts(
    store: MetadataStore, executions: list[Execution]
) -> dict[int, tuple[dict[str, list[Artifact]], dict[str, Artifact]]]:
    from ml_metadata.proto import metadata_store_pb2

    event_type = metadata_store_pb2.Event
    events = store.get_events_by_execution_ids([execution.id for execution in executions])
    ids = sorted({event.artifact_id for event in events})
    by_id = {artifact.id: artifact for artifact in store.get_artifacts_by_id(ids)}
    found: dict[int, tuple[dict[str, list[Artifact]], dict[str, Artifact]]] = {
        execution.id: ({}, {}) for execution in executions
    }
    for event in events:
        inputs, outputs = found[event.execution_id]
        if event.type == event_type.OUTPUT:
            outputs[event_key(event)] = by_id[event.artifact_id]
        elif event.type in (event_type.INPUT, event_type.DECLARED_INPUT):
            inputs.setdefault(event_key(event), []).append(by_id[event.artifact_id])
    return found


def event_key(event: Any) -> str:
    """The key in the component of the input or output that an event is about."""
    return next((step.key for step in event.path.steps if step.WhichOneof("value") == "key"), "")


def _state(execution: Execution, alive: bool | None) -> str:
    name = str(type(execution).State.Name(execution.last_known_state))
    return INTERRUPTED if name == RUNNING and alive is False else name


def _run_state(notes: Mapping[str, Value], nodes: Iterable[NodeRun], alive: bool | None) -> str:
    states = {node.state for node in nodes}
    if FAILED in states or ERROR in notes:
        return FAILED
    for state in (INTERRUPTED, RUNNING):
        if state in states:
            return state
    if alive is not None and NODES not in notes:  # between two nodes
        return RUNNING if alive else INTERRUPTED
    return COMPLETE


def _is_alive(notes: Mapping[str, Value], context: Context) -> bool | None:
    """Whether the process that runs the pipeline still does; None where that cannot be known."""
    process = _json(notes.get(PROCESS))
    if process.get("host") != socket.gethostname():
        return None
    import psutil

    try:
        born = psutil.Process(int(process["pid"])).create_time()
    except psutil.NoSuchProcess:
        return False
    # A younger process has got the number of one that is gone.
    return bool(born <= context.create_time_since_epoch / 1000)


def _seconds(execution: Execution, state: str) -> float:
    started = execution.create_time_since_epoch / 1000
    if state == RUNNING:
        return datetime.now(UTC).timestamp() - started
    return execution.last_update_time_since_epoch / 1000 - started


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _log(notes: Mapping[str, Value], node: str) -> Path | None:
    if LOG_DIR not in notes:
        return None
    path = Path(str(notes[LOG_DIR])) / f"{node}.log"
    try:
        return path if path.is_file() else None
    except OSError:  # another user's directory
        return None


def _json(text: object) -> dict[str, Any]:
    try:
        value = json.loads(str(text)) if text is not None else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
