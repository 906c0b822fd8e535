"""The synthetic log, and `csmf bench ingestion` as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from benchmarks.ingestion import log as module
from benchmarks.ingestion.catalogue import SyntheticCatalogue
from benchmarks.ingestion.log import EVENTS, SyntheticLog


def test_the_same_seed_gives_the_same_rows_in_all_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK_ROWS", 3000)
    SyntheticLog(10_000).write(tmp_path / "a", csv_head_rows=4000)
    SyntheticLog(10_000).write(tmp_path / "b", csv_head_rows=4000)
    for file in ("log.parquet", "log.csv", "head/log.csv"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    parquet = pq.read_table(tmp_path / "a" / "log.parquet")
    assert len(parquet) == 10_000
    csv = pyarrow.csv.read_csv(tmp_path / "a" / "log.csv")
    assert csv.to_pydict() == parquet.to_pydict()
    head = pyarrow.csv.read_csv(tmp_path / "a" / "head" / "log.csv")
    assert head.to_pydict() == parquet.slice(0, 4000).to_pydict()
    other = next(SyntheticLog(3000, seed=2).chunks())
    assert other.to_pydict() != next(SyntheticLog(3000).chunks()).to_pydict()


def test_a_catalogue_is_the_same_in_both_files_and_every_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        SyntheticCatalogue(5000).write(tmp_path / name)
    for file in ("items.parquet", "items.csv"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    parquet = pq.read_table(tmp_path / "a" / "items.parquet")
    assert pyarrow.csv.read_csv(tmp_path / "a" / "items.csv").to_pydict() == parquet.to_pydict()
    assert len(parquet.column("item").unique()) == 5000
    assert (
        0.4 < np.mean([len(g.split("|")) > 1 for g in parquet.column("genres").to_pylist()]) < 0.6
    )


def test_the_log_has_the_shape_that_is_claimed() -> None:
    (table,) = SyntheticLog(200_000).chunks()
    counts = {name: table.column("event").to_pylist().count(name) for name in EVENTS}
    assert 0.1 < counts["cart"] / counts["view"] < 0.2
    assert 0.2 < counts["purchase"] / counts["cart"] < 0.4
    for column in ("user", "item"):
        numbers = np.sort(np.unique(table.column(column).to_numpy(), return_counts=True)[1])[::-1]
        assert numbers[: len(numbers) // 10].sum() > 0.25 * len(table)
    assert (np.diff(table.column("time").to_numpy()) >= 0).all()


@pytest.mark.slow
def test_the_command_measures_prints_and_saves(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pipeline.cli", "bench", "ingestion"),
            *("--rows", "30000", "--example-gen-rows", "2000", "--repeats", "1"),
            *("--workdir", str(tmp_path / "work"), "--json", str(tmp_path / "out.json")),
        ],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    for cell in ("InteractionGen, log.csv", "first 2,000 rows only", "synthetic"):
        assert cell in done.stdout
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["data"].startswith("synthetic")
    assert len(content["measurements"]) == 7
    for measured in content["measurements"]:
        rows = {"head/log.csv": 2000, "items.csv": 15_000, "items.parquet": 15_000}
        assert measured["rows"] == rows.get(measured["file"], 30_000)
        assert (measured["bytes_written"] > 0) == (measured["reader"] != "pyarrow")
        assert measured["peak_bytes"] > 0
    assert not list((tmp_path / "work").iterdir())
