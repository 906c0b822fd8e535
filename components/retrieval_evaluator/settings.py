"""Settings of the evaluation and of its gate."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from schemas.settings import Settings

METRICS = ("recall@10", "recall@50", "recall@100", "ndcg@50")
LONGEST_LIST = 100


class EvaluationSettings(Settings):
    """What is measured, and what a model must reach to be blessed."""

    weights: dict[str, tuple[float, ...]] = {}
    """Objective -> the request weights it is measured at; default: those that the model chose."""

    max_queries: Annotated[int, Field(gt=0)] = 20_000
    """A seeded sample of the held-out moments, where there are more."""

    floors: dict[str, dict[str, float]] = {}
    """Objective -> metric -> smallest value that passes."""

    minimum_lift: Annotated[float, Field(ge=0.0)] = 1.0
    """Recall@50 must be at least this many times that of popularity, for every objective."""

    max_drop: Annotated[float, Field(ge=0.0, le=1.0)] = 0.05
    """How much of its Recall@50 an objective may lose against the served model."""

    ann_recall: Annotated[float, Field(ge=0.0, le=1.0)] = 0.95
    """Share of the exact top 100 that the ScaNN index must find."""

    ann_queries: Annotated[int, Field(gt=0)] = 1_000
    """Queries that the index is compared with brute force on, for every weighting."""
