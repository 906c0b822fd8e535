from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from pipeline.metadata.runs import read_run
from pipeline.metadata.store import open_store
from pipeline.report.data import Drift, FeatureDrift, Known, Missing, Part
from pipeline.report.drift import drift
from pipeline.report.sources import output

FILE = "Split-{}/FeatureStats.pb"
SPLITS = ("train", "eval", "catalogue")


def record(kit: Any, run_id: str, counts: Sequence[int], ages: Sequence[float]) -> None:
    """A run of StatisticsGen; the items are the same ones, whatever their order."""
    written = kit.statistics(counts=counts, ages=ages, names="abcde").SerializeToString()
    files = {FILE.format(split): written for split in SPLITS}
    node = kit.Node("StatisticsGen", {"statistics": ("ExampleStatistics", files, {})})
    kit.recorder.run(run_id, [node])


def drift_of(kit: Any, run_id: str) -> Part[Drift]:
    store = open_store(kit.recorder.path)
    run = read_run(store, run_id)
    return drift(store, run, output(run, "StatisticsGen", "statistics"))


def test_the_first_span_has_nothing_to_be_compared_with(kit: Any) -> None:
    record(kit, "run-1", (50, 30, 10, 5, 5), (10.0, 10.0))
    found = drift_of(kit, "run-1")
    assert isinstance(found, Missing)
    assert "first span" in found.reason


def test_a_previous_span_whose_files_are_gone_is_named(kit: Any) -> None:
    record(kit, "run-1", (50, 30, 10, 5, 5), (10.0, 10.0))
    record(kit, "run-2", (50, 30, 10, 5, 5), (10.0, 10.0))
    (kit.recorder.uri("run-1", "StatisticsGen", "statistics") / FILE.format("train")).unlink()
    found = drift_of(kit, "run-2")
    assert isinstance(found, Missing)
    assert "Run run-1" in found.reason
    assert "is gone" in found.reason


@pytest.mark.slow
def test_drift_is_the_distance_of_the_distributions(kit: Any) -> None:
    record(kit, "run-1", (50, 30, 10, 5, 5), (10.0, 10.0))
    kit.recorder.run("between", [kit.Node("InteractionGen")])  # got no further
    record(kit, "run-2", (30, 30, 20, 15, 5), (5.0, 15.0))
    found = drift_of(kit, "run-2")
    assert isinstance(found, Known)
    assert found.value.previous_run == "run-1"
    by_split = {(f.split, f.feature): f for f in found.value.features}
    assert set(by_split) == {
        (split, feature) for split in ("train", "catalogue") for feature in ("item_ids", "user_age")
    }
    # Item "a" has fallen from 50 to 30 of 100 events; no other share has changed by more.
    items = by_split["train", "item_ids"]
    assert items == FeatureDrift("train", "item_ids", "L-infinity", pytest.approx(0.2))
    ages = by_split["train", "user_age"]
    assert ages.measure == "Jensen-Shannon"
    assert ages.value == pytest.approx(jensen_shannon((0.5, 0.5), (0.25, 0.75)), abs=1e-6)
    assert found.value.features[0].feature == "item_ids"  # the largest first


@pytest.mark.slow
def test_the_same_distribution_has_not_drifted(kit: Any) -> None:
    for run_id in ("run-1", "run-2"):
        record(kit, run_id, (50, 30, 10, 5, 5), (10.0, 10.0))
    found = drift_of(kit, "run-2")
    assert isinstance(found, Known)
    assert [feature.value for feature in found.value.features] == [0.0] * 4


def jensen_shannon(p: Sequence[float], q: Sequence[float]) -> float:
    """In bits, by its definition."""
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return sum(
        0.5 * a * math.log2(a / m) for side in (p, q) for a, m in zip(side, middle, strict=True)
    )
