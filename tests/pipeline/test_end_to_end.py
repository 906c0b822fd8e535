"""The main job as a user does it: `csmf run`, again, changed, refused, served, asked, traced.

One chain of commands on SYNTHETIC logs, each step once, in a workdir that the tests share. A second
chain runs beside it in a thread, because a run leaves one of two cores idle much of the time.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from ml_metadata import MetadataStore
from ml_metadata.proto import metadata_store_pb2

pytestmark = pytest.mark.slow

OBJECTIVES = ["exposure", "click", "conversion"]
DATA_NODES = {
    "InteractionGen",
    "StatisticsGen",
    "ImportSchemaGen.timelines",
    "ImportSchemaGen.catalogue",
    "ExampleValidator.timelines",
    "ExampleValidator.catalogue",
    "Transform",
}
GATES_AND_PUSH = {"RetrievalEvaluator", "ServingValidator", "Pusher"}
TRAINERS = {f"CascadedTrainer.{name}" for name in OBJECTIVES}
ALL_NODES = DATA_NODES | TRAINERS | {"IndexBuilder"} | GATES_AND_PUSH

KNOWN_USER = "u001"


# --- what is read from a workdir ----------------------------------------------------------------


def versions(workdir: Path, model: str = "recommender") -> list[str]:
    return sorted(path.name for path in (workdir / "serving" / model).glob("*"))


def artifacts(workdir: Path, node: str, output: str) -> list[Path]:
    """Directories of a node's outputs, oldest first."""
    made = (workdir / "artifacts" / node / output).iterdir()
    return sorted(made, key=lambda path: int(path.name))


def states_of_latest_run(workdir: Path) -> dict[str, str]:
    """Node -> state of its execution in the newest run, straight from ML Metadata."""
    connection = metadata_store_pb2.ConnectionConfig()
    connection.sqlite.filename_uri = str(workdir / "metadata.sqlite")
    connection.sqlite.connection_mode = metadata_store_pb2.SqliteMetadataSourceConfig.READONLY
    store = MetadataStore(connection)
    newest = max(store.get_contexts_by_type("pipeline_run"), key=lambda context: context.id)
    states = {}
    for execution in store.get_executions_by_context(newest.id):
        (node,) = (
            context.name.partition(".")[2]
            for context in store.get_contexts_by_execution(execution.id)
            if context.type == "node"
        )
        states[node] = metadata_store_pb2.Execution.State.Name(execution.last_known_state)
    return states


def owned_by_exposure(stage: Path) -> dict[str, np.ndarray]:
    """Every weight that enters a neuron which the first objective owns."""
    with np.load(stage / "weights.npz") as arrays:
        owners = {
            name.removeprefix("owners/"): arrays[name] for name in arrays if "owners/" in name
        }
        weights = {
            name.removeprefix("weights/"): arrays[name] for name in arrays if "weights/" in name
        }
    owned = {}
    for name, weight in weights.items():
        if name in ("rates", "strengths"):  # a column, a row for each objective
            owned[name] = weight[:, 0] if name == "rates" else weight[0]
            continue
        # Tables are owned by column under their own name; the heads share the output's owners.
        layer = name if name in owners else name.split("/")[0]
        columns = owners.get(layer, owners["output"]) == 0
        owned[name] = weight[..., columns]
    return owned


# --- the two chains -----------------------------------------------------------------------------


@dataclass
class Lane:
    """Commands that run one after the other beside the tests."""

    executor: ThreadPoolExecutor
    csmf: Any
    running: list[Any]

    def submit(self, *arguments: Any) -> Future[Any]:
        def command() -> Any:
            started = self.csmf.start(*arguments)
            self.running.append(started)
            return started.wait()

        return self.executor.submit(command)


@pytest.fixture(scope="module")
def lane(csmf: Any, running: list[Any]) -> Iterator[Lane]:
    executor = ThreadPoolExecutor(max_workers=1)
    yield Lane(executor, csmf, running)
    executor.shutdown(wait=False, cancel_futures=True)


@pytest.fixture(scope="module")
def config(shop: Any, write_config: Any) -> Path:
    return write_config("shop", shop.config())


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work") / "made by the run"


@dataclass(frozen=True)
class Other:
    """The commands of the second chain."""

    workdir: Path
    to_transform: Future[Any]
    resumed: Future[Any]
    anomaly_workdir: Path
    anomaly: Future[Any]
    refusals: Future[Any]


