"""One loaded version of a SavedModel.

Runs through the raw `TF_SessionRun_wrapper` rather than `Session.run`: the latter checks shapes
and types in Python and raises other errors than TensorFlow Serving, and refuses feeds that it
accepts. The wrapper is private to TensorFlow, whose version is pinned by this project.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import logging
import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.python.client import pywrap_tf_session
from tensorflow.python.framework import ops
from tensorflow.python.saved_model import loader_impl

from serving import tensors
from serving.errors import ServingError, invalid_argument, status_of
from serving.manifest import verify_manifest

_LOG = logging.getLogger(__name__)

_SCANN_OP_PREFIX = "Scann>"
_LOOP_OPS = frozenset({"While", "StatelessWhile", "Enter"})
# A full batch of a recommender is to count as short when the machine is busy, too: handing it to
# another thread costs half as much again, at the moment when there is most to do.
_SHORT_SECONDS = 0.05
# glibc keeps what was freed for itself, in one arena for each thread, and every version is loaded
# and unloaded by other threads. OpenVINO Model Server does the same when it unloads a model:
# https://github.com/openvinotoolkit/model_server/pull/1808. None with another C library.
_MALLOC_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)


class Signature:
    """A SignatureDef with its feeds and fetches resolved once, so that a call looks up nothing.

    Attributes:
      name: key in the SavedModel, e.g. "serving_default".
      method_name: what kind of call it was exported for, e.g. "tensorflow/serving/predict".
      inputs, outputs: alias -> TensorInfo, sorted by alias.
      defaults: input alias -> value used when a request leaves the input out.
      required: input aliases without a default.
      batchable: rows of different requests may share a run: every input and output declares a
        first dimension of any size.
      padding: input alias -> element that fills up short lists, for the inputs whose lists may
        differ in length between requests. Such an input is [?, ?] and defaults to an empty list.
      last_seconds: what the last run took; infinite before the first.
    """

    __slots__ = (
        "batchable",
        "defaults",
        "feeds",
        "fetches",
        "inputs",
        "last_seconds",
        "method_name",
        "name",
        "outputs",
        "padding",
        "required",
    )

    def __init__(self, name: str, definition: Any, graph: tf.Graph) -> None:
        self.name = name
        self.method_name: str = definition.method_name
        self.inputs = {alias: definition.inputs[alias] for alias in sorted(definition.inputs)}
        self.outputs = {alias: definition.outputs[alias] for alias in sorted(definition.outputs)}
        self.feeds = {alias: _handle(graph, info.name) for alias, info in self.inputs.items()}
        self.fetches = {alias: _handle(graph, info.name) for alias, info in self.outputs.items()}
        self.defaults = {
            alias: tensors.to_array(definition.defaults[alias])
            for alias in sorted(definition.defaults)
        }
        self.required = self.inputs.keys() - self.defaults.keys()
        self.batchable = bool(self.inputs) and all(
            _has_free_rows(info) for info in (*self.inputs.values(), *self.outputs.values())
        )
        self.padding = {
            alias: _PADDING[value.dtype.kind]
            for alias, value in self.defaults.items()
            if value.shape == (1, 0)
            and [dim.size for dim in self.inputs[alias].tensor_shape.dim] == [-1, -1]
            and value.dtype.kind in _PADDING
        }
        self.last_seconds = math.inf

    @property
    def is_short(self) -> bool:
        """Whether its last run took less time than a thread should be woken for."""
        return self.last_seconds < _SHORT_SECONDS


# By kind of numpy dtype: the values that stand for nothing in the lists of a request.
_PADDING: Mapping[str, Any] = {"O": b"", "f": math.nan, "i": 0}


def _has_free_rows(info: Any) -> bool:
    shape = info.tensor_shape
    return bool(shape.dim) and shape.dim[0].size == -1


def _handle(graph: tf.Graph, tensor: str) -> Any:
    return graph.get_tensor_by_name(tensor)._as_tf_output()


class Threads(NamedTuple):
    """Sizes of TensorFlow's thread pools; 0 = its own choice.

    Attributes:
      intra_op: 0 = the cores.
      inter_op: 0 = the cores, but short runs of graphs without loops stay in the thread that asks
        for them.
    """

    intra_op: int = 0
    inter_op: int = 0


AUTOMATIC = Threads()


class Servable:
    """A SavedModel in its own graph and session, closed only when no call is running in it."""

    def __init__(
        self,
        name: str,
        version: int,
        path: str,
        tags: Sequence[str] = ("serve",),
        threads: Threads = AUTOMATIC,
    ) -> None:
        """Loads `path`; use in one process with as many other servables as memory allows.

        Args:
          name, version: what clients ask for.
          path: directory of the SavedModel.
          tags: of the meta graph to load.
          threads: of the session.

        Raises:
          ManifestError: the directory does not match its manifest.
          ServingError: the graph needs ops that are not installed.
          tf.errors.OpError, OSError, RuntimeError, ValueError: TensorFlow cannot load it.
        """
        started = time.monotonic()
        self.name = name
        self.version = version
        self.path = path
        self.manifest = verify_manifest(path)
        saved_model = loader_impl.parse_saved_model(path)
        if _uses_scann(saved_model):
            _register_scann_ops(path)
        self._graph = tf.Graph()
        self._session = tf.compat.v1.Session(
            graph=self._graph,
            config=tf.compat.v1.ConfigProto(
                intra_op_parallelism_threads=threads.intra_op,
                inter_op_parallelism_threads=threads.inter_op,
            ),
        )
        with contextlib.ExitStack() as undo:
            undo.callback(ops.dismantle_graph, self._graph)
            undo.callback(self._session.close)
            with self._graph.as_default():
                meta_graph = loader_impl.SavedModelLoader(path).load(self._session, list(tags))
            self.signature_defs: Mapping[str, Any] = meta_graph.signature_def
            self.signatures = {
                key: Signature(key, definition, self._graph)
                for key, definition in meta_graph.signature_def.items()
                if _is_callable(definition)
            }
            self._graph.finalize()
            undo.pop_all()
        self._handle: Any = self._session._session
        # How long a loop takes depends on its inputs: the last run says nothing about the next.
        self._keeps_short_runs = not threads.inter_op and _LOOP_OPS.isdisjoint(_ops(saved_model))
        self._lock = threading.Lock()  # entered directly by every call: a Condition is in Python
        self._idle = threading.Condition(self._lock)
        self._running = 0
        _LOG.info("%s version %d loaded in %.2f s", name, version, time.monotonic() - started)

    def joint_signature(self, name: str, definition: Any) -> Signature:
        """A signature that the SavedModel does not name, over tensors of its graph.

        Args:
          name: tells it from other signatures.
          definition: SignatureDef.
        """
        return Signature(name, definition, self._graph)

    def acquire(self) -> None:
        """Keeps the session open until the matching `release`."""
        with self._lock:
            self._running += 1

    def release(self) -> None:
        """Ends one `acquire`."""
        with self._lock:
            self._running -= 1
            if not self._running:
                self._idle.notify_all()

    @property
    def calls_in_flight(self) -> int:
        """Number of calls that hold this servable now."""
        return self._running

    def run(
        self,
        signature: Signature,
        feeds: Mapping[str, tensors.Array],
        outputs: Sequence[str],
        timeout_ms: int | None = None,
    ) -> list[tensors.Array]:
        """Runs a signature; blocks, without holding Python's global lock.

        A signature whose last run was short runs in this thread, unless the graph has loops: waking
        those of TensorFlow's pool takes as long as such a run. Nothing could cancel it there, and
        nothing needs to.

        Args:
          signature: one of `signatures`.
          feeds: input alias -> value, for every input.
          outputs: output aliases.
          timeout_ms: a run that is not short is cancelled after this time; None = never.

        Returns:
          the values of `outputs`; strings are object arrays of bytes.

        Raises:
          ServingError: TensorFlow's own code and text.
        """
        started = time.monotonic()
        with _run_options(self._keeps_short_runs and signature.is_short, timeout_ms) as options:
            try:
                results = pywrap_tf_session.TF_SessionRun_wrapper(
                    self._handle,
                    options,
                    {signature.feeds[alias]: value for alias, value in feeds.items()},
                    [signature.fetches[alias] for alias in outputs],
                    [],
                    None,
                )
            except tf.errors.OpError as error:
                raise ServingError(status_of(error), error.message) from error
            except UnicodeDecodeError as error:
                # TensorFlow's Python layer fails on an error text that quotes bytes of the request
                # which are not UTF-8; the status is lost with it, but such bytes are the client's.
                text = error.object.decode("utf-8", errors="replace")
                raise invalid_argument(text) from error
        signature.last_seconds = time.monotonic() - started
        # Scalars arrive as Python objects.
        return [np.asarray(result) for result in results]

    def close(self, timeout_seconds: float | None = None) -> bool:
        """Waits for the calls in flight, then gives the memory back to the operating system.

        Returns:
          False if calls were still running after `timeout_seconds`; nothing is freed then.
        """
        with self._idle:
            if not self._idle.wait_for(lambda: self._running == 0, timeout_seconds):
                return False
        self._session.close()
        # The C++ session and graph die with their last Python reference. A graph's operations
        # refer to it and would keep it until some full garbage collection.
        ops.dismantle_graph(self._graph)
        self._handle = None
        del self._session, self._graph
        self.signatures = {}
        if _MALLOC_TRIM is not None:
            _MALLOC_TRIM(0)
        return True


@contextlib.contextmanager
def _run_options(is_short: bool, timeout_ms: int | None) -> Iterator[Any]:
    """A TF_Buffer of RunOptions, None for the defaults."""
    if is_short:
        yield _IN_THIS_THREAD
    elif timeout_ms is None:
        yield None
    else:
        buffer = _buffer(timeout_in_ms=timeout_ms)
        try:
            yield buffer
        finally:
            pywrap_tf_session.TF_DeleteBuffer(buffer)


def _buffer(**options: int) -> Any:
    proto = tf.compat.v1.RunOptions(**options)
    return pywrap_tf_session.TF_NewBufferFromString(proto.SerializeToString())


_IN_THIS_THREAD = _buffer(inter_op_thread_pool=-1)


def _is_callable(definition: Any) -> bool:
    """False for `__saved_model_init_op`, which names an operation, and composite tensors."""
    infos = [*definition.inputs.values(), *definition.outputs.values()]
    return bool(infos) and all(":" in info.name for info in infos)


def _uses_scann(saved_model: Any) -> bool:
    return any(op.startswith(_SCANN_OP_PREFIX) for op in _ops(saved_model))


def _ops(saved_model: Any) -> Iterable[str]:
    for meta_graph in saved_model.meta_graphs:
        for node in meta_graph.graph_def.node:
            yield node.op
        for function in meta_graph.graph_def.library.function:
            for node in function.node_def:
                yield node.op


def _register_scann_ops(path: str) -> None:
    try:
        importlib.import_module("scann")
    except (ImportError, tf.errors.NotFoundError) as error:
        raise ServingError(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"{path} uses ScaNN ops, but the package `scann` cannot be loaded ({error}). Install "
            "the scann release made for this TensorFlow, or serve the stock flavour of the model.",
        ) from error
