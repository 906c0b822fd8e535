"""Workers in processes of their own: those of the DirectRunner, and those of a real Flink."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

from tests.distributed.cluster import Flink, flink_cluster
from tests.distributed.job_server import JobServer, NoJobServerError, find_job_server
from tests.distributed.processes import end, free_port, running, start, wait_for_port
from tests.distributed.sdk_worker import write_command
from tests.models.conftest import exported, shop
from tests.pipeline.batch_recommend.conftest import pushed

__all__ = ["exported", "pushed", "shop"]  # fixtures

VERSIONS = pytest.StashKey[str]()
WORKERS = 2
CHANNELS = 3  # of a worker: orders, state, data
JOB_OPTIONS = (
    f"--parallelism={WORKERS}",
    "--sdk_worker_parallelism=1",  # in each TaskManager, which has one slot
    # The workers have everything installed: TFX need not pack its sources for them.
    "--sdk_container_image=none",
)


@dataclass(frozen=True)
class Cluster:
    """A job server, and the processes that start its Python workers.

    Attributes:
      options: Beam options of jobs.
      parents: of the workers.
      channels: connections of a worker that has been given work.
    """

    options: tuple[str, ...]
    parents: Collection[psutil.Process]
    channels: int

    def workers(self) -> list[psutil.Process]:
        """The worker processes that are alive."""
        found = []
        for parent in self.parents:
            with suppress(psutil.NoSuchProcess):
                found += parent.children(recursive=True)
        return [process for process in found if _works(process)]


def _works(process: psutil.Process) -> bool:
    try:
        alive = process.status() != psutil.STATUS_ZOMBIE
        return alive and "sdk_worker" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


@dataclass(frozen=True)
class FlinkCluster(Cluster):
    """A job server that gives its jobs to Flink.

    Attributes:
      flink: JobManager and TaskManagers.
    """

    flink: Flink


@pytest.fixture(scope="session")
def job_server(request: pytest.FixtureRequest) -> JobServer:
    """Flink and Beam's job server for it; skips with the reason where they cannot be had."""
    if shutil.which("java") is None:
        pytest.skip("Flink needs Java: there is no `java` on the PATH")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "csmf"
    try:
        found = find_job_server(cache)
    except NoJobServerError as error:
        pytest.skip(str(error))
    request.config.stash[VERSIONS] = str(found)
    return found


@pytest.fixture(scope="session")
def flink(
    job_server: JobServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FlinkCluster]:
    """A real Flink with two TaskManagers, each of which starts a Python worker process."""
    directory = tmp_path_factory.mktemp("flink")
    # One worker pool (`--environment_type=EXTERNAL`) cannot serve two TaskManagers: both number
    # their workers from 1.
    worker = {"command": str(write_command(directory / "worker"))}
    with flink_cluster(job_server, directory, WORKERS) as cluster:
        options = (
            f"--job_endpoint=localhost:{cluster.start_job_server()}",
            "--environment_type=PROCESS",
            f"--environment_config={json.dumps(worker)}",
            "--environment_cache_millis=5000",  # below the delay of a restart
            *JOB_OPTIONS,
        )
        channels = 1 + CHANNELS  # a log, too
        yield FlinkCluster(options, cluster.task_managers.values(), channels, cluster)


