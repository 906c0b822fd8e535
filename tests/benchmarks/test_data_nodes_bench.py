"""Figures of `csmf bench data-nodes`, and the command as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.data_nodes.run import NODES, summarise


def measured(rows: int, node: str, seconds: float) -> dict[str, Any]:
    return {"rows": rows, "node": node, "seconds": seconds, "cpu_seconds": seconds / 2}


def test_summary_names_the_largest_node_and_what_every_row_costs() -> None:
    found = [measured(rows, node, 1.0) for rows in (1_000_000, 3_000_000) for node in NODES]
    # Medians of Transform: 6 s, then 16 s; so 5 us for every row, and 1 s whatever the rows.
    found += [measured(1_000_000, "Transform", seconds) for seconds in (6.0, 6.5)]
    found += [measured(3_000_000, "Transform", seconds) for seconds in (16.0, 90.0)]
    summary = summarise(found)
    assert summary["largest"] == {"1000000": "Transform", "3000000": "Transform"}
    assert summary["nodes"]["3000000"]["Transform"] == {"seconds": 16.0, "cpu_seconds": 8.0}
    assert summary["growth"]["Transform"] == pytest.approx(
        {
            "microseconds_per_row_seconds": 5.0,
            "constant_seconds": 1.0,
            "microseconds_per_row_cpu_seconds": 2.5,
            "constant_cpu_seconds": 0.5,
        }
    )
    assert summary["growth"]["StatisticsGen"]["microseconds_per_row_seconds"] == 0


def test_one_size_has_no_growth() -> None:
    assert "growth" not in summarise([measured(1000, node, 1.0) for node in NODES])


@pytest.mark.slow
def test_the_command_measures_every_data_node(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pipeline.cli", "bench", "data-nodes", "--rows", "20000"),
            *("--repeats", "1", "--beam-option", "--direct_num_workers=1"),
            *("--workdir", str(tmp_path / "work"), "--json", str(tmp_path / "out.json")),
        ],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    for cell in ("20,000 synthetic rows", "--direct_num_workers=1", "ExampleValidator.catalogue"):
        assert cell in done.stdout
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["data"].startswith("synthetic")
    assert [found["node"] for found in content["measurements"]] == list(NODES)
    for found in content["measurements"]:
        assert found["rows"] == 20_000
        assert found["cpu_seconds"] > 0
        assert found["peak_bytes"] >= 0.9 * found["bytes_before"] > 0
        assert found["bytes_written"] > 0
    assert not list((tmp_path / "work").iterdir())
