"""The version manager: watches base paths, loads new versions, unloads old ones.

Availability comes first: a new version is loaded before the old one is unloaded, and if it cannot
be loaded the old one keeps serving. One thread looks at the disk and loads, one version after the
other; every unload has a thread of its own, because it waits for the calls in flight. The
configuration may be replaced from any thread.
"""

from __future__ import annotations

import enum
import logging
import posixpath
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import grpc
import tensorflow as tf

from serving.config import GRAPH_FILES, ModelConfig, Specific
from serving.errors import ServingError, StartupError, invalid_argument, stopping
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


@dataclass
class _Attempts:
    """Failed loads of one version."""

    count: int = 0
    next_at: float = 0.0  # time.monotonic() of the next attempt, infinite = given up


@dataclass
class _Model:
    """State of one model, written under the manager's lock."""

    name: str
    config: ModelConfig | None = None  # None = no longer wanted; its statuses stay
    available: dict[int, Servable] = field(default_factory=dict)
    statuses: dict[int, VersionStatus] = field(default_factory=dict)
    aspired: dict[int, str] = field(default_factory=dict)  # version -> directory
    attempts: dict[int, _Attempts] = field(default_factory=dict)
    latest: int | None = None
    was_available: bool = False  # since it is wanted
    trouble: str = ""  # last logged fault of the base path, so that each is logged once


