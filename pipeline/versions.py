"""Which pushed versions are served: listing them, and going back to one.

What is served is said in one text file in the serving directory, a ModelServerConfig of TensorFlow
Serving with the models and their version policies. `csmf serve` and a TensorFlow Serving with
`--model_config_file` and `--model_config_file_poll_wait_seconds` read it again while serving. A
rollback replaces the policy `latest` of both flavours by `specific { versions: N }`, so it outlives
polls, restarts and later pushes, until `latest` is asked for again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from schemas.files import write_atomically
from schemas.names import MANIFEST_FILE, STOCK_SUFFIX
from schemas.settings import ConfigError, nearest
from schemas.versions import versions_in
from serving.client import RecommenderClient, RecommenderError, VersionState
from serving.config import Latest, ModelConfig, Specific
from serving.config_files import (
    MODELS_FILE,
    ConfigFileError,
    models_of,
    read_model_config,
    to_text,
)
from serving.errors import ServingError

ADDRESS_FILE = "server.address"

_HEADER = "# Written by `csmf serve` and `csmf versions rollback`.\n"
_CALL_SECONDS = 2.0
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class PushedVersion:
    """One version on disk.

    Attributes:
      version: its number.
      pushed_at: when it appeared in the serving directory.
      model_id: what both flavours' manifests name; empty if they differ or are unreadable.
      bytes: size on disk, model name -> bytes; only the flavours that are there.
      pinned: the configuration names exactly this version.
      configured: what the configuration asks a server to serve.
      states: model name -> state and error of the version in the running server; empty without one.
    """

    version: int
    pushed_at: datetime
    model_id: str
    bytes: Mapping[str, int]
    pinned: bool
    configured: bool
    states: Mapping[str, VersionState]


@dataclass(frozen=True)
class Rollback:
    """What a rollback has done.

    Attributes:
      version: what is to be served now.
      seconds: until the running server served it, None if no server runs.
    """

    version: int
    seconds: float | None


def serving_dir(workdir: Path) -> Path:
    """Where the last run pushed to; the configuration may name another place than the workdir."""
    try:
        summary = json.loads((workdir / "summary.json").read_text(encoding="utf-8"))
        return Path(summary["serving_dir"])
    except (FileNotFoundError, KeyError):
        return workdir / "serving"


def served_models(workdir: Path) -> dict[str, Path]:
    """Name -> base path of the models pushed into the workdir, the one with ScaNN first.

    Raises:
      ConfigError: nothing was pushed there yet.
    """
    directory = serving_dir(workdir)
    bases = sorted(path for path in directory.glob("*") if versions_in(path))
    models = {path.name: path for path in bases if not path.name.endswith(STOCK_SUFFIX)}
    if not models:
        raise ConfigError(
            f"no pushed model under {directory}. Run: csmf run --config .. --workdir {workdir}"
        )
    return models | {path.name: path for path in bases}


def flavours(workdir: Path, model: str | None = None) -> dict[str, Path]:
    """Name -> base path of the flavours of one model, the one with ScaNN first.

    Args:
      model: its name; needed only if several were pushed to the same directory.

    Raises:
      ConfigError: as `served_models`; there is no such model, or several and none is named.
    """
    served = served_models(workdir)
    models = [name for name in served if not name.endswith(STOCK_SUFFIX)]
    if model is None and len(models) > 1:
        raise ConfigError(f"choose one of the models {', '.join(models)} by --model")
    name = models[0] if model is None else model
    if name not in models:
        raise ConfigError(f"there is no model {name!r}.{nearest(name, models)}")
    return {
        flavour: served[flavour] for flavour in (name, name + STOCK_SUFFIX) if flavour in served
    }


def configured_models(workdir: Path) -> dict[str, ModelConfig]:
    """What a server of the workdir is to serve: all that was pushed, by the policies of the file.

    Base paths are where the models are now, also if the workdir has been moved.

    Raises:
      ConfigError: nothing was pushed yet, or the file is not understood.
    """
    models = _read(serving_dir(workdir) / MODELS_FILE)
    return models | {
        name: replace(models.get(name, ModelConfig("")), base_path=str(base.absolute()))
        for name, base in served_models(workdir).items()
    }


def servable_models(workdir: Path) -> dict[str, ModelConfig]:
    """As `configured_models`, if there is something to serve of every model.

    Raises:
      ConfigError: also if the file names only versions that are not on disk; a server would wait
        for them.
    """
    models = configured_models(workdir)
    for name, base in served_models(workdir).items():
        found = sorted(versions_in(base))
        if not models[name].policy.aspired(found):
            raise ConfigError(
                f"{serving_dir(workdir) / MODELS_FILE} asks for no version of {name} that is on "
                f"disk; there are {_listed(found)}. Choose one of them, or the newest: "
                f"csmf versions rollback --workdir {workdir} --to latest"
            )
    return models


def write_models(workdir: Path, models: Mapping[str, ModelConfig]) -> Path:
    """Writes what is to be served; returns the file."""
    path = serving_dir(workdir) / MODELS_FILE
    text = (_HEADER + to_text(models)).encode()
    if not path.exists() or path.read_bytes() != text:
        write_atomically(path, text)
    return path


def pinned_version(models: Mapping[str, ModelConfig], name: str) -> int | None:
    """The version that a rollback has chosen, None if the newest is served."""
    policy = models[name].policy
    return policy.versions[0] if isinstance(policy, Specific) and policy.versions else None


def rollback_note(workdir: Path, model: str | None = None) -> str:
    """What people must know while a rollback lasts; empty without one.

    Args, raises:
      as `flavours`; the configuration file is not understood.
    """
    pinned = pinned_version(configured_models(workdir), next(iter(flavours(workdir, model))))
    if pinned is None:
        return ""
    option = "" if model is None else f" --model {model}"
    return (
        f"Rolled back to version {pinned}: later pushes are not served until "
        f"`csmf versions rollback --workdir {workdir}{option} --to latest`."
    )


def _read(path: Path) -> dict[str, ModelConfig]:
    if not path.exists():
        return {}
    try:
        return models_of(read_model_config(path))
    except (ConfigFileError, ServingError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _listed(versions: list[int]) -> str:
    return ", ".join(map(str, versions)) or "none"


# --- the running server -------------------------------------------------------------------------


def server_address(workdir: Path) -> str | None:
    """host:port of the workdir's `csmf serve`, None if it does not run or not answer."""
    try:
        port = (workdir / ADDRESS_FILE).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    address = f"127.0.0.1:{port}"
    name = next(iter(served_models(workdir)))
    return address if served_states(address, name) is not None else None


