"""The command `csmf explore`."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.options import WORKDIR


@click.command()
@WORKDIR
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8600,
    show_default=True,
    help="Of the page, on this machine only; 0 = any free port.",
)
@click.option(
    "--address", help="host:port of a gRPC server; default: the workdir's, or one is started."
)
@click.option("--model", help="Name of the served model; needed only if several were pushed.")
def explore(workdir: Path, port: int, address: str | None, model: str | None) -> None:
    """Try the served model in a browser: users, weights, versions side by side.

    Serves one page until interrupted. Without a running `csmf serve` it starts a server of its own
    for as long.
    """
    from pipeline.explorer.app import run

    run(workdir, port, address, model)
