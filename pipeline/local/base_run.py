"""Which earlier run a part of a pipeline begins with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from tfx.dsl.components.base.base_node import BaseNode
from tfx.orchestration.pipeline import Pipeline

from pipeline.metadata.runs import NodeRun, list_runs
from pipeline.metadata.store import open_store

_LOG = logging.getLogger("csmf")


def find_base_run(pipeline: Pipeline, metadata: Path, from_node: str) -> str | None:
    """The run whose outputs a run from this node on reads; None without one that has them all.

    The newest in which the nodes before had their present settings; if there is none, the newest,
    and a warning says what it was made with. By default TFX takes the newest of all, even one that
    failed before it had any outputs.

    Args:
      pipeline: as it would run now.
      metadata: the SQLite file.
      from_node: id of a node of the pipeline.
    """
    if not metadata.exists():
        return None
    first = {node for node in pipeline.components if node.id == from_node}
    again = _closure(first, lambda node: node.downstream_nodes)
    read = _closure(again, lambda node: node.upstream_nodes) - again
    newest = None
    for run in list_runs(open_store(metadata)):
        done = {name: node for name, node in run.nodes.items() if node.done}
        # A directory may hold runs of several pipelines, whose nodes have the same names.
        if run.pipeline != pipeline.pipeline_info.pipeline_name or any(
            node.id not in done for node in read
        ):
            continue
        changed = _changed([node for node in pipeline.components if node in read], done)
        if not changed:
            return run.id
        newest = newest or (run.id, changed)
    if newest is None:
        return None
    run_id, changed = newest
    _LOG.warning(
        "--from-node %s takes what run %s has made, but since then these have changed: %s. "
        "To use what is set now, begin with %s.",
        from_node,
        run_id,
        "; ".join(f"{node}: {', '.join(names)}" for node, names in changed.items()),
        next(iter(changed)),
    )
    return run_id


def _changed(nodes: list[BaseNode], runs: Mapping[str, NodeRun]) -> dict[str, list[str]]:
    """Node -> its execution properties that are no longer what they were."""
    changed = {}
    for node in nodes:
        then = runs[node.id].parameters
        names = [
            name
            for name, value in node.exec_properties.items()
            # Others are not recorded as they are: None, placeholders, protos.
            if isinstance(value, str | int | float) and name in then and then[name] != value
        ]
        if names:
            changed[node.id] = names
    return changed


def _closure(
    nodes: set[BaseNode], neighbours: Callable[[BaseNode], set[BaseNode]]
) -> set[BaseNode]:
    """The nodes, their neighbours, those of these, and so on."""
    found, new = set(nodes), set(nodes)
    while new:
        new = {near for node in new for near in neighbours(node)} - found
        found |= new
    return found
