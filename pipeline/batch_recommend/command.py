"""The command `csmf batch-recommend`."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.options import WORKDIR, config_option


@click.command("batch-recommend")
@WORKDIR
@click.option(
    "--users",
    required=True,
    metavar="FILES",
    help="Who to recommend to: a .parquet, .csv or .jsonl file, or a glob. Columns are named as "
    "the inputs of the endpoint; `user_id` is required, e.g. `history_item_ids` is not. Lists in "
    "CSV are separated by |.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="Directory to make: recommendations/*.parquet, dead_letters.jsonl, summary.json. It "
    "appears when all is written.",
)
@click.option(
    "--weights",
    metavar="NAME=WEIGHT,..",
    help="Weights of the objectives, e.g. click=1,conversion=2; those left out weigh 0. "
    "Default: all weigh 1.",
)
@click.option(
    "-n",
    "count",
    type=click.IntRange(min=1),
    help="Items per list. Default: all that the model returns.",
)
@click.option(
    "--version", type=int, help="Of the pushed model. Default: what `csmf serve` would serve."
)
@click.option("--model", help="Name of the pushed model; needed only if several were pushed.")
@click.option(
    "--stock", is_flag=True, help="Ask the flavour without ScaNN ops, for workers without ScaNN."
)
@config_option(
    required=False,
    use="Its `beam` section says where to run. Default: in this process.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Users in one run of the model. 1 gives exactly what the server answers to a request; "
    "more is faster, and the last digits of scores then depend on who is asked for together.",
)
def batch_recommend(
    workdir: Path,
    users: str,
    output: Path,
    weights: str | None,
    count: int | None,
    version: int | None,
    model: str | None,
    stock: bool,
    config_path: Path | None,
    batch_size: int,
) -> None:
    """Write recommendations for every row of a table of users.

    A row that cannot be used is a line of dead_letters.jsonl, with the reason; rows read = written
    + dead letters.
    """
    from pipeline.config import BeamSettings, load_config

    beam = load_config(config_path).beam if config_path else BeamSettings()
    from pipeline import console

    console.say(f"Recommendations for {users}: starting TensorFlow and Beam")
    from pipeline.batch_recommend.job import Request, run

    request = Request(workdir, users, output, weights, count, version, model, stock, batch_size)
    result = run(request, beam.arguments())
    dead = sum(result.dead_letters.values())
    console.say(
        f"{result.read:,} rows read, {result.written:,} lists written by {result.model} version "
        f"{result.version}, {dead:,} dead letters, {result.seconds:.1f} s: {output}"
    )
    if dead:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in sorted(result.dead_letters.items()))
        console.say(f"Not used: {reasons}. See {output / 'dead_letters.jsonl'}", "yellow")
