"""Seeded samples of the held-out moments."""

from __future__ import annotations

import numpy as np

from models.queries import Query


def sample(queries: list[Query], limit: int, seed: int) -> list[Query]:
    """At most `limit` of the queries, in their order."""
    if len(queries) <= limit:
        return queries
    chosen = np.random.default_rng(seed).choice(len(queries), limit, replace=False)
    return [queries[i] for i in sorted(chosen)]


def sample_of_each(queries: list[Query], levels: int, limit: int, seed: int) -> list[list[Query]]:
    """For each level, at most `limit` of the queries with a target that reaches it.

    Scarce levels keep what they have: a sample of all queries would hold next to none of them. The
    queries are taken in one random order, so that the samples overlap as much as they can.

    Args:
      queries: the held-out moments.
      levels: how many there are.
      limit: of each sample.
      seed: of the order.
    """
    order = np.random.default_rng(seed).permutation(len(queries))
    shuffled = [queries[i] for i in order]
    return [
        [query for query in shuffled if max(query.target_levels, default=-1) >= level][:limit]
        for level in range(levels)
    ]
