from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pipeline.lineage.forward import MadeFrom, Unpushed, made_from
from pipeline.metadata.store import MetadataError
from tests.pipeline.lineage.conftest import History
from tests.pipeline.metadata.recorder import Recorder, Recording


def versions(found: MadeFrom) -> list[tuple[int, str]]:
    return [(use.push.version, use.push.run) for use in found.uses]


def test_path_of_a_log(history: History) -> None:
    found = made_from(history.path, "/logs/ratings.csv")
    assert versions(found) == [(1, "run-1"), (2, "run-3"), (3, "run-4"), (3, "run-5")]
    sources = [use.source for use in found.uses]
    assert {source.role for source in sources} == {"interactions"}
    assert [source.rows for source in sources] == [100, 100, 130, 130]
    assert [source.sha256[:2] for source in sources] == ["ab", "ab", "ef", "ef"]
    assert {use.same_content for use in found.uses} == {None}
    # Refused by a gate, and failed; the newest first.
    assert found.unpushed == (Unpushed("run-6", "FAILED"), Unpushed("run-2", "COMPLETE"))


def test_hash_of_a_log(history: History) -> None:
    assert versions(made_from(history.path, "ab" * 32)) == [(1, "run-1"), (2, "run-3")]
    assert versions(made_from(history.path, "EF" * 32)) == [(3, "run-4"), (3, "run-5")]
    assert versions(made_from(history.path, "ab" * 8)) == [(1, "run-1"), (2, "run-3")]
    assert made_from(history.path, "12" * 32).uses[0].source.role == "users"


def test_schema(history: History) -> None:
    found = made_from(history.path, "/schemas/timelines-aaaabbbbccccdddd.pbtxt")
    assert versions(found) == [(3, "run-4"), (3, "run-5")]
    assert {use.source.role for use in found.uses} == {"schema"}
    assert versions(made_from(history.path, "aaaabbbbccccdddd" + "0" * 48)) == versions(found)


def test_existing_file_by_its_content(tmp_path: Path) -> None:
    log = tmp_path / "here.csv"
    log.write_bytes(b"u,i\n")
    digest = hashlib.sha256(b"u,i\n").hexdigest()
    recorder = Recorder(tmp_path)
    other = {"/elsewhere/ratings.csv": ("interactions", 1, digest)}
    recorder.record(Recording("run-1", version=1, files=other))
    recorder.record(Recording("run-2", version=2, files={str(log): ("interactions", 2, "ee" * 32)}))
    found = made_from(recorder.path, str(log))
    assert versions(found) == [(1, "run-1"), (2, "run-2")]
    # The same content under another path; the same path before it was written anew.
    assert [use.same_content for use in found.uses] == [True, False]


def test_relative_path_is_found_by_the_absolute_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(tmp_path)
    recorder.record(Recording(files={"data/ratings.csv": ("interactions", 1, "ab" * 32)}))
    monkeypatch.chdir(tmp_path)
    for path in ("data/ratings.csv", str(tmp_path / "data" / "ratings.csv")):
        assert versions(made_from(recorder.path, path)) == [(1, "run-1")]
    with pytest.raises(MetadataError):
        made_from(recorder.path, "ratings.csv")


def test_unknown_file_names_those_that_are_known(history: History) -> None:
    with pytest.raises(MetadataError, match=r"no run has read /logs/none\.csv") as caught:
        made_from(history.path, "/logs/none.csv")
    for known in ("/logs/ratings.csv", "/logs/users.csv", "/schemas/timelines-aaaabbbb"):
        assert known in str(caught.value)


def test_only_of_one_model(history: History) -> None:
    assert made_from(history.path, "/logs/users.csv", "other").uses == ()
    assert versions(made_from(history.path, "/logs/users.csv", "recommender"))


def test_file_that_only_unfinished_runs_have_read(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.record(Recording(last="InteractionGen", last_state="FAILED"))
    found = made_from(recorder.path, "/logs/ratings.csv")
    assert (found.uses, found.unpushed) == ((), (Unpushed("run-1", "FAILED"),))


def test_empty_store(tmp_path: Path) -> None:
    with pytest.raises(MetadataError, match="no file is recorded at all"):
        made_from(Recorder(tmp_path).path, "/logs/ratings.csv")
