"""More work than can be done: what is refused, how, and that nothing is run in vain."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest
import tensorflow as tf

from serving.options import BatchingOptions

pytestmark = pytest.mark.slow

ROUNDS = 150_000  # of a loop in the graph: some tenths of a second
UNAVAILABLE, EXCEEDED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED
QUEUE_FULL = (
    "The batch scheduling queue to which this task was submitted is full; currently "
    "{n} batches enqueued and max_enqueued_batches is {n}"
)


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Doubles `x` slowly, for as many rounds as its largest value of `rounds`, and counts runs."""
    path = tmp_path_factory.mktemp("models") / "slow"
    module = tf.Module()
    module.runs = tf.Variable(0, dtype=tf.int64)

    def double(x: tf.Tensor, rounds: tf.Tensor) -> dict[str, tf.Tensor]:
        run = module.runs.assign_add(1)
        most = tf.reduce_max(rounds)
        with tf.control_dependencies([run]):
            start = tf.constant(0, tf.int64)
            end = tf.while_loop(lambda i: i < most, lambda i: [i + 1], [start])[0]
        return {"y": x * 2.0 + tf.cast(end - most, tf.float32)}

    specs = [tf.TensorSpec([None], tf.float32, "x"), tf.TensorSpec([None], tf.int64, "rounds")]
    # Without a batch dimension, so that asking is never batched and never waits.
    runs = tf.function(lambda zero: {"runs": module.runs + zero}, [tf.TensorSpec([], tf.int64)])
    tf.saved_model.save(
        module,
        str(path),
        signatures={"serving_default": tf.function(double, specs), "runs": runs},
    )
    return path


@pytest.fixture
def start(start_server: Any, publish: Any, slow_model: Path, tmp_path: Path, connect: Any) -> Any:
    """start(**options): a caller of a server of the slow model."""

    def serve(**options: Any) -> Any:
        publish(slow_model, tmp_path / "slow", 1)
        return connect(start_server({"slow": tmp_path / "slow"}, **options).port)

    return serve


def slow_call(caller: Any, ask: Any, x: float, rounds: int = ROUNDS, timeout: float = 60.0) -> Any:
    inputs = {"x": [x], "rounds": tf.make_tensor_proto([rounds], tf.int64)}
    return caller.raw("Predict", ask("slow", inputs).SerializeToString(), timeout)


def runs(caller: Any) -> int:
    answer = caller.predict("slow", {"zero": tf.make_tensor_proto(0, tf.int64)}, "runs")
    return answer.outputs["runs"].int64_val[0]


def answer_of(future: Any, methods: Any) -> list[float]:
    return list(methods["Predict"][2].FromString(future.result()).outputs["y"].float_val)


def test_over_the_bound_of_the_queue_calls_are_refused_at_once(
    start: Any, ask: Any, methods: Any
) -> None:
    tiny = BatchingOptions(max_batch_size=2, max_enqueued_batches=3, num_batch_threads=1)
    caller = start(batching=tiny, run_threads=2)
    slow_call(caller, ask, 0.0, 1).result()
    first = slow_call(caller, ask, 0.0)
    time.sleep(0.05)  # it is running now
    started = time.monotonic()
    others = [slow_call(caller, ask, float(x)) for x in range(1, 31)]
    refused = []
    for future in others:
        # Those that are refused are told so long before the first has been answered.
        if future.code() is not grpc.StatusCode.OK:
            refused.append((future.code(), future.details()))
        if len(refused) == 24:
            break
    answered = [future for future in others if future.code() is grpc.StatusCode.OK]
    assert first.code() is grpc.StatusCode.OK
    assert len(answered) == 6  # three batches of two
    assert refused == [(UNAVAILABLE, QUEUE_FULL.format(n=3))] * 24
    for future in answered:
        assert answer_of(future, methods) == [2.0 * (others.index(future) + 1)]
    assert time.monotonic() - started < 30
    assert runs(caller) == 1 + 1 + 3  # batched, and what was refused never ran
    # There is room again.
    assert answer_of(slow_call(caller, ask, 9.0), methods) == [18.0]


