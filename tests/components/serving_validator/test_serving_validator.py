from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tfx.types import standard_artifacts
from tfx.types.channel import Channel

from components.serving_validator import spec
from components.serving_validator.asking import weightings
from components.serving_validator.component import ServingValidator
from components.serving_validator.executor import Executor
from components.serving_validator.oracle import Oracle, tolerance
from components.serving_validator.process import (
    ServerFailedError,
    ServerProcess,
    running_server,
)
from components.serving_validator.sample import Timeline, sample_timelines
from components.serving_validator.validate import Report, _Examination, _Findings, validate
from schemas import names

N_ITEMS, TOP_K, BLOCKS = 30, 10, (2, 2)
OBJECTIVES = ["exposure", "click"]
ITEMS = [f"i{n:02d}".encode() for n in range(N_ITEMS)]
TIMELINES = [
    Timeline(b"u1", ((b"i03", 0), (b"i07", 1))),
    Timeline(b"u2", tuple((item, 0) for item in ITEMS[:25])),  # fewer than N items remain
]


def item_vectors(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(N_ITEMS, sum(BLOCKS))).astype(np.float32)


class TinyRecommender(tf.Module):
    """The contract's signatures over a fixed table; `fault` breaks one promise."""

    def __init__(self, fault: str | None, index_seed: int = 0) -> None:
        super().__init__()
        self._fault = fault
        self._vectors = tf.Variable(item_vectors(), trainable=False)
        self._index = tf.Variable(item_vectors(index_seed), trainable=False)
        table = tf.lookup.KeyValueTensorInitializer(
            tf.constant(ITEMS), tf.range(N_ITEMS, dtype=tf.int64)
        )
        self._rows = tf.lookup.StaticHashTable(table, -1)
        self._ids = tf.constant([*ITEMS, b""])

    def _blocks(self, user_id: tf.Tensor, history: tf.Tensor) -> tf.Tensor:
        users = tf.stack(
            [tf.strings.to_hash_bucket_fast(user_id, 7 + d) for d in range(sum(BLOCKS))], axis=1
        )
        rows = tf.broadcast_to(self._rows.lookup(history), [tf.size(user_id), tf.shape(history)[1]])
        pooled = tf.reduce_sum(tf.gather(self._vectors, tf.maximum(rows, 0), axis=0), axis=1)
        return tf.math.tanh(0.1 * tf.cast(users, tf.float32) + 0.1 * pooled)

    def recommend(self, request: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        history = request[names.HISTORY_ITEM_IDS]
        blocks = self._blocks(request[names.USER_ID], history)
        query = blocks * tf.repeat(request[names.OBJECTIVE_WEIGHTS], BLOCKS, axis=1)
        scores = tf.matmul(query, self._index, transpose_b=True)
        users = tf.size(request[names.USER_ID])
        if self._fault != "leak":
            seen = [
                tf.broadcast_to(self._rows.lookup(ids), [users, tf.shape(ids)[1]])
                for ids in (history, request[names.EXCLUDE_ITEM_IDS])
            ]
            hidden = tf.reduce_any(tf.one_hot(tf.concat(seen, axis=1), N_ITEMS) > 0, axis=1)
            scores = tf.where(hidden, -np.inf, scores)
        best, rows = tf.math.top_k(scores, TOP_K)
        found = best > -np.inf
        if self._fault == "short":
            found = found & (tf.range(TOP_K) < TOP_K - 2)
        if self._fault == "nan":
            best = tf.where(tf.range(TOP_K) == TOP_K - 1, np.nan, best)
            return {names.ITEM_IDS: tf.gather(self._ids, rows), names.SCORES: best}
        rows = tf.where(found, rows, N_ITEMS)
        return {
            names.ITEM_IDS: tf.gather(self._ids, rows),
            names.SCORES: tf.where(found, best, 0.0),
        }

    def embed_user(self, request: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        blocks = self._blocks(request[names.USER_ID], request[names.HISTORY_ITEM_IDS])
        return {names.BLOCKS: blocks, names.BLOCK_SIZES: tf.constant(BLOCKS, tf.int64)}


def save(folder: Path, flavour: str, fault: str | None, index_seed: int) -> None:
    def matrix(dtype: tf.DType, name: str) -> tf.TensorSpec:
        return tf.TensorSpec([None, None], dtype, name)

    user = {
        names.USER_ID: tf.TensorSpec([None], tf.string, names.USER_ID),
        names.HISTORY_ITEM_IDS: matrix(tf.string, names.HISTORY_ITEM_IDS),
        names.HISTORY_LEVELS: matrix(tf.int64, names.HISTORY_LEVELS),
    }
    request = user | {
        names.EXCLUDE_ITEM_IDS: matrix(tf.string, names.EXCLUDE_ITEM_IDS),
        names.OBJECTIVE_WEIGHTS: matrix(tf.float32, names.OBJECTIVE_WEIGHTS),
    }
    module = TinyRecommender(fault, index_seed)
    signatures = {
        names.SIGNATURE_RECOMMEND: (module.recommend, request),
        names.SIGNATURE_EMBED_USER: (module.embed_user, user),
    }
    tf.saved_model.save(
        module,
        str(folder),
        {
            key: tf.function(method, input_signature=[specs]).get_concrete_function()
            for key, (method, specs) in signatures.items()
        },
    )
    saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    defaults = {
        names.HISTORY_ITEM_IDS: np.zeros([1, 0], object),
        names.HISTORY_LEVELS: np.zeros([1, 0], np.int64),
        names.EXCLUDE_ITEM_IDS: np.zeros([1, 0], object),
        names.OBJECTIVE_WEIGHTS: np.ones([1, len(BLOCKS)], np.float32),
    }
    for key in signatures:
        signature = saved.meta_graphs[0].signature_def[key]
        for name, value in defaults.items():
            if name in signature.inputs:
                dtype = signature.inputs[name].dtype
                signature.defaults[name].CopyFrom(tf.make_tensor_proto(value, dtype=dtype))
    (folder / "saved_model.pb").write_bytes(saved.SerializeToString())
    files = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }
    manifest = {
        "model_id": "m1",
        "objectives": OBJECTIVES,
        "block_sizes": BLOCKS,
        "top_k": TOP_K,
        "n_items": N_ITEMS,
        "flavour": flavour,
        "files": files,
    }
    (folder / names.MANIFEST_FILE).parent.mkdir(exist_ok=True)
    (folder / names.MANIFEST_FILE).write_text(json.dumps(manifest))


def build(
    root: Path,
    scann_fault: str | None = None,
    stock_fault: str | None = None,
    scann_index_seed: int = 0,
) -> Path:
    save(root / "scann", "scann", scann_fault, scann_index_seed)
    save(root / "stock", "stock", stock_fault, 0)
    np.savez(root / "vectors.npz", item_ids=np.asarray(ITEMS), item_vectors=item_vectors())
    return root


def failed(report: Report) -> dict[str, str]:
    return {check.name: check.detail for check in report.checks if not check.passed}


def check_timeline_files(path: Path) -> None:
    options = tf.io.TFRecordOptions(compression_type="GZIP")
    with tf.io.TFRecordWriter(str(path), options) as writer:
        for n in range(20):
            example = tf.train.Example()
            feature = example.features.feature
            feature[names.USER_ID].bytes_list.value.append(b"u%d" % n)
            feature[names.ITEM_IDS].bytes_list.value.extend([b"i01", b"i02", b"i03"])
            feature[names.LEVELS].int64_list.value.extend([0, 1, 0])
            targets = [names.CONTEXT, names.CONTEXT, 0] if n % 2 else [0, 0, 1]
            feature[names.TARGET_LEVELS].int64_list.value.extend(targets)
            writer.write(example.SerializeToString())


def test_sample_is_seeded_and_takes_what_precedes_the_first_target(tmp_path: Path) -> None:
    path = tmp_path / "timelines.gz"
    check_timeline_files(path)
    drawn = sample_timelines([str(path)], 8, seed=1)
    assert drawn == sample_timelines([str(path)], 8, seed=1)
    assert drawn != sample_timelines([str(path)], 8, seed=2)
    assert len(drawn) == 8
    everything = {t.user_id: t.history for t in sample_timelines([str(path)], 99, seed=1)}
    assert len(everything) == 20
    assert everything[b"u1"] == ((b"i01", 0), (b"i02", 1))
    assert everything[b"u0"] == ((b"i01", 0), (b"i02", 1), (b"i03", 0))  # nothing precedes


def test_oracle_against_hand_computed_scores() -> None:
    oracle = Oracle([b"a", b"b", b"c"], np.asarray([[1, 0, 2], [0, 1, 1], [3, 3, 3]], np.float32))
    blocks = np.asarray([1, 2, 10], np.float32)
    scores = oracle.scores(blocks, [2, 1], (1.0, 0.5), excluded=[b"c", b"unknown"])
    np.testing.assert_allclose(scores, [11, 7, -np.inf])
    np.testing.assert_allclose(oracle.best(scores, 5), [11, 7])
    assert oracle.score_of(scores, b"a") == 11
    assert oracle.score_of(scores, b"nobody") == -np.inf
    assert tolerance(scores) == pytest.approx(11e-4)
    with pytest.raises(ValueError, match="item vectors have 3"):
        oracle.scores(blocks[:2], [2], (1.0,), [])


def test_weightings_hold_ones_each_alone_and_zeros() -> None:
    tried = weightings(3)
    for expected in ((1, 1, 1), (1, 0, 0), (0, 0, 1), (1, 2, 3), (0, 0, 0)):
        assert expected in tried


def test_component_declares_its_channels() -> None:
    made = ServingValidator(
        model=Channel(type=standard_artifacts.Model),
        examples=Channel(type=standard_artifacts.Examples),
        objectives=OBJECTIVES,
        seed=1,
    )
    assert made.outputs[spec.BLESSING_KEY].type is standard_artifacts.InfraBlessing
    assert json.loads(made.exec_properties[spec.OBJECTIVES_KEY]) == OBJECTIVES
    with pytest.raises(ValueError, match="at least 1"):
        ServingValidator(
            model=Channel(type=standard_artifacts.Model),
            examples=Channel(type=standard_artifacts.Examples),
            objectives=OBJECTIVES,
            seed=1,
            sample_size=0,
        )


@pytest.mark.parametrize(
    ("damage", "check"),
    [
        (lambda m: (m / "stock" / names.MANIFEST_FILE).write_text("{"), "manifest"),
        (lambda m: (m / "scann" / names.MANIFEST_FILE).unlink(), "manifest"),
        (lambda m: (m / "vectors.npz").write_bytes(b"PK no zip"), "exactness"),
        (lambda m: (m / "vectors.npz").unlink(), "exactness"),
    ],
)
def test_unusable_files_are_a_result_without_a_server(
    tmp_path: Path, damage: Callable[[Path], object], check: str
) -> None:
    for flavour in ("scann", "stock"):
        path = tmp_path / flavour / names.MANIFEST_FILE
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"model_id": "m", "objectives": OBJECTIVES, "top_k": 3}))
    np.savez(tmp_path / "vectors.npz", item_ids=np.asarray(ITEMS), item_vectors=item_vectors())
    damage(tmp_path)
    report = validate(tmp_path, TIMELINES, OBJECTIVES)
    assert not report.blessed
    assert "cannot be used" in failed(report)[check]
    assert "not reached" in failed(report)["server"]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("good"))


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "model"))


