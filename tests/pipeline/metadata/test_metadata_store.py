from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from ml_metadata.proto import metadata_store_pb2 as pb

from pipeline.metadata.store import MetadataError, open_store, properties
from tests.pipeline.metadata.recorder import Recorder, Recording


def test_opens_a_path_and_its_uri(tmp_path: Path) -> None:
    path = Recorder(tmp_path).path
    for where in (path, str(path), f"sqlite:///{path}"):
        assert open_store(where).get_contexts() == []


def test_missing_store_says_what_to_do_and_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "metadata.sqlite"
    with pytest.raises(MetadataError, match=r"nowhere.*csmf run"):
        open_store(path)
    assert not path.parent.exists()
    with pytest.raises(MetadataError, match="no metadata database"):
        open_store(tmp_path)  # a directory


def test_foreign_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "other.sqlite").execute("CREATE TABLE t (x)").connection.close()
    (tmp_path / "text.sqlite").write_bytes(b"no database" * 200)
    (tmp_path / "empty.sqlite").touch()
    for path in sorted(tmp_path.iterdir()):
        content = path.read_bytes()
        with pytest.raises(MetadataError, match=rf"{path.name} is not a metadata database"):
            open_store(path)
        assert path.read_bytes() == content


def test_store_cannot_be_written_to(tmp_path: Path) -> None:
    store = open_store(Recorder(tmp_path).path)
    with pytest.raises(Exception, match=r"(?i)read-?only"):
        store.put_context_type(pb.ContextType(name="new"))


@pytest.mark.parametrize(
    "uri",
    [
        "postgres://user@host/database",
        "mysql://host/database",  # no user
        "mysql://user:secret@host",  # no database
        "http://user:secret@host/database",
    ],
)
def test_addresses_of_no_store(uri: str) -> None:
    with pytest.raises(MetadataError, match="mysql://USER:PASSWORD@HOST") as caught:
        open_store(uri)
    assert "secret" not in str(caught.value)


def test_properties_of_every_kind(tmp_path: Path) -> None:
    store = Recorder(tmp_path).store
    kind = pb.ArtifactType(name="Thing", properties={"length": pb.INT})
    artifact = pb.Artifact(type_id=store.put_artifact_type(kind))
    artifact.properties["length"].int_value = 3
    artifact.custom_properties["share"].double_value = 0.5
    artifact.custom_properties["id"].string_value = "x"
    artifact.custom_properties["nothing"].CopyFrom(pb.Value())
    assert list(properties(artifact).items()) == [("id", "x"), ("length", 3), ("share", 0.5)]


def test_reading_while_a_run_writes(tmp_path: Path) -> None:
    """A store that is open sees what is recorded later; neither stands in the other's way."""
    recorder = Recorder(tmp_path)
    store = open_store(recorder.path)
    seen = []
    for number in range(3):
        recorder.record(Recording(f"run-{number}", version=number, last="Transform"))
        seen.append(len(store.get_contexts_by_type("pipeline_run")))
    assert seen == [1, 2, 3]
