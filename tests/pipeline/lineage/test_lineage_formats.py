from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline.lineage import html
from pipeline.lineage.diff import compare
from pipeline.lineage.dot import made_from_dot, version_dot
from pipeline.lineage.encode import to_json, version_json
from pipeline.lineage.forward import made_from
from pipeline.lineage.other_pages import diff_page, list_page, made_from_page
from pipeline.lineage.page import Page
from pipeline.lineage.pushes import list_pushes, unfinished_runs
from pipeline.lineage.query import version_lineage
from pipeline.lineage.text import as_text
from pipeline.lineage.version_page import version_page
from pipeline.metadata.store import open_store
from tests.pipeline.lineage.conftest import History
from tests.pipeline.metadata.recorder import NODES, Recorder, Recording

HOSTILE = '<script>alert(1)</script>"\\\n[bold]\x1b[31m&'
VOID = {"meta", "link", "img", "br", "input"}


def squeezed(text: str) -> str:
    """Without the columns' blanks, so that a row is what its cells are."""
    return re.sub(r" {2,}", "  ", text)


def shown(history: History, version: int) -> str:
    return squeezed(as_text(version_page(version_lineage(history.path, version))))


class Parsed(HTMLParser):
    """Tags with their attributes, and all text; checks that what is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def dot_statements(text: str) -> Iterator[tuple[str, str, str]]:
    """(start, end or "", label) of a graph in the part of Graphviz's grammar that is used."""
    quoted = r'"(?:[^"\\\n]|\\.)*"'
    lines = text.splitlines()
    assert lines[0] == "digraph lineage {"
    assert lines[-1] == "}"
    for line in lines[3:-1]:
        found = re.fullmatch(rf"  (\w+)(?: -> (\w+))? \[(?:shape=\w+, )?label=({quoted})\];", line)
        assert found, line
        yield found[1], found[2] or "", found[3]


def test_tree_answers_the_questions(history: History) -> None:
    text = shown(history, 2)
    for expected in (
        "recommender version 2",
        "model id aa03, run run-3",
        "code csmf 0.3.0, configuration sha-of-run-3, seed 7 (InteractionGen), 8",
        "/logs/ratings.csv  interactions  100  abababababababab  gone",
        "interactions  100  95  2  3 duplicate",
        "schema of ImportSchemaGen.timelines: /schemas/timelines-0123456789abcdef.pbtxt, gone",
        "objectives.exposure.tau  0.4",
        "stage  tau  gamma  rounds  loss",
        "exposure  0.4  0.1  30  4.5  e0e0e0e0e0e0e0e0",
        "history  16  16  4  36",
        "request weights of conversion: 0.5, 2, 1",
        "exposure  recall@50  0.75  0.2",
        "the index finds 99.00% of the exact top 100",
        "quality gate: blessed; 2 of 2 checks passed",
        "exposure: recall@50  passed  0.5  0.26",
        "serving gate: blessed; 1 of 1 checks passed",
        "from the cache, executed in run run-1, by csmf 0.2.0",
        "wrote stage: CascadeStage",
        "shown above",
    ):
        assert expected in text, expected
    for node in NODES:
        assert f"{node} (" in text, node


def test_first_lines_of_a_deleted_version_say_so(history: History) -> None:
    head = shown(history, 1).splitlines()[:9]
    assert head[0] == "recommender version 1, deleted"
    assert any("The version is deleted: nothing is at" in line for line in head)
    assert any("Gone since: /logs" in line for line in head)


