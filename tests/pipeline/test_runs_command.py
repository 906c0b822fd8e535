from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from pipeline import console
from pipeline.metadata.store import MetadataError
from pipeline.runs_command import runs
from tests.pipeline.metadata.recorder import NODES, Recorder, Recording, this_process


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_console", Console(emoji=False, width=200))


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path)


def asked(recorder: Recorder, *arguments: str) -> Result:
    return CliRunner().invoke(runs, ["--metadata", str(recorder.path), *arguments])


def text(recorder: Recorder, *arguments: str) -> str:
    result = asked(recorder, *arguments)
    assert result.exit_code == 0, result.output
    return re.sub(r" {2,}", "  ", result.output)


def set_times(recorder: Recorder) -> None:
    """Runs begin at 22:13:20; every execution takes 12.5 s, the first begins 10 s later."""
    with sqlite3.connect(recorder.path) as database:
        database.execute("UPDATE Context SET create_time_since_epoch = 1700000000000")
        database.execute(
            "UPDATE Execution SET create_time_since_epoch = 1700000010000 + 60000 * (id % 2), "
            "last_update_time_since_epoch = 1700000022500 + 60000 * (id % 2)"
        )


def test_table_of_runs_and_nodes_of_the_newest(recorder: Recorder) -> None:
    recorder.record(Recording("run-1"))
    peaks = {"nodes": {"Transform": {"peak_bytes": 700 * 2**20}}}
    recorder.record(Recording("run-2", cached=NODES[:4], notes=peaks))
    set_times(recorder)
    said = text(recorder)
    rows = re.findall(r"(run-\d)  (\w+)  (\S+ \S+)  (.*?)  (\d+)  (\d+)", said)
    # 70 s until the last node begins, and 12.5 s of that one.
    assert rows == [
        ("run-2", "COMPLETE", "2023-11-14 22:13:20", "1 min 22 s", "10", "4"),
        ("run-1", "COMPLETE", "2023-11-14 22:13:20", "1 min 22 s", "14", "0"),
    ]
    assert "Nodes of run-2, COMPLETE" in said
    assert re.search(r"InteractionGen  CACHED  2023-11-14 \S+  12.5 s  not recorded", said)
    assert re.search(r"Transform  COMPLETE  2023-11-14 \S+  12.5 s  700 MiB", said)
    for node in NODES:
        assert node in said


def test_limit_and_one_run(recorder: Recorder) -> None:
    for number in range(1, 4):
        recorder.record(Recording(f"run-{number}", last="InteractionGen"))
    said = text(recorder, "--limit", "2")
    assert "run-3" in said
    assert "run-2" in said
    assert "run-1" not in said
    said = text(recorder, "--run", "run-1")
    assert "Nodes of run-1" in said
    assert "run-3" not in said


def test_failed_node_shows_error_and_log(recorder: Recorder, tmp_path: Path) -> None:
    log = tmp_path / "Transform.log"
    lines = [f"line {number}" for number in range(100)]
    log.write_bytes("\n".join([*lines, "\x1b[31mred [bold]\x1b[0m \u00e9"]).encode() + b"\xff\n")
    notes = {
        "error": {"node": "Transform", "type": "ValueError", "message": "no [column] 'x'"},
        "log_dir": str(tmp_path),
    }
    recorder.record(Recording(last="Transform", last_state="FAILED", notes=notes))
    said = text(recorder)
    assert re.search(r"run-1  FAILED", said)
    assert "Transform, FAILED" in said
    assert "error: no [column] 'x'" in said
    assert f"log, the last lines of {log}:" in said
    shown = re.findall(r"line \d+", said)
    assert shown == lines[-14:]  # and the red one
    assert "red [bold] \u00e9\ufffd" in said
    assert "\x1b" not in said


