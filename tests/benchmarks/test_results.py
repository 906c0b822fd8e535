from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import tables
from benchmarks.outcome import Cost, Outcome
from benchmarks.pareto import baselines
from benchmarks.runner import Results, Trial
from schemas.settings import ConfigError
from tests.benchmarks.conftest import OBJECTIVES, config


def outcome(value: float, seconds: float = 2.0, weighting: str = "own head") -> Outcome:
    metrics = {name: {"recall@50": value, "ndcg@50": value / 2} for name in OBJECTIVES}
    return Outcome(weighting, metrics, Cost(1234, 64, seconds), {"blocks": [22, 21, 21]})


@pytest.fixture
def results(tmp_path: Path) -> Results:
    results = Results(tmp_path / "out.json", config())
    results.add(Trial("mmoe", 64, 1), [outcome(0.2), outcome(0.5, weighting="chosen")], 3.0)
    results.add(Trial("mmoe", 64, 2), [outcome(0.4, 4.0)], 3.0)
    results.add(Trial("ease", 64, 1), [Outcome("x", outcome(0.3).metrics, Cost(9, None, 1.0))], 1.0)
    return results


def test_a_record_is_one_method_seed_objective_and_metric(results: Results, tmp_path: Path):
    content = json.loads((tmp_path / "out.json").read_text())
    assert content == results.content
    assert {
        "method": "mmoe",
        "weighting": "own head",
        "dimension": 64,
        "seed": 2,
        "objective": "click",
        "metric": "ndcg@50",
        "value": 0.2,
    } in content["records"]
    assert len(content["records"]) == 4 * 3 * 2
    assert not list(tmp_path.glob("*.tmp"))


def test_trials_in_the_file_are_not_run_again(results: Results, tmp_path: Path):
    again = Results(tmp_path / "out.json", config())
    assert again.has(Trial("mmoe", 64, 2))
    assert not again.has(Trial("mmoe", 128, 2))
    assert not again.has(Trial("mmoe", 64, 3))


def test_results_of_another_configuration_are_refused(results: Results, tmp_path: Path):
    with pytest.raises(ConfigError, match="holds results of another configuration"):
        Results(tmp_path / "out.json", config().model_copy(update={"seed": 99}))


def test_a_row_holds_mean_and_deviation(results: Results):
    header, rows = tables.rows(results.content, OBJECTIVES)
    by_method = {(row[0], row[1]): dict(zip(header, row, strict=True)) for row in rows}
    own = by_method["mmoe", "own head"]
    assert own["click recall@50"] == "0.3000 ± 0.1414"  # sample deviation of .2 and .4
    assert own["seconds"] == "3.0 ± 1.4"
    assert own["seeds"] == "2"
    assert by_method["mmoe", "chosen"]["click recall@50"] == "0.5000"
    assert by_method["ease", "x"]["index"] == "none"
    text = tables.markdown(header, rows)
    assert text.splitlines()[0].startswith("| method | weighting | D | exposure recall@50 |")
    assert len(text.splitlines()) == 2 + len(rows)


def test_baselines_of_the_plot_are_means_over_seeds(results: Results, tmp_path: Path):
    points = {p.label: p for p in baselines(tmp_path / "out.json", list(OBJECTIVES), 64)}
    assert points["mmoe (own head)"].first == pytest.approx(0.3)
    assert points["ease (x)"].second == pytest.approx(0.3)
    assert baselines(tmp_path / "out.json", list(OBJECTIVES), 128) == []
