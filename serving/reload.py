"""A new configuration while serving: by HandleReloadConfigRequest or from a polled file."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import grpc
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from serving import config_files
from serving.config_files import ConfigFileError
from serving.errors import ServingError
from serving.options import ServerOptions
from serving.versions import VersionManager

_LOG = logging.getLogger(__name__)


class Reloader:
    """Changes what a version manager serves.

    With `options.config_file` and `config_poll_seconds` above 0 the file rules: what it says at the
    start replaces `options.models`, and each poll replaces what a request has set since.
    """

    def __init__(self, versions: VersionManager, options: ServerOptions) -> None:
        self._versions = versions
        self._allow_labels = options.allow_labels_for_unavailable
        self._file = options.config_file
        self._poll_seconds = options.config_poll_seconds
        self._trouble = ""  # last logged fault of the file, so that each is logged once
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="config-watch", daemon=True)
        if self._file is not None and self._poll_seconds > 0:
            # A worker that replaces a dead one must not start with what the file said long ago.
            self._poll(self._file)

    def reload(self, config: ModelServerConfig) -> None:
        """Serves what `config` lists and nothing else; returns when new models are available.

        Raises:
          ServingError: INVALID_ARGUMENT, the configuration cannot be served; otherwise as
            VersionManager.reconfigure.
        """
        if config.WhichOneof("config") != "model_config_list":
            raise ServingError(
                grpc.StatusCode.INVALID_ARGUMENT,
                "ServerModelConfig type not supported by HandleReloadConfigRequest. "
                "Only ModelConfigList is currently supported",
            )
        self._apply(config, wait=True)

    def watch(self) -> None:
        """Begins to poll the configuration file, if the options ask for that."""
        if self._file is not None and self._poll_seconds > 0:
            self._thread.start()

    def stop(self) -> None:
        """Ends polling."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        assert self._file is not None
        while not self._stopping.wait(self._poll_seconds):
            self._poll(self._file)

    def _poll(self, path: Path) -> None:
        try:
            config = config_files.read_model_config(path)
            if config.WhichOneof("config") is not None:  # an editor may have emptied it just now
                # Without waiting: the next version of the file may mend a path of this one.
                self._apply(config, wait=False)
            self._trouble = ""
        except (ConfigFileError, ServingError) as error:
            if str(error) != self._trouble:
                _LOG.error("%s is ignored: %s", path, error)
            self._trouble = str(error)

    def _apply(self, config: ModelServerConfig, wait: bool) -> None:
        before = self._versions.configs
        models = config_files.models_of(config, before)
        if models != before:
            _LOG.info("new configuration: %s", ", ".join(models) or "no models")
        self._versions.reconfigure(
            models, allow_labels_for_unavailable=self._allow_labels, wait=wait
        )
