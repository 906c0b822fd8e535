"""What a method gives: rankings of the test queries, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from models.held_out import HeldOut
from models.timelines import Ints
from models.weighting import fuse

LONGEST_LIST = 100
METRICS: dict[str, tuple[str, int]] = {
    f"{name}@{k}": (name, k) for name in ("recall", "ndcg") for k in (10, 50, 100)
}

Metrics = dict[str, dict[str, float]]  # objective -> metric -> mean over the queries


@dataclass(frozen=True)
class Cost:
    """What a method needs."""

    parameters: int
    index_dimension: int | None  # of all indexes together; None = not a vector index
    training_seconds: float  # of the processor, so that other work on the machine changes little


@dataclass(frozen=True)
class Outcome:
    """One row of a table: a trained method under one way of weighing its objectives."""

    weighting: str
    metrics: Metrics
    cost: Cost
    details: dict[str, Any] = field(default_factory=dict)  # weights, settings, block sizes


def measure(test: HeldOut, objectives: Sequence[str], rankings: Callable[[int], Ints]) -> Metrics:
    """Means of all metrics.

    Args:
      test: the queries.
      objectives: names, first of the funnel first.
      rankings: level -> [Q, LONGEST_LIST] best items for that objective.
    """
    result: Metrics = {}
    for level, objective in enumerate(objectives):
        top = rankings(level)
        functions = {"recall": test.recall, "ndcg": test.ndcg}
        result[objective] = {
            metric: float(np.nanmean(functions[name](top, level, k)))
            for metric, (name, k) in METRICS.items()
        }
    return result


def rank(
    test: HeldOut,
    users: npt.NDArray[np.float32],
    items: npt.NDArray[np.float32],
    block_sizes: Sequence[int],
    weights: Sequence[float],
) -> Ints:
    """[Q, LONGEST_LIST] by the weighted sum of the blocks' scores, which is one inner product.

    Args:
      test: the queries.
      users: [Q, D] blocks, one after the other.
      items: [N, D] blocks.
      block_sizes: of the K blocks.
      weights: of the K blocks.
    """
    return test.top(fuse(users, block_sizes, weights), items, min(LONGEST_LIST, len(items)))
