from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline.metadata.runs import list_runs, read_run
from pipeline.metadata.store import MetadataError, open_store
from tests.pipeline.metadata.recorder import (
    NODES,
    PIPELINE,
    READS,
    WRITES,
    Recorder,
    Recording,
    this_process,
)


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path)


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_runs_newest_first_without_artifacts(recorder: Recorder) -> None:
    recorder.record(Recording("run-1"))
    recorder.record(Recording("run-2", cached=NODES[:5]))
    store = open_store(recorder.path)
    found = list_runs(store)
    assert [run.id for run in found] == ["run-2", "run-1"]
    assert [run.id for run in list_runs(store, limit=1)] == ["run-2"]
    newest = found[0]
    assert (newest.pipeline, newest.state, newest.error) == (PIPELINE, "COMPLETE", "")
    assert list(newest.nodes) == list(NODES)  # dots in names and all
    assert {name for name, node in newest.nodes.items() if node.cached} == set(NODES[:5])
    assert all(node.done for node in newest.nodes.values())
    assert not any(node.inputs or node.outputs for node in newest.nodes.values())


def test_one_run_with_its_artifacts(recorder: Recorder) -> None:
    recorder.record(Recording("run-1"))
    recorder.record(Recording("run-2", cached=NODES[:5]))
    store = open_store(recorder.path)
    first, second = read_run(store, "run-1"), read_run(store)
    assert (first.id, second.id) == ("run-1", "run-2")
    for node in NODES:
        assert set(second.nodes[node].inputs) == set(READS[node])
        assert set(second.nodes[node].outputs) == set(WRITES[node])
    # Taken from the cache: the very artifact of the first run.
    ids = [run.nodes["Transform"].outputs["transform_graph"].id for run in (first, second)]
    assert ids[0] == ids[1]
    read = second.nodes["CascadedTrainer.exposure"].inputs["transform_graph"]
    assert [artifact.id for artifact in read] == [ids[0]]
    assert second.nodes["CascadedTrainer.click"].parameters["stage_index"] == 1


def test_notes_of_the_runner(recorder: Recorder, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "Transform.log").write_text("a line\n")
    notes = {
        "nodes": {"Transform": {"peak_bytes": 5_000_000}},
        "error": {"node": "IndexBuilder", "type": "OSError", "message": "disk full"},
        "log_dir": str(tmp_path / "logs"),
    }
    recorder.record(Recording(last="IndexBuilder", last_state="FAILED", notes=notes))
    run = read_run(open_store(recorder.path))
    assert (run.state, run.error) == ("FAILED", "disk full")
    assert run.config == Recording().config
    assert run.nodes["Transform"].peak_bytes == 5_000_000
    assert run.nodes["Transform"].log == tmp_path / "logs" / "Transform.log"
    failed = run.nodes["IndexBuilder"]
    assert (failed.state, failed.error, failed.done) == ("FAILED", "disk full", False)
    assert (failed.peak_bytes, failed.log) == (None, None)
    assert "Pusher" not in run.nodes


@pytest.mark.parametrize("broken", ["{", "[]", '"text"', ""])
def test_notes_that_are_not_understood(recorder: Recorder, broken: str) -> None:
    keys = ("nodes", "error", "host_pid", "config")
    recorder.record(Recording(config=None, notes=dict.fromkeys(keys, broken)))
    run = read_run(open_store(recorder.path))
    assert (run.config, run.error, list(run.nodes)) == ({}, "", list(NODES))


def test_run_under_way(recorder: Recorder) -> None:
    started = Recording(last="Transform", last_state="RUNNING", notes=this_process(os.getpid()))
    recorder.record(started)
    run = read_run(open_store(recorder.path))
    node = run.nodes["Transform"]
    assert (run.state, node.state, node.done) == ("RUNNING", "RUNNING", False)
    elapsed = (datetime.now(UTC) - node.started).total_seconds()
    assert 0 <= elapsed - node.seconds < 5
    assert node.outputs == {}


def test_run_between_two_nodes(recorder: Recorder) -> None:
    recorder.record(Recording(last="Transform", notes=this_process(os.getpid())))
    assert read_run(open_store(recorder.path)).state == "RUNNING"


def test_run_whose_process_is_gone(recorder: Recorder) -> None:
    notes = this_process(dead_pid())
    recorder.record(Recording(last="Transform", last_state="RUNNING", notes=notes))
    run = read_run(open_store(recorder.path))
    assert (run.state, run.nodes["Transform"].state) == ("INTERRUPTED", "INTERRUPTED")
    assert run.nodes["InteractionGen"].state == "COMPLETE"


def test_another_process_with_the_same_number(recorder: Recorder) -> None:
    """The number of a process that is gone is given to a younger one."""
    notes = this_process(os.getpid())
    recorder.record(Recording(last="Transform", last_state="RUNNING", notes=notes))
    with sqlite3.connect(recorder.path) as database:
        database.execute("UPDATE Context SET create_time_since_epoch = 1000")
    assert read_run(open_store(recorder.path)).state == "INTERRUPTED"


def test_process_of_another_machine_is_not_judged(recorder: Recorder) -> None:
    notes = {"host_pid": {"host": "elsewhere.invalid", "pid": dead_pid()}}
    recorder.record(Recording(last="Transform", last_state="RUNNING", notes=notes))
    assert read_run(open_store(recorder.path)).state == "RUNNING"


def test_unknown_and_ambiguous_ids(recorder: Recorder) -> None:
    store = open_store(recorder.path)
    assert list_runs(store) == []
    with pytest.raises(MetadataError, match="no run is recorded yet"):
        read_run(store)
    for run in ("run-1", "run-12"):
        recorder.record(Recording(run, last="InteractionGen"))
    assert read_run(store, "run-1").id == "run-1"  # exact
    assert read_run(store, "run-12").id == "run-12"
    with pytest.raises(MetadataError, match=r"several runs begin with 'run-'.*run-12, run-1"):
        read_run(store, "run-")
    with pytest.raises(MetadataError, match=r"no run begins with 'x'.*newest are: run-12, run-1\."):
        read_run(store, "x")


def test_seconds_are_those_of_the_execution(recorder: Recorder) -> None:
    recorder.record(Recording())
    with sqlite3.connect(recorder.path) as database:
        database.execute(
            "UPDATE Execution SET create_time_since_epoch = 1700000000000, "
            "last_update_time_since_epoch = 1700000012500"
        )
    node = read_run(open_store(recorder.path)).nodes["Transform"]
    assert node.started == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert node.seconds == 12.5
