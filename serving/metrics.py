"""Metrics of a server, with TensorFlow Serving's names, labels and buckets.

Sources: servables/tensorflow/util.cc, saved_model_warmup_util.cc, batching_session.cc,
util/prometheus_exporter.cc, and TensorFlow's batch_resource_base.cc. If the environment variable
PROMETHEUS_MULTIPROC_DIR is set when prometheus_client is first imported, all processes that share
that directory count together, and the page of each shows the sum.
"""

from __future__ import annotations

import collections
import math
import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, values
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.samples import Sample

_PREFIX = ":tensorflow:serving:"
_MICROSECONDS = 1e6
# TensorFlow Serving's only runtime of SavedModels; others are experiments of it.
_RUNTIME = "TF1"
# Of one metric. Clients choose the model names of requests, also of those that fail.
_MAX_CHILDREN = 1000

_SHARED = bool(os.environ.get("PROMETHEUS_MULTIPROC_DIR"))
if _SHARED:
    # Otherwise each of the seven values that a call changes asks for the process id, lest it was
    # forked: a system call. These processes are not. (https://github.com/prometheus/client_python/
    # blob/v0.26.0/prometheus_client/values.py, MultiProcessValue)
    _PID = os.getpid()
    values.ValueClass = values.MultiProcessValue(lambda: _PID)


def _exponential(scale: float, growth: float, count: int) -> list[float]:
    return [scale * growth**i for i in range(count)]


_LATENCY_BUCKETS = _exponential(10, 1.8, 33)


class Metrics:
    """What a server counts. Cheap enough for every call, from any thread."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        if _SHARED:
            self._collected = CollectorRegistry()
            MultiProcessCollector(self._collected)
        else:
            self._collected = self._registry
        self._metrics: dict[str, _Definition] = {}
        self._requests = self._counter("request_count", "model_name", "status")
        self._latency = self._histogram(
            "request_latency", _LATENCY_BUCKETS, "model_name", "API", "entrypoint"
        )
        self._runtime = self._histogram(
            "runtime_latency", _LATENCY_BUCKETS, "model_name", "API", "runtime"
        )
        self._examples = self._histogram("request_example_counts", _exponential(1, 2, 15), "model")
        self._examples_total = self._counter("request_example_count_total", "model")
        self._warm_up = self._histogram(
            "model_warmup_latency", _LATENCY_BUCKETS, "model_path", "status"
        )
        self._queued = self._histogram(
            "batching_session:queuing_latency", _exponential(100, 1.2, 52), "thread_pool_name"
        )
        self._batches = self._histogram(
            "batching:processed_batch_size", _exponential(1, 2, 10), "model_name", "op_name"
        )

    def request(self, model: str, api: str, entrypoint: str, status: str, seconds: float) -> None:
        """Counts a finished request.

        Args:
          model: name as requested; "" if the request has none.
          api: "Predict", "Classify", ... of gRPC; "predict", ... of REST.
          entrypoint: "GRPC" or "REST".
          status: name of the canonical status code.
          seconds: from request to answer; only successes enter the latency.
        """
        self._requests(model, status).inc()
        if status == "OK":
            self._latency(model, api, entrypoint).observe(seconds * _MICROSECONDS)

    def examples(self, model: str, count: int) -> None:
        """Counts the tf.Examples of a Classify, Regress or MultiInference request."""
        self._examples(model).observe(count)
        self._examples_total(model).inc(count)

    def runtime(self, model: str, api: str, seconds: float) -> None:
        """Counts a run of the graph as one call sees it, time in the queue included.

        Args:
          model: what was run.
          api: "Predict", "Classify", "Regress" or "MultiInference", for REST as for gRPC.
          seconds: from the call until its values were there.
        """
        self._runtime(model, api, _RUNTIME).observe(seconds * _MICROSECONDS)

    def batch(self, model: str, size: int, waits: Sequence[float]) -> None:
        """Counts a batch.

        Args:
          model: what it is for; each has its own queue.
          size: rows.
          waits: seconds that each call of it has waited.
        """
        self._batches(model, "").observe(size)
        self._queued(model).observe_all([seconds * _MICROSECONDS for seconds in waits])

    def warm_up(self, model: str, seconds: float) -> None:
        """Counts a successful warm-up of a version."""
        self._warm_up(model, "OK").observe(seconds * _MICROSECONDS)

    def page(self) -> bytes:
        """The Prometheus page, text format 0.0.4, of all processes that count together."""
        families = {family.name: family for family in self._collected.collect()}
        lines: list[str] = []
        for family_name, definition in self._metrics.items():
            lines.append(f"# TYPE {definition.name} {definition.kind}")
            if family_name in families:
                lines += _lines(definition, families[family_name])
        return ("\n".join(lines) + "\n").encode()

    def _counter(self, name: str, *labels: str) -> _Children:
        counter = Counter(_PREFIX + name, name, labels, registry=self._registry)
        # prometheus_client wants counters to end in _total and leaves that out of family names.
        family_name = _PREFIX + name.removesuffix("_total")
        self._metrics[family_name] = _Definition(_PREFIX + name, "counter", labels)
        return _Children(counter)

    def _histogram(self, name: str, buckets: list[float], *labels: str) -> _Children:
        histogram = _Histogram(
            _PREFIX + name, name, labels, buckets=buckets, registry=self._registry
        )
        self._metrics[_PREFIX + name] = _Definition(_PREFIX + name, "histogram", labels)
        return _Children(histogram)


class _Definition(NamedTuple):
    name: str
    kind: str
    labels: tuple[str, ...]


class _Histogram(Histogram):
    """Finds the bucket by bisection; the original tries one after the other."""

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """See `Histogram`; exemplars, which nobody sends here, are not kept."""
        self._sum.inc(amount)
        self._buckets[bisect_left(self._upper_bounds, amount)].inc(1)

    def observe_all(self, amounts: Sequence[float]) -> None:
        """Observes several at the cost of few."""
        self._sum.inc(sum(amounts))
        places = collections.Counter(bisect_left(self._upper_bounds, amount) for amount in amounts)
        for place, count in places.items():
            self._buckets[place].inc(count)


class _Children:
    """One metric's children by their labels; the first label is the model.

    `metric.labels()` takes longer than counting does.
    """

    def __init__(self, metric: Counter | Histogram) -> None:
        self._metric = metric
        self._children: dict[tuple[str, ...], Any] = {}

    def __call__(self, *labels: str) -> Any:
        child = self._children.get(labels)
        if child is None:
            if len(self._children) >= _MAX_CHILDREN:
                labels = ("", *labels[1:])
            child = self._children[labels] = self._metric.labels(*labels)
        return child


def _lines(definition: _Definition, family: Metric) -> Iterator[str]:
    is_histogram = definition.kind == "histogram"
    for sample in family.samples:
        if sample.name.endswith("_created"):
            continue
        suffix = sample.name.removeprefix(definition.name) if is_histogram else ""
        labels = _labels(definition, sample)
        yield f"{definition.name}{suffix}{{{labels}}} {_number(sample.value)}"


def _labels(definition: _Definition, sample: Sample) -> str:
    labels = [f'{label}="{_escaped(sample.labels[label])}"' for label in definition.labels]
    if "le" in sample.labels:
        bound = float(sample.labels["le"])
        labels.append(f'le="{"+Inf" if bound == math.inf else f"{bound:g}"}"')
    return ",".join(labels)


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(value)
