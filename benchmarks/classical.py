"""The baselines outside the tower family: popularity, item-kNN, iALS and EASE.

They read a user as the set of items in the history, without order or times. For each objective
level, the settings are those of the best Recall@50 on the validation queries. The same sweep
applies to all data; one row is one value of the column times all values of the others:

  method      fitted on      history read at  settings
  popularity  0, own level   (not read)
  item-knn    0, own level   0, own level     cosine or BM25; 50, 200 or 1000 neighbours
  ials        0, own level   0, own level     regularization 0.01, 1 or 10; alpha 1, 5 or 20
  ease        0, own level   0, own level     regularization 30, 100, 300 or 1000
  ease, over  0              0                regularization 100 or 300
  4,000 items

"Fitted on l" and "read at l" mean: only interactions of at least level l. EASE inverts a matrix of
items by items, about a minute each at 8,700 items, hence the smaller sweep.

References: iALS: Hu et al. 2008, as implemented in `implicit`, like item-kNN. EASE: Steck 2019.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import threadpoolctl
from implicit.als import AlternatingLeastSquares
from implicit.nearest_neighbours import ItemItemRecommender, bm25_weight, normalize
from scipy import sparse
from scipy.linalg import lapack

from models.held_out import HeldOut
from models.stages import RECALL_AT
from models.timelines import Ints, Timelines

Vectors = npt.NDArray[np.float32]
Values = Mapping[str, Any]

NAMES = ("popularity", "item-knn", "ials", "ease")

_BATCH = 512
_MANY_ITEMS = 4000
# Below every score that a method gives for a reason, and far above float32's smallest number.
_TIE = 1e-6


class Interactions:
    """Who met what in the training events, at `level` or above: 1 or 0, context included."""

    def __init__(self, timelines: Timelines, level: int, n_items: int):
        used = (timelines.items >= 0) & (timelines.levels >= level)
        self.matrix = _binary(
            timelines.timeline_of[used], timelines.items[used], (len(timelines), n_items)
        )

    @functools.cached_property
    def popularity(self) -> Vectors:
        """[N] number of users of each item."""
        return np.asarray(self.matrix.sum(axis=0), np.float32).ravel()

    @functools.cached_property
    def together(self) -> Vectors:
        """[N, N] number of users of each pair of items."""
        return (self.matrix.T @ self.matrix).toarray()


@dataclass(frozen=True)
class Model:
    """A fitted method. `scores` maps histories, a binary CSR matrix [B, N], to scores [B, N]."""

    scores: Callable[[sparse.csr_matrix], Vectors]
    n_learnt: int
    popularity: Vectors  # [N] of the interactions it was fitted on

    def top(self, held_out: HeldOut, history_level: int, k: int) -> Ints:
        """[Q, k] the best new items of each query, -1 where fewer remain.

        A score of exactly 0 says nothing (an empty history, or no neighbour of any item in it).
        Such items are ordered by popularity, below the items with a positive score.
        """
        histories = _histories(held_out, history_level, len(self.popularity))
        by_popularity = self.popularity * np.float32(_TIE / max(1.0, self.popularity.max()))
        top = np.full((len(held_out), k), -1, np.int32)
        width = min(k, len(self.popularity))
        for start in range(0, len(held_out), _BATCH):
            scores = self.scores(histories[start : start + _BATCH])
            scores = np.where(scores == 0, by_popularity, scores)
            top[start : start + _BATCH, :width] = held_out.top_of(scores, start, width)
        return top


@dataclass(frozen=True)
class Method:
    """How a method is fitted, and the sweep that it is tuned with."""

    fit: Callable[[Interactions, Values], Model]
    grid: tuple[Values, ...]
    by_fitted_level: bool = True
    by_history_level: bool = True

    def fitted_levels(self, level: int) -> list[int]:
        """The levels of interactions to fit on when the objective is `level`."""
        return sorted({0, level}) if self.by_fitted_level else [0]

    def history_levels(self, level: int) -> list[int]:
        """The levels at which to read the query's history when the objective is `level`."""
        return sorted({0, level}) if self.by_history_level else [0]


