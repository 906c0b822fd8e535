from __future__ import annotations

from pathlib import Path

from pipeline.lineage.config_keys import flatten
from pipeline.lineage.diff import Change, Diff, MetricChange, SlotChange, compare
from pipeline.lineage.query import version_lineage
from tests.pipeline.lineage.conftest import History
from tests.pipeline.metadata.recorder import Recorder, Recording


def diff(path: Path, old: int, new: int) -> Diff:
    return compare(*(version_lineage(path, version).facts for version in (old, new)))


def test_configuration_stages_metrics(history: History) -> None:
    """Versions 1 and 2: other settings and code, the same data."""
    found = diff(history.path, 1, 2)
    assert (found.model, found.old, found.new) == ("recommender", 1, 2)
    assert found.general == (
        Change("model id", "aa01", "aa03"),
        Change("code (csmf)", "0.2.0", "0.3.0"),
    )
    assert found.config == (
        Change("evaluation.minimum_lift", 1.3, None),
        Change("objectives", None, ["exposure", "click", "conversion"]),
        Change("objectives.exposure.tau", None, 0.4),
    )
    assert found.seeds == tuple(
        Change(f"CascadedTrainer.{name}", 7, 8) for name in ("exposure", "click", "conversion")
    )
    assert (found.data, found.schemas, found.checks) == ((), (), ())
    assert found.stages == (Change("exposure.tau", 0.3, 0.4),)
    assert found.slots == (
        SlotChange("exposure", "history", 20, 16),
        SlotChange("click", "history", 12, 16),
    )
    assert found.metrics == (
        MetricChange("exposure", "recall@50", 0.5, 0.75, 0.25),
        MetricChange("exposure", "queries", 90.0, 90.0, 0.0),
        MetricChange("click", "recall@50", 0.25, 0.125, -0.125),
        MetricChange("click", "queries", 40.0, 40.0, 0.0),
        MetricChange("conversion", "recall@50", 0.125, 0.125, 0.0),
        MetricChange("conversion", "queries", 10.0, 10.0, 0.0),
    )


def test_data_schema_and_checks(history: History) -> None:
    """Versions 1 and 3 (its last push): a log that has grown, a new table, another schema."""
    found = diff(history.path, 1, 3)
    assert found.data == (
        Change("/logs/ratings.csv: SHA-256", "ab" * 32, "ef" * 32),
        Change("/logs/ratings.csv: rows", 100, 130),
        Change("interactions: rows read", 100, 130),
        Change("interactions: rows used", 95, 125),
        Change("/logs/users.csv: SHA-256", None, "12" * 32),
        Change("/logs/users.csv: rows", None, 9),
        Change("users: rows read", None, 9),
        Change("users: rows used", None, 9),
        Change("users: dead letters", None, 0),
    )
    assert found.schemas == (
        Change(
            "ImportSchemaGen.timelines",
            "/schemas/timelines-0123456789abcdef.pbtxt",
            "/schemas/timelines-aaaabbbbccccdddd.pbtxt",
        ),
    )
    assert found.config == ()
    assert any("pushed 2 times" in note for note in found.notes)


def test_nothing_changed(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.record(Recording("run-1", version=1))
    recorder.record(Recording("run-2", version=2))
    found = diff(recorder.path, 1, 2)
    assert (found.general, found.config, found.data, found.stages) == ((), (), (), ())
    assert (found.slots, found.checks, found.seeds, found.notes) == ((), (), (), ())
    assert {change.difference for change in found.metrics} == {0.0}


def test_what_was_not_recorded_is_not_compared(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.record(Recording("run-1", version=1, config=None, before_recording=True))
    stages = Recording().stages
    del stages["conversion"]["owned"]["output"]
    checks = [
        {"name": "exposure: recall@50", "passed": False, "value": 0.5, "threshold": 0.625},
        {"name": "click: recall@50", "passed": True, "value": 0.25, "threshold": 0.1625},
    ]
    recorder.record(Recording("run-2", version=2, stages=stages))
    recorder.record(Recording("run-3", version=3, stages=stages, checks=checks))
    found = diff(recorder.path, 1, 2)
    assert found.config is None
    assert found.slots == (SlotChange("conversion", "output", 0, None),)
    assert found.metrics[0] == MetricChange("exposure", "recall@50", 0.5, 0.5, 0.0)
    assert found.metrics[1] == MetricChange("exposure", "queries", None, 90.0, None)
    assert "that of version 1 is not recorded" in found.notes[0]
    assert "row counts" in found.notes[1]
    assert diff(recorder.path, 2, 3).checks == (
        Change("quality: exposure: recall@50", "passed, asked for 0.26", "failed, asked for 0.625"),
    )


def test_dotted_keys() -> None:
    config = {
        "objectives": [{"name": "a"}, {"name": "b", "tau": 0.5}],
        "data": {"interactions": [{"path": "x.csv", "fields": ["u", "i"]}], "empty": {}},
        "seed": 3,
    }
    assert flatten(config) == {
        "data.empty": {},
        "data.interactions[0].fields": ["u", "i"],
        "data.interactions[0].path": "x.csv",
        "objectives": ["a", "b"],
        "objectives.b.tau": 0.5,
        "seed": 3,
    }
    # Names that do not tell the members apart are no keys.
    assert flatten({"x": [{"name": "a"}, {"name": "a"}]}) == {"x[0].name": "a", "x[1].name": "a"}
    assert flatten({"x": [{"name": "a"}, 2]}) == {"x[0].name": "a", "x[1]": 2}
