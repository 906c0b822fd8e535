"""The push gate: named checks with what was measured and what was asked for. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from components.retrieval_evaluator.settings import EvaluationSettings

Metrics = dict[str, dict[str, float]]  # objective -> metric -> value

_GATED_METRIC = "recall@50"


@dataclass(frozen=True)
class Check:
    """One condition of the gate."""

    name: str
    passed: bool
    value: float
    threshold: float


def checks(
    settings: EvaluationSettings,
    metrics: Metrics,
    popularity: Metrics,
    baseline: Metrics | None,
    ann_recall: float,
    n_anomalies: int,
) -> list[Check]:
    """All conditions, passed or not; the model is blessed iff all passed.

    Args:
      settings: thresholds.
      metrics: of the candidate.
      popularity: of the popularity baseline on the same queries.
      baseline: of the served model on the same queries; None when there is none.
      ann_recall: share of the exact top 100 that the index finds.
      n_anomalies: found by the ExampleValidators.
    """
    return list(_checks(settings, metrics, popularity, baseline, ann_recall, n_anomalies))


def _checks(
    settings: EvaluationSettings,
    metrics: Metrics,
    popularity: Metrics,
    baseline: Metrics | None,
    ann_recall: float,
    n_anomalies: int,
) -> Iterator[Check]:
    yield Check("data: anomalies", n_anomalies == 0, n_anomalies, 0)
    for objective, values in metrics.items():
        for metric, floor in settings.floors.get(objective, {}).items():
            yield _at_least(f"{objective}: {metric}", values[metric], floor)
        value = values[_GATED_METRIC]
        yield _at_least(
            f"{objective}: {_GATED_METRIC} against {settings.minimum_lift:g} x popularity",
            value,
            settings.minimum_lift * popularity[objective][_GATED_METRIC],
        )
        if baseline is not None and objective in baseline:
            yield _at_least(
                f"{objective}: {_GATED_METRIC} against the blessed model",
                value,
                (1.0 - settings.max_drop) * baseline[objective][_GATED_METRIC],
            )
    yield _at_least("index: recall@100 against brute force", ann_recall, settings.ann_recall)


def _at_least(name: str, value: float, threshold: float) -> Check:
    return Check(name, value >= threshold, value, threshold)
