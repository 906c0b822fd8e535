"""Publishes both flavours of a model as one version of a served directory. Needs no TFX.

A server may look at the directory at any moment, so a version appears by one rename, complete.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.names import FLAVOURS, MANIFEST_FILE, SCANN_FLAVOUR, STOCK_FLAVOUR, STOCK_SUFFIX
from schemas.versions import versions_in

_TEMPORARY_PREFIX = ".tmp-"
_TRASH_PREFIX = ".trash-"
_LOCK_POLL_SECONDS = 0.05


class PushError(RuntimeError):
    """The model cannot be published; the served directory is as it was."""


@dataclass(frozen=True)
class Push:
    """A published version.

    Attributes:
      version: its number, the same for both flavours.
      model_id: id that both manifests name.
      destination: directory of the flavour with ScaNN ops.
      stock_destination: directory of the flavour with core ops only.
    """

    version: int
    model_id: str
    destination: Path
    stock_destination: Path


def local_directory(path: str) -> Path:
    """Returns the absolute local path of a directory given as a path or a file:// URI.

    Raises:
      PushError: it is on a remote file system, where a rename is not one step.
    """
    plain = path.removeprefix("file://")
    if "://" in plain:
        raise PushError(
            f"{path!r} is not a local directory. Versions are published by renaming, which object "
            "stores cannot do in one step: push to a local or mounted directory, copy from there."
        )
    return Path(plain).absolute()


def served_directories(serving_dir: Path, model_name: str) -> dict[str, Path]:
    """Returns the base path of each flavour, in the order in which they are published.

    Stock goes first: a client of the main model then never sees a version that has no stock twin.

    Raises:
      PushError: `model_name` cannot be a directory name.
    """
    if not model_name or model_name.startswith(".") or "/" in model_name:
        raise PushError(
            f"model name {model_name!r} cannot be used as a directory name; use letters, digits, "
            "'-' and '_'."
        )
    return {
        STOCK_FLAVOUR: serving_dir / f"{model_name}{STOCK_SUFFIX}",
        SCANN_FLAVOUR: serving_dir / model_name,
    }


def publish(
    model_dir: Path, serving_dir: Path, model_name: str, lock_timeout_seconds: float = 600.0
) -> Push:
    """Copies both flavours of a model and makes them visible as the next version.

    The number is one above the highest that either flavour has. What an interrupted push left
    behind is removed.

    Args:
      model_dir: holds `scann/` and `stock/`, each with a manifest.
      serving_dir: parent of the served directories.
      model_name: served name; the stock flavour's has "_stock" appended.
      lock_timeout_seconds: how long to wait for another pusher to finish.

    Raises:
      PushError: a manifest is missing or does not fit the files or the other flavour, or another
        pusher holds the directory.
    """
    bases = served_directories(serving_dir, model_name)
    model_id = _common_model_id(model_dir)
    with _locked(serving_dir, model_name, lock_timeout_seconds):
        for base in bases.values():
            base.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(base)
        version = 1 + max((v for base in bases.values() for v in versions_in(base)), default=0)
        staged = {
            flavour: base / f"{_TEMPORARY_PREFIX}{version}" for flavour, base in bases.items()
        }
        try:
            for flavour, path in staged.items():
                _copy_durably(model_dir / flavour, path)
                verify_files(path, flavour, model_id)
            _rename_all({path: path.with_name(str(version)) for path in staged.values()})
        finally:
            for path in staged.values():
                shutil.rmtree(path, ignore_errors=True)
    return Push(
        version,
        model_id,
        bases[SCANN_FLAVOUR] / str(version),
        bases[STOCK_FLAVOUR] / str(version),
    )


def prune(
    serving_dir: Path,
    model_name: str,
    keep_versions: int,
    protected: Collection[int],
    lock_timeout_seconds: float = 600.0,
) -> tuple[int, ...]:
    """Deletes all but the newest versions of both flavours, oldest first.

    A version leaves the served directory by a rename, so that a server never sees half of one.

    Args:
      keep_versions: how many to keep, at least 1.
      protected: versions that are kept whatever their age.

    Returns:
      the deleted versions, ascending.

    Raises:
      PushError: `keep_versions` is less than 1, or another pusher holds the directory.
    """
    if keep_versions < 1:
        raise PushError(f"keep_versions is {keep_versions}; at least 1 version must be kept.")
    bases = served_directories(serving_dir, model_name)
    with _locked(serving_dir, model_name, lock_timeout_seconds):
        found = {flavour: versions_in(base) for flavour, base in bases.items()}
        known = sorted({version for versions in found.values() for version in versions})
        surplus = [version for version in known[:-keep_versions] if version not in protected]
        for version in surplus:
            # The main flavour goes first, as in `served_directories`, seen from the other end.
            for flavour in reversed(bases):
                for path in found[flavour].get(version, []):
                    trash = path.with_name(f"{_TRASH_PREFIX}{path.name}")
                    path.rename(trash)
                    shutil.rmtree(trash)
    return tuple(surplus)


def read_manifest(model: Path) -> dict[str, Any]:
    """Reads the manifest beside a SavedModel.

    Raises:
      PushError: there is none, or it is not a JSON object.
    """
    path = model / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PushError(
            f"{path} is missing: only models made by IndexBuilder, which writes it, can be pushed."
        ) from error
    except ValueError as error:
        raise PushError(f"{path} is not valid JSON ({error}). Build the index again.") from error
    if not isinstance(manifest, dict):
        raise PushError(f"{path} must hold a JSON object. Build the index again.")
    return manifest


def verify_files(model: Path, flavour: str, model_id: str) -> None:
    """Checks that a SavedModel holds exactly the files that its manifest lists.

    Raises:
      PushError: another flavour or model, or a file is missing, changed or not listed.
    """
    manifest = read_manifest(model)
    for key, expected in (("flavour", flavour), ("model_id", model_id)):
        if manifest.get(key) != expected:
            raise PushError(
                f"{model / MANIFEST_FILE}: {key} is {manifest.get(key)!r}, expected {expected!r}. "
                "The two flavours were not exported together; run IndexBuilder again."
            )
    listed = manifest.get("files")
    if not isinstance(listed, dict) or not listed:
        raise PushError(f"{model / MANIFEST_FILE} lists no files. Run IndexBuilder again.")
    present = {str(path.relative_to(model)) for path in model.rglob("*") if path.is_file()}
    present.discard(MANIFEST_FILE)
    if present != set(listed):
        raise PushError(
            f"{model}: missing {sorted(set(listed) - present)}, not listed in the manifest "
            f"{sorted(present - set(listed))}. Run IndexBuilder again."
        )
    for relative, expected in listed.items():
        with (model / relative).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != expected:
            raise PushError(
                f"{model / relative}: SHA-256 is {digest}, the manifest says {expected}. The file "
                "was changed after the export or damaged while copying; run IndexBuilder again."
            )


def _common_model_id(model_dir: Path) -> str:
    ids = {f: read_manifest(model_dir / f).get("model_id") for f in FLAVOURS}
    model_id = ids[SCANN_FLAVOUR]
    if not isinstance(model_id, str) or not model_id or ids[STOCK_FLAVOUR] != model_id:
        raise PushError(
            f"{model_dir}: the flavours name the model ids {ids}, but must name the same one. "
            "A query tower must not meet another model's index; run IndexBuilder again."
        )
    return model_id


def _remove_leftovers(base: Path) -> None:
    """Removes what an interrupted push left. Only under the lock: else it may be in use."""
    for entry in base.iterdir():
        if entry.name.startswith((_TEMPORARY_PREFIX, _TRASH_PREFIX)):
            shutil.rmtree(entry)


def _copy_durably(source: Path, destination: Path) -> None:
    """Copies a directory and flushes it, so that a power cut cannot leave a version half there."""
    shutil.copytree(source, destination)
    for folder, _, files in os.walk(destination):
        for name in files:
            _flush(Path(folder) / name)
        _flush(Path(folder))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename_all(renames: dict[Path, Path]) -> None:
    """Renames in order; takes the earlier ones back if a later one fails."""
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in renames.items():
            source.rename(target)
            done.append((source, target))
            _flush(target.parent)
    except OSError:
        for source, target in reversed(done):
            target.rename(source)
        raise


@contextlib.contextmanager
def _locked(serving_dir: Path, model_name: str, timeout_seconds: float) -> Iterator[None]:
    """Holds the model's lock. The kernel drops it if the process dies, so it cannot go stale."""
    serving_dir.mkdir(parents=True, exist_ok=True)
    path = serving_dir / f".{model_name}.lock"
    deadline = time.monotonic() + timeout_seconds
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise PushError(
                        f"another pusher has held {path} for {timeout_seconds:g} s. "
                        "Wait for it to finish, or stop it, and push again."
                    ) from error
            time.sleep(_LOCK_POLL_SECONDS)
        yield
