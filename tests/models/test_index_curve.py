"""The sweep of an index's search-time parameters, against brute force and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from models.index_curve import Setting, index_curve, kth_best, recall, sweep
from models.settings import IndexSettings

D = 16


def _clustered(n: int, seed: int) -> np.ndarray:
    """Unit vectors around a few directions, as item vectors are."""
    centres = np.random.default_rng(7).normal(size=(12, D))
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(0, len(centres), n)] + rng.normal(0, 0.6, (n, D))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return _clustered(1500, 0)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return _clustered(40, 1)


# --- by hand ------------------------------------------------------------------------------------


def test_recall_by_hand() -> None:
    vectors = np.array([[1.0, 0.0], [0.9, 0.0], [0.5, 0.0], [0.5, 0.1]], np.float32)
    queries = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    # First query: 1, .9, .5, .5; the third best has a twin, which may stand for it.
    # Second query: 0, 0, 0, .1.
    least = kth_best(vectors, queries, 3)
    assert least.shape == (2, 1)
    assert least[:, 0].tolist() == pytest.approx([0.5, 0.0], abs=1e-4)

    def found(first: list[int], second: list[int]) -> float:
        return recall(vectors, queries, least, np.array([first, second], np.int32))

    assert found([0, 1, 2], [3, 0, 1]) == 1.0
    assert found([0, 1, 3], [3, 2, 1]) == 1.0
    assert found([0, -1, -1], [3, 2, 1]) == pytest.approx(4 / 6)
    assert found([-1, -1, -1], [-1, -1, -1]) == 0.0
    only = kth_best(vectors, queries, 1)
    assert recall(vectors, queries, only, np.array([[1], [3]], np.int32)) == 0.5


def test_brute_force_has_nothing_to_sweep() -> None:
    assert sweep("brute_force", IndexSettings(), 5000) == [Setting("brute_force", None, None)]


def test_a_hashed_index_is_swept_over_what_it_reorders() -> None:
    points = sweep("hashed", IndexSettings(), 50_000)
    assert points == [Setting("hashed", None, n) for n in (100, 200, 250, 400, 800, 1600)]
    # Never fewer than the list is long, and no more than there are, but for what is served.
    assert [p.reorder for p in sweep("hashed", IndexSettings(reorder=30), 500)] == [100, 200, 400]
    assert [p.reorder for p in sweep("hashed", IndexSettings(reorder=900), 150)] == [100, 900]


def test_a_tree_is_swept_one_parameter_at_a_time() -> None:
    settings = IndexSettings(leaves_to_search_share=0.3, reorder=300)
    points = sweep("tree", settings, 200_000)
    assert len(points) == len(set(points))
    assert all(p.leaves_share == 0.3 or p.reorder == 300 for p in points)
    assert {p.reorder for p in points if p.leaves_share == 0.3} == {
        *(100, 200, 400, 800, 1600),
        300,
    }
    assert {p.leaves_share for p in points if p.reorder == 300} == {
        *(0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 1.0),
        0.3,
    }


# --- real indexes -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hashed", "tree"])
def test_a_sweep_reaches_the_exact_answer_and_marks_what_is_served(
    vectors: np.ndarray, queries: np.ndarray, kind: str
) -> None:
    settings = IndexSettings.parse(
        {"kind": kind, "leaves_to_search_share": 1.0, "reorder": len(vectors)}
    )
    points = index_curve(vectors, queries, settings)
    assert {point.setting.kind for point in points} == {kind}
    (shipped,) = (point for point in points if point.shipped)
    assert shipped.setting.reorder == len(vectors)
    assert shipped.recall == 1.0, "every leaf is searched and every candidate rescored"
    assert all(0.0 < point.recall <= 1.0 for point in points)
    assert all(0.0 < point.ms_per_query < 1000.0 for point in points)
    by_reorder = {
        p.setting.reorder: p.recall for p in points if p.setting.leaves_share in (None, 1.0)
    }
    assert by_reorder[100] < by_reorder[400] <= 1.0, "100 of 1500 by codes alone are not the best"
    if kind == "tree":
        by_share = {
            p.setting.leaves_share: p.recall for p in points if p.setting.reorder == len(vectors)
        }
        assert by_share[0.05] < by_share[0.4] < by_share[1.0]


def test_a_small_catalogue_is_exact_and_shows_the_next_kind(
    vectors: np.ndarray, queries: np.ndarray
) -> None:
    first, *others = index_curve(vectors, queries, IndexSettings())
    assert first.setting == Setting("brute_force", None, None)
    assert first.shipped
    assert first.recall == 1.0
    assert [point.setting.kind for point in others] == ["hashed"] * 5  # 100 to 800 of 1500
    assert not any(point.shipped for point in others)
    assert others[0].recall < others[-1].recall


def test_brute_force_that_was_asked_for_is_alone(vectors: np.ndarray, queries: np.ndarray) -> None:
    points = index_curve(vectors, queries, IndexSettings(kind="brute_force"))
    assert [point.setting.kind for point in points] == ["brute_force"]


@pytest.mark.parametrize("n_items", [1, 2, 60])
def test_a_catalogue_too_small_for_codes(queries: np.ndarray, n_items: int) -> None:
    (point,) = index_curve(_clustered(n_items, 2), queries[:2], IndexSettings())
    assert (point.setting.kind, point.recall, point.shipped) == ("brute_force", 1.0, True)