@dataclass(frozen=True)
class ClassicalResult:
    """One method, tuned and fitted for each objective level separately."""

    models: tuple[Model, ...]  # by level; levels with equal settings share a model
    settings: tuple[dict[str, Any], ...]  # by level, can be written as JSON
    parameters: int  # learnt numbers that ranking reads, of all different models together
    index_dimension: int | None  # None where ranking is no search over item vectors
    seconds: float  # to fit the chosen settings on all data, mean over the levels
    sweep_seconds: float

    def rankings(self, level: int, held_out: HeldOut, k: int = 100) -> Ints:
        """[Q, k] the best new items of each query for the objective, -1 where fewer remain."""
        return self.models[level].top(held_out, self.settings[level]["history_level"], k)


@dataclass(frozen=True)
class _Choice:
    fitted_level: int
    history_level: int
    values: int  # place in the grid


def fit_classical(
    name: str,
    training: Timelines,
    validation: HeldOut,
    full: Timelines,
    n_items: int,
    dimension: int,
    seed: int,
) -> ClassicalResult:
    """Tunes one method on validation queries and fits it on all data.

    Args:
      name: one of `NAMES`.
      training: events without those that validation holds out.
      validation: the queries to tune on.
      full: training and validation events.
      n_items: size of the item vocabulary.
      dimension: of the vectors of iALS.
      seed: of the first vectors of iALS.

    Raises:
      ValueError: an unknown name, or a level of `full` has no target in `validation`.
    """
    levels = range(int(full.levels.max(initial=-1)) + 1)
    for level in levels:
        if not (validation.target_levels >= level).any():
            raise ValueError(f"no validation target reaches level {level}")
    method = make_method(name, n_items, dimension, seed)
    start = time.process_time()
    chosen = [_best(scores) for scores in _sweep(method, training, validation, n_items, levels)]
    sweep_seconds = time.process_time() - start

    fitted: dict[tuple[int, int], tuple[Model, float]] = {}
    for choice in chosen:
        key = choice.fitted_level, choice.values
        if key not in fitted:
            start = time.process_time()
            interactions = Interactions(full, choice.fitted_level, n_items)
            model = method.fit(interactions, method.grid[choice.values])
            fitted[key] = model, time.process_time() - start
    by_level = [fitted[choice.fitted_level, choice.values] for choice in chosen]
    return ClassicalResult(
        models=tuple(model for model, _ in by_level),
        settings=tuple(
            {
                "fitted_level": choice.fitted_level,
                "history_level": choice.history_level,
                **method.grid[choice.values],
            }
            for choice in chosen
        ),
        parameters=sum(model.n_learnt for model, _ in fitted.values()),
        index_dimension=dimension if name == "ials" else None,
        seconds=float(np.mean([seconds for _, seconds in by_level])),
        sweep_seconds=sweep_seconds,
    )


def make_method(name: str, n_items: int, dimension: int, seed: int) -> Method:
    """The method of this name with its sweep.

    Raises:
      ValueError: an unknown name.
    """
    if name == "popularity":
        return Method(fit_popularity, ({},), by_history_level=False)
    if name == "item-knn":
        return Method(
            fit_neighbours,
            _product(similarity=("cosine", "bm25"), neighbours=(50, 200, 1000)),
        )
    if name == "ials":
        grid = _product(
            regularization=(0.01, 1.0, 10.0),
            alpha=(1.0, 5.0, 20.0),
            factors=(dimension,),
            iterations=(15,),
            random_state=(seed,),
        )
        return Method(fit_ials, grid)
    if name == "ease":
        if n_items > _MANY_ITEMS:
            grid = _product(regularization=(100.0, 300.0))
            return Method(fit_ease, grid, by_fitted_level=False, by_history_level=False)
        return Method(fit_ease, _product(regularization=(30.0, 100.0, 300.0, 1000.0)))
    raise ValueError(f"unknown method {name!r}: one of {', '.join(NAMES)}")


def fit_popularity(interactions: Interactions, values: Values) -> Model:
    """The same list for all users: items by their number of users."""
    counts = interactions.popularity
    return Model(lambda histories: np.tile(counts, (histories.shape[0], 1)), len(counts), counts)


