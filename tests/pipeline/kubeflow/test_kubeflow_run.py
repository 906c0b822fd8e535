"""The compiled pipeline, run from its YAML as Kubeflow would run it; see `launcher`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import PipelineConfig
from pipeline.kubeflow.compiler import compile_pipeline
from schemas.names import MANIFEST_FILE, VECTORS_FILE
from tests.pipeline.kubeflow.conftest import IMAGE, ROOT
from tests.pipeline.kubeflow.launcher import Done, Launcher, TaskFailedError

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Runs:
    """The same configuration, run in containers and on this machine."""

    launcher: Launcher
    containers: dict[str, Done]
    models: Path  # where the containers push to
    local: Path  # workdir

    def made_locally(self, node: str, key: str) -> Path:
        """An output of the local run."""
        (found,) = (self.local / "artifacts" / node / key).iterdir()
        return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, shop: Any, csmf: Any, write_config: Any) -> Runs:
    root = tmp_path_factory.mktemp("kubeflow")
    models = root / "models"
    raw = shop.config()
    raw["serving"]["directory"] = str(models / "shop")
    raw["kubeflow"] = {
        "volumes": [
            {"claim": "shop-data", "path": str(shop.directory)},
            {"claim": "shop-models", "path": str(models)},
        ]
    }
    # The containers know nothing of what tests/conftest.py sets: neither may this run.
    here = type(csmf)(csmf.directory, {"TF_ENABLE_ONEDNN_OPTS": "1"})
    local = here.start(
        "run",
        "--config",
        write_config("local", shop.config()),
        "--workdir",
        root / "local",
        "--to-node",
        "RetrievalEvaluator",
    )
    launcher = Launcher(
        compile_pipeline(PipelineConfig.parse(raw), IMAGE, ROOT),
        root / "bucket",
        root / "containers",
    )
    try:
        containers = launcher.run()
    finally:
        finished = local.wait()
    assert finished.code == 0, finished
    return Runs(launcher, containers, models, root / "local")


def evaluation(directory: Path) -> dict[str, Any]:
    """The report without times, which no two runs share."""
    report: dict[str, Any] = json.loads((directory / "evaluation.json").read_text())
    for point in report["index_curve"]:
        del point["ms_per_query"]
    return report


def test_every_task_ends_well(runs: Runs) -> None:
    assert runs.containers.keys() == runs.launcher.spec.root.dag.tasks.keys()
    assert runs.containers["retrieval-evaluator"].metadata("blessing")["blessed"] == 1
    assert runs.containers["serving-validator"].metadata("blessing")["blessed"] == 1


def test_the_model_is_pushed_in_both_flavours(runs: Runs) -> None:
    pushed = runs.containers["pusher"].metadata("pushed_model")
    assert (pushed["pushed"], pushed["pushed_version"]) == (1, 1)
    assert pushed["pushed_destination"] == str(runs.models / "shop" / "recommender" / "1")
    for name in ("recommender", "recommender_stock"):
        directory = runs.models / "shop" / name / "1"
        assert (directory / "saved_model.pb").exists()
        manifest = json.loads((directory / MANIFEST_FILE).read_text())
        assert manifest["model_id"] == pushed["model_id"]


def test_the_evaluation_is_that_of_the_local_run(runs: Runs) -> None:
    there = evaluation(runs.containers["retrieval-evaluator"].path("evaluation"))
    here = evaluation(runs.made_locally("RetrievalEvaluator", "evaluation"))
    assert there["metrics"] == here["metrics"]
    assert there == here
    # What a later node or a person reads from ML Metadata.
    noted = runs.containers["retrieval-evaluator"].metadata("evaluation")
    assert json.loads(noted["metrics"]) == there["metrics"]


def test_the_vectors_are_those_of_the_local_run(runs: Runs) -> None:
    there = np.load(runs.containers["index-builder"].path("model") / VECTORS_FILE)
    here = np.load(runs.made_locally("IndexBuilder", "model") / VECTORS_FILE)
    assert set(there.files) == set(here.files)
    for name in there.files:
        np.testing.assert_array_equal(there[name], here[name], err_msg=name)


def test_stages_were_handed_on(runs: Runs) -> None:
    stages = [
        runs.containers[f"cascaded-trainer-{name}"].metadata("stage")
        for name in ("exposure", "click", "conversion")
    ]
    assert [stage["stage"] for stage in stages] == [0, 1, 2]
    assert [stage["objective"] for stage in stages] == ["exposure", "click", "conversion"]
    assert stages[1]["upstream_sha256"] != stages[2]["upstream_sha256"]


def test_rows_reconcile(runs: Runs) -> None:
    tables = json.loads(runs.containers["interaction-gen"].metadata("summary")["tables"])
    counts = tables["interactions"]
    lost = counts["dead_letters"] + sum(counts["dropped"].values())
    assert counts["read"] == counts["used"] + lost
    here = json.loads(
        (runs.made_locally("InteractionGen", "summary") / "summary.json").read_text()
    )["tables"]["interactions"]
    assert counts["read"] == here["read"]


def test_a_new_file_changes_what_the_cache_compares(runs: Runs, shop: Any) -> None:
    log = shop.directory / "log.csv"
    before = log.read_bytes()
    tasks = runs.launcher.spec.root.dag.tasks
    key = "fingerprint"
    try:
        log.write_bytes(before + b"u001,i001,view,1700000300\n")
        again = runs.launcher.run_task("input-fingerprint", tasks["input-fingerprint"])
        assert again.parameters[key] != runs.containers["input-fingerprint"].parameters[key]
    finally:
        log.write_bytes(before)


def test_what_fails_in_a_container_fails_here(runs: Runs) -> None:
    name = "schema-writer-timelines"
    label = runs.launcher.spec.components[name].executor_label
    arguments = runs.launcher.deployment.executors[label].container.args
    whole = [*arguments]
    try:
        arguments[whole.index("components.schema_writer.executor.Executor")] = "schema.Writer"
        with pytest.raises(TaskFailedError, match=r"(?s)exit code 1.*Could not import"):
            runs.launcher.run_task(name, runs.launcher.spec.root.dag.tasks[name])
    finally:
        arguments[:] = whole
