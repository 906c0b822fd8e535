"""The component and its executor with real artifacts."""

from __future__ import annotations

import json
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to
from tfx.components.util import examples_utils, tfxio_utils
from tfx.types import standard_artifacts

from components.artifacts import DeadLetters, IngestionSummary
from components.interaction_gen import spec
from components.interaction_gen.component import InteractionGen
from components.interaction_gen.executor import Executor
from components.interaction_gen.files import fingerprint_inputs
from schemas.logs import DataError, DataSettings

OBJECTIVES = ["exposure", "click", "conversion"]


@pytest.fixture
def data(tmp_path: Path) -> DataSettings:
    path = tmp_path / "log.csv"
    rows = "".join(f"u{n % 7},i{n},{3 + n % 3},{1_600_000_000 + n}\n" for n in range(60))
    path.write_text("user,item,rating,time\n" + rows)
    return DataSettings.parse(
        {
            "interactions": [
                {
                    "path": str(path),
                    "columns": {"user_id": "user", "item_id": "item", "timestamp": "time"},
                    "levels": {
                        "click": {"column": "rating", "at_least": 4},
                        "conversion": {"column": "rating", "at_least": 5},
                    },
                }
            ],
            "split": {"kind": "time", "eval_from": "2020-09-13T12:27:20Z"},
            "shards": 2,
        }
    )


def execute(node: InteractionGen, root: Path) -> dict[str, list]:
    outputs = {}
    for key, kind in (
        (spec.EXAMPLES_KEY, standard_artifacts.Examples),
        (spec.DEAD_LETTERS_KEY, DeadLetters),
        (spec.SUMMARY_KEY, IngestionSummary),
    ):
        artifact = kind()
        artifact.uri = str(root / key / "1")
        outputs[key] = [artifact]
    arguments = ["--direct_running_mode=in_memory", "--direct_num_workers=1"]
    executor = Executor(Executor.Context(beam_pipeline_args=arguments))
    executor.Do({}, outputs, dict(node.exec_properties))
    return outputs


def test_the_node_carries_what_the_cache_must_compare(data: DataSettings) -> None:
    node = InteractionGen(data, OBJECTIVES, 7, fingerprint_inputs(data))
    assert set(node.exec_properties) == {"data", "objectives", "seed", "fingerprint"}
    assert DataSettings.parse(json.loads(node.exec_properties["data"])) == data
    assert {key: channel.type_name for key, channel in node.outputs.items()} == {
        "examples": "Examples",
        "dead_letters": "DeadLetters",
        "summary": "IngestionSummary",
    }
    Path(data.interactions[0].path).write_text("changed")
    again = InteractionGen(data, OBJECTIVES, 7, fingerprint_inputs(data))
    assert again.exec_properties["fingerprint"] != node.exec_properties["fingerprint"]


@pytest.mark.slow
def test_the_executor_writes_artifacts_that_tfx_reads(data: DataSettings, tmp_path: Path) -> None:
    node = InteractionGen(data, OBJECTIVES, 7, fingerprint_inputs(data))
    outputs = execute(node, tmp_path / "InteractionGen")
    (examples,) = outputs["examples"]
    assert examples.splits == ["train", "eval", "catalogue"]
    assert examples_utils.get_payload_format_string(examples) == "FORMAT_TF_EXAMPLE"
    (summary,) = outputs["summary"]
    report = json.loads((Path(summary.uri) / "summary.json").read_text())
    assert report["tables"]["interactions"]["read"] == 60
    assert report["files"][0]["sha256"] == fingerprint_inputs(data)[data.interactions[0].path]
    assert (Path(outputs["dead_letters"][0].uri) / "dead_letters.jsonl").read_text() == ""
    # Lineage reads ML Metadata alone.
    noted = {
        key: json.loads(summary.get_string_custom_property(key))
        for key in ("tables", "files", "users", "items", "split", "events")
    }
    assert noted["tables"] == {
        "interactions": {"read": 60, "used": 60, "dead_letters": 0, "dropped": {}}
    }
    assert noted["files"] == [
        {
            "path": data.interactions[0].path,
            "table": "interactions",
            "rows": 60,
            "sha256": fingerprint_inputs(data)[data.interactions[0].path],
        }
    ]
    assert noted["users"]["total"] == 7
    assert noted["items"]["total"] == 40, "those of the 20 events after the cut are no candidates"
    assert noted["split"]["cut"] == "2020-09-13T12:27:20Z"
    # Events 0 to 39 before the cut, the level of event n is n % 3.
    assert noted["events"]["train"] == {"exposure": 14, "click": 13, "conversion": 13}
    assert noted["events"]["eval"] == {"exposure": 6, "click": 7, "conversion": 7}
    # As StatisticsGen and Transform open it.
    factory = tfxio_utils.get_tfxio_factory_from_artifact([examples], ["test"])
    for split, rows in report["examples"].items():
        source = factory(f"{examples.uri}/Split-{split}/*").BeamSource()
        with beam.Pipeline() as pipeline:
            counted = pipeline | source | beam.Map(lambda batch: batch.num_rows)
            assert_that(counted | beam.CombineGlobally(sum), equal_to([rows]))


@pytest.mark.slow
def test_refused_data_leave_evidence_where_tfx_does_not_delete_it(
    data: DataSettings, tmp_path: Path
) -> None:
    path = Path(data.interactions[0].path)
    path.write_text(path.read_text() + "u1,i1,4,soon\n" * 10)
    node = InteractionGen(data, OBJECTIVES, 7, {})
    with pytest.raises(DataError) as error:
        execute(node, tmp_path / "InteractionGen")
    kept = tmp_path / "InteractionGen" / "failed" / "1"
    assert str(kept) in str(error.value)
    assert len((kept / "dead_letters.jsonl").read_text().splitlines()) == 10
    assert json.loads((kept / "summary.json").read_text())["tables"]["interactions"]["read"] == 70
