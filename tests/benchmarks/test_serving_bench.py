"""`csmf bench serving` as a user runs it, shrunk: real servers, real load, no claim of speed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.serving import targets
from benchmarks.serving.frames import read_frames, write_frames
from benchmarks.serving.load import Plan, _Checker, merge
from benchmarks.serving.world import World, nearest, recall
from serving import messages

ROOT = Path(__file__).parents[2]
PARTS = ("index", "latency", "throughput", "peers", "objectives", "swap", "soak")


def test_frames_come_back_as_they_were(tmp_path: Path) -> None:
    frames = [b"", b"a", bytes(70_000), b"\n"]
    write_frames(tmp_path / "frames", frames)
    assert read_frames(tmp_path / "frames") == frames


def test_brute_force_finds_the_largest_products_in_order() -> None:
    rng = np.random.default_rng(0)
    queries, vectors = (rng.normal(size=(n, 8)).astype(np.float32) for n in (5, 300))
    expected = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    assert nearest(queries, vectors, 10).tolist() == expected.tolist()
    assert recall(expected[:, :6], expected) == pytest.approx(0.6)


def test_merging_lists_is_the_weighted_sum_where_every_list_holds_the_item() -> None:
    first, second = (["a", "b", "c"], [3.0, 2.0, 1.0]), (["c", "a", "b"], [9.0, 2.0, 1.0])
    assert merge([first, second], [1.0, 0.5], 3) == ["c", "a", "b"]
    assert merge([first, second], [1.0, 0.0], 2) == ["a", "b"]


def test_an_item_that_a_list_lacks_counts_there_as_its_last_one() -> None:
    # a: 3 + (1), b: 2 + 4, c: (2) + 1
    assert merge([(["a", "b"], [3.0, 2.0]), (["b", "c"], [4.0, 1.0])], [1.0, 1.0], 3) == [
        "b",
        "a",
        "c",
    ]


def answer(version: int, ids: list[bytes], scores: list[float]) -> bytes:
    response = messages.PredictResponse()
    response.model_spec.version.value = version
    response.outputs["item_ids"].string_val.extend(ids)
    response.outputs["scores"].float_val.extend(scores)
    return response.SerializeToString()


@pytest.mark.parametrize(
    ("version", "ids", "scores", "fault"),
    [
        (1, [b"i1", b"i2"], [2.0, 1.0], None),
        (2, [b"other1", b"other2"], [2.0, 1.0], None),
        (2, [b"i1", b"i2"], [2.0, 1.0], "ids of another version than 2"),
        (1, [b"i1", b"other2"], [2.0, 1.0], "ids of another version than 1"),
        (1, [b"i1", b"i1"], [2.0, 1.0], "1 different ids and 2 scores"),
        (1, [b"i1", b"i2"], [1.0, 2.0], "scores are not in order"),
    ],
)
def test_wrong_answers_are_noticed(
    version: int, ids: list[bytes], scores: list[float], fault: str | None
) -> None:
    check = _Checker(Plan("", [], top_k=2, prefixes=["other", "i"]))
    check([answer(version, ids, scores)])
    assert dict(check.wrong) == ({} if fault is None else {fault: 1})
    assert check.checked == 1


def test_a_world_is_named_by_its_parameters() -> None:
    assert World(items=2000).key == World(items=2000).key
    assert World(items=2000).key != World(items=2001).key


# --- the command ----------------------------------------------------------------------------

SECONDS, SWAP_SECONDS, SOAK_SECONDS = 0.5, 6.0, 2.0
FEWEST = ["--items", "1000", "--workers", "1", "--rounds", "1", "--clients", "4"]
FEWEST += ["--seconds", str(SECONDS), "--swap-seconds", str(SWAP_SECONDS)]
FEWEST += ["--soak-seconds", str(SOAK_SECONDS)]


def bench(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "pipeline.cli", "bench", "serving", "--json", "out.json"),
            *("--workdir", "work", "--markdown", "out.md", *arguments),
        ],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The JSON file of a shrunk run of every part; the peers' environment is not there."""
    directory = tmp_path_factory.mktemp("serving")
    done = bench(directory, *FEWEST, "--peers-python", "nowhere/python")
    assert done.returncode == 0, done.stderr[-4000:]
    content: dict[str, Any] = json.loads((directory / "out.json").read_text())
    content["printed"] = done.stdout
    content["markdown"] = (directory / "out.md").read_text()
    return content


