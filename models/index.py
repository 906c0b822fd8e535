"""Nearest neighbours of a query among the item vectors: exact, and with ScaNN."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from models.settings import IndexSettings

_BRUTE_FORCE_BELOW = 20_000
_HASHED_BELOW = 100_000
_TREE_TRAINING_SAMPLE = 250_000
_TOO_FEW_TO_TRAIN = 100  # ScaNN fails to train a tree or codes on a handful of vectors


class Searcher(Protocol):
    """Finds the items with the largest inner products."""

    def search(self, queries: tf.Tensor, k: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Best k rows for each query, best first.

        Args:
          queries: float [B, D].
          k: int scalar, at most the number of items.

        Returns:
          (scores, rows): float [B, k'] and int32 [B, k'], k' <= k: an approximate searcher may find
          fewer. Places that could not be filled have a score of -inf.
        """


class ExactSearcher(tf.Module):
    """Brute force in TensorFlow core ops; loads anywhere."""

    def __init__(self, vectors: tf.Variable):
        """Shares `vectors` [n, D] with its caller."""
        super().__init__(name="exact")
        self._vectors = vectors

    def search(self, queries: tf.Tensor, k: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """See `Searcher`."""
        return tf.math.top_k(tf.matmul(queries, self._vectors, transpose_b=True), k=k)


class ScannSearcher(tf.Module):
    """ScaNN with the parameters that fit the size of the catalogue.

    The TFRS layer of that name always builds a tree and fixes how many candidates it reorders;
    small catalogues and lists that exclusions make longer need neither.

    Attributes:
      kind: brute_force, hashed or tree.
      n_leaves: of the tree; 0 without one.
    """

    def __init__(self, vectors: npt.NDArray[np.float32], settings: IndexSettings):
        super().__init__(name="scann")
        from scann.scann_ops.py import scann_ops  # loads the ops: only this flavour may

        self._ops = scann_ops
        self._reorder = settings.reorder
        self.kind = index_kind(len(vectors), settings)
        self.n_leaves = round(math.sqrt(len(vectors))) if self.kind == "tree" else 0
        self._rescored = self.kind != "brute_force"
        builder = scann_ops.builder(tf.constant(vectors), settings.top_k, "dot_product")
        if self.n_leaves:
            builder = builder.tree(
                num_leaves=self.n_leaves,
                num_leaves_to_search=self.leaves_to_search(settings.leaves_to_search_share),
                training_sample_size=min(len(vectors), _TREE_TRAINING_SAMPLE),
            )
        if self._rescored:
            # A code for every dimension, not for every two: twice the bytes, but then a third of
            # the candidates need to be rescored for the same recall.
            builder = builder.score_ah(1, anisotropic_quantization_threshold=0.2)
            builder = builder.reorder(min(settings.reorder, len(vectors)))
        else:
            builder = builder.score_brute_force()
        self._state = builder.build().serialize_to_module()

    def leaves_to_search(self, share: float) -> int:
        """How many leaves of the tree that share of them is."""
        return max(1, round(self.n_leaves * share))

    def search(self, queries: tf.Tensor, k: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """See `Searcher`."""
        # A list longer than what is reordered would end in unscored entries.
        return self.search_with(queries, k, tf.maximum(self._reorder, 2 * k))

    def search_with(
        self,
        queries: tf.Tensor,
        k: tf.Tensor,
        reorder: tf.Tensor,
        leaves: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """As `search`, with other parameters than those of the settings.

        Args:
          queries: float [B, D].
          k: int scalar.
          reorder: int scalar, at least k: candidates whose scores are recomputed exactly. Not used
            by brute force.
          leaves: int scalar, leaves to look into; only for a tree.
        """
        searcher = self._ops.searcher_from_module(self._state)
        rows, scores = searcher.search_batched(
            queries,
            final_num_neighbors=k,
            pre_reorder_num_neighbors=reorder if self._rescored else None,
            leaves_to_search=leaves,
        )
        # ScaNN pads what it could not find with NaN.
        valid = tf.math.is_finite(scores)
        infinity = tf.constant(-math.inf, scores.dtype)
        return tf.where(valid, scores, infinity), tf.where(valid, tf.cast(rows, tf.int32), 0)


def index_kind(n_items: int, settings: IndexSettings) -> str:
    """brute_force, hashed or tree, by the settings and the size of the catalogue."""
    if n_items < _TOO_FEW_TO_TRAIN:
        return "brute_force"
    if settings.kind != "auto":
        return settings.kind
    if n_items < _BRUTE_FORCE_BELOW:
        return "brute_force"
    return "hashed" if n_items < _HASHED_BELOW else "tree"


def search_excluding(
    searcher: Searcher,
    exact: Searcher,
    queries: tf.Tensor,
    excluded: tf.Tensor,
    n: int,
    n_items: int,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The best `n` items that are not excluded; never short while items remain.

    Fetches as many more candidates as there are exclusions. Where an approximate searcher still
    comes back short, the batch is searched exactly.

    Args:
      searcher: asked first.
      exact: asked when `searcher` does not fill a list.
      queries: float [B, D].
      excluded: int32 [B, S] item rows, -1 is padding; may repeat.
      n: length of the answer.
      n_items: size of the catalogue.

    Returns:
      (scores, rows): float [B, n] and int32 [B, n]; places that no item is left for have a score
      of -inf and row -1.
    """
    excluded = tf.sort(excluded, axis=1)
    k = tf.minimum(n + tf.shape(excluded)[1], n_items)
    remaining = tf.minimum(n, n_items - _count_distinct(excluded))

    def best(found: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        scores, rows = found
        kept = tf.math.is_finite(scores) & ~_contains(excluded, rows)
        # They come best first: the j-th kept is where the count of kept ones reaches j.
        count = tf.cumsum(tf.cast(kept, tf.int32), axis=1)
        wanted = tf.broadcast_to(tf.range(1, n + 1), [tf.shape(scores)[0], n])
        places = tf.searchsorted(count, wanted)
        scores = tf.pad(scores, [[0, 0], [0, 1]], constant_values=-math.inf)
        rows = tf.pad(rows, [[0, 0], [0, 1]], constant_values=-1)
        return (
            tf.gather(scores, places, axis=1, batch_dims=1),
            tf.gather(rows, places, axis=1, batch_dims=1),
        )

    scores, rows = best(searcher.search(queries, k))
    if searcher is exact:
        return scores, rows
    found = tf.reduce_sum(tf.cast(rows >= 0, tf.int32), axis=1)
    return tf.cond(
        tf.reduce_all(found >= remaining),
        lambda: (scores, rows),
        lambda: best(exact.search(queries, k)),
    )


def _contains(ordered: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """bool [B, C]: whether each of `values` [B, C] is in its row of `ordered` [B, S], ascending."""
    ordered = tf.pad(ordered, [[0, 0], [0, 1]], constant_values=np.iinfo(np.int32).max)
    place = tf.searchsorted(ordered, values)
    return tf.gather(ordered, place, axis=1, batch_dims=1) == values


def _count_distinct(ordered: tf.Tensor) -> tf.Tensor:
    """int32 [B]: number of distinct values >= 0 in each ascending row of [B, S]."""
    previous = tf.pad(ordered, [[0, 0], [1, 0]], constant_values=-1)[:, :-1]
    return tf.reduce_sum(tf.cast((ordered >= 0) & (ordered != previous), tf.int32), axis=1)
