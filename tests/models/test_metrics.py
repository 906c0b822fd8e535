"""Ranking metrics against values worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.metrics import ndcg_at, overlap_at, recall_at

IDS = st.lists(st.sampled_from([b"%d" % i for i in range(12)]), unique=True)


def test_recall_by_hand() -> None:
    ranking = [b"a", b"b", b"c", b"d"]
    assert recall_at(ranking, [b"b", b"d", b"x"], 2) == pytest.approx(1 / 2)  # of at most 2
    assert recall_at(ranking, [b"b", b"d", b"x"], 4) == pytest.approx(2 / 3)
    assert recall_at(ranking, [b"x"], 4) == 0.0
    assert recall_at(ranking, [b"a", b"b", b"c", b"d", b"e"], 2) == 1.0  # 1 can be reached


def test_ndcg_by_hand() -> None:
    ranking = [b"a", b"b", b"c", b"d"]
    # Hits on ranks 2 and 4: 1/log2(3) + 1/log2(5); ideal: ranks 1, 2 and 3.
    gain = 1 / math.log2(3) + 1 / math.log2(5)
    ideal = 1 + 1 / math.log2(3) + 1 / 2
    assert ndcg_at(ranking, [b"b", b"d", b"x"], 4) == pytest.approx(gain / ideal)
    # Cut at 2: only the first hit, and the ideal list has two places.
    assert ndcg_at(ranking, [b"b", b"d", b"x"], 2) == pytest.approx(
        (1 / math.log2(3)) / (1 + 1 / math.log2(3))
    )
    assert ndcg_at([b"a"], [b"a"], 10) == 1.0
    assert ndcg_at([], [b"a"], 10) == 0.0


def test_padding_of_a_short_list_is_never_a_hit() -> None:
    assert recall_at([b"a", b"", b""], [b"a", b"b"], 3) == 0.5
    assert overlap_at([b"", b""], [b"a", b""], 2) == 0.0


def test_overlap_by_hand() -> None:
    assert overlap_at([b"b", b"a", b"x"], [b"a", b"b", b"c"], 3) == pytest.approx(2 / 3)
    assert overlap_at([b"x", b"y", b"a"], [b"a", b"b", b"c"], 2) == 0.0  # a lies beyond the cut
    assert overlap_at([b"a", b""], [b"a", b""], 2) == 1.0  # the exact list is short as well
    assert overlap_at([], [b"", b""], 2) == 1.0  # nothing was to be found


@given(IDS, IDS.filter(bool), st.integers(1, 12))
def test_metrics_are_shares(ranking: list[bytes], relevant: list[bytes], k: int) -> None:
    recall, ndcg = recall_at(ranking, relevant, k), ndcg_at(ranking, relevant, k)
    assert 0.0 <= recall <= 1.0
    assert 0.0 <= ndcg <= 1.0 + 1e-12
    assert (recall == 0) == (ndcg == 0)
    # The ideal list: relevant items first.
    best = relevant + [item for item in ranking if item not in relevant]
    assert recall_at(best, relevant, k) == 1.0
    assert ndcg_at(best, relevant, k) == pytest.approx(1.0)


@given(IDS.filter(bool), st.integers(0, 10))
def test_ndcg_rewards_the_earlier_place(ranking: list[bytes], place: int) -> None:
    places = [ndcg_at(ranking, [item], len(ranking)) for item in ranking]
    assert places == sorted(places, reverse=True)
    assert len(set(places)) == len(places)
