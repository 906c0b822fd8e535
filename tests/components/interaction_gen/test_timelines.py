from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from components.interaction_gen import timelines as module
from components.interaction_gen.timelines import (
    HELD_OUT_TIME,
    Bounds,
    Events,
    Timelines,
    cut_into_chunks,
)
from schemas.names import CONTEXT
from tests.components.interaction_gen import row_by_row
from tests.components.interaction_gen.row_by_row import TimelineEvent, UserEvent, UserTimeline

WIDE = Bounds(2000, 500)

Log = dict[bytes, list[UserEvent]]  # user -> events


def coded(log: Log) -> tuple[Events, list[bytes], list[bytes]]:
    """Columns of all events, the users by code, the items by code."""
    users = sorted(log)
    items = sorted({item for events in log.values() for _, item, _ in events})
    rows = [
        (users.index(user), items.index(item), time, level)
        for user, events in log.items()
        for time, item, level in events
    ]
    columns = np.array(rows, np.int64).reshape(-1, 4).T
    return Events(*columns), users, items


def of_users(
    timelines: Timelines, users: list[bytes], items: list[bytes], bounds: Bounds
) -> dict[bytes, UserTimeline]:
    """The timelines of each user; duplicates and repeats, which have no user, are left out."""
    result = {user: UserTimeline([], [], [], [], 0, 0) for user in users}
    events = [
        TimelineEvent(time, items[item], level, target)
        for time, item, level, target in zip(
            timelines.timestamp_ms.tolist(),
            timelines.item.tolist(),
            timelines.level.tolist(),
            timelines.target_level.tolist(),
            strict=True,
        )
    ]
    for user, event, late in zip(timelines.user, events, timelines.evaluation, strict=True):
        found = result[users[user]]
        (found.eval_events if late else found.train_events).append(event)
    for start, own, end, late in zip(*cut_into_chunks(timelines, bounds), strict=True):
        found = result[users[timelines.user[own]]]
        context = [event._replace(target_level=CONTEXT) for event in events[start:own]]
        (found.evaluation if late else found.train).append([*context, *events[own:end]])
    return result


def of_one_user(timelines: Timelines, items: list[bytes], bounds: Bounds) -> UserTimeline:
    found = of_users(timelines, [b"u"], items, bounds)[b"u"]
    return found._replace(duplicates=timelines.duplicates, repeats=timelines.repeats)


def time_split(events: list[UserEvent], cut_ms: int | None, bounds: Bounds) -> UserTimeline:
    columns, _, items = coded({b"u": events})
    return of_one_user(module.time_split(columns, cut_ms), items, bounds)


def leave_out_split(
    events: list[UserEvent], user_id: bytes, seed: int, eval_share: float, bounds: Bounds
) -> UserTimeline:
    columns, _, items = coded({b"u": events})
    timelines = module.leave_out_split(columns, [user_id], items, seed, eval_share)
    return of_one_user(timelines, items, bounds)


def rising_events(events: list[UserEvent]) -> tuple[list[UserEvent], int, int]:
    found = time_split(events, None, WIDE)
    return [event[:3] for event in found.train_events], found.duplicates, found.repeats


def chunks(
    context: list[TimelineEvent], events: list[TimelineEvent], bounds: Bounds
) -> list[list[TimelineEvent]]:
    every = [*context, *events]
    items = sorted({event.item_id for event in every})
    columns = [
        np.array([function(event) for event in every], np.int64)
        for function in (
            lambda event: items.index(event.item_id),
            lambda event: event.timestamp_ms,
            lambda event: event.level,
            lambda event: event.target_level,
        )
    ]
    late = np.arange(len(every)) >= len(context)
    timelines = Timelines(np.zeros(len(every), np.int64), *columns, late, 0, 0)
    return of_one_user(timelines, items, bounds).evaluation


bounds_strategy = st.integers(2, 12).flatmap(
    lambda largest: st.builds(Bounds, st.just(largest), st.integers(0, largest - 1))
)
logs_strategy = st.dictionaries(
    st.binary(max_size=2),
    st.lists(
        st.tuples(
            st.integers(0, 30),
            st.sampled_from([b"a", b"b", b"c", b"d", b"e", b"", b"ab"]),
            st.integers(0, 2),
        ),
        min_size=1,
        max_size=30,
    ),
    max_size=8,
)

events_strategy = st.lists(
    st.tuples(
        st.integers(0, 30),
        st.sampled_from([b"a", b"b", b"c", b"d", b"e"]),
        st.integers(0, 2),
    ),
    min_size=1,
    max_size=60,
)


@given(logs_strategy, st.none() | st.integers(0, 31), bounds_strategy)
def test_many_users_at_once_are_the_users_one_by_one(log, cut_ms, bounds) -> None:
    events, users, items = coded(log)
    timelines = module.time_split(events, cut_ms)
    expected = {user: row_by_row.time_split(of, cut_ms, bounds) for user, of in log.items()}
    compare(timelines, of_users(timelines, users, items, bounds), expected)