class VersionManager:
    """Keeps the right versions of every model loaded and hands them out.

    Args:
      models: model name -> what to serve.
      poll_seconds: time between two looks at the base paths; 0 = look once, at the start and
        after a change of the configuration; negative = never.
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
        self._lock = threading.RLock()  # entered directly by every call: a Condition is in Python
        self._changed = threading.Condition(self._lock)
        self._configuration = 0  # number of the last one, which alone is waited for
        self.refused = 0  # calls that came after `interrupt`
        self._stopping = threading.Event()
        self._wake = threading.Event()  # there may be something to do for the watching thread
        # time.monotonic() of the next look at the base paths
        self._look_at = float("inf") if poll_seconds < 0 else 0.0
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
        with self._changed:
            for model in self._models.values():
                self._unload_all(model)
        for thread in self._unloads:
            thread.join(max(deadline - time.monotonic(), 0.1))

    def interrupt(self) -> None:
        """Asks the watching thread to end and wakes `wait_until_available`. Returns at once."""
        self._stopping.set()
        self._wake.set()
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
                wanted = [model for model in self._models.values() if model.config is not None]
                if failures := self._failures(wanted):
                    raise StartupError(failures)
                if all(self._is_ready(model) for model in wanted):
                    return True
                self._changed.wait()
        return False

    @property
    def configs(self) -> dict[str, ModelConfig]:
        """Model name -> what is served, as configured last."""
        with self._changed:
            return {m.name: m.config for m in self._models.values() if m.config is not None}

    def reconfigure(
        self,
        models: Mapping[str, ModelConfig],
        *,
        allow_labels_for_unavailable: bool = False,
    ) -> Callable[[], None]:
        """Serves these models from now on and no others, as HandleReloadConfigRequest does.

        Models that are not named are unloaded, labels are replaced at once, and a new base path is
        looked at at once. If a label is refused nothing changes.

        Args:
          models: model name -> what to serve.
          allow_labels_for_unavailable: a label that is new, or stays, may name a version that is
            not available.

        Returns:
          what blocks until every model that has never had an available version, since it was asked
          for, has one. There is no time limit, as in TensorFlow Serving. It raises ServingError:
          UNKNOWN, a new model cannot be loaded; ABORTED, another configuration came while waiting;
          UNAVAILABLE, the manager was stopped while waiting.

        Raises:
          ServingError: FAILED_PRECONDITION for a label.
        """
        with self._changed:
            for name, config in models.items():
                self._check_labels(name, config, allow_labels_for_unavailable)
            changed = dict(models) != self.configs
            for name in [*models, *(name for name in self._models if name not in models)]:
                self._configure(name, models.get(name))
            if changed and self._poll_seconds >= 0:
                self._look_at = 0.0
                self._wake.set()
            self._configuration += 1
            self._changed.notify_all()
            new = [model for name in models if not (model := self._models[name]).was_available]
            return partial(self._wait_for, new, self._configuration)

    def _check_labels(self, name: str, config: ModelConfig, allow_unavailable: bool) -> None:
        model = self._models.get(name)
        before = model.config.labels if model and model.config else {}
        for label, version in config.labels.items():
            moves = before.get(label, version) != version
            if (moves or not allow_unavailable) and (
                model is None or version not in model.available
            ):
                raise ServingError(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f"Request to assign label to version {version} of model {name}, which is not "
                    "currently available for inference",
                )

    def _configure(self, name: str, config: ModelConfig | None) -> None:
        model = self._models.setdefault(name, _Model(name))
        model.config = config
        if config is None:
            model.was_available = False
            self._aspire(model, {})
            self._unload_all(model)

    def _wait_for(self, models: Sequence[_Model], number: int) -> None:
        with self._changed:
            while not all(self._is_ready(model) for model in models):
                if self._stopping.is_set():
                    raise stopping()
                if self._configuration != number:
                    missing = ", ".join(m.name for m in models if not self._is_ready(m))
                    raise ServingError(
                        grpc.StatusCode.ABORTED,
                        f"A later configuration came before these models were available: {missing}",
                    )
                if failures := self._failures(models):
                    raise ServingError(grpc.StatusCode.UNKNOWN, failures)
                self._changed.wait()

    def acquire(self, name: str, version: int | None, label: str | None) -> Servable:
        """Resolves a servable and keeps it loaded until its `release`.

        Args:
          name: model name.
          version: exactly this version; None = the highest available one.
          label: the version this label stands for.

        Raises:
          ServingError: NOT_FOUND for an unknown model or version, INVALID_ARGUMENT for a label,
            UNAVAILABLE after `interrupt`.
        """
        if self._stopping.is_set():
            self.refused += 1
            raise stopping()
        with self._lock:
            model = self._models.get(name)
            if model is not None and model.config is None:
                model = None  # dropped, even if its last version is still being unloaded
            if label is not None:
                version = model.config.labels.get(label) if model and model.config else None
                if version is None:
                    raise invalid_argument(f"Unrecognized servable version label: {label}")
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

    @contextmanager
    def lease(
        self, name: str, version: int | None = None, label: str | None = None
    ) -> Iterator[Servable]:
        """`acquire` for the length of a `with` block."""
        servable = self.acquire(name, version, label)
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

    def _is_ready(self, model: _Model) -> bool:
        # A policy that names no version is a wish to serve nothing, not a model to wait for.
        return any(self._serves(model, *version) for version in model.aspired.items()) or (
            model.config is not None and model.config.policy == Specific(())
        )

    def _serves(self, model: _Model, version: int, path: str) -> bool:
        return version in model.available and model.available[version].path == path

    def _failures(self, models: Iterable[_Model]) -> str:
        """Says which models can never become available, in TensorFlow Serving's words."""
        failures = [
            f"{{name: {model.name} version: {version}}} due to error: "
            f"{model.statuses[version].error_message}"
            for model in models
            if not self._is_ready(model) and all(self._gave_up(model, v) for v in model.aspired)
            for version in model.aspired
        ]
        if not failures:
            return ""
        return f"{len(failures)} servable(s) did not become available: {{{', '.join(failures)}}}"

    def _gave_up(self, model: _Model, version: int) -> bool:
        attempts = model.attempts.get(version)
        return attempts is not None and attempts.next_at == float("inf")

    # --- the watching thread ----------------------------------------------------------------

    def _watch(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            now = time.monotonic()
            with self._changed:
                models = list(self._models.values())
                look = now >= self._look_at
                if look:
                    self._look_at = now + self._poll_seconds if self._poll_seconds else float("inf")
            if look:
                self._look()
            for model in models:
                self._load_missing(model)
                self._unload_surplus(model)
            with self._changed:
                retries = [a.next_at for model in models for a in model.attempts.values()]
                pause = min([self._look_at, *retries]) - time.monotonic()
            self._wake.wait(min(max(pause, 0.01), threading.TIMEOUT_MAX))

    def _look(self) -> None:
        """Reads the base paths and sets the aspired versions, of all models or, if one base path
        cannot be read, of none: storage that is away for a while must not take a model down."""
        with self._changed:
            configs = [(m, m.config) for m in self._models.values() if m.config is not None]
        found = []
        for model, config in configs:
            try:
                found.append(_versions_on_disk(config.base_path))
            except (tf.errors.OpError, OSError) as error:
                self._report(model, f"base path {config.base_path} cannot be read: {error}")
                return
        for (model, config), (complete, incomplete) in zip(configs, found, strict=True):
            aspired = config.policy.aspired(sorted(complete))
            if not aspired and incomplete:
                self._report(model, f"versions {incomplete} have no saved_model.pb yet")
                continue
            self._report(model, "" if aspired else f"no versions to serve in {config.base_path}")
            with self._changed:
                if model.config is config:  # else the next look is due already
                    self._aspire(model, {version: complete[version] for version in aspired})

    def _aspire(self, model: _Model, aspired: dict[int, str]) -> None:
        for version, path in model.aspired.items():
            if aspired.get(version) != path:
                self._forget(model, version)
        model.aspired = aspired
        for version in aspired:
            status = model.statuses.get(version)
            if status is None or (status.state is State.END and not self._gave_up(model, version)):
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
        for version, path in sorted(model.aspired.items(), reverse=True):
            if self._stopping.is_set():
                return
            attempts = model.attempts.get(version, _Attempts())
            if self._serves(model, version, path) or attempts.next_at > time.monotonic():
                continue
            if model.statuses[version].state is not State.UNLOADING:
                self._load(model, version, path)

    def _load(self, model: _Model, version: int, path: str) -> None:
        with self._changed:
            if model.aspired.get(version) != path:
                return
            status = model.statuses[version]
            # One that comes from another base path now stays available until it is replaced.
            if version not in model.available:
                self._set(model, replace(status, state=State.LOADING))
        try:
            servable = self._load_servable(model.name, version, path)
        # Process boundary: whatever is wrong with one directory (there are many ways, and
        # TensorFlow raises many types), the models already loaded must go on serving.
        except Exception as error:
            self._load_failed(model, version, path, error)
            return
        with self._changed:
            model.attempts.pop(version, None)
            replaced = model.available.get(version)
            model.available[version] = servable
            model.was_available |= model.aspired.get(version) == path
            model.latest = max(model.available)
            self._set(model, VersionStatus(version, State.AVAILABLE))
            if replaced is not None:
                self._close_later(model, replaced)

    def _load_failed(self, model: _Model, version: int, path: str, error: Exception) -> None:
        with self._changed:
            status = VersionStatus(version, State.END, _error_code(error), str(error))
            attempts = _Attempts()
            if model.aspired.get(version) == path:  # else it is not to be tried again
                attempts = model.attempts.setdefault(version, attempts)
                attempts.count += 1
                final = attempts.count > self._max_load_retries
                attempts.next_at = (
                    float("inf") if final else time.monotonic() + self._load_retry_seconds
                )
                status = replace(status, state=State.END if final else State.LOADING)
            if version not in model.available:
                self._set(model, status)
        _LOG.error(
            "%s version %d cannot be loaded (attempt %d of %d): %s",
            model.name,
            version,
            attempts.count,
            self._max_load_retries + 1,
            error,
        )

    def _unload_surplus(self, model: _Model) -> None:
        with self._changed:
            ready = any(version in model.available for version in model.aspired)
            if model.aspired and not ready:
                return
            for version in sorted(set(model.available) - set(model.aspired)):
                self._begin_unload(model, version)

    def _unload_all(self, model: _Model) -> None:
        for version in list(model.available):
            self._begin_unload(model, version)

    def _begin_unload(self, model: _Model, version: int) -> None:
        servable = model.available.pop(version)
        model.latest = max(model.available, default=None)
        self._set(model, VersionStatus(version, State.UNLOADING))
        self._close_later(model, servable)

    def _close_later(self, model: _Model, servable: Servable) -> None:
        thread = threading.Thread(
            target=self._close,
            args=(model, servable),
            name=f"unload-{model.name}-{servable.version}",
            daemon=True,
        )
        self._unloads = [thread, *(t for t in self._unloads if t.is_alive())]
        thread.start()

    def _close(self, model: _Model, servable: Servable) -> None:
        servable.close()
        _LOG.info("%s version %d unloaded", model.name, servable.version)
        with self._changed:
            if model.statuses[servable.version].state is State.UNLOADING:
                self._set(model, VersionStatus(servable.version, State.END))
        self._wake.set()  # it may be wanted again

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