def fit_neighbours(interactions: Interactions, values: Values) -> Model:
    """Sum of the similarities to the items in the history, each item with its best neighbours."""
    # What implicit's CosineRecommender and BM25Recommender do, which hand over a matrix in a format
    # that implicit then warns about.
    by_item = interactions.matrix.T
    if values["similarity"] == "cosine":
        weighted = normalize(by_item)
    else:
        weighted = bm25_weight(by_item, K1=1.2, B=0.75)
    with _one_blas_thread():
        recommender = ItemItemRecommender(K=values["neighbours"])
        recommender.fit(weighted.T.tocsr(), show_progress=False)
    similarity = recommender.similarity.astype(np.float32)
    return Model(
        lambda histories: (histories @ similarity).toarray(),
        similarity.nnz,
        interactions.popularity,
    )


def fit_ials(interactions: Interactions, values: Values) -> Model:
    """Weighted matrix factorisation. A user's vector is solved anew from the history."""
    with _one_blas_thread():
        factors = AlternatingLeastSquares(**values)
        factors.fit(interactions.matrix, show_progress=False)

    def scores(histories: sparse.csr_matrix) -> Vectors:
        with _one_blas_thread():
            users = factors.recalculate_user(np.arange(histories.shape[0]), histories)
        return users @ factors.item_factors.T

    return Model(scores, factors.item_factors.size, interactions.popularity)


def fit_ease(interactions: Interactions, values: Values) -> Model:
    """Ridge regression of each item on all others: B = -P / diag(P), P = (X^T X + lambda I)^-1.

    Raises:
      LinAlgError: lambda is too small for the precision of float32.
    """
    matrix = np.array(interactions.together, order="F")
    np.fill_diagonal(matrix, matrix.diagonal() + np.float32(values["regularization"]))
    # Cholesky and its inverse: a third of the work of a general inverse. Both use one triangle.
    factor, failed = lapack.spotrf(matrix, clean=True, overwrite_a=True)
    if failed:
        raise np.linalg.LinAlgError("X^T X + lambda I is not positive definite: raise lambda")
    inverse, _ = lapack.spotri(factor, overwrite_c=True)
    diagonal = inverse.diagonal().copy()
    weights = np.add(inverse, inverse.T, order="C")
    weights /= -diagonal
    np.fill_diagonal(weights, 0)
    n_learnt = weights.size - len(weights)
    return Model(lambda histories: histories @ weights, n_learnt, interactions.popularity)


def _sweep(
    method: Method, training: Timelines, validation: HeldOut, n_items: int, levels: range
) -> list[dict[_Choice, float]]:
    """For each level, the validation recall of each choice. Holds one model at a time."""
    recalls: list[dict[_Choice, float]] = [{} for _ in levels]
    for fitted_level in levels:
        objectives = [level for level in levels if fitted_level in method.fitted_levels(level)]
        if not objectives:
            continue
        interactions = Interactions(training, fitted_level, n_items)
        for place, values in enumerate(method.grid):
            model = method.fit(interactions, values)
            for history_level in levels:
                readers = [
                    level for level in objectives if history_level in method.history_levels(level)
                ]
                if not readers:
                    continue
                top = model.top(validation, history_level, RECALL_AT)
                choice = _Choice(fitted_level, history_level, place)
                for level in readers:
                    recall = np.nanmean(validation.recall(top, level, RECALL_AT))
                    recalls[level][choice] = float(recall)
    return recalls


def _best(recalls: dict[_Choice, float]) -> _Choice:
    """The first of the best."""
    return max(recalls, key=lambda choice: recalls[choice])


def _product(**values: tuple[Any, ...]) -> tuple[Values, ...]:
    return tuple(
        dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())
    )


def _histories(held_out: HeldOut, level: int, n_items: int) -> sparse.csr_matrix:
    """Binary [Q, N]: the items in each query's history that were met at `level` or above."""
    timelines = held_out.timelines
    items = np.where(timelines.levels >= level, timelines.items, -1).astype(np.int32)
    at_level = dataclasses.replace(held_out, timelines=dataclasses.replace(timelines, items=items))
    return _binary(*at_level.seen(0, len(held_out)), (len(held_out), n_items))


def _binary(rows: npt.NDArray, columns: Ints, shape: tuple[int, int]) -> sparse.csr_matrix:
    matrix = sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=shape)
    matrix.data[:] = 1  # pairs that occur several times were added up
    return matrix


def _one_blas_thread() -> threadpoolctl.threadpool_limits:
    """Because `implicit` runs its own threads, each of which calls BLAS."""
    return threadpoolctl.threadpool_limits(1, "blas")
