"""What a pushed version was made of: ML Metadata, walked back from the push to the log files.

Opens the database read-only and needs neither TFX nor TensorFlow, so `csmf lineage` answers in
under a second.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.tree import Tree

_PUSHED_MODEL = "PushedModel"
_VERSION = "pushed_version"
_MODEL_NAME = "model_name"
_RUN_CONTEXT = "pipeline_run"
_NODE_CONTEXT = "node"

# Parameters of executions that name what came from outside the pipeline.
_FINGERPRINT = "fingerprint"  # JSON: path -> SHA-256 of the log, catalogue and user files
_SCHEMA_FILE = "schema_file"
_RUN_PROPERTIES = ("config_sha256", "csmf_version", "config")  # of the run that pushed
_SETTINGS = ("data", "settings", "objectives", "seed")  # parts of the configuration, by node

REPORT_FILES = (
    "summary.json",
    "stage.json",
    "manifest.json",
    "evaluation.json",
    "report.json",
)
_HIDDEN_PROPERTIES = ("is_external", "tfx_version", "name", "producer_component", "state")
_HIDDEN_REPORT_KEYS = ("files", "server_log_tail", "slices")  # too long for a tree
_MAX_VALUE_CHARACTERS = 120
_MAX_REPORT_LINES = 16


class LineageError(RuntimeError):
    """The lineage cannot be told; the text says what there is instead."""


@dataclass(frozen=True)
class ExecutionInfo:
    """The execution that made an artifact.

    Attributes:
      id: in ML Metadata.
      component: node id in the pipeline.
      state: COMPLETE, CACHED, FAILED, ...
      started: UTC.
      seconds: wall time.
      cached: the run that pushed took the artifact from an earlier run.
      parameters: execution properties, as they are stored.
    """

    id: int
    component: str
    state: str
    started: datetime
    seconds: float
    cached: bool
    parameters: Mapping[str, str | int | float]


@dataclass(frozen=True)
class LineageNode:
    """An artifact, or a file from outside the pipeline, and what it was made of.

    Attributes:
      type: artifact type, or "file" or "config".
      name: its name, or id, or the file's path.
      role: what the child was to its parent, e.g. the input's key; "" for the root.
      id: artifact id; None for what is no artifact.
      uri: where its files are; "" if it has none.
      properties: of the artifact, or e.g. the file's SHA-256.
      execution: what made it; None for what came from outside.
      gone: its files are no longer there.
      reports: report file -> content, for those that exist.
      repeated: already in the tree further up, where its children are.
      children: the inputs of its execution, files it read, and what else it wrote.
    """

    type: str
    name: str
    role: str = ""
    id: int | None = None
    uri: str = ""
    properties: Mapping[str, str | int | float] = field(default_factory=dict)
    execution: ExecutionInfo | None = None
    gone: bool = False
    reports: Mapping[str, Any] = field(default_factory=dict)
    repeated: bool = False
    children: tuple[LineageNode, ...] = ()

    def walk(self) -> Iterator[LineageNode]:
        """Yields this node and all below it, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()


def lineage(metadata_path: Path, version: int, model_name: str | None = None) -> LineageNode:
    """Returns the pushed version with everything it was made of below it.

    Args:
      metadata_path: SQLite database of ML Metadata.
      version: number of the pushed version.
      model_name: served name; needed only if several models are pushed from this database.

    Raises:
      LineageError: no database, or no such version (the text names those that exist).
    """
    store = _open(metadata_path)
    pushed = _find(store, metadata_path, version, model_name)
    return _Walker(store, pushed.id).artifact(pushed, role="")


def render(node: LineageNode) -> Tree:
    """Returns the tree for the terminal."""
    from rich.console import Group
    from rich.text import Text
    from rich.tree import Tree

    def add(parent: Tree | None, shown: LineageNode) -> Tree:
        label = Group(*(Text(line, style) for line, style in _lines(shown)))
        branch = Tree(label) if parent is None else parent.add(label)
        for child in shown.children:
            add(branch, child)
        return branch

    return add(None, node)


# --- the database -------------------------------------------------------------------------------


