"""The local runner on two small nodes: what it records of a run, in real ML Metadata and files."""

from __future__ import annotations

import io
import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tfx.orchestration.metadata import sqlite_metadata_connection_config
from tfx.orchestration.pipeline import Pipeline

from pipeline.config import PipelineConfig
from pipeline.dag import Workdir
from pipeline.local.runner import run_locally, run_pipeline
from pipeline.metadata.runs import list_runs, read_run
from pipeline.metadata.store import open_store
from schemas.settings import ConfigError
from tests.pipeline.local.small_nodes import MEGABYTE, Maker, Reader

NOTES = {"config": '{"name":"small"}', "config_sha256": "ab12", "csmf_version": "9.9"}
READ_FROM_OUTSIDE = """
import sys
from pipeline.metadata.runs import list_runs
from pipeline.metadata.store import open_store
(run,) = list_runs(open_store(sys.argv[1]))
print(run.state, run.config["name"], *(f"{node.node}={node.state}" for node in run.nodes.values()))
"""


class Bench:
    """A working directory with a pipeline of two nodes, and what they told of their progress."""

    def __init__(self, root: Path) -> None:
        self.workdir = Workdir(root / "work")
        self.workdir.root.mkdir()
        self.obstacle = root / "obstacle"
        self.told: list[tuple[str, str]] = []

    def run(
        self,
        from_node: str | None = None,
        to_node: str | None = None,
        progress: Any = None,
        name: str = "small.shop",
        **changes: Any,
    ) -> None:
        maker = Maker(**({"text": "hello", "megabytes": 1} | changes))
        reader = Reader(maker.outputs["made"], str(self.obstacle))
        pipeline = Pipeline(
            pipeline_name=name,
            pipeline_root=str(self.workdir.artifacts),
            components=[maker, reader],
            enable_cache=True,
            metadata_connection_config=sqlite_metadata_connection_config(
                str(self.workdir.metadata)
            ),
        )
        tell = progress or (lambda node, event: self.told.append((node, event)))
        run_pipeline(pipeline, self.workdir, NOTES, from_node, to_node, tell)

    def record(self) -> Any:
        return read_run(open_store(self.workdir.metadata))

    def logs(self) -> dict[str, str]:
        directory = Path(str(self.record().notes["log_dir"]))
        return {path.stem: path.read_text() for path in directory.glob("*.log")}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


# --- what is recorded -------------------------------------------------------------------------


def test_a_run_is_noted_on_its_context(bench: Bench) -> None:
    bench.run()
    run = bench.record()
    assert (run.state, run.pipeline, run.error) == ("COMPLETE", "small.shop", "")
    assert {key: run.notes[key] for key in NOTES} == NOTES
    assert json.loads(run.notes["host_pid"]) == {"host": socket.gethostname(), "pid": os.getpid()}
    log_dir = Path(run.notes["log_dir"])
    assert log_dir.is_absolute()
    assert log_dir == bench.workdir.root / "logs" / run.id.replace(":", "-")
    assert "error" not in run.notes
    assert set(json.loads(run.notes["nodes"])) == {"Maker", "Reader"}
    for node in run.nodes.values():
        assert node.state == "COMPLETE"
        assert 10 * MEGABYTE < node.peak_bytes < 100_000 * MEGABYTE
        assert node.log == log_dir / f"{node.node}.log"
    assert bench.told == [
        ("Maker", "starts"),
        ("Maker", "executed"),
        ("Reader", "starts"),
        ("Reader", "executed"),
    ]


def test_the_peak_of_a_node_is_its_own(bench: Bench) -> None:
    bench.run(megabytes=300)
    nodes = bench.record().nodes
    assert nodes["Maker"].peak_bytes - nodes["Reader"].peak_bytes > 250 * MEGABYTE


@pytest.mark.parametrize("propagates", [True, False])
def test_what_a_node_logs_is_in_its_file(
    bench: Bench, propagates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("csmf"), "propagate", propagates)
    monkeypatch.setattr(logging.getLogger("csmf"), "level", logging.INFO)
    bench.run()
    logs = bench.logs()
    assert set(logs) == {"Maker", "Reader"}
    assert logs["Maker"].count("a library says hello") == 1
    assert logs["Maker"].count("we say hello") == 1
    assert "Running launcher for" in logs["Maker"], "absl's"
    assert "too much detail" not in logs["Maker"]
    assert logs["Reader"].count("INFO some.library: reading") == 1
    assert "hello" not in logs["Reader"].split("reading")[-1]


