from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline.lineage.command import lineage
from pipeline.metadata.store import MetadataError
from tests.pipeline.lineage.conftest import History
from tests.pipeline.metadata.recorder import Recorder


def ask(where: Path, *arguments: str, answer: str | None = None) -> Result:
    return CliRunner().invoke(lineage, ["--metadata", str(where), *arguments], input=answer)


def asked(where: Path, *arguments: str, answer: str | None = None) -> str:
    result = ask(where, *arguments, answer=answer)
    assert result.exit_code == 0, result.output
    return result.output


def test_no_question_lists_the_versions(history: History) -> None:
    listed = json.loads(asked(history.path, "--format", "json"))
    assert [push["version"] for push in listed] == [1, 2, 3, 3]
    assert listed[0]["deleted"] is True
    by_workdir = CliRunner().invoke(lineage, ["--workdir", str(history.path.parent)])
    assert by_workdir.exit_code == 0
    assert by_workdir.output.startswith("Pushed versions")


def test_version_in_every_format(history: History) -> None:
    assert asked(history.path, "--version", "2").startswith("recommender version 2\n")
    content = json.loads(asked(history.path, "--version", "2", "--format", "json"))
    assert content["model_id"] == "aa03"
    assert asked(history.path, "--version", "2", "--format", "dot").startswith("digraph")
    assert asked(history.path, "--version", "2", "--format", "html").startswith("<!doctype html>")


def test_answer_from_a_file_and_from_standard_input(history: History, tmp_path: Path) -> None:
    answer = json.dumps({"model": "recommender", "version": 3, "model_id": "aa04"})
    path = tmp_path / "response.json"
    path.write_text(answer)
    for result in (
        asked(history.path, "--request", str(path), "--format", "json"),
        asked(history.path, "--request", "-", "--format", "json", answer=answer),
    ):
        assert json.loads(result)["run"] == "run-4"


def test_made_from_and_diff(history: History) -> None:
    content = json.loads(asked(history.path, "--made-from", "/logs/users.csv", "--format", "json"))
    assert [use["push"]["version"] for use in content["uses"]] == [3, 3]
    assert "digraph" in asked(history.path, "--made-from", "/logs/users.csv", "--format", "dot")
    assert "Made from" in asked(history.path, "--made-from", "/logs/users.csv", "--format", "html")
    content = json.loads(asked(history.path, "--diff", "1", "2", "--format", "json"))
    assert content["config"][0] == {"what": "evaluation.minimum_lift", "old": 1.3, "new": None}
    assert "<h2>Slots owned</h2>" in asked(history.path, "--diff", "1", "2", "--format", "html")


@pytest.mark.parametrize("kind", ["tree", "json", "html", "dot"])
def test_output_to_a_file(history: History, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"
    said = asked(history.path, "--version", "2", "--format", kind, "-o", str(path))
    assert "Written to" in said
    written = path.read_text(encoding="utf-8")
    assert "aa03" in written
    assert "\x1b" not in written


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--version", "1", "--diff", "1", "2"], "one question at a time"),
        (["--diff", "1", "2", "--format", "dot"], "choose tree, json or html"),
        (["--format", "dot"], "choose tree, json or html"),
        (["--version", "x"], "not a valid integer"),
        (["--request", "/none.json"], "No such file"),
        (["--diff", "1"], "requires 2 arguments"),
    ],
)
def test_usage_errors(history: History, arguments: list[str], said: str) -> None:
    result = ask(history.path, *arguments)
    assert result.exit_code == 2
    assert said in result.output


def test_where_the_store_is_must_be_said(monkeypatch: pytest.MonkeyPatch, history: History) -> None:
    monkeypatch.delenv("CSMF_METADATA", raising=False)
    result = CliRunner().invoke(lineage, ["--version", "1"])
    assert result.exit_code == 2
    assert "--workdir" in result.output
    monkeypatch.setenv("CSMF_METADATA", str(history.path))
    assert CliRunner().invoke(lineage, ["--version", "1"]).exit_code == 0


@pytest.mark.parametrize(
    "question",
    [
        [],
        ["--version", "1"],
        ["--request", "-"],
        ["--made-from", "/logs/ratings.csv"],
        ["--diff", "1", "2"],
    ],
)
def test_bad_stores_for_every_question(tmp_path: Path, question: list[str]) -> None:
    (tmp_path / "foreign").write_bytes(b"not a database" * 100)
    (tmp_path / "empty").touch()
    Recorder(tmp_path)  # a store without a run
    for name in ("missing", "foreign", "empty", "metadata.sqlite"):
        result = ask(tmp_path / name, *question, answer='{"version": 1}')
        assert isinstance(result.exception, MetadataError), (name, result.output)
    assert not (tmp_path / "missing").exists()
    assert (tmp_path / "empty").stat().st_size == 0


def test_answer_that_is_no_text(history: History, tmp_path: Path) -> None:
    path = tmp_path / "response.bin"
    path.write_bytes(b"\xff\xfe\x00")
    result = ask(history.path, "--request", str(path))
    assert isinstance(result.exception, MetadataError)
    assert "not UTF-8" in str(result.exception)
