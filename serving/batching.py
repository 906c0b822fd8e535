"""Dynamic batching: concurrent calls of one signature share a run of the graph.

A batch starts as soon as a thread is free and takes what waits by then, so a lone call waits for
nobody and batches grow with the load.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field

import grpc
import numpy as np

from serving.errors import ServingError, invalid_argument, stopping
from serving.metrics import Metrics
from serving.options import BatchingOptions
from serving.servable import Servable, Signature
from serving.tensors import Array

_LOG = logging.getLogger(__name__)

Form = tuple[object, ...]
"""Of a call's feeds: two calls of a signature with equal forms may share a run."""

Outcome = list[Array] | Exception
"""Of a call: the values of its outputs, or what went wrong."""

_Key = tuple[object, ...]


@dataclass(eq=False, slots=True)
class Work:
    """One call that waits for its run. Whoever takes it first ends it.

    A Future would do, at 4 us more of the 60 that a call takes in Python.

    Attributes:
      servable, signature: what to run; the caller holds the servable until the call has ended.
      feeds: input alias -> value, for every input.
      outputs: output aliases.
      deadline: time.monotonic() after which nobody waits any more; None = never.
      done: called once, from any thread, with the values of `outputs`, a ServingError, or
        CancelledError.
      rows: first dimension of the feeds.
      form: of the feeds; empty = must run alone.
      queued_at: time.monotonic() of the call.
    """

    servable: Servable
    signature: Signature
    feeds: dict[str, Array]
    outputs: Sequence[str]
    deadline: float | None
    done: Callable[[Outcome], None]
    rows: int = 0
    form: Form = ()
    queued_at: float = field(default_factory=time.monotonic)
    _taken: threading.Lock = field(default_factory=threading.Lock, init=False)  # for good

    def take(self) -> bool:
        """Whether the caller is the first, and so the one to call `end`."""
        return self._taken.acquire(blocking=False)

    def end(self, outcome: Outcome) -> None:
        """Hands over how the call has ended."""
        try:
            self.done(outcome)
        # Nothing is known to raise; should something, the calls of the same run need their ends.
        except Exception:
            _LOG.exception("the outcome of a call was not handled")

    def drop(self, error: Exception) -> None:
        """Ends the call with an error, unless its run has begun."""
        if self.take():
            self.end(error)

    def cancel(self) -> None:
        """Drops the call because nobody waits for it any more."""
        self.drop(CancelledError())

    def run(self) -> list[Array]:
        """Runs alone.

        Raises:
          ServingError: TensorFlow's error, or the deadline has passed.
        """
        return self.servable.run(
            self.signature, self.feeds, self.outputs, milliseconds_until(self.deadline)
        )


def milliseconds_until(deadline: float | None) -> int | None:
    """Time left before `deadline`.

    Raises:
      ServingError: DEADLINE_EXCEEDED, there is none.
    """
    if deadline is None:
        return None
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise deadline_exceeded()
    return max(int(remaining * 1000), 1)


