"""Training on two devices, and on two workers in processes of their own, against one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from models import replicas
from models.towers import TwoTower
from tests.models.training_worker import __file__ as worker_file

ROOT = Path(worker_file).parents[2]
OBJECTIVES = ("exposure", "click", "conversion")


@dataclass(frozen=True)
class Trained:
    """What a training left: reports and towers of every stage."""

    reports: list[dict[str, Any]]
    towers: list[TwoTower]

    def losses(self) -> list[float]:
        return [
            loss
            for report in self.reports
            for p in report["phases"]
            for loss in p["fitted"]["losses"]
        ]

    def recalls(self) -> list[float]:
        return [
            r for report in self.reports for p in report["phases"] for r in p["fitted"]["recalls"]
        ]


Train = Callable[..., Trained]


@pytest.fixture(scope="module")
def train(shop: Any, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Trains the shop's cascade by the real executor, in one process or in two."""
    examples = tmp_path_factory.mktemp("examples")
    for split, records in (
        ("train", shop.transformed_timelines),
        ("catalogue", shop.transformed_catalogue),
    ):
        (examples / f"Split-{split}").mkdir()
        file = str(examples / f"Split-{split}" / "part.gz")
        with tf.io.TFRecordWriter(file, "GZIP") as writer:
            for record in records:
                writer.write(record)

    def run(
        distribution: str,
        *,
        devices: int = 1,
        workers: int = 1,
        model: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Trained:
        place = tmp_path_factory.mktemp(distribution)
        # A batch is an epoch and a round one step, so that the losses are those of the steps.
        stage = {
            "rounds": 5,
            "recovery_rounds": 2,
            "batch_size": 512,
            "learning_rate": 0.02,
            "tau": 0.5,
        } | changes
        plan = {
            "transform_graph": str(shop.transform_directory),
            "examples": str(examples),
            "output": str(place / "out"),
            "features": {"user": {"age": "numeric", "gender": "categorical"},
                         "item": {"genres": "categorical"}},
            "stages": [{"name": name} | stage for name in OBJECTIVES],
            "model": {
                "towers": {"dimension": 18, "item_embedding": 12, "minimum_block": 2},
                "validation": {"share": 0, "round_steps": 1},
            } | (model or {}),
            "distribution": distribution,
            "devices": devices,
        }  # fmt: skip
        run_workers(place / "plan.json", plan, workers)
        # The others have the same towers, but only the chief writes them.
        assert [path.name for path in (place / "out").iterdir()] == ["0"]
        made = [place / "out" / "0" / name for name in OBJECTIVES]
        return Trained(
            [json.loads((stage / "stage.json").read_text()) for stage in made],
            [TwoTower.load(stage) for stage in made],
        )

    return run


def run_workers(file: Path, plan: dict[str, Any], workers: int) -> None:
    """Runs them; several find each other by TF_CONFIG, as a training operator would set it."""
    file.write_text(json.dumps(plan))
    sockets = [socket.socket() for _ in range(workers)]
    for sock in sockets:
        sock.bind(("localhost", 0))
    addresses = [f"localhost:{sock.getsockname()[1]}" for sock in sockets]
    for sock in sockets:
        sock.close()
    processes = []
    for index in range(workers):
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        if workers > 1:
            cluster = {"worker": addresses}
            task = {"type": "worker", "index": index}
            environment["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "tests.models.training_worker", str(file), str(index)],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        printed = [process.communicate(timeout=420)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, text in zip(processes, printed, strict=True):
        assert process.returncode == 0, text[-6000:]


@pytest.fixture(scope="module")
def alone(train: Train) -> Trained:
    return train("none")


def assert_same_training(found: Trained, expected: Trained) -> None:
    """Equal losses of every step, the same pruned neurons, equal weights; up to rounding.

    Adam divides by the root of the squared gradient, so that rounding of a gradient near zero can
    move a weight by a part of the learning rate; it adds up from stage to stage.
    """
    np.testing.assert_allclose(found.losses(), expected.losses(), rtol=1e-4)
    assert found.losses()[0] == pytest.approx(expected.losses()[0], rel=1e-6), "nothing moved yet"
    for stage, (ours, theirs) in enumerate(zip(found.towers, expected.towers, strict=True)):
        for name, owners in theirs.owners.items():
            assert np.array_equal(ours.owners[name], owners), name
        for name, weight in theirs.weights.items():
            apart = np.abs(ours.weights[name].numpy() - weight.numpy())
            assert np.mean(apart > (1e-5 if stage == 0 else 1e-4)) < 0.01, (stage, name)
            assert apart.max() < 0.01, (stage, name)


def assert_frozen(trained: Trained) -> None:
    """What a stage owns is bit for bit the same in all later ones; and it was trained."""
    for stage, after in enumerate(trained.towers):
        frozen = after.trainable_masks(stage)
        for later in trained.towers[stage + 1 :]:
            for name, mask in frozen.items():
                kept = np.broadcast_to(mask, after.weights[name].shape)
                before = after.weights[name].numpy()[kept]
                assert before.tobytes() == later.weights[name].numpy()[kept].tobytes(), name
    assert all(sum(tower.owners["output"] == stage) for stage, tower in enumerate(trained.towers))


@pytest.mark.slow
def test_two_worker_processes_train_as_one_does(train: Train, alone: Trained) -> None:
    pair = train("multi_worker", workers=2)
    later = [len(report["phases"][0]["fitted"]["losses"]) for report in pair.reports[1:]]
    assert len(pair.losses()) == (5 + 2) + (later[0] + 2) + later[1], "of every step"
    assert min(later) > 1
    assert pair.losses()[0] > pair.losses()[4]
    assert_same_training(pair, alone)
    assert_frozen(pair)


@pytest.mark.slow
def test_two_devices_train_as_one_does(train: Train, alone: Trained) -> None:
    pair = train("mirrored", devices=2)
    assert_same_training(pair, alone)
    assert_frozen(pair)


@pytest.mark.slow
def test_two_workers_stop_together_with_sampled_negatives(train: Train) -> None:
    """Validation decides when to stop; both follow the chief."""
    model = {
        "towers": {"dimension": 18, "item_embedding": 12, "minimum_block": 2},
        "validation": {"share": 0.2, "round_steps": 1, "patience": 1},
        "negatives": {"kind": "sampled", "random": 12},
    }
    changes: dict[str, Any] = {"model": model, "rounds": 12, "batch_size": 41}
    pair, alone = train("multi_worker", workers=2, **changes), train("none", **changes)
    fits = [phase["fitted"] for report in alone.reports for phase in report["phases"]]
    assert any(f["kept_round"] < len(f["losses"]) for f in fits), "some round was not kept"
    np.testing.assert_allclose(pair.recalls(), alone.recalls(), atol=1e-3)
    assert_same_training(pair, alone)


@pytest.mark.slow
def test_a_replica_without_a_row_changes_nothing(train: Train) -> None:
    changes: dict[str, Any] = {"batch_size": 1, "rounds": 1, "recovery_rounds": 1}
    pair, alone = train("mirrored", devices=2, **changes), train("none", **changes)
    assert_same_training(pair, alone)


def test_several_workers_need_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(replicas.DistributionError, match="TF_CONFIG in the environment names no"):
        replicas.strategy_of("multi_worker")
    monkeypatch.setenv("TF_CONFIG", "{worker")
    with pytest.raises(replicas.DistributionError, match="TF_CONFIG in the environment is no JSON"):
        replicas.strategy_of("multi_worker")


def test_several_workers_need_a_process_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    tf.zeros([1])  # other work of TensorFlow
    cluster = {"worker": ["localhost:1", "localhost:2"]}
    task = {"type": "worker", "index": 0}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))
    with pytest.raises(replicas.DistributionError, match="in a process of its own"):
        replicas.strategy_of("multi_worker")


def test_without_distribution_nothing_is_shared() -> None:
    assert replicas.strategy_of("none").num_replicas_in_sync == 1
    assert replicas.is_chief()
    assert replicas.chiefs(np.array([0.1, 0.2])).tolist() == [0.1, 0.2]
    batch = {"user_ids": tf.constant([1])}
    assert replicas.rows_of_replica(batch) is batch
