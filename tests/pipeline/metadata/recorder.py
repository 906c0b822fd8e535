"""Writes runs into ML Metadata as TFX and the executors do, without running anything."""

from __future__ import annotations

import json
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ml_metadata import MetadataStore
from ml_metadata.proto import metadata_store_pb2 as pb

OBJECTIVES = ("exposure", "click", "conversion")
PIPELINE = "csmf.ml"  # a name with a dot, as users may give it

Keys = Mapping[str, str]  # input's key -> "<node>/<output's key>"

# Node -> what it reads; the order is that of the execution.
READS: dict[str, Keys] = {
    "ImportSchemaGen.catalogue": {},
    "ImportSchemaGen.timelines": {},
    "InteractionGen": {},
    "StatisticsGen": {"examples": "InteractionGen/examples"},
    "Transform": {
        "examples": "InteractionGen/examples",
        "schema": "ImportSchemaGen.timelines/schema",
    },
    "CascadedTrainer.exposure": {
        "transform_graph": "Transform/transform_graph",
        "transformed_examples": "Transform/transformed_examples",
    },
    "ExampleValidator.catalogue": {
        "statistics": "StatisticsGen/statistics",
        "schema": "ImportSchemaGen.catalogue/schema",
    },
    "ExampleValidator.timelines": {
        "statistics": "StatisticsGen/statistics",
        "schema": "ImportSchemaGen.timelines/schema",
    },
    "CascadedTrainer.click": {
        "transform_graph": "Transform/transform_graph",
        "transformed_examples": "Transform/transformed_examples",
        "previous": "CascadedTrainer.exposure/stage",
    },
    "CascadedTrainer.conversion": {
        "transform_graph": "Transform/transform_graph",
        "transformed_examples": "Transform/transformed_examples",
        "previous": "CascadedTrainer.click/stage",
    },
    "IndexBuilder": {
        "stage": "CascadedTrainer.conversion/stage",
        "transform_graph": "Transform/transform_graph",
    },
    "RetrievalEvaluator": {
        "model": "IndexBuilder/model",
        "examples": "InteractionGen/examples",
        "anomalies": "ExampleValidator.timelines/anomalies",
        "catalogue_anomalies": "ExampleValidator.catalogue/anomalies",
    },
    "ServingValidator": {"model": "IndexBuilder/model", "examples": "InteractionGen/examples"},
    "Pusher": {
        "model": "IndexBuilder/model",
        "model_blessing": "RetrievalEvaluator/blessing",
        "infra_blessing": "ServingValidator/blessing",
    },
}
WRITES: dict[str, Keys] = {
    "ImportSchemaGen.catalogue": {"schema": "Schema"},
    "ImportSchemaGen.timelines": {"schema": "Schema"},
    "InteractionGen": {"examples": "Examples", "summary": "IngestionSummary"},
    "StatisticsGen": {"statistics": "ExampleStatistics"},
    "Transform": {"transform_graph": "TransformGraph", "transformed_examples": "Examples"},
    "CascadedTrainer.exposure": {"stage": "CascadeStage"},
    "CascadedTrainer.click": {"stage": "CascadeStage"},
    "CascadedTrainer.conversion": {"stage": "CascadeStage"},
    "ExampleValidator.catalogue": {"anomalies": "ExampleAnomalies"},
    "ExampleValidator.timelines": {"anomalies": "ExampleAnomalies"},
    "IndexBuilder": {"model": "Model"},
    "RetrievalEvaluator": {"blessing": "ModelBlessing", "evaluation": "ModelEvaluation"},
    "ServingValidator": {"blessing": "InfraBlessing"},
    "Pusher": {"pushed_model": "PushedModel"},
}
NODES = tuple(READS)


