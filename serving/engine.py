"""Runs signatures of served models for all interfaces, gRPC and REST alike."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tensorflow_serving.apis import predict_pb2

from serving import predict
from serving.aside import LARGE_BYTES, aside
from serving.batching import Batcher, Work, batch_rows, deadline_exceeded, milliseconds_until
from serving.metrics import Metrics
from serving.model_spec import model_key
from serving.options import ServerOptions
from serving.servable import Servable, Signature
from serving.tensors import Array
from serving.versions import VersionManager


class Engine:
    """Runs calls in threads, batched if the options say so. Use it from one event loop.

    Attributes:
      versions: what is served.
      metrics: told about every run.
      options: of the server.
    """

    def __init__(self, versions: VersionManager, metrics: Metrics, options: ServerOptions) -> None:
        self.versions = versions
        self.metrics = metrics
        self.options = options
        batching = options.batching
        self._threads = ThreadPoolExecutor(
            max(options.run_threads, batching.num_batch_threads if batching else 1),
            thread_name_prefix="run",
        )
        self._batcher = Batcher(batching, self._threads, metrics) if batching else None

    async def run(
        self,
        servable: Servable,
        signature: Signature,
        feeds: dict[str, Array],
        outputs: Sequence[str],
        deadline: float | None,
        api: str,
    ) -> list[Array]:
        """Runs a signature of a servable that the caller holds.

        Args:
          servable, signature: what to run.
          feeds: input alias -> value, for every input.
          outputs: output aliases.
          deadline: time.monotonic() after which the call fails; None = never.
          api: what the call is counted as, see `Metrics.runtime`.

        Returns:
          the values of `outputs`; strings are object arrays of bytes.

        Raises:
          ServingError: TensorFlow's error, DEADLINE_EXCEEDED, or UNAVAILABLE if too much waits.
        """
        loop = asyncio.get_running_loop()
        started = time.monotonic()
        milliseconds_until(deadline)  # expired work is not run
        answer: asyncio.Future[list[Array]] = loop.create_future()
        rows = batch_rows(signature, feeds) if self._batcher else None
        work = Work(servable, signature, feeds, outputs, deadline, rows or 0, answer, started)
        timer = None
        if deadline is not None:
            timer = loop.call_at(deadline, _expire, answer)
        try:
            if self._batcher and rows is not None:
                self._batcher.submit(work)
            else:
                self._run_alone(work)
            results = await answer
        finally:
            if timer is not None:
                timer.cancel()
        self.metrics.runtime(servable.name, api, time.monotonic() - started)
        return results

    def _run_alone(self, work: Work) -> None:
        # Released by the thread: the caller may leave before the run ends.
        work.servable.acquire()

        def run() -> list[Array]:
            try:
                if work.answer.done():
                    raise deadline_exceeded()  # nobody waits any more
                return work.run()
            finally:
                work.servable.release()

        done = asyncio.get_running_loop().run_in_executor(self._threads, run)
        done.add_done_callback(lambda finished: _hand_over(finished, work.answer))

    async def predict(self, request: predict_pb2.PredictRequest, deadline: float | None) -> bytes:
        """Answers a Predict call with a serialised PredictResponse.

        Raises:
          ServingError: status and text as TensorFlow Serving 2.16 gives them.
        """
        name, version, label = model_key(request)
        with self.versions.lease(name, version, label) as servable:
            signature = predict.find_signature(servable, request.model_spec.signature_name)
            if self.options.check_method_names:
                predict.check_method(signature, "predict", predict.PREDICT_METHOD)
            large = request.ByteSize() > LARGE_BYTES
            feeds = await aside(large, predict.decode_inputs, signature, request.inputs)
            outputs = predict.select_outputs(signature, request.output_filter)
            results = await self.run(servable, signature, feeds, outputs, deadline, predict.API)
            return predict.respond(servable, signature, outputs, results)

    def close(self) -> None:
        """Ends the threads once their runs have finished."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _expire(answer: asyncio.Future[list[Array]]) -> None:
    if not answer.done():
        answer.set_exception(deadline_exceeded())


def _hand_over(finished: asyncio.Future[list[Array]], answer: asyncio.Future[list[Array]]) -> None:
    if answer.done() or finished.cancelled():
        return
    error = finished.exception()
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(finished.result())
