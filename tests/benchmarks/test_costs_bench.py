"""Unit costs: their arithmetic, probes that must scale, and `csmf bench costs` as users run it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from benchmarks.costs.events import unit_costs
from benchmarks.costs.figures import Setting, Traced, per_unit, traced
from benchmarks.costs.index import slope
from benchmarks.costs.log import EVENTS, HELD_OUT, Log
from benchmarks.costs.measure import PARTS
from benchmarks.costs.run import costs, shown, summarise
from models.queries import build_queries
from schemas import names


def test_what_is_there_at_any_size_is_no_unit_cost() -> None:
    # 1,000 bytes whatever the units, and 20 for each.
    assert per_unit((100, 3000), (300, 7000)) == 20


def test_bytes_of_events_and_moments_and_microseconds_of_users() -> None:
    small, large = Log(100, seed=1), Log(300, seed=1)  # 1,000 and 3,000 events
    found = unit_costs(
        small,
        large,
        {"read_timelines": 0.006, "build_queries": 0.03},
        {
            "read_timelines": [Traced(30_000, 150_000), Traced(70_000, 470_000)],
            "build_queries": [Traced(100_000, 120_000), Traced(300_000, 400_000)],
        },
    )
    assert [(f.what, f.unit, pytest.approx(f.value)) for f in found] == [
        ("read_timelines, peak", "bytes per event", 160),
        ("read_timelines, kept", "bytes per event", 20),
        ("read_timelines", "CPU us per user", 20),
        ("build_queries, peak", "bytes per moment", 700),  # 280,000 for 400 moments
        ("build_queries, kept", "bytes per moment", 500),
        ("build_queries", "CPU us per moment", 50),
    ]


def test_a_point_costs_what_one_more_adds() -> None:
    assert slope({10: 25.0, 20: 45.0, 40: 85.0}) == pytest.approx(2.0)


def test_sizes_follow_the_scale_down_to_what_every_probe_needs() -> None:
    assert Setting(0.5, 1, Path()).size(20_000) == 10_000
    assert Setting(0.001, 1, Path()).size(20_000) == 512


def test_traced_memory_is_what_the_call_allocated() -> None:
    import tracemalloc

    def allocate() -> np.ndarray:
        return np.zeros(2_000_000, np.int8)[::2].copy()  # two MB, of which one is kept

    tracemalloc.start()
    try:
        result, found = traced(allocate)
    finally:
        tracemalloc.stop()
    assert len(result) == 1_000_000
    assert found.kept == pytest.approx(1e6, rel=0.01)
    assert found.peak == pytest.approx(3e6, rel=0.01)


def test_the_log_has_the_moments_that_are_claimed() -> None:
    log = Log(40, seed=2)
    queries = build_queries(log.held_out(), {})
    assert len(queries) == log.users * HELD_OUT
    assert {len(query.history) for query in queries} == {EVENTS - 2, EVENTS - 1}
    assert all(len(query.user_id) == len(query.targets[0]) == 9 for query in queries)
    timelines = log.timelines()
    assert len(timelines.items) == log.events == 400
    assert log.n_items == 20
    assert timelines.items.max() < 20
    example = tf.train.Example.FromString(log.transformed()[7])
    times = list(example.features.feature[names.TIMESTAMPS].int64_list.value)
    assert times == sorted(set(times))
    assert log.transformed() == Log(40, seed=2).transformed()
    assert log.transformed() != Log(40, seed=3).transformed()


def measured(value: float) -> dict[str, Any]:
    figures = [
        {"row": "P3", "what": "b", "unit": "CPU us per user", "value": 10 * value},
        {"row": "P1", "what": "a", "unit": "bytes per event", "value": 1000 * value},
    ]
    return {"figures": figures}


def test_the_table_shows_medians_and_spreads_in_the_order_of_the_document() -> None:
    summary = summarise([measured(3.0), measured(1.0), measured(1.5)])
    assert summary == [
        {
            "row": "P1",
            "what": "a",
            "unit": "bytes per event",
            "median": 1500.0,
            "least": 1000.0,
            "most": 3000.0,
            "runs": 3,
        },
        {
            "row": "P3",
            "what": "b",
            "unit": "CPU us per user",
            "median": 15.0,
            "least": 10.0,
            "most": 30.0,
            "runs": 3,
        },
    ]
    table = costs({"summary": summary, "scale": 0.5})
    assert "0.5 of the documented sizes" in str(table.title)
    cells = [list(column.cells) for column in table.columns]
    assert cells[2:4] == [["1,500", "15"], ["1,000 to 3,000", "10 to 30"]]


def test_figures_have_three_digits() -> None:
    assert [shown(value) for value in (2.5678, 0.01234, 447.2, 12345.6)] == [
        "2.57",
        "0.0123",
        "447",
        "12,346",
    ]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "bench", "costs", *arguments],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=900,
    )


def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    done = command("--parts", "adam,eve", "--json", str(tmp_path / "out.json"))
    assert done.returncode == 2
    assert "eve: choose from adam, ranking" in done.stderr
    assert not (tmp_path / "out.json").exists()


@pytest.mark.slow
def test_the_command_measures_every_part(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    done = command("--scale", "0.02", "--repeats", "1", "--json", str(path))
    assert done.returncode == 0, done.stderr
    for cell in ("0.02 of the documented sizes", "build_profiles, peak", "CountValues"):
        assert cell in done.stdout
    content = json.loads(path.read_text())
    assert content["data"].startswith("synthetic")
    assert [found["part"] for found in content["measurements"]] == [
        part for part, probes in PARTS.items() for _ in probes
    ]
    summary = {cost["what"]: cost["median"] for cost in content["summary"]}
    assert {cost["row"] for cost in content["summary"]} == {f"P{n}" for n in range(1, 7)}
    # Nothing is for nothing, but for the slope over so few points.
    assert all(value > 0 for what, value in summary.items() if "point of a leaf" not in what)
    # A float32 vector of 64; a code for every dimension; an int32.
    assert (summary[".. vector"], summary[".. codes"], summary[".. leaf"]) == (256, 64, 4)
    # 4 x 4 bytes and a time of 8 for every event that Timelines keeps; 20 of it are flat arrays.
    assert summary["read_timelines, peak"] > summary["read_timelines, kept"] > 15


@pytest.mark.slow
def test_an_id_costs_about_the_same_at_two_sizes(tmp_path: Path) -> None:
    found = []
    for scale in ("0.05", "0.2"):
        path = tmp_path / f"{scale}.json"
        done = command("--parts", "ids", "--scale", scale, "--repeats", "1", "--json", str(path))
        assert done.returncode == 0, done.stderr
        found.append([cost["median"] for cost in json.loads(path.read_text())["summary"]])
    for small, large in zip(*found, strict=True):
        assert 9 < large < 200  # an id has 9 bytes
        assert 1 / 3 < small / large < 3
