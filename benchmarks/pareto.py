"""`csmf bench pareto`: the request weights of ONE index, swept; every baseline as a point."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.methods import train_cascade
from benchmarks.outcome import rank
from benchmarks.split import Split
from models.weighting import item_blocks, user_blocks

SWEPT = (0.0, 0.1, 0.2, 0.35, 0.6, 1.0, 1.7, 3.0, 5.0)
_K = 50


@dataclass(frozen=True)
class Point:
    """Recall@50 of the last two objectives at one weighting, or of one baseline."""

    label: str
    weights: tuple[float, ...]  # empty for a baseline
    first: float  # of the objective before the last
    second: float  # of the last


def sweep(split: Split, seed: int) -> list[Point]:
    """Trains CSMF once and measures its index at every combination of `SWEPT` weights.

    The first block weighs 1; a second family of points leaves it out.
    """
    towers = train_cascade(split, seed)[0].served
    users, items = user_blocks(towers, split.test), item_blocks(towers, split.data.item_features)
    k = split.spec.n_objectives
    combinations = [(1.0, *rest) for rest in itertools.product(SWEPT, repeat=k - 1)] + [
        (0.0, *rest) for rest in itertools.product((0.0, 0.5, 1.0), repeat=k - 1) if any(rest)
    ]
    points = []
    for weights in combinations:
        top = rank(split.test, users, items, towers.block_sizes(), weights)
        before, last = (
            float(np.nanmean(split.test.recall(top, level, _K))) for level in (k - 2, k - 1)
        )
        points.append(Point("csmf", weights, before, last))
    return points


def baselines(path: Path, objectives: list[str], dimension: int) -> list[Point]:
    """Means over the seeds of every row of a `csmf bench quality` file but CSMF's own."""
    values: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for record in content["records"]:
        wanted = record["metric"] == f"recall@{_K}" and record["dimension"] == dimension
        if wanted and record["method"] != "csmf":
            values[record["method"], record["weighting"]][record["objective"]].append(
                record["value"]
            )
    return [
        Point(
            f"{method} ({weighting})",
            (),
            float(np.mean(by_objective[objectives[-2]])),
            float(np.mean(by_objective[objectives[-1]])),
        )
        for (method, weighting), by_objective in values.items()
    ]


def front(points: list[Point]) -> list[Point]:
    """The points that no other one beats in both recalls, by the first of them."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.first, -p.second)):
        if not best or point.second > best[-1].second:
            best.append(point)
    return best[::-1]


def plot(points: list[Point], others: list[Point], objectives: list[str], path: Path) -> None:
    """Draws the sweep, its front, and the baselines; the format follows the file's name."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 7))
    axes.scatter(
        [p.first for p in points],
        [p.second for p in points],
        s=14,
        color="#9ecae1",
        label="CSMF: one index, request weights swept",
    )
    best = front(points)
    axes.plot(
        [p.first for p in best],
        [p.second for p in best],
        color="#08519c",
        marker="o",
        markersize=4,
        label="CSMF: its Pareto front",
    )
    alone = next(p for p in points if p.weights[0] == 1 and not any(p.weights[1:]))
    axes.scatter(
        [alone.first], [alone.second], marker="*", s=180, color="#08519c", label="its first head"
    )
    markers = itertools.cycle("sD^vP<>Xhp")
    for place, point in enumerate(others):
        axes.scatter(
            [point.first],
            [point.second],
            marker=next(markers),
            color=pyplot.cm.tab20(place % 20),
            label=point.label,
        )
    axes.set_xlabel(f"{objectives[-2]} Recall@{_K}")
    axes.set_ylabel(f"{objectives[-1]} Recall@{_K}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)
