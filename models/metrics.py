"""Ranking metrics of one list against its relevant items."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence


def recall_at(ranking: Sequence[bytes], relevant: Collection[bytes], k: int) -> float:
    """Share of the relevant items among the first `k`; of at most k, so that 1 can be reached."""
    hits = len(set(ranking[:k]) & set(relevant))
    return hits / min(k, len(relevant))


def ndcg_at(ranking: Sequence[bytes], relevant: Collection[bytes], k: int) -> float:
    """Normalised discounted cumulative gain of the first `k`, binary relevance."""
    wanted = set(relevant)
    gain = sum(1.0 / math.log2(rank + 2) for rank, item in enumerate(ranking[:k]) if item in wanted)
    ideal = sum(1.0 / math.log2(rank + 2) for rank in range(min(k, len(wanted))))
    return gain / ideal


def overlap_at(found: Sequence[bytes], exact: Sequence[bytes], k: int) -> float:
    """Share of the exact list's first `k` that the other list's first `k` holds (ANN recall)."""
    wanted = {item for item in exact[:k] if item}
    return len(wanted & set(found[:k])) / len(wanted) if wanted else 1.0
