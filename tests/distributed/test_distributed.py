"""What Beam makes does not depend on where it runs, nor on a worker that dies meanwhile."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from tensorflow_metadata.proto.v0 import statistics_pb2

from pipeline.batch_recommend.job import Request, run

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

SPLITS = ("train", "eval", "catalogue")
RUN_SECONDS = 600.0
GIVEN_UP_SECONDS = 60.0  # a worker that no job uses
FROZEN_SECONDS = 3.0
MESSAGE_SECONDS = 0.5  # until the JobManager has heard what a TaskManager last said
MIDWAY = 0.1  # of the tasks


@pytest.fixture(scope="module")
def expected(prepare: Any) -> Any:
    """The DirectRunner inside one process."""
    prepared = prepare()
    prepared.wait(RUN_SECONDS)
    return prepared


def records(directory: Path, split: str) -> Counter[bytes]:
    """Serialised examples of a split, however they are spread over files."""
    files = sorted(str(path) for path in (directory / f"Split-{split}").iterdir())
    found: Counter[bytes] = Counter()
    for record in tf.data.TFRecordDataset(files, compression_type="GZIP"):
        example = tf.train.Example.FromString(record.numpy())
        found[example.SerializeToString(deterministic=True)] += 1
    return found


def lines(directory: Path) -> list[str]:
    return sorted((directory / "dead_letters.jsonl").read_text().splitlines())


def statistics(directory: Path, split: str) -> dict[str, Any]:
    content = (directory / f"Split-{split}" / "FeatureStats.pb").read_bytes()
    (dataset,) = statistics_pb2.DatasetFeatureStatisticsList.FromString(content).datasets
    return {"examples": dataset.num_examples} | {
        ".".join(feature.path.step): feature for feature in dataset.features
    }


def assert_same_feature(one: Any, two: Any) -> None:
    """Counts and extremes exactly; what is added up in floats, or sketched, nearly."""
    kind = one.WhichOneof("stats")
    assert (one.type, kind) == (two.type, two.WhichOneof("stats"))
    first, second = getattr(one, kind), getattr(two, kind)
    for name in ("num_non_missing", "num_missing", "min_num_values", "max_num_values"):
        assert getattr(first.common_stats, name) == getattr(second.common_stats, name), name
    assert first.common_stats.tot_num_values == second.common_stats.tot_num_values
    if kind == "num_stats":
        for name in ("min", "max", "num_zeros"):
            assert getattr(first, name) == getattr(second, name), name
        for name in ("mean", "std_dev"):
            assert getattr(first, name) == pytest.approx(getattr(second, name), rel=1e-9), name
    elif kind == "string_stats":
        assert first.unique == second.unique
        assert first.avg_length == pytest.approx(second.avg_length, rel=1e-6)
        assert [v.frequency for v in first.top_values] == [v.frequency for v in second.top_values]


def assert_same(made: Any, expected: Any) -> None:
    """Timelines, catalogue, counts, dead letters, statistics, vocabularies, transformed rows."""
    for split in SPLITS:
        for node, key in (("InteractionGen", "examples"), ("Transform", "transformed_examples")):
            wanted = records(expected.output(node, key), split)
            assert wanted
            assert records(made.output(node, key), split) == wanted, (node, split)
        one, two = (
            statistics(prepared.output("StatisticsGen", "statistics"), split)
            for prepared in (made, expected)
        )
        assert one.pop("examples") == two.pop("examples")
        assert one.keys() == two.keys()
        for name in two:
            assert_same_feature(one[name], two[name])
    dead = lines(expected.output("InteractionGen", "dead_letters"))
    assert dead
    assert lines(made.output("InteractionGen", "dead_letters")) == dead
    summaries = [
        json.loads((prepared.output("InteractionGen", "summary") / "summary.json").read_text())
        for prepared in (made, expected)
    ]
    assert summaries[0] == summaries[1]
    one, two = (
        {
            path.name: path.read_bytes()
            for path in (
                prepared.output("Transform", "transform_graph") / "transform_fn" / "assets"
            ).iterdir()
        }
        for prepared in (made, expected)
    )
    assert {"users", "items"} <= two.keys()
    assert one == two


def test_worker_processes_make_what_one_process_makes(prepare: Any, expected: Any) -> None:
    made = prepare(
        "DirectRunner",
        (
            "--direct_running_mode=multi_processing",
            "--direct_num_workers=2",
            "--sdk_container_image=none",
        ),
    )
    made.wait(RUN_SECONDS)
    assert_same(made, expected)


def test_flink_makes_what_one_process_makes(
    prepare: Any, expected: Any, flink: Any, record_property: Any
) -> None:
    before = {job.number for job in flink.flink.jobs()}
    made = prepare("FlinkRunner", flink.options)
    most = 0
    deadline = time.monotonic() + RUN_SECONDS
    while made.process.poll() is None and time.monotonic() < deadline:
        most = max(most, len(flink.workers()))
        time.sleep(0.1)
    made.wait(0)
    jobs = [job for job in flink.flink.jobs() if job.number not in before]
    record_property(
        "measured",
        f"{len(jobs)} jobs, {sum(job.tasks for job in jobs)} tasks, "
        f"{len(flink.flink.registered())} TaskManagers, at most {most} Python workers",
    )
    assert len(jobs) == 3
    for job in jobs:
        assert (job.state, flink.flink.restarted(job)) == ("FINISHED", False)
        assert len(flink.flink.took_part(job)) > 1
    assert most > 1
    assert_same(made, expected)


def kill_a_worker(cluster: Any, made: Any) -> None:
    """Kills a worker process in the middle of InteractionGen, the first job.

    As soon as it works it is frozen, so that the job cannot end before it dies. Not earlier: Beam
    waits three minutes for the data connection of a worker that has died before it.
    """
    deadline = time.monotonic() + RUN_SECONDS
    while made.process.poll() is None and time.monotonic() < deadline:
        for worker in cluster.workers():
            states = [connection.status for connection in worker.net_connections()]
            if states.count(psutil.CONN_ESTABLISHED) >= cluster.channels:
                worker.suspend()
                time.sleep(FROZEN_SECONDS)
                assert made.process.poll() is None
                worker.kill()
                return
        time.sleep(0.02)
    pytest.fail("no worker took orders:\n" + made.log.read_text(errors="replace")[-4000:])


def kill_a_task_manager(flink: Any, made: Any, known: set[str]) -> str:
    """Kills one that works for the first job that is not known, and starts another.

    It is frozen first, and looked at again: one that has just handed in its last task would not be
    missed.

    Returns:
      How far the job was.
    """
    deadline = time.monotonic() + RUN_SECONDS
    while made.process.poll() is None and time.monotonic() < deadline:
        new = [job for job in flink.jobs() if job.number not in known and job.state == "RUNNING"]
        for job in new:
            for name in sorted(flink.at_work(job)) if job.finished > MIDWAY * job.tasks else ():
                task_manager = flink.task_managers[name]
                task_manager.suspend()
                time.sleep(MESSAGE_SECONDS)
                if name in flink.at_work(job):
                    task_manager.kill()
                    flink.add_task_manager()
                    return f"{job.finished} of {job.tasks} tasks done"
                task_manager.resume()
        time.sleep(0.1)
    pytest.fail("no job was under way:\n" + made.log.read_text(errors="replace")[-4000:])


def test_flink_survives_a_worker_and_a_task_manager_that_die(
    prepare: Any, expected: Any, flink: Any, record_property: Any
) -> None:
    # Workers that the last test left would be taken for those of this one.
    _, left = psutil.wait_procs(flink.workers(), GIVEN_UP_SECONDS)
    assert not left
    before = {job.number for job in flink.flink.jobs()}
    made = prepare("FlinkRunner", flink.options)
    kill_a_worker(flink, made)
    first = {job.number for job in flink.flink.jobs()}
    progress = kill_a_task_manager(flink.flink, made, first)
    made.wait(RUN_SECONDS)
    jobs = [job for job in flink.flink.jobs() if job.number not in before]
    restarted = [flink.flink.restarted(job) for job in jobs]
    record_property(
        "measured",
        "killed: a Python worker of InteractionGen, a TaskManager of StatisticsGen "
        f"({progress}); run again: {sum(restarted)} of {len(jobs)} jobs",
    )
    assert [job.state for job in jobs] == ["FINISHED"] * 3
    assert restarted == [True, True, False]
    assert_same(made, expected)


def test_without_a_second_try_a_worker_that_dies_fails_the_run(
    prepare: Any, beam_jobs: Any
) -> None:
    made = prepare("PortableRunner", beam_jobs.options)
    kill_a_worker(beam_jobs, made)
    assert made.process.wait(RUN_SECONDS) == 1
    # Nothing that a later run, or a person, could take for the result.
    assert not list((made.workdir / "artifacts").glob("InteractionGen/examples/*/*/data_*"))


def test_batch_recommend_on_flink(
    flink: Any, pushed: Path, tmp_path: Path, record_property: Any
) -> None:
    table = pa.table({"user_id": [f"u{n}" for n in range(5000)] + [None]})
    pq.write_table(table, tmp_path / "users.parquet", row_group_size=1000)
    answers = []
    for name, arguments in (("here", ()), ("flink", ("--runner=FlinkRunner", *flink.options))):
        output = tmp_path / name
        result = run(Request(pushed, str(tmp_path / "users.parquet"), output), arguments)
        assert (result.read, result.written, result.dead_letters) == (
            5001,
            5000,
            {"no_user_id": 1},
        )
        answers.append(
            {
                row["user_id"]: (row["item_ids"], np.array(row["scores"], np.float32).tobytes())
                for row in pq.read_table(output / "recommendations").to_pylist()
            }
        )
    job = flink.flink.jobs()[-1]
    used = flink.flink.took_part(job)
    record_property("measured", f"{len(answers[1])} users, {len(used)} TaskManagers took part")
    assert (job.state, len(used)) == ("FINISHED", 2)
    assert answers[0] == answers[1]