@pytest.mark.slow
def test_good_model_is_blessed_end_to_end(good: Path, tmp_path: Path) -> None:
    examples = standard_artifacts.Examples()
    examples.uri = str(tmp_path / "examples")
    examples.split_names = '["train", "eval"]'
    (tmp_path / "examples" / "Split-eval").mkdir(parents=True)
    check_timeline_files(tmp_path / "examples" / "Split-eval" / "timelines-00000.gz")
    model, blessing = standard_artifacts.Model(), standard_artifacts.InfraBlessing()
    model.uri, blessing.uri = str(good), str(tmp_path / "blessing")
    Executor().Do(
        {spec.MODEL_KEY: [model], spec.EXAMPLES_KEY: [examples]},
        {spec.BLESSING_KEY: [blessing]},
        {
            spec.OBJECTIVES_KEY: json.dumps(OBJECTIVES),
            spec.SAMPLE_SIZE_KEY: 4,
            spec.SEED_KEY: 3,
            spec.TIMEOUT_SECONDS_KEY: 120.0,
            spec.MINIMUM_RECALL_KEY: 0.95,
        },
    )
    report = json.loads((tmp_path / "blessing" / spec.REPORT_FILE).read_text())
    assert report["blessed"], report
    assert [check["name"] for check in report["checks"]] == list(spec.CHECKS)
    assert json.loads(blessing.get_string_custom_property("checks")) == report["checks"]
    assert report["ann_recall"] == 1.0
    assert "server_log_tail" not in report
    assert (tmp_path / "blessing" / "INFRA_BLESSED").exists()
    assert blessing.get_int_custom_property("blessed") == 1


