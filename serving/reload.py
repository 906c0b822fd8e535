"""A new configuration while serving: by HandleReloadConfigRequest or from a polled file."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from serving import config_files
from serving.config import ModelConfig
from serving.config_files import ConfigFileError
from serving.errors import ServingError, invalid_argument
from serving.options import ServerOptions
from serving.versions import VersionManager

_LOG = logging.getLogger(__name__)

_MAX_RELOADS = 4

# Replaces what is served; blocks until new models are available, raises ServingError.
Reload = Callable[[ModelServerConfig], None]


class ReloadCalls:
    """Carries out HandleReloadConfigRequest for an event loop.

    A call may wait for ever, for a model that is not there, and its thread with it even when the
    client has left. So these have threads of their own and never take those of others. More
    threads are not needed: a new configuration ends the wait for the one before.
    """

    def __init__(self, reload: Reload) -> None:
        self._reload = reload
        self._threads = ThreadPoolExecutor(_MAX_RELOADS, thread_name_prefix="reload")
        self._free = threading.BoundedSemaphore(_MAX_RELOADS)

    async def reload(self, config: ModelServerConfig) -> None:
        """Replaces what is served; returns when new models are available.

        Raises:
          ServingError: RESOURCE_EXHAUSTED, too many calls wait already; otherwise as `Reload`.
        """
        if not self._free.acquire(blocking=False):
            # The code of TensorFlow Serving without a free thread (--grpc_max_threads). Not
            # UNAVAILABLE, which clients retry by themselves: the wait may be for ever.
            raise ServingError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{_MAX_RELOADS} configurations are being loaded already. Try again when one of "
                "those calls has returned",
            )
        done = self._threads.submit(self._reload, config)
        done.add_done_callback(lambda _: self._free.release())
        await asyncio.wrap_future(done)

    def close(self) -> None:
        """Ends the threads once their calls have returned."""
        self._threads.shutdown(wait=False, cancel_futures=True)


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
          ServingError: as `begin` and what that returns.
        """
        self.begin(config)()

    def begin(self, config: ModelServerConfig) -> Callable[[], None]:
        """Serves what `config` lists and nothing else from now on.

        Returns:
          what blocks until new models are available, see VersionManager.reconfigure.

        Raises:
          ServingError: INVALID_ARGUMENT, the configuration cannot be served; otherwise as
            VersionManager.reconfigure.
        """
        if config.WhichOneof("config") != "model_config_list":
            raise invalid_argument(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. "
                "Only ModelConfigList is currently supported"
            )
        models = config_files.models_of(config, self._versions.configs)
        return self._apply(models)

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
                before = self._versions.configs
                models = config_files.models_of(config, before)
                # What stays as it is must not end the wait of a request for the same.
                if models != before:
                    # Without waiting: the next version of the file may mend a path of this one.
                    self._apply(models)
            self._trouble = ""
        except (ConfigFileError, ServingError) as error:
            if str(error) != self._trouble:
                _LOG.error("%s is ignored: %s", path, error)
            self._trouble = str(error)

    def _apply(self, models: Mapping[str, ModelConfig]) -> Callable[[], None]:
        wait = self._versions.reconfigure(models, allow_labels_for_unavailable=self._allow_labels)
        _LOG.info("new configuration: %s", ", ".join(models) or "no models")
        return wait