def deadline_exceeded() -> ServingError:
    """What a call gets whose time is up."""
    return ServingError(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")


class _Queue:
    """Calls that may share a run, oldest first, and how many rows they have together."""

    __slots__ = ("calls", "rows")

    def __init__(self) -> None:
        self.calls: deque[Work] = deque()
        self.rows = 0

    def append(self, work: Work) -> None:
        self.calls.append(work)
        self.rows += work.rows

    def popleft(self) -> Work:
        work = self.calls.popleft()
        self.rows -= work.rows
        return work


class Batcher:
    """Queues calls by what may share a run, and runs them in threads of its own.

    Args:
      options: sizes and bounds.
      metrics: told about waiting times and sizes.
    """

    def __init__(self, options: BatchingOptions, metrics: Metrics) -> None:
        self._options = options
        self._metrics = metrics
        self._queues: dict[_Key, _Queue] = {}
        self._lock = threading.Lock()  # entered directly by every call: a Condition is in Python
        self._changed = threading.Condition(self._lock)
        self._running = 0  # batches
        self._is_closed = False
        for number in range(options.num_batch_threads):
            threading.Thread(target=self._serve, name=f"batch-{number}", daemon=True).start()

    def submit(self, work: Work, caller_runs: bool = False) -> None:
        """Queues a call, from any thread.

        Args:
          work: the call.
          caller_runs: no thread needs to be woken for it; the caller comes back to `run_waiting`.

        Raises:
          ServingError: INVALID_ARGUMENT, more rows than a batch may have; UNAVAILABLE, the queue
            is full, or the server is stopping.
        """
        options = self._options
        if work.rows > options.max_batch_size:
            raise invalid_argument(
                f"Task size {work.rows} is larger than maximum input batch size "
                f"{options.max_batch_size}"
            )
        key = (work.servable, work.signature, tuple(work.outputs), work.form)
        with self._lock:
            if self._is_closed:
                raise stopping()
            queue = self._queues.get(key)
            if queue is None:
                queue = self._queues[key] = _Queue()
            elif queue.rows + work.rows > self._capacity:
                raise ServingError(
                    grpc.StatusCode.UNAVAILABLE,
                    "The batch scheduling queue to which this task was submitted is full; "
                    f"currently {options.max_enqueued_batches} batches enqueued and "
                    f"max_enqueued_batches is {options.max_enqueued_batches}",
                )
            queue.append(work)
            if not caller_runs:
                self._changed.notify()

    def run_waiting(self) -> bool:
        """Runs a batch of what waits in the calling thread, if that is short.

        Returns:
          whether more waits for the caller.
        """
        with self._changed:
            wait, key = self._most_urgent()
            if wait == math.inf:
                return False
            if wait > 0 or not self._queues[key].calls[0].signature.is_short:
                self._changed.notify_all()
                return False
            batch = self._take(key)
        if batch:
            self._run(batch)
        return bool(self._queues)

    def close(self) -> None:
        """Ends the threads once their runs have; what still waits is refused."""
        with self._changed:
            self._is_closed = True
            waiting = [work for queue in self._queues.values() for work in queue.calls]
            self._queues.clear()
            self._changed.notify_all()
        for work in waiting:
            work.drop(stopping())

    @property
    def _capacity(self) -> int:
        return self._options.max_enqueued_batches * self._options.max_batch_size

    def _serve(self) -> None:
        while (batch := self._next()) is not None:
            self._run(batch)

    def _next(self) -> list[Work] | None:
        """Waits for the next batch; None when the batcher is closed."""
        with self._changed:
            while not self._is_closed:
                wait, key = self._most_urgent()
                if wait > 0:
                    self._changed.wait(None if wait == math.inf else wait)
                elif batch := self._take(key):
                    return batch
        return None

    def _most_urgent(self) -> tuple[float, _Key]:
        """Seconds until the next batch may start, and its key; infinite while there is none, or as
        many run as may."""
        if self._running >= self._options.num_batch_threads:
            return math.inf, ()
        return min(
            ((self._time_to_wait(queue), key) for key, queue in self._queues.items()),
            key=lambda found: found[0],
            default=(math.inf, ()),
        )

    def _time_to_wait(self, queue: _Queue) -> float:
        """Seconds until a queue may start; negative if it has waited longer than it had to."""
        timeout = self._options.batch_timeout_micros / 1e6
        wait = queue.calls[0].queued_at + timeout - time.monotonic()
        return wait if queue.rows < self._options.max_batch_size else min(wait, 0.0)

    def _take(self, key: _Key) -> list[Work]:
        """Removes the next batch, without those nobody waits for any more; it runs from now on."""
        queue = self._queues[key]
        batch: list[Work] = []
        rows = 0
        while queue.calls and rows + queue.calls[0].rows <= self._options.max_batch_size:
            work = queue.popleft()
            if work.take():
                batch.append(work)
                rows += work.rows
        if not queue.calls:
            del self._queues[key]
        self._running += bool(batch)
        return batch

    def _run(self, batch: list[Work]) -> None:
        name = batch[0].servable.name
        now = time.monotonic()
        waits = [now - work.queued_at for work in batch]
        self._metrics.batch(name, sum(work.rows for work in batch), waits)
        outcomes: Sequence[Outcome]
        try:
            outcomes = run_together(batch)
        except Exception as error:  # whatever it is: nobody may be left waiting
            outcomes = [error] * len(batch)
        with self._changed:
            self._running -= 1  # whoever ran it looks for the next
        for work, outcome in zip(batch, outcomes, strict=True):
            work.end(outcome)


def rows_and_form(signature: Signature, feeds: Mapping[str, Array]) -> tuple[int, Form]:
    """What decides with which others a call may share a run; (0, ()) if it must run alone.

    Args:
      signature: of the call.
      feeds: input alias -> value, for every input.
    """
    if not signature.batchable:
        return 0, ()
    rows = None
    form: list[object] = []
    for alias in signature.inputs:
        value = feeds[alias]
        shape = value.shape
        if not shape or rows not in (None, shape[0]):
            return 0, ()
        rows = shape[0]
        form.append(value.dtype.num)
        # Lists that can be padded may differ in length.
        form.append(len(shape) if alias in signature.padding else shape[1:])
    return rows or 0, tuple(form)


def run_together(batch: Sequence[Work]) -> list[list[Array] | ServingError]:
    """Runs a batch of calls with equal keys; blocks.

    One call's bad values must not fail its neighbours: when the common run fails, each runs alone.

    Returns:
      for each call its values or its error.
    """
    if len(batch) > 1:
        try:
            return list(_run_merged(batch))
        except ServingError:
            pass
    return [_run_alone(work) for work in batch]


def _run_alone(work: Work) -> list[Array] | ServingError:
    try:
        return work.run()
    except ServingError as error:
        return error


def _run_merged(batch: Sequence[Work]) -> Sequence[list[Array]]:
    first = batch[0]
    signature = first.signature
    feeds = {
        alias: _stack([work.feeds[alias] for work in batch], signature.padding.get(alias))
        for alias in first.feeds
    }
    deadlines = [work.deadline for work in batch]
    latest = None if None in deadlines else max(d for d in deadlines if d is not None)
    results = first.servable.run(signature, feeds, first.outputs, milliseconds_until(latest))
    ends = list(itertools.accumulate(work.rows for work in batch))
    if any(result.shape[:1] != (ends[-1],) for result in results):
        raise ServingError(
            grpc.StatusCode.FAILED_PRECONDITION,
            "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension "
            "sizes of the input tensors",
        )
    return [
        [result[end - work.rows : end] for result in results]
        for work, end in zip(batch, ends, strict=True)
    ]


def _stack(values: list[Array], padding: object) -> Array:
    """Rows of all values; lists [rows, length] are filled up to the longest."""
    if padding is None:
        return np.concatenate(values)
    width = max(value.shape[1] for value in values)
    if all(value.shape[1] == width for value in values):
        return np.concatenate(values)
    full = np.full((sum(len(value) for value in values), width), padding, values[0].dtype)
    start = 0
    for value in values:
        full[start : start + len(value), : value.shape[1]] = value
        start += len(value)
    return full