@pytest.mark.slow
def test_nan_and_short_lists_are_named_with_the_flavour(tmp_path: Path) -> None:
    model = build(tmp_path, scann_fault="nan", stock_fault="short")
    report = validate(model, TIMELINES, OBJECTIVES, 120.0)
    assert not report.blessed
    faults = failed(report)
    assert faults["scores"].startswith("scann, ")
    assert "nan" in faults["scores"]
    assert "stock, user" in faults["full_lists"]
    assert "8 items in 10 places, expected 10 in 10" in faults["full_lists"]
    assert {"exactness", "scores", "full_lists"} <= set(faults)
    assert "server" not in faults


@pytest.mark.slow
def test_leaks_wrong_vectors_and_another_index_are_named(tmp_path: Path) -> None:
    """The scann flavour searches other vectors and does not exclude; the oracle has one wrong."""
    model = build(tmp_path, scann_fault="leak", scann_index_seed=9)
    vectors = item_vectors()
    vectors[11] += 3.0
    np.savez(model / "vectors.npz", item_ids=np.asarray(ITEMS), item_vectors=vectors)
    report = validate(model, TIMELINES, OBJECTIVES, 120.0)
    faults = failed(report)
    assert "came back" in faults["exclusions"]
    assert "stock, user" in faults["exactness"]
    assert "scann" not in faults["exactness"]
    assert "mean recall" in faults["ann_recall"]
    assert report.ann_recall is not None
    assert report.ann_recall < 0.95
    assert "server" not in faults


