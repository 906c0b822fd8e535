"""Builds an HNSW index and finds the smallest ef whose recall is high enough.

Runs in the peers' environment: build.py LIBRARY DIRECTORY, which holds vectors.npy, queries.npy and
neighbours.npy, and gets LIBRARY.index and LIBRARY.json.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
from engines import ENGINES

RECALL = 0.95
QUERIES = 1000
EFS = (100, 110, 120, 140, 160, 180, 200, 250, 300, 400, 500, 700, 1000, 1500, 2000)


def main(library: str, directory: Path) -> None:
    """Writes the index and what it was tuned to."""
    vectors = np.load(directory / "vectors.npy")
    queries = np.load(directory / "queries.npy")[:QUERIES]
    exact = np.load(directory / "neighbours.npy")[:QUERIES]
    started = time.monotonic()
    engine = ENGINES[library].build(vectors)
    seconds = time.monotonic() - started
    tried = {}
    for ef in EFS:
        engine.set_ef(ef)
        rows = np.stack([engine.search(query, exact.shape[1])[0] for query in queries])
        hits = [len(set(a) & set(b)) for a, b in zip(rows.tolist(), exact.tolist(), strict=True)]
        tried[ef] = float(np.mean(hits)) / exact.shape[1]
        if tried[ef] >= RECALL:
            break
    engine.save(directory / f"{library}.index")
    tuned = {"ef": ef, "recall": tried[ef], "tried": tried, "build_seconds": seconds}
    (directory / f"{library}.json").write_text(json.dumps(tuned | engine.parameters()))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
