"""Recall and time of the model's index under other search-time parameters, on real queries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.retrieval_evaluator.sampling import sample
from models.index_curve import K, Point, index_curve
from models.queries import Model, Query
from models.settings import IndexSettings
from models.weighting import fuse

_QUERIES = 200


def measure(
    model: Model,
    queries: list[Query],
    vectors: Path,
    weightings: Sequence[Sequence[float]],
    settings: IndexSettings,
    seed: int,
) -> list[dict[str, Any]]:
    """Builds the index anew and sweeps it; see `models.index_curve`.

    Args:
      model: embeds the users.
      queries: the held-out moments, of which a seeded sample is asked.
      vectors: the file with the vectors of the items.
      weightings: the queries are fused by these in turn.
      settings: of the served index.
      seed: of the sample.

    Returns:
      JSON types, one entry per setting.
    """
    blocks, sizes = model.embed(sample(queries, _QUERIES, seed))
    with np.load(vectors) as arrays:
        items = arrays["item_vectors"]
    return [_entry(p) for p in index_curve(items, _fused(blocks, sizes, weightings), settings)]


def _fused(
    blocks: npt.NDArray[np.float32], sizes: Sequence[int], weightings: Sequence[Sequence[float]]
) -> npt.NDArray[np.float32]:
    """[Q, D] query i fused by weighting i, counted round and round."""
    fused = [fuse(blocks, sizes, weights) for weights in weightings]
    return np.stack([fused[i % len(fused)][i] for i in range(len(blocks))])


def _entry(point: Point) -> dict[str, Any]:
    return {
        "kind": point.setting.kind,
        "leaves_to_search_share": point.setting.leaves_share,
        "reorder": point.setting.reorder,
        f"recall@{K}": point.recall,
        "ms_per_query": round(point.ms_per_query, 4),
        "shipped": point.shipped,
    }
