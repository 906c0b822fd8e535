"""The command line, `csmf`. Imports what a command needs only when that command runs."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchmarks.cli import bench
from pipeline.batch_recommend.command import batch_recommend
from pipeline.explorer.command import explore
from pipeline.kubeflow.command import compile_command
from pipeline.lineage.command import lineage
from pipeline.options import WORKDIR, config_option
from pipeline.report.command import report
from pipeline.runs_command import runs
from pipeline.versions_command import versions

if TYPE_CHECKING:
    from pipeline.dag import Workdir

EXIT_NOT_BLESSED = 3


class _Group(click.Group):
    """Ends in one line of text where the user can do something about the error."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort):  # click's own, and RuntimeErrors
            raise
        except (ValueError, RuntimeError, OSError) as error:
            if ctx.params.get("verbose"):
                raise
            raise click.ClickException(
                f"{error}\n(csmf -v shows where in the code this happened)"
            ) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-v", "--verbose", is_flag=True, help="Show the logs of TFX, Beam and TensorFlow.")
@click.version_option(package_name="csmf")
def main(verbose: bool) -> None:
    """Multi-objective recommendation retrieval: ingest, train, check, push, serve."""
    # Before the first import of TensorFlow, here and in child processes. TFRS needs legacy Keras
    # (tensorflow/recommenders#712).
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if verbose else "3")
    if not verbose:
        os.environ.setdefault("PYTHONWARNINGS", "ignore")
    from pipeline.console import set_up_logging

    set_up_logging(verbose)


@main.command()
@config_option()
@WORKDIR
@click.option("--from-node", help="First node to run; earlier ones come from a run before.")
@click.option("--to-node", help="Last node to run.")
@click.option("--no-cache", is_flag=True, help="Execute the nodes even if nothing has changed.")
def run(
    config_path: Path, workdir: Path, from_node: str | None, to_node: str | None, no_cache: bool
) -> None:
    """Run the pipeline: logs in, a checked and pushed model out.

    Exit code 3: a model was made, but it did not pass the gates and was not pushed.
    """
    started = time.monotonic()
    from pipeline.config import load_config

    config = load_config(config_path)
    from components.interaction_gen.files import plan_work
    from pipeline import console

    plan_work(config.data)  # a missing file or column is told now, not after half a minute

    console.say(f"{config.name}: starting TFX (about half a minute)")
    from pipeline.dag import Workdir
    from pipeline.local.runner import run_locally
    from pipeline.summary import summarise, write_summary
    from schemas.settings import ConfigError

    place = Workdir(workdir)
    try:
        run_locally(config, place, from_node, to_node, not no_cache, console.NodeProgress())
    except ConfigError:  # nothing has begun
        raise
    except Exception:  # whatever it was, the run is worth a look
        _write_report(place)
        raise
    _write_report(place)
    summary = summarise(config, place, time.monotonic() - started)
    write_summary(summary, place.summary)
    console.show_summary(summary, place.summary)
    if summary["pushed_version"] is not None:
        from pipeline.versions import rollback_note

        if note := rollback_note(workdir, config.serving.model_name):
            console.say(note, "yellow")
    if summary["blessed"] is False:
        sys.exit(EXIT_NOT_BLESSED)


def _write_report(place: Workdir) -> None:
    from pipeline import console
    from pipeline.report.render import write_report

    try:
        write_report(place.metadata, None, place.report)
    except Exception as error:  # a picture that cannot be drawn must not undo or hide a run
        console.say(
            f"No report: {error!r}. Try again: csmf -v report --workdir {place.root}", "red"
        )
    else:
        console.say(f"Report: {place.report}")


@main.command()
@WORKDIR
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8500, show_default=True, help="0 = any free port.")
@click.option(
    "--rest-port", type=click.IntRange(min=0), help="REST and metrics; 0 = any free port."
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes that share the ports, each with the models in its own memory.",
)
@click.option(
    "--batching/--no-batching",
    default=True,
    show_default=True,
    help="Run concurrent calls together.",
)
@click.option(
    "--poll-seconds", default=1.0, show_default=True, help="Look for new versions and rollbacks."
)
def serve(
    workdir: Path,
    host: str,
    port: int,
    rest_port: int | None,
    workers: int,
    batching: bool,
    poll_seconds: float,
) -> None:
    """Serve the pushed models over the TensorFlow Serving API.

    Both flavours are served: the model with ScaNN ops under its name, the other with `_stock`
    appended. New versions are picked up while serving, and so is `csmf versions rollback`.
    """
    from pipeline.serve import serve_workdir

    serve_workdir(workdir, host, port, rest_port, workers, batching, poll_seconds)


@main.command()
@WORKDIR
@click.option("--user", required=True, help="User id.")
@click.option(
    "--weights",
    multiple=True,
    metavar="NAME=WEIGHT,..",
    help="Weights of the objectives, e.g. click=1,conversion=2; those left out weigh 0. "
    "Give it several times to compare. Default: all weigh 1.",
)
@click.option(
    "-n",
    "count",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Items per list.",
)
@click.option("--exclude", multiple=True, help="Item id that must not come back; repeatable.")
@click.option("--address", help="host:port of a server; default: the workdir's, or one is started.")
@click.option("--json", "as_json", is_flag=True, help="For machines, and `csmf lineage --request`.")
def recommend(
    workdir: Path,
    user: str,
    weights: tuple[str, ...],
    count: int,
    exclude: tuple[str, ...],
    address: str | None,
    as_json: bool,
) -> None:
    """Print a table of recommended titles for one user, one column per weighting."""
    from pipeline import recommend as logic

    answer = logic.recommend(workdir, user, weights, count, exclude, address)
    if as_json:
        click.echo(answer.to_json())
    else:
        logic.show(answer)


@main.group()
def datasets() -> None:
    """Public data sets that the ready configurations use."""


@datasets.command("list")
def list_datasets() -> None:
    """Name the data sets that `fetch` knows."""
    from pipeline.datasets import DATASETS

    for dataset in DATASETS.values():
        click.echo(dataset.name)


@datasets.command()
@click.argument("name")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("data"),
    show_default=True,
    help="Where the configurations look for it.",
)
def fetch(name: str, data_dir: Path) -> None:
    """Download a data set, check its hash, and say under which terms it stands."""
    from pipeline.datasets import fetch as fetch_dataset

    directory = fetch_dataset(name, data_dir, click.echo)
    click.echo((directory / "TERMS.txt").read_text(encoding="utf-8"))


for command in (batch_recommend, bench, compile_command, explore, lineage, report, runs, versions):
    main.add_command(command)


if __name__ == "__main__":
    main()
