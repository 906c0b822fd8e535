"""Which gRPC server answers for which version.

One server is the main one: `--address`, the workdir's `csmf serve`, or one that the explorer
starts. Versions on disk that it does not serve are served by a second one, started when the first
of them is asked for.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

from pipeline import console
from pipeline.explorer.errors import GoneError, StartingError, UnavailableError
from pipeline.temporary_server import TemporaryServer
from pipeline.versions import (
    ADDRESS_FILE,
    flavours,
    servable_models,
    served_models,
    server_address,
    serving_dir,
)
from schemas.settings import ConfigError
from schemas.versions import versions_in
from serving.client import RecommenderClient, RecommenderError
from serving.config import ModelConfig, Specific

_DEFAULT_MODEL = "recommender"
_CALL_SECONDS = 3.0
_RESTART_SECONDS = 5.0  # between two starts of a server that ends by itself
_OLD_VERSIONS = 2  # kept in memory beside what the main server serves


class Servers:
    """Finds the server for a version. Safe to share between threads; calls may block."""

    def __init__(self, workdir: Path, address: str | None, model: str | None) -> None:
        """Chooses the main server, and starts it if there is none.

        Args:
          workdir: of the runs; may be missing if `address` is given.
          address: host:port of the main server; None = the workdir's, or one is started.
          model: name of the served model, None = the only one that was pushed.

        Raises:
          ConfigError: nothing was pushed, there are several models, or none of that name.
        """
        self.model = _model_name(workdir, address, model)
        self._workdir = workdir
        self._lock = threading.RLock()
        self._clients: dict[str, RecommenderClient] = {}
        self._served: frozenset[int] | None = None  # AVAILABLE in the main server; None = unknown
        self._own: TemporaryServer | None = None
        self._own_started = 0.0
        self._old: TemporaryServer | None = None
        self._old_versions: tuple[int, ...] = ()
        self._old_ready: set[int] = set()
        self._given = address
        self._follows_workdir = address is None and server_address(workdir) is not None
        if address is None and not self._follows_workdir:
            self._start_own()

    # --- what there is ----------------------------------------------------------------------

    def on_disk(self) -> dict[int, Path]:
        """Version -> directory of what was pushed and is still there, newest first."""
        found = versions_in(serving_dir(self._workdir) / self.model)
        return {version: min(found[version]) for version in sorted(found, reverse=True)}

    def served(self) -> frozenset[int]:
        """Versions that the main server answers for, asked anew.

        Raises:
          UnavailableError: it does not answer, or has no version yet.
          StartingError: it is being started.
        """
        client = self._main()
        try:
            states = client.status()
        except RecommenderError as error:
            self._served = None
            if error.status == "NOT_FOUND":
                raise UnavailableError(
                    f"The server at {client.address} does not know a model {self.model!r}. "
                    "Name the one it serves with --model."
                ) from error
            raise unavailable(error) from error
        served = frozenset(state.version for state in states if state.state == "AVAILABLE")
        if not served:
            self._served = None
            raise UnavailableError(
                f"The server at {client.address} has no version of {self.model} to answer with yet."
            )
        self._served = served
        return served

    def address(self) -> str:
        """host:port of the main server.

        Raises:
          UnavailableError, StartingError: as `served`.
        """
        return self._main().address

    # --- who answers ------------------------------------------------------------------------

    def find(self, version: int | None) -> tuple[RecommenderClient, int]:
        """The server for a version, and the version itself: the newest served one for None.

        Raises:
          UnavailableError: the server does not answer.
          StartingError: one is being started.
          GoneError: the version is neither served nor on disk, or cannot be loaded.
        """
        served = self._served or self.served()
        if version is None:
            return self._main(), max(served)
        if version in served:
            return self._main(), version
        return self._find_old(version), version

    def forget(self) -> None:
        """Asks the main server again what it serves: it has said that a version is not there."""
        self._served = None
        self._old_ready.clear()

    def close(self) -> None:
        """Closes all connections and ends the servers that were started."""
        for client in self._clients.values():
            client.close()
        for server in (self._own, self._old):
            if server is not None:
                server.close()

    # --- the main server --------------------------------------------------------------------

    def _main(self) -> RecommenderClient:
        with self._lock:
            if self._given is not None:
                return self._client(self._given)
            if self._follows_workdir:
                return self._client(self._address_of_workdir())
            return self._client(self._address_of_own())

    def _client(self, address: str) -> RecommenderClient:
        if address not in self._clients:
            self._clients[address] = RecommenderClient(address, self.model, _CALL_SECONDS)
        return self._clients[address]

    def _address_of_workdir(self) -> str:
        try:
            port = (self._workdir / ADDRESS_FILE).read_text(encoding="utf-8").strip()
        except OSError:
            raise UnavailableError(
                f"The server of {self._workdir} has stopped. Start it again: "
                f"csmf serve --workdir {self._workdir}"
            ) from None
        return f"127.0.0.1:{port}"

    def _start_own(self) -> None:
        self._own = TemporaryServer(servable_models(self._workdir))
        self._own_started = time.monotonic()

    def _address_of_own(self) -> str:
        assert self._own is not None
        if not self._own.running:
            if time.monotonic() - self._own_started < _RESTART_SECONDS:
                raise UnavailableError(
                    "The server that the explorer started has ended; its log is in the terminal. "
                    "It is started again."
                )
            self._restart_own(self._own)
        address = self._own.address
        if address is None:
            seconds = time.monotonic() - self._own_started
            raise StartingError(f"Starting a server for {self._workdir}: {seconds:.0f} s so far.")
        return address

    def _restart_own(self, ended: TemporaryServer) -> None:
        console.say(f"The server has ended and is started again. Its log:\n{ended.log()}")
        try:
            self._start_own()
        except ConfigError as error:
            self._own_started = time.monotonic()
            raise UnavailableError(f"The server has ended: {error}") from error
        ended.close()

    # --- versions that it does not serve ----------------------------------------------------

    def _find_old(self, version: int) -> RecommenderClient:
        if version not in self.on_disk():
            there = ", ".join(map(str, sorted({*self.on_disk(), *(self._served or ())}))) or "none"
            raise GoneError(
                f"Version {version} of {self.model} is neither served nor on disk: it was deleted, "
                f"or never pushed. There are: {there}."
            )
        starting = StartingError(
            f"Version {version} is on disk but not served: starting version {version} .. "
            "(about 10 s)"
        )
        with self._lock:
            if self._old is None or version not in self._old_versions:
                self._serve_old(version)
            address = self._address_of_old(version)
            if address is None:
                raise starting
            client = self._client(address)
        if version in self._old_ready:
            return client
        try:
            states = {state.version: state for state in client.status()}
        except RecommenderError as error:
            raise unavailable(error) from error
        state = states.get(version)
        if state is not None and state.error_message:
            raise GoneError(f"Version {version} cannot be loaded: {state.error_message}")
        if state is None or state.state != "AVAILABLE":
            raise starting
        self._old_ready.add(version)
        return client

    def _address_of_old(self, version: int) -> str | None:
        assert self._old is not None
        if self._old.running:
            return self._old.address
        console.say(f"No server for version {version}. Its log:\n{self._old.log()}")
        self._old.close()
        self._old, self._old_versions = None, ()
        self._old_ready.clear()
        raise GoneError(
            f"Version {version} is on disk, but the server for it has ended: are its files whole, "
            "is there enough memory? Its log is in the terminal."
        )

    def _serve_old(self, version: int) -> None:
        self._old_versions = (*self._old_versions, version)[-_OLD_VERSIONS:]
        base = str((serving_dir(self._workdir) / self.model).absolute())
        models = {self.model: ModelConfig(base, Specific(self._old_versions))}
        if self._old is None:
            self._old = TemporaryServer(models)
        else:
            self._old.serve(models)


def _model_name(workdir: Path, address: str | None, model: str | None) -> str:
    if address is not None:
        if model is not None:
            return model
        try:
            served_models(workdir)
        except ConfigError:  # the server may be another machine's, and the workdir not here
            return _DEFAULT_MODEL
    return next(iter(flavours(workdir, model)))


def unavailable(error: RecommenderError) -> UnavailableError:
    """The text for a server that does not answer."""
    reason = {
        "UNAVAILABLE": "cannot be reached",
        "DEADLINE_EXCEEDED": f"did not answer within {_CALL_SECONDS:g} s",
    }.get(error.status, f"answered {error.status}: {error.details}")
    return UnavailableError(f"The server at {error.address} {reason}.")
