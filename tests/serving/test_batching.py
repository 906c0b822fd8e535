"""Dynamic batching: answers, isolation, bounds and deadlines, on real graphs."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow.core.protobuf import saved_model_pb2

from serving.batching import Batcher, Outcome, Work, rows_and_form, run_together
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


class Call(Work):
    """A call whose outcome can be waited for."""

    def __init__(self, servable: Any, signature: Any, feeds: dict[str, Array]) -> None:
        rows, form = rows_and_form(signature, feeds)
        outputs = list(signature.outputs)
        super().__init__(servable, signature, feeds, outputs, None, self._settle, rows, form)
        self.answer: Future[list[Array]] = Future()

    def take(self) -> bool:
        return super().take() and self.answer.set_running_or_notify_cancel()

    def _settle(self, outcome: Outcome) -> None:
        if isinstance(outcome, Exception):
            self.answer.set_exception(outcome)
        else:
            self.answer.set_result(outcome)


def work(servable: Any, signature: str = "rows", **feeds: Any) -> Call:
    """A call."""
    chosen = servable.signatures[signature]
    return Call(servable, chosen, dict(chosen.defaults) | feeds)


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


def test_only_rows_that_fit_together_may_share_a_run(servable: Servable) -> None:
    rows = servable.signatures["rows"]
    assert rows.batchable
    assert rows.padding.keys() == {"numbers", "words"}
    assert rows_and_form(rows, DEFAULTS)[0] == 1
    three = DEFAULTS | {"numbers": np.zeros([3, 1], np.float32)}
    assert rows_and_form(rows, three) == (0, ())  # one row of words and weights holds for all three
    assert rows_and_form(rows, DEFAULTS | {"words": np.array(b"x", object)}) == (0, ())
    total = servable.signatures["total"]  # one number whatever the rows
    assert rows_and_form(total, {"x": np.zeros([2], np.float32)}) == (0, ())


def test_outputs_that_are_not_row_by_row_are_run_alone(servable: Servable) -> None:
    calls = [work(servable, "pairs", x=np.array([i, i + 1.0], np.float32)) for i in range(3)]
    answers = run_together(calls)
    assert [answer[0].tolist() for answer in answers] == [[0.0], [1.0], [2.0]]  # type: ignore[index]


class Gate:
    """A servable that runs nothing until the gate opens, and the rows of what it ran."""

    def __init__(self, servable: Servable) -> None:
        self._servable = servable
        self.name = servable.name
        self.signatures = servable.signatures
        self.open = threading.Event()
        self.sizes: list[int] = []
        self.threads: list[threading.Thread] = []

    def run(self, signature: Any, feeds: Any, *rest: Any) -> Any:
        assert self.open.wait(10.0)
        self.sizes.append(len(next(iter(feeds.values()))))
        self.threads.append(threading.current_thread())
        return self._servable.run(signature, feeds, *rest)


@pytest.fixture
def gate(servable: Servable) -> Iterator[Gate]:
    closed = Gate(servable)
    yield closed
    closed.open.set()


@pytest.fixture
def batch() -> Iterator[Callable[..., Batcher]]:
    """batch(*options): a batcher."""
    made = []

    def make(*options: int) -> Batcher:
        made.append(Batcher(BatchingOptions(*options), Metrics()))
        return made[-1]

    yield make
    for batcher in made:
        batcher.close()


def answers(calls: Sequence[Call]) -> list[Any]:
    return [call.answer.result(10.0) for call in calls]


def submit(batcher: Batcher, calls: Sequence[Call], wait_for: Any) -> None:
    """Submits calls, after the first of them has been taken by a thread."""
    batcher.submit(calls[0])
    wait_for(calls[0].answer.running, "the first runs")
    for call in calls[1:]:
        batcher.submit(call)


def leave(batcher: Batcher, calls: Sequence[Call]) -> None:
    """Submits calls to be run by whoever comes back for them."""
    for call in calls:
        batcher.submit(call, caller_runs=True)


def test_what_waits_when_a_thread_gets_free_shares_a_run(
    gate: Gate, batch: Any, wait_for: Any
) -> None:
    calls = [work(gate, weights=np.full([1, 2], i, np.float32)) for i in range(7)]
    submit(batch(4, 0, 10, 1), calls, wait_for)
    gate.open.set()
    assert [answer[0][0, 0] for answer in answers(calls)] == [2.0 * i for i in range(7)]
    assert gate.sizes == [1, 4, 2]  # the first found a free thread; four fit in a batch


def test_a_batch_waits_for_more_no_longer_than_its_timeout(gate: Gate, batch: Any) -> None:
    gate.open.set()
    batcher = batch(3, 50_000, 10, 2)
    calls = [work(gate) for _ in range(4)]
    started = time.monotonic()
    for call in calls:
        batcher.submit(call)
    answers(calls[:3])
    assert time.monotonic() - started < 0.04  # a full batch waits for nobody
    answers(calls[3:])
    assert 0.05 <= time.monotonic() - started < 1.0
    assert gate.sizes == [3, 1]


def test_a_full_queue_refuses_at_once(gate: Gate, batch: Any, wait_for: Any) -> None:
    batcher = batch(2, 0, 3, 1)
    calls = [work(gate) for _ in range(8)]
    submit(batcher, calls[:7], wait_for)  # one is taken by the thread, three batches of two wait
    with pytest.raises(ServingError, match=r"batch scheduling queue .* is full") as refused:
        batcher.submit(calls[7])
    assert refused.value.code is grpc.StatusCode.UNAVAILABLE
    gate.open.set()
    assert len(answers(calls[:7])) == 7
    batcher.submit(calls[7])  # there is room again
    answers(calls[7:])


def test_more_rows_than_a_batch_has_are_refused(servable: Servable, batch: Any) -> None:
    many = {alias: np.repeat(value, 65, axis=0) for alias, value in DEFAULTS.items()}
    text = "Task size 65 is larger than maximum input batch size 64"
    with pytest.raises(ServingError, match=text) as refused:
        batch(64).submit(work(servable, **many))
    assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_work_nobody_waits_for_is_not_run(gate: Gate, batch: Any, wait_for: Any) -> None:
    calls = [work(gate) for _ in range(5)]
    submit(batch(8, 0, 10, 1), calls, wait_for)
    for call in calls[:4]:
        call.cancel()
    gate.open.set()
    answers([calls[0], calls[4]])  # the first had begun
    assert gate.sizes == [1, 1]
    for call in calls[1:4]:
        assert isinstance(call.answer.exception(), CancelledError)


def test_a_fault_in_taking_an_answer_leaves_the_others_theirs(
    gate: Gate, batch: Any, wait_for: Any, caplog: pytest.LogCaptureFixture
) -> None:
    calls = [work(gate) for _ in range(4)]

    def fault(outcome: Outcome) -> None:
        raise RuntimeError("on purpose")

    calls[1].done = fault
    submit(batch(8, 0, 10, 1), calls, wait_for)
    gate.open.set()
    answers([calls[0], *calls[2:]])
    assert gate.sizes == [1, 3]
    assert "on purpose" in caplog.text


def test_calls_that_do_not_fit_together_run_apart(gate: Gate, batch: Any, wait_for: Any) -> None:
    good, wrong = np.ones([1, 2], np.float32), np.ones([1, 3], np.float32)
    calls = [work(gate, weights=w) for w in (good, good, wrong, good, wrong)]
    submit(batch(8, 0, 10, 1), calls, wait_for)
    gate.open.set()
    assert [answer[0].shape for answer in answers(calls)] == [(1, w) for w in (2, 2, 3, 2, 3)]
    assert gate.sizes == [1, 2, 2]


def test_what_is_ready_does_not_wait_behind_what_is_not(servable: Servable, batch: Any) -> None:
    batcher = batch(2, 100_000, 10, 1)
    first = work(servable, weights=np.ones([1, 3], np.float32))
    pair = [work(servable) for _ in range(2)]
    for call in (first, *pair):
        batcher.submit(call)
    answers(pair)
    assert not first.answer.done()
    answers([first])


def test_an_error_that_nobody_foresaw_reaches_the_caller(servable: Servable, batch: Any) -> None:
    batcher = batch(8, 0, 10, 1)
    wrong = work(servable)
    wrong.outputs = ["no such output"]
    batcher.submit(wrong)
    with pytest.raises(KeyError):
        answers([wrong])
    right = work(servable)
    batcher.submit(right)
    assert len(answers([right])[0]) == len(OUTPUTS)


def test_what_is_short_runs_in_the_thread_that_comes_back_for_it(gate: Gate, batch: Any) -> None:
    gate.open.set()
    gate.signatures["rows"].last_seconds = 0.001
    batcher = batch(8, 0, 10, 1)
    calls = [work(gate) for _ in range(3)]
    leave(batcher, calls)
    assert not any(call.answer.done() for call in calls)
    batcher.run_waiting()
    assert len(answers(calls)) == 3
    assert gate.sizes == [3]
    assert gate.threads == [threading.current_thread()]


def test_one_batch_is_run_at_a_time_in_the_thread_that_comes_back(gate: Gate, batch: Any) -> None:
    gate.open.set()
    gate.signatures["rows"].last_seconds = 0.001
    batcher = batch(2, 0, 10, 1)
    calls = [work(gate) for _ in range(3)]
    leave(batcher, calls)
    assert batcher.run_waiting()
    assert [call.answer.done() for call in calls] == [True, True, False]
    assert not batcher.run_waiting()
    answers(calls)
    assert gate.sizes == [2, 1]
    assert not batcher.run_waiting()


def test_as_many_threads_run_what_is_not_short_as_there_are_batches(
    gate: Gate, batch: Any, wait_for: Any
) -> None:
    gate.signatures["rows"].last_seconds = math.inf
    batcher = batch(1, 0, 10, 2)
    calls = [work(gate) for _ in range(3)]
    leave(batcher, calls)
    assert not batcher.run_waiting()
    wait_for(lambda: all(call.answer.running() for call in calls[:2]), "two run side by side")
    assert not calls[2].answer.running()
    gate.open.set()
    answers(calls)


def test_what_is_not_short_is_left_to_the_threads(gate: Gate, batch: Any) -> None:
    gate.signatures["rows"].last_seconds = math.inf
    batcher = batch(8, 0, 10, 1)
    call = work(gate)
    leave(batcher, [call])
    batcher.run_waiting()  # returns at once: the gate is closed
    gate.open.set()
    answers([call])
    assert gate.threads != [threading.current_thread()]


def test_no_more_batches_run_than_may(gate: Gate, batch: Any, wait_for: Any) -> None:
    batcher = batch(8, 0, 10, 1)
    first, second = work(gate), work(gate)
    submit(batcher, [first], wait_for)
    gate.signatures["rows"].last_seconds = 0.001
    leave(batcher, [second])
    batcher.run_waiting()  # the one batch that may run does
    assert not second.answer.running()
    gate.open.set()
    answers([first, second])


def test_what_waits_when_the_server_stops_is_refused(gate: Gate, batch: Any, wait_for: Any) -> None:
    batcher = batch(8, 0, 10, 1)
    calls = [work(gate), work(gate)]
    submit(batcher, calls, wait_for)
    batcher.close()
    with pytest.raises(ServingError, match="The server is stopping"):
        answers(calls[1:])
    with pytest.raises(ServingError, match="The server is stopping"):
        batcher.submit(work(gate))
    gate.open.set()
    answers(calls[:1])
