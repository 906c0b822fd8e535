"""Times, memory, and what went wrong."""

from __future__ import annotations

import json

from pipeline.report.blocks import Block, Code, Heading, Note
from pipeline.report.data import Known, ReportData
from pipeline.report.figures.nodes import nodes
from pipeline.report.sections.notes import missing, not_recorded


def nodes_section(data: ReportData) -> list[Block]:
    """One bar per node; error and end of the log of those that ended badly."""
    if not data.nodes:
        return [missing("no node of this run has begun.")]
    blocks: list[Block] = [nodes(data.nodes)]
    if all(node.peak_bytes is None for node in data.nodes):
        blocks.append(not_recorded("memory is"))
    for node in data.nodes:
        if node.log is None:
            continue
        blocks.append(Heading(f"{node.name}: {node.state.lower()}"))
        if node.error:
            blocks.append(Code("Error", node.error, folded=False))
        else:
            blocks.append(not_recorded("the error is"))
        if isinstance(node.log, Known):
            blocks.append(Code(f"End of {node.log.note}", node.log.value, folded=False))
        else:
            blocks.append(missing(node.log.reason))
    return blocks


def configuration_section(data: ReportData) -> list[Block]:
    """What the run was asked to do."""
    if not data.run.config:
        return [not_recorded("the configuration is")]
    written = json.dumps(data.run.config, indent=2, ensure_ascii=False)
    return [
        Note("Settings that differ from their defaults."),
        Code("Configuration as JSON", written, folded=True),
    ]
