"""`csmf bench training`: its arithmetic by hand, and as a user runs it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from benchmarks.cli import bench
from benchmarks.training_input import run as module


def _timed(seconds: float) -> dict[str, float]:
    return {"seconds": seconds, "cpu_seconds": 2 * seconds}


def _measured() -> dict[str, Any]:
    alone = {"batches": 10, "rows": 100, "positives": 150, "candidates": 7}
    phase = {"step_seconds": [9.0, 1.0, 1.0], "round_rows": [40, 40, 40], "seconds": 20.0}
    return {
        "objective": "click",
        "load_before": 0.5,
        "load_after": 0.5,
        "alone": [
            alone | {"input": _timed(0.5), "step": _timed(2.0)},
            alone | {"input": _timed(0.5), "step": _timed(3.0)},
        ],
        "node_seconds": 50.0,
        "phases": [
            {"name": "train"} | phase,
            {"name": "recover", "step_seconds": [2.0], "round_rows": [40], "seconds": 4.0},
            {"name": "refit", "step_seconds": [5.0, 1.0], "round_rows": [40, 30], "seconds": 8.0},
        ],
    }


def test_rates_and_ratios_by_hand() -> None:
    found = module.figures(_measured())
    assert found["rows_per_batch"] == 10
    assert found["positives_per_row"] == 1.5
    assert found["input_batches_per_second"] == 20  # 20 batches in 1 second
    assert found["input_cpu_ms"] == 100
    assert found["step_ms"] == 250  # 20 steps in 5 seconds
    assert found["bare_rows_per_second"] == 40
    assert found["input_times_step"] == found["input_times_step_cpu"] == 5
    # Rounds that trace are left out: 150 rows in 5 seconds.
    assert found["node_rows_per_second"] == 30
    assert found["node_positives_per_second"] == 45
    assert found["node_of_bare"] == 0.75
    assert found["node_of_bare_with_tracing"] == 230 / 19 / 40
    assert found["node_of_bare_with_validation"] == 230 / 32 / 40
    assert found["node_of_bare_in_all"] == 230 / 50 / 40


@pytest.mark.parametrize(("faster", "met"), [(1, "NO"), (2, "yes")])
def test_a_target_is_met_when_the_median_of_every_stage_meets_it(faster: int, met: str) -> None:
    first, second, third = _measured(), _measured(), _measured()
    for measured in (second, third):
        for phase in measured["phases"]:
            phase["step_seconds"] = [seconds / faster for seconds in phase["step_seconds"]]
    content: dict[str, Any] = {"repeats": [[first], [second], [third]]}
    content["summary"] = module.summarise(content)
    assert content["summary"]["click"]["input_times_step"] == [5.0] * 3
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(module.targets(content, ""))
    lines = console.export_text().splitlines()
    (line,) = [line for line in lines if "of the bare loop" in line]
    assert met in line
    (line,) = [line for line in lines if "times as fast" in line]
    assert "yes" in line


def test_one_source_of_data_is_wanted() -> None:
    for arguments in ([], ["--config", "movielens-100k", "--synthetic-rows", "20000"]):
        result = CliRunner().invoke(bench, ["training", "--json", "out.json", *arguments])
        assert result.exit_code == 2
        assert "give either --config or --synthetic-rows" in result.output


@pytest.mark.slow
def test_the_training_command_measures_prints_and_saves(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pipeline.cli", "bench", "training"),
            *("--synthetic-rows", "20000", "--repeats", "1", "--rounds", "2", "--batches", "8"),
            *("--workdir", str(tmp_path / "work"), "--json", str(tmp_path / "out.json")),
        ],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    for cell in ("synthetic-log, synthetic", "input alone: times as fast", ">= 0.85"):
        assert cell in done.stdout
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["data"].startswith("synthetic")
    ((exposure, click, conversion),) = content["repeats"]
    for measured in (exposure, click, conversion):
        assert [part["batches"] for part in measured["alone"]] == [8, 8]
        assert measured["node_seconds"] > sum(phase["seconds"] for phase in measured["phases"])
        assert all(len(phase["round_rows"]) <= 2 for phase in measured["phases"])
    assert [len(measured["phases"]) for measured in (exposure, click, conversion)] == [3, 3, 2]
    assert list(content["summary"]) == ["exposure", "click", "conversion"]
    assert not (tmp_path / "work" / "stages").exists()