@dataclass
class Recording:
    """One run to record; the defaults are a run that pushed version 1.

    Attributes:
      run: its id.
      pipeline: its name.
      version: what was pushed; None = refused by a gate.
      model, model_id: served name and id in the manifest.
      files: path -> (table, rows, SHA-256) of the logs.
      schema: file of the schema of timelines.
      config: what the runner notes; None = it noted nothing.
      metrics, popularity: objective -> metric -> value.
      stages: objective -> properties of its CascadeStage.
      checks: of the evaluator.
      cached: nodes taken from the run before.
      last: node after which the run ended.
      last_state: its state.
      notes: further custom properties of the run.
      before_recording: as a run made before artifacts carried what reports say.
    """

    run: str = "run-1"
    pipeline: str = PIPELINE
    version: int | None = 1
    model: str = "recommender"
    model_id: str = "aa01"
    files: dict[str, tuple[str, int, str]] = field(
        default_factory=lambda: {
            "/logs/ratings.csv": ("interactions", 100, "ab" * 32),
            "/logs/items.csv": ("catalogue", 20, "cd" * 32),
        }
    )
    schema: str = "/schemas/timelines-0123456789abcdef.pbtxt"
    seed: int = 7
    config: dict[str, Any] | None = field(
        default_factory=lambda: {"name": PIPELINE, "evaluation": {"minimum_lift": 1.3}}
    )
    csmf_version: str = "0.2.0"
    metrics: dict[str, dict[str, float]] = field(
        default_factory=lambda: {
            "exposure": {"recall@50": 0.5, "queries": 90.0},
            "click": {"recall@50": 0.25, "queries": 40.0},
            "conversion": {"recall@50": 0.125, "queries": 10.0},
        }
    )
    popularity: dict[str, dict[str, float]] = field(
        default_factory=lambda: {
            "exposure": {"recall@50": 0.2},
            "click": {"recall@50": 0.125},
            "conversion": {"recall@50": 0.0625},
        }
    )
    stages: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {
            "exposure": {
                "owned": {"history": 20, "output": 24},
                "settings": {"tau": 0.3, "gamma": 0.1, "rounds": 30},
                "loss": 4.5,
                "upstream_sha256": "e0" * 32,
                "weights": {},
            },
            "click": {
                "owned": {"history": 12, "output": 8},
                "settings": {"tau": 0.3, "gamma": 0.2, "rounds": 20},
                "loss": 5.25,
                "upstream_sha256": "f1" * 32,
                "weights": {},
            },
            "conversion": {
                "owned": {"history": 4, "output": 0},
                "settings": {"tau": 0.5, "gamma": 0.2, "rounds": 20},
                "loss": 5.5,
                "upstream_sha256": "f2" * 32,
                "weights": {"exposure": [1.0, 0.0, 0.0], "conversion": [0.5, 2.0, 1.0]},
            },
        }
    )
    checks: list[dict[str, Any]] = field(
        default_factory=lambda: [
            {"name": "exposure: recall@50", "passed": True, "value": 0.5, "threshold": 0.26},
            {"name": "click: recall@50", "passed": True, "value": 0.25, "threshold": 0.1625},
        ]
    )
    cached: Collection[str] = ()
    last: str = "Pusher"
    last_state: str = "COMPLETE"
    notes: dict[str, Any] = field(default_factory=dict)
    before_recording: bool = False


