"""A gRPC server process that a command starts for as long as it needs one."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from schemas.files import write_atomically
from schemas.settings import ConfigError
from serving.config import ModelConfig
from serving.config_files import MODELS_FILE, to_text

_START_TIMEOUT_SECONDS = 120.0
_STOP_TIMEOUT_SECONDS = 30.0
_CONFIG_POLL_SECONDS = 0.25
_LOG_CHARACTERS = 2000


class TemporaryServer:
    """Serves models on a free port of this machine. Starts at once, without waiting for it.

    Args:
      models: name -> what to serve of it.

    Raises:
      OSError: the process cannot be started.
    """

    def __init__(self, models: Mapping[str, ModelConfig]) -> None:
        self._scratch = tempfile.TemporaryDirectory()
        self._directory = Path(self._scratch.name)
        self.serve(models)
        arguments = [
            "--host=127.0.0.1",
            "--port=0",
            f"--port_file={self._port_file}",
            f"--model_config_file={self._models_file}",
            f"--model_config_file_poll_wait_seconds={_CONFIG_POLL_SECONDS}",
            "--allow_version_labels_for_unavailable_models",
            "--max_num_load_retries=0",  # somebody is waiting
        ]
        with self._log_file.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "serving", *arguments], stdout=log, stderr=log
            )

    @property
    def _port_file(self) -> Path:
        return self._directory / "port"

    @property
    def _log_file(self) -> Path:
        return self._directory / "log"

    @property
    def _models_file(self) -> Path:
        return self._directory / MODELS_FILE

    @property
    def running(self) -> bool:
        """The process has not ended."""
        return self._process.poll() is None

    @property
    def address(self) -> str | None:
        """host:port, None while it starts."""
        if not self._port_file.exists():
            return None
        return f"127.0.0.1:{self._port_file.read_text(encoding='utf-8').strip()}"

    def log(self) -> str:
        """The end of what it has printed."""
        return self._log_file.read_text(errors="replace")[-_LOG_CHARACTERS:]

    def serve(self, models: Mapping[str, ModelConfig]) -> None:
        """Serves these models instead, soon after."""
        write_atomically(self._models_file, to_text(models).encode())

    def wait(self) -> str:
        """Address of the server once it serves.

        Raises:
          ConfigError: it ended, or does not serve in time.
        """
        deadline = time.monotonic() + _START_TIMEOUT_SECONDS
        while (address := self.address) is None:
            if not self.running or time.monotonic() > deadline:
                raise ConfigError(f"the server did not start; the end of its log:\n{self.log()}")
            time.sleep(0.05)
        return address

    def close(self) -> None:
        """Ends the process."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._scratch.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
