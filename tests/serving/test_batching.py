"""Dynamic batching: answers, isolation, bounds and deadlines, on real graphs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow.core.protobuf import saved_model_pb2

from serving.batching import Batcher, Work, batch_rows, run_together
from serving.errors import ServingError
from serving.metrics import Metrics
from serving.options import BatchingOptions
from serving.servable import Servable
from serving.tensors import Array

DEFAULTS: dict[str, Array] = {
    "numbers": np.zeros([1, 0], np.float32),
    "words": np.zeros([1, 0], object),
    "weights": np.ones([1, 2], np.float32),
}
OUTPUTS = ["doubled", "sum", "words"]


def _save(path: Path) -> None:
    """Per row: the sum of a list of numbers, the number of non-empty words, two weights doubled.
    Lists default to empty ones, as those of a recommender do; negative weights are refused."""

    def rows(numbers: tf.Tensor, words: tf.Tensor, weights: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.control_dependencies([tf.debugging.assert_non_negative(weights, "negative")]):
            doubled = 2.0 * weights
        known = tf.where(tf.math.is_nan(numbers), 0.0, numbers)
        return {
            "sum": tf.reduce_sum(known, axis=1),
            "words": tf.math.count_nonzero(words != "", axis=1),
            "doubled": doubled,
        }

    specs = [
        tf.TensorSpec([None, None], tf.float32, "numbers"),
        tf.TensorSpec([None, None], tf.string, "words"),
        tf.TensorSpec([None, 2], tf.float32, "weights"),
    ]
    vector = tf.TensorSpec([None], tf.float32, "x")
    signatures = {
        "rows": tf.function(rows, input_signature=specs),
        "total": tf.function(lambda x: {"total": tf.reduce_sum(x)}, input_signature=[vector]),
        "pairs": tf.function(
            lambda x: {"y": tf.reshape(x, [-1, 2])[:, 0]}, input_signature=[vector]
        ),
    }
    tf.saved_model.save(tf.Module(), str(path), signatures)
    graph = path / "saved_model.pb"
    proto = saved_model_pb2.SavedModel.FromString(graph.read_bytes())
    definition = proto.meta_graphs[0].signature_def["rows"]
    for alias, value in DEFAULTS.items():
        default = tf.make_tensor_proto(value, dtype=definition.inputs[alias].dtype)
        definition.defaults[alias].CopyFrom(default)
    graph.write_bytes(proto.SerializeToString())


@pytest.fixture(scope="module")
def servable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servable]:
    path = tmp_path_factory.mktemp("batching") / "1"
    _save(path)
    loaded = Servable("m", 1, str(path))
    yield loaded
    assert loaded.close(timeout_seconds=5.0)


def work(servable: Servable, signature: str = "rows", **feeds: Any) -> Work:
    """A call; to be made in an event loop."""
    chosen = servable.signatures[signature]
    values = dict(chosen.defaults) | feeds
    return Work(
        servable,
        chosen,
        values,
        list(chosen.outputs),
        None,
        batch_rows(chosen, values) or 0,
        asyncio.get_running_loop().create_future(),
        time.monotonic(),
    )


def row(numbers: list[float], words: list[bytes], weights: tuple[float, float]) -> dict[str, Any]:
    return {
        "numbers": np.array([numbers], np.float32).reshape(1, -1),
        "words": np.array([words], object).reshape(1, -1),
        "weights": np.array([weights], np.float32),
    }


REQUESTS = st.lists(
    st.builds(
        row,
        st.lists(st.integers(-1000, 1000).map(float), max_size=5),
        st.lists(st.sampled_from([b"a", b"bc", b"\xff\x00"]), max_size=4),
        st.tuples(st.integers(0, 9).map(float), st.integers(-2, 9).map(float)),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(requests=REQUESTS)
def test_a_shared_run_answers_each_call_as_alone(
    servable: Servable, requests: list[dict[str, Any]]
) -> None:
    async def test() -> None:
        answers = run_together([work(servable, **request) for request in requests])
        for request, answer in zip(requests, answers, strict=True):
            if request["weights"].min() < 0:
                assert isinstance(answer, ServingError)
                assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
                continue
            assert not isinstance(answer, ServingError)
            doubled, total, words = answer
            assert doubled.tolist() == (2 * request["weights"]).tolist()
            assert total.tolist() == [request["numbers"].sum()]
            assert words.tolist() == [request["words"].size]

    asyncio.run(test())


def test_only_rows_that_fit_together_may_share_a_run(servable: Servable) -> None:
    rows = servable.signatures["rows"]
    assert rows.batchable
    assert rows.padding.keys() == {"numbers", "words"}
    assert batch_rows(rows, DEFAULTS) == 1
    three = DEFAULTS | {"numbers": np.zeros([3, 1], np.float32)}
    assert batch_rows(rows, three) is None  # one row of words and weights holds for all three
    assert batch_rows(rows, DEFAULTS | {"words": np.array(b"x", object)}) is None
    assert not servable.signatures["total"].batchable  # one number whatever the rows


def test_outputs_that_are_not_row_by_row_are_run_alone(servable: Servable) -> None:
    async def test() -> None:
        calls = [work(servable, "pairs", x=np.array([i, i + 1.0], np.float32)) for i in range(3)]
        answers = run_together(calls)
        assert [answer[0].tolist() for answer in answers] == [[0.0], [1.0], [2.0]]  # type: ignore[index]

    asyncio.run(test())


class Gate(ThreadPoolExecutor):
    """Threads that run nothing until the gate opens, and the sizes of what they ran."""

    def __init__(self) -> None:
        super().__init__(4)
        self.open = threading.Event()
        self.sizes: list[int] = []

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        def run() -> Any:
            assert self.open.wait(10.0)
            self.sizes.append(len(args[0]))
            return function(*args, **kwargs)

        return super().submit(run)


@pytest.fixture
def gate() -> Iterator[Gate]:
    with Gate() as threads:
        yield threads
        threads.open.set()


def test_what_waits_when_a_thread_gets_free_shares_a_run(servable: Servable, gate: Gate) -> None:
    async def test() -> None:
        batcher = Batcher(BatchingOptions(4, num_batch_threads=1), gate, Metrics())
        calls = [work(servable, weights=np.full([1, 2], i, np.float32)) for i in range(7)]
        for call in calls:
            batcher.submit(call)
        await asyncio.sleep(0.01)
        gate.open.set()
        answers = await asyncio.gather(*(call.answer for call in calls))
        assert [answer[0][0, 0] for answer in answers] == [2.0 * i for i in range(7)]
        assert gate.sizes == [1, 4, 2]  # the first found a free thread; four fit in a batch

    asyncio.run(test())


def test_a_batch_waits_for_more_no_longer_than_its_timeout(servable: Servable) -> None:
    async def test() -> None:
        with Gate() as threads:
            threads.open.set()
            batcher = Batcher(BatchingOptions(3, 50_000, 10, 2), threads, Metrics())
            calls = [work(servable) for _ in range(4)]
            started = time.monotonic()
            for call in calls:
                batcher.submit(call)
            await asyncio.gather(*(call.answer for call in calls[:3]))
            assert time.monotonic() - started < 0.04  # a full batch waits for nobody
            await calls[3].answer
            assert 0.05 <= time.monotonic() - started < 1.0
            assert threads.sizes == [3, 1]

    asyncio.run(test())


def test_a_full_queue_refuses_at_once(servable: Servable, gate: Gate) -> None:
    async def test() -> None:
        batcher = Batcher(BatchingOptions(2, 0, 3, 1), gate, Metrics())
        calls = [work(servable) for _ in range(8)]
        for call in calls[:7]:  # one is taken by the thread, three batches of two wait
            batcher.submit(call)
            await asyncio.sleep(0)
        with pytest.raises(ServingError, match=r"batch scheduling queue .* is full") as refused:
            batcher.submit(calls[7])
        assert refused.value.code is grpc.StatusCode.UNAVAILABLE
        gate.open.set()
        assert len(await asyncio.gather(*(call.answer for call in calls[:7]))) == 7
        batcher.submit(calls[7])  # there is room again
        await calls[7].answer

    asyncio.run(test())


def test_more_rows_than_a_batch_has_are_refused(servable: Servable, gate: Gate) -> None:
    async def test() -> None:
        batcher = Batcher(BatchingOptions(max_batch_size=64), gate, Metrics())
        many = {alias: np.repeat(value, 65, axis=0) for alias, value in DEFAULTS.items()}
        text = "Task size 65 is larger than maximum input batch size 64"
        with pytest.raises(ServingError, match=text) as refused:
            batcher.submit(work(servable, **many))
        assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT

    asyncio.run(test())


def test_work_nobody_waits_for_is_not_run(servable: Servable, gate: Gate) -> None:
    async def test() -> None:
        batcher = Batcher(BatchingOptions(8, num_batch_threads=1), gate, Metrics())
        calls = [work(servable) for _ in range(5)]
        for call in calls:
            batcher.submit(call)
        for call in calls[1:4]:
            call.answer.cancel()
        gate.open.set()
        await calls[4].answer
        assert gate.sizes == [1, 1]

    asyncio.run(test())


def test_calls_that_do_not_fit_together_run_apart(servable: Servable, gate: Gate) -> None:
    async def test() -> None:
        batcher = Batcher(BatchingOptions(8, num_batch_threads=1), gate, Metrics())
        good, wrong = np.ones([1, 2], np.float32), np.ones([1, 3], np.float32)
        calls = [work(servable, weights=w) for w in (good, good, wrong, good, wrong)]
        for call in calls:
            batcher.submit(call)
        gate.open.set()
        answers = await asyncio.gather(*(call.answer for call in calls))
        assert [answer[0].shape for answer in answers] == [(1, w) for w in (2, 2, 3, 2, 3)]
        assert gate.sizes == [1, 2, 2]

    asyncio.run(test())


def test_what_is_ready_does_not_wait_behind_what_is_not(servable: Servable) -> None:
    async def test() -> None:
        with Gate() as threads:
            threads.open.set()
            batcher = Batcher(BatchingOptions(2, 100_000, 10, 1), threads, Metrics())
            first = work(servable, weights=np.ones([1, 3], np.float32))
            batcher.submit(first)
            pair = [work(servable) for _ in range(2)]
            for call in pair:
                batcher.submit(call)
            await asyncio.gather(*(call.answer for call in pair))
            assert not first.answer.done()
            await first.answer

    asyncio.run(test())


def test_an_error_that_nobody_foresaw_reaches_the_caller(servable: Servable) -> None:
    async def test() -> None:
        with Gate() as threads:
            threads.open.set()
            batcher = Batcher(BatchingOptions(8, num_batch_threads=1), threads, Metrics())
            wrong = work(servable)
            wrong.outputs = ["no such output"]
            batcher.submit(wrong)
            with pytest.raises(KeyError):
                await asyncio.wait_for(wrong.answer, 10.0)
            right = work(servable)
            batcher.submit(right)
            assert len(await asyncio.wait_for(right.answer, 10.0)) == len(OUTPUTS)

    asyncio.run(test())
    assert servable.calls_in_flight == 0