def _open(path: Path) -> Any:
    if not path.is_file():
        raise LineageError(
            f"there is no metadata database at {path}. Nothing has been run there yet: start with "
            "`csmf run --config CONFIG --workdir DIR`, or name the right --workdir."
        )
    # Not at the top: half a second that `csmf --help` must not wait for.
    from ml_metadata import MetadataStore
    from ml_metadata.proto import metadata_store_pb2

    config = metadata_store_pb2.ConnectionConfig()
    config.sqlite.filename_uri = str(path)
    config.sqlite.connection_mode = metadata_store_pb2.SqliteMetadataSourceConfig.READONLY
    try:
        return MetadataStore(config)
    except RuntimeError as error:
        raise LineageError(
            f"{path} is not a metadata database of this version of ML Metadata "
            f"({str(error).splitlines()[0][:120]}). Name the file that `csmf run` wrote."
        ) from error


def _find(store: Any, path: Path, version: int, model_name: str | None) -> Any:
    """The newest push of that version; a version deleted by hand may be pushed again."""
    from ml_metadata import errors

    try:
        pushes = store.get_artifacts_by_type(_PUSHED_MODEL)
    except errors.NotFoundError:
        pushes = []
    known: dict[int, list[Any]] = {}
    for artifact in pushes:
        properties = _properties(artifact)
        number = str(properties.get(_VERSION, ""))
        named = properties.get(_MODEL_NAME)
        if number.isdecimal() and model_name in (None, named):
            known.setdefault(int(number), []).append(artifact)
    if version in known:
        return max(known[version], key=lambda artifact: artifact.id)
    of_model = f" of model {model_name!r}" if model_name else ""
    if not known:
        raise LineageError(
            f"{path} knows no pushed version{of_model}: no run has passed the gates yet. "
            "Look at the run's summary.json for the reasons, then `csmf run` again."
        )
    listed = ", ".join(str(number) for number in sorted(known))
    raise LineageError(
        f"{path} knows no pushed version {version}{of_model}. Versions that exist: {listed}."
    )


def _properties(message: Any) -> dict[str, str | int | float]:
    """Properties and custom properties as plain values, sorted by name."""
    values: dict[str, str | int | float] = {}
    for source in (message.properties, message.custom_properties):
        for key, value in source.items():
            kind = value.WhichOneof("value")
            if kind in ("int_value", "double_value", "string_value"):
                values[key] = getattr(value, kind)
    return dict(sorted(values.items()))


