"""Metrics of lists of recommendations against the held-out events. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from components.retrieval_evaluator.settings import METRICS
from models.metrics import ndcg_at, overlap_at, recall_at
from models.queries import Query

Ranking = Sequence[bytes]
_FUNCTIONS: dict[str, Callable[..., float]] = {"recall": recall_at, "ndcg": ndcg_at}

# Events in the history at the held-out moment: upper bounds, None = no bound.
_ACTIVITY = (("under 10 events", 10), ("10 to 49 events", 50), ("50 events or more", None))
# Items from the most to the least popular in training: upper bound as a share of all items.
_POPULARITY = (("head: top 10 % of items", 0.1), ("middle: next 40 %", 0.5), ("tail", 1.0))


def mean_metrics(
    rankings: Sequence[Ranking], relevant: Sequence[Sequence[bytes]]
) -> dict[str, float]:
    """Mean of every metric of `METRICS` over the queries that have a relevant item.

    Args:
      rankings: one list per query, best first.
      relevant: the relevant items of each query; queries without any are left out.
    """
    pairs = [(ranking, items) for ranking, items in zip(rankings, relevant, strict=True) if items]
    result = {"queries": float(len(pairs))}
    for metric in METRICS:
        name, k = metric.split("@")
        values = [_FUNCTIONS[name](ranking, items, int(k)) for ranking, items in pairs]
        result[metric] = float(np.mean(values)) if values else 0.0
    return result


def slice_metrics(
    queries: Sequence[Query],
    rankings: Sequence[Ranking],
    level: int,
    popularity_rank: dict[bytes, float],
) -> dict[str, dict[str, float]]:
    """`mean_metrics` by user activity, and by popularity of the relevant items.

    Args:
      queries: the held-out moments.
      rankings: one list per query.
      level: of the objective.
      popularity_rank: item -> its place among all items by training events, from 0 (most popular)
        to 1; an item without training events counts as the least popular.
    """
    result = {}
    lower = 0
    for name, upper in _ACTIVITY:
        inside = [
            lower <= len(q.history) and (upper is None or len(q.history) < upper) for q in queries
        ]
        result[f"user: {name}"] = mean_metrics(
            rankings,
            [q.targets_at(level) if here else [] for q, here in zip(queries, inside, strict=True)],
        )
        lower = upper or 0
    below = 0.0
    for name, share in _POPULARITY:
        last = share == 1.0
        result[f"item: {name}"] = mean_metrics(
            rankings,
            [
                [
                    item
                    for item in query.targets_at(level)
                    if below <= popularity_rank.get(item, 1.0)
                    and (last or popularity_rank.get(item, 1.0) < share)
                ]
                for query in queries
            ],
        )
        below = share
    return result


def mean_overlap(found: Sequence[Ranking], exact: Sequence[Ranking], k: int) -> float:
    """Mean share of the exact first `k` that the approximate first `k` holds."""
    return float(np.mean([overlap_at(f, e, k) for f, e in zip(found, exact, strict=True)]))
