"""The commands of `csmf bench`. Imports what a command needs only when that command runs."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import click

from benchmarks.explorer import explorer
from benchmarks.options import FIGURES
from pipeline.options import config_option


@click.group()
def bench() -> None:
    """Measure the method against baselines, on the configuration's own data."""


def _bench_options(command: Any) -> Any:
    """Options that all benchmarks share."""
    for option in (
        config_option(),
        click.option(
            "--workdir",
            type=click.Path(path_type=Path, file_okay=False),
            help="Where the data nodes run. Default: runs/bench-NAME.",
        ),
        click.option(
            "--json",
            "json_path",
            type=click.Path(path_type=Path, dir_okay=False),
            required=True,
            help="Results; trainings that it holds are not run again.",
        ),
    ):
        command = option(command)
    return command


_SEEDS = click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True)
_WORKERS = click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=max(1, os.cpu_count() or 1),
    help="Trainings at a time, one thread each. Default: the number of cores.",
)
_MARKDOWN = click.option(
    "--markdown",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the table as Markdown, too.",
)


@bench.command()
@_bench_options
@_SEEDS
@_WORKERS
@_MARKDOWN
@click.option("--methods", default="", metavar="NAME,..", help="Only these; default: all.")
@click.option(
    "--dimension", "dimensions", type=int, multiple=True, help="Index dimension; repeatable."
)
def quality(
    config_path: Path,
    workdir: Path | None,
    json_path: Path,
    seeds: int,
    workers: int,
    markdown: Path | None,
    methods: str,
    dimensions: tuple[int, ...],
) -> None:
    """Train and compare CSMF, tower baselines, iALS, item-kNN, EASE and popularity."""
    from benchmarks import quality as table
    from benchmarks.bench import compare
    from pipeline.config import load_config

    config = load_config(config_path)
    trials = table.quality_trials(
        config.objective_names,
        [name for name in methods.split(",") if name],
        dimensions or (config.model.towers.dimension,),
        seeds,
    )
    compare(config, workdir, trials, table.run_method, json_path, workers, markdown)


@bench.command()
@_bench_options
@_SEEDS
@_WORKERS
@_MARKDOWN
def ablation(
    config_path: Path,
    workdir: Path | None,
    json_path: Path,
    seeds: int,
    workers: int,
    markdown: Path | None,
) -> None:
    """Train CSMF with one thing changed at a time."""
    from benchmarks import ablation as table
    from benchmarks.bench import compare
    from pipeline.config import load_config

    config = load_config(config_path)
    trials = table.ablation_trials(config.model.towers.dimension, seeds)
    compare(config, workdir, trials, table.run_variant, json_path, workers, markdown)


@bench.command()
@_bench_options
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True)
@click.option(
    "--baselines",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="File of `csmf bench quality`: its rows become points.",
)
@click.option(
    "--plot",
    "plot_path",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Picture, .png or .svg.",
)
def pareto(
    config_path: Path,
    workdir: Path | None,
    json_path: Path,
    seed: int,
    baselines: Path | None,
    plot_path: Path,
) -> None:
    """Sweep the request weights of one CSMF index and plot it with the baselines."""
    from benchmarks.bench import pareto_of
    from pipeline.config import load_config

    pareto_of(load_config(config_path), workdir, seed, baselines, json_path, plot_path)


@bench.command()
@FIGURES
@click.option(
    "--workdir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs/bench-serving"),
    show_default=True,
    help="Where the model is made; the next run finds it there.",
)
@click.option("--parts", default="", metavar="NAME,..", help="Only these; default: all.")
@click.option("--items", type=click.IntRange(min=1000), default=200_000, show_default=True)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=os.cpu_count() or 1,
    help="Processes of our server, and of those it is compared with. Default: the cores.",
)
@click.option("--clients", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--seconds", type=float, default=5.0, show_default=True, help="Of one measurement.")
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Of the measurements that take turns.",
)
@click.option("--swap-seconds", type=float, default=60.0, show_default=True)
@click.option("--soak-seconds", type=float, default=600.0, show_default=True)
@click.option(
    "--peers-python",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path(".venv-peers/bin/python"),
    show_default=True,
    help="Made by: make peers",
)
@_MARKDOWN
def serving(
    json_path: Path,
    workdir: Path,
    parts: str,
    items: int,
    workers: int,
    clients: int,
    seconds: float,
    rounds: int,
    swap_seconds: float,
    soak_seconds: float,
    peers_python: Path,
    markdown: Path | None,
) -> None:
    """Measure the server against an echo service, the model alone, and FastAPI with HNSW."""
    from benchmarks.serving.run import PARTS, run
    from benchmarks.serving.world import World

    run(
        World(items=items),
        workdir,
        json_path,
        _chosen(parts, PARTS),
        markdown,
        workers=workers,
        clients=clients,
        seconds=seconds,
        rounds=rounds,
        swap_seconds=swap_seconds,
        soak_seconds=soak_seconds,
        peers_python=peers_python.absolute(),
    )


