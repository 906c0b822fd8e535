"""`csmf bench` as a user runs it, on a synthetic log, with the pipeline's real data nodes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.benchmarks.conftest import FAST, MODEL, OBJECTIVES, tastes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a log and its configuration."""
    directory = tmp_path_factory.mktemp("bench")
    log = tastes(seed=5)
    lines = ["user,item,time,clicked,bought"]
    for user, item, level, time in zip(
        log.timeline_of, log.items, log.levels, log.times, strict=True
    ):
        lines.append(f"u{user},i{item},{1_700_000_000 + time},{int(level > 0)},{int(level > 1)}")
    (directory / "log.csv").write_text("\n".join(lines) + "\n")
    config = {
        "name": "tastes",
        "objectives": [{"name": name, **FAST} for name in OBJECTIVES],
        "model": MODEL,
        "data": {
            "interactions": [
                {
                    "path": "log.csv",
                    "columns": {"user_id": "user", "item_id": "item", "timestamp": "time"},
                    "timestamp_unit": "s",
                    "levels": {
                        "click": {"column": "clicked", "at_least": 1},
                        "conversion": {"column": "bought", "at_least": 1},
                    },
                }
            ],
            "split": {"kind": "time", "eval_share": 0.25},
        },
    }
    (directory / "tastes.yaml").write_text(yaml.safe_dump(config))
    return directory


def bench(
    shop: Path, *arguments: str, config: str = "tastes.yaml"
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.cli", "bench", *arguments]
    command += ["--config", config, "--workdir", "work"]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        command, cwd=shop, env=environment, capture_output=True, text=True, timeout=600
    )


def test_quality_trains_prints_and_goes_on_where_it_stopped(shop: Path):
    methods = ("--methods", "popularity,csmf", "--seeds", "1", "--workers", "2")
    first = bench(shop, "quality", *methods, "--json", "out.json", "--markdown", "out.md")
    assert first.returncode == 0, first.stderr
    assert "2 trainings, 0 of them done before" in first.stdout
    for cell in ("csmf: weights chosen", "popularity: settings", "recall@50"):
        assert cell in first.stdout
    content = json.loads((shop / "out.json").read_text())
    recalls = {
        (record["method"], record["weighting"]): record["value"]
        for record in content["records"]
        if record["metric"] == "recall@50" and record["objective"] == "exposure"
    }
    assert recalls["csmf", "first head alone"] > 1.3 * next(
        value for (method, _), value in recalls.items() if method == "popularity"
    )
    assert (shop / "out.md").read_text().startswith("| method |")

    before = (shop / "out.json").read_bytes()
    again = bench(shop, "quality", *methods, "--json", "out.json")
    assert again.returncode == 0, again.stderr
    assert "2 trainings, 2 of them done before" in again.stdout
    assert (shop / "out.json").read_bytes() == before

    drawn = bench(
        shop, "pareto", "--baselines", "out.json", "--json", "pareto.json", "--plot", "pareto.svg"
    )
    assert drawn.returncode == 0, drawn.stderr
    points = json.loads((shop / "pareto.json").read_text())
    assert [1.0, 0.0, 0.0] in [point["weights"] for point in points]
    assert "<svg" in (shop / "pareto.svg").read_text()


def test_a_training_that_fails_keeps_no_other_from_running(shop: Path):
    config = yaml.safe_load((shop / "tastes.yaml").read_text())
    towers = {**MODEL["towers"], "minimum_block": 8}
    config["model"] = {**MODEL, "towers": towers}
    (shop / "crowded.yaml").write_text(yaml.safe_dump(config))
    run = bench(
        shop,
        *("quality", "--methods", "csmf,popularity", "--seeds", "1", "--json", "crowded.json"),
        config="crowded.yaml",
    )
    assert run.returncode == 1
    assert "1 of 2 trainings failed, all others are in the results" in run.stderr
    assert "csmf, " in run.stderr
    assert "minimum_block" in run.stderr
    assert "popularity: settings" in run.stdout
    content = json.loads((shop / "crowded.json").read_text())
    assert [trial["method"] for trial in content["trials"]] == ["popularity"]


def test_an_unknown_method_is_named_before_anything_runs(shop: Path):
    refused = bench(shop, "quality", "--methods", "poolled", "--json", "x.json")
    assert refused.returncode == 1
    assert "Did you mean 'pooled'" in refused.stderr
    assert not (shop / "x.json").exists()
