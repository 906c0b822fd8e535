"""Stored profiles: all timelines of a user merged into one."""

from __future__ import annotations

import numpy as np

from models.recommender import build_profiles
from models.timelines import Timelines


def _split(rows: list[tuple[int, list[tuple[int, int, int]]]], city: list[list[int]]) -> Timelines:
    """Timelines of (user, [(time, item, level)])."""
    events = [event for _, row in rows for event in row]
    times, items, levels = np.array(events, np.int64).reshape(-1, 3).T
    return Timelines(
        user_ids=np.array([user for user, _ in rows], np.int32),
        offsets=np.cumsum([0, *(len(row) for _, row in rows)]).astype(np.int64),
        items=items.astype(np.int32),
        levels=levels.astype(np.int32),
        times=times,
        targets=np.zeros(len(events), np.int32),
        features={"city": np.array(city, np.int32)},
    )


def _history(profiles: object, user: int) -> list[tuple[int, int]]:
    begin, end = profiles.offsets[user : user + 2]
    return list(
        zip(profiles.items[begin:end].tolist(), profiles.levels[begin:end].tolist(), strict=True)
    )


def test_chunks_and_splits_are_merged_in_the_order_of_time() -> None:
    train = _split(
        [
            (1, [(10, 5, 0), (20, 6, 1)]),
            (0, [(3, 2, 2)]),
            (1, [(20, 6, 1), (30, -1, 0)]),  # a second chunk, begins with a repeated event
            (3, [(1, 1, 1)]),  # the unknown user
        ],
        [[4, 7], [2, -1], [4, 7], [1, 1]],
    )
    evaluation = _split([(1, [(20, 6, 1), (25, 9, 0), (40, 5, 2)])], [[4]])
    profiles = build_profiles([train, evaluation], n_users=3)
    assert _history(profiles, 0) == [(2, 2)]
    assert _history(profiles, 1) == [(5, 0), (6, 1), (9, 0), (-1, 0), (5, 2)]
    assert _history(profiles, 2) == []
    assert _history(profiles, 3) == [], "strangers share a row and have no history"
    assert profiles.features["city"].tolist() == [[2, -1], [4, 7], [-1, -1], [-1, -1]]


def test_no_events() -> None:
    empty = Timelines(
        user_ids=np.zeros(0, np.int32),
        offsets=np.zeros(1, np.int64),
        items=np.zeros(0, np.int32),
        levels=np.zeros(0, np.int32),
        times=np.zeros(0, np.int64),
        targets=np.zeros(0, np.int32),
        features={},
    )
    profiles = build_profiles([empty], n_users=2)
    assert profiles.offsets.tolist() == [0, 0, 0, 0]
    assert profiles.features == {}