def test_the_cache_still_hits_and_a_cached_node_leaves_no_log(bench: Bench) -> None:
    bench.run()
    bench.told.clear()
    bench.run()
    run = bench.record()
    assert [node.state for node in run.nodes.values()] == ["CACHED", "CACHED"]
    assert bench.logs() == {}
    assert json.loads(run.notes["nodes"]) == {}
    assert bench.told[1::2] == [("Maker", "cached"), ("Reader", "cached")]
    bench.run(text="something else")
    assert set(bench.logs()) == {"Maker", "Reader"}
    assert len(list_runs(open_store(bench.workdir.metadata))) == 3


def test_noting_a_run_leaves_the_times_of_its_executions_alone(bench: Bench) -> None:
    moments = []

    def progress(node: str, event: str) -> None:
        if (node, event) == ("Reader", "executed"):
            store = open_store(bench.workdir.metadata)
            moments.extend(e.last_update_time_since_epoch for e in store.get_executions())

    bench.run(progress=progress)
    store = open_store(bench.workdir.metadata)
    assert [e.last_update_time_since_epoch for e in store.get_executions()] == moments


def test_another_process_sees_the_run_while_it_is_under_way(bench: Bench) -> None:
    seen = []

    def progress(node: str, event: str) -> None:
        if event == "starts":
            command = [sys.executable, "-c", READ_FROM_OUTSIDE, str(bench.workdir.metadata)]
            seen.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    bench.run(progress=progress)
    assert seen == ["RUNNING small\n", "RUNNING small Maker=COMPLETE\n"]


# --- failures -----------------------------------------------------------------------------------


def test_a_node_that_fails_is_noted_with_its_traceback(bench: Bench) -> None:
    bench.obstacle.touch()
    with pytest.raises(OSError, match="the obstacle is there"):
        bench.run()
    run = bench.record()
    assert run.state == "FAILED"
    assert json.loads(run.notes["error"]) == {
        "node": "Reader",
        "type": "OSError",
        "message": "the obstacle is there\nin two lines",
    }
    assert {name: node.state for name, node in run.nodes.items()} == {
        "Maker": "COMPLETE",
        "Reader": "FAILED",
    }
    assert all(node.peak_bytes > 0 for node in run.nodes.values())
    log = bench.logs()["Reader"]
    assert "Traceback (most recent call last):" in log
    assert log.rstrip().endswith("OSError: the obstacle is there\nin two lines")
    assert 'raise OSError("the obstacle is there' in log
    assert "Traceback" not in bench.logs()["Maker"]
    assert bench.told == [("Maker", "starts"), ("Maker", "executed"), ("Reader", "starts")]
    # The next run goes on from there.
    bench.obstacle.unlink()
    bench.run()
    assert [node.state for node in bench.record().nodes.values()] == ["CACHED", "COMPLETE"]