def test_verdict_of_a_check_is_a_word(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    failed = [{"name": "click: recall@50", "passed": False, "value": 0.1, "threshold": 0.2}]
    recorder.record(Recording(checks=failed))
    text = squeezed(as_text(version_page(version_lineage(recorder.path, 1))))
    assert "quality gate: refused: click: recall@50; 0 of 1 checks passed" in text
    assert "click: recall@50  FAILED  0.1  0.2" in text


def test_run_that_recorded_little(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.record(Recording(before_recording=True, config=None))
    text = squeezed(as_text(version_page(version_lineage(recorder.path, 1))))
    assert "/logs/ratings.csv  not recorded  not recorded  abababababababab" in text
    assert "code csmf not recorded, configuration not recorded, seed 7" in text
    assert "quality gate: blessed; single checks not recorded" in text


def test_data_keys_are_in_the_full_page_only(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.record(Recording(config={"name": "x", "data": {"split": {"eval_share": 0.2}}}))
    lineage = version_lineage(recorder.path, 1)
    assert "and 1 keys of data.*" in as_text(version_page(lineage))
    full = as_text(version_page(lineage, full=True))
    assert re.search(r"data.split.eval_share +0.2", full)
    assert "it starts" in full


def test_pages_about_several_versions(history: History) -> None:
    store = open_store(history.path)
    listed = squeezed(as_text(list_page(list_pushes(store), unfinished_runs(store))))
    rows = re.findall(r"(\d)  recommender  \S+ \S+  (aa\d\d)  (run-\d)  (\S+)", listed)
    assert [(v, i, r) for v, i, r, _ in rows] == [
        ("3", "aa05", "run-5"),
        ("3", "aa04", "run-4"),
        ("2", "aa03", "run-3"),
        ("1", "aa01", "run-1"),
    ]
    assert rows[-1][-1] == "deleted"
    assert "Run run-6, newer than these, is FAILED." in listed

    forward = squeezed(as_text(made_from_page(made_from(history.path, "/logs/users.csv"))))
    assert "aa04  /logs/users.csv  users  9" in forward
    assert "run-6  FAILED" in forward

    facts = [version_lineage(history.path, version).facts for version in (1, 2)]
    text = squeezed(as_text(diff_page(compare(*facts))))
    for expected in (
        "evaluation.minimum_lift  1.3  (default)",
        "objectives.exposure.tau  (default)  0.4",
        "code (csmf)  0.2.0  0.3.0",
        "exposure.tau  0.3  0.4",
        "exposure  history  20  16  -4",
        "click  recall@50  0.25  0.125  -0.125",
        "no difference",
    ):
        assert expected in text, expected


def test_json_holds_facts_and_graph(history: History) -> None:
    content = json.loads(version_json(version_lineage(history.path, 2)))
    assert (content["version"], content["model_id"], content["run"]) == (2, "aa03", "run-3")
    assert content["tables"]["interactions"]["dropped"] == {"duplicate": 3}
    assert content["stages"][0]["settings"]["tau"] == 0.4
    assert content["pushed"].endswith("+00:00")
    made_by = {a["id"]: a["made_by"] for a in content["graph"]["artifacts"]}
    nodes = {e["id"]: e["node"] for e in content["graph"]["executions"]}
    assert nodes[made_by[content["graph"]["root"]]] == "Pusher"
    with pytest.raises(TypeError, match="no JSON for set"):
        to_json({"a set": set()})


def test_dot_draws_every_link(history: History) -> None:
    lineage = version_lineage(history.path, 2)
    statements = list(dot_statements(version_dot(lineage)))
    names = {start for start, end, _ in statements if not end}
    edges = [(start, end) for start, end, _ in statements if end]
    assert names >= {name for edge in edges for name in edge}
    graph = lineage.graph
    links = sum(len(e.inputs) + len(e.outputs) for e in graph.executions.values())
    files = 2 + 2  # logs and schemas
    assert len(edges) == links + files
    assert len(names) == len(graph.artifacts) + len(graph.executions) + files
    labels = {start: label for start, end, label in statements if not end}
    assert labels[f"a{graph.root}"].startswith('"PushedModel ')
    assert "pushed_version 2" in labels[f"a{graph.root}"]
    assert sum("from the cache" in label for label in labels.values()) == 5


def test_dot_of_what_was_made_from_a_file(history: History) -> None:
    statements = list(dot_statements(made_from_dot(made_from(history.path, "/logs/items.csv"))))
    assert [label for _, end, label in statements if end] == ['"catalogue"'] * 4
    labels = [label for _, end, label in statements if not end]
    assert labels[0] == '"/logs/items.csv"'
    assert '"recommender version 1\\naa01\\ndeleted"' in labels


def test_html_opens_without_a_network(history: History) -> None:
    text = html.page(history.path, 2)
    parsed = Parsed(text)
    assert not {"src", "href", "srcset", "onclick"} & parsed.attributes
    assert "script" not in parsed.tags
    assert "url(" not in text
    assert "http" not in text.replace("http-equiv", "")
    assert len(text.encode()) < 60_000
    for said in ("recommender version 2", "abababababababab", "FAILED", "csmf 0.3.0"):
        assert (said in parsed.text) == (said != "FAILED")
    assert parsed.tags.count("h1") == 1
    assert parsed.tags.count("section") == 5


def hostile_store(root: Path) -> Recorder:
    recorder = Recorder(root)
    recorder.record(
        Recording(
            model=f"m{HOSTILE}".replace("/", ""),
            model_id=HOSTILE,
            files={f"/logs/{HOSTILE}": (HOSTILE, 1, "ab" * 32)},
            config={"name": HOSTILE, HOSTILE: [HOSTILE]},
            checks=[{"name": HOSTILE, "passed": False, "value": 1.0, "threshold": 2.0}],
            metrics={HOSTILE: {HOSTILE: 0.5}},
        )
    )
    return recorder


def test_hostile_texts_are_only_texts(tmp_path: Path) -> None:
    recorder = hostile_store(tmp_path)
    found = version_lineage(recorder.path, 1)
    forward = made_from(recorder.path, "ab" * 32)
    pages: list[Page] = [
        version_page(found, full=True),
        made_from_page(forward),
        diff_page(compare(found.facts, found.facts)),
        list_page(list_pushes(recorder.store), []),
    ]
    for page in pages:
        parsed = Parsed(html.render(page))
        assert "script" not in parsed.tags
        assert "<script>" in parsed.text  # as a text
        text = as_text(page)
        assert "\x1b" not in text
        assert "[bold]" in text
    list(dot_statements(version_dot(found)))
    list(dot_statements(made_from_dot(forward)))
    assert json.loads(version_json(found))["model_id"] == HOSTILE
