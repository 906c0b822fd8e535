"""Prepares the data, measures in fresh processes, prints and saves the figures."""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from benchmarks.ingestion.log import LABEL, OBJECTIVES, SyntheticLog, data_section
from benchmarks.processes import machine
from benchmarks.split import prepare
from pipeline import console
from pipeline.config import PipelineConfig
from schemas.files import write_atomically

LEAST_INPUT_SPEED = 3.0  # times the step's
LEAST_NODE_SPEED = 0.85  # of the bare loop's


def synthetic_config(rows: int, seed: int, workdir: Path) -> PipelineConfig:
    """A configuration with default settings over a synthetic log, which is written first."""
    place = workdir / "synthetic-log"
    console.say(f"writing {rows:,} synthetic rows to {place}")
    SyntheticLog(rows, seed).write(place)
    return PipelineConfig.parse(
        {
            "name": "synthetic-log",
            "objectives": [{"name": name} for name in OBJECTIVES],
            "data": data_section((place / "log.parquet").absolute()),
        }
    )


def run(
    config: PipelineConfig,
    synthetic: bool,
    workdir: Path,
    json_path: Path,
    rounds: int,
    batches: int,
    repeats: int,
) -> None:
    """Runs the benchmark.

    Args:
      config: of the data and of the model.
      synthetic: its log was drawn.
      workdir: where the data nodes run.
      json_path: gets the figures.
      rounds: most rounds of training, of recovery, and of the refit, of a node.
      batches: of one measurement of the input and of the step alone.
      repeats: each in a process of its own.
    """
    # Imported by name in the other process; here it would load TensorFlow before it is needed.
    from benchmarks.training_input.measure import measure

    console.say(f"{config.name}: preparing the data (about half a minute unless it is cached)")
    prepare(config, workdir, console.say)
    content: dict[str, Any] = {
        "data": LABEL if synthetic else config.name,
        "config_sha256": config.sha256(),
        "rounds": rounds,
        "machine": machine(),
        "repeats": [],
    }
    # Spawned, because TensorFlow does not survive a fork; one task each, so that memory is freed.
    with concurrent.futures.ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        for repeat in range(repeats):
            content["repeats"].append(
                pool.submit(measure, config, workdir, rounds, batches).result()
            )
            console.say(f"measured {repeat + 1} of {repeats}")
    content["summary"] = summarise(content)
    write_atomically(json_path, json.dumps(content, indent=1).encode())
    title = f"{config.name}{', synthetic' if synthetic else ''}, {os.cpu_count()} cores"
    console.say_wide(speeds(content, f"Training, {title}"))
    console.say_wide(targets(content, f"csmf bench training, {title}"))


def figures(measured: dict[str, Any]) -> dict[str, float]:
    """Rates and ratios of one stage in one repeat; see `speeds` and `targets`."""
    alone, phases = measured["alone"], measured["phases"]
    rows = sum(part["rows"] for part in alone)
    positives = sum(part["positives"] for part in alone)
    batches = sum(part["batches"] for part in alone)

    def seconds(what: str, key: str = "seconds") -> float:
        return sum(part[what][key] for part in alone)

    def node(first: bool) -> tuple[int, float]:
        """(rows, seconds) of the node's steps, with the rounds in which a step is traced or not."""
        skipped = [0 if first or phase["name"] == "recover" else 1 for phase in phases]
        return (
            sum(sum(p["round_rows"][n:]) for p, n in zip(phases, skipped, strict=True)),
            sum(sum(p["step_seconds"][n:]) for p, n in zip(phases, skipped, strict=True)),
        )

    steady_rows, steady_seconds = node(first=False)
    all_rows, all_seconds = node(first=True)
    bare = rows / seconds("step")
    rounds_seconds = sum(p["seconds"] for p in phases)
    return {
        "rows_per_batch": rows / batches,
        "positives_per_row": positives / rows,
        "candidates": max(part["candidates"] for part in alone),
        "input_batches_per_second": batches / seconds("input"),
        "input_rows_per_second": rows / seconds("input"),
        "input_positives_per_second": positives / seconds("input"),
        "input_cpu_ms": 1e3 * seconds("input", "cpu_seconds") / batches,
        "step_ms": 1e3 * seconds("step") / batches,
        "step_cpu_ms": 1e3 * seconds("step", "cpu_seconds") / batches,
        "bare_rows_per_second": bare,
        "bare_positives_per_second": positives / seconds("step"),
        "node_rows_per_second": steady_rows / steady_seconds,
        "node_positives_per_second": steady_rows / steady_seconds * positives / rows,
        "input_times_step": seconds("step") / seconds("input"),
        "input_times_step_cpu": seconds("step", "cpu_seconds") / seconds("input", "cpu_seconds"),
        "node_of_bare": steady_rows / steady_seconds / bare,
        "node_of_bare_with_tracing": all_rows / all_seconds / bare,
        "node_of_bare_with_validation": all_rows / rounds_seconds / bare,
        "node_of_bare_in_all": all_rows / measured["node_seconds"] / bare,
        "load": measured["load_before"],
    }