@pytest.fixture(scope="module")
def other(
    lane: Lane,
    config: Path,
    shop: Any,
    write_config: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Other:
    root = tmp_path_factory.mktemp("other")
    again, anomalous = root / "again", root / "anomalous"
    run = ("run", "--config")
    return Other(
        again,
        lane.submit(*run, config, "--workdir", again, "--to-node", "Transform"),
        lane.submit(*run, config, "--workdir", again),
        anomalous,
        lane.submit(*run, write_config("anomaly", anomalous_config(shop)), "--workdir", anomalous),
        lane.executor.submit(run_refused, shop, write_config, root),
    )


@dataclass(frozen=True)
class Step:
    """A run that has ended, and its summary.json as it then was."""

    command: Any
    summary: dict[str, Any]
    states: dict[str, str]
    pushed: list[str]


@pytest.fixture(scope="module")
def step(csmf: Any, workdir: Path, read_summary: Any, other: Other) -> Callable[..., Step]:
    # `other` is asked for here, so that the second chain starts with the first.
    def run(config: Path, *options: str, code: int = 0) -> Step:
        command = csmf.run(config, workdir, *options)
        assert command.code == code, str(command)
        return Step(
            command, read_summary(workdir), states_of_latest_run(workdir), versions(workdir)
        )

    return run


@pytest.fixture(scope="module")
def first(step: Callable[..., Step], config: Path) -> Step:
    return step(config)


@pytest.fixture(scope="module")
def second(step: Callable[..., Step], config: Path, first: Step) -> Step:
    return step(config)


@dataclass
class Server:
    """`csmf serve` on the workdir."""

    command: Any
    port: int

    def stubs(self, channel: grpc.Channel) -> tuple[Any, Any]:
        from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

        return (
            prediction_service_pb2_grpc.PredictionServiceStub(channel),
            model_service_pb2_grpc.ModelServiceStub(channel),
        )

    def predict(
        self,
        user: str,
        weights: list[float] | None,
        model: str = "recommender",
        signature: str = "",
        **inputs: Any,
    ) -> tuple[dict[str, np.ndarray], int]:
        """One Predict with the plain stubs; returns the outputs and the version."""
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest()
        request.model_spec.name = model
        request.model_spec.signature_name = signature
        request.inputs["user_id"].CopyFrom(tf.make_tensor_proto([user]))
        if weights is not None:
            weights_proto = tf.make_tensor_proto([weights], tf.float32)
            request.inputs["objective_weights"].CopyFrom(weights_proto)
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            answer = self.stubs(channel)[0].Predict(request, timeout=20)
        outputs = {name: tf.make_ndarray(proto) for name, proto in answer.outputs.items()}
        return outputs, answer.model_spec.version.value

    def recommend(
        self, user: str, weights: list[float] | None, model: str = "recommender"
    ) -> list[str]:
        outputs, _ = self.predict(user, weights, model)
        return [item.decode() for item in outputs["item_ids"][0]]


@pytest.fixture(scope="module")
def server(csmf: Any, workdir: Path, second: Step, running: list[Any]) -> Server:
    """Started while version 1 is the only one."""
    command = csmf.start("serve", "--workdir", workdir, "--port", "0", "--poll-seconds", "0.2")
    running.append(command)
    deadline = time.monotonic() + 120
    while "Serving" not in command.out.read_text():
        assert command.process.poll() is None, str(command.wait())
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.1)
    return Server(command, int(command.out.read_text().rpartition(":")[2]))


@dataclass
class Calls:
    """A client that asks again and again."""

    versions: list[int]
    failures: list[str]


@pytest.fixture(scope="module")
def changed(
    step: Callable[..., Step], shop: Any, write_config: Any, server: Server
) -> Iterator[tuple[Step, Calls]]:
    """The click stage trained otherwise and pushed, while a client calls the server."""
    content = shop.config()
    content["objectives"][1]["learning_rate"] = 0.012
    calls, stop = Calls([], []), threading.Event()

    def call() -> None:
        while not stop.wait(0.05):
            for model in ("recommender", "recommender_stock"):
                try:
                    outputs, version = server.predict(KNOWN_USER, [1.0, 1.0, 1.0], model)
                except grpc.RpcError as error:
                    calls.failures.append(str(error))
                    continue
                if b"" in outputs["item_ids"][0]:
                    calls.failures.append(f"version {version}: a list with gaps")
                if model == "recommender":
                    calls.versions.append(version)

    client = threading.Thread(target=call, daemon=True)
    client.start()
    try:
        done = step(write_config("click-changed", content))
        deadline = time.monotonic() + 60
        while 2 not in calls.versions[-1:] and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        stop.set()
        client.join()
    return done, calls