class _Walker:
    """Builds the tree depth first; an artifact or execution met again is only referred to."""

    def __init__(self, store: Any, pushed_id: int) -> None:
        from ml_metadata.proto import metadata_store_pb2

        self._store = store
        self._pushed_id = pushed_id
        self._event = metadata_store_pb2.Event
        self._state = metadata_store_pb2.Execution.State
        self._seen_artifacts: set[int] = set()
        self._seen_executions: set[int] = set()
        self._cached = self._artifacts_from_cache(pushed_id)

    def artifact(self, artifact: Any, role: str) -> LineageNode:
        """The node of an artifact, with all that is above it in the pipeline."""
        repeated = artifact.id in self._seen_artifacts
        self._seen_artifacts.add(artifact.id)
        execution = self._producer(artifact.id)
        expand = (
            not repeated and execution is not None and execution.id not in self._seen_executions
        )
        if expand:
            self._seen_executions.add(execution.id)
        return self._node(
            artifact,
            role,
            execution,
            repeated=repeated or (execution is not None and not expand),
            children=tuple(self._ancestors(execution, artifact.id)) if expand else (),
        )

    def _ancestors(self, execution: Any, artifact_id: int) -> Iterator[LineageNode]:
        events = self._store.get_events_by_execution_ids([execution.id])
        if artifact_id == self._pushed_id:
            yield from self._run_configs(execution)
        yield from _outside(execution, self._component(execution))
        inputs = [e for e in events if e.type in (self._event.INPUT, self._event.DECLARED_INPUT)]
        # The model first: its branch is what the reader looks for, the rest refers to it.
        inputs.sort(key=lambda event: (_key(event) != "model", _key(event), event.artifact_id))
        for event in inputs:
            for found in self._store.get_artifacts_by_id([event.artifact_id]):
                yield self.artifact(found, _key(event))
        for event in events:
            written = event.type == self._event.OUTPUT
            if not written or event.artifact_id in self._seen_artifacts:
                continue
            for found in self._store.get_artifacts_by_id([event.artifact_id]):
                node = self._node(found, f"also written: {_key(event)}", None)
                # Only what tells a result: statistics and the like are files to look into.
                if node.reports:
                    yield node

    def _run_configs(self, execution: Any) -> Iterator[LineageNode]:
        """The configuration of the run that pushed, as the runner noted it on the run."""
        for context in self._store.get_contexts_by_execution(execution.id):
            noted = _properties(context)
            shown = {key: noted[key] for key in _RUN_PROPERTIES if key in noted}
            if context.type == _RUN_CONTEXT and shown:
                yield LineageNode("config", f"run {context.name}", "run", properties=shown)

    def _node(
        self,
        artifact: Any,
        role: str,
        execution: Any,
        repeated: bool = False,
        children: tuple[LineageNode, ...] = (),
    ) -> LineageNode:
        directory = Path(artifact.uri.removeprefix("file://"))
        local = "://" not in str(directory)
        return LineageNode(
            type=artifact.type,
            name=artifact.name or f"artifact {artifact.id}",
            role=role,
            id=artifact.id,
            uri=artifact.uri,
            properties={
                key: value
                for key, value in _properties(artifact).items()
                if key not in _HIDDEN_PROPERTIES
            },
            execution=self._info(execution, artifact.id) if execution is not None else None,
            gone=bool(artifact.uri) and local and not directory.exists(),
            reports={} if repeated else _reports(directory),
            repeated=repeated,
            children=children,
        )

    def _producer(self, artifact_id: int) -> Any:
        """The execution that did the work; later runs that took it from the cache come after."""
        ids = [
            event.execution_id
            for event in self._store.get_events_by_artifact_ids([artifact_id])
            if event.type == self._event.OUTPUT
        ]
        found = self._store.get_executions_by_id(ids)
        done = [e for e in found if e.last_known_state != self._state.Value("CACHED")]
        return min(done or found, key=lambda execution: execution.id, default=None)

    def _artifacts_from_cache(self, pushed_id: int) -> set[int]:
        """Artifacts that the run which pushed took from the cache."""
        execution = self._producer(pushed_id)
        if execution is None:
            return set()
        executions = [
            other.id
            for context in self._store.get_contexts_by_execution(execution.id)
            if context.type == _RUN_CONTEXT
            for other in self._store.get_executions_by_context(context.id)
            if other.last_known_state == self._state.Value("CACHED")
        ]
        if not executions:
            return set()
        events = self._store.get_events_by_execution_ids(executions)
        return {event.artifact_id for event in events if event.type == self._event.OUTPUT}

    def _info(self, execution: Any, artifact_id: int) -> ExecutionInfo:
        started = execution.create_time_since_epoch / 1000
        return ExecutionInfo(
            id=execution.id,
            component=self._component(execution),
            state=self._state.Name(execution.last_known_state),
            started=datetime.fromtimestamp(started, UTC),
            seconds=execution.last_update_time_since_epoch / 1000 - started,
            cached=artifact_id in self._cached,
            parameters=_properties(execution),
        )

    def _component(self, execution: Any) -> str:
        # TFX names the context "<pipeline>.<node>"; node ids themselves may contain dots.
        contexts = self._store.get_contexts_by_execution(execution.id)
        pipelines = [context.name for context in contexts if context.type == "pipeline"]
        for context in contexts:
            if context.type == _NODE_CONTEXT:
                name = str(context.name)
                return next(
                    (name[len(p) + 1 :] for p in pipelines if name.startswith(f"{p}.")), name
                )
        return str(execution.type)


def _key(event: Any) -> str:
    """The input's or output's key in the component."""
    return next((step.key for step in event.path.steps if step.WhichOneof("value") == "key"), "")


# --- what lies outside the database -------------------------------------------------------------


