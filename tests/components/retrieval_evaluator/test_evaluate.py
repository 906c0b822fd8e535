from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.retrieval_evaluator.evaluate import mean_metrics, mean_overlap, slice_metrics
from components.retrieval_evaluator.settings import METRICS
from models.queries import Query


def items(*numbers: int) -> list[bytes]:
    return [b"i%d" % number for number in numbers]


def query(history: int = 0, **targets: int) -> Query:
    """A moment after `history` events; targets by item, with the level they reach."""
    return Query(
        user_id=b"u",
        history=tuple(b"h%d" % n for n in range(history)),
        history_levels=(0,) * history,
        targets=tuple(name.encode() for name in targets),
        target_levels=tuple(targets.values()),
        features={},
    )


# --- mean_metrics -------------------------------------------------------------------------------


def test_metrics_by_hand() -> None:
    ranking = items(*range(200))
    found = mean_metrics([ranking, ranking], [items(0, 10, 60, 150), items(1)])
    # First query: 1 of 4 in the top 10, 2 of 4 in the top 50, 3 of 4 in the top 100.
    assert found["queries"] == 2.0
    assert found["recall@10"] == pytest.approx((1 / 4 + 1) / 2)
    assert found["recall@50"] == pytest.approx((2 / 4 + 1) / 2)
    assert found["recall@100"] == pytest.approx((3 / 4 + 1) / 2)
    ideal = sum(1 / math.log2(rank + 2) for rank in range(4))
    first = (1 / math.log2(2) + 1 / math.log2(12)) / ideal
    second = (1 / math.log2(3)) / 1.0
    assert found["ndcg@50"] == pytest.approx((first + second) / 2)


def test_more_relevant_items_than_places() -> None:
    ranking = items(*range(100))
    found = mean_metrics([ranking], [items(*range(40))])
    assert found["recall@10"] == 1.0  # 10 of at most 10
    assert found["recall@50"] == 1.0
    assert found["ndcg@50"] == pytest.approx(1.0)


def test_queries_without_a_relevant_item_do_not_count() -> None:
    ranking = items(5)
    with_empty = mean_metrics([ranking, ranking, ranking], [items(5), [], items(6)])
    assert with_empty == mean_metrics([ranking, ranking], [items(5), items(6)])
    assert with_empty["queries"] == 2.0
    assert with_empty["recall@10"] == 0.5


def test_nothing_to_measure_is_zero_not_an_error() -> None:
    assert mean_metrics([], []) == {"queries": 0.0} | dict.fromkeys(METRICS, 0.0)
    assert mean_metrics([items(1)], [[]]) == {"queries": 0.0} | dict.fromkeys(METRICS, 0.0)


def test_padding_is_no_hit() -> None:
    assert mean_metrics([[b"i1", b"", b""]], [items(2)])["recall@10"] == 0.0


def test_lists_and_queries_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="zip"):
        mean_metrics([items(1)], [])


def test_overlap_by_hand() -> None:
    exact = [items(1, 2, 3, 4), items(1, 2)]
    found = [items(4, 3, 9, 9), [b"i1", b""]]
    assert mean_overlap(found, exact, 4) == pytest.approx((2 / 4 + 1 / 2) / 2)
    assert mean_overlap(found, exact, 2) == pytest.approx((0 / 2 + 1 / 2) / 2)
    # The exact list may itself be short: its padding is not asked for.
    assert mean_overlap([[b"i1", b""]], [[b"i1", b""]], 2) == 1.0


# --- slices -------------------------------------------------------------------------------------

USER_SLICES = ["user: under 10 events", "user: 10 to 49 events", "user: 50 events or more"]
ITEM_SLICES = ["item: head: top 10 % of items", "item: middle: next 40 %", "item: tail"]


def test_slices_by_hand() -> None:
    queries = [
        query(9, head=1, tail=1),
        query(10, middle=1),
        query(49, middle=0),  # below the level: in no slice
        query(50, tail=2),
    ]
    rankings = [[b"head"], [b"other"], [b"middle"], [b"tail"]]
    rank = {b"head": 0.0, b"middle": 0.1, b"tail": 0.5}
    found = slice_metrics(queries, rankings, 1, rank)
    assert list(found) == USER_SLICES + ITEM_SLICES
    told = {name: (values["queries"], values["recall@10"]) for name, values in found.items()}
    assert told == {
        "user: under 10 events": (1.0, 0.5),
        "user: 10 to 49 events": (1.0, 0.0),
        "user: 50 events or more": (1.0, 1.0),
        "item: head: top 10 % of items": (1.0, 1.0),
        "item: middle: next 40 %": (1.0, 0.0),
        "item: tail": (2.0, 0.5),  # missed for the first query, found for the last
    }


def test_item_without_training_events_is_tail() -> None:
    found = slice_metrics([query(0, new=0)], [[b"new"]], 0, {b"head": 0.0})
    assert found["item: tail"]["queries"] == 1.0
    assert found["item: tail"]["recall@10"] == 1.0


POPULARITY = {b"i%d" % n: n / 20 for n in range(20)}


@given(
    st.lists(
        st.tuples(
            st.integers(0, 80),
            st.dictionaries(st.integers(0, 24), st.integers(0, 2), min_size=1, max_size=6),
            st.permutations(range(25)),
        ),
        min_size=1,
        max_size=8,
    ),
    st.integers(0, 2),
)
def test_slices_partition_queries_and_targets(
    moments: list[tuple[int, dict[int, int], list[int]]], level: int
) -> None:
    queries = [
        query(history, **{f"i{item}": reached for item, reached in targets.items()})
        for history, targets, _ in moments
    ]
    rankings = [items(*order) for _, _, order in moments]
    whole = mean_metrics(rankings, [q.targets_at(level) for q in queries])
    found = slice_metrics(queries, rankings, level, POPULARITY)
    by_user = [found[name] for name in USER_SLICES]
    assert sum(values["queries"] for values in by_user) == whole["queries"]
    for metric in METRICS:
        total = sum(values["queries"] * values[metric] for values in by_user)
        assert total == pytest.approx(whole["queries"] * whole[metric])
    # Hits within the first 10 add up over the popularity slices.
    relevant = [q.targets_at(level) for q in queries]
    hits = sum(len(set(r[:10]) & set(t)) for r, t in zip(rankings, relevant, strict=True))
    in_slices = 0
    for low, high in ((0.0, 0.1), (0.1, 0.5), (0.5, 2.0)):
        for ranking, targets in zip(rankings, relevant, strict=True):
            inside = {i for i in targets if low <= POPULARITY.get(i, 1.0) < high}
            in_slices += len(set(ranking[:10]) & inside)
    assert in_slices == hits
    # A query counts in each popularity slice that one of its targets lies in.
    expected = sum(
        len({0 if (p := POPULARITY.get(i, 1.0)) < 0.1 else 1 if p < 0.5 else 2 for i in targets})
        for targets in relevant
    )
    assert sum(found[name]["queries"] for name in ITEM_SLICES) == expected