@pytest.fixture(scope="module")
def refused(
    step: Callable[..., Step], shop: Any, write_config: Any, changed: tuple[Step, Calls]
) -> Step:
    """A floor that nothing reaches, and only the nodes from the index on."""
    content = shop.config()
    content["objectives"][1]["learning_rate"] = 0.012
    content["evaluation"]["floors"] = {"conversion": {"ndcg@50": 0.9999}}
    return step(write_config("refused", content), "--from-node", "IndexBuilder", code=3)


# --- the first run ------------------------------------------------------------------------------


def test_first_run_is_blessed_and_pushed_in_both_flavours(first: Step, workdir: Path) -> None:
    assert first.summary["blessed"] is True
    assert first.summary["pushed_version"] == 1
    assert first.pushed == ["1"]
    for model, flavour in (("recommender", "scann"), ("recommender_stock", "stock")):
        assert versions(workdir, model)[:1] == ["1"]
        version = workdir / "serving" / model / "1"
        assert (version / "saved_model.pb").is_file()
        manifest = json.loads((version / "assets.extra" / "manifest.json").read_text())
        assert manifest["flavour"] == flavour
        assert manifest["objectives"] == OBJECTIVES
        assert sum(manifest["block_sizes"]) == 32


def test_first_run_executes_every_node_and_says_so(first: Step) -> None:
    assert set(first.summary["executed"]) == ALL_NODES
    assert first.summary["cached"] == []
    assert first.states == dict.fromkeys(ALL_NODES, "COMPLETE")
    for node in ALL_NODES:
        assert node in first.command.stdout
    assert first.command.stdout.count("done in") == len(ALL_NODES)
    assert "Blessed and pushed as version 1" in first.command.stdout


def test_libraries_stay_quiet(first: Step) -> None:
    assert first.command.stderr == ""
    assert "WARNING" not in first.command.stdout


def test_summary_has_what_machines_read(first: Step, shop: Any) -> None:
    summary = first.summary
    metrics = {"queries", "recall@10", "recall@50", "recall@100", "ndcg@50"}
    assert list(summary["metrics"]) == OBJECTIVES
    assert all(set(values) == metrics for values in summary["metrics"].values())
    assert 0.95 <= summary["ann_recall@100"] <= 1.0
    assert set(summary["seconds"]) == ALL_NODES
    assert all(seconds >= 0 for seconds in summary["seconds"].values())
    assert sum(summary["seconds"].values()) < summary["seconds_total"] < 900
    assert summary["seed"] == shop.config()["seed"]
    assert len(summary["config_sha256"]) == 64
    assert summary["failed_checks"] == []
    assert summary["anomalies"] == []


def test_rows_reconcile_with_what_the_log_holds(first: Step, shop: Any) -> None:
    rows = first.summary["rows"]
    assert rows["used"] == len(shop.events)
    assert rows["dropped"] == {"duplicate": 7, "ignored_event": 9}
    assert {kind: found["count"] for kind, found in rows["dead_letter_kinds"].items()} == {
        "no_item_id": 1,
        "bad_timestamp": 1,
        "unknown_event": 1,
        "column_count": 1,
        "undecodable": 1,
    }
    assert rows["dead_letters"] == 5
    lines = (shop.directory / "log.csv").read_bytes().splitlines()
    assert rows["read"] == len(lines) - 1
    assert rows["read"] == rows["used"] + rows["dead_letters"] + sum(rows["dropped"].values())


def test_dead_letters_name_the_line_they_stand_on(first: Step, workdir: Path, shop: Any) -> None:
    lines = (shop.directory / "log.csv").read_bytes().splitlines()
    path = artifacts(workdir, "InteractionGen", "dead_letters")[0] / "dead_letters.jsonl"
    letters = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(letters) == 5
    for letter in letters:
        assert letter["file"] == str(shop.directory / "log.csv")
        assert letter["reason"]
        start = lines[letter["line"] - 1].split(b"\xff")[0]
        assert letter["raw"].encode().startswith(start)


