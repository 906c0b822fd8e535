from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_metadata.proto.v0 import anomalies_pb2
from tfx.types import artifact_utils, channel_utils, standard_artifacts

from components.retrieval_evaluator import executor, spec
from components.retrieval_evaluator.component import RetrievalEvaluator
from components.retrieval_evaluator.evaluation import Evaluation
from components.retrieval_evaluator.sampling import sample
from components.retrieval_evaluator.served import served_version
from components.retrieval_evaluator.settings import EvaluationSettings
from models.features import FeatureKinds
from models.queries import Query
from models.settings import IndexSettings
from schemas import names
from serving.config import ModelConfig, Specific
from serving.config_files import MODELS_FILE, ConfigFileError, to_text

OBJECTIVES = ["exposure", "click"]
COUNTS = [Counter({b"a": 5, b"b": 3, b"c": 1}), Counter({b"b": 2, b"c": 1})]


def make_query(user: bytes, history: tuple[bytes, ...], **targets: int) -> Query:
    return Query(
        user_id=user,
        history=history,
        history_levels=(0,) * len(history),
        targets=tuple(name.encode() for name in targets),
        target_levels=tuple(targets.values()),
        features={},
    )


QUERIES = [make_query(b"u1", (b"a",), b=0, c=1), make_query(b"u2", (), a=0)]


def evaluation(**settings: Any) -> Evaluation:
    return Evaluation(EvaluationSettings(**settings), OBJECTIVES, QUERIES, COUNTS)


# --- the served version ----------------------------------------------------------------------


def push(root: Path, *versions: str) -> None:
    for version in versions:
        (root / f"shop{names.STOCK_SUFFIX}" / version).mkdir(parents=True)


def test_the_highest_number_is_served(tmp_path: Path) -> None:
    push(tmp_path, "1", "9", "10")
    found = served_version(tmp_path, "shop")
    assert found == tmp_path / "shop_stock" / "10"


def test_nothing_pushed_yet(tmp_path: Path) -> None:
    assert served_version(tmp_path / "absent", "shop") is None
    (tmp_path / "shop_stock").mkdir()
    assert served_version(tmp_path, "shop") is None


def test_unfinished_and_foreign_directories_are_no_versions(tmp_path: Path) -> None:
    push(tmp_path, "2", ".tmp-3", "tmp", "4.bak", "-5")
    (tmp_path / "other_stock" / "7").mkdir(parents=True)
    (tmp_path / "shop" / "8").mkdir(parents=True)
    assert served_version(tmp_path, "shop") == tmp_path / "shop_stock" / "2"


def test_file_named_like_a_version_is_none(tmp_path: Path) -> None:
    push(tmp_path, "2")
    (tmp_path / "shop_stock" / "3").touch()
    assert served_version(tmp_path, "shop") == tmp_path / "shop_stock" / "2"


def pin(root: Path, *versions: int) -> None:
    models = {"shop": ModelConfig(str(root / "shop"), Specific(versions))}
    (root / MODELS_FILE).write_text(to_text(models))


def test_after_a_rollback_the_pinned_version_is_served(tmp_path: Path) -> None:
    push(tmp_path, "1", "2", "3")
    pin(tmp_path, 2)
    assert served_version(tmp_path, "shop") == tmp_path / "shop_stock" / "2"
    pin(tmp_path, 1, 2)  # two at a time, as TensorFlow Serving allows
    assert served_version(tmp_path, "shop") == tmp_path / "shop_stock" / "2"


def test_a_pin_of_another_model_or_on_nothing_leaves_the_newest(tmp_path: Path) -> None:
    push(tmp_path, "1", "2")
    pin(tmp_path, 7)  # not on disk
    assert served_version(tmp_path, "shop") == tmp_path / "shop_stock" / "2"
    models = {"other": ModelConfig(str(tmp_path / "other"), Specific((1,)))}
    (tmp_path / MODELS_FILE).write_text(to_text(models))
    assert served_version(tmp_path, "shop") == tmp_path / "shop_stock" / "2"
    (tmp_path / MODELS_FILE).write_text("model_config_list { what }")
    with pytest.raises(ConfigFileError, match=r"models\.config"):
        served_version(tmp_path, "shop")


# --- what is measured ---------------------------------------------------------------------------


OWN = {"exposure": [1.0, 0.2], "click": [1.0, 0.5]}


def test_a_model_is_measured_at_its_own_weights() -> None:
    assert evaluation().weights(OWN) == OWN


def test_configured_weights_replace_those_of_the_model() -> None:
    chosen = evaluation(weights={"click": (0.0, 3.0)}).weights(OWN)
    assert chosen == {"exposure": [1.0, 0.2], "click": [0.0, 3.0]}


