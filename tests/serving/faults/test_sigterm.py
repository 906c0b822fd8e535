"""SIGTERM: calls that the server has taken are answered, all others end as UNAVAILABLE.

That is what lets a client try again elsewhere: a call that was refused has done nothing.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest
import tensorflow as tf

from serving.options import ServerOptions

pytestmark = pytest.mark.slow

CONNECTIONS = 6  # the kernel spreads them over the workers
CLIENTS = 24
OK, UNAVAILABLE = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE


@pytest.fixture(params=[1, 2], ids=["one worker", "two workers"])
def server(request: Any, start_process: Any, zoo: Path, publish: Any, tmp_path: Path) -> Any:
    publish(zoo, tmp_path / "zoo", 1)
    return start_process(
        {"zoo": tmp_path / "zoo"}, f"--workers={request.param}", "--enable_batching"
    )


def test_calls_that_run_are_answered(server: Any, connect: Any, ask: Any) -> None:
    callers = [connect(server.port) for _ in range(CONNECTIONS)]

    def loop(caller: Any, steps: int) -> Any:
        request = ask("zoo", {"n": tf.constant(steps, tf.int64)}, "loop")
        return caller.raw("Predict", request.SerializeToString(), timeout=60.0)

    for _ in range(2):  # the first call is slower
        began = time.monotonic()
        assert loop(callers[0], 100_000).code() is OK
        seconds = time.monotonic() - began
    steps = int(100_000 * 0.3 / seconds)
    running = [loop(caller, steps) for caller in callers]
    for caller in callers:
        # The calls of a connection are taken in their order: the one before has been taken.
        assert caller.states("zoo")
    assert not any(call.done() for call in running[-2:])
    began = time.monotonic()
    server.process.terminate()
    assert [call.code() for call in running] == [OK] * CONNECTIONS
    assert time.monotonic() - began < ServerOptions.stop_grace_seconds
    assert server.process.wait(30) == 0, server.text()


def test_no_call_of_busy_clients_is_lost(server: Any, connect: Any, ask: Any) -> None:
    message = ask("zoo", {"x": [1.0]}).SerializeToString()
    codes: Counter[grpc.StatusCode] = Counter()
    refused: Counter[str] = Counter()

    def call_until_refused(caller: Any) -> None:
        code = OK
        while code is OK:
            call = caller.raw("Predict", message, timeout=60.0)
            code = call.code()
            codes[code] += 1
        refused[call.details()] += 1

    threads = [
        threading.Thread(target=call_until_refused, args=(connect(server.port),))
        for _ in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    time.sleep(2.0)
    server.process.terminate()
    for thread in threads:
        thread.join(60.0)
    assert codes.keys() == {OK, UNAVAILABLE}, refused
    assert codes[UNAVAILABLE] == CLIENTS < codes[OK]
    assert refused["The server is stopping"] > 0
    assert server.process.wait(30) == 0, server.text()
