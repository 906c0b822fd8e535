from __future__ import annotations

import math
from typing import Any

import pytest

from components.retrieval_evaluator.gate import Metrics, checks
from components.retrieval_evaluator.settings import EvaluationSettings

# Exactly on every threshold: lift 1.25, drop 0.2, floor 0.5, ANN recall 0.95.
SETTINGS = EvaluationSettings(
    minimum_lift=1.25, max_drop=0.2, ann_recall=0.95, floors={"click": {"ndcg@50": 0.5}}
)
METRICS: Metrics = {
    "exposure": {"recall@50": 0.5, "ndcg@50": 0.25},
    "click": {"recall@50": 0.4, "ndcg@50": 0.5},
}
POPULARITY: Metrics = {"exposure": {"recall@50": 0.4}, "click": {"recall@50": 0.32}}
BASELINE: Metrics = {"exposure": {"recall@50": 0.625}, "click": {"recall@50": 0.5}}

LESS, MORE = 1 - 1e-9, 1 + 1e-9


def failed(**changes: Any) -> set[str]:
    """Names of the checks that fail when something differs from the values above."""
    given = {
        "settings": SETTINGS,
        "metrics": METRICS,
        "popularity": POPULARITY,
        "baseline": BASELINE,
        "ann_recall": 0.95,
        "n_anomalies": 0,
    } | changes
    return {check.name for check in checks(**given) if not check.passed}


def scaled(metrics: Metrics, objective: str, metric: str, factor: float) -> Metrics:
    values = metrics[objective]
    return metrics | {objective: values | {metric: values[metric] * factor}}


def test_each_condition_is_one_check() -> None:
    found = checks(SETTINGS, METRICS, POPULARITY, BASELINE, 0.95, 0)
    assert [(check.name, check.value, pytest.approx(check.threshold)) for check in found] == [
        ("data: anomalies", 0, 0),
        ("exposure: recall@50 against 1.25 x popularity", 0.5, 0.5),
        ("exposure: recall@50 against the blessed model", 0.5, 0.5),
        ("click: ndcg@50", 0.5, 0.5),
        ("click: recall@50 against 1.25 x popularity", 0.4, 0.4),
        ("click: recall@50 against the blessed model", 0.4, 0.4),
        ("index: recall@100 against brute force", 0.95, 0.95),
    ]


def test_values_on_the_thresholds_pass() -> None:
    assert failed() == set()


def test_any_anomaly_fails() -> None:
    assert failed(n_anomalies=1) == {"data: anomalies"}


@pytest.mark.parametrize("objective", ["exposure", "click"])
def test_lift_over_popularity(objective: str) -> None:
    name = f"{objective}: recall@50 against 1.25 x popularity"
    assert failed(popularity=scaled(POPULARITY, objective, "recall@50", MORE)) == {name}
    assert failed(popularity=scaled(POPULARITY, objective, "recall@50", LESS)) == set()


@pytest.mark.parametrize("objective", ["exposure", "click"])
def test_drop_against_the_blessed_model(objective: str) -> None:
    name = f"{objective}: recall@50 against the blessed model"
    assert failed(baseline=scaled(BASELINE, objective, "recall@50", MORE)) == {name}
    assert failed(baseline=scaled(BASELINE, objective, "recall@50", LESS)) == set()
    # Half as good, and the other objective twice as good: each is judged by itself.
    metrics = scaled(METRICS, objective, "recall@50", 0.75)
    other = "click" if objective == "exposure" else "exposure"
    metrics = scaled(metrics, other, "recall@50", 2.0)
    assert failed(metrics=metrics) == {name, f"{objective}: recall@50 against 1.25 x popularity"}


def test_no_blessed_model_no_comparison() -> None:
    low = scaled(METRICS, "click", "recall@50", 1.0)
    assert failed(metrics=low, baseline=None) == set()
    names = {check.name for check in checks(SETTINGS, METRICS, POPULARITY, None, 0.95, 0)}
    assert not any("blessed" in name for name in names)


def test_objective_that_the_blessed_model_lacks_is_not_compared() -> None:
    assert failed(baseline={"exposure": {"recall@50": 0.625}}) == set()
    assert failed(baseline={"other": {"recall@50": 0.9}}) == set()


def test_floor_holds_for_its_objective_and_metric_only() -> None:
    assert failed(metrics=scaled(METRICS, "click", "ndcg@50", LESS)) == {"click: ndcg@50"}
    assert failed(metrics=scaled(METRICS, "exposure", "ndcg@50", 0.0)) == set()


def test_ann_recall() -> None:
    assert failed(ann_recall=0.95 * LESS) == {"index: recall@100 against brute force"}
    assert failed(ann_recall=1.0) == set()


def test_no_drop_allowed_and_any_drop_allowed() -> None:
    strict = SETTINGS.model_copy(update={"max_drop": 0.0})
    assert failed(settings=strict, baseline=METRICS) == set()
    better = scaled(METRICS, "click", "recall@50", MORE)
    assert failed(settings=strict, baseline=better) == {
        "click: recall@50 against the blessed model"
    }
    lax = SETTINGS.model_copy(update={"max_drop": 1.0})
    assert failed(settings=lax, baseline=scaled(BASELINE, "click", "recall@50", 1000.0)) == set()


def test_what_is_no_number_passes_nothing() -> None:
    assert failed(ann_recall=math.nan) == {"index: recall@100 against brute force"}
    assert failed(metrics=scaled(METRICS, "click", "recall@50", math.nan)) == {
        "click: recall@50 against 1.25 x popularity",
        "click: recall@50 against the blessed model",
    }


def test_several_failures_are_all_told() -> None:
    low = scaled(METRICS, "click", "ndcg@50", 0.0)
    assert len(failed(n_anomalies=3, ann_recall=0.0, metrics=low)) == 3