def _outside(execution: Any, component: str) -> Iterator[LineageNode]:
    """Nodes of the files and settings that an execution took from outside the pipeline."""
    parameters = _properties(execution)
    settings = {key: value for key, value in parameters.items() if key in _SETTINGS}
    if settings:
        yield LineageNode(type="config", name=component, properties=settings)
    try:
        fingerprint = json.loads(str(parameters.get(_FINGERPRINT, "{}")))
    except ValueError:
        fingerprint = {}
    if isinstance(fingerprint, dict):
        for path, digest in fingerprint.items():
            yield _file(str(path), "input file", {"sha256": str(digest)})
    if _SCHEMA_FILE in parameters:
        yield _file(str(parameters[_SCHEMA_FILE]), "schema", {})


def _file(path: str, role: str, properties: dict[str, str | int | float]) -> LineageNode:
    # A relative path is relative to where the run was started, which need not be here.
    gone = Path(path).is_absolute() and not Path(path).exists()
    return LineageNode("file", path, role, uri=path, properties=properties, gone=gone)


def _reports(directory: Path) -> dict[str, Any]:
    """Reads the reports that exist; an unreadable one is shown as such."""
    reports: dict[str, Any] = {}
    for name in REPORT_FILES:
        path = directory / name
        if not path.is_file():
            continue
        try:
            reports[name] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            reports[name] = {"unreadable": str(error)}
    return reports


# --- text ---------------------------------------------------------------------------------------


def _lines(node: LineageNode) -> Iterator[tuple[str, str]]:
    """(text, style) of a node, the heading first."""
    heading = f"{node.role}: {node.type}" if node.role else node.type
    number = (
        f" (artifact {node.id})" if node.id is not None and str(node.id) not in node.name else ""
    )
    yield f"{heading} {node.name}{number}", "dim" if node.repeated else "bold"
    execution = node.execution
    if node.repeated:
        made = f", made by {execution.component} ({execution.id})" if execution else ""
        yield f"shown above{made}", "dim"
        return
    if execution is not None:
        cached = ", from the cache" if execution.cached else ""
        yield (
            f"by {execution.component}, execution {execution.id}, {execution.state}{cached}, "
            f"{execution.started:%Y-%m-%d %H:%M:%S} UTC, {execution.seconds:.1f} s",
            "cyan",
        )
    if node.uri and node.uri != node.name:
        yield node.uri, "dim"
    if node.gone:
        yield "files are gone", "red"
    if node.properties:
        yield _pairs(node.properties.items()), ""
    for name, content in node.reports.items():
        for line in _report_lines(content):
            yield f"{name}: {line}", "green"


def _report_lines(content: Any) -> list[str]:
    """The numbers of a report: one line for the short values, one for each mapping of them."""
    lines: list[str] = []

    def add(title: str, value: Mapping[str, Any]) -> None:
        shown = {key: item for key, item in value.items() if key not in _HIDDEN_REPORT_KEYS}
        scalars = [(k, v) for k, v in shown.items() if _is_short(v)]
        if scalars:
            lines.append(f"{title}{': ' if title else ''}{_pairs(scalars)}")
        checks = value.get("checks")
        if isinstance(checks, list):
            failed = [c.get("name") for c in checks if isinstance(c, dict) and not c.get("passed")]
            verdict = f"failed: {', '.join(map(str, failed))}" if failed else "all passed"
            lines.append(f"{len(checks)} checks, {verdict}")
        for key, item in shown.items():
            if isinstance(item, dict):
                add(f"{title}.{key}" if title else key, item)

    if isinstance(content, dict):
        add("", content)
    if len(lines) > _MAX_REPORT_LINES:
        more = len(lines) - _MAX_REPORT_LINES
        lines = [*lines[:_MAX_REPORT_LINES], f"... {more} more lines in the file"]
    return lines


def _is_short(value: Any) -> bool:
    """A scalar, or a list of numbers such as weights and sizes of blocks."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(number, int | float) for number in value)
    return isinstance(value, bool | int | float | str)


def _pairs(items: Iterable[tuple[str, Any]]) -> str:
    return ", ".join(f"{key}={_short(value)}" for key, value in items if value != "")


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    if len(text) <= _MAX_VALUE_CHARACTERS:
        return text
    return text[: _MAX_VALUE_CHARACTERS - 3] + "..."
