"""A page as one HTML file that opens without a network."""

from __future__ import annotations

from pathlib import Path

from pipeline.lineage.page import Outline, Page, Table
from pipeline.lineage.query import version_lineage
from pipeline.lineage.version_page import version_page
from pipeline.pages import environment

_TEMPLATE = "page.html.j2"


def page(where: str | Path, version: int, model: str | None = None) -> str:
    """Returns the page about a pushed version.

    Args:
      where: the store; see `pipeline.metadata.store.open_store`.
      version: its number.
      model: served name; needed only if several models have that version.

    Raises:
      MetadataError: no store, or no such version.
    """
    return render(version_page(version_lineage(where, version, model), full=True))


def render(content: Page) -> str:
    """Returns the HTML of a page; every text of it is escaped."""
    templates = environment("pipeline.lineage")
    templates.tests |= {
        "table": lambda part: isinstance(part, Table),
        "outline": lambda part: isinstance(part, Outline),
    }
    return templates.get_template(_TEMPLATE).render(page=content)
