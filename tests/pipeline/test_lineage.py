from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ml_metadata import MetadataStore
from ml_metadata.proto import metadata_store_pb2 as pb
from rich.console import Console

from pipeline.lineage import LineageError, LineageNode, lineage, render

Inputs = dict[str, int]


class Recorder:
    """Writes a graph into ML Metadata as a TFX run does."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / "metadata.sqlite"
        config = pb.ConnectionConfig()
        config.sqlite.filename_uri = str(self.path)
        config.sqlite.connection_mode = pb.SqliteMetadataSourceConfig.READWRITE_OPENCREATE
        self.store = MetadataStore(config)
        self._outputs: dict[tuple[str, str], int] = {}

    def context(self, kind: str, name: str) -> pb.Context:
        type_id = self.store.put_context_type(pb.ContextType(name=kind))
        found = self.store.get_context_by_type_and_name(kind, name)
        if found is not None:
            return found
        context = pb.Context(type_id=type_id, name=name)
        context.id = self.store.put_contexts([context])[0]
        return context

    def execute(
        self,
        run: str,
        node: str,
        inputs: Inputs,
        outputs: dict[str, tuple[str, dict]],
        parameters: dict | None = None,
        cached: bool = False,
    ) -> dict[str, int]:
        """Records an execution; a cached one refers to the outputs recorded before."""
        execution = pb.Execution(
            type_id=self.store.put_execution_type(pb.ExecutionType(name=node.split(".")[0])),
            last_known_state=pb.Execution.CACHED if cached else pb.Execution.COMPLETE,
        )
        fill(execution, parameters or {})
        pairs = [(None, event(pb.Event.INPUT, key, id_)) for key, id_ in inputs.items()]
        for key, (kind, properties) in outputs.items():
            if cached:
                pairs.append((None, event(pb.Event.OUTPUT, key, self._outputs[node, key])))
                continue
            uri = self.root / node / key / run
            uri.mkdir(parents=True)
            artifact = pb.Artifact(
                type_id=self.store.put_artifact_type(pb.ArtifactType(name=kind)),
                uri=str(uri),
                state=pb.Artifact.LIVE,
            )
            fill(artifact, properties)
            pairs.append((artifact, event(pb.Event.OUTPUT, key)))
        contexts = [
            self.context("pipeline", "csmf.ml"),
            self.context("pipeline_run", run),
            self.context("node", f"csmf.ml.{node}"),
        ]
        artifacts = [pb.Artifact(id=e.artifact_id) if a is None else a for a, e in pairs]
        by_id = {a.id: a for a in self.store.get_artifacts_by_id([a.id for a in artifacts if a.id])}
        _, ids, _ = self.store.put_execution(
            execution,
            [(by_id.get(a.id, a), e) for a, (_, e) in zip(artifacts, pairs, strict=True)],
            contexts,
        )
        made = dict(zip(outputs, ids[len(inputs) :], strict=True))
        for key, id_ in made.items():
            self._outputs[node, key] = id_
        return made

    def write(self, node: str, key: str, run: str, name: str, content: object) -> None:
        (self.root / node / key / run / name).write_text(json.dumps(content))


def fill(message, values: dict) -> None:
    for key, value in values.items():
        target = message.custom_properties[key]
        if isinstance(value, int):
            target.int_value = value
        elif isinstance(value, float):
            target.double_value = value
        else:
            target.string_value = value


def event(kind: int, key: str, artifact_id: int = 0) -> pb.Event:
    made = pb.Event(type=kind)
    if artifact_id:
        made.artifact_id = artifact_id
    made.path.steps.add().key = key
    made.path.steps.add().index = 0
    return made


def record_run(recorder: Recorder, run: str, version: int | None, cached_ingestion: bool) -> None:
    root, r = recorder.root, recorder
    context = r.context("pipeline_run", run)
    fill(context, {"config": "{}", "config_sha256": f"feed-{run}"})
    r.store.put_contexts([context])
    log = root / "ratings.csv"
    log.write_text("u,i\n")
    ingested = r.execute(
        run,
        "InteractionGen",
        {},
        {"examples": ("Examples", {"splits": "train,eval"}), "summary": ("IngestionSummary", {})},
        {"fingerprint": json.dumps({str(log): "ab12", "/gone/users.csv": "cd34"}), "seed": 7},
        cached=cached_ingestion,
    )
    schema = r.execute(
        run,
        "ImportSchemaGen",
        {},
        {"schema": ("Schema", {})},
        {"schema_file": str(root / "timelines.pbtxt")},
        cached=cached_ingestion,
    )
    transform = r.execute(
        run,
        "Transform",
        {"examples": ingested["examples"], "schema": schema["schema"]},
        {"graph": ("TransformGraph", {}), "transformed": ("Examples", {})},
        cached=cached_ingestion,
    )
    previous: Inputs = {}
    for index, objective in enumerate(("exposure", "click")):
        report = {"loss": 1.5 + index, "phases": [{"name": "train"}]}
        report |= {"weights": {"exposure": [1.0, 0.05]}} if index else {"weights": {}}
        stage = r.execute(
            run,
            f"Trainer.{objective}",
            {"transform_graph": transform["graph"], "examples": transform["transformed"]}
            | previous,
            {"stage": ("CascadeStage", {"objective": objective, "owned": "[32]", "tau": 0.25})},
            {"stage_index": index},
        )
        r.write(f"Trainer.{objective}", "stage", run, "stage.json", report)
        previous = {"previous": stage["stage"]}
    model = r.execute(
        run,
        "IndexBuilder",
        {"stage": previous["previous"], "transform_graph": transform["graph"]},
        {"model": ("Model", {"model_id": f"m-{run}"})},
    )
    evaluator = r.execute(
        run,
        "RetrievalEvaluator",
        {"model": model["model"], "examples": ingested["examples"]},
        {"evaluation": ("ModelEvaluation", {}), "blessing": ("ModelBlessing", {"blessed": 1})},
    )
    metrics = {"metrics": {"click": {"recall@50": 0.4321}}, "ann_recall@100": 0.99}
    r.write("RetrievalEvaluator", "evaluation", run, "evaluation.json", metrics)
    validator = r.execute(
        run,
        "ServingValidator",
        {"model": model["model"], "examples": ingested["examples"]},
        {"blessing": ("InfraBlessing", {"blessed": 1})},
    )
    checks = [{"name": "server", "passed": True, "detail": ""}]
    r.write("ServingValidator", "blessing", run, "report.json", {"blessed": True, "checks": checks})
    properties: dict = {"pushed": 0, "reason": "not blessed"}
    if version is not None:
        properties = {"pushed": 1, "pushed_version": version, "model_name": "recommender"}
    r.execute(
        run,
        "Pusher",
        {
            "infra_blessing": validator["blessing"],
            "model": model["model"],
            "model_blessing": evaluator["blessing"],
        },
        {"pushed_model": ("PushedModel", properties)},
    )


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    made = Recorder(tmp_path)
    record_run(made, "run-1", 1, cached_ingestion=False)
    record_run(made, "run-2", None, cached_ingestion=True)
    record_run(made, "run-3", 2, cached_ingestion=True)
    return made


def text(node: LineageNode) -> str:
    console = Console(width=300, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(node))
    return console.export_text()


def by_component(node: LineageNode, component: str) -> list[LineageNode]:
    return [n for n in node.walk() if n.execution and n.execution.component == component]


def test_walks_from_the_push_to_the_log_files(recorder: Recorder) -> None:
    root = lineage(recorder.path, 1)
    assert (root.type, root.properties["pushed_version"]) == ("PushedModel", 1)
    assert root.execution is not None
    assert (root.execution.component, root.execution.state) == ("Pusher", "COMPLETE")
    assert [child.role for child in root.children] == [
        "run",
        "model",
        "infra_blessing",
        "model_blessing",
    ]
    files = {n.name: n for n in root.walk() if n.type == "file"}
    log = files[str(recorder.root / "ratings.csv")]
    assert (log.role, log.properties, log.gone) == ("input file", {"sha256": "ab12"}, False)
    assert files["/gone/users.csv"].gone
    assert files[str(recorder.root / "timelines.pbtxt")].role == "schema"
    stages = [n for n in root.walk() if n.type == "CascadeStage"]
    assert [n.properties["objective"] for n in stages] == ["click", "exposure"]
    assert [n.execution.component for n in stages if n.execution] == [
        "Trainer.click",
        "Trainer.exposure",
    ]
    assert [n.reports["stage.json"]["loss"] for n in stages] == [2.5, 1.5]
    configs = {n.name: n.properties for n in root.walk() if n.type == "config"}
    assert configs == {
        "run run-1": {"config_sha256": "feed-run-1", "config": "{}"},
        "InteractionGen": {"seed": 7},
    }


def test_metrics_beside_the_blessing_are_found(recorder: Recorder) -> None:
    reports = {name: c for n in lineage(recorder.path, 1).walk() for name, c in n.reports.items()}
    assert reports["evaluation.json"]["metrics"]["click"]["recall@50"] == 0.4321
    assert reports["report.json"]["blessed"] is True


def test_shared_ancestors_are_expanded_once(recorder: Recorder) -> None:
    root = lineage(recorder.path, 1)
    ids = [n.id for n in root.walk() if n.id is not None and not n.repeated]
    assert len(ids) == len(set(ids))
    examples = [n for n in root.walk() if n.type == "Examples" and n.role == "examples"]
    full = [n for n in by_component(root, "InteractionGen") if not n.repeated]
    assert len(full) == 1
    assert any(n.repeated and not n.children for n in examples)
    components = {n.execution.component for n in root.walk() if n.execution}
    assert components == {
        "Pusher",
        "IndexBuilder",
        "Trainer.click",
        "Trainer.exposure",
        "Transform",
        "ImportSchemaGen",
        "InteractionGen",
        "RetrievalEvaluator",
        "ServingValidator",
    }


def test_cached_nodes_lead_to_the_execution_that_did_the_work(recorder: Recorder) -> None:
    first, second = (by_component(lineage(recorder.path, v), "InteractionGen")[0] for v in (1, 2))
    assert first.execution is not None
    assert second.execution is not None
    assert first.execution.id == second.execution.id
    assert (first.execution.state, second.execution.state) == ("COMPLETE", "COMPLETE")
    assert (first.execution.cached, second.execution.cached) == (False, True)
    trainer = by_component(lineage(recorder.path, 2), "Trainer.click")[0]
    assert trainer.execution is not None
    assert not trainer.execution.cached


def test_unknown_version_names_those_that_exist(recorder: Recorder) -> None:
    with pytest.raises(LineageError, match=r"version 9.*exist: 1, 2\."):
        lineage(recorder.path, 9)
    with pytest.raises(LineageError, match="'other'"):
        lineage(recorder.path, 1, model_name="other")
    assert lineage(recorder.path, 1, model_name="recommender").id == lineage(recorder.path, 1).id


def test_nothing_pushed_yet(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    with pytest.raises(LineageError, match="no run has passed the gates"):
        lineage(recorder.path, 1)
    record_run(recorder, "run-1", None, cached_ingestion=False)
    with pytest.raises(LineageError, match="no run has passed the gates"):
        lineage(recorder.path, 1)


def test_no_database_says_where_it_looked(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "metadata.sqlite"
    with pytest.raises(LineageError, match=r"nowhere.*csmf run"):
        lineage(path, 1)
    assert not path.parent.exists()


def test_another_file_is_not_taken_for_a_database(tmp_path: Path) -> None:
    for content in (b"no database", b""):
        (tmp_path / "x.sqlite").write_bytes(content * 200)
        with pytest.raises(LineageError, match="not a metadata database"):
            lineage(tmp_path / "x.sqlite", 1)


def test_database_is_not_written_to(recorder: Recorder) -> None:
    del recorder.store
    before = recorder.path.read_bytes()
    recorder.path.chmod(0o444)
    lineage(recorder.path, 1)
    assert recorder.path.read_bytes() == before


def test_deleted_directory_is_told(recorder: Recorder) -> None:
    shutil.rmtree(recorder.root / "IndexBuilder")
    model = by_component(lineage(recorder.path, 1), "IndexBuilder")[0]
    assert model.gone
    assert "files are gone" in text(lineage(recorder.path, 1))


def test_unreadable_report_is_told(recorder: Recorder) -> None:
    (recorder.root / "Trainer.click" / "stage" / "run-1" / "stage.json").write_text("{")
    assert "stage.json: unreadable=" in text(lineage(recorder.path, 1))


def test_rendered_tree_holds_what_is_asked_for(recorder: Recorder) -> None:
    shown = text(lineage(recorder.path, 2))
    for expected in (
        "by Trainer.exposure, execution",
        "from the cache",
        "objective=click",
        "evaluation.json: metrics.click: recall@50=0.4321",
        "report.json: 1 checks, all passed",
        "stage.json: weights: exposure=[1.0, 0.05]",
        "input file: file",
        "sha256=ab12",
        "shown above, made by InteractionGen",
    ):
        assert expected in shown


def test_fast_and_without_tensorflow(recorder: Recorder) -> None:
    program = (
        "import sys; from pathlib import Path; from pipeline.lineage import lineage, render;"
        f"render(lineage(Path({str(recorder.path)!r}), 2));"
        "heavy = [m for m in ('tensorflow', 'tfx', 'apache_beam') if m in sys.modules];"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    started = time.monotonic()
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root, timeout=30)
    seconds = time.monotonic() - started
    assert seconds < 3, f"took {seconds:.1f} s, imports included; alone it takes well under 1 s"