def test_model_beats_popularity_on_every_objective(first: Step) -> None:
    for objective in OBJECTIVES:
        measured = first.summary["metrics"][objective]
        popular = first.summary["popularity"][objective]
        assert measured["recall@50"] >= 1.3 * popular["recall@50"]
        assert measured["recall@10"] >= 1.5 * popular["recall@10"]
        assert measured["queries"] == popular["queries"] > 0


# --- the cache ----------------------------------------------------------------------------------


def test_same_command_again_executes_nothing(second: Step, first: Step) -> None:
    assert second.summary["executed"] == []
    assert set(second.summary["cached"]) == ALL_NODES
    assert second.states == dict.fromkeys(ALL_NODES, "CACHED")
    assert second.pushed == ["1"]
    same = ("blessed", "pushed_version", "metrics", "rows", "seed", "config_sha256")
    assert {key: second.summary[key] for key in same} == {key: first.summary[key] for key in same}
    assert "0 nodes executed, 14 taken from the cache" in second.command.stdout


def test_changed_click_stage_reuses_data_and_exposure_stage(changed: tuple[Step, Calls]) -> None:
    done, _ = changed
    kept = DATA_NODES | {"CascadedTrainer.exposure"}
    assert set(done.summary["cached"]) == kept
    assert set(done.summary["executed"]) == ALL_NODES - kept
    assert {node for node, state in done.states.items() if state == "CACHED"} == kept
    assert done.summary["pushed_version"] == 2
    assert done.pushed == ["1", "2"]


def test_exposure_weights_are_the_same_bits_under_another_click_stage(
    changed: tuple[Step, Calls], workdir: Path
) -> None:
    assert len(artifacts(workdir, "CascadedTrainer.exposure", "stage")) == 1
    stages = artifacts(workdir, "CascadedTrainer.conversion", "stage")
    assert len(stages) == 2
    before, after = (owned_by_exposure(stage) for stage in stages)
    assert before.keys() == after.keys()
    assert sum(weight.size for weight in before.values()) > 0
    for name, weight in before.items():
        assert weight.tobytes() == after[name].tobytes(), name
    whole = [dict(np.load(stage / "weights.npz")) for stage in stages]
    assert any(not np.array_equal(whole[0][name], whole[1][name]) for name in whole[0])


def test_exposure_is_ranked_alike_under_another_click_stage(
    changed: tuple[Step, Calls], first: Step
) -> None:
    assert changed[0].summary["metrics"]["exposure"] == first.summary["metrics"]["exposure"]
    assert changed[0].summary["metrics"]["click"] != first.summary["metrics"]["click"]


def test_item_vectors_keep_their_exposure_block_to_the_bit(
    changed: tuple[Step, Calls], workdir: Path
) -> None:
    models = artifacts(workdir, "IndexBuilder", "model")
    loaded = [dict(np.load(model / "vectors.npz")) for model in models]
    manifests = [json.loads((model / "manifest.json").read_text()) for model in models]
    assert len(models) == 2
    assert manifests[0]["model_id"] != manifests[1]["model_id"]
    assert manifests[0]["vocabulary_sha256"] == manifests[1]["vocabulary_sha256"]
    np.testing.assert_array_equal(loaded[0]["item_ids"], loaded[1]["item_ids"])
    width = manifests[0]["block_sizes"][0]
    blocks = [np.ascontiguousarray(vectors["item_vectors"][:, :width]) for vectors in loaded]
    assert blocks[0].tobytes() == blocks[1].tobytes()
    assert not np.array_equal(loaded[0]["item_vectors"], loaded[1]["item_vectors"])


def test_what_was_learnt_of_every_item_has_length_one_in_every_block(
    first: Step, workdir: Path
) -> None:
    model = artifacts(workdir, "IndexBuilder", "model")[0]
    sizes = json.loads((model / "manifest.json").read_text())["block_sizes"]
    with np.load(model / "vectors.npz") as arrays:
        vectors, item_ids = arrays["item_vectors"], arrays["item_ids"]
    assert vectors.shape == (200, 32)
    assert len(set(item_ids)) == 200
    for block in np.split(vectors, np.cumsum(sizes)[:-1], axis=1):
        *learnt, rates = block.T
        np.testing.assert_allclose(np.linalg.norm(learnt, axis=0), 1.0, atol=1e-5)
        assert len(set(rates.tolist())) > 1