class Recorder:
    """A store of its own below a directory, or one that is given."""

    def __init__(
        self, root: Path, config: pb.ConnectionConfig | None = None, directories: bool = True
    ) -> None:
        """`directories`: make those that artifacts name."""
        self.root = root
        self.path = root / "metadata.sqlite"
        if config is None:
            config = pb.ConnectionConfig()
            config.sqlite.filename_uri = str(self.path)
            config.sqlite.connection_mode = pb.SqliteMetadataSourceConfig.READWRITE_OPENCREATE
        self.store = MetadataStore(config)
        self._directories = directories
        self._contexts: dict[tuple[str, str], pb.Context] = {}
        self._types: dict[tuple[type, str], int] = {}
        self._outputs: dict[str, pb.Artifact] = {}  # "<node>/<key>" -> the newest

    def record(self, recording: Recording) -> None:
        """Writes a run, as far as it got."""
        run = self.context("pipeline_run", recording.run)
        notes = dict(recording.notes)
        if recording.config is not None:
            notes |= {
                "config": recording.config,
                "config_sha256": f"sha-of-{recording.run}",
                "csmf_version": recording.csmf_version,
            }
        fill(run, notes)
        self.store.put_contexts([run])
        for node in NODES:
            last = node == recording.last
            state = "CACHED" if node in recording.cached else "COMPLETE"
            self._execute(recording, node, recording.last_state if last else state)
            if last:
                return

    def context(self, kind: str, name: str) -> pb.Context:
        """The context of that type and name, made if necessary."""
        if (kind, name) not in self._contexts:
            type_id = self.store.put_context_type(pb.ContextType(name=kind))
            context = pb.Context(type_id=type_id, name=name)
            context.id = self.store.put_contexts([context])[0]
            self._contexts[kind, name] = context
        return self._contexts[kind, name]

    def destination(self, recording: Recording) -> Path:
        """Where the version of a run is served from."""
        return self.root / "serving" / recording.model / str(recording.version)

    def _execute(self, recording: Recording, node: str, state: str) -> None:
        """Records one execution, with outputs unless it did not come to that."""
        execution = pb.Execution(
            type_id=self._type(pb.ExecutionType, node.split(".")[0]),
            last_known_state=pb.Execution.State.Value(state),
        )
        fill(execution, _parameters(recording, node))
        pairs = [
            (self._outputs[source], _event(pb.Event.INPUT, key))
            for key, source in READS[node].items()
        ]
        outputs = []
        if state == "CACHED":
            pairs += [
                (self._outputs[f"{node}/{key}"], _event(pb.Event.OUTPUT, key))
                for key in WRITES[node]
            ]
        elif state == "COMPLETE":
            for key, kind in WRITES[node].items():
                uri = self.root / "artifacts" / node / key / recording.run
                artifact = pb.Artifact(
                    type_id=self._type(pb.ArtifactType, kind),
                    uri=str(uri),
                    state=pb.Artifact.LIVE,
                )
                fill(artifact, self._properties(recording, node, kind))
                outputs.append((key, artifact))
                if self._directories:
                    uri.mkdir(parents=True)
        contexts = [
            self.context("pipeline", recording.pipeline),
            self.context("pipeline_run", recording.run),
            self.context("node", f"{recording.pipeline}.{node}"),
        ]
        pairs += [(artifact, _event(pb.Event.OUTPUT, key)) for key, artifact in outputs]
        _, ids, _ = self.store.put_execution(execution, pairs, contexts)
        for (key, artifact), id_ in zip(outputs, ids[len(ids) - len(outputs) :], strict=True):
            artifact.id = id_
            self._outputs[f"{node}/{key}"] = artifact

    def _properties(self, recording: Recording, node: str, kind: str) -> dict[str, Any]:
        new = not recording.before_recording
        if kind == "IngestionSummary" and new:
            return _ingestion(recording)
        if kind == "CascadeStage":
            return _stage(recording, node.partition(".")[2])
        if kind == "Model":
            return {"model_id": recording.model_id, "n_items": 20}
        if kind == "ModelEvaluation":
            return _evaluation(recording)
        if kind == "ModelBlessing":
            failed = [check["name"] for check in recording.checks if not check["passed"]]
            return {"blessed": int(not failed), "failed": ", ".join(failed)}
        if kind == "InfraBlessing":
            checks = [{"name": "server", "passed": True, "detail": "it starts"}]
            return {"blessed": 1, "failed": ""} | ({"checks": checks} if new else {})
        if kind == "PushedModel":
            return self._push(recording)
        return {}

    def _push(self, recording: Recording) -> dict[str, Any]:
        if recording.version is None:
            return {"pushed": 0, "reason": "model_blessing: click: recall@50"}
        if self._directories:
            self.destination(recording).mkdir(parents=True, exist_ok=True)
        return {
            "pushed": 1,
            "pushed_version": recording.version,
            "pushed_destination": str(self.destination(recording)),
            "model_name": recording.model,
            "model_id": recording.model_id,
        }

    def _type(self, kind: type, name: str) -> int:
        if (kind, name) not in self._types:
            put = {
                pb.ExecutionType: self.store.put_execution_type,
                pb.ArtifactType: self.store.put_artifact_type,
            }[kind]
            self._types[kind, name] = put(kind(name=name))
        return self._types[kind, name]


