from __future__ import annotations

import shutil
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from pipeline.lineage.facts import Check, LogFile, Rows
from pipeline.lineage.graph import is_gone
from pipeline.lineage.pushes import list_pushes
from pipeline.lineage.query import version_lineage
from pipeline.metadata.store import MetadataError, open_store
from tests.pipeline.lineage.conftest import DATA_NODES, OLD_LOGS, History
from tests.pipeline.metadata.recorder import NODES, Recorder, Recording


def test_everything_asked_for_is_there(history: History) -> None:
    facts = version_lineage(history.path, 1).facts
    recording = history.runs["run-1"]
    assert (facts.model, facts.version, facts.model_id) == ("recommender", 1, "aa01")
    assert (facts.run, facts.csmf_version) == ("run-1", "0.2.0")
    assert (facts.config, facts.config_sha256) == (recording.config, "sha-of-run-1")
    assert facts.seeds == {"InteractionGen": 7} | {
        f"CascadedTrainer.{name}": 7 for name in recording.stages
    }
    assert facts.files == tuple(
        LogFile(path, sha256, table, rows, gone=True)
        for path, (table, rows, sha256) in OLD_LOGS.items()
    )
    assert facts.tables == {
        "interactions": Rows(100, 95, 2, {"duplicate": 3}),
        "catalogue": Rows(20, 20, 0, {}),
    }
    assert {schema.node: schema.path for schema in facts.schemas} == {
        "ImportSchemaGen.catalogue": "/schemas/catalogue-fedcba9876543210.pbtxt",
        "ImportSchemaGen.timelines": "/schemas/timelines-0123456789abcdef.pbtxt",
    }
    assert [asdict(stage) for stage in facts.stages] == [
        {"objective": name, "node": f"CascadedTrainer.{name}"} | stage
        for name, stage in recording.stages.items()
    ]
    assert facts.metrics == recording.metrics
    assert facts.popularity == recording.popularity
    assert (facts.baseline, facts.baseline_version, facts.ann_recall) == ({}, None, 0.99)
    quality, serving = facts.gates
    assert (quality.name, quality.blessed) == ("quality", True)
    assert quality.checks[0] == Check("exposure: recall@50", True, 0.5, 0.26, "")
    assert (serving.name, serving.blessed) == ("serving", True)
    assert serving.checks == (Check("server", True, None, None, "it starts"),)
    assert [step.node for step in facts.steps] == list(NODES)
    assert (facts.missing, facts.notes) == ((), ())


def test_deleted_version_is_told_with_all_that_is_known(history: History) -> None:
    deleted, kept = (version_lineage(history.path, version).facts for version in (1, 2))
    assert (deleted.deleted, kept.deleted) == (True, False)
    assert deleted.stages
    assert "/logs/ratings.csv" in deleted.gone


def test_cached_nodes_lead_to_the_run_that_did_the_work(history: History) -> None:
    first, later = (version_lineage(history.path, version).facts for version in (1, 2))
    assert not any(step.cached for step in first.steps)
    assert {step.node for step in later.steps if step.cached} == set(DATA_NODES)
    work = {step.node: step for step in later.steps}
    assert (work["Transform"].run, work["Transform"].csmf_version) == ("run-1", "0.2.0")
    assert work["Transform"] in {
        step.__class__(**(asdict(step) | {"cached": True})) for step in first.steps
    }
    assert (work["Pusher"].run, work["Pusher"].csmf_version) == ("run-3", "0.3.0")
    assert all(step.state == "COMPLETE" for step in later.steps)
    # The data's seed is that of the execution, whatever the run that pushed was configured to.
    assert (later.seeds["InteractionGen"], later.seeds["CascadedTrainer.click"]) == (7, 8)


def test_graph_names_each_artifact_and_execution_once(history: History) -> None:
    graph = version_lineage(history.path, 1).graph
    assert sorted(e.node for e in graph.executions.values()) == sorted(NODES)
    assert len(graph.artifacts) == 18 - 1  # no dead letters in the recorder's runs
    pusher = graph.maker
    assert pusher is not None
    read = {link.key: graph.artifacts[link.artifact].type for link in pusher.inputs}
    assert read == {
        "model": "Model",
        "model_blessing": "ModelBlessing",
        "infra_blessing": "InfraBlessing",
    }


def test_version_pushed_twice_is_the_last_one_and_says_so(history: History) -> None:
    facts = version_lineage(history.path, 3).facts
    assert (facts.run, facts.model_id) == ("run-5", "aa05")
    assert len(facts.notes) == 1
    for said in ("pushed 2 times", "model id aa04", "model id aa05", "--request"):
        assert said in facts.notes[0]