def test_stages_say_what_they_trained_and_own(first: Step, workdir: Path) -> None:
    model = artifacts(workdir, "IndexBuilder", "model")[0]
    sizes = json.loads((model / "manifest.json").read_text())["block_sizes"]
    positives: list[int] = []
    for index, objective in enumerate(OBJECTIVES):
        stage = artifacts(workdir, f"CascadedTrainer.{objective}", "stage")[0]
        report = json.loads((stage / "stage.json").read_text())
        assert (report["stage"], report["objective"]) == (index, objective)
        assert report["settings"]["learning_rate"] == 0.01
        assert [phase["name"] for phase in report["phases"]] == (
            ["train", "recover", "refit"] if index < 2 else ["train", "refit"]
        )
        positives.append(report["phases"][0]["positives"])
        fitted = report["phases"][0]["fitted"]
        # A later stage trains no longer than a round of the first takes.
        rounds = 3 if index == 0 else min(3, math.ceil(positives[0] / positives[index]))
        assert len(fitted["losses"]) == len(fitted["recalls"]) == rounds
        assert fitted["losses"][-1] < fitted["losses"][0]
        assert fitted["recalls"][fitted["kept_round"] - 1] == max(fitted["recalls"])
        assert report["owned"]["output"] + 1 == sizes[index]  # and a rate
        assert report["owned"]["output"] >= 4
        assert report["strengths"][0] > 0


def test_request_weights_are_chosen_once_and_used_by_the_evaluation(
    first: Step, workdir: Path
) -> None:
    reports = [
        json.loads(
            (artifacts(workdir, f"CascadedTrainer.{name}", "stage")[0] / "stage.json").read_text()
        )
        for name in OBJECTIVES
    ]
    model = artifacts(workdir, "IndexBuilder", "model")[0]
    served = json.loads((workdir / "serving/recommender/1/assets.extra/manifest.json").read_text())
    evaluation = artifacts(workdir, "RetrievalEvaluator", "evaluation")[0] / "evaluation.json"
    chosen = reports[-1]["weights"]
    assert [report["weights"] for report in reports[:-1]] == [{}, {}]
    assert list(chosen) == OBJECTIVES
    assert all(len(weights) == 3 and weights[0] == 1.0 for weights in chosen.values())
    assert json.loads((model / "manifest.json").read_text())["weights"] == chosen
    assert served["weights"] == chosen
    # Those of exposure are configured.
    measured = chosen | {"exposure": [1.0, 0.0, 0.0]}
    assert json.loads(evaluation.read_text())["weights"] == measured


def test_candidate_is_compared_with_the_version_pushed_before(
    changed: tuple[Step, Calls], first: Step, workdir: Path
) -> None:
    reports = [
        json.loads((path / "evaluation.json").read_text())
        for path in artifacts(workdir, "RetrievalEvaluator", "evaluation")
    ]
    assert [report["baseline_version"] for report in reports[:2]] == [None, 1]
    assert reports[0]["baseline"] is None
    for objective in OBJECTIVES:
        assert reports[1]["baseline"][objective]["recall@50"] == pytest.approx(
            first.summary["metrics"][objective]["recall@50"], abs=0.01
        )
    names = {check["name"] for check in reports[1]["checks"]}
    assert {f"{name}: recall@50 against the blessed model" for name in OBJECTIVES} < names


# --- the gate -----------------------------------------------------------------------------------


def test_model_below_a_floor_is_not_pushed(refused: Step) -> None:
    assert refused.summary["blessed"] is False
    assert refused.summary["pushed_version"] is None
    assert refused.pushed == ["1", "2"]
    (failed,) = refused.summary["failed_checks"]
    assert failed["name"] == "conversion: ndcg@50"
    assert failed["value"] < failed["threshold"] == 0.9999
    assert "Failed checks" in refused.command.stdout
    assert "conversion: ndcg@50" in refused.command.stdout
    assert "0.9999" in refused.command.stdout
    assert "Not blessed" in refused.command.stdout
    assert "Traceback" not in refused.command.text


