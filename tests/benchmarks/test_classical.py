"""Popularity, item-kNN, iALS and EASE against formulas and worlds whose right answers are known."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
import threadpoolctl
from scipy import sparse

from benchmarks import classical
from benchmarks.classical import Interactions, fit_classical
from models.held_out import HeldOut
from models.timelines import Timelines
from schemas import names

Event = tuple[int, int]  # item, level
User = tuple[list[Event], list[Event]]  # history, targets (all at one later time)

PERSONAL = ("item-knn", "ials", "ease")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The matrices are so small that threads, on a busy machine, mostly wait for each other."""
    with threadpoolctl.threadpool_limits(1):
        yield


def make_timelines(users: list[User]) -> Timelines:
    rows = [
        [(item, level, 0, names.CONTEXT) for item, level in history]
        + [(item, level, 1, level) for item, level in targets]
        for history, targets in users
    ]
    items, levels, times, targets = np.array([event for row in rows for event in row]).T
    return Timelines(
        user_ids=np.arange(len(rows), dtype=np.int32),
        offsets=np.append(0, np.cumsum([len(row) for row in rows])),
        items=items.astype(np.int32),
        levels=levels.astype(np.int32),
        times=times,
        targets=targets.astype(np.int32),
        features={},
    )


def make_queries(users: list[User]) -> HeldOut:
    return HeldOut.of(make_timelines(users), max_queries=1000, seed=0)


