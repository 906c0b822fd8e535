"""The facts about one version, taken from the properties of what stands behind it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeVar

from pipeline.lineage.graph import ArtifactNode, ExecutionNode, Graph, is_gone
from pipeline.lineage.pushes import Push
from pipeline.metadata.runs import CONFIG, CONFIG_SHA256, CSMF_VERSION
from pipeline.metadata.store import Value

# Parameters of executions that name what came from outside the pipeline.
FINGERPRINT = "fingerprint"  # JSON: path -> SHA-256 of the log, catalogue and user files
SCHEMA_FILE = "schema_file"
_SEED = "seed"

_QUALITY, _SERVING = "quality", "serving"
_BLESSINGS = {_QUALITY: "ModelBlessing", _SERVING: "InfraBlessing"}
_CHECKS_OF = {_QUALITY: "ModelEvaluation", _SERVING: "InfraBlessing"}

Metrics = Mapping[str, Mapping[str, float]]  # objective -> metric -> value
_Kind = TypeVar("_Kind")


@dataclass(frozen=True)
class LogFile:
    """A file that was ingested.

    Attributes:
      path: as configured.
      sha256: of its content then.
      table: interactions, catalogue or users; "" if not recorded.
      rows: that were read; None if not recorded.
      gone: no longer there.
    """

    path: str
    sha256: str
    table: str
    rows: int | None
    gone: bool


@dataclass(frozen=True)
class Rows:
    """What became of the rows of a table."""

    read: int
    used: int
    dead_letters: int
    dropped: Mapping[str, int]


@dataclass(frozen=True)
class SchemaFile:
    """A schema that the data had to fit."""

    node: str
    path: str
    gone: bool


@dataclass(frozen=True)
class Stage:
    """One stage of the cascade.

    Attributes:
      objective: its name.
      node: that trained it.
      settings: tau, gamma and the others that it was trained with.
      owned: layer -> slots that are its own.
      loss: at its end; None if not recorded.
      upstream_sha256: of what earlier stages had left when it began.
      weights: objective -> request weights that were chosen; only of the last stage.
    """

    objective: str
    node: str
    settings: Mapping[str, Any]
    owned: Mapping[str, int]
    loss: float | None
    upstream_sha256: str
    weights: Mapping[str, list[float]]


@dataclass(frozen=True)
class Check:
    """One check of a gate; value and threshold where it measured, else the detail."""

    name: str
    passed: bool
    value: float | None
    threshold: float | None
    detail: str


@dataclass(frozen=True)
class Gate:
    """The verdict of a gate.

    Attributes:
      name: quality or serving.
      blessed: None if not recorded.
      failed: checks that did not pass.
      checks: one by one; empty if not recorded.
    """

    name: str
    blessed: bool | None
    failed: str
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Step:
    """An execution that the version rests on.

    Attributes:
      execution: id in ML Metadata.
      node: id in the pipeline.
      state: COMPLETE and the like.
      started: UTC.
      seconds: wall time.
      run: that executed it.
      cached: that run was an earlier one than the run that pushed.
      csmf_version: of that run; "" if not recorded.
    """

    execution: int
    node: str
    state: str
    started: datetime
    seconds: float
    run: str
    cached: bool
    csmf_version: str


@dataclass(frozen=True)
class VersionFacts:
    """What stands behind a version. Empty texts, mappings and None: not recorded.

    Attributes:
      model: served name.
      version: its number; None if no push is recorded.
      model_id: of the manifest.
      pushed: UTC.
      destination: where it was published.
      deleted: nothing is there any more.
      run: id of the run that pushed.
      csmf_version: code of that run.
      config: what was configured in that run, defaults left out; None if not recorded.
      config_sha256: of the whole.
      seeds: node -> seed.
      files, tables, schemas: the data.
      stages: of the cascade, first objective first.
      metrics, popularity, baseline: on held-out events.
      baseline_version: what it was compared with.
      ann_recall: share of the exact top 100 that the index finds.
      gates: both.
      steps: executions, in their order.
      notes: what is to be said of how the version was found.
      gone: files and directories that the version was made of and that are no longer there.
      missing: what its runs did not record, in words.
    """

    model: str
    version: int | None
    model_id: str
    pushed: datetime | None
    destination: str
    deleted: bool
    run: str
    csmf_version: str
    config: Mapping[str, Any] | None
    config_sha256: str
    seeds: Mapping[str, int]
    files: tuple[LogFile, ...]
    tables: Mapping[str, Rows]
    schemas: tuple[SchemaFile, ...]
    stages: tuple[Stage, ...]
    metrics: Metrics
    popularity: Metrics
    baseline: Metrics
    baseline_version: int | None
    ann_recall: float | None
    gates: tuple[Gate, ...]
    steps: tuple[Step, ...]
    notes: tuple[str, ...]
    gone: tuple[str, ...]
    missing: tuple[str, ...]


def extract(graph: Graph, push: Push | None, notes: Sequence[str] = ()) -> VersionFacts:
    """Collects the facts.

    Args:
      graph: above the push, or above the model if no push is recorded.
      push: of the version.
      notes: of `VersionFacts`.
    """
    maker = graph.maker
    of_run: Mapping[str, Value] = {} if maker is None else maker.notes
    root = graph.artifacts[graph.root]
    evaluation = _last(graph, "ModelEvaluation")
    stages = tuple(_stages(graph))
    facts = VersionFacts(
        model="" if push is None else push.model,
        version=None if push is None else push.version,
        model_id=str(root.properties.get("model_id", "")),
        pushed=None if push is None else push.pushed,
        destination="" if push is None else push.destination,
        deleted=False if push is None else push.deleted,
        run="" if maker is None else maker.run,
        csmf_version=str(of_run.get(CSMF_VERSION, "")),
        config=_json(of_run.get(CONFIG), dict),
        config_sha256=str(of_run.get(CONFIG_SHA256, "")),
        seeds={
            execution.node: int(execution.parameters[_SEED])
            for execution in graph.executions.values()
            if str(execution.parameters.get(_SEED, "")).lstrip("-").isdecimal()
        },
        files=tuple(_files(graph)),
        tables=_tables(graph),
        schemas=tuple(_schemas(graph)),
        stages=stages,
        metrics=_metrics(evaluation, "metrics")
        or _flat_metrics(evaluation, [stage.objective for stage in stages]),
        popularity=_metrics(evaluation, "popularity"),
        baseline=_metrics(evaluation, "baseline"),
        baseline_version=_whole(_property(evaluation, "baseline_version")),
        ann_recall=_number(_property(evaluation, "ann_recall@100")),
        gates=tuple(_gates(graph)),
        steps=tuple(_steps(graph, maker)),
        notes=tuple(notes),
        gone=(),
        missing=(),
    )
    return replace(facts, gone=tuple(_gone(facts, graph)), missing=tuple(_missing(facts)))


def log_files(parameters: Mapping[str, Value]) -> dict[str, str]:
    """Path -> SHA-256 of the files that an execution read from outside the pipeline."""
    found = _json(parameters.get(FINGERPRINT), dict) or {}
    return {str(path): str(sha256) for path, sha256 in found.items()}


def recorded_files(summary: Mapping[str, Value]) -> dict[tuple[str, str], tuple[str, int | None]]:
    """(path, SHA-256) -> (table, rows), as an IngestionSummary has them."""
    listed = _json(summary.get("files"), list) or []
    return {
        (str(file.get("path")), str(file.get("sha256"))): (
            str(file.get("table", "")),
            _whole(file.get("rows")),
        )
        for file in listed
        if isinstance(file, dict)
    }


def _files(graph: Graph) -> Iterator[LogFile]:
    details: dict[tuple[str, str], tuple[str, int | None]] = {}
    for summary in graph.of_type("IngestionSummary"):
        details |= recorded_files(summary.properties)
    for execution in graph.executions.values():
        for path, sha256 in log_files(execution.parameters).items():
            table, rows = details.get((path, sha256), ("", None))
            yield LogFile(path, sha256, table, rows, is_gone(path))


def _tables(graph: Graph) -> dict[str, Rows]:
    summary = _last(graph, "IngestionSummary")
    tables = _json(_property(summary, "tables"), dict) or {}
    return {
        str(name): Rows(
            read=_whole(counts.get("read")) or 0,
            used=_whole(counts.get("used")) or 0,
            dead_letters=_whole(counts.get("dead_letters")) or 0,
            dropped=dict(counts.get("dropped") or {}),
        )
        for name, counts in tables.items()
        if isinstance(counts, dict)
    }


def _schemas(graph: Graph) -> Iterator[SchemaFile]:
    for execution in graph.executions.values():
        if SCHEMA_FILE in execution.parameters:
            path = str(execution.parameters[SCHEMA_FILE])
            yield SchemaFile(execution.node, path, is_gone(path))


def _stages(graph: Graph) -> Iterator[Stage]:
    found = list(graph.of_type("CascadeStage"))
    for artifact in sorted(found, key=lambda a: _whole(a.properties.get("stage")) or 0):
        maker = graph.executions.get(artifact.made_by or 0)
        # Runs made before artifacts carried the settings have them in the execution's parameters.
        settings = _json(artifact.properties.get("settings"), dict) or _json(
            None if maker is None else maker.parameters.get("settings"), dict
        )
        yield Stage(
            objective=str(artifact.properties.get("objective", "")),
            node="" if maker is None else maker.node,
            settings={k: v for k, v in (settings or {}).items() if k != "name"},
            owned=_json(artifact.properties.get("owned"), dict) or {},
            loss=_number(artifact.properties.get("loss")),
            upstream_sha256=str(artifact.properties.get("upstream_sha256", "")),
            weights=_json(artifact.properties.get("weights"), dict) or {},
        )


def _gates(graph: Graph) -> Iterator[Gate]:
    for name, kind in _BLESSINGS.items():
        blessing = _last(graph, kind)
        verdict = _property(blessing, "blessed")
        listed = _json(_property(_last(graph, _CHECKS_OF[name]), "checks"), list) or []
        yield Gate(
            name=name,
            blessed=None if verdict is None else bool(verdict),
            failed=str(_property(blessing, "failed") or ""),
            checks=tuple(
                Check(
                    name=str(check.get("name", "")),
                    passed=bool(check.get("passed")),
                    value=_number(check.get("value")),
                    threshold=_number(check.get("threshold")),
                    detail=str(check.get("detail", "")),
                )
                for check in listed
                if isinstance(check, dict)
            ),
        )


def _steps(graph: Graph, maker: ExecutionNode | None) -> Iterator[Step]:
    for execution in graph.executions.values():
        yield Step(
            execution=execution.id,
            node=execution.node,
            state=execution.state,
            started=execution.started,
            seconds=execution.seconds,
            run=execution.run,
            cached=maker is not None and execution.run != maker.run,
            csmf_version=str(execution.notes.get(CSMF_VERSION, "")),
        )


def _gone(facts: VersionFacts, graph: Graph) -> Iterator[str]:
    yield from (artifact.uri for artifact in graph.artifacts.values() if artifact.gone)
    yield from (file.path for file in facts.files if file.gone)
    yield from (schema.path for schema in facts.schemas if schema.gone)


def _missing(facts: VersionFacts) -> Iterator[str]:
    expected: dict[str, Callable[[], object]] = {
        "the configuration": lambda: facts.config is not None,
        "the version of the code": lambda: facts.csmf_version,
        "log files": lambda: facts.files,
        "row counts": lambda: facts.tables,
        "schemas": lambda: facts.schemas,
        "seeds": lambda: facts.seeds,
        "stages": lambda: facts.stages,
        "metrics": lambda: facts.metrics,
        "what popularity reaches": lambda: facts.popularity or not facts.metrics,
        "single checks of the gates": lambda: all(gate.checks for gate in facts.gates),
    }
    return (what for what, known in expected.items() if not known())


# --- values -------------------------------------------------------------------------------------


def _last(graph: Graph, kind: str) -> ArtifactNode | None:
    return next(reversed(list(graph.of_type(kind))), None)


def _property(artifact: ArtifactNode | None, key: str) -> Value | None:
    return None if artifact is None else artifact.properties.get(key)


def _metrics(evaluation: ArtifactNode | None, key: str) -> Metrics:
    found = _json(_property(evaluation, key), dict) or {}
    return {
        str(objective): {str(k): float(v) for k, v in values.items() if _is_number(v)}
        for objective, values in found.items()
        if isinstance(values, dict)
    }


def _flat_metrics(evaluation: ArtifactNode | None, order: Sequence[str]) -> Metrics:
    """Of runs made before the whole was recorded: properties "<objective> <metric>"."""
    found: dict[str, dict[str, float]] = {}
    for key, value in {} if evaluation is None else evaluation.properties.items():
        objective, _, metric = key.rpartition(" ")
        if objective and "@" in metric and _is_number(value):
            found.setdefault(objective, {})[metric] = float(value)
    return {name: found[name] for name in order if name in found} | found


def _json(text: Value | None, kind: type[_Kind]) -> _Kind | None:
    """The value of a property; None if there is none, or nothing of that kind is in it."""
    try:
        value = json.loads(str(text)) if text is not None else None
    except ValueError:
        return None
    return value if isinstance(value, kind) else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> float | None:
    return float(value) if _is_number(value) else None


def _whole(value: Any) -> int | None:
    return int(value) if _is_number(value) else None
