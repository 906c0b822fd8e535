"""Lineage as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from typing import Any

from pipeline.lineage.graph import ExecutionNode
from pipeline.lineage.query import Lineage


def version_json(lineage: Lineage) -> str:
    """The facts, and under `graph` what they are of."""
    graph = lineage.graph
    nodes = {
        "root": graph.root,
        "artifacts": [asdict(artifact) for artifact in graph.artifacts.values()],
        "executions": [_execution(execution) for execution in graph.executions.values()],
    }
    return to_json(asdict(lineage.facts) | {"graph": nodes})


def to_json(value: Any) -> str:
    """Indented; moments as in ISO 8601."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=_moment)


def _execution(execution: ExecutionNode) -> dict[str, Any]:
    fields = asdict(execution)
    del fields["notes"]  # of the run, the same for most; the facts have what matters
    return fields


def _moment(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"no JSON for {type(value).__name__}")
