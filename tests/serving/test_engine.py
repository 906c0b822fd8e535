"""Calls that run in threads of the engine, not in batches: their ends, deadlines and holds."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf

from serving.batching import Outcome
from serving.engine import Engine
from serving.errors import ServingError
from serving.metrics import Metrics
from serving.options import ServerOptions
from serving.servable import Servable
from serving.versions import VersionManager


class Slow(Servable):
    """A servable that runs nothing until it is let."""

    def __init__(self, path: Path) -> None:
        super().__init__("m", 1, str(path))
        self.begun = threading.Event()
        self.let = threading.Event()
        self.runs = 0

    def run(self, *args: Any) -> Any:
        self.begun.set()
        assert self.let.wait(10.0)
        self.runs += 1
        return super().run(*args)


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Slow]:
    module = tf.Module()
    double = tf.function(
        lambda x: {"y": 2.0 * x}, input_signature=[tf.TensorSpec([None], tf.float32, "x")]
    )
    tf.saved_model.save(module, str(tmp_path / "1"), {"double": double})
    servable = Slow(tmp_path / "1")
    yield servable
    servable.let.set()
    assert servable.close(timeout_seconds=5.0)  # whoever held it has let it go


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    options = ServerOptions(models={"m": tmp_path}, run_threads=1)
    made = Engine(VersionManager({}), Metrics(), options)
    yield made
    made.close()


class Calls:
    """Calls of `double`, and their outcomes in the order in which they end."""

    def __init__(self, engine: Engine, servable: Slow) -> None:
        self._engine = engine
        self._servable = servable
        self._outcomes: queue.Queue[tuple[float, Outcome]] = queue.Queue()

    def submit(self, number: float) -> Any:
        signature = self._servable.signatures["double"]

        def done(outcome: Outcome) -> None:
            self._outcomes.put((number, outcome))

        feeds = {"x": np.array([number], np.float32)}
        return self._engine.submit(self._servable, signature, feeds, ["y"], None, done)

    def next(self) -> tuple[float, Any]:
        return self._outcomes.get(timeout=10.0)


def test_calls_end_with_their_values(engine: Engine, slow: Slow) -> None:
    calls = Calls(engine, slow)
    slow.let.set()
    for number in (1.0, 2.0):
        calls.submit(number)
    for number in (1.0, 2.0):
        came, (value,) = calls.next()
        assert (came, value.tolist()) == (number, [2 * number])


def test_a_cancelled_call_is_not_run(engine: Engine, slow: Slow) -> None:
    calls = Calls(engine, slow)
    calls.submit(1.0)
    assert slow.begun.wait(10.0)
    calls.submit(2.0).cancel()
    number, error = calls.next()
    assert number == 2.0
    assert isinstance(error, CancelledError)
    assert slow.calls_in_flight == 1
    slow.let.set()
    assert calls.next()[0] == 1.0
    engine.close()
    assert slow.runs == 1


def test_what_waits_for_a_thread_when_the_server_stops_is_refused(
    engine: Engine, slow: Slow
) -> None:
    calls = Calls(engine, slow)
    calls.submit(1.0)
    assert slow.begun.wait(10.0)
    calls.submit(2.0)
    engine.close()
    number, error = calls.next()
    assert number == 2.0
    assert isinstance(error, ServingError)
    assert error.code is grpc.StatusCode.UNAVAILABLE
    slow.let.set()
    assert calls.next()[0] == 1.0  # what had begun ends as it would have


def test_a_coroutine_waits_no_longer_than_its_deadline(engine: Engine, slow: Slow) -> None:
    feeds = {"x": np.ones([1], np.float32)}

    async def call() -> Any:
        deadline = time.monotonic() + 0.05
        signature = slow.signatures["double"]
        return await engine.run(slow, signature, feeds, ["y"], deadline, "Predict")

    with pytest.raises(ServingError) as late:
        asyncio.run(call())
    assert late.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    slow.let.set()