@pytest.mark.parametrize(
    ("own", "measured"),
    [
        pytest.param(OWN | {"buy": [1.0, 0.5, 2.0]}, OWN, id="one more"),
        pytest.param({"exposure": [1.0]}, {"exposure": [1.0]}, id="one less"),
        pytest.param(dict(reversed(OWN.items())), OWN, id="another order"),
    ],
)
def test_a_model_of_other_objectives_keeps_its_weights(
    own: dict[str, list[float]], measured: dict[str, list[float]]
) -> None:
    assert evaluation(weights={"click": (0.0, 3.0)}).weights(own) == measured


def test_a_baseline_without_an_objective_is_no_measure_for_it() -> None:
    report = evaluation(minimum_lift=0.0).report(
        SERVED, ANN_RECALL, {"exposure": lists((b"b", b"c"), (b"a", b"c"))}, []
    )
    assert set(report["baseline"]) == set(report["baseline_slices"]) == {"exposure"}
    assert [check["name"] for check in report["checks"] if not check["passed"]] == [
        "exposure: recall@50 against the blessed model"
    ]


def lists(*rows: tuple[bytes, ...]) -> np.ndarray:
    return np.array(rows, dtype=object)


SERVED = {
    "exposure": lists((b"b", b"x"), (b"b", b"c")),
    "click": lists((b"c", b"x"), (b"x", b"y")),
}
ANN_RECALL = {"exposure": 1.0, "click": 0.96}


def test_report_by_hand() -> None:
    report = evaluation().report(SERVED, ANN_RECALL, None, [])
    # Exposure: one of two targets for u1, none of one for u2. Click: only u1 has a target.
    assert report["metrics"]["exposure"]["queries"] == 2.0
    assert report["metrics"]["exposure"]["recall@10"] == 0.25
    assert report["metrics"]["click"]["queries"] == 1.0
    assert report["metrics"]["click"]["recall@10"] == 1.0
    # Popularity: u1 has seen a, so b and c come, both right; u2 gets a, b, c.
    assert report["popularity"]["exposure"]["recall@10"] == 1.0
    assert report["popularity"]["click"]["recall@10"] == 1.0
    assert report["baseline"] is None
    assert report["baseline_slices"] is None
    # By training events a is the head, b the middle and c the tail; of those only b was found.
    sliced = {
        key: {name: values["recall@10"] for name, values in report[key]["exposure"].items()}
        for key in ("slices", "popularity_slices")
    }
    assert sliced["slices"]["item: head: top 10 % of items"] == 0.0
    assert sliced["slices"]["item: middle: next 40 %"] == 1.0
    assert sliced["slices"]["item: tail"] == 0.0
    assert sliced["popularity_slices"] == dict.fromkeys(sliced["slices"], 1.0) | {
        "user: 10 to 49 events": 0.0,  # there is none
        "user: 50 events or more": 0.0,
    }
    assert report["popularity_slices"]["click"].keys() == report["slices"]["click"].keys()
    assert report["ann_recall@100"] == 0.96
    assert report["queries"] == 2
    assert report["distinct_items_in_top_10"] == {"exposure": 3, "click": 3}
    # 0.25 < 1 x popularity.
    assert report["blessed"] is False
    assert [check["name"] for check in report["checks"] if not check["passed"]] == [
        "exposure: recall@50 against 1 x popularity"
    ]
    json.dumps(report)  # it is written as JSON


def test_blessed_if_and_only_if_all_checks_pass() -> None:
    easy = evaluation(minimum_lift=0.0)
    assert easy.report(SERVED, ANN_RECALL, SERVED, [])["blessed"] is True
    assert easy.report(SERVED, ANN_RECALL, SERVED, ["train: x: odd"])["blessed"] is False
    assert easy.report(SERVED, ANN_RECALL | {"click": 0.9}, SERVED, [])["blessed"] is False


def test_baseline_is_measured_on_the_same_queries() -> None:
    better = SERVED | {"exposure": lists((b"b", b"c"), (b"a", b"c"))}
    report = evaluation(minimum_lift=0.0).report(SERVED, ANN_RECALL, better, [])
    assert report["baseline"]["exposure"]["recall@50"] == 1.0
    assert report["baseline_slices"]["exposure"]["user: under 10 events"]["recall@50"] == 1.0
    assert report["slices"]["exposure"]["user: under 10 events"]["recall@50"] == 0.25
    assert [check["name"] for check in report["checks"] if not check["passed"]] == [
        "exposure: recall@50 against the blessed model"
    ]


def test_lowest_ann_recall_decides() -> None:
    report = evaluation(minimum_lift=0.0).report(SERVED, {"exposure": 0.94, "click": 1.0}, None, [])
    assert report["ann_recall@100"] == 0.94
    assert report["blessed"] is False


# --- reading ------------------------------------------------------------------------------------


