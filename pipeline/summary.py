"""What a run did, read from ML Metadata and the artifacts: `summary.json` and the final tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.interaction_gen import spec as interaction_gen
from components.retrieval_evaluator import spec as retrieval_evaluator
from components.serving_validator import spec as serving_validator
from pipeline.config import PipelineConfig
from pipeline.dag import Workdir
from pipeline.metadata.runs import NodeRun, read_run
from pipeline.metadata.store import open_store
from schemas.files import write_atomically
from schemas.versions import versions_in


def summarise(config: PipelineConfig, workdir: Workdir, seconds: float) -> dict[str, Any]:
    """Collects the machine-readable result of the latest run; see the README for its keys.

    Args:
      config: of the run.
      workdir: of the run.
      seconds: wall time of the whole run, imports included.
    """
    run = read_run(open_store(workdir.metadata))
    nodes = {name: node for name, node in run.nodes.items() if node.done}
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


def _json(nodes: Mapping[str, NodeRun], node: str, output: str, file: str) -> dict[str, Any]:
    if node not in nodes:
        return {}
    path = Path(nodes[node].outputs[output].uri) / file
    return json.loads(path.read_text(encoding="utf-8"))


def _pushed_version(nodes: Mapping[str, NodeRun]) -> int | None:
    if "Pusher" not in nodes:
        return None
    properties = nodes["Pusher"].outputs["pushed_model"].custom_properties
    return properties["pushed_version"].int_value if "pushed_version" in properties else None
