"""`csmf runs`: which runs there were, how their nodes fare, and what a failed one died of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.options import metadata_uri, reads_metadata

if TYPE_CHECKING:
    from pipeline.lineage.page import Outline, Section, Table
    from pipeline.metadata.runs import NodeRun, Run

_LOG_LINES = 15
_LOG_BYTES = 16_384  # at the end of a log, where those lines are
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@click.command()
@reads_metadata
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Runs.")
@click.option("--run", "run_id", metavar="ID", help="Only this run; the beginning will do.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
)
def runs(
    workdir: Path | None, metadata: str | None, limit: int, run_id: str | None, kind: str
) -> None:
    """Show the runs and their nodes: state, times, what was cached, memory, errors and logs.

    Works while a run is under way. INTERRUPTED means that the process of the run is gone.
    """
    from pipeline.metadata.runs import list_runs, read_run
    from pipeline.metadata.store import MetadataError, open_store

    store = open_store(metadata_uri(workdir, metadata))
    found = [read_run(store, run_id)] if run_id else list_runs(store, limit)
    if not found:
        raise MetadataError("no run is recorded yet: start with `csmf run`.")
    if kind == "json":
        listed = [_as_dict(run) for run in found]
        click.echo(json.dumps(listed[0] if run_id else listed, indent=2, ensure_ascii=False))
        return
    from pipeline import console
    from pipeline.lineage.page import Page, Section
    from pipeline.lineage.text import as_tree

    overview = [] if run_id else [Section("The newest first", (_table(found),))]
    page = Page("Runs", (), (), (*overview, *_sections(found[0])))
    console.say(as_tree(page))


def _table(found: Sequence[Run]) -> Table:
    from pipeline.lineage.page import Table, show_time

    several = ["pipeline"] if len({run.pipeline for run in found}) > 1 else []
    return Table(
        ("run", *several, "state", "started (UTC)", "#time", "#executed", "#cached"),
        tuple(
            (
                run.id,
                *([run.pipeline] if several else []),
                run.state,
                show_time(run.started),
                _duration(_seconds(run)),
                str(sum(not node.cached for node in run.nodes.values())),
                str(sum(node.cached for node in run.nodes.values())),
            )
            for run in found
        ),
    )


def _sections(run: Run) -> Iterator[Section]:
    """The nodes of a run, and what is known of those that did not come to their end."""
    from pipeline.lineage.page import NOT_RECORDED, Section, Table, show_time

    rows = tuple(
        (
            node.node,
            node.state,
            show_time(node.started),
            _duration(node.seconds),
            NOT_RECORDED if node.peak_bytes is None else f"{node.peak_bytes / 2**20:,.0f} MiB",
        )
        for node in run.nodes.values()
    )
    title = f"Nodes of {run.id}, {run.state}"
    if run.state == "INTERRUPTED":
        title += ": its process is gone"
    content: list[str | Table | Outline] = [f"error: {run.error}"] if run.error else []
    content.append(Table(("node", "state", "started (UTC)", "#time", "#peak memory"), rows))
    yield Section(title, tuple(content))
    for node in run.nodes.values():
        if not node.done:
            yield Section(f"{node.node}, {node.state}", tuple(_unfinished(node)))


def _unfinished(node: NodeRun) -> Iterator[str | Outline]:
    from pipeline.lineage.page import NOT_RECORDED, Outline

    if node.state == "FAILED":
        yield f"error: {node.error or NOT_RECORDED}"
    if node.log is None:
        yield f"log: {NOT_RECORDED}, or the file is gone"
        return
    try:
        lines = _tail(node.log)
    except OSError as error:
        yield f"log: {node.log} cannot be read ({error.strerror})"
        return
    yield Outline(f"log, the last lines of {node.log}:", tuple(lines))


def _tail(path: Path) -> list[str]:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _LOG_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    return [_COLOURS.sub("", line) for line in text.splitlines()[-_LOG_LINES:]]


def _seconds(run: Run) -> float:
    """From the start to the end of the last node, or until now."""
    if run.state == "RUNNING":
        return (datetime.now(UTC) - run.started).total_seconds()
    ends = [node.started.timestamp() + node.seconds for node in run.nodes.values()]
    return max(ends, default=run.started.timestamp()) - run.started.timestamp()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    if not minutes:
        return f"{rest:.1f} s"
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {int(rest):02} s"


def _as_dict(run: Run) -> dict[str, Any]:
    nodes = [
        {
            "node": node.node,
            "execution": node.id,
            "state": node.state,
            "cached": node.cached,
            "started": node.started.isoformat(),
            "seconds": round(node.seconds, 3),
            "peak_bytes": node.peak_bytes,
            "error": node.error or None,
            "log": None if node.log is None else str(node.log),
        }
        for node in run.nodes.values()
    ]
    return {
        "run": run.id,
        "pipeline": run.pipeline,
        "state": run.state,
        "started": run.started.isoformat(),
        "seconds": round(_seconds(run), 3),
        "csmf_version": run.notes.get("csmf_version"),
        "config_sha256": run.notes.get("config_sha256"),
        "error": run.error or None,
        "nodes": nodes,
    }
