"""What a section of the page is made of. Texts are plain; the template escapes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Badge:
    """A state in words, with a colour and a sign beside them.

    Attributes:
      text: one or two words.
      kind: good, bad or neutral.
    """

    text: str
    kind: Literal["good", "bad", "neutral"]


Cell = str | Badge


@dataclass(frozen=True)
class Table:
    """Rows of text.

    Attributes:
      title: what it shows.
      columns: headings; the first column names the row.
      rows: as wide as `columns`.
      numeric: which columns are aligned to the right.
      folded: shown on demand only.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]
    numeric: frozenset[int] = frozenset()
    folded: bool = False


@dataclass(frozen=True)
class Beside:
    """Small tables that stand in one row where there is room."""

    tables: tuple[Table, ...]


@dataclass(frozen=True)
class Figure:
    """A plot, and everything it says in words and numbers.

    Attributes:
      svg: our own drawing, the only markup that is not escaped.
      alt: what is to be seen, for those who cannot see it.
      caption: how to read it.
      table: the numbers; None where a table of its own stands beside the plot.
    """

    svg: str
    alt: str
    caption: str
    table: Table | None


@dataclass(frozen=True)
class Note:
    """A paragraph.

    Attributes:
      text: of it.
      kind: plain, missing (a part is not there) or bad (something failed).
    """

    text: str
    kind: Literal["plain", "missing", "bad"] = "plain"


@dataclass(frozen=True)
class Heading:
    """The title of what follows inside a section."""

    text: str


@dataclass(frozen=True)
class Facts:
    """Terms and what they are."""

    rows: tuple[tuple[str, Cell], ...]


@dataclass(frozen=True)
class Code:
    """Text as it is: a log, a configuration."""

    title: str
    text: str
    folded: bool


Block = Figure | Table | Beside | Note | Heading | Facts | Code


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
      id: of its anchor.
      title: in the table of contents, too.
      blocks: from top to bottom.
    """

    id: str
    title: str
    blocks: tuple[Block, ...]
