"""How good the model is, and by what: objectives, slices, index, request weights, examples."""

from __future__ import annotations

from pipeline.report import text
from pipeline.report.blocks import Badge, Beside, Block, Cell, Heading, Note, Table
from pipeline.report.data import Missing, ReportData
from pipeline.report.figures.index import recall_against_latency
from pipeline.report.figures.metrics import Contender, Values, by_objective, by_slice
from pipeline.report.figures.pareto import pareto, table
from pipeline.report.recorded import Evaluation, Example, PastItem, RankedItem
from pipeline.report.sections.notes import not_recorded, of_part

_SLICED = "recall@50"
_ANN_CHECK = "index: recall@100 against brute force"


def metrics_section(data: ReportData) -> list[Block]:
    """Candidate, blessed model and popularity."""
    blocks = of_part(data.evaluation)
    if not isinstance(data.evaluation, Missing):
        evaluation = data.evaluation.value
        objectives = [name for name in data.run.objectives if name in evaluation.metrics]
        contenders = _contenders(
            evaluation, evaluation.metrics, evaluation.baseline, evaluation.popularity
        )
        blocks.append(_against(evaluation))
        if objectives:
            names = _metrics(evaluation)
            blocks += [by_objective(contenders, objectives, names), Heading("By slice")]
            blocks += _slices(evaluation, objectives, names)
        if evaluation.distinct:
            rows = [(name, text.count(n)) for name, n in evaluation.distinct.items()]
            blocks.append(
                Table(
                    "Different items in the first ten of all lists",
                    ("objective", "items"),
                    rows,
                    numeric=frozenset({1}),
                )
            )
    return blocks


def index_section(data: ReportData) -> list[Block]:
    """Recall against latency."""
    blocks = of_part(data.evaluation)
    if not isinstance(data.evaluation, Missing):
        evaluation = data.evaluation.value
        if evaluation.ann_recall is not None:
            blocks.append(
                Note(
                    f"On the held-out queries the shipped index finds "
                    f"{100 * evaluation.ann_recall:.2f} % of the exact top 100."
                )
            )
        if evaluation.index_curve:
            asked = {check.name: check.threshold for check in evaluation.checks}
            blocks.append(recall_against_latency(evaluation.index_curve, asked.get(_ANN_CHECK)))
        else:
            blocks.append(not_recorded("the curve of recall against latency is"))
    return blocks


def weights_section(data: ReportData) -> list[Block]:
    """The sweep over request weights."""
    blocks = of_part(data.evaluation)
    if not isinstance(data.evaluation, Missing):
        evaluation = data.evaluation.value
        objectives = data.run.objectives
        chosen = evaluation.weights or {}
        if chosen:
            blocks.append(
                Table(
                    "Request weights at which each objective is measured",
                    ("objective", f"weights ({' : '.join(objectives)})"),
                    [(name, text.weights(values)) for name, values in chosen.items()],
                )
            )
        if not evaluation.pareto:
            blocks.append(not_recorded("the sweep over request weights is"))
        elif len(objectives) < 2:
            blocks.append(table(evaluation.pareto, objectives, [], {}))
        else:
            blocks.append(pareto(evaluation.pareto, objectives, chosen, evaluation.pareto_queries))
    return blocks


def examples_section(data: ReportData) -> list[Block]:
    """What some users would have been recommended."""
    blocks = of_part(data.evaluation)
    if not isinstance(data.evaluation, Missing):
        examples = data.evaluation.value.examples
        if examples:
            blocks.append(
                Note(
                    "Held-out moments, drawn by the seed of the run. A list is what the model "
                    "recommends from what was known then, at that objective's request weights; "
                    "an item that the user did turn to afterwards is marked as a hit."
                )
            )
            for example in examples:
                blocks += _example(example, data.run.objectives)
        elif examples is None:
            blocks.append(not_recorded("examples are"))
        else:
            blocks.append(Note("There is no held-out moment to show."))
    return blocks


def _against(evaluation: Evaluation) -> Note:
    said = f"Measured on {evaluation.queries:,} held-out moments. "
    if evaluation.baseline is None:
        return Note(f"{said}There was no blessed model to compare with.")
    version = evaluation.baseline_version
    return Note(
        f"{said}The blessed model is "
        + ("of an unrecorded version." if version is None else f"version {version}.")
    )


def _contenders(
    evaluation: Evaluation, candidate: Values, blessed: Values | None, popularity: Values | None
) -> list[Contender]:
    version = evaluation.baseline_version
    name = "blessed model" if version is None else f"blessed model (version {version})"
    given = (
        ("candidate", "candidate", candidate),
        ("blessed", name, blessed),
        ("popularity", "popularity", popularity),
    )
    return [Contender(key, name, values) for key, name, values in given if values is not None]


def _metrics(evaluation: Evaluation) -> list[str]:
    return [name for name in next(iter(evaluation.metrics.values())) if "@" in name]


def _slices(evaluation: Evaluation, objectives: list[str], metrics: list[str]) -> list[Block]:
    if not evaluation.slices:
        return [not_recorded("slices are")]
    blocks: list[Block] = []
    if evaluation.popularity_slices is None:
        blocks.append(not_recorded("slices of popularity and of the blessed model are"))
    of_objective = {
        name: _contenders(
            evaluation,
            evaluation.slices[name],
            (evaluation.baseline_slices or {}).get(name),
            (evaluation.popularity_slices or {}).get(name),
        )
        for name in objectives
        if name in evaluation.slices
    }
    if of_objective:
        blocks.append(by_slice(of_objective, _SLICED, metrics))
    return blocks


def _example(example: Example, objectives: tuple[str, ...]) -> list[Block]:
    level = dict(enumerate(objectives))

    def past(title: str, items: list[PastItem]) -> Table:
        return Table(
            title,
            ("title", "item", "reached"),
            [(i.title or i.item, i.item, level.get(i.level, str(i.level))) for i in items],
        )

    hits = {target.item for target in example.targets}
    blocks: list[Block] = [
        Heading(f"User {example.user}"),
        Beside(
            (
                past("History, the newest first", example.history),
                past("What the user turned to afterwards", example.targets),
            )
        ),
    ]
    blocks.append(_lists(example.lists, objectives, hits))
    return blocks


def _lists(
    lists: dict[str, list[RankedItem]], objectives: tuple[str, ...], hits: set[str]
) -> Table:
    names = [name for name in objectives if name in lists]
    longest = max((len(lists[name]) for name in names), default=0)
    rows: list[tuple[Cell, ...]] = []
    for place in range(longest):
        cells: list[Cell] = [str(place + 1)]
        for name in names:
            cells += _ranked(lists[name], place, hits)
        rows.append(tuple(cells))
    columns = [column for name in names for column in (f"for {name}", "score", "hit")]
    scores = frozenset(2 + 3 * place for place in range(len(names)))
    return Table("Recommendations", ("rank", *columns), rows, numeric=scores)


def _ranked(ranking: list[RankedItem], place: int, hits: set[str]) -> list[Cell]:
    if place >= len(ranking):
        return ["", "", ""]
    found = ranking[place]
    hit: Cell = Badge("hit", "good") if found.item in hits else ""
    return [found.title or found.item, f"{found.score:.3f}", hit]
