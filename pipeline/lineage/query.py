"""Questions about one version, asked of a store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.lineage.answer import Answer
from pipeline.lineage.facts import VersionFacts, extract
from pipeline.lineage.graph import Graph, read_graph
from pipeline.lineage.pushes import by_answer, by_version
from pipeline.metadata.store import open_store

if TYPE_CHECKING:
    from ml_metadata import MetadataStore


@dataclass(frozen=True)
class Lineage:
    """The facts about a version, and the artifacts and executions that they are of."""

    facts: VersionFacts
    graph: Graph


def version_lineage(where: str | Path, version: int, model: str | None = None) -> Lineage:
    """What stands behind a pushed version.

    Args:
      where: the store; see `pipeline.metadata.store.open_store`.
      version: its number.
      model: served name; needed only if several models have that version.

    Raises:
      MetadataError: no store, or no such version (the text names those that exist).
    """
    return lineage_in(open_store(where), version, model)


def lineage_in(store: MetadataStore, version: int, model: str | None = None) -> Lineage:
    """As `version_lineage`, in an open store."""
    push, notes = by_version(store, version, model)
    graph = read_graph(store, push.artifact)
    return Lineage(extract(graph, push, notes), graph)


def answer_lineage(where: str | Path, answer: Answer, model: str | None = None) -> Lineage:
    """What stands behind an answer.

    Args:
      where: the store; see `pipeline.metadata.store.open_store`.
      answer: of the server; see `pipeline.lineage.answer.parse_answer`.
      model: served name, if the answer does not say.

    Raises:
      MetadataError: no store, or nothing in it fits the answer.
    """
    store = open_store(where)
    push, artifact, notes = by_answer(store, answer, model)
    graph = read_graph(store, artifact)
    return Lineage(extract(graph, push, notes), graph)
