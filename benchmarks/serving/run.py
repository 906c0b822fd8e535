"""`csmf bench serving`: prepares what is served, runs the parts, and writes the figures."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.processes import machine
from benchmarks.serving import report, targets
from benchmarks.serving.calls import latency, throughput
from benchmarks.serving.comparison import peers
from benchmarks.serving.index import index
from benchmarks.serving.objectives import objectives
from benchmarks.serving.setting import Setting
from benchmarks.serving.soak import soak
from benchmarks.serving.swap import swap
from benchmarks.serving.world import World, prepare

PARTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "index": index,
    "latency": latency,
    "throughput": throughput,
    "peers": peers,
    "objectives": objectives,
    "swap": swap,
    "soak": soak,
}

_PACKAGES = ("tensorflow", "scann", "grpcio", "protobuf", "numpy", "aiohttp")


def run(
    world: World,
    workdir: Path,
    json_path: Path,
    parts: Sequence[str],
    markdown_path: Path | None,
    **how: Any,
) -> None:
    """Runs parts of the benchmark; the figures of each are written as soon as it ends.

    Args:
      world: what is served.
      workdir: keeps the world, for the next run of the same parameters.
      json_path: gets the figures.
      parts: names from PARTS.
      markdown_path: gets the tables, too.
      how: the attributes of Setting that say how to measure.
    """
    console = Console()
    workdir = workdir.absolute()
    workdir.mkdir(parents=True, exist_ok=True)
    console.print(
        f"{world.items:,} synthetic items x {world.dimension}, top {world.top_k}, in {workdir}"
    )
    setting = Setting(
        world=world,
        files=prepare(world, workdir),
        workdir=workdir,
        say=console.print,
        **how,
    )
    content: dict[str, Any] = {
        "data": "synthetic: clustered weights drawn from a seed, nothing is trained",
        "world": dataclasses.asdict(world),
        "setting": {
            name: getattr(setting, name)
            for name in ("workers", "clients", "seconds", "rounds", "swap_seconds", "soak_seconds")
        },
        "machine": _machine(),
        "parts": {},
    }
    for name in parts:
        began = time.monotonic()
        load = os.getloadavg()[0]
        console.print(f"{name} ..")
        figures = PARTS[name](setting)
        if "missing" in figures:
            console.print(f"[yellow]{name} left out:[/] {figures['missing']}")
        content["parts"][name] = figures
        content["machine"].setdefault("load_before", {})[name] = load
        content["targets"] = targets.judge(content["parts"])
        json_path.write_text(json.dumps(content, indent=2))
        console.print(f"{name}: {time.monotonic() - began:.0f} s, load before it {load:.1f}")
    for table in report.terminal(content):
        console.print(table)
    if markdown_path:
        markdown_path.write_text(report.markdown(content), encoding="utf-8")


def _machine() -> dict[str, Any]:
    model = "unknown"
    if os.path.exists("/proc/cpuinfo"):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(": ")[2]
                break
    return {
        "processor": model,
        **machine(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
