"""The model without a server: `Servable.run` in this process, and the stages around it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tensorflow_serving.apis import predict_pb2

from benchmarks.serving.load import quantiles
from serving import predict
from serving.servable import Servable

Feeds = dict[str, Any]


class InProcess:
    """A model and decoded requests to it.

    Args:
      name: of the model.
      base: base path; version 1 is loaded.
    """

    def __init__(self, name: str, base: Path) -> None:
        self._servable = Servable(name, 1, str(base / "1"))
        self._signature = predict.find_signature(self._servable, "")
        self._outputs = predict.select_outputs(self._signature, [])

    def close(self) -> None:
        """Frees the model."""
        self._servable.close()

    def decoded(self, requests: Sequence[bytes]) -> list[Feeds]:
        """The feeds of serialised requests."""
        return [self._decode(predict_pb2.PredictRequest.FromString(r)) for r in requests]

    def latencies(self, feeds: Sequence[Feeds], seconds: float) -> dict[str, float]:
        """Quantiles of single calls, one after the other."""
        for feed in feeds[:50]:
            self._run(feed)
        times: list[float] = []
        end = time.perf_counter() + seconds
        while (begin := time.perf_counter()) < end:
            self._run(feeds[len(times) % len(feeds)])
            times.append(time.perf_counter() - begin)
        return quantiles(times)

    def rows_per_second(
        self, feeds: Sequence[Feeds], size: int, threads: int, seconds: float
    ) -> float:
        """Rows a second in batches of `size`, run by `threads` threads."""
        batches = batched(feeds, size)
        self._run(batches[0])

        def work(number: int) -> int:
            index = number
            while time.perf_counter() < end:
                self._run(batches[index % len(batches)])
                index += threads
            return index // threads

        begin = time.perf_counter()
        end = begin + seconds
        with ThreadPoolExecutor(threads) as pool:
            rows = sum(pool.map(work, range(threads))) * size
        return rows / (time.perf_counter() - begin)

    def stages(self, requests: Sequence[bytes], size: int) -> dict[str, float]:
        """Microseconds per call that each stage takes by itself, runs in batches of `size`."""
        protos, parse = _timed(predict_pb2.PredictRequest.FromString, requests)
        feeds, decode = _timed(self._decode, protos)
        batches, stack = _timed(
            _stacked, [feeds[i : i + size] for i in range(0, len(feeds) - size + 1, size)]
        )
        results, run = _timed(self._run, batches)
        rows = [[value[i : i + 1] for value in result] for result in results for i in range(size)]
        _, encode = _timed(self._encode, rows)
        _, alone = _timed(self._run, feeds)
        return {
            "parse_us": parse,
            "decode_us": decode,
            "stack_us": stack / size,
            "run_us": run / size,
            "encode_us": encode,
            "run_alone_us": alone,
        }

    def pairs(
        self, feeds: Sequence[Feeds], others: Sequence[Feeds], repeats: int
    ) -> list[tuple[float, float]]:
        """Seconds of calls i of both, in turn and in alternating order, so that whatever else
        happens on the machine happens to both."""
        times = []
        for repeat in range(repeats):
            for i, (one, other) in enumerate(zip(feeds, others, strict=True)):
                if (i + repeat) % 2:
                    second = self._time(other)
                    times.append((self._time(one), second))
                else:
                    times.append((self._time(one), self._time(other)))
        return times

    def answer(self, feeds: Feeds) -> bytes:
        """The serialised response to one call."""
        return self._encode(self._run(feeds))

    def _decode(self, proto: Any) -> Feeds:
        return predict.decode_inputs(self._signature, proto.inputs)

    def _run(self, feeds: Feeds) -> list[Any]:
        return self._servable.run(self._signature, feeds, self._outputs)

    def _encode(self, results: list[Any]) -> bytes:
        return predict.respond(self._servable, self._signature, self._outputs, results)

    def _time(self, feeds: Feeds) -> float:
        begin = time.perf_counter()
        self._run(feeds)
        return time.perf_counter() - begin


def batched(feeds: Sequence[Feeds], size: int) -> list[Feeds]:
    """Feeds of `size` rows each; what is left over is dropped."""
    return [_stacked(feeds[i : i + size]) for i in range(0, len(feeds) - size + 1, size)]


def _stacked(feeds: Sequence[Feeds]) -> Feeds:
    return {alias: np.concatenate([feed[alias] for feed in feeds]) for alias in feeds[0]}


def _timed(call: Callable[[Any], Any], arguments: Sequence[Any]) -> tuple[list[Any], float]:
    """(results, microseconds per call): the fastest of three passes."""
    best = float("inf")
    for _ in range(3):
        begin = time.perf_counter()
        results = [call(argument) for argument in arguments]
        best = min(best, time.perf_counter() - begin)
    return results, best / len(arguments) * 1e6