def test_partial_run_starts_at_the_node_asked_for(refused: Step) -> None:
    # The index is the one of the run before; the changed floor concerns the evaluator only.
    assert set(refused.summary["executed"]) == {"RetrievalEvaluator", "Pusher"}
    assert set(refused.states) == ALL_NODES
    assert "ServingValidator" in refused.summary["cached"]


def test_run_up_to_a_node_stops_there(other: Other) -> None:
    done = other.to_transform.result()
    assert done.code == 0, str(done)
    assert "Transform" in done.stdout
    assert "CascadedTrainer" not in done.stdout
    assert "pushed" not in done.stdout
    assert "Traceback" not in done.text


def test_run_in_two_halves_gives_the_same_numbers_as_one(
    other: Other, first: Step, read_summary: Any
) -> None:
    done = other.resumed.result()
    assert done.code == 0, str(done)
    summary = read_summary(other.workdir)
    assert summary["pushed_version"] == 1
    assert set(summary["cached"]) == {"InteractionGen", "ImportSchemaGen.timelines", "Transform"}
    # Another workdir, another process: the same seed gives the same numbers to the last digit.
    for key in ("metrics", "popularity", "rows", "config_sha256", "ann_recall@100"):
        assert summary[key] == first.summary[key]


# --- lineage and the terminal client ------------------------------------------------------------


def test_lineage_leads_from_the_version_back_to_the_log(
    csmf: Any, workdir: Path, shop: Any, refused: Step
) -> None:
    done = csmf("lineage", "--workdir", workdir, "--version", "1")
    assert done.code == 0, str(done)
    for told in (
        "version 1",
        str(shop.directory / "log.csv"),
        str(shop.directory / "items.csv"),
        *TRAINERS,
        "recall@50",
        "request weights of exposure: 1, ",
    ):
        assert told in done.stdout

    def learning_rate_of_click(version: str) -> float:
        asked = csmf("lineage", "--workdir", workdir, "--version", version, "--format", "json")
        stages = {stage["objective"]: stage for stage in json.loads(asked.stdout)["stages"]}
        return float(stages["click"]["settings"]["learning_rate"])

    assert learning_rate_of_click("1") != 0.012
    assert learning_rate_of_click("2") == 0.012

    missing = csmf("lineage", "--workdir", workdir, "--version", "3")
    assert missing.code == 1
    assert "1, 2" in missing.stderr


@pytest.fixture(scope="module")
def recommended(csmf: Any, workdir: Path, server: Server, refused: Step) -> Any:
    return csmf(
        *("recommend", "--workdir", workdir, "--user", KNOWN_USER, "-n", "8"),
        *("--weights", "exposure=1", "--weights", "exposure=0,click=1,conversion=2"),
        *("--exclude", "i002"),
    )


def titles_in(table: str, column: int) -> list[str]:
    """Cells of a printed table without the scores behind them."""
    rows = [line.split("│") for line in table.splitlines() if line.startswith("│")]
    return [row[column + 1].strip().rpartition("  ")[0].strip() for row in rows]


def test_recommend_prints_unseen_titles_side_by_side(recommended: Any, shop: Any) -> None:
    assert recommended.code == 0, str(recommended)
    assert f"user {KNOWN_USER}" in recommended.stdout
    assert "version 2" in recommended.stdout
    unseen = {shop.title_of(f"i{n:03d}") for n in range(200) if n != 2} - {
        shop.title_of(item) for item in shop.seen_by(KNOWN_USER)
    }
    columns = [titles_in(recommended.stdout, column) for column in (1, 2)]
    for titles in columns:
        assert len(titles) == len(set(titles)) == 8
        assert set(titles) <= unseen
    assert columns[0] != columns[1]


def test_recommend_answers_like_the_server(recommended: Any, server: Server, shop: Any) -> None:
    items = [i for i in server.recommend(KNOWN_USER, [0.0, 1.0, 2.0]) if i != "i002"]
    assert titles_in(recommended.stdout, 2) == [shop.title_of(item) for item in items[:8]]
    assert recommended.seconds < 60


# --- the server ---------------------------------------------------------------------------------


def test_new_version_is_picked_up_without_a_failed_call(changed: tuple[Step, Calls]) -> None:
    _, calls = changed
    assert calls.failures == []
    assert len(calls.versions) > 20
    assert set(calls.versions) == {1, 2}
    assert calls.versions == sorted(calls.versions)


