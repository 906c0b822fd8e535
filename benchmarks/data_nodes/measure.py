"""One node in a process of its own, so that its peak of memory is its own.

`python -m benchmarks.data_nodes.measure NODE WORKDIR` runs one node of the pipeline as
`csmf run --from-node NODE --to-node NODE --no-cache` does, and prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.processes import answer, resident_bytes

# TFX asks for nothing of this; it keeps the libraries' notices out of the answer.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

FIRST_NODE = "InteractionGen"
CONFIG_FILE = "config.json"  # in the working directory
MODULE = "benchmarks.data_nodes.measure"  # runs by this name


class _Meter:
    """Clocks of a node, from its start to its end."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def progress(self, node: str, event: str) -> None:
        """Told by the runner; the node is the only one that runs."""
        if event == "starts":
            self._resident = resident_bytes()
            self._load = os.getloadavg()[0]
            self._cpu = _cpu_seconds()
            self._began = time.perf_counter()
        else:
            assert event == "executed", f"{node}: {event}"
            self.found = {
                "seconds": time.perf_counter() - self._began,
                "cpu_seconds": _cpu_seconds() - self._cpu,
                "bytes_before": self._resident,
                "load_before": self._load,
            }


def main(node: str, workdir: Path) -> None:
    """Measures one node, whose inputs an earlier call has left in the working directory."""
    from pipeline.config import PipelineConfig
    from pipeline.dag import Workdir
    from pipeline.local.runner import run_locally
    from pipeline.metadata.runs import read_run
    from pipeline.metadata.store import open_store

    config = PipelineConfig.parse(json.loads((workdir / CONFIG_FILE).read_text()))
    place, meter = Workdir(workdir), _Meter()
    first = None if node == FIRST_NODE else node
    run_locally(config, place, first, node, False, meter.progress)
    done = read_run(open_store(place.metadata)).nodes[node]
    written = sum(
        path.stat().st_size
        for artifact in done.outputs.values()
        for path in Path(urlsplit(artifact.uri).path).rglob("*")
        if path.is_file()
    )
    measured = meter.found | {"peak_bytes": done.peak_bytes, "bytes_written": written}
    answer(measured)


def _cpu_seconds() -> float:
    """Processor time of this process, and of the workers that it started and that have ended."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
