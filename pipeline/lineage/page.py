"""What a reader sees, before it becomes a tree in the terminal or a page of HTML."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

SHOWN_DIGITS = 16  # of a SHA-256; enough for `--made-from`

NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
      columns: headings; those that begin with "#" are of numbers.
      rows: as many cells each.
      title: "" for none.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""

    @property
    def headings(self) -> tuple[str, ...]:
        """Texts of the headings."""
        return tuple(column.removeprefix("#") for column in self.columns)

    def is_number(self, column: int) -> bool:
        """Whether a column is of numbers."""
        return self.columns[column].startswith("#")


@dataclass(frozen=True)
class Outline:
    """A line with lines below it."""

    text: str
    details: tuple[str, ...] = ()
    children: tuple[Outline, ...] = ()


@dataclass(frozen=True)
class Section:
    """A part with a heading."""

    title: str
    content: tuple[str | Table | Outline, ...]


@dataclass(frozen=True)
class Page:
    """The whole.

    Attributes:
      title: heading.
      lead: first lines.
      notes: what is missing, and other things to know before reading on.
      sections: the rest.
    """

    title: str
    lead: tuple[str, ...]
    notes: tuple[str, ...]
    sections: tuple[Section, ...]


def show(value: Any) -> str:
    """A value as text: short, and clear about what is not there."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, str):
        return value
    if isinstance(value, list) and not any(isinstance(part, dict | list) for part in value):
        return ", ".join(show(part) for part in value) or "none"
    return json.dumps(value, ensure_ascii=False)


def show_time(moment: datetime | None) -> str:
    """A moment, which the text around it says to be UTC."""
    return NOT_RECORDED if moment is None else f"{moment:%Y-%m-%d %H:%M:%S}"


def show_digest(sha256: str) -> str:
    """The beginning of a hash."""
    return sha256[:SHOWN_DIGITS] or NOT_RECORDED


def show_rows(count: int | None) -> str:
    """A number of rows."""
    return NOT_RECORDED if count is None else show(count)