def test_a_run_that_a_person_interrupts_has_not_failed(bench: Bench) -> None:
    def progress(node: str, event: str) -> None:
        if (node, event) == ("Maker", "executed"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.run(progress=progress)
    run = bench.record()
    assert "error" not in run.notes
    assert set(json.loads(run.notes["nodes"])) == {"Maker"}


@pytest.mark.slow
def test_an_error_that_cannot_be_noted_is_still_the_one_that_is_told(bench: Bench) -> None:
    bench.obstacle.touch()

    def progress(node: str, event: str) -> None:
        if (node, event) == ("Reader", "starts"):
            store = open_store(bench.workdir.metadata)
            assert store.get_contexts()
            logs = Path(str(bench.record().notes["log_dir"]))
            assert logs.is_dir()
            # From here on nothing can be written: neither by TFX nor by us.
            bench.workdir.metadata.unlink()
            bench.workdir.metadata.mkdir()

    with pytest.raises(Exception) as error:  # noqa: PT011 - TFX's own, of its publishing
        bench.run(progress=progress)
    assert any("could not be noted in ML Metadata" in note for note in error.value.__notes__)


# --- the terminal -------------------------------------------------------------------------------


def test_the_terminal_stays_as_quiet_as_it_was(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    level, handlers, terminal = root.level, list(root.handlers), io.StringIO()
    handler = logging.StreamHandler(terminal)
    handler.setLevel(logging.ERROR)  # as console.set_up_logging does
    monkeypatch.setattr(root, "handlers", [handler])
    root.setLevel(logging.ERROR)
    try:
        bench.run()
        assert terminal.getvalue() == ""
        assert root.level == logging.ERROR
        assert root.handlers == [handler]
        logging.getLogger("some.library").error("afterwards")
        assert terminal.getvalue() == "afterwards\n"
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


# --- a part of the pipeline ---------------------------------------------------------------------


def test_a_part_of_the_pipeline_takes_the_rest_from_the_run_before(bench: Bench) -> None:
    bench.run(to_node="Maker")
    assert list(bench.record().nodes) == ["Maker"]
    bench.run(from_node="Reader")
    run = bench.record()
    assert run.nodes["Reader"].state == "COMPLETE"
    assert set(bench.logs()) == {"Reader"}
    (made,) = run.nodes["Reader"].inputs["made"]
    assert (Path(made.uri) / "text").read_text() == "hello"


def test_a_run_that_has_no_outputs_is_not_what_a_part_begins_with(bench: Bench) -> None:
    bench.run(to_node="Maker", text="one")
    bench.run(to_node="Maker", text="two")
    with pytest.raises(ValueError, match="negative count"):
        bench.run(megabytes=-1)
    bench.run(from_node="Reader")
    (made,) = bench.record().nodes["Reader"].inputs["made"]
    assert (Path(made.uri) / "text").read_text() == "two"


def test_a_part_begins_with_a_run_of_its_own_pipeline(bench: Bench) -> None:
    bench.run(to_node="Maker", text="own")
    bench.run(to_node="Maker", text="another's", name="other.shop")
    bench.run(from_node="Reader")
    (made,) = bench.record().nodes["Reader"].inputs["made"]
    assert (Path(made.uri) / "text").read_text() == "own"


def test_a_part_begins_with_the_newest_run_that_had_the_present_settings(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("csmf"), "propagate", True)
    for text in ("one", "two", "three"):
        bench.run(to_node="Maker", text=text)
    bench.run(from_node="Reader", text="two")
    (made,) = bench.record().nodes["Reader"].inputs["made"]
    assert (Path(made.uri) / "text").read_text() == "two"
    assert "have changed" not in caplog.text


def test_a_part_that_takes_what_is_made_differently_now_says_so(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("csmf"), "propagate", True)
    bench.run(to_node="Maker", text="old")
    taken = bench.record().id
    bench.run(from_node="Reader", text="new")
    (made,) = bench.record().nodes["Reader"].inputs["made"]
    assert (Path(made.uri) / "text").read_text() == "old"
    (warning,) = [line for line in caplog.messages if "have changed" in line]
    assert f"--from-node Reader takes what run {taken} has made" in warning
    assert "Maker: text. To use what is set now, begin with Maker." in warning


def test_a_part_without_a_run_before_is_refused(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="Run without --from-node first"):
        bench.run(from_node="Reader")
    assert bench.record().state == "FAILED"


def test_an_unknown_node_is_refused_and_nothing_is_noted(bench: Bench) -> None:
    with pytest.raises(ConfigError, match=r"no node 'Raeder'\. Did you mean 'Reader'"):
        bench.run(from_node="Raeder")
    assert not bench.workdir.metadata.exists()


# --- one run at a time --------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from pipeline.local.lock import exclusive_run
with exclusive_run(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
CONFIG = PipelineConfig.parse(
    {
        "name": "shop",
        "objectives": [{"name": "exposure"}],
        "data": {
            "interactions": [
                {"path": "/nowhere.csv", "columns": {"timestamp": "t"}, "level": "exposure"}
            ]
        },
    }
)


def test_a_second_run_in_a_directory_is_refused_until_the_first_is_gone(bench: Bench) -> None:
    def run() -> None:
        run_locally(CONFIG, bench.workdir, None, None, True, lambda node, event: None)

    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(bench.workdir.root)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for _ in range(2):
            with pytest.raises(ConfigError, match=rf"under way in .* \(process {holder.pid}\)"):
                run()
        assert not bench.workdir.metadata.exists(), "nothing has begun"
    finally:
        holder.kill()  # without a chance to clean up
        holder.wait()
    for _ in range(2):
        with pytest.raises(Exception, match=r"nowhere\.csv"):  # it gets as far as the data
            run()
