from __future__ import annotations

import math

import numpy as np
import pytest

from components.retrieval_evaluator.pareto import distinct, sweep, weightings
from components.retrieval_evaluator.sampling import sample_of_each
from models.queries import Query


def query(user: int, *levels: int) -> Query:
    targets = tuple(b"t%d" % n for n in range(len(levels)))
    return Query(b"%d" % user, (), (), targets, levels, {})


# --- the weightings -----------------------------------------------------------------------------


def test_three_objectives_share_five_parts() -> None:
    found = weightings(3, [])
    assert len(found) == 21  # 7 over 2
    assert found[:3] == [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
    assert all(sum(weights) == pytest.approx(1.0) for weights in found)
    assert {round(5 * weight) for weights in found for weight in weights} == set(range(6))
    assert (0.4, 0.4, 0.2) in found


@pytest.mark.parametrize(
    ("k", "size"), [(1, 1), (2, 21), (3, 21), (4, 20), (5, 15), (6, 21), (7, 7), (20, 20)]
)
def test_corners_are_always_there_and_the_size_hardly_depends_on_the_objectives(
    k: int, size: int
) -> None:
    found = weightings(k, [])
    assert len(found) == len(set(found)) == size
    corners = {tuple(map(float, row)) for row in np.eye(k)}
    assert corners <= set(found)


def test_other_weightings_keep_their_scale_and_stand_for_their_direction() -> None:
    found = weightings(2, [[1.0, 5.0], [0.0, 3.0], [2.0, 10.0]])
    assert found[:2] == [(1.0, 5.0), (0.0, 3.0)]
    assert (0.0, 1.0) not in found
    assert len(found) == 22  # 1 : 5 is not on the grid
    directions = {tuple(np.round(np.divide(w, math.hypot(*w)), 6)) for w in found}
    assert len(directions) == 22


# --- the sweep ----------------------------------------------------------------------------------


def test_recall_by_hand() -> None:
    both, looked = query(1, 0, 1), query(2, 0)
    asked = []

    def recommend(queries: list[Query], weights: list[float]) -> np.ndarray:
        asked.append((queries, weights))
        first = [b"t0"] if weights[0] else [b"t1"]
        return np.array([first + [b""] * 3 for _ in queries], object)

    points = sweep(
        [[looked, both], [both]], ["exposure", "click"], [(1.0, 0.0), (0.0, 1.0)], recommend
    )
    assert points == [
        # t0 is one of the two targets of `both`, and the only one of `looked`.
        {"weights": [1.0, 0.0], "recall@50": {"exposure": 0.75, "click": 0.0}},
        {"weights": [0.0, 1.0], "recall@50": {"exposure": 0.25, "click": 1.0}},
    ]
    assert [weights for _, weights in asked] == [[1.0, 0.0], [0.0, 1.0]]
    assert all(len(queries) == 2 for queries, _ in asked), "each is asked once"


def test_an_objective_without_a_query_has_no_recall() -> None:
    (point,) = sweep(
        [[query(1, 0)], []],
        ["exposure", "click"],
        [(1.0, 1.0)],
        lambda queries, weights: np.array([[b"t0"]] * len(queries), object),
    )
    assert point["recall@50"] == {"exposure": 1.0, "click": 0.0}


# --- the sample ---------------------------------------------------------------------------------


def test_scarce_objectives_keep_all_they_have() -> None:
    queries = [query(n, 0 if n % 50 else 1) for n in range(1000)]
    first, second = sample_of_each(queries, 2, 100, seed=4)
    assert len({q.user_id for q in first}) == 100
    assert sorted(q.user_id for q in second) == sorted(b"%d" % n for n in range(0, 1000, 50))
    assert 100 <= len(distinct([first, second])) <= 120
    # The first is a sample of all: about two of a hundred are of the second.
    assert sum(q.target_levels == (1,) for q in first) < 12
    assert sample_of_each(queries, 2, 100, seed=4) == [first, second]
    assert sample_of_each(queries, 2, 100, seed=5)[0] != first


def test_small_data_are_taken_whole() -> None:
    queries = [query(n, n % 3) for n in range(9)]
    samples = sample_of_each(queries, 3, 100, seed=1)
    assert [len(sample) for sample in samples] == [9, 6, 3]
    assert len(distinct(samples)) == 9
