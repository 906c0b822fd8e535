"""Our StatisticsGen and Transform beside TFX's own, on examples that InteractionGen wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_metadata.proto.v0 import statistics_pb2
from tfx.types import standard_artifacts

from components.transform import executor as transform_executor

SPLITS = ("train", "eval", "catalogue")
OBJECTIVES = ["exposure", "click"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Settings over a SYNTHETIC log with features of all kinds, some of them missing."""
    from schemas.logs import DataSettings

    directory = tmp_path_factory.mktemp("log")
    rng = np.random.default_rng(4)
    items = (rng.pareto(0.4, 20_000) * 5).astype(int) % 3000
    lines = [
        f"u{rng.integers(600)},i{item},{rng.integers(2)},{1_700_000_000 + rng.integers(10**6)}"
        for item in items
    ]
    (directory / "log.csv").write_text("user,item,click,time\n" + "\n".join(lines) + "\n")
    table = [f"i{n},Title {n % 50},{'|'.join(f'g{n % k}' for k in range(1, n % 4 + 1))},{n / 7}"
             for n in range(2000)]  # fmt: skip
    (directory / "items.csv").write_text("id,title,genres,price\n" + "\n".join(table) + "\n")
    table = [f"u{n},{'' if n % 5 == 0 else 18 + n % 60}" for n in range(0, 600, 2)]
    (directory / "users.csv").write_text("id,age\n" + "\n".join(table) + "\n")
    return DataSettings.parse(
        {
            "interactions": [
                {
                    "path": str(directory / "log.csv"),
                    "columns": {"user_id": "user", "item_id": "item", "timestamp": "time"},
                    "levels": {"click": {"column": "click"}},
                }
            ],
            "catalogue": {
                "path": str(directory / "items.csv"),
                "columns": {"item_id": "id", "title": "title"},
                "features": [
                    {"name": "genres", "column": "genres", "kind": "categorical", "separator": "|"},
                    {"name": "price", "column": "price", "kind": "numeric"},
                ],
            },
            "users": {
                "path": str(directory / "users.csv"),
                "columns": {"user_id": "id"},
                "features": [{"name": "age", "column": "age", "kind": "numeric"}],
            },
            "split": {"kind": "time", "eval_share": 0.2},
        }
    )


def artifact(kind: type, directory: Path) -> Any:
    made = kind()
    made.uri = str(directory)
    return made