def timeline(items: list[bytes], targets: list[int]) -> bytes:
    feature = {
        names.ITEM_IDS: tf.train.Feature(bytes_list=tf.train.BytesList(value=items)),
        names.TARGET_LEVELS: tf.train.Feature(int64_list=tf.train.Int64List(value=targets)),
    }
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def test_popularity_counts_targets_once_at_every_level_they_reach() -> None:
    records = [
        timeline([b"a", b"b", b"a"], [1, 0, names.CONTEXT]),
        timeline([b"a", b"b"], [names.CONTEXT, 2]),
    ]
    assert executor._train_counts(records, 3) == [
        Counter({b"a": 1, b"b": 2}),
        Counter({b"a": 1, b"b": 1}),
        Counter({b"b": 1}),
    ]


def test_sample_is_seeded_ordered_and_no_larger_than_asked() -> None:
    queries = [make_query(b"%03d" % n, ()) for n in range(100)]
    assert sample(queries, 100, 7) is queries
    chosen = sample(queries, 10, 7)
    assert len({query.user_id for query in chosen}) == 10
    assert chosen == sorted(chosen, key=lambda query: query.user_id)
    assert sample(queries, 10, 7) == chosen
    assert sample(queries, 10, 8) != chosen


def test_anomalies_are_told_by_split_and_feature(tmp_path: Path) -> None:
    artifact = standard_artifacts.ExampleAnomalies()
    artifact.uri = str(tmp_path)
    artifact.split_names = artifact_utils.encode_split_names(["train", "eval"])
    for split, described in (("train", {"user_age": "too old", "item_x": "odd"}), ("eval", {})):
        anomalies = anomalies_pb2.Anomalies()
        for feature, description in described.items():
            anomalies.anomaly_info[feature].description = description
        if split == "eval":
            anomalies.dataset_anomaly_info.description = "too few examples"
        path = Path(artifact_utils.get_split_uri([artifact], split)) / "SchemaDiff.pb"
        path.parent.mkdir(parents=True)
        path.write_bytes(anomalies.SerializeToString())
    assert executor._anomalies([artifact]) == [
        "train: item_x: odd",
        "train: user_age: too old",
        "eval: too few examples",
    ]


# --- writing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("blessed", [True, False])
def test_verdict_is_written_where_pusher_and_people_look(tmp_path: Path, blessed: bool) -> None:
    report = evaluation(minimum_lift=0.0 if blessed else 1.0).report(SERVED, ANN_RECALL, None, [])
    assert report["blessed"] is blessed
    blessing, measured = standard_artifacts.ModelBlessing(), standard_artifacts.ModelEvaluation()
    blessing.uri, measured.uri = str(tmp_path / "blessing"), str(tmp_path / "evaluation")
    executor._write(report, {spec.BLESSING_KEY: [blessing], spec.EVALUATION_KEY: [measured]})
    written = json.loads((tmp_path / "evaluation" / spec.REPORT_FILE).read_text())
    assert written["metrics"] == report["metrics"]
    assert [path.name for path in (tmp_path / "blessing").iterdir()] == [
        "BLESSED" if blessed else "NOT_BLESSED"
    ]
    assert blessing.get_int_custom_property("blessed") == int(blessed)
    failed = "" if blessed else "exposure: recall@50 against 1 x popularity"
    assert blessing.get_string_custom_property("failed") == failed
    assert measured.get_float_custom_property("click recall@50") == 1.0
    for key in ("metrics", "popularity", "checks"):
        assert json.loads(measured.get_string_custom_property(key)) == report[key]


def test_component_declares_what_it_reads_and_makes() -> None:
    def channel(artifact: Any) -> Any:
        return channel_utils.as_channel([artifact()])

    node = RetrievalEvaluator(
        model=channel(standard_artifacts.Model),
        examples=channel(standard_artifacts.Examples),
        anomalies=channel(standard_artifacts.ExampleAnomalies),
        catalogue_anomalies=channel(standard_artifacts.ExampleAnomalies),
        settings=EvaluationSettings(minimum_lift=1.5),
        objectives=OBJECTIVES,
        features=FeatureKinds(user={"age": "numeric"}, item={}),
        index=IndexSettings(reorder=77),
        seed=3,
        serving_dir="/somewhere",
        model_name="shop",
    )
    assert node.id == "RetrievalEvaluator"
    assert node.outputs[spec.EVALUATION_KEY].type is standard_artifacts.ModelEvaluation
    assert node.outputs[spec.BLESSING_KEY].type is standard_artifacts.ModelBlessing
    properties = node.exec_properties
    settings = EvaluationSettings.parse(json.loads(properties[spec.SETTINGS_KEY]))
    assert settings == EvaluationSettings(minimum_lift=1.5)
    assert json.loads(properties[spec.OBJECTIVES_KEY]) == OBJECTIVES
    assert FeatureKinds.parse(json.loads(properties[spec.FEATURES_KEY])).user == {"age": "numeric"}
    assert IndexSettings.parse(json.loads(properties[spec.INDEX_KEY])).reorder == 77
    assert properties[spec.SEED_KEY] == 3
    assert properties[spec.SERVING_DIR_KEY] == "/somewhere"
    assert properties[spec.MODEL_NAME_KEY] == "shop"
