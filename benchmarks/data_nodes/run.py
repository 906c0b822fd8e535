"""Writes synthetic logs, measures the data nodes on them, prints and saves the figures."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.data_nodes.measure import CONFIG_FILE, FIRST_NODE, MODULE
from benchmarks.ingestion.log import LABEL, OBJECTIVES, SyntheticLog, data_section
from benchmarks.processes import machine, measured_by
from pipeline import console

NODES = (
    FIRST_NODE,
    "StatisticsGen",
    "ImportSchemaGen.timelines",
    "ImportSchemaGen.catalogue",
    "ExampleValidator.timelines",
    "ExampleValidator.catalogue",
    "Transform",
)
CURVE_ROWS = (500_000, 2_000_000, 10_000_000)

_MIB = 1 << 20


def run(
    log: SyntheticLog,
    workdir: Path,
    json_path: Path,
    beam_options: Sequence[str],
    repeats: int,
    curve: bool,
) -> None:
    """Runs the benchmark.

    Args:
      log: what the nodes begin with.
      workdir: gets a directory with the log and what the nodes make; deleted in the end.
      json_path: gets the figures.
      beam_options: as of `beam.options` in a configuration.
      repeats: of all nodes on the log.
      curve: measure from 0.5 to 10 million rows, once each, too.
    """
    content: dict[str, Any] = {
        "data": LABEL,
        "log": dataclasses.asdict(log),
        "beam_options": list(beam_options),
        "machine": machine(),
        "measurements": [],
    }
    sizes = [log.rows] * repeats
    if curve:
        sizes += [rows for rows in CURVE_ROWS if rows != log.rows]
    place = workdir / "synthetic-pipeline"
    for rows in sorted(sizes):
        shutil.rmtree(place, ignore_errors=True)
        try:
            found = _measure_nodes(dataclasses.replace(log, rows=rows), place, beam_options)
        finally:
            shutil.rmtree(place, ignore_errors=True)
        content["measurements"] += found
    content["summary"] = summarise(content["measurements"])
    json_path.write_text(json.dumps(content, indent=1))
    for rows in sorted(set(sizes)):
        console.say_wide(times(content, rows))
    if curve:
        console.say_wide(growth(content))


def _measure_nodes(
    log: SyntheticLog, place: Path, beam_options: Sequence[str]
) -> list[dict[str, Any]]:
    console.say(f"writing {log.rows:,} synthetic rows to {place}")
    log.write(place)
    config = {
        "name": "synthetic",
        "objectives": [{"name": name} for name in OBJECTIVES],
        "data": data_section(place / "log.parquet"),
        "beam": {"options": list(beam_options)},
    }
    (place / CONFIG_FILE).write_text(json.dumps(config))
    found = []
    for node in NODES:
        measured = {"rows": log.rows, "node": node} | measured_by(MODULE, node, str(place))
        console.say(
            f"{node}: {log.rows:,} rows, {measured['seconds']:.1f} s,"
            f" {measured['cpu_seconds']:.1f} CPU s, load before {measured['load_before']:.1f}"
        )
        found.append(measured)
    return found


def summarise(measurements: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By number of rows: median seconds of each node and the largest; by node, how they grow.

    `growth` is there if there are two sizes: the line through the medians of the smallest and the
    largest one, as seconds whatever the rows, and microseconds for every row.
    """
    sizes = sorted({measured["rows"] for measured in measurements})
    medians = {
        rows: {
            node: _medians(measurements, rows, node, ("seconds", "cpu_seconds")) for node in NODES
        }
        for rows in sizes
    }
    summary: dict[str, Any] = {
        "nodes": {str(rows): by_node for rows, by_node in medians.items()},
        "largest": {
            str(rows): max(NODES, key=lambda node: medians[rows][node]["seconds"]) for rows in sizes
        },
    }
    if len(sizes) > 1:
        growth: dict[str, dict[str, float]] = {}
        for node in NODES:
            growth[node] = {}
            for key in ("seconds", "cpu_seconds"):
                small, large = (medians[rows][node][key] for rows in (sizes[0], sizes[-1]))
                per_row = (large - small) / (sizes[-1] - sizes[0])
                growth[node][f"microseconds_per_row_{key}"] = 1e6 * per_row
                growth[node][f"constant_{key}"] = small - per_row * sizes[0]
        summary["growth"] = growth
    return summary


def times(content: dict[str, Any], rows: int) -> Table:
    """A table of all nodes at one size: medians, and from the smallest to the largest."""
    found = [measured for measured in content["measurements"] if measured["rows"] == rows]
    whole = sum(node["seconds"] for node in content["summary"]["nodes"][str(rows)].values())
    options = " ".join(content["beam_options"]) or "DirectRunner as configured"
    table = Table(
        title=f"Data nodes on {rows:,} synthetic rows, {options},"
        f" {content['machine']['cores']} cores"
    )
    for name in (
        "",
        "seconds",
        "spread",
        "share",
        "CPU s",
        "rows/s",
        "peak MiB",
        "before",
        "written MiB",
        "load",
        "runs",
    ):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for node in NODES:
        seconds = [measured["seconds"] for measured in found if measured["node"] == node]
        middle = _medians(
            found,
            rows,
            node,
            ("cpu_seconds", "peak_bytes", "bytes_before", "bytes_written", "load_before"),
        )
        table.add_row(
            node,
            f"{median(seconds):.1f}",
            f"{min(seconds):.1f} to {max(seconds):.1f}",
            f"{median(seconds) / whole:.0%}",
            f"{middle['cpu_seconds']:.1f}",
            f"{rows / median(seconds):,.0f}",
            f"{middle['peak_bytes'] / _MIB:,.0f}",
            f"{middle['bytes_before'] / _MIB:,.0f}",
            f"{middle['bytes_written'] / _MIB:,.1f}",
            f"{middle['load_before']:.1f}",  # other work on the machine takes time
            str(len(seconds)),
        )
    return table


def growth(content: dict[str, Any]) -> Table:
    """A table of what every row costs, and of what it comes to for a billion of them."""
    sizes = sorted({measured["rows"] for measured in content["measurements"]})
    table = Table(title=f"Growth from {sizes[0]:,} to {sizes[-1]:,} synthetic rows")
    for name in ("", "s, any rows", "us/row", "CPU s, any rows", "CPU us/row", "CPU h for 10^9"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for node, line in content["summary"]["growth"].items():
        cpu = line["microseconds_per_row_cpu_seconds"]
        table.add_row(
            node,
            f"{line['constant_seconds']:.1f}",
            f"{line['microseconds_per_row_seconds']:.2f}",
            f"{line['constant_cpu_seconds']:.1f}",
            f"{cpu:.2f}",
            f"{1e3 * cpu / 3600:.2f}",
        )
    return table


def _medians(
    measurements: Sequence[dict[str, Any]], rows: int, node: str, keys: Sequence[str]
) -> dict[str, float]:
    found = [m for m in measurements if m["rows"] == rows and m["node"] == node]
    return {key: float(np.median([measured[key] for measured in found])) for key in keys}