@pytest.fixture(scope="module")
def examples(data: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from components.artifacts import DeadLetters, IngestionSummary
    from components.interaction_gen import spec
    from components.interaction_gen.executor import Executor

    directory = tmp_path_factory.mktemp("examples")
    outputs = {
        spec.EXAMPLES_KEY: [artifact(standard_artifacts.Examples, directory / "examples")],
        spec.DEAD_LETTERS_KEY: [artifact(DeadLetters, directory / "dead")],
        spec.SUMMARY_KEY: [artifact(IngestionSummary, directory / "summary")],
    }
    properties = {
        spec.DATA_KEY: data.model_dump_json(),
        spec.OBJECTIVES_KEY: json.dumps(OBJECTIVES),
        spec.SEED_KEY: 1,
        spec.FINGERPRINT_KEY: "{}",
    }
    Executor().Do({}, outputs, properties)
    return outputs[spec.EXAMPLES_KEY][0]


def describe(executor: Any, examples: Any, directory: Path) -> dict[str, Any]:
    """{split: {feature: statistics}}; "" is the number of examples."""
    statistics = artifact(standard_artifacts.ExampleStatistics, directory)
    executor().Do({"examples": [examples]}, {"statistics": [statistics]}, {})
    assert statistics.split_names == examples.split_names
    found = {}
    for split in SPLITS:
        content = (directory / f"Split-{split}" / "FeatureStats.pb").read_bytes()
        (dataset,) = statistics_pb2.DatasetFeatureStatisticsList.FromString(content).datasets
        found[split] = {".".join(feature.path.step): feature for feature in dataset.features}
        found[split][""] = dataset.num_examples
    return found


@pytest.mark.slow
def test_statistics_are_those_of_tfx(examples: Any, tmp_path: Path) -> None:
    from tfx.components.statistics_gen.executor import Executor as Theirs

    from components.statistics_gen.executor import Executor as Ours

    ours = describe(Ours, examples, tmp_path / "ours")
    theirs = describe(Theirs, examples, tmp_path / "theirs")
    for split in SPLITS:
        assert ours[split].keys() == theirs[split].keys()
        for name, expected in theirs[split].items():
            found = ours[split][name]
            if name == "" or expected.WhichOneof("stats") == "string_stats":
                # To the last byte, and exactly: twenty values by name, 1,000 by rank.
                assert found == expected
                continue
            # What is added up in floats may differ in the last digit, quantiles of more values
            # than a sketch holds by its hundredth.
            one, two = found.num_stats, expected.num_stats
            assert found.type == expected.type
            assert one.common_stats == two.common_stats
            assert (one.min, one.max, one.num_zeros) == (two.min, two.max, two.num_zeros)
            assert [one.mean, one.std_dev] == pytest.approx([two.mean, two.std_dev])
            assert abs(one.median - two.median) <= 0.02 * (two.max - two.min)
            assert [h.type for h in one.histograms] == [h.type for h in two.histograms]
    assert ours["train"]["item_ids"].string_stats.unique > 1024  # more than TFDV's sketch counts
    assert len(ours["train"]["item_ids"].string_stats.rank_histogram.buckets) == 1000


def preprocessing_with_tft(inputs: dict[str, Any], custom_config: dict[str, Any]) -> dict[str, Any]:
    """`models.preprocessing` as it would be with the vocabularies of TensorFlow Transform."""
    import tensorflow_transform as tft

    from models import preprocessing

    def vocabulary(tokens: tf.Tensor, name: str) -> Any:
        return tft.vocabulary(tokens, vocab_filename=name)

    def compute_and_apply(values: tf.SparseTensor, name: str) -> Any:
        return tft.compute_and_apply_vocabulary(values, vocab_filename=name, num_oov_buckets=1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preprocessing, "vocabulary", vocabulary)
        patch.setattr(preprocessing, "compute_and_apply", compute_and_apply)
        return preprocessing.preprocessing_fn(inputs, custom_config)


def transform(
    executor: Any, function: str, examples: Any, data: Any, directory: Path
) -> tuple[dict[str, bytes], dict[str, list[bytes]], Any]:
    """(vocabularies, sorted records by split, feature spec)."""
    import tensorflow_transform as tft
    from tfx.proto import transform_pb2
    from tfx.utils import json_utils, proto_utils

    from models.features import FeatureKinds
    from schemas.tfmd import TIMELINES, build_schemas, write_schemas

    schema_file = write_schemas(build_schemas(data, len(OBJECTIVES)), directory / "schemas")
    schema = artifact(standard_artifacts.Schema, directory / "schema")
    (directory / "schema").mkdir()
    (directory / "schema" / "schema.pbtxt").write_text(schema_file[TIMELINES].read_text())
    graph = artifact(standard_artifacts.TransformGraph, directory / "graph")
    made = artifact(standard_artifacts.Examples, directory / "transformed")
    splits = transform_pb2.SplitsConfig(analyze=["train", "catalogue"], transform=list(SPLITS))
    executor().Do(
        {"examples": [examples], "schema": [schema]},
        {"transform_graph": [graph], "transformed_examples": [made]},
        {
            "preprocessing_fn": function,
            "splits_config": proto_utils.proto_to_json(splits),
            "custom_config": json_utils.dumps({"features": FeatureKinds.of(data).by_key()}),
            "disable_statistics": 1,
        },
    )
    assert made.split_names == json.dumps(list(SPLITS))
    output = tft.TFTransformOutput(graph.uri)
    assets = (Path(output.transform_savedmodel_dir) / "assets").iterdir()
    records = {
        split: sorted(
            record
            for file in (directory / "transformed" / f"Split-{split}").iterdir()
            for record in tf.data.TFRecordDataset(str(file), "GZIP").as_numpy_iterator()
        )
        for split in SPLITS
    }
    assert not (Path(graph.uri) / ".temp_path").exists()
    return (
        {asset.name: asset.read_bytes() for asset in assets},
        records,
        output.transformed_feature_spec(),
    )


@pytest.mark.slow
def test_transform_makes_what_tfx_makes(examples: Any, data: Any, tmp_path: Path) -> None:
    from tfx.components.transform.executor import Executor as Theirs

    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    ours = transform(
        transform_executor.Executor,
        "models.preprocessing.preprocessing_fn",
        examples,
        data,
        tmp_path / "ours",
    )
    theirs = transform(
        Theirs, f"{__name__}.preprocessing_with_tft", examples, data, tmp_path / "theirs"
    )
    assert ours[0] == theirs[0]
    assert ours[0].keys() == {"items", "users", "item_genres"}
    assert parsed(ours[1]) == parsed(theirs[1])
    assert {split: len(records) for split, records in ours[1].items()} == {
        split: len(records) for split, records in theirs[1].items()
    }
    assert len(ours[1]["train"]) > 500
    assert ours[2] == theirs[2]


def parsed(records: dict[str, list[bytes]]) -> dict[str, list[str]]:
    """The order of the features in a record is not part of what it says."""
    return {
        split: sorted(
            repr(sorted(tf.train.Example.FromString(record).features.feature.items()))
            for record in found
        )
        for split, found in records.items()
    }


def test_a_failure_leaves_tfx_as_it_was() -> None:
    from tfx.components.transform import executor

    own = executor.TransformProcessor
    with pytest.raises(KeyError):
        transform_executor.Executor().Do({}, {}, {})
    assert executor.TransformProcessor is own