def this_process(pid: int) -> dict[str, Any]:
    """The note of the runner about its process on this machine."""
    return {"host_pid": {"host": socket.gethostname(), "pid": pid}}


def fill(message: Any, values: Mapping[str, Any]) -> None:
    """Sets custom properties; what is no scalar as JSON."""
    for key, value in values.items():
        target = message.custom_properties[key]
        if isinstance(value, int):
            target.int_value = value
        elif isinstance(value, float):
            target.double_value = value
        elif isinstance(value, str):
            target.string_value = value
        else:
            target.string_value = json.dumps(value, separators=(",", ":"))


def _parameters(recording: Recording, node: str) -> dict[str, Any]:
    component, _, instance = node.partition(".")
    if component == "ImportSchemaGen":
        catalogue = "/schemas/catalogue-fedcba9876543210.pbtxt"
        return {"schema_file": recording.schema if instance == "timelines" else catalogue}
    if component == "InteractionGen":
        prints = {path: sha256 for path, (_, _, sha256) in recording.files.items()}
        return {"fingerprint": prints, "seed": recording.seed, "data": {"interactions": []}}
    if component == "CascadedTrainer":
        settings = recording.stages[instance]["settings"]
        return {
            "settings": {"name": instance} | settings,
            "seed": recording.seed,
            "stage_index": OBJECTIVES.index(instance),
        }
    return {}


def _ingestion(recording: Recording) -> dict[str, Any]:
    files = [
        {"path": path, "table": table, "rows": rows, "sha256": sha256}
        for path, (table, rows, sha256) in recording.files.items()
    ]
    tables: dict[str, dict[str, Any]] = {}
    for file in files:
        table = tables.setdefault(
            str(file["table"]), {"read": 0, "used": 0, "dead_letters": 0, "dropped": {}}
        )
        table["read"] += file["rows"]
        table["used"] += file["rows"]
    if "interactions" in tables:
        tables["interactions"] |= {
            "used": tables["interactions"]["read"] - 5,
            "dead_letters": 2,
            "dropped": {"duplicate": 3},
        }
    return {"files": files, "tables": tables}


def _stage(recording: Recording, objective: str) -> dict[str, Any]:
    stage = recording.stages[objective]
    noted = {key: stage[key] for key in ("owned", "loss", "upstream_sha256")}
    if not recording.before_recording:
        noted |= {"settings": {"name": objective} | stage["settings"], "weights": stage["weights"]}
    return noted | {"objective": objective, "stage": OBJECTIVES.index(objective)}


def _evaluation(recording: Recording) -> dict[str, Any]:
    flat = {
        f"{objective} recall@50": values["recall@50"]
        for objective, values in recording.metrics.items()
        if "recall@50" in values
    }
    if recording.before_recording:
        return flat | {"ann_recall@100": 0.99}
    return flat | {
        "ann_recall@100": 0.99,
        "metrics": recording.metrics,
        "popularity": recording.popularity,
        "checks": recording.checks,
        "queries": 90,
    }


def _event(kind: int, key: str) -> pb.Event:
    event = pb.Event(type=kind)
    event.path.steps.add().key = key
    event.path.steps.add().index = 0
    return event
