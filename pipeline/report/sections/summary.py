"""What came of the run, in one screen."""

from __future__ import annotations

from pipeline.report import text
from pipeline.report.blocks import Badge, Block, Cell, Facts, Heading, Note, Table
from pipeline.report.data import Missing, Part, Pushed, ReportData, RunFacts, Verdict
from pipeline.report.figures.nodes import state_badge
from pipeline.report.recorded import Evaluation

_METRIC = "recall@50"
_LONGEST_ERROR = 300
_NOT_NOTED = "not recorded by this run"


def summary(data: ReportData) -> list[Block]:
    """Run, result, and the one metric that is gated."""
    blocks: list[Block] = [Facts((*_of_run(data.run), *_result(data)))]
    for node in data.nodes:
        if node.ended_badly:
            blocks.append(
                Note(
                    f"{node.name} {node.state.lower()}: "
                    f"{text.clipped(node.error or 'no error was recorded', _LONGEST_ERROR)} "
                    "More under Nodes.",
                    "bad",
                )
            )
    if data.run.error and not any(node.error for node in data.nodes):
        blocks.append(Note(f"The run ended with an error: {data.run.error}", "bad"))
    blocks.append(Heading("Key numbers"))
    if isinstance(data.evaluation, Missing):
        blocks.append(Note(data.evaluation.reason, "missing"))
    else:
        blocks.append(_key_numbers(data.evaluation.value, data.run.objectives))
    return blocks


def _of_run(run: RunFacts) -> tuple[tuple[str, Cell], ...]:
    return (
        ("Run", run.id),
        ("State", state_badge(run.state)),
        ("Pipeline", run.pipeline or _NOT_NOTED),
        ("Started", f"{run.started:%Y-%m-%d %H:%M:%S} UTC"),
        ("Took", text.seconds(run.seconds)),
        ("Objectives", " → ".join(run.objectives) or _NOT_NOTED),
        ("Configuration", f"SHA-256 {run.config_sha256}" if run.config_sha256 else _NOT_NOTED),
        ("csmf", run.version or _NOT_NOTED),
    )


def _result(data: ReportData) -> tuple[tuple[str, Cell], ...]:
    return (
        ("Gate: quality", verdict_badge(data.model_verdict)),
        ("Gate: serving", verdict_badge(data.infra_verdict)),
        ("Pushed", _pushed(data.pushed)),
    )


def verdict_badge(verdict: Part[Verdict]) -> Badge:
    """What a gate decided, in words."""
    if isinstance(verdict, Missing):
        return Badge("no verdict", "neutral")
    return Badge("passed", "good") if verdict.value.blessed else Badge("refused", "bad")


def _pushed(pushed: Part[Pushed]) -> str:
    if isinstance(pushed, Missing):
        return f"nothing: {pushed.reason}"
    done = pushed.value
    if done.version is None:
        return f"nothing: {done.reason or _NOT_NOTED}"
    return f"version {done.version}, model {done.model_id or '?'}, to {done.destination or '?'}"


def _key_numbers(evaluation: Evaluation, objectives: tuple[str, ...]) -> Table:
    blessed = evaluation.baseline
    rows: list[tuple[Cell, ...]] = []
    for name in objectives:
        if name not in evaluation.metrics:
            continue
        ours = evaluation.metrics[name][_METRIC]
        popular = evaluation.popularity.get(name, {}).get(_METRIC)
        before = (blessed or {}).get(name, {}).get(_METRIC)
        rows.append(
            (
                name,
                text.score(ours),
                text.score(popular),
                text.NOTHING if popular is None else text.times(ours, popular),
                text.score(before),
                text.NOTHING if before is None else text.change(ours, before),
            )
        )
    return Table(
        f"{_METRIC} on held-out events",
        ("objective", "candidate", "popularity", "lift", "blessed model", "change"),
        rows,
        numeric=frozenset(range(1, 6)),
    )
