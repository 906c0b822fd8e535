"""Everything the report says, before it is laid out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from pipeline.report.recorded import Evaluation, Ingestion, Stage, Validation

T = TypeVar("T")


@dataclass(frozen=True)
class Known(Generic[T]):
    """A part that is there.

    Attributes:
      value: the part.
      note: what to know about where it comes from; "" if nothing.
    """

    value: T
    note: str = ""


@dataclass(frozen=True)
class Missing:
    """A part that is not there, and why."""

    reason: str


Part = Known[T] | Missing


@dataclass(frozen=True)
class NodeFacts:
    """One node of the run.

    Attributes:
      name: its id.
      state: see `pipeline.metadata.runs.NodeRun`.
      start: seconds since the run began.
      seconds: it took; of a running one, until now.
      peak_bytes: None if not recorded.
      error: "" if none is known.
      log: end of its log, of nodes that did not end well; why there is none otherwise.
    """

    name: str
    state: str
    start: float
    seconds: float
    peak_bytes: int | None
    error: str
    log: Part[str] | None = None

    @property
    def ended_badly(self) -> bool:
        """It has no outputs and will have none."""
        return self.log is not None


@dataclass(frozen=True)
class RunFacts:
    """The run as a whole."""

    id: str
    pipeline: str
    state: str
    started: datetime
    seconds: float
    error: str
    version: str | None
    config: Mapping[str, Any]
    config_sha256: str | None
    objectives: tuple[str, ...]  # first of the funnel first


@dataclass(frozen=True)
class Verdict:
    """What a gate decided."""

    blessed: bool
    failed: str  # names of the failed checks


@dataclass(frozen=True)
class Pushed:
    """What the Pusher did."""

    version: int | None  # None: nothing was pushed
    destination: str | None
    model_id: str | None
    reason: str | None


@dataclass(frozen=True)
class Activity:
    """How many events users have, in one split.

    Attributes:
      split: name.
      users: timelines.
      events: in all.
      steps: (events, share of the users that have at most so many), ascending.
    """

    split: str
    users: int
    events: int
    steps: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Popularity:
    """How the events of one split fall on the items.

    Attributes:
      split: name.
      items: with an event.
      events: in all.
      counts: events of the most popular items, descending; not of all items.
      top: (item id, events) of the first ones.
    """

    split: str
    items: int
    events: int
    counts: tuple[float, ...]
    top: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class FeatureDrift:
    """How far a feature's distribution is from that of the previous span."""

    split: str
    feature: str
    measure: str
    value: float


@dataclass(frozen=True)
class Drift:
    """All features against the run that had the previous span."""

    previous_run: str
    features: tuple[FeatureDrift, ...]


@dataclass(frozen=True)
class Distributions:
    """Users' activity and items' popularity, by split."""

    activity: tuple[Activity, ...]
    popularity: tuple[Popularity, ...]


@dataclass(frozen=True)
class ReportData:
    """What is known of a run; a part that is not says why."""

    run: RunFacts
    nodes: tuple[NodeFacts, ...]
    ingestion: Part[Ingestion]
    anomalies: Part[tuple[str, ...]]
    distributions: Part[Distributions]
    drift: Part[Drift]
    stages: Mapping[str, Part[Stage]]  # by objective
    evaluation: Part[Evaluation]
    validation: Part[Validation]
    model_verdict: Part[Verdict]
    infra_verdict: Part[Verdict]
    pushed: Part[Pushed]
