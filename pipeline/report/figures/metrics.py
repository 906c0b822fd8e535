"""The candidate beside the blessed model and popularity, by objective and by slice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from pipeline.report import text
from pipeline.report.blocks import Figure, Table
from pipeline.report.figures.canvas import MUTED, draw, legend_above

Values = Mapping[str, Mapping[str, float]]  # row -> metric -> value

_QUERIES = "queries"
_COLUMNS = 3
_MARKS = {  # colour, marker, size; where they meet, all are still seen
    "candidate": ("#0072B2", "o", 6),
    "blessed": ("#D55E00", "D", 9),
    "popularity": (MUTED, "x", 7),
}


@dataclass(frozen=True)
class Contender:
    """One of the three.

    Attributes:
      key: candidate, blessed or popularity.
      name: for people.
      values: objective (or slice) -> metric -> value.
    """

    key: str
    name: str
    values: Values


def by_objective(
    contenders: Sequence[Contender], objectives: Sequence[str], metrics: Sequence[str]
) -> Figure:
    """One panel per metric, one row per objective."""

    def paint(canvas: Canvas) -> None:
        panels = canvas.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for panel, metric in zip(panels, metrics, strict=True):
            _rows(panel, contenders, objectives, metric)
            panel.set_title(metric)
        panels[0].set_yticks(range(len(objectives)), objectives)
        panels[0].invert_yaxis()
        _legend(canvas, contenders)

    return Figure(
        svg=draw("metrics", 1.0 + 0.38 * len(objectives), paint),
        alt="Metrics by objective. "
        + "; ".join(
            f"{objective} {metric}: "
            + ", ".join(
                f"{contender.name} {text.score(contender.values[objective].get(metric))}"
                for contender in contenders
                if objective in contender.values
            )
            for metric in metrics[:2]
            for objective in objectives
        ),
        caption="How to read it: further right is better. The line joins the best and the worst of "
        "an objective; the candidate should be at its right end. Each objective is measured at the "
        "request weights that serve it, on the held-out events that reach it.",
        table=_table(contenders, objectives, metrics),
    )


def by_slice(
    of_objective: Mapping[str, Sequence[Contender]], metric: str, metrics: Sequence[str]
) -> Figure:
    """One panel per objective, one row per slice.

    Args:
      of_objective: objective -> contenders with values by slice.
      metric: the one that is drawn.
      metrics: those in the table.
    """
    slices = list(next(iter(of_objective.values()))[0].values)
    columns = min(_COLUMNS, len(of_objective))
    rows = math.ceil(len(of_objective) / columns)

    def paint(canvas: Canvas) -> None:
        panels = canvas.subplots(rows, columns, sharey=True, squeeze=False).flat
        for panel in panels[len(of_objective) :]:
            panel.set_visible(False)
        for panel, (objective, contenders) in zip(panels, of_objective.items(), strict=False):
            _rows(panel, contenders, slices, metric)
            panel.set_title(objective)
            panel.set_xlabel(metric)
        panels[0].set_yticks(range(len(slices)), slices)
        panels[0].invert_yaxis()
        _legend(canvas, next(iter(of_objective.values())))

    return Figure(
        svg=draw("slices", 0.4 + rows * (0.7 + 0.32 * len(slices)), paint),
        alt=f"{metric} by slice. "
        + "; ".join(
            f"{objective}, {name}: {text.score(contenders[0].values[name].get(metric))}"
            for objective, contenders in of_objective.items()
            for name in slices
        ),
        caption="How to read it: rows are groups of users by the length of their history, and of "
        "held-out items by their popularity in training; further right is better. Where the cross "
        "of popularity is at the right, a list of the most popular items serves that group better "
        "than the model does.",
        table=Table(
            "Metrics by slice",
            ("objective", "slice", "model", _QUERIES, *metrics),
            [
                (objective, *row)
                for objective, contenders in of_objective.items()
                for row in _value_rows(contenders, slices, metrics)
            ],
            numeric=frozenset(range(3, 4 + len(metrics))),
            folded=True,
        ),
    )


def _rows(panel: Axes, contenders: Sequence[Contender], rows: Sequence[str], metric: str) -> None:
    for place, row in enumerate(rows):
        found = [
            (contender, contender.values[row][metric])
            for contender in contenders
            if metric in contender.values.get(row, {})
        ]
        values = [value for _, value in found]
        if values:
            panel.plot([min(values), max(values)], [place, place], color="#d1d9e0", linewidth=1.5)
        for contender, value in found:
            panel.plot([value], [place], linestyle="none", clip_on=False, **_look(contender.key))
    panel.set_xlim(0, 1.12 * _largest(contenders, metric))
    panel.xaxis.set_major_locator(MaxNLocator(4))
    panel.margins(y=0.12)
    panel.grid(axis="y", visible=False)


def _largest(contenders: Sequence[Contender], metric: str) -> float:
    """Of all rows; 1 where nothing is above 0."""
    found = [row.get(metric, 0.0) for contender in contenders for row in contender.values.values()]
    return max(found, default=0.0) or 1.0


def _look(key: str) -> dict[str, Any]:
    colour, marker, size = _MARKS[key]
    return {
        "marker": marker,
        "color": colour,
        "markersize": size,
        "markerfacecolor": "none" if key == "blessed" else colour,
        "markeredgewidth": 1.6,
    }


def _legend(canvas: Canvas, contenders: Sequence[Contender]) -> None:
    handles = [Line2D([], [], linestyle="none", **_look(c.key)) for c in contenders]
    legend_above(canvas, handles, [contender.name for contender in contenders])


def _table(
    contenders: Sequence[Contender], objectives: Sequence[str], metrics: Sequence[str]
) -> Table:
    rows = []
    candidate = contenders[0]
    for objective in objectives:
        rows += _value_rows(contenders, [objective], metrics)
        for other in contenders[1:]:
            if objective not in other.values or objective not in candidate.values:
                continue
            ours, theirs = candidate.values[objective], other.values[objective]
            compared = text.times if other.key == "popularity" else text.change
            rows.append(
                (
                    objective,
                    f"candidate against {other.name}",
                    "",
                    *(compared(ours.get(m, 0.0), theirs.get(m, 0.0)) for m in metrics),
                )
            )
    return Table(
        "Metrics by objective",
        ("objective", "model", _QUERIES, *metrics),
        rows,
        numeric=frozenset(range(2, 3 + len(metrics))),
    )


def _value_rows(
    contenders: Sequence[Contender], rows: Sequence[str], metrics: Sequence[str]
) -> list[tuple[str, ...]]:
    return [
        (
            row,
            contender.name,
            text.count(contender.values[row].get(_QUERIES, float("nan"))),
            *(text.score(contender.values[row].get(metric)) for metric in metrics),
        )
        for row in rows
        for contender in contenders
        if row in contender.values
    ]
