"""Custom TFX components, one folder each: spec, executor, component.

The artifact types can be imported from here, too: Kubeflow Pipelines knows a type by
`<top-level module>.<class>`, and the container imports it by that name.
"""

from __future__ import annotations

import importlib
from typing import Any

ARTIFACT_TYPES = ("CascadeStage", "DeadLetters", "IngestionSummary")


def __getattr__(name: str) -> Any:
    # Not imported above: most of what lies in this package needs no TFX.
    if name in ARTIFACT_TYPES:
        return getattr(importlib.import_module("components.artifacts"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
