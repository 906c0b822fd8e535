"""The metrics page, in one process and over several."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import parser

from serving.metrics import Metrics

PREFIX = ":tensorflow:serving:"


def samples(page: bytes) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Sample name, counters as ..._total -> labels -> value."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in parser.text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            labels = tuple(sorted(sample.labels.items()))
            found.setdefault(sample.name.removeprefix(PREFIX), {})[labels] = sample.value
    return found


def test_page_has_tensorflow_servings_names_and_labels() -> None:
    metrics = Metrics()
    metrics.request("rec", "Predict", "GRPC", "OK", 0.002)
    metrics.request("rec", "predict", "REST", "NOT_FOUND", 0.002)
    metrics.examples("rec", 3)
    metrics.runtime("rec", "Predict", 0.001)
    metrics.batch("rec", 32, [0.0001, 0.0003])
    metrics.warm_up("rec", 1.5)
    lines = metrics.page().decode().splitlines()
    for line in (
        "# TYPE :tensorflow:serving:request_count counter",
        ':tensorflow:serving:request_count{model_name="rec",status="OK"} 1',
        ':tensorflow:serving:request_count{model_name="rec",status="NOT_FOUND"} 1',
        "# TYPE :tensorflow:serving:request_latency histogram",
        ':tensorflow:serving:request_latency_sum{model_name="rec",API="Predict",'
        'entrypoint="GRPC"} 2000',
        ':tensorflow:serving:runtime_latency_count{model_name="rec",API="Predict",runtime="TF1"} 1',
        ':tensorflow:serving:request_example_counts_sum{model="rec"} 3',
        "# TYPE :tensorflow:serving:request_example_count_total counter",
        ':tensorflow:serving:request_example_count_total{model="rec"} 3',
        ':tensorflow:serving:model_warmup_latency_sum{model_path="rec",status="OK"} 1500000',
        ':tensorflow:serving:batching_session:queuing_latency_sum{thread_pool_name="rec"} 400',
        ':tensorflow:serving:batching_session:queuing_latency_count{thread_pool_name="rec"} 2',
        ':tensorflow:serving:batching_session:queuing_latency_bucket{thread_pool_name="rec",'
        'le="100"} 1',
        ':tensorflow:serving:batching:processed_batch_size_sum{model_name="rec",op_name=""} 32',
    ):
        assert line in lines
    assert not [line for line in lines if "NOT_FOUND" in line and "latency" in line]


def test_latency_buckets() -> None:
    metrics = Metrics()
    metrics.request("rec", "Predict", "GRPC", "OK", 32.4e-6)
    buckets = samples(metrics.page())["request_latency_bucket"]
    counts = {dict(labels)["le"]: count for labels, count in buckets.items()}
    assert len(counts) == 34
    assert list(counts)[:4] == ["10", "18", "32.4", "58.32"]
    assert list(counts)[-1] == "+Inf"
    assert [counts[bound] for bound in ("18", "58.32", "+Inf")] == [0, 1, 1]


def test_labels_are_escaped() -> None:
    metrics = Metrics()
    name = 'a"b\\c\nd'
    metrics.request(name, "Predict", "GRPC", "OK", 0.001)
    assert samples(metrics.page())["request_count_total"] == {
        (("model_name", name), ("status", "OK")): 1
    }


def test_names_chosen_by_clients_do_not_grow_the_page_without_end() -> None:
    metrics = Metrics()
    for number in range(3000):
        metrics.request(f"no-such-model-{number}", "Predict", "GRPC", "NOT_FOUND", 0.001)
    counts = samples(metrics.page())["request_count_total"]
    assert len(counts) < 1100
    assert sum(counts.values()) == 3000


_WORKER = """
import sys
from serving.metrics import Metrics
metrics = Metrics()
sys.stdin.readline()
for _ in range(int(sys.argv[1])):
    metrics.request("rec", "Predict", "GRPC", "OK", 0.001)
metrics.examples("rec", 2)
print("counted", flush=True)
sys.stdin.readline()
sys.stdout.buffer.write(metrics.page())
"""


@pytest.mark.slow
def test_processes_count_together(tmp_path: Path) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(calls)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for calls in (3, 4)
    ]
    for worker in workers:
        assert worker.stdin
        assert worker.stdout
        worker.stdin.write(b"count\n")
        worker.stdin.flush()
        assert worker.stdout.readline() == b"counted\n"
    pages = [worker.communicate(b"show\n", timeout=30)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    for page in pages:
        found = samples(page)
        assert found["request_count_total"] == {(("model_name", "rec"), ("status", "OK")): 7}
        assert set(found["request_latency_count"].values()) == {7}
        assert set(found["request_example_count_total"].values()) == {4}
        assert b'{model_name="rec",API="Predict",entrypoint="GRPC",le="18"} 0' in page
