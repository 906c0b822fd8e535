"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

WORKDIR = click.option(
    "--workdir",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Directory of the run: artifacts, metadata, pushed models, summary.json.",
)

# In the workdir.
METADATA_FILE = "metadata.sqlite"
REPORT_FILE = "report.html"

_WORKDIR_OR_METADATA = (
    click.option(
        "--workdir",
        type=click.Path(path_type=Path, file_okay=False),
        help="Directory of the run; its ML Metadata is read.",
    ),
    click.option(
        "--metadata",
        envvar="CSMF_METADATA",
        metavar="URI",
        help="Instead of --workdir: an SQLite file, or mysql://USER:PASSWORD@HOST[:PORT]/DATABASE. "
        "Also from $CSMF_METADATA, which keeps a password out of the shell's history.",
    ),
)


def config_option(required: bool = True, use: str = "") -> Callable[..., Any]:
    """The option --config, which becomes the argument `config_path`.

    Args:
      required: whether the command needs it.
      use: what of the file is read and for what, where that is not all.
    """
    return click.option(
        "--config",
        "config_path",
        type=click.Path(path_type=Path, dir_okay=False),
        required=required,
        help=f"YAML configuration, or the name of a ready one, e.g. movielens-100k. {use}".strip(),
    )


def reads_metadata(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --workdir and --metadata; see `metadata_uri`."""
    for option in reversed(_WORKDIR_OR_METADATA):
        command = option(command)
    return command


def metadata_uri(workdir: Path | None, metadata: str | None) -> str | Path:
    """Where ML Metadata is. A workdir that is named goes before $CSMF_METADATA.

    Raises:
      click.UsageError: neither was given.
    """
    if workdir is not None:
        return workdir / METADATA_FILE
    if metadata is None:
        raise click.UsageError("name the run's directory with --workdir, or its store: --metadata")
    return metadata
