"""A page as a tree in the terminal."""

from __future__ import annotations

import io

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text
from rich.tree import Tree

from pipeline.lineage.page import Outline, Page, Table

_FILE_WIDTH = 165


def as_tree(page: Page) -> Tree:
    """Returns the tree; nothing in it depends on colours."""
    tree = Tree(
        Group(
            _text(page.title, "bold"),
            *(_text(line) for line in page.lead),
            *(_text(f"note: {line}", "yellow") for line in page.notes),
        )
    )
    for section in page.sections:
        branch = tree.add(_text(section.title, "bold cyan"))
        for part in section.content:
            _add(branch, part)
    return tree


def as_text(page: Page) -> str:
    """The tree as characters, for a file."""
    file = io.StringIO()
    Console(file=file, width=_FILE_WIDTH, emoji=False, color_system=None).print(as_tree(page))
    return file.getvalue()


def _add(branch: Tree, part: str | Table | Outline) -> None:
    if isinstance(part, str):
        branch.add(_text(part))
    elif isinstance(part, Table):
        branch.add(_table(part))
    else:
        lines = [_text(part.text), *(_text(line, "dim") for line in part.details)]
        below = branch.add(Group(*lines))
        for child in part.children:
            _add(below, child)


def _table(table: Table) -> RenderableType:
    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    for column, heading in enumerate(table.headings):
        drawn.add_column(
            _text(heading),
            justify="right" if table.is_number(column) else "left",
            overflow="fold",
        )
    for row in table.rows:
        drawn.add_row(*(_text(cell) for cell in row))
    return Group(_text(table.title, "bold"), drawn) if table.title else drawn


def _text(text: str, style: str = "") -> Text:
    """Data as it is, except what would move the cursor or change colours."""
    shown = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)
    return Text(shown, style)
