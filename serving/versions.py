"""The version manager: watches base paths, loads new versions, unloads old ones.

Availability comes first: a new version is loaded before the old one is unloaded, and if it cannot
be loaded the old one keeps serving. One thread looks at the disk and loads, one version after the
other; every unload has a thread of its own, because it waits for the calls in flight.
"""

from __future__ import annotations

import enum
import logging
import posixpath
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
import tensorflow as tf

from serving.config import GRAPH_FILES, ModelConfig, Specific
from serving.errors import ServingError
from serving.servable import Servable

_LOG = logging.getLogger(__name__)

_MAX_VERSION = 2**63 - 1
_OK = 0
_UNKNOWN = grpc.StatusCode.UNKNOWN.value[0]


class State(enum.IntEnum):
    """Life of a version; the numbers are those of tensorflow.serving.ModelVersionStatus."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(frozen=True)
class VersionStatus:
    """What is known of one version. `error_code` is a canonical status number, 0 = fine."""

    version: int
    state: State
    error_code: int = _OK
    error_message: str = ""


class StartupError(RuntimeError):
    """A model could not be made available at start-up; the text names versions and reasons."""


@dataclass
class _Attempts:
    """Failed loads of one version."""

    count: int = 0
    next_at: float = 0.0  # time.monotonic() of the next attempt, infinite = given up


@dataclass
class _Model:
    """State of one model. Written under the manager's lock, all but `available` and `statuses`
    only by the watching thread."""

    name: str
    config: ModelConfig
    available: dict[int, Servable] = field(default_factory=dict)
    statuses: dict[int, VersionStatus] = field(default_factory=dict)
    aspired: dict[int, str] = field(default_factory=dict)  # version -> directory
    attempts: dict[int, _Attempts] = field(default_factory=dict)
    latest: int | None = None
    trouble: str = ""  # last logged fault of the base path, so that each is logged once


class VersionManager:
    """Keeps the right versions of every model loaded and hands them out.

    Args:
      models: model name -> what to serve.
      poll_seconds: time between two looks at the base paths; 0 = look once.
      max_load_retries: how often a failed load is tried again before the version is given up.
      load_retry_seconds: time between two attempts.
      load: loads one version from (model name, version, directory).
    """

    def __init__(
        self,
        models: Mapping[str, ModelConfig],
        *,
        poll_seconds: float = 1.0,
        max_load_retries: int = 5,
        load_retry_seconds: float = 60.0,
        load: Callable[[str, int, str], Servable] = Servable,
    ) -> None:
        self._models = {name: _Model(name, config) for name, config in models.items()}
        self._poll_seconds = poll_seconds
        self._max_load_retries = max_load_retries
        self._load_retry_seconds = load_retry_seconds
        self._load_servable = load
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="version-manager", daemon=True)
        self._unloads: list[threading.Thread] = []

    # --- for callers ------------------------------------------------------------------------

    def start(self) -> None:
        """Begins to watch the base paths."""
        self._thread.start()

    def stop(self, timeout_seconds: float = 10.0) -> None:
        """Ends watching and closes every servable; calls still running after the timeout keep
        theirs open until the process ends."""
        self.interrupt()
        deadline = time.monotonic() + timeout_seconds
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)
        for model in self._models.values():
            with self._changed:
                versions = list(model.available)
            for version in versions:
                self._begin_unload(model, version)
        for thread in self._unloads:
            thread.join(max(deadline - time.monotonic(), 0.1))

    def interrupt(self) -> None:
        """Asks the watching thread to end and wakes `wait_until_available`. Returns at once."""
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()

    def wait_until_available(self) -> bool:
        """Blocks until every model has an available version.

        Returns:
          False if the manager was stopped meanwhile.

        Raises:
          StartupError: all versions found of a model have failed for good.
        """
        with self._changed:
            while not self._stopping.is_set():
                failures = [text for m in self._models.values() for text in self._failures(m)]
                if failures:
                    raise StartupError(
                        f"{len(failures)} servable(s) did not become available: "
                        f"{{{', '.join(failures)}}}"
                    )
                if all(self._is_ready(model) for model in self._models.values()):
                    return True
                self._changed.wait()
        return False

    @contextmanager
    def lease(
        self, name: str, version: int | None = None, label: str | None = None
    ) -> Iterator[Servable]:
        """Resolves a servable and keeps it loaded for the length of the `with` block.

        Args:
          name: model name.
          version: exactly this version; None = the highest available one.
          label: the version this label stands for.

        Raises:
          ServingError: NOT_FOUND for an unknown model or version, INVALID_ARGUMENT for a label.
        """
        servable = self._acquire(name, version, label)
        try:
            yield servable
        finally:
            servable.release()

    def statuses(self, name: str, version: int | None = None) -> list[VersionStatus]:
        """Returns the status of every version ever seen, newest first, or of one version.

        Raises:
          ServingError: NOT_FOUND, nothing is known of this model or version.
        """
        with self._changed:
            model = self._models.get(name)
            statuses = dict(model.statuses) if model else {}
        if version is not None:
            if version not in statuses:
                raise _not_found(f"Could not find version {version} of model {name}")
            return [statuses[version]]
        if not statuses:
            raise _not_found(f"Could not find any versions of model {name}")
        return [statuses[number] for number in sorted(statuses, reverse=True)]

    # --- resolving --------------------------------------------------------------------------

    def _acquire(self, name: str, version: int | None, label: str | None) -> Servable:
        with self._changed:
            model = self._models.get(name)
            if label is not None:
                version = model.config.labels.get(label) if model else None
                if version is None:
                    raise ServingError(
                        grpc.StatusCode.INVALID_ARGUMENT,
                        f"Unrecognized servable version label: {label}",
                    )
            servable = None
            if model is not None:
                wanted = model.latest if version is None else version
                servable = model.available.get(wanted) if wanted is not None else None
            if servable is None:
                what = f"Latest({name})" if version is None else f"Specific({name}, {version})"
                raise _not_found(f"Servable not found for request: {what}")
            # Still under the lock: an unload cannot slip in between finding and holding.
            servable.acquire()
            return servable

    def _is_ready(self, model: _Model) -> bool:
        # A policy that names no version is a wish to serve nothing, not a model to wait for.
        return bool(model.available) or model.config.policy == Specific(())

    def _failures(self, model: _Model) -> list[str]:
        aspired = list(model.aspired)
        if model.available or not aspired or not all(self._gave_up(model, v) for v in aspired):
            return []
        return [
            f"{{name: {model.name} version: {version}}} due to error: "
            f"{model.statuses[version].error_message}"
            for version in aspired
        ]

    def _gave_up(self, model: _Model, version: int) -> bool:
        attempts = model.attempts.get(version)
        return attempts is not None and attempts.next_at == float("inf")

    # --- the watching thread ----------------------------------------------------------------

    def _watch(self) -> None:
        look_at = time.monotonic()
        while not self._stopping.is_set():
            now = time.monotonic()
            if now >= look_at:
                look_at = now + self._poll_seconds if self._poll_seconds > 0 else float("inf")
                for model in self._models.values():
                    self._look(model)
            for model in self._models.values():
                self._load_missing(model)
                self._unload_surplus(model)
            retries = [a.next_at for m in self._models.values() for a in m.attempts.values()]
            pause = min([look_at, *retries]) - time.monotonic()
            # Also without anything to wait for: a version being unloaded may be wanted again.
            self._stopping.wait(min(max(pause, 0.01), 60.0))

    def _look(self, model: _Model) -> None:
        """Reads the base path and sets the aspired versions."""
        try:
            complete, incomplete = _versions_on_disk(model.config.base_path)
        except (tf.errors.OpError, OSError) as error:
            # Storage that is away for a while must not take a model down.
            self._report(model, f"base path {model.config.base_path} cannot be read: {error}")
            return
        aspired = model.config.policy.aspired(sorted(complete))
        if not aspired and incomplete:
            self._report(model, f"versions {incomplete} have no saved_model.pb yet")
            return
        self._report(model, "" if aspired else f"no versions in {model.config.base_path}")
        with self._changed:
            for version in set(model.aspired) - set(aspired):
                self._forget(model, version)
            model.aspired = {version: complete[version] for version in aspired}
            for version in aspired:
                status = model.statuses.get(version)
                if status is None or (
                    status.state is State.END and not self._gave_up(model, version)
                ):
                    model.statuses[version] = VersionStatus(version, State.START)

    def _forget(self, model: _Model, version: int) -> None:
        """A version is wanted no more: if it comes back it is tried anew."""
        model.attempts.pop(version, None)
        status = model.statuses[version]
        if status.state in (State.START, State.LOADING):
            model.statuses[version] = VersionStatus(
                version, State.END, status.error_code, status.error_message
            )

    def _report(self, model: _Model, trouble: str) -> None:
        if trouble and trouble != model.trouble:
            _LOG.warning("%s: %s", model.name, trouble)
        model.trouble = trouble

    def _load_missing(self, model: _Model) -> None:
        for version in sorted(model.aspired, reverse=True):
            if self._stopping.is_set():
                return
            attempts = model.attempts.get(version, _Attempts())
            if version in model.available or attempts.next_at > time.monotonic():
                continue
            if model.statuses[version].state is not State.UNLOADING:
                self._load(model, version, model.aspired[version])

    def _load(self, model: _Model, version: int, path: str) -> None:
        status = model.statuses[version]
        self._set(
            model,
            VersionStatus(version, State.LOADING, status.error_code, status.error_message),
        )
        try:
            servable = self._load_servable(model.name, version, path)
        # Process boundary: whatever is wrong with one directory (there are many ways, and
        # TensorFlow raises many types), the models already loaded must go on serving.
        except Exception as error:
            self._load_failed(model, version, error)
            return
        with self._changed:
            model.attempts.pop(version, None)
            model.available[version] = servable
            model.latest = max(model.available)
            model.statuses[version] = VersionStatus(version, State.AVAILABLE)
            self._changed.notify_all()

    def _load_failed(self, model: _Model, version: int, error: Exception) -> None:
        with self._changed:
            attempts = model.attempts.setdefault(version, _Attempts())
            attempts.count += 1
            final = attempts.count > self._max_load_retries
            attempts.next_at = (
                float("inf") if final else time.monotonic() + self._load_retry_seconds
            )
            state = State.END if final else State.LOADING
            model.statuses[version] = VersionStatus(version, state, _error_code(error), str(error))
            self._changed.notify_all()
        _LOG.error(
            "%s version %d cannot be loaded (attempt %d of %d): %s",
            model.name,
            version,
            attempts.count,
            self._max_load_retries + 1,
            error,
        )

    def _unload_surplus(self, model: _Model) -> None:
        ready = any(version in model.available for version in model.aspired)
        if model.aspired and not ready:
            return
        for version in sorted(set(model.available) - set(model.aspired)):
            self._begin_unload(model, version)

    def _begin_unload(self, model: _Model, version: int) -> None:
        with self._changed:
            servable = model.available.pop(version, None)
            if servable is None:
                return
            model.latest = max(model.available, default=None)
            model.statuses[version] = VersionStatus(version, State.UNLOADING)
        thread = threading.Thread(
            target=self._unload,
            args=(model, servable),
            name=f"unload-{model.name}-{version}",
            daemon=True,
        )
        self._unloads = [thread, *(t for t in self._unloads if t.is_alive())]
        thread.start()

    def _unload(self, model: _Model, servable: Servable) -> None:
        servable.close()
        _LOG.info("%s version %d unloaded", model.name, servable.version)
        self._set(model, VersionStatus(servable.version, State.END))

    def _set(self, model: _Model, status: VersionStatus) -> None:
        with self._changed:
            model.statuses[status.version] = status
            self._changed.notify_all()


def _not_found(message: str) -> ServingError:
    return ServingError(grpc.StatusCode.NOT_FOUND, message)


def _error_code(error: Exception) -> int:
    if isinstance(error, ServingError):
        return error.code.value[0]
    return error.error_code if isinstance(error, tf.errors.OpError) else _UNKNOWN


def _versions_on_disk(base_path: str) -> tuple[dict[int, str], list[int]]:
    """Lists the numbered directories of a base path.

    Returns:
      version -> directory for those that hold a SavedModel, and the versions that do not yet.
      Of several directories with the same number the first in alphabetical order counts.

    Raises:
      tf.errors.OpError: the base path does not exist or cannot be read.
    """
    complete: dict[int, str] = {}
    incomplete: list[int] = []
    for entry in sorted(tf.io.gfile.listdir(base_path)):
        name = entry.rstrip("/")  # object stores list directories with a slash
        if not (name.isascii() and name.isdigit()) or int(name) > _MAX_VERSION:
            continue
        path = posixpath.join(base_path, name)
        if any(tf.io.gfile.exists(posixpath.join(path, graph)) for graph in GRAPH_FILES):
            complete.setdefault(int(name), path)
        elif tf.io.gfile.isdir(path):
            incomplete.append(int(name))
    return complete, incomplete
