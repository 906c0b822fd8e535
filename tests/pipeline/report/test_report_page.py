from __future__ import annotations

import json
import re
import shutil
import socket
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipeline.metadata.store import MetadataError
from pipeline.report.command import report
from pipeline.report.render import write_report

SECTIONS = (
    "summary",
    "gates",
    "data",
    "training",
    "ownership",
    "metrics",
    "index",
    "weights",
    "examples",
    "nodes",
    "configuration",
)
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """The text of each section, and what assistive technology gets."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.sections: dict[str, str] = {}
        self.alts: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.unclosed: list[str] = []
        self._section = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        if given.get("id"):
            self.ids.append(str(given["id"]))
        if tag == "section":
            self._section = str(given["id"])
        if given.get("role") == "img":
            self.alts.append(given.get("aria-label") or "")
        if tag not in VOID:
            self.unclosed.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.unclosed.pop() == tag

    def handle_data(self, data: str) -> None:
        said = self.sections.get(self._section, "") + " " + data
        self.sections[self._section] = re.sub(r"\s+", " ", said)


def page_of(kit: Any, run_id: str | None = None) -> Page:
    path = write_report(kit.recorder.path, run_id, kit.recorder.root / "report.html")
    return Page(path.read_text(encoding="utf-8"))


def node(nodes: list[Any], name: str) -> Any:
    return next(node for node in nodes if node.name == name)


def written(kit: Any, name: str, key: str, file: str) -> Path:
    return kit.recorder.uri("run-1", name, key) / file


# --- a whole run --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(whole_kit: Any) -> Page:
    return page_of(whole_kit)


def test_a_whole_run_lacks_nothing(whole: Page) -> None:
    assert tuple(name for name in whole.sections if name) == SECTIONS
    for name, said in whole.sections.items():
        assert "Missing:" not in said, name
    assert "This is the first span" in whole.sections["data"]
    assert not whole.unclosed
    assert len(whole.source) < 1_000_000


def test_it_says_what_passed_and_by_how_much(whole: Page) -> None:
    said = whole.sections["gates"]
    assert "0.6000 ≥ 0.5000 +0.1000 (+20.0 %)" in said
    assert "0.9900 ≥ 0.9500" in said
    assert "it starts (checked 1 times)" in said
    assert "version 8, model 974d5425e4230db0" in whole.sections["summary"]


def test_it_says_what_came_in_and_what_did_not(whole: Page) -> None:
    said = whole.sections["data"]
    assert "interactions 1,000 940 40 20 10 bot, 30 repeat" in said
    assert "bad_timestamp 15 1.5 % logs/u.data:17" in said
    assert "train conversion 100 28.6 %" in said
    # item 0 has 50 of the 100 events of the split
    assert re.search(r"1 item 0 .{1,60} 50 50\.0 %", said)


def test_it_compares_with_the_blessed_model_and_popularity(whole: Page) -> None:
    said = whole.sections["metrics"]
    assert "The blessed model is version 7" in said
    # click: 0.35 x 1.5 against 0.34 x 1.5 and 0.2 x 1.5
    assert "click candidate 4,000 0.2100 0.5250" in said
    assert "click blessed model (version 7) 4,000 0.2040 0.5100" in said
    assert "click candidate against popularity 1.75 × 1.75 ×" in said
    assert "conversion item: tail popularity 450" in said


def test_it_says_what_a_score_is_made_of(whole: Page) -> None:
    said = whole.sections["training"]
    assert "exposure 1.0000 -0.0500 click 1.5000 0.2500 conversion 1.5000 0.5000" in said


def test_it_shows_memory_and_examples(whole: Page) -> None:
    assert re.search(
        r"InteractionGen ✓ complete \d\.\d s \d\.\d s 1\.50 GiB", whole.sections["nodes"]
    )
    assert "Title of i00 i00 exposure" in whole.sections["examples"]
    assert "A film with a long name 3 0.750 ✓ hit" in whole.sections["examples"]


def test_nothing_is_in_a_picture_alone(whole: Page) -> None:
    figures = whole.tags.count("figure")
    assert figures >= 10
    assert whole.tags.count("svg") == whole.tags.count("figcaption") == figures
    assert len(whole.alts) == figures
    assert all(len(alt) > 30 for alt in whole.alts)
    for block in whole.source.split("<figure>")[1:]:
        assert "<table>" in block.split("</figure>")[0]
    assert len(whole.ids) == len(set(whole.ids))


def test_no_request_leaves_the_page(whole: Page) -> None:
    assert not re.search(r"""(?:src|href|srcset|action|data)\s*=\s*["']?(?!["']?#)""", whole.source)
    assert not re.search(r"url\((?!#)", whole.source)
    assert "@import" not in whole.source
    assert "script" not in whole.tags


def test_what_users_and_items_are_called_is_text(whole: Page) -> None:
    assert "<script>" not in whole.source
    escaped = "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;"
    for section in ("data", "examples"):
        assert escaped in whole.source.split(f'<section id="{section}"')[1].split("</section>")[0]


def test_the_same_run_gives_the_same_bytes(whole_kit: Any, whole: Page) -> None:
    assert page_of(whole_kit).source == whole.source


def test_titles_that_are_no_text_do_no_harm(kit: Any) -> None:
    nodes = kit.nodes()
    measured = kit.evaluation()
    measured["examples"][0]["history"][0]["title"] = "half a pair \ud83d"
    measured["examples"][0]["history"][1]["title"] = ""
    evaluator = node(nodes, "RetrievalEvaluator")
    evaluator.outputs["evaluation"][1]["evaluation.json"] = measured
    kit.recorder.run("run-1", [evaluator])
    said = page_of(kit).sections["examples"]
    assert "half a pair ?" in said
    assert "i01 i01 click" in said


# --- runs that did not end, or did not end well ---------------------------------------------------


def test_a_failed_node_shows_its_error_and_the_end_of_its_log(kit: Any) -> None:
    logs = kit.recorder.root / "logs"
    logs.mkdir()
    lines = "\n".join(f"line {number} {kit.hostile}" for number in range(1000))
    (logs / "CascadedTrainer.click.log").write_text(lines, encoding="utf-8")
    nodes = [*kit.nodes()[:5], kit.Node("CascadedTrainer.click", state="FAILED")]
    message = f"weights are not finite {kit.hostile}"
    kit.recorder.run(
        "run-1",
        nodes,
        {
            "error": {"node": "CascadedTrainer.click", "type": "ValueError", "message": message},
            "log_dir": str(logs),
        },
    )
    page = page_of(kit)
    assert "failed" in page.sections["summary"]
    assert "weights are not finite" in page.sections["summary"]
    said = page.sections["nodes"]
    assert "weights are not finite" in said
    assert "line 999" in said
    assert "line 900 " not in said
    assert "<script>" not in page.source
    # What was done before is there, what comes after says why it is not.
    assert "exposure train 30,000" in page.sections["training"]
    assert (
        "stage click. CascadedTrainer.click has no result: it is FAILED"
        in (page.sections["training"])
    )
    for name in ("gates", "metrics", "index", "weights", "examples"):
        assert (
            "RetrievalEvaluator has not been executed: the run ended at CascadedTrainer.click"
            in (page.sections[name])
        )
    # 64 neurons, 44 owned by the one stage that ended
    assert "history 64 44 (68.8 %) 20 (31.2 %)" in page.sections["ownership"]


def test_a_failed_node_without_log_says_so(kit: Any) -> None:
    kit.recorder.run("run-1", [kit.Node("InteractionGen", state="FAILED")])
    said = page_of(kit).sections["nodes"]
    assert "the error is not recorded" in said
    assert "No log of this node" in said


def test_a_run_under_way_shows_what_is_done(kit: Any) -> None:
    nodes = [*kit.nodes()[:2], kit.Node("Transform", state="RUNNING")]
    kit.recorder.run("run-1", nodes)
    page = page_of(kit)
    assert "running" in page.sections["summary"]
    assert "interactions 1,000 940" in page.sections["data"]
    assert "the run is still under way" in page.sections["metrics"]


def test_an_interrupted_run_says_so(kit: Any) -> None:
    nodes = [*kit.nodes()[:2], kit.Node("Transform", state="RUNNING")]
    gone = {"host": socket.gethostname(), "pid": 2**22 + 1}  # beyond the largest number
    kit.recorder.run("run-1", nodes, {"host_pid": gone})
    page = page_of(kit)
    assert "interrupted" in page.sections["nodes"]
    assert "the run ended at Transform" in page.sections["metrics"]


def test_a_run_without_nodes_gives_a_page(kit: Any) -> None:
    error = {"node": "", "type": "DataError", "message": "no such file: u.data"}
    kit.recorder.run("run-1", [], {"error": error})
    page = page_of(kit)
    assert "no such file: u.data" in page.sections["summary"]
    assert "no node of this run has begun" in page.sections["nodes"]


def test_a_refused_model_says_by_what(kit: Any) -> None:
    nodes = kit.nodes()
    evaluator = node(nodes, "RetrievalEvaluator").outputs
    measured = kit.evaluation()
    measured["checks"][1] |= {"passed": False, "value": 0.4}
    evaluator["evaluation"][1]["evaluation.json"] = measured
    evaluator["blessing"][2].update(blessed=0, failed="click: recall@50")
    node(nodes, "Pusher").outputs["pushed_model"] = (
        "PushedModel",
        {},
        {"pushed": 0, "reason": "model_blessing: click: recall@50"},
    )
    kit.recorder.run("run-1", nodes[-3:])
    page = page_of(kit)
    assert "✗ refused" in page.sections["summary"]
    assert "nothing: model_blessing: click: recall@50" in page.sections["summary"]
    assert "✗ failed 0.4000 ≥ 0.5000 -0.1000 (-20.0 %)" in page.sections["gates"]


# --- files that are gone or broken ----------------------------------------------------------------


def test_a_deleted_stage_lacks_its_curves_and_no_others(kit: Any) -> None:
    kit.recorder.run("run-1", [n for n in kit.nodes() if n.name.startswith("CascadedTrainer")])
    written(kit, "CascadedTrainer.click", "stage", "stage.json").unlink()
    page = page_of(kit)
    assert "conversion train 30,000" in page.sections["training"]
    assert "click train" not in page.sections["training"]


def test_of_deleted_files_ml_metadata_has_the_essence(kit: Any) -> None:
    kit.recorder.run("run-1", kit.nodes())
    shutil.rmtree(kit.recorder.root / "artifacts")
    page = page_of(kit)
    for section, file, still in (
        ("data", "summary.json", "interactions 1,000 940 40 20"),
        ("ownership", "stage.json", "history 64 44 (68.8 %) 14 (21.9 %) 6 (9.4 %)"),
        ("metrics", "evaluation.json", "click candidate 4,000 0.2100 0.5250"),
        ("gates", "report.json", "it starts"),
    ):
        assert f"{file} is gone; this is what ML Metadata has of it" in page.sections[section]
        assert still in page.sections[section]
    assert "no stage has training curves" in page.sections["training"]
    said = page.sections["data"]
    assert "20 rows of interactions; their reasons are not recorded" in said
    assert said.count("FeatureStats.pb is gone") == 2
    assert "SchemaDiff.pb is gone" in said


def test_a_section_that_cannot_be_made_costs_no_other(kit: Any) -> None:
    nodes = kit.nodes()
    broken = kit.stage(0)
    broken["pruned"]["output"]["freed"] = 1000  # of 64 slots
    node(nodes, "CascadedTrainer.exposure").outputs["stage"][1]["stage.json"] = broken
    kit.recorder.run("run-1", nodes)
    page = page_of(kit)
    assert "This section could not be made: IndexError" in page.sections["ownership"]
    assert "exposure train 30,000" in page.sections["training"]
    assert "click candidate 4,000" in page.sections["metrics"]


@pytest.mark.parametrize("content", ["{", '{"checks": "none"}', "\x00"])
def test_a_broken_file_is_named(kit: Any, content: str) -> None:
    kit.recorder.run("run-1", kit.nodes())
    for name, key, file in (
        ("InteractionGen", "summary", "summary.json"),
        ("CascadedTrainer.click", "stage", "stage.json"),
        ("RetrievalEvaluator", "evaluation", "evaluation.json"),
        ("ServingValidator", "blessing", "report.json"),
    ):
        written(kit, name, key, file).write_text(content, encoding="utf-8")
    for split in ("train", "eval"):
        path = written(kit, "StatisticsGen", "statistics", f"Split-{split}/FeatureStats.pb")
        path.write_bytes(b"\x0a\xff\xff")
    page = page_of(kit)
    for section, file in (
        ("data", "summary.json"),
        ("data", "FeatureStats.pb"),
        ("training", "stage.json"),
        ("metrics", "evaluation.json"),
        ("gates", "report.json"),
    ):
        assert f"{file} cannot be read" in page.sections[section]


# --- runs made before -----------------------------------------------------------------------------


def as_before(nodes: list[Any]) -> list[Any]:
    """Takes away what is recorded only since the report exists."""
    for made in nodes:
        for key, (kind, files, noted) in made.outputs.items():
            made.outputs[key] = (
                kind,
                {name: _without_new(content) for name, content in files.items()},
                {name: value for name, value in noted.items() if name in ("blessed", "pushed")},
            )
    return nodes


def _without_new(content: Any) -> Any:
    new = {
        "round_seconds",
        "started",
        "pruned",
        "layers",
        "popularity_slices",
        "baseline_slices",
        "pareto",
        "pareto_queries",
        "index_curve",
        "examples",
    }
    if isinstance(content, dict):
        return {key: _without_new(value) for key, value in content.items() if key not in new}
    if isinstance(content, list):
        return [_without_new(value) for value in content]
    return content


def test_an_older_run_says_what_it_did_not_record(kit: Any) -> None:
    kit.recorder.run("run-1", as_before(kit.nodes()), {"nodes": {}, "csmf_version": "0.0.9"})
    page = page_of(kit)
    assert "did not record when its rounds ended" in page.sections["training"]
    assert "click 14" in " ".join(page.alts)
    for section, lacking in (
        ("ownership", "the importances are"),
        ("metrics", "slices of popularity and of the blessed model are"),
        ("index", "the curve of recall against latency is"),
        ("weights", "the sweep over request weights is"),
        ("examples", "examples are"),
        ("nodes", "memory is"),
    ):
        assert f"Missing: {lacking} not recorded by this run" in page.sections[section]
    assert "click candidate 4,000" in page.sections["metrics"]


def test_one_objective_needs_no_frontier(kit: Any) -> None:
    def only(values: dict[str, Any]) -> dict[str, Any]:
        return {"click": values["click"]}

    measured = kit.evaluation()
    for key in ("metrics", "popularity", "baseline", "slices", "popularity_slices"):
        measured[key] = only(measured[key])
    measured |= {
        "baseline_slices": None,
        "weights": {"click": [1.0]},
        "pareto": [{"weights": [1.0], "recall@50": {"click": 0.5}}],
    }
    stage = kit.stage(2) | {"stage": 0, "objective": "click"}
    kit.recorder.run(
        "run-1",
        [
            kit.Node(
                "CascadedTrainer.click", {"stage": ("CascadeStage", {"stage.json": stage}, {})}
            ),
            kit.Node(
                "RetrievalEvaluator",
                {"evaluation": ("ModelEvaluation", {"evaluation.json": measured}, {})},
            ),
        ],
        {"config": {"objectives": [{"name": "click"}]}},
    )
    page = page_of(kit)
    assert "There is one objective, so nothing was pruned" in page.sections["ownership"]
    assert "1 0.5000" in page.sections["weights"]
    assert "svg" not in page.source.split('id="weights"')[1].split("</section>")[0]


# --- where it goes --------------------------------------------------------------------------------


def test_an_unknown_run_writes_nothing(kit: Any) -> None:
    kit.recorder.run("run-1", kit.nodes()[:1])
    with pytest.raises(MetadataError, match="run-1"):
        write_report(kit.recorder.path, "nope", kit.recorder.root / "report.html")
    assert not (kit.recorder.root / "report.html").exists()


def test_no_store_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(MetadataError, match="csmf run"):
        write_report(tmp_path / "metadata.sqlite", None, tmp_path / "report.html")


@pytest.fixture
def csmf_report(kit: Any) -> Callable[..., Path]:
    def call(*arguments: str) -> Path:
        result = CliRunner().invoke(
            report, ["--workdir", str(kit.recorder.root), *arguments], catch_exceptions=False
        )
        assert result.exit_code == 0, result.output
        return kit.recorder.root

    return call


def test_the_command_takes_the_newest_run_or_the_one_named(
    kit: Any, csmf_report: Callable[..., Path]
) -> None:
    kit.recorder.run("2026-01", kit.nodes()[:1])
    kit.recorder.run("2026-02", kit.nodes()[:1])
    root = csmf_report()
    assert "Run 2026-02" in (root / "report.html").read_text(encoding="utf-8")
    csmf_report("--run", "2026-01", "-o", str(root / "deep" / "other.html"))
    assert "Run 2026-01" in (root / "deep" / "other.html").read_text(encoding="utf-8")


def test_the_configuration_is_shown_as_noted(kit: Any) -> None:
    noted = {"objectives": [{"name": "click"}], "data": {"split": {"eval_share": 0.2}}}
    kit.recorder.run("run-1", kit.nodes()[:1], {"config": noted})
    said = page_of(kit).sections["configuration"]
    assert json.loads(said[said.index("{") :]) == noted
