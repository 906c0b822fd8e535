from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ml_metadata.proto import metadata_store_pb2 as pb

from pipeline import console
from pipeline.config import PipelineConfig
from pipeline.dag import Workdir
from pipeline.local.records import open_store
from pipeline.summary import summarise, write_summary

CONFIG = PipelineConfig.parse(
    {
        "name": "shop",
        "seed": 5,
        "objectives": [{"name": "exposure"}],
        "data": {
            "interactions": [
                {"path": "log.csv", "columns": {"timestamp": "t"}, "level": "exposure"}
            ]
        },
    }
)
COMPLETE, CACHED, FAILED = pb.Execution.COMPLETE, pb.Execution.CACHED, pb.Execution.FAILED
Report = dict[str, Any] | None

METRICS = {"exposure": {"queries": 3.0, "recall@10": 0.5, "recall@50": 0.75}}
POPULARITY = {"exposure": {"queries": 3.0, "recall@10": 0.25, "recall@50": 0.5}}
CHECK = {"name": "exposure: recall@50", "passed": False, "value": 0.75, "threshold": 0.8}
EVALUATION = {
    "blessed": True,
    "checks": [CHECK | {"passed": True}],
    "metrics": METRICS,
    "popularity": POPULARITY,
    "ann_recall@100": 0.99,
    "anomalies": [],
}
VALIDATION = {"blessed": True, "checks": [{"name": "server", "passed": True, "detail": "fine"}]}
ROWS = {"read": 10, "used": 7, "dead_letters": 1, "dropped": {"duplicate": 2}}
INGESTION = {"tables": {"interactions": ROWS, "users": ROWS | {"read": 4}}}


class Recorder:
    """Writes runs into ML Metadata as TFX does."""

    def __init__(self, root: Path) -> None:
        self.workdir = Workdir(root)
        self.store = open_store(self.workdir.metadata)
        self._pipeline = self._context("pipeline", "shop")
        self._runs = 0

    def _context(self, kind: str, name: str) -> pb.Context:
        type_id = self.store.put_context_type(pb.ContextType(name=kind))
        found = self.store.get_context_by_type_and_name(kind, name)
        if found is not None:
            return found
        context = pb.Context(type_id=type_id, name=name)
        context.id = self.store.put_contexts([context])[0]
        return context

    def run(self) -> pb.Context:
        """A new run."""
        self._runs += 1
        return self._context("pipeline_run", f"run-{self._runs}")

    def node(
        self,
        run: pb.Context,
        node: str,
        state: Any = COMPLETE,
        output: str = "out",
        file: str | None = None,
        report: Report = None,
        properties: dict[str, int] | None = None,
    ) -> None:
        """An execution of a node, and the artifact it made."""
        execution = pb.Execution(
            type_id=self.store.put_execution_type(pb.ExecutionType(name=node.split(".")[0])),
            last_known_state=state,
            name=f"{run.name}-{node}",
        )
        artifact = pb.Artifact(
            type_id=self.store.put_artifact_type(pb.ArtifactType(name="Thing")),
            uri=str(self.workdir.root / run.name / node),
        )
        for key, value in (properties or {}).items():
            artifact.custom_properties[key].int_value = value
        if report is not None and file is not None:
            Path(artifact.uri).mkdir(parents=True)
            (Path(artifact.uri) / file).write_text(json.dumps(report))
        event = pb.Event(type=pb.Event.OUTPUT)
        event.path.steps.add(key=output)
        event.path.steps.add(index=0)
        self.store.put_execution(
            execution,
            [(artifact, event)],
            [self._pipeline, run, self._context("node", f"shop.{node}")],
        )

    def gates(
        self,
        run: pb.Context,
        evaluation: Report = EVALUATION,
        validation: Report = VALIDATION,
        pushed: int | None = 4,
    ) -> None:
        """The nodes that the summary reads."""
        self.node(run, "InteractionGen", output="summary", file="summary.json", report=INGESTION)
        self.node(
            run,
            "RetrievalEvaluator",
            output="evaluation",
            file="evaluation.json",
            report=evaluation,
        )
        self.node(run, "ServingValidator", output="blessing", file="report.json", report=validation)
        properties = {"pushed": 0} if pushed is None else {"pushed": 1, "pushed_version": pushed}
        self.node(run, "Pusher", output="pushed_model", properties=properties)


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path)


def summary_of(recorder: Recorder) -> dict[str, Any]:
    return summarise(CONFIG, recorder.workdir, 12.34)


# --- the summary --------------------------------------------------------------------------------


def test_summary_of_a_pushed_model(recorder: Recorder) -> None:
    recorder.gates(recorder.run())
    serving = recorder.workdir.serving(CONFIG)
    for version in ("4", "5", ".tmp-6"):
        (serving / CONFIG.serving.model_name / version).mkdir(parents=True)
    summary = summary_of(recorder)
    seconds = summary.pop("seconds")
    assert summary == {
        "pipeline": "shop",
        "blessed": True,
        "pushed_version": 4,
        "newest_version": 5,
        "serving_dir": str(serving),
        "metrics": METRICS,
        "popularity": POPULARITY,
        "ann_recall@100": 0.99,
        "failed_checks": [],
        "anomalies": [],
        "rows": ROWS,
        "tables": INGESTION["tables"],
        "seconds_total": 12.3,
        "cached": [],
        "executed": ["InteractionGen", "RetrievalEvaluator", "ServingValidator", "Pusher"],
        "seed": 5,
        "config_sha256": CONFIG.sha256(),
    }
    assert list(seconds) == summary["executed"]
    assert all(0 <= value < 60 for value in seconds.values())


