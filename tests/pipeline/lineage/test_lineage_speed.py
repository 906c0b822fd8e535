"""A store with 200 runs, and the command in a process of its own: imports count."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipeline.metadata.recorder import NODES, Recorder, Recording

RUNS = 200
ROOT = Path(__file__).resolve().parents[3]
SECONDS = 1.0

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store() -> Iterator[Path]:
    """SYNTHETIC: new logs with every fourth run, the others take more and more from the cache."""
    memory = Path("/dev/shm")  # some thousand transactions, each of which a disk has to confirm
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as directory:
        recorder = Recorder(Path(directory), directories=False)
        for number in range(RUNS):
            logs = number // 4
            recorder.record(
                Recording(
                    run=f"run-{number:03d}",
                    version=number + 1,
                    model_id=f"{number:016x}",
                    files={f"/logs/{logs}.csv": ("interactions", 100 + logs, f"{logs:064x}")},
                    cached=NODES[: 5 * (number % 4 > 0) + number % 4],
                )
            )
        assert len(recorder.store.get_executions()) == RUNS * len(NODES) == 200 * 14
        yield recorder.path


def timed(command: str, *arguments: str) -> tuple[float, str]:
    """Processor seconds of a fresh process, which is its time on an idle machine; best of three."""
    module = {"lineage": "pipeline.lineage.command", "runs": "pipeline.runs_command"}[command]
    program = f"from {module} import {command}; {command}()"
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            check=True,
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=60,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(seconds), done.stdout


@pytest.mark.parametrize("kind", ["tree", "json", "dot", "html"])
def test_one_version(store: Path, kind: str) -> None:
    arguments = ["--metadata", str(store), "--version", "150", "--format", kind]
    seconds, said = timed("lineage", *arguments)
    assert seconds < SECONDS, f"{seconds:.2f} s"
    assert "0000000000000095" in said  # 149, its model id


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ([], '"version": 200'),
        (["--made-from", "/logs/37.csv"], '"version": 150'),
        (["--diff", "150", "151"], '"new": 151'),
    ],
)
def test_other_questions(store: Path, question: list[str], said: str) -> None:
    seconds, text = timed("lineage", "--metadata", str(store), "--format", "json", *question)
    assert seconds < 2 * SECONDS, f"{seconds:.2f} s"
    assert said in text


def test_made_from_finds_exactly_its_versions(store: Path) -> None:
    _, text = timed(
        "lineage", "--metadata", str(store), "--format", "json", "--made-from", "/logs/37.csv"
    )
    found = json.loads(text)["uses"]
    assert [use["push"]["version"] for use in found] == [149, 150, 151, 152]


def test_runs(store: Path) -> None:
    seconds, text = timed("runs", "--metadata", str(store), "--format", "json")
    assert seconds < SECONDS, f"{seconds:.2f} s"
    assert [run["run"] for run in json.loads(text)][:2] == ["run-199", "run-198"]


def test_nothing_heavy_is_imported(store: Path) -> None:
    program = (
        "import sys; from pipeline.lineage.command import lineage; from pipeline.runs_command "
        "import runs\n"
        "for c, a in ((lineage, ['--version', '3']), (runs, [])):\n"
        f"    c(['--metadata', {str(store)!r}, *a], standalone_mode=False)\n"
        "heavy = {'tensorflow', 'tfx', 'apache_beam', 'matplotlib', 'aiohttp'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run(
        [sys.executable, "-c", program], check=True, cwd=ROOT, timeout=60, capture_output=True
    )