def test_a_refusal_does_not_wait_for_those_who_were_accepted(start: Any, ask: Any) -> None:
    tiny = BatchingOptions(max_batch_size=1, max_enqueued_batches=1, num_batch_threads=1)
    caller = start(batching=tiny)
    slow_call(caller, ask, 0.0, 1).result()
    accepted = [slow_call(caller, ask, 1.0, 8 * ROUNDS, 120.0)]
    time.sleep(0.1)
    accepted.append(slow_call(caller, ask, 2.0, 1))
    time.sleep(0.1)
    started = time.monotonic()
    for _ in range(20):
        assert slow_call(caller, ask, 3.0, 1).code() is UNAVAILABLE
    assert time.monotonic() - started < 2.0
    assert not accepted[0].done()
    assert [future.code() for future in accepted] == [grpc.StatusCode.OK] * 2


@pytest.mark.parametrize("batched", [True, False])
def test_work_whose_deadline_has_passed_is_not_run(start: Any, ask: Any, batched: bool) -> None:
    one = BatchingOptions(max_batch_size=1, max_enqueued_batches=100, num_batch_threads=1)
    caller = start(batching=one if batched else None, run_threads=1)
    slow_call(caller, ask, 0.0, 1).result()
    # Batches have a thread of the pool only if there are more calls than batches.
    blocking = slow_call(caller, ask, 0.0, 5 * ROUNDS)
    time.sleep(0.1)
    expiring = [slow_call(caller, ask, 1.0, 1, timeout=0.1) for _ in range(40)]
    waiting = slow_call(caller, ask, 2.0, 1)
    assert [future.code() for future in expiring] == [EXCEEDED] * 40
    assert not blocking.done(), "the rest only shows something if it was still waiting then"
    assert blocking.code() is grpc.StatusCode.OK
    assert waiting.code() is grpc.StatusCode.OK
    assert runs(caller) == 3


@pytest.mark.parametrize("batched", [True, False])
def test_a_run_ends_with_the_deadline_of_its_call(start: Any, ask: Any, batched: bool) -> None:
    caller = start(batching=BatchingOptions(num_batch_threads=1) if batched else None)
    for _ in range(3):  # the first one takes long
        slow_call(caller, ask, 0.0, 1).result()
    endless = slow_call(caller, ask, 0.0, 2**62, timeout=0.3)
    assert endless.code() is EXCEEDED
    started = time.monotonic()
    assert slow_call(caller, ask, 1.0, 1).code() is grpc.StatusCode.OK
    assert time.monotonic() - started < 2.0  # its thread is free again


def test_an_impatient_call_does_not_take_its_batch_with_it(
    start: Any, ask: Any, methods: Any
) -> None:
    wide = BatchingOptions(max_batch_size=8, batch_timeout_micros=200_000, num_batch_threads=1)
    caller = start(batching=wide)
    slow_call(caller, ask, 0.0, 1).result()
    patient = slow_call(caller, ask, 5.0, 4 * ROUNDS)
    impatient = slow_call(caller, ask, 6.0, 1, timeout=0.4)
    assert impatient.code() is EXCEEDED
    assert answer_of(patient, methods) == [10.0]
    assert runs(caller) == 2, "they shared a run"


def test_more_calls_than_allowed_are_resource_exhausted(
    start: Any, ask: Any, wait_for: Any
) -> None:
    caller = start(max_concurrent_calls=4, run_threads=4)
    slow_call(caller, ask, 0.0, 1).result()
    calls = [slow_call(caller, ask, 1.0) for _ in range(20)]
    codes = Counter(future.code() for future in calls)
    assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert 4 <= codes[grpc.StatusCode.OK] < 20
    # gRPC counts a call a moment longer than its client waits.
    wait_for(
        lambda: slow_call(caller, ask, 2.0, 1).code() is grpc.StatusCode.OK, "there is room again"
    )