def matrix_of(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """A random binary matrix in which no row is empty."""
    matrix = (np.random.default_rng(seed).random(shape) < 0.4).astype(np.float32)
    matrix[:, 0] = 1
    return matrix


def interactions_of(matrix: np.ndarray) -> Interactions:
    users: list[User] = [([(int(i), 0) for i in np.flatnonzero(row)], []) for row in matrix]
    return Interactions(make_timelines(users), 0, matrix.shape[1])


# --- one method at a time ---------------------------------------------------------------------


def test_popularity_is_the_count_of_users_by_hand() -> None:
    training = make_timelines(
        [
            ([(0, 0), (2, 1), (2, 0), (-1, 1)], []),  # twice the same item: one user
            ([(2, 1), (1, 0)], []),
            ([(3, 1), (2, 0)], []),
            ([(1, 0), (1, 0), (1, 0)], [(3, 0)]),
        ]
    )
    assert Interactions(training, 0, 5).popularity.tolist() == [1, 2, 3, 2, 0]
    assert Interactions(training, 1, 5).popularity.tolist() == [0, 0, 2, 1, 0]
    model = classical.fit_popularity(Interactions(training, 0, 5), {})
    queries = make_queries([([(1, 0)], [(3, 0)]), ([(-1, 0)], [(3, 0)])])
    assert model.top(queries, 0, 5).tolist() == [[2, 3, 0, 4, -1], [2, 1, 3, 0, 4]]


def test_ease_is_the_ridge_regression_of_each_item_on_the_others() -> None:
    matrix, penalty = matrix_of((30, 7)), 3.0
    weights = np.zeros((7, 7))
    for item in range(7):
        others = np.delete(np.arange(7), item)
        x = matrix[:, others].astype(np.float64)
        weights[others, item] = np.linalg.solve(
            x.T @ x + penalty * np.eye(6), x.T @ matrix[:, item]
        )
    model = classical.fit_ease(interactions_of(matrix), {"regularization": penalty})
    histories = sparse.csr_matrix(matrix_of((5, 7), seed=1))
    np.testing.assert_allclose(model.scores(histories), histories @ weights, rtol=1e-3, atol=1e-5)
    assert model.n_learnt == 7 * 6


def test_ease_refuses_what_has_no_inverse() -> None:
    same = np.ones((4, 3), np.float32)
    with pytest.raises(np.linalg.LinAlgError, match="raise lambda"):
        classical.fit_ease(interactions_of(same), {"regularization": 0.0})


def test_cosine_neighbours_sum_the_cosines_to_the_history() -> None:
    matrix = matrix_of((30, 7))
    unit = matrix / np.linalg.norm(matrix, axis=0)
    values = {"similarity": "cosine", "neighbours": 7}
    model = classical.fit_neighbours(interactions_of(matrix), values)
    histories = sparse.csr_matrix(matrix_of((5, 7), seed=1))
    np.testing.assert_allclose(model.scores(histories), histories @ (unit.T @ unit), rtol=1e-5)


def test_ials_finds_the_groups_and_folds_a_new_user_in() -> None:
    matrix = np.kron(np.eye(2), np.ones((10, 4))).astype(np.float32)
    values = {"regularization": 0.1, "alpha": 5.0, "factors": 2, "random_state": 0}
    model = classical.fit_ials(interactions_of(matrix), values)
    histories = sparse.csr_matrix(np.array([[1, 0, 0, 0, 0, 0, 0, 0]], np.float32))
    scores = model.scores(histories)[0]
    # One item of four, five to one against the three unseen: the preference lies in between.
    assert np.all((scores[:4] > 0.3) & (scores[:4] < 1.0))
    np.testing.assert_allclose(scores[4:], 0, atol=0.02)
    assert model.n_learnt == 8 * 2


def test_what_has_no_score_is_ordered_by_popularity() -> None:
    training = make_timelines(
        [
            ([(0, 0), (1, 0)], []),
            ([(2, 0), (3, 0)], []),
            ([(3, 0), (4, 0)], []),
            ([(3, 0), (2, 0)], []),
        ]
    )
    values = {"similarity": "cosine", "neighbours": 5}
    model = classical.fit_neighbours(Interactions(training, 0, 5), values)
    queries = make_queries([([(0, 0)], [(4, 0)]), ([(-1, 0)], [(4, 0)]), ([], [(4, 0)])])
    # Item 1 is a neighbour of item 0; of the others, item 3 has three users and item 2 has two.
    assert model.top(queries, 0, 3).tolist() == [[1, 3, 2], [3, 2, 0], [3, 2, 0]]


# --- tuned methods ----------------------------------------------------------------------------

GROUP = 100
N_ITEMS = 2 * GROUP


def group_users(seed: int, n_users: int = 60) -> list[User]:
    """Each user clicks on items of one half. No mere views, so the fitted level does not matter."""
    rng = np.random.default_rng(seed)
    users: list[User] = []
    for user in range(n_users):
        items = rng.choice(GROUP, 40, replace=False) + GROUP * (user % 2)
        users.append(([(int(item), 1) for item in items], []))
    return users


def mixed_queries(seed: int, n_users: int = 20) -> list[User]:
    """Users who saw much of the first half and clicked on a little of the second.

    What they see next is of the first half, what they click on next is of the second.
    """
    rng = np.random.default_rng(seed)
    users: list[User] = []
    for _ in range(n_users):
        seen = rng.permutation(GROUP).tolist()
        clicked = (rng.permutation(GROUP) + GROUP).tolist()
        history = [(item, 0) for item in seen[:30]] + [(item, 1) for item in clicked[:2]]
        # Many more views than clicks among the targets, so that level 0 is about the views.
        targets = [(item, 0) for item in seen[30:50]] + [(item, 1) for item in clicked[2:4]]
        users.append((history, targets))
    return users


@pytest.fixture(scope="module")
def results() -> dict[str, classical.ClassicalResult]:
    training = make_timelines(group_users(0))
    validation = make_queries(mixed_queries(1))
    return {
        name: fit_classical(name, training, validation, training, N_ITEMS, 4, seed=0)
        for name in classical.NAMES
    }


@pytest.mark.parametrize("name", PERSONAL)
def test_the_history_is_read_at_the_level_that_validation_prefers(
    results: dict[str, classical.ClassicalResult], name: str
) -> None:
    result = results[name]
    assert [values["fitted_level"] for values in result.settings] == [0, 0]
    assert [values["history_level"] for values in result.settings] == [0, 1]
    queries = make_queries(mixed_queries(2))
    views, clicks = result.rankings(0, queries, 50), result.rankings(1, queries, 50)
    assert np.mean(views < GROUP) > 0.95
    assert np.mean(clicks >= GROUP) > 0.95


@pytest.mark.parametrize("name", classical.NAMES)
def test_rankings_leave_out_the_seen_and_end_in_padding(
    results: dict[str, classical.ClassicalResult], name: str
) -> None:
    queries = make_queries(mixed_queries(3))
    for level in (0, 1):
        top = results[name].rankings(level, queries, N_ITEMS + 5)
        assert top.dtype == np.int32
        for place, row in enumerate(top):
            owner = queries.owner[place]
            begin, end = queries.timelines.offsets[owner], queries.history_end[place]
            seen = set(queries.timelines.items[begin:end].tolist())
            unseen = N_ITEMS - len(seen)
            assert set(row[:unseen].tolist()) == set(range(N_ITEMS)) - seen
            assert np.all(row[unseen:] == -1)


def test_costs_and_settings(results: dict[str, classical.ClassicalResult]) -> None:
    for name, result in results.items():
        assert json.loads(json.dumps(result.settings)) == list(result.settings)
        different = {id(model): model for model in result.models}.values()
        assert result.parameters == sum(model.n_learnt for model in different)
        assert result.index_dimension == (4 if name == "ials" else None)
        assert 0 < result.seconds < result.sweep_seconds
    assert results["popularity"].models[0].n_learnt == N_ITEMS
    assert results["ials"].models[0].n_learnt == N_ITEMS * 4


@pytest.mark.parametrize("name", PERSONAL)
def test_levels_with_equal_settings_share_the_model(
    results: dict[str, classical.ClassicalResult], name: str
) -> None:
    result = results[name]
    keys = [
        {key: value for key, value in values.items() if key != "history_level"}
        for values in result.settings
    ]
    assert (result.models[0] is result.models[1]) == (keys[0] == keys[1])


def test_choice_is_made_on_validation_and_the_fit_on_all_data() -> None:
    # Everybody sees items 0-59; a few click on 60-119, and on 119 least often.
    views: list[User] = [([(item, 0) for item in range(60)], []) for _ in range(9)]
    clicks: list[User] = [([(item, 1) for item in range(60, 120)], []) for _ in range(3)]
    clicks.append(([(item, 1) for item in range(60, 119)], []))
    late: list[User] = [([(119, 1)], [(60, 1)])] * 2
    training, full = make_timelines(views + clicks), make_timelines(views + clicks + late)
    # Clicked items are found only by counting clicks; viewed items only by counting all.
    clicked: list[User] = [([(-1, 0)], [(70, 1)])]
    viewed: list[User] = [([(-1, 0)], [(20, 0)])] * 2
    queries = make_queries(clicked + viewed)
    result = fit_classical("popularity", training, queries, full, 120, 4, seed=0)
    assert [values["fitted_level"] for values in result.settings] == [0, 1]
    assert result.models[1].popularity[[60, 70, 119, 20]].tolist() == [6, 4, 5, 0]
    assert result.rankings(1, queries, 3)[0].tolist() == [60, 119, 61]

    # The same training data, but now the clicks are on what everybody sees.
    elsewhere = make_queries([([(-1, 0)], [(20, 1)])])
    result = fit_classical("popularity", training, elsewhere, full, 120, 4, seed=0)
    assert [values["fitted_level"] for values in result.settings] == [0, 0]


def test_ials_depends_on_the_seed_alone() -> None:
    matrix = matrix_of((30, 20))
    histories = sparse.csr_matrix(matrix_of((5, 20), seed=1))
    first, again, other = (
        classical.fit_ials(
            interactions_of(matrix),
            classical.make_method("ials", 20, dimension=4, seed=seed).grid[0],
        ).scores(histories)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_ease_over_many_items_is_tuned_less() -> None:
    few, many = (classical.make_method("ease", n, 4, 0) for n in (4000, 4001))
    assert [values["regularization"] for values in few.grid] == [30, 100, 300, 1000]
    assert few.fitted_levels(2) == few.history_levels(2) == [0, 2]
    assert [values["regularization"] for values in many.grid] == [100, 300]
    assert many.fitted_levels(2) == many.history_levels(2) == [0]


def test_errors() -> None:
    training = make_timelines(group_users(0, 4))
    views = make_queries([([(0, 0)], [(1, 0)])])
    with pytest.raises(ValueError, match="no validation target reaches level 1"):
        fit_classical("popularity", training, views, training, N_ITEMS, 4, seed=0)
    queries = make_queries([([(0, 0)], [(1, 1)])])
    with pytest.raises(ValueError, match="unknown method 'svd'"):
        fit_classical("svd", training, queries, training, N_ITEMS, 4, seed=0)