@pytest.mark.parametrize("model", ["recommender", "recommender_stock"])
def test_plain_stubs_get_full_lists_of_unseen_items(
    server: Server, changed: tuple[Step, Calls], shop: Any, model: str
) -> None:
    for weights in ([1.0, 0.0, 0.0], [0.0, 1.0, 2.0], None):
        outputs, version = server.predict(KNOWN_USER, weights, model)
        items = [item.decode() for item in outputs["item_ids"][0]]
        scores = outputs["scores"][0]
        assert version == 2
        assert len(items) == len(set(items)) == 100
        assert not set(items) & (shop.seen_by(KNOWN_USER) | {""})
        assert np.isfinite(scores).all()
        assert (np.diff(scores) <= 0).all()


def test_fused_score_is_the_weighted_sum_of_the_objectives(
    server: Server, changed: tuple[Step, Calls]
) -> None:
    weights = [0.5, 1.0, 2.0]
    answer, _ = server.predict(KNOWN_USER, weights)
    scored, _ = server.predict(
        KNOWN_USER, weights, signature="score_items", item_ids=answer["item_ids"]
    )
    np.testing.assert_allclose(scored["objective_scores"] @ weights, answer["scores"], atol=1e-5)


def test_both_models_give_the_same_list(server: Server, changed: tuple[Step, Calls]) -> None:
    scann, _ = server.predict(KNOWN_USER, [1.0, 1.0, 1.0])
    stock, _ = server.predict(KNOWN_USER, [1.0, 1.0, 1.0], "recommender_stock")
    np.testing.assert_allclose(scann["scores"], stock["scores"], atol=1e-5)
    assert set(scann["item_ids"][0]) == set(stock["item_ids"][0])


def test_unknown_user_gets_an_answer(server: Server, changed: tuple[Step, Calls]) -> None:
    items = server.recommend("nobody we know", [1.0, 1.0, 1.0])
    assert len(set(items) - {""}) == 100


def test_metadata_and_status_of_both_models(server: Server, changed: tuple[Step, Calls]) -> None:
    from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        predictions, models = server.stubs(channel)
        for model in ("recommender", "recommender_stock"):
            asked = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
            asked.model_spec.name = model
            answer = predictions.GetModelMetadata(asked, timeout=20)
            signatures = get_model_metadata_pb2.SignatureDefMap()
            assert answer.metadata["signature_def"].Unpack(signatures)
            recommend = signatures.signature_def["serving_default"]
            assert {"user_id", "objective_weights", "exclude_item_ids"} < set(recommend.inputs)
            assert {"user_age", "user_gender"} < set(recommend.inputs)
            assert set(recommend.outputs) == {"item_ids", "scores"}
            assert {"embed_user", "score_items", "item_titles"} < set(signatures.signature_def)

            status = get_model_status_pb2.GetModelStatusRequest()
            status.model_spec.name = model
            states = models.GetModelStatus(status, timeout=20).model_version_status
            available = get_model_status_pb2.ModelVersionStatus.AVAILABLE
            assert [state.version for state in states if state.state == available] == [2]


def test_server_stops_on_ctrl_c_and_recommend_then_starts_its_own(
    csmf: Any, server: Server, workdir: Path, recommended: Any
) -> None:
    stopped = server.command.interrupt()
    assert stopped.code == 0, str(stopped)
    assert "Traceback" not in stopped.text
    assert not (workdir / "server.address").exists()

    done = csmf("recommend", "--workdir", workdir, "--user", "a stranger", "-n", "3")
    assert done.code == 0, str(done)
    assert len(titles_in(done.stdout, 1)) == 3


# --- data that cannot be used -------------------------------------------------------------------


def anomalous_config(shop: Any) -> dict[str, Any]:
    """One objective, and users of whom some have a gender that the configuration forbids."""
    content = shop.config(objectives=[{"name": "exposure", "rounds": 2, "batch_size": 128}])
    del content["evaluation"]["weights"]  # they are for three objectives
    content["name"] = "anomalous-shop"
    events = content["data"]["interactions"][0]["event"]
    events["values"] = dict.fromkeys(events["values"], "exposure")
    content["data"]["users"]["features"][1]["values"] = ["F"]
    return content


