"""`ReportData` -> one HTML file."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from pipeline.metadata.store import open_store
from pipeline.pages import environment
from pipeline.report.blocks import Badge, Block, Note, Section
from pipeline.report.collect import collect
from pipeline.report.data import ReportData
from pipeline.report.figures.nodes import state_badge
from pipeline.report.sections.data import data_section
from pipeline.report.sections.evaluation import (
    examples_section,
    index_section,
    metrics_section,
    weights_section,
)
from pipeline.report.sections.gates import gates
from pipeline.report.sections.nodes import configuration_section, nodes_section
from pipeline.report.sections.summary import summary
from pipeline.report.sections.training import ownership_section, training_section
from schemas.files import write_atomically

_log = logging.getLogger("csmf")

_SECTIONS: tuple[tuple[str, str, Callable[[ReportData], list[Block]]], ...] = (
    ("summary", "Summary", summary),
    ("gates", "Gates", gates),
    ("data", "Data", data_section),
    ("training", "Training", training_section),
    ("ownership", "Ownership of layers", ownership_section),
    ("metrics", "Metrics", metrics_section),
    ("index", "ANN index", index_section),
    ("weights", "Request weights", weights_section),
    ("examples", "Examples", examples_section),
    ("nodes", "Nodes", nodes_section),
    ("configuration", "Configuration", configuration_section),
)


def write_report(where: str | Path, run_id: str | None, path: Path) -> Path:
    """Writes the page about a run.

    Args:
      where: of ML Metadata; see `pipeline.metadata.store.open_store`.
      run_id: or the beginning of it; None = the newest.
      path: of the page; replaced atomically.

    Returns:
      `path`.

    Raises:
      MetadataError: there is no such store or run.
    """
    page = render(collect(open_store(where), run_id))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page.encode("utf-8", errors="replace"))
    return path


def render(data: ReportData) -> str:
    """The page, a document without references to anything outside of it."""
    template = environment("pipeline.report").get_template("report.html.j2")
    return template.render(
        run=data.run,
        state=state_badge(data.run.state),
        sections=[_section(data, *section) for section in _SECTIONS],
        kind=lambda block: type(block).__name__,
        is_badge=lambda cell: isinstance(cell, Badge),
    )


def _section(
    data: ReportData, anchor: str, title: str, make: Callable[[ReportData], list[Block]]
) -> Section:
    try:
        return Section(anchor, title, tuple(make(data)))
    except Exception as error:
        # The report is written when a run has failed, too: a fault in one drawing must neither
        # cost the other sections nor stand before what ended the run.
        _log.exception("report: the section %s could not be made", title)
        said = f"This section could not be made: {type(error).__name__}: {error}"
        return Section(anchor, title, (Note(said, "bad"),))
