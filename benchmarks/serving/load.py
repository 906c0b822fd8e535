"""The load generator: a process of its own that calls a server and records every call.

python -m benchmarks.serving.load < plan.json > result.json. SIGTERM ends it before the plan's time
is up. Imports no TensorFlow. Requests are sent as they were serialised before, answers are decoded
only where the plan asks for it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import signal
import sys
import time
from array import array
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.connections import (
    TIMEOUT_SECONDS,
    BlockingGrpcioConnection,
    CallError,
    Connection,
    GrpcioConnection,
    HttpConnection,
)
from benchmarks.serving.frames import read_frames
from benchmarks.serving.http2 import GrpcConnection

PREDICT = "/tensorflow.serving.PredictionService/Predict"
ECHO = "/echo/Echo"

_MAX_TEXTS = 5
# Units that fall due within this time go out together: each time the generator wakes up, it takes a
# core from what it measures.
_TICK_SECONDS = 0.001

Answers = Sequence[bytes]
Check = Callable[[Answers], str | None]


@dataclass(frozen=True)
class Plan:
    """What to do.

    Attributes:
      target: "host:port".
      requests: files of serialised requests. Of several, a client makes one call to each at a time
        and merges the answers: that is one unit.
      weights: .npy [requests, files], what the answers of a unit are merged with.
      path: gRPC method; or, starting with "http:", the path to POST to.
      client: of gRPC: "frames", our own, or "grpcio".
      clients: closed loop of that many, each with a connection of its own.
      rate: open loop: units a second over those connections, whatever the answers do; latency
        counts from the moment a unit was due.
      seconds, warm_seconds: measured, and before that not measured.
      window_seconds: latencies are summed up for each window, too.
      check: what every `check_every`-th answer must be: "predict", "json", or "" for anything.
      top_k: ids in an answer.
      prefixes: by (version modulo their number), how the ids of that version's answers start.
    """

    target: str
    requests: list[str]
    path: str = PREDICT
    weights: str = ""
    client: str = "frames"
    clients: int = 1
    rate: float = 0.0
    seconds: float = 5.0
    warm_seconds: float = 1.0
    window_seconds: float = 0.0
    check: str = "predict"
    check_every: int = 50
    top_k: int = 100
    prefixes: list[str] = field(default_factory=lambda: ["i"])


def quantiles(seconds: Any) -> dict[str, float]:
    """Mean, p50, p90, p99 and maximum in milliseconds."""
    values = np.asarray(seconds) * 1000
    if not len(values):
        return {}
    p50, p90, p99 = np.percentile(values, [50, 90, 99])
    return {
        "mean_ms": float(values.mean()),
        "p50_ms": float(p50),
        "p90_ms": float(p90),
        "p99_ms": float(p99),
        "max_ms": float(values.max()),
    }


# --- answers --------------------------------------------------------------------------------


def decoded(answer: bytes) -> tuple[int, list[bytes], list[float]]:
    """(version, item ids, scores) of a serialised PredictResponse with one row."""
    from serving import messages

    response = messages.PredictResponse.FromString(answer)
    return (
        response.model_spec.version.value,
        list(response.outputs["item_ids"].string_val),
        list(response.outputs["scores"].float_val),
    )


class _Checker:
    """Says what is wrong with an answer, and counts versions."""

    def __init__(self, plan: Plan) -> None:
        self._top_k = plan.top_k
        self._prefixes = [prefix.encode() for prefix in plan.prefixes]
        self._check = {"predict": self._predict, "json": self._json, "": self._nothing}[plan.check]
        self.versions: Counter[int] = Counter()
        self.checked = 0
        self.wrong: Counter[str] = Counter()

    def __call__(self, answers: Answers) -> None:
        for answer in answers:
            self.checked += 1
            fault = self._check(answer)
            if fault:
                self.wrong[fault] += 1

    def _predict(self, answer: bytes) -> str | None:
        version, ids, scores = decoded(answer)
        self.versions[version] += 1
        prefix = self._prefixes[version % len(self._prefixes)]
        if len(set(ids)) != self._top_k or len(scores) != self._top_k:
            return f"{len(set(ids))} different ids and {len(scores)} scores"
        if not all(item.startswith(prefix) for item in ids):
            return f"ids of another version than {version}"
        if any(a < b for a, b in itertools.pairwise(scores)):
            return "scores are not in order"
        return None

    def _json(self, answer: bytes) -> str | None:
        content = json.loads(answer)
        content = content.get("outputs", content)
        ids, scores = content["item_ids"], content["scores"]
        if ids and isinstance(ids[0], list):
            (ids,), (scores,) = ids, scores
        if len(set(ids)) != self._top_k or len(scores) != self._top_k:
            return f"{len(set(ids))} different ids and {len(scores)} scores"
        return None

    def _nothing(self, answer: bytes) -> str | None:
        return None


def merge(
    lists: Sequence[tuple[Sequence[Any], Sequence[float]]], weights: Sequence[float], top_k: int
) -> list[Any]:
    """The best ids of several (ids, scores) by the weighted sum of their scores.

    An item that a list does not hold counts there as its last one, the most that it can have.
    """
    floor = sum(weight * scores[-1] for weight, (_, scores) in zip(weights, lists, strict=True))
    total: dict[Any, float] = {}
    for weight, (ids, scores) in zip(weights, lists, strict=True):
        last = scores[-1]
        for item, score in zip(ids, scores, strict=True):
            total[item] = total.get(item, floor) + weight * (score - last)
    return sorted(total, key=total.__getitem__, reverse=True)[:top_k]


# --- loops ----------------------------------------------------------------------------------


class _Run:
    """State of one run of a plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._files = [read_frames(Path(path)) for path in plan.requests]
        self._weights = np.load(plan.weights).tolist() if plan.weights else []
        self._checker = _Checker(plan)
        self._failures: Counter[str] = Counter()
        self._ends = array("d")
        self._latencies = array("d")
        self._units = 0
        self._begin = 0.0
        self._end = 0.0
        self._seconds = plan.seconds

    async def run(self) -> dict[str, Any]:
        """Carries the plan out and returns what was measured."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stop)
        plan = self.plan
        # Before that, calls of gRPC end by themselves; those of HTTP/1.1 would wait for ever.
        async with asyncio.timeout(plan.warm_seconds + plan.seconds + 2 * TIMEOUT_SECONDS):
            await (self._open() if plan.rate else self._closed())
        return self._result()

    def _stop(self) -> None:
        self._end = time.perf_counter()
        self._seconds = self._end - self._begin

    def _connect(self) -> Connection:
        plan = self.plan
        if plan.path.startswith("http:"):
            return HttpConnection(plan.target, plan.path.removeprefix("http:"))
        if plan.client == "frames":
            return GrpcConnection(plan.target, plan.path)
        is_alone = plan.clients == 1 and not plan.rate
        kind = BlockingGrpcioConnection if is_alone else GrpcioConnection
        return kind(plan.target, plan.path)

    async def _unit(self, connection: Connection, index: int, due: float) -> None:
        index %= len(self._files[0])
        try:
            if len(self._files) == 1:
                answers: Answers = [await connection.call(self._files[0][index])]
            else:
                answers = await asyncio.gather(*(connection.call(f[index]) for f in self._files))
            if self._weights:
                lists = [decoded(answer)[1:] for answer in answers]
                merge(lists, self._weights[index][: len(lists)], self.plan.top_k)
        except CallError as error:
            self._failures[str(error)] += 1
            return
        now = time.perf_counter()
        if due >= self._begin and now <= self._end:
            self._ends.append(now)
            self._latencies.append(now - due)
        self._units += 1
        if self._units % self.plan.check_every == 0:
            self._checker(answers)

    async def _closed(self) -> None:
        plan = self.plan

        async def client(number: int) -> None:
            connection = self._connect()
            index = number * (len(self._files[0]) // plan.clients)
            while (due := time.perf_counter()) < self._end:
                await self._unit(connection, index, due)
                index += 1

        self._begin = time.perf_counter() + plan.warm_seconds
        self._end = self._begin + plan.seconds
        await asyncio.gather(*(client(number) for number in range(plan.clients)))

    async def _open(self) -> None:
        """Every unit goes out when it is due, over the connection with the fewest under way."""
        plan = self.plan
        connections = [self._connect() for _ in range(plan.clients)]
        under_way = [0] * plan.clients
        turn = deque(range(plan.clients))  # of several connections, that after the last one

        async def unit(number: int, index: int, due: float) -> None:
            await self._unit(connections[number], index, due)
            under_way[number] -= 1

        start = time.perf_counter()
        self._begin, self._end = start + plan.warm_seconds, start + plan.warm_seconds + plan.seconds
        running: set[Awaitable[None]] = set()
        index = 0
        while (now := time.perf_counter()) < self._end:
            while (due := start + index / plan.rate) <= now:
                turn.rotate(-1)
                number = min(turn, key=under_way.__getitem__)
                under_way[number] += 1
                task = asyncio.ensure_future(unit(number, index, due))
                running.add(task)
                task.add_done_callback(running.discard)
                index += 1
            await asyncio.sleep(_TICK_SECONDS)
        await asyncio.gather(*running)

    def _result(self) -> dict[str, Any]:
        plan = self.plan
        result: dict[str, Any] = {
            "units": len(self._latencies),
            "seconds": self._seconds,
            "rate": len(self._latencies) / self._seconds,
            **quantiles(self._latencies),
            "failed": sum(self._failures.values()),
            "failures": dict(self._failures.most_common(_MAX_TEXTS)),
            "checked": self._checker.checked,
            "wrong": dict(self._checker.wrong.most_common(_MAX_TEXTS)),
            "versions": {str(v): n for v, n in sorted(self._checker.versions.items())},
        }
        if plan.window_seconds:
            window = (np.asarray(self._ends) - self._begin) // plan.window_seconds
            latencies = np.asarray(self._latencies)
            result["windows"] = [
                {"rate": float((window == w).sum() / plan.window_seconds)}
                | quantiles(latencies[window == w])
                for w in range(int(self._seconds // plan.window_seconds))
            ]
        return result


def main() -> None:
    """Carries out the plan on standard input."""
    plan = Plan(**json.load(sys.stdin))
    result = asyncio.run(_Run(plan).run())
    json.dump({"plan": dataclasses.asdict(plan)} | result, sys.stdout)


if __name__ == "__main__":
    main()
