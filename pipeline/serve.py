"""Serving of a run's pushed directory, from the command line."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from schemas import names
from schemas.settings import ConfigError
from schemas.versions import versions_in

_ADDRESS_FILE = "server.address"
_START_TIMEOUT_SECONDS = 120.0


def served_models(workdir: Path) -> dict[str, Path]:
    """Name -> base path of the models pushed into the workdir, the one with ScaNN first.

    Raises:
      ConfigError: nothing was pushed there yet.
    """
    serving = _serving_dir(workdir)
    bases = sorted(path for path in serving.glob("*") if versions_in(path))
    models = {path.name: path for path in bases if not path.name.endswith(names.STOCK_SUFFIX)}
    if not models:
        raise ConfigError(
            f"no pushed model under {serving}. Run: csmf run --config .. --workdir {workdir}"
        )
    return models | {path.name: path for path in bases}


def _serving_dir(workdir: Path) -> Path:
    """Where the last run pushed to; the configuration may name another place than the workdir."""
    try:
        summary = json.loads((workdir / "summary.json").read_text(encoding="utf-8"))
        return Path(summary["serving_dir"])
    except (FileNotFoundError, KeyError):
        return workdir / "serving"


def serve_workdir(workdir: Path, host: str, port: int, poll_seconds: float) -> None:
    """Serves until interrupted; the workdir then holds the server's address for other commands."""
    models = {name: str(path.absolute()) for name, path in served_models(workdir).items()}
    from serving.server import ServerOptions, run  # TensorFlow: ten seconds

    address_file = workdir / _ADDRESS_FILE
    try:
        run(
            ServerOptions(models=models, host=host, port=port, poll_seconds=poll_seconds),
            address_file,
        )
    finally:
        address_file.unlink(missing_ok=True)


@contextlib.contextmanager
def any_server(workdir: Path, model: str) -> Iterator[str]:
    """Address of the workdir's running server, or of one that is started for the time being."""
    address_file = workdir / _ADDRESS_FILE
    if address_file.exists():
        address = f"127.0.0.1:{address_file.read_text(encoding='utf-8').strip()}"
        if _answers(address, model):
            yield address
            return
    with _temporary_server(workdir) as address:
        yield address


def _answers(address: str, model: str) -> bool:
    from serving.client import RecommenderClient, RecommenderError

    with RecommenderClient(address, model, timeout_seconds=2.0) as client:
        try:
            return any(state.state == "AVAILABLE" for state in client.status())
        except RecommenderError:
            return False


@contextlib.contextmanager
def _temporary_server(workdir: Path) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as scratch:
        port_file = Path(scratch) / "port"
        log_file = Path(scratch) / "log"
        arguments = ["--port", "0", "--port-file", str(port_file)]
        for name, base in served_models(workdir).items():
            arguments += ["--model", f"{name}={base.absolute()}"]
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "serving.server", *arguments], stdout=log, stderr=log
            )
        try:
            deadline = time.monotonic() + _START_TIMEOUT_SECONDS
            while not port_file.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise ConfigError(
                        "the server did not start; the end of its log:\n"
                        + log_file.read_text(errors="replace")[-2000:]
                    )
                time.sleep(0.05)
            yield f"127.0.0.1:{port_file.read_text(encoding='utf-8').strip()}"
        finally:
            process.terminate()
            process.wait(timeout=30)