@bench.command()
@FIGURES
@click.option(
    "--workdir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs/bench-ingestion"),
    show_default=True,
    help="Where the log is written; deleted in the end.",
)
@click.option("--rows", type=click.IntRange(min=1000), default=2_000_000, show_default=True)
@click.option(
    "--example-gen-rows",
    type=click.IntRange(min=1000),
    default=200_000,
    show_default=True,
    help="That CsvExampleGen reads of them, which is slow.",
)
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True)
@click.option("--curve", is_flag=True, help="From 0.5 to 10 million rows, too.")
def ingestion(
    json_path: Path,
    workdir: Path,
    rows: int,
    example_gen_rows: int,
    repeats: int,
    seed: int,
    curve: bool,
) -> None:
    """Measure InteractionGen against CsvExampleGen and Arrow's readers, on a synthetic log."""
    from benchmarks.ingestion.log import SyntheticLog
    from benchmarks.ingestion.run import run

    run(SyntheticLog(rows, seed), workdir, json_path, example_gen_rows, repeats, curve)


@bench.command()
@FIGURES
@config_option(required=False)
@click.option(
    "--synthetic-rows", type=click.IntRange(min=10_000), help="Of a drawn log, instead of a config."
)
@click.option(
    "--workdir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the data nodes run. Default: runs/bench-NAME.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=2),
    default=4,
    show_default=True,
    help="Most rounds of training, of recovery, and of the refit.",
)
@click.option("--batches", type=click.IntRange(min=4), default=64, show_default=True)
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=1, help="Of the drawn log.")
def training(
    json_path: Path,
    config_path: Path | None,
    synthetic_rows: int | None,
    workdir: Path | None,
    rounds: int,
    batches: int,
    repeats: int,
    seed: int,
) -> None:
    """Measure the training input, the step, and both inside the CascadedTrainer node."""
    from benchmarks.training_input.run import run, synthetic_config
    from pipeline.config import load_config

    if (config_path is None) == (synthetic_rows is None):
        raise click.UsageError("give either --config or --synthetic-rows")
    if synthetic_rows is not None:
        place = workdir or Path("runs") / "bench-synthetic-log"
        config = synthetic_config(synthetic_rows, seed, place)
    else:
        assert config_path is not None
        config = load_config(config_path)
        place = workdir or Path("runs") / f"bench-{config.name}"
    run(config, synthetic_rows is not None, place, json_path, rounds, batches, repeats)


@bench.command("data-nodes")
@FIGURES
@click.option(
    "--workdir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs/bench-data-nodes"),
    show_default=True,
    help="Where the log and the artifacts are written; deleted in the end.",
)
@click.option("--rows", type=click.IntRange(min=1000), default=2_000_000, show_default=True)
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True)
@click.option("--curve", is_flag=True, help="0.5, 2 and 10 million rows once each, too.")
@click.option(
    "--beam-option",
    "beam_options",
    multiple=True,
    metavar="--NAME=VALUE",
    help="As in the section `beam` of a configuration; repeatable.",
)
def data_nodes(
    json_path: Path,
    workdir: Path,
    rows: int,
    repeats: int,
    seed: int,
    curve: bool,
    beam_options: tuple[str, ...],
) -> None:
    """Measure every node from the log to the transformed examples, on a synthetic log."""
    from benchmarks.data_nodes.run import run
    from benchmarks.ingestion.log import SyntheticLog

    run(SyntheticLog(rows, seed), workdir, json_path, beam_options, repeats, curve)


@bench.command()
@FIGURES
@click.option("--parts", default="", metavar="NAME,..", help="Only these; default: all.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True)
@click.option(
    "--scale",
    type=click.FloatRange(min=0.0, max=1.0, min_open=True),
    default=1.0,
    show_default=True,
    help="Of the sizes in docs/scaling.md.",
)
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True)
def costs(json_path: Path, parts: str, repeats: int, scale: float, seed: int) -> None:
    """Measure what an event, an item, an id and a parameter cost, for docs/scaling.md."""
    from benchmarks.costs.measure import PARTS
    from benchmarks.costs.run import run

    run(json_path, _chosen(parts, PARTS), repeats, scale, seed)


def _chosen(parts: str, known: Collection[str]) -> list[str]:
    """The names in `parts`, or all that are known."""
    chosen = [name for name in parts.split(",") if name] or list(known)
    if unknown := set(chosen) - set(known):
        raise click.BadParameter(f"{', '.join(sorted(unknown))}: choose from {', '.join(known)}")
    return chosen


bench.add_command(explorer)