@pytest.fixture(scope="session")
def beam_jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Beam's job server in Python, and its worker pool.

    It needs no Java and tries nothing a second time.
    """
    directory = tmp_path_factory.mktemp("jobs")
    # The pool starts its workers as `python`.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path}
    with ExitStack() as stack:
        processes, ports = [], []
        for module, option in (
            ("apache_beam.runners.worker.worker_pool_main", "service_port"),
            ("apache_beam.runners.portability.local_job_service_main", "port"),
        ):
            port = free_port()
            log = directory / option
            command = [sys.executable, "-m", module, f"--{option}={port}"]
            process = stack.enter_context(running(command, log, environment))
            wait_for_port(port, process, log)
            processes.append(psutil.Process(process.pid))
            ports.append(port)
        options = (
            f"--job_endpoint=localhost:{ports[1]}",
            "--environment_type=EXTERNAL",
            f"--environment_config=localhost:{ports[0]}",
            *JOB_OPTIONS,
        )
        yield Cluster(options, processes[:1], CHANNELS)


# --- the nodes that run on Beam -------------------------------------------------------------------

N_USERS, N_ITEMS, N_EVENTS, N_FILES = 400, 150, 30_000, 4


@pytest.fixture(scope="session")
def data_section(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The `data` section over SYNTHETIC logs in four files, with some rows that are of no use."""
    directory = tmp_path_factory.mktemp("logs")
    rng = np.random.default_rng(3)
    popularity = 1 / np.arange(1, N_ITEMS + 1)
    popularity /= popularity.sum()
    for number in range(N_FILES):
        lines = ["who,what,event,when\n"]
        for _ in range(N_EVENTS // N_FILES):
            user = rng.integers(N_USERS)
            item = rng.choice(N_ITEMS, p=popularity)
            event = ("view", "cart", "purchase", "wish")[rng.choice(4, p=[0.7, 0.2, 0.095, 0.005])]
            lines.append(f"u{user},i{item},{event},{1_700_000_000 + rng.integers(5_000_000)}\n")
        (directory / f"log-{number}.csv").write_text("".join(lines))
    items = "".join(f"i{n},Title {n},g{n % 7}|g{n % 3},{n / 4}\n" for n in range(N_ITEMS))
    (directory / "items.csv").write_text("id,title,genres,price\n" + items)
    users = "".join(f"u{n},{18 + n % 60}\n" for n in range(N_USERS))
    (directory / "users.csv").write_text("id,age\n" + users)
    values = {"view": "exposure", "cart": "click", "purchase": "conversion"}
    return {
        "interactions": [
            {
                "path": str(directory / "log-*.csv"),
                "columns": {"user_id": "who", "item_id": "what", "timestamp": "when"},
                "timestamp_unit": "s",
                "event": {"column": "event", "values": values},
            }
        ],
        "catalogue": {
            "path": str(directory / "items.csv"),
            "columns": {"item_id": "id", "title": "title"},
            "features": [
                {"name": "genres", "column": "genres", "kind": "categorical", "separator": "|"},
                {"name": "price", "column": "price", "kind": "numeric", "min": 0},
            ],
        },
        "users": {
            "path": str(directory / "users.csv"),
            "columns": {"user_id": "id"},
            "features": [{"name": "age", "column": "age", "kind": "numeric", "min": 1}],
        },
        "split": {"kind": "time", "eval_share": 0.2},
    }


# `csmf run --to-node` twice: Transform does not need StatisticsGen.
_PREPARE = """
import sys
from pathlib import Path
from pipeline.config import load_config
from pipeline.dag import Workdir
from pipeline.local.runner import run_locally

config = load_config(Path(sys.argv[1]))
for node in ("StatisticsGen", "Transform"):
    run_locally(config, Workdir(Path(sys.argv[2])), None, node, True, print)
"""


@dataclass(frozen=True)
class Preparation:
    """Everything that runs on Beam, under way."""

    process: subprocess.Popen[bytes]
    workdir: Path
    log: Path

    def output(self, node: str, key: str) -> Path:
        """The only output of a node under this key."""
        (found,) = (self.workdir / "artifacts" / node / key).iterdir()
        return found

    def wait(self, seconds: float) -> None:
        """Waits for the good end."""
        code = self.process.wait(seconds)
        assert code == 0, self.log.read_text(errors="replace")[-6000:]


Prepare = Callable[..., Preparation]


@pytest.fixture(scope="session")
def prepare(
    data_section: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prepare]:
    """prepare(runner, options): starts InteractionGen, StatisticsGen and Transform in Beam."""
    started: list[subprocess.Popen[bytes]] = []

    def prepare_with(runner: str | None = None, options: tuple[str, ...] = ()) -> Preparation:
        directory = tmp_path_factory.mktemp("prepared")
        runner_option = [f"--runner={runner}"] if runner else []
        config = {
            "name": "distributed",
            "objectives": [
                {"name": "exposure", "tau": 0.3},
                {"name": "click"},
                {"name": "conversion"},
            ],
            "data": data_section,
            "beam": {"options": [*runner_option, *options]},
        }
        (directory / "c.yaml").write_text(yaml.safe_dump(config))
        arguments = [str(directory / "c.yaml"), str(directory / "work")]
        command = [sys.executable, "-c", _PREPARE, *arguments]
        log = directory / "log"
        process = start(command, log)
        started.append(process)
        return Preparation(process, directory / "work", log)

    yield prepare_with
    for process in started:
        if process.poll() is None:
            end(process)


# --- what was seen --------------------------------------------------------------------------------


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Prints what Flink the tests have run on, and what they have measured."""
    lines = [config.stash[VERSIONS]] if VERSIONS in config.stash else []
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for key, value in report.user_properties:
                if key == "measured" and report.when == "call":
                    lines.append(f"{report.location[2]}: {report.duration:.0f} s, {value}")
    if lines:
        terminalreporter.write_sep("=", "measured")
        terminalreporter.write_line("\n".join(lines))
