from __future__ import annotations

from pathlib import Path

import pytest
import tensorflow as tf
import tensorflow_data_validation as tfdv
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2
from tensorflow_metadata.proto.v0.anomalies_pb2 import AnomalyInfo

from schemas import names, tfmd
from schemas.logs import DataSettings

DATA = DataSettings.parse(
    {
        "interactions": [{"path": "log", "level": "exposure"}],
        "split": {"kind": "leave_out"},
        "catalogue": {
            "path": "items",
            "features": [
                {"name": "genres", "column": "g", "kind": "categorical", "separator": "|"},
                {"name": "year", "column": "y", "kind": "numeric", "min": 1900, "max": 2000},
            ],
        },
        "users": {
            "path": "users",
            "features": [
                {"name": "gender", "column": "g", "kind": "categorical", "values": ["F", "M"]},
                {"name": "age", "column": "a", "kind": "numeric"},
            ],
        },
    }
)
SCHEMAS = tfmd.build_schemas(DATA, n_objectives=3)


def example(**features: list[object]) -> bytes:
    built = tf.train.Example()
    for name, values in features.items():
        feature = built.features.feature[name]
        if isinstance(values[0], str):
            feature.bytes_list.value.extend(str(value).encode() for value in values)
        elif isinstance(values[0], float):
            feature.float_list.value.extend(values)
        else:
            feature.int64_list.value.extend(values)
    return built.SerializeToString()


def timeline(**change: list[object]) -> bytes:
    good: dict[str, list[object]] = {
        names.USER_ID: ["u"],
        names.ITEM_IDS: ["a", "b"],
        names.LEVELS: [0, 2],
        names.TIMESTAMPS: [1, 2],
        names.TARGET_LEVELS: [-1, 2],
        names.user_feature("gender"): ["F"],
        names.user_feature("age"): [30.0],
    }
    return example(**good | change)


def item(**change: list[object]) -> bytes:
    good: dict[str, list[object]] = {
        names.ITEM_ID: ["a"],
        names.ITEM_TITLE: ["A"],
        names.item_feature("genres"): ["x", "y"],
        names.item_feature("year"): [1999.0],
    }
    return example(**good | change)


def anomalies(tmp_path: Path, schema: str, *examples: bytes) -> dict[str, set[int]]:
    path = str(tmp_path / "data.gz")
    with tf.io.TFRecordWriter(path, "GZIP") as writer:
        for serialised in examples:
            writer.write(serialised)
    statistics = tfdv.generate_statistics_from_tfrecord(path)
    found = tfdv.validate_statistics(statistics, SCHEMAS[schema]).anomaly_info
    return {name: {reason.type for reason in info.reason} for name, info in found.items()}


def test_the_core_uses_the_shared_names() -> None:
    assert [feature.name for feature in tfmd.core_schema("timelines").feature] == [
        names.USER_ID,
        names.ITEM_IDS,
        names.LEVELS,
        names.TIMESTAMPS,
        names.TARGET_LEVELS,
    ]
    assert [feature.name for feature in tfmd.core_schema("catalogue").feature] == [
        names.ITEM_ID,
        names.ITEM_TITLE,
    ]


def test_timelines_declare_the_catalogue_without_asking_for_it() -> None:
    by_name = {feature.name: feature for feature in SCHEMAS["timelines"].feature}
    assert set(by_name) == {
        *(feature.name for feature in tfmd.core_schema("timelines").feature),
        *("user_gender", "user_age", "item_id", "item_title", "item_genres", "item_year"),
    }
    assert not any(
        by_name[name].HasField("presence")
        for name in by_name
        if name[:5] == "item_" and name != "item_ids"
    )
    assert by_name["levels"].int_domain.max == 2
    assert by_name["target_levels"].int_domain.min == -1
    assert not any(feature.HasField("shape") for feature in by_name.values())
    catalogue = {feature.name: feature for feature in SCHEMAS["catalogue"].feature}
    assert set(catalogue) == {"item_id", "item_title", "item_genres", "item_year"}
    assert catalogue["item_title"].presence.min_fraction == 1.0


@pytest.mark.slow
def test_good_data_have_no_anomaly(tmp_path: Path) -> None:
    without_features = example(
        user_id=["v"], item_ids=["a"], levels=[1], timestamps=[5], target_levels=[1]
    )
    assert anomalies(tmp_path, "timelines", timeline(), without_features) == {}
    assert anomalies(tmp_path, "catalogue", item(), example(item_id=["b"], item_title=["B"])) == {}


@pytest.mark.slow
def test_bad_data_have_the_right_anomaly(tmp_path: Path) -> None:
    # ENUM_TYPE_UNEXPECTED_STRING_VALUES and OUT_OF_RANGE, as TFDV calls them.
    assert anomalies(
        tmp_path,
        "timelines",
        timeline(user_gender=["X"], levels=[0, 7], target_levels=[-2, 2]),
    ) == {
        "user_gender": {AnomalyInfo.ENUM_TYPE_UNEXPECTED_STRING_VALUES},
        "levels": {AnomalyInfo.INT_TYPE_BIG_INT},
        "target_levels": {AnomalyInfo.INT_TYPE_SMALL_INT},
    }
    assert set(anomalies(tmp_path, "catalogue", item(item_year=[1.0]), example(item_id=["b"]))) == {
        "item_year",
        "item_title",
    }
    assert set(anomalies(tmp_path, "timelines", timeline(surprise=["x"]))) == {"surprise"}


def test_files_carry_the_hash_of_their_content(tmp_path: Path) -> None:
    paths = tfmd.write_schemas(SCHEMAS, tmp_path / "new")
    assert set(paths) == {"timelines", "catalogue"}
    for name, path in paths.items():
        assert text_format.Parse(path.read_text(), schema_pb2.Schema()) == SCHEMAS[name]
    assert tfmd.write_schemas(SCHEMAS, tmp_path / "new") == paths
    other = tfmd.write_schemas(tfmd.build_schemas(DATA, n_objectives=2), tmp_path / "new")
    assert other["timelines"] != paths["timelines"]
    assert other["catalogue"] == paths["catalogue"]
    assert len(list((tmp_path / "new").iterdir())) == 3
