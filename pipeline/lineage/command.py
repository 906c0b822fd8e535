"""`csmf lineage`: what stands behind a version or an answer, what came of a file, what changed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from pipeline.options import metadata_uri, reads_metadata

if TYPE_CHECKING:
    from pipeline.lineage.page import Page

_TREE, _JSON, _DOT, _HTML = "tree", "json", "dot", "html"


@click.command()
@reads_metadata
@click.option("--model", help="Served name; needed if several models have that version.")
@click.option("--version", type=int, metavar="N", help="What stands behind this version.")
@click.option(
    "--request",
    type=click.File(encoding="utf-8"),
    help="What stands behind this answer: JSON of a PredictResponse or of `csmf recommend --json`; "
    "- for standard input.",
)
@click.option(
    "--made-from",
    metavar="FILE|SHA256",
    help="Versions made from this log, catalogue or user file, or from this schema.",
)
@click.option("--diff", type=int, nargs=2, metavar="A B", help="What changed from A to B.")
@click.option(
    "--format",
    "kind",
    type=click.Choice([_TREE, _JSON, _DOT, _HTML]),
    default=_TREE,
    show_default=True,
    help="dot is for Graphviz; html opens without a network.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    help="Write to this file.",
)
def lineage(
    workdir: Path | None,
    metadata: str | None,
    model: str | None,
    version: int | None,
    request: TextIO | None,
    made_from: str | None,
    diff: tuple[int, int] | None,
    kind: str,
    output: Path | None,
) -> None:
    """Show where a pushed version came from: logs, configuration, code, stages, metrics, checks.

    Without a question, the pushed versions are listed. Everything is read from ML Metadata, so
    versions and logs that were deleted can be asked about, too.
    """
    where = metadata_uri(workdir, metadata)
    asked = [value for value in (version, request, made_from, diff) if value is not None]
    if len(asked) > 1:
        raise click.UsageError(
            "ask one question at a time: --version, --request, --made-from or --diff"
        )
    if version is not None or request is not None:
        found = _version(where, version, request, model, kind)
    elif made_from is not None:
        found = _made_from(where, made_from, model, kind)
    else:
        if kind == _DOT:
            raise click.UsageError(
                "--format dot draws one version (--version, --request) or what was made of a file "
                "(--made-from); for this question choose tree, json or html"
            )
        found = _diff(where, diff, model, kind) if diff else _list(where, model, kind)
    _write(found, kind, output)


def _version(
    where: str | Path, version: int | None, request: TextIO | None, model: str | None, kind: str
) -> str | Page:
    from pipeline.lineage.answer import parse_answer
    from pipeline.lineage.query import answer_lineage, version_lineage

    if request is not None:
        found = answer_lineage(where, parse_answer(_read(request)), model)
    else:
        assert version is not None
        found = version_lineage(where, version, model)
    if kind == _JSON:
        from pipeline.lineage.encode import version_json

        return version_json(found)
    if kind == _DOT:
        from pipeline.lineage.dot import version_dot

        return version_dot(found)
    from pipeline.lineage.version_page import version_page

    return version_page(found, full=kind == _HTML)


def _made_from(where: str | Path, what: str, model: str | None, kind: str) -> str | Page:
    from pipeline.lineage.forward import made_from

    found = made_from(where, what, model)
    if kind == _JSON:
        return _json(found)
    if kind == _DOT:
        from pipeline.lineage.dot import made_from_dot

        return made_from_dot(found)
    from pipeline.lineage.other_pages import made_from_page

    return made_from_page(found)


def _diff(where: str | Path, versions: tuple[int, int], model: str | None, kind: str) -> str | Page:
    from pipeline.lineage.diff import compare
    from pipeline.lineage.query import lineage_in
    from pipeline.metadata.store import open_store

    store = open_store(where)
    old, new = (lineage_in(store, version, model).facts for version in versions)
    found = compare(old, new)
    if kind == _JSON:
        return _json(found)
    from pipeline.lineage.other_pages import diff_page

    return diff_page(found)


def _list(where: str | Path, model: str | None, kind: str) -> str | Page:
    from pipeline.lineage.other_pages import list_page
    from pipeline.lineage.pushes import require_pushes, unfinished_runs
    from pipeline.metadata.store import open_store

    store = open_store(where)
    pushes = require_pushes(store, model)
    if kind == _JSON:
        from dataclasses import asdict

        from pipeline.lineage.encode import to_json

        return to_json([asdict(push) for push in pushes])
    return list_page(pushes, unfinished_runs(store))


def _read(request: TextIO) -> str:
    from pipeline.metadata.store import MetadataError

    try:
        return request.read()
    except UnicodeDecodeError as error:
        raise MetadataError(f"the answer is not UTF-8 text ({error}).") from error


def _json(found: Any) -> str:
    from dataclasses import asdict

    from pipeline.lineage.encode import to_json

    return to_json(asdict(found))


def _write(found: str | Page, kind: str, output: Path | None) -> None:
    """Prints or writes a text, or a page as a tree or as HTML."""
    from pipeline import console
    from pipeline.lineage.page import Page

    if isinstance(found, Page) and kind == _HTML:
        from pipeline.lineage.html import render

        found = render(found)
    if output is not None:
        from pipeline.lineage.text import as_text
        from schemas.files import write_atomically

        text = as_text(found) if isinstance(found, Page) else found
        write_atomically(output, text.encode())
        console.say(f"Written to {output}.")
    elif isinstance(found, Page):
        from pipeline.lineage.text import as_tree

        console.say(as_tree(found))
    else:
        click.echo(found)
