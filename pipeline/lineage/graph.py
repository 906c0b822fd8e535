"""Artifacts and executions above a push, read in a few batched calls however many pushes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.metadata.runs import (
    NODE_CONTEXT,
    PIPELINE_CONTEXT,
    RUN_CONTEXT,
    event_key,
)
from pipeline.metadata.store import Value, properties

if TYPE_CHECKING:
    from ml_metadata import MetadataStore
    from ml_metadata.proto.metadata_store_pb2 import Artifact, Context, Execution

PUSHED_MODEL = "PushedModel"

_HIDDEN_PROPERTIES = ("is_external", "tfx_version", "name", "producer_component", "state")


@dataclass(frozen=True)
class Link:
    """An artifact that an execution read or wrote, under one of its keys."""

    key: str
    artifact: int


@dataclass(frozen=True)
class ArtifactNode:
    """One artifact.

    Attributes:
      id: in ML Metadata.
      type: of the artifact.
      uri: where its files are; "" if it has none.
      properties: all but those of TFX's own housekeeping.
      gone: its files are no longer there; False where that cannot be seen from here.
      made_by: id of the execution that did the work; None if that is not recorded.
    """

    id: int
    type: str
    uri: str
    properties: Mapping[str, Value]
    gone: bool
    made_by: int | None


@dataclass(frozen=True)
class ExecutionNode:
    """One execution.

    Attributes:
      id: in ML Metadata.
      node: id in the pipeline.
      state: COMPLETE, FAILED, ...
      started: UTC.
      seconds: wall time.
      run: id of the run that executed it; "" if that is not recorded.
      notes: what the runner noted on that run.
      parameters: execution properties.
      inputs, outputs: what it read and wrote.
    """

    id: int
    node: str
    state: str
    started: datetime
    seconds: float
    run: str
    notes: Mapping[str, Value]
    parameters: Mapping[str, Value]
    inputs: tuple[Link, ...]
    outputs: tuple[Link, ...]


@dataclass(frozen=True)
class Graph:
    """Everything above one artifact.

    Attributes:
      root: id of that artifact.
      artifacts, executions: by id.
    """

    root: int
    artifacts: Mapping[int, ArtifactNode]
    executions: Mapping[int, ExecutionNode]

    @property
    def maker(self) -> ExecutionNode | None:
        """The execution that made the root."""
        made_by = self.artifacts[self.root].made_by
        return None if made_by is None else self.executions[made_by]

    def of_type(self, kind: str) -> Iterator[ArtifactNode]:
        """Artifacts of a type, the oldest first."""
        return (self.artifacts[id_] for id_ in sorted(self.artifacts) if self._is(id_, kind))

    def _is(self, artifact: int, kind: str) -> bool:
        return self.artifacts[artifact].type == kind


@dataclass(frozen=True)
class Walk:
    """What was met on the way up, as ML Metadata stores it.

    Attributes:
      executions: by id; only those that did the work, not those that took it from the cache.
      made_by: artifact -> execution.
      inputs, outputs: execution -> what it read and wrote.
    """

    executions: Mapping[int, Execution]
    made_by: Mapping[int, int]
    inputs: Mapping[int, tuple[Link, ...]]
    outputs: Mapping[int, tuple[Link, ...]]

    def above(self, artifact: int) -> set[int]:
        """Executions that the artifact rests on."""
        found: set[int] = set()
        waiting = [artifact]
        while waiting:
            execution = self.made_by.get(waiting.pop())
            if execution is not None and execution not in found:
                found.add(execution)
                waiting += [link.artifact for link in self.inputs[execution]]
        return found


def walk_up(store: MetadataStore, artifacts: Iterable[int]) -> Walk:
    """Follows artifacts to all that they were made of.

    Args:
      store: ML Metadata.
      artifacts: ids.
    """
    from ml_metadata.proto import metadata_store_pb2

    event_type = metadata_store_pb2.Event
    reads = (event_type.INPUT, event_type.DECLARED_INPUT)
    writes = (event_type.OUTPUT, event_type.DECLARED_OUTPUT)
    executions: dict[int, Execution] = {}
    made_by: dict[int, int] = {}
    inputs: dict[int, tuple[Link, ...]] = {}
    outputs: dict[int, tuple[Link, ...]] = {}
    seen: set[int] = set()
    frontier = set(artifacts)
    while frontier:
        seen |= frontier
        found = _makers(store, frontier, writes)
        new = {execution.id: execution for execution in found.values()}.keys() - executions.keys()
        executions |= {execution.id: execution for execution in found.values()}
        made_by |= {artifact: execution.id for artifact, execution in found.items()}
        events: dict[int, list[Any]] = {id_: [] for id_ in new}
        for event in store.get_events_by_execution_ids(sorted(new)) if new else ():
            events[event.execution_id].append(event)
        for id_, own in events.items():
            inputs[id_] = _links(event for event in own if event.type in reads)
            outputs[id_] = _links(event for event in own if event.type in writes)
            made_by |= {link.artifact: id_ for link in outputs[id_]}
        frontier = {link.artifact for id_ in new for link in inputs[id_]} - seen
    return Walk(executions, made_by, inputs, outputs)


def read_graph(store: MetadataStore, root: int) -> Graph:
    """Returns everything above an artifact.

    Args:
      store: ML Metadata.
      root: id of the artifact.
    """
    walk = walk_up(store, [root])
    ids = sorted({root, *walk.made_by} | {i.artifact for v in walk.inputs.values() for i in v})
    artifacts = {
        artifact.id: _artifact(artifact, walk.made_by.get(artifact.id))
        for artifact in store.get_artifacts_by_id(ids)
    }
    executions = {
        id_: _execution(execution, store.get_contexts_by_execution(id_), walk)
        for id_, execution in sorted(walk.executions.items())
    }
    return Graph(root, artifacts, executions)


def first_run(contexts: Iterable[Context]) -> Context | None:
    """Of the runs among the contexts the oldest, which did the work; later ones took it over."""
    runs = [context for context in contexts if context.type == RUN_CONTEXT]
    return min(runs, key=lambda context: context.id, default=None)


def is_gone(uri: str) -> bool:
    """Whether a place on this machine holds nothing any more; False for all other places."""
    path = Path(uri.removeprefix("file://"))
    if not path.is_absolute():
        return False
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):  # not ours to look into, or no path at all
        return False
    return False


def _makers(
    store: MetadataStore, artifacts: Iterable[int], writes: tuple[int, ...]
) -> dict[int, Execution]:
    """Artifact -> the execution that did the work."""
    from ml_metadata.proto import metadata_store_pb2

    wrote: dict[int, set[int]] = {}
    for event in store.get_events_by_artifact_ids(sorted(artifacts)):
        if event.type in writes:
            wrote.setdefault(event.artifact_id, set()).add(event.execution_id)
    ids = sorted({id_ for found in wrote.values() for id_ in found})
    by_id = {execution.id: execution for execution in store.get_executions_by_id(ids)}
    cached = metadata_store_pb2.Execution.CACHED
    return {
        artifact: by_id[min(found, key=lambda id_: (by_id[id_].last_known_state == cached, id_))]
        for artifact, found in wrote.items()
    }


def _links(events: Iterable[Any]) -> tuple[Link, ...]:
    links = [Link(event_key(event), event.artifact_id) for event in events]
    return tuple(sorted(links, key=lambda link: (link.key, link.artifact)))


def _artifact(artifact: Artifact, made_by: int | None) -> ArtifactNode:
    values = properties(artifact).items()
    return ArtifactNode(
        id=artifact.id,
        type=artifact.type,
        uri=artifact.uri,
        properties={key: value for key, value in values if key not in _HIDDEN_PROPERTIES},
        gone=bool(artifact.uri) and is_gone(artifact.uri),
        made_by=made_by,
    )


def _execution(execution: Execution, contexts: list[Context], walk: Walk) -> ExecutionNode:
    started = execution.create_time_since_epoch / 1000
    run = first_run(contexts)
    return ExecutionNode(
        id=execution.id,
        node=_node(contexts) or str(execution.type),
        state=str(type(execution).State.Name(execution.last_known_state)),
        started=datetime.fromtimestamp(started, UTC),
        seconds=execution.last_update_time_since_epoch / 1000 - started,
        run="" if run is None else run.name,
        notes={} if run is None else properties(run),
        parameters=properties(execution),
        inputs=walk.inputs[execution.id],
        outputs=walk.outputs[execution.id],
    )


def _node(contexts: list[Context]) -> str:
    # TFX names the context "<pipeline>.<node>"; both may contain dots.
    pipelines = [context.name for context in contexts if context.type == PIPELINE_CONTEXT]
    for context in contexts:
        if context.type == NODE_CONTEXT:
            name = str(context.name)
            return next((name[len(p) + 1 :] for p in pipelines if name.startswith(f"{p}.")), name)
    return ""
