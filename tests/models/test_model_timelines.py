"""Timelines in memory against a brute-force oracle in Python."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from models.timelines import Timelines, padded, read_timelines
from schemas import names


@dataclass(frozen=True)
class Event:
    item: int
    level: int
    time: int
    target: int


@st.composite
def _logs(draw: st.DrawFn) -> list[list[Event]]:
    """Timelines with ties in time, repeated items, unknown items and context events."""
    logs = []
    for _ in range(draw(st.integers(1, 4))):
        times = sorted(draw(st.lists(st.integers(0, 4), min_size=0, max_size=8)))
        logs.append(
            [
                Event(
                    item=draw(st.integers(-1, 5)),
                    level=draw(st.integers(0, 2)),
                    time=time,
                    target=draw(st.integers(-1, 2)),
                )
                for time in times
            ]
        )
    if not any(logs):
        logs[0] = [Event(0, 0, 0, 0)]
    return logs


def _timelines(logs: list[list[Event]], features: dict[str, np.ndarray] | None = None) -> Timelines:
    flat = [event for log in logs for event in log]
    return Timelines(
        user_ids=np.arange(10, 10 + len(logs), dtype=np.int32),
        offsets=np.cumsum([0, *map(len, logs)]).astype(np.int64),
        items=np.array([event.item for event in flat], np.int32),
        levels=np.array([event.level for event in flat], np.int32),
        times=np.array([event.time for event in flat], np.int64),
        targets=np.array([event.target for event in flat], np.int32),
        features=features or {},
    )


def _places(logs: list[list[Event]]) -> list[tuple[int, int]]:
    """(timeline, position) of every event in flat order."""
    return [(t, i) for t, log in enumerate(logs) for i in range(len(log))]


# --- columns derived from the events --------------------------------------------------------


def test_columns_by_hand() -> None:
    timelines = _timelines(
        [
            [Event(1, 0, 5, 0), Event(2, 1, 5, 1), Event(1, 2, 7, -1)],
            [],
            [Event(1, 0, 7, 1), Event(-1, 2, 7, 2), Event(3, 0, 9, 2)],
        ]
    )
    assert timelines.timeline_of.tolist() == [0, 0, 0, 2, 2, 2]
    # Events at one time share the end; the second timeline begins anew at the same time 7.
    assert timelines.history_ends().tolist() == [0, 0, 2, 3, 3, 5]
    # Item 1 reaches level 2 in the first timeline, but only 1 in the third, and that in a later
    # chunk: its target says so. So does that of item 3.
    assert timelines.best_levels().tolist() == [2, 1, 2, 1, 2, 2]
    assert timelines.positives(0).tolist() == [0, 1, 3, 5]
    assert timelines.positives(1).tolist() == [1, 3, 5]
    assert timelines.positives(2).tolist() == [5]  # event 4 is not in the vocabulary


@given(_logs())
def test_columns_against_the_oracle(logs: list[list[Event]]) -> None:
    timelines = _timelines(logs)
    ends, best = [], []
    for t, i in _places(logs):
        begin = int(timelines.offsets[t])
        event = logs[t][i]
        ends.append(begin + sum(other.time < event.time for other in logs[t]))
        best.append(
            max(max(other.level, other.target) for other in logs[t] if other.item == event.item)
        )
    assert timelines.history_ends().tolist() == ends
    assert timelines.best_levels().tolist() == best
    for level in range(3):
        assert timelines.positives(level).tolist() == [
            flat
            for flat, (t, i) in enumerate(_places(logs))
            if logs[t][i].target >= level and logs[t][i].item >= 0
        ]


def test_no_events_at_all() -> None:
    timelines = _timelines([[], []])
    assert timelines.history_ends().shape == (0,)
    assert timelines.best_levels().shape == (0,)
    assert timelines.positives(0).shape == (0,)


# --- reading --------------------------------------------------------------------------------


def _record(user: int, events: list[Event], city: tuple[int, ...] = ()) -> bytes:
    example = tf.train.Example()
    columns = {
        names.USER_ID: [user],
        names.ITEM_IDS: [event.item for event in events],
        names.LEVELS: [event.level for event in events],
        names.TIMESTAMPS: [event.time for event in events],
        names.TARGET_LEVELS: [event.target for event in events],
        names.user_feature("city"): city,
    }
    for key, values in columns.items():
        example.features.feature[key].int64_list.value.extend(values)
    return example.SerializeToString()


def test_reading_maps_what_the_vocabularies_lack() -> None:
    records = [
        _record(0, [Event(0, 0, 5, 0), Event(4, 1, 6, -1), Event(3, 2, 7, 2)], (1, 2)),
        _record(2, [Event(9, 0, 5, 0)]),
        _record(7, []),
    ]
    timelines = read_timelines(records, n_items=4, n_users=2, user_features=["city"])
    assert len(timelines) == 3
    by_user = {int(user): row for row, user in enumerate(timelines.user_ids[:1])}
    assert by_user == {0: 0}
    assert timelines.user_ids.tolist() == [0, 2, 2]  # 2 is the unknown user
    assert timelines.items[:3].tolist() == [0, -1, 3]
    assert timelines.levels[:3].tolist() == [0, 1, 2]
    assert timelines.times[:3].tolist() == [5, 6, 7]
    assert timelines.targets[:3].tolist() == [0, -1, 2]
    assert timelines.items[3:].tolist() == [-1]
    assert timelines.features["city"].tolist() == [[1, 2], [-1, -1], [-1, -1]]
    assert [timelines.items.dtype, timelines.times.dtype] == [np.int32, np.int64]


@given(st.lists(st.tuples(st.integers(0, 3), _logs()), max_size=5), st.randoms())
def test_reading_does_not_depend_on_the_order_of_the_records(
    users: list[tuple[int, list[list[Event]]]], shuffle: random.Random
) -> None:
    records = [
        _record(user, [Event(abs(e.item), *(e.level, e.time, e.target)) for e in log], (user,))
        for user, logs in users
        for log in logs
    ]
    shuffled = list(records)
    shuffle.shuffle(shuffled)
    one, two = (read_timelines(part, 4, 3, ["city"]) for part in (records, shuffled))
    for column in ("user_ids", "offsets", "items", "levels", "times", "targets"):
        assert np.array_equal(getattr(one, column), getattr(two, column)), column
    assert np.array_equal(one.features["city"], two.features["city"])


def test_reading_nothing() -> None:
    timelines = read_timelines([], 4, 3, [])
    assert len(timelines) == 0
    assert timelines.offsets.tolist() == [0]


def test_padding_side_by_side() -> None:
    lists = [np.array([3, 4]), np.array([], np.int64), np.array([5])]
    assert padded(lists).tolist() == [[3, 4], [-1, -1], [5, -1]]
    assert padded([np.array([], np.int64)]).tolist() == [[-1]]
    assert padded([]).shape == (0, 1)