@given(logs_strategy, st.integers(0, 5), st.floats(0.01, 0.99), bounds_strategy)
def test_many_users_leave_out_what_each_leaves_out_alone(log, seed, share, bounds) -> None:
    events, users, items = coded(log)
    timelines = module.leave_out_split(events, users, items, seed, share)
    expected = {
        user: row_by_row.leave_out_split(of, user, seed, share, bounds) for user, of in log.items()
    }
    compare(timelines, of_users(timelines, users, items, bounds), expected)


def compare(
    timelines: Timelines, found: dict[bytes, UserTimeline], expected: dict[bytes, UserTimeline]
) -> None:
    assert timelines.duplicates == sum(timeline.duplicates for timeline in expected.values())
    assert timelines.repeats == sum(timeline.repeats for timeline in expected.values())
    assert found == {
        user: timeline._replace(duplicates=0, repeats=0) for user, timeline in expected.items()
    }


def test_time_split_by_hand() -> None:
    timeline = time_split(
        [
            (30, b"x", 0),
            (10, b"x", 0),
            (20, b"y", 1),
            (10, b"x", 0),  # duplicate
            (25, b"y", 0),  # y had reached 1: repeat
            (40, b"x", 2),
            (50, b"z", 0),
            (60, b"z", 1),
            (70, b"y", 2),
        ],
        cut_ms=40,
        bounds=WIDE,
    )
    assert timeline.train == [[(10, b"x", 0, 0), (20, b"y", 1, 1)]]
    assert timeline.evaluation == [
        [
            (10, b"x", 0, CONTEXT),
            (20, b"y", 1, CONTEXT),
            (40, b"x", 2, CONTEXT),  # touched before the cut
            (50, b"z", 0, 1),  # first event in the split; reaches 1 within it
            (60, b"z", 1, CONTEXT),
            (70, b"y", 2, CONTEXT),
        ]
    ]
    assert (timeline.duplicates, timeline.repeats) == (1, 2)


def test_an_event_at_the_cut_is_for_evaluation() -> None:
    timeline = time_split([(39, b"x", 0), (40, b"y", 0)], cut_ms=40, bounds=WIDE)
    assert [event.item_id for event in timeline.train_events] == [b"x"]
    assert [event.item_id for event in timeline.eval_events] == [b"y"]


def test_the_training_target_ignores_what_the_item_reaches_after_the_cut() -> None:
    timeline = time_split([(10, b"x", 0), (50, b"x", 2)], cut_ms=40, bounds=WIDE)
    assert timeline.train == [[(10, b"x", 0, 0)]]


def test_at_one_moment_only_the_highest_level_of_an_item_remains() -> None:
    kept, duplicates, repeats = rising_events([(5, b"x", 0), (5, b"x", 2), (5, b"x", 1)])
    assert kept == [(5, b"x", 2)]
    assert (duplicates, repeats) == (0, 2)


def test_without_a_cut_everything_is_for_training() -> None:
    timeline = time_split([(1, b"x", 0)], cut_ms=None, bounds=WIDE)
    assert timeline.evaluation == []
    assert len(timeline.train_events) == 1


def test_a_user_of_the_evaluation_period_only_has_no_training_chunk() -> None:
    timeline = time_split([(50, b"x", 1)], cut_ms=40, bounds=WIDE)
    assert timeline.train == []
    assert timeline.evaluation == [[(50, b"x", 1, 1)]]


@given(events_strategy, st.integers(0, 31), bounds_strategy)
def test_time_split_leaks_nothing(events, cut_ms, bounds) -> None:
    timeline = time_split(events, cut_ms, bounds)

    # What a model sees in training is the same without the events at or after the cut.
    past_only = time_split([event for event in events if event[0] < cut_ms], None, bounds)
    assert timeline.train == past_only.train
    assert all(event.timestamp_ms < cut_ms for chunk in timeline.train for event in chunk)

    touched = {event.item_id for event in timeline.train_events}
    for chunk in timeline.evaluation:
        assert [event.timestamp_ms for event in chunk] == sorted(e.timestamp_ms for e in chunk)
        for event in chunk:
            if event.target_level != CONTEXT:
                assert event.timestamp_ms >= cut_ms
                assert event.item_id not in touched


@given(events_strategy, st.integers(0, 31), bounds_strategy)
def test_time_split_accounts_for_every_event(events, cut_ms, bounds) -> None:
    timeline = time_split(events, cut_ms, bounds)
    used = len(timeline.train_events) + len(timeline.eval_events)
    assert len(events) == used + timeline.duplicates + timeline.repeats
    assert timeline.duplicates == len(events) - len(set(events))


