"""FastAPI with hnswlib and with faiss, both HNSW over the same vectors, against our server.

They get the finished query vector; our server gets a user, a history, weights and exclusions, and
computes the vector in its graph.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.frames import write_frames
from benchmarks.serving.processes import (
    HOST,
    BenchmarkError,
    free_port,
    generate,
    http_server,
    our_server,
)
from benchmarks.serving.setting import Setting, spread, summary
from benchmarks.serving.world import MODEL

LIBRARIES = ("hnswlib", "faiss")

_SCRIPTS = Path(__file__).parent / "peers"


def peers(setting: Setting) -> dict[str, Any]:
    """Rates and latencies, in turn; only one of the servers runs at a time."""
    if not setting.peers_python.exists():
        return {"missing": f"{setting.peers_python} is not there; make it by: make peers"}
    tuned = {library: _built(setting, library) for library in LIBRARIES}
    requests = setting.workdir / "peers.bin"
    write_frames(
        requests,
        [
            json.dumps({"vector": query, "k": setting.world.top_k}).encode()
            for query in np.round(setting.files.queries.astype(float), 6).tolist()
        ],
    )
    runs: dict[str, list[Any]] = {name: [] for name in ("ours", *LIBRARIES)}
    models = {MODEL: setting.files.base(MODEL)}
    for _ in range(setting.rounds):
        with our_server(models, setting.workers, setting.workdir / "peers") as server:
            generate(setting.plan(server))
            runs["ours"].append(generate(setting.plan(server)))
        for library in LIBRARIES:
            runs[library].append(_measured(setting, library, requests))
    rates = {name: np.array([result["rate"] for result in runs[name]]) for name in runs}
    p99s = {name: np.array([result["p99_ms"] for result in runs[name]]) for name in runs}
    return {
        **{name: summary(results) for name, results in runs.items()},
        "tuned": tuned,
        "times_rate": {
            library: spread((rates["ours"] / rates[library]).tolist()) for library in LIBRARIES
        },
        "times_p99": {
            library: spread((p99s[library] / p99s["ours"]).tolist()) for library in LIBRARIES
        },
    }


def _built(setting: Setting, library: str) -> dict[str, Any]:
    """Builds and tunes the index once for these vectors."""
    root = setting.files.root
    if not (root / f"{library}.json").exists():
        setting.say(f"building the {library} index")
        command = [str(path) for path in (setting.peers_python, _SCRIPTS / "build.py")]
        command += [library, str(root)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchmarkError(f"the {library} index was not built:\n{done.stderr[-4000:]}")
    tuned: dict[str, Any] = json.loads((root / f"{library}.json").read_text())
    return tuned


def _measured(setting: Setting, library: str, requests: Path) -> dict[str, Any]:
    port = free_port()
    command = ["env", f"PEER_LIBRARY={library}", f"PEER_DIRECTORY={setting.files.root}"]
    command += [os.fspath(setting.peers_python), "-m", "uvicorn", "service:app", f"--host={HOST}"]
    command += [f"--port={port}", f"--workers={setting.workers}", "--no-access-log"]
    command += ["--loop=uvloop", "--http=httptools"]
    log = setting.workdir / f"{library}.log"
    with http_server(command, port, log, cwd=_SCRIPTS) as server:
        plan = setting.plan(server, requests=[str(requests)], path="http:/search", check="json")
        generate(plan)
        return generate(plan)
