"""What the nodes of a run leave behind, as far as the report reads it.

A field that is None was not recorded by the run: it is older than the recording, or only ML
Metadata is left of it.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

Metrics = dict[str, dict[str, float]]  # objective -> metric -> value
Slices = dict[str, Metrics]  # objective -> slice -> metric -> value


class Recorded(BaseModel):
    """Reads what it knows and leaves the rest."""

    model_config = ConfigDict(frozen=True, extra="ignore")


# --- InteractionGen: summary.json -----------------------------------------------------------


class DeadLetterKind(Recorded):
    """One kind of fault and its first case."""

    count: int
    file: str
    line: int
    reason: str
    raw: str


class Table(Recorded):
    """What became of the rows of one table."""

    read: int
    used: int
    dead_letters: int
    dropped: dict[str, int]
    dead_letter_kinds: dict[str, DeadLetterKind] | None = None


class InputFile(Recorded):
    """A file that was read."""

    path: str
    table: str
    rows: int
    sha256: str | None = None


class Ingestion(Recorded):
    """Counts of the ingestion."""

    tables: dict[str, Table]
    files: list[InputFile]
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    split: dict[str, Any] = {}
    events: dict[str, dict[str, int]] | None = None  # split -> objective -> at that level
    objectives: list[str] = []
    closed_rows: int | None = None
    unusable_feature_values: dict[str, int] | None = None


# --- CascadedTrainer: stage.json ------------------------------------------------------------


class Fitted(Recorded):
    """What one phase of training did."""

    losses: list[float]
    recalls: list[float]
    kept_round: int
    steps: int
    seconds: float
    round_seconds: list[float] | None = None  # since the phase began


class Phase(Recorded):
    """Training proper, or recovery after pruning."""

    name: str
    positives: int
    fitted: Fitted


class Pruned(Recorded):
    """What CPP saw and did in one layer."""

    importance: list[float]  # of the slots that the stage owned, ascending
    freed: int


class Stage(Recorded):
    """One stage of the cascade."""

    stage: int
    objective: str
    owned: dict[str, int]  # by layer
    settings: dict[str, Any] = {}
    phases: list[Phase] | None = None
    started: float | None = None  # epoch seconds
    pruned: dict[str, Pruned] | None = None
    layers: dict[str, int] | None = None  # neurons in all
    strengths: tuple[float, float] | None = None  # of the stage's cosine, of the items' rates


# --- RetrievalEvaluator: evaluation.json ----------------------------------------------------


class GateCheck(Recorded):
    """A condition of the evaluator's gate."""

    name: str
    passed: bool
    value: float
    threshold: float


class ParetoPoint(Recorded):
    """What one choice of request weights gives."""

    weights: list[float]
    recall: dict[str, float] = Field(alias="recall@50")


class IndexPoint(Recorded):
    """What one setting of the index gives."""

    kind: str
    leaves_to_search_share: float | None = None
    reorder: int | None = None
    recall: float = Field(alias="recall@100")
    ms_per_query: float
    shipped: bool


class PastItem(Recorded):
    """An item with which the user has had to do, or will."""

    item: str
    title: str
    level: int


class RankedItem(Recorded):
    """An item of a list."""

    item: str
    title: str
    score: float


class Example(Recorded):
    """A held-out moment of one user, and what the model recommends at it."""

    user: str
    history: list[PastItem]
    targets: list[PastItem]
    lists: dict[str, list[RankedItem]]


class Evaluation(Recorded):
    """What the evaluator measured."""

    queries: int
    metrics: Metrics
    popularity: Metrics
    checks: list[GateCheck]
    baseline: Metrics | None = None
    baseline_version: int | None = None
    ann_recall: float | None = Field(None, alias="ann_recall@100")
    slices: Slices | None = None
    popularity_slices: Slices | None = None
    baseline_slices: Slices | None = None
    anomalies: list[str] | None = None
    weights: dict[str, list[float]] | None = None
    distinct: dict[str, int] | None = Field(None, alias="distinct_items_in_top_10")
    pareto: list[ParetoPoint] | None = None
    pareto_queries: int | None = None
    index_curve: list[IndexPoint] | None = None
    examples: list[Example] | None = None


# --- ServingValidator: report.json ----------------------------------------------------------


class InfraCheck(Recorded):
    """A condition of the serving gate."""

    name: str
    passed: bool
    detail: str


class Validation(Recorded):
    """What the trial of the real server showed."""

    checks: list[InfraCheck]