def served_states(address: str, model: str) -> dict[int, VersionState] | None:
    """Version -> state of a model in a server; empty if it does not know the model.

    Returns:
      None if the server does not answer.
    """
    with RecommenderClient(address, model, timeout_seconds=_CALL_SECONDS) as client:
        try:
            return {state.version: state for state in client.status()}
        except RecommenderError as error:
            return {} if error.status == "NOT_FOUND" else None


# --- the commands -------------------------------------------------------------------------------


def list_versions(workdir: Path, model: str | None = None) -> list[PushedVersion]:
    """Returns what is known of every pushed version of a model, newest first.

    Args:
      model: as of `flavours`.

    Raises:
      ConfigError: as `flavours`; the configuration file is not understood.
    """
    pushed = flavours(workdir, model)
    models = configured_models(workdir)
    main = next(iter(pushed))
    address = server_address(workdir)
    states = {name: (served_states(address, name) if address else {}) or {} for name in pushed}
    found = {name: versions_in(base) for name, base in pushed.items()}
    configured = set(models[main].policy.aspired(sorted(found[main])))
    listed = []
    for version in sorted({v for versions in found.values() for v in versions}, reverse=True):
        paths = {name: min(of[version]) for name, of in found.items() if version in of}
        ids = {_model_id(path) for path in paths.values()}
        listed.append(
            PushedVersion(
                version,
                # Of the directory entry, which the rename of the push made.
                datetime.fromtimestamp(min(p.stat().st_ctime for p in paths.values()), UTC),
                ids.pop() if len(ids) == 1 else "",
                {name: _size(path) for name, path in paths.items()},
                pinned_version(models, main) is not None and version in configured,
                version in configured,
                {name: of[version] for name, of in states.items() if version in of},
            )
        )
    return listed


