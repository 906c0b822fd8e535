"""`search_excluding` against NumPy brute force, with every kind of searcher."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from models.index import ExactSearcher, ScannSearcher, Searcher, search_excluding
from models.settings import IndexSettings

N, D, TOP = 3000, 16, 50
KINDS = ["brute_force", "hashed", "tree"]


def _oracle(
    vectors: np.ndarray, queries: np.ndarray, excluded: np.ndarray, n: int
) -> list[list[int]]:
    answers = []
    for query, out in zip(queries, excluded, strict=True):
        scores = vectors @ query
        order = np.argsort(-scores, kind="stable")
        answers.append(order[~np.isin(order, out)][:n].tolist())
    return answers


def _clustered(n: int, dimension: int, seed: int) -> np.ndarray:
    """Unit vectors around centres, as trained item vectors lie."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(40, dimension))
    vectors = centres[rng.integers(0, 40, n)] + 0.5 * rng.normal(size=(n, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return _clustered(N, D, 0)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return _clustered(32, D, 1)


@pytest.fixture(scope="module")
def exact(vectors: np.ndarray) -> ExactSearcher:
    return ExactSearcher(tf.Variable(vectors))


@pytest.fixture(scope="module", params=KINDS)
def scann_searcher(request: pytest.FixtureRequest, vectors: np.ndarray) -> ScannSearcher:
    return ScannSearcher(
        vectors, IndexSettings(top_k=TOP, kind=request.param, leaves_to_search_share=0.3)
    )


def _excluding(queries: np.ndarray, vectors: np.ndarray, width: int) -> np.ndarray:
    """The best items of each query, some twice, with padding in between."""
    best = np.argsort(-(queries @ vectors.T), axis=1)[:, :width].astype(np.int32)
    best[:, 1] = best[:, 0]
    best[:, 3::5] = -1
    return best


def _search(
    searcher: Searcher, exact: Searcher, queries: Any, excluded: Any, n: int, n_items: int = N
) -> tuple[np.ndarray, np.ndarray]:
    scores, rows = search_excluding(
        searcher, exact, tf.constant(queries), tf.constant(excluded, tf.int32), n, n_items
    )
    return scores.numpy(), rows.numpy()


def _check(
    scores: np.ndarray, rows: np.ndarray, vectors: np.ndarray, queries: Any, excluded: Any
) -> None:
    """What holds for every answer that is full."""
    assert np.all(np.isfinite(scores))
    assert np.all(np.diff(scores, axis=1) <= 1e-6), "best first"
    for i, (row, out) in enumerate(zip(rows, excluded, strict=True)):
        assert len(set(row.tolist())) == len(row), "no item twice"
        assert not set(row.tolist()) & set(np.asarray(out).tolist()), "nothing excluded"
        assert np.all(row >= 0)
        np.testing.assert_allclose(scores[i], vectors[row] @ queries[i], atol=1e-5)


def test_exact_search_equals_brute_force(
    vectors: np.ndarray, queries: np.ndarray, exact: ExactSearcher
) -> None:
    excluded = _excluding(queries, vectors, 30)
    scores, rows = _search(exact, exact, queries, excluded, TOP)
    assert rows.tolist() == _oracle(vectors, queries, excluded, TOP)
    _check(scores, rows, vectors, queries, excluded)


# Recall on these vectors: brute force 1.0, hashed 0.98 in every run. ScaNN trains its tree without
# a seed: 0.84 to 0.93 in eight builds that look into 30 % of the leaves, 0.99 with all leaves.
@pytest.mark.parametrize(
    ("kind", "share", "least"),
    [("brute_force", 0.3, 0.999), ("hashed", 0.3, 0.95), ("tree", 1.0, 0.95), ("tree", 0.3, 0.7)],
)
def test_scann_answers_are_full_clean_and_near_to_exact(
    vectors: np.ndarray,
    queries: np.ndarray,
    exact: ExactSearcher,
    kind: str,
    share: float,
    least: float,
) -> None:
    settings = IndexSettings.parse({"top_k": TOP, "kind": kind, "leaves_to_search_share": share})
    excluded = _excluding(queries, vectors, 60)
    searcher = ScannSearcher(vectors, settings)
    scores, rows = _search(searcher, exact, queries, excluded, TOP)
    _check(scores, rows, vectors, queries, excluded)
    expected = _oracle(vectors, queries, excluded, TOP)
    recall = np.mean([len(set(a) & set(b)) / TOP for a, b in zip(rows, expected, strict=True)])
    assert recall > least


def test_brute_force_scann_is_exact(
    vectors: np.ndarray, queries: np.ndarray, exact: ExactSearcher
) -> None:
    searcher = ScannSearcher(vectors, IndexSettings(top_k=TOP))  # auto: below 20,000 items
    excluded = _excluding(queries, vectors, 20)
    found, expected = (_search(s, exact, queries, excluded, TOP) for s in (searcher, exact))
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    assert np.mean(found[1] == expected[1]) > 0.999  # only exact ties may differ


def test_scann_answers_without_exclusions_and_for_one_query(
    vectors: np.ndarray, queries: np.ndarray, exact: ExactSearcher, scann_searcher: ScannSearcher
) -> None:
    excluded = np.zeros((1, 0), np.int32)
    scores, rows = _search(scann_searcher, exact, queries[:1], excluded, TOP)
    _check(scores, rows, vectors, queries[:1], excluded)


def test_scann_with_most_of_the_catalogue_excluded(
    vectors: np.ndarray, queries: np.ndarray, exact: ExactSearcher, scann_searcher: ScannSearcher
) -> None:
    """The tree looks into few leaves: what it cannot fill is searched exactly."""
    rng = np.random.default_rng(2)
    excluded = np.stack([rng.permutation(N)[: N - 70] for _ in queries]).astype(np.int32)
    scores, rows = _search(scann_searcher, exact, queries, excluded, TOP)
    _check(scores, rows, vectors, queries, excluded)
    assert rows.tolist() == _oracle(vectors, queries, excluded, TOP)


@pytest.mark.parametrize("n_items", [1, 2, 20])
def test_scann_on_a_tiny_catalogue(n_items: int) -> None:
    few = _clustered(n_items, D, 3)
    exact = ExactSearcher(tf.Variable(few))
    searcher = ScannSearcher(few, IndexSettings(top_k=10))
    queries, excluded = _clustered(3, D, 4), np.full((3, 2), -1, np.int32)
    found = _search(searcher, exact, queries, excluded, 10, n_items)
    expected = _search(exact, exact, queries, excluded, 10, n_items)
    assert found[1].tolist() == expected[1].tolist()


def test_what_scann_cannot_fill_is_minus_infinity_and_never_nan(
    vectors: np.ndarray, queries: np.ndarray
) -> None:
    settings = IndexSettings(top_k=TOP, kind="tree", leaves_to_search_share=0.02)
    found, rows = ScannSearcher(vectors, settings).search(tf.constant(queries), tf.constant(N))
    assert found.shape == rows.shape
    assert found.shape[0] == len(queries)
    assert not np.any(np.isnan(found))
    assert np.any(np.isneginf(found)), "one leaf does not hold all items"
    assert np.all((rows.numpy() >= 0) & (rows.numpy() < N)), "rows can be gathered"


# --- exclusions -----------------------------------------------------------------------------


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_exact_search_with_any_exclusions(data: st.DataObject) -> None:
    """Repeated, padded, more than there are items: the list is short only when items run out."""
    n_items = data.draw(st.integers(1, 12))
    n = data.draw(st.integers(1, 15))
    width = data.draw(st.integers(0, 20))
    rows = st.lists(st.integers(-1, n_items - 1), min_size=width, max_size=width)
    excluded = np.array(data.draw(st.lists(rows, min_size=2, max_size=2)), np.int32)
    excluded = excluded.reshape(2, width)
    few = np.random.default_rng(n_items).normal(size=(n_items, 4)).astype(np.float32)
    queries = np.random.default_rng(99).normal(size=(2, 4)).astype(np.float32)
    exact = ExactSearcher(tf.Variable(few))
    scores, found = _search(exact, exact, queries, excluded, n, n_items)
    assert scores.shape == found.shape == (2, n)
    for expected, row, score in zip(_oracle(few, queries, excluded, n), found, scores, strict=True):
        assert row.tolist() == expected + [-1] * (n - len(expected))
        assert np.all(np.isfinite(score[: len(expected)]))
        assert np.all(np.isneginf(score[len(expected) :]))


def test_everything_excluded(vectors: np.ndarray, exact: ExactSearcher) -> None:
    excluded = np.tile(np.arange(N, dtype=np.int32), (2, 2))
    scores, rows = _search(exact, exact, vectors[:2], excluded, 5)
    assert np.all(rows == -1)
    assert np.all(np.isneginf(scores))


# --- fallback -------------------------------------------------------------------------------


class _Bad:
    """Finds a few items only and fills up with what ScaNN's padding becomes."""

    def __init__(self, exact: ExactSearcher, finds: int) -> None:
        self._exact = exact
        self._finds = finds

    def search(self, queries: tf.Tensor, k: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        scores, rows = self._exact.search(queries, k)
        valid = (tf.range(k) < self._finds)[None, :]
        return tf.where(valid, scores, -np.inf), tf.where(valid, rows, 0)


class _Never:
    def search(self, queries: tf.Tensor, k: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        del queries, k
        raise AssertionError("the exact searcher must not be asked")


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("finds", [0, 1, 12])
def test_a_short_answer_is_searched_again_exactly(
    vectors: np.ndarray, queries: np.ndarray, exact: ExactSearcher, finds: int, in_graph: bool
) -> None:
    excluded = _excluding(queries, vectors, 10)
    search = tf.function(search_excluding) if in_graph else search_excluding
    scores, rows = search(
        _Bad(exact, finds), exact, tf.constant(queries), tf.constant(excluded), 10, N
    )
    assert rows.numpy().tolist() == _oracle(vectors, queries, excluded, 10)
    _check(scores.numpy(), rows.numpy(), vectors, queries, excluded)


def test_one_short_row_is_enough_for_the_fallback(
    vectors: np.ndarray, queries: np.ndarray, exact: ExactSearcher
) -> None:
    # 12 found candidates fill 10 places, unless 9 of them are excluded.
    excluded = np.full((len(queries), 9), -1, np.int32)
    excluded[5] = np.argsort(-(vectors @ queries[5]))[:9]
    _, rows = _search(_Bad(exact, 12), exact, queries, excluded, 10)
    assert rows.tolist() == _oracle(vectors, queries, excluded, 10)


def test_a_full_answer_is_not_searched_again(
    vectors: np.ndarray, queries: np.ndarray, exact: ExactSearcher
) -> None:
    excluded = np.full((len(queries), 3), -1, np.int32)
    _, rows = _search(_Bad(exact, 13), _Never(), queries, excluded, 10)
    assert rows.tolist() == _oracle(vectors, queries, excluded, 10)


def test_a_list_that_is_short_because_items_ran_out_is_not_searched_again() -> None:
    few = _clustered(6, D, 5)
    exact = ExactSearcher(tf.Variable(few))
    excluded = np.array([[0, 0, 3, -1]], np.int32)  # two distinct items, four remain
    scores, rows = _search(_Bad(exact, 6), _Never(), few[:1], excluded, 10, 6)
    assert np.all(np.isfinite(scores[0, :4]))
    assert rows[0, 4:].tolist() == [-1] * 6


def test_an_exclusion_that_is_repeated_counts_once() -> None:
    """Counted twice, it would seem that the items ran out, and the short list would pass."""
    few = _clustered(6, D, 5)
    exact = ExactSearcher(tf.Variable(few))
    excluded = np.array([[2, 2, 2, 2]], np.int32)
    _, rows = _search(_Bad(exact, 3), exact, few[:1], excluded, 5, 6)
    assert sorted(rows[0].tolist()) == [0, 1, 3, 4, 5]