def summarise(content: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Objective -> figure -> its value in every repeat."""
    summary: dict[str, dict[str, list[float]]] = {}
    for repeat in content["repeats"]:
        for measured in repeat:
            of_stage = summary.setdefault(measured["objective"], {})
            for name, value in figures(measured).items():
                of_stage.setdefault(name, []).append(round(value, 4))
    return summary


def speeds(content: dict[str, Any], title: str) -> Table:
    """Rates of every stage: medians over the repeats, and from the smallest to the largest."""
    table = Table(title=title)
    table.add_column("")
    for objective in content["summary"]:
        table.add_column(objective, justify="right", no_wrap=True)
    lines: list[tuple[str, str, Callable[[float], str]]] = [
        ("rows of a batch", "rows_per_batch", "{:,.0f}".format),
        ("positives of a row", "positives_per_row", "{:.2f}".format),
        ("candidates", "candidates", "{:,.0f}".format),
        ("input alone: batches/s", "input_batches_per_second", "{:,.0f}".format),
        ("input alone: rows/s", "input_rows_per_second", "{:,.0f}".format),
        ("input alone: positives/s", "input_positives_per_second", "{:,.0f}".format),
        ("input alone: CPU ms a batch", "input_cpu_ms", "{:.1f}".format),
        ("bare loop: ms a step", "step_ms", "{:.1f}".format),
        ("bare loop: CPU ms a step", "step_cpu_ms", "{:.1f}".format),
        ("bare loop: rows/s", "bare_rows_per_second", "{:,.0f}".format),
        ("bare loop: positives/s", "bare_positives_per_second", "{:,.0f}".format),
        ("node: rows/s while it trains", "node_rows_per_second", "{:,.0f}".format),
        ("node: positives/s while it trains", "node_positives_per_second", "{:,.0f}".format),
        ("load before", "load", "{:.1f}".format),
    ]
    for label, name, shown in lines:
        table.add_row(label, *(_spread(of[name], shown) for of in content["summary"].values()))
    return table


def targets(content: dict[str, Any], title: str) -> Table:
    """What was asked for, of every stage, and whether it was reached.

    The node's rounds count, but for the first one and the refit's first one, in which the step is
    traced and optimised; the lines below show what tracing, validation, and reading and saving
    beside them take away.
    """
    summary = content["summary"]
    table = Table(title=title)
    for name in ("", "asked", *summary, "met"):
        table.add_column(name, justify="right" if name else "left", no_wrap=bool(name))
    for label, name, least in (
        ("input alone: times as fast as the step", "input_times_step", LEAST_INPUT_SPEED),
        (".. in CPU time, which other work changes less", "input_times_step_cpu", None),
        ("node, rounds without tracing: of the bare loop's rows/s", "node_of_bare",
         LEAST_NODE_SPEED),
        (".. with the rounds that trace", "node_of_bare_with_tracing", None),
        (".. and with validation", "node_of_bare_with_validation", None),
        (".. and with reading, choosing weights, saving", "node_of_bare_in_all", None),
    ):  # fmt: skip
        values = [of[name] for of in summary.values()]
        met = "" if least is None else "yes" if min(map(median, values)) >= least else "NO"
        table.add_row(
            label,
            "" if least is None else f">= {least:g}",
            *(_spread(found, "{:.2f}".format) for found in values),
            met,
        )
    return table


def _spread(values: Sequence[float], shown: Callable[[float], str]) -> str:
    middle, least, most = shown(median(values)), shown(min(values)), shown(max(values))
    return middle if least == most else f"{middle} ({least} to {most})"