def test_anomalous_data_are_not_blessed(other: Other, read_summary: Any) -> None:
    done = other.anomaly.result()
    assert done.code == 3, str(done)
    summary = read_summary(other.anomaly_workdir)
    assert summary["blessed"] is False
    assert summary["pushed_version"] is None
    assert not (other.anomaly_workdir / "serving" / "recommender").exists()
    assert {check["name"] for check in summary["failed_checks"]} >= {"data: anomalies"}
    assert any("user_gender" in line for line in summary["anomalies"])
    assert "user_gender" in done.stdout
    assert "M" in next(line for line in done.stdout.splitlines() if "user_gender" in line)
    assert "Traceback" not in done.text


def test_single_objective_goes_through_the_whole_pipeline(other: Other, read_summary: Any) -> None:
    other.anomaly.result()
    summary = read_summary(other.anomaly_workdir)
    assert set(summary["executed"]) == ALL_NODES - {
        "CascadedTrainer.click",
        "CascadedTrainer.conversion",
    }
    assert list(summary["metrics"]) == ["exposure"]


# Several commands in one process, because each alone would spend half a minute on importing TFX.
_ONE_PROCESS = """
import io, json, sys, traceback
from contextlib import redirect_stderr, redirect_stdout
from pipeline.cli import main

for arguments in json.loads(sys.argv[1]):
    out, err, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code
        except Exception:
            code = traceback.print_exc() or 1
    sys.__stdout__.write(json.dumps([code, out.getvalue(), err.getvalue()]) + "\\n")
"""


def refused_runs(shop: Any, write_config: Any, root: Path) -> dict[str, list[str]]:
    """Name -> arguments of a run that must end with exit code 1."""
    lines = (shop.directory / "log.csv").read_bytes().splitlines(keepends=True)
    logs = {
        "empty": b"",
        "header-only": lines[0],
        "no-conversion": b"".join(line for line in lines if b"purchase" not in line),
        "unknown-column": b"person" + b"".join(lines).removeprefix(b"who"),
    }
    runs = {}
    for name, content in logs.items():
        path = root / f"{name}.csv"
        path.write_bytes(content)
        settings = shop.config()
        settings["data"]["interactions"][0]["path"] = str(path)
        config = write_config(name, settings)
        runs[name] = ["run", "--config", str(config), "--workdir", str(root / name)]
    good = write_config("good", shop.config())
    runs["unknown-node"] = ["run", "--config", str(good), "--workdir", str(root / "unknown-node")]
    runs["unknown-node"] += ["--to-node", "Transfrom"]
    runs["nothing-before"] = ["run", "--config", str(good), "--workdir", str(root / "fresh")]
    runs["nothing-before"] += ["--from-node", "IndexBuilder"]
    missing = shop.config()
    missing["data"]["users"]["path"] = str(root / "nowhere.csv")
    config = write_config("missing-file", missing)
    runs["missing-file"] = ["run", "--config", str(config), "--workdir", str(root / "missing")]
    return runs


def run_refused(shop: Any, write_config: Any, root: Path) -> dict[str, tuple[int, str, str, Path]]:
    runs = refused_runs(shop, write_config, root)
    done = subprocess.run(
        [sys.executable, "-c", _ONE_PROCESS, json.dumps(list(runs.values()))],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(answers) == len(runs), done.stdout + done.stderr
    return {
        name: (answer[0], answer[1], answer[2], Path(arguments[4]))
        for (name, arguments), answer in zip(runs.items(), answers, strict=True)
    }


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("empty", ["empty.csv", "empty"]),
        ("header-only", ["header-only.csv", "empty", "no row"]),
        ("no-conversion", ["conversion", "data.interactions", "objectives"]),
        ("unknown-column", ["'who'", "person", "unknown-column.csv"]),
        ("unknown-node", ["'Transfrom'", "Did you mean 'Transform'?", "InteractionGen"]),
        ("nothing-before", ["--from-node", "IndexBuilder"]),
        ("missing-file", ["nowhere.csv", "data.users.path"]),
    ],
)
def test_unusable_input_ends_with_a_teaching_message(
    other: Other, name: str, told: list[str]
) -> None:
    code, out, err, workdir = other.refusals.result()[name]
    assert code == 1, out + err
    assert "Traceback" not in out + err
    assert "Error: " in err, out + err
    message = err[err.index("Error: ") :]
    for words in told:
        assert words in message
    assert not (workdir / "serving").exists()
    assert not (workdir / "summary.json").exists()
