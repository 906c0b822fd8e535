"""Versions that were made from a given file: ML Metadata, walked from the logs to the pushes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.lineage.facts import SCHEMA_FILE, log_files, recorded_files
from pipeline.lineage.graph import RUN_CONTEXT, walk_up
from pipeline.lineage.pushes import Push, list_pushes
from pipeline.metadata.runs import list_runs
from pipeline.metadata.store import MetadataError, Value, open_store, properties

if TYPE_CHECKING:
    from ml_metadata import MetadataStore

_DIGEST = re.compile(r"[0-9a-f]{8,64}", re.IGNORECASE)
_DIGEST_IN_NAME = re.compile(r"-([0-9a-f]{16})\.pbtxt$")  # schemas carry their hash's beginning
_SCHEMA = "schema"
_LISTED = 10


@dataclass(frozen=True)
class Source:
    """A file that an execution read.

    Attributes:
      path: as it was given.
      role: schema, interactions, catalogue or users; "" if not recorded.
      sha256: of its content then, of a schema the beginning; "" if not recorded.
      rows: that were read; None if not recorded.
    """

    path: str
    role: str
    sha256: str
    rows: int | None


@dataclass(frozen=True)
class Use:
    """A version that was made from the file.

    Attributes:
      push: the version.
      source: the file as it was read for it.
      same_content: whether the file that was asked about holds the same now; None if there is no
        such file here to compare with.
    """

    push: Push
    source: Source
    same_content: bool | None


@dataclass(frozen=True)
class Unpushed:
    """A run that read the file and pushed nothing, with its state."""

    run: str
    state: str


@dataclass(frozen=True)
class MadeFrom:
    """What was made from a file.

    Attributes:
      asked: path or SHA-256.
      uses: the oldest push first.
      unpushed: runs without a push, the newest first.
    """

    asked: str
    uses: tuple[Use, ...]
    unpushed: tuple[Unpushed, ...]


def made_from(where: str | Path, what: str, model: str | None = None) -> MadeFrom:
    """Versions made from a log, catalogue or user file, or from a schema.

    Args:
      where: the store; see `pipeline.metadata.store.open_store`.
      what: path as it was configured or absolute, path of a file with the same content, or the
        SHA-256 of the content (8 digits of it are enough).
      model: only versions of this one.

    Raises:
      MetadataError: no store, or no run has read such a file (the text names some that were read).
    """
    store = open_store(where)
    wanted = _Wanted(what)
    executions = store.get_executions()
    sources = {e.id: list(_sources(properties(e))) for e in executions}
    found = {id_: [s for s in read if wanted.means(s)] for id_, read in sources.items()}
    readers = {id_: read for id_, read in found.items() if read}
    if not readers:
        known = list(dict.fromkeys(s.path for read in sources.values() for s in read))
        raise MetadataError(_unknown(what, known))
    pushes = [push for push in list_pushes(store) if model in (None, push.model)]
    walk = walk_up(store, [push.artifact for push in pushes])
    details = _details(store)
    uses = [
        Use(push, described, wanted.holds(described))
        for push in pushes
        for described in dict.fromkeys(
            details.get((source.path, source.sha256), source)
            for id_ in sorted(walk.above(push.artifact) & readers.keys())
            for source in readers[id_]
        )
    ]
    pushed_by = {push.run for push in list_pushes(store)}
    return MadeFrom(what, tuple(uses), tuple(_unpushed(store, readers, pushed_by)))


class _Wanted:
    """The file that is asked about."""

    def __init__(self, what: str) -> None:
        self._what = what
        path = Path(what)
        self._content = _sha256(path) if path.is_file() else ""
        is_digest = not self._content and _DIGEST.fullmatch(what) is not None
        self._digest = what.lower() if is_digest else self._content
        self._absolute = path.absolute()

    def means(self, source: Source) -> bool:
        """Whether a file that was read is the one: by path, or by content."""
        return (
            source.path == self._what
            or Path(source.path).absolute() == self._absolute
            or _same(self._digest, source.sha256)
        )

    def holds(self, source: Source) -> bool | None:
        """See `Use.same_content`."""
        if not self._content or not source.sha256:
            return None
        return _same(self._content, source.sha256)


def _same(first: str, second: str) -> bool:
    """Of two hashes, one of which may be cut."""
    return bool(first and second) and (first.startswith(second) or second.startswith(first))


def _sources(parameters: Mapping[str, Value]) -> Iterator[Source]:
    for path, sha256 in log_files(parameters).items():
        yield Source(path, "", sha256, None)
    if SCHEMA_FILE in parameters:
        path = str(parameters[SCHEMA_FILE])
        in_name = _DIGEST_IN_NAME.search(path)
        yield Source(path, _SCHEMA, in_name[1] if in_name else "", None)


def _details(store: MetadataStore) -> dict[tuple[str, str], Source]:
    """(path, SHA-256) -> the file with its table and rows, where a run has recorded them."""
    return {
        (path, sha256): Source(path, table, sha256, rows)
        for summary in store.get_artifacts_by_type("IngestionSummary")
        for (path, sha256), (table, rows) in recorded_files(properties(summary)).items()
    }


def _unpushed(
    store: MetadataStore, executions: Iterable[int], pushed_by: set[str]
) -> Iterator[Unpushed]:
    runs = {
        context.name
        for execution in executions
        for context in store.get_contexts_by_execution(execution)
        if context.type == RUN_CONTEXT
    }
    for run in list_runs(store):
        if run.id in runs and run.id not in pushed_by:
            yield Unpushed(run.id, run.state)


def _unknown(what: str, known: list[str]) -> str:
    if not known:
        return f"no run has read {what}; no file is recorded at all yet."
    more = len(known) - _LISTED
    listed = ", ".join(known[:_LISTED]) + (f" and {more} more" if more > 0 else "")
    return (
        f"no run has read {what}, nor a file of the same content. Give a path as the configuration "
        f"has it, or the SHA-256 of the content. Files that were read: {listed}."
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
