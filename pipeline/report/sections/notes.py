"""What stands where a part is missing, or comes from elsewhere."""

from __future__ import annotations

from typing import Any

from pipeline.report.blocks import Block, Note
from pipeline.report.data import Missing, Part


def of_part(part: Part[Any]) -> list[Block]:
    """Why a part is not there, or the note on one that is; nothing if all is plain."""
    if isinstance(part, Missing):
        return [missing(part.reason)]
    return [Note(part.note)] if part.note else []


def missing(reason: str) -> Note:
    """A paragraph that says so."""
    return Note(f"Missing: {reason}", "missing")


def not_recorded(what: str) -> Note:
    """For what a node has recorded only since a later version of csmf."""
    return missing(f"{what} not recorded by this run.")
