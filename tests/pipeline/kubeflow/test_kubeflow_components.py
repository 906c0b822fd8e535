"""What our components do for containers: local paths, fingerprints, schemas, importable types."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx.dsl.placeholder.placeholder import Placeholder
from tfx.types import standard_artifacts
from tfx.utils import io_utils

import components
from components.artifacts import CascadeStage, DeadLetters, IngestionSummary
from components.input_fingerprint.component import InputFingerprint
from components.input_fingerprint.digest import digest
from components.input_fingerprint.executor import Executor as FingerprintExecutor
from components.interaction_gen.component import InteractionGen
from components.interaction_gen.executor import Executor as InteractionGenExecutor
from components.interaction_gen.files import fingerprint_inputs
from components.paths import local_path
from components.schema_writer.component import SchemaWriter
from components.schema_writer.executor import Executor as SchemaExecutor
from schemas.logs import DataError, DataSettings
from schemas.tfmd import build_schemas


@pytest.fixture
def data(tmp_path: Path) -> DataSettings:
    (tmp_path / "log-1.csv").write_text("user,item,time\na,x,1700000000\n")
    return DataSettings.parse(
        {
            "interactions": [
                {
                    "path": str(tmp_path / "log-*.csv"),
                    "columns": {"user_id": "user", "item_id": "item", "timestamp": "time"},
                    "level": "view",
                }
            ]
        }
    )


def output(kind: Any, path: Path) -> Any:
    path.parent.mkdir(parents=True, exist_ok=True)  # as the launcher does
    artifact = kind()
    artifact.uri = str(path)
    return artifact


# --- paths ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("/runs/model/1", "/runs/model/1"),
        ("runs/model", "runs/model"),
        ("file:///runs/model", "/runs/model"),
        ("gs://bucket/root/model", "/gcs/bucket/root/model"),
        ("s3://bucket/model", "/s3/bucket/model"),
        ("minio://bucket/model", "/minio/bucket/model"),
    ],
)
def test_local_paths_are_those_of_the_launcher(uri: str, path: str) -> None:
    assert str(local_path(uri)) == path


def test_what_no_orchestrator_mirrors_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'hdfs://name/model'.*gs://"):
        local_path("hdfs://name/model")


# --- fingerprint ----------------------------------------------------------------------------


def test_digest_is_short_and_that_of_the_content() -> None:
    # printf '{"a": "1", "b": "2"}' | sha256sum
    expected = "sha256:0e09eeab5bdeab40e2af08a4432d53de29fc2ba94dfa38fae0871d749681cf68"
    assert digest({"a": "1", "b": "2"}) == digest({"b": "2", "a": "1"}) == expected


def fingerprint_of(data: DataSettings, path: Path) -> str:
    node = InputFingerprint(data)
    artifact = output(standard_artifacts.String, path)
    FingerprintExecutor().Do({}, {"fingerprint": [artifact]}, dict(node.exec_properties))
    again = output(standard_artifacts.String, path)
    return str(again.read())


def test_the_fingerprint_follows_the_files(data: DataSettings, tmp_path: Path) -> None:
    first = fingerprint_of(data, tmp_path / "out" / "1")
    assert first == digest(fingerprint_inputs(data))
    assert first == fingerprint_of(data, tmp_path / "out" / "2")
    (tmp_path / "log-2.csv").write_text("user,item,time\nb,y,1700000001\n")
    second = fingerprint_of(data, tmp_path / "out" / "3")
    assert second != first, "a file has come"
    (tmp_path / "log-1.csv").write_text("user,item,time\na,x,1700000009\n")
    assert fingerprint_of(data, tmp_path / "out" / "4") not in (first, second), "one has changed"


def test_a_file_that_is_missing_is_told_before_anything_runs(
    data: DataSettings, tmp_path: Path
) -> None:
    (tmp_path / "log-1.csv").unlink()
    with pytest.raises(DataError, match=r"data\.interactions\.0\.path.*no file matches"):
        fingerprint_of(data, tmp_path / "out" / "1")


def test_ingestion_refuses_files_that_are_not_those_of_the_fingerprint(
    data: DataSettings, tmp_path: Path
) -> None:
    node = InteractionGen(
        data, ["view"], 7, InputFingerprint(data).outputs["fingerprint"].future()[0].value
    )
    assert isinstance(node.exec_properties["fingerprint"], Placeholder)
    taken = digest(fingerprint_inputs(data))
    (tmp_path / "log-2.csv").write_text("user,item,time\nb,y,1700000001\n")
    outputs = {
        key: [output(kind, tmp_path / "out" / key)]
        for key, kind in (
            ("examples", standard_artifacts.Examples),
            ("dead_letters", DeadLetters),
            ("summary", IngestionSummary),
        )
    }
    properties = dict(node.exec_properties) | {"fingerprint": taken}
    with pytest.raises(DataError, match="not those that this run began with"):
        InteractionGenExecutor().Do({}, outputs, properties)
    assert not (tmp_path / "out" / "examples").exists()


# --- schemas --------------------------------------------------------------------------------


def test_the_schema_arrives_as_it_was(data: DataSettings, tmp_path: Path) -> None:
    for name, schema in build_schemas(data, 1).items():
        node = SchemaWriter(schema)
        artifact = output(standard_artifacts.Schema, tmp_path / "out" / name)
        SchemaExecutor().Do({}, {"schema": [artifact]}, dict(node.exec_properties))
        # As ExampleValidator and Transform find it.
        file = io_utils.get_only_uri_in_dir(artifact.uri)
        assert io_utils.SchemaReader().read(file) == schema


def test_what_is_no_schema_is_refused(tmp_path: Path) -> None:
    artifact = output(standard_artifacts.Schema, tmp_path / "out" / "schema")
    node = SchemaWriter(schema_pb2.Schema())
    with pytest.raises(text_format.ParseError):
        SchemaExecutor().Do(
            {}, {"schema": [artifact]}, dict(node.exec_properties) | {"content": "no schema"}
        )


# --- types ----------------------------------------------------------------------------------


def test_types_have_an_import_path_with_one_dot() -> None:
    found = {getattr(components, name) for name in components.ARTIFACT_TYPES}
    assert found == {CascadeStage, DeadLetters, IngestionSummary}
    with pytest.raises(AttributeError, match="'components' has no attribute 'Nothing'"):
        _ = components.Nothing


def test_the_package_needs_no_tfx() -> None:
    program = (
        "import sys, components, components.pusher.spec; from components import paths;"
        "print([name for name in ('tfx', 'tensorflow') if name in sys.modules])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert printed.stdout.strip() == "[]"