def test_refused_and_unfinished_runs_pushed_nothing(history: History) -> None:
    pushes = list_pushes(open_store(history.path))
    assert [(push.version, push.run) for push in pushes] == [
        (1, "run-1"),
        (2, "run-3"),
        (3, "run-4"),
        (3, "run-5"),
    ]
    assert [push.deleted for push in pushes] == [True, False, False, False]


def test_unknown_version_names_those_that_exist(history: History) -> None:
    with pytest.raises(MetadataError, match=r"version 9.* is recorded.*: 1, 2, 3\."):
        version_lineage(history.path, 9)
    with pytest.raises(MetadataError, match="run-6 is FAILED: what such a run pushes"):
        version_lineage(history.path, 9)
    with pytest.raises(MetadataError, match=r"model 'other' is recorded.*: recommender\."):
        version_lineage(history.path, 1, "other")
    assert version_lineage(history.path, 1, "recommender").facts.run == "run-1"


def test_runs_made_before_the_recording_say_what_is_missing(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.record(Recording(before_recording=True, config=None))
    facts = version_lineage(recorder.path, 1).facts
    assert facts.missing == (
        "the configuration",
        "the version of the code",
        "row counts",
        "what popularity reaches",
        "single checks of the gates",
    )
    assert [(file.path, file.table, file.rows) for file in facts.files] == [
        ("/logs/ratings.csv", "", None),
        ("/logs/items.csv", "", None),
    ]
    assert facts.stages[0].settings == {"tau": 0.3, "gamma": 0.1, "rounds": 30}
    assert facts.metrics["click"] == {"recall@50": 0.25}
    assert [gate.blessed for gate in facts.gates] == [True, True]


def test_properties_that_are_no_json_are_not_recorded(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.record(Recording())
    store = recorder.store
    for kind in ("ModelEvaluation", "CascadeStage", "IngestionSummary"):
        for artifact in store.get_artifacts_by_type(kind):
            for key in ("metrics", "checks", "owned", "tables", "files"):
                artifact.custom_properties[key].string_value = "{broken" if key > "f" else "[[1]]"
            store.put_artifacts([artifact])
    facts = version_lineage(recorder.path, 1).facts
    assert (facts.tables, facts.stages[0].owned, facts.gates[0].checks) == ({}, {}, ())
    assert facts.metrics["click"] == {"recall@50": 0.25}  # from the flat properties
    assert "row counts" in facts.missing


def test_two_models_in_one_store(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.record(Recording("run-1", version=1, model="shoes", model_id="aa01"))
    recorder.record(Recording("run-2", version=1, model="hats", model_id="aa02"))
    recorder.record(Recording("run-3", version=2, model="hats", model_id="aa03"))
    with pytest.raises(MetadataError, match="version 1 is one of the models hats, shoes"):
        version_lineage(recorder.path, 1)
    assert version_lineage(recorder.path, 1, "shoes").facts.model_id == "aa01"
    assert version_lineage(recorder.path, 2).facts.model_id == "aa03"
    with pytest.raises(MetadataError, match=r"version 2 of model 'shoes'.*: 1\."):
        version_lineage(recorder.path, 2, "shoes")


def test_nothing_pushed_yet(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    with pytest.raises(MetadataError, match="no run has passed the gates"):
        version_lineage(recorder.path, 1)
    recorder.record(Recording(version=None))
    with pytest.raises(MetadataError, match="no run has passed the gates"):
        version_lineage(recorder.path, 1)


def test_no_file_of_the_run_is_read(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.record(Recording())
    before = version_lineage(recorder.path, 1)
    shutil.rmtree(tmp_path / "artifacts")
    shutil.rmtree(tmp_path / "serving")
    after = version_lineage(recorder.path, 1).facts
    assert after.stages == before.facts.stages
    assert after.tables == before.facts.tables
    assert after.deleted
    assert len(after.gone) == len(before.graph.artifacts) + 4  # two logs, two schemas


def test_only_what_can_be_seen_from_here_is_gone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for uri, gone in (
        (str(tmp_path), False),
        (f"file://{tmp_path}/none", True),
        (str(tmp_path / "file" / "below"), True),
        ("data/relative.csv", False),
        ("gs://bucket/none", False),
        (f"/{'x' * 5000}", False),
        ("/null\0byte", False),
    ):
        assert is_gone(uri) is gone, uri


def test_store_is_not_written_to(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.record(Recording())
    path = recorder.path
    del recorder
    content = path.read_bytes()
    path.chmod(0o444)
    version_lineage(path, 1)
    assert path.read_bytes() == content
    assert [file.name for file in tmp_path.glob("metadata*")] == ["metadata.sqlite"]


def test_function_is_fast(history: History) -> None:
    version_lineage(history.path, 2)  # imports
    started = time.monotonic()
    version_lineage(history.path, 2)
    assert time.monotonic() - started < 0.5
