"""Workers in processes of their own: those of the DirectRunner, and those of a real Flink."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam
import numpy as np
import psutil
import pytest
import yaml
from apache_beam.options.pipeline_options import FlinkRunnerOptions

from tests.models.conftest import exported, shop
from tests.pipeline.batch_recommend.conftest import pushed

__all__ = ["exported", "pushed", "shop"]  # fixtures

FLINK_VERSION = FlinkRunnerOptions.PUBLISHED_FLINK_VERSIONS[-1]
JAR = f"beam-runners-flink-{FLINK_VERSION}-job-server-{apache_beam.__version__}.jar"
ARTIFACT = f"org.apache.beam:{JAR.removesuffix('.jar').rpartition('-')[0]}"
JAR_VARIABLE = "CSMF_FLINK_JOB_SERVER_JAR"  # a jar that is there already
WORKERS = 2
DOWNLOAD_SECONDS = 300.0
START_SECONDS = 60.0

# Flink reads private fields of these, which Java 17 keeps shut.
JAVA_OPTIONS = [
    "-Xmx3g",
    *(
        f"--add-opens=java.base/{package}=ALL-UNNAMED"
        for package in (
            "java.lang",
            "java.lang.invoke",
            "java.lang.reflect",
            "java.io",
            "java.net",
            "java.nio",
            "java.text",
            "java.time",
            "java.util",
            "java.util.concurrent",
            "java.util.concurrent.atomic",
            "sun.nio.ch",
        )
    ),
]
# Every shuffle of a batch job holds buffers and sorts; the defaults of a Flink that runs inside
# one process are too small for StatisticsGen.
FLINK_CONFIGURATION = f"""\
taskmanager.numberOfTaskSlots: {WORKERS}
taskmanager.memory.network.min: 512mb
taskmanager.memory.network.max: 512mb
taskmanager.memory.managed.size: 1gb
"""


@dataclass(frozen=True)
class Cluster:
    """A job server, and the processes that its Python workers run in.

    Attributes:
      options: Beam options of jobs.
      pool: starts and stops worker processes, as a sidecar of Flink's task managers does.
      log: of the job server.
    """

    options: tuple[str, ...]
    pool: psutil.Process
    log: Path

    def workers(self) -> list[psutil.Process]:
        """The worker processes that are alive."""
        found = []
        for process in self.pool.children(recursive=True):
            try:
                if process.status() != psutil.STATUS_ZOMBIE and "SdkHarness" in " ".join(
                    process.cmdline()
                ):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found


@pytest.fixture(scope="session")
def job_server_jar() -> Path:
    """The jar with Flink and Beam's job server; skips with the reason where it cannot be had."""
    if shutil.which("java") is None:
        pytest.skip("Flink needs Java: there is no `java` on the PATH")
    if given := os.environ.get(JAR_VARIABLE):
        return Path(given)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "csmf"
    if (cache / JAR).exists():
        return cache / JAR
    if shutil.which("mvn") is None:
        pytest.skip(f"no `mvn` to fetch {ARTIFACT} with, and {JAR_VARIABLE} names no jar")
    scratch = cache / f"{JAR}.{os.getpid()}"
    command = [
        "mvn", "-q", "-B", "-U", "-Dstyle.color=never", "dependency:copy",
        f"-Dartifact={ARTIFACT}:{apache_beam.__version__}", f"-DoutputDirectory={scratch}",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False
        )
        if done.returncode != 0 or not (scratch / JAR).exists():
            error = (done.stdout + done.stderr).strip().split("\n")[0]
            pytest.skip(
                f"Maven Central does not give {ARTIFACT}:{apache_beam.__version__}, and "
                f"{JAR_VARIABLE} names no jar: {error}"
            )
        os.replace(scratch / JAR, cache / JAR)  # another session sees all of it or nothing
    except subprocess.TimeoutExpired:
        pytest.skip(f"Maven Central did not give {ARTIFACT} within {DOWNLOAD_SECONDS:.0f} s")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return cache / JAR


@pytest.fixture(scope="session")
def worker_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, psutil.Process]]:
    """(address, process) of Beam's worker pool: every worker is a process of its own."""
    port = free_port()
    log = tmp_path_factory.mktemp("pool") / "log"
    # It starts its workers as `python`.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    module = "apache_beam.runners.worker.worker_pool_main"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", module, f"--service_port={port}"],
            env=os.environ | {"PATH": path},
            stdout=file,
            stderr=file,
        )
    with ending(process):
        wait_for_port(port, process, log)
        yield f"localhost:{port}", psutil.Process(process.pid)


@pytest.fixture(scope="session")
def flink(
    job_server_jar: Path,
    worker_pool: tuple[str, psutil.Process],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Cluster]:
    """A real Flink with two task slots, and a Python worker process for each."""
    directory = tmp_path_factory.mktemp("flink")
    (directory / "flink-conf.yaml").write_text(FLINK_CONFIGURATION)
    log = directory / "log"
    ports = {name: free_port() for name in ("job", "artifact", "expansion")}
    command = [
        "java", *JAVA_OPTIONS, "-jar", str(job_server_jar),
        "--flink-master=[local]", f"--flink-conf-dir={directory}",
        "--job-host=localhost", f"--artifacts-dir={directory / 'artifacts'}",
        *(f"--{name}-port={port}" for name, port in ports.items()),
    ]  # fmt: skip
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    with ending(process):
        wait_for_port(ports["job"], process, log)
        options = (
            *job_options(ports["job"], worker_pool[0]),
            # The job is restarted from its beginning when a task is lost.
            "--number_of_execution_retries=3",
            "--execution_retry_delay=1000",
        )
        yield Cluster(options, worker_pool[1], log)


@pytest.fixture(scope="session")
def beam_jobs(
    worker_pool: tuple[str, psutil.Process], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """Beam's own job server in Python, which needs no Java and tries nothing a second time."""
    log = tmp_path_factory.mktemp("jobs") / "log"
    port = free_port()
    module = "apache_beam.runners.portability.local_job_service_main"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", module, f"--port={port}"], stdout=file, stderr=file
        )
    with ending(process):
        wait_for_port(port, process, log)
        yield Cluster(job_options(port, worker_pool[0]), worker_pool[1], log)


def job_options(port: int, pool: str) -> tuple[str, ...]:
    return (
        f"--job_endpoint=localhost:{port}",
        "--environment_type=EXTERNAL",
        f"--environment_config={pool}",
        f"--parallelism={WORKERS}",
        f"--sdk_worker_parallelism={WORKERS}",
        # The workers have everything installed: TFX need not pack its sources for them.
        "--sdk_container_image=none",
    )


class ending:  # noqa: N801
    """Ends a process with the block."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def __enter__(self) -> None:
        """Nothing to do: it runs."""

    def __exit__(self, *exc_info: object) -> None:
        children = psutil.Process(self._process.pid).children(recursive=True)
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for child in children:
            if child.is_running():  # the same process, not another one with its number
                child.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail(f"{process.args} does not listen:\n{log.read_text(errors='replace')[-4000:]}")


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

    def start(runner: str | None = None, options: tuple[str, ...] = ()) -> Preparation:
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
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file)
        started.append(process)
        return Preparation(process, directory / "work", log)

    yield start
    for process in started:
        if process.poll() is None:
            with ending(process):
                pass
