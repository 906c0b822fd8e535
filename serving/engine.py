"""Runs signatures of served models for all interfaces, gRPC and REST alike."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from tensorflow_serving.apis import predict_pb2

from serving import predict
from serving.batching import (
    Batcher,
    Outcome,
    Work,
    deadline_exceeded,
    milliseconds_until,
    rows_and_form,
)
from serving.errors import stopping
from serving.metrics import Metrics
from serving.model_spec import model_key
from serving.options import ServerOptions
from serving.servable import Servable, Signature
from serving.tensors import Array
from serving.versions import VersionManager


class Engine:
    """Runs calls in threads, batched if the options say so.

    Attributes:
      versions: what is served.
      metrics: told about every run.
      options: of the server.
    """

    def __init__(self, versions: VersionManager, metrics: Metrics, options: ServerOptions) -> None:
        self.versions = versions
        self.metrics = metrics
        self.options = options
        self._threads = ThreadPoolExecutor(options.run_threads, thread_name_prefix="run")
        self._batcher = Batcher(options.batching, metrics) if options.batching else None

    def submit(
        self,
        servable: Servable,
        signature: Signature,
        feeds: dict[str, Array],
        outputs: Sequence[str],
        deadline: float | None,
        done: Callable[[Outcome], None],
        caller_runs: bool = False,
    ) -> Work:
        """Has a signature run, in a batch or alone. From any thread.

        Args:
          servable, signature: what to run; the caller holds the servable until this returns.
          feeds: input alias -> value, for every input.
          outputs: output aliases.
          deadline: time.monotonic() after which the call fails; None = never.
          done: called once, from any thread, with the values of `outputs`, where strings are object
            arrays of bytes; or with what went wrong: a ServingError, TensorFlow's or
            DEADLINE_EXCEEDED, or CancelledError. It must not raise.
          caller_runs: the caller comes back to `run_waiting` soon.

        Returns:
          the call; cancelling it spares a run that has not begun.

        Raises:
          ServingError: DEADLINE_EXCEEDED, or UNAVAILABLE if too much waits; `done` is not called.
        """
        milliseconds_until(deadline)  # expired work is not run
        rows, form = rows_and_form(signature, feeds) if self._batcher else (0, ())

        def ended(outcome: Outcome) -> None:
            servable.release()
            done(outcome)

        work = Work(servable, signature, feeds, outputs, deadline, ended, rows, form)
        servable.acquire()
        try:
            if self._batcher and form:
                self._batcher.submit(work, caller_runs)
            else:
                run = self._threads.submit(_run_unless_taken, work)
                # Of those that have not begun when the server stops.
                run.add_done_callback(lambda _: work.drop(stopping()))
        except BaseException:  # whatever it is: what is held for ever is never unloaded
            servable.release()
            raise
        return work

    async def run(
        self,
        servable: Servable,
        signature: Signature,
        feeds: dict[str, Array],
        outputs: Sequence[str],
        deadline: float | None,
        api: str,
    ) -> list[Array]:
        """Has a signature run, for callers in an event loop.

        Args:
          servable, signature, feeds, outputs, deadline: as of `submit`.
          api: what the call is counted as, see `Metrics.runtime`.

        Returns:
          the values of `outputs`.

        Raises:
          ServingError: as of `submit` and what that calls `done` with.
        """
        started = time.monotonic()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[Array]] = loop.create_future()

        def done(outcome: Outcome) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(_settle, answer, outcome)

        work = self.submit(servable, signature, feeds, outputs, deadline, done)
        try:
            async with asyncio.timeout_at(deadline):
                results = await answer
        except TimeoutError as error:
            raise deadline_exceeded() from error
        finally:
            work.cancel()
        self.metrics.runtime(servable.name, api, time.monotonic() - started)
        return results

    def predict(
        self,
        request: predict_pb2.PredictRequest,
        deadline: float | None,
        done: Callable[[bytes | Exception], None],
        caller_runs: bool = False,
    ) -> Work:
        """Answers a Predict call. From any thread.

        Args:
          request: the call.
          deadline: time.monotonic() after which nobody waits; None = never.
          done: called once, from any thread, with the serialised PredictResponse, or with what went
            wrong: a ServingError with status and text as TensorFlow Serving 2.16 gives them, or
            CancelledError. It must not raise.
          caller_runs: as of `submit`.

        Returns:
          the run; cancelling it spares the work if it has not begun.

        Raises:
          ServingError: as `done` would get it; `done` is not called then.
        """
        name, version, label = model_key(request)
        servable = self.versions.acquire(name, version, label)
        try:
            signature = predict.find_signature(servable, request.model_spec.signature_name)
            if self.options.check_method_names:
                predict.check_method(signature, "predict", predict.PREDICT_METHOD)
            feeds = predict.decode_inputs(signature, request.inputs)
            outputs = predict.select_outputs(signature, request.output_filter)
            started = time.monotonic()

            def respond(outcome: Outcome) -> None:
                answer: bytes | Exception
                if isinstance(outcome, Exception):
                    answer = outcome
                else:
                    try:
                        self.metrics.runtime(servable.name, predict.API, time.monotonic() - started)
                        answer = predict.respond(servable, signature, outputs, outcome)
                    except Exception as error:  # whatever it is: nobody may be left waiting
                        answer = error
                done(answer)

            return self.submit(servable, signature, feeds, outputs, deadline, respond, caller_runs)
        finally:
            servable.release()

    def run_waiting(self) -> bool:
        """Runs a batch of what was left to the caller, see `submit`; whether more waits."""
        return self._batcher is not None and self._batcher.run_waiting()

    def aside(self, work: Callable[[], None]) -> None:
        """Has something done that takes too long for the thread that asks, and must not raise."""
        self._threads.submit(work)

    def close(self) -> None:
        """Ends the threads once their runs have finished."""
        if self._batcher:
            self._batcher.close()
        self._threads.shutdown(wait=False, cancel_futures=True)


def _run_unless_taken(work: Work) -> None:
    if work.take():
        outcome: Outcome
        try:
            outcome = work.run()
        except Exception as error:  # whatever it is: nobody may be left waiting
            outcome = error
        work.end(outcome)


def _settle(answer: asyncio.Future[list[Array]], outcome: Outcome) -> None:
    if answer.done():
        return  # nobody waits any more
    if isinstance(outcome, Exception):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)
