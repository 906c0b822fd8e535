"""A standalone Flink: a JobManager and TaskManagers, every one a process of its own."""

from __future__ import annotations

import http
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.distributed.job_server import JobServer
from tests.distributed.processes import free_port, running, wait_for_port

REGISTER_SECONDS = 60.0
REST_SECONDS = 10.0

_MASTER = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
_TASK_MANAGER = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
_BEAM = "org.apache.beam.runners.flink.FlinkJobServerDriver"
# Flink reads private fields of these, which Java 17 keeps shut.
_JAVA_OPTIONS = [
    "-Xmx768m",
    # Beside the heap; of a TaskManager it holds the network buffers and those of gRPC.
    "-XX:MaxDirectMemorySize=1500m",
    "-Djava.util.logging.SimpleFormatter.format=%1$tT %4$s %3$s: %5$s%6$s%n",
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
# A TaskManager has no defaults for these sizes; Flink's shell scripts would compute them.
# Beam keeps Python workers from one stage to the next only where Flink's own class loader has
# loaded it. A restart must wait until those that are kept, and maybe dead, are given up.
# Beam's --number_of_execution_retries is for streaming jobs only; a batch job goes by the restart
# strategy of the cluster. `fixed-delay` would count every task of a lost TaskManager as an attempt.
_CONFIGURATION = """\
jobmanager.rpc.address: localhost
jobmanager.rpc.port: {rpc}
rest.address: localhost
rest.port: {rest}
io.tmp.dirs: {directory}
jobmanager.bind-host: localhost
rest.bind-address: localhost
taskmanager.host: localhost
taskmanager.bind-host: localhost
taskmanager.numberOfTaskSlots: 1
taskmanager.cpu.cores: 1
taskmanager.memory.framework.heap.size: 128mb
taskmanager.memory.framework.off-heap.size: 128mb
taskmanager.memory.task.heap.size: 512mb
taskmanager.memory.task.off-heap.size: 256mb
taskmanager.memory.network.min: 512mb
taskmanager.memory.network.max: 512mb
taskmanager.memory.managed.size: 512mb
taskmanager.memory.jvm-metaspace.size: 256mb
taskmanager.memory.jvm-overhead.min: 256mb
taskmanager.memory.jvm-overhead.max: 256mb
classloader.resolve-order: parent-first
heartbeat.interval: 2000
restart-strategy.type: exponential-delay
restart-strategy.exponential-delay.initial-backoff: 10 s
restart-strategy.exponential-delay.max-backoff: 20 s
restart-strategy.exponential-delay.attempts-before-reset-backoff: 5
"""


@dataclass(frozen=True)
class Job:
    """What the JobManager says about a job.

    Attributes:
      number: its id.
      state: RUNNING, FINISHED, ..
      finished: tasks that are done.
      tasks: all of them.
    """

    number: str
    state: str
    finished: int
    tasks: int


class Flink:
    """A running cluster."""

    def __init__(self, server: JobServer, directory: Path, stack: ExitStack) -> None:
        self.task_managers: dict[str, psutil.Process] = {}
        self._java = ["java", *_JAVA_OPTIONS, "-cp", server.classpath]
        self._directory = directory
        self._stack = stack
        self._rest = free_port()
        (directory / "flink-conf.yaml").write_text(
            _CONFIGURATION.format(rpc=free_port(), rest=self._rest, directory=directory)
        )
        log = directory / "jobmanager.log"
        process = stack.enter_context(
            running([*self._java, _MASTER, f"--configDir={directory}"], log)
        )
        wait_for_port(self._rest, process, log)

    def start_job_server(self) -> int:
        """Starts Beam's job server; returns its port."""
        ports = {name: free_port() for name in ("job", "artifact", "expansion")}
        command = [
            *self._java, _BEAM,
            f"--flink-master=localhost:{self._rest}", f"--flink-conf-dir={self._directory}",
            "--job-host=localhost", f"--artifacts-dir={self._directory / 'artifacts'}",
            *(f"--{name}-port={port}" for name, port in ports.items()),
        ]  # fmt: skip
        log = self._directory / "jobserver.log"
        process = self._stack.enter_context(running(command, log))
        wait_for_port(ports["job"], process, log)
        return ports["job"]

    def add_task_manager(self) -> None:
        """Starts one more and waits until the JobManager knows it."""
        name = f"tm-{len(self.task_managers)}"
        log = self._directory / f"{name}.log"
        command = [*self._java, _TASK_MANAGER, f"--configDir={self._directory}"]
        process = self._stack.enter_context(
            running([*command, f"-Dtaskmanager.resource-id={name}"], log)
        )
        self.task_managers[name] = psutil.Process(process.pid)
        deadline = time.monotonic() + REGISTER_SECONDS
        while name not in self.registered():
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"no {name}:\n" + log.read_text(errors="replace")[-4000:])
            time.sleep(0.1)

    def registered(self) -> set[str]:
        """Ids of the TaskManagers that the JobManager knows."""
        try:
            return {found["id"] for found in self._get("taskmanagers")["taskmanagers"]}
        except urllib.error.HTTPError as error:
            if error.code == http.HTTPStatus.SERVICE_UNAVAILABLE:  # it is still starting
                return set()
            raise

    def jobs(self) -> list[Job]:
        """All jobs, the oldest first."""
        return [
            Job(job["jid"], job["state"], job["tasks"]["finished"], job["tasks"]["total"])
            for job in sorted(self._get("jobs/overview")["jobs"], key=lambda job: job["start-time"])
        ]

    def restarted(self, job: Job) -> bool:
        """Whether a part of it was run again."""
        return bool(self._get(f"jobs/{job.number}")["timestamps"]["RESTARTING"])

    def took_part(self, job: Job) -> set[str]:
        """Ids of the TaskManagers that ran a task of it."""
        return {identity for identity, _ in self._tasks(job)}

    def at_work(self, job: Job) -> set[str]:
        """Ids of the TaskManagers that run a task of it now."""
        return {identity for identity, running in self._tasks(job) if running}

    def _tasks(self, job: Job) -> Iterator[tuple[str, int]]:
        """By step and TaskManager, the id of the latter and how many tasks it runs."""
        for vertex in self._get(f"jobs/{job.number}")["vertices"]:
            path = f"jobs/{job.number}/vertices/{vertex['id']}/taskmanagers"
            for found in self._get(path)["taskmanagers"]:
                yield found["taskmanager-id"], found["status-counts"]["RUNNING"]

    def _get(self, path: str) -> Any:
        url = f"http://localhost:{self._rest}/{path}"
        with urllib.request.urlopen(url, timeout=REST_SECONDS) as answer:
            return json.load(answer)


@contextmanager
def flink_cluster(server: JobServer, directory: Path, task_managers: int) -> Iterator[Flink]:
    """A Flink with so many TaskManagers of one slot, which ends with the block."""
    with ExitStack() as stack:
        flink = Flink(server, directory, stack)
        for _ in range(task_managers):
            flink.add_task_manager()
        yield flink
