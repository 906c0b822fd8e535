"""Options that several benchmarks share."""

from __future__ import annotations

from pathlib import Path

import click

FIGURES = click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Figures.",
)
