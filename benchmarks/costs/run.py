"""Runs the probes in turns, prints and saves the unit costs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from benchmarks.costs.measure import MODULE, PARTS
from benchmarks.ingestion.log import LABEL
from benchmarks.processes import machine, measured_by
from pipeline import console
from schemas.files import write_atomically


def run(json_path: Path, parts: Sequence[str], repeats: int, scale: float, seed: int) -> None:
    """Runs the benchmark.

    Args:
      json_path: gets the figures.
      parts: names of `PARTS`.
      repeats: of each probe, in a process of its own; the parts take turns.
      scale: of all sizes.
      seed: of all draws.
    """
    content: dict[str, Any] = {
        "data": LABEL,
        "scale": scale,
        "seed": seed,
        "machine": machine(),
        "measurements": [],
    }
    for repeat in range(repeats):
        for part in parts:
            with tempfile.TemporaryDirectory() as place:
                for module, function in PARTS[part]:
                    found = measured_by(MODULE, module, function, str(scale), str(seed), place)
                    content["measurements"].append({"part": part, "repeat": repeat} | found)
            console.say(
                f"{part} ({repeat + 1} of {repeats}), load before {found['load_before']:.1f}"
            )
    content["summary"] = summarise(content["measurements"])
    write_atomically(json_path, json.dumps(content, indent=1).encode())
    console.say_wide(costs(content))


def summarise(measurements: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Median, least and most of every figure, in the order of the rows of docs/scaling.md."""
    values: dict[tuple[str, str, str], list[float]] = {}
    for measured in measurements:
        for figure in measured["figures"]:
            key = figure["row"], figure["what"], figure["unit"]
            values.setdefault(key, []).append(figure["value"])
    return [
        {
            "row": row,
            "what": what,
            "unit": unit,
            "median": median(found),
            "least": min(found),
            "most": max(found),
            "runs": len(found),
        }
        for (row, what, unit), found in sorted(values.items(), key=lambda entry: entry[0][0])
    ]


def costs(content: dict[str, Any]) -> Table:
    """A table with a row for every unit cost: medians, and from the smallest to the largest."""
    sizes = "" if content["scale"] == 1 else f", {content['scale']:g} of the documented sizes"
    table = Table(title=f"Unit costs, synthetic{sizes}; rows as in docs/scaling.md")
    for name in ("", "of", "median", "spread", "unit", "runs"):
        table.add_column(name, justify="right" if name in ("median", "spread", "runs") else "left")
    for cost in content["summary"]:
        table.add_row(
            cost["row"],
            cost["what"],
            shown(cost["median"]),
            f"{shown(cost['least'])} to {shown(cost['most'])}",
            cost["unit"],
            str(cost["runs"]),
        )
    return table


def shown(value: float) -> str:
    """Three digits, or all of those before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
