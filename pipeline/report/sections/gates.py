"""What passed and by how much."""

from __future__ import annotations

from pipeline.report.blocks import Badge, Block, Cell, Heading, Note, Table
from pipeline.report.data import Known, Missing, Part, ReportData, Verdict
from pipeline.report.recorded import GateCheck, InfraCheck
from pipeline.report.sections.notes import of_part

_AT_MOST = "data: anomalies"  # the one condition that has an upper limit


def gates(data: ReportData) -> list[Block]:
    """All conditions of both gates."""
    blocks: list[Block] = [
        Note(
            "A model is pushed if both gates let it pass. The margin is how far a value is on the "
            "right side of what was asked for."
        ),
        Heading("Quality of the model"),
        *_refusal(data.model_verdict),
        *of_part(data.evaluation),
    ]
    if isinstance(data.evaluation, Known):
        blocks.append(_measured(data.evaluation.value.checks))
    blocks += [
        Heading("Trial of the server"),
        *_refusal(data.infra_verdict),
        *of_part(data.validation),
    ]
    if isinstance(data.validation, Known):
        blocks.append(_tried(data.validation.value.checks))
    return blocks


def margin(check: GateCheck) -> str:
    """How far a value is on the right side of its threshold; with a minus on the wrong one."""
    if check.name == _AT_MOST:
        return f"{check.threshold - check.value:+g}"
    if not check.threshold:
        return f"{check.value - check.threshold:+.4f}"
    relative = 100 * (check.value / check.threshold - 1)
    return f"{check.value - check.threshold:+.4f} ({relative:+.1f} %)"


def _refusal(verdict: Part[Verdict]) -> list[Block]:
    if isinstance(verdict, Missing) or verdict.value.blessed:
        return []
    return [Note(f"Refused: {verdict.value.failed or 'no reason recorded'}.", "bad")]


def _measured(checks: list[GateCheck]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for check in checks:
        upper = check.name == _AT_MOST
        show = f"{{:{'g' if upper else '.4f'}}}".format
        rows.append(
            (
                check.name,
                _badge(check.passed),
                show(check.value),
                f"{'≤' if upper else '≥'} {show(check.threshold)}",
                margin(check),
            )
        )
    return Table(
        "Conditions on data, quality and index",
        ("condition", "verdict", "measured", "asked for", "margin"),
        rows,
        numeric=frozenset({2, 3, 4}),
    )


def _tried(checks: list[InfraCheck]) -> Table:
    return Table(
        "Conditions on the served model",
        ("condition", "verdict", "what was tried"),
        [(check.name, _badge(check.passed), check.detail) for check in checks],
    )


def _badge(passed: bool) -> Badge:
    return Badge("passed", "good") if passed else Badge("failed", "bad")
