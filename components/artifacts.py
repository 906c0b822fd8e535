"""Artifact types of the components, known to ML Metadata by their TYPE_NAME."""

from __future__ import annotations

import json
from typing import Any

from tfx.types.artifact import Artifact, Property, PropertyType


class DeadLetters(Artifact):
    """Rows that could not be used: JSON lines with file, line, table, reason and raw text."""

    TYPE_NAME = "DeadLetters"


class IngestionSummary(Artifact):
    """`summary.json`: what was read, used, dropped and refused, and how the log was split."""

    TYPE_NAME = "IngestionSummary"


class CascadeStage(Artifact):
    """The two-tower network after one stage: weights, owners of its neurons, `stage.json`."""

    TYPE_NAME = "CascadeStage"
    PROPERTIES = {
        "stage": Property(type=PropertyType.INT),
        "objective": Property(type=PropertyType.STRING),
    }


def compact_json(value: Any) -> str:
    """JSON without spaces, for a property of an artifact."""
    return json.dumps(value, separators=(",", ":"))