@pytest.mark.slow
def test_damaged_graph_ends_in_a_result_with_the_log(copy: Path) -> None:
    (copy / "stock" / "saved_model.pb").write_bytes(b"not a graph")
    report = validate(copy, TIMELINES, OBJECTIVES, 120.0)
    assert "exit code" in failed(report)["server"]
    assert "saved_model.pb" in (report.server_log_tail or "")


def test_server_that_dies_meanwhile_stops_the_questions() -> None:
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    process.wait(30)
    server = ServerProcess(process, "127.0.0.1:1")
    oracle = Oracle(ITEMS, item_vectors())
    examination = _Examination(
        server, oracle, TOP_K, OBJECTIVES, time.monotonic() + 30, _Findings()
    )
    with pytest.raises(ServerFailedError, match="exit code 3"):
        examination.run(TIMELINES)


def test_server_process_is_gone_after_an_error_in_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server waiting for a version that never comes must be stopped all the same."""
    started = []

    class Recorded(subprocess.Popen):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    (tmp_path / "empty").mkdir()
    log = tmp_path / "server.log"
    with (
        pytest.raises(ServerFailedError, match="not ready within"),
        running_server({"m": tmp_path / "empty"}, log, timeout_seconds=0.3),
    ):
        pass
    assert [process.poll() is not None for process in started] == [True]


@pytest.mark.slow
def test_no_time_ends_in_a_result_not_a_hang(copy: Path) -> None:
    report = validate(copy, TIMELINES, OBJECTIVES, 0.2)
    assert "not ready within" in failed(report)["server"]
    assert report.seconds < 20


def test_flavours_of_two_models_are_refused_before_serving(tmp_path: Path) -> None:
    for flavour in ("scann", "stock"):
        path = tmp_path / flavour / names.MANIFEST_FILE
        path.parent.mkdir(parents=True)
        manifest = {"model_id": flavour, "objectives": OBJECTIVES[::-1], "top_k": 3}
        path.write_text(json.dumps(manifest))
    report = validate(tmp_path, TIMELINES, OBJECTIVES)
    assert "model ids" in failed(report)["manifest"]
    assert "the pipeline ['exposure', 'click']" in failed(report)["manifest"]
