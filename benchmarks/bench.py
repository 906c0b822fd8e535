"""What the commands of `csmf bench` do."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks import pareto, tables
from benchmarks.runner import Results, Run, Trial, run_trials
from benchmarks.split import load, prepare
from pipeline import console
from pipeline.config import PipelineConfig
from schemas.settings import ConfigError


def compare(
    config: PipelineConfig,
    workdir: Path | None,
    trials: Sequence[Trial],
    run: Run,
    json_path: Path,
    workers: int,
    markdown: Path | None,
) -> None:
    """Prepares the data, runs the missing trials, prints the table of all results so far."""
    place = workdir or _default_workdir(config)
    results = Results(json_path, config)
    console.say(f"{config.name}: preparing the data (about half a minute unless it is cached)")
    prepare(config, place, console.say)
    try:
        run_trials(config, place, trials, run, results, workers, console.say)
    finally:
        header, lines = tables.rows(results.content, config.objective_names)
        console.say_wide(tables.terminal(f"{config.name}, held-out events", header, lines))
        if markdown:
            markdown.write_text(tables.markdown(header, lines), encoding="utf-8")


def pareto_of(
    config: PipelineConfig,
    workdir: Path | None,
    seed: int,
    baselines: Path | None,
    json_path: Path,
    plot_path: Path,
) -> None:
    """Trains CSMF once, sweeps its request weights, writes the points and the picture."""
    objectives = config.objective_names
    if len(objectives) < 2:
        raise ConfigError("a Pareto plot needs two objectives; the configuration has one")
    place = workdir or _default_workdir(config)
    prepare(config, place, console.say)
    console.say("training CSMF")
    points = pareto.sweep(load(config, place), seed)
    dimension = config.model.towers.dimension
    others = [] if baselines is None else pareto.baselines(baselines, objectives, dimension)
    json_path.write_text(
        json.dumps([dataclasses.asdict(point) for point in (*points, *others)], indent=1),
        encoding="utf-8",
    )
    pareto.plot(points, others, objectives, plot_path)
    console.say(f"{len(points)} weightings of one index, {len(others)} baselines: {plot_path}")


def _default_workdir(config: PipelineConfig) -> Path:
    return Path("runs") / f"bench-{config.name}"