@pytest.fixture(scope="module")
def runs(figures: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the load generator measured, by part and what was called."""
    parts = figures["parts"]
    found = {
        f"{part} {name}": parts[part][name]
        for part, names in (
            ("latency", ["grpc", "grpc_of_grpcio"]),
            ("throughput", ["grpc", "grpc_of_grpcio", "echo", "echo_of_grpcio", "rest"]),
            ("objectives", ["fused", "one", "separate"]),
            ("soak", ["peak"]),
        )
        for name in names
    }
    return found | {"swap": parts["swap"], "soak": parts["soak"]}


def only(value: Any) -> float:
    """A figure, or that of the only round."""
    if isinstance(value, dict):
        assert [value["median"], value["min"], value["max"]] == value["all"] * 3
        value = value["median"]
    return float(value)


@pytest.mark.slow
def test_the_file_holds_every_part_and_says_that_the_data_are_synthetic(
    figures: dict[str, Any],
) -> None:
    assert list(figures["parts"]) == list(PARTS)
    assert figures["data"].startswith("synthetic")
    assert figures["world"]["items"] == 1000
    assert figures["machine"]["cores"] >= 1
    assert figures["machine"]["packages"]["tensorflow"]
    assert list(figures["machine"]["load_before"]) == list(PARTS)
    assert (
        "nowhere/python is not there; make it by: make peers"
        in (figures["parts"]["peers"]["missing"])
    )
    measured = [part for part in PARTS if part != "peers"]
    assert [(line["part"], line["what"]) for line in figures["targets"]] == [
        (target.part, target.what) for target in targets.TARGETS if target.part in measured
    ]
    for line in figures["targets"]:
        assert line["what"][:40] in figures["printed"]
        met = "yes" if line["met"] else "**no**"
        row = f"| {line['what']} | {line['asked']} | {line['shown']} | {met} |"
        assert row in figures["markdown"]
    soak = figures["parts"]["soak"]
    row = f"| soak at 80 % of it | {soak['rate']:,.0f} | {soak['p50_ms']:.2f} | "
    row += f"{soak['p99_ms']:.2f} | 0 of {soak['units']:,} |"
    assert row in figures["markdown"]


@pytest.mark.slow
def test_counts_add_up_quantiles_are_ordered_and_no_call_failed(
    figures: dict[str, Any], runs: dict[str, dict[str, Any]]
) -> None:
    swap = figures["parts"]["swap"]
    assert SWAP_SECONDS < swap["seconds"] < swap["plan"]["seconds"], "told to end"
    seconds = {"swap": swap["seconds"], "soak": SOAK_SECONDS, "soak peak": SOAK_SECONDS / 2}
    for name, run in runs.items():
        assert (run["failed"], len(run["failures"])) == (0, 0), name
        assert run["units"] > 0, name
        assert run["units"] == pytest.approx(only(run["rate"]) * seconds.get(name, SECONDS)), name
        assert run["checked"] > 0, name
        quantiles = [only(run[f"{key}_ms"]) for key in ("p50", "p90", "p99", "max")]
        assert quantiles == sorted(quantiles), name
        assert 0 < only(run["mean_ms"]) <= quantiles[-1], name
    soak = runs["soak"]
    counted = sum(window["rate"] for window in soak["windows"]) * soak["plan"]["window_seconds"]
    assert counted == pytest.approx(soak["units"])
    assert sum(soak["versions"].values()) == soak["checked"]


@pytest.mark.slow
def test_ratios_follow_from_the_figures_beside_them(
    figures: dict[str, Any], runs: dict[str, dict[str, Any]]
) -> None:
    parts = figures["parts"]
    rate = {name: only(run["rate"]) for name, run in runs.items()}
    latency, throughput, objectives = (
        parts[name] for name in ("latency", "throughput", "objectives")
    )
    assert only(latency["p50_over_in_process"]) == pytest.approx(
        only(latency["grpc"]["p50_ms"]) / only(latency["in_process"]["p50_ms"])
    )
    in_process = max(map(only, throughput["in_process_rows_per_second"].values()))
    for name, client in (("share_of_floor", "_of_grpcio"), ("share_of_floor_by_frames", "")):
        echo = rate[f"throughput echo{client}"]
        assert only(throughput[name]) == pytest.approx(
            rate[f"throughput grpc{client}"] / min(echo, in_process)
        )
    assert only(objectives["times_separate"]) == pytest.approx(
        rate["objectives fused"] / rate["objectives separate"]
    )
    assert 0.5 < objectives["three_over_one"]["ratio"] < 2
    assert 0 < objectives["separate_recall"] <= 1
    assert parts["soak"]["asked_rate"] == pytest.approx(0.8 * rate["soak peak"])
    assert parts["soak"]["peak"]["seconds"] == SOAK_SECONDS / 2
    assert len(parts["soak"]["rss_mb"]) == 4
    assert min(parts["soak"]["rss_mb"]) > 50


@pytest.mark.slow
def test_answers_of_swapped_versions_are_all_checked_and_never_mixed(
    figures: dict[str, Any],
) -> None:
    swap = figures["parts"]["swap"]
    assert swap["checked"] >= swap["units"]  # those of the first second, too
    assert swap["mixed"] == 0
    assert sum(swap["versions"].values()) == swap["checked"]
    assert swap["published"] == 4, "the first, and one every two seconds"
    # How many of these were seen depends on how fast the machine loads them ..
    seen = {int(version) for version in swap["versions"]}
    assert swap["versions_seen"] == len(seen & {1, 2, 3, 4}) >= 1
    # .. but of those that waited for each other none was missed.
    assert seen - {1, 2, 3, 4} == {5, 6, 7}
    assert len(swap["rss_mb_by_swap"]) == 3
    assert swap["seconds_per_swap"] > 0


@pytest.mark.slow
def test_the_stages_of_a_call_are_told(figures: dict[str, Any]) -> None:
    throughput = figures["parts"]["throughput"]
    assert all(microseconds > 0 for microseconds in throughput["stages_in_process"].values())
    server = {name: only(value) for name, value in throughput["stages_of_server"].items()}
    assert server["request_us"] >= server["queue_and_run_us"] > server["queue_us"] > 0
    assert 1 <= server["batch_rows"] <= 4, "no more than there are clients"
    assert server["cpu_seconds"] > 0
    # An id and a score at least.
    assert throughput["answer_bytes"] > 5 * figures["world"]["top_k"]


@pytest.mark.slow
def test_small_catalogues_are_searched_exactly(figures: dict[str, Any]) -> None:
    shares = figures["parts"]["index"]["shares"]
    assert len(shares) >= 5
    for share in shares:
        assert share["recall"] > 0.999
        assert share["alone_us"] > share["batched_us_per_query"] > 0


@pytest.mark.slow
def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    done = bench(tmp_path, "--parts", "speed")
    assert done.returncode == 2
    assert "speed: choose from index" in done.stderr
