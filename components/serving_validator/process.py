"""A server in a process of its own that is gone when the block ends, whatever happens in it."""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

_POLL_SECONDS = 0.05
_STOP_SECONDS = 10.0
_LOG_TAIL_LINES = 40
_HOST = "127.0.0.1"


class ServerFailedError(RuntimeError):
    """The server did not start, or stopped by itself."""


class ServerProcess:
    """A running server process.

    Attributes:
      address: "host:port" it listens on.
    """

    def __init__(self, process: subprocess.Popen[bytes], address: str) -> None:
        self.address = address
        self._process = process

    def check_alive(self) -> None:
        """Raises ServerFailedError if the process has ended."""
        code = self._process.poll()
        if code is not None:
            raise ServerFailedError(f"the server stopped by itself with exit code {code}")


@contextlib.contextmanager
def running_server(
    models: Mapping[str, Path], log_file: Path, timeout_seconds: float
) -> Iterator[ServerProcess]:
    """Starts the server, waits until it answers, and stops it at the end.

    Args:
      models: served name -> base path with numbered versions.
      log_file: gets the server's output.
      timeout_seconds: for start-up.

    Raises:
      ServerFailedError: it ended, or did not open its port in time.
    """
    port_file = log_file.with_suffix(".port")
    command = [sys.executable, "-m", "serving", "--host", _HOST, "--port", "0"]
    command += ["--port-file", str(port_file)]
    # The candidate is complete: look once, and take the first failure for an answer.
    command += ["--file-system-poll-wait-seconds", "0", "--max-num-load-retries", "0"]
    for name, base in models.items():
        command += ["--model", f"{name}={base}"]
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=_import_root(),
        )
        try:
            port = _wait_for_port(process, port_file, timeout_seconds)
            yield ServerProcess(process, f"{_HOST}:{port}")
        finally:
            _stop(process)


def log_tail(log_file: Path) -> str:
    """Returns the last lines of the server's output."""
    if not log_file.exists():
        return ""
    lines = log_file.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-_LOG_TAIL_LINES:])


def _import_root() -> Path:
    """Directory from which `python -m serving` works, installed or not."""
    found = importlib.util.find_spec("serving")
    if found is None or found.origin is None:
        raise ServerFailedError("the package `serving` is not installed; run `make test` once")
    return Path(found.origin).resolve().parents[1]


def _wait_for_port(
    process: subprocess.Popen[bytes], port_file: Path, timeout_seconds: float
) -> int:
    deadline = time.monotonic() + timeout_seconds
    while not port_file.exists():
        code = process.poll()
        if code is not None:
            raise ServerFailedError(f"the server ended with exit code {code} before it was ready")
        if time.monotonic() >= deadline:
            raise ServerFailedError(f"the server was not ready within {timeout_seconds:.0f} s")
        time.sleep(_POLL_SECONDS)
    return int(port_file.read_text())


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