def test_failed_nodes_are_left_out(recorder: Recorder) -> None:
    run = recorder.run()
    recorder.node(run, "Transform", FAILED)
    recorder.node(run, "StatisticsGen", CACHED)
    assert (summary_of(recorder)["cached"], summary_of(recorder)["executed"]) == (
        ["StatisticsGen"],
        [],
    )


def test_only_the_latest_run_counts(recorder: Recorder) -> None:
    first, second = recorder.run(), recorder.run()
    recorder.node(second, "ExampleValidator.timelines", CACHED)
    recorder.node(first, "Pusher")  # recorded later, but of the earlier run
    assert list(summary_of(recorder)["seconds"]) == ["ExampleValidator.timelines"]


@pytest.mark.parametrize("gate", ["evaluation", "validation"])
def test_each_gate_alone_can_refuse(recorder: Recorder, gate: str) -> None:
    reports = {"evaluation": EVALUATION, "validation": VALIDATION}
    failed = CHECK if gate == "evaluation" else {"name": "x", "passed": False, "detail": "why"}
    reports[gate] = reports[gate] | {"blessed": False, "checks": [failed]}
    recorder.gates(recorder.run(), **reports, pushed=None)
    summary = summary_of(recorder)
    assert summary["blessed"] is False
    assert summary["pushed_version"] is None
    assert summary["failed_checks"] == [failed]


def test_run_that_stopped_before_the_gates_is_neither_blessed_nor_refused(
    recorder: Recorder,
) -> None:
    recorder.node(recorder.run(), "Transform")
    summary = summary_of(recorder)
    assert summary["blessed"] is None
    assert summary["pushed_version"] is None
    assert summary["metrics"] == {}
    assert summary["rows"] == {}
    assert summary["executed"] == ["Transform"]


def test_cached_nodes_are_told_apart(recorder: Recorder) -> None:
    run = recorder.run()
    recorder.node(run, "Transform", CACHED)
    recorder.node(run, "IndexBuilder", COMPLETE)
    summary = summary_of(recorder)
    assert summary["cached"] == ["Transform"]
    assert summary["executed"] == ["IndexBuilder"]


def test_summary_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_summary({"a": 1}, path)
    write_summary({"a": [1.5, None, "ü"]}, path)
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": [1.5, None, "ü"]}
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]
    with pytest.raises(TypeError):
        write_summary({"a": object()}, path)
    assert json.loads(path.read_text(encoding="utf-8"))["a"][0] == 1.5


# --- what people read of it ---------------------------------------------------------------------


@pytest.fixture
def shown(
    recorder: Recorder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Any:
    monkeypatch.setenv("COLUMNS", "200")

    def show(**changes: Any) -> str:
        recorder.gates(recorder.run())
        console.show_summary(summary_of(recorder) | changes, Path("there/summary.json"))
        return capsys.readouterr().out

    return show


def test_pushed_version_and_metrics_are_shown(shown: Any) -> None:
    text = shown()
    assert "Blessed and pushed as version 4." in text
    assert "0.7500 (0.5000)" in text
    assert "99.00%" in text
    assert "4 nodes executed, 0 taken from the cache" in text
    assert "there/summary.json" in text
    assert "Failed checks" not in text


def test_failed_checks_are_a_table_with_both_numbers(shown: Any) -> None:
    details = {"name": "ann_recall", "passed": False, "detail": "found 3 of 100"}
    text = shown(blessed=False, pushed_version=None, failed_checks=[CHECK, details])
    (row,) = [line for line in text.splitlines() if CHECK["name"] in line]
    assert "0.7500" in row
    assert "0.8000" in row
    (row,) = [line for line in text.splitlines() if "ann_recall" in line]
    assert "found 3 of 100" in row
    assert "Not blessed: nothing was pushed." in text
    assert "Blessed and pushed" not in text


# What comes from data must not be read as the markup of the terminal library.
BRACKETS = "values [red]Rouge[/red], [x] and [/]"


def test_anomalies_are_shown_as_they_are(shown: Any) -> None:
    text = shown(blessed=False, anomalies=[f"train: user_gender: {BRACKETS}"])
    assert f"train: user_gender: {BRACKETS}" in text


def test_details_of_failed_checks_are_shown_as_they_are(shown: Any) -> None:
    failed = {"name": "known_user", "passed": False, "detail": BRACKETS}
    assert BRACKETS in shown(blessed=False, failed_checks=[failed])


def test_titles_and_ids_are_shown_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.recommend import Recommendations, RecommendedItem, show

    monkeypatch.setenv("COLUMNS", "200")
    items = [RecommendedItem("1", BRACKETS, 0.5), RecommendedItem("2", "Alien³ [uncut]", 0.25)]
    table = Recommendations("user [/b]", "shop", 3, "abc", {"click=1": items})
    show(table)
    text = capsys.readouterr().out
    assert BRACKETS in text
    assert "Alien³ [uncut]" in text
    assert "user [/b]" in text
