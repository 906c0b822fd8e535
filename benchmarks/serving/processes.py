"""The processes of the benchmark: servers that are gone when a block ends, and the generator."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

from benchmarks.serving.load import Plan

HOST = "127.0.0.1"
METRICS_PATH = "/monitoring/prometheus/metrics"

_ROOT = Path(__file__).parents[2]
_START_SECONDS = 300.0
_STOP_SECONDS = 20.0
_MAX_BATCH_SIZE = 64


class BenchmarkError(RuntimeError):
    """A process of the benchmark failed."""


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
      process: the one that was started; others may be its children.
      target: "host:port" of gRPC, or of HTTP for a peer.
      rest_target: "host:port" of our REST interface.
    """

    process: psutil.Process
    target: str
    rest_target: str = ""

    def rss(self) -> int:
        """Resident bytes of the process and its children."""
        total = 0
        for process in (self.process, *self.process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total

    def cpu_seconds(self) -> float:
        """Processor time of the process and its children until now."""
        total = 0.0
        for process in (self.process, *self.process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def metrics(self) -> dict[str, float]:
        """Sums and counts of the Prometheus page, by metric name, all labels added up."""
        with urllib.request.urlopen(f"http://{self.rest_target}{METRICS_PATH}") as page:
            lines = page.read().decode().splitlines()
        values: dict[str, float] = {}
        for line in lines:
            name = line.partition("{")[0]
            if name.endswith(("_sum", "_count")):
                values[name] = values.get(name, 0.0) + float(line.rpartition(" ")[2])
        return values


@contextlib.contextmanager
def our_server(
    models: Mapping[str, Path], workers: int, directory: Path, poll_seconds: float = 0
) -> Iterator[Server]:
    """Serves models as `csmf serve` does, with batching, REST and metrics.

    Args:
      models: served name -> base path.
      workers: serving processes.
      directory: for its configuration and log.
      poll_seconds: between two looks at the base paths; 0 = one look.
    """
    directory.mkdir(parents=True, exist_ok=True)
    batching = directory / "batching.txt"
    # Few large batches: a run has a fixed cost that its rows share.
    threads = max((os.cpu_count() or 1) // workers, 1)
    batching.write_text(
        f"max_batch_size {{ value: {_MAX_BATCH_SIZE} }} num_batch_threads {{ value: {threads} }}\n"
    )
    monitoring = directory / "monitoring.txt"
    monitoring.write_text(f'prometheus_config {{ enable: true path: "{METRICS_PATH}" }}\n')
    rest_port = free_port()
    port_file = directory / "port"
    command = [sys.executable, "-m", "serving", "--host", HOST, "--port=0"]
    command += [f"--port_file={port_file}", f"--rest_api_port={rest_port}"]
    command += [f"--workers={workers}", f"--file_system_poll_wait_seconds={poll_seconds}"]
    command += ["--enable_batching", f"--batching_parameters_file={batching}"]
    command += ["--tensorflow_intra_op_parallelism=1"]
    command += [f"--monitoring_config_file={monitoring}"]
    command += [f"--model={name}={base}" for name, base in models.items()]
    with _process(command, directory / "server.log") as process:
        port = _wait_for_file(process, port_file, directory / "server.log")
        yield Server(psutil.Process(process.pid), f"{HOST}:{port}", f"{HOST}:{rest_port}")


@contextlib.contextmanager
def echo_server(size: int, workers: int, directory: Path) -> Iterator[Server]:
    """The service that only answers bytes: `size` of them."""
    directory.mkdir(parents=True, exist_ok=True)
    port_file = directory / "port"
    command = [sys.executable, "-m", "benchmarks.serving.echo", f"--size={size}"]
    command += [f"--workers={workers}", f"--port-file={port_file}"]
    with _process(command, directory / "server.log") as process:
        port = _wait_for_file(process, port_file, directory / "server.log")
        yield Server(psutil.Process(process.pid), f"{HOST}:{port}")


@contextlib.contextmanager
def http_server(
    command: Sequence[str | os.PathLike[str]], port: int, log: Path, cwd: Path
) -> Iterator[Server]:
    """A server that opens `port` by itself."""
    with _process(command, log, cwd) as process:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection((HOST, port)).close()
                break
            _check(process, log, deadline)
            time.sleep(0.1)
        yield Server(psutil.Process(process.pid), f"{HOST}:{port}")


def generate(plan: Plan) -> dict[str, Any]:
    """Carries out a plan in a process of its own.

    Returns:
      what `load` measured.

    Raises:
      BenchmarkError: it failed, or an answer was wrong.
    """
    with start_generating(plan) as finish:
        result = finish()
    if result["wrong"]:
        raise BenchmarkError(f"wrong answers from {plan.target}: {result['wrong']}")
    return result


class _Finish(Protocol):
    def __call__(self, at_once: bool = False) -> dict[str, Any]: ...


@contextlib.contextmanager
def start_generating(plan: Plan) -> Iterator[_Finish]:
    """Starts a plan; what it yields waits for the end and returns what `load` measured.

    With `at_once` the generator is told to end now, before the plan's time is up.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.serving.load"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=_ROOT,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(dataclasses.asdict(plan)))
    process.stdin.close()
    process.stdin = None

    def finish(at_once: bool = False) -> dict[str, Any]:
        if at_once:
            process.terminate()
        output, errors = process.communicate()
        if process.returncode:
            raise BenchmarkError(f"the load generator failed:\n{errors[-4000:]}")
        result: dict[str, Any] = json.loads(output)
        return result

    try:
        yield finish
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def _process(
    command: Sequence[str | os.PathLike[str]], log: Path, cwd: Path = _ROOT
) -> Iterator[subprocess.Popen[bytes]]:
    for leftover in log.parent.glob("port"):
        leftover.unlink()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            start_new_session=True,  # so that its children can be ended with it
        )
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for_file(process: subprocess.Popen[bytes], path: Path, log: Path) -> int:
    deadline = time.monotonic() + _START_SECONDS
    while not path.exists() or not path.read_text():
        _check(process, log, deadline)
        time.sleep(0.05)
    return int(path.read_text())


def _check(process: subprocess.Popen[bytes], log: Path, deadline: float) -> None:
    if process.poll() is not None or time.monotonic() > deadline:
        raise BenchmarkError(
            f"{process.args!r} did not start:\n{log.read_text(errors='replace')[-4000:]}"
        )
