"""How the stages learned, and who owns what afterwards."""

from __future__ import annotations

from pipeline.report import text
from pipeline.report.blocks import Block, Heading, Note, Table
from pipeline.report.data import Known, Missing, ReportData
from pipeline.report.figures.ownership import Cut, Owned, importance, ownership
from pipeline.report.figures.training import training
from pipeline.report.recorded import Stage
from pipeline.report.sections.notes import missing, not_recorded
from pipeline.report.timeline import curves


def training_section(data: ReportData) -> list[Block]:
    """Curves of all stages."""
    blocks = _gaps(data)
    stages = [stage for stage in _trained(data) if stage.phases]
    if stages:
        drawn, note = curves(stages)
        blocks += [training(drawn, note), _phases(stages)]
        blocks += _scores(stages)
    else:
        blocks.append(missing("no stage has training curves."))
    return blocks


def ownership_section(data: ReportData) -> list[Block]:
    """Heat map and importance curves."""
    blocks = _gaps(data)
    stages = _trained(data)
    if stages:
        layers, assumed = owned_layers(stages, len(data.run.objectives))
        if assumed:
            blocks.append(
                Note(
                    "The sizes of the layers were not recorded: a layer's neurons are those that "
                    "the stages below own, so what is still to be trained is not shown."
                )
            )
        blocks.append(ownership(layers, [stage.objective for stage in stages]))
        blocks.append(Heading("Importance and the cut of CPP"))
        blocks += _cuts(stages, data.run.objectives)
    return blocks


def owned_layers(stages: list[Stage], n_objectives: int) -> tuple[list[Owned], bool]:
    """Neurons by layer and owner.

    Args:
      stages: those that were trained, in funnel order.
      n_objectives: in all.

    Returns:
      The layers, and whether their sizes are a guess from an unfinished cascade.
    """
    sizes = next((stage.layers for stage in stages if stage.layers), None)
    layers = []
    for name in stages[0].owned:
        by_objective = {stage.objective: stage.owned.get(name, 0) for stage in stages}
        total = (sizes or {}).get(name, sum(by_objective.values()))
        layers.append(Owned(name, total, by_objective))
    return layers, sizes is None and len(stages) < n_objectives


def _gaps(data: ReportData) -> list[Block]:
    blocks: list[Block] = []
    for objective, part in data.stages.items():
        if isinstance(part, Missing):
            blocks.append(missing(f"stage {objective}. {part.reason}"))
        elif part.note:
            blocks.append(Note(f"Stage {objective}: {part.note}"))
    if not data.stages:
        blocks.append(missing("it is not known which objectives there are."))
    return blocks


def _trained(data: ReportData) -> list[Stage]:
    return [part.value for part in data.stages.values() if isinstance(part, Known)]


def _phases(stages: list[Stage]) -> Table:
    return Table(
        "Phases",
        (
            "stage",
            "phase",
            "positives",
            "rounds",
            "kept round",
            "steps",
            "took",
            "validation recall@50",
        ),
        [
            (
                stage.objective,
                phase.name,
                text.count(phase.positives),
                str(len(phase.fitted.losses)),
                str(phase.fitted.kept_round),
                text.count(phase.fitted.steps),
                text.seconds(phase.fitted.seconds),
                text.score(max(phase.fitted.recalls, default=None)),
            )
            for stage in stages
            for phase in stage.phases or ()
        ],
        numeric=frozenset(range(2, 8)),
    )


def _scores(stages: list[Stage]) -> list[Block]:
    rows = [(s.objective, *map(text.score, s.strengths)) for s in stages if s.strengths]
    if not rows:
        return []
    columns = ("stage", "its cosine", "log rate of the item, times T")
    return [Table("What counts how much in a stage's score", columns, rows, frozenset({1, 2}))]


def _cuts(stages: list[Stage], objectives: tuple[str, ...]) -> list[Block]:
    if len(objectives) == 1:
        return [Note("There is one objective, so nothing was pruned.")]
    if all(stage.pruned is None for stage in stages):
        return [not_recorded("the importances are")]
    cuts = [
        Cut(
            stage.stage,
            stage.objective,
            layer,
            tuple(pruned.importance),
            pruned.freed,
            float(stage.settings.get("tau", 0.0)),
            str(stage.settings.get("prune", "")),
        )
        for stage in stages
        for layer, pruned in (stage.pruned or {}).items()
    ]
    return [importance(cuts)] if cuts else [missing("no stage has been pruned yet.")]
