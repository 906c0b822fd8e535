"""What the weights of a request trade: one index, asked under a fixed sweep of weightings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from components.retrieval_evaluator.sampling import sample_of_each
from models.metrics import recall_at
from models.queries import Lists, Model, Query

_K = 50
METRIC = f"recall@{_K}"
_MOST_POINTS = 21  # of the grid
_QUERIES = 500  # of each objective

Weighting = tuple[float, ...]


def weightings(n_objectives: int, others: Iterable[Sequence[float]]) -> list[Weighting]:
    """The sweep for K objectives: an even grid over all mixes, and a few others.

    The grid is the simplex lattice: every way to deal out m equal parts of 1 to the objectives. Its
    corners are the objectives alone. m is the largest that keeps it within 21 points (20 for two
    objectives, 5 for three, 3 for four), so that its size hardly depends on K. Scores scale with
    the weights and lists do not change, so nothing is lost by weights that sum up to 1.

    Args:
      n_objectives: K, at least 1.
      others: weightings to measure besides, e.g. those that the model serves with.

    Returns:
      Distinct up to scale: the others as they are given, then the corners, then what lies between.
    """
    parts = 1
    while n_objectives > 1 and _lattice_size(n_objectives, parts + 1) <= _MOST_POINTS:
        parts += 1
    grid = [
        tuple(share / parts for share in shares)
        for shares in itertools.product(range(parts + 1), repeat=n_objectives)
        if sum(shares) == parts
    ]
    grid.sort(key=lambda weights: (-max(weights), [-w for w in weights]))
    chosen: dict[Weighting, Weighting] = {}
    for weighting in (*(tuple(map(float, given)) for given in others), *grid):
        chosen.setdefault(_direction(weighting), weighting)
    return list(chosen.values())


def _lattice_size(n_objectives: int, parts: int) -> int:
    return math.comb(parts + n_objectives - 1, n_objectives - 1)


def _direction(weights: Weighting) -> Weighting:
    length = math.sqrt(sum(weight * weight for weight in weights)) or 1.0
    return tuple(round(weight / length, 6) for weight in weights)


def trade_off(
    model: Model,
    queries: list[Query],
    objectives: Sequence[str],
    weights: Mapping[str, Sequence[float]],
    seed: int,
) -> dict[str, Any]:
    """Sweeps the weights on a seeded sample of queries.

    Args:
      model: is asked.
      queries: the held-out moments.
      objectives: names.
      weights: objective -> request weights that the model is measured at; part of the sweep.
      seed: of the sample.

    Returns:
      `pareto`: see `sweep`; `pareto_queries`: how many were asked.
    """
    samples = sample_of_each(queries, len(objectives), _QUERIES, seed)
    mixes = weightings(len(objectives), [*weights.values(), [1.0] * len(objectives)])
    return {
        "pareto": sweep(samples, objectives, mixes, model.recommend),
        "pareto_queries": len(distinct(samples)),
    }


def sweep(
    samples: Sequence[list[Query]],
    objectives: Sequence[str],
    weightings: Iterable[Weighting],
    recommend: Callable[[list[Query], list[float]], Lists],
) -> list[dict[str, Any]]:
    """Recall@50 of every objective at every weighting.

    Args:
      samples: for each objective, the queries that it is measured on; they may overlap.
      objectives: names.
      weightings: request weights.
      recommend: the model.

    Returns:
      For each weighting: `weights`, and `recall@50` by objective.
    """
    asked = distinct(samples)
    places = {id(query): place for place, query in enumerate(asked)}
    relevant = [
        [(places[id(query)], query.targets_at(level)) for query in samples[level]]
        for level in range(len(objectives))
    ]
    points = []
    for weighting in weightings:
        lists = recommend(asked, list(weighting))
        recalls = {
            name: [recall_at(lists[place], items, _K) for place, items in of_level]
            for name, of_level in zip(objectives, relevant, strict=True)
        }
        points.append(
            {
                "weights": list(weighting),
                METRIC: {name: float(np.mean(r)) if r else 0.0 for name, r in recalls.items()},
            }
        )
    return points


def distinct(samples: Iterable[Iterable[Query]]) -> list[Query]:
    """Every query of the samples once."""
    return list({id(query): query for query in itertools.chain(*samples)}.values())