@given(events_strategy)
def test_levels_of_an_item_rise(events) -> None:
    kept, _, _ = rising_events(events)
    reached: dict[bytes, tuple[int, int]] = {}
    for timestamp, item, level in kept:
        if item in reached:
            assert level > reached[item][0]
            assert timestamp > reached[item][1]
        reached[item] = (level, timestamp)
    # Nothing higher was lost: the last kept level is the highest of all.
    highest = {item: max(e[2] for e in events if e[1] == item) for _, item, _ in events}
    assert {item: level for item, (level, _) in reached.items()} == highest


@given(events_strategy, st.integers(0, 31), bounds_strategy)
def test_every_event_is_in_one_chunk_as_itself_and_targets_are_unique(
    events, cut_ms, bounds
) -> None:
    timeline = time_split(events, cut_ms, bounds)
    for own, cut in (
        (timeline.train_events, timeline.train),
        (timeline.eval_events, timeline.evaluation),
    ):
        assert all(0 < len(chunk) <= bounds.max_events for chunk in cut)
        targets = Counter(
            event for chunk in cut for event in chunk if event.target_level != CONTEXT
        )
        assert targets == Counter(event for event in own if event.target_level != CONTEXT)
        levels = {event.item_id: 0 for event in own}
        for event in own:
            levels[event.item_id] = max(levels[event.item_id], event.level)
        assert all(event.target_level == levels[event.item_id] for event in targets)


def timeline_of(n: int, start: int = 0) -> list[TimelineEvent]:
    return [TimelineEvent(i, b"%03d" % i, 0, 0) for i in range(start, start + n)]


def times(cut: list[list[TimelineEvent]]) -> list[list[tuple[int, bool]]]:
    return [[(e.timestamp_ms, e.target_level != CONTEXT) for e in chunk] for chunk in cut]


def test_chunks_by_hand() -> None:
    c, t = False, True
    assert times(chunks([], timeline_of(5), Bounds(3, 1))) == [
        [(0, t), (1, t), (2, t)],
        [(2, c), (3, t), (4, t)],
    ]
    context = [event._replace(target_level=CONTEXT) for event in timeline_of(4)]
    # Fits: the recent context fills the chunk up.
    assert times(chunks(context, timeline_of(2, 4), Bounds(4, 1))) == [
        [(2, c), (3, c), (4, t), (5, t)]
    ]
    # Does not fit: each chunk starts with `context_events` of context.
    assert times(chunks(context, timeline_of(3, 4), Bounds(3, 1))) == [
        [(3, c), (4, t), (5, t)],
        [(5, c), (6, t)],
    ]
    assert chunks(context, [], Bounds(3, 1)) == []


def test_leave_out_by_hand() -> None:
    timeline = leave_out_split(
        [(0, b"a", 0), (0, b"a", 1), (0, b"b", 0), (0, b"b", 0), (0, b"a", 0)],
        b"u",
        seed=1,
        eval_share=1e-9,
        bounds=WIDE,
    )
    assert timeline.train == [[(0, b"a", 1, 1), (0, b"b", 0, 0)]]
    assert timeline.evaluation == []
    assert (timeline.duplicates, timeline.repeats) == (2, 1)


@given(events_strategy, st.integers(0, 5), st.floats(0.01, 0.99))
def test_leave_out_separates_items(events, seed, share) -> None:
    timeline = leave_out_split(events, b"u", seed, share, WIDE)
    train = {event.item_id for event in timeline.train_events}
    held_out = {event.item_id for event in timeline.eval_events}
    assert train
    assert not train & held_out
    assert train | held_out == {item for _, item, _ in events}
    used = len(timeline.train_events) + len(timeline.eval_events)
    assert len(events) == used + timeline.duplicates + timeline.repeats
    for chunk in timeline.evaluation:
        context = [event for event in chunk if event.timestamp_ms == 0]
        assert {event.item_id for event in context} == train
        assert all(event.target_level == CONTEXT for event in context)
        assert all(
            event.timestamp_ms == HELD_OUT_TIME and event.target_level == event.level
            for event in chunk[len(context) :]
        )


def test_leave_out_keeps_one_item_and_holds_out_the_share() -> None:
    everything = leave_out_split(
        [(0, b"%d" % i, 0) for i in range(50)], b"u", 0, eval_share=1 - 1e-9, bounds=WIDE
    )
    assert len(everything.train_events) == 1
    held_out = sum(
        len(
            leave_out_split(
                [(0, b"%d" % i, 0) for i in range(100)], b"u%d" % user, 0, 0.2, WIDE
            ).eval_events
        )
        for user in range(100)
    )
    assert 1800 < held_out < 2200  # 10,000 draws at 0.2: five standard deviations


def test_leave_out_depends_on_the_seed_only() -> None:
    events = [(0, b"%d" % i, 0) for i in range(100)]
    first = leave_out_split(events, b"u", 1, 0.2, WIDE)
    assert first == leave_out_split(events[::-1], b"u", 1, 0.2, WIDE)
    assert first != leave_out_split(events, b"u", 2, 0.2, WIDE)
