"""One probe in a process of its own, so that its memory is its own.

`python -m benchmarks.costs.measure PROBE SCALE SEED PLACE` prints one line of JSON.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from benchmarks.processes import answer

# As the nodes and the server do; before TensorFlow is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

MODULE = "benchmarks.costs.measure"  # runs by this name
# Part -> its probes (module, function), which run one after the other and share a directory.
PARTS = {
    "adam": (("vectors", "adam"),),
    "ranking": (("vectors", "ranking"),),
    "events": (("events", "events"),),
    "index": (("index", "build"), ("index", "search")),
    "batches": (("vectors", "batches"),),
    "ids": (("ids", "export"), ("ids", "load")),
    "vocabulary": (("ids", "counted"),),
}


def main(module: str, function: str, scale: float, seed: int, place: Path) -> None:
    """Runs one probe."""
    from benchmarks.costs.figures import Probe, Setting

    load = os.getloadavg()[0]
    probe: Probe = getattr(importlib.import_module(f"benchmarks.costs.{module}"), function)
    figures = [figure._asdict() for figure in probe(Setting(scale, seed, place))]
    answer({"figures": figures, "load_before": load})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