def test_failed_node_of_which_little_is_recorded(recorder: Recorder, tmp_path: Path) -> None:
    notes = {"log_dir": str(tmp_path / "gone")}
    recorder.record(Recording(last="Transform", last_state="FAILED", notes=notes))
    said = text(recorder)
    assert "error: not recorded" in said
    assert "log: not recorded, or the file is gone" in said


def test_empty_log(recorder: Recorder, tmp_path: Path) -> None:
    (tmp_path / "Transform.log").touch()
    notes = {"log_dir": str(tmp_path)}
    recorder.record(Recording(last="Transform", last_state="FAILED", notes=notes))
    assert "Transform.log:" in text(recorder)


def test_run_under_way_and_run_whose_process_is_gone(recorder: Recorder) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for run, pid in (("run-1", gone.pid), ("run-2", os.getpid())):
        recorder.record(
            Recording(run, last="Transform", last_state="RUNNING", notes=this_process(pid))
        )
    said = text(recorder)
    assert re.search(r"run-2  RUNNING", said)
    assert re.search(r"run-1  INTERRUPTED", said)
    assert re.search(r"Transform  RUNNING  \S+ \S+  \d\.\d s", said)
    assert "Nodes of run-1, INTERRUPTED: its process is gone" in text(recorder, "--run", "run-1")


def test_error_before_the_first_node(recorder: Recorder) -> None:
    context = recorder.context("pipeline_run", "run-1")
    error = json.dumps({"node": "", "type": "OSError", "message": "disk full"})
    context.custom_properties["error"].string_value = error
    recorder.store.put_contexts([context])
    said = text(recorder)
    assert re.search(r"run-1  FAILED", said)
    assert "error: disk full" in said


def test_json(recorder: Recorder) -> None:
    notes = {"error": {"node": "Transform", "message": "boom"}}
    recorder.record(Recording("run-1"))
    recorder.record(Recording("run-2", last="Transform", last_state="FAILED", notes=notes))
    set_times(recorder)
    content = json.loads(text(recorder, "--format", "json"))
    assert [run["run"] for run in content] == ["run-2", "run-1"]
    newest = json.loads(text(recorder, "--format", "json", "--run", "run-2"))
    assert newest == content[0]
    assert (newest["state"], newest["error"], newest["csmf_version"]) == ("FAILED", "boom", "0.2.0")
    assert newest["started"] == "2023-11-14T22:13:20+00:00"
    assert newest["seconds"] == 82.5
    assert newest["nodes"][-1] == {
        "node": "Transform",
        "execution": newest["nodes"][-1]["execution"],
        "state": "FAILED",
        "cached": False,
        "started": newest["nodes"][-1]["started"],
        "seconds": 12.5,
        "peak_bytes": None,
        "error": "boom",
        "log": None,
    }


def test_several_pipelines_are_told_apart(recorder: Recorder) -> None:
    recorder.record(Recording("run-1", last="InteractionGen"))
    assert "csmf.ml" not in text(recorder)
    recorder.record(Recording("run-2", pipeline="csmf", last="InteractionGen"))
    said = text(recorder)
    assert "run-1  csmf.ml  COMPLETE" in said
    assert "run-2  csmf  COMPLETE" in said
    # The name of one begins that of the other.
    assert "InteractionGen  COMPLETE" in text(recorder, "--run", "run-1")


def test_nothing_to_show(recorder: Recorder, tmp_path: Path) -> None:
    for arguments in ([], ["--run", "x"]):
        result = asked(recorder, *arguments)
        assert isinstance(result.exception, MetadataError)
        assert "no run is recorded yet" in str(result.exception)
    recorder.record(Recording(last="InteractionGen"))
    with pytest.raises(MetadataError, match=r"no run begins with 'x'"):
        raise asked(recorder, "--run", "x").exception
    missing = CliRunner().invoke(runs, ["--workdir", str(tmp_path / "none")])
    assert "there is no metadata database" in str(missing.exception)
    usage = CliRunner(env={"CSMF_METADATA": ""}).invoke(runs, [])
    assert usage.exit_code == 2
