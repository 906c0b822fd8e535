"""The pages about several versions: the list, what was made from a file, what changed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.lineage.diff import Change, Diff
from pipeline.lineage.forward import MadeFrom
from pipeline.lineage.page import (
    NOT_RECORDED,
    Page,
    Section,
    Table,
    show,
    show_digest,
    show_rows,
    show_time,
)
from pipeline.lineage.pushes import Push
from pipeline.metadata.runs import Run

_PUSH = ("#version", "model", "pushed (UTC)", "model id")
_DEFAULT = "(default)"
_NONE = "(none)"
_DIGEST = re.compile("[0-9a-f]{64}")


def list_page(pushes: Sequence[Push], unfinished: Sequence[Run]) -> Page:
    """All pushed versions, the newest first.

    Args:
      pushes: versions, the oldest first.
      unfinished: runs since, which did not come to their end.
    """
    rows = tuple(
        (*_push(push), push.run or NOT_RECORDED, _place(push)) for push in reversed(pushes)
    )
    return Page(
        "Pushed versions",
        ("one of them: --version N; its files and runs: --format json",),
        tuple(f"Run {run.id}, newer than these, is {run.state}." for run in unfinished),
        (
            Section(
                "Versions",
                (Table((*_PUSH, "run", "files"), rows),),
            ),
        ),
    )


def made_from_page(found: MadeFrom) -> Page:
    """Versions that were made from a file."""
    content: tuple[str | Table, ...] = ("none",)
    if found.uses:
        rows = tuple(
            (
                *_push(use.push),
                use.source.path,
                use.source.role or NOT_RECORDED,
                show_rows(use.source.rows),
                {True: "as the file is now", False: "not as the file is now", None: ""}[
                    use.same_content
                ],
            )
            for use in found.uses
        )
        columns = (
            "#version",
            "model",
            "pushed (UTC)",
            "model id",
            "file",
            "as",
            "#rows",
            "content",
        )
        content = (Table(columns, rows),)
    sections = [Section("Versions, the oldest first", content)]
    if found.unpushed:
        runs = tuple((run.run, run.state) for run in found.unpushed)
        sections.append(
            Section("Runs that read it and pushed nothing", (Table(("run", "state"), runs),))
        )
    return Page(f"Made from {found.asked}", (), (), tuple(sections))


def diff_page(diff: Diff) -> Page:
    """What changed between two versions."""
    return Page(
        f"{diff.model}: version {diff.old} compared with version {diff.new}",
        (),
        diff.notes,
        tuple(
            Section(title, content or ("no difference",))
            for title, content in (
                ("Model and code", tuple(_changes(diff, diff.general, _NONE))),
                ("Configuration", _config(diff)),
                ("Seeds", tuple(_changes(diff, diff.seeds, _NONE))),
                ("Data", tuple(_changes(diff, diff.data, _NONE))),
                ("Schemas", tuple(_changes(diff, diff.schemas, _NONE))),
                ("Settings of the stages", tuple(_changes(diff, diff.stages, _NONE))),
                ("Slots owned", tuple(_slots(diff))),
                ("Metrics", tuple(_metrics(diff))),
                ("Checks", tuple(_changes(diff, diff.checks, _NONE))),
            )
        ),
    )


def _push(push: Push) -> tuple[str, ...]:
    model_id = push.model_id or NOT_RECORDED
    return str(push.version), push.model, show_time(push.pushed), model_id


def _place(push: Push) -> str:
    return "deleted" if push.deleted else push.destination or NOT_RECORDED


def _versions(diff: Diff) -> tuple[str, str]:
    return f"#version {diff.old}", f"#version {diff.new}"


def _changes(diff: Diff, changes: Sequence[Change], absent: str) -> Iterator[Table]:
    if changes:
        old, new = (name.removeprefix("#") for name in _versions(diff))
        yield Table(
            ("what", old, new),
            tuple(
                (change.what, _shown(change.old, absent), _shown(change.new, absent))
                for change in changes
            ),
        )


def _config(diff: Diff) -> tuple[str | Table, ...]:
    if diff.config is None:
        return (f"not compared: {NOT_RECORDED} of both",)
    return tuple(_changes(diff, diff.config, _DEFAULT))


def _shown(value: Any, absent: str) -> str:
    if value is None:
        return absent
    is_digest = isinstance(value, str) and _DIGEST.fullmatch(value) is not None
    return show_digest(value) if is_digest else show(value)


def _slots(diff: Diff) -> Iterator[Table]:
    if diff.slots:
        yield Table(
            ("stage", "layer", *_versions(diff), "#difference"),
            tuple(
                (
                    change.stage,
                    change.layer,
                    show(change.old) or _NONE,
                    show(change.new) or _NONE,
                    f"{(change.new or 0) - (change.old or 0):+,}",
                )
                for change in diff.slots
            ),
        )


def _metrics(diff: Diff) -> Iterator[Table]:
    if diff.metrics:
        yield Table(
            ("objective", "metric", *_versions(diff), "#difference"),
            tuple(
                (
                    change.objective,
                    change.metric,
                    show(change.old) or _NONE,
                    show(change.new) or _NONE,
                    "" if change.difference is None else f"{change.difference:+.5g}",
                )
                for change in diff.metrics
            ),
        )
