"""What an index gives up for its speed: its search-time parameters swept on real queries."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from models.index import ScannSearcher, index_kind
from models.settings import IndexSettings

K = 100
_TIMED = 60  # queries, one at a time
_WARM_UP = 5
_LEAVES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 1.0)  # shares of the leaves
_REORDERED = (100, 200, 400, 800, 1600)  # candidates
_BATCH = 32
_TIE = 1e-5  # of the largest score: items this close stand for each other

Vectors = npt.NDArray[np.float32]
Search = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


@dataclass(frozen=True)
class Setting:
    """Search-time parameters of one index; None = the kind of index has none."""

    kind: str
    leaves_share: float | None
    reorder: int | None


@dataclass(frozen=True)
class Point:
    """What one setting finds, and how long it takes."""

    setting: Setting
    recall: float  # share of the exact best K that it finds
    ms_per_query: float  # median of queries asked one at a time
    shipped: bool  # the setting that the model serves with


def index_curve(vectors: Vectors, queries: Vectors, settings: IndexSettings) -> list[Point]:
    """Measures the served setting and its neighbours.

    One index of the served kind is built and swept. Where that is brute force because the catalogue
    is small, a hashed index is added: what the next kind would give.

    Args:
      vectors: [n, D] of the items.
      queries: [Q, D].
      settings: of the served index.
    """
    k = min(K, len(vectors))
    least = kth_best(vectors, queries, k)
    points = []
    for searcher, served in _searchers(vectors, settings):
        shipped = _shipped(searcher.kind, settings, k)
        for setting in sweep(searcher.kind, settings, len(vectors)):
            search = _search(searcher, setting, k)
            points.append(
                Point(
                    setting=setting,
                    recall=recall(vectors, queries, least, _found(search, queries, k)),
                    ms_per_query=_milliseconds(search, queries),
                    shipped=served and setting == shipped,
                )
            )
    return points


def sweep(kind: str, settings: IndexSettings, n_items: int) -> list[Setting]:
    """The settings to measure, the served one among them: one parameter is varied at a time."""
    served = _shipped(kind, settings, min(K, n_items))
    if served.reorder is None:
        return [served]
    reordered = {n for n in _REORDERED if min(K, n_items) <= n <= n_items} | {served.reorder}
    points = [Setting(kind, served.leaves_share, n) for n in reordered]
    if served.leaves_share is not None:
        shares = {*_LEAVES, served.leaves_share}
        points += [Setting(kind, share, served.reorder) for share in shares]
    return sorted(set(points), key=lambda s: (s.leaves_share or 0.0, s.reorder or 0))


def kth_best(vectors: Vectors, queries: Vectors, k: int) -> npt.NDArray[np.float32]:
    """[Q, 1] the exact k-th best score of every query, a little less so that ties pass."""
    least = []
    for query in queries:  # one at a time: all scores together can be large
        scores = vectors @ query
        least.append(np.partition(scores, -k)[-k] - _TIE * np.abs(scores).max())
    return np.asarray(least, np.float32)[:, None]


def recall(
    vectors: Vectors,
    queries: Vectors,
    least: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int32],
) -> float:
    """Mean share of the rows [Q, k] whose score is at least `least` [Q, 1]; -1 is no row."""
    scores = np.einsum("qkd,qd->qk", vectors[rows], queries)
    return float(np.mean((rows >= 0) & (scores >= least)))


def _searchers(vectors: Vectors, settings: IndexSettings) -> Iterator[tuple[ScannSearcher, bool]]:
    """Indexes to measure, and whether each is the served one."""
    served = ScannSearcher(vectors, settings)
    yield served, True
    hashed = settings.model_copy(update={"kind": "hashed"})
    small = settings.kind == "auto" and served.kind == "brute_force"
    if small and index_kind(len(vectors), hashed) == "hashed":  # not if there are but a few
        yield ScannSearcher(vectors, hashed), False


def _shipped(kind: str, settings: IndexSettings, k: int) -> Setting:
    """What `ScannSearcher.search` asks for a list of `k`."""
    if kind == "brute_force":
        return Setting(kind, None, None)
    share = settings.leaves_to_search_share if kind == "tree" else None
    return Setting(kind, share, max(settings.reorder, 2 * k))


def _search(searcher: ScannSearcher, setting: Setting, k: int) -> Search:
    leaves = (
        None if setting.leaves_share is None else searcher.leaves_to_search(setting.leaves_share)
    )

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.float32)])
    def search(queries: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return searcher.search_with(queries, k, setting.reorder, leaves)

    return search


def _found(search: Search, queries: Vectors, k: int) -> npt.NDArray[np.int32]:
    """[Q, k] rows, -1 where an index found fewer."""
    parts = []
    for start in range(0, len(queries), _BATCH):
        scores, rows = (part.numpy() for part in search(queries[start : start + _BATCH]))
        rows = np.where(np.isfinite(scores), rows, -1)
        parts.append(np.pad(rows, ((0, 0), (0, k - rows.shape[1])), constant_values=-1))
    return np.concatenate(parts)


def _milliseconds(search: Search, queries: Vectors) -> float:
    singles = [tf.constant(query[None, :]) for query in queries[: _WARM_UP + _TIMED]]
    seconds = []
    for single in singles:
        started = time.perf_counter()
        search(single)[0].numpy()
        seconds.append(time.perf_counter() - started)
    return 1000 * float(np.median(seconds[_WARM_UP:] or seconds))
