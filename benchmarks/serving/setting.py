"""What all parts of the benchmark share."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving.load import Plan
from benchmarks.serving.processes import Server
from benchmarks.serving.world import MODEL, Files, World


@dataclass(frozen=True)
class Setting:
    """What is measured, and how.

    Attributes:
      world, files: what is served.
      workdir: for logs and what the parts keep.
      workers: processes of our server, and of those that it is compared with.
      clients: of the measurements under load.
      seconds: of one measurement.
      rounds: of measurements that take turns.
      swap_seconds: of the hot swaps.
      soak_seconds: of the soak.
      peers_python: interpreter of the peers' environment.
      say: told what is being done.
    """

    world: World
    files: Files
    workdir: Path
    workers: int
    clients: int
    seconds: float
    rounds: int
    swap_seconds: float
    soak_seconds: float
    peers_python: Path
    say: Callable[[str], None]

    def plan(self, server: Server, name: str = MODEL, **changes: Any) -> Plan:
        """A plan of the requests `name` for the generator; `changes` are attributes of Plan."""
        defaults: dict[str, Any] = {
            "target": server.target,
            "requests": [str(self.files.requests_path(name))],
            "clients": self.clients,
            "seconds": self.seconds,
            "top_k": self.world.top_k,
        }
        return Plan(**defaults | changes)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, smallest and largest of repeated measurements, and all of them."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "all": list(values),
    }


def summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of repeated runs of the generator: the spread of rate and quantiles, and all failures."""
    keys = ("rate", "mean_ms", "p50_ms", "p90_ms", "p99_ms", "max_ms")
    return {key: spread([result[key] for result in results]) for key in keys} | {
        "units": sum(result["units"] for result in results),
        "failed": sum(result["failed"] for result in results),
        "failures": [result["failures"] for result in results if result["failures"]],
        "checked": sum(result["checked"] for result in results),
    }
