"""Single calls, and many at a time: the server against what the model and gRPC cost alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.frames import write_frames
from benchmarks.serving.inprocess import Feeds, InProcess
from benchmarks.serving.load import ECHO
from benchmarks.serving.processes import echo_server, generate, our_server
from benchmarks.serving.setting import Setting, spread, summary
from benchmarks.serving.world import MODEL

_BATCH = 32
_STAGE_REQUESTS = 20 * _BATCH
_PREFIX = ":tensorflow:serving:"


def latency(setting: Setting) -> dict[str, Any]:
    """One client: a gRPC call against the same call of `Session::Run` in this process."""
    model = InProcess(MODEL, setting.files.base(MODEL))
    feeds = model.decoded(setting.files.requests())
    alone, called, of_grpcio = [], [], []
    models = {MODEL: setting.files.base(MODEL)}
    with our_server(models, setting.workers, setting.workdir / "latency") as server:
        generate(setting.plan(server))  # every worker is warm
        for _ in range(setting.rounds):
            alone.append(model.latencies(feeds, setting.seconds))
            called.append(generate(setting.plan(server, clients=1)))
            of_grpcio.append(generate(setting.plan(server, clients=1, client="grpcio")))
    model.close()
    rounds = list(zip(called, alone, strict=True))
    return {
        "in_process": {key: spread([result[key] for result in alone]) for key in alone[0]},
        "grpc": summary(called),
        "grpc_of_grpcio": summary(of_grpcio),
        "p50_over_in_process": spread([ours["p50_ms"] / run["p50_ms"] for ours, run in rounds]),
        "p99_over_p50": spread([ours["p99_ms"] / ours["p50_ms"] for ours in called]),
    }


def throughput(setting: Setting) -> dict[str, Any]:
    """Many clients: calls a second against an echo service and against batches in this process.

    The echo is what gRPC in Python can do, so both are called by grpcio's client for that; and by
    our own, which leaves more of the machine to the servers.
    """
    model = InProcess(MODEL, setting.files.base(MODEL))
    requests = setting.files.requests()
    feeds = model.decoded(requests)
    answer_bytes = len(model.answer(feeds[0]))
    models = {MODEL: setting.files.base(MODEL)}
    directory = setting.workdir / "throughput"
    rows: dict[int, list[float]] = {threads: [] for threads in {1, setting.workers}}
    with (
        our_server(models, setting.workers, directory) as server,
        echo_server(answer_bytes, setting.workers, directory / "echo") as echo,
    ):
        rest = _write_rest_requests(directory / "rest.bin", feeds)
        plans = {
            "grpc": setting.plan(server),
            "grpc_of_grpcio": setting.plan(server, client="grpcio"),
            "echo": setting.plan(echo, path=ECHO, check=""),
            "echo_of_grpcio": setting.plan(echo, path=ECHO, check="", client="grpcio"),
            "rest": setting.plan(
                server,
                target=server.rest_target,
                requests=[str(rest)],
                path=f"http:/v1/models/{MODEL}:predict",
                check="json",
            ),
        }
        for plan in plans.values():
            generate(plan)
        runs: dict[str, list[Any]] = {name: [] for name in plans}
        pages = []
        for _ in range(setting.rounds):
            before, busy = server.metrics(), server.cpu_seconds()
            runs["grpc"].append(generate(plans["grpc"]))
            pages.append(
                _server_stages(before, server.metrics())
                | {"cpu_seconds": server.cpu_seconds() - busy}
            )
            for name in ("echo", "echo_of_grpcio", "grpc_of_grpcio"):
                runs[name].append(generate(plans[name]))
            for threads, values in rows.items():
                values.append(model.rows_per_second(feeds, _BATCH, threads, setting.seconds / 2))
            runs["rest"].append(generate(plans["rest"]))
    stages = model.stages(requests[:_STAGE_REQUESTS], _BATCH)
    model.close()
    in_process = [max(values) for values in zip(*rows.values(), strict=True)]

    def share_of_floor(ours: str, echo: str) -> dict[str, Any]:
        rounds = zip(runs[ours], runs[echo], in_process, strict=True)
        return spread([one["rate"] / min(two["rate"], rate) for one, two, rate in rounds])

    return {
        **{name: summary(results) for name, results in runs.items()},
        "in_process_rows_per_second": {
            f"{threads} threads": spread(values) for threads, values in rows.items()
        },
        "share_of_floor": share_of_floor("grpc_of_grpcio", "echo_of_grpcio"),
        "share_of_floor_by_frames": share_of_floor("grpc", "echo"),
        "p99_over_p50": spread([ours["p99_ms"] / ours["p50_ms"] for ours in runs["grpc"]]),
        "request_bytes": len(requests[0]),
        "answer_bytes": answer_bytes,
        "stages_in_process": stages,
        "stages_of_server": {key: spread([page[key] for page in pages]) for key in pages[0]},
    }


def _server_stages(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Means between two looks at the metrics page, microseconds and rows."""

    def mean(name: str) -> float:
        def grown(suffix: str) -> float:
            key = f"{_PREFIX}{name}_{suffix}"
            return after.get(key, 0.0) - before.get(key, 0.0)

        return grown("sum") / max(grown("count"), 1.0)

    return {
        "request_us": mean("request_latency"),
        "queue_and_run_us": mean("runtime_latency"),
        "queue_us": mean("batching_session:queuing_latency"),
        "batch_rows": mean("batching:processed_batch_size"),
    }


def _write_rest_requests(path: Path, feeds: list[Feeds]) -> Path:
    def plain(value: Any) -> Any:
        return value.decode() if isinstance(value, bytes) else value

    def column(array: np.ndarray[Any, Any]) -> Any:
        values = array.tolist()
        return [[plain(v) for v in row] if isinstance(row, list) else plain(row) for row in values]

    bodies = [
        json.dumps({"inputs": {alias: column(value) for alias, value in feed.items()}}).encode()
        for feed in feeds
    ]
    write_frames(path, bodies)
    return path