def _model_id(path: Path) -> str:
    try:
        return str(json.loads((path / MANIFEST_FILE).read_text(encoding="utf-8"))["model_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def roll_back(
    workdir: Path,
    model: str | None,
    to: int | None,
    timeout_seconds: float,
    say: Callable[[str], None] = lambda text: None,
) -> Rollback:
    """Pins both flavours to a version, and waits until the running server serves it.

    Args:
      model: as of `flavours`.
      to: the version; None = the newest on disk that is older than what is served now.
      timeout_seconds: how long to wait for the server.
      say: told what is being waited for.

    Raises:
      ConfigError: there is no such version, or the server does not serve it in time; it then still
        serves what it served before.
    """
    pushed = flavours(workdir, model)
    main = next(iter(pushed))
    models = configured_models(workdir)
    common = sorted(set.intersection(*(set(versions_in(base)) for base in pushed.values())))
    if to is None:
        pin = pinned_version(models, main)
        current = max(versions_in(pushed[main])) if pin is None else pin
        older = [version for version in common if version < current]
        if not older:
            raise ConfigError(
                f"there is no version older than {current}, which is served now; on disk: "
                f"{_listed(common)}"
            )
        to = older[-1]
    if to not in common:
        raise ConfigError(
            f"version {to} is not on disk in both flavours; there are {_listed(common)}"
        )
    for name in pushed:
        # A label of a version that goes would make a restart of TensorFlow Serving fail.
        labels = {label: v for label, v in models[name].labels.items() if v == to}
        models[name] = replace(models[name], policy=Specific((to,)), labels=labels)
    return _move(workdir, models, pushed, to, timeout_seconds, say)


def serve_latest(
    workdir: Path,
    model: str | None,
    timeout_seconds: float,
    say: Callable[[str], None] = lambda text: None,
) -> Rollback:
    """Ends a rollback: the newest version is served, now and after each push.

    Args, raises:
      as `roll_back`.
    """
    pushed = flavours(workdir, model)
    models = configured_models(workdir)
    for name in pushed:
        models[name] = replace(models[name], policy=Latest())
    newest = max(versions_in(pushed[next(iter(pushed))]))
    return _move(workdir, models, pushed, newest, timeout_seconds, say)


def _move(
    workdir: Path,
    models: Mapping[str, ModelConfig],
    names: Iterable[str],
    version: int,
    timeout_seconds: float,
    say: Callable[[str], None],
) -> Rollback:
    started = time.monotonic()
    path = write_models(workdir, models)
    address = server_address(workdir)
    if address is None:
        return Rollback(version, None)
    say(f"{path} names version {version}; waiting for {address} to serve it")
    while unserved := _unserved(address, names, version):
        if time.monotonic() - started > timeout_seconds:
            raise ConfigError(
                f"{address} does not serve version {version} after {timeout_seconds:g} s and goes "
                f"on with what it served: {'; '.join(unserved)}. The choice stays in {path}."
            )
        time.sleep(_POLL_SECONDS)
    return Rollback(version, time.monotonic() - started)


def _unserved(address: str, names: Iterable[str], version: int) -> list[str]:
    """Which models a server does not answer with this version alone, and why.

    A model that the server does not know is left out.
    """
    unserved = []
    for name in names:
        states = served_states(address, name)
        if states is None:
            unserved.append(f"{name}: no answer")
        elif states:
            available = [v for v, state in states.items() if state.state == "AVAILABLE"]
            if available != [version]:
                state = states.get(version)
                text = f"{state.state} {state.error_message}".strip() if state else "not seen yet"
                unserved.append(f"{name} {version}: {text} (serves {_listed(available)})")
    return unserved
