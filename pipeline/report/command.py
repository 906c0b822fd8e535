"""`csmf report`."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.options import METADATA_FILE, REPORT_FILE, WORKDIR


@click.command()
@WORKDIR
@click.option(
    "--run",
    "run_id",
    metavar="ID",
    help="Of `csmf runs`, or the beginning of one. Default: the newest.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"Default: {REPORT_FILE} in the workdir.",
)
def report(workdir: Path, run_id: str | None, output: Path | None) -> None:
    """Write the page about a run again: one HTML file that opens offline.

    `csmf run` writes it at its end. A run that failed, or that is still under way, gives a page of
    what is known so far.
    """
    from pipeline import console
    from pipeline.report.render import write_report

    path = write_report(workdir / METADATA_FILE, run_id, output or workdir / REPORT_FILE)
    console.say(f"Report: {path}")
