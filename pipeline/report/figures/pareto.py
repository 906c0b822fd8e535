"""What request weights can reach: one objective against the other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from pipeline.report import text
from pipeline.report.blocks import Badge, Figure, Table
from pipeline.report.figures.canvas import (
    INK,
    MUTED,
    draw,
    legend_above,
    objective_colour,
    objective_marker,
)
from pipeline.report.recorded import ParetoPoint


def frontier(points: Sequence[ParetoPoint], first: str, second: str) -> list[int]:
    """Places of the points that no other one beats in both objectives, by `first` ascending."""
    best: list[int] = []
    for place in sorted(
        range(len(points)),
        key=lambda i: (-points[i].recall[first], -points[i].recall[second], i),
    ):
        if not best or points[place].recall[second] > points[best[-1]].recall[second]:
            best.append(place)
    return best[::-1]


def chosen_for(
    points: Sequence[ParetoPoint], chosen: Mapping[str, Sequence[float]]
) -> dict[str, int]:
    """Objective -> place of the point measured at its weights; without those that were not."""
    return {
        objective: place
        for objective, weights in chosen.items()
        for place, point in enumerate(points)
        if _direction(point.weights) == _direction(weights)
    }


def pareto(
    points: Sequence[ParetoPoint],
    objectives: Sequence[str],
    chosen: Mapping[str, Sequence[float]],
    queries: int | None,
) -> Figure:
    """The last two objectives against each other.

    Args:
      points: of the sweep.
      objectives: at least two.
      chosen: objective -> weights at which it is measured.
      queries: how many the sweep was measured on.
    """
    first, second = objectives[-2:]
    best = frontier(points, first, second)
    marked = chosen_for(points, chosen)
    unmarked = [name for name in chosen if name not in marked]

    def paint(canvas: Canvas) -> None:
        axes = canvas.subplots()
        axes.plot(
            [point.recall[first] for point in points],
            [point.recall[second] for point in points],
            linestyle="none",
            marker=".",
            color=MUTED,
            markersize=7,
        )
        axes.plot(
            [points[i].recall[first] for i in best],
            [points[i].recall[second] for i in best],
            color=INK,
            linewidth=1.6,
            marker=".",
            markersize=9,
        )
        for size, (name, place) in enumerate(marked.items()):
            stage = list(objectives).index(name)
            axes.plot(
                [points[place].recall[first]],
                [points[place].recall[second]],
                linestyle="none",
                marker=objective_marker(stage),
                markersize=max(7, 16 - 3 * size),  # so that those on one point are all seen
                markeredgewidth=2,
                color=objective_colour(stage),
                markerfacecolor="none",
            )
        axes.set_xlabel(f"recall@50 of {first}")
        axes.set_ylabel(f"recall@50 of {second}")
        axes.margins(0.08)
        handles = [
            Line2D([], [], linestyle="none", marker=".", color=MUTED),
            Line2D([], [], marker=".", color=INK),
        ]
        labels = ["a choice of weights", "frontier"]
        for name in marked:
            stage = list(objectives).index(name)
            handles.append(
                Line2D(
                    [],
                    [],
                    linestyle="none",
                    marker=objective_marker(stage),
                    markersize=9,
                    markeredgewidth=2,
                    color=objective_colour(stage),
                    markerfacecolor="none",
                )
            )
            labels.append(f"chosen for {name}")
        legend_above(canvas, handles, labels)

    sample = "" if queries is None else f" Measured on a sample of {queries:,} queries."
    return Figure(
        svg=draw("pareto", 4.0, paint),
        alt=f"Recall of {first} against {second} over request weights. Frontier: "
        + "; ".join(
            f"weights {text.weights(points[i].weights)}: {first} {points[i].recall[first]:.4f}, "
            f"{second} {points[i].recall[second]:.4f}"
            for i in best
        ),
        caption="How to read it: each point is one choice of request weights, the same model in "
        f"all of them; right is better for {first}, up for {second}. On the frontier, neither can "
        "be raised without lowering the other; a point below it wastes something. Weights are "
        f"in funnel order ({' : '.join(objectives)}); only their ratios count.{sample}"
        + (
            f" The weights chosen for {', '.join(unmarked)} are not among those of the sweep, so "
            "they are not marked."
            if unmarked
            else ""
        ),
        table=table(points, objectives, best, marked),
    )


def table(
    points: Sequence[ParetoPoint],
    objectives: Sequence[str],
    best: Sequence[int],
    marked: Mapping[str, int],
) -> Table:
    """All points of the sweep; those of the frontier say so."""
    of_place: dict[int, list[str]] = {}
    for name, place in marked.items():
        of_place.setdefault(place, []).append(name)
    return Table(
        "Sweep over request weights",
        ("weights", *(f"recall@50 of {name}" for name in objectives), "frontier", "chosen for"),
        [
            (
                text.weights(point.weights),
                *(text.score(point.recall.get(name)) for name in objectives),
                Badge("frontier", "neutral") if place in best else "",
                ", ".join(of_place.get(place, [])),
            )
            for place, point in enumerate(points)
        ],
        numeric=frozenset(range(1, 1 + len(objectives))),
        folded=True,
    )


def _direction(weights: Sequence[float]) -> tuple[float, ...]:
    """The weights at length 1, because their ratios alone make the ranking."""
    length = math.hypot(*weights) or 1.0
    return tuple(round(weight / length, 6) for weight in weights)
