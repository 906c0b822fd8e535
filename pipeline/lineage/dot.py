"""Lineage as a graph for Graphviz."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.lineage.facts import SCHEMA_FILE, log_files
from pipeline.lineage.forward import MadeFrom
from pipeline.lineage.graph import ArtifactNode, ExecutionNode
from pipeline.lineage.query import Lineage

_HEADER = ("digraph lineage {", "  rankdir=LR;", '  node [fontname="sans-serif"];')


def version_dot(lineage: Lineage) -> str:
    """Executions as boxes, artifacts as ellipses, files from outside as notes."""
    graph, facts = lineage.graph, lineage.facts
    cached = {step.execution for step in facts.steps if step.cached}
    lines = [*_HEADER]
    for artifact in graph.artifacts.values():
        lines.append(_node(f"a{artifact.id}", "ellipse", *_artifact(artifact)))
    for execution in graph.executions.values():
        extra = "from the cache" if execution.id in cached else ""
        name = f"e{execution.id}"
        lines.append(
            _node(
                name, "box", execution.node, f"execution {execution.id}, {execution.state}", extra
            )
        )
        lines += [_edge(f"a{i.artifact}", name, i.key) for i in execution.inputs]
        lines += [_edge(name, f"a{o.artifact}", o.key) for o in execution.outputs]
        for place, path in enumerate(_outside(execution)):
            lines.append(_node(f"f{execution.id}_{place}", "note", path))
            lines.append(_edge(f"f{execution.id}_{place}", name, ""))
    return _closed(lines)


def made_from_dot(found: MadeFrom) -> str:
    """Files as notes, versions as ellipses."""
    paths = dict.fromkeys(use.source.path for use in found.uses)
    files = {path: f"f{place}" for place, path in enumerate(paths)}
    lines = [*_HEADER, *(_node(name, "note", path) for path, name in files.items())]
    pushes = {use.push.artifact: use.push for use in found.uses}
    for push in pushes.values():
        deleted = "deleted" if push.deleted else ""
        title = f"{push.model} version {push.version}"
        lines.append(_node(f"a{push.artifact}", "ellipse", title, push.model_id, deleted))
    for use in found.uses:
        lines.append(_edge(files[use.source.path], f"a{use.push.artifact}", use.source.role))
    return _closed(lines)


def _artifact(artifact: ArtifactNode) -> Iterator[str]:
    yield f"{artifact.type} {artifact.id}"
    for key in ("objective", "model_name", "pushed_version", "model_id"):
        if key in artifact.properties:
            yield f"{key} {artifact.properties[key]}"
    if artifact.gone:
        yield "files are gone"


def _outside(execution: ExecutionNode) -> Iterator[str]:
    yield from log_files(execution.parameters)
    if SCHEMA_FILE in execution.parameters:
        yield str(execution.parameters[SCHEMA_FILE])


def _node(name: str, shape: str, *lines: str) -> str:
    label = "\\n".join(_escaped(line) for line in lines if line)
    return f'  {name} [shape={shape}, label="{label}"];'


def _edge(start: str, end: str, label: str) -> str:
    return f'  {start} -> {end} [label="{_escaped(label)}"];'


def _escaped(text: str) -> str:
    """For between quotes: a backslash would begin an escape of Graphviz's, a line break end it."""
    flat = "".join(c if c.isprintable() else " " for c in text)
    return flat.replace("\\", "\\\\").replace('"', '\\"')


def _closed(lines: list[str]) -> str:
    return "\n".join([*lines, "}", ""])
