"""`csmf versions`: what was pushed and what of it is served; going back to an older version."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.options import WORKDIR

if TYPE_CHECKING:
    from pipeline.versions import PushedVersion

_MODEL = click.option("--model", help="Needed if several models were pushed there.")
_LATEST = "latest"


class _VersionOrLatest(click.ParamType[int | str]):
    name = "N|latest"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        if value == _LATEST:
            return value
        if value.isdecimal():
            return int(value)
        self.fail(f"{value!r} is neither a version number nor 'latest'", param, ctx)


@click.group()
def versions() -> None:
    """Pushed versions: list them, roll back to one."""


@versions.command("list")
@WORKDIR
@_MODEL
def list_command(workdir: Path, model: str | None) -> None:
    """Show the versions on disk, which is served, and what the running server says of them."""
    from pipeline import console
    from pipeline import versions as logic

    listed = logic.list_versions(workdir, model)
    _show(workdir, listed)
    address = logic.server_address(workdir)
    console.say(f"Server: {address}" if address else "No server runs on this directory.")
    if not any(version.configured for version in listed):
        console.say("The version to serve is not on disk; choose another one.", "red")
    if note := logic.rollback_note(workdir, model):
        console.say(note, "yellow")


def _show(workdir: Path, listed: list[PushedVersion]) -> None:
    from rich.filesize import decimal
    from rich.table import Table
    from rich.text import Text

    from pipeline import console

    names = {name for version in listed for name in version.bytes}
    table = Table(title=Text(f"Versions of {min(names, key=len)} in {workdir}"))
    for column in ("version", "pushed (UTC)", "model", "size", "wanted", "server"):
        table.add_column(column, no_wrap=column != "server")
    for version in listed:
        missing = ", ".join(names - set(version.bytes))
        table.add_row(
            str(version.version),
            f"{version.pushed_at:%Y-%m-%d %H:%M}",
            Text(f"no {missing}" if missing else version.model_id or "flavours differ"),
            decimal(sum(version.bytes.values())),
            "pinned" if version.pinned else "newest" if version.configured else "",
            Text(_state(version)),
        )
    console.say(table)


def _state(version: PushedVersion) -> str:
    """One word if the flavours agree, e.g. AVAILABLE."""
    texts = {
        name: f"{state.state} {state.error_message}".strip()
        for name, state in version.states.items()
    }
    if len(set(texts.values())) <= 1:
        return next(iter(texts.values()), "")
    return "\n".join(f"{name}: {text}" for name, text in texts.items())


@versions.command()
@WORKDIR
@_MODEL
@click.option(
    "--to",
    type=_VersionOrLatest(),
    help="Version to serve, or `latest` to end a rollback. Default: the one before the served one.",
)
@click.option(
    "--timeout-seconds", default=60.0, show_default=True, help="How long to wait for the server."
)
def rollback(
    workdir: Path, model: str | None, to: int | str | None, timeout_seconds: float
) -> None:
    """Serve an older version, and keep serving it.

    Both flavours move together. A running `csmf serve` follows within two polls: it loads the older
    version first and then lets go of the newer one, so no call fails. The rollback outlives
    restarts. Versions pushed later are checked and kept, but NOT served, until
    `csmf versions rollback --to latest`: what made one model bad may make the next one bad, too.

    The choice is the file models.config in the serving directory, a ModelServerConfig. TensorFlow
    Serving obeys it with --model_config_file and --model_config_file_poll_wait_seconds.
    """
    from pipeline import console
    from pipeline import versions as logic

    if isinstance(to, str):
        done = logic.serve_latest(workdir, model, timeout_seconds, console.say)
    else:
        done = logic.roll_back(workdir, model, to, timeout_seconds, console.say)
    if done.seconds is None:
        console.say(f"No server runs here; the next one serves version {done.version}.")
    else:
        console.say(f"Version {done.version} is served, after {done.seconds:.1f} s.", "green")
    if note := logic.rollback_note(workdir, model):
        console.say(note)
