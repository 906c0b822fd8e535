"""What a run did, read from ML Metadata and the artifacts: `summary.json` and the final tables."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_metadata.metadata_store import MetadataStore
from ml_metadata.proto import metadata_store_pb2

from components.interaction_gen import spec as interaction_gen
from components.retrieval_evaluator import spec as retrieval_evaluator
from components.serving_validator import spec as serving_validator
from pipeline.config import PipelineConfig
from pipeline.dag import Workdir
from pipeline.local_runner import latest_run, open_store
from schemas.files import write_atomically
from schemas.versions import versions_in

_OK = (metadata_store_pb2.Execution.COMPLETE, metadata_store_pb2.Execution.CACHED)


@dataclass(frozen=True)
class NodeRun:
    """One node of the latest run."""

    execution: metadata_store_pb2.Execution
    outputs: dict[str, metadata_store_pb2.Artifact]

    @property
    def cached(self) -> bool:
        """Nothing was executed: an earlier execution's outputs were taken."""
        return self.execution.last_known_state == metadata_store_pb2.Execution.CACHED

    @property
    def seconds(self) -> float:
        """From the start of the node to its publication."""
        run = self.execution
        return (run.last_update_time_since_epoch - run.create_time_since_epoch) / 1000.0


def nodes_of_latest_run(store: MetadataStore) -> dict[str, NodeRun]:
    """Node id -> its execution in the latest run, in order; failed executions are left out."""
    run = latest_run(store)
    if run is None:
        return {}
    nodes = {}
    for execution in sorted(store.get_executions_by_context(run.id), key=lambda e: e.id):
        if execution.last_known_state not in _OK:
            continue
        outputs = {}
        for event in store.get_events_by_execution_ids([execution.id]):
            if event.type == metadata_store_pb2.Event.OUTPUT:
                key = next(step.key for step in event.path.steps if step.key)
                (outputs[key],) = store.get_artifacts_by_id([event.artifact_id])
        node_id = execution.name.split(".", 1)[-1]
        for context in store.get_contexts_by_execution(execution.id):
            if context.type == "node":
                node_id = context.name.split(".", 1)[-1]
        nodes[node_id] = NodeRun(execution, outputs)
    return nodes


def summarise(config: PipelineConfig, workdir: Workdir, seconds: float) -> dict[str, Any]:
    """Collects the machine-readable result of the latest run; see the README for its keys.

    Args:
      config: of the run.
      workdir: of the run.
      seconds: wall time of the whole run, imports included.
    """
    nodes = nodes_of_latest_run(open_store(workdir))
    evaluation = _json(
        nodes,
        "RetrievalEvaluator",
        retrieval_evaluator.EVALUATION_KEY,
        retrieval_evaluator.REPORT_FILE,
    )
    validation = _json(
        nodes, "ServingValidator", serving_validator.BLESSING_KEY, serving_validator.REPORT_FILE
    )
    ingestion = _json(
        nodes, "InteractionGen", interaction_gen.SUMMARY_KEY, interaction_gen.SUMMARY_FILE
    )
    failed = [check for check in evaluation.get("checks", []) if not check["passed"]]
    failed += [check for check in validation.get("checks", []) if not check["passed"]]
    pushed = _pushed_version(nodes)
    serving = workdir.serving(config)
    return {
        "pipeline": config.name,
        "blessed": _verdict([part["blessed"] for part in (evaluation, validation) if part]),
        "pushed_version": pushed,
        "newest_version": max(versions_in(serving / config.serving.model_name), default=None)
        if pushed is not None
        else None,
        "serving_dir": str(serving),
        "metrics": evaluation.get("metrics", {}),
        "popularity": evaluation.get("popularity", {}),
        "ann_recall@100": evaluation.get("ann_recall@100"),
        "failed_checks": failed,
        "anomalies": evaluation.get("anomalies", []),
        "rows": ingestion.get("tables", {}).get("interactions", {}),
        "tables": ingestion.get("tables", {}),
        "seconds": {name: round(node.seconds, 1) for name, node in nodes.items()},
        "seconds_total": round(seconds, 1),
        "cached": [name for name, node in nodes.items() if node.cached],
        "executed": [name for name, node in nodes.items() if not node.cached],
        "seed": config.seed,
        "config_sha256": config.sha256(),
    }


def _verdict(verdicts: list[bool]) -> bool | None:
    """Of both gates; None where one has not been asked and the other did not refuse."""
    if not all(verdicts):
        return False
    return True if len(verdicts) == 2 else None


def write_summary(summary: dict[str, Any], path: Path) -> None:
    """Writes `summary.json`, atomically."""
    write_atomically(path, json.dumps(summary, indent=2).encode())


def _json(nodes: dict[str, NodeRun], node: str, output: str, file: str) -> dict[str, Any]:
    if node not in nodes:
        return {}
    path = Path(nodes[node].outputs[output].uri) / file
    return json.loads(path.read_text(encoding="utf-8"))


def _pushed_version(nodes: dict[str, NodeRun]) -> int | None:
    if "Pusher" not in nodes:
        return None
    properties = nodes["Pusher"].outputs["pushed_model"].custom_properties
    return properties["pushed_version"].int_value if "pushed_version" in properties else None
